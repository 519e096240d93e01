"""A LeWorldModel as the measures of a world model see it."""

from __future__ import annotations

import numpy as np
import torch

from worldforge_ros.scorers.latent import FloatArray, FrameClip
from worldforge_ros.scorers.lewm import LeWMScorer

AT_ONCE = 64
"""Pictures encoded in one pass."""


class LeWMLatents:
    """See :class:`worldforge_ros.scorers.latent.LatentModel`; a latent is an embedding (D,)."""

    metric: FloatArray | None = None

    def __init__(self, scorer: LeWMScorer) -> None:
        self._scorer = scorer

    @property
    def model_id(self) -> str:
        """Short name and hash of the checkpoint."""
        return self._scorer.model_id

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return self._scorer.sha256

    def latents(self, clip: FrameClip) -> FloatArray:
        """Embeddings (N, D), each of one picture alone."""
        with torch.inference_mode():
            found = [
                self._scorer.embed(clip.images[start : start + AT_ONCE]).cpu().double().numpy()
                for start in range(0, len(clip), AT_ONCE)
            ]
        return np.concatenate(found)

    def actions(self, clip: FrameClip) -> FloatArray:
        """Normalised blocks (N - 1, block * J) between the pictures."""
        return self._scorer.bridge.recorded_to_blocks(clip.actions, clip.position[:-1])

    def ahead(self, start: FloatArray, blocks: FloatArray) -> FloatArray:
        """Embeddings (S, T, D) after each of the blocks (S, T, A) from embeddings (S, D)."""
        with torch.inference_mode():
            found = self._scorer.predict_batch(
                torch.from_numpy(start).float()[:, None], torch.from_numpy(blocks).float()
            )
        result: FloatArray = found.cpu().double().numpy()
        return result
