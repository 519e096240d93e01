"""Messages to core objects, for live messages of rclpy and for messages decoded from a bag alike.

Only the fields of a message are looked at, never its class: what a replay reads is what a node
read. No ROS installation is needed.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    check_image,
    order_joint_state,
)
from worldforge_ros.planning.chunk import ActionChunk


def stamp_to_ns(stamp: Any) -> int:
    """Nanoseconds of a ``builtin_interfaces/Time``."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def duration_to_seconds(duration: Any) -> float:
    """Seconds of a ``builtin_interfaces/Duration``."""
    return float(duration.sec) + float(duration.nanosec) / NANOSECONDS


def tensor_from_msg(message: Any, field: str) -> npt.NDArray[np.float32]:
    """The array of a Tensor message: a view of its data, float32. No shape means empty.

    :raises WorldForgeError: ``TENSOR_DATA_LENGTH`` when data and shape disagree,
        ``TENSOR_SHAPE_MISMATCH`` for a shape that no array can have.
    """
    shape = tuple(int(size) for size in message.shape)
    expected = math.prod(shape) if shape else 0
    if len(message.data) != expected:
        raise mismatch(
            ErrorCode.TENSOR_DATA_LENGTH,
            f"{field}.data",
            found=f"{len(message.data)} values",
            expected=f"{expected}, the product of shape {list(shape)}",
        )
    values = np.frombuffer(message.data, dtype=np.float32) if expected else np.empty(0, np.float32)
    try:
        return values.reshape(shape) if shape else values
    except ValueError as error:
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            f"{field}.shape",
            found=f"{len(shape)} dimensions up to {max(shape)} ({error})",
            expected="an array that can exist",
        ) from error


def image_from_msg(message: Any, field: str) -> ImageArray:
    """The picture (height, width, 3) uint8 RGB of a ``sensor_msgs`` Image or CompressedImage.

    rgb8 is a view of the message's data without a copy. Other encodings and compressed images go
    through ``cv_bridge`` where it is installed, else through ``rosbags.image``.

    :raises WorldForgeError: ``IMAGE_DATA_INVALID`` when the data is too short or cannot be decoded,
        ``IMAGE_ENCODING_UNSUPPORTED`` when nothing knows the encoding.
    """
    if _is_compressed(message):
        return _decode(message, message.format, field)
    if message.height < 1 or message.width < 1 or len(message.data) < message.height * message.step:
        raise mismatch(
            ErrorCode.IMAGE_DATA_INVALID,
            f"{field}.data",
            found=f"{len(message.data)} bytes, {message.width} x {message.height} pixels",
            expected=f"{message.height * message.step} bytes of a picture with pixels",
        )
    if message.encoding != "rgb8":
        return _decode(message, message.encoding, field)
    if message.step < message.width * 3:
        raise mismatch(
            ErrorCode.IMAGE_DATA_INVALID,
            f"{field}.step",
            found=f"{message.step} bytes",
            expected=f"at least {message.width * 3} for {message.width} rgb8 pixels",
        )
    rows = np.frombuffer(message.data, np.uint8, count=message.height * message.step)
    rows = rows.reshape(message.height, message.step)
    return rows[:, : message.width * 3].reshape(message.height, message.width, 3)


def _is_compressed(message: Any) -> bool:
    return hasattr(message, "format")


def _decode(message: Any, encoding: str, field: str) -> ImageArray:
    compressed = _is_compressed(message)
    try:
        from cv_bridge import CvBridge  # pyright: ignore[reportMissingImports]
    except ImportError:
        decode = _decode_with_rosbags
    else:
        bridge = CvBridge()
        convert = bridge.compressed_imgmsg_to_cv2 if compressed else bridge.imgmsg_to_cv2

        def decode(message: Any) -> npt.NDArray[Any]:
            return np.asarray(convert(message, "rgb8"))

    try:
        picture = decode(message)
    except Exception as error:
        # The decoders raise many types (their own, cv2.error, KeyError); all mean the same to a
        # caller.
        raise mismatch(
            ErrorCode.IMAGE_ENCODING_UNSUPPORTED,
            f"{field}.{'format' if compressed else 'encoding'}",
            found=f"'{encoding}' ({' '.join(str(error).split()) or type(error).__name__})",
            expected="an encoding that converts to rgb8, such as rgb8, bgr8, rgba8, mono8 or jpeg",
        ) from error
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise mismatch(
            ErrorCode.IMAGE_ENCODING_UNSUPPORTED,
            f"{field} decoded from '{encoding}'",
            found=f"{picture.shape} {picture.dtype}",
            expected="(height, width, 3) uint8",
        )
    return np.ascontiguousarray(picture)


