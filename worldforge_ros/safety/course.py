"""Where set-points have been: the path that a further chunk has to continue."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.safety.limits import FloatArray

BEFORE = 3
"""Set-points before the first new one that a third difference, the jerk, looks at."""
_MOST_KEPT = 1024
_KEPT_STEPS = BEFORE + 1
_KEPT_AT_LEAST = NANOSECONDS


@dataclass(frozen=True, eq=False)
class Course:
    """The set-points of the last few steps, and how far all of them have wandered.

    ``times`` (ns of ROS time, rising) and ``points`` (J,) in m or rad are the *path*: a straight
    line from each to the next, standing still before the first and after the last. A time is when
    its action was due, not when a tick got round to it, so that plans of one motion join without a
    kink whatever the phase of their actions.

    ``high`` and ``low`` are the *envelope* at ``time``: ``high`` at time t is the minimum over all
    past set-points s(u) of s(u) + max_velocity (t - u), ``low`` likewise the maximum of
    s(u) - max_velocity (t - u): a set-point between ``low - b`` and ``high + b`` is never further
    than b from what the velocity limit allows since any past moment. Each is one number per joint,
    whatever the length of the past.
    """

    times: tuple[int, ...]
    points: tuple[FloatArray, ...]
    high: FloatArray
    low: FloatArray
    time: int

    @classmethod
    def at(cls, position: FloatArray, time: int) -> Course:
        """A course without a past: the robot stands at ``position`` (J,) at ``time`` ns."""
        return cls((time,), (position,), position, position, time)

    @property
    def position(self) -> FloatArray:
        """The present set-point (J,)."""
        return self.points[-1]

    def reach(self, max_velocity: FloatArray, time: int) -> tuple[FloatArray, FloatArray]:
        """``low`` and ``high`` at ``time`` ns, the present set-point being kept until then."""
        travel = max_velocity * (max(0, time - self.time) / NANOSECONDS)
        low = np.maximum(self.low - travel, self.position)
        high = np.minimum(self.high + travel, self.position)
        return low, high

    def moved(
        self, position: FloatArray, max_velocity: FloatArray, due: int, time: int, step: int
    ) -> Course:
        """The course after the set-point became ``position`` (J,) at ``time`` ns.

        :param due: ns, when it was due.
        :param step: ns, how long it was given to get there.
        """
        low, high = self.reach(max_velocity, time)
        keep = bisect_right(self.times, due - 1)
        times, points = self.times[:keep], self.points[:keep]
        if not keep or times[-1] < due - step:
            # The path was followed, or its end held, until the move began.
            times, points = (*times, due - step), (*points, self.at_time(due - step))
        old = bisect_right(times, due - max(_KEPT_STEPS * step, _KEPT_AT_LEAST)) - 1
        first = max(0, old, len(times) - _MOST_KEPT)
        return Course(
            (*times[first:], due),
            (*points[first:], position),
            np.minimum(high, position),
            np.maximum(low, position),
            max(time, self.time),
        )

    def at_time(self, time: int) -> FloatArray:
        """The path (J,) at ``time`` ns."""
        after = bisect_right(self.times, time)
        if after == 0:
            return self.points[0]
        if after == len(self.times):
            return self.points[-1]
        begin, end = self.times[after - 1], self.times[after]
        share = (time - begin) / (end - begin)
        point: FloatArray = (1.0 - share) * self.points[after - 1] + share * self.points[after]
        return point

    def before(self, time: int, step: int) -> FloatArray:
        """The path (:data:`BEFORE`, J) at the last multiples of ``step`` before ``time``, oldest
        first; both in ns.
        """
        return np.stack([self.at_time(time - k * step) for k in range(BEFORE, 0, -1)])
