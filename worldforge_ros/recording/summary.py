"""Figures of one episode: counts, latencies, progress, and whether every stage took part."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldforge_ros.checkpoints import file_sha256
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.recording.figure import figure_of
from worldforge_ros.recording.log import EpisodeLog, PlanSample

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
REQUIRED_COUNTS = ("chunks_proposed", "chunks_scored", "chunks_approved", "executed_steps")
_DISTRIBUTIONS = (
    "worldforge_ros",
    "ros-rclpy",
    "lerobot",
    "stable-worldmodel",
    "torch",
    "gym-pusht",
    "gym-aloha",
    "mujoco",
    "numpy",
)
_DISTRO_OF_RCLPY = {"3": "humble", "7": "jazzy", "9": "kilted", "10": "lyrical"}


def summarise(
    log: EpisodeLog,
    *,
    checkpoints: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of ``summary.json``; see DESIGN for its keys.

    Progress has the name of the task's figure. A latency or progress without a single sample is
    None. ``image_to_observation`` and
    ``capture_to_command`` are differences of stamps and so ROS time; the others are wall time.
    """
    first, last = (log.gate[0], log.gate[-1]) if log.gate else (None, None)

    def grown(counter: str) -> int:
        return int(getattr(last, counter) - getattr(first, counter)) if first and last else 0

    rejected = {}
    if first and last:
        rejected = {
            code: count - first.rejected.get(code, 0)
            for code, count in sorted(last.rejected.items())
            if count > first.rejected.get(code, 0)
        }
    values = [value for _, value in log.progress]
    return {
        "seed": log.seed,
        "planner": log.planner,
        "distro": distro(),
        "versions": dict(versions if versions is not None else installed_versions()),
        "duration": round(log.duration, 3),
        "realtime_factor": (
            round(log.duration / log.wall_duration, 3) if log.wall_duration > 0 else None
        ),
        "counts": {
            "observations": log.observations,
            "plans": len(log.plans),
            "plans_by_outcome": _tally(plan.outcome for plan in log.plans),
            "chunks_proposed": sum(plan.num_candidates for plan in log.plans),
            "chunks_scored": sum(int(np.isfinite(plan.costs).sum()) for plan in log.plans),
            "chunks_sent": sum(plan.outcome == "OK" for plan in log.plans),
            "chunks_approved": grown("chunks_approved"),
            "chunks_rejected": grown("chunks_rejected"),
            "rejected_by_code": rejected,
            "executed_steps": grown("steps_executed"),
        },
        "latency_ms": latencies(log.plans, log.gate),
        "deadline_misses": log.deadline_misses,
        log.figure.name: {
            "initial": values[0] if values else None,
            "final": values[-1] if values else None,
            "max": max(values) if values else None,
        },
        "checkpoints": dict(checkpoints or {}),
    }


def check_complete(summary: Mapping[str, Any]) -> None:
    """Every stage did something; only the planner ``scored`` needs scores.

    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` naming the counts that are zero.
    """
    counts = summary["counts"]
    scored = summary["planner"] in ("", "scored")
    required = [name for name in REQUIRED_COUNTS if scored or name != "chunks_scored"]
    missing = [name for name in required if not counts[name]]
    if missing:
        found = ", ".join(f"{name} is 0" for name in missing)
        outcomes = ", ".join(f"{code} x{n}" for code, n in counts["plans_by_outcome"].items())
        rejections = ", ".join(f"{code} x{n}" for code, n in counts["rejected_by_code"].items())
        raise WorldForgeError(
            ErrorCode.EPISODE_INCOMPLETE,
            f"{found}; expected at least 1 of each (plan outcomes: {outcomes or 'none'}; "
            f"rejections: {rejections or 'none'})",
        )


def _tally(names: Iterable[str]) -> dict[str, int]:
    tally: dict[str, int] = {}
    for name in names:
        tally[name] = tally.get(name, 0) + 1
    return dict(sorted(tally.items()))


