"""The gate's state machine and what it does while a chunk executes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_rig import HOME, NAMES, START, Rig, pusht, ramp, robot, xs

from worldforge_ros.safety import checks
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.stream import SetPointStream

FOR_GOOD = GateConfig(protective_stop_lease=None)


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


def test_the_seam_is_measured_from_the_set_point_while_executing() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(2, 0.09)) == set()
    rig.advance(0.15)
    # The set-point is 0.43; the robot, which lags it by a lot, is still at 0.25.
    assert rig.submit(actions=xs(0.30)) == {ReasonCode.SEAM_COMMANDED}
    assert rig.submit(actions=xs(0.43)) == set()


def test_the_seam_of_a_hold_is_measured_from_the_robot_too() -> None:
    rig = Rig().armed()
    rig.position = (0.32, 0.25)
    rig.advance(0.05)
    assert rig.submit(actions=[(0.20, 0.25)]) == {ReasonCode.SEAM_MEASURED}
    assert rig.submit(actions=[(0.36, 0.25)]) == {ReasonCode.SEAM_COMMANDED}
    assert rig.submit(actions=[(0.30, 0.25)]) == set()


def test_many_small_jumps_do_not_add_up_to_a_fast_move() -> None:
    rig = Rig(GateConfig(max_rejections=None), position=(0.05, 0.25)).armed()
    x, refused, approved = 0.05, 0, 0
    for _ in range(25):
        # Each is less than 1 m/s for a tenth of a second away from the set-point.
        codes = rig.submit(actions=xs(x + 0.09))
        approved, refused = approved + (not codes), refused + bool(codes)
        point = rig.advance(0.01)
        assert point is not None
        x = float(point.position[0])
        assert x <= 0.05 + 1.0 * rig.time + 0.1
    assert refused > 10
    assert approved > 1


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


BOUNDS = {
    "min_position": ReasonCode.POSITION_LIMIT,
    "max_position": ReasonCode.POSITION_LIMIT,
    "max_velocity": ReasonCode.VELOCITY_LIMIT,
    "max_acceleration": None,
    "max_deceleration": None,
    "max_jerk": None,
}


@pytest.mark.parametrize("field", BOUNDS)
def test_a_missing_limit_prevents_arming_and_is_named(field: str) -> None:
    joints = (pusht().joints[0], replace(pusht().joints[1], **{field: None}))
    rig = Rig(embodiment=replace(pusht(), joints=joints))
    rig.sense()
    outcome = rig.gate.enable(True, rig.ros, rig.time)
    assert not outcome.success
    assert f"LIMITS_INCOMPLETE: limit pusher_y.{field} is missing" in outcome.message
    assert rig.advance(0.05) is None
    codes = rig.submit(actions=[(0.25, 0.25), (0.25, 0.26)])
    assert codes - {ReasonCode.NOT_ARMED} == ({BOUNDS[field]} if BOUNDS[field] else set())


def test_a_continuous_joint_needs_no_position_limits() -> None:
    rig = Rig(embodiment=robot("continuous")).armed()
    assert rig.submit(actions=xs(0.3)) == set()


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
    rig.gate.proposers(2)
    assert rig.enable() == (
        "not armed: MULTIPLE_PUBLISHERS: number of publishers of proposed chunks is 2; expected one"
    )
    rig.gate.proposers(0)
    assert "NO_PUBLISHER" in rig.enable()
    assert rig.gate.mode is GateMode.DISARMED


def test_a_refusal_to_arm_lists_everything() -> None:
    rig = Rig(
        GateConfig(heartbeats=("planner_node",), protective_stop_required=True),
        robot(max_jerk=None),  # type: ignore[arg-type]
        position=(0.6, 0.25),
    )
    rig.velocity = (0.0, 0.06)
    rig.sense()
    rig.gate.proposers(0)
    codes = re.findall(r"([A-Z_]+): ", rig.gate.enable(True, 0, rig.time).message)
    assert codes == [
        "LIMITS_INCOMPLETE",
        "LIMITS_INCOMPLETE",
        "PROTECTIVE_STOP_LOST",
        "NO_PUBLISHER",
        "HEARTBEAT_LOST",
        "CLOCK_NOT_RUNNING",
        "JOINT_STATE_IN_FUTURE",
    ]
    codes = re.findall(r"([A-Z_]+): ", rig.enable())
    assert codes[-3:] == ["HEARTBEAT_LOST", "MEASURED_POSITION_LIMIT", "MOVING"]


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


def test_a_joint_measured_a_little_outside_is_held_at_its_limit() -> None:
    rig = Rig(position=(0.25, 0.521)).armed()
    assert rig.at(0.05) == (0.25, 0.512), "at arming"
    assert rig.submit(actions=[(0.30, 0.512)]) == set()
    rig.position = (0.29, 0.515)
    assert rig.at(0.2) == (0.29, 0.512), "at rest"
    assert rig.gate.mode is GateMode.HOLDING
    rig.position = (0.28, 0.52)
    rig.advance(0.01)
    rig.gate.stop("button", rig.time)
    assert rig.at(0.3) == (0.28, 0.512), "at a stop"
    rig = Rig(GateConfig(measured_tolerance=0.0), position=(0.25, 0.513))
    rig.sense()
    assert "MEASURED_POSITION_LIMIT" in rig.enable()


@pytest.mark.parametrize("leaps", ["the thread", "ROS time"])
@pytest.mark.parametrize("actions", [2, 3])
def test_a_set_point_that_would_catch_up_over_several_actions_holds(
    leaps: str, actions: int
) -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5)) == set()
    assert rig.at(0.05) == pytest.approx((0.30, 0.25))
    rig.position = (0.27, 0.25)
    if leaps == "the thread":
        rig.time += 0.1 * actions
    else:
        rig.jump = 0.1 * actions
    rig.time += 0.01
    rig.sense()
    point = rig.tick()
    assert point is not None
    if actions == 2:
        assert (point.position[0], rig.gate.mode) == (pytest.approx(0.40), GateMode.ARMED)
        return
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason == (
        "SET_POINT_LATE: actions due since the last tick are 3; expected at most 2"
    )
    assert (point.position.tolist(), point.braking, point.index) == ([0.27, 0.25], False, -1)
    rig.position = (0.26, 0.25)
    assert rig.at(1.0) == (0.27, 0.25)
    assert rig.submit(actions=xs(0.27)) == set()


def test_a_chunk_of_which_three_actions_are_due_at_its_first_tick_does_not_begin() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5)) == set()
    rig.time += 0.21
    rig.sense()
    point = rig.tick()
    assert rig.gate.reason.startswith("SET_POINT_LATE: actions due since the last tick are 3")
    assert point is not None
    assert point.position.tolist() == list(HOME)
    assert rig.gate.counters.steps_executed == 0
    assert rig.at(0.6) == HOME


def test_what_ends_while_nobody_ticks_is_late_by_its_own_actions_only() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(2)) == set()
    rig.time += 0.5
    rig.sense()
    point = rig.tick()
    assert point is not None
    assert "SET_POINT_LATE" not in rig.gate.reason
    assert rig.gate.mode is GateMode.HOLDING


def test_a_stopped_gate_that_is_disarmed_lets_go_of_the_robot() -> None:
    rig = Rig().armed()
    rig.gate.stop("button", rig.time)
    assert rig.at(0.05) == HOME
    assert rig.gate.enable(False, rig.ros, rig.time).success
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason == "STOP_REQUESTED: button"
    assert rig.advance(0.1) is None
    assert rig.gate.place(rig.time) is None
    assert not rig.gate.enable(True, rig.ros, rig.time).success, "it is stopped all the same"
    # Moved by hand; what arming needs is not asked.
    rig.velocity = (0.3, 0.0)
    rig.advance(0.01)
    assert rig.gate.rearm(rig.ros, rig.time).success
    assert (rig.gate.mode, rig.gate.epoch) == (GateMode.DISARMED, 2)
    assert rig.advance(0.1) is None


def test_rearming_takes_a_continuous_joint_as_it_is_measured() -> None:
    rig = Rig(embodiment=robot("continuous"), position=(3.10, 0.25)).armed()
    rig.gate.stop("button", rig.time)
    assert rig.at(0.05)[0] == 3.10
    # Turned on by hand, as a driver says it that knows angles between -pi and pi only.
    rig.position = (3.30 - 2 * math.pi, 0.25)
    assert rig.at(0.1)[0] == 3.10
    assert rig.rearm().startswith("rearmed")
    assert rig.at(0.15)[0] == 3.30 - 2 * math.pi


def test_the_place_to_stand_still_is_the_measured_one_while_it_is_known() -> None:
    rig = Rig()
    rig.sense()
    assert rig.gate.place(rig.time) is None, "nothing is commanded"
    rig.armed()
    assert rig.submit(actions=ramp(2)) == set()
    rig.position = (0.27, 0.514)
    rig.advance(0.05)

    def place(now: float) -> list[float]:
        found = rig.gate.place(now)
        assert found is not None
        return found.tolist()

    assert place(rig.time) == [0.27, 0.512]
    assert place(rig.time + 0.25) == [0.27, 0.512]
    for unknown in (rig.time + 0.26, math.nan):
        assert place(unknown) == pytest.approx([0.30, 0.25]), "the last set-point"
    rig.position = (0.27, 0.53)
    rig.advance(0.01)
    assert place(rig.time) == pytest.approx([0.30, 0.25])


def test_a_trajectory_is_within_the_limits_to_the_bit() -> None:
    rig = Rig(position=(0.5, 0.25)).armed()
    rounded = float(np.float32(0.512))
    assert rig.submit(actions=xs(rounded, rounded)) == set()
    rig.tick()
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    assert trajectory.positions[:, 0].tolist() == [0.512, 0.512]
    # 0.05 m in 0.1 s at 2 m/s^2: 0.04 m more to rest, beyond the limit by less than rounding.
    rig = Rig(embodiment=robot(max_deceleration=2.0), position=(0.4220005, 0.25)).armed()
    assert rig.submit(actions=xs(0.4720005)) == set()
    rig.tick()
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    assert trajectory.positions[-1, 0] == 0.512


def test_the_last_barrier_falls_back_to_what_was_sent_last() -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(5, 0.02)) == set()
    rig.advance(0.15, sensing=False)
    assert rig.advance(0.2, sensing=False) is not None
    assert rig.gate.reason.startswith("JOINT_STATE_STALE"), "where the robot is, is unknown"
    rig.gate._stream.stay_at(np.array([0.6, 0.25]), rig.ros)
    for _ in range(2):
        point = rig.tick()
        assert point is not None
        assert point.position == pytest.approx((0.31, 0.25))


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
    assert not rig.gate.enable(True, rig.ros, rig.time).success
    rig.gate.stop("again", rig.time)
    assert rig.gate.reason == "STOP_REQUESTED: button", "the first cause is kept"
    assert rig.gate.counters.stops == 1


@pytest.mark.parametrize("how", ["stop", "disable", "hold", "fault"])
def test_an_approved_chunk_that_has_not_begun_never_does(how: str) -> None:
    rig = Rig(GateConfig(max_cost=1.0)).armed()
    assert rig.submit(actions=ramp(3), stamp=rig.ros + 150_000_000, cost=0.5) == set()
    assert rig.gate.mode is GateMode.ARMED
    if how == "stop":
        rig.gate.stop("button", rig.time)
    elif how == "disable":
        rig.enable(False)
    elif how == "hold":
        assert rig.submit(cost=1.5) == {ReasonCode.COST_TOO_HIGH}
    else:
        rig.gate.fault(RuntimeError("boom"), rig.time)
    for _ in range(50):
        point = rig.advance(0.01)
        assert point is None or point.position.tolist() == list(HOME)
    assert rig.gate.counters.steps_executed == 0


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
    rig = Rig(FOR_GOOD).armed()
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
    rig = Rig(FOR_GOOD)
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


def test_a_hold_for_want_of_chunks_stops_where_configured() -> None:
    rig = Rig(GateConfig(stop_after_hold=0.5)).armed()
    rig.advance(2.0)
    assert rig.gate.mode is GateMode.HOLDING, "nobody is late for the first chunk"
    assert rig.submit(actions=ramp(1)) == set()
    rig.advance(0.6)
    assert rig.gate.mode is GateMode.HOLDING, "0.5 s since the chunk ended"
    rig.advance(0.01)
    assert rig.gate.reason.startswith("HOLD_TIMEOUT")
    assert rig.rearm().startswith("rearmed")
    rig.advance(2.0)
    assert rig.gate.mode is GateMode.HOLDING


def test_a_chunk_ends_the_wait_for_chunks() -> None:
    rig = Rig(GateConfig(stop_after_hold=0.5)).armed()
    for _ in range(4):
        assert rig.submit(actions=ramp(1, 0.0)) == set()
        rig.advance(0.4)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.counters.holds == 4


def test_chunks_that_are_refused_do_not_put_the_timeout_off() -> None:
    rig = Rig(GateConfig(stop_after_hold=0.5, max_cost=1.0)).armed()
    assert rig.submit(actions=ramp(1), cost=0.5) == set()
    rig.advance(0.1)
    assert rig.gate.mode is GateMode.HOLDING
    for _ in range(5):
        rig.advance(0.1)
        assert rig.submit(cost=1.5) == {ReasonCode.COST_TOO_HIGH}
    rig.advance(0.01)
    assert rig.gate.reason.startswith("HOLD_TIMEOUT")
    assert rig.gate.counters.holds == 1


def test_a_hold_lasts_for_ever_where_no_timeout_is_set() -> None:
    rig = Rig(GateConfig(stop_after_hold=None)).armed()
    assert rig.submit(actions=ramp(1)) == set()
    rig.advance(20.0)
    assert rig.gate.mode is GateMode.HOLDING


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
    rig.jump = -10.0
    rig.tick()
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason.startswith("CLOCK_JUMPED_BACK")
    assert rig.at(0.3) == HOME, "joint states of the new time are taken"
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.submit(actions=ramp(2)) == set()


def test_time_that_jumps_back_ends_braking_at_once() -> None:
    rig = Rig(embodiment=robot(max_deceleration=2.0)).armed()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.32)
    rig.position = (0.41, 0.25)
    rig.advance(0.01)
    rig.jump = -10.0
    point = rig.tick()
    assert point is not None
    assert (point.position.tolist(), point.braking) == ([0.41, 0.25], False)


def test_time_that_steps_back_within_the_tolerance_changes_nothing() -> None:
    rig = Rig(GateConfig(future_tolerance=0.2)).armed()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.25)
    rig.jump = -0.2
    assert rig.at(0.26) == pytest.approx((0.40, 0.25)), "no action is replayed"
    assert rig.gate.mode is GateMode.ARMED
    assert rig.at(0.49) == pytest.approx((0.40, 0.25))
    rig.advance(0.01)
    assert rig.gate.mode is GateMode.HOLDING, "it ends when ROS time says so"


@pytest.mark.parametrize("followed", [False, True])
def test_time_that_jumps_ahead_ends_the_chunk(followed: bool) -> None:
    rig = Rig().armed()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.05)
    rig.jump = 10.0
    if followed:
        rig.sense()
    rig.tick()
    # Joint states that are ten seconds old by the new time are no longer trusted.
    assert rig.gate.mode is (GateMode.HOLDING if followed else GateMode.STOPPED)
    assert followed or rig.gate.reason.startswith("JOINT_STATE_STALE")


def test_joint_states_that_fall_behind_by_their_stamps_stop() -> None:
    rig = Rig(GateConfig(max_joint_state_age=0.5)).armed()
    for k in range(1, 56):
        rig.time = 0.01 * k
        # A sensor clock at a tenth of the speed: 0.009 s late for every 0.01 s.
        rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), START + k * 1_000_000, rig.time)
        rig.tick()
        assert rig.gate.mode is GateMode.HOLDING, k
    rig.time = 0.56
    rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), START + 56_000_000, rig.time)
    rig.tick()
    assert rig.gate.reason == (
        "JOINT_STATE_STALE: stamp of joint_states is 0.504 s old; expected at most 0.5 s"
    )


def test_joint_states_from_the_future_stop() -> None:
    rig = Rig(GateConfig(max_joint_state_age=0.5)).armed()
    rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), rig.ros + 500_000_000, rig.time)
    rig.tick()
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.submit() == set()
    rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), rig.ros + 501_000_000, rig.time)
    assert rig.submit() == {ReasonCode.JOINT_STATE_IN_FUTURE}
    rig.tick()
    assert rig.gate.reason == (
        "JOINT_STATE_IN_FUTURE: stamp of joint_states is 0.501 s in the future; "
        "expected at most 0.5 s"
    )
    rig.advance(0.01)
    assert rig.rearm().startswith("rearmed"), "a sensor clock that was set right is taken again"


def test_a_stamp_that_goes_back_is_left_aside_or_stops() -> None:
    rig = Rig(GateConfig(future_tolerance=0.2)).armed()
    rig.advance(0.3)
    rig.gate.update_joint_state(NAMES, (0.5, 0.5), (0.0, 0.0), rig.ros - 200_000_000, rig.time)
    rig.gate.stop("button", rig.time)
    assert rig.at(0.31) == HOME, "an older state does not count"
    assert rig.rearm().startswith("rearmed")
    rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), rig.ros - 201_000_000, rig.time)
    assert rig.gate.reason == (
        "JOINT_STATE_INVALID: stamp of joint_states went back by 0.201 s; expected it to advance"
    )


def test_a_node_that_is_silent_makes_the_robot_hold_until_it_is_back() -> None:
    config = GateConfig(heartbeats=("planner_node", "policy_node"), heartbeat_timeout=0.2)
    rig = Rig(config)
    rig.gate.beat("planner_node", 0.0)
    rig.sense()
    assert rig.enable() == (
        "not armed: HEARTBEAT_LOST: heartbeat of policy_node is absent, never heard; "
        "expected at most 0.2 s old"
    )
    rig.gate.beat("policy_node", 0.0)
    rig.armed()
    assert rig.submit(actions=ramp(4, 0.01)) == set()
    rig.advance(0.1)
    rig.gate.beat("planner_node", rig.time)
    rig.advance(0.1)
    assert rig.gate.mode is GateMode.ARMED
    rig.advance(0.01)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason.startswith("HEARTBEAT_LOST: heartbeat of policy_node is 0.21 s old")
    assert rig.submit() == {ReasonCode.HEARTBEAT_LOST}
    assert rig.gate.mode is GateMode.HOLDING
    rig.gate.beat("policy_node", rig.time)
    assert rig.submit() == set()
    assert rig.gate.mode is GateMode.ARMED


def test_a_chunk_may_not_run_for_ever_without_a_new_observation() -> None:
    rig = Rig(GateConfig(max_open_loop=0.5)).armed()
    assert rig.submit(actions=ramp(20, 0.01), observation_stamp=START - 200_000_000) == set()
    rig.advance(0.3)
    assert rig.gate.mode is GateMode.ARMED
    rig.advance(0.01)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason == (
        "OPEN_LOOP_TOO_LONG: observation behind the executing chunk is 0.510 s old; "
        "expected at most 0.5 s"
    )


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
        monkeypatch.setattr(SetPointStream, "advance", boom)
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


def test_every_reason_code_is_explained() -> None:
    text = (Path(__file__).parents[1] / "docs" / "safety.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    explained = {row.split("`")[1] for row in rows if row.count("|") == 5}
    assert explained == {str(code) for code in ReasonCode}


STATES = ("disarmed", "holding", "armed", "stopped", "stopped before arming")
MODES = {
    "D": GateMode.DISARMED,
    "H": GateMode.HOLDING,
    "A": GateMode.ARMED,
    "S": GateMode.STOPPED,
    "s": GateMode.STOPPED,
}
WATCHED = GateConfig(heartbeats=("planner_node",), protective_stop_lease=None)


def in_state(state: str) -> Rig:
    rig = Rig(WATCHED)
    rig.gate.beat("planner_node", 0.0)
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(False, 0.0)
    rig.sense()
    if state in ("holding", "armed", "stopped"):
        rig.armed()
    if state == "armed":
        assert rig.submit(actions=ramp(5, 0.01)) == set()
    if state.startswith("stopped"):
        rig.gate.stop("test", 0.0)
    rig.advance(0.01)
    return rig


def while_alive(seconds: float) -> Callable[[Rig], object]:
    def happens(rig: Rig) -> None:
        for _ in range(round(seconds * 100)):
            rig.gate.beat("planner_node", rig.time)
            rig.advance(0.01)

    return happens


def see(*position: float) -> Callable[[Rig], object]:
    def happens(rig: Rig) -> None:
        rig.position = position
        rig.advance(0.01)

    return happens


def ahead(rig: Rig) -> None:
    rig.jump = 10.0
    rig.tick()


def back(rig: Rig) -> None:
    rig.jump = -10.0
    rig.advance(0.01, sensing=False)


# Where each event leads from DISARMED, HOLDING, ARMED, STOPPED, and STOPPED before arming (s).
TRANSITIONS: dict[str, tuple[str, Callable[[Rig], object]]] = {
    "nothing": ("DHASs", while_alive(0.1)),
    "enable": ("HHASs", lambda rig: rig.enable()),
    "disable": ("DDDss", lambda rig: rig.enable(False)),
    "rearm": ("DHAHD", lambda rig: rig.rearm()),
    "stop": ("sSSSs", lambda rig: rig.gate.stop("again", rig.time)),
    "button": ("sSSSs", lambda rig: rig.gate.protective_stop(True, rig.time)),
    "button released": ("DHASs", lambda rig: rig.gate.protective_stop(False, rig.time)),
    "button lost": ("DSSSs", lambda rig: rig.gate.stop_publishers(0) or rig.tick()),
    "fault": ("sSSSs", lambda rig: rig.gate.fault(RuntimeError("boom"), rig.time)),
    "good chunk": ("DAASs", lambda rig: rig.judge(actions=ramp(5, 0.01))),
    "bad chunk": ("DHASs", lambda rig: rig.judge(step=0.0)),
    "unreadable chunk": (
        "DHASs",
        lambda rig: rig.gate.refuse(0, ReasonCode.MALFORMED, "cut off", rig.ros, rig.time),
    ),
    "end of the chunk": ("DHHSs", while_alive(0.6)),
    "a long time": ("DHSSs", while_alive(6.0)),
    "planner silent": ("DHHSs", lambda rig: rig.advance(1.1)),
    "joint states silent": ("DSSSs", lambda rig: rig.advance(0.3, sensing=False)),
    "joint state not finite": ("DSSSs", see(math.nan, 0.25)),
    "joint outside its limits": ("DSSSs", see(0.25, 0.53)),
    "another proposer": ("DHASs", lambda rig: rig.gate.proposers(2) or rig.tick()),
    "time jumps back": ("DHHSs", back),
    "time jumps ahead": ("DSSSs", ahead),
}


@pytest.mark.parametrize("event", TRANSITIONS)
@pytest.mark.parametrize("state", STATES)
def test_every_event_in_every_state(state: str, event: str) -> None:
    expected, happens = TRANSITIONS[event]
    letter = expected[STATES.index(state)]
    rig = in_state(state)
    epoch = rig.gate.epoch
    happens(rig)
    assert rig.gate.mode is MODES[letter], rig.gate.reason
    ended = state in ("holding", "armed") and event == "disable"
    again = state.startswith("stopped") and event == "rearm"
    assert rig.gate.epoch == epoch + (ended or again), "rises when what was planned is void"
    sent = rig.advance(0.01)
    assert (sent is None) == (letter in "Ds"), "an unarmed gate is silent, any other is not"
    assert rig.gate.last_error is None or event == "fault"
