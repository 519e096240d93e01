"""The safety gate: decides what moves. Plain software, not a certified safety function.

``now`` is always the caller's monotonic clock in seconds and drives the watchdogs; ``ros_now`` is
ROS time in nanoseconds and drives stamps and the schedule of chunks. The two may run at different
speeds. The object is not thread-safe: its caller holds a lock around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.observation import NANOSECONDS, order_joint_state, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety import checks
from worldforge_ros.safety.checks import (
    GateConfig,
    Motion,
    Reason,
    ReasonCode,
    Schedule,
    Situation,
    Verdict,
)
from worldforge_ros.safety.limits import (
    ROUNDING,
    Envelope,
    FloatArray,
    JointLimits,
    limits_of,
)

__all__ = [
    "GateConfig",
    "GateCounters",
    "GateMode",
    "Outcome",
    "Reason",
    "ReasonCode",
    "SafetyGate",
    "SetPoint",
    "Trajectory",
    "Verdict",
]


class GateMode(IntEnum):
    """States of the gate; the values are those of ``GateStatus``."""

    DISARMED = 0
    ARMED = 1
    HOLDING = 2
    STOPPED = 3


@dataclass(frozen=True, eq=False)
class SetPoint:
    """What to command now: ``position`` (J,) float64 in contract order, m or rad, read-only.

    ``sequence`` and ``index`` name the chunk and its action; 0 and -1 when no action is executing.
    ``is_new_action`` is true on the first tick of an action, ``first_of_chunk`` on that of a chunk.
    """

    position: FloatArray
    sequence: int
    index: int
    is_new_action: bool
    first_of_chunk: bool
    observation_stamp: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What is left of a chunk: ``positions`` (R, J) and when they are reached, seconds from now."""

    times: FloatArray
    positions: FloatArray
    velocities: FloatArray


@dataclass(frozen=True)
class Outcome:
    """Answer to a request; the message is one sentence, or every reason of a refusal."""

    success: bool
    message: str


@dataclass
class GateCounters:
    """Counts since the start, as in ``GateStatus``."""

    received: int = 0
    approved: int = 0
    rejected: int = 0
    steps_executed: int = 0
    holds: int = 0
    stops: int = 0
    rejected_by_code: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class _Measured:
    position: FloatArray
    velocity: FloatArray
    stamp: int
    arrival: float


