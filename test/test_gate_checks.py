"""Every reason code, and what the gate makes of a violation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_rig import HOME, NAMES, START, Rig, ramp, robot, xs

from worldforge_ros.embodiment import (
    ArmShape,
    Box,
    Embodiment,
    EndEffector,
    KeepOut,
    WorkspaceSpec,
    load_embodiment,
)
from worldforge_ros.safety.config import GateConfig, parse_reactions
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.stream import SetPoint, SetPointStream
from worldforge_ros.safety.workspace import workspace_of

AGO = START - 2_000_000_000

BAD: dict[str, tuple[dict[str, Any], set[ReasonCode]]] = {
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
    "short step": ({"step": 0.00499}, {ReasonCode.STEP_INVALID}),
    "long step": ({"step": 0.3}, {ReasonCode.STEP_INVALID}),
    "other robot": ({"embodiment": "aloha"}, {ReasonCode.EMBODIMENT_MISMATCH}),
    "other source": ({"source": "stranger"}, {ReasonCode.SOURCE_NOT_ALLOWED}),
    "other model": ({"model_id": "b"}, {ReasonCode.MODEL_MISMATCH}),
    "no model": ({"model_id": ""}, {ReasonCode.MODEL_MISMATCH}),
    "dear": ({"cost": 2.1}, {ReasonCode.COST_TOO_HIGH}),
    "without a cost": ({"cost": math.nan}, {ReasonCode.COST_TOO_HIGH}),
    "doubtful": ({"margin": 0.4}, {ReasonCode.MARGIN_TOO_SMALL}),
    "without a margin": ({"margin": math.nan}, {ReasonCode.MARGIN_TOO_SMALL}),
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
    "old observation": ({"observation_stamp": AGO}, {ReasonCode.OBSERVATION_TOO_OLD}),
    "early observation": (
        {"observation_stamp": START + 300_000_000},
        {ReasonCode.OBSERVATION_IN_FUTURE},
    ),
    "outside": (
        {"actions": [(HOME[0], 0.25 + 0.09 * k) for k in range(1, 5)]},
        {ReasonCode.POSITION_LIMIT},
    ),
    "too fast": ({"actions": xs(0.25, 0.36)}, {ReasonCode.VELOCITY_LIMIT}),
    "jump": ({"actions": xs(0.36)}, {ReasonCode.SEAM_COMMANDED, ReasonCode.SEAM_MEASURED}),
}
STRICT = GateConfig(allowed_sources=("policy", "cem"), model_id="a", max_cost=2.0, min_margin=0.5)
GOOD = {"model_id": "a", "cost": 2.0, "margin": 0.5}


@pytest.mark.parametrize("name", BAD)
def test_every_fault_of_a_chunk_has_its_code(name: str) -> None:
    changes, expected = BAD[name]
    rig = Rig(STRICT).armed()
    assert rig.submit(**{**GOOD, **changes}) == expected
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.last_verdict is not None
    assert rig.gate.last_verdict.word == "REJECTED"
    assert all(len(reason.message) > 15 for reason in rig.gate.last_verdict.reasons)
    counted = rig.gate.counters.rejected_by_code
    assert counted == {str(code): 1 for code in expected}
    assert rig.submit(**GOOD) == set()


def test_a_rejected_chunk_lists_everything_that_it_violates() -> None:
    limits = {"max_acceleration": 5.0, "max_deceleration": 2.0, "max_jerk": 50.0}
    config = replace(
        STRICT,
        heartbeats=("planner_node",),
        position_margin=0.02,
        max_chunk_rate=1.0,
        max_rejections=None,
    )
    rig = Rig(config, robot(**limits))
    rig.gate.beat("planner_node", 0.0)
    rig.armed()
    assert rig.submit(**GOOD) == set()
    rig.advance(0.99)
    rig.gate.proposers(2)
    # x ends beyond the margin, having gone 0.26 m in 0.1 s; y too, beyond the limit.
    actions = [(0.25, 0.25), (math.nan, 0.25), (0.25, 0.25), (0.25, 0.25), (0.51, 2.0)]
    assert rig.submit(
        actions=actions,
        embodiment="x",
        epoch=7,
        sequence=1,
        source="x",
        model_id="x",
        stamp=rig.ros + 250_000_000,
        observation_stamp=0,
    ) == {
        ReasonCode.NOT_FINITE,
        ReasonCode.EMBODIMENT_MISMATCH,
        ReasonCode.SOURCE_NOT_ALLOWED,
        ReasonCode.EPOCH_MISMATCH,
        ReasonCode.SEQUENCE_NOT_INCREASING,
        ReasonCode.MODEL_MISMATCH,
        ReasonCode.MULTIPLE_PUBLISHERS,
        ReasonCode.CHUNK_RATE,
        ReasonCode.COST_TOO_HIGH,
        ReasonCode.MARGIN_TOO_SMALL,
        ReasonCode.CHUNK_IN_FUTURE,
        ReasonCode.OBSERVATION_STAMP_UNSET,
        ReasonCode.POSITION_LIMIT,
        ReasonCode.POSITION_MARGIN,
        ReasonCode.VELOCITY_LIMIT,
        ReasonCode.SUSTAINED_VELOCITY,
        ReasonCode.ACCELERATION_LIMIT,
        ReasonCode.JERK_LIMIT,
        ReasonCode.STOPPING_DISTANCE,
    }
    rig.advance(0.02)
    assert ReasonCode.HEARTBEAT_LOST in rig.submit(**GOOD)


def message(rig: Rig, actions: Any, **changes: Any) -> list[str]:
    return [str(reason) for reason in rig.judge(actions=actions, **changes).reasons]


# A step is 0.1 s: 5 m/s^2 let a move grow by 5 * 0.1^2 = 0.05 m, 50 m/s^3 let that growth change
# by 50 * 0.1^3 = 0.05 m.
WEAK = robot(max_acceleration=5.0)
GENTLE = robot(max_jerk=50.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_acceleration_counts_from_rest(sign: int) -> None:
    rig = Rig(embodiment=WEAK).armed()
    assert message(rig, xs(0.25 + sign * 0.051)) == [
        "ACCELERATION_LIMIT: acceleration of pusher_x at action 0 is 5.1 m/s^2; "
        "expected at most 5 m/s^2"
    ]
    assert rig.submit(actions=xs(0.25 + sign * 0.05)) == set()


def test_acceleration_within_a_chunk() -> None:
    rig = Rig(embodiment=WEAK).armed()
    # Moves 0.05, 0.05, -0.01: the last bends by 0.06.
    assert message(rig, xs(0.30, 0.35, 0.34)) == [
        "ACCELERATION_LIMIT: acceleration of pusher_x at action 2 is 6 m/s^2; "
        "expected at most 5 m/s^2"
    ]
    assert rig.submit(actions=xs(0.30, 0.35, 0.35)) == set()


def test_acceleration_across_the_seam() -> None:
    rig = Rig(embodiment=WEAK).armed()
    assert rig.submit(actions=ramp(4)) == set()
    rig.advance(0.15)
    # Set-points so far 0.25, 0.30, 0.35 at -0.1, 0 and 0.1 s; the next is due at 0.2 s.
    due = START + 200_000_000
    assert message(rig, xs(0.34), stamp=due) == [
        "ACCELERATION_LIMIT: acceleration of pusher_x at action 0 is 6 m/s^2; "
        "expected at most 5 m/s^2"
    ]
    assert rig.submit(actions=xs(0.35), stamp=due) == set()


def test_acceleration_counts_from_the_measured_motion_too() -> None:
    rig = Rig(embodiment=WEAK).armed()
    rig.velocity = (-0.3, 0.0)
    rig.advance(0.01)
    # Measured moves of -0.03 a step, then 0.03: a bend of 0.06.
    assert rig.submit(actions=xs(0.28)) == {ReasonCode.ACCELERATION_LIMIT}
    assert rig.submit(actions=xs(0.27)) == set()


SLUGGISH = robot(max_deceleration=2.0)


def test_what_a_resting_robot_sags_is_no_motion() -> None:
    """Up to arm_max_speed, 0.05 m/s, a robot rests."""
    for velocity, expected in ((0.05, set()), (0.051, {ReasonCode.ACCELERATION_LIMIT})):
        rig = Rig(embodiment=WEAK).armed()
        rig.position, rig.velocity = (0.23, 0.25), (velocity, 0.0)
        rig.advance(0.01)
        # 0.05 m from the set-point, as much as 5 m/s^2 allow; 0.07 m from where it was measured.
        assert rig.submit(actions=xs(0.30)) == expected
    for velocity, expected in ((0.05, set()), (0.051, {ReasonCode.STOPPING_DISTANCE})):
        rig = Rig(embodiment=SLUGGISH, position=(0.45, 0.25)).armed()
        rig.position, rig.velocity = (0.40, 0.25), (velocity, 0.0)
        rig.advance(0.01)
        # 0.02 m: 0.1 m/s at its end, 0.0025 m to rest; 0.07 m: 0.6 m/s and 0.09 m.
        assert rig.submit(actions=xs(0.47)) == expected


def test_how_far_a_resting_robot_has_to_go_is_judged_from_where_it_is() -> None:
    rig = Rig().armed()
    rig.position = (0.20, 0.25)
    rig.advance(0.01)
    assert rig.submit(actions=xs(0.301)) == {ReasonCode.SEAM_MEASURED}
    assert rig.submit(actions=xs(0.30)) == set()


def test_steps_shorter_than_float32_resolves_are_refused() -> None:
    rig = Rig().armed()
    assert message(rig, xs(0.25), step=0.004) == [
        "STEP_INVALID: step is 0.004 s; expected 0.005 to 0.25 s"
    ]
    assert rig.submit(step=0.005, actions=xs(0.25, 0.25, 0.25)) == set()
    rig = Rig(GateConfig(min_step=0.1)).armed()
    assert rig.submit(step=float(np.float32(0.1))) == set()
    assert rig.submit(step=0.099) == {ReasonCode.STEP_INVALID}


def test_jerk_from_rest_and_within_a_chunk() -> None:
    rig = Rig(embodiment=GENTLE).armed()
    assert rig.submit(actions=xs(0.301)) == {ReasonCode.JERK_LIMIT}
    # Moves 0.04, 0.08, 0.05: bends 0.04, 0.04, -0.03; the last differs by 0.07.
    assert message(rig, xs(0.29, 0.37, 0.42)) == [
        "JERK_LIMIT: jerk of pusher_x at action 2 is 70 m/s^3; expected at most 50 m/s^3"
    ]
    assert rig.submit(actions=xs(0.29, 0.37, 0.44)) == set()


def test_jerk_across_the_seam() -> None:
    rig = Rig(embodiment=GENTLE).armed()
    assert rig.submit(actions=ramp(4)) == set()
    rig.advance(0.15)
    due = START + 200_000_000
    # The move before was 0.05 and did not bend; staying bends by -0.05, going back by more.
    assert message(rig, xs(0.349), stamp=due) == [
        "JERK_LIMIT: jerk of pusher_x at action 0 is 51 m/s^3; expected at most 50 m/s^3"
    ]
    assert rig.submit(actions=xs(0.35), stamp=due) == set()


def test_a_joint_must_be_able_to_stop_before_its_limit() -> None:
    # A move of 0.05 m in 0.1 s: 0.5 m/s in its middle, 0.4 m/s after 0.05 s at 2 m/s^2; then
    # 0.4^2 / (2 * 2) = 0.04 m more.
    rig = Rig(embodiment=robot(max_deceleration=2.0), position=(0.40, 0.25)).armed()
    assert message(rig, xs(0.45, 0.50)) == [
        "STOPPING_DISTANCE: rest of pusher_x when it brakes from action 1 is 0.54 m; "
        "expected 0 to 0.512 m"
    ]
    # 0.2 m/s in the middle, 0.1 m/s at the end: 0.0025 m more, and 0.47 + 0.0025 is inside.
    assert rig.submit(actions=xs(0.45, 0.47)) == set()
    rig = Rig(embodiment=robot(max_deceleration=2.0), position=(0.10, 0.25)).armed()
    assert rig.submit(actions=xs(0.05, 0.0)) == {ReasonCode.STOPPING_DISTANCE}
    assert rig.submit(actions=xs(0.06, 0.04)) == set()


def test_the_margin_keeps_set_points_inside_and_lets_a_robot_out_of_it() -> None:
    config = GateConfig(position_margin=0.02)
    rig = Rig(config, position=(0.45, 0.25)).armed()
    assert message(rig, xs(0.493)) == [
        "POSITION_MARGIN: set-point of pusher_x at action 0 is 0.493 m; "
        "expected at least 0.02 inside 0 to 0.512 m"
    ]
    assert rig.submit(actions=xs(0.492)) == set()
    rig = Rig(config, position=(0.50, 0.25)).armed()
    assert rig.submit(actions=xs(0.505)) == {ReasonCode.POSITION_MARGIN}
    assert rig.submit(actions=xs(0.50, 0.45)) == set()


TURN = 2.0 * math.pi


@pytest.mark.parametrize("sign", [1, -1])
def test_a_continuous_joint_goes_the_short_way_round(sign: int) -> None:
    rig = Rig(embodiment=robot("continuous"), position=(sign * 3.10, 0.25)).armed()
    # 3.15 as a planner says it that knows angles between -pi and pi only.
    assert rig.submit(actions=xs(sign * 3.12, sign * (3.15 - TURN))) == set()
    assert rig.at(0.15)[0] == pytest.approx(sign * 3.15)
    assert rig.submit(actions=xs(sign * (3.30 - TURN))) == {ReasonCode.SEAM_COMMANDED}
    assert rig.submit(actions=xs(sign * (3.20 - TURN))) == set()
    assert rig.at(0.16)[0] == pytest.approx(sign * 3.20)


def test_a_continuous_joint_has_a_range_that_float32_resolves() -> None:
    rig = Rig(embodiment=robot("continuous"), position=(0.0, 0.25)).armed()
    # 16 turns are 100.53 rad, 15 turns 94.25 rad.
    assert message(rig, xs(16 * TURN)) == [
        "POSITION_LIMIT: set-point of pusher_x is 100.531 rad; "
        "expected -100 to 100 rad, which float32 resolves"
    ]
    assert rig.submit(actions=xs(15 * TURN - 0.03)) == set()
    assert rig.at(0.01)[0] == pytest.approx(-0.03)


def test_the_tracking_error_of_a_continuous_joint_is_measured_across_the_turn() -> None:
    rig = Rig(
        GateConfig(max_tracking_error=0.06), robot("continuous"), position=(3.10, 0.25)
    ).armed()
    assert rig.submit(actions=xs(3.15, 3.15, 3.15)) == set()
    rig.advance(0.02)
    rig.position = (3.20 - TURN, 0.25)
    rig.advance(0.05)
    assert rig.gate.mode is GateMode.ARMED
    rig.position = (3.22 - TURN, 0.25)
    rig.advance(0.01)
    assert rig.gate.reason == (
        "TRACKING_ERROR: distance of pusher_x from its set-point is 0.07 rad; "
        "expected at most 0.06 rad"
    )


@pytest.mark.parametrize("how", ["hold", "stop"])
def test_a_continuous_joint_is_held_on_the_turn_of_its_set_point(how: str) -> None:
    rig = Rig(embodiment=robot("continuous"), position=(3.10, 0.25)).armed()
    assert rig.submit(actions=xs(3.15)) == set()
    rig.position = (3.16 - TURN, 0.25)
    rig.advance(0.05)
    if how == "stop":
        rig.gate.stop("button", rig.time)
    # A driver may say -3.12 for 3.16; a set-point of -3.12 could be taken for a whole turn back.
    assert rig.at(0.15)[0] == pytest.approx(3.16)


def test_chunks_are_counted_over_one_second() -> None:
    rig = Rig(GateConfig(max_chunk_rate=3.0)).armed()
    for _ in range(3):
        assert rig.submit() == set()
        rig.advance(0.1)
    assert message(rig, xs(0.25)) == ["CHUNK_RATE: chunks within a second is 4; expected at most 3"]
    # At 1.05 s those of 0.1, 0.2 and 0.3 s still count.
    rig.advance(0.75)
    assert rig.submit() == {ReasonCode.CHUNK_RATE}
    rig.advance(0.3)
    # At 1.35 s only that of 1.05 s does.
    assert rig.submit() == set()


def test_too_many_rejections_within_the_window_stop() -> None:
    rig = Rig(GateConfig(max_rejections=3, rejection_window=1.0)).armed()
    for _ in range(10):
        assert rig.submit(epoch=9) == {ReasonCode.EPOCH_MISMATCH}
    assert rig.gate.mode is GateMode.HOLDING, "what was planned before a stop does not count"
    rig.submit(step=0.0)
    rig.submit(step=0.0)
    rig.advance(1.1)
    rig.submit(step=0.0)
    rig.submit(step=0.0, epoch=9)
    assert rig.gate.mode is GateMode.HOLDING, "the first two are out of the window"
    rig.gate.refuse(0, ReasonCode.MALFORMED, "data is cut off", rig.ros, rig.time)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason == (
        "TOO_MANY_REJECTIONS: chunks refused within 1 s are 3; expected fewer; the last: "
        "MALFORMED: data is cut off"
    )
    assert rig.rearm().startswith("rearmed")
    rig.submit(step=0.0)
    assert rig.gate.mode is GateMode.HOLDING, "counting begins anew"


def test_refusals_that_make_the_robot_hold_do_not_count() -> None:
    reactions = parse_reactions("STEP_INVALID=hold")
    config = GateConfig(
        max_rejections=2,
        max_cost=1.0,
        reactions=reactions,
        heartbeats=("planner_node",),
        heartbeat_timeout=0.1,
    )
    rig = Rig(config)
    rig.gate.beat("planner_node", 0.0)
    rig.armed()
    for _ in range(5):
        assert rig.submit(cost=2.0) == {ReasonCode.COST_TOO_HIGH}
        assert rig.submit(cost=0.0, step=0.0) == {ReasonCode.STEP_INVALID}
    rig.advance(0.15)
    for _ in range(5):
        assert rig.submit(cost=0.0) == {ReasonCode.HEARTBEAT_LOST}
    assert rig.gate.mode is GateMode.HOLDING
    rig.submit(cost=0.0, actions=xs(0.9))
    assert rig.gate.mode is GateMode.HOLDING
    rig.submit(cost=2.0, embodiment="x")
    assert rig.gate.reason.startswith("TOO_MANY_REJECTIONS"), "what else is wrong counts"


def test_refusals_before_arming_do_not_count() -> None:
    rig = Rig(GateConfig(max_rejections=1))
    assert rig.submit() == {ReasonCode.NOT_ARMED}
    rig.armed()
    assert rig.gate.mode is GateMode.HOLDING
    rig.submit(step=0.0)
    assert rig.gate.mode is GateMode.STOPPED


@pytest.mark.parametrize(
    ("config", "changes", "code"),
    [
        (GateConfig(max_cost=1.0), {"cost": 1.01}, "COST_TOO_HIGH"),
        (GateConfig(max_cost=1.0), {"cost": math.nan}, "COST_TOO_HIGH"),
        (GateConfig(min_margin=0.1), {"margin": 0.09}, "MARGIN_TOO_SMALL"),
        (GateConfig(min_margin=0.1), {"margin": math.nan}, "MARGIN_TOO_SMALL"),
    ],
)
def test_a_chunk_without_confidence_makes_the_robot_brake_and_hold(
    config: GateConfig, changes: dict[str, float], code: str
) -> None:
    rig = Rig(config, robot(max_deceleration=2.0)).armed()
    assert rig.submit(actions=ramp(3), cost=1.0, margin=0.1) == set()
    rig.advance(0.15)
    assert rig.submit(**{"cost": 1.0, "margin": 0.1, **changes}) == {code}
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason.startswith(code)
    point = rig.tick()
    assert point is not None
    # 0.4 m/s at 0.35 m and 0.1 s; 0.05 s later 0.35 + 0.4 * 0.05 - 0.05^2.
    assert (point.position[0], point.braking) == (pytest.approx(0.3675), True)
    rig.position = (0.38, 0.25)
    assert rig.at(0.4) == (0.38, 0.25)
    assert rig.submit(actions=xs(0.38), cost=1.0, margin=0.1) == set(), "the next may be good"


def reacting(text: str, embodiment: Embodiment | None = None, x: float = 0.25) -> Rig:
    config = GateConfig(reactions=parse_reactions(text))
    return Rig(config, embodiment, position=(x, 0.25)).armed()


CLAMP_ALL = (
    "POSITION_LIMIT=clamp, POSITION_MARGIN=clamp, VELOCITY_LIMIT=clamp, SEAM_COMMANDED=clamp, "
    "SEAM_MEASURED=clamp"
)


def test_a_clamped_chunk_is_labelled_and_executed_as_it_was_judged() -> None:
    rig = reacting(CLAMP_ALL, x=0.45)
    verdict = rig.judge(actions=xs(0.50, 0.55, 0.60))
    assert (verdict.approved, verdict.word) == (True, "CLAMPED")
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POSITION_LIMIT]
    assert verdict.clamped is not None
    assert verdict.clamped.tolist() == xsl(0.50, 0.512, 0.512)
    assert [rig.at(t) for t in (0.05, 0.15, 0.25)] == xs(0.50, 0.512, 0.512)
    counters = rig.gate.counters
    assert (counters.approved, counters.rejected) == (1, 0)


def xsl(*positions: float) -> list[list[float]]:
    return [list(row) for row in xs(*positions)]


def test_clamping_obeys_the_velocity_limit_row_by_row() -> None:
    rig = reacting(CLAMP_ALL)
    verdict = rig.judge(actions=xs(0.40, 0.42, 0.42, 0.30))
    assert [reason.code for reason in verdict.reasons] == [
        ReasonCode.VELOCITY_LIMIT,
        ReasonCode.SEAM_COMMANDED,
        ReasonCode.SEAM_MEASURED,
    ]
    assert verdict.clamped is not None
    # 0.1 m a step: 0.35 from 0.25, 0.42 from there is 0.07, and 0.32 is as far as 0.30 gets.
    np.testing.assert_allclose(verdict.clamped, xs(0.35, 0.42, 0.42, 0.32))


def test_clamping_keeps_the_columns_and_the_past_of_the_chunk() -> None:
    rig = reacting(CLAMP_ALL, x=0.45)
    rig.advance(0.15)
    verdict = rig.judge(
        stamp=START,
        joint_names=NAMES[::-1],
        actions=[(9.0, 9.0), (0.25, 0.50), (0.26, 0.55)],
    )
    assert verdict.clamped is not None
    assert verdict.clamped.tolist() == [[9.0, 9.0], [0.25, 0.50], [0.26, 0.512]]
    assert rig.at(0.25) == (0.512, 0.26)


def test_a_clamped_chunk_is_judged_again() -> None:
    # 2.5 m/s^2 let a move change by 0.025 m. These grow by 0.02 and end outside; clamped to 0.512
    # the last move is 0.012 instead of 0.04.
    rig = reacting(CLAMP_ALL, robot(max_acceleration=2.5), x=0.40)
    verdict = rig.judge(actions=xs(0.42, 0.46, 0.50, 0.54))
    assert verdict.word == "REJECTED"
    assert verdict.clamped is None
    assert [reason.code for reason in verdict.reasons] == [
        ReasonCode.POSITION_LIMIT,
        ReasonCode.ACCELERATION_LIMIT,
    ]
    assert rig.at(0.05) == (0.40, 0.25)
    assert rig.gate.mode is GateMode.HOLDING


def test_nothing_is_clamped_beside_a_violation_that_is_not() -> None:
    rig = reacting("POSITION_LIMIT=clamp", x=0.45)
    assert rig.submit(actions=xs(0.50, 0.55), epoch=9) == {
        ReasonCode.POSITION_LIMIT,
        ReasonCode.EPOCH_MISMATCH,
    }
    assert ReasonCode.VELOCITY_LIMIT in rig.submit(actions=xs(0.50, 0.65))
    assert rig.submit(actions=xs(math.nan)) == {ReasonCode.NOT_FINITE}
    assert rig.judge(actions=xs(0.50, 0.55)).word == "CLAMPED"


def test_a_continuous_joint_beyond_its_range_is_not_clamped() -> None:
    rig = reacting(CLAMP_ALL, robot("continuous"))
    verdict = rig.judge(actions=xs(16 * TURN + 0.25))
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POSITION_LIMIT]
    assert verdict.word == "REJECTED"
    assert rig.judge(actions=xs(15 * TURN + 0.25)).word == "APPROVED"


def test_a_violation_latches_or_holds_where_chosen() -> None:
    rig = reacting("POSITION_LIMIT=latch, STEP_INVALID=hold", robot(max_deceleration=2.0))
    assert rig.submit(actions=ramp(3)) == set()
    rig.advance(0.15)
    assert rig.submit(step=0.0) == {ReasonCode.STEP_INVALID}
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.reason.startswith("STEP_INVALID")
    point = rig.tick()
    assert point is not None
    assert point.braking
    assert rig.submit(actions=xs(0.6)) >= {ReasonCode.POSITION_LIMIT}
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("POSITION_LIMIT")


def test_a_chunk_that_holds_and_latches_latches() -> None:
    rig = reacting("POSITION_LIMIT=latch, EMBODIMENT_MISMATCH=hold")
    rig.submit(actions=xs(0.6), embodiment="x")
    assert rig.gate.mode is GateMode.STOPPED


def test_a_reaction_to_hold_leaves_a_waiting_robot_where_it_is() -> None:
    rig = reacting("STEP_INVALID=hold")
    rig.submit(step=0.0)
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.gate.counters.holds == 0


def plane(base: Embodiment | None = None, position: tuple[float, float] = HOME, **spec: Any) -> Rig:
    """PushT's pusher in a workspace, not armed."""
    embodiment = workspace_robot(
        end_effectors=(EndEffector("pusher", NAMES, None),), frame="base", **spec
    )
    if base is not None:
        embodiment = replace(embodiment, joints=base.joints)
    workspace = workspace_of(embodiment, None)
    return Rig(embodiment=embodiment, workspace=workspace, position=position)


