"""ALOHA's demonstrations as training data, the reader's data, one short run of each training; the
evaluation of its task in lockstep.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MUJOCO_GL", "egl")
pytest.importorskip("gym_aloha", reason="gym-aloha is missing: set up with make setup")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.lockstep import Settings, load_models, make_world, run_episode
from worldforge_ros.observation import Observation
from worldforge_ros.simulation.aloha import AlohaSimulation
from worldforge_ros.training import aloha_policy, aloha_reader
from worldforge_ros.training.aloha_demos import AlohaDemonstration, demonstrate
from worldforge_ros.training.aloha_expert import Expert
from worldforge_ros.training.dataset import Episode, episode_path, save_episode

pytestmark = pytest.mark.timeout(300)

ALOHA = load_embodiment("aloha")


def episode(seed: int, solved: bool, steps: int = 30) -> AlohaDemonstration:
    """Joint j of step t is at t / 100 + j, what is wanted 1 further."""
    joints = np.arange(steps, dtype=np.float32)[:, None] / 100 + np.arange(14, dtype=np.float32)
    cube = np.zeros((steps, 7), np.float32)
    cube[-1, 2] = 0.2 if solved else 0.02
    return AlohaDemonstration(
        position=joints,
        velocity=np.zeros_like(joints),
        action=joints,
        label=joints + 1.0,
        state=np.zeros((steps, 61), np.float32),
        cube=cube,
        reward=np.full(steps, 4.0 if solved else 2.0, np.float32),
        seed=seed,
        kind="demo",
    )


def test_chunks_by_hand(tmp_path: Path) -> None:
    paths = [episode_path(tmp_path, "demo", seed) for seed in (1, 2, 3)]
    for path, solved, steps in zip(paths, (True, False, True), (60, 60, 20), strict=True):
        save_episode(episode(1, solved, steps), path)
    data = aloha_policy.load_demonstrations(paths, ALOHA)
    assert len(data) == 80, "the one that failed is left out"
    chunks = data.chunks(np.array([0, 55, 60]))
    assert chunks.shape == (3, 50, 14)
    np.testing.assert_allclose(chunks[0, :, 0], 1.0 + np.arange(50) / 100, atol=1e-6)
    # After the end of an episode: to stay, whatever follows in the array.
    np.testing.assert_allclose(chunks[1, :, 0], 1.0 + np.minimum(55 + np.arange(50), 59) / 100)
    np.testing.assert_allclose(chunks[2, :, 0], 1.0 + np.minimum(np.arange(50), 19) / 100)
    # Joint 6 is the left gripper: 0 at 18.44 mm, 1 at 58 mm.
    gripper = (np.array([7.0]) - 0.01844) / 0.03956
    np.testing.assert_allclose(chunks[0, 0, 6], gripper[0], rtol=1e-5)
    np.testing.assert_allclose(data.state[0, 6], (6.0 - 0.01844) / 0.03956, rtol=1e-5)

    table = aloha_policy.statistics(data)
    assert float(table["observation.environment_state"]["std"].min()) == pytest.approx(0.02)

    with pytest.raises(WorldForgeError) as caught:
        aloha_policy.load_demonstrations(paths[1:2], ALOHA)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_short_runs_write_a_reader_and_a_policy_that_load(tmp_path: Path) -> None:
    from worldforge_ros.policies.lerobot import load_lerobot_policy

    world, expert = AlohaSimulation(), Expert()
    for seed in (100_000, 100_001):
        demo = demonstrate(world, expert, seed)
        save_episode(demo, episode_path(tmp_path, "demo", seed))
    rng = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    for seed in range(2):
        joints = np.zeros((20, 14), np.float32)
        state = np.zeros((20, 61), np.float32)
        state[:, 16:19] = rng.uniform((0.0, 0.4, 0.02), (0.2, 0.6, 0.021), (20, 3))
        state[15:, 18] = 0.2
        recorded = Episode(
            images=rng.integers(0, 256, (4, 96, 128, 3), dtype=np.uint8),
            position=joints,
            velocity=joints,
            action=joints,
            label=joints,
            state=state,
            coverage=np.zeros(20, np.float32),
            seed=seed,
            kind="play",
            image_every=5,
        )
        save_episode(recorded, episode_path(pictures, "play", seed))
    images, places = aloha_reader.load_pictures([episode_path(pictures, "play", 1)])
    # The last one shows the cube in the air.
    np.testing.assert_array_equal(images, recorded.images[:3])
    np.testing.assert_array_equal(places, recorded.state[[0, 5, 10], 16:18])

    parser = argparse.ArgumentParser()
    aloha_reader.add_arguments(parser)
    options = ["--demos", str(pictures), "--data", str(tmp_path / "reader"), "--batch", "2"]
    assert aloha_reader.run(parser.parse_args([*options, "--steps", "2"])) == 0
    report = json.loads((tmp_path / "reader" / "reader.json").read_text())
    assert (report["pictures"], report["held_out_pictures"]) == (3, 3)

    parser = argparse.ArgumentParser()
    aloha_policy.add_arguments(parser)
    options = ["--demos", str(tmp_path), "--reader", str(tmp_path / "reader/reader.safetensors")]
    options += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "policy")]
    options += ["--batch", "4", "--log-every", "2", "--dim-model", "16", "--latent", "4"]
    assert aloha_policy.run(parser.parse_args([*options, "--steps", "2"])) == 0
    assert aloha_policy.run(parser.parse_args([*options, "--steps", "4", "--resume"])) == 0
    rows = [json.loads(line) for line in (tmp_path / "work" / "policy_training.jsonl").open()]
    assert [row["step"] for row in rows] == [2, 4]

    policy = load_lerobot_policy(tmp_path / "policy", ALOHA)
    assert (policy.history, policy.max_horizon) == (1, 50)
    seen = Observation(1, {"top": world.image()}, world.position, world.velocity)
    proposal = policy.propose([seen], 1, seed=0)
    assert proposal.candidates.shape == (1, 50, 14)
    assert proposal.step == 0.02
    # Hardly trained, it proposes about the mean of its data, in radians and metres.
    assert np.abs(proposal.candidates[..., [6, 13]]).max() < 0.2


def test_an_episode_of_the_transfer_in_lockstep() -> None:
    settings = Settings(protocol="transfer", embodiment="aloha", steps=20)
    models = load_models(settings, ["still"])
    world = make_world(settings)
    result = run_episode("still", 2000, settings, models, world)
    assert (result.steps, result.success, result.measure) == (20, False, 0.0)
    assert (result.initial_coverage, result.max_coverage) == (0.0, 0.0)
    assert isinstance(world, AlohaSimulation)
    place = np.array([-0.09929, 0.500401, 0.242912])
    distance = 1000.0 * np.linalg.norm(world.cube[:3] - place)
    assert result.position_error_mm == pytest.approx(distance, abs=0.1)
    assert result.angle_error == pytest.approx(0.0, abs=0.05)
    with pytest.raises(WorldForgeError) as caught:
        run_episode("oracle", 2000, settings, models, world)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
