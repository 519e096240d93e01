"""``score_candidates`` and ``refine_candidates`` as other people's planners call them: every row of
the contract over real DDS, and ten thousand malformed requests.
"""

from __future__ import annotations

import array
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from builtin_interfaces.msg import Time
from diagnostic_msgs.srv import SelfTest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_support import NodeProcess, Ros
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation
from worldforge_ros.resources import share_dir
from worldforge_ros.ros import convert, qos
from worldforge_ros.scorers.lewm import load_lewm
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.srv import RefineCandidates, ScoreCandidates

PUSHT = load_embodiment("pusht")
START = 60.0
FUZZED = int(os.environ.get("WORLDFORGE_FUZZ_REQUESTS", "10000"))
CODES = {str(code) for code in ErrorCode} - {str(ErrorCode.INTERNAL)}


class Caller:
    """One client for many calls; a reply that the middleware lost is asked for again."""

    def __init__(self, ros: Ros, service: Any, name: str) -> None:
        self._ros = ros
        self._client = ros.node.create_client(service, name)
        ros.wait_until(self._client.service_is_ready, START, f"service {name}")
        self.lost = 0

    def __call__(self, request: Any, timeout: float = 10.0) -> Any:
        for _ in range(3):
            future = self._client.call_async(request)
            deadline = time.monotonic() + timeout
            # Not spin_until_future_complete: it keeps every finished task (rclpy 7.1.6).
            while not future.done() and time.monotonic() < deadline:
                self._ros.executor.spin_once(timeout_sec=0.5)
            if future.done():
                return future.result()
            self._client.remove_pending_request(future)
            self.lost += 1
        pytest.fail("no reply to three requests in a row")


@pytest.fixture(scope="module")
def shared() -> Iterator[Ros]:
    corner = Ros()
    yield corner
    corner.close()


def wait_active(ros: Ros, state: int = State.PRIMARY_STATE_ACTIVE) -> None:
    def ready() -> bool:
        reply = ros.call(
            GetState, "score_node/get_state", GetState.Request(), START, again_after=10.0
        )
        return bool(reply.current_state.id == state)

    ros.wait_until(ready, START, "score_node active")


@pytest.fixture(scope="module")
def node(shared: Ros) -> Iterator[NodeProcess]:
    with shared.process("score_node", max_candidates=16, max_goal_age=3.0) as process:
        wait_active(shared)
        yield process


@pytest.fixture(scope="module")
def score(shared: Ros, node: NodeProcess) -> Caller:
    return Caller(shared, ScoreCandidates, "score_candidates")


@pytest.fixture(scope="module")
def refine(shared: Ros, node: NodeProcess) -> Caller:
    return Caller(shared, RefineCandidates, "refine_candidates")


def world(seed: int = 11) -> PushTSimulation:
    simulation = PushTSimulation()
    simulation.reset(seed=seed)
    return simulation


def observation(stamp: int = 10**18, seed: int = 11) -> Observation:
    simulation = world(seed)
    return Observation(stamp, {"top": simulation.image()}, simulation.position, simulation.velocity)


GOAL = world().goal_image()
START_POSITION = observation().position
SETPOINTS = START_POSITION + (
    np.linspace(0.0, 0.05, 15)[None, :, None]
    * np.arange(-1, 3)[:, None, None]
    * np.array([1.0, -1.0])
)


def request_of(kind: Any = ScoreCandidates, **fields: Any) -> Any:
    return kind.Request(
        **{
            "history": [convert.observation_to_msg(observation(), PUSHT, "base")],
            "goal": convert.image_to_msg(GOAL, 10**18, "camera_top"),
            "candidates": convert.tensor_to_msg(SETPOINTS[None]),
            **fields,
        }
    )


def metadata_of(reply: Any) -> dict[str, str]:
    return convert.from_key_values(reply.metadata, "metadata")


