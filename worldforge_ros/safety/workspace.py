"""Where the robot may be: a box, a polygon, keep-out boxes, and the distance between arms.

Between two set-points every joint is taken to move in a straight line, all of them together. An end
effector whose coordinates are joints then moves in straight lines too, and these are checked
exactly. One that hangs on joints that turn does not: its path is cut into pieces that are within
:data:`PATH_TOLERANCE` of straight lines, and these lines are checked. With q(t) the joints along a
move of length 1, p(q) the end effector and D the distance of a joint's change, ``|p''| <= 2 sum D_i
sum r_j D_j`` where i turns and r_j is how far p moves at most for a unit of joint j; a chord of n
pieces is off by at most ``|p''| / (8 n^2)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, EndEffector, KeepOut, WorkspaceSpec
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.safety.kinematics import Kinematics, Pose
from worldforge_ros.safety.limits import ROUNDING, FloatArray
from worldforge_ros.safety.reasons import Reason, ReasonCode, reason

PATH_TOLERANCE = 0.001
"""Metres by which the path of an end effector on an arm may differ from the lines checked."""
ARM_TOLERANCE = 0.002
"""Metres by which two arms may approach between two moments at which their distance is computed:
on a path that passes they are never nearer than half of it below ``min_arm_distance``.
"""
MAX_SAMPLES = 2048
"""Set-points that are looked at in one check; moves so long that they need more are refused."""

IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Path:
    """Joint positions (S, J) along a path; ``row`` (S,) is the number of the action that each leads
    to. The first sample is the present set-point, and no action, where the path has ``begun``.
    """

    positions: FloatArray
    row: IntArray
    begun: bool


def workspace_of(embodiment: Embodiment, urdf: Path | None) -> Workspace | None:
    """The workspace of an embodiment, or None where its file has no such section.

    Loads MuJoCo only where links are named, shapely only where there is a polygon.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when links are named without a URDF,
        ``EMBODIMENT_INVALID`` for a polygon that crosses itself, ``DEPENDENCY_MISSING``, and what
        :class:`~worldforge_ros.safety.kinematics.Kinematics` raises.
    """
    spec = embodiment.workspace
    return None if spec is None else Workspace(embodiment, spec, urdf)


class Workspace:
    """Checks set-points (R, J) in contract order, in m or rad, against a :class:`WorkspaceSpec`."""

    def __init__(self, embodiment: Embodiment, spec: WorkspaceSpec, urdf: Path | None) -> None:
        self.spec = spec
        self.frame = spec.frame
        ends = [end.link for end in spec.end_effectors if end.link is not None]
        links = list(dict.fromkeys([*ends, *(link for arm in spec.arms for link in arm.links)]))
        self._links = links
        self._kinematics = self._poses = None
        if links:
            if urdf is None:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    "parameter urdf",
                    found="empty",
                    expected=f"a URDF, since the workspace of {embodiment.name} names links",
                )
            self._kinematics = Kinematics(embodiment, urdf, links, spec.frame)
            # Its own, so that streaming poses never waits for a chunk that is being checked.
            self._poses = Kinematics(embodiment, urdf, ends, spec.frame) if ends else None
        self._columns = [_columns(end, embodiment) for end in spec.end_effectors]
        self._low: FloatArray | None = None
        self._high: FloatArray | None = None
        if spec.box is not None:
            self._low = np.array(spec.box.min) - ROUNDING
            self._high = np.array(spec.box.max) + ROUNDING
        self._polygon = _prepared(spec) if spec.polygon else None
        self._arms = [[links.index(link) for link in arm.links] for arm in spec.arms]
        self._curved = bool(ends) and self._bounded

    @property
    def effectors(self) -> int:
        """How many end effectors there are."""
        return len(self._columns)

    @property
    def _bounded(self) -> bool:
        spec = self.spec
        return bool(spec.box or spec.polygon or spec.keep_out)

    def points(self, positions: FloatArray) -> FloatArray:
        """End effectors (R, E, 3) in metres in ``frame``; NaN for rows that are not finite."""
        finite = _finite(positions)
        origins = self._origins(positions, finite) if self._kinematics is not None else None
        return self._points(positions, finite, origins)

    def poses(self, position: FloatArray) -> list[Pose]:
        """Position and quaternion (x, y, z, w) of every end effector at a finite ``position`` (J,).

        The frame's own orientation for end effectors whose coordinates are joints. May be called
        while :meth:`violations` runs in another thread.
        """
        hanging = iter(self._poses.poses(position) if self._poses is not None else ())
        poses: list[Pose] = []
        for columns in self._columns:
            if columns is None:
                poses.append(next(hanging))
            else:
                origin = np.zeros(3)
                origin[: len(columns)] = position[columns]
                poses.append((origin, np.array([0.0, 0.0, 0.0, 1.0])))
        return poses

    def violations(
        self, positions: FloatArray, before: FloatArray | None, first: int = 0
    ) -> list[Reason]:
        """What set-points ``positions`` (R, J) and the moves between them violate.

        Each of ``WORKSPACE_BOX``, ``WORKSPACE_POLYGON``, ``KEEP_OUT`` and ``ARM_DISTANCE`` at most
        once, for the first row that does. Rows that are not finite, and moves from and to them, are
        left to another check.

        The joints are taken to move in a straight line from row to row. Coordinates that are joints
        are then checked exactly, links on an arm within :data:`PATH_TOLERANCE`, the distance of
        arms within half of :data:`ARM_TOLERANCE`.

        :param before: the set-point (J,) from which the first row is reached, or None to look at
            the rows alone and what is between them. It is not itself refused for being outside the
            box, but a way into the polygon or out of a keep-out box is.
        :param first: the number that messages give to the first row.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return self._violations(positions, before, first)

    def _violations(
        self, positions: FloatArray, before: FloatArray | None, first: int
    ) -> list[Reason]:
        if not len(positions):
            return []
        path = self._path(positions, before, first)
        if path is None:
            return [self._unknown(f"too long to be checked at {MAX_SAMPLES} places")]
        finite = _finite(path.positions)
        origins = None
        if self._kinematics is not None:
            origins = self._origins(path.positions, finite)
            if not np.isfinite(origins[finite]).all():
                return [self._unknown("to places that cannot be computed")]
        found: list[Reason | None] = []
        if self._bounded:
            points = self._points(path.positions, finite, origins)
            found += [self._box(points, path), self._outside(points, path)]
            found.append(self._entered(points, path))
        if self.spec.arms:
            assert origins is not None
            found.append(self._arm_distance(path, finite, origins))
        return [item for item in found if item is not None]

    def _unknown(self, found: str) -> Reason:
        """What cannot be checked is refused, with the first code that could apply."""
        spec = self.spec
        if spec.box is not None:
            code = ReasonCode.WORKSPACE_BOX
        elif spec.polygon:
            code = ReasonCode.WORKSPACE_POLYGON
        else:
            code = ReasonCode.KEEP_OUT if spec.keep_out else ReasonCode.ARM_DISTANCE
        expected = "moves that are short enough to be checked"
        return reason(code, "the way through the set-points", found=found, expected=expected)

    def _path(self, positions: FloatArray, before: FloatArray | None, first: int) -> _Path | None:
        corners = positions
        if before is not None:
            corners, first = np.vstack([before, positions]), first - 1
        count = len(corners)
        if not self._curved or count < 2:
            return _Path(corners, np.arange(first, first + count), before is not None)
        assert self._kinematics is not None
        used = [self._links.index(end.link) for end in self.spec.end_effectors if end.link]
        change = np.abs(np.diff(corners, axis=0))
        turned = change @ self._kinematics.turning[used].T
        moved = change @ self._kinematics.reach[used].T
        needed = np.sqrt((turned * moved).max(axis=1) / (4 * PATH_TOLERANCE))
        needed[~np.isfinite(change).all(axis=1)] = 1.0
        if not needed.sum() < MAX_SAMPLES:
            return None
        pieces = np.maximum(1, np.ceil(needed)).astype(np.intp)
        return _subdivided(corners, pieces, first, before is not None)

    def _origins(self, positions: FloatArray, finite: BoolArray) -> FloatArray:
        assert self._kinematics is not None
        if finite.all():
            return self._kinematics.origins(positions)
        origins = np.full((len(positions), len(self._links), 3), np.nan)
        origins[finite] = self._kinematics.origins(positions[finite])
        return origins

    def _points(
        self, positions: FloatArray, finite: BoolArray, origins: FloatArray | None
    ) -> FloatArray:
        points = np.zeros((len(positions), len(self._columns), 3))
        for index, columns in enumerate(self._columns):
            if columns is not None:
                points[:, index, : len(columns)] = positions[:, columns]
            else:
                assert origins is not None
                link = self.spec.end_effectors[index].link
                points[:, index] = origins[:, self._links.index(str(link))]
        points[~finite] = np.nan
        return points

    def _box(self, points: FloatArray, path: _Path) -> Reason | None:
        if self._low is None or self._high is None:
            return None
        # A box has no inner corner to cut: where the ends of a line are inside, so is the line.
        beyond = (points < self._low) | (points > self._high)
        if path.begun:
            beyond[0] = False
        if not beyond.any():
            return None
        sample, end, axis = (int(i) for i in np.argwhere(beyond)[0])
        box = self.spec.box
        assert box is not None
        return reason(
            ReasonCode.WORKSPACE_BOX,
            f"{'xyz'[axis]} of {self._name(end)} {_place(path, sample)}",
            found=f"{points[sample, end, axis]:.4f} m",
            expected=f"{box.min[axis]:g} to {box.max[axis]:g} m in {self.frame}",
        )

    def _outside(self, points: FloatArray, path: _Path) -> Reason | None:
        if self._polygon is None:
            return None
        import shapely

        first: tuple[int, int] | None = None
        for end in range(points.shape[1]):
            line = points[:, end, :2]
            if (
                len(line) > 1
                and np.isfinite(line).all()
                and shapely.covers(self._polygon, shapely.linestrings(line))
            ):
                continue
            bad = ~shapely.intersects_xy(self._polygon, line[:, 0], line[:, 1])
            bad &= np.isfinite(line).all(axis=1)
            bad[0] &= not path.begun
            pieces = np.stack([line[:-1], line[1:]], axis=1)
            known = np.isfinite(pieces).all(axis=(1, 2))
            inside = np.ones(len(pieces), dtype=np.bool_)
            if known.any():
                inside[known] = shapely.covers(self._polygon, shapely.linestrings(pieces[known]))
            if path.begun and not shapely.intersects_xy(self._polygon, *line[0]):
                # Who is outside may come back in; where that leads is looked at below.
                inside[0] = True
            bad[1:] |= ~inside
            if bad.any():
                sample = int(np.argmax(bad))
                if first is None or sample < first[0]:
                    first = (sample, end)
        if first is None:
            return None
        sample, end = first
        x, y = points[sample, end, :2]
        there = bool(shapely.intersects_xy(self._polygon, x, y))
        return reason(
            ReasonCode.WORKSPACE_POLYGON,
            f"{self._name(end)} {_place(path, sample, way=there)}",
            found=f"{'leaving the polygon towards' if there else 'at'} ({x:.4f}, {y:.4f}) m",
            expected=f"a place inside the polygon in {self.frame}",
        )

    def _entered(self, points: FloatArray, path: _Path) -> Reason | None:
        first: tuple[int, int, KeepOut] | None = None
        for zone in self.spec.keep_out:
            low, high = _interior(zone)
            inside = _within(points, zone)
            if path.begun:
                inside[0] = False
            start, stop = points[:-1], points[1:]
            # Most lines stay on one side of the box altogether.
            near = (np.maximum(start, stop) > low) & (np.minimum(start, stop) < high)
            pieces, ends = np.nonzero(near.all(axis=2))
            through = _crosses(start[pieces, ends], stop[pieces, ends], low, high)
            if path.begun:
                # Who is inside may come out.
                through &= ~((pieces == 0) & _within(points[:1], zone)[0, ends])
            inside[pieces[through] + 1, ends[through]] = True
            if inside.any():
                sample, end = (int(i) for i in np.argwhere(inside)[0])
                if first is None or sample < first[0]:
                    first = (sample, end, zone)
        if first is None:
            return None
        sample, end, zone = first
        x, y, z = points[sample, end]
        there = not _within(points[sample, end], zone)
        return reason(
            ReasonCode.KEEP_OUT,
            f"{self._name(end)} {_place(path, sample, way=there)}",
            found=f"{'passing through' if there else 'in'} {zone.name} "
            f"{'towards' if there else 'at'} ({x:.4f}, {y:.4f}, {z:.4f}) m",
            expected=f"a place outside {_extent(zone)} in {self.frame}",
        )

    def _arm_distance(self, path: _Path, finite: BoolArray, origins: FloatArray) -> Reason | None:
        least = self.spec.min_arm_distance
        assert least is not None
        reasons = []
        for one, other in combinations(range(len(self._arms)), 2):
            sample, distance = self._too_near(one, other, path, finite, origins, least - ROUNDING)
            if sample is not None:
                names = f"{self.spec.arms[one].name} and {self.spec.arms[other].name}"
                found = f"{distance:.4f} m" if np.isfinite(distance) else "too long a way to check"
                text = reason(
                    ReasonCode.ARM_DISTANCE,
                    f"distance of {names} {_place(path, sample, way=True)}",
                    found=found,
                    expected=f"at least {least:g} m",
                )
                reasons.append((sample, text))
        return min(reasons, key=lambda item: item[0])[1] if reasons else None

    def _too_near(
        self,
        one: int,
        other: int,
        path: _Path,
        finite: BoolArray,
        origins: FloatArray,
        least: float,
    ) -> tuple[int | None, float]:
        """The first sample that is too near, or that is reached through a place that is."""
        assert self._kinematics is not None
        arms = (self._arms[one], self._arms[other])
        radii = self.spec.arms[one].radius + self.spec.arms[other].radius
        change = np.abs(np.diff(path.positions, axis=0))
        reach = self._kinematics.reach
        # An arm moves no faster than the fastest of its links' origins.
        travel = sum((change @ reach[arm].T).max(axis=1, initial=0.0) for arm in arms)
        both = finite[:-1] & finite[1:]
        # Boxes around the arms are at most as far apart as the arms: most samples need no more.
        distance = _apart(origins[:, arms[0]], origins[:, arms[1]]) - radii
        near = finite & (distance < least + np.max(travel[both], initial=0.0))
        distance[~finite] = np.inf
        distance[near] = _distances(origins[near][:, arms[0]], origins[near][:, arms[1]]) - radii
        bad = distance < least
        bad[0] &= not path.begun
        # Two lower bounds that fall and rise with the travel meet here.
        nearest = (distance[:-1] + distance[1:] - travel) / 2
        doubtful = np.flatnonzero(both & ~bad[1:] & (nearest < least))
        if doubtful.size:
            needed = np.ceil(travel[doubtful] / ARM_TOLERANCE)
            if not needed.sum() < MAX_SAMPLES:
                bad[doubtful[np.argmax(needed)] + 1] = True
                distance[doubtful[np.argmax(needed)] + 1] = np.inf
                needed = np.minimum(needed, 1)
            for piece, count in zip(doubtful, needed.astype(np.intp), strict=True):
                share = np.arange(1, count)[:, None] / count
                start, stop = path.positions[piece], path.positions[piece + 1]
                places = self._kinematics.origins(start + (stop - start) * share)
                between = _distances(places[:, arms[0]], places[:, arms[1]]) - radii
                closest = between.min(initial=np.inf)
                if closest < least:
                    bad[piece + 1], distance[piece + 1] = True, closest
                    break
        if not bad.any():
            return None, np.inf
        sample = int(np.argmax(bad))
        return sample, float(distance[sample])

    def _name(self, end: int) -> str:
        return self.spec.end_effectors[end].name


