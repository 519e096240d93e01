"""The ``worldforge`` command, without ROS and without models."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worldforge_ros import cli
from worldforge_ros.bringup import TASKS
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.supervisor import Command, Outcome

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["up", "--help"],
        ["demo", "--help"],
        ["bench", "--help"],
        ["version", "--help"],
        ["gate", "watch", "--help"],
    ],
)
def test_help_has_an_example_and_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from worldforge_ros import cli
try:
    status = cli.main({arguments!r})
except SystemExit as exit:
    status = exit.code
heavy = {{"torch", "rclpy", "numpy", "lerobot", "PIL", "matplotlib"}} & set(sys.modules)
print("HEAVY", sorted(heavy), status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY [] 0")
    assert "Example: worldforge" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "evaluate pusht",
        "evaluate aloha",
        "quality pusht",
        *(f"train {what} {task}" for what, tasks in cli.TRAINING.items() for task in tasks),
    ],
)
def test_the_help_of_a_task_ends_with_an_example_that_it_takes(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_module(name: str, prog: str, rest: list[str], epilog: str) -> int:
        parser = cli.module_parser(name, prog, epilog)[1]
        start = f"Example: worldforge {command} "
        assert epilog.startswith(f"{start}--")
        parser.parse_args([*rest, *epilog.removeprefix(start).split()])
        return 0

    monkeypatch.setattr(cli, "_run_module", run_module)
    assert cli.main(command.split()) == 0


@pytest.mark.parametrize(
    "arguments", [[], ["up"], ["train"], ["train", "policy"], ["evaluate"], ["quality"], ["gate"]]
)
def test_an_incomplete_command_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.EXIT_USAGE
    assert "usage: worldforge" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["fly"], ["demo", "chess"], ["demo", "pusht", "--rate", "x"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.EXIT_USAGE


@pytest.mark.parametrize("name", list(TASKS))
def test_help_of_up_describes_every_argument(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", name, "--help"]) == 0
    text = capsys.readouterr().out
    for argument in TASKS[name].arguments:
        assert f"  {argument.name}:={argument.default}" in text
        assert argument.description in text


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["rate:=0.5", "sim:=true"], {"rate": "0.5", "sim": "true"}),
        (["--rate", "0.5", "--num-candidates=8"], {"rate": "0.5", "num_candidates": "8"}),
        (["policy_path:=a:=b"], {"policy_path": "a:=b"}),
        (["output_dir:="], {"output_dir": ""}),
        ([], {}),
    ],
)
def test_assignments(items: Sequence[str], expected: dict[str, str]) -> None:
    assert cli.assignments(items) == expected


@pytest.mark.parametrize(
    "items", [["rate"], ["rate=1"], ["--rate"], ["--rate", "--sim"], ["a:=1", "--a", "2"]]
)
def test_bad_assignments_are_refused(items: Sequence[str]) -> None:
    with pytest.raises(WorldForgeError) as caught:
        cli.assignments(items)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "arm.yaml"
    urdf = ROOT / "config" / "examples" / "so101_like.urdf"
    policy = ROOT / "models" / "pusht" / "policy"
    arguments = ["--urdf", str(urdf), "--policy", str(policy), "--joints", "gripper,elbow_flex"]
    assert (
        cli.main(["embodiment", "init", *arguments, "--out", str(out), "--json"]) == cli.EXIT_USAGE
    )
    captured = capsys.readouterr()
    assert f"INVALID_ARGUMENT: path {out.parent}" in captured.err
    assert "expected a file to read or a folder that can be written" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["error_code"] == "INVALID_ARGUMENT"


def test_a_bag_is_not_written_over_by_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = tmp_path / "a.mcap"
    bag.write_bytes(b"recorded")
    assert cli.main(["drift", "--json", str(bag), "other.mcap"]) == cli.EXIT_USAGE
    assert "a.mcap, which is there; expected a new file" in capsys.readouterr().err
    assert bag.read_bytes() == b"recorded"


def test_an_unknown_argument_is_named_and_json_carries_the_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["up", "pusht", "polcy:=x", "--json"]) == cli.EXIT_USAGE
    captured = capsys.readouterr()
    assert "'polcy'" in captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert result["error_code"] == "INVALID_ARGUMENT"


SUMMARY: dict[str, Any] = {
    "seed": 5,
    "distro": "jazzy",
    "versions": {"python": "3.11"},
    "realtime_factor": 1.0,
    "deadline_misses": 0,
    "counts": {"plans": 3},
    "latency_ms": {
        "image_to_observation": {"p50": 5.0, "p95": 6.0, "max": 7.0},
        "propose": {"p50": 100.0, "p95": 120.0, "max": 130.0},
        "propose_model": {"p50": 75.0, "p95": 90.0, "max": 95.0},
        "score": None,
        "score_model": None,
        "plan": {"p50": 200.0, "p95": 220.0, "max": 230.0},
        "gate": None,
        "capture_to_command": None,
    },
}


class FakeSupervisor:
    """Stands in for the processes of a bring-up: remembers them and writes a summary."""

    status = 0
    commands: Sequence[Command] = ()
    log_dir: Path | None = None

    def __init__(
        self, commands: Sequence[Command], *, console: object, log_dir: Path | None = None
    ) -> None:
        type(self).commands = commands
        type(self).log_dir = log_dir

    def run(self) -> Outcome:
        if self.status == 0 and self.log_dir is not None:
            folder = self.log_dir.parent
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(SUMMARY))
        return Outcome(self.status, "episode_node ended", ())


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> type[FakeSupervisor]:
    import worldforge_ros.supervisor

    monkeypatch.setattr(worldforge_ros.supervisor, "Supervisor", FakeSupervisor)
    monkeypatch.setattr(FakeSupervisor, "status", 0)
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return FakeSupervisor


def parameters(commands: Sequence[Command], name: str) -> dict[str, str]:
    argv = next(command.argv for command in commands if command.name == name)
    pairs = [item.split(":=", 1) for item in argv if ":=" in item]
    return {pair[0]: pair[1] for pair in pairs}


def test_demo_records_one_armed_episode(
    supervisor: type[FakeSupervisor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    arguments = ["demo", "pusht", "--seed", "5", "--rate", "0.5", "--duration", "12"]
    status = cli.main(
        [*arguments, "--out", str(out), "--candidates", "4", "--set", "planner:=first", "--json"]
    )
    assert status == 0
    episode = parameters(supervisor.commands, "episode_node")
    assert episode["record"] == "true"
    assert episode["arm"] == "true"
    assert episode["duration"] == "12.0"
    assert json.loads(episode["output_dir"]) == str(out)
    simulator = parameters(supervisor.commands, "pusht_sim")
    assert (simulator["seed"], simulator["rate"]) == ("5", "0.5")
    planner = parameters(supervisor.commands, "planner_node")
    assert (planner["num_candidates"], json.loads(planner["planner"])) == ("4", "first")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == SUMMARY


def test_demo_passes_the_status_on(supervisor: type[FakeSupervisor], tmp_path: Path) -> None:
    supervisor.status = 1
    assert cli.main(["demo", "pusht", "--out", str(tmp_path / "x"), "--json"]) == 1


def test_demo_refuses_two_values_for_one_thing(
    supervisor: type[FakeSupervisor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "pusht", "--set", "rate:=2"]) == cli.EXIT_USAGE
    assert "--set rate" in capsys.readouterr().err
    assert cli.main(["demo", "pusht", "stray"]) == cli.EXIT_USAGE


def test_bench_writes_stage_rows(
    supervisor: type[FakeSupervisor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "latency.json"
    out = str(tmp_path / "run")
    assert cli.main(["bench", "pusht", "--out", out, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows = {row["stage"]: row for row in result["rows"]}
    assert rows["propose"]["model_share"] == 0.75
    assert rows["score"]["p50"] is None
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("propose"))
    assert line.split() == ["propose", "100.0", "120.0", "130.0", "25%", "75%"]


def test_bench_without_an_episode_fails(supervisor: type[FakeSupervisor], tmp_path: Path) -> None:
    supervisor.status = 1
    file = tmp_path / "latency.json"
    arguments = ["bench", "pusht", "--out", str(tmp_path / "x"), "--json", str(file)]
    assert cli.main(arguments) == 1
    assert not file.exists()


def test_up_reports_how_processes_ended(
    supervisor: type[FakeSupervisor], capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.status = 130
    assert cli.main(["up", "pusht", "sim:=false", "--json"]) == 130
    assert [command.name for command in supervisor.commands] == [
        "observation_node",
        "policy_node",
        "score_node",
        "planner_node",
        "safety_gate",
    ]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == 130


def test_up_takes_options_like_assignments(supervisor: type[FakeSupervisor]) -> None:
    assert cli.main(["up", "pusht", "--num-candidates", "8", "--rate=0.5", "seed:=3"]) == 0
    assert parameters(supervisor.commands, "planner_node")["num_candidates"] == "8"
    simulator = parameters(supervisor.commands, "pusht_sim")
    assert (simulator["rate"], simulator["seed"]) == ("0.5", "3")


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str) -> list[argparse.Namespace]:
    calls: list[argparse.Namespace] = []
    module = ModuleType(name)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=1)

    def run(args: argparse.Namespace) -> int:
        calls.append(args)
        return 4

    module.add_arguments = add_arguments  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", "demos", "pusht"], "worldforge_ros.training.demos"),
        (["train", "demos", "aloha"], "worldforge_ros.training.aloha_demos"),
        (["train", "play", "aloha"], "worldforge_ros.training.aloha_play"),
        (["train", "keypoints", "pusht"], "worldforge_ros.training.keypoints"),
        (["train", "keypoints", "aloha"], "worldforge_ros.training.aloha_reader"),
        (["train", "policy", "pusht"], "worldforge_ros.training.policy"),
        (["train", "policy", "aloha"], "worldforge_ros.training.aloha_policy"),
        (["train", "world-model", "pusht"], "worldforge_ros.training.world_model"),
        (["train", "predictor", "pusht"], "worldforge_ros.training.predictor"),
        (["evaluate", "pusht"], "worldforge_ros.evaluation.command"),
        (["quality", "pusht"], "worldforge_ros.evaluation.quality"),
    ],
)
def test_training_and_evaluation_run_their_module(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_module(monkeypatch, name)
    assert cli.main([*words, "--steps", "3"]) == 4
    assert calls == [argparse.Namespace(steps=3)]


def test_a_task_that_has_no_such_training_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "play", "pusht"]) == cli.EXIT_USAGE
    assert "is pusht; expected aloha" in capsys.readouterr().err


def test_a_module_that_is_absent_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.TRAINING["policy"], "pusht", "no_such_module")
    assert cli.main(["train", "policy", "pusht"]) == cli.EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith("worldforge: DEPENDENCY_MISSING: ")
    assert "no_such_module" in error


@pytest.fixture
def gate_watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    module = ModuleType("worldforge_ros.ros.gate_watch")

    def watch(**options: Any) -> int:
        calls.append(options)
        return 1

    module.watch = watch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    return calls


def test_gate_watch_passes_its_options_and_the_status_on(
    gate_watch: list[dict[str, Any]],
) -> None:
    assert cli.main(["gate", "watch"]) == 1
    arguments = ["gate", "watch", "--once", "--json", "--timeout", "2.5", "--namespace", "/left"]
    assert cli.main(arguments) == 1
    assert gate_watch == [
        {"once": False, "as_json": False, "timeout": 5.0, "namespace": ""},
        {"once": True, "as_json": True, "timeout": 2.5, "namespace": "/left"},
    ]
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "1e9"])
def test_gate_watch_refuses_a_timeout_that_is_none(
    gate_watch: list[dict[str, Any]], timeout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gate", "watch", "--once", f"--timeout={timeout}"]) == cli.EXIT_USAGE
    assert "--timeout is" in capsys.readouterr().err
    assert cli.main(["gate", "watch", "stray"]) == cli.EXIT_USAGE
    assert gate_watch == []


def test_gate_watch_without_ros_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "worldforge_ros.ros.gate_watch", raising=False)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert cli.main(["gate", "watch"]) == cli.EXIT_FAILED
    assert capsys.readouterr().err.startswith("worldforge: DEPENDENCY_MISSING: ")


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert {"python", "worldforge_ros", "numpy", "distro"} <= set(versions)
