"""The receding-horizon planner: what it knows from one cycle to the next.

Which chunk executes, in which epoch, when a new one would arrive, how it takes over, and what the
running cycle waits for. It never waits itself and calls no model: a node, or the replay of a
recording, tells it what happened and asks the policy and the world model on its behalf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import NANOSECONDS, Observation, ObservationHistory
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.cycle import CycleConfig, PlanningCycle, Trace
from worldforge_ros.planning.handover import ArrivalEstimate, Handover
from worldforge_ros.planning.seam import Seam, SeamSettings
from worldforge_ros.planning.search import CrossEntropySearch, SearchSettings, search_bridge
from worldforge_ros.planning.selection import needs_costs
from worldforge_ros.planning.sources import Offer, Supplied, check_extra_sources, offer, sent


@dataclass(frozen=True)
class PlannerSettings:
    """How to plan; times in seconds, see ``docs/parameters.md``.

    ``search_std`` is empty for the embodiment file's. ``seed`` is that of the first cycle's
    candidates, -1 for fresh ones. ``policy_history`` counts the observations that the policy looks
    at. ``drift_horizon`` is how many blocks ahead the world model is believed, 0 where nobody has
    measured it: of longer candidates only so many blocks are scored.
    """

    planner: str = "scored"
    source: str = "policy"
    replan_period: float = 0.5
    propose_timeout: float = 2.0
    score_timeout: float = 2.0
    search: SearchSettings = field(default_factory=SearchSettings)
    search_std: tuple[float, ...] = ()
    seam: SeamSettings = field(default_factory=SeamSettings)
    extra_sources: tuple[str, ...] = ()
    supplied_max_age: float = 0.5
    seed: int = -1
    policy_history: int = 1
    drift_horizon: int = 0


@dataclass(frozen=True)
class Placement:
    """Where the candidates of a cycle were put: when a chunk was expected at the gate, in ns, and
    the sequence of the chunk that executed then, 0 for none.
    """

    cycle: int = 0
    arrival: int = 0
    executing: int = 0


class RecedingPlanner:
    """One planner's state.

    :param now: ROS time in ns.
    :param trouble: told of what ends no cycle, such as a supplied chunk that does not fit.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        settings: PlannerSettings,
        now: Callable[[], int],
        trouble: Callable[[WorldForgeError], None] = lambda error: None,
    ) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for settings that cannot be used and
        ``ACTION_STATISTICS_MISSING`` for a search without a standard deviation.
        """
        self.settings = settings
        self._embodiment = embodiment
        self._now = now
        self._trouble = trouble
        self._extras = check_extra_sources(settings.extra_sources)
        self._supplied = Supplied(embodiment, settings.supplied_max_age)
        self._seam = Seam(settings.seam)
        self._rng = np.random.default_rng(None if settings.seed < 0 else settings.seed)
        self._bridge = None
        if settings.source != "policy":
            self._bridge = search_bridge(embodiment, settings.search_std)
        spec = embodiment.scoring if needs_costs(settings.planner) else None
        config = CycleConfig(
            settings.planner,
            settings.source,
            embodiment.policy.step if spec is None else spec.step,
            settings.replan_period,
            settings.propose_timeout,
            settings.score_timeout,
        )
        self._spec = spec
        self.cycle = PlanningCycle(config, self._hand_over, self._make_search, self._rng)
        scored = 0.0 if spec is None else spec.history * spec.block_duration
        self.history = ObservationHistory(duration=2.0 + scored)
        self._arrivals = ArrivalEstimate()
        self.placement = Placement()
        self._executing: ActionChunk | None = None
        self._epoch = 0
        self._plan_epoch = 0
        self._refused = 0
        self._cut = False
        self.sequence = 0

    @property
    def executing(self) -> ActionChunk | None:
        """The chunk that the gate executes, as far as is known; None while it holds."""
        return self._executing

    def gate(self, armed: bool, epoch: int, judged: int, rejected: bool) -> None:
        """The gate's status: ``judged`` is the sequence of the last chunk it decided on, and
        ``rejected`` what it decided.
        """
        refused = rejected and judged != self._refused
        if refused:
            self._refused = judged
        if refused or epoch != self._epoch or not armed:
            self._seam.forget()
        self._epoch = epoch
        executing = self._executing
        # Approvals come on another topic: a status may be from before the last one.
        earlier = executing is not None and epoch == executing.epoch and judged < executing.sequence
        if not armed and not earlier:
            self._executing = None

    def approved(self, chunk: ActionChunk) -> None:
        """The gate executes ``chunk`` from now on."""
        self._executing = chunk
        self._seam.approved(chunk.sequence)

    def supply(self, chunk: ActionChunk) -> None:
        """Offer a user's ``chunk`` beside the others.

        :raises WorldForgeError: as :meth:`~worldforge_ros.planning.sources.Supplied.take`.
        """
        self._supplied.take(chunk, self._now())

    def new_goal(self) -> None:
        """What was planned for another goal is no prediction any more."""
        self._seam.forget(observed_before=self._now())

    def observed(self, observation: Observation) -> bool:
        """Keep ``observation``; returns whether a cycle is due with it."""
        self.history.add(observation)
        return self.cycle.due(observation.stamp)

    def windows(self) -> tuple[list[Observation], list[Observation]] | None:
        """What the policy and the world model look at now, each empty where it is not asked; None
        while observations are still being gathered, which is no failed cycle.
        """
        tolerance = self._embodiment.observation.tolerance
        proposing: list[Observation] = []
        scoring: list[Observation] = []
        try:
            if self.settings.source != "cem":
                proposing = self.history.window(
                    self.settings.policy_history, self._embodiment.policy.step, tolerance
                )
            if self._spec is not None:
                scoring = self.history.window(
                    self._spec.history, self._spec.block_duration, tolerance
                )
        except WorldForgeError as error:
            if error.code is ErrorCode.HISTORY_TOO_SHORT:
                return None
            raise
        return proposing, scoring

    def begin(self, monotonic: float) -> int:
        """Start a cycle with the newest observation; returns its ticket.

        :raises WorldForgeError: ``OBSERVATION_MISSING``.
        """
        newest = self.history.newest()
        age = (self._now() - newest.stamp) / NANOSECONDS
        # A plan that is under way while the gate is stopped must not pass as a new one.
        self._plan_epoch = self._epoch
        return self.cycle.start(newest, age, monotonic)

    def proposal_seed(self, ticket: int) -> int:
        """Seed of the candidates of cycle ``ticket``, -1 for fresh ones."""
        return -1 if self.settings.seed < 0 else self.settings.seed + ticket

    def scored_actions(self, horizon: int) -> int:
        """Of ``horizon`` actions, as many as the world model is believed for."""
        if self._spec is None or self.settings.drift_horizon < 1:
            return horizon
        return min(horizon, self.settings.drift_horizon * self._spec.block)

    def candidates_to_score(self) -> npt.NDArray[np.float32]:
        """The running cycle's candidates (S, H, J) as far ahead as the world model is believed."""
        assert self.cycle.trace is not None
        candidates = self.cycle.trace.candidates
        actions = self.scored_actions(candidates.shape[1])
        if candidates.shape[1] > actions and not self._cut:
            self._cut = True
            self._trouble(
                mismatch(
                    ErrorCode.HORIZON_BEYOND_DRIFT,
                    "horizon of the candidates",
                    found=f"{candidates.shape[1]} actions",
                    expected=f"at most the {actions} that the world model is believed for; costs "
                    f"are of the first {actions} from now on",
                )
            )
        return candidates[:, :actions]

    def concluded(self, trace: Trace, frozen_stamp: int | None = None) -> ActionChunk | None:
        """The chunk that a finished cycle decided on, which counts as sent; None where it decided
        on none.

        :param frozen_stamp: ns at which the first action of a chunk from rest is due; None: when a
            chunk that is sent now arrives.
        """
        chunk = None
        if trace.choice is not None:
            self.sequence += 1
            if trace.rests:
                # Nothing executes: no action is late, and none has to wait for an arrival expected.
                trace.stamp = (
                    max(self._arrivals.sent(self._now()), trace.observation.stamp)
                    if frozen_stamp is None
                    else frozen_stamp
                )
            chunk = ActionChunk(
                stamp=trace.stamp,
                embodiment=self._embodiment.name,
                joint_names=self._embodiment.joint_names,
                step=trace.step,
                actions=trace.candidates[trace.choice.index].astype(np.float64),
                source=trace.sources[trace.choice.index],
                epoch=self._plan_epoch,
                sequence=self.sequence,
                observation_stamp=trace.observation.stamp,
                cost=trace.choice.cost,
                margin=trace.choice.margin,
                model_id=" ".join(trace.models),
            )
            sent(self._seam, chunk, trace.proposed[trace.choice.index])
            if chunk.source == "supplied":
                self._supplied.chosen()
        self._arrivals.finished(self._now())
        return chunk

    def _hand_over(
        self, candidates: npt.NDArray[np.float32], step: float, observation: Observation
    ) -> Handover:
        executing = self._executing
        arrival = self.placement.arrival
        if self.placement.cycle != self.cycle.ticket:
            # Every sample of a search arrives when the search is over.
            arrival = self._arrivals.arrival(self._now())
        sequence = 0 if executing is None else executing.sequence
        self.placement = Placement(self.cycle.ticket, arrival, sequence)
        return offer(
            candidates,
            step,
            observation,
            executing,
            arrival,
            self._embodiment,
            self._seam,
            Offer(self._extras, self._supplied_now(candidates.shape[1], step)),
        )

    def place(self, arrival: int, executing: ActionChunk | None) -> None:
        """Put the candidates of the running cycle where a recorded one has put them: ``arrival`` in
        ns, and what executed.
        """
        self._executing = executing
        sequence = 0 if executing is None else executing.sequence
        self.placement = Placement(self.cycle.ticket, arrival, sequence)

    def _supplied_now(self, horizon: int, step: float) -> npt.NDArray[np.float32] | None:
        try:
            return self._supplied.offered(self._now(), horizon, step)
        except WorldForgeError as error:
            self._trouble(error)
            return None

    def _make_search(
        self, observation: Observation, candidates: npt.NDArray[np.float32] | None
    ) -> CrossEntropySearch:
        assert self._bridge is not None
        settings = self.settings.search
        if candidates is not None:
            settings = replace(settings, blocks=candidates.shape[1] // self._bridge.block)
        return CrossEntropySearch(
            settings, self._bridge, self._embodiment, observation, self._rng, candidates
        )
