"""Compare planners over simulated episodes of PushT or ALOHA, closed loop, without ROS.

The simulator waits for every decision; observation window, policy, world model, choice and safety
gate are those of the nodes. An interrupted evaluation goes on with the same command.

``--backend gazebo`` runs PushT's episodes in Gazebo instead, with the live nodes, where it is
installed: time passes while they think.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation import live, results
from worldforge_ros.evaluation.engines import ENGINES
from worldforge_ros.evaluation.lockstep import REFINE, Settings
from worldforge_ros.evaluation.planners import PLANNERS
from worldforge_ros.evaluation.protocols import PROTOCOLS, check_unseen
from worldforge_ros.evaluation.runner import (
    EPISODES_FILE,
    SETTINGS_FILE,
    Finished,
    Record,
    run_all,
)
from worldforge_ros.planning.seam import SEAMS, SeamSettings
from worldforge_ros.planning.search import SearchSettings
from worldforge_ros.recording.progress import track

BACKENDS = ("lockstep", "gazebo")

FILES = (EPISODES_FILE, SETTINGS_FILE, *results.FILES)
"""What an evaluation writes into its folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge evaluate``; the defaults are PushT's."""
    own, search = Settings(), SearchSettings()
    parser.add_argument(
        "--planner",
        action="extend",
        nargs="+",
        choices=PLANNERS,
        help="what to compare, may be repeated; all of them when left out",
    )
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default=own.protocol)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="lockstep",
        help="what runs the episodes: the built-in simulator in lockstep, or Gazebo and live nodes",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="with --backend gazebo: any other argument of `worldforge up gazebo`, may be repeated",
    )
    parser.add_argument("--episodes", type=int, default=20, help="number of seeds")
    parser.add_argument("--seeds", type=int, default=0, help="seeds are consecutive from here")
    parser.add_argument("--policy", default=own.policy, help="LeRobot folder")
    parser.add_argument("--world-model", default=own.world_model, help="LeWorldModel folder")
    parser.add_argument("--embodiment", default=own.embodiment, help="name or YAML file")
    parser.add_argument("--candidates", type=int, default=own.candidates, help="of the policy")
    parser.add_argument(
        "--horizon", type=int, default=own.horizon, help="actions of a candidate; 0: the most"
    )
    parser.add_argument(
        "--execute-steps", type=int, default=0, help="steps between two plans; 0: the protocol's"
    )
    parser.add_argument(
        "--search-execute-steps", type=int, default=0, help="the same for cem; 0: the protocol's"
    )
    parser.add_argument(
        "--latency-steps",
        type=int,
        default=own.latency_steps,
        help="steps until a decision takes effect, as a live system has; 0: at once",
    )
    parser.add_argument(
        "--seam", choices=SEAMS, default=own.seam.mode, help="how a new plan takes over"
    )
    parser.add_argument(
        "--seam-duration", type=float, default=own.seam.duration, help="seconds of a blend"
    )
    parser.add_argument(
        "--ensemble-coefficient",
        type=float,
        default=own.seam.coefficient,
        help="of a temporal ensemble: prediction i from the oldest weighs exp(-this * i)",
    )
    parser.add_argument(
        "--extra-sources",
        nargs="+",
        choices=("hold", "tail"),
        default=[],
        help="candidates beside those of the planner",
    )
    parser.add_argument("--steps", type=int, default=0, help="longest episode; 0: the protocol's")
    parser.add_argument("--objective", default="", help="of the world model; empty: its default")
    parser.add_argument("--search-samples", type=int, default=search.samples, help="of cem")
    parser.add_argument("--search-iterations", type=int, default=search.iterations, help="of cem")
    parser.add_argument("--search-elites", type=int, default=search.elites, help="of cem")
    parser.add_argument("--search-blocks", type=int, default=search.blocks, help="horizon of cem")
    parser.add_argument(
        "--search-correlation",
        type=float,
        default=search.correlation,
        help="of cem: of the noise of one step with that of the next, 0 to 1",
    )
    parser.add_argument("--refine-samples", type=int, default=REFINE.samples, help="of cem+policy")
    parser.add_argument(
        "--refine-iterations", type=int, default=REFINE.iterations, help="of cem+policy"
    )
    parser.add_argument("--refine-elites", type=int, default=REFINE.elites, help="of cem+policy")
    parser.add_argument(
        "--refine-spread",
        type=float,
        default=REFINE.spread,
        help="of cem+policy: times the standard deviation of the policy's cheapest candidates",
    )
    parser.add_argument(
        "--num-inference-steps", type=int, default=None, help="denoising steps of the policy"
    )
    parser.add_argument(
        "--spearman",
        action="store_true",
        help="also correlate costs with the true outcome of every candidate (slow)",
    )
    parser.add_argument("--device", default=own.device)
    parser.add_argument("--threads", type=int, default=own.threads, help="of each process")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="ray: pip install ray")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes, or Ray's CPUs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder for results.json, episodes.parquet and plots; the same one resumes "
        "(runs/evaluate-PROTOCOL, with -gazebo behind it for that backend)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the evaluation in the folder and start anew"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files; 0 on success."""
    settings = _settings(args)
    # Only PushT has a true outcome for an oracle to compare with.
    simulated = args.backend == "lockstep" and args.protocol != "transfer"
    every = [name for name in PLANNERS if name != "oracle" or simulated]
    planners = tuple(dict.fromkeys(args.planner or every))
    seeds = range(args.seeds, args.seeds + args.episodes)
    given = _given(args)
    if args.backend == "gazebo":
        live.check(planners, settings, given)
    name = args.protocol if args.backend == "lockstep" else f"{args.protocol}-{args.backend}"
    folder = args.out or Path("runs") / f"evaluate-{name}"
    if args.fresh and folder.is_dir():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    record = Record(folder, settings, planners, args.backend, given)

    def work(step: Callable[[Finished], None]) -> None:
        if args.backend == "gazebo":
            live.run_all(planners, seeds, settings, given, record, folder, step)
        else:
            run_all(
                planners, seeds, settings, record, engine=args.engine, jobs=args.jobs, advance=step
            )

    finished = _evaluate(record, planners, seeds, work)
    figures = results.summarise(finished, record.settings, seeds)
    paths = results.write(folder, figures, finished)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths[0], args.json)
    results.print_table(figures)
    print("wrote " + ", ".join(str(path) for path in paths))
    return 0


def _evaluate(
    record: Record,
    planners: tuple[str, ...],
    seeds: Iterable[int],
    work: Callable[[Callable[[Finished], None]], None],
) -> list[Finished]:
    wanted = [(planner, seed) for seed in seeds for planner in planners]
    there = {(f.result.planner, f.result.seed) for f in record.finished}
    done = sum(item in there for item in wanted)
    try:
        with track("episodes", len(wanted), done) as advance:

            def step(finished: Finished) -> None:
                result = finished.result
                advance(f"{result.planner} {result.seed}: {result.measure:.3f}")

            work(step)
    finally:
        record.close()
    return record.finished


def _given(args: argparse.Namespace) -> dict[str, str]:
    """Arguments of the live bring-up, from ``--set``."""
    if args.set and args.backend == "lockstep":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "--set", found="given", expected="--backend gazebo with it"
        )
    given: dict[str, str] = {}
    for item in args.set:
        name, separator, value = item.partition(":=")
        if not separator or name in given:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "--set",
                found=repr(item),
                expected="NAME:=VALUE, each name once",
            )
        given[name] = value
    return given


def _settings(args: argparse.Namespace) -> Settings:
    for name in ("latency_steps", "execute_steps", "search_execute_steps", "steps", "seeds"):
        _at_least(args, name, 0)
    for name in ("episodes", "candidates", "jobs"):
        _at_least(args, name, 1)
    check_unseen(range(args.seeds, args.seeds + args.episodes))
    return Settings(
        protocol=args.protocol,
        policy=args.policy,
        world_model=args.world_model,
        embodiment=args.embodiment,
        candidates=args.candidates,
        horizon=args.horizon,
        execute_steps=args.execute_steps,
        search_execute_steps=args.search_execute_steps,
        latency_steps=args.latency_steps,
        steps=args.steps,
        objective=args.objective,
        spearman=args.spearman,
        search=SearchSettings(
            samples=args.search_samples,
            iterations=args.search_iterations,
            elites=args.search_elites,
            blocks=args.search_blocks,
            correlation=args.search_correlation,
        ),
        refine=replace(
            REFINE,
            samples=args.refine_samples,
            iterations=args.refine_iterations,
            elites=args.refine_elites,
            spread=args.refine_spread,
        ),
        device=args.device,
        threads=args.threads,
        num_inference_steps=args.num_inference_steps,
        seam=SeamSettings(args.seam, args.seam_duration, args.ensemble_coefficient),
        extra_sources=tuple(args.extra_sources),
    )


def _at_least(args: argparse.Namespace, name: str, least: int) -> None:
    value: Any = getattr(args, name)
    if value < least:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"--{name.replace('_', '-')}",
            found=value,
            expected=f"{least} or more",
        )
