"""How often messages of a topic arrive, and how old the newest is."""

from __future__ import annotations

import struct
from collections import deque

WINDOW = 5.0
"""Seconds over which a rate is taken."""
MOST_ARRIVALS = 4096
"""Arrivals that are kept; more than that in a window make it shorter and the rate no less true."""

_BIG, _LITTLE = struct.Struct(">iI"), struct.Struct("<iI")
_ENCAPSULATION = 4
"""Bytes before a serialised message; the second is even for big endian, odd for little."""


def leading_stamp(data: bytes) -> float | None:
    """The stamp in s that a serialised message begins with, as each with a header does.

    :param data: CDR with its encapsulation header (OMG DDS-RTPS 10.2).
    :returns: None where there are too few bytes, and for 0, which is no time.
    """
    if len(data) < _ENCAPSULATION + _LITTLE.size:
        return None
    form = _LITTLE if data[1] & 1 else _BIG
    seconds, nanoseconds = form.unpack_from(data, _ENCAPSULATION)
    return seconds + nanoseconds * 1e-9 or None


class Arrivals:
    """When messages came, in the caller's monotonic seconds."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=MOST_ARRIVALS)
        self.count = 0
        """Messages since the start."""
        self.stamp: float | None = None
        """Stamp of the newest message in s of ROS time, None where it has none."""

    def add(self, time: float, stamp: float | None) -> None:
        """A message came at ``time``."""
        # Never back: what says when a message came may be another clock.
        self._times.append(max(time, self._times[-1]) if self._times else time)
        self.count += 1
        self.stamp = stamp

    def age(self, now: float) -> float | None:
        """Seconds since the newest message came, None before the first."""
        return max(now - self._times[-1], 0.0) if self._times else None

    def rate(self, now: float) -> float | None:
        """Messages per second in the window that ends ``now``, None with fewer than two in it.

        n messages are n - 1 intervals between the first and the last. Once the next one is due and
        does not come, they are n intervals from the first until now, so that the rate falls.
        """
        while len(self._times) > 1 and self._times[0] < now - self._window:
            # The newest stays, for its age.
            self._times.popleft()
        number = len(self._times)
        if number < 2:
            return None
        first, last = self._times[0], self._times[-1]
        between = (number - 1) / max(last - first, 1e-9)
        return min(between, number / max(now - first, 1e-9))
