"""The node beside Gazebo, as a process over real DDS with a stand-in for Gazebo and its bridge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")

from diagnostic_msgs.msg import DiagnosticArray
from gazebo_support import with_interfaces
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from worldforge_ros.msg import GateStatus
from worldforge_ros.ros import convert, qos
from worldforge_ros.simulation.gazebo_pusht import start_state
from worldforge_ros.simulation.pusht import PushTSimulation

if TYPE_CHECKING:
    from ros_support import Ros

SENSOR = qos.sensor("reliable", depth=50)
NODE = "gazebo_pusht_node"


def errors(diagnostics: list[DiagnosticArray]) -> str:
    return " ".join(s.message for m in diagnostics for s in m.status if s.name == "/gazebo_pusht")


def test_episodes_in_gazebo_begin_as_in_the_simulator(
    ros: Ros, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_interfaces(monkeypatch)
    monkeypatch.setenv("STAND_IN_RATE", "2.0")
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    coverage: list[Float64] = ros.record(Float64, "gazebo_pusht/coverage", qos.LATCHED)
    goals: list[Image] = ros.record(Image, "goal_image", qos.LATCHED)
    clocks: list[Clock] = ros.record(Clock, "/clock", 50)
    commands: list[JointTrajectory] = ros.record(JointTrajectory, "joint_trajectory")
    gate = ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
    world = PushTSimulation()

    def begun(seed: int) -> None:
        start = start_state(world, seed)
        position = dict(zip(joints[-1].name, joints[-1].position, strict=True))
        place = [position["pusher_x"] * 1000.0, position["pusher_y"] * 1000.0]
        np.testing.assert_allclose(place, start[:2], atol=5.0)
        world.set_state(start)
        assert coverage[-1].data == pytest.approx(world.coverage(), abs=0.03)

    with ros.process("gazebo_stand_in.py"), ros.process(NODE, seed=3, use_sim_time=True):
        # The service is there once the first episode has begun.
        client = ros.node.create_client(Trigger, "gazebo_pusht/reset")
        ros.wait_until(client.service_is_ready, 60.0, "the first episode")
        ros.wait_until(lambda: goals and coverage, 10.0, "goal and coverage")
        begun(3)
        np.testing.assert_array_equal(
            convert.image_from_msg(goals[-1], "goal"), PushTSimulation().goal_image()
        )
        assert goals[-1].header.frame_id == "camera_top"
        assert convert.stamp_to_ns(goals[-1].header.stamp) > 0
        ticks = np.array([convert.stamp_to_ns(clock.clock) for clock in clocks])
        assert (np.diff(ticks) >= 10_000_000).all(), "no more often than every 10 ms"
        told = [convert.stamp_to_ns(joint.header.stamp) for joint in joints]
        assert set(ticks[-20:-5]) <= set(told), "the clock is that of the joint states"
        assert {joint.header.frame_id for joint in joints} == {"base"}

        gate.publish(GateStatus(mode=GateStatus.ARMED, mode_name="ARMED"))

        def refused() -> bool:
            return not ros.call(Trigger, "gazebo_pusht/reset", Trigger.Request(), 30.0).success

        ros.wait_until(refused, 60.0, "a refusal while the gate moves the pusher")
        gate.publish(GateStatus(mode=GateStatus.DISARMED, mode_name="DISARMED"))
        replies: list[Any] = []

        def reset() -> bool:
            # Two at once are one episode: a client that did not get its reply asks again.
            both = [client.call_async(Trigger.Request()) for _ in range(2)]
            ros.wait_until(lambda: all(future.done() for future in both), 60.0, "two replies")
            replies[:] = [future.result() for future in both]
            return bool(replies[0].success)

        ros.wait_until(reset, 60.0, "the next episode")
        assert {reply.message for reply in replies} == {replies[0].message}
        seed = int(replies[0].message.removeprefix("episode of seed "))
        assert seed > 3
        ros.spin_for(0.2)
        begun(seed)
    assert not commands, "the gate's topic is the gate's alone"


def test_a_silent_gazebo_is_named(ros: Ros, monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch)
    diagnostics: list[DiagnosticArray] = ros.record(DiagnosticArray, "/diagnostics")
    with ros.process(NODE, use_sim_time=True):
        ros.wait_until(
            lambda: "topic gazebo_pusht/joint_states is silent" in errors(diagnostics), 30.0
        )


def test_without_its_messages_the_node_says_what_to_install(
    ros: Ros, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ros_gz_interfaces.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with ros.process(NODE) as node:
        status, output = node.finish()
    assert status == 2
    assert "DEPENDENCY_MISSING: python module ros_gz_interfaces" in output
    assert "ros-$ROS_DISTRO-ros-gz-interfaces" in output
