"""Episodes and decisions that ALOHA's world model is trained and measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
pytest.importorskip("torch", reason="the package torch is not installed")

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.simulation.aloha import GOAL_STATE, AlohaSimulation
from worldforge_ros.training import dataset
from worldforge_ros.training.aloha_play import BRANCH_STEPS, IMAGE_SIZE, START, TICKS, Studio


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio()


def test_an_episode_has_a_picture_of_every_tenth_step(studio: Studio, tmp_path: Path) -> None:
    studio.simulation.reset(seed=3)
    setpoints = np.tile(START, (12, 1))
    setpoints[:, 7] += np.linspace(0.0, 0.1, 12)
    episode = studio.follow(setpoints, 3, "demo")
    assert episode.images.shape == (2, *IMAGE_SIZE, 3)
    assert episode.images[0].std() > 10
    # Everything is of the start of its step: the waist has not moved yet, then follows.
    assert episode.position[0, 7] == pytest.approx(0.0, abs=1e-3)
    assert episode.position[11, 7] > 0.03
    world = AlohaSimulation()
    world.set_state(episode.state[4])
    world.advance(episode.action[4], TICKS)
    np.testing.assert_allclose(world.position, episode.position[5], atol=1e-3)
    path = dataset.episode_path(tmp_path, "demo", 3)
    dataset.save_episode(episode, path)
    np.testing.assert_array_equal(dataset.load_episode(path).images, episode.images)


def test_plans_that_go_wrong_begin_at_rest_and_are_repeatable(studio: Studio) -> None:
    cube = np.array([0.1, 0.5, 0.02])
    for make in (studio.plan, studio.disturbed, studio.wandering):
        first, second = (make(cube, np.random.default_rng(4)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert np.abs(first[0] - START).max() < 0.08
        assert len(first) > 200


def test_branches_keep_to_their_half_of_the_sources(studio: Studio, tmp_path: Path) -> None:
    limits = limits_of(load_embodiment("aloha"))
    for seed in (1, 9):
        studio.simulation.reset(seed=seed)
        episode = studio.follow(np.tile(START, (30, 1)), seed, "demo")
        dataset.save_episode(episode, dataset.episode_path(tmp_path, "demo", seed))
    sources = dataset.list_episodes(tmp_path)
    for seed, source in ((400_003, 1), (400_019, 9)):
        branch = studio.branch(seed, sources)
        assert len(branch) == BRANCH_STEPS + 1
        assert (len(branch.images), branch.image_every) == (1, BRANCH_STEPS + 1)
        held = dataset.load_episode(dataset.episode_path(tmp_path, "demo", source))
        # Its picture and its first state are of one moment of the source.
        frame = [np.array_equal(branch.images[0], image) for image in held.images].index(True)
        cube = held.state[frame * held.image_every, 16:19]
        np.testing.assert_allclose(branch.state[0, 16:19], cube, atol=1e-6)
        assert not limits.outside(branch.action.astype(np.float64)).any()


def test_decisions_have_the_true_outcomes_of_their_candidates() -> None:
    from worldforge_ros.evaluation.aloha_ranking import EVENTUAL, LOST, aloha_moments

    (found,) = aloha_moments([6], candidates=3, horizon=20, eventual=True)
    assert found[0].phase == "reach"
    assert {item.phase for item in found} > {"reach"}
    for item in found:
        assert item.candidates.shape == (3, 20, 14)
        assert all(values.shape == (3,) for values in item.outcomes.values())
        assert (item.outcomes[EVENTUAL] <= LOST).all()
    # Holding still leaves the cube where it was put: its distance from the goal, by hand.
    world = AlohaSimulation()
    world.reset(seed=6)
    distance = np.linalg.norm(world.cube[:3] - GOAL_STATE[16:19]) * 1000.0
    moment = found[0].judged("pose")
    assert moment.still == moment.outcomes[1]
    # It is put 30 mm above the table, and falls.
    assert moment.still == pytest.approx(distance, abs=30.0)
    # The plan itself ends with the cube handed over.
    assert found[0].outcomes[EVENTUAL][0] < 200.0
