"""Bytes from anyone: a node that subscribes raw refuses them and goes on.

``WORLDFORGE_FUZZ_MESSAGES`` sets how many byte strings are tried (default 6000, some 5 s in all).
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

import rclpy
from rclpy.node import Node
from rclpy.serialization import serialize_message
from ros_support import Ros
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import ActionChunk
from worldforge_ros.ros import qos
from worldforge_ros.ros.raw import deserialize_capped, subscribe_raw

MAX_BYTES = 65536
MEMORY_MARGIN = 256 << 20
"""Address space in bytes that fuzzing may take beyond what the process has before."""
MEMORY_GROWTH = 32 << 20
"""Resident bytes that it may take: 50 for each byte of the largest message are 3 MiB."""
LENGTHS = (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x3FFFFFFF, 0x10000000, 0xFFFF, 0x100)


def fuzz_count() -> int:
    return int(os.environ.get("WORLDFORGE_FUZZ_MESSAGES", "6000"))


def chunk(sequence: int = 1, horizon: int = 20) -> ActionChunk:
    message = ActionChunk(
        embodiment="pusht", joint_names=["pusher_x", "pusher_y"], source="policy", sequence=sequence
    )
    message.actions.shape = [horizon, 2]
    message.actions.data = [0.25] * (2 * horizon)
    message.cost = message.margin = math.nan
    return message


def joint_state() -> JointState:
    return JointState(name=["a", "b"], position=[0.1, 0.2], velocity=[0.0, 0.0])


def cut_short_list(message_type: type, size: int = MAX_BYTES) -> bytes:
    """A header, then a list that claims one element for each byte that is left."""
    start = serialize_message(message_type())[:16]
    return start + struct.pack("<I", size - 20) + b"\0" * (size - 20)


def hostile(good: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """Byte strings made from a valid message, and random ones."""
    for number in range(count):
        data = bytearray(good)
        kind = number % 6
        if kind == 0:
            data = bytearray(rng.randbytes(rng.choice((0, 1, 3, 4, 5, 16, 64, 300, 4096))))
        elif kind == 1:
            data = bytearray(good[:4] + rng.randbytes(rng.randrange(400)))
        elif kind == 2:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[rng.randrange(len(data)) :]
        elif kind == 4 and len(data) >= 8:
            offset = 4 * rng.randrange(1, len(data) // 4)
            data[offset : offset + 4] = struct.pack("<I", rng.choice(LENGTHS))
        else:
            offset = rng.randrange(len(data))
            data[offset:offset] = rng.randbytes(rng.randrange(64))
        yield bytes(data)


def outcome(data: bytes, message_type: type) -> str:
    try:
        deserialize_capped(data, message_type, "fuzz", MAX_BYTES)
    except WorldForgeError as error:
        return str(error.code)
    return "read"


def fuzz_in_process(count: int) -> None:
    """Deserialise ``count`` byte strings with little memory to spare; prints what came of them."""
    samples = ((ActionChunk, chunk()), (JointState, joint_state()), (Bool, Bool(data=True)))
    for message_type, sample in samples:
        deserialize_capped(serialize_message(sample), message_type, "sample", MAX_BYTES)
    with open("/proc/self/statm", encoding="ascii") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_MARGIN, taken + MEMORY_MARGIN))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    outcomes: Counter[str] = Counter()
    for seed, (message_type, sample) in enumerate(samples):
        good = serialize_message(sample)
        tried = [cut_short_list(message_type)]
        tried += hostile(good, count // len(samples), random.Random(seed))
        for data in tried:
            outcomes[outcome(data, message_type)] += 1
        deserialize_capped(good, message_type, "sample", MAX_BYTES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"outcomes": outcomes, "grown": grown * 1024}))


def listen() -> None:
    """A node that says which chunks it took and what it refused."""
    rclpy.init(args=sys.argv)
    node = Node("listener")
    # One topic for both, so that they arrive in the order in which they happened.
    heard = node.create_publisher(String, "heard", qos.REPORT)

    def on_chunk(message: ActionChunk) -> None:
        if message.source == "raise":
            raise RuntimeError("asked to")
        heard.publish(String(data=f"took {message.sequence}"))

    def on_refused(error: WorldForgeError) -> None:
        heard.publish(String(data=str(error)))
        if error.code == ErrorCode.INTERNAL:
            raise RuntimeError("asked to again")

    subscribe_raw(node, ActionChunk, "chunk", on_chunk, qos.REPORT, MAX_BYTES, on_refused)
    rclpy.spin(node)


class Listener:
    """The node in a process of its own, and the test's end of its topics."""

    def __init__(self, ros: Ros) -> None:
        self.ros = ros
        self.publisher = ros.node.create_publisher(ActionChunk, "chunk", qos.REPORT)
        self.taken: set[int] = set()
        self.refused: list[str] = []
        ros.node.create_subscription(String, "heard", self._on_heard, qos.REPORT)
        self.process = ros.process("test_raw_messages.py")
        ros.connected(self.publisher, 30.0)
        ros.wait_until(lambda: ros.node.count_publishers("heard"), 30.0, "heard")
        self.sequence = 2**40

    def _on_heard(self, message: String) -> None:
        word, _, rest = message.data.partition(" ")
        if word == "took":
            self.taken.add(int(rest))
        else:
            self.refused.append(message.data)

    def takes_a_good_one(self) -> None:
        self.sequence += 1
        self.publisher.publish(chunk(self.sequence))
        self.ros.wait_until(lambda: self.sequence in self.taken, 10.0, "a good message to be taken")

    def refuses(self, data: bytes | ActionChunk) -> str:
        seen = len(self.refused)
        self.publisher.publish(data)
        self.ros.wait_until(lambda: len(self.refused) > seen, 10.0, "a refusal")
        assert len(self.refused) == seen + 1
        return self.refused[-1]


