"""The simulator and the observation node as processes over real DDS."""

from __future__ import annotations

import math
import signal
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from ros_support import Ros
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from worldforge_ros.msg import Observation
from worldforge_ros.ros import convert, qos
from worldforge_ros.simulation.pusht import PushTSimulation

SENSOR = qos.sensor("reliable", depth=50)


def test_the_simulator_is_a_robot(ros: Ros) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    images: list[Image] = ros.record(Image, "camera/top/image_raw", SENSOR)
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    goals: list[Image] = ros.record(Image, "goal_image", qos.LATCHED)
    coverage: list[Float64] = ros.record(Float64, "pusht_sim/coverage", qos.LATCHED)
    commands = ros.node.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
    with ros.process("pusht_sim_node", seed=3) as simulator:
        ros.wait_until(lambda: len(images) > 2 and joints and goals and coverage, 30.0)
        world = PushTSimulation()
        world.reset(seed=3)
        np.testing.assert_array_equal(convert.image_from_msg(images[0], "image"), world.image())
        np.testing.assert_array_equal(convert.image_from_msg(goals[0], "goal"), world.goal_image())
        assert joints[0].name == ["pusher_x", "pusher_y"]
        np.testing.assert_allclose(joints[0].position, world.position)
        assert 0.0 <= coverage[-1].data < 0.95
        gaps = np.diff([convert.stamp_to_ns(image.header.stamp) for image in images]) / 1e9
        assert np.median(gaps) == pytest.approx(0.1, abs=0.02)

        ros.connected(commands)
        target = np.array([0.3, 0.2])

        def arrived() -> bool:
            commands.publish(Float64MultiArray(data=target.tolist()))
            return bool(np.abs(np.asarray(joints[-1].position) - target).max() < 0.002)

        ros.wait_until(arrived, 10.0, "the pusher at its set-point")

        for bad in ([0.1], [math.nan, 0.1], [0.1, math.inf], []):
            commands.publish(Float64MultiArray(data=bad))
            ros.spin_for(0.1)
        np.testing.assert_allclose(joints[-1].position, target, atol=0.002)

        reply = ros.call(Trigger, "pusht_sim/reset", Trigger.Request())
        assert reply.success
        assert reply.message == "episode of seed 4"
        world.reset(seed=4)
        ros.wait_until(
            lambda: np.allclose(joints[-1].position, world.position), 10.0, "the next episode"
        )
        status, _ = simulator.stop()
    assert status == 0


def test_without_commands_the_pusher_holds(ros: Ros) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    commands = ros.node.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
    with ros.process("pusht_sim_node", command_timeout=0.2):
        ros.wait_until(lambda: joints, 30.0, "joint states")
        start = np.asarray(joints[-1].position)
        target = np.where(start < 0.256, start + 0.2, start - 0.2)
        ros.connected(commands)
        commands.publish(Float64MultiArray(data=target.tolist()))
        ros.wait_until(lambda: np.abs(joints[-1].velocity).max() > 0.05, 10.0, "motion")
        ros.wait_until(lambda: np.abs(joints[-1].velocity).max() < 0.001, 10.0, "hold")
        assert np.abs(np.asarray(joints[-1].position) - target).max() > 0.05


def test_a_trajectory_is_followed_by_name(ros: Ros) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    publisher = ros.node.create_publisher(JointTrajectory, "joint_trajectory", qos.CHUNK)
    with ros.process("pusht_sim_node"):
        ros.wait_until(lambda: joints, 30.0, "joint states")
        ros.connected(publisher)
        points = [
            JointTrajectoryPoint(positions=[0.20, 0.30], time_from_start=Duration(sec=1)),
            JointTrajectoryPoint(positions=[0.25, 0.35], time_from_start=Duration(sec=2)),
        ]
        wrong = JointTrajectory(joint_names=["elbow", "pusher_x"], points=points)
        publisher.publish(wrong)
        right = JointTrajectory(joint_names=["pusher_y", "pusher_x"], points=points)
        publisher.publish(right)
        ros.wait_until(
            lambda: np.allclose(joints[-1].position, [0.35, 0.25], atol=0.01),
            15.0,
            "the end of the trajectory",
        )


