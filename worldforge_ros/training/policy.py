"""Train the shipped PushT policy: LeRobot's Diffusion policy on keypoints read from the camera
picture.

Data are episodes of ``worldforge_ros.training.demos`` (one ``.npz`` each). Loss, noise schedule,
normalisation and the written folder are LeRobot's own. The pre-processor gains one step,
:class:`worldforge_ros.policies.keypoint_step.ImageToKeypoints`, which carries the network of
``worldforge_ros.training.keypoints``; the policy is trained on what that network reads from the
pictures.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.policy import setpoints_to_actions
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.simulation.pusht import SUCCESS_COVERAGE
from worldforge_ros.training.dataset import list_episodes, load_episode
from worldforge_ros.training.fitting import (
    Statistics,
    Task,
    export_with_step,
    fit,
    statistics_of,
)
from worldforge_ros.training.fitting import add_arguments as add_fit_arguments
from worldforge_ros.training.keypoints import load_network, predict

if TYPE_CHECKING:
    import torch

    from worldforge_ros.policies.keypoint_network import KeypointNetwork

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

N_OBS_STEPS = 2
HORIZON = 16
SIDE = 512.0
HOLD_STEPS = 2
"""Steps kept of standing still after success: with more, the policy stops just short of it."""
MIRRORED_CORNERS = (1, 0, 3, 2, 5, 4, 7, 6)
"""Which corner of the block each corner becomes in a mirror along the block's stem."""


@dataclass(frozen=True)
class Windows:
    """Training windows in the policy's units (environment units, mm), float32.

    ``state`` (N, 2, 2), ``keypoints`` (N, 2, 16), ``action`` (N, 16, 2), ``is_pad`` (N, 16) bool.
    The second observation is the present one; action 0 is the one before it, as LeRobot lays out a
    horizon.
    """

    state: FloatArray
    keypoints: FloatArray
    action: FloatArray
    is_pad: BoolArray

    def __len__(self) -> int:
        return len(self.state)


@dataclass(frozen=True)
class Demonstration:
    """One demonstration in the policy's units: ``state`` (T, 2), ``keypoints`` (T, 16), ``label``
    (T, 2).
    """

    state: FloatArray
    keypoints: FloatArray
    label: FloatArray
    solved: bool


def load_demonstrations(
    folder: Path,
    network: KeypointNetwork,
    embodiment: Embodiment,
    cache: Path,
    *,
    min_coverage: float,
    limit: int | None = None,
) -> list[Demonstration]:
    """Demonstrations that reached ``min_coverage``; keypoints are cached in ``cache``.

    A solved one is whole, with the set-points that hold still after success; another one ends where
    its coverage was best.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` without any.
    """
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    key = digest.hexdigest()[:12]
    cache.mkdir(parents=True, exist_ok=True)
    paths = list_episodes(folder, ["demo"])[:limit]
    demonstrations = []
    for path in paths:
        episode = load_episode(path)
        best = int(episode.coverage.argmax())
        if episode.coverage[best] < min_coverage:
            continue
        solved = bool(episode.coverage[best] > SUCCESS_COVERAGE)
        if solved:
            best = int(np.flatnonzero(episode.coverage > SUCCESS_COVERAGE)[0]) + HOLD_STEPS - 1
        stop = min(best + 1, len(episode))
        cached = cache / f"{path.stem}_{key}.npy"
        if not cached.is_file():
            np.save(cached, predict(network, episode.images))
        here = episode.position[0]
        demonstrations.append(
            Demonstration(
                state=_units(episode.position[:stop], here, embodiment),
                keypoints=np.load(cached)[:stop],
                label=_units(episode.label[:stop], here, embodiment),
                solved=solved,
            )
        )
    if not demonstrations:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"demonstrations in {folder}",
            found=f"{len(paths)} episodes, none that reached coverage {min_coverage}",
            expected="good episodes of worldforge_ros.training.demos",
        )
    return demonstrations


def _units(setpoints: FloatArray, position: FloatArray, embodiment: Embodiment) -> FloatArray:
    return setpoints_to_actions(setpoints, position, embodiment).astype(np.float32)


def mirror(episode: Demonstration) -> Demonstration:
    """The same demonstration seen in a mirror along the goal's stem.

    The workspace, the goal (256, 256, 45 degrees) and the block are symmetric under
    (x, y) -> (512 - y, 512 - x), so every demonstration is worth two.
    """
    points = episode.keypoints.reshape(-1, 8, 2)[:, MIRRORED_CORNERS]
    return Demonstration(
        state=SIDE - episode.state[:, ::-1],
        keypoints=(SIDE - points[..., ::-1]).reshape(-1, 16),
        label=SIDE - episode.label[:, ::-1],
        solved=episode.solved,
    )


