"""Recorded episodes on disk: one compressed ``.npz`` an episode.

Arrays of an episode of T steps of a robot with J joints, all captured at the *start* of a step:
``position`` (T, J) m or rad, ``velocity`` (T, J) m/s or rad/s, ``action`` (T, J) m or rad the
executed set-point of that step, ``label`` (T, J) m or rad the set-point that the demonstrator
wanted, ``state`` (T, n) of the simulator (PushT 5, ALOHA 61) and ``coverage`` (T,) how far the task
is solved, 0 to 1 (PushT the covered share of the goal, ALOHA a quarter of the reward).

``images`` (F, height, width, 3) uint8 RGB are of steps 0, ``image_every``, 2 ``image_every``, ...
(a file without that number has one of every step), as the camera gave them or already at the size
of the model that they are for, see :func:`worldforge_ros.scorers.encoders.resize_pixels`. Scalars
are ``seed`` and ``kind``, see :data:`EPISODE_KINDS`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FloatArray = npt.NDArray[np.float32]
ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Episode:
    """One recorded episode; see the module for shapes and units."""

    images: ImageArray
    position: FloatArray
    velocity: FloatArray
    action: FloatArray
    label: FloatArray
    state: FloatArray
    coverage: FloatArray
    seed: int
    kind: str
    image_every: int = 1

    def __len__(self) -> int:
        return len(self.action)


AnyEpisode = TypeVar("AnyEpisode", bound="DataclassInstance")

_STEP_FIELDS = ("images", "position", "velocity", "action", "label", "state", "coverage")


def episode_path(folder: Path, kind: str, seed: int) -> Path:
    """Where the episode of ``kind`` and ``seed`` lies."""
    return folder / f"{kind}_{seed:06d}.npz"


EPISODE_KINDS = ("demo", "play", "explore", "policy", "branch")
"""Demonstrations, things that go wrong, noisy motion, what a policy did, and what else could have
been done from a moment of one of those."""


FIRST_TRAINING_SEED = 100_000
"""Evaluation uses lower seeds; nothing is recorded for training from those."""


def seeds_to_record(folder: Path, kind: str, start: int, episodes: int) -> tuple[range, list[int]]:
    """The seeds whose episodes of ``kind`` shall exist in ``folder``, and those that do not yet.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for seeds that belong to evaluation.
    """
    if start < FIRST_TRAINING_SEED:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--start-seed",
            found=start,
            expected=f"{FIRST_TRAINING_SEED} or more: lower ones belong to evaluation",
        )
    seeds = range(start, start + episodes)
    return seeds, [seed for seed in seeds if not episode_path(folder, kind, seed).exists()]


def list_episodes(folder: Path, kinds: Sequence[str] = EPISODE_KINDS) -> list[Path]:
    """Episode files of these kinds, sorted by name.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when there is none.
    """
    paths = sorted(path for kind in kinds for path in folder.glob(f"{kind}_*.npz"))
    if not paths:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"folder {folder}",
            found="without episodes",
            expected=f"{' or '.join(f'{kind}_<seed>.npz' for kind in kinds)}; "
            "make them with worldforge train demos",
        )
    return paths


def save_episode(episode: DataclassInstance, path: Path) -> None:
    """Write an episode, a data class of arrays; it appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, **{field.name: getattr(episode, field.name) for field in fields(episode)}
        )
    partial.replace(path)