@pytest.fixture(scope="module")
def shared() -> Iterator[Listener]:
    """One node for all tests: each must leave it alive."""
    corner = Ros()
    made = Listener(corner)
    with made.process:
        yield made
    corner.close()


@pytest.fixture
def listener(shared: Listener) -> Iterator[Listener]:
    shared.takes_a_good_one()
    shared.refused.clear()
    yield shared
    shared.takes_a_good_one()
    assert shared.process.process.poll() is None


def test_no_bytes_crash_the_reader_or_take_its_memory() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, "fuzz", str(fuzz_count())],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout)
    outcomes = found["outcomes"]
    # Both happen often: else the byte strings are too wild or too tame to try anything.
    assert set(outcomes) == {"read", "MESSAGE_MALFORMED"}
    assert min(outcomes.values()) > 0.1 * fuzz_count(), outcomes
    assert found["grown"] < MEMORY_GROWTH


def test_a_node_survives_a_fuzzer_and_takes_the_good_message_after(listener: Listener) -> None:
    good = serialize_message(chunk())
    count = max(60, fuzz_count() // 10)
    # An empty one is lost in the middleware, see the next test.
    data = [item for item in hostile(good, count, random.Random(7)) if item]
    for first in range(0, len(data), 30):
        for item in data[first : first + 30]:
            listener.publisher.publish(item)
        listener.takes_a_good_one()
    refusals = Counter(text.partition(":")[0] for text in listener.refused)
    assert set(refusals) == {"MESSAGE_MALFORMED"}
    assert refusals["MESSAGE_MALFORMED"] > 0.1 * len(data)


def test_an_empty_payload_blocks_nobody_but_its_sender(listener: Listener) -> None:
    # The middleware never hands it over, and asks its reliable sender for it again and again.
    sender = listener.ros.node.create_publisher(ActionChunk, "chunk", qos.CHUNK)
    listener.ros.connected(sender)
    sender.publish(b"")
    for _ in range(3):
        listener.takes_a_good_one()
    assert not listener.refused
    # With a history of one the next message takes its place.
    usual, listener.publisher = listener.publisher, sender
    listener.takes_a_good_one()
    listener.publisher = usual


def test_what_is_too_large_is_refused_unread(listener: Listener) -> None:
    limit = f"expected at most {MAX_BYTES}"
    valid = chunk(horizon=MAX_BYTES // 8)
    assert len(serialize_message(valid)) > MAX_BYTES
    for data in (valid, cut_short_list(ActionChunk, 2 * MAX_BYTES)):
        text = listener.refuses(data)
        assert text.startswith("MESSAGE_TOO_LARGE: chunk is a message of ")
        assert limit in text


def test_the_cap_is_on_the_serialised_size_inclusively() -> None:
    data = serialize_message(chunk(7))
    assert deserialize_capped(data, ActionChunk, "chunk", len(data)).sequence == 7
    with pytest.raises(WorldForgeError) as refusal:
        deserialize_capped(data, ActionChunk, "chunk", len(data) - 1)
    assert refusal.value.code == ErrorCode.MESSAGE_TOO_LARGE


def test_malformed_bytes_are_named_with_field_and_type(listener: Listener) -> None:
    # The middleware pads what it sends to whole words.
    assert listener.refuses(serialize_message(chunk())[:40]) == (
        "MESSAGE_MALFORMED: chunk is 40 bytes that cannot be deserialised; "
        "expected those of ActionChunk"
    )


def test_an_exception_of_either_callback_does_not_reach_the_executor(listener: Listener) -> None:
    message = chunk()
    message.source = "raise"
    text = listener.refuses(message)
    assert text == "INTERNAL: taking chunk failed with RuntimeError: asked to"


if __name__ == "__main__":
    if sys.argv[1] == "fuzz":
        fuzz_in_process(int(sys.argv[2]))
    else:
        listen()
