"""``worldforge top``: rates and ages, what it shows, and the program over real DDS."""

from __future__ import annotations

import io
import json
import math
import signal
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from worldforge_ros.bags.names import TopicName
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.monitor.arrivals import MOST_ARRIVALS, Arrivals, leading_stamp
from worldforge_ros.monitor.limits import limits_of
from worldforge_ros.monitor.screen import Picture
from worldforge_ros.monitor.state import (
    MOST_NODES,
    Cycle,
    Monitor,
    Top,
    candidates_of,
    watched_topics,
)
from worldforge_ros.recording.log import PlanSample
from worldforge_ros.safety.watch import GateView

PUSHT = load_embodiment("pusht")
NOW, ROS_NOW = 100.0, 5000.0
VIEW = GateView(
    stamp=ROS_NOW - 0.2,
    mode="ARMED",
    reason="executing approved chunks",
    epoch=2,
    verdict="APPROVED",
    verdict_sequence=7,
    reasons=(),
    counters={"received": 7},
    rejected={},
    validation_latency=0.0004,
    capture_to_command=0.15,
)


# Rates and ages.


@pytest.mark.parametrize(
    ("times", "now", "rate"),
    [
        ([], 0.0, None),
        ([1.0], 1.5, None),
        ([0.0, 1.0, 2.0, 3.0], 3.5, 1.0),
        # The next was due at 8: four intervals in 4.5 s.
        ([4.0, 5.0, 6.0, 7.0], 8.5, 4 / 4.5),
        # What is older than the window does not count: 2, 3 and 4 are left.
        ([0.0, 1.0, 2.0, 3.0, 4.0], 6.5, 3 / 4.5),
        ([0.0, 1.0], 60.0, None),
        ([1.0, 1.1, 1.2, 1.4], 1.4, 7.5),
        # A clock that steps back makes no interval below 0.
        ([2.0, 1.0, 3.0], 3.0, 2.0),
    ],
)
def test_rate(times: list[float], now: float, rate: float | None) -> None:
    arrivals = Arrivals(window=5.0)
    for time in times:
        arrivals.add(time, None)
    assert arrivals.rate(now) == (rate if rate is None else pytest.approx(rate))
    assert arrivals.count == len(times)
    assert arrivals.age(now) == (pytest.approx(now - max(times)) if times else None)


def test_a_flood_takes_no_more_memory_and_keeps_its_rate() -> None:
    arrivals = Arrivals(window=5.0)
    for index in range(3 * MOST_ARRIVALS):
        arrivals.add(index * 1e-4, None)
    assert arrivals.rate(3 * MOST_ARRIVALS * 1e-4) == pytest.approx(1e4, rel=1e-3)


@pytest.mark.parametrize(
    ("data", "stamp"),
    [
        (b"\0\1\0\0" + struct.pack("<iI", 12, 500_000_000) + b"rest", 12.5),
        (b"\0\0\0\0" + struct.pack(">iI", 12, 500_000_000), 12.5),
        (b"\0\1\0\0" + struct.pack("<iI", 0, 0), None),
        (b"\0\1\0\0\1\2", None),
        (b"", None),
    ],
)
def test_leading_stamp(data: bytes, stamp: float | None) -> None:
    assert leading_stamp(data) == stamp


def test_limits_are_those_of_the_running_nodes() -> None:
    assert limits_of(PUSHT, {}).told_by == ()
    assert limits_of(PUSHT, {}).open_loop == 5.0
    gate = {"max_open_loop": 2.0, "control_rate": 20.0, "heartbeats": "a, b", "max_surprise": 3.0}
    found = limits_of(PUSHT, {"safety_gate": gate, "planner_node": {"score_timeout": 0.3}})
    assert (found.open_loop, found.command_silence, found.beats) == (2.0, 0.5, ("a", "b"))
    assert (found.surprise, found.score, found.propose) == (3.0, 0.3, 2.0)
    assert found.told_by == ("planner_node", "safety_gate")


# What is known at one moment.


def cycle(number: int = 3, **changes: Any) -> Cycle:
    costs = [3.0, 1.0, math.nan, 2.0]
    sample = PlanSample(
        time=0.0,
        outcome=changes.get("outcome", "OK"),
        num_candidates=4,
        costs=np.array(costs, np.float32),
        chosen=1,
        margin=1.0,
        candidates=np.empty((0, 0, 0), np.float32),
        step=0.1,
        observation_latency=0.02,
        propose_latency=0.06,
        score_latency=0.03,
        plan_latency=0.1,
        propose_model_latency=0.05,
        score_model_latency=0.025,
    )
    known = Cycle(
        number=number,
        outcome="OK",
        message="",
        planner="scored",
        sequence=7,
        margin=1.0,
        deadline_misses=0,
        candidates=candidates_of(
            ["policy", "policy", "hold", "tail"], costs, [True, True, False, True], 1
        ),
        sample=sample,
    )
    return replace(known, **changes)


