"""How well a world model ranks a policy's candidates, by objective, on the same decisions.

Episodes are driven by the policy, half of them by its best candidate, so that every distance from
the goal is seen. At some decisions all candidates are executed on a copy of the simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.evaluation.planners import TICKS, TrueOutcome
from worldforge_ros.evaluation.protocols import PROTOCOLS
from worldforge_ros.evaluation.statistics import bootstrap_mean, spearman
from worldforge_ros.observation import ImageArray, Observation, seconds_to_ns
from worldforge_ros.policies.base import Policy
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.simulation.pusht import CONTROL_STEP, PushTSimulation

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """One decision of the episode of ``seed``: set-points ``candidates`` (S, H, 2) in m, the true
    ``outcomes`` (S,) after each and ``still`` without any, mean corner distances to the goal in mm.
    """

    seed: int
    frames: tuple[Observation, ...]
    goal: ImageArray
    candidates: npt.NDArray[np.float32]
    outcomes: FloatArray
    still: float


def moments(
    policy: Policy,
    seeds: Iterable[int],
    *,
    camera: str = "top",
    candidates: int = 32,
    horizon: int = 15,
    decisions: int = 60,
    every: int = 3,
) -> Iterable[list[Moment]]:
    """The moments of one episode after another; deterministic. Needs no world model.

    :param every: each how manieth decision becomes a moment.
    """
    simulation = PushTSimulation()
    rules = PROTOCOLS["task"]
    for seed in seeds:
        rng = np.random.default_rng([seed, 8])
        goal = rules.start(simulation, seed)
        outcome = TrueOutcome(goal)
        best = rng.random() < 0.5
        found: list[Moment] = []
        history = _observed(simulation, camera, policy.history)
        for decision in range(decisions):
            proposal = policy.propose(
                history[-policy.history :], candidates, horizon, seed=seed * 100_000 + decision
            )
            costs = None
            if best or decision % every == 0:
                costs = outcome.costs(simulation, proposal.candidates) * 1000.0
            if decision % every == 0:
                assert costs is not None
                here = np.repeat(simulation.position[None, None], horizon, axis=1)
                still = float(outcome.costs(simulation, here)[0]) * 1000.0
                found.append(
                    Moment(seed, tuple(history), goal.image, proposal.candidates, costs, still)
                )
            index = int(rng.integers(candidates))
            if best:
                assert costs is not None
                index = int(np.argmin(costs))
            for step in range(rules.execute_steps):
                simulation.advance(proposal.candidates[index, step], TICKS)
                seen = _observation(simulation, camera, history[-1].stamp)
                history = [*history[-policy.history :], seen]
            if rules.success(simulation, goal):
                break
        yield found
    simulation.close()


def _observation(simulation: PushTSimulation, camera: str, before: int) -> Observation:
    return Observation(
        stamp=before + seconds_to_ns(CONTROL_STEP),
        images={camera: simulation.image()},
        position=simulation.position,
        velocity=simulation.velocity,
    )


def _observed(simulation: PushTSimulation, camera: str, count: int) -> list[Observation]:
    history = [_observation(simulation, camera, 0)]
    for _ in range(count - 1):
        simulation.advance(simulation.position, TICKS)
        history.append(_observation(simulation, camera, history[-1].stamp))
    return history


def summarise(scorer: Scorer, found: Sequence[Moment], objective: str) -> dict[str, float]:
    """Figures of one objective; ``*_mm`` are mean corner distances to the goal.

    ``chosen_share`` is the part of the way from a random candidate to the best one, in mean
    outcome. Intervals are 95 % bootstrap over episodes.
    """
    correlations: dict[int, list[float]] = {}
    chosen = []
    for moment in found:
        scores = scorer.score(
            moment.frames[-scorer.history :], moment.goal, moment.candidates, objective=objective
        )
        chosen.append(moment.outcomes[scores.best_index])
        value = spearman(scores.costs, moment.outcomes)
        if not np.isnan(value):
            correlations.setdefault(moment.seed, []).append(value)
    interval = bootstrap_mean([float(np.mean(values)) for values in correlations.values()])
    every = [value for values in correlations.values() for value in values]
    at_random = float(np.mean([moment.outcomes.mean() for moment in found]))
    best = float(np.mean([moment.outcomes.min() for moment in found]))
    mean_chosen = float(np.mean(chosen))
    return {
        "spearman": float(np.mean(every)),
        "spearman_ci_low": interval.low,
        "spearman_ci_high": interval.high,
        "decisions": len(every),
        "chosen_mm": mean_chosen,
        "random_mm": at_random,
        "best_mm": best,
        "still_mm": float(np.mean([moment.still for moment in found])),
        "chosen_share": (at_random - mean_chosen) / (at_random - best),
    }
