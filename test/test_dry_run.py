"""A robot that nobody has programmed for, in mock hardware: from its URDF to gated motion."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from adopted_arm import CENTRE, JOINTS, URDF, fill_in, write_dataset, write_policy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from ros_support import NodeProcess, Ros
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from worldforge_ros import cli
from worldforge_ros.bringup import TASKS, bring_up
from worldforge_ros.embodiment import Camera, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus, PlanReport
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert, qos
from worldforge_ros.simulation.mock import PERIOD, MockJoints, colour_card, mock_pictures

SENSOR = qos.sensor("reliable", depth=50)
START = 120.0
"""Seconds until a model is loaded on a busy machine."""


def test_joints_follow_perfectly_within_their_speed() -> None:
    joints = MockJoints(load_embodiment("pusht"), [0.1, 0.2])
    joints.advance([0.105, 0.2])
    np.testing.assert_allclose(joints.position, [0.105, 0.2])
    np.testing.assert_allclose(joints.velocity, [0.5, 0.0])
    # At 1 m/s a step of 10 ms is 10 mm.
    joints.advance([0.205, 0.1], steps=4)
    np.testing.assert_allclose(joints.position, [0.145, 0.16])
    np.testing.assert_allclose(joints.velocity, [1.0, -1.0])
    joints.advance([0.205, 0.1], steps=7)
    np.testing.assert_allclose(joints.position, [0.205, 0.1])
    joints.reset()
    np.testing.assert_allclose(joints.position, [0.1, 0.2])
    assert PERIOD == 0.01


def test_where_joints_start() -> None:
    robot = load_embodiment("aloha")
    middle = (0.0184 + 0.0581) / 2
    expected = [middle if name.endswith("gripper") else 0.0 for name in robot.joint_names]
    np.testing.assert_allclose(MockJoints(robot).position, expected)
    for bad, named in (([0.0], "14 finite numbers"), ([0.0] * 14, "left_gripper is 0.0")):
        with pytest.raises(WorldForgeError, match=named) as caught:
            MockJoints(robot, bad)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_what_cameras_show(tmp_path: Path) -> None:
    from PIL import Image as Picture

    cameras = {name: Camera(name, f"{name}/image_raw", 16, 8) for name in ("front", "wrist")}
    card = colour_card(16, 8)
    assert card.shape == (8, 16, 3)
    assert len(np.unique(card[0], axis=0)) == 8
    np.testing.assert_array_equal(card[7, ::15], [[0, 0, 0], [255, 255, 255]])
    own = np.full((8, 16, 3), (10, 20, 30), np.uint8)
    Picture.fromarray(own).save(tmp_path / "own.png")
    pictures = mock_pictures(cameras, f"wrist={tmp_path}/own.png")
    np.testing.assert_array_equal(pictures["front"], card)
    np.testing.assert_array_equal(pictures["wrist"], own)
    Picture.fromarray(own[:4]).save(tmp_path / "small.png")
    for files, code in (
        (f"wrist={tmp_path}/small.png", ErrorCode.IMAGE_SIZE_MISMATCH),
        (f"wrist={tmp_path}/none.png", ErrorCode.INVALID_ARGUMENT),
        ("hand=x.png", ErrorCode.INVALID_ARGUMENT),
        ("x.png", ErrorCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(WorldForgeError) as caught:
            mock_pictures(cameras, files)
        assert caught.value.code is code


def test_the_mock_robot_on_its_topics(ros: Ros) -> None:
    joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
    images: list[Image] = ros.record(Image, "camera/top/image_raw", SENSOR)
    diagnostics: list[DiagnosticArray] = ros.record(DiagnosticArray, "/diagnostics")
    commands = ros.node.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
    trajectories = ros.node.create_publisher(JointTrajectory, "joint_trajectory", qos.CHUNK)
    with ros.process("mock_robot_node", initial_position="[0.1, 0.2]") as node:
        ros.wait_until(lambda: joints and images, 30.0, "sensors")
        assert joints[0].name == ["pusher_x", "pusher_y"]
        assert list(joints[0].position) == [0.1, 0.2]
        np.testing.assert_array_equal(
            convert.image_from_msg(images[0], "image"), colour_card(96, 96)
        )
        ros.connected(commands)
        commands.publish(Float64MultiArray(data=[0.3]))
        ros.wait_until(
            lambda: any("TENSOR_SHAPE_MISMATCH" in str(item) for item in diagnostics),
            10.0,
            "one value for two joints is refused",
        )
        assert list(joints[-1].position) == [0.1, 0.2]
        commands.publish(Float64MultiArray(data=[0.15, 0.2]))
        ros.wait_until(lambda: list(joints[-1].position) == [0.15, 0.2], 10.0, "set-point")
        ros.connected(trajectories)
        point = JointTrajectoryPoint(positions=[0.3, 0.1], time_from_start=Duration(nanosec=10**8))
        trajectories.publish(JointTrajectory(joint_names=["pusher_y", "pusher_x"], points=[point]))
        ros.wait_until(
            lambda: np.allclose(joints[-1].position, [0.1, 0.3]), 10.0, "end of the trajectory"
        )
        assert ros.call(Trigger, "mock_robot/reset", Trigger.Request()).success
        ros.wait_until(lambda: list(joints[-1].position) == [0.1, 0.2], 10.0, "the start")
        status, _ = node.stop(signal.SIGINT)
    assert status == 0


class Arm:
    """The example arm and everything that drives it, each in a process of its own."""

    def __init__(self, ros: Ros, stack: ExitStack, file: Path, policy: Path) -> None:
        self.ros = ros
        self.robot = load_embodiment(file)
        self.reports: list[PlanReport] = ros.record(PlanReport, "plan_report", qos.REPORT)
        self.status: list[GateStatus] = ros.record(GateStatus, "safety_gate/status", qos.LATCHED)
        self.joints: list[JointState] = ros.record(JointState, "joint_states", SENSOR)
        start = np.array(CENTRE) / self.robot.policy.action.scale
        settings = file.with_name("params.yaml")
        settings.write_text(
            yaml.safe_dump(
                {"mock_robot": {"ros__parameters": {"initial_position": start.tolist()}}}
            )
        )
        arguments = {"embodiment": str(file), "policy_path": str(policy), "arm": "false"}
        arguments["params_file"] = str(settings)
        self.processes: dict[str, NodeProcess] = {
            spec.name: stack.enter_context(
                ros.process(spec.executable, "-r", f"__node:={spec.name}", **dict(spec.parameters))
            )
            for spec in bring_up(TASKS["robot"], arguments)
        }

    def position(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(self.joints[-1].position)

    def chunk(self, actions: Any) -> ActionChunkMsg:
        """A proposal of the test's own, in radians, as the planner would send it."""
        now = self.ros.node.get_clock().now().nanoseconds
        chunk = ActionChunk(
            stamp=now,
            embodiment=self.robot.name,
            joint_names=self.robot.joint_names,
            step=self.robot.policy.step,
            actions=np.asarray(actions, dtype=np.float64),
            source="policy",
            epoch=self.status[-1].epoch,
            sequence=10**6,
            observation_stamp=now,
        )
        return convert.chunk_to_msg(chunk, "base")


