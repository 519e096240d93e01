"""Is an embodiment file right, and how does it feed a policy?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from worldforge_ros.adoption.checkpoint import (
    POSITION_SUFFIX,
    PolicyFacts,
    Statistics,
    read_policy,
)
from worldforge_ros.embodiment import (
    TODO,
    UNLIMITED,
    Embodiment,
    ImageFeature,
    Joint,
    StateFeature,
    parse_embodiment,
    read_document,
    unfilled,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.safety.reasons import ReasonCode

BEYOND = 0.1
"""How far, as a share of a joint's range, training data may lie outside it: calibrations differ."""
UNUSED = 0.05
"""Share of a joint's range below which training data looks like a wrong unit."""


@dataclass(frozen=True)
class FeatureRow:
    """How one policy feature is fed; ``shape`` as the policy gets it."""

    feature: str
    shape: tuple[int, ...]
    source: str
    conversion: str


@dataclass(frozen=True)
class ActionRow:
    """What one action dimension is. Ranges are text with units; ``trained`` is empty if unknown."""

    index: int
    joint: str
    conversion: str
    limits: str
    limits_in_policy_units: str
    max_velocity: str
    trained: str


@dataclass(frozen=True)
class Problem:
    """Something that a node or the gate would refuse, with the code it would have."""

    code: str
    message: str


