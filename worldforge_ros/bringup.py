"""What runs for a task: one description, read by the launch file and by ``worldforge up``.

Nothing here imports ROS or the ``launch`` package, so a host without them can still read it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from worldforge_ros.bags.names import FIXED_TOPICS, robot_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.parameters import ParameterValue, parameters_from_file
from worldforge_ros.policies.checkpoint import CONFIG_FILE, read_json
from worldforge_ros.recording.figure import COVERAGE, REWARD, UNMEASURED, Figure
from worldforge_ros.resources import PACKAGE, resolve_path
from worldforge_ros.scorers.cards import drift_horizon_of
from worldforge_ros.simulation import gazebo_run

ArgumentType = Literal["bool", "int", "float", "text"]
Scalar = bool | int | float | str

MODEL_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}
)
"""For processes that run a model: OpenMP threads that spin starve the other nodes."""

COMMAND_TOPICS = ("joint_commands", "joint_trajectory", "target_pose")
"""What the gate publishes, one of them."""

LONGEST_RECORDING = 3600.0
"""Seconds; a recording is kept in memory until it is written."""


@dataclass(frozen=True)
class Argument:
    """One argument of a bring-up; ``default`` is text, as the launch system has it."""

    name: str
    type: ArgumentType
    default: str
    description: str
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Scalar:
        """The value of ``text``.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` when it is not of this argument's type.
        """
        if self.choices and text not in self.choices:
            raise self._invalid(text, f"one of {', '.join(self.choices)}")
        if self.type == "text":
            return text
        if self.type == "bool":
            if text.lower() not in ("true", "false"):
                raise self._invalid(text, "true or false")
            return text.lower() == "true"
        try:
            number = int(text) if self.type == "int" else float(text)
        except ValueError:
            raise self._invalid(
                text, "a whole number" if self.type == "int" else "a number"
            ) from None
        if not math.isfinite(number):
            raise self._invalid(text, "a finite number")
        return number

    def _invalid(self, found: str, expected: str) -> WorldForgeError:
        return mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"argument {self.name}",
            found=repr(found),
            expected=expected,
        )


@dataclass(frozen=True)
class NodeSpec:
    """One process with one node.

    ``namespace`` is absolute; ``env`` is added to the environment; ``arguments`` come before those
    of ROS. A node that exits on its own fails the bring-up, unless ``exit_ends_all`` is set: then
    its work is done, and the bring-up ends with its status.
    """

    executable: str
    name: str
    namespace: str = "/"
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    exit_ends_all: bool = False
    package: str = PACKAGE
    arguments: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Python module that ``python -m`` runs for this node."""
        return f"{PACKAGE}.nodes.{self.executable}"

    @property
    def full_name(self) -> str:
        """Namespace and name."""
        return f"{self.namespace.rstrip('/')}/{self.name}"


@dataclass(frozen=True)
class ProgramSpec:
    """One process without a node; its end fails the bring-up. ``env`` is added to the
    environment.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task that can be brought up; its files are found by its name.

    ``candidates`` and ``duration`` (seconds) are the defaults of the arguments ``num_candidates``
    and ``duration``; ``figure`` is what its simulator measures. ``mock``: the robot is whatever the
    embodiment file says, its simulator is mock hardware, and all files are the user's. ``gazebo``:
    the task whose robot and models it has, in Gazebo instead of its own simulator.
    """

    name: str
    summary: str
    candidates: int
    duration: float
    figure: Figure
    mock: bool = False
    gazebo: str = ""

    @property
    def simulator(self) -> str:
        """Node name of the simulator, or of what stands beside Gazebo; its executable is the same
        with ``_node`` appended.
        """
        if self.gazebo:
            return f"gazebo_{self.gazebo}"
        return "mock_robot" if self.mock else f"{self.name}_sim"

    @property
    def robot(self) -> str:
        """What embodiment file and models are called."""
        return self.gazebo or self.name

    def _own(self, text: str) -> str:
        """The default of an argument that a user's own robot has none for."""
        return "" if self.mock else text

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """Every argument of the bring-up, with this task's defaults."""
        share = f"package://{PACKAGE}"
        simulator = "mock hardware" if self.mock else "Gazebo" if self.gazebo else "the simulator"
        parameters = f"{self.gazebo}_gazebo" if self.gazebo else self.name
        return (
            Argument(
                "sim",
                "bool",
                "true",
                f"Run {simulator}; false when a robot is connected.",
            ),
            Argument(
                "policy_path",
                "text",
                self._own(f"{share}/models/{self.robot}/policy"),
                "LeRobot checkpoint folder of the policy that proposes.",
            ),
            Argument(
                "world_model",
                "text",
                self._own(f"{share}/models/{self.robot}/world_model"),
                "LeWorldModel checkpoint folder of the world model that scores.",
            ),
            Argument("device", "text", "cpu", "Torch device of both models: cpu, cuda or cuda:N."),
            Argument(
                "num_candidates",
                "int",
                str(self.candidates),
                "Action chunks that the policy proposes in a cycle.",
            ),
            Argument(
                "planner",
                "text",
                "first" if self.mock else "scored",
                "How a candidate is chosen: by world-model cost, the first one, or at random.",
                choices=("scored", "first", "random"),
            ),
            Argument(
                "source",
                "text",
                "policy",
                "Where candidates come from: the policy, a search over the world model, or a "
                "search that starts from the policy's candidates.",
                choices=("policy", "cem", "cem+policy"),
            ),
            Argument(
                "rate",
                "float",
                "1.0",
                "Speed of Gazebo against real time, where the machine can; all nodes use its "
                "/clock."
                if self.gazebo
                else "Simulation speed against real time; unless it is 1, all nodes use the "
                "simulator's /clock.",
            ),
            Argument(
                "seed", "int", "0", "Seed of the simulated episode and of the policy's samples."
            ),
            Argument(
                "arm",
                "text",
                "auto",
                "Arm the safety gate once everything answers; auto: only with the simulator.",
                choices=("auto", "true", "false"),
            ),
            Argument(
                "command_topic",
                "text",
                "",
                "Where a robot's controller listens to the gate; empty: joint_commands, "
                "joint_trajectory or target_pose, as the gate's parameter output says.",
            ),
            Argument(
                "record",
                "text",
                "false",
                "true: record one episode, write its report and end. rerun: record everything for "
                "the Rerun viewer, until it is stopped.",
                choices=("false", "true", "rerun"),
            ),
            Argument(
                "duration",
                "float",
                f"{self.duration:.1f}",
                "Longest recorded episode, in seconds of ROS time.",
            ),
            Argument("output_dir", "text", "", "Folder of the recording; empty: runs/<time> here."),
            Argument(
                "bag",
                "text",
                "",
                "Bag folder to make, for all that a replay needs; empty: no bag is written.",
            ),
            Argument(
                "embodiment", "text", self._own(self.robot), "Name or path of the embodiment file."
            ),
            Argument("namespace", "text", "/", "ROS namespace of every node."),
            Argument(
                "params_file",
                "text",
                self._own(f"{share}/config/params/{parameters}.yaml"),
                "ROS parameter file with what these arguments do not set; empty: none.",
            ),
            *(GAZEBO_ARGUMENTS if self.gazebo else ()),
        )


GAZEBO_ARGUMENTS = (
    Argument(
        "gazebo",
        "text",
        "gz",
        "Names of programs, messages and plugins: gz of Harmonic and newer, ignition of Fortress.",
        choices=gazebo_run.FLAVOURS,
    ),
    Argument("gui", "bool", "false", "Show Gazebo's window; false needs no display."),
    Argument("world", "text", gazebo_run.WORLD_FILE, "SDF file of the world."),
)
"""Of tasks in Gazebo, beside those of every task."""


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("pusht", "push the T block onto the goal outline", 32, 30.0, COVERAGE),
            Task("aloha", "hand the cube from the right arm to the left", 8, 20.0, REWARD),
            Task("robot", "any robot with an embodiment file", 1, 20.0, UNMEASURED, mock=True),
            Task("gazebo", "PushT in Gazebo", 32, 30.0, COVERAGE, gazebo="pusht"),
        )
    }
)
"""Every task that can be brought up, by name."""


def find_task(name: str) -> Task:
    """The task called ``name``.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when there is none.
    """
    if name not in TASKS:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "task",
            found=repr(name),
            expected=f"one of {', '.join(TASKS)}",
        )
    return TASKS[name]


def parse_arguments(table: Sequence[Argument], arguments: Mapping[str, str]) -> dict[str, Scalar]:
    """Every argument's value: the given text, else the default.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown name or a value of the wrong type.
    """
    known = {argument.name for argument in table}
    other = "; parameters of a node go into a file, params_file:=FILE"
    hint = other if "params_file" in known else ""
    for name in arguments:
        if name not in known:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "argument",
                found=repr(name),
                expected=f"one of {', '.join(sorted(known))}{hint}",
            )
    return {a.name: a.parse(arguments.get(a.name, a.default)) for a in table}


def bring_up(task: Task, arguments: Mapping[str, str] | None = None) -> list[NodeSpec]:
    """The nodes of ``task`` for ``name: text`` arguments of :attr:`Task.arguments`.

    Parameters come from ``params_file``, and from the arguments for those that an argument owns.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an argument or a parameter file that cannot be
        used, ``DEPENDENCY_MISSING`` for a Rerun recording without rerun-sdk.
    """
    values = parse_arguments(task.arguments, arguments or {})
    sim, rate, record = bool(values["sim"]), float(values["rate"]), values["record"] == "true"
    if rate <= 0:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "argument rate", found=rate, expected="above 0")
    if (task.mock or not sim) and rate != 1.0:
        where = f"task {task.name}" if task.mock else "sim=false"
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "argument rate", found=rate, expected=f"1.0 with {where}"
        )
    if int(values["num_candidates"]) < 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "argument num_candidates",
            found=values["num_candidates"],
            expected="at least 1",
        )
    if values["source"] != "policy" and values["planner"] != "scored":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "argument planner",
            found=values["planner"],
            expected=f"scored with source:={values['source']}",
        )
    if record and not 0 < float(values["duration"]) <= LONGEST_RECORDING:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "argument duration",
            found=values["duration"],
            expected=f"above 0 and at most {LONGEST_RECORDING:g} when recording",
        )
    if values["record"] == "rerun":
        from worldforge_ros.recording.rerun_file import require_rerun

        require_rerun()
    has_policy = values["source"] != "cem"
    has_scorer = values["planner"] == "scored"
    needed = ["embodiment", *(["policy_path"] * has_policy), *(["world_model"] * has_scorer)]
    for name in needed:
        if not values[name]:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"argument {name}",
                found="empty",
                expected=f"a value: task {task.name} has no default for it",
            )
    if sim and values["command_topic"]:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "argument command_topic",
            found=repr(values["command_topic"]),
            expected="empty unless sim=false: the simulator listens to the gate's own topics",
        )
    arm = sim if values["arm"] == "auto" else values["arm"] == "true"
    namespace = "/" + str(values["namespace"]).strip("/")
    use_sim_time = rate != 1.0 or (bool(task.gazebo) and sim)

    def own(**parameters: str) -> dict[str, tuple[str, ParameterValue]]:
        return {name: (argument, values[argument]) for name, argument in parameters.items()}

    everyone: dict[str, tuple[str, ParameterValue]] = own(embodiment="embodiment") | {
        "use_sim_time": ("rate", use_sim_time)
    }
    model_env = dict(MODEL_ENVIRONMENT)
    nodes = [
        _Node("observation_node", "observation_node", {}),
        _Node(
            "policy_node",
            "policy_node",
            own(policy_path="policy_path", device="device", warmup_candidates="num_candidates"),
            env=model_env,
            runs=has_policy,
        ),
        _Node(
            "score_node",
            "score_node",
            own(model_path="world_model", device="device", warmup_candidates="num_candidates"),
            env=model_env,
            runs=has_scorer,
        ),
        _Node(
            "planner_node",
            "planner_node",
            own(planner="planner", source="source", num_candidates="num_candidates", seed="seed")
            | (_policy_history(str(values["policy_path"])) if has_policy else {}),
            defaults=_drift_horizon(str(values["world_model"]), str(values["embodiment"]))
            if has_scorer
            else {},
        ),
        _Node(
            "safety_gate_node",
            "safety_gate",
            {},
            commands=str(values["command_topic"]),
            defaults={"heartbeats": "planner_node,policy_node" if has_policy else "planner_node"},
        ),
        _Node(
            f"{task.simulator}_node",
            task.simulator,
            {}
            if task.mock
            else own(seed="seed")
            if task.gazebo
            else own(seed="seed", rate="rate") | {"publish_clock": ("rate", use_sim_time)},
            runs=sim,
        ),
        _Node(
            "record_node",
            "record_node",
            own(output="bag")
            | {
                "policy_path": ("policy_path", str(values["policy_path"]) if has_policy else ""),
                "model_path": ("world_model", str(values["world_model"]) if has_scorer else ""),
            },
            runs=bool(values["bag"]),
            commands=str(values["command_topic"]),
        ),
        _Node(
            "rerun_node",
            "rerun_node",
            own(output_dir="output_dir"),
            runs=values["record"] == "rerun",
            commands=str(values["command_topic"]),
        ),
        _Node(
            "episode_node",
            "episode_node",
            own(seed="seed", output_dir="output_dir")
            | {
                "record": ("record", record),
                # Mock hardware has no episodes to reset and no progress to read.
                "sim": ("sim", sim and not task.mock),
                "task": ("TASK", task.name),
                "policy": ("source", has_policy),
                "policy_path": ("policy_path", str(values["policy_path"]) if has_policy else ""),
                "scorer": ("planner", has_scorer),
                "model_path": ("world_model", str(values["world_model"]) if has_scorer else ""),
                # A fresh simulator has the episode of its seed; a reset would take the next one.
                "reset": ("sim", False),
                "arm": ("arm", arm),
                "duration": ("duration", float(values["duration"]) if record else 0.0),
            },
            runs=arm or record,
        ),
    ]
    from_file = parameters_from_file(str(values["params_file"]), tuple(n.name for n in nodes))
    specs = []
    for node in nodes:
        owned = {**everyone, **node.owned}
        extra = from_file.get(node.name, {})
        for parameter in sorted(set(extra) & set(owned)):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"params_file {values['params_file']}: {node.name}.{parameter}",
                found=extra[parameter],
                expected=f"absent, the argument {owned[parameter][0]} sets it",
            )
        if node.runs:
            specs.append(
                NodeSpec(
                    executable=node.executable,
                    name=node.name,
                    namespace=namespace,
                    parameters={
                        **node.defaults,
                        **extra,
                        **{name: value for name, (_, value) in owned.items()},
                    },
                    remappings=tuple((topic, node.commands) for topic in COMMAND_TOPICS)
                    if node.commands
                    else (),
                    env=node.env,
                    exit_ends_all=node.executable == "episode_node",
                )
            )
    if task.gazebo and sim:
        specs.append(_gazebo_bridge(values, namespace))
    return specs


def _gazebo_bridge(values: Mapping[str, Scalar], namespace: str) -> NodeSpec:
    flavour = str(values["gazebo"])
    return NodeSpec(
        executable=gazebo_run.BRIDGE_PROGRAM,
        name="gazebo_bridge",
        namespace=namespace,
        parameters={"config_file": str(gazebo_run.bridge_file(flavour))},
        env=gazebo_run.local_environment(flavour, os.environ),
        package=gazebo_run.BRIDGE_PACKAGE,
        # Gazebo's types of a service are the bridge's own affair where they are left out.
        arguments=(f"{gazebo_run.SET_POSE}@{gazebo_run.INTERFACES}/srv/SetEntityPose",),
    )


def programs(task: Task, arguments: Mapping[str, str] | None = None) -> list[ProgramSpec]:
    """What runs beside the nodes of :func:`bring_up`, for the same arguments: Gazebo, or nothing.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an argument that cannot be used.
    """
    values = parse_arguments(task.arguments, arguments or {})
    if not (task.gazebo and values["sim"]):
        return []
    flavour = str(values["gazebo"])
    world = gazebo_run.world_file(str(values["world"]), flavour, float(values["rate"]))
    return [
        ProgramSpec(
            "gazebo",
            gazebo_run.server_argv(flavour, world, bool(values["gui"])),
            gazebo_run.local_environment(flavour, os.environ),
        )
    ]


@dataclass(frozen=True)
class Playback:
    """``ros2 bag play`` beside live nodes: its command line, and the ``heartbeats`` (topic and node
    names) that are heard once the nodes are ready for it.
    """

    argv: tuple[str, ...]
    heartbeat: str
    nodes: tuple[str, ...]


CLOCK_RATE = 100
"""/clock messages in a second of a bag that is played."""
PLAYED_COMMANDS = "replayed"
"""Namespace that the gate's commands get in a replay: were it armed, no controller would listen."""


def _passed(name: str, *, default: str | None = None) -> Argument:
    """An argument of every task that a replay has too."""
    argument = next(item for item in TASKS["robot"].arguments if item.name == name)
    if default is not None:
        return replace(argument, default=default)
    text = argument.description.split(";")[0].rstrip(".")
    text = f"{text}; empty: as for the task of the embodiment."
    return replace(argument, type="text", default="", description=text)


REPLAY_ARGUMENTS: tuple[Argument, ...] = (
    Argument("bag", "text", "", "Bag to play: a folder or a file, as ros2 bag play takes it."),
    _passed("embodiment", default="pusht"),
    _passed("policy_path"),
    _passed("world_model"),
    _passed("num_candidates"),
    _passed("params_file"),
    _passed("device", default="cpu"),
    _passed("planner", default="scored"),
    _passed("source", default="policy"),
    Argument("seed", "int", "0", "Seed of the policy's samples."),
    Argument("rate", "float", "1.0", "Speed of the playback against the recording."),
    _passed("namespace", default="/"),
    Argument(
        "bag_namespace", "text", "/", "Namespace of the recorded topics; they go to namespace."
    ),
    Argument(
        "remap",
        "text",
        "",
        "Recorded topics of other names, separated by blanks, such as "
        "camera/top/image_raw:=/front/image_raw.",
    ),
    Argument(
        "observations",
        "text",
        "sensors",
        "What is played: cameras and joint states, or the observations that were made of them.",
        choices=("sensors", "observation"),
    ),
    Argument(
        "record_bag",
        "text",
        "",
        "Bag folder to make of what the live nodes do with it; empty: none.",
    ),
)
"""Of :func:`replay`."""


def replay(arguments: Mapping[str, str] | None = None) -> tuple[list[NodeSpec], Playback]:
    """Live nodes in the time of a bag that is played, for ``name: text`` arguments of
    :data:`REPLAY_ARGUMENTS`: the nodes of the embodiment's task without a robot.

    The gate is never armed: what it checks and the plans are all there is to see. Only what the
    robot saw is played, since the live nodes publish the rest themselves.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` as :func:`bring_up`, and without a bag;
        ``EMBODIMENT_...`` for a file that cannot be used.
    """
    values = parse_arguments(REPLAY_ARGUMENTS, arguments or {})
    if not values["bag"]:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "argument bag", found="empty", expected="a bag")
    if float(values["rate"]) <= 0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "argument rate", found=values["rate"], expected="above 0"
        )
    name = str(values["embodiment"])
    task = TASKS[name] if name in TASKS and not TASKS[name].mock else TASKS["robot"]
    given = {
        argument.name: str(values[argument.name])
        for argument in REPLAY_ARGUMENTS
        if argument.name in {item.name for item in task.arguments} and values[argument.name] != ""
    }
    given |= {"sim": "false", "arm": "false", "rate": "1.0", "bag": str(values["record_bag"])}
    sensors = values["observations"] == "sensors"
    specs = [
        replace(
            spec,
            parameters={**spec.parameters, "use_sim_time": True},
            remappings=tuple((topic, f"{PLAYED_COMMANDS}/{topic}") for topic in COMMAND_TOPICS)
            if spec.name == "safety_gate"
            else spec.remappings,
        )
        for spec in bring_up(task, given)
        if sensors or spec.name != "observation_node"
    ]
    embodiment = load_embodiment(name)
    names = [FIXED_TOPICS["observation"].name]
    if sensors:
        names = [topic.name for topics in robot_topics(embodiment).values() for topic in topics]
    names.append(FIXED_TOPICS["goal_image"].name)
    played = _played(names, str(values["bag_namespace"]), str(values["remap"]))
    namespace = str(values["namespace"]).strip("/")
    argv = ["ros2", "bag", "play", str(values["bag"]), "--clock", str(CLOCK_RATE)]
    argv += ["--rate", str(values["rate"]), "--disable-keyboard-controls"]
    argv += ["--topics", *played.values()]
    argv += ["--remap"]
    argv += [f"{topic}:={_absolute(namespace, name)}" for name, topic in played.items()]
    ready = ("planner_node", "policy_node", "score_node")
    return specs, Playback(
        tuple(argv),
        _absolute(namespace, "heartbeat"),
        tuple(spec.name for spec in specs if spec.name in ready),
    )


def _played(names: Sequence[str], namespace: str, remap: str) -> dict[str, str]:
    """Recorded topic for each of our relative names."""
    played = {name: _absolute(namespace, name) for name in names}
    for rule in remap.split():
        name, given, topic = rule.partition(":=")
        if not given or name not in played or not topic:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "argument remap",
                found=repr(rule),
                expected=f"NAME:=TOPIC with a name of {', '.join(played)}",
            )
        played[name] = _absolute(namespace, topic)
    return played


def _absolute(namespace: str, name: str) -> str:
    if name.startswith("/"):
        return name
    return f"/{namespace.strip('/')}/{name}" if namespace.strip("/") else f"/{name}"


def _policy_history(path: str) -> dict[str, tuple[str, ParameterValue]]:
    """How many observations a checkpoint on this machine looks at, for the planner."""
    file = resolve_path(path) / CONFIG_FILE
    if not file.is_file():
        return {}
    steps = read_json(file).get("n_obs_steps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"n_obs_steps in {file}",
            found=repr(steps),
            expected="a whole number of at least 1",
        )
    return {"policy_history": ("policy_path", steps)}


def _drift_horizon(model: str, embodiment: str) -> dict[str, ParameterValue]:
    """How far ahead a checkpoint on this machine is believed, for the planner."""
    if not resolve_path(model).exists():
        return {}
    blocks = drift_horizon_of(str(resolve_path(model)), load_embodiment(embodiment))
    return {"drift_horizon": blocks} if blocks else {}


@dataclass(frozen=True)
class _Node:
    """A node before the parameter file is read; ``owned``: parameter -> (argument, value), and
    ``defaults`` are those parameters that the file may set otherwise.

    ``commands`` is where its :data:`COMMAND_TOPICS` go, empty for their own names.
    """

    executable: str
    name: str
    owned: Mapping[str, tuple[str, ParameterValue]]
    env: Mapping[str, str] = field(default_factory=dict)
    runs: bool = True
    commands: str = ""
    defaults: Mapping[str, ParameterValue] = field(default_factory=dict)
