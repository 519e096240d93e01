"""Set-points tick by tick: actions, braking, rest; the path behind them; trajectories."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gate_rig import HOME, START, Rig, ramp, robot, xs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from worldforge_ros.safety.checks import Schedule
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.course import Course
from worldforge_ros.safety.differences import Brake
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.safety.periods import Periods
from worldforge_ros.safety.stream import SetPointStream
from worldforge_ros.safety.trajectory import (
    Followed,
    State,
    Trajectory,
    brake_trajectory,
    chunk_trajectory,
    hold_trajectory,
    still_trajectory,
)

Array = npt.NDArray[np.float64]
MS = 1_000_000
SECOND = 1_000_000_000

# Chunks of moves of 0.05 m in 0.1 s: 0.5 m/s in the middle of a move. Braking at 2 m/s^2 has taken
# 0.1 m/s of it when the move ends: 0.4 m/s, which takes 0.2 s and 0.04 m to brake.
SLUGGISH = robot(max_deceleration=2.0)


def sluggish(**config: Any) -> Rig:
    return Rig(GateConfig(**config), SLUGGISH).armed()


def test_brakes_after_the_last_action_then_holds_where_the_robot_is() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    assert rig.at(0.29) == pytest.approx((0.40, 0.25))
    rig.position = (0.42, 0.25)
    assert rig.gate.mode is GateMode.ARMED
    # The last action was due at 0.2 s. From there 0.40 + 0.4 t - t^2, at rest 0.2 s later.
    golden = {0.30: 0.43, 0.31: 0.4319, 0.35: 0.4375, 0.39: 0.4399}
    for moment, x in golden.items():
        assert rig.at(moment) == pytest.approx((x, 0.25)), moment
        assert rig.gate.mode is GateMode.HOLDING
    assert rig.at(0.41) == (0.42, 0.25), "rest: what is measured"
    rig.position = (0.43, 0.25)
    assert rig.at(1.0) == (0.42, 0.25), "a hold is latched, not re-read"
    assert rig.gate.counters.holds == 1


def test_braking_is_told_and_is_of_no_action() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(1)) == set()
    point = rig.advance(0.05)
    assert point is not None
    assert (point.index, point.braking) == (0, False)
    point = rig.advance(0.07)
    assert point is not None
    assert (point.index, point.sequence, point.braking) == (-1, 0, True)
    point = rig.advance(0.2)
    assert point is not None
    assert not point.braking


def test_each_joint_brakes_for_itself() -> None:
    rig = sluggish()
    # y moves 0.03 m in 0.1 s: 0.3 m/s, 0.2 at its end; at rest after 0.1 s and 0.01 m.
    assert rig.submit(actions=[(0.30, 0.22)]) == set()
    assert rig.at(0.10) == pytest.approx((0.33, 0.21))
    assert rig.at(0.15) == pytest.approx((0.3375, 0.21))


def test_a_robot_that_still_moves_gets_half_a_second_to_come_to_rest() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(1)) == set()
    rig.advance(0.1)
    rig.velocity, rig.position = (0.2, 0.0), (0.31, 0.25)
    # The set-point rests from 0.2 s on at 0.34.
    assert rig.at(0.69) == pytest.approx((0.34, 0.25))
    assert rig.at(0.70) == (0.31, 0.25)
    assert rig.at(0.9) == (0.31, 0.25)


def test_a_robot_that_rests_sooner_is_held_sooner() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(1)) == set()
    rig.advance(0.1)
    rig.velocity = (0.2, 0.0)
    assert rig.at(0.45) == pytest.approx((0.34, 0.25))
    rig.velocity, rig.position = (0.04, 0.0), (0.33, 0.25)
    assert rig.at(0.46) == (0.33, 0.25)


def test_a_chunk_that_ends_at_rest_is_held_at_once() -> None:
    rig = sluggish()
    # 0.01 m in 0.1 s is 0.1 m/s, which the second half of its step undoes at 2 m/s^2.
    assert rig.submit(actions=xs(0.30, 0.31)) == set()
    rig.position = (0.305, 0.25)
    assert rig.at(0.20) == (0.305, 0.25)
    assert rig.gate.mode is GateMode.HOLDING


def test_a_chunk_that_is_dropped_in_the_middle_of_an_action_brakes_from_there() -> None:
    rig = sluggish(max_open_loop=0.145)
    assert rig.submit(actions=ramp(4)) == set()
    # Action 1, 0.35 m, was due at 0.1 s: 0.35 + 0.4 * 0.05 - 0.05^2, and at rest 0.04 m on.
    assert rig.at(0.14) == pytest.approx((0.35, 0.25))
    assert rig.at(0.15) == pytest.approx((0.3675, 0.25))
    assert rig.gate.reason.startswith("OPEN_LOOP_TOO_LONG")
    rig.velocity = (1.0, 0.0)
    assert rig.at(0.35) == pytest.approx((0.39, 0.25))


def test_a_stop_does_not_brake_but_holds_at_once() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.15)
    rig.position = (0.33, 0.25)
    rig.sense()
    rig.time += 0.01
    rig.sense()
    rig.gate.stop("button", rig.time)
    point = rig.tick()
    assert point is not None
    assert (point.position.tolist(), point.braking) == ([0.33, 0.25], False)


def test_a_stop_while_braking_ends_it() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.32)
    rig.position = (0.41, 0.25)
    rig.advance(0.01)
    rig.gate.stop("button", rig.time)
    assert rig.at(0.34) == rig.at(0.5) == (0.41, 0.25)


def test_a_new_chunk_takes_over_while_the_robot_brakes() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.32)
    assert rig.gate.mode is GateMode.HOLDING
    # At 0.33 s the set-point is at 0.40 + 0.4 * 0.13 - 0.13^2 = 0.4351 m.
    rig.advance(0.01)
    assert rig.submit(actions=xs(0.56)) >= {"POSITION_LIMIT", "SEAM_COMMANDED"}
    assert rig.submit(actions=xs(0.44)) == set()
    assert rig.gate.mode is GateMode.ARMED
    assert rig.at(0.34) == pytest.approx((0.44, 0.25))
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    assert trajectory.positions[0] == pytest.approx((0.44, 0.25)), "not that of braking"


def test_braking_goes_on_until_the_next_chunk_is_due() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.31)
    assert rig.submit(actions=xs(0.44), stamp=START + 350 * MS) == set()
    assert rig.gate.mode is GateMode.ARMED
    assert rig.at(0.34) == pytest.approx((0.4364, 0.25)), "0.40 + 0.4 * 0.14 - 0.14^2"
    assert rig.at(0.36) == pytest.approx((0.44, 0.25))


def test_a_chunk_replaces_another_in_the_middle_of_an_action() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(4)) == set()
    rig.advance(0.15)
    assert rig.submit(actions=xs(0.36, 0.36)) == set()
    assert rig.at(0.16) == pytest.approx((0.36, 0.25))
    assert rig.at(0.34) == pytest.approx((0.36, 0.25))
    assert rig.gate.counters.steps_executed == 4


def test_what_is_foreseen_is_what_happens() -> None:
    """A chunk is judged against the path that the stream then really takes."""
    limits = limits_of(SLUGGISH)
    ahead, step = START + 450 * MS, 100 * MS
    schedule = Schedule(START, step, np.array(ramp(3)), 1, START)
    stream = SetPointStream(limits)
    stream.stay_at(np.array(HOME), START - SECOND)
    stream.queue(schedule)
    stream.advance(START)
    forecast = stream.forecast(ahead, step, START)
    assert forecast is not None
    for now in range(START, ahead, 10 * MS):
        stream.advance(now)
    real = stream.forecast(ahead, step, ahead)
    assert real is not None
    # 0.15 s is between 0.35 and 0.40; 0.25 s between 0.40 and the first set-point of braking, which
    # is sent at 0.3 s: 0.40 + 0.4 * 0.1 - 0.1^2; 0.35 s is in the midst of it.
    golden = [[0.375, 0.25], [0.415, 0.25], [0.4375, 0.25]]
    np.testing.assert_allclose(real.before(ahead, step), golden, atol=1e-9)
    np.testing.assert_allclose(forecast.before(ahead, step), golden, atol=1e-9)


def test_what_is_foreseen_in_the_midst_of_braking_is_what_happens() -> None:
    rows = []
    for moments in ((160,), (160, 170, 180, 190)):
        stream = SetPointStream(limits_of(SLUGGISH))
        stream.stay_at(np.array(HOME), START - SECOND)
        stream.queue(Schedule(START, 100 * MS, np.array(ramp(3)), 1, START))
        for moment in (0, 100, 150):
            stream.advance(START + moment * MS)
        stream.slow_down()
        for moment in moments:
            stream.advance(START + moment * MS)
        foreseen = stream.forecast(START + 190 * MS, 100 * MS, START + moments[-1] * MS)
        assert foreseen is not None
        rows.append(foreseen.position)
    # Braking since 0.1 s: 0.35 + 0.4 * 0.09 - 0.09^2.
    np.testing.assert_allclose(rows, [[0.3779, 0.25]] * 2)


def course(*moves: tuple[float, float], step: float) -> Course:
    """From 0 at -10 s on; each move (when due, where to), at 1 m/s at most."""
    made = Course.at(np.zeros(1), -10 * SECOND)
    for due, x in moves:
        time = round(due * SECOND)
        made = made.moved(np.array([x]), np.ones(1), time, time, round(step * SECOND))
    return made


def before(made: Course, time: float, step: float) -> list[float]:
    rows = made.before(round(time * SECOND), round(step * SECOND))
    return rows[:, 0].tolist()


def test_the_path_of_the_set_points_is_sampled_at_any_step_and_phase() -> None:
    made = course((0.0, 0.1), (0.1, 0.3), (0.2, 0.4), step=0.1)
    assert before(made, 0.3, 0.1) == pytest.approx([0.1, 0.3, 0.4])
    # Straight lines between: -0.05 s is half way from 0 to 0.1, 0.05 s from 0.1 to 0.3.
    assert before(made, 0.25, 0.1) == pytest.approx([0.05, 0.2, 0.35])
    assert before(made, 0.3, 0.05) == pytest.approx([0.35, 0.4, 0.4])
    assert before(made, 0.4, 0.2) == pytest.approx([0.0, 0.1, 0.4])
    assert before(made, -1.0, 0.1) == [0.0, 0.0, 0.0]


def test_a_set_point_that_was_kept_is_a_level_part_of_the_path() -> None:
    made = course((0.0, 0.1), (1.0, 0.2), step=0.1)
    assert before(made, 1.1, 0.1) == pytest.approx([0.1, 0.1, 0.2])
    assert before(made, 1.05, 0.1) == pytest.approx([0.1, 0.1, 0.15])


def test_a_move_that_was_due_before_the_path_begins_is_a_move() -> None:
    made = Course.at(np.zeros(1), 0)
    made = made.moved(np.array([0.1]), np.ones(1), -50 * MS, 10 * MS, 100 * MS)
    assert before(made, 0.05, 0.1) == pytest.approx([0.0, 0.0, 0.1])
    rig = sluggish()
    rig.advance(0.05)
    # Nothing but its past action is left of the chunk, yet the robot brakes after it.
    assert rig.submit(actions=ramp(1), stamp=START - 20 * MS) == set()
    # Due at -0.02 s: at 0.1 s 0.30 + 0.4 * 0.12 - 0.12^2.
    assert rig.at(0.1) == pytest.approx((0.3336, 0.25))


def test_the_envelope_bounds_what_small_jumps_add_up_to() -> None:
    made = course((0.0, 0.1), (0.01, 0.2), step=0.1)
    low, high = made.reach(np.ones(1), 10 * MS)
    # At -10 s it was 0, at 0 s 0.1: 0.01 s later 0.11 is as far as 1 m/s reaches... from 0.1; the
    # hold at 0 that ended at 0 s allows 0.0 + 0.01 only.
    assert high[0] == pytest.approx(0.01)
    assert low[0] == pytest.approx(0.2)
    low, high = made.reach(np.ones(1), 200 * MS)
    assert high[0] == pytest.approx(0.2), "it catches up at 1 m/s"


def test_the_course_needs_bounded_memory_over_a_long_run() -> None:
    made = Course.at(np.zeros(2), 0)
    speed, longest = np.ones(2), 0
    for k in range(1, 100_001):
        now = k * 500_000
        made = made.moved(np.full(2, (k % 7) * 1e-3), speed, now, now, 500_000)
        longest = max(longest, len(made.times))
    assert len(made.times) == len(made.points)
    assert longest <= 1025
    assert np.all(np.diff(made.times) > 0)


@pytest.mark.parametrize("tick", [1, 10])
def test_the_course_keeps_what_the_longest_step_looks_at(tick: int) -> None:
    """At every control_rate, 0.25 s being max_step."""
    made = Course.at(np.zeros(1), 0)
    for now in range(tick * MS, 1500 * MS + 1, tick * MS):
        made = made.moved(np.array([now / SECOND]), np.ones(1), now, now, tick * MS)
    assert before(made, 1.5, 0.25) == pytest.approx([0.75, 1.0, 1.25])


def test_periods_of_a_loop_that_was_late_once() -> None:
    periods = Periods(count=5)
    assert periods.summary() == {}
    # Of nine rounds the last five count: 10 ms apart, once 30 ms.
    for moment in (0.0, 1.0, 2.0, 3.0, 4.00, 4.01, 4.02, 4.05, 4.06):
        periods.add(moment)
    summary = periods.summary()
    assert summary["control_period_ms_p50"] == "10.00"
    assert summary["control_period_ms_max"] == "30.00"


LIMITS = limits_of(SLUGGISH)


def spline(
    trajectory: Trajectory, start: Array, velocity: Array | None = None
) -> tuple[Any, Array]:
    """What a joint_trajectory_controller makes of ``trajectory`` from ``start`` (J,)."""
    times = np.concatenate([[0.0], trajectory.times])
    rest = np.zeros((1, len(start))) if velocity is None else velocity[np.newaxis]
    curve = CubicHermiteSpline(
        times,
        np.vstack([start, trajectory.positions]),
        np.vstack([rest, trajectory.velocities]),
    )
    return curve, np.linspace(0.0, times[-1], 4001)


def resting(*position: float) -> State:
    """A controller that is where the path is."""
    return State(np.array(position), np.zeros(len(position)))


def well_formed(trajectory: Trajectory) -> None:
    shape = (len(trajectory.times), 2)
    assert trajectory.positions.shape == trajectory.velocities.shape == shape
    nanoseconds = np.round(np.concatenate([[0.0], trajectory.times]) * 1e9)
    assert np.all(np.diff(nanoseconds) > 0)
    assert trajectory.velocities[-1].tolist() == [0.0, 0.0]


def test_a_trajectory_ends_at_rest_and_keeps_the_velocity_limit() -> None:
    rig = Rig().armed()
    rig.advance(0.095)
    rig.time = 0.095
    assert rig.submit(stamp=START, actions=ramp(4, 0.06)) == set()
    point = rig.tick()
    assert point is not None
    assert point.first_of_chunk
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    well_formed(trajectory)
    # 5 ms of the first action are left but its 0.06 m need 0.06 s at 1 m/s.
    np.testing.assert_allclose(trajectory.times, [0.06, 0.16, 0.26, 0.36])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.31, 0.37, 0.43, 0.49])
    np.testing.assert_allclose(trajectory.velocities[:, 1], 0.0)
    assert np.abs(trajectory.velocities).max() <= 1.0


def test_a_trajectory_goes_on_into_braking() -> None:
    rig = sluggish()
    assert rig.submit(actions=[(0.30, 0.22), (0.35, 0.19)]) == set()
    rig.tick()
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    well_formed(trajectory)
    # Actions end 0.1 and 0.2 s from now. Then x brakes from 0.4 m/s for 0.2 s and y from -0.2 m/s
    # for 0.1 s; 0.1 s after the last action x has made 0.4 * 0.1 - 0.1^2 and has 0.2 m/s left.
    np.testing.assert_allclose(trajectory.times, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.30, 0.35, 0.38, 0.39])
    np.testing.assert_allclose(trajectory.positions[:, 1], [0.22, 0.19, 0.18, 0.18])
    np.testing.assert_allclose(trajectory.velocities[:, 0], [0.5, 0.4, 0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(trajectory.velocities[:, 1], [-0.3, -0.2, 0.0, 0.0], atol=1e-12)


def walk(seed: int, rows: int) -> Array:
    """Set-points within the limits with moves of up to 0.1 m, some of them zero."""
    random = np.random.default_rng(seed)
    moves = random.uniform(-0.1, 0.1, (rows, 2)) * random.integers(0, 2, (rows, 2))
    position, path = np.array(HOME), []
    for move in moves:
        position = np.clip(position + move, 0.0, 0.512)
        path.append(position)
    return np.array(path)


@pytest.mark.parametrize("seed", range(20))
def test_velocities_are_those_of_monotone_interpolation(seed: int) -> None:
    path = walk(seed, 12)
    trajectory = chunk_trajectory(
        path, np.array(HOME), 100 * MS, 100 * MS, 0, LIMITS, resting(*HOME)
    )
    well_formed(trajectory)
    times = np.arange(13) * 0.1
    reference = PchipInterpolator(times, np.vstack([HOME, path])).derivative()
    np.testing.assert_allclose(trajectory.times[:12], times[1:])
    np.testing.assert_allclose(trajectory.velocities[:11], reference(times[1:12]), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("late", [0, 40, 99])
def test_between_its_points_a_trajectory_does_not_overshoot(seed: int, late: int) -> None:
    path = walk(seed, 12)
    trajectory = chunk_trajectory(
        path, np.array(HOME), 100 * MS, 100 * MS, late * MS, LIMITS, resting(*HOME)
    )
    well_formed(trajectory)
    curve, moments = spline(trajectory, np.array(HOME))
    corners = np.vstack([HOME, trajectory.positions])
    after = np.searchsorted(trajectory.times, moments, side="left")
    low = np.minimum(corners[after], corners[after + 1])
    high = np.maximum(corners[after], corners[after + 1])
    assert np.all(curve(moments) >= low - 1e-9)
    assert np.all(curve(moments) <= high + 1e-9)


def test_a_tail_brakes_with_the_deceleration_and_no_more() -> None:
    brake = Brake(np.array([0.40, 0.25]), np.array([0.4, -0.2]), LIMITS.max_deceleration, 0, 0)
    trajectory = brake_trajectory(brake, 0, LIMITS, resting(0.40, 0.25))
    well_formed(trajectory)
    np.testing.assert_allclose(trajectory.times, [0.1, 0.2])
    np.testing.assert_allclose(trajectory.positions, [[0.43, 0.24], [0.44, 0.24]])
    curve, moments = spline(trajectory, brake.position, brake.velocity)
    expected = np.stack([brake.state(float(moment))[0] for moment in moments])
    np.testing.assert_allclose(curve(moments), expected, atol=1e-12)
    assert np.abs(curve.derivative(2)(moments)).max() == pytest.approx(2.0)


def test_braking_that_has_not_begun_yet_first_ends_its_action() -> None:
    brake = Brake(
        np.array([0.40, 0.25]), np.array([0.4, 0.0]), LIMITS.max_deceleration, 0, 100 * MS
    )
    trajectory = brake_trajectory(brake, 50 * MS, LIMITS, resting(0.40, 0.25))
    well_formed(trajectory)
    np.testing.assert_allclose(trajectory.times, [0.05, 0.25])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.40, 0.44])
    np.testing.assert_allclose(trajectory.velocities[:, 0], [0.4, 0.0])
    # 0.1 s into braking.
    trajectory = brake_trajectory(brake, 200 * MS, LIMITS, resting(0.43, 0.25))
    np.testing.assert_allclose(trajectory.times, [0.1])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.44])
    done = brake_trajectory(brake, 900 * MS, LIMITS, resting(0.44, 0.25))
    well_formed(done)
    np.testing.assert_allclose(done.positions, [[0.44, 0.25]])


def test_joints_that_come_to_rest_together_share_a_point() -> None:
    # 0.2 s each, but for the rounding of their velocities: two points would have the same time in
    # nanoseconds, which joint_trajectory_controller refuses.
    velocity = np.array([0.4, np.nextafter(0.4, 1.0)])
    brake = Brake(np.array([0.40, 0.25]), velocity, LIMITS.max_deceleration, 0, 0)
    trajectory = brake_trajectory(brake, 0, LIMITS, resting(0.40, 0.25))
    well_formed(trajectory)
    np.testing.assert_allclose(trajectory.times, [0.2])
    np.testing.assert_allclose(trajectory.positions, [[0.44, 0.29]])


def test_a_late_chunk_of_one_action_ends_no_faster_than_was_judged() -> None:
    # 0.05 m in what is left of the action is faster than 0.05 m in its 0.1 s, but what was judged
    # is 0.4 m/s at its end and 0.04 m to rest: 0.50 m, inside 0.512 m.
    rig = Rig(embodiment=SLUGGISH, position=(0.41, 0.25)).armed()
    rig.advance(0.09)
    assert rig.submit(stamp=START, actions=xs(0.46)) == set()
    rig.tick()
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    well_formed(trajectory)
    np.testing.assert_allclose(trajectory.times, [0.05, 0.25])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.46, 0.50])
    np.testing.assert_allclose(trajectory.velocities[:, 0], [0.4, 0.0], atol=1e-12)


def test_being_still_is_one_point_without_velocity() -> None:
    trajectory = still_trajectory(np.array(HOME))
    well_formed(trajectory)
    assert trajectory.positions.tolist() == [list(HOME)]
    assert Rig().gate.trajectory(START) is None, "nothing is commanded"
    held = Rig().armed().gate.trajectory(START)
    assert held is not None
    well_formed(held)
    assert (held.times.tolist(), held.positions.tolist()) == ([0.1], [list(HOME)])


def test_a_joint_that_moves_towards_its_limit_brakes_before_it_turns_back() -> None:
    # At 1 m/s and 0.02 m before the limit 0.1 s to where it is: a cubic would go 4 / 27 * 0.1 m on.
    begin = State(np.array([0.492, 0.30]), np.array([1.0, 0.0]))
    plain, moments = spline(still_trajectory(begin.position), *begin)
    assert plain(moments)[:, 0].max() == pytest.approx(0.492 + 0.4 / 27)
    trajectory = hold_trajectory(begin.position, LIMITS, begin)
    np.testing.assert_array_equal(trajectory.times, [0.1], "0.5068 m is inside")
    begin = State(np.array([0.502, 0.30]), np.array([1.0, 0.5]))
    target = np.array([0.502, 0.31])
    trajectory = hold_trajectory(target, LIMITS, begin)
    well_formed(trajectory)
    # 0.01 m at 1 m/s on average 0.5 m/s: 0.02 s; at 2 m/s^2 it would be 0.25 m.
    np.testing.assert_allclose(trajectory.times, [0.02, 0.1])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.512, 0.502])
    np.testing.assert_allclose(trajectory.velocities[:, 0], [0.0, 0.0])
    curve, moments = spline(trajectory, *begin)
    assert curve(moments)[:, 0].max() <= 0.512 + 1e-9
    # The other joint goes its way as if nothing had happened.
    alone = CubicHermiteSpline([0.0, 0.1], [0.30, 0.31], [0.5, 0.0])
    np.testing.assert_allclose(curve(moments)[:, 1], alone(moments), atol=1e-9)
    strong = limits_of(robot(max_deceleration=100.0))
    trajectory = hold_trajectory(target, strong, begin)
    np.testing.assert_allclose(trajectory.times, [0.01, 0.1])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.507, 0.502])


def test_a_hold_gives_a_controller_the_time_to_come_there() -> None:
    def needed(far: float, velocity: float) -> float:
        place = State(np.array([0.25 - far, 0.25]), np.array([velocity, 0.0]))
        return float(hold_trajectory(np.array(HOME), LIMITS, place).times[0])

    assert needed(0.05, 0.0) == 0.1
    assert needed(0.2, 0.0) == pytest.approx(0.2)
    assert needed(0.2, 0.9) == pytest.approx(0.2)
    assert needed(0.2, -0.9) == pytest.approx(0.2 / 0.7), "what it moves away is a third lost"


def test_a_trajectory_of_braking_follows_the_set_points() -> None:
    rig = sluggish()
    assert rig.submit(actions=ramp(3)) == set()
    point = rig.advance(0.3)
    assert point is not None
    assert point.braking
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    well_formed(trajectory)
    # A trajectory reaches an action when it ends: one that was sent at 0 s is at 0.40 m at 0.3 s.
    # This one is the first, so its controller is still at 0.25 m and needs 0.15 s for 0.15 m.
    np.testing.assert_allclose(trajectory.times, [0.15, 0.35])
    np.testing.assert_allclose(trajectory.positions[:, 0], [0.40, 0.44])
    np.testing.assert_allclose(trajectory.velocities[:, 0], [0.4, 0.0])


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), moment=st.floats(-0.1, 1.0))
def test_what_is_followed_is_a_cubic_spline(seed: int, moment: float) -> None:
    random = np.random.default_rng(seed)
    begin = State(np.array(HOME), random.uniform(-1.5, 1.5, 2))
    trajectory = chunk_trajectory(
        walk(seed, 4), np.array(HOME), 100 * MS, 100 * MS, 0, LIMITS, begin
    )
    curve, _ = spline(trajectory, *begin)
    state = Followed(trajectory, START, begin).at(START + round(moment * SECOND))
    now = np.clip(round(moment * SECOND) / SECOND, 0.0, trajectory.times[-1])
    np.testing.assert_allclose(state.position, curve(now), atol=1e-9)
    np.testing.assert_allclose(state.velocity, curve(now, 1), atol=1e-7)


@settings(deadline=None, max_examples=200)
@given(
    far=st.floats(-0.1, 0.1),
    lag=st.floats(-0.1, 0.1),
    velocity=st.floats(-1.5, 1.5),
    rows=st.integers(1, 2),
    now=st.integers(0, 99),
)
def test_from_any_state_the_first_point_is_reached_without_haste(
    far: float, lag: float, velocity: float, rows: int, now: int
) -> None:
    """Joint x at 1 m/s, far from its limits; y stays."""
    before, place = np.array(HOME), np.array([0.25 + lag, 0.25])
    path = np.array(xs(0.25 + far, 0.25 + 1.2 * far)[:rows])
    begin = State(place, np.array([velocity, 0.0]))
    trajectory = chunk_trajectory(path, before, 100 * MS, 100 * MS, now * MS, LIMITS, begin)
    first = trajectory.times[0]
    assert first >= 0.1 - 0.001 * now - 1e-9
    assert max(abs(far), abs(far - lag)) <= first * (1.0 + 1e-9)
    curve, _ = spline(trajectory, *begin)
    assert np.abs(curve(np.linspace(0.0, first, 500), 1)).max() <= 1.5 + 1e-6
    brake = Brake(path[0], np.array([np.clip(far / 0.1, -1.0, 1.0), 0.0]), np.full(2, 2.0), 0, 0)
    tail = brake_trajectory(brake, 0, LIMITS, begin)
    assert abs(far - lag) <= tail.times[0] + max(abs(far - lag), 1e-4)
    curve, _ = spline(tail, *begin)
    assert np.abs(curve(np.linspace(0.0, tail.times[0], 500), 1)).max() <= 1.5 + 1e-6


def test_a_chunk_of_which_the_first_tick_skips_an_action_begins_where_the_robot_stands() -> None:
    rig = Rig().armed()
    rig.time = 0.15
    rig.sense()
    assert rig.submit(stamp=START + 150 * MS, actions=ramp(2, 0.09)) == set()
    rig.time = 0.26
    rig.sense()
    point = rig.tick()
    assert point is not None
    assert (point.index, point.first_of_chunk) == (1, True)
    trajectory = rig.gate.trajectory(rig.ros)
    assert trajectory is not None
    # 0.43 m is due in 0.09 s, but 0.18 m away.
    assert trajectory.times[0] == pytest.approx(0.18)
    assert trajectory.positions[0] == pytest.approx((0.43, 0.25))


class Controller:
    """What a joint_trajectory_controller does that follows exactly: cubic splines from where it is,
    and as fast as it is, when a trajectory arrives. No joint may need more than 1 m/s on average to
    the first point, or more than 1.5 m/s at any moment.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.curve: Any = None
        self.sent = 0.0
        self.end = 0.0
        self.taken = 0
        self.fastest = 0.0
        self.means: list[float] = []
        self.beyond = 0.0
        self.told: Any = rig.tick()

    def state(self) -> State:
        if self.curve is None:
            return resting(*self.rig.position)
        moment = min(self.rig.time - self.sent, self.end)
        return State(self.curve(moment), self.curve(moment, 1))

    def take(self, trajectory: Trajectory) -> None:
        well_formed(trajectory)
        state = self.state()
        mean = np.abs(trajectory.positions[0] - state.position).max() / trajectory.times[0]
        self.means.append(mean)
        self.curve, moments = spline(trajectory, state.position, state.velocity)
        self.sent, self.end = self.rig.time, float(trajectory.times[-1])
        self.fastest = max(self.fastest, float(np.abs(self.curve(moments, 1)).max()))
        assert self.fastest <= 1.5 + 1e-6
        path = self.curve(moments)
        self.beyond = max(self.beyond, float(path.max() - 0.512), float(-path.min()))
        self.taken += 1

    def step(self, seconds: float) -> None:
        """One tick of the gate ``seconds`` later, and what its node then sends."""
        self.rig.time = round(self.rig.time + seconds, 9)
        position, velocity = self.state()
        self.rig.position, self.rig.velocity = tuple(position), tuple(velocity)
        self.rig.sense()
        self.tick()

    def tick(self) -> None:
        point, told = self.rig.tick(), self.told
        assert point is not None
        self.told = point
        brakes = point.braking and not told.braking
        stays = point.index < 0 and not point.braking
        still = stays and (told.index >= 0 or told.braking or point.position is not told.position)
        if point.first_of_chunk or brakes or still:
            trajectory = self.rig.gate.trajectory(self.rig.ros)
            assert trajectory is not None
            self.take(trajectory)


