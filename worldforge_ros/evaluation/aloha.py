"""ALOHA's cube transfer as the task of a closed loop in lockstep."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.evaluation.protocols import Goal, Result
from worldforge_ros.observation import ImageArray
from worldforge_ros.simulation.aloha import (
    CONTROL_STEP,
    GOAL_STATE,
    PHYSICS_STEP,
    QPOS_SIZE,
    SUCCESS_REWARD,
    AlohaSimulation,
)

FloatArray = npt.NDArray[np.float64]

TICKS = round(CONTROL_STEP / PHYSICS_STEP)
STEPS = 400
"""gym-aloha's longest episode, 8 s."""
SAME_PICTURE = 1e-4
"""m or rad by which nothing has moved in two pictures that are the same: a pixel is about 2 mm, and
drawing one takes as long as a hundred control steps."""


class AlohaEpisode:
    """An episode from the start of ``seed`` on; ``best`` is gym-aloha's largest reward so far,
    0 to 4.
    """

    def __init__(self, simulation: AlohaSimulation, seed: int, robot: Embodiment) -> None:
        simulation.reset(seed=seed)
        self.first = self.reward = self.best = simulation.reward()
        self._simulation = simulation
        self._cameras = tuple(robot.cameras)
        self._picture: ImageArray | None = None
        self._seen: FloatArray = np.zeros(QPOS_SIZE)

    @property
    def position(self) -> FloatArray:
        """Joint positions (14,) in rad, of the grippers in m."""
        return self._simulation.position

    @property
    def velocity(self) -> FloatArray:
        """Joint velocities (14,) in rad/s, of the grippers in m/s."""
        return self._simulation.velocity

    def images(self) -> dict[str, ImageArray]:
        """The picture from above, by camera name; drawn anew once something has moved."""
        place = self._simulation.state[:QPOS_SIZE]
        if self._picture is None or np.abs(place - self._seen).max() > SAME_PICTURE:
            self._picture, self._seen = self._simulation.image(), place
        return dict.fromkeys(self._cameras, self._picture)

    def advance(self, setpoint: FloatArray) -> None:
        """Let one control step pass."""
        self._simulation.advance(setpoint, TICKS)
        self.reward = self._simulation.reward()
        self.best = max(self.best, self.reward)

    def succeeded(self) -> bool:
        """Whether the left gripper has the cube off the table."""
        return self.best == SUCCESS_REWARD

    @cached_property
    def goal(self) -> Goal:
        """The solved task."""
        return Goal(self._simulation.goal_image(), GOAL_STATE, pusher=False)

    def result(self) -> Result:
        """How far the episode came; the cube's pose against where the goal picture shows it."""
        cube, wanted = self._simulation.cube, GOAL_STATE[16:23]
        cosine = min(1.0, abs(float(cube[3:] @ wanted[3:])))
        return Result(
            initial=self.first / SUCCESS_REWARD,
            final=self.reward / SUCCESS_REWARD,
            most=self.best / SUCCESS_REWARD,
            position_error_mm=1000.0 * float(np.linalg.norm(cube[:3] - wanted[:3])),
            angle_error=2.0 * float(np.arccos(cosine)),
        )
