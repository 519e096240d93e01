"""`worldforge replay` as a person calls it, with stand-in models unless it says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bag_support import write_bag
from replay_models import stand_ins

from worldforge_ros.cli import main
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.replay import command, engine
from worldforge_ros.replay.settings import ReplaySettings


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that load the stand-ins, in this process."""
    monkeypatch.setattr(ReplaySettings, "load", lambda self, embodiment: stand_ins())
    command._loaded.cache_clear()
    yield
    command._loaded.cache_clear()


def replay(out: Path, *arguments: Any) -> int:
    return main(["replay", *map(str, arguments), "--out", str(out), "--jobs", "1"])


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("report.json", "report.html")}


@pytest.mark.usefixtures("stubbed")
def test_a_report_is_the_same_byte_for_byte_wherever_the_bag_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [write_bag(tmp_path / place / "run", seconds=3.0) for place in ("a", "b")]
    assert replay(tmp_path / "one", bags[0], "--json", tmp_path / "copy.json") == 0
    assert "planner scored" in capsys.readouterr().out
    assert replay(tmp_path / "two", bags[1]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    copy = (tmp_path / "copy.json").read_bytes()
    assert copy == files(tmp_path / "one")["report.json"]
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["command"] == "replay"
    assert [item["path"] for item in manifest["inputs"]] == [str(bags[0])]
    assert replay(tmp_path / "three", bags[0], "--candidates", 5) == 0
    assert files(tmp_path / "three") != files(tmp_path / "one")


@pytest.mark.usefixtures("stubbed")
def test_what_was_replayed_is_not_replayed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags = [write_bag(tmp_path / name, seconds=2.0) for name in ("a", "b")]
    assert replay(tmp_path / "out", bags[0]) == 0
    done: list[str] = []
    real = engine.replay_bag

    def counted(path: Path, *arguments: Any) -> dict[str, Any]:
        done.append(path.name)
        return real(path, *arguments)

    monkeypatch.setattr(engine, "replay_bag", counted)
    assert replay(tmp_path / "out", *bags) == 0
    assert done == ["b"]
    resumed = files(tmp_path / "out")
    assert replay(tmp_path / "out", *bags, "--fresh") == 0
    assert done == ["b", "a", "b"]
    assert files(tmp_path / "out") == resumed
    assert replay(tmp_path / "out", *bags, "--set", "planner_node.replan_period=1.0") == 0
    assert done == ["b", "a", "b", "a", "b"]


@pytest.mark.usefixtures("stubbed")
def test_conditions_decide_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", seconds=3.0)
    out = tmp_path / "out"
    assert replay(out, bag, "--fail-if", "gate.false_reject_rate > 0.01") == 0
    assert replay(out, bag, "--fail-if", "cycles.started < 100", "--fail-if", "gate.stops > 5") == 1
    error = capsys.readouterr().err
    assert "cycles.started is 6; --fail-if cycles.started < 100" in error
    assert "gate.stops" not in error
    # What was not measured cannot be said to be well.
    assert replay(out, bag, "--fail-if", "reproduction.same_rate < 0.99") == 1
    assert "was not measured" in capsys.readouterr().err
    assert replay(out, bag, "--fail-if", "gate.false_rejects > 1") == 2
    assert "perhaps" in capsys.readouterr().err


@pytest.mark.usefixtures("stubbed")
def test_one_bad_bag_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_bag(tmp_path / "good", seconds=2.0)
    bad = write_bag(tmp_path / "bad", seconds=1.0, drop=("/joint_states",))
    assert replay(tmp_path / "out", good, bad, tmp_path / "absent") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    codes = {row["episode"]: (row["failed"] or {}).get("code") for row in report["episodes"]}
    assert codes == {"good": None, "bad": "TOPIC_MISSING", "absent": "BAG_MISSING"}
    assert "TOPIC_MISSING" in capsys.readouterr().out
    assert replay(tmp_path / "none", bad, tmp_path / "absent") == 1
    assert "TOPIC_MISSING" in capsys.readouterr().err


@pytest.mark.usefixtures("stubbed")
def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = [write_bag(tmp_path / f"bag{i}", seconds=2.0 + i) for i in range(3)]
    for name, count in (("few", 2), ("many", 6)):
        assert replay(tmp_path / name, *bags, "--candidates", count) == 0
    capsys.readouterr()
    out = tmp_path / "compared"
    assert replay(out, "--compare", tmp_path / "few", tmp_path / "many") == 0
    assert "second less first" in capsys.readouterr().out
    document = json.loads((out / "compare.json").read_text())
    nearest = {row["path"]: row for row in document["figures"]}["policy.chosen_error_normalised"]
    assert nearest["paired"]
    assert nearest["bags"] == 3
    assert (out / "compare.html").is_file()
    assert replay(out, "--compare", tmp_path / "few", tmp_path / "absent") == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "BAG"),
        (["bag", "--fail-if", "nonsense"], "--fail-if"),
        (["bag", "--remap", "nonsense"], "--remap"),
        (["bag", "--set", "planner_node.nonsense=1"], "nonsense"),
        (["bag", "--set", "nobody.seam=blend"], "--set"),
        (["bag", "--set", "planner_node.seam=sideways"], "seam"),
        (["bag", "--latency", "0"], "latency"),
        (["bag", "--candidates", "-1"], "--candidates"),
        (["bag", "--jobs", "0"], "--jobs"),
    ],
)
@pytest.mark.usefixtures("stubbed")
def test_a_mistake_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    bag = write_bag(tmp_path / "bag", seconds=1.0)
    given = [str(bag) if item == "bag" else item for item in arguments]
    assert main(["replay", *given, "--out", str(tmp_path / "out")]) == 2
    assert named in capsys.readouterr().err


def test_every_engine_gives_the_same_report(tmp_path: Path) -> None:
    """The shipped policy, in this process and on Ray."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    pytest.importorskip("lerobot", reason="the package lerobot is not installed")
    bags = [str(write_bag(tmp_path / name, seconds=1.6)) for name in ("a", "b")]
    found = []
    for name, engine_name, jobs in (
        ("one", "local", "1"),
        ("two", "local", "2"),
        ("ray", "ray", "2"),
    ):
        out = tmp_path / name
        small = ["--planner", "first", "--candidates", "1", "--out", str(out)]
        more = ["--set", "policy_node.num_inference_steps=2", "--engine", engine_name]
        assert main(["replay", *bags, *small, *more, "--jobs", jobs]) == 0
        found.append(files(out))
    report = json.loads(found[0]["report.json"])
    assert report["cycles"]["outcomes"] == {"OK": report["cycles"]["started"]}
    assert report["cycles"]["started"] >= 4
    assert found[1] == found[0]


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("replay", "record", "export", "drift", "surprise"):
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert "Example: worldforge" in capsys.readouterr().out


def test_settings_say_what_they_do_not_know() -> None:
    with pytest.raises(WorldForgeError, match="planner"):
        ReplaySettings(planner="oracle")


def test_what_a_setting_names_is_part_of_what_was_replayed(tmp_path: Path) -> None:
    """A limits file that was edited makes another run, though it has the same name."""
    limits = tmp_path / "joint_limits.yaml"
    settings = ReplaySettings(parameters=(("safety_gate.joint_limits", str(limits)),))
    limits.write_text("joint_limits: {}\n")
    before = settings.document()
    assert before == settings.document()
    limits.write_text("joint_limits: {pusher_x: {has_velocity_limits: true, max_velocity: 0.1}}\n")
    assert settings.document() != before
