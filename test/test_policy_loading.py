"""Where a policy comes from and what it says it is: folders, hub ids, types, environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_policies as tiny

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.policies.checkpoint import check_files, find_checkpoint
from worldforge_ros.policies.contract import describe
from worldforge_ros.policies.lerobot import load_lerobot_policy
from worldforge_ros.policies.settings import DEFAULTS, VARIABLES, resolve

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

pytestmark = pytest.mark.timeout(300)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("diffusion", tmp_path_factory.mktemp("made") / "diffusion")


@pytest.fixture
def copy(diffusion: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(diffusion, tmp_path / "copy"))


def refused(code: ErrorCode, name: Any, **options: Any) -> str:
    with pytest.raises(WorldForgeError) as caught:
        load_lerobot_policy(name, tiny.robot(), **options)
    assert caught.value.code is code, str(caught.value)
    return caught.value.message


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize(
    "name", ["/no/such/policy", "./policy", "~/policy", "models/pusht/absent", "policy"]
)
def test_a_missing_folder_is_reported_before_anything_heavy_is_imported(name: str) -> None:
    program = (
        "import sys\n"
        "from worldforge_ros.embodiment import load_embodiment\n"
        "from worldforge_ros.errors import WorldForgeError\n"
        "from worldforge_ros.policies.lerobot import load_lerobot_policy\n"
        "try:\n"
        "    load_lerobot_policy(sys.argv[1], load_embodiment('pusht'))\n"
        "except WorldForgeError as error:\n"
        "    heavy = {'torch', 'lerobot', 'huggingface_hub', 'transformers'} & set(sys.modules)\n"
        "    print(error.code, sorted(heavy), error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("CHECKPOINT_MISSING [] policy checkpoint is no folder")
    assert name.removeprefix("~").removeprefix("./") in done.stdout


def test_a_hub_id_needs_a_commit(tmp_path: Path) -> None:
    assert "its commit as revision" in refused(ErrorCode.CHECKPOINT_MISSING, "someone/policy")
    for revision in ("main", "v1.0", COMMIT[:12], COMMIT.upper()):
        message = refused(ErrorCode.INVALID_ARGUMENT, "someone/policy", revision=revision)
        assert "40 hex digits" in message
    message = refused(
        ErrorCode.CHECKPOINT_MISSING, "someone/policy", revision=COMMIT, cache_dir=str(tmp_path)
    )
    assert "HF_HUB_OFFLINE" in message


def test_a_cached_hub_snapshot_is_loaded(diffusion: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--policy" / "snapshots" / COMMIT
    shutil.copytree(diffusion, snapshot)
    policy = load_lerobot_policy(
        "someone/policy", tiny.robot(), revision=COMMIT, cache_dir=str(tmp_path)
    )
    assert policy.model_id.startswith("someone/policy@")
    assert policy.propose(tiny.window(2), 2, seed=0).candidates.shape == (2, 7, 2)


def test_a_folder_has_no_revision(diffusion: Path) -> None:
    message = refused(ErrorCode.INVALID_ARGUMENT, diffusion, revision=COMMIT)
    assert "a folder has no revisions" in message


def test_the_type_that_was_asked_for(copy: Path) -> None:
    policy = load_lerobot_policy(copy, tiny.robot(), policy_type="diffusion")
    proposal = policy.propose(tiny.window(2), 1, seed=0)
    assert proposal.metadata["loader_mode"] == "typed"
    assert "one of" in refused(ErrorCode.POLICY_TYPE_UNKNOWN, copy, policy_type="telepathy")
    message = refused(ErrorCode.POLICY_TYPE_MISMATCH, copy, policy_type="act")
    assert "'diffusion'" in message
    assert "'act'" in message
    change_config(copy, type=...)
    assert load_lerobot_policy(copy, tiny.robot(), policy_type="diffusion").type == "diffusion"
    assert "absent" in refused(ErrorCode.POLICY_TYPE_UNKNOWN, copy)


def test_an_unknown_type_lists_the_registry(copy: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig

    change_config(copy, type="telepathy")
    message = refused(ErrorCode.POLICY_TYPE_UNKNOWN, copy)
    for kind in PreTrainedConfig.get_known_choices():
        assert kind in message
    assert {"act", "diffusion", "pi0", "pi0_fast", "smolvla", "tdmpc", "vqbet"} <= set(
        PreTrainedConfig.get_known_choices()
    )


def test_the_historical_spelling_of_pi0_fast(copy: Path) -> None:
    change_config(copy, type="pi0fast")
    files = check_files(copy)
    assert files.kind == "pi0_fast"
    assert files.config["type"] == "pi0_fast"
    assert check_files(copy, "pi0_fast").loader_mode == "typed"


def test_a_class_that_loads_nothing_and_goes_on_is_caught(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pi0's own loader does when its weights do not fit."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    monkeypatch.setattr(
        DiffusionPolicy,
        "from_pretrained",
        classmethod(lambda cls, path, config, strict: cls(config)),
    )
    message = refused(ErrorCode.CHECKPOINT_INVALID, copy)
    assert "value of diffusion." in message
    assert "more" in message


FOREIGN = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
class Anything:
    @classmethod
    def from_pretrained(cls, *arguments, **named):
        return cls()
"""


