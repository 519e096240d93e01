"""The gate node over real DDS, with a robot and a planner played by the test."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from gate_support import HOME, NAMES, gentle_pusht
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_support import Ros
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus, Heartbeat
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert, qos


class Bench:
    """The robot and the planner around one gate process."""

    def __init__(self, ros: Ros, **parameters: Any) -> None:
        self.ros = ros
        self.position = HOME
        self.sensing = True
        self.sequence = 0
        self.statuses = ros.record(GateStatus, "safety_gate/status", qos.LATCHED)
        self.approved = ros.record(ActionChunkMsg, "action_chunk/approved", qos.CHUNK)
        self.commands: list[tuple[float, list[float]]] = []
        ros.node.create_subscription(
            Float64MultiArray,
            "joint_commands",
            lambda message: self.commands.append((time.monotonic(), list(message.data))),
            qos.REPORT,
        )
        self.trajectories = ros.record(JointTrajectory, "joint_trajectory", qos.REPORT)
        self.joints = ros.node.create_publisher(JointState, "joint_states", 10)
        self.chunks = ros.node.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
        ros.node.create_timer(0.02, self._sense)
        self.gate = ros.process("safety_gate_node", **parameters)
        ros.connected(self.joints, 30.0)
        ros.connected(self.chunks, 30.0)
        ros.wait_until(lambda: self.statuses, 30.0, "first status")

    def _sense(self) -> None:
        if not self.sensing:
            return
        message = JointState(name=list(NAMES), position=list(self.position), velocity=[0.0, 0.0])
        message.header.stamp = self.ros.node.get_clock().now().to_msg()
        self.joints.publish(message)

    @property
    def status(self) -> GateStatus:
        return self.statuses[-1]

    def mode(self, mode: int, timeout: float = 5.0) -> GateStatus:
        self.ros.wait_until(lambda: self.status.mode == mode, timeout, f"mode {mode}")
        return self.status

    def arm(self) -> Any:
        # The first joint state may still be on its way.
        deadline = time.monotonic() + 10.0
        while True:
            answer = self.enable(True)
            if answer.success or time.monotonic() > deadline:
                assert answer.success, answer.message
                return self.mode(GateStatus.HOLDING)
            self.ros.spin_for(0.05)

    def enable(self, on: bool) -> Any:
        return self.ros.call(SetBool, "safety_gate/enable", SetBool.Request(data=on))

    def trigger(self, name: str) -> Any:
        return self.ros.call(Trigger, f"safety_gate/{name}", Trigger.Request())

    def message(self, actions: Any, **changes: Any) -> ActionChunkMsg:
        self.sequence += 1
        now = self.ros.node.get_clock().now().nanoseconds
        fields: dict[str, Any] = {
            "stamp": now,
            "embodiment": "pusht",
            "joint_names": NAMES,
            "step": 0.1,
            "actions": np.asarray(actions, dtype=np.float64),
            "source": "policy",
            "epoch": self.status.epoch,
            "sequence": self.sequence,
            "observation_stamp": now,
        }
        return convert.chunk_to_msg(ActionChunk(**{**fields, **changes}), "base")

    def send(self, message: ActionChunkMsg) -> GateStatus:
        received = self.status.chunks_received
        self.chunks.publish(message)
        self.ros.wait_until(
            lambda: (
                self.status.chunks_received > received
                and self.status.verdict_sequence == message.sequence
            ),
            5.0,
            "verdict",
        )
        return self.status


class Button:
    """A protective stop that repeats itself, as the gate's lease demands."""

    def __init__(self, ros: Ros, profile: Any) -> None:
        self.pressed = False
        self._ros = ros
        topic = "safety_gate/protective_stop"
        self._publisher = ros.node.create_publisher(Bool, topic, profile)
        ros.connected(self._publisher)
        self._timer = ros.node.create_timer(0.1, self._speak)

    def _speak(self) -> None:
        self._publisher.publish(Bool(data=self.pressed))

    def tap(self) -> None:
        """Press and release at once."""
        for pressed in (True, False):
            self._publisher.publish(Bool(data=pressed))

    def silence(self) -> None:
        self._ros.node.destroy_timer(self._timer)

    def vanish(self) -> None:
        self.silence()
        self._ros.node.destroy_publisher(self._publisher)


@pytest.fixture
def bench(ros: Ros) -> Iterator[Bench]:
    bench = Bench(ros)
    with bench.gate:
        yield bench


