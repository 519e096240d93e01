"""What a chunk asks of the joints: finite differences of its set-points and of those before it.

Set-points are ``step`` seconds apart. The velocity of a row is its distance from the row before,
over ``step``; acceleration and jerk are the next differences. The rows before the first new one are
those of :meth:`worldforge_ros.safety.course.Course.before`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.safety.course import BEFORE
from worldforge_ros.safety.limits import ROUNDING, FloatArray, JointLimits

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Differences:
    """Of rows (..., R, J): ``moves`` in m or rad, ``bends`` and ``twists`` their first and second
    differences, each (..., R, J) with one entry for each new row.
    """

    positions: FloatArray
    moves: FloatArray
    bends: FloatArray
    twists: FloatArray
    step: float

    @classmethod
    def of(cls, before: FloatArray, positions: FloatArray, step: float) -> Differences:
        """:param before: (3, J), the last set-points before ``positions`` (..., R, J)."""
        lead = np.broadcast_to(before, (*positions.shape[:-2], *before.shape))
        path = np.concatenate([lead, positions], axis=-2)
        moves = np.diff(path, axis=-2)
        bends = np.diff(moves, axis=-2)
        twists = np.diff(bends, axis=-2)
        return cls(
            positions, moves[..., BEFORE - 1 :, :], bends[..., BEFORE - 2 :, :], twists, step
        )

    def too_hard(self, limits: JointLimits, margin: float = 1.0) -> BoolArray:
        """Rows (..., R, J) that ``max_acceleration`` does not allow. ``margin`` above 1 is
        stricter.
        """
        most = limits.max_acceleration * self.step**2
        return np.asarray(np.abs(self.bends) * margin > most + ROUNDING)

    def too_sudden(self, limits: JointLimits, margin: float = 1.0) -> BoolArray:
        """Rows (..., R, J) that ``max_jerk`` does not allow."""
        # Three roundings of a float32 each way.
        most = limits.max_jerk * self.step**3 + 2.0 * ROUNDING
        return np.asarray(np.abs(self.twists) * margin > most)

    def rest(self, limits: JointLimits) -> FloatArray:
        """Where (..., R, J) a joint would come to rest if it braked from each row on: v^2 / (2
        max_deceleration) further, v being :func:`arrival_velocity`.
        """
        velocity = arrival_velocity(self.moves, self.step, limits)
        with np.errstate(divide="ignore", invalid="ignore"):
            way = velocity * np.abs(velocity) / (2.0 * limits.max_deceleration)
        return np.asarray(self.positions + np.where(velocity == 0.0, 0.0, way))

    def overruns(self, limits: JointLimits) -> BoolArray:
        """Rows (..., R, J) from which a joint could not brake before its limit."""
        return limits.outside(self.rest(limits))


def arrival_velocity(moves: FloatArray, step: float, limits: JointLimits) -> FloatArray:
    """Velocity (..., J) of a joint that brakes when it has made the last of ``moves`` (..., J).

    The mean velocity of a move is that in the middle of its ``step``; until its end braking has
    taken ``max_deceleration * step / 2`` of it. A move that a single step of braking undoes ends
    at rest.
    """
    mean = moves / step
    velocity: FloatArray = np.sign(mean) * np.maximum(
        np.abs(mean) - 0.5 * limits.max_deceleration * step, 0.0
    )
    return velocity


def feasible(
    limits: JointLimits,
    before: FloatArray,
    positions: FloatArray,
    step: float,
    margin: float = 1.0,
) -> BoolArray:
    """Which of the candidates ``positions`` (S, R, J) keep every limit of their joints, (S,).

    :param before: (3, J), the last set-points before them.
    :param step: seconds between two rows.
    :param margin: above 1 leaves so much room to velocity, acceleration and jerk.
    """
    difference = Differences.of(before, positions, step)
    bad = limits.outside(positions) | ~np.isfinite(positions)
    bad |= np.abs(difference.moves) * margin > limits.max_velocity * step + ROUNDING
    bad |= difference.too_hard(limits, margin) | difference.too_sudden(limits, margin)
    bad |= difference.overruns(limits)
    return np.asarray(~bad.any(axis=(-2, -1)))


@dataclass(frozen=True, eq=False)
class Brake:
    """Every joint slowing down with its ``max_deceleration`` from ``start`` ns on.

    From ``position`` (J,) m or rad, a set-point that was due at ``start`` and given ``step`` ns, at
    ``velocity`` (J,) per second.
    """

    position: FloatArray
    velocity: FloatArray
    deceleration: FloatArray
    start: int
    step: int

    @property
    def times(self) -> FloatArray:
        """Seconds (J,) until each joint rests."""
        return np.asarray(np.abs(self.velocity) / self.deceleration)

    @property
    def duration(self) -> float:
        """Seconds until all joints rest."""
        longest = float(np.max(self.times))
        return longest if math.isfinite(longest) else 0.0

    def state(self, seconds: float) -> tuple[FloatArray, FloatArray]:
        """Position and velocity (J,), ``seconds`` after the start."""
        t = np.minimum(max(seconds, 0.0), self.times)
        slowed = np.sign(self.velocity) * self.deceleration
        position: FloatArray = self.position + self.velocity * t - 0.5 * slowed * t**2
        velocity: FloatArray = self.velocity - slowed * t
        return position, velocity
