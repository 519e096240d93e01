"""LeRobot checkpoints as policies: sampling on a tiny checkpoint, and every refusal while
loading.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.policies.lerobot import load_lerobot_policy
from worldforge_ros.policies.proposer import LeRobotPolicy, diversity

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

pytestmark = pytest.mark.timeout(300)

STEP_NS = 100_000_000


@pytest.fixture(scope="module")
def pusht() -> Embodiment:
    return load_embodiment("pusht")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained diffusion policy, written the way the training writes the shipped one."""
    from worldforge_ros.policies.keypoint_network import KeypointNetwork
    from worldforge_ros.training.policy import export, make_policy

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    stats = {
        name: {
            "min": torch.zeros(size),
            "max": torch.full((size,), 512.0),
            "mean": torch.full((size,), 256.0),
            "std": torch.full((size,), 100.0),
        }
        for name, size in (
            ("observation.state", 2),
            ("observation.environment_state", 16),
            ("action", 2),
        )
    }
    export(make_policy((16, 32), 3), stats, KeypointNetwork().eval(), folder)
    return folder


@pytest.fixture(scope="module")
def policy(checkpoint: Path, pusht: Embodiment) -> LeRobotPolicy:
    return load_lerobot_policy(checkpoint, pusht)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def window(gap: int = STEP_NS, count: int = 2) -> list[Observation]:
    rng = np.random.default_rng(3)
    return [
        Observation(
            stamp=10**9 + k * gap,
            images={"top": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)},
            position=np.array([0.1 + 0.01 * k, 0.3]),
            velocity=np.zeros(2),
        )
        for k in range(count)
    ]


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def refused(path: Path, embodiment: Embodiment, code: ErrorCode, **options: Any) -> str:
    with pytest.raises(WorldForgeError) as caught:
        load_lerobot_policy(path, embodiment, **options)
    assert caught.value.code is code, str(caught.value)
    return caught.value.message


def test_the_folder_is_a_self_contained_lerobot_checkpoint(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
    } <= names
    steps = json.loads((checkpoint / "policy_preprocessor.json").read_text())["steps"]
    own = next(s for s in steps if s.get("registry_name") == "worldforge_image_to_keypoints")
    assert (checkpoint / own["state_file"]).is_file()
    normalizer = [s.get("registry_name") for s in steps].index("normalizer_processor")
    assert steps.index(own) < normalizer


def test_shapes_units_and_metadata(policy: LeRobotPolicy) -> None:
    assert policy.history == 2
    assert policy.max_horizon == 15
    proposal = policy.propose(window(), 5, seed=1)
    assert proposal.candidates.shape == (5, 15, 2)
    assert proposal.candidates.dtype == np.float32
    assert proposal.joint_names == ("pusher_x", "pusher_y")
    assert proposal.step == 0.1
    # DDIM clips a sample to [-1, 1]: the statistics' 0 to 512 environment units, in metres.
    assert proposal.candidates.min() >= 0.0
    assert 0.1 < proposal.candidates.max() <= 0.5121
    assert policy.model_id == f"tiny@{policy.sha256[:12]}"
    assert proposal.metadata["model_id"] == policy.model_id
    assert proposal.metadata["sha256"] == policy.sha256
    assert proposal.metadata["type"] == "diffusion"
    assert proposal.metadata["device"] == "cpu"
    assert proposal.metadata["num_inference_steps"] == "5"
    assert float(proposal.metadata["model_latency_s"]) > 0.0
    assert float(proposal.metadata["diversity"]) == pytest.approx(
        diversity(proposal.candidates), abs=1e-6
    )


def test_the_same_seed_gives_the_same_candidates_bit_for_bit(policy: LeRobotPolicy) -> None:
    first = policy.propose(window(), 4, seed=7).candidates
    np.testing.assert_array_equal(policy.propose(window(), 4, seed=7).candidates, first)
    assert not np.array_equal(policy.propose(window(), 4, seed=8).candidates, first)
    fresh = policy.propose(window(), 4)
    assert not np.array_equal(fresh.candidates, first)
    again = policy.propose(window(), 4, seed=int(fresh.metadata["seed"]))
    np.testing.assert_array_equal(again.candidates, fresh.candidates)


def test_a_shorter_horizon_is_the_beginning_of_the_longer_one(policy: LeRobotPolicy) -> None:
    whole = policy.propose(window(), 3, seed=2).candidates
    part = policy.propose(window(), 3, horizon=10, seed=2).candidates
    np.testing.assert_array_equal(part, whole[:, :10])


