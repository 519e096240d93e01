"""A bring-up as the launch system sees it; the files in ``launch/`` name the task."""

from __future__ import annotations

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node

from worldforge_ros.bringup import NodeSpec, Task, bring_up, find_task
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import PACKAGE
from worldforge_ros.security import DISCOVERY_RANGE, LOCAL_DISCOVERY, enclave_of


def describe(name: str) -> LaunchDescription:
    """The arguments of the task called ``name``, then the nodes for their values.

    Discovery is limited to this host unless the environment says how far it goes.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when there is no such task.
    """
    task = find_task(name)
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices or None,
        )
        for argument in task.arguments
    ]
    local = SetEnvironmentVariable(
        DISCOVERY_RANGE, EnvironmentVariable(DISCOVERY_RANGE, default_value=LOCAL_DISCOVERY)
    )
    return LaunchDescription([*arguments, local, OpaqueFunction(function=_nodes, args=[task])])


def _nodes(context: LaunchContext, task: Task) -> list[Node]:
    """The nodes for the values that the arguments have now."""
    values = {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in task.arguments
    }
    return [node(spec) for spec in bring_up(task, values)]


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
        ros_arguments=["--enclave", enclave_of(spec.name)],
        additional_env=dict(spec.env),
        output="screen",
        on_exit=ended,
    )
