"""What the safety gate costs and how evenly it ticks.

    python benchmarks/gate.py --minutes 5 --json gate.json

Four parts, all for chunks of 100 actions of ALOHA's 14 joints:

- ``validate_ms``: from a chunk message to its verdict, in this process. ``validate_core_ms`` is
  without the conversion of the message, ``validate_bytes_ms`` with its deserialisation too.
- ``period_ms``: time between two set-points of a gate process, taken from when each was published
  (DDS source timestamps); ``period_received_ms`` from when each was received here;
  ``control_period_ms`` is what the gate says itself in /diagnostics. ``bare_timer_ms`` is an rclpy
  timer of the same rate in a process that does nothing else, in the same minutes.
- The same with ``_load``: with a process that never pauses for each CPU.
- ``added_latency_ms``: from publishing a chunk to receiving its first set-point, less the median
  round trip of the same message through a process that answers it at once (``echo_ms``), the two in
  turns; ``raw_latency_ms`` is without that subtraction.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert, gate_messages, qos
from worldforge_ros.ros.raw import deserialize_capped
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import SafetyGate
from worldforge_ros.safety.workspace import workspace_of

ROBOT = "aloha"
HORIZON = 100
STEP = 0.02
RATE = 100.0
MOVE = 1e-4
"""Radians of the first joint between two chunks; tells their set-points apart."""
GIGA = 1_000_000_000

Figures = dict[str, float]


def percentiles(values: list[float], *ranks: float) -> Figures:
    """Milliseconds at each of ``ranks`` per cent, of seconds: ``p50``, ``p999`` and so on."""
    names = [f"p{rank:g}".replace(".", "") for rank in ranks]
    found = np.percentile(np.asarray(values) * 1e3, ranks)
    return {name: round(float(value), 3) for name, value in zip(names, found, strict=True)}


def spread(values: list[float]) -> Figures:
    """p50, p99, p999 and max of seconds, in milliseconds."""
    return percentiles(values, 50, 99, 99.9) | {"max": round(max(values) * 1e3, 3)}


def home(robot: Embodiment) -> list[float]:
    """The middle of every joint's range."""
    return [(joint.min_position + joint.max_position) / 2.0 for joint in robot.joints]


def chunk(robot: Embodiment, actions: Any, now: int, sequence: int, epoch: int) -> ActionChunk:
    """A chunk that begins now."""
    return ActionChunk(
        stamp=now,
        embodiment=robot.name,
        joint_names=robot.joint_names,
        step=STEP,
        actions=np.asarray(actions, dtype=np.float64),
        source="policy",
        epoch=epoch,
        sequence=sequence,
        observation_stamp=now,
    )


def validation(samples: int) -> dict[str, Figures]:
    """Judging chunks with what the node calls for each, while an earlier one executes."""
    robot = load_embodiment(ROBOT)
    config = replace(GateConfig(), max_chunk_rate=None)
    gate = SafetyGate(robot, config, workspace_of(robot, None))
    now_ns, now = time.time_ns(), 0.0
    position = np.asarray(home(robot))
    still = np.zeros(len(position))
    gate.update_joint_state(robot.joint_names, position, still, now_ns, now)
    outcome = gate.enable(True, now_ns, now)
    assert outcome.success, outcome.message
    most = gate_messages.chunk_bytes(config.max_horizon * len(position))
    ranges = np.asarray([joint.max_position - joint.min_position for joint in robot.joints])
    wave = 1.0 - np.cos(2.0 * np.pi * np.arange(200) / 200)
    path = position + 0.02 * ranges * wave[:, np.newaxis]
    columns: list[list[float]] = [[], [], []]
    for sample in range(samples):
        now_ns, now = now_ns + 5 * round(STEP * GIGA), now + 5 * STEP
        begin = 5 * sample
        actions = path[(begin + np.arange(HORIZON)) % len(path)]
        message = convert.chunk_to_msg(chunk(robot, actions, now_ns, sample + 1, gate.epoch), "")
        data = serialize_message(message)
        gate.update_joint_state(robot.joint_names, actions[0], still, now_ns, now)
        t0 = time.perf_counter()
        read = deserialize_capped(data, ActionChunkMsg, "chunk", most)
        t1 = time.perf_counter()
        proposed = convert.chunk_from_msg(read)
        t2 = time.perf_counter()
        verdict = gate.submit(proposed, now_ns, now)
        t3 = time.perf_counter()
        assert verdict.approved, [str(reason) for reason in verdict.reasons]
        for column, since in zip(columns, (t1, t2, t0), strict=True):
            column.append(t3 - since)
        for tick in range(5):
            gate.tick(now_ns + tick * round(STEP * GIGA), now + tick * STEP)
    names = ("validate_ms", "validate_core_ms", "validate_bytes_ms")
    warm = samples // 10
    return {
        name: percentiles(column[warm:], 50, 99)
        for name, column in zip(names, columns, strict=True)
    }


