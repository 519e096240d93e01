"""Train the picture-to-keypoints network of the shipped PushT policy on rendered states.

The network becomes the state of a LeRobot processor step
(:mod:`worldforge_ros.policies.keypoint_step`); this module renders, trains, measures and writes
weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.checkpoints import training_device
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.recording.progress import tracked
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.training.fitting import cosine_rate

if TYPE_CHECKING:
    import torch

    from worldforge_ros.policies.keypoint_network import KeypointNetwork, NetworkShape

FloatArray = npt.NDArray[np.float64]
KeypointArray = npt.NDArray[np.float32]

GOAL_POSE = (256.0, 256.0, math.pi / 4)
WEIGHTS_FILE = "keypoints.safetensors"
HELD_OUT_SEED = 1


def sample_state(rng: np.random.Generator) -> FloatArray:
    """A random state (5,): pusher and block anywhere, near each other, or near the goal.

    The pusher may overlap the block: such pictures teach the network to see past an occlusion.
    """
    if rng.random() < 0.3:
        block = np.array(GOAL_POSE) + rng.normal(size=3) * (40.0, 40.0, 0.5)
    else:
        block = rng.uniform((40.0, 40.0, -math.pi), (472.0, 472.0, math.pi))
    if rng.random() < 0.5:
        angle, distance = rng.uniform(-math.pi, math.pi), rng.uniform(0.0, 130.0)
        agent = block[:2] + distance * np.array([math.cos(angle), math.sin(angle)])
        agent = agent.clip(0.0, 512.0)
    else:
        agent = rng.uniform(0.0, 512.0, size=2)
    return np.array([*agent, *block])


def render(count: int, seed: int, folder: Path) -> tuple[npt.NDArray[np.uint8], KeypointArray]:
    """``count`` pictures (N, 96, 96, 3) uint8 and keypoints (N, 16) float32 in millimetres,
    cached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images_file = folder / f"images_{seed}_{count}.npy"
    points_file = folder / f"keypoints_{seed}_{count}.npy"
    if not points_file.is_file():
        rng = np.random.default_rng(seed)
        simulation = PushTSimulation()
        images = np.empty((count, 96, 96, 3), dtype=np.uint8)
        points = np.empty((count, 16), dtype=np.float32)
        for index in range(count):
            simulation.set_state(sample_state(rng))
            images[index] = simulation.image()
            points[index] = simulation.keypoints().reshape(16)
        np.save(images_file, images)
        np.save(points_file, points)
        simulation.close()
    return np.load(images_file), np.load(points_file)


def block_angle(points: npt.NDArray[Any]) -> FloatArray:
    """Angle (N,) in radians of the least-squares rotation between the block's shape and ``points``
    (N, 16).

    The rotation of 2-D Procrustes analysis: atan2 of the summed cross and dot products of the
    centred points, here relative to the first reference, so that only differences of two results
    mean anything.
    """
    shape = np.asarray(points, dtype=np.float64).reshape(-1, 8, 2)
    centred = shape - shape.mean(axis=1, keepdims=True)
    reference = _reference_shape()
    cross = reference[:, 0] * centred[..., 1] - reference[:, 1] * centred[..., 0]
    dot = (reference * centred).sum(axis=-1)
    angle: FloatArray = np.arctan2(cross.sum(axis=-1), dot.sum(axis=-1))
    return angle


def _reference_shape() -> FloatArray:
    """The T block's corners, gym-pusht's order, centred, in millimetres, at angle 0."""
    scale, length = 30.0, 4.0
    bar = [(-2, 1), (2, 1), (2, 0), (-2, 0)]
    stem = [(-0.5, 1), (-0.5, length), (0.5, length), (0.5, 1)]
    corners = np.array(bar + stem, dtype=np.float64) * scale
    centred: FloatArray = corners - corners.mean(axis=0)
    return centred


@dataclass(frozen=True)
class KeypointErrors:
    """Errors on held-out states: distances in mm over all points, angles in degrees over
    pictures.
    """

    pictures: int
    mean_mm: float
    p95_mm: float
    max_mm: float
    angle_mean_deg: float
    angle_p95_deg: float
    angle_max_deg: float


def measure_errors(predicted: npt.ArrayLike, true: npt.ArrayLike) -> KeypointErrors:
    """Compare predicted and true keypoints, both (N, 16) in millimetres."""
    found = np.asarray(predicted, dtype=np.float64)
    expected = np.asarray(true, dtype=np.float64)
    distance = np.linalg.norm((found - expected).reshape(-1, 8, 2), axis=-1)
    turn = block_angle(found) - block_angle(expected)
    angle = np.degrees(np.abs((turn + math.pi) % (2 * math.pi) - math.pi))
    return KeypointErrors(
        pictures=len(found),
        mean_mm=float(distance.mean()),
        p95_mm=float(np.percentile(distance, 95)),
        max_mm=float(distance.max()),
        angle_mean_deg=float(angle.mean()),
        angle_p95_deg=float(np.percentile(angle, 95)),
        angle_max_deg=float(angle.max()),
    )


