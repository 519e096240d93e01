"""Whether the world still does what the world model expects; off by default.

The world model's side publishes how surprising each block was. Too much of it, or silence about
it, makes the gate hold: what was planned before the surprise is about a world that is gone.
"""

from __future__ import annotations

import math

from worldforge_ros.observation import NANOSECONDS, seconds_to_ns
from worldforge_ros.safety.reasons import Reason, ReasonCode


class SurpriseWatch:
    """Judges standardised surprises; times as in :class:`~worldforge_ros.safety.gate.SafetyGate`.

    Remembers the newest surprise and when the last one was too high, nothing else.
    """

    def __init__(self, limit: float | None, timeout: float, tolerance: float) -> None:
        """As :meth:`configure`."""
        self.configure(limit, timeout, tolerance)

    def configure(self, limit: float | None, timeout: float, tolerance: float) -> None:
        """Begin anew: what was heard before was judged by another limit.

        :param limit: highest surprise that is normal, None switches the check off.
        :param timeout: seconds of silence, and age of the newer observation, that are too long.
        :param tolerance: seconds that the newer observation may lie in the future.
        """
        self._limit = limit
        self._timeout = timeout
        self._tolerance = seconds_to_ns(tolerance)
        self.forget()

    def forget(self) -> None:
        """Stamps of before mean nothing any more, as when ROS time went back."""
        self._value = math.nan
        self._stamp: int | None = None
        self._arrival = -math.inf
        self._last_high: int | None = None

    def heard(self, value: float, stamp: int, ros_now: int, now: float) -> None:
        """The block that ended at ``stamp`` was ``value`` surprising; one without a finite number
        counts as too high.

        A block of the future is no sign of life, nor is one that is not newer than the newest; but
        what is too high counts in whatever order it comes, and of several words about one block the
        worst.
        """
        if self._limit is None or stamp > ros_now + self._tolerance:
            return
        self._notice_clock(ros_now)
        high = not (math.isfinite(value) and value <= self._limit)
        if high:
            self._last_high = stamp if self._last_high is None else max(self._last_high, stamp)
        if self._stamp is None or stamp > self._stamp:
            self._value, self._stamp, self._arrival = value, stamp, now
        elif high and stamp == self._stamp:
            self._value = value

    def _notice_clock(self, ros_now: int) -> None:
        """What was heard of a time that has not come yet was heard before ROS time went back."""
        if self._stamp is not None and self._stamp > ros_now + self._tolerance:
            self.forget()

    def flaw(self, planned_from: int | None, ros_now: int, now: float) -> Reason | None:
        """Why the robot must not move now, by a plan from an observation of the time
        ``planned_from`` where there is one: what was planned before the end of a surprise is about
        a world that is gone.
        """
        if self._limit is None:
            return None
        self._notice_clock(ros_now)
        if self._stamp is None:
            return self._reason("surprise is absent, never heard", "one a block")
        silent = now - self._arrival
        age = (ros_now - self._stamp) / NANOSECONDS
        if not (silent <= self._timeout and age <= self._timeout):
            return self._reason(
                f"newest surprise came {silent:.3f} s ago and is about {age:.3f} s ago",
                f"at most {self._timeout:g} s",
            )
        if not (math.isfinite(self._value) and self._value <= self._limit):
            return self._reason(
                f"surprise of the block before {self._stamp / NANOSECONDS:.3f} s is "
                f"{self._value:.2f}",
                f"at most {self._limit:g}",
            )
        high = self._last_high
        if planned_from is None or high is None or planned_from > high:
            return None
        before = (high - planned_from) / NANOSECONDS
        return self._reason(
            f"observation behind the chunk is {before:.3f} s before the end of the last surprise",
            "a later one",
        )

    @staticmethod
    def _reason(found: str, expected: str) -> Reason:
        return Reason(ReasonCode.SURPRISED, f"{found}; expected {expected}")
