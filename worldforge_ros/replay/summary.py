"""From the documents of replayed bags to ``report.json``: pure, and the same for the same input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.statistics import bootstrap_mean, spearman
from worldforge_ros.replay.tally import Tally

SCHEMA: Final = "worldforge_ros/replay_report/1"
EPISODE_SCHEMA: Final = "worldforge_ros/replay_episode/1"

STAGES: Final = {
    "observation": "camera to observation",
    "propose": "propose",
    "score": "score",
    "plan": "whole plan",
    "gate": "gate verdict",
    "capture_to_command": "capture to command",
}
"""Stages of a live run and their names for people."""

PREDICTORS: Final = {
    "first": "policy, first candidate",
    "chosen": "policy, chosen candidate",
    "nearest": "policy, candidate nearest to the recording",
    "hold": "baseline: hold the last set-point",
    "repeat": "baseline: repeat the recorded motion",
}
"""What is compared with the recorded actions, and its name for people."""

OPEN_LOOP: Final = (
    "Open-loop error does not predict success: the recording goes on as it went, whatever the "
    "policy proposes, so a policy is never shown the consequences of its own actions. Compare "
    "success with `worldforge evaluate` or on the robot."
)
_STILL: Final = 1e-9
"""A joint whose recorded actions vary less than this (m or rad) cannot normalise an error."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Headline:
    """A figure that every episode, interval and comparison has: its path in the report, its name
    and unit for people, and which way is better (``""``: neither)."""

    path: str
    label: str
    unit: str
    better: Literal["less", "more", ""]


HEADLINES: Final = (
    Headline("policy.error_normalised", "policy error, all steps", "x spread", "less"),
    Headline("policy.first_action_error_normalised", "first-action error", "x spread", "less"),
    Headline("policy.chosen_error_normalised", "error of the chosen one", "x spread", "less"),
    Headline("policy.nearest_error_normalised", "error of the nearest one", "x spread", "less"),
    Headline("policy.skill_over_hold", "skill over holding", "", "more"),
    Headline("policy.skill_over_repeat", "skill over repeating", "", "more"),
    Headline("policy.overlap.normalised", "disagreement of overlapping chunks", "x spread", "less"),
    Headline("policy.jerk_ratio", "jerk, chosen over recorded", "x", ""),
    Headline("scores.spearman", "rank correlation, cost with what followed", "", "more"),
    Headline("scores.recorded_rank", "rank of the recorded actions, 0 best to 1", "", ""),
    Headline("scores.margin.p50", "median margin of the choice", "cost", ""),
    Headline("gate.reject_rate", "chunks that the gate rejects", "%", "less"),
    Headline("gate.false_reject_rate", "recorded actions that the gate rejects", "%", "less"),
    Headline("gate.stops", "times the gate would have stopped", "", "less"),
    Headline("cycles.failed_rate", "planning cycles that failed", "%", "less"),
    Headline("synchronisation.skipped_rate", "ticks without an observation", "%", "less"),
    Headline("synchronisation.age_s.p95", "age of an observation, p95", "s", "less"),
    Headline("latency.plan.p95_ms", "whole plan, p95 (recorded live)", "ms", "less"),
    Headline("latency.deadline_misses", "deadline misses (recorded live)", "", "less"),
    Headline("reproduction.same_rate", "same choice as the live run", "%", "more"),
    Headline("bag_health.problems", "problems of bags", "", "less"),
)
"""What people look at first, in this order; a rate is a share here and per cent for people."""


def lookup(document: Any, path: str) -> Any:
    """The value at ``path`` (keys and list indices with dots between).

    :raises KeyError: when there is none.
    """
    for key in path.split("."):
        if isinstance(document, Mapping) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            raise KeyError(path)
    return document


