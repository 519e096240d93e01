"""A planner for tests of the gate: proposes moving chunks in a process that can be killed.

Parameter ``fault`` may be changed at any time. ``none``: a chunk at every period. ``duplicate``:
every chunk a second time, half a period later. ``disorder``: there the chunk before it instead.
``flood``: valid chunks at ``flood_rate``. ``garbage``: bytes that are no chunks, likewise.
"""

from __future__ import annotations

import os
import struct
import threading
import time

import rclpy
from builtin_interfaces.msg import Time
from gate_support import NAMES, STEP_NS, wave
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import UInt64

from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert, qos
from worldforge_ros.ros.heartbeat import HeartbeatPublisher

BURST = 5
SETTLE_NS = 200_000_000
MARKED = 0x1122334455667788
"""Sequence that is found again among the bytes of a serialised chunk."""


class ChunkPlanner(Node):
    """Plans from the measured position whenever the gate holds, and goes on while it is armed."""

    def __init__(self) -> None:
        super().__init__("planner_node")
        self.declare_parameter("fault", "none")
        self._horizon = self.declare_parameter("horizon", 40).value
        rate = self.declare_parameter("rate", 10.0).value
        self._flood_rate = self.declare_parameter("flood_rate", 5000.0).value
        self._status: GateStatus | None = None
        self._position: tuple[float, float] | None = None
        self._begin: tuple[tuple[float, float], int] = ((0.0, 0.0), 0)
        self._sequence = 0
        self._sent: list[ActionChunkMsg] = []
        self._odd = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._flood)
        if self.declare_parameter("beat", False).value:
            HeartbeatPublisher(self)
        if not self.declare_parameter("propose", True).value:
            return
        self._proposed = self.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
        self._flooded = self.create_publisher(UInt64, "planner/flooded", qos.REPORT)
        self._flooding = self.create_publisher(Time, "planner/flooding", qos.REPORT)
        self.create_subscription(GateStatus, "safety_gate/status", self._on_status, qos.LATCHED)
        self.create_subscription(JointState, "joint_states", self._on_joint_state, 10)
        self.create_timer(0.5 / rate, self._on_timer)
        self._thread.start()

    def close(self) -> None:
        """End the flood, then the node."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.destroy_node()

    def _on_status(self, status: GateStatus) -> None:
        self._status = status

    def _on_joint_state(self, message: JointState) -> None:
        self._position = (message.position[0], message.position[1])

    @property
    def _fault(self) -> str:
        return str(self.get_parameter("fault").value)

    def _on_timer(self) -> None:
        self._odd = not self._odd
        fault = self._fault
        if fault in ("flood", "garbage"):
            return
        if self._odd:
            message = self._message()
            if message is not None:
                self._sent = [*self._sent[-1:], message]
                self._proposed.publish(message)
        elif self._sent and fault in ("duplicate", "disorder"):
            self._proposed.publish(self._sent[-1 if fault == "duplicate" else 0])

    def _message(self, sequence: int | None = None) -> ActionChunkMsg | None:
        status, position = self._status, self._position
        if status is None or position is None:
            return None
        now = self.get_clock().now().nanoseconds
        begin, begin_ns = self._begin
        if status.mode != GateStatus.ARMED and now - begin_ns > SETTLE_NS:
            # At rest at first, so that a chunk that is slow to arrive has not begun to move.
            begin, begin_ns = self._begin = position, now + 10 * STEP_NS
        stamp = begin_ns + (now - begin_ns) // STEP_NS * STEP_NS
        self._sequence += 1
        chunk = ActionChunk(
            stamp=stamp,
            embodiment="pusht",
            joint_names=NAMES,
            step=STEP_NS * 1e-9,
            actions=wave(begin, begin_ns, stamp, self._horizon),
            source="policy",
            epoch=status.epoch,
            sequence=self._sequence if sequence is None else sequence,
            observation_stamp=now,
        )
        return convert.chunk_to_msg(chunk, "base")

    def _flood(self) -> None:
        count = 0
        while not self._closing.wait(0.01):
            fault = self._fault
            due = time.monotonic()
            began = due
            if fault in ("flood", "garbage"):
                now = self.get_clock().now().nanoseconds
                self._flooding.publish(convert.ns_to_stamp(now))
            while self._fault == fault and fault in ("flood", "garbage"):
                message = self._message(MARKED)
                if message is None:
                    break
                data = bytearray(serialize_message(message))
                place = data.index(struct.pack("<Q", MARKED))
                refresh = time.monotonic() + 0.02
                while time.monotonic() < refresh and not self._closing.is_set():
                    for _ in range(BURST):
                        count += 1
                        if fault == "garbage":
                            self._proposed.publish(b"\x00\x01\x00\x00" + os.urandom(300))
                            continue
                        self._sequence += 1
                        struct.pack_into("<Q", data, place, self._sequence)
                        self._proposed.publish(bytes(data))
                    due += BURST / self._flood_rate
                    late = time.monotonic() - due
                    if late < 0.0:
                        time.sleep(-late)
                    elif late > 0.05:
                        due = time.monotonic()
                if time.monotonic() - began > 0.2:
                    began = time.monotonic()
                    self._flooded.publish(UInt64(data=count))
                if self._closing.is_set():
                    return


def main() -> None:
    rclpy.init()
    node = ChunkPlanner()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
