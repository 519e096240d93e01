"""V-JEPA 2-AC as the measures of a world model see it: an encoder of pictures and a predictor of
their tokens from 7-d actions and states of an end effector.

From ``notebooks/energy_landscape_example.ipynb`` and ``notebooks/utils/mpc_utils.py`` of
github.com/facebookresearch/vjepa2 (arXiv 2506.09985): a frame is encoded alone, doubled to a
tubelet, and its tokens are layer-normed; the predictor is given every frame, action and state so
far, and its last tokens, layer-normed, are the next frame; the next state is the last one moved by
the action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from worldforge_ros.checkpoints import torch_device
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.scorers.encoders import PIXEL_MEAN, PIXEL_STD
from worldforge_ros.scorers.hub import Family, hub_pair, parameters_sha256
from worldforge_ros.scorers.latent import FloatArray, FrameClip

FAMILY = Family("V-JEPA 2", "github.com/facebookresearch/vjepa2")
POSE = 7
"""Numbers of a state: x, y, z in m, extrinsic xyz Euler angles in rad, how far the gripper is
closed, 0 to 1. An action is the way from one to the next."""
SIDE = 256
"""Side of the pictures in pixels."""


@dataclass(frozen=True)
class VJepa2AcOptions:
    """What to load, see :func:`~worldforge_ros.scorers.hub.hub_pair`."""

    model: str = "vjepa2_ac_vit_giant"
    repository: str = ""
    trust_repository: bool = False
    device: str = "cpu"
    threads: int = 1


Loader = Callable[[VJepa2AcOptions], tuple[Any, Any]]
"""Loads encoder and predictor."""


def load_from_hub(options: VJepa2AcOptions) -> tuple[Any, Any]:
    """Encoder and predictor through ``torch.hub``.

    :raises WorldForgeError: as :func:`~worldforge_ros.scorers.hub.hub_pair`, and
        ``CHECKPOINT_MISSING`` without a repository.
    """
    if not options.repository:
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "V-JEPA 2 repository",
            found="none",
            expected="a folder with a copy of it, or owner/name:commit",
        )
    return hub_pair(
        FAMILY,
        options.model,
        options.repository,
        options.trust_repository,
        "(encoder, predictor)",
    )


def load_vjepa2_ac(
    embodiment: Embodiment, options: VJepa2AcOptions, loader: Loader = load_from_hub
) -> VJepa2AcLatents:
    """Load the model.

    :param loader: injected by tests.
    :raises WorldForgeError: what the loader raises, ``DEVICE_UNAVAILABLE``, or
        ``EMBODIMENT_MISMATCH``.
    """
    place = torch_device(options.device)
    torch.set_num_threads(options.threads)
    encoder, predictor = loader(options)
    for module in (encoder, predictor):
        module.to(place).eval().requires_grad_(False)
    return VJepa2AcLatents(encoder, predictor, embodiment, options.model, place)


class VJepa2AcLatents:
    """See :class:`worldforge_ros.scorers.latent.LatentModel`.

    The embodiment's joints are the seven numbers of a state, in order. A latent is the tokens of a
    frame, which are compared, and the state, which is only carried along.
    """

    def __init__(
        self, encoder: Any, predictor: Any, embodiment: Embodiment, name: str, place: torch.device
    ) -> None:
        """:raises WorldForgeError: ``EMBODIMENT_MISMATCH`` for other than seven joints."""
        if len(embodiment.joints) != POSE:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"joints of embodiment {embodiment.name}",
                found=len(embodiment.joints),
                expected=f"{POSE}: x, y, z, three Euler angles and the gripper",
            )
        self._encoder = encoder
        self._predictor = predictor
        self._place = place
        self._sha256 = parameters_sha256(predictor)
        self._name = name
        self._shape: tuple[int, int] = (0, 0)
        self.metric: FloatArray | None = None

    @property
    def model_id(self) -> str:
        """Name of the entry and the first 12 hex digits of the predictor's hash."""
        return f"{self._name}-{self._sha256[:12]}" if self._sha256 else self._name

    @property
    def sha256(self) -> str:
        """SHA-256 of the predictor's parameters."""
        return self._sha256

    def latents(self, clip: FrameClip) -> FloatArray:
        """Latents (N, tokens * width + 7) float32, each frame encoded on its own."""
        rows = []
        states = clip.at_frames(clip.position)
        with torch.inference_mode():
            for image, state in zip(clip.images, states, strict=True):
                # A tubelet is two frames; a second, later one would show the future.
                frame = pixels(image)[None, :, None].repeat(1, 1, 2, 1, 1).to(self._place)
                tokens = self._encoder(frame)
                tokens = tokens.reshape(1, -1, tokens.shape[-1])
                normed = _normed(tokens)[0].float().cpu().numpy()
                self._shape = (normed.shape[0], normed.shape[1])
                rows.append(np.concatenate([normed.reshape(-1), state.astype(np.float32)]))
        if self.metric is None:
            size = self._shape[0] * self._shape[1]
            weights = np.full(size + POSE, 1.0 / size)
            weights[size:] = 0.0
            self.metric = weights
        return np.stack(rows)

    def actions(self, clip: FrameClip) -> FloatArray:
        """Actions (N - 1, 7): from each measured state to the next."""
        states = clip.at_frames(clip.position)
        return pose_difference(states[:-1], states[1:])

    def ahead(self, start: FloatArray, blocks: FloatArray) -> FloatArray:
        """Latents (S, T, D) after each of the actions (S, T, 7) from latents (S, D)."""
        count, width = self._shape
        size = count * width
        samples, horizon = blocks.shape[:2]
        found: npt.NDArray[Any] = np.empty((samples, horizon, size + POSE), np.float32)
        with torch.inference_mode():
            for index in range(samples):
                tokens = torch.from_numpy(np.float32(start[index, :size])).reshape(1, count, width)
                frames = tokens.to(self._place)
                states = np.asarray(start[index, size:], np.float64)[None]
                for ahead in range(horizon):
                    given = blocks[index, : ahead + 1]
                    predicted = self._predictor(frames, self._tensor(given), self._tensor(states))
                    # As upstream: only the last frame's tokens are new.
                    following = _normed(predicted[:, -count:])
                    frames = torch.cat([frames, following], dim=1)
                    states = np.concatenate([states, moved_pose(states[-1:], given[-1:])])
                    found[index, ahead, :size] = following.float().cpu().numpy().reshape(-1)
                    found[index, ahead, size:] = states[-1]
        return found

    def _tensor(self, rows: FloatArray) -> Tensor:
        return torch.from_numpy(np.asarray(rows, np.float32))[None].to(self._place)


