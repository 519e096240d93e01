"""The report as one page: no script, nothing fetched, and the same for the same figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from worldforge_ros.recording.page import Axes, cards, page, svg, ticks
from worldforge_ros.replay.figures import counted, headline, text
from worldforge_ros.replay.summary import (
    HEADLINES,
    OPEN_LOOP,
    PREDICTORS,
    STAGES,
    Headline,
    lookup,
    tallied,
)

STYLE = """
.warning { border-left: 4px solid var(--candidate); padding: 8px 14px; background: var(--card);
  color: var(--text); border-radius: 0 6px 6px 0; }
ul { color: var(--faint); padding-left: 20px; }
h3 { font-size: 15px; font-weight: 500; margin: 20px 0 0; }
.card b small { font-size: 15px; font-weight: 500; }
.wide { overflow-x: auto; margin-bottom: 12px; }
.wide th, .wide td { padding: 6px 7px; }
.wide th { line-height: 1.3; }
.wide th:first-child, .wide td:first-child { padding-left: 0; }
.wide td { font-size: 14px; white-space: nowrap; }
.wide td.text, .wide td:first-child { white-space: normal; }
svg { margin-bottom: 12px; }
.legend { margin-bottom: 12px; }
.legend span { display: inline-block; margin-right: 14px; }
.legend span i { margin-left: 0; }
td.text, th.text { text-align: left; }
.p0 { stroke: var(--accent); background: var(--accent); }
.p1 { stroke: var(--model); background: var(--model); }
.p2 { stroke: var(--good); background: var(--good); }
.p3 { stroke: var(--faint); background: var(--faint); stroke-dasharray: 6 4; }
.p4 { stroke: var(--candidate); background: var(--candidate); stroke-dasharray: 2 4; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.point { fill: var(--model); opacity: 0.55; }
.bar { fill: var(--model); }
.stop { stroke: var(--accent); stroke-width: 2; }
.refused { stroke: var(--candidate); stroke-width: 2; }
.lane { fill: var(--card); }
@media (max-width: 600px) { svg text { font-size: 17px; }
  svg { overflow: visible; } }
"""
_CARDS = (
    "policy.error_normalised",
    "policy.skill_over_hold",
    "scores.recorded_rank",
    "scores.spearman",
    "gate.reject_rate",
    "gate.false_reject_rate",
    "latency.plan.p95_ms",
    "reproduction.same_rate",
)
_LANE, _NAME = 14, 20
"""Heights of a bag in the time line of stops and of its name above, pixels."""
_MOST_LANES = 40
_MOST_TABLES = 5
"""Bags whose topics stand open on the page."""
_MOST_STOPS = 5
"""Stops of a bag that are spelt out."""
_MOST_BARS = 50
_MOST_POINTS = 2000


def write_html(
    path: Path, report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the page of a report (:func:`~worldforge_ros.replay.summary.summarise`) and of the
    bags' documents behind it.
    """
    replayed = sorted(
        (item for item in episodes if not item.get("failed")), key=lambda item: item["episode"]
    )
    planner = report["provenance"].get("planner") or "unknown"
    title = f"Replay, planner {planner}"
    parts = [
        _head(title, report),
        _notes(report),
        _health(report, replayed),
        _synchronisation(report, replayed),
        _policy(report),
        _scores(report, replayed),
        _gate(report, replayed),
        _latency(report),
        _reproduction(report, replayed),
        _episodes(report),
        _provenance(report),
    ]
    path.write_text(page(title, parts, STYLE), encoding="utf-8")
    return path


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = ()) -> str:
    """A table of plain text; the columns ``texts`` are aligned to the left as the first one is."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if index in texts else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    if not body:
        return ""
    return f"<div class='wide'><table><tr>{cells('th', head)}</tr>{body}</table></div>"


def _head(title: str, report: Mapping[str, Any]) -> str:
    health, cycles = report["bag_health"], report["cycles"]
    by_path = {item.path: item for item in HEADLINES}
    items = [
        (_card(by_path[path], lookup(report, path)), escape(by_path[path].label))
        for path in _CARDS
        if lookup(report, path) is not None
    ]
    bags = f"{health['bags']} bag{'' if health['bags'] == 1 else 's'}"
    return (
        f"<h1>{escape(title)}</h1><p>{bags}, {text(health['duration_s'], 's')} of recording, "
        f"{cycles['started']} planning cycles: {escape(counted(cycles['outcomes']))}.</p>"
        f"{cards(items)}"
    )


def _card(item: Headline, value: float) -> str:
    if item.unit == "%":
        return escape(headline(item, value))
    return f"{escape(text(value))} <small>{escape(item.unit)}</small>"


def _absent(title: str) -> str:
    return f"<h2>{title}</h2><p>Not measured: see the notes above.</p>"


def _prose(said: str) -> str:
    """Plain text with commands between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(said))


