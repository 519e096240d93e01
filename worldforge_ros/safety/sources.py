"""Where limits come from: the embodiment, a URDF and a ``joint_limits.yaml`` of ros2_control.

Each source may only tighten what the others say. The names of the overlay are those that
``joint_limits/joint_limits_rosparam.hpp`` of ros2_control declares.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from worldforge_ros.embodiment import Embodiment, Joint
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

LOWEST = ("max_position", "max_velocity", "max_acceleration", "max_deceleration", "max_jerk")
"""Bounds of which the lowest is the tightest; of ``min_position`` it is the highest."""

_RANGE = ("min_position", "max_position")
_SOFT = ("soft_lower_limit", "soft_upper_limit", "k_position", "k_velocity")
_VALUES: Mapping[str, tuple[str, ...]] = {
    "has_position_limits": _RANGE,
    "has_velocity_limits": ("max_velocity",),
    "has_acceleration_limits": ("max_acceleration",),
    "has_deceleration_limits": ("max_deceleration",),
    "has_jerk_limits": ("max_jerk",),
    "has_effort_limits": ("max_effort",),
    "has_soft_limits": _SOFT,
}
_WRAPS = "angle_wraparound"
_KEYS = (_WRAPS, *_VALUES, *(value for values in _VALUES.values() for value in values))
_UNUSED: Mapping[str, str] = {
    "max_effort": "the gate sees no efforts",
    "k_position": "a soft limit is a hard one for the gate",
    "k_velocity": "a soft limit is a hard one for the gate",
}


@dataclass(frozen=True)
class _Source:
    """What one source says of one joint; bounds that it does not mention are absent."""

    name: str
    bounds: Mapping[str, float]


@dataclass(frozen=True)
class _Overlay:
    """One joint of an overlay; ``any_jerk`` where it says that the jerk is not limited."""

    source: _Source
    any_jerk: bool = False
    unused: tuple[str, ...] = ()
    off: tuple[str, ...] = ()


def with_limits(
    embodiment: Embodiment, urdf: Path | None, overlay: Path | None
) -> tuple[Embodiment, tuple[str, ...]]:
    """The embodiment with the tightest of all bounds, and sentences on what tightened what.

    A source that limits the acceleration but not the deceleration limits the latter by the former,
    as ros2_control does. A bound that nobody gives stays ``None``, so that the gate does not arm.
    ``max_jerk`` becomes infinite where nobody gives it and the overlay says
    ``has_jerk_limits: false``.

    :param urdf: its ``<limit>`` and ``<safety_controller>``; every joint of the embodiment must be
        in it.
    :param overlay: a ``joint_limits.yaml``, either ``joint_limits: {<joint>: ...}`` or the same
        under ``<node>: ros__parameters:``; need not name every joint.
    :raises WorldForgeError: ``URDF_INVALID`` or ``DEPENDENCY_MISSING`` from reading the URDF,
        ``INVALID_ARGUMENT`` naming joint and field for an overlay that is wrong,
        ``EMBODIMENT_MISMATCH`` when a source is of another robot, or when the ranges of two
        sources have nothing in common.
    """
    described = _described(embodiment, urdf)
    laid_over = _overlay(embodiment, overlay)
    joints, said = [], []
    for joint in embodiment.joints:
        sources = [_source(f"the embodiment {embodiment.name}", joint)]
        if urdf is not None:
            sources.append(_source(urdf.name, described[joint.name]))
        own = laid_over.get(joint.name)
        if own is not None:
            sources.append(own.source)
        merged, sentences = _merged(joint, sources)
        if own is not None and own.any_jerk and merged.max_jerk is None:
            merged = replace(merged, max_jerk=math.inf)
            sentences.append(f"max_jerk of {joint.name} is unlimited by {own.source.name}")
        joints.append(merged)
        said += sentences
    said += _remarks(laid_over)
    return replace(embodiment, joints=tuple(joints)), tuple(said)


def _source(name: str, joint: Joint) -> _Source:
    bounds = {
        field: value
        for field in ("min_position", *LOWEST)
        if (value := getattr(joint, field)) is not None
    }
    return _Source(name, _with_deceleration(bounds))


def _with_deceleration(bounds: dict[str, float]) -> dict[str, float]:
    if "max_acceleration" in bounds:
        bounds.setdefault("max_deceleration", bounds["max_acceleration"])
    return bounds


def _merged(joint: Joint, sources: Sequence[_Source]) -> tuple[Joint, list[str]]:
    values: dict[str, float] = {}
    origin: dict[str, str] = {}
    sentences: list[str] = []
    for field in ("min_position", *LOWEST):
        sign = -1.0 if field == "min_position" else 1.0
        given = [(source.bounds[field], source) for source in sources if field in source.bounds]
        if not given:
            continue
        value, tightest = min(given, key=lambda entry: sign * entry[0])
        values[field], origin[field] = value, tightest.name
        first = sources[0]
        if tightest is not first:
            before = first.bounds.get(field)
            other = "gives none" if before is None else f"gives {_number(before)}"
            sentences.append(
                f"{field} of {joint.name} is {_number(value)} {_unit(joint, field)} by "
                f"{tightest.name}; {first.name} {other}"
            )
    low, high = values.get("min_position"), values.get("max_position")
    if low is not None and high is not None and low >= high:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            f"range of joint {joint.name}",
            found=f"empty: from {low:g} ({origin['min_position']}) to {high:g} "
            f"({origin['max_position']})",
            expected="ranges that have something in common",
        )
    changed: Joint = replace(joint, **values)  # type: ignore[arg-type]
    return changed, sentences


def _unit(joint: Joint, field: str) -> str:
    unit = "m" if joint.type == "prismatic" else "rad"
    power = {"max_velocity": "/s", "max_acceleration": "/s^2", "max_deceleration": "/s^2"}
    return unit + (power | {"max_jerk": "/s^3"}).get(field, "")


def _number(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{value:g}"


def _described(embodiment: Embodiment, urdf: Path | None) -> dict[str, Joint]:
    """The URDF's joints by name; all of the embodiment's are among them, with the same type."""
    if urdf is None:
        return {}
    from worldforge_ros.adoption.urdf import read_urdf

    robot = read_urdf(urdf)
    found = {item.joint.name: item.joint for item in robot.joints}
    for joint in embodiment.joints:
        if joint.name not in found:
            why = robot.left_out.get(joint.name)
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"joint {joint.name} of the embodiment {embodiment.name}",
                found=f"not one that moves in {urdf}" + (f" ({why})" if why else ""),
                expected=f"one of {', '.join(found)}: is this the URDF of the robot?",
            )
        kind = found[joint.name].type
        if kind != joint.type:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"type of joint {joint.name} in {urdf}",
                found=kind,
                expected=f"{joint.type} as in the embodiment {embodiment.name}",
            )
    return found


def _overlay(embodiment: Embodiment, path: Path | None) -> dict[str, _Overlay]:
    if path is None:
        return {}
    joints = {joint.name: joint for joint in embodiment.joints}
    read = {}
    for name, section in _section(path).items():
        if name not in joints:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"joint {name} in {path}",
                found=f"unknown to the embodiment {embodiment.name}",
                expected=f"one of {', '.join(joints)}",
            )
        read[str(name)] = _overlay_joint(joints[name], section, path)
    return read


class _Strict(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would take the last without a word."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _section(path: Path) -> Mapping[str, object]:
    """The mapping of joints in an overlay, in either of its two forms."""
    try:
        # _Strict is a SafeLoader: no Python objects.
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise _invalid(str(path), f"not readable ({error.strerror})", "a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        text = " ".join(str(error).split())
        raise _invalid(str(path), f"not readable as YAML ({text})", "a YAML mapping") from error
    section = document
    if isinstance(document, Mapping) and "joint_limits" not in document:
        (nodes, section) = (list(document), next(iter(document.values()), None))
        if len(nodes) != 1:
            raise _invalid(str(path), f"keys {nodes}", "joint_limits, or one node")
        section = _only(section, "ros__parameters", f"{path}: {nodes[0]}")
    section = _only(section, "joint_limits", str(path))
    if not isinstance(section, Mapping) or not section:
        raise _invalid(f"{path}: joint_limits", section, "a mapping of joints")
    return section


def _only(section: object, key: str, where: str) -> object:
    if not isinstance(section, Mapping) or list(section) != [key]:
        found = list(section) if isinstance(section, Mapping) else section
        raise _invalid(where, found, f"a mapping with the one key {key}")
    return section[key]


def _overlay_joint(joint: Joint, section: object, path: Path) -> _Overlay:
    where = f"{path}: joint {joint.name}"
    if not isinstance(section, Mapping):
        raise _invalid(where, section, "a mapping")
    for key in section:
        if key not in _KEYS:
            raise _invalid(f"{where}: {key}", "an unknown key", f"one of {', '.join(_KEYS)}")
    bounds: dict[str, float] = {}
    off, unused = [], []
    for flag, fields in _VALUES.items():
        given = [field for field in fields if field in section]
        if flag not in section:
            if given:
                raise _invalid(
                    f"{where}: {flag}", "missing", f"true or false, since {given[0]} is given"
                )
        elif _flag(section, flag, where):
            for field in fields:
                value = _bound(section, field, where)
                if field in _UNUSED:
                    unused.append(field)
                else:
                    _tighten(bounds, field, value)
            _check_range(section, fields, where)
        else:
            off += given
    _check_wraparound(joint, section, bounds, where)
    any_jerk = section.get("has_jerk_limits") is False
    source = _Source(path.name, _with_deceleration(bounds))
    return _Overlay(source, any_jerk, tuple(unused), tuple(off))


def _flag(section: Mapping[str, object], flag: str, where: str) -> bool:
    value = section[flag]
    if not isinstance(value, bool):
        raise _invalid(f"{where}: {flag}", value, "true or false")
    return value


def _bound(section: Mapping[str, object], field: str, where: str) -> float:
    signed = field in (*_RANGE, *_SOFT)
    expected = "a finite number" if signed else "a finite number above 0"
    if field not in section:
        raise _invalid(f"{where}: {field}", "missing", expected)
    value = section[field]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not (signed or value > 0):  # type: ignore[arg-type,operator]
        raise _invalid(f"{where}: {field}", value, expected)
    return float(value)  # type: ignore[arg-type]


def _tighten(bounds: dict[str, float], field: str, value: float) -> None:
    """Soft limits are the same joint's position limits, only narrower."""
    if field in ("min_position", "soft_lower_limit"):
        bounds["min_position"] = max(value, bounds.get("min_position", value))
    elif field in ("max_position", "soft_upper_limit"):
        bounds["max_position"] = min(value, bounds.get("max_position", value))
    else:
        bounds[field] = value


