"""Nodes are found on this host alone unless the user says otherwise, and run in their enclave."""

from __future__ import annotations

import os
from typing import Any

import pytest

from worldforge_ros.bringup import TASKS, NodeSpec
from worldforge_ros.security import discover_locally, enclave_of


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "LOCALHOST"), ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}, "SUBNET")],
)
def test_the_range_is_local_unless_set(before: dict[str, str], after: str) -> None:
    environment = dict(before)
    discover_locally(environment)
    assert environment == {"ROS_AUTOMATIC_DISCOVERY_RANGE": after}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("before", "after"), [(None, "LOCALHOST"), ("SUBNET", "SUBNET")])
def test_launch_sets_it_before_any_node_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, before: str | None, after: str
) -> None:
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from launch import LaunchContext
    from launch.actions import OpaqueFunction, SetEnvironmentVariable

    from worldforge_ros.ros.launching import describe

    # launch writes into os.environ; monkeypatch puts back what was there.
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "to be put back")
    if before is None:
        monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE")
    else:
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", before)
    entities = describe(name).entities
    kinds = [type(entity) for entity in entities]
    assert kinds.index(SetEnvironmentVariable) < kinds.index(OpaqueFunction)
    entities[kinds.index(SetEnvironmentVariable)].visit(LaunchContext())
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == after


def test_launch_runs_each_node_in_its_enclave() -> None:
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from worldforge_ros.ros.launching import node

    action: Any = node(NodeSpec("safety_gate_node", "safety_gate"))
    # Some words are known only once it runs.
    command = ["".join(getattr(part, "text", "?") for part in words) for words in action.cmd]
    assert command[command.index("--enclave") + 1] == enclave_of("safety_gate")
