"""What a world model is to this package: something that gives every candidate a cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.observation import ImageArray, Observation
from worldforge_ros.scorers.contract import ActionSpace, check_costs, unscored


@dataclass(frozen=True)
class Scores:
    """Costs (S,) float32, lower is better; NaN marks a candidate that could not be scored."""

    costs: npt.NDArray[np.float32]
    best_index: int
    metadata: Mapping[str, str]


def scores_of(
    facts: Mapping[str, str],
    raw: object,
    candidates: npt.ArrayLike,
    blocks: npt.NDArray[np.float64],
    space: ActionSpace,
    details: Mapping[str, str],
    index: object = None,
) -> Scores:
    """The answer of any world model: costs that were checked, and where they come from.

    :param raw: costs of the ``blocks`` as the runtime gave them, ``index`` its own choice.
    :param details: objective, what was cached, latency and the like.
    :raises WorldForgeError: ``COSTS_INVALID``.
    """
    costs, best = check_costs(raw, len(blocks), facts["model_id"], index)
    metadata = {
        **facts,
        "score_direction": "lower is better",
        "action_space": space.value,
        "candidates": "x".join(str(part) for part in np.shape(candidates)),
        "blocks": "x".join(str(part) for part in blocks.shape),
        **details,
    }
    if np.isnan(costs).any():
        metadata["unscored"] = unscored(costs)
    return Scores(costs=costs, best_index=best, metadata=metadata)


class Scorer(Protocol):
    """A loaded world model."""

    @property
    def model_id(self) -> str:
        """Short name and hash of the checkpoint."""

    @property
    def history(self) -> int:
        """Frames that ``score`` needs, one block apart."""

    @property
    def block(self) -> int:
        """Actions in a block: a candidate's horizon must be a multiple of it."""

    @property
    def bridge(self) -> ActionBridge:
        """How set-points become the model's actions, with the checkpoint's statistics."""

    @property
    def blocks_are_normalised(self) -> bool:
        """Whether candidates in model space are as ``bridge`` makes them."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives that ``score`` takes."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the metadata of every answer says of the model itself."""

    def notice(self, observation: Observation) -> None:
        """Encode an observation that will probably be scored with, so that ``score`` need not.

        :raises WorldForgeError: as ``score`` for such an observation.
        """

    def notice_goal(self, goal: ImageArray) -> None:
        """The same for a goal.

        :raises WorldForgeError: ``IMAGE_SIZE_MISMATCH``.
        """

    def score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        candidates: npt.ArrayLike,
        action_history: npt.ArrayLike | None = None,
        objective: str = "",
        space: ActionSpace = ActionSpace.EMBODIMENT,
    ) -> Scores:
        """Cost of every candidate.

        :param history: oldest first, exactly ``self.history`` observations.
        :param goal: (height, width, 3) uint8 RGB, same camera.
        :param candidates: (S, H, J) set-points in m or rad, or (S, T, block * J) in model space;
            all in the future of the last observation.
        :param action_history: ((history - 1) * block, J) set-points executed between the frames,
            or (history - 1, block * J) in model space; None or empty when ``history`` is 1.
        :raises WorldForgeError: with a specific code; nothing is padded or cut.
        """

    def seen_cost(self, seen: Observation, goal: ImageArray, objective: str = "") -> float | None:
        """What a candidate would cost that is predicted to end in what was ``seen``; None where
        the runtime cannot tell.

        :raises WorldForgeError: ``CAMERA_MISSING``, ``IMAGE_SIZE_MISMATCH`` or
            ``OBJECTIVE_UNKNOWN``.
        """
