"""A folder of LeRobot back to bags, one for each episode, which a replay and an export read."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bags.dataset import EpisodeEntry, LeRobotFolder, invalid
from worldforge_ros.bags.dataset_writer import Show, new_folder
from worldforge_ros.bags.frames import Frame, FrameCounts, on_grid
from worldforge_ros.bags.names import FIXED_TOPICS, TopicName, TopicQuality, robot_topics
from worldforge_ros.bags.types import typestore
from worldforge_ros.bags.writer import BagWriter
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.observation import NANOSECONDS, ImageArray, Observation, seconds_to_ns


def export_dataset(
    folder: Path,
    out: Path,
    embodiment: Embodiment,
    *,
    namespace: str = "",
    show: Show = lambda text: None,
) -> dict[str, Any]:
    """Write a folder with one bag for each episode; it appears when it is whole.

    A frame becomes a picture of each camera, a joint state and the ready-made observation with all
    of them, at its capture stamp; its set-point is commanded then and once more in the middle of
    the step, where a reader looks for it. Everything is received when it is stamped.

    :returns: ``dataset``, ``folder``, ``embodiment``, ``derived_velocities`` and for each of
        ``bags``: its name, ``episode``, ``frames``, ``messages``, ``goals``, and how many frames
        will be ``read_again`` in how many ``stretches``: fewer, or in more than one, where stamps
        leave the grid of the policy's steps.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` when ``out`` exists, and as
        :class:`worldforge_ros.bags.dataset.LeRobotFolder`.
    """
    dataset = LeRobotFolder(folder, embodiment)
    names = _names(dataset.episodes)
    robot = _Messages(embodiment, namespace)
    found = []
    with new_folder(out) as work:
        work.mkdir()
        for entry, name in zip(dataset.episodes, names, strict=True):
            goals = [
                (int(goal["stamp_ns"]), _picture(folder, str(goal["file"])))
                for goal in entry.source.get("goals", ())
            ]
            stamps: list[int] = []
            with BagWriter(work / name) as bag:
                robot.declare(bag, bool(goals))
                frames = _watched(dataset.episode(entry), stamps)
                for topic, type_name, received, data in robot.of_episode(frames, goals):
                    bag.add(topic, type_name, received, data)
                    show(f"episode {entry.index + 1} of {len(names)}: {len(stamps)} frames")
                bag.close(_notes(folder, embodiment, entry))
                messages = bag.messages
            found.append(
                {
                    "bag": name,
                    "episode": entry.index,
                    "frames": len(stamps),
                    "messages": messages,
                    "goals": len(goals),
                    **_as_read(stamps, embodiment),
                }
            )
    return {
        "dataset": str(folder),
        "folder": str(out),
        "embodiment": embodiment.name,
        "derived_velocities": dataset.derived_velocities,
        "bags": found,
    }


def _names(episodes: Iterable[EpisodeEntry]) -> list[str]:
    """Of the bags that the episodes were of, with a number where one had several."""
    sources = [str(entry.source.get("bag", "")) for entry in episodes]
    if not all(sources) or any("/" in name for name in sources):
        return [f"episode_{index:06d}" for index in range(len(sources))]
    total, seen = Counter(sources), Counter[str]()
    names = []
    for source in sources:
        seen[source] += 1
        names.append(source if total[source] == 1 else f"{source}_{seen[source]:03d}")
    if len(set(names)) != len(names):
        return [f"episode_{index:06d}" for index in range(len(sources))]
    return names


def _watched(frames: Iterator[Frame], stamps: list[int]) -> Iterator[Frame]:
    for frame in frames:
        stamps.append(frame.observation.stamp)
        yield frame


def _as_read(stamps: list[int], embodiment: Embodiment) -> dict[str, int]:
    """How many frames a reader of the bag will find, and in how many stretches."""
    none = np.zeros(0)
    seen = on_grid(
        (Observation(stamp, {}, none, none) for stamp in stamps),
        embodiment.policy.step,
        embodiment.observation.tolerance,
        FrameCounts(),
    )
    starts = [begins for begins, _ in seen]
    return {"read_again": len(starts), "stretches": sum(starts)}


def _picture(folder: Path, file: str) -> ImageArray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO((folder / file).read_bytes())) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise invalid(
            f"goal picture {folder / file}", f"not readable ({error})", "a PNG"
        ) from error


def _notes(folder: Path, embodiment: Embodiment, entry: EpisodeEntry) -> dict[str, str]:
    source: Mapping[str, Any] = entry.source
    return {
        "embodiment": embodiment.name,
        "dataset": folder.resolve().name,
        "episode": str(entry.index),
        **{key: str(source[key]) for key in ("bag", "sha256", "actions") if key in source},
    }


class _Messages:
    """CDR messages of a robot's topics."""

    def __init__(self, embodiment: Embodiment, namespace: str) -> None:
        self._embodiment = embodiment
        self._prefix = "/" + "".join(f"{part}/" for part in [namespace.strip("/")] if part)
        self._store = typestore()
        robot = robot_topics(embodiment)
        self._cameras = {name: robot[name][0] for name in embodiment.cameras}
        self._joint_states = robot["joint_states"][0]
        self._half_step = seconds_to_ns(embodiment.policy.step) // 2

    def declare(self, bag: BagWriter, goals: bool) -> None:
        """Add the topics to a bag, with what a player is to offer."""
        topics = [*self._cameras.values(), self._joint_states]
        topics += [FIXED_TOPICS[role] for role in ("observation", "joint_commands")]
        for topic in [*topics, *([FIXED_TOPICS["goal_image"]] if goals else [])]:
            bag.declare(self._name(topic), topic.type, TopicQuality(latched=topic.latched))

    def of_episode(
        self, frames: Iterator[Frame], goals: list[tuple[int, ImageArray]]
    ) -> Iterator[tuple[str, str, int, memoryview]]:
        """``(topic, type, received in ns, data)`` in order of receipt."""
        command: tuple[int, npt.NDArray[np.float64]] | None = None
        waiting = list(goals)
        for frame in frames:
            stamp = frame.observation.stamp
            if command is not None and command[0] < stamp:
                yield self._command(*command)
                command = None
            # A recording never had a first frame before its goal.
            while waiting and (len(waiting) == len(goals) or waiting[0][0] <= stamp):
                made, picture = waiting.pop(0)
                message = self._image(picture, made, "goal")
                yield self._packed(FIXED_TOPICS["goal_image"], stamp, message)
            yield from self._sensors(frame.observation)
            yield self._command(stamp, frame.setpoint)
            if command is not None:
                # This frame came early: what is in force in the middle of the step before it is
                # said last.
                yield self._command(*command)
            command = (stamp + self._half_step, frame.setpoint)
        if command is not None:
            yield self._command(*command)

    def _sensors(self, observation: Observation) -> Iterator[tuple[str, str, int, memoryview]]:
        stamp = observation.stamp
        state = self._new(
            "sensor_msgs/msg/JointState",
            header=self._header(stamp, "base"),
            name=list(self._embodiment.joint_names),
            position=np.asarray(observation.position, np.float64),
            velocity=np.asarray(observation.velocity, np.float64),
            effort=np.zeros(0),
        )
        images = {
            name: self._image(picture, stamp, name) for name, picture in observation.images.items()
        }
        yield self._packed(self._joint_states, stamp, state)
        for name, message in images.items():
            yield self._packed(self._cameras[name], stamp, message)
        whole = self._new(
            FIXED_TOPICS["observation"].type,
            header=self._header(stamp, "base"),
            embodiment=self._embodiment.name,
            camera_names=list(images),
            images=list(images.values()),
            state=state,
            task=observation.task,
        )
        yield self._packed(FIXED_TOPICS["observation"], stamp, whole)

    def _command(
        self, received: int, setpoint: npt.NDArray[np.float64]
    ) -> tuple[str, str, int, memoryview]:
        layout = self._new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
        topic = FIXED_TOPICS["joint_commands"]
        data = np.asarray(setpoint, np.float64)
        return self._packed(topic, received, self._new(topic.type, layout=layout, data=data))

    def _image(self, picture: ImageArray, stamp: int, frame_id: str) -> Any:
        height, width = picture.shape[:2]
        return self._new(
            "sensor_msgs/msg/Image",
            header=self._header(stamp, frame_id),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(picture).reshape(-1),
        )

    def _header(self, stamp: int, frame_id: str) -> Any:
        time = self._new(
            "builtin_interfaces/msg/Time", sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS
        )
        return self._new("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

    def _new(self, type_name: str, **fields: Any) -> Any:
        return self._store.types[type_name](**fields)

    def _packed(
        self, topic: TopicName, received: int, message: Any
    ) -> tuple[str, str, int, memoryview]:
        data = memoryview(self._store.serialize_cdr(message, topic.type))
        return self._name(topic), topic.type, received, data

    def _name(self, topic: TopicName) -> str:
        return topic.name if topic.name.startswith("/") else self._prefix + topic.name
