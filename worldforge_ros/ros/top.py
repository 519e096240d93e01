"""``worldforge top``: listens to the running stack and shows it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.live import Live

from worldforge_ros.bags.names import PICTURES, TopicName
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.monitor.arrivals import leading_stamp
from worldforge_ros.monitor.limits import ASKED
from worldforge_ros.monitor.screen import Picture
from worldforge_ros.monitor.state import (
    CLOCK,
    Cycle,
    Monitor,
    Top,
    candidates_of,
    is_stamped,
    watched_topics,
)
from worldforge_ros.msg import GateStatus, Heartbeat, PlanReport, Surprise
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.ros import convert
from worldforge_ros.ros.gate_watch import check_namespace, view_of
from worldforge_ros.ros.listening import Listener
from worldforge_ros.ros.raw import deserialize_capped

TAKE_PERIOD = 0.1
"""Seconds between two looks into the queues of the subscriptions."""
LOOK_PERIOD = 0.5
"""Seconds between two looks for publishers."""
ASK_PERIOD = 5.0
"""Seconds between two requests for a node's parameters, which change seldom."""
MOST_BYTES = 4_000_000
"""Largest message that is read; a plan report of 4096 candidates of 100 actions is as large."""


class TopNode(Node):
    """Takes every message as bytes and reads what is to be shown; pictures are only counted.

    No executor spins it: :meth:`turn` takes what has arrived.
    """

    def __init__(
        self, embodiment: Embodiment, namespace: str, command_topic: str, pictures: bool
    ) -> None:
        """:param pictures: whether to listen to what carries pictures."""
        super().__init__(
            f"top_{os.getpid()}",
            namespace=namespace.strip("/"),
            enable_rosout=False,
            start_parameter_services=False,
        )
        roles = watched_topics(embodiment, command_topic)
        if not pictures:
            small = {
                role: [n for n in names if n.type not in PICTURES] for role, names in roles.items()
            }
            roles = {role: names for role, names in small.items() if names}
        self._topics = {
            role: tuple(dict.fromkeys(self.resolve_topic_name(name.name) for name in names))
            for role, names in roles.items()
        }
        self._roles = {topic: role for role, topics in self._topics.items() for topic in topics}
        wanted = [name for names in roles.values() for name in names]
        self._listener = Listener(self, [*wanted, CLOCK], self._received, _ignore, raw=True)
        self._monitor = Monitor(embodiment, self.get_namespace(), roles)
        self._readers: Mapping[str, Callable[[bytes, float], None]] = {
            "plan_report": self._read_plan,
            "gate_status": self._read_status,
            "surprise": self._read_surprise,
            "heartbeat": self._read_beat,
            "diagnostics": self._read_diagnostics,
        }
        self._unreadable: dict[str, str] = {}
        self._clock: float | None = None
        # One clock per turn tells how old each message is.
        self._wall, self._now = time.time_ns(), time.monotonic()
        self._look_due = 0.0
        self._askers = [_Asker(self, name, ASKED[name]) for name in ASKED]

    def turn(self) -> None:
        """Take what has arrived; look for publishers now and then."""
        now = time.monotonic()
        if now >= self._look_due:
            self._look_due = now + LOOK_PERIOD
            self._listener.look()
        self._wall, self._now = time.time_ns(), time.monotonic()
        self._listener.take()
        for asker in self._askers:
            told = asker.turn(now)
            if told is not None:
                self._monitor.told[asker.name] = told

    def top(self) -> Top:
        """What is known now."""
        listener, now = self._listener, time.monotonic()
        topics = {role: self._choice(names) for role, names in self._topics.items()}
        problems = {
            self._roles[topic]: error.message
            for topic, error in listener.problems.items()
            if topic in self._roles
        }
        # A simulator that runs in real time offers /clock and says nothing on it.
        published = bool(listener.publishers(CLOCK.name))
        clock = self._clock if published else None
        return self._monitor.snapshot(
            now,
            time.time() if clock is None else clock,
            "wall" if clock is None else CLOCK.name,
            {
                role: (listener.type_of(topic), topic, listener.publishers(topic))
                for role, topic in topics.items()
            },
            self._unreadable | problems,
        )

    def complete(self, top: Top) -> bool:
        """Whether everything that speaks has been heard; see :meth:`Monitor.complete`."""
        return self._monitor.complete(time.monotonic(), top)

    def _choice(self, topics: tuple[str, ...]) -> str:
        """The one of a role's topics that is published, else the first."""
        return next((topic for topic in topics if self._listener.publishers(topic)), topics[0])

    def _received(self, topic: str, what: TopicName, data: bytes, info: Any) -> None:
        if what is CLOCK:
            self._clock = leading_stamp(data) or 0.0
            return
        role = self._roles[topic]
        received = int(info.get("received_timestamp", 0)) or self._wall
        # The middleware's clock may be set; that must not make an age.
        arrived = self._now - max(self._wall - received, 0) / NANOSECONDS
        self._monitor.heard(role, arrived, leading_stamp(data) if is_stamped(what.type) else None)
        reader = self._readers.get(role)
        if reader is None:
            return
        try:
            reader(data, arrived)
            self._unreadable.pop(role, None)
        except WorldForgeError as error:
            self._unreadable[role] = error.message

    def _read_plan(self, data: bytes, arrived: float) -> None:
        message = deserialize_capped(data, PlanReport, "plan_report", MOST_BYTES)
        sample = convert.plan_sample(message, arrived)
        self._monitor.cycle(
            Cycle(
                number=message.cycle,
                outcome=message.outcome,
                message=message.message,
                planner=message.planner,
                sequence=message.sequence,
                margin=sample.margin if math.isfinite(sample.margin) else None,
                deadline_misses=message.deadline_misses,
                candidates=candidates_of(
                    message.sources, sample.costs.tolist(), message.reachable, message.chosen
                ),
                sample=sample,
            )
        )

    def _read_status(self, data: bytes, arrived: float) -> None:
        self._monitor.status(view_of(deserialize_capped(data, GateStatus, "status", MOST_BYTES)))

    def _read_surprise(self, data: bytes, arrived: float) -> None:
        message = deserialize_capped(data, Surprise, "surprise", MOST_BYTES)
        self._monitor.surprised(message.error, message.standardised)

    def _read_beat(self, data: bytes, arrived: float) -> None:
        message = deserialize_capped(data, Heartbeat, "heartbeat", MOST_BYTES)
        self._monitor.beat(message.node, arrived)

    def _read_diagnostics(self, data: bytes, arrived: float) -> None:
        message = deserialize_capped(data, DiagnosticArray, "diagnostics", MOST_BYTES)
        for status in message.status:
            self._monitor.diagnosed(
                status.name,
                # A byte in Python is of length 1.
                status.level[0] if isinstance(status.level, bytes) else status.level,
                status.message,
                {pair.key: pair.value for pair in status.values},
                arrived,
            )


