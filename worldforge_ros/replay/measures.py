"""What is counted while a bag is replayed, in memory that does not grow with the bag."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.replay.tally import Tally

FloatArray = npt.NDArray[np.float64]

PREDICTORS = ("first", "chosen", "nearest", "hold", "repeat")
"""The policy's first candidate, the planner's choice, the candidate nearest to what was recorded,
and two baselines: the last set-point stays, and the recorded motion of the last horizon goes on."""


class Thinned:
    """Rows of numbers, thinned evenly to at most ``most``: when full, every second one goes."""

    def __init__(self, columns: Sequence[str], most: int) -> None:
        self._columns = tuple(columns)
        self._most = most
        self._rows: list[tuple[Any, ...]] = []
        self._stride = 1
        self._seen = 0

    def add(self, **values: Any) -> None:
        """Append a row; a column without a value is None."""
        if self._seen % self._stride == 0:
            self._rows.append(tuple(_plain(values.get(name)) for name in self._columns))
            if len(self._rows) > self._most:
                self._rows = self._rows[::2]
                self._stride *= 2
        self._seen += 1

    def document(self) -> dict[str, list[Any]]:
        """The rows as columns."""
        return {name: [row[i] for row in self._rows] for i, name in enumerate(self._columns)}


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


class PolicyErrors:
    """Open-loop errors of predicted set-points (H, J) against the recorded ones."""

    def __init__(self, horizon: int, joints: int) -> None:
        self._shape = (horizon, joints)
        self.cycles = 0
        self._sums: dict[str, list[Any]] = {}
        self._overlap = np.zeros(joints)
        self._overlaps = 0
        self._smooth: dict[str, list[Any]] = {}

    def add(self, recorded: FloatArray, predictions: Mapping[str, FloatArray]) -> None:
        """One cycle's ``predictions``, each compared with its own recorded set-points' first rows.

        All are (H, J) in m or rad; only cycles for which every prediction is there are counted.
        """
        self.cycles += 1
        for name, predicted in predictions.items():
            self.compare(name, recorded, predicted)

    def compare(self, name: str, recorded: FloatArray, predicted: FloatArray) -> None:
        """One prediction (H, J) against what was recorded at the same times."""
        gap = predicted - recorded
        held = self._sums.setdefault(name, [0, np.zeros(self._shape), np.zeros(self._shape)])
        held[0] += 1
        held[1] += np.abs(gap)
        held[2] += np.square(gap)

    def overlap(self, gaps: FloatArray) -> None:
        """Differences (N, J) of a chunk from the one before it at the times that both cover."""
        self._overlaps += len(gaps)
        self._overlap += np.square(gaps).sum(axis=0)

    def smooth(self, name: str, path: FloatArray, step: float) -> None:
        """Accelerations and jerks of set-points (N, J), ``step`` seconds apart."""
        joints = self._shape[1]
        held = self._smooth.setdefault(name, [0, np.zeros(joints), np.zeros(joints)])
        acceleration = np.diff(path, 2, axis=0) / step**2
        jerk = np.diff(path, 3, axis=0) / step**3
        if not len(jerk):
            return
        held[0] += 1
        held[1] += np.square(acceleration).mean(axis=0)
        held[2] += np.square(jerk).mean(axis=0)

    def document(self) -> dict[str, Any]:
        """Sums by predictor, see the schema of an episode."""
        horizon = self._shape[0]
        return {
            "cycles": self.cycles,
            "errors": {
                name: {
                    "count": [count] * horizon,
                    "sum_abs": absolute.tolist(),
                    "sum_sq": squared.tolist(),
                }
                for name, (count, absolute, squared) in self._sums.items()
            },
            "overlap": {"count": self._overlaps, "sum_sq": self._overlap.tolist()},
            "smoothness": {
                name: {
                    "count": count,
                    "sum_sq_acceleration": acceleration.tolist(),
                    "sum_sq_jerk": jerk.tolist(),
                }
                for name, (count, acceleration, jerk) in self._smooth.items()
            },
        }


class Spread:
    """Standard deviation of rows (J,) seen one by one (Welford's algorithm)."""

    def __init__(self, joints: int) -> None:
        self._count = 0
        self._mean: FloatArray = np.zeros(joints)
        self._squares: FloatArray = np.zeros(joints)

    def add(self, row: FloatArray) -> None:
        """Count a row."""
        self._count += 1
        gap = row - self._mean
        self._mean = self._mean + gap / self._count
        self._squares = self._squares + gap * (row - self._mean)

    @property
    def std(self) -> list[float]:
        """Population standard deviation (J,)."""
        return [float(v) for v in np.sqrt(self._squares / max(self._count, 1))]


class Ranks:
    """How the world model ranks what was recorded, and what its costs are worth."""

    def __init__(self) -> None:
        self.cycles = 0
        self._candidates = 0
        self._rank = Tally()
        self._relative = 0.0
        self._margin = Tally()
        self._spread = Tally()
        self._pairs = Thinned(("recorded_cost", "realised"), 2000)

    def decision(self, costs: FloatArray, margin: float) -> None:
        """Costs (S,) of a cycle's candidates, NaN where there is none."""
        known = costs[np.isfinite(costs)]
        if known.size:
            self._spread.add(float(known.max() - known.min()))
        if math.isfinite(margin):
            self._margin.add(margin)

    def recorded(self, cost: float, costs: FloatArray) -> int:
        """The cost of the recorded actions among those of the candidates (S,); returns the rank, 1
        for cheaper than every candidate.
        """
        known = costs[np.isfinite(costs)]
        rank = 1 + int(np.sum(known < cost))
        self.cycles += 1
        self._candidates = max(self._candidates, int(known.size))
        self._rank.add(rank)
        self._relative += (rank - 1) / max(int(known.size), 1)
        return rank

    def outcome(self, recorded_cost: float, realised: float | None) -> None:
        """What the recorded actions were predicted to cost, and the cost of what was really seen at
        their end.
        """
        if realised is not None and math.isfinite(realised):
            self._pairs.add(recorded_cost=recorded_cost, realised=realised)

    def document(self, objective: str) -> dict[str, Any]:
        """The schema's ``scores``."""
        return {
            "cycles": self.cycles,
            "candidates": self._candidates,
            "rank": self._rank.document(),
            "relative_rank_sum": self._relative,
            "margin": self._margin.document(),
            "spread": self._spread.document(),
            "pairs": self._pairs.document(),
            "objective": objective,
        }
