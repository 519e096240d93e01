"""What the latents of a world model know, and how far ahead they hold: probe and drift.

Pure functions of embeddings; where those come from (simulated episodes, recordings) is the
caller's affair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[FloatArray, FloatArray], FloatArray]
"""Embeddings (S, D) at a start and blocks (S, T, A) after it, to embeddings (S, T, D) ahead, of
which number t may depend on the first t blocks only."""

POSE_FIELDS = ("agent_x", "agent_y", "block_x", "block_y", "sin_angle", "cos_angle")
RESAMPLES = 2000
CURVES = ("open_loop", "closed_loop", "shuffled", "unchanged", "previous")
MIN_EPISODES = 5
"""Fewer give no verdict: of 5, all resampled ones are the same in 1 of 625 draws, so that 2.5 %
of the draws mean something."""
LENGTH_SHARE = 0.8
"""Share of the episodes that the horizon has to fit in."""
STILL = 0.02
"""Where "nothing moved" is wrong by less than this share of a random pair's distance it is near
perfect: the skill would be a ratio of two small numbers, and such a horizon is not judged."""
COLLAPSED = 1e-5
"""Variance of a latent over its mean square at which all pictures count as the same."""


@dataclass(frozen=True)
class Clip:
    """A stretch at block rate: ``embeddings`` (N, D), each of one frame alone, ``blocks``
    (N - 1, A) in between, true ``states`` (N, n) where they are known. Clips of one recording have
    the same ``episode``.
    """

    embeddings: FloatArray
    blocks: FloatArray
    states: FloatArray
    episode: str


@dataclass(frozen=True)
class Curve:
    """A mean over episodes (T,) with the bounds of its 95 % bootstrap interval, NaN of one."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Drift:
    """Prediction error against horizon, in units of the mean squared distance of a random pair.

    Every curve is over ``horizon`` (blocks). Of :data:`CURVES`, ``open_loop`` predicts on from its
    own predictions, ``closed_loop`` one block from what was seen, ``shuffled`` open loop with
    another episode's actions; ``unchanged`` says that nothing moved since the start, ``previous``
    since the frame before. ``errors`` are e(h) = E|z^ - z|^2 / E|z_i - z_j|^2 and ``cosines``
    those of z^ and z. ``skill`` is 1 - open_loop / unchanged, ``gap`` shuffled - open_loop.

    ``drift_horizon`` is the largest horizon up to which the lower 95 % bounds, over episodes, of
    skill and gap are above 0, passing over those where "nothing moved" is near perfect
    (:data:`STILL`). It is None, and ``reason`` says why, with fewer than :data:`MIN_EPISODES`,
    where nothing moves at any horizon, and for a latent that has collapsed. ``short`` episodes
    were left out.
    """

    horizon: tuple[int, ...]
    errors: Mapping[str, Curve]
    cosines: Mapping[str, Curve]
    skill: Curve
    gap: Curve
    drift_horizon: int | None
    reason: str
    episodes: int
    short: int
    starts: int

    @property
    def at_least(self) -> bool:
        """Whether a longer measurement might find a longer horizon."""
        return self.drift_horizon == self.horizon[-1]


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