def blocks_of(setpoints: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scorer = load_lewm(share_dir() / "models/pusht/world_model", PUSHT)
    now = observation()
    return scorer.bridge.setpoints_to_blocks(setpoints, now.position, now.velocity)


def test_a_candidate_has_a_longest_horizon(score: Caller) -> None:
    for blocks, code in ((64, ""), (65, "HORIZON_INVALID")):
        setpoints = np.broadcast_to(START_POSITION, (1, 1, 5 * blocks, 2))
        reply = score(request_of(candidates=convert.tensor_to_msg(setpoints)))
        assert reply.error_code == code, reply.message


def test_model_space_takes_blocks_as_they_are(score: Caller) -> None:
    blocks = blocks_of(SETPOINTS)
    native = score(
        request_of(
            candidates=convert.tensor_to_msg(blocks[None]),
            action_space=ScoreCandidates.Request.MODEL,
        )
    )
    assert native.success, native.message
    converted = score(request_of())
    np.testing.assert_allclose(native.scores, converted.scores, rtol=1e-4)
    assert native.best_index == converted.best_index
    assert metadata_of(native)["action_space"] == "model"
    refused = score(request_of(action_space=ScoreCandidates.Request.MODEL))
    assert refused.error_code == "ACTION_DIM_MISMATCH", "set-points are no blocks"


def test_the_answer_says_where_it_comes_from(score: Caller) -> None:
    reply = score(request_of(objective="l2"))
    found = metadata_of(reply)
    assert found["model_id"].startswith("world_model-")
    assert len(found["sha256"]) == 64
    assert found["family"] == "lewm"
    assert found["runtime"] == "torch rollout"
    assert found["checkpoint_format"] == "config+safetensors"
    assert found["device"] == "cpu"
    assert found["objective"] == "l2"
    assert found["score_type"] == "summed squared difference of embeddings"
    assert found["score_direction"] == "lower is better"
    assert found["candidates"] == "4x15x2"
    assert found["blocks"] == "4x3x10"
    assert float(found["history_age_s"]) > 1e6, "the request's own frame is from 2001"
    assert found["goal_age_s"] == "given"
    assert metadata_of(score(request_of()))["history_cached"] == "1 of 1"
    assert reply.lower_is_better
    assert reply.best_index == int(np.argmin(reply.scores))


def test_one_candidate_without_a_cost_is_marked_and_never_chosen(score: Caller) -> None:
    blocks = blocks_of(SETPOINTS).astype(np.float32)
    blocks[1] = 3e38
    space = ScoreCandidates.Request.MODEL
    reply = score(request_of(candidates=convert.tensor_to_msg(blocks[None]), action_space=space))
    assert reply.success, reply.message
    assert np.isnan(reply.scores).tolist() == [False, True, False, False]
    assert reply.best_index == int(np.nanargmin(reply.scores))
    assert metadata_of(reply)["unscored"] == "1"
    blocks[:] = 3e38
    reply = score(request_of(candidates=convert.tensor_to_msg(blocks[None]), action_space=space))
    assert not reply.success
    assert reply.error_code == "COSTS_INVALID"
    assert reply.best_index == -1


def test_what_the_node_received_counts_while_it_is_fresh(shared: Ros, score: Caller) -> None:
    observations = shared.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
    goals = shared.node.create_publisher(Image, "goal_image", qos.LATCHED)
    shared.connected(observations)
    shared.connected(goals)
    own = request_of(history=[], goal=Image())
    assert score(own).error_code == "OBSERVATION_MISSING"

    def send() -> None:
        now = shared.node.get_clock().now().nanoseconds
        observations.publish(convert.observation_to_msg(observation(now), PUSHT, "base"))
        shared.spin_for(0.1)

    shared.wait_until(
        lambda: send() or score(own).error_code == "GOAL_MISSING", 10.0, "the observation"
    )
    goals.publish(convert.image_to_msg(GOAL, 1, "camera_top"))
    reply = shared.wait_until(
        lambda: send() or next((item for item in [score(own)] if item.success), None), 10.0
    )
    np.testing.assert_allclose(reply.scores, score(request_of()).scores, rtol=1e-5)
    found = metadata_of(reply)
    assert found["history_cached"] == "1 of 1", "encoded as it arrived"
    assert found["goal_cached"] == "true"
    assert 0.0 < float(found["history_age_s"]) < 0.5
    assert 0.0 <= float(found["goal_age_s"]) < 3.0
    shared.wait_until(
        lambda: score(own).error_code == "OBSERVATION_STALE", 10.0, "the observation grows old"
    )
    shared.wait_until(
        lambda: send() or score(own).error_code == "GOAL_STALE", 10.0, "the goal grows old"
    )
    for publisher in (observations, goals):
        shared.node.destroy_publisher(publisher)


def test_a_goal_that_came_before_the_clock_is_no_older_than_the_clock(ros: Ros) -> None:
    goals = ros.node.create_publisher(Image, "goal_image", qos.LATCHED)
    clock = ros.node.create_publisher(Clock, "/clock", 1)
    goals.publish(convert.image_to_msg(GOAL, 1, "camera_top"))
    with ros.process("score_node", use_sim_time=True, max_goal_age=3.0):
        wait_active(ros)
        ros.connected(goals)
        ros.connected(clock)
        call = Caller(ros, ScoreCandidates, "score_candidates")

        def reply() -> Any:
            clock.publish(Clock(clock=Time(sec=1000)))
            found = call(request_of(goal=Image()))
            # Counted from the request's frame, 1e9 s: at 1000 s the clock was heard.
            heard = found.success and float(metadata_of(found)["history_age_s"]) > -1e9
            return found if heard or found.error_code == "GOAL_STALE" else None

        found = ros.wait_until(reply, 10.0, "the clock")
    assert found.success, found.message
    assert float(metadata_of(found)["goal_age_s"]) < 3.0


def refine_request(**fields: Any) -> Any:
    return request_of(
        RefineCandidates,
        **{"samples": 16, "iterations": 6, "elites": 4, "spread": 0.3, "seed": 3, **fields},
    )


def test_refining_finds_cheaper_candidates_and_scores_them_right(
    score: Caller, refine: Caller
) -> None:
    before = score(request_of())
    reply = refine(refine_request())
    assert reply.success, reply.message
    assert reply.iterations == 6
    assert not reply.expired
    assert reply.best_index == 0
    assert list(reply.scores) == sorted(reply.scores)
    assert reply.scores[0] < min(before.scores)
    found = convert.tensor_from_msg(reply.candidates, "candidates")
    assert found.shape == (1, 4, 15, 2)
    again = score(request_of(candidates=reply.candidates))
    np.testing.assert_allclose(again.scores, reply.scores, rtol=1e-3)
    same = refine(refine_request())
    np.testing.assert_array_equal(same.scores, reply.scores)
    other = refine(refine_request(seed=4))
    assert list(other.scores) != list(reply.scores)
    native = refine(
        refine_request(
            candidates=convert.tensor_to_msg(blocks_of(SETPOINTS)[None]),
            action_space=RefineCandidates.Request.MODEL,
        )
    )
    assert convert.tensor_from_msg(native.candidates, "candidates").shape == (1, 4, 3, 10)
    np.testing.assert_allclose(native.scores, reply.scores, rtol=1e-3)


def test_refining_stops_at_its_budget_with_the_best_so_far(score: Caller, refine: Caller) -> None:
    reply = refine(refine_request(iterations=1000, budget=convert.seconds_to_duration(0.3)))
    assert reply.success, reply.message
    assert reply.expired
    assert 1 < reply.iterations < 1000
    assert reply.scores[0] <= min(score(request_of()).scores)
    short = refine(refine_request(budget=convert.seconds_to_duration(1e-6)))
    assert short.success
    assert short.expired
    assert short.iterations == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"iterations": 0}, "INVALID_ARGUMENT"),
        ({"iterations": 4_000_000_000}, "INVALID_ARGUMENT"),
        ({"samples": 1}, "INVALID_ARGUMENT"),
        ({"samples": 17}, "INVALID_ARGUMENT"),
        ({"elites": 1}, "INVALID_ARGUMENT"),
        ({"elites": 17}, "INVALID_ARGUMENT"),
        ({"spread": 0.0}, "INVALID_ARGUMENT"),
        ({"spread": float("nan")}, "INVALID_ARGUMENT"),
        ({"spread": float("inf")}, "INVALID_ARGUMENT"),
        ({"seed": -2}, "INVALID_ARGUMENT"),
        ({"budget": convert.seconds_to_duration(-1.0)}, "INVALID_ARGUMENT"),
        ({"candidates": convert.tensor_to_msg(SETPOINTS)}, "TENSOR_SHAPE_MISMATCH"),
        ({"action_space": 7}, "INVALID_ARGUMENT"),
    ],
)
def test_a_bad_refinement_has_its_code(refine: Caller, fields: dict[str, Any], code: str) -> None:
    reply = refine(refine_request(**fields))
    assert not reply.success
    assert reply.error_code == code, reply.message
    assert reply.best_index == -1
    assert refine(refine_request(iterations=1)).success