def monitor(namespace: str = "/") -> Monitor:
    """Everything was heard: each topic at 10 Hz until 0.05 s ago, stamps 0.1 s old."""
    found = Monitor(PUSHT, namespace, watched_topics(PUSHT))
    for role in watched_topics(PUSHT):
        for index in range(20):
            found.heard(role, NOW - 1.95 + index * 0.1, ROS_NOW - 0.1)
    found.status(replace(VIEW, verdict_sequence=6, capture_to_command=0.1))
    found.status(VIEW)
    found.cycle(cycle(2))
    found.cycle(cycle())
    found.beat("planner_node", NOW - 0.04)
    prefix = namespace.rstrip("/")
    found.diagnosed(f"{prefix}/planner_node", 0, "OK", {"errors.SCORE_FAILED": "2", "x": "y"}, NOW)
    found.surprised(0.5, 1.25)
    return found


def top_of(
    found: Monitor, publishers: Mapping[str, tuple[str, ...]] | None = None, now: float = NOW
) -> Top:
    """Each topic has a publisher unless ``publishers`` says others."""
    topics: dict[str, tuple[TopicName, str, tuple[str, ...]]] = {
        role: (
            names[0],
            "/" + names[0].name.strip("/"),
            (publishers or {}).get(role, ("/planner_node",)),
        )
        for role, names in watched_topics(PUSHT).items()
    }
    return found.snapshot(now, ROS_NOW + now - NOW, "wall", topics, {})


def row(top: Top, role: str) -> Any:
    return next(item for item in top.topics if item.role == role)


def test_a_topic_has_its_rate_ages_and_what_is_allowed() -> None:
    top = top_of(monitor())
    camera = row(top, "top")
    assert (camera.topic, camera.messages, camera.publishers) == ("/camera/top/image_raw", 20, 1)
    assert camera.rate == pytest.approx(10.0)
    assert (camera.age, camera.stamp_age) == (pytest.approx(0.05), pytest.approx(0.1))
    assert (camera.max_age, camera.max_stamp_age, camera.state) == (0.5, 0.5, "ok")
    # Set-points have no stamp.
    assert row(top, "commands").stamp_age is None
    assert not any(item.bad for item in top.topics)


def test_silent_late_absent_and_idle() -> None:
    found = monitor()
    found.heard("top", NOW, ROS_NOW - 0.6)
    top = top_of(found)
    assert (row(top, "top").state, row(top, "top").bad) == ("late", True)
    later = top_of(monitor(), now=NOW + 0.5)
    assert {item.role for item in later.topics if item.state == "silent"} == {
        "top",
        "joint_states",
        "observation",
        "commands",
    }
    fresh = Monitor(PUSHT, "/", watched_topics(PUSHT))
    nothing = top_of(fresh, {"plan_report": ()})
    assert not nothing.heard
    assert row(nothing, "plan_report").state == "absent"
    assert row(nothing, "observation").state == "silent"
    # No set-point is due while the gate is not armed.
    assert (row(nothing, "commands").state, row(nothing, "commands").bad) == ("idle", False)


def test_latencies_outcomes_and_deadlines() -> None:
    found = monitor()
    found.cycle(cycle(4, outcome="SCORE_DEADLINE_MISSED", deadline_misses=1))
    top = top_of(found)
    assert (top.cycles, top.outcomes) == (3, {"OK": 2, "SCORE_DEADLINE_MISSED": 1})
    stages = {item["stage"]: item for item in top.latency}
    assert (stages["propose"]["p50"], stages["propose"]["model_ms"]) == (60.0, 50.0)
    assert stages["score"]["model_share"] == pytest.approx(25 / 30, abs=1e-4)
    assert stages["gate"]["p95"] == 0.4
    assert stages["capture_to_command"]["p50"] == 150.0
    assert top.deadlines == {"image_to_observation": 500.0, "propose": 2000.0, "score": 2000.0}
    # A planner that starts again counts from 1.
    found.cycle(cycle(1))
    assert top_of(found).cycles == 1


def test_candidates_are_sorted_and_those_without_a_cost_last() -> None:
    found = cycle().candidates
    assert [(item.index, item.cost, item.chosen) for item in found] == [
        (1, 1.0, True),
        (3, 2.0, False),
        (0, 3.0, False),
        (2, None, False),
    ]
    assert [item.reachable for item in found] == [True, True, True, False]
    assert candidates_of(["a", "b"], [1.0], [], -1)[1].cost is None


