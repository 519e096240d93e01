"""Where the joints are expected to be while a chunk of set-points is executed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Tracking

FloatArray = npt.NDArray[np.float64]


def expected_positions(
    tracking: Tracking,
    position: npt.ArrayLike,
    velocity: npt.ArrayLike,
    setpoints: npt.ArrayLike,
    step: float,
) -> FloatArray:
    """Joint positions at the start of every action of a chunk, before its set-point is applied.

    For ``pd`` this integrates acceleration = k_p (set-point - x) - k_v v with semi-implicit Euler,
    the law and the integration of ``gym_pusht.envs.pusht.PushTEnv.step``; it is exact for the PushT
    pusher, a kinematic body that contacts do not move.

    :param position: (J,) in m or rad, now.
    :param velocity: (J,) in m/s or rad/s, now.
    :param setpoints: (..., H, J) in m or rad, each held for ``step`` seconds.
    :returns: (..., H, J) float64 in m or rad.
    """
    targets = np.asarray(setpoints, dtype=np.float64)
    start = np.asarray(position, dtype=np.float64)
    expected = np.empty_like(targets)
    if tracking.law == "perfect":
        expected[..., 0, :] = start
        expected[..., 1:, :] = targets[..., :-1, :]
        return expected
    shape = targets[..., 0, :].shape
    x = np.broadcast_to(start, shape).copy()
    v = np.broadcast_to(np.asarray(velocity, dtype=np.float64), shape).copy()
    ticks = round(step / tracking.period)
    for index in range(targets.shape[-2]):
        expected[..., index, :] = x
        for _ in range(ticks):
            v += (tracking.k_p * (targets[..., index, :] - x) - tracking.k_v * v) * tracking.period
            x += v * tracking.period
    return expected