def health(ros: Ros) -> Any:
    return ros.call(SelfTest, "score_node/health", SelfTest.Request(), START)


def test_health_of_a_working_node(shared: Ros, node: NodeProcess) -> None:
    reply = health(shared)
    assert reply.passed == b"\x01"
    assert reply.id.startswith("world_model-")
    found = {status.name: status for status in reply.status}
    assert found["world model"].message == f"loaded: {reply.id}"
    assert found["module stable_worldmodel"].level == b"\x00"
    assert found["setting model_path"].message == "from default"


def test_health_says_what_is_wrong_before_a_model_is_loaded(ros: Ros) -> None:
    with ros.process("score_node", autostart=False, model_path="/no/such/run", device="warp"):
        reply = health(ros)
        assert reply.passed == b"\x00"
        found = {status.name: status for status in reply.status}
        assert "'/no/such/run'" in found["checkpoint"].message
        assert found["checkpoint"].values[0].value == "CHECKPOINT_MISSING"
        assert found["device"].values[0].value == "DEVICE_UNAVAILABLE"
        assert found["setting model_path"].message == "from parameter"
        assert "/no/such/run" not in found["setting model_path"].message


def test_environment_variables_and_parameters(ros: Ros, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWM_POLICY", "pusht/world_model")
    monkeypatch.setenv("LEWORLDMODEL_POLICY", "  ")
    monkeypatch.setenv("STABLEWM_HOME", str(share_dir() / "models"))
    monkeypatch.setenv("LEWORLDMODEL_DEVICE", "warp")
    with ros.process("score_node", device="cpu", objective="l1", backend="torch") as process:
        wait_active(ros)
        call = Caller(ros, ScoreCandidates, "score_candidates")
        assert metadata_of(call(request_of()))["objective"] == "l1"
        _, output = process.stop()
    assert "LEWORLDMODEL_DEVICE is set but does not count: device comes from parameter" in output


def test_upstreams_own_cost_function_over_the_service(ros: Ros, score: Caller) -> None:
    with ros.process("score_node", autostart=False, backend="upstream", objective="l2"):
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            change = ChangeState.Request(transition=Transition(id=transition))
            assert ros.call(ChangeState, "score_node/change_state", change, START).success
        call = Caller(ros, ScoreCandidates, "score_candidates")
        reply = call(request_of())
        assert metadata_of(reply)["runtime"] == "get_cost"
        ours = score(request_of(objective="l2"))
        np.testing.assert_allclose(reply.scores, ours.scores, rtol=1e-4)


def corrupt_image(draw: Any, image: Image) -> None:
    kind = draw(
        st.sampled_from(["height", "width", "step", "short", "encoding", "empty data", "swapped"])
    )
    if kind == "height":
        image.height = draw(st.integers(0, 2**32 - 1).filter(lambda value: value != 96))
    elif kind == "width":
        image.width = draw(st.integers(0, 2**32 - 1).filter(lambda value: value != 96))
    elif kind == "step":
        image.step = draw(st.integers(0, 287) | st.integers(289, 2**32 - 1))
    elif kind == "short":
        image.data = image.data[: draw(st.integers(1, len(image.data) - 1))]
    elif kind == "encoding":
        # Not mono16: with these bytes and this step that is a picture with padded rows.
        image.encoding = draw(
            st.sampled_from(["", "rgb16", "bayer", "yuv", "32FC1", "RGB8", "\u00e9"])
        )
    elif kind == "empty data":
        image.data = array.array("B")
        image.height = max(1, draw(st.integers(1, 200)))
    else:
        image.height, image.width = 48, 192
        image.step = 192 * 3


def corrupt_history(draw: Any, request: Any) -> None:
    frame = request.history[0]
    kind = draw(
        st.sampled_from(
            [
                "count",
                "embodiment",
                "camera",
                "images",
                "stamp",
                "names",
                "position",
                "velocity",
                "length",
                "image",
            ]
        )
    )
    if kind == "count":
        request.history = [frame] * draw(st.integers(2, 4))
    elif kind == "embodiment":
        frame.embodiment = draw(st.text("abc", max_size=3))
    elif kind == "camera":
        frame.camera_names = draw(st.lists(st.text("abct", max_size=3), max_size=3))
    elif kind == "images":
        frame.images = frame.images * draw(st.sampled_from([0, 2]))
    elif kind == "stamp":
        frame.header.stamp.sec = draw(st.integers(-(2**31), -1))
    elif kind == "names":
        frame.state.name = draw(
            st.sampled_from([[], ["pusher_x"], ["pusher_x"] * 2, ["pusher_y", "arm"]])
        )
    elif kind in ("position", "velocity"):
        bad = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        setattr(frame.state, kind, array.array("d", [0.1, bad]))
    elif kind == "length":
        name = draw(st.sampled_from(["position", "velocity"]))
        setattr(frame.state, name, array.array("d", [0.1] * draw(st.sampled_from([0, 1, 3]))))
    else:
        corrupt_image(draw, frame.images[0])


def corrupt_candidates(draw: Any, request: Any) -> None:
    tensor = request.candidates
    kind = draw(
        st.sampled_from(
            ["rank", "batch", "many", "width", "horizon", "value", "length", "shape", "impossible"]
        )
    )
    if kind == "rank":
        shape = draw(st.lists(st.integers(0, 4), max_size=6).filter(lambda value: len(value) != 4))
        request.candidates = convert.tensor_to_msg(np.zeros(shape, np.float32))
        if not shape:
            request.candidates.shape, request.candidates.data = [], array.array("f")
    elif kind == "batch":
        batch = draw(st.sampled_from([0, 2, 3]))
        request.candidates = convert.tensor_to_msg(np.zeros((batch, 2, 15, 2), np.float32))
    elif kind == "many":
        count = draw(st.sampled_from([0, 17, 64]))
        request.candidates = convert.tensor_to_msg(np.zeros((1, count, 15, 2), np.float32))
    elif kind == "width":
        # Not 10: with the action space corrupted too, that would be right.
        width = draw(st.sampled_from([0, 1, 3, 7]))
        request.candidates = convert.tensor_to_msg(np.zeros((1, 2, 15, width), np.float32))
    elif kind == "horizon":
        horizon = draw(st.integers(0, 24).filter(lambda value: value % 5 or value == 0))
        request.candidates = convert.tensor_to_msg(np.zeros((1, 2, horizon, 2), np.float32))
    elif kind == "value":
        data = array.array("f", tensor.data)
        data[draw(st.integers(0, len(data) - 1))] = draw(
            st.sampled_from([float("nan"), float("inf"), float("-inf")])
        )
        tensor.data = data
    elif kind == "length":
        cut = draw(st.integers(0, len(tensor.data) - 1))
        tensor.data = tensor.data[:cut]
    elif kind == "impossible":
        shape = draw(st.sampled_from([[1] * 65, [0, *[2**32 - 1] * 3], [1, 2, 325, 2]]))
        count = 1300 if 325 in shape else min(1, *shape)
        request.candidates.shape = shape
        request.candidates.data = array.array("f", [0.0] * count)
    else:
        tensor.shape = draw(
            st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4).filter(
                lambda value: int(np.prod([int(item) for item in value], dtype=object)) != 120
            )
        )


