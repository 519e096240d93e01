"""One self-contained HTML page about an episode: no script, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.recording.figure import figure_of
from worldforge_ros.recording.log import EpisodeLog, GateSample
from worldforge_ros.recording.page import Axes, cards, number, page, svg, ticks
from worldforge_ros.recording.summary import clock_note, latency_rows

_STAGES = {
    "image_to_observation": "image to observation",
    "propose": "propose",
    "score": "score",
    "plan": "whole plan",
    "gate": "gate verdict",
    "capture_to_command": "capture to command",
}
_STYLE = """
:root { --armed: #40b070; --holding: #e0a030; --disarmed: #9aa3af; --stopped: #e04848; }
img { display: block; width: 100%; max-width: 730px; border-radius: 8px; margin: 24px 0;
  border: 1px solid var(--rule); }
.goal { stroke: var(--good); stroke-dasharray: 4 4; }
.range { stroke: var(--candidate); stroke-width: 3; opacity: 0.4; stroke-linecap: round; }
.median { stroke: var(--candidate); stroke-width: 2; }
.ARMED { fill: var(--armed); background: var(--armed); }
.HOLDING { fill: var(--holding); background: var(--holding); }
.DISARMED { fill: var(--disarmed); background: var(--disarmed); }
.STOPPED { fill: var(--stopped); background: var(--stopped); }
"""


def write_report(
    log: EpisodeLog, summary: Mapping[str, Any], picture: Path | None, path: Path
) -> None:
    """Write the page to ``path``, with the file ``picture`` embedded."""
    parts = [
        _headline(log, summary),
        _embedded(log, picture),
        _progress(log),
        _costs(log),
        _latency(summary),
        _gate(summary),
        _provenance(summary),
    ]
    path.write_text(page(f"Episode, seed {log.seed}", parts, _STYLE), encoding="utf-8")


def _headline(log: EpisodeLog, summary: Mapping[str, Any]) -> str:
    counts, figure = summary["counts"], figure_of(summary)
    progress = summary[figure.name]
    reaction = summary["latency_ms"]["capture_to_command"]
    items = [
        (figure.text(progress["max"]), f"highest {figure.name}"),
        (figure.text(progress["final"]), f"final {figure.name}"),
        (str(counts["plans"]), "plans"),
        (f"{counts['chunks_scored']:,}", "candidates scored"),
        (f"{counts['chunks_approved']} / {counts['chunks_rejected']}", "approved / rejected"),
        (str(counts["executed_steps"]), "steps executed"),
        (f"{number(reaction and reaction['p50'], 0)} ms", "capture to command, median"),
        (str(summary["deadline_misses"]), "deadline misses"),
    ]
    ended = f" · {escape(str(summary['ended']))}" if "ended" in summary else ""
    return (
        f"<h1>{escape(log.task[:1].upper() + log.task[1:]) or 'Episode'}</h1>"
        f"<p>Seed {summary['seed']} · {summary['duration']:.1f} s at "
        f"{number(summary['realtime_factor'], 2)} x real time{ended}</p>"
        f"{cards(items)}"
    )


def _embedded(log: EpisodeLog, picture: Path | None) -> str:
    if picture is None or not picture.is_file():
        return ""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    if log.extent is None:
        return f"<img alt='The episode' src='data:image/gif;base64,{data}'>"
    return (
        f"<img alt='The episode: candidates coloured by cost, the chosen one in red' "
        f"src='data:image/gif;base64,{data}'>"
        "<p>Orange: proposed chunks, stronger is cheaper. Red: the chosen one. "
        "Cross: the set-point that the gate let through.</p>"
    )


def _progress(log: EpisodeLog) -> str:
    if not log.progress:
        return ""
    figure = log.figure
    axes = Axes(log.duration, 0.0, figure.full)
    points = " ".join(f"{axes.x(t)},{axes.y(v)}" for t, v in log.progress)
    goal = axes.y(figure.above)
    body = axes.frame([share * figure.full for share in (0.0, 0.25, 0.5, 0.75, 1.0)], figure.text)
    body += f"<line class='goal' x1='{axes.left}' x2='{axes.right}' y1='{goal}' y2='{goal}'/>"
    body += f"<polyline class='line' points='{points}'/>"
    legend = "".join(f"<i class='{m}'></i>{m.lower()}" for m in _modes_seen(log.gate))
    return (
        f"<h2>{figure.name.capitalize()}</h2><p>Solved above {figure.text(figure.above)} (dashed). "
        "The strip is the mode of the safety gate.</p>"
        f"{svg(body, f'{figure.name} over time')}"
        f"{svg(_mode_strip(log, axes), 'gate mode over time', 14)}"
        f"<p class='legend'>{legend}</p>"
    )


def _modes_seen(gate: Sequence[GateSample]) -> list[str]:
    return sorted({escape(sample.mode) for sample in gate})


def _mode_strip(log: EpisodeLog, axes: Axes) -> str:
    changes: list[GateSample] = []
    for sample in log.gate:
        if not changes or changes[-1].mode != sample.mode:
            changes.append(sample)
    ends = [later.time for _, later in pairwise(changes)] + [log.duration]
    rectangles = []
    for sample, end in zip(changes, ends, strict=True):
        x, width = axes.x(sample.time), axes.x(end) - axes.x(sample.time)
        rectangles.append(
            f"<rect class='{escape(sample.mode)}' x='{x}' y='2' width='{max(width, 0):.1f}' "
            "height='10'/>"
        )
    return "".join(rectangles)


def _costs(log: EpisodeLog) -> str:
    cycles = []
    for plan in log.plans:
        costs = plan.costs[np.isfinite(plan.costs)]
        if plan.outcome == "OK" and len(costs) and 0 <= plan.chosen < len(plan.costs):
            cycles.append((plan.time, costs, float(plan.costs[plan.chosen])))
    if not cycles:
        return ""
    low = min(float(costs.min()) for _, costs, _ in cycles)
    # A few absurd candidates must not flatten the rest of the plot.
    high = float(np.percentile(np.concatenate([costs for _, costs, _ in cycles]), 99))
    axes = Axes(log.duration, min(low, 0.0) if low < 0 else low * 0.9, high)
    body = axes.frame(ticks(axes.low, axes.high, 4), "{:.3g}".format)
    for time, costs, chosen in cycles:
        x, median = axes.x(time), axes.y(min(float(np.median(costs)), high))
        top, bottom = axes.y(min(float(costs.max()), high)), axes.y(float(costs.min()))
        body += f"<line class='range' x1='{x}' x2='{x}' y1='{top}' y2='{bottom}'/>"
        body += f"<line class='median' x1='{x - 3}' x2='{x + 3}' y1='{median}' y2='{median}'/>"
        body += f"<circle class='dot' cx='{x}' cy='{axes.y(min(chosen, high))}' r='3'/>"
    return (
        "<h2>World-model cost of every plan</h2><p>Bar: from the lowest to the highest cost "
        "(cut at the 99th percentile). Tick: median. Dot: the chosen one.</p>"
        f"{svg(body, 'costs over time')}"
    )


def _latency(summary: Mapping[str, Any]) -> str:
    rows = latency_rows(summary)
    longest = max((row["p50"] for row in rows if row["p50"] is not None), default=0.0)
    body = []
    for row in rows:
        cells = "".join(f"<td>{number(row[key])}</td>" for key in ("p50", "p95", "max"))
        body.append(
            f"<tr><td>{_STAGES[row['stage']]}</td>{cells}<td class='bar'>{_bar(row, longest)}</td>"
            "</tr>"
        )
    note = clock_note(summary)
    return (
        "<h2>Latency</h2><p>Milliseconds. The bar splits the median into the time inside a model "
        "and the rest: transport, conversion, waiting. The last row spans all stages.</p>"
        f"{f'<p>{note[:1].upper()}{note[1:]}.</p>' if note else ''}"
        "<table><tr><th>stage</th><th>p50</th><th>p95</th><th>max</th><th></th></tr>"
        f"{''.join(body)}</table>"
        "<p class='legend'><i style='background: var(--model)'></i>model"
        "<i style='background: var(--ros)'></i>ROS and everything else</p>"
    )


def _bar(row: Mapping[str, Any], longest: float) -> str:
    if row["p50"] is None or longest <= 0:
        return ""
    width = 100.0 * row["p50"] / longest
    model = 100.0 * row.get("model_share", 0.0)
    rest = "faint" if row["stage"] == "capture_to_command" else "ros"
    return (
        f"<div class='track' style='width: {max(width, 0.5):.1f}%'>"
        f"<div style='width: {model:.1f}%; background: var(--model)'></div>"
        f"<div style='width: {100 - model:.1f}%; background: var(--{rest})'></div></div>"
    )


def _gate(summary: Mapping[str, Any]) -> str:
    counts = summary["counts"]
    rows = [("approved", counts["chunks_approved"])]
    rows += list(counts["rejected_by_code"].items())
    body = "".join(f"<tr><td>{escape(str(name))}</td><td>{n}</td></tr>" for name, n in rows)
    outcomes = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{n}</td></tr>"
        for name, n in counts["plans_by_outcome"].items()
    )
    return (
        "<h2>Verdicts of the safety gate</h2>"
        "<p>A rejected chunk may carry several codes.</p>"
        f"<table><tr><th>verdict</th><th>chunks</th></tr>{body}</table>"
        "<h2>Outcomes of planning cycles</h2>"
        f"<table><tr><th>outcome</th><th>cycles</th></tr>{outcomes}</table>"
    )


def _provenance(summary: Mapping[str, Any]) -> str:
    rows = [("ROS distribution", summary["distro"]), *summary["versions"].items()]
    rows += [(f"{name}, SHA-256", value) for name, value in summary["checkpoints"].items()]
    body = "".join(
        f"<tr><td>{escape(str(name))}</td><td class='hash'>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<h2>Provenance</h2><table>{body}</table>"
