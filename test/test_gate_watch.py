"""``worldforge gate watch``: what it shows of a status, and the program over real DDS."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from worldforge_ros.safety.advice import ADVICE
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.watch import LOST, SILENT, WAITING, GateView, Watch

TOPIC = "/safety_gate/status"
VIEW = GateView(
    stamp=12.5,
    mode="STOPPED",
    reason="JOINT_STATE_STALE: joint states are 0.6 s old; expected at most 0.5 s",
    epoch=3,
    verdict="REJECTED",
    verdict_sequence=17,
    reasons=(("POSITION_LIMIT", "pusher_x is 0.6 m; expected at most 0.512 m"),),
    counters={"received": 9, "approved": 7, "rejected": 2},
    rejected={"VELOCITY_LIMIT": 1, "POSITION_LIMIT": 2},
    validation_latency=0.00042,
    capture_to_command=0.1234,
)


def shown(watch: Watch, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=200, force_terminal=color, color_system="standard" if color else None
    )
    console.print(watch.as_rich())
    return stream.getvalue()


def test_everything_that_a_status_says_is_shown_with_what_to_do() -> None:
    text = shown(Watch(TOPIC, VIEW, 0.2, 1, {"policy_node": 0.1, "planner_node": 3.0}))
    assert text.startswith(" STOPPED  JOINT_STATE_STALE: joint states are 0.6 s old")
    for part in (
        "epoch 3, status 0.2 s old",
        "REJECTED, chunk 17",
        "POSITION_LIMIT: pusher_x is 0.6 m; expected at most 0.512 m",
        f"JOINT_STATE_STALE: {ADVICE[ReasonCode.JOINT_STATE_STALE].action}",
        f"POSITION_LIMIT: {ADVICE[ReasonCode.POSITION_LIMIT].action}",
        "received 9, approved 7, rejected 2",
        "validation 0.42 ms, capture to command 123.4 ms",
        "planner_node 3.0 s, policy_node 0.1 s",
    ):
        assert part in text, part
    assert text.index("POSITION_LIMIT  2") < text.index("VELOCITY_LIMIT  1")


def test_a_gate_that_fell_silent_is_lost_in_red_whatever_it_said_last() -> None:
    armed = replace(VIEW, mode="ARMED", reason="executing approved chunks")
    alive, silent = Watch(TOPIC, armed, SILENT, 1), Watch(TOPIC, armed, SILENT + 0.1, 0)
    assert (alive.state, silent.state) == ("ARMED", LOST)
    assert silent.key != alive.key
    text = shown(silent)
    assert "nothing from the gate for 2.1 s, no publisher; it was ARMED" in text
    assert "keep clear" in text
    white_on_red, black_on_green = "\x1b[1;37;41m", "\x1b[1;30;42m"
    assert f"{white_on_red} LOST " in shown(silent, color=True)
    assert f"{black_on_green} ARMED " in shown(alive, color=True)


def test_before_the_first_status_it_waits_and_says_for_what() -> None:
    watch = Watch(TOPIC)
    assert watch.state == WAITING
    assert f"no status on {TOPIC} yet" in shown(watch)
    assert json.loads(json.dumps(watch.as_json(), allow_nan=False))["status"] is None


def test_two_gates_are_named() -> None:
    assert "2 gates publish" in shown(Watch(TOPIC, VIEW, 0.1, 2))


def test_what_a_gate_sends_is_text_and_neither_markup_nor_terminal_codes() -> None:
    text = shown(Watch(TOPIC, replace(VIEW, reason="[red]hot[/red] \x1b[2J\x07"), 0.1, 1))
    assert "[red]hot[/red]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_repeated_status_is_no_change_and_each_difference_is_one() -> None:
    watch = Watch(TOPIC, VIEW, 0.1, 1)
    assert replace(watch, view=replace(VIEW, stamp=13.5), age=0.9).key == watch.key
    for changes in ({"mode": "ARMED"}, {"epoch": 4}, {"counters": {"received": 10}}):
        assert replace(watch, view=replace(VIEW, **changes)).key != watch.key


def test_json_carries_code_message_and_action() -> None:
    found = json.loads(json.dumps(Watch(TOPIC, VIEW, 0.25, 1).as_json(), allow_nan=False))
    assert (found["state"], found["lost"], found["age"]) == ("STOPPED", False, 0.25)
    assert found["status"]["reasons"] == [
        {
            "code": "POSITION_LIMIT",
            "message": "pusher_x is 0.6 m; expected at most 0.512 m",
            "action": ADVICE[ReasonCode.POSITION_LIMIT].action,
        }
    ]
    assert set(found["actions"]) == {"JOINT_STATE_STALE", "POSITION_LIMIT"}


# The program over DDS, with a gate played by the test; about 8 s.


@pytest.fixture
def gate(ros: Any) -> Any:
    from worldforge_ros.msg import GateStatus
    from worldforge_ros.ros import qos

    return ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)


def status(**fields: Any) -> Any:
    from worldforge_ros.msg import GateStatus

    message = GateStatus(
        mode=GateStatus.HOLDING,
        mode_name="HOLDING",
        reason="waiting for a chunk",
        epoch=5,
        verdict="REJECTED",
        verdict_sequence=8,
        reason_codes=["CHUNK_TOO_OLD"],
        reason_messages=["age is 2 s; expected at most 1 s"],
        chunks_received=4,
        rejected_codes=["CHUNK_TOO_OLD"],
        rejected_counts=[3],
    )
    message.validation_latency.nanosec = 250_000
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.fixture
def watching(command_line: Any) -> Any:
    return partial(command_line, "gate", "watch")


def test_one_status_as_json(ros: Any, gate: Any, watching: Any) -> None:
    from worldforge_ros.msg import Heartbeat
    from worldforge_ros.ros import qos

    # Sent before the program starts: it is latched.
    gate.publish(status())
    beats = ros.node.create_publisher(Heartbeat, "heartbeat", qos.HEARTBEAT)
    ros.node.create_timer(0.1, lambda: beats.publish(Heartbeat(node="planner_node")))
    process = watching("--once", "--json", "--timeout", "30")
    ros.wait_until(lambda: process.poll() is not None, 40.0, "end of the program")
    found = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert (found["state"], found["publishers"], found["topic"]) == ("HOLDING", 1, TOPIC)
    view = found["status"]
    assert (view["epoch"], view["verdict"], view["verdict_sequence"]) == (5, "REJECTED", 8)
    assert view["reasons"][0]["message"] == "age is 2 s; expected at most 1 s"
    assert view["rejected"] == {"CHUNK_TOO_OLD": 3}
    assert view["validation_latency"] == pytest.approx(0.00025)
    assert view["capture_to_command"] is None
    assert 0.0 <= found["heartbeats"]["planner_node"] < 2.0


def test_without_a_status_once_fails_and_says_so(ros: Any, watching: Any) -> None:
    process = watching("--once", "--json", "--timeout", "0.5")
    ros.wait_until(lambda: process.poll() is not None, 30.0, "end of the program")
    assert process.returncode == 1
    assert json.loads(process.stdout.read())["state"] == WAITING


def test_the_gates_services_are_called_from_a_shell(ros: Any) -> None:
    from std_srvs.srv import SetBool, Trigger

    asked: list[Any] = []

    def enable(request: Any, response: Any) -> Any:
        asked.append(request.data)
        response.success, response.message = not request.data, "LIMITS_INCOMPLETE: a reason"
        return response

    def rearm(_: Any, response: Any) -> Any:
        asked.append("rearm")
        response.success, response.message = True, "rearmed"
        return response

    ros.node.create_service(SetBool, "/arm/safety_gate/enable", enable)
    ros.node.create_service(Trigger, "/arm/safety_gate/rearm", rearm)
    environment = {**os.environ, "ROS_DOMAIN_ID": str(ros.domain)}

    def gate_call(verb: str, *options: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "worldforge_ros.cli", "gate", verb, "--namespace", "arm"]
        with subprocess.Popen(
            [*command, "--json", *options], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            ros.wait_until(lambda: process.poll() is not None, 60.0, f"end of gate {verb}")
            assert process.stdout is not None
            return process.returncode, json.loads(process.stdout.read())

    refused = {"success": False, "message": "LIMITS_INCOMPLETE: a reason"}
    assert gate_call("arm", "--timeout", "20") == (1, refused)
    assert gate_call("disarm", "--timeout", "20")[0] == 0
    assert gate_call("rearm", "--timeout", "20") == (0, {"success": True, "message": "rearmed"})
    assert asked == [True, False, "rearm"]
    status_of_stop, error = gate_call("stop", "--timeout", "0.5")
    assert (status_of_stop, error["error_code"]) == (1, "TOPIC_MISSING")
    assert "service /arm/safety_gate/stop is absent after 0.5 s" in error["message"]


def test_each_change_is_one_line_and_silence_is_lost(ros: Any, gate: Any, watching: Any) -> None:
    process = watching("--json")

    def line() -> Any:
        return json.loads(process.stdout.readline())

    assert line()["state"] == WAITING
    gate.publish(status())
    assert line()["state"] == "HOLDING"
    gate.publish(status())
    gate.publish(status(mode=3, mode_name="STOPPED", reason="STOP_REQUESTED: called"))
    changed = line()
    assert changed["state"] == "STOPPED"
    assert "STOP_REQUESTED" in changed["actions"]
    lost = line()
    assert (lost["state"], lost["lost"]) == (LOST, True)
    assert lost["age"] > SILENT
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
