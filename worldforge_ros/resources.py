"""Where the shipped data files are: beside the sources, or in the installed share folder."""

from __future__ import annotations

import os
from pathlib import Path

from worldforge_ros.errors import ErrorCode, mismatch

PACKAGE = "worldforge_ros"


def share_dir() -> Path:
    """Folder that holds ``config/``, ``models/`` and ``launch/``.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` when neither a source tree nor an installed
        package is found.
    """
    source = Path(__file__).resolve().parent.parent
    if (source / "package.xml").is_file():
        return source
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in prefixes:
        share = Path(prefix) / "share" / PACKAGE
        if (share / "package.xml").is_file():
            return share
    raise mismatch(
        ErrorCode.CHECKPOINT_MISSING,
        f"share folder of {PACKAGE}",
        found=f"in none of {prefixes or 'an empty AMENT_PREFIX_PATH'}",
        expected="a source tree or a sourced workspace that holds the package",
    )


def resolve_path(text: str) -> Path:
    """A path as a parameter gives it: ``package://worldforge_ros/...``, ``~`` or plain."""
    prefix = f"package://{PACKAGE}/"
    if text.startswith(prefix):
        return share_dir() / text.removeprefix(prefix)
    return Path(text).expanduser()
