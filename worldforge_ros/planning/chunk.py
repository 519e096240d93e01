"""An action chunk: what the planner sends and the gate decides on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ActionChunk:
    """Set-points (H, J) float64 in m or rad; ``stamp`` and ``observation_stamp`` are ns of ROS
    time.

    ``stamp`` is when the first action is due, ``step`` the seconds between two actions. Action k is
    held from ``stamp + k * step`` to ``stamp + (k + 1) * step``. ``cost`` is the world model's,
    lower is better, NaN when unscored; ``margin`` the runner-up's cost minus it, NaN when there is
    none.
    """

    stamp: int
    embodiment: str
    joint_names: tuple[str, ...]
    step: float
    actions: npt.NDArray[np.float64]
    source: str
    epoch: int
    sequence: int
    observation_stamp: int
    cost: float = math.nan
    margin: float = math.nan
    model_id: str = ""
