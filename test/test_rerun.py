"""Recordings for Rerun: what goes in is what is read back from the file, with its times."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.recording.rerun_file import FILE_NAME, RerunFile, When, require_rerun
from worldforge_ros.safety.workspace import workspace_of

NS = 1_000_000_000
EPOCH = 1_700_000_000 * NS
PUSHT = load_embodiment("pusht")
LATENCIES = {"plan": 0.05, "score": 0.03, "propose": 0.0}


def test_a_missing_module_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(WorldForgeError, match="pip install rerun-sdk") as caught:
        require_rerun()
    assert caught.value.code is ErrorCode.DEPENDENCY_MISSING


@pytest.fixture(scope="module")
def reader() -> Any:
    """What reads recordings; newer releases of rerun-sdk need a server for it."""
    return pytest.importorskip("rerun.dataframe", reason="rerun-sdk 0.26 is not installed")


Rows = list[dict[str, Any]]


def rows(reader: Any, path: Path, entity: str, component: str, index: str = "ros_time") -> Rows:
    """Times in ns and the values of one component, in the order of ``index``."""
    column = f"{entity}:{component}"
    recording = reader.load_recording(str(path))
    view = recording.view(index=index, contents=entity).filter_is_not_null(column)
    table = view.select(columns=["ros_time", "receive_time", column]).read_all()
    return [
        {
            "ros": ros.value
            if hasattr(ros, "value")
            else int(np.datetime64(ros, "ns").astype(int)),
            "received": int(np.datetime64(received, "ns").astype(int)),
            "value": value,
        }
        for ros, received, value in zip(
            table["ros_time"].to_numpy(),
            table["receive_time"].to_numpy(),
            table[column].to_pylist(),
            strict=True,
        )
    ]


def values(found: Rows) -> list[Any]:
    """The values alone, scalars out of their lists."""
    return [row["value"][0] if len(row["value"]) == 1 else row["value"] for row in found]


def entities(reader: Any, path: Path) -> set[str]:
    recording = reader.load_recording(str(path))
    return {column.entity_path for column in recording.schema().component_columns()}


def when(step: int) -> When:
    return When(EPOCH + step * NS // 10, EPOCH + step * NS // 10 + 7_000_001)


def plan(file: RerunFile, at: When, **changed: Any) -> None:
    """A cycle with three candidates, the second unreachable, the third chosen."""
    candidates = np.zeros((3, 4, 2), np.float32)
    candidates[..., 0] = 0.1 * np.arange(1, 4)[:, np.newaxis]
    candidates[..., 1] = np.linspace(0.1, 0.4, 4)
    given: dict[str, Any] = {
        "candidates": candidates,
        "costs": np.array([2.5, np.nan, 1.25], np.float32),
        "reachable": np.array([True, False, True]),
        "chosen": 2,
        "margin": 1.25,
        "outcome": "OK",
        "message": "",
        "latencies": LATENCIES,
    }
    file.plan(**{**given, **changed}, when=at)


def test_what_was_planned_is_in_the_file_at_both_times(reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE_NAME
    file = RerunFile(path, PUSHT, workspace_of(PUSHT, None), notes={"distro": "jazzy"})
    picture = np.zeros((96, 96, 3), np.uint8)
    for step in range(3):
        file.picture("top", picture, when(step))
        file.joints(np.array([0.1 * step, 0.2]), when(step))
        file.commands(np.array([0.3, 0.1 * step]), when(step))
    plan(file, when(2))
    file.goal(picture, when(0))
    file.surprise(1.5, float("nan"), when(1))
    file.surprise(1.5, 0.25, when(2))
    file.close()

    assert [(row["ros"], row["received"]) for row in rows(reader, path, *POSITION)] == [
        (when(step).ros, when(step).received) for step in range(3)
    ]
    assert values(rows(reader, path, *POSITION)) == pytest.approx([0.0, 0.1, 0.2])
    command = rows(reader, path, "/joints/pusher_y/command", "Scalars:scalars")
    assert values(command) == pytest.approx([0.0, 0.1, 0.2])
    costs = rows(reader, path, "/costs/candidates", "Scalars:scalars")
    assert costs[0]["ros"] == when(2).ros
    np.testing.assert_array_equal(costs[0]["value"], [2.5, np.nan, 1.25])
    assert values(rows(reader, path, "/costs/chosen", "Scalars:scalars")) == [1.25]
    assert values(rows(reader, path, "/margin", "Scalars:scalars")) == [1.25]
    assert values(rows(reader, path, "/latency/plan", "Scalars:scalars")) == [0.05]
    assert values(rows(reader, path, "/surprise/error", "Scalars:scalars")) == [1.5, 1.5]
    assert values(rows(reader, path, "/surprise/standardised", "Scalars:scalars")) == [0.25]
    found = entities(reader, path)
    assert "/latency/propose" not in found, "a stage that was not reached has no latency"
    assert {"/goal", "/camera/top", "/workspace/bounds"} <= found


POSITION = ("/joints/pusher_x/position", "Scalars:scalars")


def test_candidates_are_drawn_into_the_picture_and_the_workspace(
    reader: Any, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    file = RerunFile(path, PUSHT, workspace_of(PUSHT, None))
    plan(file, when(0), costs=np.array([1.5, 2.5, 1.25], np.float32))
    nothing = np.empty((0, 0, 2), np.float32)
    empty = np.empty(0, np.float32)
    plan(
        file, when(1), candidates=nothing, costs=empty, reachable=empty.astype(bool), chosen=-1,
        margin=float("nan"), outcome="SCORE_DEADLINE_MISSED", message="no reply",
    )  # fmt: skip
    file.close()

    chosen = rows(reader, path, "/camera/top/chosen", "LineStrips2D:strips")
    (strip,) = chosen[0]["value"]
    # 0.512 m are 96 pixels.
    np.testing.assert_allclose(strip[0], [0.3 * 187.5, 0.1 * 187.5], rtol=1e-5)
    assert len(strip) == 4
    assert chosen[1]["value"] == [], "a cycle without candidates leaves none standing"
    others = rows(reader, path, "/camera/top/candidates", "LineStrips2D:strips")
    assert [len(row["value"]) for row in others] == [2, 0]
    labels = rows(reader, path, "/camera/top/candidates", "LineStrips2D:labels")
    assert labels[0]["value"] == ["1: cost 2.5", "0: cost 1.5"], "the cheap one is drawn last"
    inside = rows(reader, path, "/workspace/chosen", "LineStrips3D:strips")
    np.testing.assert_allclose(inside[0]["value"][0][0], [0.3, 0.1, 0.0], rtol=1e-5)
    text = rows(reader, path, "/log/plan", "TextLog:text")
    assert values(text) == ["OK", "SCORE_DEADLINE_MISSED: no reply"]


def test_the_gate_is_text_where_it_changes(reader: Any, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    file = RerunFile(path, PUSHT, workspace_of(PUSHT, None))
    story: tuple[tuple[int, str, str, str, int, list[str]], ...] = (
        (0, "DISARMED", "the state after start", "", 0, []),
        (1, "ARMED", "executing", "APPROVED", 4, []),
        (1, "ARMED", "executing", "APPROVED", 4, []),
        (1, "ARMED", "executing", "REJECTED", 5, ["JERK: too much", "CHUNK_STALE: too late"]),
        (3, "STOPPED", "stop button", "REJECTED", 5, ["JERK: too much", "CHUNK_STALE: too late"]),
    )
    for step, status in enumerate(story):
        file.gate(*status, latencies={"validation": 0.002}, when=when(step))
    file.approved(np.array([[0.1, 0.2], [0.2, 0.2]]), when(1))
    file.close()
    assert values(rows(reader, path, "/gate/mode", "Scalars:scalars")) == [0, 1, 1, 1, 3]
    assert values(rows(reader, path, "/log/gate", "TextLog:text")) == [
        "DISARMED: the state after start",
        "ARMED: executing",
        "chunk 5 REJECTED: JERK: too much; CHUNK_STALE: too late",
        "STOPPED: stop button",
    ]
    levels = rows(reader, path, "/log/gate", "TextLog:level")
    assert values(levels) == ["INFO", "INFO", "WARN", "ERROR"]
    assert len(rows(reader, path, "/latency/validation", "Scalars:scalars")) == 2, "one a chunk"
    assert len(rows(reader, path, "/workspace/approved", "LineStrips3D:strips")) == 1


def test_without_a_workspace_there_is_nothing_to_draw_in(reader: Any, tmp_path: Path) -> None:
    aloha = load_embodiment("aloha")
    path = tmp_path / FILE_NAME
    file = RerunFile(path, aloha, None, simulated=True)
    joints = len(aloha.joints)
    plan(file, when(0), candidates=np.zeros((3, 4, joints), np.float32))
    file.joints(np.arange(joints, dtype=float), When(5 * NS, EPOCH))
    file.close()
    found = entities(reader, path)
    assert "/costs/chosen" in found
    assert not any("workspace" in name or name.startswith("/camera") for name in found)
    column = f"/joints/{aloha.joint_names[3]}/position:Scalars:scalars"
    view = reader.load_recording(str(path)).view(index="ros_time", contents="/joints/**")
    table = view.filter_is_not_null(column).select().read_all()
    assert np.timedelta64(5, "s") in table["ros_time"].to_numpy(), "no date: seconds of simulation"
    assert table[column].to_pylist() == [[3.0]]


def test_what_cannot_be_recorded_is_refused(reader: Any, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    file = RerunFile(path, PUSHT, workspace_of(PUSHT, None))
    for wrong, code in (
        (lambda: file.commands(np.zeros(3), when(0)), ErrorCode.ACTION_DIM_MISMATCH),
        (lambda: plan(file, when(0), chosen=3), ErrorCode.INVALID_ARGUMENT),
        (lambda: plan(file, when(0), costs=np.zeros(2)), ErrorCode.TENSOR_SHAPE_MISMATCH),
        (
            lambda: file.encoded_picture("top", b"", "16UC1; compressedDepth", when(0)),
            ErrorCode.IMAGE_ENCODING_UNSUPPORTED,
        ),
    ):
        with pytest.raises(WorldForgeError) as caught:
            wrong()
        assert caught.value.code is code
    file.close()
    size = path.stat().st_size
    for again in (path, path / "below"):
        with pytest.raises(WorldForgeError) as caught:
            RerunFile(again, PUSHT)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert path.stat().st_size == size


# Over real DDS.


def diagnostics(ros: Any) -> Callable[[], Mapping[str, str]]:
    """The newest status of the recorder: its values, and ``message``."""
    from diagnostic_msgs.msg import DiagnosticArray

    seen = ros.record(DiagnosticArray, "/diagnostics")

    def newest() -> Mapping[str, str]:
        for array in reversed(seen):
            for status in array.status:
                if status.name == "/rerun_node":
                    found = {pair.key: pair.value for pair in status.values}
                    return {**found, "message": status.message}
        return {}

    return newest


def test_topics_become_a_recording(ros: Any, reader: Any, tmp_path: Path) -> None:
    from builtin_interfaces.msg import Duration, Time
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    from worldforge_ros.msg import ActionChunk, GateStatus, PlanReport, Surprise
    from worldforge_ros.ros import convert, qos

    def image(stamp: int) -> Image:
        return convert.image_to_msg(np.full((96, 96, 3), 200, np.uint8), stamp, "top")

    node = ros.node
    publishers = {
        topic: node.create_publisher(kind, topic, profile)
        for topic, kind, profile in (
            ("camera/top/image_raw", Image, qos.sensor("best_effort")),
            ("joint_states", JointState, qos.sensor("reliable", depth=20)),
            ("goal_image", Image, qos.LATCHED),
            ("safety_gate/status", GateStatus, qos.LATCHED),
            ("plan_report", PlanReport, qos.REPORT),
            ("action_chunk/approved", ActionChunk, qos.CHUNK),
            ("joint_commands", Float64MultiArray, qos.CHUNK),
            ("joint_trajectory", JointTrajectory, qos.CHUNK),
            ("score_node/surprise", Surprise, qos.REPORT),
        )
    }
    publishers["goal_image"].publish(image(EPOCH))
    stamp = convert.ns_to_stamp(EPOCH + NS)
    report = diagnostics(ros)
    with ros.process("rerun_node", output_dir=tmp_path) as recorder:
        for publisher in publishers.values():
            ros.connected(publisher, 60.0)
        publishers["camera/top/image_raw"].publish(image(EPOCH + NS))
        state = JointState(name=["pusher_y", "pusher_x"], position=[0.2, 0.1], velocity=[0.0, 0.0])
        state.effort = [0.0, 0.0]
        state.header.stamp = stamp
        publishers["joint_states"].publish(state)
        wrong = JointState(name=["elbow"], position=[0.2], velocity=[0.0])
        publishers["joint_states"].publish(wrong)
        publishers["joint_commands"].publish(Float64MultiArray(data=[0.3, 0.4]))
        points = [
            JointTrajectoryPoint(positions=[y, x], time_from_start=Duration(sec=k))
            for k, (y, x) in enumerate(((0.5, 0.6), (0.7, 0.8)))
        ]
        trajectory = JointTrajectory(joint_names=["pusher_y", "pusher_x"], points=points)
        trajectory.header.stamp = stamp
        publishers["joint_trajectory"].publish(trajectory)
        candidates = np.linspace(0.1, 0.4, 24).reshape(1, 3, 4, 2)
        publishers["plan_report"].publish(
            PlanReport(
                outcome="OK",
                observation_stamp=stamp,
                num_candidates=3,
                costs=[3.0, 1.0, 2.0],
                reachable=[True, True, True],
                chosen=1,
                margin=1.0,
                candidates=convert.tensor_to_msg(candidates),
                plan_latency=convert.seconds_to_duration(0.25),
            )
        )
        status = GateStatus(mode=1, mode_name="ARMED", reason="executing")
        status.header.stamp = stamp
        publishers["safety_gate/status"].publish(status)
        chunk = ActionChunk(actions=convert.tensor_to_msg(candidates[0, 1]))
        chunk.header.stamp = stamp
        publishers["action_chunk/approved"].publish(chunk)
        surprise = Surprise(error=0.5, standardised=2.0)
        surprise.header.stamp = Time(sec=stamp.sec)
        publishers["score_node/surprise"].publish(surprise)
        ros.wait_until(lambda: report().get("messages") == "9", 20.0, "every message but one")
        assert report()["errors.JOINT_NAMES_MISMATCH"] == "1", "named, and no reason to stop"
        code, printed = recorder.stop(signal.SIGINT)
    assert code == 0, printed
    path = tmp_path / FILE_NAME
    assert f"wrote {path}: 9 messages" in printed
    at = EPOCH + NS
    (position,) = rows(reader, path, *POSITION)
    assert (position["ros"], position["value"]) == (at, [0.1]), "by name, in the embodiment's order"
    assert abs(position["received"] - node.get_clock().now().nanoseconds) < 120 * NS
    commands = rows(reader, path, "/joints/pusher_x/command", "Scalars:scalars")
    assert [(row["ros"], row["value"][0]) for row in commands[:2]] == [(at, 0.6), (at + NS, 0.8)]
    assert commands[2]["value"] == [0.3]
    assert commands[2]["ros"] > at + NS, "a command without a stamp is put where it was heard"
    assert values(rows(reader, path, "/costs/chosen", "Scalars:scalars")) == [1.0]
    assert values(rows(reader, path, "/latency/plan", "Scalars:scalars")) == [0.25]
    assert values(rows(reader, path, "/log/gate", "TextLog:text")) == ["ARMED: executing"]
    assert values(rows(reader, path, "/surprise/standardised", "Scalars:scalars")) == [2.0]
    assert {"/goal", "/camera/top", "/camera/top/chosen", "/workspace/approved"} <= entities(
        reader, path
    )


def test_a_recording_that_is_full_stops_nothing_else(ros: Any, reader: Any, tmp_path: Path) -> None:
    from sensor_msgs.msg import Image

    from worldforge_ros.ros import convert, qos

    camera = ros.node.create_publisher(Image, "camera/top/image_raw", qos.sensor("reliable"))
    report = diagnostics(ros)
    arguments: dict[str, Any] = {"max_gb": 1e-4, "jpeg_quality": 0}
    with ros.process("rerun_node", output_dir=tmp_path, **arguments) as recorder:
        ros.connected(camera, 60.0)
        for step in range(4):
            # A recording is compressed, and noise is not.
            noise = np.random.default_rng(step).integers(0, 256, (96, 96, 3), np.uint8)
            camera.publish(convert.image_to_msg(noise, when(step).ros, "top"))
        ros.wait_until(lambda: "the bound is" in report().get("ended", ""), 30.0, "the end")
        ros.wait_until(lambda: report()["message"].startswith("RECORDING_INCOMPLETE"), 5.0, "news")
        assert recorder.process.poll() is None
        code, printed = recorder.stop(signal.SIGINT)
    assert code == 1
    assert "RECORDING_INCOMPLETE" in printed


def test_a_recording_is_never_overwritten(ros: Any, reader: Any, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("mine")
    with ros.process("rerun_node", output_dir=tmp_path) as recorder:
        status, printed = recorder.finish()
    assert status == 2
    assert "INVALID_ARGUMENT: recording" in printed
    assert (tmp_path / FILE_NAME).read_text() == "mine"
