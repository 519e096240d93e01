"""An evaluation in Gazebo: what is brought up for an episode, and what its recording comes to."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from worldforge_ros.bringup import TASKS, bring_up
from worldforge_ros.cli import main
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation import live, results
from worldforge_ros.evaluation.lockstep import Settings
from worldforge_ros.evaluation.runner import Record
from worldforge_ros.supervisor import Outcome

SETTINGS = Settings(steps=50, candidates=4)


def summary(seed: int, most: float, **changed: Any) -> dict[str, Any]:
    return {
        "ended": "duration over",
        "seed": seed,
        "planner": "first",
        "counts": {
            "plans_by_outcome": {"OK": 9, "SCORE_DEADLINE_MISSED": 1},
            "chunks_rejected": 1,
            "rejected_by_code": {"STALE": 1},
            "executed_steps": 48,
        },
        "latency_ms": {"plan": {"p50": 70.0, "p95": 90.0, "max": 99.0}},
        "coverage": {"initial": 0.1, "final": most / 2, "max": most},
        **changed,
    }


class Bringups:
    """Records what is brought up and writes the summaries that it is told."""

    def __init__(self, status: int = 0, **changed: Any) -> None:
        self.status, self.changed = status, changed
        self.seen: list[Mapping[str, str]] = []

    def __call__(self, arguments: Mapping[str, str], folder: Path) -> Outcome:
        # It can be brought up.
        bring_up(TASKS["gazebo"], arguments)
        self.seen.append(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        assert arguments["output_dir"] == str(folder)
        written = summary(int(arguments["seed"]), 0.2 * len(self.seen), **self.changed)
        if self.status != 1:
            (folder / "summary.json").write_text(json.dumps(written))
        return Outcome(self.status, "why", ())


def evaluate(folder: Path, planners: tuple[str, ...], run: Bringups) -> Record:
    record = Record(folder, SETTINGS, planners, "gazebo")
    live.run_all(planners, [3, 4], SETTINGS, {"gui": "true"}, record, folder, run=run)
    record.close()
    return record


def test_every_episode_is_a_bring_up_and_gives_the_tables_of_the_simulator(tmp_path: Path) -> None:
    run = Bringups()
    record = evaluate(tmp_path, ("first", "scored"), run)
    assert [(a["planner"], a["seed"], a["num_candidates"]) for a in run.seen] == [
        ("first", "3", "1"),
        ("scored", "3", "4"),
        ("first", "4", "1"),
        ("scored", "4", "4"),
    ]
    assert {a["duration"] for a in run.seen} == {"5.0"}
    assert {a["gui"] for a in run.seen} == {"true"}
    figures = results.summarise(record.finished, record.settings, [3, 4])
    row = figures["planners"]["scored"]
    assert row["mean"] == pytest.approx(0.6)
    assert (row["success"], row["ms_per_decision"], row["rejected_chunks"]) == (0.0, 70.0, 2)
    assert figures["paired"]["scored-first"]["mean"] == pytest.approx(0.2)
    results.print_table(figures)
    paths = results.write(tmp_path, figures, record.finished)
    assert "NaN" not in paths[0].read_text(), "no JSON"
    table = pyarrow.parquet.read_table(paths[1])
    assert table.column("max_coverage").to_pylist() == pytest.approx([0.2, 0.6, 0.4, 0.8])
    assert table.column("position_error_mm").to_pylist() == [None] * 4


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, ("first",), Bringups(128 + signal.SIGINT))
    first = Bringups()
    evaluate(tmp_path, ("first",), first)
    again = Bringups()
    record = evaluate(tmp_path, ("first", "random"), again)
    assert [a["planner"] for a in again.seen] == ["random", "random"]
    assert all(math.isnan(f.result.angle_error) for f in record.finished)
    with pytest.raises(WorldForgeError, match="backend of the episodes in") as caught:
        Record(tmp_path, SETTINGS, ("first",))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_who_stands_still_is_not_armed(tmp_path: Path) -> None:
    # episode_node finds that nothing was executed; that is what standing still is.
    run = Bringups(status=3)
    record = evaluate(tmp_path, ("still",), run)
    assert {a["arm"] for a in run.seen} == {"false"}
    assert {(f.result.decisions, f.result.ms_per_decision) for f in record.finished} == {(0, 0.0)}


@pytest.mark.parametrize("status", [1, 3])
def test_an_episode_that_failed_is_none(tmp_path: Path, status: int) -> None:
    with pytest.raises(WorldForgeError, match=f"first on seed 3 ended with status {status}") as e:
        evaluate(tmp_path, ("first",), Bringups(status))
    assert e.value.code is ErrorCode.EPISODE_INCOMPLETE
    assert "output.log" in e.value.message


def test_a_stop_and_a_success_are_told(tmp_path: Path) -> None:
    stopped = live.result_of("first", summary(1, 0.96, ended="gate stopped: JOINT_STATE_LOST"))
    assert (stopped.stopped, stopped.success) == ("JOINT_STATE_LOST", True)
    assert not live.result_of("first", summary(1, 0.95)).success
    nothing = {"initial": None, "final": None, "max": None}
    with pytest.raises(WorldForgeError, match="coverage of first on seed 1 is absent"):
        live.result_of("first", summary(1, 0.5, coverage=nothing))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--planner", "oracle"), "--planner with --backend gazebo is oracle"),
        (("--protocol", "lewm"), "--protocol with --backend gazebo is lewm"),
        (("--latency-steps", "2"), "--latency-steps with --backend gazebo is 2"),
        (("--set", "seed:=3"), "--set seed is given; expected the option"),
        (("--set", "gui"), "--set is 'gui'; expected NAME:=VALUE"),
    ],
)
def test_what_live_nodes_do_not_do_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "pusht", "--backend", "gazebo", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_without_gazebo_the_evaluation_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    command = ["evaluate", "pusht", "--backend", "gazebo", "--planner", "still"]
    assert main([*command, "--out", str(tmp_path / "out"), "--episodes", "1"]) == 1
    error = capsys.readouterr().err
    assert "DEPENDENCY_MISSING: program gz is not on PATH" in error
    assert "ros-$ROS_DISTRO-ros-gz-sim" in error