class Bench(Node):
    """The robot and the planner around the gate, and the receiver of everything."""

    def __init__(self, robot: Embodiment) -> None:
        super().__init__("gate_benchmark")
        self.robot = robot
        self.position = home(robot)
        self.status: GateStatus | None = None
        self.diagnosed: dict[str, str] = {}
        # Of each topic: when it was published and received, ns.
        self.moments: dict[str, list[tuple[int, int]]] = {"joint_commands": [], "bare_timer": []}
        self.awaited: Callable[[float], bool] = lambda _: False
        self.came = 0
        self._joints = self.create_publisher(JointState, "joint_states", 10)
        self.chunks = self.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
        self.echoes = self.create_publisher(ActionChunkMsg, "echo_in", qos.CHUNK)
        for topic in self.moments:
            self.create_subscription(
                Float64MultiArray,
                topic,
                lambda message, info, topic=topic: self._on_command(topic, message, info),
                qos.REPORT,
            )
        self.create_subscription(Float64MultiArray, "echo_out", self._on_echo, qos.CHUNK)
        self.create_subscription(GateStatus, "safety_gate/status", self._on_status, qos.LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._enable = self.create_client(SetBool, "safety_gate/enable")
        self.create_timer(0.01, self._sense)
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)

    def _on_command(self, topic: str, message: Float64MultiArray, info: dict[str, int]) -> None:
        now = time.perf_counter_ns()
        if topic == "joint_commands":
            self.position = list(message.data)
            if self.awaited(message.data[0]):
                self.awaited, self.came = lambda _: False, now
        self.moments[topic].append((info["source_timestamp"], info["received_timestamp"]))

    def _on_echo(self, message: Float64MultiArray) -> None:
        self.came = time.perf_counter_ns()

    def _on_status(self, status: GateStatus) -> None:
        self.status = status

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("safety_gate"):
                self.diagnosed = {pair.key: pair.value for pair in status.values}

    def _sense(self) -> None:
        message = JointState(
            name=list(self.robot.joint_names),
            position=self.position,
            velocity=[0.0] * len(self.position),
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._joints.publish(message)

    def spin_until(self, done: Callable[[], Any], timeout: float, what: str) -> None:
        """Spin until ``done``; ends the program when that takes too long."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise SystemExit(f"gate.py: {what} not within {timeout:g} s")
            self.executor_.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        """Spin for ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor_.spin_once(timeout_sec=0.05)

    def arm(self) -> None:
        """Wait for everybody and arm the gate."""
        for publisher in (self.chunks, self.echoes, self._joints):
            self.spin_until(publisher.get_subscription_count, 30.0, publisher.topic_name)
        self.spin_until(self._enable.service_is_ready, 30.0, "safety_gate/enable")
        self.spin_until(lambda: self.moments["bare_timer"], 30.0, "the bare timer")
        deadline = time.monotonic() + 15.0
        while True:
            future = self._enable.call_async(SetBool.Request(data=True))
            self.spin_until(future.done, 10.0, "reply of safety_gate/enable")
            if future.result().success:
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"gate.py: {future.result().message}")
        self.spin_until(lambda: self.moments["joint_commands"], 10.0, "set-points")

    def periods(self, seconds: float) -> dict[str, Any]:
        """Periods of the gate and of the bare timer while ``seconds`` pass."""
        self.spin_for(1.0)
        for moments in self.moments.values():
            moments.clear()
        self.spin_for(seconds)
        assert self.status is not None
        if self.status.mode != GateStatus.HOLDING:
            raise SystemExit(f"gate.py: the gate is {self.status.mode_name}: {self.status.reason}")
        gate, bare = (np.diff(np.array(m), axis=0) / GIGA for m in self.moments.values())
        return {
            "period_ms": spread(gate[:, 0].tolist()),
            "period_received_ms": spread(gate[:, 1].tolist()),
            "control_period_ms": {
                key.rsplit("_", 1)[1]: float(value)
                for key, value in self.diagnosed.items()
                if key.startswith("control_period_ms_")
            },
            "bare_timer_ms": spread(bare[:, 0].tolist()),
        }

    def latencies(self, samples: int) -> dict[str, Figures]:
        """Chunks and echoes in turns, at moments that have nothing to do with the gate's ticks."""
        base = list(self.position)
        raw: list[float] = []
        echo: list[float] = []
        for sample in range(samples):
            self.spin_for(random.uniform(0.03, 0.05))
            target = [base[0] + MOVE * (sample % 2 + 1), *base[1:]]
            assert self.status is not None
            now = self.get_clock().now().nanoseconds
            proposed = chunk(
                self.robot, [target] * HORIZON, now, sample + 1, int(self.status.epoch)
            )
            message = convert.chunk_to_msg(proposed, "base")
            self.came = 0
            self.awaited = lambda x, t=target[0]: abs(x - t) < MOVE / 4
            began = time.perf_counter_ns()
            self.chunks.publish(message)
            self.spin_until(lambda: self.came, 2.0, f"set-point of chunk {sample}")
            raw.append((self.came - began) / GIGA)
            self.spin_for(random.uniform(0.02, 0.03))
            self.came = 0
            began = time.perf_counter_ns()
            self.echoes.publish(message)
            self.spin_until(lambda: self.came, 2.0, "echo")
            echo.append((self.came - began) / GIGA)
        middle = float(np.median(echo))
        return {
            "added_latency_ms": percentiles([value - middle for value in raw], 50, 95),
            "raw_latency_ms": percentiles(raw, 50, 95),
            "echo_ms": percentiles(echo, 50, 95),
        }


