"""Closed-loop PushT episodes in lockstep: the simulator waits for every decision.

No ROS, but the same observation window, policy, world model, choice and safety gate as on the
robot. The simulator is also what two reference planners need: ``oracle`` tries every candidate on a
copy of the world and takes the best, ``still`` never moves.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.statistics import bootstrap_mean, spearman
from worldforge_ros.observation import (
    ImageArray,
    Observation,
    ObservationHistory,
    seconds_to_ns,
)
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.handover import hand_over
from worldforge_ros.planning.selection import choose
from worldforge_ros.policies.base import Policy
from worldforge_ros.resources import resolve_path
from worldforge_ros.safety.gate import GateMode, SafetyGate
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.simulation.pusht import (
    CONTROL_STEP,
    PHYSICS_STEP,
    SUCCESS_COVERAGE,
    PushTSimulation,
)

FloatArray = npt.NDArray[np.float64]

PLANNERS = ("still", "first", "random", "scored", "oracle")
"""``still`` never moves, ``first`` takes the policy's first candidate, ``random`` any of them,
``scored`` the cheapest for the world model, ``oracle`` the one that ends best on the true
simulator."""

PAIRS = (("scored", "first"), ("scored", "random"))
TICKS = round(CONTROL_STEP / PHYSICS_STEP)


@dataclass(frozen=True)
class Settings:
    """What an evaluation runs; steps are control steps of 0.1 s.

    ``horizon`` 0 stands for as many whole blocks of the world model as the policy predicts. A chunk
    takes effect ``latency_steps`` after the observation that it was planned from.
    """

    policy: str = "package://worldforge_ros/models/pusht/policy"
    world_model: str = "package://worldforge_ros/models/pusht/world_model"
    embodiment: str = "pusht"
    planners: tuple[str, ...] = PLANNERS
    seeds: tuple[int, ...] = tuple(range(20))
    candidates: int = 32
    horizon: int = 0
    execute_steps: int = 5
    latency_steps: int = 0
    steps: int = 300
    objective: str = ""
    spearman: bool = False
    device: str = "cpu"
    threads: int = 1
    num_inference_steps: int | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """One episode. ``spearman`` is the mean rank correlation of costs with the true outcome, or
    NaN.
    """

    planner: str
    seed: int
    initial_coverage: float
    max_coverage: float
    final_coverage: float
    success: bool
    steps: int
    decisions: int
    ms_per_decision: float
    spearman: float
    rejected_chunks: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Models:
    """What the planners of an evaluation need; None where none of them needs it."""

    embodiment: Embodiment
    policy: Policy | None = None
    scorer: Scorer | None = None


class TrueOutcome:
    """Tries set-points on a copy of the world: what a perfect world model would say."""

    def __init__(self) -> None:
        self._copy = PushTSimulation()
        self._copy.set_state([128.0, 384.0, *self._copy.goal_pose])
        self._goal = self._copy.keypoints()

    def costs(
        self, simulation: PushTSimulation, candidates: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """Mean distance (S,) in m of the block's corners from the goal after each candidate (S, H,
        2).
        """
        state, velocity = simulation.state, simulation.velocity
        costs = []
        for setpoints in np.asarray(candidates, dtype=np.float64):
            self._copy.set_state(state, velocity)
            for setpoint in setpoints:
                self._copy.advance(setpoint, TICKS)
            gap = np.linalg.norm(self._copy.keypoints() - self._goal, axis=-1).mean()
            costs.append(float(gap) / 1000.0)
        return np.array(costs)


@dataclass(frozen=True)
class Decision:
    """What one planning step decided."""

    chunk: ActionChunk
    seconds: float
    spearman: float = math.nan


class Planner:
    """Policy, world model and choice for one episode, the planner node's core without ROS."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        embodiment: Embodiment,
        policy: Policy,
        scorer: Scorer | None,
        goal: ImageArray,
        seed: int,
    ) -> None:
        self._name = name
        self._settings = settings
        self._embodiment = embodiment
        self._policy = policy
        self._scorer = scorer
        self._goal = goal
        self._seed = seed
        self._rng = np.random.default_rng([seed, PLANNERS.index(name)])
        compares = name == "oracle" or (name == "scored" and settings.spearman)
        self._outcome = TrueOutcome() if compares else None
        self._sequence = 0
        spec = embodiment.world_model
        block = scorer.block if scorer else spec.block
        self.horizon = settings.horizon or policy.max_horizon // block * block
        if self.horizon < block or self.horizon % block or self.horizon > policy.max_horizon:
            raise mismatch(
                ErrorCode.HORIZON_NOT_WHOLE_BLOCKS,
                f"horizon with policy {policy.model_id}",
                found=self.horizon or policy.max_horizon,
                expected=f"whole blocks of {block} actions, {policy.max_horizon} actions at most",
            )

    def decide(
        self,
        history: ObservationHistory,
        executed: Sequence[FloatArray],
        simulation: PushTSimulation,
        executing: ActionChunk | None,
    ) -> Decision:
        """Propose, score, choose.

        :param executed: set-points (J,) of every control step so far, for world models that look
            back.
        :param executing: what the gate executes, None while it holds.
        :raises WorldForgeError: ``HISTORY_TOO_SHORT`` until the windows are there,
            ``NO_REACHABLE_CANDIDATE`` when the robot cannot get onto any candidate.
        """
        robot, settings = self._embodiment, self._settings
        tolerance = robot.observation.tolerance
        window = history.window(self._policy.history, robot.policy.step, tolerance)
        frames: list[Observation] = []
        if self._scorer is not None:
            period = robot.world_model.block_duration
            frames = history.window(self._scorer.history, period, tolerance)
        began = time.perf_counter()
        count = 1 if self._name == "first" else settings.candidates
        proposal = self._policy.propose(
            window, count, self.horizon, seed=self._seed * 100_000 + self._sequence
        )
        arrival = window[-1].stamp + settings.latency_steps * seconds_to_ns(robot.policy.step)
        handover = hand_over(
            proposal.candidates, proposal.step, window[-1], executing, arrival, robot
        )
        candidates = handover.candidates
        costs: npt.NDArray[Any] | None = None
        if self._scorer is not None:
            past = (self._scorer.history - 1) * self._scorer.block
            recent = np.asarray(executed[len(executed) - past :]) if past else None
            costs = self._scorer.score(
                frames, self._goal, candidates, recent, settings.objective
            ).costs
        elif self._name == "oracle":
            assert self._outcome is not None
            costs = self._outcome.costs(simulation, candidates)
        rule = "scored" if self._name == "oracle" else self._name
        choice = choose(rule, costs, count, self._rng, handover.reachable)
        seconds = time.perf_counter() - began
        agreement = math.nan
        if self._scorer is not None and self._outcome is not None and costs is not None:
            agreement = spearman(costs, self._outcome.costs(simulation, candidates))
        self._sequence += 1
        newest = window[-1]
        chunk = ActionChunk(
            stamp=handover.stamp,
            embodiment=robot.name,
            joint_names=proposal.joint_names,
            step=proposal.step,
            actions=candidates[choice.index].astype(np.float64),
            source="policy",
            epoch=1,
            sequence=self._sequence,
            observation_stamp=newest.stamp,
            cost=choice.cost,
            model_id=self._policy.model_id,
        )
        return Decision(chunk, seconds, agreement)


