"""Time alignment, history windows and the refusal of what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import (
    Observation,
    ObservationAligner,
    ObservationHistory,
    check_window,
)

PUSHT = load_embodiment("pusht")
MS = 1_000_000
NAMES = ("pusher_x", "pusher_y")
PICTURE = np.zeros((96, 96, 3), np.uint8)


def aligner_with_state(stamp_ms: int = 1000) -> ObservationAligner:
    aligner = ObservationAligner(PUSHT)
    aligner.add_joint_state(stamp_ms * MS, NAMES, (0.1, 0.2), (0.0, 0.0))
    return aligner


def test_the_joint_state_is_the_one_nearest_to_the_picture() -> None:
    aligner = ObservationAligner(PUSHT)
    for stamp in range(1000, 1100, 20):
        aligner.add_joint_state(stamp * MS, NAMES, (stamp / 1e4, 0.2), (0.5, 0.0))
    aligner.add_image("top", 1037 * MS, PICTURE)
    observation = aligner.observe(1080 * MS)
    assert observation is not None
    assert observation.stamp == 1037 * MS
    assert observation.position.tolist() == [0.104, 0.2]
    assert observation.velocity.tolist() == [0.5, 0.0]
    assert aligner.observe(1090 * MS) is None, "the same picture is not an observation twice"


def test_joints_are_taken_by_name() -> None:
    aligner = ObservationAligner(PUSHT)
    names = ("gripper", "pusher_y", "pusher_x")
    aligner.add_joint_state(1000 * MS, names, (9.0, 0.2, 0.1), (8.0, 2.0, 1.0))
    aligner.add_image("top", 1000 * MS, PICTURE)
    observation = aligner.observe(1000 * MS)
    assert observation is not None
    assert observation.position.tolist() == [0.1, 0.2]
    assert observation.velocity.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("names", "position", "velocity", "code"),
    [
        (("pusher_x",), (0.1,), (0.0,), ErrorCode.JOINT_NAMES_MISMATCH),
        (("pusher_x", "pusher_x"), (0.1, 0.1), (0.0, 0.0), ErrorCode.JOINT_NAMES_MISMATCH),
        (NAMES, (0.1,), (0.0, 0.0), ErrorCode.TENSOR_SHAPE_MISMATCH),
        (NAMES, (0.1, 0.1), (), ErrorCode.TENSOR_SHAPE_MISMATCH),
        (NAMES, (0.1, float("nan")), (0.0, 0.0), ErrorCode.TENSOR_NOT_FINITE),
        (NAMES, (0.1, 0.1), (float("inf"), 0.0), ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_a_bad_joint_state_has_its_code(
    names: tuple[str, ...],
    position: tuple[float, ...],
    velocity: tuple[float, ...],
    code: ErrorCode,
) -> None:
    with pytest.raises(WorldForgeError) as caught:
        ObservationAligner(PUSHT).add_joint_state(1 * MS, names, position, velocity)
    assert caught.value.code is code


def test_what_is_missing_or_old_is_named() -> None:
    aligner = ObservationAligner(PUSHT)
    assert aligner.missing() == ("top", "joint_states")

    def code(now_ms: int) -> ErrorCode:
        with pytest.raises(WorldForgeError) as caught:
            aligner.observe(now_ms * MS)
        return caught.value.code

    assert code(1000) is ErrorCode.CAMERA_MISSING
    aligner.add_image("top", 1000 * MS, PICTURE)
    assert code(1000) is ErrorCode.JOINT_STATE_MISSING
    aligner.add_joint_state(900 * MS, NAMES, (0.1, 0.2), (0.0, 0.0))
    assert code(1000) is ErrorCode.JOINT_STATE_STALE, "100 ms from the stamp, tolerance is 50"
    aligner.add_joint_state(1010 * MS, NAMES, (0.1, 0.2), (0.0, 0.0))
    assert code(1501) is ErrorCode.CAMERA_STALE
    assert aligner.observe(1500 * MS) is not None


@pytest.mark.parametrize(
    ("camera", "picture", "code"),
    [
        ("wrist", PICTURE, ErrorCode.CAMERA_MISSING),
        ("top", PICTURE[:95], ErrorCode.IMAGE_SIZE_MISMATCH),
        ("top", PICTURE.astype(np.float32), ErrorCode.IMAGE_SIZE_MISMATCH),
        ("top", PICTURE[..., 0], ErrorCode.IMAGE_SIZE_MISMATCH),
    ],
)
def test_a_bad_picture_has_its_code(camera: str, picture: np.ndarray, code: ErrorCode) -> None:
    with pytest.raises(WorldForgeError) as caught:
        aligner_with_state().add_image(camera, 1 * MS, picture)
    assert caught.value.code is code


def test_stamps_must_be_set_and_rise_and_a_reset_clock_starts_anew() -> None:
    aligner = aligner_with_state(10_000)
    with pytest.raises(WorldForgeError) as caught:
        aligner.add_image("top", 0, PICTURE)
    assert caught.value.code is ErrorCode.STAMP_INVALID
    aligner.add_image("top", 10_000 * MS, PICTURE)
    with pytest.raises(WorldForgeError) as caught:
        aligner.add_image("top", 10_000 * MS, PICTURE)
    assert caught.value.code is ErrorCode.OBSERVATION_OUT_OF_ORDER
    with pytest.raises(WorldForgeError) as caught:
        aligner.add_joint_state(9_990 * MS, NAMES, (0.1, 0.2), (0.0, 0.0))
    assert caught.value.code is ErrorCode.OBSERVATION_OUT_OF_ORDER
    aligner.add_joint_state(100 * MS, NAMES, (0.1, 0.2), (0.0, 0.0))
    aligner.add_image("top", 110 * MS, PICTURE)
    observation = aligner.observe(120 * MS)
    assert observation is not None
    assert observation.stamp == 110 * MS


def frame(stamp_ms: int) -> Observation:
    return Observation(stamp_ms * MS, {}, np.zeros(2), np.zeros(2))


@given(
    jitter=st.lists(st.integers(-20, 20), min_size=30, max_size=30),
    count=st.integers(1, 4),
    apart=st.sampled_from([1, 2, 5]),
)
def test_a_window_holds_different_frames_at_the_right_times(
    jitter: list[int], count: int, apart: int
) -> None:
    history = ObservationHistory(duration=10.0)
    for index, offset in enumerate(jitter):
        history.add(frame(1000 + 100 * index + offset))
    window = history.window(count, apart * 0.1, tolerance=0.05)
    stamps = [item.stamp for item in window]
    assert len(set(stamps)) == count
    assert stamps == sorted(stamps)
    assert stamps[-1] == history.newest().stamp
    for back, stamp in enumerate(reversed(stamps)):
        assert abs(stamps[-1] - back * apart * 100 * MS - stamp) <= 50 * MS
    check_window(window, count, apart * 0.1, tolerance=0.1)


def test_a_window_is_never_filled_by_repetition() -> None:
    history = ObservationHistory(duration=10.0)
    with pytest.raises(WorldForgeError) as caught:
        history.window(1, 0.1, 0.05)
    assert caught.value.code is ErrorCode.OBSERVATION_MISSING
    history.add(frame(1000))
    history.add(frame(1000))
    assert len(history) == 1
    with pytest.raises(WorldForgeError) as caught:
        history.window(2, 0.1, 0.05)
    assert caught.value.code is ErrorCode.HISTORY_TOO_SHORT
    with pytest.raises(WorldForgeError) as caught:
        check_window([frame(1000), frame(1000)], 2, 0.1, 0.05)
    assert caught.value.code is ErrorCode.HISTORY_TOO_SHORT


def test_the_history_is_bounded_and_forgets_when_time_goes_back() -> None:
    history = ObservationHistory(duration=1.0)
    for stamp in range(1000, 9000, 100):
        history.add(frame(stamp))
    assert len(history) == 11
    history.add(frame(500))
    assert history.stamps() == (500 * MS,)
    with pytest.raises(WorldForgeError) as caught:
        history.check_age(2_000 * MS, max_age=1.0)
    assert caught.value.code is ErrorCode.OBSERVATION_STALE
