"""Replays of small bags with stand-in models: figures that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_support import (
    NS,
    START,
    cdr,
    chunk,
    data_file,
    duration,
    image_message,
    joint_commands,
    joint_state,
    picture,
    plan_report,
    pusht_messages,
    stamp,
    write_bag,
    write_messages,
)
from replay_models import HORIZON, Fan, Rightmost, stand_ins

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.planning.cycle import Trace
from worldforge_ros.planning.selection import Choice
from worldforge_ros.replay.cycles import Cycle
from worldforge_ros.replay.engine import replay_bag
from worldforge_ros.replay.live import LivePlan, compare
from worldforge_ros.replay.settings import ReplaySettings

SETTINGS = ReplaySettings(candidates=4)


def replay(path: Path, settings: ReplaySettings = SETTINGS, **models: Any) -> dict[str, Any]:
    return replay_bag(path, settings, stand_ins(**models))


def plain(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, allow_nan=False)


def at_rest(
    seconds: float, place: tuple[float, float] = (0.25, 0.25), command: Any = None
) -> list[tuple[str, int, Any]]:
    """A pusher that rests at ``place`` while ``command(t)`` is sent to it, 100 times a second."""
    where, still = np.array(place), np.zeros(2)
    found = [("/goal_image", START, image_message(picture(0.0), START))]
    for index in range(round(seconds * 100)):
        time = START + index * NS // 100
        found.append(("/joint_states", time, joint_state(time, where, still)))
        told = where if command is None else command(index / 100)
        found.append(("/joint_commands", time, joint_commands(told)))
        if index % 10 == 0:
            found.append(("/camera/top/image_raw", time, image_message(picture(0.0), time)))
    return found


def test_the_same_bag_gives_the_same_document(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=4.0)
    first = replay(bag)
    assert plain(first) == plain(replay(bag))
    assert first["cycles"]["started"] == 8
    assert plain(first) != plain(replay(bag, replace(SETTINGS, candidates=5)))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_a_bag_is_stored_in_does_not_matter(tmp_path: Path, storage: str) -> None:
    one = replay(write_bag(tmp_path / "a" / "bag", seconds=3.0))
    other = replay(write_bag(tmp_path / storage / "bag", seconds=3.0, storage=storage))
    for name in ("cycles", "policy", "scores", "gate", "synchronisation", "timeline"):
        assert one[name] == other[name], name


def test_errors_of_a_policy_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """The pusher rests and is told to go 2 mm a step along x from 1 s on. Candidate s goes s mm a
    step, so the first is 2 mm off at the first step and 20 mm at the tenth, and candidate 2 is
    right.
    """
    begin = np.array([0.25, 0.25])

    def told(t: float) -> np.ndarray:
        return begin + np.array([0.002 * (np.floor(t * 10 + 1e-6) + 1), 0.0])

    messages = at_rest(4.0, command=told)
    bag = write_messages(tmp_path / "bag", messages)

    class FromCommand(Fan):
        """Goes from where the pusher would be, had it followed."""

        def propose(self, history: Any, *arguments: Any) -> Any:
            t = (history[-1].stamp - START) / NS
            place = begin + np.array([0.002 * round(t * 10), 0.0])
            newest = replace(history[-1], position=place)
            return super().propose([*history[:-1], newest], *arguments)

    document = replay(bag, policy=FromCommand())
    errors = document["policy"]["errors"]
    steps = np.arange(1, HORIZON + 1)
    count = errors["first"]["count"][0]
    assert count >= 4
    first = np.asarray(errors["first"]["sum_abs"]) / count
    np.testing.assert_allclose(first[:, 0], 0.002 * steps, atol=1e-7)
    np.testing.assert_allclose(first[:, 1], 0.0, atol=1e-7)
    squares = np.asarray(errors["first"]["sum_sq"]) / count
    np.testing.assert_allclose(squares[:, 0], (0.002 * steps) ** 2, atol=1e-9)
    nearest = np.asarray(errors["nearest"]["sum_abs"]) / count
    np.testing.assert_allclose(nearest, 0.0, atol=1e-7)
    # The planner takes the one that ends rightmost, candidate 3: 1 mm a step too fast.
    chosen = np.asarray(errors["chosen"]["sum_abs"]) / errors["chosen"]["count"][0]
    np.testing.assert_allclose(chosen[:, 0], 0.001 * steps, atol=1e-7)
    hold = np.asarray(errors["hold"]["sum_abs"]) / errors["hold"]["count"][0]
    np.testing.assert_allclose(hold[:, 0], 0.002 * steps, atol=1e-7)
    repeat = np.asarray(errors["repeat"]["sum_abs"]) / errors["repeat"]["count"][0]
    np.testing.assert_allclose(repeat, 0.0, atol=1e-7)
    # Successive choices are 5 steps apart and 5 steps behind each other by 1 mm a step.
    overlap = document["policy"]["overlap"]
    rms = np.sqrt(np.asarray(overlap["sum_sq"]) / overlap["count"])
    np.testing.assert_allclose(rms, [0.005, 0.0], atol=1e-6)


def test_ranks_and_what_followed_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """The recorded actions end where they are: as candidate 0, which 3 of 4 beat."""
    scorer = Rightmost()
    bag = write_messages(tmp_path / "bag", at_rest(4.0))
    document = replay(bag, scorer=scorer)
    scores = document["scores"]
    assert scores["cycles"] >= 4
    assert scores["rank"]["min"] == scores["rank"]["max"] == 4.0
    assert scores["relative_rank_sum"] == pytest.approx(0.75 * scores["cycles"])
    # The best is 1 mm a step ahead of the next.
    assert scores["margin"]["mean"] == pytest.approx(10.0, abs=1e-3)
    pairs = scores["pairs"]
    assert pairs["recorded_cost"][0] == pytest.approx(262.0, abs=1e-3)
    assert pairs["realised"][0] == pytest.approx(1000.0 - picture(0.0)[..., 0].mean())
    # What was seen is the picture at the end of the candidate, ten steps after it begins.
    first = document["timeline"]["t_s"][0]
    begun = START + round(first * NS)
    assert abs(scorer.seen[0] - begun - NS) <= NS // 20
    assert scorer.goals[0] == pytest.approx(float(picture(0.0).mean()))


def test_the_gate_is_shown_what_was_recorded(tmp_path: Path) -> None:
    """Commands that no joint can follow are what the gate refuses, with the limit's own code."""
    quiet = replay(write_messages(tmp_path / "quiet", at_rest(3.0)))
    assert quiet["gate"]["expert"] == {"judged": 4, "rejected": 0, "codes": {}, "examples": []}
    assert quiet["gate"]["judged"] == quiet["gate"]["approved"] == 6

    def wild(t: float) -> np.ndarray:
        return np.array([0.1 if int(t * 10) % 2 else 0.4, 0.25])

    loud = replay(write_messages(tmp_path / "loud", at_rest(3.0, command=wild)))
    expert = loud["gate"]["expert"]
    assert expert["judged"] == expert["rejected"] == 4
    assert "VELOCITY_LIMIT" in expert["codes"]
    assert expert["examples"][0]["codes"]
    assert expert["examples"][0]["message"]


