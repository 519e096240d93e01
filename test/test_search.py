"""The cross-entropy search: the same as upstream's solver, and within the robot's limits."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.search import (
    CrossEntropySearch,
    SearchSettings,
    search_bridge,
    violation,
)

PUSHT = load_embodiment("pusht")
BRIDGE = search_bridge(PUSHT, (0.03, 0.03))
SMALL = SearchSettings(samples=40, iterations=8, elites=6, blocks=2)


def placed(x: float = 0.25, y: float = 0.25) -> Observation:
    return Observation(1, {}, np.array([x, y]), np.zeros(2))


def as_asked(setpoints: np.ndarray) -> Handover:
    return Handover(setpoints, 7, 0, np.ones(len(setpoints), bool), setpoints)


def run(search: CrossEntropySearch, cost: Any) -> Any:
    while not search.done:
        samples = search.ask()
        search.tell(cost(samples), as_asked(samples))
    return search.found


def test_it_is_upstream_s_solver() -> None:
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    solvers = pytest.importorskip(
        "stable_worldmodel.solver", reason="the package stable-worldmodel is not installed"
    )
    gymnasium = pytest.importorskip("gymnasium", reason="the package gymnasium is not installed")
    target = np.random.default_rng(0).normal(size=(2, 10))

    class Model:
        def get_cost(self, info: Any, candidates: Any) -> Any:
            return (candidates - torch.from_numpy(target).float()).square().sum((-1, -2))

    solver = solvers.CEMSolver(Model(), num_samples=40, n_steps=8, topk=6, seed=5)
    space = gymnasium.spaces.Box(-1, 1, (1, 2))
    solver.configure(
        action_space=space, n_envs=1, config=SimpleNamespace(horizon=2, action_block=5)
    )
    expected = solver.solve({"x": torch.zeros(1, 1)})["actions"][0].numpy()

    noise = torch.Generator().manual_seed(5)

    class SameNoise:
        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return torch.randn(1, 40, 2, 10, generator=noise).numpy().reshape(shape)

    # Half a millimetre a standard deviation: no sample comes near a limit of the robot.
    bridge = search_bridge(PUSHT, (0.0005, 0.0005))
    search = CrossEntropySearch(SMALL, bridge, PUSHT, placed(), SameNoise())  # type: ignore[arg-type]

    def cost(setpoints: np.ndarray) -> np.ndarray:
        blocks = bridge.setpoints_to_blocks(setpoints, (0.25, 0.25), (0.0, 0.0))
        return np.square(blocks - target).sum((-1, -2))

    run(search, cost)
    found = search._mean.reshape(2, 10)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_it_finds_what_is_cheap_and_offers_the_best_first() -> None:
    goal = np.array([0.3, 0.22])
    found = run(
        CrossEntropySearch(SMALL, BRIDGE, PUSHT, placed(), np.random.default_rng(1)),
        lambda samples: np.linalg.norm(samples[:, -1] - goal, axis=-1),
    )
    assert found.candidates.shape == (6, 10, 2)
    assert found.executable.all()
    assert found.stamp == 7
    assert (np.diff(found.costs) >= 0).all()
    assert found.costs[0] < 0.005


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.49), st.floats(0.02, 0.49), st.floats(0.005, 0.1))
def test_what_it_offers_as_executable_keeps_the_limits(
    seed: int, x: float, y: float, std: float
) -> None:
    bridge = search_bridge(PUSHT, (std, std))
    search = CrossEntropySearch(SMALL, bridge, PUSHT, placed(x, y), np.random.default_rng(seed))
    # The corner outside the workspace looks cheapest.
    found = run(search, lambda samples: -samples[:, -1].sum(axis=-1))
    kept = found.candidates[found.executable].astype(np.float64)
    assert ((kept >= 0.0) & (kept <= 0.512)).all()
    assert (np.abs(np.diff(kept, axis=1)) <= 0.1).all()


def test_samples_that_break_a_limit_rank_behind_all_that_do_not() -> None:
    search = CrossEntropySearch(
        replace(SMALL, iterations=1, elites=40),
        BRIDGE,
        PUSHT,
        placed(0.03, 0.25),
        np.random.default_rng(2),
    )
    samples = search.ask()
    broken = violation(samples, 0.1, PUSHT)
    assert 0 < (broken > 0).sum() < 40
    search.tell(np.where(broken > 0, 0.0, 1.0), as_asked(samples))
    assert search.found.executable.tolist() == [True] * int((broken == 0).sum()) + [False] * int(
        (broken > 0).sum()
    )


def test_unreachable_and_costless_samples_are_not_chosen() -> None:
    search = CrossEntropySearch(
        replace(SMALL, iterations=1),
        search_bridge(PUSHT, (0.002, 0.002)),
        PUSHT,
        placed(),
        np.random.default_rng(3),
    )
    samples = search.ask()
    costs = np.arange(40.0)
    costs[0] = np.nan
    reachable = np.ones(40, bool)
    reachable[1] = False
    search.tell(costs, Handover(samples, 1, 0, reachable, samples))
    np.testing.assert_array_equal(search.found.costs, [2, 3, 4, 5, 6, 7])


def test_violation_by_hand() -> None:
    still = np.full((1, 3, 2), 0.25)
    assert violation(still, 0.1, PUSHT).tolist() == [0.0]
    outside = still.copy()
    outside[0, 1, 0] = 0.532
    # 0.02 m outside; 0.282 m in a step twice, with the gate's margin of 1 %, of 0.1 m allowed.
    expected = 0.02 + 2 * (0.282 * 1.01 - 0.1)
    assert violation(outside, 0.1, PUSHT)[0] == pytest.approx(expected)


def test_a_search_from_candidates_starts_with_them() -> None:
    ramp = np.linspace(0, 0.03, 10)[:, None]
    start = np.stack([0.25 + ramp * (1, 0), 0.25 + ramp * (0, 1)]).astype(np.float32)
    search = CrossEntropySearch(SMALL, BRIDGE, PUSHT, placed(), np.random.default_rng(0), start)
    first = search.ask()
    np.testing.assert_allclose(first, start, atol=1e-6)
    search.tell([1.0, 0.0], as_asked(first))
    samples = search.ask()
    assert samples.shape == (40, 10, 2)
    np.testing.assert_allclose(samples[0], start[1], atol=1e-6)


def test_correlated_noise_keeps_its_size_and_goes_somewhere() -> None:
    steps = {}
    for correlation in (0.0, 0.9):
        wide = replace(SMALL, samples=4000, correlation=correlation)
        search = CrossEntropySearch(wide, BRIDGE, PUSHT, placed(), np.random.default_rng(4))
        search.ask()
        assert search._asked is not None
        steps[correlation] = search._asked[1:]
    for noise in steps.values():
        assert noise.std(axis=0) == pytest.approx(1.0, abs=0.05)
    neighbours = {c: float((n[:, 1:] * n[:, :-1]).mean()) for c, n in steps.items()}
    assert neighbours[0.0] == pytest.approx(0.0, abs=0.02)
    assert neighbours[0.9] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples": 1}, "samples"),
        ({"iterations": 0}, "iterations"),
        ({"elites": 41}, "elites"),
        ({"blocks": 0}, "blocks"),
        ({"spread": 0.0}, "spread"),
        ({"correlation": 1.0}, "correlation"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(WorldForgeError, match=f"search {field}") as caught:
        replace(SMALL, **change)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_other_refusals() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(WorldForgeError) as caught:
        CrossEntropySearch(SMALL, BRIDGE, PUSHT, placed(), rng, np.zeros((3, 5, 2)))
    assert caught.value.code is ErrorCode.TENSOR_SHAPE_MISMATCH
    search = CrossEntropySearch(SMALL, BRIDGE, PUSHT, placed(), rng)
    samples = search.ask()
    with pytest.raises(WorldForgeError) as caught:
        search.tell([1.0], as_asked(samples))
    assert caught.value.code is ErrorCode.COSTS_INVALID
    for std in ((), (0.03,), (0.03, -0.03)):
        with pytest.raises(WorldForgeError) as caught:
            search_bridge(PUSHT, std)
        assert caught.value.code is ErrorCode.ACTION_STATISTICS_MISSING


def test_the_bridge_takes_standard_deviations_in_si() -> None:
    assert isinstance(BRIDGE, ActionBridge)
    # PushT's model units are decimetres.
    np.testing.assert_allclose(BRIDGE.std, [0.3, 0.3])
    np.testing.assert_allclose(BRIDGE.mean, [0.0, 0.0])
