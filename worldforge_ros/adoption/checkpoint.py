"""What the files of a LeRobot checkpoint say about the robot it was trained on.

Only JSON and statistics are read: no weights, no LeRobot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.policies.checkpoint import (
    CONFIG_FILE,
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    find_checkpoint,
    read_json,
)

FloatArray = npt.NDArray[np.float64]

POSITION_SUFFIX = ".pos"
"""How LeRobot's robots name the position of a joint in a data set."""
_PLAIN_STEPS = frozenset(
    (
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
        "unnormalizer_processor",
        "tokenizer_processor",
    )
)
"""Processor steps that leave vectors and pictures with the names and shapes they have."""


@dataclass(frozen=True)
class Feature:
    """A policy feature: LeRobot's type (``STATE``, ``VISUAL``, ``ENV``, ...) and its shape."""

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """Least and greatest value of each dimension of a vector in the training data, policy units;
    where only mean and standard deviation are known (``exact`` false), one deviation about the
    mean.
    """

    low: FloatArray
    high: FloatArray
    exact: bool = True


@dataclass(frozen=True)
class PolicyFacts:
    """A checkpoint as its files describe it.

    ``names`` are the data set's names of a feature's dimensions; ``rename`` is robot name to policy
    name; ``plain`` is false where a processor step may make features of its own. ``step`` is in
    seconds, ``step_source`` says where it was found.
    """

    folder: Path
    type: str
    inputs: Mapping[str, Feature]
    action_size: int
    history: int
    step: float | None
    step_source: str
    names: Mapping[str, tuple[str, ...]]
    names_source: str
    rename: Mapping[str, str]
    plain: bool
    statistics: Mapping[str, Statistics]


def read_policy(name: str | Path, dataset: Path | None = None) -> PolicyFacts:
    """Read ``config.json``, and where they are there ``train_config.json``, the processors' files
    and the data set's ``meta/info.json``.

    :param name: folder of the checkpoint.
    :param dataset: folder of the LeRobot data set; None takes the one that ``train_config.json``
        names, where it is on this machine.
    :raises WorldForgeError: ``CHECKPOINT_MISSING`` or ``CHECKPOINT_INVALID``; ``INVALID_ARGUMENT``
        for a data set that is none, or that is not the checkpoint's.
    """
    folder = find_checkpoint(name)
    if not (folder / CONFIG_FILE).is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            f"policy checkpoint {folder}",
            found=f"without {CONFIG_FILE}",
            expected="a LeRobot folder",
        )
    config = read_json(folder / CONFIG_FILE)
    inputs = _features(config, "input_features", folder)
    outputs = _features(config, "output_features", folder)
    action = outputs.get("action")
    if action is None or len(action.shape) != 1:
        raise _invalid(folder / CONFIG_FILE, f"output_features.action {action}", "one vector")
    history = config.get("n_obs_steps", 1)
    if isinstance(history, bool) or not isinstance(history, int) or history < 1:
        raise _invalid(folder / CONFIG_FILE, f"n_obs_steps {history}", "a whole number from 1")
    training = _optional(folder / "train_config.json")
    info, source = _dataset(training, dataset)
    step, step_source = _step(training, info, source)
    rename, plain = _steps(folder)
    return PolicyFacts(
        folder=folder,
        type=str(config.get("type")),
        inputs=inputs,
        action_size=action.shape[0],
        history=history,
        step=step,
        step_source=step_source,
        names=_names(info, {**inputs, "action": action}, source),
        names_source=source,
        rename=rename,
        plain=plain,
        statistics=_statistics(folder, {**inputs, "action": action}),
    )


def _features(config: Mapping[str, Any], key: str, folder: Path) -> dict[str, Feature]:
    entries = config.get(key)
    if not isinstance(entries, dict) or not entries:
        raise _invalid(folder / CONFIG_FILE, f"{key} {entries}", "a mapping of features")
    found = {}
    for name, entry in entries.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        whole = isinstance(shape, list) and all(
            isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in shape
        )
        if not shape or not whole or not isinstance(entry.get("type"), str):
            raise _invalid(
                folder / CONFIG_FILE, f"{key}.{name} {entry}", "a type and a shape of sizes"
            )
        found[str(name)] = Feature(entry["type"], tuple(shape))
    return found