def _notes(report: Mapping[str, Any]) -> str:
    rest = "".join(f"<li>{_prose(note)}</li>" for note in report["notes"] if note != OPEN_LOOP)
    return f"<p class='warning'>{_prose(OPEN_LOOP)}</p><ul>{rest}</ul>"


def _health(report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "topic",
        "n",
        "rate, Hz",
        "gap p99, s",
        "longest gap, s",
        "late",
        "skew p50 / p95 / max, ms",
        "definition",
    )
    tables = []
    for episode in episodes:
        rows = [
            (
                topic["topic"],
                str(topic["count"]),
                text(topic["rate_hz"]),
                text(topic["gap_p99_s"]),
                _gap(topic),
                str(topic["out_of_order"]),
                _skew(topic["skew_ms"]),
                f"{topic['definition']} {(topic['definition_sha256'] or '')[:8]}",
            )
            for topic in (episode.get("health") or {}).get("topics", [])
        ]
        name = f"<h3>{escape(episode['episode'])}</h3>" if len(episodes) > 1 else ""
        tables.append(name + table(head, rows, (7,)))
    problems = "".join(
        f"<li>{escape(row['episode'])}: {escape(item['code'])}: {escape(item['message'])}</li>"
        for row in report["episodes"]
        for item in row["problems"]
    )
    said = f"<ul>{problems}</ul>" if problems else "<p>No problems.</p>"
    shown, folded = tables[:_MOST_TABLES], tables[_MOST_TABLES:]
    if folded:
        shown.append(
            f"<details><summary>{len(folded)} more bags</summary>{''.join(folded)}</details>"
        )
    return (
        "<h2>Bag health</h2><p>Skew is receive time less stamp. Late messages lie in the bag "
        "behind one received after them. A definition is changed when the bag's message is not "
        "that of this release.</p>" + said + "".join(shown)
    )


def _gap(topic: Mapping[str, Any]) -> str:
    if topic["gap_max_s"] is None:
        return "-"
    return f"{text(topic['gap_max_s'])} at {text(topic['gap_max_at_s'])}"


def _skew(skew: Mapping[str, Any] | None) -> str:
    return "-" if skew is None else " / ".join(text(skew[key]) for key in ("p50", "p95", "max"))


def _synchronisation(report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    part = report["synchronisation"]
    if not part["source"]:
        return _absent("Synchronisation")
    rows = [
        (
            label,
            *(text(1e3 * part[name][key]) for key in ("p50", "p95", "p99", "max")),
            str(part[name]["count"]),
        )
        for name, label in (
            ("age_s", "age of an observation"),
            ("joint_offset_s", "joint state after its picture"),
        )
        if part[name]["count"]
    ]
    ages = tallied((item.get("synchronisation") or {}).get("age_s") for item in episodes).steps()
    bins = _binned([(1e3 * age, count) for age, count in ages])
    skipped = table(("skipped because of", "times"), _counts(part["skipped_by_code"]))
    return (
        f"<h2>Synchronisation</h2><p>Observations from {escape(' and '.join(part['source']))}: "
        f"{part['observations']} of {part['pictures']} messages, {part['skipped']} moments "
        f"skipped.</p>"
        + table(("ms", "p50", "p95", "p99", "max", "n"), rows)
        + _histogram(*bins, "age of an observation, ms", "observations")
        + skipped
    )


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(code, str(count)) for code, count in counts.items()]


def _binned(steps: Sequence[tuple[float, int]]) -> tuple[float, float, list[int]]:
    """Least and greatest value, and counts in twenty bins between them; no bins without a range."""
    if len(steps) < 2:
        return 0.0, 0.0, []
    low, high = steps[0][0], steps[-1][0]
    bins = [0] * 20
    for value, count in steps:
        bins[min(int(20 * (value - low) / (high - low)), 19)] += count
    return low, high, bins


def _histogram(low: float, high: float, bins: Sequence[int], x_title: str, y_title: str) -> str:
    """Counts in bins of one width from ``low`` to ``high``."""
    if not bins:
        return ""
    axes = Axes(high, 0.0, max(bins), start=low, x_title=x_title, y_title=y_title)
    width = (axes.right - axes.left) / len(bins)
    body = axes.frame(ticks(0.0, max(bins), 4), "{:g}".format, x_label="{:g}".format)
    for index, count in enumerate(bins):
        top = axes.y(count)
        body += (
            f"<rect class='bar' x='{axes.left + index * width + 0.5:.1f}' y='{top}' "
            f"width='{width - 1:.1f}' height='{axes.bottom - top:.1f}'/>"
        )
    return svg(body, x_title)


