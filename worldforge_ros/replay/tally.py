"""Count, mean, extremes and quantiles of a stream of numbers in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

ACCURACY: Final = 0.01
"""Largest relative error of a quantile; count, mean, least and greatest value are exact."""

SMALLEST: Final = 1e-12
"""A value nearer to zero than this counts as zero in quantiles."""

_GROWTH: Final = (1.0 + ACCURACY) / (1.0 - ACCURACY)
_LOG_GROWTH: Final = math.log(_GROWTH)
# The point of a bin with the least relative distance to both of its ends.
_CENTRE: Final = 2.0 / (1.0 + _GROWTH)


class Tally:
    """Numbers as counts in logarithmic bins, the same for every order in which they come.

    Bins as in Masson, Rim, Lee: DDSketch, VLDB 2019: bin ``i`` holds ``g^(i-1) < |x| <= g^i``, one
    set of bins for each sign. A double has about 37 000 of them, of which a stream fills some
    hundred. The sum is exact (Shewchuk's expansions, as in :func:`math.fsum`), so that it too does
    not depend on the order or on how parts were merged.
    """

    def __init__(self) -> None:
        self.count = 0
        self.min = math.inf
        self.max = -math.inf
        self._sum: list[float] = []
        self._zero = 0
        self._above: dict[int, int] = {}
        self._below: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Count ``value``.

        :raises ValueError: when it is not finite.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"value is {value}; expected a finite number")
        self.count += 1
        self.min = min(self.min, value)
        self.max = max(self.max, value)
        self._add_to_sum(value)
        size = abs(value)
        if size < SMALLEST:
            self._zero += 1
            return
        bins = self._above if value > 0.0 else self._below
        index = math.ceil(math.log(size) / _LOG_GROWTH)
        bins[index] = bins.get(index, 0) + 1

    def extend(self, values: Iterable[float]) -> None:
        """Count every one of ``values``.

        :raises ValueError: at the first one that is not finite.
        """
        for value in values:
            self.add(value)

    def merge(self, other: Tally) -> None:
        """Count all that ``other`` counted."""
        self.count += other.count
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)
        for part in list(other._sum):
            self._add_to_sum(part)
        self._zero += other._zero
        for mine, theirs in ((self._above, other._above), (self._below, other._below)):
            for index, count in list(theirs.items()):
                mine[index] = mine.get(index, 0) + count

    @property
    def mean(self) -> float | None:
        """Arithmetic mean; ``None`` without a value."""
        return math.fsum(self._sum) / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """Quantile ``q`` in [0, 1], between neighbours as :func:`numpy.quantile` does, within
        :data:`ACCURACY` of each; ``None`` without a value.

        :raises ValueError: when ``q`` is not in [0, 1].
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"quantile is {q}; expected 0 to 1")
        if not self.count:
            return None
        place = q * (self.count - 1)
        below = math.floor(place)
        low = self._at(below)
        high = low if place == below else self._at(below + 1)
        return low + (place - below) * (high - low)

    def steps(self) -> list[tuple[float, int]]:
        """What was counted, as ``(value, count)`` with rising values, each within
        :data:`ACCURACY`."""
        found = [(-_value(i), n) for i, n in sorted(self._below.items(), reverse=True)]
        if self._zero:
            found.append((0.0, self._zero))
        found += [(_value(i), n) for i, n in sorted(self._above.items())]
        return [(min(max(value, self.min), self.max), count) for value, count in found]

    def document(self) -> dict[str, Any]:
        """Everything as JSON; the numbers are ``None`` without a value."""
        return {
            "count": self.count,
            "mean": self.mean,
            "min": self.min if self.count else None,
            "max": self.max if self.count else None,
            "p50": self.quantile(0.50),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "bins": {
                "zero": self._zero,
                "above": [list(item) for item in sorted(self._above.items())],
                "below": [list(item) for item in sorted(self._below.items())],
                "sum": _canonical(self._sum),
            },
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Tally:
        """The tally that made ``document``.

        :raises ValueError: when it is not such a document.
        """
        tally = cls()
        try:
            bins = document["bins"]
            tally.count = int(document["count"])
            if tally.count:
                tally.min, tally.max = float(document["min"]), float(document["max"])
            tally._zero = int(bins["zero"])
            tally._above = {int(index): int(count) for index, count in bins["above"]}
            tally._below = {int(index): int(count) for index, count in bins["below"]}
            tally._sum = [float(part) for part in bins["sum"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a tally: {error!r}") from error
        counted = tally._zero + sum(tally._above.values()) + sum(tally._below.values())
        if counted != tally.count:
            raise ValueError(f"bins of a tally hold {counted} values; expected {tally.count}")
        return tally

    def _at(self, rank: int) -> float:
        """The value with ``rank`` values before it."""
        seen = 0
        for value, count in self.steps():
            seen += count
            if rank < seen:
                return value
        return self.max

    def _add_to_sum(self, value: float) -> None:
        kept = []
        for part in self._sum:
            if abs(value) < abs(part):
                value, part = part, value
            total = value + part
            error = part - (total - value)
            if error:
                kept.append(error)
            value = total
        self._sum = [*kept, value]


def _value(index: int) -> float:
    return math.exp(index * _LOG_GROWTH) * _CENTRE


def _canonical(parts: list[float]) -> list[float]:
    """An expansion that depends on the sum alone: what is nearest, then of the rest and so on."""
    found: list[float] = []
    rest = list(parts)
    while (part := math.fsum(rest)) != 0.0:
        found.append(part)
        rest.append(-part)
    return found
