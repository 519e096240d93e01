"""What was run, on what, with what: a record beside every result, and the part of it that goes into
the result itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Final

from worldforge_ros.checkpoints import file_sha256, tree_sha256
from worldforge_ros.recording.summary import distro, installed_versions

SCHEMA: Final = "worldforge_ros/run_manifest/1"

PREFIXES: Final = (
    "WORLDFORGE_",
    "LEROBOT_",
    "LEWORLDMODEL_",
    "LEWM_",
    "STABLEWM_",
    "JEPA_WMS_",
    "HF_",
    "ROS_",
    "RAY_",
    "OMP_",
    "CUDA_",
)
"""Environment variables that can change a result: which of them were set is recorded, never what
they said.
"""
_SECRET: Final = re.compile(r"(secret|token|password|passwd|api[_-]?key|credential)", re.IGNORECASE)
_HIDDEN: Final = "(left out)"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says about itself; the same for the same settings and installed versions, on
    every machine and at every time.

    :param settings: with the hashes of what they name; a path with a hash ``NAME_sha256`` beside it
        is cut to its last part, so that it does not matter where it lies.
    """
    settings = {
        name: PurePath(value).name if value and settings.get(f"{name}_sha256") else value
        for name, value in _without_secrets(settings).items()
    }
    return {
        "planner": settings.get("planner"),
        "seed": settings.get("seed"),
        "embodiment": {
            "name": settings.get("embodiment"),
            "sha256": settings.get("embodiment_sha256"),
        },
        "checkpoints": {
            name.removesuffix("_sha256"): settings[name]
            for name in ("policy_sha256", "world_model_sha256")
            if settings.get(name)
        },
        "settings": settings,
        "versions": installed_versions(),
    }


def write_manifest(
    path: Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    inputs: Iterable[Path],
    outputs: Sequence[Path],
    started: str,
    argv: Sequence[str] | None = None,
) -> Path:
    """Write ``path`` as JSON of :data:`SCHEMA`.

    :param inputs: files or folders, hashed as they are now; what is missing is listed as such.
    :param outputs: files that were written.
    :param argv: the command line, this process's when left out. Here and in ``settings`` the values
        of what is named like a secret are left out.
    """
    document = {
        "schema": SCHEMA,
        "command": command,
        "argv": scrubbed(list(sys.argv[1:] if argv is None else argv)),
        "settings": _without_secrets(settings),
        "inputs": [_described(item) for item in inputs],
        "outputs": [_described(item) for item in outputs],
        "started": started,
        "ended": now(),
        "versions": installed_versions(),
        "distro": distro(),
        "platform": platform.platform(),
        "environment": sorted(name for name in os.environ if name.startswith(PREFIXES)),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def scrubbed(argv: Sequence[str]) -> list[str]:
    """``argv`` without the values of what is named like a secret, after ``=`` or a blank."""
    found: list[str] = []
    hide = False
    for item in argv:
        name, equals, _ = item.partition("=")
        if hide and not item.startswith("-"):
            found.append(_HIDDEN)
            hide = False
        elif _SECRET.search(name) and equals:
            found.append(f"{name}={_HIDDEN}")
        else:
            found.append(item)
            hide = item.startswith("-") and bool(_SECRET.search(item))
    return found


def _without_secrets(value: Any) -> Any:
    """``value`` (JSON) without what stands under, after or paired with a secret's name."""
    if isinstance(value, Mapping):
        return {
            name: _HIDDEN if _SECRET.search(str(name)) and item else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(item, str) for item in value):
            name = value[0]
            if _SECRET.search(name) and "=" not in name:
                return [name, _HIDDEN]
        return [_without_secrets(item) for item in value]
    return scrubbed([value])[0] if isinstance(value, str) else value


def _described(path: Path) -> dict[str, Any]:
    if path.is_file():
        return {"path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}
    if not path.is_dir():
        return {"path": str(path), "missing": True}
    size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return {"path": str(path), "sha256": tree_sha256(path), "bytes": size}
