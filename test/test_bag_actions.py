"""What the joints of a recorded robot were told, from each kind of topic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_support import (
    LEAD,
    NS,
    START,
    chunk,
    gate_status,
    image_message,
    joint_commands,
    joint_state,
    joint_trajectory,
    picture,
    position,
    write_bag,
    write_messages,
)

from worldforge_ros.bags.actions import KEEP, SOURCES, RecordedActions
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.safety.gate import GateMode

PUSHT = load_embodiment("pusht")
STILL = np.zeros(2)


def at(seconds: float) -> int:
    return START + round(seconds * NS)


def recorded(path: Path, source: str = "auto", until: float = 1e9) -> RecordedActions:
    """The actions of a bag whose events were taken up to ``until`` seconds."""
    with Bag.open(path) as bag:
        topics = find_topics(bag, PUSHT)
        actions = RecordedActions(topics, PUSHT, source)
        for event in bag.events(topics.all()):
            if event.received <= at(until):
                actions.add(event)
    return actions


def bag_of(path: Path, messages: list[tuple[str, float, Any]], seconds: float = 2.0) -> Path:
    """Those messages beside a camera and joint states of a robot that rests at (0.2, 0.3)."""
    rest = [
        (at(k / 20), "/joint_states", joint_state(at(k / 20), np.array([0.2, 0.3]), STILL))
        for k in range(round(seconds * 20))
    ]
    sensors = [*rest, (START, "/camera/top/image_raw", image_message(picture(0.0), START))]
    every = [*((at(t), topic, message) for topic, t, message in messages), *sensors]
    every.sort(key=lambda item: item[0])
    return write_messages(path, [(topic, time, message) for time, topic, message in every])


def test_the_best_source_that_is_there_is_taken(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.6, chunks=True)
    assert recorded(path).source == "joint_commands", "what was streamed says it best"
    assert recorded(path, "approved").source == "approved"
    planned = write_bag(tmp_path / "planned", seconds=0.6, chunks=True, command_hz=0)
    assert recorded(planned).source == "approved"
    silent = write_bag(tmp_path / "silent", seconds=0.6, command_hz=0)
    assert recorded(silent).source == "joint_states"


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.3)
    with pytest.raises(WorldForgeError) as caught:
        recorded(path, "joint_trajectory")
    assert caught.value.code is ErrorCode.TOPIC_MISSING
    assert "expected one of joint_commands, joint_states" in str(caught.value)
    with pytest.raises(WorldForgeError) as caught:
        recorded(path, "guess")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert ", ".join(SOURCES) in str(caught.value)
    blind = write_bag(
        tmp_path / "blind",
        seconds=0.3,
        observations=True,
        drop=["/joint_states", "/joint_commands", "/camera/top/image_raw"],
    )
    with pytest.raises(WorldForgeError) as caught:
        recorded(blind)
    assert caught.value.code is ErrorCode.TOPIC_MISSING


def test_a_command_is_in_force_until_the_next_one_is_received(tmp_path: Path) -> None:
    sent = [(0.5, 0.1), (0.7, 0.2), (1.9, 0.4)]
    messages = [("/joint_commands", t, joint_commands(np.array([x, x]))) for t, x in sent]
    actions = recorded(bag_of(tmp_path / "bag", messages, 3.0))
    assert actions.at(at(0.49)) is None
    for time, expected in ((0.5, 0.1), (0.699, 0.1), (0.7, 0.2), (1.69, 0.2), (1.9, 0.4)):
        found = actions.at(at(time))
        assert found is not None
        assert found.tolist() == [expected, expected], time
    assert actions.at(at(1.75)) is None, "a controller that hears nothing for a second holds"
    assert actions.known_until == at(2.95)
    assert actions.at(at(2.96)) is None
    assert actions.refused == {}


def test_what_is_known_grows_with_the_events(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=2.0, latency=0.0)
    actions = recorded(path, until=1.0)
    assert actions.known_until == at(1.0)
    known = actions.at(at(1.0))
    assert known is not None
    assert np.array_equal(known, position(1.0 + LEAD))
    assert actions.at(at(1.01)) is None


def test_a_trajectory_tells_the_point_that_is_due_next(tmp_path: Path) -> None:
    messages = [
        ("/joint_trajectory", t, joint_trajectory(at(t), np.array([t, -t]), after=0.1))
        for t in (0.5, 0.6, 0.7, 0.8)
    ]
    actions = recorded(bag_of(tmp_path / "bag", messages))
    assert actions.source == "joint_trajectory"
    for time, expected in ((0.55, 0.5), (0.6, 0.6), (0.65, 0.6), (0.899, 0.8)):
        found = actions.at(at(time))
        assert found is not None
        assert found.tolist() == [expected, -expected], time
    assert actions.at(at(0.95)) is None


def test_a_newer_trajectory_takes_the_place_of_the_rest(tmp_path: Path) -> None:
    first = joint_trajectory(at(0.5), np.array([0.1, 0.1]), after=0.2)
    first.points.append(joint_trajectory(START, np.array([0.9, 0.9]), after=0.6).points[0])
    second = joint_trajectory(at(0.8), np.array([0.2, 0.2]), after=0.1)
    messages = [("/joint_trajectory", 0.5, first), ("/joint_trajectory", 0.8, second)]
    actions = recorded(bag_of(tmp_path / "bag", messages))
    found = [actions.at(at(t)) for t in (0.6, 0.85, 1.0)]
    assert [None if item is None else item[0] for item in found] == [0.1, 0.2, None]


def test_the_order_of_joints_in_a_trajectory_is_theirs(tmp_path: Path) -> None:
    message = joint_trajectory(at(0.5), np.array([0.1, 0.2]), after=0.1)
    message.joint_names[:] = ["pusher_y", "pusher_x"]
    wrong = joint_trajectory(at(0.6), np.array([0.1, 0.2]), after=0.1)
    wrong.joint_names[:] = ["pusher_y", "elbow"]
    messages = [("/joint_trajectory", 0.5, message), ("/joint_trajectory", 0.6, wrong)]
    actions = recorded(bag_of(tmp_path / "bag", messages))
    found = actions.at(at(0.55))
    assert found is not None
    assert found.tolist() == [0.2, 0.1]
    assert actions.refused == {"JOINT_NAMES_MISMATCH": 1}


def test_measured_positions_are_those_of_a_step_later(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=2.0)
    actions = recorded(path, "joint_states")
    step = PUSHT.policy.step
    assert actions.known_until == at(1.99 - step)
    for time in (0.0, 0.7, 1.89):
        found = actions.at(at(time))
        assert found is not None
        assert np.array_equal(found, position(time + step)), time
    assert actions.at(at(1.9)) is None


def test_an_approved_chunk_is_in_force_step_by_step(tmp_path: Path) -> None:
    rows = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5]])
    later = rows + 0.05
    messages: list[tuple[str, float, Any]] = [
        ("/action_chunk/approved", 0.45, chunk(at(0.5), rows, 1)),
        ("/action_chunk/approved", 0.68, chunk(at(0.6), later, 2)),
        ("/safety_gate/status", 0.4, gate_status(at(0.4), GateMode.ARMED)),
        ("/safety_gate/status", 0.92, gate_status(at(0.92), GateMode.HOLDING)),
        ("/safety_gate/status", 1.6, gate_status(at(1.6), GateMode.STOPPED)),
    ]
    actions = recorded(bag_of(tmp_path / "bag", messages))
    assert actions.source == "approved"
    expected = {
        0.46: None,  # not due yet
        0.55: rows[0],
        0.65: rows[1],  # the second chunk has not arrived
        0.69: later[0],
        0.75: later[1],
        0.95: None,  # it brakes
        1.5: np.array([0.2, 0.3]),  # it holds where it was measured
        1.7: None,  # stopped
    }
    for time, row in expected.items():
        found = actions.at(at(time))
        if row is None:
            assert found is None, time
        else:
            assert found is not None, time
            np.testing.assert_allclose(found, row, atol=1e-7, err_msg=str(time))


def test_messages_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    good = joint_commands(np.array([0.1, 0.2]))
    messages = [
        ("/joint_commands", 0.5, good),
        ("/joint_commands", 0.6, joint_commands(np.zeros(3))),
        ("/joint_commands", 0.7, joint_commands(np.array([np.nan, 0.0]))),
    ]
    actions = recorded(bag_of(tmp_path / "bag", messages))
    assert actions.refused == {"ACTION_DIM_MISMATCH": 2}
    found = actions.at(at(0.8))
    assert found is not None
    assert found.tolist() == [0.1, 0.2]


def test_a_clock_that_was_set_back_begins_anew(tmp_path: Path) -> None:
    actions = recorded(write_bag(tmp_path / "first", seconds=1.0), "joint_commands")
    earlier = write_bag(tmp_path / "second", seconds=1.0, start=START - 100 * NS)
    with Bag.open(earlier) as bag:
        for event in bag.events():
            actions.add(event)
    assert actions.known_until == START - 100 * NS + round(0.992 * NS)
    assert actions.at(at(0.5)) is None
    found = actions.at(at(-99.5))
    assert found is not None
    assert np.allclose(found, position(0.6), atol=1e-3)


def test_stamps_that_were_set_back_alone_begin_anew(tmp_path: Path) -> None:
    """As when a simulator is reset while the recorder runs on."""
    times = np.arange(0.0, 4.0, 0.05)
    messages = [
        ("/joint_states", at(t), joint_state(at(t if t < 2 else t - 2), np.array([t, 0]), STILL))
        for t in times
    ]
    messages.append(("/camera/top/image_raw", START, image_message(picture(0.0), START)))
    path = write_messages(tmp_path / "bag", sorted(messages, key=lambda item: item[1]))
    actions = recorded(path, "joint_states")
    found = actions.at(at(1.0))
    assert found is not None
    assert found[0] == pytest.approx(3.1)
    assert actions.known_until == at(1.85)


def test_what_is_held_is_bounded(tmp_path: Path) -> None:
    actions = recorded(write_bag(tmp_path / "bag", seconds=40.0, camera_hz=1, joint_hz=2))
    last = round(39.99 * 100) / 100
    assert actions.at(at(last)) is not None
    assert actions.at(at(last - KEEP + 0.1)) is not None
    assert actions.at(at(5.0)) is None
