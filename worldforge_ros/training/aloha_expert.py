"""A scripted expert for ALOHA's cube transfer: way-points of both grippers, inverse kinematics.

The right gripper picks the cube up and brings it to a meeting point in mid-air; the left one grips
the two faces that are still free; the right one lets go and both draw back. The motion is that of
the scripted policy of ALOHA (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with
Low-Cost Hardware"), with times, heights, angles and meeting points drawn anew for each plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.simulation.aloha import CONTROL_STEP

FloatArray = npt.NDArray[np.float64]

BASES: dict[str, tuple[FloatArray, float]] = {
    "left": (np.array([-0.469, 0.5, 0.0]), 0.0),
    "right": (np.array([0.469, 0.5, 0.0]), np.pi),
}
"""Place of each arm's base in m and the heading about z that it looks into, rad."""
SHOULDER_HEIGHT = 0.079 + 0.04805
UPPER_ARM = float(np.hypot(0.05955, 0.3))
UPPER_ARM_RISE = float(np.arctan2(0.3, 0.05955))
"""Elevation of the line from shoulder to elbow at shoulder angle 0, rad."""
FOREARM = 0.3
TOOL_POINT = 0.14
"""Distance along ``gripper_link``'s x axis of the middle between the finger tips, m."""
HAND = 0.069744 + TOOL_POINT
"""From the wrist to the tool point, m."""
REST = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
"""Arm joints at the start (``gym_aloha.constants.START_ARM_POSE``), rad."""
REST_GRIPPER = 0.02239
OPEN, CLOSED = 0.054, 0.024
"""Set-points of an open and a gripping gripper, m: inside the limits, so that a finger that
overshoots is still inside. The cube stops a finger at 0.0424."""
CUBE_HALF = 0.02


