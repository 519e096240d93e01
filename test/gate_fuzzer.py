"""A gate, a robot and a clock, driven by chunks that look for what the gate lets through.

Every chunk is judged by the gate and, when approved, by :mod:`gate_oracle`; so is every set-point
that the gate streams. Deterministic for a seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gate_oracle import (
    NOISE,
    ROUNDING,
    SUSTAINED_STEPS,
    Bounds,
    Path,
    Plan,
    Streamed,
    bounds_of,
    unwrapped,
    violations,
)

from worldforge_ros.embodiment import (
    Box,
    Embodiment,
    EndEffector,
    Joint,
    KeepOut,
    WorkspaceSpec,
    load_embodiment,
)
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.config import Reaction
from worldforge_ros.safety.gate import GateConfig, GateMode, ReasonCode, SafetyGate, SetPoint
from worldforge_ros.safety.workspace import workspace_of

START = 1_000_000_000_000
NANOSECONDS = 1_000_000_000
STEPS = (0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.25)
OFF = (0.0, 0.0, 0.0, 1e-7, -1e-7, 9e-7, -9e-7, 1.1e-6, -1.1e-6, 1e-5, -1e-5)
"""Distances from a limit: on it, and just inside and outside of it and of its slack."""
POISON = (math.nan, math.inf, -math.inf, 1e300, -1e300, 1e17, 5e-324, -5e-324, 101.0)

Matrix = npt.NDArray[np.float64]


def robots() -> tuple[Embodiment, ...]:
    """Robots whose limits bind differently."""
    base = replace(load_embodiment("pusht"), workspace=None)
    inf = math.inf

    def made(name: str, *joints: Joint) -> Embodiment:
        return replace(base, name=name, joints=joints)

    box = WorkspaceSpec(
        frame="world",
        end_effectors=(EndEffector("tip", ("x", "y"), None),),
        box=Box((0.05, 0.05, -inf), (0.45, 0.45, inf)),
        polygon=((0.0, 0.0), (0.5, 0.0), (0.5, 0.42), (0.42, 0.5), (0.0, 0.5)),
        keep_out=(KeepOut("post", Box((0.3, 0.3, -inf), (0.34, 0.34, inf))),),
        arms=(),
        min_arm_distance=None,
    )
    table = made(
        "table",
        Joint("x", "prismatic", 0.0, 0.512, 1.0, 20.0, 20.0, inf),
        Joint("y", "prismatic", 0.0, 0.512, 1.0, 20.0, 20.0, inf),
    )
    return (
        table,
        replace(table, name="fenced", workspace=box),
        made(
            "arm",
            Joint("shoulder", "revolute", -1.0, 1.2, 1.5, 4.0, 2.0, 80.0),
            Joint("elbow", "revolute", -2.0, 0.5, 3.0, 10.0, 15.0, 1000.0),
        ),
        made(
            "turner",
            Joint("wheel", "continuous", None, None, 2.0, 8.0, 8.0, inf),
            Joint("slide", "prismatic", -0.2, 0.2, 0.5, 50.0, 1.0, inf),
        ),
        made(
            "slow_to_stop",
            Joint("a", "prismatic", -1.0, 1.0, 1.0, inf, 0.5, inf),
            Joint("b", "revolute", -1.0, 1.0, 2.0, inf, 4.0, inf),
        ),
        made(
            "stiff",
            Joint("p", "prismatic", 0.0, 0.3, 0.25, 0.5, 0.5, 10.0),
            Joint("q", "revolute", -3.0, 3.0, 1.0, 2.0, 2.0, 30.0),
            Joint("r", "continuous", None, None, 6.0, 100.0, 50.0, 5000.0),
        ),
    )


ROBOTS = robots()


@dataclass
class Tally:
    """What happened, over all worlds."""

    approved: int = 0
    rejected: int = 0
    clamped: int = 0
    ticks: int = 0
    braking: int = 0
    begun: int = 0
    waited: int = 0

    def __post_init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()

    @property
    def chunks(self) -> int:
        """Judged so far."""
        return self.approved + self.rejected

    def __str__(self) -> str:
        codes = ", ".join(f"{code} {count}" for code, count in self.codes.most_common())
        stops = ", ".join(f"{code} {count}" for code, count in self.stops.most_common())
        return (
            f"{self.chunks} chunks: {self.approved} approved ({self.clamped} of them clamped), "
            f"{self.rejected} rejected; {self.begun} begun ({self.waited} of them after waiting); "
            f"{self.ticks} ticks, {self.braking} of them braking\nrejected by code: {codes}\n"
            f"stops: {stops}"
        )


class ViolationFound(AssertionError):
    """The gate let something through that it must not."""


def config_for(rng: np.random.Generator) -> GateConfig:
    """A configuration, mostly lenient about everything but motion."""
    changes: dict[str, Any] = {"max_rejections": None, "max_chunk_rate": None}
    if rng.random() < 0.15:
        changes["max_rejections"] = int(rng.integers(2, 30))
    if rng.random() < 0.15:
        changes["max_chunk_rate"] = float(rng.choice([5.0, 20.0, 100.0]))
    if rng.random() < 0.2:
        changes["position_margin"] = float(rng.choice([1e-3, 0.02]))
    if rng.random() < 0.5:
        changes["max_cost"], changes["min_margin"] = 1.0, 0.1
        changes["model_id"] = "m1"
    if rng.random() < 0.5:
        changes["allowed_sources"] = ("policy",)
    if rng.random() < 0.1:
        changes["max_open_loop"] = 0.3
    if rng.random() < 0.2:
        changes["stop_after_hold"] = float(rng.choice([0.05, 0.5]))
    if rng.random() < 0.1:
        changes["max_tracking_error"] = 0.2
    reactions = dict(GateConfig().reactions)
    if rng.random() < 0.3:
        for code in (
            ReasonCode.POSITION_LIMIT,
            ReasonCode.POSITION_MARGIN,
            ReasonCode.VELOCITY_LIMIT,
            ReasonCode.SEAM_COMMANDED,
            ReasonCode.SEAM_MEASURED,
        ):
            reactions[code] = Reaction.CLAMP
    if rng.random() < 0.1:
        reactions[ReasonCode.JERK_LIMIT] = Reaction.HOLD
        reactions[ReasonCode.ACCELERATION_LIMIT] = Reaction.HOLD
    if rng.random() < 0.05:
        reactions[ReasonCode.NOT_FINITE] = Reaction.LATCH
    changes["reactions"] = reactions
    return GateConfig(**changes)


class World:
    """One gate from arming on, one robot that follows it, one attacker."""

    def __init__(self, seed: int, tally: Tally, robot: Embodiment | None = None) -> None:
        self.seed = seed
        self.rng = rng = np.random.default_rng(seed)
        self.tally = tally
        self.robot = robot or ROBOTS[int(rng.integers(len(ROBOTS)))]
        self.names = self.robot.joint_names
        self.bounds: list[Bounds] = bounds_of(self.robot)
        self.config = config_for(rng)
        self.gate = SafetyGate(self.robot, self.config, workspace_of(self.robot, None))
        self.time = 0.0
        self.elapsed = 0.0
        self.ros = self.latest = START
        self.period = float(rng.choice([0.01, 0.01, 0.005, 0.037]))
        self.lag = float(rng.choice([0.0, 0.0, 0.3, 0.9]))
        self.favourite = float(rng.choice(STEPS))
        self.measured = [self._home(most) for most in self.bounds]
        self.speed = [0.0] * len(self.bounds)
        self.sensed = [(self.measured, self.speed)] * 2
        self.stamp = 0
        self.sequence = 0
        self.plans: dict[int, Plan] = {}
        self.path = Path()
        self.streamed = Streamed()
        self.current: Plan | None = None
        self.row = -1
        self.last: SetPoint | None = None
        self.brake: tuple[int, int, list[float], list[float]] | None = None
        self.frozen: tuple[float, ...] | None = None
        self.mode = GateMode.DISARMED
        self.held_at: int | None = None
        self.history: list[str] = []
        self._sense()
        self._arm()

    def _home(self, most: Bounds) -> float:
        if most.continuous:
            return float(self.rng.choice([0.0, 3.14, -3.0]))
        share = float(self.rng.choice([0.5, 0.5, 0.3, 0.02, 0.98]))
        if self.robot.workspace is not None:
            share = 0.4
        return most.lower + share * (most.upper - most.lower)

    def fail(self, text: str) -> None:
        """Say what was found and how to find it again."""
        recent = "\n  ".join(self.history[-12:])
        raise ViolationFound(
            f"{text}\nrobot {self.robot.name}, seed {self.seed}, chunk {self.sequence}, "
            f"ros {self.ros - START}, reason: {self.gate.reason}\n  {recent}"
        )

    # The robot and its clock

    def _sense(self) -> None:
        names, position, speed = list(self.names), list(self.measured), list(self.speed)
        armed = self.gate.mode in (GateMode.ARMED, GateMode.HOLDING)
        if self.ros > self.stamp or (self.ros < self.stamp and not armed):
            # While armed the gate leaves aside what is older than what it knows.
            self.sensed = [self.sensed[-1], (self.measured, self.speed)]
            self.stamp = self.ros
        if self.rng.random() < 0.1:
            names, position, speed = names[::-1], position[::-1], speed[::-1]
        self.gate.update_joint_state(names, position, speed, self.ros, self.time)

    def _arm(self) -> None:
        self.speed = [0.0] * len(self.bounds)
        for joint, most in enumerate(self.bounds):
            if not most.continuous:
                self.measured[joint] = min(max(self.measured[joint], most.lower), most.upper)
        self.time += 1e-4
        self.ros += 100_000
        self._sense()
        if self.gate.mode is GateMode.STOPPED:
            epoch = self.gate.epoch
            if self.gate.rearm(self.ros, self.time).success and self.gate.epoch != epoch + 1:
                self.fail("rearmed without a new epoch")
            # A gate that stops again at the next tick is frozen where it was rearmed.
            self.frozen = None
        if self.gate.mode is GateMode.DISARMED:
            self.gate.enable(True, self.ros, self.time)
        self.latest = self.held_at = self.ros
        self.mode = self.gate.mode
        self.tick()

    def tick(self, period: float | None = None, *, sensing: bool = True) -> None:
        """Time passes, the robot follows, the gate streams."""
        period = self.period if period is None else period
        self.time += period
        self.ros += round(period * NANOSECONDS)
        self.elapsed += max(period, (self.ros - self.latest) / NANOSECONDS, 0.0)
        if self.last is not None:
            pairs = zip(self.measured, self.last.position.tolist(), strict=True)
            follow = [m * self.lag + g * (1.0 - self.lag) for m, g in pairs]
            # As an encoder sees it: the motion of the whole period, or none where it is instant.
            if self.lag:
                self.speed = [(f - m) / period for f, m in zip(follow, self.measured, strict=True)]
            else:
                self.speed = [0.0] * len(follow)
            self.measured = follow
        if sensing:
            self._sense()
        if self.gate.mode is not GateMode.ARMED and self.mode is GateMode.ARMED:
            # A refused chunk, or an event, has led to a hold between two ticks.
            self.held_at = self.latest
        self.mode = self.gate.mode
        if self.latest - self.ros > 200_000_000:
            self.stamp = min(self.stamp, self.ros - 1)
        point = self.gate.tick(self.ros, self.time)
        self.tally.ticks += 1
        self._check(point, period)
        self.mode, self.held_at = self.gate.mode, None
        self.latest = max(self.latest, self.ros)

    # What the gate streams

    def _check(self, point: SetPoint | None, period: float) -> None:
        gate = self.gate
        if gate.last_error is not None:
            self.fail(f"the gate raised {gate.last_error!r}")
        if point is None:
            if gate.mode in (GateMode.ARMED, GateMode.HOLDING):
                self.fail("no set-point of an armed gate")
            self.last = self.current = self.brake = None
            self.streamed.reset()
            return
        place = point.position.tolist()
        for value, most in zip(place, self.bounds, strict=True):
            if not (math.isfinite(value) and most.lower <= value <= most.upper):
                self.fail(f"set-point {place} outside the limits")
        if gate.mode is GateMode.STOPPED:
            if point.index >= 0 or point.braking:
                self.fail("a set-point of a chunk while STOPPED")
            if self.frozen is not None and tuple(place) != self.frozen:
                self.fail("the set-point moved while STOPPED")
            self.frozen = tuple(place)
        else:
            self.frozen = None
        if point.index >= 0:
            self._check_action(point, place)
        elif point.braking:
            self._check_brake(place, period)
        else:
            self._check_hold(place)
        self.last = point

    def _check_action(self, point: SetPoint, place: list[float]) -> None:
        plan = self.plans.get(point.sequence)
        if plan is None:
            self.fail(f"set-point of chunk {point.sequence}, which was not approved")
            return
        if self.gate.mode is not GateMode.ARMED or plan.epoch != self.gate.epoch:
            self.fail(f"set-point of epoch {plan.epoch} in {self.gate.mode.name}")
        row = point.index - plan.offset
        if not 0 <= row < len(plan.rows):
            self.fail(f"action {point.index} of chunk {point.sequence}")
        gap = max(abs(a - b) for a, b in zip(plan.rows[row], place, strict=True))
        if gap > ROUNDING + NOISE:
            self.fail(f"set-point {place} is not action {row} of {plan.rows}")
        if max(self.ros, self.latest) < plan.start + row * plan.step:
            self.fail(f"action {row} before it was due")
        if plan is not self.current:
            self._begin(plan)
        elif row < self.row:
            self.fail(f"action {row} after {self.row}")
        for index in range(self.row + 1, row + 1):
            self.path.add(plan.start + index * plan.step, plan.step, self._inside(plan.rows[index]))
        self.row = row
        slow = self.streamed.too_fast(
            self.elapsed, place, SUSTAINED_STEPS * plan.step / NANOSECONDS, self.bounds
        )
        if slow is not None:
            self.fail(f"faster than over any time allowed: {slow}")

    def _inside(self, row: Sequence[float]) -> list[float]:
        return [min(max(v, m.lower), m.upper) for v, m in zip(row, self.bounds, strict=True)]

    def _begin(self, plan: Plan) -> None:
        self.tally.begun += 1
        if plan.waiting:
            self.tally.waited += 1
            self.path = path = self._planned(plan.start)
            if self.current is not None and self.brake is None and plan.start > self.current.end:
                # A late tick: the braking in between was not seen.
                self.row = len(self.current.rows) - 1
                self._begin_to_brake(self.current)
            if self.brake is not None:
                moment = plan.start - 1
                if moment > path.times[-1]:
                    place = self._inside(self._braked(moment))
                    path.add(moment, moment - path.times[-1], place)
            else:
                self._compare(
                    plan, path.before(plan.start, plan.step), "where it began after waiting"
                )
        self.current, self.row, self.brake = plan, -1, None

    def _planned(self, time: int) -> Path:
        """The path with what the executing chunk still has to do before ``time``."""
        plan = self.current
        if plan is None or self.brake is not None:
            return self.path
        path = self.path.copy()
        for index in range(self.row + 1, len(plan.rows)):
            due = plan.start + index * plan.step
            if due < time:
                path.add(due, plan.step, self._inside(plan.rows[index]))
        return path

    def _compare(self, plan: Plan, before: Sequence[Sequence[float]], where: str) -> None:
        found = next(
            violations(before, plan.rows, plan.step / NANOSECONDS, self.bounds),
            None,
        )
        if found is not None:
            self.fail(
                f"approved chunk {plan.sequence} (step {plan.step}, offset {plan.offset}, start "
                f"{plan.start - START}) {where}: {found}\nbefore {before}\nrows {plan.rows}"
            )

    def _finish(self) -> None:
        """A chunk that is over ended with its last action, whether or not a tick saw it."""
        plan = self.current
        if plan is not None and self.brake is None and max(self.ros, self.latest) >= plan.end:
            for index in range(self.row + 1, len(plan.rows)):
                due = plan.start + index * plan.step
                self.path.add(due, plan.step, self._inside(plan.rows[index]))
            self.row = len(plan.rows) - 1

    def _compare_first(self, plan: Plan, there: Sequence[float], what: str) -> None:
        for here, start, most in zip(plan.rows[0], there, self.bounds, strict=True):
            if abs(here - start) > most.velocity * plan.step / NANOSECONDS + ROUNDING + NOISE:
                self.fail(f"approved chunk {plan.sequence} is too far from the {what} {there}")

    def _begin_to_brake(self, plan: Plan) -> None:
        due = plan.start + self.row * plan.step
        last, earlier = self.path.at(due), self.path.at(due - plan.step)
        seconds = plan.step / NANOSECONDS
        velocity = []
        for here, there, most in zip(last, earlier, self.bounds, strict=True):
            mean = (here - there) / seconds
            if abs(mean) > most.velocity + 4.0 * ROUNDING / seconds:
                self.fail(f"brakes from {mean:g} per second, allowed {most.velocity:g}")
            speed = max(abs(mean) - most.deceleration * seconds / 2.0, 0.0)
            velocity.append(math.copysign(speed, mean))
        # A robot that rests at once does not brake.
        self.brake = (due, plan.step, last, velocity) if any(velocity) else None

    def _braked(self, moment: int) -> list[float]:
        assert self.brake is not None
        due, _, last, velocity = self.brake
        gone = max(moment - due, 0) / NANOSECONDS
        place = []
        for begin, speed, most in zip(last, velocity, self.bounds, strict=True):
            time = min(gone, abs(speed) / most.deceleration)
            slowed = math.copysign(most.deceleration, speed)
            place.append(begin + speed * time - slowed * time * time / 2.0)
        return place

    def _check_brake(self, place: list[float], period: float) -> None:
        self.tally.braking += 1
        plan = self.current
        if self.brake is None:
            if plan is None:
                self.fail("braking without a chunk before")
                return
            if self.gate.reason.startswith("no fresh chunk") or self.gate.mode is GateMode.ARMED:
                self._finish()
            self._begin_to_brake(plan)
        if self.brake is None:
            # From a velocity that only differs from none by rounding.
            due = plan.start + self.row * plan.step if plan is not None else self.ros
            self.brake = (due, plan.step if plan else 0, self.path.at(due), [0.0] * len(place))
        step = self.brake[1]
        if self.ros >= self.latest:
            there = self._braked(self.ros)
            if max(abs(a - b) for a, b in zip(place, there, strict=True)) > 2.0 * ROUNDING:
                self.fail(f"braking is at {place}, expected at {there}")
        if self.ros > self.path.times[-1]:
            self.path.add(self.ros, self.ros - self.path.times[-1], place)
        ahead = SUSTAINED_STEPS * step / NANOSECONDS + period
        slow = self.streamed.too_fast(self.elapsed, place, ahead, self.bounds)
        if slow is not None:
            self.fail(f"braking faster than over any time allowed: {slow}")

    def _check_hold(self, place: list[float]) -> None:
        if self.last is None or place != self.last.position.tolist():
            if self.gate.mode is GateMode.ARMED:
                self._finish()
                end = self.current.rows[-1] if self.current is not None else []
                if end != place and self._inside(end) != place:
                    self.fail(f"the set-point moved to {place} by itself")
            elif self.last is not None or self.gate.mode is GateMode.HOLDING:
                # A chunk that led to a hold was judged at the end of the period before.
                gaps = [
                    max(abs(a - b) for a, b in zip(place, self._inside(there), strict=True))
                    for there, _ in self.sensed
                ]
                if min(gaps) > ROUNDING:
                    self.fail(f"holds {place}, measured {self.measured}")
        if self.gate.mode is GateMode.ARMED:
            self._finish()
        if self.gate.mode is not GateMode.ARMED or not self.path.times:
            # A robot that has come to rest is held where it is measured, even if that is no change.
            moved = self.last is None or self.last.braking or place != self.last.position.tolist()
            if self.held_at is not None and self.gate.mode is GateMode.HOLDING and self.current:
                # A robot that had to brake, however briefly, is held when a tick finds it at rest.
                self._begin_to_brake(self.current)
                self.held_at = self._clock() if self.brake is not None else self.held_at
            if self.held_at is not None:
                self.path.reset(self.held_at, place)
            elif moved or self.mode is not self.gate.mode or self.ros < self.path.times[-1]:
                self.path.reset(self._clock(), place)
            self.streamed.reset()
        self.streamed.samples.append((self.elapsed, tuple(place)))
        self.current = self.brake = None
        self.row = -1

    def _clock(self) -> int:
        """The gate's own idea of ROS time: a small step back does not count."""
        return self.ros if self.latest - self.ros > 200_000_000 else max(self.ros, self.latest)

    # Chunks

    def chunk(self) -> None:
        """Propose something."""
        rng = self.rng
        self.sequence += 1
        step = self.favourite if rng.random() < 0.8 else float(rng.choice(STEPS))
        nanos = round(step * NANOSECONDS)
        stamp = self._stamp(nanos)
        past = max(0, (self.ros - stamp) // nanos)
        horizon = int(past) + int(rng.choice([1, 1, 2, 3, 5, 8, 12]))
        actions = self._actions(stamp + past * nanos, nanos, min(horizon, 60), min(int(past), 59))
        if rng.random() < 0.5:
            with np.errstate(over="ignore"):
                actions = actions.astype(np.float32).astype(np.float64)
        fields: dict[str, Any] = {
            "stamp": stamp,
            "embodiment": self.robot.name,
            "joint_names": self.names,
            "step": step,
            "actions": actions,
            "source": "policy",
            "epoch": self.gate.epoch,
            "sequence": self.sequence,
            "observation_stamp": max(1, self.ros - int(rng.integers(0, 300_000_000))),
            "cost": 0.5,
            "margin": 0.5,
            "model_id": "m1",
        }
        if rng.random() < 0.1:
            order = rng.permutation(len(self.names))
            fields["joint_names"] = tuple(self.names[i] for i in order)
            fields["actions"] = actions[:, order]
        if rng.random() < 0.05:
            self._spoil(fields)
        several = rng.random() < 0.005
        self.gate.proposers(2 if several else 1)
        if self.submit(ActionChunk(**fields)) and several:
            self.fail("approved although there are two publishers")
        self.gate.proposers(1)

    def _stamp(self, step: int) -> int:
        rng = self.rng
        kind = rng.integers(7)
        plan = self.current
        if kind == 0 or plan is None:
            return self.ros
        if kind == 1:
            return self.ros - int(rng.integers(0, 2 * step))
        if kind == 2:
            return self.ros + int(rng.integers(1, 200_000_000))
        if kind == 3:
            return self.ros - int(rng.integers(0, 400_000_000))
        if kind == 4:
            # One nanosecond before, at or after the action that executes: it is replaced, or not.
            return plan.start + max(self.row, 0) * plan.step + int(rng.integers(-1, 2))
        if kind == 5:
            return min(plan.end + int(rng.integers(-1, 2)), self.ros + 200_000_000)
        # In phase with what executes.
        ahead = (self.ros - plan.start) // plan.step + int(rng.integers(0, 3))
        return min(plan.start + int(ahead) * plan.step, self.ros + 200_000_000)

    def _actions(self, start: int, step: int, horizon: int, past: int) -> Matrix:
        rng = self.rng
        last = self.last.position.tolist() if self.last is not None else self.measured
        joints = len(self.bounds)
        kind = rng.random()
        if kind < 0.03:
            actions = np.tile(last, (horizon, 1))
        elif kind < 0.15:
            reach = np.array([most.velocity for most in self.bounds]) * step / NANOSECONDS
            scale = float(rng.choice([0.02, 0.2, 1.0, 1.5]))
            moves = rng.uniform(-1.0, 1.0, (horizon, joints)) * reach * scale
            actions = np.array(last) + np.cumsum(moves, axis=0)
        else:
            rows = self._extreme(self.before(start, step), last, horizon - past, step / NANOSECONDS)
            actions = np.array([rows[0]] * past + rows, dtype=np.float64)
        if rng.random() < 0.02:
            actions[rng.integers(horizon), rng.integers(joints)] = rng.choice(POISON)
        for joint, most in enumerate(self.bounds):
            if most.continuous and rng.random() < 0.2:
                actions[:, joint] += 2.0 * math.pi * rng.integers(-2, 3)
        return actions

    def before(self, start: int, step: int) -> list[list[float]]:
        """Three rows that a chunk from ``start`` on has to continue."""
        if not self.path.times:
            return [list(self.measured)] * 3
        return self._planned(start).before(start, step)

    def _extreme(
        self, before: list[list[float]], commanded: list[float], count: int, step: float
    ) -> list[list[float]]:
        """As far as every limit allows, row after row; here and there a little further."""
        rng = self.rng
        style = int(rng.integers(7))
        sloppy = rng.random() < 0.35
        off = float(rng.choice(OFF))
        everywhere = bool(rng.random() < 0.5)
        where = int(rng.integers(count))
        columns = []
        for joint, most in enumerate(self.bounds):
            share = float(rng.choice([0.0, 1.0]))
            switch = int(rng.integers(count + 1))
            path = [row[joint] for row in before]
            for index in range(count):
                low, high = reach(path, step, most, commanded[joint] if not index else None)
                if style == 1 and index == switch:
                    share = 1.0 - share
                elif style == 2:
                    share = float(rng.random())
                if style <= 2 and low <= high:
                    value = low + share * (high - low)
                elif style == 3:
                    value = 2.0 * path[-1] - path[-2]
                elif style in (4, 5):
                    # Steadily, half of what is possible.
                    value = 0.75 * path[-1] + 0.25 * (low if share else high)
                else:
                    value = path[-1]
                if not sloppy and low <= high:
                    value = min(max(value, low), high)
                if sloppy and (everywhere or index == where):
                    value += off
                path.append(value)
            columns.append(path[3:])
        return [list(row) for row in zip(*columns, strict=True)]

    def _spoil(self, fields: dict[str, Any]) -> None:
        rng = self.rng
        others: tuple[dict[str, Any], ...] = (
            {"stamp": 0},
            {"stamp": self.ros + 300_000_000},
            {"stamp": self.ros - 900_000_000},
            {"stamp": self.ros - 480_000_000, "actions": fields["actions"][:1]},
            {"embodiment": "another"},
            {"joint_names": ("a?",) * len(self.names)},
            {"step": float(rng.choice([0.0, -0.1, math.nan, math.inf, 0.3, 1e-12]))},
            {"actions": np.zeros((2, 7))},
            {"actions": np.zeros((0, len(self.names)))},
            {"actions": [[1.0], [1.0, 2.0]]},
            {"actions": None},
            {"source": "stranger"},
            {"epoch": self.gate.epoch - 1},
            {"sequence": 0},
            {"observation_stamp": 0},
            {"observation_stamp": self.ros + 300_000_000},
            {"observation_stamp": max(1, self.ros - 1_100_000_000)},
            {"cost": math.nan},
            {"margin": 0.0},
            {"model_id": "m2"},
        )
        fields.update(others[int(rng.integers(len(others)))])

    def submit(self, chunk: ActionChunk) -> bool:
        """Propose ``chunk``, and judge it too when it was approved."""
        gate = self.gate
        mode = gate.mode
        verdict = gate.submit(chunk, self.ros, self.time)
        if gate.last_error is not None:
            self.fail(f"the gate raised {gate.last_error!r} at {chunk}")
        self.history.append(
            f"{verdict.word} {chunk.sequence} stamp {chunk.stamp - START} step {chunk.step} "
            f"at {self.ros - START}"
        )
        if not verdict.approved:
            self.tally.rejected += 1
            self.tally.codes.update({str(r.code) for r in verdict.reasons})
            if not verdict.reasons:
                self.fail("rejected without a reason")
            if gate.mode is not mode:
                if gate.mode is GateMode.STOPPED:
                    self.tally.stops[gate.reason.split(":")[0]] += 1
                if mode is GateMode.ARMED:
                    self.held_at = self.latest
                self.tick()
            return False
        self.tally.approved += 1
        self.tally.clamped += verdict.clamped is not None
        if gate.mode is not GateMode.ARMED or self.last is None:
            self.fail(f"approved in {gate.mode.name}")
            return True
        actions = chunk.actions if verdict.clamped is None else verdict.clamped
        order = [chunk.joint_names.index(name) for name in self.names]
        whole = [[float(row[column]) for column in order] for row in actions]
        step = round(chunk.step * NANOSECONDS)
        past = max(0, (self.ros - chunk.stamp) // step)
        if past >= len(whole):
            self.fail("approved although it is over")
        commanded = self.last.position.tolist()
        rows = unwrapped(whole[past:], commanded, self.bounds)
        start = chunk.stamp + past * step
        plan = Plan(
            chunk.sequence, gate.epoch, start, step, rows, int(past), waiting=start > self.ros
        )
        if chunk.epoch != gate.epoch:
            self.fail("approved with another epoch")
        self.plans[plan.sequence] = plan
        if len(self.plans) > 64:
            for old in list(self.plans)[:-32]:
                if self.plans[old] is not self.current:
                    del self.plans[old]
        self._compare(plan, [], "within itself")
        if not plan.waiting:
            self._compare(plan, self.path.before(start, step), "across the seam")
            self._compare_first(plan, commanded, "set-point")
        if self.current is None and self.brake is None:
            seconds = step / NANOSECONDS
            measured, speed = self.sensed[-1]
            place = unwrapped([measured], commanded, self.bounds)[0]
            self._compare_first(plan, place, "measured position")
            if max(abs(value) for value in speed) > self.config.arm_max_speed:
                before = [
                    [p - k * v * seconds for p, v in zip(place, speed, strict=True)]
                    for k in (2, 1, 0)
                ]
                self._compare(plan, before, "from the measured state")
        self._check_margin(plan, commanded)
        return True

    def _check_margin(self, plan: Plan, commanded: Sequence[float]) -> None:
        margin = self.config.position_margin
        if margin <= 0.0 or plan.waiting:
            return
        for row in plan.rows:
            for value, present, most in zip(row, commanded, self.bounds, strict=True):
                low = min(most.lower + margin, present) - ROUNDING - NOISE
                high = max(most.upper - margin, present) + ROUNDING + NOISE
                if not low <= value <= high:
                    self.fail(f"approved chunk {plan.sequence} in the margin, at {value}")

    # What happens around chunks

    def event(self) -> None:
        """Something that is not a chunk."""
        rng, gate = self.rng, self.gate
        mode = gate.mode
        kind = int(rng.integers(11))
        self.history.append(f"event {kind}")
        if kind == 0:
            gate.stop("test", self.time)
        elif kind == 1:
            gate.protective_stop(True, self.time)
            self.tick()
            gate.protective_stop(False, self.time)
        elif kind == 2:
            gate.enable(False, self.ros, self.time)
        elif kind == 3:
            self.ros += int(rng.integers(1, 400_000_000))
        elif kind == 4:
            self.ros -= int(rng.integers(1, 190_000_000))
        elif kind == 5:
            self.ros -= int(rng.integers(250_000_000, 2_000_000_000))
            self.latest = self.ros
        elif kind == 6:
            self.tick(float(rng.choice([0.03, 0.1, 0.2])))
        elif kind == 7:
            for _ in range(40):
                self.tick()
        elif kind == 8:
            for _ in range(12):
                self.tick(0.03, sensing=False)
        elif kind == 9:
            bad = float(rng.choice([math.nan, math.inf, 1e300]))
            gate.update_joint_state(
                self.names, [bad] * len(self.names), self.speed, self.ros + 1, self.time
            )
        else:
            gate.refuse(
                self.sequence,
                ReasonCode.MALFORMED if rng.random() < 0.5 else ReasonCode.MESSAGE_TOO_LARGE,
                "test",
                self.ros,
                self.time,
            )
            self.tally.codes.update({str(r.code) for r in gate.last_verdict.reasons})  # type: ignore[union-attr]
        self.tick()
        if gate.mode is GateMode.STOPPED and mode is not GateMode.STOPPED:
            self.tally.stops[gate.reason.split(":")[0]] += 1

    def run(self, chunks: int) -> None:
        """So many chunks, with ticks and events between them."""
        rng = self.rng
        for _ in range(chunks):
            self.chunk()
            for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3, 6]))):
                mode = self.gate.mode
                self.tick()
                if self.gate.mode is GateMode.STOPPED and mode is not GateMode.STOPPED:
                    self.tally.stops[self.gate.reason.split(":")[0]] += 1
            if rng.random() < 0.01:
                self.event()
            idle = self.gate.mode in (GateMode.STOPPED, GateMode.DISARMED)
            if idle and rng.random() < 0.5:
                self._arm()


