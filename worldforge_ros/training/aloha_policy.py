"""Train the shipped ALOHA policy: LeRobot's ACT on the joints and the cube's place.

Data are demonstrations of :mod:`worldforge_ros.training.aloha_demos`. Loss, latent, normalisation
and the written folder are LeRobot's own. The pre-processor gains the step
:class:`worldforge_ros.policies.keypoint_step.ImageToKeypoints`, which reads the cube's place out of
the camera picture with the network of :mod:`worldforge_ros.training.aloha_reader`; the policy is
trained on true places with that network's errors added.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, StateFeature, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.simulation.aloha import IMAGE_HEIGHT, IMAGE_WIDTH, JOINT_NAMES
from worldforge_ros.training.aloha_demos import load_demonstration
from worldforge_ros.training.dataset import list_episodes
from worldforge_ros.training.fitting import (
    Statistics,
    Task,
    export_with_step,
    fit,
    statistics_of,
)
from worldforge_ros.training.fitting import add_arguments as add_fit_arguments

if TYPE_CHECKING:
    import torch

    from worldforge_ros.policies.keypoint_network import KeypointNetwork

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

CHUNK = 50
"""Actions of a chunk: 1 s."""
LEAST_SPREAD = 0.02
"""Least standard deviation, in policy units, that a feature is divided by: joints that stand still
in all demonstrations shall not be magnified."""
HELD_ABOVE = 0.03
"""Height of the cube, m, above which it is in a gripper."""
EARLY = 10
"""Steps that an episode begins with, see ``--start-share``."""


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations end to end in the policy's units: ``state`` (N, 14), ``cube`` (N, 2) x and y
    in m, ``held`` (N, 1) whether it is off the table, ``label`` (N, 14); ``last`` (N,) is the index
    of the last step of each step's episode.
    """

    state: FloatArray
    cube: FloatArray
    held: npt.NDArray[np.bool_]
    label: FloatArray
    last: IndexArray

    def __len__(self) -> int:
        return len(self.last)

    def chunks(self, index: IndexArray) -> FloatArray:
        """What is wanted from each step on, (B, :data:`CHUNK`, 14); after the end, to stay."""
        wanted = index[:, None] + np.arange(CHUNK)
        found: FloatArray = self.label[np.minimum(wanted, self.last[index][:, None])]
        return found


def load_demonstrations(paths: Sequence[Path], embodiment: Embodiment) -> Demonstrations:
    """The episodes at ``paths`` in which the cube was handed over and kept.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` without any.
    """
    feature = embodiment.policy.features["observation.state"]
    assert isinstance(feature, StateFeature)
    action = embodiment.policy.action
    states, cubes, held, labels, lengths = [], [], [], [], []
    for path in paths:
        episode = load_demonstration(path)
        if not episode.solved:
            continue
        states.append(episode.position * feature.scale + feature.offset)
        cubes.append(episode.cube[:, :2])
        held.append(episode.cube[:, 2:3] > HELD_ABOVE)
        labels.append(episode.label * action.scale + action.offset)
        lengths.append(len(episode))
    if not lengths:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "ALOHA demonstrations",
            found=f"{len(paths)} episodes, none that handed the cube over",
            expected="episodes of worldforge_ros.training.aloha_demos",
        )
    return Demonstrations(
        state=np.concatenate(states).astype(np.float32),
        cube=np.concatenate(cubes).astype(np.float32),
        held=np.concatenate(held),
        label=np.concatenate(labels).astype(np.float32),
        last=np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int64),
    )


def statistics(data: Demonstrations) -> Statistics:
    """Statistics for LeRobot's normalisation, no standard deviation below
    :data:`LEAST_SPREAD`.
    """
    table = statistics_of(
        {
            "observation.state": data.state,
            "observation.environment_state": data.cube,
            "action": data.label,
        }
    )
    return {
        name: {**values, "std": values["std"].clamp_min(LEAST_SPREAD)}
        for name, values in table.items()
    }


