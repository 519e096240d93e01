"""The LeWorldModel scorer on random weights: equality with upstream, and every refusal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("stable_worldmodel", reason="the package stable-worldmodel is not installed")

import torch
from safetensors.torch import load_file, save_file

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.architecture import build_lewm, default_config
from worldforge_ros.scorers.contract import ActionSpace
from worldforge_ros.scorers.encoders import normalise_pixels, resize_pixels
from worldforge_ros.scorers.lewm import LeWMOptions, LeWMScorer, load_lewm
from worldforge_ros.scorers.objectives import StepsHead, costs, pose_probe
from worldforge_ros.scorers.rollout import Rollout

PREPROCESSING: dict[str, Any] = {
    "image_size": 32,
    "pixel_mean": [0.485, 0.456, 0.406],
    "pixel_std": [0.229, 0.224, 0.225],
    "action_mean": [0.01, -0.02],
    "action_std": [0.3, 0.4],
    "action_meaning": "relative",
    "action_scale": [10.0, 10.0],
    "step": 0.1,
    "block": 5,
    "history": 1,
    "objective": "l2",
}
CONFIG = default_config(32, 10, dim=32)


@pytest.fixture
def embodiment() -> Embodiment:
    return load_embodiment("pusht")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with random weights, AdaLN gates and BatchNorm statistics included."""
    generator = torch.Generator().manual_seed(0)
    model = build_lewm(CONFIG)
    state = {
        name: torch.rand(value.shape, generator=generator) * 0.2 + 0.9
        if "running_var" in name
        else torch.randn(value.shape, generator=generator) * 0.25
        if value.is_floating_point()
        else value
        for name, value in model.state_dict().items()
    }
    folder = tmp_path / "small"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    probe = {"weight": torch.randn(18, 32, generator=generator), "bias": torch.zeros(18)}
    save_file(probe, folder / "pose_probe.safetensors")
    write(folder / "config.json", CONFIG)
    write(folder / "preprocessing.json", PREPROCESSING)
    return folder


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def observation(seed: int = 0, stamp: int = 1_000_000_000) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        stamp=stamp,
        images={"top": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)},
        position=rng.uniform(0.1, 0.4, 2),
        velocity=rng.uniform(-0.1, 0.1, 2),
    )


GOAL = np.random.default_rng(9).integers(0, 256, (96, 96, 3), dtype=np.uint8)
CANDIDATES = np.random.default_rng(8).uniform(0.1, 0.4, (7, 15, 2))


