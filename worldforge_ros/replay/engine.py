"""One bag through observation, policy, world model, planner and gate: no DDS and no wall clock.

The recording goes on as it went, whatever is decided now. A cycle begins and a chunk arrives when
the plan reports of the bag say so; a bag without them is planned on every ``replan_period``. The
same bag, settings and checkpoints give the same document.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros import ingest
from worldforge_ros.bags.actions import RecordedActions
from worldforge_ros.bags.health import HealthMeter
from worldforge_ros.bags.reader import Bag, Event
from worldforge_ros.bags.topics import BagTopics, find_topics
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.planners import Models
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    check_goal,
    seconds_to_ns,
)
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.replay.clock import RecordedClock
from worldforge_ros.replay.cycles import Cycle, Cycles, Placed
from worldforge_ros.replay.live import CHUNKS_KEPT, Difference, LiveRun, compare
from worldforge_ros.replay.measures import PolicyErrors, Ranks, Spread, Thinned
from worldforge_ros.replay.sensing import Sensing
from worldforge_ros.replay.settings import ReplaySettings
from worldforge_ros.replay.summary import EPISODE_SCHEMA
from worldforge_ros.resources import resolve_path
from worldforge_ros.safety.shadow import ShadowGate

FloatArray = npt.NDArray[np.float64]

SLACK = 1.0
"""Seconds of the recording that are known beyond the end of a candidate."""
WAIT = 4.0
"""Seconds that an observation waits for the report of the cycle that began with it, which is the
longest that a cycle of the default deadlines takes."""
BACK = 1.0
"""Seconds back from which on time has been set back."""
MOST_LISTED = 50
"""Stops and differences that are listed; all are counted."""
MOST_EXAMPLES = 5
TIMELINE = 600
_COLUMNS = ("t_s", "cost", "margin", "recorded_rank", "first_error", "age_s", "approved")

Advance = Callable[[float], None]
"""Told how many seconds of the bag are done."""


def failed_document(path: Path, error: WorldForgeError) -> dict[str, Any]:
    """The document of a bag that could not be replayed at all."""
    problem = {"code": str(error.code), "message": error.message}
    return {
        "schema": EPISODE_SCHEMA,
        "episode": path.stem if path.is_file() else path.name,
        "bag": {"name": path.name, "problems": [problem]},
        "failed": problem,
    }


def replay_bag(
    path: Path,
    settings: ReplaySettings,
    models: Models,
    drift_horizon: int = 0,
    advance: Advance = lambda seconds: None,
) -> dict[str, Any]:
    """The document of one bag.

    :param drift_horizon: blocks that the world model is believed, 0 where nobody has measured it.
    :raises WorldForgeError: for a bag that cannot be read or lacks a topic, for settings that
        cannot be used, and what a model raises that is no failed cycle.
    """
    with Bag.open(path) as bag:
        topics = find_topics(
            bag,
            models.embodiment,
            namespace=settings.namespace,
            remap=dict(settings.remap),
            observations=settings.observations,
        )
        return _Replay(bag, topics, settings, models, drift_horizon).document(advance)


@dataclass(frozen=True)
class _Pending:
    """A cycle whose end has not been seen: ``due`` in ns, and what it was predicted to cost."""

    due: int
    cycle: Cycle
    cost: float


@dataclass(frozen=True)
class _Judged:
    """A chunk that arrives at ``arrival`` ns, and the cycle's row of the time line."""

    arrival: int
    chunk: ActionChunk | None
    expert: ActionChunk | None
    row: dict[str, Any]


