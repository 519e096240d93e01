"""How smooth the set-points of a closed loop are where one chunk takes over from another.

Velocity and acceleration are finite differences of the commanded set-points, one a control step. A
jump is the change of one of them from a step to the next. It is *across* a seam where the
set-points that it is made of (three for the velocity, four for the acceleration) come from
different chunks, and *within* where they come from one; set-points of a hold belong to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.evaluation.loop import Command

FloatArray = npt.NDArray[np.float64]

QUANTITIES = ("velocity", "acceleration")
PROFILE = range(-3, 9)
"""Steps around the first set-point of a chunk that a profile shows."""


@dataclass(frozen=True)
class Jumps:
    """Jumps (N, J) of one quantity, in its SI unit.

    ``profile`` (seams, len(PROFILE), J) are those around each seam, NaN where there are none.
    """

    across: FloatArray
    within: FloatArray
    profile: FloatArray


def jumps(commands: Sequence[Command], step: float) -> dict[str, Jumps]:
    """The jumps of one episode, by :data:`QUANTITIES`.

    :param step: seconds between two commands.
    """
    positions = np.array([command.position for command in commands], dtype=np.float64)
    chunks = np.array([command.sequence for command in commands], dtype=np.int64)
    joints = positions.shape[1]
    new, old = chunks[1:], chunks[:-1]
    starts = 1 + np.flatnonzero((new != old) & (new > 0) & (old > 0))
    found = {}
    for order, name in zip((2, 3), QUANTITIES, strict=True):
        # Differences of this order divided by step^(order - 1): a velocity's change is one of
        # second order over one step, an acceleration's one of third order over two.
        change = np.diff(positions, n=order, axis=0) / step ** (order - 1)
        made_of = np.lib.stride_tricks.sliding_window_view(chunks, order + 1)
        executing = np.all(made_of > 0, axis=1)
        same = np.all(made_of == made_of[:, :1], axis=1)
        profile = np.full((len(starts), len(PROFILE), joints), np.nan)
        for row, start in enumerate(starts):
            for column, offset in enumerate(PROFILE):
                index = start + offset - order
                if 0 <= index < len(change) and executing[index]:
                    profile[row, column] = change[index]
        found[name] = Jumps(change[executing & ~same], change[executing & same], profile)
    return found


def joined(episodes: Iterable[Jumps]) -> Jumps:
    """The jumps of several episodes together."""
    every = list(episodes)
    return Jumps(
        np.concatenate([item.across for item in every]),
        np.concatenate([item.within for item in every]),
        np.concatenate([item.profile for item in every]),
    )


def rms(values: FloatArray, axis: int | tuple[int, ...] = 0) -> FloatArray:
    """Root mean square over ``axis``; NaN is left out, and is the result where nothing is left."""
    there = np.isfinite(values)
    total = np.where(there, np.square(values), 0.0).sum(axis=axis)
    count = there.sum(axis=axis)
    mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.sqrt(mean)


def known(value: npt.ArrayLike) -> float | None:
    """A figure for JSON; None for NaN."""
    number = float(np.asarray(value))
    return None if np.isnan(number) else number


def figures(found: Jumps, embodiment: Embodiment) -> dict[str, Any]:
    """Largest and root mean square jump of each joint, in the quantity's SI unit."""
    every = np.concatenate([found.across, found.within])
    parts = {"across": found.across, "within": found.within, "all": every}
    return {
        name: {
            f"{part}_{kind}": known(values)
            for part, rows in parts.items()
            for kind, values in (
                ("rms", rms(rows)[joint]),
                ("max", np.abs(rows[:, joint]).max(initial=0.0)),
            )
        }
        for joint, name in enumerate(embodiment.joint_names)
    }


def joints_by_unit(embodiment: Embodiment) -> dict[str, list[int]]:
    """Columns of the joints in rad and of those in m."""
    units: dict[str, list[int]] = {}
    for index, joint in enumerate(embodiment.joints):
        units.setdefault("m" if joint.type == "prismatic" else "rad", []).append(index)
    return units
