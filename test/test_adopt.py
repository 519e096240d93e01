"""From a URDF and a checkpoint to an embodiment file: the draft, its check, and the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from adopted_arm import CENTRE, FILLED_IN, JOINTS, URDF, fill_in, write_dataset, write_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros import cli
from worldforge_ros.adoption.check import Findings, check_embodiment, conversion
from worldforge_ros.adoption.checkpoint import Feature, PolicyFacts, read_policy
from worldforge_ros.adoption.draft import draft_embodiment
from worldforge_ros.adoption.urdf import UrdfJoint, UrdfRobot, read_urdf
from worldforge_ros.embodiment import (
    Joint,
    StateFeature,
    load_embodiment,
    parse_embodiment,
    unfilled,
)
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import share_dir

ROOT = Path(__file__).resolve().parents[1]


def urdf(tmp_path: Path, *joints: str) -> Path:
    file = tmp_path / "robot.urdf"
    file.write_text(f'<robot name="arm"><link name="a"/><link name="b"/>{"".join(joints)}</robot>')
    return file


def joint(name: str, kind: str, inside: str = "") -> str:
    ends = '<parent link="a"/><child link="b"/>'
    return f'<joint name="{name}" type="{kind}">{ends}{inside}</joint>'


def limit(lower: object, upper: object, velocity: object = 2) -> str:
    return f'<limit lower="{lower}" upper="{upper}" velocity="{velocity}" effort="1"/>'


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    return write_policy(tmp_path_factory.mktemp("checkpoints") / "act")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """The configuration of a policy without its weights: all that a draft needs."""
    folder = tmp_path / "described"
    folder.mkdir()
    picture = {"type": "VISUAL", "shape": [3, 48, 64]}
    config = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [6]},
            "observation.images.front": picture,
        },
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(code: ErrorCode, *parts: str) -> Any:
    return pytest.raises(WorldForgeError, match=".*".join((f"^{code}: ", *parts)))


def draft(described: Path, **options: Any) -> dict[str, Any]:
    text = draft_embodiment(read_urdf(URDF), read_policy(described), **options).text
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_the_example_arm(capfd: pytest.CaptureFixture[str]) -> None:
    robot = read_urdf(URDF)
    assert robot.name == "so101_like"
    assert tuple(item.joint.name for item in robot.joints) == JOINTS
    assert robot.joints[0].joint == Joint(
        "shoulder_pan", "revolute", -1.91986, 1.91986, 3.0, 20.0, 20.0, None
    )
    # <limit> says -0.17 to 1.75, <safety_controller> 0 to 1.7.
    assert robot.joints[5].joint == Joint("gripper", "revolute", 0.0, 1.7, 3.0, 20.0, 20.0, None)
    assert robot.left_out == {}
    assert capfd.readouterr() == ("", ""), "the parser's remarks on <ros2_control> stay inside"


@pytest.mark.parametrize(
    ("soft", "expected"),
    [
        ((-2.0, 0.5), (-1.0, 0.5)),
        ((-0.5, 2.0), (-0.5, 1.0)),
        ((-2.0, 2.0), (-1.0, 1.0)),
        ((0.0, 0.0), (-1.0, 1.0)),
    ],
)
def test_the_tighter_bound_counts(
    tmp_path: Path, soft: tuple[float, float], expected: tuple[float, float]
) -> None:
    controller = (
        f'<safety_controller k_velocity="1" soft_lower_limit="{soft[0]}" '
        f'soft_upper_limit="{soft[1]}"/>'
    )
    file = urdf(tmp_path, joint("j", "prismatic", limit(-1, 1) + controller))
    found = read_urdf(file).joints[0].joint
    assert (found.min_position, found.max_position) == expected


def test_what_does_not_move_by_itself_is_left_out_and_said(tmp_path: Path) -> None:
    file = urdf(
        tmp_path,
        joint("turn", "continuous", limit(0, 0)),
        joint("mount", "fixed"),
        joint("left_finger", "prismatic", limit(0, 1)),
        joint("right_finger", "prismatic", limit(0, 1) + '<mimic joint="left_finger"/>'),
        joint("base", "floating"),
    )
    robot = read_urdf(file)
    assert [item.joint.name for item in robot.joints] == ["turn", "left_finger"]
    assert robot.joints[0].joint == Joint("turn", "continuous", None, None, 2.0)
    assert robot.left_out == {
        "right_finger": "it mimics left_finger",
        "base": "no joint controller moves a joint of type floating",
    }


def test_what_the_file_does_not_say_is_not_invented(tmp_path: Path) -> None:
    file = urdf(
        tmp_path, joint("bare", "revolute"), joint("slow", "revolute", limit(-1, 1, velocity=0))
    )
    bare, slow = read_urdf(file).joints
    assert bare.joint == Joint("bare", "revolute", None, None, None)
    assert bare.notes == ("the URDF gives no range", "the URDF gives no velocity")
    assert slow.joint == Joint("slow", "revolute", -1.0, 1.0, None)


@pytest.mark.parametrize(
    ("attributes", "bounds"),
    [
        ("", {"max_acceleration": "TODO", "max_jerk": "TODO"}),
        ('deceleration="7"', {"max_acceleration": "TODO", "max_deceleration": 7.0}),
        ('acceleration="5" deceleration="5.0" jerk="90"', {"max_acceleration": 5.0}),
        (
            'acceleration="5" deceleration="7" jerk="90"',
            {"max_acceleration": 5.0, "max_deceleration": 7.0, "max_jerk": 90.0},
        ),
    ],
)
def test_accelerations_are_drafted_from_a_urdf_that_has_them(
    described: Path, tmp_path: Path, attributes: str, bounds: dict[str, Any]
) -> None:
    limits = limit(-1, 1).replace("/>", f" {attributes}/>")
    facts = replace(read_policy(described), action_size=1)
    made = draft_embodiment(read_urdf(urdf(tmp_path, joint("j", "revolute", limits))), facts, ["j"])
    (entry,) = yaml.safe_load(made.text)["joints"]
    keys = ("max_acceleration", "max_deceleration", "max_jerk")
    expected = {"max_jerk": 90.0 if "jerk" in attributes else "TODO", **bounds}
    assert {key: entry[key] for key in keys if key in entry} == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("<robot", "not readable"),
        ("<sdf/>", "not readable"),
        ('<robot name="r" xmlns:xacro="x"><xacro:arg name="z"/></robot>', "a xacro file"),
        ('<robot name="r"/>', "joints is none that move"),
        (f'<robot name="r">{joint("j", "spherical")}</robot>', "spherical"),
        (f'<robot name="r">{joint("j", "revolute", limit(1, -1))}</robot>', "joint j limits"),
        (f'<robot name="r">{joint("j", "revolute", limit(0, "nan"))}</robot>', "j limit upper"),
        (f'<robot name="r">{joint("j", "revolute", limit(0, 1, -2))}</robot>', "velocity"),
        (f'<robot name="r">{joint("j", "revolute", limit(0, 1)) * 2}</robot>', "duplicates"),
    ],
)
def test_a_file_that_is_no_robot(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "r.urdf"
    file.write_text(content)
    with refused(ErrorCode.URDF_INVALID, named):
        read_urdf(file)
    with refused(ErrorCode.URDF_INVALID, "not readable"):
        read_urdf(tmp_path / "none.urdf")


def test_what_a_person_must_say_is_left_open_and_nothing_else(
    described: Path, dataset: Path
) -> None:
    made = draft_embodiment(read_urdf(URDF), read_policy(described, dataset))
    assert made.joints == JOINTS
    assert made.todo == (
        "task",
        *(f"joints[{index}].max_jerk" for index in range(6)),
        "cameras.front.topic",
        "observation.joint_state_topic",
        "policy.features.observation.state.scale",
        "policy.features.observation.state.offset",
        "policy.action.meaning",
        "policy.action.scale",
        "policy.action.offset",
    )
    document = yaml.safe_load(made.text)
    assert document["policy"]["step"] == 0.05
    assert document["policy"]["features"]["observation.state"]["joints"] == list(JOINTS)
    assert document["policy"]["features"]["observation.state"]["quantity"] == "position"
    assert document["policy"]["features"]["observation.images.front"] == {"camera": "front"}
    assert (document["cameras"]["front"]["width"], document["cameras"]["front"]["height"]) == (
        64,
        48,
    )
    assert document["joints"][5] == {
        "name": "gripper",
        "type": "revolute",
        "min_position": 0.0,
        "max_position": 1.7,
        "max_velocity": 3.0,
        "max_acceleration": 20.0,
        "max_jerk": "TODO",
    }


def test_no_node_takes_it_until_the_last_gap_is_filled(
    described: Path, dataset: Path, tmp_path: Path
) -> None:
    text = draft_embodiment(read_urdf(URDF), read_policy(described, dataset)).text
    steps = [gap for gap in FILLED_IN if gap in text]
    assert len(steps) == len(FILLED_IN) - 1, "all but the second camera"
    for gap in steps:
        with refused(ErrorCode.EMBODIMENT_INVALID, "embodiment field .* is still TODO"):
            parse_embodiment(yaml.safe_load(text))
        text = text.replace(gap, FILLED_IN[gap])
    robot = parse_embodiment(yaml.safe_load(text))
    assert robot.joint_names == JOINTS
    assert robot.world_model is None


def test_the_data_sets_names_give_the_order(described: Path, tmp_path: Path) -> None:
    order = (*JOINTS[3:], *JOINTS[:3])
    dataset = write_dataset(tmp_path / "set", order)
    assert draft_embodiment(read_urdf(URDF), read_policy(described, dataset)).joints == order


def test_an_order_that_nobody_told_is_marked_on_every_joint(
    described: Path, tmp_path: Path
) -> None:
    strange = write_dataset(tmp_path / "set", tuple("abcdef"))
    for facts in (read_policy(described), read_policy(described, strange)):
        document = yaml.safe_load(draft_embodiment(read_urdf(URDF), facts).text)
        assert [entry["name"] for entry in document["joints"]] == [
            f"TODO {name}" for name in JOINTS
        ]
        assert document["policy"]["features"]["observation.state"]["joints"] == "TODO"
    assert document["policy"]["step"] == 0.05, "known from the data set all the same"


def test_a_person_may_state_the_order(described: Path) -> None:
    order = tuple(reversed(JOINTS))
    document = draft(described, joints=order, name="mine")
    assert [entry["name"] for entry in document["joints"]] == list(order)
    assert document["policy"]["features"]["observation.state"]["joints"] == list(order)
    assert document["policy"]["features"]["observation.state"]["quantity"] == "TODO"
    assert document["policy"]["step"] == "TODO"
    assert document["observation"]["tolerance"] == "TODO"
    assert document["name"] == "mine"


def test_the_number_of_joints_must_be_the_number_of_actions(
    described: Path, tmp_path: Path
) -> None:
    facts = read_policy(described)
    with refused(ErrorCode.ACTION_DIM_MISMATCH, "6 values", "expected 2", "--joints"):
        draft_embodiment(read_urdf(URDF), facts, ["gripper", "wrist_roll"])
    with refused(ErrorCode.INVALID_ARGUMENT, "'elbow'", "elbow_flex"):
        draft_embodiment(read_urdf(URDF), facts, ["elbow"])
    with refused(ErrorCode.INVALID_ARGUMENT, "no name twice"):
        draft_embodiment(read_urdf(URDF), facts, ["gripper"] * 6)


def test_joints_that_the_policy_does_not_move_are_named(described: Path) -> None:
    facts = replace(read_policy(described), action_size=5)
    made = draft_embodiment(read_urdf(URDF), facts, JOINTS[:5])
    assert made.left_out == {"gripper": "the policy does not move it"}


def test_velocities_as_actions_are_refused(described: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", suffix=".vel")
    with refused(ErrorCode.POLICY_FEATURE_MISMATCH, "shoulder_pan.vel", "positions"):
        draft_embodiment(read_urdf(URDF), read_policy(described, dataset))


def test_a_missing_limit_is_null_and_a_hostile_name_stays_a_name(
    described: Path, tmp_path: Path
) -> None:
    file = urdf(tmp_path, joint("no: {bare", "revolute"), joint("turn", "continuous"))
    facts = replace(read_policy(described), action_size=2, folder=Path("a\nname: evil"))
    made = draft_embodiment(read_urdf(file), facts, ["no: {bare", "turn"])
    document = yaml.safe_load(made.text)
    assert document["name"] == "arm"
    assert document["joints"][0] == {
        "name": "no: {bare",
        "type": "revolute",
        "min_position": None,
        "max_position": None,
        "max_velocity": None,
        "max_acceleration": "TODO",
        "max_jerk": "TODO",
    }
    assert document["joints"][1]["max_velocity"] is None


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(deadline=None)
@given(camera=NAMES, names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_any_name_comes_back_as_it_was(camera: str, names: list[str]) -> None:
    joints = tuple(UrdfJoint(Joint(name, "revolute", -1.0, 1.0, 1.0), ()) for name in names)
    inputs = {
        "observation.state": Feature("STATE", (len(names),)),
        f"observation.{camera}": Feature("VISUAL", (3, 8, 8)),
    }
    facts = PolicyFacts(
        folder=Path("p"),
        type="act",
        inputs=inputs,
        action_size=len(names),
        history=1,
        step=0.1,
        step_source="",
        names={},
        names_source="",
        rename={},
        plain=True,
        statistics={},
    )
    made = draft_embodiment(UrdfRobot("arm", joints, {}), facts, names)
    document = yaml.safe_load(made.text)
    assert [entry["name"] for entry in document["joints"]] == names
    features = document["policy"]["features"]
    assert features["observation.state"]["joints"] == names
    assert set(features) == set(inputs)
    assert set(document["cameras"]) == {features[f"observation.{camera}"]["camera"]}


def test_two_cameras_with_one_last_name(described: Path) -> None:
    facts = read_policy(described)
    picture = facts.inputs["observation.images.front"]
    inputs = {"left.front": picture, "right.front": picture}
    made = yaml.safe_load(
        draft_embodiment(read_urdf(URDF), replace(facts, inputs=inputs), JOINTS).text
    )
    assert set(made["cameras"]) == {"left_front", "right_front"}
    assert made["policy"]["features"]["left.front"] == {"camera": "left_front"}


def test_the_training_configuration_gives_step_and_data_set(described: Path, dataset: Path) -> None:
    training = {"env": {"fps": 10}, "dataset": {"repo_id": "x/y", "root": str(dataset)}}
    (described / "train_config.json").write_text(json.dumps(training))
    facts = read_policy(described)
    assert facts.step == 0.05, "the data set, not the environment"
    assert facts.names["action"][0] == "shoulder_pan.pos"
    training["dataset"]["root"] = "/nowhere"  # type: ignore[index]
    (described / "train_config.json").write_text(json.dumps(training))
    assert read_policy(described).step == 0.1


def test_statistics_and_types_of_a_real_checkpoint(policy: Path) -> None:
    facts = read_policy(policy)
    assert (facts.type, facts.history, facts.action_size, facts.plain) == ("act", 1, 6, True)
    np.testing.assert_allclose(facts.statistics["action"].low, np.array(CENTRE) - 30.0)
    np.testing.assert_allclose(facts.statistics["action"].high, np.array(CENTRE) + 30.0)
    assert "observation.images.front" not in facts.statistics


def test_the_shipped_policy_makes_features_of_its_own() -> None:
    facts = read_policy(share_dir() / "models/pusht/policy")
    assert not facts.plain
    assert facts.inputs["observation.environment_state"].shape == (16,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"input_features": {}}, "input_features"),
        ({"input_features": {"x": {"type": "STATE", "shape": [0]}}}, "input_features.x"),
        ({"output_features": {"action": {"type": "ACTION"}}}, "output_features.action"),
        ({"n_obs_steps": 0}, "n_obs_steps"),
    ],
)
def test_a_configuration_that_says_nothing(
    described: Path, change: dict[str, Any], named: str
) -> None:
    file = described / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with refused(ErrorCode.CHECKPOINT_INVALID, named):
        read_policy(described)


def test_wrong_folders(described: Path, tmp_path: Path) -> None:
    with refused(ErrorCode.CHECKPOINT_MISSING, "config.json"):
        read_policy(tmp_path)
    with refused(ErrorCode.INVALID_ARGUMENT, "without meta/info.json"):
        read_policy(described, tmp_path)
    other = write_dataset(tmp_path / "other", JOINTS[:5])
    with refused(ErrorCode.INVALID_ARGUMENT, "5 values", "expected 6"):
        read_policy(described, other)


@pytest.fixture
def arm(policy: Path, dataset: Path, tmp_path: Path) -> Path:
    file = tmp_path / "arm.yaml"
    file.write_text(fill_in(draft_embodiment(read_urdf(URDF), read_policy(policy, dataset)).text))
    return file


def codes(found: Findings) -> list[str]:
    return [problem.code for problem in found.problems]


def edited(file: Path, *changes: tuple[str, str]) -> Path:
    text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


def test_a_right_file_tells_how_everything_is_fed(arm: Path, policy: Path) -> None:
    found = check_embodiment(arm, policy)
    assert found.problems == ()
    rows = {row.feature: row for row in found.features}
    assert rows["observation.images.wrist"].source == "camera wrist on camera/wrist/image_raw"
    assert rows["observation.images.wrist"].shape == (3, 96, 128)
    state = rows["observation.state"]
    assert state.source == f"position of {', '.join(JOINTS)} on joint_states"
    assert state.conversion == (
        "shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, wrist_roll: "
        "rad * 57.2958 (degrees); gripper: rad * 58.8235 (0 to 100 of its range)"
    )
    pan, gripper = found.actions[0], found.actions[5]
    assert (pan.index, pan.joint) == (0, "shoulder_pan")
    assert pan.limits == "-1.92 to 1.92 rad"
    assert pan.limits_in_policy_units == "-110 to 110"
    assert pan.max_velocity == "3 rad/s"
    assert pan.trained == "-0.5236 to 0.5236 rad"
    assert gripper.limits_in_policy_units == "0 to 100"
    middle = "[0.0, -0.524, 0.698, 0.349, 0.0, 0.51]"
    assert found.notes == (
        "the policy is of type act and looks at 1 observation(s)",
        f"the middle of the states that it was trained on, in m or rad: {middle}",
    )


def test_every_gap_is_a_problem(described: Path, tmp_path: Path) -> None:
    made = draft_embodiment(read_urdf(URDF), read_policy(described))
    file = tmp_path / "draft.yaml"
    file.write_text(made.text)
    found = check_embodiment(file)
    assert codes(found) == ["EMBODIMENT_INVALID"] * len(made.todo)
    for problem, field in zip(found.problems, made.todo, strict=True):
        assert f"embodiment field {field} is still TODO" in problem.message


def test_a_missing_bound_is_what_the_gate_would_say(arm: Path) -> None:
    edited(arm, ("max_velocity: 3.0", "max_velocity: null"))
    found = check_embodiment(arm)
    assert codes(found) == ["LIMITS_INCOMPLETE"] * 6
    assert "shoulder_pan.max_velocity" in found.problems[0].message


def test_degrees_taken_for_radians_show_in_the_training_data(arm: Path, policy: Path) -> None:
    found = check_embodiment(edited(arm, ("57.29578", "1.0")), policy)
    assert set(codes(found)) == {"EMBODIMENT_MISMATCH"}
    assert len(found.problems) == 10, "five joints, as state and as action"
    assert "action of shoulder_pan" in found.problems[0].message
    assert "-30 to 30 rad" in found.problems[0].message


def test_radians_taken_for_degrees_are_a_note(arm: Path, policy: Path) -> None:
    found = check_embodiment(edited(arm, ("57.29578", "3000.0")), policy)
    assert any("action of shoulder_pan covers 0.5%" in note for note in found.notes)


def test_every_contradiction_is_told_at_once(arm: Path, policy: Path) -> None:
    edited(
        arm,
        ("width: 128", "width: 64"),
        ("observation.images.wrist:", "observation.images.hand:"),
    )
    found = check_embodiment(arm, policy)
    assert codes(found) == ["POLICY_FEATURE_MISMATCH"] * 2
    assert "fed with shape (3, 96, 64)" in found.problems[0].message
    assert "observation.images.wrist" in found.problems[1].message


def test_order_and_step_of_the_data_set(
    arm: Path, policy: Path, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in policy.iterdir():
        (copy / file.name).symlink_to(file)
    training = {"dataset": {"root": str(dataset)}}
    (copy / "train_config.json").write_text(json.dumps(training))
    document = yaml.safe_load(arm.read_text())
    document["joints"][0], document["joints"][1] = document["joints"][1::-1]
    document["policy"]["step"] = 0.1
    arm.write_text(yaml.safe_dump(document))
    assert codes(check_embodiment(arm, copy)) == ["JOINT_NAMES_MISMATCH", "EMBODIMENT_MISMATCH"]


def test_what_only_loading_finds(arm: Path, policy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in policy.iterdir():
        if file.name != "policy_postprocessor.json":
            (copy / file.name).symlink_to(file)
    assert codes(check_embodiment(arm, copy)) == ["CHECKPOINT_INVALID"]
    (copy / "policy_preprocessor.json").unlink()
    assert codes(check_embodiment(arm, copy)) == ["POLICY_NOT_MIGRATED"]
    assert codes(check_embodiment(arm, tmp_path)) == ["CHECKPOINT_MISSING"]


def test_another_robots_policy(arm: Path) -> None:
    found = check_embodiment(arm, share_dir() / "models/pusht/policy")
    assert codes(found) == ["ACTION_DIM_MISMATCH"]


@pytest.mark.parametrize("name", ["pusht", "aloha"])
def test_the_shipped_files_are_right(name: str) -> None:
    assert check_embodiment(name).problems == ()
    assert check_embodiment(name, share_dir() / f"models/{name}/policy").problems == ()


def test_mean_and_deviation_refuse_only_what_cannot_be(
    arm: Path, policy: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(policy, tmp_path / "copy"))
    file = next(copy.glob("policy_postprocessor*.safetensors"))
    held = {name: value for name, value in load_file(file).items() if "action" in name}
    keep = {name: value.copy() for name, value in held.items() if name.endswith((".mean", ".std"))}
    assert keep

    def problems(mean: float, std: float) -> list[str]:
        # The gripper, 0 to 100 over its range.
        keep["action.mean"][-1], keep["action.std"][-1] = mean, std
        save_file(keep, file)
        found = check_embodiment(arm, copy).problems
        return [item.message for item in found if "gripper" in item.message]

    assert problems(50.0, 49.9) == [], "half of the time open, half closed"
    assert problems(5.0, 20.0) == [], "mostly closed"
    assert problems(50.0, 90.0), "wider than anything within the range"
    assert problems(150.0, 1.0), "elsewhere"


def test_files_that_are_none(tmp_path: Path) -> None:
    assert codes(check_embodiment("nobody")) == ["EMBODIMENT_UNKNOWN"]
    (tmp_path / "list.yaml").write_text("- 1")
    assert codes(check_embodiment(tmp_path / "list.yaml")) == ["EMBODIMENT_INVALID"]


@pytest.mark.parametrize(
    ("kind", "scale", "offset", "text"),
    [
        ("revolute", 1.0, 0.0, "rad"),
        ("revolute", 180.0 / np.pi, 0.0, "rad * 57.2958 (degrees)"),
        ("revolute", -180.0 / np.pi, 0.0, "rad * -57.2958 (degrees, reversed)"),
        ("prismatic", 1000.0, 0.0, "m * 1000 (mm)"),
        ("revolute", 50.0, 0.0, "rad * 50 (-100 to 100 of its range)"),
        ("revolute", 25.0, 50.0, "rad * 25 + 50 (0 to 100 of its range)"),
        ("revolute", 3.0, -1.0, "rad * 3 - 1"),
    ],
)
def test_conversions_are_named(kind: Any, scale: float, offset: float, text: str) -> None:
    assert conversion(Joint("j", kind, -2.0, 2.0, 1.0), scale, offset) == text


def test_from_nothing_to_a_right_file(
    policy: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "arm.yaml"
    init = ["embodiment", "init", "--urdf", str(URDF), "--policy", str(policy)]
    init += ["--dataset", str(dataset), "--out", str(out), "--json"]
    assert cli.main(init) == 0
    said = capsys.readouterr().out
    assert "to fill in, 15 fields" in said
    assert json.loads(said.splitlines()[-1])["joints"] == list(JOINTS)
    check = ["embodiment", "check", str(out), "--policy", str(policy), "--json"]
    assert cli.main(check) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] is False
    assert {problem["code"] for problem in result["problems"]} == {"EMBODIMENT_INVALID"}
    assert cli.main(init) == 2, "a person's work is not overwritten"
    assert "a new file" in capsys.readouterr().err
    out.write_text(fill_in(out.read_text()))
    assert cli.main(check) == 0
    said = capsys.readouterr().out
    assert "so101_like is right for this policy" in said
    assert "camera front on camera/front/image_raw" in said
    assert json.loads(said.splitlines()[-1])["problems"] == []
    state = load_embodiment(out).policy.features["observation.state"]
    assert isinstance(state, StateFeature)
    assert state.scale[0] == pytest.approx(180.0 / np.pi, rel=1e-6)


def test_the_page_fills_in_what_it_says(described: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/adopt_your_robot.md").read_text()
    (command,) = re.findall(r"```bash\n(sed -i .*?)```", page, re.DOTALL)
    facts = read_policy(described)
    picture = facts.inputs["observation.images.front"]
    inputs = {**facts.inputs, "observation.images.wrist": picture}
    text = draft_embodiment(read_urdf(URDF), replace(facts, inputs=inputs, step=0.05), JOINTS).text
    (tmp_path / "arm.yaml").write_text(text)
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    expected = fill_in(text)
    assert (tmp_path / "arm.yaml").read_text() == expected
    assert unfilled(yaml.safe_load(expected)) == ("policy.features.observation.state.quantity",)


def test_the_text_alone_and_wrong_usage(
    described: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    init = ["embodiment", "init", "--urdf", str(URDF), "--policy", str(described)]
    assert cli.main(init) == 0
    facts: PolicyFacts = read_policy(described)
    assert capsys.readouterr().out == draft_embodiment(read_urdf(URDF), facts).text
    assert cli.main(["embodiment"]) == 2
    assert "usage: worldforge embodiment" in capsys.readouterr().out
    assert cli.main([*init, "--joints", "gripper", "--json"]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["error_code"] == "ACTION_DIM_MISMATCH"
