"""Clips of recorded robots for the measures of a world model: from bags and from LeRobot data sets
alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldforge_ros.bags.frames import BagFrames, Frame
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.scorers.contract import camera_image
from worldforge_ros.scorers.latent import FrameClip

LONGEST = 64
"""Blocks of a clip: longer stretches are cut, so that memory does not grow with a recording."""


@dataclass
class Recordings:
    """Where clips come from; ``failed`` are recordings that could not be read and why, as far as
    :meth:`clips` has come.
    """

    paths: Sequence[Path]
    embodiment: Embodiment
    namespace: str = ""
    remap: Mapping[str, str] = field(default_factory=dict)
    actions: str = "auto"
    observations: str = "auto"
    longest: int = LONGEST
    failed: list[tuple[Path, WorldForgeError]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each bag that was read, by name; of a data set that of its description."""

    def clips(self) -> Iterator[FrameClip]:
        """Clips in order of the recordings.

        :raises WorldForgeError: the first recording's error when none could be read,
            ``EMBODIMENT_MISMATCH`` for an embodiment whose policy and world model step differently.
        """
        self._check_steps()
        for path in self.paths:
            yield from self._readable(path)
        if self.failed and not self.sources:
            raise self.failed[0][1]

    def _readable(self, path: Path) -> Iterator[FrameClip]:
        """The clips of a recording up to where it cannot be read."""
        try:
            yield from self._of(path)
        except WorldForgeError as error:
            if error.code is ErrorCode.INVALID_ARGUMENT:
                raise
            self.failed.append((path, error))

    def _check_steps(self) -> None:
        step, policy = self.embodiment.scoring.step, self.embodiment.policy.step
        if abs(step - policy) > 1e-9:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"world_model.step of embodiment {self.embodiment.name}",
                found=f"{step:g} s",
                expected=f"{policy:g} s, the policy's, which recordings are read at",
            )

    def _of(self, path: Path) -> Iterator[FrameClip]:
        if (path / "meta" / "info.json").is_file():
            from worldforge_ros.bags.dataset import dataset_frames
            from worldforge_ros.checkpoints import file_sha256

            self.sources[path.name] = file_sha256(path / "meta" / "info.json")
            frames = dataset_frames(path, self.embodiment)
            yield from clips_of(frames, self.embodiment, path.name, self.longest, several=True)
            return
        from worldforge_ros.bags.actions import RecordedActions
        from worldforge_ros.bags.reader import Bag
        from worldforge_ros.bags.topics import find_topics

        with Bag.open(path) as bag:
            topics = find_topics(
                bag,
                self.embodiment,
                namespace=self.namespace,
                remap=self.remap,
                observations=self.observations,
            )
            actions = RecordedActions(topics, self.embodiment, self.actions)
            frames = BagFrames(bag, topics, self.embodiment, actions)
            yield from clips_of(frames, self.embodiment, bag.name, self.longest)
            self.sources[bag.name] = bag.sha256()


def clips_of(
    frames: Iterable[Frame],
    embodiment: Embodiment,
    name: str,
    longest: int = LONGEST,
    *,
    several: bool = False,
) -> Iterator[FrameClip]:
    """Clips of the frames of one recording, all of the episode ``name``: what comes before a gap
    and after it is of one run. Of a data set with ``several`` episodes they are ``name``,
    ``name#2``, ...

    A clip ends where frames do and after ``longest`` blocks; the next one begins with its last
    picture. What is left of a block at the end is left out.
    """
    block = embodiment.scoring.block
    held: list[Frame] = []
    number = 0

    def episode() -> str:
        return f"{name}#{number}" if several and number > 1 else name

    for frame in frames:
        if frame.starts:
            if len(held) > block:
                yield _clip(held, embodiment, episode())
            held = []
            number += 1
        held.append(frame)
        if len(held) == longest * block + 1:
            yield _clip(held, embodiment, episode())
            held = held[-1:]
    if len(held) > block:
        yield _clip(held, embodiment, episode())


def _clip(frames: Sequence[Frame], embodiment: Embodiment, episode: str) -> FrameClip:
    block = embodiment.scoring.block
    count = (len(frames) - 1) // block
    used = frames[: count * block + 1]
    return FrameClip(
        episode=episode,
        images=np.stack([camera_image(f.observation, embodiment) for f in used[::block]]),
        position=np.stack([frame.observation.position for frame in used]),
        velocity=np.stack([frame.observation.velocity for frame in used]),
        actions=np.stack([frame.setpoint for frame in used[:-1]]),
        states=np.empty((count + 1, 0)),
    )