BEFORE_30 = Box((0.0, 0.0, -1.0), (0.3, 0.5, 1.0))
WALL = KeepOut("wall", Box((0.36, 0.0, -1.0), (0.38, 0.5, 1.0)))


def test_a_robot_outside_its_workspace_is_not_armed() -> None:
    rig = plane(box=BEFORE_30, position=(0.31, 0.25))
    rig.sense()
    assert rig.enable().startswith("not armed: WORKSPACE_BOX: x of pusher at action 0 is 0.3100 m")
    assert rig.gate.mode is GateMode.DISARMED
    rig = plane(box=BEFORE_30, position=(0.29, 0.25)).armed()
    rig.gate.stop("button", rig.time)
    rig.position = (0.31, 0.25)
    rig.advance(0.01)
    assert rig.rearm().startswith("still stopped: WORKSPACE_BOX")


def test_a_chunk_after_which_braking_would_leave_the_workspace_is_refused() -> None:
    rig = plane(SLUGGISH, box=BEFORE_30).armed()
    # 0.04 m in 0.1 s: 0.3 m/s at its end, 0.0225 m to rest: 0.3125 m.
    assert message(rig, xs(0.29)) == [
        "WORKSPACE_BOX: x of pusher at action 1 is 0.3125 m; expected 0 to 0.3 m in base"
    ]
    # Another 0.02 m: 0.1 m/s at its end and 0.0025 m.
    assert rig.submit(actions=xs(0.275, 0.295)) == set()
    rig = plane(SLUGGISH, keep_out=(WALL,)).armed()
    assert rig.submit(actions=ramp(2)) == {ReasonCode.KEEP_OUT}, "0.35 m and 0.04 m on"


