"""The ALOHA simulator as a process over real DDS."""

from __future__ import annotations

import math
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
pytest.importorskip("gym_aloha", reason="gym-aloha is missing: set up with make setup")

from diagnostic_msgs.msg import DiagnosticArray
from ros_support import Ros
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, Float64MultiArray
from std_srvs.srv import Trigger

from worldforge_ros.resources import share_dir
from worldforge_ros.ros import convert, qos
from worldforge_ros.simulation.aloha import JOINT_NAMES, AlohaSimulation

SENSOR = qos.sensor("reliable", depth=50)
WAIST, RIGHT_WAIST = JOINT_NAMES.index("left_waist"), JOINT_NAMES.index("right_waist")


def test_the_simulator_is_a_robot(ros: Ros) -> None:
    images: list[Image] = ros.record(Image, "camera/top/image_raw", SENSOR)
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    goals: list[Image] = ros.record(Image, "goal_image", qos.LATCHED)
    rewards: list[Float64] = ros.record(Float64, "aloha_sim/reward", qos.LATCHED)
    diagnostics: list[DiagnosticArray] = ros.record(DiagnosticArray, "/diagnostics")
    commands = ros.node.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
    with ros.process("aloha_sim_node", seed=3) as simulator:
        ros.wait_until(lambda: len(images) > 2 and goals and rewards, 60.0)
        world = AlohaSimulation()
        world.reset(seed=3)
        assert tuple(joints[0].name) == JOINT_NAMES
        np.testing.assert_allclose(joints[0].position, world.position, atol=0.05)
        assert rewards[-1].data == 0.0
        for picture in (images[-1], goals[-1]):
            assert (picture.height, picture.width, picture.encoding) == (480, 640, "rgb8")
        stamps = [convert.stamp_to_ns(image.header.stamp) for image in images]
        assert all(later > earlier for earlier, later in pairwise(stamps))
        # A picture shows the moment of its capture, and comes later than a joint state of then.
        assert min(convert.stamp_to_ns(joint.header.stamp) for joint in joints) < stamps[-1]
        assert stamps[-1] <= ros.node.get_clock().now().nanoseconds

        ros.connected(commands)
        target = np.array(joints[-1].position)
        target[[WAIST, RIGHT_WAIST]] = 0.3, -0.2

        def arrived() -> bool:
            commands.publish(Float64MultiArray(data=target.tolist()))
            return bool(np.abs(np.asarray(joints[-1].position) - target).max() < 0.02)

        ros.wait_until(arrived, 20.0, "the arms at their set-points")

        def values() -> dict[str, str]:
            mine = [s for m in diagnostics for s in m.status if s.name == "/aloha_sim"]
            return {pair.key: pair.value for pair in mine[-1].values}

        bad: list[tuple[list[float], str]] = [
            ([0.1, 0.2], "TENSOR_SHAPE_MISMATCH"),
            ([math.nan] * 14, "TENSOR_NOT_FINITE"),
        ]
        for command, code in bad:
            commands.publish(Float64MultiArray(data=command))
            ros.wait_until(lambda code=code: f"errors.{code}" in values(), 10.0, code)
        np.testing.assert_allclose(joints[-1].position, target, atol=0.02)
        assert float(values()["realtime_factor"]) > 0.0
        assert float(values()["picture_period_s"]) > 0.0

        reply = ros.call(Trigger, "aloha_sim/reset", Trigger.Request())
        assert reply.message == "episode of seed 4"
        ros.wait_until(lambda: abs(joints[-1].position[WAIST]) < 0.05, 10.0, "the next episode")
        # Ctrl-C in a terminal reaches a node twice; the OpenGL context is released nevertheless.
        simulator.process.send_signal(signal.SIGINT)
        status, output = simulator.stop(signal.SIGINT)
    assert status == 0
    assert "Traceback" not in output


def test_without_commands_the_arms_hold(ros: Ros) -> None:
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    commands = ros.node.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
    with ros.process("aloha_sim_node", command_timeout=0.1, publish_clock=True, rate=0.5):
        ros.wait_until(lambda: joints, 60.0, "joint states")
        target = np.array(joints[-1].position)
        target[WAIST] = 1.5
        ros.connected(commands)
        commands.publish(Float64MultiArray(data=target.tolist()))
        ros.wait_until(lambda: abs(joints[-1].velocity[WAIST]) > 0.2, 10.0, "motion")
        ros.wait_until(lambda: np.abs(joints[-1].velocity).max() < 0.01, 10.0, "hold")
        assert joints[-1].position[WAIST] < 1.3, "it did not go on to the old set-point"


def test_pictures_carry_the_simulated_time_of_their_capture(ros: Ros) -> None:
    clocks: list[Clock] = ros.record(Clock, "/clock", 1000)
    images: list[Image] = ros.record(Image, "camera/top/image_raw", SENSOR)
    with ros.process("aloha_sim_node", publish_clock=True, rate=0.5, camera_rate=20.0):
        ros.wait_until(lambda: len(images) > 8, 60.0, "pictures")
    stamps = np.array([convert.stamp_to_ns(image.header.stamp) for image in images])
    ticks = np.array([convert.stamp_to_ns(clock.clock) for clock in clocks])
    assert (np.diff(ticks) > 0).all()
    assert (np.diff(stamps) > 0).all()
    # Steps of 2 ms; what is drawn while time goes on is no younger than the clock.
    assert ((stamps - ticks[0]) % 2_000_000 == 0).all()
    assert stamps.max() < ticks.max()


def test_a_camera_of_another_size_is_refused(ros: Ros, tmp_path: Path) -> None:
    text = (share_dir() / "config/embodiments/aloha.yaml").read_text()
    path = tmp_path / "small.yaml"
    path.write_text(text.replace("width: 640", "width: 320"))
    with ros.process("aloha_sim_node", embodiment=str(path)) as simulator:
        status, output = simulator.finish()
    assert status == 2
    assert "EMBODIMENT_INVALID: embodiment field cameras.top is 320 x 480" in output


def test_without_an_opengl_context_the_node_says_so_and_ends(
    ros: Ros, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No display here, which GLFW needs.
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with ros.process("aloha_sim_node") as simulator:
        status, output = simulator.finish()
    assert status == 2
    assert "SIMULATION_UNAVAILABLE: the ALOHA camera could not make an OpenGL context" in output