def _decode_with_rosbags(message: Any) -> npt.NDArray[Any]:
    from rosbags.image import compressed_image_to_cvimage
    from rosbags.image.image import image_to_cvimage

    if _is_compressed(message):
        return np.asarray(compressed_image_to_cvimage(message, "rgb8"))
    return np.asarray(image_to_cvimage(_without_row_padding(message), "rgb8"))


def _without_row_padding(message: Any) -> Any:
    from rosbags.image.image import to_cvtype

    bits, _, _, channels = to_cvtype(message.encoding)
    row = message.width * channels * bits // 8
    if message.step == row:
        return message
    if message.step < row:
        raise ValueError(f"step is {message.step} bytes, a row needs {row}")
    rows = np.frombuffer(message.data, np.uint8, count=message.height * message.step)
    return SimpleNamespace(
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        is_bigendian=message.is_bigendian,
        data=np.ascontiguousarray(rows.reshape(message.height, message.step)[:, :row]),
    )


def observation_from_msg(message: Any, embodiment: Embodiment) -> Observation:
    """The core observation of a ``worldforge_ros/Observation``, checked against the embodiment.

    :raises WorldForgeError: a specific code for the first field that is wrong,
        ``MESSAGE_MALFORMED`` when a field does not exist, as in a recording of an older definition.
    """
    try:
        return _observation(message, embodiment)
    except (AttributeError, TypeError, ValueError) as error:
        raise _malformed("observation", error) from error


def _observation(message: Any, embodiment: Embodiment) -> Observation:
    if message.embodiment != embodiment.name:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            "observation.embodiment",
            found=f"'{message.embodiment}'",
            expected=f"'{embodiment.name}'",
        )
    stamp = stamp_to_ns(message.header.stamp)
    if stamp <= 0:
        raise mismatch(
            ErrorCode.STAMP_INVALID,
            "observation.header.stamp",
            found="0",
            expected="a capture time",
        )
    names = list(message.camera_names)
    if sorted(names) != sorted(embodiment.cameras) or len(message.images) != len(names):
        raise mismatch(
            ErrorCode.CAMERA_MISSING,
            "observation.camera_names",
            found=f"{names} with {len(message.images)} images",
            expected=f"{list(embodiment.cameras)} with one image each",
        )
    images = {}
    for name, image in zip(names, message.images, strict=True):
        images[name] = image_from_msg(image, f"observation.images[{name}]")
        check_image(images[name], name, embodiment)
    state = message.state
    position, velocity = order_joint_state(state.name, state.position, state.velocity, embodiment)
    return Observation(stamp, images, position, velocity, message.task)


def chunk_from_msg(message: Any) -> ActionChunk:
    """The core chunk of a ``worldforge_ros/ActionChunk``; what its values mean is the gate's to
    judge.

    :raises WorldForgeError: ``TENSOR_DATA_LENGTH`` when data and shape of the actions disagree,
        ``MESSAGE_MALFORMED`` when a field does not exist, as in a recording of an older definition.
    """
    try:
        return ActionChunk(
            stamp=stamp_to_ns(message.header.stamp),
            embodiment=message.embodiment,
            joint_names=tuple(message.joint_names),
            step=duration_to_seconds(message.step),
            actions=tensor_from_msg(message.actions, "actions").astype(np.float64),
            source=message.source,
            epoch=message.epoch,
            sequence=message.sequence,
            observation_stamp=stamp_to_ns(message.observation_stamp),
            cost=message.cost,
            margin=message.margin,
            model_id=message.model_id,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise _malformed("chunk", error) from error


def _malformed(field: str, error: Exception) -> WorldForgeError:
    if isinstance(error, AttributeError):
        field, found = f"{field}.{error.name}", "not a field of the message"
    else:
        found = f"of another form ({error})"
    return mismatch(
        ErrorCode.MESSAGE_MALFORMED, field, found=found, expected="the definition of this release"
    )
