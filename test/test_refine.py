"""The search against a clock, with a scorer and a clock made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.refine import Refined, Scene, refine
from worldforge_ros.scorers.base import Scores
from worldforge_ros.scorers.contract import ActionSpace

PUSHT = load_embodiment("pusht")
NOW = Observation(
    1_000_000_000,
    {"top": np.zeros((96, 96, 3), np.uint8)},
    np.array([0.25, 0.25]),
    np.zeros(2),
)
TARGET = np.array([0.3, 0.2])
HOLD = np.broadcast_to(NOW.position, (1, 10, 2))


class Clock:
    """Seconds that pass only when something is scored."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ByDistance:
    """Costs are the distance of the last set-point from a target; each call takes a second."""

    blocks_are_normalised = True

    def __init__(self, clock: Clock, spoil: Sequence[int] = ()) -> None:
        self.bridge = ActionBridge.of(PUSHT, [0.0, 0.0], [0.3, 0.3])
        self.calls: list[int] = []
        self.spaces: list[ActionSpace] = []
        self.fails_after = -1
        self._clock = clock
        self._spoil = list(spoil)

    def score(
        self,
        history: Any,
        goal: Any,
        candidates: Any,
        action_history: Any = None,
        objective: str = "",
        space: ActionSpace = ActionSpace.EMBODIMENT,
    ) -> Scores:
        values = np.asarray(candidates, np.float64)
        if space is ActionSpace.MODEL:
            values = self.bridge.blocks_to_setpoints(values, NOW.position, NOW.velocity)
        self.spaces.append(space)
        self._clock.now += 1.0
        if len(self.calls) == self.fails_after:
            raise WorldForgeError(ErrorCode.MODEL_FAILED, "worn out")
        self.calls.append(len(values))
        costs = np.linalg.norm(values[:, -1] - TARGET, axis=1).astype(np.float32)
        costs[self._spoil] = np.nan
        return Scores(costs, int(np.nanargmin(costs)), {"model_id": "by distance"})


def run(scorer: ByDistance, clock: Clock, candidates: Any = HOLD, **changes: Any) -> Refined:
    space = changes.pop("space", ActionSpace.EMBODIMENT)
    settings: dict[str, Any] = {
        "samples": 40,
        "iterations": 12,
        "elites": 5,
        "spread": 1.0,
        "rng": np.random.default_rng(0),
        **changes,
    }
    return refine(
        scorer,  # type: ignore[arg-type]
        PUSHT,
        Scene([NOW], np.zeros((96, 96, 3), np.uint8), None, "", space),
        candidates,
        clock=clock,
        **settings,
    )


def test_it_gets_closer_and_returns_what_it_scored() -> None:
    clock = Clock()
    scorer = ByDistance(clock)
    found = run(scorer, clock)
    assert scorer.calls == [1] + [40] * 11, "first what was given"
    assert (found.iterations, found.expired) == (12, False)
    assert found.candidates.shape == (5, 10, 2)
    assert found.costs[0] < 0.3 * np.linalg.norm(NOW.position - TARGET)
    assert (np.diff(found.costs) >= 0).all()
    np.testing.assert_allclose(
        np.linalg.norm(found.candidates[:, -1] - TARGET, axis=1), found.costs, atol=1e-6
    )


@pytest.mark.parametrize(
    ("budget", "iterations"), [(0.0, 12), (0.5, 1), (1.0, 1), (2.0, 2), (3.5, 3), (100.0, 12)]
)
def test_no_iteration_begins_that_would_end_too_late(budget: float, iterations: int) -> None:
    clock = Clock()
    found = run(ByDistance(clock), clock, budget=budget)
    assert found.iterations == iterations
    assert found.expired == (iterations < 12)
    assert clock.now - 100.0 <= max(budget, 1.0) or budget == 0.0


