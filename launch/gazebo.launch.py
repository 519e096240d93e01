"""PushT in Gazebo: ``ros2 launch worldforge_ros gazebo.launch.py [name:=value ...]``.

What runs is described once, in ``worldforge_ros.bringup``; ``worldforge up gazebo`` starts the
same.
"""

from launch import LaunchDescription

from worldforge_ros.ros.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Arguments, then Gazebo, its bridge and the nodes for their values."""
    return describe("gazebo")