def _normed(tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, (tokens.shape[-1],))


def pixels(image: npt.NDArray[np.uint8]) -> Tensor:
    """A picture (height, width, 3) uint8 as (3, 256, 256) float32: the square in its middle,
    resized, ImageNet's mean and deviation taken out, as upstream's transform does without
    augmentation.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(image[top : top + side, left : left + side]))
    chosen = square.permute(2, 0, 1)[None].float()
    resized = functional.interpolate(
        chosen, size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (resized / 255.0 - mean) / std


def pose_difference(start: FloatArray, end: FloatArray) -> FloatArray:
    """Actions (N, 7) from states (N, 7) to states (N, 7); upstream's ``poses_to_diff``."""
    from scipy.spatial.transform import Rotation

    turned = (
        Rotation.from_euler("xyz", end[:, 3:6]) * Rotation.from_euler("xyz", start[:, 3:6]).inv()
    )
    gaps = [end[:, :3] - start[:, :3], turned.as_euler("xyz"), end[:, 6:] - start[:, 6:]]
    return np.concatenate(gaps, axis=1)


def moved_pose(pose: FloatArray, action: FloatArray) -> FloatArray:
    """States (N, 7) after actions (N, 7), the gripper kept within 0 to 1; upstream's
    ``compute_new_pose``.
    """
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_euler("xyz", action[:, 3:6]) * Rotation.from_euler("xyz", pose[:, 3:6])
    gripper = np.clip(pose[:, 6:] + action[:, 6:], 0.0, 1.0)
    return np.concatenate([pose[:, :3] + action[:, :3], turned.as_euler("xyz"), gripper], axis=1)
