"""Checkpoints of LeRobot before 0.4: what they compute survives the migration, and each refusal.

The old checkpoints are made here: the installed LeRobot's networks with random weights, statistics
put among the weights and configurations written by hand as LeRobot 0.3.3 (`2025`) and 0.0.1
(`2024`) wrote them. The expected outputs come from the formulas of `lerobot/policies/normalize.py`
of 0.3.3, written out below, around the network that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from worldforge_ros import cli
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.policies.lerobot import load_lerobot_policy
from worldforge_ros.policies.migrate import Migration, migrate_policy

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

pytestmark = pytest.mark.timeout(300)

STATE, ENV, ACTION = "observation.state", "observation.environment_state", "action"
TOP, WRIST = "observation.images.top", "observation.images.left_wrist"
IMAGE = (3, 64, 72)
SIZES = {STATE: 2, ENV: 2, ACTION: 2}

# Fields of a configuration that came with 0.4 or with 2025; older files do not have them.
SINCE_0_4 = {"use_peft", "pretrained_path", "resize_shape", "crop_ratio"}
SINCE_0_4 |= {"compile_model", "compile_mode", "gradient_checkpointing"}
SINCE_2025 = {"device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license"}
SINCE_2025 |= {"drop_n_last_frames", "optimizer_lr", "optimizer_lr_backbone", "optimizer_eps"}
SINCE_2025 |= {"optimizer_betas", "optimizer_weight_decay", "optimizer_vqvae_lr"}
SINCE_2025 |= {"optimizer_vqvae_weight_decay", "scheduler_name", "scheduler_warmup_steps"}

Statistics = dict[str, dict[str, Any]]


@dataclass
class Old:
    """An old checkpoint, and what it takes to compute its outputs in the old way."""

    folder: Path
    policy: Any
    modes: Mapping[str, str]
    statistics: Statistics

    def normalise(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(batch)
        for name in batch:
            s = self.statistics.get(name, {})
            if self.modes[name] == "MEAN_STD":
                result[name] = (batch[name] - s["mean"]) / (s["std"] + 1e-8)
            elif self.modes[name] == "MIN_MAX":
                result[name] = (batch[name] - s["min"]) / (s["max"] - s["min"] + 1e-8) * 2 - 1
        return result

    def unnormalise(self, action: Any) -> Any:
        s = self.statistics.get(ACTION, {})
        if self.modes[ACTION] == "MEAN_STD":
            return action * s["std"] + s["mean"]
        if self.modes[ACTION] == "MIN_MAX":
            return (action + 1) / 2 * (s["max"] - s["min"]) + s["min"]
        return action


def statistics_of(name: str, mode: str, generator: Any) -> dict[str, Any]:
    shape = (3, 1, 1) if "image" in name else (SIZES[name],)
    first = torch.rand(shape, generator=generator) - 0.5
    width = 0.2 + torch.rand(shape, generator=generator)
    if mode == "MEAN_STD":
        return {"mean": first, "std": width}
    if mode == "MIN_MAX":
        return {"min": first, "max": first + width}
    return {}


def buffers_of(statistics: Statistics, inputs: list[str]) -> dict[str, Any]:
    buffers = {}
    for name, values in statistics.items():
        for group in ("normalize_inputs",) if name in inputs else ACTION_GROUPS:
            for key, value in values.items():
                buffers[f"{group}.buffer_{name.replace('.', '_')}.{key}"] = value.clone()
    return buffers


ACTION_GROUPS = ("normalize_targets", "unnormalize_outputs")


def shape_of(name: str) -> list[int]:
    return list(IMAGE) if "image" in name else [SIZES[name]]


def type_of(name: str) -> str:
    return "VISUAL" if "image" in name else {STATE: "STATE", ENV: "ENV", ACTION: "ACTION"}[name]


def make_old(
    folder: Path,
    kind: str,
    modes: Mapping[str, str],
    form: str,
    rename: Mapping[str, str] | None = None,
    gain: Mapping[str, float] | None = None,
    **fields: Any,
) -> Old:
    """Write an old checkpoint of a small random policy with these features and their modes.

    :param rename: old name to the name of today, for some tensors.
    :param gain: what to multiply a tensor by, where fresh weights hardly let an input matter.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    features = {
        name: PolicyFeature(FeatureType(type_of(name)), tuple(shape_of(name))) for name in modes
    }
    inputs = [name for name in modes if name != ACTION]
    if kind in ("diffusion", "vqbet"):
        # Later lines of LeRobot have other defaults, one of which fetches weights.
        fields = {"pretrained_backbone_weights": None, "use_group_norm": True, **fields}
    config = make_policy_config(
        kind,
        device="cpu",
        input_features={name: features[name] for name in inputs},
        output_features={ACTION: features[ACTION]},
        **fields,
    )
    policy = get_policy_class(kind)(config).eval()
    for name, factor in (gain or {}).items():
        policy.get_parameter(name).data.mul_(factor)
    statistics = {name: statistics_of(name, mode, generator) for name, mode in modes.items()}
    folder.mkdir()
    config.save_pretrained(folder)
    data = json.loads((folder / "config.json").read_text())
    for name in SINCE_0_4 & set(data):
        del data[name]
    if form == "2025":
        data["normalization_mapping"] = {type_of(name): mode for name, mode in modes.items()}
        data["device"] = "cuda"
    else:
        for name in (SINCE_2025 | {"type", "normalization_mapping"}) & set(data):
            del data[name]
        for group, names in (("input", inputs), ("output", [ACTION])):
            del data[f"{group}_features"]
            data[f"{group}_shapes"] = {name: shape_of(name) for name in names}
            data[f"{group}_normalization_modes"] = {
                name: modes[name].lower() for name in names if modes[name] != "IDENTITY"
            }
        (folder / "config.yaml").write_text(f"seed: 1000\npolicy:\n  name: {kind}\n")
    if "pretrained_backbone_weights" in data:
        data["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"
    (folder / "config.json").write_text(json.dumps(data, indent=4))
    back = {new: old for old, new in (rename or {}).items()}
    tensors = {back.get(name, name): value for name, value in policy.state_dict().items()}
    tensors |= buffers_of(statistics, inputs)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Card")
    return Old(folder, policy, modes, statistics)


TINY_ACT: dict[str, Any] = {
    "pretrained_backbone_weights": None,
    "chunk_size": 6,
    "n_action_steps": 6,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
}
TINY_DIFFUSION: dict[str, Any] = {
    "horizon": 8,
    "n_action_steps": 4,
    "down_dims": (16, 32),
    "num_train_timesteps": 10,
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": 2,
}


def make_act(folder: Path) -> Old:
    modes = {TOP: "MEAN_STD", STATE: "MEAN_STD", ACTION: "MEAN_STD"}
    return make_old(folder, "act", modes, "2025", **TINY_ACT)


def make_act_of_june_2024(folder: Path) -> Old:
    """Before the environment's state: other names for an embedding and for the ensembling."""
    old = make_old(
        folder,
        "act",
        {TOP: "MIN_MAX", STATE: "IDENTITY", ACTION: "MIN_MAX"},
        "2024",
        rename={
            "model.encoder_robot_and_latent_pos_embed.weight": (
                "model.encoder_1d_feature_pos_embed.weight"
            )
        },
        **TINY_ACT,
    )

    def change(data: dict[str, Any]) -> None:
        del data["temporal_ensemble_coeff"]
        data["temporal_ensemble_momentum"] = None

    edit(folder / "config.json", change)
    return old


def make_act_keypoints(folder: Path) -> Old:
    modes = {ENV: "MIN_MAX", STATE: "MEAN_STD", ACTION: "MEAN_STD"}
    return make_old(folder, "act", modes, "2024", **TINY_ACT)


def make_diffusion(folder: Path) -> Old:
    modes = {TOP: "MEAN_STD", WRIST: "MEAN_STD", STATE: "MIN_MAX", ACTION: "MIN_MAX"}
    return make_old(folder, "diffusion", modes, "2025", crop_shape=(56, 56), **TINY_DIFFUSION)


def make_diffusion_of_2024(folder: Path) -> Old:
    modes = {TOP: "MEAN_STD", STATE: "MIN_MAX", ACTION: "MIN_MAX"}
    fields = {"crop_shape": (56, 56), "use_separate_rgb_encoder_per_camera": False}
    old = make_old(folder, "diffusion", modes, "2024", **{**TINY_DIFFUSION, **fields})
    edit(folder / "config.json", lambda d: d.pop("use_separate_rgb_encoder_per_camera"))
    return old


def make_diffusion_keypoints(folder: Path) -> Old:
    modes = {ENV: "MIN_MAX", STATE: "MIN_MAX", ACTION: "MIN_MAX"}
    return make_old(folder, "diffusion", modes, "2025", **TINY_DIFFUSION)


def make_vqbet(folder: Path) -> Old:
    old = make_old(
        folder,
        "vqbet",
        {TOP: "IDENTITY", STATE: "MIN_MAX", ACTION: "MIN_MAX"},
        "2025",
        gain={
            "vqbet.state_projector.0.weight": 3.0,
            "vqbet.policy.transformer.h.0.attn.c_attn.weight": 10.0,
            "vqbet.policy.transformer.h.0.attn.c_proj.weight": 50.0,
            "vqbet.action_head.map_to_cbet_preds_offset.0.weight": 10.0,
        },
        n_obs_steps=2,
        n_action_pred_token=2,
        action_chunk_size=3,
        crop_shape=(56, 56),
        gpt_input_dim=16,
        gpt_output_dim=16,
        gpt_hidden_dim=16,
        gpt_n_layer=1,
        gpt_n_head=2,
        gpt_block_size=32,
        vqvae_embedding_dim=16,
        vqvae_enc_hidden_dim=16,
    )
    edit(folder / "config.json", lambda d: d.update(mlp_hidden_dim=1024))
    return old


def make_tdmpc(folder: Path) -> Old:
    modes = {ENV: "MEAN_STD", STATE: "MEAN_STD", ACTION: "MIN_MAX"}
    return make_old(folder, "tdmpc", modes, "2025", n_gaussian_samples=16, n_elites=4, mlp_dim=16)


MAKERS = [
    make_act,
    make_act_of_june_2024,
    make_act_keypoints,
    make_diffusion,
    make_diffusion_of_2024,
    make_diffusion_keypoints,
    make_vqbet,
    make_tdmpc,
]


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        name: value.clone() for name, value in load_file(folder / "model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rollout(
    policy: Any, before: Callable[[Any], Any], after: Callable[[Any], Any], names: list[str]
) -> npt.NDArray[np.float32]:
    """Actions (8, 2) on random raw observations through LeRobot's own ``select_action``."""
    generator = torch.Generator().manual_seed(1)
    policy.reset()
    actions = []
    for index in range(8):
        raw = {
            name: torch.rand((1, *shape_of(name)), generator=generator)
            - (0.0 if "image" in name else 0.5)
            for name in names
        }
        torch.manual_seed(index)
        with torch.no_grad():
            actions.append(after(policy.select_action(before(raw))))
    return np.asarray(torch.cat(actions).numpy())


@pytest.mark.parametrize("maker", MAKERS)
def test_the_migrated_policy_acts_as_the_old_one(
    maker: Callable[[Path], Old], tmp_path: Path
) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from safetensors.torch import load_file

    old = maker(tmp_path / "old")
    new = tmp_path / "deep" / "new"
    done = migrate_policy(old.folder, new)
    weights = old.policy.state_dict()
    tensors = load_file(new / "model.safetensors")
    assert set(tensors) == set(weights)
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert done.tensors == len(weights)
    assert done.parameters == sum(p.numel() for p in old.policy.parameters())
    config = PreTrainedConfig.from_pretrained(str(new))
    policy = get_policy_class(config.type).from_pretrained(str(new), config=config, strict=True)
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(new))
    names = [name for name in old.modes if name != ACTION]
    expected = rollout(old.policy, old.normalise, old.unnormalise, names)

    def prepare(raw: dict[str, Any]) -> dict[str, Any]:
        batch = preprocessor(raw)
        return {name: batch[name] for name in names}

    found = rollout(policy, prepare, postprocessor, names)
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


