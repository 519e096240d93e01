"""The gate and the world model's surprise: off by default, and whatever goes wrong holds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from gate_rig import START, Rig, ramp
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.surprise import SurpriseWatch

CONFIG = GateConfig(
    max_surprise=4.0, surprise_timeout=1.0, protective_stop_lease=None, max_open_loop=10.0
)
SLOW = ramp(20, 0.005)


def surprise(rig: Rig, value: float = 0.0, age: float = 0.1) -> None:
    rig.gate.surprise(value, rig.ros - round(age * 1e9), rig.ros, rig.time)


def moving() -> Rig:
    """A gate that executes a chunk under a calm world model."""
    rig = Rig(CONFIG).armed()
    surprise(rig)
    assert rig.submit(actions=SLOW) == set()
    rig.advance(0.1)
    assert rig.gate.mode is GateMode.ARMED
    return rig


def test_it_is_off_unless_it_is_switched_on() -> None:
    assert GateConfig().max_surprise is None
    rig = Rig(replace(CONFIG, max_surprise=None)).armed()
    surprise(rig, math.nan)
    assert rig.submit(actions=SLOW) == set()
    surprise(rig, 1e9)
    rig.advance(0.5)
    assert rig.gate.mode is GateMode.ARMED


def test_without_a_word_nothing_moves() -> None:
    rig = Rig(CONFIG).armed()
    assert rig.submit(actions=SLOW) == {ReasonCode.SURPRISED}
    assert rig.gate.mode is GateMode.HOLDING
    # It is no fault either: as soon as the world model speaks, the robot may go on.
    surprise(rig)
    assert rig.submit(actions=SLOW) == set()


@pytest.mark.parametrize("value", [4.01, 1e9, math.inf, math.nan])
def test_a_surprise_holds_and_a_later_plan_goes_on(value: float) -> None:
    rig = moving()
    rig.advance(0.2)
    rig.gate.surprise(value, rig.ros, rig.ros, rig.time)
    rig.advance(0.3)
    assert rig.gate.mode is GateMode.HOLDING
    assert "SURPRISED" in rig.gate.reason
    seen = rig.ros - round(0.3e9)
    # The next block is normal, but a plan from before its surprise is about a world that is gone.
    rig.gate.surprise(0.0, rig.ros, rig.ros, rig.time)
    here = [(rig.position[0], rig.position[1])] * 10
    assert rig.submit(actions=here, observation_stamp=seen) == {ReasonCode.SURPRISED}
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.submit(actions=here, observation_stamp=rig.ros) == set()
    assert rig.gate.mode is GateMode.ARMED
    assert rig.gate.counters.stops == 0


def test_the_limit_itself_is_normal() -> None:
    rig = moving()
    rig.gate.surprise(4.0, rig.ros, rig.ros, rig.time)
    rig.advance(0.05)
    assert rig.gate.mode is GateMode.ARMED


def test_silence_holds() -> None:
    rig = moving()
    rig.advance(1.2)
    assert rig.gate.mode is GateMode.HOLDING
    assert "SURPRISED" in rig.gate.reason


def test_what_is_said_too_late_is_silence() -> None:
    """Messages that keep coming about a block of long ago are no sign of life."""
    rig = moving()
    begun = rig.ros
    for index in range(15):
        rig.gate.surprise(0.0, begun + index, rig.ros, rig.time)
        rig.advance(0.1)
    assert rig.gate.mode is GateMode.HOLDING


def test_a_stamp_from_the_future_is_not_believed() -> None:
    rig = moving()
    rig.gate.surprise(0.0, rig.ros + 60_000_000_000, rig.ros, rig.time)
    rig.advance(1.2)
    assert rig.gate.mode is GateMode.HOLDING


def test_a_second_word_about_the_same_block_does_not_soften_the_first() -> None:
    rig = moving()
    stamp = rig.ros
    rig.gate.surprise(9.0, stamp, rig.ros, rig.time)
    rig.gate.surprise(0.0, stamp, rig.ros, rig.time)
    assert rig.submit(actions=SLOW, observation_stamp=stamp) == {ReasonCode.SURPRISED}


def test_when_ros_time_goes_back_what_was_heard_counts_no_more() -> None:
    rig = moving()
    rig.jump = -30.0
    rig.advance(0.02, sensing=False)
    rig.gate.stop("the test", rig.time)
    rig.sense()
    rig.advance(0.5)
    rig.rearm()
    assert rig.submit(actions=SLOW[:1] * 5) == {ReasonCode.SURPRISED}


def test_many_surprises_are_no_reason_to_stop() -> None:
    """Holding is the answer: refusals because of it do not add up to a stop."""
    rig = Rig(replace(CONFIG, max_rejections=2)).armed()
    for _ in range(10):
        rig.advance(0.1)
        surprise(rig, 9.0, age=0.0)
        assert rig.submit(actions=SLOW) == {ReasonCode.SURPRISED}
    assert rig.gate.mode is GateMode.HOLDING


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(-3_000_000_000, 3_000_000_000),
            st.floats(0.0, 2.0),
        ),
        max_size=20,
    )
)
def test_there_is_a_flaw_unless_the_newest_believed_word_is_fresh_and_calm(
    words: list[tuple[float, int, float]],
) -> None:
    """Against a direct reading of the rule, whatever is said in whatever order."""
    watch = SurpriseWatch(4.0, 1.0)
    now, newest = 0.0, None
    for value, offset, wait in words:
        ros = START + round(now * 1e9)
        stamp = ros + offset
        watch.heard(value, stamp, now, ros + 100_000_000)
        if stamp <= ros + 100_000_000 and (newest is None or stamp > newest[1]):
            newest = (value, stamp, now)
        now += wait
        ros = START + round(now * 1e9)
        calm = (
            newest is not None
            and newest[0] <= 4.0
            and now - newest[2] <= 1.0
            and (ros - newest[1]) / 1e9 <= 1.0
        )
        flaw = watch.flaw(ros, now)
        assert (flaw is None) == calm
        assert flaw is None or flaw.code is ReasonCode.SURPRISED
