"""ROS messages to core objects and back. Nothing here decides anything; bad input gets a code."""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import KeyValue
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

# Messages to core objects: one reading for nodes and for bags.
from worldforge_ros.ingest import chunk_from_msg as chunk_from_msg
from worldforge_ros.ingest import duration_to_seconds as duration_to_seconds
from worldforge_ros.ingest import image_from_msg as image_from_msg
from worldforge_ros.ingest import observation_from_msg as observation_from_msg
from worldforge_ros.ingest import stamp_to_ns as stamp_to_ns
from worldforge_ros.ingest import tensor_from_msg as tensor_from_msg
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.msg import Tensor
from worldforge_ros.observation import NANOSECONDS, ImageArray, Observation, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.recording.log import PlanSample


def ns_to_stamp(nanoseconds: int) -> Time:
    """``builtin_interfaces/Time`` of nanoseconds."""
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


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


def plan_sample(message: Any, time: float) -> PlanSample:
    """What a PlanReport says of its cycle.

    :param time: seconds since the recording began.
    :raises WorldForgeError: ``TENSOR_...`` when the candidates' data and shape disagree.
    """
    candidates = tensor_from_msg(message.candidates, "candidates")
    return PlanSample(
        time=time,
        outcome=message.outcome,
        num_candidates=message.num_candidates,
        costs=np.array(message.costs, dtype=np.float32),
        chosen=message.chosen,
        margin=message.margin,
        candidates=candidates[0] if candidates.ndim == 4 else candidates,
        step=duration_to_seconds(message.step),
        observation_latency=duration_to_seconds(message.observation_latency),
        propose_latency=duration_to_seconds(message.propose_latency),
        score_latency=duration_to_seconds(message.score_latency),
        plan_latency=duration_to_seconds(message.plan_latency),
        propose_model_latency=duration_to_seconds(message.propose_model_latency),
        score_model_latency=duration_to_seconds(message.score_model_latency),
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
