"""PushT over real ROS 2: ``ros2 launch worldforge_ros pusht.launch.py [name:=value ...]``.

What runs is described once, in ``worldforge_ros.bringup``; ``worldforge up pusht`` starts the same.
"""

from launch import LaunchDescription

from worldforge_ros.ros.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the nodes for their values."""
    return describe("pusht")
