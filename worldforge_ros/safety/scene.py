"""What there is to draw of the gate's workspace, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import WorkspaceSpec
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.safety.workspace import Workspace

OPEN = 1.0
"""Metres that a box without a bound on one side is drawn long."""

FloatArray = npt.NDArray[np.float64]

_EDGES = np.array(
    [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b).bit_count() == 1]
).ravel()
"""Pairs of corners of a box that an edge joins; corner k has the upper x, y, z where its bits 2, 1,
0 are set."""


@dataclass(frozen=True, eq=False)
class MarkerScene:
    """Everything in m, in the frame of the workspace; None and no rows stand for what there is not.

    :param box: (2, 3) lower and upper corner, infinite where a side has no bound.
    :param polygon: (N, 2) corners in x and y, in order.
    :param keep_out: (K, 2, 3) lower and upper corners, infinite where a side has no bound.
    :param rejected: (R, E, 3) points of E end effectors in the last rejected chunk; they may be
        NaN or infinite, as those of ``approved`` may.
    :param violating: (R,) rows of ``rejected`` that violate the workspace, where known.
    :param approved: (R, E, 3) points in the last approved chunk.
    """

    box: FloatArray | None = None
    polygon: FloatArray | None = None
    keep_out: FloatArray = field(default_factory=lambda: np.empty((0, 2, 3)))
    rejected: FloatArray | None = None
    violating: npt.NDArray[np.bool_] | None = None
    approved: FloatArray | None = None

    def __post_init__(self) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for a shape, a corner that is no number or
        a box whose corners are swapped.
        """
        for name, shape in (
            ("box", (2, 3)),
            ("polygon", (-1, 2)),
            ("keep_out", (-1, 2, 3)),
            ("rejected", (-1, -1, 3)),
            ("approved", (-1, -1, 3)),
        ):
            value = getattr(self, name)
            if value is not None and not _fits(value.shape, shape):
                raise _wrong(name, f"shape {value.shape}", f"shape {shape}, -1 for any")
        for name in ("box", "keep_out"):
            value = getattr(self, name)
            # Also false for NaN.
            if value is not None and not (value[..., 0, :] <= value[..., 1, :]).all():
                raise _wrong(name, value.tolist(), "numbers, the lower before the upper")
        if self.polygon is not None and not np.isfinite(self.polygon).all():
            raise _wrong("polygon", self.polygon.tolist(), "finite numbers")
        rows = None if self.rejected is None else len(self.rejected)
        if self.violating is not None and self.violating.shape != (rows,):
            found = f"shape {self.violating.shape}"
            raise _wrong("violating", found, f"({rows},), one for each row of rejected")

    @property
    def drawn_box(self) -> FloatArray:
        """The box (2, 3) in finite numbers; at the origin where there is none."""
        flat = np.zeros((2, 3))
        return flat if self.box is None else closed(self.box, flat)


def scene_of(
    spec: WorkspaceSpec,
    rejected: FloatArray | None = None,
    violating: npt.NDArray[np.bool_] | None = None,
    approved: FloatArray | None = None,
) -> MarkerScene:
    """The scene of a workspace and of what moved in it, see :class:`MarkerScene`."""
    return MarkerScene(
        box=None if spec.box is None else np.array([spec.box.min, spec.box.max]),
        polygon=np.array(spec.polygon) if spec.polygon else None,
        keep_out=np.array([[zone.box.min, zone.box.max] for zone in spec.keep_out]).reshape(
            -1, 2, 3
        ),
        rejected=rejected,
        violating=violating,
        approved=approved,
    )


def violating_rows(workspace: Workspace, positions: FloatArray) -> npt.NDArray[np.bool_]:
    """Which set-points (R, J) are themselves where they may not be, apart from the ways to them."""
    return np.array(
        [bool(workspace.violations(row[np.newaxis], None)) for row in positions], dtype=np.bool_
    )


def closed(box: FloatArray, around: FloatArray) -> FloatArray:
    """``box`` (2, 3) as it is drawn, in finite numbers.

    Along an axis without any bound it is as long as ``around`` (2, 3). With one bound it reaches
    to the other end of ``around``, or :data:`OPEN` far where that lies before the bound.
    """
    low, high = box
    drawn = np.where(np.isinf(box), around, box)
    lower_open, upper_open = np.isinf(low) & np.isfinite(high), np.isinf(high) & np.isfinite(low)
    drawn[0] = np.where(lower_open & (drawn[0] >= high), high - OPEN, drawn[0])
    drawn[1] = np.where(upper_open & (drawn[1] <= low), low + OPEN, drawn[1])
    return drawn


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(
        want in (-1, size) for size, want in zip(found, wanted, strict=True)
    )


def _wrong(name: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.INVALID_ARGUMENT, f"scene.{name}", found=found, expected=expected)


def box_edges(box: FloatArray) -> FloatArray:
    """Both ends (24, 3) of the 12 edges of a box (2, 3), one edge after another."""
    corners = np.array([[box[k >> 2 & 1, 0], box[k >> 1 & 1, 1], box[k & 1, 2]] for k in range(8)])
    edges: FloatArray = corners[_EDGES]
    return edges


def polygon_edges(polygon: FloatArray, low: float, high: float) -> FloatArray:
    """Both ends (M, 3) of the edges of a prism over ``polygon`` (N, 2); of the polygon alone where
    ``low`` equals ``high``.
    """
    count = len(polygon)
    rings = [
        np.column_stack([polygon, np.full(count, height)])
        for height in ([low] if low == high else [low, high])
    ]
    parts = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    if len(rings) == 2:
        parts.append(np.stack(rings, axis=1))
    edges: FloatArray = np.concatenate(parts).reshape(-1, 3)
    return edges


def drawable(path: FloatArray) -> FloatArray:
    """The rows of ``path`` (R, 3) before the first that is not finite: where a chunk leaves the
    numbers, its path ends.
    """
    broken = ~np.isfinite(path).all(axis=1)
    return path[: int(broken.argmax())] if broken.any() else path