class _Replay:
    """The state of one replay."""

    def __init__(
        self,
        bag: Bag,
        topics: BagTopics,
        settings: ReplaySettings,
        models: Models,
        drift_horizon: int,
    ) -> None:
        robot = models.embodiment
        self._bag, self._topics, self._settings, self._robot = bag, topics, settings, robot
        sensors = (*topics.cameras.values(), topics.joint_states, topics.observation)
        self._clock = RecordedClock(bag, [name for name in sensors if name])
        self._live = LiveRun(bag, topics, settings.timing)
        history = models.policy.history if models.policy else 1
        base = self._live.seed if self._live.seed is not None else 0
        planning, count, horizon = settings.planning(history, drift_horizon, base)
        self._comparable = self._live.comparable(planning, count)
        self._period = seconds_to_ns(robot.policy.step)
        self._now = 0
        self._begun = 0
        self._cycles = Cycles(
            models, planning, count, horizon, settings.objective, lambda: self._now
        )
        self._horizon = self._cycles.horizon
        self._ahead = self._horizon * robot.policy.step + SLACK + settings.latency
        self._actions = RecordedActions(
            topics, robot, settings.actions, keep=2.0 * self._ahead + SLACK
        )
        self._safety = settings.safety(robot)
        self._gate = ShadowGate(*self._safety)
        source = "observation" if topics.observation else "sensors"
        self._sensing = Sensing(topics, robot, source)
        self._health = HealthMeter(bag, topics)
        joints = len(robot.joints)
        self._errors = PolicyErrors(self._horizon, joints)
        self._spread = Spread(joints)
        self._ranks = Ranks() if models.scorer is not None else None
        self._timeline = Thinned(_COLUMNS, TIMELINE)
        self._previous: tuple[int, FloatArray] | None = None
        self._unfed: deque[Observation] = deque()
        # An approval can be in the bag before the report of the plan that it is about.
        self._approvals: deque[ActionChunk] = deque(maxlen=CHUNKS_KEPT)
        self._pending: deque[_Pending] = deque()
        self._arriving: deque[_Judged] = deque()
        self._measured: FloatArray | None = None
        self._verdicts: Counter[str] = Counter()
        self._judged = self._approved = 0
        self._expert = {"judged": 0, "rejected": 0}
        self._expert_codes: Counter[str] = Counter()
        self._examples: list[dict[str, Any]] = []
        self._stops: list[dict[str, Any]] = []
        self._stop_count = 0
        self._differences: list[dict[str, Any]] = []
        self._compared = self._same = 0
        self._own_goal = self._goal_of_settings()

    def _goal_of_settings(self) -> ImageArray | None:
        if not self._settings.goal:
            return None
        if self._topics.goal_image:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "--goal",
                found=f"given for bag {self._bag.name}, which has {self._topics.goal_image}",
                expected="left out where the bag has a goal",
            )
        from PIL import Image

        path = resolve_path(self._settings.goal)
        try:
            goal = np.asarray(Image.open(path).convert("RGB"))
        except OSError as error:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "--goal",
                found=f"{path} ({error})",
                expected="a picture",
            ) from error
        check_goal(goal, self._robot.scoring.camera, self._robot)
        return goal

    def document(self, advance: Advance) -> dict[str, Any]:
        """Replay the whole bag."""
        if self._own_goal is not None:
            self._cycles.see_goal(self._own_goal)
        for event in self._events(advance):
            self._begun = self._begun or event.received
            self._now = event.received
            self._judge_arrived()
            self._handle(event)
        self._now += seconds_to_ns(self._ahead)
        self._judge_arrived()
        self._resolve(None)
        return self._document()

    def _events(self, advance: Advance) -> Iterator[Event]:
        """The events in the order of receipt; the actions know what follows each of them."""
        waiting: deque[Event] = deque()
        ahead = seconds_to_ns(self._ahead)
        newest = 0
        for event in self._clock.events(self._metered(advance)):
            if event.received < newest - seconds_to_ns(BACK):
                yield from waiting
                waiting.clear()
                self._restart()
                newest = 0
            newest = max(newest, event.received)
            self._actions.add(event)
            waiting.append(event)
            while newest - waiting[0].received > ahead:
                yield waiting.popleft()
        yield from waiting

    def _metered(self, advance: Advance) -> Iterator[Event]:
        for event in self._bag.events(self._topics.all()):
            self._health.add(event)
            advance((event.received - self._bag.start) / NANOSECONDS)
            yield event

    def _restart(self) -> None:
        """Time was set back: nothing of before is about what follows."""
        self._now += seconds_to_ns(self._ahead)
        self._judge_arrived()
        self._resolve(None)
        self._sensing.restart()
        self._gate = ShadowGate(*self._safety)
        self._unfed.clear()
        self._approvals.clear()
        self._previous = None

    def _handle(self, event: Event) -> None:
        topics = self._topics
        if event.topic == topics.goal_image:
            self._take_goal(event)
        elif event.topic == topics.plan_report:
            self._take_report(event)
        elif event.topic == topics.approved:
            self._take_approved(event)
        elif event.topic == topics.gate_status:
            self._take_status(event)
        else:
            if event.topic == topics.joint_states:
                state = event.message
                stamp = ingest.stamp_to_ns(state.header.stamp)
                self._watch(list(state.name), state.position, state.velocity, stamp, event.received)
            observation = self._sensing.take(event)
            if observation is not None:
                self._take_observation(observation)

    def _take_goal(self, event: Event) -> None:
        if self._robot.world_model is None:
            return
        try:
            goal = ingest.image_from_msg(event.message, "goal_image")
            check_goal(goal, self._robot.scoring.camera, self._robot)
        except WorldForgeError as error:
            self._live.trouble(error)
            return
        self._cycles.see_goal(goal)

    def _take_approved(self, event: Event) -> None:
        chunk = self._live.approved(event.message)
        if chunk is not None and self._live.timed:
            self._approvals.append(chunk)

    def _take_status(self, event: Event) -> None:
        status = self._live.status(event.message)
        if status is not None and self._live.timed:
            self._cycles.planner.gate(*status)

    def _watch(
        self, names: Sequence[str], position: Any, velocity: Any, stamp: int, received: int
    ) -> None:
        """Show the gate a joint state."""
        stops = self._gate.observe(names, position, velocity, stamp, received)
        for time, reason in stops:
            self._stop_count += 1
            if len(self._stops) < MOST_LISTED:
                code, _, text = reason.partition(": ")
                self._stops.append({"t_s": self._seconds(time), "code": code, "message": text})

    def _take_observation(self, observation: Observation) -> None:
        self._measured = observation.position
        if not self._topics.joint_states:
            names = self._robot.joint_names
            state = (observation.position.tolist(), observation.velocity.tolist())
            self._watch(names, *state, observation.stamp, self._now)
        setpoint = self._actions.at(observation.stamp + self._period // 2)
        if setpoint is not None:
            self._spread.add(setpoint)
        self._resolve(observation)
        if self._live.timed:
            self._unfed.append(observation)
            while observation.stamp - self._unfed[0].stamp > WAIT * NANOSECONDS:
                self._cycles.planner.observed(self._unfed.popleft())
        elif self._cycles.planner.observed(observation):
            self._plan(self._own_placement(observation), observation, None)

    def _own_placement(self, observation: Observation) -> Placed:
        """A chunk arrives ``latency`` after its observation, and until then what was recorded
        executes.
        """
        arrival = self._now + seconds_to_ns(self._settings.latency)
        return Placed(arrival, self._recorded_chunk(observation.stamp, arrival))

    def _recorded_chunk(self, stamp: int, arrival: int) -> ActionChunk | None:
        """What was commanded from shortly before ``stamp`` until ``arrival`` as a chunk; None where
        that is not known.
        """
        begin = stamp - 4 * self._period
        count = -(-(arrival - begin) // self._period)
        actions = self._recorded(begin, count)
        return None if actions is None else self._chunk(actions, begin, stamp, "recorded")

    def _chunk(self, actions: FloatArray, stamp: int, observed: int, source: str) -> ActionChunk:
        return ActionChunk(
            stamp=stamp,
            embodiment=self._robot.name,
            joint_names=self._robot.joint_names,
            step=self._robot.policy.step,
            actions=actions,
            source=source,
            epoch=0,
            sequence=1,
            observation_stamp=observed,
            cost=math.nan,
            margin=math.nan,
            model_id="",
        )

    def _recorded(self, stamp: int, count: int) -> FloatArray | None:
        """Recorded set-points (count, J) of steps from ``stamp`` on, each in the middle of its
        step; None where one of them is not known.
        """
        found = [
            self._actions.at(stamp + index * self._period + self._period // 2)
            for index in range(count)
        ]
        known = [setpoint for setpoint in found if setpoint is not None]
        return np.stack(known) if known and len(known) == count else None

    def _take_report(self, event: Event) -> None:
        try:
            report = self._live.report(event.message)
        except WorldForgeError as error:
            self._live.trouble(error)
            return
        if not self._live.timed:
            return
        planner = self._cycles.planner
        newest = None
        while self._unfed and self._unfed[0].stamp <= report.observation_stamp:
            newest = self._unfed.popleft()
            planner.observed(newest)
        if newest is None or newest.stamp != report.observation_stamp:
            if report.chosen >= 0 and self._comparable:
                self._differ(Difference(report, -1, "OBSERVATION_MISSING"))
            return
        while self._approvals and self._approvals[0].sequence <= planner.sequence:
            planner.approved(self._approvals.popleft())
        planner.cycle.cycles = report.cycle - 1
        if report.sequence:
            planner.sequence = report.sequence - 1
        if report.arrival:
            executing = self._live.chunk(report.executing)
            placed = Placed(report.arrival, executing, report.stamp)
        else:
            placed = self._own_placement(newest)
        cycle = self._plan(placed, newest, report.arrival and self._now)
        if cycle is None or report.chosen < 0 or not self._comparable:
            if cycle is None and report.chosen >= 0 and self._comparable:
                self._differ(Difference(report, -1, "WINDOW_INCOMPLETE"))
            return
        self._compared += 1
        missing = report.executing and self._live.chunk(report.executing) is None
        difference = compare(report, cycle, bool(missing))
        if difference is None:
            self._same += 1
        else:
            self._differ(difference, counted=True)

    def _differ(self, difference: Difference, counted: bool = False) -> None:
        self._compared += not counted
        if len(self._differences) < MOST_LISTED:
            self._differences.append(
                {
                    "cycle": difference.report.cycle,
                    "t_s": self._seconds(difference.report.observation_stamp),
                    "recorded": difference.report.chosen,
                    "replayed": difference.replayed,
                    "cause": difference.cause,
                }
            )

    def _plan(self, placed: Placed, newest: Observation, arrived: int | None) -> Cycle | None:
        """One cycle, measured; its chunk is judged when it has ``arrived`` (ns), None for when it
        was expected.
        """
        cycle = self._cycles.run(lambda: placed)
        if cycle is None:
            return None
        trace = cycle.trace
        age = (self._now - newest.stamp) / NANOSECONDS
        row: dict[str, Any] = {"t_s": self._seconds(newest.stamp), "age_s": age}
        if trace.choice is not None:
            row["cost"], row["margin"] = trace.choice.cost, trace.choice.margin
        self._measure_policy(cycle, row)
        self._measure_scores(cycle, row)
        arrival = arrived or placed.arrival
        # As if it had been planned just now: late is what a plan is, not what was done.
        due = arrival - (arrival - newest.stamp) % self._period
        recorded = self._recorded(due, self._horizon)
        expert = None if recorded is None else self._chunk(recorded, due, due, "recorded")
        self._arriving.append(_Judged(arrival, cycle.chunk, expert, row))
        if arrival <= self._now:
            self._judge_arrived()
        return cycle

    def _measure_policy(self, cycle: Cycle, row: dict[str, Any]) -> None:
        trace = cycle.trace
        proposed = trace.proposed.astype(np.float64)
        if not len(proposed) or proposed.shape[1] != self._horizon:
            return
        stamp, step = trace.observation.stamp, self._robot.policy.step
        index = 0 if trace.choice is None else trace.choice.index
        chosen = proposed[index]
        if trace.choice is not None:
            self._errors.smooth("chosen", chosen, step)
            self._measure_overlap(stamp, chosen)
        recorded = self._recorded(stamp, self._horizon)
        if recorded is None:
            return
        self._errors.smooth("recorded", recorded, step)
        own = [i for i, source in enumerate(trace.sources) if source not in ("hold", "tail")]
        scale = np.asarray(self._robot.policy.action.scale, dtype=np.float64)
        gaps = np.square((proposed[own] - recorded) * scale).sum(axis=(1, 2))
        predictions = {"first": proposed[0], "nearest": proposed[own[int(gaps.argmin())]]}
        if trace.choice is not None:
            predictions["chosen"] = chosen
        self._errors.add(recorded, predictions)
        row["first_error"] = np.abs(proposed[0, 0] - recorded[0])
        past = self._recorded(stamp - self._horizon * self._period, self._horizon)
        before = self._actions.at(stamp - self._period // 2)
        if before is not None:
            still = np.broadcast_to(before, recorded.shape)
            self._errors.compare("hold", recorded, still)
            if past is not None and len(past) > 1:
                moves = np.diff(past, axis=0, prepend=past[:1])
                moves[0] = moves[1]
                self._errors.compare("repeat", recorded, before + np.cumsum(moves, axis=0))

    def _measure_overlap(self, stamp: int, chosen: FloatArray) -> None:
        if self._previous is not None:
            began, before = self._previous
            middles = stamp + np.arange(len(chosen)) * self._period + self._period // 2
            index = (middles - began) // self._period
            both = (index >= 0) & (index < len(before))
            if both.any():
                self._errors.overlap(chosen[both] - before[index[both]])
        self._previous = (stamp, chosen)

    def _measure_scores(self, cycle: Cycle, row: dict[str, Any]) -> None:
        trace = cycle.trace
        if self._ranks is None or not len(trace.costs) or trace.choice is None:
            return
        costs = trace.costs.astype(np.float64)
        self._ranks.decision(costs, trace.choice.margin)
        scored = self._cycles.planner.scored_actions(trace.candidates.shape[1])
        recorded = self._recorded(trace.stamp, scored)
        if recorded is None:
            return
        cost = float(
            self._cycles.costs(cycle.frames, cycle.goal, recorded[None].astype(np.float32))[0]
        )
        row["recorded_rank"] = self._ranks.recorded(cost, costs)
        due = trace.stamp + scored * self._period
        self._pending.append(_Pending(due, cycle, cost))

    def _resolve(self, seen: Observation | None) -> None:
        """Compare costs with what was ``seen`` in the end; None: nothing more will be seen."""
        allowed = self._period // 2
        while self._pending:
            pending = self._pending[0]
            if seen is not None and seen.stamp < pending.due - allowed:
                return
            self._pending.popleft()
            assert self._ranks is not None
            if seen is not None and seen.stamp <= pending.due + allowed:
                cost = self._cycles.seen_cost(pending.cycle, seen)
                self._ranks.outcome(pending.cost, cost)

    def _judge_arrived(self) -> None:
        while self._arriving and self._arriving[0].arrival <= self._now:
            item = self._arriving.popleft()
            if item.chunk is not None:
                verdict = self._gate.judge(item.chunk, self._commanded, item.arrival)
                self._judged += 1
                self._approved += verdict.approved
                self._verdicts.update(str(reason.code) for reason in verdict.reasons)
                item.row["approved"] = verdict.approved
            if item.expert is not None:
                verdict = self._gate.judge(item.expert, self._commanded, item.arrival)
                self._expert["judged"] += 1
                if not verdict.approved:
                    self._expert["rejected"] += 1
                    self._expert_codes.update(str(reason.code) for reason in verdict.reasons)
                    if len(self._examples) < MOST_EXAMPLES:
                        self._examples.append(
                            {
                                "t_s": self._seconds(item.arrival),
                                "codes": [str(reason.code) for reason in verdict.reasons],
                                "message": verdict.reasons[0].message,
                            }
                        )
            self._timeline.add(**item.row)

    def _commanded(self, time: int) -> FloatArray:
        """The set-point in force at ``time`` ns; where that is not known the robot was where it was
        measured.
        """
        setpoint = self._actions.at(time)
        if setpoint is not None:
            return setpoint
        assert self._measured is not None
        return self._measured

    def _seconds(self, time: int) -> float:
        return round((time - self._begun) / NANOSECONDS, 6)

    def _document(self) -> dict[str, Any]:
        bag, robot = self._bag, self._robot
        health = self._health.document()
        spread = self._spread.std
        return {
            "schema": EPISODE_SCHEMA,
            "episode": bag.name,
            "bag": {
                "name": bag.name,
                "sha256": bag.sha256(),
                "storage": bag.storage,
                "start_ns": bag.start,
                "end_ns": bag.end,
                "duration_s": (bag.end - bag.start) / NANOSECONDS,
                "messages": bag.messages,
                "size_bytes": bag.size_bytes,
                "complete": bag.complete,
                "problems": _problems(bag, self._clock, self._live),
            },
            "topics": self._topics.roles(),
            "health": health,
            "synchronisation": self._sensing.document(),
            "cycles": self._cycles.document(),
            "policy": {
                "joints": list(robot.joint_names),
                "units": ["m" if joint.type == "prismatic" else "rad" for joint in robot.joints],
                "step_s": robot.policy.step,
                "horizon": self._horizon,
                "actions_source": self._actions.source,
                "spread": spread,
                **self._errors.document(),
            },
            "scores": None
            if self._ranks is None
            else self._ranks.document(self._settings.objective or "the checkpoint's own"),
            "gate": {
                "judged": self._judged,
                "approved": self._approved,
                "codes": dict(sorted(self._verdicts.items())),
                "expert": {
                    **self._expert,
                    "codes": dict(sorted(self._expert_codes.items())),
                    "examples": self._examples,
                },
                "stops": self._stops,
                "stop_count": self._stop_count,
                "recorded": self._live.gate_document(),
            },
            "latency": self._live.latency_document(),
            "reproduction": {
                "cycles": self._compared,
                "same": self._same,
                "differences": self._differences,
            }
            if self._compared
            else None,
            "timeline": _timeline(self._timeline, spread),
        }


def _problems(bag: Bag, clock: RecordedClock, live: LiveRun) -> list[dict[str, str]]:
    found = [{"code": str(item.code), "message": item.message} for item in bag.problems]
    if clock.by_stamps:
        found.append(
            {
                "code": str(ErrorCode.STAMP_INVALID),
                "message": f"bag {bag.name}: receive times are {clock.offset:.3f} s from the "
                "stamps, as of another clock; messages are taken to arrive when the newest stamp "
                "before them was made",
            }
        )
    return [*found, *live.problems]


def _timeline(thinned: Thinned, spread: list[float]) -> Mapping[str, Any]:
    """The time line with first-action errors in units of the recorded actions' spread."""
    document = thinned.document()
    moving = np.asarray(spread) > 0.0
    document["first_error"] = [
        None
        if error is None or not moving.any()
        else float(np.sqrt(np.mean(np.square(error[moving] / np.asarray(spread)[moving]))))
        for error in document["first_error"]
    ]
    return document
