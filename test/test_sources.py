"""Candidates beside those of the policy: hold, tail, and a user's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.cycle import CycleConfig, PlanningCycle, Stage
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.seam import SEAMS, Prediction, Seam, SeamSettings
from worldforge_ros.planning.search import CrossEntropySearch, SearchSettings, search_bridge
from worldforge_ros.planning.sources import (
    Offer,
    Supplied,
    check_extra_sources,
    offer,
    sent,
)

PUSHT = load_embodiment("pusht")
MS = 1_000_000
STEP = 100 * MS
SEEN = 10_000 * MS
HORIZON = 10
PLACE = np.array([0.2, 0.3])
BESIDE = Offer(("hold", "tail", "supplied"))


def seen(velocity: float = 0.1) -> Observation:
    return Observation(SEEN, {}, PLACE, np.array([velocity, 0.0]))


def line(start: float, slope: float, length: int = HORIZON) -> np.ndarray:
    return np.stack([start + slope * np.arange(length), np.full(length, 0.3)], axis=1)


def chunk(start: int, actions: np.ndarray, **changes: Any) -> ActionChunk:
    whole = ActionChunk(start, "pusht", PUSHT.joint_names, 0.1, actions, "policy", 1, 1, start)
    return replace(whole, **changes)


def offered(
    executing: ActionChunk | None,
    extras: Offer = BESIDE,
    latency: int = 0,
    seam: Seam | None = None,
    velocity: float = 0.1,
) -> Handover:
    proposed = line(0.2, 0.01)[None].astype(np.float32)
    arrival = SEEN + latency * STEP
    return offer(proposed, 0.1, seen(velocity), executing, arrival, PUSHT, seam or Seam(), extras)


def test_hold_stays_at_the_set_point_that_is_in_force_then() -> None:
    old = chunk(SEEN - 3 * STEP, line(0.1, 0.01, 20))
    result = offered(old, Offer(("hold",)), latency=2)
    assert result.extras == ("hold",)
    # Past actions are those of the executing chunk; the last one before the hand-over stays.
    expected = [0.13, 0.14] + [0.14] * 8
    np.testing.assert_allclose(result.candidates[1, :, 0], expected, atol=1e-7)
    assert result.reachable.tolist()[1:] == [True]


@pytest.mark.parametrize("velocity", [0.0, 0.2])
def test_without_a_chunk_hold_is_where_the_robot_is_and_there_is_no_tail(velocity: float) -> None:
    result = offered(None, latency=3, velocity=velocity)
    assert result.extras == ("hold",)
    np.testing.assert_allclose(result.candidates[1], np.tile(PLACE, (HORIZON, 1)), atol=1e-7)


def test_tail_goes_on_and_then_stays_at_the_last_set_point() -> None:
    old = chunk(SEEN - 3 * STEP, line(0.1, 0.01, 8))
    result = offered(old, Offer(("tail",)), latency=2)
    expected = [0.13, 0.14, 0.15, 0.16, 0.17, 0.17, 0.17, 0.17, 0.17, 0.17]
    np.testing.assert_allclose(result.candidates[1, :, 0], expected, atol=1e-7)
    assert result.reachable[1]
    ended = offered(chunk(SEEN - 10 * STEP, line(0.1, 0.01, 10)), Offer(("tail",)), latency=2)
    assert ended.extras == (), "nothing is left of it"


def test_what_arrives_after_its_end_has_nothing_to_hold() -> None:
    result = offered(chunk(SEEN, line(0.2, 0.0, 30)), latency=HORIZON)
    assert result.extras == ()
    assert result.reachable.tolist() == [False]


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(SEAMS), latency=st.integers(0, HORIZON - 1), offset=st.integers(0, 900))
def test_no_seam_changes_hold_and_tail(mode: str, latency: int, offset: int) -> None:
    seam = Seam(SeamSettings(mode))
    seam.sent(1, Prediction(SEEN - STEP, 0.1, line(0.4, 0.0), SEEN - STEP))
    seam.approved(1)
    old = chunk(SEEN - offset * MS, line(0.1, 0.005, 30))
    plain = offered(old, Offer(("hold", "tail")), latency)
    mixed = offered(old, Offer(("hold", "tail")), latency, seam)
    np.testing.assert_array_equal(mixed.candidates[1:], plain.candidates[1:])
    assert mixed.reachable[1:].all()


def test_a_chosen_tail_predicts_nothing_and_a_chosen_hold_ends_what_was_predicted() -> None:
    seam = Seam(SeamSettings("temporal_ensemble"))
    for sequence, source, kept in ((1, "policy", 1), (2, "tail", 1), (3, "supplied", 2),
                                   (4, "hold", 0)):  # fmt: skip
        sent(seam, chunk(SEEN, line(0.2, 0.0), source=source, sequence=sequence), line(0.2, 0.0))
        seam.approved(sequence)
        assert len(seam.kept) == kept


def test_a_supplied_chunk_is_handed_over_like_the_policy_s() -> None:
    old = chunk(SEEN - 3 * STEP, line(0.17, 0.01, 20))
    own = line(0.22, 0.0).astype(np.float32)
    result = offered(old, Offer(("hold", "supplied"), own), latency=2)
    assert result.extras == ("supplied", "hold")
    np.testing.assert_allclose(result.candidates[1, :2], line(0.20, 0.01, 2), atol=1e-7)
    np.testing.assert_array_equal(result.candidates[1, 2:], own[2:])
    np.testing.assert_array_equal(result.proposed[1], own)
    assert result.reachable.tolist() == [True, True, True]
    far = offered(old, Offer(("supplied",), own + np.float32(0.2)), latency=2)
    assert far.reachable.tolist() == [True, False]
    assert offered(old, Offer((), own)).extras == (), "nobody asked for it"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"embodiment": "aloha"}, ErrorCode.EMBODIMENT_MISMATCH),
        ({"joint_names": ("pusher_y", "pusher_x")}, ErrorCode.JOINT_NAMES_MISMATCH),
        ({"actions": line(0.2, 0.0)[:, :1]}, ErrorCode.TENSOR_SHAPE_MISMATCH),
        ({"actions": line(0.2, 0.0)[:0]}, ErrorCode.TENSOR_SHAPE_MISMATCH),
        ({"actions": line(0.2, 0.0)[0]}, ErrorCode.TENSOR_SHAPE_MISMATCH),
        ({"actions": line(0.2, np.nan)}, ErrorCode.TENSOR_NOT_FINITE),
        ({"actions": line(0.2, 0.0) * 1000.0}, ErrorCode.NO_REACHABLE_CANDIDATE),
        ({"stamp": 0}, ErrorCode.STAMP_INVALID),
        ({"stamp": SEEN + 300 * MS}, ErrorCode.STAMP_INVALID),
        ({"stamp": SEEN - 501 * MS}, ErrorCode.CANDIDATE_STALE),
    ],
)
def test_a_bad_supplied_chunk_has_its_code_and_the_one_before_stays(
    changes: dict[str, Any], code: ErrorCode
) -> None:
    supplied = Supplied(PUSHT, max_age=0.5)
    good = chunk(SEEN, line(0.2, 0.0))
    supplied.take(good, SEEN)
    with pytest.raises(WorldForgeError) as caught:
        supplied.take(replace(good, **changes), SEEN)
    assert caught.value.code is code
    assert "supplied chunk" in caught.value.message
    assert supplied.offered(SEEN, HORIZON, 0.1) is not None


def test_a_supplied_chunk_is_offered_until_it_is_chosen_or_too_old() -> None:
    supplied = Supplied(PUSHT, max_age=0.5)
    assert supplied.offered(SEEN, HORIZON, 0.1) is None
    supplied.take(chunk(SEEN, line(0.2, 0.0)), SEEN)
    supplied.take(chunk(SEEN, line(0.3, 0.0)), SEEN)
    for _ in range(2):
        found = supplied.offered(SEEN + 500 * MS, HORIZON, 0.1)
        assert found is not None
        np.testing.assert_array_equal(found, line(0.3, 0.0).astype(np.float32))
    assert supplied.offered(SEEN + 501 * MS, HORIZON, 0.1) is None
    supplied.take(chunk(SEEN, line(0.2, 0.0)), SEEN)
    supplied.offered(SEEN, HORIZON, 0.1)
    supplied.chosen()
    assert supplied.offered(SEEN, HORIZON, 0.1) is None
    supplied.take(chunk(SEEN, line(0.2, 0.0)), SEEN)
    supplied.offered(SEEN, HORIZON, 0.1)
    supplied.take(chunk(SEEN, line(0.4, 0.0)), SEEN)
    supplied.chosen()
    assert supplied.offered(SEEN, HORIZON, 0.1) is not None, "a newer one was not chosen"


@pytest.mark.parametrize(
    ("horizon", "step", "code"),
    [
        (HORIZON + 1, 0.1, ErrorCode.HORIZON_INVALID),
        (HORIZON - 1, 0.1, ErrorCode.HORIZON_INVALID),
        (HORIZON, 0.05, ErrorCode.STEP_MISMATCH),
    ],
)
def test_another_horizon_or_step_is_refused_and_not_padded(
    horizon: int, step: float, code: ErrorCode
) -> None:
    supplied = Supplied(PUSHT)
    supplied.take(chunk(SEEN, line(0.2, 0.0)), SEEN)
    with pytest.raises(WorldForgeError) as caught:
        supplied.offered(SEEN, horizon, step)
    assert caught.value.code is code
    assert supplied.offered(SEEN, HORIZON, 0.1) is None, "it is refused once"


@pytest.mark.parametrize("names", [["stay"], ["hold", "hold"], [""]])
def test_unknown_and_doubled_sources_are_refused(names: list[str]) -> None:
    with pytest.raises(WorldForgeError, match="expected any of hold, tail, supplied") as caught:
        check_extra_sources(names)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert check_extra_sources(["tail", "hold"]) == ("tail", "hold")


def hand(candidates: np.ndarray, step: float, observation: Observation) -> Handover:
    old = chunk(SEEN - 3 * STEP, line(0.17, 0.01, 20))
    extras = Offer(("hold", "tail"))
    return offer(candidates, step, observation, old, SEEN, PUSHT, Seam(), extras)


def test_a_cycle_names_scores_and_chooses_them_like_the_others() -> None:
    cycle = PlanningCycle(CycleConfig(), hand)
    ticket = cycle.start(seen(), 0.0, 0.0)
    candidates = np.stack([line(0.2, 0.01), line(0.2, 0.0)]).astype(np.float32)
    assert cycle.proposed(ticket, candidates, 0.1, "p", 0.0, 0.0) is None
    trace = cycle.scored(ticket, [3.0, 2.0, 4.0, 1.0], "w", 0.0, 0.0)
    assert trace is not None
    assert trace.sources == ("policy", "policy", "hold", "tail")
    assert trace.choice is not None
    assert (trace.choice.index, trace.choice.margin) == (3, 1.0)
    np.testing.assert_array_equal(trace.proposed[:2], candidates)
    assert trace.reachable.tolist() == [True] * 4


def test_a_candidate_out_of_reach_leaves_the_robot_its_tail() -> None:
    cycle = PlanningCycle(CycleConfig(planner="first"), hand)
    ticket = cycle.start(seen(), 0.0, 0.0)
    far = line(0.45, 0.0)[None].astype(np.float32)
    trace = cycle.proposed(ticket, far, 0.1, "p", 0.0, 0.0)
    assert trace is not None
    assert trace.choice is not None
    assert trace.sources[trace.choice.index] == "hold"


def test_a_search_offers_them_beside_what_it_found() -> None:
    bridge = search_bridge(PUSHT, (0.01, 0.01))
    rng = np.random.default_rng(0)
    small = SearchSettings(samples=6, iterations=2, elites=3, blocks=2)
    cycle = PlanningCycle(
        CycleConfig(source="cem"),
        hand,
        lambda observation, _: CrossEntropySearch(small, bridge, PUSHT, observation, rng),
    )
    ticket = cycle.start(seen(), 0.0, 0.0)
    for _ in range(2):
        assert cycle.stage is Stage.SCORING
        assert cycle.trace is not None
        assert cycle.trace.sources == ("cem",) * 6 + ("hold", "tail")
        trace = cycle.scored(ticket, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 7.0, 0.5], "w", 0.0, 0.0)
    assert trace is not None
    assert trace.sources == ("cem",) * 3 + ("hold", "tail")
    assert trace.costs.tolist()[3:] == [7.0, 0.5]
    assert len(trace.proposed) == len(trace.candidates) == len(trace.reachable) == 5
    assert trace.choice is not None
    assert trace.sources[trace.choice.index] == "tail"
    # The search learns from its own samples only: one cost too few is its own error.
    ticket = cycle.start(seen(), 0.0, 1.0)
    trace = cycle.scored(ticket, [1.0] * 6, "w", 0.0, 1.0)
    assert trace is not None
    assert trace.outcome == "COSTS_INVALID"