def test_a_plan_that_is_sent_again_does_not_hurry_a_controller_that_lags() -> None:
    rig = Rig().armed()
    controller = Controller(rig)
    controller.step(0.095)
    plan = ramp(4, 0.06)
    assert rig.submit(stamp=START, actions=plan) == set()
    controller.tick()
    assert controller.end == pytest.approx(0.36), "0.06 m in 0.06 s, then 0.1 s for each"
    rig.time = 0.1
    # The path is at 0.31 m now and 0.37 m is due at 0.2 s, but the controller is still by 0.25 m:
    # 0.12 m take it 0.12 s. A twelfth of a cubic from rest at 0.25 m to 0.75 m/s, the harmonic mean
    # of 1 and 0.6 m/s, at 0.31 m is done.
    gone = 0.06 * (3 - 2 / 12 - 0.75 * (1 - 1 / 12)) / 144
    assert rig.submit(stamp=START, actions=plan) == set()
    controller.tick()
    assert controller.taken == 2
    assert controller.end == pytest.approx(0.12 - gone + 0.2)
    controller.step(0.05)
    assert rig.submit(stamp=START, actions=plan) == set()
    controller.tick()
    assert controller.taken == 3


@pytest.mark.parametrize("late", [0.0, 0.05, 0.095])
@pytest.mark.parametrize("after", [0.005, 0.05, 0.1, 0.15])
def test_staying_put_instead_of_a_chunk_does_not_hurry_a_controller(
    late: float, after: float
) -> None:
    rig = Rig().armed()
    controller = Controller(rig)
    controller.step(late)
    assert rig.submit(stamp=START, actions=ramp(4, 0.06)) == set()
    controller.tick()
    controller.step(after)
    commanded = rig.gate.place(math.inf)
    assert commanded is not None
    stamp = START + round((late + after) * 10) * 100 * MS
    assert rig.submit(actions=np.tile(commanded, (4, 1)), stamp=stamp) == set()
    for _ in range(60):
        controller.step(0.01)
    assert controller.taken >= 2
    np.testing.assert_allclose(controller.state().position, commanded, atol=1e-9)