def corrupt_rest(draw: Any, request: Any) -> None:
    kind = draw(st.sampled_from(["space", "objective", "past", "past length", "goal"]))
    if kind == "space":
        request.action_space = draw(st.integers(1, 255))
    elif kind == "objective":
        known = ("", "l2", "l1", "pose", "scene", "steps")
        request.objective = draw(
            st.text(max_size=8).filter(lambda text: text not in known and "\x00" not in text)
        )
    elif kind == "past":
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        value = draw(st.sampled_from([0.0, np.nan]))
        request.action_history = convert.tensor_to_msg(np.full(shape, value, np.float32))
    elif kind == "past length":
        request.action_history.shape = draw(st.lists(st.integers(1, 2**32 - 1), min_size=1))
    else:
        corrupt_image(draw, request.goal)


CORRUPTIONS: tuple[Callable[[Any, Any], None], ...] = (
    corrupt_history,
    corrupt_candidates,
    corrupt_rest,
)


@pytest.mark.timeout(1200)
def test_malformed_requests_never_harm(score: Caller) -> None:
    good = request_of(candidates=convert.tensor_to_msg(SETPOINTS[None, :2]))
    expected = score(good).scores
    seen: dict[str, int] = {}

    @settings(
        max_examples=FUZZED,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def fuzz(data: Any) -> None:
        request = request_of()
        for corrupt in data.draw(
            st.lists(st.sampled_from(CORRUPTIONS), min_size=1, max_size=3, unique=True)
        ):
            corrupt(data.draw, request)
        reply = score(request)
        assert not reply.success, request
        assert reply.error_code in CODES, (reply.error_code, reply.message)
        assert reply.message
        assert reply.best_index == -1
        assert not reply.scores
        seen[reply.error_code] = seen.get(reply.error_code, 0) + 1
        after = score(good)
        assert after.success, after.message
        np.testing.assert_array_equal(after.scores, expected)

    fuzz()
    assert sum(seen.values()) >= FUZZED
    assert len(seen) >= 15, seen
    print(f"{sum(seen.values())} malformed requests, replies lost: {score.lost}, codes: {seen}")
