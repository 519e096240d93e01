"""How good a recording is: figures that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bag_support import (
    NS,
    START,
    joint_state,
    position,
    pusht_messages,
    velocity,
    write_bag,
    write_messages,
)
from replay_documents import episode

from worldforge_ros.bags.health import HealthMeter
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.embodiment import load_embodiment

PUSHT = load_embodiment("pusht")


def health(path: Path) -> dict[str, Any]:
    with Bag.open(path) as bag:
        topics = find_topics(bag, PUSHT)
        meter = HealthMeter(bag, topics)
        for event in bag.events(topics.all()):
            meter.add(event)
        return meter.document()


def row(document: dict[str, Any], role: str) -> dict[str, Any]:
    (found,) = [item for item in document["topics"] if item["role"] == role]
    return dict(found)


def states(times: Iterable[float], stamps: Iterable[float]) -> list[tuple[str, int, Any]]:
    return [
        (
            "/joint_states",
            START + round(t * NS),
            joint_state(START + round(s * NS), position(s), velocity(s)),
        )
        for t, s in zip(times, stamps, strict=True)
    ]


def test_the_document_of_a_good_bag(tmp_path: Path) -> None:
    document = health(write_bag(tmp_path / "bag", seconds=4.0, latency=0.004))
    assert document["problems"] == []
    assert document["messages"] == 1 + 400 + 400 + 40
    assert document["start_ns"] == START + 4_000_000
    assert document["duration_s"] == pytest.approx(3.99)
    camera = row(document, "top")
    assert (camera["topic"], camera["type"]) == ("/camera/top/image_raw", "sensor_msgs/msg/Image")
    assert camera["count"] == 40
    assert camera["rate_hz"] == pytest.approx(10.0)
    assert camera["gap_p99_s"] == pytest.approx(0.1, rel=0.01)
    assert camera["gap_max_s"] == pytest.approx(0.1)
    assert camera["out_of_order"] == 0
    assert camera["skew_ms"] == {
        "p50": pytest.approx(4.0, rel=0.01),
        "p95": pytest.approx(4.0, rel=0.01),
        "max": pytest.approx(4.0),
    }
    assert camera["definition"] == "known"
    assert len(camera["definition_sha256"]) == 64
    assert row(document, "joint_states")["rate_hz"] == pytest.approx(100.0)
    assert row(document, "joint_commands")["skew_ms"] is None, "it has no stamp"
    goal = row(document, "goal_image")
    assert goal["count"] == 1
    assert goal["rate_hz"] is goal["gap_p99_s"] is goal["gap_max_s"] is None


def test_the_document_has_the_form_that_reports_expect(tmp_path: Path) -> None:
    document = health(write_bag(tmp_path / "bag", seconds=0.5))
    expected = episode("bag")["health"]
    assert document.keys() == expected.keys()
    for item in document["topics"]:
        assert item.keys() == expected["topics"][0].keys()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_silence_is_found_where_it_is(tmp_path: Path, storage: str) -> None:
    messages = [
        (topic, time, message)
        for topic, time, message in pusht_messages(8.0, joint_hz=20, latency=0.0)
        if topic != "/camera/top/image_raw" or not 3.05 < (time - START) / NS < 5.45
    ]
    document = health(write_messages(tmp_path / "bag", messages, storage=storage))
    (problem,) = document["problems"]
    assert problem["code"] == "BAG_GAP"
    assert "/camera/top/image_raw" in problem["message"]
    assert "silent for 2.500 s at 3.000 s" in problem["message"]
    camera = row(document, "top")
    assert camera["gap_max_s"] == pytest.approx(2.5)
    assert camera["gap_max_at_s"] == pytest.approx(3.0)


@pytest.mark.parametrize(("keep_from", "keep_to", "at"), [(2.0, 9.0, 0.0), (-1.0, 5.95, 5.9)])
def test_a_sensor_that_begins_late_or_dies_is_silent(
    tmp_path: Path, keep_from: float, keep_to: float, at: float
) -> None:
    messages = [
        (topic, time, message)
        for topic, time, message in pusht_messages(8.0, joint_hz=20, goal=False, latency=0.0)
        if topic != "/camera/top/image_raw" or keep_from <= (time - START) / NS <= keep_to
    ]
    (problem,) = health(write_messages(tmp_path / "bag", messages))["problems"]
    assert problem["code"] == "BAG_GAP"
    assert f" s at {at:.3f} s" in problem["message"]


def test_ten_hours_are_one_gap(tmp_path: Path) -> None:
    later = pusht_messages(1.0, start=START + 36_000 * NS, goal=False)
    messages = [*pusht_messages(1.0, goal=False), *later]
    document = health(write_messages(tmp_path / "bag", messages))
    assert [item["code"] for item in document["problems"]] == ["BAG_GAP", "BAG_GAP"]
    assert {item["gap_max_s"] > 35_990 for item in document["topics"]} == {True}
    assert row(document, "joint_states")["gap_p99_s"] < 0.1
    assert document["duration_s"] == pytest.approx(36_000.99)


def test_topics_that_speak_when_they_have_to_may_be_silent(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=9.0, joint_hz=20, command_hz=0.3, chunks=True)
    assert health(path)["problems"] == []


def test_stamps_that_go_back_are_counted_once_each(tmp_path: Path) -> None:
    base = pusht_messages(2.0, joint_hz=0)
    times = [0.1 * k for k in range(20)]
    stamps = list(times)
    stamps[5], stamps[6] = stamps[6], stamps[5]
    document = health(write_messages(tmp_path / "swap", [*base, *states(times, stamps)]))
    assert row(document, "joint_states")["out_of_order"] == 1
    (problem,) = document["problems"]
    assert problem["code"] == "BAG_OUT_OF_ORDER"
    assert problem["message"].startswith("1 messages of topic /joint_states")
    # A simulator that was reset: everything after it is in order again.
    stamps = [*[50.0 + t for t in times[:10]], *times[:10]]
    document = health(write_messages(tmp_path / "reset", [*base, *states(times, stamps)]))
    assert row(document, "joint_states")["out_of_order"] == 1


def test_skew_is_receive_time_less_stamp(tmp_path: Path) -> None:
    times = [0.1 * k for k in range(101)]
    late = [0.001 * k for k in range(101)]
    stamps = [t - d for t, d in zip(times, late, strict=True)]
    bag = write_messages(
        tmp_path / "bag", [*pusht_messages(10.1, joint_hz=0), *states(times, stamps)]
    )
    skew = row(health(bag), "joint_states")["skew_ms"]
    assert skew["p50"] == pytest.approx(50.0, rel=0.01)
    assert skew["p95"] == pytest.approx(95.0, rel=0.01)
    assert skew["max"] == pytest.approx(100.0)