def statistics_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p95 and max in milliseconds of durations in seconds; None without any."""
    values = np.fromiter(seconds, dtype=np.float64) * 1000.0
    if not values.size:
        return None
    p50, p95 = np.percentile(values, [50, 95])
    return {
        "p50": round(float(p50), 3),
        "p95": round(float(p95), 3),
        "max": round(float(values.max()), 3),
    }


class Judged(Protocol):
    """What a gate status says of latencies, in s; see :class:`GateSample`."""

    @property
    def verdict_sequence(self) -> int:
        """Sequence of the chunk that was judged last."""

    @property
    def validation_latency(self) -> float:
        """From its arrival to the verdict."""

    @property
    def capture_to_command(self) -> float | None:
        """Of the last approved chunk; 0 or None before the first."""


def latencies(
    plans: Sequence[PlanSample], gate: Iterable[Judged]
) -> dict[str, dict[str, float] | None]:
    """Stages over the plans that reached them; a lost reply is a deadline miss, not a latency.

    :returns: per stage p50, p95 and max in ms, None without a sample.
    """

    def over(stage: str, plans: Iterable[PlanSample]) -> dict[str, float] | None:
        return statistics_ms(v for plan in plans if (v := getattr(plan, stage)) > 0)

    good = [plan for plan in plans if plan.outcome == "OK"]
    verdicts, commands = [], []
    for before, status in pairwise(gate):
        if status.verdict_sequence != before.verdict_sequence:
            verdicts.append(status.validation_latency)
        # Reported once the chunk's first set-point went out, so it may come after the verdict.
        reached = status.capture_to_command
        if reached and reached > 0 and reached != before.capture_to_command:
            commands.append(reached)
    return {
        # ROS time: zero is a real value where simulated time moves in steps.
        "image_to_observation": statistics_ms(plan.observation_latency for plan in plans),
        "propose": over("propose_latency", good),
        "propose_model": over("propose_model_latency", good),
        "score": over("score_latency", good),
        "score_model": over("score_model_latency", good),
        "plan": over("plan_latency", good),
        "gate": statistics_ms(verdicts),
        "capture_to_command": statistics_ms(commands),
    }


def distro() -> str:
    """Name of the ROS distribution, from the environment or from rclpy's version."""
    named = os.environ.get("ROS_DISTRO")
    if named:
        return named
    major = installed_versions().get("ros-rclpy", "").split(".")[0]
    return _DISTRO_OF_RCLPY.get(major, "unknown")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of what decides the figures; packages that are absent are left out."""
    found = {name: _version(name) for name in _DISTRIBUTIONS}
    return {"python": platform.python_version(), **{n: v for n, v in found.items() if v}}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def checkpoint_hashes(name: str, path: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's weights: ``{name: ...}``, and ``{name/file: ...}`` for the rest.

    The main weights are ``model.*``, else ``weights.*``, else the largest file.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` when there are no weights at ``path``.
    """
    if path.is_file():
        return {name: file_sha256(path)}
    files = sorted(p for p in path.glob("*") if p.suffix in WEIGHT_SUFFIXES)
    if not files:
        raise WorldForgeError(
            ErrorCode.CHECKPOINT_MISSING,
            f"{name} is {path}; expected a folder with {', '.join(WEIGHT_SUFFIXES)}",
        )
    main = max(
        files, key=lambda p: (p.stem == "model", p.stem == "weights", p.stat().st_size, p.name)
    )
    rest = {f"{name}/{p.name}": file_sha256(p) for p in files if p != main}
    return {name: file_sha256(main), **rest}


def latency_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per stage: p50, p95 and max in ms, and the shares of p50 inside a model and outside it.

    The outside share of ``propose`` and ``score`` is transport, conversion and waiting; of ``plan``
    it is everything that is not one of the two models.
    """
    latency = summary["latency_ms"]

    def p50(stage: str) -> float | None:
        return latency[stage]["p50"] if latency.get(stage) else None

    models = {
        "propose": p50("propose_model"),
        "score": p50("score_model"),
        "plan": (
            None
            if p50("propose_model") is None and p50("score_model") is None
            else (p50("propose_model") or 0.0) + (p50("score_model") or 0.0)
        ),
    }
    rows = []
    for stage in ("image_to_observation", "propose", "score", "plan", "gate", "capture_to_command"):
        figures, model = latency.get(stage), models.get(stage)
        if figures is None:
            rows.append({"stage": stage, "p50": None, "p95": None, "max": None})
            continue
        row = {"stage": stage, **figures}
        if model is not None:
            row["model_ms"] = round(model, 3)
            row["ros_ms"] = round(max(figures["p50"] - model, 0.0), 3)
            row["model_share"] = round(min(model / figures["p50"], 1.0), 4)
        rows.append(row)
    return rows


def clock_note(summary: Mapping[str, Any]) -> str:
    """Which latencies are not wall time, in words; empty when ROS time ran like wall time."""
    factor = summary["realtime_factor"]
    if factor is None or abs(factor - 1.0) < 0.05:
        return ""
    return (
        "image_to_observation and capture_to_command are simulated time, "
        f"which ran at {factor:.2f} x real time"
    )


def table(summary: Mapping[str, Any]) -> str:
    """The short table that is printed after an episode."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    counts, name = summary["counts"], figure_of(summary).name
    progress = summary[name]
    rejected = ", ".join(f"{code} {n}" for code, n in counts["rejected_by_code"].items())
    lines = [
        f"{name:<11}initial {number(progress['initial'])}   final {number(progress['final'])}"
        f"   max {number(progress['max'])}",
        f"chunks     proposed {counts['chunks_proposed']}   scored {counts['chunks_scored']}"
        f"   sent {counts['chunks_sent']}   approved {counts['chunks_approved']}"
        f"   rejected {counts['chunks_rejected']}" + (f" ({rejected})" if rejected else ""),
        f"run        {counts['observations']} observations   {counts['plans']} plans"
        f"   {counts['executed_steps']} steps executed   {summary['deadline_misses']} deadline"
        f" misses   {number(summary['duration'], 1)} s at {number(summary['realtime_factor'])}"
        " x real time",
        "",
        f"{'latency, ms':<22}{'p50':>9}{'p95':>9}{'max':>9}{'model':>9}{'ROS':>9}",
    ]
    for row in latency_rows(summary):
        cells = [number(row.get(key), 1) for key in ("p50", "p95", "max", "model_ms", "ros_ms")]
        lines.append(f"{row['stage']:<22}" + "".join(f"{cell:>9}" for cell in cells))
    note = clock_note(summary)
    return "\n".join([*lines, f"({note})"] if note else lines)
