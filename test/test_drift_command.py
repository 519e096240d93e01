"""Drift from bags and its card: cut into clips, measured, written down, obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_support import NS, START, pusht_messages, write_bag, write_messages

from worldforge_ros.bringup import bring_up, find_task
from worldforge_ros.checkpoints import file_sha256, tree_sha256
from worldforge_ros.cli import main
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.recordings import Recordings, clips_of
from worldforge_ros.resources import resolve_path
from worldforge_ros.scorers.cards import DRIFT_FILE, DriftCard, drift_horizon_of

ROBOT = load_embodiment("pusht")
MODEL = resolve_path("package://worldforge_ros/models/pusht/world_model")


def test_clips_have_a_picture_a_block_and_a_set_point_a_step(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=5.0)
    recordings = Recordings([bag], ROBOT)
    (clip,) = recordings.clips()
    assert clip.episode == "bag"
    assert list(recordings.sources) == ["bag"]
    # 5 s of 0.1 s steps are 9 blocks of 5 and something.
    assert clip.images.shape == (10, 96, 96, 3)
    assert clip.actions.shape == (45, 2)
    assert clip.position.shape == clip.velocity.shape == (46, 2)
    from bag_support import LEAD, position

    np.testing.assert_allclose(clip.position[7], position(0.7), atol=1e-9)
    # What was told in the middle of a step leads what was measured by LEAD.
    np.testing.assert_allclose(clip.actions[7], position(0.75 + LEAD), atol=1e-3)
    np.testing.assert_allclose(clip.at_frames(clip.position)[2], position(1.0), atol=1e-9)


def test_a_gap_ends_a_clip_and_not_an_episode(tmp_path: Path) -> None:
    messages = [*pusht_messages(2.0), *pusht_messages(2.0, start=START + 60 * NS)]
    bag = write_messages(tmp_path / "bag", messages)
    clips = list(Recordings([bag], ROBOT).clips())
    assert [clip.episode for clip in clips] == ["bag", "bag"]
    assert [len(clip) for clip in clips] == [4, 4]


def test_long_stretches_are_cut_at_a_shared_picture(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=5.0)
    clips = list(Recordings([bag], ROBOT, longest=4).clips())
    assert [len(clip) for clip in clips] == [5, 5, 2]
    np.testing.assert_array_equal(clips[0].images[-1], clips[1].images[0])
    np.testing.assert_array_equal(clips[0].position[-1], clips[1].position[0])


def test_episodes_of_a_data_set_are_several() -> None:
    from worldforge_ros.bags.frames import Frame
    from worldforge_ros.observation import Observation

    def frame(index: int) -> Frame:
        image = {"top": np.zeros((96, 96, 3), np.uint8)}
        seen = Observation(index, image, np.zeros(2), np.zeros(2))
        return Frame(index % 12 == 0, seen, np.zeros(2))

    clips = list(clips_of(map(frame, range(24)), ROBOT, "set", several=True))
    assert [clip.episode for clip in clips] == ["set", "set#2"]


def test_a_data_set_gives_the_clips_of_the_bags_it_is_of(tmp_path: Path) -> None:
    pytest.importorskip("lerobot", reason="the package lerobot is not installed")
    from worldforge_ros.bags.dataset_writer import export_bags

    bags = [write_bag(tmp_path / name, seconds=seconds) for name, seconds in (("a", 2), ("b", 3))]
    export_bags(bags, tmp_path / "set", ROBOT)
    recordings = Recordings([tmp_path / "set"], ROBOT)
    clips = list(recordings.clips())
    assert [clip.episode for clip in clips] == ["set", "set#2"]
    assert recordings.sources == {"set": tree_sha256(tmp_path / "set" / "meta")}
    for clip, recorded in zip(clips, Recordings(bags, ROBOT).clips(), strict=True):
        for name in ("images", "position", "velocity", "actions"):
            np.testing.assert_array_equal(getattr(clip, name), getattr(recorded, name))


def test_a_bag_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=2.0)
    recordings = Recordings([tmp_path / "absent", bag], ROBOT)
    assert len(list(recordings.clips())) == 1
    assert [error.code for _, error in recordings.failed] == [ErrorCode.BAG_MISSING]
    with pytest.raises(WorldForgeError) as caught:
        list(Recordings([tmp_path / "absent"], ROBOT).clips())
    assert caught.value.code is ErrorCode.BAG_MISSING


def test_two_recordings_of_one_name_are_two_episodes(tmp_path: Path) -> None:
    bags = []
    for folder in ("monday", "tuesday"):
        (tmp_path / folder).mkdir()
        bags.append(write_bag(tmp_path / folder / "bag", seconds=2.0))
    recordings = Recordings(bags, ROBOT)
    assert [clip.episode for clip in recordings.clips()] == [str(bag) for bag in bags]
    assert list(recordings.sources) == [str(bag) for bag in bags]
    with pytest.raises(WorldForgeError, match="twice"):
        list(Recordings([bags[0], bags[0].parent / "." / "bag"], ROBOT).clips())


def test_the_command_measures_bags_and_says_why_there_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the package torch is not installed")
    bags = [str(write_bag(tmp_path / name, seconds=3.0)) for name in ("a", "b")]
    out = tmp_path / "out"
    arguments = [*bags, str(tmp_path / "absent"), "--out", str(out)]
    assert main(["drift", *arguments, "--json", str(tmp_path / "drift.json")]) == 0
    figures = json.loads((tmp_path / "drift.json").read_text())
    assert figures == json.loads((out / "drift.json").read_text())
    assert figures["drift_horizon_blocks"] is None
    assert "2 episodes" in figures["reason"]
    assert figures["seconds"] is None
    assert len(figures["horizon"]) == len(figures["open_loop"]) == 5
    for name in ("closed_loop", "shuffled", "unchanged", "previous"):
        assert len(figures[name]) == 5
    assert sorted(figures["source"]) == ["a", "b"]
    assert "BAG_MISSING" in next(iter(figures["failed"].values()))
    assert (out / "drift.png").stat().st_size > 10_000
    assert json.loads((out / "manifest.json").read_text())["command"] == "drift"
    printed = capsys.readouterr().out
    assert "none can be told" in printed
    # Without a verdict there is nothing to write beside the checkpoint.
    assert main(["drift", *bags, "--out", str(out), "--write-card"]) == 1
    assert "drift horizon to write down" in capsys.readouterr().err
    assert not (MODEL / DRIFT_FILE).exists() or DriftCard.read(
        MODEL / DRIFT_FILE, file_sha256(MODEL / "model.safetensors"), ROBOT
    )


def test_simulated_episodes_are_measured_as_recorded_ones(tmp_path: Path) -> None:
    """One of the policy alone; what it is from is in the figures."""
    pytest.importorskip("lerobot", reason="the package lerobot is not installed")
    out = tmp_path / "out"
    options = ["--simulate", "pusht", "--planner", "first", "--episodes", "1", "--seeds", "7"]
    assert main(["drift", *options, "--longest", "3", "--out", str(out)]) == 0
    figures = json.loads((out / "drift.json").read_text())
    assert figures["source"] == {"simulated": "pusht", "planner": "first", "seeds": [7, 7]}
    assert figures["horizon"] == [1, 2, 3]
    assert figures["open_loop"][0] < figures["unchanged"][0]
    # With nobody to borrow actions from there is no such control, and no verdict.
    assert figures["shuffled"] == [None, None, None]
    assert figures["drift_horizon_blocks"] is None


def test_clips_are_of_recordings_or_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift"]) == 2
    assert "recordings" in capsys.readouterr().err
    assert main(["drift", "some_bag", "--simulate", "pusht"]) == 2
    assert "beside --simulate" in capsys.readouterr().err


def shipped_copy(folder: Path) -> Path:
    """The shipped checkpoint without cards, as far as a bring-up looks at it."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(MODEL / name)
    return folder


