"""Bags as they are written: read back by our reader and by rosbags' own, whole or cut off."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bag_support import START, cdr, joint_commands, new, picture, pusht_messages, stamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from worldforge_ros.bags import recorder as recorder_module
from worldforge_ros.bags.names import (
    FIXED_TOPICS,
    Offer,
    TopicName,
    TopicQuality,
    agreed,
    recorded_topics,
)
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.recorder import Recorder
from worldforge_ros.bags.types import typestore
from worldforge_ros.bags.writer import BagWriter, definition, read_notes
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError

COMMANDS = "std_msgs/msg/Float64MultiArray"
CONTENTS = {"observations": True, "plan_reports": True, "chunks": True}


def write(path: Path, messages: list[tuple[str, int, object]], compression: str = "zstd") -> Path:
    """The messages of ``bag_support`` through our writer."""
    with BagWriter(path, compression) as bag:
        for topic, received, message in messages:
            bag.add(topic, message.__msgtype__, received, cdr(message))  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_what_was_written_is_read_back_byte_for_byte(tmp_path: Path, compression: str) -> None:
    messages = pusht_messages(1.0, **CONTENTS)  # type: ignore[arg-type]
    path = write(tmp_path / "bag", messages, compression)
    expected = sorted((topic, time, cdr(message)) for topic, time, message in messages)
    with Reader(path) as reader:
        found = sorted((c.topic, time, bytes(data)) for c, time, data in reader.messages())
        assert found == expected
        assert reader.message_count == len(messages)
    with Bag.open(path) as bag:
        events = list(bag.events())
        assert bag.complete
        assert bag.problems == []
        assert len(events) == len(messages)
        assert {bag.definition(topic.type) for topic in bag.topics} == {"known"}
        assert all(topic.definition_sha256 for topic in bag.topics)
    image = next(event.message for event in events if event.topic == "/camera/top/image_raw")
    assert np.array_equal(image.data.reshape(96, 96, 3), picture(0.0))


def test_a_player_learns_what_was_offered(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.declare("/goal_image", "sensor_msgs/msg/Image", TopicQuality(latched=True))
        bag.declare("/joint_states", "sensor_msgs/msg/JointState", TopicQuality(reliable=False))
        bag.add("/joint_commands", COMMANDS, START, cdr(joint_commands(np.zeros(2))))
        bag.close({"embodiment": "pusht", "odd": "a: 'b'\n"})
    assert read_notes(tmp_path / "bag") == {"embodiment": "pusht", "odd": "a: 'b'\n"}
    with Reader(tmp_path / "bag") as reader:
        offered = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    assert offered["/goal_image"].durability is QosDurability.TRANSIENT_LOCAL
    assert offered["/goal_image"].reliability is QosReliability.RELIABLE
    assert offered["/joint_states"].reliability is QosReliability.BEST_EFFORT
    assert offered["/joint_commands"].durability is QosDurability.VOLATILE


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2**62)), min_size=1, max_size=30))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_order_of_times_is_read_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "bag"
    with BagWriter(path) as bag:
        for index, (topic, time) in enumerate(items):
            bag.add(f"/{topic}", COMMANDS, time, cdr(joint_commands(np.array([float(index)]))))
            if index % 7 == 3:
                bag.flush()
        assert bag.counts == {f"/{name}": sum(t == name for t, _ in items) for name, _ in items}
    with Bag.open(path) as read:
        events = list(read.events())
    assert [event.received for event in events] == sorted(time for _, time in items)
    found = {(event.topic, event.received, event.message.data[0]) for event in events}
    assert found == {(f"/{topic}", time, index) for index, (topic, time) in enumerate(items)}


def test_the_hash_of_a_type_is_the_one_that_rosidl_generated() -> None:
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    types = ["sensor_msgs/msg/Image", *{topic.type for topic in FIXED_TOPICS.values()}]
    checked = 0
    for name in types:
        files = [Path(prefix) / "share" / f"{name}.json" for prefix in prefixes if prefix]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            continue
        hashes = json.loads(file.read_text())["type_hashes"]
        expected = {item["type_name"]: item["hash_string"] for item in hashes}[name]
        text, digest = definition(name)
        assert digest == expected, name
        assert text.count("MSG: ") == len(hashes) - 1, "every type that it is made of, once"
        checked += 1
    if not checked:
        pytest.skip("no type descriptions in AMENT_PREFIX_PATH: run through make test")


def test_without_ros_definitions_come_from_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    text, digest = definition("sensor_msgs/msg/JointState")
    assert "float64[] position" in text
    store = get_typestore(Stores.ROS2_HUMBLE)
    assert digest == store.hash_rihs01("sensor_msgs/msg/JointState")
    with pytest.raises(WorldForgeError, match=r"no_msgs/msg/Such .*neither installed") as caught:
        definition("no_msgs/msg/Such")
    assert caught.value.code is ErrorCode.TOPIC_TYPE_MISMATCH


def test_a_topic_keeps_its_type(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.declare("/a", COMMANDS)
        with pytest.raises(WorldForgeError, match=r"topic /a is .*Image; expected .*MultiArray"):
            bag.add("/a", "sensor_msgs/msg/Image", 1, b"")


def test_a_bag_is_never_overwritten_and_its_folder_must_be_possible(tmp_path: Path) -> None:
    write(tmp_path / "bag", pusht_messages(0.2))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, found in (("bag", "there already"), ("link", "there already"), ("file/x", "cannot")):
        with pytest.raises(WorldForgeError, match=found) as caught:
            BagWriter(tmp_path / name)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(WorldForgeError, match="compression is 'lz4'; expected one of zstd, none"):
        BagWriter(tmp_path / "new", "lz4")
    assert not (tmp_path / "new").exists()


def test_a_bag_without_a_message_says_so(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.declare("/a", COMMANDS)
    with pytest.raises(WorldForgeError, match="/a") as caught:
        Bag.open(tmp_path / "bag")
    assert caught.value.code is ErrorCode.BAG_EMPTY
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 0
    metadata = (tmp_path / "bag/metadata.yaml").read_text()
    assert "nanoseconds_since_epoch: 0\n" in metadata, "rosbags' own is the largest number"


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from bag_support import cdr, pusht_messages
from worldforge_ros.bags.writer import BagWriter
bag = BagWriter({path!r}, {compression!r})
for number, (topic, received, message) in enumerate(pusht_messages(1.0), start=1):
    bag.add(topic, message.__msgtype__, received, cdr(message))
    if number == 100:
        bag.flush()
        print("flushed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_what_was_written_out_survives_a_kill(tmp_path: Path, compression: str) -> None:
    tests = str(Path(__file__).parent)
    code = KILLED.format(tests=tests, path=str(tmp_path / "bag"), compression=compression)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with Bag.open(tmp_path / "bag") as bag:
        events = list(bag.events())
        assert not (tmp_path / "bag/metadata.yaml").exists()
        assert any("was not closed" in problem.message for problem in bag.problems)
    written = [(topic, time) for topic, time, _ in pusht_messages(1.0)]
    assert [(event.topic, event.received) for event in events[:100]] == written[:100]
    assert read_notes(tmp_path / "bag") == {}


def test_size_is_that_of_the_file(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag", "none")
    for topic, time, message in pusht_messages(0.5):
        bag.add(topic, message.__msgtype__, time, cdr(message))
    bag.flush()
    file = tmp_path / "bag/bag.mcap"
    assert bag.size_bytes == file.stat().st_size > 96 * 96 * 3 * 5
    bag.add("/joint_commands", COMMANDS, START, cdr(joint_commands(np.zeros(2))))
    assert bag.size_bytes > file.stat().st_size, "what is pending counts"
    bag.close()
    bag.close()
    assert bag.size_bytes == file.stat().st_size


MESSAGE = cdr(joint_commands(np.arange(100.0)))


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written before the end."""
    monkeypatch.setattr(recorder_module, "WRITE_PERIOD", 60.0)


