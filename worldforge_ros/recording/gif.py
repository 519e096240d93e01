"""An annotated picture of an episode: what was proposed, what it would cost, what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from worldforge_ros.drawing.strokes import (
    BACKGROUND,
    CHOSEN,
    FAINT,
    MODES,
    RULE,
    TEXT,
    cost_colour,
    disc,
    draw_candidates,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.recording.log import EpisodeLog, GateSample, ImageArray, Picture, PlanSample

SIZE = 480
"""Height of the scene in pixels."""
PANEL = 250
FRAME_PERIOD = 0.2
"""Seconds between two frames."""
LAST_FRAME = 2.0
"""Seconds that the last frame stays."""

MOST_FRAMES = 170
"""A longer episode is thinned out, so that the file stays small enough for a web page."""

_SCALE = 2
_INSET = 104
_MARGIN = 16
_SETPOINT = (20, 24, 32)

T = TypeVar("T")


def write_gif(log: EpisodeLog, path: Path) -> None:
    """Draw ``log`` at 5 frames a second.

    :raises WorldForgeError: ``EPISODE_INCOMPLETE`` when no picture was recorded.
    """
    pictures = log.overview or log.camera
    pictures = pictures[:: max(1, math.ceil(len(pictures) / MOST_FRAMES))]
    if not pictures:
        raise WorldForgeError(
            ErrorCode.EPISODE_INCOMPLETE,
            "pictures recorded are 0; expected at least 1 of the overview or a camera",
        )
    frames = [_frame(log, picture) for picture in pictures]
    palette = _palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [picture.time for picture in pictures]
    # GIF counts hundredths of a second; rounding end times, not durations, keeps the total right.
    ends = [round((t - times[0]) * 100) for t in times[1:]]
    durations = [10 * max(b - a, 2) for a, b in pairwise([0, *ends])]
    indexed[0].save(
        path,
        save_all=True,
        append_images=indexed[1:],
        duration=[*durations, round(LAST_FRAME * 1000)],
        loop=0,
        disposal=1,
        optimize=False,
    )


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames: a palette for each flickers and costs bytes."""
    chosen = [frames[i] for i in sorted({round(x) for x in np.linspace(0, len(frames) - 1, 12)})]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for index, frame in enumerate(chosen):
        sheet.paste(frame, (0, index * height))
    return sheet.quantize(colors=160, method=Image.Quantize.MEDIANCUT)


def _frame(log: EpisodeLog, picture: Picture) -> Image.Image:
    plan = _last([p for p in log.plans if p.outcome == "OK"], picture.time)
    gate = _last(log.gate, picture.time)
    scene = _scene(log, picture, plan)
    image = Image.new("RGB", (scene.width + PANEL, SIZE), BACKGROUND)
    image.paste(scene, (0, 0))
    _panel(image, log, picture, plan, gate)
    return image


def _last(samples: Sequence[T], time: float) -> T | None:
    """The newest sample that is not later than ``time``; samples are in order of time."""
    found = None
    for sample in samples:
        if sample.time > time:  # type: ignore[attr-defined]
            break
        found = sample
    return found


def _scene(log: EpisodeLog, picture: Picture, plan: PlanSample | None) -> Image.Image:
    pixels_seen = Image.fromarray(picture.image())
    size = (round(SIZE * pixels_seen.width / pixels_seen.height), SIZE)
    if log.extent is None:
        return pixels_seen.resize(size, Image.Resampling.BICUBIC)
    full = (size[0] * _SCALE, size[1] * _SCALE)
    image = pixels_seen.resize(full, Image.Resampling.BICUBIC)
    left, top, right, bottom = log.extent
    origin, span = np.array([left, top]), np.array([right - left, bottom - top])

    def pixels(points: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points - origin) / span * full]

    draw = ImageDraw.Draw(image)
    if plan is not None and plan.candidates.ndim == 3:
        paths = [pixels(candidate) for candidate in plan.candidates]
        draw_candidates(draw, paths, plan.costs, plan.chosen, _SCALE)
    setpoint = None
    for chunk in log.chunks:
        if chunk.start > picture.time:
            break
        setpoint = chunk.setpoint(picture.time)
    if setpoint is not None and len(setpoint) == 2:
        (x, y), reach = pixels(setpoint[None])[0], 9 * _SCALE
        for width, colour in ((4 * _SCALE, (255, 255, 255)), (2 * _SCALE, _SETPOINT)):
            draw.line([(x - reach, y), (x + reach, y)], fill=colour, width=width)
            draw.line([(x, y - reach), (x, y + reach)], fill=colour, width=width)
    return image.resize(size, Image.Resampling.LANCZOS)