def run_episode(
    planner: str, seed: int, settings: Settings, models: Models, simulation: PushTSimulation
) -> EpisodeResult:
    """One episode, ended by success or after ``settings.steps`` control steps; deterministic.

    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` when the gate stopped the robot for a fault, and
        what policy and world model raise.
    """
    robot = models.embodiment
    simulation.reset(seed=seed)
    period = seconds_to_ns(robot.policy.step)
    brain = _planner(planner, seed, settings, models, simulation.goal_image())
    gate = SafetyGate(robot)
    history = ObservationHistory(_window_duration(models))
    executed: list[FloatArray] = []
    initial = best = coverage = simulation.coverage()
    rejected: Counter[str] = Counter()
    seconds, agreement = [], []
    executing: ActionChunk | None = None
    pending: list[tuple[int, ActionChunk]] = []
    due = 0
    step = 0
    while step < settings.steps and best <= SUCCESS_COVERAGE:
        stamp, now = (step + 1) * period, step * robot.policy.step
        position, velocity = simulation.position, simulation.velocity
        gate.update_joint_state(robot.joint_names, position.tolist(), velocity.tolist(), stamp, now)
        if step == 0:
            armed = gate.enable(True, stamp, now)
            _require(armed.success, f"the gate did not arm: {armed.message}")
        if brain is not None:
            images = {robot.world_model.camera: simulation.image()}
            history.add(Observation(stamp, images, position, velocity))
            if gate.mode is not GateMode.ARMED:
                executing = None
            if step >= due and not pending:
                decision = _decide(brain, history, executed, simulation, executing, gate.epoch)
                if decision is not None:
                    due = step + settings.execute_steps
                    seconds.append(decision.seconds)
                    agreement.append(decision.spearman)
                    pending.append((step + settings.latency_steps, decision.chunk))
            if pending and pending[0][0] <= step:
                _, chunk = pending.pop()
                verdict = gate.submit(chunk, stamp, now)
                rejected.update(str(reason.code) for reason in verdict.reasons)
                executing = chunk if verdict.approved else executing
        command = gate.tick(stamp, now)
        if command is None or gate.mode is GateMode.STOPPED:
            raise WorldForgeError(
                ErrorCode.EPISODE_INCOMPLETE,
                f"the gate stopped episode {seed} of planner {planner} at step {step}: "
                f"{gate.reason}",
            )
        executed.append(command.position)
        simulation.advance(command.position, TICKS)
        coverage = simulation.coverage()
        best = max(best, coverage)
        step += 1
    known = [value for value in agreement if not math.isnan(value)]
    return EpisodeResult(
        planner=planner,
        seed=seed,
        initial_coverage=initial,
        max_coverage=best,
        final_coverage=coverage,
        success=best > SUCCESS_COVERAGE,
        steps=step,
        decisions=len(seconds),
        ms_per_decision=1000.0 * float(np.mean(seconds)) if seconds else 0.0,
        spearman=float(np.mean(known)) if known else math.nan,
        rejected_chunks=gate.counters.rejected,
        rejected=dict(rejected),
    )


