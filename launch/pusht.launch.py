"""PushT over real ROS 2: ``ros2 launch worldforge_ros pusht.launch.py [name:=value ...]``.

What runs is described once, in ``worldforge_ros.bringup``; ``worldforge up pusht`` starts the same.
"""

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from worldforge_ros.bringup import PUSHT_ARGUMENTS, NodeSpec, pusht_bringup
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import PACKAGE


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the nodes for their values."""
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices or None,
        )
        for argument in PUSHT_ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes for the values that the arguments have now."""
    values = {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in PUSHT_ARGUMENTS
    }
    return [node(spec) for spec in pusht_bringup(values)]


def node(spec: NodeSpec) -> Node:
    """One node of the description as a launch action."""

    def ended(event: ProcessExited, context: LaunchContext) -> Action | None:
        if context.is_shutdown:
            return None
        if spec.exit_ends_all and event.returncode == 0:
            return Shutdown(reason=f"{spec.name} is done")
        # An exception makes launch stop the rest and gives it a non-zero exit status.
        raise WorldForgeError(
            ErrorCode.CHILD_DIED, f"{spec.full_name} ended with status {event.returncode}"
        )

    return Node(
        package=PACKAGE,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        parameters=[dict(spec.parameters)],
        remappings=list(spec.remappings),
        additional_env=dict(spec.env),
        output="screen",
        on_exit=ended,
    )
