"""From the chunk that is executing onto a new candidate.

A plan takes time. A candidate begins at the observation it was planned from, but until it can take
effect the robot goes on with what it was doing. So the actions of a candidate that are past by then
are replaced by what is really executed, and a candidate that the robot cannot get onto from there
is not chosen. Nothing that is past is replayed. How the new actions begin is the
:mod:`~worldforge_ros.planning.seam`'s.

A robot that rests is the exception: it and its world are still where they were seen, so the
candidate begins when it arrives, with its first action.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.observation import Observation, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.seam import Seam
from worldforge_ros.safety.course import BEFORE
from worldforge_ros.safety.differences import feasible
from worldforge_ros.safety.limits import limits_of

FloatArray = npt.NDArray[np.float64]

REST_SPEED = 0.01
"""m/s or rad/s: a robot whose joints are all slower rests."""
_CYCLES = 5
REACH_MARGIN = 1.01
"""A gate that compares exactly must not refuse what was found reachable: float32 rounding."""


@dataclass(frozen=True)
class Handover:
    """Candidates as they would really be executed.

    ``candidates`` (S, H, J) float32, m or rad; ``stamp`` in ns is when action 0 is due;
    ``reachable`` (S,) says which ones the robot can get onto; ``first`` is the first action that is
    new. ``proposed`` (S, H, J) is what they were before past actions and seam. The last ones are of
    other sources than the rest, named by ``extras``. Where the robot ``rests``, nothing executes,
    and the chunk may begin whenever it gets there.
    """

    candidates: npt.NDArray[np.float32]
    stamp: int
    first: int
    reachable: npt.NDArray[np.bool_]
    proposed: npt.NDArray[np.float32]
    extras: tuple[str, ...] = ()
    rests: bool = False


class ArrivalEstimate:
    """When a chunk will reach the gate: the slowest of the last five cycles, and the way there.

    Times are ns of ROS time, so that it also fits a simulation that is not in real time.
    """

    def __init__(self, initial: float = 0.1, transport: float = 0.02) -> None:
        self._took = deque([seconds_to_ns(initial)], maxlen=_CYCLES)
        self._transport = seconds_to_ns(transport)
        self._since: int | None = None

    def arrival(self, now: int) -> int:
        """When what is decided on from ``now`` on will arrive; starts a measurement."""
        self._since = now
        return now + max(self._took) + self._transport

    def sent(self, now: int) -> int:
        """When a chunk that is sent ``now`` will arrive."""
        return now + self._transport

    def finished(self, now: int) -> None:
        """The cycle ended, with a chunk or without: a slow one must not be remembered for ever
        where no chunk can be sent because of it.
        """
        if self._since is not None:
            self._took.append(max(now - self._since, 0))
            self._since = None


def setpoint_at(chunk: ActionChunk | None, hold: FloatArray, time: int) -> FloatArray:
    """The set-point (J,) that a gate commands at ``time`` ns: the chunk's, or ``hold``."""
    if chunk is None:
        return hold
    index = (time - chunk.stamp) // seconds_to_ns(chunk.step)
    if not 0 <= index < len(chunk.actions):
        return hold
    action: FloatArray = np.asarray(chunk.actions[index], dtype=np.float64)
    return action


def path_before(chunk: ActionChunk | None, hold: FloatArray, time: int, step: int) -> FloatArray:
    """Path of the set-points (3, J) at the last multiples of ``step`` ns before ``time``, oldest
    first, as far as a planner knows it: a straight line from each action of ``chunk`` to the next,
    going on as it began before the first one, and ending at the last one.
    """
    if chunk is None:
        return np.stack([hold] * BEFORE)
    actions = np.asarray(chunk.actions, dtype=np.float64)
    index = (time - step * np.arange(BEFORE, 0, -1) - chunk.stamp) / seconds_to_ns(chunk.step)
    if len(actions) == 1:
        return np.stack([actions[0]] * BEFORE)
    whole = np.clip(np.floor(index), 0, len(actions) - 2).astype(np.int64)
    share = np.minimum(index - whole, 1.0)[:, np.newaxis]
    path: FloatArray = (1.0 - share) * actions[whole] + share * actions[whole + 1]
    return path


def hand_over(
    candidates: npt.NDArray[np.float32],
    step: float,
    observation: Observation,
    executing: ActionChunk | None,
    arrival: int,
    embodiment: Embodiment,
    seam: Seam,
) -> Handover:
    """Put ``candidates`` (S, H, J), proposed from ``observation``, where they can take effect.

    Reachable is a candidate whose new actions keep every limit of their joints, from the set-points
    before them on: what the gate would refuse need not be chosen. Joints without all their limits,
    which no gate arms, are not looked at.

    :param step: seconds between two actions.
    :param executing: what the gate executes; None while it holds.
    :param arrival: ns of ROS time at which the gate will have the chunk.
    """
    rests = executing is None and bool(np.all(np.abs(observation.velocity) < REST_SPEED))
    stamp = arrival if rests else observation.stamp
    period = seconds_to_ns(step)
    horizon = candidates.shape[1]
    first = min(max(0, -((stamp - arrival) // period)), horizon)
    hold = observation.position
    spliced = candidates.copy()
    for index in range(first):
        spliced[:, index] = setpoint_at(executing, hold, stamp + index * period)
    before = setpoint_at(executing, hold, stamp + first * period - 1)
    if first == horizon:
        nothing_left = np.zeros(len(spliced), dtype=np.bool_)
        return Handover(spliced, stamp, first, nothing_left, candidates, rests=rests)
    mixed = seam.mix(spliced, stamp, step, first, executing, hold)
    new = mixed.candidates[:, first:].astype(np.float64)
    limits = limits_of(embodiment)
    reachable = np.ones(len(new), dtype=np.bool_)
    if not limits.missing:
        new = limits.unwrapped(new, before)
        path = path_before(executing, hold, stamp + first * period, period)
        near = np.all(
            np.abs(new[:, 0] - before) * REACH_MARGIN <= limits.max_velocity * step, axis=1
        )
        reachable = near & feasible(limits, path, new, step, REACH_MARGIN)
    return Handover(
        mixed.candidates,
        stamp,
        first,
        np.asarray(reachable, dtype=np.bool_),
        candidates,
        rests=rests,
    )