def test_nodes_by_heartbeat_and_diagnostics() -> None:
    found = monitor("/left")
    found.diagnosed("/left/observation_node", 2, "CAMERA_STALE: old", {}, NOW - 1.0)
    found.diagnosed("/right/planner_node", 2, "not ours", {}, NOW)
    found.diagnosed("camera: rate", 2, "not ours", {}, NOW)
    top = top_of(
        found, {"heartbeat": ("/left/planner_node", "/left/policy_node"), "diagnostics": ()}
    )
    nodes = {item.name: item for item in top.nodes}
    assert {name: (item.state, item.bad) for name, item in nodes.items()} == {
        "planner_node": ("ok", False),
        "policy_node": ("silent", True),
        "observation_node": ("error", True),
    }
    assert nodes["planner_node"].errors == {"SCORE_FAILED": 2}
    late = {item.name: item for item in top_of(found, now=NOW + 1.5).nodes}
    assert late["planner_node"].state == "silent"
    for index in range(2 * MOST_NODES):
        found.beat(f"flood_{index}", NOW)
    assert len(top_of(found).nodes) <= MOST_NODES + 1


def test_surprise_above_what_the_gate_allows_is_bad() -> None:
    found = monitor()
    surprise = top_of(found).surprise
    assert surprise is not None
    assert (surprise.standardised, surprise.most, surprise.bad) == (1.25, None, False)
    found.told = {"safety_gate": {"max_surprise": 1.0}}
    surprise = top_of(found).surprise
    assert surprise is not None
    assert surprise.bad


def test_once_waits_until_all_that_speaks_is_heard_or_is_silent_for_a_window() -> None:
    found = Monitor(PUSHT, "/", watched_topics(PUSHT))
    assert not found.complete(NOW, top_of(found))
    found.heard("gate_status", NOW, ROS_NOW)
    assert not found.complete(NOW + 3.0, top_of(found))
    assert found.complete(NOW + 6.0, top_of(found))
    heard = monitor()
    assert not heard.complete(NOW, top_of(heard))
    assert heard.complete(NOW + 0.8, top_of(heard))


def test_json_is_plain_and_whole() -> None:
    found = json.loads(json.dumps(top_of(monitor()).as_json(), allow_nan=False))
    assert found["heard"]
    assert found["topics"]["top"]["rate"] == pytest.approx(10.0)
    assert found["latency_ms"]["score"]["deadline"] == 2000.0
    assert found["plan"]["candidates"][3]["cost"] is None
    assert found["gate"]["state"] == "ARMED"
    assert found["nodes"]["planner_node"]["errors"] == {"SCORE_FAILED": 2}
    empty = Monitor(PUSHT, "/", watched_topics(PUSHT))
    nothing = json.loads(json.dumps(top_of(empty).as_json(), allow_nan=False))
    assert nothing.keys() == found.keys()
    assert (nothing["heard"], nothing["plan"], nothing["surprise"]) == (False, None, None)


# What it looks like.


def shown(top: Top, width: int, height: int | None = None, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, color_system="standard" if color else None
    )
    console.print(Picture(top, height))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_everything_is_shown(width: int) -> None:
    text = shown(top_of(monitor()), width)
    assert max(map(len, text.splitlines())) <= width
    for part in (
        " ARMED  executing approved chunks",
        "camera/top/image_raw 10.0 0.10",
        "propose 60.0 60.0 50.0 2000",
        "cycles: OK 2",
        "surprise: 1.25, 0.0 s ago",
        "cycle 3 OK, scored of 4 candidates, margin 1",
        "planner_node       0.04",
    ):
        assert " ".join(part.split()) in " ".join(text.split()), part
    lines = text.splitlines()
    order = [next(i for i, line in enumerate(lines) if f" {n} " in line[:6]) for n in (1, 3, 0, 2)]
    assert order == sorted(order)
    assert lines[order[0]].startswith(">")
    assert lines[order[3]].startswith("x")
    # What is allowed, and messages in full, only where there is room.
    assert ("at most" in text) == (width == 140)
    assert "OK (SCORE_FAILED 2)" in text


def test_it_fits_a_low_terminal_and_keeps_the_chosen_candidate() -> None:
    found = monitor()
    found.told = {"safety_gate": {"heartbeats": "planner_node, policy_node"}}
    many = candidates_of(["policy"] * 64, np.arange(64.0), [True] * 64, 50)
    found.cycle(cycle(4, candidates=many))
    found.status(replace(VIEW, mode="STOPPED", reason="X: " + "because " * 60))
    lines = shown(top_of(found), 80, 24).splitlines()
    assert len(lines) == 24
    assert any(line.startswith(" STOPPED ") for line in lines)
    assert any(line.startswith(">  50 policy") for line in lines)
    assert "cycle 4 OK, scored of 64 candidates, margin 1" in "\n".join(lines)
    assert "gate watch` has the rest" in "\n".join(lines)


