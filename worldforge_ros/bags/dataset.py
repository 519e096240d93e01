"""What recorded robots are in a folder of LeRobot (format 3), and reading it back into frames.

One frame is one policy step. Its columns are the embodiment's policy features and ``action``, in
the policy's units and float32, made by the policy bridge's own conversion; a picture of every
camera; and, because float32 policy units do not give SI values back exactly, four columns that no
policy takes:

- ``worldforge.stamp`` (1,) int64: capture stamp in ns,
- ``worldforge.position`` and ``worldforge.setpoint`` (J,) float64: m or rad,
- ``worldforge.velocity`` (J,) float64: m/s or rad/s.

:data:`OWN_FILE` says which bag each episode is of. Folders of others have neither: their stamps
begin at 1 s, their joints come from the policy's features, and velocities that no feature has are
differences of the positions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bags.frames import Frame
from worldforge_ros.bridges.policy import (
    actions_to_setpoints,
    policy_features,
    setpoints_to_actions,
)
from worldforge_ros.embodiment import Embodiment, ImageFeature, StateFeature
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    check_image,
)

FloatArray = npt.NDArray[np.float64]

STAMP = "worldforge.stamp"
POSITION = "worldforge.position"
VELOCITY = "worldforge.velocity"
SETPOINT = "worldforge.setpoint"
OWN_COLUMNS = (STAMP, POSITION, VELOCITY, SETPOINT)
OWN_FILE = Path("meta") / "worldforge.json"
OWN_SCHEMA = 1
GOALS = Path("meta") / "worldforge"
"""Folder of the goal pictures that :data:`OWN_FILE` names."""
ACTION = "action"
FIRST_STAMP = NANOSECONDS
"""Stamp of an episode's first frame where the data set keeps none: zero means not set in ROS."""

_READ_AT_ONCE = 32
_RATE_TOLERANCE = 1e-6
_TIME_TOLERANCE = 1e-4
"""Seconds, LeRobot's own, that a time stamp may lie off ``frame_index / fps``."""


@dataclass(frozen=True)
class Layout:
    """Columns of a data set of one robot. ``pictures`` are camera names by column, ``vectors`` the
    number of values by column, float32 in policy units.
    """

    fps: int
    pictures: Mapping[str, str]
    vectors: Mapping[str, int]

    def column(self, camera: str) -> str:
        """The first column with the pictures of a camera."""
        return next(name for name, held in self.pictures.items() if held == camera)


def invalid(field: str, found: object, expected: object) -> WorldForgeError:
    """The error of a data set that is not what is needed."""
    return mismatch(ErrorCode.DATASET_INVALID, field, found=found, expected=expected)


def layout_of(embodiment: Embodiment) -> Layout:
    """The columns for a robot. A camera that no policy feature shows is
    ``observation.images.<camera>``.

    :raises WorldForgeError: ``DATASET_INVALID`` for a policy step that is no whole number of frames
        a second, for relative actions, and for feature names that LeRobot does not take.
    """
    policy = embodiment.policy
    fps = round(1.0 / policy.step)
    if fps < 1 or abs(fps * policy.step - 1.0) > _RATE_TOLERANCE:
        raise invalid(
            f"policy.step of embodiment {embodiment.name}",
            f"{policy.step:g} s, {1.0 / policy.step:g} frames a second",
            "one that makes a whole number of them, since LeRobot counts time so",
        )
    if policy.action.meaning != "absolute":
        # One action a frame cannot be relative to the frame that its chunk starts from.
        raise invalid(
            f"policy.action.meaning of embodiment {embodiment.name}",
            policy.action.meaning,
            "absolute: a data set has one action for each frame, and where a chunk that it is "
            "relative to starts is decided in training",
        )
    pictures = {
        name: feature.camera
        for name, feature in policy.features.items()
        if isinstance(feature, ImageFeature)
    }
    vectors = {
        name: len(feature.joints)
        for name, feature in policy.features.items()
        if isinstance(feature, StateFeature)
    }
    for camera in embodiment.cameras:
        name = f"observation.images.{camera}"
        if camera not in pictures.values():
            if name in policy.features:
                raise invalid(
                    f"policy.features of embodiment {embodiment.name}",
                    f"{name}, which is not of camera {camera}",
                    "that name for that camera only",
                )
            pictures[name] = camera
    for name in policy.features:
        if "/" in name or name == ACTION or name in OWN_COLUMNS:
            raise invalid(
                f"policy.features of embodiment {embodiment.name}",
                f"'{name}'",
                "a name without a slash that is not taken",
            )
    vectors[ACTION] = len(embodiment.joints)
    return Layout(fps, MappingProxyType(pictures), MappingProxyType(vectors))


