"""Which topic of a bag is what: found by name, checked by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from worldforge_ros.bags.names import FIXED_TOPICS, TopicName, robot_topics
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.types import PREFIX
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch


@dataclass(frozen=True)
class BagTopics:
    """Topics of a bag by role, empty where it has none.

    ``cameras`` are by camera name; a camera without a topic is there only beside ``observation``.
    """

    cameras: Mapping[str, str]
    joint_states: str = ""
    observation: str = ""
    goal_image: str = ""
    plan_report: str = ""
    proposed: str = ""
    approved: str = ""
    gate_status: str = ""
    joint_commands: str = ""
    joint_trajectory: str = ""

    def roles(self) -> dict[str, str]:
        """Topic by role of those that are there; cameras under their names."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        cameras = named.pop("cameras")
        return {role: topic for role, topic in {**cameras, **named}.items() if topic}

    def all(self) -> frozenset[str]:
        """Every topic that is there."""
        return frozenset(self.roles().values())


def find_topics(
    bag: Bag,
    embodiment: Embodiment,
    *,
    namespace: str = "",
    remap: Mapping[str, str] | None = None,
    observations: str = "auto",
) -> BagTopics:
    """The topics of ``bag`` for a robot.

    :param namespace: of the recorded topics.
    :param remap: our relative names to the bag's topics, absolute or in the namespace.
    :param observations: ``observation`` for what observation_node published, ``sensors`` for
        pictures and joint states, ``auto`` for the first where the bag has it.
    :raises WorldForgeError: ``TOPIC_MISSING`` or ``TOPIC_TYPE_MISMATCH``, which say what the bag
        holds; ``INVALID_ARGUMENT`` for a remapping of a name that is none of ours.
    """
    finder = _Finder(bag, namespace, dict(remap or {}))
    roles = {field.name for field in fields(BagTopics)}
    found = {role: finder.find(topic) for role, topic in FIXED_TOPICS.items() if role in roles}
    robot = robot_topics(embodiment)
    cameras = {name: finder.find(*robot[name]) for name in embodiment.cameras}
    joint_states = finder.find(*robot["joint_states"])
    finder.refuse_others()
    if observations == "observation" and not found["observation"]:
        raise finder.missing(FIXED_TOPICS["observation"])
    if observations == "sensors" or not found["observation"]:
        found["observation"] = ""
        for name, topic in {**cameras, "joint_states": joint_states}.items():
            if not topic:
                raise finder.missing(*robot[name])
    return BagTopics(MappingProxyType(cameras), joint_states, **found)


class _Finder:
    def __init__(self, bag: Bag, namespace: str, remap: dict[str, str]) -> None:
        self._bag = bag
        self._namespace = namespace.strip("/")
        self._remap = {name.strip("/"): topic for name, topic in remap.items()}
        self._asked: set[str] = set()

    def _topic(self, name: str) -> str:
        self._asked.add(name.strip("/"))
        name = self._remap.get(name.strip("/"), name)
        if name.startswith("/"):
            return name
        return "/" + "/".join(part for part in (self._namespace, name) if part)

    def find(self, *choices: TopicName) -> str:
        """The bag's topic of the first of these names that has a message, empty where none has."""
        for choice in choices:
            topic = self._topic(choice.name)
            there = [item for item in self._bag.topics if item.name == topic]
            if not there and choice.name.strip("/") in self._remap:
                raise mismatch(
                    ErrorCode.TOPIC_MISSING,
                    f"topic {topic}, which a remapping gives for {choice.name},",
                    found=f"not in bag {self._bag.name}",
                    expected=f"one of those that it holds: {self._bag.describe()}",
                )
            held = [item for item in there if item.count]
            if not held:
                continue
            types = " and ".join(item.type for item in held)
            if types != choice.type:
                raise mismatch(
                    ErrorCode.TOPIC_TYPE_MISMATCH,
                    f"topic {topic} of bag {self._bag.name}",
                    found=types,
                    expected=f"{choice.type}; the bag holds {self._bag.describe()}",
                )
            # Definitions of ours grow from release to release, those of ROS are for ever.
            if not types.startswith(PREFIX) and self._bag.definition(types) == "changed":
                raise mismatch(
                    ErrorCode.TOPIC_TYPE_MISMATCH,
                    f"definition of {types} in bag {self._bag.name}",
                    found="not that of ROS",
                    expected="the fields of a standard message",
                )
            return topic
        return ""

    def missing(self, *choices: TopicName) -> WorldForgeError:
        named = " or ".join(f"{self._topic(item.name)} ({item.type})" for item in choices)
        return mismatch(
            ErrorCode.TOPIC_MISSING,
            f"{named} of bag {self._bag.name}",
            found="absent or without a message",
            expected=f"there, or found through --remap {choices[0].name}:=TOPIC or --namespace; "
            f"the bag holds {self._bag.describe()}",
        )

    def refuse_others(self) -> None:
        unknown = sorted(self._remap.keys() - self._asked)
        if unknown:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "remapping",
                found=", ".join(unknown),
                expected=f"a name among {', '.join(sorted(self._asked))}",
            )