def test_braking_of_a_chunk_that_is_cut_stops_before_a_keep_out_box() -> None:
    rig = plane(SLUGGISH, keep_out=(WALL,))
    rig.gate.configure(GateConfig(max_cost=1.0))
    rig.armed()
    # To 0.35 m at 0.5 m/s, then there it stays.
    assert rig.submit(actions=xs(0.30, 0.35, 0.35), cost=0.0) == set()
    rig.advance(0.11)
    assert rig.submit(cost=2.0) == {ReasonCode.COST_TOO_HIGH}
    rig.position = (0.34, 0.25)
    # Braking from 0.1 s on: 0.35 + 0.4 t - t^2 is 0.36 after 0.027 s.
    assert rig.at(0.12)[0] < 0.36
    assert rig.gate.mode is GateMode.HOLDING
    assert rig.at(0.13) == (0.34, 0.25)
    assert rig.gate.reason.startswith("KEEP_OUT: pusher at action 0 is in wall")
    assert rig.gate.mode is GateMode.STOPPED


def workspace_robot(**changes: Any) -> Embodiment:
    fields: dict[str, Any] = {
        "end_effectors": (),
        "box": None,
        "polygon": (),
        "keep_out": (),
        "arms": (),
        "min_arm_distance": None,
    }
    return replace(load_embodiment("pusht"), workspace=WorkspaceSpec(**{**fields, **changes}))


