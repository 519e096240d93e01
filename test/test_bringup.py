"""The one description of what runs, and the launch file that must say the same."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gazebo_support import with_programs
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.bringup import (
    MODEL_ENVIRONMENT,
    REPLAY_ARGUMENTS,
    TASKS,
    Argument,
    NodeSpec,
    Playback,
    Task,
    bring_up,
    find_task,
    programs,
    replay,
)
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.planning.search import SOURCES
from worldforge_ros.planning.selection import PLANNERS
from worldforge_ros.resources import PACKAGE, resolve_path
from worldforge_ros.security import enclave_of
from worldforge_ros.simulation import aloha, pusht

ROOT = Path(__file__).resolve().parents[1]
PUSHT = TASKS["pusht"]
GIVEN: dict[str, dict[str, str]] = {
    "robot": {"embodiment": "aloha", "policy_path": "/p", "world_model": "/w"}
}
"""What a task has no defaults for."""
SIX = [
    "observation_node",
    "policy_node",
    "score_node",
    "planner_node",
    "safety_gate",
    "pusht_sim",
]


def bringup(**arguments: str) -> dict[str, NodeSpec]:
    return {spec.name: spec for spec in bring_up(PUSHT, arguments)}


def default(task: Task, **arguments: str) -> list[NodeSpec]:
    """What a task runs with the fewest arguments."""
    return bring_up(task, GIVEN.get(task.name, {}) | arguments)


def own(specs: list[NodeSpec]) -> list[NodeSpec]:
    """Those that are nodes of this package."""
    return [spec for spec in specs if spec.package == PACKAGE]


@pytest.fixture(params=TASKS.values(), ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def test_default_runs_six_nodes_and_the_one_that_arms() -> None:
    assert list(bringup()) == [*SIX, "episode_node"]


@pytest.mark.parametrize("name", ["pusht", "aloha"])
def test_tasks_differ_in_their_simulator_and_their_defaults(name: str) -> None:
    task = TASKS[name]
    specs = {spec.name: spec for spec in bring_up(task, {"record": "true"})}
    assert list(specs) == [*SIX[:-1], f"{task.name}_sim", "episode_node"]
    assert {s.parameters["embodiment"] for s in specs.values()} == {task.name}
    assert load_embodiment(task.name).name == task.name
    folder = f"package://worldforge_ros/models/{task.name}"
    assert specs["policy_node"].parameters["policy_path"] == f"{folder}/policy"
    assert specs["score_node"].parameters["model_path"] == f"{folder}/world_model"
    assert specs["planner_node"].parameters["num_candidates"] == task.candidates
    assert specs["episode_node"].parameters["task"] == task.name
    assert specs["episode_node"].parameters["duration"] == task.duration
    defaults = {argument.name: argument.default for argument in task.arguments}
    assert resolve_path(defaults["params_file"]).is_file()


def test_a_task_is_solved_where_its_simulator_says_so() -> None:
    assert PUSHT.figure.above == pusht.SUCCESS_COVERAGE
    reward = TASKS["aloha"].figure
    assert reward.solved(aloha.SUCCESS_REWARD)
    assert not reward.solved(aloha.SUCCESS_REWARD - 1)
    assert reward.full == aloha.SUCCESS_REWARD


def test_in_gazebo_only_the_simulator_and_the_output_of_the_gate_differ() -> None:
    specs = {spec.name: spec for spec in bring_up(TASKS["gazebo"], {"seed": "5"})}
    built_in = bringup(seed="5", rate="0.5")
    assert list(specs) == [*SIX[:-1], "gazebo_pusht", "episode_node", "gazebo_bridge"]
    for name in (*SIX[:-1], "episode_node"):
        found, expected = dict(specs[name].parameters), dict(built_in[name].parameters)
        if name == "safety_gate":
            assert found.pop("output") == "joint_trajectory"
        if name == "episode_node":
            assert (found.pop("task"), expected.pop("task")) == ("gazebo", "pusht")
        assert found == expected
        assert found["use_sim_time"] is True
    assert specs["gazebo_pusht"].parameters == {
        "embodiment": "pusht",
        "use_sim_time": True,
        "seed": 5,
    }
    bridge = specs["gazebo_bridge"]
    assert (bridge.package, bridge.executable) == ("ros_gz_bridge", "parameter_bridge")
    assert bridge.parameters == {"config_file": str(ROOT / "config/gazebo/bridge.yaml")}
    assert bridge.arguments == ("/world/pusht/set_pose@ros_gz_interfaces/srv/SetEntityPose",)


WORLD = str(ROOT / "gazebo/worlds/pusht.sdf")


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        ({}, ("gz", "sim", "-r", "-s", "--headless-rendering", WORLD)),
        ({"gui": "true"}, ("gz", "sim", "-r", WORLD)),
        ({"gazebo": "ignition"}, ("ign", "gazebo", "-r", "-s")),
        ({"gazebo": "ignition", "gui": "true"}, ("ign", "gazebo", "-r")),
    ],
)
def test_gazebo_runs_beside_the_nodes(
    arguments: dict[str, str],
    argv: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    for name in ("GZ_IP", "GZ_PARTITION", "IGN_IP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IGN_PARTITION", "mine")
    (program,) = programs(TASKS["gazebo"], arguments)
    (bridge,) = (spec for spec in bring_up(TASKS["gazebo"], arguments) if spec.package != PACKAGE)
    assert program.argv[: len(argv)] == argv
    assert bridge.env == program.env, "or they would not hear each other"
    if "gazebo" not in arguments:
        assert program.env == {"GZ_IP": "127.0.0.1", "GZ_PARTITION": "ros_domain_7"}
        return
    assert program.env == {"IGN_IP": "127.0.0.1"}, "what the user has set stays"
    config = Path(str(bridge.parameters["config_file"])).read_text()
    assert "ignition.msgs.Image" in config
    assert "gz.msgs" not in config
    assert "ignition::gazebo::systems::Physics" in Path(program.argv[-1]).read_text()


def test_gazebo_runs_at_another_rate_from_a_copy_of_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (program,) = programs(TASKS["gazebo"], {"rate": "0.25"})
    assert "<real_time_factor>0.25</real_time_factor>" in Path(program.argv[-1]).read_text()
    assert Path(program.argv[-1]).is_relative_to(tmp_path)
    assert programs(TASKS["gazebo"], {"rate": "0.25"}) == [program]
    assert programs(PUSHT) == programs(TASKS["gazebo"], {"sim": "false"}) == []
    (tmp_path / "empty.sdf").write_text("<sdf version='1.9'><world name='pusht'/></sdf>")
    for world, found in (("empty.sdf", "0 elements real_time_factor"), ("none.sdf", "none.sdf")):
        with pytest.raises(WorldForgeError, match=found) as caught:
            programs(TASKS["gazebo"], {"rate": "0.5", "world": str(tmp_path / world)})
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(WorldForgeError, match="'chess'; expected one of pusht, aloha") as caught:
        find_task("chess")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_parameter_given_as_an_argument_is_sent_to_the_file() -> None:
    with pytest.raises(WorldForgeError, match=r"go into a file, params_file:=FILE$") as caught:
        bringup(extra_sources="[supplied]")
    assert "'extra_sources'; expected one of arm, bag, " in caught.value.message


def test_alohas_gate_accepts_the_chunks_of_its_policy() -> None:
    gate = next(s for s in bring_up(TASKS["aloha"]) if s.name == "safety_gate").parameters
    assert gate["max_step"] == load_embodiment("aloha").policy.step
    assert gate["max_horizon"] >= 100, "LeRobot's ALOHA policies propose 100 actions"


def test_a_robot_is_never_armed_by_default() -> None:
    assert list(bringup(sim="false")) == SIX[:-1]


def test_a_robot_is_armed_only_when_asked_for() -> None:
    episode = bringup(sim="false", arm="true")["episode_node"]
    assert episode.parameters["arm"] is True
    assert episode.parameters["sim"] is False


def test_recording_a_robot_does_not_arm_it() -> None:
    episode = bringup(sim="false", record="true")["episode_node"]
    assert episode.parameters["arm"] is False
    assert episode.parameters["record"] is True


def test_any_robot_is_brought_up_in_mock_hardware_with_what_its_policy_looks_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text('{"n_obs_steps": 3}')
    given = {"embodiment": "/arm.yaml", "policy_path": str(tmp_path)}
    specs = {spec.name: spec for spec in bring_up(TASKS["robot"], given)}
    assert list(specs) == [
        "observation_node", "policy_node", "planner_node", "safety_gate", "mock_robot",
        "episode_node",
    ]  # fmt: skip
    assert specs["planner_node"].parameters["planner"] == "first"
    assert specs["planner_node"].parameters["policy_history"] == 3
    assert specs["mock_robot"].parameters["embodiment"] == "/arm.yaml"
    assert specs["episode_node"].parameters["arm"] is True
    assert specs["episode_node"].parameters["sim"] is False, "no progress to read, no reset"
    real = [spec.name for spec in bring_up(TASKS["robot"], {**given, "sim": "false"})]
    assert real == ["observation_node", "policy_node", "planner_node", "safety_gate"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"policy_path": "/p"}, "embodiment"),
        ({"embodiment": "/e.yaml"}, "policy_path"),
        ({"embodiment": "/e.yaml", "policy_path": "/p", "planner": "scored"}, "world_model"),
        ({"embodiment": "/e.yaml", "policy_path": "/p", "rate": "2.0"}, "rate"),
        ({"embodiment": "/e.yaml", "policy_path": "/p", "command_topic": "/c"}, "command_topic"),
    ],
)
def test_what_any_robot_must_be_given(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(WorldForgeError, match=f"argument {named} is") as caught:
        bring_up(TASKS["robot"], arguments)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_the_gate_listens_for_the_planner_and_the_policy_there_is(tmp_path: Path) -> None:
    def heard(**arguments: str) -> object:
        return bringup(**arguments)["safety_gate"].parameters["heartbeats"]

    assert heard() == "planner_node,policy_node"
    assert heard(source="cem") == "planner_node"
    text = "safety_gate: {ros__parameters: {heartbeats: planner_node}}"
    assert heard(params_file=parameter_file(tmp_path, text)) == "planner_node"


def test_a_controller_may_listen_elsewhere() -> None:
    topic = "/joint_trajectory_controller/joint_trajectory"
    specs = bringup(sim="false", command_topic=topic)
    assert specs["safety_gate"].remappings == (
        ("joint_commands", topic),
        ("joint_trajectory", topic),
        ("target_pose", topic),
    )
    assert not any(s.remappings for s in specs.values() if s.name != "safety_gate")


def test_only_a_recorded_episode_has_an_end() -> None:
    assert bringup(duration="12")["episode_node"].parameters["duration"] == 0.0
    assert bringup(duration="12", record="true")["episode_node"].parameters["duration"] == 12.0


def test_only_the_episode_may_end_by_itself() -> None:
    assert [s.name for s in bringup().values() if s.exit_ends_all] == ["episode_node"]


def test_simulated_time_everywhere_or_nowhere() -> None:
    real, slow = bringup(rate="1.0"), bringup(rate="0.5")
    assert {s.parameters["use_sim_time"] for s in real.values()} == {False}
    assert {s.parameters["use_sim_time"] for s in slow.values()} == {True}
    assert real["pusht_sim"].parameters["publish_clock"] is False
    assert slow["pusht_sim"].parameters["publish_clock"] is True
    assert slow["pusht_sim"].parameters["rate"] == 0.5


def test_arguments_reach_the_nodes_that_read_them() -> None:
    specs = bringup(
        policy_path="/p", world_model="/w", device="cuda", num_candidates="8", seed="5",
        embodiment="/e.yaml", output_dir="/out",
    )  # fmt: skip
    assert specs["policy_node"].parameters["policy_path"] == "/p"
    # Warmed with as many as will be asked for, so that the first answer is not the slowest.
    assert specs["policy_node"].parameters["warmup_candidates"] == 8
    assert specs["score_node"].parameters["warmup_candidates"] == 8
    assert specs["score_node"].parameters["model_path"] == "/w"
    assert specs["policy_node"].parameters["device"] == "cuda"
    assert specs["score_node"].parameters["device"] == "cuda"
    assert specs["planner_node"].parameters["num_candidates"] == 8
    assert specs["pusht_sim"].parameters["seed"] == 5
    assert specs["episode_node"].parameters["output_dir"] == "/out"
    assert {s.parameters["embodiment"] for s in specs.values()} == {"/e.yaml"}


def test_a_search_without_a_policy_needs_no_policy_node() -> None:
    specs = bringup(source="cem")
    assert "policy_node" not in specs
    assert specs["planner_node"].parameters["source"] == "cem"
    assert specs["planner_node"].parameters["search_std"] == [0.029, 0.029]
    assert specs["episode_node"].parameters["policy"] is False
    assert specs["episode_node"].parameters["policy_path"] == ""
    choices = {argument.name: argument.choices for argument in PUSHT.arguments}
    assert choices["source"] == SOURCES
    assert choices["planner"] == PLANNERS
    both = bringup(source="cem+policy")
    assert "policy_node" in both
    assert both["episode_node"].parameters["policy"] is True


def test_a_bag_is_written_when_it_is_asked_for() -> None:
    assert list(bringup(bag="/b")) == [*SIX, "record_node", "episode_node"]
    recorder = bringup(bag="/b", command_topic="/arm/commands", sim="false")["record_node"]
    share = "package://worldforge_ros/models/pusht"
    assert recorder.parameters == {
        "embodiment": "pusht",
        "use_sim_time": False,
        "output": "/b",
        "policy_path": f"{share}/policy",
        "model_path": f"{share}/world_model",
    }
    assert ("joint_commands", "/arm/commands") in recorder.remappings, "as the gate's"
    assert not recorder.exit_ends_all
    assert bringup(bag="/b", rate="0.5")["record_node"].parameters["use_sim_time"] is True
    assert bringup(bag="/b", planner="first")["record_node"].parameters["model_path"] == ""


def test_a_rerun_recording_runs_beside_a_normal_bring_up() -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    specs = bringup(record="rerun", output_dir="/o", command_topic="/c", sim="false")
    assert list(specs) == [*SIX[:-1], "rerun_node"]
    assert specs["rerun_node"].parameters == {
        "embodiment": "pusht",
        "use_sim_time": False,
        "output_dir": "/o",
    }
    assert ("joint_commands", "/c") in specs["rerun_node"].remappings, "as the gate's"
    assert not specs["rerun_node"].exit_ends_all
    assert set(specs["rerun_node"].parameters) - {"use_sim_time"} <= declared_parameters(
        "rerun_node"
    )
    episode = bringup(record="rerun")["episode_node"].parameters
    assert (episode["record"], episode["duration"]) == (False, 0.0), "no episode, and no end"


def test_without_rerun_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(WorldForgeError, match="pip install rerun-sdk") as caught:
        bringup(record="rerun")
    assert caught.value.code is ErrorCode.DEPENDENCY_MISSING
    assert "rerun_node" not in bringup(record="true")


def played(**arguments: str) -> tuple[dict[str, NodeSpec], Playback]:
    specs, playback = replay({"bag": "/bags/first", **arguments})
    return {spec.name: spec for spec in specs}, playback


def options(playback: Playback) -> dict[str, list[str]]:
    """Values of ``ros2 bag play`` by option."""
    found: dict[str, list[str]] = {}
    for item in playback.argv[4:]:
        if item.startswith("--"):
            values = found.setdefault(item, [])
        else:
            values.append(item)
    return found


def test_a_replay_runs_the_live_nodes_without_a_robot_and_never_arms() -> None:
    specs, playback = played()
    assert list(specs) == SIX[:-1]
    assert {spec.parameters["use_sim_time"] for spec in specs.values()} == {True}
    for topic, target in specs["safety_gate"].remappings:
        assert target == f"replayed/{topic}", "no controller listens there"
    assert len(specs["safety_gate"].remappings) == 3
    share = "package://worldforge_ros/models/pusht"
    assert specs["policy_node"].parameters["policy_path"] == f"{share}/policy"
    assert specs["planner_node"].parameters["num_candidates"] == PUSHT.candidates
    assert playback.argv[:4] == ("ros2", "bag", "play", "/bags/first")
    assert options(playback) == {
        "--clock": ["100"],
        "--rate": ["1.0"],
        "--disable-keyboard-controls": [],
        # What the live nodes publish themselves is not played.
        "--topics": [
            "/joint_states",
            "/camera/top/image_raw",
            "/camera/top/image_raw/compressed",
            "/goal_image",
        ],
        "--remap": [
            "/joint_states:=/joint_states",
            "/camera/top/image_raw:=/camera/top/image_raw",
            "/camera/top/image_raw/compressed:=/camera/top/image_raw/compressed",
            "/goal_image:=/goal_image",
        ],
    }
    assert (playback.heartbeat, playback.nodes) == (
        "/heartbeat",
        ("policy_node", "score_node", "planner_node"),
    )


def test_a_replay_takes_recorded_topics_from_where_they_are() -> None:
    specs, playback = played(
        namespace="/again",
        bag_namespace="left",
        remap="camera/top/image_raw:=/front/image_raw goal_image:=goal",
        planner="first",
        rate="2.0",
    )
    assert {spec.namespace for spec in specs.values()} == {"/again"}
    assert (playback.heartbeat, playback.nodes) == (
        "/again/heartbeat",
        ("policy_node", "planner_node"),
    )
    given = options(playback)
    assert given["--rate"] == ["2.0"]
    assert given["--topics"][1] == "/front/image_raw"
    assert set(given["--remap"]) == {
        "/left/joint_states:=/again/joint_states",
        "/front/image_raw:=/again/camera/top/image_raw",
        "/left/camera/top/image_raw/compressed:=/again/camera/top/image_raw/compressed",
        "/left/goal:=/again/goal_image",
    }


def test_a_replay_may_begin_with_recorded_observations_and_be_recorded() -> None:
    specs, playback = played(observations="observation", record_bag="/b")
    assert "observation_node" not in specs
    assert specs["record_node"].parameters["output"] == "/b"
    assert specs["record_node"].parameters["use_sim_time"] is True
    assert options(playback)["--topics"] == ["/observation", "/goal_image"]


def test_a_replay_of_any_robot_needs_what_its_bring_up_needs(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text((ROOT / "config/embodiments/aloha.yaml").read_text())
    with pytest.raises(WorldForgeError, match="argument policy_path is empty"):
        played(embodiment=str(file), planner="first")
    specs, _ = played(embodiment=str(file), planner="first", policy_path="/p")
    assert specs["planner_node"].parameters["num_candidates"] == TASKS["robot"].candidates
    assert "mock_robot" not in specs
    assert played(embodiment="aloha")[0]["planner_node"].parameters["num_candidates"] == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bag": ""}, "argument bag is empty"),
        ({"rate": "0"}, "argument rate is 0.0"),
        ({"remap": "front:=/x"}, "'front:=/x'; expected NAME:=TOPIC with a name of joint_states"),
        ({"remap": "joint_states=/x"}, "'joint_states=/x'; expected NAME:=TOPIC"),
        ({"num_candidates": "0"}, "argument num_candidates is 0"),
        ({"arm": "true"}, "argument is 'arm'"),
    ],
)
def test_bad_arguments_of_a_replay_are_named(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(WorldForgeError, match=re.escape(named)) as caught:
        played(**arguments)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("planner", ["first", "random"])
def test_a_planner_that_does_not_score_needs_no_score_node(planner: str) -> None:
    specs = bringup(planner=planner, record="true")
    assert "score_node" not in specs
    assert specs["planner_node"].parameters["planner"] == planner
    assert specs["episode_node"].parameters["scorer"] is False
    assert specs["episode_node"].parameters["model_path"] == ""
    assert bringup()["episode_node"].parameters["scorer"] is True


def test_model_processes_do_not_spin() -> None:
    for spec in bringup().values():
        expected = dict(MODEL_ENVIRONMENT) if spec.name in ("policy_node", "score_node") else {}
        assert dict(spec.env) == expected
    assert MODEL_ENVIRONMENT["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("given_", "expected"), [("/", "/"), ("", "/"), ("arm", "/arm")])
def test_namespace_is_absolute(given_: str, expected: str) -> None:
    specs = bringup(namespace=given_)
    assert {s.namespace for s in specs.values()} == {expected}
    assert specs["pusht_sim"].full_name == f"{expected.rstrip('/')}/pusht_sim"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rate": "0"}, "rate"),
        ({"rate": "nan"}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"rate": "2", "sim": "false"}, "rate"),
        ({"num_candidates": "0"}, "num_candidates"),
        ({"num_candidates": "1.5"}, "num_candidates"),
        ({"sim": "yes"}, "sim"),
        ({"source": "cem", "planner": "first"}, "planner"),
        ({"arm": "maybe"}, "arm"),
        ({"record": "True"}, "record"),
        ({"planner": "best"}, "planner"),
        ({"record": "true", "duration": "0"}, "duration"),
        ({"record": "true", "duration": "1e5"}, "duration"),
        ({"polcy_path": "/p"}, "polcy_path"),
        ({"params_file": "/nonexistent.yaml"}, "/nonexistent.yaml"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, str], field: str) -> None:
    with pytest.raises(WorldForgeError) as caught:
        bring_up(PUSHT, arguments)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert field in caught.value.message


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_parsed_exactly(value: float) -> None:
    assert Argument("x", "float", "0", "").parse(repr(value)) == value


def test_every_default_is_valid_and_described(task: Task) -> None:
    for argument in (*task.arguments, *REPLAY_ARGUMENTS):
        argument.parse(argument.default)
        assert argument.description.endswith(".")


def parameter_file(folder: Path, text: str) -> str:
    path = folder / "params.yaml"
    path.write_text(text)
    return str(path)


def test_parameter_file_sets_what_no_argument_sets(tmp_path: Path) -> None:
    path = parameter_file(
        tmp_path,
        """
        /**:
          ros__parameters: {frame_id: world}
        planner_node:
          ros__parameters: {replan_period: 0.25, frame_id: base, nested: {deep: [1, 2]}}
        """,
    )
    specs = bringup(params_file=path)
    assert specs["observation_node"].parameters["frame_id"] == "world"
    assert specs["planner_node"].parameters["frame_id"] == "base"
    assert specs["planner_node"].parameters["replan_period"] == 0.25
    assert specs["planner_node"].parameters["nested.deep"] == [1, 2]
    assert "replan_period" not in specs["policy_node"].parameters


def test_parameters_of_an_absent_simulator_are_no_error(tmp_path: Path) -> None:
    path = parameter_file(tmp_path, "pusht_sim: {ros__parameters: {camera_rate: 20.0}}")
    assert "pusht_sim" not in bringup(params_file=path, sim="false")
    assert bringup(params_file=path)["pusht_sim"].parameters["camera_rate"] == 20.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("planner_node: {ros__parameters: {num_candidates: 4}}", "argument num_candidates"),
        ("/**: {ros__parameters: {use_sim_time: true}}", "argument rate"),
        ("planer_node: {ros__parameters: {replan_period: 1.0}}", "planer_node"),
        ("planner_node: {replan_period: 1.0}", "ros__parameters"),
        ("planner_node: {ros__parameters: {mixed: [1, a]}}", "planner_node.mixed"),
        ("- a list", "a mapping"),
        ("{", "unreadable"),
    ],
)
def test_a_parameter_file_that_would_be_ignored_is_refused(
    tmp_path: Path, text: str, found: str
) -> None:
    with pytest.raises(WorldForgeError) as caught:
        bringup(params_file=parameter_file(tmp_path, text))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert found in caught.value.message


def test_every_node_is_an_executable_of_the_package(task: Task) -> None:
    lines = (ROOT / "executables.txt").read_text().splitlines()
    executables = dict(line.split(" = ") for line in lines if line.strip())
    for spec in own(default(task, planner="scored", bag="/b")):
        assert executables[spec.executable] == f"{spec.module}:main"


def declared_parameters(executable: str) -> set[str]:
    """Names that a node declares, from the reference that another test compares with the nodes."""
    reference = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    section = reference.split(f"## {executable}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=f"{task.name}-{spec.name}")
        for task in TASKS.values()
        for spec in own(default(task, planner="scored", bag="/b"))
    ],
)
def test_every_parameter_is_declared_by_its_node(spec: NodeSpec) -> None:
    # rclpy ignores an override of a parameter that no node declares.
    assert set(spec.parameters) - {"use_sim_time"} <= declared_parameters(spec.executable)


@pytest.fixture
def launch_file(task: Task) -> Any:
    return load(task.name)


def load(name: str) -> Any:
    """The module of a launch file."""
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    path = ROOT / f"launch/{name}.launch.py"
    spec = importlib.util.spec_from_file_location(f"{name}_launch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launched(module: Any, **arguments: str) -> tuple[Any, list[Any]]:
    """Launch context and node actions for the given arguments."""
    from launch import LaunchContext
    from launch.actions import OpaqueFunction

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    description = module.generate_launch_description()
    result: list[Any] = []
    for entity in description.entities:
        visited = entity.visit(context)
        if isinstance(entity, OpaqueFunction):
            result += visited
    return context, result


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sim": "false"},
        {"num_candidates": "4", "record": "true", "namespace": "/left", "bag": "/b"},
    ],
)
def test_launch_file_runs_what_the_description_says(
    task: Task,
    launch_file: Any,
    arguments: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from launch_ros.utilities import evaluate_parameters

    if task.gazebo:
        with_programs(monkeypatch, tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (tmp_path / "ros_gz_interfaces.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    # Mock hardware runs at real time only.
    rate = {} if task.mock or arguments else {"rate": "0.5"}
    arguments = GIVEN.get(task.name, {}) | arguments | rate
    context, actions = launched(launch_file, **arguments)
    others, specs = programs(task, arguments), bring_up(task, arguments)
    assert len(actions) == len(others) + len(specs)
    for action, other in zip(actions, others, strict=False):
        assert tuple(part[0].text for part in action.cmd) == other.argv
        found = {key[0].text: value[0].text for key, value in action.additional_env}
        assert found == other.env
    for action, spec in zip(actions[len(others) :], specs, strict=True):
        action._perform_substitutions(context)
        assert action.node_package == spec.package
        assert action.node_executable == spec.executable
        words = ["".join(getattr(p, "text", "") for p in part) for part in action.cmd]
        given = (*spec.arguments, "--ros-args", "--enclave", enclave_of(spec.name))
        assert tuple(words[1 : 1 + len(given)]) == given
        assert action.node_name == spec.full_name
        (parameters,) = evaluate_parameters(context, action._Node__parameters)
        # launch_ros makes tuples of lists.
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}
        assert found == spec.parameters
        env = {
            "".join(part.text for part in key): "".join(part.text for part in value)
            for key, value in action.additional_env or []
        }
        assert env == spec.env


def test_launch_file_declares_every_argument_with_its_default(task: Task, launch_file: Any) -> None:
    declared = {a.name: a for a in launch_file.generate_launch_description().get_launch_arguments()}
    assert list(declared) == [argument.name for argument in task.arguments]
    for argument in task.arguments:
        action = declared[argument.name]
        assert "".join(part.text for part in action.default_value) == argument.default
        assert action.description.startswith(argument.description)
        assert tuple(action.choices or ()) == argument.choices


def test_launch_file_of_a_replay_runs_the_nodes_and_then_the_bag() -> None:
    context, actions = launched(load("replay"), bag="/b", namespace="/again")
    specs, playback = played(bag="/b", namespace="/again")
    *nodes, waiting = actions
    for action, spec in zip(nodes, specs.values(), strict=True):
        action._perform_substitutions(context)
        assert action.node_name == spec.full_name
    (look,) = waiting.actions
    player = look._OpaqueFunction__function.__self__
    assert player._missing == set(playback.nodes)
    # What waits has nothing to listen with here.
    player._listens = True
    (again,) = look.visit(context)
    assert type(again) is type(waiting), "nodes that are not heard are waited for"
    player._missing.clear()
    (play,) = look.visit(context)
    assert [part[0].text for part in play.cmd] == list(playback.argv)
    running = SimpleNamespace(is_shutdown=False)
    ended = player._ended(SimpleNamespace(returncode=0), running)
    assert type(ended).__name__ == "Shutdown"
    with pytest.raises(WorldForgeError, match="ros2 bag play ended with status 1"):
        player._ended(SimpleNamespace(returncode=1), running)


def test_launch_file_of_a_replay_declares_its_arguments() -> None:
    description = load("replay").generate_launch_description()
    declared = {a.name: a for a in description.get_launch_arguments()}
    assert list(declared) == [argument.name for argument in REPLAY_ARGUMENTS]
    for argument in REPLAY_ARGUMENTS:
        default = "".join(part.text for part in declared[argument.name].default_value)
        assert default == argument.default


@pytest.mark.parametrize("status", [0, 1, -9])
def test_launch_fails_when_a_node_ends(status: int) -> None:
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from worldforge_ros.ros.launching import node

    spec = NodeSpec("policy_node", "policy_node")
    handler = node(spec)._ExecuteLocal__on_exit
    with pytest.raises(WorldForgeError, match=f"policy_node ended with status {status}"):
        handler(SimpleNamespace(returncode=status), SimpleNamespace(is_shutdown=False))
    assert handler(SimpleNamespace(returncode=status), SimpleNamespace(is_shutdown=True)) is None
