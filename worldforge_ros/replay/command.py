"""Evaluate a planner on recorded bags: the nodes' own observation, policy, world model, planner and
gate, without ROS and without a wall clock.

The same bags, settings and checkpoints give the same report, byte for byte. Bags that were replayed
before with the same settings are not replayed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldforge_ros.bags.actions import SOURCES as ACTION_SOURCES
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.engines import ENGINES, run_tasks
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.recording.progress import track
from worldforge_ros.replay import manifest, thresholds
from worldforge_ros.replay.settings import OBSERVATIONS, PLANNERS, TIMING, ReplaySettings
from worldforge_ros.resources import PACKAGE, resolve_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worldforge_ros.evaluation.planners import Models

REPORT = "report.json"
PAGE = "report.html"
MANIFEST = "manifest.json"
EPISODES = "episodes"
ENGINE_VERSION = 1
"""Raised when the same settings would give another document: what was replayed before is stale."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge replay``."""
    own = ReplaySettings()
    parser.add_argument("bags", nargs="*", type=Path, metavar="BAG", help="rosbag2 folder or file")
    parser.add_argument("--embodiment", default=own.embodiment, help="name or YAML file")
    parser.add_argument("--planner", choices=PLANNERS, default=own.planner)
    parser.add_argument("--policy", help="LeRobot folder; models/EMBODIMENT/policy if left out")
    parser.add_argument(
        "--world-model", help="world model folder; models/EMBODIMENT/world_model if left out"
    )
    parser.add_argument(
        "--candidates", type=int, default=0, help="of the policy; 0: the parameter file's, else 32"
    )
    parser.add_argument(
        "--horizon", type=int, default=0, help="actions of a candidate; 0: the most"
    )
    parser.add_argument(
        "--seed", type=int, default=own.seed, help="-1: as recorded, 0 where nothing says so"
    )
    parser.add_argument(
        "--observations",
        choices=OBSERVATIONS,
        default=own.observations,
        help="recorded ready-made, or made again from pictures and joint states",
    )
    parser.add_argument(
        "--timing",
        choices=TIMING,
        default=own.timing,
        help="when plans begin and arrive: as recorded, or every replan_period with --latency",
    )
    parser.add_argument(
        "--latency",
        type=float,
        default=own.latency,
        help="s from an observation to the chunk planned from it, with fixed timing",
    )
    parser.add_argument(
        "--actions",
        choices=ACTION_SOURCES,
        default=own.actions,
        help="what tells what the joints were told",
    )
    parser.add_argument("--objective", default="", help="of the world model; empty: its default")
    parser.add_argument("--goal", default="", help="picture, for bags without a goal")
    parser.add_argument(
        "--params-file",
        help="ROS parameter file of the nodes; config/params/EMBODIMENT.yaml if left out",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.PARAMETER=VALUE",
        help="one parameter over the file's, such as planner_node.seam=blend",
    )
    parser.add_argument("--namespace", default="", help="of the recorded topics")
    parser.add_argument(
        "--remap", action="append", default=[], metavar="OURS:=BAG'S", help="one topic's other name"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="show two finished replays (folders) side by side instead of replaying",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit status 1 when it holds, such as 'gate.false_reject_rate > 0.01'",
    )
    parser.add_argument("--device", default=own.device)
    parser.add_argument("--threads", type=int, default=own.threads, help="of each process")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="ray: pip install ray")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes, or Ray's CPUs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/replay"), help="folder; the same one resumes"
    )
    parser.add_argument("--fresh", action="store_true", help="replay again what was replayed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write report.json here")


def run(args: argparse.Namespace) -> int:
    """Replay, print, write; 0 on success, 1 when a condition of ``--fail-if`` holds."""
    if args.compare:
        return _compare(args)
    if not args.bags:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "BAG",
            found="none",
            expected="one bag or more, or --compare",
        )
    if args.jobs < 1:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "--jobs", found=args.jobs, expected="1 or more")
    conditions = [thresholds.parse(text) for text in args.fail_if]
    settings = _settings(args)
    started = manifest.now()
    documents = _replayed(args, settings)
    _require_one(documents)
    from worldforge_ros.replay import html, markdown, summary

    described = settings.document()
    report = summary.summarise(documents, manifest.provenance(described))
    failing = thresholds.failing(report, conditions)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / REPORT
    file.write_text(_json(report), encoding="utf-8")
    page = html.write_html(args.out / PAGE, report, documents)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, args.json)
    manifest.write_manifest(
        args.out / MANIFEST,
        command="replay",
        settings=described,
        inputs=args.bags,
        outputs=[file, page],
        started=started,
    )
    print(markdown.markdown(report))
    print(f"wrote {page}, {file}")
    for line in failing:
        print(f"worldforge: {line}", file=sys.stderr)
    return 1 if failing else 0


def _settings(args: argparse.Namespace) -> ReplaySettings:
    for name in ("candidates", "horizon"):
        if getattr(args, name) < 0:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"--{name}",
                found=getattr(args, name),
                expected="0 or more",
            )
    robot = load_embodiment(args.embodiment).name
    shipped = f"package://{PACKAGE}"
    params = args.params_file
    if params is None:
        params = f"{shipped}/config/params/{robot}.yaml"
        params = params if resolve_path(params).is_file() else ""
    return ReplaySettings(
        embodiment=args.embodiment,
        planner=args.planner,
        policy=args.policy or f"{shipped}/models/{robot}/policy",
        world_model=args.world_model or f"{shipped}/models/{robot}/world_model",
        candidates=args.candidates,
        horizon=args.horizon,
        seed=args.seed,
        observations=args.observations,
        timing=args.timing,
        latency=args.latency,
        actions=args.actions,
        objective=args.objective,
        goal=args.goal,
        params_file=params,
        parameters=tuple(_pair(text, "=", "--set") for text in args.set),
        remap=tuple(_pair(text, ":=", "--remap") for text in args.remap),
        namespace=args.namespace,
        device=args.device,
        threads=args.threads,
    )


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, option, found=repr(text), expected=f"NAME{separator}VALUE"
        )
    return name, value


