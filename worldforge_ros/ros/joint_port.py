"""A simulated robot's joints on ROS topics: set-points and trajectories in, joint states out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.ros import convert, qos
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.simulation.robot import SimulatedRobot


class JointPort:
    """Subscribes ``joint_commands`` and ``joint_trajectory`` for a robot; publishes on request.

    What the robot refuses is reported in the diagnostics and changes nothing.
    """

    def __init__(
        self,
        node: Node,
        robot: SimulatedRobot[Any],
        diagnostics: Diagnostics,
        topic: str,
        frame_id: str,
        stamp: Callable[[], int],
    ) -> None:
        """:param stamp: the robot's time in ns.
        :param topic: where the joint states go.
        """
        self._robot = robot
        self._diagnostics = diagnostics
        self._frame_id = frame_id
        self._stamp = stamp
        self._publisher = node.create_publisher(JointState, topic, qos.sensor("reliable", depth=20))
        node.create_subscription(Float64MultiArray, "joint_commands", self._on_commands, qos.CHUNK)
        node.create_subscription(
            JointTrajectory, "joint_trajectory", self._on_trajectory, qos.CHUNK
        )

    def publish(self) -> None:
        """Publish the joint state as it is now."""
        state = self._robot.joint_state()
        self._publisher.publish(
            JointState(
                header=convert.header(self._stamp(), self._frame_id),
                name=list(state.names),
                position=state.position.tolist(),
                velocity=state.velocity.tolist(),
            )
        )

    def _on_commands(self, message: Float64MultiArray) -> None:
        try:
            self._robot.command(np.asarray(message.data, dtype=np.float64))
            self._diagnostics.ok()
        except Exception as error:
            self._diagnostics.unexpected(error, "taking joint_commands")

    def _on_trajectory(self, message: JointTrajectory) -> None:
        try:
            start = Time.from_msg(message.header.stamp).nanoseconds
            delay = (start - self._stamp()) / NANOSECONDS if start else 0.0
            self._robot.follow(
                message.joint_names,
                [convert.duration_to_seconds(point.time_from_start) for point in message.points],
                [list(point.positions) for point in message.points],
                delay,
            )
        except Exception as error:
            self._diagnostics.unexpected(error, "taking joint_trajectory")
