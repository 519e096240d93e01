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
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from worldforge_ros import __version__
from worldforge_ros.bringup import TASKS as BRINGUPS
from worldforge_ros.bringup import find_task
from worldforge_ros.completion import PLACES, SHELLS, script
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.sourced import ros_module

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

QUALITY = {"pusht": "", "aloha": "--embodiment aloha"}
"""Tasks whose world model ``worldforge quality`` measures, and the options that make it theirs."""
TRAINING: dict[str, dict[str, str]] = {
    "demos": {"pusht": "demos", "aloha": "aloha_demos"},
    "play": {"aloha": "aloha_play"},
    "keypoints": {"pusht": "keypoints", "aloha": "aloha_reader"},
    "policy": {"pusht": "policy", "aloha": "aloha_policy"},
    "world-model": {"pusht": "world_model", "aloha": "world_model --embodiment aloha"},
    "predictor": {"pusht": "predictor", "aloha": "predictor --embodiment aloha"},
}
"""What can be trained for which task: the module of ``worldforge_ros.training`` that does it, and
the options that make it the task's."""
TRAINING_EXAMPLES = {
    "demos": "--episodes 333",
    "play": "--kind play --start-seed 200000 --episodes 70",
    "keypoints": "--threads 2",
    "policy": "--steps 4250",
    "world-model": "--steps 6500 --state-weight 1",
    "predictor": "--steps 7000 --state-weight 2",
}
"""Options of the example that the help of each ends with."""

EVALUATION = {
    "pusht": "",
    "aloha": "--protocol transfer --embodiment aloha --candidates 8 --seam blend "
    "--policy package://worldforge_ros/models/aloha/policy "
    "--world-model package://worldforge_ros/models/aloha/world_model",
}
"""What can be evaluated in lockstep, and the options that make the evaluation the task's."""
OWN_MODULE = {
    "replay": (
        "worldforge_ros.replay.command",
        "evaluate a planner on recorded bags: policy, scores, gate, synchronisation",
        "worldforge replay bags/* --embodiment pusht --planner scored --out runs/replay",
    ),
    "record": (
        "worldforge_ros.bags.record_command",
        "write what the nodes see, plan and do to an MCAP bag",
        "worldforge record --embodiment pusht --out bags/first",
    ),
    "export": (
        "worldforge_ros.bags.export_command",
        "bags to a LeRobot data set, and back",
        "worldforge export bags/* --to-lerobot data/recorded",
    ),
    "drift": (
        "worldforge_ros.evaluation.drift_command",
        "how many steps ahead a world model may be believed, on recorded data",
        "worldforge drift bags/* --world-model models/pusht/world_model",
    ),
    "surprise": (
        "worldforge_ros.evaluation.surprise_command",
        "calibrate a world model's one-step prediction error on recorded data",
        "worldforge surprise bags/* --world-model models/pusht/world_model",
    ),
    "score": (
        "worldforge_ros.evaluation.score_command",
        "costs of candidates of your own: a table and a picture",
        "worldforge score --image seen.png --position 0.2 0.3 --goal goal.png --candidates c.npy",
    ),
    "top": (
        "worldforge_ros.monitor.command",
        "the running stack, live: topics, latencies, gate, candidates, nodes",
        "worldforge top --once --json",
    ),
}
"""Commands with a module of their own, which has ``add_arguments(parser)`` and
``run(args) -> int``."""
GATE_CALLS = {
    "arm": "arm the safety gate: approved chunks move the robot from now on",
    "disarm": "disarm the safety gate: nothing moves the robot any more",
    "stop": "stop the robot; it stays stopped until the gate is rearmed",
    "rearm": "leave a stop, once its cause is removed",
}
"""What the safety gate can be asked for."""
EVALUATE_MODULE = "worldforge_ros.evaluation.command"
QUALITY_MODULE = "worldforge_ros.evaluation.quality"
TRAINED = tuple(dict.fromkeys(task for tasks in TRAINING.values() for task in tasks))

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
        return _failed(error, "--json" in arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads stdout any more (`| head`); Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.filename is None:
            raise
        path = mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"path {os.fspath(error.filename)}",
            found=f"unusable ({error.strerror})",
            expected="a file to read or a folder that can be written",
        )
        return _failed(path, "--json" in arguments)