def test_a_silent_joint_state_would_have_stopped_the_gate(tmp_path: Path) -> None:
    messages = [
        item
        for item in at_rest(4.0)
        if item[0] != "/joint_states" or not START + NS < item[1] < START + 2 * NS
    ]
    document = replay(write_messages(tmp_path / "bag", messages))
    gate = document["gate"]
    assert gate["stop_count"] == 1
    (stop,) = gate["stops"]
    assert stop["code"] == "JOINT_STATE_STALE"
    assert 1.0 < stop["t_s"] < 1.6
    # Pictures in the meantime have no joint state of their moment.
    assert document["synchronisation"]["skipped"]["JOINT_STATE_STALE"] >= 8


def live_bag(
    path: Path,
    chosen: int = 3,
    *,
    seed: int = 5,
    planner: str = "scored",
    without: tuple[int, ...] = (),
) -> Path:
    """A bag as if a live planner had taken candidate ``chosen`` every 0.5 s from 1 s on; the
    observations with the numbers ``without`` were lost.
    """
    messages = pusht_messages(5.0, command_hz=0.0, observations=True)
    seen = [item for item in messages if item[0] == "/observation"]
    lost = [seen[number] for number in without]
    # By identity: messages with arrays do not compare.
    messages = [item for item in messages if not any(item is other for other in lost)]
    robot = stand_ins()
    executing = 0
    for cycle in range(1, 7):
        time = START + NS * (1 + cycle) // 2
        index = (time - START) * 10 // NS
        where = np.array(seen[index][2].state.position)
        ahead = [
            Observation(time, {}, where, np.zeros(2)),
            Observation(time, {}, where, np.zeros(2)),
        ]
        assert robot.policy is not None
        proposal = robot.policy.propose(ahead, 4, 0, seed + cycle, "predict_chunk")
        arrival = time + NS // 5
        report = plan_report(
            time,
            cycle,
            proposal.candidates,
            chosen=chosen,
            planner=planner,
            seed=seed + cycle,
            arrival=stamp(arrival),
            executing=executing,
            propose_latency=duration(0.05),
        )
        messages.append(("/plan_report", arrival, report))
        actions = proposal.candidates[chosen].astype(np.float64)
        approved = chunk(time, actions, cycle)
        messages.append(("/action_chunk/approved", arrival + 1000, approved))
        executing = cycle
    return write_messages(path, sorted(messages, key=lambda item: item[1]))