def test_one_candidate_equals_lerobots_own_generate_actions(
    policy: LeRobotPolicy, checkpoint: Path
) -> None:
    """The reference goes through LeRobot's public path, from raw features to actions."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(checkpoint))
    reference = get_policy_class(config.type).from_pretrained(str(checkpoint), config=config)
    pre, post = make_pre_post_processors(config, pretrained_path=str(checkpoint))
    history = window()
    images = np.stack([item.images["top"] for item in history]).transpose(0, 3, 1, 2)
    batch = pre(
        {
            "observation.state": torch.tensor(
                [[[100.0, 300.0], [110.0, 300.0]]], dtype=torch.float32
            ),
            "observation.image": torch.from_numpy(images).float()[None] / 255.0,
        }
    )
    assert "observation.image" not in batch
    noise = torch.randn((1, 16, 2), generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        expected = post(reference.diffusion.generate_actions(batch, noise=noise))
    assert expected.shape == (1, 8, 2)
    found = policy.propose(history, 1, seed=11).candidates
    np.testing.assert_allclose(found[:, :8] * 1000.0, expected.numpy(), atol=512 * 1e-5)


def test_the_picture_matters(policy: LeRobotPolicy) -> None:
    history = window()
    other = [
        dataclasses.replace(item, images={"top": 255 - item.images["top"]}) for item in history
    ]
    first = policy.propose(history, 1, seed=0).candidates
    assert not np.array_equal(policy.propose(other, 1, seed=0).candidates, first)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"num_candidates": 0}, ErrorCode.NO_CANDIDATES),
        ({"num_candidates": 4097}, ErrorCode.TOO_MANY_CANDIDATES),
        ({"horizon": 16}, ErrorCode.HORIZON_INVALID),
        ({"horizon": -1}, ErrorCode.HORIZON_INVALID),
        ({"seed": -2}, ErrorCode.INVALID_ARGUMENT),
        ({"history": window(count=1)}, ErrorCode.HISTORY_TOO_SHORT),
        ({"history": window(count=3)}, ErrorCode.HISTORY_TOO_SHORT),
        ({"history": window(gap=2 * STEP_NS)}, ErrorCode.HISTORY_TOO_SHORT),
        ({"history": window()[::-1]}, ErrorCode.HISTORY_TOO_SHORT),
    ],
)
def test_bad_requests_are_refused(
    policy: LeRobotPolicy, change: dict[str, Any], code: ErrorCode
) -> None:
    request: dict[str, Any] = {"history": window(), "num_candidates": 2, **change}
    with pytest.raises(WorldForgeError) as caught:
        policy.propose(**request)
    assert caught.value.code is code


def test_diversity_by_hand() -> None:
    chunks = np.zeros((3, 2, 2), dtype=np.float32)
    chunks[1, :, 0] = 3.0
    chunks[2, 0] = (0.0, 4.0)
    # Pairs: 0-1 3 and 3; 0-2 4 and 0; 1-2 5 and 3. Means over steps 3, 2, 4.
    assert diversity(chunks) == pytest.approx(3.0)
    assert diversity(chunks[:1]) == 0.0


def test_fewer_inference_steps(checkpoint: Path, pusht: Embodiment) -> None:
    quick = load_lerobot_policy(checkpoint, pusht, num_inference_steps=3)
    assert quick.propose(window(), 1, seed=0).metadata["num_inference_steps"] == "3"
    message = refused(checkpoint, pusht, ErrorCode.INVALID_ARGUMENT, num_inference_steps=101)
    assert "1 to 100" in message


def test_missing_files_are_named_before_any_import(tmp_path: Path, pusht: Embodiment) -> None:
    assert str(tmp_path / "absent") in refused(
        tmp_path / "absent", pusht, ErrorCode.CHECKPOINT_MISSING
    )
    assert "config.json" in refused(tmp_path, pusht, ErrorCode.CHECKPOINT_MISSING)


def test_missing_weights(copy: Path, pusht: Embodiment) -> None:
    (copy / "model.safetensors").unlink()
    assert "model.safetensors" in refused(copy, pusht, ErrorCode.CHECKPOINT_MISSING)


def test_no_processor_files(copy: Path, pusht: Embodiment) -> None:
    (copy / "policy_preprocessor.json").unlink()
    message = refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)
    assert "without policy_preprocessor.json" in message
    (copy / "policy_postprocessor.json").unlink()
    message = refused(copy, pusht, ErrorCode.POLICY_NOT_MIGRATED)
    assert f"worldforge migrate-policy {copy} copy-migrated" in message


def test_unreadable_json(copy: Path, pusht: Embodiment) -> None:
    (copy / "config.json").write_text("{")
    assert "config.json" in refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)


def test_an_unknown_configuration_field(copy: Path, pusht: Embodiment) -> None:
    edit(copy / "config.json", lambda data: data.update(magic=1))
    assert "config.json" in refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)


def test_a_step_of_a_foreign_class(copy: Path, pusht: Embodiment) -> None:
    edit(
        copy / "policy_preprocessor.json",
        lambda data: data["steps"].insert(0, {"class": "os.system", "config": {}}),
    )
    assert "os.system" in refused(copy, pusht, ErrorCode.CHECKPOINT_UNTRUSTED)


def test_an_unregistered_step(copy: Path, pusht: Embodiment) -> None:
    edit(
        copy / "policy_preprocessor.json",
        lambda data: data["steps"].insert(0, {"registry_name": "no_such_step", "config": {}}),
    )
    assert "no_such_step" in refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)


def test_a_missing_state_file(copy: Path, pusht: Embodiment) -> None:
    next(copy.glob("*worldforge_image_to_keypoints.safetensors")).unlink()
    assert "image_to_keypoints" in refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)


def test_a_step_without_its_weights(copy: Path, pusht: Embodiment) -> None:
    def forget(data: dict[str, Any]) -> None:
        for step in data["steps"]:
            if step.get("registry_name") == "worldforge_image_to_keypoints":
                del step["state_file"]

    edit(copy / "policy_preprocessor.json", forget)
    assert "state_file" in refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "corrupt"])
def test_weights_that_do_not_fit(copy: Path, pusht: Embodiment, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        tensors["extra.weight"] = torch.zeros(3)
    elif fault == "shape":
        tensors[name] = torch.zeros(1, 1)
    if fault == "corrupt":
        file.write_bytes(b"not a safetensors file")
    else:
        save_file(tensors, file)
    message = refused(copy, pusht, ErrorCode.CHECKPOINT_INVALID)
    assert "model.safetensors" in message
    if fault in ("missing", "shape"):
        assert name in message
    if fault == "unexpected":
        assert "extra.weight" in message


@pytest.mark.parametrize(
    ("processor", "feature"),
    [("preprocessor", "observation.environment_state"), ("postprocessor", "action")],
)
@pytest.mark.parametrize("fault", ["absent", "not finite", "no state"])
def test_a_feature_declared_normalised_without_statistics(
    copy: Path, pusht: Embodiment, processor: str, feature: str, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / f"policy_{processor}.json"
    entry = next(
        step
        for step in json.loads(file.read_text())["steps"]
        if "normalizer" in step.get("registry_name", "")
    )
    state = copy / entry["state_file"]
    tensors = load_file(state)
    if fault == "absent":
        save_file({k: v for k, v in tensors.items() if k != f"{feature}.max"}, state)
    elif fault == "not finite":
        save_file({**tensors, f"{feature}.max": tensors[f"{feature}.max"] * torch.nan}, state)
    else:

        def forget(data: dict[str, Any]) -> None:
            for step in data["steps"]:
                if "normalizer" in step.get("registry_name", ""):
                    del step["state_file"]

        edit(file, forget)
    message = refused(copy, pusht, ErrorCode.POLICY_STATISTICS_MISSING)
    assert "MIN_MAX" in message
    if fault != "no state":
        assert feature in message


def test_a_pipeline_without_a_normalizer(copy: Path, pusht: Embodiment) -> None:
    def drop(data: dict[str, Any]) -> None:
        data["steps"] = [
            s for s in data["steps"] if s.get("registry_name") != "normalizer_processor"
        ]

    edit(copy / "policy_preprocessor.json", drop)
    refused(copy, pusht, ErrorCode.POLICY_STATISTICS_MISSING)


def test_another_number_of_joints(copy: Path, pusht: Embodiment) -> None:
    edit(
        copy / "config.json",
        lambda data: data["output_features"]["action"].update(shape=[7]),
    )
    message = refused(copy, pusht, ErrorCode.ACTION_DIM_MISMATCH)
    assert "(7,)" in message
    assert "(2,)" in message
    assert "pusher_x" in message


def test_a_feature_nobody_supplies(checkpoint: Path, pusht: Embodiment) -> None:
    features = {
        name: feature
        for name, feature in pusht.policy.features.items()
        if name != "observation.image"
    }
    blind = dataclasses.replace(pusht, policy=dataclasses.replace(pusht.policy, features=features))
    message = refused(checkpoint, blind, ErrorCode.POLICY_FEATURE_MISMATCH)
    assert "observation.environment_state" in message
    assert "not supplied" in message


def test_a_camera_of_another_size(checkpoint: Path, pusht: Embodiment) -> None:
    camera = dataclasses.replace(pusht.cameras["top"], width=64, height=64)
    small = dataclasses.replace(pusht, cameras={"top": camera})
    refused(checkpoint, small, ErrorCode.POLICY_FEATURE_MISMATCH)


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_a_device_that_is_not_there(checkpoint: Path, pusht: Embodiment, device: str) -> None:
    message = refused(checkpoint, pusht, ErrorCode.DEVICE_UNAVAILABLE, device=device)
    assert f"'{device}'" in message
    assert "cpu" in message


def test_a_checkpoint_trained_on_another_device(copy: Path, pusht: Embodiment) -> None:
    def elsewhere(data: dict[str, Any]) -> None:
        for step in data["steps"]:
            if step.get("registry_name") == "device_processor":
                step["config"]["device"] = "cuda"

    edit(copy / "policy_preprocessor.json", elsewhere)
    edit(copy / "config.json", lambda data: data.update(device="cuda"))
    policy = load_lerobot_policy(copy, pusht, device="cpu")
    assert policy.propose(window(), 1, seed=0).metadata["device"] == "cpu"
