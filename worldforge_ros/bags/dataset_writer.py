"""Bags to a folder of LeRobot: what a robot saw and was told, for training the next policy."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.bags.actions import RecordedActions
from worldforge_ros.bags.dataset import (
    GOALS,
    OWN_FILE,
    OWN_SCHEMA,
    POSITION,
    SETPOINT,
    STAMP,
    VELOCITY,
    Layout,
    layout_of,
    policy_values,
)
from worldforge_ros.bags.frames import BagFrames, Frame
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.embodiment import Embodiment, StateFeature
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import ImageArray, check_image

Show = Callable[[str], None]

VIDEO_CODEC = "h264"


def export_bags(
    bags: Sequence[Path],
    folder: Path,
    embodiment: Embodiment,
    *,
    task: str = "",
    video: bool = False,
    namespace: str = "",
    remap: Mapping[str, str] | None = None,
    actions: str = "auto",
    observations: str = "auto",
    show: Show = lambda text: None,
) -> dict[str, Any]:
    """Write the frames of bags as one data set, an episode for each stretch without a gap.

    It appears under its name only when it is whole. Memory grows with the longest episode, not with
    the bags.

    :param task: what the robot was to do; empty: what the observations say, else the embodiment's.
    :param video: pictures as video, which loses some; otherwise as PNG, which does not.
    :param show: called with a remark now and then.
    :returns: ``folder``, ``embodiment``, ``fps``, ``frames``, ``episodes``, ``pictures``,
        ``size_bytes`` and for each of ``bags``: its name, hash, source of the actions, what became
        of its pictures and its problems.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` when the folder exists, ``DEPENDENCY_MISSING``
        without LeRobot, ``DATASET_INVALID`` when there is no frame or LeRobot refuses one, and
        whatever bags, topics and joints can be refused for.
    """
    layout = layout_of(embodiment)
    with new_folder(folder) as work:
        target = _Target(work, folder.name, embodiment, layout, task, video)
        found = []
        for number, path in enumerate(bags, start=1):
            with Bag.open(path) as bag:
                topics = find_topics(
                    bag, embodiment, namespace=namespace, remap=remap, observations=observations
                )
                source = RecordedActions(topics, embodiment, actions)
                frames = BagFrames(bag, topics, embodiment, source)
                prefix = f"bag {number} of {len(bags)} {bag.name}: "
                found.append(target.add(bag, frames, source.source, show, prefix))
        if not target.frames:
            raise mismatch(
                ErrorCode.DATASET_INVALID,
                "frames",
                found="none in " + "; ".join(f"{row['bag']} ({_why(row)})" for row in found),
                expected="a picture of each camera, a joint state and a set-point at one moment",
            )
        target.finish()
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    return {
        "folder": str(folder),
        "embodiment": embodiment.name,
        "fps": layout.fps,
        "frames": target.frames,
        "episodes": target.count,
        "pictures": "video" if video else "png",
        "size_bytes": size,
        "bags": found,
    }


def _why(row: Mapping[str, Any]) -> str:
    reason = row["first_refusal"] or f"{row['no_action']} without a set-point"
    return f"{row['pictures']} pictures, {row['observations']} observations, {reason}"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A path to write to that becomes ``folder`` in the end; after an error nothing is left.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when it exists or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"folder {folder}",
            found="there already",
            expected="a path that does not exist: nothing is overwritten",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"folder {folder}",
            found=f"one that cannot be made ({error})",
            expected="a path that can be written",
        ) from error
    try:
        yield place / folder.name
        (place / folder.name).rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Target:
    """The data set being written."""

    def __init__(
        self,
        folder: Path,
        name: str,
        embodiment: Embodiment,
        layout: Layout,
        task: str,
        video: bool,
    ) -> None:
        try:
            import av
            from datasets import disable_progress_bars  # type: ignore[import-untyped]
            from lerobot.datasets.lerobot_dataset import LeRobotDataset
        except ImportError as error:
            raise mismatch(
                ErrorCode.DEPENDENCY_MISSING,
                "LeRobot's data sets",
                found=f"not importable ({error})",
                expected="the package lerobot, 0.4.4 or later, with what its data sets need",
            ) from error
        # One line of progress is ours; the container would describe itself for every episode.
        disable_progress_bars()
        av.logging.set_libav_level(av.logging.ERROR)
        self._folder, self._embodiment, self._layout, self._task = folder, embodiment, layout, task
        self.frames = self.count = 0
        self._episodes: list[dict[str, Any]] = []
        self._dataset = LeRobotDataset.create(
            repo_id=f"local/{name}",
            fps=layout.fps,
            features=_features(embodiment, layout, "video" if video else "image"),
            root=folder,
            robot_type=embodiment.name,
            use_videos=video,
            **(_encoder(LeRobotDataset.create) if video else {}),
        )
        (folder / GOALS).mkdir(parents=True)

    def add(
        self, bag: Bag, frames: BagFrames, source: str, show: Show, prefix: str
    ) -> dict[str, Any]:
        """Write the frames of a bag; returns what the report says of it."""
        first = self.count
        stamps: list[int] = []
        goals = _Goals(self._folder)
        spans: list[tuple[int, int, int]] = []
        for frame in frames:
            goals.take(frames.goals)
            if frame.starts and stamps:
                spans.append(self._save(bag, stamps))
                stamps = []
            self._add_frame(frame)
            stamps.append(frame.observation.stamp)
            show(f"{prefix}{frames.counts.frames} frames, {self.count + 1} episodes")
        if stamps:
            spans.append(self._save(bag, stamps))
        goals.take(frames.goals)
        digest = bag.sha256()
        for begin, end, length in spans:
            self._episodes.append(
                {
                    "bag": bag.name,
                    "sha256": digest,
                    "actions": source,
                    "frames": length,
                    "first_stamp_ns": begin,
                    "last_stamp_ns": end,
                    "goals": goals.between(begin, end),
                }
            )
        counts = frames.counts
        return {
            "bag": bag.name,
            "path": str(bag.path),
            "sha256": digest,
            "actions": source,
            "episodes": list(range(first, self.count)),
            "frames": counts.frames,
            "pictures": counts.pictures,
            "observations": counts.observations,
            "decimated": counts.decimated,
            "off_grid": counts.off_grid,
            "no_action": counts.no_action,
            "gaps": len(counts.gaps),
            "largest_offset_ms": counts.largest_offset_ns / 1e6,
            "refused": dict(counts.refused),
            "first_refusal": counts.first_refusal,
            "goals": len(goals),
            "complete": bag.complete,
            "problems": [{"code": str(p.code), "message": p.message} for p in bag.problems],
        }

    def _add_frame(self, frame: Frame) -> None:
        observation = frame.observation
        values: dict[str, Any] = {
            name: rows[0] for name, rows in policy_values([frame], self._embodiment).items()
        }
        for name, camera in self._layout.pictures.items():
            check_image(observation.images[camera], camera, self._embodiment)
            values[name] = np.ascontiguousarray(observation.images[camera])
        values[STAMP] = np.array([observation.stamp], np.int64)
        values[POSITION] = np.asarray(observation.position, np.float64)
        values[VELOCITY] = np.asarray(observation.velocity, np.float64)
        values[SETPOINT] = np.asarray(frame.setpoint, np.float64)
        values["task"] = self._task or observation.task or self._embodiment.task
        try:
            self._dataset.add_frame(values)
        except ValueError as error:
            raise _refused(f"frame at {observation.stamp} ns", error) from error
        self.frames += 1

    def _save(self, bag: Bag, stamps: Sequence[int]) -> tuple[int, int, int]:
        try:
            self._dataset.save_episode(parallel_encoding=False)
        except Exception as error:
            # PyAV, pyarrow, PIL and the codecs raise their own.
            raise _refused(f"episode {self.count}, of bag {bag.name}", error) from error
        self.count += 1
        return stamps[0], stamps[-1], len(stamps)

    def finish(self) -> None:
        """Close the files and say where everything is from."""
        self._dataset.finalize()
        # LeRobot leaves the folders of pictures that it has put into its files.
        shutil.rmtree(self._folder / "images", ignore_errors=True)
        if not any((self._folder / GOALS).iterdir()):
            (self._folder / GOALS).rmdir()
        robot = self._embodiment
        document = {
            "schema": OWN_SCHEMA,
            "embodiment": robot.name,
            "joints": list(robot.joint_names),
            "step_s": robot.policy.step,
            "cameras": {camera: self._layout.column(camera) for camera in robot.cameras},
            "episodes": self._episodes,
        }
        text = json.dumps(document, indent=2) + "\n"
        (self._folder / OWN_FILE).write_text(text, encoding="utf-8")


def _refused(what: str, error: Exception) -> WorldForgeError:
    words = " ".join(str(error).split()) or type(error).__name__
    return mismatch(
        ErrorCode.DATASET_INVALID,
        what,
        found=f"refused by LeRobot ({words[:400]})",
        expected="one that it can write",
    )


class _Goals:
    """The goal pictures of a bag, each written to a file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: list[tuple[int, str]] = []
        self._last: ImageArray | None = None

    def __len__(self) -> int:
        return len(self._found)

    def take(self, goals: Sequence[tuple[int, ImageArray]]) -> None:
        """Look at the goals that were seen so far."""
        for stamp, picture in goals[-1:]:
            if picture is self._last:
                continue
            self._last = picture
            self._found.append((stamp, self._write(picture)))

    def _write(self, picture: ImageArray) -> str:
        from PIL import Image

        solid = np.ascontiguousarray(picture)
        shape = "x".join(map(str, solid.shape[:2]))
        path = GOALS / f"goal_{hashlib.sha256(solid.tobytes()).hexdigest()[:16]}_{shape}.png"
        Image.fromarray(solid).save(self._folder / path)
        return str(path)

    def between(self, begin: int, end: int) -> list[dict[str, Any]]:
        """The goal in force at ``begin`` ns, and those that came until ``end``."""
        before = [goal for goal in self._found if goal[0] <= begin] or self._found[:1]
        during = [
            goal for goal in self._found if begin < goal[0] <= end and goal not in before[-1:]
        ]
        return [{"stamp_ns": stamp, "file": file} for stamp, file in [*before[-1:], *during]]


def _encoder(create: Callable[..., Any]) -> dict[str, Any]:
    """H.264, in the words of the installed LeRobot.

    Its default, SVT-AV1, makes itself and the thread that calls it SCHED_FIFO 99 where it runs as
    root, as in most containers, and what that thread starts later inherits it: beside it nothing
    else on the machine gets to run, the safety gate included.
    """
    if "vcodec" in inspect.signature(create).parameters:
        return {"vcodec": VIDEO_CODEC}
    from lerobot.configs.video import RGBEncoderConfig

    return {"rgb_encoder": RGBEncoderConfig(vcodec=VIDEO_CODEC)}


def _features(embodiment: Embodiment, layout: Layout, pictures: str) -> dict[str, Any]:
    """LeRobot's description of the columns."""
    joints = list(embodiment.joint_names)
    features: dict[str, Any] = {}
    for name, camera_name in layout.pictures.items():
        camera = embodiment.cameras[camera_name]
        features[name] = {
            "dtype": pictures,
            "shape": (camera.height, camera.width, 3),
            "names": ["height", "width", "channels"],
        }
    for name, count in layout.vectors.items():
        source = embodiment.policy.features.get(name)
        names = list(source.joints) if isinstance(source, StateFeature) else joints
        features[name] = {"dtype": "float32", "shape": (count,), "names": names}
    features[STAMP] = {"dtype": "int64", "shape": (1,), "names": ["ns"]}
    for name in (POSITION, VELOCITY, SETPOINT):
        features[name] = {"dtype": "float64", "shape": (len(joints),), "names": joints}
    return features
