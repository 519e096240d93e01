"""A cross-entropy search against a clock, next to the world model that scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import ImageArray, Observation
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.search import CrossEntropySearch, SearchSettings
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.scorers.contract import ActionSpace, check_actions


@dataclass(frozen=True)
class Refined:
    """The cheapest ``candidates`` (E, H, A) of all iterations and their ``costs`` (E,), ascending.

    ``expired`` says that the budget ended the search before its last iteration.
    """

    candidates: npt.NDArray[np.float32]
    costs: npt.NDArray[np.float32]
    iterations: int
    expired: bool
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Scene:
    """What candidates are scored in; see :meth:`worldforge_ros.scorers.base.Scorer.score`."""

    history: Sequence[Observation]
    goal: ImageArray
    action_history: npt.ArrayLike | None
    objective: str
    space: ActionSpace


def refine(
    scorer: Scorer,
    embodiment: Embodiment,
    scene: Scene,
    candidates: npt.ArrayLike,
    samples: int,
    iterations: int,
    elites: int,
    spread: float,
    rng: np.random.Generator,
    budget: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Refined:
    """Search on from candidates (S, H, A), at least one iteration.

    Samples that break joint limits rank behind those that keep them, as in the planner's search.

    :param spread: least standard deviation of the second iteration, 1 being that of the actions in
        the training data; that of the cheapest candidates where it is larger.
    :param budget: seconds; no iteration begins that would, as long as the longest before it, end
        later. 0 sets no limit.
    :raises WorldForgeError: what the scorer raises for the candidates, or ``INVALID_ARGUMENT``.
    """
    started = clock()
    if not np.isfinite(budget) or budget < 0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "budget", found=f"{budget} s", expected="0 or more"
        )
    # The first iteration checks everything, in the words of the space that was asked for.
    scores = scorer.score(
        scene.history,
        scene.goal,
        candidates,
        scene.action_history,
        scene.objective,
        scene.space,
    )
    bridge, now = scorer.bridge, scene.history[-1]
    model = scene.space is ActionSpace.MODEL
    width = bridge.block * bridge.joints if model else bridge.joints
    given = check_actions("candidates", candidates, width)
    setpoints = bridge.blocks_to_setpoints(given, now.position, now.velocity) if model else given
    settings = SearchSettings(
        samples=samples,
        iterations=iterations,
        elites=elites,
        blocks=setpoints.shape[1] // bridge.block,
        smallest=spread,
    )
    search = CrossEntropySearch(settings, bridge, embodiment, now, rng, setpoints)
    best = _Best(elites)
    longest, done, costs = 0.0, 0, scores.costs
    while True:
        asked = search.ask() if done else _first(search, setpoints)
        begun = clock()
        if done:
            scores = scorer.score(
                scene.history, scene.goal, asked, scene.action_history, scene.objective
            )
            costs = scores.costs
        search.tell(costs, _in_place(asked, now.stamp))
        best.add(search.found.candidates, search.found.costs, search.found.executable)
        done += 1
        ended = clock()
        longest = max(longest, ended - (begun if done > 1 else started))
        expired = budget > 0 and ended - started + longest > budget
        if search.done or expired:
            break
    found = best.candidates
    if model:
        found = bridge.setpoints_to_blocks(found, now.position, now.velocity).astype(np.float32)
    return Refined(found, best.costs, done, not search.done, scores.metadata)


def _first(search: CrossEntropySearch, setpoints: npt.ArrayLike) -> npt.NDArray[np.float32]:
    search.ask()
    return np.asarray(setpoints, dtype=np.float32)


def _in_place(candidates: npt.NDArray[np.float32], stamp: int) -> Handover:
    return Handover(candidates, stamp, 0, np.ones(len(candidates), dtype=np.bool_))


class _Best:
    """The cheapest of all that was added; within limits, as soon as one is."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._candidates: list[npt.NDArray[np.float32]] = []
        self._costs: list[npt.NDArray[np.float32]] = []
        self._executable: list[npt.NDArray[np.bool_]] = []

    def add(
        self,
        candidates: npt.NDArray[np.float32],
        costs: npt.NDArray[np.float32],
        executable: npt.NDArray[np.bool_],
    ) -> None:
        joined = (
            np.concatenate([*self._candidates, candidates]),
            np.concatenate([*self._costs, costs]),
            np.concatenate([*self._executable, executable]),
        )
        usable = np.isfinite(joined[1])
        if (usable & joined[2]).any():
            usable &= joined[2]
        order = np.flatnonzero(usable)
        order = order[np.argsort(joined[1][order], kind="stable")][: self._count]
        self._candidates, self._costs, self._executable = ([item[order]] for item in joined)

    @property
    def candidates(self) -> npt.NDArray[np.float32]:
        return self._candidates[0]

    @property
    def costs(self) -> npt.NDArray[np.float32]:
        return self._costs[0]
