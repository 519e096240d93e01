"""Policy checkpoints as files: where the folder is, what is in it, which type it says it has.

Nothing heavy is imported here, so that a missing folder or file is reported at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.resources import resolve_path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "policy_preprocessor.json"
POSTPROCESSOR_FILE = "policy_postprocessor.json"

ALIASES: Mapping[str, str] = MappingProxyType({"pi0fast": "pi0_fast"})
"""Historical spellings of type names."""

_TRUSTED_MODULES = ("lerobot.", "worldforge_ros.")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_FOLDER = "a LeRobot folder with config.json and model.safetensors"


@dataclass(frozen=True)
class CheckpointFiles:
    """A folder whose files are all there. ``given`` is the type that the caller named, ``own`` the
    one that the checkpoint names; either may be empty, not both.
    """

    folder: Path
    config: Mapping[str, Any]
    given: str
    own: str

    @property
    def kind(self) -> str:
        """LeRobot's name of the type."""
        return self.given or self.own

    @property
    def loader_mode(self) -> str:
        """Who named the type: ``typed`` for the caller, ``config`` for the checkpoint itself."""
        return "typed" if self.given else "config"

    @property
    def step_classes(self) -> tuple[str, ...]:
        """Dotted names of the processor steps' classes, of those steps that name one."""
        return tuple(
            str(step["class"])
            for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE)
            for step in read_json(self.folder / name)["steps"]
            if step.get("class") is not None
        )


def find_checkpoint(name: str | Path, revision: str = "", cache_dir: str = "") -> Path:
    """The folder of a checkpoint: a path, or a hub id ``owner/name`` with the commit to take.

    A hub id is looked up in ``cache_dir`` (empty: the hub client's own) and fetched where there is
    a network and ``HF_HUB_OFFLINE`` is not set. Only JSON, safetensors and tokenizer files are.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` where there is nothing, ``INVALID_ARGUMENT`` for
        a revision that is no commit or that belongs to nothing.
    """
    text = str(name)
    path = resolve_path(text)
    if path.is_dir():
        if revision:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "revision",
                found=f"'{revision}' with the folder {path}",
                expected="none; a folder has no revisions",
            )
        return path.resolve()
    if not _HUB_ID.fullmatch(text):
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "policy checkpoint",
            found=f"no folder {path.absolute()}",
            expected=_FOLDER,
        )
    if not revision:
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "policy checkpoint",
            found=f"no folder {path.absolute()}, and hub id '{text}' without a revision",
            expected=f"{_FOLDER}, or a hub id and its commit as revision",
        )
    if not _COMMIT.fullmatch(revision):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "revision",
            found=f"'{revision}'",
            expected="a commit of 40 hex digits: a branch or tag can change what runs",
        )
    return _from_hub(text, revision, cache_dir)


def _from_hub(name: str, revision: str, cache_dir: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=str(resolve_path(cache_dir)) if cache_dir else None,
            allow_patterns=_HUB_FILES,
            local_files_only=offline,
        )
    except Exception as error:
        # The client's errors are those of whatever HTTP library its version uses.
        where = "in the cache (HF_HUB_OFFLINE is set)" if offline else "from the hub"
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            f"policy checkpoint {name} at {revision[:12]}",
            found=f"not to be had {where}: {one_line(error)}",
            expected="a cached snapshot, or a network",
        ) from error
    return Path(folder)