def _failed(error: WorldForgeError, as_json: bool) -> int:
    print(f"worldforge: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error_code": str(error.code), "message": error.message}))
    return EXIT_USAGE if error.code is ErrorCode.INVALID_ARGUMENT else EXIT_FAILED


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
    up.add_argument("task", nargs="?", choices=tuple(BRINGUPS))

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
    train.add_argument("task", nargs="?", choices=TRAINED)

    evaluate = _command(
        commands,
        "evaluate",
        _run_evaluate,
        "compare planners over many simulated episodes",
        "worldforge evaluate pusht --help",
        add_help=False,
    )
    evaluate.add_argument("task", nargs="?", choices=tuple(EVALUATION))

    quality = _command(
        commands,
        "quality",
        _run_quality,
        "how good a world model is: linear probe, drift, ranking by objective",
        "worldforge quality pusht --seeds 5000",
        add_help=False,
    )
    quality.add_argument("task", nargs="?", choices=tuple(QUALITY))

    for name, (_, text, example) in OWN_MODULE.items():
        _command(commands, name, _run_own_module, text, example, add_help=False)

    migrate = _command(
        commands,
        "migrate-policy",
        _run_migrate_policy,
        "rewrite a policy checkpoint of LeRobot before 0.4 for the installed LeRobot",
        "worldforge migrate-policy diffusion_pusht diffusion_pusht_migrated",
    )
    migrate.add_argument("old", type=Path, metavar="OLD", help="folder with config.json")
    migrate.add_argument("new", type=Path, metavar="NEW", help="folder to write: absent or empty")
    migrate.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )

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

    embodiment = _command(
        commands,
        "embodiment",
        _run_embodiment,
        "draft or check the embodiment file of a robot",
        "worldforge embodiment check my_arm.yaml --policy /path/to/checkpoint",
    )
    verbs = embodiment.add_subparsers(title="verbs", metavar="VERB")
    init = _command(
        verbs,
        "init",
        _run_embodiment_init,
        "draft the file from a URDF and a policy; what a person must fill in is TODO",
        "worldforge embodiment init --urdf robot.urdf --policy /path/to/checkpoint --out arm.yaml",
    )
    init.add_argument("--urdf", type=Path, required=True, help="the robot's URDF, expanded")
    init.add_argument("--policy", required=True, help="LeRobot checkpoint folder")
    init.add_argument(
        "--dataset",
        type=Path,
        help="LeRobot data set it was trained on, for the names of its actions and the step",
    )
    init.add_argument(
        "--joints", default="", help="joints in the order of the policy's action, comma-separated"
    )
    init.add_argument("--name", default="", help="name of the embodiment (the URDF's)")
    init.add_argument("--out", type=Path, help="file to write; must not exist (standard output)")
    check = _command(
        verbs,
        "check",
        _run_embodiment_check,
        "validate the file and tell how it feeds the policy",
        "worldforge embodiment check my_arm.yaml --policy /path/to/checkpoint",
    )
    check.add_argument("file", help="name or path of the file")
    check.add_argument("--policy", default="", help="LeRobot checkpoint folder to check against")
    for verb in (init, check):
        verb.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line"
        )

    gate = _command(
        commands,
        "gate",
        _run_gate,
        "look at the safety gate, arm, disarm or stop it",
        "worldforge gate watch",
    )
    gate_verbs = gate.add_subparsers(title="verbs", metavar="VERB")
    watch = _command(
        gate_verbs,
        "watch",
        _run_gate_watch,
        "mode of the gate, last verdict, what to do, counters, latencies, heartbeats",
        "worldforge gate watch --once --json",
    )
    watch.add_argument("--once", action="store_true", help="print one status and exit")
    watch.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        help="with --once: seconds to wait for a status; exit status 1 if none came (5)",
    )
    watch.add_argument(
        "--json", action="store_true", help="print one JSON object a line for each change"
    )
    verb_parsers = [watch]
    for name, text in GATE_CALLS.items():
        verb = _command(gate_verbs, name, _run_gate_call, text, f"worldforge gate {name}")
        verb.add_argument(
            "--timeout", type=float, default=5.0, help="seconds to wait for the gate (5)"
        )
        verb.add_argument("--json", action="store_true", help="print the answer as one JSON object")
        verb_parsers.append(verb)
    for verb in verb_parsers:
        verb.add_argument(
            "--namespace", default="", help="namespace of the gate, such as /left_arm (none)"
        )

    completion = _command(
        commands,
        "completion",
        _run_completion,
        "print what makes a shell complete this command",
        PLACES["bash"],
    )
    completion.add_argument("shell", choices=SHELLS)

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
    parser.set_defaults(
        runner=runner, command=name, prog=parser.prog, summary=text, example=example
    )
    return parser


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=tuple(BRINGUPS))
    parser.add_argument(
        "--duration",
        type=float,
        help=f"longest episode in simulated seconds ({_defaults('duration')})",
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
        help=f"action chunks proposed and scored in a cycle ({_defaults('candidates')})",
    )
    parser.add_argument("--out", type=Path, help="folder to write (runs/<time>)")
    parser.add_argument(
        "--bag", type=Path, help="bag folder to make, for all that a replay needs (none)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="any other argument of `worldforge up`, may be repeated",
    )
    parser.add_argument("--verbose", action="store_true", help="show every line of every node")


