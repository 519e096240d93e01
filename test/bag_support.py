"""Bags as a PushT robot would record them, with cheap drawn pictures."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from worldforge_ros.bags.types import typestore

NS = 1_000_000_000
START = 1_700_000_000 * NS
JOINTS = ("pusher_x", "pusher_y")
LEAD = 0.1
"""Seconds by which a commanded position runs ahead of the measured one."""

STORE = typestore()


def new(type_name: str, **fields: Any) -> Any:
    """A message of that type for ``rosbags``."""
    return STORE.types[type_name](**fields)


def cdr(message: Any) -> bytes:
    """A message's bytes."""
    return bytes(STORE.serialize_cdr(message, message.__msgtype__))


def stamp(time: int) -> Any:
    return new("builtin_interfaces/msg/Time", sec=time // NS, nanosec=time % NS)


def duration(seconds: float) -> Any:
    total = round(seconds * NS)
    return new("builtin_interfaces/msg/Duration", sec=total // NS, nanosec=total % NS)


def header(time: int, frame: str = "base") -> Any:
    return new("std_msgs/msg/Header", stamp=stamp(time), frame_id=frame)


def position(t: float) -> np.ndarray:
    """Where the pusher is at ``t`` seconds, m: a slow circle."""
    return np.array([0.256 + 0.1 * np.cos(0.5 * t), 0.256 + 0.1 * np.sin(0.5 * t)])


def velocity(t: float) -> np.ndarray:
    return np.array([-0.05 * np.sin(0.5 * t), 0.05 * np.cos(0.5 * t)])


def picture(t: float, width: int = 96, height: int = 96) -> np.ndarray:
    """A white table with a grey block and a blue pusher, (height, width, 3) uint8 RGB."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[height // 3 : height // 2, width // 4 : 3 * width // 4] = (120, 120, 130)
    x, y = (position(t) / 0.512 * (width, height)).astype(int)
    image[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = (65, 105, 225)
    return image


def image_message(pixels: np.ndarray, time: int, encoding: str = "rgb8", padding: int = 0) -> Any:
    """An Image message of (height, width, 3) RGB, ``padding`` bytes after each row."""
    height, width = pixels.shape[:2]
    planes = {"rgb8": pixels, "bgr8": pixels[..., ::-1], "mono8": pixels[..., :1]}[encoding]
    flat = np.ascontiguousarray(planes).reshape(height, -1)
    rows = np.zeros((height, flat.shape[1] + padding), np.uint8)
    rows[:, : flat.shape[1]] = flat
    return new(
        "sensor_msgs/msg/Image",
        header=header(time, "camera_top"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed_message(pixels: np.ndarray, time: int, form: str = "jpeg") -> Any:
    """A CompressedImage message of (height, width, 3) RGB."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form.upper())
    data = np.frombuffer(stream.getvalue(), np.uint8)
    return new("sensor_msgs/msg/CompressedImage", header=header(time), format=form, data=data)


def joint_state(time: int, where: np.ndarray, speed: np.ndarray) -> Any:
    return new(
        "sensor_msgs/msg/JointState",
        header=header(time),
        name=list(JOINTS),
        position=np.asarray(where, np.float64),
        velocity=np.asarray(speed, np.float64),
        effort=np.zeros(0),
    )


def joint_commands(where: np.ndarray) -> Any:
    layout = new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
    return new("std_msgs/msg/Float64MultiArray", layout=layout, data=np.asarray(where, np.float64))


def joint_trajectory(time: int, where: np.ndarray, after: float = 0.0) -> Any:
    point = new(
        "trajectory_msgs/msg/JointTrajectoryPoint",
        positions=np.asarray(where, np.float64),
        velocities=np.zeros(0),
        accelerations=np.zeros(0),
        effort=np.zeros(0),
        time_from_start=duration(after),
    )
    return new(
        "trajectory_msgs/msg/JointTrajectory",
        header=header(time),
        joint_names=list(JOINTS),
        points=[point],
    )


def tensor(values: np.ndarray) -> Any:
    dense = np.ascontiguousarray(values, np.float32)
    return new(
        "worldforge_ros/msg/Tensor",
        shape=np.array(dense.shape if dense.size else (), np.uint32),
        data=dense.reshape(-1),
    )


def chunk(time: int, actions: np.ndarray, sequence: int = 1, **fields: Any) -> Any:
    """An ActionChunk whose first action is due at ``time``."""
    values: dict[str, Any] = {
        "header": header(time),
        "embodiment": "pusht",
        "joint_names": list(JOINTS),
        "step": duration(0.1),
        "actions": tensor(actions),
        "source": "policy",
        "epoch": 1,
        "sequence": sequence,
        "observation_stamp": stamp(time),
        "cost": 1.0,
        "margin": 0.5,
        "model_id": "test",
    }
    return new("worldforge_ros/msg/ActionChunk", **{**values, **fields})


def observation(time: int, pixels: np.ndarray, where: np.ndarray, speed: np.ndarray) -> Any:
    return new(
        "worldforge_ros/msg/Observation",
        header=header(time),
        embodiment="pusht",
        camera_names=["top"],
        images=[image_message(pixels, time)],
        state=joint_state(time, where, speed),
        task="push",
    )


def plan_report(time: int, cycle: int, candidates: np.ndarray, **fields: Any) -> Any:
    """A PlanReport of candidates (S, H, J) with rising costs: the first one is chosen."""
    count = len(candidates)
    values: dict[str, Any] = {
        "header": header(time + NS // 50),
        "cycle": cycle,
        "outcome": "OK",
        "message": "",
        "planner": "scored",
        "observation_stamp": stamp(time),
        "num_candidates": count,
        "sources": ["policy"] * count,
        "costs": np.arange(count, dtype=np.float32),
        "reachable": np.ones(count, np.bool_),
        "chosen": 0,
        "margin": 1.0,
        "sequence": cycle,
        "candidates": tensor(candidates[None]),
        "stamp": stamp(time),
        "step": duration(0.1),
        "seed": cycle,
        "arrival": stamp(time + NS // 50),
        "executing": 0,
        "observation_latency": duration(0.004),
        "propose_latency": duration(0.006),
        "score_latency": duration(0.008),
        "plan_latency": duration(0.02),
        "propose_model_latency": duration(0.005),
        "score_model_latency": duration(0.007),
        "deadline_misses": 0,
    }
    return new("worldforge_ros/msg/PlanReport", **{**values, **fields})


def gate_status(time: int, mode: int) -> Any:
    """A GateStatus in that mode."""
    texts = dict.fromkeys(("mode_name", "reason", "verdict"), "")
    numbers = dict.fromkeys(
        (
            "verdict_sequence",
            "chunks_received",
            "chunks_approved",
            "chunks_rejected",
            "steps_executed",
            "holds",
            "stops",
        ),
        0,
    )
    return new(
        "worldforge_ros/msg/GateStatus",
        header=header(time),
        mode=mode,
        epoch=1,
        reason_codes=[],
        reason_messages=[],
        rejected_codes=[],
        rejected_counts=np.zeros(0, np.uint64),
        validation_latency=duration(0.001),
        capture_to_command=duration(0.05),
        **texts,
        **numbers,
    )


def pusht_messages(
    seconds: float,
    *,
    start: int = START,
    camera_hz: float = 10.0,
    joint_hz: float = 100.0,
    command_hz: float = 100.0,
    goal: bool = True,
    observations: bool = False,
    plan_reports: bool = False,
    chunks: bool = False,
    horizon: int = 8,
    candidates: int = 4,
    draw: Callable[[float], np.ndarray] = picture,
    encoding: str = "rgb8",
    padding: int = 0,
    compressed: str = "",
    latency: float = 0.002,
    namespace: str = "",
) -> list[tuple[str, int, Any]]:
    """``(topic, received, message)`` in order of receive time. ``latency`` is receive time minus
    header stamp in s; ``chunks`` makes proposed and approved ones, one every 0.5 s; a rate of 0
    leaves the topic out.
    """
    late = round(latency * NS)
    found: list[tuple[str, int, Any]] = []

    def add(topic: str, time: int, message: Any) -> None:
        found.append((f"{namespace}/{topic}", time + late, message))

    def times(rate: float) -> Iterable[tuple[int, float]]:
        for index in range(round(seconds * rate) if rate else 0):
            yield start + round(index * NS / rate), index / rate

    if goal:
        add("goal_image", start, image_message(draw(0.0), start))
    for time, t in times(joint_hz):
        add("joint_states", time, joint_state(time, position(t), velocity(t)))
    for time, t in times(command_hz):
        add("joint_commands", time, joint_commands(position(t + LEAD)))
    for time, t in times(camera_hz):
        if compressed:
            message = compressed_message(draw(t), time, compressed)
            add("camera/top/image_raw/compressed", time, message)
        else:
            add("camera/top/image_raw", time, image_message(draw(t), time, encoding, padding))
        if observations:
            add("observation", time, observation(time, draw(t), position(t), velocity(t)))
    for index, (time, t) in enumerate(times(2.0), start=1):
        actions = np.stack([position(t + LEAD * (k + 1)) for k in range(horizon)])
        if plan_reports:
            offsets = 0.01 * np.arange(candidates)[:, None, None]
            add("plan_report", time, plan_report(time, index, actions[None] + offsets))
        if chunks:
            add("action_chunk/proposed", time, chunk(time, actions, index))
            add("action_chunk/approved", time, chunk(time, actions, index))
    return sorted(found, key=lambda item: item[1])


def write_messages(
    path: Path,
    messages: Iterable[tuple[str, int, Any]],
    *,
    storage: str = "mcap",
    compression: str = "none",
    version: int = 9,
    empty_topics: Collection[tuple[str, str]] = (),
) -> Path:
    """Write ``(topic, received, message)``; a message is one of :func:`new`, or ``(type, bytes)``.

    :param compression: ``none``, ``zstd`` (inside the MCAP file), ``message`` or ``file``.
    :param empty_topics: ``(topic, type)`` of topics without a message.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    modes = {
        "none": CompressionMode.NONE,
        "zstd": CompressionMode.STORAGE,
        "message": CompressionMode.MESSAGE,
        "file": CompressionMode.FILE,
    }
    writer: Any = Writer(
        path,
        version=version,
        storage_plugin=StoragePlugin[storage.upper()],  # type: ignore[arg-type]
    )
    writer.set_compression(modes[compression], CompressionFormat.ZSTD)
    with writer:
        connections = {
            key: writer.add_connection(*key, typestore=STORE) for key in sorted(empty_topics)
        }
        for topic, received, message in messages:
            kind, data = (
                message
                if isinstance(message, tuple)
                else (message.__msgtype__, STORE.serialize_cdr(message, message.__msgtype__))
            )
            if (topic, kind) not in connections:
                connections[topic, kind] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic, kind], received, data)
    return path


def write_bag(
    path: Path,
    *,
    storage: str = "mcap",
    seconds: float = 2.0,
    compression: str = "none",
    version: int = 9,
    empty_topics: Collection[tuple[str, str]] = (),
    extra: Iterable[tuple[str, int, Any]] = (),
    drop: Collection[str] = (),
    **contents: Any,
) -> Path:
    """Write a bag folder of a PushT robot: :func:`pusht_messages` with ``contents``, ``extra``
    messages, without the topics in ``drop``.
    """
    messages = [*pusht_messages(seconds, **contents), *extra]
    messages = sorted((m for m in messages if m[0] not in drop), key=lambda item: item[1])
    return write_messages(
        path,
        messages,
        storage=storage,
        compression=compression,
        version=version,
        empty_topics=empty_topics,
    )


def data_file(path: Path) -> Path:
    """The one storage file in a bag folder."""
    (found,) = [item for item in path.iterdir() if item.name != "metadata.yaml"]
    return found


def as_humble(path: Path) -> Path:
    """Make of a sqlite3 bag what Humble would have written: no definitions, metadata version 5."""
    base = sqlite3.connect(data_file(path))
    base.executescript(
        "DROP TABLE schema; DROP TABLE metadata; DROP TABLE message_definitions;"
        "ALTER TABLE topics DROP COLUMN type_description_hash; VACUUM;"
    )
    base.close()
    file = path / "metadata.yaml"
    document = yaml.safe_load(file.read_text())
    information = document["rosbag2_bagfile_information"]
    information["version"] = 5
    for name in ("custom_data", "ros_distro"):
        information.pop(name)
    for topic in information["topics_with_message_count"]:
        topic["topic_metadata"].pop("type_description_hash")
        topic["topic_metadata"]["offered_qos_profiles"] = ""
    file.write_text(yaml.safe_dump(document))
    return path


def with_lz4_chunks(file: Path) -> Path:
    """Rewrite an MCAP file of ``rosbags`` with chunks compressed by lz4 and without an index."""
    import lz4.frame

    data, place = file.read_bytes(), 8
    parts = [data[:8]]
    while data[place] not in (2, 15):
        kind, size = data[place], int.from_bytes(data[place + 1 : place + 9], "little")
        body = data[place + 9 : place + 9 + size]
        if kind == 6:
            packed = lz4.frame.compress(body[28 + 4 + 8 :])
            body = body[:28] + b"\x03\x00\x00\x00lz4" + len(packed).to_bytes(8, "little") + packed
        if kind != 7:
            parts.append(bytes([kind]) + len(body).to_bytes(8, "little") + body)
        place += 9 + size
    parts.append(b"\x0f" + (4).to_bytes(8, "little") + bytes(4))
    parts.append(b"\x02" + (20).to_bytes(8, "little") + bytes(20) + data[:8])
    file.write_bytes(b"".join(parts))
    return file
