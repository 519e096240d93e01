"""What the gate guarantees, for random and adversarial chunks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.embodiment import Embodiment, Joint, load_embodiment
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.gate import GateMode, SafetyGate, SetPoint

START = 1_000_000_000_000
NAMES = ("pusher_x", "pusher_y")
LOWER, UPPER, SPEED = 0.0, 0.512, 1.0
HOME = np.array([0.25, 0.25])
TOLERANCE = 2e-6
SLOW = settings(max_examples=150, deadline=None)


def robot(lower: float = LOWER, upper: float = UPPER, speed: float = SPEED) -> Embodiment:
    joints = tuple(Joint(name, "prismatic", lower, upper, speed) for name in NAMES)
    return replace(load_embodiment("pusht"), joints=joints)


PUSHT = robot()


def chunk_of(actions: Any, *, stamp: int, step: float, epoch: int, sequence: int) -> ActionChunk:
    return ActionChunk(
        stamp=stamp,
        embodiment="pusht",
        joint_names=NAMES,
        step=step,
        actions=actions,
        source="policy",
        epoch=epoch,
        sequence=sequence,
        observation_stamp=stamp if stamp > 0 else 1,
    )


def armed(embodiment: Embodiment = PUSHT) -> SafetyGate:
    gate = SafetyGate(embodiment)
    gate.update_joint_state(NAMES, HOME.tolist(), (0.0, 0.0), START, 0.0)
    assert gate.enable(True, START, 0.0).success
    return gate


# Values that sit on, beside and far from every limit.
edges = st.sampled_from([0.0, -1e-7, -1e-5, 0.512, 0.5120001, 0.51201, 0.25, 0.35, 0.3500011, 0.15])
anywhere = st.floats(-0.1, 0.6)
wild = st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300])


@st.composite
def walks(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    """Chunks near the robot, of which many are approved, with an occasional poisoned value."""
    horizon = draw(st.integers(1, 8))
    scale = draw(st.sampled_from([0.0, 0.02, 0.1, 0.10001, 0.2]))
    moves = draw(st.lists(st.tuples(*[st.floats(-1, 1)] * 2), min_size=horizon, max_size=horizon))
    start = draw(st.sampled_from([(0.25, 0.25), (0.3, 0.2), (0.35, 0.25), (0.45, 0.06)]))
    actions = np.array(start) + np.cumsum(np.array(moves) * scale, axis=0)
    if draw(st.booleans()):
        actions = np.clip(actions, LOWER, UPPER)
    if draw(st.integers(0, 9)) == 0:
        row = draw(st.integers(0, horizon - 1))
        actions[row, draw(st.integers(0, 1))] = draw(st.one_of(edges, anywhere, wild))
    if draw(st.booleans()):
        with np.errstate(over="ignore"):
            actions = actions.astype(np.float32).astype(np.float64)
    return actions


steps = st.sampled_from([0.02, 0.05, 0.1, 0.25])


@SLOW
@given(actions=walks(), step=steps, late=st.floats(-0.1, 0.4))
def test_an_approved_chunk_obeys_every_limit(
    actions: npt.NDArray[np.float64], step: float, late: float
) -> None:
    gate = armed()
    stamp = START - round(late * 1e9)
    verdict = gate.submit(
        chunk_of(actions, stamp=stamp, step=step, epoch=1, sequence=1), START, 0.0
    )
    first = max(0, (START - stamp) // round(step * 1e9))
    left = actions[first:]
    path = np.vstack([HOME, left])
    inside = bool(((left >= LOWER - TOLERANCE) & (left <= UPPER + TOLERANCE)).all())
    slow = bool((np.abs(np.diff(path, axis=0)) <= SPEED * step + TOLERANCE).all())
    if verdict.approved:
        assert len(left) > 0
        assert np.isfinite(actions).all()
        assert inside
        assert slow
    elif len(left) > 0 and np.isfinite(actions).all() and late <= 0.4:
        # Nothing else is wrong with these chunks: what is well inside must be approved.
        well_inside = ((left >= LOWER) & (left <= UPPER)).all()
        well_slow = (np.abs(np.diff(path, axis=0)) <= SPEED * step).all()
        assert not (well_inside and well_slow), verdict


plans = st.lists(
    st.tuples(walks(), steps, st.floats(-0.15, 0.3), st.integers(1, 30)), min_size=1, max_size=8
)


@SLOW
@given(plans=plans, lag=st.sampled_from([0.0, 0.5, 0.95]), tick=st.sampled_from([0.01, 0.037]))
def test_the_stream_of_set_points_obeys_every_limit(plans: Any, lag: float, tick: float) -> None:
    """Whatever is proposed and however often: positions, each step, and speed over any time."""
    gate = armed()
    measured, time = HOME.copy(), 0.0
    stream: list[tuple[float, npt.NDArray[np.float64]]] = []
    last: SetPoint | None = None
    boundaries = 0
    longest = 0.0
    for sequence, (actions, step, late, ticks) in enumerate(plans, start=1):
        now = START + round(time * 1e9)
        proposal = chunk_of(
            actions,
            stamp=now - round(late * 1e9),
            step=step,
            epoch=gate.epoch,
            sequence=sequence,
        )
        if gate.submit(proposal, now, time).approved:
            longest = max(longest, step)
        for _ in range(ticks):
            time += tick
            now = START + round(time * 1e9)
            gate.update_joint_state(NAMES, measured.tolist(), (0.0, 0.0), now, time)
            point = gate.tick(now, time)
            assert point is not None
            assert ((point.position >= LOWER) & (point.position <= UPPER)).all()
            if point.index < 0 and gate.mode is not GateMode.ARMED:
                stream.clear()
                last = None
            elif point.index >= 0:
                if last is not None:
                    same = point.sequence == last.sequence
                    boundaries = point.index - last.index if same else 1 + round(tick / 0.02) + 1
                    reach = SPEED * longest * boundaries + TOLERANCE
                    assert (np.abs(point.position - last.position) <= reach).all()
                last = point
                stream.append((time, point.position))
            measured = measured * lag + point.position * (1 - lag)
    if stream:
        times = np.array([t for t, _ in stream])
        positions = np.stack([p for _, p in stream])
        elapsed = np.abs(times[:, None] - times[None, :])[..., None]
        moved = np.abs(positions[:, None] - positions[None, :])
        # At most two steps ahead of the velocity limit, plus the time between two ticks.
        assert (moved <= SPEED * (elapsed + 2 * longest + tick) + 1e-5).all()


@SLOW
@given(
    first=walks(),
    second=walks(),
    step=steps,
    shrink=st.tuples(st.floats(0, 0.2), st.floats(0, 0.2), st.floats(0.1, 1.0)),
)
def test_tightening_a_limit_never_accepts_more(
    first: Any, second: Any, step: float, shrink: tuple[float, float, float]
) -> None:
    low, high, speed = shrink
    loose, tight = armed(), armed(robot(LOWER + low, UPPER - high, SPEED * speed))
    for sequence, actions in enumerate((first, second), start=1):
        verdicts = [
            gate.submit(
                chunk_of(actions, stamp=START, step=step, epoch=1, sequence=sequence), START, 0.0
            )
            for gate in (loose, tight)
        ]
        assert verdicts[0].approved or not verdicts[1].approved
        loose_codes, tight_codes = ({r.code for r in v.reasons} for v in verdicts)
        assert loose_codes <= tight_codes
        if verdicts[0].approved != verdicts[1].approved:
            break
        for gate in (loose, tight):
            gate.tick(START, 0.0)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), walks()),
        st.tuples(st.sampled_from(["stop", "rearm", "arm", "disarm", "silence"]), st.none()),
        st.tuples(st.just("button"), st.booleans()),
        st.tuples(st.just("run"), st.integers(1, 20)),
    ),
    min_size=5,
    max_size=30,
)


@SLOW
@given(operations=operations)
def test_nothing_moves_after_a_stop_until_rearm_and_a_chunk_of_the_new_epoch(
    operations: list[tuple[str, Any]],
) -> None:
    gate = SafetyGate(PUSHT)
    measured, time, sequence = HOME.copy(), 0.0, 0
    epochs: dict[int, int] = {}
    frozen: npt.NDArray[np.float64] | None = None
    pressed = False
    for name, argument in operations:
        before = (gate.mode, gate.epoch)
        now = START + round(time * 1e9)
        if name == "submit":
            sequence += 1
            epochs[sequence] = gate.epoch
            verdict = gate.submit(
                chunk_of(argument, stamp=now, step=0.1, epoch=gate.epoch, sequence=sequence),
                now,
                time,
            )
            if before[0] in (GateMode.STOPPED, GateMode.DISARMED):
                assert not verdict.approved
        elif name == "stop":
            gate.stop("test", time)
            assert gate.mode is GateMode.STOPPED
        elif name == "button":
            pressed = argument
            gate.protective_stop(argument, time)
            assert not pressed or gate.mode is GateMode.STOPPED
        elif name == "rearm":
            done = gate.rearm(now, time).success
            assert done == (gate.mode is not GateMode.STOPPED and before[0] is GateMode.STOPPED)
            assert not (done and pressed)
            assert gate.epoch == before[1] + done
        elif name in ("arm", "disarm"):
            gate.enable(name == "arm", now, time)
            if before[0] is GateMode.STOPPED:
                assert gate.mode is GateMode.STOPPED
        elif name == "silence":
            time += 0.3
        for _ in range(argument if name == "run" else 1):
            time += 0.01
            now = START + round(time * 1e9)
            if name != "silence":
                gate.update_joint_state(NAMES, measured.tolist(), (0.0, 0.0), now, time)
            point = gate.tick(now, time)
            if gate.mode is GateMode.DISARMED:
                assert point is None
            if point is not None:
                assert ((point.position >= LOWER) & (point.position <= UPPER)).all()
                if point.index >= 0:
                    assert gate.mode is GateMode.ARMED
                    assert epochs[point.sequence] == gate.epoch
                measured = measured * 0.5 + point.position * 0.5
            if gate.mode is GateMode.STOPPED and point is not None:
                assert frozen is None or (point.position == frozen).all()
                frozen = point.position
            else:
                frozen = None


anything = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.floats(), max_size=4),
    st.lists(st.lists(st.floats(), max_size=3), max_size=4),
    st.tuples(st.text(max_size=3)),
)


@SLOW
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["stamp", "joint_names", "step", "actions", "epoch", "sequence", "observation_stamp"]
        ),
        anything,
        min_size=1,
    ),
    position=anything,
    names=anything,
)
def test_garbage_never_raises_and_never_moves_the_robot(
    changes: dict[str, Any], position: Any, names: Any
) -> None:
    gate = armed()
    good = chunk_of(np.tile(HOME, (3, 1)), stamp=START, step=0.1, epoch=1, sequence=1)
    verdict = gate.submit(replace(good, **changes), START, 0.0)
    gate.update_joint_state(names, position, position, START + 1, 0.0)
    point = gate.tick(START, 0.0)
    assert point is not None
    assert np.isfinite(point.position).all()
    assert np.abs(point.position - HOME).max() <= SPEED * 0.25 + TOLERANCE
    if not verdict.approved:
        assert verdict.reasons
        assert gate.mode in (GateMode.HOLDING, GateMode.STOPPED)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["_judge", "_tick", "_take_joint_state", "_motion_flaws", "_execute"]),
    error=st.sampled_from([RuntimeError("x"), ValueError(), ZeroDivisionError(), KeyError("k")]),
    actions=walks(),
)
def test_any_exception_inside_stops_and_the_robot_stays(
    method: str, error: Exception, actions: Any
) -> None:
    gate = armed()
    gate.submit(chunk_of(actions, stamp=START, step=0.1, epoch=1, sequence=1), START, 0.0)
    gate.tick(START, 0.0)

    def fail(*_: object, **__: object) -> None:
        raise error

    setattr(gate, method, fail)
    still = np.tile(HOME, (3, 1))
    gate.submit(chunk_of(still, stamp=START, step=0.1, epoch=1, sequence=2), START, 0.0)
    gate.update_joint_state(NAMES, HOME.tolist(), (0.0, 0.0), START + 1, 0.0)
    gate.tick(START, 0.0)
    if method == "_execute" and gate.mode is GateMode.HOLDING:
        return
    assert gate.mode is GateMode.STOPPED
    delattr(gate, method)
    places = []
    for k in range(1, 40):
        point = gate.tick(START + k * 10_000_000, k * 0.01)
        assert point is not None
        places.append(point.position.tolist())
    assert all(place == places[0] for place in places)
