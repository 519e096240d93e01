"""Demonstrations: the planner's private world, the recorder and the files."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="the package gym-pusht is not installed")

from worldforge_ros.bridges.tracking import expected_positions
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.training import dataset, demos


def test_pusher_motion_is_the_simulator_s() -> None:
    simulation = PushTSimulation(image_size=16)
    simulation.reset(state=[100, 100, 350, 350, 0.3])
    rng = np.random.default_rng(0)
    setpoints = rng.uniform(0.05, 0.2, (1, 6, 2))
    positions, _ = demos.pusher_motion(simulation.position, simulation.velocity, setpoints)
    for index in range(6):
        simulation.advance(setpoints[0, index], demos.TICKS)
        np.testing.assert_allclose(positions[0, index], simulation.position, atol=1e-9)


def test_rollout_foresees_what_advance_does() -> None:
    simulation, clone = PushTSimulation(image_size=16), PushTSimulation(image_size=16)
    start = [256, 100, 256, 200, 0.4]
    simulation.set_state(start)
    setpoints = np.linspace([0.256, 0.12], [0.27, 0.33], 8)[None]
    _, speeds = demos.pusher_motion(simulation.position, simulation.velocity, setpoints)
    poses = clone.rollout(start, speeds, every=demos.TICKS)
    for index in range(8):
        simulation.advance(setpoints[0, index], demos.TICKS)
        np.testing.assert_allclose(poses[0, index], simulation.state[2:], atol=1e-6)
    assert np.abs(poses[0, -1, :2] - start[2:4]).max() > 20, "the pusher must have moved the block"


def test_rollout_refuses_a_period_that_does_not_divide() -> None:
    with pytest.raises(WorldForgeError, match="every is 3; expected a divisor of 10"):
        PushTSimulation(image_size=16).rollout([100, 100, 300, 300, 0], np.zeros((1, 10, 2)), 3)


def test_demonstration_solves_an_episode_within_the_limits() -> None:
    episode = demos.demonstrate(100_003)
    assert episode.coverage.max() > 0.95
    low, high = demos.REACH
    assert episode.action.min() >= low - 1e-6
    assert episode.action.max() <= high + 1e-6
    speed = np.abs(np.diff(episode.action, axis=0)).max() / 0.1
    assert speed < 1.0, "the gate's limit"
    assert (episode.action[-8:] == episode.action[-1]).all(), "it holds at the end"


def test_demonstrations_are_deterministic() -> None:
    first, second = (demos.demonstrate(100_002, max_steps=12) for _ in range(2))
    assert (first.action == second.action).all()
    assert (first.images == second.images).all()
    other = demos.demonstrate(100_003, max_steps=12)
    assert first.action.shape != other.action.shape or (first.action != other.action).any()


def test_recorded_positions_are_those_at_the_start_of_a_step() -> None:
    episode = demos.play(200_001, steps=25)
    expected = expected_positions(
        load_embodiment("pusht").tracking,
        episode.position[0].astype(np.float64),
        episode.velocity[0].astype(np.float64),
        episode.action.astype(np.float64),
        0.1,
    )
    np.testing.assert_allclose(episode.position, expected, atol=1e-5)


def test_files_round_trip_resume_and_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    demos.add_arguments(parser)
    args = parser.parse_args(
        ["--kind", "play", "--episodes", "2", "--start-seed", "200000", "--out", str(tmp_path)]
    )
    assert demos.run(args) == 0
    paths = dataset.list_episodes(tmp_path)
    assert [path.name for path in paths] == ["play_200000.npz", "play_200001.npz"]
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert demos.run(args) == 0
    assert "0 recorded, 0 solved, 2 were there" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in paths] == stamps

    held = dataset.load_episodes(paths, image_cache=tmp_path / "images.raw")
    assert held.offsets.tolist() == [0, 100, 200]
    assert (held.episode(1).images == demos.play(200_001).images).all()
    starts = held.windows(16, stride=20)
    assert starts.tolist() == [0, 20, 40, 60, 80, 100, 120, 140, 160, 180]
    assert held.windows(101).tolist() == []


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = dataset.episode_path(tmp_path, "demo", 7)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(WorldForgeError, match=r"demo_000007\.npz is not a recorded episode"):
        dataset.load_episode(path)
    with pytest.raises(WorldForgeError, match="without episodes"):
        dataset.list_episodes(tmp_path / "nowhere")
