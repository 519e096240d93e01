"""Parameters win over environment variables, those over defaults; blank counts as not set."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.scorers.checkpoint import (
    check_hash,
    find_checkpoint,
    homes,
)
from worldforge_ros.scorers.settings import SHIPPED, resolve


@pytest.mark.parametrize(
    ("scorer", "name", "variables"),
    [
        ("lewm", "model_path", ("LEWORLDMODEL_POLICY", "LEWM_POLICY")),
        ("lewm", "cache_dir", ("LEWORLDMODEL_CACHE_DIR", "STABLEWM_HOME")),
        ("lewm", "device", ("LEWORLDMODEL_DEVICE",)),
        ("jepa_wms", "model_path", ("JEPA_WMS_MODEL_NAME",)),
        ("jepa_wms", "repository", ("JEPA_WMS_MODEL_PATH",)),
        ("jepa_wms", "device", ("JEPA_WMS_DEVICE",)),
    ],
)
def test_who_wins(scorer: str, name: str, variables: tuple[str, ...]) -> None:
    everything = dict.fromkeys(variables, "environment")
    given = resolve(scorer, {name: " mine "}, everything)[name]
    assert (given.value, given.source, given.overridden) == ("mine", "parameter", variables)
    for count, variable in enumerate(variables):
        blank = dict.fromkeys(variables[:count], " ")
        found = resolve(scorer, {name: "  "}, {**everything, **blank})
        assert (found[name].value, found[name].source) == ("environment", variable)
        assert found[name].overridden == variables[count + 1 :]
    nothing = resolve(scorer, {}, dict.fromkeys(variables, "\t"))[name]
    assert nothing.source == "default"
    defaults = {"device": "cpu", "model_path": SHIPPED if scorer == "lewm" else ""}
    assert nothing.value == defaults.get(name, "")


def test_an_unknown_scorer_is_refused() -> None:
    with pytest.raises(WorldForgeError, match="'dreamer'; expected one of lewm, jepa_wms"):
        resolve("dreamer", {}, {})


def touch(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_layout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("STABLEWM_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for run, weights in (
        ("plain", "weights.pt"),
        ("safe", "model.safetensors"),
        ("epoch", "weights_epoch_10.pt"),
    ):
        touch(home / run / "config.json")
        touch(home / run / weights)
    for run in ("later", "models--someone--lewm-pusht"):
        touch(home / "checkpoints" / run / "config.json")
        touch(home / "checkpoints" / run / "weights.pt")
    touch(home / "old_object.ckpt")
    touch(home / "checkpoints" / "new_object.ckpt")
    touch(home / "folder" / "inside_object.ckpt")
    cases = {
        "plain": ("config+pt", "plain"),
        "safe": ("config+safetensors", "safe"),
        "epoch": ("config+pt", "epoch"),
        "later": ("config+pt", "later"),
        "someone/lewm-pusht": ("config+pt", "models--someone--lewm-pusht"),
        "old": ("object", "old"),
        "new": ("object", "new"),
        "folder": ("object", "inside"),
        str(home / "plain"): ("config+pt", "plain"),
        str(home / "epoch" / "weights_epoch_10.pt"): ("config+pt", "epoch"),
        str(home / "old"): ("object", "old"),
    }
    found = {name: find_checkpoint(name) for name in cases}
    assert {name: (item.kind, item.name) for name, item in found.items()} == cases
    # A home of its own, as LEWORLDMODEL_CACHE_DIR gives it, takes the place of STABLEWM_HOME.
    touch(tmp_path / "other" / "checkpoints" / "mine" / "config.json")
    touch(tmp_path / "other" / "checkpoints" / "mine" / "weights.pt")
    assert find_checkpoint("mine", str(tmp_path / "other")).kind == "config+pt"
    with pytest.raises(WorldForgeError):
        find_checkpoint("plain", str(tmp_path / "other"))


def test_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABLEWM_HOME", " ")
    default = Path("~/.stable_worldmodel").expanduser()
    assert homes() == (default, default / "checkpoints")
    assert homes("/data") == (Path("/data"), Path("/data/checkpoints"))


def test_what_is_no_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WorldForgeError, match="the run name without the suffix: 'runs/x'") as info:
        find_checkpoint("runs/x_object.ckpt")
    assert info.value.code is ErrorCode.CHECKPOINT_INVALID
    with pytest.raises(WorldForgeError, match=r"'nowhere', in none of .*checkpoints") as info:
        find_checkpoint("nowhere", str(tmp_path))
    assert info.value.code is ErrorCode.CHECKPOINT_MISSING
    folder = tmp_path / "run"
    touch(folder / "config.json")
    with pytest.raises(WorldForgeError, match="without weights") as info:
        find_checkpoint(str(folder))
    assert info.value.code is ErrorCode.CHECKPOINT_MISSING
    touch(folder / "a.pt")
    touch(folder / "b.pt")
    with pytest.raises(WorldForgeError, match=r"a\.pt.*b\.pt.*name the one you mean") as info:
        find_checkpoint(str(folder))
    assert info.value.code is ErrorCode.CHECKPOINT_INVALID
    bare = touch(tmp_path / "bare" / "weights.pt")
    with pytest.raises(WorldForgeError, match=r"without .*bare/config\.json") as info:
        find_checkpoint(str(bare))
    assert info.value.code is ErrorCode.CHECKPOINT_MISSING


def test_hashes(tmp_path: Path) -> None:
    touch(tmp_path / "run" / "config.json")
    touch(tmp_path / "run" / "weights.pt")
    plain = find_checkpoint(str(tmp_path / "run"))
    check_hash(plain, "ab", "")
    check_hash(plain, "ab", "AB")
    with pytest.raises(WorldForgeError, match="is ab; expected cd, as configured") as info:
        check_hash(plain, "ab", "cd")
    assert info.value.code is ErrorCode.CHECKPOINT_UNTRUSTED
    touch(tmp_path / "pickled_object.ckpt")
    pickled = find_checkpoint(str(tmp_path / "pickled"))
    with pytest.raises(WorldForgeError, match=r"a pickle.*sha256 \(ab\) if you trust it"):
        check_hash(pickled, "ab", "")
    check_hash(pickled, "ab", "ab")