@dataclass(frozen=True)
class _Task:
    """One bag; ``file`` is where its document goes."""

    bag: Path
    file: Path
    settings: ReplaySettings


@lru_cache(maxsize=1)
def _loaded(settings: ReplaySettings) -> tuple[Models, int]:
    """Models of this process, and the blocks that the world model is believed."""
    from worldforge_ros.scorers.cards import drift_horizon_of

    models = settings.load(load_embodiment(settings.embodiment))
    horizon = 0
    if models.scorer is not None:
        horizon = drift_horizon_of(str(resolve_path(settings.world_model)), models.embodiment)
    return models, horizon


def _replay(task: _Task, advance: Callable[[float], None] = lambda seconds: None) -> dict[str, Any]:
    """The document of one bag, on disk when this returns."""
    from worldforge_ros.replay.engine import failed_document, replay_bag

    models, horizon = _loaded(task.settings)
    try:
        document = replay_bag(task.bag, task.settings, models, horizon, advance)
    except WorldForgeError as error:
        if error.code is ErrorCode.INVALID_ARGUMENT:
            raise
        return failed_document(task.bag, error)
    partial = task.file.with_suffix(".partial")
    partial.write_text(_json(document), encoding="utf-8")
    partial.replace(task.file)
    # As a later call will read it, so that a report does not depend on which of them wrote it.
    found: dict[str, Any] = json.loads(task.file.read_text(encoding="utf-8"))
    return found


def _replayed(args: argparse.Namespace, settings: ReplaySettings) -> list[dict[str, Any]]:
    """The documents of the bags, in their order."""
    from worldforge_ros.replay.engine import failed_document

    folder = args.out / EPISODES
    folder.mkdir(parents=True, exist_ok=True)
    key = _json([ENGINE_VERSION, settings.document()])
    seconds: dict[Path, int] = {}
    tasks: list[_Task] = []
    there: dict[Path, dict[str, Any]] = {}
    for bag in dict.fromkeys(args.bags):
        try:
            digest, seconds[bag] = _identity(bag)
        except WorldForgeError as error:
            # No need to load a model for this.
            there[bag], seconds[bag] = failed_document(bag, error), 0
            continue
        name = hashlib.sha256(f"{key}{digest}".encode()).hexdigest()[:16]
        file = folder / f"{bag.name}-{name}.json"
        if file.is_file() and not args.fresh:
            there[bag] = json.loads(file.read_text(encoding="utf-8"))
        else:
            tasks.append(_Task(bag, file, settings))
    done = sum(seconds[bag] for bag in there)
    total = sum(seconds.values())
    with _progress(total, done) as advance:
        if args.engine == "local" and (args.jobs == 1 or len(tasks) == 1):
            for task in tasks:
                there[task.bag] = _replay(task, advance(task.bag, seconds[task.bag]))
        else:
            jobs = min(args.jobs, max(len(tasks), 1))
            for bag, document in run_tasks(_named, tasks, engine=args.engine, jobs=jobs):
                there[bag] = document
                advance(bag, seconds[bag])(float(seconds[bag]))
    return [there[bag] for bag in dict.fromkeys(args.bags)]


def _named(task: _Task) -> tuple[Path, dict[str, Any]]:
    return task.bag, _replay(task)


def _identity(bag: Path) -> tuple[str, int]:
    """Hash and whole seconds of a bag.

    :raises WorldForgeError: when it cannot be opened.
    """
    from worldforge_ros.bags.reader import Bag

    with Bag.open(bag) as opened:
        return opened.sha256(), max(1, round((opened.end - opened.start) / NANOSECONDS))


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[Path, int], Callable[[float], None]]]:
    """Progress in seconds of the recordings; the result makes the ``advance`` of one bag."""
    with track("seconds of recording", max(total, 1), done) as step:

        def of(bag: Path, seconds: int) -> Callable[[float], None]:
            shown = 0

            def advance(now: float) -> None:
                nonlocal shown
                while shown < min(int(now), seconds):
                    shown += 1
                    step(bag.name)

            return advance

        yield of


def _require_one(documents: Sequence[Mapping[str, Any]]) -> None:
    failures = [document["failed"] for document in documents if document.get("failed")]
    if len(failures) < len(documents):
        return
    others = f" (and {len(failures) - 1} more bags failed)" if len(failures) > 1 else ""
    raise WorldForgeError(ErrorCode(failures[0]["code"]), failures[0]["message"] + others)


def _compare(args: argparse.Namespace) -> int:
    from worldforge_ros.replay import compare

    reports = []
    for path in args.compare:
        file = path / REPORT if path.is_dir() else path
        try:
            reports.append((path.name, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "--compare",
                found=f"{file} ({error})",
                expected=f"a folder with {REPORT} of a replay",
            ) from error
    document = compare.compare(reports)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "compare.json"
    file.write_text(_json(document), encoding="utf-8")
    page = compare.write_compare_html(args.out / "compare.html", document)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, args.json)
    print(compare.compare_markdown(document))
    print(f"wrote {page}, {file}")
    return 0


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