TWO_SLIDERS = """<robot name="two_sliders">
  <link name="base"/>
  <link name="left"/><link name="left_tip"/><link name="right"/><link name="right_tip"/>
  <joint name="pusher_x" type="prismatic">
    <parent link="base"/><child link="left"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.512" effort="1" velocity="1"/>
  </joint>
  <joint name="pusher_y" type="prismatic">
    <parent link="base"/><child link="right"/><origin xyz="0.2 0 0"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.512" effort="1" velocity="1"/>
  </joint>
  <joint name="left_end" type="fixed">
    <parent link="left"/><child link="left_tip"/><origin xyz="0 0 0.1"/>
  </joint>
  <joint name="right_end" type="fixed">
    <parent link="right"/><child link="right_tip"/><origin xyz="0 0 0.1"/>
  </joint>
</robot>
"""


def two_sliders(folder: Path) -> Rig:
    """Upright posts of 0.02 m radius at pusher_x and at 0.2 m + pusher_y."""
    urdf = folder / "sliders.urdf"
    urdf.write_text(TWO_SLIDERS)
    embodiment = workspace_robot(
        frame="base",
        arms=(
            ArmShape("left", ("left", "left_tip"), 0.02),
            ArmShape("right", ("right", "right_tip"), 0.02),
        ),
        min_arm_distance=0.1,
    )
    return Rig(embodiment=embodiment, workspace=workspace_of(embodiment, urdf)).armed()


