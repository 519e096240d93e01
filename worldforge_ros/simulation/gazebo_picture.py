"""What the camera of a Gazebo world sees, by rays through a pinhole; numpy only.

For comparing a world file with another simulator's picture where no Gazebo is installed. It knows
what ``gazebo/worlds/pusht.sdf`` uses: boxes, upright cylinders and emissive colours, no light.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.simulation.gazebo import to_screen

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]
Pose = tuple[FloatArray, FloatArray]
"""Translation (3,) in metres and rotation matrix (3, 3)."""

MULTISAMPLE_4 = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
"""The usual four samples of a pixel; Gazebo's cameras take four unless they are told otherwise."""


@dataclass(frozen=True)
class Solid:
    """One visual: half sizes (3,) of a box or, with ``round``, of an upright cylinder's box."""

    pose: Pose
    half: FloatArray
    round: bool
    colour: FloatArray


@dataclass(frozen=True)
class Camera:
    """Pose (x ahead, y left, z up), horizontal field of view in radians, picture size in pixels."""

    pose: Pose
    field: float
    width: int
    height: int


def pose_of(text: str | None) -> Pose:
    """An SDF pose "x y z roll pitch yaw" in metres and radians; nothing is the identity."""
    values = [float(value) for value in (text or "0 0 0 0 0 0").split()]
    if len(values) != 6:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "pose", found=repr(text), expected="6 numbers")
    (sr, sp, sy), (cr, cp, cy) = np.sin(values[3:]), np.cos(values[3:])
    rotation = np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
    return np.array(values[:3]), rotation


def compose(first: Pose, second: Pose) -> Pose:
    """``second``, given in the frame of ``first``."""
    return first[0] + first[1] @ second[0], first[1] @ second[1]


def pusht_poses(state: npt.ArrayLike) -> dict[str, Pose]:
    """Poses of what moves in ``gazebo/worlds/pusht.sdf``, for :func:`read_scene`.

    :param state: (5,) as :data:`worldforge_ros.simulation.pusht.STATE_FIELDS`.
    """
    agent_x, agent_y, block_x, block_y, angle = np.asarray(state, dtype=np.float64).tolist()
    turn = pose_of(f"{block_x / 1e3} {-block_y / 1e3} 0 0 0 {-angle}")
    return {"tee": turn, "pusher/tip_link": pose_of(f"{agent_x / 1e3} {-agent_y / 1e3} 0 0 0 0")}


def read_scene(text: str, poses: Mapping[str, Pose]) -> tuple[list[Solid], Camera]:
    """Visuals and camera of a world; ``poses`` of models, or of links as "model/link", replace
    those in the file.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for geometry other than boxes and cylinders.
    """
    solids: list[Solid] = []
    camera: Camera | None = None
    for model in ElementTree.fromstring(text).iter("model"):
        name = model.get("name", "")
        base = poses.get(name, pose_of(model.findtext("pose")))
        for link in model.findall("link"):
            own = poses.get(f"{name}/{link.get('name')}", pose_of(link.findtext("pose")))
            frame = compose(base, own)
            solids += [_solid(visual, frame) for visual in link.findall("visual")]
            for sensor in link.findall("sensor"):
                camera = Camera(
                    compose(frame, pose_of(sensor.findtext("pose"))),
                    float(sensor.findtext("camera/horizontal_fov") or "nan"),
                    int(sensor.findtext("camera/image/width") or 0),
                    int(sensor.findtext("camera/image/height") or 0),
                )
    if camera is None:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "world", found="no camera", expected="one")
    return solids, camera


def _solid(visual: ElementTree.Element, frame: Pose) -> Solid:
    pose = compose(frame, pose_of(visual.findtext("pose")))
    colour = [float(value) for value in (visual.findtext("material/emissive") or "").split()[:3]]
    size = visual.findtext("geometry/box/size")
    radius = visual.findtext("geometry/cylinder/radius")
    if size is not None:
        half = np.array([float(value) / 2 for value in size.split()])
    elif radius is not None:
        length = float(visual.findtext("geometry/cylinder/length") or "nan")
        half = np.array([float(radius), float(radius), length / 2])
    else:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"geometry of {visual.get('name')}",
            found="something else",
            expected="a box or a cylinder",
        )
    return Solid(pose, half, size is None, np.array(colour))


def draw(
    solids: list[Solid],
    camera: Camera,
    samples: Sequence[tuple[float, float]] = MULTISAMPLE_4,
) -> ImageArray:
    """The picture (height, width, 3) uint8 RGB.

    Rays of a pixel are averaged before the transfer to the screen, as a renderer with linear
    colours averages its samples. Where no solid is, the picture is black.

    :param samples: places of a pixel's rays, right and down of its middle, in pixels.
    """
    step = 2.0 * np.tan(camera.field / 2.0) / camera.width
    columns = np.arange(camera.width) + 0.5 - camera.width / 2.0
    rows = np.arange(camera.height) + 0.5 - camera.height / 2.0
    places = np.asarray(samples, dtype=np.float64)
    left = np.broadcast_to(
        -(columns + places[:, :1])[:, np.newaxis] * step,
        (len(places), camera.height, camera.width),
    )
    up = np.broadcast_to(-(rows + places[:, 1:])[..., np.newaxis] * step, left.shape)
    rays = np.stack([np.ones_like(left), left, up], axis=-1) @ camera.pose[1].T
    nearest = np.full(left.shape, np.inf)
    shown = np.zeros((*left.shape, 3))
    for solid in solids:
        window = (slice(None), *_window(solid, camera, step))
        distance = _distance(solid, camera.pose[0], rays[window])
        closer = distance < nearest[window]
        nearest[window][closer] = distance[closer]
        shown[window][closer] = solid.colour
    return np.rint(to_screen(shown.mean(axis=0)) * 255.0).astype(np.uint8)


def _window(solid: Solid, camera: Camera, step: float) -> tuple[slice, slice]:
    """Rows and columns in which the solid may be."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = solid.pose[0] + (signs * solid.half) @ solid.pose[1].T
    seen = (corners - camera.pose[0]) @ camera.pose[1]
    if (seen[:, 0] <= 0.0).any():
        return slice(None), slice(None)
    found = []
    for axis, size in ((2, camera.height), (1, camera.width)):
        places = size / 2.0 - seen[:, axis] / seen[:, 0] / step
        low, high = int(places.min()) - 1, int(places.max()) + 2
        found.append(slice(max(0, low), max(0, high)))
    return found[0], found[1]


def _distance(solid: Solid, origin: FloatArray, rays: FloatArray) -> FloatArray:
    """How far along each ray (..., 3) the solid begins; infinite where it is missed."""
    place, rotation = solid.pose
    start = (origin - place) @ rotation
    ahead = rays @ rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (-solid.half - start) / ahead
        second = (solid.half - start) / ahead
    enter, leave = np.minimum(first, second), np.maximum(first, second)
    if solid.round:
        a = (ahead[..., :2] ** 2).sum(axis=-1)
        b = ahead[..., :2] @ start[:2]
        root = b**2 - a * (start[:2] @ start[:2] - solid.half[0] ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.sqrt(root)
            sides = np.stack([(-b - reach) / a, (-b + reach) / a])
        begin, end = np.fmax(enter[..., 2], sides[0]), np.fmin(leave[..., 2], sides[1])
        hit = (root >= 0.0) & (begin <= end)
    else:
        begin, end = enter.max(axis=-1), leave.min(axis=-1)
        hit = begin <= end
    return np.where(hit & (end > 0.0), begin, np.inf)