def _defaults(field: str) -> str:
    return ", ".join(f"{task.name} {getattr(task, field):g}" for task in BRINGUPS.values())


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
    for task in BRINGUPS.values() if parsed.task is None else [find_task(parsed.task)]:
        lines += ["", f"{task.name}: {task.summary}"]
        for argument in task.arguments:
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
    from worldforge_ros.supervisor import Console, Supervisor, task_commands

    commands = task_commands(task, arguments)
    width = max(len(command.name) for command in commands)
    console = Console(sys.stdout, width=width, quiet=quiet)
    outcome = Supervisor(commands, console=console, log_dir=log_dir).run()
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
    from worldforge_ros.bags.record_command import contents_text, read_contents
    from worldforge_ros.bags.writer import check_free

    folder = parsed.out or Path("runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    arguments = assignments(parsed.set)
    task = find_task(parsed.task)
    duration = task.duration if parsed.duration is None else parsed.duration
    candidates = task.candidates if parsed.candidates is None else parsed.candidates
    fixed = {
        "duration": str(duration),
        "seed": str(parsed.seed),
        "rate": str(parsed.rate),
        "num_candidates": str(candidates),
        "output_dir": str(folder),
        "record": "true",
        "bag": str(parsed.bag or ""),
    }
    if parsed.bag is not None:
        check_free(parsed.bag)
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
    if parsed.bag is not None and (parsed.bag / "metadata.yaml").is_file():
        contents = read_contents(parsed.bag)
        print(f"\n{contents_text(contents)}")
        status = status or int(not contents["complete"])
    return status, folder


def _run_bench(parsed: argparse.Namespace, rest: list[str]) -> int:
    from worldforge_ros.recording.summary import latency_rows

    _no_rest(rest)
    _check_json_file(parsed.json)
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
        print(
            "usage: worldforge train {" + ",".join(TRAINING) + "} {" + ",".join(TRAINED) + "} ..."
        )
        print(f"\n{parsed.summary[0].upper()}{parsed.summary[1:]}.\n\nExample: {parsed.example}")
        return EXIT_OK if _wants_help(rest) else EXIT_USAGE
    tasks = TRAINING[parsed.what]
    prog = f"{parsed.prog} {parsed.what}"
    if parsed.task is not None and parsed.task not in tasks:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"task of {prog}",
            found=parsed.task,
            expected=" or ".join(tasks),
        )
    module, *options = tasks.get(parsed.task, "").split() or [""]
    return _delegate(
        f"worldforge_ros.training.{module}",
        prog,
        parsed,
        [*options, *rest],
        tasks,
        TRAINING_EXAMPLES[parsed.what],
    )


def _run_evaluate(parsed: argparse.Namespace, rest: list[str]) -> int:
    options = EVALUATION.get(parsed.task, "").split()
    example = "--episodes 20 --planner first scored"
    return _delegate(EVALUATE_MODULE, parsed.prog, parsed, [*options, *rest], EVALUATION, example)