@pytest.mark.parametrize("room", [(0.1, 0.41), (0.0, 0.512)])
@pytest.mark.parametrize("seed", range(10))
def test_no_succession_of_plans_hurries_a_controller(seed: int, room: tuple[float, float]) -> None:
    """Random plans at random times, some of them late, and ticks that stall now and then."""
    random = np.random.default_rng(seed)
    limits = {"max_acceleration": 60.0, "max_deceleration": float(random.choice([2.0, 20.0]))}
    rig = Rig(GateConfig(max_rejections=None, max_chunk_rate=None), robot(**limits)).armed()
    controller = Controller(rig)
    approved = 0
    for _ in range(150):
        step = float(random.choice([0.03, 0.1, 0.2]))
        place = rig.gate.place(math.inf)
        moves = random.uniform(-1.0, 1.0, (int(random.integers(1, 6)), 2)) * step
        moves *= random.integers(0, 2, (1, 2))
        rows = np.clip(place + np.cumsum(moves, axis=0), *room)
        stamp = rig.ros + int(random.integers(-200, 150)) * MS
        approved += rig.judge(actions=rows, step=step, stamp=stamp).approved
        for _ in range(int(random.integers(1, 8))):
            controller.step(float(random.choice([0.003, 0.01, 0.01, 0.04])))
    assert rig.gate.mode is not GateMode.STOPPED, rig.gate.reason
    assert approved > 30
    assert controller.taken > 30
    assert controller.fastest > 1.0, "they do drive it"
    assert controller.beyond <= 1e-3, controller.beyond
    if room[0] > 0.0:
        # At a limit a point may be put in on the way, where a cubic is at its fastest.
        assert max(controller.means) <= 1.0 + 1e-6
