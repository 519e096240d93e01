"""``worldforge gate watch``: listens to the gate and to heartbeats, and shows them."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import TextIO

import rclpy
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.validate_namespace import validate_namespace
from rich.console import Console
from rich.live import Live

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.msg import GateStatus, Heartbeat
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.ros import convert, qos
from worldforge_ros.safety.watch import GateView, Watch

REFRESH = 0.25
"""Seconds between two pictures on a terminal."""
BEATS_HEARD = 0.35
"""Seconds that ``once`` listens after the status: three heartbeats of every node are due."""
MOST_BEATS = 64
"""Nodes whose heartbeats are kept, so that no flood of names grows without end."""


class GateWatch(Node):
    """Keeps the last status and when each node was heard."""

    def __init__(self, namespace: str = "") -> None:
        super().__init__(f"gate_watch_{os.getpid()}", namespace=namespace)
        self._view: GateView | None = None
        self._arrived = -math.inf
        self._beats: dict[str, float] = {}
        self._statuses = self.create_subscription(
            GateStatus, "safety_gate/status", self._on_status, qos.LATCHED
        )
        self.create_subscription(Heartbeat, "heartbeat", self._on_beat, qos.HEARTBEAT)

    def _on_status(self, message: GateStatus) -> None:
        self._view = view_of(message)
        self._arrived = time.monotonic()

    def _on_beat(self, message: Heartbeat) -> None:
        if message.node in self._beats or len(self._beats) < MOST_BEATS:
            self._beats[message.node] = time.monotonic()

    def now(self) -> Watch:
        """What is known at this moment."""
        now = time.monotonic()
        return Watch(
            self._statuses.topic_name,
            self._view,
            now - self._arrived,
            self.count_publishers(self._statuses.topic_name),
            {name: now - heard for name, heard in self._beats.items()},
        )


def view_of(message: GateStatus) -> GateView:
    """The core's view of a status; a message whose lists differ in length is shown as far as they
    agree.
    """
    reached = convert.duration_to_seconds(message.capture_to_command)
    return GateView(
        stamp=convert.stamp_to_ns(message.header.stamp) / NANOSECONDS,
        mode=message.mode_name,
        reason=message.reason,
        epoch=message.epoch,
        verdict=message.verdict,
        verdict_sequence=message.verdict_sequence,
        reasons=tuple(zip(message.reason_codes, message.reason_messages, strict=False)),
        counters={
            "received": message.chunks_received,
            "approved": message.chunks_approved,
            "rejected": message.chunks_rejected,
            "steps_executed": message.steps_executed,
            "holds": message.holds,
            "stops": message.stops,
        },
        rejected=dict(zip(message.rejected_codes, message.rejected_counts, strict=False)),
        validation_latency=convert.duration_to_seconds(message.validation_latency),
        capture_to_command=reached or None,
    )


def check_namespace(namespace: str) -> None:
    """Refuse a namespace that ROS does not allow.

    :raises WorldForgeError: ``INVALID_ARGUMENT``.
    """
    try:
        validate_namespace(f"/{namespace.removeprefix('/')}")
    except InvalidNamespaceException as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--namespace",
            found=repr(namespace),
            expected="a ROS namespace, such as /left_arm",
        ) from error


def watch(
    *,
    once: bool = False,
    as_json: bool = False,
    timeout: float = 5.0,
    namespace: str = "",
    stream: TextIO = sys.stdout,
) -> int:
    """Show the gate until interrupted, or one status.

    :param once: show one status; 1 is returned when none came within ``timeout`` seconds.
    :param as_json: one JSON object a line for each change, in place of text.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a namespace that ROS does not allow.
    """
    check_namespace(namespace)
    # Ctrl-C is this program's to handle: the terminal must be left as it was found.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = GateWatch(namespace)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            if once:
                return _once(node, executor, as_json, timeout, stream)
            _follow(node, executor, as_json, stream)
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


def _once(
    node: GateWatch,
    executor: SingleThreadedExecutor,
    as_json: bool,
    timeout: float,
    stream: TextIO,
) -> int:
    deadline = time.monotonic() + timeout
    heard = False
    while time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
        if not heard and node.now().view is not None:
            heard, deadline = True, time.monotonic() + BEATS_HEARD
    found = node.now()
    _print(found, as_json, stream)
    return 0 if found.view is not None else 1


def _follow(
    node: GateWatch, executor: SingleThreadedExecutor, as_json: bool, stream: TextIO
) -> None:
    if not as_json and stream.isatty():
        console = Console(file=stream)
        with Live(node.now().as_rich(), console=console, auto_refresh=False) as live:
            due = 0.0
            while True:
                executor.spin_once(timeout_sec=0.05)
                if time.monotonic() >= due:
                    due = time.monotonic() + REFRESH
                    live.update(node.now().as_rich(), refresh=True)
    told: object = None
    while True:
        found = node.now()
        if found.key != told:
            told = found.key
            _print(found, as_json, stream)
        executor.spin_once(timeout_sec=0.05)


def _print(found: Watch, as_json: bool, stream: TextIO) -> None:
    if as_json:
        print(json.dumps(found.as_json(), allow_nan=False), file=stream, flush=True)
        return
    # A pipe or a file has no width of its own.
    width = None if stream.isatty() else 140
    Console(file=stream, width=width, highlight=False).print(found.as_rich(), "")
