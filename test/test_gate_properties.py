"""What the gate guarantees, for random and adversarial chunks; the oracle is :mod:`gate_oracle`.

WORLDFORGE_FUZZ_CHUNKS sets how many chunks the long test tries, WORLDFORGE_FUZZ_SEED where it
begins. Millions: ``python test/gate_fuzzer.py CHUNKS [SEED]``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gate_fuzzer import ROBOTS, START, STEPS, Tally, ViolationFound, World, reach
from gate_fuzzer import fuzz as run_fuzzer
from gate_oracle import bounds_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.serialization import serialize_message

from worldforge_ros.embodiment import Box, Embodiment, Joint
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert
from worldforge_ros.ros.raw import deserialize_capped
from worldforge_ros.safety import checks, clamping, course, differences, stream, trajectory
from worldforge_ros.safety import gate as gate_module
from worldforge_ros.safety.config import CHUNK_CODES, CLAMPABLE, DEFAULT_REACTIONS, Reaction
from worldforge_ros.safety.gate import GateConfig, GateMode, ReasonCode, SafetyGate
from worldforge_ros.safety.heartbeats import Heartbeats
from worldforge_ros.safety.limits import JointLimits
from worldforge_ros.safety.stop_line import StopLine
from worldforge_ros.safety.workspace import workspace_of

TABLE = ROBOTS[0]
LENIENT = GateConfig(max_rejections=None, max_chunk_rate=None)
SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def chunk_of(robot: Embodiment, actions: Any, **changes: Any) -> ActionChunk:
    fields: dict[str, Any] = {
        "stamp": START,
        "embodiment": robot.name,
        "joint_names": robot.joint_names,
        "step": 0.1,
        "actions": np.asarray(actions, dtype=np.float64),
        "source": "policy",
        "epoch": 1,
        "sequence": 1,
        "observation_stamp": START,
    }
    return ActionChunk(**(fields | changes))


def home_of(robot: Embodiment) -> list[float]:
    return [
        0.0 if most.continuous else most.lower + 0.4 * (most.upper - most.lower)
        for most in bounds_of(robot)
    ]


def armed(
    robot: Embodiment = TABLE, config: GateConfig = LENIENT, home: list[float] | None = None
) -> SafetyGate:
    gate = SafetyGate(robot, config)
    home = home or home_of(robot)
    gate.update_joint_state(robot.joint_names, home, [0.0] * len(home), START, 0.0)
    outcome = gate.enable(True, START, 0.0)
    assert outcome.success, outcome
    return gate


# 1 and 2: nothing that is approved or streamed violates a limit


def test_nothing_approved_and_nothing_streamed_violates_a_limit() -> None:
    """20,000 chunks take 15 s; see gate_fuzzer for what is tried and checked."""
    tally = Tally()
    chunks = int(os.environ.get("WORLDFORGE_FUZZ_CHUNKS", "20000"))
    run_fuzzer(chunks, int(os.environ.get("WORLDFORGE_FUZZ_SEED", "0")), tally)
    print(tally)
    assert tally.approved > 0.2 * tally.chunks
    assert min(tally.clamped, tally.waited, tally.braking) > 10
    if chunks >= 20000:
        # Two arms need a URDF, see test_workspace.
        wanted = {*CHUNK_CODES, ReasonCode.NOT_ARMED, ReasonCode.STOPPED, ReasonCode.EPOCH_MISMATCH}
        assert {str(c) for c in wanted - {ReasonCode.ARM_DISTANCE}} <= set(tally.codes)
        assert {
            "HOLD_TIMEOUT",
            "JOINT_STATE_INVALID",
            "JOINT_STATE_STALE",
            "MEASURED_POSITION_LIMIT",
            "NOT_FINITE",
            "PROTECTIVE_STOP",
            "STOP_REQUESTED",
            "TOO_MANY_REJECTIONS",
            "TRACKING_ERROR",
        } <= set(tally.stops)


@pytest.mark.parametrize(
    "spoil",
    [
        "_position_limits",
        "_velocity_limits",
        "_acceleration_limits",
        "_jerk_limits",
        "_stopping_distance",
        "_sustained_velocity",
        "_seam_commanded",
        "_finite",
    ],
)
def test_the_fuzzer_notices_a_check_that_is_missing(
    spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("MOTION_CHECKS", "CHUNK_CHECKS"):
        kept = tuple(check for check in getattr(checks, table) if check.__name__ != spoil)
        monkeypatch.setattr(checks, table, kept)
    with pytest.raises(ViolationFound):
        run_fuzzer(20_000, 0, Tally())


shares = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, -1e-6, 1.0 + 1e-6]), st.floats(-0.02, 1.02, allow_nan=False)
)
plans = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.floats(-0.3, 0.2),
        st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=6),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=12,
)


@SOME
@given(robot=st.sampled_from(ROBOTS), seed=st.integers(0, 1000), plans=plans)
def test_plans_at_the_edge_of_what_is_allowed(robot: Embodiment, seed: int, plans: Any) -> None:
    """As the fuzzer, but shrunk by hypothesis: rows at a share of the range the limits leave."""
    world = World(seed, Tally(), robot)
    bounds = bounds_of(robot)
    for step, ahead, rows, ticks in plans:
        nanos = round(step * 1e9)
        stamp = world.ros + round(ahead * 1e9)
        paths = [list(column) for column in zip(*world.before(stamp, nanos), strict=True)]
        for row in rows:
            for path, share, most in zip(paths, row, bounds, strict=False):
                low, high = reach(path, step, most)
                path.append(low + share * (high - low))
        actions = np.array([path[3:] for path in paths]).T
        world.sequence += 1
        world.submit(
            chunk_of(
                robot,
                actions,
                stamp=stamp,
                step=step,
                epoch=world.gate.epoch,
                sequence=world.sequence,
                observation_stamp=world.ros,
                cost=0.5,
                margin=0.5,
                model_id="m1",
            )
        )
        for _ in range(ticks):
            world.tick()


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: str(robot.name))
@pytest.mark.parametrize("step", [0.02, 0.1, 0.25])
def test_two_chunks_in_turns_build_up_neither_drift_nor_speed(
    robot: Embodiment, step: float
) -> None:
    """A hundred chunks a second, each as far to one side as allowed, the next to the other."""
    world = World(1, Tally(), robot)
    bounds = bounds_of(robot)
    for turn in range(300):
        nanos = round(step * 1e9)
        stamp = world.ros - (turn % 3) * nanos // 4
        paths = [list(column) for column in zip(*world.before(stamp, nanos), strict=True)]
        for path, most in zip(paths, bounds, strict=True):
            low, high = reach(path, step, most)
            path.append(high if (turn + len(path)) % 2 else low)
        world.sequence += 1
        world.submit(
            chunk_of(
                robot,
                [[path[3] for path in paths]],
                stamp=stamp,
                step=step,
                epoch=world.gate.epoch,
                sequence=world.sequence,
                observation_stamp=world.ros,
                cost=0.5,
                margin=0.5,
                model_id="m1",
            )
        )
        world.tick()


# 3: monotone


def tightened(robot: Embodiment, field: str, by: float) -> Embodiment:
    def tight(joint: Joint) -> Joint:
        low, high = joint.min_position, joint.max_position
        if field in ("min_position", "max_position"):
            if low is None or high is None:
                return joint
            room = 0.2 * by * (high - low)
            if field == "min_position":
                return replace(joint, min_position=low + room)
            return replace(joint, max_position=high - room)
        value = getattr(joint, field)
        if math.isinf(value):
            value = 1e4
        return replace(joint, **{field: value * (1.0 - by)})

    return replace(robot, joints=tuple(tight(joint) for joint in robot.joints))


LIMITS = ("min_position", "max_position", "max_velocity", "max_acceleration")
SETTINGS: dict[str, float | int] = {
    "max_chunk_age": 0.05,
    "max_observation_age": 0.05,
    "future_tolerance": 0.0,
    "max_horizon": 3,
    "max_step": 0.02,
    "position_margin": 0.05,
    "max_chunk_rate": 0.5,
    "max_cost": 0.1,
    "min_margin": 0.9,
}


@pytest.mark.parametrize("field", [*LIMITS, "max_deceleration", "max_jerk", *SETTINGS])
def test_tightening_never_accepts_more(field: str) -> None:
    """Two gates, one with a tighter limit, over a chunk that both take and one at the edge."""
    rng = np.random.default_rng(0)
    differed = approved = 0
    for _ in range(250):
        robot = ROBOTS[int(rng.integers(len(ROBOTS)))]
        tighter, config = robot, LENIENT
        if field in SETTINGS:
            config = replace(LENIENT, **{field: SETTINGS[field]})
        else:
            tighter = tightened(robot, field, float(rng.choice([0.01, 0.3, 0.9])))
        home = home_of(robot)
        gates = (armed(robot), armed(tighter, config, home))
        step = float(rng.choice(STEPS))
        bounds = bounds_of(robot)
        late = int(rng.integers(0, 100_000_000)) - 20_000_000
        paths = [[value] * 3 for value in home]
        for index in range(int(rng.integers(1, 6))):
            for path, most in zip(paths, bounds, strict=True):
                low, high = reach(path, step, most)
                share = float(rng.choice([0.0, 1.0, 0.5, rng.random()])) if index < 4 else 0.5
                path.append(low + share * (high - low) * float(rng.choice([1.0, 1.0, 1.02])))
        actions = np.array([path[3:] for path in paths]).T
        now = START + 1_000_000
        chunk = chunk_of(
            robot,
            actions,
            stamp=now - late,
            observation_stamp=now - int(rng.integers(0, 100_000_000)),
            step=step,
            cost=0.5,
            margin=0.5,
            sequence=2,
        )
        loose, tight = (gate.submit(chunk, now, 0.001) for gate in gates)
        assert loose.approved or not tight.approved
        codes = {r.code for r in loose.reasons} - {r.code for r in tight.reasons}
        if ReasonCode.POSITION_LIMIT in {r.code for r in tight.reasons}:
            # Who is outside a limit is not also told that braking before it is impossible.
            codes -= {ReasonCode.STOPPING_DISTANCE}
        # Without a structure there is nothing more to be said about a chunk.
        structure = {ReasonCode.HORIZON_INVALID, ReasonCode.STEP_INVALID}
        assert not codes or structure & {r.code for r in tight.reasons}
        approved += loose.approved
        differed += loose.approved and not tight.approved
    assert differed > 1
    assert approved > 30


def test_a_further_violation_removes_no_reason() -> None:
    rng = np.random.default_rng(1)
    seen: set[str] = set()
    for _ in range(300):
        robot = ROBOTS[int(rng.integers(len(ROBOTS)))]
        home = np.array(home_of(robot))
        actions = home + np.cumsum(rng.normal(0.0, 0.2, (5, len(home))), axis=0)
        chunk = chunk_of(robot, actions)
        more: tuple[dict[str, Any], ...] = (
            {"embodiment": "another"},
            {"epoch": 7},
            {"observation_stamp": 0},
            {"observation_stamp": START + 10_000_000_000},
            {"actions": np.vstack([actions, np.full(len(home), math.nan)])},
            {"actions": np.vstack([actions, np.full(len(home), 1e300)])},
            {"actions": np.vstack([actions, np.full(len(home), math.inf)])},
        )
        codes = {r.code for r in armed(robot).submit(chunk, START, 0.0).reasons}
        for change in more:
            changed = replace(chunk, **change)
            worse = {r.code for r in armed(robot).submit(changed, START, 0.0).reasons}
            # A chunk that is longer is not braked from where it ended before.
            longer = {ReasonCode.SUSTAINED_VELOCITY} if "actions" in change else set()
            assert codes - longer <= worse, change
            assert worse
        seen |= {str(code) for code in codes}
    assert {"ACCELERATION_LIMIT", "JERK_LIMIT", "SEAM_COMMANDED", "VELOCITY_LIMIT"} <= seen


def test_the_order_of_the_joints_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        robot = ROBOTS[int(rng.integers(len(ROBOTS)))]
        home = np.array(home_of(robot))
        scale = float(rng.choice([0.001, 0.01, 0.1]))
        actions = home + np.cumsum(rng.normal(0.0, scale, (4, len(home))), axis=0)
        order = rng.permutation(len(home))
        chunk = chunk_of(robot, actions)
        names = tuple(robot.joint_names[i] for i in order)
        gates = armed(robot), armed(robot)
        verdicts = (
            gates[0].submit(chunk, START, 0.0),
            gates[1].submit(
                replace(chunk, joint_names=names, actions=actions[:, order]), START, 0.0
            ),
        )
        assert verdicts[0].reasons == verdicts[1].reasons
        points = [gate.tick(START, 0.0) for gate in gates]
        assert points[0] is not None
        assert points[1] is not None
        assert (points[0].position == points[1].position).all()


# 4: garbage

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=8),
    st.lists(st.floats(), max_size=4),
    st.lists(st.lists(st.floats(), max_size=3), max_size=4),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=2),
    st.just(object()),
)
FIELDS = tuple(ActionChunk.__dataclass_fields__)


def assert_calm(gate: SafetyGate) -> None:
    """The robot stays where it is, but for the one step that an approved chunk may ask for."""
    home = np.array(home_of(TABLE))
    for tick in range(1, 4):
        point = gate.tick(START + tick * 1_000_000, tick * 0.001)
        if point is not None:
            assert np.isfinite(point.position).all()
            moved = np.abs(point.position - home).max()
            assert moved <= (0.25 + 2e-6 if point.index >= 0 or point.braking else 0.0)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1))
def test_a_garbled_chunk_never_raises_and_never_moves_the_robot(changes: dict[str, Any]) -> None:
    gate = armed()
    good = chunk_of(TABLE, np.tile(home_of(TABLE), (3, 1)))
    verdict = gate.submit(replace(good, **changes), START, 0.0)
    assert verdict.approved or verdict.reasons
    assert_calm(gate)


PUBLIC = {
    name: method
    for name, method in inspect.getmembers(SafetyGate, inspect.isfunction)
    if not name.startswith("_") and ":raises" not in (method.__doc__ or "")
}


@pytest.mark.parametrize("name", PUBLIC)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_garbage_never_raises_and_never_moves_the_robot(name: str, data: st.DataObject) -> None:
    """Everything but the caller's own clock may be anything."""
    gate = armed()
    clock = {"now": 0.0, "ros_now": START}
    arguments = {
        parameter: clock[parameter] if parameter in clock else data.draw(anything)
        for parameter in list(inspect.signature(PUBLIC[name]).parameters)[1:]
    }
    getattr(gate, name)(**arguments)
    assert_calm(gate)


