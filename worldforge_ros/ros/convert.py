"""ROS messages to core objects and back. Nothing here decides anything; bad input gets a code."""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import KeyValue
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.msg import Tensor
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    check_image,
    order_joint_state,
    seconds_to_ns,
)
from worldforge_ros.planning.chunk import ActionChunk


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a ``builtin_interfaces/Time``."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def ns_to_stamp(nanoseconds: int) -> Time:
    """``builtin_interfaces/Time`` of nanoseconds."""
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def duration_to_seconds(duration: Duration) -> float:
    """Seconds of a ``builtin_interfaces/Duration``."""
    return float(duration.sec) + float(duration.nanosec) / NANOSECONDS


def seconds_to_duration(seconds: float) -> Duration:
    """``builtin_interfaces/Duration`` of seconds, rounded to nanoseconds."""
    nanoseconds = seconds_to_ns(seconds)
    return Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def header(stamp: int, frame_id: str) -> Header:
    """A header with ``stamp`` in nanoseconds."""
    return Header(stamp=ns_to_stamp(stamp), frame_id=frame_id)


def tensor_to_msg(values: npt.ArrayLike) -> Tensor:
    """A Tensor message of any array, as float32."""
    dense = np.ascontiguousarray(values, dtype=np.float32)
    data = array.array("f")
    data.frombytes(dense.tobytes())
    return Tensor(shape=list(dense.shape), data=data)


def tensor_from_msg(message: Tensor, field: str) -> npt.NDArray[np.float32]:
    """The array of a Tensor message: a read-only view of its data, float32. No shape means empty.

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


def image_to_msg(image: ImageArray, stamp: int, frame_id: str) -> Image:
    """An rgb8 Image message of a picture (height, width, 3) uint8."""
    height, width = image.shape[:2]
    return Image(
        header=header(stamp, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        step=width * 3,
        data=array.array("B", np.ascontiguousarray(image).tobytes()),
    )


def image_from_msg(message: Image | CompressedImage, field: str) -> ImageArray:
    """The picture (height, width, 3) uint8 RGB of an image message.

    rgb8 is a view of the message's data without a copy. Other encodings and compressed images go
    through ``cv_bridge`` where it is installed, else through ``rosbags.image``.

    :raises WorldForgeError: ``IMAGE_DATA_INVALID`` when the data is too short or cannot be decoded,
        ``IMAGE_ENCODING_UNSUPPORTED`` when nothing knows the encoding.
    """
    if isinstance(message, CompressedImage):
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


def _decode(message: Image | CompressedImage, encoding: str, field: str) -> ImageArray:
    compressed = isinstance(message, CompressedImage)
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

    if isinstance(message, CompressedImage):
        return np.asarray(compressed_image_to_cvimage(message, "rgb8"))
    packed = _without_row_padding(message)
    return np.asarray(image_to_cvimage(packed, "rgb8"))


def _without_row_padding(message: Image) -> Image:
    from rosbags.image.image import to_cvtype

    bits, _, _, channels = to_cvtype(message.encoding)
    row = message.width * channels * bits // 8
    if message.step == row:
        return message
    if message.step < row:
        raise ValueError(f"step is {message.step} bytes, a row needs {row}")
    rows = np.frombuffer(message.data, np.uint8, count=message.height * message.step)
    data = np.ascontiguousarray(rows.reshape(message.height, message.step)[:, :row])
    return Image(
        header=message.header,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        is_bigendian=message.is_bigendian,
        step=row,
        data=array.array("B", data.tobytes()),
    )


def observation_to_msg(
    observation: Observation, embodiment: Embodiment, frame_id: str
) -> ObservationMsg:
    """An Observation message; every image carries the observation's stamp and its camera's name."""
    return ObservationMsg(
        header=header(observation.stamp, frame_id),
        embodiment=embodiment.name,
        camera_names=list(observation.images),
        images=[
            image_to_msg(image, observation.stamp, name)
            for name, image in observation.images.items()
        ],
        state=JointState(
            header=header(observation.stamp, frame_id),
            name=list(embodiment.joint_names),
            position=observation.position.tolist(),
            velocity=observation.velocity.tolist(),
        ),
        task=observation.task or embodiment.task,
    )


def observation_from_msg(message: ObservationMsg, embodiment: Embodiment) -> Observation:
    """The core observation of a message, checked against the embodiment.

    :raises WorldForgeError: a specific code for the first field that is wrong.
    """
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


def chunk_to_msg(chunk: ActionChunk, frame_id: str) -> ActionChunkMsg:
    """An ActionChunk message."""
    return ActionChunkMsg(
        header=header(chunk.stamp, frame_id),
        embodiment=chunk.embodiment,
        joint_names=list(chunk.joint_names),
        step=seconds_to_duration(chunk.step),
        actions=tensor_to_msg(chunk.actions),
        source=chunk.source,
        epoch=chunk.epoch,
        sequence=chunk.sequence,
        observation_stamp=ns_to_stamp(chunk.observation_stamp),
        cost=float(chunk.cost),
        margin=float(chunk.margin),
        model_id=chunk.model_id,
    )


def chunk_from_msg(message: ActionChunkMsg) -> ActionChunk:
    """The core chunk of a message; what its values mean is the gate's to judge.

    :raises WorldForgeError: ``TENSOR_DATA_LENGTH`` when data and shape of the actions disagree.
    """
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


def key_values(pairs: dict[str, str] | Any) -> list[KeyValue]:
    """KeyValue messages of a mapping of text."""
    return [KeyValue(key=key, value=value) for key, value in pairs.items()]


def from_key_values(pairs: Sequence[KeyValue], field: str) -> dict[str, str]:
    """The mapping of KeyValue messages.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a key given twice.
    """
    result = {pair.key: pair.value for pair in pairs}
    if len(result) != len(pairs):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            field,
            found=[pair.key for pair in pairs],
            expected="keys without duplicates",
        )
    return result


def reply_error(response: Any, error: WorldForgeError) -> Any:
    """Fill ``success``, ``error_code`` and ``message`` of a service response."""
    response.success = False
    response.error_code = str(error.code)
    response.message = error.message
    return response
