"""A chunk as the points of a trajectory controller: times, positions, velocities.

joint_trajectory_controller joins points that have velocities with cubic splines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.safety.differences import Brake, arrival_velocity
from worldforge_ros.safety.limits import ROUNDING, FloatArray, JointLimits


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Points (R,) in time: ``times`` in seconds from now, above 0 and strictly increasing,
    ``positions`` (R, J) in m or rad and ``velocities`` (R, J), at the last point zero.
    """

    times: FloatArray
    positions: FloatArray
    velocities: FloatArray


class State(NamedTuple):
    """Where a controller is: ``position`` (J,) in m or rad and ``velocity`` (J,) per second."""

    position: FloatArray
    velocity: FloatArray


@dataclass(frozen=True, eq=False)
class Followed:
    """A controller that was in state ``begin`` when it was given ``trajectory`` at ``sent`` ns."""

    trajectory: Trajectory
    sent: int
    begin: State

    def at(self, now: int) -> State:
        """Its state at ``now`` ns, on the cubic spline from ``begin`` through the points."""
        elapsed = (now - self.sent) / NANOSECONDS
        points = self.trajectory
        last = int(np.searchsorted(points.times, elapsed))
        if last == len(points.times):
            return State(points.positions[-1], points.velocities[-1])
        begin, start = 0.0, self.begin
        if last:
            begin = float(points.times[last - 1])
            start = State(points.positions[last - 1], points.velocities[last - 1])
        span = float(points.times[last]) - begin
        end = State(points.positions[last], points.velocities[last])
        return _cubic(start, end, span, max(elapsed - begin, 0.0) / span)


def chunk_trajectory(
    positions: FloatArray,
    before: FloatArray,
    due: int,
    step: int,
    now: int,
    limits: JointLimits,
    place: State,
) -> Trajectory:
    """Points that go through ``positions`` (R, J) and then brake to rest.

    Action k is reached when it ends, since its move is allowed a whole step. The first point is put
    off as far as its joints need at ``max_velocity``: a chunk that arrives in the middle of an
    action would otherwise be entitled to that action's whole move in what is left of it.

    :param before: (J,), the path one step before the first of ``positions``.
    :param due: ns, when the first point is reached; ``step`` ns between two.
    :param place: where the controller is; it may lag behind the path.
    """
    seconds = step / NANOSECONDS
    moves = np.diff(np.vstack([before, positions]), axis=0)
    # Of the move as it was judged, in a whole step, even where less than that is left for it.
    last = arrival_velocity(moves[-1], seconds, limits)
    rest = np.zeros_like(last)
    arrival = last if len(positions) == 1 else rest
    first = max(
        (due - now) / NANOSECONDS,
        _needed(positions[0], rest, State(before, rest), limits),
        _needed(positions[0], arrival, place, limits),
    )
    times = first + seconds * np.arange(len(positions), dtype=np.float64)
    spans = np.concatenate([[first], np.full(len(positions) - 1, seconds)])[:, np.newaxis]
    slopes = np.diff(np.vstack([place.position, positions]), axis=0) / spans
    velocities = np.vstack([_monotone(slopes), last])
    tail = _tail(positions[-1], velocities[-1], limits.max_deceleration)
    if not len(tail.times):
        velocities[-1] = 0.0
    whole = Trajectory(
        np.concatenate([times, times[-1] + tail.times]),
        np.vstack([positions, tail.positions]),
        np.vstack([velocities, tail.velocities]),
    )
    return _turning_back(whole, place, limits)


def brake_trajectory(brake: Brake, now: int, limits: JointLimits, place: State) -> Trajectory:
    """What is left of ``brake`` at ``now`` ns; like an action, its first set-point is reached when
    its step is over, or when a controller at ``place`` can be there.
    """
    lead = (brake.start + brake.step - now) / NANOSECONDS
    position, velocity = brake.state(-lead)
    first = max(lead, _needed(position, velocity, place, limits))
    tail = _tail(position, velocity, brake.deceleration)
    if first <= SHORTEST:
        return tail if len(tail.times) else still_trajectory(position)
    whole = Trajectory(
        np.concatenate([[first], first + tail.times]),
        np.vstack([position, tail.positions]),
        np.vstack([velocity if len(tail.times) else np.zeros_like(velocity), tail.velocities]),
    )
    return _turning_back(whole, place, limits)


def _needed(target: FloatArray, arrival: FloatArray, place: State, limits: JointLimits) -> float:
    """Seconds for a way from ``place`` to ``target`` (J,), at velocity ``arrival`` (J,) there.

    No joint needs a mean velocity above ``max_velocity`` then, nor is its cubic ever faster than
    1.5 times that, which is its peak from rest to rest. With a mean m, velocities u and w at the
    ends and t from 0 to 1 it is 6 t (1 - t) m + (1 - t) (1 - 3 t) u + t (3 t - 2) w: where u and w
    point backwards, each adds up to a third of itself, and the mean has to be so much smaller.
    """
    way = target - place.position
    most = limits.max_velocity
    backwards = sum(np.maximum(-np.sign(way) * end, 0.0) for end in (place.velocity, arrival))
    # Only a stop, which is not bounded, makes a controller that fast.
    backwards = np.minimum(backwards, 2.5 * most)
    return float(np.max(np.abs(way) / (most - backwards / 3.0)))


