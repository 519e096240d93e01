"""Cost of a decision of every planner, on one thread and on all cores, as ratios to ``first``.

``. ./env.sh && python benchmarks/planners.py [--json FILE]``; everything is measured in one run,
on an otherwise idle machine, in lockstep episodes of 51 steps.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from worldforge_ros.evaluation.lockstep import Settings, load_models, run_episode
from worldforge_ros.evaluation.planners import PLANNERS
from worldforge_ros.recording.progress import track
from worldforge_ros.simulation.pusht import PushTSimulation


def measure(seeds: range, cores: int) -> list[dict[str, float | int | str]]:
    """Rows of planner, threads, decisions, ms a decision, and the ratio to ``first``."""
    names = [name for name in PLANNERS if name != "still"]
    settings = Settings(steps=51)
    models = load_models(settings, names)
    simulation = PushTSimulation()
    rows: list[dict[str, float | int | str]] = []
    counts = sorted({1, cores})
    with track("episodes", len(counts) * len(names) * len(seeds)) as advance:
        for threads in counts:
            torch.set_num_threads(threads)
            run_episode("scored", seeds[0], Settings(steps=12), models, simulation)
            for name in names:
                results = []
                for seed in seeds:
                    results.append(run_episode(name, seed, settings, models, simulation))
                    advance(f"{name}, {threads} threads")
                decisions = sum(result.decisions for result in results)
                total = sum(result.ms_per_decision * result.decisions for result in results)
                ms = total / decisions
                first = (
                    ms if name == "first" else float(rows[len(names) * counts.index(threads)]["ms"])
                )
                rows.append(
                    {
                        "planner": name,
                        "threads": threads,
                        "decisions": decisions,
                        "ms": round(ms, 2),
                        "ratio_to_first": round(ms / first, 2),
                    }
                )
    return rows


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=9000, help="seeds are consecutive from here")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="what 'all' means")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = measure(range(args.seeds, args.seeds + args.episodes), args.cores)
    table = Table(title="ms a decision")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "planner" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
