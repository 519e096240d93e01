"""When physics steps are due: simulated time beside wall time."""

from __future__ import annotations

from collections import deque

NANOSECONDS = 1_000_000_000
SLIP = 1.0
"""Simulated seconds behind schedule from which time slips instead of being caught up with."""
LONGEST_WAIT = 0.1
"""Wall seconds that time stands still for something at most. A gate that hears no new joint state
for longer, 0.25 s by default, takes the robot for dead."""
WINDOW = 5.0
"""Wall seconds over which the achieved rate is measured."""


class Pace:
    """The schedule of a simulation that runs at ``rate`` times real time.

    All moments are nanoseconds of one monotonic clock, ``steps`` count from its start.
    """

    def __init__(self, step: float, rate: float, now: int) -> None:
        """:param step: simulated seconds of one physics step."""
        self._step = step
        self._rate = rate
        self._started = now
        self._waits_at: tuple[int, int] = (-1, now)
        self._seen: deque[tuple[int, int]] = deque([(now, 0)])

    def due(self, now: int, steps: int) -> int:
        """Steps to run now, ``steps`` being done: none when early.

        A machine that cannot keep the rate lets time slip instead of running ever further behind.
        """
        elapsed = (now - self._started) / NANOSECONDS * self._rate
        due = int(elapsed / self._step) - steps
        if due * self._step > SLIP:
            self._resume(now, steps + 1)
            return 1
        return max(due, 0)

    def wait(self, now: int, steps: int) -> bool:
        """Let time stand still with ``steps`` done; False once that has lasted long enough."""
        if self._waits_at[0] != steps:
            self._waits_at = (steps, now)
        if now - self._waits_at[1] > LONGEST_WAIT * NANOSECONDS:
            return False
        self._resume(now, steps)
        return True

    def _resume(self, now: int, steps: int) -> None:
        """Go on from here: ``steps`` are what is due now."""
        self._started = now - round(steps * self._step / self._rate * NANOSECONDS)

    def note(self, now: int, steps: int) -> None:
        """Remember for :meth:`factor` that ``steps`` are done."""
        self._seen.append((now, steps))
        while now - self._seen[1][0] > WINDOW * NANOSECONDS and len(self._seen) > 2:
            self._seen.popleft()

    def factor(self) -> float:
        """Simulated seconds per wall second, over the last noted :data:`WINDOW`; NaN at first."""
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if last <= first:
            return float("nan")
        return (after - before) * self._step / ((last - first) / NANOSECONDS)