def ramp(count: int, step: float = 0.02) -> list[tuple[float, float]]:
    return [(HOME[0] + step * (k + 1), HOME[1]) for k in range(count)]


def test_starts_disarmed_sends_nothing_and_holds_once_armed(bench: Bench) -> None:
    assert bench.status.mode == GateStatus.DISARMED
    assert (bench.status.mode_name, bench.status.verdict) == ("DISARMED", "")
    status = bench.send(bench.message(ramp(3)))
    assert list(status.reason_codes) == ["NOT_ARMED"]
    bench.ros.spin_for(0.3)
    assert bench.commands == []
    bench.arm()
    bench.ros.wait_until(lambda: len(bench.commands) > 20, 5.0, "hold set-points")
    assert all(data == list(HOME) for _, data in bench.commands)
    assert bench.enable(False).success
    bench.mode(GateStatus.DISARMED)
    bench.ros.spin_for(0.05)
    sent = len(bench.commands)
    bench.ros.spin_for(0.3)
    assert len(bench.commands) == sent


def test_executes_a_good_chunk_then_holds_on_silence(bench: Bench) -> None:
    bench.arm()
    bench.send(bench.message(ramp(5)))
    armed = next(s for s in bench.statuses if s.mode == GateStatus.ARMED)
    assert armed.verdict == "APPROVED"
    assert len(bench.approved) == 1
    bench.position = (0.33, 0.25)
    bench.mode(GateStatus.HOLDING)
    bench.ros.wait_until(lambda: bench.commands[-1][1] == [0.33, 0.25], 2.0, "hold position")
    levels = [key for key, _ in groupby(round(data[0], 6) for _, data in bench.commands)]
    assert levels == [0.25, 0.27, 0.29, 0.31, 0.33, 0.35, 0.33]
    status = bench.status
    assert (status.steps_executed, status.holds, status.chunks_approved) == (5, 1, 1)
    latency = convert.duration_to_seconds(status.validation_latency)
    assert 0.0 < latency < 0.1
    reaction = convert.duration_to_seconds(status.capture_to_command)
    assert 0.0 < reaction < 0.5


def test_the_end_of_chunks_is_braked_and_a_long_hold_stops(ros: Ros, tmp_path: Path) -> None:
    bench = Bench(ros, embodiment=gentle_pusht(tmp_path, 0.5), stop_after_hold=0.5)
    with bench.gate:
        bench.arm()
        bench.ros.spin_for(0.6)
        assert bench.status.mode == GateStatus.HOLDING, "no chunk came before this hold"
        # At most 0.5 m/s^2: 0.05 m/s more from step to step.
        steps = np.minimum(np.arange(1, 11), 5) * 0.005
        path = HOME[0] + np.cumsum(steps)
        bench.send(bench.message([(x, HOME[1]) for x in path]))
        bench.mode(GateStatus.HOLDING)
        ended = time.monotonic()
        bench.position = (0.47, 0.25)
        status = bench.mode(GateStatus.STOPPED)
        assert 0.3 < time.monotonic() - ended < 2.0
        assert status.reason.startswith("HOLD_TIMEOUT: ")
        levels = np.array([key for key, _ in groupby(data[0] for _, data in bench.commands)])
        np.testing.assert_allclose(levels[1:11], path, atol=1e-6)
        assert levels[-1] == 0.47
        # 0.25 m/s less half a step of braking leaves 0.225 m/s, or 0.051 m in 0.45 s.
        braked = levels[10:-1]
        assert len(braked) > 20
        assert braked[-1] - path[-1] == pytest.approx(0.225**2 / 2 / 0.5, abs=1e-3)
        assert (np.diff(braked) > 0.0).all()


def test_a_silent_node_makes_the_robot_hold(ros: Ros) -> None:
    bench = Bench(ros, heartbeats="planner_node", heartbeat_timeout=0.5)
    with bench.gate:
        assert "HEARTBEAT_LOST: " in bench.enable(True).message
        beats = bench.ros.node.create_publisher(Heartbeat, "heartbeat", qos.HEARTBEAT)
        beating = bench.ros.node.create_timer(
            0.1, lambda: beats.publish(Heartbeat(node="planner_node"))
        )
        bench.arm()
        assert bench.send(bench.message(ramp(5))).mode == GateStatus.ARMED
        bench.ros.node.destroy_timer(beating)
        assert bench.mode(GateStatus.HOLDING).reason.startswith("HEARTBEAT_LOST: ")
        assert list(bench.send(bench.message([HOME])).reason_codes) == ["HEARTBEAT_LOST"]


