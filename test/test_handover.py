"""From the executing chunk onto a candidate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.handover import ArrivalEstimate, hand_over, path_before, setpoint_at
from worldforge_ros.planning.seam import Seam

PUSHT = load_embodiment("pusht")
LIMIT = 0.1
"""Metres in one step of 0.1 s at PushT's 1 m/s."""
MS = 1_000_000
SWITCH = Seam()
STEP = 100 * MS
SEEN = 10_000 * MS


def observation(velocity: float) -> Observation:
    return Observation(SEEN, {}, np.array([0.2, 0.3]), np.array([velocity, 0.0]))


def chunk(start: int, actions: np.ndarray) -> ActionChunk:
    return ActionChunk(start, "pusht", PUSHT.joint_names, 0.1, actions, "policy", 1, 1, start)


def line(start: float, slope: float, length: int = 15) -> np.ndarray:
    x = start + slope * np.arange(length)
    return np.stack([x, np.full(length, 0.3)], axis=1)


def test_past_actions_are_those_that_were_executed() -> None:
    old = chunk(SEEN - 5 * STEP, line(0.1, 0.01))
    candidates = np.stack([line(0.16, 0.01), line(0.5, -0.01)]).astype(np.float32)
    arrival = SEEN + 250 * MS
    result = hand_over(candidates, 0.1, observation(0.1), old, arrival, PUSHT, SWITCH)
    assert result.stamp == SEEN
    assert result.first == 3, "at 250 ms the third action runs; the fourth is the first new one"
    np.testing.assert_allclose(result.candidates[0, :3], line(0.15, 0.01, 3), atol=1e-6)
    np.testing.assert_array_equal(result.candidates[1, :3], result.candidates[0, :3])
    np.testing.assert_array_equal(result.candidates[:, 3:], candidates[:, 3:])
    assert result.reachable.tolist() == [True, False], "0.17 to 0.19 m is near, 0.47 m is not"


def test_a_resting_robot_begins_with_the_first_action_on_arrival() -> None:
    candidates = line(0.21, 0.01)[None].astype(np.float32)
    arrival = SEEN + 420 * MS
    result = hand_over(candidates, 0.1, observation(0.0), None, arrival, PUSHT, SWITCH)
    assert (result.stamp, result.first) == (arrival, 0)
    np.testing.assert_array_equal(result.candidates, candidates)
    assert result.reachable.tolist() == [True]
    far = hand_over(
        candidates + np.float32(0.2), 0.1, observation(0.0), None, arrival, PUSHT, SWITCH
    )
    assert far.reachable.tolist() == [False]


def test_a_robot_that_moves_while_it_holds_is_not_at_rest() -> None:
    candidates = line(0.21, 0.01)[None].astype(np.float32)
    result = hand_over(candidates, 0.1, observation(0.2), None, SEEN + 150 * MS, PUSHT, SWITCH)
    assert (result.stamp, result.first) == (SEEN, 2)
    np.testing.assert_allclose(result.candidates[0, :2], [[0.2, 0.3]] * 2, atol=1e-7)


def test_a_plan_that_arrives_after_its_end_has_nothing_reachable() -> None:
    candidates = line(0.2, 0.01)[None].astype(np.float32)
    old = chunk(SEEN, line(0.2, 0.01, 30))
    result = hand_over(candidates, 0.1, observation(0.1), old, SEEN + 16 * STEP, PUSHT, SWITCH)
    assert result.first == 15
    assert result.reachable.tolist() == [False]


def test_after_the_end_of_the_old_chunk_the_robot_holds() -> None:
    hold = np.array([0.4, 0.4])
    old = chunk(SEEN, line(0.1, 0.01, 3))
    assert setpoint_at(old, hold, SEEN + 2 * STEP)[0] == pytest.approx(0.12)
    np.testing.assert_array_equal(setpoint_at(old, hold, SEEN + 3 * STEP), hold)
    np.testing.assert_array_equal(setpoint_at(old, hold, SEEN - 1), hold)
    np.testing.assert_array_equal(setpoint_at(None, hold, SEEN), hold)


@given(
    latency=st.integers(0, 1600),
    offset=st.integers(0, 10),
    shift=st.floats(-0.3, 0.3),
    slope=st.floats(-0.05, 0.05),
)
def test_no_reachable_candidate_jumps_where_it_takes_effect(
    latency: int, offset: int, shift: float, slope: float
) -> None:
    old = chunk(SEEN - offset * STEP, line(0.2, 0.01))
    candidates = line(0.2 + shift, slope)[None].astype(np.float32)
    result = hand_over(candidates, 0.1, observation(0.1), old, SEEN + latency * MS, PUSHT, SWITCH)
    if not result.reachable[0]:
        return
    takes_effect = result.stamp + result.first * STEP
    assert takes_effect >= SEEN + latency * MS, "never later than promised to the gate"
    before = setpoint_at(old, np.array([0.2, 0.3]), takes_effect - 1)
    assert np.abs(result.candidates[0, result.first] - before).max() <= LIMIT


def test_the_estimate_is_the_slowest_of_the_last_five_cycles() -> None:
    estimate = ArrivalEstimate(initial=0.1, transport=0.0)
    assert estimate.arrival(0) == 100 * MS
    estimate.finished(300 * MS)
    for _ in range(4):
        assert estimate.arrival(0) == 300 * MS
        estimate.finished(50 * MS)
    assert estimate.arrival(0) == 300 * MS
    estimate.finished(50 * MS)
    assert estimate.arrival(0) == 50 * MS
    assert ArrivalEstimate(transport=0.02).sent(7) == 7 + 20 * MS


def test_a_candidate_that_the_gate_would_refuse_later_is_not_reachable() -> None:
    # Action 5 is 0.15 m from action 4, 1.5 m/s; both chunks begin alike.
    good = line(0.21, 0.01)
    fast = good.copy()
    fast[5:] += 0.15
    candidates = np.stack([good, fast]).astype(np.float32)
    result = hand_over(candidates, 0.1, observation(0.0), None, SEEN, PUSHT, SWITCH)
    assert result.reachable.tolist() == [True, False]


def test_the_path_before_a_takeover_is_that_of_what_executes() -> None:
    # Actions 0.1, 0.2, 0.4 at 0, 0.1 and 0.2 s; asked for 0.05, 0.15 and 0.25 s, then before it.
    old = chunk(SEEN, np.array([[0.1, 0.0], [0.2, 0.0], [0.4, 0.0]]))
    path = path_before(old, np.zeros(2), SEEN + 350 * MS, 100 * MS)
    np.testing.assert_allclose(path[:, 0], [0.15, 0.3, 0.4])
    early = path_before(old, np.zeros(2), SEEN + 50 * MS, 100 * MS)
    np.testing.assert_allclose(early[:, 0], [-0.15, -0.05, 0.05])
    np.testing.assert_array_equal(path_before(None, np.ones(2), SEEN, 1), np.ones((3, 2)))
