"""What candidates of a policy cost: one batch with one encoding against one call for each.

    python benchmarks/policy.py --json policy.json

Every row measures both in the same run, in turns, on the same observation; ``ratio`` is batched
over one by one, ``growth`` the batch over a single candidate. The medians of ``--samples`` turns
are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.observation import blank_window
from worldforge_ros.policies.base import Policy
from worldforge_ros.policies.lerobot import load_lerobot_policy
from worldforge_ros.policies.proposer import LoadedPolicy


def diffusion_16m(device: Any) -> LoadedPolicy:
    """A random Diffusion policy of 16 million weights on PushT's picture and state, 10 DDIM
    steps.
    """
    return _random(
        "diffusion",
        "diffusion-16M",
        {"observation.state": (2,), "observation.image": (3, 96, 96)},
        (2,),
        down_dims=(64, 128, 256),
        kernel_size=5,
        horizon=16,
        n_action_steps=8,
        n_obs_steps=2,
        crop_shape=(84, 84),
        crop_is_random=False,
        spatial_softmax_num_keypoints=32,
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        use_group_norm=True,
        pretrained_backbone_weights=None,
        device=str(device),
    )


def act_published(device: Any) -> LoadedPolicy:
    """A random ACT of the size that is published for ALOHA: 51.6 million weights, chunks of 100."""
    return _random(
        "act",
        "act-51.6M",
        {"observation.state": (14,), "observation.images.top": (3, 480, 640)},
        (14,),
        pretrained_backbone_weights=None,
        device=str(device),
    )


def _random(
    kind: str,
    name: str,
    inputs: dict[str, tuple[int, ...]],
    action: tuple[int, ...],
    **fields: Any,
) -> LoadedPolicy:
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    torch.manual_seed(0)
    config = make_policy_config(
        kind,
        push_to_hub=False,
        input_features={
            key: PolicyFeature(FeatureType.VISUAL if "image" in key else FeatureType.STATE, shape)
            for key, shape in inputs.items()
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, action)},
        **fields,
    )
    stats = {
        key: {
            stat: torch.ones(shape[:1] + (1,) * (len(shape) - 1)) * value
            for stat, value in (("mean", 0.0), ("std", 1.0), ("min", -1.0), ("max", 1.0))
        }
        for key, shape in {**inputs, "action": action}.items()
    }
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    policy = get_policy_class(kind)(config).eval().to(config.device)
    return LoadedPolicy(policy, before, after, name)


def policies(args: argparse.Namespace) -> dict[str, Callable[[], tuple[Policy, Embodiment]]]:
    """What can be measured, by name."""

    def load(embodiment: str, name: str, loader: Any = None) -> tuple[Policy, Embodiment]:
        robot = load_embodiment(embodiment)
        return load_lerobot_policy(name, robot, args.device, args.threads, loader=loader), robot

    return {
        "diffusion-16M": lambda: load(
            "pusht", "diffusion-16M", lambda name, device: diffusion_16m(device)
        ),
        "pusht": lambda: load("pusht", "package://worldforge_ros/models/pusht/policy"),
        "aloha": lambda: load("aloha", "package://worldforge_ros/models/aloha/policy"),
        "act-51.6M": lambda: load("aloha", "act-51.6M", lambda name, device: act_published(device)),
    }


def measure(name: str, policy: Policy, robot: Embodiment, args: argparse.Namespace) -> list[Any]:
    """The rows of one policy."""
    window = blank_window(robot, policy.history, robot.policy.step)

    def timed(job: Callable[[], object]) -> float:
        began = time.perf_counter()
        job()
        return (time.perf_counter() - began) * 1e3

    def one_by_one(count: int) -> None:
        for seed in range(count):
            policy.propose(window, 1, seed=seed)

    rows = []
    for count in args.candidates:
        policy.propose(window, count, seed=0)
        one_by_one(1)
        samples = [
            (
                timed(lambda: policy.propose(window, 1, seed=0)),
                timed(lambda count=count: policy.propose(window, count, seed=0)),
                timed(lambda count=count: one_by_one(count)),
            )
            for _ in range(args.samples)
        ]
        single, batched, sequential = (
            statistics.median(column) for column in zip(*samples, strict=True)
        )
        rows.append(
            {
                "policy": name,
                "candidates": count,
                "single_ms": round(single, 2),
                "batched_ms": round(batched, 2),
                "sequential_ms": round(sequential, 2),
                "ratio": round(statistics.median(b / s for _, b, s in samples), 4),
                "growth": round(statistics.median(b / o for o, b, _ in samples), 3),
            }
        )
    return rows


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policies", nargs="+", default=["diffusion-16M", "pusht", "aloha"])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    known = policies(args)
    console = Console()
    rows: list[Any] = []
    for name in args.policies:
        if name not in known:
            parser.error(f"--policies: '{name}' is not one of {', '.join(known)}")
        with console.status(f"measuring {name}"):
            rows += measure(name, *known[name](), args)
    table = Table(
        "policy", "candidates", "one, ms", "batch, ms", "one by one, ms", "ratio", "growth"
    )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
