"""LeWorldModel architectures from a strict schema: a checkpoint's configuration can name no other
code.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from torch import nn

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.scorers.encoders import ConvEncoder, ImageSize, height_width

LEWM = "stable_worldmodel.wm.lewm.LeWM"
PREDICTOR = "stable_worldmodel.wm.lewm.module.Predictor"
EMBEDDER = "stable_worldmodel.wm.lewm.module.Embedder"
MLP = "stable_worldmodel.wm.lewm.module.MLP"
CONV_ENCODER = "worldforge_ros.scorers.encoders.ConvEncoder"
VIT_ENCODER = "transformers.ViTModel"
VIT_BY_SIZE = "stable_pretraining.backbone.utils.vit_hf"
BATCH_NORM = "torch.nn.BatchNorm1d"

_SAME = {
    LEWM: ("jepa.JEPA", "stable_worldmodel.wm.lewm.lewm.LeWM"),
    PREDICTOR: ("module.ARPredictor",),
    EMBEDDER: ("module.Embedder",),
    MLP: ("module.MLP",),
}
"""Other names of the same classes in published checkpoints: le-wm had them in modules of its own
before they moved to stable-worldmodel."""
_PREDICTOR_KEYS = ("num_frames", "depth", "heads", "mlp_dim", "input_dim", "hidden_dim")
_PREDICTOR_DEFAULTS = {"dim_head": 64}
_EMBEDDER_KEYS = ("input_dim", "emb_dim")
_EMBEDDER_DEFAULTS = {"smoothed_dim": 10, "mlp_scale": 4}
_DROPOUTS = ("dropout", "emb_dropout")
_MLP_KEYS = ("input_dim", "hidden_dim", "output_dim")
_VIT_KEYS = (
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
_VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, layers and heads of ``stable_pretraining.backbone.utils.vit_hf``, by ``size``."""
ENCODERS = ("conv", "vit")
"""Encoders that :func:`default_config` knows."""
_VIT_FLAGS = ("pretrained", "use_mask_token")
_LARGEST = 65536