def outside_of_the_box() -> set[ReasonCode]:
    box = Box((0.0, 0.0, -1.0), (0.3, 0.3, 1.0))
    rig = plane(box=box).armed()
    assert rig.submit(actions=xs(0.30)) == set()
    return rig.submit(actions=xs(0.32))


def outside_of_the_polygon() -> set[ReasonCode]:
    rig = plane(polygon=((0.0, 0.0), (0.3, 0.0), (0.3, 0.3), (0.0, 0.3))).armed()
    assert rig.submit(actions=xs(0.30)) == set()
    return rig.submit(actions=xs(0.32))


def through_a_keep_out_box() -> set[ReasonCode]:
    wall = KeepOut("wall", Box((0.28, 0.0, -1.0), (0.30, 0.5, 1.0)))
    rig = plane(keep_out=(wall,)).armed()
    assert rig.submit(actions=xs(0.28)) == set()
    return rig.submit(actions=xs(0.33))


def disarmed() -> set[ReasonCode]:
    return Rig().submit()


def stopped() -> set[ReasonCode]:
    rig = Rig().armed()
    rig.gate.stop("button", 0.0)
    return rig.submit()


def unreadable(code: ReasonCode) -> Callable[[], set[ReasonCode]]:
    def refused() -> set[ReasonCode]:
        rig = Rig().armed()
        verdict = rig.gate.refuse(3, code, "the message cannot be read", rig.ros, rig.time)
        assert (verdict.approved, verdict.sequence) == (False, 3)
        assert rig.gate.counters.rejected_by_code == {str(code): 1}
        return {reason.code for reason in verdict.reasons}

    return refused