EMBODIMENT = """
name: slider
task: reach
joints:
  - {name: x, type: prismatic, min_position: -2.0, max_position: 2.0, max_velocity: 1.0}
  - {name: y, type: prismatic, min_position: -2.0, max_position: 2.0, max_velocity: 1.0}
cameras:
  top: {topic: camera/top/image_raw, width: 72, height: 64}
  wrist: {topic: camera/wrist/image_raw, width: 72, height: 64}
observation: {joint_state_topic: joint_states, max_age: 0.5, tolerance: 0.05}
tracking: {law: perfect}
policy:
  step: 0.1
  features:
    observation.state: {joints: [x, y], quantity: position, scale: 2.0}
    observation.environment_state: {joints: [x, y], quantity: velocity}
    observation.images.top: {camera: top}
    observation.images.left_wrist: {camera: wrist}
  action: {meaning: absolute, scale: 2.0}
"""


@pytest.fixture
def slider(tmp_path: Path) -> Embodiment:
    file = tmp_path / "slider.yaml"
    file.write_text(EMBODIMENT)
    return load_embodiment(file)


def window(count: int) -> list[Observation]:
    rng = np.random.default_rng(3)
    return [
        Observation(
            stamp=10**9 + k * 100_000_000,
            images={
                name: rng.integers(0, 256, (64, 72, 3), dtype=np.uint8) for name in ("top", "wrist")
            },
            position=np.array([0.1 + 0.01 * k, -0.2]),
            velocity=np.array([0.3, -0.1 * k]),
        )
        for k in range(count)
    ]


