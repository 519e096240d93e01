"""Random-weight LeRobot checkpoints of every kind, small enough for tests, and a robot for them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.embodiment import Embodiment, parse_embodiment
from worldforge_ros.observation import Observation

SIDE = 64
STEP_NS = 100_000_000
STATISTICS = {
    "observation.state": ([0.5, -0.5], [2.0, 1.0]),
    "observation.image": ([[[0.5]], [[0.5]], [[0.5]]], [[[0.5]], [[0.5]], [[0.5]]]),
    "observation.images.top": ([[[0.4]], [[0.5]], [[0.6]]], [[[0.2]], [[0.3]], [[0.25]]]),
    "action": ([0.1, 0.2], [1.5, 0.5]),
}
"""Mean and standard deviation by feature."""
SINGLE = "sac" if find_spec("lerobot.policies.sac") else "gaussian_actor"
"""What this LeRobot calls the policy that answers with one action."""
KINDS = ("act", "diffusion", "vqbet", "tdmpc", SINGLE, "smolvla")


def image_key(kind: str) -> str:
    """What ``kind`` calls its picture; TD-MPC knows one name only."""
    return "observation.image" if kind == "tdmpc" else "observation.images.top"


def robot(kind: str = "") -> Embodiment:
    """Two joints that a policy sees in other units, one square camera."""
    return parse_embodiment(
        {
            "name": "tiny",
            "task": "reach for the cube",
            "joints": [
                {"name": name, "type": "revolute", "min_position": -3.0, "max_position": 3.0}
                for name in ("shoulder", "elbow")
            ],
            "cameras": {"top": {"topic": "camera/top/image_raw", "width": SIDE, "height": SIDE}},
            "observation": {
                "joint_state_topic": "joint_states",
                "max_age": 0.5,
                "tolerance": 0.05,
            },
            "tracking": {"law": "perfect"},
            "policy": {
                "step": 0.1,
                "features": {
                    "observation.state": {
                        "joints": ["shoulder", "elbow"],
                        "quantity": "position",
                        "scale": [2.0, 1.0],
                        "offset": [0.0, 0.5],
                    },
                    image_key(kind): {"camera": "top"},
                },
                "action": {"meaning": "absolute", "scale": [2.0, 1.0], "offset": [0.0, 0.5]},
            },
        }
    )


def window(count: int, seed: int = 3) -> list[Observation]:
    """``count`` different observations, one policy step apart."""
    rng = np.random.default_rng(seed)
    return [
        Observation(
            stamp=10**9 + index * STEP_NS,
            images={"top": rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)},
            position=rng.normal(0.0, 0.5, 2),
            velocity=np.zeros(2),
        )
        for index in range(count)
    ]


def statistics() -> dict[str, dict[str, Any]]:
    """Everything that a normaliser may want, as tensors."""
    import torch

    found = {}
    for name, (mean, std) in STATISTICS.items():
        centre, width = torch.tensor(mean), torch.tensor(std)
        found[name] = {
            "mean": centre,
            "std": width,
            "min": centre - 2 * width,
            "max": centre + 2 * width,
        }
    return found


def settings(kind: str, folder: Path) -> dict[str, Any]:
    """Fields of the smallest configuration of ``kind``."""
    if kind == "act":
        return {
            "chunk_size": 6,
            "n_action_steps": 6,
            "dim_model": 32,
            "n_heads": 2,
            "dim_feedforward": 32,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "latent_dim": 4,
            "pretrained_backbone_weights": None,
        }
    if kind == "diffusion":
        return {
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 4,
            "down_dims": (16, 32),
            "use_separate_rgb_encoder_per_camera": False,
            "horizon": 8,
            "n_action_steps": 7,
            "n_obs_steps": 2,
            "kernel_size": 3,
            "pretrained_backbone_weights": None,
            "use_group_norm": True,
            "spatial_softmax_num_keypoints": 4,
            "diffusion_step_embed_dim": 16,
            "crop_shape": None,
        }
    if kind == "vqbet":
        return {
            "crop_shape": None,
            "pretrained_backbone_weights": None,
            "use_group_norm": True,
            "gpt_n_layer": 1,
            "gpt_n_head": 2,
            "gpt_input_dim": 32,
            "gpt_output_dim": 32,
            "gpt_hidden_dim": 32,
            "vqvae_embedding_dim": 16,
            "vqvae_enc_hidden_dim": 16,
            "spatial_softmax_num_keypoints": 4,
            "bet_softmax_temperature": 1.0,
        }
    if kind == "tdmpc":
        return {
            "latent_dim": 8,
            "mlp_dim": 16,
            "state_encoder_hidden_dim": 8,
            "image_encoder_hidden_dim": 4,
            "n_gaussian_samples": 16,
            "n_pi_samples": 4,
            "n_elites": 4,
        }
    if kind == SINGLE:
        return {
            "latent_dim": 8,
            "state_encoder_hidden_dim": 8,
            "image_encoder_hidden_dim": 4,
            **({"use_torch_compile": False} if kind == "sac" else {}),
        }
    if kind == "smolvla":
        return {
            "vlm_model_name": str(vision_language_model(folder / "vlm")),
            "resize_imgs_with_padding": (32, 32),
            "chunk_size": 6,
            "n_action_steps": 6,
            "max_state_dim": 4,
            "max_action_dim": 3,
            "num_steps": 3,
            "num_vlm_layers": 2,
            "tokenizer_max_length": 8,
        }
    raise ValueError(kind)


def vision_language_model(folder: Path) -> Path:
    """The configuration and tokenizer of a very small SmolVLM, as a hub folder has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = ["<unk>", "<pad>", "<s>", "<fake_token_around_image>", "<image>", "<global-img>"]
    words += ["<end_of_utterance>", "reach", "for", "the", "cube", "ball"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), fast, SmolVLMVideoProcessor()).save_pretrained(folder)
    SmolVLMConfig(
        image_token_id=words.index("<image>"),
        scale_factor=2,
        text_config={
            "model_type": "llama",
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        pad_token_id=1,
    ).save_pretrained(folder)
    return folder


def features(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """LeRobot's features of these shapes."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    def kind(name: str) -> Any:
        if name == "action":
            return FeatureType.ACTION
        return FeatureType.VISUAL if "image" in name else FeatureType.STATE

    return {name: PolicyFeature(kind(name), shape) for name, shape in shapes.items()}


def make(kind: str, folder: Path, **changes: Any) -> Path:
    """Write the checkpoint of a random policy of ``kind``; ``changes`` are configuration fields."""
    import torch
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    torch.manual_seed(0)
    config = make_policy_config(
        kind,
        device="cpu",
        push_to_hub=False,
        input_features=features({"observation.state": (2,), image_key(kind): (3, SIDE, SIDE)}),
        output_features=features({"action": (2,)}),
        **{**settings(kind, folder), **changes},
    )
    policy = get_policy_class(kind)(config)
    if kind == "vqbet":
        # As after the training of its quantiser; an untrained one complains at every use.
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=statistics()):
        processor.save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
