"""What the gate checks: one small function and one reason code each.

A check looks at one thing and returns a :class:`Reason` or None. The tables at the end of the file
are the whole of what is checked; a further check is one more function in one of them. All checks of
a table run, so that a rejected chunk lists everything that it violates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.observation import NANOSECONDS, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.differences import Brake, Differences, arrival_velocity
from worldforge_ros.safety.limits import ROUNDING, FloatArray, JointLimits
from worldforge_ros.safety.reasons import Reason, ReasonCode
from worldforge_ros.safety.reasons import reason as _reason


@dataclass(frozen=True)
class Verdict:
    """What became of a chunk; ``reasons`` are all that it violates, none when approved as it was.

    ``clamped`` is what is executed instead of a chunk that had to be mended, (H, J) float64 with
    the columns of that chunk.
    """

    approved: bool
    sequence: int
    reasons: tuple[Reason, ...]
    clamped: FloatArray | None = None

    @property
    def word(self) -> str:
        """``APPROVED``, ``CLAMPED`` or ``REJECTED``."""
        if not self.approved:
            return "REJECTED"
        return "APPROVED" if self.clamped is None else "CLAMPED"


@dataclass(frozen=True)
class Situation:
    """What a chunk is judged against, apart from motion; times in nanoseconds of ROS time."""

    embodiment: Embodiment
    config: GateConfig
    refusing: Reason | None
    epoch: int
    last_sequence: int | None
    now: int
    publishers: int = 1
    recent_chunks: int = 0


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
    set-point until then, which was due at ``due`` ns, ``before`` (3, J) the path of the set-points
    at the last three multiples of the step before ``schedule.start``, ``low`` and ``high`` the
    envelope at ``time`` (see
    :class:`~worldforge_ros.safety.course.Course`). ``measured`` (3, J) is the measured motion
    likewise, given while no set-point moves. Each of these is None where it is not known.

    Where the robot rests, to within ``measured_moves``, what it sags or its sensors waver is no
    motion: then acceleration and jerk are those of the set-points alone.
    """

    limits: JointLimits
    config: GateConfig
    schedule: Schedule
    time: int
    commanded: FloatArray | None
    before: FloatArray | None
    low: FloatArray | None
    high: FloatArray | None
    measured: FloatArray | None
    measured_moves: bool = True
    due: int | None = None

    @cached_property
    def differences(self) -> tuple[Differences, ...]:
        """Of the remaining actions, after the set-points before them and after measured motion."""
        measured = self.measured if self.measured_moves else None
        starts = [start for start in (self.before, measured) if start is not None]
        return tuple(Differences.of(start, self.positions, self.step) for start in starts)

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


def columns_of(chunk: ActionChunk, names: Sequence[str]) -> list[int]:
    """Where the joints ``names`` stand in the actions of ``chunk``, which has them all."""
    return [chunk.joint_names.index(name) for name in names]


def schedule_of(
    chunk: ActionChunk, limits: JointLimits, reference: FloatArray | None = None
) -> Schedule:
    """The schedule of a chunk that passed :data:`STRUCTURE_CHECKS`: columns ordered by name,
    continuous joints on the turn nearest to ``reference`` (J,) and to the action before.
    """
    matrix = matrix_of(chunk)
    assert matrix is not None
    positions = limits.unwrapped(matrix[:, columns_of(chunk, limits.names)], reference)
    positions.setflags(write=False)
    return Schedule(
        start=chunk.stamp,
        step=seconds_to_ns(chunk.step),
        positions=positions,
        sequence=chunk.sequence,
        observation_stamp=chunk.observation_stamp,
    )


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


def _model(chunk: ActionChunk, situation: Situation) -> Reason | None:
    expected = situation.config.model_id
    if not expected or chunk.model_id == expected:
        return None
    return _reason(
        ReasonCode.MODEL_MISMATCH,
        "model_id",
        found=f"'{chunk.model_id}'",
        expected=f"'{expected}'",
    )


def _publishers(chunk: ActionChunk, situation: Situation) -> Reason | None:
    return publishers(situation.publishers) if situation.publishers > 1 else None