def test_simulated_time_runs_at_the_asked_rate(ros: Ros) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    clocks: list[Clock] = ros.record(Clock, "/clock", 100)
    images: list[Image] = ros.record(Image, "camera/top/image_raw", SENSOR)
    with ros.process("pusht_sim_node", publish_clock=True, rate=3.0):
        ros.wait_until(lambda: clocks and images, 30.0)
        wall = ros.node.get_clock().now().nanoseconds
        first = convert.stamp_to_ns(clocks[-1].clock)
        ros.wait_until(lambda: convert.stamp_to_ns(clocks[-1].clock) - first > 3e9, 10.0)
        elapsed = (ros.node.get_clock().now().nanoseconds - wall) / 1e9
        simulated = (convert.stamp_to_ns(clocks[-1].clock) - first) / 1e9
    # Wide: other work on the machine may slow the simulator, but nothing can make it too fast.
    assert 1.5 < simulated / elapsed < 3.3
    stamps = [convert.stamp_to_ns(image.header.stamp) for image in images]
    assert np.allclose(np.diff(stamps), 0.1e9)


class Sensors:
    """Camera and joints played by the test."""

    def __init__(self, ros: Ros) -> None:
        self.ros = ros
        self.images = ros.node.create_publisher(Image, "camera/top/image_raw", SENSOR)
        self.joints = ros.node.create_publisher(JointState, "joint_states", SENSOR)
        self.seen: list[Observation] = ros.record(Observation, "observation", qos.CHUNK)
        self.diagnostics: list[DiagnosticArray] = ros.record(DiagnosticArray, "/diagnostics")

    def ready(self) -> None:
        self.ros.connected(self.images, 20.0)
        self.ros.connected(self.joints, 20.0)

    def now(self) -> int:
        return int(self.ros.node.get_clock().now().nanoseconds)

    def joint_state(self, stamp: int, **fields: Any) -> None:
        message = JointState(
            header=convert.header(stamp, "base"),
            name=["pusher_x", "pusher_y"],
            position=[0.1, 0.2],
            velocity=[0.0, 0.0],
        )
        for name, value in fields.items():
            setattr(message, name, value)
        self.joints.publish(message)

    def image(self, stamp: int, size: int = 96, encoding: str = "rgb8") -> None:
        message = convert.image_to_msg(np.zeros((size, size, 3), np.uint8), stamp, "camera_top")
        message.encoding = encoding
        self.images.publish(message)

    def errors(self) -> str:
        return "\n".join(
            status.message
            for array in self.diagnostics
            for status in array.status
            if "observation_node" in status.name
        )


def test_pictures_and_joints_become_observations(ros: Ros) -> None:
    sensors = Sensors(ros)
    with ros.process("observation_node"):
        sensors.ready()

        def observed() -> bool:
            stamp = sensors.now()
            sensors.joint_state(stamp)
            ros.spin_for(0.02)
            sensors.image(stamp)
            ros.spin_for(0.05)
            return len(sensors.seen) >= 3

        ros.wait_until(observed, 10.0, "observations")
    message = sensors.seen[-1]
    assert message.embodiment == "pusht"
    assert message.task
    assert list(message.state.position) == [0.1, 0.2]
    assert message.header.frame_id == "base"


@pytest.mark.parametrize(
    ("play", "code"),
    [
        (lambda s: None, "CAMERA_MISSING: camera top is silent on topic camera/top/image_raw"),
        (lambda s: s.image(s.now()), "JOINT_STATE_MISSING"),
        (lambda s: s.image(s.now(), size=95), "IMAGE_SIZE_MISMATCH"),
        (lambda s: s.image(s.now(), encoding="holographic"), "IMAGE_ENCODING_UNSUPPORTED"),
        (lambda s: s.image(0), "STAMP_INVALID"),
        (lambda s: s.joint_state(s.now(), position=[math.nan, 0.0]), "TENSOR_NOT_FINITE"),
        (lambda s: s.joint_state(s.now(), name=["a", "b"]), "JOINT_NAMES_MISMATCH"),
    ],
)
def test_what_is_wrong_with_the_sensors_is_in_the_diagnostics(
    ros: Ros, play: Any, code: str
) -> None:
    sensors = Sensors(ros)
    with ros.process("observation_node") as node:
        sensors.ready()

        def reported() -> bool:
            play(sensors)
            ros.spin_for(0.1)
            return code in sensors.errors()

        ros.wait_until(reported, 15.0, code)
        assert not sensors.seen
        status, output = node.stop(signal.SIGINT)
    assert status == 0
    assert code in output, "the log names it too"
