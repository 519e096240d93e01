"""A simulated robot as a joint controller sees it: set-points, trajectories, a command timeout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch

FloatArray = npt.NDArray[np.float64]


class World(Protocol):
    """What a simulated robot drives; J joints, in metres or radians and per second."""

    @property
    def position(self) -> FloatArray:
        """Measured joint positions (J,)."""

    @property
    def velocity(self) -> FloatArray:
        """Measured joint velocities (J,)."""

    def reset(self, seed: int | None = None) -> None:
        """Start the episode of ``seed``."""

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """Run physics steps towards ``setpoint`` (J,), held."""


AnyWorld = TypeVar("AnyWorld", bound=World)


@dataclass(frozen=True)
class JointReading:
    """Joint names, positions (J,) in metres or radians and velocities (J,) per second."""

    names: tuple[str, ...]
    position: FloatArray
    velocity: FloatArray


class SimulatedRobot(Generic[AnyWorld]):
    """A world with the contract of a position controller.

    A set-point is held until the next one; without any for ``command_timeout`` simulated seconds,
    or after the end of a trajectory, the robot holds the position that it has then.
    """

    def __init__(
        self,
        world: AnyWorld,
        joint_names: Sequence[str],
        physics_step: float,
        seed: int = 0,
        command_timeout: float = 0.5,
    ) -> None:
        self.world = world
        self.steps = 0
        self._names = tuple(joint_names)
        self._physics_step = physics_step
        self._next_seed = seed
        self._timeout = round(command_timeout / physics_step)
        self._setpoint: FloatArray = np.zeros(len(self._names))
        self._commanded_at = 0
        self._holding = True
        self._trajectory: list[tuple[int, FloatArray]] = []
        self.reset()

    def reset(self) -> int:
        """Begin the next episode and hold; returns its seed."""
        seed = self._next_seed
        self._next_seed += 1
        self.world.reset(seed=seed)
        self._trajectory = []
        self._hold()
        return seed

    def command(self, setpoint: npt.ArrayLike) -> None:
        """Take one set-point (J,) in metres or radians.

        :raises WorldForgeError: wrong count or not finite; the last good set-point stays.
        """
        self._trajectory = []
        self._setpoint = self._checked(setpoint, "joint_commands.data")
        self._commanded_at, self._holding = self.steps, False

    def follow(
        self,
        names: Sequence[str],
        times: Sequence[float],
        positions: Sequence[Sequence[float]],
        delay: float = 0.0,
    ) -> None:
        """Take a trajectory: ``positions`` (N, J), each reached at its time in seconds.

        Between two points the set-point moves in a straight line, as joint_trajectory_controller
        does without velocities.

        :raises WorldForgeError: wrong joint names, no points, times that do not increase, or values
            that are not finite; the last good command stays.
        """
        if sorted(names) != sorted(self._names):
            raise mismatch(
                ErrorCode.JOINT_NAMES_MISMATCH,
                "joint_trajectory.joint_names",
                found=list(names),
                expected=list(self._names),
            )
        rising = all(later > earlier for earlier, later in pairwise(times))
        if not times or len(times) != len(positions) or times[0] < 0 or not rising:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "joint_trajectory.points",
                found=f"times {list(times)}",
                expected="at least one point, times from 0 on and strictly increasing",
            )
        order = [list(names).index(name) for name in self._names]
        points = [
            self._checked(point, f"joint_trajectory.points[{index}].positions")[order]
            for index, point in enumerate(positions)
        ]
        self._trajectory = [
            (self.steps + round((time + delay) / self._physics_step), point)
            for time, point in zip(times, points, strict=True)
        ]
        if self._holding:
            self._setpoint = self.world.position
        self._commanded_at, self._holding = self.steps, False

    def step(self) -> None:
        """Advance by one physics step."""
        if self._trajectory:
            self._setpoint = self._interpolated()
            self._commanded_at = self.steps
            if self.steps >= self._trajectory[-1][0]:
                self._trajectory = []
        elif not self._holding and self.steps - self._commanded_at > self._timeout:
            self._hold()
        self.world.advance(self._setpoint)
        self.steps += 1

    def joint_state(self) -> JointReading:
        """Measured joint state."""
        return JointReading(self._names, self.world.position, self.world.velocity)

    def _interpolated(self) -> FloatArray:
        last = self._trajectory[-1]
        due, target = next((point for point in self._trajectory if point[0] >= self.steps), last)
        steps_left = max(1, due - self.steps + 1)
        moved: FloatArray = self._setpoint + (target - self._setpoint) / steps_left
        return moved

    def _hold(self) -> None:
        self._setpoint = self.world.position
        self._holding = True

    def _checked(self, values: npt.ArrayLike, field: str) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        fits = array.shape == (len(self._names),)
        if not fits or not np.isfinite(array).all():
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE if fits else ErrorCode.TENSOR_SHAPE_MISMATCH,
                field,
                found=array.tolist(),
                expected=f"{len(self._names)} finite metres or radians {self._names}",
            )
        return array