def drift(
    clips: Sequence[Clip],
    predict: Predict,
    *,
    metric: FloatArray | None = None,
    longest: int = 17,
    starts: int = 4,
    seed: int = 0,
) -> Drift:
    """How far ahead ``predict`` holds, with the actions that were recorded; see :class:`Drift`.

    The horizon is ``longest`` blocks, or less: the most that :data:`LENGTH_SHARE` of the episodes
    reach; shorter episodes are left out and counted. An episode counts once, however many starts
    and clips it has: its numbers are means over at most ``starts`` starts, spread evenly.

    :param metric: (D,) weight of each number in squared distances and cosines; None: 1 each.
    :param seed: of the bootstrap and of who gets whose actions.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` when no clip has a block; ``MODEL_FAILED`` for
        predictions of a wrong shape or that are not finite.
    """
    root = 1.0 if metric is None else np.sqrt(metric)
    moving = [clip for clip in clips if len(clip.blocks)]
    if not moving:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "recordings",
            found=f"{len(clips)} clips without a block of actions between two pictures",
            expected="clips of 2 pictures or more, one block apart",
        )
    by_episode: dict[str, list[Clip]] = {}
    for clip in moving:
        by_episode.setdefault(clip.episode, []).append(clip)
    length = _length([max(len(c.blocks) for c in group) for group in by_episode.values()], longest)
    windows = [found for group in by_episode.values() if (found := _windows(group, length, starts))]
    pair, collapsed = _pair_distance(moving, root)
    rng = np.random.default_rng(seed)
    count = len(windows)
    others = np.zeros(count, np.int64)
    order = rng.permutation(count)
    # Every episode gets another one's actions: a rotation has no fixed point.
    others[order] = np.roll(order, 1)

    errors = {name: np.empty((count, length)) for name in CURVES}
    cosines = {name: np.empty((count, length)) for name in CURVES}
    for index, own in enumerate(windows):
        strange = windows[others[index]] if count > 1 else []
        curves = _episode(own, strange, predict, length, root)
        for name, (squared, cosine) in curves.items():
            errors[name][index], cosines[name][index] = squared / pair, cosine

    chosen = rng.integers(count, size=(RESAMPLES, count))

    def resampled(values: FloatArray) -> FloatArray:
        means: FloatArray = values[chosen].mean(axis=1)
        return means

    drawn = {name: resampled(values) for name, values in errors.items()}
    mean = {name: values.mean(axis=0) for name, values in errors.items()}
    skill = _curve(
        _skill(mean["open_loop"], mean["unchanged"]),
        _skill(drawn["open_loop"], drawn["unchanged"]),
        count,
    )
    gap = _curve(
        mean["shuffled"] - mean["open_loop"], drawn["shuffled"] - drawn["open_loop"], count
    )
    horizon, reason = _verdict(collapsed, count, mean["unchanged"], skill, gap)
    return Drift(
        horizon=tuple(range(1, length + 1)),
        errors={name: _curve(mean[name], drawn[name], count) for name in CURVES},
        cosines={
            name: _curve(values.mean(axis=0), resampled(values), count)
            for name, values in cosines.items()
        },
        skill=skill,
        gap=gap,
        drift_horizon=horizon,
        reason=reason,
        episodes=count,
        short=len(by_episode) - count,
        starts=sum(len(own) for own in windows),
    )


def _length(lengths: Sequence[int], longest: int) -> int:
    """Blocks that enough of the episodes have."""
    needed = math.ceil(LENGTH_SHARE * len(lengths))
    return min(longest, sorted(lengths, reverse=True)[needed - 1])


def _windows(clips: Sequence[Clip], length: int, starts: int) -> list[tuple[Clip, int]]:
    """Clips of one episode and where in them to start, evenly spread."""
    every = [(clip, start) for clip in clips for start in range(len(clip.blocks) - length + 1)]
    if not every:
        return []
    picked = np.unique(np.linspace(0, len(every) - 1, starts).round().astype(int))
    return [every[index] for index in picked]


def _pair_distance(clips: Sequence[Clip], root: FloatArray | float) -> tuple[float, bool]:
    """E |z_i - z_j|^2 over pairs of different frames, which is 2 n / (n - 1) times the variance;
    NaN, and whether the latent has collapsed, where that is nothing.
    """
    frames = sum(len(clip.embeddings) for clip in clips)
    points = [clip.embeddings * root for clip in clips]
    mean = sum(rows.sum(axis=0, dtype=np.float64) for rows in points) / frames
    spread = sum(float(np.square(rows - mean).sum()) for rows in points) / frames
    energy = sum(float(np.square(rows).sum(dtype=np.float64)) for rows in points) / frames
    if spread <= COLLAPSED * energy:
        return math.nan, True
    return 2.0 * frames / (frames - 1) * spread, False


