"""Keypoints from the camera picture: geometry, training loop, processor step, the shipped
weights.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import share_dir
from worldforge_ros.training.fitting import cosine_rate
from worldforge_ros.training.keypoints import (
    add_arguments,
    block_angle,
    measure_errors,
    sample_state,
)

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.timeout(300)


def corners(x: float, y: float, angle: float) -> np.ndarray:
    """The T's corners (16,) in mm, from its drawing: bar 120 x 30, stem 30 x 90 below it."""
    shape = [
        (-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120),
    ]  # fmt: skip
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array(
        [value for a, b in shape for value in (x + cos * a - sin * b, y + sin * a + cos * b)]
    )


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.9, math.pi / 2])
def test_the_angle_of_exact_corners(angle: float) -> None:
    found = float(block_angle(corners(100.0, 300.0, angle)[None])[0])
    assert math.cos(found - angle) == pytest.approx(1.0, abs=1e-12)


def test_errors_by_hand() -> None:
    true = np.stack([corners(256, 256, 0.0), corners(200, 300, 3.1)])
    found = true.copy()
    found[0, 0::2] += 3.0
    found[0, 1::2] += 4.0
    found[1] = corners(200, 300, 3.1 + math.radians(10.0))
    errors = measure_errors(found, true)
    assert errors.pictures == 2
    assert errors.angle_max_deg == pytest.approx(10.0)
    assert errors.angle_mean_deg == pytest.approx(5.0)
    # A turn by 10 degrees moves a corner at radius r by 2 r sin(5 degrees); the stem's end is
    # furthest.
    furthest = 2 * math.hypot(15, 120) * math.sin(math.radians(5.0))
    assert errors.max_mm == pytest.approx(furthest)
    assert measure_errors(found[:1], true[:1]).mean_mm == pytest.approx(5.0)


def test_an_angle_error_across_the_half_turn_is_small() -> None:
    errors = measure_errors(
        corners(0, 0, math.pi + 0.01)[None], corners(0, 0, math.pi - 0.01)[None]
    )
    assert errors.angle_max_deg == pytest.approx(math.degrees(0.02))


