"""One whole episode over real DDS: every node but the two models, which stand-ins answer for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
pytest.importorskip("worldforge_ros.msg", reason="messages are not built: set up with make setup")

from rclpy.node import Node

from worldforge_ros.bringup import TASKS, NodeSpec, bring_up
from worldforge_ros.msg import GateStatus
from worldforge_ros.ros import convert, qos
from worldforge_ros.srv import ProposeActions, ScoreCandidates

if TYPE_CHECKING:
    from ros_support import NodeProcess, Ros

HORIZON = 15
STEP = 0.1


class Models(Node):
    """Answers for policy and world model: slow straight lines, cheap near the middle."""

    def __init__(self, ros: Ros) -> None:
        super().__init__("models", context=ros.context)
        self.score_error = ""
        self._random = np.random.default_rng(0)
        self.create_service(ProposeActions, "propose_actions", self._propose)
        self.create_service(ScoreCandidates, "score_candidates", self._score)

    def _propose(self, request: Any, response: Any) -> Any:
        start = np.array(request.history[-1].state.position)
        moves = self._random.uniform(-0.1, 0.1, (request.num_candidates, 2))
        goals = np.clip(start + moves, 0.0, 0.5)
        share = np.linspace(1 / HORIZON, 1, HORIZON)[None, :, None]
        response.candidates = convert.tensor_to_msg(
            (start + (goals - start)[:, None] * share)[np.newaxis]
        )
        response.joint_names = ["pusher_x", "pusher_y"]
        response.step = convert.seconds_to_duration(STEP)
        response.metadata = convert.key_values({"model_latency_s": "0.001"})
        response.success = True
        return response

    def _score(self, request: Any, response: Any) -> Any:
        if self.score_error:
            response.success = False
            response.error_code, response.message = self.score_error, "the goal is missing"
            return response
        ends = convert.tensor_from_msg(request.candidates, "candidates")[0, :, -1]
        costs = np.linalg.norm(ends - 0.256, axis=1)
        response.scores = costs.tolist()
        response.best_index = int(costs.argmin())
        response.lower_is_better = response.success = True
        response.metadata = convert.key_values({"model_latency_s": "0.001"})
        return response


def specs(folder: Path, task: str = "pusht", **arguments: str) -> dict[str, NodeSpec]:
    """What is brought up, less the models."""
    given = {"record": "true", "num_candidates": "4", "output_dir": str(folder), **arguments}
    return {
        spec.name: spec
        for spec in bring_up(TASKS[task], given)
        if spec.name not in ("policy_node", "score_node")
    }


@contextlib.contextmanager
def running(ros: Ros, *nodes: NodeSpec, **changed: float) -> Iterator[NodeProcess]:
    """Start ``nodes``; gives the last one, the episode, whose parameters can be changed."""
    with contextlib.ExitStack() as stack:
        for spec in nodes:
            parameters = dict(spec.parameters)
            if spec.name == "episode_node":
                # The hashes are another test's subject; no checkpoint is needed here.
                del parameters["policy_path"], parameters["model_path"]
                parameters.update(changed)
            if spec.name == "safety_gate":
                # The test plays the policy, and it has no heartbeat.
                parameters["heartbeats"] = "planner_node"
            name = ("-r", f"__node:={spec.name}")
            process = stack.enter_context(ros.process(spec.executable, *name, **parameters))
        yield process


def finished(ros: Ros, episode: NodeProcess, timeout: float) -> tuple[int, str]:
    """Exit status and output of the episode; the stand-ins answer meanwhile."""
    ros.wait_until(lambda: episode.process.poll() is not None, timeout, "the end of the episode")
    return episode.finish()


@pytest.mark.parametrize("rate", ["1.0", "2.0"])
def test_an_episode_is_armed_recorded_and_reported(ros: Ros, tmp_path: Path, rate: str) -> None:
    ros.add(Models(ros))
    modes: list[GateStatus] = ros.record(GateStatus, "safety_gate/status", qos.LATCHED)
    nodes = specs(tmp_path / "run", duration="3.0", seed="4", rate=rate)
    with running(ros, *nodes.values()) as process:
        status, output = finished(ros, process, 90.0)
        ros.wait_until(lambda: modes[-1].mode == GateStatus.DISARMED, 5.0, "a disarmed gate")
    assert status == 0, output
    assert "gate armed" in output
    assert "duration over" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    counts = summary["counts"]
    assert summary["seed"] == 4
    assert summary["duration"] == pytest.approx(3.0, abs=0.5)
    assert counts["observations"] >= 20
    assert counts["plans"] >= 3
    assert counts["chunks_proposed"] == 4 * counts["plans_by_outcome"]["OK"]
    assert counts["chunks_scored"] == counts["chunks_proposed"]
    assert counts["chunks_approved"] >= 2
    assert counts["executed_steps"] >= 10
    assert summary["latency_ms"]["propose_model"]["p50"] == 1.0
    assert summary["latency_ms"]["capture_to_command"]["p50"] > 0
    assert {GateStatus.DISARMED, GateStatus.ARMED} <= {status.mode for status in modes}
    assert (tmp_path / "run" / "episode.gif").stat().st_size > 10_000
    assert "Verdicts" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "planner"), [("pusht", "scored"), ("aloha", "scored"), ("aloha", "first")]
)
def test_what_does_not_answer_is_named(ros: Ros, tmp_path: Path, task: str, planner: str) -> None:
    lonely = specs(tmp_path, task, planner=planner)["episode_node"]
    with running(ros, lonely, startup_timeout=1.5) as process:
        status, errors = finished(ros, process, 30.0)
    assert status == 1
    assert "EPISODE_INCOMPLETE" in errors
    for name in ("propose_actions", "safety_gate/status", f"{task}_sim/reset"):
        assert name in errors
    assert ("score_candidates" in errors) == (planner == "scored")
    assert not list(tmp_path.iterdir())


def test_a_planner_that_never_succeeds_is_quoted_and_the_gate_stays_disarmed(
    ros: Ros, tmp_path: Path
) -> None:
    models = Models(ros)
    models.score_error = "GOAL_MISSING"
    ros.add(models)
    modes: list[GateStatus] = ros.record(GateStatus, "safety_gate/status", qos.LATCHED)
    nodes = specs(tmp_path).values()
    with running(ros, *nodes, startup_timeout=8.0) as process:
        status, errors = finished(ros, process, 60.0)
    assert status == 1
    assert "GOAL_MISSING: the goal is missing" in errors
    assert {status.mode for status in modes} == {GateStatus.DISARMED}