def test_recorded_timing_reproduces_the_live_choice(tmp_path: Path) -> None:
    policy = Fan()
    document = replay(live_bag(tmp_path / "bag"), policy=policy)
    assert document["reproduction"] == {"cycles": 6, "same": 6, "differences": []}
    assert policy.seeds == [6, 7, 8, 9, 10, 11]
    assert [window[-1] for window in policy.windows] == [
        START + NS * (1 + cycle) // 2 for cycle in range(1, 7)
    ]
    assert document["latency"]["plans"] == 6
    assert document["latency"]["stages"]["propose"]["p50"] == pytest.approx(50.0, rel=0.01)
    assert document["policy"]["actions_source"] == "approved"


def test_every_difference_from_the_live_choice_has_a_cause(tmp_path: Path) -> None:
    other = replay(live_bag(tmp_path / "other", chosen=1))["reproduction"]
    assert (other["cycles"], other["same"]) == (6, 0)
    # What these reports hold was not put where it would take effect.
    assert {item["cause"] for item in other["differences"]} == {"CANDIDATES"}
    assert other["differences"][0]["recorded"] == 1
    assert other["differences"][0]["replayed"] == 3
    lost = replay(live_bag(tmp_path / "lost", without=(15,)))["reproduction"]
    causes = {item["cycle"]: item["cause"] for item in lost["differences"]}
    assert causes == {2: "OBSERVATION_MISSING"}
    window = replay(live_bag(tmp_path / "window", without=(19,)))["reproduction"]
    assert {i["cycle"]: i["cause"] for i in window["differences"]} == {3: "WINDOW_INCOMPLETE"}


def test_the_cause_of_a_difference_is_the_first_that_there_is() -> None:
    def cycle(candidates: np.ndarray, costs: list[float], chosen: int | None = 1) -> Cycle:
        seen = Observation(START, {}, np.zeros(2), np.zeros(2))
        trace = Trace(1, "scored", seen, 0.0, 0.0)
        trace.candidates, trace.costs = candidates, np.array(costs, np.float32)
        trace.choice = None if chosen is None else Choice(chosen, costs[chosen], 0.0)
        if chosen is None:
            trace.error = WorldForgeError(ErrorCode.NO_REACHABLE_CANDIDATE, "none")
        return Cycle(trace, None, (), None)

    same = np.zeros((2, 3, 2), np.float32)
    live = LivePlan(1, "OK", "scored", 6, START, START, 0, START, 1, 0, np.array([1.0, 2.0]), same)

    def cause(found: Cycle, missing: bool = False) -> str | None:
        difference = compare(live, found, missing)
        return None if difference is None else difference.cause

    assert cause(cycle(same, [1.0, 2.0], 0)) is None
    assert cause(cycle(same, [1.0, 2.0])) == "CHOICE"
    assert cause(cycle(same, [2.5, 2.0])) == "COSTS"
    assert cause(cycle(same + 1e-3, [2.5, 2.0])) == "CANDIDATES"
    assert cause(cycle(same + 1e-3, [2.5, 2.0], None)) == "OUTCOME NO_REACHABLE_CANDIDATE"
    assert cause(cycle(same + 1e-3, [2.5, 2.0]), missing=True) == "EXECUTING_MISSING"


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, seed=4),
        replace(SETTINGS, timing="fixed"),
        replace(SETTINGS, planner="first"),
    ],
)
def test_another_planner_is_not_compared_with_the_live_one(
    tmp_path: Path, settings: ReplaySettings
) -> None:
    document = replay_bag(live_bag(tmp_path / "bag"), settings, stand_ins())
    assert document["reproduction"] is None
    assert document["cycles"]["started"] >= 6


def test_a_bag_without_a_goal_says_so_and_takes_one(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=3.0, goal=False)
    document = replay(bag)
    assert document["cycles"]["outcomes"] == {"GOAL_MISSING": document["cycles"]["started"]}
    from PIL import Image

    Image.fromarray(picture(0.0)).save(tmp_path / "goal.png")
    given = replay(bag, replace(SETTINGS, goal=str(tmp_path / "goal.png")))
    assert set(given["cycles"]["outcomes"]) == {"OK"}
    with pytest.raises(WorldForgeError, match="has /goal_image"):
        replay(
            write_bag(tmp_path / "goal", seconds=1.0),
            replace(SETTINGS, goal=str(tmp_path / "goal.png")),
        )


def test_the_policy_begins_anew_with_another_goal(tmp_path: Path) -> None:
    policy = Fan()
    time = START + 2 * NS
    again = ("/goal_image", time, image_message(picture(0.0), time))
    other = ("/goal_image", time + NS, image_message(picture(2.0), time + NS))
    replay(write_bag(tmp_path / "bag", seconds=4.0, extra=[again, other]), policy=policy)
    assert policy.resets == 2


