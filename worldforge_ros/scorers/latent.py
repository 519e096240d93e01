"""What the measures of a world model itself (drift, probe) need of it: latents, and the way from
one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.observation import Observation

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FrameClip:
    """A stretch of a recording without gaps, N pictures one block apart.

    ``images`` (N, height, width, 3) uint8 RGB of the world model's camera; ``actions``
    ((N - 1) * block, J) in m or rad, the set-points executed between them, one a step;
    ``position`` and ``velocity`` ((N - 1) * block + 1, J) measured at every step, so that row
    ``k * block`` belongs to picture ``k``. ``states`` (N, n) is the true state where a simulator
    knows it, else (N, 0). Clips of one recording have the same ``episode``.
    """

    episode: str
    images: npt.NDArray[np.uint8]
    position: FloatArray
    velocity: FloatArray
    actions: FloatArray
    states: FloatArray

    def __len__(self) -> int:
        return len(self.images)

    def at_frames(self, values: FloatArray) -> FloatArray:
        """The rows of ``position`` or ``velocity`` that belong to pictures, (N, J)."""
        if len(self) == 1:
            return values[:1]
        return values[:: (len(values) - 1) // (len(self) - 1)]

    def observations(self, embodiment: Embodiment) -> list[Observation]:
        """One for each picture; stamps count from the first."""
        spec = embodiment.scoring
        rows = zip(
            self.images, self.at_frames(self.position), self.at_frames(self.velocity), strict=True
        )
        period = round(spec.block_duration * 1e9)
        return [
            Observation(index * period, {spec.camera: image}, position, velocity)
            for index, (image, position, velocity) in enumerate(rows)
        ]


class LatentModel(Protocol):
    """A world model as the measure of drift sees it.

    A latent (D,) is everything that a prediction starts from; ``metric`` weighs its numbers in
    distances (0 for what is only carried along, such as a pose), None weighs all alike.
    """

    @property
    def model_id(self) -> str:
        """Short name and hash of the checkpoint."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights; empty when there is none."""

    @property
    def metric(self) -> FloatArray | None:
        """Weights (D,), known once something was encoded."""

    def latents(self, clip: FrameClip) -> FloatArray:
        """Latents (N, D), each of one picture alone: a clip encoded as a whole would leak."""

    def actions(self, clip: FrameClip) -> FloatArray:
        """The model's own blocks (N - 1, A) between the pictures."""

    def ahead(self, start: FloatArray, blocks: FloatArray) -> FloatArray:
        """Latents (S, T, D) after each of the blocks (S, T, A) from latents (S, D), every
        prediction from the one before.
        """
