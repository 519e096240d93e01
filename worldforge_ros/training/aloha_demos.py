"""ALOHA demonstrations of the scripted expert, for the policy and the reader of its pictures.

``python -m worldforge_ros.training.aloha_demos --episodes 400``

No pictures are kept: rendering is by far the dearest part, and the reader of the policy
(:mod:`worldforge_ros.training.aloha_reader`) wants pictures of many states that differ rather than
of every step. The state of the simulator is kept, from which any picture can be made.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import WorldForgeError
from worldforge_ros.recording.progress import track
from worldforge_ros.simulation.aloha import CONTROL_STEP, PHYSICS_STEP, AlohaSimulation
from worldforge_ros.training.aloha_expert import Expert, Style
from worldforge_ros.training.dataset import (
    FIRST_TRAINING_SEED,
    episode_path,
    load_arrays,
    save_episode,
    seeds_to_record,
)

FloatArray = npt.NDArray[np.float32]

TICKS = round(CONTROL_STEP / PHYSICS_STEP)


@dataclass(frozen=True)
class AlohaDemonstration:
    """One episode of T control steps, all captured at the *start* of a step.

    ``position``, ``velocity`` (T, 14) in rad, m and per second; ``action`` (T, 14) the executed
    set-point, ``label`` (T, 14) the one that the expert wanted; ``state`` (T, 61) of the simulator;
    ``cube`` (T, 7); ``reward`` (T,) after the step.
    """

    position: FloatArray
    velocity: FloatArray
    action: FloatArray
    label: FloatArray
    state: FloatArray
    cube: FloatArray
    reward: FloatArray
    seed: int
    kind: str

    def __len__(self) -> int:
        return len(self.action)

    @property
    def solved(self) -> bool:
        """Whether the left gripper had the cube off the table and kept it until the end."""
        return bool(self.reward.max() == 4 and self.cube[-1, 2] > 0.1)


def record(
    world: AlohaSimulation, actions: npt.ArrayLike, labels: npt.ArrayLike, seed: int
) -> AlohaDemonstration:
    """Execute ``actions`` (T, 14) from where ``world`` is, one each control step."""
    executed = np.asarray(actions, dtype=np.float64)
    rows: dict[str, list[npt.ArrayLike]] = {
        name: [] for name in ("position", "velocity", "state", "cube", "reward")
    }
    for setpoint in executed:
        rows["position"].append(world.position)
        rows["velocity"].append(world.velocity)
        rows["state"].append(world.state)
        rows["cube"].append(world.cube)
        world.advance(setpoint, TICKS)
        rows["reward"].append(world.reward())
    return AlohaDemonstration(
        **{name: np.asarray(values, dtype=np.float32) for name, values in rows.items()},
        action=executed.astype(np.float32),
        label=np.asarray(labels, dtype=np.float32),
        seed=seed,
        kind="demo",
    )


def demonstrate(world: AlohaSimulation, expert: Expert, seed: int) -> AlohaDemonstration:
    """A transfer from gym-aloha's cube for ``seed``, in a style of its own; deterministic.

    Two demonstrations of three are bent away from the plan now and then, so that corrections are
    seen; ``label`` keeps the plan.
    """
    rng = np.random.default_rng([seed, 11])
    world.reset(seed=seed)
    labels = expert.plan(world.cube[:3], Style.draw(rng))
    bumps = int(rng.integers(3))
    actions = expert.bump(labels, rng, bumps, 0.05) if bumps else labels
    return record(world, actions, labels, seed)


def load_demonstration(path: Path) -> AlohaDemonstration:
    """Read an episode.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that is not a complete episode.
    """
    return load_arrays(path, AlohaDemonstration)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the recorder."""
    parser.add_argument("--out", type=Path, default=Path("data/aloha/demos"), help="folder")
    parser.add_argument("--episodes", type=int, default=400, help="episodes that shall exist")
    parser.add_argument("--start-seed", type=int, default=FIRST_TRAINING_SEED)


def run(args: argparse.Namespace) -> int:
    """Record what is missing; returns the exit status."""
    seeds, missing = seeds_to_record(args.out, "demo", args.start_seed, args.episodes)
    world, expert = AlohaSimulation(), Expert()
    solved = 0
    with track("demo", len(seeds), len(seeds) - len(missing)) as advance:
        for seed in missing:
            try:
                episode = demonstrate(world, expert, seed)
            except WorldForgeError as error:
                advance(f"seed {seed}: left out, {error}")
                continue
            save_episode(episode, episode_path(args.out, "demo", seed))
            solved += episode.solved
            advance(f"seed {seed}: {len(episode)} steps, reward {episode.reward.max():.0f}")
    print(f"{len(missing)} recorded, {solved} solved, {len(seeds) - len(missing)} were there")
    return 0


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
