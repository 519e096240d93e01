"""One decision of each planner that an evaluation compares: the planner node's core without ROS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.protocols import Goal
from worldforge_ros.evaluation.statistics import spearman
from worldforge_ros.observation import Observation, ObservationHistory, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.seam import Seam, SeamSettings
from worldforge_ros.planning.search import SOURCES, CrossEntropySearch, Found, SearchSettings
from worldforge_ros.planning.selection import choose
from worldforge_ros.planning.sources import Offer, offer, sent
from worldforge_ros.policies.base import Policy
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.simulation.pusht import CONTROL_STEP, PHYSICS_STEP, PushTSimulation

FloatArray = npt.NDArray[np.float64]

TICKS = round(CONTROL_STEP / PHYSICS_STEP)
PLANNERS = ("still", "first", "random", "scored", "cem", "cem+policy", "oracle")
"""``still`` never moves, ``first`` takes the policy's first candidate, ``random`` any of them,
``scored`` the cheapest for the world model, ``cem`` searches the world model without a policy,
``cem+policy`` searches on from the policy's candidates, ``oracle`` takes the candidate that ends
best on the true simulator."""
NEED_POLICY = frozenset({"first", "random", "scored", "cem+policy", "oracle"})
NEED_WORLD_MODEL = frozenset({"scored", "cem", "cem+policy"})


@dataclass(frozen=True)
class Models:
    """What the planners of an evaluation need; None where none of them needs it."""

    embodiment: Embodiment
    policy: Policy | None = None
    scorer: Scorer | None = None


@dataclass(frozen=True)
class Choosing:
    """How a planner decides.

    ``horizon`` 0 stands for as many whole blocks as the policy predicts; ``candidates`` are asked
    of the policy; ``search`` is that of ``cem``, ``refine`` that of ``cem+policy``. Of
    ``extra_sources`` (see :mod:`worldforge_ros.planning.sources`) an episode has ``hold`` and
    ``tail``.
    """

    candidates: int
    horizon: int
    latency_steps: int
    objective: str
    spearman: bool
    search: SearchSettings
    refine: SearchSettings
    seam: SeamSettings
    extra_sources: tuple[str, ...]


class TrueOutcome:
    """Tries set-points on a copy of the world: what a perfect world model would say."""

    def __init__(self, goal: Goal) -> None:
        self._copy = PushTSimulation(image_size=16)
        self._pusher = goal.pusher
        self._copy.set_state(goal.state)
        self._goal = self._points()

    def _points(self) -> FloatArray:
        corners = self._copy.keypoints()
        if not self._pusher:
            return corners
        return np.concatenate([corners, self._copy.state[None, :2]])

    def costs(self, simulation: PushTSimulation, candidates: npt.ArrayLike) -> FloatArray:
        """Mean distance (S,) in m of the block's corners from the goal after each candidate (S, H,
        2); of corners and pusher where the goal says so.
        """
        state, velocity = simulation.state, simulation.velocity
        costs = []
        for setpoints in np.asarray(candidates, dtype=np.float64):
            self._copy.set_state(state, velocity)
            for setpoint in setpoints:
                self._copy.advance(setpoint, TICKS)
            gap = np.linalg.norm(self._points() - self._goal, axis=-1).mean()
            costs.append(float(gap) / 1000.0)
        return np.array(costs)


@dataclass(frozen=True)
class Decision:
    """What one planning step decided; ``reachable`` (S,) of all candidates, ``costs`` and
    ``outcomes`` (m) where both are known.
    """

    chunk: ActionChunk
    seconds: float
    reachable: npt.NDArray[np.bool_]
    costs: npt.NDArray[np.float32] | None = None
    outcomes: FloatArray | None = None

    @property
    def spearman(self) -> float:
        """Rank correlation of costs and outcomes; NaN without them."""
        if self.costs is None or self.outcomes is None:
            return math.nan
        return spearman(self.costs, self.outcomes)


class Planner:
    """A planner of :data:`PLANNERS` except ``still``, for one episode.

    :param goal: what to bring about; None only for planners without costs.
    :param simulation: the world itself, for what is compared with the true outcome.
    """

    def __init__(
        self,
        name: str,
        choosing: Choosing,
        models: Models,
        goal: Goal | None,
        seed: int,
        simulation: PushTSimulation | None = None,
    ) -> None:
        self.seam = Seam(choosing.seam)
        self._extras = Offer(choosing.extra_sources)
        self.name = name
        self._choosing = choosing
        self._embodiment = models.embodiment
        self._policy = models.policy if name in NEED_POLICY else None
        self._scorer = models.scorer if name in NEED_WORLD_MODEL else None
        self._goal = goal
        self._seed = seed
        self._rng = np.random.default_rng([seed, PLANNERS.index(name)])
        compares = name == "oracle" or (name == "scored" and choosing.spearman)
        self._outcome: Callable[[npt.ArrayLike], FloatArray] | None = None
        if compares:
            assert goal is not None
            assert simulation is not None
            self._outcome = partial(TrueOutcome(goal).costs, simulation)
        self._sequence = 0
        self.horizon = self._horizon()

    def _horizon(self) -> int:
        """Actions of a candidate."""
        wanted = self._choosing.horizon
        spec = self._embodiment.world_model
        block = self._scorer.block if self._scorer else spec.block if spec else 1
        if self._policy is None:
            return self._choosing.search.blocks * block
        longest = self._policy.max_horizon
        horizon = wanted or longest // block * block
        if horizon < block or horizon % block or horizon > longest:
            raise mismatch(
                ErrorCode.HORIZON_NOT_WHOLE_BLOCKS,
                f"horizon with policy {self._policy.model_id}",
                found=horizon or longest,
                expected=f"whole blocks of {block} actions, {longest} actions at most",
            )
        return horizon

    def decide(
        self,
        history: ObservationHistory,
        executed: Sequence[FloatArray],
        executing: ActionChunk | None,
    ) -> Decision:
        """Propose or search, score, choose.

        :param executed: set-points (J,) of every control step so far, for world models that look
            back.
        :param executing: what the gate executes, None while it holds.
        :raises WorldForgeError: ``HISTORY_TOO_SHORT`` until the windows are there,
            ``NO_REACHABLE_CANDIDATE`` when the robot cannot get onto any candidate.
        """
        robot, choosing = self._embodiment, self._choosing
        tolerance = robot.observation.tolerance
        frames: list[Observation] = []
        window: list[Observation] = []
        if self._policy is not None:
            window = history.window(self._policy.history, robot.policy.step, tolerance)
        if self._scorer is not None:
            period = robot.scoring.block_duration
            frames = history.window(self._scorer.history, period, tolerance)
        newest = (window or frames)[-1]
        arrival = newest.stamp + choosing.latency_steps * seconds_to_ns(robot.policy.step)

        def handed(setpoints: npt.NDArray[np.float32]) -> Handover:
            step = robot.policy.step
            return offer(
                setpoints, step, newest, executing, arrival, robot, self.seam, self._extras
            )

        began = time.perf_counter()
        count = 1 if self.name == "first" else choosing.candidates
        proposed = self._proposed(window, count)
        costs: npt.NDArray[Any] | None = None
        if self.name in ("cem", "cem+policy"):
            found = self._searched(frames, executed, newest, proposed, handed)
            candidates, proposals, costs = found.candidates, found.proposed, found.costs
            allowed, stamp, extras = found.executable, found.stamp, found.extras
        else:
            assert proposed is not None
            handover = handed(proposed)
            candidates, proposals, extras = handover.candidates, handover.proposed, handover.extras
            allowed, stamp = handover.reachable, handover.stamp
            if self._scorer is not None:
                costs = self._scored(frames, executed, candidates)
            elif self._outcome is not None:
                costs = self._outcome(candidates)
        rule = self.name if self.name in ("first", "random") else "scored"
        choice = choose(rule, costs, len(candidates), self._rng, allowed)
        seconds = time.perf_counter() - began
        outcomes = None
        if self._scorer is not None and self._outcome is not None:
            outcomes = self._outcome(candidates)
        self._sequence += 1
        model = self._policy or self._scorer
        assert model is not None
        own = self.name if self.name in SOURCES else "policy"
        sources = (own,) * (len(candidates) - len(extras)) + extras
        chunk = ActionChunk(
            stamp=stamp,
            embodiment=robot.name,
            joint_names=robot.joint_names,
            step=robot.policy.step,
            actions=candidates[choice.index].astype(np.float64),
            source=sources[choice.index],
            epoch=1,
            sequence=self._sequence,
            observation_stamp=newest.stamp,
            cost=choice.cost,
            margin=choice.margin,
            model_id=model.model_id,
        )
        sent(self.seam, chunk, proposals[choice.index])
        return Decision(chunk, seconds, allowed, costs if outcomes is not None else None, outcomes)

    def _proposed(
        self, window: Sequence[Observation], count: int
    ) -> npt.NDArray[np.float32] | None:
        if self._policy is None:
            return None
        seed = self._seed * 100_000 + self._sequence
        return self._policy.propose(window, count, self.horizon, seed=seed).candidates

    def _searched(
        self,
        frames: Sequence[Observation],
        executed: Sequence[FloatArray],
        newest: Observation,
        proposed: npt.NDArray[np.float32] | None,
        handed: Callable[[npt.NDArray[np.float32]], Handover],
    ) -> Found:
        assert self._scorer is not None
        settings = self._choosing.search
        if proposed is not None:
            blocks = self.horizon // self._scorer.block
            settings = replace(self._choosing.refine, blocks=blocks)
        search = CrossEntropySearch(
            settings, self._scorer.bridge, self._embodiment, newest, self._rng, proposed
        )
        while not search.done:
            handover = handed(search.ask())
            search.tell(self._scored(frames, executed, handover.candidates), handover)
        return search.found

    def _scored(
        self,
        frames: Sequence[Observation],
        executed: Sequence[FloatArray],
        candidates: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        assert self._scorer is not None
        assert self._goal is not None
        past = (self._scorer.history - 1) * self._scorer.block
        recent = np.asarray(executed[len(executed) - past :]) if past else None
        return self._scorer.score(
            frames, self._goal.image, candidates, recent, self._choosing.objective
        ).costs
