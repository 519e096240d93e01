"""LeRobot checkpoints as policies: find, check and load strictly.

LeRobot is imported inside functions: a missing folder or file is reported before the slow import.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldforge_ros.checkpoints import file_sha256, torch_device
from worldforge_ros.embodiment import Embodiment, ImageFeature
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.policies.checkpoint import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    CheckpointFiles,
    check_files,
    check_type,
    find_checkpoint,
    one_line,
    read_json,
    sealed,
)
from worldforge_ros.policies.proposer import LeRobotPolicy, LoadedPolicy
from worldforge_ros.process import quiet_openmp

if TYPE_CHECKING:
    import torch

Loader = Callable[[str, "torch.device"], LoadedPolicy]
"""Makes a policy from what the caller named, on a device."""

_NEEDED_STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


def load_lerobot_policy(
    name: str | Path,
    embodiment: Embodiment,
    device: str = "cpu",
    threads: int = 1,
    *,
    policy_type: str = "",
    revision: str = "",
    cache_dir: str = "",
    num_inference_steps: int = 0,
    noise_scheduler: str = "",
    loader: Loader | None = None,
) -> LeRobotPolicy:
    """Load a LeRobot checkpoint for ``embodiment``.

    Nothing is unpickled, no code of a checkpoint is run, and processor steps are built only from
    step classes of LeRobot and of this package. Weights are loaded strictly. Only a hub id is ever
    fetched; other models that its configuration names have to be in the hub client's cache.

    :param name: a folder, or a hub id ``owner/name`` with its commit as ``revision``.
    :param threads: torch threads of this process.
    :param policy_type: LeRobot's type name; empty: what the checkpoint says.
    :param cache_dir: of the hub client; empty: its own.
    :param num_inference_steps: passes of the action network; 0 keeps the checkpoint's.
    :param noise_scheduler: of a diffusion policy, DDIM or DDPM; empty keeps the checkpoint's.
    :param loader: makes the policy instead of reading a checkpoint; what is about a checkpoint
        must then be left out.
    :raises WorldForgeError: ``CHECKPOINT_MISSING``, ``CHECKPOINT_INVALID``,
        ``CHECKPOINT_UNTRUSTED``, ``POLICY_TYPE_UNKNOWN``, ``POLICY_TYPE_MISMATCH``,
        ``POLICY_NOT_MIGRATED``, ``POLICY_STATISTICS_MISSING``, ``POLICY_FEATURE_MISMATCH``,
        ``ACTION_DIM_MISMATCH``, ``DEVICE_UNAVAILABLE``, ``DEPENDENCY_MISSING`` or
        ``INVALID_ARGUMENT``.
    """
    if threads < 1:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "threads", found=threads, expected="1 or more")
    files = None
    if loader is None:
        files = check_files(find_checkpoint(name, revision, cache_dir), policy_type)
    elif policy_type or revision or cache_dir or noise_scheduler:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "loader",
            found="given with settings of a checkpoint",
            expected="none of policy_type, revision, cache_dir and noise_scheduler beside it",
        )
    quiet_openmp()
    try:
        import torch
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "torch",
            found=f"not importable ({error})",
            expected="the package torch",
        ) from error
    torch.set_num_threads(threads)
    place = torch_device(device)
    if files is None:
        assert loader is not None
        loaded = loader(str(name), place)
        _check_action(loaded.policy.config, embodiment, loaded.name)
    else:
        loaded = _load(files, embodiment, place, noise_scheduler)
        if revision:
            loaded = replace(loaded, name=str(name))
    loaded.policy.requires_grad_(False)
    policy = LeRobotPolicy(loaded, embodiment, place)
    if num_inference_steps:
        policy.set_inference_steps(num_inference_steps)
    return policy


def _load(
    files: CheckpointFiles, embodiment: Embodiment, place: torch.device, noise_scheduler: str
) -> LoadedPolicy:
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        import worldforge_ros.policies.keypoint_step  # noqa: F401  registers the processor step
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "LeRobot",
            found=f"not importable ({error})",
            expected="the package lerobot, 0.4.4 or later",
        ) from error
    folder = files.folder
    check_type(files, list(PreTrainedConfig.get_known_choices()))
    _check_step_classes(files)
    with sealed():
        config = _load_config(PreTrainedConfig, files)
        config.device = str(place)
        for field in ("pretrained_backbone_weights", "load_vlm_weights"):
            if getattr(config, field, None):
                # The folder's weights replace these; LeRobot would load them only to overwrite
                # them.
                setattr(config, field, None if field == "pretrained_backbone_weights" else False)
        if noise_scheduler:
            _set_noise_scheduler(config, noise_scheduler)
        _check_action(config, embodiment, folder.name)
        policy = _load_weights(get_policy_class, config, files)
        try:
            preprocessor, postprocessor = make_pre_post_processors(
                config,
                pretrained_path=str(folder),
                preprocessor_overrides=_device_override(folder, place),
            )
        except Exception as error:
            _reraise_own(error)
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"processors of {folder}",
                found=f"not loadable ({one_line(error)})",
                expected="pipelines that this LeRobot reads, and what they name in the hub "
                "client's cache",
            ) from error
    _check_state(preprocessor, folder)
    _check_features(config, preprocessor, embodiment, folder)
    for pipeline, features in (
        (preprocessor, config.input_features),
        (postprocessor, config.output_features),
    ):
        _check_statistics(config, pipeline, features, folder)
    return LoadedPolicy(
        policy=policy,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        name=folder.name,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        loader_mode=files.loader_mode,
    )


def _check_step_classes(files: CheckpointFiles) -> None:
    """LeRobot calls whatever a step's ``class`` names, with arguments of the file."""
    from lerobot.processor import ProcessorStep

    for name in files.step_classes:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            found = None
        if not (isinstance(found, type) and issubclass(found, ProcessorStep)):
            raise mismatch(
                ErrorCode.CHECKPOINT_UNTRUSTED,
                f"class of a processor step in {files.folder}",
                found=f"'{name}'",
                expected="a subclass of lerobot.processor.ProcessorStep",
            )


