"""Statistics of evaluations: bootstrap intervals over episodes and rank correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: npt.ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of ``values`` (N,) and its 95 % percentile bootstrap interval, the same for the same
    input.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when empty or not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "values",
            found=f"shape {sample.shape}",
            expected="a list of finite numbers",
        )
    rng = np.random.default_rng(seed)
    drawn = sample[rng.integers(sample.size, size=(resamples, sample.size))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high))


def ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Ranks (N,) from 1; equal values share the mean of their ranks."""
    sample = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: npt.NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return shared


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two lists; NaN when one of them is constant.

    The Pearson correlation of the ranks, ties sharing their mean rank.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for different lengths or fewer than two values.
    """
    a, b = ranks(first), ranks(second)
    if a.shape != b.shape or a.size < 2:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "lists to correlate",
            found=f"{a.size} and {b.size} values",
            expected="the same number, two or more",
        )
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0.0 else math.nan