def policy_values(
    frames: Sequence[Frame], embodiment: Embodiment
) -> dict[str, npt.NDArray[np.float32]]:
    """Columns in policy units (T, D) float32 of T frames, ``action`` among them, as the policy
    bridge converts them.

    :raises WorldForgeError: as :func:`worldforge_ros.bridges.policy.policy_features`, and
        ``TENSOR_NOT_FINITE`` for a set-point or for values that float32 cannot hold.
    """
    states = {
        name: feature
        for name, feature in embodiment.policy.features.items()
        if isinstance(feature, StateFeature)
    }
    robot = replace(
        embodiment, policy=replace(embodiment.policy, features=MappingProxyType(states))
    )
    with np.errstate(over="ignore"):
        values = policy_features([frame.observation for frame in frames], robot)
        setpoints = np.asarray([frame.setpoint for frame in frames])
        values[ACTION] = setpoints_to_actions(setpoints, setpoints, embodiment).astype(np.float32)
    for name, rows in values.items():
        if not np.isfinite(rows).all():
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE, name, found=rows.tolist(), expected="finite numbers"
            )
    return values


@dataclass(frozen=True)
class EpisodeEntry:
    """One episode of a folder: where its rows are and where its pictures begin in each video, in s.

    ``source`` is what :data:`OWN_FILE` says of it, empty in folders of others.
    """

    index: int
    length: int
    file: Path
    videos: Mapping[str, tuple[Path, float]]
    source: Mapping[str, Any]


