"""Mock hardware for any embodiment: joints that go where they are told, cameras that show a card.

What ``mock_components/GenericSystem`` is to ros2_control: it proves that names, units, topics and
limits fit together, before a robot moves. It has no dynamics and no world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Camera, Embodiment, Joint
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import ImageArray

FloatArray = npt.NDArray[np.float64]

PERIOD = 0.01
"""Seconds of one step."""
_BARS = np.array(
    [[red, green, blue] for green in (255, 0) for red in (255, 0) for blue in (255, 0)], np.uint8
)
"""The eight corners of the colour cube, bright to dark."""


class MockJoints:
    """Joints that reach their set-point in one step, or go towards it as fast as they may.

    A joint without ``max_velocity`` knows no speed limit.
    """

    def __init__(self, robot: Embodiment, start: Sequence[float] = ()) -> None:
        """:param start: positions (J,) in m or rad; empty: 0 where a joint can be there, else the
            middle of its range.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` for a start that is not one position a joint
            inside its limits.
        """
        self._start = _start(robot, start)
        speeds = [np.inf if j.max_velocity is None else j.max_velocity for j in robot.joints]
        self._reach = np.asarray(speeds) * PERIOD
        self._position = self._start
        self._velocity = np.zeros_like(self._start)

    @property
    def position(self) -> FloatArray:
        """Joint positions (J,) in m or rad."""
        return self._position.copy()

    @property
    def velocity(self) -> FloatArray:
        """Joint velocities (J,) in m/s or rad/s over the last step."""
        return self._velocity.copy()

    def reset(self, seed: int | None = None) -> None:
        """Back to the start; nothing here is random."""
        self._position = self._start
        self._velocity = np.zeros_like(self._start)

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """Follow ``setpoint`` (J,) for ``steps`` of :data:`PERIOD`."""
        target = np.asarray(setpoint, dtype=np.float64)
        for _ in range(steps):
            moved = np.clip(target - self._position, -self._reach, self._reach)
            self._position = self._position + moved
            self._velocity = moved / PERIOD


def colour_card(width: int, height: int) -> ImageArray:
    """Eight colour bars above a grey ramp, (height, width, 3) uint8 RGB."""
    bars = _BARS[np.arange(width) * len(_BARS) // width]
    ramp = np.linspace(0.0, 255.0, width).astype(np.uint8)
    card = np.empty((height, width, 3), np.uint8)
    card[:] = bars
    card[height * 3 // 4 :] = ramp[:, np.newaxis]
    return card


def mock_pictures(cameras: Mapping[str, Camera], files: str = "") -> dict[str, ImageArray]:
    """What each camera shows, (height, width, 3) uint8 RGB: a test card, or its file.

    :param files: ``camera=file`` pairs, comma-separated.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown camera or a file that is no
        picture, ``IMAGE_SIZE_MISMATCH`` for one of another size.
    """
    pictures = {name: colour_card(camera.width, camera.height) for name, camera in cameras.items()}
    for item in (part.strip() for part in files.split(",")):
        if not item:
            continue
        name, equals, file = item.partition("=")
        if not equals or name not in cameras:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "pictures",
                found=f"'{item}'",
                expected=f"CAMERA=FILE with a camera of {', '.join(cameras)}",
            )
        pictures[name] = _read(Path(file).expanduser(), cameras[name])
    return pictures


def _read(file: Path, camera: Camera) -> ImageArray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"picture of camera {camera.name}",
            found=f"{file}, not readable ({error})",
            expected="a picture file",
        ) from error
    if picture.shape != (camera.height, camera.width, 3):
        raise mismatch(
            ErrorCode.IMAGE_SIZE_MISMATCH,
            f"picture of camera {camera.name}",
            found=f"{picture.shape[1]} x {picture.shape[0]} pixels in {file}",
            expected=f"{camera.width} x {camera.height}",
        )
    return picture


def _start(robot: Embodiment, start: Sequence[float]) -> FloatArray:
    if not len(start):
        return np.array([_rest(joint) for joint in robot.joints])
    values = np.asarray(start, dtype=np.float64)
    if values.shape != (len(robot.joints),) or not np.isfinite(values).all():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "initial_position",
            found=values.tolist(),
            expected=f"{len(robot.joints)} finite numbers {list(robot.joint_names)}",
        )
    for joint, value in zip(robot.joints, values.tolist(), strict=True):
        if not _allows(joint, value):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"initial_position of {joint.name}",
                found=value,
                expected=f"{joint.min_position} to {joint.max_position}",
            )
    return values


def _allows(joint: Joint, value: float) -> bool:
    low, high = joint.min_position, joint.max_position
    return (low is None or low <= value) and (high is None or value <= high)


def _rest(joint: Joint) -> float:
    if _allows(joint, 0.0):
        return 0.0
    ends = [end for end in (joint.min_position, joint.max_position) if end is not None]
    return sum(ends) / len(ends)
