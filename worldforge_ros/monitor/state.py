"""What is known of the running stack at one moment, and what it is gathered from.

Times are the caller's monotonic seconds, stamps are ROS time in s.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from worldforge_ros.bags.names import FIXED_TOPICS, TopicName, robot_topics
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.monitor.arrivals import WINDOW, Arrivals
from worldforge_ros.monitor.limits import Limits, limits_of
from worldforge_ros.recording.log import PlanSample
from worldforge_ros.recording.summary import latencies, latency_rows
from worldforge_ros.safety.watch import SILENT as GATE_SILENT
from worldforge_ros.safety.watch import GateView, Watch

CYCLES = 100
"""Planning cycles that latencies and outcomes are taken over."""
DIAGNOSTICS_SILENT = 3.0
"""Seconds without a node's diagnostics that are too many: one a second is due."""
MOST_NODES = 64
"""Nodes that are kept, so that no flood of names grows without end."""
ONCE_HEARD = 2.5
"""Seconds after the first message until a rate is known; everything that beats is heard twice."""

HEARTBEAT = TopicName("heartbeat", "worldforge_ros/msg/Heartbeat")
DIAGNOSTICS = TopicName("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
CLOCK = TopicName("/clock", "rosgraph_msgs/msg/Clock")
_COMMANDS = ("joint_commands", "joint_trajectory", "target_pose")
_UNSTAMPED = ("std_msgs/msg/Float64MultiArray",)
_LEVELS = ("OK", "WARN", "ERROR", "STALE")

ABSENT, SILENT, LATE, IDLE, OK = "absent", "silent", "late", "idle", "ok"


def watched_topics(embodiment: Embodiment, command_topic: str = "") -> dict[str, list[TopicName]]:
    """What is listened to, by role: several names where one of them is enough.

    :param command_topic: where the gate's set-points go, empty for its own topics.
    """
    roles = {role: list(names) for role, names in robot_topics(embodiment).items()}
    for role in ("observation", "plan_report", "proposed", "approved", "gate_status"):
        roles[role] = [FIXED_TOPICS[role]]
    commands = [FIXED_TOPICS[name] for name in _COMMANDS]
    if command_topic:
        commands = [TopicName(command_topic, item.type) for item in commands]
    roles |= {"commands": commands, "surprise": [FIXED_TOPICS["surprise"]]}
    return roles | {"heartbeat": [HEARTBEAT], "diagnostics": [DIAGNOSTICS]}


def is_stamped(type_name: str) -> bool:
    """Whether messages of this type, one of :func:`watched_topics`, begin with a stamp."""
    return type_name not in _UNSTAMPED


@dataclass(frozen=True)
class Candidate:
    """One candidate of a cycle; ``cost`` is None where it was not scored."""

    index: int
    source: str
    cost: float | None
    reachable: bool
    chosen: bool


@dataclass(frozen=True)
class Cycle:
    """What a plan report says; latencies are in ``sample``, ``margin`` is None without one."""

    number: int
    outcome: str
    message: str
    planner: str
    sequence: int
    margin: float | None
    deadline_misses: int
    candidates: tuple[Candidate, ...]
    sample: PlanSample


def candidates_of(
    sources: Sequence[str], costs: Iterable[float], reachable: Sequence[bool], chosen: int
) -> tuple[Candidate, ...]:
    """The candidates of a report, cheapest first, those without a cost last; lists that differ in
    length are shown as far as there are sources.
    """
    values: list[float | None] = [cost if math.isfinite(cost) else None for cost in costs]
    values += [None] * (len(sources) - len(values))
    found = [
        Candidate(i, source, values[i], i >= len(reachable) or bool(reachable[i]), i == chosen)
        for i, source in enumerate(sources)
    ]
    return tuple(sorted(found, key=lambda c: (math.inf if c.cost is None else c.cost, c.index)))


@dataclass(frozen=True)
class TopicRow:
    """One topic at one moment: ages in s, None before the first message.

    :param due: whether it ought to be heard now; commands are not while the gate is not armed.
    :param problem: why it is not listened to, such as another type.
    """

    role: str
    topic: str
    type: str
    publishers: int
    messages: int
    rate: float | None
    age: float | None
    stamp_age: float | None
    max_age: float | None
    max_stamp_age: float | None
    due: bool
    problem: str = ""

    @property
    def state(self) -> str:
        """``absent`` without a publisher ever, ``silent`` without a message for longer than is
        allowed, ``late`` with stamps older than that, ``idle`` for either where none is due.
        """
        state = self._state
        return state if self.due or state in (OK, ABSENT) else IDLE

    @property
    def bad(self) -> bool:
        """Whether a person should look at it."""
        return bool(self.problem) or (self.due and self.state != OK)

    @property
    def _state(self) -> str:
        if self.age is None:
            return SILENT if self.publishers else ABSENT
        if self.max_age is not None and self.age > self.max_age:
            return SILENT
        stamp, most = self.stamp_age, self.max_stamp_age
        return LATE if stamp is not None and most is not None and stamp > most else OK


@dataclass(frozen=True)
class NodeRow:
    """One node: seconds since its heartbeat and its diagnostics, None where it has not been heard.

    :param beats: whether it is to beat at all, ``tells`` whether it publishes diagnostics.
    :param level: of its diagnostics: OK, WARN, ERROR or STALE, empty before the first.
    :param errors: how often each error code came up since the node started.
    """

    name: str
    beats: bool
    tells: bool
    beat_age: float | None
    max_beat_age: float
    level: str
    message: str
    age: float | None
    errors: Mapping[str, int]

    @property
    def state(self) -> str:
        """``silent`` where a sign of life that is due does not come, else the level in words."""
        late = self.beat_age is None or self.beat_age > self.max_beat_age
        return SILENT if (self.beats and late) or self.mute else self.level.lower() or OK

    @property
    def mute(self) -> bool:
        """Whether diagnostics that are due do not come."""
        return self.tells and (self.age is None or self.age > DIAGNOSTICS_SILENT)

    @property
    def bad(self) -> bool:
        """Whether a person should look at it."""
        return self.state not in (OK, "warn")


@dataclass(frozen=True)
class SurpriseView:
    """What the world model's surprise was, ``standardised`` is None without a card; ``age`` in s.

    ``most`` is what the gate allows, None where it does not look.
    """

    error: float | None
    standardised: float | None
    age: float
    most: float | None

    @property
    def bad(self) -> bool:
        """Whether the gate holds for it."""
        if self.most is None:
            return False
        return self.standardised is None or self.standardised > self.most


@dataclass(frozen=True)
class Top:
    """Everything at one moment.

    :param time: ROS time in s, by ``clock``: ``wall`` or ``/clock``.
    :param cycles: reports that ``outcomes`` and ``latency`` are taken over, the last ones.
    :param latency: per stage p50, p95 and max in ms, and the model's share; see
        :func:`worldforge_ros.recording.summary.latency_rows`.
    """

    namespace: str
    embodiment: str
    time: float
    clock: str
    topics: tuple[TopicRow, ...]
    watch: Watch
    cycle: Cycle | None
    cycles: int
    outcomes: Mapping[str, int]
    latency: Sequence[Mapping[str, Any]]
    surprise: SurpriseView | None
    nodes: tuple[NodeRow, ...]
    limits: Limits

    @property
    def heard(self) -> bool:
        """Whether there was a message at all; diagnostics may be of others."""
        named = any(row.messages for row in self.topics if row.role != "diagnostics")
        return named or any(row.age is not None for row in self.nodes)

    @property
    def deadlines(self) -> dict[str, float]:
        """Longest latency in ms of the stages that have a limit."""
        limits = {
            "image_to_observation": self.limits.sensor_age,
            "propose": self.limits.propose,
            "score": self.limits.score,
        }
        return {stage: seconds * 1e3 for stage, seconds in limits.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program: ages in s, latencies in ms; no key ever lacks."""
        cycle = self.cycle
        plan = cycle and {
            "cycle": cycle.number,
            "outcome": cycle.outcome,
            "message": cycle.message,
            "planner": cycle.planner,
            "sequence": cycle.sequence,
            "margin": cycle.margin,
            "deadline_misses": cycle.deadline_misses,
            "candidates": [asdict(candidate) for candidate in cycle.candidates],
            "cycles": self.cycles,
            "outcomes": dict(self.outcomes),
        }
        surprise = self.surprise and {**asdict(self.surprise), "bad": self.surprise.bad}
        found: dict[str, Any] = {
            "heard": self.heard,
            "namespace": self.namespace,
            "embodiment": self.embodiment,
            "time": self.time,
            "clock": self.clock,
            "window": WINDOW,
            "topics": {
                row.role: {**asdict(row), "state": row.state, "bad": row.bad} for row in self.topics
            },
            "latency_ms": {
                row["stage"]: {**row, "deadline": self.deadlines.get(row["stage"])}
                for row in self.latency
            },
            "plan": plan,
            "gate": self.watch.as_json(),
            "surprise": surprise,
            "nodes": {
                row.name: {**asdict(row), "state": row.state, "bad": row.bad} for row in self.nodes
            },
            "limits": asdict(self.limits),
        }
        rounded: dict[str, Any] = _rounded(found)
        return rounded


@dataclass
class _Heard:
    """What one node said last."""

    beat: float | None = None
    level: str = ""
    message: str = ""
    diagnosed: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)


class Monitor:
    """Gathers what messages say."""

    def __init__(self, embodiment: Embodiment, namespace: str, roles: Iterable[str]) -> None:
        """:param roles: of :func:`watched_topics`, those that are listened to."""
        self._embodiment = embodiment
        self._namespace = "/" + namespace.strip("/")
        self._arrivals = {role: Arrivals() for role in roles}
        self._began: float | None = None
        self._view: GateView | None = None
        self._judged: deque[GateView] = deque(maxlen=CYCLES + 1)
        self._cycles: deque[Cycle] = deque(maxlen=CYCLES)
        self._nodes: dict[str, _Heard] = {}
        self._surprise: tuple[float, float] | None = None
        self.told: dict[str, Mapping[str, Any]] = {}
        """Parameters of nodes, see :data:`worldforge_ros.monitor.limits.ASKED`."""

    def heard(self, role: str, time: float, stamp: float | None) -> None:
        """A message of ``role`` came."""
        self._arrivals[role].add(time, stamp)
        if self._began is None:
            self._began = time

    def cycle(self, cycle: Cycle) -> None:
        """The planner ended a cycle; one with a lower number is another planner's."""
        if self._cycles and cycle.number <= self._cycles[-1].number:
            self._cycles.clear()
        self._cycles.append(cycle)

    def status(self, view: GateView) -> None:
        """The gate said how it stands."""
        before, self._view = self._view, view
        if before is not None and view.epoch < before.epoch:
            # Another gate, which counts anew.
            self._judged.clear()
        changed = not self._judged or (
            view.verdict_sequence != self._judged[-1].verdict_sequence
            or view.capture_to_command != self._judged[-1].capture_to_command
        )
        if changed:
            self._judged.append(view)

    def beat(self, node: str, time: float) -> None:
        """``node`` beat."""
        heard = self._node(node)
        if heard is not None:
            heard.beat = time

    def diagnosed(
        self, full_name: str, level: int, message: str, values: Mapping[str, str], time: float
    ) -> None:
        """A status came on ``/diagnostics``; those of other namespaces are left out.

        :param full_name: namespace and name of the node; ``values`` as it gave them.
        """
        name = self.name_of(full_name)
        heard = None if name is None else self._node(name)
        if heard is None:
            return
        heard.level = _LEVELS[level] if 0 <= level < len(_LEVELS) else str(level)
        heard.message, heard.diagnosed = message, time
        heard.errors = {
            key.removeprefix("errors."): int(value)
            for key, value in values.items()
            if key.startswith("errors.") and value.isdecimal()
        }

    def surprised(self, error: float, standardised: float) -> None:
        """The world model said how wrong it was."""
        self._surprise = error, standardised

    def name_of(self, full_name: str) -> str | None:
        """Name of a node of this namespace, None for one of another."""
        prefix, _, name = full_name.rpartition("/")
        return name if full_name.startswith("/") and (prefix or "/") == self._namespace else None

    def _node(self, name: str) -> _Heard | None:
        if name not in self._nodes and len(self._nodes) >= MOST_NODES:
            return None
        return self._nodes.setdefault(name, _Heard())

    def snapshot(
        self,
        now: float,
        ros_now: float,
        clock: str,
        topics: Mapping[str, tuple[TopicName, str, Sequence[str]]],
        problems: Mapping[str, str],
    ) -> Top:
        """Everything at ``now``.

        :param topics: what each role is heard on: which of its names, the topic in full, and its
            publishers' nodes in full.
        :param problems: why a role is not heard, where there is a reason.
        """
        limits = limits_of(self._embodiment, self.told)
        publishers = {role: nodes for role, (_, _, nodes) in topics.items()}
        view = self._view
        rows = tuple(
            self._row(role, what, topic, len(nodes), problems.get(role, ""), now, ros_now, limits)
            for role, (what, topic, nodes) in topics.items()
        )
        beats = {
            name: now - heard.beat for name, heard in self._nodes.items() if heard.beat is not None
        }
        status = self._arrivals["gate_status"].age(now)
        last = self._cycles[-1] if self._cycles else None
        stages = latencies([cycle.sample for cycle in self._cycles], self._judged)
        return Top(
            namespace=self._namespace,
            embodiment=self._embodiment.name,
            time=ros_now,
            clock=clock,
            topics=rows,
            watch=Watch(
                topics["gate_status"][1],
                view,
                math.inf if status is None else status,
                len(publishers["gate_status"]),
                beats,
            ),
            cycle=last,
            cycles=len(self._cycles),
            outcomes=Counter(cycle.outcome for cycle in self._cycles),
            latency=latency_rows({"latency_ms": stages}),
            surprise=self._surprise_at(now, limits),
            nodes=self._node_rows(publishers, now, limits),
            limits=limits,
        )

    def complete(self, now: float, top: Top) -> bool:
        """Whether everything that speaks has been heard, for long enough to know its rate; what has
        not spoken in a whole window is silent.
        """
        since = 0.0 if self._began is None else now - self._began
        if since < ONCE_HEARD or since > WINDOW:
            return since > WINDOW
        rows = all(row.messages or not (row.due and row.publishers) for row in top.topics)
        return rows and all(node.state != SILENT for node in top.nodes)

    def _row(
        self,
        role: str,
        what: TopicName,
        topic: str,
        publishers: int,
        problem: str,
        now: float,
        ros_now: float,
        limits: Limits,
    ) -> TopicRow:
        arrivals = self._arrivals[role]
        stamped = is_stamped(what.type) and arrivals.stamp is not None
        age, stamp_age = self._most(role, what, limits)
        return TopicRow(
            role=role,
            topic=topic,
            type=what.type,
            publishers=publishers,
            messages=arrivals.count,
            rate=arrivals.rate(now),
            age=arrivals.age(now),
            stamp_age=ros_now - arrivals.stamp if stamped and arrivals.stamp else None,
            max_age=age,
            max_stamp_age=stamp_age,
            due=self._due(role, limits),
            problem=problem,
        )

    def _due(self, role: str, limits: Limits) -> bool:
        if role in ("approved", "commands"):
            return self._view is not None and self._view.mode == "ARMED"
        if role == "surprise":
            return limits.surprise is not None and self._due("approved", limits)
        return True

    def _most(
        self, role: str, what: TopicName, limits: Limits
    ) -> tuple[float | None, float | None]:
        """Longest silence, and oldest stamp, of a role."""
        if role in self._embodiment.cameras or role == "observation":
            return limits.sensor_age, limits.sensor_age
        if role == "commands" and what.type != FIXED_TOPICS["joint_trajectory"].type:
            return limits.command_silence, None
        return {
            "joint_states": (limits.joint_state_silence, limits.joint_state_age),
            "gate_status": (GATE_SILENT, GATE_SILENT),
            "surprise": (limits.surprise_silence, limits.surprise_silence),
            "heartbeat": (limits.beat_silence, None),
            "diagnostics": (DIAGNOSTICS_SILENT, None),
        }.get(role, (limits.open_loop, None))

    def _surprise_at(self, now: float, limits: Limits) -> SurpriseView | None:
        age = self._arrivals["surprise"].age(now)
        if self._surprise is None or age is None:
            return None
        error, standardised = (_finite(value) for value in self._surprise)
        return SurpriseView(error, standardised, age, limits.surprise)

    def _node_rows(
        self, publishers: Mapping[str, Sequence[str]], now: float, limits: Limits
    ) -> tuple[NodeRow, ...]:
        beating = {self.name_of(node) for node in publishers["heartbeat"]} | set(limits.beats)
        beating |= {name for name, heard in self._nodes.items() if heard.beat is not None}
        telling = {self.name_of(node) for node in publishers["diagnostics"]}
        telling |= {name for name, heard in self._nodes.items() if heard.diagnosed is not None}
        names = {name for name in beating | telling if name} | self._nodes.keys()
        return tuple(
            NodeRow(
                name=name,
                beats=name in beating,
                tells=name in telling,
                beat_age=None if heard.beat is None else now - heard.beat,
                max_beat_age=limits.beat_silence,
                level=heard.level,
                message=heard.message,
                age=None if heard.diagnosed is None else now - heard.diagnosed,
                errors=heard.errors,
            )
            for name in sorted(names)
            for heard in (self._nodes.get(name, _Heard()),)
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: Any) -> Any:
    """``value`` with floats to six digits after the point: finer is noise."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
