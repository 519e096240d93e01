"""How strict the gate is: what may be configured, when, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from gate_rig import Rig, ramp
from rclpy.parameter import Parameter

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.safety import parameters as gate_parameters
from worldforge_ros.safety.config import (
    CHUNK_CODES,
    CLAMPABLE,
    GateConfig,
    Reaction,
    parse_reactions,
)
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.reasons import ReasonCode


def test_everything_is_rejected_but_want_of_confidence_which_holds() -> None:
    config = GateConfig()
    hold = {ReasonCode.COST_TOO_HIGH, ReasonCode.MARGIN_TOO_SMALL}
    for code in ReasonCode:
        expected = Reaction.HOLD if code in hold else Reaction.REJECT
        assert config.reaction(code) is expected


def test_reactions_are_read_and_keep_the_defaults() -> None:
    reactions = parse_reactions(" POSITION_LIMIT=clamp,JERK_LIMIT = latch, ,COST_TOO_HIGH=reject ")
    assert reactions == {
        ReasonCode.POSITION_LIMIT: Reaction.CLAMP,
        ReasonCode.JERK_LIMIT: Reaction.LATCH,
        ReasonCode.COST_TOO_HIGH: Reaction.REJECT,
        ReasonCode.MARGIN_TOO_SMALL: Reaction.HOLD,
    }
    assert parse_reactions("") == parse_reactions(" , ") == GateConfig().reactions


@pytest.mark.parametrize(
    ("text", "field", "found"),
    [
        ("POSITION=reject", "check_policies", "'POSITION=reject'"),
        ("position_limit=reject", "check_policies", "'position_limit=reject'"),
        ("=clamp", "check_policies", "'=clamp'"),
        ("NOT_ARMED=latch", "check_policies", "'NOT_ARMED=latch'"),
        ("EPOCH_MISMATCH=latch", "check_policies", "'EPOCH_MISMATCH=latch'"),
        ("TOO_MANY_REJECTIONS=reject", "check_policies", "'TOO_MANY_REJECTIONS=reject'"),
        ("TRACKING_ERROR=reject", "check_policies", "'TRACKING_ERROR=reject'"),
        ("JERK_LIMIT", "check_policies of JERK_LIMIT", "''"),
        ("JERK_LIMIT=ignore", "check_policies of JERK_LIMIT", "'ignore'"),
        ("JERK_LIMIT=clamp", "check_policies of JERK_LIMIT", "clamp"),
        ("POSITION_LIMIT=clamp, X=hold", "check_policies", "'X=hold'"),
    ],
)
def test_reactions_that_do_not_exist_are_refused(text: str, field: str, found: str) -> None:
    with pytest.raises(WorldForgeError) as caught:
        parse_reactions(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.message.startswith(f"{field} is {found}; expected ")


def test_a_reaction_can_be_chosen_for_what_is_about_a_chunk() -> None:
    for code in CHUNK_CODES:
        for reaction in Reaction:
            if reaction is not Reaction.CLAMP or code in CLAMPABLE:
                assert parse_reactions(f"{code}={reaction}")[code] is reaction


NUMBERS = [
    "max_chunk_age",
    "max_observation_age",
    "max_open_loop",
    "future_tolerance",
    "joint_state_timeout",
    "max_joint_state_age",
    "arm_max_speed",
    "max_horizon",
    "min_step",
    "max_step",
    "position_margin",
    "stop_after_hold",
    "max_tracking_error",
    "measured_tolerance",
    "max_chunk_rate",
    "max_rejections",
    "rejection_window",
    "max_cost",
    "min_margin",
    "heartbeat_timeout",
    "max_surprise",
    "surprise_timeout",
    "protective_stop_lease",
]
MAY_BE_ZERO = {
    "future_tolerance",
    "arm_max_speed",
    "position_margin",
    "measured_tolerance",
    "max_cost",
    "min_margin",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_would_switch_a_check_off_by_accident_is_refused(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, -1e-9):
        with pytest.raises(WorldForgeError) as caught:
            GateConfig(**{name: value})  # type: ignore[arg-type]
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        bound = "of 0 or more" if name in MAY_BE_ZERO else "above 0"
        assert caught.value.message == (
            f"gate configuration {name} is {value}; expected a finite number {bound}"
        )
    if name in MAY_BE_ZERO:
        GateConfig(**{name: 0.0})  # type: ignore[arg-type]
    else:
        with pytest.raises(WorldForgeError):
            GateConfig(**{name: 0})  # type: ignore[arg-type]


def test_the_list_of_numbers_is_complete() -> None:
    others = {"model_id", "allowed_sources", "heartbeats", "protective_stop_required", "reactions"}
    assert set(vars(GateConfig())) == set(NUMBERS) | others


def test_the_configuration_changes_only_while_nothing_may_move() -> None:
    rig = Rig()
    strict = GateConfig(max_horizon=2)
    rig.gate.configure(strict)
    rig.gate.configure(GateConfig())
    rig.armed()
    for mode in (GateMode.HOLDING, GateMode.ARMED):
        assert rig.gate.mode is mode
        for attempt in (rig.gate.check_changeable, lambda: rig.gate.configure(strict)):
            with pytest.raises(WorldForgeError) as caught:
                attempt()
            assert caught.value.code is ErrorCode.INVALID_ARGUMENT
            assert f"the gate is {mode.name}" in caught.value.message
        assert rig.gate.config.max_horizon == 512
        assert rig.submit(actions=ramp(3, 0.01)) == set()
    rig.gate.stop("button", rig.time)
    rig.gate.check_changeable()
    rig.gate.configure(strict)
    assert rig.rearm().startswith("rearmed")
    assert rig.submit(actions=ramp(3, 0.01)) == {ReasonCode.HORIZON_INVALID}


def test_a_new_configuration_is_in_force_for_every_check() -> None:
    rig = Rig()
    rig.gate.configure(
        GateConfig(
            heartbeats=("planner_node",), protective_stop_required=True, protective_stop_lease=0.1
        )
    )
    rig.sense()
    answer = rig.enable()
    assert "PROTECTIVE_STOP_LOST" in answer
    assert "HEARTBEAT_LOST" in answer
    rig.gate.configure(GateConfig())
    assert rig.enable().startswith("armed")


def test_a_configuration_that_is_refused_leaves_nothing_behind() -> None:
    rig = Rig()
    with pytest.raises(WorldForgeError) as caught:
        rig.gate.configure(GateConfig(heartbeats=("a", "a"), max_horizon=2))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert rig.gate.config == GateConfig()
    rig.armed()
    assert rig.submit(actions=ramp(3, 0.01)) == set()


def changed(policies: str = "", **changes: Any) -> GateConfig:
    parameters = [Parameter(name, value=value) for name, value in changes.items()]
    return gate_parameters.changed(GateConfig(), parameters, policies)


def test_parameters_change_what_they_name_and_nothing_else() -> None:
    assert changed() == GateConfig()
    assert changed(max_horizon=7) == GateConfig(max_horizon=7)
    assert changed(heartbeats=" planner_node, policy_node ") == GateConfig(
        heartbeats=("planner_node", "policy_node")
    )
    assert changed(allowed_sources="cem") == GateConfig(allowed_sources=("cem",))
    assert changed(max_rejections=0, protective_stop_lease=0.0) == GateConfig(
        max_rejections=None, protective_stop_lease=None
    )
    assert changed(use_sim_time=True) == GateConfig()
    kept = changed("JERK_LIMIT=latch", max_step=0.5)
    assert kept.reaction(ReasonCode.JERK_LIMIT) is Reaction.LATCH
    assert kept.max_step == 0.5
    anew = changed("JERK_LIMIT=latch", check_policies="JERK_LIMIT=hold")
    assert anew.reaction(ReasonCode.JERK_LIMIT) is Reaction.HOLD


def test_parameters_with_a_wrong_value_are_refused() -> None:
    for wrong in ({"check_policies": "JERK_LIMIT=clamp"}, {"max_step": 0.0}):
        with pytest.raises(WorldForgeError) as caught:
            changed(**wrong)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_only_parameters_of_the_configuration_concern_the_gate() -> None:
    assert not gate_parameters.concerns([Parameter("use_sim_time", value=True)])
    for name in ("max_cost", "check_policies", "protective_stop_required", "heartbeats"):
        assert gate_parameters.concerns([Parameter(name, value="x")])
