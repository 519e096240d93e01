"""The policy bridge: units, features and refusals, with numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldforge_ros.bridges.policy import (
    actions_to_setpoints,
    policy_features,
    setpoints_to_actions,
)
from worldforge_ros.embodiment import Embodiment, PolicyAction, StateFeature, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation


@pytest.fixture(scope="module")
def pusht() -> Embodiment:
    return load_embodiment("pusht")


def with_action(embodiment: Embodiment, action: PolicyAction) -> Embodiment:
    policy = dataclasses.replace(embodiment.policy, action=action)
    return dataclasses.replace(embodiment, policy=policy)


def observation(
    position: tuple[float, ...] = (0.1, 0.2), velocity: tuple[float, ...] = (0.0, 0.0)
) -> Observation:
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    image[3, 7] = (255, 51, 102)
    return Observation(
        stamp=1, images={"top": image}, position=np.array(position), velocity=np.array(velocity)
    )


def test_state_is_in_environment_units_and_pictures_are_channels_first(pusht: Embodiment) -> None:
    features = policy_features([observation((0.1, 0.2)), observation((0.256, 0.5))], pusht)
    assert set(features) == {"observation.state", "observation.image"}
    np.testing.assert_array_equal(
        features["observation.state"],
        np.array([[100.0, 200.0], [256.0, 500.0]], dtype=np.float32),
    )
    picture = features["observation.image"]
    assert picture.shape == (2, 3, 96, 96)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[1, :, 3, 7], [1.0, 0.2, 0.4], rtol=1e-6)
    assert picture[1, :, 7, 3].tolist() == [0.0, 0.0, 0.0]
    assert picture.sum() == pytest.approx(2 * 1.6, rel=1e-6)


def test_a_feature_can_pick_joints_and_velocities_in_its_own_order(pusht: Embodiment) -> None:
    feature = StateFeature(
        joints=("pusher_y", "pusher_x"), quantity="velocity", scale=(10.0, -2.0), offset=(1.0, 0.5)
    )
    policy = dataclasses.replace(pusht.policy, features={"observation.state": feature})
    robot = dataclasses.replace(pusht, policy=policy)
    features = policy_features([observation(velocity=(0.3, -0.4))], robot)
    np.testing.assert_allclose(features["observation.state"], [[-4.0 + 1.0, -0.6 + 0.5]], rtol=1e-6)


def test_absolute_actions_become_metres(pusht: Embodiment) -> None:
    actions = [[[0.0, 512.0], [256.0, 12.5]]]
    setpoints = actions_to_setpoints(actions, (0.1, 0.2), pusht)
    np.testing.assert_allclose(setpoints, [[[0.0, 0.512], [0.256, 0.0125]]], rtol=1e-12)


def test_relative_actions_start_at_the_position_now(pusht: Embodiment) -> None:
    robot = with_action(
        pusht, PolicyAction(meaning="relative", scale=(10.0, 20.0), offset=(1.0, 0.0))
    )
    setpoints = actions_to_setpoints([[2.0, -4.0], [1.0, 0.0]], (0.1, 0.5), robot)
    np.testing.assert_allclose(setpoints, [[0.2, 0.3], [0.1, 0.5]], rtol=1e-12)


@pytest.mark.parametrize("meaning", ["absolute", "relative"])
@given(
    setpoints=arrays(np.float64, (3, 4, 2), elements=st.floats(-2.0, 2.0)),
    scale=st.tuples(st.floats(0.1, 1000.0), st.floats(-1000.0, -0.1)),
    offset=st.tuples(st.floats(-10.0, 10.0), st.floats(-10.0, 10.0)),
)
def test_the_two_directions_are_inverse(
    meaning: str,
    setpoints: np.ndarray,
    scale: tuple[float, float],
    offset: tuple[float, float],
) -> None:
    robot = with_action(
        load_embodiment("pusht"),
        PolicyAction(meaning=meaning, scale=scale, offset=offset),  # type: ignore[arg-type]
    )
    actions = setpoints_to_actions(setpoints, (0.1, -0.3), robot)
    back = actions_to_setpoints(actions, (0.1, -0.3), robot)
    np.testing.assert_allclose(back, setpoints, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (1,), ()])
def test_a_wrong_action_width_names_both(pusht: Embodiment, shape: tuple[int, ...]) -> None:
    with pytest.raises(WorldForgeError) as caught:
        actions_to_setpoints(np.zeros(shape), (0.1, 0.2), pusht)
    assert caught.value.code is ErrorCode.ACTION_DIM_MISMATCH
    assert "expected 2" in caught.value.message
    assert "pusher_x" in caught.value.message
    with pytest.raises(WorldForgeError):
        setpoints_to_actions(np.zeros(shape), (0.1, 0.2), pusht)


def test_bad_observations_are_refused(pusht: Embodiment) -> None:
    good = observation()
    dark = dataclasses.replace(good, images={})
    small = dataclasses.replace(good, images={"top": np.zeros((64, 64, 3), dtype=np.uint8)})
    bad = [
        ([], ErrorCode.OBSERVATION_MISSING),
        ([good, dark], ErrorCode.CAMERA_MISSING),
        ([small], ErrorCode.IMAGE_SIZE_MISMATCH),
        ([observation((0.1, 0.2, 0.3))], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([observation((0.1, float("nan")))], ErrorCode.TENSOR_NOT_FINITE),
        ([observation(velocity=(float("inf"), 0.0))], ErrorCode.TENSOR_NOT_FINITE),
    ]
    for history, code in bad:
        with pytest.raises(WorldForgeError) as caught:
            policy_features(history, pusht)
        assert caught.value.code is code