class LeRobotFolder:
    """A data set on disk, checked against an embodiment. It is read without LeRobot."""

    def __init__(self, folder: Path, embodiment: Embodiment) -> None:
        """:raises WorldForgeError: ``DATASET_INVALID`` naming the field that is wrong, and as
        :func:`layout_of`.
        """
        self.folder = folder
        self.layout = layout_of(embodiment)
        self._embodiment = embodiment
        info = _json(folder / "meta" / "info.json")
        self._check_description(info)
        self._features: dict[str, Any] = info["features"]
        self.own_columns = self._has_own_columns()
        self._positions = () if self.own_columns else self._sources("position", needed=True)
        self._velocities = () if self.own_columns else self._sources("velocity", needed=False)
        self.description = self._description()
        self._tasks = self._read_tasks()
        self.episodes = self._read_episodes(info)

    @property
    def derived_velocities(self) -> bool:
        """Whether velocities are differences of positions, as the data set holds none."""
        return not self.own_columns and not self._velocities

    def frames(self) -> Iterator[Frame]:
        """The frames of every episode in order, one at a time.

        :raises WorldForgeError: ``DATASET_INVALID`` for rows that are not those of their episode or
            not finite, ``IMAGE_SIZE_MISMATCH`` for pictures.
        """
        for entry in self.episodes:
            yield from self.episode(entry)

    def episode(self, entry: EpisodeEntry) -> Iterator[Frame]:
        """The frames of one episode; errors as :meth:`frames`."""
        values = self._values(entry)
        tasks = [self._task(int(index)) for index in values["task_index"].ravel()]
        moving = self._joints(entry, values)
        self._check_columns(entry, values, *moving)
        stamps, position, velocity, setpoint = moving
        for row, images in enumerate(self._pictures(entry)):
            observation = Observation(
                int(stamps[row]), images, position[row], velocity[row], tasks[row]
            )
            yield Frame(row == 0, observation, setpoint[row])

    def _where(self, field: str) -> str:
        return f"{field} of data set {self.folder}"

    def _check_description(self, info: Mapping[str, Any]) -> None:
        version = str(info.get("codebase_version", "absent"))
        if not version.startswith("v3."):
            raise invalid(
                self._where("codebase_version"),
                version,
                "v3.0; LeRobot's convert_dataset_v21_to_v30 brings older ones there",
            )
        layout, spec = self.layout, self._embodiment
        if info.get("fps") != layout.fps:
            raise invalid(
                self._where("fps"),
                info.get("fps"),
                f"{layout.fps}, for the policy step of {spec.policy.step:g} s of {spec.name}",
            )
        features = info.get("features")
        if not isinstance(features, dict):
            raise invalid(self._where("features"), features, "a mapping")
        for name, count in layout.vectors.items():
            feature = self._feature(features, name)
            if feature["dtype"] not in ("float32", "float64") or feature["shape"] != [count]:
                raise invalid(
                    self._where(f"features.{name}"),
                    f"{feature['dtype']} {feature['shape']}",
                    f"float32 [{count}] for the joints of {spec.name}",
                )
        for name, camera_name in layout.pictures.items():
            feature, camera = self._feature(features, name), spec.cameras[camera_name]
            if feature["dtype"] not in ("image", "video"):
                raise invalid(self._where(f"features.{name}"), feature["dtype"], "image or video")
            shape = feature["shape"]
            if str((feature.get("names") or [""])[0]).startswith("channel"):
                shape = [*shape[1:], shape[0]]
            if shape != [camera.height, camera.width, 3]:
                raise invalid(
                    self._where(f"features.{name}.shape"),
                    f"{feature['shape']} {feature.get('names')}",
                    f"height {camera.height}, width {camera.width} and 3 channels of camera "
                    f"{camera_name} of {spec.name}",
                )

    def _feature(self, features: Mapping[str, Any], name: str) -> dict[str, Any]:
        feature = features.get(name)
        if not isinstance(feature, dict) or not {"dtype", "shape"} <= feature.keys():
            held = ", ".join(key for key in features if "index" not in key)
            raise invalid(
                self._where(f"features.{name}"),
                "absent",
                f"there for {self._embodiment.name}; the data set holds {held}",
            )
        return feature

    def _has_own_columns(self) -> bool:
        held = [name for name in OWN_COLUMNS if name in self._features]
        if not held:
            return False
        count = len(self._embodiment.joints)
        for name in OWN_COLUMNS:
            feature = self._feature(self._features, name)
            expected = ("int64", [1]) if name == STAMP else ("float64", [count])
            if (feature["dtype"], feature["shape"]) != expected:
                raise invalid(
                    self._where(f"features.{name}"),
                    f"{feature['dtype']} {feature['shape']}",
                    f"{expected[0]} {expected[1]} for the joints of {self._embodiment.name}",
                )
            names = feature.get("names")
            if name != STAMP and names != list(self._embodiment.joint_names):
                raise invalid(
                    self._where(f"joints in features.{name}.names"),
                    names,
                    list(self._embodiment.joint_names),
                )
        return True

    def _sources(self, quantity: str, *, needed: bool) -> tuple[tuple[str, int], ...]:
        """Column and place in it of every joint's ``quantity``; empty where a joint has none."""
        places: dict[str, tuple[str, int]] = {}
        for name, feature in self._embodiment.policy.features.items():
            if isinstance(feature, StateFeature) and feature.quantity == quantity:
                for place, joint in enumerate(feature.joints):
                    places.setdefault(joint, (name, place))
        missing = [joint for joint in self._embodiment.joint_names if joint not in places]
        if not missing:
            return tuple(places[joint] for joint in self._embodiment.joint_names)
        if needed:
            raise invalid(
                self._where(f"joint {quantity}s"),
                f"in no policy feature of {self._embodiment.name} for {', '.join(missing)}",
                f"the column {POSITION}, or a feature for every joint",
            )
        return ()

    def _description(self) -> dict[str, Any]:
        path = self.folder / OWN_FILE
        if not path.is_file():
            return {}
        found = _json(path)
        for field, value in (
            ("schema", OWN_SCHEMA),
            ("embodiment", self._embodiment.name),
            ("joints", list(self._embodiment.joint_names)),
        ):
            if found.get(field) != value:
                raise invalid(f"{field} in {path}", found.get(field), value)
        if not isinstance(found.get("episodes"), list):
            raise invalid(f"episodes in {path}", found.get("episodes"), "a list")
        return found

    def _read_tasks(self) -> dict[int, str]:
        path = self.folder / "meta" / "tasks.parquet"
        table = _table(path)
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise invalid(f"columns of {path}", table.column_names, "task_index and the text")
        numbers, words = (table.column(name).to_pylist() for name in ("task_index", texts[0]))
        return {int(n): str(w) for n, w in zip(numbers, words, strict=True)}

    def _task(self, index: int) -> str:
        if index not in self._tasks:
            raise invalid(self._where("task_index"), index, f"one of {sorted(self._tasks)}")
        text = self._tasks[index]
        # Empty stands for it, so that a recording without a task comes back as one.
        return "" if text == self._embodiment.task else text

    def _read_episodes(self, info: Mapping[str, Any]) -> list[EpisodeEntry]:
        paths = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        keys = [name for name in self.layout.pictures if self._features[name]["dtype"] == "video"]
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        columns += [
            f"videos/{key}/{field}"
            for key in keys
            for field in ("chunk_index", "file_index", "from_timestamp")
        ]
        rows = [row for path in paths for row in _table(path, columns).to_pylist()]
        rows.sort(key=lambda row: row["episode_index"])
        total, frames = info.get("total_episodes"), info.get("total_frames")
        if [row["episode_index"] for row in rows] != list(range(len(rows))) or len(rows) != total:
            raise invalid(self._where("meta/episodes"), f"{len(rows)} episodes", f"{total}, 0 on")
        if not rows or sum(row["length"] for row in rows) != frames:
            raise invalid(
                self._where("total_frames"), frames, f"the sum of {len(rows)} episodes, above 0"
            )
        sources = self.description.get("episodes", [{}] * len(rows))
        if len(sources) != len(rows):
            raise invalid(
                f"episodes in {self.folder / OWN_FILE}", len(sources), f"{len(rows)}, as there are"
            )
        return [
            EpisodeEntry(
                index=row["episode_index"],
                length=row["length"],
                file=self.folder
                / str(info["data_path"]).format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                ),
                videos={
                    key: (
                        self.folder
                        / str(info["video_path"]).format(
                            video_key=key,
                            chunk_index=row[f"videos/{key}/chunk_index"],
                            file_index=row[f"videos/{key}/file_index"],
                        ),
                        float(row[f"videos/{key}/from_timestamp"]),
                    )
                    for key in keys
                },
                source=source,
            )
            for row, source in zip(rows, sources, strict=True)
        ]

    def _values(self, entry: EpisodeEntry) -> dict[str, npt.NDArray[Any]]:
        """Every column of an episode but pictures, (T, D)."""
        columns = ["frame_index", "timestamp", "task_index", *self.layout.vectors]
        columns += OWN_COLUMNS if self.own_columns else ()
        table = _table(entry.file, columns, entry.index)
        where = f"episode {entry.index} of {entry.file}"
        if table.num_rows != entry.length:
            raise invalid(f"rows of {where}", table.num_rows, f"{entry.length}, its length")
        values: dict[str, npt.NDArray[Any]] = {}
        for name in columns:
            column = table.column(name)
            if column.null_count:
                raise invalid(f"{name} in {where}", "empty in a row", "a value in each")
            rows = np.asarray(column.to_pylist()).reshape(entry.length, -1)
            if rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
                raise invalid(f"{name} in {where}", f"{rows.dtype}, NaN", "finite numbers")
            values[name] = rows
        return values

    def _joints(
        self, entry: EpisodeEntry, values: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray, FloatArray]:
        """Stamps (T,), positions, velocities and set-points (T, J)."""
        if self.own_columns:
            stamps = values[STAMP][:, 0].astype(np.int64)
            position, velocity, setpoint = (
                values[name].astype(np.float64) for name in OWN_COLUMNS[1:]
            )
            return stamps, position, velocity, setpoint
        times = np.arange(entry.length) / self.layout.fps
        stamps = FIRST_STAMP + np.rint(times * NANOSECONDS).astype(np.int64)
        position = self._in_si(self._positions, values)
        if self._velocities:
            velocity = self._in_si(self._velocities, values)
        elif entry.length > 1:
            velocity = np.gradient(position, 1.0 / self.layout.fps, axis=0)
        else:
            velocity = np.zeros_like(position)
        setpoint = actions_to_setpoints(values[ACTION], position, self._embodiment)
        return stamps, position, velocity, setpoint

    def _in_si(
        self, sources: Sequence[tuple[str, int]], values: Mapping[str, npt.NDArray[Any]]
    ) -> FloatArray:
        columns = []
        for name, place in sources:
            feature = self._embodiment.policy.features[name]
            assert isinstance(feature, StateFeature)
            rows = values[name][:, place].astype(np.float64)
            columns.append((rows - feature.offset[place]) / feature.scale[place])
        return np.stack(columns, axis=1)

    def _check_columns(
        self,
        entry: EpisodeEntry,
        values: Mapping[str, npt.NDArray[Any]],
        stamps: npt.NDArray[np.int64],
        position: FloatArray,
        velocity: FloatArray,
        setpoint: FloatArray,
    ) -> None:
        where = f"episode {entry.index} of data set {self.folder}"
        order = np.arange(entry.length)
        if not np.array_equal(values["frame_index"][:, 0], order):
            raise invalid(
                f"frame_index in {where}", values["frame_index"][:, 0].tolist(), "0, 1, 2, ..."
            )
        late = np.abs(values["timestamp"][:, 0] - order / self.layout.fps)
        if late.max() > _TIME_TOLERANCE:
            raise invalid(
                f"timestamp in {where}",
                f"{late.max():g} s off in frame {late.argmax()}",
                f"frame_index / {self.layout.fps}",
            )
        if not self.own_columns:
            return
        if stamps[0] <= 0 or (np.diff(stamps) <= 0).any():
            raise invalid(f"{STAMP} in {where}", stamps.tolist(), "above 0 and rising")
        frames = [
            Frame(False, Observation(0, {}, where_to, speed), target)
            for where_to, speed, target in zip(position, velocity, setpoint, strict=True)
        ]
        for name, rows in policy_values(frames, self._embodiment).items():
            if not np.array_equal(rows, values[name].astype(np.float32)):
                raise invalid(
                    f"{name} in {where}",
                    "not what the columns in SI units give with the embodiment's scale and offset",
                    "the same: the embodiment file or one of the columns was changed",
                )

    def _pictures(self, entry: EpisodeEntry) -> Iterator[dict[str, ImageArray]]:
        """Pictures of each frame by camera."""
        chosen = {camera: self.layout.column(camera) for camera in self._embodiment.cameras}
        stored = [name for name in chosen.values() if name not in entry.videos]
        rows: Iterator[Mapping[str, Any]] = iter(({},) * entry.length)
        if stored:
            rows = _rows(entry.file, stored, entry.index)
        films = {name: _film(*entry.videos[name], self.layout.fps) for name in entry.videos}
        for number, row in zip(range(entry.length), rows, strict=True):
            images = {}
            for camera, name in chosen.items():
                where = f"{name} in frame {number} of episode {entry.index} of {self.folder}"
                if name in films:
                    picture = next(films[name], None)
                    if picture is None:
                        raise invalid(where, "beyond the end of its video", "a picture")
                else:
                    picture = _decode(row[name], where)
                check_image(picture, camera, self._embodiment)
                images[camera] = picture
            yield images


