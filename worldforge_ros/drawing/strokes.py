"""How candidates are drawn into a picture: one look for episode reports and live pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import ImageDraw

Colour = tuple[int, int, int]
Path = list[tuple[float, float]]

BACKGROUND: Colour = (17, 22, 29)
TEXT: Colour = (230, 234, 240)
FAINT: Colour = (139, 150, 165)
RULE: Colour = (45, 54, 66)
CHOSEN: Colour = (200, 20, 60)
WHITE: Colour = (255, 255, 255)
UNREACHABLE: Colour = (120, 130, 145)
MODES: dict[str, Colour] = {
    "ARMED": (64, 192, 116),
    "HOLDING": (240, 180, 60),
    "DISARMED": (120, 130, 145),
    "STOPPED": (240, 82, 82),
}
"""Colours of the gate's modes."""

_WORST = np.array([247, 213, 164])
_BEST = np.array([232, 110, 0])
_STRONG = 0.7
"""From this strength on a line is twice as wide."""


def cost_strength(costs: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float64]:
    """How strongly each of ``count`` candidates is drawn: 1 for the lowest cost, 0 for the highest.

    By rank, so that one outlier does not wash out the rest; a candidate without a cost gets 0.
    """
    strength = np.zeros(count)
    if len(costs) != count:
        return strength
    known = np.flatnonzero(np.isfinite(costs))
    order = known[np.argsort(costs[known], kind="stable")]
    if len(order) == 1:
        strength[order] = 1.0
    elif len(order):
        strength[order] = np.linspace(1.0, 0.0, len(order))
    return strength


def cost_colour(strength: float) -> Colour:
    """Colour of a candidate of that strength, see :func:`cost_strength`."""
    red, green, blue = (round(float(v)) for v in _WORST + (_BEST - _WORST) * strength)
    return red, green, blue


def draw_candidates(
    draw: ImageDraw.ImageDraw,
    paths: Sequence[Path],
    costs: npt.NDArray[np.float32],
    chosen: int,
    unit: float,
    reachable: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Draw one path of pixels for each candidate, the cheap ones over the costly ones and the
    chosen one over all.

    :param costs: (S,), or none at all where nothing was scored.
    :param chosen: number of the chosen one, -1 for none.
    :param unit: pixels that the thinnest line is wide.
    :param reachable: (S,), candidates without it are grey.
    """
    ranks = cost_strength(costs, len(paths))
    for index in np.argsort(ranks, kind="stable"):
        if index == chosen or len(paths[index]) < 2:
            continue
        grey = reachable is not None and len(reachable) == len(paths) and not reachable[index]
        colour = UNREACHABLE if grey else cost_colour(ranks[index])
        width = round(unit * (1 if ranks[index] < _STRONG or grey else 2))
        draw.line(paths[index], fill=colour, width=max(width, 1), joint="curve")
    if 0 <= chosen < len(paths) and paths[chosen]:
        path = paths[chosen]
        draw.line(path, fill=WHITE, width=round(7 * unit), joint="curve")
        draw.line(path, fill=CHOSEN, width=round(3 * unit), joint="curve")
        for point in path[:-1]:
            disc(draw, point, 2.5 * unit, CHOSEN)
        disc(draw, path[-1], 6.5 * unit, WHITE)
        disc(draw, path[-1], 4.5 * unit, CHOSEN)


def disc(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: Colour
) -> None:
    """A filled circle."""
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