def refused_by_loader(folder: Path, embodiment: Embodiment) -> str:
    with pytest.raises(WorldForgeError) as caught:
        load_lerobot_policy(folder, embodiment)
    assert caught.value.code is ErrorCode.POLICY_NOT_MIGRATED
    return caught.value.message


@pytest.mark.parametrize(
    "maker", [make_act, make_act_keypoints, make_diffusion, make_diffusion_keypoints]
)
def test_the_loader_takes_it(
    maker: Callable[[Path], Old], tmp_path: Path, slider: Embodiment
) -> None:
    old = maker(tmp_path / "old")
    migrate_policy(old.folder, tmp_path / "new")
    policy = load_lerobot_policy(tmp_path / "new", slider)
    proposal = policy.propose(window(policy.history), 1, seed=0)
    assert proposal.candidates.shape == (1, policy.max_horizon, 2)
    assert np.isfinite(proposal.candidates).all()


def test_a_proposal_is_the_old_models_chunk_in_metres(tmp_path: Path, slider: Embodiment) -> None:
    old = make_act(tmp_path / "old")
    assert "worldforge migrate-policy" in refused_by_loader(old.folder, slider)
    migrate_policy(old.folder, tmp_path / "new")
    (observation,) = window(1)
    picture = torch.from_numpy(observation.images["top"]).permute(2, 0, 1)[None] / 255.0
    state = torch.tensor([[0.2, -0.4]])
    with torch.no_grad():
        chunk = old.policy.predict_action_chunk(old.normalise({TOP: picture, STATE: state}))
        expected = old.unnormalise(chunk).numpy() / 2.0
    found = load_lerobot_policy(tmp_path / "new", slider).propose([observation], 1).candidates
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def write_published_shape(folder: Path) -> Old:
    """Random weights in the shape of ``lerobot/act_aloha_sim_transfer_cube_human``: LeRobot's
    ``configs/policy/act.yaml`` of 2024, which it was trained with, in the form of 2025.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from safetensors.torch import save_file

    features = {
        TOP: {"type": "VISUAL", "shape": [3, 480, 640]},
        STATE: {"type": "STATE", "shape": [14]},
        ACTION: {"type": "ACTION", "shape": [14]},
    }
    network = {
        "n_obs_steps": 1,
        "chunk_size": 100,
        "n_action_steps": 100,
        "vision_backbone": "resnet18",
        "pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1",
        "replace_final_stride_with_dilation": False,
        "pre_norm": False,
        "dim_model": 512,
        "n_heads": 8,
        "dim_feedforward": 3200,
        "feedforward_activation": "relu",
        "n_encoder_layers": 4,
        "n_decoder_layers": 1,
        "use_vae": True,
        "latent_dim": 32,
        "n_vae_encoder_layers": 4,
        "temporal_ensemble_coeff": None,
        "dropout": 0.1,
        "kl_weight": 10.0,
        "optimizer_lr": 1e-05,
        "optimizer_weight_decay": 0.0001,
        "optimizer_lr_backbone": 1e-05,
    }
    config = {
        "type": "act",
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "input_features": {name: features[name] for name in (TOP, STATE)},
        "output_features": {ACTION: features[ACTION]},
        **network,
    }
    torch.manual_seed(0)
    declared = {
        name: PolicyFeature(FeatureType(f["type"]), tuple(f["shape"]))
        for name, f in features.items()
    }
    policy = ACTPolicy(
        ACTConfig(
            device="cpu",
            input_features={name: declared[name] for name in (TOP, STATE)},
            output_features={ACTION: declared[ACTION]},
            **{**network, "pretrained_backbone_weights": None},
        )
    ).eval()
    statistics = {
        TOP: {
            "mean": torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1),
            "std": torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1),
        },
        STATE: {"mean": torch.linspace(-0.5, 0.8, 14), "std": torch.linspace(0.1, 0.5, 14)},
        ACTION: {"mean": torch.linspace(0.6, -0.4, 14), "std": torch.linspace(0.4, 0.1, 14)},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    tensors = {**policy.state_dict(), **buffers_of(statistics, [TOP, STATE])}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Old(folder, policy, dict.fromkeys(features, "MEAN_STD"), statistics)


def test_a_checkpoint_of_the_published_aloha_shape(tmp_path: Path) -> None:
    """Its parameters are counted from LeRobot's training logs: 51,597,190 for ACT with 6 joints,
    the same whatever the cameras. Eight more joints give three projections from joints to 512
    numbers and the head from 512 to joints eight more rows or columns each, and the head a bias.
    """
    aloha = load_embodiment("aloha")
    old = write_published_shape(tmp_path / "old")
    refused_by_loader(old.folder, aloha)
    done = migrate_policy(old.folder, tmp_path / "new")
    assert done.parameters == 51_597_190 + 8 * (4 * 512 + 1)
    assert (old.folder / "model.safetensors").stat().st_size > 4 * done.parameters

    rng = np.random.default_rng(0)
    fingers = [6, 13]
    position = np.linspace(-0.5, 0.5, 14, dtype=np.float64)
    position[fingers] = (0.03, 0.05)
    observation = Observation(
        stamp=10**9,
        images={"top": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)},
        position=position,
        velocity=np.zeros(14),
    )
    policy = load_lerobot_policy(tmp_path / "new", aloha)
    found = policy.propose([observation], 1)
    assert found.candidates.shape == (1, 100, 14)
    assert found.joint_names == aloha.joint_names
    assert found.step == 0.02

    # gym-aloha: a gripper of 0 is a finger at 0.01844 m, of 1 one at 0.05800 m.
    state = position.copy()
    state[fingers] = (state[fingers] - 0.01844) / (0.05800 - 0.01844)
    raw = {
        TOP: torch.from_numpy(observation.images["top"]).permute(2, 0, 1)[None] / 255.0,
        STATE: torch.from_numpy(state).float()[None],
    }
    with torch.no_grad():
        chunk = old.policy.predict_action_chunk(old.normalise(raw))
        expected = old.unnormalise(chunk).double().numpy()
    expected[..., fingers] = expected[..., fingers] * (0.05800 - 0.01844) + 0.01844
    np.testing.assert_allclose(found.candidates, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Old:
    return make_act_keypoints(tmp_path_factory.mktemp("migrate") / "old")


@pytest.fixture
def copy(act: Old, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(act.folder, tmp_path / "copy"))


def refused(folder: Path, code: ErrorCode, new: Path | None = None) -> str:
    """The message; nothing may be left beside the old folder, the new one least of all."""
    target = new or folder.parent / "new"
    before = sorted(path.name for path in target.parent.iterdir())
    with pytest.raises(WorldForgeError) as caught:
        migrate_policy(folder, target)
    assert caught.value.code is code, str(caught.value)
    assert sorted(path.name for path in target.parent.iterdir()) == before
    return caught.value.message


def test_what_is_reported(act: Old, tmp_path: Path) -> None:
    done = migrate_policy(act.folder, tmp_path / "new")
    features = {feature.name: feature for feature in done.features}
    assert list(features) == [ENV, STATE, ACTION]
    assert features[ENV].type == "ENV"
    assert features[ENV].mode == "MIN_MAX"
    assert features[ENV].buffers == (
        "normalize_inputs.buffer_observation_environment_state.min",
        "normalize_inputs.buffer_observation_environment_state.max",
    )
    assert len(features[ACTION].buffers) == 4
    assert done.type == "act"
    assert any("config.yaml" in note for note in done.notes)
    assert any("pretrained_backbone_weights" in note for note in done.notes)


def test_the_new_folder_is_whole_and_readable(copy: Path, tmp_path: Path) -> None:
    (copy / "LICENSE").write_text("Apache-2.0")
    (copy / "train_config.json").write_text("{}")
    (copy / "optimizer.pt").write_bytes(b"pickle")
    (copy / "videos").mkdir()
    (tmp_path / "new").mkdir()
    done = migrate_policy(copy, tmp_path / "new")
    assert done.copied == ("LICENSE", "README.md", "config.yaml", "train_config.json")
    assert done.left_out == ("optimizer.pt", "videos/")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {*done.files, *done.copied}
    assert {"config.json", "model.safetensors"} < set(done.files)
    assert {"policy_preprocessor.json", "policy_postprocessor.json"} < set(done.files)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "new").iterdir())
    card = (tmp_path / "new" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n---\n# Card\n\nMigrated from")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["type"] == "act"
    assert config["input_features"][ENV] == {"type": "ENV", "shape": [2]}
    assert config["normalization_mapping"]["ENV"] == "MIN_MAX"
    assert not any(key.endswith("_shapes") for key in config)


def test_a_card_is_written_where_there_was_none(copy: Path, tmp_path: Path) -> None:
    (copy / "README.md").unlink()
    assert migrate_policy(copy, tmp_path / "new").copied == ("config.yaml",)
    assert (tmp_path / "new" / "README.md").read_text().startswith("Migrated from")


def test_a_snapshot_of_links_is_followed(copy: Path, tmp_path: Path) -> None:
    """As the hub's cache keeps checkpoints: every file is a link to a blob."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in copy.iterdir():
        (snapshot / file.name).symlink_to(file)
    migrate_policy(snapshot, tmp_path / "new")
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())


