"""Messages to core objects and back."""

from __future__ import annotations

import array
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image as Picture

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from sensor_msgs.msg import CompressedImage, Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import Tensor
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert

PUSHT = load_embodiment("pusht")
RNG = np.random.default_rng(0)


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
        elements=st.floats(width=32),
    )
)
def test_a_tensor_survives_the_round_trip(values: np.ndarray) -> None:
    back = convert.tensor_from_msg(convert.tensor_to_msg(values), "t")
    if values.size:
        assert back.shape == values.shape
    np.testing.assert_array_equal(back, values.reshape(back.shape))


def test_a_tensor_is_row_major() -> None:
    message = convert.tensor_to_msg(np.array([[1, 2, 3], [4, 5, 6]]))
    assert list(message.shape) == [2, 3]
    assert list(message.data) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("shape", "count"), [([2, 3], 5), ([2, 3], 7), ([], 1), ([0], 1)])
def test_a_tensor_whose_data_does_not_fit_is_refused(shape: list[int], count: int) -> None:
    with pytest.raises(WorldForgeError, match=f"{count} values") as caught:
        convert.tensor_from_msg(Tensor(shape=shape, data=[0.0] * count), "candidates")
    assert caught.value.code is ErrorCode.TENSOR_DATA_LENGTH


def test_rgb8_is_a_view_without_a_copy() -> None:
    picture = RNG.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    message = convert.image_to_msg(picture, 5_000_000_001, "camera_top")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 1)
    back = convert.image_from_msg(message, "image")
    np.testing.assert_array_equal(back, picture)
    assert np.shares_memory(back, np.frombuffer(message.data, np.uint8))


def padded(picture: np.ndarray, encoding: str, padding: int) -> Image:
    height, width = picture.shape[:2]
    rows = np.zeros((height, picture[0].size + padding), np.uint8)
    rows[:, : picture[0].size] = picture.reshape(height, -1)
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.mark.parametrize("padding", [0, 5])
def test_other_encodings_become_rgb(padding: int) -> None:
    picture = RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8)
    rgba = np.dstack([picture, np.full((4, 6), 255, np.uint8)])
    for message in (
        padded(picture, "rgb8", padding),
        padded(picture[..., ::-1], "bgr8", padding),
        padded(rgba, "rgba8", padding),
    ):
        back = convert.image_from_msg(message, "image")
        np.testing.assert_array_equal(back, picture, err_msg=message.encoding)
    gray = convert.image_from_msg(padded(picture[..., :1], "mono8", padding), "image")
    np.testing.assert_array_equal(gray, np.repeat(picture[..., :1], 3, axis=2))


def test_a_compressed_image_is_decoded() -> None:
    picture = RNG.integers(0, 255, (8, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Picture.fromarray(picture).save(stream, "PNG")
    message = CompressedImage(format="png", data=array.array("B", stream.getvalue()))
    np.testing.assert_array_equal(convert.image_from_msg(message, "image"), picture)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"encoding": "holographic"}, ErrorCode.IMAGE_ENCODING_UNSUPPORTED),
        ({"encoding": ""}, ErrorCode.IMAGE_ENCODING_UNSUPPORTED),
        ({"encoding": "bgr8", "step": 1}, ErrorCode.IMAGE_ENCODING_UNSUPPORTED),
        ({"height": 9}, ErrorCode.IMAGE_DATA_INVALID),
        ({"height": 0}, ErrorCode.IMAGE_DATA_INVALID),
        ({"width": 40}, ErrorCode.IMAGE_DATA_INVALID),
        ({"step": 1}, ErrorCode.IMAGE_DATA_INVALID),
    ],
)
def test_a_bad_image_has_its_code(fields: dict[str, Any], code: ErrorCode) -> None:
    message = padded(RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8), "rgb8", 0)
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises(WorldForgeError) as caught:
        convert.image_from_msg(message, "camera top")
    assert caught.value.code is code
    assert "camera top" in caught.value.message


