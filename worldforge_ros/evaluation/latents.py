"""What the latents of a world model know, and how far ahead they hold: probe and drift.

Pure functions of embeddings; where those come from (simulated episodes, recordings) is the
caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[FloatArray, FloatArray], FloatArray]
"""Embeddings (S, D) at a start and blocks (S, T, A) after it, to embeddings (S, T, D) ahead."""

POSE_FIELDS = ("agent_x", "agent_y", "block_x", "block_y", "sin_angle", "cos_angle")
RESAMPLES = 2000


@dataclass(frozen=True)
class Clip:
    """One episode at block rate: ``embeddings`` (N, D), ``blocks`` (N - 1, A) in between, true
    ``states`` (N, n).
    """

    embeddings: FloatArray
    blocks: FloatArray
    states: FloatArray


@dataclass(frozen=True)
class Drift:
    """Prediction error against horizon, in units of the mean squared distance of a random pair.

    Arrays are over ``horizon`` (blocks): ``open_loop`` predicts on from its own predictions,
    ``closed_loop`` one block from what was seen, ``shuffled`` open loop with another clip's
    actions, ``unchanged`` says that nothing moves. ``skill`` is 1 - open_loop / unchanged.
    ``drift_horizon`` is the largest horizon up to which the lower 95 % bootstrap bounds, over
    clips, of the skill and of shuffled - open_loop are above 0.
    """

    horizon: tuple[int, ...]
    open_loop: FloatArray
    closed_loop: FloatArray
    shuffled: FloatArray
    unchanged: FloatArray
    skill: FloatArray
    skill_low: FloatArray
    drift_horizon: int


def pose_features(states: FloatArray) -> FloatArray:
    """(N, 5) states to (N, 6), see :data:`POSE_FIELDS`: an angle has no linear scale."""
    angle = states[:, 4:]
    return np.concatenate([states[:, :4], np.sin(angle), np.cos(angle)], axis=1)


def probe_r2(
    train: FloatArray, train_states: FloatArray, test: FloatArray, test_states: FloatArray
) -> dict[str, float]:
    """R^2 on the test rows of a linear probe from embeddings (N, D) to the pose."""
    targets, expected = pose_features(train_states), pose_features(test_states)

    def extended(rows: FloatArray) -> FloatArray:
        return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)

    inputs = extended(train)
    gram = inputs.T @ inputs + 1e-6 * len(inputs) * np.eye(inputs.shape[1])
    found = extended(test) @ np.linalg.solve(gram, inputs.T @ targets)
    residual = np.square(found - expected).sum(axis=0)
    total = np.square(expected - expected.mean(axis=0)).sum(axis=0)
    return dict(zip(POSE_FIELDS, (1.0 - residual / total).tolist(), strict=True))


def drift(clips: list[Clip], predict: Predict, *, longest: int = 17, seed: int = 0) -> Drift:
    """Errors of ``predict`` on clips that are cut to one length.

    :param longest: blocks; fewer when the shortest clip has fewer.
    :raises ValueError: with fewer than two clips.
    """
    if len(clips) < 2:
        raise ValueError(f"{len(clips)} clips; expected 2 or more, to shuffle their actions")
    length = min(longest, *(len(clip.blocks) for clip in clips))
    seen = np.stack([clip.embeddings[: length + 1] for clip in clips])
    blocks = np.stack([clip.blocks[:length] for clip in clips])
    rng = np.random.default_rng(seed)
    # Every clip gets another one's actions: a rotation has no fixed point.
    order = rng.permutation(len(clips))
    others = np.empty(len(clips), np.int64)
    others[order] = np.roll(order, 1)

    everything = np.concatenate([clip.embeddings for clip in clips])
    scale = 2.0 * float(everything.var(axis=0).sum())

    def error(found: FloatArray, true: FloatArray) -> FloatArray:
        values: FloatArray = np.square(found - true).sum(-1) / scale
        return values

    true = seen[:, 1:]
    open_loop = error(predict(seen[:, 0], blocks), true)
    shuffled = error(predict(seen[:, 0], blocks[others]), true)
    unchanged = error(seen[:, :1], true)
    ahead = [predict(seen[:, h], blocks[:, h : h + 1])[:, 0] for h in range(length)]
    closed_loop = error(np.stack(ahead, axis=1), true)

    chosen = rng.integers(len(clips), size=(RESAMPLES, len(clips)))
    sums = [values[chosen].mean(axis=1) for values in (open_loop, unchanged, shuffled)]
    skill_low = np.percentile(1.0 - sums[0] / np.maximum(sums[1], 1e-12), 2.5, axis=0)
    gap_low = np.percentile(sums[2] - sums[0], 2.5, axis=0)
    good = (skill_low > 0.0) & (gap_low > 0.0)
    drift_horizon = int(np.argmin(good)) if not good.all() else length
    mean_open, mean_still = open_loop.mean(axis=0), unchanged.mean(axis=0)
    return Drift(
        horizon=tuple(range(1, length + 1)),
        open_loop=mean_open,
        closed_loop=closed_loop.mean(axis=0),
        shuffled=shuffled.mean(axis=0),
        unchanged=mean_still,
        skill=1.0 - mean_open / np.maximum(mean_still, 1e-12),
        skill_low=skill_low,
        drift_horizon=drift_horizon,
    )