def test_what_the_queue_has_no_room_for_is_counted(tmp_path: Path, slow_disk: None) -> None:
    room = 10 * len(MESSAGE)
    recorder = Recorder(tmp_path / "bag", max_bytes=10**9, queue_bytes=room)
    taken = [recorder.put("/c", COMMANDS, START + k, MESSAGE) for k in range(15)]
    assert taken == [True] * 10 + [False] * 5
    assert recorder.state.queued_bytes == room
    recorder.lost("/c", 2)
    state = recorder.close("stopped")
    assert (state.messages, dict(state.dropped), state.queued_bytes) == (10, {"/c": 7}, 0)
    assert recorder.trouble is not None
    assert recorder.trouble.code is ErrorCode.RECORDING_INCOMPLETE
    assert "7 of /c" in recorder.trouble.message
    notes = read_notes(tmp_path / "bag")
    assert json.loads(notes["dropped"]) == {"/c": 7}
    assert notes["ended"] == "stopped"
    assert not recorder.put("/c", COMMANDS, START, MESSAGE), "after the end nothing is taken"
    with Bag.open(tmp_path / "bag") as bag:
        assert [event.received for event in bag.events()] == [START + k for k in range(10)]


def test_topics_are_put_in_order_before_they_are_written(tmp_path: Path, slow_disk: None) -> None:
    recorder = Recorder(tmp_path / "bag", compression="none", max_bytes=10**9, queue_bytes=10**9)
    for topic, time in (("/a", 3), ("/a", 7), ("/b", 1), ("/b", 5)):
        recorder.put(topic, COMMANDS, START + time, MESSAGE)
    recorder.close("stopped")
    data = (tmp_path / "bag/bag.mcap").read_bytes()
    times = [(START + k).to_bytes(8, "little") for k in (1, 3, 5, 7)]
    places = [data.index(time + time) for time in times]
    assert places == sorted(places)


