"""LeRobot checkpoints as policies: load strictly, sample several candidates in one pass.

LeRobot is imported inside functions: a missing folder or file is reported before the slow import.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.policy import actions_to_setpoints, policy_features
from worldforge_ros.checkpoints import file_sha256, torch_device
from worldforge_ros.embodiment import Embodiment, ImageFeature
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import Observation, check_window
from worldforge_ros.policies.base import Proposal
from worldforge_ros.process import quiet_openmp

if TYPE_CHECKING:
    import torch

MAX_CANDIDATES = 4096
SUPPORTED_TYPES = ("act", "diffusion")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "policy_preprocessor.json"
POSTPROCESSOR_FILE = "policy_postprocessor.json"

_TRUSTED_MODULES = ("lerobot.", "worldforge_ros.")
_NEEDED_STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
_SPREAD_SAMPLE = 128


class LeRobotPolicy:
    """A loaded LeRobot policy; implements :class:`worldforge_ros.policies.base.Policy`.

    Keeps no observation between calls. Not thread safe: one call at a time.
    """

    def __init__(
        self,
        *,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
        embodiment: Embodiment,
        name: str,
        sha256: str,
        device: torch.device,
    ) -> None:
        self._policy = policy
        self._config = policy.config
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor
        self._embodiment = embodiment
        self._sha256 = sha256
        self._model_id = f"{name}@{sha256[:12]}"
        self._device = device
        self._indices: list[int] = list(policy.config.action_delta_indices)

    @property
    def model_id(self) -> str:
        """Folder name and the first 12 hex digits of the SHA-256 of ``model.safetensors``."""
        return self._model_id

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors`` in hex."""
        return self._sha256

    @property
    def type(self) -> str:
        """LeRobot's name of the policy type."""
        return str(self._config.type)

    @property
    def history(self) -> int:
        """Observations that ``propose`` needs, one policy step apart."""
        return int(self._config.n_obs_steps)

    @property
    def max_horizon(self) -> int:
        """Most actions a candidate can have: the predicted steps that are not in the past."""
        return len(self._indices) - self._indices.index(0)

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps of a diffusion policy; 1 for others."""
        if self.type == "diffusion":
            return int(self._policy.diffusion.num_inference_steps)
        return 1

    def propose(
        self, history: Sequence[Observation], num_candidates: int, horizon: int = 0, seed: int = -1
    ) -> Proposal:
        """Sample ``num_candidates`` chunks (S, H, J) in one batch, conditioned once.

        Metadata: ``model_id``, ``sha256``, ``type``, ``device``, ``seed``, ``num_inference_steps``,
        ``model_latency_s`` and ``spread``, the mean distance in m or rad between two candidates
        over steps (of at most 128 candidates).

        :raises WorldForgeError: ``NO_CANDIDATES``, ``TOO_MANY_CANDIDATES``, ``HORIZON_INVALID``,
            ``INVALID_ARGUMENT`` for a seed, ``DETERMINISTIC_POLICY`` for more than one candidate of
            a policy without randomness, ``HISTORY_TOO_SHORT`` and other refusals of the
            observations, ``MODEL_FAILED`` for a candidate that is not finite.
        """
        length = self._check_request(num_candidates, horizon, seed)
        spec = self._embodiment.policy
        check_window(history, self.history, spec.step, self._embodiment.observation.tolerance)
        if seed == -1:
            seed = secrets.randbelow(2**62)
        features = policy_features(history, self._embodiment)
        began = time.perf_counter()
        actions = self._sample(features, num_candidates, seed)
        latency = time.perf_counter() - began
        _check_finite(actions)
        setpoints = actions_to_setpoints(actions, history[-1].position, self._embodiment)
        candidates = setpoints[:, :length].astype(np.float32)
        metadata = {
            "model_id": self.model_id,
            "sha256": self.sha256,
            "type": self.type,
            "device": str(self._device),
            "seed": str(seed),
            "num_inference_steps": str(self.num_inference_steps),
            "model_latency_s": f"{latency:.6f}",
            "spread": f"{spread(candidates):.6f}",
        }
        return Proposal(
            candidates=candidates,
            joint_names=self._embodiment.joint_names,
            step=spec.step,
            metadata=metadata,
        )

    def _check_request(self, num_candidates: int, horizon: int, seed: int) -> int:
        if num_candidates < 1:
            raise mismatch(
                ErrorCode.NO_CANDIDATES,
                "num_candidates",
                found=num_candidates,
                expected=f"1 to {MAX_CANDIDATES}",
            )
        if num_candidates > MAX_CANDIDATES:
            raise mismatch(
                ErrorCode.TOO_MANY_CANDIDATES,
                "num_candidates",
                found=num_candidates,
                expected=f"1 to {MAX_CANDIDATES}",
            )
        if num_candidates > 1 and self.type != "diffusion":
            raise mismatch(
                ErrorCode.DETERMINISTIC_POLICY,
                "num_candidates",
                found=num_candidates,
                expected=f"1: a policy of type {self.type} gives one answer to one observation",
            )
        if not 0 <= horizon <= self.max_horizon:
            raise mismatch(
                ErrorCode.HORIZON_INVALID,
                "horizon",
                found=horizon,
                expected=f"1 to {self.max_horizon}, or 0 for all that {self.model_id} predicts",
            )
        if not -1 <= seed < 2**63:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "seed",
                found=seed,
                expected="0 to 2^63 - 1, or -1 for a fresh one",
            )
        return horizon or self.max_horizon

    def _sample(
        self, features: Mapping[str, npt.NDArray[np.float32]], num_candidates: int, seed: int
    ) -> npt.NDArray[np.float64]:
        """Actions (S, H, J) float64 in the policy's units, from the present on."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            batch = self._batch(features)
            if self.type == "diffusion":
                chunk = self._diffuse(batch, num_candidates, generator)
            else:
                chunk = self._policy.predict_action_chunk(batch)
            actions = self._postprocessor(chunk[:, self._indices.index(0) :])
        result: npt.NDArray[np.float64] = actions.double().numpy()
        return result

    def _batch(self, features: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
        """Pre-processed features with a batch dimension of one, and a time dimension where
        expected.
        """
        import torch
        from lerobot.utils.constants import OBS_IMAGES

        windowed = self._config.observation_delta_indices is not None
        tensors = {
            name: torch.from_numpy(array if windowed else array[-1]).unsqueeze(0)
            for name, array in features.items()
        }
        processed = self._preprocessor(tensors)
        batch = {name: processed[name] for name in self._config.input_features}
        if self.type == "diffusion" and self._config.image_features:
            pictures = [batch[name] for name in self._config.image_features]
            batch[OBS_IMAGES] = torch.stack(pictures, dim=-4)
        return batch

    def _diffuse(
        self, batch: dict[str, Any], num_candidates: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Condition once, draw every candidate's noise from the seed, denoise them as one batch."""
        import torch

        model = self._policy.diffusion
        condition = model._prepare_global_conditioning(batch)
        shape = (num_candidates, self._config.horizon, self._config.action_feature.shape[0])
        noise = torch.randn(shape, generator=generator).to(condition)
        sampled: torch.Tensor = model.conditional_sample(
            num_candidates,
            global_cond=condition.expand(num_candidates, -1),
            generator=generator,
            noise=noise,
        )
        return sampled


def spread(candidates: npt.NDArray[np.float32]) -> float:
    """Mean distance between two different candidates (S, H, J), averaged over steps; 0 for one."""
    chosen = candidates[:_SPREAD_SAMPLE].astype(np.float64)
    count = len(chosen)
    if count < 2:
        return 0.0
    distance = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1).mean(axis=-1)
    return float(distance.sum() / (count * (count - 1)))


def _check_finite(actions: npt.NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=(1, 2)))
    if len(bad):
        raise mismatch(
            ErrorCode.MODEL_FAILED,
            f"candidate {int(bad[0])} of {len(actions)}",
            found="not finite",
            expected="finite actions from the policy",
        )


