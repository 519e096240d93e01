"""Choosing one candidate: the planner's only decision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch

PLANNERS = ("scored", "first", "random")
"""``scored``: lowest world-model cost. ``first``: the policy alone. ``random``: any candidate."""


@dataclass(frozen=True)
class Choice:
    """The chosen candidate; ``margin`` is the runner-up's cost minus the chosen one's, or NaN."""

    index: int
    cost: float
    margin: float


def needs_costs(planner: str) -> bool:
    """Whether ``planner`` looks at costs.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown planner.
    """
    if planner not in PLANNERS:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "planner",
            found=f"'{planner}'",
            expected=f"one of {', '.join(PLANNERS)}",
        )
    return planner == "scored"


def choose(
    planner: str,
    costs: npt.ArrayLike | None,
    num_candidates: int,
    rng: np.random.Generator,
    reachable: npt.ArrayLike | None = None,
) -> Choice:
    """Choose among ``num_candidates`` candidates.

    :param costs: (S,) lower is better, NaN marks a candidate without a cost; None when not scored.
    :param reachable: (S,) which candidates may be chosen; None for all.
    :returns: for ``scored`` the first minimum; a candidate without a cost is never chosen by it.
    :raises WorldForgeError: ``NO_CANDIDATES``, ``NO_REACHABLE_CANDIDATE``, ``COSTS_INVALID`` when
        there is not exactly one cost for each candidate or no reachable one has a finite cost.
    """
    scored = needs_costs(planner)
    if num_candidates < 1:
        raise mismatch(
            ErrorCode.NO_CANDIDATES, "num_candidates", found=num_candidates, expected="1 or more"
        )
    allowed = np.ones(num_candidates, bool) if reachable is None else np.asarray(reachable, bool)
    if not allowed.any():
        raise mismatch(
            ErrorCode.NO_REACHABLE_CANDIDATE,
            "reachable candidates",
            found=f"none of {num_candidates}",
            expected="at least one that keeps every limit from the present set-point on",
        )
    values = None if costs is None else np.asarray(costs, dtype=np.float64)
    if values is not None and values.shape != (num_candidates,):
        raise mismatch(
            ErrorCode.COSTS_INVALID,
            "costs",
            found=f"shape {values.shape}",
            expected=f"({num_candidates},), one for each candidate",
        )
    if not scored:
        places = np.flatnonzero(allowed)
        index = int(places[0] if planner == "first" else rng.choice(places))
        return Choice(index, math.nan if values is None else float(values[index]), math.nan)
    if values is None or not np.isfinite(values[allowed]).any():
        raise mismatch(
            ErrorCode.COSTS_INVALID,
            "costs",
            found="none" if values is None else "no finite one among the reachable",
            expected="at least one finite cost to choose by",
        )
    comparable = np.where(np.isfinite(values) & allowed, values, np.inf)
    index = int(np.argmin(comparable))
    others = np.delete(comparable, index)
    runner_up = float(others.min()) if others.size else math.inf
    margin = runner_up - float(values[index]) if math.isfinite(runner_up) else math.nan
    return Choice(index, float(values[index]), margin)