def load_arrays(path: Path, kind: type[AnyEpisode]) -> AnyEpisode:
    """Read what :func:`save_episode` wrote of a data class ``kind``.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that lacks a field or is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            # A field with a default may be absent: files of before it was there are as good.
            values = {
                field.name: data[field.name]
                for field in fields(kind)
                if field.name in data or field.default is MISSING
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WorldForgeError(
            ErrorCode.INVALID_ARGUMENT, f"{path} is not a recorded episode: {error}"
        ) from error
    scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
    return kind(**{**values, **scalars})


def load_episode(path: Path) -> Episode:
    """Read an episode.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that is not a complete episode.
    """
    episode = load_arrays(path, Episode)
    lengths = {name: len(getattr(episode, name)) for name in _STEP_FIELDS[1:]}
    if len(set(lengths.values())) != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, f"{path}", found=lengths, expected="arrays of one length"
        )
    every, pictures = episode.image_every, len(episode.images)
    if every < 1 or pictures != -(-len(episode) // every):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"images of {path}",
            found=f"{pictures} of {len(episode)} steps",
            expected=f"one every {every} steps",
        )
    return episode


@dataclass(frozen=True)
class EpisodeSet:
    """Many episodes end to end: step arrays (N, ...) and ``offsets`` (episodes + 1,) into them.

    ``frames`` (N,) are indices into ``images`` (F, ...), -1 for a step without a picture; that of
    the first step of an episode is there. ``images`` may be memory-mapped.
    """

    images: ImageArray
    position: FloatArray
    velocity: FloatArray
    action: FloatArray
    label: FloatArray
    state: FloatArray
    coverage: FloatArray
    frames: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    kinds: tuple[str, ...]
    image_every: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def episode(self, index: int) -> Episode:
        """Episode ``index`` as views."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        arrays = {name: getattr(self, name)[part] for name in _STEP_FIELDS[1:]}
        own = self.frames[part]
        return Episode(
            images=self.images[own[0] : own.max() + 1],
            **arrays,
            seed=int(self.seeds[index]),
            kind=self.kinds[index],
            image_every=self.image_every[index],
        )

    def windows(
        self, length: int, stride: int = 1, episodes: Iterable[int] | None = None
    ) -> npt.NDArray[np.int64]:
        """First step of every window of ``length`` steps that lies within one episode and begins
        with a picture, at every ``stride``-th step at most.
        """
        chosen = range(len(self)) if episodes is None else episodes
        starts = [
            np.arange(
                self.offsets[index],
                self.offsets[index + 1] - length + 1,
                math.lcm(stride, self.image_every[index]),
            )
            for index in chosen
        ]
        found: npt.NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *starts])
        return found


def load_episodes(paths: Sequence[Path], image_cache: Path | None = None) -> EpisodeSet:
    """Load episodes; with ``image_cache`` the pictures live in a memory-mapped file there.

    The cache is always written anew: which episodes exist changes between runs.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for what :func:`load_episode` refuses, and for
        pictures of different sizes.
    """
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in _STEP_FIELDS[1:]}
    pictures: list[ImageArray] = []
    lengths, seeds, kinds, every = [], [], [], []
    frames: list[npt.NDArray[np.int64]] = []
    count = 0
    shape: tuple[int, ...] = ()
    raw = None
    if image_cache is not None:
        image_cache.parent.mkdir(parents=True, exist_ok=True)
        raw = image_cache.open("wb")
    try:
        for path in paths:
            episode = load_episode(path)
            if shape and episode.images.shape[1:] != shape:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"pictures of {path}",
                    found=f"{episode.images.shape[1:]}",
                    expected=f"{shape}, as of the episodes before it",
                )
            shape = episode.images.shape[1:]
            own = np.full(len(episode), -1, np.int64)
            own[:: episode.image_every] = count + np.arange(len(episode.images))
            frames.append(own)
            count += len(episode.images)
            lengths.append(len(episode))
            seeds.append(episode.seed)
            kinds.append(episode.kind)
            every.append(episode.image_every)
            for name, held in parts.items():
                held.append(getattr(episode, name))
            if raw is None:
                pictures.append(episode.images)
            else:
                episode.images.tofile(raw)
    finally:
        if raw is not None:
            raw.close()
    images: ImageArray
    if image_cache is None:
        images = np.concatenate(pictures)
    else:
        images = np.memmap(image_cache, np.uint8, "r", shape=(count, *shape))
    return EpisodeSet(
        images=images,
        **{name: np.concatenate(held) for name, held in parts.items()},
        frames=np.concatenate(frames),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        seeds=np.asarray(seeds, np.int64),
        kinds=tuple(kinds),
        image_every=tuple(every),
    )