def _cubic(start: State, end: State, span: float, t: float) -> State:
    """State after a share ``t`` of ``span`` seconds on the Hermite cubic between two states."""
    way = end.position - start.position
    return State(
        start.position
        + t**2 * (3 - 2 * t) * way
        + span * t * (1 - t) * ((1 - t) * start.velocity - t * end.velocity),
        6 * t * (1 - t) * way / span
        + (1 - t) * (1 - 3 * t) * start.velocity
        + t * (3 * t - 2) * end.velocity,
    )


def _turning_back(trajectory: Trajectory, place: State, limits: JointLimits) -> Trajectory:
    """``trajectory``, begun with braking by joints whose cubic to the first point would leave their
    limits: a cubic turns back slowly, whatever a joint that moves could do.

    A point is put in where such a joint comes to rest, with ``max_deceleration`` or before its
    limit; what follows is put off as far as its way back needs.
    """
    end = State(trajectory.positions[0], trajectory.velocities[0])
    first, velocity = float(trajectory.times[0]), place.velocity
    shares = np.linspace(0.0, 1.0, SAMPLES)
    path = np.stack([_cubic(place, end, first, float(share)).position for share in shares])
    up = (path > limits.upper + ROUNDING).any(axis=0) & (velocity > 0.0)
    turning = up | ((path < limits.lower - ROUNDING).any(axis=0) & (velocity < 0.0))
    if not turning.any():
        return trajectory
    room = np.where(up, limits.upper - place.position, place.position - limits.lower)
    speed = np.where(turning, np.abs(velocity), 1.0)
    # Braking evenly to rest takes twice the time of the same way at full speed.
    braking = np.minimum(speed / limits.max_deceleration, 2.0 * room / speed)
    braking = np.clip(braking, 10 * SHORTEST, None)
    turned = State(
        np.where(turning, place.position + 0.5 * velocity * braking, end.position),
        np.zeros_like(velocity),
    )
    moments = np.unique(braking[turning])
    moments = moments[np.append(np.diff(moments), np.inf) > SHORTEST]
    late = float(moments[-1]) + max(_needed(*end, turned, limits), SHORTEST)
    delay = max(late - first, 0.0)
    first += delay
    states = []
    for moment in moments:
        on_way = _cubic(place, end, first, float(moment) / first)
        left = np.maximum(1.0 - moment / braking, 0.0)
        slowed = State(turned.position - 0.5 * velocity * braking * left**2, velocity * left)
        for joint in np.flatnonzero(turning & (braking < moment)):
            span = first - float(braking[joint])
            back = _cubic(turned, end, span, float(moment - braking[joint]) / span)
            slowed.position[joint] = back.position[joint]
            slowed.velocity[joint] = back.velocity[joint]
        states.append([np.where(turning, *pair) for pair in zip(slowed, on_way, strict=True)])
    positions, velocities = (np.stack(part) for part in zip(*states, strict=True))
    # A joint that is at its limit, and fast, cannot be kept from passing it by a little.
    positions = np.clip(positions, limits.lower, limits.upper)
    return Trajectory(
        np.concatenate([moments, trajectory.times + delay]),
        np.vstack([positions, trajectory.positions]),
        np.vstack([velocities, trajectory.velocities]),
    )


SAMPLES = 33
"""Places at which the cubic to the first point is compared with the limits."""


def hold_trajectory(position: FloatArray, limits: JointLimits, place: State) -> Trajectory:
    """One point (J,) to be at as soon as a controller at ``place`` can be, without a velocity."""
    needed = _needed(position, np.zeros_like(position), place, limits)
    rest = np.zeros((1, len(position)))
    whole = Trajectory(np.array([max(HOLD_TIME, needed)]), position[np.newaxis], rest)
    return _turning_back(whole, place, limits)


def still_trajectory(position: FloatArray) -> Trajectory:
    """One point (J,) to be at, without a velocity."""
    return Trajectory(np.array([HOLD_TIME]), position[np.newaxis], np.zeros((1, len(position))))


HOLD_TIME = 0.1
"""Seconds in which a trajectory controller is to reach a position that it is at already."""


def _monotone(slopes: FloatArray) -> FloatArray:
    """Velocities between consecutive ``slopes`` (R, J): (R - 1, J).

    Harmonic mean, zero where the direction changes: the spline then stays between its points, so
    that it never leaves the limits that they keep (Fritsch and Butland 1984, doi 10.1137/0905021).
    """
    before, after = slopes[:-1], slopes[1:]
    same = before * after > 0.0
    total = np.where(same, before + after, 1.0)
    mean: FloatArray = np.where(same, 2.0 * before * after / total, 0.0)
    return mean


def _tail(position: FloatArray, velocity: FloatArray, deceleration: FloatArray) -> Trajectory:
    """Braking from ``position`` at ``velocity``: a point wherever a joint comes to rest. Between
    two points every joint has a constant acceleration, which a cubic spline follows exactly.
    """
    brake = Brake(position, velocity, deceleration, 0, 0)
    times = np.unique(brake.times[brake.times > SHORTEST])
    # Of joints that rest together but for rounding, the last one counts.
    times = times[np.append(np.diff(times), np.inf)[: len(times)] > SHORTEST]
    states = [brake.state(float(moment)) for moment in times]
    if not states:
        empty = np.empty((0, len(position)))
        return Trajectory(times, empty, empty)
    positions, velocities = (np.stack(part) for part in zip(*states, strict=True))
    velocities[-1] = 0.0
    return Trajectory(times, positions, velocities)


SHORTEST = 1e-4
"""Seconds; a joint that rests sooner rests."""
