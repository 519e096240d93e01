"""Report."""

from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from worldforge_ros.recording.log import EpisodeLog


def write_report(log: EpisodeLog, summary: Mapping[str, Any], picture: Path, path: Path) -> None:
    path.write_text("")
