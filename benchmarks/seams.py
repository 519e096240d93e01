"""Task result and smoothness of every way to take over from one chunk to the next.

``. ./env.sh && python benchmarks/seams.py --task pusht|aloha [--json FILE] [--plot FILE]``;
lockstep episodes in which a decision takes effect ``--latency-steps`` late, as on a robot, the same
seeds for every seam. What the jumps are: ``worldforge_ros/evaluation/seams.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.evaluation.lockstep import Settings, load_models, make_world, play
from worldforge_ros.evaluation.planners import Models
from worldforge_ros.evaluation.protocols import check_unseen
from worldforge_ros.evaluation.seams import (
    PROFILE,
    QUANTITIES,
    Jumps,
    figures,
    joined,
    joints_by_unit,
    jumps,
    known,
    rms,
)
from worldforge_ros.evaluation.statistics import bootstrap_mean
from worldforge_ros.planning.seam import SEAMS, SeamSettings
from worldforge_ros.recording.progress import track

PER = {"velocity": "s", "acceleration": "s²"}


@dataclass(frozen=True)
class TaskSpec:
    """What a task is measured by and how it is run when no option says otherwise."""

    measure: str
    settings: Settings
    latency_steps: int
    execute_steps: int


TASKS = {
    "pusht": TaskSpec("max coverage", Settings(), 2, 5),
    "aloha": TaskSpec(
        "largest reward",
        Settings(
            protocol="transfer",
            policy="package://worldforge_ros/models/aloha/policy",
            world_model="package://worldforge_ros/models/aloha/world_model",
            embodiment="aloha",
            candidates=8,
        ),
        8,
        25,
    ),
}


@dataclass
class Outcome:
    """All episodes of one seam."""

    results: list[float]
    successes: list[bool]
    jumps: dict[str, list[Jumps]]
    decisions: int = 0
    reachable: int = 0
    candidates: int = 0
    unreachable_steps: int = 0
    rejected_chunks: int = 0
    stopped: int = 0


def measure(
    models: Models, planner: str, settings: Settings, seeds: Sequence[int]
) -> dict[str, Outcome]:
    """Run every seed with every seam, seed by seed."""
    world = make_world(settings)
    found = {mode: Outcome([], [], {name: [] for name in QUANTITIES}) for mode in SEAMS}
    step = models.embodiment.policy.step
    count = 1 if planner == "first" else settings.candidates
    with track("episodes", len(seeds) * len(SEAMS)) as advance:
        for seed in seeds:
            for mode, outcome in found.items():
                seam = replace(settings.seam, mode=mode)
                chosen = replace(settings, seam=seam)
                episode, run = play(planner, seed, chosen, models, world)
                outcome.results.append(float(episode.best))
                outcome.successes.append(run.success)
                for name, item in jumps(run.commands, step).items():
                    outcome.jumps[name].append(item)
                outcome.decisions += len(run.decisions)
                outcome.reachable += sum(int(d.reachable.sum()) for d in run.decisions)
                outcome.candidates += (len(run.decisions) + run.unreachable) * count
                outcome.unreachable_steps += run.unreachable
                outcome.rejected_chunks += run.rejected_chunks
                outcome.stopped += bool(run.stopped)
                advance(f"{mode} {seed}: {episode.best:.3f}")
    return found


def summary(found: Mapping[str, Outcome], robot: Embodiment) -> dict[str, Any]:
    """The figures of every seam, and paired differences of the result from ``switch``."""
    modes = {}
    for mode, outcome in found.items():
        interval = bootstrap_mean(outcome.results)
        gain = bootstrap_mean(np.subtract(outcome.results, found["switch"].results))
        every = {name: joined(items) for name, items in outcome.jumps.items()}
        modes[mode] = {
            "mean": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "success": float(np.mean(outcome.successes)),
            "paired_to_switch": {"mean": gain.mean, "ci_low": gain.low, "ci_high": gain.high},
            "results": outcome.results,
            "decisions": outcome.decisions,
            "reachable": outcome.reachable / max(1, outcome.candidates),
            "unreachable_steps": outcome.unreachable_steps,
            "rejected_chunks": outcome.rejected_chunks,
            "stopped": outcome.stopped,
            "units": {
                unit: {name: _of_unit(item, columns) for name, item in every.items()}
                for unit, columns in joints_by_unit(robot).items()
            },
            "joints": {name: figures(item, robot) for name, item in every.items()},
        }
    return modes


def _of_unit(found: Jumps, columns: Sequence[int]) -> dict[str, Any]:
    """Jumps of all joints of one unit together."""
    across, within = found.across[:, columns], found.within[:, columns]
    return {
        "across_rms": known(rms(across, (0, 1))),
        "across_max": float(np.abs(across).max(initial=0.0)),
        "within_rms": known(rms(within, (0, 1))),
        "within_max": float(np.abs(within).max(initial=0.0)),
        "all_rms": known(rms(np.concatenate([across, within]), (0, 1))),
        "profile_rms": [known(value) for value in rms(found.profile[:, :, columns], (0, 2))],
    }


def print_table(document: Mapping[str, Any], measure_name: str) -> None:
    """Print the figures for a person."""
    console = Console()
    table = Table(
        title=f"{document['task']}, {len(document['seeds'])} seeds, {document['planner']}"
    )
    headings = ("95 %", "success", "minus switch", "reachable", "steps without", "refused")
    for heading in ("seam", measure_name, *headings):
        table.add_column(heading, justify="left" if heading == "seam" else "right")
    for mode, row in document["modes"].items():
        gain = row["paired_to_switch"]
        table.add_row(
            mode,
            f"{row['mean']:.3f}",
            f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
            f"{100 * row['success']:.0f} %",
            f"{gain['mean']:+.3f} ({gain['ci_low']:+.3f} to {gain['ci_high']:+.3f})",
            f"{100 * row['reachable']:.1f} %",
            str(row["unreachable_steps"]),
            f"{row['rejected_chunks']} of {row['decisions']}",
        )
    console.print(table)
    for name in QUANTITIES:
        table = Table(title=f"jumps of the set-point {name}")
        for heading in ("seam", "joints", "across rms", "max", "within rms", "max", "all rms"):
            table.add_column(heading, justify="left" if heading in ("seam", "joints") else "right")
        for mode, row in document["modes"].items():
            for unit, found in row["units"].items():
                cells = ("across_rms", "across_max", "within_rms", "within_max", "all_rms")
                values = (_shown(found[name][cell]) for cell in cells)
                table.add_row(mode, f"{unit}/{PER[name]}", *values)
        console.print(table)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def plot(document: Mapping[str, Any], measure_name: str, file: Path) -> None:
    """Result and jumps around a seam, as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    modes = document["modes"]
    unit = next(iter(next(iter(modes.values()))["units"]))
    figure, axes = plt.subplots(1, 3, figsize=(10.0, 3.0), width_ratios=(0.8, 1.0, 1.0))
    for index, (mode, row) in enumerate(modes.items()):
        low, high = row["mean"] - row["ci_low"], row["ci_high"] - row["mean"]
        axes[0].errorbar(index, row["mean"], [[low], [high]], fmt="o", capsize=4)
        for axis, name in zip(axes[1:], QUANTITIES, strict=True):
            profile = np.array(row["units"][unit][name]["profile_rms"], dtype=np.float64)
            axis.plot(list(PROFILE), profile, marker=".", label=mode)
    axes[0].set_xticks(range(len(modes)), [mode.replace("_", "\n") for mode in modes])
    axes[0].set_xlim(-0.5, len(modes) - 0.5)
    axes[0].set_ylabel(measure_name)
    for axis, name in zip(axes[1:], QUANTITIES, strict=True):
        axis.set_ylim(bottom=0.0)
        axis.set_xticks(range(PROFILE.start + 1, PROFILE.stop, 2))
        axis.set_xlabel("steps after the first set-point of a chunk")
        axis.set_ylabel(f"rms jump of {name}, {unit}/{PER[name]}")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(modes), frameon=False)
    title = f"{document['task']}: {len(document['seeds'])} seeds, planner {document['planner']}"
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize="medium")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def main() -> None:
    """Measure, print the tables, write JSON and the figure."""
    own = SeamSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--task", choices=tuple(TASKS), default="pusht")
    parser.add_argument("--planner", choices=("first", "random", "scored"), default="")
    parser.add_argument("--seeds", type=int, default=9000, help="consecutive from here")
    parser.add_argument("--episodes", type=int, default=20, help="number of seeds")
    parser.add_argument("--latency-steps", type=int, default=-1, help="-1: the task's")
    parser.add_argument("--execute-steps", type=int, default=0, help="between plans; 0: the task's")
    parser.add_argument("--candidates", type=int, default=0, help="of the policy; 0: the task's")
    parser.add_argument("--steps", type=int, default=0, help="longest episode; 0: the task's")
    parser.add_argument("--policy", default="", help="LeRobot folder; empty: the shipped one")
    parser.add_argument("--seam-duration", type=float, default=own.duration, help="s, of a blend")
    parser.add_argument("--ensemble-coefficient", type=float, default=own.coefficient)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    spec = TASKS[args.task]
    seeds = range(args.seeds, args.seeds + args.episodes)
    check_unseen(seeds)
    planner = args.planner or ("scored" if args.task == "pusht" else "first")
    settings = replace(
        spec.settings,
        policy=args.policy or spec.settings.policy,
        candidates=args.candidates or spec.settings.candidates,
        latency_steps=spec.latency_steps if args.latency_steps < 0 else args.latency_steps,
        execute_steps=args.execute_steps or spec.execute_steps,
        steps=args.steps,
        seam=SeamSettings(own.mode, args.seam_duration, args.ensemble_coefficient),
    )
    torch.set_num_threads(1)
    models = load_models(settings, (planner,))
    found = measure(models, planner, settings, seeds)
    document = {
        "task": args.task,
        "planner": planner,
        "measure": spec.measure,
        "seeds": list(seeds),
        "latency_steps": settings.latency_steps,
        "execute_steps": settings.execute_steps,
        "candidates": settings.candidates if planner != "first" else 1,
        "seam_duration": settings.seam.duration,
        "ensemble_coefficient": settings.seam.coefficient,
        "profile_steps": list(PROFILE),
        "modes": summary(found, models.embodiment),
    }
    print_table(document, spec.measure)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(document, spec.measure, args.plot)


if __name__ == "__main__":
    main()