def test_a_recording_ends_at_its_largest_size(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "bag", compression="none", max_bytes=5000, queue_bytes=10**6)
    for k in range(20):
        recorder.put("/c", COMMANDS, START + k, MESSAGE)
    recorder._thread.join(10.0)
    state = recorder.state
    assert "the bound is 5000" in state.ended
    assert not recorder.put("/c", COMMANDS, START + 99, MESSAGE)
    assert recorder.close("stopped").ended == state.ended
    with Bag.open(tmp_path / "bag") as bag:
        assert bag.complete
        assert bag.messages == state.messages == 20


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``at`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    large = cdr(
        new(
            "sensor_msgs/msg/CompressedImage",
            header=new("std_msgs/msg/Header", stamp=stamp(START), frame_id=""),
            format="jpeg",
            data=np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8),
        )
    )
    recorder = Recorder(tmp_path / "bag", max_bytes=10**9, queue_bytes=10**9)
    with full_disk(3_000_000):
        for k in range(40):
            recorder.put("/camera", "sensor_msgs/msg/CompressedImage", START + k, large)
        recorder._thread.join(20.0)
    state = recorder.close("stopped")
    assert state.error is not None
    assert state.error.code is ErrorCode.RECORDING_INCOMPLETE
    assert "cannot be written any further" in state.error.message
    with Bag.open(tmp_path / "bag") as bag:
        found = [event.received for event in bag.events()]
        assert not bag.complete
    assert found == [START + k for k in range(len(found))]
    assert 4 <= len(found) < 40, "chunks of more than a megabyte that were whole"


IMAGE = TopicName("camera", "sensor_msgs/msg/Image")
LATCHED = TopicName("goal", "sensor_msgs/msg/Image", latched=True)


def test_a_subscription_hears_every_publisher() -> None:
    reliable = Offer(IMAGE.type, TopicQuality())
    best_effort = Offer(IMAGE.type, TopicQuality(reliable=False, latched=True))
    assert agreed("/camera", [IMAGE], []) is None
    assert agreed("/camera", [IMAGE], [reliable]) == (IMAGE, TopicQuality())
    mixed = agreed("/camera", [IMAGE], [reliable, best_effort])
    assert mixed == (IMAGE, TopicQuality(reliable=False))
    assert agreed("/goal", [LATCHED], [reliable]) == (LATCHED, TopicQuality(latched=True))
    other = Offer("std_msgs/msg/String", TopicQuality())
    with pytest.raises(WorldForgeError, match=r"type of topic /camera is std_msgs/msg/String"):
        agreed("/camera", [IMAGE], [other])
    # A stranger beside the right one is that one's trouble.
    assert agreed("/camera", [IMAGE], [other, reliable]) == (IMAGE, TopicQuality())
    both = [IMAGE, TopicName("camera", "sensor_msgs/msg/CompressedImage")]
    with pytest.raises(WorldForgeError, match=r"expected .*Image or .*CompressedImage"):
        agreed("/camera", both, [reliable, Offer(both[1].type, TopicQuality())])


def test_what_is_recorded_is_what_the_nodes_publish() -> None:
    names = [topic.name for topic in recorded_topics(load_embodiment("pusht"))]
    assert len(set(names)) == len(names)
    assert {"camera/top/image_raw", "camera/top/image_raw/compressed", "joint_states"} < set(names)
    without = [topic.name for topic in recorded_topics(load_embodiment("pusht"), cameras=False)]
    assert set(names) - set(without) == {"camera/top/image_raw", "camera/top/image_raw/compressed"}
    known = typestore().fielddefs
    assert {topic.type for topic in recorded_topics(load_embodiment("aloha"))} <= set(known)