def _finite(positions: FloatArray) -> BoolArray:
    finite: BoolArray = np.all(np.isfinite(positions), axis=1)
    return finite


def _columns(end: EndEffector, embodiment: Embodiment) -> list[int] | None:
    return [embodiment.joint_names.index(name) for name in end.joints] if end.joints else None


def _prepared(spec: WorkspaceSpec) -> Any:
    try:
        import shapely
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "python module shapely",
            found=f"not importable ({error})",
            expected="the package shapely, for a workspace with a polygon",
        ) from error
    polygon = shapely.Polygon(spec.polygon)
    if not polygon.is_valid or polygon.area == 0.0:
        raise mismatch(
            ErrorCode.EMBODIMENT_INVALID,
            "embodiment field workspace.polygon",
            found=shapely.is_valid_reason(polygon) if polygon.area else "without an area",
            expected="corners in order around one area",
        )
    wider = polygon.buffer(ROUNDING, join_style="mitre")
    shapely.prepare(wider)
    return wider


def _subdivided(corners: FloatArray, pieces: IntArray, first: int, begun: bool) -> _Path:
    """``pieces`` (M,) equal steps for each of the M moves between ``corners`` (M + 1, J)."""
    move = np.repeat(np.arange(len(pieces)), pieces)
    step = np.arange(len(move)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + 1
    share = (step / pieces[move])[:, None]
    # This form gives the corner itself, to the bit, at a share of 1.
    between = corners[move] * (1.0 - share) + corners[move + 1] * share
    positions = np.concatenate([corners[:1], between])
    row = np.concatenate([[first], move + first + 1])
    return _Path(positions, row, begun)


def _interior(zone: KeepOut) -> tuple[FloatArray, FloatArray]:
    return np.array(zone.box.min) + ROUNDING, np.array(zone.box.max) - ROUNDING


def _within(points: FloatArray, zone: KeepOut) -> BoolArray:
    low, high = _interior(zone)
    inside: BoolArray = np.all((points > low) & (points < high), axis=-1)
    return inside


def _crosses(start: FloatArray, stop: FloatArray, low: FloatArray, high: FloatArray) -> BoolArray:
    """Which lines (N, 3) to (N, 3) have a part inside an open box: Kay and Kajiya's slabs (1986).

    They must not lie beside the box on an axis along which they do not move.
    """
    along = stop - start
    still = along == 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (low - start) / along, (high - start) / along
    enter = np.where(still, 0.0, np.minimum(a, b)).max(axis=1, initial=0.0)
    leave = np.where(still, 1.0, np.maximum(a, b)).min(axis=1, initial=1.0)
    crossing: BoolArray = enter < leave
    return crossing


def _apart(one: FloatArray, other: FloatArray) -> FloatArray:
    """Distance (S,) of the boxes around points (S, A, 3) and (S, B, 3), in metres."""
    gap = np.maximum(one.min(1) - other.max(1), other.min(1) - one.max(1))
    apart: FloatArray = np.sqrt((np.maximum(gap, 0.0) ** 2).sum(-1))
    return apart


def _distances(one: FloatArray, other: FloatArray) -> FloatArray:
    """Least distance (S,) of two chains of points (S, A, 3) and (S, B, 3), in metres.

    Closest points of two segments by Ericson, Real-Time Collision Detection (2005), 5.1.9.
    """
    p, d = one[:, :-1, None], np.diff(one, axis=1)[:, :, None]
    q, e = other[:, None, :-1], np.diff(other, axis=1)[:, None, :]
    r = p - q
    dd, ee, de = (d * d).sum(-1), (e * e).sum(-1), (d * e).sum(-1)
    dr, er = (d * r).sum(-1), (e * r).sum(-1)
    steep = dd * ee - de * de
    safe = steep > 1e-12 * dd * ee
    s = np.clip((de * er - dr * ee) / np.where(safe, steep, 1.0), 0.0, 1.0) * safe
    t = np.clip((de * s + er) / np.where(ee > 0.0, ee, 1.0), 0.0, 1.0) * (ee > 0.0)
    s = np.clip((de * t - dr) / np.where(dd > 0.0, dd, 1.0), 0.0, 1.0) * (dd > 0.0)
    gap = r + d * s[..., None] - e * t[..., None]
    least: FloatArray = np.sqrt((gap * gap).sum(-1).min(axis=(1, 2)))
    return least


def _place(path: _Path, sample: int, way: bool = False) -> str:
    row = int(path.row[sample])
    last = sample + 1 == len(path.row) or path.row[sample + 1] != row
    return f"at action {row}" if last and not way else f"on the way to action {row}"


def _extent(zone: KeepOut) -> str:
    sides = zip("xyz", zone.box.min, zone.box.max, strict=True)
    return ", ".join(f"{axis} {a:g} to {b:g} m" for axis, a, b in sides if b - a < np.inf)
