"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ros_support import Ros

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


@pytest.fixture(autouse=True)
def no_real_time_priority() -> Iterator[None]:
    """What a test process starts inherits its priority: a library that takes SCHED_FIFO for itself
    would starve every test after it, and beside a robot the robot.
    """
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "this made the process a real-time one"


@pytest.fixture
def ros() -> Iterator[Ros]:
    """Real rclpy in a ROS domain of its own."""
    pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    from ros_support import Ros

    corner = Ros()
    yield corner
    corner.close()
