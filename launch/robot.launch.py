"""Any robot over real ROS 2: ``ros2 launch worldforge_ros robot.launch.py embodiment:=FILE
policy_path:=FOLDER [name:=value ...]``, in mock hardware unless ``sim:=false``.

What runs is described once, in ``worldforge_ros.bringup``; ``worldforge up robot`` starts the same.
"""

from launch import LaunchDescription

from worldforge_ros.ros.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the nodes for their values."""
    return describe("robot")
