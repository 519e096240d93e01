"""Probe and drift on worlds that are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.latents import POSE_FIELDS, Clip, drift, pose_features, probe_r2

RNG = np.random.default_rng(0)


def walks(count: int, length: int = 12) -> list[Clip]:
    """Clips of a world in which a block of two numbers is the way that two latents go."""
    clips = []
    for _ in range(count):
        blocks = RNG.normal(size=(length, 2))
        start = RNG.normal(size=2)
        embeddings = np.concatenate([start[None], start + np.cumsum(blocks, axis=0)])
        clips.append(Clip(embeddings, blocks, np.zeros((length + 1, 5)), f"walk {len(clips)}"))
    return clips


def exact(starts: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return starts[:, None] + np.cumsum(blocks, axis=1)


def test_a_perfect_model_never_drifts() -> None:
    found = drift(walks(40), exact)
    assert found.horizon == tuple(range(1, 13))
    np.testing.assert_allclose(found.errors["open_loop"].mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.errors["closed_loop"].mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.skill.mean, 1.0)
    assert found.drift_horizon == 12


def test_errors_are_in_units_of_a_random_pair() -> None:
    clips = walks(200)
    everything = np.concatenate([clip.embeddings for clip in clips])
    first, second = everything[RNG.permutation(len(everything))], everything
    pair = np.square(first - second).sum(-1).mean()
    found = drift(clips, exact)
    still = np.mean([np.square(c.embeddings[0] - c.embeddings[3]).sum() for c in clips])
    assert found.errors["unchanged"].mean[2] == pytest.approx(still / pair, rel=0.05)
    # Actions of another walk: three steps apart in each of two directions, twice the variance.
    assert found.errors["shuffled"].mean[2] == pytest.approx(
        2 * found.errors["unchanged"].mean[2], rel=0.25
    )


def test_a_model_that_ignores_actions_has_no_horizon() -> None:
    found = drift(walks(40), lambda starts, blocks: np.repeat(starts[:, None], blocks.shape[1], 1))
    np.testing.assert_allclose(found.errors["open_loop"].mean, found.errors["unchanged"].mean)
    np.testing.assert_allclose(found.skill.mean, 0.0, atol=1e-12)
    assert found.drift_horizon == 0


def test_a_model_that_is_right_for_three_blocks_has_that_horizon() -> None:
    def fading(starts: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        ahead = exact(starts, blocks)
        ahead[:, 3:] += 100.0
        return ahead

    found = drift(walks(40), fading)
    assert found.drift_horizon == 3
    # One block from what was seen is right at every horizon.
    np.testing.assert_allclose(found.errors["closed_loop"].mean, 0.0, atol=1e-12)


def test_the_horizon_is_what_enough_episodes_reach() -> None:
    found = drift([*walks(9, 9), *relabelled(walks(1, 4))], exact)
    assert found.horizon == tuple(range(1, 10))
    assert (found.episodes, found.short) == (9, 1)
    few = drift([*walks(3, 9), *relabelled(walks(2, 4))], exact)
    assert few.horizon == (1, 2, 3, 4)
    assert few.short == 0
    with pytest.raises(WorldForgeError, match="without a block"):
        drift([], exact)


def relabelled(clips: list[Clip]) -> list[Clip]:
    return [replace(clip, episode=f"other {clip.episode}") for clip in clips]


def test_no_verdict_where_there_is_none_to_tell() -> None:
    few = drift(walks(4), exact)
    assert few.drift_horizon is None
    assert "4 episodes" in few.reason
    alone = drift(walks(1), exact)
    assert alone.drift_horizon is None
    assert np.isnan(alone.errors["shuffled"].mean).all()
    flat = [replace(clip, embeddings=np.ones_like(clip.embeddings)) for clip in walks(10)]
    collapsed = drift(flat, lambda starts, blocks: np.ones((*blocks.shape[:2], 2)))
    assert collapsed.drift_horizon is None
    assert "collapsed" in collapsed.reason
    still = [
        replace(
            clip, embeddings=clip.embeddings[:1] + 1e-3 * (clip.embeddings - clip.embeddings[0])
        )
        for clip in walks(10)
    ]
    hardly = drift(still, lambda starts, blocks: np.repeat(starts[:, None], blocks.shape[1], 1))
    assert hardly.drift_horizon is None
    assert "nothing moves" in hardly.reason


def test_an_episode_counts_once_however_many_clips_it_has() -> None:
    """One episode in ten pieces is no ten episodes."""
    pieces = [replace(clip, episode="one") for clip in walks(10)]
    assert drift(pieces, exact).episodes == 1
    assert drift([*pieces, *relabelled(walks(6))], exact).drift_horizon == 12


def test_numbers_that_are_only_carried_along_do_not_count() -> None:
    """A latent of three numbers whose last is wrong by far, and weighs nothing."""
    clips = [
        replace(
            clip,
            embeddings=np.concatenate([clip.embeddings, RNG.normal(size=(13, 1))], axis=1),
        )
        for clip in walks(20)
    ]

    def partly(starts: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        right = exact(starts[:, :2], blocks)
        return np.concatenate([right, np.full((*right.shape[:2], 1), 1e6)], axis=2)

    found = drift(clips, partly, metric=np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found.errors["open_loop"].mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.cosines["open_loop"].mean, 1.0, atol=1e-9)


def test_predictions_that_are_none_are_refused() -> None:
    for wrong in (
        lambda starts, blocks: np.full((*blocks.shape[:2], 2), np.nan),
        lambda starts, blocks: np.zeros((len(starts), 2)),
    ):
        with pytest.raises(WorldForgeError) as caught:
            drift(walks(6), wrong)
        assert caught.value.code is ErrorCode.MODEL_FAILED


def test_the_probe_reads_what_is_linear_and_not_what_is_absent() -> None:
    states = np.concatenate(
        [RNG.uniform(0, 512, (600, 4)), RNG.uniform(-np.pi, np.pi, (600, 1))], axis=1
    )
    known = pose_features(states)[:, :4]
    latents = known @ RNG.normal(size=(4, 6)) / 100.0 + 3.0
    figures = probe_r2(latents[:400], states[:400], latents[400:], states[400:])
    assert tuple(figures) == POSE_FIELDS
    for name in POSE_FIELDS[:4]:
        assert figures[name] == pytest.approx(1.0, abs=1e-3)
    for name in POSE_FIELDS[4:]:
        assert abs(figures[name]) < 0.1
