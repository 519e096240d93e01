"""A bag through the live nodes: ``ros2 launch worldforge_ros replay.launch.py bag:=PATH
[name:=value ...]``. The nodes run in the time of ``ros2 bag play --clock``; nothing is armed.

What runs is described once, in ``worldforge_ros.bringup``. To evaluate a recording, exactly and
without ROS, use ``worldforge replay``.
"""

from launch import LaunchDescription

from worldforge_ros.ros.launching import describe_replay


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the nodes for their values, then the bag."""
    return describe_replay()