def test_bytes_that_pass_for_a_chunk_never_raise_and_never_move_the_robot() -> None:
    """A good message with a few of its bytes changed, judged as the node would."""
    rng = np.random.default_rng(3)
    home = np.array(home_of(TABLE))
    good = np.frombuffer(
        serialize_message(convert.chunk_to_msg(chunk_of(TABLE, np.tile(home, (3, 1))), "world")),
        dtype=np.uint8,
    )
    outcomes: Counter[str] = Counter()
    for _ in range(1500):
        data = good.copy()
        where = rng.integers(len(data), size=int(rng.integers(1, 4)))
        data[where] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], size=len(where))
        gate = armed()
        try:
            message = deserialize_capped(data.tobytes(), ActionChunkMsg, "chunk", 100_000)
            chunk = convert.chunk_from_msg(message)
        except WorldForgeError as error:
            gate.refuse(0, ReasonCode.MALFORMED, error.message, START, 0.0)
            outcomes["unreadable"] += 1
        else:
            verdict = gate.submit(chunk, START, 0.0)
            assert gate.last_error is None, chunk
            outcomes[verdict.word] += 1
        assert_calm(gate)
    assert min(outcomes[word] for word in ("unreadable", "APPROVED", "REJECTED")) > 50, outcomes


# 5: exceptions