def upstream_costs(
    scorer: LeWMScorer, history: list[Observation], blocks: np.ndarray[Any, Any], folder: Path
) -> np.ndarray[Any, Any]:
    """stable-worldmodel's own get_cost on a freshly built model and fresh dictionaries."""
    model = build_lewm(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()

    def pixels(images: list[np.ndarray[Any, Any]]) -> torch.Tensor:
        small = torch.from_numpy(resize_pixels(np.stack(images), 32))
        spec = PREPROCESSING
        ready = normalise_pixels(small, tuple(spec["pixel_mean"]), tuple(spec["pixel_std"]))
        return ready[None, None].expand(1, len(blocks), *ready.shape)

    info = {
        "pixels": pixels([item.images["top"] for item in history]),
        "goal": pixels([GOAL]),
        "action": torch.zeros(1, len(blocks), 1, 10),
    }
    with torch.no_grad():
        costs = model.get_cost(info, torch.from_numpy(blocks).float()[None])
    return costs[0].numpy()


def test_costs_equal_upstream(checkpoint: Path, embodiment: Embodiment) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    for blocks_count in (1, 2, 5):
        blocks = np.random.default_rng(blocks_count).normal(size=(6, blocks_count, 10))
        found = scorer.score([observation()], GOAL, blocks, space=ActionSpace.MODEL)
        expected = upstream_costs(scorer, [observation()], blocks, checkpoint)
        assert np.ptp(expected) > 1e-2 * expected.mean(), "the candidates must differ"
        np.testing.assert_allclose(found.costs, expected, rtol=1e-4)
        assert found.best_index == int(np.argmin(expected))


def test_costs_with_history_equal_upstream(checkpoint: Path, embodiment: Embodiment) -> None:
    spec = dataclasses.replace(embodiment.world_model, history=2)
    scorer = load_lewm(checkpoint, dataclasses.replace(embodiment, world_model=spec))
    history = [observation(1, 1_000_000_000), observation(2, 1_500_000_000)]
    past = np.random.default_rng(3).uniform(0.1, 0.4, (5, 2))
    bridge = scorer.bridge
    first = bridge.setpoints_to_blocks(past[None], history[0].position, history[0].velocity)
    rest = bridge.setpoints_to_blocks(CANDIDATES, history[1].position, history[1].velocity)
    blocks = np.concatenate([np.repeat(first, len(rest), axis=0), rest], axis=1)
    found = scorer.score(history, GOAL, CANDIDATES, past)
    np.testing.assert_allclose(
        found.costs, upstream_costs(scorer, history, blocks, checkpoint), rtol=1e-4
    )
    with pytest.raises(WorldForgeError) as info:
        scorer.score(history, GOAL, CANDIDATES)
    assert info.value.code is ErrorCode.ACTION_HISTORY_INVALID
    with pytest.raises(WorldForgeError) as info:
        scorer.score(history[:1], GOAL, CANDIDATES, past)
    assert info.value.code is ErrorCode.HISTORY_TOO_SHORT


def test_set_points_and_their_blocks_cost_the_same(
    checkpoint: Path, embodiment: Embodiment
) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    now = observation()
    blocks = scorer.bridge.setpoints_to_blocks(CANDIDATES, now.position, now.velocity)
    direct = scorer.score([now], GOAL, CANDIDATES)
    native = scorer.score([now], GOAL, blocks, space=ActionSpace.MODEL)
    np.testing.assert_array_equal(direct.costs, native.costs)
    assert direct.metadata["action_space"] == "embodiment"
    assert native.metadata["action_space"] == "model"
    # A new observation must change the answer: nothing of the last call may be left over.
    again = scorer.score([observation(5)], GOAL, CANDIDATES)
    assert (again.costs != direct.costs).any()
    np.testing.assert_array_equal(scorer.score([now], GOAL, CANDIDATES).costs, direct.costs)


def test_order_of_candidates_and_chunking_do_not_matter(
    checkpoint: Path, embodiment: Embodiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    whole = scorer.score([observation()], GOAL, CANDIDATES).costs
    backwards = scorer.score([observation()], GOAL, CANDIDATES[::-1]).costs
    np.testing.assert_allclose(backwards[::-1], whole, rtol=1e-4)
    monkeypatch.setattr(scorer._engine, "_chunk", lambda blocks: 3)
    parts = scorer.score([observation()], GOAL, CANDIDATES).costs
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_objectives(checkpoint: Path, embodiment: Embodiment) -> None:
    torch.manual_seed(3)
    save_file(StepsHead(32).state_dict(), checkpoint / "steps_head.safetensors")
    scorer = load_lewm(checkpoint, embodiment)
    assert scorer.objectives == ("l2", "l1", "pose", "scene", "steps")
    scores = {
        name: scorer.score([observation()], GOAL, CANDIDATES, objective=name)
        for name in ("", *scorer.objectives)
    }
    assert scores[""].metadata["objective"] == "l2"
    np.testing.assert_array_equal(scores[""].costs, scores["l2"].costs)
    distinct = {tuple(item.costs.tolist()) for item in scores.values()}
    assert len(distinct) == len(scorer.objectives)
    with pytest.raises(WorldForgeError) as info:
        scorer.score([observation()], GOAL, CANDIDATES, objective="cosine")
    assert info.value.code is ErrorCode.OBJECTIVE_UNKNOWN

    (checkpoint / "pose_probe.safetensors").unlink()
    (checkpoint / "steps_head.safetensors").unlink()
    bare = load_lewm(checkpoint, embodiment)
    with pytest.raises(WorldForgeError, match="one of l2, l1 for"):
        bare.score([observation()], GOAL, CANDIDATES, objective="pose")


def test_objectives_by_hand() -> None:
    probe = pose_probe(18)
    with torch.no_grad():
        probe.weight.copy_(torch.eye(18))
        probe.bias.fill_(7.0)
    goal = torch.zeros(18)
    predicted = torch.zeros(2, 18)
    # Corner 0 is 3-4-5 decimetres off in the first, the pusher 9 in the second.
    predicted[0, :2] = torch.tensor([0.03, -0.04])
    predicted[1, 16] = 0.09
    found = {name: cost(predicted, goal).tolist() for name, cost in costs(probe, None).items()}
    assert found["l2"] == pytest.approx([0.0025, 0.0081])
    assert found["l1"] == pytest.approx([0.07, 0.09])
    assert found["pose"] == pytest.approx([5.0 / 8, 0.0], abs=1e-4)
    assert found["scene"] == pytest.approx([5.0 / 9, 1.0], abs=1e-4)


def test_a_picture_seen_again_is_not_encoded_again(
    checkpoint: Path, embodiment: Embodiment
) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    first = scorer.score([observation()], GOAL, CANDIDATES)
    again = scorer.score([observation()], GOAL, CANDIDATES)
    assert (first.metadata["history_cached"], first.metadata["goal_cached"]) == ("0 of 1", "false")
    assert (again.metadata["history_cached"], again.metadata["goal_cached"]) == ("1 of 1", "true")
    np.testing.assert_array_equal(first.costs, again.costs)
    # One pixel makes it another picture, and the old one must not answer for it.
    other = GOAL.copy()
    other[40, 40] ^= 255
    changed = scorer.score([observation()], other, CANDIDATES)
    assert changed.metadata["history_cached"] == "1 of 1"
    assert changed.metadata["goal_cached"] == "false"
    fresh = load_lewm(checkpoint, embodiment).score([observation()], other, CANDIDATES)
    np.testing.assert_allclose(changed.costs, fresh.costs, rtol=1e-5)
    scorer.notice(observation(3))
    assert scorer.score([observation(3)], GOAL, CANDIDATES).metadata["history_cached"] == "1 of 1"
    with pytest.raises(WorldForgeError) as info:
        scorer.notice_goal(GOAL[:50])
    assert info.value.code is ErrorCode.IMAGE_SIZE_MISMATCH


def test_the_cache_is_bounded(
    checkpoint: Path, embodiment: Embodiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    monkeypatch.setattr("worldforge_ros.scorers.engines.EMBEDDINGS_KEPT", 8)
    for seed in range(20):
        scorer.notice(observation(seed))
    assert len(scorer._engine._kept) == 8  # type: ignore[attr-defined]
    seen = [
        scorer.score([observation(seed)], GOAL, CANDIDATES).metadata["history_cached"]
        for seed in (19, 0)
    ]
    assert seen == ["1 of 1", "0 of 1"], "the oldest is dropped"


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_rollout_equals_the_whole_predictor(checkpoint: Path, frames: int) -> None:
    model = build_lewm(CONFIG)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    model.eval()
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(frames, 32, generator=generator)
    blocks = torch.randn(4, 7, 10, generator=generator)
    with torch.no_grad():
        states = context.expand(4, -1, -1)
        actions = model.action_encoder(blocks)
        for known in range(frames, 8):
            first = max(0, known - 3)
            ahead = model.predict(states[:, first:], actions[:, first:known])[:, -1:]
            states = torch.cat([states, ahead], dim=1)
        found = Rollout(model)(context, blocks)
    expected = states[:, frames:]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_metadata_names_the_checkpoint(checkpoint: Path, embodiment: Embodiment) -> None:
    import hashlib

    scorer = load_lewm(checkpoint, embodiment)
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    metadata = scorer.score([observation()], GOAL, CANDIDATES).metadata
    assert metadata["sha256"] == digest
    assert metadata["model_id"] == scorer.model_id == f"small-{digest[:12]}"
    assert metadata["blocks"] == "7x3x10"
    assert float(metadata["model_latency_s"]) > 0
    assert all(isinstance(value, str) for value in metadata.values())


def test_a_cost_that_is_not_finite_is_marked(
    checkpoint: Path, embodiment: Embodiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load_lewm(checkpoint, embodiment)

    def some(predicted: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return torch.tensor([torch.nan, 3.0, torch.inf, 2.0, 2.0, 9.0, 9.0])

    monkeypatch.setattr(scorer._engine, "_costs", {"l2": some})
    scores = scorer.score([observation()], GOAL, CANDIDATES)
    assert np.isnan(scores.costs).tolist() == [True, False, True, False, False, False, False]
    assert scores.best_index == 3, "the first of equal minima"
    assert scores.metadata["unscored"] == "0,2"
    monkeypatch.setattr(scorer._engine, "_costs", {"l2": lambda *_: torch.full((7,), torch.nan)})
    with pytest.raises(WorldForgeError) as info:
        scorer.score([observation()], GOAL, CANDIDATES)
    assert info.value.code is ErrorCode.COSTS_INVALID


def spoiled(values: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    copy = values.copy()
    copy.flat[3] = value
    return copy


@pytest.mark.parametrize(
    ("candidates", "code"),
    [
        (CANDIDATES[0], ErrorCode.TENSOR_SHAPE_MISMATCH),
        (CANDIDATES[None], ErrorCode.TENSOR_SHAPE_MISMATCH),
        (CANDIDATES[:0], ErrorCode.NO_CANDIDATES),
        (CANDIDATES[..., :1], ErrorCode.ACTION_DIM_MISMATCH),
        (CANDIDATES[:, :14], ErrorCode.HORIZON_NOT_WHOLE_BLOCKS),
        (CANDIDATES[:, :0], ErrorCode.HORIZON_NOT_WHOLE_BLOCKS),
        (spoiled(CANDIDATES, np.nan), ErrorCode.TENSOR_NOT_FINITE),
        (spoiled(CANDIDATES, np.inf), ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_bad_candidates_are_refused_before_the_model_runs(
    checkpoint: Path,
    embodiment: Embodiment,
    monkeypatch: pytest.MonkeyPatch,
    candidates: np.ndarray[Any, Any],
    code: ErrorCode,
) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    monkeypatch.setattr(scorer, "_engine", None)
    with pytest.raises(WorldForgeError) as info:
        scorer.score([observation()], GOAL, candidates)
    assert info.value.code is code


def test_bad_pictures_and_histories_are_refused(checkpoint: Path, embodiment: Embodiment) -> None:
    scorer = load_lewm(checkpoint, embodiment)
    good = observation()
    small = dataclasses.replace(good, images={"top": GOAL[:48]})
    cases: list[tuple[list[Observation], np.ndarray[Any, Any], object, ErrorCode]] = [
        ([good], GOAL[:64], None, ErrorCode.IMAGE_SIZE_MISMATCH),
        ([good], GOAL.astype(np.float32), None, ErrorCode.IMAGE_SIZE_MISMATCH),
        ([small], GOAL, None, ErrorCode.IMAGE_SIZE_MISMATCH),
        ([dataclasses.replace(good, images={})], GOAL, None, ErrorCode.CAMERA_MISSING),
        ([], GOAL, None, ErrorCode.HISTORY_TOO_SHORT),
        ([good, observation(1, 1_500_000_000)], GOAL, None, ErrorCode.HISTORY_TOO_SHORT),
        ([good], GOAL, np.zeros((5, 2)), ErrorCode.ACTION_HISTORY_INVALID),
        (
            [dataclasses.replace(good, velocity=np.array([0.0, np.nan]))],
            GOAL,
            None,
            ErrorCode.TENSOR_NOT_FINITE,
        ),
    ]
    for history, goal, past, code in cases:
        with pytest.raises(WorldForgeError) as info:
            scorer.score(history, goal, CANDIDATES, past)  # type: ignore[arg-type]
        assert info.value.code is code


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, embodiment: Embodiment, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(WorldForgeError, match=name) as info:
        load_lewm(checkpoint, embodiment)
    assert info.value.code is ErrorCode.CHECKPOINT_MISSING


def _drop_key(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["encoder.head.bias"]
    save_file(state, folder / "model.safetensors")


def _wrong_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["encoder.head.bias"] = torch.zeros(33)
    save_file(state, folder / "model.safetensors")


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors")


def _config(path: tuple[str, ...], value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        target = document
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        write(folder / "config.json", document)

    return change


def _pre(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: write(folder / "preprocessing.json", {**PREPROCESSING, key: value})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_drop_key, ErrorCode.CHECKPOINT_INVALID),
        (_wrong_shape, ErrorCode.CHECKPOINT_INVALID),
        (_garbage, ErrorCode.CHECKPOINT_INVALID),
        (_config(("encoder", "_target_"), "os.system"), ErrorCode.CHECKPOINT_INVALID),
        (_config(("_target_",), "builtins.eval"), ErrorCode.CHECKPOINT_INVALID),
        (_config(("projector", "norm_fn"), "os.system"), ErrorCode.CHECKPOINT_INVALID),
        (_config(("predictor", "depth"), 10**9), ErrorCode.CHECKPOINT_INVALID),
        (_config(("predictor", "depth"), "3"), ErrorCode.CHECKPOINT_INVALID),
        (_config(("predictor", "extra"), 3), ErrorCode.CHECKPOINT_INVALID),
        (_config(("encoder",), None), ErrorCode.CHECKPOINT_INVALID),
        (_pre("pixel_std", [1, 1, 0]), ErrorCode.CHECKPOINT_INVALID),
        (_pre("objective", "cosine"), ErrorCode.OBJECTIVE_UNKNOWN),
        (_pre("image_size", 64), ErrorCode.CHECKPOINT_INVALID),
        (_pre("action_std", [0.1, 0.0]), ErrorCode.CHECKPOINT_INVALID),
        (_pre("action_mean", None), ErrorCode.ACTION_STATISTICS_MISSING),
        (_pre("action_mean", [0.0] * 6), ErrorCode.EMBODIMENT_MISMATCH),
        (_pre("block", 4), ErrorCode.EMBODIMENT_MISMATCH),
        (_pre("step", 0.05), ErrorCode.EMBODIMENT_MISMATCH),
        (_pre("action_meaning", "absolute"), ErrorCode.EMBODIMENT_MISMATCH),
        (_pre("action_scale", [1.0, 1.0]), ErrorCode.EMBODIMENT_MISMATCH),
    ],
)
def test_a_bad_checkpoint_is_refused(
    checkpoint: Path, embodiment: Embodiment, change: Callable[[Path], None], code: ErrorCode
) -> None:
    load_lewm(checkpoint, embodiment)
    change(checkpoint)
    with pytest.raises(WorldForgeError) as info:
        load_lewm(checkpoint, embodiment)
    assert info.value.code is code


def test_a_model_for_another_action_width_is_refused(
    checkpoint: Path, embodiment: Embodiment
) -> None:
    config = default_config(32, 15, dim=32)
    write(checkpoint / "config.json", config)
    save_file(build_lewm(config).state_dict(), checkpoint / "model.safetensors")
    with pytest.raises(WorldForgeError, match="input_dim is 15; expected 10") as info:
        load_lewm(checkpoint, embodiment)
    assert info.value.code is ErrorCode.EMBODIMENT_MISMATCH


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_an_unknown_device_is_refused(
    checkpoint: Path, embodiment: Embodiment, device: str
) -> None:
    with pytest.raises(WorldForgeError) as info:
        load_lewm(checkpoint, embodiment, LeWMOptions(device=device))
    assert info.value.code is ErrorCode.DEVICE_UNAVAILABLE


def test_plain_torch_weights_load_and_pickles_do_not(
    checkpoint: Path, embodiment: Embodiment
) -> None:
    safe = load_lewm(checkpoint, embodiment).score([observation()], GOAL, CANDIDATES).costs
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(state, checkpoint / "weights.pt")
    plain = load_lewm(checkpoint, embodiment).score([observation()], GOAL, CANDIDATES).costs
    np.testing.assert_array_equal(plain, safe)
    torch.save({"model": torch.nn.Linear(1, 1)}, checkpoint / "weights.pt")
    with pytest.raises(WorldForgeError) as info:
        load_lewm(checkpoint, embodiment)
    assert info.value.code is ErrorCode.CHECKPOINT_INVALID


def test_the_model_is_frozen_and_in_evaluation_mode(
    checkpoint: Path, embodiment: Embodiment
) -> None:
    model = load_lewm(checkpoint, embodiment)._model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_pixels_by_hand() -> None:
    # 255 / 255 = 1: (1 - 0.485) / 0.229 = 2.2489; 0: (0 - 0.456) / 0.224 = -2.0357; 51 / 255 = 0.2
    image = torch.tensor([[[255, 0, 51]]], dtype=torch.uint8)
    found = normalise_pixels(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.shape == (3, 1, 1)
    np.testing.assert_allclose(found.flatten(), [2.24891, -2.03571, -0.91556], atol=1e-5)


def test_resizing_averages_and_keeps_orientation() -> None:
    picture = np.zeros((1, 96, 96, 3), np.uint8)
    picture[:, :48] = 200
    small = resize_pixels(picture, 32)
    assert small.dtype == np.uint8
    assert small.shape == (1, 32, 32, 3)
    assert (small[0, :14] == 200).all()
    assert (small[0, 18:] == 0).all()
    assert (resize_pixels(picture, 96) == picture).all()
