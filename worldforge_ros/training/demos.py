"""PushT demonstrations by a planner on the true simulator state, and cheap random play.

The demonstrator is a cross-entropy search over four way-points of the pusher's set-point, simulated
on a second world. It sees the true state; what is recorded is what a robot's camera and joints
would have shown.

``python -m worldforge_ros.training.demos --episodes 250 --out data/pusht/demos``
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.observation import Observation, seconds_to_ns
from worldforge_ros.policies.base import Policy
from worldforge_ros.recording.progress import track
from worldforge_ros.resources import resolve_path
from worldforge_ros.simulation.pusht import (
    CONTROL_STEP,
    PHYSICS_STEP,
    SUCCESS_COVERAGE,
    UNITS_PER_METRE,
    PushTSimulation,
)
from worldforge_ros.training.dataset import (
    FIRST_TRAINING_SEED,
    Episode,
    episode_path,
    save_episode,
    seeds_to_record,
)

FloatArray = npt.NDArray[np.float64]

KINDS = ("demo", "play", "explore", "policy")
"""What can be recorded here."""
FIRST_RECOVERY_SEED = 200_000
"""From here on a demonstration starts where random pushing left the block."""
TICKS = round(CONTROL_STEP / PHYSICS_STEP)
REACH = (0.025, 0.487)
"""Where set-points may lie, m: the pusher's radius inside the walls."""


@dataclass(frozen=True)
class PlannerSettings:
    """The search: ``horizon`` steps of 0.1 s in ``waypoints`` legs, lengths in m, speeds in m/s."""

    horizon: int = 16
    waypoints: int = 4
    samples: int = 128
    elites: int = 10
    iterations: int = 3
    spread: float = 0.07
    max_speed: float = 0.35
    running_weight: float = 0.2
    approach_weight: float = 0.08


