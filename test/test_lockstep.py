"""Lockstep episodes with stand-in models, and the statistics of an evaluation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation import command, loop, results
from worldforge_ros.evaluation.lockstep import (
    Compared,
    EpisodeResult,
    Settings,
    choosing,
    play,
    run_episode,
)
from worldforge_ros.evaluation.loop import run_loop
from worldforge_ros.evaluation.planners import Models, Planner, TrueOutcome
from worldforge_ros.evaluation.protocols import PROTOCOLS, Goal, pose_errors
from worldforge_ros.evaluation.runner import Finished, Record, describe
from worldforge_ros.evaluation.seams import jumps
from worldforge_ros.evaluation.statistics import bootstrap_mean, ranks, spearman
from worldforge_ros.observation import Observation
from worldforge_ros.planning.seam import SEAMS, SeamSettings
from worldforge_ros.planning.search import SearchSettings, search_bridge
from worldforge_ros.policies.base import Proposal
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import SafetyGate
from worldforge_ros.scorers.base import Scores

pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")

from worldforge_ros.simulation.pusht import PushTSimulation


class Wanderer:
    """A policy whose candidates are short straight moves; remembers what it was asked."""

    model_id = "wanderer"
    history = 2
    max_horizon = 17

    def __init__(self, jump: float = 0.02, first: float | None = None) -> None:
        self.jump = jump
        self.first = jump if first is None else first
        self.calls: list[tuple[list[int], int, int, int]] = []

    def propose(
        self, history: Sequence[Observation], num_candidates: int, horizon: int = 0, seed: int = -1
    ) -> Proposal:
        self.calls.append(([item.stamp for item in history], num_candidates, horizon, seed))
        rng = np.random.default_rng(seed)
        angle = rng.uniform(-math.pi, math.pi, num_candidates)
        ray = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        reach = (self.first + self.jump * np.arange(horizon))[None, :, None]
        moves = history[-1].position + reach * ray[:, None]
        return Proposal(
            candidates=moves.clip(0.0, 0.512).astype(np.float32),
            joint_names=("pusher_x", "pusher_y"),
            step=0.1,
            metadata={},
        )


class LastIsBest:
    """A world model that likes the last candidate; remembers the histories it saw."""

    model_id = "last"
    block = 5
    bridge = search_bridge(load_embodiment("pusht"), (0.02, 0.02))

    def __init__(self, history: int = 1) -> None:
        self.history = history
        self.seen: list[tuple[list[int], Any]] = []

    def score(
        self,
        history: Sequence[Observation],
        goal: Any,
        candidates: Any,
        action_history: Any = None,
        objective: str = "",
    ) -> Scores:
        assert goal.shape == (96, 96, 3)
        self.seen.append(([item.stamp for item in history], action_history))
        costs = -np.arange(len(candidates), dtype=np.float32)
        return Scores(costs=costs, best_index=len(costs) - 1, metadata={})


@pytest.fixture(scope="module")
def pusht() -> Embodiment:
    return load_embodiment("pusht")


@pytest.fixture(scope="module")
def world() -> PushTSimulation:
    return PushTSimulation()


def settings(**changes: Any) -> Settings:
    return dataclasses.replace(Settings(candidates=4, steps=20, execute_steps=6), **changes)


def test_standing_still_changes_nothing(pusht: Embodiment, world: PushTSimulation) -> None:
    result = run_episode("still", 9000, settings(), Models(pusht), world)
    assert result.steps == 20
    assert result.decisions == 0
    assert result.max_coverage == result.initial_coverage == result.final_coverage
    assert not result.success


def test_windows_horizon_and_replanning(pusht: Embodiment, world: PushTSimulation) -> None:
    policy = Wanderer()
    result = run_episode("first", 9000, settings(), Models(pusht, policy), world)
    # The second frame is the first that has a predecessor; then every sixth step: 1, 7, 13, 19.
    assert result.decisions == 4
    newest = [stamps[-1] for stamps, *_ in policy.calls]
    assert newest == [round(1e8) * (step + 1) for step in (1, 7, 13, 19)]
    assert all(stamps[1] - stamps[0] == 100_000_000 for stamps, *_ in policy.calls)
    assert {(count, horizon) for _, count, horizon, _ in policy.calls} == {(1, 15)}
    assert len({seed for *_, seed in policy.calls}) == 4
    assert result.rejected == {}


def test_an_episode_is_deterministic(pusht: Embodiment, world: PushTSimulation) -> None:
    for planner in ("random", "oracle"):
        first, second = (
            run_episode(planner, 9001, settings(), Models(pusht, Wanderer()), world)
            for _ in range(2)
        )
        same = {"ms_per_decision": 0.0, "spearman": 0.0}
        assert dataclasses.replace(first, **same) == dataclasses.replace(second, **same)


def test_scored_follows_the_world_model(pusht: Embodiment, world: PushTSimulation) -> None:
    policy, scorer = Wanderer(), LastIsBest()
    run_episode("scored", 9000, settings(steps=8), Models(pusht, policy, scorer), world)
    ended = world.position
    _, count, _, seed = policy.calls[0]
    world.reset(seed=9000)
    start = world.position
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-math.pi, math.pi, count)[-1]
    moved = ended - start
    # Seven steps of the first chosen chunk: the pusher went where the last candidate pointed.
    assert math.cos(math.atan2(moved[1], moved[0]) - angle) > 0.9


def test_a_world_model_that_looks_back_gets_frames_and_set_points(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    policy, scorer = Wanderer(), LastIsBest(history=2)
    result = run_episode("scored", 9000, settings(), Models(pusht, policy, scorer), world)
    # Frames one block of 0.5 s apart: the first decision waits until step 5.
    stamps, past = scorer.seen[0]
    assert stamps == [100_000_000, 600_000_000]
    assert past.shape == (5, 2)
    assert result.decisions == 3


class RightIsBest(LastIsBest):
    """A world model that wants the pusher on the right."""

    model_id = "right"

    def score(self, history: Any, goal: Any, candidates: Any, *_: Any) -> Scores:
        costs = -np.asarray(candidates)[:, -1, 0].astype(np.float32)
        return Scores(costs=costs, best_index=int(np.argmin(costs)), metadata={})


SEARCH = SearchSettings(samples=20, iterations=3, elites=4, blocks=2)


@pytest.mark.parametrize("planner", ["cem", "cem+policy"])
@pytest.mark.parametrize("protocol", ["task", "lewm"])
def test_a_search_moves_the_robot_where_the_world_model_likes_it(
    pusht: Embodiment, world: PushTSimulation, planner: str, protocol: str
) -> None:
    models = Models(pusht, Wanderer(), RightIsBest())
    chosen = settings(
        protocol=protocol, search=SEARCH, refine=SEARCH, search_execute_steps=10, steps=15
    )
    PROTOCOLS[protocol].start(world, 9005)
    start = world.position[0]
    results = []
    for _ in range(2):
        results.append(run_episode(planner, 9005, chosen, models, world))
        # A search from the policy's candidates stays near them.
        assert world.position[0] > start + (0.01 if planner == "cem" else 0.0)
    same = {"ms_per_decision": 0.0, "spearman": 0.0}
    assert dataclasses.replace(results[0], **same) == dataclasses.replace(results[1], **same)
    first = results[0]
    assert (first.rejected_chunks, first.stopped) == (0, "")
    # cem needs one frame and executes 10 steps of a plan, the policy needs two frames and 6.
    assert first.decisions == (2 if planner == "cem" else 3)


def test_a_seam_begins_at_a_hold_and_smooths_what_follows(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    found, rough = {}, {}
    for mode in SEAMS:
        chosen = settings(latency_steps=2, seam=SeamSettings(mode))
        models = Models(pusht, Wanderer(jump=0.005))
        _, run = play("first", 9000, chosen, models, world)
        assert (run.rejected_chunks, run.unreachable, run.stopped) == (0, 0, "")
        found[mode] = [command.position for command in run.commands]
        starts = [command.sequence for command in run.commands]
        rough[mode] = np.abs(jumps(run.commands, 0.1)["velocity"].across).max()
    first, second = starts.index(1), starts.index(2)
    np.testing.assert_array_equal(found["temporal_ensemble"][:second], found["switch"][:second])
    # A blend begins at the hold: 5/32 of the way to the first action.
    held, began = found["switch"][first - 1], found["switch"][first]
    np.testing.assert_allclose(found["blend"][first], held + 5 / 32 * (began - held), atol=1e-7)
    for mode in ("blend", "temporal_ensemble"):
        assert rough[mode] < rough["switch"]


def test_a_world_model_that_prefers_to_hold_holds(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    models = Models(pusht, Wanderer(), LastIsBest())
    _, run = play("scored", 9000, settings(extra_sources=("hold",)), models, world)
    assert {decision.chunk.source for decision in run.decisions} == {"hold"}
    assert all(decision.reachable.shape == (5,) for decision in run.decisions)
    world.reset(seed=9000)
    start = world.position
    for commanded in run.commands:
        np.testing.assert_allclose(commanded.position, start, atol=1e-7)


def test_a_tail_goes_on_with_the_executing_chunk(pusht: Embodiment, world: PushTSimulation) -> None:
    models = Models(pusht, Wanderer(jump=0.004), LastIsBest())
    chosen = settings(steps=22, extra_sources=("tail",))
    _, run = play("scored", 9000, chosen, models, world)
    assert [d.chunk.source for d in run.decisions] == ["policy", "tail", "tail", "tail"]
    first = run.decisions[0].chunk.actions
    executed = np.array([command.position for command in run.commands if command.sequence])
    # Six actions of each chunk, together the fifteen of the first one and then its last.
    np.testing.assert_allclose(executed[:15], first, atol=1e-7)
    np.testing.assert_allclose(executed[15:], np.tile(first[-1], (6, 1)), atol=1e-7)


@pytest.mark.parametrize("names", [("supplied",), ("stay",), ("hold", "hold")])
def test_sources_that_an_episode_has_not_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(WorldForgeError, match="extra_sources") as caught:
        settings(extra_sources=names)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_the_command_takes_seam_and_sources() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command._settings(parser.parse_args([])) == Settings()
    options = ("--seam", "blend", "--seam-duration", "0.2", "--extra-sources", "hold", "tail")
    found = command._settings(parser.parse_args(list(options)))
    assert found.seam == SeamSettings("blend", duration=0.2)
    assert found.extra_sources == ("hold", "tail")
    assert describe(found, ("still",))["seam"]["mode"] == "blend"
    with pytest.raises(WorldForgeError, match="seam duration") as caught:
        command._settings(parser.parse_args(["--seam-duration", "nan"]))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_the_same_loop_runs_another_robot() -> None:
    pytest.importorskip("gym_aloha", reason="the package gym-aloha is not installed")
    from worldforge_ros.evaluation.aloha import AlohaEpisode
    from worldforge_ros.simulation.aloha import AlohaSimulation

    aloha = load_embodiment("aloha")
    place = AlohaSimulation().position

    class TurnWaist:
        """Turns the left waist by 0.002 rad a step, from where it is."""

        model_id = "waist"
        history = 1
        max_horizon = 20

        def propose(self, history: Any, count: int, horizon: int = 0, seed: int = -1) -> Proposal:
            moves = np.tile(history[-1].position, (count, horizon, 1))
            moves[..., 0] += 0.002 * np.arange(1, horizon + 1)
            return Proposal(moves.astype(np.float32), aloha.joint_names, 0.02, {})

    class Blind(AlohaEpisode):
        """No picture: this policy looks at none, and a renderer may not be there."""

        def images(self) -> dict[str, Any]:
            return {}

    models = Models(aloha, TurnWaist())
    chosen = Settings(embodiment="aloha", latency_steps=4, seam=SeamSettings("blend"))
    episode = Blind(AlohaSimulation(), 0, aloha)
    planner = Planner("first", choosing(chosen), models, None, 0)
    run = run_loop(episode, planner, models, 40, execute_steps=10, latency_steps=4)
    assert (run.steps, run.stopped, run.rejected_chunks) == (40, "", 0)
    assert len(run.decisions) == 4
    assert episode.position[0] > place[0] + 0.01
    assert not run.success


def test_no_more_steps_are_executed_than_a_plan_has(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    models = Models(pusht, Wanderer(), RightIsBest())
    with pytest.raises(WorldForgeError, match="at most the 10 actions") as caught:
        run_episode("cem", 9005, settings(search=SEARCH), models, world)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_stop_of_the_gate_ends_the_episode_and_is_told(
    pusht: Embodiment, world: PushTSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SafetyGate.tick

    def tick(self: SafetyGate, stamp: int, now: float) -> Any:
        if now > 0.55:
            self.stop("a test says so", now)
        return real(self, stamp, now)

    monkeypatch.setattr(SafetyGate, "tick", tick)
    result = run_episode("first", 9000, settings(), Models(pusht, Wanderer()), world)
    assert "a test says so" in result.stopped
    assert result.steps == 6
    assert not result.success


def test_a_decision_takes_effect_after_its_latency(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    policy = Wanderer()
    slow = settings(steps=4, latency_steps=3)
    result = run_episode("first", 9000, slow, Models(pusht, policy), world)
    assert (result.decisions, result.rejected_chunks) == (1, 0)
    ended = world.position
    world.reset(seed=9000)
    start = world.position
    # Decided at step 1 on two observations, executed from step 4 on, when the episode is over.
    np.testing.assert_allclose(ended, start, atol=1e-9)
    run_episode("first", 9000, settings(steps=6, latency_steps=3), Models(pusht, policy), world)
    assert np.abs(world.position - start).max() > 0.001


def test_a_refused_chunk_is_counted_and_not_executed(
    pusht: Embodiment, world: PushTSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(robot: Embodiment) -> SafetyGate:
        return SafetyGate(robot, GateConfig(max_horizon=1))

    monkeypatch.setattr(loop, "SafetyGate", strict)
    result = run_episode("first", 9000, settings(steps=3), Models(pusht, Wanderer()), world)
    # Refused at steps 1 and 2: nothing is executed, so the next step tries again.
    assert (result.decisions, result.rejected_chunks) == (2, 2)
    assert result.rejected == {"HORIZON_INVALID": 2}
    ended = world.position
    world.reset(seed=9000)
    np.testing.assert_allclose(ended, world.position, atol=1e-9)


def test_a_candidate_out_of_reach_is_not_even_proposed_to_the_gate(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    for policy in (Wanderer(jump=0.3), Wanderer(jump=0.3, first=0.0)):
        result = run_episode("first", 9000, settings(steps=3), Models(pusht, policy), world)
        assert (result.decisions, result.rejected_chunks) == (0, 0)
    ended = world.position
    world.reset(seed=9000)
    np.testing.assert_allclose(ended, world.position, atol=1e-9)


def test_the_true_outcome_prefers_the_push_towards_the_goal(world: PushTSimulation) -> None:
    x, y, angle = world.goal_pose
    world.reset(seed=0)
    world.set_state([x - 150.0, y, x - 40.0, y, angle])
    place = world.position
    push = place + np.linspace(0, 0.08, 15)[:, None] * (1.0, 0.0)
    away = place - np.linspace(0, 0.05, 15)[:, None] * (1.0, 0.0)
    before = world.state
    goal = Goal(world.image(), np.array([0.0, 0.0, x, y, angle]), pusher=False)
    costs = TrueOutcome(goal).costs(world, np.stack([away, push]))
    np.testing.assert_array_equal(world.state, before)
    assert costs[0] == pytest.approx(0.04, abs=1e-6)
    assert costs[1] < costs[0]


def test_oracle_takes_what_ends_best(pusht: Embodiment, world: PushTSimulation) -> None:
    class TwoWays(Wanderer):
        def propose(self, history: Any, *_: Any, **__: Any) -> Proposal:
            place = history[-1].position
            ramp = np.linspace(0, 0.08, 15)[:, None]
            moves = np.stack([place - ramp * (0.5, 0.0), place + ramp * (1.0, 0.0)])
            return Proposal(moves.astype(np.float32), ("pusher_x", "pusher_y"), 0.1, {})

    x, y, angle = world.goal_pose

    class Prepared:
        """The world, but every episode starts left of a block that is left of the goal."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world, name)

        def reset(self, seed: int | None = None) -> None:
            world.reset(seed=seed)
            world.set_state([x - 150.0, y, x - 40.0, y, angle])

    models = Models(pusht, TwoWays())
    result = run_episode("oracle", 0, settings(steps=26, candidates=2), models, Prepared())  # type: ignore[arg-type]
    assert world.state[2] > x - 40.0 + 5.0
    assert result.max_coverage > result.initial_coverage


