"""A cross-entropy search against a clock, next to the world model that scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import ImageArray, Observation
from worldforge_ros.planning.handover import Handover
from worldforge_ros.planning.search import CrossEntropySearch, SearchSettings
from worldforge_ros.scorers.base import Scorer, Scores
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

    def score(self, scorer: Scorer, candidates: npt.ArrayLike) -> Scores:
        """Cost of every candidate in this scene.

        :raises WorldForgeError: what the scorer raises.
        """
        return scorer.score(
            self.history,
            self.goal,
            candidates,
            self.action_history,
            self.objective,
            self.space,
        )


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

    Samples that break position or velocity limits within their horizon rank behind those that keep
    them. Whether the robot can get onto a candidate from what it executes is the caller's to judge.

    :param spread: least standard deviation of the second iteration, 1 being that of the actions in
        the training data; that of the cheapest candidates where it is larger.
    :param budget: seconds; no iteration begins that would, as long as the longest before it, end
        later. 0 sets no limit.
    :raises WorldForgeError: what the scorer raises for the candidates, or ``INVALID_ARGUMENT``. An
        error after the first iteration ends the search with the best so far.
    """
    started = clock()
    if not np.isfinite(budget) or budget < 0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "budget", found=f"{budget} s", expected="0 or more"
        )
    bridge, now = scorer.bridge, scene.history[-1]
    model = scene.space is ActionSpace.MODEL
    if model and not scorer.blocks_are_normalised:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "action_space",
            found="MODEL with actions that are not normalised",
            expected="normalised blocks, or EMBODIMENT, to draw further candidates from",
        )
    given = check_actions(
        "candidates", candidates, bridge.block * bridge.joints if model else bridge.joints
    )
    settings = SearchSettings(
        samples=samples,
        iterations=iterations,
        elites=elites,
        blocks=given.shape[1] if model else max(1, given.shape[1] // bridge.block),
        smallest=spread,
    )
    # The first iteration checks everything, in the words of the space that was asked for.
    scores = scene.score(scorer, given)
    metadata = {key: value for key, value in scores.metadata.items() if key != "unscored"}
    setpoints = bridge.blocks_to_setpoints(given, now.position, now.velocity) if model else given
    search = CrossEntropySearch(settings, bridge, embodiment, now, rng, setpoints)
    search.ask()
    asked = setpoints.astype(np.float32)
    best, done = _Best(elites), 0
    longest, begun = 0.0, started
    while True:
        search.tell(scores.costs, _in_place(asked, now.stamp))
        found = search.found
        best.add(found.candidates, found.costs, found.executable)
        done += 1
        ended = clock()
        longest = max(longest, ended - begun)
        if search.done or 0 < budget < ended - started + longest:
            break
        begun, asked = ended, search.ask()
        try:
            scores = scene.score(
                scorer,
                bridge.setpoints_to_blocks(asked, now.position, now.velocity) if model else asked,
            )
        except WorldForgeError as error:
            metadata["ended_by"] = str(error.code)
            break
    chosen = best.candidates
    if model:
        chosen = bridge.setpoints_to_blocks(chosen, now.position, now.velocity).astype(np.float32)
    expired = not search.done and "ended_by" not in metadata
    return Refined(chosen, best.costs, done, expired, metadata)


def _in_place(candidates: npt.NDArray[np.float32], stamp: int) -> Handover:
    return Handover(candidates, stamp, 0, np.ones(len(candidates), dtype=np.bool_), candidates)


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
