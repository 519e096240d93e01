"""The ALOHA transfer-cube task as a robot: gym-aloha's MuJoCo world behind SI commands and sensors.

Model, reward and start are gym-aloha's own (``gym_aloha.tasks.sim.TransferCubeTask``,
``gym_aloha.utils.sample_box_pose``). Its environment renders three cameras at every step, so this
module steps the physics itself and renders only when asked.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]

ARM_JOINTS = (
    "waist",
    "shoulder",
    "elbow",
    "forearm_roll",
    "wrist_angle",
    "wrist_rotate",
    "gripper",
)
JOINT_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in ARM_JOINTS)
"""LeRobot's order of its ALOHA data sets. Arm joints in radians, grippers as the distance of a
finger from the middle in metres."""
GRIPPERS = (6, 13)
GRIPPER_CLOSED = 0.01844
"""Metres at which gym-aloha's normalised gripper is 0 (``PUPPET_GRIPPER_POSITION_CLOSE``)."""
GRIPPER_OPEN = 0.05800
"""Metres at which gym-aloha's normalised gripper is 1 (``PUPPET_GRIPPER_POSITION_OPEN``)."""
PHYSICS_STEP = 0.002
"""Seconds of one physics step (MuJoCo's default, which gym-aloha's model keeps)."""
CONTROL_STEP = 0.02
"""Seconds of one action of the task (``gym_aloha.constants.DT``)."""
SUCCESS_REWARD = 4
FINGER_GEOMS = tuple(
    f"vx300s_{arm}/10_{finger}_gripper_finger"
    for arm in ("left", "right")
    for finger in ("left", "right")
)
IMAGE_HEIGHT, IMAGE_WIDTH = 480, 640

QPOS_SIZE, QVEL_SIZE, CTRL_SIZE = 23, 22, 16
STATE_SIZE = QPOS_SIZE + QVEL_SIZE + CTRL_SIZE
_MEASURED = (*range(7), *range(8, 15))
"""Indices of our joints in MuJoCo's positions and velocities: each gripper has a second finger."""

_GOAL_LEFT = (0.0, -0.47778, 1.087659, -0.001506, -0.594777, 1.571289, 0.039494, -0.045359)
_GOAL_RIGHT = (0.0, -0.385435, 0.229106, -0.002632, 1.165938, 0.0, 0.054004, -0.053996)
_GOAL_CUBE = (-0.09929, 0.500401, 0.242912, 0.99997, -0.000407, 0.007728, -0.000098)
_GOAL_LEFT_SETPOINTS = (0.0, -0.4785, 1.0841, 0.0, -0.6056, 1.5708, 0.0240, -0.0240)
_GOAL_RIGHT_SETPOINTS = (0.0, -0.3865, 0.2255, 0.0, 1.1609, 0.0, 0.0540, -0.0540)
GOAL_STATE: FloatArray = np.concatenate(
    [
        _GOAL_LEFT,
        _GOAL_RIGHT,
        _GOAL_CUBE,
        np.zeros(QVEL_SIZE),
        _GOAL_LEFT_SETPOINTS,
        _GOAL_RIGHT_SETPOINTS,
    ]
)
"""Where the default plan of ``worldforge_ros.training.aloha_expert`` ends for a cube at (0.1, 0.5):
the left gripper holds the cube above the table and stays so."""


def _make_physics() -> tuple[Any, Any]:
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        from dm_control import mujoco
        from gym_aloha.constants import ASSETS_DIR
        from gym_aloha.tasks.sim import TransferCubeTask
    except (ImportError, RuntimeError, AttributeError) as error:
        # The last two: MUJOCO_GL names a way to render that is unknown, or whose library is absent.
        raise WorldForgeError(
            ErrorCode.SIMULATION_UNAVAILABLE,
            f"the ALOHA simulator could not import gym-aloha ({error}); "
            "expected the packages gym-aloha, mujoco and dm-control and an EGL library",
        ) from error
    path = ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"
    return mujoco.Physics.from_xml_path(str(path)), TransferCubeTask()


