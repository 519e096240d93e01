"""A JEPA-WMS model as the measures of a world model see it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.scorers.jepa_wms import JepaWmsScorer
from worldforge_ros.scorers.latent import FloatArray, FrameClip

PARTS = ("visual", "proprio")


class JepaWmsLatents:
    """See :class:`worldforge_ros.scorers.latent.LatentModel`.

    A latent is all numbers of the visual latent of one frame and, where the model has one, of its
    joint state. Distances are the model's own cost: the mean over the visual numbers plus
    ``proprio_weight`` times the mean over the others.
    """

    def __init__(self, scorer: JepaWmsScorer, embodiment: Embodiment) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for a runtime with a scoring method of its
        own, which shows no latents.
        """
        if not scorer.shows_latents:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"runtime of {scorer.model_id}",
                found=scorer.facts["runtime"],
                expected="one with encode and unroll, which shows its latents",
            )
        self._scorer = scorer
        self._embodiment = embodiment
        self._example: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.metric: FloatArray | None = None

    @property
    def model_id(self) -> str:
        """Short name and hash of the model."""
        return self._scorer.model_id

    @property
    def sha256(self) -> str:
        """SHA-256 of the parameters."""
        return self._scorer.facts["sha256"]

    def latents(self, clip: FrameClip) -> FloatArray:
        """Latents (N, D) float32, each frame encoded on its own."""
        rows = []
        for observation in clip.observations(self._embodiment):
            found = self._scorer.encode_frame(observation)
            parts = {"visual": found} if torch.is_tensor(found) else {n: found[n] for n in PARTS}
            self._learn(found, parts)
            rows.append(np.concatenate([_flat(part) for part in parts.values()]))
        return np.stack(rows)

    def _learn(self, found: Any, parts: dict[str, Any]) -> None:
        if self._shapes:
            return
        self._example = found
        self._shapes = {name: tuple(part.shape) for name, part in parts.items()}
        sizes = {name: int(np.prod(shape)) for name, shape in self._shapes.items()}
        weights = {"visual": 1.0, "proprio": self._scorer.proprio_weight}
        self.metric = np.concatenate(
            [np.full(size, weights[name] / size) for name, size in sizes.items()]
        )

    def actions(self, clip: FrameClip) -> FloatArray:
        """Normalised blocks (N - 1, block * J) between the pictures."""
        return self._scorer.bridge.recorded_to_blocks(clip.actions, clip.position[:-1])

    def ahead(self, start: FloatArray, blocks: FloatArray) -> FloatArray:
        """Latents (S, T, D) after each of the blocks (S, T, A) from latents (S, D)."""
        rows = []
        for latent, actions in zip(start, blocks, strict=True):
            found = self._scorer.unroll_frame(self._restored(latent), actions)
            parts = [found] if torch.is_tensor(found) else [found[name] for name in self._shapes]
            # Time comes first, and the first entry is where it started.
            ahead = [part[1:].reshape(len(actions), -1).float().cpu().numpy() for part in parts]
            rows.append(np.concatenate(ahead, axis=1))
        return np.stack(rows)

    def _restored(self, latent: FloatArray) -> Any:
        """The latent in the shape, and the kind of mapping, that the model gave."""
        found, place = {}, 0
        for name, shape in self._shapes.items():
            size = int(np.prod(shape))
            values = np.ascontiguousarray(latent[place : place + size], dtype=np.float32)
            found[name] = torch.from_numpy(values).reshape(shape)
            place += size
        if torch.is_tensor(self._example):
            return found["visual"].to(self._example.device)
        # A plain mapping would not do: upstream tells latents by their type.
        restored = self._example.copy()
        if type(restored) is not type(self._example):
            restored = type(self._example)(restored)
        for name, value in found.items():
            restored[name] = value.to(self._example[name].device)
        return restored


def _flat(part: Any) -> Any:
    return part.detach().float().cpu().numpy().reshape(-1)
