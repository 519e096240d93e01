"""Policy checkpoints of LeRobot before 0.4, rewritten for the installed LeRobot.

Until LeRobot 0.3.3 a policy normalised inside its model: ``model.safetensors`` holds the statistics
beside the weights, as ``normalize_inputs.buffer_<feature>.<statistic>``, ``normalize_targets...``
and ``unnormalize_outputs...``, where ``<feature>`` is the feature's name with every ``.`` replaced
by ``_`` (``lerobot/policies/normalize.py`` of 0.3.3). Since 0.4 the statistics live in processor
files. The replacement cannot be undone from the buffer's name alone
(``observation_environment_state`` is ``observation.environment_state``), so the names are those
that ``config.json`` declares, and a buffer that belongs to none of them is an error.

``config.json`` has two old forms: ``input_features`` and ``normalization_mapping`` (2025), and
``input_shapes`` and ``input_normalization_modes`` (2024, in which no type is written either).

Nothing is downloaded and nothing is unpickled. LeRobot is imported inside functions.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldforge_ros import __version__
from worldforge_ros.checkpoints import file_sha256
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.policies.checkpoint import (
    CONFIG_FILE,
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    one_line,
    read_json,
    sealed,
)
from worldforge_ros.process import quiet_openmp

if TYPE_CHECKING:
    import torch

MIGRATED_TYPES = ("act", "diffusion", "vqbet", "tdmpc")
"""Policy types whose old checkpoints are understood: all that kept their statistics this way."""

CARD_FILE = "README.md"

_HYDRA_FILE = "config.yaml"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
_HARMLESS = (
    CARD_FILE,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "CITATION.cff",
    "train_config.json",
    _HYDRA_FILE,
)
_STATISTICS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}
_FEATURE_TYPES = ("STATE", "VISUAL", "ENV", "ACTION")
_FORM_2024 = (
    "input_shapes",
    "output_shapes",
    "input_normalization_modes",
    "output_normalization_modes",
)
_OLD_EPSILON = 1e-8
_NOTABLE = 1e-5

# What a field meant where the file does not have it, for fields whose default was changed later.
_OLD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "diffusion": {
        "horizon": 16,
        "n_action_steps": 8,
        "crop_shape": [84, 84],
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
    },
    "vqbet": {"use_group_norm": True},
}
# Fields that LeRobot took away, with the value that changes nothing; an unused one has any value.
_ANY = object()
_REMOVED_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "act": {"temporal_ensemble_momentum": None, "use_temporal_aggregation": False},
    "vqbet": {"mlp_hidden_dim": _ANY},
}
# The position embeddings of the latent and the state; renamed in July 2024 when a third came.
_RENAMED_TENSORS: Mapping[str, Mapping[str, str]] = {
    "act": {
        "model.encoder_robot_and_latent_pos_embed.weight": (
            "model.encoder_1d_feature_pos_embed.weight"
        )
    },
}


@dataclass(frozen=True)
class MigratedFeature:
    """A feature of the policy and the buffers its statistics came from.

    ``type`` and ``mode`` are LeRobot's words (``STATE``, ``MEAN_STD``); ``shape`` is the declared
    one without batch and time; ``buffers`` are names in the old weights file, none for
    ``IDENTITY``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    mode: str
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class Migration:
    """What was done: written by :func:`migrate_policy`, printed by ``worldforge migrate-policy``.

    ``parameters`` counts the model's numbers, normalisation not included; ``sha256`` is that of the
    new ``model.safetensors``.
    """

    old: str
    new: str
    type: str
    parameters: int
    tensors: int
    sha256: str
    features: tuple[MigratedFeature, ...]
    files: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Declared:
    """A feature as ``config.json`` declares it."""

    name: str
    type: str
    shape: tuple[int, ...]
    mode: str

    @property
    def statistics(self) -> tuple[str, ...]:
        return _STATISTICS[self.mode]

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Pictures are normalised per channel."""
        return (self.shape[0], 1, 1) if self.type == "VISUAL" else self.shape

    def buffer(self, group: str, statistic: str) -> str:
        return f"{group}.buffer_{self.name.replace('.', '_')}.{statistic}"


@dataclass(frozen=True)
class _OldConfig:
    """``config.json`` of either old form: the features, and the other fields as they are."""

    file: Path
    type: str
    inputs: tuple[_Declared, ...]
    outputs: tuple[_Declared, ...]
    modes: Mapping[str, str]
    fields: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def groups(self) -> tuple[tuple[str, tuple[_Declared, ...]], ...]:
        return (
            ("normalize_inputs", self.inputs),
            ("normalize_targets", self.outputs),
            ("unnormalize_outputs", self.outputs),
        )


def migrate_policy(old: str | Path, new: str | Path) -> Migration:
    """Write the checkpoint folder ``old`` of LeRobot before 0.4 as ``new`` for the installed one.

    The model's tensors are copied bit for bit, under the same names, and must load strictly. The
    result is assembled in a folder beside ``new`` and renamed to it at the end, so ``new`` is there
    whole or not at all. ``old`` is only read.

    :param new: a folder that does not exist, or is empty.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for ``new`` in use and for ``old`` that needs no
        migration; ``CHECKPOINT_MISSING``; ``CHECKPOINT_UNTRUSTED`` where the only weights are
        pickled; ``CHECKPOINT_INVALID`` for a configuration or weights that the installed LeRobot
        does not take, and for statistics of a wrong shape; ``POLICY_TYPE_UNKNOWN``;
        ``POLICY_FEATURE_MISMATCH`` for a buffer of no declared feature, or of two;
        ``POLICY_STATISTICS_MISSING`` for statistics that are absent or not finite;
        ``DEPENDENCY_MISSING``.
    """
    source = Path(old).expanduser().resolve()
    target = Path(new).expanduser().resolve()
    _check_source(source)
    _check_target(target)
    config = _read_config(source)
    quiet_openmp()
    tensors = _read_tensors(source / WEIGHTS_FILE)
    buffers = {key: value for key, value in tensors.items() if _is_buffer(key)}
    statistics, features = _match(buffers, config)
    weights = {key: value for key, value in tensors.items() if key not in buffers}
    notes = [*config.notes, *_rename(weights, config.type), *_range_notes(statistics)]
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    except OSError as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"parent of the new folder {target}",
            found=f"not writable ({one_line(error)})",
            expected="a folder to write into",
        ) from error
    try:
        with sealed():
            parameters, more = _write_policy(staging, config, weights, statistics)
        notes += more
        files = tuple(sorted(path.name for path in staging.iterdir()))
        copied, left_out = _copy_rest(source, staging)
        _sign_card(staging, source)
        for file in staging.iterdir():
            file.chmod(0o644)
        sha256 = file_sha256(staging / WEIGHTS_FILE)
        try:
            staging.rename(target)
        except OSError as error:
            raise _occupied(target) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Migration(
        old=str(source),
        new=str(target),
        type=config.type,
        parameters=parameters,
        tensors=len(weights),
        sha256=sha256,
        features=features,
        files=files,
        copied=copied,
        left_out=left_out,
        notes=tuple(notes),
    )


def _check_source(source: Path) -> None:
    if not source.is_dir():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "old checkpoint",
            found=f"no folder {source}",
            expected=f"a LeRobot folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
        )
    processors = (PREPROCESSOR_FILE, POSTPROCESSOR_FILE)
    present = [name for name in processors if (source / name).exists()]
    if present:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"old checkpoint {source}",
            found=f"migrated already: it has {' and '.join(present)}",
            expected="a checkpoint of LeRobot before 0.4, without processor files",
        )
    if not (source / WEIGHTS_FILE).is_file():
        pickled = sorted(p.name for p in source.iterdir() if p.suffix in _PICKLES)
        if pickled:
            raise mismatch(
                ErrorCode.CHECKPOINT_UNTRUSTED,
                f"weights of {source}",
                found=f"pickled ({', '.join(pickled)}), which runs code when it is read",
                expected=WEIGHTS_FILE,
            )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (source / name).is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_MISSING,
                f"old checkpoint {source}",
                found=f"without {name}",
                expected=f"a LeRobot folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
            )


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _occupied(target)


def _occupied(target: Path) -> Exception:
    return mismatch(
        ErrorCode.INVALID_ARGUMENT,
        f"new folder {target}",
        found="in use",
        expected="a folder that does not exist or is empty",
    )


def _read_config(source: Path) -> _OldConfig:
    file = source / CONFIG_FILE
    fields = read_json(file)
    kind, notes = _policy_type(source, fields.pop("type", None))
    if "input_features" in fields:
        return _config_2025(file, kind, fields, notes)
    if "input_shapes" in fields:
        return _config_2024(file, kind, fields, notes)
    raise mismatch(
        ErrorCode.CHECKPOINT_INVALID,
        str(file),
        found="without input_features and input_shapes",
        expected="one of them: the names of the features that the statistics belong to",
    )


def _policy_type(source: Path, declared: object) -> tuple[str, tuple[str, ...]]:
    """The type in ``config.json`` or, in the form of 2024, ``policy.name`` of ``config.yaml``."""
    notes: tuple[str, ...] = ()
    where = CONFIG_FILE
    if declared is None and (source / _HYDRA_FILE).is_file():
        where = _HYDRA_FILE
        declared = _hydra_name(source / _HYDRA_FILE)
        notes = (f"type {declared} is policy.name of {_HYDRA_FILE}; {CONFIG_FILE} has none",)
    if declared not in MIGRATED_TYPES:
        missing = declared is None
        raise mismatch(
            ErrorCode.POLICY_TYPE_UNKNOWN,
            f"policy type in {source / where}",
            found="not given" if missing else f"'{declared}'",
            expected=f"one of {', '.join(MIGRATED_TYPES)}"
            + (f", as 'type' there or as policy.name in {_HYDRA_FILE}" if missing else ""),
        )
    return str(declared), notes


def _hydra_name(file: Path) -> object:
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(file),
            found=f"not readable as YAML ({one_line(error)})",
            expected="the settings of the training run",
        ) from error
    policy = data.get("policy") if isinstance(data, dict) else None
    return policy.get("name") if isinstance(policy, dict) else None


def _config_2025(
    file: Path, kind: str, fields: dict[str, Any], notes: tuple[str, ...]
) -> _OldConfig:
    modes = {}
    key = "normalization_mapping"
    for name, mode in _mapping(fields.pop(key, None), file, key).items():
        modes[name] = _mode(mode, f"{key}.{name} in {file}")
    groups = []
    for key in ("input_features", "output_features"):
        declared = []
        for name, data in _mapping(fields.pop(key, None), file, key).items():
            where = f"{key}.{name} in {file}"
            entry = data if isinstance(data, dict) else {}
            type_name = entry.get("type")
            if type_name not in _FEATURE_TYPES:
                raise mismatch(
                    ErrorCode.CHECKPOINT_INVALID,
                    where,
                    found=data,
                    expected=f"a shape, and a type of {', '.join(_FEATURE_TYPES)}",
                )
            shape = _shape(entry.get("shape"), str(type_name), where)
            mode = modes.get(str(type_name), "IDENTITY")
            declared.append(_Declared(name, str(type_name), shape, mode))
        groups.append(tuple(declared))
    return _OldConfig(file, kind, groups[0], groups[1], modes, fields, notes)


def _config_2024(
    file: Path, kind: str, fields: dict[str, Any], notes: tuple[str, ...]
) -> _OldConfig:
    """Modes by feature become modes by type, which is all that later forms can say."""
    tables = {key: _mapping(fields.pop(key, None) or {}, file, key) for key in _FORM_2024}
    modes: dict[str, str] = {}
    groups = []
    for shapes, chosen in (
        ("input_shapes", "input_normalization_modes"),
        ("output_shapes", "output_normalization_modes"),
    ):
        stray = sorted(set(tables[chosen]) - set(tables[shapes]))
        if stray:
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"{chosen} in {file}",
                found=f"for {', '.join(stray)}",
                expected=f"only features of {shapes}: {', '.join(sorted(tables[shapes]))}",
            )
        declared = []
        for name, size in tables[shapes].items():
            type_name = _type_2024(name, f"{shapes} in {file}")
            given = tables[chosen].get(name)
            mode = "IDENTITY" if given is None else str(given).upper()
            mode = _mode(mode, f"{chosen}.{name} in {file}")
            if modes.setdefault(type_name, mode) != mode:
                raise mismatch(
                    ErrorCode.CHECKPOINT_INVALID,
                    f"{chosen}.{name} in {file}",
                    found=f"{mode} where another {type_name} feature has {modes[type_name]}",
                    expected="one mode for all of a type, since LeRobot 0.4 knows no other",
                )
            shape = _shape(size, type_name, f"{shapes}.{name} in {file}")
            declared.append(_Declared(name, type_name, shape, mode))
        groups.append(tuple(declared))
    return _OldConfig(file, kind, groups[0], groups[1], modes, fields, notes)


def _type_2024(name: str, where: str) -> str:
    """What a name stood for in the policies of 2024."""
    exact = {
        "observation.state": "STATE",
        "observation.environment_state": "ENV",
        "action": "ACTION",
    }
    if name in exact:
        return exact[name]
    if name.startswith("observation.image"):
        return "VISUAL"
    raise mismatch(
        ErrorCode.POLICY_FEATURE_MISMATCH,
        where,
        found=f"'{name}'",
        expected=f"{', '.join(exact)}, or a name that begins with observation.image",
    )


def _mapping(value: object, file: Path, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID, f"{key} in {file}", found=value, expected="an object"
        )
    return value


def _mode(value: object, where: str) -> str:
    if value not in _STATISTICS:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            where,
            found=value,
            expected=f"one of {', '.join(_STATISTICS)}",
        )
    return str(value)


def _shape(value: object, type_name: str, where: str) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else []
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    if not sizes or len(whole) != len(sizes) or (type_name == "VISUAL" and len(sizes) != 3):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"shape of {where}",
            found=value,
            expected="[channels, height, width]" if type_name == "VISUAL" else "whole numbers",
        )
    return tuple(whole)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise _no_lerobot(error) from error
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(file),
            found=f"not readable ({one_line(error)})",
            expected="tensors in the safetensors format",
        ) from error


def _no_lerobot(error: ImportError) -> Exception:
    return mismatch(
        ErrorCode.DEPENDENCY_MISSING,
        "LeRobot",
        found=f"not importable ({error})",
        expected="the package lerobot 0.4.4 or later, with what this type of policy needs",
    )


def _is_buffer(key: str) -> bool:
    return key.startswith(("normalize_inputs.", "normalize_targets.", "unnormalize_outputs."))


def _match(
    buffers: Mapping[str, torch.Tensor], config: _OldConfig
) -> tuple[dict[str, dict[str, torch.Tensor]], tuple[MigratedFeature, ...]]:
    """Statistics (float32) by declared feature; every buffer must have exactly one owner."""
    owners: dict[str, tuple[_Declared, str]] = {}
    for group, features in config.groups:
        for feature in features:
            for statistic in feature.statistics:
                key = feature.buffer(group, statistic)
                other = owners.setdefault(key, (feature, statistic))[0]
                if other.name != feature.name:
                    raise mismatch(
                        ErrorCode.POLICY_FEATURE_MISMATCH,
                        f"buffer {key}",
                        found=f"that of both {other.name} and {feature.name}",
                        expected="the statistics of one feature",
                    )
    declared = ", ".join(f"{f.name} ({f.mode})" for f in (*config.inputs, *config.outputs))
    strangers = sorted(set(buffers) - set(owners))
    if strangers:
        raise mismatch(
            ErrorCode.POLICY_FEATURE_MISMATCH,
            f"normalisation in {config.file.parent / WEIGHTS_FILE}",
            found=f"of no declared feature ({', '.join(strangers)})",
            expected=f"statistics of the features in {CONFIG_FILE}: {declared}",
        )
    absent = sorted(set(owners) - set(buffers))
    if absent:
        raise mismatch(
            ErrorCode.POLICY_STATISTICS_MISSING,
            f"normalisation in {config.file.parent / WEIGHTS_FILE}",
            found=f"without {', '.join(absent)}",
            expected=f"statistics of the features in {CONFIG_FILE}: {declared}",
        )
    statistics: dict[str, dict[str, torch.Tensor]] = {}
    for key, (feature, statistic) in owners.items():
        value = _statistic(buffers[key], key, feature)
        earlier = statistics.setdefault(feature.name, {}).setdefault(statistic, value)
        if not bool((earlier == value).all()):
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"buffer {key}",
                found=f"{value.tolist()} where normalize_targets has {earlier.tolist()}",
                expected="the same, since actions are written and read with one set of statistics",
            )
    matched = tuple(
        MigratedFeature(
            feature.name,
            feature.type,
            feature.shape,
            feature.mode,
            tuple(key for key, (owner, _) in owners.items() if owner is feature),
        )
        for feature in (*config.inputs, *config.outputs)
    )
    return statistics, matched


def _statistic(value: torch.Tensor, key: str, feature: _Declared) -> torch.Tensor:
    import torch

    if tuple(value.shape) != feature.statistics_shape:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"buffer {key}",
            found=f"of shape {tuple(value.shape)}",
            expected=f"{feature.statistics_shape}, since {feature.name} is {feature.shape}",
        )
    if not bool(torch.isfinite(value).all()):
        raise mismatch(
            ErrorCode.POLICY_STATISTICS_MISSING,
            f"buffer {key}",
            found=f"{value.flatten().tolist()[:8]}: never filled, or damaged",
            expected=f"finite statistics of {feature.name}",
        )
    return value.to(torch.float32).contiguous()


def _rename(weights: dict[str, torch.Tensor], kind: str) -> list[str]:
    notes = []
    for before, after in _RENAMED_TENSORS.get(kind, {}).items():
        if before in weights and after not in weights:
            weights[after] = weights.pop(before)
            notes.append(f"tensor {before} is {after} since July 2024")
    return notes


def _range_notes(statistics: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    """Where the formulas of ``MIN_MAX`` differ enough to say so.

    Old: ``2 (x - min) / (max - min + 1e-8) - 1``; since 0.4 the ``1e-8`` is there only where max =
    min. Between min and max that changes a normalised value by at most ``2e-8 / (max - min)``.
    """
    notes = []
    for name, values in statistics.items():
        if "min" in values:
            width = (values["max"] - values["min"]).flatten()
            narrow = (width > 0) & (width < 2 * _OLD_EPSILON / _NOTABLE)
            if bool(narrow.any()):
                elements = ", ".join(str(int(i)) for i in narrow.nonzero().flatten())
                smallest = float(width[narrow].min())
                notes.append(
                    f"{name}: element {elements} has a range as small as {smallest:.1e}; LeRobot "
                    "0.4 leaves out the 1e-8 that the old code added to it, so a normalised value "
                    f"may differ by up to {2 * _OLD_EPSILON / smallest:.1e}"
                )
    return notes


def _write_policy(
    folder: Path,
    config: _OldConfig,
    weights: Mapping[str, torch.Tensor],
    statistics: Mapping[str, Mapping[str, torch.Tensor]],
) -> tuple[int, list[str]]:
    """Configuration, weights and both processors; number of parameters, and what to tell."""
    try:
        import draccus
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from safetensors.torch import save_file

        policy_class = get_policy_class(config.type)
    except ImportError as error:
        raise _no_lerobot(error) from error
    fields, notes = _new_fields(config, list(policy_class.config_class.__dataclass_fields__))
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=4), encoding="utf-8")
    save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    try:
        settings = PreTrainedConfig.from_pretrained(str(folder), local_files_only=True)
    except (draccus.utils.DraccusException, ValueError, TypeError, KeyError) as error:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(config.file),
            found=f"not a configuration of type {config.type} ({one_line(error)})",
            expected="fields that the installed LeRobot knows",
        ) from error
    settings.save_pretrained(folder)
    try:
        # LeRobot announces the load on stdout, which belongs to the program's own results.
        with contextlib.redirect_stdout(sys.stderr):
            policy = policy_class.from_pretrained(str(folder), config=settings, strict=True)
    except ImportError as error:
        raise _no_lerobot(error) from error
    except Exception as error:
        # Policies fail to be built, and to load, with every kind of error.
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            str(config.file.parent / WEIGHTS_FILE),
            found=f"not the weights of {CONFIG_FILE}'s model ({one_line(error)})",
            expected="exactly its tensors, beside the normalisation",
        ) from error
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    for processor in make_pre_post_processors(settings, dataset_stats=statistics):
        processor.save_pretrained(folder)
    return parameters, notes


def _new_fields(config: _OldConfig, known: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Fields of ``config.json`` as LeRobot has them since 0.4."""
    notes = []
    fields = dict(config.fields)
    for name, harmless in _REMOVED_FIELDS.get(config.type, {}).items():
        if name in fields and name not in known:
            value = fields.pop(name)
            if harmless is not _ANY and value != harmless:
                raise mismatch(
                    ErrorCode.CHECKPOINT_INVALID,
                    f"{name} in {config.file}",
                    found=value,
                    expected=f"{harmless}: LeRobot has this no more, so the policy would act "
                    "differently",
                )
            notes.append(f"{name} ({value}) left out: LeRobot has no such field now")
    for name, value in _OLD_DEFAULTS.get(config.type, {}).items():
        if name in known and name not in fields:
            fields[name] = value
            notes.append(f"{name} is {value}, the default when {CONFIG_FILE} was written")
    if fields.get("pretrained_backbone_weights") is not None:
        notes.append(
            f"pretrained_backbone_weights ({fields['pretrained_backbone_weights']}) is null now: "
            f"{WEIGHTS_FILE} holds the backbone, and LeRobot would download the other first"
        )
        fields["pretrained_backbone_weights"] = None
    if fields.get("device") not in (None, "cpu"):
        notes.append(f"device ({fields['device']}) is cpu now, which every machine has")
    fields["device"] = "cpu"
    return {
        "type": config.type,
        **fields,
        "input_features": _new_features(config.inputs),
        "output_features": _new_features(config.outputs),
        "normalization_mapping": dict(config.modes),
    }, notes


