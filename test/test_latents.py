"""Probe and drift on worlds that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from worldforge_ros.evaluation.latents import POSE_FIELDS, Clip, drift, pose_features, probe_r2

RNG = np.random.default_rng(0)


def walks(count: int, length: int = 12) -> list[Clip]:
    """Clips of a world in which a block of two numbers is the way that two latents go."""
    clips = []
    for _ in range(count):
        blocks = RNG.normal(size=(length, 2))
        start = RNG.normal(size=2)
        embeddings = np.concatenate([start[None], start + np.cumsum(blocks, axis=0)])
        clips.append(Clip(embeddings, blocks, np.zeros((length + 1, 5))))
    return clips


def exact(starts: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return starts[:, None] + np.cumsum(blocks, axis=1)


def test_a_perfect_model_never_drifts() -> None:
    found = drift(walks(40), exact)
    assert found.horizon == tuple(range(1, 13))
    np.testing.assert_allclose(found.open_loop, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.closed_loop, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.skill, 1.0)
    assert found.drift_horizon == 12


def test_errors_are_in_units_of_a_random_pair() -> None:
    clips = walks(200)
    everything = np.concatenate([clip.embeddings for clip in clips])
    first, second = everything[RNG.permutation(len(everything))], everything
    pair = np.square(first - second).sum(-1).mean()
    found = drift(clips, exact)
    still = np.mean([np.square(c.embeddings[0] - c.embeddings[3]).sum() for c in clips])
    assert found.unchanged[2] == pytest.approx(still / pair, rel=0.05)
    # Actions of another walk: three steps apart in each of two directions, twice the variance.
    assert found.shuffled[2] == pytest.approx(2 * found.unchanged[2], rel=0.25)


def test_a_model_that_ignores_actions_has_no_horizon() -> None:
    found = drift(walks(40), lambda starts, blocks: np.repeat(starts[:, None], blocks.shape[1], 1))
    np.testing.assert_allclose(found.open_loop, found.unchanged)
    np.testing.assert_allclose(found.skill, 0.0, atol=1e-12)
    assert found.drift_horizon == 0


def test_a_model_that_is_right_for_three_blocks_has_that_horizon() -> None:
    def fading(starts: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        ahead = exact(starts, blocks)
        ahead[:, 3:] += 100.0
        return ahead

    found = drift(walks(40), fading)
    assert found.drift_horizon == 3
    # One block from what was seen is right at every horizon.
    np.testing.assert_allclose(found.closed_loop, 0.0, atol=1e-12)


def test_clips_are_cut_to_the_shortest() -> None:
    found = drift([*walks(5, 9), *walks(1, 4)], exact)
    assert found.horizon == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="1 clips"):
        drift(walks(1), exact)


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