def test_parameters_are_read_only_while_armed(bench: Bench) -> None:
    def change(name: str, value: ParameterValue) -> Any:
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
        return bench.ros.call(SetParameters, "safety_gate/set_parameters", request).results[0]

    limit = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=2)
    wrong = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="NOT_FINITE=clamp")
    answer = change("check_policies", wrong)
    assert not answer.successful
    assert "NOT_FINITE" in answer.reason
    assert change("max_horizon", limit).successful
    bench.arm()
    answer = change("max_horizon", limit)
    assert not answer.successful
    assert "read-only while it is armed" in answer.reason
    assert list(bench.send(bench.message(ramp(3))).reason_codes) == ["HORIZON_INVALID"]
    assert bench.send(bench.message(ramp(2))).verdict == "APPROVED"


def test_bytes_that_are_no_chunk_are_refused_by_name(bench: Bench) -> None:
    bench.arm()
    for data, code in ((b"\x00\x01\x00\x00" + b"\xff" * 64, "MALFORMED"), (b"\0" * 30000, "")):
        received = bench.status.chunks_received
        bench.chunks.publish(data)
        bench.ros.wait_until(lambda n=received: bench.status.chunks_received > n, 5.0, "verdict")
        assert list(bench.status.reason_codes) == [code or "MESSAGE_TOO_LARGE"]
    assert bench.send(bench.message(ramp(2))).verdict == "APPROVED"


def _bad(bench: Bench) -> dict[str, tuple[ActionChunkMsg, set[str]]]:
    now = bench.ros.node.get_clock().now().nanoseconds
    short = bench.message(ramp(2))
    short.actions.data = short.actions.data[:-1]
    return {
        "nan": (bench.message([(math.nan, 0.25)]), {"NOT_FINITE"}),
        "cut data": (short, {"MALFORMED"}),
        "shape": (bench.message(np.full((2, 3), 0.25)), {"SHAPE_MISMATCH"}),
        "joints": (
            bench.message(ramp(2), joint_names=("a", "b")),
            {"JOINT_NAMES_MISMATCH"},
        ),
        "huge": (bench.message(np.full((600, 2), 0.25)), {"HORIZON_INVALID"}),
        "position": (
            bench.message([(0.25, 0.25 + 0.09 * k) for k in range(1, 5)]),
            {"POSITION_LIMIT", "WORKSPACE_BOX"},
        ),
        "velocity": (bench.message([HOME, (0.4, 0.25)]), {"VELOCITY_LIMIT"}),
        "jump": (bench.message([(0.4, 0.25)]), {"SEAM_COMMANDED", "SEAM_MEASURED"}),
        "over": (bench.message(ramp(2), stamp=now - 400_000_000), {"CHUNK_OVER"}),
        "observation": (
            bench.message(ramp(2), observation_stamp=now - 2_000_000_000),
            {"OBSERVATION_TOO_OLD"},
        ),
        "future": (bench.message(ramp(2), stamp=now + 10**10), {"CHUNK_IN_FUTURE"}),
        "unstamped": (bench.message(ramp(2), observation_stamp=0), {"OBSERVATION_STAMP_UNSET"}),
        "epoch": (bench.message(ramp(2), epoch=7), {"EPOCH_MISMATCH"}),
        "robot": (bench.message(ramp(2), embodiment="aloha"), {"EMBODIMENT_MISMATCH"}),
    }


def test_every_bad_chunk_gives_its_code_and_moves_nothing(bench: Bench) -> None:
    bench.arm()
    total = 0
    for name in list(_bad(bench)):
        message, expected = _bad(bench)[name]
        status = bench.send(message)
        total += 1
        assert status.verdict == "REJECTED", name
        assert set(status.reason_codes) == expected, (name, list(status.reason_messages))
        assert status.mode == GateStatus.HOLDING
    assert bench.status.chunks_rejected == total
    counts = dict(zip(bench.status.rejected_codes, bench.status.rejected_counts, strict=True))
    assert counts["NOT_FINITE"] == 1
    assert bench.approved == []
    assert all(data == list(HOME) for _, data in bench.commands)