def test_a_broken_jpeg_is_refused() -> None:
    message = CompressedImage(format="jpeg", data=array.array("B", b"no picture"))
    with pytest.raises(WorldForgeError) as caught:
        convert.image_from_msg(message, "camera top")
    assert caught.value.code is ErrorCode.IMAGE_ENCODING_UNSUPPORTED


def observation() -> Observation:
    return Observation(
        stamp=12_345_678_901,
        images={"top": RNG.integers(0, 255, (96, 96, 3), dtype=np.uint8)},
        position=np.array([0.1, 0.2]),
        velocity=np.array([0.3, -0.4]),
    )


def test_an_observation_survives_the_round_trip() -> None:
    before = observation()
    message = convert.observation_to_msg(before, PUSHT, "base")
    assert message.header.frame_id == "base"
    after = convert.observation_from_msg(message, PUSHT)
    assert after.stamp == before.stamp
    np.testing.assert_array_equal(after.images["top"], before.images["top"])
    np.testing.assert_array_equal(after.position, before.position)
    np.testing.assert_array_equal(after.velocity, before.velocity)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("embodiment", "aloha", ErrorCode.EMBODIMENT_MISMATCH),
        ("camera_names", ["wrist"], ErrorCode.CAMERA_MISSING),
        ("camera_names", [], ErrorCode.CAMERA_MISSING),
        ("images", [], ErrorCode.CAMERA_MISSING),
        ("header.stamp.sec", 0, ErrorCode.STAMP_INVALID),
        ("state.name", ["pusher_x", "elbow"], ErrorCode.JOINT_NAMES_MISMATCH),
        ("state.position", [0.1, math.nan], ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_a_bad_observation_has_its_code(field: str, value: Any, code: ErrorCode) -> None:
    message: Any = convert.observation_to_msg(observation(), PUSHT, "base")
    *parents, last = field.split(".")
    place = message
    for name in parents:
        place = getattr(place, name)
    setattr(place, last, value)
    if field == "header.stamp.sec":
        message.header.stamp.nanosec = 0
    with pytest.raises(WorldForgeError) as caught:
        convert.observation_from_msg(message, PUSHT)
    assert caught.value.code is code


def test_a_chunk_survives_the_round_trip() -> None:
    before = ActionChunk(
        stamp=7_100_000_000,
        embodiment="pusht",
        joint_names=("pusher_x", "pusher_y"),
        step=0.1,
        actions=np.array([[0.125, 0.25], [0.5, 0.375]]),
        source="policy",
        epoch=3,
        sequence=9,
        observation_stamp=7_000_000_000,
        cost=1.5,
        margin=0.25,
        model_id="p w",
    )
    after = convert.chunk_from_msg(convert.chunk_to_msg(before, "base"))
    np.testing.assert_array_equal(after.actions, before.actions)
    for name in ("stamp", "embodiment", "joint_names", "step", "source", "epoch", "sequence"):
        assert getattr(after, name) == getattr(before, name)
    assert (after.observation_stamp, after.model_id) == (7_000_000_000, "p w")
    assert (after.cost, after.margin) == (1.5, 0.25)


def test_a_chunk_without_a_runner_up_has_no_margin_on_either_side() -> None:
    chunk = ActionChunk(1, "pusht", PUSHT.joint_names, 0.1, np.zeros((1, 2)), "policy", 1, 1, 1)
    message = convert.chunk_to_msg(chunk, "base")
    assert math.isnan(message.margin)
    assert math.isnan(convert.chunk_from_msg(message).margin)


@given(st.integers(0, 2**62))
def test_stamps_survive_the_round_trip(nanoseconds: int) -> None:
    seconds = nanoseconds % (2**31 * 10**9)
    assert convert.stamp_to_ns(convert.ns_to_stamp(seconds)) == seconds


def test_a_doubled_key_is_refused() -> None:
    pairs = [*convert.key_values({"a": "1"}), *convert.key_values({"a": "2"})]
    with pytest.raises(WorldForgeError) as caught:
        convert.from_key_values(pairs, "options")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
