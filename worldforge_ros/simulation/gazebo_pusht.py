"""PushT in Gazebo: its frames, where an episode starts, and how the world is brought there.

Gazebo's world has gym-pusht's x axis, and y and yaw the other way round, since gym-pusht's picture
has y downwards; one unit of gym-pusht is one millimetre. The frame of the model ``tee`` is that of
gym-pusht's block, and the joints of the model ``pusher`` are its agent's position.

Gazebo offers no service that sets a joint, and a model that is fixed to the world cannot be moved
by ``set_pose``: the pusher goes to its start on a trajectory, as it goes anywhere else, while the T
is out of its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.simulation.gazebo_run import BLOCK
from worldforge_ros.simulation.pusht import CONTROL_STEP, UNITS_PER_METRE, PushTSimulation

FloatArray = npt.NDArray[np.float64]

TICK = 0.01
"""Simulated seconds between two messages on /clock, at least."""
TILT = 0.2
"""rad between the T's upright axis and the world's from which it does not lie on the table."""
SPEED = 0.25
"""m/s of the pusher on its way to a start."""
POINT_PERIOD = 0.05
"""Seconds between two points of that way: Gazebo's controller jumps from point to point."""
PUSHER_TOLERANCE = 0.005
"""m between the pusher and its start."""
BLOCK_TOLERANCE = 3.0
"""Environment units (mm) between the T and where it was put."""
ANGLE_TOLERANCE = 0.03
REST = 0.01
"""m/s, and rad/s in tenths, below which nothing moves."""
RETRY = 1.0
"""Wall seconds after which what was asked for and did not happen is asked for again."""
SETTLING_STEPS = 100
"""Physics steps of the built-in simulator in which an overlap of T and pusher has been resolved."""

BAR = ((-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0))
STEM = ((-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0))
"""Corners of the T's two boxes in its own frame, environment units (``PushTEnv.add_tee``)."""
PARKING = (90.0, 150.0, 256.0, 362.0, 422.0)
"""x and y at which the T may be put out of the pusher's way."""
SIDE, EDGE = 512.0, 15.0
"""Of the table, and how far from its edge nothing is put."""


class Pose(NamedTuple):
    """``position`` (3,) in metres and ``quaternion`` (4,), x y z w, in Gazebo's world."""

    position: FloatArray
    quaternion: FloatArray


def block_of(pose: Pose) -> FloatArray:
    """gym-pusht's block (3,), x and y in environment units and the angle in rad, of the model's
    pose.

    :raises WorldForgeError: ``TENSOR_NOT_FINITE``, and ``SIMULATION_UNAVAILABLE`` for a T that does
        not lie flat.
    """
    values = np.concatenate([pose.position, pose.quaternion])
    norm = float(np.linalg.norm(pose.quaternion))
    if not np.isfinite(values).all() or norm < 1e-6:
        raise mismatch(
            ErrorCode.TENSOR_NOT_FINITE,
            f"pose of model {BLOCK}",
            found=values.tolist(),
            expected="finite metres and a quaternion",
        )
    x, y, z, w = pose.quaternion / norm
    tilt = float(np.arccos(np.clip(1.0 - 2.0 * (x * x + y * y), -1.0, 1.0)))
    if tilt > TILT:
        raise mismatch(
            ErrorCode.SIMULATION_UNAVAILABLE,
            f"tilt of model {BLOCK}",
            found=f"{tilt:.2f} rad",
            expected=f"at most {TILT} rad, flat on the table",
        )
    yaw = float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))
    east, north = (float(value) * UNITS_PER_METRE for value in pose.position[:2])
    return np.array([east, -north, -yaw])


def pose_of(block: npt.ArrayLike, height: float) -> Pose:
    """The model's pose with gym-pusht's block at ``block`` (3,); ``height`` in metres."""
    x, y, angle = (float(value) for value in np.asarray(block, dtype=np.float64))
    return Pose(
        np.array([x / UNITS_PER_METRE, -y / UNITS_PER_METRE, height]),
        np.array([0.0, 0.0, np.sin(-angle / 2.0), np.cos(-angle / 2.0)]),
    )


def start_state(simulation: PushTSimulation, seed: int) -> FloatArray:
    """State (5,) of the built-in simulator in the episode of ``seed``, once it is at rest.

    gym-pusht starts some episodes with the T in the pusher or in a wall, and pushes it out within
    some steps; put into Gazebo like that, the T would fly off.
    """
    simulation.reset(seed=seed)
    simulation.advance(simulation.position, SETTLING_STEPS)
    return simulation.state


@dataclass(frozen=True)
class Seen:
    """The world: ``pusher`` (2,) in m, its ``speed`` in m/s, ``block`` (3,) as of ``stamp`` ns."""

    pusher: FloatArray
    speed: float
    block: FloatArray
    stamp: int


@dataclass(frozen=True)
class PlaceBlock:
    """Put the T at ``block`` (3,)."""

    block: FloatArray


@dataclass(frozen=True)
class MovePusher:
    """Go through ``positions`` (N, 2) in m, at ``times`` (N,) in seconds from now."""

    times: FloatArray
    positions: FloatArray


Command = PlaceBlock | MovePusher


