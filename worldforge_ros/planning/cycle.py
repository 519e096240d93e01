"""One planning cycle after another: what is in flight, until when, and what came of it.

The machine never waits. A node tells it what happened and asks what has expired; it answers with
the trace of the cycle. One proposal and one scoring call are in flight at the most; a reply that
carries an old ticket is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import Observation, seconds_to_ns
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.search import SOURCES, CrossEntropySearch
from worldforge_ros.planning.selection import Choice, choose, needs_costs

HandOver = Callable[[npt.NDArray[np.float32], float, Observation], Handover]
"""Puts candidates (S, H, J), so many seconds between two actions, where they can take effect."""
MakeSearch = Callable[[Observation, npt.NDArray[np.float32] | None], CrossEntropySearch]
"""Begins a search at an observation, from a policy's candidates where there are some."""


class Stage(Enum):
    """What the running cycle waits for."""

    IDLE = "idle"
    PROPOSING = "proposing"
    SCORING = "scoring"


@dataclass(frozen=True)
class CycleConfig:
    """Times in seconds; ``replan_period`` is between the observations of two cycles, ``step``
    between two actions of a search. ``score_timeout`` is for all costs of a cycle together.
    """

    planner: str = "scored"
    source: str = "policy"
    step: float = 0.1
    replan_period: float = 0.5
    propose_timeout: float = 2.0
    score_timeout: float = 2.0


@dataclass
class Trace:
    """What happened in one cycle; latencies in seconds.

    ``candidates`` (S, H, J) are as they would be executed, the first action due at ``stamp`` (ns);
    ``proposed`` (S, H, J) is what their sources offered.
    """

    cycle: int
    planner: str
    observation: Observation
    observation_latency: float
    started: float
    candidates: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0, 0), np.float32)
    )
    proposed: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0, 0), np.float32)
    )
    step: float = 0.0
    sources: tuple[str, ...] = ()
    stamp: int = 0
    rests: bool = False
    reachable: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    costs: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    choice: Choice | None = None
    propose_latency: float = 0.0
    score_latency: float = 0.0
    propose_model_latency: float = 0.0
    score_model_latency: float = 0.0
    plan_latency: float = 0.0
    models: tuple[str, ...] = ()
    error: WorldForgeError | None = None

    @property
    def outcome(self) -> str:
        """``OK`` or the code of the error that ended the cycle."""
        return "OK" if self.error is None else str(self.error.code)


