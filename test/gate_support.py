"""What tests of the gate and the programs that they start share: a gentle robot and a motion."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

NAMES = ("pusher_x", "pusher_y")
HOME = (0.25, 0.25)
STEP_NS = 10_000_000
"""Time between two actions of :func:`wave`: every tick of a gate at 100 Hz has another one."""
_EMBODIMENTS = Path(__file__).parents[1] / "config" / "embodiments"
_WIDTH = 0.05
_RATE = 1.5


def gentle_pusht(folder: Path, acceleration: float) -> Path:
    """The file of PushT's embodiment with a robot that takes visible time to brake.

    :param acceleration: m/s^2; braking is as hard.
    """
    document = yaml.safe_load((_EMBODIMENTS / "pusht.yaml").read_text())
    for joint in document["joints"]:
        joint |= {"max_acceleration": acceleration, "max_deceleration": acceleration}
        joint["max_jerk"] = "unlimited"
    path = folder / "gentle_pusht.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def wave(
    begin: tuple[float, float], begin_ns: int, stamp_ns: int, count: int
) -> npt.NDArray[np.float64]:
    """Actions (count, 2) in m, :data:`STEP_NS` apart from ``stamp_ns`` on, of a joint that was at
    rest at ``begin`` until ``begin_ns`` and goes to and fro since, towards the middle first; at
    most 0.075 m/s and 0.1125 m/s^2.
    """
    seconds = (stamp_ns - begin_ns + STEP_NS * np.arange(1, count + 1)) * 1e-9
    side = math.copysign(_WIDTH, 0.256 - begin[0])
    x = begin[0] + side * (1.0 - np.cos(_RATE * np.maximum(seconds, 0.0)))
    return np.stack([x, np.full(count, begin[1])], axis=1)
