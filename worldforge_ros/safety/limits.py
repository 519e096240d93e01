"""Joint limits as arrays, and the envelope that bounds how fast set-points may wander."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, Joint
from worldforge_ros.observation import NANOSECONDS

FloatArray = npt.NDArray[np.float64]

ROUNDING = 1e-6
"""Slack in m or rad on every comparison of positions.

Chunks travel as float32: 0.512 becomes 0.51200002 in float64. One float32 rounding is at most
2.4e-7 below 8 m or rad, a difference of two at most 5e-7.
"""


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits (J,) float64 in contract order: m or rad, and m/s or rad/s.

    A bound that the embodiment leaves out is filled so that *nothing* satisfies it, and is named in
    ``missing``: a gate with missing limits cannot be armed, and would refuse every chunk if it
    were.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    max_velocity: FloatArray
    missing: tuple[str, ...]

    def outside(self, positions: FloatArray, slack: float = ROUNDING) -> npt.NDArray[np.bool_]:
        """Which of ``positions`` (..., J) lie outside by more than ``slack``; False for NaN."""
        beyond: npt.NDArray[np.bool_] = (positions > self.upper + slack) | (
            positions < self.lower - slack
        )
        return beyond

    def rounded(self, positions: FloatArray) -> FloatArray:
        """``positions`` (..., J) that are not :meth:`outside`, without the excess of rounding.

        Moves a value by :data:`ROUNDING` at most, so that a controller that compares exactly never
        sees a set-point outside its limits.
        """
        if self.outside(positions).any():
            raise ValueError("rounded() is for positions inside the limits only")
        return np.clip(positions, self.lower, self.upper)

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
        max_velocity=_frozen([0.0 if j.max_velocity is None else j.max_velocity for j in joints]),
        missing=tuple(text for joint in joints for text in _missing(joint)),
    )


def _bound(joint: Joint, value: float | None, *, unlimited: float) -> float:
    if value is not None:
        return value
    # A continuous joint has no end; for any other an absent bound must not pass for "no limit".
    return unlimited if joint.type == "continuous" else -unlimited


def _missing(joint: Joint) -> list[str]:
    needed = {"max_velocity": joint.max_velocity}
    if joint.type != "continuous":
        needed |= {"min_position": joint.min_position, "max_position": joint.max_position}
    return [f"{joint.name}.{field}" for field, value in needed.items() if value is None]


def _frozen(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Envelope:
    """How far set-points have moved, over any stretch of the past at once.

    ``high`` at time t is the minimum over all past set-points s(u) of s(u) + max_velocity (t - u),
    ``low`` likewise the maximum of s(u) - max_velocity (t - u): a set-point between ``low - b`` and
    ``high + b`` is never further than b from what the velocity limit allows since any past moment.
    Each is one number per joint, whatever the length of the past.
    """

    position: FloatArray
    high: FloatArray
    low: FloatArray
    time: int

    @classmethod
    def at(cls, position: FloatArray, time: int) -> Envelope:
        """An envelope without a past: the robot stands at ``position`` (J,) at ``time`` ns."""
        return cls(position, position, position, time)

    def reach(self, max_velocity: FloatArray, time: int) -> tuple[FloatArray, FloatArray]:
        """``low`` and ``high`` at ``time`` ns, the present set-point being kept until then."""
        travel = max_velocity * (max(0, time - self.time) / NANOSECONDS)
        low = np.maximum(self.low - travel, self.position)
        high = np.minimum(self.high + travel, self.position)
        return low, high

    def moved(self, position: FloatArray, max_velocity: FloatArray, time: int) -> Envelope:
        """The envelope after the set-point became ``position`` (J,) at ``time`` ns."""
        low, high = self.reach(max_velocity, time)
        return Envelope(
            position, np.minimum(high, position), np.maximum(low, position), max(time, self.time)
        )