def test_a_horizon_shorter_than_a_block_is_refused(
    pusht: Embodiment, world: PushTSimulation
) -> None:
    policy = Wanderer()
    policy.max_horizon = 4
    with pytest.raises(WorldForgeError) as caught:
        run_episode("first", 0, settings(), Models(pusht, policy), world)
    assert caught.value.code is ErrorCode.HORIZON_NOT_WHOLE_BLOCKS


def episode(planner: str, seed: int, coverage: float, **changes: Any) -> EpisodeResult:
    result = EpisodeResult(
        planner=planner,
        seed=seed,
        measure=coverage,
        position_error_mm=100.0,
        angle_error=0.5,
        initial_coverage=0.1,
        max_coverage=coverage,
        final_coverage=coverage,
        success=coverage > 0.95,
        steps=300,
        decisions=50,
        ms_per_decision=20.0,
        spearman=math.nan,
        rejected_chunks=0,
        rejected={},
    )
    return dataclasses.replace(result, **changes)


def test_the_summary_by_hand() -> None:
    episodes = [
        episode("scored", 3, 0.9, spearman=0.5),
        episode("scored", 4, 1.0, spearman=0.1),
        episode("scored", 5, 0.0),
        episode("first", 4, 0.6),
        episode("first", 3, 0.8),
        episode("random", 3, 0.2, ms_per_decision=40.0, rejected_chunks=2),
        episode("random", 4, 0.4),
        episode("oracle", 3, 1.0),
        episode("oracle", 4, 1.0),
    ]
    figures = results.summarise([Finished(e) for e in episodes], {"protocol": "task"}, (3, 4))
    assert figures["planners"]["first"]["mean"] == pytest.approx(0.7)
    assert figures["planners"]["first"]["ci_low"] == pytest.approx(0.6)
    assert figures["planners"]["first"]["ci_high"] == pytest.approx(0.8)
    assert figures["planners"]["scored"]["success"] == 0.5
    assert figures["planners"]["random"]["ms_per_decision"] == 30.0
    assert figures["planners"]["random"]["rejected_chunks"] == 2
    assert figures["paired"]["scored-first"]["mean"] == pytest.approx(0.25)
    assert figures["paired"]["scored-first"]["ci_low"] == pytest.approx(0.1)
    assert figures["paired"]["scored-random"]["mean"] == pytest.approx(0.65)
    # Oracle gains 0.3 over first, scored 0.25 of it.
    assert figures["recovered"] == pytest.approx(0.25 / 0.3)
    assert figures["spearman"] == pytest.approx(0.3)
    assert figures["episodes"] == 2
    assert figures["seeds"] == [3, 4]