def load_models(settings: Settings) -> Models:
    """Load the embodiment and the checkpoints that ``settings.planners`` need.

    :raises WorldForgeError: what the loaders raise.
    """
    embodiment = load_embodiment(settings.embodiment)
    policy: Policy | None = None
    scorer: Scorer | None = None
    if set(settings.planners) != {"still"}:
        from worldforge_ros.policies.lerobot import load_lerobot_policy

        policy = load_lerobot_policy(
            resolve_path(settings.policy),
            embodiment,
            settings.device,
            settings.threads,
            settings.num_inference_steps,
        )
    if "scored" in settings.planners:
        from worldforge_ros.scorers.lewm import load_lewm

        scorer = load_lewm(
            resolve_path(settings.world_model), embodiment, settings.device, settings.threads
        )
    return Models(embodiment, policy, scorer)


def _planner(
    name: str, seed: int, settings: Settings, models: Models, goal: ImageArray
) -> Planner | None:
    if name == "still":
        return None
    assert models.policy is not None
    scorer = models.scorer if name == "scored" else None
    return Planner(name, settings, models.embodiment, models.policy, scorer, goal, seed)


def _decide(
    brain: Planner,
    history: ObservationHistory,
    executed: Sequence[FloatArray],
    simulation: PushTSimulation,
    executing: ActionChunk | None,
    epoch: int,
) -> Decision | None:
    """A decision; None while observations are still being gathered, or when none can be taken."""
    try:
        decision = brain.decide(history, executed, simulation, executing)
    except WorldForgeError as error:
        if error.code in (ErrorCode.HISTORY_TOO_SHORT, ErrorCode.NO_REACHABLE_CANDIDATE):
            return None
        raise
    return replace(decision, chunk=replace(decision.chunk, epoch=epoch))


def _window_duration(models: Models) -> float:
    spec = models.embodiment
    policy = models.policy.history * spec.policy.step if models.policy else 0.0
    scorer = models.scorer.history * spec.world_model.block_duration if models.scorer else 0.0
    return max(policy, scorer, spec.policy.step) + spec.policy.step


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorldForgeError(ErrorCode.EPISODE_INCOMPLETE, message)


def summarise(results: Iterable[EpisodeResult], settings: Settings) -> dict[str, Any]:
    """The figures of an evaluation: see ``worldforge evaluate`` in the documentation.

    ``mean`` is that of the episodes' maximum coverage; intervals are 95 % bootstrap over episodes.
    Paired differences are over the seeds that both planners ran.
    """
    table: dict[str, dict[int, EpisodeResult]] = {name: {} for name in settings.planners}
    for result in results:
        table[result.planner][result.seed] = result
    planners = {}
    for name, episodes in table.items():
        interval = bootstrap_mean([e.max_coverage for e in episodes.values()])
        timed = [e.ms_per_decision for e in episodes.values() if e.decisions]
        planners[name] = {
            "mean": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "success": float(np.mean([e.success for e in episodes.values()])),
            "ms_per_decision": float(np.mean(timed)) if timed else 0.0,
            "rejected_chunks": sum(e.rejected_chunks for e in episodes.values()),
        }
    paired = {}
    for first, second in PAIRS:
        if first in table and second in table:
            seeds = sorted(table[first].keys() & table[second].keys())
            gains = [table[first][s].max_coverage - table[second][s].max_coverage for s in seeds]
            interval = bootstrap_mean(gains)
            paired[f"{first}-{second}"] = {
                "mean": interval.mean,
                "ci_low": interval.low,
                "ci_high": interval.high,
            }
    agreement = [e.spearman for e in table.get("scored", {}).values() if not math.isnan(e.spearman)]
    rows = [asdict(e) for episodes in table.values() for e in episodes.values()]
    for row in rows:
        row["spearman"] = None if math.isnan(row["spearman"]) else row["spearman"]
    return {
        "planners": planners,
        "paired": paired,
        "spearman": float(np.mean(agreement)) if agreement else None,
        "episodes": len(settings.seeds),
        "seeds": list(settings.seeds),
        "settings": asdict(settings),
        "results": sorted(rows, key=lambda row: (row["planner"], row["seed"])),
    }