def card(folder: Path, blocks: int = 2, **changes: Any) -> DriftCard:
    fields = {
        "model_id": "x",
        "sha256": file_sha256(folder / "model.safetensors"),
        "embodiment": "pusht",
        "block_seconds": 0.5,
        "drift_horizon_blocks": blocks,
        "at_least": False,
        "episodes": 9,
    }
    return DriftCard(**{**fields, **changes})


def test_the_planner_is_told_what_the_card_says(tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "model")
    assert drift_horizon_of(str(folder), ROBOT) == 0

    def horizon(**extra: str) -> Any:
        nodes = bring_up(find_task("pusht"), {"world_model": str(folder), **extra})
        (planner,) = [node for node in nodes if node.name == "planner_node"]
        return planner.parameters.get("drift_horizon")

    assert horizon() is None
    card(folder).write(folder / DRIFT_FILE)
    assert drift_horizon_of(str(folder), ROBOT) == 2
    assert horizon() == 2
    assert horizon(planner="first") is None
    file = tmp_path / "mine.yaml"
    file.write_text("planner_node: {ros__parameters: {drift_horizon: 7}}\n")
    assert horizon(params_file=str(file)) == 7


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sha256": "0" * 64}, ErrorCode.CHECKPOINT_UNTRUSTED),
        ({"drift_horizon_blocks": -1}, ErrorCode.CHECKPOINT_INVALID),
        ({"drift_horizon_blocks": 2.0}, ErrorCode.CHECKPOINT_INVALID),
        ({"drift_horizon_blocks": 0}, ErrorCode.HORIZON_BEYOND_DRIFT),
    ],
)
def test_a_card_that_does_not_fit_is_an_error(
    tmp_path: Path, changes: dict[str, Any], code: ErrorCode
) -> None:
    folder = shipped_copy(tmp_path / "model")
    card(folder, **changes).write(folder / DRIFT_FILE)
    with pytest.raises(WorldForgeError) as caught:
        drift_horizon_of(str(folder), ROBOT)
    assert caught.value.code is code


@pytest.mark.parametrize("changes", [{"embodiment": "aloha"}, {"block_seconds": 0.1}])
def test_a_card_of_another_robot_says_nothing_about_this_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = shipped_copy(tmp_path / "model")
    written = card(folder, **changes)
    written.write(folder / DRIFT_FILE)
    assert drift_horizon_of(str(folder), ROBOT) == 0
    with pytest.raises(WorldForgeError) as caught:
        DriftCard.read(folder / DRIFT_FILE, written.sha256, ROBOT)
    assert caught.value.code is ErrorCode.EMBODIMENT_MISMATCH