def inner_functions() -> list[tuple[Any, str]]:
    """Everything that the gate runs, of its own classes and modules."""
    found: list[tuple[Any, str]] = []
    classes = (SafetyGate, stream.SetPointStream, course.Course, JointLimits, StopLine, Heartbeats)
    for owner in (*classes, differences.Differences, differences.Brake, checks.Schedule):
        for name, member in vars(owner).items():
            plain = not name.startswith("__") and not inspect.isclass(member)
            if plain and (callable(member) or isinstance(member, classmethod | staticmethod)):
                found.append((owner, name))
    for module in (checks, clamping, differences, stream):
        for name, member in vars(module).items():
            if inspect.isfunction(member) and member.__module__ == module.__name__:
                found.append((module, name))
    return found


def tick_many(gate: SafetyGate, clock: list[float], count: int, where: list[float]) -> None:
    for _ in range(count):
        clock[0] += 0.01
        ros = START + round(clock[0] * 1e9)
        gate.update_joint_state(TABLE.joint_names, where, [0.0, 0.0], ros, clock[0])
        point = gate.tick(ros, clock[0])
        if point is not None:
            where[:] = point.position.tolist()


def exercise(gate: SafetyGate, watch: Callable[[], None]) -> None:
    """Use all of the gate; ``watch`` is called after every step."""
    clock, where = [0.0], home_of(TABLE)
    sequence = 0

    def propose(speed: float, **changes: Any) -> None:
        nonlocal sequence
        sequence += 1
        ros = START + round(clock[0] * 1e9)
        rows = np.array(where) + speed * 0.05 * np.arange(1, 5)[:, np.newaxis]
        given: dict[str, Any] = {"stamp": ros, "step": 0.05, "sequence": sequence}
        given |= {"epoch": gate.epoch, "cost": 0.5, "margin": 0.5, "observation_stamp": ros}
        given |= changes
        gate.submit(chunk_of(TABLE, given.pop("actions", rows), **given), ros, clock[0])
        watch()

    def moment() -> tuple[int, float]:
        return START + round(clock[0] * 1e9), clock[0]

    gate.beat("planner", 0.0)
    gate.proposers(1)
    gate.stop_publishers(1)
    gate.protective_stop(False, 0.0)
    watch()
    tick_many(gate, clock, 1, where)
    gate.enable(True, *moment())
    watch()
    propose(0.0, actions=np.array([where]) + 0.13, step=0.1)
    tick_many(gate, clock, 40, where)
    watch()
    propose(0.8)
    tick_many(gate, clock, 3, where)
    watch()
    gate.trajectory(moment()[0])
    propose(0.8, stamp=moment()[0] + 100_000_000)
    tick_many(gate, clock, 3, where)
    watch()
    # One that holds, ones that are wrong in every way.
    propose(0.2, cost=9.0)
    tick_many(gate, clock, 3, where)
    gate.trajectory(moment()[0])
    watch()
    for change in (
        {"stamp": 0, "observation_stamp": 0, "embodiment": "x", "epoch": 9, "sequence": 0},
        {"actions": np.zeros((0, 2)), "step": -1.0, "joint_names": ("a",), "source": "x"},
        {"actions": np.full((9, 2), math.nan), "model_id": "x", "margin": 0.0},
        {"actions": np.full((9, 2), 9.0), "stamp": moment()[0] - 400_000_000, "step": 0.01},
        {"actions": np.array([[0.0, 0.5], [0.5, 0.0]] * 4)},
    ):
        propose(0.2, **change)
    gate.refuse(1, ReasonCode.MALFORMED, "test", *moment())
    watch()
    tick_many(gate, clock, 40, where)
    watch()
    gate.proposers(2)
    propose(0.2)
    gate.proposers(1)
    gate.protective_stop(True, clock[0])
    watch()
    gate.rearm(*moment())
    watch()
    gate.protective_stop(False, clock[0])
    gate.rearm(*moment())
    watch()
    gate.update_joint_state(TABLE.joint_names, [math.nan] * 2, [0.0] * 2, START, clock[0])
    watch()
    tick_many(gate, clock, 1, where)
    gate.rearm(*moment())
    gate.enable(False, *moment())
    watch()
    gate.stop("test", clock[0])
    watch()


