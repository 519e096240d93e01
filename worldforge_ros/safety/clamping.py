"""Mending a chunk whose violations its user chose to have clamped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldforge_ros.safety.checks import Motion, Schedule


def clamped(motion: Motion) -> Schedule:
    """The schedule of ``motion`` with every set-point inside the position limits and margin, and no
    further than ``max_velocity`` allows from the one before, from the present set-point and the
    path of the set-points, and from the measured position.

    It is not said to be right: the caller judges it again. What is not finite stays.
    """
    limits = motion.limits
    most = limits.max_velocity * motion.step
    lower, upper = limits.inner(motion.config.position_margin, motion.commanded)
    lower, upper = np.maximum(lower, limits.lower), np.minimum(upper, limits.upper)
    paths = [path[-1] for path in (motion.before, motion.measured) if path is not None]
    positions = motion.positions.copy()
    before = paths if motion.commanded is None else [motion.commanded, *paths]
    for row in positions:
        for start in before:
            row[:] = np.clip(row, start - most, start + most)
        row[:] = np.clip(row, lower, upper)
        before = [row]
    positions.setflags(write=False)
    return replace(motion.schedule, positions=positions)
