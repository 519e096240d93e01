"""Gazebo and its bridge as the nodes see them: the built-in simulator behind the bridged names.

A joint trajectory is followed as Gazebo's JointTrajectoryController does it: the joints' target
jumps to the first point that is not past. $STAND_IN_RATE is the speed against real time.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from ros_gz_interfaces.srv import SetEntityPose
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from worldforge_ros.ros import convert
from worldforge_ros.simulation.gazebo_pusht import Pose, block_of, pose_of
from worldforge_ros.simulation.pusht import JOINT_NAMES, PHYSICS_STEP, PushTSimulation

HEIGHT = 0.015


class StandIn(Node):
    """World and bridge in one."""

    def __init__(self) -> None:
        super().__init__("gazebo_bridge")
        self.world = PushTSimulation()
        self.world.set_state([256.0, 256.0, 120.0, 120.0, 0.5])
        self.target = self.world.position
        self.points: list[tuple[float, np.ndarray[Any, Any]]] = []
        self.steps = 0
        self.images = self.create_publisher(Image, "camera/top/image_raw", 10)
        self.joints = self.create_publisher(JointState, "gazebo_pusht/joint_states", 10)
        self.poses = self.create_publisher(TransformStamped, "model/tee/pose", 10)
        for topic in ("joint_trajectory", "gazebo_pusht/joint_trajectory"):
            self.create_subscription(JointTrajectory, topic, self.on_trajectory, 10)
        self.create_service(SetEntityPose, "/world/pusht/set_pose", self.on_pose)
        rate = float(os.environ.get("STAND_IN_RATE", "1.0"))
        self.create_timer(PHYSICS_STEP / rate, self.advance)

    @property
    def seconds(self) -> float:
        return self.steps * PHYSICS_STEP

    def on_trajectory(self, message: JointTrajectory) -> None:
        order = [list(message.joint_names).index(name) for name in JOINT_NAMES]
        self.points = [
            (
                self.seconds + convert.duration_to_seconds(point.time_from_start),
                np.array(point.positions)[order],
            )
            for point in message.points
        ]

    def on_pose(self, request: Any, response: Any) -> Any:
        place, turn = request.pose.position, request.pose.orientation
        pose = Pose(
            np.array([place.x, place.y, place.z]), np.array([turn.x, turn.y, turn.z, turn.w])
        )
        response.success = request.entity.name == "tee"
        if response.success:
            self.world.set_state([*self.world.state[:2], *block_of(pose)], self.world.velocity)
        return response

    def advance(self) -> None:
        while self.points:
            due, self.target = self.points[0]
            if due >= self.seconds:
                break
            self.points.pop(0)
        self.world.advance(self.target)
        self.steps += 1
        stamp = round(self.seconds * 1e9)
        self.joints.publish(
            JointState(
                header=convert.header(stamp, ""),
                name=list(reversed(JOINT_NAMES)),
                position=self.world.position[::-1].tolist(),
                velocity=self.world.velocity[::-1].tolist(),
                effort=[0.0, 0.0],
            )
        )
        if self.steps % 2 == 0:
            self.publish_poses(stamp)
        if self.steps % 10 == 0:
            self.images.publish(convert.image_to_msg(self.world.image(), stamp, "camera_top"))

    def publish_poses(self, stamp: int) -> None:
        for child in ("tee", "tee/link"):
            message = TransformStamped(header=convert.header(stamp, "pusht"), child_frame_id=child)
            if child == "tee":
                pose = pose_of(self.world.state[2:], HEIGHT)
                for axis, value in zip("xyz", pose.position.tolist(), strict=True):
                    setattr(message.transform.translation, axis, value)
                for axis, value in zip("xyzw", pose.quaternion.tolist(), strict=True):
                    setattr(message.transform.rotation, axis, value)
            self.poses.publish(message)


def main() -> None:
    """Until it is told to stop."""
    rclpy.init(args=sys.argv)
    node = StandIn()
    try:
        for _ in count():
            rclpy.spin_once(node, timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == "__main__":
    main()