@dataclass(frozen=True)
class Findings:
    """The result of a check; the file is right when there is no problem."""

    embodiment: str
    features: tuple[FeatureRow, ...]
    actions: tuple[ActionRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def check_embodiment(file: str | Path, policy: str | Path | None = None) -> Findings:
    """Validate an embodiment file, and against a checkpoint where one is given.

    Everything is collected; only what hides the rest ends the search: a file that cannot be read,
    or a checkpoint that does. The checkpoint is loaded, as the policy node would, when nothing
    speaks against it.

    :param policy: folder of a LeRobot checkpoint.
    """
    try:
        document = read_document(file)
        todo = unfilled(document)
        if todo:
            return _only([_unfilled(field) for field in todo])
        robot = parse_embodiment(document)
    except WorldForgeError as error:
        return _only([_problem(error)])
    problems = [
        Problem(
            str(ReasonCode.LIMITS_INCOMPLETE),
            f"limit {field} is absent; expected a number"
            + (f" or '{UNLIMITED}'" if field.endswith(".max_jerk") else "")
            + ", since the gate does not arm without",
        )
        for field in limits_of(robot).missing
    ]
    facts: PolicyFacts | None = None
    notes: list[str] = []
    if policy is not None:
        try:
            facts = read_policy(policy)
        except WorldForgeError as error:
            problems.append(_problem(error))
    if facts is not None:
        found = [_problem(error) for error in _against(robot, facts)]
        problems += found or _load(robot, facts)
        notes += _notes(robot, facts)
    return Findings(
        embodiment=robot.name,
        features=tuple(_feature_rows(robot)),
        actions=tuple(_action_rows(robot, facts)),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _only(problems: Sequence[Problem]) -> Findings:
    return Findings("", (), (), tuple(problems), ())


def _problem(error: WorldForgeError) -> Problem:
    return Problem(str(error.code), error.message)


def _unfilled(field: str) -> Problem:
    return _problem(
        mismatch(
            ErrorCode.EMBODIMENT_INVALID,
            f"embodiment field {field}",
            found=f"still {TODO}",
            expected="a value that a person fills in",
        )
    )


def _feature_rows(robot: Embodiment) -> Iterator[FeatureRow]:
    for name, feature in robot.policy.features.items():
        if isinstance(feature, ImageFeature):
            camera = robot.cameras[feature.camera]
            shape = (3, camera.height, camera.width)
            yield FeatureRow(name, shape, f"camera {camera.name} on {camera.topic}", "RGB / 255")
            continue
        source = f"{feature.quantity} of {', '.join(feature.joints)}"
        topic = robot.observation.joint_state_topic
        yield FeatureRow(
            name, (len(feature.joints),), f"{source} on {topic}", _conversions(robot, feature)
        )


def _conversions(robot: Embodiment, feature: StateFeature) -> str:
    joints = {joint.name: joint for joint in robot.joints}
    texts = [
        (conversion(joints[name], scale, offset, feature.quantity == "velocity"), name)
        for name, scale, offset in zip(feature.joints, feature.scale, feature.offset, strict=True)
    ]
    groups = [(text, list(items)) for text, items in groupby(texts, itemgetter(0))]
    if len(groups) == 1:
        return texts[0][0]
    return "; ".join(f"{', '.join(name for _, name in items)}: {text}" for text, items in groups)


def _action_rows(robot: Embodiment, facts: PolicyFacts | None) -> Iterator[ActionRow]:
    action = robot.policy.action
    trained = facts.statistics.get("action") if facts is not None else None
    for index, joint in enumerate(robot.joints):
        scale, offset = action.scale[index], action.offset[index]
        unit = _si(joint)
        low, high = joint.min_position, joint.max_position
        own, seen = "", ""
        if low is not None and high is not None:
            ends = (low * scale + offset, high * scale + offset)
            own = _span(min(ends), max(ends), "")
        if trained is not None and index < len(trained.low):
            seen = _span(*_extent(trained, index, scale, offset), unit)
            seen += "" if trained.exact else " (mean and deviation)"
        yield ActionRow(
            index=index,
            joint=joint.name,
            conversion=conversion(joint, scale, offset),
            limits=f"{_bound(low)} to {_bound(high)} {unit}",
            limits_in_policy_units=own if action.meaning == "absolute" else "",
            max_velocity=f"{_bound(joint.max_velocity)} {unit}/s",
            trained=seen,
        )


def conversion(joint: Joint, scale: float, offset: float, velocity: bool = False) -> str:
    """``policy value = ...`` for one joint, with the name of the unit where it has one."""
    unit = f"{_si(joint)}{'/s' if velocity else ''}"
    name = "" if velocity and offset else _unit_name(joint, scale, offset, velocity)
    text = unit if scale == 1.0 else f"{unit} * {scale:.6g}"
    if offset:
        text += f" {'+' if offset > 0 else '-'} {abs(offset):.6g}"
    return f"{text} ({name})" if name else text


def _unit_name(joint: Joint, scale: float, offset: float, velocity: bool) -> str:
    per_second = " a second" if velocity else ""
    if math.isclose(offset, 0.0, abs_tol=1e-9):
        known = {"m": {1e3: "mm", 1e2: "cm"}, "rad": {180.0 / math.pi: "degrees"}}[_si(joint)]
        for factor, name in known.items():
            if math.isclose(abs(scale), factor, rel_tol=1e-4):
                return f"{name}{per_second}{', reversed' if scale < 0 else ''}"
    low, high = joint.min_position, joint.max_position
    if velocity or low is None or high is None:
        return ""
    ends = (low * scale + offset, high * scale + offset)
    for least, greatest in ((-100, 100), (0, 100), (-1, 1), (0, 1)):
        slack = 0.01 * (greatest - least)
        if math.isclose(ends[0], least, abs_tol=slack) and math.isclose(
            ends[1], greatest, abs_tol=slack
        ):
            return f"{least} to {greatest} of its range"
    return ""


def _against(robot: Embodiment, facts: PolicyFacts) -> Iterator[WorldForgeError]:
    """What in the checkpoint's files contradicts the embodiment."""
    policy = f"policy {facts.folder.name}"
    joints = list(robot.joint_names)
    if facts.action_size != len(joints):
        yield mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"action of {policy}",
            found=f"{facts.action_size} values",
            expected=f"{len(joints)}, one for each joint of {robot.name} {joints}",
        )
        return
    named = [name.removesuffix(POSITION_SUFFIX) for name in facts.names.get("action", ())]
    if set(named) == set(joints) and named != joints:
        yield mismatch(
            ErrorCode.JOINT_NAMES_MISMATCH,
            "order of the joints",
            found=joints,
            expected=f"{named} as in {facts.names_source}",
        )
    step = robot.policy.step
    if facts.step is not None and not math.isclose(step, facts.step, rel_tol=0.01):
        yield mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            "policy.step",
            found=f"{step:g} s",
            expected=f"{facts.step:g} s, {facts.step_source}",
        )
    yield from _feature_mismatches(robot, facts, policy)
    yield from _unit_mismatches(robot, facts, policy)


def _feature_mismatches(
    robot: Embodiment, facts: PolicyFacts, policy: str
) -> Iterator[WorldForgeError]:
    if not facts.plain:
        # A step of its own may make features of others; only loading it tells.
        return
    supplied = {facts.rename.get(row.feature, row.feature): row for row in _feature_rows(robot)}
    for name, feature in facts.inputs.items():
        row = supplied.get(name)
        if row is None or row.shape != feature.shape:
            yield mismatch(
                ErrorCode.POLICY_FEATURE_MISMATCH,
                f"input {name} of {policy}",
                found="not in policy.features" if row is None else f"fed with shape {row.shape}",
                expected=f"shape {feature.shape}",
            )