@lru_cache(maxsize=1)
def _loaded(settings: Settings) -> tuple[Models, PushTSimulation]:
    """Models and world of this process."""
    return load_models(settings), PushTSimulation()


def _task(planner: str, seed: int, settings: Settings) -> EpisodeResult:
    models, simulation = _loaded(settings)
    return run_episode(planner, seed, settings, models, simulation)


def evaluate(settings: Settings, jobs: int = 1, progress: bool = True) -> dict[str, Any]:
    """Run every planner on every seed in ``jobs`` processes; returns :func:`summarise`'s
    figures.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    tasks = [(planner, seed, settings) for seed in settings.seeds for planner in settings.planners]
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    results: list[EpisodeResult] = []
    with Progress("episodes", *columns, console=console, disable=not progress) as bar:
        running = bar.add_task("episodes", total=len(tasks))
        for result in _results(tasks, jobs):
            results.append(result)
            bar.advance(running)
    return summarise(results, settings)


def _results(tasks: Sequence[tuple[str, int, Settings]], jobs: int) -> Iterator[EpisodeResult]:
    if jobs == 1:
        for task in tasks:
            yield _task(*task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        futures = [pool.submit(_task, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def print_table(figures: Mapping[str, Any]) -> None:
    """Print the figures for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"PushT, {figures['episodes']} episodes in lockstep")
    for heading in ("planner", "max coverage", "95 % interval", "success", "ms / decision"):
        table.add_column(heading, justify="left" if heading == "planner" else "right")
    for name, row in figures["planners"].items():
        table.add_row(
            name,
            f"{row['mean']:.3f}",
            f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
            f"{100 * row['success']:.0f} %",
            f"{row['ms_per_decision']:.0f}",
        )
    console = Console()
    console.print(table)
    for name, row in figures["paired"].items():
        console.print(
            f"{name}: {row['mean']:+.3f}, 95 % interval "
            f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
        )
    if figures["spearman"] is not None:
        console.print(f"rank correlation of cost and true outcome: {figures['spearman']:.2f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge evaluate pusht``."""
    default = Settings()
    parser.add_argument("--policy", default=default.policy, help="LeRobot folder")
    parser.add_argument("--world-model", default=default.world_model, help="LeWorldModel folder")
    parser.add_argument("--embodiment", default=default.embodiment, help="name or YAML file")
    parser.add_argument(
        "--planners", nargs="+", choices=PLANNERS, default=list(PLANNERS), help="what to compare"
    )
    parser.add_argument("--episodes", type=int, default=20, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds are consecutive from here")
    parser.add_argument("--candidates", type=int, default=default.candidates)
    parser.add_argument(
        "--horizon", type=int, default=default.horizon, help="actions of a candidate; 0: the most"
    )
    parser.add_argument(
        "--execute-steps", type=int, default=default.execute_steps, help="steps between two plans"
    )
    parser.add_argument(
        "--latency-steps",
        type=int,
        default=default.latency_steps,
        help="steps until a decision takes effect, as a live system has; 0: at once",
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="longest episode")
    parser.add_argument("--objective", default=default.objective, help="of the world model")
    parser.add_argument(
        "--num-inference-steps", type=int, default=None, help="denoising steps of the policy"
    )
    parser.add_argument(
        "--spearman",
        action="store_true",
        help="also correlate costs with the true outcome of every candidate (slow)",
    )
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--threads", type=int, default=default.threads, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the JSON file; 0 on success."""
    if args.latency_steps < 0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--latency-steps",
            found=args.latency_steps,
            expected="0 or more",
        )
    for name in ("episodes", "candidates", "execute_steps", "steps", "jobs"):
        if getattr(args, name) < 1:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"--{name.replace('_', '-')}",
                found=getattr(args, name),
                expected="1 or more",
            )
    settings = Settings(
        policy=args.policy,
        world_model=args.world_model,
        embodiment=args.embodiment,
        planners=tuple(dict.fromkeys(args.planners)),
        seeds=tuple(range(args.first_seed, args.first_seed + args.episodes)),
        candidates=args.candidates,
        horizon=args.horizon,
        execute_steps=args.execute_steps,
        latency_steps=args.latency_steps,
        steps=args.steps,
        objective=args.objective,
        spearman=args.spearman,
        device=args.device,
        threads=args.threads,
        num_inference_steps=args.num_inference_steps,
    )
    figures = evaluate(settings, args.jobs, progress=not args.no_progress)
    print_table(figures)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def main() -> int:
    """Entry point of ``python -m worldforge_ros.evaluation.lockstep``."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except WorldForgeError as error:
        print(f"worldforge: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
