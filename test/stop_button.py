"""A protective stop that is not pressed, in a process that can be killed: says so at 10 Hz."""

from __future__ import annotations

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_msgs.msg import Bool

from worldforge_ros.ros import qos


def main() -> None:
    rclpy.init()
    node = Node("stop_button")
    publisher = node.create_publisher(Bool, "safety_gate/protective_stop", qos.LATCHED)
    node.create_timer(0.1, lambda: publisher.publish(Bool(data=False)))
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