class PlanningCycle:
    """The state machine of the planner. All times are the caller's monotonic seconds."""

    def __init__(
        self,
        config: CycleConfig,
        hand_over: HandOver,
        make_search: MakeSearch | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown planner or source, and for a
        search whose result is not chosen by cost.
        """
        self._config = config
        self._scores = needs_costs(config.planner)
        searches = config.source != "policy"
        if config.source not in SOURCES or (searches and not (self._scores and make_search)):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "source",
                found=f"'{config.source}' with planner '{config.planner}'",
                expected=f"one of {', '.join(SOURCES)}; a search needs planner 'scored'",
            )
        self._hand_over = hand_over
        self._make_search = make_search if searches else None
        self._search: CrossEntropySearch | None = None
        self._rng = rng or np.random.default_rng()
        self._trace: Trace | None = None
        self._handover: Handover
        self._stage = Stage.IDLE
        self._deadline = math.inf
        self._requested = 0.0
        self._last_stamp: int | None = None
        self.cycles = 0
        self.deadline_misses = 0

    @property
    def stage(self) -> Stage:
        """What the running cycle waits for."""
        return self._stage

    @property
    def ticket(self) -> int:
        """Number of the running cycle; a reply to an older one is stale."""
        return self.cycles

    @property
    def trace(self) -> Trace | None:
        """The running cycle."""
        return self._trace

    def due(self, stamp: int) -> bool:
        """Whether an observation captured at ``stamp`` (ns) starts a cycle."""
        if self._stage is not Stage.IDLE:
            return False
        if self._last_stamp is None or stamp < self._last_stamp:
            return True
        # A camera's period jitters: a frame a little early still belongs to its slot.
        return stamp - self._last_stamp >= seconds_to_ns(self._config.replan_period * 0.95)

    def start(self, observation: Observation, observation_latency: float, now: float) -> int:
        """Begin a cycle and expect a proposal, or costs where no policy is asked; returns the
        ticket.
        """
        self.cycles += 1
        self._last_stamp = observation.stamp
        self._trace = Trace(
            cycle=self.cycles,
            planner=self._config.planner,
            observation=observation,
            observation_latency=observation_latency,
            started=now,
        )
        self._search = None
        if self._config.source == "cem":
            assert self._make_search is not None
            self._trace.step = self._config.step
            self._search = self._make_search(observation, None)
            self._ask(self._trace)
            self._expect(Stage.SCORING, self._config.score_timeout, now)
        else:
            self._expect(Stage.PROPOSING, self._config.propose_timeout, now)
        return self.cycles

    def _ask(self, trace: Trace) -> None:
        """The next samples of the search become the trace's candidates."""
        assert self._search is not None
        # Costs of an earlier round must not stand beside these candidates.
        trace.costs = np.empty(0, np.float32)
        self._offer(trace, self._search.ask())

    def _offer(self, trace: Trace, candidates: npt.NDArray[np.float32]) -> None:
        handover = self._hand_over(candidates, trace.step, trace.observation)
        self._handover = handover
        trace.candidates, trace.stamp = handover.candidates, handover.stamp
        trace.rests = handover.rests
        trace.reachable, trace.proposed = handover.reachable, handover.proposed
        trace.sources = (self._config.source,) * len(candidates) + handover.extras

    def proposed(
        self,
        ticket: int,
        candidates: npt.NDArray[np.float32],
        step: float,
        model: str,
        model_latency: float,
        now: float,
    ) -> Trace | None:
        """Take candidates (S, H, J), ``step`` seconds between two actions.

        :returns: the finished trace when no scoring follows, else None; see :attr:`stage`.
        """
        trace = self._running(ticket, Stage.PROPOSING)
        if trace is None:
            return None
        trace.propose_latency = now - self._requested
        trace.propose_model_latency = model_latency
        if candidates.ndim != 3 or candidates.shape[0] < 1:
            error = mismatch(
                ErrorCode.NO_CANDIDATES,
                "candidates",
                found=f"shape {candidates.shape}",
                expected="(S, H, joints) with at least one candidate",
            )
            return self._finish(error, now)
        trace.step, trace.models = step, (model,)
        if self._make_search is not None:
            self._search = self._make_search(trace.observation, candidates)
            self._ask(trace)
        else:
            self._offer(trace, candidates)
        if self._search is None and not trace.reachable.any():
            return self._choose(None, now)
        if self._scores:
            self._expect(Stage.SCORING, self._config.score_timeout, now)
            return None
        return self._choose(None, now)

    def scored(
        self, ticket: int, costs: Sequence[float], model: str, model_latency: float, now: float
    ) -> Trace | None:
        """Take costs (S,); returns the finished trace, or None for a stale reply and while a search
        goes on, see :attr:`stage`.
        """
        trace = self._running(ticket, Stage.SCORING)
        if trace is None:
            return None
        trace.score_latency = now - self._requested
        trace.score_model_latency += model_latency
        trace.costs = np.asarray(costs, dtype=np.float32)
        if self._search is not None:
            try:
                self._search.tell(trace.costs, self._handover)
            except WorldForgeError as error:
                return self._finish(error, now)
            if not self._search.done:
                self._ask(trace)
                return None
            self._take_found(trace, self._search)
        trace.models = (*trace.models, model)
        return self._choose(trace.costs, now)

    def _take_found(self, trace: Trace, search: CrossEntropySearch) -> None:
        found = search.found
        trace.candidates, trace.costs, trace.stamp = found.candidates, found.costs, found.stamp
        trace.reachable, trace.proposed = found.executable, found.proposed
        elites = len(found.costs) - len(found.extras)
        trace.sources = (self._config.source,) * elites + found.extras

    def failed(self, ticket: int, error: WorldForgeError, now: float) -> Trace | None:
        """End the cycle with ``error``; returns its trace, or None for a stale reply."""
        if self._trace is None or ticket != self.cycles:
            return None
        return self._finish(error, now)

    def expire(self, now: float) -> Trace | None:
        """End the cycle when its deadline has passed; returns its trace."""
        if self._trace is None or now < self._deadline:
            return None
        self.deadline_misses += 1
        proposing = self._stage is Stage.PROPOSING
        code = ErrorCode.PROPOSE_DEADLINE_MISSED if proposing else ErrorCode.SCORE_DEADLINE_MISSED
        service = "propose_actions" if proposing else "score_candidates"
        limit = self._config.propose_timeout if proposing else self._config.score_timeout
        error = mismatch(
            code,
            f"reply of {service}",
            found=f"absent after {now - self._requested:.3f} s",
            expected=f"within {limit:.3f} s",
        )
        return self._finish(error, now)

    def _expect(self, stage: Stage, timeout: float, now: float) -> None:
        self._stage, self._requested, self._deadline = stage, now, now + timeout

    def _running(self, ticket: int, stage: Stage) -> Trace | None:
        return self._trace if ticket == self.cycles and self._stage is stage else None

    def _choose(self, costs: npt.NDArray[np.float32] | None, now: float) -> Trace:
        assert self._trace is not None
        try:
            self._trace.choice = choose(
                self._config.planner,
                costs,
                self._trace.candidates.shape[0],
                self._rng,
                self._trace.reachable,
            )
        except WorldForgeError as error:
            return self._finish(error, now)
        return self._finish(None, now)

    def _finish(self, error: WorldForgeError | None, now: float) -> Trace:
        assert self._trace is not None
        trace, self._trace = self._trace, None
        trace.error = error
        trace.plan_latency = now - trace.started
        self._stage, self._deadline = Stage.IDLE, math.inf
        return trace