def dataset_frames(folder: Path, embodiment: Embodiment) -> Iterator[Frame]:
    """The frames of a data set, as :class:`worldforge_ros.bags.frames.BagFrames` gives those of a
    bag; every episode starts anew.

    :raises WorldForgeError: as :class:`LeRobotFolder` and :meth:`LeRobotFolder.frames`.
    """
    return LeRobotFolder(folder, embodiment).frames()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise invalid(str(path), f"not readable ({error})", "a JSON object") from error
    if not isinstance(found, dict):
        raise invalid(str(path), type(found).__name__, "a JSON object")
    return found


def _table(path: Path, columns: Sequence[str] | None = None, episode: int | None = None) -> Any:
    """Columns of a parquet file; with ``episode`` only that episode's rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = None if episode is None else [("episode_index", "=", episode)]
    try:
        return pq.read_table(path, columns=columns, filters=chosen, partitioning=None)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _rows(path: Path, columns: Sequence[str], episode: int) -> Iterator[dict[str, Any]]:
    """Rows of an episode, a few at a time: they hold pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [index for index in range(file.num_row_groups) if _holds(file, index, episode)]
            for batch in file.iter_batches(
                _READ_AT_ONCE, row_groups=groups, columns=[*columns, "episode_index"]
            ):
                for row in batch.to_pylist():
                    if row["episode_index"] == episode:
                        yield row
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _holds(file: Any, group: int, episode: int) -> bool:
    """Whether a row group may hold rows of an episode, by its statistics."""
    metadata = file.metadata.row_group(group)
    for column in map(metadata.column, range(metadata.num_columns)):
        if column.path_in_schema == "episode_index" and column.statistics is not None:
            return bool(column.statistics.min <= episode <= column.statistics.max)
    return True