class AlohaSimulation:
    """One ALOHA transfer-cube world: two ViperX 300 arms, a cube and a camera above the table.

    ``state`` vectors are MuJoCo's: 23 positions (two arms of 6 joints and 2 fingers, then the
    cube's place and quaternion), 22 velocities and 16 set-points.
    """

    def __init__(self) -> None:
        self._physics, self._task = _make_physics()
        self._camera: Any = None
        self.reset(seed=0)

    @property
    def model(self) -> Any:
        """The ``mujoco.MjModel``, for kinematics."""
        return self._physics.model.ptr

    def reset(self, seed: int | None = None, cube: npt.ArrayLike | None = None) -> None:
        """Start an episode: the cube where gym-aloha puts it for ``seed``, or at ``cube``.

        :param cube: (3,) place in m, or (7,) place and quaternion (w, x, y, z).
        :raises WorldForgeError: ``INVALID_ARGUMENT`` for another shape or values that are not
            finite.
        """
        from gym_aloha.constants import START_ARM_POSE
        from gym_aloha.utils import sample_box_pose

        pose = sample_box_pose(seed) if cube is None else _cube_pose(cube)
        qpos = np.concatenate([START_ARM_POSE, pose])
        self.set_state(np.concatenate([qpos, np.zeros(QVEL_SIZE), START_ARM_POSE]))

    @property
    def position(self) -> FloatArray:
        """Measured joint positions (14,) in rad and, of the grippers, m."""
        return np.array(self._physics.data.qpos[list(_MEASURED)])

    @property
    def velocity(self) -> FloatArray:
        """Measured joint velocities (14,) in rad/s and, of the grippers, m/s."""
        return np.array(self._physics.data.qvel[list(_MEASURED)])

    @property
    def cube(self) -> FloatArray:
        """True pose of the cube (7,): place in m, quaternion (w, x, y, z)."""
        return np.array(self._physics.data.qpos[16:23])

    @property
    def fingers(self) -> FloatArray:
        """Where the fingers are (4, 3) in m: two of the left arm, two of the right one, each the
        centre of the mesh that touches the cube.
        """
        return np.array(self._physics.named.data.geom_xpos[list(FINGER_GEOMS)])

    @property
    def state(self) -> FloatArray:
        """True state (61,): positions, velocities and set-points, see the class."""
        data = self._physics.data
        return np.concatenate([data.qpos, data.qvel, data.ctrl])

    def set_state(self, state: npt.ArrayLike) -> None:
        """Continue from ``state`` (61,).

        :raises WorldForgeError: ``INVALID_ARGUMENT`` for another size or values that are not
            finite.
        """
        values = np.asarray(state, dtype=np.float64)
        if values.shape != (STATE_SIZE,) or not np.isfinite(values).all():
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "state",
                found=f"shape {values.shape}",
                expected=f"{STATE_SIZE} finite numbers: positions, velocities, set-points",
            )
        with self._physics.reset_context():
            data = self._physics.data
            data.qpos[:] = values[:QPOS_SIZE]
            data.qvel[:] = values[QPOS_SIZE : QPOS_SIZE + QVEL_SIZE]
            data.ctrl[:] = values[QPOS_SIZE + QVEL_SIZE :]

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """Run ``steps`` physics steps with ``setpoint`` (14,) in rad and m, held.

        The law is the model's: MuJoCo position actuators, which limit set-points to their control
        range; the two fingers of a gripper mirror each other.
        """
        values = np.asarray(setpoint, dtype=np.float64)
        if values.shape != (len(JOINT_NAMES),):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH, "setpoint", found=values.shape, expected="(14,)"
            )
        if not np.isfinite(values).all():
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE,
                "setpoint",
                found=values.tolist(),
                expected="finite radians and metres",
            )
        left, right = values[:7], values[7:]
        control = np.concatenate([left, -left[6:], right, -right[6:]])
        self._physics.set_control(control)
        self._physics.step(steps)

    def reward(self) -> int:
        """gym-aloha's reward: 1 the right gripper touches the cube, 2 lifts it, 3 the left touches
        it, 4 the left has it off the table.
        """
        return int(self._task.get_reward(self._physics))

    @property
    def success(self) -> bool:
        """Whether the left gripper has the cube off the table (gym-aloha's ``is_success``)."""
        return self.reward() == SUCCESS_REWARD

    def image(self) -> ImageArray:
        """Picture (480, 640, 3) uint8 RGB of the camera ``top``, rendered off-screen.

        :raises WorldForgeError: ``SIMULATION_UNAVAILABLE`` where no OpenGL context can be made.
        """
        if self._camera is None:
            from dm_control.mujoco import Camera

            try:
                self._camera = Camera(
                    self._physics, height=IMAGE_HEIGHT, width=IMAGE_WIDTH, camera_id="top"
                )
            except Exception as error:
                raise WorldForgeError(
                    ErrorCode.SIMULATION_UNAVAILABLE,
                    f"the ALOHA camera could not make an OpenGL context ({error}); expected EGL "
                    f"as MUJOCO_GL={os.environ.get('MUJOCO_GL')} asks",
                ) from error
        return np.array(self._camera.render(), dtype=np.uint8)

    def goal_image(self) -> ImageArray:
        """Picture of the solved task: the left gripper holds the cube, the right one has let go."""
        before = self.state
        try:
            self.set_state(GOAL_STATE)
            return self.image()
        finally:
            self.set_state(before)

    def close(self) -> None:
        """Release the OpenGL context."""
        self._physics.free()


def _cube_pose(cube: npt.ArrayLike) -> FloatArray:
    values = np.asarray(cube, dtype=np.float64)
    if values.shape not in ((3,), (7,)) or not np.isfinite(values).all():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "cube",
            found=values.tolist(),
            expected="3 or 7 finite numbers: place in m, quaternion (w, x, y, z)",
        )
    return values if values.shape == (7,) else np.concatenate([values, [1.0, 0.0, 0.0, 0.0]])