def test_sampled_states_cover_the_workspace() -> None:
    rng = np.random.default_rng(0)
    states = np.array([sample_state(rng) for _ in range(2000)])
    assert states[:, :2].min() >= 0.0
    assert states[:, :2].max() <= 512.0
    for column in range(4):
        assert np.ptp(states[:, column]) > 350.0
    gap = np.linalg.norm(states[:, :2] - states[:, 2:4], axis=1)
    assert (gap < 60.0).mean() > 0.1


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [cosine_rate(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert cosine_rate(0, 1, 0) == 1.0


def test_the_step_takes_the_picture_out_and_keeps_leading_dimensions() -> None:
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature
    from lerobot.processor.converters import create_transition
    from lerobot.processor.core import TransitionKey

    from worldforge_ros.policies.keypoint_network import KeypointNetwork
    from worldforge_ros.policies.keypoint_step import ImageToKeypoints

    torch.manual_seed(0)
    network = KeypointNetwork().eval()
    step = ImageToKeypoints()
    step.use(network)
    clip = torch.rand(2, 3, 3, 96, 96)
    state = torch.rand(2, 3, 2)
    given = {"observation.image": clip, "observation.state": state}
    observation = step(create_transition(observation=given))[TransitionKey.OBSERVATION]
    assert set(observation) == {"observation.state", "observation.environment_state"}
    assert "observation.image" in given
    points = observation["observation.environment_state"]
    assert points.shape == (2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(points[1, 2], network(clip[1, 2][None])[0], atol=1e-3, rtol=0)
    batch = step(create_transition(observation={"observation.image": clip[:, 0]}))
    stacked = batch[TransitionKey.OBSERVATION]["observation.environment_state"]
    torch.testing.assert_close(stacked, points[:, 0], atol=1e-3, rtol=0)

    fresh = ImageToKeypoints(**step.get_config())
    assert fresh.state_dict() == {}
    fresh.load_state_dict(step.state_dict())
    again = fresh(create_transition(observation=given))[TransitionKey.OBSERVATION]
    torch.testing.assert_close(again["observation.environment_state"], points)

    offered = {
        PipelineFeatureType.OBSERVATION: {
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96))
        }
    }
    supplied = step.transform_features(offered)[PipelineFeatureType.OBSERVATION]
    assert list(supplied) == ["observation.environment_state"]
    assert supplied["observation.environment_state"].shape == (16,)


def test_the_step_refuses_what_it_cannot_read() -> None:
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    from lerobot.processor.converters import create_transition

    from worldforge_ros.policies.keypoint_network import KeypointNetwork
    from worldforge_ros.policies.keypoint_step import ImageToKeypoints

    step = ImageToKeypoints()
    picture = {"observation.image": torch.rand(1, 3, 96, 96)}
    with pytest.raises(WorldForgeError) as caught:
        step(create_transition(observation=picture))
    assert caught.value.code is ErrorCode.CHECKPOINT_INVALID
    step.use(KeypointNetwork())
    bad = [
        ({"observation.state": torch.rand(1, 2)}, ErrorCode.POLICY_FEATURE_MISMATCH),
        ({"observation.image": torch.rand(1, 3, 64, 64)}, ErrorCode.IMAGE_SIZE_MISMATCH),
        (
            {"observation.image": torch.zeros(1, 3, 96, 96, dtype=torch.uint8)},
            ErrorCode.IMAGE_SIZE_MISMATCH,
        ),
    ]
    for observation, code in bad:
        with pytest.raises(WorldForgeError) as caught:
            step(create_transition(observation=observation))
        assert caught.value.code is code


def test_the_step_reads_larger_pictures_at_the_size_of_its_network() -> None:
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    from lerobot.processor.converters import create_transition
    from lerobot.processor.core import TransitionKey

    from worldforge_ros.policies.keypoint_network import KeypointNetwork, NetworkShape
    from worldforge_ros.policies.keypoint_step import ImageToKeypoints
    from worldforge_ros.scorers.encoders import resize_pixels

    torch.manual_seed(0)
    shape = NetworkShape(
        height=24, width=40, outputs=3, low=-0.4, span=1.2, channels=4, maps=4, code_maps=2,
        hidden=8,
    )  # fmt: skip
    network = KeypointNetwork(shape).eval()
    step = ImageToKeypoints(image_key="observation.images.top", image_size=[96, 160])
    step.use(network)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    given = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    place = step(create_transition(observation={"observation.images.top": given}))
    found = place[TransitionKey.OBSERVATION]["observation.environment_state"]
    assert found.shape == (2, 3)

    # The recorder rounds the small picture to whole numbers, the step does not.
    small = torch.from_numpy(resize_pixels(pixels, (24, 40))).permute(0, 3, 1, 2).float() / 255.0
    with torch.no_grad():
        torch.testing.assert_close(found, network(small), atol=2e-3, rtol=0)
        # An output of 0 is the middle of the range.
        network.head[-1].weight.zero_()
        network.head[-1].bias.zero_()
        torch.testing.assert_close(network(small), torch.full((2, 3), 0.2))

    config = json.loads(json.dumps(step.get_config()))
    fresh = ImageToKeypoints(**config)
    assert fresh.image_shape == (3, 96, 160)
    fresh.load_state_dict(step.state_dict())
    again = fresh(create_transition(observation={"observation.images.top": given}))
    torch.testing.assert_close(
        again[TransitionKey.OBSERVATION]["observation.environment_state"], torch.full((2, 3), 0.2)
    )
    with pytest.raises(WorldForgeError) as caught:
        step(create_transition(observation={"observation.images.top": given[..., :80]}))
    assert caught.value.code is ErrorCode.IMAGE_SIZE_MISMATCH


def test_a_short_training_learns_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")
    from worldforge_ros.training.keypoints import load_network, run

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--data", str(tmp_path), "--states", "64", "--held-out", "16", "--batch", "16"]
    options += ["--log-every", "20"]
    assert run(parser.parse_args([*options, "--steps", "20"])) == 0
    assert run(parser.parse_args([*options, "--steps", "40", "--resume"])) == 0
    rows = [json.loads(line) for line in (tmp_path / "keypoints_training.jsonl").open()]
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[1]["mean_mm"] < rows[0]["mean_mm"]
    network = load_network(tmp_path / "keypoints.safetensors")
    assert not network.training
    with pytest.raises(WorldForgeError) as caught:
        load_network(tmp_path / "absent.safetensors")
    assert caught.value.code is ErrorCode.CHECKPOINT_MISSING


def test_the_shipped_network_reads_new_pictures_within_millimetres() -> None:
    pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")
    from safetensors.torch import load_file

    from worldforge_ros.policies.keypoint_network import KeypointNetwork
    from worldforge_ros.simulation.pusht import PushTSimulation
    from worldforge_ros.training.keypoints import predict

    folder = share_dir() / "models" / "pusht" / "policy"
    files = list(folder.glob("*worldforge_image_to_keypoints.safetensors"))
    assert len(files) == 1, f"{folder} holds no keypoint weights"
    network = KeypointNetwork()
    network.load_state_dict(load_file(files[0]))
    simulation = PushTSimulation()
    rng = np.random.default_rng(12345)
    images, points = [], []
    for _ in range(100):
        simulation.set_state(sample_state(rng))
        images.append(simulation.image())
        points.append(simulation.keypoints().reshape(16))
    errors = measure_errors(predict(network, np.stack(images)), np.stack(points))
    assert errors.mean_mm < 2.0
    assert errors.angle_p95_deg < 3.0
