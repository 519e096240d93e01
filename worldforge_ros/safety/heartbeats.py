"""Which nodes are silent; the gate asks at every tick."""

from __future__ import annotations

import math

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.safety.reasons import Reason, ReasonCode, reason


class Heartbeats:
    """When each listed node was last heard, in the caller's monotonic seconds.

    Holds one number for each listed node and nothing else, whoever beats.
    """

    def __init__(self, names: tuple[str, ...], timeout: float) -> None:
        """
        :param names: nodes that must beat, without namespace; none switches the check off.
        :param timeout: seconds of silence that are too long.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` for a name that is empty or given twice, and
            for a timeout that is not a finite number above 0.
        """
        if "" in names or len(set(names)) != len(names):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "heartbeats",
                found=list(names),
                expected="names of nodes, each once",
            )
        if not (math.isfinite(timeout) and timeout > 0):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "heartbeat_timeout",
                found=timeout,
                expected="a finite number of seconds above 0",
            )
        self._timeout = timeout
        self._last: dict[str, float | None] = dict.fromkeys(names)

    def beat(self, name: str, now: float) -> None:
        """``name`` was heard at ``now``; a node that is not listed does not count."""
        if name in self._last:
            self._last[name] = now

    def missing(self, now: float) -> list[Reason]:
        """One ``HEARTBEAT_LOST`` for each listed node that is silent for too long or was never
        heard, in the order of the list.
        """
        return [
            reason(
                ReasonCode.HEARTBEAT_LOST,
                f"heartbeat of {name}",
                found="absent, never heard" if last is None else f"{now - last:.2f} s old",
                expected=f"at most {self._timeout:g} s old",
            )
            for name, last in self._last.items()
            if last is None or now - last > self._timeout
        ]
