"""The planner: from the newest observation to one chosen chunk, over two services."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus, PlanReport
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import NANOSECONDS, Observation, ObservationHistory
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.cycle import CycleConfig, PlanningCycle, Stage, Trace
from worldforge_ros.planning.handover import ArrivalEstimate, Handover
from worldforge_ros.planning.seam import (
    MOST_COEFFICIENT,
    MOST_DURATION,
    SEAMS,
    Seam,
    SeamSettings,
)
from worldforge_ros.planning.search import (
    SOURCES,
    CrossEntropySearch,
    SearchSettings,
    search_bridge,
)
from worldforge_ros.planning.selection import PLANNERS, needs_costs
from worldforge_ros.planning.sources import Offer, Supplied, check_extra_sources, offer, sent
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.heartbeat import HeartbeatPublisher
from worldforge_ros.ros.parameters import Parameters
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
        self._planner = parameters.text(
            "planner", "scored", "how a candidate is chosen", choices=PLANNERS
        )
        self._source = parameters.text(
            "source",
            "policy",
            "where candidates come from: the policy, a cross-entropy search over the world model, "
            "or a search that starts from the policy's",
            choices=SOURCES,
        )
        self._num_candidates = parameters.integer(
            "num_candidates", 32, "candidates asked of the policy", minimum=1, maximum=65536
        )
        self._horizon = parameters.integer(
            "horizon", 0, "actions in a candidate; 0: the policy's most", minimum=0, maximum=4096
        )
        replan_period = parameters.number(
            "replan_period", 0.5, "seconds between two cycles", minimum=0.02, maximum=60.0
        )
        propose_timeout = parameters.number(
            "propose_timeout", 2.0, "seconds to wait for candidates", minimum=0.01, maximum=600.0
        )
        score_timeout = parameters.number(
            "score_timeout",
            2.0,
            "seconds to wait for costs, of all iterations of a search together",
            minimum=0.01,
            maximum=600.0,
        )
        self._search = SearchSettings(
            samples=parameters.integer(
                "search_samples",
                128,
                "samples in an iteration of a search",
                minimum=2,
                maximum=65536,
            ),
            iterations=parameters.integer(
                "search_iterations", 6, "iterations of a search", minimum=1, maximum=1000
            ),
            elites=parameters.integer(
                "search_elites", 16, "samples that an iteration keeps", minimum=2, maximum=65536
            ),
            blocks=parameters.integer(
                "search_blocks", 5, "action blocks in a candidate of cem", minimum=1, maximum=1000
            ),
            spread=parameters.number(
                "search_spread",
                1.0,
                "what a search starts with: cem times search_std, cem+policy times the standard "
                "deviation of the policy's cheapest candidates",
                minimum=0.001,
                maximum=100.0,
            ),
        )
        search_std = parameters.numbers(
            "search_std",
            [0.0],
            "standard deviation of a relative action, or of a set-point, per joint in m or rad, "
            "that a search draws with; [0.0]: the embodiment file's",
        )
        seam = SeamSettings()
        self._seam = Seam(
            SeamSettings(
                parameters.text(
                    "seam", seam.mode, "how a new chunk takes over from the executing one", SEAMS
                ),
                parameters.number(
                    "seam_duration",
                    seam.duration,
                    "seconds that a blend lasts",
                    minimum=0.0,
                    maximum=MOST_DURATION,
                ),
                parameters.number(
                    "ensemble_coefficient",
                    seam.coefficient,
                    "of a temporal ensemble: prediction i from the oldest weighs exp(-this * i)",
                    minimum=-MOST_COEFFICIENT,
                    maximum=MOST_COEFFICIENT,
                ),
            )
        )
        self._extra_sources = check_extra_sources(
            parameters.texts(
                "extra_sources",
                "candidates beside those of the source: any of hold, tail, supplied",
            )
        )
        self._supplied = Supplied(
            self._embodiment,
            parameters.number(
                "supplied_max_age",
                0.5,
                "seconds that a chunk on action_chunk/candidate is offered",
                minimum=0.01,
                maximum=600.0,
            ),
        )
        self._seed = parameters.integer(
            "seed",
            -1,
            "seed of the first cycle's candidates, then +1; -1: fresh",
            minimum=-1,
            maximum=2**31 - 1,
        )
        self._policy_history = parameters.integer(
            "policy_history", 2, "observations that the policy looks at", minimum=1, maximum=64
        )
        self._diagnostics = Diagnostics(self)
        self._rng = np.random.default_rng(None if self._seed < 0 else self._seed)
        self._bridge = None
        if self._source != "policy":
            self._bridge = search_bridge(self._embodiment, search_std if any(search_std) else ())
        spec = self._embodiment.scoring if needs_costs(self._planner) else None
        config = CycleConfig(
            self._planner,
            self._source,
            self._embodiment.policy.step if spec is None else spec.step,
            replan_period,
            propose_timeout,
            score_timeout,
        )
        self._cycle = PlanningCycle(config, self._hand_over, self._make_search, self._rng)
        self._arrival = (0, 0)
        self._frames: list[ObservationMsg] = []
        scored = 0.0 if spec is None else spec.history * spec.block_duration
        self._history = ObservationHistory(duration=2.0 + scored)
        self._messages: dict[int, ObservationMsg] = {}
        self._epoch = 0
        self._plan_epoch = 0
        self._sequence = 0
        self._executing: ActionChunk | None = None
        self._refused = 0
        self._goal: Image | None = None
        self._arrivals = ArrivalEstimate()
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
        if "supplied" in self._extra_sources:
            self.create_subscription(
                ActionChunkMsg, "action_chunk/candidate", self._on_supplied, qos.CHUNK
            )
        if self._seam.settings.mode == "temporal_ensemble":
            self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
        # Deadlines run in wall time: they must pass also when simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.02, self._expire, clock=steady)
        self._heartbeat = HeartbeatPublisher(self)

    def _on_gate(self, message: GateStatus) -> None:
        refused = message.verdict == "REJECTED" and message.verdict_sequence != self._refused
        if refused:
            self._refused = message.verdict_sequence
        if refused or message.epoch != self._epoch or message.mode != GateStatus.ARMED:
            self._seam.forget()
        self._epoch = message.epoch
        executing = self._executing
        # Approvals come on another topic: a status may be from before the last one.
        earlier = (
            executing is not None
            and message.epoch == executing.epoch
            and message.verdict_sequence < executing.sequence
        )
        if message.mode != GateStatus.ARMED and not earlier:
            self._executing = None

    def _on_approved(self, message: ActionChunkMsg) -> None:
        try:
            self._executing = convert.chunk_from_msg(message)
            self._seam.approved(message.sequence)
        except Exception as error:
            self._diagnostics.unexpected(error, "reading an approved chunk")

    def _on_supplied(self, message: ActionChunkMsg) -> None:
        try:
            chunk = convert.chunk_from_msg(message)
            self._supplied.take(chunk, self.get_clock().now().nanoseconds)
        except Exception as error:
            self._diagnostics.unexpected(error, "reading a supplied chunk")

    def _on_goal(self, message: Image) -> None:
        # A goal that is only repeated is not a new one.
        if self._goal is not None and self._goal.data == message.data:
            return
        self._goal = message
        self._seam.forget(observed_before=self.get_clock().now().nanoseconds)

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            observation = convert.observation_from_msg(message, self._embodiment)
            self._history.add(observation)
            self._remember(observation.stamp, message)
            if self._cycle.due(observation.stamp):
                self._begin()
        except Exception as error:
            self._diagnostics.unexpected(error, "starting a cycle")

    def _remember(self, stamp: int, message: ObservationMsg) -> None:
        self._messages[stamp] = message
        held = self._history.stamps()
        self._messages = {key: self._messages[key] for key in held if key in self._messages}

    def _messages_of(self, count: int, period: float) -> list[ObservationMsg]:
        tolerance = self._embodiment.observation.tolerance
        window = self._history.window(count, period, tolerance)
        return [self._messages[item.stamp] for item in window]

    def _begin(self) -> None:
        # A window that is not full yet is no failed cycle: the next observation tries again.
        history: list[ObservationMsg] = []
        try:
            if self._source != "cem":
                history = self._messages_of(self._policy_history, self._embodiment.policy.step)
            if needs_costs(self._planner):
                # What is scored begins where the cycle does, however long it has taken by then.
                spec = self._embodiment.scoring
                self._frames = self._messages_of(spec.history, spec.block_duration)
        except WorldForgeError as error:
            if error.code is ErrorCode.HISTORY_TOO_SHORT:
                return
            raise
        newest = self._history.newest()
        age = (self.get_clock().now().nanoseconds - newest.stamp) / NANOSECONDS
        self._plan_epoch = self._epoch
        ticket = self._cycle.start(newest, age, time.monotonic())
        if self._cycle.stage is Stage.SCORING:
            self._ask_for_costs()
            return
        request = ProposeActions.Request(
            history=history,
            num_candidates=self._num_candidates,
            mode="predict_chunk",
            horizon=self._horizon,
            embodiment_tag=self._embodiment.name,
            seed=-1 if self._seed < 0 else self._seed + ticket,
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
        assert self._cycle.trace is not None
        request = ScoreCandidates.Request(
            history=self._frames,
            candidates=convert.tensor_to_msg(self._cycle.trace.candidates[np.newaxis]),
            action_space=ScoreCandidates.Request.EMBODIMENT,
        )
        self._call(self._score, request, ErrorCode.SCORE_UNAVAILABLE, self._on_scores)

    def _hand_over(
        self, candidates: npt.NDArray[np.float32], step: float, observation: Observation
    ) -> Handover:
        if self._arrival[0] != self._cycle.ticket:
            # Every sample of a search arrives when the search is over.
            now = self.get_clock().now().nanoseconds
            self._arrival = (self._cycle.ticket, self._arrivals.arrival(now))
        return offer(
            candidates,
            step,
            observation,
            self._executing,
            self._arrival[1],
            self._embodiment,
            self._seam,
            Offer(self._extra_sources, self._supplied_now(candidates.shape[1], step)),
        )

    def _supplied_now(self, horizon: int, step: float) -> npt.NDArray[np.float32] | None:
        try:
            return self._supplied.offered(self.get_clock().now().nanoseconds, horizon, step)
        except WorldForgeError as error:
            self._diagnostics.error(error)
            return None

    def _make_search(
        self, observation: Observation, candidates: npt.NDArray[np.float32] | None
    ) -> CrossEntropySearch:
        assert self._bridge is not None
        settings = self._search
        if candidates is not None:
            settings = replace(settings, blocks=candidates.shape[1] // self._bridge.block)
        return CrossEntropySearch(
            settings, self._bridge, self._embodiment, observation, self._rng, candidates
        )

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
        sequence = self._publish_chunk(trace)
        self._arrivals.finished(self.get_clock().now().nanoseconds)
        if trace.error is None:
            self._diagnostics.ok()
        elif trace.error.code in STARTING and not self._sequence:
            self._diagnostics.waiting(trace.error)
        else:
            self._diagnostics.error(trace.error)
        self._diagnostics.set(cycles=trace.cycle, deadline_misses=self._cycle.deadline_misses)
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
                sequence=sequence,
                candidates=convert.tensor_to_msg(candidates[np.newaxis]),
                stamp=convert.ns_to_stamp(trace.stamp),
                step=convert.seconds_to_duration(trace.step),
                observation_latency=convert.seconds_to_duration(trace.observation_latency),
                propose_latency=convert.seconds_to_duration(trace.propose_latency),
                score_latency=convert.seconds_to_duration(trace.score_latency),
                plan_latency=convert.seconds_to_duration(trace.plan_latency),
                propose_model_latency=convert.seconds_to_duration(trace.propose_model_latency),
                score_model_latency=convert.seconds_to_duration(trace.score_model_latency),
                deadline_misses=self._cycle.deadline_misses,
            )
        )

    def _publish_chunk(self, trace: Trace) -> int:
        if trace.choice is None:
            return 0
        self._sequence += 1
        now = self.get_clock().now().nanoseconds
        if trace.rests:
            # Nothing executes: no action is late, and none has to wait for an arrival expected.
            trace.stamp = max(self._arrivals.sent(now), trace.observation.stamp)
        chunk = ActionChunk(
            stamp=trace.stamp,
            embodiment=self._embodiment.name,
            joint_names=self._embodiment.joint_names,
            step=trace.step,
            actions=trace.candidates[trace.choice.index].astype(np.float64),
            source=trace.sources[trace.choice.index],
            # A plan that was under way while the gate was stopped must not pass as a new one.
            epoch=self._plan_epoch,
            sequence=self._sequence,
            observation_stamp=trace.observation.stamp,
            cost=trace.choice.cost,
            margin=trace.choice.margin,
            model_id=" ".join(trace.models),
        )
        self._chunks.publish(convert.chunk_to_msg(chunk, self._frame_id))
        sent(self._seam, chunk, trace.proposed[trace.choice.index])
        if chunk.source == "supplied":
            self._supplied.chosen()
        return self._sequence


def _code(text: str) -> ErrorCode:
    return ErrorCode(text) if text in ErrorCode.__members__ else ErrorCode.INTERNAL


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(PlannerNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
