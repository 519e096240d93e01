"""A LeRobot processor step that turns the camera picture into the block's keypoints.

Importing this module registers the step as ``worldforge_image_to_keypoints``, so that a LeRobot
folder whose pre-processor names it can be loaded. The network's weights are the step's state:
LeRobot writes them beside the checkpoint as a safetensors file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor.core import EnvTransition, TransitionKey
from lerobot.processor.pipeline import ProcessorStep, ProcessorStepRegistry
from torch import Tensor

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.policies.keypoint_network import IMAGE_SIZE, KEYPOINTS, KeypointNetwork

STEP_NAME = "worldforge_image_to_keypoints"
IMAGE_SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


@dataclass
@ProcessorStepRegistry.register(name=STEP_NAME)
class ImageToKeypoints(ProcessorStep):
    """Replaces the picture ``image_key`` (..., 3, 96, 96) in 0..1 by keypoints ``output_key`` (...,
    16) in mm.

    The picture is taken out of the observation. Any leading dimensions (batch, batch and time) are
    kept.
    """

    image_key: str = "observation.image"
    output_key: str = "observation.environment_state"

    _network: KeypointNetwork | None = field(default=None, init=False, repr=False)

    @property
    def ready(self) -> bool:
        """Whether weights were loaded."""
        return self._network is not None

    def use(self, network: KeypointNetwork) -> None:
        """Take a trained network as this step's state."""
        self._network = network.eval().requires_grad_(False)

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Apply the network to the observation of ``transition``.

        :raises WorldForgeError: ``CHECKPOINT_INVALID`` without weights, ``POLICY_FEATURE_MISMATCH``
            when the picture is missing, ``IMAGE_SIZE_MISMATCH`` when it has the wrong shape.
        """
        observation = transition.get(TransitionKey.OBSERVATION)
        if observation is None:
            return transition
        if self.image_key not in observation:
            raise mismatch(
                ErrorCode.POLICY_FEATURE_MISMATCH,
                "observation",
                found=sorted(observation),
                expected=f"the picture {self.image_key} for processor step {STEP_NAME}",
            )
        rest = {key: value for key, value in observation.items() if key != self.image_key}
        rest[self.output_key] = self._keypoints(observation[self.image_key])
        changed: EnvTransition = transition.copy()
        changed[TransitionKey.OBSERVATION] = rest
        return changed

    def _keypoints(self, image: Tensor) -> Tensor:
        if self._network is None:
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"state of processor step {STEP_NAME}",
                found="not loaded",
                expected="network weights",
            )
        if tuple(image.shape[-3:]) != IMAGE_SHAPE or not image.is_floating_point():
            raise mismatch(
                ErrorCode.IMAGE_SIZE_MISMATCH,
                self.image_key,
                found=f"{tuple(image.shape)} {image.dtype}",
                expected=f"(..., {', '.join(map(str, IMAGE_SHAPE))}) float in 0..1",
            )
        self._network.to(image.device)
        lead = image.shape[:-3]
        with torch.no_grad():
            points: Tensor = self._network(image.reshape(-1, *IMAGE_SHAPE))
        return points.reshape(*lead, 2 * KEYPOINTS)

    def get_config(self) -> dict[str, Any]:
        """What LeRobot writes into the pipeline's JSON file."""
        return {"image_key": self.image_key, "output_key": self.output_key}

    def state_dict(self) -> dict[str, Tensor]:
        """The network's weights on the CPU; empty before any were loaded."""
        if self._network is None:
            return {}
        return {key: value.cpu() for key, value in self._network.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Build the network from its weights; every key must fit."""
        network = KeypointNetwork()
        network.load_state_dict(state)
        self.use(network)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """The picture goes, the keypoints come; left as it is when there is no fitting picture."""
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        picture = observation.get(self.image_key)
        if picture is None or tuple(picture.shape) != IMAGE_SHAPE:
            return features
        del observation[self.image_key]
        observation[self.output_key] = PolicyFeature(FeatureType.ENV, (2 * KEYPOINTS,))
        return {**features, PipelineFeatureType.OBSERVATION: observation}
