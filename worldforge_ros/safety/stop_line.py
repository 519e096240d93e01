"""The protective stop: what its publishers say, and whether they are still there."""

from __future__ import annotations

import math

from worldforge_ros.safety.reasons import Reason, ReasonCode


class StopLine:
    """Fails closed like a wire: a publisher that was there and is gone counts as a stop.

    As twist_mux does with a lock whose publisher died. Times are the caller's monotonic seconds.
    """

    def __init__(self, lease: float | None, required: bool) -> None:
        """:param lease: seconds of silence that count as a loss; None: silence is fine.
        :param required: whether there has to be a publisher at all.
        """
        self.configure(lease, required)
        self._count = 0
        self._lost = ""
        self._pressed = False
        self._heard: float | None = None

    def configure(self, lease: float | None, required: bool) -> None:
        """Change the conditions; what was heard and lost stays."""
        self._lease = math.inf if lease is None else lease
        self._required = required

    def message(self, pressed: bool, now: float) -> None:
        """One of the publishers says that the stop is ``pressed``, or not."""
        self._heard = now
        self._pressed = pressed
        # What a publisher said before it disappeared may arrive after it has.
        if not pressed and self._count == 1:
            self._lost = ""

    def publishers(self, count: int) -> None:
        """There are ``count`` publishers now."""
        if count < self._count:
            self._lost = f"one of its {self._count} publishers disappeared"
        self._count = count

    def reason(self, now: float) -> Reason | None:
        """Why the robot must not move; None when nobody stops it."""
        if self._pressed:
            return Reason(
                ReasonCode.PROTECTIVE_STOP, "the protective stop is active; expected it released"
            )
        if self._lost:
            return _lost(self._lost)
        if self._count > 1:
            # A message does not say whose it is: one that is released would speak for one that is
            # pressed, or dead.
            return _lost(f"it has {self._count} publishers, which cannot be told apart")
        if self._heard is not None and not now - self._heard <= self._lease:
            return _lost(f"its publisher has been silent for {now - self._heard:.3f} s")
        if self._required and (self._heard is None or self._count == 0):
            return _lost("nobody publishes it")
        return None


def _lost(found: str) -> Reason:
    return Reason(
        ReasonCode.PROTECTIVE_STOP_LOST,
        f"the protective stop cannot be heard: {found}; expected a publisher that says it is "
        "released",
    )