# Called while a gate is made, the handler of exceptions itself, and what only others use.
NOT_INSIDE = {"configure", "check_changeable", "_take", "fault", "_internal", "_failed", "feasible"}
BOUNDARY = [(SafetyGate, name) for name in PUBLIC]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(o, n) for o, n in inner_functions() if n not in NOT_INSIDE and (o, n) not in BOUNDARY],
    ids=lambda value: value if isinstance(value, str) else value.__name__.split(".")[-1],
)
def test_any_exception_inside_stops_the_gate(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactions = dict.fromkeys(CLAMPABLE, Reaction.CLAMP) | dict(DEFAULT_REACTIONS)
    config = replace(
        LENIENT,
        max_rejections=30,
        max_chunk_rate=50.0,
        max_cost=1.0,
        min_margin=0.1,
        position_margin=0.001,
        max_tracking_error=0.3,
        heartbeats=("planner",),
        heartbeat_timeout=30.0,
        protective_stop_lease=None,
        stop_after_hold=None,
        allowed_sources=("policy",),
        reactions=reactions,
    )
    spec = ROBOTS[1].workspace
    assert spec is not None
    wide = replace(spec, keep_out=(), polygon=(), box=Box((0.0, 0.0, -1.0), (1.0, 1.0, 1.0)))
    gate = SafetyGate(TABLE, config, workspace_of(replace(TABLE, workspace=wide), None))
    calls = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError(f"{name} failed")

    def watch() -> None:
        if calls:
            raise _StoppedAsItShould

    original = inspect.getattr_static(owner, name)
    broken: Any = fail
    if isinstance(original, staticmethod | classmethod):
        broken = staticmethod(fail)
    monkeypatch.setattr(owner, name, broken)
    for module in (checks, clamping, differences, stream, gate_module, trajectory, course):
        for key, value in list(vars(module).items()):
            if value is original:
                monkeypatch.setattr(module, key, broken)
            elif isinstance(value, tuple) and original in value:
                monkeypatch.setattr(
                    module, key, tuple(broken if item is original else item for item in value)
                )
    with contextlib.suppress(_StoppedAsItShould):
        exercise(gate, watch)
    assert calls, f"nothing here calls {name}; extend exercise() or NOT_INSIDE"
    assert gate.mode is GateMode.STOPPED
    assert gate.last_error is not None
    places = []
    for tick in range(50):
        point = gate.tick(START + 2_000_000_000 + tick * 10_000_000, 2.0 + tick * 0.01)
        assert gate.mode is GateMode.STOPPED
        if point is not None:
            assert point.index < 0
            places.append(point.position.tolist())
    assert all(place == places[0] for place in places)


class _StoppedAsItShould(Exception):
    """The function under test was called."""
