"""World, bridge, embodiment, parameters and nodes of the bring-up in Gazebo say the same."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from worldforge_ros.bringup import TASKS, bring_up
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.resources import resolve_path
from worldforge_ros.simulation import gazebo_pusht, gazebo_run
from worldforge_ros.simulation.gazebo import FLAVOURS, world_text
from worldforge_ros.simulation.gazebo_pusht import TICK

ROBOT = load_embodiment("pusht")
BRIDGED = {
    "sensor_msgs/msg/Image": "gz.msgs.Image",
    "sensor_msgs/msg/CameraInfo": "gz.msgs.CameraInfo",
    "sensor_msgs/msg/JointState": "gz.msgs.Model",
    "geometry_msgs/msg/TransformStamped": "gz.msgs.Pose",
    "trajectory_msgs/msg/JointTrajectory": "gz.msgs.JointTrajectory",
}
"""The pairs that ros_gz_bridge converts (its mappings.py), as far as they may be used here."""


@cache
def world() -> ElementTree.Element:
    root = ElementTree.parse(resolve_path(gazebo_run.WORLD_FILE)).getroot()
    found = root.find("world")
    assert found is not None
    return found


def model(name: str) -> ElementTree.Element:
    (found,) = (item for item in world().iter("model") if item.get("name") == name)
    return found


def plugin(of: ElementTree.Element, system: str) -> ElementTree.Element:
    (found,) = (p for p in of.findall("plugin") if p.get("name") == f"gz::sim::systems::{system}")
    return found


def text(of: ElementTree.Element, path: str) -> str:
    found = of.findtext(path)
    assert found is not None, path
    return found.strip()


def numbers(of: ElementTree.Element, path: str) -> list[float]:
    return [float(value) for value in text(of, path).split()]


@cache
def bridge() -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = yaml.safe_load(
        resolve_path(gazebo_run.BRIDGE_FILE).read_text(encoding="utf-8")
    )
    return content


def entry(ros_name: str) -> dict[str, Any]:
    (found,) = (item for item in bridge() if item["ros_topic_name"] == ros_name)
    return found


def absolute(topic: str) -> str:
    """A topic of Gazebo as it is told on the wire."""
    return topic if topic.startswith("/") else f"/{topic}"


def test_the_bridge_file_has_only_what_every_release_of_the_bridge_reads() -> None:
    keys = {"ros_topic_name", "gz_topic_name", "ros_type_name", "gz_type_name", "direction"}
    for item in bridge():
        assert set(item) == keys, (
            "another key, or an entry without one, is dropped or bidirectional"
        )
        assert BRIDGED[item["ros_type_name"]] == item["gz_type_name"]
        assert item["direction"] in ("GZ_TO_ROS", "ROS_TO_GZ")
        assert item["gz_topic_name"].startswith("/")
        # In the bridge's namespace, so that nodes in any namespace find it.
        assert not item["ros_topic_name"].startswith("/")
    names = [item["ros_topic_name"] for item in bridge()]
    assert len(set(names)) == len(names)


def test_the_bridge_speaks_both_flavours() -> None:
    source = resolve_path(gazebo_run.BRIDGE_FILE).read_text(encoding="utf-8")
    assert gazebo_run.bridge_text(source, "gz") == source
    old = yaml.safe_load(gazebo_run.bridge_text(source, "ignition"))
    assert gazebo_run.FLAVOURS == FLAVOURS
    for before, after in zip(bridge(), old, strict=True):
        assert after == before | {
            "gz_type_name": before["gz_type_name"].replace("gz.msgs.", "ignition.msgs.")
        }


def test_the_camera_is_the_embodiments() -> None:
    camera = ROBOT.cameras["top"]
    (sensor,) = (s for s in world().iter("sensor") if s.get("type") == "camera")
    assert int(text(sensor, "camera/image/width")) == camera.width
    assert int(text(sensor, "camera/image/height")) == camera.height
    assert text(sensor, "camera/image/format") == "R8G8B8"
    image = entry(camera.topic)
    assert image["gz_topic_name"] == absolute(text(sensor, "topic"))
    info = sensor.findtext("camera/camera_info_topic") or re.sub(
        r"[^/]+$", "camera_info", text(sensor, "topic")
    )
    assert entry("camera/top/camera_info")["gz_topic_name"] == absolute(info)
    assert float(text(sensor, "update_rate")) == pytest.approx(1.0 / ROBOT.policy.step)
    assert text(sensor, "always_on") in ("true", "1")


def test_the_joints_are_the_embodiments() -> None:
    robot = model("pusher")
    publisher = plugin(robot, "JointStatePublisher")
    controller = plugin(robot, "JointTrajectoryController")
    for system in (publisher, controller):
        assert tuple(item.text for item in system.findall("joint_name")) == ROBOT.joint_names
    for joint in ROBOT.joints:
        (found,) = (item for item in robot.findall("joint") if item.get("name") == joint.name)
        assert found.get("type") == joint.type
        assert float(text(found, "axis/limit/lower")) == joint.min_position
        assert float(text(found, "axis/limit/upper")) == joint.max_position
    states = entry("gazebo_pusht/joint_states")
    assert states["gz_topic_name"] == absolute(text(publisher, "topic"))
    # As often as they are passed on, and /clock ticks.
    assert 1.0 / float(text(publisher, "update_rate")) == pytest.approx(TICK)
    for name in ("joint_trajectory", "gazebo_pusht/joint_trajectory"):
        assert entry(name)["gz_topic_name"] == absolute(text(controller, "topic"))
        assert entry(name)["direction"] == "ROS_TO_GZ"


def test_the_gate_sends_what_gazebos_controller_takes() -> None:
    gate = next(s for s in bring_up(TASKS["gazebo"]) if s.name == "safety_gate")
    assert gate.parameters["output"] == "joint_trajectory"
    assert entry(str(gate.parameters["output"]))["direction"] == "ROS_TO_GZ"
    controller = plugin(model("pusher"), "JointTrajectoryController")
    starts = [float(item.text or "nan") for item in controller.findall("initial_position")]
    for start, joint in zip(starts, ROBOT.joints, strict=True):
        assert joint.min_position is not None
        assert joint.max_position is not None
        assert joint.min_position < start < joint.max_position
    # Gazebo's clamps are off where a minimum is not below its maximum.
    for low, high in zip(
        controller.findall("position_cmd_min"), controller.findall("position_cmd_max"), strict=True
    ):
        assert float(low.text or "nan") < float(high.text or "nan")


def test_the_block_is_told_where_the_node_listens() -> None:
    block = model(gazebo_run.BLOCK)
    publisher = plugin(block, "PosePublisher")
    pose = entry(gazebo_run.BLOCK_TOPIC)
    # Gazebo's own name of it where none is given.
    topic = publisher.findtext("topic") or f"/model/{gazebo_run.BLOCK}/pose"
    assert pose["gz_topic_name"] == absolute(topic)
    # Up to Harmonic's first releases a model's own pose was told with the nested ones.
    assert text(publisher, "publish_model_pose") == "true"
    assert text(publisher, "publish_nested_model_pose") == "true"
    assert publisher.findtext("use_pose_vector_msg", "false") == "false", "one Pose, not a Pose_V"
    assert float(text(publisher, "update_frequency")) >= 10.0
    assert world().get("name") == gazebo_run.WORLD
    assert f"/world/{world().get('name')}/set_pose" == gazebo_run.SET_POSE
    plugin(world(), "UserCommands")
    (link,) = block.findall("link")
    assert link.find("pose") is None, "the model's frame is that of its link"
    bridged = next(s for s in bring_up(TASKS["gazebo"]) if s.name == "gazebo_bridge")
    assert bridged.arguments[0].split("@")[0] == gazebo_run.SET_POSE


def test_the_node_puts_the_block_where_the_world_has_it() -> None:
    reference = resolve_path("package://worldforge_ros/docs/parameters.md").read_text("utf-8")
    section = reference.split("## gazebo_pusht_node\n")[1].split("\n## ")[0]
    (height,) = re.findall(r"^\| `block_height` \| \w+ \| `([-.\d]+)`", section, flags=re.MULTILINE)
    assert float(height) == numbers(model(gazebo_run.BLOCK), "pose")[2]


def test_the_blocks_shape_is_the_nodes() -> None:
    boxes = []
    for collision in model(gazebo_run.BLOCK).iter("collision"):
        if collision.find("geometry/box") is None:
            continue
        place, size = numbers(collision, "pose"), numbers(collision, "geometry/box/size")
        # y of the world is gym-pusht's, the other way round.
        centre = np.array([place[0], -place[1]]) * 1000.0
        half = np.array(size[:2]) * 500.0
        boxes.append((*(centre - half), *(centre + half)))
    expected = [
        (*np.min(corners, axis=0), *np.max(corners, axis=0))
        for corners in (gazebo_pusht.BAR, gazebo_pusht.STEM)
    ]
    np.testing.assert_allclose(sorted(boxes), sorted(expected), atol=0.01)


def test_the_goal_is_gym_pushts() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    from worldforge_ros.simulation.pusht import PushTSimulation

    x, y, _, roll, pitch, yaw = numbers(model("goal"), "pose")
    place = gazebo_pusht.Pose(
        np.array([x, y, 0.0]), np.array([0.0, 0.0, np.sin(yaw / 2.0), np.cos(yaw / 2.0)])
    )
    assert roll == pitch == 0.0
    np.testing.assert_allclose(gazebo_pusht.block_of(place), PushTSimulation().goal_pose, atol=1e-3)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_world_can_be_paced(flavour: str) -> None:
    source = resolve_path(gazebo_run.WORLD_FILE).read_text(encoding="utf-8")
    paced = ElementTree.fromstring(gazebo_run.paced_world(world_text(source, flavour), 0.5))
    assert paced.findtext("world/physics/real_time_factor") == "0.5"


def test_every_file_of_gazebo_is_installed() -> None:
    root = Path(__file__).resolve().parents[1]
    installed = re.search(
        r"install\(DIRECTORY ([\w ]+) DESTINATION share", (root / "CMakeLists.txt").read_text()
    )
    assert installed is not None
    assert {"launch", "config", "models", "gazebo"} <= set(installed.group(1).split())