def test_receive_times_of_another_clock_change_nothing(tmp_path: Path) -> None:
    plain_bag = write_bag(tmp_path / "a" / "bag", seconds=3.0, latency=0.0, command_hz=0.0)
    skewed = write_bag(tmp_path / "b" / "bag", seconds=3.0, latency=500.0, command_hz=0.0)
    one, other = replay(plain_bag), replay(skewed)
    assert [p["code"] for p in other["bag"]["problems"]] == ["STAMP_INVALID"]
    assert "500.000 s" in other["bag"]["problems"][0]["message"]
    for name in ("cycles", "policy", "scores", "gate"):
        assert one[name] == other[name], name


def test_time_that_is_set_back_begins_anew(tmp_path: Path) -> None:
    """Two runs of a simulator in one bag, whose time begins twice."""
    later = 60 * NS
    first = pusht_messages(3.0, start=START + later)
    second = pusht_messages(3.0, start=START)
    # Received one after the other, in wall time.
    joined = [(topic, index, message) for index, (topic, _, message) in enumerate(first + second)]
    spaced = [(topic, START + 900 * NS + i * 4_000_000, m) for topic, i, m in joined]
    document = replay(write_messages(tmp_path / "bag", spaced))
    single = replay(write_messages(tmp_path / "one", pusht_messages(3.0)))
    assert document["cycles"]["started"] == 2 * single["cycles"]["started"]
    assert document["cycles"]["outcomes"] == {"OK": document["cycles"]["started"]}


def test_a_gap_of_ten_hours_is_a_gap_and_not_ten_hours_of_work(tmp_path: Path) -> None:
    gap = 36_000 * NS
    messages = [*pusht_messages(2.0), *pusht_messages(2.0, start=START + gap)]
    document = replay(write_messages(tmp_path / "bag", messages))
    assert document["bag"]["duration_s"] > 36_000
    assert document["cycles"]["started"] == 8
    assert "BAG_GAP" in {problem["code"] for problem in document["health"]["problems"]}
    assert document["gate"]["stop_count"] == 1


def test_a_bag_that_was_cut_off_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = write_bag(tmp_path / "whole", seconds=6.0)
    cut = write_bag(tmp_path / "cut", seconds=6.0)
    file = data_file(cut)
    # A chunk of this writer has a MiB; what was cut off is the second one.
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    document = replay(cut)
    assert not document["bag"]["complete"]
    assert document["bag"]["problems"]
    assert 0 < document["cycles"]["started"] < replay(whole)["cycles"]["started"]


def test_messages_that_cannot_be_read_cost_themselves_only(tmp_path: Path) -> None:
    whole = cdr(joint_state(START, np.zeros(2), np.zeros(2)))
    broken = ("sensor_msgs/msg/JointState", whole[:20])
    small = image_message(picture(1.0, 64, 64), START + NS + 1)
    extra = [
        ("/joint_states", START + NS, broken),
        ("/camera/top/image_raw", START + NS + 3_000_000, small),
    ]
    document = replay(write_bag(tmp_path / "bag", seconds=3.0, extra=extra))
    assert document["cycles"]["outcomes"] == {"OK": 6}
    assert document["synchronisation"]["skipped"] == {"IMAGE_SIZE_MISMATCH": 1}
    assert "MESSAGE_MALFORMED" in {problem["code"] for problem in document["bag"]["problems"]}


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", seconds=1.0, drop=("/camera/top/image_raw",))
    with pytest.raises(WorldForgeError) as caught:
        replay(bag)
    assert caught.value.code is ErrorCode.TOPIC_MISSING
    assert "camera/top/image_raw" in caught.value.message
    assert "/joint_states (sensor_msgs/msg/JointState, 100)" in caught.value.message
    with pytest.raises(WorldForgeError, match="--timing fixed"):
        replay(write_bag(tmp_path / "timed", seconds=1.0), replace(SETTINGS, timing="recorded"))


def test_progress_reaches_the_end_of_the_bag(tmp_path: Path) -> None:
    told: list[float] = []
    bag = write_bag(tmp_path / "bag", seconds=2.0)
    replay_bag(bag, SETTINGS, stand_ins(), 0, told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.99, abs=0.02)


def test_the_drift_horizon_cuts_what_is_scored(tmp_path: Path) -> None:
    """Of ten actions only the first block of five is believed: the best is 5 mm ahead, not 10."""
    bag = write_messages(tmp_path / "bag", at_rest(3.0))
    document = replay_bag(bag, SETTINGS, stand_ins(), 1)
    assert document["scores"]["margin"]["mean"] == pytest.approx(5.0, abs=1e-3)
