"""What an evaluation found: figures, a table, JSON, Parquet and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldforge_ros.evaluation.lockstep import Compared, EpisodeResult
from worldforge_ros.evaluation.planners import PLANNERS
from worldforge_ros.evaluation.protocols import PROTOCOLS
from worldforge_ros.evaluation.runner import Finished, as_row
from worldforge_ros.evaluation.statistics import bootstrap_mean

BASELINES = ("first", "random")
FILES = ("results.json", "episodes.parquet", "planners.png", "cost_outcome.png")
SCATTER_POINTS = 4000


def summarise(
    finished: Iterable[Finished], settings: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """The figures of an evaluation over the episodes of ``seeds``.

    ``mean`` is that of the protocol's measure: maximum coverage, or success; intervals are 95 %
    bootstrap over episodes. ``paired`` differences are over the seeds that both planners ran.
    ``recovered`` is the share of ``oracle``'s gain over ``first`` that ``scored`` has, over seeds
    that all three ran.
    """
    wanted = set(seeds)
    table: dict[str, dict[int, EpisodeResult]] = {}
    for name in PLANNERS:
        episodes = {f.result.seed: f.result for f in finished if f.result.planner == name}
        episodes = {seed: episodes[seed] for seed in sorted(wanted & episodes.keys())}
        if episodes:
            table[name] = episodes
    planners = {name: _row(list(episodes.values())) for name, episodes in table.items()}
    paired = {}
    for name in table:
        for baseline in BASELINES:
            if baseline in table and name != baseline and name != "still":
                shared = sorted(table[name].keys() & table[baseline].keys())
                if not shared:
                    continue
                gains = [table[name][s].measure - table[baseline][s].measure for s in shared]
                interval = bootstrap_mean(gains)
                paired[f"{name}-{baseline}"] = {
                    "mean": interval.mean,
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                }
    recovered = _recovered(table)
    scored = table.get("scored", {}).values()
    agreement = [e.spearman for e in scored if not math.isnan(e.spearman)]
    correlation = bootstrap_mean(agreement) if agreement else None
    rows = [as_row(e) for episodes in table.values() for e in episodes.values()]
    return {
        "measure": PROTOCOLS[settings.get("protocol", "task")].measure,
        "planners": planners,
        "paired": paired,
        "recovered": recovered,
        "spearman": correlation.mean if correlation else None,
        "spearman_ci": [correlation.low, correlation.high] if correlation else None,
        "episodes": len(seeds),
        "seeds": list(seeds),
        "settings": dict(settings),
        "results": rows,
    }


def _recovered(table: Mapping[str, Mapping[int, EpisodeResult]]) -> float | None:
    three = [table.get(name, {}) for name in ("first", "scored", "oracle")]
    shared = sorted(three[0].keys() & three[1].keys() & three[2].keys())
    if not shared:
        return None
    first, scored, oracle = (float(np.mean([e[s].measure for s in shared])) for e in three)
    return (scored - first) / (oracle - first) if oracle > first else None


def _row(episodes: Sequence[EpisodeResult]) -> dict[str, float]:
    interval = bootstrap_mean([e.measure for e in episodes])
    timed = [e.ms_per_decision for e in episodes if e.decisions]
    return {
        "mean": interval.mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "success": float(np.mean([e.success for e in episodes])),
        "ms_per_decision": float(np.mean(timed)) if timed else 0.0,
        "episodes": len(episodes),
        "stopped": sum(bool(e.stopped) for e in episodes),
        "rejected_chunks": sum(e.rejected_chunks for e in episodes),
    }


def _robot(figures: Mapping[str, Any]) -> str:
    return "ALOHA" if figures["settings"].get("protocol") == "transfer" else "PushT"


def print_table(figures: Mapping[str, Any]) -> None:
    """Print the figures for a person."""
    from rich.console import Console
    from rich.table import Table

    measure = figures["measure"].replace("_", " ")
    where = "Gazebo" if figures["settings"].get("backend") == "gazebo" else "lockstep"
    table = Table(title=f"{_robot(figures)} in {where}, {figures['episodes']} seeds a planner")
    headings = ("planner", "n", measure, "95 % interval", "success", "ms/decision")
    for heading in headings:
        side: Literal["left", "right"] = "left" if heading == "planner" else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for name, row in figures["planners"].items():
        table.add_row(
            name,
            str(row["episodes"]),
            f"{row['mean']:.3f}",
            f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
            f"{100 * row['success']:.0f} %",
            f"{row['ms_per_decision']:.0f}",
        )
    console = Console()
    console.print(table)
    for name, row in figures["planners"].items():
        if row["stopped"]:
            console.print(f"the gate stopped {row['stopped']} episodes of {name}")
    for name, row in figures["paired"].items():
        console.print(
            f"{name}: {row['mean']:+.3f}, 95 % interval "
            f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
        )
    if figures["recovered"] is not None:
        console.print(f"scored has {figures['recovered']:.2f} of oracle's gain over first")
    if figures["spearman"] is not None:
        low, high = figures["spearman_ci"]
        console.print(
            "rank correlation of cost and true outcome: "
            f"{figures['spearman']:.2f}, 95 % interval {low:.2f} to {high:.2f}"
        )


def write(folder: Path, figures: Mapping[str, Any], finished: Sequence[Finished]) -> list[Path]:
    """Write ``results.json``, ``episodes.parquet`` and the plots; returns their paths."""
    import pyarrow
    import pyarrow.parquet

    json_file = folder / FILES[0]
    json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    parquet = folder / FILES[1]
    rows = [{**row, "rejected": json.dumps(row["rejected"])} for row in figures["results"]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    paths = [json_file, parquet, plot_planners(folder / FILES[2], figures)]
    wanted = set(figures["seeds"])
    compared = [c for f in finished if f.result.seed in wanted for c in f.compared]
    if compared:
        paths.append(plot_outcomes(folder / FILES[3], compared, figures))
    return paths


def plot_planners(path: Path, figures: Mapping[str, Any]) -> Path:
    """Mean of the measure by planner with its interval, and the share of successes."""
    from matplotlib.figure import Figure

    names = list(figures["planners"])
    rows = [figures["planners"][name] for name in names]
    figure = Figure(figsize=(7.5, 0.8 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))[::-1]
    means = [row["mean"] for row in rows]
    below = [mean - row["ci_low"] for mean, row in zip(means, rows, strict=True)]
    above = [row["ci_high"] - mean for mean, row in zip(means, rows, strict=True)]
    axes[0].barh(places, means, xerr=[below, above], capsize=3, color="#4878a8")
    axes[0].set_yticks(places, names)
    axes[0].set_xlabel(f"mean {figures['measure'].replace('_', ' ')}, 95 % interval")
    axes[1].barh(places, [100 * row["success"] for row in rows], color="#6aa84f")
    axes[1].set_xlabel("success, %")
    for axis, limit in zip(axes, (1.0, 100.0), strict=True):
        axis.set_xlim(0, limit)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"PushT, {figures['episodes']} seeds")
    figure.savefig(path, dpi=110)
    return path


def plot_outcomes(path: Path, compared: Sequence[Compared], figures: Mapping[str, Any]) -> Path:
    """Cost against true outcome, all decisions together and as ranks within each decision."""
    from matplotlib.figure import Figure

    costs = np.concatenate([c.costs for c in compared]).astype(np.float64)
    outcomes = np.concatenate([c.outcomes for c in compared]) * 1000.0
    known = np.isfinite(costs)
    costs, outcomes = costs[known], outcomes[known]
    rng = np.random.default_rng(0)
    some = rng.permutation(len(costs))[:SCATTER_POINTS]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(costs[some], outcomes[some], s=4, alpha=0.3, color="#4878a8", linewidths=0)
    left.set_xlabel("cost of a candidate")
    left.set_ylabel("block's corners from the goal after it, mm")
    agreement = [d for d in (_ranked(c) for c in compared) if d is not None]
    right.hist(agreement, bins=np.linspace(-1, 1, 41), color="#4878a8")
    right.set_xticks(np.linspace(-1, 1, 5))
    right.axvline(float(np.mean(agreement)) if agreement else 0.0, color="#c0504d")
    right.set_xlabel("rank correlation within a decision")
    right.set_ylabel("decisions")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(f"What the world model says and what happened, {len(compared)} decisions")
    figure.savefig(path, dpi=110)
    return path


def _ranked(compared: Compared) -> float | None:
    from worldforge_ros.evaluation.statistics import spearman

    value = spearman(compared.costs, compared.outcomes)
    return None if math.isnan(value) else value