def make_windows(episodes: Sequence[Demonstration]) -> Windows:
    """Every moment of every episode as one window.

    Before the first moment the robot rested. After the last one a solved episode holds its last
    set-point; in an unsolved one those actions are unknown and marked as padding, which the loss
    leaves out.
    """
    states, points, actions, pads = [], [], [], []
    for episode in episodes:
        count = len(episode.label)
        now = np.arange(count)
        seen = np.stack([np.maximum(now - 1, 0), now], axis=1)
        wanted = now[:, None] + np.arange(1 - N_OBS_STEPS, HORIZON - N_OBS_STEPS + 1)
        states.append(episode.state[seen])
        points.append(episode.keypoints[seen])
        actions.append(episode.label[wanted.clip(0, count - 1)])
        beyond = wanted >= count
        pads.append(np.zeros_like(beyond) if episode.solved else beyond)
    return Windows(
        state=np.concatenate(states).astype(np.float32),
        keypoints=np.concatenate(points).astype(np.float32),
        action=np.concatenate(actions).astype(np.float32),
        is_pad=np.concatenate(pads),
    )


def statistics(windows: Windows) -> Statistics:
    """Minimum, maximum, mean and standard deviation of each feature, as LeRobot's data sets hold
    them.
    """
    return statistics_of(
        {
            "observation.state": windows.state[:, -1],
            "observation.environment_state": windows.keypoints[:, -1],
            "action": windows.action.reshape(-1, 2),
        }
    )


def make_policy(down_dims: tuple[int, ...], kernel_size: int, device: str = "cpu") -> Any:
    """A new LeRobot ``DiffusionPolicy`` for keypoints and pusher position, DDIM with 5 steps."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(
        device=device,
        push_to_hub=False,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (16,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        normalization_mapping={
            "STATE": NormalizationMode.MIN_MAX,
            "ENV": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        },
        n_obs_steps=N_OBS_STEPS,
        horizon=HORIZON,
        n_action_steps=8,
        down_dims=down_dims,
        kernel_size=kernel_size,
        noise_scheduler_type="DDIM",
        num_train_timesteps=100,
        num_inference_steps=5,
        # Predicting the noise instead needs far more steps for the same error.
        prediction_type="sample",
        do_mask_loss_for_padding=True,
    )
    return DiffusionPolicy(config).to(device)


def export(policy: Any, stats: Statistics, network: KeypointNetwork, folder: Path) -> None:
    """Write a LeRobot folder whose pre-processor reads the keypoints with ``network``."""
    from worldforge_ros.policies.keypoint_step import ImageToKeypoints

    step = ImageToKeypoints()
    step.use(network)
    export_with_step(policy, stats, step, folder)


def _batch(windows: Windows, index: npt.NDArray[Any]) -> dict[str, torch.Tensor]:
    import torch

    return {
        "observation.state": torch.from_numpy(windows.state[index]),
        "observation.environment_state": torch.from_numpy(windows.keypoints[index]),
        "action": torch.from_numpy(windows.action[index]),
        "action_is_pad": torch.from_numpy(windows.is_pad[index]),
    }


def _held_out_loss(policy: Any, preprocessor: Any, windows: Windows) -> float:
    """LeRobot's loss on held-out windows with the same noise every time."""
    import torch

    index = np.linspace(0, len(windows) - 1, min(512, len(windows))).astype(int)
    batch = _batch(windows, index)
    pads = batch.pop("action_is_pad").to(next(policy.parameters()).device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        prepared = {**preprocessor(batch), "action_is_pad": pads}
        losses = [policy.forward(prepared)[0].item() for _ in range(4)]
    return float(np.mean(losses))


def train(args: argparse.Namespace) -> None:
    """Load, train with resume, and write the averaged weights as a LeRobot folder."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    work = Path(args.work)
    network = load_network(Path(args.keypoints))
    episodes = load_demonstrations(
        Path(args.demos),
        network,
        load_embodiment("pusht"),
        work / "keypoints",
        min_coverage=args.min_coverage,
        limit=args.limit,
    )
    held = max(1, len(episodes) // 25)
    held_windows = make_windows(episodes[:held])
    kept = episodes[held:]
    windows = make_windows([*kept, *(mirror(episode) for episode in kept)])
    print(
        f"{len(kept)} episodes, {len(windows)} windows with their mirror images; "
        f"{held} episodes held out",
        flush=True,
    )

    def batch(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        drawn = _batch(windows, rng.integers(len(windows), size=args.batch))
        points = drawn["observation.environment_state"]
        drawn["observation.environment_state"] = points + args.noise * torch.randn_like(points)
        return drawn

    fit(
        Task(
            make=lambda device: make_policy(tuple(args.down_dims), args.kernel_size, device),
            statistics=statistics(windows),
            batch=batch,
            held_out=lambda policy, prepare: _held_out_loss(policy, prepare, held_windows),
            export=lambda policy, stats: export(policy, stats, network, Path(args.out)),
        ),
        args,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "--demos", default="data/pusht/demos", help="folder of demonstration episodes"
    )
    parser.add_argument("--keypoints", default="data/keypoints/keypoints.safetensors")
    parser.add_argument("--noise", type=float, default=1.0, help="noise on keypoints, mm")
    parser.add_argument("--min-coverage", type=float, default=0.8, help="keep better episodes")
    parser.add_argument("--down-dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="at most so many episode files")
    add_fit_arguments(
        parser,
        work="data/policy",
        out="models/pusht/policy",
        steps=5_000,
        batch=128,
        bf16=True,
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    train(args)
    return 0


def main() -> int:
    """Entry point of ``python -m worldforge_ros.training.policy``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
