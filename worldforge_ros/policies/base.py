"""What a policy is to this package: something that proposes candidate action chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worldforge_ros.observation import Observation

MAX_CANDIDATES = 4096
"""Most candidates in one proposal."""
MODES = ("predict_chunk", "select_action")
"""What a policy can be asked for: whole chunks, or only the action that is due now."""


@dataclass(frozen=True)
class Proposal:
    """Candidates (S, H, J) float32 set-points in m or rad, ``step`` seconds between two actions.

    The first action is due at the stamp of the newest observation.
    """

    candidates: npt.NDArray[np.float32]
    joint_names: tuple[str, ...]
    step: float
    metadata: Mapping[str, str]


class Policy(Protocol):
    """A loaded policy. It keeps no observation between calls: the caller passes the whole
    window.
    """

    @property
    def model_id(self) -> str:
        """Short name and hash of the checkpoint."""

    @property
    def history(self) -> int:
        """Observations that ``propose`` needs, one policy step apart."""

    @property
    def max_horizon(self) -> int:
        """Most actions a candidate can have."""

    @property
    def stochastic(self) -> bool:
        """Whether two candidates for one observation can differ."""

    def warm_up(self, history: Sequence[Observation], num_candidates: int) -> None:
        """Run until requests for so many candidates take no longer than later ones."""

    def reset(self) -> None:
        """Forget everything that is kept between calls: a new episode or goal begins."""

    def propose(
        self,
        history: Sequence[Observation],
        num_candidates: int,
        horizon: int = 0,
        seed: int = -1,
        mode: str = "",
        options: Mapping[str, str] | None = None,
    ) -> Proposal:
        """Sample ``num_candidates`` chunks in one batch.

        :param history: oldest first, exactly ``self.history`` observations.
        :param horizon: actions in a chunk; 0 means ``max_horizon``.
        :param seed: the same seed gives the same candidates; -1 draws a fresh one.
        :param mode: one of :data:`MODES`; empty for what the policy does by nature.
        :param options: settings of this one request; an unknown one is refused.
        :raises WorldForgeError: with a specific code; nothing is padded. A candidate that is not
            finite is left out and its number is in the metadata as ``dropped``.
        """