def _load_config(config_class: Any, files: CheckpointFiles) -> Any:
    import draccus

    try:
        # A file of its own, because the type may have been spelled otherwise or be missing.
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / CONFIG_FILE).write_text(json.dumps(dict(files.config)))
            return config_class.from_pretrained(scratch, local_files_only=True)
    except (draccus.utils.DraccusException, ValueError, TypeError, KeyError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(files.folder / CONFIG_FILE),
            found=f"not a configuration of type {files.kind} ({one_line(error)})",
            expected="what this LeRobot writes",
        ) from error


def _load_weights(get_policy_class: Any, config: Any, files: CheckpointFiles) -> Any:
    from safetensors import SafetensorError

    file = files.folder / WEIGHTS_FILE
    try:
        policy_class = get_policy_class(files.kind)
        # LeRobot announces the load on stdout, which belongs to the program's own results.
        with contextlib.redirect_stdout(sys.stderr):
            policy = policy_class.from_pretrained(str(files.folder), config=config, strict=True)
    except ImportError as error:
        raise _not_runnable(files.kind, error) from error
    except Exception as error:
        _reraise_own(error)
        # Policies fail to be built, and to load, with every kind of error.
        if "transformer version" in str(error):
            raise _not_runnable(files.kind, error) from error
        if isinstance(error, SafetensorError) or "state_dict" in str(error):
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                str(file),
                found=f"not the weights of config.json's model ({one_line(error)})",
                expected="exactly its tensors",
            ) from error
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(files.folder / CONFIG_FILE),
            found=f"not a model that can be built ({one_line(error)})",
            expected=f"a policy of type {files.kind}, and the models it names in the hub client's "
            "cache",
        ) from error
    _check_weights(policy, file)
    return policy.to(config.device).eval()