class Placement:
    """Brings the world to a start: T out of the way, pusher to its place, T to its own.

    What did not happen is asked for again after :data:`RETRY`, so that a lost message costs time
    and nothing else.
    """

    def __init__(self, start: npt.ArrayLike) -> None:
        """:param start: state (5,), see :data:`worldforge_ros.simulation.pusht.STATE_FIELDS`."""
        state = np.asarray(start, dtype=np.float64)
        self._pusher = state[:2] / UNITS_PER_METRE
        self._block = state[2:]
        self._parked: FloatArray | None = None
        self._stage = 0
        self._asked = -np.inf
        self._before: Seen | None = None
        self.done = False

    @property
    def waits_for(self) -> str:
        """What has not happened yet, in words."""
        return ("the T out of the pusher's way", "the pusher at its start", "the T at its start")[
            self._stage
        ]

    def step(self, seen: Seen, now: float) -> Command | None:
        """What to ask for now, if anything.

        :param now: wall seconds of any monotonic clock.
        """
        if self.done:
            return None
        if self._parked is None:
            self._parked = parking(seen.pusher, self._pusher)
            if self._arrived(seen):
                self._next(2)
        if self._reached(seen):
            if self._stage == 2:
                self.done = True
                return None
            self._next(self._stage + 1)
        self._before = seen
        if now - self._asked < RETRY:
            return None
        self._asked = now
        if self._stage == 1:
            move = way(seen.pusher, self._pusher)
            self._asked += float(move.times[-1])
            return move
        return PlaceBlock(self._parked if self._stage == 0 else self._block)

    def _next(self, stage: int) -> None:
        self._stage, self._asked, self._before = stage, -np.inf, None

    def _reached(self, seen: Seen) -> bool:
        if not np.isfinite(self._asked):
            return False
        if self._stage == 1:
            return self._arrived(seen)
        assert self._parked is not None
        target = self._parked if self._stage == 0 else self._block
        return _near(seen.block, target) and (self._stage == 0 or self._rests(seen))

    def _arrived(self, seen: Seen) -> bool:
        gap = float(np.abs(seen.pusher - self._pusher).max())
        return gap < PUSHER_TOLERANCE and seen.speed < REST

    def _rests(self, seen: Seen) -> bool:
        """Whether the T stands still where it is, by its pose before this one."""
        before = self._before
        if before is None or seen.stamp <= before.stamp or not _near(before.block, self._block):
            return False
        seconds = (seen.stamp - before.stamp) / 1e9
        moved = float(np.hypot(*(seen.block - before.block)[:2])) / UNITS_PER_METRE
        turned = abs(float(_wrapped(seen.block[2] - before.block[2])))
        return moved < REST * seconds and turned < 10.0 * REST * seconds


def _near(block: FloatArray, target: FloatArray) -> bool:
    gap = block - target
    return float(np.hypot(*gap[:2])) < BLOCK_TOLERANCE and abs(_wrapped(gap[2])) < ANGLE_TOLERANCE


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2.0 * np.pi) - np.pi)


def way(begin: npt.ArrayLike, end: npt.ArrayLike) -> MovePusher:
    """A straight way from ``begin`` to ``end`` (2,) in m at :data:`SPEED`."""
    start, target = np.asarray(begin, dtype=np.float64), np.asarray(end, dtype=np.float64)
    seconds = max(float(np.linalg.norm(target - start)) / SPEED, CONTROL_STEP)
    count = int(np.ceil(seconds / POINT_PERIOD))
    share = np.arange(1, count + 1, dtype=np.float64) / count
    return MovePusher(share * seconds, start + share[:, np.newaxis] * (target - start))


def parking(begin: npt.ArrayLike, end: npt.ArrayLike) -> FloatArray:
    """Where the T (3,) is farthest from the pusher's straight way between two places (2,) in m."""
    start = np.asarray(begin, dtype=np.float64) * UNITS_PER_METRE
    along = np.asarray(end, dtype=np.float64) * UNITS_PER_METRE - start
    length = max(float(along @ along), 1e-9)
    best: FloatArray = np.zeros(3)
    most = -np.inf
    for x, y, turns in product(PARKING, PARKING, range(4)):
        block = np.array([x, y, turns * np.pi / 2.0])
        points = outline(block)
        if points.min() < EDGE or points.max() > SIDE - EDGE:
            continue
        share = np.clip((points - start) @ along / length, 0.0, 1.0)
        clear = float(np.linalg.norm(points - start - share[:, np.newaxis] * along, axis=1).min())
        if clear > most:
            best, most = block, clear
    return best


def outline(block: npt.ArrayLike) -> FloatArray:
    """Points (N, 2) on the edges of the T at ``block`` (3,), in environment units, 5 at most apart
    from each other along an edge.
    """
    x, y, angle = (float(value) for value in np.asarray(block, dtype=np.float64))
    points = []
    for box in (BAR, STEM):
        for corner, following in pairwise([*box, box[0]]):
            length = float(np.hypot(*np.subtract(following, corner)))
            points.append(np.linspace(corner, following, 1 + int(np.ceil(length / 5.0))))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    placed: FloatArray = np.concatenate(points) @ turn.T + np.array([x, y])
    return placed
