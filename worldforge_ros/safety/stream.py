"""Set-points, one tick at a time: the actions of approved chunks, braking after them, rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.safety.checks import Schedule
from worldforge_ros.safety.course import BEFORE, Course
from worldforge_ros.safety.differences import Brake, arrival_velocity
from worldforge_ros.safety.limits import FloatArray, JointLimits
from worldforge_ros.safety.trajectory import (
    Followed,
    State,
    Trajectory,
    brake_trajectory,
    chunk_trajectory,
    hold_trajectory,
)


@dataclass(frozen=True, eq=False)
class SetPoint:
    """What to command now: ``position`` (J,) float64 in contract order, m or rad, read-only.

    ``sequence`` and ``index`` name the chunk and its action; 0 and -1 when no action is executing.
    ``is_new_action`` is true on the first tick of an action, ``first_of_chunk`` on that of a chunk;
    ``braking`` while the robot slows down after one.
    """

    position: FloatArray
    sequence: int
    index: int
    is_new_action: bool
    first_of_chunk: bool
    observation_stamp: int
    braking: bool = False


class SetPointStream:
    """Executes what it is given and judges nothing; times are ns of ROS time.

    A chunk that ends, or is cut off, is followed by braking from its last set-point with
    ``max_deceleration``, until another begins.
    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        # None while nothing is commanded.
        self._course: Course | None = None
        self._brake: Brake | None = None
        # What a trajectory controller was told last.
        self._followed: Followed | None = None
        self._active: Schedule | None = None
        self._next: Schedule | None = None
        self._next_waits = False
        self._index = -1

    @property
    def commanded(self) -> FloatArray | None:
        """The set-point (J,) sent last; None while nothing is commanded."""
        return None if self._course is None else self._course.position

    @property
    def active(self) -> Schedule | None:
        """The chunk that is executing."""
        return self._active

    @property
    def oldest_observation(self) -> int | None:
        """When (ns) the oldest observation was made behind a chunk that is executing or waiting."""
        chunks = (chunk for chunk in (self._active, self._next) if chunk is not None)
        return min((chunk.observation_stamp for chunk in chunks), default=None)

    @property
    def idle(self) -> bool:
        """Whether no chunk is executing or waiting."""
        return self._active is None and self._next is None

    @property
    def still(self) -> bool:
        """Whether the set-point does not move by itself."""
        return self._active is None and self._brake is None

    def rested(self, ros_now: int) -> float | None:
        """Seconds since braking ended, below 0 before that; None when the robot does not brake."""
        if self._brake is None:
            return None
        return (ros_now - self._brake.start) / NANOSECONDS - self._brake.duration

    def queue(self, schedule: Schedule, waits: bool = False) -> None:
        """Execute ``schedule`` as soon as it is due; it replaces one that waits.

        :param waits: whether it was judged after a forecast of what comes before it.
        """
        self._next, self._next_waits = schedule, waits

    def forget(self) -> None:
        """Command nothing."""
        self._followed = None
        self._course = self._brake = self._active = self._next = None
        self._index = -1

    def freeze(self) -> None:
        """Drop every chunk and keep the present set-point, at once."""
        self._brake = self._active = self._next = None
        self._index = -1

    def stay_at(self, position: FloatArray, ros_now: int) -> None:
        """Drop every chunk and command ``position`` (J,) from now on."""
        self.freeze()
        position.setflags(write=False)
        place = State(position, np.zeros_like(position))
        if self._followed is not None:
            place = self._followed.at(ros_now)
        hold = hold_trajectory(position, self._limits, place)
        self._followed = Followed(hold, ros_now, place)
        self._course = Course.at(position, ros_now)

    def slow_down(self) -> None:
        """Drop every chunk and brake from the present set-point."""
        self._begin_to_brake()
        self._active = self._next = None
        self._index = -1

    def advance(self, ros_now: int) -> SetPoint | None:
        """What to command now; None while nothing is commanded.

        :raises ValueError: when braking would leave the limits, which the checks rule out.
        """
        following = self._next
        if following is None or ros_now < following.start:
            return self._go_on(ros_now, False)
        if self._next_waits:
            # It was judged after all that comes before it, also what a late tick passes over.
            self._go_on(following.start - 1, False)
        self._active, self._next, self._index = following, None, -1
        self._brake = None
        return self._go_on(ros_now, True)

    def _go_on(self, ros_now: int, first: bool) -> SetPoint | None:
        active = self._active
        if active is not None and ros_now < active.end:
            return self._act(active, first, ros_now)
        if active is not None:
            if self._index >= 0:
                # A chunk that has begun ends with its last action, late or not.
                self._pass(active, len(active.positions) - 1, ros_now)
            self._begin_to_brake()
            self._active, self._index = None, -1
        if self._brake is not None:
            self._slow(self._brake, ros_now)
        return self.present()

    def behind(self, ros_now: int) -> int:
        """How many actions a tick at ``ros_now`` would move on by, 1 being the next one."""
        following = self._next
        begins = following is not None and ros_now >= following.start
        schedule, index = (following, -1) if begins else (self._active, self._index)
        if schedule is None:
            return 0
        return min(schedule.index_at(ros_now), len(schedule.positions) - 1) - index

    def present(self) -> SetPoint | None:
        """The set-point as it is, of no action."""
        if self._course is None:
            return None
        return SetPoint(
            self._course.position, 0, -1, False, False, 0, braking=self._brake is not None
        )

    def forecast(self, time: int, step: int, ros_now: int) -> Course | None:
        """The course until just before ``time``, if nothing new came.

        :param step: ns; exact at the last multiples of it before ``time``.
        """
        course = self._course
        if course is None:
            return None
        active, brake = self._active, self._brake
        speed = self._limits.max_velocity
        if active is not None:
            last = min(active.index_at(time - 1), len(active.positions) - 1)
            first = max(self._index + 1, 0) if time > ros_now else last + 1
            for index in range(first, last + 1):
                due = active.start + index * active.step
                course = course.moved(active.positions[index], speed, due, due, active.step)
            if time > active.end:
                brake = _brake_after(course, active.end - active.step, active.step, self._limits)
        if brake is not None:
            # Set-points brake from the end of the last action on, or do so already.
            begin = course.times[-1] if active is None else brake.start + brake.step
            for moment in sorted({begin, *(time - back * step for back in range(BEFORE + 1))}):
                gone = moment - course.times[-1]
                if gone > 0 and moment >= begin:
                    position, _ = brake.state((moment - brake.start) / NANOSECONDS)
                    course = course.moved(position, speed, moment, moment, gone)
        return course

    def trajectory(self, ros_now: int) -> Trajectory | None:
        """What is left of the executing chunk and of braking after it, of braking alone, or of the
        way to where the set-point stands still, as points in time from where the last one has led;
        None while nothing is commanded.
        """
        if self._course is None or self._followed is None:
            return None
        place = self._followed.at(ros_now)
        trajectory = self._points(self._course, ros_now, place)
        self._followed = Followed(trajectory, ros_now, place)
        return trajectory

    def _points(self, course: Course, ros_now: int, place: State) -> Trajectory:
        if self._brake is not None:
            return brake_trajectory(self._brake, ros_now, self._limits, place)
        active = self._active
        if active is None or ros_now >= active.end:
            return hold_trajectory(course.position, self._limits, place)
        first = max(active.index_at(ros_now), self._index)
        due = active.start + first * active.step
        return chunk_trajectory(
            active.positions[first:],
            course.at_time(due - active.step),
            due + active.step,
            active.step,
            ros_now,
            self._limits,
            place,
        )

    def _act(self, active: Schedule, first: bool, ros_now: int) -> SetPoint:
        # ROS time may step back a little; an action that is past is not replayed.
        index = max(active.index_at(ros_now), self._index)
        is_new = index != self._index
        self._pass(active, index, ros_now)
        return SetPoint(
            active.positions[index],
            active.sequence,
            active.offset + index,
            is_new,
            first,
            active.observation_stamp,
        )

    def _pass(self, active: Schedule, index: int, ros_now: int) -> None:
        # What a late tick, or one slower than the step, has passed over lies on the path too:
        # without it the next move would look like several steps in the time of one.
        for passed in range(self._index + 1, index + 1):
            due = active.start + passed * active.step
            self._move(active.positions[passed], due, ros_now, active.step)
        self._index = index

    def _move(self, position: FloatArray, due: int, ros_now: int, step: int) -> None:
        if self._course is None:
            self._course = Course.at(position, ros_now)
        else:
            self._course = self._course.moved(
                position, self._limits.max_velocity, due, ros_now, step
            )

    def _begin_to_brake(self) -> None:
        active, course = self._active, self._course
        if active is None or course is None or self._index < 0:
            return
        due = active.start + self._index * active.step
        self._brake = _brake_after(course, due, active.step, self._limits)

    def _slow(self, brake: Brake, ros_now: int) -> None:
        assert self._course is not None
        position, _ = brake.state((ros_now - brake.start) / NANOSECONDS)
        if self._limits.outside(position).any():
            raise ValueError(f"braking leads outside the limits, to {position.tolist()}")
        position = self._limits.rounded(position)
        position.setflags(write=False)
        gone = ros_now - self._course.times[-1]
        if gone > 0:
            self._move(position, ros_now, ros_now, gone)


def _brake_after(course: Course, due: int, step: int, limits: JointLimits) -> Brake | None:
    """Braking after the set-point of ``course`` at ``due`` ns; None when it does not move."""
    moved = course.at_time(due) - course.at_time(due - step)
    velocity = arrival_velocity(moved, step / NANOSECONDS, limits)
    if not np.any(velocity):
        return None
    return Brake(course.at_time(due), velocity, limits.max_deceleration, due, step)