def _run_quality(parsed: argparse.Namespace, rest: list[str]) -> int:
    options = QUALITY.get(parsed.task, "").split()
    example = "--seeds 5000 --episodes 4"
    return _delegate(QUALITY_MODULE, parsed.prog, parsed, [*options, *rest], QUALITY, example)


def _run_own_module(parsed: argparse.Namespace, rest: list[str]) -> int:
    name = OWN_MODULE[parsed.command][0]
    return _run_module(name, parsed.prog, rest, f"Example: {parsed.example}")


def _run_migrate_policy(parsed: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from worldforge_ros.policies.migrate import migrate_policy

    _no_rest(rest)
    done = migrate_policy(parsed.old, parsed.new)
    table = Table("type", "shape", "mode", box=None)
    table.add_column("feature", overflow="fold")
    table.add_column("buffer", overflow="fold")
    for feature in done.features:
        shape = " x ".join(map(str, feature.shape))
        stems = {name.split(".", 1)[1].rpartition(".")[0] for name in feature.buffers}
        table.add_row(feature.type, shape, feature.mode, feature.name, *(stems or {"-"}))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"\n{done.new}: type {done.type}, {done.parameters} parameters in {done.tensors} tensors, "
        "all loaded strictly"
    )
    console.print(f"copied: {', '.join(done.copied) or 'nothing'}")
    if done.left_out:
        console.print(f"left out: {', '.join(done.left_out)}")
    for note in done.notes:
        console.print(f"note: {note}")
    if parsed.json:
        print(json.dumps(asdict(done)))
    return EXIT_OK


def _run_doctor(parsed: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console
    from rich.table import Column, Table

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
    columns = ("", "check", "finding", "code")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for check in checks:
        mark = {"ok": "ok", "warning": "?", "error": "!"}[check.level]
        table.add_row(mark, check.name, check.message, check.code)
    # A pipe or a file has no width of its own.
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if parsed.json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))
    return EXIT_FAILED if any(check.level == "error" for check in checks) else EXIT_OK


def _run_embodiment(parsed: argparse.Namespace, rest: list[str]) -> int:
    _no_rest(rest)
    print(
        f"usage: {parsed.prog} {{init,check}} ...\n\n{parsed.summary[0].upper()}"
        f"{parsed.summary[1:]}.\n\nExample: {parsed.example}"
    )
    return EXIT_USAGE


def _run_embodiment_init(parsed: argparse.Namespace, rest: list[str]) -> int:
    from worldforge_ros.adoption.checkpoint import read_policy
    from worldforge_ros.adoption.draft import draft_embodiment
    from worldforge_ros.adoption.urdf import read_urdf

    _no_rest(rest)
    if parsed.out is not None and parsed.out.exists():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "--out", found=f"{parsed.out}, there", expected="a new file"
        )
    draft = draft_embodiment(
        read_urdf(parsed.urdf),
        read_policy(parsed.policy, parsed.dataset),
        [name.strip() for name in parsed.joints.split(",") if name.strip()],
        parsed.name,
    )
    if parsed.out is None and not parsed.json:
        print(draft.text, end="")
        return EXIT_OK
    if parsed.out is not None:
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(draft.text, encoding="utf-8")
        print(f"wrote {parsed.out}: joints {', '.join(draft.joints)}")
        for joint, reason in draft.left_out.items():
            print(f"left out: {joint}, {reason}")
        print(f"to fill in, {len(draft.todo)} fields:")
        for field in draft.todo:
            print(f"  {field}")
    if parsed.json:
        print(json.dumps(asdict(draft)))
    return EXIT_OK


