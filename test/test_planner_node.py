"""The planner as a process over real DDS; what it calls is played by the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from diagnostic_msgs.msg import DiagnosticArray, KeyValue
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from ros_support import NodeProcess, Ros
from sensor_msgs.msg import Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.msg import ActionChunk, GateStatus, PlanReport
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation
from worldforge_ros.ros import convert, qos
from worldforge_ros.srv import ProposeActions, ScoreCandidates

PUSHT = load_embodiment("pusht")
RNG = np.random.default_rng(0)
START = np.array([0.2, 0.3])
CANDIDATES = (START + RNG.uniform(-0.04, 0.04, (1, 4, 15, 2))).astype(np.float32)
COSTS = [3.0, math.nan, 1.0, 2.0]

Answer = Callable[[Any, Any], Any]


class Stage:
    """Observation source, policy and world model of one test."""

    def __init__(self, ros: Ros) -> None:
        self.ros = ros
        self.stamp = ros.node.get_clock().now().nanoseconds
        self.observations = ros.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
        self.reports: list[PlanReport] = ros.record(PlanReport, "plan_report", qos.REPORT)
        self.chunks: list[ActionChunk] = ros.record(ActionChunk, "action_chunk/proposed", qos.CHUNK)
        self.proposals: list[ProposeActions.Request] = []
        self.scorings: list[ScoreCandidates.Request] = []
        self.propose: Answer = good_proposal
        self.score: Answer = good_scores

    def serve(self, propose: bool = True, score: bool = True) -> None:
        if propose:
            self._create(ProposeActions, "propose_actions", self._propose)
        if score:
            self._create(ScoreCandidates, "score_candidates", self._score)

    def _create(self, service: Any, name: str, callback: Any) -> None:
        # A callback that awaits holds its group: a mutually exclusive one would stop the test's
        # node.
        group = ReentrantCallbackGroup()
        self.ros.node.create_service(service, name, callback, callback_group=group)

    async def _propose(self, request: Any, response: Any) -> Any:
        self.proposals.append(request)
        return await maybe(self.propose(request, response))

    async def _score(self, request: Any, response: Any) -> Any:
        self.scorings.append(request)
        return await maybe(self.score(request, response))

    def observe(self, count: int = 1) -> None:
        for _ in range(count):
            self.stamp += 100_000_000
            observation = Observation(
                self.stamp,
                {"top": RNG.integers(0, 255, (96, 96, 3), dtype=np.uint8)},
                START,
                np.zeros(2),
            )
            self.observations.publish(convert.observation_to_msg(observation, PUSHT, "base"))
            self.ros.spin_for(0.1)

    def first_report(self) -> PlanReport:
        """The report of the first cycle in which the planner had discovered the services."""
        while True:
            report = self.report()
            if not report.outcome.endswith("_UNAVAILABLE"):
                return report

    def report(self) -> PlanReport:
        """Observations until the next cycle has ended; its report."""
        seen = len(self.reports)

        def arrived() -> bool:
            if len(self.reports) == seen:
                self.observe()
            return len(self.reports) > seen

        self.ros.wait_until(arrived, 20.0, "plan_report")
        return self.reports[seen]


async def maybe(value: Any) -> Any:
    return await value if isinstance(value, Future) else value


def good_proposal(request: Any, response: Any) -> Any:
    response.success = True
    response.candidates = convert.tensor_to_msg(CANDIDATES)
    response.joint_names = ["pusher_x", "pusher_y"]
    response.step = convert.seconds_to_duration(0.1)
    response.metadata = convert.key_values({"model_id": "p-1", "model_latency_s": "0.002"})
    return response


def good_scores(request: Any, response: Any) -> Any:
    response.success = True
    response.scores = COSTS
    response.best_index = 2
    response.lower_is_better = True
    response.metadata = convert.key_values({"model_id": "w-1", "model_latency_s": "0.001"})
    return response


def failing(code: str, message: str) -> Answer:
    def answer(request: Any, response: Any) -> Any:
        response.success = False
        response.error_code = code
        response.message = message
        return response

    return answer


@pytest.fixture
def stage(ros: Ros) -> Stage:
    return Stage(ros)


@pytest.fixture
def planner(ros: Ros, stage: Stage) -> Iterator[NodeProcess]:
    with ros.process(
        "planner_node", replan_period=0.2, propose_timeout=0.5, score_timeout=0.5, seed=100
    ) as process:
        ros.connected(stage.observations, 20.0)
        ros.wait_until(lambda: ros.node.count_publishers("plan_report"), what="plan_report")
        stage.stamp = ros.node.get_clock().now().nanoseconds
        yield process


def test_the_cheapest_candidate_is_sent_with_the_whole_trace(
    ros: Ros, stage: Stage, planner: NodeProcess
) -> None:
    stage.serve()
    gate = ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
    gate.publish(GateStatus(epoch=7))
    ros.connected(gate)
    report = ros.wait_until(
        lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
    )
    assert report.chosen == 2
    assert report.margin == pytest.approx(1.0)
    np.testing.assert_array_equal(np.asarray(report.costs), np.asarray(COSTS, np.float32))
    assert list(report.sources) == ["policy"] * 4
    assert list(report.candidates.shape) == [1, 4, 15, 2]
    latency = convert.duration_to_seconds
    assert 0 < latency(report.propose_latency) < latency(report.plan_latency)
    assert latency(report.propose_model_latency) == pytest.approx(0.002)
    assert latency(report.score_model_latency) == pytest.approx(0.001)
    assert latency(report.observation_latency) > -1.0

    chunk = next(c for c in stage.chunks if c.sequence == report.sequence)
    actions = convert.tensor_from_msg(chunk.actions, "actions")
    np.testing.assert_array_equal(actions, CANDIDATES[0, 2])
    assert chunk.observation_stamp == report.observation_stamp
    assert chunk.header.stamp == report.stamp
    first = max(
        convert.stamp_to_ns(report.header.stamp), convert.stamp_to_ns(report.observation_stamp)
    )
    assert abs(convert.stamp_to_ns(report.stamp) - first) < 40_000_000, (
        "a resting robot begins with the first action when the chunk arrives"
    )
    assert list(report.reachable) == [True] * 4
    assert chunk.header.frame_id == "base"
    assert (chunk.embodiment, chunk.source, chunk.model_id) == ("pusht", "policy", "p-1 w-1")
    assert chunk.cost == pytest.approx(1.0)
    assert chunk.margin == pytest.approx(1.0)

    later = stage.report()
    assert later.sequence == report.sequence + 1
    assert stage.chunks[-1].epoch == 7
    request = stage.proposals[-1]
    assert request.num_candidates == 32
    assert request.embodiment_tag == "pusht"
    assert request.seed == 100 + stage.reports[-1].cycle
    stamps = [convert.stamp_to_ns(item.header.stamp) for item in request.history]
    assert len(stamps) == 2
    assert stamps[1] - stamps[0] == 100_000_000
    assert len(stage.scorings[-1].history) == 1


@pytest.mark.parametrize("silent", ["propose", "score"])
def test_a_reply_that_never_comes_abandons_the_cycle_and_the_next_one_works(
    ros: Ros, stage: Stage, planner: NodeProcess, silent: str
) -> None:
    never = Future()
    setattr(stage, silent, lambda request, response: never)
    stage.serve()
    report = stage.first_report()
    expected = "PROPOSE_DEADLINE_MISSED" if silent == "propose" else "SCORE_DEADLINE_MISSED"
    assert report.outcome == expected
    assert report.sequence == 0
    assert report.deadline_misses == 1
    assert "within 0.500 s" in report.message
    assert not stage.chunks
    setattr(stage, silent, good_proposal if silent == "propose" else good_scores)
    # A cycle that began before the service was well again still fails.
    again = ros.wait_until(
        lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
    )
    assert convert.stamp_to_ns(again.observation_stamp) > convert.stamp_to_ns(
        report.observation_stamp
    )


def test_absent_services_are_named(ros: Ros, stage: Stage, planner: NodeProcess) -> None:
    report = stage.report()
    assert report.outcome == "PROPOSE_UNAVAILABLE"
    assert "propose_actions" in report.message
    stage.serve(score=False)
    ros.wait_until(lambda: stage.report().outcome == "SCORE_UNAVAILABLE", 20.0)
    assert not stage.chunks


@pytest.mark.parametrize(
    ("part", "answer", "outcome"),
    [
        ("propose", failing("MODEL_NOT_READY", "policy_node is inactive"), "MODEL_NOT_READY"),
        ("score", failing("GOAL_MISSING", "goal is none"), "GOAL_MISSING"),
        ("propose", failing("SOMETHING_NEW", "a code of tomorrow"), "INTERNAL"),
    ],
)
def test_an_error_reply_ends_the_cycle_with_its_code(
    stage: Stage, planner: NodeProcess, part: str, answer: Answer, outcome: str
) -> None:
    setattr(stage, part, answer)
    stage.serve()
    stage.ros.wait_until(lambda: stage.report().outcome == outcome, 20.0)
    assert not stage.chunks


def wrong_joints(request: Any, response: Any) -> Any:
    good_proposal(request, response).joint_names = ["pusher_y", "pusher_x"]
    return response


def wrong_rank(request: Any, response: Any) -> Any:
    good_proposal(request, response).candidates = convert.tensor_to_msg(CANDIDATES[0])
    return response


def no_candidates(request: Any, response: Any) -> Any:
    good_proposal(request, response).candidates = convert.tensor_to_msg(CANDIDATES[:, :0])
    return response


def out_of_reach(request: Any, response: Any) -> Any:
    moved = CANDIDATES + np.float32(0.2)
    good_proposal(request, response).candidates = convert.tensor_to_msg(moved)
    return response


def too_few_costs(request: Any, response: Any) -> Any:
    good_scores(request, response).scores = [1.0]
    return response


def all_nan(request: Any, response: Any) -> Any:
    good_scores(request, response).scores = [math.nan] * 4
    return response


@pytest.mark.parametrize(
    ("part", "answer", "outcome"),
    [
        ("propose", wrong_joints, "JOINT_NAMES_MISMATCH"),
        ("propose", wrong_rank, "TENSOR_SHAPE_MISMATCH"),
        ("propose", no_candidates, "NO_CANDIDATES"),
        ("propose", out_of_reach, "NO_REACHABLE_CANDIDATE"),
        ("score", too_few_costs, "COSTS_INVALID"),
        ("score", all_nan, "COSTS_INVALID"),
    ],
)
def test_a_malformed_reply_ends_the_cycle_and_the_node_lives(
    stage: Stage, planner: NodeProcess, part: str, answer: Answer, outcome: str
) -> None:
    setattr(stage, part, answer)
    stage.serve()
    stage.ros.wait_until(lambda: stage.report().outcome == outcome, 20.0)
    assert not stage.chunks
    setattr(stage, part, good_proposal if part == "propose" else good_scores)
    stage.ros.wait_until(lambda: stage.report().outcome == "OK", 20.0)
    assert planner.process.poll() is None


def test_without_a_world_model_the_policy_alone_drives(ros: Ros, stage: Stage) -> None:
    stage.serve(score=False)
    with ros.process("planner_node", planner="first", replan_period=0.2, num_candidates=4):
        ros.connected(stage.observations, 20.0)
        ros.wait_until(lambda: stage.report().outcome == "OK", 20.0)
    np.testing.assert_array_equal(
        convert.tensor_from_msg(stage.chunks[-1].actions, "actions"), CANDIDATES[0, 0]
    )
    assert math.isnan(stage.chunks[-1].cost)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"embodiment": "so101"}, "EMBODIMENT_UNKNOWN: embodiment is 'so101'"),
        ({"planner": "best"}, "parameter planner is 'best'; expected one of scored, first, random"),
        ({"replan_period": "-1.0"}, "parameter replan_period"),
        ({"num_candidates": "many"}, "parameter num_candidates"),
        (
            {"seam": "fade"},
            "parameter seam is 'fade'; expected one of switch, temporal_ensemble, blend",
        ),
        ({"seam_duration": 11.0}, "parameter seam_duration"),
        ({"ensemble_coefficient": -6.0}, "parameter ensemble_coefficient"),
        (
            {"extra_sources": ["hold", "stay"]},
            "extra_sources is ['hold', 'stay']; expected any of hold, tail, supplied",
        ),
        ({"extra_sources": "hold"}, "parameter extra_sources is 'hold'; expected a list of texts"),
    ],
)
def test_a_bad_parameter_is_one_clear_line(
    ros: Ros, parameters: dict[str, Any], named: str
) -> None:
    with ros.process("planner_node", **parameters) as process:
        status, output = process.finish(30.0)
    assert status == 2
    lines = [line for line in output.splitlines() if line.startswith("worldforge:")]
    assert len(lines) == 1
    assert named in lines[0]
    assert "Traceback" not in output


def test_a_moving_robot_goes_on_with_its_chunk_until_the_new_one_takes_effect(
    ros: Ros, stage: Stage, planner: NodeProcess
) -> None:
    stage.serve()
    gate = ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
    approved = ros.node.create_publisher(ActionChunk, "action_chunk/approved", qos.CHUNK)
    ros.connected(gate)
    ros.connected(approved)
    gate.publish(GateStatus(epoch=1, mode=GateStatus.ARMED))
    executing = START + 0.001 * np.arange(100)[:, None]
    chunk = ActionChunk(
        step=convert.seconds_to_duration(0.1),
        actions=convert.tensor_to_msg(executing),
    )

    def spliced() -> bool:
        chunk.header = convert.header(stage.stamp - 1_000_000_000, "base")
        approved.publish(chunk)
        report = stage.report()
        return report.outcome == "OK" and report.stamp == report.observation_stamp

    ros.wait_until(spliced, 20.0, "a chunk that begins at its observation")
    report = stage.reports[-1]
    first = (convert.stamp_to_ns(report.stamp) - convert.stamp_to_ns(chunk.header.stamp)) // 10**8
    sent = convert.tensor_from_msg(report.candidates, "candidates")[0]
    np.testing.assert_allclose(sent[:, 0], np.tile(executing[first], (4, 1)), atol=1e-6)
    np.testing.assert_array_equal(sent[:, -1], CANDIDATES[0, :, -1])
    scored = convert.tensor_from_msg(stage.scorings[-1].candidates, "candidates")[0]
    np.testing.assert_array_equal(scored, sent, "what is scored is what would be executed")


def right_is_cheap(request: Any, response: Any) -> Any:
    candidates = convert.tensor_from_msg(request.candidates, "candidates")[0]
    response.success = True
    response.scores = (-candidates[:, -1, 0]).tolist()
    response.best_index = int(np.argmin(response.scores))
    response.lower_is_better = True
    response.metadata = convert.key_values({"model_id": "w-1", "model_latency_s": "0.001"})
    return response


@pytest.mark.parametrize("source", ["cem", "cem+policy"])
def test_a_search_asks_the_world_model_in_rounds(ros: Ros, stage: Stage, source: str) -> None:
    stage.score = right_is_cheap
    stage.serve(propose=source == "cem+policy")
    search = {"search_samples": 20, "search_iterations": 3, "search_elites": 4, "search_blocks": 2}
    with ros.process(
        "planner_node", source=source, search_std=[0.01, 0.01], seed=1, replan_period=0.2, **search
    ):
        ros.connected(stage.observations, 20.0)
        ros.wait_until(lambda: ros.node.count_publishers("plan_report"), what="plan_report")
        stage.stamp = ros.node.get_clock().now().nanoseconds
        report = ros.wait_until(
            lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
        )
        chunk = ros.wait_until(
            lambda: next((c for c in stage.chunks if c.sequence == report.sequence), None)
        )
    assert set(report.sources) == {source}
    assert chunk.source == source
    assert report.num_candidates == len(report.costs) == 4
    assert report.costs[report.chosen] == min(report.costs)
    horizon = 10 if source == "cem" else 15
    assert list(chunk.actions.shape) == [horizon, 2]
    # Three rounds; the best of the last one ends further right than the robot stands.
    rounds = [list(request.candidates.shape)[1] for request in stage.scorings[:3]]
    assert rounds == ([20, 20, 20] if source == "cem" else [4, 20, 20])
    assert convert.tensor_from_msg(chunk.actions, "actions")[-1, 0] > START[0] + 0.01
    assert bool(stage.proposals) == (source == "cem+policy")
    # Every round is scored from where the candidates begin, whatever was seen since.
    start = report.observation_stamp
    used = [s.history[-1].header.stamp for s in stage.scorings]
    assert used[:3] == [used[0]] * 3
    assert start in used
    latency = convert.duration_to_seconds
    assert latency(report.score_model_latency) == pytest.approx(0.003)


def test_a_search_without_statistics_says_what_is_missing(ros: Ros) -> None:
    with ros.process("planner_node", source="cem") as process:
        status, output = process.finish()
    assert status == 2
    assert "ACTION_STATISTICS_MISSING" in output


@contextmanager
def planning(ros: Ros, stage: Stage, **parameters: Any) -> Iterator[NodeProcess]:
    stage.serve()
    with ros.process("planner_node", replan_period=0.2, seed=1, **parameters) as process:
        ros.connected(stage.observations, 20.0)
        ros.wait_until(lambda: ros.node.count_publishers("plan_report"), what="plan_report")
        stage.stamp = ros.node.get_clock().now().nanoseconds
        yield process


LONG = (START + RNG.uniform(-0.03, 0.03, (1, 4, 80, 2))).astype(np.float32)


def long_proposal(request: Any, response: Any) -> Any:
    good_proposal(request, response).candidates = convert.tensor_to_msg(LONG)
    return response


class Ensemble:
    """A planner with a temporal ensemble, and the gate that approves its chunks."""

    def __init__(self, ros: Ros, stage: Stage) -> None:
        self._ros, self._stage = ros, stage
        stage.propose = long_proposal
        node = ros.node
        self.gate = node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
        self.approved = node.create_publisher(ActionChunk, "action_chunk/approved", qos.CHUNK)
        self.goals = node.create_publisher(Image, "goal_image", qos.LATCHED)

    def connect(self) -> None:
        for publisher in (self.gate, self.approved, self.goals):
            self._ros.connected(publisher)
        self.gate.publish(GateStatus(epoch=1, mode=GateStatus.ARMED))
        self.goal(0)

    def goal(self, grey: int) -> None:
        picture = np.full((96, 96, 3), grey, np.uint8)
        self.goals.publish(convert.image_to_msg(picture, self._stage.stamp, "top"))
        self._ros.spin_for(0.2)

    def report(self) -> PlanReport:
        return self._ros.wait_until(
            lambda: next((r for r in [self._stage.report()] if r.outcome == "OK"), None), 20.0
        )

    def approve(self) -> ActionChunk:
        report = self.report()
        chunk: ActionChunk = self._ros.wait_until(
            lambda: next((c for c in self._stage.chunks if c.sequence == report.sequence), None)
        )
        self.approved.publish(chunk)
        self._ros.spin_for(0.2)
        return chunk

    def share(self, executing: ActionChunk) -> float:
        """How far the next candidates are from what the policy proposed towards what it had
        proposed for ``executing``, at the last action that the two have in common.
        """
        report = self.report()
        candidates = convert.tensor_from_msg(report.candidates, "candidates")[0]
        begins = convert.stamp_to_ns(report.stamp)
        middles = begins + np.arange(LONG.shape[2]) * 10**8 + 5 * 10**7
        index = (middles - convert.stamp_to_ns(executing.header.stamp)) // 10**8
        place = int(np.flatnonzero(index < LONG.shape[2])[-1])
        # Candidate 2 is cheapest: every chunk is this one, and it may be its own neighbour.
        others = [0, 1, 3]
        apart = LONG[0, 2, index[place]] - LONG[0, others, place]
        moved = candidates[others, place] - LONG[0, others, place]
        shares = (moved * apart).sum(-1) / (apart**2).sum(-1)
        assert np.ptp(shares) < 1e-3
        return float(shares[0])


def test_a_temporal_ensemble_averages_what_was_approved_until_the_goal_changes(
    ros: Ros, stage: Stage
) -> None:
    ensemble = Ensemble(ros, stage)
    # The older of two plans weighs 1, the newer one exp(-0.5).
    expected = pytest.approx(1.0 / (1.0 + math.exp(-0.5)), abs=1e-3)
    with planning(ros, stage, seam="temporal_ensemble", ensemble_coefficient=0.5):
        ensemble.connect()
        chunk = ensemble.approve()
        assert ensemble.share(chunk) == expected
        ensemble.goal(0)
        assert ensemble.share(chunk) == expected, "the same goal is no new one"
        ensemble.goal(9)
        ensemble.report()  # may have been under way when the goal came
        assert ensemble.share(chunk) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    "status",
    [
        GateStatus(epoch=1, mode=GateStatus.ARMED, verdict="REJECTED", verdict_sequence=99),
        GateStatus(epoch=2, mode=GateStatus.ARMED),
    ],
    ids=["refused", "epoch"],
)
def test_a_refused_chunk_and_a_new_epoch_end_the_ensemble(
    ros: Ros, stage: Stage, status: GateStatus
) -> None:
    ensemble = Ensemble(ros, stage)
    with planning(ros, stage, seam="temporal_ensemble"):
        ensemble.connect()
        chunk = ensemble.approve()
        assert ensemble.share(chunk) > 0.4
        ensemble.gate.publish(status)
        ros.spin_for(0.2)
        ensemble.report()
        assert ensemble.share(chunk) == pytest.approx(0.0, abs=1e-3)


def test_what_a_user_supplies_is_scored_and_chosen_like_the_rest(ros: Ros, stage: Stage) -> None:
    def scores(request: Any, response: Any) -> Any:
        good_scores(request, response)
        count = request.candidates.shape[1]
        response.scores = [float(count - index) for index in range(count)]
        return response

    stage.score = scores
    supplier = ros.node.create_publisher(ActionChunk, "action_chunk/candidate", qos.CHUNK)
    diagnostics = ros.record(DiagnosticArray, "/diagnostics")

    def counted(code: str) -> bool:
        pairs = [(v.key, v.value) for d in diagnostics for s in d.status for v in s.values]
        return (f"errors.{code}", "1") in pairs

    def supply(actions: np.ndarray) -> None:
        own = ActionChunk(
            header=convert.header(ros.node.get_clock().now().nanoseconds, "base"),
            embodiment="pusht",
            joint_names=["pusher_x", "pusher_y"],
            step=convert.seconds_to_duration(0.1),
            actions=convert.tensor_to_msg(actions),
        )
        supplier.publish(own)

    own = np.tile(START, (15, 1)) + 0.002
    with planning(ros, stage, extra_sources=["hold", "tail", "supplied"], supplied_max_age=30.0):
        ros.connected(supplier)
        report = ros.wait_until(
            lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
        )
        assert list(report.sources) == ["policy"] * 4 + ["hold"], "nothing executes, no tail"
        assert report.chosen == 4
        held = convert.tensor_from_msg(report.candidates, "candidates")[0, 4]
        np.testing.assert_allclose(held, np.tile(START, (15, 1)), atol=1e-7)
        # Cheapest is the last one: hold, unless something comes behind it.
        scored_last = stage.score

        def before_hold(request: Any, response: Any) -> Any:
            scored_last(request, response)
            response.scores[4] = -1.0
            return response

        stage.score = before_hold
        supply(own)
        report = ros.wait_until(
            lambda: next((r for r in [stage.report()] if "supplied" in r.sources), None), 20.0
        )
        assert list(report.sources) == ["policy"] * 4 + ["supplied", "hold"]
        assert report.chosen == 4
        chunk = ros.wait_until(
            lambda: next((c for c in stage.chunks if c.sequence == report.sequence), None)
        )
        assert chunk.source == "supplied"
        actions = convert.tensor_from_msg(chunk.actions, "actions")
        np.testing.assert_array_equal(actions, own.astype(np.float32))
        assert "supplied" not in stage.report().sources, "it was chosen once"

        supply(own[:10])
        ros.wait_until(lambda: stage.report() and counted("HORIZON_INVALID"), 20.0)
        own[3, 1] = np.nan
        supply(own)
        ros.wait_until(lambda: stage.report() and counted("TENSOR_NOT_FINITE"), 20.0)
        assert "supplied" not in stage.report().sources


def test_fewer_candidates_than_asked_for_are_no_error(ros: Ros, stage: Stage) -> None:
    def two_are_left(request: Any, response: Any) -> Any:
        good_proposal(request, response)
        response.candidates = convert.tensor_to_msg(CANDIDATES[:, :2])
        response.metadata.append(KeyValue(key="dropped", value="2, 3"))
        return response

    def two_costs(request: Any, response: Any) -> Any:
        good_scores(request, response).scores = [2.0, 1.0]
        return response

    stage.propose, stage.score = two_are_left, two_costs
    diagnostics = ros.record(DiagnosticArray, "/diagnostics")
    with planning(ros, stage, num_candidates=4):
        report = ros.wait_until(
            lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
        )
        assert (report.num_candidates, report.chosen) == (2, 1)
        ros.wait_until(
            lambda: any(
                (v.key, v.value) == ("policy_dropped", "2, 3")
                for d in diagnostics
                for s in d.status
                for v in s.values
            ),
            10.0,
        )


def test_no_more_is_scored_than_the_world_model_is_believed_for(ros: Ros, stage: Stage) -> None:
    diagnostics = ros.record(DiagnosticArray, "/diagnostics")
    with planning(ros, stage, drift_horizon=2) as process:
        report = ros.wait_until(
            lambda: next((r for r in [stage.report()] if r.outcome == "OK"), None), 20.0
        )
        ros.wait_until(lambda: stage.report().outcome == "OK", 20.0)
        # Two blocks of five actions of every candidate: their costs can be compared.
        first, last = stage.scorings[0], stage.scorings[-1]
        for request in (first, last):
            scored = convert.tensor_from_msg(request.candidates, "candidates")
            assert scored.shape == (1, 4, 10, 2)
        np.testing.assert_array_equal(
            convert.tensor_from_msg(first.candidates, "candidates"), CANDIDATES[:, :, :10]
        )
        # What moves is the whole candidate.
        assert list(report.candidates.shape) == [1, 4, 15, 2]
        chunk = next(c for c in stage.chunks if c.sequence == report.sequence)
        np.testing.assert_array_equal(
            convert.tensor_from_msg(chunk.actions, "actions"), CANDIDATES[0, 2]
        )
        ros.wait_until(
            lambda: any(
                v.key == "beyond_drift" and "15 actions" in v.value
                for d in diagnostics
                for s in d.status
                for v in s.values
            ),
            10.0,
        )
        _, printed = process.stop()
    assert printed.count("HORIZON_BEYOND_DRIFT") == 1
