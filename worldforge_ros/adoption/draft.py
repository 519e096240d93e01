"""The first version of an embodiment file: what can be derived, and what a person must fill in.

Nothing is guessed that could move a robot wrongly: topics, units, the meaning of actions and, where
no file tells them, the order of joints and the step are left as :data:`TODO`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from worldforge_ros.adoption.checkpoint import POSITION_SUFFIX, Feature, PolicyFacts
from worldforge_ros.adoption.urdf import UrdfJoint, UrdfRobot
from worldforge_ros.embodiment import TODO, UNLIMITED, Joint, unfilled
from worldforge_ros.errors import ErrorCode, mismatch

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
_UNITS = """\
  # Policy value = SI value * scale + offset: one number for all joints, or a list in their order.
  #   radians, metres                   scale 1, offset 0
  #   degrees                           scale 57.29577951308232 (180 / pi), offset 0
  #   -100 to 100 for a to b rad or m   scale 200 / (b - a), offset -100 * (a + b) / (b - a)
  #   0 to 100 for a to b rad or m      scale 100 / (b - a), offset -100 * a / (b - a)
  # LeRobot's SO-100 and SO-101 record degrees or -100 to 100 of the calibrated range, and 0 to 100
  # for the gripper, as the recording was configured: no file of a checkpoint tells which."""

_DYNAMICS = f"""\
# max_acceleration: what the drive is set to or its data sheet says, or how fast the velocities in
#   joint_states change in the fastest motion that you allow. The gate counts on it to stop a joint
#   before its limit: rather too low than too high. max_deceleration is the same where left out.
# max_jerk: a number from the same places, or `{UNLIMITED}`: the gate then checks no jerk."""


@dataclass(frozen=True)
class Draft:
    """The YAML text, the fields in it that a person must fill in, and the joints left out."""

    text: str
    joints: tuple[str, ...]
    todo: tuple[str, ...]
    left_out: Mapping[str, str]


def draft_embodiment(
    robot: UrdfRobot, policy: PolicyFacts, joints: Sequence[str] = (), name: str = ""
) -> Draft:
    """Write the embodiment of ``robot`` for ``policy``.

    :param joints: the joints in the order of the policy's action, where a person states it; empty
        takes the order from the data set's names, or the URDF's order with every name marked.
    :param name: name of the embodiment; empty takes the robot's.
    :raises WorldForgeError: ``ACTION_DIM_MISMATCH`` when joints and actions differ in number,
        ``INVALID_ARGUMENT`` for a joint that the URDF does not have, ``POLICY_FEATURE_MISMATCH``
        for actions that are not positions.
    """
    order, sure = _order(robot, policy, joints)
    names = tuple(item.joint.name for item in order)
    lines = [
        f"# Drafted from the URDF of {_plain(robot.name)} and the {_plain(policy.type)} policy in "
        f"{_plain(policy.folder)}.",
        f"# Every {TODO} is for a person: no node takes this file while one is left.",
        f"name: {_scalar(name or robot.name)}",
        f"task: {TODO}  # what the robot is to do, in words; policies that take language read it",
        "",
        *_joint_lines(robot, policy, order, sure),
        "",
        *_camera_lines(policy),
        "",
        *_observation_lines(policy),
        "",
        "tracking:",
        "  law: perfect  # only a world model's relative actions need to know better",
        "",
        *_policy_lines(policy, names, bool(joints)),
        "",
        "# A world_model section is needed only where candidates are scored; the planners 'first'",
        "# and 'random' do without. config/embodiments/pusht.yaml shows one.",
    ]
    text = "\n".join(lines) + "\n"
    left_out = {
        **robot.left_out,
        **{
            item.joint.name: "the policy does not move it"
            for item in robot.joints
            if item.joint.name not in names
        },
    }
    return Draft(text, names, unfilled(yaml.safe_load(text)), left_out)


