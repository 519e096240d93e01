"""What the safety gate promises, written down a second time in plain loops.

Shares nothing with the gate but data types: where this file and the gate disagree, one is wrong.
Positions are m or rad, times ns of ROS time where integers and seconds where floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from worldforge_ros.embodiment import Embodiment

ROUNDING = 1e-6
"""Documented slack of a comparison of positions; of third differences twice that."""
NOISE = 2e-9
"""Of float64 arithmetic on positions up to 100 rad."""
SUSTAINED_STEPS = 2
"""Steps at full speed that the set-points may be ahead of the velocity limit."""

Row = Sequence[float]


@dataclass(frozen=True)
class Bounds:
    """Limits of one joint."""

    lower: float
    upper: float
    velocity: float
    acceleration: float
    deceleration: float
    jerk: float
    continuous: bool


def bounds_of(embodiment: Embodiment) -> list[Bounds]:
    """The limits of a complete embodiment."""
    found = []
    for joint in embodiment.joints:
        numbers = (
            joint.max_velocity,
            joint.max_acceleration,
            joint.max_deceleration,
            joint.max_jerk,
        )
        assert all(number is not None for number in numbers)
        velocity, acceleration, deceleration, jerk = (float(n) for n in numbers if n is not None)
        endless = joint.type == "continuous"
        lower = -math.inf if joint.min_position is None else joint.min_position
        upper = math.inf if joint.max_position is None else joint.max_position
        assert endless or math.isfinite(upper - lower)
        found.append(Bounds(lower, upper, velocity, acceleration, deceleration, jerk, endless))
    return found


def rest(before: float, position: float, step: float, bounds: Bounds) -> float:
    """Where a joint rests that moved from ``before`` to ``position`` in ``step`` and then brakes.

    It has its mean velocity in the middle of the move and may brake from there on.
    """
    mean = (position - before) / step
    speed = max(abs(mean) - bounds.deceleration * step / 2.0, 0.0)
    if speed == 0.0:
        return position
    return position + math.copysign(speed * speed / (2.0 * bounds.deceleration), mean)


@dataclass(frozen=True)
class Violation:
    """A limit that was not kept."""

    limit: str
    row: int
    joint: int
    found: float
    most: float


def violations(
    before: Sequence[Row], rows: Sequence[Row], step: float, bounds: Sequence[Bounds]
) -> Iterator[Violation]:
    """Every limit that ``rows``, ``step`` s apart, violate after the rows ``before`` (0 to 3)."""
    for joint, most in enumerate(bounds):
        path = [row[joint] for row in before]
        for index, row in enumerate(rows):
            here = row[joint]
            if not math.isfinite(here):
                yield Violation("finite", index, joint, here, 0.0)
                continue
            if here > most.upper + ROUNDING + NOISE or here < most.lower - ROUNDING - NOISE:
                yield Violation("position", index, joint, here, most.upper)
            path.append(here)
            if len(path) > 1:
                move = here - path[-2]
                allowed = most.velocity * step
                if abs(move) > allowed + ROUNDING + NOISE:
                    yield Violation("velocity", index, joint, move, allowed)
                stop = rest(path[-2], here, step, most)
                if stop > most.upper + ROUNDING + NOISE or stop < most.lower - ROUNDING - NOISE:
                    yield Violation("stopping", index, joint, stop, most.upper)
            if len(path) > 2:
                bend = path[-1] - 2.0 * path[-2] + path[-3]
                allowed = most.acceleration * step**2
                if abs(bend) > allowed + ROUNDING + NOISE:
                    yield Violation("acceleration", index, joint, bend, allowed)
            if len(path) > 3:
                twist = path[-1] - 3.0 * path[-2] + 3.0 * path[-3] - path[-4]
                allowed = most.jerk * step**3
                if abs(twist) > allowed + 2.0 * ROUNDING + NOISE:
                    yield Violation("jerk", index, joint, twist, allowed)


def unwrapped(rows: Sequence[Row], reference: Row, bounds: Sequence[Bounds]) -> list[list[float]]:
    """``rows`` with continuous joints on the turn nearest to the row before."""
    result = [list(row) for row in rows]
    last = reference
    for row in result:
        for joint, most in enumerate(bounds):
            if most.continuous and math.isfinite(row[joint]):
                turns = round((row[joint] - last[joint]) / (2.0 * math.pi))
                row[joint] -= 2.0 * math.pi * turns
        last = row
    return result


@dataclass
class Path:
    """A line through the set-points at the times at which they were due.

    It stands still before the first and after the last; one that was held for longer than its step
    is followed by standing still, then by the move.
    """

    times: list[int] = field(default_factory=list)
    points: list[list[float]] = field(default_factory=list)

    def reset(self, time: int, point: Row) -> None:
        """The robot stands at ``point``; what was before does not count."""
        self.times, self.points = [time], [list(point)]

    def add(self, due: int, step: int, point: Row) -> None:
        """``point`` was due at ``due`` and given ``step`` ns; it replaces what was due later."""
        begin = self.at(due - step)
        while self.times and self.times[-1] >= due:
            self.times.pop()
            self.points.pop()
        if not self.times or self.times[-1] < due - step:
            self.times.append(due - step)
            self.points.append(begin)
        self.times.append(due)
        self.points.append(list(point))
        # Far more than three of the longest steps.
        while len(self.times) > 2 and self.times[1] < due - 1_500_000_000:
            del self.times[0], self.points[0]

    def copy(self) -> Path:
        """One that can be gone on with."""
        return Path(list(self.times), list(self.points))

    def at(self, time: int) -> list[float]:
        """The point of the line at ``time``."""
        if time <= self.times[0]:
            return self.points[0]
        for index in range(len(self.times) - 1, -1, -1):
            if self.times[index] <= time:
                break
        if index + 1 == len(self.times):
            return self.points[-1]
        begin, end = self.times[index], self.times[index + 1]
        share = (time - begin) / (end - begin)
        pair = zip(self.points[index], self.points[index + 1], strict=True)
        return [a + (b - a) * share for a, b in pair]

    def before(self, start: int, step: int) -> list[list[float]]:
        """The three points at the last multiples of ``step`` before ``start``."""
        return [self.at(start - k * step) for k in (3, 2, 1)]


@dataclass
class Plan:
    """An approved chunk as the gate should execute it: what was left of it when approved."""

    sequence: int
    epoch: int
    start: int
    step: int
    rows: list[list[float]]
    offset: int
    waiting: bool
    tolerance: float = 0.0

    @property
    def end(self) -> int:
        """When its last action is over."""
        return self.start + self.step * len(self.rows)


@dataclass
class Streamed:
    """Set-points with the time that has passed at each, for the sustained speed."""

    kept: int = 48
    samples: list[tuple[float, Row]] = field(default_factory=list)

    def reset(self) -> None:
        """A hold begins a new motion."""
        self.samples.clear()

    def too_fast(
        self, time: float, point: Row, ahead: float, bounds: Sequence[Bounds]
    ) -> str | None:
        """Whether ``point`` is further from any earlier one than the time between them allows.

        :param ahead: seconds at full speed that it may be ahead.
        """
        for then, earlier in self.samples:
            for joint, most in enumerate(bounds):
                allowed = most.velocity * (time - then + ahead) + 4.0 * ROUNDING
                if abs(point[joint] - earlier[joint]) > allowed:
                    return (
                        f"joint {joint} went {point[joint] - earlier[joint]:g} in "
                        f"{time - then:g} s, allowed {allowed:g}"
                    )
        self.samples.append((time, tuple(point)))
        del self.samples[: -self.kept]
        return None