def load_lerobot_policy(
    path: str | Path,
    embodiment: Embodiment,
    device: str = "cpu",
    threads: int = 1,
    num_inference_steps: int | None = None,
) -> LeRobotPolicy:
    """Load a LeRobot checkpoint folder for ``embodiment``.

    Nothing is downloaded, nothing is unpickled, and processor steps are built only from classes of
    LeRobot and of this package. Weights are loaded strictly.

    :param threads: torch threads of this process.
    :param num_inference_steps: denoising steps of a diffusion policy; None keeps the checkpoint's.
    :raises WorldForgeError: ``CHECKPOINT_MISSING``, ``CHECKPOINT_INVALID``,
        ``CHECKPOINT_UNTRUSTED``, ``POLICY_TYPE_UNKNOWN``, ``POLICY_NOT_MIGRATED``,
        ``POLICY_STATISTICS_MISSING``, ``POLICY_FEATURE_MISMATCH``, ``ACTION_DIM_MISMATCH``,
        ``DEVICE_UNAVAILABLE``, ``DEPENDENCY_MISSING`` or ``INVALID_ARGUMENT``.
    """
    folder = Path(path).expanduser().resolve()
    kind = _check_files(folder)
    if threads < 1:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "threads", found=threads, expected="1 or more")
    os.environ["HF_HUB_OFFLINE"] = "1"
    quiet_openmp()
    try:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        import worldforge_ros.policies.keypoint_step  # noqa: F401  registers the processor step
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "LeRobot",
            found=f"not importable ({error})",
            expected="the package lerobot 0.4.4",
        ) from error
    torch.set_num_threads(threads)
    place = torch_device(device)
    config = _load_config(PreTrainedConfig, folder, kind)
    config.device = str(place)
    if getattr(config, "pretrained_backbone_weights", None) is not None:
        # The folder's weights replace the backbone's; LeRobot would fetch them only to overwrite
        # them.
        config.pretrained_backbone_weights = None
    _check_action(config, embodiment, folder)
    overrides = _device_override(folder, place)
    policy = _load_weights(get_policy_class(kind), config, folder)
    try:
        preprocessor, postprocessor = make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides=overrides
        )
    except (ImportError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"processors of {folder}",
            found=f"not loadable ({_one_line(error)})",
            expected="pipelines that LeRobot 0.4.4 wrote",
        ) from error
    _check_state(preprocessor, folder)
    _check_features(config, preprocessor, embodiment, folder)
    _check_statistics(config, preprocessor, postprocessor, folder)
    if num_inference_steps is not None:
        _set_inference_steps(policy, config, num_inference_steps)
    policy.requires_grad_(False)
    return LeRobotPolicy(
        policy=policy,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        embodiment=embodiment,
        name=folder.name,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        device=place,
    )