def make_policy(args: argparse.Namespace, device: str = "cpu") -> Any:
    """A new LeRobot ``ACTPolicy`` for the joints and the cube's place."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(
        device=device,
        push_to_hub=False,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINT_NAMES),)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (len(JOINT_NAMES),))},
        normalization_mapping={
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        },
        pretrained_backbone_weights=None,
        chunk_size=CHUNK,
        n_action_steps=CHUNK // 2,
        dim_model=args.dim_model,
        n_heads=4,
        dim_feedforward=args.dim_feedforward,
        n_encoder_layers=2,
        n_decoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=args.latent,
        pre_norm=True,
        dropout=0.0,
        kl_weight=args.kl_weight,
    )
    return ACTPolicy(config).to(device)


def export(policy: Any, stats: Statistics, network: KeypointNetwork, folder: Path) -> None:
    """Write a LeRobot folder whose pre-processor reads the cube's place with ``network``."""
    from worldforge_ros.policies.keypoint_step import ImageToKeypoints

    size = [IMAGE_HEIGHT, IMAGE_WIDTH]
    step = ImageToKeypoints(image_key="observation.images.top", image_size=size)
    step.use(network)
    export_with_step(policy, stats, step, folder)


def _batch(data: Demonstrations, index: IndexArray) -> dict[str, torch.Tensor]:
    import torch

    return {
        "observation.state": torch.from_numpy(data.state[index]),
        "observation.environment_state": torch.from_numpy(data.cube[index]),
        "action": torch.from_numpy(data.chunks(index)),
        "action_is_pad": torch.zeros((len(index), CHUNK), dtype=torch.bool),
    }


def _held_out_error(policy: Any, preprocessor: Any, data: Demonstrations) -> float:
    """Mean absolute error of the chunk for latent 0, in standard deviations."""
    import torch

    index = np.linspace(0, len(data) - 1, min(1024, len(data))).astype(np.int64)
    batch = _batch(data, index)
    del batch["action_is_pad"]
    prepared = preprocessor(batch)
    with torch.no_grad():
        found = policy.predict_action_chunk(prepared)
    return float((found - prepared["action"]).abs().mean())


def train(args: argparse.Namespace) -> None:
    """Load, train with resume, and write the averaged weights as a LeRobot folder."""
    import torch

    from worldforge_ros.training.aloha_reader import load_reader

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    paths = list_episodes(Path(args.demos), ["demo"])[: args.limit]
    held = max(1, len(paths) // 25)
    embodiment = load_embodiment("aloha")
    held_data = load_demonstrations(paths[:held], embodiment)
    data = load_demonstrations(paths[held:], embodiment)
    network = load_reader(Path(args.reader))
    first = np.concatenate([[0], np.unique(data.last)[:-1] + 1])
    starts = (first[:, None] + np.arange(EARLY)).ravel()
    print(f"{len(paths) - held} episodes, {len(data)} steps; {held} episodes held out", flush=True)

    def batch(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        index = rng.integers(len(data), size=args.batch)
        # A robot that rests must be able to get onto the first action from where it is.
        early = rng.random(args.batch) < args.start_share
        index[early] = rng.choice(starts, int(early.sum()))
        drawn = _batch(data, index)
        state, place = drawn["observation.state"], drawn["observation.environment_state"]
        # In a gripper the cube is half hidden, and where it is hardly matters.
        held = torch.from_numpy(data.held[index])
        noise = torch.where(held, args.held_noise, args.cube_noise)
        drawn["observation.environment_state"] = place + noise * torch.randn_like(place)
        drawn["observation.state"] = state + args.joint_noise * torch.randn_like(state)
        return drawn

    fit(
        Task(
            make=lambda device: make_policy(args, device),
            statistics=statistics(data),
            batch=batch,
            held_out=lambda policy, prepare: _held_out_error(policy, prepare, held_data),
            export=lambda policy, stats: export(policy, stats, network, Path(args.out)),
        ),
        args,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--demos", default="data/aloha/demos", help="folder of demonstrations")
    parser.add_argument("--reader", default="data/aloha/reader/reader.safetensors")
    parser.add_argument("--cube-noise", type=float, default=0.006, help="on the cube's place, m")
    parser.add_argument("--held-noise", type=float, default=0.03, help="the same while it is held")
    parser.add_argument("--joint-noise", type=float, default=0.003, help="on joints, policy units")
    parser.add_argument(
        "--start-share", type=float, default=0.15, help="of a batch that are first steps"
    )
    parser.add_argument("--kl-weight", type=float, default=0.01, help="of ACT's latent")
    parser.add_argument("--latent", type=int, default=8, help="dimensions of ACT's latent")
    parser.add_argument("--dim-model", type=int, default=96)
    parser.add_argument("--dim-feedforward", type=int, default=192)
    parser.add_argument("--limit", type=int, default=None, help="at most so many episode files")
    add_fit_arguments(
        parser,
        work="data/aloha/policy",
        out="models/aloha/policy",
        steps=2_500,
        batch=32,
        bf16=True,
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    train(args)
    return 0


def main() -> int:
    """Entry point of ``python -m worldforge_ros.training.aloha_policy``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
