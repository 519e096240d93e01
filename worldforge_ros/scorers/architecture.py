"""LeWorldModel architectures from a strict schema: a checkpoint's configuration can name no other
code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.scorers.encoders import ConvEncoder

LEWM = "stable_worldmodel.wm.lewm.LeWM"
PREDICTOR = "stable_worldmodel.wm.lewm.module.Predictor"
EMBEDDER = "stable_worldmodel.wm.lewm.module.Embedder"
MLP = "stable_worldmodel.wm.lewm.module.MLP"
CONV_ENCODER = "worldforge_ros.scorers.encoders.ConvEncoder"
VIT_ENCODER = "transformers.ViTModel"
BATCH_NORM = "torch.nn.BatchNorm1d"

_PREDICTOR_KEYS = ("num_frames", "depth", "heads", "mlp_dim", "input_dim", "hidden_dim", "dim_head")
_EMBEDDER_KEYS = ("input_dim", "smoothed_dim", "emb_dim", "mlp_scale")
_MLP_KEYS = ("input_dim", "hidden_dim", "output_dim")
_VIT_KEYS = (
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
ENCODERS = ("conv", "vit")
"""Encoders that :func:`default_config` knows."""
_LARGEST = 65536


def default_config(
    image_size: int, action_dim: int, *, dim: int = 128, encoder: str = "conv"
) -> dict[str, Any]:
    """The small LeWorldModel that this package trains (about 2 million parameters).

    :param encoder: ``conv``, or ``vit`` with patches of a quarter of the picture's side.
    """
    encoders: dict[str, dict[str, Any]] = {
        "conv": {
            "_target_": CONV_ENCODER,
            "image_size": image_size,
            "channels": [24, 48, 96, 128],
            "maps": 32,
            "dim": dim,
        },
        "vit": {
            "_target_": VIT_ENCODER,
            "image_size": image_size,
            "patch_size": max(1, image_size // 4),
            "hidden_size": dim,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 4 * dim,
        },
    }

    def head() -> dict[str, Any]:
        return {
            "_target_": MLP,
            "input_dim": dim,
            "hidden_dim": 4 * dim,
            "output_dim": dim,
            "norm_fn": BATCH_NORM,
        }

    return {
        "_target_": LEWM,
        "encoder": encoders[encoder],
        "predictor": {
            "_target_": PREDICTOR,
            "num_frames": 3,
            "depth": 3,
            "heads": 4,
            "dim_head": 32,
            "mlp_dim": 512,
            "input_dim": dim,
            "hidden_dim": dim,
        },
        "action_encoder": {
            "_target_": EMBEDDER,
            "input_dim": action_dim,
            "smoothed_dim": action_dim,
            "emb_dim": dim,
            "mlp_scale": 4,
        },
        "projector": head(),
        "pred_proj": head(),
    }


def build_lewm(config: object) -> Any:
    """A ``stable_worldmodel.wm.lewm.LeWM`` with random weights from a configuration tree.

    :raises WorldForgeError: ``CHECKPOINT_INVALID`` naming the first entry that the schema does not
        allow, ``DEPENDENCY_MISSING`` without stable-worldmodel.
    """
    top = _entry(config, "config", LEWM)
    parts = ("encoder", "predictor", "action_encoder", "projector", "pred_proj")
    _keys(top, "config", parts)
    encoder = _encoder(top["encoder"])
    numbers = {
        name: _numbers(_entry(top[name], f"config.{name}", target), f"config.{name}", keys)
        for name, target, keys in (
            ("predictor", PREDICTOR, _PREDICTOR_KEYS),
            ("action_encoder", EMBEDDER, _EMBEDDER_KEYS),
        )
    }
    heads = {}
    for name in ("projector", "pred_proj"):
        head = _entry(top[name], f"config.{name}", MLP)
        _keys(head, f"config.{name}", (*_MLP_KEYS, "norm_fn"))
        if head["norm_fn"] != BATCH_NORM:
            raise _invalid(f"config.{name}.norm_fn", head["norm_fn"], BATCH_NORM)
        heads[name] = {key: _whole(head[key], f"config.{name}.{key}") for key in _MLP_KEYS}
    try:
        with warnings.catch_warnings():
            # Importing the package looks for environments that have nothing to do with its models.
            warnings.filterwarnings("ignore", message="ale-py not found")
            from stable_worldmodel.wm.lewm import LeWM
            from stable_worldmodel.wm.lewm.module import MLP as Head
            from stable_worldmodel.wm.lewm.module import Embedder, Predictor
    except ImportError as error:
        raise WorldForgeError(
            ErrorCode.DEPENDENCY_MISSING,
            f"LeWorldModel could not import {error.name or 'stable_worldmodel'} ({error}); "
            "expected the package stable-worldmodel",
        ) from error
    return cast(
        Any,
        LeWM(
            encoder=encoder,
            predictor=Predictor(**numbers["predictor"]),
            action_encoder=Embedder(**numbers["action_encoder"]),
            projector=Head(norm_fn=nn.BatchNorm1d, **heads["projector"]),
            pred_proj=Head(norm_fn=nn.BatchNorm1d, **heads["pred_proj"]),
        ),
    )


def _encoder(value: object) -> nn.Module:
    path = "config.encoder"
    if isinstance(value, Mapping) and value.get("_target_") == VIT_ENCODER:
        sizes = _numbers(value, path, _VIT_KEYS)
        from transformers import ViTConfig, ViTModel

        return cast(nn.Module, ViTModel(ViTConfig(**sizes), add_pooling_layer=False))
    entry = _entry(value, path, CONV_ENCODER)
    _keys(entry, path, ("image_size", "channels", "maps", "dim"))
    channels = entry["channels"]
    if not isinstance(channels, list) or not 3 <= len(channels) <= 8:
        raise _invalid(f"{path}.channels", channels, "a list of 3 to 8 whole numbers")
    return ConvEncoder(
        channels=tuple(_whole(item, f"{path}.channels") for item in channels),
        **{key: _whole(entry[key], f"{path}.{key}") for key in ("image_size", "maps", "dim")},
    )


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, field, found=repr(found), expected=expected)


def _entry(value: object, path: str, target: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(path, value, "a mapping")
    if value.get("_target_") != target:
        raise _invalid(f"{path}._target_", value.get("_target_"), target)
    return value


def _keys(value: Mapping[str, Any], path: str, keys: tuple[str, ...]) -> None:
    if set(value) - {"_target_"} != set(keys):
        raise _invalid(path, sorted(set(value) - {"_target_"}), f"exactly {sorted(keys)}")


def _numbers(value: Mapping[str, Any], path: str, keys: tuple[str, ...]) -> dict[str, int]:
    _keys(value, path, keys)
    return {key: _whole(value[key], f"{path}.{key}") for key in keys}


def _whole(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise _invalid(path, value, f"a whole number from 1 to {_LARGEST}")
    return value
