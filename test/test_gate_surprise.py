"""The gate and the world model's surprise: off by default, and whatever goes wrong holds."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

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


@pytest.mark.parametrize("value", [4.01, 1e9, math.inf, -math.inf, math.nan])
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


@pytest.mark.parametrize("words", [(9.0, 0.0), (0.0, 9.0), (0.0, math.nan)])
def test_of_two_words_about_one_block_the_worst_counts(words: tuple[float, float]) -> None:
    """As from two publishers, in whatever order they are heard."""
    rig = moving()
    for value in words:
        rig.gate.surprise(value, rig.ros, rig.ros, rig.time)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.submit(actions=SLOW, observation_stamp=rig.ros) == {ReasonCode.SURPRISED}


def test_calm_words_about_newer_blocks_hide_no_surprise() -> None:
    """Another publisher is ahead: what was planned before the surprise is dropped all the same,
    what was planned after it is not.
    """
    rig = moving()
    seen = rig.ros
    rig.advance(0.2)
    rig.gate.surprise(0.0, rig.ros, rig.ros, rig.time)
    rig.gate.surprise(9.0, seen, rig.ros, rig.time)
    assert rig.gate.mode is GateMode.HOLDING
    rig.advance(0.3)
    here = [(rig.position[0], rig.position[1])] * 10
    assert rig.submit(actions=here, observation_stamp=seen) == {ReasonCode.SURPRISED}
    assert rig.submit(actions=here, observation_stamp=seen + 1) == set()
    rig.gate.surprise(9.0, seen, rig.ros, rig.time)
    assert rig.gate.mode is GateMode.ARMED


def test_a_chunk_that_waits_for_its_time_is_dropped_too() -> None:
    rig = Rig(CONFIG).armed()
    surprise(rig)
    seen = rig.ros
    assert rig.submit(actions=SLOW, stamp=seen + 150_000_000, observation_stamp=seen) == set()
    rig.advance(0.05)
    rig.gate.surprise(0.0, rig.ros, rig.ros, rig.time)
    rig.gate.surprise(9.0, seen, rig.ros, rig.time)
    assert rig.gate.mode is GateMode.HOLDING
    rig.advance(0.5)
    assert rig.gate.counters.steps_executed == 0


def test_when_ros_time_goes_back_what_was_heard_counts_no_more() -> None:
    rig = moving()
    rig.jump = -30.0
    rig.advance(0.02, sensing=False)
    rig.gate.stop("the test", rig.time)
    rig.sense()
    rig.advance(0.5)
    rig.rearm()
    assert rig.submit(actions=SLOW[:1] * 5) == {ReasonCode.SURPRISED}


def test_a_clock_that_was_set_back_while_disarmed_does_not_silence_the_world_model() -> None:
    rig = Rig(CONFIG)
    rig.sense()
    surprise(rig)
    rig.jump = -500.0
    rig.armed()
    assert rig.submit(actions=SLOW) == {ReasonCode.SURPRISED}
    surprise(rig, 9.0)
    assert rig.submit(actions=SLOW) == {ReasonCode.SURPRISED}
    surprise(rig, 0.0, age=0.05)
    assert rig.submit(actions=SLOW, observation_stamp=rig.ros - 80_000_000) == set()


def test_a_new_limit_judges_what_comes_after_it() -> None:
    rig = Rig(replace(CONFIG, max_surprise=None))
    rig.sense()
    surprise(rig)
    rig.gate.configure(CONFIG)
    rig.armed()
    assert rig.submit(actions=SLOW) == {ReasonCode.SURPRISED}


def test_an_exception_in_the_check_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    rig = moving()
    monkeypatch.setattr(SurpriseWatch, "heard", broken)
    surprise(rig)
    assert rig.gate.mode is GateMode.STOPPED
    assert "INTERNAL_ERROR" in rig.gate.reason


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
            st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.0, 4.0),
            st.integers(-15, 3).map(lambda tenth: tenth * 100_000_000),
            st.floats(0.0, 0.5),
        ),
        max_size=20,
    ),
    st.integers(-15, 3).map(lambda tenth: tenth * 100_000_000),
)
def test_nothing_moves_unless_the_rule_allows_it(
    words: list[tuple[float, int, float]], planned: int
) -> None:
    """Against a direct reading of the rule, whatever is said in whatever order: the newest block
    is fresh, every word about it is calm, and no surprise ends after what the plan is from.
    """
    watch = SurpriseWatch(4.0, 1.0, 0.1)
    now, believed = 0.0, []
    for value, offset, wait in words:
        ros = START + round(now * 1e9)
        watch.heard(value, ros + offset, ros, now)
        if offset <= 100_000_000:
            believed.append((value, ros + offset, now))
        now += wait
    ros = START + round(now * 1e9)
    newest = max((stamp for _, stamp, _ in believed), default=0)
    heard = next((at for _, stamp, at in believed if stamp == newest), -math.inf)
    calm = [-math.inf < value <= 4.0 for value, _, _ in believed]
    about_newest = [c for c, (_, stamp, _) in zip(calm, believed, strict=True) if stamp == newest]
    fresh = now - heard <= 1.0 and (ros - newest) / 1e9 <= 1.0
    gone = any(
        not c and stamp >= ros + planned for c, (_, stamp, _) in zip(calm, believed, strict=True)
    )
    for plan, allowed in ((None, True), (ros + planned, not gone)):
        flaw = watch.flaw(plan, ros, now)
        assert (flaw is None) == (fresh and all(about_newest) and allowed)
        assert flaw is None or flaw.code is ReasonCode.SURPRISED


def test_the_gate_node_holds_on_a_surprise_and_goes_on_with_a_later_plan(ros: Any) -> None:
    """Over DDS: what is said on the world model's topic reaches the robot. About 5 s."""
    from test_gate_node import Bench

    from worldforge_ros.msg import GateStatus, Surprise
    from worldforge_ros.ros import convert, qos

    bench = Bench(ros, max_surprise=4.0, surprise_timeout=60.0, max_open_loop=60.0)
    here = [bench.position] * 400

    def now() -> int:
        return int(ros.node.get_clock().now().nanoseconds)

    def say(value: float) -> int:
        stamp = now()
        speaker.publish(Surprise(header=convert.header(stamp, "base"), standardised=value))
        return stamp

    def goes_on() -> GateStatus:
        # The two topics are not in order among each other: the calm word may come second.
        deadline = time.monotonic() + 10.0
        while (status := bench.send(bench.message(here))).reason_codes:
            assert list(status.reason_codes) == ["SURPRISED"]
            assert time.monotonic() < deadline
        return bench.mode(GateStatus.ARMED)

    with bench.gate:
        speaker = ros.node.create_publisher(Surprise, "score_node/surprise", qos.REPORT)
        ros.connected(speaker)
        bench.arm()
        status = bench.send(bench.message(here))
        assert list(status.reason_codes) == ["SURPRISED"], "nothing was heard yet"
        say(0.0)
        goes_on()
        gone = say(9.0)
        assert bench.mode(GateStatus.HOLDING).reason.startswith("SURPRISED: surprise of the block")
        say(math.nan)
        status = bench.send(bench.message(here, observation_stamp=gone))
        assert list(status.reason_codes) == ["SURPRISED"]
        say(0.0)
        status = goes_on()
        assert (status.stops, status.holds) == (0, 1)
