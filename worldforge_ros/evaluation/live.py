"""Episodes of an evaluation in Gazebo: the live nodes, brought up and recorded one by one.

Each episode is what ``worldforge demo gazebo`` does, with its own report; nothing of one is left
when the next begins. Time passes while the models think, as on a robot.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from worldforge_ros.bringup import find_task
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.lockstep import EpisodeResult, Settings
from worldforge_ros.evaluation.runner import Finished, Record
from worldforge_ros.supervisor import Console, Outcome, Supervisor, task_commands

TASK = "gazebo"
PLANNERS: Mapping[str, Mapping[str, str]] = {
    "still": {"planner": "first", "arm": "false"},
    "first": {"planner": "first"},
    "random": {"planner": "random"},
    "scored": {"planner": "scored"},
    "cem": {"source": "cem"},
    "cem+policy": {"source": "cem+policy"},
}
"""Planners of an evaluation, in arguments of the bring-up; ``oracle`` needs the built-in simulator.
"""
TAKEN = ("policy", "world_model", "embodiment", "candidates", "steps", "device")
"""Settings that live nodes are given; the others are parameters of nodes here."""
OWNED = (
    *("planner", "source", "arm", "record", "duration", "output_dir", "seed", "num_candidates"),
    *("policy_path", "world_model", "embodiment", "device", "sim", "bag"),
)
"""Arguments of the bring-up that an evaluation sets."""

Run = Callable[[Mapping[str, str], Path], Outcome]


def check(planners: Sequence[str], settings: Settings, given: Mapping[str, str]) -> None:
    """Refuse what live nodes do not do.

    :param given: further arguments of the bring-up.
    :raises WorldForgeError: ``INVALID_ARGUMENT``.
    """
    for name in planners:
        if name not in PLANNERS:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "--planner with --backend gazebo",
                found=name,
                expected=f"one of {', '.join(PLANNERS)}",
            )
    plain = Settings()
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if field.name not in TAKEN and value != getattr(plain, field.name):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"--{field.name.replace('_', '-')} with --backend gazebo",
                found=value,
                expected="its default: live nodes take it as a parameter, --set params_file:=FILE",
            )
    for name in given:
        if name in OWNED:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, f"--set {name}", found="given", expected="the option"
            )


def arguments_of(
    planner: str, seed: int, settings: Settings, given: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """Arguments of the bring-up for one episode, recorded into ``folder``."""
    return {
        **given,
        "record": "true",
        "seed": str(seed),
        "duration": str(settings.rules.steps * STEP),
        "output_dir": str(folder),
        "policy_path": settings.policy,
        "world_model": settings.world_model,
        "embodiment": settings.embodiment,
        "num_candidates": str(1 if planner == "first" else settings.candidates),
        "device": settings.device,
        **PLANNERS[planner],
    }


STEP = 0.1
"""Seconds of a control step of PushT."""


def run_all(
    planners: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    given: Mapping[str, str],
    record: Record,
    folder: Path,
    advance: Callable[[Finished], None] = lambda finished: None,
    run: Run | None = None,
) -> None:
    """Run what ``record`` does not hold yet; every episode is recorded when it ends.

    :param folder: takes a folder of each episode, with its report and what every process printed.
    :param run: runs one bring-up; the supervisor of ``worldforge up`` where None.
    :raises WorldForgeError: ``DEPENDENCY_MISSING`` without Gazebo, ``EPISODE_INCOMPLETE`` when an
        episode could not be run.
    :raises KeyboardInterrupt: when the bring-up was interrupted.
    """
    there = {(f.result.planner, f.result.seed) for f in record.finished}
    for seed in seeds:
        for planner in planners:
            if (planner, seed) in there:
                continue
            place = folder / "episodes" / f"{planner}-{seed}"
            finished = Finished(_episode(planner, seed, settings, given, place, run or supervised))
            record.add(finished)
            advance(finished)


def supervised(arguments: Mapping[str, str], folder: Path) -> Outcome:
    """One bring-up to its end; what is printed goes into ``folder``."""
    if "ROS_DOMAIN_ID" not in os.environ:
        # A closed world, as for worldforge demo.
        os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    commands = task_commands(TASK, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w", encoding="utf-8") as stream:
        width = max(len(command.name) for command in commands)
        console = Console(stream, width=width, colour=False)
        return Supervisor(commands, console=console, log_dir=folder / "logs").run()


def _episode(
    planner: str,
    seed: int,
    settings: Settings,
    given: Mapping[str, str],
    folder: Path,
    run: Run,
) -> EpisodeResult:
    summary_file = folder / "summary.json"
    # Of an attempt that was cut off.
    summary_file.unlink(missing_ok=True)
    outcome = run(arguments_of(planner, seed, settings, given, folder), folder)
    if outcome.status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    # Nothing is executed by a robot that stands still, which makes its recording incomplete.
    if not summary_file.is_file() or (outcome.status and planner != "still"):
        raise WorldForgeError(
            ErrorCode.EPISODE_INCOMPLETE,
            f"{planner} on seed {seed} ended with status {outcome.status} ({outcome.reason}); "
            f"expected a recorded episode, see {folder / 'output.log'}",
        )
    summary: dict[str, Any] = json.loads(summary_file.read_text(encoding="utf-8"))
    if summary["seed"] != seed:
        raise mismatch(
            ErrorCode.EPISODE_INCOMPLETE,
            f"seed in {summary_file}",
            found=summary["seed"],
            expected=seed,
        )
    return result_of(planner, summary)


def result_of(planner: str, summary: Mapping[str, Any]) -> EpisodeResult:
    """What a recording says of its episode.

    ``ms_per_decision`` is the median wall time of a plan; the errors of the block at the end are
    not recorded, and NaN.

    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` for a recording without a coverage.
    """
    figure = find_task(TASK).figure
    progress, counts = summary[figure.name], summary["counts"]
    if progress["max"] is None:
        raise mismatch(
            ErrorCode.EPISODE_INCOMPLETE,
            f"{figure.name} of {planner} on seed {summary['seed']}",
            found="absent",
            expected="the figure of gazebo_pusht",
        )
    plan = summary["latency_ms"]["plan"]
    still = planner == "still"
    decisions = 0 if still else counts["plans_by_outcome"].get("OK", 0)
    ended = summary["ended"]
    return EpisodeResult(
        planner=planner,
        seed=summary["seed"],
        measure=progress["max"],
        initial_coverage=progress["initial"],
        max_coverage=progress["max"],
        final_coverage=progress["final"],
        position_error_mm=math.nan,
        angle_error=math.nan,
        success=figure.solved(progress["max"]),
        steps=counts["executed_steps"],
        decisions=decisions,
        ms_per_decision=plan["p50"] if plan and decisions else 0.0,
        spearman=math.nan,
        rejected_chunks=counts["chunks_rejected"],
        rejected=counts["rejected_by_code"],
        stopped=ended.removeprefix("gate stopped: ") if ended.startswith("gate stopped") else "",
    )
