"""What a scoring request and its costs must look like, on any input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.contract import (
    check_actions,
    check_costs,
    check_scene,
    one_batch,
    outside_limits,
    unscored,
)

SHAPES = hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4)


def code_of(call: Callable[[], object]) -> ErrorCode | None:
    """The error code of a call, None where it succeeds."""
    try:
        call()
    except WorldForgeError as error:
        return error.code
    return None


@given(shape=SHAPES)
def test_only_one_batch_of_samples_gets_through(shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        expected = ErrorCode.TENSOR_SHAPE_MISMATCH
    elif shape[0] != 1:
        expected = ErrorCode.BATCH_SIZE_UNSUPPORTED
    elif shape[1] == 0:
        expected = ErrorCode.NO_CANDIDATES
    elif shape[1] > 3:
        expected = ErrorCode.TOO_MANY_CANDIDATES
    elif shape[2] > 2:
        expected = ErrorCode.HORIZON_INVALID
    else:
        assert one_batch(np.zeros(shape, np.float32), most=3, longest=2).shape == shape[1:]
        return
    assert code_of(lambda: one_batch(np.zeros(shape, np.float32), 3, 2)) is expected


@given(
    values=hnp.arrays(
        np.float32, SHAPES, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    ),
    width=st.integers(1, 3),
)
def test_actions_that_pass_are_finite_and_of_the_right_width(
    values: np.ndarray[Any, Any], width: int
) -> None:
    if values.ndim != 3:
        expected = ErrorCode.TENSOR_SHAPE_MISMATCH
    elif values.shape[0] == 0:
        expected = ErrorCode.NO_CANDIDATES
    elif values.shape[2] != width:
        expected = ErrorCode.ACTION_DIM_MISMATCH
    elif values.shape[1] == 0:
        expected = ErrorCode.HORIZON_NOT_WHOLE_BLOCKS
    elif not np.isfinite(values).all():
        expected = ErrorCode.TENSOR_NOT_FINITE
    else:
        checked = check_actions("candidates", values, width)
        assert checked.dtype == np.float64
        np.testing.assert_array_equal(checked, values)
        return
    assert code_of(lambda: check_actions("candidates", values, width)) is expected


COSTS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    data=st.data(),
    samples=st.integers(1, 6),
    layout=st.sampled_from(["S", "1S", "S1"]),
)
def test_costs_of_every_layout(data: st.DataObject, samples: int, layout: str) -> None:
    flat = np.array(data.draw(st.lists(COSTS, min_size=samples, max_size=samples)), np.float32)
    shape = {"S": (samples,), "1S": (1, samples), "S1": (samples, 1)}[layout]
    scored = np.isfinite(flat)
    if not scored.any():
        with pytest.raises(WorldForgeError) as info:
            check_costs(flat.reshape(shape), samples, "model")
        assert info.value.code is ErrorCode.COSTS_INVALID
        return
    costs, best = check_costs(flat.reshape(shape), samples, "model")
    np.testing.assert_array_equal(costs[scored], flat[scored])
    assert np.isnan(costs[~scored]).all()
    assert scored[best]
    assert best == min(i for i in range(samples) if flat[i] == flat[scored].min())
    listed = [int(item) for item in unscored(costs).split(",") if item]
    assert listed == np.flatnonzero(~scored).tolist()


@given(shape=SHAPES, samples=st.integers(1, 4))
def test_costs_of_another_shape_are_refused(shape: tuple[int, ...], samples: int) -> None:
    raw = np.ones(shape, np.float32)
    if shape in ((samples,), (1, samples), (samples, 1)):
        assert check_costs(raw, samples, "model")[1] == 0
        return
    with pytest.raises(WorldForgeError, match=f"expected finite numbers of shape .{samples},"):
        check_costs(raw, samples, "model")


@pytest.mark.parametrize(
    "raw",
    [[True, False], ["1", "2"], [1 + 2j, 3], [[1.0], [2.0, 3.0]], None, object(), [None, 1.0]],
)
def test_costs_that_are_no_numbers_are_refused(raw: object) -> None:
    with pytest.raises(WorldForgeError) as info:
        check_costs(raw, 2, "model")
    assert info.value.code is ErrorCode.COSTS_INVALID


def test_a_providers_own_index_is_kept_where_it_has_a_cost() -> None:
    costs = [3.0, 1.0, np.nan, 1.0]
    assert check_costs(costs, 4, "model")[1] == 1, "the first of equal minima"
    assert check_costs(costs, 4, "model", index=3)[1] == 3
    assert check_costs(costs, 4, "model", index=np.int64(0))[1] == 0
    for index in (4, -1, 2, True, 1.0, "1"):
        with pytest.raises(WorldForgeError) as info:
            check_costs(costs, 4, "model", index=index)
        assert info.value.code is ErrorCode.COSTS_INVALID


def test_candidates_in_millimetres_are_named() -> None:
    pusht = load_embodiment("pusht")
    setpoints = np.full((4, 10, 2), 0.3, dtype=np.float32)
    setpoints[0, 3] = 0.512  # as float32 that is more
    assert outside_limits(setpoints, pusht) == ""
    setpoints[1, 9, 1] = 0.513
    setpoints[3] *= 1000.0
    assert outside_limits(setpoints, pusht) == "1,3"


def test_a_goal_of_another_size_is_called_a_goal() -> None:
    pusht = load_embodiment("pusht")
    seen = Observation(1, {"top": np.zeros((96, 96, 3), np.uint8)}, np.zeros(2), np.zeros(2))
    with pytest.raises(WorldForgeError) as caught:
        check_scene([seen], np.zeros((64, 64, 3), np.uint8), 1, pusht)
    assert caught.value.code is ErrorCode.IMAGE_SIZE_MISMATCH
    assert caught.value.message.startswith("goal image for camera top is (64, 64, 3) uint8;")
