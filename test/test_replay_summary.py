"""From the documents of bags to figures, conditions on them, and the counts beneath both."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_documents import (
    PROVENANCE,
    episode,
    failed_episode,
    several,
    without_cycles,
    without_models,
)

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.replay.summary import HEADLINES, OPEN_LOOP, lookup, summarise
from worldforge_ros.replay.tally import ACCURACY, Tally
from worldforge_ros.replay.thresholds import failing, parse, paths

FINITE = st.floats(-1e9, 1e9).filter(lambda x: x == 0.0 or abs(x) > 1e-9)


@given(st.lists(st.tuples(FINITE, st.integers(0, 3)), min_size=1, max_size=60), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_tally_does_not_depend_on_order_or_parts(
    values: list[tuple[float, int]], random: Any
) -> None:
    whole = Tally()
    whole.extend(value for value, _ in values)
    parts = [Tally() for _ in range(4)]
    shuffled = random.sample(values, len(values))
    for value, part in shuffled:
        parts[part].add(value)
    merged = Tally()
    for part_ in random.sample(parts, 4):
        merged.merge(Tally.of(json.loads(json.dumps(part_.document()))))
    assert merged.document() == whole.document()
    assert whole.mean == math.fsum(value for value, _ in values) / len(values)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=80), st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_a_quantile_is_within_its_accuracy(values: list[float], q: float) -> None:
    tally = Tally()
    tally.extend(values)
    assert tally.quantile(q) == pytest.approx(np.quantile(values, q), rel=ACCURACY + 1e-6)
    assert (tally.min, tally.max) == (min(values), max(values))


def test_a_tally_refuses_what_is_no_number_or_no_tally() -> None:
    with pytest.raises(ValueError, match="finite"):
        Tally().add(math.nan)
    with pytest.raises(ValueError, match="0 to 1"):
        Tally().quantile(1.5)
    document = Tally().document()
    assert Tally.of(document).mean is None
    with pytest.raises(ValueError, match="hold 0 values; expected 2"):
        Tally.of({**document, "count": 2, "min": 1.0, "max": 1.0})
    with pytest.raises(ValueError, match="not a tally"):
        Tally.of({"count": 1})


def _by_hand() -> dict[str, Any]:
    """Two joints, two steps, two cycles; the first joint's recorded actions have spread 2, the
    second one does not move."""
    document = episode("hand", duration=3.0)
    policy = document["policy"]
    policy.update(joints=["a", "b"], units=["rad", "m"], horizon=2, step_s=0.1, spread=[2.0, 0.0])

    def errors(first: float, second: float) -> dict[str, Any]:
        return {
            "count": [2, 1],
            "sum_abs": [[first, 5.0], [second, 5.0]],
            "sum_sq": [[first**2, 9.0], [second**2, 9.0]],
        }

    policy["errors"] = {
        "first": errors(2.0, 4.0),
        "chosen": errors(2.0, 4.0),
        "nearest": errors(0.0, 0.0),
        "hold": errors(4.0, 8.0),
        "repeat": errors(2.0, 4.0),
    }
    policy["overlap"] = {"count": 4, "sum_sq": [4.0, 1.0]}
    policy["smoothness"] = {
        "chosen": {"count": 1, "sum_sq_acceleration": [1.0, 0.0], "sum_sq_jerk": [36.0, 0.0]},
        "recorded": {"count": 4, "sum_sq_acceleration": [1.0, 0.0], "sum_sq_jerk": [36.0, 0.0]},
    }
    scores = document["scores"]
    scores["pairs"] = {"recorded_cost": [1.0, 2.0, 3.0, 4.0], "realised": [1.0, 2.0, 4.0, 3.0]}
    scores["rank"] = _tally([1, 33])
    scores["relative_rank_sum"] = 1.0
    document["gate"].update(judged=8, approved=6, stop_count=1)
    document["gate"]["expert"].update(judged=50, rejected=1)
    document["cycles"] = {"started": 5, "waiting": 0, "outcomes": {"OK": 3, "DEADLINE": 1}}
    document["synchronisation"].update(observations=9, skipped={"CAMERA_STALE": 3})
    document["reproduction"].update(cycles=20, same=19)
    return document


def _tally(values: list[float]) -> dict[str, Any]:
    tally = Tally()
    tally.extend(values)
    return tally.document()


def test_figures_by_hand() -> None:
    report = summarise([_by_hand()], PROVENANCE)
    # Squares of joint a over 2 squared: 1 and 4, over 3 comparisons; the first step: 1 over 2.
    expected = {
        "policy.error_normalised": math.sqrt(5 / 3),
        "policy.first_action_error_normalised": math.sqrt(1 / 2),
        "policy.nearest_error_normalised": 0.0,
        "policy.skill_over_hold": 0.75,
        "policy.skill_over_repeat": 0.0,
        "policy.overlap.normalised": 0.5,
        "policy.jerk_ratio": 2.0,
        "scores.spearman": 0.8,
        "scores.recorded_rank": 0.5,
        "gate.reject_rate": 0.25,
        "gate.false_reject_rate": 0.02,
        "gate.stops": 1,
        "cycles.failed_rate": 0.25,
        "synchronisation.skipped_rate": 0.25,
        "reproduction.same_rate": 0.95,
        "policy.errors.first.mae.0.1": 2.5,
        "policy.errors.first.rmse.1.0": 4.0,
    }
    for path, value in expected.items():
        assert lookup(report, path) == pytest.approx(value, rel=1e-9), path
    assert any("leave out b" in note for note in report["notes"])


def test_the_spread_of_bags_is_weighed_by_what_was_compared() -> None:
    one, two = _by_hand(), _by_hand()
    two["episode"], two["policy"]["spread"] = "other", [4.0, 0.0]
    for part in two["policy"]["errors"].values():
        part["count"] = [4, 2]
    report = summarise([one, two], PROVENANCE)
    # 3 comparisons with 2 squared, 6 with 4 squared.
    assert report["policy"]["spread"] == pytest.approx([math.sqrt((3 * 4 + 6 * 16) / 9), 0.0])


def test_a_bag_of_which_no_cycle_was_compared_says_nothing_about_the_spread() -> None:
    other = _by_hand()
    other["episode"], other["policy"]["errors"] = "other", {}
    spread = summarise([_by_hand()], PROVENANCE)["policy"]["spread"]
    assert summarise([_by_hand(), other], PROVENANCE)["policy"]["spread"] == spread
    assert summarise([other], PROVENANCE)["policy"]["errors"]["first"]["count"] == 0


def test_a_report_is_the_same_in_any_order_and_is_json() -> None:
    documents = several()
    text = json.dumps(summarise(documents, PROVENANCE), allow_nan=False)
    assert json.dumps(summarise(documents[::-1], PROVENANCE), allow_nan=False) == text


def test_every_figure_has_a_row_and_an_interval() -> None:
    report = summarise(several(), PROVENANCE)
    assert [row["episode"] for row in report["episodes"]][-1] == "truncated"
    for item in HEADLINES:
        interval = report["intervals"][item.path]
        assert interval["ci_low"] <= interval["value"] <= interval["ci_high"]
    assert report["intervals"]["scores.spearman"]["episodes"] == 4
    assert report["intervals"]["gate.reject_rate"]["episodes"] == 5
    assert report["bag_health"]["failed"] == 1
    assert report["bag_health"]["problems_by_code"] == {"BAG_GAP": 5, "BAG_INVALID": 1}


@pytest.mark.parametrize(
    "documents", [[without_cycles("a")], [without_models("a")], [failed_episode("a")], []]
)
def test_what_was_not_measured_is_none_and_said(documents: list[dict[str, Any]]) -> None:
    report = summarise(documents, {})
    assert report["scores"]["spearman"] is None
    assert report["latency"]["plan"]["p95_ms"] is None
    assert report["notes"][0] == OPEN_LOOP
    assert set(paths(report)) >= {item.path for item in HEADLINES}


def test_other_schemas_and_contracts_are_refused() -> None:
    with pytest.raises(WorldForgeError, match="schema of episode a") as caught:
        summarise([{**episode("a"), "schema": "else/1"}], PROVENANCE)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    other = deepcopy(episode("b"))
    other["policy"]["step_s"] = 0.2
    with pytest.raises(WorldForgeError, match=r"policy\.step_s of a bag"):
        summarise([episode("a"), other], PROVENANCE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gate.false_reject_rate > 0.01", ("gate.false_reject_rate", ">", 0.01)),
        (" gate.stops>=1 ", ("gate.stops", ">=", 1.0)),
        ("scores.spearman<-1e-2", ("scores.spearman", "<", -0.01)),
        ("gate.codes.JERK_LIMIT != 0", ("gate.codes.JERK_LIMIT", "!=", 0.0)),
    ],
)
def test_a_condition_is_read(text: str, expected: tuple[str, str, float]) -> None:
    found = parse(text)
    assert (found.path, found.operator, found.value) == expected
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "gate.stops", "gate.stops > ", "a > nan", "a > b", "a = 1", "a > 1 2", "> 1"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(WorldForgeError, match="--fail-if") as caught:
        parse(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_conditions_that_hold_fail_with_their_line() -> None:
    report = summarise([_by_hand()], PROVENANCE)
    conditions = [
        parse(text)
        for text in (
            "gate.false_reject_rate > 0.01",
            "gate.false_reject_rate > 0.02",
            "cycles.outcomes.DEADLINE >= 1",
        )
    ]
    assert failing(report, conditions) == [
        "gate.false_reject_rate is 0.02; --fail-if gate.false_reject_rate > 0.01",
        "cycles.outcomes.DEADLINE is 1; --fail-if cycles.outcomes.DEADLINE >= 1",
    ]


def test_a_condition_on_what_was_not_measured_fails() -> None:
    report = summarise([without_models("a")], PROVENANCE)
    assert failing(report, [parse("scores.spearman < 0")]) == [
        "scores.spearman was not measured; --fail-if scores.spearman < 0"
    ]


def test_a_code_that_did_not_occur_counts_zero_and_a_misspelt_path_is_refused() -> None:
    report = summarise([episode("a")], PROVENANCE)
    assert failing(report, [parse("gate.codes.POSITION_LIMIT > 0")]) == []
    with pytest.raises(WorldForgeError, match=r"gate\.false_reject_rate"):
        failing(report, [parse("gate.false_rejection_rate > 0")])
    with pytest.raises(WorldForgeError, match=r"path of --fail-if"):
        failing(report, [parse("gate.codes.NO_SUCH_CODE > 0")])
