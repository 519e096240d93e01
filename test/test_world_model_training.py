"""World-model training: the data it builds, and a whole run of a few steps."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("stable_worldmodel", reason="the package stable-worldmodel is not installed")
pytest.importorskip("gym_pusht", reason="the package gym-pusht is not installed")

import torch
from safetensors.torch import load_file

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.evaluation.statistics import spearman
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.lewm import load_lewm
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.training import dataset, demos, predictor, tasks, world_model

STATE = np.array([120.0, 300.0, 210.0, 260.0, 0.7])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    for seed in range(200_000, 200_010):
        path = dataset.episode_path(folder, "play", seed)
        dataset.save_episode(demos.play(seed, steps=21), path)
    return folder


def test_probe_targets_are_the_simulator_s_corners() -> None:
    simulation = PushTSimulation(image_size=16)
    simulation.set_state(STATE)
    found = tasks.block_points(STATE) * 100 + 256
    np.testing.assert_allclose(found[:16].reshape(8, 2), simulation.keypoints(), atol=1e-6)
    np.testing.assert_allclose(found[16:], STATE[:2])


def test_the_mirror_keeps_the_goal_and_the_picture() -> None:
    simulation = PushTSimulation()
    goal = np.array([100.0, 200.0, *simulation.goal_pose])
    np.testing.assert_allclose(tasks.mirror_states(goal)[2:], goal[2:])
    simulation.set_state(STATE)
    mirrored = simulation.image()[::-1, ::-1].transpose(1, 0, 2).astype(int)
    simulation.set_state(tasks.mirror_states(STATE))
    # Edges are drawn on whole pixels, so a few differ.
    assert np.abs(simulation.image().astype(int) - mirrored).mean() < 1.5


def test_prepared_data_is_time_aligned(recorded: Path) -> None:
    episodes = dataset.load_episodes(dataset.list_episodes(recorded))
    data = world_model.prepare(episodes, load_embodiment("pusht"), 16)
    assert len(data.images) == 210
    assert len(data.targets) == 2 * 210
    # Index i + N is the mirror of frame i: flipped about the other diagonal.
    by_hand_mirror = data.images[3][::-1, ::-1].transpose(1, 0, 2)
    pictures = data.pictures(np.array([[3, 213]]))
    np.testing.assert_array_equal(pictures, [[data.images[3], by_hand_mirror]])
    # Nine episodes of 21 steps hold windows of 16 steps at 6 places each, and their mirrors.
    assert len(data.train) == 2 * 9 * 6
    assert data.held_out.tolist() == [9 * 21, 9 * 21 + 5]
    first = episodes.episode(0)
    by_hand = (first.action[3] - first.position[3]) * 10.0
    np.testing.assert_allclose(data.raw[3], by_hand, atol=1e-6)
    np.testing.assert_allclose(data.raw[213], [-by_hand[1], -by_hand[0]], atol=1e-6)


def test_training_exports_a_checkpoint_that_scores(recorded: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    world_model.add_arguments(parser)
    common = ["--data", str(recorded), "--out", str(tmp_path), "--image-size", "16"]
    common += ["--batch", "8", "--projections", "8", "--evaluate-every", "2"]
    assert world_model.run(parser.parse_args([*common, "--steps", "2"])) == 0
    assert world_model.run(parser.parse_args([*common, "--steps", "3", "--resume"])) == 0
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "step" in entry] == [2, 3]
    assert entries[0]["held_out"] == 2

    scorer = load_lewm(tmp_path / "checkpoint", load_embodiment("pusht"))
    assert entries[-1]["sha256"] == scorer.sha256
    simulation = PushTSimulation()
    simulation.set_state(STATE)
    now = Observation(
        stamp=1,
        images={"top": simulation.image()},
        position=simulation.position,
        velocity=simulation.velocity,
    )
    candidates = np.random.default_rng(0).uniform(0.1, 0.3, (4, 10, 2))
    costs = scorer.score([now], simulation.goal_image(), candidates).costs
    assert np.isfinite(costs).all()
    assert len(set(costs.tolist())) > 1


def arguments(module: ModuleType, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(given)


def test_the_predictor_is_trained_on_with_the_encoder_as_it_is(
    recorded: Path, tmp_path: Path
) -> None:
    for seed in (100_000, 100_009):
        episode = demos.demonstrate(seed, max_steps=24)
        dataset.save_episode(episode, dataset.episode_path(tmp_path / "data", "demo", seed))
    for path in recorded.iterdir():
        shutil.copy(path, tmp_path / "data")
    common = ["--data", str(tmp_path / "data"), "--threads", "1"]
    first = [*common, "--out", str(tmp_path / "first"), "--image-size", "16", "--steps", "2"]
    first += ["--batch", "8", "--projections", "8"]
    assert world_model.run(arguments(world_model, *first)) == 0
    before = tmp_path / "first" / "checkpoint"
    second = [*common, "--world-model", str(before), "--out", str(tmp_path / "second")]
    second += ["--checkpoint", str(tmp_path / "done"), "--blocks", "3", "--batch", "8"]
    second += ["--steps", "3", "--head-steps", "3", "--evaluate-every", "2"]
    assert predictor.run(arguments(predictor, *second)) == 0
    old, new = (load_file(p / "model.safetensors") for p in (before, tmp_path / "done"))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    # Encoder and projector are what the cached embeddings came from.
    assert changed == {"predictor", "action_encoder", "pred_proj"}
    scorer = load_lewm(tmp_path / "done", load_embodiment("pusht"))
    assert scorer.objectives == ("l2", "l1", "pose", "scene", "steps")
    assert scorer.default_objective == "pose"
    entries = [json.loads(x) for x in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "step" in entry] == [2, 3]
    assert entries[-1]["sha256"] == scorer.sha256
    assert {"steps_error", "corners_0_mm", "corners_3_mm"} <= set(entries[-1])
    assert predictor.run(arguments(predictor, *second[:-2], "--steps", "5", "--resume")) == 0
    entries = [json.loads(x) for x in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "step" in entry] == [2, 3, 5]


def test_embeddings_of_another_encoder_are_not_resumed_from(recorded: Path, tmp_path: Path) -> None:
    given = ["--data", str(recorded), "--image-size", "16", "--steps", "1", "--batch", "8"]
    for seed in ("0", "1"):
        run = [*given, "--projections", "8", "--seed", seed, "--out", str(tmp_path / seed)]
        assert world_model.run(arguments(world_model, *run)) == 0
    for path in (demos.demonstrate(100_000, max_steps=24),):
        dataset.save_episode(path, dataset.episode_path(tmp_path / "data", "demo", 100_000))
    for path in recorded.iterdir():
        shutil.copy(path, tmp_path / "data")
    common = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--batch", "8"]
    common += ["--checkpoint", str(tmp_path / "done"), "--blocks", "2", "--head-steps", "1"]
    first = [*common, "--world-model", str(tmp_path / "0" / "checkpoint"), "--steps", "1"]
    assert predictor.run(arguments(predictor, *first)) == 0
    other = [*common, "--world-model", str(tmp_path / "1" / "checkpoint"), "--steps", "2"]
    with pytest.raises(WorldForgeError, match="those of its encoder"):
        predictor.run(arguments(predictor, *other, "--resume"))


def test_the_probe_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(500, 6))).float()
    true = torch.from_numpy(rng.normal(size=(18, 6))).float()
    probe = world_model.least_squares(rows, rows @ true.T + 2.0)
    torch.testing.assert_close(probe.weight, true, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(probe.bias, torch.full((18,), 2.0), atol=1e-4, rtol=1e-3)


def test_windows_end_with_their_episode(recorded: Path) -> None:
    episodes = dataset.load_episodes(dataset.list_episodes(recorded))
    data = world_model.prepare(episodes, load_embodiment("pusht"), 16)
    # Episodes have 21 steps; frame 210 is the mirror of frame 0.
    found = data.rooms(np.array([0, 5, 20, 21, 210, 230]))
    assert found.tolist() == [20, 15, 0, 20, 20, 0]


def test_a_vit_is_trained_by_the_same_command(recorded: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    given = ["--data", str(recorded), "--out", str(tmp_path), "--image-size", "16", "--steps", "1"]
    given += ["--batch", "4", "--projections", "8", "--encoder", "vit", "--state-weight", "1"]
    assert world_model.run(arguments(world_model, *given)) == 0
    scorer = load_lewm(tmp_path / "checkpoint", load_embodiment("pusht"))
    pictures = np.zeros((2, 96, 96, 3), np.uint8)
    assert scorer.embed(pictures).shape == (2, 128)


def test_training_says_what_is_missing(recorded: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    world_model.add_arguments(parser)
    arguments = ["--data", str(recorded), "--out", str(tmp_path), "--resume"]
    with pytest.raises(WorldForgeError, match=r"training\.pt"):
        world_model.run(parser.parse_args(arguments))
    few = dataset.load_episodes(dataset.list_episodes(recorded)[:9])
    with pytest.raises(WorldForgeError, match="9, none to hold out"):
        world_model.prepare(few, load_embodiment("pusht"), 16)


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6
    assert spearman([10, 20, 30, 40], [5, 1, 9, 7]) == pytest.approx(0.6)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert math.isnan(spearman([1, 1, 1], [3, 2, 1]))
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, scale sqrt(1.5 * 2)
    assert spearman([4, 4, 9], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)