def default_config(
    image_size: ImageSize,
    action_dim: int,
    *,
    dim: int = 128,
    encoder: str = "conv",
    channels: Sequence[int] = (24, 48, 96, 128),
    stem: int = 2,
) -> dict[str, Any]:
    """The small LeWorldModel that this package trains (1 to 2 million parameters).

    :param encoder: ``conv``, or ``vit`` with patches of a quarter of the picture's side.
    :param channels: of ``conv``, one halving of the picture each, the first by ``stem``.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for ``vit`` with a picture that is not square.
    """
    height, width = height_width(image_size)
    if encoder == "vit" and height != width:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "picture size of encoder vit",
            found=f"{height} x {width}",
            expected="a square",
        )
    encoders: dict[str, dict[str, Any]] = {
        "conv": {
            "_target_": CONV_ENCODER,
            "image_size": height if height == width else [height, width],
            "channels": list(channels),
            "maps": 32,
            "dim": dim,
            **({} if stem == 2 else {"stem": stem}),
        },
        "vit": {
            "_target_": VIT_ENCODER,
            "image_size": height,
            "patch_size": max(1, height // 4),
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
            "mlp_dim": 4 * dim,
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


def published_config(action_dim: int) -> dict[str, Any]:
    """The LeWorldModel of the paper (18 million parameters) as its ``config.json`` on the hub."""

    def head() -> dict[str, Any]:
        return {
            "_target_": MLP,
            "input_dim": 192,
            "hidden_dim": 2048,
            "output_dim": 192,
            "norm_fn": {"_target_": BATCH_NORM, "_partial_": True},
        }

    return {
        "_target_": LEWM,
        "encoder": {
            "_target_": VIT_BY_SIZE,
            "size": "tiny",
            "patch_size": 14,
            "image_size": 224,
            "pretrained": False,
            "use_mask_token": False,
        },
        "predictor": {
            "_target_": PREDICTOR,
            "num_frames": 3,
            "input_dim": 192,
            "hidden_dim": 192,
            "output_dim": 192,
            "depth": 6,
            "heads": 16,
            "mlp_dim": 2048,
            "dim_head": 64,
            "dropout": 0.1,
            "emb_dropout": 0.0,
        },
        "action_encoder": {"_target_": EMBEDDER, "input_dim": action_dim, "emb_dim": 192},
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
    encoder, width = _encoder(top["encoder"])
    path = "config.predictor"
    entry = _entry(top["predictor"], path, PREDICTOR)
    _keys(entry, path, _PREDICTOR_KEYS, (*_PREDICTOR_DEFAULTS, "output_dim", *_DROPOUTS))
    for key in _DROPOUTS:
        _share(entry.get(key, 0.0), f"{path}.{key}")
    predictor = {
        key: _whole(entry.get(key, _PREDICTOR_DEFAULTS.get(key)), f"{path}.{key}")
        for key in (*_PREDICTOR_KEYS, *_PREDICTOR_DEFAULTS)
    }
    if entry.get("output_dim", predictor["input_dim"]) != predictor["input_dim"]:
        raise _invalid(f"{path}.output_dim", entry["output_dim"], "the same as input_dim")
    path = "config.action_encoder"
    entry = _entry(top["action_encoder"], path, EMBEDDER)
    _keys(entry, path, _EMBEDDER_KEYS, tuple(_EMBEDDER_DEFAULTS))
    embedder = {
        key: _whole(entry.get(key, _EMBEDDER_DEFAULTS.get(key)), f"{path}.{key}")
        for key in (*_EMBEDDER_KEYS, *_EMBEDDER_DEFAULTS)
    }
    heads = {}
    for name in ("projector", "pred_proj"):
        head = _entry(top[name], f"config.{name}", MLP)
        _keys(head, f"config.{name}", (*_MLP_KEYS, "norm_fn"))
        norm = head["norm_fn"]
        if norm not in (BATCH_NORM, {"_target_": BATCH_NORM, "_partial_": True}):
            raise _invalid(f"config.{name}.norm_fn", norm, BATCH_NORM)
        heads[name] = {key: _whole(head[key], f"config.{name}.{key}") for key in _MLP_KEYS}
    dim = heads["projector"]["output_dim"]
    chain = (
        ("projector.input_dim", heads["projector"]["input_dim"], width, "encoder"),
        ("predictor.input_dim", predictor["input_dim"], dim, "projector"),
        ("action_encoder.emb_dim", embedder["emb_dim"], dim, "projector"),
        ("pred_proj.input_dim", heads["pred_proj"]["input_dim"], dim, "projector"),
        ("pred_proj.output_dim", heads["pred_proj"]["output_dim"], dim, "projector"),
    )
    for field, found, expected, giver in chain:
        if found != expected:
            raise _invalid(f"config.{field}", found, f"{expected}, what the {giver} gives")
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
            predictor=Predictor(**predictor),
            action_encoder=Embedder(**embedder),
            projector=Head(norm_fn=nn.BatchNorm1d, **heads["projector"]),
            pred_proj=Head(norm_fn=nn.BatchNorm1d, **heads["pred_proj"]),
        ),
    )


def _encoder(value: object) -> tuple[nn.Module, int]:
    """An encoder and the width of its embeddings."""
    path = "config.encoder"
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and target in (VIT_ENCODER, VIT_BY_SIZE):
        from transformers import ViTConfig, ViTModel

        masked = False
        if target == VIT_ENCODER:
            sizes = _numbers(value, path, _VIT_KEYS)
        else:
            _keys(value, path, ("size",), ("patch_size", "image_size", *_VIT_FLAGS))
            sizes = _sizes(value, path)
            masked = value.get("use_mask_token", True)
        vit = ViTModel(ViTConfig(**sizes), add_pooling_layer=False, use_mask_token=masked)
        return vit, sizes["hidden_size"]
    entry = _entry(value, path, CONV_ENCODER)
    _keys(entry, path, ("image_size", "channels", "maps", "dim"), ("stem",))
    channels = entry["channels"]
    if not isinstance(channels, list) or not 3 <= len(channels) <= 8:
        raise _invalid(f"{path}.channels", channels, "a list of 3 to 8 whole numbers")
    maps, dim = (_whole(entry[key], f"{path}.{key}") for key in ("maps", "dim"))
    widths = tuple(_whole(item, f"{path}.channels") for item in channels)
    size = picture_size(entry["image_size"], f"{path}.image_size")
    stem = entry.get("stem", 2)
    if isinstance(stem, bool) or stem not in (2, 4):
        raise _invalid(f"{path}.stem", stem, "2 or 4")
    return ConvEncoder(size, widths, maps, dim, stem), dim


def picture_size(value: object, path: str) -> ImageSize:
    """The side of a square, or height and width, of a configuration.

    :raises WorldForgeError: ``CHECKPOINT_INVALID``.
    """
    if not isinstance(value, list):
        return _whole(value, path)
    if len(value) != 2:
        raise _invalid(path, value, "a whole number, or a list of height and width")
    height, width = (_whole(item, path) for item in value)
    return height, width


def _sizes(value: Mapping[str, Any], path: str) -> dict[str, int]:
    """Of ``vit_hf``, with its defaults; ``pretrained`` only says what was there before training."""
    if value["size"] not in _VIT_SIZES:
        raise _invalid(f"{path}.size", value["size"], f"one of {', '.join(_VIT_SIZES)}")
    for key in _VIT_FLAGS:
        if not isinstance(value.get(key, False), bool):
            raise _invalid(f"{path}.{key}", value[key], "true or false")
    width, layers, heads = _VIT_SIZES[value["size"]]
    return {
        "image_size": _whole(value.get("image_size", 224), f"{path}.image_size"),
        "patch_size": _whole(value.get("patch_size", 16), f"{path}.patch_size"),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, field, found=repr(found), expected=expected)


def _entry(value: object, path: str, target: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(path, value, "a mapping")
    if value.get("_target_") not in (target, *_SAME.get(target, ())):
        raise _invalid(f"{path}._target_", value.get("_target_"), target)
    return value


def _keys(
    value: Mapping[str, Any], path: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    found = set(value) - {"_target_"}
    if not set(keys) <= found <= {*keys, *optional}:
        more = f" and perhaps {sorted(optional)}" if optional else ""
        raise _invalid(path, sorted(found), f"exactly {sorted(keys)}{more}")


def _share(value: object, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise _invalid(path, value, "a number from 0 to below 1")


def _numbers(value: Mapping[str, Any], path: str, keys: tuple[str, ...]) -> dict[str, int]:
    _keys(value, path, keys)
    return {key: _whole(value[key], f"{path}.{key}") for key in keys}


def _whole(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise _invalid(path, value, f"a whole number from 1 to {_LARGEST}")
    return value


_VIT_RENAMES = (
    ("encoder.encoder.layer.", "encoder.layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""Weights of a ViT in transformers 4 (left) and 5 (right); the order matters."""


def fit_names(state: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The tensors of ``state`` under the names that ``wanted`` has.

    The Hugging Face ViT names its weights differently in transformers 4 and 5; a checkpoint of
    either loads with either. Other names are left as they are.
    """
    if set(state) == set(wanted):
        return dict(state)
    to_new = any(name.startswith("encoder.layers.") for name in wanted)
    return {_rename(name, to_new): value for name, value in state.items()}


def _rename(name: str, to_new: bool) -> str:
    if not name.startswith(("encoder.encoder.layer.", "encoder.layers.")):
        return name
    for old, new in _VIT_RENAMES:
        name = name.replace(old, new) if to_new else name.replace(new, old)
    return name
