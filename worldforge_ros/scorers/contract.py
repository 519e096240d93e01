"""What a scoring request and its answer must look like, for every world model. Only numpy."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import (
    ImageArray,
    Observation,
    check_goal,
    check_image,
    check_window,
)

FloatArray = npt.NDArray[np.float64]
SLACK = 1e-6
"""m or rad that a set-point may lie outside a limit, because candidates travel as float32."""


class ActionSpace(Enum):
    """What the numbers of candidates and of an action history are."""

    EMBODIMENT = "embodiment"
    """Joint set-points (..., H, J) in m or rad, converted through the bridge."""
    MODEL = "model"
    """The checkpoint's own blocks (..., T, block * J), used as they are."""


def one_batch(candidates: npt.NDArray[Any], most: int, longest: int) -> npt.NDArray[Any]:
    """Candidates (S, H, A) of a request (1, S, H, A), 1 to ``most`` samples, H at most ``longest``.

    :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH``, ``BATCH_SIZE_UNSUPPORTED``,
        ``NO_CANDIDATES``, ``TOO_MANY_CANDIDATES`` or ``HORIZON_INVALID``.
    """
    if candidates.ndim != 4:
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            "candidates.shape",
            found=list(candidates.shape),
            expected="4 dimensions (1, samples, horizon, action_dim)",
        )
    if candidates.shape[0] != 1:
        # Upstream compares with mixed-up goals when there are as many batches as samples.
        raise mismatch(
            ErrorCode.BATCH_SIZE_UNSUPPORTED,
            "candidates.shape[0]",
            found=candidates.shape[0],
            expected="1",
        )
    if candidates.shape[1] < 1:
        raise mismatch(
            ErrorCode.NO_CANDIDATES, "candidates.shape[1]", found=0, expected="at least 1"
        )
    if candidates.shape[1] > most:
        raise mismatch(
            ErrorCode.TOO_MANY_CANDIDATES,
            "candidates.shape[1]",
            found=candidates.shape[1],
            expected=f"at most {most}",
        )
    if candidates.shape[2] > longest:
        raise mismatch(
            ErrorCode.HORIZON_INVALID,
            "candidates.shape[2]",
            found=candidates.shape[2],
            expected=f"at most {longest}",
        )
    samples: npt.NDArray[Any] = candidates[0]
    return samples


