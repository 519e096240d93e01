"""A bring-up as the launch system sees it; the files in ``launch/`` name the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.ros_adapters import get_ros_node

from worldforge_ros.bringup import (
    REPLAY_ARGUMENTS,
    Argument,
    NodeSpec,
    Playback,
    ProgramSpec,
    bring_up,
    find_task,
    programs,
    replay,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import Heartbeat
from worldforge_ros.ros import qos
from worldforge_ros.security import DISCOVERY_RANGE, LOCAL_DISCOVERY, enclave_of
from worldforge_ros.simulation import gazebo_run

READY_PERIOD = 0.2
"""Seconds between two looks whether the nodes are ready for a bag."""


def describe(name: str) -> LaunchDescription:
    """The arguments of the task called ``name``, then the nodes for their values.

    Discovery is limited to this host unless the environment says how far it goes.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when there is no such task.
    """
    task = find_task(name)

    def actions(values: dict[str, str]) -> list[Action]:
        others = programs(task, values)
        if others:
            gazebo_run.check_installed(values["gazebo"], os.environ)
        return [
            *(program(spec) for spec in others),
            *(node(spec) for spec in bring_up(task, values)),
        ]

    return _description(task.arguments, actions)


def describe_replay() -> LaunchDescription:
    """The arguments of a replay, then the live nodes, and ``ros2 bag play`` once they are ready;
    its end is the end of the launch.
    """

    def actions(values: dict[str, str]) -> list[Action]:
        specs, playback = replay(values)
        return [*(node(spec) for spec in specs), _Play(playback).waiting()]

    return _description(REPLAY_ARGUMENTS, actions)


def _description(
    table: Sequence[Argument], actions: Callable[[dict[str, str]], list[Action]]
) -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices or None,
        )
        for argument in table
    ]
    local = SetEnvironmentVariable(
        DISCOVERY_RANGE, EnvironmentVariable(DISCOVERY_RANGE, default_value=LOCAL_DISCOVERY)
    )

    def described(context: LaunchContext) -> list[Action]:
        return actions({a.name: LaunchConfiguration(a.name).perform(context) for a in table})

    return LaunchDescription([*arguments, local, OpaqueFunction(function=described)])


class _Play:
    """Plays a bag once every node that it waits for has been heard: models take their time to
    load, and what is played before nobody uses.
    """

    def __init__(self, playback: Playback) -> None:
        self._playback = playback
        self._missing = set(playback.nodes)
        self._listens = False

    def waiting(self) -> Action:
        """The action that looks, and looks again later."""
        return TimerAction(period=READY_PERIOD, actions=[OpaqueFunction(function=self._look)])

    def _look(self, context: LaunchContext) -> list[Action]:
        if not self._listens:
            self._listens = True
            get_ros_node(context).create_subscription(
                Heartbeat,
                self._playback.heartbeat,
                lambda message: self._missing.discard(message.node),
                qos.HEARTBEAT,
            )
        if self._missing:
            return [self.waiting()]
        play = ExecuteProcess(cmd=list(self._playback.argv), output="screen", on_exit=self._ended)
        return [play]

    @staticmethod
    def _ended(event: ProcessExited, context: LaunchContext) -> Action | None:
        if context.is_shutdown:
            return None
        if event.returncode == 0:
            return Shutdown(reason="the bag has been played")
        raise WorldForgeError(
            ErrorCode.CHILD_DIED, f"ros2 bag play ended with status {event.returncode}"
        )


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
        package=spec.package,
        executable=spec.executable,
        arguments=list(spec.arguments),
        name=spec.name,
        namespace=spec.namespace,
        parameters=[dict(spec.parameters)],
        remappings=list(spec.remappings),
        ros_arguments=["--enclave", enclave_of(spec.name)],
        additional_env=dict(spec.env),
        output="screen",
        on_exit=ended,
    )


def program(spec: ProgramSpec) -> ExecuteProcess:
    """One process without a node as a launch action."""

    def ended(event: ProcessExited, context: LaunchContext) -> Action | None:
        if context.is_shutdown:
            return None
        raise WorldForgeError(
            ErrorCode.CHILD_DIED, f"{spec.name} ended with status {event.returncode}"
        )

    return ExecuteProcess(
        cmd=list(spec.argv),
        name=spec.name,
        additional_env=dict(spec.env),
        output="screen",
        on_exit=ended,
    )
