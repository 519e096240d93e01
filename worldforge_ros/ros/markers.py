"""The workspace, the last chunks and candidates as markers for RViz and Foxglove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from geometry_msgs.msg import Point, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from worldforge_ros.ros import convert
from worldforge_ros.safety.scene import MarkerScene, box_edges, closed, drawable, polygon_edges

FloatArray = npt.NDArray[np.float64]

LINE = 0.003
"""Width of lines, m."""
DOT = 0.007
"""Diameter of the points of a path, m."""
VIOLATION = 0.014
"""Diameter of the points that violate the workspace, m."""
OPACITY = 0.8
"""Of candidates that were not chosen."""
LABEL = 0.02
"""Height of the letters beside the chosen candidate, m."""
THINNEST = 0.001
"""Least thickness of a keep-out box, m: viewers refuse a cube without one."""

WHITE = (0.9, 0.9, 0.9, 0.8)
RED = (0.9, 0.1, 0.1, 1.0)
RED_GLASS = (0.9, 0.1, 0.1, 0.3)
MAGENTA = (1.0, 0.0, 1.0, 1.0)
GREEN = (0.1, 0.8, 0.2, 1.0)
CRIMSON = (0.78, 0.08, 0.24, 1.0)

Color = tuple[float, float, float, float]


class MarkerBuilder:
    """Builds arrays in which a thing keeps its namespace and id, and what is gone is deleted.

    Every array is whole: a viewer that sees only the last one sees everything. For the same reason
    a thing that is gone is deleted in every array from then on, not once.
    """

    def __init__(self, frame_id: str) -> None:
        self._frame_id = frame_id
        self._known: set[tuple[str, int]] = set()

    def build(self, markers: list[Marker], stamp: int) -> MarkerArray:
        """An array of ``markers``, all with ``stamp`` (ns)."""
        present = {(marker.ns, marker.id) for marker in markers}
        gone = sorted(self._known - present)
        self._known |= present
        markers += [Marker(ns=ns, id=number, action=Marker.DELETE) for ns, number in gone]
        for marker in markers:
            marker.header = convert.header(stamp, self._frame_id)
        return MarkerArray(markers=markers)


def scene_markers(scene: MarkerScene) -> list[Marker]:
    """The markers of the gate's workspace.

    Namespaces: ``workspace/box``, ``workspace/polygon``, ``keep_out`` (an id for each box), and
    ``rejected/path``, ``rejected/points``, ``rejected/violation``, ``approved/path`` and
    ``approved/points`` (an id for each end effector).
    """
    return [*_bounds(scene), *_paths(scene)]


def candidate_markers(
    points: FloatArray, colours: Sequence[tuple[float, ...]], chosen: int, label: str
) -> list[Marker]:
    """The markers of a planning cycle.

    Namespaces: ``candidates`` (all but the chosen one), ``chosen/path``, ``chosen/points`` and
    ``chosen/label``, an id for each end effector.

    :param points: (S, H, E, 3) of E end effectors, m; NaN ends a path.
    :param colours: red, green and blue of each candidate, 0 to 1.
    :param chosen: index of the chosen candidate, -1 for none.
    :param label: text at the end of the chosen one.
    """
    markers = []
    for end in range(points.shape[2]):
        others = _marker("candidates", end, Marker.LINE_LIST, WHITE)
        others.scale = Vector3(x=LINE, y=0.0, z=0.0)
        for index, colour in enumerate(colours):
            path = drawable(points[index, :, end])
            if index == chosen or len(path) < 2:
                continue
            ends = np.stack([path[:-1], path[1:]], axis=1).reshape(-1, 3)
            others.points += [_point(row) for row in ends]
            others.colors += [_color((colour[0], colour[1], colour[2], OPACITY))] * len(ends)
        if others.points:
            markers.append(others)
        path = drawable(points[chosen, :, end]) if chosen >= 0 else np.empty((0, 3))
        if len(path) > 1:
            kind = Marker.LINE_STRIP
            markers.append(_points("chosen/path", end, kind, path, 2 * LINE, CRIMSON))
        if len(path):
            kind = Marker.SPHERE_LIST
            markers.append(_points("chosen/points", end, kind, path, DOT, CRIMSON))
            text = _marker("chosen/label", end, Marker.TEXT_VIEW_FACING, CRIMSON)
            text.pose.position = _point(path[-1] + (0.0, 0.0, LABEL))
            text.scale = Vector3(x=0.0, y=0.0, z=LABEL)
            text.text = label
            markers.append(text)
    return markers


def _bounds(scene: MarkerScene) -> list[Marker]:
    markers = []
    if scene.box is not None:
        edges = box_edges(scene.drawn_box)
        markers.append(_points("workspace/box", 0, Marker.LINE_LIST, edges, LINE, WHITE))
    if scene.polygon is not None and len(scene.polygon):
        low, high = scene.drawn_box[:, 2].tolist()
        edges = polygon_edges(scene.polygon, low, high)
        markers.append(_points("workspace/polygon", 0, Marker.LINE_LIST, edges, LINE, WHITE))
    for number, zone in enumerate(scene.keep_out):
        box = closed(zone, scene.drawn_box)
        marker = _marker("keep_out", number, Marker.CUBE, RED_GLASS)
        marker.pose.position = _point(box.mean(axis=0))
        x, y, z = np.maximum(box[1] - box[0], THINNEST).tolist()
        marker.scale = Vector3(x=x, y=y, z=z)
        markers.append(marker)
    return markers


def _paths(scene: MarkerScene) -> list[Marker]:
    markers = []
    for name, rows, color in (
        ("approved", scene.approved, GREEN),
        ("rejected", scene.rejected, RED),
    ):
        if rows is None:
            continue
        for arm in range(rows.shape[1]):
            path = drawable(rows[:, arm])
            if len(path) > 1:
                # A strip of one point is an error to a viewer.
                line = _points(f"{name}/path", arm, Marker.LINE_STRIP, path, LINE, color)
                markers.append(line)
            if len(path):
                dots = _points(f"{name}/points", arm, Marker.SPHERE_LIST, path, DOT, color)
                markers.append(dots)
    if scene.rejected is not None and scene.violating is not None:
        for arm in range(scene.rejected.shape[1]):
            path = drawable(scene.rejected[:, arm])
            path = path[scene.violating[: len(path)]]
            if len(path):
                kind = Marker.SPHERE_LIST
                marker = _points("rejected/violation", arm, kind, path, VIOLATION, MAGENTA)
                markers.append(marker)
    return markers


def _marker(name: str, number: int, kind: int, color: Color) -> Marker:
    marker = Marker(ns=name, id=number, type=kind, action=Marker.ADD, frame_locked=True)
    marker.pose.orientation.w = 1.0
    marker.color = _color(color)
    return marker


def _color(color: Color) -> ColorRGBA:
    red, green, blue, opacity = color
    return ColorRGBA(r=red, g=green, b=blue, a=opacity)


def _points(
    name: str, number: int, kind: int, points: FloatArray, size: float, color: Color
) -> Marker:
    marker = _marker(name, number, kind, color)
    # Lines have a width alone; spheres have three diameters.
    thick = size if kind == Marker.SPHERE_LIST else 0.0
    marker.scale = Vector3(x=size, y=thick, z=thick)
    marker.points = [_point(row) for row in points]
    return marker


def _point(row: FloatArray) -> Point:
    x, y, z = row.tolist()
    return Point(x=x, y=y, z=z)
