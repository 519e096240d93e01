"""What the gate checks: one small function and one reason code each.

A check looks at one thing and returns a :class:`Reason` or None. The tables at the end of the file
are the whole of what is checked; a further check is one more function in one of them. All checks of
a table run, so that a rejected chunk lists everything that it violates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import NANOSECONDS, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.limits import ROUNDING, FloatArray, JointLimits


class ReasonCode(StrEnum):
    """Every reason to refuse a chunk, to refuse arming, to hold or to stop; see docs/safety.md."""

    NOT_ARMED = "NOT_ARMED"
    STOPPED = "STOPPED"

    MALFORMED = "MALFORMED"
    SHAPE_MISMATCH = "SHAPE_MISMATCH"
    HORIZON_INVALID = "HORIZON_INVALID"
    NOT_FINITE = "NOT_FINITE"
    JOINT_NAMES_MISMATCH = "JOINT_NAMES_MISMATCH"
    STEP_INVALID = "STEP_INVALID"

    EMBODIMENT_MISMATCH = "EMBODIMENT_MISMATCH"
    SOURCE_NOT_ALLOWED = "SOURCE_NOT_ALLOWED"
    EPOCH_MISMATCH = "EPOCH_MISMATCH"
    SEQUENCE_NOT_INCREASING = "SEQUENCE_NOT_INCREASING"

    CHUNK_STAMP_UNSET = "CHUNK_STAMP_UNSET"
    CHUNK_IN_FUTURE = "CHUNK_IN_FUTURE"
    CHUNK_TOO_OLD = "CHUNK_TOO_OLD"
    CHUNK_OVER = "CHUNK_OVER"
    OBSERVATION_STAMP_UNSET = "OBSERVATION_STAMP_UNSET"
    OBSERVATION_IN_FUTURE = "OBSERVATION_IN_FUTURE"
    OBSERVATION_TOO_OLD = "OBSERVATION_TOO_OLD"

    POSITION_LIMIT = "POSITION_LIMIT"
    VELOCITY_LIMIT = "VELOCITY_LIMIT"
    SEAM_COMMANDED = "SEAM_COMMANDED"
    SEAM_MEASURED = "SEAM_MEASURED"
    SUSTAINED_VELOCITY = "SUSTAINED_VELOCITY"

    LIMITS_INCOMPLETE = "LIMITS_INCOMPLETE"
    CLOCK_NOT_RUNNING = "CLOCK_NOT_RUNNING"
    MULTIPLE_PUBLISHERS = "MULTIPLE_PUBLISHERS"
    MOVING = "MOVING"

    JOINT_STATE_MISSING = "JOINT_STATE_MISSING"
    JOINT_STATE_STALE = "JOINT_STATE_STALE"
    JOINT_STATE_INVALID = "JOINT_STATE_INVALID"
    MEASURED_POSITION_LIMIT = "MEASURED_POSITION_LIMIT"
    TRACKING_ERROR = "TRACKING_ERROR"
    HOLD_TIMEOUT = "HOLD_TIMEOUT"
    CLOCK_JUMPED_BACK = "CLOCK_JUMPED_BACK"
    PROTECTIVE_STOP = "PROTECTIVE_STOP"
    STOP_REQUESTED = "STOP_REQUESTED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


@dataclass(frozen=True)
class Reason:
    """A code for programs and one sentence for people."""

    code: ReasonCode
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class Verdict:
    """What became of a chunk; ``reasons`` are all that it violates, none when approved."""

    approved: bool
    sequence: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class GateConfig:
    """Times in seconds, speeds in m/s or rad/s, distances in m or rad.

    - ``max_chunk_age``: now minus the chunk's stamp, at most, when it arrives. Independently of it
      a chunk must end in the future.
    - ``max_observation_age``: now minus the stamp of the observation behind the chunk, at most.
    - ``future_tolerance``: how far stamps may lie ahead of now, and ROS time may step back.
    - ``joint_state_timeout``: silence of the joint states that stops an armed gate.
    - ``arm_max_speed``: measured speed of every joint at arming, at most.
    - ``max_horizon``, ``max_step``: actions of a chunk and seconds between two of them, at most.
      The step decides how far a single set-point may jump: max_velocity * step.
    - ``stop_after_hold``: a hold that lasts this long becomes a stop; 0 means never.
    - ``max_tracking_error``: distance between set-point and measured position that stops; None off.
    - ``measured_tolerance``: how far past a limit a joint may be measured before it is a fault.
    - ``allowed_sources``: accepted values of a chunk's source; empty accepts any.
    """

    max_chunk_age: float = 0.5
    max_observation_age: float = 1.0
    future_tolerance: float = 0.2
    joint_state_timeout: float = 0.25
    arm_max_speed: float = 0.05
    max_horizon: int = 512
    max_step: float = 0.25
    stop_after_hold: float = 0.0
    max_tracking_error: float | None = None
    measured_tolerance: float = 0.01
    allowed_sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a configuration that would switch a check off by accident.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the field.
        """
        may_be_zero = {"stop_after_hold", "future_tolerance", "measured_tolerance", "arm_max_speed"}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, tuple):
                continue
            if (
                not math.isfinite(value)
                or value < 0
                or (value == 0 and field.name not in may_be_zero)
            ):
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"gate configuration {field.name}",
                    found=value,
                    expected="a finite number above 0",
                )


