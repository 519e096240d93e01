"""The policy node's contract over real DDS: environment, modes, options, resets, faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
pytest.importorskip("lerobot", reason="lerobot is not installed")

from faulty_policy_node import NOT_FINITE, RAISES, WRONG_WIDTH
from ros_support import NodeProcess, Ros
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from test_model_nodes import POLICY, START, active, observations, propose

from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.ros import convert, qos


@pytest.fixture(scope="module")
def shared_ros() -> Iterator[Ros]:
    corner = Ros()
    yield corner
    corner.close()


@pytest.fixture(scope="module")
def policy(shared_ros: Ros, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """The shipped policy, named by the environment alone."""
    folder = tmp_path_factory.mktemp("checkpoints") / "from_environment"
    shutil.copytree(POLICY, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEROBOT_POLICY_PATH", str(folder))
        patch.setenv("LEROBOT_POLICY", "ignored/by_the_other")
        patch.setenv("LEROBOT_POLICY_TYPE", "diffusion")
        patch.setenv("LEROBOT_DEVICE", "cpu")
        patch.setenv("LEROBOT_EMBODIMENT_TAG", "pusht")
        process = shared_ros.process("policy_node", num_inference_steps=3, warmup_candidates=2)
    with process:
        active(shared_ros, "policy_node")
        yield process


def metadata(reply: Any) -> dict[str, str]:
    assert reply.success, f"{reply.error_code} {reply.message}"
    return convert.from_key_values(reply.metadata, "metadata")


def candidates(reply: Any) -> Any:
    assert reply.success, f"{reply.error_code} {reply.message}"
    return convert.tensor_from_msg(reply.candidates, "candidates")


def test_the_environment_names_the_policy(shared_ros: Ros, policy: NodeProcess) -> None:
    found = metadata(propose(shared_ros))
    assert found["model_id"].startswith("from_environment@")
    assert found["loader_mode"] == "typed"
    assert found["type"] == "diffusion"
    assert found["num_inference_steps"] == "3"
    assert json.loads(found["contract"])["joints"] == ["pusher_x", "pusher_y"]
    assert json.loads(found["raw_action"])["shape"] == [8, 15, 2]
    assert float(found["diversity"]) > 0


def test_modes_and_options(shared_ros: Ros, policy: NodeProcess) -> None:
    chunk = candidates(propose(shared_ros, mode="predict_chunk"))
    action = candidates(propose(shared_ros, mode="select_action"))
    np.testing.assert_array_equal(action, chunk[:, :, :1])
    steps = convert.key_values({"num_inference_steps": "1"})
    quick = propose(shared_ros, options=steps)
    assert metadata(quick)["num_inference_steps"] == "1"
    assert not np.array_equal(candidates(quick), chunk)
    many = propose(shared_ros, mode="select_action", horizon=2)
    assert many.error_code == "HORIZON_INVALID"
    wrong = propose(shared_ros, options=convert.key_values({"num_inference_steps": "many"}))
    assert wrong.error_code == "INVALID_ARGUMENT"
    assert "options.num_inference_steps" in wrong.message


def test_a_new_goal_and_the_reset_service_begin_anew(shared_ros: Ros, policy: NodeProcess) -> None:
    before = int(metadata(propose(shared_ros))["resets"])
    assert int(metadata(propose(shared_ros))["resets"]) == before
    goals = shared_ros.node.create_publisher(Image, "goal_image", qos.LATCHED)
    shared_ros.connected(goals)

    def resets() -> int:
        return int(metadata(propose(shared_ros, num_candidates=1))["resets"])

    picture = np.zeros((96, 96, 3), np.uint8)
    goals.publish(convert.image_to_msg(picture, 10**18, "camera_top"))
    shared_ros.wait_until(lambda: resets() == before + 1, 10.0, "a reset by the goal")
    # The same goal again, and then another one: one reset more, not two.
    goals.publish(convert.image_to_msg(picture, 2 * 10**18, "camera_top"))
    goals.publish(convert.image_to_msg(picture + 1, 2 * 10**18, "camera_top"))
    shared_ros.wait_until(lambda: resets() == before + 2, 10.0, "a reset by the other goal")
    shared_ros.node.destroy_publisher(goals)

    publisher = shared_ros.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
    shared_ros.connected(publisher)

    def answered() -> bool:
        now = shared_ros.node.get_clock().now().nanoseconds
        for message in observations(2, now - 100_000_000):
            publisher.publish(message)
        return bool(propose(shared_ros, history=[]).success)

    shared_ros.wait_until(answered, 10.0, "an answer from the node's own observations")
    shared_ros.node.destroy_publisher(publisher)
    reply = shared_ros.call(Trigger, "policy_node/reset", Trigger.Request())
    assert reply.success
    assert propose(shared_ros, history=[]).error_code in (
        "OBSERVATION_MISSING",
        "HISTORY_TOO_SHORT",
    )
    assert resets() == before + 3


def test_another_embodiment_tag_in_the_environment_ends_the_start(
    ros: Ros, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEROBOT_EMBODIMENT_TAG", "aloha")
    with ros.process("policy_node") as process:
        status, output = process.finish(START)
    assert status == 2
    assert "EMBODIMENT_MISMATCH" in output
    assert "LEROBOT_EMBODIMENT_TAG" in output


def test_a_faulty_policy_does_not_take_the_node_down(ros: Ros) -> None:
    with ros.process("faulty_policy_node.py"):
        active(ros, "policy_node")
        one = observations(1)
        good = propose(ros, history=one, seed=9)
        assert candidates(good).shape == (1, 8, 4, 2)
        assert metadata(good)["loader_mode"] == "injected"

        dropped = propose(ros, history=one, seed=NOT_FINITE)
        assert candidates(dropped).shape == (1, 7, 4, 2)
        assert metadata(dropped)["dropped"] == "2"
        assert metadata(dropped)["requested"] == "8"

        raised = propose(ros, history=one, seed=RAISES)
        assert raised.error_code == "MODEL_FAILED"
        assert "RuntimeError (out of ideas)" in raised.message

        wide = propose(ros, history=one, seed=WRONG_WIDTH)
        assert wide.error_code == "ACTION_DIM_MISMATCH"

        nowhere = observations(1)
        nowhere[0].state.position = [np.nan, 0.1]
        assert propose(ros, history=nowhere).error_code == "TENSOR_NOT_FINITE"
        blind = observations(1)
        blind[0].images[0].width = 32
        assert propose(ros, history=blind).error_code in (
            "IMAGE_DATA_INVALID",
            "IMAGE_SIZE_MISMATCH",
        )
        assert propose(ros, history=[ObservationMsg()]).error_code == "EMBODIMENT_MISMATCH"

        again = propose(ros, history=one, seed=9)
        np.testing.assert_array_equal(candidates(again), candidates(good))
