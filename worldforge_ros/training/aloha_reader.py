"""Train the network that reads the cube's place out of ALOHA's camera picture.

Pictures are those of :mod:`worldforge_ros.training.aloha_play`, transfers and everything that goes
wrong, as long as the cube lies on the table: still, pushed, dropped, half hidden by a gripper. In a
gripper its place follows from the joints, and the picture tells it badly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from worldforge_ros.training.aloha_play import IMAGE_SIZE, WHOLE_KINDS
from worldforge_ros.training.dataset import list_episodes, load_episode
from worldforge_ros.training.keypoints import (
    add_fit_arguments,
    fit_network,
    load_network,
    predict,
)

if TYPE_CHECKING:
    from worldforge_ros.policies.keypoint_network import KeypointNetwork, NetworkShape

FloatArray = npt.NDArray[np.float32]
ImageArray = npt.NDArray[np.uint8]

WEIGHTS_FILE = "reader.safetensors"
CUBE = slice(16, 19)
"""The cube's place in the state of the simulator."""
ON_TABLE = 0.03
"""Height in m below which the cube lies on the table."""
AREA = ((-0.3, 0.3), (0.3, 0.8))
"""x and y in m of the table that is used: a cube that was pushed further is left out."""
LEAST_ERROR = 0.002
"""Error in m below which all pictures count alike in the start of the network."""


def reader_shape() -> NetworkShape:
    """The network: x and y of the cube in m, between -0.4 and 0.8."""
    from worldforge_ros.policies.keypoint_network import NetworkShape

    return NetworkShape(
        height=IMAGE_SIZE[0],
        width=IMAGE_SIZE[1],
        outputs=2,
        low=-0.4,
        span=1.2,
        channels=12,
        maps=16,
        code_maps=8,
        hidden=32,
        blobs=2,
    )


def load_reader(path: Path) -> KeypointNetwork:
    """The trained network, in evaluation mode.

    :raises WorldForgeError: ``CHECKPOINT_MISSING``.
    """
    return load_network(path, reader_shape())


def load_pictures(paths: Sequence[Path]) -> tuple[ImageArray, FloatArray]:
    """Pictures (N, 96, 128, 3) uint8 of episodes with the cube on the table, and its x and y (N, 2)
    in m.
    """
    images, places = [], []
    for path in paths:
        episode = load_episode(path)
        cube = episode.state[:: episode.image_every, CUBE]
        used = cube[:, 2] < ON_TABLE
        for axis, (low, high) in enumerate(AREA):
            used &= (cube[:, axis] > low) & (cube[:, axis] < high)
        images.append(episode.images[used])
        places.append(cube[used, :2])
    return np.concatenate(images), np.concatenate(places)


def look_for_red(network: KeypointNetwork, images: ImageArray, places: FloatArray) -> None:
    """Start a new network with a blob that follows what is red, and read the cube's place (N, 2)
    from it by least squares on ``images`` (N, 96, 128, 3).

    From random weights it takes thousands of steps until it finds so small an object.
    """
    import torch

    weights = dict(network.named_parameters())
    with torch.no_grad():
        # The norm after the layer takes the size out; it only decides how fast a filter changes.
        weights["fine.0.0.weight"][0] = torch.tensor([2.0, -1.0, -1.0])[:, None, None]
        weights["blob.weight"][0] = 0.0
        weights["blob.weight"][0, 0] = 1.0
        weights["blob.bias"][0] = -0.5
        # Centres are -1 to 1 and the mass above 0: with 2 added the rectifier passes both.
        weights["head.0.weight"][:3] = 0.0
        weights["head.0.bias"][:3] = 2.0
        shape = network.shape
        first = shape.hidden + 2 * shape.maps
        for row in range(3):
            weights["head.0.weight"][row, first + row * shape.blobs] = 1.0

        hidden: list[torch.Tensor] = []
        hook = network.head[1].register_forward_hook(
            lambda module, inputs, output: hidden.append(output.float())
        )
        for training in (True, False):
            # First the norms learn what is usual, then the features are those of use.
            network.train(training)
            hidden.clear()
            for start in range(0, len(images), 64):
                batch = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2)
                network(batch.float() / 255.0)
        hook.remove()
        features = torch.cat([torch.cat(hidden), torch.ones(len(images), 1)], dim=1).double()
        wanted = (torch.from_numpy(places).double() - shape.low) / shape.span - 0.5
        ridge = torch.full((features.shape[1],), 1e-3 * len(images), dtype=torch.float64)
        ridge[[0, 1, 2, -1]] = 0.0
        trust = torch.ones(len(images), 1, dtype=torch.float64)
        for _ in range(10):
            # Reweighted towards least absolute errors: in some pictures the cube is hidden.
            weighed = trust * features
            normal = weighed.T @ features + torch.diag(ridge)
            solution = torch.linalg.solve(normal, weighed.T @ wanted)
            error = (features @ solution - wanted).norm(dim=1, keepdim=True) * shape.span
            trust = LEAST_ERROR / error.clamp_min(LEAST_ERROR)
        weights["head.2.weight"].copy_(solution[:-1].T)
        weights["head.2.bias"].copy_(solution[-1])


def measure(network: KeypointNetwork, images: ImageArray, places: FloatArray) -> dict[str, float]:
    """Distances from the true place in mm."""
    distance = 1000.0 * np.linalg.norm(predict(network, images) - places, axis=1)
    return {
        "median_mm": float(np.median(distance)),
        "mean_mm": float(distance.mean()),
        "p95_mm": float(np.percentile(distance, 95)),
        "max_mm": float(distance.max()),
    }


def train(args: argparse.Namespace) -> dict[str, float]:
    """Load, train with resume, measure on held-out episodes, write the weights and
    ``reader.json``.
    """
    import torch
    from safetensors.torch import save_file

    from worldforge_ros.policies.keypoint_network import KeypointNetwork

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = Path(args.data)
    folder.mkdir(parents=True, exist_ok=True)
    # A branch begins with a picture of another episode, which may be held out.
    paths = list_episodes(Path(args.demos), WHOLE_KINDS)
    # Every tenth, so that all kinds are among them.
    held = load_pictures(paths[::10])
    images, places = load_pictures([path for i, path in enumerate(paths) if i % 10])
    print(f"{len(images)} pictures, {len(held[0])} held out", flush=True)
    network = KeypointNetwork(reader_shape())
    sample = np.random.default_rng(args.seed).permutation(len(images))[:1_500]
    look_for_red(network, images[sample], places[sample])
    print(json.dumps(measure(network, *held)), flush=True)
    weights = folder / WEIGHTS_FILE
    save_file(network.state_dict(), weights)
    fit_network(network, images, places, lambda net: measure(net, *held), weights, args)
    errors = measure(network, *held)
    report = {
        "pictures": len(images),
        "held_out_pictures": len(held[0]),
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "shape": asdict(network.shape),
        "parameters": sum(p.numel() for p in network.parameters()),
        "held_out": errors,
    }
    (folder / "reader.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--demos", default="data/aloha/world_model_demos", help="folder")
    parser.add_argument("--data", default="data/aloha/reader", help="folder of weights and logs")
    add_fit_arguments(parser, steps=0, batch=32, lr=2e-4, bf16=True)


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    train(args)
    return 0


def main() -> int:
    """Entry point of ``python -m worldforge_ros.training.aloha_reader``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
