"""A LeRobot processor step that turns the camera picture into places: keypoints, a cube.

Importing this module registers the step as ``worldforge_image_to_keypoints``, so that a LeRobot
folder whose pre-processor names it can be loaded. The network's weights are the step's state:
LeRobot writes them beside the checkpoint as a safetensors file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import EnvTransition, ProcessorStep, ProcessorStepRegistry, TransitionKey
from torch import Tensor

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.policies.keypoint_network import KeypointNetwork, NetworkShape

STEP_NAME = "worldforge_image_to_keypoints"


@dataclass
@ProcessorStepRegistry.register(name=STEP_NAME)
class ImageToKeypoints(ProcessorStep):
    """Replaces the picture ``image_key`` (..., 3, H, W) in 0..1 by what a network reads,
    ``output_key`` (..., outputs).

    The picture is taken out of the observation. Any leading dimensions (batch, batch and time) are
    kept. ``image_size`` (H, W) of the pictures, when it is not the network's own: then they are
    brought to the network's size as :func:`worldforge_ros.scorers.encoders.resize_pixels` does it.
    ``network``: fields of :class:`worldforge_ros.policies.keypoint_network.NetworkShape` other than
    its defaults.
    """

    image_key: str = "observation.image"
    output_key: str = "observation.environment_state"
    image_size: list[int] | None = None
    network: dict[str, Any] = field(default_factory=dict)

    _network: KeypointNetwork | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> NetworkShape:
        """What the network reads and gives."""
        return NetworkShape(**self.network)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of the pictures that are taken."""
        height, width = self.image_size or (self.shape.height, self.shape.width)
        return (3, height, width)

    @property
    def ready(self) -> bool:
        """Whether weights were loaded."""
        return self._network is not None

    def use(self, network: KeypointNetwork) -> None:
        """Take a trained network as this step's state."""
        self.network = asdict(network.shape)
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
        if tuple(image.shape[-3:]) != self.image_shape or not image.is_floating_point():
            raise mismatch(
                ErrorCode.IMAGE_SIZE_MISMATCH,
                self.image_key,
                found=f"{tuple(image.shape)} {image.dtype}",
                expected=f"(..., {', '.join(map(str, self.image_shape))}) float in 0..1",
            )
        self._network.to(image.device)
        lead = image.shape[:-3]
        pictures = image.reshape(-1, *self.image_shape)
        own = (self.shape.height, self.shape.width)
        if pictures.shape[-2:] != own:
            pictures = torch.nn.functional.interpolate(
                pictures, own, mode="bilinear", antialias=True
            )
        with torch.no_grad():
            points: Tensor = self._network(pictures)
        return points.reshape(*lead, self.shape.outputs)

    def get_config(self) -> dict[str, Any]:
        """What LeRobot writes into the pipeline's JSON file."""
        return {
            "image_key": self.image_key,
            "output_key": self.output_key,
            "image_size": self.image_size,
            "network": self.network,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The network's weights on the CPU; empty before any were loaded."""
        if self._network is None:
            return {}
        return {key: value.cpu() for key, value in self._network.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Build the network from its weights; every key must fit."""
        network = KeypointNetwork(self.shape)
        network.load_state_dict(state)
        self.use(network)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """The picture goes, the places come; left as it is when there is no fitting picture."""
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        picture = observation.get(self.image_key)
        if picture is None or tuple(picture.shape) != self.image_shape:
            return features
        del observation[self.image_key]
        observation[self.output_key] = PolicyFeature(FeatureType.ENV, (self.shape.outputs,))
        return {**features, PipelineFeatureType.OBSERVATION: observation}
