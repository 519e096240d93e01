"""The three silent mistakes of a world model's input, with numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldforge_ros.bridges.world_model import ActionBridge, pack_blocks, unpack_blocks
from worldforge_ros.embodiment import Tracking, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError

MEAN, STD = (0.5, -0.25), (2.0, 0.5)


@pytest.fixture
def bridge() -> ActionBridge:
    return ActionBridge.of(load_embodiment("pusht"), MEAN, STD)


def test_blocks_are_time_major() -> None:
    # x is 0..9 and y is 100..109: a block holds five consecutive (x, y) pairs, not xxxxxyyyyy.
    actions = np.stack([np.arange(10.0), 100 + np.arange(10.0)], axis=-1)[None]
    assert pack_blocks(actions, 5).tolist() == [
        [
            [0, 100, 1, 101, 2, 102, 3, 103, 4, 104],
            [5, 105, 6, 106, 7, 107, 8, 108, 9, 109],
        ]
    ]


def test_z_score_uses_each_dimension_s_own_statistics(bridge: ActionBridge) -> None:
    # (4.5 - 0.5) / 2 = 2 and (0.75 + 0.25) / 0.5 = 2; (0.5 - 0.5) / 2 = 0 and (-0.5 + 0.25) / 0.5 =
    # -0.5
    assert bridge.normalise([[4.5, 0.75], [0.5, -0.5]]).tolist() == [[2.0, 2.0], [0.0, -0.5]]


def test_relative_to_the_expected_position_of_that_step(bridge: ActionBridge) -> None:
    # Set-points 10 mm away in x from rest. Relative action 0: 0.01 m * 10 = 0.1. Ten ticks of
    # u' = 0.8 u + 0.01 e, e' = e - u' from e = 1, u = 0, by hand, leave e = 0.70432821408656.
    unit = dataclasses.replace(bridge, mean=np.zeros(2), std=np.ones(2))
    setpoints = np.tile([0.11, 0.2], (1, 5, 1))
    blocks = unit.setpoints_to_blocks(setpoints, [0.1, 0.2], [0.0, 0.0])
    assert blocks.shape == (1, 1, 10)
    assert blocks[0, 0, 0] == pytest.approx(0.1, abs=1e-12)
    assert blocks[0, 0, 2] == pytest.approx(0.070432821408656, abs=1e-12)
    assert np.abs(blocks[0, 0, 1::2]).max() < 1e-12


def test_whole_conversion_by_hand(bridge: ActionBridge) -> None:
    # With perfect tracking a step starts where the last set-point was.
    perfect = dataclasses.replace(bridge, tracking=Tracking(law="perfect"))
    setpoints = [[0.30, 0.10], [0.35, 0.05], [0.35, 0.05], [0.25, 0.15], [0.25, 0.20]]
    # x: (.05, .05, 0, -.1, 0) * 10, minus 0.5, over 2; y: (0, -.05, 0, .1, .05) * 10, plus 0.25,
    # over 0.5
    expected = [0.0, 0.5, 0.0, -0.5, -0.25, 0.5, -0.75, 2.5, -0.25, 1.5]
    found = perfect.setpoints_to_blocks([setpoints], [0.25, 0.10], [0.0, 0.0])
    np.testing.assert_allclose(found, [[expected]], atol=1e-12)


def test_absolute_models_get_scaled_set_points(bridge: ActionBridge) -> None:
    absolute = dataclasses.replace(bridge, meaning="absolute", mean=np.zeros(2), std=np.ones(2))
    setpoints = np.tile([0.11, 0.2], (2, 5, 1))
    found = absolute.setpoints_to_blocks(setpoints, [0.4, 0.4], [1.0, 0.0])
    np.testing.assert_allclose(found, np.tile([1.1, 2.0], (2, 1, 5)))


@settings(max_examples=50, deadline=None)
@given(
    setpoints=hnp.arrays(np.float64, (3, 10, 2), elements=st.floats(0.0, 0.512)),
    velocity=hnp.arrays(np.float64, (2,), elements=st.floats(-1.0, 1.0)),
    meaning=st.sampled_from(["relative", "absolute"]),
    law=st.sampled_from(["pd", "perfect"]),
)
def test_inverse_is_exact(setpoints, velocity, meaning, law) -> None:  # type: ignore[no-untyped-def]
    whole = ActionBridge.of(load_embodiment("pusht"), MEAN, STD)
    tracking = whole.tracking if law == "pd" else Tracking(law="perfect")
    bridge = dataclasses.replace(whole, meaning=meaning, tracking=tracking)
    blocks = bridge.setpoints_to_blocks(setpoints, [0.2, 0.3], velocity)
    back = bridge.blocks_to_setpoints(blocks, [0.2, 0.3], velocity)
    np.testing.assert_allclose(back, setpoints, atol=1e-10)


def test_unpack_is_the_inverse_of_pack() -> None:
    actions = np.random.default_rng(0).normal(size=(4, 15, 2))
    assert (unpack_blocks(pack_blocks(actions, 5), 2) == actions).all()


@pytest.mark.parametrize("horizon", [0, 1, 4, 6, 16])
def test_partial_blocks_are_refused(horizon: int) -> None:
    with pytest.raises(
        WorldForgeError, match=f"{horizon} actions; expected a multiple of 5"
    ) as info:
        pack_blocks(np.zeros((2, horizon, 2)), 5)
    assert info.value.code is ErrorCode.HORIZON_NOT_WHOLE_BLOCKS


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0, 0, 0), (1, 1)), ((0, 0), (1, 0)), ((0, np.nan), (1, 1)), ((0, 0), (1, -1)), (0.0, 1.0)],
)
def test_bad_statistics_are_refused(mean: object, std: object) -> None:
    with pytest.raises(WorldForgeError) as info:
        ActionBridge.of(load_embodiment("pusht"), mean, std)  # type: ignore[arg-type]
    assert info.value.code is ErrorCode.ACTION_STATISTICS_MISSING
