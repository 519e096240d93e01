"""How evenly the control loop runs."""

from __future__ import annotations

import numpy as np


class Periods:
    """The last ``count`` moments of a loop, in memory that does not grow."""

    def __init__(self, count: int) -> None:
        self._moments = np.zeros(count)
        self._seen = 0

    def add(self, now: float) -> None:
        """The loop came round at ``now``, monotonic seconds."""
        self._moments[self._seen % len(self._moments)] = now
        self._seen += 1

    def summary(self) -> dict[str, str]:
        """Milliseconds between two rounds: median, 99 % and longest; empty before the third."""
        moments = np.sort(self._moments[: min(self._seen, len(self._moments))].copy())
        if len(moments) < 3:
            return {}
        periods = np.diff(moments) * 1e3
        values = (*np.percentile(periods, [50, 99]), periods.max())
        names = ("control_period_ms_p50", "control_period_ms_p99", "control_period_ms_max")
        return {name: f"{value:.2f}" for name, value in zip(names, values, strict=True)}
