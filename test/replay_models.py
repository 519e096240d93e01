"""Stand-in policy and world model for replays: their answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.evaluation.planners import Models
from worldforge_ros.observation import ImageArray, Observation
from worldforge_ros.policies.base import Proposal
from worldforge_ros.scorers.base import Scores

HORIZON = 10


class Fan:
    """Candidate s goes straight from where the pusher is, s mm a step along x, for ten steps."""

    model_id = "fan"
    history = 2
    max_horizon = HORIZON
    stochastic = True

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.windows: list[tuple[int, ...]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def warm_up(self, history: Sequence[Observation], num_candidates: int) -> None:
        raise AssertionError("a replay has nothing to warm up for")

    def propose(
        self,
        history: Sequence[Observation],
        num_candidates: int,
        horizon: int = 0,
        seed: int = -1,
        mode: str = "",
        options: Mapping[str, str] | None = None,
    ) -> Proposal:
        assert mode == "predict_chunk"
        self.seeds.append(seed)
        self.windows.append(tuple(item.stamp for item in history))
        steps = 0.001 * np.arange(1, (horizon or HORIZON) + 1)
        moves = np.zeros((num_candidates, len(steps), 2))
        moves[:, :, 0] = np.arange(num_candidates)[:, None] * steps
        candidates = (history[-1].position + moves).astype(np.float32)
        return Proposal(candidates, ("pusher_x", "pusher_y"), 0.1, {})


class Rightmost:
    """The cost of a candidate is how far it ends from the right edge, mm; what was seen costs 1000
    less its mean red.
    """

    model_id = "rightmost"
    history = 1
    block = 5
    objectives = ("l2",)
    facts: Mapping[str, str] = {"family": "test", "sha256": "0" * 64}

    def __init__(self) -> None:
        self.goals: list[float] = []
        self.seen: list[int] = []

    def score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        candidates: Any,
        action_history: Any = None,
        objective: str = "",
        space: Any = None,
    ) -> Scores:
        self.goals.append(float(goal.mean()))
        costs = (1000.0 * (0.512 - np.asarray(candidates)[:, -1, 0])).astype(np.float32)
        return Scores(costs, int(costs.argmin()), {})

    def seen_cost(self, seen: Observation, goal: ImageArray, objective: str = "") -> float | None:
        self.seen.append(seen.stamp)
        return 1000.0 - float(seen.images["top"][..., 0].mean())


def stand_ins(policy: Any = None, scorer: Any = None) -> Models:
    """PushT with these models."""
    return Models(load_embodiment("pusht"), policy or Fan(), scorer or Rightmost())