def _check_files(folder: Path) -> str:
    """Everything that can be said without importing LeRobot; returns the policy type."""
    if not folder.is_dir():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "policy checkpoint",
            found=f"no folder {folder}",
            expected="a LeRobot folder with config.json and model.safetensors",
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_MISSING,
                f"policy checkpoint {folder}",
                found=f"without {name}",
                expected="a LeRobot folder with config.json and model.safetensors",
            )
    kind = _read_json(folder / CONFIG_FILE).get("type")
    if kind not in SUPPORTED_TYPES:
        raise mismatch(
            ErrorCode.POLICY_TYPE_UNKNOWN,
            f"policy type in {folder / CONFIG_FILE}",
            found=f"'{kind}'",
            expected=f"one of {', '.join(SUPPORTED_TYPES)}",
        )
    for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        if not (folder / name).is_file():
            raise mismatch(
                ErrorCode.POLICY_NOT_MIGRATED,
                f"policy checkpoint {folder}",
                found=f"without {name}, so its normalisation would be lost",
                expected="a checkpoint of LeRobot 0.4 or later: migrate it with "
                "`python -m lerobot.processor.migrate_policy_normalization --pretrained-path "
                f"{folder}`",
            )
        _check_steps(folder, name)
    return str(kind)


def _check_steps(folder: Path, name: str) -> None:
    steps = _read_json(folder / name).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"steps in {folder / name}",
            found=steps,
            expected="a list",
        )
    for index, step in enumerate(steps):
        cls = step.get("class")
        if cls is not None and not str(cls).startswith(_TRUSTED_MODULES):
            raise mismatch(
                ErrorCode.CHECKPOINT_UNTRUSTED,
                f"class of step {index} in {folder / name}",
                found=f"'{cls}'",
                expected="a registered step, or a class of lerobot or worldforge_ros",
            )
        state = step.get("state_file")
        if state is not None and not (folder / str(state)).is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"state of step {index} in {folder / name}",
                found=f"no file {state}",
                expected="the file beside it",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(path),
            found=f"not readable as JSON ({error})",
            expected="a JSON object",
        ) from error
    if not isinstance(data, dict):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(path),
            found=type(data).__name__,
            expected="a JSON object",
        )
    return data


def _load_config(config_class: Any, folder: Path, kind: str) -> Any:
    import draccus

    try:
        return config_class.from_pretrained(str(folder), local_files_only=True)
    except (draccus.utils.DraccusException, ValueError, TypeError, KeyError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(folder / CONFIG_FILE),
            found=f"not a configuration of type {kind} ({_one_line(error)})",
            expected="what LeRobot 0.4.4 writes",
        ) from error


def _load_weights(policy_class: Any, config: Any, folder: Path) -> Any:
    from safetensors import SafetensorError

    try:
        # LeRobot announces the load on stdout, which belongs to the program's own results.
        with contextlib.redirect_stdout(sys.stderr):
            policy = policy_class.from_pretrained(str(folder), config=config, strict=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(folder / WEIGHTS_FILE),
            found=f"not the weights of config.json's model ({_one_line(error)})",
            expected="exactly its tensors",
        ) from error
    return policy


