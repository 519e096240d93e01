"""/diagnostics of a node, and the one place where its errors are reported."""

from __future__ import annotations

import traceback
from collections import Counter

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from worldforge_ros.errors import ErrorCode, WorldForgeError

REPEAT_PERIOD = 5.0
"""Seconds before the same error is logged again."""


class Diagnostics:
    """Publishes one status a second and keeps what went wrong.

    Errors are counted by code and logged at most every :data:`REPEAT_PERIOD` seconds each, so that
    a camera at 30 Hz with a wrong size gives one line, not thirty.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        # Wall time: a stalled /clock must not silence the diagnostics.
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(1.0, self._publish, clock=self._clock)
        self._values: dict[str, str] = {}
        self._errors: Counter[str] = Counter()
        self._logged: dict[str, int] = {}
        self._current: WorldForgeError | None = None
        self._waiting: WorldForgeError | None = None

    def set(self, **values: object) -> None:
        """Set key-values of the status."""
        self._values.update({key: str(value) for key, value in values.items()})

    def ok(self) -> None:
        """The last thing the node did went well."""
        self._current = self._waiting = None

    def error(self, error: WorldForgeError) -> None:
        """Count, log and show ``error``."""
        self._current, self._waiting = error, None
        self._errors[str(error.code)] += 1
        now = self._clock.now().nanoseconds
        last = self._logged.get(str(error.code))
        if last is None or now - last > REPEAT_PERIOD * 1e9:
            self._logged[str(error.code)] = now
            self._node.get_logger().error(str(error))

    def waiting(self, error: WorldForgeError) -> None:
        """Show ``error`` as what the node still waits for at its start; logged once, no alarm."""
        self._waiting = error
        if str(error.code) not in self._logged:
            self._logged[str(error.code)] = self._clock.now().nanoseconds
            self._node.get_logger().info(f"waiting: {error}")

    def unexpected(self, error: Exception, doing: str) -> WorldForgeError:
        """Report an exception that nobody foresaw, with its traceback; the node goes on."""
        if isinstance(error, WorldForgeError):
            self.error(error)
            return error
        self._node.get_logger().error(
            "".join(traceback.format_exception(error)), throttle_duration_sec=REPEAT_PERIOD
        )
        wrapped = WorldForgeError(
            ErrorCode.INTERNAL, f"{doing} failed with {type(error).__name__}: {error}"
        )
        self.error(wrapped)
        return wrapped

    def _publish(self) -> None:
        level = DiagnosticStatus.OK
        if self._current or self._waiting:
            level = DiagnosticStatus.ERROR if self._current else DiagnosticStatus.WARN
        status = DiagnosticStatus(
            level=level,
            name=self._node.get_fully_qualified_name(),
            message=str(self._current or self._waiting or "OK"),
            hardware_id="",
        )
        counts = {f"errors.{code}": str(count) for code, count in dict(self._errors).items()}
        pairs = {**self._values, **counts}
        status.values = [KeyValue(key=key, value=value) for key, value in pairs.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