def not_armed_because(prepare: Callable[[Rig], None], rig: Rig | None = None) -> str:
    rig = rig or Rig()
    rig.sense()
    prepare(rig)
    answer = rig.gate.enable(True, rig.ros, rig.time)
    assert not answer.success
    assert rig.gate.mode is GateMode.DISARMED
    return answer.message.removeprefix("not armed: ")


def stopped_because(happens: Callable[[Rig], Any], config: GateConfig | None = None) -> str:
    rig = Rig(config).armed()
    assert rig.submit(actions=np.tile(HOME, (20, 1))) == set()
    happens(rig)
    rig.tick()
    assert rig.gate.mode is GateMode.STOPPED
    return rig.gate.reason


def holding_because(happens: Callable[[Rig], Any], config: GateConfig | None = None) -> str:
    rig = Rig(config)
    rig.gate.beat("planner_node", 0.0)
    rig.armed()
    assert rig.submit(actions=np.tile(HOME, (20, 1))) == set()
    happens(rig)
    rig.tick()
    assert rig.gate.mode is GateMode.HOLDING
    return rig.gate.reason


def put(position: tuple[float, ...], velocity: tuple[float, ...] = (0.0, 0.0)) -> Any:
    def happens(rig: Rig) -> None:
        rig.position, rig.velocity = position, velocity
        rig.time += 0.01
        rig.sense()

    return happens


