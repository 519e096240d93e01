"""The planner's memory from one cycle to the next, without a node and without models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.cycle import Stage
from worldforge_ros.planning.planner import Placement, PlannerSettings, RecedingPlanner

NS = 1_000_000_000
START = 100 * NS
ROBOT = load_embodiment("pusht")


class Clock:
    now = START


def planner(**settings: Any) -> tuple[RecedingPlanner, Clock, list[WorldForgeError]]:
    clock, trouble = Clock(), []
    given = PlannerSettings(**{"planner": "scored", "seed": 3, **settings})
    return RecedingPlanner(ROBOT, given, lambda: clock.now, trouble.append), clock, trouble


def seen(stamp: int) -> Observation:
    return Observation(stamp, {}, np.array([0.25, 0.25]), np.zeros(2))


def fan(count: int = 3, horizon: int = 10) -> np.ndarray:
    """Candidate s goes s mm a step along x."""
    steps = 0.001 * np.arange(1, horizon + 1)
    found = np.full((count, horizon, 2), 0.25, np.float32)
    found[:, :, 0] += np.arange(count)[:, None] * steps
    return found


def approved(sequence: int, stamp: int = START) -> ActionChunk:
    return ActionChunk(
        stamp=stamp,
        embodiment="pusht",
        joint_names=ROBOT.joint_names,
        step=0.1,
        actions=np.full((20, 2), 0.25),
        source="policy",
        epoch=0,
        sequence=sequence,
        observation_stamp=stamp,
    )


def cycle(core: RecedingPlanner, costs: list[float]) -> Any:
    """One whole cycle; returns its trace."""
    ticket = core.begin(0.0)
    assert core.cycle.proposed(ticket, fan(len(costs)), 0.1, "policy", 0.0, 0.0) is None
    assert core.cycle.stage is Stage.SCORING
    assert core.candidates_to_score().shape[0] == len(costs)
    return core.cycle.scored(ticket, costs, "model", 0.0, 0.0)


def test_windows_wait_for_what_the_models_look_at() -> None:
    core, _, _ = planner(policy_history=2)
    assert core.observed(seen(START))
    assert core.windows() is None
    core.observed(seen(START + NS // 10))
    windows = core.windows()
    assert windows is not None
    assert [[item.stamp for item in part] for part in windows] == [
        [START, START + NS // 10],
        [START + NS // 10],
    ]


def test_a_plan_from_rest_begins_when_it_is_sent() -> None:
    core, clock, _ = planner()
    core.observed(seen(START))
    trace = cycle(core, [3.0, 1.0, 2.0])
    clock.now = START + NS // 2
    chunk = core.concluded(trace)
    assert chunk is not None
    assert (chunk.sequence, chunk.cost, chunk.margin) == (1, 1.0, 1.0)
    assert chunk.stamp == START + NS // 2 + NS // 50
    np.testing.assert_allclose(chunk.actions, fan()[1], atol=1e-7)
    core.observed(seen(START + NS))
    frozen = core.concluded(cycle(core, [3.0, 1.0, 2.0]), frozen_stamp=START + 7)
    assert frozen is not None
    assert (frozen.sequence, frozen.stamp) == (2, START + 7)


def test_seeds_follow_the_cycles() -> None:
    core, _, _ = planner()
    core.observed(seen(START))
    assert core.proposal_seed(core.begin(0.0)) == 4
    fresh, _, _ = planner(seed=-1)
    assert fresh.proposal_seed(1) == -1


def test_what_executes_is_what_the_gate_says() -> None:
    core, _, _ = planner()
    core.approved(approved(5))
    assert core.executing is not None
    # A status from before the approval says nothing about it.
    core.gate(armed=False, epoch=0, judged=4, rejected=False)
    assert core.executing is not None
    core.gate(armed=False, epoch=0, judged=5, rejected=False)
    assert core.executing is None
    core.approved(approved(6))
    core.gate(armed=False, epoch=1, judged=2, rejected=False)
    assert core.executing is None


def test_a_plan_keeps_the_epoch_it_began_in() -> None:
    core, _, _ = planner()
    core.gate(armed=True, epoch=2, judged=0, rejected=False)
    core.observed(seen(START))
    ticket = core.begin(0.0)
    core.gate(armed=True, epoch=3, judged=0, rejected=False)
    core.cycle.proposed(ticket, fan(), 0.1, "policy", 0.0, 0.0)
    chunk = core.concluded(core.cycle.scored(ticket, [1.0, 2.0, 3.0], "m", 0.0, 0.0))
    assert chunk is not None
    assert chunk.epoch == 2


def test_candidates_can_be_put_where_recorded_ones_were() -> None:
    core, _, _ = planner()
    core.observed(seen(START))
    ticket = core.begin(0.0)
    executing = approved(9, START - NS)
    core.place(START + 3 * NS // 10, executing)
    assert core.placement == Placement(ticket, START + 3 * NS // 10, 9)
    core.cycle.proposed(ticket, fan(), 0.1, "policy", 0.0, 0.0)
    assert core.cycle.trace is not None
    # Three actions are past by then and are what executes, which stays at 0.25 m.
    np.testing.assert_allclose(core.cycle.trace.candidates[:, :3, 0], 0.25, atol=1e-7)
    np.testing.assert_allclose(core.cycle.trace.candidates[2, 3:, 0], fan()[2, 3:, 0], atol=1e-7)


def test_a_failed_cycle_sends_nothing() -> None:
    core, _, _ = planner()
    core.observed(seen(START))
    ticket = core.begin(0.0)
    error = WorldForgeError(ErrorCode.PROPOSE_UNAVAILABLE, "absent")
    trace = core.cycle.failed(ticket, error, 0.0)
    assert trace is not None
    assert core.concluded(trace) is None
    assert core.sequence == 0


@pytest.mark.parametrize(("blocks", "scored"), [(0, 10), (1, 5), (2, 10), (3, 10)])
def test_no_more_is_scored_than_is_believed_and_that_is_said_once(blocks: int, scored: int) -> None:
    core, _, trouble = planner(drift_horizon=blocks)
    for index in range(3):
        core.observed(seen(START + index * NS))
        ticket = core.begin(0.0)
        core.cycle.proposed(ticket, fan(), 0.1, "policy", 0.0, 0.0)
        assert core.candidates_to_score().shape == (3, scored, 2)
        trace = core.cycle.scored(ticket, [1.0, 2.0, 3.0], "m", 0.0, 0.0)
        assert trace is not None
        chunk = core.concluded(trace)
        assert chunk is not None
        # What is executed is whole: only its cost looks less far.
        assert len(chunk.actions) == 10
    codes = [error.code for error in trouble]
    assert codes == ([ErrorCode.HORIZON_BEYOND_DRIFT] if scored < 10 else [])
    assert core.scored_actions(10) == scored