def predict(network: KeypointNetwork, images: npt.NDArray[np.uint8]) -> KeypointArray:
    """What ``network`` reads, (N, outputs) float32, in pictures (N, H, W, 3) uint8."""
    import torch

    network.eval()
    place = next(network.parameters()).device
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), 256):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + 256])).to(place)
            rows.append(network(batch.permute(0, 3, 1, 2).float() / 255.0).cpu().numpy())
    return np.concatenate(rows)


def load_network(path: Path, shape: NetworkShape | None = None) -> KeypointNetwork:
    """The trained network from a safetensors file, in evaluation mode.

    :raises WorldForgeError: ``CHECKPOINT_MISSING``.
    """
    from safetensors.torch import load_file

    from worldforge_ros.policies.keypoint_network import KeypointNetwork

    if not path.is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "keypoint weights",
            found=f"no file {path}",
            expected="a file written by worldforge_ros.training.keypoints",
        )
    network = KeypointNetwork(shape)
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness and pixel noise, so that small differences between cameras do not matter."""
    import torch

    gain = 1.0 + 0.05 * torch.randn((len(batch), 1, 1, 1), generator=generator)
    sigma = 0.02 * torch.rand((len(batch), 1, 1, 1), generator=generator)
    noise = torch.randn(batch.shape, generator=generator)
    return (batch * gain + sigma * noise).clamp(0.0, 1.0)


def fit_network(
    network: KeypointNetwork,
    pictures: npt.NDArray[np.uint8],
    targets: KeypointArray,
    measure: Callable[[KeypointNetwork], dict[str, float]],
    weights: Path,
    args: argparse.Namespace,
) -> None:
    """Train ``network`` on pictures (N, H, W, 3) and targets (N, outputs), with resume.

    :param measure: errors on held-out pictures, written into the log.
    :param weights: file to write; checkpoint and log lie beside it.
    :param args: the options of :func:`add_fit_arguments`.
    """
    import torch
    from safetensors.torch import save_file

    place = training_device(args.device)
    span = network.shape.span
    network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_rate(step, args.steps, args.steps // 20)
    )
    checkpoint = weights.with_name(f"{weights.stem}_training.pt")
    start = 0
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start = saved["step"]
    generator = torch.Generator().manual_seed(args.seed + start)
    log = weights.with_name(f"{weights.stem}_training.jsonl").open("a" if start else "w")
    network.train()
    began = time.monotonic()
    for step in tracked("steps", range(start, args.steps), args.steps):
        index = np.sort(torch.randint(len(pictures), (args.batch,), generator=generator).numpy())
        raw = torch.from_numpy(pictures[index]).permute(0, 3, 1, 2)
        target = torch.from_numpy(targets[index])
        batch = _augment(raw.float() / 255.0, generator)
        batch = batch.contiguous(memory_format=torch.channels_last).to(place)
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=args.bf16):
            predicted = network(batch)
        loss = torch.nn.functional.l1_loss(predicted / span, target.to(place) / span)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        last = step + 1 == args.steps
        if (step + 1) % args.log_every == 0 or last:
            row = {"step": step + 1, "l1": loss.item() * span, **measure(network)}
            network.train()
            row["seconds"] = round(time.monotonic() - began, 1)
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)
            torch.save(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                },
                checkpoint,
            )
            state = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
            save_file(state, weights)
    log.close()


def train(args: argparse.Namespace) -> KeypointErrors:
    """Render, train with resume, measure on held-out states, write the weights and
    ``keypoints.json``.
    """
    import torch

    from worldforge_ros.policies.keypoint_network import KeypointNetwork

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = Path(args.data)
    images, points = render(args.states, args.seed + 1000, folder)
    held_images, held_points = render(args.held_out, HELD_OUT_SEED, folder)
    print(f"rendered {len(images)} + {len(held_images)} states", flush=True)
    network = KeypointNetwork()
    fit_network(
        network,
        images,
        points,
        lambda trained: asdict(
            measure_errors(predict(trained, held_images[:500]), held_points[:500])
        ),
        folder / WEIGHTS_FILE,
        args,
    )
    errors = measure_errors(predict(network, held_images), held_points)
    report = {
        "states": args.states,
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "held_out": asdict(errors),
    }
    (folder / "keypoints.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--data", default="data/keypoints", help="folder of pictures and weights")
    parser.add_argument("--states", type=int, default=40_000, help="rendered training states")
    parser.add_argument("--held-out", type=int, default=2_000, help="rendered held-out states")
    add_fit_arguments(parser, steps=7_000, batch=64, lr=2e-3, bf16=True)


def add_fit_arguments(
    parser: argparse.ArgumentParser, *, steps: int, batch: int, lr: float, bf16: bool
) -> None:
    """Options of :func:`fit_network`, with the task's defaults."""
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=500, help="steps between measurements")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=bf16)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    train(args)
    return 0


def main() -> int:
    """Entry point of ``python -m worldforge_ros.training.keypoints``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