def _panel(
    image: Image.Image,
    log: EpisodeLog,
    picture: Picture,
    plan: PlanSample | None,
    gate: GateSample | None,
) -> None:
    draw = ImageDraw.Draw(image)
    small, normal, large = (ImageFont.load_default(size) for size in (12, 14, 26))
    left, right = image.width - PANEL + _MARGIN, image.width - _MARGIN

    insets: list[tuple[str, Picture | ImageArray | None]] = [("goal", log.goal)]
    if log.overview:
        insets.insert(0, ("camera", _last(log.camera, picture.time)))
    width = right - left if len(insets) == 1 else _INSET
    for x, (caption, inset) in zip((left, right - _INSET), insets, strict=False):
        draw.text((x, 14), caption, font=small, fill=FAINT)
        pixels = inset.image() if isinstance(inset, Picture) else inset
        size = (_INSET, _INSET)
        if pixels is not None:
            inside = ImageOps.contain(
                Image.fromarray(pixels), (width, _INSET), Image.Resampling.BICUBIC
            )
            image.paste(inside, (x, 34))
            size = inside.size
        draw.rectangle((x - 1, 33, x + size[0], 34 + size[1]), outline=RULE)

    y = 34 + _INSET + 16
    seen = [value for time, value in log.progress if time <= picture.time + 1e-6]
    draw.text((left, y), log.figure.name, font=small, fill=FAINT)
    text = log.figure.text(seen[-1]) if seen else "unknown"
    draw.text((left, y + 14), text, font=large, fill=TEXT)
    draw.text((right, y), "time", font=small, fill=FAINT, anchor="ra")
    draw.text((right, y + 14), f"{picture.time:.1f} s", font=large, fill=TEXT, anchor="ra")
    _curve(draw, log, picture.time, (left, y + 52, right, y + 104))

    y += 122
    mode = gate.mode if gate is not None else "unknown"
    rows: list[tuple[str, str]] = []
    if plan is not None:
        finite = plan.costs[np.isfinite(plan.costs)]
        if len(finite) and 0 <= plan.chosen < len(plan.costs):
            rows.append(("cost, chosen", f"{plan.costs[plan.chosen]:.3g}"))
            rows.append(("cost, median", f"{np.median(finite):.3g}"))
        rows.append(("candidates", str(plan.num_candidates)))
        rows.append(("plan latency", f"{plan.plan_latency * 1000:.0f} ms"))
    if gate is not None and log.gate:
        rows.append(("approved", str(gate.chunks_approved - log.gate[0].chunks_approved)))
        rows.append(("rejected", str(gate.chunks_rejected - log.gate[0].chunks_rejected)))
    draw.text((left, y), "gate", font=normal, fill=FAINT)
    colour = MODES.get(mode, FAINT)
    box = draw.textbbox((right, y), mode, font=normal, anchor="ra")
    disc(draw, (box[0] - 12, (box[1] + box[3]) / 2), 4, colour)
    draw.text((right, y), mode, font=normal, fill=colour, anchor="ra")
    for name, text in rows:
        y += 24
        draw.line((left, y - 3, right, y - 3), fill=RULE)
        draw.text((left, y + 1), name, font=normal, fill=FAINT)
        draw.text((right, y + 1), text, font=normal, fill=TEXT, anchor="ra")

    if log.extent is None:
        return
    y = SIZE - 20
    legend = (("costly", cost_colour(0.0), 1), ("cheap", cost_colour(1.0), 2))
    x = left
    for name, colour, width in (*legend, ("chosen", CHOSEN, 4)):
        draw.line((x, y + 7, x + 16, y + 7), fill=colour, width=width)
        draw.text((x + 21, y), name, font=small, fill=FAINT)
        x += 21 + round(draw.textlength(name, font=small)) + 14


def _curve(
    draw: ImageDraw.ImageDraw, log: EpisodeLog, now: float, box: tuple[int, int, int, int]
) -> None:
    """Progress so far, on the time axis of the whole episode."""
    left, top, right, bottom = box
    draw.line((left, bottom, right, bottom), fill=RULE)
    draw.line((left, top, right, top), fill=RULE)
    total, full = max(log.duration, 1e-9), log.figure.full
    points = [
        (
            left + (right - left) * min(time / total, 1.0),
            bottom - (bottom - top) * min(value / full, 1.0),
        )
        for time, value in log.progress
        if time <= now + 1e-6
    ]
    if len(points) > 1:
        draw.line(points, fill=MODES["ARMED"], width=2, joint="curve")
    if points:
        disc(draw, points[-1], 3, MODES["ARMED"])
