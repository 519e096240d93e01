"""The short report for a terminal: GitHub's tables, which read as plain text too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldforge_ros.replay.figures import between, counted, headline, text
from worldforge_ros.replay.summary import HEADLINES, PREDICTORS, STAGES, lookup


def markdown(report: Mapping[str, Any]) -> str:
    """What a person reads first, and what the figures do not say."""
    health, gate, cycles = report["bag_health"], report["gate"], report["cycles"]
    about = report["provenance"]
    lines = [
        f"# Replay of {health['bags']} bag{'' if health['bags'] == 1 else 's'}: planner "
        f"{about.get('planner')}",
        "",
        f"{text(health['duration_s'], 's')} of recording, {cycles['started']} cycles "
        f"({counted(cycles['outcomes'])}), problems of bags: {counted(health['problems_by_code'])}",
        "",
    ]
    rows: list[tuple[str, ...]] = [
        (item.label, headline(item, value), _interval(report, item.path, item.unit))
        for item in HEADLINES
        if (value := lookup(report, item.path)) is not None
    ]
    lines += table(("figure", "all cycles", "mean over bags, 95 %"), rows)
    errors = report["policy"]["errors"]
    rows = [
        (
            label,
            text(errors[name]["first_action_normalised"]),
            text(errors[name]["normalised"]),
            str(errors[name]["count"]),
        )
        for name, label in PREDICTORS.items()
        if errors[name]["count"]
    ]
    if rows:
        lines += ["", *table(("against what was recorded, x spread", "first", "all", "n"), rows)]
    latency = report["latency"]
    rows = [
        (label, *(text(latency[stage][key], "ms") for key in ("p50_ms", "p95_ms", "p99_ms")))
        for stage, label in STAGES.items()
        if latency[stage]["count"]
    ]
    if rows:
        lines += ["", *table(("latency of the live run", "p50", "p95", "p99"), rows)]
    lines += [
        "",
        f"Gate: rejected {counted(gate['codes'])}; of recorded actions "
        f"{counted(gate['expert']['codes'])}",
    ]
    causes = report["reproduction"]["causes"]
    if causes:
        lines.append(f"Other choices than live: {counted(causes)}")
    lines += ["", *(f"- {note}" for note in report["notes"])]
    failed = [row for row in report["episodes"] if row["failed"]]
    lines += [
        f"- {row['episode']}: {row['failed']['code']}: {row['failed']['message']}" for row in failed
    ]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with columns as wide as they have to be; all but the first aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        shown = [cells[0].ljust(widths[0])]
        shown += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(shown)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


def _interval(report: Mapping[str, Any], path: str, unit: str) -> str:
    found = report["intervals"].get(path)
    if found is None:
        return ""
    return between(found["value"], found["ci_low"], found["ci_high"], unit)
