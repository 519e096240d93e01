"""What ``worldforge doctor`` and the health service find, each thing missing in turn."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("stable_worldmodel", reason="the package stable-worldmodel is not installed")

from worldforge_ros.cli import main
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.health import Check, check_scorer
from worldforge_ros.resources import share_dir
from worldforge_ros.scorers.loading import scorer_config

PUSHT = load_embodiment("pusht")
SHIPPED = share_dir() / "models/pusht/world_model"


def check(
    scorer: str = "lewm",
    environment: dict[str, str] | None = None,
    loaded: str = "",
    options: dict[str, Any] | None = None,
    **parameters: str,
) -> dict[str, Check]:
    config = scorer_config(scorer, parameters, environment or {}, **(options or {}))
    return {item.name: item for item in check_scorer(config, PUSHT, loaded)}


def test_everything_is_there() -> None:
    found = check()
    assert {item.level for item in found.values()} == {"ok"}
    assert found["world model"].message.startswith("loads: world_model-")
    assert found["checkpoint"].message == "config+safetensors, no hash asked for"


@pytest.mark.parametrize("name", ["torch", "safetensors", "transformers", "stable_worldmodel"])
def test_a_module_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    found = check(loaded="so that nothing else is imported")[f"module {name}"]
    assert found.level == "error"
    assert found.code == "DEPENDENCY_MISSING"
    assert name in found.message


def test_the_import_that_really_failed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensordict.py").write_text("import deep_inside_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensordict", raising=False)
    found = check("jepa_wms", loaded="x")["module tensordict"]
    assert "import of deep_inside_is_missing failed" in found.message


def test_a_module_that_is_broken_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensordict.py").write_text("raise OSError('libtorch.so: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensordict", raising=False)
    found = check("jepa_wms", loaded="x")["module tensordict"]
    assert found.level == "error"
    assert "libtorch.so" in found.message


def test_auto_cost_model_absent_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import stable_worldmodel.policy

    monkeypatch.delattr(stable_worldmodel.policy, "AutoCostModel")
    found = check(loaded="x")["stable_worldmodel.policy.AutoCostModel"]
    assert found.level == "warning"
    assert "object checkpoints cannot be loaded" in found.message


def test_openvino_matters_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    wanted = check(loaded="x", options={"backend": "openvino"})["module openvino"]
    assert wanted.level == "error"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check(loaded="x")["module openvino"].level == "ok"


def test_checkpoint_hash_and_device(tmp_path: Path) -> None:
    missing = check(model_path=str(tmp_path / "none"))
    assert missing["checkpoint"].code == "CHECKPOINT_MISSING"
    assert "world model" not in missing, "nothing to load"
    wrong = check(options={"sha256": "0" * 64})
    assert wrong["checkpoint"].code == "CHECKPOINT_UNTRUSTED"
    nowhere = check(device="cuda:99")
    assert nowhere["device"].code == "DEVICE_UNAVAILABLE"
    assert nowhere["checkpoint"].level == "ok", "each is checked, whatever the others find"
    copy = tmp_path / "copy"
    shutil.copytree(SHIPPED, copy)
    (copy / "config.json").write_text("{}")
    assert check(model_path=str(copy))["world model"].code == "CHECKPOINT_INVALID"


def test_settings_are_listed_without_their_values() -> None:
    found = check(
        environment={
            "LEWORLDMODEL_POLICY": "secret/run",
            "LEWM_POLICY": "other",
            "LEWORLDMODEL_DEVICE": " ",
        },
        loaded="x",
    )
    model = found["setting model_path"]
    assert model.level == "warning"
    assert model.message == "from LEWORLDMODEL_POLICY; LEWM_POLICY is set but does not count"
    assert found["setting device"].message == "from default"
    assert not any(
        "secret" in item.message for name, item in found.items() if name.startswith("setting")
    )


def test_doctor_prints_and_exits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["doctor", "--json"]) == 0
    output = capsys.readouterr().out
    checks = json.loads(output.splitlines()[-1])["checks"]
    assert {item["level"] for item in checks} == {"ok"}
    assert "loads: world_model-" in " ".join(output.split())
    monkeypatch.setenv("LEWM_POLICY", "run_object.ckpt")
    assert main(["doctor", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    assert [item["code"] for item in checks if item["level"] == "error"] == ["CHECKPOINT_INVALID"]
    assert main(["doctor", "--scorer", "dreamer"]) == 2
    assert main(["doctor", "--model-path", str(tmp_path / "none")]) == 1
