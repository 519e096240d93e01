"""``worldforge gate arm``, ``disarm``, ``stop`` and ``rearm``: the gate's services from a shell."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.ros.gate_watch import check_namespace

CALLS: dict[str, tuple[Any, str, Any]] = {
    "arm": (SetBool, "safety_gate/enable", SetBool.Request(data=True)),
    "disarm": (SetBool, "safety_gate/enable", SetBool.Request(data=False)),
    "stop": (Trigger, "safety_gate/stop", Trigger.Request()),
    "rearm": (Trigger, "safety_gate/rearm", Trigger.Request()),
}
"""Service type, name and request of each verb."""


def call(
    verb: str,
    *,
    namespace: str = "",
    timeout: float = 5.0,
    as_json: bool = False,
    stream: TextIO = sys.stdout,
) -> int:
    """Ask the gate for ``verb``: 0 when it did it, 1 when it refused, with its answer printed.

    :param timeout: seconds to wait for the service, and again for its answer.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a namespace that ROS does not allow,
        ``TOPIC_MISSING`` when no gate is there or it does not answer.
    """
    check_namespace(namespace)
    service, name, request = CALLS[verb]
    # Ctrl-C is this program's to handle.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node(f"gate_call_{os.getpid()}", namespace=namespace)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            client = node.create_client(service, name)
            deadline = time.monotonic() + timeout
            while not client.service_is_ready() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.05)
            answer = client.call_async(request) if client.service_is_ready() else None
            deadline = time.monotonic() + timeout
            while answer is not None and not answer.done() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.05)
            if answer is None or not answer.done():
                raise mismatch(
                    ErrorCode.TOPIC_MISSING,
                    f"service {client.service_name}",
                    found=f"{'absent' if answer is None else 'silent'} after {timeout:g} s",
                    expected="a running gate in this ROS_DOMAIN_ID and --namespace "
                    "(`worldforge demo` prints its domain)",
                )
            reply = answer.result()
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    if as_json:
        print(json.dumps({"success": reply.success, "message": reply.message}), file=stream)
    else:
        print(reply.message if reply.success else f"refused: {reply.message}", file=stream)
    return 0 if reply.success else 1
