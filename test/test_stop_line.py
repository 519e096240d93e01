"""The protective stop: pressed, lost, silent, several of them, and what it takes to go on."""

from __future__ import annotations

import math

import pytest
from gate_rig import Rig, ramp

from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.stop_line import StopLine

PRESSED, LOST = ReasonCode.PROTECTIVE_STOP, ReasonCode.PROTECTIVE_STOP_LOST


def code(line: StopLine, now: float) -> ReasonCode | None:
    reason = line.reason(now)
    return None if reason is None else reason.code


def test_nobody_stops_where_nobody_publishes_and_nobody_has_to() -> None:
    line = StopLine(lease=0.5, required=False)
    line.publishers(0)
    assert code(line, 1e6) is None
    line.publishers(1)
    assert code(line, 1e6) is None, "a button that never said anything"


def test_a_required_stop_has_to_be_heard_and_to_be_there() -> None:
    line = StopLine(lease=None, required=True)
    assert code(line, 0.0) is LOST
    line.message(False, 0.0)
    assert code(line, 0.0) is LOST, "it was heard, but nobody is there"
    line = StopLine(lease=None, required=True)
    line.publishers(1)
    assert code(line, 0.0) is LOST, "it is there, but was not heard"
    line.message(False, 0.0)
    assert code(line, 0.0) is None
    line.publishers(0)
    assert code(line, 0.0) is LOST


def test_a_button_is_obeyed_until_it_is_released() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(1)
    line.message(True, 0.0)
    assert code(line, 1e6) is PRESSED
    line.message(False, 1e6)
    assert code(line, 1e6) is None


def test_a_publisher_that_disappears_is_a_stop_until_one_says_released() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(1)
    line.message(False, 0.0)
    line.publishers(0)
    reason = line.reason(1.0)
    assert reason is not None
    assert reason.message == (
        "the protective stop cannot be heard: one of its 1 publishers disappeared; expected a "
        "publisher that says it is released"
    )
    line.publishers(1)
    assert code(line, 2.0) is LOST, "it is there again, but has not said anything"
    line.message(False, 3.0)
    assert code(line, 3.0) is None


def test_the_last_words_of_a_publisher_that_is_gone_do_not_bring_it_back() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(1)
    line.message(False, 0.0)
    line.publishers(0)
    line.message(False, 0.01)
    assert code(line, 0.01) is LOST
    line.publishers(1)
    line.message(False, 0.02)
    assert code(line, 0.02) is None


def test_a_publisher_that_disappears_with_its_button_pressed_stays_pressed() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(1)
    line.message(True, 0.0)
    line.publishers(0)
    assert code(line, 1.0) is PRESSED


def test_several_publishers_are_a_stop_until_one_is_left_and_says_released() -> None:
    line = StopLine(lease=0.5, required=False)
    line.publishers(1)
    line.message(False, 0.0)
    line.publishers(2)
    reason = line.reason(0.0)
    assert reason is not None
    assert reason.code is LOST
    assert "it has 2 publishers, which cannot be told apart" in reason.message
    line.message(False, 0.1)
    assert code(line, 0.1) is LOST, "whichever it was"
    line.publishers(1)
    assert code(line, 0.1) is LOST, "the one that is left has not said anything"
    line.message(False, 0.2)
    assert code(line, 0.2) is None


def test_a_loss_is_not_made_good_while_there_are_several() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(3)
    line.publishers(2)
    line.message(False, 0.0)
    line.publishers(1)
    assert code(line, 0.0) is LOST
    line.message(False, 0.1)
    assert code(line, 0.1) is None


def test_silence_longer_than_the_lease_is_a_stop_until_it_is_broken() -> None:
    line = StopLine(lease=0.5, required=False)
    line.publishers(1)
    line.message(False, 10.0)
    assert code(line, 10.5) is None
    reason = line.reason(10.75)
    assert reason is not None
    assert reason.code is LOST
    assert "its publisher has been silent for 0.750 s" in reason.message
    line.message(False, 11.0)
    assert code(line, 11.0) is None


def test_a_clock_that_is_not_a_number_is_a_stop() -> None:
    line = StopLine(lease=0.5, required=False)
    line.message(False, 0.0)
    assert code(line, math.nan) is LOST


def test_a_press_is_told_from_a_loss_however_many_speak() -> None:
    line = StopLine(lease=0.5, required=False)
    line.publishers(2)
    line.message(True, 0.0)
    assert code(line, 0.0) is PRESSED
    line.message(False, 0.05)
    assert code(line, 0.05) is LOST, "a release by one of two releases nothing"


