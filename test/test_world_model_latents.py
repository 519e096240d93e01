"""World models as the measures see them: every frame on its own, latents there and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_jepa_wms as jepa

pytest.importorskip("torch", reason="the package torch is not installed")

import torch
from scipy.spatial.transform import Rotation
from torch import nn

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import resolve_path
from worldforge_ros.scorers.jepa_latents import JepaWmsLatents
from worldforge_ros.scorers.jepa_wms import JepaOptions, load_jepa_wms
from worldforge_ros.scorers.latent import FrameClip
from worldforge_ros.scorers.lewm import load_lewm
from worldforge_ros.scorers.lewm_latents import LeWMLatents
from worldforge_ros.scorers.vjepa2_ac import (
    VJepa2AcLatents,
    VJepa2AcOptions,
    load_from_hub,
    load_vjepa2_ac,
    moved_pose,
    pixels,
    pose_difference,
)

RNG = np.random.default_rng(0)


def clip_of(count: int, joints: int = 2, block: int = 5, size: int = 96) -> FrameClip:
    steps = (count - 1) * block
    position = 0.25 + 0.01 * RNG.normal(size=(steps + 1, joints))
    return FrameClip(
        episode="one",
        images=RNG.integers(0, 255, (count, size, size, 3), dtype=np.uint8),
        position=position,
        velocity=np.zeros_like(position),
        actions=position[1:] + 0.001,
        states=np.empty((count, 0)),
    )


def each_alone(model: Any, clip: FrameClip) -> None:
    """A latent is the same whatever else is in the clip."""
    whole = model.latents(clip)
    for index in range(len(clip)):
        row = index * ((len(clip.position) - 1) // (len(clip) - 1))
        single = replace(
            clip,
            images=clip.images[index : index + 1],
            position=clip.position[row : row + 1],
            velocity=clip.velocity[row : row + 1],
            actions=clip.actions[:0],
            states=clip.states[:1],
        )
        np.testing.assert_allclose(model.latents(single)[0], whole[index], rtol=1e-4, atol=1e-4)


def test_the_latents_of_a_lewm_are_its_own() -> None:
    embodiment = load_embodiment("pusht")
    scorer = load_lewm(
        resolve_path("package://worldforge_ros/models/pusht/world_model"), embodiment
    )
    model = LeWMLatents(scorer)
    clip = clip_of(4)
    each_alone(model, clip)
    latents, blocks = model.latents(clip), model.actions(clip)
    assert blocks.shape == (3, 10)
    # What the scorer says of the same actions is the distance of the same prediction.
    observations = clip.observations(embodiment)
    costs = scorer.score(
        observations[:1], clip.images[2], blocks[None, :2], None, "l2", jepa.ActionSpace.MODEL
    ).costs
    ahead = model.ahead(latents[:1], blocks[None])
    assert ahead.shape == (1, 3, latents.shape[1])
    distance = np.square(ahead[0, 1] - latents[2]).sum()
    assert costs[0] == pytest.approx(distance, rel=1e-4)


@pytest.fixture
def jepa_model() -> JepaWmsLatents:
    embodiment = jepa.embodiment_of()
    options = JepaOptions(model="jepa_wm_pusht", repository="x", goal_proprio=jepa.GOAL_PROPRIO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = load_jepa_wms(
            embodiment, options, lambda _: (jepa.EncPredWM(), jepa.Preprocessor())
        )
    return JepaWmsLatents(scorer, embodiment)


def test_the_latents_of_a_jepa_wms_go_there_and_back(jepa_model: JepaWmsLatents) -> None:
    clip = clip_of(3)
    each_alone(jepa_model, clip)
    latents, blocks = jepa_model.latents(clip), jepa_model.actions(clip)
    ahead = jepa_model.ahead(latents[:2], np.stack([blocks, blocks[::-1]]))
    assert ahead.shape == (2, 2, latents.shape[1])
    # One block from the first picture is the first of two from it.
    alone = jepa_model.ahead(latents[:1], blocks[None, :1])
    np.testing.assert_allclose(ahead[0, :1], alone[0], rtol=1e-5, atol=1e-6)
    metric = jepa_model.metric
    assert metric is not None
    # Mean over the visual numbers, plus 0.1 times the mean over the joint state's four.
    visual = latents.shape[1] - 4
    np.testing.assert_allclose(metric[:visual], 1.0 / visual)
    np.testing.assert_allclose(metric[visual:], 0.1 / 4)


class Encoder(nn.Module):
    """Four tokens of a tubelet of two frames, which must be one frame twice."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape[1:] == (3, 2, 256, 256)
        assert torch.equal(frames[:, :, 0], frames[:, :, 1]), "the second frame would be the future"
        pooled = nn.functional.adaptive_avg_pool2d(frames[:, :, 0], 2)
        tokens = pooled.flatten(2).transpose(1, 2)
        return torch.cat([tokens, tokens**2], dim=2)