def _device_override(folder: Path, place: torch.device) -> dict[str, Any]:
    """Where the pre-processor puts its tensors: the checkpoint names the device it was trained
    on.
    """
    steps = _read_json(folder / PREPROCESSOR_FILE)["steps"]
    if any(step.get("registry_name") == "device_processor" for step in steps):
        return {"device_processor": {"device": str(place)}}
    return {}


def _check_action(config: Any, embodiment: Embodiment, folder: Path) -> None:
    action = config.action_feature
    joints = embodiment.joint_names
    if action is None or tuple(action.shape) != (len(joints),):
        found = "none" if action is None else f"shape {tuple(action.shape)}"
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"action of policy {folder.name}",
            found=found,
            expected=f"({len(joints)},), one for each joint of {embodiment.name} {list(joints)}",
        )


def _check_state(preprocessor: Any, folder: Path) -> None:
    from worldforge_ros.policies.keypoint_step import STEP_NAME, ImageToKeypoints

    for step in preprocessor.steps:
        if isinstance(step, ImageToKeypoints) and not step.ready:
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"step {STEP_NAME} in {folder / PREPROCESSOR_FILE}",
                found="without a state_file",
                expected="the file with the network's weights",
            )


def _check_features(config: Any, preprocessor: Any, embodiment: Embodiment, folder: Path) -> None:
    from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature

    offered = {}
    for name, feature in embodiment.policy.features.items():
        if isinstance(feature, ImageFeature):
            camera = embodiment.cameras[feature.camera]
            offered[name] = PolicyFeature(FeatureType.VISUAL, (3, camera.height, camera.width))
        else:
            offered[name] = PolicyFeature(FeatureType.STATE, (len(feature.joints),))
    supplied = preprocessor.transform_features(
        {PipelineFeatureType.OBSERVATION: offered, PipelineFeatureType.ACTION: {}}
    )[PipelineFeatureType.OBSERVATION]
    shapes = {name: tuple(feature.shape) for name, feature in supplied.items()}
    for name, feature in config.input_features.items():
        if shapes.get(name) != tuple(feature.shape):
            have = f"supplied with shape {shapes[name]}" if name in shapes else "not supplied"
            raise mismatch(
                ErrorCode.POLICY_FEATURE_MISMATCH,
                f"input {name} of policy {folder.name}",
                found=f"{have}; embodiment {embodiment.name} and the checkpoint's processors give "
                f"{shapes}",
                expected=f"shape {tuple(feature.shape)}",
            )


def _check_statistics(config: Any, preprocessor: Any, postprocessor: Any, folder: Path) -> None:
    for pipeline, features in (
        (preprocessor, config.input_features),
        (postprocessor, config.output_features),
    ):
        held, modes = _normalisation(pipeline)
        for name, feature in features.items():
            declared = config.normalization_mapping.get(feature.type.value)
            for mode in {declared.value if declared else "IDENTITY", modes.get(name, "IDENTITY")}:
                missing = [
                    key
                    for key in _NEEDED_STATISTICS.get(mode, ())
                    if not held.get(f"{name}.{key}", False)
                ]
                if missing:
                    raise mismatch(
                        ErrorCode.POLICY_STATISTICS_MISSING,
                        f"statistics of {name} in policy {folder.name}",
                        found=f"without a finite {' and '.join(missing)}",
                        expected=f"{' and '.join(_NEEDED_STATISTICS[mode])}, since it is declared "
                        f"{mode}",
                    )


def _normalisation(pipeline: Any) -> tuple[dict[str, bool], dict[str, str]]:
    """Of a pipeline: which statistics it holds (and whether they are finite), and the mode by
    feature.
    """
    import torch
    from lerobot.processor.normalize_processor import (
        NormalizerProcessorStep,
        UnnormalizerProcessorStep,
    )

    held: dict[str, bool] = {}
    modes: dict[str, str] = {}
    for step in pipeline.steps:
        if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
            for key, value in step.state_dict().items():
                held[key] = bool(torch.isfinite(value).all())
            for name, feature in step.features.items():
                mode = step.norm_map.get(feature.type)
                modes[name] = mode.value if mode else "IDENTITY"
    return held, modes


def _set_inference_steps(policy: Any, config: Any, steps: int) -> None:
    if config.type != "diffusion":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "num_inference_steps",
            found=steps,
            expected=f"none for a policy of type {config.type}",
        )
    if not 1 <= steps <= config.num_train_timesteps:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "num_inference_steps",
            found=steps,
            expected=f"1 to {config.num_train_timesteps}",
        )
    policy.diffusion.num_inference_steps = steps


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