def test_a_stop_latches_and_rearm_refuses_what_was_planned_before(bench: Bench) -> None:
    bench.arm()
    bench.send(bench.message(ramp(10)))
    bench.ros.wait_until(lambda: bench.commands[-1][1][0] > 0.28, 5.0, "motion")
    old = bench.message(np.tile(HOME, (20, 1)))
    bench.position = (0.27, 0.25)
    bench.ros.spin_for(0.1)
    assert bench.trigger("stop").success
    bench.mode(GateStatus.STOPPED)
    bench.ros.wait_until(lambda: bench.commands[-1][1] == [0.27, 0.25], 2.0, "stop position")
    sent = len(bench.commands)
    bench.position = (0.272, 0.25)
    status = bench.send(bench.message(ramp(10)))
    assert list(status.reason_codes) == ["STOPPED"]
    assert not bench.enable(True).success
    bench.ros.spin_for(0.3)
    assert len(bench.commands) > sent + 10, "a stopped gate goes on holding the robot"
    assert all(data == [0.27, 0.25] for _, data in bench.commands[sent:])
    epoch = bench.status.epoch
    assert bench.trigger("rearm").success
    status = bench.mode(GateStatus.HOLDING)
    assert status.epoch == epoch + 1
    old.sequence = bench.sequence + 10
    assert "EPOCH_MISMATCH" in bench.send(old).reason_codes
    bench.sequence += 20
    bench.position = HOME
    bench.ros.wait_until(lambda: bench.status.mode == GateStatus.HOLDING, 2.0)
    assert bench.send(bench.message([(0.27, 0.25)] * 3)).verdict == "APPROVED"


def test_a_protective_stop_is_obeyed_however_it_is_published(bench: Bench) -> None:
    for profile in (qos.LATCHED, qos.CHUNK, qos.sensor("best_effort")):
        button = Button(bench.ros, profile)
        if bench.status.mode == GateStatus.STOPPED:
            bench.ros.wait_until(lambda: bench.trigger("rearm").success, 5.0, "rearm")
        bench.arm()
        button.pressed = True
        assert bench.mode(GateStatus.STOPPED).reason.startswith("PROTECTIVE_STOP: ")
        assert "PROTECTIVE_STOP: " in bench.trigger("rearm").message
        button.pressed = False
        bench.ros.wait_until(lambda: bench.trigger("rearm").success, 5.0, "rearm")
        bench.mode(GateStatus.HOLDING)
        button.vanish()
        assert bench.mode(GateStatus.STOPPED).reason.startswith("PROTECTIVE_STOP_LOST: ")
        assert "PROTECTIVE_STOP_LOST: " in bench.trigger("rearm").message


def test_a_press_that_is_released_at_once_is_not_lost(bench: Bench) -> None:
    button = Button(bench.ros, qos.sensor("reliable", depth=10))
    bench.arm()
    for _ in range(10):
        button.tap()
        assert bench.mode(GateStatus.STOPPED).reason.startswith("PROTECTIVE_STOP: ")
        bench.ros.wait_until(lambda: bench.trigger("rearm").success, 5.0, "rearm")
        bench.mode(GateStatus.HOLDING)


def test_a_silent_button_stops_once_its_lease_is_over(bench: Bench) -> None:
    button = Button(bench.ros, qos.LATCHED)
    bench.arm()
    bench.ros.spin_for(0.8)
    assert bench.status.mode == GateStatus.HOLDING
    button.silence()
    silent = time.monotonic()
    status = bench.mode(GateStatus.STOPPED)
    # The lease is 0.5 s; the button may have spoken 0.1 s before.
    assert 0.3 < time.monotonic() - silent < 2.0
    assert status.reason.startswith("PROTECTIVE_STOP_LOST: ")


def test_silent_joint_states_stop(bench: Bench) -> None:
    bench.arm()
    bench.send(bench.message(ramp(20, 0.001)))
    bench.sensing = False
    silent = time.monotonic()
    status = bench.mode(GateStatus.STOPPED)
    assert time.monotonic() - silent < 1.0
    assert status.reason.startswith("JOINT_STATE_STALE")
    bench.ros.spin_for(0.05)
    place = bench.commands[-1][1]
    sent = len(bench.commands)
    bench.ros.wait_until(lambda: len(bench.commands) > sent + 20, 5.0, "set-points after the stop")
    assert all(data == place for _, data in bench.commands[sent:])


