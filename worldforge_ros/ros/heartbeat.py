"""Tells whoever listens that a node's executor turns."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from worldforge_ros.msg import Heartbeat
from worldforge_ros.ros import convert, qos

PERIOD = 0.1
"""Seconds between two beats."""


class HeartbeatPublisher:
    """Beats from a timer of the node's executor: a callback that hangs silences it, as it must.

    What runs beside the executor is not covered: a model that hangs in its own thread shows in the
    deadlines of those who wait for its answer.
    """

    def __init__(self, node: Node, alive: Callable[[], bool] = lambda: True) -> None:
        """:param alive: whether the node does its work at all; while it does not, it is silent."""
        self._node = node
        self._alive = alive
        self._publisher = node.create_publisher(Heartbeat, "heartbeat", qos.HEARTBEAT)
        # Wall time: a stalled /clock says nothing about this node.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD, self._beat, clock=steady)

    def _beat(self) -> None:
        if not self._alive():
            return
        stamp = self._node.get_clock().now().nanoseconds
        self._publisher.publish(
            Heartbeat(header=convert.header(stamp, ""), node=self._node.get_name())
        )
