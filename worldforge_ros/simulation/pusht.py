"""The PushT task as a robot: gym-pusht's world behind SI commands and sensors.

gym-pusht works in environment units, 512 to a side; one unit is one millimetre here, so the pusher
is two prismatic joints between 0 and 0.512 m. Physics, drawing and coverage are gym-pusht's own
(``gym_pusht.envs.pusht.PushTEnv``); this module adds set-points at any rate, metres and a goal
picture.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]

UNITS_PER_METRE = 1000.0
JOINT_NAMES = ("pusher_x", "pusher_y")
PHYSICS_STEP = 0.01
"""Seconds of one physics step (``PushTEnv.dt``)."""
CONTROL_STEP = 0.1
"""Seconds of one action of the task (``PushTEnv.metadata["render_fps"]`` is 10)."""
SUCCESS_COVERAGE = 0.95
STATE_FIELDS = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")


def _make_env(image_size: int) -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise WorldForgeError(
            ErrorCode.SIMULATION_UNAVAILABLE,
            f"the PushT simulator could not import {error.name or 'gym_pusht'} ({error}); "
            "expected the package gym-pusht with pymunk below 7",
        ) from error
    return PushTEnv(obs_type="state", observation_width=image_size, observation_height=image_size)


class PushTSimulation:
    """One PushT world.

    ``state`` vectors are gym-pusht's: agent x, agent y, block x, block y in environment units
    (millimetres) and the block's angle in radians.
    """

    def __init__(self, image_size: int = 96) -> None:
        if image_size < 16:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "image_size", found=image_size, expected="16 or more"
            )
        self.image_size = image_size
        self._env = _make_env(image_size)
        self._env.reset(seed=0)
        self._drop_contact_counter()

    def reset(self, seed: int | None = None, state: npt.ArrayLike | None = None) -> None:
        """Start an episode from gym-pusht's own distribution for ``seed``, or from ``state``
        (5,).
        """
        options = None
        if state is not None:
            values = np.asarray(state, dtype=np.float64)
            if values.shape != (5,) or not np.isfinite(values).all():
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    "state",
                    found=values.tolist(),
                    expected=f"5 finite numbers {STATE_FIELDS}",
                )
            options = {"reset_to_state": values}
        self._env.reset(seed=seed, options=options)
        self._drop_contact_counter()

    def _drop_contact_counter(self) -> None:
        # gym-pusht counts contacts of collision type 0 in a Python callback that nothing here
        # reads; it would cost more than the physics of a step in contact.
        for shape in self._env.space.shapes:
            shape.collision_type = 1

    @property
    def position(self) -> FloatArray:
        """Measured pusher position (2,) in metres."""
        return np.asarray(self._env.agent.position, dtype=np.float64) / UNITS_PER_METRE

    @property
    def velocity(self) -> FloatArray:
        """Measured pusher velocity (2,) in metres per second."""
        return np.asarray(self._env.agent.velocity, dtype=np.float64) / UNITS_PER_METRE

    @property
    def state(self) -> FloatArray:
        """True state (5,), see :data:`STATE_FIELDS`; the angle is not wrapped."""
        env = self._env
        return np.array([*env.agent.position, *env.block.position, env.block.angle])

    def set_state(self, state: npt.ArrayLike, velocity: npt.ArrayLike = (0.0, 0.0)) -> None:
        """Place pusher and block exactly at ``state`` (5,), pusher velocity (2,) in metres per
        second.

        Unlike ``reset`` this sets the angle before the position, so that the block ends where asked
        (gym-pusht keeps the legacy order, which moves a block whose centre of mass is off its
        origin).
        """
        values = np.asarray(state, dtype=np.float64)
        speed = np.asarray(velocity, dtype=np.float64) * UNITS_PER_METRE
        env = self._env
        env.agent.position = (float(values[0]), float(values[1]))
        env.agent.velocity = (float(speed[0]), float(speed[1]))
        env.block.angle = float(values[4])
        env.block.position = (float(values[2]), float(values[3]))
        env.block.velocity = (0.0, 0.0)
        env.block.angular_velocity = 0.0
        env.space.reindex_shapes_for_body(env.agent)
        env.space.reindex_shapes_for_body(env.block)

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """Run ``steps`` physics steps towards ``setpoint`` (2,) metres, held.

        The law is gym-pusht's PD control: acceleration = k_p (setpoint - x) - k_v v.
        """
        env = self._env
        target_x, target_y = (float(v) * UNITS_PER_METRE for v in np.asarray(setpoint))
        if not (np.isfinite(target_x) and np.isfinite(target_y)):
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE, "setpoint", found=setpoint, expected="finite metres"
            )
        agent, space, dt, k_p, k_v = env.agent, env.space, env.dt, env.k_p, env.k_v
        for _ in range(steps):
            x, y = agent.position
            v_x, v_y = agent.velocity
            agent.velocity = (
                v_x + (k_p * (target_x - x) - k_v * v_x) * dt,
                v_y + (k_p * (target_y - y) - k_v * v_y) * dt,
            )
            space.step(dt)

    def rollout(
        self, state: npt.ArrayLike, velocities: npt.ArrayLike, every: int = 1
    ) -> FloatArray:
        """Block poses that pusher motions would bring about; the world ends as the last one left
        it.

        The pusher is kinematic, so its motion is known before the physics runs.

        :param state: (5,) where every motion starts, see :data:`STATE_FIELDS`.
        :param velocities: (S, N, 2) pusher velocity in m/s during each physics step.
        :param every: record a pose after this many physics steps; divides N.
        :returns: (S, N // every, 3) block x, y in environment units and angle in radians.
        """
        speeds = np.asarray(velocities, dtype=np.float64) * UNITS_PER_METRE
        samples, count = speeds.shape[:2]
        if count % every:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "every", found=every, expected=f"a divisor of {count}"
            )
        poses = np.empty((samples, count // every, 3))
        env = self._env
        agent, block, step, dt = env.agent, env.block, env.space.step, env.dt
        for sample, motion in enumerate(speeds.tolist()):
            self.set_state(state)
            for index in range(0, count, every):
                for velocity in motion[index : index + every]:
                    agent.velocity = velocity
                    step(dt)
                poses[sample, index // every] = (*block.position, block.angle)
        return poses

    def coverage(self) -> float:
        """Share of the goal area that the block covers, 0 to 1."""
        return float(self._env._get_coverage())

    def image(self, size: int | None = None) -> ImageArray:
        """Top camera picture (size, size, 3) uint8 RGB; ``size`` defaults to the camera's."""
        side = size or self.image_size
        picture = self._env._get_img(self._env._draw(), width=side, height=side)
        return np.ascontiguousarray(picture, dtype=np.uint8)

    @property
    def goal_pose(self) -> FloatArray:
        """Goal of the block: x, y in environment units and the angle in radians."""
        return np.asarray(self._env.goal_pose, dtype=np.float64)

    def goal_image(
        self, agent: npt.ArrayLike = (0.128, 0.384), size: int | None = None
    ) -> ImageArray:
        """Picture of the solved task: block on the goal, pusher at ``agent`` (2,) metres."""
        before, speed = self.state, self.velocity
        try:
            place = np.asarray(agent, dtype=np.float64) * UNITS_PER_METRE
            self.set_state([*place, *self.goal_pose])
            return self.image(size)
        finally:
            self.set_state(before, speed)

    def keypoints(self) -> FloatArray:
        """The block's eight corner points (8, 2) in environment units, gym-pusht's order."""
        points = self._env.get_keypoints(self._env._block_shapes)
        return np.asarray(points, dtype=np.float64).reshape(8, 2)

    def close(self) -> None:
        """Release gym-pusht's resources."""
        self._env.close()