def test_a_new_lease_does_not_forget_what_was_lost_or_pressed() -> None:
    line = StopLine(lease=None, required=False)
    line.publishers(1)
    line.message(False, 0.0)
    line.publishers(0)
    line.configure(0.5, False)
    assert code(line, 0.0) is LOST
    line.message(True, 0.1)
    line.configure(None, False)
    assert code(line, 9.0) is PRESSED


def moving(config: GateConfig) -> Rig:
    rig = Rig(config)
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(False, 0.0)
    rig.armed()
    assert rig.submit(actions=ramp(4)) == set()
    rig.advance(0.05)
    assert rig.gate.mode is GateMode.ARMED
    return rig


FOR_GOOD = GateConfig(protective_stop_lease=None)


def test_a_pressed_button_stops_at_once_and_its_release_clears_nothing() -> None:
    rig = moving(FOR_GOOD)
    rig.gate.protective_stop(True, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("PROTECTIVE_STOP: ")
    assert rig.rearm().startswith("still stopped: PROTECTIVE_STOP: ")
    rig.gate.protective_stop(False, rig.time)
    rig.advance(0.1)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.rearm().startswith("rearmed")
    assert rig.gate.mode is GateMode.HOLDING


def test_a_lost_publisher_stops_at_the_next_tick() -> None:
    rig = moving(FOR_GOOD)
    rig.gate.stop_publishers(0)
    rig.advance(0.01)
    assert rig.gate.reason.startswith("PROTECTIVE_STOP_LOST: ")


def test_a_publisher_that_is_replaced_between_two_ticks_is_a_stop() -> None:
    rig = moving(FOR_GOOD)
    rig.gate.stop_publishers(0)
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(False, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("PROTECTIVE_STOP_LOST: ")
    assert rig.rearm().startswith("rearmed"), "the one that is there says released"


def test_a_second_publisher_stops_and_prevents_arming() -> None:
    rig = moving(FOR_GOOD)
    rig.gate.stop_publishers(2)
    rig.advance(0.01)
    assert rig.gate.reason.startswith("PROTECTIVE_STOP_LOST: ")
    rig.gate.protective_stop(False, rig.time)
    assert "cannot be told apart" in rig.rearm()
    rig = Rig(FOR_GOOD)
    rig.sense()
    rig.gate.stop_publishers(2)
    rig.gate.protective_stop(False, rig.time)
    assert "cannot be told apart" in rig.enable()
    assert rig.gate.mode is GateMode.DISARMED


def test_rearming_needs_a_live_publisher_that_says_released() -> None:
    rig = moving(FOR_GOOD)
    rig.gate.stop_publishers(0)
    rig.advance(0.01)
    assert rig.rearm().startswith("still stopped: PROTECTIVE_STOP_LOST: ")
    rig.gate.protective_stop(False, rig.time)
    assert rig.rearm().startswith("still stopped: PROTECTIVE_STOP_LOST: "), "nobody is there"
    rig.gate.stop_publishers(1)
    assert rig.rearm().startswith("still stopped: PROTECTIVE_STOP_LOST: "), "it said nothing yet"
    rig.gate.protective_stop(False, rig.time)
    assert rig.rearm().startswith("rearmed")


def test_a_silent_button_stops_when_its_lease_is_over() -> None:
    rig = moving(GateConfig(protective_stop_lease=0.2))
    rig.advance(0.15)
    assert rig.gate.mode is GateMode.ARMED
    rig.advance(0.01)
    assert rig.gate.reason.startswith("PROTECTIVE_STOP_LOST: ")
    rig.gate.protective_stop(False, rig.time)
    assert rig.rearm().startswith("rearmed")
    rig.advance(0.2)
    assert rig.gate.mode is GateMode.HOLDING
    rig.advance(0.01)
    assert rig.gate.mode is GateMode.STOPPED, "while holding too"


def test_arming_needs_the_button_where_it_is_required() -> None:
    rig = Rig(GateConfig(protective_stop_required=True))
    rig.sense()
    assert rig.enable().startswith("not armed: PROTECTIVE_STOP_LOST: ")
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(False, rig.time)
    assert rig.enable().startswith("armed")


@pytest.mark.parametrize("pressed", [True, False])
def test_before_arming_a_press_latches_and_a_loss_only_prevents_arming(pressed: bool) -> None:
    rig = Rig(FOR_GOOD)
    rig.sense()
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(pressed, rig.time)
    rig.gate.stop_publishers(0)
    rig.tick()
    assert rig.gate.mode is (GateMode.STOPPED if pressed else GateMode.DISARMED)
    answer = rig.rearm() if pressed else rig.enable()
    assert ("PROTECTIVE_STOP: " if pressed else "PROTECTIVE_STOP_LOST: ") in answer
