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

    def __init__(self, limit: float | None, timeout: float) -> None:
        """:param limit: highest surprise that is normal, None switches the check off.
        :param timeout: seconds of silence, and age of the newer observation, that are too long.
        """
        self.configure(limit, timeout)
        self.forget()

    def configure(self, limit: float | None, timeout: float) -> None:
        """Change what is too high and too long."""
        self._limit = limit
        self._timeout = timeout

    def forget(self) -> None:
        """Stamps of before mean nothing any more, as when ROS time went back."""
        self._value = math.nan
        self._stamp: int | None = None
        self._arrival = -math.inf
        self._last_high: int | None = None

    def heard(self, value: float, stamp: int, now: float, latest: int) -> None:
        """The block that ended at ``stamp`` was ``value`` surprising; one without a number counts
        as too high.

        :param latest: highest credible stamp, ns; what lies beyond it, and what is not newer than
            the newest, is no sign of life.
        """
        if stamp > latest or (self._stamp is not None and stamp <= self._stamp):
            return
        self._value, self._stamp, self._arrival = value, stamp, now
        if self._limit is not None and not value <= self._limit:
            self._last_high = stamp

    def flaw(self, ros_now: int, now: float) -> Reason | None:
        """Why the robot must not move now."""
        if self._limit is None:
            return None
        if self._stamp is None:
            return self._reason("surprise is absent, never heard", "one a block")
        silent = now - self._arrival
        age = (ros_now - self._stamp) / NANOSECONDS
        if not (silent <= self._timeout and age <= self._timeout):
            return self._reason(
                f"newest surprise came {silent:.3f} s ago and is about {age:.3f} s ago",
                f"at most {self._timeout:g} s",
            )
        if not self._value <= self._limit:
            return self._reason(
                f"surprise of the block before {self._stamp / NANOSECONDS:.3f} s is "
                f"{self._value:.2f}",
                f"at most {self._limit:g}",
            )
        return None

    def outdated(self, observation_stamp: int) -> Reason | None:
        """Why a plan from an observation of that time is about a world that is gone."""
        if self._limit is None or self._last_high is None or observation_stamp > self._last_high:
            return None
        before = (self._last_high - observation_stamp) / NANOSECONDS
        return self._reason(
            f"observation behind the chunk is {before:.3f} s before the end of the last surprise",
            "a later one",
        )

    @staticmethod
    def _reason(found: str, expected: str) -> Reason:
        return Reason(ReasonCode.SURPRISED, f"{found}; expected {expected}")


def credible(ros_now: int, tolerance: float) -> int:
    """The latest stamp, ns, that an observation can have at ``ros_now``."""
    return ros_now + seconds_to_ns(tolerance)