def _episode(
    own: Sequence[tuple[Clip, int]],
    strange: Sequence[tuple[Clip, int]],
    predict: Predict,
    length: int,
    root: FloatArray | float,
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Squared distances (T,) and cosines (T,) of every curve, means over the starts."""
    first = np.stack([clip.embeddings[start] for clip, start in own])
    true = np.stack([clip.embeddings[start + 1 : start + 1 + length] for clip, start in own])
    before = np.stack([clip.embeddings[start : start + length] for clip, start in own])
    blocks = np.stack([clip.blocks[start : start + length] for clip, start in own])
    found = {
        "open_loop": _checked(predict, first, blocks),
        "closed_loop": _checked(
            predict,
            before.reshape(-1, before.shape[-1]),
            blocks.reshape(-1, 1, blocks.shape[-1]),
        ).reshape(true.shape),
        "unchanged": np.broadcast_to(first[:, None], true.shape),
        "previous": before,
    }
    if strange:
        pairs = zip(range(len(own)), itertools.cycle(strange), strict=False)
        wrong = np.stack([clip.blocks[start : start + length] for _, (clip, start) in pairs])
        found["shuffled"] = _checked(predict, first, wrong)
    else:
        found["shuffled"] = np.full(true.shape, np.nan)
    target = true * root
    return {name: _distances(values * root, target) for name, values in found.items()}


def _checked(predict: Predict, first: FloatArray, blocks: FloatArray) -> FloatArray:
    found = predict(first, blocks)
    expected = (*blocks.shape[:2], first.shape[-1])
    if found.shape != expected or not np.isfinite(found).all():
        raise mismatch(
            ErrorCode.MODEL_FAILED,
            "predicted latents",
            found=f"of shape {found.shape}" if found.shape != expected else "with NaN or infinity",
            expected=f"finite numbers of shape {expected} (starts, blocks, latent)",
        )
    return found


def _distances(found: FloatArray, true: FloatArray) -> tuple[FloatArray, FloatArray]:
    squared = np.square(found - true).sum(-1, dtype=np.float64)
    norms = [np.sqrt(np.square(part).sum(-1, dtype=np.float64)) for part in (found, true)]
    product = norms[0] * norms[1]
    dots = (found * true).sum(-1, dtype=np.float64)
    cosine = np.divide(dots, product, out=np.zeros_like(dots), where=product != 0.0)
    return squared.mean(axis=0), cosine.mean(axis=0)


def _skill(open_loop: FloatArray, unchanged: FloatArray) -> FloatArray:
    """1 - open_loop / unchanged; NaN where nothing moved at all."""
    ratio = np.divide(
        open_loop, unchanged, out=np.full_like(open_loop, np.nan), where=unchanged > 0.0
    )
    result: FloatArray = 1.0 - ratio
    return result


def _curve(mean: FloatArray, drawn: FloatArray, episodes: int) -> Curve:
    if episodes < 2:
        nothing = np.full_like(mean, np.nan)
        return Curve(mean, nothing, nothing)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return Curve(mean, low, high)


def _verdict(
    collapsed: bool, episodes: int, unchanged: FloatArray, skill: Curve, gap: Curve
) -> tuple[int | None, str]:
    """The drift horizon, None where there is none to be told, and why."""
    if collapsed:
        return None, (
            f"the latent has collapsed: its variance is at most {COLLAPSED:g} of its mean square"
        )
    if episodes < MIN_EPISODES:
        return None, f"{episodes} episodes; expected {MIN_EPISODES} or more for an interval"
    judged = unchanged >= STILL
    if not judged.any():
        return None, (
            f"nothing moves: the error of 'unchanged' stays below {STILL:g} of a random pair's"
        )
    good = (skill.low > 0.0) & (gap.low > 0.0)
    wrong = np.flatnonzero(judged & ~good)
    before = judged[: wrong[0]] if len(wrong) else judged
    horizon = int(np.flatnonzero(before)[-1]) + 1 if before.any() else 0
    if not len(wrong):
        return horizon, "still good at the longest horizon that was measured"
    at = int(wrong[0])
    better = "'unchanged'" if not skill.low[at] > 0.0 else "another episode's actions"
    return horizon, f"at {at + 1} blocks no longer better than {better} with 95 % confidence"
