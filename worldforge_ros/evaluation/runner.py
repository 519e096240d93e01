"""Runs the episodes of an evaluation: in this process, on all cores, or on a Ray cluster.

Every finished episode is a line of ``episodes.jsonl`` in the output folder, so that the same
command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from worldforge_ros.checkpoints import folder_sha256
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.engines import run_tasks
from worldforge_ros.evaluation.lockstep import (
    Compared,
    EpisodeResult,
    Settings,
    World,
    load_models,
    make_world,
    run_episode,
)
from worldforge_ros.evaluation.planners import NEED_POLICY, NEED_WORLD_MODEL, Models
from worldforge_ros.resources import resolve_path

EPISODES_FILE = "episodes.jsonl"
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Finished:
    """An episode and, for ``scored``, what its costs were compared with."""

    result: EpisodeResult
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class _Task:
    """One episode; ``every`` names the planners whose models are loaded."""

    seed: int
    planner: str
    every: tuple[str, ...]
    settings: Settings


@lru_cache(maxsize=1)
def _loaded(settings: Settings, planners: tuple[str, ...]) -> tuple[Models, World]:
    """Models and world of this process."""
    return load_models(settings, planners), make_world(settings)


def _run(task: _Task) -> Finished:
    models, simulation = _loaded(task.settings, task.every)
    compared: list[Compared] = []
    result = run_episode(task.planner, task.seed, task.settings, models, simulation, compared)
    return Finished(result, tuple(compared))


class Record:
    """The finished episodes in an output folder.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when the folder holds episodes of other settings
        or of other weights.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        planners: Sequence[str],
        backend: str = "lockstep",
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        """:param backend: what runs the episodes.
        :param arguments: of a live bring-up, beside the settings.
        """
        self._path = folder / EPISODES_FILE
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = describe(settings, planners)
        self.settings |= {"backend": backend, "arguments": dict(arguments or {})}
        known = folder / SETTINGS_FILE
        if known.is_file():
            before = json.loads(known.read_text(encoding="utf-8"))
            for name in sorted(before.keys() & self.settings.keys()):
                if before[name] != self.settings[name]:
                    raise mismatch(
                        ErrorCode.INVALID_ARGUMENT,
                        f"{name} of the episodes in {folder}",
                        found=before[name],
                        expected=f"{self.settings[name]} as now; give another --out",
                    )
            self.settings = {**before, **self.settings}
        known.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        self.finished = [_parse(line) for line in self._lines()]
        self._file = self._path.open("a", encoding="utf-8")

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8")
        complete, _, rest = text.rpartition("\n")
        if rest:
            # Killed while writing: the half line is an episode that has to be run again.
            self._path.write_text(complete + "\n" if complete else "", encoding="utf-8")
        return complete.splitlines()

    def add(self, finished: Finished) -> None:
        """Append an episode; it is on disk when this returns."""
        self.finished.append(finished)
        row = as_row(finished.result)
        row["compared"] = [
            [[round(float(v), 6) for v in values] for values in (c.costs, c.outcomes)]
            for c in finished.compared
        ]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse(line: str) -> Finished:
    import numpy as np

    row: dict[str, Any] = json.loads(line)
    compared = tuple(
        Compared(np.array(costs, np.float32), np.array(outcomes, np.float64))
        for costs, outcomes in row.pop("compared")
    )
    known = {name: math.nan if row[name] is None else row[name] for name in UNKNOWN}
    return Finished(EpisodeResult(**{**row, **known}), compared)


UNKNOWN = ("position_error_mm", "angle_error", "spearman")
"""Fields of a result that may be NaN, which JSON has no word for."""


def as_row(result: EpisodeResult) -> dict[str, Any]:
    """``result`` for JSON and Parquet."""
    row = asdict(result)
    return row | {name: None for name in UNKNOWN if math.isnan(row[name])}


def describe(settings: Settings, planners: Sequence[str]) -> dict[str, Any]:
    """Settings and the hashes of the weights that decide the result of an episode."""
    document = asdict(settings)
    document["extra_sources"] = list(settings.extra_sources)
    embodiment = repr(load_embodiment(settings.embodiment))
    document["embodiment_sha256"] = hashlib.sha256(embodiment.encode()).hexdigest()
    # What none of the planners uses does not bind the episodes of others in the same folder.
    if not NEED_POLICY.intersection(planners):
        del document["policy"]
    if not NEED_WORLD_MODEL.intersection(planners):
        del document["world_model"], document["objective"]
    for name, planner in (("search", "cem"), ("refine", "cem+policy")):
        if planner not in planners:
            del document[name]
    for name in ("policy", "world_model"):
        if name in document:
            folder = resolve_path(document[name])
            document[f"{name}_sha256"] = folder_sha256(folder)
    # Neither threads nor where a model runs is meant to change a result.
    for name in ("threads", "device"):
        del document[name]
    return document


def run_all(
    planners: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    record: Record,
    *,
    engine: str = "local",
    jobs: int = 1,
    advance: Callable[[Finished], None] = lambda finished: None,
) -> None:
    """Run what ``record`` does not hold yet; every episode is recorded when it ends.

    :param advance: called after each episode.
    :raises WorldForgeError: ``DEPENDENCY_MISSING`` for engine ``ray`` without the package, and what
        the episodes raise.
    """
    there = {(f.result.planner, f.result.seed) for f in record.finished}
    tasks = [
        _Task(seed, name, tuple(planners), settings)
        for seed in seeds
        for name in planners
        if (name, seed) not in there
    ]
    for finished in run_tasks(_run, tasks, engine=engine, jobs=jobs):
        record.add(finished)
        advance(finished)