@pytest.mark.parametrize("fault", ["processor", "trust", "model"])
def test_code_of_a_checkpoint_never_runs(copy: Path, tmp_path: Path, fault: str) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "code.py").write_text(FOREIGN)
    names = {"AutoProcessor": "code.Anything", "AutoConfig": "code.Anything"}
    (evil / "processor_config.json").write_text(json.dumps({"auto_map": names}))
    (evil / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {**names, "AutoModel": "code.Anything"}})
    )
    if fault == "model":
        if tiny.SINGLE != "sac":
            pytest.skip("this LeRobot has no configuration that names a model with code")
        folder = tiny.make("sac", tmp_path / "sac")
        change_config(folder, vision_encoder_name=str(evil))
        with pytest.raises(WorldForgeError) as caught:
            load_lerobot_policy(folder, tiny.robot())
    else:
        file = copy / "policy_preprocessor.json"
        data = json.loads(file.read_text())
        step = {
            "registry_name": "action_tokenizer_processor",
            "config": {"action_tokenizer_name": str(evil)},
        }
        if fault == "trust":
            step["config"]["trust_remote_code"] = True
        data["steps"].insert(0, step)
        file.write_text(json.dumps(data))
        with pytest.raises(WorldForgeError) as caught:
            load_lerobot_policy(copy, tiny.robot())
    assert caught.value.code is ErrorCode.CHECKPOINT_UNTRUSTED, str(caught.value)
    assert not list(tmp_path.rglob("ran"))


def test_only_processor_steps_are_called(copy: Path, tmp_path: Path) -> None:
    written = tmp_path / "log.txt"
    file = copy / "policy_preprocessor.json"
    data = json.loads(file.read_text())
    data["steps"].insert(
        0,
        {"class": "lerobot.utils.utils.init_logging", "config": {"log_file": str(written)}},
    )
    file.write_text(json.dumps(data))
    assert "ProcessorStep" in refused(ErrorCode.CHECKPOINT_UNTRUSTED, copy)
    assert not written.exists()