def _policy(report: Mapping[str, Any]) -> str:
    part = report["policy"]
    errors = part["errors"]
    if not errors["first"]["count"]:
        return _absent("Policy")
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
    smooth = part["smoothness"]
    joints = [
        (
            joint,
            text(part["spread"][i], unit),
            text(errors["first"]["mae"][0][i], unit),
            text(_mean([row[i] for row in errors["first"]["mae"]]), unit),
            _joint(part["overlap"]["rms"], i, unit),
            _joint(smooth["chosen"]["rms_acceleration"], i, f"{unit}/s2"),
            _joint(smooth["recorded"]["rms_acceleration"], i, f"{unit}/s2"),
        )
        for i, (joint, unit) in enumerate(zip(part["joints"], part["units"], strict=True))
    ]
    ratio, apart = part["jerk_ratio"], part["overlap"]["normalised"]
    jerk = (
        f"<p>Jerk of the chosen chunks over that of the recording: {text(ratio, 'x')}. "
        f"Disagreement of overlapping chunks: {text(apart, 'x spread')}.</p>"
    )
    head = ("joint", "spread", "first action", "all steps", "overlap", "acceleration", "recorded")
    return (
        "<h2>Policy</h2><p>Root mean squared error of proposed set-points against those recorded "
        f"({escape(', '.join(part['actions_source']))}), over the spread (standard deviation) of "
        "the recorded ones. 1 is as wrong as always answering their mean.</p>"
        + table(("", "first action", "all steps", "cycles"), rows)
        + _horizon_plot(part)
        + "<p>By joint: mean absolute error of the first candidate; disagreement of overlapping "
        "chunks and accelerations are root mean squares, of the chosen candidate and of what was "
        "recorded.</p>" + table(head, joints) + jerk
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that were measured."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _joint(values: Sequence[float] | None, index: int, unit: str) -> str:
    return "-" if values is None else text(values[index], unit)


def _horizon_plot(part: Mapping[str, Any]) -> str:
    curves = {
        name: part["errors"][name]["normalised_by_step"]
        for name in PREDICTORS
        if any(value is not None for value in part["errors"][name]["normalised_by_step"])
    }
    if not curves:
        return ""
    most = max(value for curve in curves.values() for value in curve if value is not None)
    axes = Axes(
        part["horizon"] * part["step_s"],
        0.0,
        most,
        height=280,
        x_title="seconds ahead",
        y_title="error, x spread",
    )
    body = axes.frame(ticks(0.0, most, 5), "{:g}".format, x_label="{:g}".format)
    legend = ""
    for index, name in enumerate(PREDICTORS):
        if name not in curves:
            continue
        points = " ".join(
            f"{axes.x((step + 1) * part['step_s'])},{axes.y(value)}"
            for step, value in enumerate(curves[name])
            if value is not None
        )
        body += f"<polyline class='curve p{index}' points='{points}'/>"
        legend += f"<span><i class='p{index}'></i>{escape(PREDICTORS[name])}</span>"
    return svg(body, "error by horizon", 280) + f"<p class='legend'>{legend}</p>"


def _scores(report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    part = report["scores"]
    if not part["cycles"]:
        return _absent("Scores")
    rank, margin = part["rank"], part["margin"]
    rows = [
        ("rank of the recorded actions, 1 cheapest", *_spread(rank)),
        ("margin of the choice", *_spread(margin)),
        ("dearest less cheapest candidate", *_spread(part["spread"])),
    ]
    pairs = [
        (predicted, seen)
        for episode in episodes
        if episode.get("scores")
        for predicted, seen in zip(
            episode["scores"]["pairs"]["recorded_cost"],
            episode["scores"]["pairs"]["realised"],
            strict=True,
        )
        if predicted is not None and seen is not None
    ]
    return (
        f"<h2>Scores</h2><p>{part['cycles']} cycles, {_numbers(part['candidates'])} candidates, "
        f"objective: {escape(', '.join(part['objective']))}.</p>"
        + table(("", "p50", "p95", "least", "most", "n"), rows)
        + _ranks(part, episodes)
        + f"<p>What the recorded actions were predicted to cost, and the cost of what was really "
        f"seen at their end. Spearman, mean over bags: {text(part['spearman'])}.</p>"
        + _scatter(pairs)
    )


def _ranks(part: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    """How often the recorded actions had each rank among the candidates and themselves."""
    most = max(part["candidates"], default=0) + 1
    # Bars thinner than a pixel have no width to draw.
    width = math.ceil(most / _MOST_BARS)
    bins = [0] * math.ceil(most / width)
    for episode in episodes:
        for rank in (episode.get("timeline") or {}).get("recorded_rank", []):
            if rank is not None:
                bins[(min(int(rank), most) - 1) // width] += 1
    if not any(bins):
        return ""
    return _histogram(
        0.5,
        width * len(bins) + 0.5,
        bins,
        "rank of the recorded actions, 1 cheapest",
        "cycles",
    )


def _spread(part: Mapping[str, Any]) -> tuple[str, ...]:
    return (*(text(part[key]) for key in ("p50", "p95", "min", "max")), str(part["count"]))


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(str(value) for value in values)


def _scatter(pairs: Sequence[tuple[float, float]]) -> str:
    shown = pairs[:: math.ceil(len(pairs) / _MOST_POINTS)] if pairs else []
    predicted, seen = [x for x, _ in shown], [y for _, y in shown]
    # Equal costs have no scale to draw.
    if len(set(predicted)) < 2 or len(set(seen)) < 2:
        return ""
    axes = Axes(
        max(predicted),
        min(seen),
        max(seen),
        start=min(predicted),
        height=300,
        x_title="predicted cost of the recorded actions",
        y_title="cost of what was seen",
    )
    body = axes.frame(ticks(min(seen), max(seen), 5), "{:g}".format, x_label="{:g}".format)
    body += "".join(
        f"<circle class='point' cx='{axes.x(x)}' cy='{axes.y(y)}' r='3'/>" for x, y in shown
    )
    some = "" if len(shown) == len(pairs) else f"<p>{len(shown)} of {len(pairs)} are drawn.</p>"
    return some + svg(body, "predicted and realised cost", 300)


def _gate(report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    part = report["gate"]
    if not part["judged"] and not part["expert"]["judged"]:
        return _absent("Gate")
    live = part["recorded"]
    rows = [
        (
            "the planner's chunks",
            str(part["judged"]),
            str(part["rejected"]),
            text(part["reject_rate"], "%"),
            counted(part["codes"]),
        ),
        (
            "the recorded actions",
            str(part["expert"]["judged"]),
            str(part["expert"]["rejected"]),
            text(part["false_reject_rate"], "%"),
            counted(part["expert"]["codes"]),
        ),
    ]
    if live["approved"] is not None:
        whole = live["approved"] + live["rejected"]
        share = live["rejected"] / whole if whole else None
        rows.append(
            (
                "the live gate then",
                str(whole),
                str(live["rejected"]),
                text(share, "%"),
                counted(live["codes"]),
            )
        )
    examples = "".join(
        f"<li>{escape(episode['episode'])} at {text(item['t_s'], 's')}: "
        f"{escape(', '.join(item['codes']))}: {escape(item['message'])}</li>"
        for episode in episodes
        for item in ((episode.get("gate") or {}).get("expert") or {}).get("examples", [])
    )
    false = f"<p>False rejections, examples:</p><ul>{examples}</ul>" if examples else ""
    return (
        "<h2>Gate</h2>"
        + table(("", "judged", "rejected", "share", "by reason"), rows, (4,))
        + false
        + _stops(part, episodes)
    )


def _stops(part: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    judged = [item for item in episodes if item.get("gate")]
    shown = judged[:_MOST_LANES]
    if not shown:
        return ""
    end = max(item["bag"]["duration_s"] for item in shown)
    axes = Axes(end, 0.0, 1.0, height=(_NAME + _LANE) * len(shown) + 48)
    body = axes.frame([], str)
    for index, episode in enumerate(shown):
        top = index * (_NAME + _LANE) + _NAME
        body += (
            f"<text x='{axes.left}' y='{top - 6}'>{escape(episode['episode'])}</text>"
            f"<rect class='lane' x='{axes.left}' y='{top}' rx='3' "
            f"width='{axes.x(episode['bag']['duration_s']) - axes.left:.1f}' height='{_LANE - 4}'/>"
        )
        line = episode.get("timeline") or {}
        marks = [
            ("refused", time, "chunk refused")
            for time, good in zip(line.get("t_s", []), line.get("approved", []), strict=True)
            if good is False
        ]
        marks += [
            ("stop", item["t_s"], f"{item['code']}: {item['message']}")
            for item in episode["gate"]["stops"]
        ]
        for kind, time, why in marks:
            x = axes.x(time)
            body += (
                f"<line class='{kind}' x1='{x}' x2='{x}' y1='{top}' y2='{top + _LANE - 4}'>"
                f"<title>{escape(why)} at {text(time, 's')}</title></line>"
            )
    listed = "".join(_spelt_out(episode) for episode in shown)
    lanes = "" if len(shown) == len(judged) else f", the first {len(shown)} of {len(judged)}"
    return (
        f"<p>When the gate would have stopped ({part['stops']} times, red) and refused a chunk of "
        f"the planner (orange); one lane a bag{lanes}.</p>"
        + svg(body, "stops over time", axes.height)
        + (f"<ul>{listed}</ul>" if listed else "")
    )


def _spelt_out(episode: Mapping[str, Any]) -> str:
    """The first stops of a bag as items of a list, and how many more there were."""
    name, gate = escape(episode["episode"]), episode["gate"]
    first = gate["stops"][:_MOST_STOPS]
    more = int(gate["stop_count"]) - len(first)
    return "".join(
        f"<li>{name} at {text(item['t_s'], 's')}: {escape(item['code'])}: "
        f"{escape(item['message'])}</li>"
        for item in first
    ) + (f"<li>{name}: {more} more</li>" if more else "")


def _latency(report: Mapping[str, Any]) -> str:
    part = report["latency"]
    rows = [
        (
            label,
            *(text(part[stage][key]) for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
            str(part[stage]["count"]),
        )
        for stage, label in STAGES.items()
        if part[stage]["count"]
    ]
    if not rows:
        return _absent("Latency of the live run")
    misses = part["deadline_misses"]
    return (
        f"<h2>Latency of the live run, ms</h2><p>{part['plans']} plans, "
        f"{'-' if misses is None else misses} deadline misses.</p>"
        + table(("", "p50", "p95", "p99", "max", "n"), rows)
    )


def _reproduction(report: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    part = report["reproduction"]
    if not part["cycles"]:
        return _absent("Reproduction")
    rows = [
        (
            episode["episode"],
            str(item["cycle"]),
            text(item["t_s"], "s"),
            str(item["recorded"]),
            str(item["replayed"]),
            item["cause"],
        )
        for episode in episodes
        for item in (episode.get("reproduction") or {}).get("differences", [])
    ]
    differences = part["cycles"] - part["same"]
    some = "" if len(rows) == differences else f" {len(rows)} of {differences} others are listed."
    return (
        f"<h2>Reproduction</h2><p>{part['same']} of {part['cycles']} cycles chose what the live "
        f"planner chose ({text(part['same_rate'], '%')}).{some}</p>"
        + table(("bag", "cycle", "at", "live", "replayed", "cause"), rows, (5,))
    )


def _episodes(report: Mapping[str, Any]) -> str:
    shown = [
        item
        for item in HEADLINES
        if item.path in _CARDS
        and any(row["figures"][item.path] is not None for row in report["episodes"])
    ]
    rows = [
        (
            row["episode"],
            row["failed"]["code"] if row["failed"] else "whole" if row["complete"] else "in part",
            text(row["duration_s"]),
            *(text(row["figures"][item.path], "%" if item.unit == "%" else "") for item in shown),
        )
        for row in report["episodes"]
    ]
    names = [
        item.label + (f", {item.unit}" if item.unit not in ("", "%") else "") for item in shown
    ]
    return "<h2>Bags</h2>" + table(("bag", "read", "length, s", *names), rows)


def _provenance(report: Mapping[str, Any]) -> str:
    about = report["provenance"]
    rows = [("seed", str(about.get("seed"))), ("planner", str(about.get("planner")))]
    robot = about.get("embodiment") or {}
    rows.append((f"embodiment {robot.get('name')}", str(robot.get("sha256"))))
    rows += [(f"checkpoint {name}", str(v)) for name, v in about.get("checkpoints", {}).items()]
    rows += [
        (f"bag {row['episode']}", row["bag_sha256"] or "not read") for row in report["episodes"]
    ]
    rows += [(name, str(version)) for name, version in about.get("versions", {}).items()]
    body = "".join(
        f"<tr><td>{escape(name)}</td><td class='hash'>{escape(value)}</td></tr>"
        for name, value in rows
    )
    settings = about.get("settings")
    said = ""
    if settings:
        shown = escape(json.dumps(settings, indent=1, sort_keys=True))
        said = f"<details><summary>Settings</summary><pre>{shown}</pre></details>"
    return (
        "<h2>Provenance</h2><p>The command line, its times and the machine are in the run manifest "
        f"beside this page.</p><table>{body}</table>{said}"
    )
