"""The planner's choice and its cycle machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.cycle import CycleConfig, PlanningCycle, Stage
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.search import CrossEntropySearch, SearchSettings, search_bridge
from worldforge_ros.planning.selection import choose

RNG = np.random.default_rng(0)
MS = 1_000_000


def observation(stamp_ms: int) -> Observation:
    return Observation(stamp_ms * MS, {}, np.zeros(2), np.zeros(2))


@given(
    st.lists(
        st.one_of(st.floats(0, 1e6, width=32), st.just(math.nan)), min_size=1, max_size=40
    ).filter(lambda costs: any(math.isfinite(cost) for cost in costs))
)
def test_scored_takes_the_first_minimum_and_never_a_nan(costs: list[float]) -> None:
    choice = choose("scored", costs, len(costs), RNG)
    finite = [cost for cost in costs if math.isfinite(cost)]
    assert choice.cost == min(finite)
    assert costs.index(min(finite)) == choice.index
    if len(finite) > 1:
        assert choice.margin == sorted(finite)[1] - min(finite)
    else:
        assert math.isnan(choice.margin)


def test_first_and_random_do_not_need_costs() -> None:
    assert choose("first", None, 5, RNG).index == 0
    picks = {choose("random", None, 3, np.random.default_rng(seed)).index for seed in range(50)}
    assert picks == {0, 1, 2}


@pytest.mark.parametrize(
    ("planner", "costs", "count", "code"),
    [
        ("scored", None, 3, ErrorCode.COSTS_INVALID),
        ("scored", [1.0, 2.0], 3, ErrorCode.COSTS_INVALID),
        ("scored", [math.nan, math.inf], 2, ErrorCode.COSTS_INVALID),
        ("scored", [], 0, ErrorCode.NO_CANDIDATES),
        ("best", [1.0], 1, ErrorCode.INVALID_ARGUMENT),
    ],
)
def test_bad_input_has_its_code(
    planner: str, costs: list[float] | None, count: int, code: ErrorCode
) -> None:
    with pytest.raises(WorldForgeError) as caught:
        choose(planner, costs, count, RNG)
    assert caught.value.code is code


def candidates(count: int = 3) -> np.ndarray:
    return np.zeros((count, 5, 2), np.float32)


def as_they_are(values: np.ndarray, *_: object) -> Handover:
    return Handover(values, 1, 0, np.ones(len(values), bool), values)


def unreachable(values: np.ndarray, *_: object) -> Handover:
    return Handover(values, 1, 0, np.zeros(len(values), bool), values)


def test_a_whole_cycle() -> None:
    cycle = PlanningCycle(CycleConfig(replan_period=0.5), as_they_are)
    assert cycle.due(1000 * MS)
    ticket = cycle.start(observation(1000), 0.01, now=10.0)
    assert cycle.stage is Stage.PROPOSING
    assert not cycle.due(2000 * MS), "one cycle at a time"
    assert cycle.proposed(ticket, candidates(), 0.1, "p", 0.02, now=10.1) is None
    assert cycle.stage is Stage.SCORING
    trace = cycle.scored(ticket, [3.0, 1.0, 2.0], "w", 0.03, now=10.3)
    assert trace is not None
    assert trace.outcome == "OK"
    assert trace.choice is not None
    assert (trace.choice.index, trace.choice.margin) == (1, 1.0)
    assert trace.propose_latency == pytest.approx(0.1)
    assert trace.score_latency == pytest.approx(0.2)
    assert trace.plan_latency == pytest.approx(0.3)
    assert trace.models == ("p", "w")
    assert cycle.stage is Stage.IDLE
    assert not cycle.due(1400 * MS)
    assert cycle.due(1500 * MS)


def test_without_costs_the_cycle_ends_at_the_proposal() -> None:
    cycle = PlanningCycle(CycleConfig(planner="first"), as_they_are)
    ticket = cycle.start(observation(1), 0.0, now=0.0)
    trace = cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=0.1)
    assert trace is not None
    assert trace.choice is not None
    assert trace.choice.index == 0


@pytest.mark.parametrize("stage", [Stage.PROPOSING, Stage.SCORING])
def test_a_missed_deadline_abandons_the_cycle_and_late_replies_are_ignored(stage: Stage) -> None:
    cycle = PlanningCycle(CycleConfig(propose_timeout=1.0, score_timeout=2.0), as_they_are)
    ticket = cycle.start(observation(1), 0.0, now=0.0)
    limit = 1.0
    if stage is Stage.SCORING:
        cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=0.5)
        limit = 2.5
    assert cycle.expire(now=limit - 0.01) is None
    trace = cycle.expire(now=limit)
    assert trace is not None
    assert trace.outcome == f"{'PROPOSE' if stage is Stage.PROPOSING else 'SCORE'}_DEADLINE_MISSED"
    assert cycle.deadline_misses == 1
    assert cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=3.0) is None
    assert cycle.scored(ticket, [1.0, 2.0, 3.0], "w", 0.0, now=3.0) is None
    assert cycle.failed(ticket, WorldForgeError(ErrorCode.INTERNAL, "late"), now=3.0) is None
    assert cycle.stage is Stage.IDLE
    assert cycle.due(2_000 * MS)
    second = cycle.start(observation(2_000), 0.0, now=4.0)
    assert cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=4.1) is None
    assert cycle.stage is Stage.PROPOSING, "the old ticket does not advance the new cycle"
    assert second == ticket + 1


def test_wrong_number_of_costs_ends_the_cycle_with_its_code() -> None:
    cycle = PlanningCycle(CycleConfig(), as_they_are)
    ticket = cycle.start(observation(1), 0.0, now=0.0)
    cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=0.1)
    trace = cycle.scored(ticket, [1.0], "w", 0.0, now=0.2)
    assert trace is not None
    assert trace.outcome == "COSTS_INVALID"
    assert trace.choice is None


def test_time_going_back_starts_a_cycle_at_once() -> None:
    cycle = PlanningCycle(CycleConfig(planner="first", replan_period=0.5), as_they_are)
    ticket = cycle.start(observation(90_000), 0.0, now=0.0)
    cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=0.1)
    assert cycle.due(1_000 * MS)


def test_only_reachable_candidates_are_chosen() -> None:
    reachable = [False, True, True]
    assert choose("scored", [1.0, 3.0, 2.0], 3, RNG, reachable).index == 2
    assert choose("first", None, 3, RNG, reachable).index == 1
    picks = {
        choose("random", None, 3, np.random.default_rng(s), reachable).index for s in range(40)
    }
    assert picks == {1, 2}
    with pytest.raises(WorldForgeError) as caught:
        choose("scored", [1.0, math.nan, math.nan], 3, RNG, reachable)
    assert caught.value.code is ErrorCode.COSTS_INVALID
    with pytest.raises(WorldForgeError) as caught:
        choose("first", None, 3, RNG, [False] * 3)
    assert caught.value.code is ErrorCode.NO_REACHABLE_CANDIDATE


def test_without_a_reachable_candidate_nothing_is_scored() -> None:
    cycle = PlanningCycle(CycleConfig(), unreachable)
    ticket = cycle.start(observation(1), 0.0, now=0.0)
    trace = cycle.proposed(ticket, candidates(), 0.1, "p", 0.0, now=0.1)
    assert trace is not None
    assert trace.outcome == "NO_REACHABLE_CANDIDATE"
    assert cycle.stage is Stage.IDLE


def searching(
    iterations: int, asked: list[np.ndarray | None]
) -> Callable[[Observation, np.ndarray | None], CrossEntropySearch]:
    robot = load_embodiment("pusht")

    def make(seen: Observation, start: np.ndarray | None) -> CrossEntropySearch:
        asked.append(start)
        settings = SearchSettings(samples=6, iterations=iterations, elites=2, blocks=1)
        bridge = search_bridge(robot, (0.01, 0.01))
        return CrossEntropySearch(settings, bridge, robot, seen, np.random.default_rng(0), start)

    return make


def placed(stamp_ms: int) -> Observation:
    return Observation(stamp_ms * MS, {}, np.array([0.2, 0.3]), np.zeros(2))


def test_a_search_asks_for_costs_until_it_is_done() -> None:
    asked: list[np.ndarray | None] = []
    config = CycleConfig(source="cem", score_timeout=1.0)
    cycle = PlanningCycle(config, as_they_are, searching(3, asked))
    ticket = cycle.start(placed(1), 0.0, now=0.0)
    assert asked == [None]
    for iteration in range(3):
        assert cycle.stage is Stage.SCORING
        assert cycle.trace is not None
        samples = cycle.trace.candidates
        assert samples.shape == (6, 5, 2)
        assert len(cycle.trace.costs) == 0, "those of the round before belong to other samples"
        # The further right it ends, the cheaper.
        trace = cycle.scored(ticket, -samples[:, -1, 0], "w", 0.1, now=0.2 * (iteration + 1))
        assert (trace is None) == (iteration < 2)
    assert trace is not None
    assert trace.outcome == "OK"
    assert trace.candidates.shape == (2, 5, 2)
    assert trace.sources == ("cem", "cem")
    assert trace.choice is not None
    assert trace.costs[trace.choice.index] == trace.costs.min()
    assert trace.score_model_latency == pytest.approx(0.3)
    assert trace.score_latency == pytest.approx(0.6)
    assert trace.models == ("w",)


def test_the_deadline_of_a_search_is_for_all_its_iterations() -> None:
    config = CycleConfig(source="cem", score_timeout=1.0)
    cycle = PlanningCycle(config, as_they_are, searching(30, []))
    ticket = cycle.start(placed(1), 0.0, now=0.0)
    for index in range(5):
        assert cycle.scored(ticket, np.arange(6.0), "w", 0.0, now=0.15 * index) is None
    trace = cycle.expire(now=1.0)
    assert trace is not None
    assert trace.outcome == "SCORE_DEADLINE_MISSED"


def test_a_search_from_the_policy_begins_with_its_candidates() -> None:
    asked: list[np.ndarray | None] = []
    cycle = PlanningCycle(CycleConfig(source="cem+policy"), as_they_are, searching(2, asked))
    ticket = cycle.start(placed(1), 0.0, now=0.0)
    assert cycle.stage is Stage.PROPOSING
    start = (np.array([0.2, 0.3]) + np.linspace(0, 0.02, 5)[:, None] * np.ones((3, 1, 2))).astype(
        np.float32
    )
    assert cycle.proposed(ticket, start, 0.1, "p", 0.0, now=0.1) is None
    assert asked[0] is start
    assert cycle.trace is not None
    np.testing.assert_allclose(cycle.trace.candidates, start, atol=1e-6)
    assert cycle.scored(ticket, [3.0, 1.0, 2.0], "w", 0.0, now=0.2) is None
    assert len(cycle.trace.candidates) == 6
    trace = cycle.scored(ticket, np.arange(6.0), "w", 0.0, now=0.3)
    assert trace is not None
    assert trace.models == ("p", "w")
    assert trace.sources == ("cem+policy",) * 2


def test_a_search_that_gets_too_few_costs_ends_the_cycle() -> None:
    cycle = PlanningCycle(CycleConfig(source="cem"), as_they_are, searching(2, []))
    ticket = cycle.start(placed(1), 0.0, now=0.0)
    trace = cycle.scored(ticket, [1.0], "w", 0.0, now=0.1)
    assert trace is not None
    assert trace.outcome == "COSTS_INVALID"


@pytest.mark.parametrize(("source", "planner"), [("cem", "first"), ("guess", "scored")])
def test_a_search_is_chosen_from_by_cost(source: str, planner: str) -> None:
    with pytest.raises(WorldForgeError) as caught:
        PlanningCycle(CycleConfig(planner, source), as_they_are, searching(2, []))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
