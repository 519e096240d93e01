"""The workspace: boxes and polygons around end effectors, and the distance between arms."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from adopted_arm import JOINTS, URDF
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldforge_ros.embodiment import (
    Box,
    Embodiment,
    EndEffector,
    Joint,
    KeepOut,
    WorkspaceSpec,
    load_embodiment,
    parse_embodiment,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import share_dir
from worldforge_ros.safety.kinematics import Kinematics
from worldforge_ros.safety.workspace import (
    ARM_TOLERANCE,
    MAX_SAMPLES,
    PATH_TOLERANCE,
    Workspace,
    _distances,
    workspace_of,
)

PUSHT = yaml.safe_load((share_dir() / "config/embodiments/pusht.yaml").read_text())
PUSHER = {"name": "pusher", "joints": ["pusher_x", "pusher_y"]}
L_SHAPE = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.4], [0.4, 0.4], [0.4, 1.0], [0.0, 1.0]]
Array = npt.NDArray[np.float64]


def embodiment(**workspace: Any) -> Embodiment:
    data = copy.deepcopy(PUSHT)
    for joint in data["joints"]:
        joint["min_position"], joint["max_position"] = -2.0, 2.0
    data["workspace"] = {"frame": "base", "end_effectors": [PUSHER], **workspace}
    return parse_embodiment(data)


def plane(**workspace: Any) -> Workspace:
    made = workspace_of(embodiment(**workspace), None)
    assert made is not None
    return made


def codes(workspace: Workspace, rows: Any, before: Any = None) -> list[str]:
    start = None if before is None else np.asarray(before, dtype=np.float64)
    return [str(r.code) for r in workspace.violations(np.asarray(rows, dtype=np.float64), start)]


def arm(end_effectors: Any = (), **workspace: Any) -> Embodiment:
    """The example arm with a workspace, in the frame of its base."""
    joints = tuple(Joint(name, "revolute", -3.0, 3.0, 3.0, 20.0, 20.0, math.inf) for name in JOINTS)
    spec: dict[str, Any] = {
        "frame": "base_link",
        "end_effectors": tuple(EndEffector(link, (), link) for link in end_effectors),
        "box": None,
        "polygon": (),
        "keep_out": (),
        "arms": (),
        "min_arm_distance": None,
    }
    return replace(
        load_embodiment("pusht"), joints=joints, workspace=WorkspaceSpec(**{**spec, **workspace})
    )


def turned(axis: str, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def by_hand(q: Array) -> tuple[Array, Array]:
    """Origin and axes of the example arm's gripper frame, from the numbers in its URDF."""
    chain = [
        ((0.04, 0, 0.06), "z"),
        ((0.03, 0, 0.05), "y"),
        ((0.03, 0, 0.11), "y"),
        ((0.135, 0, 0), "y"),
        ((0.06, 0, 0), "x"),
    ]
    pose = np.eye(4)
    for (offset, axis), angle in zip(chain, q, strict=False):
        step = np.eye(4)
        step[:3, 3], step[:3, :3] = offset, turned(axis, angle)
        pose = pose @ step
    tip = np.eye(4)
    tip[0, 3] = 0.1
    pose = pose @ tip
    return pose[:3, 3], pose[:3, :3]


def test_the_example_arm_stretched_out_and_folded() -> None:
    workspace = workspace_of(arm(["gripper_frame_link", "lower_arm_link"]), URDF)
    assert workspace is not None
    up = np.array([math.pi / 2, -math.pi / 2, 0.0, 0.0, 0.0, 0.0])
    points = workspace.points(np.stack([np.zeros(6), up]))
    # All lengths of the file added up; then turned left, the lower arm up: (x, z) -> (-z, x).
    np.testing.assert_allclose(points[0], [[0.395, 0, 0.22], [0.1, 0, 0.22]], atol=1e-12)
    np.testing.assert_allclose(
        points[1], [[0.04, 0.03 - 0.11, 0.435], [0.04, 0.03 - 0.11, 0.14]], atol=1e-12
    )