def reach(
    path: Sequence[float], step: float, most: Bounds, commanded: float | None = None
) -> tuple[float, float]:
    """What every limit allows after ``path``: lowest and highest, possibly crossed."""
    x3, x2, x1 = path[-3:]
    low = max(most.lower, x1 - most.velocity * step)
    high = min(most.upper, x1 + most.velocity * step)
    if commanded is not None:
        low = max(low, commanded - most.velocity * step)
        high = min(high, commanded + most.velocity * step)
    if math.isfinite(most.acceleration):
        bend, straight = most.acceleration * step**2, 2.0 * x1 - x2
        low, high = max(low, straight - bend), min(high, straight + bend)
    if math.isfinite(most.jerk):
        twist, curved = most.jerk * step**3, 3.0 * x1 - 3.0 * x2 + x3
        low, high = max(low, curved - twist), min(high, curved + twist)
    if math.isfinite(most.upper):
        high = min(high, x1 + _furthest(most.upper - x1, step, most.deceleration))
        low = max(low, x1 - _furthest(x1 - most.lower, step, most.deceleration))
    return low, high


def _furthest(room: float, step: float, deceleration: float) -> float:
    """The longest move after which :func:`gate_oracle.rest` is within ``room``."""
    if room <= 0.0:
        return 0.0
    speed = math.sqrt(2.0 * deceleration * room) - deceleration * step
    if speed <= 0.0:
        return min(room, deceleration * step**2 / 2.0)
    return step * (speed + deceleration * step / 2.0)


def fuzz(chunks: int, seed: int, tally: Tally, each: int = 100) -> None:
    """Worlds of ``each`` chunks until there were so many; world k has the seed ``seed + k``.

    :raises ViolationFound: naming the seed of the world.
    """
    number = 0
    while tally.chunks < chunks:
        World(seed + number, tally).run(each)
        number += 1


__all__ = ["ROBOTS", "START", "STEPS", "Tally", "ViolationFound", "World", "fuzz", "reach"]


if __name__ == "__main__":
    import sys
    import time

    begun = time.monotonic()
    counted = Tally()
    wanted = int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    try:
        for part in range(10):
            fuzz(wanted * (part + 1) // 10, first + part * 10_000_000, counted)
            print(f"{time.monotonic() - begun:.0f} s: {counted}", flush=True)
    except ViolationFound as violation:
        print(f"{time.monotonic() - begun:.0f} s: VIOLATION {violation}\n{counted}", flush=True)
        sys.exit(1)
