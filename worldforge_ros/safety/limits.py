"""Joint limits as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, Joint

FloatArray = npt.NDArray[np.float64]

ROUNDING = 1e-6
"""Slack in m or rad on every comparison of positions.

Chunks travel as float32: 0.512 becomes 0.51200002 in float64. One float32 rounding is at most
2.4e-7 below 8 m or rad, a difference of two at most 5e-7.
"""


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits (J,) float64 in contract order: m or rad, and per second, squared and cubed.

    A ``continuous`` joint has no end; its position counts modulo 2 pi. A bound that the embodiment
    leaves out is filled so that *nothing* satisfies it, and is named in ``missing``: a gate with
    missing limits cannot be armed, and would refuse every chunk if it were.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    max_velocity: FloatArray
    max_acceleration: FloatArray
    max_deceleration: FloatArray
    max_jerk: FloatArray
    continuous: npt.NDArray[np.bool_]
    missing: tuple[str, ...]

    def outside(self, positions: FloatArray, slack: float = ROUNDING) -> npt.NDArray[np.bool_]:
        """Which of ``positions`` (..., J) lie outside by more than ``slack``; False for NaN."""
        beyond: npt.NDArray[np.bool_] = (positions > self.upper + slack) | (
            positions < self.lower - slack
        )
        return beyond

    def inner(
        self, margin: float, position: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds (J,), ``margin`` m or rad inside the limits, but not beyond
        ``position`` (J,).
        """
        lower, upper = self.lower + margin, self.upper - margin
        if position is not None:
            lower, upper = np.minimum(lower, position), np.maximum(upper, position)
        return lower, upper

    def rounded(self, positions: FloatArray) -> FloatArray:
        """``positions`` (..., J) that are not :meth:`outside`, without the excess of rounding.

        Moves a value by :data:`ROUNDING` at most, so that a controller that compares exactly never
        sees a set-point outside its limits.
        """
        if self.outside(positions).any():
            raise ValueError("rounded() is for positions inside the limits only")
        return np.clip(positions, self.lower, self.upper)

    def unwrapped(self, positions: FloatArray, reference: FloatArray | None) -> FloatArray:
        """``positions`` (..., R, J) with continuous joints on the turn nearest to ``reference``
        (J,), and each further row on the turn nearest to the row before it.
        """
        joints = self.continuous
        if not joints.any() or not positions.shape[-2]:
            return positions
        columns = positions[..., joints]
        if reference is not None:
            lead = np.broadcast_to(reference[joints], (*columns.shape[:-2], 1, columns.shape[-1]))
            columns = np.concatenate([lead, columns], axis=-2)
        with np.errstate(invalid="ignore"):
            turned = np.unwrap(columns, axis=-2)
        result = positions.copy()
        result[..., joints] = turned if reference is None else turned[..., 1:, :]
        return result

    def nearest(self, position: FloatArray, reference: FloatArray) -> FloatArray:
        """``position`` (J,) with continuous joints on the turn nearest to ``reference`` (J,)."""
        turned: FloatArray = self.unwrapped(position[np.newaxis], reference)[0]
        return turned

    def describe(self, joint: int) -> str:
        """The position range of one joint in words."""
        return f"{self.lower[joint]:g} to {self.upper[joint]:g} {self.units[joint]}"


def limits_of(embodiment: Embodiment) -> JointLimits:
    """Collect the limits of an embodiment; never raises, see :attr:`JointLimits.missing`."""
    joints = embodiment.joints
    return JointLimits(
        names=embodiment.joint_names,
        units=tuple("m" if joint.type == "prismatic" else "rad" for joint in joints),
        lower=_frozen([_bound(j, j.min_position, unlimited=-math.inf) for j in joints]),
        upper=_frozen([_bound(j, j.max_position, unlimited=math.inf) for j in joints]),
        max_velocity=_frozen([j.max_velocity or 0.0 for j in joints]),
        max_acceleration=_frozen([j.max_acceleration or 0.0 for j in joints]),
        max_deceleration=_frozen([j.max_deceleration or 0.0 for j in joints]),
        max_jerk=_frozen([j.max_jerk or 0.0 for j in joints]),
        continuous=np.array([j.type == "continuous" for j in joints]),
        missing=tuple(text for joint in joints for text in _missing(joint)),
    )


def _bound(joint: Joint, value: float | None, *, unlimited: float) -> float:
    if value is not None:
        return value
    # A continuous joint has no end; for any other an absent bound must not pass for "no limit".
    return unlimited if joint.type == "continuous" else -unlimited


def _missing(joint: Joint) -> list[str]:
    needed = {
        "max_velocity": joint.max_velocity,
        "max_acceleration": joint.max_acceleration,
        "max_deceleration": joint.max_deceleration,
        "max_jerk": joint.max_jerk,
    }
    if joint.type != "continuous":
        needed |= {"min_position": joint.min_position, "max_position": joint.max_position}
    return [f"{joint.name}.{field}" for field, value in needed.items() if value is None]


def _frozen(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array
