"""The table of measured faults in docs/safety.md, from the figures of the fault tests.

WORLDFORGE_FAULT_REPORT=faults.json python -m pytest test/test_gate_faults.py
python scripts/fault_table.py faults.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def row(case: dict[str, Any]) -> str:
    """One case as a row of Markdown."""
    if "periods_ms" in case:
        p50, p99, most = case["periods_ms"]
        figures = [f"period {p50} (p50)", f"{p99} (p99), {most} (max)", f"p99 {case['bound_ms']:g}"]
    elif "median_ms" in case:
        figures = [f"{case['median_ms']}", f"{case['worst_ms']}", f"{case['bound_ms']:g}"]
        case = case | {"event": f"{case['event']}; {case['trials']} of them"}
    else:
        figures = ["", "", ""]
    return "| " + " | ".join([case["case"], case["event"], *figures]) + " |"


def main() -> int:
    """Print the table."""
    if len(sys.argv) != 2:
        print("usage: fault_table.py FILE", file=sys.stderr)
        return 2
    report = json.loads(Path(sys.argv[1]).read_text())
    print(f"On {report['machine']}, in milliseconds:\n")
    print("| Fault | Counted from | Median | Worst | Bound of the median |")
    print("|---|---|---|---|---|")
    for case in report["cases"]:
        print(row(case))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
