"""Recorded PushT episodes on disk: one compressed ``.npz`` an episode.

Arrays of an episode of T steps, all captured at the *start* of a step: ``images`` (T, 96, 96, 3)
uint8 RGB, ``position`` (T, 2) m, ``velocity`` (T, 2) m/s, ``action`` (T, 2) m the executed
set-point of that step, ``label`` (T, 2) m the set-point that the demonstrator wanted, ``state`` (T,
5) and ``coverage`` (T,) of the simulator, and scalars ``seed`` and ``kind``, see
:data:`EPISODE_KINDS`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

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

    def __len__(self) -> int:
        return len(self.action)


_STEP_FIELDS = ("images", "position", "velocity", "action", "label", "state", "coverage")


def episode_path(folder: Path, kind: str, seed: int) -> Path:
    """Where the episode of ``kind`` and ``seed`` lies."""
    return folder / f"{kind}_{seed:06d}.npz"


EPISODE_KINDS = ("demo", "play", "explore", "policy")
"""Demonstrations, random pushing, noisy motion, and what a policy did."""


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
            "make them with python -m worldforge_ros.training.demos",
        )
    return paths


def save_episode(episode: Episode, path: Path) -> None:
    """Write an episode; it appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, **{field.name: getattr(episode, field.name) for field in fields(episode)}
        )
    partial.replace(path)


def load_episode(path: Path) -> Episode:
    """Read an episode.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that is not a complete episode.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in _STEP_FIELDS}
            episode = Episode(**arrays, seed=int(data["seed"]), kind=str(data["kind"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WorldForgeError(
            ErrorCode.INVALID_ARGUMENT, f"{path} is not a recorded episode: {error}"
        ) from error
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, f"{path}", found=lengths, expected="arrays of one length"
        )
    return episode


@dataclass(frozen=True)
class EpisodeSet:
    """Many episodes end to end: step arrays (N, ...) and ``offsets`` (episodes + 1,) into them.

    ``images`` may be memory-mapped.
    """

    images: ImageArray
    position: FloatArray
    velocity: FloatArray
    action: FloatArray
    label: FloatArray
    state: FloatArray
    coverage: FloatArray
    offsets: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def episode(self, index: int) -> Episode:
        """Episode ``index`` as views."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        arrays = {name: getattr(self, name)[part] for name in _STEP_FIELDS}
        return Episode(**arrays, seed=int(self.seeds[index]), kind=self.kinds[index])

    def windows(
        self, length: int, stride: int = 1, episodes: Iterable[int] | None = None
    ) -> npt.NDArray[np.int64]:
        """First step of every window of ``length`` steps that lies within one episode."""
        chosen = range(len(self)) if episodes is None else episodes
        starts = [
            np.arange(self.offsets[index], self.offsets[index + 1] - length + 1, stride)
            for index in chosen
        ]
        found: npt.NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *starts])
        return found


def load_episodes(paths: Sequence[Path], image_cache: Path | None = None) -> EpisodeSet:
    """Load episodes; with ``image_cache`` the pictures live in a memory-mapped file there.

    The cache is always written anew: which episodes exist changes between runs.
    """
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in _STEP_FIELDS[1:]}
    pictures: list[ImageArray] = []
    lengths, seeds, kinds = [], [], []
    raw = None
    if image_cache is not None:
        image_cache.parent.mkdir(parents=True, exist_ok=True)
        raw = image_cache.open("wb")
    try:
        for path in paths:
            episode = load_episode(path)
            lengths.append(len(episode))
            seeds.append(episode.seed)
            kinds.append(episode.kind)
            for name, held in parts.items():
                held.append(getattr(episode, name))
            if raw is None:
                pictures.append(episode.images)
            else:
                episode.images.tofile(raw)
            shape = episode.images.shape[1:]
    finally:
        if raw is not None:
            raw.close()
    images: ImageArray
    if image_cache is None:
        images = np.concatenate(pictures)
    else:
        images = np.memmap(image_cache, np.uint8, "r", shape=(sum(lengths), *shape))
    return EpisodeSet(
        images=images,
        **{name: np.concatenate(held) for name, held in parts.items()},
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        seeds=np.asarray(seeds, np.int64),
        kinds=tuple(kinds),
    )
