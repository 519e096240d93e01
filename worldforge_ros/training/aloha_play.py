"""ALOHA episodes for the world model: the scripted expert, the expert disturbed, random motion.

``demo`` follows the expert's plan. ``play`` follows a disturbed one: made for a cube that lies
elsewhere, shaken, with grippers that close or open at the wrong time, stopped, sped up, or going
over into another plan; so the cube is missed, pushed and dropped. ``explore`` moves both arms
through random places near the cube and the meeting point. ``branch`` starts from a moment of an
episode of these kinds and does something else for a second; it has one picture, that of the moment,
so that nothing is rendered.

A picture costs 50 ms to render and a step of physics 0.4 ms, so a picture is taken of every tenth
step only, and kept at the size of the model.

``python -m worldforge_ros.training.aloha_play --kind play --episodes 300``
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.recording.progress import track
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.simulation.aloha import (
    CONTROL_STEP,
    GRIPPERS,
    PHYSICS_STEP,
    SUCCESS_REWARD,
    AlohaSimulation,
)
from worldforge_ros.training.aloha_expert import (
    BASES,
    CLOSED,
    OPEN,
    REST,
    REST_GRIPPER,
    ArmKinematics,
    Expert,
    Style,
)
from worldforge_ros.training.dataset import (
    FIRST_TRAINING_SEED,
    Episode,
    episode_path,
    list_episodes,
    load_episode,
    save_episode,
    seeds_to_record,
)
from worldforge_ros.training.tasks import task_of

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]

WHOLE_KINDS = ("demo", "play", "explore")
KINDS = (*WHOLE_KINDS, "branch")
BRANCH_STEPS = 50
IMAGE_EVERY = 10
IMAGE_SIZE = (96, 128)
"""Height and width of the pictures that are kept."""
TICKS = round(CONTROL_STEP / PHYSICS_STEP)
ARMS = (*range(6), *range(7, 13))
START = np.array([*REST, REST_GRIPPER] * 2)
LONGEST = 380
"""Steps of an episode at most."""


class Studio:
    """One simulated world with its expert, for many episodes."""

    def __init__(self) -> None:
        embodiment = load_embodiment("aloha")
        limits = limits_of(embodiment)
        self.simulation = AlohaSimulation()
        self._expert = Expert(embodiment)
        self._arms = {side: ArmKinematics(side) for side in BASES}
        self._low, self._high = limits.lower, limits.upper

    def plan(self, cube: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
        """The expert's set-points (T, 14) for a cube at ``cube`` (3,) m, in a style at random."""
        # Some styles are out of reach for some places: then another one.
        for _ in range(20):
            with contextlib.suppress(WorldForgeError):
                return self._expert.plan(cube, Style.draw(rng))
        return self._expert.plan(cube)

    def disturbed(self, cube: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
        """Set-points (T, 14) of a plan for ``cube`` (3,) m that goes wrong in one way or more."""
        place = np.asarray(cube, dtype=np.float64)[:3].copy()
        if rng.random() < 0.5:
            place[:2] += rng.normal(0.0, rng.choice([0.012, 0.04]), 2)
        plan = self.plan(place, rng)
        if rng.random() < 0.3:
            elsewhere = place + np.array([*rng.normal(0.0, 0.03, 2), 0.0])
            plan = _over_into(plan, self.plan(elsewhere, rng), rng)
        if rng.random() < 0.4:
            plan = _at_another_pace(plan, rng)
        if rng.random() < 0.5:
            _mistime_grippers(plan, rng)
        if rng.random() < 0.6:
            plan[:, ARMS] += _wobble(len(plan), len(ARMS), rng) * rng.choice([0.02, 0.06])
        return plan

    def wandering(self, cube: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
        """Set-points (T, 14) through random places near ``cube`` (3,) m and the meeting point."""
        from scipy.interpolate import PchipInterpolator

        place = np.asarray(cube, dtype=np.float64)[:3]
        steps = LONGEST - 60
        knots = np.cumsum(rng.uniform(20, 60, 40))
        knots = np.concatenate([[0.0], knots[knots < steps], [steps]])
        rows = np.tile(START, (len(knots), 1))
        for side, first in (("left", 0), ("right", 7)):
            joints = np.array(REST)
            for index in range(1, len(knots)):
                joints = self._somewhere(side, place, joints, rng)
                rows[index, first : first + 6] = joints
                rows[index, first + 6] = rng.choice([OPEN, CLOSED, rng.uniform(CLOSED, OPEN)])
        setpoints: FloatArray = PchipInterpolator(knots, rows)(np.arange(1, steps + 1))
        return setpoints

    def _somewhere(
        self, side: str, cube: FloatArray, start: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        for _ in range(10):
            if side == "right" and rng.random() < 0.6:
                centre, spread = np.array([cube[0], cube[1], 0.05]), (0.04, 0.04, 0.05)
                pitch, roll = rng.uniform(0.7, 1.3), 0.0
            else:
                centre, spread = np.array([0.0, 0.5, 0.22]), (0.08, 0.06, 0.07)
                pitch = rng.uniform(-0.2, 1.1)
                roll = np.pi / 2 if side == "left" else 0.0
            place = centre + rng.normal(0.0, spread)
            place[2] = max(place[2], 0.015)
            with contextlib.suppress(WorldForgeError):
                return self._arms[side].solve(place, pitch, roll)
        return start

    def record(self, seed: int, kind: str) -> Episode:
        """The episode of ``seed``; deterministic."""
        rng = np.random.default_rng([seed, 12, KINDS.index(kind)])
        simulation = self.simulation
        simulation.reset(seed=seed)
        cube = simulation.cube[:3]
        if kind != "demo" and rng.random() < 0.3:
            turn = rng.uniform(-np.pi, np.pi)
            simulation.reset(cube=[*cube, np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)])
        make = {"demo": self.plan, "play": self.disturbed, "explore": self.wandering}[kind]
        # So that pictures are not always of the same moments of a plan.
        waiting = np.tile(START, (int(rng.integers(IMAGE_EVERY)), 1))
        setpoints = np.concatenate([waiting, make(cube, rng)])[: LONGEST - 20]
        staying = np.repeat(setpoints[-1:], int(rng.integers(10, 20)), axis=0)
        setpoints = np.clip(np.concatenate([setpoints, staying]), self._low, self._high)
        return self.follow(setpoints, seed, kind)

    def follow(self, setpoints: FloatArray, seed: int, kind: str) -> Episode:
        """Record what happens from now on under ``setpoints`` (T, 14)."""
        from worldforge_ros.scorers.encoders import resize_pixels

        def picture(step: int) -> ImageArray | None:
            if step % IMAGE_EVERY:
                return None
            small: ImageArray = resize_pixels(self.simulation.image()[None], IMAGE_SIZE)[0]
            return small

        return self._follow(setpoints, seed, kind, picture, IMAGE_EVERY)

    def branch(self, seed: int, sources: Sequence[Path]) -> Episode:
        """Something else from a moment of one of ``sources``; deterministic.

        A seed that ends in 9 takes a source whose seed does, and only such: they are held out
        together.
        """
        rng = np.random.default_rng([seed, 13])
        last = [path for path in sources if (path.stem[-1] == "9") == (seed % 10 == 9)]
        source = load_episode(last[int(rng.integers(len(last)))])
        other = load_episode(last[int(rng.integers(len(last)))])
        frame = int(rng.integers(len(source.images) - 1))
        step = frame * source.image_every
        plan = self.otherwise(source.action, other.action, step, rng)
        self.simulation.set_state(source.state[step])
        setpoints = plan[: BRANCH_STEPS + 1]
        images = [source.images[frame]]
        every = len(setpoints)
        return self._follow(
            setpoints, seed, "branch", lambda step: None if step else images[0], every
        )

    def otherwise(
        self, plan: npt.ArrayLike, other: npt.ArrayLike, step: int, rng: np.random.Generator
    ) -> FloatArray:
        """Set-points (100, 14) from ``step`` of a plan (T, 14) on, but changed: towards ``other``
        (T', 14), in pace, in what the grippers do, shaken, or stopped.
        """
        ahead = _from(plan, step)
        if rng.random() < 0.25:
            ahead = _over_into(ahead, _from(other, step), rng, earliest=0)
        if rng.random() < 0.4:
            ahead = _from(_at_another_pace(ahead, rng), 0)
        if rng.random() < 0.4:
            _mistime_grippers(ahead, rng)
        if rng.random() < 0.6:
            ahead[:, ARMS] += _wobble(len(ahead), len(ARMS), rng) * rng.choice([0.03, 0.08])
        if rng.random() < 0.05:
            ahead[:] = ahead[0]
        return np.clip(ahead, self._low, self._high)

    def _follow(
        self,
        setpoints: FloatArray,
        seed: int,
        kind: str,
        picture: Callable[[int], ImageArray | None],
        every: int,
    ) -> Episode:
        simulation = self.simulation
        rows: dict[str, list[npt.NDArray[np.generic]]] = {
            name: [] for name in ("images", "position", "velocity", "state", "coverage")
        }
        for step, setpoint in enumerate(setpoints):
            seen = picture(step)
            if seen is not None:
                rows["images"].append(seen)
            rows["position"].append(simulation.position)
            rows["velocity"].append(simulation.velocity)
            rows["state"].append(simulation.state)
            rows["coverage"].append(np.array(simulation.reward() / SUCCESS_REWARD))
            simulation.advance(setpoint, TICKS)
        images = np.asarray(rows.pop("images"), dtype=np.uint8)
        arrays = {name: np.asarray(values, dtype=np.float32) for name, values in rows.items()}
        action = setpoints.astype(np.float32)
        return Episode(
            images=images,
            action=action,
            label=action,
            seed=seed,
            kind=kind,
            image_every=every,
            **arrays,
        )


def _from(actions: npt.ArrayLike, step: int) -> FloatArray:
    """Set-points (100, 14) from ``step`` on, the last one held where they end."""
    values = np.asarray(actions, dtype=np.float64)
    found: FloatArray = values[np.minimum(np.arange(step, step + 100), len(values) - 1)]
    return found


def _over_into(
    first: FloatArray, second: FloatArray, rng: np.random.Generator, earliest: int = 20
) -> FloatArray:
    """The first plan up to a random step, then, within half a second, the second."""
    at = int(rng.integers(earliest, min(len(first), len(second)) - 30))
    share = np.clip((np.arange(len(second)) - at) / 25.0, 0.0, 1.0)[:, None]
    last = first[np.minimum(np.arange(len(second)), len(first) - 1)]
    mixed: FloatArray = last * (1.0 - share) + second * share
    return mixed


def _at_another_pace(plan: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The plan with a pause, or slower and faster, or with a part played backwards."""
    rates = np.repeat(rng.uniform(0.4, 1.25, 40), 20)
    if rng.random() < 0.5:
        at = int(rng.integers(0, 250))
        rates[at : at + int(rng.integers(15, 60))] = rng.choice([0.0, -0.6])
    places = np.maximum(np.cumsum(rates), 0.0)
    places = places[places < len(plan) - 1]
    axis = np.arange(len(plan))
    return np.stack([np.interp(places, axis, column) for column in plan.T], axis=1)


def _mistime_grippers(plan: FloatArray, rng: np.random.Generator) -> None:
    """Shift what a gripper does in time, or open or close it for a while."""
    gripper = int(rng.choice(GRIPPERS, p=[0.35, 0.65]))
    column = plan[:, gripper]
    if rng.random() < 0.5:
        shift = int(rng.integers(-40, 41))
        places = np.clip(np.arange(len(plan)) - shift, 0, len(plan) - 1)
        plan[:, gripper] = column[places]
        return
    first = int(rng.integers(0, len(plan) - 40))
    length = int(rng.integers(20, 150))
    plan[first : first + length, gripper] = rng.choice([OPEN, OPEN, CLOSED, 0.043])


def _wobble(steps: int, joints: int, rng: np.random.Generator) -> FloatArray:
    """Smooth noise (steps, joints), zero at the first step, of about unit size."""
    time = np.arange(steps)[:, None, None] * CONTROL_STEP
    period = rng.uniform(0.7, 4.0, (3, joints))
    phase = rng.uniform(0, 2 * np.pi, (3, joints))
    waves = np.sin(2 * np.pi * time / period + phase) * rng.normal(0, 0.6, (3, joints))
    noise: FloatArray = waves.sum(axis=1)
    noise *= np.minimum(1.0, np.arange(steps) / 30.0)[:, None]
    return noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the recorder."""
    parser.add_argument("--out", type=Path, default=task_of("aloha").data, help="folder")
    parser.add_argument("--kind", choices=KINDS, default="demo")
    parser.add_argument("--episodes", type=int, default=250, help="episodes that shall exist")
    parser.add_argument("--start-seed", type=int, default=FIRST_TRAINING_SEED)


def run(args: argparse.Namespace) -> int:
    """Record what is missing; returns the exit status."""
    seeds, missing = seeds_to_record(args.out, args.kind, args.start_seed, args.episodes)
    studio = Studio()
    sources = list_episodes(args.out, WHOLE_KINDS) if args.kind == "branch" else []
    solved = 0
    with track(args.kind, len(seeds), len(seeds) - len(missing)) as advance:
        for seed in missing:
            if args.kind == "branch":
                episode = studio.branch(seed, sources)
            else:
                episode = studio.record(seed, args.kind)
            save_episode(episode, episode_path(args.out, args.kind, seed))
            solved += bool(episode.coverage[-1] == 1.0)
            advance(f"seed {seed}: {len(episode)} steps, coverage {episode.coverage.max():.2f}")
    print(f"{len(missing)} recorded, {solved} solved, {len(seeds) - len(missing)} were there")
    return 0


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