def _reraise_own(error: BaseException) -> None:
    """LeRobot wraps what is raised in the middle of it into errors of its own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, WorldForgeError):
            raise inner
        inner = inner.__cause__ or inner.__context__


def _not_runnable(kind: str, error: Exception) -> WorldForgeError:
    return mismatch(
        ErrorCode.DEPENDENCY_MISSING,
        f"what policy type {kind} needs",
        found=f"missing ({one_line(error)})",
        expected=f"LeRobot's extra for it, as in `pip install 'lerobot[{kind}]'`",
    )


def _check_weights(policy: Any, file: Path) -> None:
    """Every tensor of the file is in the model, and every one of the model comes from the file.

    Some policy classes catch what goes wrong while loading and go on with random weights.
    """
    import torch
    from safetensors import safe_open

    own = policy.state_dict()
    wrong: list[str] = []
    with safe_open(str(file), framework="pt") as stored:
        names = _renamed(policy, list(stored.keys()), own)
        for name, key in names.items():
            if name not in own:
                wrong.append(f"unexpected {key}")
                continue
            held, part = own[name].cpu(), stored.get_tensor(key)
            if held.shape != part.shape:
                wrong.append(f"shape of {key}")
            elif not torch.equal(part.to(held.dtype), held):
                wrong.append(f"value of {key}")
    places = {own[name].data_ptr() for name in names if name in own}
    wrong += [
        f"missing {name}"
        for name, tensor in own.items()
        if name not in names and tensor.data_ptr() not in places
    ]
    if wrong:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(file),
            found=f"not the weights of config.json's model ({'; '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''})",
            expected="exactly its tensors",
        )


def _renamed(policy: Any, keys: list[str], own: Mapping[str, Any]) -> dict[str, str]:
    """Name in the model by key in the file, as the policy's own loader translates them."""
    import torch

    fix = getattr(policy, "_fix_pytorch_state_dict_keys", None)
    names = dict(zip(keys, keys, strict=True))
    if fix is not None:
        numbered = {key: torch.tensor(number) for number, key in enumerate(keys)}
        names = {new: keys[int(number)] for new, number in fix(numbered, policy.config).items()}
    return {
        name if name in own or f"model.{name}" not in own else f"model.{name}": key
        for name, key in names.items()
    }


def _set_noise_scheduler(config: Any, name: str) -> None:
    if not hasattr(config, "noise_scheduler_type") or name not in ("DDIM", "DDPM"):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "noise_scheduler",
            found=f"'{name}' for a policy of type {config.type}",
            expected="DDIM or DDPM, and a diffusion policy",
        )
    config.noise_scheduler_type = name


def _device_override(folder: Path, place: torch.device) -> dict[str, Any]:
    """Where the pre-processor puts its tensors: the checkpoint names the device it was trained
    on.
    """
    steps = read_json(folder / PREPROCESSOR_FILE)["steps"]
    if any(step.get("registry_name") == "device_processor" for step in steps):
        return {"device_processor": {"device": str(place)}}
    return {}


def _check_action(config: Any, embodiment: Embodiment, name: str) -> None:
    action = config.action_feature
    joints = embodiment.joint_names
    if action is None or tuple(action.shape) != (len(joints),):
        found = "none" if action is None else f"shape {tuple(action.shape)}"
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"action of policy {name}",
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


def _check_statistics(
    config: Any, pipeline: Any, features: Mapping[str, Any], folder: Path
) -> None:
    """Every feature that the configuration declares normalised is, once, with its own numbers."""
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    declared = {
        name: config.normalization_mapping[feature.type.value]
        for name, feature in features.items()
        if config.normalization_mapping.get(feature.type.value) is not None
    }
    wanted = {name: mode for name, mode in declared.items() if mode.value in _NEEDED_STATISTICS}
    kinds = (NormalizerProcessorStep, UnnormalizerProcessorStep)
    steps = [step for step in pipeline.steps if isinstance(step, kinds)]
    if wanted and len(steps) != 1:
        raise mismatch(
            ErrorCode.POLICY_STATISTICS_MISSING,
            f"pipeline {pipeline.name} of policy {folder.name}",
            found=f"{len(steps)} normalising steps",
            expected=f"one, since {sorted(wanted)} are declared normalised",
        )
    for name, mode in wanted.items():
        step, feature = steps[0], features[name]
        applied = step.norm_map.get(feature.type) if name in step.features else None
        if applied != mode:
            raise mismatch(
                ErrorCode.POLICY_STATISTICS_MISSING,
                f"normalisation of {name} in policy {folder.name}",
                found="none" if applied is None else applied.value,
                expected=f"{mode.value}, as config.json declares",
            )
        _check_numbers(step.state_dict(), name, mode.value, feature, folder)


def _check_numbers(
    held: Mapping[str, Any], name: str, mode: str, feature: Any, folder: Path
) -> None:
    shape = tuple(feature.shape)
    if feature.type.value == "VISUAL":
        shape = (shape[0], 1, 1)
    for key in _NEEDED_STATISTICS[mode]:
        value = held.get(f"{name}.{key}")
        found = "absent"
        if value is not None:
            found = f"of shape {tuple(value.shape)}"
            if tuple(value.shape) == shape:
                if bool(value.isfinite().all()):
                    continue
                found = "not finite"
        raise mismatch(
            ErrorCode.POLICY_STATISTICS_MISSING,
            f"{key} of {name} in policy {folder.name}",
            found=found,
            expected=f"finite numbers of shape {shape}, since it is declared {mode}",
        )
