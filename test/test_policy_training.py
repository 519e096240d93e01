"""Training data of the policy: mirror images, windows, statistics, weight average, one short
run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.training.fitting import Average
from worldforge_ros.training.policy import (
    Demonstration,
    make_windows,
    mirror,
    statistics,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

pytestmark = pytest.mark.timeout(300)


def demonstration(count: int, solved: bool) -> Demonstration:
    steps = np.arange(count, dtype=np.float32)
    return Demonstration(
        state=np.stack([steps, 100 + steps], axis=1),
        keypoints=np.repeat(steps[:, None], 16, axis=1),
        label=np.stack([1000 + steps, 2000 + steps], axis=1),
        solved=solved,
    )


def test_a_mirrored_scene_is_what_the_simulator_shows() -> None:
    pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")
    from worldforge_ros.simulation.pusht import PushTSimulation

    simulation = PushTSimulation()
    simulation.set_state([130.0, 300.0, 220.0, 190.0, 0.7])
    state = simulation.position[None].astype(np.float32) * 1000.0
    points = simulation.keypoints().reshape(1, 16).astype(np.float32)
    coverage = simulation.coverage()
    twin = mirror(Demonstration(state=state, keypoints=points, label=state, solved=True))

    simulation.set_state(
        [512.0 - 300.0, 512.0 - 130.0, 512.0 - 190.0, 512.0 - 220.0, math.pi / 2 - 0.7]
    )
    np.testing.assert_allclose(twin.state[0] / 1000.0, simulation.position, atol=1e-6)
    np.testing.assert_allclose(twin.label[0] / 1000.0, simulation.position, atol=1e-6)
    np.testing.assert_allclose(twin.keypoints[0], simulation.keypoints().reshape(16), atol=1e-3)
    assert simulation.coverage() == pytest.approx(coverage, abs=1e-9)
    again = mirror(twin)
    np.testing.assert_allclose(again.keypoints, points, atol=1e-3)


def test_windows_by_hand() -> None:
    windows = make_windows([demonstration(20, solved=True)])
    assert len(windows) == 20
    assert windows.state.shape == (20, 2, 2)
    assert windows.state[0, :, 0].tolist() == [0.0, 0.0]
    assert windows.state[7, :, 0].tolist() == [6.0, 7.0]
    assert windows.keypoints[7, :, 5].tolist() == [6.0, 7.0]
    # Action 0 belongs to the earlier observation, action 1 to the present.
    assert windows.action[3, :, 0].tolist() == [1000.0 + k for k in range(2, 18)]
    assert windows.action[0, :3, 0].tolist() == [1000.0, 1000.0, 1001.0]
    assert windows.action[19, :, 0].tolist() == [1018.0] + [1019.0] * 15
    assert not windows.is_pad.any()


def test_what_follows_an_unsolved_episode_is_padding() -> None:
    windows = make_windows([demonstration(20, solved=False)])
    assert windows.is_pad[0].sum() == 0
    assert windows.is_pad[10].tolist() == [False] * 11 + [True] * 5
    assert windows.is_pad[19].tolist() == [False, False] + [True] * 14


def test_statistics_are_those_of_the_data() -> None:
    stats = statistics(make_windows([demonstration(20, solved=True)]))
    assert stats["observation.state"]["min"].tolist() == [0.0, 100.0]
    assert stats["observation.state"]["max"].tolist() == [19.0, 119.0]
    assert stats["action"]["max"].tolist() == [1019.0, 2019.0]
    assert stats["observation.environment_state"]["mean"].tolist() == [9.5] * 16


def test_the_weight_average_follows_with_a_warm_up() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = Average(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model)
    # keep = min(0.9, 2 / 11)
    assert average.values["weight"].item() == pytest.approx(1.0 - 2.0 / 11.0)
    for _ in range(300):
        average.update(model)
    average.write_to(model)
    assert model.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_a_short_run_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from worldforge_ros.policies.keypoint_network import KeypointNetwork
    from worldforge_ros.policies.lerobot import load_lerobot_policy
    from worldforge_ros.training.dataset import Episode, episode_path, save_episode
    from worldforge_ros.training.policy import add_arguments, run

    torch.manual_seed(0)
    save_file(KeypointNetwork().state_dict(), tmp_path / "keypoints.safetensors")
    rng = np.random.default_rng(0)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--demos", str(tmp_path), "--keypoints", str(tmp_path / "keypoints.safetensors")]
    options += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "policy")]
    options += ["--batch", "8", "--log-every", "3", "--down-dims", "16", "32"]
    for seed, best in ((100_000, 0.97), (100_001, 0.9), (100_002, 0.1)):
        path = rng.uniform(0.1, 0.4, (20, 2)).astype(np.float32)
        episode = Episode(
            images=rng.integers(0, 256, (20, 96, 96, 3), dtype=np.uint8),
            position=path,
            velocity=np.zeros_like(path),
            action=path,
            label=path,
            state=np.zeros((20, 5), np.float32),
            coverage=np.linspace(0.0, best, 20, dtype=np.float32),
            seed=seed,
            kind="demo",
        )
        save_episode(episode, episode_path(tmp_path, "demo", seed))
    assert run(parser.parse_args([*options, "--steps", "3"])) == 0
    assert run(parser.parse_args([*options, "--steps", "6", "--resume"])) == 0
    rows = [json.loads(line) for line in (tmp_path / "work" / "policy_training.jsonl").open()]
    assert [row["step"] for row in rows] == [3, 6]
    policy = load_lerobot_policy(tmp_path / "policy", load_embodiment("pusht"))
    assert policy.max_horizon == 15

    with pytest.raises(WorldForgeError) as caught:
        run(parser.parse_args([*options, "--min-coverage", "0.99"]))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert "3 episodes" in caught.value.message