class _Asker:
    """Asks a node for parameters now and then; a reply that does not come is not waited for."""

    def __init__(self, node: Node, name: str, parameters: tuple[str, ...]) -> None:
        self.name = name
        self._parameters = parameters
        self._client: Client = node.create_client(GetParameters, f"{name}/get_parameters")
        self._future: Any = None
        self._due = 0.0

    def turn(self, now: float) -> Mapping[str, Any] | None:
        """Values by parameter once a reply is there."""
        told = self._reply()
        if now >= self._due and self._client.service_is_ready():
            self._due = now + ASK_PERIOD
            if self._future is not None:
                self._client.remove_pending_request(self._future)
            request = GetParameters.Request(names=list(self._parameters))
            self._future = self._client.call_async(request)
        return told

    def _reply(self) -> Mapping[str, Any] | None:
        if self._future is None:
            return None
        with self._client.handle:
            taken = self._client.handle.take_response(GetParameters.Response)
        if taken is None or taken[0] is None:
            return None
        self._client.remove_pending_request(self._future)
        self._future = None
        values = [parameter_value_to_python(value) for value in taken[1].values]
        # A node of another release may lack one and then tells none.
        found = zip(self._parameters, values, strict=False)
        return {name: value for name, value in found if value is not None}


def _ignore(topic: str, count: int) -> None:
    # No executor, no events.
    return


def show(
    embodiment: Embodiment,
    *,
    once: bool = False,
    as_json: bool = False,
    timeout: float = 10.0,
    period: float = 1.0,
    namespace: str = "/",
    command_topic: str = "",
    pictures: bool = True,
    stream: TextIO = sys.stdout,
) -> int:
    """Show the stack until interrupted, or once.

    :param once: show one picture when everything that speaks has been heard, or after ``timeout``
        seconds; 1 is returned when there was not a single message.
    :param as_json: one JSON object a line for each ``period`` in s, in place of a picture.
    :param pictures: whether to listen to what carries pictures.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a namespace that ROS does not allow.
    """
    check_namespace(namespace.strip("/"))
    # Signals are this program's to handle: the terminal must be left as it was found.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, _end)
    try:
        node = TopNode(embodiment, namespace, command_topic, pictures)
        try:
            if once:
                return _once(node, as_json, timeout, stream)
            _follow(node, as_json, period, stream)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _once(node: TopNode, as_json: bool, timeout: float, stream: TextIO) -> int:
    deadline = time.monotonic() + timeout
    _turn_until(node, deadline, lambda: node.complete(node.top()))
    top = node.top()
    _print(top, as_json, stream)
    return 0 if top.heard else 1


def _turn_until(node: TopNode, deadline: float, done: Callable[[], bool] = lambda: False) -> None:
    while True:
        node.turn()
        left = deadline - time.monotonic()
        if left <= 0 or done():
            return
        time.sleep(min(left, TAKE_PERIOD))


def _follow(node: TopNode, as_json: bool, period: float, stream: TextIO) -> None:
    due = time.monotonic()

    def next_top() -> Top:
        nonlocal due
        due = max(due + period, time.monotonic())
        _turn_until(node, due)
        return node.top()

    if as_json or not stream.isatty():
        while True:
            _print(next_top(), as_json, stream)
    console = Console(file=stream, highlight=False)
    top = node.top()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Picture(top, console.height), refresh=True)
                top = next_top()
    finally:
        # The last picture stays, as that of `worldforge gate watch` does.
        console.print(Picture(top))


def _print(top: Top, as_json: bool, stream: TextIO) -> None:
    if as_json:
        print(json.dumps(top.as_json(), allow_nan=False), file=stream, flush=True)
        return
    # A pipe or a file has no width of its own.
    width = None if stream.isatty() else 140
    Console(file=stream, width=width, highlight=False).print(Picture(top), "")