def test_planners_that_share_no_seed_are_not_compared() -> None:
    episodes = [episode("first", 1, 0.5), episode("scored", 2, 0.9), episode("oracle", 1, 1.0)]
    figures = results.summarise([Finished(e) for e in episodes], {}, (1, 2))
    assert set(figures["paired"]) == {"oracle-first"}
    assert figures["recovered"] is None


def test_seeds_of_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldForgeError, match="below 50000"):
        evaluate("--seeds", "49999", "--episodes", "2", "--out", str(tmp_path))
    evaluate("--seeds", "49999", "--episodes", "1", "--planner", "still", "--steps", "1",
             "--out", str(tmp_path))  # fmt: skip


def evaluate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--planner", "still", "--steps", "2", "--out", str(out), "--json")
    assert evaluate(*common, str(tmp_path / "a.json"), "--seeds", "9000", "--episodes", "3") == 0
    lines = (out / "episodes.jsonl").read_text().splitlines()
    # As if it had been killed while it wrote the last of three episodes.
    (out / "episodes.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    again = tmp_path / "b.json"
    arguments = (*common, str(again), "--seeds", "9000", "--episodes", "3", "--jobs", "1")
    assert evaluate(*arguments) == 0
    assert again.read_text() == (tmp_path / "a.json").read_text()
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 3
    figures = json.loads(again.read_text())
    assert [row["seed"] for row in figures["results"]] == [9000, 9001, 9002]
    assert figures["planners"]["still"]["success"] == 0.0
    table = pyarrow.parquet.read_table(out / "episodes.parquet")
    assert table.column("seed").to_pylist() == [9000, 9001, 9002]
    assert table.column("planner").to_pylist() == ["still"] * 3
    assert (out / "planners.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(WorldForgeError, match="steps of the episodes in") as caught:
        evaluate("--planner", "still", "--steps", "3", "--out", str(out))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert (
        evaluate(
            "--planner",
            "still",
            "--steps",
            "3",
            "--episodes",
            "1",
            "--out",
            str(out),
            "--fresh",
            "--jobs",
            "1",
        )
        == 0
    )


def without_times(file: Path) -> Any:
    figures = json.loads(file.read_text())
    for row in (*figures["results"], *figures["planners"].values()):
        row["ms_per_decision"] = 0.0
    return figures


def test_jobs_and_ray_give_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the package ray is not installed")
    pytest.importorskip("lerobot", reason="the package lerobot is not installed")
    found = []
    for name, engine, jobs in (("one", "local", "1"), ("two", "local", "2"), ("ray", "ray", "2")):
        file = tmp_path / f"{name}.json"
        # The shipped policy draws its candidates, and one of them is drawn at random.
        arguments = ("--planner", "still", "random", "--seeds", "9000", "--episodes", "2")
        small = ("--steps", "8", "--candidates", "3", "--num-inference-steps", "2")
        where = ("--out", str(tmp_path / name), "--json", str(file))
        assert evaluate(*arguments, *small, *where, "--engine", engine, "--jobs", jobs) == 0
        found.append(without_times(file))
    assert found[0]["planners"]["random"]["episodes"] == 2
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_a_missing_checkpoint_is_reported(tmp_path: Path) -> None:
    arguments = ("--planner", "first", "--policy", str(tmp_path / "absent"))
    with pytest.raises(WorldForgeError) as caught:
        evaluate(*arguments, "--out", str(tmp_path / "out"))
    assert caught.value.code is ErrorCode.CHECKPOINT_MISSING


def test_planners_without_models_leave_checkpoints_out(tmp_path: Path) -> None:
    still = describe(Settings(), ("still",))
    assert "policy" not in still
    assert "world_model" not in still
    both = describe(Settings(), ("scored",))
    assert len(both["policy_sha256"]) == len(both["world_model_sha256"]) == 64
    # What was run without a world model stays valid when one is added.
    Record(tmp_path, Settings(), ("still", "first")).close()
    Record(tmp_path, Settings(), ("still", "first", "scored")).close()
    wider = dataclasses.replace(Settings(), refine=SEARCH, search=SEARCH)
    Record(tmp_path, wider, ("scored",)).close()
    Record(tmp_path, Settings(), ("cem",)).close()
    with pytest.raises(WorldForgeError, match="search of the episodes"):
        Record(tmp_path, wider, ("cem",))
    other = Settings(world_model=Settings().policy)
    with pytest.raises(WorldForgeError, match="world_model"):
        Record(tmp_path, other, ("scored",))


def test_costs_and_outcomes_survive_the_record(tmp_path: Path) -> None:
    record = Record(tmp_path, Settings(), ("still",))
    compared = Compared(np.array([1.5, np.nan], np.float32), np.array([0.1, 0.2]))
    record.add(Finished(episode("scored", 1, 0.5), (compared,)))
    record.close()
    back = Record(tmp_path, Settings(), ("still",))
    back.close()
    (finished,) = back.finished
    assert dataclasses.replace(finished.result, spearman=0.0) == episode(
        "scored", 1, 0.5, spearman=0.0
    )
    np.testing.assert_array_equal(finished.compared[0].costs, compared.costs)
    np.testing.assert_array_equal(finished.compared[0].outcomes, compared.outcomes)


def test_the_published_protocol(world: PushTSimulation) -> None:
    rules = PROTOCOLS["lewm"]
    goal = rules.start(world, 9000)
    start = world.state
    again = rules.start(world, 9000)
    np.testing.assert_array_equal(goal.state, again.state)
    np.testing.assert_array_equal(goal.image, again.image)
    assert rules.steps == 50
    assert goal.pusher
    moved = np.linalg.norm(goal.state[:4] - start[:4])
    assert 0.0 < moved < 600.0
    world.set_state(goal.state + np.array([0.0, 0.0, 12.0, 12.0, 0.3]))
    assert rules.success(world, goal)
    # 15 mm in each of two directions are more than 20 mm together; 20 degrees are pi / 9.
    world.set_state(goal.state + np.array([0.0, 15.0, 15.0, 0.0, 0.0]))
    assert not rules.success(world, goal)
    world.set_state(goal.state + np.array([0.0, 0.0, 0.0, 0.0, 0.36]))
    assert not rules.success(world, goal)


def test_angles_differ_by_at_most_half_a_turn() -> None:
    zero = np.zeros(5)
    for angle, expected in ((0.2, 0.2), (-0.2, 0.2), (2 * np.pi - 0.1, 0.1), (7 * np.pi, np.pi)):
        assert pose_errors(np.array([0, 0, 0, 0, angle]), zero)[1] == pytest.approx(expected)
    assert pose_errors(np.array([3.0, 0, 0, 4.0, 0]), zero)[0] == pytest.approx(5.0)


def test_the_bootstrap_interval_of_a_known_sample() -> None:
    interval = bootstrap_mean([0.0, 1.0] * 50)
    assert interval.mean == 0.5
    # Standard error 0.05: a 95 % interval of about 0.5 -+ 0.098.
    assert interval.low == pytest.approx(0.402, abs=0.015)
    assert interval.high == pytest.approx(0.598, abs=0.015)
    assert bootstrap_mean([0.0, 1.0] * 50) == interval
    for bad in ([], [float("nan")]):
        with pytest.raises(WorldForgeError):
            bootstrap_mean(bad)


def test_ranks_share_ties() -> None:
    assert ranks([30.0, 10.0, 20.0, 10.0]).tolist() == [4.0, 1.5, 3.0, 1.5]


def test_spearman_by_hand() -> None:
    # d = (1, -1, 0, 0): 1 - 6 * 2 / (4 * 15) = 0.8
    assert spearman([1, 2, 3, 4], [20, 10, 30, 40]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1.0)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(WorldForgeError):
        spearman([1.0], [2.0])


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True))
def test_spearman_ignores_a_monotone_change(values: list[int]) -> None:
    assert spearman(values, [math.atan(value) for value in values]) == pytest.approx(1.0)
