"""Recording over real DDS: what was published is what is in the bag, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.writer import read_notes
from worldforge_ros.checkpoints import file_sha256
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.resources import share_dir

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import serialize_message
from ros_support import NodeProcess, Ros
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import Reader
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray

from worldforge_ros.msg import ActionChunk, GateStatus, Observation, PlanReport, Surprise
from worldforge_ros.ros import qos

NS = 1_000_000_000


def image(seed: int) -> Image:
    data = np.random.default_rng(seed).integers(0, 256, 96 * 96 * 3, dtype=np.uint8)
    message = Image(height=96, width=96, encoding="rgb8", step=288)
    message.data = data.tobytes()
    message.header.stamp = Time(sec=seed, nanosec=5)
    return message


def state(number: int) -> JointState:
    # rclpy puts bytes too many after a message that ends with an empty list, and rosbags minds.
    two = [0.1 + number, 0.2]
    return JointState(name=["pusher_x", "pusher_y"], position=two, velocity=two, effort=two)


def seen(number: int) -> Observation:
    return Observation(
        embodiment="pusht",
        camera_names=["top"],
        images=[image(number)],
        state=state(number),
        task="push",
    )


class Robot:
    """Publishers of a robot and of the nodes; keeps the bytes of what each published."""

    def __init__(self, ros: Ros) -> None:
        self._ros = ros
        self._publishers: dict[str, Any] = {}
        self.sent: dict[str, list[bytes]] = {}

    def offer(self, topic: str, kind: Any, profile: Any) -> None:
        self._publishers[topic] = self._ros.node.create_publisher(kind, topic, profile)
        self.sent[topic] = []

    def say(self, topic: str, message: Any) -> None:
        # The same message can have different bytes: what lies between its fields is left to chance.
        data = serialize_message(message)
        self._publishers[topic].publish(data)
        self.sent[topic].append(data)

    def heard(self, *topics: str) -> None:
        """Wait for the recorder on the topics, or on all of them."""
        for topic in topics or self._publishers:
            self._ros.connected(self._publishers[topic], 30.0)


def diagnostics(ros: Ros) -> Callable[[], Mapping[str, str]]:
    """The newest status of the recorder: its values, ``level`` and ``message``."""
    seen = ros.record(DiagnosticArray, "/diagnostics")

    def newest() -> Mapping[str, str]:
        for array in reversed(seen):
            for status in array.status:
                if status.name == "/record_node":
                    values = {pair.key: pair.value for pair in status.values}
                    level = str(ord(status.level))
                    return {**values, "level": level, "message": status.message}
        return {}

    return newest


def contents(path: Path) -> dict[str, list[bytes]]:
    with Reader(path) as reader:
        found: dict[str, list[bytes]] = {c.topic: [] for c in reader.connections}
        for connection, _, data in reader.messages():
            found[connection.topic].append(bytes(data))
    return found


def recorder(ros: Ros, output: Path, *arguments: str, **parameters: Any) -> NodeProcess:
    return ros.process("record_node", *arguments, output=output, **parameters)


def test_a_robots_topics_are_in_the_bag_byte_for_byte(ros: Ros, tmp_path: Path) -> None:
    robot = Robot(ros)
    for topic, kind, profile in (
        ("camera/top/image_raw", Image, qos.sensor("best_effort")),
        ("joint_states", JointState, qos.sensor("reliable", depth=20)),
        ("goal_image", Image, qos.LATCHED),
        ("safety_gate/status", GateStatus, qos.LATCHED),
        ("observation", Observation, qos.CHUNK),
        ("plan_report", PlanReport, qos.REPORT),
        ("action_chunk/proposed", ActionChunk, qos.CHUNK),
        ("action_chunk/approved", ActionChunk, qos.CHUNK),
        ("/arm/commands", Float64MultiArray, qos.CHUNK),
    ):
        robot.offer(topic, kind, profile)
    robot.say("goal_image", image(0))
    robot.say("safety_gate/status", GateStatus(mode=1, mode_name="ARMED", epoch=3))
    weights = share_dir() / "models/pusht/policy"
    report = diagnostics(ros)
    began = time.time_ns()
    with recorder(
        ros,
        tmp_path / "bag",
        "-r",
        "joint_commands:=/arm/commands",
        "-r",
        "joint_trajectory:=/arm/commands",
        policy_path=weights,
    ) as node:
        robot.heard()
        for k in range(1, 21):
            robot.say("camera/top/image_raw", image(k))
            robot.say("observation", seen(k))
            for part in range(5):
                robot.say("joint_states", state(5 * k + part))
                robot.say("/arm/commands", Float64MultiArray(data=[0.1 * k, 0.01 * part]))
                ros.spin_for(0.004)
        robot.say("plan_report", PlanReport(cycle=7, outcome="OK", seed=11))
        robot.say("action_chunk/proposed", ActionChunk(sequence=3))
        robot.say("action_chunk/approved", ActionChunk(sequence=3))
        robot.say("safety_gate/status", GateStatus(mode=2, mode_name="HOLDING", epoch=3))
        # A node that comes late, in the middle of a recording.
        robot.offer("score_node/surprise", Surprise, qos.REPORT)
        robot.heard("score_node/surprise")
        robot.say("score_node/surprise", Surprise(error=0.5, standardised=2.0))
        total = sum(map(len, robot.sent.values()))
        ros.wait_until(lambda: report().get("messages") == str(total), 15.0, "every message")
        assert report()["dropped"] == "0"
        assert report()["message"] == "OK"
        status, printed = node.stop(signal.SIGINT)
    assert status == 0, printed
    assert f"{total} messages" in printed
    sent = {topic if topic[0] == "/" else f"/{topic}": all_ for topic, all_ in robot.sent.items()}
    found = contents(tmp_path / "bag")
    assert {topic: len(messages) for topic, messages in found.items()} == {
        topic: len(messages) for topic, messages in sent.items()
    }
    for topic, messages in sent.items():
        for data, original in zip(found[topic], messages, strict=True):
            # The middleware fills messages up to whole words.
            assert len(data) == len(original) + -len(original) % 4
            assert data[: len(original)] == original, topic
    with Bag.open(tmp_path / "bag") as bag:
        times = [event.received for event in bag.events()]
        assert bag.complete
        assert began < times[0] <= times[-1] < time.time_ns(), "wall time, as the stamps"
    with Reader(tmp_path / "bag") as reader:
        offered = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    assert offered["/goal_image"].durability is QosDurability.TRANSIENT_LOCAL
    assert offered["/camera/top/image_raw"].reliability is QosReliability.BEST_EFFORT
    assert offered["/joint_states"].reliability is QosReliability.RELIABLE
    notes = read_notes(tmp_path / "bag")
    assert (notes["embodiment"], notes["dropped"]) == ("pusht", "{}")
    hashes = json.loads(notes["checkpoints"])
    assert hashes["policy"] == file_sha256(weights / "model.safetensors")


def test_in_simulated_time_messages_are_put_in_time_by_the_clock(ros: Ros, tmp_path: Path) -> None:
    robot = Robot(ros)
    robot.offer("goal_image", Image, qos.LATCHED)
    robot.offer("joint_states", JointState, qos.sensor("reliable"))
    robot.say("goal_image", image(0))
    clock = ros.node.create_publisher(Clock, "/clock", 10)
    report = diagnostics(ros)
    with recorder(ros, tmp_path / "bag", use_sim_time=True) as node:
        ros.wait_until(lambda: "/clock is silent" in report().get("message", ""), 30.0, "waiting")
        ros.connected(clock)

        def tick() -> bool:
            clock.publish(Clock(clock=Time(sec=5000)))
            return bool(report().get("messages") == "1")

        ros.wait_until(tick, 15.0, "the goal that was there before the clock")
        clock.publish(Clock(clock=Time(sec=5001)))
        robot.heard()
        robot.say("joint_states", state(1))
        ros.wait_until(lambda: report()["messages"] == "2", 15.0, "the joint state")
        node.stop(signal.SIGTERM)
    with Bag.open(tmp_path / "bag") as bag:
        found = {event.topic: event.received for event in bag.events()}
    assert found["/goal_image"] == 5000 * NS
    assert found["/joint_states"] in (5000 * NS, 5001 * NS)


def test_what_is_wrong_is_named_and_what_is_missing_is_counted(ros: Ros, tmp_path: Path) -> None:
    robot = Robot(ros)
    robot.offer("joint_states", Float64MultiArray, qos.sensor("reliable"))
    robot.offer("camera/top/image_raw", Image, qos.sensor("reliable"))
    report = diagnostics(ros)
    # Without a queue there is room for nothing.
    with recorder(ros, tmp_path / "bag", queue_mb=0) as node:
        robot.heard("camera/top/image_raw")
        ros.wait_until(lambda: report().get("level") == "2", 15.0, "an error")
        assert report()["message"].startswith("TOPIC_TYPE_MISMATCH: type of topic /joint_states is")
        assert "std_msgs/msg/Float64MultiArray" in report()["message"]
        assert "sensor_msgs/msg/JointState" in report()["message"]
        for k in range(3):
            robot.say("camera/top/image_raw", image(k))
        ros.wait_until(lambda: report()["dropped"] == "3", 15.0, "three dropped ones")
        assert report()["message"].startswith("RECORDING_INCOMPLETE: messages are missing")
        status, printed = node.stop(signal.SIGINT)
    assert status == 1
    assert "3 of /camera/top/image_raw" in printed
    assert json.loads(read_notes(tmp_path / "bag")["dropped"]) == {"/camera/top/image_raw": 3}


@pytest.mark.parametrize("reliability", ["reliable", "best_effort"])
def test_what_is_lost_on_the_way_is_counted(ros: Ros, tmp_path: Path, reliability: str) -> None:
    robot = Robot(ros)
    robot.offer("joint_states", JointState, qos.sensor(reliability, depth=5))
    report = diagnostics(ros)

    def accounted() -> int:
        return int(report().get("messages", 0)) + int(report().get("dropped", 0))

    with recorder(ros, tmp_path / "bag") as node:
        robot.heard()
        robot.say("joint_states", state(0))
        ros.wait_until(lambda: accounted() == 1, 15.0, "the first one")
        # As a machine that is too busy.
        node.process.send_signal(signal.SIGSTOP)
        for k in range(1000):
            robot.say("joint_states", state(k))
        node.process.send_signal(signal.SIGCONT)

        def noticed() -> bool:
            # A reader learns of a gap from what comes after it, and what comes while its queue is
            # still full is lost too.
            robot.say("joint_states", state(1000))
            return int(report()["dropped"]) > 100

        ros.wait_until(noticed, 15.0, "the gap")
        sent = len(robot.sent["joint_states"])
        ros.wait_until(lambda: accounted() == sent, 15.0, "every message to be accounted for")
        assert node.stop(signal.SIGINT)[0] == 1


def test_a_full_recording_stops_nothing_else(ros: Ros, tmp_path: Path) -> None:
    robot = Robot(ros)
    robot.offer("camera/top/image_raw", Image, qos.sensor("reliable"))
    report = diagnostics(ros)
    with recorder(ros, tmp_path / "bag", max_gb=1e-4, compression="none") as node:
        robot.heard()
        for k in range(4):
            robot.say("camera/top/image_raw", image(k))
        ros.wait_until(lambda: "the bound is 100000" in report().get("ended", ""), 15.0, "the end")
        ros.wait_until(lambda: report()["message"].startswith("RECORDING_INCOMPLETE"), 5.0, "news")
        assert node.process.poll() is None
        assert contents(tmp_path / "bag") == {"/camera/top/image_raw": robot.sent.popitem()[1]}
        assert node.stop(signal.SIGINT)[0] == 0


def readable(path: Path) -> list[float]:
    """First joint positions that an unfinished bag gives."""
    try:
        with Bag.open(path) as bag:
            return [event.message.position[0] for event in bag.events()]
    except WorldForgeError:
        return []


def test_a_killed_recorder_leaves_what_it_has_written(ros: Ros, tmp_path: Path) -> None:
    robot = Robot(ros)
    robot.offer("joint_states", JointState, qos.sensor("reliable", depth=50))
    with recorder(ros, tmp_path / "bag") as node:
        robot.heard()
        for k in range(30):
            robot.say("joint_states", state(k))
        ros.wait_until(lambda: len(readable(tmp_path / "bag")) == 30, 15.0, "all in the file")
        assert node.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert readable(tmp_path / "bag") == [0.1 + k for k in range(30)]


def test_a_folder_that_cannot_be_made_ends_it_at_once(ros: Ros, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with recorder(ros, tmp_path / "file/bag") as node:
        status, printed = node.finish()
    assert status == 2
    assert "INVALID_ARGUMENT: bag folder" in printed
    assert "Traceback" not in printed


def command(ros: Ros, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(ros.domain)}
    run = [sys.executable, "-m", "worldforge_ros.cli", "record", *arguments]
    return subprocess.run(
        run, capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_the_command_says_what_it_wrote(ros: Ros, tmp_path: Path) -> None:
    goal = ros.node.create_publisher(Image, "/left/goal_image", qos.LATCHED)
    data = serialize_message(image(1))
    goal.publish(data)
    out, figures = tmp_path / "bags/first", tmp_path / "record.json"
    done = command(
        ros, "--out", str(out), "--duration", "3", "--namespace", "left", "--json", str(figures)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1  /left/goal_image  (sensor_msgs/msg/Image)" in done.stdout
    result = json.loads(figures.read_text())
    assert result["complete"] is True
    assert result["topics"] == [
        {"topic": "/left/goal_image", "type": "sensor_msgs/msg/Image", "count": 1}
    ]
    assert result["notes"]["embodiment"] == "pusht"
    assert contents(out) == {"/left/goal_image": [data]}
    again = command(ros, "--out", str(out))
    assert again.returncode == 2
    assert "there already" in again.stderr


def test_a_command_that_heard_nothing_fails(ros: Ros, tmp_path: Path) -> None:
    done = command(ros, "--out", str(tmp_path / "bag"), "--duration", "0.5", "--namespace", "none")
    assert done.returncode == 1
    assert "RECORDING_INCOMPLETE: it is empty" in done.stdout
