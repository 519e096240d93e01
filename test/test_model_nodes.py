"""Policy and score nodes as processes over real DDS, with the shipped checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

import yaml
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_support import NodeProcess, Ros
from sensor_msgs.msg import Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation
from worldforge_ros.resources import share_dir
from worldforge_ros.ros import convert, qos
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.srv import ProposeActions, ScoreCandidates

PUSHT = load_embodiment("pusht")
POLICY = share_dir() / "models/pusht/policy"
WORLD_MODEL = share_dir() / "models/pusht/world_model"
START = 60.0
"""Seconds that importing torch and loading a model may take on a busy machine."""
AGAIN = 20.0
"""Seconds after which a request is repeated whose reply was lost."""


def observations(count: int = 2, stamp: int = 0) -> list[ObservationMsg]:
    world = PushTSimulation()
    world.reset(seed=11)
    result = []
    for index in range(count):
        when = (stamp or 10**18) + index * 100_000_000
        observation = Observation(when, {"top": world.image()}, world.position, world.velocity)
        result.append(convert.observation_to_msg(observation, PUSHT, "base"))
        world.advance(world.position + 0.01, 10)
    return result


def active(ros: Ros, node: str) -> None:
    def ready() -> bool:
        reply = ros.call(
            GetState, f"{node}/get_state", GetState.Request(), START, again_after=AGAIN
        )
        return bool(reply.current_state.id == State.PRIMARY_STATE_ACTIVE)

    ros.wait_until(ready, START, f"{node} active")


@pytest.fixture(scope="module")
def shared_ros() -> Iterator[Ros]:
    corner = Ros()
    yield corner
    corner.close()


@pytest.fixture(scope="module")
def policy(shared_ros: Ros) -> Iterator[NodeProcess]:
    with shared_ros.process("policy_node", max_candidates=64) as process:
        active(shared_ros, "policy_node")
        yield process


@pytest.fixture(scope="module")
def scorer(shared_ros: Ros) -> Iterator[NodeProcess]:
    with shared_ros.process("score_node", max_candidates=64) as process:
        active(shared_ros, "score_node")
        yield process


def propose(ros: Ros, **fields: Any) -> Any:
    request = ProposeActions.Request(
        **{"history": observations(), "num_candidates": 8, "seed": 3, **fields}
    )
    return ros.call(ProposeActions, "propose_actions", request, 30.0, again_after=AGAIN)


def score(ros: Ros, **fields: Any) -> Any:
    world = PushTSimulation()
    goal = convert.image_to_msg(world.goal_image(), 10**18, "camera_top")
    start = np.asarray(observations(1)[0].state.position)
    moves = np.linspace(0.0, 0.05, 15)[None, None, :, None] * np.arange(1, 5)[None, :, None, None]
    candidates = convert.tensor_to_msg(start + moves * np.array([1.0, -1.0]))
    request = ScoreCandidates.Request(
        **{"history": observations(1), "goal": goal, "candidates": candidates, **fields}
    )
    return ros.call(ScoreCandidates, "score_candidates", request, 30.0, again_after=AGAIN)


def test_the_policy_proposes_in_metres(shared_ros: Ros, policy: NodeProcess) -> None:
    reply = propose(shared_ros)
    assert reply.success, reply.message
    candidates = convert.tensor_from_msg(reply.candidates, "candidates")
    assert candidates.shape == (1, 8, 15, 2)
    assert list(reply.joint_names) == ["pusher_x", "pusher_y"]
    assert convert.duration_to_seconds(reply.step) == pytest.approx(0.1)
    assert (candidates > -0.05).all()
    assert (candidates < 0.56).all()
    metadata = convert.from_key_values(reply.metadata, "metadata")
    assert metadata["model_id"].startswith("policy")
    assert float(metadata["model_latency_s"]) > 0
    again = convert.tensor_from_msg(propose(shared_ros).candidates, "candidates")
    np.testing.assert_array_equal(candidates, again, "the same seed gives the same candidates")
    other = convert.tensor_from_msg(propose(shared_ros, seed=4).candidates, "candidates")
    assert not np.array_equal(candidates, other)
    shorter = convert.tensor_from_msg(propose(shared_ros, horizon=10).candidates, "candidates")
    np.testing.assert_array_equal(shorter, candidates[:, :, :10])


def test_the_policy_uses_its_own_buffer_when_no_history_is_given(
    shared_ros: Ros, policy: NodeProcess
) -> None:
    publisher = shared_ros.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
    shared_ros.connected(publisher)

    def answered() -> bool:
        now = shared_ros.node.get_clock().now().nanoseconds
        for message in observations(2, now - 100_000_000):
            publisher.publish(message)
            shared_ros.spin_for(0.05)
        return bool(propose(shared_ros, history=[]).success)

    shared_ros.wait_until(answered, 10.0, "an answer from the node's own observations")
    shared_ros.node.destroy_publisher(publisher)
    shared_ros.wait_until(
        lambda: propose(shared_ros, history=[]).error_code == "OBSERVATION_STALE", 10.0
    )


def swapped_camera() -> list[ObservationMsg]:
    messages = observations()
    messages[0].camera_names = ["wrist"]
    return messages


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"num_candidates": 0}, "NO_CANDIDATES"),
        ({"num_candidates": 10_000}, "TOO_MANY_CANDIDATES"),
        ({"horizon": 16}, "HORIZON_INVALID"),
        ({"mode": "dream"}, "POLICY_MODE_UNSUPPORTED"),
        ({"embodiment_tag": "aloha"}, "EMBODIMENT_MISMATCH"),
        ({"seed": -7}, "INVALID_ARGUMENT"),
        ({"options": convert.key_values({"warp": "9"})}, "INVALID_ARGUMENT"),
        ({"history": observations(1)}, "HISTORY_TOO_SHORT"),
        ({"history": observations(1) * 2}, "HISTORY_TOO_SHORT"),
        ({"history": swapped_camera()}, "CAMERA_MISSING"),
    ],
)
def test_a_bad_proposal_request_has_its_code_and_a_good_one_works_after(
    shared_ros: Ros, policy: NodeProcess, fields: dict[str, Any], code: str
) -> None:
    reply = propose(shared_ros, **fields)
    assert not reply.success
    assert reply.error_code == code, reply.message
    assert reply.message
    assert propose(shared_ros).success


def test_the_world_model_scores_every_candidate(shared_ros: Ros, scorer: NodeProcess) -> None:
    reply = score(shared_ros)
    assert reply.success, reply.message
    assert len(reply.scores) == 4
    assert np.isfinite(reply.scores).all()
    assert reply.best_index == int(np.argmin(reply.scores))
    assert reply.lower_is_better
    assert convert.duration_to_seconds(reply.latency) > 0
    again = score(shared_ros)
    np.testing.assert_array_equal(reply.scores, again.scores)
    other = PushTSimulation()
    other.reset(seed=77)
    goal = convert.image_to_msg(other.image(), 10**18, "camera_top")
    assert not np.array_equal(score(shared_ros, goal=goal).scores, reply.scores)


def test_the_last_goal_picture_is_kept(shared_ros: Ros, scorer: NodeProcess) -> None:
    publisher = shared_ros.node.create_publisher(Image, "goal_image", qos.LATCHED)
    shared_ros.connected(publisher)
    small = convert.image_to_msg(np.zeros((64, 64, 3), np.uint8), 10**18, "camera_top")
    publisher.publish(small)
    shared_ros.spin_for(0.3)
    assert score(shared_ros, goal=Image()).error_code == "GOAL_MISSING", "a wrong size is not kept"
    publisher.publish(convert.image_to_msg(PushTSimulation().goal_image(), 10**18, "camera_top"))
    reply = shared_ros.wait_until(
        lambda: next((r for r in [score(shared_ros, goal=Image())] if r.success), None)
    )
    np.testing.assert_array_equal(reply.scores, score(shared_ros).scores)


def tensor(shape: tuple[int, ...], value: float = 0.2) -> Any:
    return convert.tensor_to_msg(np.full(shape, value))


def odd_length() -> Any:
    message = tensor((1, 2, 15, 2))
    message.data = message.data[:-1]
    return message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"candidates": tensor((2, 15, 2))}, "TENSOR_SHAPE_MISMATCH"),
        ({"candidates": tensor((2, 2, 15, 2))}, "BATCH_SIZE_UNSUPPORTED"),
        ({"candidates": tensor((1, 0, 15, 2))}, "NO_CANDIDATES"),
        ({"candidates": tensor((1, 65, 15, 2))}, "TOO_MANY_CANDIDATES"),
        ({"candidates": tensor((1, 2, 15, 3))}, "ACTION_DIM_MISMATCH"),
        ({"candidates": tensor((1, 2, 14, 2))}, "HORIZON_NOT_WHOLE_BLOCKS"),
        ({"candidates": tensor((1, 2, 15, 2), np.nan)}, "TENSOR_NOT_FINITE"),
        ({"candidates": odd_length()}, "TENSOR_DATA_LENGTH"),
        ({"objective": "beauty"}, "OBJECTIVE_UNKNOWN"),
        ({"action_space": 9}, "INVALID_ARGUMENT"),
        ({"history": observations(2)}, "HISTORY_TOO_SHORT"),
        (
            {"goal": convert.image_to_msg(np.zeros((64, 64, 3), np.uint8), 1, "camera_top")},
            "IMAGE_SIZE_MISMATCH",
        ),
        ({"goal": Image(height=96, width=96, encoding="rgb8")}, "IMAGE_DATA_INVALID"),
    ],
)
def test_a_bad_scoring_request_has_its_code_and_a_good_one_works_after(
    shared_ros: Ros, scorer: NodeProcess, fields: dict[str, Any], code: str
) -> None:
    reply = score(shared_ros, **fields)
    assert not reply.success
    assert reply.error_code == code, reply.message
    assert reply.message
    assert reply.best_index == -1
    assert score(shared_ros).success


def test_a_managed_node_answers_only_while_active(ros: Ros) -> None:
    def change(transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert ros.call(ChangeState, "score_node/change_state", request, START).success

    with ros.process("score_node", autostart=False):
        assert score(ros).error_code == "MODEL_NOT_READY"
        change(Transition.TRANSITION_CONFIGURE)
        assert score(ros).error_code == "MODEL_NOT_READY"
        change(Transition.TRANSITION_ACTIVATE)
        assert score(ros).success
        change(Transition.TRANSITION_DEACTIVATE)
        assert score(ros).error_code == "MODEL_NOT_READY"


def three_joints(folder: Path) -> dict[str, Any]:
    data = yaml.safe_load((share_dir() / "config/embodiments/pusht.yaml").read_text())
    data["joints"].append({**data["joints"][0], "name": "pusher_z"})
    path = folder / "three.yaml"
    path.write_text(yaml.safe_dump(data))
    return {"embodiment": str(path)}


def without_processors(folder: Path) -> dict[str, Any]:
    copy = folder / "old"
    shutil.copytree(POLICY, copy, ignore=shutil.ignore_patterns("policy_p*"))
    return {"policy_path": str(copy)}


def without_statistics(folder: Path) -> dict[str, Any]:
    copy = folder / "bare"
    shutil.copytree(WORLD_MODEL, copy)
    card = json.loads((copy / "preprocessing.json").read_text())
    (copy / "preprocessing.json").write_text(
        json.dumps({key: None if "action_" in key else value for key, value in card.items()})
    )
    return {"model_path": str(copy)}


@pytest.mark.parametrize(
    ("node", "parameters", "named"),
    [
        (
            "policy_node",
            lambda folder: {"policy_path": str(folder / "none")},
            "CHECKPOINT_MISSING",
        ),
        (
            "score_node",
            lambda folder: {"model_path": str(folder / "none")},
            "CHECKPOINT_MISSING",
        ),
        ("policy_node", lambda folder: {"embodiment": "so101"}, "EMBODIMENT_UNKNOWN"),
        ("policy_node", lambda folder: {"device": "warp"}, "DEVICE_UNAVAILABLE"),
        ("policy_node", three_joints, "ACTION_DIM_MISMATCH"),
        ("policy_node", without_processors, "POLICY_NOT_MIGRATED"),
        ("score_node", three_joints, "EMBODIMENT_MISMATCH"),
        ("score_node", without_statistics, "ACTION_STATISTICS_MISSING"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_clear_line(
    ros: Ros, tmp_path: Path, node: str, parameters: Any, named: str
) -> None:
    with ros.process(node, **parameters(tmp_path)) as process:
        status, output = process.finish(START)
    assert status == 2
    lines = [line for line in output.splitlines() if line.startswith("worldforge:")]
    assert len(lines) == 1, output
    assert named in lines[0]
    assert "expected" in lines[0]