def test_the_old_folder_is_not_touched(copy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    migrate_policy(copy, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_migrated_checkpoint_is_refused(act: Old, tmp_path: Path) -> None:
    migrate_policy(act.folder, tmp_path / "new")
    message = refused(tmp_path / "new", ErrorCode.INVALID_ARGUMENT, tmp_path / "newer")
    assert "migrated already" in message


@pytest.mark.parametrize("content", ["file", "folder"])
def test_the_new_folder_must_be_free(copy: Path, tmp_path: Path, content: str) -> None:
    new = tmp_path / "taken"
    if content == "file":
        new.write_text("mine")
    else:
        new.mkdir()
        (new / "mine").write_text("mine")
    assert str(new) in refused(copy, ErrorCode.INVALID_ARGUMENT, new)
    refused(copy, ErrorCode.INVALID_ARGUMENT, copy)


def test_a_parent_that_is_a_file(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorldForgeError) as caught:
        migrate_policy(copy, tmp_path / "file" / "new")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in refused(copy, ErrorCode.CHECKPOINT_MISSING)
    refused(copy.parent / "absent", ErrorCode.CHECKPOINT_MISSING)


def test_pickled_weights(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(copy, ErrorCode.CHECKPOINT_UNTRUSTED)


def test_an_unreadable_file(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x00" * 64)
    refused(copy, ErrorCode.CHECKPOINT_INVALID)
    (copy / "config.json").write_text("[")
    refused(copy, ErrorCode.CHECKPOINT_INVALID)


def test_unknown_types(copy: Path) -> None:
    (copy / "config.yaml").unlink()
    assert "'type'" in refused(copy, ErrorCode.POLICY_TYPE_UNKNOWN)
    edit(copy / "config.json", lambda data: data.update(type="pi0"))
    assert "act, diffusion, vqbet, tdmpc" in refused(copy, ErrorCode.POLICY_TYPE_UNKNOWN)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_statistics_that_were_never_filled(copy: Path, value: float) -> None:
    key = "normalize_inputs.buffer_observation_state.std"
    edit_tensors(copy, lambda tensors: tensors[key].fill_(value))
    assert key in refused(copy, ErrorCode.POLICY_STATISTICS_MISSING)


def test_statistics_that_are_absent(copy: Path) -> None:
    key = "unnormalize_outputs.buffer_action.mean"
    edit_tensors(copy, lambda tensors: tensors.pop(key))
    assert key in refused(copy, ErrorCode.POLICY_STATISTICS_MISSING)


def test_statistics_of_another_shape(copy: Path) -> None:
    key = "normalize_inputs.buffer_observation_state.mean"
    edit_tensors(copy, lambda tensors: tensors.update({key: torch.zeros(3)}))
    assert "(2,)" in refused(copy, ErrorCode.CHECKPOINT_INVALID)


def test_targets_and_outputs_that_disagree(copy: Path) -> None:
    key = "unnormalize_outputs.buffer_action.mean"
    edit_tensors(copy, lambda tensors: tensors[key].add_(1.0))
    assert key in refused(copy, ErrorCode.CHECKPOINT_INVALID)


def test_a_buffer_of_no_declared_feature(copy: Path) -> None:
    key = "normalize_inputs.buffer_observation_environment_states.min"
    edit_tensors(copy, lambda tensors: tensors.update({key: torch.zeros(2)}))
    message = refused(copy, ErrorCode.POLICY_FEATURE_MISMATCH)
    assert key in message
    assert f"{ENV} (MIN_MAX)" in message


def test_a_buffer_of_two_declared_features(copy: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["input_shapes"] |= {"observation.image.a_b": [3, 64, 64]}
        data["input_shapes"] |= {"observation.image.a.b": [3, 64, 64]}
        for name in ("observation.image.a_b", "observation.image.a.b"):
            data["input_normalization_modes"][name] = "mean_std"

    edit(copy / "config.json", change)
    message = refused(copy, ErrorCode.POLICY_FEATURE_MISMATCH)
    assert "observation.image.a_b" in message
    assert "observation.image.a.b" in message


@pytest.mark.parametrize("extra", [True, False])
def test_weights_must_load_strictly(copy: Path, extra: bool) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if extra:
            tensors["model.extra.weight"] = torch.zeros(1)
        else:
            del tensors["model.action_head.bias"]

    edit_tensors(copy, change)
    name = "model.extra.weight" if extra else "model.action_head.bias"
    assert name in refused(copy, ErrorCode.CHECKPOINT_INVALID)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(warp_factor=9), "warp_factor"),
        (lambda d: d.update(temporal_ensemble_momentum=0.9), "temporal_ensemble_momentum"),
        (lambda d: d["input_shapes"].update({STATE: [0]}), STATE),
        (lambda d: d["input_normalization_modes"].update({STATE: "log"}), "LOG"),
        (lambda d: d["input_normalization_modes"].update({TOP: "min_max"}), TOP),
        (lambda d: d.pop("input_shapes"), "input_shapes"),
        (lambda d: d.update(output_shapes=[2]), "output_shapes"),
    ],
)
def test_a_configuration_that_cannot_be_carried_over(
    copy: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(copy / "config.json", change)
    assert words in refused(copy, ErrorCode.CHECKPOINT_INVALID)


def test_an_input_that_policies_of_2024_did_not_know(copy: Path) -> None:
    edit(copy / "config.json", lambda d: d["input_shapes"].update({"observation.force": [6]}))
    assert "observation.force" in refused(copy, ErrorCode.POLICY_FEATURE_MISMATCH)


def test_two_modes_for_one_type(tmp_path: Path) -> None:
    old = make_act_of_june_2024(tmp_path / "old")

    def change(data: dict[str, Any]) -> None:
        data["input_shapes"][WRIST] = list(IMAGE)
        data["input_normalization_modes"][WRIST] = "mean_std"

    edit(old.folder / "config.json", change)
    assert "MEAN_STD" in refused(old.folder, ErrorCode.CHECKPOINT_INVALID)


def test_a_default_that_changed_is_written_down(tmp_path: Path) -> None:
    """LeRobot cropped to 84 x 84 where the file said nothing; since 0.4.4 it does not crop."""
    old = make_diffusion_keypoints(tmp_path / "old")
    edit(old.folder / "config.json", lambda data: data.pop("crop_shape"))
    done = migrate_policy(old.folder, tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["crop_shape"] == [84, 84]
    assert any(note.startswith("crop_shape is [84, 84]") for note in done.notes)


def test_a_range_so_narrow_that_the_formulas_differ_is_noted(copy: Path, tmp_path: Path) -> None:
    group = "normalize_inputs.buffer_observation_environment_state"
    assert (
        migrate_policy(copy, tmp_path / "wide").notes == migrate_policy(copy, tmp_path / "b").notes
    )

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{group}.min"][1] = 0.0
        tensors[f"{group}.max"][1] = 2e-6

    edit_tensors(copy, change)
    notes = [note for note in migrate_policy(copy, tmp_path / "new").notes if ENV in note]
    assert len(notes) == 1
    assert "element 1" in notes[0]
    assert "1.0e-02" in notes[0]


def test_nothing_is_left_when_writing_fails(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import worldforge_ros.policies.migrate as module

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_sign_card", full)
    with pytest.raises(OSError, match="no space"):
        migrate_policy(copy, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_the_command(
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    new = tmp_path / "new"
    assert cli.main(["migrate-policy", str(copy), str(new), "--json"]) == cli.EXIT_OK
    *text, last = capsys.readouterr().out.splitlines()
    row = next(line for line in text if ENV in line)
    assert row.split() == ["ENV", "2", "MIN_MAX", ENV, "buffer_observation_environment_state"]
    result = json.loads(last)
    assert result["new"] == str(new)
    assert set(result) == set(Migration.__dataclass_fields__)
    assert cli.main(["migrate-policy", str(copy), str(new), "--json"]) == cli.EXIT_USAGE
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["error_code"] == "INVALID_ARGUMENT"
    assert str(new) in result["message"]