def summarise(
    episodes: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``report.json`` from the documents of the bags, in any order.

    A document with ``failed`` (a bag that could not be read) counts in ``bag_health`` alone.
    Without a measurement a figure is None: every key is always there. Errors are normalised by
    the spread (standard deviation) of the recorded actions over all bags; a joint that never moves
    is left out of them. ``intervals`` are means over episodes with 95 % bootstrap intervals,
    while the figures themselves are over all cycles. Nothing here depends on clock or machine
    unless ``provenance`` does.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for another schema, or for bags of different
        joints, steps or horizons.
    """
    episodes = sorted(episodes, key=lambda e: (e["episode"], e["bag"].get("sha256") or ""))
    for episode in episodes:
        if episode.get("schema") != EPISODE_SCHEMA:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"schema of episode {episode['episode']}",
                found=episode.get("schema"),
                expected=EPISODE_SCHEMA,
            )
    replayed = [episode for episode in episodes if not episode.get("failed")]
    spread = _spread(replayed)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "provenance": dict(provenance),
        **_figures(episodes, spread),
    }
    rows = [_row(episode, spread) for episode in episodes]
    report["episodes"] = rows
    report["intervals"] = _intervals(rows)
    report["notes"] = _notes(report, replayed)
    cleaned: dict[str, Any] = _clean(report)
    return cleaned


def problems(episode: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is wrong with an episode's bag, each problem once."""
    listed = [
        *(episode.get("bag", {}).get("problems") or []),
        *((episode.get("health") or {}).get("problems") or []),
        *([episode["failed"]] if episode.get("failed") else []),
    ]
    unique = {(str(p["code"]), str(p["message"])): None for p in listed}
    return [{"code": code, "message": message} for code, message in unique]


def tallied(documents: Iterable[Mapping[str, Any] | None]) -> Tally:
    """One tally of all those that there are."""
    total = Tally()
    for document in documents:
        if document is not None:
            total.merge(Tally.of(document))
    return total


def _figures(episodes: Sequence[Mapping[str, Any]], spread: Floats) -> dict[str, Any]:
    """Every section of the report over ``episodes``."""
    replayed = [episode for episode in episodes if not episode.get("failed")]
    return {
        "bag_health": _bag_health(episodes),
        "synchronisation": _synchronisation(replayed),
        "cycles": _cycles(replayed),
        "policy": _policy(replayed, spread),
        "scores": _scores(replayed),
        "gate": _gate(replayed),
        "latency": _latency(replayed),
        "reproduction": _reproduction(replayed),
    }


def _row(episode: Mapping[str, Any], spread: Floats) -> dict[str, Any]:
    figures = _figures([episode], spread)
    bag, failed = episode["bag"], episode.get("failed")
    return {
        "episode": episode["episode"],
        "bag_sha256": bag.get("sha256") or None,
        "duration_s": bag.get("duration_s"),
        "complete": bool(bag.get("complete", False)) and not failed,
        "failed": dict(failed) if failed else None,
        "problems": problems(episode),
        "figures": {h.path: lookup(figures, h.path) for h in HEADLINES},
    }


def _intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for headline in HEADLINES:
        values = [
            row["figures"][headline.path]
            for row in rows
            # Nothing but its problems is known of a bag that could not be read.
            if row["figures"][headline.path] is not None and not row["failed"]
        ]
        if len(values) >= 2:
            interval = bootstrap_mean(values)
            found[headline.path] = {
                "value": interval.mean,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "episodes": len(values),
            }
    return found


def _bag_health(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    failed = [e for e in episodes if e.get("failed")]
    read = [e for e in episodes if not e.get("failed")]
    topics = [t for e in read for t in (e.get("health") or {}).get("topics", [])]
    by_code = _summed({p["code"]: 1} for e in episodes for p in problems(e))
    skews = [t["skew_ms"]["p95"] for t in topics if t.get("skew_ms")]
    return {
        "bags": len(episodes),
        "failed": len(failed),
        "incomplete": sum(not e["bag"].get("complete", False) for e in read),
        "problems": sum(by_code.values()),
        "problems_by_code": by_code,
        "messages": sum(int(e["bag"].get("messages") or 0) for e in read),
        "duration_s": math.fsum(float(e["bag"].get("duration_s") or 0.0) for e in read),
        "gap_max_s": _largest(t.get("gap_max_s") for t in topics),
        "out_of_order": sum(int(t.get("out_of_order") or 0) for t in topics),
        "skew_p95_max_ms": _largest(skews),
        "definitions_changed": sum(t.get("definition") == "changed" for t in topics),
    }


def _synchronisation(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["synchronisation"] for e in episodes if e.get("synchronisation")]
    observations = sum(int(part["observations"]) for part in parts)
    skipped = _summed(part["skipped"] for part in parts)
    lost = sum(skipped.values())
    return {
        "source": sorted({str(part["source"]) for part in parts}),
        "pictures": sum(int(part["pictures"]) for part in parts),
        "observations": observations,
        "skipped": lost,
        "skipped_rate": _ratio(lost, observations + lost),
        "skipped_by_code": skipped,
        "age_s": _statistics(tallied(part.get("age_s") for part in parts)),
        "joint_offset_s": _statistics(tallied(part.get("joint_offset_s") for part in parts)),
    }


def _cycles(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["cycles"] for e in episodes if e.get("cycles")]
    outcomes = _summed(part["outcomes"] for part in parts)
    ended = sum(outcomes.values())
    return {
        "started": sum(int(part["started"]) for part in parts),
        "waiting": sum(int(part["waiting"]) for part in parts),
        "outcomes": outcomes,
        "failed_rate": _ratio(ended - outcomes.get("OK", 0), ended),
    }


def _spread(episodes: Sequence[Mapping[str, Any]]) -> Floats:
    """Standard deviation (J,) of the recorded actions within bags, over all of them: the root mean
    square of the bags' own, weighted by what was compared. Empty without a policy.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when the bags have different contracts.
    """
    parts = [e["policy"] for e in episodes if e.get("policy")]
    for part in parts[1:]:
        for name in ("joints", "units", "step_s", "horizon"):
            if part[name] != parts[0][name]:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"policy.{name} of a bag",
                    found=part[name],
                    expected=f"that of the other bags, {parts[0][name]}",
                )
    # A bag of which no cycle could be compared has no errors.
    compared = [p for p in parts if "first" in p["errors"]]
    weighed = [(float(sum(p["errors"]["first"]["count"])), _array(p["spread"])) for p in compared]
    total = sum(weight for weight, _ in weighed)
    if not total:
        return np.zeros(len(parts[0]["joints"]) if parts else 0)
    squares = np.sum([weight * values**2 for weight, values in weighed], axis=0)
    spread: Floats = np.sqrt(squares / total)
    return spread


def _policy(episodes: Sequence[Mapping[str, Any]], spread: Floats) -> dict[str, Any]:
    parts = [e["policy"] for e in episodes if e.get("policy")]
    moving = spread > _STILL
    errors = {name: _errors(parts, name, spread, moving) for name in PREDICTORS}
    smooth = {name: _smoothness(parts, name) for name in ("chosen", "recorded")}
    overlaps = [part["overlap"] for part in parts if part.get("overlap")]
    compared = sum(int(part["count"]) for part in overlaps)
    overlap = (
        np.sqrt(np.sum([_array(part["sum_sq"]) for part in overlaps], axis=0) / compared)
        if compared
        else None
    )
    jerks = [_normalised(smooth[name]["rms_jerk"], spread, moving) for name in smooth]
    return {
        "joints": list(parts[0]["joints"]) if parts else [],
        "units": list(parts[0]["units"]) if parts else [],
        "step_s": parts[0]["step_s"] if parts else None,
        "horizon": parts[0]["horizon"] if parts else None,
        "actions_source": sorted({str(part["actions_source"]) for part in parts}),
        "spread": spread.tolist() if parts else [],
        "error_normalised": errors["first"]["normalised"],
        "first_action_error_normalised": errors["first"]["first_action_normalised"],
        "chosen_error_normalised": errors["chosen"]["normalised"],
        "nearest_error_normalised": errors["nearest"]["normalised"],
        "skill_over_hold": _skill(errors["first"], errors["hold"]),
        "skill_over_repeat": _skill(errors["first"], errors["repeat"]),
        "errors": errors,
        "overlap": {
            "count": compared,
            "rms": None if overlap is None else overlap.tolist(),
            "normalised": _normalised(overlap, spread, moving),
        },
        "smoothness": {
            name: {key: None if v is None else _plain(v) for key, v in part.items()}
            for name, part in smooth.items()
        },
        "jerk_ratio": (
            _ratio(jerks[0], jerks[1]) if jerks[0] is not None and jerks[1] is not None else None
        ),
    }


def _errors(
    parts: Sequence[Mapping[str, Any]], name: str, spread: Floats, moving: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Errors of one predictor: (H, J) in the joints' units, and (H,) times the spread."""
    found = [part["errors"][name] for part in parts if name in part["errors"]]
    empty: dict[str, Any] = {
        "count": 0,
        "normalised": None,
        "first_action_normalised": None,
        "normalised_by_step": [],
        "rmse": [],
        "mae": [],
    }
    if not found:
        return empty
    count = np.sum([_array(part["count"]) for part in found], axis=0)
    squares = np.sum([_array(part["sum_sq"]) for part in found], axis=0)
    sizes = np.sum([_array(part["sum_abs"]) for part in found], axis=0)
    if not count.sum():
        return empty
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_squares, means = squares / count[:, None], sizes / count[:, None]
    by_step: list[float | None] = [None] * len(count)
    normalised = None
    if moving.any():
        relative = squares[:, moving] / spread[moving] ** 2
        by_step = [
            math.sqrt(float(row.mean()) / n) if n else None
            for row, n in zip(relative, count, strict=True)
        ]
        normalised = math.sqrt(float(relative.mean(axis=1).sum()) / float(count.sum()))
    return {
        "count": int(count[0]),
        "normalised": normalised,
        "first_action_normalised": by_step[0],
        "normalised_by_step": by_step,
        "rmse": np.sqrt(mean_squares).tolist(),
        "mae": means.tolist(),
    }


def _smoothness(parts: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    found = [p["smoothness"][name] for p in parts if name in (p.get("smoothness") or {})]
    count = sum(int(part["count"]) for part in found)
    sums = {"rms_acceleration": "sum_sq_acceleration", "rms_jerk": "sum_sq_jerk"}
    return {
        "count": count,
        **{
            key: (
                np.sqrt(np.sum([_array(part[source]) for part in found], axis=0) / count)
                if count
                else None
            )
            for key, source in sums.items()
        },
    }


def _skill(one: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """1 - mean squared error over that of the baseline: 1 perfect, 0 no better, below 0 worse."""
    error, against = one["normalised"], baseline["normalised"]
    if error is None or not against:
        return None
    return float(1.0 - (error / against) ** 2)


def _normalised(
    values: Floats | None, spread: Floats, moving: npt.NDArray[np.bool_]
) -> float | None:
    """Root mean square over the joints that move of ``values`` (J,) times the spread."""
    if values is None or not moving.any():
        return None
    return math.sqrt(float(np.mean((values[moving] / spread[moving]) ** 2)))


def correlation(scores: Mapping[str, Any]) -> float | None:
    """Spearman's correlation in one bag of predicted cost and cost of what followed; None for
    fewer than 3 pairs or constant costs."""
    predicted, realised = scores["pairs"]["recorded_cost"], scores["pairs"]["realised"]
    pairs = [(a, b) for a, b in zip(predicted, realised, strict=True) if _finite(a) and _finite(b)]
    if len(pairs) < 3:
        return None
    value = spearman(*zip(*pairs, strict=True))
    return None if math.isnan(value) else value


def _scores(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["scores"] for e in episodes if e.get("scores")]
    cycles = sum(int(part["cycles"]) for part in parts)
    ranked = sum(int(part["rank"]["count"]) for part in parts)
    relative = math.fsum(float(part["relative_rank_sum"]) for part in parts)
    agreement = [value for part in parts if (value := correlation(part)) is not None]
    return {
        "cycles": cycles,
        "candidates": sorted({int(part["candidates"]) for part in parts}),
        "objective": sorted({str(part["objective"]) for part in parts}),
        "recorded_rank": _ratio(relative, ranked),
        "rank": _statistics(tallied(part["rank"] for part in parts)),
        "margin": _statistics(tallied(part["margin"] for part in parts)),
        "spread": _statistics(tallied(part["spread"] for part in parts)),
        "pairs": sum(len(part["pairs"]["realised"]) for part in parts),
        # Of each bag, then averaged: another goal or scene shifts both costs of a whole bag, which
        # all pairs together would take for agreement.
        "spearman": math.fsum(agreement) / len(agreement) if agreement else None,
    }


def _gate(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["gate"] for e in episodes if e.get("gate")]
    experts = [part["expert"] for part in parts if part.get("expert")]
    live = [part["recorded"] for part in parts if part.get("recorded")]
    judged = sum(int(part["judged"]) for part in parts)
    approved = sum(int(part["approved"]) for part in parts)
    shown = sum(int(part["judged"]) for part in experts)
    refused = sum(int(part["rejected"]) for part in experts)
    return {
        "judged": judged,
        "approved": approved,
        "rejected": judged - approved,
        "reject_rate": _ratio(judged - approved, judged),
        "codes": _summed(part["codes"] for part in parts),
        "false_reject_rate": _ratio(refused, shown),
        "expert": {
            "judged": shown,
            "rejected": refused,
            "codes": _summed(part["codes"] for part in experts),
        },
        "stops": sum(int(part["stop_count"]) for part in parts) if parts else None,
        "recorded": {
            "approved": sum(int(part["approved"]) for part in live) if live else None,
            "rejected": sum(int(part["rejected"]) for part in live) if live else None,
            "codes": _summed(part["codes"] for part in live),
        },
    }


def _latency(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["latency"] for e in episodes if e.get("latency")]
    found: dict[str, Any] = {}
    for stage in STAGES:
        tally = tallied(part["stages"].get(stage) for part in parts)
        found[stage] = {
            "count": tally.count,
            **{f"p{q}_ms": tally.quantile(q / 100) for q in (50, 95, 99)},
            "max_ms": tally.max if tally.count else None,
        }
    found["plans"] = sum(int(part["plans"]) for part in parts)
    found["deadline_misses"] = (
        sum(int(part["deadline_misses"]) for part in parts) if parts else None
    )
    return found


def _reproduction(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = [e["reproduction"] for e in episodes if e.get("reproduction")]
    cycles = sum(int(part["cycles"]) for part in parts)
    same = sum(int(part["same"]) for part in parts)
    causes = _summed({str(d["cause"]): 1} for part in parts for d in part["differences"])
    return {
        "cycles": cycles,
        "same": same,
        "same_rate": _ratio(same, cycles),
        "causes": causes,
    }


def _notes(report: Mapping[str, Any], replayed: Sequence[Mapping[str, Any]]) -> list[str]:
    """In plain words: how to read the figures, and what could not be measured and why."""
    notes = [OPEN_LOOP]
    health, policy, sync = report["bag_health"], report["policy"], report["synchronisation"]
    if health["failed"]:
        notes.append(
            f"{health['failed']} of {health['bags']} bags could not be replayed; no figure but "
            "bag_health includes them."
        )
    if health["incomplete"]:
        notes.append(
            f"{health['incomplete']} bags could be read in part only; their figures are of what "
            "could be read."
        )
    if not report["cycles"]["started"]:
        notes.append("No planning cycle was started, so there is nothing to say about a planner.")
    if not policy["errors"]["first"]["count"]:
        notes.append("Policy errors were not measured: no cycle had recorded actions to compare.")
    still = [
        joint
        for joint, value in zip(policy["joints"], policy["spread"], strict=True)
        if not value > _STILL
    ]
    if still and policy["errors"]["first"]["count"]:
        notes.append(
            f"Normalised errors leave out {', '.join(still)}: the recorded actions do not move it."
        )
    if "joint_states" in policy["actions_source"]:
        notes.append(
            "Recorded actions are measured positions one policy step later (the bag has no "
            "commands): an error includes how far the arm lags behind its commands."
        )
    first = policy["errors"]["first"]["count"]
    notes += [
        f"{PREDICTORS[name][:1].upper()}{PREDICTORS[name][1:]}: measured over "
        f"{policy['errors'][name]['count']} of {first} cycles."
        for name in ("hold", "repeat")
        if policy["errors"][name]["count"] != first
    ]
    if "observation" in sync["source"]:
        notes.append(
            "Observations were recorded ready-made in at least one bag, so ages and offsets there "
            "are those of the live run."
        )
    missing = sum(not e.get("scores") for e in replayed)
    if missing:
        notes.append(f"Scores were not measured for {missing} of {len(replayed)} bags: no scorer.")
    elif report["scores"]["spearman"] is None and replayed:
        notes.append(
            "The rank correlation of cost and outcome was not measured: fewer than 3 pairs in "
            "every bag, or constant costs."
        )
    if not report["gate"]["expert"]["judged"]:
        notes.append(
            "False rejections were not measured: no recorded actions were shown to the gate."
        )
    missing = sum(not e.get("latency") for e in replayed)
    if missing:
        notes.append(
            f"Latency is unknown for {missing} of {len(replayed)} bags: a replay has no wall "
            "clock, and those bags hold no plan reports of a live run."
        )
    missing = sum(not e.get("reproduction") for e in replayed)
    if missing:
        notes.append(
            f"Reproduction was not checked for {missing} of {len(replayed)} bags: without plan "
            "reports of the same planner and seed there is no live choice to compare with."
        )
    if len(replayed) < 2:
        notes.append("Fewer than two episodes were replayed, so there are no intervals.")
    return notes


def _summed(counts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for key, count in part.items():
            total[str(key)] = total.get(str(key), 0) + int(count)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _statistics(tally: Tally) -> dict[str, Any]:
    document = tally.document()
    return {key: document[key] for key in ("count", "mean", "min", "max", "p50", "p95", "p99")}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _array(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _clean(value: Any) -> Any:
    """``value`` as JSON: ten significant digits, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{float(value):.10g}") if math.isfinite(value) else None