def _unit_mismatches(
    robot: Embodiment, facts: PolicyFacts, policy: str
) -> Iterator[WorldForgeError]:
    for field, joint, extent, meaning, exact in _trained(robot, facts):
        low, high = joint.min_position, joint.max_position
        if low is None or high is None:
            continue
        span = high - low
        slack = BEYOND * span
        if meaning == "relative":
            low, high = -span, span
        if not _possible(extent, low - slack, high + slack, exact):
            unit = _si(joint)
            yield mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"{field} of {joint.name} in the training data of {policy}",
                found=f"{_span(*extent, unit)} by the file's scale and offset",
                expected=f"within {_span(low, high, unit)}: is the policy's unit stated right?",
            )


def _possible(extent: tuple[float, float], low: float, high: float, exact: bool) -> bool:
    """Whether data of this extent can lie between ``low`` and ``high``.

    Of an extent that is mean and deviation: what stays within bounds has at most the variance of
    the two bounds themselves, (mean - low) (high - mean) (Bhatia and Davis 2000).
    """
    if exact:
        return low <= extent[0] and extent[1] <= high
    mean, deviation = (extent[0] + extent[1]) / 2, (extent[1] - extent[0]) / 2
    return low <= mean <= high and deviation**2 <= (mean - low) * (high - mean)


def _trained(
    robot: Embodiment, facts: PolicyFacts
) -> Iterator[tuple[str, Joint, tuple[float, float], str, bool]]:
    """Field, joint, extent in SI, whether that is absolute or relative, and whether it is exact;
    known ones only.
    """
    joints = {joint.name: joint for joint in robot.joints}
    action = robot.policy.action
    vectors: list[tuple[str, str, Sequence[str], Sequence[float], Sequence[float], str]] = [
        ("action", "action", robot.joint_names, action.scale, action.offset, action.meaning)
    ]
    vectors += [
        (name, facts.rename.get(name, name), item.joints, item.scale, item.offset, "absolute")
        for name, item in robot.policy.features.items()
        if isinstance(item, StateFeature) and item.quantity == "position"
    ]
    for field, key, names, scales, offsets, meaning in vectors:
        statistics = facts.statistics.get(key)
        if statistics is None or len(statistics.low) != len(names):
            continue
        for index, (name, scale, offset) in enumerate(zip(names, scales, offsets, strict=True)):
            extent = _extent(statistics, index, scale, offset)
            yield field, joints[name], extent, meaning, statistics.exact


def _notes(robot: Embodiment, facts: PolicyFacts) -> Iterator[str]:
    yield f"the policy is of type {facts.type} and looks at {facts.history} observation(s)"
    middle = {
        joint.name: round(sum(extent) / 2, 3)
        for field, joint, extent, _, _ in _trained(robot, facts)
        if field != "action"
    }
    if set(middle) == set(robot.joint_names):
        start = [middle[name] for name in robot.joint_names]
        yield f"the middle of the states that it was trained on, in m or rad: {start}"
    for field, joint, extent, meaning, _ in _trained(robot, facts):
        if meaning == "relative" or joint.min_position is None or joint.max_position is None:
            continue
        used = (extent[1] - extent[0]) / (joint.max_position - joint.min_position)
        if used < UNUSED:
            yield (
                f"{field} of {joint.name} covers {used:.1%} of the joint's range in the training "
                "data: is the policy's unit stated right?"
            )
    own = {facts.rename.get(name, name): name for name in robot.policy.features}
    for key, name in own.items():
        if key not in facts.inputs:
            yield f"feature {name} is no input of the policy itself; a processor step may read it"


def _load(robot: Embodiment, facts: PolicyFacts) -> list[Problem]:
    from worldforge_ros.policies.lerobot import load_lerobot_policy

    try:
        load_lerobot_policy(facts.folder, robot)
    except WorldForgeError as error:
        return [_problem(error)]
    return []


def _extent(statistics: Statistics, index: int, scale: float, offset: float) -> tuple[float, float]:
    ends = np.array([statistics.low[index], statistics.high[index]])
    low, high = sorted(((ends - offset) / scale).tolist())
    return float(low), float(high)


def _si(joint: Joint) -> str:
    return "m" if joint.type == "prismatic" else "rad"


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _span(low: float, high: float, unit: str) -> str:
    return f"{low:.4g} to {high:.4g} {unit}".rstrip()
