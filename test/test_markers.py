"""What is drawn of the workspace and of the last chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from visualization_msgs.msg import Marker, MarkerArray

from worldforge_ros.embodiment import Box, EndEffector, KeepOut, WorkspaceSpec, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.ros import qos
from worldforge_ros.ros.markers import MarkerBuilder, scene_markers
from worldforge_ros.safety.scene import (
    MarkerScene,
    box_edges,
    closed,
    drawable,
    polygon_edges,
    scene_of,
    violating_rows,
)
from worldforge_ros.safety.workspace import Workspace

BOX = np.array([[0.0, 0.0, 0.0], [0.5, 0.4, 0.2]])
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
KEEP_OUT = np.array([[[0.1, 0.1, 0.0], [0.2, 0.3, 0.1]], [[0.3, 0.0, 0.0], [0.4, 0.1, 0.0]]])
PATH = np.linspace([0.1, 0.2, 0.05], [0.6, 0.2, 0.05], 6)[:, None]
STAMP = 5_250_000_000


def built(scene: MarkerScene) -> dict[tuple[str, int], Marker]:
    return by_name(MarkerBuilder("base").build(scene_markers(scene), STAMP))


def by_name(array: MarkerArray) -> dict[tuple[str, int], Marker]:
    found = {(marker.ns, marker.id): marker for marker in array.markers}
    assert len(found) == len(array.markers), "a namespace and id twice"
    return found


def coordinates(marker: Marker) -> np.ndarray:
    return np.array([[point.x, point.y, point.z] for point in marker.points])


def full() -> MarkerScene:
    return MarkerScene(
        box=BOX,
        polygon=SQUARE,
        keep_out=KEEP_OUT,
        rejected=PATH,
        violating=PATH[:, 0, 0] > 0.5 + 1e-9,
        approved=np.concatenate([PATH, PATH + 0.01], axis=1),
    )


def test_a_box_has_its_twelve_edges() -> None:
    edges = box_edges(BOX).reshape(12, 2, 3)
    lengths = np.abs(edges[:, 1] - edges[:, 0])
    for axis, size in enumerate(BOX[1] - BOX[0]):
        along = np.isclose(lengths[:, axis], size) & (np.count_nonzero(lengths, axis=1) == 1)
        assert np.count_nonzero(along) == 4, f"four edges along axis {axis}"
    corners = {tuple(corner) for corner in edges.reshape(-1, 3).tolist()}
    assert corners == {(x, y, z) for x in (0.0, 0.5) for y in (0.0, 0.4) for z in (0.0, 0.2)}


def test_a_polygon_is_closed_and_stands_between_its_heights() -> None:
    flat = polygon_edges(SQUARE, 0.1, 0.1).reshape(-1, 2, 3)
    assert len(flat) == 4
    np.testing.assert_array_equal(flat[-1], [[0, 1, 0.1], [0, 0, 0.1]])
    prism = polygon_edges(SQUARE, 0.0, 0.3).reshape(-1, 2, 3)
    assert len(prism) == 12
    upright = prism[(prism[:, 0, :2] == prism[:, 1, :2]).all(axis=1)]
    np.testing.assert_allclose(upright[:, 1, 2] - upright[:, 0, 2], [0.3] * 4)


def test_everything_has_its_place_colour_frame_and_stamp() -> None:
    found = built(full())
    assert set(found) == {
        ("workspace/box", 0),
        ("workspace/polygon", 0),
        ("keep_out", 0),
        ("keep_out", 1),
        ("rejected/path", 0),
        ("rejected/points", 0),
        ("rejected/violation", 0),
        *((name, arm) for name in ("approved/path", "approved/points") for arm in (0, 1)),
    }
    for marker in found.values():
        assert marker.header.frame_id == "base"
        assert (marker.header.stamp.sec, marker.header.stamp.nanosec) == (5, 250_000_000)
        assert marker.action == Marker.ADD
        assert marker.pose.orientation.w == 1.0
        assert marker.color.a > 0.0
        assert marker.scale.x > 0.0
    box = found["keep_out", 0]
    assert box.type == Marker.CUBE
    assert box.color.a < 0.5, "translucent"
    centre, scale = box.pose.position, box.scale
    np.testing.assert_allclose([centre.x, centre.y, centre.z], [0.15, 0.2, 0.05])
    np.testing.assert_allclose([scale.x, scale.y, scale.z], [0.1, 0.2, 0.1])
    assert found["keep_out", 1].scale.z > 0.0, "viewers refuse a cube without thickness"
    rejected, approved = found["rejected/path", 0], found["approved/path", 1]
    assert rejected.type == Marker.LINE_STRIP
    assert rejected.color.r > 0.5 > rejected.color.g
    assert approved.color.g > 0.5 > approved.color.r
    np.testing.assert_allclose(coordinates(rejected), PATH[:, 0])
    np.testing.assert_allclose(coordinates(approved), PATH[:, 0] + 0.01)
    np.testing.assert_allclose(coordinates(found["rejected/violation", 0]), PATH[5:, 0])


def test_what_is_gone_is_deleted_in_every_array_until_it_is_back() -> None:
    builder = MarkerBuilder("base")
    everything = set(by_name(builder.build(scene_markers(full()), 1)))
    smaller = MarkerScene(box=BOX, keep_out=KEEP_OUT[:1])
    for stamp in (2, 3):
        found = by_name(builder.build(scene_markers(smaller), stamp))
        assert set(found) == everything
        deleted = {name for name, marker in found.items() if marker.action == Marker.DELETE}
        assert deleted == everything - {("workspace/box", 0), ("keep_out", 0)}
        assert {marker.header.stamp.nanosec for marker in found.values()} == {stamp}
    again = by_name(builder.build(scene_markers(full()), 4))
    assert all(marker.action == Marker.ADD for marker in again.values())


def test_a_path_ends_where_it_leaves_the_numbers() -> None:
    path = PATH.copy()
    path[3, 0, 1] = np.nan
    assert len(drawable(path[:, 0])) == 3
    found = built(MarkerScene(rejected=path, violating=np.ones(6, bool)))
    assert len(found["rejected/path", 0].points) == 3
    assert len(found["rejected/violation", 0].points) == 3
    path[1] = np.inf
    assert set(built(MarkerScene(rejected=path))) == {("rejected/points", 0)}
    path[0] = np.nan
    assert built(MarkerScene(rejected=path)) == {}


def test_sides_without_a_bound_are_drawn_in_finite_numbers() -> None:
    infinite = np.inf
    around = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 0.5]])
    box = np.array([[0.1, -infinite, -infinite], [infinite, 0.3, infinite]])
    np.testing.assert_array_equal(closed(box, around), [[0.1, 0.0, 0.0], [2.0, 0.3, 0.5]])
    box[1, 1] = -0.2
    np.testing.assert_array_equal(closed(box, around * 0.0), [[0.1, -1.2, 0.0], [1.1, -0.2, 0.0]])
    np.testing.assert_array_equal(closed(BOX, around), BOX)


PLANE = WorkspaceSpec(
    frame="base",
    end_effectors=(EndEffector("pusher", ("pusher_x", "pusher_y"), None),),
    box=Box((0.02, 0.02, -np.inf), (0.5, 0.5, np.inf)),
    polygon=(),
    keep_out=(KeepOut("post", Box((0.2, 0.2, -np.inf), (0.3, 0.3, np.inf))),),
    arms=(),
    min_arm_distance=None,
)


def test_the_workspace_of_a_plane_is_drawn_flat_and_its_violations_are_found() -> None:
    workspace = Workspace(load_embodiment("pusht"), PLANE, None)
    positions = np.array([[0.1, 0.1], [0.25, 0.25], [0.4, 0.4], [0.51, 0.4], [np.nan, 0.4]])
    bad = violating_rows(workspace, positions)
    assert bad.tolist() == [False, True, False, True, False]
    found = built(scene_of(PLANE, workspace.points(positions), bad))
    np.testing.assert_array_equal(
        coordinates(found["rejected/violation", 0]), [[0.25, 0.25, 0.0], [0.51, 0.4, 0.0]]
    )
    edges = coordinates(found["workspace/box", 0])
    np.testing.assert_array_equal(edges.min(axis=0), [0.02, 0.02, 0.0])
    np.testing.assert_array_equal(edges.max(axis=0), [0.5, 0.5, 0.0])
    post = found["keep_out", 0]
    assert 0.0 < post.scale.z < 0.01
    np.testing.assert_allclose([post.scale.x, post.scale.y], [0.1, 0.1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"box": BOX[::-1]}, "lower before the upper"),
        ({"box": np.full((2, 3), np.nan)}, "lower before the upper"),
        ({"polygon": np.full((3, 2), np.inf)}, "finite numbers"),
        ({"box": BOX[:, :2]}, r"shape \(2, 2\)"),
        ({"keep_out": BOX}, r"shape \(2, 3\)"),
        ({"keep_out": KEEP_OUT[:, ::-1]}, "lower before the upper"),
        ({"polygon": BOX}, "polygon"),
        ({"rejected": PATH[:, 0]}, "rejected"),
        ({"rejected": PATH, "violating": np.ones(5, bool)}, "one for each row"),
        ({"violating": np.ones(5, bool)}, "violating"),
    ],
)
def test_a_scene_that_is_wrong_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(WorldForgeError, match=words) as caught:
        MarkerScene(**fields)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_late_viewer_gets_the_whole_picture(ros: Any) -> None:
    publisher = ros.node.create_publisher(MarkerArray, "safety_gate/markers", qos.LATCHED)
    publisher.publish(MarkerBuilder("base").build(scene_markers(full()), STAMP))
    seen = ros.record(MarkerArray, "safety_gate/markers", qos.LATCHED)
    ros.wait_until(lambda: seen, what="markers")
    assert len(seen[0].markers) == 11
