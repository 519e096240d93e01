"""Topics that a recording is made of: what a recorder listens to and a replay looks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch


@dataclass(frozen=True)
class TopicName:
    """A relative name and the message type that belongs to it. ``latched``: the last message is
    for late subscribers too.
    """

    name: str
    type: str
    latched: bool = False


IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
COMPRESSED = "/compressed"
"""Ending of the topic of a camera's compressed pictures, as image_transport has it."""

FIXED_TOPICS: Mapping[str, TopicName] = MappingProxyType(
    {
        "observation": TopicName("observation", "worldforge_ros/msg/Observation"),
        "goal_image": TopicName("goal_image", IMAGE, latched=True),
        "plan_report": TopicName("plan_report", "worldforge_ros/msg/PlanReport"),
        "proposed": TopicName("action_chunk/proposed", "worldforge_ros/msg/ActionChunk"),
        "approved": TopicName("action_chunk/approved", "worldforge_ros/msg/ActionChunk"),
        "gate_status": TopicName(
            "safety_gate/status", "worldforge_ros/msg/GateStatus", latched=True
        ),
        "joint_commands": TopicName("joint_commands", "std_msgs/msg/Float64MultiArray"),
        "joint_trajectory": TopicName("joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
        "target_pose": TopicName("target_pose", "geometry_msgs/msg/PoseStamped"),
        "surprise": TopicName("score_node/surprise", "worldforge_ros/msg/Surprise"),
    }
)
"""By role: those that are called the same for every robot."""
PICTURES = frozenset({IMAGE, COMPRESSED_IMAGE, FIXED_TOPICS["observation"].type})
"""Types of messages that are large."""


def robot_topics(embodiment: Embodiment, cameras: bool = True) -> dict[str, tuple[TopicName, ...]]:
    """Those whose names the embodiment file gives, by role; a camera's role is its name and it
    may publish raw pictures, compressed ones or both.
    """
    joint_states = TopicName(embodiment.observation.joint_state_topic, JOINT_STATE)
    found: dict[str, tuple[TopicName, ...]] = {"joint_states": (joint_states,)}
    if cameras:
        for camera in embodiment.cameras.values():
            found[camera.name] = (
                TopicName(camera.topic, IMAGE),
                TopicName(f"{camera.topic}{COMPRESSED}", COMPRESSED_IMAGE),
            )
    return found


def recorded_topics(embodiment: Embodiment, cameras: bool = True) -> tuple[TopicName, ...]:
    """Everything that a replay can use; without ``cameras`` their pictures are only in
    ``observation``.
    """
    robot = robot_topics(embodiment, cameras)
    return (*(topic for topics in robot.values() for topic in topics), *FIXED_TOPICS.values())


@dataclass(frozen=True)
class TopicQuality:
    """What the publishers of a topic offer, as far as it matters to a player of the bag."""

    reliable: bool = True
    latched: bool = False


@dataclass(frozen=True)
class Offer:
    """What one publisher of a topic offers."""

    type: str
    quality: TopicQuality


def agreed(
    topic: str, wanted: Sequence[TopicName], offers: Sequence[Offer]
) -> tuple[TopicName, TopicQuality] | None:
    """What to subscribe to on ``topic`` so that every publisher of it is heard: which of the
    ``wanted``, which all have that topic, and the quality; None while nobody publishes.

    It is latched where ``wanted`` says so, as the nodes want it, whatever is offered beside.

    :raises WorldForgeError: ``TOPIC_TYPE_MISMATCH`` when no publisher has a wanted type, or when
        they have several.
    """
    if not offers:
        return None
    types = sorted({offer.type for offer in offers})
    fitting = [item for item in wanted if item.type in types]
    if len(fitting) != 1:
        raise mismatch(
            ErrorCode.TOPIC_TYPE_MISMATCH,
            f"type of topic {topic}",
            found=" and ".join(types),
            expected=" or ".join(item.type for item in wanted),
        )
    heard = [offer.quality for offer in offers if offer.type == fitting[0].type]
    quality = TopicQuality(all(item.reliable for item in heard), fitting[0].latched)
    return fitting[0], quality
