"""A closed loop in lockstep: the world waits for every decision.

Any simulated robot will do that is a :class:`Task`; observation window, planner and safety gate are
those of the nodes. One control step is one action of the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.planners import Decision, Models, Planner
from worldforge_ros.observation import (
    ImageArray,
    Observation,
    ObservationHistory,
    seconds_to_ns,
)
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.gate import GateMode, SafetyGate

FloatArray = npt.NDArray[np.float64]


class Task(Protocol):
    """A world in the middle of an episode; joints in contract order, in SI units."""

    @property
    def position(self) -> FloatArray:
        """Measured joint positions (J,)."""

    @property
    def velocity(self) -> FloatArray:
        """Measured joint velocities (J,)."""

    def images(self) -> Mapping[str, ImageArray]:
        """Pictures by camera name."""

    def advance(self, setpoint: FloatArray) -> None:
        """Let one control step pass with ``setpoint`` (J,)."""

    def succeeded(self) -> bool:
        """Whether the task is done."""


@dataclass(frozen=True)
class Command:
    """The set-point (J,) of one control step and the chunk it is from, 0 while the gate holds."""

    position: FloatArray
    sequence: int


@dataclass
class Run:
    """What happened in one closed loop; ``stopped`` is why the gate ended it, if it did.

    ``unreachable`` counts the steps at which there was no candidate that the robot could get onto.
    """

    commands: list[Command] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    success: bool = False
    stopped: str = ""
    unreachable: int = 0
    rejected_chunks: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def steps(self) -> int:
        """Control steps that passed."""
        return len(self.commands)


def run_loop(
    task: Task,
    planner: Planner | None,
    models: Models,
    steps: int,
    execute_steps: int = 1,
    latency_steps: int = 0,
) -> Run:
    """Run ``task`` until it succeeds, the gate stops or ``steps`` are over.

    :param planner: None stands still.
    :param execute_steps: steps between two plans.
    :param latency_steps: steps from an observation until the chunk planned from it is there.
    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` when the gate does not arm, ``INVALID_ARGUMENT``
        when more steps are to be executed than a candidate has, and what the models raise.
    """
    if planner is not None and execute_steps > planner.horizon:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"steps that {planner.name} executes of a plan",
            found=execute_steps,
            expected=f"at most the {planner.horizon} actions of a candidate",
        )
    robot = models.embodiment
    period = seconds_to_ns(robot.policy.step)
    gate = SafetyGate(robot)
    window = window_duration(models)
    history = ObservationHistory(window)
    lookback = round(window / robot.policy.step)
    executed: list[FloatArray] = []
    executing: ActionChunk | None = None
    pending: tuple[int, ActionChunk] | None = None
    due = 0
    run = Run()
    while run.steps < steps and not run.success:
        step = run.steps
        stamp, now = (step + 1) * period, step * robot.policy.step
        position, velocity = task.position, task.velocity
        gate.update_joint_state(robot.joint_names, position.tolist(), velocity.tolist(), stamp, now)
        if step == 0:
            armed = gate.enable(True, stamp, now)
            if not armed.success:
                raise WorldForgeError(
                    ErrorCode.EPISODE_INCOMPLETE, f"the gate did not arm: {armed.message}"
                )
        if planner is not None:
            # A picture may cost more than the physics: none is drawn that no window looks at.
            if step >= (due if pending is None else pending[0]) - lookback:
                history.add(Observation(stamp, task.images(), position, velocity))
            if gate.mode is not GateMode.ARMED:
                executing = None
                planner.seam.forget()
            if step >= due and pending is None:
                decision = _decide(planner, history, executed, executing, gate.epoch, run)
                if decision is not None:
                    run.decisions.append(decision)
                    pending = (step + latency_steps, decision.chunk)
            if pending is not None and pending[0] <= step:
                chunk = pending[1]
                pending = None
                verdict = gate.submit(chunk, stamp, now)
                run.rejected.update(str(reason.code) for reason in verdict.reasons)
                if verdict.approved:
                    executing = chunk
                    planner.seam.approved(chunk.sequence)
                    due = step + execute_steps - latency_steps
                else:
                    planner.seam.forget()
        command = gate.tick(stamp, now)
        if command is None or gate.mode is GateMode.STOPPED:
            run.stopped = gate.reason or "no set-point"
            break
        executed.append(command.position)
        run.commands.append(Command(command.position, command.sequence))
        task.advance(command.position)
        run.success = task.succeeded()
    run.rejected_chunks = gate.counters.rejected
    return run


def _decide(
    planner: Planner,
    history: ObservationHistory,
    executed: Sequence[FloatArray],
    executing: ActionChunk | None,
    epoch: int,
    run: Run,
) -> Decision | None:
    """A decision; None while observations are still being gathered, or when none can be taken."""
    try:
        decision = planner.decide(history, executed, executing)
    except WorldForgeError as error:
        if error.code is ErrorCode.NO_REACHABLE_CANDIDATE:
            run.unreachable += 1
        elif error.code is not ErrorCode.HISTORY_TOO_SHORT:
            raise
        return None
    return replace(decision, chunk=replace(decision.chunk, epoch=epoch))


def window_duration(models: Models) -> float:
    """Seconds that the models of a planner look back, and one step."""
    spec = models.embodiment
    policy = models.policy.history * spec.policy.step if models.policy else 0.0
    scorer = models.scorer.history * spec.scoring.block_duration if models.scorer else 0.0
    return max(policy, scorer, spec.policy.step) + spec.policy.step
