"""The planner: from the newest observation to one chosen chunk, over two services."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import Image

from worldforge_ros import ingest
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus, PlanReport
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.planning.cycle import Stage, Trace
from worldforge_ros.planning.parameters import declare
from worldforge_ros.planning.planner import RecedingPlanner
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.heartbeat import HeartbeatPublisher
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.ros.plan_drawing import PlanDrawing
from worldforge_ros.srv import ProposeActions, ScoreCandidates

STARTING = (
    ErrorCode.PROPOSE_UNAVAILABLE,
    ErrorCode.SCORE_UNAVAILABLE,
    ErrorCode.MODEL_NOT_READY,
)
"""What is normal until the models are loaded, and an error after the first chunk."""


class PlannerNode(Node):
    """Never waits: each call has a deadline, and a late reply belongs to an abandoned cycle."""

    def __init__(self) -> None:
        super().__init__("planner_node")
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        self._frame_id = parameters.text("frame_id", "base", "frame of the chunks")
        settings = declare(parameters)
        self._num_candidates = parameters.integer(
            "num_candidates", 32, "candidates asked of the policy", minimum=1, maximum=65536
        )
        self._horizon = parameters.integer(
            "horizon", 0, "actions in a candidate; 0: the policy's most", minimum=0, maximum=4096
        )
        camera = parameters.text(
            "debug_camera",
            "",
            "camera whose picture ~/debug_image is drawn into; empty: the world model's, or the "
            "first",
        )
        urdf = parameters.text(
            "urdf", "", "path of a URDF, to draw end effectors that are links; empty: none"
        )
        self._diagnostics = Diagnostics(self)
        self._drawing = PlanDrawing(
            self, self._diagnostics, self._embodiment, camera, Path(urdf) if urdf else None
        )
        self._planner = RecedingPlanner(
            self._embodiment,
            settings,
            lambda: int(self.get_clock().now().nanoseconds),
            self._on_trouble,
        )
        self._cycle = self._planner.cycle
        self._frames: list[ObservationMsg] = []
        self._messages: dict[int, ObservationMsg] = {}
        self._goal: Image | None = None
        self._pending: tuple[Client, Future] | None = None

        self._propose = self.create_client(ProposeActions, "propose_actions")
        self._score = self.create_client(ScoreCandidates, "score_candidates")
        self._chunks = self.create_publisher(ActionChunkMsg, "action_chunk/proposed", qos.CHUNK)
        self._reports = self.create_publisher(PlanReport, "plan_report", qos.REPORT)
        self.create_subscription(ObservationMsg, "observation", self._on_observation, qos.CHUNK)
        self.create_subscription(
            ActionChunkMsg, "action_chunk/approved", self._on_approved, qos.CHUNK
        )
        self.create_subscription(GateStatus, "safety_gate/status", self._on_gate, qos.LATCHED)
        if "supplied" in settings.extra_sources:
            self.create_subscription(
                ActionChunkMsg, "action_chunk/candidate", self._on_supplied, qos.CHUNK
            )
        if settings.seam.mode == "temporal_ensemble":
            self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
        # Deadlines run in wall time: they must pass also when simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.02, self._expire, clock=steady)
        self._heartbeat = HeartbeatPublisher(self)

    def _on_trouble(self, error: WorldForgeError) -> None:
        if error.code is ErrorCode.HORIZON_BEYOND_DRIFT:
            # Said once, and no failure: what is scored is what can be believed.
            self.get_logger().warning(str(error))
            self._diagnostics.set(beyond_drift=error.message)
            return
        self._diagnostics.error(error)

    def _on_gate(self, message: GateStatus) -> None:
        self._drawing.gate(message)
        self._planner.gate(
            message.mode == GateStatus.ARMED,
            message.epoch,
            message.verdict_sequence,
            message.verdict == "REJECTED",
        )

    def _on_approved(self, message: ActionChunkMsg) -> None:
        try:
            self._planner.approved(ingest.chunk_from_msg(message))
        except Exception as error:
            self._diagnostics.unexpected(error, "reading an approved chunk")

    def _on_supplied(self, message: ActionChunkMsg) -> None:
        try:
            self._planner.supply(ingest.chunk_from_msg(message))
        except Exception as error:
            self._diagnostics.unexpected(error, "reading a supplied chunk")

    def _on_goal(self, message: Image) -> None:
        # A goal that is only repeated is not a new one.
        if self._goal is not None and self._goal.data == message.data:
            return
        self._goal = message
        self._planner.new_goal()

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            observation = ingest.observation_from_msg(message, self._embodiment)
            due = self._planner.observed(observation)
            self._remember(observation.stamp, message)
            if due:
                self._begin()
        except Exception as error:
            self._diagnostics.unexpected(error, "starting a cycle")

    def _remember(self, stamp: int, message: ObservationMsg) -> None:
        self._messages[stamp] = message
        held = self._planner.history.stamps()
        self._messages = {key: self._messages[key] for key in held if key in self._messages}

    def _begin(self) -> None:
        windows = self._planner.windows()
        if windows is None:
            return
        proposing, scoring = ([self._messages[item.stamp] for item in part] for part in windows)
        # What is scored begins where the cycle does, however long it has taken by then.
        self._frames = scoring
        ticket = self._planner.begin(time.monotonic())
        if self._cycle.stage is Stage.SCORING:
            self._ask_for_costs()
            return
        request = ProposeActions.Request(
            history=proposing,
            num_candidates=self._num_candidates,
            mode="predict_chunk",
            horizon=self._horizon,
            embodiment_tag=self._embodiment.name,
            seed=self._planner.proposal_seed(ticket),
        )
        self._call(self._propose, request, ErrorCode.PROPOSE_UNAVAILABLE, self._on_proposal)

    def _call(self, client: Client, request: Any, absent: ErrorCode, then: Any) -> None:
        ticket = self._cycle.ticket
        if not client.service_is_ready():
            error = mismatch(
                absent, f"service {client.srv_name}", found="absent", expected="a running server"
            )
            self._report(self._cycle.failed(ticket, error, time.monotonic()))
            return
        future = client.call_async(request)
        self._pending = (client, future)
        future.add_done_callback(partial(self._reply, then, ticket))

    def _reply(self, then: Any, ticket: int, future: Future) -> None:
        if future.cancelled() or ticket != self._cycle.ticket:
            return
        now = time.monotonic()
        try:
            response = future.result()
            if response.success:
                self._report(then(ticket, response, now))
                return
            error = WorldForgeError(_code(response.error_code), response.message)
        except Exception as unexpected:
            error = self._diagnostics.unexpected(unexpected, "reading a reply")
        self._report(self._cycle.failed(ticket, error, now))

    def _on_proposal(self, ticket: int, response: Any, now: float) -> Trace | None:
        candidates = convert.tensor_from_msg(response.candidates, "candidates")
        if candidates.ndim != 4 or candidates.shape[0] != 1:
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                "proposed candidates.shape",
                found=list(candidates.shape),
                expected="(1, samples, horizon, joints)",
            )
        if candidates.shape[3] != len(self._embodiment.joints):
            raise mismatch(
                ErrorCode.ACTION_DIM_MISMATCH,
                "proposed candidates.shape",
                found=list(candidates.shape),
                expected=f"(1, samples, horizon, {len(self._embodiment.joints)})",
            )
        if tuple(response.joint_names) != self._embodiment.joint_names:
            raise mismatch(
                ErrorCode.JOINT_NAMES_MISMATCH,
                "proposed joint_names",
                found=list(response.joint_names),
                expected=list(self._embodiment.joint_names),
            )
        metadata = convert.from_key_values(response.metadata, "metadata")
        self._diagnostics.set(policy_dropped=metadata.get("dropped", ""))
        trace = self._cycle.proposed(
            ticket,
            candidates[0],
            convert.duration_to_seconds(response.step),
            metadata.get("model_id", ""),
            float(metadata.get("model_latency_s", "0")),
            now,
        )
        if self._cycle.stage is Stage.SCORING:
            self._ask_for_costs()
        return trace

    def _ask_for_costs(self) -> None:
        candidates = self._planner.candidates_to_score()
        request = ScoreCandidates.Request(
            history=self._frames,
            candidates=convert.tensor_to_msg(candidates[np.newaxis]),
            action_space=ScoreCandidates.Request.EMBODIMENT,
        )
        self._call(self._score, request, ErrorCode.SCORE_UNAVAILABLE, self._on_scores)

    def _on_scores(self, ticket: int, response: Any, now: float) -> Trace | None:
        metadata = convert.from_key_values(response.metadata, "metadata")
        trace = self._cycle.scored(
            ticket,
            response.scores,
            metadata.get("model_id", ""),
            float(metadata.get("model_latency_s", "0")),
            now,
        )
        if self._cycle.stage is Stage.SCORING:
            self._ask_for_costs()
        return trace

    def _expire(self) -> None:
        trace = self._cycle.expire(time.monotonic())
        if trace is None:
            return
        if self._pending is not None:
            client, future = self._pending
            client.remove_pending_request(future)
            future.cancel()
        self._report(trace)

    def _report(self, trace: Trace | None) -> None:
        if trace is None:
            return
        self._pending = None
        chunk = self._planner.concluded(trace)
        if chunk is not None:
            self._chunks.publish(convert.chunk_to_msg(chunk, self._frame_id))
        placed = self._planner.placement
        arrived = placed.cycle == trace.cycle
        if trace.error is None:
            self._diagnostics.ok()
        elif trace.error.code in STARTING and not self._planner.sequence:
            self._diagnostics.waiting(trace.error)
        else:
            self._diagnostics.error(trace.error)
        self._diagnostics.set(cycles=trace.cycle, deadline_misses=self._cycle.deadline_misses)
        self._drawing.ended(trace)
        choice = trace.choice
        candidates = trace.candidates
        self._reports.publish(
            PlanReport(
                header=convert.header(self.get_clock().now().nanoseconds, self._frame_id),
                cycle=trace.cycle,
                outcome=trace.outcome,
                message="" if trace.error is None else trace.error.message,
                planner=trace.planner,
                observation_stamp=convert.ns_to_stamp(trace.observation.stamp),
                num_candidates=candidates.shape[0],
                sources=list(trace.sources),
                costs=trace.costs.tolist(),
                reachable=trace.reachable.tolist(),
                chosen=-1 if choice is None else choice.index,
                margin=math.nan if choice is None else choice.margin,
                sequence=0 if chunk is None else chunk.sequence,
                candidates=convert.tensor_to_msg(candidates[np.newaxis]),
                stamp=convert.ns_to_stamp(trace.stamp),
                step=convert.seconds_to_duration(trace.step),
                seed=self._planner.proposal_seed(trace.cycle),
                arrival=convert.ns_to_stamp(placed.arrival if arrived else 0),
                executing=placed.executing if arrived else 0,
                observation_latency=convert.seconds_to_duration(trace.observation_latency),
                propose_latency=convert.seconds_to_duration(trace.propose_latency),
                score_latency=convert.seconds_to_duration(trace.score_latency),
                plan_latency=convert.seconds_to_duration(trace.plan_latency),
                propose_model_latency=convert.seconds_to_duration(trace.propose_model_latency),
                score_model_latency=convert.seconds_to_duration(trace.score_model_latency),
                deadline_misses=self._cycle.deadline_misses,
            )
        )


def _code(text: str) -> ErrorCode:
    return ErrorCode(text) if text in ErrorCode.__members__ else ErrorCode.INTERNAL


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(PlannerNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