def _new_features(features: Sequence[_Declared]) -> dict[str, Any]:
    return {f.name: {"type": f.type, "shape": list(f.shape)} for f in features}


def _copy_rest(source: Path, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy text that says what the checkpoint is; returns the names copied and those left out."""
    copied = []
    left_out = []
    for path in sorted(source.iterdir()):
        if path.name in (CONFIG_FILE, WEIGHTS_FILE):
            continue
        if path.name in _HARMLESS and path.is_file():
            shutil.copyfile(path, folder / path.name)
            copied.append(path.name)
        else:
            left_out.append(path.name + ("/" if path.is_dir() else ""))
    return tuple(copied), tuple(left_out)


def _sign_card(folder: Path, source: Path) -> None:
    """Say in the model card, which may be absent, where this checkpoint comes from."""
    line = (
        f"Migrated from the format of LeRobot before 0.4 by worldforge_ros {__version__} with "
        f"lerobot {version('lerobot')}: the normalisation statistics moved from `{WEIGHTS_FILE}` "
        f"(SHA-256 {file_sha256(source / WEIGHTS_FILE)}) into the processor files; the weights are "
        "unchanged.\n"
    )
    card = folder / CARD_FILE
    text = card.read_bytes() if card.is_file() else b""
    card.write_bytes(text + (b"\n\n" if text else b"") + line.encode())