class CrossEntropyPlanner:
    """Finds set-points that bring the block to the goal, on a private copy of the world."""

    def __init__(self, rng: np.random.Generator, settings: PlannerSettings | None = None) -> None:
        self.settings = settings or PlannerSettings()
        self._rng = rng
        self._clone = PushTSimulation(image_size=16)
        self._clone.set_state([100, 100, 0, 0, 0])
        self._corners = self._clone.keypoints()
        self._goal = self._keypoints(self._clone.goal_pose)
        self._mean: FloatArray | None = None

    def _keypoints(self, poses: FloatArray) -> FloatArray:
        """Block corners (..., 8, 2) in mm of poses (..., 3)."""
        angle = poses[..., 2]
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        points: FloatArray = self._corners @ np.swapaxes(rotation, -1, -2)
        return points + poses[..., None, :2]

    def _setpoints(self, start: FloatArray, waypoints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Reachable way-points (S, W, 2) and the set-points (S, H, 2) on straight legs through
        them.
        """
        settings = self.settings
        leg = settings.horizon // settings.waypoints
        longest = settings.max_speed * CONTROL_STEP * leg
        reachable = np.clip(waypoints, *REACH)
        previous = np.broadcast_to(start, reachable[:, 0].shape)
        legs = []
        fraction = np.arange(1, leg + 1)[:, None] / leg
        for index in range(settings.waypoints):
            delta = reachable[:, index] - previous
            length = np.linalg.norm(delta, axis=-1, keepdims=True)
            delta = delta * np.minimum(1.0, longest / np.maximum(length, 1e-9))
            reachable[:, index] = previous + delta
            legs.append(previous[:, None] + delta[:, None] * fraction)
            previous = reachable[:, index]
        return reachable, np.concatenate(legs, axis=1)

    def _costs(
        self, state: FloatArray, position: FloatArray, velocity: FloatArray, setpoints: FloatArray
    ) -> FloatArray:
        settings = self.settings
        pusher, speeds = pusher_motion(position, velocity, setpoints)
        poses = self._clone.rollout(state, speeds, every=2 * TICKS)
        corners = self._keypoints(poses)
        error = np.linalg.norm(corners - self._goal, axis=-1).mean(axis=-1)
        centre = corners.mean(axis=-2)
        gap = np.linalg.norm(pusher[:, 1::2] * UNITS_PER_METRE - centre, axis=-1)
        approach = np.maximum(gap - 60.0, 0.0).mean(axis=-1)
        cost: FloatArray = (
            error[:, -1]
            + settings.running_weight * error.mean(axis=-1)
            + settings.approach_weight * approach
        )
        return cost

    def _around(self, centre: FloatArray, start: FloatArray, count: int) -> FloatArray:
        """Random plans that walk round the block and then push into it: (count, W, 2)."""
        rng, points = self._rng, self.settings.waypoints
        offset = start - centre
        here = np.arctan2(offset[1], offset[0])
        turn = rng.uniform(-np.pi, np.pi, count)
        arrival = rng.integers(1, points, count)[:, None]
        share = np.minimum(1.0, np.arange(1, points + 1) / arrival)
        angle = here + turn[:, None] * share
        pushing = np.arange(points) >= arrival
        outer = rng.uniform(0.08, 0.14, (count, 1))
        inner = rng.uniform(-0.04, 0.09, (count, 1))
        radius = np.where(pushing, inner, outer)
        last = (here + turn)[:, None]
        aside = rng.normal(0, 0.04, (count, 1))[..., None] * np.stack(
            [-np.sin(last), np.cos(last)], -1
        )
        ray = np.stack([np.cos(angle), np.sin(angle)], -1)
        plans: FloatArray = centre + radius[..., None] * ray + aside
        return plans

    def plan(
        self, state: FloatArray, position: FloatArray, velocity: FloatArray, setpoint: FloatArray
    ) -> FloatArray:
        """Set-points (horizon, 2) in m, starting from the last ``setpoint`` (2,).

        :param state: (5,) true state; ``position`` and ``velocity`` (2,) of the pusher in m and
            m/s.
        """
        settings = self.settings
        count, points = settings.samples, settings.waypoints
        mean = self._mean
        if mean is None:
            mean = np.repeat(setpoint[None], points, axis=0)
        spread = np.full((points, 2), settings.spread)
        centre = self._keypoints(state[2:]).mean(axis=-2) / UNITS_PER_METRE
        best_cost, best_points = np.inf, mean
        for iteration in range(settings.iterations):
            noise = self._rng.normal(size=(count, points, 2))
            # Neighbouring way-points move together: bends, not zigzags.
            noise[:, 1:] = 0.5 * noise[:, :-1] + 0.8 * noise[:, 1:]
            samples = mean + spread * noise
            samples[0] = mean if iteration == 0 else best_points
            if iteration == 0:
                half = count // 2
                samples[half:] = self._around(centre, setpoint, count - half)
            samples, setpoints = self._setpoints(setpoint, samples)
            costs = self._costs(state, position, velocity, setpoints)
            order = np.argsort(costs, kind="stable")
            if costs[order[0]] < best_cost:
                best_cost, best_points = float(costs[order[0]]), samples[order[0]]
            elites = samples[order[: settings.elites]]
            if iteration == 0:
                # The best plans may lie on different sides of the block, where a mean makes no
                # sense: continue around the best one.
                mean = best_points
                spread = np.full((points, 2), settings.spread * 0.5)
            else:
                mean = elites.mean(axis=0)
                spread = elites.std(axis=0) + 0.003
        _, chosen = self._setpoints(setpoint, best_points[None].copy())
        self._chosen = best_points
        setpoints_of_best: FloatArray = chosen[0]
        return setpoints_of_best

    def advance(self, steps: int) -> None:
        """Warm start: the next search begins at the last plan, ``steps`` steps on."""
        settings = self.settings
        leg = settings.horizon / settings.waypoints
        times = np.arange(1, settings.waypoints + 1) * leg + steps
        grid = np.arange(1, settings.waypoints + 1) * leg
        self._mean = np.stack(
            [np.interp(times, grid, self._chosen[:, axis]) for axis in range(2)], -1
        )


def pusher_motion(
    position: FloatArray, velocity: FloatArray, setpoints: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The PushT pusher's motion towards set-points (S, H, 2), each held for one control step.

    gym-pusht's law: acceleration = 100 (set-point - x) - 20 v, semi-implicit Euler at 10 ms.

    :returns: positions (S, H, 2) in m after each step, velocities (S, H * 10, 2) in m/s in each
        physics step.
    """
    samples, horizon = setpoints.shape[:2]
    x = np.repeat(position[None], samples, axis=0)
    v = np.repeat(velocity[None], samples, axis=0)
    positions = np.empty((samples, horizon, 2))
    speeds = np.empty((samples, horizon * TICKS, 2))
    for index in range(horizon):
        for tick in range(TICKS):
            v = v + (100.0 * (setpoints[:, index] - x) - 20.0 * v) * PHYSICS_STEP
            x = x + v * PHYSICS_STEP
            speeds[:, index * TICKS + tick] = v
        positions[:, index] = x
    return positions, speeds


class _Recorder:
    """Collects the arrays of an episode while it steps the simulation."""

    def __init__(self, simulation: PushTSimulation) -> None:
        self._simulation = simulation
        self._rows: dict[str, list[npt.NDArray[np.generic] | float]] = {
            name: []
            for name in ("images", "position", "velocity", "action", "label", "state", "coverage")
        }

    def step(self, action: FloatArray, label: FloatArray) -> float:
        """Record, then execute ``action``; returns the coverage after it."""
        simulation, rows = self._simulation, self._rows
        rows["images"].append(simulation.image())
        rows["position"].append(simulation.position)
        rows["velocity"].append(simulation.velocity)
        rows["action"].append(action)
        rows["label"].append(label)
        rows["state"].append(simulation.state)
        rows["coverage"].append(simulation.coverage())
        simulation.advance(action, TICKS)
        return simulation.coverage()

    def episode(self, seed: int, kind: str) -> Episode:
        rows = self._rows
        images = np.asarray(rows["images"], dtype=np.uint8)
        rest = {
            name: np.asarray(values, dtype=np.float32)
            for name, values in rows.items()
            if name != "images"
        }
        return Episode(images=images, seed=seed, kind=kind, image_every=1, **rest)


def demonstrate(
    seed: int,
    *,
    settings: PlannerSettings | None = None,
    max_steps: int = 300,
    replan_every: int = 4,
    hold_steps: int = 8,
    disturbance: float = 0.2,
    start: FloatArray | None = None,
) -> Episode:
    """One demonstration from gym-pusht's start for ``seed``; deterministic.

    With probability ``disturbance`` the set-points between two plans are bent away by up to 30 mm,
    so that recoveries are seen; ``label`` keeps what the planner wanted.
    """
    rng = np.random.default_rng([seed, 1])
    simulation = PushTSimulation()
    simulation.reset(seed=seed)
    if start is not None:
        simulation.set_state(start)
    planner = CrossEntropyPlanner(rng, settings)
    recorder = _Recorder(simulation)
    setpoint: FloatArray = np.clip(simulation.position, *REACH)
    solved_at: int | None = None
    step = 0
    while step < max_steps and solved_at is None:
        plan = planner.plan(simulation.state, simulation.position, simulation.velocity, setpoint)
        bend: FloatArray = np.zeros((replan_every, 2))
        if step > 0 and rng.random() < disturbance:
            shape = np.sin(np.pi * np.arange(1, replan_every + 1) / (replan_every + 1))[:, None]
            bend = shape * rng.uniform(-0.03, 0.03, 2)
        for index in range(replan_every):
            action = np.clip(plan[index] + bend[index], *REACH)
            coverage = recorder.step(action, plan[index])
            setpoint = plan[index]
            step += 1
            if coverage > SUCCESS_COVERAGE:
                solved_at = step
                break
        planner.advance(replan_every)
    if solved_at is not None:
        hold = np.clip(simulation.position, *REACH)
        for _ in range(hold_steps):
            recorder.step(hold, hold)
    simulation.close()
    return recorder.episode(seed, "demo")


def _start_near_goal(simulation: PushTSimulation, rng: np.random.Generator) -> None:
    goal = simulation.goal_pose + rng.normal(0, 1, 3) * (25.0, 25.0, 0.35)
    angle = rng.uniform(0, 2 * np.pi)
    agent = goal[:2] + 160.0 * np.array([np.cos(angle), np.sin(angle)])
    simulation.reset(state=[*agent, *goal])


def play(seed: int, *, steps: int = 100) -> Episode:
    """Random pushing near the block; deterministic. A third of the episodes start near the goal."""
    rng = np.random.default_rng([seed, 2])
    simulation = PushTSimulation()
    simulation.reset(seed=seed)
    if rng.random() < 1 / 3:
        _start_near_goal(simulation, rng)
    recorder = _Recorder(simulation)
    setpoint: FloatArray = np.clip(simulation.position, *REACH)
    step = 0
    while step < steps:
        centre = simulation.keypoints().mean(axis=0) / UNITS_PER_METRE
        angle = rng.uniform(0, 2 * np.pi)
        target = centre + rng.uniform(0, 0.14) * np.array([np.cos(angle), np.sin(angle)])
        target = np.clip(target, *REACH)
        stride = rng.uniform(0.01, 0.045)
        legs = max(1, int(np.ceil(np.linalg.norm(target - setpoint) / stride)))
        start = setpoint
        for index in range(1, legs + 1):
            setpoint = start + (target - start) * index / legs
            recorder.step(setpoint, setpoint)
            step += 1
            if step == steps:
                break
    simulation.close()
    return recorder.episode(seed, "play")


def explore(seed: int, *, steps: int = 100) -> Episode:
    """Noisy motion through the block; deterministic. Half the episodes start near the goal.

    A search over a world model tries action sequences that no demonstrator would: each block of
    five steps has a random heading, drawn towards the block half of the time, plus fresh noise on
    every step, with the sizes that a search draws.
    """
    rng = np.random.default_rng([seed, 5])
    simulation = PushTSimulation()
    simulation.reset(seed=seed)
    if rng.random() < 1 / 2:
        _start_near_goal(simulation, rng)
    recorder = _Recorder(simulation)
    heading: FloatArray = np.zeros(2)
    noise = 0.0
    for step in range(steps):
        if step % 5 == 0:
            heading = rng.normal(0, 0.025, 2)
            if rng.random() < 1 / 2:
                centre = simulation.keypoints().mean(axis=0) / UNITS_PER_METRE
                gap = centre - simulation.position
                heading = gap / max(float(np.linalg.norm(gap)), 1e-6) * rng.uniform(0.01, 0.06)
            noise = rng.uniform(0, 0.03)
        action = np.clip(simulation.position + heading + rng.normal(0, noise, 2), *REACH)
        recorder.step(action, action)
    simulation.close()
    return recorder.episode(seed, "explore")


def recover(seed: int, *, max_steps: int = 300) -> Episode:
    """A demonstration from where random pushing left the block, often at a wall; deterministic."""
    start = play(seed).state[-1].astype(np.float64)
    start[:2] = np.clip(start[:2], REACH[0] * UNITS_PER_METRE, REACH[1] * UNITS_PER_METRE)
    return demonstrate(seed, max_steps=max_steps, start=start)


@lru_cache(maxsize=1)
def _policy(path: str) -> Policy:
    from worldforge_ros.policies.lerobot import load_lerobot_policy

    return load_lerobot_policy(resolve_path(path), load_embodiment("pusht"))


def follow_policy(seed: int, policy: Policy, *, steps: int = 150, replan_every: int = 6) -> Episode:
    """What a policy does from gym-pusht's start for ``seed``, one random candidate after another.

    A world model that ranks a policy's candidates should have seen where they lead. Goes on after
    success, so that it also sees what spoils it; half the episodes start near the goal.
    """
    rng = np.random.default_rng([seed, 4])
    simulation = PushTSimulation()
    simulation.reset(seed=seed)
    if rng.random() < 1 / 2:
        _start_near_goal(simulation, rng)
    recorder = _Recorder(simulation)
    period = seconds_to_ns(CONTROL_STEP)
    history: list[Observation] = []
    plan = np.tile(np.clip(simulation.position, *REACH), (replan_every, 1))
    for step in range(steps):
        images = {"top": simulation.image()}
        stamp = (step + 1) * period
        history.append(Observation(stamp, images, simulation.position, simulation.velocity))
        history = history[-policy.history :]
        if step % replan_every == 0 and len(history) == policy.history:
            proposal = policy.propose(history, 1, seed=int(rng.integers(2**31)))
            plan = np.clip(proposal.candidates[0].astype(np.float64), *REACH)
        action = plan[step % replan_every]
        recorder.step(action, action)
    simulation.close()
    return recorder.episode(seed, "policy")


def _make(
    seed: int, *, kind: str, folder: Path, max_steps: int, policy: str
) -> tuple[int, int, float]:
    path = episode_path(folder, kind, seed)
    if kind == "play":
        episode = play(seed)
    elif kind == "explore":
        episode = explore(seed)
    elif kind == "policy":
        episode = follow_policy(seed, _policy(policy))
    elif seed >= FIRST_RECOVERY_SEED:
        episode = recover(seed, max_steps=max_steps)
    else:
        episode = demonstrate(seed, max_steps=max_steps)
    save_episode(episode, path)
    return seed, len(episode), float(episode.coverage.max())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the demonstration recorder."""
    parser.add_argument("--out", type=Path, default=Path("data/pusht/demos"), help="folder")
    parser.add_argument("--kind", choices=KINDS, default="demo")
    parser.add_argument(
        "--policy",
        default="package://worldforge_ros/models/pusht/policy",
        help="checkpoint that --kind policy follows",
    )
    parser.add_argument("--episodes", type=int, default=250, help="episodes that shall exist")
    parser.add_argument("--start-seed", type=int, default=FIRST_TRAINING_SEED)
    parser.add_argument("--max-steps", type=int, default=300, help="of 0.1 s, in a demonstration")
    parser.add_argument("--jobs", type=int, default=1, help="processes")


def run(args: argparse.Namespace) -> int:
    """Record what is missing; returns the exit status."""
    seeds, missing = seeds_to_record(args.out, args.kind, args.start_seed, args.episodes)
    solved = 0
    make = partial(
        _make, kind=args.kind, folder=args.out, max_steps=args.max_steps, policy=args.policy
    )
    with track(args.kind, len(seeds), len(seeds) - len(missing)) as advance:
        for seed, steps, best in _map(make, missing, args.jobs):
            solved += best > SUCCESS_COVERAGE
            advance(f"seed {seed}: {steps} steps, coverage {best:.3f}")
    print(f"{len(missing)} recorded, {solved} solved, {len(seeds) - len(missing)} were there")
    return 0


def _map(
    make: partial[tuple[int, int, float]], seeds: list[int], jobs: int
) -> Iterator[tuple[int, int, float]]:
    if jobs <= 1:
        yield from map(make, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(make, seeds)


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