def test_the_network_is_as_it_was_after_a_load(
    diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from worldforge_ros.policies.checkpoint import sealed

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with sealed():
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    load_lerobot_policy(diffusion, tiny.robot())
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def change_normalizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "policy_preprocessor.json"
    data = json.loads(file.read_text())
    change(next(s for s in data["steps"] if s.get("registry_name") == "normalizer_processor"))
    file.write_text(json.dumps(data))


def without_the_state(step: dict[str, Any]) -> None:
    del step["config"]["features"]["observation.state"]


def as_it_is(step: dict[str, Any]) -> None:
    step["config"]["norm_map"]["STATE"] = "IDENTITY"


@pytest.mark.parametrize("change", [without_the_state, as_it_is])
def test_a_feature_is_normalised_as_declared(
    copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    change_normalizer(copy, change)
    message = refused(ErrorCode.POLICY_STATISTICS_MISSING, copy)
    assert "normalisation of observation.state" in message
    assert "MIN_MAX" in message


def test_a_feature_is_normalised_once(copy: Path) -> None:
    file = copy / "policy_preprocessor.json"
    data = json.loads(file.read_text())
    data["steps"].append(data["steps"][-1])
    assert data["steps"][-1]["registry_name"] == "normalizer_processor"
    file.write_text(json.dumps(data))
    assert "2 normalising steps" in refused(ErrorCode.POLICY_STATISTICS_MISSING, copy)


def test_statistics_of_another_shape_do_not_broadcast(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = next(copy.glob("policy_preprocessor*normalizer_processor.safetensors"))
    tensors = load_file(file)
    save_file({**tensors, "observation.state.min": tensors["observation.state.min"][:1]}, file)
    message = refused(ErrorCode.POLICY_STATISTICS_MISSING, copy)
    assert "min of observation.state" in message
    assert "(1,)" in message
    file.write_bytes(b"damaged")
    assert "processors" in refused(ErrorCode.CHECKPOINT_INVALID, copy)


@pytest.mark.parametrize(
    "changes", [{"vision_backbone": "resnet999"}, {"input_features": None}, {"horizon": 7}]
)
def test_a_model_that_cannot_be_built_names_its_configuration(
    copy: Path, changes: dict[str, Any]
) -> None:
    change_config(copy, **changes)
    message = refused(ErrorCode.CHECKPOINT_INVALID, copy)
    assert "config.json" in message
    assert "model.safetensors" not in message


def test_a_loader_takes_no_settings_of_a_checkpoint(diffusion: Path) -> None:
    message = refused(
        ErrorCode.INVALID_ARGUMENT, diffusion, loader=lambda name, device: None, revision="x"
    )
    assert "revision" in message


def test_settings_that_a_type_does_not_have(diffusion: Path, tmp_path: Path) -> None:
    act = tiny.make("act", tmp_path / "act")
    assert "type act" in refused(ErrorCode.INVALID_ARGUMENT, act, num_inference_steps=5)
    assert "type act" in refused(ErrorCode.INVALID_ARGUMENT, act, noise_scheduler="DDIM")
    assert "'DPM'" in refused(ErrorCode.INVALID_ARGUMENT, diffusion, noise_scheduler="DPM")
    assert "threads" in refused(ErrorCode.INVALID_ARGUMENT, diffusion, threads=0)


def test_another_noise_scheduler(diffusion: Path) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    policy = load_lerobot_policy(
        diffusion, tiny.robot(), noise_scheduler="DDPM", num_inference_steps=3
    )
    assert isinstance(policy._loaded.policy.diffusion.noise_scheduler, DDPMScheduler)
    window = tiny.window(2)
    first, again = (policy.propose(window, 2, seed=1).candidates for _ in range(2))
    assert (first == again).all()
    usual = load_lerobot_policy(diffusion, tiny.robot(), num_inference_steps=3)
    assert (usual.propose(window, 2, seed=1).candidates != first).any()


def test_parameters_win_over_variables_and_variables_over_defaults() -> None:
    environment = {
        "LEROBOT_POLICY_PATH": "/one",
        "LEROBOT_POLICY": "/two",
        "LEROBOT_POLICY_TYPE": "act",
        "LEROBOT_DEVICE": " cuda ",
        "LEROBOT_CACHE_DIR": "/cache",
        "LEROBOT_EMBODIMENT_TAG": "pusht",
    }
    found = resolve({}, environment)
    assert {name: setting.value for name, setting in found.items()} == {
        "policy_path": "/one",
        "policy_type": "act",
        "device": "cuda",
        "cache_dir": "/cache",
        "embodiment_tag": "pusht",
    }
    assert found["policy_path"].source == "LEROBOT_POLICY_PATH"
    assert found["policy_path"].overridden == ("LEROBOT_POLICY",)
    second = resolve({}, {"LEROBOT_POLICY_PATH": "", "LEROBOT_POLICY": "/two"})["policy_path"]
    assert (second.value, second.source) == ("/two", "LEROBOT_POLICY")
    given = resolve(dict.fromkeys(VARIABLES, "given"), environment)
    assert {setting.value for setting in given.values()} == {"given"}
    assert {setting.source for setting in given.values()} == {"parameter"}
    assert {name: setting.value for name, setting in resolve({}, {}).items()} == DEFAULTS
    assert find_checkpoint(DEFAULTS["policy_path"]).name == "policy"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            [[1.0, float("nan")], "text" * 20],
            {"type": "list", "length": 2, "preview": [[1.0, "nan"], ("text" * 20)[:40]]},
        ),
        (
            {"a": [1, 2, 3, 4], "b": None, "c": True, "d": 0},
            {
                "type": "dict",
                "length": 4,
                "preview": {"a": [1, 2, 3], "b": None, "c": True},
            },
        ),
        ([[[[1]]]], {"type": "list", "length": 1, "preview": [[["..."]]]}),
        (object(), {"type": "object", "preview": "object"}),
        (7, {"type": "int", "preview": 7}),
    ],
)
def test_the_description_of_a_raw_action_is_bounded(raw: object, expected: object) -> None:
    assert json.loads(describe(raw)) == expected