class SafetyGate:
    """Validates chunks and turns the approved ones into set-points, one tick at a time.

    DISARMED (start): no set-points. HOLDING: armed, the position measured when the hold began.
    ARMED: executing an approved chunk, or keeping the set-point until one begins. STOPPED: latched;
    only :meth:`rearm` leaves it.

    No method raises: an exception inside is a stop with ``INTERNAL_ERROR``, kept in ``last_error``.
    """

    def __init__(self, embodiment: Embodiment, config: GateConfig | None = None) -> None:
        self._embodiment = embodiment
        self._config = config or GateConfig()
        self._limits = limits_of(embodiment)
        self._mode = GateMode.DISARMED
        self._reason = "started; not armed yet"
        self._epoch = 1
        self._counters = GateCounters()
        self._last_verdict: Verdict | None = None
        self._last_sequence: int | None = None
        self._measured: _Measured | None = None
        self._fault: Reason | None = None
        self._protective_stop = False
        # The set-point sent last; None while nothing is commanded.
        self._commanded: FloatArray | None = None
        self._previous: FloatArray | None = None
        self._envelope: Envelope | None = None
        self._hold_since = 0.0
        self._resume_holding = False
        self._active: Schedule | None = None
        self._next: Schedule | None = None
        self._index = -1
        self._latest_ros = 0
        self.last_error: Exception | None = None

    @property
    def mode(self) -> GateMode:
        """Present state."""
        return self._mode

    @property
    def epoch(self) -> int:
        """Chunks must carry this number; it rises when the gate is disarmed and when rearmed."""
        return self._epoch

    @property
    def reason(self) -> str:
        """Why the gate is in its mode, one sentence; a fault begins with its code."""
        return self._reason

    @property
    def counters(self) -> GateCounters:
        """A copy of the counts."""
        counted = Counter(self._counters.rejected_by_code)
        return replace(self._counters, rejected_by_code=counted)

    @property
    def last_verdict(self) -> Verdict | None:
        """What became of the last chunk."""
        return self._last_verdict

    @property
    def limits(self) -> JointLimits:
        """The limits in force."""
        return self._limits

    @property
    def config(self) -> GateConfig:
        """The configuration in force."""
        return self._config

    def update_joint_state(
        self,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
        stamp_ns: int,
        now: float,
    ) -> None:
        """Take a joint state in m or rad and m/s or rad/s, in any order of ``names``.

        Bad data stops an armed gate, and is the reason why a disarmed one refuses to arm. A state
        without any of our joints, or whose stamp does not advance, counts as silence.
        """
        try:
            self._take_joint_state(names, position, velocity, stamp_ns, now)
        except WorldForgeError as error:
            self._joint_fault(Reason(ReasonCode.JOINT_STATE_INVALID, error.message), now)
        except Exception as error:
            self.fault(error, now)

    def submit(self, chunk: ActionChunk, ros_now: int, now: float) -> Verdict:
        """Judge a chunk; an approved one replaces what is executing as soon as its stamp allows.

        A rejected chunk changes nothing and lists everything that it violates.
        """
        try:
            return self._judge(chunk, ros_now, now)
        except Exception as error:
            self.fault(error, now)
            return self._concluded(getattr(chunk, "sequence", 0), [self._internal(error)])

    def refuse(self, sequence: int, code: ReasonCode, message: str) -> Verdict:
        """Count and report a chunk that could not even be read."""
        self._counters.received += 1
        return self._concluded(sequence, [Reason(code, message)])

    def enable(
        self, on: bool, ros_now: int, now: float, blockers: Sequence[Reason] = ()
    ) -> Outcome:
        """Arm (DISARMED to HOLDING) or disarm (ARMED or HOLDING to DISARMED).

        :param blockers: what only the caller can see and speaks against arming.
        """
        try:
            return self._arm(ros_now, now, blockers) if on else self._disarm()
        except Exception as error:
            self.fault(error, now)
            return Outcome(False, str(self._internal(error)))

    def stop(self, reason: str, now: float) -> None:
        """Latch a stop from any mode; ``reason`` is one sentence."""
        try:
            self._latch(Reason(ReasonCode.STOP_REQUESTED, reason), now)
        except Exception as error:
            self.fault(error, now)

    def protective_stop(self, active: bool, now: float) -> None:
        """Follow a protective stop: active latches a stop, released only permits to rearm."""
        try:
            self._protective_stop = active
            if active:
                self._latch(self._protective_reason(), now)
        except Exception as error:
            self.fault(error, now)

    def rearm(self, ros_now: int, now: float, blockers: Sequence[Reason] = ()) -> Outcome:
        """Leave STOPPED once its cause is gone; raises the epoch and forgets every chunk.

        A gate that was armed when it stopped must meet the conditions of arming and goes to
        HOLDING; one that was DISARMED goes back to DISARMED.
        """
        try:
            return self._rearm(ros_now, now, blockers)
        except Exception as error:
            self.fault(error, now)
            return Outcome(False, str(self._internal(error)))

    def tick(self, ros_now: int, now: float) -> SetPoint | None:
        """Run the watchdogs and return what to command now; None while nothing is to be sent."""
        try:
            return self._tick(ros_now, now)
        except Exception as error:
            self.fault(error, now)
            return self._still()

    def fault(self, error: Exception, now: float) -> None:
        """Latch a stop because of an exception, here or around the gate."""
        self.last_error = error
        try:
            self._latch(self._internal(error), now)
        except Exception as second:
            # The mode is STOPPED and the chunks are dropped before anything in _latch can fail.
            self.last_error = second

    def trajectory(self, ros_now: int) -> Trajectory | None:
        """What is left of the executing chunk as points in time; None when none is executing.

        Action k is reached when it ends, since its move is allowed a whole step. The first point is
        put off as far as its joints need at ``max_velocity``: a chunk that arrives in the middle of
        an action would otherwise be entitled to that action's whole move in what is left of it.
        Velocities are central differences, at the last point zero.
        """
        active = self._active
        if active is None or self._mode is not GateMode.ARMED or ros_now >= active.end:
            return None
        first = max(active.index_at(ros_now), self._index)
        positions = active.positions[first:]
        before = positions[0] if self._previous is None else self._previous
        step = active.step / NANOSECONDS
        left = (active.start + (first + 1) * active.step - ros_now) / NANOSECONDS
        needed = float(np.max(np.abs(positions[0] - before) / self._limits.max_velocity))
        times = max(left, needed) + step * np.arange(len(positions), dtype=np.float64)
        path = np.vstack([before, positions])
        moments = np.concatenate([[0.0], times])
        velocities = np.zeros_like(positions)
        spans = (moments[2:] - moments[:-2])[:, np.newaxis]
        velocities[:-1] = (path[2:] - path[:-2]) / spans
        return Trajectory(times, positions, velocities)

    def _take_joint_state(
        self,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
        stamp: int,
        now: float,
    ) -> None:
        if not set(names) & set(self._limits.names):
            return
        if stamp <= 0:
            fault = Reason(
                ReasonCode.JOINT_STATE_INVALID,
                f"stamp of joint_states is {stamp} ns; expected the capture time",
            )
            self._joint_fault(fault, now)
            return
        ordered = order_joint_state(list(names), position, velocity, self._embodiment)
        held = self._measured
        if held is not None and (stamp == held.stamp or (stamp < held.stamp and self._energised)):
            return
        for array in ordered:
            array.setflags(write=False)
        self._measured = _Measured(*ordered, stamp, now)
        self._fault = None
        if self._energised:
            outside = checks.measured_outside(
                self._limits, ordered[0], self._config.measured_tolerance
            )
            if outside is not None:
                self._latch(outside, now)

    def _joint_fault(self, fault: Reason, now: float) -> None:
        self._fault = fault
        if self._energised:
            self._latch(fault, now)

    @property
    def _energised(self) -> bool:
        return self._mode in (GateMode.ARMED, GateMode.HOLDING)

    def _judge(self, chunk: ActionChunk, ros_now: int, now: float) -> Verdict:
        self._counters.received += 1
        situation = Situation(
            embodiment=self._embodiment,
            config=self._config,
            refusing=self._refusing(),
            epoch=self._epoch,
            last_sequence=self._last_sequence,
            now=ros_now,
        )
        reasons = [r for check in checks.CHUNK_CHECKS if (r := check(chunk, situation)) is not None]
        flaws = [r for c in checks.STRUCTURE_CHECKS if (r := c(chunk, situation)) is not None]
        reasons += flaws
        if self._energised:
            reasons += self._joint_state_flaws(now)
        schedule = None
        if not flaws:
            whole = checks.schedule_of(chunk, situation)
            ended = checks.over(whole, ros_now)
            schedule = whole.remaining(ros_now)
            reasons += [ended] if ended is not None else self._motion_flaws(schedule, ros_now)
        verdict = self._concluded(chunk.sequence, reasons)
        if verdict.approved and schedule is not None:
            # Only what was judged is kept: should ROS time step back, nothing earlier exists.
            rounded = self._limits.rounded(schedule.positions)
            rounded.setflags(write=False)
            self._next = replace(schedule, positions=rounded)
            self._last_sequence = chunk.sequence
            self._mode = GateMode.ARMED
            self._reason = "executing approved chunks"
        return verdict

    def _refusing(self) -> Reason | None:
        if self._mode is GateMode.DISARMED:
            return Reason(ReasonCode.NOT_ARMED, "the gate is DISARMED; expected it to be armed")
        if self._mode is GateMode.STOPPED:
            return Reason(ReasonCode.STOPPED, f"the gate is STOPPED ({self._reason}); rearm it")
        return None

    def _motion_flaws(self, schedule: Schedule, ros_now: int) -> list[Reason]:
        time = max(ros_now, schedule.start)
        commanded, low, high = self._forecast(time, ros_now)
        waiting = self._active is None and self._energised and self._measured is not None
        motion = Motion(
            limits=self._limits,
            schedule=schedule,
            time=time,
            commanded=commanded,
            low=low,
            high=high,
            measured=self._measured.position if waiting and self._measured else None,
        )
        with np.errstate(invalid="ignore"):
            return [r for check in checks.MOTION_CHECKS if (r := check(motion)) is not None]

    def _forecast(
        self, time: int, ros_now: int
    ) -> tuple[FloatArray | None, FloatArray | None, FloatArray | None]:
        """Set-point and envelope just before ``time``, the executing chunk going on until then."""
        envelope = self._envelope
        if envelope is None or not self._energised:
            return None, None, None
        active = self._active
        if active is not None and time > ros_now:
            last = min(active.index_at(time - 1), len(active.positions) - 1)
            for index in range(max(self._index + 1, 0), last + 1):
                due = active.start + index * active.step
                envelope = envelope.moved(active.positions[index], self._limits.max_velocity, due)
        return envelope.position, *envelope.reach(self._limits.max_velocity, time)

    def _concluded(self, sequence: int, reasons: Sequence[Reason]) -> Verdict:
        verdict = Verdict(not reasons, sequence, tuple(reasons))
        if verdict.approved:
            self._counters.approved += 1
        else:
            self._counters.rejected += 1
            self._counters.rejected_by_code.update({str(r.code) for r in reasons})
        self._last_verdict = verdict
        return verdict

    def _joint_state_flaws(self, now: float) -> list[Reason]:
        if self._fault is not None:
            return [self._fault]
        measured = self._measured
        if measured is None:
            return [
                Reason(
                    ReasonCode.JOINT_STATE_MISSING,
                    "joint state is absent; expected one on "
                    f"{self._embodiment.observation.joint_state_topic}",
                )
            ]
        age = now - measured.arrival
        if not age <= self._config.joint_state_timeout:
            return [
                Reason(
                    ReasonCode.JOINT_STATE_STALE,
                    f"joint state is {age:.3f} s old; expected at most "
                    f"{self._config.joint_state_timeout:g} s",
                )
            ]
        return []

    def _blockers(self, ros_now: int, now: float) -> list[Reason]:
        found = [
            Reason(
                ReasonCode.LIMITS_INCOMPLETE,
                f"limit {name} is missing; expected it in embodiment {self._embodiment.name}",
            )
            for name in self._limits.missing
        ]
        if self._protective_stop:
            found.append(self._protective_reason())
        if ros_now <= 0:
            found.append(
                Reason(ReasonCode.CLOCK_NOT_RUNNING, "ROS time is 0; expected a running clock")
            )
        flaws = self._joint_state_flaws(now)
        found += flaws
        if self._measured is not None and not flaws:
            outside = checks.measured_outside(self._limits, self._measured.position, ROUNDING)
            fast = checks.moving(self._limits, self._measured.velocity, self._config.arm_max_speed)
            found += [reason for reason in (outside, fast) if reason is not None]
        return found

    def _arm(self, ros_now: int, now: float, blockers: Sequence[Reason]) -> Outcome:
        if self._mode is GateMode.STOPPED:
            return Outcome(False, f"STOPPED: the gate is stopped ({self._reason}); rearm it first")
        if self._energised:
            return Outcome(True, f"armed already, {self._mode.name}")
        found = [*self._blockers(ros_now, now), *blockers]
        if found:
            return self._refused("not armed", found)
        self._latest_ros = ros_now
        self._hold("armed; waiting for a chunk", now)
        return Outcome(True, "armed; holding position")

    def _disarm(self) -> Outcome:
        if self._mode is GateMode.STOPPED:
            return Outcome(False, f"STOPPED: the gate is stopped ({self._reason}); rearm it first")
        if self._mode is GateMode.DISARMED:
            return Outcome(True, "disarmed already")
        self._disarmed("disarmed on request")
        return Outcome(True, "disarmed; no set-points are sent")

    def _disarmed(self, reason: str) -> None:
        self._mode = GateMode.DISARMED
        self._reason = reason
        self._new_epoch()
        self._commanded = self._envelope = self._previous = None

    def _rearm(self, ros_now: int, now: float, blockers: Sequence[Reason]) -> Outcome:
        if self._mode is not GateMode.STOPPED:
            return Outcome(False, f"nothing to rearm: the gate is {self._mode.name}")
        if not self._resume_holding:
            if self._protective_stop:
                return self._refused("still stopped", [self._protective_reason()])
            self._disarmed("rearmed; it was disarmed when it stopped")
            return Outcome(True, "rearmed; DISARMED as before the stop")
        found = [*self._blockers(ros_now, now), *blockers]
        if found:
            return self._refused("still stopped", found)
        self._new_epoch()
        self._latest_ros = ros_now
        self._hold("rearmed; waiting for a chunk", now)
        return Outcome(True, f"rearmed; holding position, epoch {self._epoch}")

    @staticmethod
    def _refused(state: str, reasons: Sequence[Reason]) -> Outcome:
        return Outcome(False, f"{state}: " + "; ".join(str(reason) for reason in reasons))

    def _new_epoch(self) -> None:
        self._epoch += 1
        self._last_sequence = None
        self._active = self._next = None

    def _tick(self, ros_now: int, now: float) -> SetPoint | None:
        if self._energised:
            self._watch(ros_now, now)
        if self._mode is GateMode.ARMED:
            return self._execute(ros_now, now)
        return self._still()

    def _watch(self, ros_now: int, now: float) -> None:
        flaws = self._joint_state_flaws(now)
        if flaws:
            self._latch(flaws[0], now)
            return
        most = self._config.max_tracking_error
        if most is not None and self._commanded is not None and self._measured is not None:
            apart = np.abs(self._commanded - self._measured.position)
            joint = int(np.argmax(apart))
            if apart[joint] > most:
                unit = self._limits.units[joint]
                self._latch(
                    Reason(
                        ReasonCode.TRACKING_ERROR,
                        f"distance of {self._limits.names[joint]} from its set-point is "
                        f"{apart[joint]:g} {unit}; expected at most {most:g} {unit}",
                    ),
                    now,
                )
                return
        back = self._latest_ros - ros_now
        if back > seconds_to_ns(self._config.future_tolerance):
            self._latest_ros = ros_now
            if self._mode is GateMode.ARMED:
                reason = Reason(
                    ReasonCode.CLOCK_JUMPED_BACK,
                    f"ROS time went back by {back / NANOSECONDS:.3f} s; expected it to advance",
                )
                self._end_chunk(str(reason), now)
            elif self._commanded is not None:
                self._stay_at(self._commanded)
        self._latest_ros = max(self._latest_ros, ros_now)
        limit = self._config.stop_after_hold
        held = now - self._hold_since
        if self._mode is GateMode.HOLDING and 0 < limit < held:
            self._latch(
                Reason(
                    ReasonCode.HOLD_TIMEOUT,
                    f"hold has lasted {held:.3f} s; expected a chunk within {limit:g} s",
                ),
                now,
            )

    def _execute(self, ros_now: int, now: float) -> SetPoint | None:
        first = self._next is not None and ros_now >= self._next.start
        if first:
            self._active, self._next, self._index = self._next, None, -1
        active = self._active
        if active is not None and ros_now < active.end:
            # ROS time may step back a little; an action that is past is not replayed.
            index = max(active.index_at(ros_now), self._index)
            is_new = index != self._index
            position = active.positions[index]
            if is_new:
                self._index = index
                self._command(position, ros_now)
                self._counters.steps_executed += 1
            return SetPoint(
                position,
                active.sequence,
                active.offset + index,
                is_new,
                first,
                active.observation_stamp,
            )
        if self._next is not None:
            return self._still()
        self._end_chunk("no fresh chunk by the end of the last one", now)
        return self._still()

    def _command(self, position: FloatArray, ros_now: int) -> None:
        self._previous = self._commanded
        self._commanded = position
        if self._envelope is None:
            self._envelope = Envelope.at(position, ros_now)
        else:
            self._envelope = self._envelope.moved(position, self._limits.max_velocity, ros_now)

    def _end_chunk(self, reason: str, now: float) -> None:
        assert self._measured is not None
        outside = checks.measured_outside(self._limits, self._measured.position, ROUNDING)
        if outside is not None:
            self._latch(outside, now)
            return
        self._counters.holds += 1
        self._hold(reason, now)

    def _hold(self, reason: str, now: float) -> None:
        assert self._measured is not None
        self._mode = GateMode.HOLDING
        self._reason = reason
        self._hold_since = now
        self._active = self._next = None
        self._stay_at(self._limits.rounded(self._measured.position))

    def _stay_at(self, position: FloatArray) -> None:
        position.setflags(write=False)
        self._commanded, self._previous = position, None
        self._envelope = Envelope.at(position, self._latest_ros)
        self._index = -1

    def _still(self) -> SetPoint | None:
        if self._commanded is None:
            return None
        return SetPoint(self._commanded, 0, -1, False, False, 0)

    def _latch(self, reason: Reason, now: float) -> None:
        if self._mode is GateMode.STOPPED:
            return
        self._resume_holding = self._energised
        self._mode = GateMode.STOPPED
        self._reason = str(reason)
        self._active = self._next = None
        self._index = -1
        self._counters.stops += 1
        place = self._place_to_stop(now)
        if place is not None:
            self._stay_at(place)

    def _place_to_stop(self, now: float) -> FloatArray | None:
        """Where the robot is, if that is known and inside the limits.

        Without such a position the last set-point goes on: it was approved, so nothing outside the
        limits is ever commanded.
        """
        measured = self._measured
        if not self._resume_holding or measured is None:
            return None
        if not now - measured.arrival <= self._config.joint_state_timeout:
            return None
        if self._limits.outside(measured.position).any():
            return None
        return self._limits.rounded(measured.position)

    @staticmethod
    def _internal(error: Exception) -> Reason:
        return Reason(
            ReasonCode.INTERNAL_ERROR, f"the gate failed with {type(error).__name__}: {error}"
        )

    @staticmethod
    def _protective_reason() -> Reason:
        return Reason(
            ReasonCode.PROTECTIVE_STOP, "the protective stop is active; expected it released"
        )
