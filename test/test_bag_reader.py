"""Whole bags of every kind, and what becomes of those that are not: real files, cut and changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bag_support import (
    NS,
    START,
    as_humble,
    data_file,
    image_message,
    joint_commands,
    joint_state,
    picture,
    position,
    pusht_messages,
    with_lz4_chunks,
    write_bag,
    write_messages,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldforge_ros.bags.actions import RecordedActions
from worldforge_ros.bags.frames import BagFrames
from worldforge_ros.bags.health import HealthMeter
from worldforge_ros.bags.reader import MOST_UNREADABLE, Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError

PUSHT = load_embodiment("pusht")
CONTENTS: dict[str, Any] = {"observations": True, "plan_reports": True, "chunks": True}
KINDS = [
    ("mcap", "none"),
    ("mcap", "zstd"),
    ("mcap", "message"),
    ("mcap", "file"),
    ("sqlite3", "none"),
    ("sqlite3", "message"),
    ("sqlite3", "file"),
]
COMMANDS = "std_msgs/msg/Float64MultiArray"


def read(path: Path, topics: list[str] | None = None) -> tuple[list[Any], Bag]:
    """Events and the closed bag, with what it found wrong."""
    with Bag.open(path) as bag:
        return list(bag.events(topics)), bag


def codes(bag: Bag) -> set[str]:
    return {str(problem.code) for problem in bag.problems}


def refusal(path: Path) -> WorldForgeError:
    with pytest.raises(WorldForgeError) as caught:
        Bag.open(path)
    return caught.value


def commands(times: list[float]) -> list[tuple[str, int, Any]]:
    return [
        ("/joint_commands", START + round(t * NS), joint_commands(np.array([k, t])))
        for k, t in enumerate(times)
    ]


@pytest.mark.parametrize(("storage", "compression"), KINDS)
def test_every_kind_of_bag_gives_what_was_written(
    tmp_path: Path, storage: str, compression: str
) -> None:
    messages = pusht_messages(1.0, **CONTENTS)
    path = write_messages(tmp_path / "bag", messages, storage=storage, compression=compression)
    events, bag = read(path)
    assert sorted((e.topic, e.received, e.type) for e in events) == sorted(
        (topic, time, message.__msgtype__) for topic, time, message in messages
    )
    times = [event.received for event in events]
    assert times == sorted(times)
    assert (bag.start, bag.end, bag.messages) == (times[0], times[-1], len(messages))
    assert bag.problems == []
    assert bag.complete
    assert bag.storage == storage
    assert bag.sha256() == hashlib.sha256(data_file(path).read_bytes()).hexdigest()
    found = [e.message for e in events if e.topic == "/camera/top/image_raw"]
    assert np.array_equal(found[3].data.reshape(96, 96, 3), picture(0.3))
    states = [e.message for e in events if e.topic == "/joint_states"]
    assert np.array_equal(states[50].position, position(0.5))
    assert {bag.definition(topic.type) for topic in bag.topics} == {"known"}


def test_a_bag_of_humble_is_read_without_definitions(tmp_path: Path) -> None:
    path = as_humble(write_bag(tmp_path / "bag", storage="sqlite3", seconds=0.5, **CONTENTS))
    events, bag = read(path)
    assert bag.problems == []
    assert len(events) == bag.messages == len(pusht_messages(0.5, **CONTENTS))
    assert {topic.definition_sha256 for topic in bag.topics} == {""}
    assert {bag.definition(topic.type) for topic in bag.topics} == {"unknown"}


def test_chunks_of_lz4_without_an_index_are_read(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.5)
    whole, _ = read(path)
    events, bag = read(with_lz4_chunks(data_file(path)))
    assert bag.problems == []
    assert [(e.topic, e.received) for e in events] == [(e.topic, e.received) for e in whole]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bare_file_is_a_bag(tmp_path: Path, storage: str) -> None:
    file = data_file(write_bag(tmp_path / "bag", storage=storage, seconds=0.5))
    events, bag = read(file)
    assert len(events) == bag.messages
    assert bag.name == file.stem
    assert bag.problems == []


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_nobody_wants_is_not_decoded(tmp_path: Path, storage: str) -> None:
    spoilt = [("/camera/top/image_raw", START, ("sensor_msgs/msg/Image", b"\0\1\0\0nonsense"))]
    path = write_bag(tmp_path / "bag", storage=storage, seconds=0.3, camera_hz=0, extra=spoilt)
    events, bag = read(path, ["/joint_states", "/elsewhere"])
    assert {event.topic for event in events} == {"/joint_states"}
    assert len(events) == 30
    assert bag.problems == []
    assert read(path, [])[0] == []


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_message_that_does_not_decode_is_left_out_and_named(tmp_path: Path, storage: str) -> None:
    nonsense = ("sensor_msgs/msg/JointState", b"\0\1\0\0\x07")
    bad = [
        ("/joint_states", START + k * NS // 100 + 7, nonsense) for k in range(MOST_UNREADABLE + 5)
    ]
    path = write_bag(tmp_path / "bag", storage=storage, seconds=1.0, goal=False, extra=bad)
    events, bag = read(path)
    assert len(events) == 100 + 100 + 10
    assert codes(bag) == {"MESSAGE_MALFORMED"}
    assert len(bag.problems) == MOST_UNREADABLE + 1
    assert "message 1 of /joint_states (sensor_msgs/msg/JointState, 0.000 s)" in (
        bag.problems[0].message
    )
    assert f"{len(bad)} messages cannot be decoded" in bag.problems[-1].message


def test_a_type_that_nobody_knows_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", storage="sqlite3", seconds=0.5)
    spoil(path, b"std_msgs/msg/Float64MultiArray", b"nobodys/msg/Float64MultiArray1")
    events, bag = read(as_humble(path))
    assert {event.topic for event in events} == {
        "/joint_states",
        "/camera/top/image_raw",
        "/goal_image",
    }
    assert any("no definition of nobodys/msg/Float64MultiArray1" in p.message for p in bag.problems)


def spoil(path: Path, old: bytes, new: bytes) -> None:
    """Write ``new`` for ``old``, of the same length, in every file of a bag folder."""
    assert len(old) == len(new)
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(old, new))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_of_a_file_that_was_cut_off_the_beginning_is_read(
    tmp_path: Path, storage: str, share: float
) -> None:
    path = write_messages(tmp_path / "bag", pusht_messages(14.0, joint_hz=20), storage=storage)
    whole, _ = read(path)
    file = data_file(path)
    file.write_bytes(file.read_bytes()[: round(file.stat().st_size * share)])
    events, bag = read(path)
    found = [(event.topic, event.received) for event in events]
    expected = [(event.topic, event.received) for event in whole]
    assert 0 < len(found) < len(expected)
    assert set(found) <= set(expected)
    assert not bag.complete
    assert codes(bag) == {"BAG_INVALID"}
    # A piece of a bag reads like the piece of the whole bag: nothing of the end is in it.
    assert bag.end < START + share * 15 * NS


def test_a_file_cut_within_its_index_is_read_to_the_end(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=1.0)
    whole, _ = read(path)
    file = data_file(path)
    file.write_bytes(file.read_bytes()[:-40])
    events, bag = read(path)
    assert len(events) == len(whole)
    assert "index cannot be used" in bag.problems[0].message


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_changed_byte_in_a_chunk_ends_the_reading_there(tmp_path: Path, compression: str) -> None:
    messages = pusht_messages(8.0, joint_hz=20)
    path = write_messages(tmp_path / "bag", messages, compression=compression)
    file = data_file(path)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    file.write_bytes(data)
    events, bag = read(path)
    assert 0 < len(events) <= len(messages)
    # Chunks carry a checksum only where the recorder wrote one; a picture has none of its own.
    assert codes(bag) <= {"BAG_INVALID", "MESSAGE_MALFORMED"}
    if compression == "zstd":
        assert len(events) < len(messages)
        assert not bag.complete
        assert any("cannot be read beyond" in problem.message for problem in bag.problems)


def test_damage_in_a_database_is_said(tmp_path: Path) -> None:
    path = write_messages(tmp_path / "bag", pusht_messages(6.0), storage="sqlite3")
    whole, _ = read(path)
    file = data_file(path)
    data = bytearray(file.read_bytes())
    place = len(data) // 2 // 4096 * 4096
    data[place : place + 20 * 4096] = bytes(20 * 4096)
    file.write_bytes(data)
    events, bag = read(path)
    assert 0 < len(events) <= len(whole)
    assert bag.problems
    assert {(e.topic, e.received) for e in events} <= {(e.topic, e.received) for e in whole}


def test_a_database_of_which_the_first_pages_are_left_comes_to_an_end(tmp_path: Path) -> None:
    path = write_messages(tmp_path / "bag", pusht_messages(0.3), storage="sqlite3")
    file = data_file(path)
    data = file.read_bytes()
    for size in range(4096, 12 * 4096, 1111):
        file.write_bytes(data[:size])
        with contextlib.suppress(WorldForgeError):
            events, bag = read(path)
            assert bag.problems, size
            assert len(events) < 64, size


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("text", [None, "", "{", "rosbag2_bagfile_information: 3", "\xff\xfe"])
def test_a_bag_without_metadata_is_read_from_its_file(
    tmp_path: Path, storage: str, text: str | None
) -> None:
    path = write_bag(tmp_path / "bag", storage=storage, seconds=0.3)
    metadata = path / "metadata.yaml"
    if text is None:
        metadata.unlink()
    else:
        metadata.write_bytes(text.encode("latin-1"))
    events, bag = read(path)
    assert len(events) == 1 + 30 + 30 + 3
    assert codes(bag) == {"BAG_INVALID"}
    assert "no readable metadata.yaml" in bag.problems[0].message


@pytest.mark.parametrize("value", [None, 7, [1], "file", "message"])
def test_metadata_that_is_nonsense_is_an_error_or_a_problem(tmp_path: Path, value: Any) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.3)
    document = yaml.safe_load((path / "metadata.yaml").read_text())
    document["rosbag2_bagfile_information"]["compression_mode"] = value
    (path / "metadata.yaml").write_text(yaml.safe_dump(document))
    if value == "file":
        assert refusal(path).code is ErrorCode.BAG_INVALID
    else:
        assert read(path)[1].problems


def test_what_is_no_bag_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent").code is ErrorCode.BAG_MISSING
    (tmp_path / "folder").mkdir()
    assert "folder without a readable metadata.yaml" in str(refusal(tmp_path / "folder"))
    for name, words in (
        ("old.bag", "ROS 1"),
        ("notes.txt", "'.txt' file"),
        ("text.mcap", "does not begin as an MCAP file"),
        ("text.db3", "not a database"),
    ):
        (tmp_path / name).write_text("not a recording at all, and longer than a header" * 100)
        error = refusal(tmp_path / name)
        assert error.code is ErrorCode.BAG_INVALID, name
        assert words in str(error)
        assert str(tmp_path / name) in str(error)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_an_empty_bag_and_an_empty_file_say_so(tmp_path: Path, storage: str) -> None:
    empty = write_messages(
        tmp_path / "bag", [], storage=storage, empty_topics=[("/joint_commands", COMMANDS)]
    )
    error = refusal(empty)
    assert error.code is ErrorCode.BAG_EMPTY
    assert "/joint_commands" in str(error)
    data_file(empty).write_bytes(b"")
    assert refusal(empty).code is ErrorCode.BAG_EMPTY
    assert refusal(data_file(empty)).code is ErrorCode.BAG_EMPTY


def test_a_missing_file_of_a_bag_is_named(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.2)
    name = data_file(path).name
    data_file(path).unlink()
    error = refusal(path)
    assert error.code is ErrorCode.BAG_INVALID
    assert f"lacks {name}" in str(error)


def test_of_several_files_the_readable_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    path.mkdir()
    for index in range(3):
        part = write_bag(tmp_path / f"part_{index}", seconds=0.5, start=START + index * NS)
        shutil.copy(data_file(part), path / f"bag_{index}.mcap")
    events, bag = read(path)
    assert len(events) == 3 * 106
    assert bag.complete
    (path / "bag_1.mcap").write_bytes(b"\x89MCAP")
    events, bag = read(path)
    assert len(events) == 2 * 106
    assert not bag.complete
    assert any("nothing of bag_1.mcap can be read" in p.message for p in bag.problems)


def test_an_index_that_counts_wrong_is_said(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", seconds=0.5)
    document = yaml.safe_load((path / "metadata.yaml").read_text())
    information = document["rosbag2_bagfile_information"]
    for topic in information["topics_with_message_count"]:
        topic["message_count"] += topic["topic_metadata"]["name"] == "/joint_states"
    information["starting_time"]["nanoseconds_since_epoch"] += NS // 4
    (path / "metadata.yaml").write_text(yaml.safe_dump(document))
    events, bag = read(path)
    assert len(events) == 1 + 50 + 50 + 5
    assert not bag.complete
    said = " ".join(problem.message for problem in bag.problems)
    assert "counts 51 messages of /joint_states, 50 are there" in said
    assert "messages are not between" in said


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_clock_that_was_set_back_is_said(tmp_path: Path, storage: str) -> None:
    times = [*np.arange(0.0, 10.0, 0.01), *np.arange(5.0, 15.0, 0.01)]
    path = write_messages(tmp_path / "bag", commands(times), storage=storage)
    events, bag = read(path)
    found = [event.received for event in events]
    assert found == sorted(found)
    assert len(found) == len(times)
    assert codes(bag) == {"BAG_OUT_OF_ORDER"}
    assert "go back by up to 4.990 s" in bag.problems[0].message
    data_file(path).write_bytes(data_file(path).read_bytes()[:-40])
    assert "BAG_OUT_OF_ORDER" in codes(read(path)[1])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_threads_that_overtake_each_other_are_put_in_order(tmp_path: Path, storage: str) -> None:
    times = [0.0, 0.03, 0.01, 0.02, 0.9, 0.5, 1.0]
    path = write_messages(tmp_path / "bag", commands(times), storage=storage)
    events, bag = read(path)
    assert [event.message.data[1] for event in events] == sorted(times)
    assert bag.problems == []


def test_several_types_on_a_topic_are_told_apart(tmp_path: Path) -> None:
    other = [("/joint_commands", START + k, joint_state(START, *np.zeros((2, 2)))) for k in (1, 2)]
    path = write_bag(tmp_path / "bag", seconds=0.5, extra=other)
    events, bag = read(path)
    types = [event.type for event in events if event.topic == "/joint_commands"]
    assert types.count(COMMANDS) == 50
    assert types.count("sensor_msgs/msg/JointState") == 2
    held = bag.topic("/joint_commands")
    assert held is not None
    assert held.type == COMMANDS
    assert "/joint_commands (sensor_msgs/msg/JointState, 2)" in bag.describe()


def frames_bag(path: Path, count: int, storage: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    return write_messages(
        path,
        [
            ("/camera/top/image_raw", START + k * NS // 10, image_message(noise, START))
            for k in range(count)
        ],
        storage=storage,
    )


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_memory_does_not_grow_with_the_length_of_a_bag(tmp_path: Path, storage: str) -> None:
    peaks = []
    for count in (20, 200):
        path = frames_bag(tmp_path / f"bag_{count}", count, storage)
        with Bag.open(path) as bag:
            found = 0
            tracemalloc.start()
            for _ in bag.events():
                found += 1
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert found == count
        assert bag.size_bytes > count * 230_000
    assert peaks[1] < 1.2 * peaks[0] + 100_000
    assert peaks[1] < 10_000_000


def use(path: Path) -> Bag:
    """Everything that is done with a bag."""
    with Bag.open(path) as bag:
        topics = find_topics(bag, PUSHT)
        meter = HealthMeter(bag, topics)
        for event in bag.events(topics.all()):
            meter.add(event)
        json.dumps(meter.document(), allow_nan=False)
        for _ in BagFrames(bag, topics, PUSHT, RecordedActions(topics, PUSHT)):
            pass
        return bag


@pytest.fixture(scope="module")
def small_bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("small")
    found = []
    for storage, compression in KINDS:
        found.append(
            write_bag(
                folder / f"{storage}_{compression}",
                storage=storage,
                compression=compression,
                seconds=0.4,
                joint_hz=20,
                command_hz=20,
                draw=lambda t: np.full((96, 96, 3), round(200 * t), np.uint8),
                **CONTENTS,
            )
        )
    found.append(
        as_humble(write_bag(folder / "humble", storage="sqlite3", seconds=0.3, joint_hz=20))
    )
    return found


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_gives_an_error_or_a_part_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, small_bags: list[Path], data: st.DataObject
) -> None:
    source = data.draw(st.sampled_from(small_bags))
    path = tmp_path_factory.mktemp("damaged") / "bag"
    shutil.copytree(source, path)
    target = data.draw(st.sampled_from([data_file(path), path / "metadata.yaml"]))
    content = bytearray(target.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        # The first and the last pages hold what describes the rest.
        edge = min(4000, len(content) // 2)
        places = st.one_of(
            st.integers(0, len(content) - 1),
            st.integers(0, edge - 1),
            st.integers(len(content) - edge, len(content) - 1),
        )
        for place, value in data.draw(
            st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=20)
        ):
            content[place] = value
    target.write_bytes(content)
    if target.name != "metadata.yaml" and data.draw(st.booleans()):
        (path / "metadata.yaml").unlink()
    with contextlib.suppress(WorldForgeError):
        use(path)
    shutil.rmtree(path.parent)


def test_undamaged_bags_are_read_without_a_problem(small_bags: list[Path]) -> None:
    assert [use(path).problems for path in small_bags] == [[]] * len(small_bags)


def test_ten_hours_of_silence_are_not_ten_hours_of_work(tmp_path: Path) -> None:
    later = pusht_messages(2.0, start=START + 36_000 * NS)
    path = write_messages(tmp_path / "bag", [*pusht_messages(2.0), *later])
    with Bag.open(path) as bag:
        topics = find_topics(bag, PUSHT)
        events = list(bag.events())
        frames = list(BagFrames(bag, topics, PUSHT, RecordedActions(topics, PUSHT)))
    assert len(events) == 2 * (1 + 200 + 200 + 20)
    assert [frame.starts for frame in frames].count(True) == 2
    assert len(frames) <= 40
    assert bag.problems == []


def test_messages_that_python_serialised_are_read(tmp_path: Path) -> None:
    """rclpy leaves zeros behind a message that ends with an empty list."""
    rclpy = pytest.importorskip("rclpy.serialization", reason="rclpy is missing: make setup")
    from sensor_msgs.msg import JointState

    message = JointState(name=["a"], position=[1.5], velocity=[2.5])
    data = bytes(rclpy.serialize_message(message))
    kind = "sensor_msgs/msg/JointState"
    rows = [("/joint_states", START + index, (kind, data)) for index in range(2)]
    longer = [("/joint_states", START + 5, (kind, data + bytes(24)))]
    with Bag.open(write_messages(tmp_path / "bag", [*rows, *longer])) as bag:
        found = [event.message for event in bag.events()]
    assert [list(item.position) for item in found] == [[1.5]] * 2
    assert [problem.code for problem in bag.problems] == [ErrorCode.MESSAGE_MALFORMED]