def check_actions(name: str, values: npt.ArrayLike, width: int) -> FloatArray:
    """Actions (S, H, ``width``) as float64.

    :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH``, ``NO_CANDIDATES``, ``ACTION_DIM_MISMATCH``,
        ``HORIZON_NOT_WHOLE_BLOCKS`` or ``TENSOR_NOT_FINITE``.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3:
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            name,
            found=f"shape {array.shape}",
            expected="(samples, horizon, action_dim)",
        )
    if array.shape[0] < 1:
        raise mismatch(ErrorCode.NO_CANDIDATES, name, found="empty", expected="at least one")
    if array.shape[2] != width:
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"last dimension of {name}",
            found=array.shape[2],
            expected=width,
        )
    if array.shape[1] < 1:
        raise mismatch(
            ErrorCode.HORIZON_NOT_WHOLE_BLOCKS,
            f"horizon of {name}",
            found=0,
            expected="1 block or more",
        )
    if not np.isfinite(array).all():
        raise mismatch(
            ErrorCode.TENSOR_NOT_FINITE,
            name,
            found="with NaN or infinity",
            expected="finite numbers",
        )
    return array


def camera_image(observation: Observation, embodiment: Embodiment) -> ImageArray:
    """The picture that the world model sees.

    :raises WorldForgeError: ``CAMERA_MISSING``.
    """
    camera = embodiment.scoring.camera
    if camera not in observation.images:
        raise mismatch(
            ErrorCode.CAMERA_MISSING,
            "observation",
            found=f"with cameras {sorted(observation.images)}",
            expected=f"camera '{camera}'",
        )
    return observation.images[camera]


def check_scene(
    history: Sequence[Observation], goal: ImageArray, frames: int, embodiment: Embodiment
) -> None:
    """Refuse anything but ``frames`` observations one block apart and a goal of the same camera.

    :raises WorldForgeError: ``HISTORY_TOO_SHORT``, ``CAMERA_MISSING``, ``IMAGE_SIZE_MISMATCH`` or
        ``TENSOR_NOT_FINITE``.
    """
    spec = embodiment.scoring
    joints = len(embodiment.joints)
    check_window(history, frames, spec.block_duration, embodiment.observation.tolerance)
    for item in history:
        check_image(camera_image(item, embodiment), spec.camera, embodiment)
        for field, values in (("position", item.position), ("velocity", item.velocity)):
            if np.shape(values) != (joints,) or not np.isfinite(values).all():
                raise mismatch(
                    ErrorCode.TENSOR_NOT_FINITE,
                    f"observation {field}",
                    found=np.asarray(values).tolist(),
                    expected=f"{joints} finite numbers",
                )
    check_goal(goal, spec.camera, embodiment)


def model_actions(
    bridge: ActionBridge,
    history: Sequence[Observation],
    candidates: npt.ArrayLike,
    action_history: npt.ArrayLike | None,
    space: ActionSpace,
) -> tuple[FloatArray, FloatArray]:
    """Blocks executed between the frames (n - 1, A) and those of the candidates (S, T, A).

    :raises WorldForgeError: what :func:`check_actions` raises, and ``ACTION_HISTORY_INVALID``.
    """
    width = bridge.block * bridge.joints
    if space is ActionSpace.MODEL:
        return (
            _past(action_history, (len(history) - 1, width), "blocks"),
            check_actions("candidates", candidates, width),
        )
    setpoints = check_actions("candidates", candidates, bridge.joints)
    between = _past(action_history, ((len(history) - 1) * bridge.block, bridge.joints), "actions")
    parts = between.reshape(-1, bridge.block, bridge.joints)
    past = [
        bridge.setpoints_to_blocks(part, item.position, item.velocity)
        for item, part in zip(history[:-1], parts, strict=True)
    ]
    now = history[-1]
    blocks = bridge.setpoints_to_blocks(setpoints, now.position, now.velocity)
    return np.concatenate([np.empty((0, width)), *past]), blocks


def _past(given: npt.ArrayLike | None, expected: tuple[int, int], what: str) -> FloatArray:
    values = np.asarray([] if given is None else given, dtype=np.float64)
    if values.size == 0 and expected[0] == 0:
        return np.empty(expected)
    if values.shape != expected:
        raise mismatch(
            ErrorCode.ACTION_HISTORY_INVALID,
            "action_history",
            found=f"shape {values.shape}",
            expected=f"{expected}: the {what} between the frames of the history",
        )
    if not np.isfinite(values).all():
        raise mismatch(
            ErrorCode.ACTION_HISTORY_INVALID,
            "action_history",
            found="with NaN or infinity",
            expected="finite numbers",
        )
    return values


def choose_objective(name: str, default: str, known: Sequence[str], model_id: str) -> str:
    """The objective of a request, ``default`` where it leaves it open.

    :raises WorldForgeError: ``OBJECTIVE_UNKNOWN``.
    """
    chosen = name or default
    if chosen not in known:
        raise mismatch(
            ErrorCode.OBJECTIVE_UNKNOWN,
            "objective",
            found=repr(name),
            expected=f"empty or one of {', '.join(known)} for {model_id}",
        )
    return chosen


def flat_costs(raw: object, samples: int, model_id: str) -> npt.NDArray[np.float32]:
    """Costs (S,) float32 of anything that has one number for each sample: (S,), (1, S) or (S, 1).

    :raises WorldForgeError: ``COSTS_INVALID``.
    """
    try:
        values = np.asarray(raw)
    except (ValueError, TypeError) as error:
        raise _costs(model_id, f"unreadable ({error})", samples) from error
    if values.dtype.kind not in "fiu":
        raise _costs(model_id, f"of type {values.dtype}", samples)
    if values.shape not in ((samples,), (1, samples), (samples, 1)):
        raise _costs(model_id, f"of shape {values.shape}", samples)
    return values.reshape(samples).astype(np.float32)


def check_costs(
    raw: object, samples: int, model_id: str, index: object = None
) -> tuple[npt.NDArray[np.float32], int]:
    """One cost for each sample (S,) float32, and the index of the best.

    A cost that is not finite becomes NaN: that candidate is not chosen.

    :param raw: (S,), (1, S) or (S, 1) numbers, lower is better.
    :param index: the provider's own choice, kept where it is one of the scored candidates; None
        takes the first minimum.
    :raises WorldForgeError: ``COSTS_INVALID``.
    """
    costs = flat_costs(raw, samples, model_id)
    costs[~np.isfinite(costs)] = np.nan
    if np.isnan(costs).all():
        raise _costs(model_id, f"not finite for all {samples} candidates", samples)
    if index is None:
        return costs, int(np.nanargmin(costs))
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise _costs(model_id, f"with best index {index!r}", samples)
    if not 0 <= index < samples or np.isnan(costs[index]):
        raise _costs(model_id, f"with best index {index}, which has no cost", samples)
    return costs, int(index)


def _costs(model_id: str, found: str, samples: int) -> WorldForgeError:
    return mismatch(
        ErrorCode.COSTS_INVALID,
        f"costs of {model_id}",
        found=found,
        expected=f"finite numbers of shape ({samples},), (1, {samples}) or ({samples}, 1)",
    )


def unscored(costs: npt.NDArray[np.float32]) -> str:
    """Indices of the candidates without a cost, as text for the metadata."""
    return ",".join(str(index) for index in np.flatnonzero(np.isnan(costs)))


def outside_limits(setpoints: npt.NDArray[Any], embodiment: Embodiment) -> str:
    """Indices of the candidates (S, H, J) with a set-point outside its joint's position limits, as
    text for the metadata.

    A world model gives these a cost too; millimetres or degrees would otherwise go unnoticed.
    """
    lows = [-np.inf if j.min_position is None else j.min_position for j in embodiment.joints]
    highs = [np.inf if j.max_position is None else j.max_position for j in embodiment.joints]
    outside = (setpoints < np.array(lows) - SLACK) | (setpoints > np.array(highs) + SLACK)
    return ",".join(str(index) for index in np.flatnonzero(outside.any(axis=(1, 2))))