@dataclass(frozen=True)
class Situation:
    """What a chunk is judged against, apart from motion; times in nanoseconds of ROS time."""

    embodiment: Embodiment
    config: GateConfig
    refusing: Reason | None
    epoch: int
    last_sequence: int | None
    now: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """A well-formed chunk: ``positions`` (H, J) float64, m or rad, columns in contract order.

    Row k is held from ``start + k * step`` to ``start + (k + 1) * step`` (ns of ROS time).
    ``offset`` actions of the chunk as it was sent come before the first row and are left out.
    """

    start: int
    step: int
    positions: FloatArray
    sequence: int
    observation_stamp: int
    offset: int = 0

    @property
    def end(self) -> int:
        """When the last action is over."""
        return self.start + self.step * len(self.positions)

    def index_at(self, time: int) -> int:
        """The row held at ``time``: at least 0, and H or more once the chunk is over."""
        return max(0, (time - self.start) // self.step)

    def remaining(self, time: int) -> Schedule:
        """What is left at ``time``, including the action held then."""
        past = self.index_at(time)
        return replace(
            self,
            start=self.start + past * self.step,
            positions=self.positions[past:],
            offset=self.offset + past,
        )


@dataclass(frozen=True, eq=False)
class Motion:
    """The part of a chunk that will still be executed, and what the robot does before it.

    The first action of ``schedule`` becomes the set-point at ``time``. ``commanded`` is the
    set-point until then, ``low`` and ``high`` the envelope (see
    :class:`~worldforge_ros.safety.limits.Envelope`) at ``time``; ``measured`` is given while no
    chunk is executing. Each of these is None where it is not known.
    """

    limits: JointLimits
    schedule: Schedule
    time: int
    commanded: FloatArray | None
    low: FloatArray | None
    high: FloatArray | None
    measured: FloatArray | None

    @property
    def positions(self) -> FloatArray:
        """Remaining actions (R, J)."""
        return self.schedule.positions

    @property
    def first(self) -> int:
        """Index in the chunk of the first remaining action."""
        return self.schedule.offset

    @property
    def step(self) -> float:
        """Seconds between two actions."""
        return self.schedule.step / NANOSECONDS


def matrix_of(chunk: ActionChunk) -> FloatArray | None:
    """The actions as a (H, J) float64 matrix, or None when they are not one."""
    try:
        matrix = np.asarray(chunk.actions, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return matrix if matrix.ndim == 2 else None


def schedule_of(chunk: ActionChunk, situation: Situation) -> Schedule:
    """The schedule of a chunk that passed :data:`STRUCTURE_CHECKS`: columns ordered by name."""
    matrix = matrix_of(chunk)
    assert matrix is not None
    columns = [chunk.joint_names.index(name) for name in situation.embodiment.joint_names]
    positions = matrix[:, columns]
    positions.setflags(write=False)
    return Schedule(
        start=chunk.stamp,
        step=seconds_to_ns(chunk.step),
        positions=positions,
        sequence=chunk.sequence,
        observation_stamp=chunk.observation_stamp,
    )


def _reason(code: ReasonCode, field: str, *, found: object, expected: object) -> Reason:
    return Reason(code, f"{field} is {found}; expected {expected}")


def _state(chunk: ActionChunk, situation: Situation) -> Reason | None:
    return situation.refusing


def _embodiment(chunk: ActionChunk, situation: Situation) -> Reason | None:
    expected = situation.embodiment.name
    if chunk.embodiment == expected:
        return None
    return _reason(
        ReasonCode.EMBODIMENT_MISMATCH,
        "embodiment",
        found=f"'{chunk.embodiment}'",
        expected=f"'{expected}'",
    )


def _source(chunk: ActionChunk, situation: Situation) -> Reason | None:
    allowed = situation.config.allowed_sources
    if not allowed or chunk.source in allowed:
        return None
    return _reason(
        ReasonCode.SOURCE_NOT_ALLOWED,
        "source",
        found=f"'{chunk.source}'",
        expected=f"one of {', '.join(allowed)}",
    )


def _epoch(chunk: ActionChunk, situation: Situation) -> Reason | None:
    if chunk.epoch == situation.epoch:
        return None
    return _reason(ReasonCode.EPOCH_MISMATCH, "epoch", found=chunk.epoch, expected=situation.epoch)


def _sequence(chunk: ActionChunk, situation: Situation) -> Reason | None:
    last = situation.last_sequence
    if last is None or chunk.sequence > last:
        return None
    return _reason(
        ReasonCode.SEQUENCE_NOT_INCREASING,
        "sequence",
        found=chunk.sequence,
        expected=f"above {last}, the last approved one",
    )


def _shape(chunk: ActionChunk, situation: Situation) -> Reason | None:
    matrix = matrix_of(chunk)
    joints = len(situation.embodiment.joints)
    if matrix is not None and matrix.shape[1] == joints:
        return None
    return _reason(
        ReasonCode.SHAPE_MISMATCH,
        "shape of actions",
        found=tuple(np.shape(chunk.actions)) if matrix is not None else "not (horizon, joints)",
        expected=f"(horizon, {joints}) numbers",
    )


def _horizon(chunk: ActionChunk, situation: Situation) -> Reason | None:
    matrix = matrix_of(chunk)
    if matrix is None or 1 <= len(matrix) <= situation.config.max_horizon:
        return None
    return _reason(
        ReasonCode.HORIZON_INVALID,
        "horizon",
        found=f"{len(matrix)} actions",
        expected=f"1 to {situation.config.max_horizon}",
    )


def _finite(chunk: ActionChunk, situation: Situation) -> Reason | None:
    matrix = matrix_of(chunk)
    if matrix is None:
        return None
    bad = ~np.isfinite(matrix)
    if not bad.any():
        return None
    row, column = (int(i) for i in np.argwhere(bad)[0])
    return _reason(
        ReasonCode.NOT_FINITE,
        f"actions[{row}, {column}]",
        found=matrix[row, column],
        expected="a finite number",
    )


def _joint_names(chunk: ActionChunk, situation: Situation) -> Reason | None:
    expected = situation.embodiment.joint_names
    if len(chunk.joint_names) == len(expected) and set(chunk.joint_names) == set(expected):
        return None
    return _reason(
        ReasonCode.JOINT_NAMES_MISMATCH,
        "joint_names",
        found=list(chunk.joint_names)[: 2 * len(expected) + 2],
        expected=f"each of {list(expected)} once",
    )


def _step(chunk: ActionChunk, situation: Situation) -> Reason | None:
    most = situation.config.max_step
    if math.isfinite(chunk.step) and 0 < seconds_to_ns(chunk.step) <= seconds_to_ns(most):
        return None
    return _reason(
        ReasonCode.STEP_INVALID,
        "step",
        found=f"{chunk.step} s",
        expected=f"above 0 and at most {most:g} s",
    )


def _stamp_set(chunk: ActionChunk, situation: Situation) -> Reason | None:
    if chunk.stamp > 0:
        return None
    return _reason(
        ReasonCode.CHUNK_STAMP_UNSET,
        "stamp",
        found=f"{chunk.stamp} ns",
        expected="when the first action is due",
    )


def _observation_stamp_set(chunk: ActionChunk, situation: Situation) -> Reason | None:
    if chunk.observation_stamp > 0:
        return None
    return _reason(
        ReasonCode.OBSERVATION_STAMP_UNSET,
        "observation_stamp",
        found=f"{chunk.observation_stamp} ns",
        expected="the capture time of the observation",
    )


def _not_in_future(chunk: ActionChunk, situation: Situation) -> Reason | None:
    return _ahead(ReasonCode.CHUNK_IN_FUTURE, "stamp", chunk.stamp, situation)


def _observation_not_in_future(chunk: ActionChunk, situation: Situation) -> Reason | None:
    return _ahead(
        ReasonCode.OBSERVATION_IN_FUTURE, "observation_stamp", chunk.observation_stamp, situation
    )


def _ahead(code: ReasonCode, field: str, stamp: int, situation: Situation) -> Reason | None:
    tolerance = situation.config.future_tolerance
    ahead = stamp - situation.now
    if ahead <= seconds_to_ns(tolerance):
        return None
    return _reason(
        code,
        field,
        found=f"{ahead / NANOSECONDS:.3f} s in the future",
        expected=f"at most {tolerance:g} s",
    )


def _chunk_age(chunk: ActionChunk, situation: Situation) -> Reason | None:
    if chunk.stamp <= 0:
        return None
    limit = situation.config.max_chunk_age
    return _older(ReasonCode.CHUNK_TOO_OLD, "stamp", chunk.stamp, limit, situation)


def _observation_age(chunk: ActionChunk, situation: Situation) -> Reason | None:
    stamp = chunk.observation_stamp
    if stamp <= 0:
        return None
    limit = situation.config.max_observation_age
    return _older(ReasonCode.OBSERVATION_TOO_OLD, "observation_stamp", stamp, limit, situation)


def _older(
    code: ReasonCode, field: str, stamp: int, limit: float, situation: Situation
) -> Reason | None:
    age = situation.now - stamp
    if age <= seconds_to_ns(limit):
        return None
    return _reason(
        code, field, found=f"{age / NANOSECONDS:.3f} s old", expected=f"at most {limit:g} s"
    )


def over(schedule: Schedule, now: int) -> Reason | None:
    """``CHUNK_OVER`` when nothing of ``schedule`` is left at ``now`` ns."""
    if schedule.end > now:
        return None
    return _reason(
        ReasonCode.CHUNK_OVER,
        "end of the chunk",
        found=f"{(now - schedule.end) / NANOSECONDS:.3f} s past",
        expected="in the future",
    )


def _position_limits(motion: Motion) -> Reason | None:
    positions, limits = motion.positions, motion.limits
    outside = limits.outside(positions)
    if not outside.any():
        return None
    row, joint = (int(i) for i in np.argwhere(outside)[0])
    return _reason(
        ReasonCode.POSITION_LIMIT,
        f"set-point of {limits.names[joint]} at action {motion.first + row}",
        found=f"{positions[row, joint]:g} {limits.units[joint]}",
        expected=limits.describe(joint),
    )


def _velocity_limits(motion: Motion) -> Reason | None:
    return _too_fast(
        ReasonCode.VELOCITY_LIMIT,
        "speed of {joint} from action {before} to {action}",
        motion,
        np.diff(motion.positions, axis=0),
        motion.first + 1,
    )


def _seam_commanded(motion: Motion) -> Reason | None:
    if motion.commanded is None:
        return None
    return _too_fast(
        ReasonCode.SEAM_COMMANDED,
        "speed of {joint} from the present set-point to action {action}",
        motion,
        (motion.positions[0] - motion.commanded)[np.newaxis],
        motion.first,
    )


def _seam_measured(motion: Motion) -> Reason | None:
    if motion.measured is None:
        return None
    return _too_fast(
        ReasonCode.SEAM_MEASURED,
        "speed of {joint} from the measured position to action {action}",
        motion,
        (motion.positions[0] - motion.measured)[np.newaxis],
        motion.first,
    )


def _too_fast(
    code: ReasonCode, field: str, motion: Motion, moves: FloatArray, first: int
) -> Reason | None:
    limits = motion.limits
    bad = np.abs(moves) > limits.max_velocity * motion.step + ROUNDING
    if not bad.any():
        return None
    row, joint = (int(i) for i in np.argwhere(bad)[0])
    action = first + row
    unit = limits.units[joint]
    name = field.format(joint=limits.names[joint], before=action - 1, action=action)
    return _reason(
        code,
        name,
        found=f"{abs(moves[row, joint]) / motion.step:g} {unit}/s",
        expected=f"at most {limits.max_velocity[joint]:g} {unit}/s",
    )


SUSTAINED_STEPS = 2
"""Steps at full speed that set-points may be ahead of the velocity limit, see
``_sustained_velocity``.

A chunk that replaces another between two of its actions is entitled to two full steps at once: one
at the seam and one at its next action.
"""


def _sustained_velocity(motion: Motion) -> Reason | None:
    # Each chunk may begin with a step of max_velocity * step. Without this check a planner that
    # sends a hundred chunks a second could move the set-point by a hundred such steps a second.
    if motion.low is None or motion.high is None:
        return None
    positions, limits = motion.positions, motion.limits
    rows = len(positions)
    wait = (motion.schedule.start - motion.time) / NANOSECONDS
    elapsed = np.maximum(wait + np.arange(rows) * motion.step, 0.0)
    travel = limits.max_velocity * (elapsed[:, np.newaxis] + SUSTAINED_STEPS * motion.step)
    ahead = positions > motion.high + travel + ROUNDING
    behind = positions < motion.low - travel - ROUNDING
    bad = ahead | behind
    if not bad.any():
        return None
    row, joint = (int(i) for i in np.argwhere(bad)[0])
    unit = limits.units[joint]
    edge = motion.high + travel if ahead[row, joint] else motion.low - travel
    return _reason(
        ReasonCode.SUSTAINED_VELOCITY,
        f"set-point of {limits.names[joint]} at action {motion.first + row}",
        found=f"{positions[row, joint]:g} {unit}",
        expected=f"not beyond {edge[row, joint]:g} {unit}, as far as "
        f"{limits.max_velocity[joint]:g} {unit}/s reaches over the last chunks together",
    )


Check = Callable[[ActionChunk, Situation], Reason | None]
MotionCheck = Callable[[Motion], Reason | None]

STRUCTURE_CHECKS: tuple[Check, ...] = (_shape, _horizon, _joint_names, _step)
"""A chunk that passes these has a :class:`Schedule`, which the motion checks need."""

CHUNK_CHECKS: tuple[Check, ...] = (
    _state,
    _finite,
    _embodiment,
    _source,
    _epoch,
    _sequence,
    _stamp_set,
    _not_in_future,
    _chunk_age,
    _observation_stamp_set,
    _observation_not_in_future,
    _observation_age,
)
"""State, content, identity and time; these need no :class:`Schedule`."""

MOTION_CHECKS: tuple[MotionCheck, ...] = (
    _position_limits,
    _velocity_limits,
    _seam_commanded,
    _seam_measured,
    _sustained_velocity,
)
"""Kinematics of what is left to execute; NaN violates none of these, ``_finite`` lists it."""


def measured_outside(limits: JointLimits, position: FloatArray, slack: float) -> Reason | None:
    """``MEASURED_POSITION_LIMIT`` when a joint is measured outside its limits by over ``slack``."""
    outside: npt.NDArray[np.bool_] = limits.outside(position, slack)
    if not outside.any():
        return None
    joint = int(np.argmax(outside))
    return _reason(
        ReasonCode.MEASURED_POSITION_LIMIT,
        f"measured position of {limits.names[joint]}",
        found=f"{position[joint]:g} {limits.units[joint]}",
        expected=limits.describe(joint),
    )


def moving(limits: JointLimits, velocity: FloatArray, most: float) -> Reason | None:
    """``MOVING`` when a joint is measured faster than ``most`` m/s or rad/s."""
    joint = int(np.argmax(np.abs(velocity)))
    if abs(velocity[joint]) <= most:
        return None
    return _reason(
        ReasonCode.MOVING,
        f"measured speed of {limits.names[joint]}",
        found=f"{velocity[joint]:g} {limits.units[joint]}/s",
        expected=f"at most {most:g} {limits.units[joint]}/s",
    )
