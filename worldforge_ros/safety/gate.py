"""The safety gate: decides what moves. Plain software, not a certified safety function.

``now`` is always the caller's monotonic clock in seconds and drives the watchdogs; ``ros_now`` is
ROS time in nanoseconds and drives stamps and the schedule of chunks. The two may run at different
speeds. The object is not thread-safe: its caller holds a lock around it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import NANOSECONDS, order_joint_state, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety import checks
from worldforge_ros.safety.checks import Motion, Schedule, Situation, Verdict
from worldforge_ros.safety.clamping import clamped
from worldforge_ros.safety.config import GateConfig, Reaction
from worldforge_ros.safety.heartbeats import Heartbeats
from worldforge_ros.safety.limits import FloatArray, JointLimits, limits_of
from worldforge_ros.safety.reasons import Reason, ReasonCode
from worldforge_ros.safety.stop_line import StopLine
from worldforge_ros.safety.stream import SetPoint, SetPointStream
from worldforge_ros.safety.surprise import SurpriseWatch
from worldforge_ros.safety.trajectory import Trajectory
from worldforge_ros.safety.workspace import Workspace

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


MOST_AT_ONCE = 2
"""Actions that a set-point may move on by in one tick; as far as the checks let it go at once."""
SETTLE_TIME = 0.5
"""Seconds that a robot gets to come to rest after its set-point has, before it is held where it
is."""


class GateMode(IntEnum):
    """States of the gate; the values are those of ``GateStatus``."""

    DISARMED = 0
    ARMED = 1
    HOLDING = 2
    STOPPED = 3


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

    DISARMED (start): no set-points. HOLDING: armed; the robot brakes, then holds the position
    measured when it has come to rest. ARMED: executing an approved chunk, or keeping the set-point
    until one begins. STOPPED: latched, at the position measured then; only :meth:`rearm` leaves it.

    No method raises: an exception inside is a stop with ``INTERNAL_ERROR``, kept in ``last_error``.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        config: GateConfig | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self._embodiment = embodiment
        self._limits = limits_of(embodiment)
        self._workspace = workspace
        config = config or GateConfig()
        self._stop_line = StopLine(config.protective_stop_lease, config.protective_stop_required)
        self._surprise = SurpriseWatch(
            config.max_surprise, config.surprise_timeout, config.future_tolerance
        )
        self._take(config)
        self._publishers = 1
        self._mode = GateMode.DISARMED
        self._reason = "started; not armed yet"
        self._epoch = 1
        self._counters = GateCounters()
        self._last_verdict: Verdict | None = None
        self._last_sequence: int | None = None
        self._measured: _Measured | None = None
        self._fault: Reason | None = None
        self._stream = SetPointStream(self._limits)
        # Since when chunks have been wanting; None at a hold that no chunk came before.
        self._starved_since: float | None = None
        self._resume_holding = False
        self._latest_ros = 0
        self._last_good: FloatArray | None = None
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

    def place(self, now: float) -> FloatArray | None:
        """Where to make a robot stand that will get no further set-points: the measured position
        (J,), else the last set-point; None while nothing is commanded.
        """
        commanded = self._stream.commanded
        if commanded is None:
            return None
        place = self._known_place(now)
        return commanded if place is None else place

    @property
    def workspace(self) -> Workspace | None:
        """Where end effectors may be; None where the embodiment does not say."""
        return self._workspace

    def configure(self, config: GateConfig) -> None:
        """Change the configuration of a gate that is not armed.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` while it is, and for what cannot be used.
        """
        self.check_changeable()
        self._take(config)

    def check_changeable(self) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` while the gate is armed."""
        if self._energised:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "the gate",
                found=self._mode.name,
                expected="DISARMED or STOPPED: its parameters are read-only while it is armed",
            )

    def _take(self, config: GateConfig) -> None:
        # This may raise; what is refused must leave nothing behind.
        self._heartbeats = Heartbeats(config.heartbeats, config.heartbeat_timeout)
        self._config = config
        self._stop_line.configure(config.protective_stop_lease, config.protective_stop_required)
        self._surprise.configure(
            config.max_surprise, config.surprise_timeout, config.future_tolerance
        )
        self._arrivals: deque[float] = deque(maxlen=int(config.max_chunk_rate or 0) + 1)
        self._rejections: deque[float] = deque(maxlen=config.max_rejections or 1)

    def beat(self, node: str, now: float) -> None:
        """``node`` is alive."""
        try:
            self._heartbeats.beat(node, now)
        except Exception as error:
            self.fault(error, now)

    def surprise(self, standardised: float, stamp: int, ros_now: int, now: float) -> None:
        """The world model was so surprised by the block before ``stamp`` (ns)."""
        try:
            self._surprise.heard(standardised, stamp, ros_now, now)
            seen = self._surprise.flaw(self._stream.oldest_observation, ros_now, now)
            if seen is not None:
                self._slow_down(str(seen), now)
        except Exception as error:
            self.fault(error, now)

    def proposers(self, count: int) -> None:
        """There are ``count`` publishers of proposed chunks; one is right."""
        self._publishers = count

    def stop_publishers(self, count: int) -> None:
        """There are ``count`` publishers of the protective stop; losing one is a stop."""
        try:
            self._stop_line.publishers(count)
        except Exception as error:
            self.fault(error, math.nan)

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
            return self._failed(getattr(chunk, "sequence", 0), error, now)

    def refuse(
        self, sequence: int, code: ReasonCode, message: str, ros_now: int, now: float
    ) -> Verdict:
        """Count and report a chunk that could not even be read."""
        try:
            self._counters.received += 1
            verdict = self._concluded(sequence, [Reason(code, message)])
            self._react(verdict, now)
        except Exception as error:
            return self._failed(sequence, error, now)
        return verdict

    def _failed(self, sequence: int, error: Exception, now: float) -> Verdict:
        """A stop, and the verdict on the chunk that was being judged."""
        self.fault(error, now)
        reasons = (self._internal(error),)
        try:
            return self._concluded(sequence, reasons)
        except Exception:
            return Verdict(False, sequence, reasons)

    def enable(self, on: bool, ros_now: int, now: float) -> Outcome:
        """Arm (DISARMED to HOLDING) or disarm (ARMED or HOLDING to DISARMED)."""
        try:
            return self._arm(ros_now, now) if on else self._disarm()
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
        """A publisher of the protective stop speaks: active latches a stop, released only permits
        to rearm.
        """
        try:
            # A loss that no tick has seen yet is not undone by what another publisher says.
            self._obey_stop_line(now)
            self._stop_line.message(active, now)
            self._obey_stop_line(now)
        except Exception as error:
            self.fault(error, now)

    def _obey_stop_line(self, now: float) -> bool:
        reason = self._stop_line.reason(now)
        lost = reason is not None and reason.code is ReasonCode.PROTECTIVE_STOP_LOST
        # Whoever is not armed has nothing to stop because somebody is missing.
        if reason is None or (lost and not self._energised):
            return False
        self._latch(reason, now)
        return True

    def rearm(self, ros_now: int, now: float) -> Outcome:
        """Leave STOPPED once its cause is gone; raises the epoch and forgets every chunk.

        A gate that was armed when it stopped must meet the conditions of arming and goes to
        HOLDING; one that was DISARMED goes back to DISARMED.
        """
        try:
            return self._rearm(ros_now, now)
        except Exception as error:
            self.fault(error, now)
            return Outcome(False, str(self._internal(error)))

    def tick(self, ros_now: int, now: float) -> SetPoint | None:
        """Run the watchdogs and return what to command now; None while nothing is to be sent."""
        try:
            return self._tick(ros_now, now)
        except Exception as error:
            self.fault(error, now)
            try:
                return self._stream.present()
            except Exception as second:
                self.last_error = second
                return None

    def fault(self, error: Exception, now: float) -> None:
        """Latch a stop because of an exception, here or around the gate."""
        self.last_error = error
        try:
            self._latch(self._internal(error), now)
        except Exception as second:
            self.last_error = second
            # Whatever it was that failed.
            self._mode = GateMode.STOPPED

    def trajectory(self, ros_now: int) -> Trajectory | None:
        """What is left of the executing chunk and of braking after it, of braking alone, or of the
        way to where the set-point stands still, as points in time; None while nothing is commanded.
        """
        try:
            trajectory = self._stream.trajectory(ros_now)
            if trajectory is None:
                return None
            return replace(trajectory, positions=self._limits.rounded(trajectory.positions))
        except Exception as error:
            self.fault(error, math.nan)
            return None

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
        if held is not None and stamp == held.stamp:
            return
        if held is not None and stamp < held.stamp and self._energised:
            back = held.stamp - stamp
            if back > seconds_to_ns(self._config.future_tolerance):
                fault = Reason(
                    ReasonCode.JOINT_STATE_INVALID,
                    f"stamp of joint_states went back by {back / NANOSECONDS:.3f} s; expected it "
                    "to advance",
                )
                self._joint_fault(fault, now)
            return
        for array in ordered:
            array.setflags(write=False)
        self._measured = _Measured(*ordered, stamp, now)
        self._fault = None
        if self._energised:
            outside = self._measured_outside()
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
        self._arrivals.append(now)
        situation = Situation(
            embodiment=self._embodiment,
            config=self._config,
            refusing=self._refusing(),
            epoch=self._epoch,
            last_sequence=self._last_sequence,
            now=ros_now,
            publishers=self._publishers,
            recent_chunks=self._recent_chunks(now),
        )
        reasons = [r for check in checks.CHUNK_CHECKS if (r := check(chunk, situation)) is not None]
        flaws = [r for c in checks.STRUCTURE_CHECKS if (r := c(chunk, situation)) is not None]
        reasons += flaws
        if self._energised:
            reasons += self._joint_state_flaws(ros_now, now)
            reasons += self._heartbeats.missing(now)
            seen = self._surprise.flaw(chunk.observation_stamp, ros_now, now)
            reasons += [] if seen is None else [seen]
        sound = not reasons
        schedule = None
        if not flaws:
            whole = checks.schedule_of(chunk, self._limits, self._reference())
            ended = checks.over(whole, ros_now)
            schedule = whole.remaining(ros_now)
            reasons += [ended] if ended is not None else self._motion_flaws(schedule, ros_now)
        mended = None
        if schedule is not None and sound and reasons and self._mendable(reasons):
            schedule = clamped(self._motion(schedule, ros_now))
            left = self._motion_flaws(schedule, ros_now)
            if left:
                reasons += [r for r in left if r.code not in {known.code for known in reasons}]
            else:
                mended = self._in_columns_of(chunk, schedule)
        verdict = self._concluded(chunk.sequence, reasons, mended)
        if verdict.approved and schedule is not None:
            # Only what was judged is kept: should ROS time step back, nothing earlier exists.
            rounded = self._limits.rounded(schedule.positions)
            rounded.setflags(write=False)
            waits = schedule.start > ros_now
            self._stream.queue(replace(schedule, positions=rounded), waits)
            self._last_sequence = chunk.sequence
            self._mode = GateMode.ARMED
            self._reason = "executing approved chunks"
        else:
            self._react(verdict, now)
        return verdict

    def _recent_chunks(self, now: float) -> int:
        return sum(now - arrival < 1.0 for arrival in self._arrivals)

    def _reference(self) -> FloatArray | None:
        """What continuous joints of a chunk are nearest to."""
        if self._stream.commanded is not None:
            return self._stream.commanded
        return None if self._measured is None else self._measured.position

    def _mendable(self, reasons: Sequence[Reason]) -> bool:
        return all(self._config.reaction(reason.code) is Reaction.CLAMP for reason in reasons)

    def _in_columns_of(self, chunk: ActionChunk, schedule: Schedule) -> FloatArray:
        """The actions of ``chunk`` with those that are still to come replaced by ``schedule``'s."""
        actions = np.array(chunk.actions, dtype=np.float64)
        columns = checks.columns_of(chunk, self._limits.names)
        actions[schedule.offset :, columns] = schedule.positions
        actions.setflags(write=False)
        return actions

    def _react(self, verdict: Verdict, now: float) -> None:
        """What a refused chunk of an armed gate leads to, beside being refused."""
        if not self._energised:
            return
        for reason in verdict.reasons:
            if self._config.reaction(reason.code) is Reaction.LATCH:
                self._latch(reason, now)
                return
        # What was planned before a stop is refused as a matter of course, and where the answer to a
        # refusal is to hold, the robot holds for as long as it takes.
        if not all(self._expected(reason.code) for reason in verdict.reasons):
            self._rejections.append(now)
        most = self._config.max_rejections
        if most is not None and len(self._rejections) == most:
            window = self._config.rejection_window
            if now - self._rejections[0] <= window:
                self._latch(
                    Reason(
                        ReasonCode.TOO_MANY_REJECTIONS,
                        f"chunks refused within {window:g} s are {most}; expected fewer; the last: "
                        f"{verdict.reasons[0]}",
                    ),
                    now,
                )
                return
        for reason in verdict.reasons:
            if self._config.reaction(reason.code) is Reaction.HOLD:
                self._slow_down(str(reason), now)
                return

    def _expected(self, code: ReasonCode) -> bool:
        if code in (
            ReasonCode.EPOCH_MISMATCH,
            ReasonCode.HEARTBEAT_LOST,
            ReasonCode.SURPRISED,
        ):
            return True
        return self._config.reaction(code) is Reaction.HOLD

    def _refusing(self) -> Reason | None:
        if self._mode is GateMode.DISARMED:
            return Reason(ReasonCode.NOT_ARMED, "the gate is DISARMED; expected it to be armed")
        if self._mode is GateMode.STOPPED:
            return Reason(ReasonCode.STOPPED, f"the gate is STOPPED ({self._reason}); rearm it")
        return None

    def _motion_flaws(self, schedule: Schedule, ros_now: int) -> list[Reason]:
        motion = self._motion(schedule, ros_now)
        with np.errstate(invalid="ignore", over="ignore"):
            found = [r for check in checks.MOTION_CHECKS if (r := check(motion)) is not None]
            if self._workspace is not None:
                found += self._workspace_flaws(self._workspace, motion)
        return found

    def _workspace_flaws(self, workspace: Workspace, motion: Motion) -> list[Reason]:
        """Of the chunk and of braking after it."""
        rows, offset = motion.positions, motion.first
        found = workspace.violations(rows, motion.commanded, offset)
        if motion.differences:
            rest = motion.differences[0].rest(self._limits)[-1]
            if np.isfinite(rest).all() and np.any(rest != rows[-1]):
                after = workspace.violations(rest[np.newaxis], rows[-1], offset + len(rows))
                found += [r for r in after if r.code not in {known.code for known in found}]
        return found

    def _motion(self, schedule: Schedule, ros_now: int) -> Motion:
        time = max(ros_now, schedule.start)
        course = self._stream.forecast(time, schedule.step, ros_now) if self._energised else None
        commanded = before = low = high = measured = None
        if course is not None:
            commanded = course.position
            before = course.before(schedule.start, schedule.step)
            low, high = course.reach(self._limits.max_velocity, time)
            if self._stream.still and self._measured is not None:
                measured = self._measured_before(commanded, schedule.step)
        return Motion(
            limits=self._limits,
            config=self._config,
            schedule=schedule,
            time=time,
            commanded=commanded,
            before=before,
            low=low,
            high=high,
            measured=measured,
            measured_moves=measured is not None and self._moving() is not None,
            due=None if course is None else course.times[-1],
        )

    def _moving(self) -> Reason | None:
        assert self._measured is not None
        most = self._config.arm_max_speed
        return checks.moving(self._limits, self._measured.velocity, most)

    def _measured_before(self, near: FloatArray, step: int) -> FloatArray:
        """Measured motion as :meth:`Course.before` would have it, on the turn of ``near``."""
        assert self._measured is not None
        position = self._limits.nearest(self._measured.position, near)
        moved = self._measured.velocity * (step / NANOSECONDS)
        return np.stack([position - 2.0 * moved, position - moved, position])

    def _concluded(
        self, sequence: int, reasons: Sequence[Reason], mended: FloatArray | None = None
    ) -> Verdict:
        verdict = Verdict(not reasons or mended is not None, sequence, tuple(reasons), mended)
        if verdict.approved:
            self._counters.approved += 1
        else:
            self._counters.rejected += 1
            self._counters.rejected_by_code.update({str(r.code) for r in reasons})
        self._last_verdict = verdict
        return verdict

    def _joint_state_flaws(self, ros_now: int, now: float) -> list[Reason]:
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
        return self._stamp_flaws(measured.stamp, ros_now)

    def _stamp_flaws(self, stamp: int, ros_now: int) -> list[Reason]:
        most = self._config.max_joint_state_age
        apart = ros_now - stamp
        if abs(apart) <= seconds_to_ns(most):
            return []
        code = ReasonCode.JOINT_STATE_STALE if apart > 0 else ReasonCode.JOINT_STATE_IN_FUTURE
        where = "old" if apart > 0 else "in the future"
        return [
            Reason(
                code,
                f"stamp of joint_states is {abs(apart) / NANOSECONDS:.3f} s {where}; expected at "
                f"most {most:g} s",
            )
        ]

    def _blockers(self, ros_now: int, now: float) -> list[Reason]:
        found = [
            Reason(
                ReasonCode.LIMITS_INCOMPLETE,
                f"limit {name} is missing; expected it in embodiment {self._embodiment.name}",
            )
            for name in self._limits.missing
        ]
        stopped = self._stop_line.reason(now)
        if stopped is not None:
            found.append(stopped)
        if self._publishers != 1:
            found.append(checks.publishers(self._publishers))
        found += self._heartbeats.missing(now)
        if ros_now <= 0:
            found.append(
                Reason(ReasonCode.CLOCK_NOT_RUNNING, "ROS time is 0; expected a running clock")
            )
        flaws = self._joint_state_flaws(ros_now, now)
        found += flaws
        if self._measured is not None and not flaws:
            seen = (self._measured_outside(), self._moving())
            found += [reason for reason in seen if reason is not None]
            if self._workspace is not None:
                found += self._workspace.violations(self._measured.position[np.newaxis], None)
        return found

    def _arm(self, ros_now: int, now: float) -> Outcome:
        if self._mode is GateMode.STOPPED:
            return Outcome(False, f"STOPPED: the gate is stopped ({self._reason}); rearm it first")
        if self._energised:
            return Outcome(True, f"armed already, {self._mode.name}")
        found = self._blockers(ros_now, now)
        if found:
            return self._refused("not armed", found)
        self._latest_ros = ros_now
        self._rejections.clear()
        self._hold("armed; waiting for a chunk", now)
        return Outcome(True, "armed; holding position")

    def _disarm(self) -> Outcome:
        if self._mode is GateMode.STOPPED:
            # Whoever has to move the robot by hand must be able to make the gate let go of it.
            self._resume_holding = False
            self._stream.forget()
            return Outcome(True, "stopped still; no set-points are sent, rearming will disarm")
        if self._mode is GateMode.DISARMED:
            return Outcome(True, "disarmed already")
        self._disarmed("disarmed on request")
        return Outcome(True, "disarmed; no set-points are sent")

    def _disarmed(self, reason: str) -> None:
        self._mode = GateMode.DISARMED
        self._reason = reason
        self._new_epoch()
        self._stream.forget()

    def _rearm(self, ros_now: int, now: float) -> Outcome:
        if self._mode is not GateMode.STOPPED:
            return Outcome(False, f"nothing to rearm: the gate is {self._mode.name}")
        if not self._resume_holding:
            stopped = self._stop_line.reason(now)
            if stopped is not None and stopped.code is ReasonCode.PROTECTIVE_STOP:
                return self._refused("still stopped", [stopped])
            self._disarmed("rearmed; it was disarmed when it stopped")
            return Outcome(True, "rearmed; DISARMED as before the stop")
        found = self._blockers(ros_now, now)
        if found:
            return self._refused("still stopped", found)
        self._new_epoch()
        self._latest_ros = ros_now
        self._rejections.clear()
        # Somebody may have turned a continuous joint meanwhile: the old set-point is no guide.
        self._stream.forget()
        self._hold("rearmed; waiting for a chunk", now)
        return Outcome(True, f"rearmed; holding position, epoch {self._epoch}")

    @staticmethod
    def _refused(state: str, reasons: Sequence[Reason]) -> Outcome:
        return Outcome(False, f"{state}: " + "; ".join(str(reason) for reason in reasons))

    def _new_epoch(self) -> None:
        self._epoch += 1
        self._last_sequence = None

    def _tick(self, ros_now: int, now: float) -> SetPoint | None:
        if self._energised:
            self._watch(ros_now, now)
        point = self._stream.present()
        if self._energised:
            point = self._advanced(ros_now, now)
        return point if point is None else self._checked(point, now)

    def _advanced(self, ros_now: int, now: float) -> SetPoint | None:
        behind = self._stream.behind(ros_now)
        if behind > MOST_AT_ONCE:
            # A stalled thread, or ROS time that leapt: to catch up would be a leap of the robot.
            reason = Reason(
                ReasonCode.SET_POINT_LATE,
                f"actions due since the last tick are {behind}; expected at most {MOST_AT_ONCE}",
            )
            self._stream.freeze()
            self._starve(str(reason), now)
        before = self._stream.commanded
        point = self._stream.advance(ros_now)
        if point is not None and point.braking and self._workspace is not None:
            # A chunk can be cut at any action, and only the way on from its last one was judged.
            blocked = self._workspace.violations(point.position[np.newaxis], before)
            if blocked:
                self._latch(blocked[0], now)
                return self._stream.present()
        if point is not None and point.is_new_action:
            self._counters.steps_executed += 1
        if self._mode is GateMode.ARMED and self._stream.idle:
            self._starve("no fresh chunk by the end of the last one", now)
            point = self._stream.present()
        if self._mode is GateMode.HOLDING and self._settled(ros_now):
            self._rest_or_stop(now)
            point = self._stream.present()
        return point

    def _watch(self, ros_now: int, now: float) -> None:
        if self._obey_stop_line(now):
            return
        self._watch_clock(ros_now, now)
        flaws = self._joint_state_flaws(ros_now, now)
        if flaws:
            self._latch(flaws[0], now)
        elif (far := self._tracking_flaw()) is not None:
            self._latch(far, now)
        elif self._mode is GateMode.ARMED:
            self._watch_chunk(ros_now, now)
        else:
            self._watch_hold(now)

    def _tracking_flaw(self) -> Reason | None:
        most = self._config.max_tracking_error
        commanded = self._stream.commanded
        if most is None or commanded is None or self._measured is None:
            return None
        measured = self._limits.nearest(self._measured.position, commanded)
        apart = np.abs(commanded - measured)
        joint = int(np.argmax(apart))
        if apart[joint] <= most:
            return None
        unit = self._limits.units[joint]
        return Reason(
            ReasonCode.TRACKING_ERROR,
            f"distance of {self._limits.names[joint]} from its set-point is "
            f"{apart[joint]:g} {unit}; expected at most {most:g} {unit}",
        )

    def _watch_clock(self, ros_now: int, now: float) -> None:
        back = self._latest_ros - ros_now
        if back > seconds_to_ns(self._config.future_tolerance):
            self._latest_ros = ros_now
            self._surprise.forget()
            if self._measured is not None:
                # Joint states of the new time must not pass for older ones.
                self._measured = replace(
                    self._measured, stamp=min(self._measured.stamp, ros_now - 1)
                )
            if self._mode is GateMode.ARMED or not self._stream.still:
                reason = Reason(
                    ReasonCode.CLOCK_JUMPED_BACK,
                    f"ROS time went back by {back / NANOSECONDS:.3f} s; expected it to advance",
                )
                # Braking is a matter of ROS time, and that is what failed.
                self._stream.freeze()
                self._starve(str(reason), now)
            elif self._stream.commanded is not None:
                self._stream.stay_at(self._stream.commanded, ros_now)
        self._latest_ros = max(self._latest_ros, ros_now)

    def _watch_chunk(self, ros_now: int, now: float) -> None:
        lost = self._heartbeats.missing(now)
        surprised = self._surprise.flaw(self._stream.oldest_observation, ros_now, now)
        if lost or surprised is not None:
            self._slow_down(str(lost[0] if lost else surprised), now)
            return
        most = self._config.max_open_loop
        active = self._stream.active
        if active is not None and ros_now - active.observation_stamp > seconds_to_ns(most):
            age = (ros_now - active.observation_stamp) / NANOSECONDS
            reason = Reason(
                ReasonCode.OPEN_LOOP_TOO_LONG,
                f"observation behind the executing chunk is {age:.3f} s old; expected at most "
                f"{most:g} s",
            )
            self._slow_down(str(reason), now)

    def _watch_hold(self, now: float) -> None:
        limit = self._config.stop_after_hold
        if limit is None or self._starved_since is None:
            return
        held = now - self._starved_since
        if held > limit:
            self._latch(
                Reason(
                    ReasonCode.HOLD_TIMEOUT,
                    f"hold has lasted {held:.3f} s; expected a chunk within {limit:g} s",
                ),
                now,
            )

    def _slow_down(self, reason: str, now: float) -> None:
        """Drop the chunks, brake from the present set-point and hold."""
        if self._mode is GateMode.ARMED:
            self._stream.slow_down()
            self._starve(reason, now)

    def _starve(self, reason: str, now: float) -> None:
        """Go to HOLDING for want of chunks, braking first where the set-point moves."""
        if self._mode is GateMode.ARMED:
            self._counters.holds += 1
        self._mode = GateMode.HOLDING
        self._reason = reason
        self._starved_since = now
        if self._stream.still:
            self._rest_or_stop(now)

    def _settled(self, ros_now: int) -> bool:
        """Whether the robot has come to rest after its set-point has."""
        rested = self._stream.rested(ros_now)
        if rested is None or rested < 0.0 or self._measured is None:
            return False
        return rested >= SETTLE_TIME or self._moving() is None

    def _rest_or_stop(self, now: float) -> None:
        """Hold the measured position; one outside the limits is a fault."""
        assert self._measured is not None
        outside = self._measured_outside()
        if outside is not None:
            self._latch(outside, now)
        else:
            self._stream.stay_at(self._place(self._measured), self._latest_ros)

    def _measured_outside(self) -> Reason | None:
        assert self._measured is not None
        return checks.measured_outside(
            self._limits, self._measured.position, self._config.measured_tolerance
        )

    def _hold(self, reason: str, now: float) -> None:
        self._mode = GateMode.HOLDING
        self._reason = reason
        self._starved_since = None
        self._rest_or_stop(now)

    def _checked(self, point: SetPoint, now: float) -> SetPoint | None:
        """The last barrier before the robot: whatever went before, this must hold."""
        position = point.position
        limits = self._limits
        good = np.isfinite(position).all() and not limits.outside(position, 0.0).any()
        if good:
            self._last_good = position
            return point
        self._stream.forget()
        if self._last_good is not None:
            self._stream.stay_at(self._last_good.copy(), self._latest_ros)
        self._latch(
            Reason(
                ReasonCode.SET_POINT_INVALID,
                f"set-point {position.tolist()} is not within the limits; expected the checks to "
                "have refused it",
            ),
            now,
        )
        return self._stream.present()

    def _latch(self, reason: Reason, now: float) -> None:
        if self._mode is GateMode.STOPPED:
            return
        self._resume_holding = self._energised
        self._mode = GateMode.STOPPED
        self._reason = str(reason)
        self._stream.freeze()
        self._counters.stops += 1
        place = self._place_to_stop(now)
        if place is not None:
            self._stream.stay_at(place, self._latest_ros)

    def _place_to_stop(self, now: float) -> FloatArray | None:
        """Where the robot is, if that is known and inside the limits.

        Without such a position the last set-point goes on: it was approved, so nothing outside the
        limits is ever commanded.
        """
        return self._known_place(now) if self._resume_holding else None

    def _known_place(self, now: float) -> FloatArray | None:
        """The measured position as a set-point; None where it is old or outside the limits."""
        measured = self._measured
        if measured is None or not now - measured.arrival <= self._config.joint_state_timeout:
            return None
        return None if self._measured_outside() is not None else self._place(measured)

    def _place(self, measured: _Measured) -> FloatArray:
        """The measured position as a set-point: continuous joints on the turn of the one before,
        and what is measured outside a limit, within ``measured_tolerance``, at the limit.
        """
        position = measured.position
        if self._stream.commanded is not None:
            position = self._limits.nearest(position, self._stream.commanded)
        return np.clip(position, self._limits.lower, self._limits.upper)

    @staticmethod
    def _internal(error: Exception) -> Reason:
        return Reason(
            ReasonCode.INTERNAL_ERROR, f"the gate failed with {type(error).__name__}: {error}"
        )