def _dataset(
    training: Mapping[str, Any], dataset: Path | None
) -> tuple[Mapping[str, Any] | None, str]:
    """The data set's description and where it was read."""
    if dataset is not None:
        file = dataset / "meta" / "info.json"
        if not file.is_file():
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "dataset",
                found=f"{dataset} without meta/info.json",
                expected="the folder of a LeRobot data set",
            )
        return read_json(file), str(file)
    entry = training.get("dataset")
    root = entry.get("root") if isinstance(entry, dict) else None
    file = Path(str(root)).expanduser() / "meta" / "info.json"
    return (read_json(file), str(file)) if root and file.is_file() else (None, "")


def _step(
    training: Mapping[str, Any], info: Mapping[str, Any] | None, source: str
) -> tuple[float | None, str]:
    environment = training.get("env")
    rates = [
        (info.get("fps") if info else None, source),
        (environment.get("fps") if isinstance(environment, dict) else None, "train_config.json"),
    ]
    for rate, where in rates:
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
            return 1.0 / rate, f"{rate:g} frames a second in {where}"
    return None, ""


def _names(
    info: Mapping[str, Any] | None, features: Mapping[str, Feature], source: str
) -> dict[str, tuple[str, ...]]:
    entries = info.get("features") if info else None
    if not isinstance(entries, dict):
        return {}
    found = {}
    for key, feature in features.items():
        if len(feature.shape) != 1 or key not in entries:
            continue
        names = entries[key].get("names") if isinstance(entries[key], dict) else None
        if isinstance(names, dict) and len(names) == 1:
            names = next(iter(names.values()))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            continue
        if len(names) != feature.shape[0]:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"{key} in {source}",
                found=f"{len(names)} values {names}",
                expected=f"{feature.shape[0]} as in the checkpoint: the data set it was trained on",
            )
        found[key] = tuple(names)
    return found


def _steps(folder: Path) -> tuple[dict[str, str], bool]:
    rename: dict[str, str] = {}
    plain = True
    for step in _step_entries(folder / PREPROCESSOR_FILE):
        name = step.get("registry_name")
        plain = plain and name in _PLAIN_STEPS
        config = step.get("config")
        if name == "rename_observations_processor" and isinstance(config, dict):
            rename.update(config.get("rename_map") or {})
    return rename, plain


def _statistics(folder: Path, features: Mapping[str, Feature]) -> dict[str, Statistics]:
    found = {}
    for pipeline, step, wanted in (
        (
            PREPROCESSOR_FILE,
            "normalizer_processor",
            [k for k in features if k != "action"],
        ),
        (POSTPROCESSOR_FILE, "unnormalizer_processor", ["action"]),
    ):
        held = _state(folder, pipeline, step)
        for key in wanted:
            entry = _extent(held, key, features[key].shape)
            if entry is not None:
                found[key] = entry
    return found


def _state(folder: Path, pipeline: str, name: str) -> dict[str, Any]:
    """The tensors of a processor step; none where it has no file, which the loader refuses."""
    files = [
        folder / str(step["state_file"])
        for step in _step_entries(folder / pipeline)
        if step.get("registry_name") == name and step.get("state_file")
    ]
    if not files or not files[0].is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(files[0]))
    except SafetensorError as error:
        raise _invalid(files[0], f"not readable ({error})", "the statistics of features") from error


def _extent(held: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Statistics | None:
    def values(name: str) -> FloatArray | None:
        array = held.get(f"{key}.{name}")
        usable = array is not None and array.shape == shape and np.isfinite(array).all()
        return np.asarray(array, np.float64) if usable else None

    if len(shape) != 1:
        return None
    low, high, mean, std = values("min"), values("max"), values("mean"), values("std")
    if low is not None and high is not None:
        return Statistics(low, high)
    if mean is not None and std is not None:
        return Statistics(mean - std, mean + std, exact=False)
    return None


def _step_entries(file: Path) -> list[dict[str, Any]]:
    steps = _optional(file).get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise _invalid(file, f"steps {steps}", "a list of steps")
    return steps


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _invalid(file: Path, found: str, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, str(file), found=found, expected=expected)
