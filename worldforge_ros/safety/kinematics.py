"""Where the links of a URDF are for given joint positions, computed by MuJoCo."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from worldforge_ros.adoption.urdf import MOVABLE, read_urdf
from worldforge_ros.embodiment import Embodiment, Joint
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

FloatArray = npt.NDArray[np.float64]
Pose = tuple[FloatArray, FloatArray]
"""Position (3,) in metres and unit quaternion (4,), x y z w."""

FIXED = "fixed"


@dataclass(frozen=True)
class _Mount:
    """The joint that carries a link."""

    name: str
    type: str
    parent: str
    offset: tuple[float, float, float]
    element: ET.Element


class Kinematics:
    """Forward kinematics of some links of a URDF, in the frame of another of its links.

    Only joints of the embodiment may be between the root and these links, or between the root and
    the frame. Shapes, meshes and masses of the file are not read. One caller at a time is served;
    others wait.

    :param links: what :meth:`origins` gives, in this order.
    :param frame: must not move with respect to the root.
    :raises WorldForgeError: ``URDF_INVALID`` for a file that cannot be read, ``EMBODIMENT_INVALID``
        for a link that it does not have or a frame that moves, ``EMBODIMENT_MISMATCH`` when a joint
        on the way is not the embodiment's, ``DEPENDENCY_MISSING`` without MuJoCo.
    """

    reach: FloatArray
    """(L, J): at most how far a link's origin moves in metres for a radian or metre of a joint."""
    turning: npt.NDArray[np.bool_]
    """(L, J): whether a joint that turns is between the root and the link."""

    def __init__(self, embodiment: Embodiment, urdf: Path, links: Sequence[str], frame: str):
        read_urdf(urdf)  # Refuses what is no URDF in words; here only the tree is wanted.
        root = ET.fromstring(urdf.read_bytes())
        names = [element.get("name", "") for element in root.findall("link")]
        mounts = _mounts(root, urdf)
        for link in (frame, *links):
            if link not in names:
                raise _unknown(link, urdf, names)
        joints = {joint.name: joint for joint in embodiment.joints}
        chains = {link: _chain(link, mounts, urdf) for link in (frame, *links)}
        for link, chain in chains.items():
            for mount in chain:
                _check_joint(mount, joints, link, urdf)
        moving = [mount.name for mount in chains[frame] if mount.type != FIXED]
        if moving:
            raise mismatch(
                ErrorCode.EMBODIMENT_INVALID,
                "embodiment field workspace.frame",
                found=f"'{frame}', which joint {moving[0]} moves",
                expected="a link that does not move with respect to the root of the URDF",
            )
        order = list(embodiment.joint_names)
        self.reach = np.zeros((len(links), len(order)))
        self.turning = np.zeros(self.reach.shape, dtype=np.bool_)
        for row, link in enumerate(links):
            _fill_reach(self.reach[row], self.turning[row], chains[link], joints, order)
        used = {mount.name: mount for chain in chains.values() for mount in chain}
        self._mujoco, self._model = _model(used.values(), (frame, *links))
        self._data = self._mujoco.MjData(self._model)
        self._lock = threading.Lock()
        # One coordinate a joint, since only hinges and slides are in the model.
        self._columns = [order.index(self._model.joint(i).name) for i in range(self._model.njnt)]
        self._bodies = [self._model.body(link).id for link in links]
        self._mujoco.mj_kinematics(self._model, self._data)
        body = self._model.body(frame).id
        self._frame_origin = self._data.xpos[body].copy()
        self._frame_axes = self._data.xmat[body].reshape(3, 3).copy()
        self._from_frame = np.empty(4)
        self._mujoco.mju_negQuat(self._from_frame, self._data.xquat[body])

    def origins(self, positions: FloatArray) -> FloatArray:
        """Origins (R, L, 3) of the links for finite ``positions`` (R, J), in metres."""
        found = np.empty((len(positions), self._model.nbody, 3))
        wanted = positions[:, self._columns]
        model, data, solve = self._model, self._data, self._mujoco.mj_kinematics
        with self._lock:
            joints, places = data.qpos, data.xpos
            for row, bodies in zip(wanted, found, strict=True):
                joints[:] = row
                solve(model, data)
                bodies[:] = places
        return cast(FloatArray, (found[:, self._bodies] - self._frame_origin) @ self._frame_axes)

    def poses(self, position: FloatArray) -> list[Pose]:
        """Poses of the links for one finite ``position`` (J,)."""
        poses = []
        with self._lock:
            self._data.qpos[:] = position[self._columns]
            self._mujoco.mj_kinematics(self._model, self._data)
            for body in self._bodies:
                turned = np.empty(4)
                self._mujoco.mju_mulQuat(turned, self._from_frame, self._data.xquat[body])
                origin = (self._data.xpos[body] - self._frame_origin) @ self._frame_axes
                poses.append((origin, turned[[1, 2, 3, 0]]))
        return poses


