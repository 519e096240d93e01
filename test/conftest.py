"""Fixtures for every test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def command_line(ros: Ros) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``worldforge`` with the given words in the test's domain; killed at its end."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "worldforge_ros.cli", *words]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(ros.domain), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)
