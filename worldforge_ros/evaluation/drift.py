"""A measured drift for programs and for people: JSON, a table, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldforge_ros.evaluation.latents import CURVES, Curve, Drift

LABELS: Mapping[str, str] = {
    "open_loop": "open loop",
    "closed_loop": "closed loop",
    "shuffled": "another episode's actions",
    "unchanged": "nothing moved since the start",
    "previous": "nothing moved since the frame before",
}
_STYLES = {
    "open_loop": "-",
    "closed_loop": "-",
    "shuffled": ":",
    "unchanged": "--",
    "previous": "-.",
}


def document(found: Drift, block_seconds: float) -> dict[str, Any]:
    """The figures as JSON: a list over ``horizon`` (blocks) for each curve, with the ends of its
    95 % interval under ``intervals``; None for what was not measured.

    :param block_seconds: length of a block, s.
    """
    blocks = found.drift_horizon
    return {
        "horizon": list(found.horizon),
        **{name: _plain(found.errors[name].mean) for name in CURVES},
        "skill": _plain(found.skill.mean),
        "gap": _plain(found.gap.mean),
        "cosine": {name: _plain(found.cosines[name].mean) for name in CURVES},
        "intervals": {
            **{name: _ends(found.errors[name]) for name in CURVES},
            "skill": _ends(found.skill),
            "gap": _ends(found.gap),
            "cosine": {name: _ends(found.cosines[name]) for name in CURVES},
        },
        "drift_horizon_blocks": blocks,
        "seconds": None if blocks is None else blocks * block_seconds,
        "at_least": found.at_least,
        "reason": found.reason,
        "episodes": found.episodes,
        "short_episodes": found.short,
        "starts": found.starts,
        "block_seconds": block_seconds,
    }


def _plain(values: Any) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values)]


def _ends(curve: Curve) -> dict[str, list[float | None]]:
    return {"low": _plain(curve.low), "high": _plain(curve.high)}


def verdict(found: Drift, block_seconds: float) -> str:
    """The drift horizon in one sentence, in blocks and in seconds."""
    if found.drift_horizon is None:
        return f"drift horizon: none can be told, {found.reason}"
    seconds = found.drift_horizon * block_seconds
    least = "at least " if found.at_least else ""
    return f"drift horizon: {least}{found.drift_horizon} blocks, {seconds:.2f} s ({found.reason})"


def print_drift(found: Drift, block_seconds: float) -> None:
    """Print the figures for a person."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Narrow enough for 80 columns: a figure that is cut says nothing.
    table = Table(
        title=f"Prediction error over {found.episodes} episodes, 1 = a random pair",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    names = {
        "open_loop": "open",
        "closed_loop": "closed",
        "unchanged": "still",
        "previous": "before",
        "shuffled": "shuffled",
    }
    for heading in ("blocks", "s", *names.values(), "skill", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = [h for h in found.horizon if h in (1, 2, 3, 5, 8, 10, 13, 17) or h == found.horizon[-1]]
    for ahead in shown:
        index = ahead - 1
        table.add_row(
            str(ahead),
            f"{ahead * block_seconds:g}",
            *(f"{found.errors[name].mean[index]:.3f}" for name in names),
            f"{found.skill.mean[index]:.2f}",
            f"{found.skill.low[index]:.2f} to {found.skill.high[index]:.2f}",
        )
    console.print(table)
    console.print(
        "open, closed loop; still: nothing moved since the start; before: since the frame before; "
        "shuffled: another episode's actions; skill: 1 - open / still"
    )
    console.print(verdict(found, block_seconds))


def plot_drift(path: Path, found: Drift, block_seconds: float) -> Path:
    """Normalised error and cosine against horizon, with bands of 95 % and the drift horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = np.asarray(found.horizon) * block_seconds
    for axes, curves, label in (
        (left, found.errors, "squared error, 1 = a random pair"),
        (right, found.cosines, "cosine with what was seen"),
    ):
        for name in CURVES:
            curve = curves[name]
            if not np.isfinite(curve.mean).any():
                continue
            (line,) = axes.plot(seconds, curve.mean, _STYLES[name], label=LABELS[name])
            axes.fill_between(seconds, curve.low, curve.high, alpha=0.15, color=line.get_color())
        axes.set_xlabel(f"seconds ahead, blocks of {block_seconds:g} s")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if found.drift_horizon:
            axes.axvline(found.drift_horizon * block_seconds, color="grey", linewidth=0.8)
    left.set_ylim(0)
    # Beside the curves: within them it would hide some.
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small"
    )
    figure.suptitle(verdict(found, block_seconds).partition(" (")[0])
    figure.savefig(path, dpi=110)
    return path