def _order(
    robot: UrdfRobot, policy: PolicyFacts, chosen: Sequence[str]
) -> tuple[list[UrdfJoint], bool]:
    """The joints of the contract, and whether their order is known to be the policy's."""
    movable = {item.joint.name: item for item in robot.joints}
    own = policy.names.get("action", ())
    if any(name.endswith((".vel", ".effort", ".torque")) for name in own):
        raise mismatch(
            ErrorCode.POLICY_FEATURE_MISMATCH,
            f"action of policy {policy.folder.name}",
            found=list(own),
            expected="positions, since the contract's actions are set-points",
        )
    from_data = [name.removesuffix(POSITION_SUFFIX) for name in own]
    for joint in chosen:
        if joint not in movable:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "joint",
                found=f"'{joint}'",
                expected=f"one of the joints that move: {', '.join(movable)}",
            )
    if len(set(chosen)) != len(chosen):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "joints", found=list(chosen), expected="no name twice"
        )
    sure = bool(chosen) or (bool(from_data) and all(name in movable for name in from_data))
    names = list(chosen) or (from_data if sure else list(movable))
    if len(names) != policy.action_size:
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"action of policy {policy.folder.name}",
            found=f"{policy.action_size} values{f' {list(own)}' if own else ''}",
            expected=f"{len(names)}, one for each of {names}; name the joints that it moves, in "
            "the order of its action, with --joints",
        )
    return [movable[name] for name in names], sure


def _joint_lines(
    robot: UrdfRobot, policy: PolicyFacts, order: Sequence[UrdfJoint], sure: bool
) -> Iterator[str]:
    yield "# Radians, metres and per second, from the URDF. Exporters write placeholders: compare"
    yield "# every limit with the robot, the velocities above all; they are what the gate allows."
    yield _DYNAMICS
    own = policy.names.get("action", ())
    if not sure:
        yield "# In the URDF's order: the policy's files do not name its actions as the URDF does."
        yield f"# Put the joints in the order of its action, then remove {TODO} from each name."
        if own:
            yield f"# The policy's names: {_plain(', '.join(own))}"
    for name, reason in robot.left_out.items():
        yield f"# Left out: {_plain(name)}, {_plain(reason)}."
    yield "joints:"
    for item in order:
        joint = item.joint
        yield f"  - name: {_scalar(joint.name if sure else f'{TODO} {joint.name}')}"
        yield f"    type: {joint.type}"
        note = _comment("; ".join(item.notes))
        if joint.type == "continuous" and joint.min_position is None:
            yield f"    max_velocity: {_number(joint.max_velocity)}{note}"
        else:
            yield f"    min_position: {_number(joint.min_position)}{note}"
            yield f"    max_position: {_number(joint.max_position)}"
            yield f"    max_velocity: {_number(joint.max_velocity)}"
        yield from _dynamic_lines(joint)


def _dynamic_lines(joint: Joint) -> Iterator[str]:
    """Few URDFs have these, and nothing in the others tells them."""
    braking, speeding_up = joint.max_deceleration, joint.max_acceleration
    yield f"    max_acceleration: {TODO if speeding_up is None else repr(speeding_up)}"
    if braking is not None and braking != speeding_up:
        yield f"    max_deceleration: {braking!r}"
    yield f"    max_jerk: {TODO if joint.max_jerk is None else repr(joint.max_jerk)}"


def _camera_lines(policy: PolicyFacts) -> Iterator[str]:
    yield "# A picture of another size than the policy was trained with is refused, not resized."
    yield "cameras:"
    cameras = _cameras(policy)
    for camera, feature in cameras.items():
        yield f"  {_scalar(camera)}:"
        yield f"    topic: {TODO}  # sensor_msgs/Image, such as camera/{_plain(camera)}/image_raw"
        channels_first = len(feature.shape) == 3 and feature.shape[0] == 3
        yield f"    width: {feature.shape[2] if channels_first else TODO}"
        yield f"    height: {feature.shape[1] if channels_first else TODO}"
    if not cameras:
        yield "  camera:  # the policy has none, but an observation is taken when a picture arrives"
        yield from (f"    {key}: {TODO}" for key in ("topic", "width", "height"))