class Predictor(nn.Module):
    """The tokens of every frame moved by its action: causal, as the real one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.action = nn.Linear(14, 6)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, actions: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        time = actions.shape[1]
        assert tokens == 4 * time
        assert states.shape == actions.shape == (batch, time, 7)
        self.seen.append((tokens, time))
        moved = self.action(torch.cat([actions, states], dim=-1))
        return x + moved.repeat_interleave(4, dim=1)


def arm(joints: int = 7) -> Embodiment:
    base = load_embodiment("pusht")
    joint = base.joints[0]
    return replace(base, joints=tuple(replace(joint, name=f"j{i}") for i in range(joints)))


def test_v_jepa_2_ac_feeds_tokens_and_poses_back() -> None:
    predictor = Predictor()
    model = load_vjepa2_ac(arm(), VJepa2AcOptions(), lambda _: (Encoder(), predictor))
    clip = clip_of(4, joints=7, size=64)
    each_alone(model, clip)
    latents, actions = model.latents(clip), model.actions(clip)
    assert actions.shape == (3, 7)
    ahead = model.ahead(latents[:1], actions[None])
    assert predictor.seen[-3:] == [(4, 1), (8, 2), (12, 3)]
    # By hand: tokens are layer-normed in and out, poses are moved by the actions.
    tokens, pose = latents[0, :24].reshape(4, 6), clip.position[0]
    for step in range(3):
        moved = predictor.action(torch.tensor(np.concatenate([actions[step], pose])).float())
        raw = tokens + moved.detach().numpy()
        tokens = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
        pose = moved_pose(pose[None], actions[step : step + 1])[0]
        np.testing.assert_allclose(ahead[0, step, :24].reshape(4, 6), tokens, atol=1e-4)
        np.testing.assert_allclose(ahead[0, step, 24:], pose, atol=1e-5)
    # Moved by the measured way, the pose is the measured one.
    np.testing.assert_allclose(ahead[0, -1, 24:], clip.position[15], atol=1e-5)
    assert model.metric is not None
    np.testing.assert_allclose(model.metric[24:], 0.0)


def test_a_pose_moved_by_a_difference_arrives() -> None:
    start, end = RNG.uniform(-1, 1, (50, 7)), RNG.uniform(-1, 1, (50, 7))
    start[:, 6], end[:, 6] = RNG.uniform(0, 1, (2, 50))
    moved = moved_pose(start, pose_difference(start, end))
    np.testing.assert_allclose(moved[:, [0, 1, 2, 6]], end[:, [0, 1, 2, 6]], atol=1e-12)
    same = Rotation.from_euler("xyz", moved[:, 3:6]) * Rotation.from_euler("xyz", end[:, 3:6]).inv()
    np.testing.assert_allclose(same.magnitude(), 0.0, atol=1e-7)
    # A quarter about z, told by hand: the difference is about the fixed axes.
    one = np.zeros((1, 7))
    other = one.copy()
    other[0, 5] = np.pi / 2
    np.testing.assert_allclose(pose_difference(one, other)[0, 3:6], [0, 0, np.pi / 2], atol=1e-12)
    one[0, 6], change = 0.9, np.zeros((1, 7))
    change[0, 6] = 0.5
    assert moved_pose(one, change)[0, 6] == 1.0


def test_pictures_are_the_square_in_the_middle() -> None:
    image = np.zeros((256, 384, 3), np.uint8)
    image[:, 64:320] = 255
    found = pixels(image)
    assert found.shape == (3, 256, 256)
    expected = (1.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found.numpy().mean((1, 2)), expected, atol=1e-5)


def test_v_jepa_2_ac_wants_seven_joints_and_a_trusted_repository(tmp_path: Any) -> None:
    with pytest.raises(WorldForgeError) as caught:
        VJepa2AcLatents(Encoder(), Predictor(), arm(6), "x", torch.device("cpu"))
    assert caught.value.code is ErrorCode.EMBODIMENT_MISMATCH
    for options, code in (
        (VJepa2AcOptions(), ErrorCode.CHECKPOINT_MISSING),
        (VJepa2AcOptions(repository="facebookresearch/vjepa2"), ErrorCode.CHECKPOINT_UNTRUSTED),
        (VJepa2AcOptions(repository=str(tmp_path)), ErrorCode.CHECKPOINT_MISSING),
    ):
        with pytest.raises(WorldForgeError) as refused:
            load_from_hub(options)
        assert refused.value.code is code
    (tmp_path / "hubconf.py").write_text(
        "def vjepa2_ac_vit_giant(**kwargs):\n    return 'encoder', 'predictor'\n"
    )
    with pytest.raises(WorldForgeError, match="trust_repository"):
        load_from_hub(VJepa2AcOptions(repository=str(tmp_path)))
    trusted = VJepa2AcOptions(repository=str(tmp_path), trust_repository=True)
    assert load_from_hub(trusted) == ("encoder", "predictor")