def stamped(ahead: float) -> Any:
    def happens(rig: Rig) -> None:
        rig.gate.update_joint_state(NAMES, HOME, (0.0, 0.0), rig.ros + round(ahead * 1e9), rig.time)

    return happens


def lost_stop_publisher(rig: Rig) -> None:
    rig.gate.stop_publishers(1)
    rig.gate.protective_stop(False, rig.time)
    rig.gate.stop_publishers(0)


def broken(rig: Rig) -> None:
    rig.gate.fault(RuntimeError("boom"), rig.time)


def starved(rig: Rig) -> None:
    rig.advance(3.0)


def rejected_twice(rig: Rig) -> None:
    rig.submit(step=0.0)
    rig.submit(step=0.0)


def stalled(rig: Rig) -> None:
    rig.tick()
    rig.time += 0.31
    rig.sense()


def clock_back(rig: Rig) -> None:
    rig.jump = -10.0


def clockless() -> str:
    rig = Rig()
    rig.sense()
    return rig.gate.enable(True, 0, rig.time).message.removeprefix("not armed: ")


def never_sensed() -> str:
    rig = Rig()
    return rig.gate.enable(True, rig.ros, rig.time).message.removeprefix("not armed: ")


def of_a_chunk(name: str) -> Callable[[], set[ReasonCode]]:
    return lambda: Rig(STRICT).armed().submit(**{**GOOD, **BAD[name][0]})


def repeated() -> set[ReasonCode]:
    rig = Rig().armed()
    rig.submit(sequence=5)
    return rig.submit(sequence=5)


def two_publishers() -> set[ReasonCode]:
    rig = Rig().armed()
    rig.gate.proposers(2)
    return rig.submit()


def too_many_chunks() -> set[ReasonCode]:
    rig = Rig(GateConfig(max_chunk_rate=1.0)).armed()
    rig.submit()
    return rig.submit()


def many_jumps() -> set[ReasonCode]:
    rig = Rig(position=(0.05, 0.25)).armed()
    rig.submit(actions=xs(0.14))
    rig.advance(0.01)
    rig.submit(actions=xs(0.23))
    rig.advance(0.01)
    return rig.submit(actions=xs(0.32))


SILENT = GateConfig(heartbeats=("planner_node",), heartbeat_timeout=0.1)

