"""How good a world model is for PushT, on episodes that no training has seen.

Three questions: what can a linear probe read from its latents, how far ahead do its predictions
hold, and how well does each of its objectives rank a policy's candidates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.latents import Clip, Drift, drift, probe_r2
from worldforge_ros.evaluation.lockstep import Settings
from worldforge_ros.evaluation.protocols import check_unseen
from worldforge_ros.evaluation.ranking import moments, summarise
from worldforge_ros.recording.progress import track
from worldforge_ros.resources import resolve_path

FloatArray = npt.NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge quality pusht``."""
    own = Settings()
    parser.add_argument("--world-model", default=own.world_model, help="LeWorldModel folder")
    parser.add_argument("--policy", default=own.policy, help="LeRobot folder, for the ranking")
    parser.add_argument("--embodiment", default=own.embodiment, help="name or YAML file")
    parser.add_argument("--seeds", type=int, default=0, help="seeds are consecutive from here")
    parser.add_argument(
        "--clips", type=int, default=60, help="episodes for probe and drift, half of them pushes"
    )
    parser.add_argument(
        "--episodes", type=int, default=10, help="episodes for the ranking; 0: none"
    )
    parser.add_argument("--candidates", type=int, default=own.candidates)
    parser.add_argument("--device", default=own.device)
    parser.add_argument("--threads", type=int, default=own.threads)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="folder for quality.json and plots"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 on success."""
    from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm

    for name, least in (("clips", 4), ("episodes", 0), ("seeds", 0), ("candidates", 2)):
        if getattr(args, name) < least:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"--{name}",
                found=getattr(args, name),
                expected=f"{least} or more",
            )
    check_unseen(range(args.seeds, args.seeds + max(args.clips, args.episodes)))
    embodiment = load_embodiment(args.embodiment)
    if embodiment.world_model.history != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"world_model.history of embodiment {embodiment.name}",
            found=embodiment.world_model.history,
            expected="1: a planner that looks back is evaluated with worldforge evaluate",
        )
    options = LeWMOptions(device=args.device, threads=args.threads)
    scorer = load_lewm(resolve_path(args.world_model), embodiment, options)
    clips = _clips(scorer, range(args.seeds, args.seeds + args.clips))
    half = len(clips) // 2
    figures: dict[str, Any] = {
        "model_id": scorer.model_id,
        "sha256": scorer.sha256,
        "seeds": [args.seeds, args.seeds + max(args.clips, args.episodes) - 1],
        "probe_r2": _probe(clips[:half], clips[half:]),
    }
    found = drift(clips, _predictor(scorer))
    figures["drift"] = {
        **{name: np.asarray(value).tolist() for name, value in asdict(found).items()},
        "drift_horizon_blocks": found.drift_horizon,
        "seconds": found.drift_horizon * embodiment.world_model.block_duration,
    }
    if args.episodes:
        figures["ranking"] = _ranking(args, embodiment, scorer)
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2) + "\n"
    paths = [args.out / "quality.json", plot_drift(args.out / "drift.png", found)]
    for path in (paths[0], args.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print_tables(figures, found)
    print("wrote " + ", ".join(str(path) for path in paths))
    return 0


def _clips(scorer: Any, seeds: Sequence[int]) -> list[Clip]:
    """Embedded episodes: demonstrations and random pushing in turn, which start alike."""
    import torch

    from worldforge_ros.training.demos import demonstrate, play

    bridge = scorer.bridge
    clips = []
    with track("episodes", len(seeds)) as advance:
        for index, seed in enumerate(seeds):
            # Each kind is in both halves, see the callers.
            episode = demonstrate(seed) if index % 2 == 0 else play(seed)
            frames = np.arange(0, len(episode), bridge.block)
            with torch.inference_mode():
                embeddings = scorer.embed(episode.images[frames]).cpu().double().numpy()
            steps = (len(frames) - 1) * bridge.block
            blocks = bridge.recorded_to_blocks(episode.action[:steps], episode.position[:steps])
            clips.append(Clip(embeddings, blocks, episode.state[frames].astype(np.float64)))
            advance(f"{episode.kind} {seed}")
    return [clip for clip in clips if len(clip.blocks) >= 8]


def _predictor(scorer: Any) -> Any:
    import torch

    def predict(starts: FloatArray, blocks: FloatArray) -> FloatArray:
        with torch.inference_mode():
            ahead = scorer.predict_batch(
                torch.from_numpy(starts).float()[:, None], torch.from_numpy(blocks).float()
            )
        result: FloatArray = ahead.cpu().double().numpy()
        return result

    return predict


def _probe(train: Sequence[Clip], test: Sequence[Clip]) -> dict[str, float]:
    def joined(clips: Sequence[Clip]) -> tuple[FloatArray, FloatArray]:
        return (
            np.concatenate([clip.embeddings for clip in clips]),
            np.concatenate([clip.states for clip in clips]),
        )

    return probe_r2(*joined(train), *joined(test))


def _ranking(args: argparse.Namespace, embodiment: Any, scorer: Any) -> dict[str, Any]:
    from worldforge_ros.policies.lerobot import load_lerobot_policy

    policy = load_lerobot_policy(resolve_path(args.policy), embodiment, args.device, args.threads)
    seeds = range(args.seeds, args.seeds + args.episodes)
    found = []
    with track("ranking", args.episodes) as advance:
        horizon = policy.max_horizon // scorer.block * scorer.block
        every = moments(
            policy,
            seeds,
            camera=embodiment.world_model.camera,
            candidates=args.candidates,
            horizon=horizon,
        )
        for seed, episode in zip(seeds, every, strict=True):
            found += episode
            advance(f"seed {seed}: {len(episode)} decisions")
    return {name: summarise(scorer, found, name) for name in scorer.objectives}


def print_tables(figures: Mapping[str, Any], found: Drift) -> None:
    """Print the figures for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    probe = Table(title=f"Linear probe of {figures['model_id']}, R^2 on other episodes")
    for name in figures["probe_r2"]:
        probe.add_column(name, justify="right")
    probe.add_row(*(f"{value:.3f}" for value in figures["probe_r2"].values()))
    console.print(probe)
    ahead = Table(title="Prediction error, 1 = a random pair")
    for name in ("blocks", "open loop", "closed loop", "unchanged", "shuffled", "skill"):
        ahead.add_column(name, justify="right")
    for index in (0, 1, 2, 4, 9, 16):
        if index < len(found.horizon):
            columns = (found.open_loop, found.closed_loop, found.unchanged, found.shuffled)
            values = [f"{column[index]:.3f}" for column in (*columns, found.skill)]
            ahead.add_row(str(found.horizon[index]), *values)
    console.print(ahead)
    console.print(
        f"drift horizon: {found.drift_horizon} blocks, {figures['drift']['seconds']:.1f} s"
    )
    if "ranking" not in figures:
        return
    table = Table(title="Ranking the policy's candidates; mean corner distance to the goal, mm")
    for name in ("objective", "Spearman", "95 %", "chosen", "random", "best", "share", "n"):
        table.add_column(name, justify="left" if name == "objective" else "right", no_wrap=True)
    for name, row in figures["ranking"].items():
        table.add_row(
            name,
            f"{row['spearman']:.2f}",
            f"{row['spearman_ci_low']:.2f} to {row['spearman_ci_high']:.2f}",
            f"{row['chosen_mm']:.1f}",
            f"{row['random_mm']:.1f}",
            f"{row['best_mm']:.1f}",
            f"{row['chosen_share']:.2f}",
            str(row["decisions"]),
        )
    console.print(table)


def plot_drift(path: Path, found: Drift) -> Path:
    """Error against horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, values, style in (
        ("open loop", found.open_loop, "-"),
        ("closed loop", found.closed_loop, "-"),
        ("nothing moves", found.unchanged, "--"),
        ("another episode's actions", found.shuffled, ":"),
    ):
        axes.plot(found.horizon, values, style, label=label)
    axes.axvline(found.drift_horizon, color="grey", linewidth=0.8)
    axes.set_xlabel("blocks ahead (0.5 s each); vertical line: drift horizon")
    axes.set_ylabel("squared error, 1 = a random pair")
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path
