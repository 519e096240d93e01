"""How far a task has come, as its simulator measures it for people and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of progress: from 0 to ``full``, solved ``above`` a value.

    ``name`` is its key in ``summary.json`` and its topic below the simulator's name; ``pattern``
    formats a value for people.
    """

    name: str
    full: float
    above: float
    pattern: str

    def solved(self, value: float | None) -> bool:
        """Whether ``value`` means that the task is solved; an unknown value does not."""
        return value is not None and value > self.above

    def text(self, value: float | None) -> str:
        """``value`` for people; ``-`` when it is unknown."""
        return "-" if value is None else self.pattern.format(value)


COVERAGE = Figure("coverage", full=1.0, above=0.95, pattern="{:.0%}")
"""PushT: share of the goal area that the block covers; gym-pusht's success threshold."""
REWARD = Figure("reward", full=4.0, above=3.0, pattern="{:g}")
"""ALOHA: 1 touched, 2 lifted, 3 at the other gripper, 4 handed over (gym-aloha's levels)."""
UNMEASURED = Figure("progress", full=1.0, above=1.0, pattern="{:.0%}")
"""A robot without a simulator: nobody measures, so that the value is always unknown."""

FIGURES: Mapping[str, Figure] = MappingProxyType(
    {f.name: f for f in (COVERAGE, REWARD, UNMEASURED)}
)
"""Every figure by name."""


def figure_of(summary: Mapping[str, Any]) -> Figure:
    """The figure whose key a ``summary.json`` has."""
    return next(figure for name, figure in FIGURES.items() if name in summary)