def test_the_given_candidates_count_as_long_as_nothing_is_cheaper() -> None:
    clock = Clock()
    there = np.broadcast_to(TARGET, (2, 10, 2)).copy()
    there[:, :5] = np.linspace(NOW.position, TARGET, 5)
    there[1, -1] += 0.001
    found = run(ByDistance(clock), clock, candidates=there, iterations=3)
    np.testing.assert_allclose(found.candidates[0], there[0], atol=1e-6)
    assert found.costs[0] == pytest.approx(0.0, abs=1e-6)


def test_candidates_without_a_cost_are_left_out() -> None:
    clock = Clock()
    given = np.repeat(HOLD, 3, axis=0)
    found = run(ByDistance(clock, spoil=[0, 2]), clock, candidates=given, iterations=1)
    assert len(found.costs) == 1
    assert np.isfinite(found.costs).all()


def test_candidates_outside_limits_only_where_nothing_else_is_there() -> None:
    clock = Clock()
    outside = np.broadcast_to([0.6, 0.6], (1, 10, 2))
    alone = run(ByDistance(clock), clock, candidates=outside, iterations=1)
    assert len(alone.costs) == 1
    mixed = run(ByDistance(clock), clock, candidates=np.concatenate([outside, HOLD]), iterations=1)
    assert len(mixed.costs) == 1
    np.testing.assert_allclose(mixed.candidates[0], HOLD[0], atol=1e-6)


def test_model_space_in_and_out() -> None:
    clock = Clock()
    scorer = ByDistance(clock)
    blocks = scorer.bridge.setpoints_to_blocks(HOLD, NOW.position, NOW.velocity)
    native = run(scorer, clock, candidates=blocks, space=ActionSpace.MODEL)
    plain = run(ByDistance(clock), clock)
    assert native.candidates.shape == (5, 2, 10)
    assert set(scorer.spaces) == {ActionSpace.MODEL}, "with the caller's own action history"
    np.testing.assert_allclose(native.costs, plain.costs, atol=1e-5)
    back = scorer.bridge.blocks_to_setpoints(native.candidates, NOW.position, NOW.velocity)
    np.testing.assert_allclose(back, plain.candidates, atol=1e-4)


def test_raw_blocks_are_refused() -> None:
    clock = Clock()
    scorer = ByDistance(clock)
    scorer.blocks_are_normalised = False
    with pytest.raises(WorldForgeError, match="not normalised"):
        run(scorer, clock, candidates=np.zeros((1, 2, 10)), space=ActionSpace.MODEL)
    assert run(scorer, clock).iterations == 12, "set-points go through the bridge"


def test_an_error_later_ends_with_the_best_so_far() -> None:
    clock = Clock()
    scorer = ByDistance(clock)
    scorer.fails_after = 3
    found = run(scorer, clock)
    assert (found.iterations, found.expired) == (3, False)
    assert found.metadata["ended_by"] == "MODEL_FAILED"
    scorer = ByDistance(clock)
    scorer.fails_after = 0
    with pytest.raises(WorldForgeError, match="worn out"):
        run(scorer, clock)


def test_a_candidate_without_a_cost_never_beats_one_with() -> None:
    clock = Clock()
    outside = np.broadcast_to([0.6, 0.6], (2, 10, 2))
    given = np.concatenate([np.repeat(HOLD, 2, axis=0), outside])
    found = run(ByDistance(clock, spoil=[0, 1]), clock, candidates=given, iterations=1, elites=2)
    assert len(found.costs) == 2
    np.testing.assert_allclose(found.candidates, outside)


def test_bad_settings_cost_no_pass_of_the_model() -> None:
    clock = Clock()
    scorer = ByDistance(clock)
    with pytest.raises(WorldForgeError):
        run(scorer, clock, samples=1)
    assert scorer.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 0},
        {"samples": 1},
        {"elites": 50},
        {"spread": -1.0},
        {"spread": float("nan")},
        {"budget": -1.0},
        {"budget": float("inf")},
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    clock = Clock()
    with pytest.raises(WorldForgeError) as info:
        run(ByDistance(clock), clock, **changes)
    assert info.value.code is ErrorCode.INVALID_ARGUMENT
