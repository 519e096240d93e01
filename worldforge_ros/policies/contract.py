"""What a policy's raw output must be before it may become candidates, and how it is described.

Nothing is padded, cut to size or projected: an output that does not fit is refused; a single
candidate that is not finite is left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch

FloatArray = npt.NDArray[np.float64]

PREVIEW_ITEMS = 3
PREVIEW_DEPTH = 3


def check_actions(raw: object, count: int, horizon: int, embodiment: Embodiment) -> FloatArray:
    """Check a policy's answer of ``count`` chunks, ``horizon`` actions asked of each (0: all).

    :returns: actions (count, horizon, A) float64 in the policy's units; they may be not finite.
    :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH`` for an answer that is not rectangular, not
        numeric or not (count, actions, joints), ``ACTION_DIM_MISMATCH``, ``HORIZON_INVALID`` where
        fewer actions came than were asked for.
    """
    try:
        given = np.asarray(raw)
    except ValueError:
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            "raw policy action",
            found=f"{type(raw).__name__}, not a rectangular array of numbers",
            expected=f"({count}, actions, {len(embodiment.joints)})",
        )
    actions: FloatArray = given.astype(np.float64)
    if actions.ndim != 3 or len(actions) != count or actions.shape[1] < 1:
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            "raw policy action",
            found=f"shape {actions.shape}",
            expected=f"({count}, actions, {len(embodiment.joints)})",
        )
    if actions.shape[2] != len(embodiment.joints):
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            "last dimension of the raw policy action",
            found=actions.shape[2],
            expected=f"{len(embodiment.joints)}, one for each joint of {embodiment.name} "
            f"{list(embodiment.joint_names)}",
        )
    if horizon > actions.shape[1]:
        raise mismatch(
            ErrorCode.HORIZON_INVALID,
            "horizon",
            found=horizon,
            expected=f"1 to {actions.shape[1]}, as many actions as the policy gave",
        )
    return actions[:, : horizon or actions.shape[1]]


def drop_not_finite(
    candidates: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    """Leave out candidates (S, H, J) with a number that is not finite; returns the others and the
    numbers of those left out.

    :raises WorldForgeError: ``MODEL_FAILED`` when none is left.
    """
    finite = np.isfinite(candidates).all(axis=(1, 2))
    if not finite.any():
        raise mismatch(
            ErrorCode.MODEL_FAILED,
            "raw policy action",
            found=f"not finite in any of {len(candidates)} candidates",
            expected="finite actions",
        )
    return candidates[finite], tuple(int(index) for index in np.flatnonzero(~finite))


def describe(raw: object) -> str:
    """A bounded description of a raw policy action as JSON: type, dtype and shape where it has
    them, and at most 3 items to a depth of 3.
    """
    summary: dict[str, object] = {"type": type(raw).__name__}
    shape = getattr(raw, "shape", None)
    if shape is not None:
        summary["shape"] = [int(size) for size in shape]
        summary["dtype"] = str(getattr(raw, "dtype", "")).removeprefix("torch.")
    elif isinstance(raw, list | tuple | Mapping):
        summary["length"] = len(raw)
    summary["preview"] = _preview(raw, PREVIEW_DEPTH)
    return json.dumps(summary)


def _preview(value: Any, depth: int) -> object:
    if isinstance(value, bool | int | str) or value is None:
        return value[:40] if isinstance(value, str) else value
    if isinstance(value, float):
        # JSON has no NaN and no infinity.
        return round(value, 6) if np.isfinite(value) else str(value)
    if getattr(value, "shape", None) == ():
        return _preview(value.item(), depth)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = list(value.items())[:PREVIEW_ITEMS]
        return {str(key)[:40]: _preview(item, depth - 1) for key, item in pairs}
    if isinstance(value, list | tuple) or getattr(value, "shape", None):
        return [_preview(item, depth - 1) for item in value[:PREVIEW_ITEMS]]
    return type(value).__name__


def contract_summary(embodiment: Embodiment, horizon: int) -> str:
    """The embodiment contract that candidates were checked against, as JSON."""
    spec = embodiment.policy
    return json.dumps(
        {
            "tag": embodiment.name,
            "joints": list(embodiment.joint_names),
            "action_dim": len(embodiment.joints),
            "horizon": horizon,
            "step_s": spec.step,
            "action": spec.action.meaning,
            "units": ["m" if joint.type == "prismatic" else "rad" for joint in embodiment.joints],
        }
    )