def bare_timer() -> None:
    """An rclpy timer that publishes, and nothing else."""
    node = Node("bare_timer")
    publisher = node.create_publisher(Float64MultiArray, "bare_timer", qos.CHUNK)
    message = Float64MultiArray(data=[0.0] * 14)
    node.create_timer(1.0 / RATE, lambda: publisher.publish(message))
    rclpy.spin(node)


def echo() -> None:
    """Answers every chunk with a set-point, as bytes that nobody reads."""
    node = Node("echo")
    publisher = node.create_publisher(Float64MultiArray, "echo_out", qos.CHUNK)
    message = Float64MultiArray(data=[0.0] * 14)
    node.create_subscription(
        ActionChunkMsg, "echo_in", lambda _: publisher.publish(message), qos.CHUNK, raw=True
    )
    rclpy.spin(node)


ROLES = {"bare_timer": bare_timer, "echo": echo}


@contextmanager
def process(*command: str) -> Iterator[None]:
    """A program that lives as long as the context; its errors are shown."""
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()


@contextmanager
def load() -> Iterator[None]:
    """A process for each CPU that never pauses."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            stack.enter_context(process("-c", "while True: pass"))
        yield


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures."""
    say("judging chunks")
    result: dict[str, Any] = {"cpus": os.cpu_count(), "minutes": args.minutes}
    result |= validation(args.validations)
    rclpy.init()
    with ExitStack() as stack:
        for role in ROLES:
            stack.enter_context(process(__file__, "--role", role))
        stack.enter_context(
            process(
                "-m",
                "worldforge_ros.nodes.safety_gate_node",
                "--ros-args",
                *("-p", f"embodiment:={ROBOT}", "-p", f"control_rate:={RATE}"),
                # The machine is kept busy on purpose; what is measured is the gate's loop.
                *("-p", "joint_state_timeout:=5.0", "-p", "max_joint_state_age:=5.0"),
            )
        )
        bench = Bench(load_embodiment(ROBOT))
        bench.arm()
        say(f"periods, idle, {args.minutes:g} min")
        result |= bench.periods(args.minutes * 60.0)
        say(f"periods, under load, {args.minutes:g} min")
        with load():
            loaded = bench.periods(args.minutes * 60.0)
        result |= {name.replace("_ms", "_load_ms"): value for name, value in loaded.items()}
        say("latency")
        result |= bench.latencies(args.samples)
        bench.destroy_node()
    rclpy.try_shutdown()
    return result


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=5.0, help="idle, and again under load")
    parser.add_argument("--validations", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=400, help="chunks whose latency is taken")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        rclpy.init()
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            ROLES[args.role]()
        return 0
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    sys.setswitchinterval(0.0005)
    console = Console()
    with console.status("starting") as status:
        result = measure(args, status.update)
    table = Table("", "p50, ms", "p95", "p99", "p99.9", "max")
    for name, figures in result.items():
        if isinstance(figures, dict):
            values = (figures.get(key) for key in ("p50", "p95", "p99", "p999", "max"))
            table.add_row(
                name.removesuffix("_ms"), *("" if v is None else f"{v:.3f}" for v in values)
            )
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
