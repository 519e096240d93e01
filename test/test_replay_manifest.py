"""The record beside a result: hashes that can be checked, nothing that is secret."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from worldforge_ros.replay.manifest import SCHEMA, provenance, scrubbed, write_manifest
from worldforge_ros.replay.settings import ReplaySettings


def test_a_manifest_says_what_was_run_on_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDFORGE_API", "hunter2")
    monkeypatch.setenv("SOMEBODY_ELSES", "hunter3")
    bag = tmp_path / "bag"
    bag.mkdir()
    (bag / "bag_0.mcap").write_bytes(b"abc")
    result = tmp_path / "report.json"
    result.write_text("{}")
    path = write_manifest(
        tmp_path / "manifest.json",
        command="replay",
        settings={"seed": 3},
        inputs=[bag, tmp_path / "absent"],
        outputs=[result],
        started="2026-01-01T00:00:00+00:00",
        argv=["replay", "bag", "--token=hunter2", "--api-key", "hunter2", "--seed", "3"],
    )
    text = path.read_text()
    assert "hunter" not in text
    document = json.loads(text)
    assert document["schema"] == SCHEMA
    assert document["outputs"][0]["sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert document["inputs"][0]["bytes"] == 3
    assert document["inputs"][1] == {"path": str(tmp_path / "absent"), "missing": True}
    assert "WORLDFORGE_API" in document["environment"]
    assert "SOMEBODY_ELSES" not in document["environment"]
    assert document["argv"][-2:] == ["--seed", "3"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--password", "x", "y"], ["--password", "(left out)", "y"]),
        (["--hf-token=x"], ["--hf-token=(left out)"]),
        (["--set", "policy_node.api_key=x"], ["--set", "policy_node.api_key=(left out)"]),
        (["--set", "planner_node.seam=blend"], ["--set", "planner_node.seam=blend"]),
        (["--token", "--json", "f"], ["--token", "--json", "f"]),
    ],
)
def test_secrets_are_left_out_of_a_command_line(given: list[str], kept: list[str]) -> None:
    assert scrubbed(given) == kept


def test_a_result_says_nothing_of_when_and_where_it_was_made() -> None:
    settings = ReplaySettings().document()
    found = provenance(settings)
    assert found == provenance(ReplaySettings(threads=2, device="cuda").document())
    assert len(found["checkpoints"]["policy"]) == 64
    assert len(found["checkpoints"]["world_model"]) == 64
    assert found != provenance(ReplaySettings(candidates=3).document())


def test_a_result_does_not_say_where_what_it_hashed_lies() -> None:
    settings = ReplaySettings().document()
    hashed = {"policy_sha256": "1", "world_model_sha256": "", "params_file_sha256": "2"}
    found = provenance(
        {
            **settings,
            **hashed,
            "policy": "/home/a/run/policy",
            "world_model": "someone/name",
            "params_file": "/home/a/pusht.yaml",
        }
    )["settings"]
    assert found["policy"] == "policy"
    assert found["params_file"] == "pusht.yaml"
    assert found["world_model"] == "someone/name"


def test_secrets_are_left_out_of_settings(tmp_path: Path) -> None:
    settings = {
        **ReplaySettings(parameters=(("policy_node.api_key", "hunter2"),)).document(),
        "token": "hunter2",
        "set": ["policy_node.password=hunter2", "planner_node.seam=blend"],
        "nested": {"credentials": {"user": "hunter2"}},
        "no_token": "",
    }
    path = write_manifest(
        tmp_path / "m.json",
        command="x",
        settings=settings,
        inputs=[],
        outputs=[],
        started="",
        argv=[],
    )
    for text in (path.read_text(), json.dumps(provenance(settings))):
        assert "hunter2" not in text
        assert "planner_node.seam=blend" in text
    assert settings["token"] == "hunter2"
    assert json.loads(path.read_text())["settings"]["no_token"] == ""