Produced = Callable[[], "set[ReasonCode] | str"]
PRODUCERS: dict[ReasonCode, Produced] = {
    ReasonCode.NOT_ARMED: disarmed,
    ReasonCode.STOPPED: stopped,
    ReasonCode.MALFORMED: unreadable(ReasonCode.MALFORMED),
    ReasonCode.SHAPE_MISMATCH: of_a_chunk("flat"),
    ReasonCode.HORIZON_INVALID: of_a_chunk("empty"),
    ReasonCode.NOT_FINITE: of_a_chunk("nan"),
    ReasonCode.JOINT_NAMES_MISMATCH: of_a_chunk("other joints"),
    ReasonCode.STEP_INVALID: of_a_chunk("no step"),
    ReasonCode.MESSAGE_TOO_LARGE: unreadable(ReasonCode.MESSAGE_TOO_LARGE),
    ReasonCode.EMBODIMENT_MISMATCH: of_a_chunk("other robot"),
    ReasonCode.SOURCE_NOT_ALLOWED: of_a_chunk("other source"),
    ReasonCode.EPOCH_MISMATCH: of_a_chunk("old epoch"),
    ReasonCode.SEQUENCE_NOT_INCREASING: repeated,
    ReasonCode.MODEL_MISMATCH: of_a_chunk("other model"),
    ReasonCode.NO_PUBLISHER: lambda: not_armed_because(lambda rig: rig.gate.proposers(0)),
    ReasonCode.MULTIPLE_PUBLISHERS: two_publishers,
    ReasonCode.CHUNK_STAMP_UNSET: of_a_chunk("no stamp"),
    ReasonCode.CHUNK_IN_FUTURE: of_a_chunk("future"),
    ReasonCode.CHUNK_TOO_OLD: of_a_chunk("too old"),
    ReasonCode.CHUNK_OVER: of_a_chunk("over"),
    ReasonCode.OBSERVATION_STAMP_UNSET: of_a_chunk("no observation"),
    ReasonCode.OBSERVATION_IN_FUTURE: of_a_chunk("early observation"),
    ReasonCode.OBSERVATION_TOO_OLD: of_a_chunk("old observation"),
    ReasonCode.POSITION_LIMIT: of_a_chunk("outside"),
    ReasonCode.POSITION_MARGIN: lambda: (
        Rig(GateConfig(position_margin=0.2)).armed().submit(actions=xs(0.32))
    ),
    ReasonCode.VELOCITY_LIMIT: of_a_chunk("too fast"),
    ReasonCode.SEAM_COMMANDED: of_a_chunk("jump"),
    ReasonCode.SEAM_MEASURED: of_a_chunk("jump"),
    ReasonCode.SUSTAINED_VELOCITY: many_jumps,
    ReasonCode.ACCELERATION_LIMIT: lambda: Rig(embodiment=WEAK).armed().submit(actions=xs(0.31)),
    ReasonCode.JERK_LIMIT: lambda: Rig(embodiment=GENTLE).armed().submit(actions=xs(0.31)),
    ReasonCode.STOPPING_DISTANCE: lambda: (
        Rig(embodiment=robot(max_deceleration=2.0), position=(0.45, 0.25))
        .armed()
        .submit(actions=xs(0.50))
    ),
    ReasonCode.WORKSPACE_BOX: outside_of_the_box,
    ReasonCode.WORKSPACE_POLYGON: outside_of_the_polygon,
    ReasonCode.KEEP_OUT: through_a_keep_out_box,
    ReasonCode.CHUNK_RATE: too_many_chunks,
    ReasonCode.TOO_MANY_REJECTIONS: lambda: stopped_because(
        rejected_twice, GateConfig(max_rejections=2)
    ),
    ReasonCode.COST_TOO_HIGH: of_a_chunk("dear"),
    ReasonCode.MARGIN_TOO_SMALL: of_a_chunk("doubtful"),
    ReasonCode.LIMITS_INCOMPLETE: lambda: not_armed_because(
        lambda rig: None,
        Rig(embodiment=robot(max_jerk=None)),  # type: ignore[arg-type]
    ),
    ReasonCode.CLOCK_NOT_RUNNING: clockless,
    ReasonCode.MOVING: lambda: not_armed_because(put(HOME, (0.0, 0.06))),
    ReasonCode.JOINT_STATE_MISSING: never_sensed,
    ReasonCode.JOINT_STATE_STALE: lambda: stopped_because(
        lambda rig: rig.advance(0.3, sensing=False)
    ),
    ReasonCode.JOINT_STATE_INVALID: lambda: stopped_because(put((math.nan, 0.25))),
    ReasonCode.JOINT_STATE_IN_FUTURE: lambda: stopped_because(stamped(0.6)),
    ReasonCode.MEASURED_POSITION_LIMIT: lambda: stopped_because(put((0.25, 0.53))),
    ReasonCode.TRACKING_ERROR: lambda: stopped_because(
        put((0.25, 0.32)), GateConfig(max_tracking_error=0.06)
    ),
    ReasonCode.HOLD_TIMEOUT: lambda: stopped_because(starved, GateConfig(stop_after_hold=0.5)),
    ReasonCode.OPEN_LOOP_TOO_LONG: lambda: holding_because(
        lambda rig: rig.advance(0.35), GateConfig(max_open_loop=0.3)
    ),
    ReasonCode.SET_POINT_LATE: lambda: holding_because(stalled),
    ReasonCode.SURPRISED: lambda: (
        Rig(GateConfig(max_surprise=4.0)).armed().submit(actions=xs(0.26))
    ),
    ReasonCode.HEARTBEAT_LOST: lambda: holding_because(lambda rig: rig.advance(0.15), SILENT),
    ReasonCode.CLOCK_JUMPED_BACK: lambda: holding_because(clock_back),
    ReasonCode.PROTECTIVE_STOP: lambda: stopped_because(
        lambda rig: rig.gate.protective_stop(True, rig.time)
    ),
    ReasonCode.PROTECTIVE_STOP_LOST: lambda: stopped_because(lost_stop_publisher),
    ReasonCode.STOP_REQUESTED: lambda: stopped_because(
        lambda rig: rig.gate.stop("button", rig.time)
    ),
    ReasonCode.INTERNAL_ERROR: lambda: stopped_because(broken),
}


@pytest.mark.parametrize("code", ReasonCode)
def test_every_reason_code_is_produced_by_what_it_stands_for(
    code: ReasonCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced: set[ReasonCode] | str
    if code is ReasonCode.ARM_DISTANCE:
        rig = two_sliders(tmp_path)
        # Posts at 0.25 and 0.45 m: 0.16 m apart; 0.06 m nearer is just allowed.
        assert rig.submit(actions=xs(0.31)) == set()
        produced = rig.submit(actions=xs(0.32))
    elif code is ReasonCode.SET_POINT_INVALID:
        outside = SetPoint(np.array([0.6, 0.25]), 1, 0, True, True, START)
        rig = Rig().armed()
        monkeypatch.setattr(SetPointStream, "advance", lambda *_: outside)
        rig.tick()
        produced = rig.gate.reason
    else:
        produced = PRODUCERS[code]()
    if isinstance(produced, str):
        assert produced.startswith(f"{code}: ")
    else:
        assert code in produced


@pytest.mark.parametrize("bad", [(0.6, 0.25), (math.nan, 0.25), (0.25, math.inf), (0.25, -1e-9)])
def test_no_set_point_outside_the_limits_gets_past_the_last_barrier(
    bad: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig().armed()
    assert rig.submit() == set()
    rig.position = (0.26, 0.25)
    rig.advance(0.05)
    point = SetPoint(np.array(bad), 1, 0, False, False, START)
    monkeypatch.setattr(SetPointStream, "advance", lambda *_: point)
    sent = rig.advance(0.01)
    assert rig.gate.mode is GateMode.STOPPED
    assert rig.gate.reason.startswith("SET_POINT_INVALID")
    assert sent is not None
    assert sent.position.tolist() == [0.26, 0.25]
