"""Point the CMake files that ROS wheels export at this interpreter, not at their builder's.

The wheels carry paths such as ``/opt/python/cp311-cp311/include/python3.11``; CMake stops with
"non-existent path" on any other machine. Usage: fix_wheel_paths.py VENV
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path


def main(venv: Path) -> int:
    """Rewrite every exported CMake file below ``venv/share``; returns how many changed."""
    include = sysconfig.get_path("include")
    site = sysconfig.get_path("purelib")
    rules = [
        (re.compile(r"/opt/python/cp3\d+-cp3\d+/include/python3\.\d+"), include),
        (re.compile(r"/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages"), site),
    ]
    changed = 0
    for path in (venv / "share").rglob("*.cmake"):
        old = path.read_text(encoding="utf-8")
        new = old
        for pattern, replacement in rules:
            new = pattern.sub(replacement, new)
        if new != old:
            # The installer may have linked the file from its cache: replace it, do not write into
            # it.
            path.unlink()
            path.write_text(new, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    print(f"setup: {main(Path(sys.argv[1]))} exported CMake files now name this interpreter")
