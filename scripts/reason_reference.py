"""Write the table of reason codes in docs/safety.md from worldforge_ros/safety/advice.py.

Usage: python scripts/reason_reference.py [--check]
With --check nothing is written; the exit status is 1 where the page differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from worldforge_ros.safety.advice import with_table

PAGE = Path(__file__).resolve().parent.parent / "docs/safety.md"


def main(arguments: list[str]) -> int:
    """0 when the page is right, or was made right."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page)
    if page == wanted:
        return 0
    if "--check" in arguments:
        print(f"{PAGE}: the table of reason codes is old; run {Path(__file__).name}")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