def _rate(chunk: ActionChunk, situation: Situation) -> Reason | None:
    most = situation.config.max_chunk_rate
    if most is None or situation.recent_chunks <= most:
        return None
    return _reason(
        ReasonCode.CHUNK_RATE,
        "chunks within a second",
        found=situation.recent_chunks,
        expected=f"at most {most:g}",
    )


def _cost(chunk: ActionChunk, situation: Situation) -> Reason | None:
    most = situation.config.max_cost
    if most is None or chunk.cost <= most:
        return None
    return _reason(
        ReasonCode.COST_TOO_HIGH, "cost", found=f"{chunk.cost:g}", expected=f"at most {most:g}"
    )


def _margin(chunk: ActionChunk, situation: Situation) -> Reason | None:
    least = situation.config.min_margin
    if least is None or chunk.margin >= least:
        return None
    return _reason(
        ReasonCode.MARGIN_TOO_SMALL,
        "margin",
        found=f"{chunk.margin:g}",
        expected=f"at least {least:g}",
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


def _continuous_range(chunk: ActionChunk, situation: Situation) -> Reason | None:
    matrix = matrix_of(chunk)
    if matrix is None:
        return None
    for joint in situation.embodiment.joints:
        if joint.type != "continuous" or joint.name not in chunk.joint_names:
            continue
        column = chunk.joint_names.index(joint.name)
        values = np.abs(matrix[:, column : column + 1])
        if np.any(values > CONTINUOUS_RANGE):
            return _reason(
                ReasonCode.POSITION_LIMIT,
                f"set-point of {joint.name}",
                found=f"{values.max():g} rad",
                expected=f"{-CONTINUOUS_RANGE:g} to {CONTINUOUS_RANGE:g} rad, which float32 "
                "resolves",
            )
    return None


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
    least, most = situation.config.min_step, situation.config.max_step
    if math.isfinite(chunk.step):
        step = seconds_to_ns(chunk.step)
        if seconds_to_ns(least) <= step <= seconds_to_ns(most):
            return None
    return _reason(
        ReasonCode.STEP_INVALID,
        "step",
        found=f"{chunk.step} s",
        expected=f"{least:g} to {most:g} s",
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
    if motion.commanded is None or motion.before is None:
        return None
    # Between two actions of what executes, the present set-point is less than a step old: a whole
    # step from it may be more than a step from the path.
    return _too_fast(
        ReasonCode.SEAM_COMMANDED,
        "speed of {joint} from the path of the set-points to action {action}",
        motion,
        (motion.positions[0] - motion.before[-1])[np.newaxis],
        motion.first,
    ) or _too_fast(
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
        (motion.positions[0] - motion.measured[-1])[np.newaxis],
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


def _position_margin(motion: Motion) -> Reason | None:
    margin = motion.config.position_margin
    limits = motion.limits
    if margin <= 0.0:
        return None
    # A robot that is in the margin already may stay as deep in it, and leave it.
    lower, upper = limits.inner(margin, motion.commanded)
    beyond = (motion.positions > upper + ROUNDING) | (motion.positions < lower - ROUNDING)
    if not beyond.any():
        return None
    row, joint = (int(i) for i in np.argwhere(beyond)[0])
    return _reason(
        ReasonCode.POSITION_MARGIN,
        f"set-point of {limits.names[joint]} at action {motion.first + row}",
        found=f"{motion.positions[row, joint]:g} {limits.units[joint]}",
        expected=f"at least {margin:g} inside {limits.describe(joint)}",
    )


def _acceleration_limits(motion: Motion) -> Reason | None:
    for difference in motion.differences:
        bad = difference.too_hard(motion.limits)
        if bad.any():
            return _beyond_rate(
                ReasonCode.ACCELERATION_LIMIT,
                motion,
                bad,
                difference.bends / motion.step**2,
                motion.limits.max_acceleration,
                ("acceleration", "s^2"),
            )
    return _kink(motion)


def _kink(motion: Motion) -> Reason | None:
    # Chunks that alternate between two motions, each smooth on its own, would shake the robot from
    # one to the other and back: a chunk may differ from the set-point that it replaces by what one
    # step of acceleration explains.
    if motion.commanded is None or motion.due is None:
        return None
    limits, rows = motion.limits, motion.positions
    allowed = limits.max_acceleration * motion.step**2
    gap = (motion.schedule.start - motion.due) / NANOSECONDS
    place = rows[0]
    if gap > 0.0:
        allowed = allowed + limits.max_velocity * gap
    elif len(rows) > 1:
        row = min(int(-gap // motion.step), len(rows) - 2)
        share = min(-gap / motion.step - row, 1.0)
        place = (1.0 - share) * rows[row] + share * rows[row + 1]
    apart = np.abs(place - motion.commanded)
    bad = apart > allowed + 2.0 * ROUNDING
    if not bad.any():
        return None
    joint = int(np.argmax(bad))
    unit = limits.units[joint]
    return _reason(
        ReasonCode.ACCELERATION_LIMIT,
        f"distance of {limits.names[joint]} from the set-point that the chunk replaces",
        found=f"{apart[joint]:g} {unit}",
        expected=f"at most {allowed[joint]:g} {unit}, which {limits.max_acceleration[joint]:g} "
        f"{unit}/s^2 explain",
    )


def _jerk_limits(motion: Motion) -> Reason | None:
    for difference in motion.differences:
        bad = difference.too_sudden(motion.limits)
        if bad.any():
            return _beyond_rate(
                ReasonCode.JERK_LIMIT,
                motion,
                bad,
                difference.twists / motion.step**3,
                motion.limits.max_jerk,
                ("jerk", "s^3"),
            )
    return None


def _beyond_rate(
    code: ReasonCode,
    motion: Motion,
    bad: npt.NDArray[np.bool_],
    values: FloatArray,
    most: FloatArray,
    words: tuple[str, str],
) -> Reason:
    quantity, per = words
    limits = motion.limits
    row, joint = (int(i) for i in np.argwhere(bad)[0])
    unit = limits.units[joint]
    return _reason(
        code,
        f"{quantity} of {limits.names[joint]} at action {motion.first + row}",
        found=f"{abs(values[row, joint]):g} {unit}/{per}",
        expected=f"at most {most[joint]:g} {unit}/{per}",
    )


def _stopping_distance(motion: Motion) -> Reason | None:
    limits = motion.limits
    for difference in motion.differences:
        bad = difference.overruns(limits) & ~limits.outside(motion.positions)
        if bad.any():
            row, joint = (int(i) for i in np.argwhere(bad)[0])
            return _reason(
                ReasonCode.STOPPING_DISTANCE,
                f"rest of {limits.names[joint]} when it brakes from action {motion.first + row}",
                found=f"{difference.rest(limits)[row, joint]:g} {limits.units[joint]}",
                expected=limits.describe(joint),
            )
    return None


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
    limits = motion.limits
    positions = np.vstack([motion.positions, *_first_of_braking(motion)])
    wait = (motion.schedule.start - motion.time) / NANOSECONDS
    elapsed = np.maximum(wait + np.arange(len(positions)) * motion.step, 0.0)
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


def _first_of_braking(motion: Motion) -> list[FloatArray]:
    """Where (J,) braking after the chunk is when its last action is over, if that is known."""
    if not motion.differences:
        return []
    limits = motion.limits
    velocity = arrival_velocity(motion.differences[0].moves[-1], motion.step, limits)
    brake = Brake(motion.positions[-1], velocity, limits.max_deceleration, 0, 0)
    return [brake.state(motion.step)[0]]


CONTINUOUS_RANGE = 100.0
"""Largest set-point of a continuous joint, rad; float32 resolves it to 8e-6."""


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
    _model,
    _publishers,
    _rate,
    _cost,
    _margin,
    _continuous_range,
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
    _position_margin,
    _velocity_limits,
    _seam_commanded,
    _seam_measured,
    _sustained_velocity,
    _acceleration_limits,
    _jerk_limits,
    _stopping_distance,
)
"""Kinematics of what is left to execute; NaN violates none of these, ``_finite`` lists it."""


def publishers(count: int) -> Reason:
    """Why ``count`` publishers of proposed chunks, none or several, are wrong."""
    code = ReasonCode.NO_PUBLISHER if count == 0 else ReasonCode.MULTIPLE_PUBLISHERS
    return _reason(code, "number of publishers of proposed chunks", found=count, expected="one")


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
