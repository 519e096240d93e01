"""Modules that need ROS, for commands that also run without."""

from __future__ import annotations

import importlib
import os
from typing import Any

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.security import discover_locally


def ros_module(name: str) -> Any:
    """Import the module ``name``, which imports rclpy, before a command takes part in ROS.

    Discovery is limited to this host, as of ``worldforge up``; a user who wants a network says so.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` where rclpy or a message package is absent.
    """
    discover_locally(os.environ)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            f"python module {error.name}",
            found="absent",
            expected="a sourced workspace: . ./env.sh",
        ) from error
