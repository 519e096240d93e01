"""Planning cycles on recorded observations: the planner, the policy and the world model of the live
nodes, called one after the other.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.evaluation.planners import Models
from worldforge_ros.observation import ImageArray, Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.cycle import Stage, Trace
from worldforge_ros.planning.planner import PlannerSettings, RecedingPlanner

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cycle:
    """A finished cycle: its trace, the ``chunk`` that it decided on, None for none, and the
    ``frames`` and the ``goal`` that costs were relative to.
    """

    trace: Trace
    chunk: ActionChunk | None
    frames: tuple[Observation, ...]
    goal: ImageArray | None


@dataclass(frozen=True)
class Placed:
    """Where the candidates of a cycle take effect: ``arrival`` of a chunk at the gate in ns and
    what executes then. ``stamp`` in ns is when the first action of a chunk from rest is due, 0 for
    the planner's own reckoning.
    """

    arrival: int
    executing: ActionChunk | None
    stamp: int = 0


class Cycles:
    """One planner over one recording."""

    def __init__(
        self,
        models: Models,
        settings: PlannerSettings,
        candidates: int,
        horizon: int,
        objective: str,
        now: Callable[[], int],
    ) -> None:
        """:param candidates: asked of the policy; ``horizon`` 0 for as long as it predicts.
        :param now: recorded time, ns.
        """
        self.planner = RecedingPlanner(models.embodiment, settings, now, self._noted)
        self._models = models
        self._candidates = candidates
        self._horizon = horizon
        self._objective = objective
        self._goal: ImageArray | None = None
        self._goal_hash = b""
        self._new_goal = False
        self.outcomes: Counter[str] = Counter()
        self.waiting = 0
        self.trouble: Counter[str] = Counter()
        """Codes of what ended no cycle."""

    def _noted(self, error: WorldForgeError) -> None:
        self.trouble[str(error.code)] += 1

    @property
    def horizon(self) -> int:
        """Actions in a candidate."""
        if self._horizon or self._models.policy is None:
            spec = self._models.embodiment.world_model
            block = 1 if spec is None else spec.block
            return self._horizon or self.planner.settings.search.blocks * block
        return self._models.policy.max_horizon

    def see_goal(self, goal: ImageArray) -> None:
        """``goal`` (height, width, 3) is to be brought about from now on."""
        digest = hashlib.sha256(goal.tobytes()).digest()
        if digest == self._goal_hash:
            return
        self._goal, self._goal_hash = goal, digest
        # As policy_node: what a policy remembers is of another task.
        self._new_goal = True
        self.planner.new_goal()

    def run(self, placed: Callable[[], Placed]) -> Cycle | None:
        """One cycle with the newest observation; None while the windows are not full.

        :param placed: asked once the cycle has begun.
        """
        planner = self.planner
        windows = planner.windows()
        if windows is None:
            self.waiting += 1
            return None
        proposing, frames = windows
        ticket = planner.begin(0.0)
        place = placed()
        planner.place(place.arrival, place.executing)
        try:
            trace = self._decide(ticket, proposing, frames)
        except WorldForgeError as error:
            found = planner.cycle.failed(ticket, error, 0.0)
            assert found is not None
            trace = found
        chunk = planner.concluded(trace, place.stamp or None)
        self.outcomes[trace.outcome] += 1
        return Cycle(trace, chunk, tuple(frames), self._goal)

    def _decide(
        self, ticket: int, proposing: list[Observation], frames: list[Observation]
    ) -> Trace:
        cycle = self.planner.cycle
        trace: Trace | None = None
        if cycle.stage is Stage.PROPOSING:
            policy = self._models.policy
            assert policy is not None
            if self._new_goal:
                policy.reset()
                self._new_goal = False
            proposal = policy.propose(
                proposing,
                self._candidates,
                self._horizon,
                self.planner.proposal_seed(ticket),
                "predict_chunk",
                {},
            )
            trace = cycle.proposed(
                ticket, proposal.candidates, proposal.step, policy.model_id, 0.0, 0.0
            )
        while cycle.stage is Stage.SCORING:
            costs = self.costs(frames, self._goal, self.planner.candidates_to_score())
            assert self._models.scorer is not None
            trace = cycle.scored(ticket, costs.tolist(), self._models.scorer.model_id, 0.0, 0.0)
        assert trace is not None
        return trace

    def costs(
        self,
        frames: list[Observation] | tuple[Observation, ...],
        goal: ImageArray | None,
        candidates: npt.NDArray[Any],
    ) -> FloatArray:
        """World-model cost (S,) of candidates (S, H, J).

        :raises WorldForgeError: ``GOAL_MISSING``, and what the scorer raises.
        """
        scorer = self._models.scorer
        assert scorer is not None
        if goal is None:
            raise mismatch(
                ErrorCode.GOAL_MISSING,
                "goal",
                found="none in the recording so far",
                expected="a picture on goal_image, or --goal",
            )
        scores = scorer.score(frames, goal, candidates, None, self._objective)
        return scores.costs.astype(np.float64)

    def seen_cost(self, cycle: Cycle, seen: Observation) -> float:
        """Cost of what was really ``seen`` against the goal of ``cycle``, NaN where the runtime
        cannot tell.
        """
        scorer = self._models.scorer
        if scorer is None or cycle.goal is None:
            return math.nan
        cost = scorer.seen_cost(seen, cycle.goal, self._objective)
        return math.nan if cost is None else cost

    def document(self) -> dict[str, Any]:
        """The ``cycles`` of an episode's document."""
        return {
            "started": sum(self.outcomes.values()),
            "waiting": self.waiting,
            "outcomes": dict(sorted(self.outcomes.items())),
        }