class ArmKinematics:
    """Inverse kinematics of one arm with the forearm unrolled, in closed form.

    Without forearm roll the arm moves in a vertical plane that the waist turns: two links to the
    wrist, then the hand. Lengths are those of ``gym_aloha/assets/vx300s_left.xml``.

    :param side: "left" or "right".
    """

    def __init__(self, side: str) -> None:
        self._base, self._facing = BASES[side]

    def forward(self, joints: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Tool points (..., 3) in m and pitches (...) in rad of arm joints (..., 6) in rad; forearm
        roll is 0.
        """
        waist, shoulder, elbow, _, wrist, _ = np.moveaxis(np.asarray(joints, dtype=float), -1, 0)
        pitch = shoulder + elbow + wrist
        rise = UPPER_ARM_RISE - shoulder
        out = UPPER_ARM * np.cos(rise) + FOREARM * np.cos(shoulder + elbow) + HAND * np.cos(pitch)
        up = (
            SHOULDER_HEIGHT
            + UPPER_ARM * np.sin(rise)
            - FOREARM * np.sin(shoulder + elbow)
            - HAND * np.sin(pitch)
        )
        heading = self._facing + waist
        points = np.stack([out * np.cos(heading), out * np.sin(heading), up], axis=-1)
        return points + self._base, pitch

    def solve(self, points: npt.ArrayLike, pitch: npt.ArrayLike, roll: npt.ArrayLike) -> FloatArray:
        """Joints (..., 6) in rad that bring the tool to ``points`` (..., 3) m, elbow up.

        :param pitch: (...) rad, how far the hand points downwards.
        :param roll: (...) rad, about the direction that the hand points into.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` for points out of reach.
        """
        away = np.asarray(points, dtype=np.float64) - self._base
        angle = np.asarray(pitch, dtype=np.float64)
        out = np.hypot(away[..., 0], away[..., 1]) - HAND * np.cos(angle)
        up = away[..., 2] - SHOULDER_HEIGHT + HAND * np.sin(angle)
        reach = np.hypot(out, up)
        if not ((reach < UPPER_ARM + FOREARM) & (reach > abs(UPPER_ARM - FOREARM))).all():
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "distance from shoulder to wrist",
                found=f"{reach.min():.3f} to {reach.max():.3f} m",
                expected=f"less than {UPPER_ARM + FOREARM:.3f} m",
            )
        rise = np.arctan2(up, out)
        at_shoulder = _corner(UPPER_ARM, reach, FOREARM)
        at_wrist = _corner(FOREARM, reach, UPPER_ARM)
        shoulder = UPPER_ARM_RISE - rise - at_shoulder
        elbow = at_wrist - rise - shoulder
        heading = np.arctan2(away[..., 1], away[..., 0]) - self._facing
        waist = (heading + np.pi) % (2.0 * np.pi) - np.pi
        turn = np.broadcast_to(np.asarray(roll, dtype=np.float64), waist.shape)
        wrist = angle - shoulder - elbow
        return np.stack([waist, shoulder, elbow, np.zeros_like(waist), wrist, turn], axis=-1)


def _corner(near: float, reach: FloatArray, far: float) -> FloatArray:
    """Angle between sides ``near`` and ``reach`` of a triangle with third side ``far``."""
    cosine = (near**2 + reach**2 - far**2) / (2.0 * near * reach)
    angle: FloatArray = np.arccos(cosine)
    return angle


@dataclass(frozen=True)
class Style:
    """How one demonstration does it; lengths in m, angles in rad, durations in s."""

    reach: float = 1.2
    descend: float = 0.6
    grip: float = 0.5
    carry: float = 1.2
    meet: float = 0.7
    exchange: float = 0.5
    release: float = 0.35
    retreat: float = 0.8
    approach_height: float = 0.09
    pick_pitch: float = 1.0
    pick_depth: float = 0.0
    meeting_x: float = 0.0
    meeting_y: float = 0.5
    meeting_z: float = 0.25
    left_distance: float = 0.1
    left_pitch: float = 0.0
    left_lead: float = 0.0

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A style at random around the defaults."""
        own = Style()
        pace = rng.uniform(0.9, 1.25)
        times = ("reach", "descend", "grip", "carry", "meet", "exchange", "release", "retreat")
        values = {name: getattr(own, name) * pace * rng.uniform(0.9, 1.15) for name in times}
        # A finger needs a third of a second from open to closed; a grip needs time to settle.
        for name, least in (("grip", 0.48), ("exchange", 0.48), ("release", 0.36)):
            values[name] = max(values[name], least)
        return Style(
            **values,
            approach_height=rng.uniform(0.07, 0.12),
            pick_pitch=rng.uniform(0.9, 1.15),
            pick_depth=rng.uniform(-0.003, 0.004),
            meeting_x=rng.uniform(-0.03, 0.03),
            meeting_y=0.5 + rng.uniform(-0.03, 0.03),
            meeting_z=rng.uniform(0.22, 0.29),
            left_distance=rng.uniform(0.08, 0.13),
            left_pitch=rng.uniform(-0.1, 0.1),
            left_lead=rng.uniform(-0.2, 0.4),
        )


@dataclass(frozen=True)
class Waypoint:
    """One gripper at a time: tool point in m, pitch and roll in rad, set-point of the finger in
    m.
    """

    time: float
    x: float
    y: float
    z: float
    pitch: float
    roll: float
    finger: float


_WAYPOINT_FIELDS = tuple(field.name for field in fields(Waypoint))


class Expert:
    """Plans whole demonstrations within the limits of an embodiment."""

    def __init__(self, embodiment: Embodiment | None = None) -> None:
        self._arms = {side: ArmKinematics(side) for side in BASES}
        self._limits = limits_of(embodiment or load_embodiment("aloha"))

    def plan(self, cube: npt.ArrayLike, style: Style | None = None) -> FloatArray:
        """Set-points (T, 14) in rad and m, one each :data:`CONTROL_STEP`, from the start pose.

        :param cube: (3,) where the cube lies, m, its sides along the axes.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` when a way-point is out of reach or a limit
            of the embodiment would be broken.
        """
        own = style or Style()
        return self._both(self._left(own), self._right(np.asarray(cube, dtype=np.float64), own))

    def bump(
        self, setpoints: FloatArray, rng: np.random.Generator, count: int, size: float
    ) -> FloatArray:
        """``setpoints`` (T, 14) with ``count`` smooth departures of the arm joints from them.

        :param size: largest departure, rad; one lasts 0.4 to 0.8 s and ends on the plan.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` when a limit would be broken.
        """
        bent = np.array(setpoints)
        for _ in range(count):
            length = int(rng.integers(20, 41))
            start = int(rng.integers(0, len(bent) - length))
            shape = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(1, length + 1) / (length + 1))
            arm = 7 * int(rng.integers(2))
            bent[start : start + length, arm : arm + 6] += shape[:, None] * rng.uniform(
                -size, size, 6
            )
        self._check(bent)
        return bent

    def _both(self, left: Sequence[Waypoint], right: Sequence[Waypoint]) -> FloatArray:
        end = max(right[-1].time, left[-1].time)
        steps = round(end / CONTROL_STEP)
        times = CONTROL_STEP * np.arange(1, steps + 1, dtype=np.float64)
        setpoints = np.concatenate(
            [self._follow("left", left, times), self._follow("right", right, times)], axis=1
        )
        self._check(setpoints)
        return setpoints

    def _right(self, cube: FloatArray, style: Style) -> list[Waypoint]:
        x, y = float(cube[0]), float(cube[1])
        z = CUBE_HALF + style.pick_depth
        pitch = style.pick_pitch
        meeting = (style.meeting_x, style.meeting_y, style.meeting_z)
        above = style.reach
        down = above + style.descend
        gripped = down + style.grip
        there = gripped + style.carry
        held = there + style.meet + style.exchange
        away = held + style.release
        return [
            self._rest("right"),
            Waypoint(above, x, y, z + style.approach_height, pitch, 0.0, OPEN),
            Waypoint(down, x, y, z, pitch, 0.0, OPEN),
            Waypoint(gripped, x, y, z, pitch, 0.0, CLOSED),
            Waypoint(there, *meeting, pitch, 0.0, CLOSED),
            Waypoint(held, *meeting, pitch, 0.0, CLOSED),
            Waypoint(away, *meeting, pitch, 0.0, OPEN),
            Waypoint(
                away + style.retreat,
                style.meeting_x + 0.12,
                style.meeting_y,
                style.meeting_z + 0.05,
                pitch,
                0.0,
                OPEN,
            ),
        ]

    def _left(self, style: Style) -> list[Waypoint]:
        y, z = style.meeting_y, style.meeting_z
        roll, pitch = np.pi / 2, style.left_pitch
        there = style.reach + style.descend + style.grip + style.carry
        ready = max(there - style.left_lead, 1.5)
        met = there + style.meet
        gripped = met + style.exchange
        away = gripped + style.release
        before = style.meeting_x - style.left_distance
        return [
            self._rest("left"),
            Waypoint(ready, before, y, z, pitch, roll, OPEN),
            Waypoint(met, style.meeting_x, y, z, pitch, roll, OPEN),
            Waypoint(gripped, style.meeting_x, y, z, pitch, roll, CLOSED),
            Waypoint(away, style.meeting_x, y, z, pitch, roll, CLOSED),
            Waypoint(away + style.retreat, before, y, z, pitch, roll, CLOSED),
        ]

    def _rest(self, side: str) -> Waypoint:
        point, pitch = self._arms[side].forward(REST)
        x, y, z = (float(value) for value in point)
        return Waypoint(0.0, x, y, z, float(pitch), 0.0, REST_GRIPPER)

    def _follow(self, side: str, waypoints: Sequence[Waypoint], times: FloatArray) -> FloatArray:
        """Set-points (T, 7) of one arm through ``waypoints`` at ``times``."""
        from scipy.interpolate import PchipInterpolator

        table = np.array([[getattr(w, name) for name in _WAYPOINT_FIELDS] for w in waypoints])
        knots = table[:, 0]
        path = PchipInterpolator(knots, table[:, 1:6])(np.minimum(times, knots[-1]))
        finger = np.interp(times, knots, table[:, 6])
        joints = self._arms[side].solve(path[:, :3], path[:, 3], path[:, 4])
        return np.concatenate([joints, finger[:, None]], axis=1)

    def _check(self, setpoints: FloatArray) -> None:
        limits = self._limits
        start = np.array([*REST, REST_GRIPPER] * 2)
        speed = np.abs(np.diff(setpoints, axis=0, prepend=start[None])) / CONTROL_STEP
        for name, bad in (
            ("position", limits.outside(setpoints).any(axis=0)),
            ("velocity", (speed > limits.max_velocity).any(axis=0)),
        ):
            if bad.any():
                joint = int(np.flatnonzero(bad)[0])
                raise WorldForgeError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"the expert's plan breaks the {name} limit of {limits.names[joint]}: "
                    f"positions {setpoints[:, joint].min():.3f} to "
                    f"{setpoints[:, joint].max():.3f}, speed {speed[:, joint].max():.3f}",
                )
