"""How good a world model is, on episodes that no training has seen.

Three questions: what can a linear probe read from its latents, how far ahead do its predictions
hold, and how well does each of its objectives rank candidates (PushT: of a policy; ALOHA: of the
scripted expert, changed).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.drift import document, plot_drift, print_drift
from worldforge_ros.evaluation.latents import Clip, drift, probe_r2
from worldforge_ros.evaluation.lockstep import Settings
from worldforge_ros.evaluation.protocols import check_unseen
from worldforge_ros.evaluation.ranking import moments, summarise
from worldforge_ros.evaluation.statistics import spearman
from worldforge_ros.recording.progress import track
from worldforge_ros.resources import resolve_path

FloatArray = npt.NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge quality``."""
    own = Settings()
    parser.add_argument(
        "--world-model", help="LeWorldModel folder; models/EMBODIMENT/world_model if left out"
    )
    parser.add_argument("--policy", default=own.policy, help="LeRobot folder, for PushT's ranking")
    parser.add_argument("--embodiment", default=own.embodiment, help="name or YAML file")
    parser.add_argument("--seeds", type=int, default=0, help="seeds are consecutive from here")
    parser.add_argument(
        "--clips", type=int, default=60, help="episodes for probe and drift, half of them play"
    )
    parser.add_argument(
        "--episodes", type=int, default=10, help="episodes for the ranking; 0: none"
    )
    parser.add_argument("--candidates", type=int, default=own.candidates)
    parser.add_argument(
        "--eventual",
        action="store_true",
        help="ALOHA: also execute the rest of the plan after each candidate",
    )
    parser.add_argument("--device", default=own.device)
    parser.add_argument("--threads", type=int, default=own.threads)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="folder for quality.json and plots"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 on success."""
    from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm
    from worldforge_ros.scorers.lewm_latents import LeWMLatents

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
    if embodiment.scoring.history != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"world_model.history of embodiment {embodiment.name}",
            found=embodiment.scoring.history,
            expected="1: a planner that looks back is evaluated with worldforge evaluate",
        )
    if embodiment.name not in _EPISODES:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--embodiment",
            found=embodiment.name,
            expected=f"one of {', '.join(_EPISODES)}, which have episodes to measure on",
        )
    # Before the work, whose results could not be kept otherwise.
    args.out.mkdir(parents=True, exist_ok=True)
    options = LeWMOptions(device=args.device, threads=args.threads)
    folder = args.world_model or f"package://worldforge_ros/models/{embodiment.name}/world_model"
    scorer = load_lewm(resolve_path(folder), embodiment, options)
    seeds = range(args.seeds, args.seeds + args.clips)
    clips = _clips(scorer, _EPISODES[embodiment.name](seeds), len(seeds))
    half = len(clips) // 2
    figures: dict[str, Any] = {
        "model_id": scorer.model_id,
        "sha256": scorer.sha256,
        "seeds": [args.seeds, args.seeds + max(args.clips, args.episodes) - 1],
        **(
            {"probe_r2": _probe(clips[:half], clips[half:])}
            if embodiment.name == "pusht"
            else _own_probe(resolve_path(folder), clips, embodiment.name)
        ),
    }
    seconds = embodiment.scoring.block_duration
    # From the start of an episode, as an evaluation plans.
    found = drift(clips, LeWMLatents(scorer).ahead, starts=1)
    figures["drift"] = document(found, seconds)
    if args.episodes:
        ranked = _aloha_ranking if embodiment.name == "aloha" else _pusht_ranking
        figures |= ranked(args, embodiment, scorer)
    text = json.dumps(figures, indent=2) + "\n"
    paths = [args.out / "quality.json", plot_drift(args.out / "drift.png", found, seconds)]
    for path in (paths[0], args.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print_tables(figures)
    print_drift(found, seconds)
    print("wrote " + ", ".join(str(path) for path in paths))
    return 0


def _pusht_episodes(seeds: Sequence[int]) -> Iterator[Any]:
    """Demonstrations and random pushing in turn, which start alike."""
    from worldforge_ros.training.demos import demonstrate, play

    for index, seed in enumerate(seeds):
        yield demonstrate(seed) if index % 2 == 0 else play(seed)


def _aloha_episodes(seeds: Sequence[int]) -> Iterator[Any]:
    from worldforge_ros.evaluation.aloha_ranking import aloha_clips

    return aloha_clips(seeds)


_EPISODES = {"pusht": _pusht_episodes, "aloha": _aloha_episodes}


def _clips(scorer: Any, episodes: Iterator[Any], count: int) -> list[Clip]:
    """Embedded episodes; each kind is in both halves, see the callers."""
    import torch

    bridge = scorer.bridge
    clips = []
    with track("episodes", count) as advance:
        for episode in episodes:
            frames = np.arange(0, len(episode), bridge.block)
            with torch.inference_mode():
                pictures = episode.images[frames // episode.image_every]
                embeddings = scorer.embed(pictures).cpu().double().numpy()
            steps = (len(frames) - 1) * bridge.block
            blocks = bridge.recorded_to_blocks(episode.action[:steps], episode.position[:steps])
            states = episode.state[frames].astype(np.float64)
            clips.append(Clip(embeddings, blocks, states, f"{episode.kind} {episode.seed}"))
            advance(f"{episode.kind} {episode.seed}")
    return [clip for clip in clips if len(clip.blocks) >= 8]


def _probe(train: Sequence[Clip], test: Sequence[Clip]) -> dict[str, float]:
    def joined(clips: Sequence[Clip]) -> tuple[FloatArray, FloatArray]:
        return (
            np.concatenate([clip.embeddings for clip in clips]),
            np.concatenate([clip.states for clip in clips]),
        )

    return probe_r2(*joined(train), *joined(test))


def _own_probe(folder: Path, clips: Sequence[Clip], robot: str) -> dict[str, Any]:
    """R^2 and mean errors in mm of the checkpoint's own linear probe, which has seen none of the
    clips: a picture of ALOHA takes too long for enough of them to fit another.
    """
    from worldforge_ros.scorers.checkpoint import find_checkpoint, read_weights
    from worldforge_ros.scorers.objectives import PROBE_FILE
    from worldforge_ros.training.tasks import task_of

    task = task_of(robot)
    weights, _ = read_weights(find_checkpoint(str(folder)).folder / PROBE_FILE)
    matrix, shift = (weights[name].double().numpy() for name in ("weight", "bias"))
    rows = np.concatenate([clip.embeddings for clip in clips])
    true = task.targets(np.concatenate([clip.states for clip in clips]))
    residual = rows @ matrix.T + shift - true
    r2 = 1.0 - np.square(residual).sum(axis=0) / np.square(true - true.mean(axis=0)).sum(axis=0)
    names = [f"{point} {axis}" for point in task.reading.points for axis in "xyz"]
    errors = task.errors_mm(residual)
    return {
        "probe_r2": dict(zip(names, r2.tolist(), strict=True)),
        "probe_mm": {name: float(values.mean()) for name, values in errors.items()},
        "probe_median_mm": {name: float(np.median(values)) for name, values in errors.items()},
    }


def _aloha_ranking(args: argparse.Namespace, embodiment: Any, scorer: Any) -> dict[str, Any]:
    """Every objective against the outcome of the default one; those with an outcome of their own
    against that too; the default one in every phase of the transfer.
    """
    from worldforge_ros.evaluation.aloha_ranking import EVENTUAL, PHASES, aloha_moments
    from worldforge_ros.training.tasks import aloha

    seeds = range(args.seeds, args.seeds + args.episodes)
    found = []
    with track("ranking", args.episodes) as advance:
        for episode in aloha_moments(
            seeds,
            candidates=args.candidates,
            camera=embodiment.scoring.camera,
            eventual=args.eventual,
        ):
            found += episode
            advance(f"{len(episode)} decisions")
    own = aloha().objective

    def summary(objective: str, outcome: str, phases: Sequence[str] = PHASES) -> dict[str, float]:
        judged = [item.judged(outcome) for item in found if item.phase in phases]
        return summarise(scorer, judged, objective)

    figures: dict[str, Any] = {}
    if args.eventual:
        figures["ranking_eventual"] = {name: summary(name, EVENTUAL) for name in scorer.objectives}
        figures["eventual_spearman_of_true"] = {
            name: float(
                np.nanmean(
                    [spearman(item.outcomes[name], item.outcomes[EVENTUAL]) for item in found]
                )
            )
            for name in aloha().reading.objectives
        }
    return {
        **figures,
        "outcome": own,
        "ranking": {name: summary(name, own) for name in scorer.objectives},
        "ranking_own_outcome": {name: summary(name, name) for name in aloha().reading.objectives},
        "ranking_by_phase": {
            phase: summary(own, own, [phase])
            for phase in PHASES
            if any(item.phase == phase for item in found)
        },
    }


def _pusht_ranking(args: argparse.Namespace, embodiment: Any, scorer: Any) -> dict[str, Any]:
    from worldforge_ros.policies.lerobot import load_lerobot_policy

    policy = load_lerobot_policy(resolve_path(args.policy), embodiment, args.device, args.threads)
    seeds = range(args.seeds, args.seeds + args.episodes)
    found = []
    with track("ranking", args.episodes) as advance:
        horizon = policy.max_horizon // scorer.block * scorer.block
        every = moments(
            policy,
            seeds,
            camera=embodiment.scoring.camera,
            candidates=args.candidates,
            horizon=horizon,
        )
        for seed, episode in zip(seeds, every, strict=True):
            found += episode
            advance(f"seed {seed}: {len(episode)} decisions")
    return {"ranking": {name: summarise(scorer, found, name) for name in scorer.objectives}}


def print_tables(figures: Mapping[str, Any]) -> None:
    """Print the figures for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    probe = Table(title=f"Linear probe of {figures['model_id']} on other episodes")
    probe.add_column("")
    probe.add_column("R^2", justify="right")
    for name, value in figures["probe_r2"].items():
        probe.add_row(name, f"{value:.3f}")
    console.print(probe)
    for name, title in _TITLES.items():
        if name in figures:
            console.print(_ranking_table(f"{title}; true outcome in mm", figures[name]))


_TITLES = {
    "ranking": "Ranking candidates",
    "ranking_own_outcome": "Ranking candidates, each by the outcome that it is an estimate of",
    "ranking_by_phase": "Ranking candidates with the default objective, by phase",
    "ranking_eventual": "Ranking candidates by where the cube is in the end",
}


def _ranking_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for name in ("", "Spearman", "95 %", "chosen", "random", "best", "still", "share", "n"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['spearman']:.2f}",
            f"{row['spearman_ci_low']:.2f} to {row['spearman_ci_high']:.2f}",
            f"{row['chosen_mm']:.1f}",
            f"{row['random_mm']:.1f}",
            f"{row['best_mm']:.1f}",
            f"{row['still_mm']:.1f}",
            f"{row['chosen_share']:.2f}",
            str(row["decisions"]),
        )
    return table