def test_arming_needs_exactly_one_planner(bench: Bench) -> None:
    bench.ros.node.destroy_publisher(bench.chunks)
    bench.ros.wait_until(lambda: "NO_PUBLISHER" in bench.enable(True).message, 5.0, "refusal")
    bench.ros.node.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
    bench.ros.node.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
    bench.ros.wait_until(
        lambda: "MULTIPLE_PUBLISHERS" in bench.enable(True).message, 5.0, "refusal"
    )
    assert bench.status.mode == GateStatus.DISARMED


def test_trajectories_end_at_rest_and_a_stop_replaces_them(ros: Ros) -> None:
    bench = Bench(ros, output="joint_trajectory")
    with bench.gate:
        bench.arm()
        hold = bench.ros.wait_until(lambda: bench.trajectories, 5.0, "hold trajectory")[-1]
        assert [list(point.positions) for point in hold.points] == [list(HOME)]
        bench.send(bench.message(ramp(10)))
        bench.ros.wait_until(lambda: len(bench.trajectories) == 2, 5.0, "trajectory")
        trajectory = bench.trajectories[-1]
        assert tuple(trajectory.joint_names) == NAMES
        times = [convert.duration_to_seconds(p.time_from_start) for p in trajectory.points]
        assert len(times) == 10
        assert times[0] > 0
        np.testing.assert_allclose(np.diff(times), 0.1, atol=1e-6)
        np.testing.assert_allclose(
            [p.positions[0] for p in trajectory.points], [x for x, _ in ramp(10)], atol=1e-6
        )
        assert list(trajectory.points[-1].velocities) == [0.0, 0.0]
        assert trajectory.points[4].velocities[0] == pytest.approx(0.2, rel=1e-3)
        bench.position = (0.26, 0.25)
        bench.ros.spin_for(0.1)
        assert bench.trigger("stop").success
        bench.ros.wait_until(lambda: len(bench.trajectories) == 3, 5.0, "stop trajectory")
        (point,) = bench.trajectories[-1].points
        assert (list(point.positions), list(point.velocities)) == ([0.26, 0.25], [0.0, 0.0])
        bench.ros.spin_for(0.3)
        assert len(bench.trajectories) == 3
        assert bench.commands == []


def test_poses_go_out_and_markers_show_what_was_refused(ros: Ros) -> None:
    bench = Bench(ros, output="target_pose")
    poses = ros.record(PoseStamped, "target_pose", qos.REPORT)
    markers = ros.record(MarkerArray, "safety_gate/markers", qos.LATCHED)

    def drawn() -> set[str]:
        shown = markers[-1].markers if markers else []
        return {marker.ns for marker in shown if marker.action != Marker.DELETE}

    with bench.gate:
        ros.wait_until(lambda: drawn() == {"workspace/box"}, 5.0, "the workspace")
        bench.arm()
        assert bench.send(bench.message(ramp(3))).verdict == "APPROVED"
        ros.wait_until(lambda: poses and poses[-1].pose.position.x > 0.3, 5.0, "the last pose")
        places = sorted({round(pose.pose.position.x, 6) for pose in poses})
        assert {0.25, 0.27, 0.29, 0.31} <= set(places)
        last = poses[-1]
        assert (last.pose.position.y, last.pose.orientation.w) == (HOME[1], 1.0)
        assert last.header.frame_id == "base"
        assert last.header.stamp.sec > 0
        assert "approved/path" in drawn()
        assert bench.send(bench.message([HOME, (0.45, 0.25)])).verdict == "REJECTED"
        ros.wait_until(lambda: "rejected/path" in drawn(), 5.0, "the refused chunk")
        assert markers[-1].markers[0].header.frame_id == "base"
        assert bench.commands == []


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(bench: Bench, signal_number: int) -> None:
    bench.arm()
    code, output = bench.gate.stop(signal_number, timeout=10.0)
    assert code == 0, output
    assert "Traceback" not in output
    bench.ros.spin_for(0.1)
    sent = len(bench.commands)
    bench.ros.spin_for(0.3)
    assert len(bench.commands) == sent


def test_a_wrong_parameter_is_one_line_and_status_2(ros: Ros) -> None:
    with ros.process("safety_gate_node", embodiment="nobody") as process:
        code, output = process.finish(30.0)
    assert code == 2
    assert "EMBODIMENT_UNKNOWN" in output
    assert "Traceback" not in output
