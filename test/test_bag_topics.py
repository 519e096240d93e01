"""Which topic of a bag is what, and what is said where it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_support import START, data_file, joint_state, write_bag

from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import BagTopics, find_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError

PUSHT = load_embodiment("pusht")
EVERYTHING: dict[str, Any] = {"observations": True, "plan_reports": True, "chunks": True}


def find(path: Path, **how: Any) -> BagTopics:
    with Bag.open(path) as bag:
        return find_topics(bag, PUSHT, **how)


def refusal(path: Path, **how: Any) -> WorldForgeError:
    with pytest.raises(WorldForgeError) as caught:
        find(path, **how)
    return caught.value


def test_every_topic_of_a_whole_recording_is_found(tmp_path: Path) -> None:
    topics = find(write_bag(tmp_path / "bag", seconds=0.6, **EVERYTHING))
    assert topics.roles() == {
        "top": "/camera/top/image_raw",
        "joint_states": "/joint_states",
        "observation": "/observation",
        "goal_image": "/goal_image",
        "plan_report": "/plan_report",
        "proposed": "/action_chunk/proposed",
        "approved": "/action_chunk/approved",
        "joint_commands": "/joint_commands",
    }
    assert topics.gate_status == topics.joint_trajectory == ""
    assert topics.all() == frozenset(topics.roles().values())


def test_a_namespace_and_remappings_lead_to_other_names(tmp_path: Path) -> None:
    other = [("/arm/states", START + k, joint_state(START, *np.zeros((2, 2)))) for k in range(3)]
    path = write_bag(
        tmp_path / "bag", seconds=0.2, namespace="/robot1", extra=other, drop=["/robot1/absent"]
    )
    assert find(path, namespace="robot1").joint_states == "/robot1/joint_states"
    assert find(path, namespace="/robot1/").cameras == {"top": "/robot1/camera/top/image_raw"}
    there = {"joint_states": "/arm/states", "goal_image": "camera/top/image_raw"}
    topics = find(path, namespace="robot1", remap=there)
    assert topics.joint_states == "/arm/states"
    assert topics.goal_image == "/robot1/camera/top/image_raw"
    assert topics.joint_commands == "/robot1/joint_commands"
    error = refusal(path, namespace="robot1", remap={"joint_state": "/arm/states"})
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert "joint_states" in str(error)
    error = refusal(path, namespace="robot1", remap={"goal_image": "goal"})
    assert error.code is ErrorCode.TOPIC_MISSING
    assert "topic /robot1/goal, which a remapping gives for goal_image, is not in" in str(error)
    assert "/arm/states (sensor_msgs/msg/JointState" in str(error)


def test_a_camera_may_be_compressed_and_raw_comes_first(tmp_path: Path) -> None:
    packed = write_bag(tmp_path / "packed", seconds=0.3, compressed="jpeg")
    assert find(packed).cameras == {"top": "/camera/top/image_raw/compressed"}
    both = write_bag(
        tmp_path / "both",
        seconds=0.3,
        empty_topics=[("/camera/top/image_raw", "sensor_msgs/msg/Image")],
        compressed="jpeg",
    )
    assert find(both).cameras == {"top": "/camera/top/image_raw/compressed"}, "raw has no message"


@pytest.mark.parametrize("how", ["auto", "observation", "sensors"])
def test_where_observations_come_from(tmp_path: Path, how: str) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.3, observations=True)
    topics = find(path, observations=how)
    assert topics.observation == ("" if how == "sensors" else "/observation")
    assert topics.cameras == {"top": "/camera/top/image_raw"}


def test_with_observations_the_sensors_may_be_absent(tmp_path: Path) -> None:
    path = write_bag(
        tmp_path / "bag",
        seconds=0.3,
        observations=True,
        drop=["/camera/top/image_raw", "/joint_states"],
    )
    topics = find(path)
    assert topics.cameras == {"top": ""}
    assert topics.joint_states == ""
    assert "top" not in topics.roles()
    assert "" not in topics.all()
    error = refusal(path, observations="sensors")
    assert error.code is ErrorCode.TOPIC_MISSING
    assert "/camera/top/image_raw" in str(error)


@pytest.mark.parametrize(
    ("dropped", "named"),
    [("/joint_states", "joint_states"), ("/camera/top/image_raw", "camera/top/image_raw")],
)
def test_a_missing_topic_is_named_with_what_the_bag_holds(
    tmp_path: Path, dropped: str, named: str
) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.5, drop=[dropped])
    error = refusal(path)
    assert error.code is ErrorCode.TOPIC_MISSING
    assert dropped in str(error)
    assert f"--remap {named}:=TOPIC" in str(error)
    assert "/joint_commands (std_msgs/msg/Float64MultiArray, 50)" in str(error)
    missing = refusal(write_bag(tmp_path / "other", seconds=0.2), observations="observation")
    assert missing.code is ErrorCode.TOPIC_MISSING
    assert "worldforge_ros/msg/Observation" in str(missing)


def test_a_topic_of_another_type_is_named(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.3)
    error = refusal(path, remap={"joint_states": "/joint_commands"})
    assert error.code is ErrorCode.TOPIC_TYPE_MISMATCH
    assert "topic /joint_commands" in str(error)
    assert "is std_msgs/msg/Float64MultiArray; expected sensor_msgs/msg/JointState" in str(error)
    assert "/camera/top/image_raw (sensor_msgs/msg/Image, 3)" in str(error)


def test_a_topic_of_two_types_is_refused(tmp_path: Path) -> None:
    other = [("/joint_commands", START + 1, joint_state(START, *np.zeros((2, 2))))]
    error = refusal(write_bag(tmp_path / "bag", seconds=0.3, extra=other))
    assert error.code is ErrorCode.TOPIC_TYPE_MISMATCH
    assert "sensor_msgs/msg/JointState and std_msgs/msg/Float64MultiArray" in str(error)


def test_a_standard_message_with_other_fields_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", storage="sqlite3", seconds=0.3)
    file = data_file(path)
    content = file.read_bytes()
    assert b"float64[] position" in content
    file.write_bytes(content.replace(b"float64[] position", b"float64[] whatever"))
    error = refusal(path)
    assert error.code is ErrorCode.TOPIC_TYPE_MISMATCH
    assert "sensor_msgs/msg/JointState" in str(error)
