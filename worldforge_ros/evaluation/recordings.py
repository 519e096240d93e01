"""Clips for the measures of a world model: of recorded robots, from bags and from LeRobot data sets
alike, and of simulated ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.bags.actions import SOURCES as ACTION_SOURCES
from worldforge_ros.bags.frames import BagFrames, Frame
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.protocols import check_unseen
from worldforge_ros.recording.progress import track
from worldforge_ros.scorers.contract import camera_image
from worldforge_ros.scorers.latent import FrameClip

LONGEST = 64
"""Blocks of a clip: longer stretches are cut, so that memory does not grow with a recording."""
OBSERVATIONS = ("auto", "observation", "sensors")
SIMULATED = {"pusht": ("task", "switch"), "aloha": ("transfer", "blend")}
"""What can be simulated, the protocol of its episodes and the seam of its bring-up: ACT's first
action may be further from the held position than a joint moves in one step, and switching to it is
refused.
"""


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
    """SHA-256 of each bag that was read, by name; of a data set that of its ``meta`` folder."""

    def clips(self) -> Iterator[FrameClip]:
        """Clips in order of the recordings.

        :raises WorldForgeError: the first recording's error when none could be read,
            ``EMBODIMENT_MISMATCH`` for an embodiment whose policy and world model step differently,
            ``INVALID_ARGUMENT`` for a recording that is given twice.
        """
        self._check_steps()
        for path, name in zip(self.paths, self._names(), strict=True):
            yield from self._readable(path, name)
        if self.failed and not self.sources:
            raise self.failed[0][1]

    def _names(self) -> list[str]:
        """A name of its own for each recording: two of one name are not one episode."""
        places = [path.resolve() for path in self.paths]
        twice = next((path for path in places if places.count(path) > 1), None)
        if twice is not None:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "recordings",
                found=f"{twice} twice",
                expected="each recording once",
            )
        names = [path.name if path.is_dir() else path.stem for path in places]
        return [
            name if names.count(name) == 1 else str(path)
            for name, path in zip(names, places, strict=True)
        ]

    def _readable(self, path: Path, name: str) -> Iterator[FrameClip]:
        """The clips of a recording up to where it cannot be read."""
        try:
            yield from self._of(path, name)
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

    def _of(self, path: Path, name: str) -> Iterator[FrameClip]:
        if (path / "meta" / "info.json").is_file():
            from worldforge_ros.bags.dataset import dataset_frames
            from worldforge_ros.checkpoints import tree_sha256

            recorded = dataset_frames(path, self.embodiment)
            yield from clips_of(recorded, self.embodiment, name, self.longest, several=True)
            # With its statistics: the description alone is that of every set of this size.
            self.sources[name] = tree_sha256(path / "meta")
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
            yield from clips_of(frames, self.embodiment, name, self.longest)
            self.sources[name] = bag.sha256()


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


def add_clips(parser: argparse.ArgumentParser) -> None:
    """The options of everything that is measured on clips."""
    parser.add_argument(
        "recordings", nargs="*", type=Path, metavar="BAG|DATASET", help="bags or LeRobot data sets"
    )
    parser.add_argument("--embodiment", default="pusht", help="name or YAML file")
    parser.add_argument("--namespace", default="", help="of the recorded topics")
    parser.add_argument(
        "--remap", action="append", default=[], metavar="OURS:=BAG'S", help="one topic's other name"
    )
    parser.add_argument("--actions", choices=ACTION_SOURCES, default="auto")
    parser.add_argument("--observations", choices=OBSERVATIONS, default="auto")
    parser.add_argument(
        "--simulate",
        choices=tuple(SIMULATED),
        help="closed-loop episodes of the simulator, with the shipped checkpoints, instead of "
        "recordings",
    )
    parser.add_argument("--planner", default="scored", help="of --simulate")
    parser.add_argument("--seeds", type=int, default=0, help="of --simulate, consecutive from here")
    parser.add_argument("--episodes", type=int, default=20, help="of --simulate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)


class Clips:
    """The clips that :func:`add_clips` names, to be iterated once.

    After that ``sources`` is what they are from: SHA-256 of each recording, or seeds; and
    ``failed`` the recordings that could not be read, or not to their end, and why.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for options that do not fit together, and
        as :func:`~worldforge_ros.embodiment.load_embodiment`.
        """
        if bool(args.recordings) == bool(args.simulate):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "recordings",
                found="given beside --simulate" if args.simulate else "none",
                expected="bags or data sets, or --simulate",
            )
        for name, least in (("threads", 1), ("seeds", 0), ("episodes", 1)):
            if getattr(args, name) < least:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"--{name}",
                    found=getattr(args, name),
                    expected=f"{least} or more",
                )
        self._args = args
        self.embodiment: Embodiment = load_embodiment(args.simulate or args.embodiment)
        self.sources: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def __iter__(self) -> Iterator[FrameClip]:
        """:raises WorldForgeError: as
        :meth:`~worldforge_ros.evaluation.recordings.Recordings.clips` and
        :func:`~worldforge_ros.evaluation.simulated.simulated_clips`.
        """
        return self._simulated() if self._args.simulate else self._recorded()

    def _recorded(self) -> Iterator[FrameClip]:
        recordings = _recordings(self._args, self.embodiment)
        with track("recordings", len(recordings.paths)) as advance:
            seen: set[str] = set()
            for clip in recordings.clips():
                yield clip
                name = clip.episode.partition("#")[0]
                if name not in seen:
                    seen.add(name)
                    advance(name)
        self.sources.update(sorted(recordings.sources.items()))
        self.failed.update({str(path): str(error) for path, error in recordings.failed})

    def _simulated(self) -> Iterator[FrameClip]:
        from worldforge_ros.evaluation.lockstep import Settings
        from worldforge_ros.evaluation.simulated import simulated_clips

        args = self._args
        seeds = range(args.seeds, args.seeds + args.episodes)
        check_unseen(seeds)
        own = Settings()
        protocol, seam = SIMULATED[args.simulate]
        settings = replace(
            own,
            protocol=protocol,
            seam=replace(own.seam, mode=seam),
            embodiment=args.simulate,
            policy=own.policy.replace("pusht", args.simulate),
            world_model=own.world_model.replace("pusht", args.simulate),
            device=args.device,
            threads=args.threads,
        )
        self.sources.update(
            simulated=args.simulate, planner=args.planner, seeds=[seeds[0], seeds[-1]]
        )
        with track("episodes", len(seeds)) as advance:
            for seed, clip in simulated_clips(settings, args.planner, seeds):
                yield clip
                advance(f"seed {seed}: {len(clip)} pictures")


def _recordings(args: argparse.Namespace, embodiment: Embodiment) -> Recordings:
    remap = {}
    for text in args.remap:
        ours, found, theirs = text.partition(":=")
        if not found or not ours:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "--remap", found=repr(text), expected="OURS:=THEIRS"
            )
        remap[ours] = theirs
    return Recordings(
        args.recordings,
        embodiment,
        namespace=args.namespace,
        remap=remap,
        actions=args.actions,
        observations=args.observations,
    )
