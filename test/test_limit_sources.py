"""Limits from the embodiment, a URDF and a joint_limits.yaml: the tightest counts."""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from adopted_arm import URDF
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.adoption.urdf import read_urdf
from worldforge_ros.embodiment import Embodiment, Joint, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.safety.sources import LOWEST, with_limits

PUSHT = load_embodiment("pusht")
ELBOW = Joint("elbow", "revolute", -2.0, 2.0, 3.0, 10.0, 12.0, math.inf)
WHEEL = Joint("wheel", "continuous", None, None, 5.0, 10.0, 10.0, 100.0)
PAGE = (Path(__file__).resolve().parents[1] / "docs/limits.md").read_text()
BOUND_NAMES = ("min_position", *LOWEST)
URDF_NAMES = ("lower", "upper", "velocity", "acceleration", "deceleration", "jerk")


def robot(*joints: Joint) -> Embodiment:
    return replace(PUSHT, joints=joints)


def overlay(folder: Path, **joints: Any) -> Path:
    return written(folder, {"joint_limits": joints})


def written(folder: Path, document: Any) -> Path:
    file = folder / "joint_limits.yaml"
    file.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return file


def urdf(folder: Path, *joints: str) -> Path:
    file = folder / "robot.urdf"
    links = '<link name="a"/><link name="b"/>'
    file.write_text(f'<robot name="r">{links}{"".join(joints)}</robot>')
    return file


def element(name: str, kind: str = "revolute", **limit: object) -> str:
    attributes = "".join(f' {key}="{value}"' for key, value in {"effort": 1, **limit}.items())
    inside = f'<parent link="a"/><child link="b"/><limit{attributes}/>'
    return f'<joint name="{name}" type="{kind}">{inside}</joint>'


def refused(code: ErrorCode, *parts: str) -> Any:
    return pytest.raises(WorldForgeError, match=".*".join((f"^{code}: ", *parts)))


def test_without_files_nothing_changes() -> None:
    assert with_limits(PUSHT, None, None) == (PUSHT, ())


def test_each_source_tightens_what_it_can_and_says_so(tmp_path: Path) -> None:
    described = urdf(
        tmp_path, element("elbow", lower=-1.5, upper=2.5, velocity=4, acceleration=8, jerk=200)
    )
    laid_over = overlay(
        tmp_path,
        elbow={
            "has_position_limits": True,
            "min_position": -1.8,
            "max_position": 1.6,
            "has_velocity_limits": True,
            "max_velocity": 2,
            "has_effort_limits": True,
            "max_effort": 20.0,
            "has_deceleration_limits": False,
            "max_deceleration": 0.0,
        },
    )
    merged, said = with_limits(robot(ELBOW), described, laid_over)
    # The URDF gives no deceleration: its acceleration stands for it.
    assert merged.joints == (Joint("elbow", "revolute", -1.5, 1.6, 2.0, 8.0, 8.0, 200.0),)
    assert said == (
        "min_position of elbow is -1.5 rad by robot.urdf; the embodiment pusht gives -2",
        "max_position of elbow is 1.6 rad by joint_limits.yaml; the embodiment pusht gives 2",
        "max_velocity of elbow is 2 rad/s by joint_limits.yaml; the embodiment pusht gives 3",
        "max_acceleration of elbow is 8 rad/s^2 by robot.urdf; the embodiment pusht gives 10",
        "max_deceleration of elbow is 8 rad/s^2 by robot.urdf; the embodiment pusht gives 12",
        "max_jerk of elbow is 200 rad/s^3 by robot.urdf; the embodiment pusht gives no limit",
        "max_effort of elbow is not used: the gate sees no efforts",
        "max_deceleration of elbow not used: joint_limits.yaml says has_*: false",
    )


