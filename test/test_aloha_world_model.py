"""The world model for ALOHA: what it reads and compares, its pictures and actions, its training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("stable_worldmodel", reason="the package stable-worldmodel is not installed")

import torch
from safetensors.torch import save_file

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.resources import share_dir
from worldforge_ros.scorers.architecture import build_lewm, default_config
from worldforge_ros.scorers.encoders import resize_pixels
from worldforge_ros.scorers.lewm import load_lewm
from worldforge_ros.scorers.objectives import PUSHT_READING, Reading, costs, pose_probe
from worldforge_ros.training import dataset, predictor, world_model
from worldforge_ros.training.tasks import ALOHA_CENTRE, ALOHA_READING, task_of

JOINTS = 14
SHIPPED = share_dir() / "models" / "aloha" / "world_model"


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        stamp=1,
        images={"top": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)},
        position=np.zeros(JOINTS),
        velocity=np.zeros(JOINTS),
    )


def test_a_block_of_fourteen_joints_is_time_major_and_absolute() -> None:
    # Joint j at step t is told 100 t + j. With mean j and std 2 that is 50 t for every joint, with
    # mean 0 and std 1 it is itself: 14 joints of step 0, then 14 of step 1, and so on.
    setpoints = 100.0 * np.arange(20)[:, None] + np.arange(JOINTS)
    aloha = load_embodiment("aloha")
    plain = ActionBridge.of(aloha, np.zeros(JOINTS), np.ones(JOINTS))
    blocks = plain.setpoints_to_blocks(setpoints[None], np.full(JOINTS, 7.0), np.zeros(JOINTS))
    assert blocks.shape == (1, 2, 140)
    assert blocks[0, 0, :3].tolist() == [0.0, 1.0, 2.0]
    assert blocks[0, 0, 12:16].tolist() == [12.0, 13.0, 100.0, 101.0]
    assert blocks[0, 0, 139] == 913.0
    assert blocks[0, 1, 0] == 1000.0
    assert blocks[0, 1, 14 * 9 + 6] == 1906.0
    scored = ActionBridge.of(aloha, np.arange(JOINTS), np.full(JOINTS, 2.0))
    blocks = scored.setpoints_to_blocks(setpoints[None], np.zeros(JOINTS), np.zeros(JOINTS))
    assert blocks[0, 0].tolist() == np.repeat(50.0 * np.arange(10), JOINTS).tolist()


def test_objectives_of_aloha_by_hand() -> None:
    probe = pose_probe(15, ALOHA_READING)
    with torch.no_grad():
        probe.weight.copy_(torch.eye(15))
        probe.bias.fill_(3.0)
    # In decimetres. Goal: cube in the middle, the left gripper 0.5 from it, the right one 3 away.
    goal = torch.zeros(15)
    goal[3:6] = torch.tensor([-0.5, 0.0, 0.0])
    goal[6:9] = torch.tensor([3.0, 0.0, 0.0])
    # First: everything 1 higher. Second: the cube 4 to the right, both grippers where they were.
    # Third: the goal, but the spread of the left gripper differs, which no objective compares.
    scenes = goal.repeat(3, 1)
    scenes[0, [2, 5, 8]] += 1.0
    scenes[1, 0] = 4.0
    scenes[2, 9:12] += 0.3
    found = {
        name: f(scenes, goal).tolist() for name, f in costs(probe, None, ALOHA_READING).items()
    }
    assert set(found) == {"l2", "l1", "pose", "scene", "handover"}
    assert found["pose"] == pytest.approx([100.0, 400.0, 0.0], abs=1e-3)
    assert found["scene"] == pytest.approx([100.0, 400.0 / 3, 0.0], abs=1e-3)
    # Second: cube 4 off; the left gripper is 4.5 from it instead of 0.5; the nearest gripper is now
    # the right one, 1 away, instead of the left one, 0.5 away: (4 + 4 + 0.5) / 3.
    assert found["handover"] == pytest.approx([100.0 / 3, 850.0 / 3, 0.0], abs=1e-3)


@pytest.mark.parametrize("reading", [PUSHT_READING, ALOHA_READING])
def test_a_reading_survives_the_checkpoint(reading: Reading) -> None:
    assert Reading.parse(json.loads(json.dumps(reading.document()))) == reading


def _changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = ALOHA_READING.document()
    change(document)
    return document


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (None, "preprocessing.points"),
        (_changed(lambda d: d.pop("axes")), "preprocessing.points"),
        (_changed(lambda d: d.update(names=["cube", "cube"])), "points.names"),
        (_changed(lambda d: d.update(axes=4)), "points.axes"),
        (_changed(lambda d: d.update(unit_mm=0)), "points.unit_mm"),
        (_changed(lambda d: d.update(unit_mm=float("nan"))), "points.unit_mm"),
        (_changed(lambda d: d.update(objectives=[])), "points.objectives"),
        (_changed(lambda d: d["objectives"].update(l2=[])), "objectives.l2"),
        (_changed(lambda d: d["objectives"].update(pose=[])), "objectives.pose"),
        (_changed(lambda d: d["objectives"].update(pose=[{"points": ["box"]}])), "objectives.pose"),
        (
            _changed(lambda d: d["objectives"].update(pose=[{"points": ["cube"], "weight": -1}])),
            "objectives.pose",
        ),
        (
            _changed(lambda d: d["objectives"].update(pose=[{"points": ["cube", "left_gripper"]}])),
            "objectives.pose",
        ),
    ],
)
def test_a_bad_reading_is_refused(document: object, field: str) -> None:
    with pytest.raises(WorldForgeError, match=field) as info:
        Reading.parse(document)
    assert info.value.code is ErrorCode.CHECKPOINT_INVALID


def checkpoint(folder: Path, size: int | tuple[int, int], **more: object) -> Path:
    """A checkpoint with random weights for ALOHA."""
    folder.mkdir()
    config = default_config(size, 140, dim=32, channels=(8, 8, 8), stem=4)
    torch.manual_seed(0)
    save_file(build_lewm(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    document = {
        "image_size": config["encoder"]["image_size"],
        "pixel_mean": [0.5] * 3,
        "pixel_std": [0.25] * 3,
        "action_mean": [0.0] * JOINTS,
        "action_std": [1.0] * JOINTS,
        "action_meaning": "absolute",
        "action_scale": [1.0] * JOINTS,
        "step": 0.02,
        "block": 10,
        "history": 1,
        **more,
    }
    (folder / "preprocessing.json").write_text(json.dumps(document))
    return folder


def test_pictures_are_never_stretched_unless_the_checkpoint_says_so(tmp_path: Path) -> None:
    aloha = load_embodiment("aloha")
    assert load_lewm(checkpoint(tmp_path / "same", (24, 32)), aloha).objectives == ("l2", "l1")
    with pytest.raises(WorldForgeError, match=r"32 x 32.* the ratio of 480 x 640") as info:
        load_lewm(checkpoint(tmp_path / "square", 32), aloha)
    assert info.value.code is ErrorCode.EMBODIMENT_MISMATCH
    scorer = load_lewm(checkpoint(tmp_path / "stretched", 32, resize="stretch"), aloha)
    seen = observation()
    scores = scorer.score([seen], seen.images["top"], np.zeros((2, 10, JOINTS)))
    assert scores.metadata["image"] == "32x32"
    with pytest.raises(WorldForgeError, match="one of keep, stretch"):
        load_lewm(checkpoint(tmp_path / "cropped", (24, 32), resize="crop"), aloha)


def test_the_whole_picture_is_seen_the_right_way_up() -> None:
    picture = np.zeros((1, 480, 640, 3), np.uint8)
    picture[:, :120, 480:] = 200
    small = resize_pixels(picture, (24, 32))
    # A quarter from the top and from the right, up to the blur of one pixel at the edges.
    assert (small[0, :5, 25:] == 200).all()
    assert (small[0, 7:] == 0).all()
    assert (small[0, :, :23] == 0).all()


def test_positions_of_the_soft_maximum_are_those_of_the_picture() -> None:
    encoder = build_lewm(default_config((24, 32), 140, dim=32, channels=(8, 8, 8), stem=4)).encoder
    # 24 x 32 at a quarter: 6 rows of 8 columns, row by row, x first.
    grid = encoder.grid_0
    assert grid.shape == (48, 2)
    assert grid[0].tolist() == [-1.0, -1.0]
    assert grid[7].tolist() == [1.0, -1.0]
    assert grid[40].tolist() == [-1.0, 1.0]
    assert encoder(torch.zeros(2, 3, 24, 32)).last_hidden_state.shape == (2, 1, 32)


@pytest.mark.parametrize(("text", "size"), [("96x128", (96, 128)), ("64", 64), ("32x32", 32)])
def test_picture_sizes_of_the_command(text: str, size: object) -> None:
    assert world_model.picture_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "96x", "96x128x3", "ninety", "-4x4"])
def test_other_picture_sizes_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected HEIGHTxWIDTH"):
        world_model.picture_size(text)


def episode(seed: int, kind: str, steps: int, every: int, size: tuple[int, int]) -> Any:
    """An episode of noise; the arms stand still in a real state of the simulator."""
    from worldforge_ros.simulation.aloha import GOAL_STATE

    rng = np.random.default_rng([seed, len(kind)])
    state = np.repeat(GOAL_STATE[None], steps, axis=0)
    state[:, 16:19] += rng.normal(0.0, 0.05, (steps, 3))
    joints = rng.normal(0.0, 0.1, (steps, JOINTS)).astype(np.float32)
    return dataset.Episode(
        images=rng.integers(0, 256, (-(-steps // every), *size, 3), dtype=np.uint8),
        position=joints,
        velocity=joints,
        action=joints,
        label=joints,
        state=state.astype(np.float32),
        coverage=np.linspace(0.0, 1.0, steps, dtype=np.float32),
        seed=seed,
        kind=kind,
        image_every=every,
    )


def record(folder: Path, size: tuple[int, int] = (24, 32)) -> Path:
    for seed in range(100_000, 100_010):
        path = dataset.episode_path(folder, "demo", seed)
        dataset.save_episode(episode(seed, "demo", 41, 10, size), path)
    return folder


def test_pictures_of_some_steps_only(tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    for name, steps in (("demo", 25), ("play", 12)):
        path = dataset.episode_path(tmp_path, name, 7)
        dataset.save_episode(episode(7, name, steps, 10, (6, 8)), path)
    found = dataset.load_episodes(dataset.list_episodes(tmp_path), tmp_path / "images.raw")
    assert found.images.shape == (5, 6, 8, 3)
    shown = np.flatnonzero(found.frames >= 0)
    assert shown.tolist() == [0, 10, 20, 25, 35]
    assert found.frames[shown].tolist() == [0, 1, 2, 3, 4]
    # Windows begin with a picture, wherever a stride of 4 would have them.
    assert found.windows(5).tolist() == [0, 10, 20, 25]
    assert found.windows(5, stride=4).tolist() == [0, 20, 25]
    np.testing.assert_array_equal(found.episode(1).images, found.images[3:])
    broken = episode(8, "demo", 25, 5, (6, 8))
    object.__setattr__(broken, "image_every", 10)
    path = dataset.episode_path(tmp_path, "demo", 8)
    dataset.save_episode(broken, path)
    with pytest.raises(WorldForgeError, match="5 of 25 steps; expected one every 10"):
        dataset.load_episode(path)
    dataset.save_episode(episode(8, "demo", 25, 5, (3, 4)), path)
    with pytest.raises(WorldForgeError, match=r"pictures of .*demo_000008"):
        dataset.load_episodes(dataset.list_episodes(tmp_path))


def arguments(module: ModuleType, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([*given, "--embodiment", "aloha", "--threads", "1"])


def test_training_exports_a_checkpoint_that_scores(tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    data = record(tmp_path / "data")
    for seed in (400_000, 400_009):
        # A branch: one picture, then two blocks of which only the true state is known.
        path = dataset.episode_path(data, "branch", seed)
        dataset.save_episode(episode(seed, "branch", 21, 21, (24, 32)), path)
    first = ["--data", str(data), "--out", str(tmp_path / "first"), "--image-size", "24x32"]
    first += ["--steps", "1", "--batch", "4", "--projections", "8", "--state-weight", "1"]
    assert world_model.run(arguments(world_model, *first, "--weights", "float16")) == 0
    before = tmp_path / "first" / "checkpoint"
    second = ["--data", str(data), "--world-model", str(before), "--out", str(tmp_path / "second")]
    second += ["--checkpoint", str(tmp_path / "done"), "--blocks", "2", "--batch", "4"]
    second += ["--steps", "2", "--head-steps", "2", "--state-weight", "1", "--weights", "float16"]
    assert predictor.run(arguments(predictor, *second)) == 0
    lines = (tmp_path / "second" / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert {"cube_2_mm", "grippers_0_mm", "branch_cube_2_mm", "steps_error"} <= set(last)
    for folder in (before, tmp_path / "done"):
        scorer = load_lewm(folder, load_embodiment("aloha"))
        assert scorer.default_objective == "handover"
        seen = observation()
        goal = observation(1).images["top"]
        candidates = np.random.default_rng(0).normal(0.0, 0.3, (3, 20, JOINTS))
        for objective in scorer.objectives:
            costs = scorer.score([seen], goal, candidates, objective=objective).costs
            assert np.isfinite(costs).all()
            assert len(set(costs.tolist())) == 3
    assert scorer.objectives == ("l2", "l1", "pose", "scene", "handover", "steps")


def test_prepared_aloha_data_is_time_aligned(tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    data = record(tmp_path)
    path = dataset.episode_path(data, "branch", 400_000)
    dataset.save_episode(episode(400_000, "branch", 21, 21, (24, 32)), path)
    episodes = dataset.load_episodes(dataset.list_episodes(data))
    found = world_model.prepare(episodes, load_embodiment("aloha"), (24, 32))
    # The branch is read first. Windows of 31 steps in 41 begin at 0 and 10; the tenth demonstration
    # is held out.
    assert found.train.tolist() == [21 + 41 * k + start for k in range(9) for start in (0, 10)]
    assert found.held_out.tolist() == [390, 400]
    assert found.branches.tolist() == [0]
    assert not len(found.held_out_branches)
    assert found.at(np.array([0, 21, 31, 62, 26, 10])).tolist() == [0, 1, 2, 6, -1, -1]
    # The true state of the branch is known where there is no picture.
    cube = (episodes.state[20, 16:19] - ALOHA_CENTRE) * 10.0
    np.testing.assert_allclose(found.targets_at(np.array([20]))[0, :3], cube, atol=1e-5)
    np.testing.assert_array_equal(found.raw[17], episodes.action[17])


def test_pictures_resized_twice_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    episodes = dataset.load_episodes(dataset.list_episodes(record(tmp_path, (48, 64))))
    with pytest.raises(WorldForgeError, match=r"\(480, 640\) or \(24, 32\)") as info:
        world_model.prepare(episodes, load_embodiment("aloha"), (24, 32))
    assert info.value.code is ErrorCode.IMAGE_SIZE_MISMATCH


def test_what_is_read_is_where_things_are() -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    from worldforge_ros.simulation.aloha import GOAL_STATE

    state = GOAL_STATE.copy()
    state[16:19] = 0.1, 0.6, 0.05
    cube, left, right, left_spread, right_spread = (
        task_of("aloha").targets(state[None]).reshape(5, 3)
    )
    np.testing.assert_allclose(cube, [1.0, 1.0, -1.0], atol=1e-6)
    # The left arm stands at x = -0.469 m and reaches towards the middle, the right one mirrored.
    assert -4.0 < left[0] < right[0] < 4.0
    # Fingers of a gripper are apart by twice its opening, and the right one is open.
    assert np.linalg.norm(left_spread) < np.linalg.norm(right_spread) < 1.6


def test_a_robot_without_a_task_is_refused() -> None:
    with pytest.raises(WorldForgeError, match="one of pusht, aloha"):
        task_of("so101")


def test_the_shipped_model_scores() -> None:
    scorer = load_lewm(SHIPPED, load_embodiment("aloha"))
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.safetensors")) < 2_800_000
    seen = observation()
    candidates = np.random.default_rng(0).normal(0.0, 0.3, (4, 50, JOINTS))
    for objective in ("", *scorer.objectives):
        scores = scorer.score([seen], seen.images["top"], candidates, objective=objective)
        assert np.isfinite(scores.costs).all()
        assert len(set(scores.costs.tolist())) == 4