@settings(deadline=None, max_examples=50)
@given(arrays(np.float64, (3, 6), elements=st.floats(-3, 3)))
def test_positions_and_directions_equal_those_by_hand(rows: Array) -> None:
    points = ARM.points(rows)
    for row, point in zip(rows, points[:, 0], strict=True):
        origin, axes = by_hand(row)
        np.testing.assert_allclose(point, origin, atol=1e-12)
        ((place, quaternion),) = ARM.poses(row)
        np.testing.assert_allclose(place, origin, atol=1e-12)
        x, y, z, w = quaternion
        # The first column of the rotation matrix of a unit quaternion, and the third.
        np.testing.assert_allclose(
            axes[:, 0],
            [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
            atol=1e-12,
        )
        np.testing.assert_allclose(
            axes[:, 2],
            [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
            atol=1e-12,
        )


def test_another_frame_and_another_order_of_joints(tmp_path: Path) -> None:
    shifted = URDF.read_text().replace(
        '<link name="base_link"/>',
        '<link name="world"/><link name="base_link"/><joint name="stand" type="fixed">'
        '<parent link="world"/><child link="base_link"/>'
        '<origin xyz="1 2 3" rpy="0 0 1.5707963267948966"/></joint>',
    )
    file = tmp_path / "robot.urdf"
    file.write_text(shifted)
    robot = arm(["gripper_frame_link"])
    q = np.array([0.3, -0.4, 0.5, 0.6, -0.7, 0.8])
    origin, _ = by_hand(q)
    backwards = replace(robot, joints=robot.joints[::-1])
    same = workspace_of(backwards, file)
    assert same is not None
    np.testing.assert_allclose(same.points(q[None, ::-1])[0, 0], origin, atol=1e-12)
    assert robot.workspace is not None
    world = workspace_of(replace(robot, workspace=replace(robot.workspace, frame="world")), file)
    assert world is not None
    expected = [1 - origin[1], 2 + origin[0], 3 + origin[2]]
    np.testing.assert_allclose(world.points(q[None])[0, 0], expected, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    arrays(np.float64, (2, 6), elements=st.floats(-3, 3)),
    st.sampled_from(["gripper_frame_link", "wrist_link", "upper_arm_link"]),
)
def test_no_link_moves_further_than_its_reach(ends: Array, link: str) -> None:
    robot = arm([link])
    kinematics = Kinematics(robot, URDF, [link], "base_link")
    start, stop = kinematics.origins(ends)[:, 0]
    assert np.linalg.norm(stop - start) <= kinematics.reach[0] @ np.abs(ends[1] - ends[0]) + 1e-12


def test_what_is_not_finite_is_left_to_another_check() -> None:
    rows = np.zeros((3, 6))
    rows[1, 2] = np.nan
    points = ARM.points(rows)
    assert np.isnan(points[1]).all()
    assert np.isfinite(points[[0, 2]]).all()
    everything = plane(
        box={"min": [0, 0], "max": [1, 1]},
        polygon=L_SHAPE,
        keep_out=[{"name": "post", "min": [0.1, 0.1], "max": [0.2, 0.2]}],
    )
    for bad in (np.nan, np.inf, -np.inf):
        assert codes(everything, [[bad, bad], [0.3, 0.3], [0.3, bad]], [bad, 0.3]) == []
        assert codes(everything, [[bad, 0.3]]) == []
    # What is finite beside it is still looked at.
    assert codes(everything, [[np.nan, 0.3], [1.5, 1.5]], [0.3, 0.3]) == [
        "WORKSPACE_BOX",
        "WORKSPACE_POLYGON",
    ]


def test_the_first_violation_of_each_kind_is_told_in_words() -> None:
    workspace = plane(
        box={"min": [0, 0, None], "max": [1, 1, 0.5]},
        polygon=L_SHAPE,
        keep_out=[{"name": "post", "min": [0.1, 0.1], "max": [0.2, 0.2]}],
    )
    rows = np.array([[0.15, 0.15], [0.3, 0.3], [0.5, 0.5], [0.5, 1.25], [0.5, 1.5]])
    assert [str(item) for item in workspace.violations(rows, None)] == [
        "WORKSPACE_BOX: y of pusher at action 3 is 1.2500 m; expected 0 to 1 m in base",
        "WORKSPACE_POLYGON: pusher at action 2 is at (0.5000, 0.5000) m; expected a place inside "
        "the polygon in base",
        "KEEP_OUT: pusher at action 0 is in post at (0.1500, 0.1500, 0.0000) m; expected a place "
        "outside x 0.1 to 0.2 m, y 0.1 to 0.2 m in base",
    ]
    cut = np.array([[0.3, 0.9], [0.9, 0.3], [0.05, 0.05]])
    assert [str(item) for item in workspace.violations(cut[1:], cut[0], first=7)] == [
        "WORKSPACE_POLYGON: pusher on the way to action 7 is leaving the polygon towards "
        "(0.9000, 0.3000) m; expected a place inside the polygon in base",
    ]
    (said,) = workspace.violations(cut[2:], np.array([0.25, 0.25]))
    assert said.message.startswith(
        "pusher on the way to action 0 is passing through post towards (0.0500, 0.0500, 0.0000) m"
    )


def test_what_is_cut_between_two_actions_counts() -> None:
    shape = plane(polygon=L_SHAPE)
    assert codes(shape, [[0.9, 0.2], [0.2, 0.2], [0.2, 0.9]]) == []
    assert codes(shape, [[0.9, 0.2], [0.2, 0.9]]) == ["WORKSPACE_POLYGON"]
    assert codes(shape, [[0.2, 0.9]], [0.9, 0.2]) == ["WORKSPACE_POLYGON"], "the first move"
    post = plane(keep_out=[{"name": "post", "min": [0.4, 0.4], "max": [0.6, 0.6]}])
    assert codes(post, [[0.0, 0.5], [1.0, 0.5]]) == ["KEEP_OUT"]
    assert codes(post, [[0.0, 0.5], [0.0, 0.7], [1.0, 0.7]]) == []
    assert codes(post, [[1.0, 0.5]], [0.0, 0.5]) == ["KEEP_OUT"]
    assert codes(post, [[0.0, 1.05], [1.0, 0.05]]) == ["KEEP_OUT"]
    assert codes(post, [[0.0, 0.9], [0.39, 0.61], [0.9, 0.9]]) == []


def test_edges_belong_to_the_inside_whatever_float32_does_to_them() -> None:
    edge = float(np.float32(0.512))
    assert edge > 0.512
    square = [[0.0, 0.0], [0.512, 0.0], [0.512, 0.512], [0.0, 0.512]]
    box = {"min": [0.0, 0.0], "max": [0.512, 0.512]}
    rows = [[0.0, 0.0], [edge, edge], [edge, edge], [0.0, edge]]
    assert codes(plane(box=box, polygon=square), rows) == []
    beside = plane(keep_out=[{"name": "wall", "min": [0.512, None], "max": [None, None]}])
    assert codes(beside, rows, rows[1]) == []
    assert codes(beside, [[0.5121, 0.0]]) == ["KEEP_OUT"]
    assert codes(plane(box=box), [[0.5121, 0.0]]) == ["WORKSPACE_BOX"]
    assert codes(plane(polygon=square), [[0.5121, 0.0]]) == ["WORKSPACE_POLYGON"]


def test_no_rows_violate_nothing() -> None:
    everything = plane(
        box={"min": [0, 0], "max": [1, 1]},
        polygon=L_SHAPE,
        keep_out=[{"name": "post", "min": [0.1, 0.1], "max": [0.2, 0.2]}],
    )
    assert codes(everything, np.zeros((0, 2))) == []
    assert codes(everything, np.zeros((0, 2)), [2.0, 2.0]) == []


def test_a_robot_outside_the_box_may_come_back() -> None:
    box = plane(box={"min": [0, 0], "max": [1, 1]})
    assert codes(box, [[0.9, 0.9]], [1.1, 0.9]) == []
    assert codes(box, [[1.05, 0.9]], [1.1, 0.9]) == ["WORKSPACE_BOX"]


COORDINATES = st.integers(-8, 24).map(lambda n: n / 16)
ROWS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=6)


def within_l(x: float, y: float) -> bool:
    return 0 <= x <= 1 and 0 <= y <= 1 and (x <= 0.4 or y <= 0.4)


@settings(deadline=None, max_examples=300)
@given(rows=ROWS, before=st.none() | st.tuples(COORDINATES, COORDINATES))
def test_random_ways_against_many_points_on_them(rows: Any, before: Any) -> None:
    """Grid points are 1/16 apart, so a way that crosses does so by more than the step between
    these points, or touches a corner, which is inside.
    """
    corners = np.array(rows if before is None else [before, *rows])
    share = np.linspace(0, 1, 1201)[:, None]
    ways = [a + (b - a) * share for a, b in pairwise(corners)]
    low, high = 0.25 + 1e-5, 0.625 - 1e-5

    def in_post(points: Any) -> Any:
        return ((points > low) & (points < high)).all(axis=-1)

    def checked(inside: bool) -> Any:
        """All points, without the first way where that one may lead ``inside`` or out."""
        return np.concatenate([*ways[inside:], np.array(rows)])

    found = codes(MIXED, rows, before)
    leaves = before is not None and bool(in_post(corners[0]))
    assert ("KEEP_OUT" in found) == bool(in_post(checked(leaves)).any())
    assert ("WORKSPACE_BOX" in found) == bool((np.array(rows) > 1.0).any())
    points = checked(before is not None and not within_l(*corners[0]))
    if all(within_l(x + 2e-6, y + 2e-6) and within_l(x - 2e-6, y - 2e-6) for x, y in points):
        assert "WORKSPACE_POLYGON" not in found
    if not all(within_l(x, y) or within_l(x - 2e-6, y - 2e-6) for x, y in points):
        near = [within_l(x - 2e-6, y - 2e-6) or within_l(x + 2e-6, y + 2e-6) for x, y in points]
        assert all(near) or "WORKSPACE_POLYGON" in found


def test_a_robot_outside_the_polygon_may_come_back_and_one_in_a_box_come_out() -> None:
    shape = plane(polygon=L_SHAPE)
    assert codes(shape, [[0.9, 0.2]], [1.2, 0.2]) == []
    assert codes(shape, [[0.9, 0.2], [1.1, 0.2]], [1.2, 0.2]) == ["WORKSPACE_POLYGON"]
    assert codes(shape, [[1.1, 0.2]], [1.2, 0.2]) == ["WORKSPACE_POLYGON"], "not back yet"
    assert codes(shape, [[1.1, 0.2], [0.9, 0.2]], [1.2, 0.2]) == ["WORKSPACE_POLYGON"]
    post = plane(keep_out=[{"name": "post", "min": [0.4, 0.4], "max": [0.6, 0.6]}])
    assert codes(post, [[0.7, 0.5]], [0.5, 0.5]) == []
    assert codes(post, [[0.55, 0.5]], [0.5, 0.5]) == ["KEEP_OUT"], "not out yet"
    assert codes(post, [[0.7, 0.5], [0.5, 0.5]], [0.5, 0.5]) == ["KEEP_OUT"]
    assert codes(post, [[0.7, 0.5], [0.3, 0.5]], [0.5, 0.5]) == ["KEEP_OUT"], "through it again"


def test_an_arm_that_swings_through_a_box_between_two_actions() -> None:
    post = Box((0.35, -0.02, 0.0), (0.45, 0.02, 1.0))
    workspace = workspace_of(arm(["gripper_frame_link"], keep_out=(KeepOut("post", post),)), URDF)
    assert workspace is not None
    left, right = np.zeros(6), np.zeros(6)
    left[0], right[0] = 0.5, -0.5
    assert codes(workspace, [left, left]) == []
    assert codes(workspace, [left, right]) == ["KEEP_OUT"]
    assert codes(workspace, [right], left) == ["KEEP_OUT"]
    # The chord from side to side passes at x = 0.04 + 0.355 cos 0.5 = 0.3515, in front of a post
    # that only the arc reaches.
    behind = replace(KeepOut("post", post), box=Box((0.38, -0.02, 0.0), (0.45, 0.02, 1.0)))
    curved = workspace_of(arm(["gripper_frame_link"], keep_out=(behind,)), URDF)
    assert curved is not None
    assert codes(curved, [left, right]) == ["KEEP_OUT"]


@settings(deadline=None, max_examples=30)
@given(arrays(np.float64, (2, 6), elements=st.floats(-1.5, 1.5)))
def test_the_path_of_an_arm_stays_by_the_lines_that_are_checked(ends: Array) -> None:
    workspace = workspace_of(arm(["gripper_frame_link"], box=Box((-1,) * 3, (1,) * 3)), URDF)
    assert workspace is not None
    path = workspace._path(ends, None, 0)
    assert path is not None
    lines = workspace.points(path.positions)[:, 0]
    share = np.linspace(0, 1, 501)[:, None]
    truth = workspace.points(ends[0] + (ends[1] - ends[0]) * share)[:, 0]
    a, along = lines[:-1], np.diff(lines, axis=0)
    length = np.maximum((along**2).sum(-1), 1e-30)
    where = np.clip(((truth[:, None] - a) * along).sum(-1) / length, 0, 1)
    off = np.linalg.norm(truth[:, None] - a - along * where[..., None], axis=-1).min(axis=1)
    assert off.max() <= PATH_TOLERANCE + 1e-9


def test_a_way_too_long_to_check_is_refused() -> None:
    boxed = workspace_of(arm(["gripper_frame_link"], box=Box((-1,) * 3, (1,) * 3)), URDF)
    assert boxed is not None
    far = np.zeros((2, 6))
    far[1] = 1e6
    assert codes(boxed, far) == ["WORKSPACE_BOX"]
    far[1] = 1e300
    assert codes(boxed, far) == ["WORKSPACE_BOX"]
    # A turn of the foot by 2 rad and back needs few samples; a hundred of them too many.
    swing = np.zeros((401, 6))
    swing[1::2, 0] = 2.0
    assert codes(boxed, swing[:20]) == []
    (said,) = boxed.violations(swing, None)
    assert "too long to be checked at 2048 places" in said.message


TWO = """<robot name="two"><link name="base"/>{}</robot>"""
ARM_OF_TWO = """
<link name="{0}_a"/><link name="{0}_b"/>
<joint name="{0}_turn" type="revolute"><parent link="base"/><child link="{0}_a"/>
  <origin xyz="{1} 0 0"/><axis xyz="0 0 1"/>
  <limit lower="-3" upper="3" effort="1" velocity="3"/></joint>
<joint name="{0}_end" type="fixed"><parent link="{0}_a"/><child link="{0}_b"/>
  <origin xyz="0 1 0"/></joint>
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two rods of 1 m and 0.1 m radius that turn about feet 2 m apart; both point to y at 0."""
    file = tmp_path_factory.mktemp("two") / "two.urdf"
    file.write_text(TWO.format(ARM_OF_TWO.format("left", -1) + ARM_OF_TWO.format("right", 1)))
    data = copy.deepcopy(PUSHT)
    data["workspace"] = {
        "frame": "base",
        "arms": [
            {"name": side, "links": [f"{side}_a", f"{side}_b"], "radius": 0.1}
            for side in ("left", "right")
        ],
        "min_arm_distance": 0.3,
    }
    text = yaml.safe_dump(data).replace("prismatic", "revolute")
    text = text.replace("pusher_x", "left_turn").replace("pusher_y", "right_turn")
    made = workspace_of(parse_embodiment(yaml.safe_load(text)), file)
    assert made is not None
    return made


def test_the_distance_of_two_arms(pair: Workspace) -> None:
    side = math.pi / 2
    assert codes(pair, [[0.0, 0.0]]) == []
    # The left one lies along x from -1 to 0: 1 m from the right one's axis.
    assert codes(pair, [[-side, 0.0]]) == []
    # The left tip is at (0, 0); the line of the right rod through (1, 0) passes it at cos 1.2.
    gap = math.cos(1.2) - 2 * 0.1
    (said,) = pair.violations(np.array([[-side, 0.0], [-side, 1.2]]), None)
    assert str(said) == (
        f"ARM_DISTANCE: distance of left and right on the way to action 1 is {gap:.4f} m; "
        "expected at least 0.3 m"
    )


def test_arms_at_positions_that_are_not_finite(pair: Workspace) -> None:
    near = [-math.pi / 2, 1.2]
    for bad in (np.nan, np.inf):
        assert codes(pair, [[bad, 0.0], [0.0, bad]], [bad, bad]) == []
        assert codes(pair, [[bad, 0.0], near], [0.0, 0.0]) == ["ARM_DISTANCE"]
    assert codes(pair, [[1e300, 0.0]], [0.0, 0.0]) == ["ARM_DISTANCE"], "too long to check"


def test_arms_that_pass_each_other_between_two_actions(pair: Workspace) -> None:
    away, across = np.array([0.0, 0.0]), np.array([-math.pi, math.pi])
    assert codes(pair, [away]) == []
    assert codes(pair, [across]) == [], "both point down, 2 m apart"
    assert codes(pair, [away, across]) == ["ARM_DISTANCE"]
    assert codes(pair, [across], away) == ["ARM_DISTANCE"]
    assert codes(pair, [away, [0.5, -0.5]], away) == [], "outwards"


@settings(deadline=None, max_examples=100)
@given(arrays(np.float64, (2, 4, 3), elements=st.integers(-4, 4).map(float)))
def test_the_distance_of_chains_against_many_points_on_them(chains: Array) -> None:
    share = np.linspace(0, 1, 61)[:, None]
    one, other = (np.concatenate([a + (b - a) * share for a, b in pairwise(c)]) for c in chains)
    sampled = np.linalg.norm(one[:, None] - other, axis=-1).min()
    exact = _distances(chains[:1], chains[1:])[0]
    longest = max(np.linalg.norm(np.diff(c, axis=0), axis=1).max() for c in chains)
    assert exact <= sampled + 1e-9
    assert exact >= sampled - longest / 60 - 1e-9


@settings(deadline=None, max_examples=60)
@given(ends=arrays(np.float64, (2, 2), elements=st.floats(-1.5, 1.5)))
def test_no_accepted_move_brings_arms_too_near(ends: Array, pair: Workspace) -> None:
    def tip(foot: float, angle: Array) -> Array:
        return np.stack([foot - np.sin(angle), np.cos(angle), 0 * angle], axis=-1)

    share = np.linspace(0, 1, 2001)[:, None]
    q = ends[0] + (ends[1] - ends[0]) * share
    chains = [
        np.stack([np.broadcast_to([foot, 0.0, 0.0], (len(q), 3)), tip(foot, q[:, k])], axis=1)
        for k, foot in enumerate((-1.0, 1.0))
    ]
    truth = (_distances(chains[0], chains[1]) - 0.2).min()
    found = codes(pair, ends)
    if not found:
        assert truth >= 0.3 - ARM_TOLERANCE / 2 - 1e-5
    else:
        # Links are 1 m long. A way that would need more samples than are looked at is refused.
        too_long = np.abs(ends[1] - ends[0]).sum() / ARM_TOLERANCE > MAX_SAMPLES - 1
        assert truth < 0.3 + 1e-5 or too_long


def test_pusht_has_the_workspace_of_its_joints() -> None:
    made = workspace_of(load_embodiment("pusht"), None)
    assert made is not None
    assert made.frame == "base"
    assert made.effectors == 1
    assert codes(made, [[0.0, 0.512]]) == []
    assert codes(made, [[-0.001, 0.2]]) == ["WORKSPACE_BOX"]
    ((place, quaternion),) = made.poses(np.array([0.1, 0.2]))
    np.testing.assert_array_equal(place, [0.1, 0.2, 0.0])
    np.testing.assert_array_equal(quaternion, [0, 0, 0, 1])
    assert workspace_of(load_embodiment("aloha"), None) is None


def test_the_sections_that_the_page_shows(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/limits.md").read_text()
    on_arm, cartesian, apart = (
        yaml.safe_load(text)["workspace"]
        for text in re.findall(r"```yaml\n(workspace:.*?)```", page, re.DOTALL)
    )
    assert cartesian == PUSHT["workspace"]
    spec = embodiment(**on_arm).workspace
    assert spec is not None
    hand = workspace_of(replace(arm(), workspace=spec), URDF)
    assert hand is not None
    assert codes(hand, np.zeros((1, 6))) == []
    turned_away = np.array([[2.0, 0, 0, 0, 0, 0]])
    assert codes(hand, turned_away) == ["WORKSPACE_BOX", "WORKSPACE_POLYGON"]
    assert embodiment(**{"end_effectors": None, **apart}).workspace is not None


BOX = {"min": [0, 0], "max": [1, 1]}
ARMS = [{"name": side, "links": ["a", "b"], "radius": 0.1} for side in "lr"]


@pytest.mark.parametrize(
    ("workspace", "named"),
    [
        ({"frame": ""}, "workspace.frame"),
        ({"margin": 1}, "workspace.margin is an unknown key"),
        ({"box": {"min": [0, 0], "max": [1]}}, r"workspace.box.max"),
        ({"box": {"min": [0, 0], "max": [1, 0]}}, r"workspace.box.min\[1\] is 0.0.*below"),
        ({"box": {"min": [0, float("nan")], "max": [1, 1]}}, "workspace.box.min is nan"),
        ({"box": {"min": [None, None], "max": [None, None]}}, "workspace.box.min"),
        ({"box": {**BOX, "frame": "x"}}, "workspace.box.frame"),
        ({"polygon": [[0, 0], [1, 1]]}, "workspace.polygon"),
        ({"polygon": [[0, 0], [1, 1], [1, 0, 0]]}, r"workspace.polygon\[2\]"),
        ({"end_effectors": [{"name": "p", "joints": ["pusher_x"]}]}, "two or three prismatic"),
        ({"end_effectors": [{"name": "p", "joints": ["pusher_x", "elbow"]}]}, "elbow"),
        ({"end_effectors": [{"name": "p", "joints": ["pusher_x", "pusher_x"]}]}, "duplicates"),
        ({"end_effectors": [{**PUSHER, "link": "tip"}]}, "joints is an unknown key"),
        ({"end_effectors": [PUSHER, PUSHER]}, "workspace.end_effectors"),
        ({"end_effectors": None, "box": BOX}, "workspace.end_effectors is absent"),
        ({"end_effectors": None}, "workspace.end_effectors is absent"),
        ({"keep_out": [{"name": "post", "min": [0, 0]}]}, r"workspace.keep_out\[0\].max"),
        ({"keep_out": [{"name": "p", **BOX}] * 2}, "workspace.keep_out"),
        ({"arms": ARMS}, "2 with min_arm_distance None"),
        ({"arms": ARMS[:1], "min_arm_distance": 0.1}, "workspace.arms is 1 with"),
        ({"min_arm_distance": 0.1}, "workspace.arms is 0 with"),
        ({"arms": [{**ARMS[0], "links": ["a"]}, ARMS[1]]}, r"workspace.arms\[0\].links"),
        ({"arms": [{**ARMS[0], "radius": 0}, ARMS[1]]}, r"workspace.arms\[0\].radius"),
    ],
)
def test_a_wrong_field_is_named(workspace: Any, named: str) -> None:
    with pytest.raises(WorldForgeError, match=named) as caught:
        embodiment(**workspace)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID


@pytest.mark.parametrize(
    "polygon", [[[0, 0], [1, 1], [1, 0], [0, 1]], [[0, 0], [1, 1], [2, 2]]], ids=["bow", "line"]
)
def test_a_polygon_must_be_simple(polygon: Any) -> None:
    with pytest.raises(WorldForgeError, match=r"workspace\.polygon") as caught:
        plane(polygon=polygon)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID


@pytest.mark.parametrize(
    ("robot", "code", "named"),
    [
        (arm(["hand"]), ErrorCode.EMBODIMENT_INVALID, "'hand'.*expected one of base_link"),
        (
            arm(["jaw_link"], frame="wrist_link"),
            ErrorCode.EMBODIMENT_INVALID,
            "workspace.frame is 'wrist_link', which joint shoulder_pan moves",
        ),
        (
            replace(arm(["jaw_link"]), joints=arm().joints[:5]),
            ErrorCode.EMBODIMENT_MISMATCH,
            "joint gripper between the root of .* and link jaw_link",
        ),
        (
            replace(
                arm(["jaw_link"]),
                joints=(replace(arm().joints[0], type="continuous"), *arm().joints[1:]),
            ),
            ErrorCode.EMBODIMENT_MISMATCH,
            "joint shoulder_pan",
        ),
    ],
)
def test_links_that_cannot_be_followed(robot: Embodiment, code: ErrorCode, named: str) -> None:
    with pytest.raises(WorldForgeError, match=named) as caught:
        workspace_of(robot, URDF)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("number", "named"),
    [
        ('<origin xyz="nan 0 0.05"/>', "joint shoulder_lift origin xyz is 'nan 0 0.05'"),
        ('<origin xyz="0 0 0" rpy="0 inf 0"/>', "joint shoulder_lift origin rpy"),
        ('<origin xyz="0 0"/>', "Invalid vector length"),
    ],
)
def test_numbers_of_a_urdf_that_lead_nowhere(tmp_path: Path, number: str, named: str) -> None:
    file = tmp_path / "robot.urdf"
    file.write_text(URDF.read_text().replace('<origin xyz="0.03 0 0.05"/>', number))
    with pytest.raises(WorldForgeError, match=named) as caught:
        workspace_of(arm(["jaw_link"]), file)
    assert caught.value.code is ErrorCode.URDF_INVALID


def test_links_need_a_urdf(tmp_path: Path) -> None:
    with pytest.raises(WorldForgeError, match="parameter urdf is empty") as caught:
        workspace_of(arm(["jaw_link"]), None)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(WorldForgeError, match="not readable") as caught:
        workspace_of(arm(["jaw_link"]), tmp_path / "none.urdf")
    assert caught.value.code is ErrorCode.URDF_INVALID


def test_without_their_libraries_links_and_polygons_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(WorldForgeError, match="mujoco") as caught:
        workspace_of(arm(["jaw_link"]), URDF)
    assert caught.value.code is ErrorCode.DEPENDENCY_MISSING
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(WorldForgeError, match="shapely") as caught:
        plane(polygon=L_SHAPE)
    assert caught.value.code is ErrorCode.DEPENDENCY_MISSING


def test_a_box_alone_loads_nothing_heavy() -> None:
    program = (
        "import sys; from worldforge_ros.embodiment import load_embodiment;"
        "from worldforge_ros.safety.workspace import workspace_of;"
        "assert workspace_of(load_embodiment('pusht'), None) is not None;"
        "heavy = {'mujoco', 'shapely', 'scipy', 'torch', 'urdf_parser_py'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


ARM = workspace_of(arm(["gripper_frame_link"]), URDF)
MIXED = plane(
    box={"min": [None, None], "max": [1, 1]},
    polygon=L_SHAPE,
    keep_out=[{"name": "post", "min": [0.25, 0.25], "max": [0.625, 0.625]}],
)
