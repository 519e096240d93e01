"""Real nodes over real DDS in tests: an isolated domain, deadlines instead of sleeps."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

_domains = itertools.count(1)


def next_domain() -> int:
    """A ROS domain that none of the last 99 tests, and hardly one of another run, uses."""
    return 1 + (os.getpid() * 7 + next(_domains)) % 100


class Ros:
    """One test's corner of ROS: its own context, domain and executor."""

    def __init__(self) -> None:
        self.domain = next_domain()
        self.context = Context()
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        os.environ["ROS_DOMAIN_ID"] = str(self.domain)
        rclpy.init(context=self.context, domain_id=self.domain)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.node = self.add(Node("test_node", context=self.context))

    def add(self, node: Node) -> Node:
        """Spin ``node`` with the others."""
        self.executor.add_node(node)
        return node

    def wait_until(
        self, predicate: Callable[[], Any], timeout: float = 10.0, what: str = ""
    ) -> Any:
        """Spin until ``predicate`` is true; fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            value = predicate()
            if value:
                return value
            self.executor.spin_once(timeout_sec=0.02)
        value = predicate()
        assert value, f"not within {timeout} s: {what or predicate}"
        return value

    def spin_for(self, seconds: float) -> None:
        """Let time pass for a test that something does *not* happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def record(self, message_type: Any, topic: str, profile: Any = 10) -> list[Any]:
        """Everything that arrives on ``topic`` from now on."""
        seen: list[Any] = []
        self.node.create_subscription(message_type, topic, seen.append, profile)
        return seen

    def call(
        self,
        service_type: Any,
        name: str,
        request: Any,
        timeout: float = 10.0,
        *,
        again_after: float = math.inf,
    ) -> Any:
        """Call a service and return its response.

        :param again_after: seconds without a reply after which a request is sent again that does
            no harm twice. Fast DDS drops a reply whose client the server has not discovered within
            0.1 s, which a busy machine can take; the client cannot know.
        """
        client = self.node.create_client(service_type, name)
        try:
            self.wait_until(client.service_is_ready, timeout, f"service {name}")
            futures = [client.call_async(request)]
            again = time.monotonic() + again_after

            def answered() -> Any:
                if len(futures) == 1 and time.monotonic() > again:
                    futures.append(client.call_async(request))
                return next((future for future in futures if future.done()), None)

            return self.wait_until(answered, timeout, f"reply of {name}").result()
        finally:
            self.node.destroy_client(client)

    def connected(self, publisher: Any, timeout: float = 10.0) -> None:
        """Wait for a subscriber of ``publisher``."""
        self.wait_until(
            lambda: publisher.get_subscription_count() > 0, timeout, publisher.topic_name
        )

    def process(self, module: str, *arguments: str, **parameters: Any) -> NodeProcess:
        """Start ``worldforge_ros.nodes.<module>``, or a file ``<module>`` of the tests, as a
        process in this test's domain.
        """
        return NodeProcess(module, self.domain, arguments, parameters)

    def close(self) -> None:
        """Destroy nodes and context."""
        self.executor.shutdown()
        for node in list(self.executor.get_nodes()):
            node.destroy_node()
        rclpy.try_shutdown(context=self.context)


class NodeProcess:
    """A node in a process of its own, killed at the end of the test."""

    def __init__(
        self, module: str, domain: int, arguments: tuple[str, ...], parameters: dict[str, Any]
    ) -> None:
        settings: list[str] = []
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            settings += ["-p", f"{name}:={text}"]
        program = [str(Path(__file__).parent / module)]
        if not module.endswith(".py"):
            program = ["-m", f"worldforge_ros.nodes.{module}"]
        command = [sys.executable, *program, "--ros-args"]
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # Not a pipe: nobody reads it while the test runs, and a full one would stop the node.
        self._output = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  closed at the exit
        self.process = subprocess.Popen(
            [*command, *settings, *arguments],
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def stop(self, signal_number: int = signal.SIGTERM, timeout: float = 15.0) -> tuple[int, str]:
        """Signal the process; returns its exit status and everything it printed."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.finish(timeout)

    def finish(self, timeout: float = 60.0) -> tuple[int, str]:
        """Wait for the process to end by itself."""
        return self.process.wait(timeout=timeout), self._printed()

    def _printed(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)
        # pytest shows it with a failed test only.
        print(f"--- output of {self.process.args!r}\n{self._printed()}")
        self._output.close()
