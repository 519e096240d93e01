"""The embodiment file: what it says, and how a wrong one is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldforge_ros.embodiment import (
    StateFeature,
    load_embodiment,
    parse_embodiment,
    unfilled,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import share_dir

PUSHT = yaml.safe_load((share_dir() / "config/embodiments/pusht.yaml").read_text())


def test_pusht_says_what_the_design_says() -> None:
    pusht = load_embodiment("pusht")
    assert pusht.joint_names == ("pusher_x", "pusher_y")
    assert (pusht.joints[0].min_position, pusht.joints[0].max_position) == (0.0, 0.512)
    assert pusht.scoring.block_duration == pytest.approx(0.5)
    state = pusht.policy.features["observation.state"]
    assert isinstance(state, StateFeature)
    assert state.scale == (1000.0, 1000.0)


def changed(path: str, value: Any) -> dict[str, Any]:
    data: Any = copy.deepcopy(PUSHT)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("joints", [], "joints"),
        ("joints.0.type", "linear", "joints[0].type"),
        ("joints.0.min_position", 0.6, "joints[0].min_position"),
        ("joints.0.max_velocity", -1, "joints[0].max_velocity"),
        ("joints.1.name", "pusher_x", "joints"),
        ("joints.0.max_vel", 1.0, "joints[0].max_vel"),
        ("cameras.top.width", 0, "cameras.top.width"),
        ("cameras.top.topic", "", "cameras.top.topic"),
        ("observation.max_age", float("nan"), "observation.max_age"),
        ("policy.features.observation.state", None, ""),
        ("policy.action.meaning", "delta", "policy.action.meaning"),
        ("policy.action.scale", [1.0, 2.0, 3.0], "policy.action.scale"),
        ("policy.action.scale", 0.0, "policy.action.scale"),
        ("policy.step", True, "policy.step"),
        ("world_model.camera", "wrist", "world_model.camera"),
        ("world_model.block", 2.5, "world_model.block"),
        ("world_model.action.mean", [0.0, 0.0], "world_model.action"),
        ("tracking.law", "magic", "tracking.law"),
        ("task", KeyError, "task"),
        ("extra", 1, "extra"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, named: str) -> None:
    if path == "policy.features.observation.state":
        data = copy.deepcopy(PUSHT)
        data["policy"]["features"]["observation.state"]["joints"] = ["elbow"]
        named = "policy.features.observation.state.joints"
    else:
        data = changed(path, value)
    with pytest.raises(WorldForgeError) as caught:
        parse_embodiment(data)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID
    assert f"field {named} is" in caught.value.message
    assert "expected" in caught.value.message


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(WorldForgeError, match=r"'so101'; expected one of .*pusht") as caught:
        load_embodiment("so101")
    assert caught.value.code is ErrorCode.EMBODIMENT_UNKNOWN


def test_a_missing_file_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(WorldForgeError) as caught:
        load_embodiment(tmp_path / "none.yaml")
    assert caught.value.code is ErrorCode.EMBODIMENT_UNKNOWN
    broken = tmp_path / "broken.yaml"
    broken.write_text("joints: [")
    with pytest.raises(WorldForgeError) as caught:
        load_embodiment(broken)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(PUSHT))
    assert load_embodiment(own) == load_embodiment("pusht")


@pytest.mark.parametrize("absent", [None, KeyError])
def test_a_robot_without_a_world_model_is_refused_only_where_something_is_scored(
    absent: Any,
) -> None:
    robot = parse_embodiment(changed("world_model", absent))
    assert robot.world_model is None
    with pytest.raises(WorldForgeError, match=r"field world_model is absent in pusht") as caught:
        robot.scoring  # noqa: B018  reading it is what raises
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID
    assert "'first' and 'random' do without" in caught.value.message


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("task", "task"),
        ("joints.1.name", "joints[1].name"),
        ("cameras.top.topic", "cameras.top.topic"),
        ("policy.action.scale", "policy.action.scale"),
        ("world_model.proprio.quantities", "world_model.proprio.quantities"),
    ],
)
@pytest.mark.parametrize("value", ["TODO", "TODO shoulder_pan", ["TODO", 1.0]])
def test_what_a_person_has_not_filled_in_is_refused(path: str, field: str, value: Any) -> None:
    if isinstance(value, list):
        field += "[0]"
    data = changed(path, value)
    assert unfilled(data) == (field,)
    with pytest.raises(WorldForgeError) as caught:
        parse_embodiment(data)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID
    assert f"field {field} is still TODO" in caught.value.message


def test_all_gaps_are_found_in_the_files_order() -> None:
    data = changed("policy.step", "TODO")
    data["task"] = "TODO"
    data["policy"]["features"]["observation.state"]["scale"] = ["TODO", "TODO"]
    assert unfilled(data) == (
        "task",
        "policy.step",
        "policy.features.observation.state.scale[0]",
        "policy.features.observation.state.scale[1]",
    )
    with pytest.raises(WorldForgeError, match=r"field task is still TODO.*and 3 more"):
        parse_embodiment(data)
    assert unfilled(PUSHT) == ()
