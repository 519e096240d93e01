"""Print docs/parameters.md: every parameter of every node, from what the nodes declare themselves.

Usage: python scripts/parameter_reference.py > docs/parameters.md
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """# Parameters

Written by `python scripts/parameter_reference.py > docs/parameters.md`; a test compares it with the
nodes.
They are set at start, with `-p name:=value` or a parameter file, and are read-only. Those of the
gate's checks can be changed while the gate is not armed.
"""


def node_classes() -> dict[str, type[Node]]:
    """The node class of every program in ``executables.txt``."""
    classes = {}
    for line in (ROOT / "executables.txt").read_text().splitlines():
        name, _, target = line.partition(" = ")
        if ".nodes." not in target:
            continue
        module = importlib.import_module(target.split(":")[0])
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Node)
            and value.__module__ == module.__name__
        ]
        classes[name] = found[0]
    return classes


def bounds(descriptor: ParameterDescriptor) -> str:
    """Allowed values in words."""
    ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
    if ranges:
        return f"{ranges[0].from_value:g} to {ranges[0].to_value:g}"
    return descriptor.additional_constraints


def rows(node: Node) -> list[str]:
    """One table row a parameter of ``node``."""
    lines = []
    for name in sorted(node._parameters):
        if name.startswith("qos_overrides") or name in (
            "use_sim_time",
            "start_type_description_service",
        ):
            continue
        parameter: Parameter = node.get_parameter(name)
        descriptor = node.describe_parameter(name)
        value = parameter.value
        default = (
            f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""
        )
        lines.append(f"| `{name}` | {default} | {bounds(descriptor)} | {descriptor.description} |")
    return lines


def main() -> None:
    """Print the page."""
    os.environ["ROS_DOMAIN_ID"] = str(100 + os.getpid() % 100)
    rclpy.init()
    parts = [INTRODUCTION]
    for name, node_class in node_classes().items():
        node = node_class()
        parts.append(f"## {name}\n")
        parts.append("| parameter | default | allowed | meaning |\n| --- | --- | --- | --- |")
        parts.append("\n".join(rows(node)) + "\n")
        node.destroy_node()
    rclpy.shutdown()
    print("\n".join(parts), end="")


if __name__ == "__main__":
    main()
