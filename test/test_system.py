"""All six processes of a task with the shipped checkpoints over real DDS, and what happens when
one dies.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from ros_support import NodeProcess, Ros
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool

from worldforge_ros.bringup import TASKS, bring_up
from worldforge_ros.msg import ActionChunk, GateStatus, PlanReport
from worldforge_ros.ros import qos

START = 120.0
"""Seconds until two models are loaded on a busy machine."""


class System:
    """Every node of the bring-up, without the one that arms and records."""

    def __init__(self, ros: Ros, stack: ExitStack, task: str) -> None:
        self.ros = ros
        self.reports: list[PlanReport] = ros.record(PlanReport, "plan_report", qos.REPORT)
        self.status: list[GateStatus] = ros.record(GateStatus, "safety_gate/status", qos.LATCHED)
        self.approved: list[ActionChunk] = ros.record(
            ActionChunk, "action_chunk/approved", qos.CHUNK
        )
        self.joints: list[JointState] = ros.record(
            JointState, "joint_states", qos.sensor("reliable", depth=50)
        )
        self.processes: dict[str, NodeProcess] = {}
        for spec in bring_up(TASKS[task], {"arm": "false", "seed": "5"}):
            process = ros.process(
                spec.executable, "-r", f"__node:={spec.name}", **dict(spec.parameters)
            )
            self.processes[spec.name] = stack.enter_context(process)

    def arm(self) -> None:
        self.ros.wait_until(
            lambda: any(report.outcome == "OK" for report in self.reports), START, "a plan"
        )
        reply: Any = self.ros.call(SetBool, "safety_gate/enable", SetBool.Request(data=True))
        assert reply.success, reply.message
        start = self.position()
        self.ros.wait_until(lambda: len(self.approved) >= 2, 30.0, "approved chunks")
        self.ros.wait_until(lambda: np.abs(self.position() - start).max() > 0.01, 30.0, "motion")

    def position(self) -> npt.NDArray[np.float64]:
        return np.array(self.joints[-1].position)

    def speed(self) -> float:
        return float(np.abs(self.joints[-1].velocity).max())

    def mode(self) -> str:
        return str(self.status[-1].mode_name)


def test_alohas_arms_move_by_approved_chunks(ros: Ros) -> None:
    pytest.importorskip("gym_aloha", reason="gym-aloha is missing: set up with make setup")
    with ExitStack() as stack:
        system = System(ros, stack, "aloha")
        assert "aloha_sim" in system.processes
        system.arm()
        chunk = system.approved[0]
        assert chunk.embodiment == "aloha"
        assert list(chunk.joint_names) == list(system.joints[0].name)
        assert chunk.step.nanosec == 20_000_000
        for name, process in system.processes.items():
            assert process.process.poll() is None, f"{name} died"


def test_a_killed_policy_leaves_the_robot_holding(ros: Ros) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    with ExitStack() as stack:
        system = System(ros, stack, "pusht")
        assert len(system.processes) == 6
        system.arm()
        system.processes["policy_node"].process.send_signal(signal.SIGKILL)
        seen = len(system.reports)
        ros.wait_until(
            lambda: any(r.outcome.startswith("PROPOSE_") for r in system.reports[seen:]),
            15.0,
            "a report that the policy is gone",
        )
        ros.wait_until(lambda: system.mode() == "HOLDING", 15.0, "hold")
        ros.wait_until(lambda: system.speed() < 1e-3, 10.0, "standstill")
        place = system.position()
        ros.spin_for(1.0)
        np.testing.assert_allclose(system.position(), place, atol=1e-3)
        gone = system.processes.pop("policy_node")
        assert gone.process.poll() is not None
        for name, process in system.processes.items():
            assert process.process.poll() is None, f"{name} died with the policy"