@pytest.mark.timeout(300)
def test_a_third_robot_from_its_urdf_to_gated_motion(
    ros: Ros, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    policy = write_policy(tmp_path / "act")
    file = tmp_path / "arm.yaml"
    init = ["embodiment", "init", "--urdf", str(URDF), "--policy", str(policy)]
    init += ["--dataset", str(write_dataset(tmp_path / "data")), "--out", str(file)]
    assert cli.main(init) == 0
    with ros.process("mock_robot_node", embodiment=file) as refused:
        status, output = refused.finish()
    assert status == 2
    assert "EMBODIMENT_INVALID: embodiment field task is still TODO" in output
    file.write_text(fill_in(file.read_text()))
    assert cli.main(["embodiment", "check", str(file), "--policy", str(policy)]) == 0
    assert "is right for this policy" in capsys.readouterr().out

    with ExitStack() as stack:
        arm = Arm(ros, stack, file, policy)
        ros.wait_until(lambda: any(r.outcome == "OK" for r in arm.reports), START, "a plan")
        start = arm.position()
        assert arm.joints[-1].name == list(JOINTS)
        reply = ros.call(SetBool, "safety_gate/enable", SetBool.Request(data=True))
        assert reply.success, reply.message
        ros.wait_until(lambda: arm.status[-1].chunks_approved >= 2, 30.0, "approved chunks")
        ros.wait_until(lambda: np.abs(arm.position() - start).max() > 0.002, 30.0, "motion")
        assert arm.status[-1].verdict == "APPROVED"

        arm.processes["planner_node"].stop()
        ros.wait_until(lambda: arm.status[-1].mode_name == "HOLDING", 30.0, "hold")
        held = arm.position()
        beyond = np.tile(held, (3, 1))
        beyond[-1, 0] = 1.95  # shoulder_pan ends at 1.91986 rad
        proposals = ros.node.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
        ros.connected(proposals)
        proposals.publish(arm.chunk(beyond))
        ros.wait_until(lambda: arm.status[-1].verdict == "REJECTED", 10.0, "a refusal")
        assert "POSITION_LIMIT" in arm.status[-1].reason_codes
        ros.spin_for(0.3)
        np.testing.assert_allclose(arm.position(), held, atol=1e-6)
