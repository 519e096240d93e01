"""Between observations and joint set-points in SI units and a policy's own features and units.

A policy value is ``SI value * scale + offset`` per joint, as the embodiment says; the way back
divides. Nothing here clips: a value outside the robot's limits is the gate's to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, ImageFeature
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import Observation, check_image

FloatArray = npt.NDArray[np.float64]
FeatureArray = npt.NDArray[np.float32]


def policy_features(
    history: Sequence[Observation], embodiment: Embodiment
) -> dict[str, FeatureArray]:
    """Every policy feature of the embodiment over a window of observations.

    :param history: T observations, oldest first.
    :returns: feature name to float32 array: vectors (T, D) in policy units, pictures (T, 3, height,
        width) RGB in 0..1 (``uint8 / 255``).
    :raises WorldForgeError: ``OBSERVATION_MISSING`` for an empty window, ``CAMERA_MISSING`` or
        ``IMAGE_SIZE_MISMATCH`` for pictures, ``TENSOR_SHAPE_MISMATCH`` or ``TENSOR_NOT_FINITE`` for
        joints.
    """
    if not history:
        raise mismatch(
            ErrorCode.OBSERVATION_MISSING, "history", found="empty", expected="an observation"
        )
    position = _joints([item.position for item in history], "position", embodiment)
    velocity = _joints([item.velocity for item in history], "velocity", embodiment)
    column = {name: index for index, name in enumerate(embodiment.joint_names)}
    arrays: dict[str, FeatureArray] = {}
    for name, feature in embodiment.policy.features.items():
        if isinstance(feature, ImageFeature):
            arrays[name] = _pictures(history, feature.camera, embodiment)
            continue
        source = position if feature.quantity == "position" else velocity
        columns = [column[joint] for joint in feature.joints]
        values = source[:, columns] * np.asarray(feature.scale) + np.asarray(feature.offset)
        arrays[name] = values.astype(np.float32)
    return arrays


def actions_to_setpoints(
    actions: npt.ArrayLike, position: npt.ArrayLike, embodiment: Embodiment
) -> FloatArray:
    """A policy's actions (..., J) in policy units to set-points (..., J) float64 in m or rad.

    ``absolute`` actions are set-points: ``(action - offset) / scale``. ``relative`` ones are
    distances from where the joints are now, the convention of policies that predict a whole chunk
    relative to the observation it starts from: ``position + (action - offset) / scale``.

    :param position: joints (J,) in m or rad at the newest observation.
    :raises WorldForgeError: ``ACTION_DIM_MISMATCH``.
    """
    values = np.asarray(actions, dtype=np.float64)
    _check_width(values, embodiment, "policy action")
    spec = embodiment.policy.action
    setpoints: FloatArray = (values - np.asarray(spec.offset)) / np.asarray(spec.scale)
    if spec.meaning == "relative":
        setpoints = setpoints + np.asarray(position, dtype=np.float64)
    return setpoints


def setpoints_to_actions(
    setpoints: npt.ArrayLike, position: npt.ArrayLike, embodiment: Embodiment
) -> FloatArray:
    """Set-points (..., J) in m or rad to a policy's actions; the inverse of
    :func:`actions_to_setpoints`.

    :raises WorldForgeError: ``ACTION_DIM_MISMATCH``.
    """
    values = np.asarray(setpoints, dtype=np.float64)
    _check_width(values, embodiment, "set-point")
    spec = embodiment.policy.action
    if spec.meaning == "relative":
        values = values - np.asarray(position, dtype=np.float64)
    actions: FloatArray = values * np.asarray(spec.scale) + np.asarray(spec.offset)
    return actions


def _check_width(values: FloatArray, embodiment: Embodiment, field: str) -> None:
    joints = embodiment.joint_names
    if values.ndim == 0 or values.shape[-1] != len(joints):
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"last dimension of the {field}",
            found=values.shape[-1] if values.ndim else "a single number",
            expected=f"{len(joints)}, one for each joint of {embodiment.name} {list(joints)}",
        )


def _joints(rows: Sequence[FloatArray], field: str, embodiment: Embodiment) -> FloatArray:
    count = len(embodiment.joint_names)
    for row in rows:
        if np.shape(row) != (count,):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                f"observation.{field}",
                found=f"shape {np.shape(row)}",
                expected=f"({count},) for joints {list(embodiment.joint_names)}",
            )
    values = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        raise mismatch(
            ErrorCode.TENSOR_NOT_FINITE,
            f"observation.{field}",
            found=values.tolist(),
            expected="finite numbers",
        )
    return values


def _pictures(history: Sequence[Observation], camera: str, embodiment: Embodiment) -> FeatureArray:
    frames = []
    for item in history:
        if camera not in item.images:
            raise mismatch(
                ErrorCode.CAMERA_MISSING,
                f"picture of camera {camera}",
                found=f"only {sorted(item.images)}",
                expected=f"one in every observation for embodiment {embodiment.name}",
            )
        check_image(item.images[camera], camera, embodiment)
        frames.append(item.images[camera].transpose(2, 0, 1))
    pictures: FeatureArray = np.stack(frames).astype(np.float32) / np.float32(255.0)
    return pictures