def _observation_lines(policy: PolicyFacts) -> Iterator[str]:
    yield "observation:"
    yield (
        f"  joint_state_topic: {TODO}  # sensor_msgs/JointState with velocities, such as "
        "joint_states"
    )
    yield "  max_age: 0.5  # s, older than this is refused"
    tolerance = TODO if policy.step is None else f"{min(0.05, policy.step / 2):.4g}"
    yield f"  tolerance: {tolerance}  # s, from a picture to the joint state and to other cameras"


def _policy_lines(policy: PolicyFacts, names: Sequence[str], stated: bool) -> Iterator[str]:
    yield "policy:"
    if policy.step is None:
        yield f"  step: {TODO}  # s between two actions: 1 / frames a second of the training data"
    else:
        yield f"  step: {policy.step!r}  # s between two actions: {_plain(policy.step_source)}"
    yield _UNITS
    yield "  features:"
    cameras = {feature: camera for camera, feature in _camera_features(policy).items()}
    robot_name = {value: key for key, value in policy.rename.items()}
    for own, feature in policy.inputs.items():
        yield f"    {_scalar(robot_name.get(own, own))}:"
        if own in cameras:
            yield f"      camera: {_scalar(cameras[own])}"
        elif feature.type == "STATE" and len(feature.shape) == 1:
            yield from _state_lines(own, feature, policy, names, stated)
        else:
            yield (
                f"      joints: {TODO}  # shape {list(feature.shape)} of {_plain(feature.type)}; "
                "delete this feature if the checkpoint's own processors make it"
            )
    yield "  action:"
    yield (
        f"    meaning: {TODO}  # absolute: set-points; relative: distances from where the joints "
        "are at the observation"
    )
    yield f"    scale: {TODO}"
    yield f"    offset: {TODO}"
    statistics = policy.statistics.get("action")
    if statistics is not None:
        yield "    # What it was trained on, in its own units:"
        own_names = policy.names.get("action") or [f"action {k}" for k in range(policy.action_size)]
        for label, low, high in zip(own_names, statistics.low, statistics.high, strict=True):
            yield f"    #   {_plain(label)}: {low:.5g} to {high:.5g}"


def _state_lines(
    key: str, feature: Feature, policy: PolicyFacts, names: Sequence[str], stated: bool
) -> Iterator[str]:
    own = policy.names.get(key, ())
    suffixes = {name.rpartition(".")[2] if "." in name else "" for name in own}
    quantity = {"pos": "position", "vel": "velocity"}.get("".join(suffixes), TODO)
    bare = [name.rpartition(".")[0] if "." in name else name for name in own]
    if bare and all(name in names for name in bare):
        listed = _list(bare)
    elif not own and stated and feature.shape[0] == len(names):
        listed = _list(names)
    else:
        called = f", called {', '.join(own)}" if own else ""
        listed = f"{TODO}  # {feature.shape[0]} joints in the policy's order{_plain(called)}"
    yield f"      joints: {listed}"
    yield f"      quantity: {quantity}{'  # position or velocity' if quantity == TODO else ''}"
    yield f"      scale: {TODO}"
    yield f"      offset: {TODO}"


def _cameras(policy: PolicyFacts) -> dict[str, Feature]:
    return {name: policy.inputs[key] for name, key in _camera_features(policy).items()}


def _camera_features(policy: PolicyFacts) -> dict[str, str]:
    """Camera name to feature name: the last part of it, or all where two are the same."""
    keys = [key for key, feature in policy.inputs.items() if feature.type == "VISUAL"]
    last = [key.rpartition(".")[2] for key in keys]
    return {
        name if last.count(name) == 1 else key.replace(".", "_"): key
        for name, key in zip(last, keys, strict=True)
    }


def _number(value: float | None) -> str:
    if value is None:
        return "null  # absent: the gate does not arm this joint without it"
    return repr(float(value))


def _comment(text: str) -> str:
    return f"  # {_plain(text)}" if text else ""


def _plain(text: object) -> str:
    """For a comment: on one line, and nothing that YAML does not allow there."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _scalar(text: str) -> str:
    """On one line, and read back as the same text."""
    if _WORD.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=10**6)).rstrip("\n")


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(_scalar(name) for name in names)}]"