def _run_embodiment_check(parsed: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console
    from rich.table import Column, Table

    from worldforge_ros.adoption.check import check_embodiment

    _no_rest(rest)
    found = check_embodiment(parsed.file, parsed.policy or None)
    # A pipe or a file has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 140)
    if found.features:
        features = ("policy feature", "shape", "fed from", "policy value =")
        table = Table(*(Column(name, overflow="fold") for name in features), box=None)
        for row in found.features:
            table.add_row(row.feature, str(row.shape), row.source, row.conversion)
        console.print(table, "")
        names = ("joint", "policy value =", "limits", "in policy units", "speed", "trained on")
        actions = Table("action", *(Column(name, overflow="fold") for name in names), box=None)
        for item in found.actions:
            cells = (item.joint, item.conversion, item.limits, item.limits_in_policy_units)
            actions.add_row(str(item.index), *cells, item.max_velocity, item.trained or "?")
        console.print(actions, "")
    for note in found.notes:
        print(f"note: {note}")
    for problem in found.problems:
        print(f"{problem.code}: {problem.message}")
    if not found.problems:
        print(f"{found.embodiment} is right" + (" for this policy" if parsed.policy else ""))
    if parsed.json:
        print(json.dumps({**asdict(found), "ok": not found.problems}))
    return EXIT_FAILED if found.problems else EXIT_OK


def _run_gate(parsed: argparse.Namespace, rest: list[str]) -> int:
    _no_rest(rest)
    print(
        f"usage: {parsed.prog} {{{','.join(('watch', *GATE_CALLS))}}} ...\n\n"
        f"{parsed.summary[0].upper()}"
        f"{parsed.summary[1:]}.\n\nExample: {parsed.example}"
    )
    return EXIT_USAGE


def _run_gate_watch(parsed: argparse.Namespace, rest: list[str]) -> int:
    module = _gate_module("worldforge_ros.ros.gate_watch", parsed, rest)
    return int(
        module.watch(
            once=parsed.once,
            as_json=parsed.json,
            timeout=parsed.timeout,
            namespace=parsed.namespace,
        )
    )


def _run_gate_call(parsed: argparse.Namespace, rest: list[str]) -> int:
    module = _gate_module("worldforge_ros.ros.gate_call", parsed, rest)
    return int(
        module.call(
            parsed.command,
            as_json=parsed.json,
            timeout=parsed.timeout,
            namespace=parsed.namespace,
        )
    )


def _gate_module(name: str, parsed: argparse.Namespace, rest: list[str]) -> Any:
    """The module that talks to the gate, once the arguments are right."""
    _no_rest(rest)
    if not 0.0 < parsed.timeout <= 3600.0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--timeout",
            found=parsed.timeout,
            expected="seconds above 0, at most 3600",
        )
    return ros_module(name)


def _delegate(
    name: str,
    prog: str,
    parsed: argparse.Namespace,
    rest: list[str],
    tasks: Collection[str],
    example: str,
) -> int:
    """Run the module of a command that takes a task; ``example`` are the options of its help's."""
    if parsed.task is None:
        print(
            f"usage: {prog} {{{','.join(tasks)}}} ...\n\nExample: {prog} {next(iter(tasks))} --help"
        )
        return EXIT_OK if _wants_help(rest) else EXIT_USAGE
    prog = f"{prog} {parsed.task}"
    return _run_module(name, prog, rest, f"Example: {prog} {example}")


def _run_module(name: str, prog: str, rest: list[str], epilog: str = "") -> int:
    """Run a module that has ``add_arguments(parser)`` and ``run(args) -> int``."""
    module, parser = module_parser(name, prog, epilog)
    args = parser.parse_args(rest)
    _check_json_file(getattr(args, "json", None))
    return int(module.run(args) or EXIT_OK)


def _check_json_file(file: object) -> None:
    """Refuse to write figures over something else, such as the bag in ``--json BAG BAG``."""
    if isinstance(file, Path) and file.exists() and file.suffix != ".json":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--json",
            found=f"{file}, which is there",
            expected="a new file, or one that ends in .json",
        )


def module_parser(
    name: str, prog: str, epilog: str = ""
) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module ``name`` that does a command's work, and the parser of what is behind the command.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` when it, or what it imports, is absent.
    """
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
        prog=prog,
        description=(module.__doc__ or "").strip() or None,
        epilog=epilog or None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    return module, parser


def _run_completion(parsed: argparse.Namespace, rest: list[str]) -> int:
    _no_rest(rest)
    modules = {name: module for name, (module, _, _) in OWN_MODULE.items()}
    modules |= {"evaluate": EVALUATE_MODULE, "quality": QUALITY_MODULE}
    print(script(_parser(), modules, parsed.shell))
    return EXIT_OK


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