def test_what_is_wrong_is_red_and_marked() -> None:
    later = top_of(monitor(), now=NOW + 0.5)
    plain = shown(later, 140)
    assert "! camera/top/image_raw" in plain
    assert "! plan_report" not in plain
    assert "\x1b[1;31mcamera/top/image_raw" in shown(later, 140, color=True)


def test_what_nodes_send_is_text_and_neither_markup_nor_terminal_codes() -> None:
    found = monitor()
    found.diagnosed("/planner_node", 2, "[red]hot[/red] \x1b[2J\x07", {}, NOW)
    found.cycle(cycle(4, outcome="\x1b[2J", message="[bold]"))
    text = shown(top_of(found), 140)
    assert "[red]hot[/red]" in text
    assert not {"\x1b", "\x07"} & set(text)


# The program over DDS, with nodes played by the test; about 10 s.


@pytest.fixture
def running(command_line: Any) -> Any:
    return partial(command_line, "top")


def test_a_stack_in_a_namespace_as_json(ros: Any, running: Any) -> None:
    from sensor_msgs.msg import Image

    from worldforge_ros.msg import GateStatus, Heartbeat, PlanReport
    from worldforge_ros.ros import convert, qos

    def publisher(kind: Any, topic: str, profile: Any) -> Any:
        return ros.node.create_publisher(kind, f"/left/{topic}", profile)

    # A camera that offers less than a reader may ask for.
    camera = publisher(Image, "camera/top/image_raw", qos.sensor("best_effort"))
    beats = publisher(Heartbeat, "heartbeat", qos.HEARTBEAT)
    gate = publisher(GateStatus, "safety_gate/status", qos.LATCHED)
    reports = publisher(PlanReport, "plan_report", qos.REPORT)
    gate.publish(GateStatus(mode=GateStatus.DISARMED, mode_name="DISARMED", reason="started"))
    sent = {"cycle": 0}

    def beat() -> None:
        stamp = ros.node.get_clock().now().nanoseconds
        header = convert.header(stamp, "base")
        camera.publish(Image(header=header, height=1, width=1, step=3, data=[1, 2, 3]))
        beats.publish(Heartbeat(header=header, node="planner_node"))
        sent["cycle"] += 1
        report = PlanReport(
            header=header,
            cycle=sent["cycle"],
            outcome="OK",
            planner="scored",
            sources=["policy", "hold"],
            costs=[2.0, 1.5],
            reachable=[True, True],
            chosen=1,
            margin=0.5,
        )
        report.propose_latency.nanosec = 60_000_000
        reports.publish(report)

    ros.node.create_timer(0.1, beat)
    process = running("--once", "--json", "--namespace", "/left", "--timeout", "30")
    ros.wait_until(lambda: process.poll() is not None, 60.0, "end of the program")
    found = json.loads(process.stdout.read())
    assert (process.returncode, found["heard"], found["namespace"]) == (0, True, "/left")
    picture = found["topics"]["top"]
    assert (picture["topic"], picture["publishers"]) == ("/left/camera/top/image_raw", 1)
    assert picture["messages"] > 5
    # On a busy machine the test's own timer is late, never early.
    assert 1.0 < picture["rate"] < 11.0
    assert 0.0 <= picture["stamp_age"] < 5.0
    assert found["topics"]["observation"]["state"] == "absent"
    assert found["topics"]["commands"]["state"] == "absent"
    assert found["gate"]["status"]["reason"] == "started"
    assert found["plan"]["outcomes"]["OK"] > 5
    assert [item["index"] for item in found["plan"]["candidates"]] == [1, 0]
    assert found["latency_ms"]["propose"]["p50"] == pytest.approx(60.0)
    assert found["nodes"]["planner_node"]["beats"]


def test_one_line_a_period_then_quiet_on_ctrl_c(ros: Any, running: Any) -> None:
    process = running("--json", "--period", "0.2", "--namespace", "/nobody")
    assert [json.loads(process.stdout.readline())["heard"] for _ in range(2)] == [False, False]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_nothing_heard_is_status_1(ros: Any, running: Any) -> None:
    process = running("--once", "--timeout", "0.5", "--namespace", "/nobody")
    assert process.wait(timeout=30) == 1
    text = process.stdout.read()
    assert "no status on /nobody/safety_gate/status yet" in text
    assert "\x1b" not in text
