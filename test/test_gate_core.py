"""The gate's state machine and every reason code, with a clock in the test's hands."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.embodiment import Embodiment, Joint, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety import checks
from worldforge_ros.safety.checks import GateConfig, Reason, ReasonCode
from worldforge_ros.safety.gate import GateMode, SafetyGate, SetPoint

START = 1_000_000_000_000
STEP = 0.1
NAMES = ("pusher_x", "pusher_y")
HOME = (0.25, 0.25)


class Rig:
    """A gate with a robot that stands where it was put; ROS time and real time advance together."""

    def __init__(self, config: GateConfig | None = None, embodiment: Embodiment | None = None):
        self.gate = SafetyGate(embodiment or load_embodiment("pusht"), config)
        self.time = 0.0
        self.position = HOME
        self.velocity = (0.0, 0.0)
        self.sequence = 0

    @property
    def ros(self) -> int:
        return START + round(self.time * 1e9)

    def sense(self) -> None:
        self.gate.update_joint_state(NAMES, self.position, self.velocity, self.ros, self.time)

    def advance(self, seconds: float, *, sensing: bool = True) -> SetPoint | None:
        """Tick every 10 ms; returns the last set-point."""
        point = None
        for _ in range(round(seconds * 100)):
            self.time += 0.01
            if sensing:
                self.sense()
            point = self.gate.tick(self.ros, self.time)
        return point

    def armed(self) -> Rig:
        self.sense()
        outcome = self.gate.enable(True, self.ros, self.time)
        assert outcome.success, outcome
        return self

    def chunk(self, *, actions: Any = None, **changes: Any) -> ActionChunk:
        self.sequence += 1
        if actions is None:
            actions = np.tile(HOME, (5, 1))
        fields: dict[str, Any] = {
            "stamp": self.ros,
            "embodiment": "pusht",
            "joint_names": NAMES,
            "step": STEP,
            "actions": np.asarray(actions, dtype=np.float64),
            "source": "policy",
            "epoch": self.gate.epoch,
            "sequence": self.sequence,
            "observation_stamp": self.ros,
        }
        return ActionChunk(**{**fields, **changes})

    def submit(self, **changes: Any) -> set[ReasonCode]:
        verdict = self.gate.submit(self.chunk(**changes), self.ros, self.time)
        codes = {reason.code for reason in verdict.reasons}
        assert verdict.approved == (not codes)
        return codes


def ramp(count: int, step: float = 0.05) -> list[tuple[float, float]]:
    """Set-points from HOME along x, ``step`` metres apart."""
    return [(HOME[0] + step * (k + 1), HOME[1]) for k in range(count)]


def test_starts_disarmed_and_silent() -> None:
    rig = Rig()
    assert rig.gate.mode is GateMode.DISARMED
    assert rig.advance(0.1) is None
    assert rig.submit() == {ReasonCode.NOT_ARMED}
    assert rig.advance(0.1) is None


def test_arming_holds_the_measured_position() -> None:
    rig = Rig().armed()
    assert rig.gate.mode is GateMode.HOLDING
    rig.position = (0.26, 0.25)
    point = rig.advance(0.05)
    assert point is not None
    assert point.position.tolist() == list(HOME)
    assert (point.sequence, point.index, point.is_new_action) == (0, -1, False)


def test_executes_each_action_in_its_time_then_holds_where_the_robot_is() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(3)) == set()
    assert rig.gate.mode is GateMode.ARMED
    seen = []
    for _ in range(30):
        point = rig.gate.tick(rig.ros, rig.time)
        assert point is not None
        seen.append((point.index, point.is_new_action, point.first_of_chunk, point.position[0]))
        rig.time += 0.01
        rig.sense()
    assert [index for index, *_ in seen] == [0] * 10 + [1] * 10 + [2] * 10
    assert [i for i, (_, new, *_) in enumerate(seen) if new] == [0, 10, 20]
    assert [i for i, (_, _, first, _) in enumerate(seen) if first] == [0]
    assert seen[25][3] == pytest.approx(0.40)
    rig.position = (0.37, 0.25)
    point = rig.advance(0.02)
    assert rig.gate.mode is GateMode.HOLDING
    assert point is not None
    assert point.position.tolist() == [0.37, 0.25]
    rig.position = (0.375, 0.25)
    point = rig.advance(0.5)
    assert point is not None
    assert point.position.tolist() == [0.37, 0.25], "a hold is latched, not re-read"
    counters = rig.gate.counters
    assert (counters.steps_executed, counters.holds, counters.approved) == (3, 1, 1)


def test_skips_actions_that_are_past_on_arrival() -> None:
    rig = Rig().armed()
    rig.advance(0.25)
    assert rig.submit(stamp=rig.ros - 250_000_000, actions=ramp(5, 0.02)) == set()
    point = rig.advance(0.01)
    assert point is not None
    assert (point.index, point.first_of_chunk) == (2, True)
    assert point.position[0] == pytest.approx(0.31)


def test_a_past_action_may_break_limits_a_remaining_one_may_not() -> None:
    rig = Rig().armed()
    rig.advance(0.25)
    actions = np.tile(HOME, (5, 1))
    actions[0] = (9.0, -9.0)
    assert rig.submit(stamp=rig.ros - 250_000_000, actions=actions) == set()
    actions = np.tile(HOME, (5, 1))
    actions[4] = (9.0, -9.0)
    codes = rig.submit(stamp=rig.ros - 250_000_000, actions=actions)
    assert {ReasonCode.POSITION_LIMIT, ReasonCode.VELOCITY_LIMIT} <= codes


def test_a_small_step_back_of_time_never_reaches_an_unjudged_action() -> None:
    rig = Rig().armed()
    rig.advance(0.25)
    actions = np.tile(HOME, (5, 1))
    actions[:2] = 9.0
    assert rig.submit(stamp=rig.ros - 210_000_000, actions=actions) == set()
    point = rig.gate.tick(rig.ros - 150_000_000, rig.time)
    assert point is not None
    assert point.position.tolist() == list(HOME)


def test_a_newer_chunk_replaces_the_executing_one_at_once() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.advance(0.05)
    assert rig.submit(actions=np.tile((0.2, 0.2), (5, 1))) == set()
    point = rig.advance(0.01)
    assert point is not None
    assert point.position.tolist() == [0.2, 0.2]
    assert point.sequence == 2


def test_a_chunk_that_begins_later_waits_for_its_stamp() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(1)) == set()
    rig.advance(0.02)
    assert rig.submit(stamp=rig.ros + 150_000_000, actions=ramp(3)) == set()
    point = rig.advance(0.13)
    assert point is not None
    assert (point.position[0], rig.gate.mode) == (pytest.approx(0.30), GateMode.ARMED)
    point = rig.advance(0.03)
    assert point is not None
    assert (point.sequence, point.index) == (2, 0)


def test_joints_are_reordered_by_name() -> None:
    rig = Rig().armed()
    actions = np.tile((0.21, 0.29), (2, 1))
    assert rig.submit(joint_names=("pusher_y", "pusher_x"), actions=actions) == set()
    point = rig.advance(0.01)
    assert point is not None
    assert point.position.tolist() == [0.29, 0.21]


def test_float32_rounding_of_a_limit_passes_and_is_sent_as_the_limit() -> None:
    rig = Rig()
    rig.position = (0.5, 0.25)
    rig.armed()
    rounded = float(np.float32(0.512))
    assert rounded > 0.512
    assert rig.submit(actions=[(rounded, 0.25)]) == set()
    point = rig.advance(0.01)
    assert point is not None
    assert point.position[0] == 0.512
    assert rig.submit(actions=[(0.512002, 0.25)]) == {ReasonCode.POSITION_LIMIT}


LATE = START - 2_000_000_000

BAD = {
    "nan": ({"actions": [(math.nan, 0.25)]}, {ReasonCode.NOT_FINITE}),
    "three columns": ({"actions": np.full((2, 3), 0.25)}, {ReasonCode.SHAPE_MISMATCH}),
    "flat": ({"actions": np.full(4, 0.25)}, {ReasonCode.SHAPE_MISMATCH}),
    "empty": ({"actions": np.empty((0, 2))}, {ReasonCode.HORIZON_INVALID}),
    "endless": ({"actions": np.full((513, 2), 0.25)}, {ReasonCode.HORIZON_INVALID}),
    "other joints": ({"joint_names": ("a", "b")}, {ReasonCode.JOINT_NAMES_MISMATCH}),
    "doubled joint": (
        {"joint_names": ("pusher_x", "pusher_x")},
        {ReasonCode.JOINT_NAMES_MISMATCH},
    ),
    "one joint missing": ({"joint_names": ("pusher_x",)}, {ReasonCode.JOINT_NAMES_MISMATCH}),
    "no step": ({"step": 0.0}, {ReasonCode.STEP_INVALID}),
    "step back": ({"step": -0.1}, {ReasonCode.STEP_INVALID}),
    "nan step": ({"step": math.nan}, {ReasonCode.STEP_INVALID}),
    "long step": ({"step": 0.3}, {ReasonCode.STEP_INVALID}),
    "other robot": ({"embodiment": "aloha"}, {ReasonCode.EMBODIMENT_MISMATCH}),
    "other source": ({"source": "stranger"}, {ReasonCode.SOURCE_NOT_ALLOWED}),
    "old epoch": ({"epoch": 0}, {ReasonCode.EPOCH_MISMATCH}),
    "future epoch": ({"epoch": 2}, {ReasonCode.EPOCH_MISMATCH}),
    "no stamp": ({"stamp": 0}, {ReasonCode.CHUNK_STAMP_UNSET, ReasonCode.CHUNK_OVER}),
    "future": ({"stamp": START + 300_000_000}, {ReasonCode.CHUNK_IN_FUTURE}),
    "over": ({"stamp": START - 500_000_000}, {ReasonCode.CHUNK_OVER}),
    "too old": (
        {"stamp": START - 600_000_000, "actions": np.tile(HOME, (10, 1))},
        {ReasonCode.CHUNK_TOO_OLD},
    ),
    "no observation": ({"observation_stamp": 0}, {ReasonCode.OBSERVATION_STAMP_UNSET}),
    "old observation": ({"observation_stamp": LATE}, {ReasonCode.OBSERVATION_TOO_OLD}),
    "early observation": (
        {"observation_stamp": START + 300_000_000},
        {ReasonCode.OBSERVATION_IN_FUTURE},
    ),
    "outside": (
        {"actions": [(HOME[0], 0.25 + 0.09 * k) for k in range(1, 5)]},
        {ReasonCode.POSITION_LIMIT},
    ),
    "too fast": ({"actions": [HOME, (0.36, 0.25)]}, {ReasonCode.VELOCITY_LIMIT}),
    "jump": (
        {"actions": [(0.36, 0.25)]},
        {ReasonCode.SEAM_COMMANDED, ReasonCode.SEAM_MEASURED},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_every_fault_of_a_chunk_has_its_code(name: str) -> None:
    changes, expected = BAD[name]
    rig = Rig(GateConfig(allowed_sources=("policy", "cem"))).armed()
    assert rig.submit(**changes) == expected
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.last_verdict is not None
    assert all(len(reason.message) > 15 for reason in rig.gate.last_verdict.reasons)
    counted = rig.gate.counters.rejected_by_code
    assert counted == {str(code): 1 for code in expected}


def test_a_rejected_chunk_lists_everything_that_it_violates() -> None:
    rig = Rig(GateConfig(allowed_sources=("cem",))).armed()
    actions = [(0.25, 0.25), (math.nan, 0.25), (0.25, 2.0), (0.25, 0.25)]
    assert rig.submit(
        actions=actions, embodiment="x", epoch=7, observation_stamp=0, source="policy"
    ) == {
        ReasonCode.NOT_FINITE,
        ReasonCode.POSITION_LIMIT,
        ReasonCode.VELOCITY_LIMIT,
        ReasonCode.SUSTAINED_VELOCITY,
        ReasonCode.EMBODIMENT_MISMATCH,
        ReasonCode.EPOCH_MISMATCH,
        ReasonCode.OBSERVATION_STAMP_UNSET,
        ReasonCode.SOURCE_NOT_ALLOWED,
    }


def test_the_seam_is_measured_from_the_set_point_while_executing() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(2, 0.09)) == set()
    rig.advance(0.15)
    # The set-point is 0.43; the robot, which lags it by a lot, is still at 0.25.
    assert rig.submit(actions=[(0.25, 0.25)]) == {ReasonCode.SEAM_COMMANDED}
    assert rig.submit(actions=[(0.43, 0.25)]) == set()


def test_the_seam_of_a_hold_is_measured_from_the_robot_too() -> None:
    rig = Rig().armed()
    rig.position = (0.32, 0.25)
    rig.advance(0.05)
    assert rig.submit(actions=[(0.20, 0.25)]) == {ReasonCode.SEAM_MEASURED}
    assert rig.submit(actions=[(0.36, 0.25)]) == {ReasonCode.SEAM_COMMANDED}
    assert rig.submit(actions=[(0.30, 0.25)]) == set()


def test_many_small_jumps_do_not_add_up_to_a_fast_move() -> None:
    rig = Rig()
    rig.position = (0.05, 0.25)
    rig.armed()
    refused: list[set[ReasonCode]] = []
    highest = 0.05
    for k in range(1, 6):
        target = 0.05 + 0.09 * k
        codes = rig.submit(actions=[(target, 0.25)])
        point = rig.advance(0.01)
        assert point is not None
        highest = max(highest, point.position[0])
        refused.append(codes)
    assert refused[0] == refused[1] == set()
    assert ReasonCode.SUSTAINED_VELOCITY in refused[2]
    assert highest == pytest.approx(0.23)


def test_sequences_must_rise_and_a_refused_one_does_not_count() -> None:
    rig = Rig().armed()
    assert rig.submit(sequence=5) == set()
    assert rig.submit(sequence=2**63, epoch=0) == {ReasonCode.EPOCH_MISMATCH}
    assert rig.submit(sequence=5) == {ReasonCode.SEQUENCE_NOT_INCREASING}
    assert rig.submit(sequence=4) == {ReasonCode.SEQUENCE_NOT_INCREASING}
    assert rig.submit(sequence=6) == set()


def test_a_rejection_changes_nothing_that_executes() -> None:
    rig, other = Rig().armed(), Rig().armed()
    for each in (rig, other):
        assert each.submit(actions=ramp(4)) == set()
    for k in range(60):
        if k % 7 == 0:
            assert rig.submit(actions=[(3.0, math.nan)]) != set()
        ours, theirs = rig.advance(0.01), other.advance(0.01)
        assert ours is not None
        assert theirs is not None
        assert ours.position.tolist() == theirs.position.tolist()
    assert rig.gate.mode is other.gate.mode is GateMode.HOLDING


@pytest.mark.parametrize("field", ["min_position", "max_position", "max_velocity"])
def test_a_missing_limit_prevents_arming_and_is_named(field: str) -> None:
    pusht = load_embodiment("pusht")
    joints = (pusht.joints[0], replace(pusht.joints[1], **{field: None}))
    rig = Rig(embodiment=replace(pusht, joints=joints))
    rig.sense()
    outcome = rig.gate.enable(True, rig.ros, rig.time)
    assert not outcome.success
    assert f"LIMITS_INCOMPLETE: limit pusher_y.{field} is missing" in outcome.message
    assert ReasonCode.POSITION_LIMIT in rig.submit() or field == "max_velocity"


def test_a_continuous_joint_needs_no_position_limits() -> None:
    pusht = load_embodiment("pusht")
    joints = (Joint("pusher_x", "continuous", None, None, 1.0), pusht.joints[1])
    rig = Rig(embodiment=replace(pusht, joints=joints)).armed()
    assert rig.submit(actions=[(0.3, 0.25)]) == set()


@pytest.mark.parametrize(
    ("position", "velocity", "code"),
    [
        ((0.6, 0.25), (0.0, 0.0), "MEASURED_POSITION_LIMIT"),
        (HOME, (0.0, 0.06), "MOVING"),
        ((math.nan, 0.25), (0.0, 0.0), "JOINT_STATE_INVALID"),
        (HOME, (math.inf, 0.0), "JOINT_STATE_INVALID"),
        ((0.25,), (0.0, 0.0), "JOINT_STATE_INVALID"),
        (HOME, (), "JOINT_STATE_INVALID"),
    ],
)
def test_arming_refuses_a_bad_joint_state(position: Any, velocity: Any, code: str) -> None:
    rig = Rig()
    rig.position, rig.velocity = position, velocity
    rig.sense()
    outcome = rig.gate.enable(True, rig.ros, rig.time)
    assert not outcome.success
    assert code in outcome.message
    assert rig.gate.mode is GateMode.DISARMED
    rig.position, rig.velocity = HOME, (0.0, 0.0)
    rig.time += 0.01
    rig.armed()


def test_arming_needs_a_fresh_joint_state_a_clock_and_no_blocker() -> None:
    rig = Rig()
    assert "JOINT_STATE_MISSING" in rig.gate.enable(True, rig.ros, rig.time).message
    rig.sense()
    rig.time += 0.3
    assert "JOINT_STATE_STALE" in rig.gate.enable(True, rig.ros, rig.time).message
    rig.sense()
    assert "CLOCK_NOT_RUNNING" in rig.gate.enable(True, 0, rig.time).message
    blocker = Reason(ReasonCode.MULTIPLE_PUBLISHERS, "two of them")
    outcome = rig.gate.enable(True, rig.ros, rig.time, [blocker])
    assert outcome.message == "not armed: MULTIPLE_PUBLISHERS: two of them"
    assert rig.gate.mode is GateMode.DISARMED


def test_a_frozen_joint_state_counts_as_silence() -> None:
    rig = Rig().armed()
    frozen = rig.ros
    for _ in range(30):
        rig.time += 0.01
        rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), frozen, rig.time)
        rig.gate.tick(rig.ros, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("JOINT_STATE_STALE")


def test_joint_states_of_other_robots_are_left_aside() -> None:
    rig = Rig().armed()
    rig.gate.update_joint_state(("gripper",), (math.nan,), (), rig.ros, rig.time)
    assert rig.gate.mode is GateMode.HOLDING
    rig.gate.update_joint_state(("pusher_x",), (0.25,), (0.0,), rig.ros, rig.time)
    assert rig.gate.mode is GateMode.STOPPED


def test_silent_joint_states_stop_and_the_last_set_point_stays() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.advance(0.24, sensing=False)
    assert rig.gate.mode is GateMode.ARMED
    point = rig.advance(0.05, sensing=False)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("JOINT_STATE_STALE")
    assert point is not None
    assert point.position[0] == pytest.approx(0.31), "unknown position: the last set-point"
    assert rig.advance(0.5, sensing=False).position[0] == pytest.approx(0.31)  # type: ignore[union-attr]


def test_a_bad_joint_state_while_armed_stops_at_the_last_good_position() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.position = (0.26, 0.25)
    rig.advance(0.2)
    rig.position = (math.nan, 0.25)
    point = rig.advance(0.01)
    assert rig.gate.reason.startswith("JOINT_STATE_INVALID")
    assert point is not None
    assert point.position.tolist() == [0.26, 0.25]


def test_a_joint_measured_outside_its_limits_stops_without_commanding_that_place() -> None:
    rig = Rig().armed()
    rig.position = (0.2, 0.515)
    rig.advance(0.01)
    assert rig.gate.mode is GateMode.HOLDING, "within measured_tolerance"
    rig.position = (0.2, 0.53)
    point = rig.advance(0.01)
    assert rig.gate.reason.startswith("MEASURED_POSITION_LIMIT")
    assert point is not None
    assert point.position.tolist() == list(HOME)


def test_a_hold_that_would_begin_outside_the_limits_is_a_stop() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(1)) == set()
    rig.position = (0.25, 0.515)
    point = rig.advance(0.12)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("MEASURED_POSITION_LIMIT")
    assert point is not None
    assert point.position[1] <= 0.512


def test_a_stop_latches_where_the_robot_is_and_refuses_chunks() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.advance(0.2)
    rig.position = (0.265, 0.25)
    rig.sense()
    rig.time += 0.01
    rig.sense()
    rig.gate.stop("button", rig.time)
    rig.position = (0.27, 0.25)
    for _ in range(50):
        point = rig.advance(0.01)
        assert point is not None
        assert point.position.tolist() == [0.265, 0.25]
        assert rig.submit() == {ReasonCode.STOPPED}
    assert rig.gate.reason == "STOP_REQUESTED: button"
    for on in (True, False):
        assert not rig.gate.enable(on, rig.ros, rig.time).success
    rig.gate.stop("again", rig.time)
    assert rig.gate.reason == "STOP_REQUESTED: button", "the first cause is kept"
    assert rig.gate.counters.stops == 1


def test_rearm_holds_raises_the_epoch_and_forgets_the_chunk() -> None:
    rig = Rig().armed()
    before = rig.chunk(actions=np.tile(HOME, (5, 1)))
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.advance(0.05)
    rig.gate.stop("button", rig.time)
    assert rig.gate.rearm(rig.ros, rig.time).success
    assert (rig.gate.mode, rig.gate.epoch) == (GateMode.HOLDING, 2)
    verdict = rig.gate.submit(replace(before, sequence=99), rig.ros, rig.time)
    assert {reason.code for reason in verdict.reasons} == {ReasonCode.EPOCH_MISMATCH}
    point = rig.advance(0.3)
    assert point is not None
    assert point.position.tolist() == list(HOME)
    assert rig.submit(sequence=1) == set(), "sequences begin anew with the epoch"


def test_rearm_is_refused_while_the_cause_lasts() -> None:
    rig = Rig().armed()
    rig.gate.protective_stop(True, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert "PROTECTIVE_STOP" in rig.gate.rearm(rig.ros, rig.time).message
    rig.gate.protective_stop(False, rig.time)
    assert rig.gate.mode is GateMode.STOPPED, "a released button clears nothing"
    rig.velocity = (0.2, 0.0)
    rig.advance(0.01)
    assert "MOVING" in rig.gate.rearm(rig.ros, rig.time).message
    rig.velocity = (0.0, 0.0)
    rig.advance(0.01)
    assert rig.gate.rearm(rig.ros, rig.time).success
    assert not rig.gate.rearm(rig.ros, rig.time).success


def test_a_protective_stop_before_arming_latches_and_rearms_to_disarmed() -> None:
    rig = Rig()
    rig.sense()
    rig.gate.protective_stop(True, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.advance(0.05) is None, "a gate that was never armed sends nothing"
    assert not rig.gate.rearm(rig.ros, rig.time).success
    rig.gate.protective_stop(False, rig.time)
    assert rig.gate.rearm(rig.ros, rig.time).success
    assert rig.gate.mode is GateMode.DISARMED
    assert rig.advance(0.05) is None


def test_disarming_ends_the_stream_and_the_epoch() -> None:
    rig = Rig().armed()
    old = rig.chunk()
    assert rig.submit() == set()
    rig.advance(0.05)
    assert rig.gate.enable(False, rig.ros, rig.time).success
    assert rig.advance(0.05) is None
    rig.armed()
    verdict = rig.gate.submit(replace(old, sequence=50), rig.ros, rig.time)
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.EPOCH_MISMATCH]


def test_a_long_hold_stops_where_configured() -> None:
    rig = Rig(GateConfig(stop_after_hold=0.5)).armed()
    rig.advance(0.45)
    assert rig.gate.mode is GateMode.HOLDING
    rig.advance(0.1)
    assert rig.gate.reason.startswith("HOLD_TIMEOUT")


def test_a_robot_that_does_not_follow_stops_where_configured() -> None:
    rig = Rig(GateConfig(max_tracking_error=0.06)).armed()
    assert rig.submit(actions=ramp(3, 0.05)) == set()
    rig.advance(0.1)
    assert rig.gate.mode is GateMode.ARMED
    rig.advance(0.1)
    assert rig.gate.reason.startswith("TRACKING_ERROR")


def test_time_that_jumps_back_ends_the_chunk() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.05)
    rig.gate.tick(rig.ros - 10_000_000_000, rig.time)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason.startswith("CLOCK_JUMPED_BACK")


def test_time_that_jumps_ahead_ends_the_chunk() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.05)
    rig.gate.tick(rig.ros + 10_000_000_000, rig.time)
    assert rig.gate.mode is GateMode.HOLDING


@pytest.mark.parametrize("where", ["submit", "tick", "joint_state", "enable", "rearm", "stop"])
def test_an_exception_inside_is_a_stop(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(4)) == set()
    rig.advance(0.05)

    def boom(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    if where == "submit":
        monkeypatch.setattr(checks, "MOTION_CHECKS", (boom,))
        assert rig.submit() == {ReasonCode.INTERNAL_ERROR}
    elif where == "tick":
        monkeypatch.setattr(rig.gate, "_execute", boom)
        point = rig.gate.tick(rig.ros, rig.time)
        assert point is not None
    elif where == "joint_state":
        rig.gate.update_joint_state(None, (), (), rig.ros, rig.time)  # type: ignore[arg-type]
    elif where == "enable":
        monkeypatch.setattr(rig.gate, "_disarm", boom)
        assert not rig.gate.enable(False, rig.ros, rig.time).success
    elif where == "rearm":
        monkeypatch.setattr(rig.gate, "_rearm", boom)
        assert not rig.gate.rearm(rig.ros, rig.time).success
    else:
        monkeypatch.setattr(rig.gate, "_place_to_stop", boom)
        rig.gate.stop("button", rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.last_error is not None
    code = "STOP_REQUESTED" if where == "stop" else "INTERNAL_ERROR"
    assert rig.gate.reason.startswith(code)
    monkeypatch.undo()
    before = rig.advance(0.01)
    after = rig.advance(0.5)
    assert before is not None
    assert after is not None
    assert before.position.tolist() == after.position.tolist()


def test_a_trajectory_ends_at_rest_and_keeps_the_velocity_limit() -> None:
    rig = Rig().armed()
    rig.advance(0.095)
    assert rig.submit(stamp=rig.ros - 95_000_000, actions=ramp(4, 0.06)) == set()
    point = rig.gate.tick(rig.ros, rig.time)
    assert point is not None
    assert point.first_of_chunk
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    # 5 ms of the first action are left but its 0.06 m need 0.06 s at 1 m/s.
    np.testing.assert_allclose(trajectory.times, [0.06, 0.16, 0.26, 0.36])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.31, 0.37, 0.43, 0.49])
    np.testing.assert_allclose(trajectory.velocities[:, 1], 0.0)
    assert trajectory.velocities[-1].tolist() == [0.0, 0.0]
    assert np.abs(trajectory.velocities).max() <= 1.0


def test_a_configuration_that_switches_a_check_off_is_refused() -> None:
    with pytest.raises(WorldForgeError) as caught:
        GateConfig(joint_state_timeout=math.inf)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(WorldForgeError):
        GateConfig(max_observation_age=0.0)


def test_every_reason_code_is_explained() -> None:
    text = (Path(__file__).parents[1] / "docs" / "safety.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    explained = {row.split("`")[1] for row in rows if row.count("|") == 5}
    assert explained == {str(code) for code in ReasonCode}
