"""How surprised is a world model by what really happened, block by block?

Of recordings, or of simulated episodes. The errors of normal ones make the card that surprise is
standardised by; with a card, blocks above the threshold are flagged.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.evaluation.recordings import Clips, add_clips
from worldforge_ros.evaluation.statistics import bootstrap_mean
from worldforge_ros.parameters import GivenParameters
from worldforge_ros.replay.manifest import now, write_manifest
from worldforge_ros.resources import PACKAGE, resolve_path
from worldforge_ros.scorers.surprise import (
    CARD_FILE,
    THRESHOLD,
    SurpriseCard,
    blocks_of,
    check_supported,
    prediction_error,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge surprise``."""
    add_clips(parser)
    parser.add_argument(
        "--world-model", help="folder or run name; models/EMBODIMENT/world_model if left out"
    )
    parser.add_argument(
        "--card", type=Path, help="what is normal; surprise.json beside the checkpoint if left out"
    )
    parser.add_argument(
        "--write-card",
        action="store_true",
        help="take these recordings for normal and write surprise.json beside the checkpoint",
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="standardised surprise that is flagged"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/surprise"), help="folder of results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 on success."""
    from worldforge_ros.scorers.cards import beside
    from worldforge_ros.scorers.loading import load_scorer
    from worldforge_ros.scorers.parameters import declare

    started = now()
    clips = Clips(args)
    # Before the work, whose results could not be kept otherwise.
    args.out.mkdir(parents=True, exist_ok=True)
    embodiment = clips.embodiment
    shipped = f"package://{PACKAGE}/models/{embodiment.name}/world_model"
    folder = str(resolve_path(args.world_model or shipped))
    values = {"model_path": folder, "device": args.device}
    config = declare(GivenParameters("score_node", values), args.threads, os.environ)
    scorer = load_scorer(config, embodiment)
    check_supported(scorer)
    episodes: dict[str, list[float]] = {}
    for clip in clips:
        errors = episodes.setdefault(clip.episode, [])
        errors += [
            prediction_error(scorer, embodiment, block.window, block.setpoints)
            for block in blocks_of(clip, embodiment, scorer.history)
        ]
    path = beside(folder, CARD_FILE) if args.card is None else args.card
    if args.write_card:
        card = SurpriseCard.of(scorer, embodiment, list(episodes.values()), clips.sources)
        card.write(path)
    else:
        card = SurpriseCard.read(path, scorer, embodiment)
    figures = summary(card, episodes, args.threshold)
    figures = {"card": str(path), "fitted_here": args.write_card, **figures, "failed": clips.failed}
    outputs = [args.out / "surprise.json"]
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    for file in (outputs[0], args.json):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    outputs.append(plot(args.out / "surprise.png", card, episodes, args.threshold))
    outputs += [path] if args.write_card else []
    write_manifest(
        args.out / "manifest.json",
        command="surprise",
        settings={key: str(value) for key, value in sorted(vars(args).items())},
        inputs=args.recordings,
        outputs=outputs,
        started=started,
    )
    print_figures(figures)
    print("wrote " + ", ".join(str(item) for item in outputs))
    return 0


def summary(
    card: SurpriseCard, episodes: Mapping[str, Sequence[float]], threshold: float
) -> dict[str, Any]:
    """Standardised surprises by episode, and the share of blocks and of episodes above
    ``threshold`` with 95 % bootstrap intervals over episodes.
    """
    rows = {
        name: [round(card.standardised(error), 4) for error in errors]
        for name, errors in episodes.items()
    }
    flags = {name: [z > threshold for z in values] for name, values in rows.items() if values}
    shares = [float(np.mean(values)) for values in flags.values()]
    everything = np.concatenate([[], *rows.values()])
    found: dict[str, Any] = {
        "threshold": threshold,
        "blocks": len(everything),
        "episodes": len(flags),
        "flagged_blocks": int(sum(sum(values) for values in flags.values())),
        "flagged_episodes": int(sum(any(values) for values in flags.values())),
        "flagged_share": None,
        "largest": float(everything.max()) if len(everything) else None,
        "mean": float(everything.mean()) if len(everything) else None,
        "std": float(everything.std()) if len(everything) else None,
        "block_seconds": card.block_seconds,
        "model_id": card.model_id,
        "standardised": rows,
    }
    if shares:
        interval = bootstrap_mean(shares)
        found["flagged_share"] = {
            "mean": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
        }
    return found


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print the figures for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"Surprise of {figures['model_id']}, flagged above {figures['threshold']:g}"
    )
    for heading in ("episode", "blocks", "median", "most", "flagged at, s"):
        table.add_column(heading, justify="left" if heading == "episode" else "right")
    for name, values in figures["standardised"].items():
        if not values:
            continue
        at = [
            f"{(index + 1) * figures['block_seconds']:g}"
            for index, value in enumerate(values)
            if value > figures["threshold"]
        ]
        shown = ", ".join(at[:6]) + (" ..." if len(at) > 6 else "")
        median, most = f"{np.median(values):.2f}", f"{max(values):.2f}"
        table.add_row(name, str(len(values)), median, most, shown)
    console.print(table)
    share = figures["flagged_share"]
    if share is not None:
        console.print(
            f"flagged: {figures['flagged_blocks']} of {figures['blocks']} blocks "
            f"({100 * share['mean']:.2f} % of an episode's, 95 % {100 * share['ci_low']:.2f} to "
            f"{100 * share['ci_high']:.2f}), in {figures['flagged_episodes']} of "
            f"{figures['episodes']} episodes"
        )


def plot(
    path: Path, card: SurpriseCard, episodes: Mapping[str, Sequence[float]], threshold: float
) -> Path:
    """Standardised surprise over time, one line an episode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, errors in episodes.items():
        times = (np.arange(len(errors)) + 1) * card.block_seconds
        values = np.array([card.standardised(error) for error in errors])
        axes.plot(times, values, linewidth=0.8, alpha=0.7, label=name)
        high = values > threshold
        axes.plot(times[high], values[high], "x", color="#c8143c")
    axes.axhline(threshold, color="#c8143c", linewidth=0.8, linestyle="--")
    axes.set_xlabel("seconds")
    axes.set_ylabel("surprise, deviations")
    axes.set_title(f"{card.model_id}; crosses: above {threshold:g}")
    axes.grid(alpha=0.3)
    if len(episodes) <= 10:
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
    return path