def test_the_page_says_what_its_file_does(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(joint_limits:.*?)```", PAGE, re.DOTALL)
    (sentences,) = re.findall(r"The gate then says:\n\n```\n(.*?)```", PAGE, re.DOTALL)
    joints = tuple(replace(item.joint, max_jerk=math.inf) for item in read_urdf(URDF).joints)
    arm = replace(PUSHT, name="so101_like", joints=joints)
    merged, said = with_limits(arm, URDF, written(tmp_path, example))
    assert said == tuple(sentences.splitlines())
    assert merged.joints[0] == Joint(
        "shoulder_pan", "revolute", -1.2, 1.91986, 1.0, 5.0, 8.0, math.inf
    )


def test_a_looser_source_changes_nothing(tmp_path: Path) -> None:
    described = urdf(tmp_path, element("elbow", lower=-3, upper=3, velocity=9, acceleration=99))
    loose = {"has_velocity_limits": True, "max_velocity": 100.0}
    assert with_limits(robot(ELBOW), described, overlay(tmp_path, elbow=loose)) == (
        robot(ELBOW),
        (),
    )


def test_soft_limits_are_limits(tmp_path: Path) -> None:
    soft = {
        "has_soft_limits": True,
        "soft_lower_limit": -1.0,
        "soft_upper_limit": 3.0,
        "k_position": 10.0,
        "k_velocity": 10.0,
    }
    hard = {"has_position_limits": True, "min_position": -1.5, "max_position": 1.5}
    merged, said = with_limits(robot(ELBOW), None, overlay(tmp_path, elbow=soft | hard))
    assert (merged.joints[0].min_position, merged.joints[0].max_position) == (-1.0, 1.5)
    assert "k_velocity of elbow is not used: a soft limit is a hard one for the gate" in said


def test_what_nobody_bounds_keeps_the_gate_from_arming(tmp_path: Path) -> None:
    bare = Joint("elbow", "revolute", None, None, None)
    off = dict.fromkeys(
        (
            "has_position_limits",
            "has_velocity_limits",
            "has_acceleration_limits",
            "has_deceleration_limits",
            "has_soft_limits",
        ),
        False,
    )
    merged, said = with_limits(robot(bare), None, overlay(tmp_path, elbow=off))
    assert merged.joints == (bare,)
    assert said == ()
    missing = {f"elbow.{field}" for field in ("min_position", *LOWEST)}
    assert set(limits_of(merged).missing) == missing
    unlimited = overlay(tmp_path, elbow={**off, "has_jerk_limits": False})
    merged, said = with_limits(robot(bare), None, unlimited)
    assert merged.joints[0].max_jerk == math.inf
    assert said == ("max_jerk of elbow is unlimited by joint_limits.yaml",)
    assert "elbow.max_jerk" not in limits_of(merged).missing
    # Another source's jerk is not taken away by it.
    merged, _ = with_limits(robot(replace(ELBOW, max_jerk=50.0)), None, unlimited)
    assert merged.joints[0].max_jerk == 50.0


def test_every_field_of_the_overlay_fills_a_gap(tmp_path: Path) -> None:
    bare = Joint("elbow", "revolute", None, None, None)
    everything = {
        "has_position_limits": True,
        "min_position": -1,
        "max_position": 1,
        "has_velocity_limits": True,
        "max_velocity": 2,
        "has_acceleration_limits": True,
        "max_acceleration": 3,
        "has_deceleration_limits": True,
        "max_deceleration": 4,
        "has_jerk_limits": True,
        "max_jerk": 5,
        "angle_wraparound": False,
    }
    merged, said = with_limits(robot(bare), None, overlay(tmp_path, elbow=everything))
    assert merged.joints == (Joint("elbow", "revolute", -1.0, 1.0, 2.0, 3.0, 4.0, 5.0),)
    assert said[0] == (
        "min_position of elbow is -1 rad by joint_limits.yaml; the embodiment pusht gives none"
    )
    assert limits_of(merged).missing == ()


def test_the_form_of_a_parameter_file(tmp_path: Path) -> None:
    limits = {"elbow": {"has_velocity_limits": True, "max_velocity": 1.0}}
    nested = {"controller_manager": {"ros__parameters": {"joint_limits": limits}}}
    merged, _ = with_limits(robot(ELBOW), None, written(tmp_path, nested))
    assert merged.joints[0].max_velocity == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"has_position_limits": ("min_position", "max_position")},
        {"has_velocity_limits": ("max_velocity",)},
        {"has_acceleration_limits": ("max_acceleration",)},
        {"has_deceleration_limits": ("max_deceleration",)},
        {"has_jerk_limits": ("max_jerk",)},
        {"has_effort_limits": ("max_effort",)},
        {
            "has_soft_limits": (
                "soft_lower_limit",
                "soft_upper_limit",
                "k_position",
                "k_velocity",
            )
        },
    ],
)
@pytest.mark.parametrize("value", [KeyError, math.nan, math.inf, None, "1.0", True, [1.0]])
def test_a_limit_without_a_number_is_refused(
    tmp_path: Path, fields: dict[str, tuple[str, ...]], value: Any
) -> None:
    ((flag, names),) = fields.items()
    good = {name: float(index) + 1.0 for index, name in enumerate(names)}
    for name in names:
        entry = {flag: True, **good, name: value}
        if value is KeyError:
            del entry[name]
        with refused(ErrorCode.INVALID_ARGUMENT, f"joint elbow: {name} is", "a finite number"):
            with_limits(robot(ELBOW), None, overlay(tmp_path, elbow=entry))


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"max_velocity": 1.0}, "has_velocity_limits is missing; expected true or false"),
        ({"has_velocity_limits": 1, "max_velocity": 1.0}, "has_velocity_limits is 1"),
        ({"has_velocity_limits": True, "max_velocity": 0.0}, "max_velocity is 0.0.*above 0"),
        ({"has_velocity_limits": True, "max_velocity": -1.0}, "max_velocity is -1.0"),
        ({"has_vel_limits": True}, "has_vel_limits is an unknown key"),
        (
            {"has_position_limits": True, "min_position": 1.0, "max_position": 1.0},
            "min_position is 1; expected below max_position 1",
        ),
        (None, "is None; expected a mapping"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, entry: Any, named: str) -> None:
    with refused(ErrorCode.INVALID_ARGUMENT, "joint elbow", named):
        with_limits(robot(ELBOW), None, overlay(tmp_path, elbow=entry))


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("joint_limits: [", "not readable as YAML"),
        ("joint_limits:\n  elbow: {}\n  elbow: {}\n", "'elbow' is there twice"),
        ("joint_limits: {elbow: !!python/object/apply:os.getcwd []}", "not readable as YAML"),
        ({"joint_limits": {}}, "expected a mapping of joints"),
        ({"joint_limits": {"elbow": {}}, "scaling": 1}, "one key joint_limits"),
        ({"a": {"ros__parameters": {}}, "b": {}}, "expected joint_limits, or one node"),
        ({"a": {"joint_limits": {"elbow": {}}}}, "one key ros__parameters"),
        ({"a": {"ros__parameters": {"joint_limits": {"elbow": {}}, "rate": 1}}}, "joint_limits"),
        ([], "joint_limits"),
        ("", "joint_limits"),
    ],
)
def test_a_file_that_is_no_overlay(tmp_path: Path, document: Any, named: str) -> None:
    with refused(ErrorCode.INVALID_ARGUMENT, named):
        with_limits(robot(ELBOW), None, written(tmp_path, document))


def test_a_missing_file(tmp_path: Path) -> None:
    with refused(ErrorCode.INVALID_ARGUMENT, "not readable"):
        with_limits(robot(ELBOW), None, tmp_path / "none.yaml")
    with refused(ErrorCode.URDF_INVALID, "not readable"):
        with_limits(robot(ELBOW), tmp_path / "none.urdf", None)


def test_another_robot_is_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.EMBODIMENT_MISMATCH, "joint wrist in", "expected one of elbow"):
        with_limits(robot(ELBOW), None, overlay(tmp_path, wrist={}))
    wrist = urdf(tmp_path, element("wrist", lower=-1, upper=1, velocity=1))
    with refused(ErrorCode.EMBODIMENT_MISMATCH, "joint elbow", "expected one of wrist"):
        with_limits(robot(ELBOW), wrist, None)
    follower = '<joint name="elbow" type="revolute"><parent link="a"/><child link="b"/>'
    follower += '<limit lower="-1" upper="1" effort="1" velocity="1"/><mimic joint="wrist"/>'
    mimic = urdf(tmp_path, element("wrist", lower=-1, upper=1, velocity=1), follower + "</joint>")
    with refused(ErrorCode.EMBODIMENT_MISMATCH, "joint elbow", "it mimics wrist"):
        with_limits(robot(ELBOW), mimic, None)


@pytest.mark.parametrize(("joint", "kind"), [(ELBOW, "continuous"), (WHEEL, "revolute")])
def test_a_joint_of_another_type_is_refused(tmp_path: Path, joint: Joint, kind: str) -> None:
    file = urdf(tmp_path, element(joint.name, kind, lower=-1, upper=1, velocity=1))
    with refused(ErrorCode.EMBODIMENT_MISMATCH, f"type of joint {joint.name}", f"is {kind}"):
        with_limits(robot(joint), file, None)
    turns = {"angle_wraparound": joint.type != "continuous"}
    with refused(ErrorCode.EMBODIMENT_MISMATCH, f"joint {joint.name}: angle_wraparound"):
        with_limits(robot(joint), None, overlay(tmp_path, **{joint.name: turns}))


def test_a_joint_that_turns_without_end(tmp_path: Path) -> None:
    turns = {"has_position_limits": False, "angle_wraparound": True}
    assert with_limits(robot(WHEEL), None, overlay(tmp_path, wheel=turns))[0] == robot(WHEEL)
    both = {**turns, "has_position_limits": True, "min_position": 0.0, "max_position": 1.0}
    with refused(ErrorCode.INVALID_ARGUMENT, "wheel: angle_wraparound", "no position limits"):
        with_limits(robot(WHEEL), None, overlay(tmp_path, wheel=both))


def test_ranges_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    apart = {"has_position_limits": True, "min_position": 2.0, "max_position": 3.0}
    with refused(
        ErrorCode.EMBODIMENT_MISMATCH,
        r"range of joint elbow is empty: from 2 \(joint_limits.yaml\) to 2 \(the embodiment pusht",
    ):
        with_limits(robot(ELBOW), None, overlay(tmp_path, elbow=apart))


@pytest.mark.parametrize(
    ("attribute", "value"), [("acceleration", "nan"), ("deceleration", "0"), ("jerk", "fast")]
)
def test_the_newer_attributes_of_a_urdf_must_be_numbers(
    tmp_path: Path, attribute: str, value: str
) -> None:
    file = urdf(tmp_path, element("elbow", lower=-1, upper=1, velocity=1, **{attribute: value}))
    with refused(ErrorCode.URDF_INVALID, f"joint elbow limit {attribute}", value):
        with_limits(robot(ELBOW), file, None)


ABOVE_ZERO = st.none() | st.floats(0.01, 100.0)
BOUNDS = st.fixed_dictionaries(
    {
        "min_position": st.none() | st.floats(-3.0, -0.001),
        "max_position": st.none() | st.floats(0.001, 3.0),
        "max_velocity": ABOVE_ZERO,
        "max_acceleration": ABOVE_ZERO,
        "max_deceleration": ABOVE_ZERO,
        "max_jerk": ABOVE_ZERO | st.just(math.inf),
    }
)


def tightest(field: str, values: list[float]) -> float | None:
    return (max if field == "min_position" else min)(values, default=None)


def as_urdf(bounds: dict[str, float | None]) -> dict[str, float]:
    """A URDF's ``<limit>`` gives both ends or none, and knows no unlimited jerk."""
    given = {URDF_NAMES[i]: bounds[name] for i, name in enumerate(BOUND_NAMES)}
    if None in (given["lower"], given["upper"]):
        del given["lower"], given["upper"]
    return {
        "velocity": 0.0,
        **{name: value for name, value in given.items() if value not in (None, math.inf)},
    }


def as_overlay(bounds: dict[str, float | None]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if None not in (bounds["min_position"], bounds["max_position"]):
        entry = {"has_position_limits": True}
        entry |= {key: bounds[key] for key in ("min_position", "max_position")}
    for kind in ("velocity", "acceleration", "deceleration", "jerk"):
        value = bounds[f"max_{kind}"]
        entry[f"has_{kind}_limits"] = value not in (None, math.inf)
        if entry[f"has_{kind}_limits"]:
            entry[f"max_{kind}"] = value
    return entry


@settings(deadline=None, max_examples=150)
@given(
    own=BOUNDS, described=BOUNDS, laid_over=BOUNDS, files=st.tuples(st.booleans(), st.booleans())
)
def test_merged_bounds_are_the_tightest_of_all_sources(
    own: dict[str, Any], described: dict[str, Any], laid_over: dict[str, Any], files: Any
) -> None:
    with_urdf, with_overlay = files
    urdf_limits, entry = as_urdf(described), as_overlay(laid_over)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        merged, _ = with_limits(
            robot(Joint("elbow", "revolute", **own)),
            urdf(folder, element("elbow", **urdf_limits)) if with_urdf else None,
            overlay(folder, elbow=entry) if with_overlay else None,
        )
    renamed = dict(zip(BOUND_NAMES, URDF_NAMES, strict=True))
    sources = [
        {field: own[field] for field in BOUND_NAMES},
        {field: urdf_limits.get(renamed[field]) or None for field in BOUND_NAMES}
        if with_urdf
        else {},
        {field: entry.get(field) for field in BOUND_NAMES} if with_overlay else {},
    ]
    for source in sources:
        if source.get("max_deceleration") is None:
            source["max_deceleration"] = source.get("max_acceleration")
    for field in BOUND_NAMES:
        values = [source[field] for source in sources if source.get(field) is not None]
        expected = tightest(field, values)
        if field == "max_jerk" and expected is None and with_overlay:
            expected = math.inf
        assert getattr(merged.joints[0], field) == expected, field
