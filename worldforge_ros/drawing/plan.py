"""A picture of one planning cycle: what was proposed, what it would cost, what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from worldforge_ros.drawing.strokes import (
    BACKGROUND,
    CHOSEN,
    FAINT,
    MODES,
    RULE,
    TEXT,
    UNREACHABLE,
    Path,
    cost_colour,
    cost_strength,
    disc,
    draw_candidates,
)
from worldforge_ros.observation import ImageArray

FloatArray = npt.NDArray[np.floating]

SIZE = 480
"""Height of the scene in pixels."""
PANEL = 250
"""Width of what is written beside it."""

_SCALE = 2
_MARGIN = 16
_PLOT = 120
_COLUMNS = 4
_MOST_BARS = 64


@dataclass(frozen=True, eq=False)
class PlanView:
    """One cycle, or candidates that were scored outside of any (``cycle`` 0).

    :param image: (height, width, 3) uint8 RGB, what was seen.
    :param candidates: (S, H, J) set-points in m or rad, as they would be executed.
    :param costs: (S,), NaN where there is none; or (0,) where nothing was scored.
    :param reachable: (S,).
    :param chosen: index of the chosen candidate, -1 for none.
    :param margin: cost of the runner-up minus that of the chosen one, NaN without.
    :param gate_mode: of the safety gate, empty where it was never heard; None where there is none.
    :param plan_latency: seconds, NaN where it was not measured.
    """

    cycle: int
    outcome: str
    image: ImageArray
    joint_names: tuple[str, ...]
    candidates: FloatArray
    costs: npt.NDArray[np.float32]
    reachable: npt.NDArray[np.bool_]
    sources: tuple[str, ...]
    chosen: int
    margin: float
    plan_latency: float
    gate_mode: str | None = ""
    gate_reason: str = ""


def pixels_of(projection: npt.ArrayLike, points: FloatArray) -> FloatArray:
    """Points (..., 3) in metres as pixels (..., 2) of a camera, see
    :attr:`worldforge_ros.embodiment.Camera.projection`; NaN for what is not in front of it.
    """
    matrix = np.asarray(projection, dtype=np.float64)
    image = points @ matrix[:, :3].T + matrix[:, 3]
    depth = image[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels: FloatArray = np.where(depth > 0, image[..., :2] / depth, np.nan)
    return pixels


def draw_plan(view: PlanView, pixels: FloatArray | None) -> ImageArray:
    """The picture with every candidate in it, beside costs, margin and the gate's mode.

    :param pixels: (S, H, E, 2) of E end effectors in ``view.image``; NaN ends a path. None where
        the camera or the workspace is not known: every joint's candidates are drawn below the
        picture instead, against the steps.
    :returns: (height, width, 3) uint8 RGB.
    """
    scene = _scene(view, pixels)
    plots = _plots(view, scene.width) if pixels is None and view.candidates.size else None
    height = SIZE + (0 if plots is None else plots.height)
    canvas = Image.new("RGB", (scene.width + PANEL, height), BACKGROUND)
    canvas.paste(scene, (0, 0))
    if plots is not None:
        canvas.paste(plots, (0, SIZE))
    _panel(canvas, view)
    return np.asarray(canvas)


def _scene(view: PlanView, pixels: FloatArray | None) -> Image.Image:
    seen = Image.fromarray(view.image)
    size = (round(SIZE * seen.width / seen.height), SIZE)
    if pixels is None or not pixels.size:
        return seen.resize(size, Image.Resampling.BICUBIC)
    full = (size[0] * _SCALE, size[1] * _SCALE)
    image = seen.resize(full, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    ratio = np.array(full) / np.array(seen.size)
    for end in range(pixels.shape[2]):
        paths = [_path(candidate[:, end] * ratio) for candidate in pixels]
        draw_candidates(draw, paths, view.costs, view.chosen, _SCALE, view.reachable)
    return image.resize(size, Image.Resampling.LANCZOS)


def _path(points: FloatArray) -> Path:
    """The points before the first that is not finite."""
    broken = ~np.isfinite(points).all(axis=1)
    known = points[: int(broken.argmax())] if broken.any() else points
    return [(float(x), float(y)) for x, y in known]


def _plots(view: PlanView, width: int) -> Image.Image:
    """A small plot of every joint, all candidates against the steps."""
    count = view.candidates.shape[2]
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    image = Image.new("RGB", (width, rows * _PLOT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(11)
    wide = width / columns
    for joint, name in enumerate(view.joint_names):
        left, top = wide * (joint % columns), _PLOT * (joint // columns)
        values = view.candidates[:, :, joint]
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        # A joint that no candidate moves is a line in the middle.
        span = max(high - low, 1e-6)
        middle, inner = (low + high) / 2, _PLOT - 40
        steps = np.linspace(left + 8, left + wide - 8, values.shape[1])
        heights = top + 22 + inner / 2 - (values - middle) / span * inner
        paths = [_path(np.column_stack([steps, row])) for row in heights]
        draw_candidates(draw, paths, view.costs, view.chosen, 0.5, view.reachable)
        draw.text((left + 8, top + 4), name, font=font, fill=TEXT)
        text = f"{low:.3g} to {high:.3g}"
        draw.text((left + 8, top + _PLOT - 15), text, font=font, fill=FAINT)
        draw.rectangle((left, top, left + wide - 1, top + _PLOT - 1), outline=RULE)
    return image


def _panel(image: Image.Image, view: PlanView) -> None:
    draw = ImageDraw.Draw(image)
    small, normal, large = (ImageFont.load_default(size) for size in (12, 14, 26))
    left, right = image.width - PANEL + _MARGIN, image.width - _MARGIN
    y = 14
    if view.gate_mode is not None:
        mode = view.gate_mode or "unknown"
        colour = MODES.get(mode, FAINT)
        draw.text((left, 14), "gate", font=small, fill=FAINT)
        draw.text((left + 18, 28), mode, font=large, fill=colour)
        disc(draw, (left + 6, 45), 5, colour)
        reason = wrap(view.gate_reason, 34)[:4]
        for line, text in enumerate(reason):
            draw.text((left, 62 + 16 * line), text, font=small, fill=TEXT)
        y = 70 + 16 * max(len(reason), 1)
    for name, text in _rows(view):
        draw.line((left, y - 3, right, y - 3), fill=RULE)
        draw.text((left, y + 1), name, font=normal, fill=FAINT)
        draw.text((right, y + 1), text, font=normal, fill=TEXT, anchor="ra")
        y += 24
    _bars(draw, view, (left, y + 26, right, SIZE - 40))
    draw.text((left, y + 6), "costs, lowest first", font=small, fill=FAINT)
    x, y = left, SIZE - 24
    legend = (("costly", cost_colour(0.0), 1), ("cheap", cost_colour(1.0), 2))
    for name, colour, width in (*legend, ("chosen", CHOSEN, 4)):
        draw.line((x, y + 7, x + 16, y + 7), fill=colour, width=width)
        draw.text((x + 21, y), name, font=small, fill=FAINT)
        x += 21 + round(draw.textlength(name, font=small)) + 14


def _rows(view: PlanView) -> Sequence[tuple[str, str]]:
    count = len(view.candidates)
    known = view.costs[np.isfinite(view.costs)]
    rows = [("outcome", view.outcome[:24])]
    if view.cycle:
        rows.insert(0, ("cycle", str(view.cycle)))
    reachable = f", {int(view.reachable.sum())} reachable" if view.cycle else ""
    rows.append(("candidates", f"{count}{reachable}"))
    if 0 <= view.chosen < count:
        source = view.sources[view.chosen] if view.chosen < len(view.sources) else ""
        rows.append(("chosen", f"{view.chosen} {source}".strip()))
        if view.chosen < len(view.costs) and math.isfinite(view.costs[view.chosen]):
            rows.append(("its cost", f"{view.costs[view.chosen]:.4g}"))
    if len(known):
        rows.append(("median cost", f"{np.median(known):.4g}"))
    if math.isfinite(view.margin):
        rows.append(("margin", f"{view.margin:.3g}"))
    if math.isfinite(view.plan_latency):
        rows.append(("latency", f"{view.plan_latency * 1000:.0f} ms"))
    return rows


def _bars(draw: ImageDraw.ImageDraw, view: PlanView, box: tuple[int, int, int, int]) -> None:
    """Costs as bars, lowest first; their scale begins at the lowest cost or at 0, whichever is
    less.
    """
    left, top, right, bottom = box
    draw.line((left, bottom, right, bottom), fill=RULE)
    known = np.flatnonzero(np.isfinite(view.costs))
    order = known[np.argsort(view.costs[known], kind="stable")][:_MOST_BARS]
    if not len(order):
        draw.text((left, bottom - 18), "no costs", font=ImageFont.load_default(12), fill=FAINT)
        return
    values = view.costs[order].astype(np.float64)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    span = max(high - low, 1e-12)
    ranks = cost_strength(view.costs, len(view.costs))
    width = min((right - left) / len(order), 14.0)
    for place, index in enumerate(order):
        reached = index >= len(view.reachable) or view.reachable[index]
        colour = cost_colour(ranks[index]) if reached else UNREACHABLE
        if index == view.chosen:
            colour = CHOSEN
        x = left + place * width
        height = (float(values[place]) - low) / span * (bottom - top)
        draw.rectangle((x, bottom - max(height, 1.0), x + max(width - 1.5, 0.5), bottom), colour)
