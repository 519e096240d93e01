"""A third robot for tests: the example arm, an untrained ACT policy, and what a person fills in.

``python test/adopted_arm.py FOLDER`` writes the checkpoint and the data set's description to try
``docs/adopt_your_robot.md`` with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from worldforge_ros.resources import share_dir

URDF = share_dir() / "config/examples/so101_like.urdf"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CENTRE = (0.0, -30.0, 40.0, 20.0, 0.0, 30.0)
"""Mean of the states and actions that the policy claims to have seen: degrees, gripper 0 to 100."""
SIZE = (96, 128)
FILLED_IN = {
    "task: TODO": "task: put the cube into the box",
    "max_jerk: TODO": "max_jerk: unlimited",
    "front:\n    topic: TODO": "front:\n    topic: camera/front/image_raw",
    "wrist:\n    topic: TODO": "wrist:\n    topic: camera/wrist/image_raw",
    "joint_state_topic: TODO": "joint_state_topic: joint_states",
    "scale: TODO": "scale: [57.29578, 57.29578, 57.29578, 57.29578, 57.29578, 58.82353]",
    "offset: TODO": "offset: 0",
    "meaning: TODO": "meaning: absolute",
}
"""What only a person knows: jerk, topics, degrees, the gripper's 0 to 100, the actions' meaning."""


def write_dataset(folder: Path, names: tuple[str, ...] = JOINTS, suffix: str = ".pos") -> Path:
    """The part of a LeRobot data set's description that tells names and frames a second."""
    (folder / "meta").mkdir(parents=True)
    vector = {"dtype": "float32", "shape": [6], "names": [f"{name}{suffix}" for name in names]}
    info = {"fps": 20, "features": {"action": vector, "observation.state": vector}}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def write_policy(folder: Path, spread: float = 1.5) -> Path:
    """An ACT checkpoint with random weights; ``spread`` is the deviation of its actions."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    picture = PolicyFeature(FeatureType.VISUAL, (3, *SIZE))
    vector = PolicyFeature(FeatureType.STATE, (6,))
    config = ACTConfig(
        device="cpu",
        push_to_hub=False,
        chunk_size=20,
        n_action_steps=20,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_decoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        pretrained_backbone_weights=None,
        input_features={
            "observation.state": vector,
            "observation.images.front": picture,
            "observation.images.wrist": picture,
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    centre = torch.tensor(CENTRE)
    colour = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    joints = {"mean": centre, "std": torch.full((6,), 20.0)}
    stats: dict[str, Any] = {
        "observation.state": {**joints, "min": centre - 30.0, "max": centre + 30.0},
        "action": {
            "mean": centre,
            "std": torch.full((6,), spread),
            "min": centre - 30.0,
            "max": centre + 30.0,
        },
        "observation.images.front": colour,
        "observation.images.wrist": colour,
    }
    policy = ACTPolicy(config)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def fill_in(text: str) -> str:
    """The draft after a person has worked on it."""
    for gap, value in FILLED_IN.items():
        assert gap in text, gap
        text = text.replace(gap, value)
    return text


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_dataset(target / "dataset")
    write_policy(target / "policy")
