"""Two replays side by side: what differs, and by how much for certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.statistics import bootstrap_mean
from worldforge_ros.recording.page import page
from worldforge_ros.replay import html
from worldforge_ros.replay.figures import between, headline
from worldforge_ros.replay.markdown import table
from worldforge_ros.replay.summary import HEADLINES, SCHEMA, Headline, lookup

COMPARED: Final = "worldforge_ros/replay_comparison/1"
RESAMPLES = 10_000
_READ = (
    "Figures are over all cycles; differences are means over bags with 95 % bootstrap intervals."
)


def compare(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Every headline figure of two named reports, and the second less the first.

    Where both replayed the same bags (by hash) the difference is paired over them, else it is that
    of the two means; either way with a 95 % bootstrap interval over bags.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a report of another schema.
    """
    for name, report in reports:
        if report.get("schema") != SCHEMA:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"schema of report {name}",
                found=report.get("schema"),
                expected=SCHEMA,
            )
    (_, first), (_, second) = reports
    return {
        "schema": COMPARED,
        "names": [name for name, _ in reports],
        "warnings": _warnings(first, second),
        "figures": [_row(item, first, second) for item in HEADLINES],
        "provenance": [dict(report["provenance"]) for _, report in reports],
    }


def _warnings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    found = []
    bags = [
        {row["bag_sha256"] for row in report["episodes"] if row["bag_sha256"]}
        for report in (first, second)
    ]
    if bags[0] != bags[1]:
        found.append(
            f"The runs have {len(bags[0] & bags[1])} bags in common, of {len(bags[0])} and "
            f"{len(bags[1])}."
        )
    for path, name in (
        ("provenance.embodiment.sha256", "embodiment files"),
        ("scores.objective", "objectives, so costs do not compare"),
        (
            "provenance.checkpoints.world_model",
            "world models: costs and margins cannot be compared",
        ),
        ("policy.actions_source", "sources of the recorded actions"),
        ("policy.horizon", "horizons"),
    ):
        try:
            values = [lookup(report, path) for report in (first, second)]
        except KeyError:
            continue
        if values[0] != values[1]:
            found.append(f"The runs have different {name}.")
    return found


def _row(item: Headline, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    values = [_by_bag(report, item.path) for report in (first, second)]
    shared = sorted(values[0].keys() & values[1].keys())
    row: dict[str, Any] = {
        "path": item.path,
        "label": item.label,
        "unit": item.unit,
        "better": item.better,
        "values": [lookup(report, item.path) for report in (first, second)],
        "paired": None,
        "bags": 0,
        "difference": None,
        "ci_low": None,
        "ci_high": None,
    }
    if len(shared) >= 2:
        gains = [values[1][bag] - values[0][bag] for bag in shared]
        interval = bootstrap_mean(gains)
        found = (interval.mean, interval.low, interval.high)
        row |= {"paired": True, "bags": len(shared)}
    elif min(len(values[0]), len(values[1])) >= 2:
        found = _unpaired(*(list(part.values()) for part in values))
        row |= {"paired": False, "bags": len(values[0]) + len(values[1])}
    else:
        return row
    return {**row, "difference": found[0], "ci_low": found[1], "ci_high": found[2]}


def _by_bag(report: Mapping[str, Any], path: str) -> dict[str, float]:
    return {
        row["bag_sha256"]: float(row["figures"][path])
        for row in report["episodes"]
        if row["bag_sha256"] and not row["failed"] and row["figures"][path] is not None
    }


def _unpaired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    means = [
        np.asarray(values)[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
        for values in (first, second)
    ]
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5])
    return float(np.mean(second) - np.mean(first)), float(low), float(high)


def _cells(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("figure", *document["names"], "second less first, 95 %", "over")
    rows = []
    for row in document["figures"]:
        if all(value is None for value in row["values"]):
            continue
        item = Headline(row["path"], row["label"], row["unit"], row["better"])
        gap, over = "", ""
        if row["difference"] is not None:
            ends = (row["difference"], row["ci_low"], row["ci_high"])
            gap = between(*ends, row["unit"]) + _verdict(row)
            over = f"{row['bags']} bags, {'paired' if row['paired'] else 'not paired'}"
        rows.append((row["label"], *(headline(item, v) for v in row["values"]), gap, over))
    return head, rows


def _verdict(row: Mapping[str, Any]) -> str:
    """Which run is better, where the interval leaves no doubt."""
    if not row["better"] or row["ci_low"] <= 0.0 <= row["ci_high"]:
        return ""
    rises = row["difference"] > 0.0
    return " better" if rises == (row["better"] == "more") else " worse"


def compare_markdown(document: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    head, rows = _cells(document)
    lines = [f"# {document['names'][0]} and {document['names'][1]}", "", _READ, ""]
    lines += [f"- {warning}" for warning in document["warnings"]]
    return "\n".join([*lines, *([""] if document["warnings"] else []), *table(head, rows)])


def write_compare_html(path: Path, document: Mapping[str, Any]) -> Path:
    """Write the comparison as one page."""
    head, rows = _cells(document)
    names = " and ".join(document["names"])
    warnings = "".join(f"<p class='warning'>{escape(item)}</p>" for item in document["warnings"])
    parts = [
        f"<h1>{escape(names)}</h1>",
        f"<p>{_READ}</p>",
        warnings,
        html.table(head, rows, (4,)),
    ]
    path.write_text(page(f"Replays {names}", parts, html.STYLE), encoding="utf-8")
    return path
