"""The joints of a URDF as the embodiment contract wants them."""

from __future__ import annotations

import contextlib
import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from worldforge_ros.embodiment import Joint, JointType
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

MOVABLE = ("revolute", "continuous", "prismatic")
DYNAMIC = ("acceleration", "deceleration", "jerk")
"""Attributes of ``<limit>`` since URDF 1.2."""


@dataclass(frozen=True)
class UrdfJoint:
    """A joint with its limits in SI units; ``notes`` tell where a bound comes from or is absent."""

    joint: Joint
    notes: tuple[str, ...]


@dataclass(frozen=True)
class UrdfRobot:
    """The movable joints of a URDF in file order; ``left_out`` is joint name to reason."""

    name: str
    joints: tuple[UrdfJoint, ...]
    left_out: Mapping[str, str]


def read_urdf(path: Path) -> UrdfRobot:
    """Read the joints of a URDF file; ``fixed`` ones are not mentioned.

    Bounds are the tighter of ``<limit>`` and ``<safety_controller>``. A range of 0 to 0 counts as
    not given, since that is what absent attributes mean; so does a velocity of 0. The attributes
    ``acceleration``, ``deceleration`` and ``jerk`` of URDF 1.2 are read in a file of any version
    that ``urdf_parser_py`` takes (1.0); ``deceleration`` is ``acceleration`` where it is absent.

    :raises WorldForgeError: ``URDF_INVALID``, or ``DEPENDENCY_MISSING`` without ``urdf_parser_py``.
    """
    try:
        from urdf_parser_py.urdf import URDF
        from urdf_parser_py.xml_reflection.core import ParseError
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "python module urdf_parser_py",
            found=f"not importable ({error})",
            expected="the package urdf-parser-py, or ros-<distro>-urdfdom-py",
        ) from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _invalid(str(path), f"not readable ({error.strerror})", "a URDF file") from error
    if b"<xacro:" in content:
        raise _invalid(str(path), "a xacro file", f"a URDF: `xacro {path.name} > robot.urdf`")
    try:
        # It reports tags it does not know, such as <ros2_control>, on stderr; they do not matter.
        with contextlib.redirect_stderr(io.StringIO()):
            robot = URDF.from_xml_string(content)
    except (ParseError, SyntaxError, ValueError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise _invalid(str(path), f"not readable ({text})", "a URDF document") from error
    dynamic = _dynamic_limits(content)
    joints, left_out = [], {}
    for item in robot.joints:
        if item.mimic is not None:
            left_out[item.name] = f"it mimics {item.mimic.joint}"
        elif item.type in MOVABLE:
            joints.append(_joint(item, dynamic.get(item.name, {}), path))
        elif item.type != "fixed":
            left_out[item.name] = f"no joint controller moves a joint of type {item.type}"
    if not joints:
        raise _invalid(f"{path}: joints", "none that move", "a revolute or prismatic joint")
    names = [item.joint.name for item in joints]
    if len(set(names)) != len(names):
        raise _invalid(f"{path}: joints", names, "names without duplicates")
    return UrdfRobot(str(robot.name), tuple(joints), left_out)


def _dynamic_limits(content: bytes) -> dict[str, dict[str, str]]:
    """The attributes of each joint's ``<limit>`` that ``urdf_parser_py`` 0.0.4 leaves out: ignoring
    a bound that is in the file would let the joint do more than its author allows.
    """
    return {
        joint.get("name", ""): {
            key: value for key in DYNAMIC if (value := limit.get(key)) is not None
        }
        for joint in ET.fromstring(content).findall("joint")
        for limit in joint.findall("limit")
    }


def _joint(item: Any, dynamic: Mapping[str, str], path: Path) -> UrdfJoint:
    where = f"{path}: joint {item.name}"
    notes: list[str] = []
    limit, safety = item.limit, item.safety_controller
    hard = soft = None
    if limit is not None and item.type != "continuous":
        hard = _range(limit.lower, limit.upper, f"{where} limit")
    if safety is not None:
        soft = _range(safety.soft_lower_limit, safety.soft_upper_limit, f"{where} soft limit")
    bounds = [entry for entry in (hard, soft) if entry is not None]
    lower = upper = None
    if bounds:
        lower, upper = max(low for low, _ in bounds), min(high for _, high in bounds)
        if lower >= upper:
            raise _invalid(f"{where} limits", f"{lower} to {upper}", "a range")
        if soft is not None and (lower, upper) != hard:
            notes.append("tightened by <safety_controller>")
    elif item.type != "continuous":
        notes.append("the URDF gives no range")
    velocity = None
    if limit is not None:
        velocity = _finite(limit.velocity, f"{where} limit velocity")
    if velocity is not None and velocity < 0:
        raise _invalid(f"{where} limit velocity", velocity, "0 or more")
    if not velocity:
        notes.append("the URDF gives no velocity")
    acceleration, deceleration, jerk = (
        _positive(dynamic.get(key), f"{where} limit {key}") for key in DYNAMIC
    )
    joint = Joint(
        name=item.name,
        type=cast(JointType, item.type),
        min_position=lower,
        max_position=upper,
        max_velocity=velocity or None,
        max_acceleration=acceleration,
        max_deceleration=deceleration or acceleration,
        max_jerk=jerk,
    )
    return UrdfJoint(joint, tuple(notes))


def _positive(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise _invalid(where, f"'{text}'", "a finite number above 0")
    return number


def _range(low: object, high: object, where: str) -> tuple[float, float] | None:
    lower, upper = _finite(low, f"{where} lower"), _finite(high, f"{where} upper")
    return None if lower == upper == 0.0 else (lower, upper)


def _finite(value: object, where: str) -> float:
    number = float(cast(float, value or 0.0))
    if not math.isfinite(number):
        raise _invalid(where, number, "a finite number")
    return number


def _invalid(field: str, found: object, expected: object) -> WorldForgeError:
    return mismatch(ErrorCode.URDF_INVALID, field, found=found, expected=expected)