def _mounts(root: ET.Element, urdf: Path) -> dict[str, _Mount]:
    mounts: dict[str, _Mount] = {}
    for element in root.findall("joint"):
        parent, child = element.find("parent"), element.find("child")
        origin = element.find("origin")
        if parent is None or child is None:
            raise _invalid(urdf, f"joint {element.get('name')}", "without parent or child", "both")
        offset = (origin.get("xyz") if origin is not None else None) or "0 0 0"
        x, y, z = (float(value) for value in offset.split())
        _check_finite(element, urdf)
        link = child.get("link", "")
        if link in mounts:
            raise _invalid(urdf, f"link {link}", "the child of two joints", "a tree")
        mounts[link] = _Mount(
            element.get("name", ""),
            element.get("type", ""),
            parent.get("link", ""),
            (x, y, z),
            element,
        )
    return mounts


def _check_finite(joint: ET.Element, urdf: Path) -> None:
    """NaN would spread to the links, and nothing compares as outside of anything with it."""
    for part, key in (("origin", "xyz"), ("origin", "rpy"), ("axis", "xyz")):
        element = joint.find(part)
        text = (element.get(key) if element is not None else None) or "0 0 0"
        if not np.isfinite([float(value) for value in text.split()]).all():
            where = f"joint {joint.get('name')} {part} {key}"
            raise _invalid(urdf, where, f"'{text}'", "finite numbers")


def _chain(link: str, mounts: Mapping[str, _Mount], urdf: Path) -> list[_Mount]:
    """The joints from the root to ``link``."""
    chain: list[_Mount] = []
    while link in mounts:
        if len(chain) > len(mounts):
            raise _invalid(urdf, f"link {link}", "in a loop of joints", "a tree")
        chain.append(mounts[link])
        link = mounts[link].parent
    return chain[::-1]


def _check_joint(mount: _Mount, joints: Mapping[str, Joint], link: str, urdf: Path) -> None:
    if mount.type == FIXED:
        return
    joint = joints.get(mount.name)
    mimics = mount.element.find("mimic") is not None
    if joint is None or mimics or mount.type not in MOVABLE or joint.type != mount.type:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            f"joint {mount.name} between the root of {urdf} and link {link}",
            found=f"{mount.type}{' and mimics another' if mimics else ''}",
            expected=f"one of the embodiment's joints, of its type: {', '.join(joints)}",
        )


def _fill_reach(
    reach: FloatArray,
    turning: npt.NDArray[np.bool_],
    chain: Sequence[_Mount],
    joints: Mapping[str, Joint],
    order: Sequence[str],
) -> None:
    """A joint that turns moves the end by at most its distance, which the lengths of the parts
    between them bound; a joint that slides moves it by as much as itself.
    """
    distance = 0.0
    for mount in reversed(chain):
        if mount.type == "prismatic":
            joint = joints[mount.name]
            reach[order.index(mount.name)] = 1.0
            ends = (joint.min_position, joint.max_position)
            if None in ends:
                raise mismatch(
                    ErrorCode.EMBODIMENT_INVALID,
                    f"range of joint {joint.name}",
                    found="absent",
                    expected="min_position and max_position, for a workspace with links",
                )
            distance += max(abs(end) for end in ends if end is not None)
        elif mount.type != FIXED:
            reach[order.index(mount.name)] = distance
            turning[order.index(mount.name)] = True
        distance += float(np.linalg.norm(mount.offset))


def _model(mounts: Any, links: Sequence[str]) -> tuple[Any, Any]:
    """A MuJoCo model of nothing but the joints on the way to ``links``."""
    try:
        import mujoco
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "python module mujoco",
            found=f"not importable ({error})",
            expected="the package mujoco, for a workspace with links",
        ) from error
    robot = ET.Element("robot", name="workspace")
    # Links on fixed joints stay links, and links without mass are no error.
    settings = {"fusestatic": "false", "boundmass": "1", "boundinertia": "1"}
    ET.SubElement(ET.SubElement(robot, "mujoco"), "compiler", settings)
    bodies = dict.fromkeys(links)
    for mount in mounts:
        child = mount.element.find("child").get("link")
        bodies |= dict.fromkeys((mount.parent, child))
        # The same motion without the limits, which are checked elsewhere.
        kind = "continuous" if mount.type == "revolute" else mount.type
        joint = ET.SubElement(robot, "joint", name=mount.name, type=kind)
        ET.SubElement(joint, "parent", link=mount.parent)
        ET.SubElement(joint, "child", link=child)
        for part, default in (("origin", {}), ("axis", {"xyz": "1 0 0"})):
            given = mount.element.find(part)
            ET.SubElement(joint, part, dict(given.attrib) if given is not None else default)
    for body in bodies:
        ET.SubElement(robot, "link", name=body)
    try:
        return mujoco, mujoco.MjModel.from_xml_string(ET.tostring(robot, encoding="unicode"))
    except ValueError as error:
        text = " ".join(str(error).split())
        raise mismatch(
            ErrorCode.URDF_INVALID,
            "kinematics",
            found=f"refused by MuJoCo ({text})",
            expected="a tree of links",
        ) from error


def _unknown(link: str, urdf: Path, names: Sequence[str]) -> WorldForgeError:
    return mismatch(
        ErrorCode.EMBODIMENT_INVALID,
        "embodiment field workspace",
        found=f"about link '{link}', which {urdf} does not have",
        expected=f"one of {', '.join(names)}",
    )


def _invalid(urdf: Path, what: str, found: str, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.URDF_INVALID, f"{urdf}: {what}", found=found, expected=expected)