def _check_range(section: Mapping[str, object], fields: tuple[str, ...], where: str) -> None:
    if len(fields) == 1:
        return
    low, high = (_bound(section, field, where) for field in fields[:2])
    if low >= high:
        raise _invalid(f"{where}: {fields[0]}", f"{low:g}", f"below {fields[1]} {high:g}")


def _check_wraparound(
    joint: Joint, section: Mapping[str, object], bounds: Mapping[str, float], where: str
) -> None:
    if _WRAPS not in section:
        return
    continuous = joint.type == "continuous"
    if _flag(section, _WRAPS, where) != continuous:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            f"{where}: {_WRAPS}",
            found=str(not continuous).lower(),
            expected=f"{str(continuous).lower()}, since the embodiment's joint is {joint.type}",
        )
    if continuous and "min_position" in bounds:
        raise _invalid(f"{where}: {_WRAPS}", "true", "no position limits beside it")


def _remarks(overlay: Mapping[str, _Overlay]) -> Iterator[str]:
    for field, why in _UNUSED.items():
        names = [name for name, entry in overlay.items() if field in entry.unused]
        if names:
            yield f"{field} of {', '.join(names)} is not used: {why}"
    for name, entry in overlay.items():
        if entry.off:
            file = entry.source.name
            yield f"{', '.join(entry.off)} of {name} not used: {file} says has_*: false"


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    shown = found if isinstance(found, str) else repr(found)
    return mismatch(ErrorCode.INVALID_ARGUMENT, field, found=shown, expected=expected)
