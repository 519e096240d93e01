"""Closed-loop PushT episodes in lockstep: the simulator waits for every decision.

No ROS, but the same observation window, policy, world model, search, choice and safety gate as on
the robot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.planners import (
    NEED_POLICY,
    NEED_WORLD_MODEL,
    TICKS,
    Choosing,
    Decision,
    Models,
    Planner,
)
from worldforge_ros.evaluation.protocols import PROTOCOLS, Protocol, pose_errors
from worldforge_ros.observation import Observation, ObservationHistory, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.search import SearchSettings
from worldforge_ros.policies.base import Policy
from worldforge_ros.resources import resolve_path
from worldforge_ros.safety.gate import GateMode, SafetyGate
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.simulation.pusht import PushTSimulation

FloatArray = npt.NDArray[np.float64]

SEARCH = SearchSettings()
"""The search of ``cem``: LeWorldModel's own."""
REFINE = SearchSettings(samples=64, iterations=2, elites=8, blocks=3, spread=0.5)
"""The search of ``cem+policy``; its blocks are those of the policy's candidates."""


@dataclass(frozen=True)
class Settings:
    """What decides the result of an episode; steps are control steps of 0.1 s.

    Zero stands for the protocol's own ``steps`` and ``execute_steps`` (of ``cem``:
    ``search_execute_steps``), an empty ``objective`` for the protocol's or the checkpoint's. A
    chunk takes effect ``latency_steps`` after the observation that it was planned from.
    """

    protocol: str = "task"
    policy: str = "package://worldforge_ros/models/pusht/policy"
    world_model: str = "package://worldforge_ros/models/pusht/world_model"
    embodiment: str = "pusht"
    candidates: int = 32
    horizon: int = 0
    execute_steps: int = 0
    search_execute_steps: int = 0
    latency_steps: int = 0
    steps: int = 0
    objective: str = ""
    spearman: bool = False
    search: SearchSettings = SEARCH
    refine: SearchSettings = REFINE
    device: str = "cpu"
    threads: int = 1
    num_inference_steps: int | None = None

    @property
    def rules(self) -> Protocol:
        """The protocol with these settings in the place of its own."""
        own = PROTOCOLS[self.protocol]
        return replace(
            own,
            steps=self.steps or own.steps,
            execute_steps=self.execute_steps or own.execute_steps,
            search_execute_steps=self.search_execute_steps or own.search_execute_steps,
            objective=self.objective or own.objective,
        )


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    ``measure`` is the maximum coverage, or with protocol ``lewm`` 1 for success and 0 without;
    errors are those of the last state. ``stopped`` is why the gate ended the episode, if it did.
    ``spearman`` is the mean over decisions of the rank correlation of costs with the true outcome,
    or NaN.
    """

    planner: str
    seed: int
    measure: float
    initial_coverage: float
    max_coverage: float
    final_coverage: float
    position_error_mm: float
    angle_error: float
    success: bool
    steps: int
    decisions: int
    ms_per_decision: float
    spearman: float
    rejected_chunks: int
    rejected: Mapping[str, int]
    stopped: str = ""


@dataclass(frozen=True)
class Compared:
    """Costs (S,) of one decision's candidates and what truly became of them, (S,) m."""

    costs: npt.NDArray[np.float32]
    outcomes: FloatArray


def run_episode(
    planner: str,
    seed: int,
    settings: Settings,
    models: Models,
    simulation: PushTSimulation,
    compared: list[Compared] | None = None,
) -> EpisodeResult:
    """One episode, ended by success, by a stop of the gate, or after its steps; deterministic.

    :param compared: takes the costs and outcomes of every decision of ``scored``.
    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` when the gate does not arm, ``INVALID_ARGUMENT``
        when more steps are to be executed than a candidate has, and what the models raise.
    """
    robot, rules = models.embodiment, settings.rules
    goal = rules.start(simulation, seed)
    period = seconds_to_ns(robot.policy.step)
    brain: Planner | None = None
    if planner != "still":
        brain = Planner(planner, _choosing(settings), models, goal, seed)
    pause = rules.search_execute_steps if planner == "cem" else rules.execute_steps
    if brain is not None and pause > brain.horizon:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"steps that {planner} executes of a plan",
            found=pause,
            expected=f"at most the {brain.horizon} actions of a candidate",
        )
    gate = SafetyGate(robot)
    history = ObservationHistory(_window_duration(models))
    executed: list[FloatArray] = []
    initial = best = coverage = simulation.coverage()
    success = False
    rejected: Counter[str] = Counter()
    seconds, agreement = [], []
    executing: ActionChunk | None = None
    pending: list[tuple[int, ActionChunk]] = []
    due = 0
    step = 0
    stopped = ""
    while step < rules.steps and not success:
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
                    seconds.append(decision.seconds)
                    agreement.append(decision.spearman)
                    pending.append((step + settings.latency_steps, decision.chunk))
                    if compared is not None and decision.outcomes is not None:
                        assert decision.costs is not None
                        compared.append(Compared(decision.costs, decision.outcomes))
            if pending and pending[0][0] <= step:
                _, chunk = pending.pop()
                verdict = gate.submit(chunk, stamp, now)
                rejected.update(str(reason.code) for reason in verdict.reasons)
                if verdict.approved:
                    executing = chunk
                    due = step + pause - settings.latency_steps
        command = gate.tick(stamp, now)
        if command is None or gate.mode is GateMode.STOPPED:
            stopped = gate.reason or "no set-point"
            break
        executed.append(command.position)
        simulation.advance(command.position, TICKS)
        coverage = simulation.coverage()
        best = max(best, coverage)
        success = rules.success(simulation, goal)
        step += 1
    known = [value for value in agreement if not math.isnan(value)]
    position_error, angle_error = pose_errors(simulation.state, goal.state)
    return EpisodeResult(
        planner=planner,
        seed=seed,
        measure=best if rules.measure == "max_coverage" else float(success),
        initial_coverage=initial,
        max_coverage=best,
        final_coverage=coverage,
        position_error_mm=position_error,
        angle_error=angle_error,
        success=success,
        steps=step,
        decisions=len(seconds),
        ms_per_decision=1000.0 * float(np.mean(seconds)) if seconds else 0.0,
        spearman=float(np.mean(known)) if known else math.nan,
        rejected_chunks=gate.counters.rejected,
        rejected=dict(rejected),
        stopped=stopped,
    )


def load_models(settings: Settings, planners: Sequence[str]) -> Models:
    """Load the embodiment and the checkpoints that ``planners`` need.

    :raises WorldForgeError: what the loaders raise.
    """
    embodiment = load_embodiment(settings.embodiment)
    policy: Policy | None = None
    scorer: Scorer | None = None
    if NEED_POLICY.intersection(planners):
        from worldforge_ros.policies.lerobot import load_lerobot_policy

        policy = load_lerobot_policy(
            resolve_path(settings.policy),
            embodiment,
            settings.device,
            settings.threads,
            settings.num_inference_steps,
        )
    if NEED_WORLD_MODEL.intersection(planners):
        from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm

        scorer = load_lewm(
            resolve_path(settings.world_model),
            embodiment,
            LeWMOptions(device=settings.device, threads=settings.threads),
        )
    return Models(embodiment, policy, scorer)


def _choosing(settings: Settings) -> Choosing:
    return Choosing(
        candidates=settings.candidates,
        horizon=settings.horizon,
        latency_steps=settings.latency_steps,
        objective=settings.rules.objective,
        spearman=settings.spearman,
        search=settings.search,
        refine=settings.refine,
    )


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