def check_files(folder: Path, policy_type: str = "") -> CheckpointFiles:
    """Check everything that can be said without importing LeRobot.

    :param policy_type: what the caller says that it is; empty: what config.json says.
    :raises WorldForgeError: ``CHECKPOINT_MISSING``, ``CHECKPOINT_INVALID``,
        ``POLICY_TYPE_UNKNOWN``, ``POLICY_NOT_MIGRATED`` or ``CHECKPOINT_UNTRUSTED``.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_MISSING,
                f"policy checkpoint {folder}",
                found=f"without {name}",
                expected=_FOLDER,
            )
    absent = [n for n in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE) if not (folder / n).is_file()]
    if len(absent) == 2:
        raise mismatch(
            ErrorCode.POLICY_NOT_MIGRATED,
            f"policy checkpoint {folder}",
            found=f"without {' and '.join(absent)}, so its normalisation would be lost",
            expected="a checkpoint of LeRobot 0.4 or later: run "
            f"`worldforge migrate-policy {folder} {folder.name}-migrated` and use the new folder",
        )
    if absent:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"policy checkpoint {folder}",
            found=f"without {absent[0]}",
            expected=f"both {PREPROCESSOR_FILE} and {POSTPROCESSOR_FILE}",
        )
    for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        _check_steps(folder, name)
    config = read_json(folder / CONFIG_FILE)
    own, given = canonical(config.get("type")), canonical(policy_type)
    if not (given or own):
        raise mismatch(
            ErrorCode.POLICY_TYPE_UNKNOWN,
            f"policy type in {folder / CONFIG_FILE}",
            found="absent",
            expected="a type, here or as policy_type",
        )
    return CheckpointFiles(folder, {**config, "type": given or own}, given, own)


def canonical(kind: object) -> str:
    """Today's spelling of a type name; empty for none."""
    text = str(kind or "").strip()
    return ALIASES.get(text, text)


def check_type(files: CheckpointFiles, known: list[str]) -> None:
    """Refuse a type that LeRobot's registry does not have, or that is not the checkpoint's.

    :raises WorldForgeError: ``POLICY_TYPE_UNKNOWN`` with the list, ``POLICY_TYPE_MISMATCH``.
    """
    if files.kind not in known:
        raise mismatch(
            ErrorCode.POLICY_TYPE_UNKNOWN,
            "policy type",
            found=f"'{files.kind}'",
            expected=f"one of {', '.join(sorted(known))}",
        )
    if files.given and files.own and files.given != files.own:
        raise mismatch(
            ErrorCode.POLICY_TYPE_MISMATCH,
            f"policy type in {files.folder / CONFIG_FILE}",
            found=f"'{files.own}'",
            expected=f"'{files.given}', the type that was asked for",
        )


def _check_steps(folder: Path, name: str) -> None:
    steps = read_json(folder / name).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"steps in {folder / name}",
            found=steps,
            expected="a list",
        )
    for index, step in enumerate(steps):
        cls = step.get("class")
        if cls is not None and not str(cls).startswith(_TRUSTED_MODULES):
            raise mismatch(
                ErrorCode.CHECKPOINT_UNTRUSTED,
                f"class of step {index} in {folder / name}",
                found=f"'{cls}'",
                expected="a registered step, or a class of lerobot or worldforge_ros",
            )
        if "trust_remote_code" in (step.get("config") or {}):
            raise mismatch(
                ErrorCode.CHECKPOINT_UNTRUSTED,
                f"step {index} in {folder / name}",
                found="asking for trust_remote_code",
                expected="a step that runs no code of a checkpoint",
            )
        state = step.get("state_file")
        if state is not None and not (folder / str(state)).is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"state of step {index} in {folder / name}",
                found=f"no file {state}",
                expected="the file beside it",
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    :raises WorldForgeError: ``CHECKPOINT_INVALID``.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(path),
            found=f"not readable as JSON ({error})",
            expected="a JSON object",
        ) from error
    if not isinstance(data, dict):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(path),
            found=type(data).__name__,
            expected="a JSON object",
        )
    return data


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """While a checkpoint is loaded: no network, and no code that a checkpoint brings along.

    Configurations and processor steps can name further models, which LeRobot would fetch from a
    branch that may change, or whose own Python files it would run (``trust_remote_code``). What
    they name has to be in the hub client's cache.
    """
    from huggingface_hub import constants
    from transformers import dynamic_module_utils
    from transformers.utils import hub

    def refuse(name: object, *arguments: object, **named: object) -> NoReturn:
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            f"model {name}",
            found="bringing Python code of its own",
            expected="a model whose code is in an installed package",
        )

    switches: list[tuple[Any, str, object]] = [
        (constants, "HF_HUB_OFFLINE", True),
        (hub, "_is_offline_mode", True),
        (dynamic_module_utils, "get_cached_module_file", refuse),
    ]
    before = [
        (place, name, getattr(place, name)) for place, name, _ in switches if hasattr(place, name)
    ]
    variable = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        for place, name, value in switches:
            if hasattr(place, name):
                setattr(place, name, value)
        yield
    finally:
        for place, name, old in before:
            setattr(place, name, old)
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