def _unreadable(path: Path, error: Exception) -> WorldForgeError:
    words = " ".join(str(error).split())
    return invalid(str(path), f"not readable ({words[:300]})", "a file of LeRobot's format 3")


def _decode(held: Any, where: str) -> ImageArray:
    from PIL import Image

    data = held.get("bytes") if isinstance(held, dict) else None
    if not data:
        raise invalid(where, "without bytes", "a picture inside the file")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode != "RGB":
                raise invalid(where, f"a picture of mode {picture.mode}", "RGB of 8 bits")
            return np.asarray(picture)
    except (OSError, ValueError) as error:
        raise invalid(where, f"not decodable ({error})", "a picture") from error


def _film(path: Path, begin: float, fps: int) -> Iterator[ImageArray]:
    """Pictures of a video from ``begin`` seconds on, exactly ``1 / fps`` seconds apart."""
    import av

    allowed = 0.25 / fps
    number = 0
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            if begin > 0 and stream.time_base is not None:
                file.seek(int(begin / stream.time_base), stream=stream)
            for frame in file.decode(stream):
                due = begin + number / fps
                time = float(frame.time or 0.0)
                if time < due - allowed:
                    continue
                if time > due + allowed:
                    raise invalid(f"video {path}", f"without a picture at {due:.4f} s", "one")
                number += 1
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise invalid(f"video {path}", f"not decodable ({error})", "a video") from error
