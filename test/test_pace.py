"""When the steps of a simulation are due."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.safety.checks import GateConfig
from worldforge_ros.simulation.pace import LONGEST_WAIT, Pace

MS = 1_000_000


def test_steps_are_due_by_the_clock() -> None:
    pace = Pace(step=0.002, rate=0.5, now=50 * MS)
    assert pace.due(50 * MS, 0) == 0
    assert pace.due(53 * MS, 0) == 0
    assert pace.due(54 * MS, 0) == 1
    # 100 ms at half speed are 25 steps of 2 ms, of which 20 are done.
    assert pace.due(150 * MS, 20) == 5
    assert pace.due(150 * MS, 30) == 0


def test_a_short_delay_is_caught_up_with() -> None:
    pace = Pace(step=0.01, rate=1.0, now=0)
    assert pace.due(900 * MS, 0) == 90


def test_a_long_delay_is_let_slip() -> None:
    pace = Pace(step=0.01, rate=1.0, now=0)
    assert pace.due(1500 * MS, 0) == 1
    assert pace.due(1510 * MS, 1) == 1
    assert pace.due(1520 * MS, 2) == 1


def test_time_that_waited_goes_on_from_there() -> None:
    pace = Pace(step=0.01, rate=2.0, now=0)
    assert pace.due(100 * MS, 0) == 20
    assert pace.wait(100 * MS, 7)
    assert pace.due(100 * MS, 7) == 0
    assert pace.due(105 * MS, 7) == 1


def test_a_wait_ends_before_a_gate_misses_the_joint_states() -> None:
    assert GateConfig().joint_state_timeout / 2 > LONGEST_WAIT
    pace = Pace(step=0.01, rate=1.0, now=0)
    for moment in (50, 100, 149):
        assert pace.wait(moment * MS, 3)
    assert not pace.wait(151 * MS, 3)
    # Time has gone on since the last wait, and the next wait is a new one.
    assert pace.due(159 * MS, 3) == 1
    assert pace.wait(160 * MS, 4)


def test_the_factor_is_that_of_the_last_window() -> None:
    pace = Pace(step=0.01, rate=1.0, now=0)
    assert math.isnan(pace.factor())
    pace.note(1000 * MS, 100)
    assert pace.factor() == pytest.approx(1.0)
    for second in range(1, 11):
        pace.note((1 + second) * 1000 * MS, 100 + 50 * second)
    assert pace.factor() == pytest.approx(0.5)


@given(st.floats(0.1, 10.0), st.lists(st.integers(1, 400), min_size=20, max_size=60))
def test_on_a_machine_that_keeps_up_time_runs_at_its_rate(rate: float, gaps: list[int]) -> None:
    step = 0.002
    pace = Pace(step, rate, 0)
    now = done = 0
    for gap in gaps:
        # Never so long that time slips.
        now += round(min(gap, 900 / rate) * MS)
        done += pace.due(now, done)
    assert abs(done * step - now / 1e9 * rate) <= step * 1.001
