"""``worldforge``: bring-up, demonstration, training, evaluation and benchmarks for people.

Heavy packages (torch, rclpy) are imported by the command that needs them, so that ``--help`` is
instant and works without them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worldforge_ros import __version__
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

TASKS = ("pusht",)
TRAINING = {
    "demos": "demos",
    "keypoints": "keypoints",
    "policy": "policy",
    "world-model": "world_model",
    "predictor": "predictor",
}
"""What can be trained, and the module of ``worldforge_ros.training`` that does it."""

Runner = Callable[[argparse.Namespace, list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 1 on an error with a code, 2 for wrong usage, 128 + n on signal n.

    With ``--json`` the result, or the error, is one JSON object: the last line on stdout.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    runner: Runner | None = getattr(parsed, "runner", None)
    if runner is None:
        parser.print_help()
        return EXIT_USAGE
    try:
        return runner(parsed, rest)
    except WorldForgeError as error:
        print(f"worldforge: {error}", file=sys.stderr)
        if "--json" in arguments:
            print(json.dumps({"error_code": str(error.code), "message": error.message}))
        return EXIT_USAGE if error.code is ErrorCode.INVALID_ARGUMENT else EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads stdout any more (`| head`); Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldforge",
        description="Policies propose, world models score, the planner chooses, the gate decides.",
        epilog="Example: worldforge demo pusht --duration 30",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    up = _command(
        commands,
        "up",
        _run_up,
        "bring up a task: all nodes, supervised",
        "worldforge up pusht num_candidates:=16 rate:=0.5",
        add_help=False,
    )
    up.add_argument("task", nargs="?", choices=TASKS)

    demo = _command(
        commands,
        "demo",
        _run_demo,
        "run one episode and write its report",
        "worldforge demo pusht --duration 30 --seed 3 --out runs/mine",
    )
    _demo_arguments(demo)
    demo.add_argument("--json", action="store_true", help="print summary.json as the last line")

    train = _command(
        commands,
        "train",
        _run_train,
        "make demonstrations, train a policy or a world model",
        "worldforge train policy pusht --help",
        add_help=False,
    )
    train.add_argument("what", nargs="?", choices=tuple(TRAINING))
    train.add_argument("task", nargs="?", choices=TASKS)

    evaluate = _command(
        commands,
        "evaluate",
        _run_evaluate,
        "compare planners over many simulated episodes",
        "worldforge evaluate pusht --help",
        add_help=False,
    )
    evaluate.add_argument("task", nargs="?", choices=TASKS)

    quality = _command(
        commands,
        "quality",
        _run_quality,
        "how good a world model is: linear probe, drift, ranking by objective",
        "worldforge quality pusht --seeds 5000",
        add_help=False,
    )
    quality.add_argument("task", nargs="?", choices=TASKS)

    bench = _command(
        commands,
        "bench",
        _run_bench,
        "latency of every stage from one episode, and the shares of ROS and of the models",
        "worldforge bench pusht --duration 20 --json latency.json",
    )
    _demo_arguments(bench)
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")

    doctor = _command(
        commands,
        "doctor",
        _run_doctor,
        "is everything there that scoring needs: modules, settings, checkpoint, device",
        "worldforge doctor --model-path /path/to/checkpoint",
    )
    doctor.add_argument("--embodiment", default="pusht", help="name or path of the file (pusht)")
    doctor.add_argument("--scorer", default="lewm", help="lewm or jepa_wms (lewm)")
    for name, text in (
        ("model-path", "checkpoint, as the parameter of score_node"),
        ("cache-dir", "folder that run names are relative to"),
        ("repository", "jepa_wms: folder, or owner/name:commit"),
        ("device", "torch device"),
        ("sha256", "SHA-256 that the weights must have"),
        ("backend", "torch, openvino or upstream"),
        ("objective", "how the last latent is compared with the goal"),
        ("precision", "float32 or bfloat16"),
    ):
        doctor.add_argument(f"--{name}", default="", help=text)
    doctor.add_argument(
        "--proprio-weight",
        type=float,
        default=0.1,
        help="jepa_wms: weight of joint state (0.1)",
    )
    doctor.add_argument(
        "--goal-proprio",
        type=float,
        nargs="*",
        default=[],
        help="jepa_wms: the goal's joint state",
    )
    doctor.add_argument(
        "--trust-repository", action="store_true", help="jepa_wms: allow its code to run"
    )
    doctor.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )

    version = _command(
        commands, "version", _run_version, "versions of everything involved", "worldforge version"
    )
    version.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _command(
    commands: Any, name: str, runner: Runner, text: str, example: str, add_help: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"Example: {example}",
        add_help=add_help,
        allow_abbrev=False,
    )
    parser.set_defaults(runner=runner, prog=parser.prog, summary=text, example=example)
    return parser


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--duration", type=float, default=30.0, help="longest episode in simulated seconds (30)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the episode (0)")
    parser.add_argument(
        "--rate",
        type=float,
        default=1.0,
        help="simulation speed against real time (1); lower it where the models are too slow",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=32,
        help="action chunks proposed and scored in a cycle (32)",
    )
    parser.add_argument("--out", type=Path, help="folder to write (runs/<time>)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="any other argument of `worldforge up`, may be repeated",
    )
    parser.add_argument("--verbose", action="store_true", help="show every line of every node")


def _no_rest(rest: list[str]) -> None:
    if rest:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "arguments", found=rest, expected="only known options"
        )


def _wants_help(rest: list[str]) -> bool:
    return "-h" in rest or "--help" in rest


def _run_up(parsed: argparse.Namespace, rest: list[str]) -> int:
    if parsed.task is None or _wants_help(rest):
        print(_up_help(parsed))
        return EXIT_OK if _wants_help(rest) else EXIT_USAGE
    as_json = "--json" in rest
    quiet = "--quiet" in rest
    given = assignments([item for item in rest if item not in ("--json", "--quiet")])
    return _supervise(parsed.task, given, quiet=quiet, as_json=as_json)


def _up_help(parsed: argparse.Namespace) -> str:
    from worldforge_ros.bringup import TASKS as BRINGUPS

    lines = [
        "usage: worldforge up TASK [NAME:=VALUE ...] [--quiet] [--json]",
        "",
        f"{parsed.summary[0].upper()}{parsed.summary[1:]}.",
        "--NAME VALUE is the same as NAME:=VALUE.",
        "Ctrl-C stops everything; a process that dies is named and the others are stopped.",
        "",
        "  --quiet  leave out INFO and DEBUG lines",
        "  --json   print how every process ended, as the last line",
    ]
    for task, (table, text) in BRINGUPS.items():
        lines += ["", f"{task}: {text}"]
        for argument in table:
            choices = f" [{'|'.join(argument.choices)}]" if argument.choices else ""
            lines.append(f"  {argument.name}:={argument.default}{choices}")
            lines.append(f"      {argument.description}")
    return "\n".join([*lines, "", f"Example: {parsed.example}"])


def assignments(items: Sequence[str]) -> dict[str, str]:
    """``name:=value``, ``--name value`` and ``--name=value`` as a mapping; ``-`` in names is ``_``.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for anything else, and for a name given twice.
    """
    given: dict[str, str] = {}
    queue = list(items)
    while queue:
        item = queue.pop(0)
        if item.startswith("--"):
            name, equals, value = item[2:].partition("=")
            if not equals:
                if not queue or queue[0].startswith("--") or ":=" in queue[0]:
                    raise mismatch(
                        ErrorCode.INVALID_ARGUMENT, item, found="without a value", expected="one"
                    )
                value = queue.pop(0)
        else:
            name, equals, value = item.partition(":=")
            if not equals:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    "argument",
                    found=repr(item),
                    expected="NAME:=VALUE or --NAME VALUE",
                )
        name = name.replace("-", "_")
        if name in given:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, f"argument {name}", found="given twice", expected="once"
            )
        given[name] = value
    return given


def _supervise(
    task: str,
    arguments: dict[str, str],
    *,
    quiet: bool,
    as_json: bool = False,
    log_dir: Path | None = None,
) -> int:
    from worldforge_ros.bringup import pusht_bringup
    from worldforge_ros.supervisor import Console, Supervisor, node_command

    specs = {"pusht": pusht_bringup}[task](arguments)
    # Between two runs on one machine nothing may mix; a user who wants a network says so.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    width = max(len(spec.name) for spec in specs)
    console = Console(sys.stdout, width=width, quiet=quiet)
    outcome = Supervisor(
        [node_command(spec) for spec in specs], console=console, log_dir=log_dir
    ).run()
    if as_json:
        endings = [
            {"name": e.name, "pid": e.pid, "status": e.status, "signal": e.signal, "asked": e.asked}
            for e in outcome.endings
        ]
        print(
            json.dumps({"status": outcome.status, "reason": outcome.reason, "processes": endings})
        )
    return outcome.status


def _run_demo(parsed: argparse.Namespace, rest: list[str]) -> int:
    _no_rest(rest)
    status, folder = _episode(parsed)
    if parsed.json and (folder / "summary.json").is_file():
        print(json.dumps(json.loads((folder / "summary.json").read_text(encoding="utf-8"))))
    return status


def _episode(parsed: argparse.Namespace) -> tuple[int, Path]:
    folder = parsed.out or Path("runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    arguments = assignments(parsed.set)
    fixed = {
        "duration": str(parsed.duration),
        "seed": str(parsed.seed),
        "rate": str(parsed.rate),
        "num_candidates": str(parsed.candidates),
        "output_dir": str(folder),
        "record": "true",
    }
    both = sorted(set(arguments) & set(fixed))
    if both:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, f"--set {both[0]}", found="given", expected="the option"
        )
    if "ROS_DOMAIN_ID" not in os.environ:
        # An episode is a closed world: nodes of another run on this machine must not take part.
        os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
        print(f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}", flush=True)
    status = _supervise(
        parsed.task,
        {**arguments, **fixed},
        quiet=not parsed.verbose,
        log_dir=folder / "logs",
    )
    return status, folder


def _run_bench(parsed: argparse.Namespace, rest: list[str]) -> int:
    from worldforge_ros.recording.summary import latency_rows

    _no_rest(rest)
    status, folder = _episode(parsed)
    if status != EXIT_OK:
        return status
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    result = {
        "rows": latency_rows(summary),
        "deadline_misses": summary["deadline_misses"],
        "realtime_factor": summary["realtime_factor"],
        "counts": summary["counts"],
        "versions": summary["versions"],
        "distro": summary["distro"],
    }
    print(f"\n{bench_text(result)}")
    if parsed.json is not None:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return EXIT_OK


def bench_text(result: dict[str, Any]) -> str:
    """The latency rows as text, with the shares of ROS and of the models in percent."""
    from worldforge_ros.recording.summary import clock_note

    header = f"{'stage':<22}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}{'ROS':>8}{'model':>8}"
    lines = [header, "-" * len(header)]
    for row in result["rows"]:
        cells = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("p50", "p95", "max")]
        share = row.get("model_share")
        shares = ["-", "-"] if share is None else [f"{1 - share:.0%}", f"{share:.0%}"]
        lines.append(
            f"{row['stage']:<22}"
            + "".join(f"{cell:>9}" for cell in cells)
            + "".join(f"{cell:>8}" for cell in shares)
        )
    note = clock_note(result)
    return "\n".join([*lines, f"({note})"] if note else lines)


def _run_train(parsed: argparse.Namespace, rest: list[str]) -> int:
    if parsed.what is None:
        print("usage: worldforge train {" + ",".join(TRAINING) + "} {" + ",".join(TASKS) + "} ...")
        print(f"\n{parsed.summary[0].upper()}{parsed.summary[1:]}.\n\nExample: {parsed.example}")
        return EXIT_OK if _wants_help(rest) else EXIT_USAGE
    module = f"worldforge_ros.training.{TRAINING[parsed.what]}"
    return _delegate(module, f"{parsed.prog} {parsed.what}", parsed, rest)


def _run_evaluate(parsed: argparse.Namespace, rest: list[str]) -> int:
    return _delegate("worldforge_ros.evaluation.command", parsed.prog, parsed, rest)


def _run_quality(parsed: argparse.Namespace, rest: list[str]) -> int:
    return _delegate("worldforge_ros.evaluation.quality", parsed.prog, parsed, rest)


def _run_doctor(parsed: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from worldforge_ros.embodiment import load_embodiment
    from worldforge_ros.health import check_scorer
    from worldforge_ros.scorers.loading import scorer_config

    _no_rest(rest)
    given = {name: getattr(parsed, name) for name in ("model_path", "cache_dir", "repository")}
    config = scorer_config(
        parsed.scorer,
        {**given, "device": parsed.device},
        os.environ,
        sha256=parsed.sha256,
        backend=parsed.backend,
        objective=parsed.objective,
        precision=parsed.precision or "float32",
        proprio_weight=parsed.proprio_weight,
        goal_proprio=tuple(parsed.goal_proprio),
        trust_repository=parsed.trust_repository,
    )
    checks = check_scorer(config, load_embodiment(parsed.embodiment))
    table = Table("", "check", "finding", "code", box=None)
    for check in checks:
        mark = {"ok": "ok", "warning": "?", "error": "!"}[check.level]
        table.add_row(mark, check.name, check.message, check.code)
    Console().print(table)
    if parsed.json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))
    return EXIT_FAILED if any(check.level == "error" for check in checks) else EXIT_OK


def _delegate(name: str, prog: str, parsed: argparse.Namespace, rest: list[str]) -> int:
    """Run a module that has ``add_arguments(parser)`` and ``run(args) -> int``."""
    if parsed.task is None:
        print(f"usage: {prog} {{{','.join(TASKS)}}} ...\n\nExample: {prog} pusht --help")
        return EXIT_OK if _wants_help(rest) else EXIT_USAGE
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            f"python module {error.name}",
            found="absent",
            expected="installed" if error.name != name else "part of this package",
        ) from error
    parser = argparse.ArgumentParser(
        prog=f"{prog} {parsed.task}",
        description=(module.__doc__ or "").strip() or None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(rest)) or EXIT_OK)


def _run_version(parsed: argparse.Namespace, rest: list[str]) -> int:
    from worldforge_ros.recording.summary import distro, installed_versions

    _no_rest(rest)
    versions = {
        **installed_versions(),
        "worldforge_ros": __version__,
        "platform": platform.platform(),
        "distro": distro(),
    }
    if parsed.json:
        print(json.dumps(versions))
    else:
        for name, value in versions.items():
            print(f"{name:<20} {value}")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
