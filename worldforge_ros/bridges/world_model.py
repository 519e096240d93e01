"""From SI set-points to the normalised action blocks of a world model, and back.

    set-points (..., H, J) m or rad, absolute
      -> relative to where the joints are expected at that step (kept by an absolute model)
      -> times ``scale``
      -> z-scored per raw dimension with the checkpoint's mean and std
      -> blocks, time-major: [x0 y0 x1 y1 ...]    (..., H / block, block * J)

Only numpy: the planner and the tests use it without a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.tracking import expected_positions
from worldforge_ros.embodiment import ActionMeaning, Embodiment, Tracking
from worldforge_ros.errors import ErrorCode, mismatch

FloatArray = npt.NDArray[np.float64]


def pack_blocks(actions: npt.ArrayLike, block: int) -> FloatArray:
    """(..., H, J) to (..., H / block, block * J), time-major: [x0 y0 x1 y1 ...].

    :raises WorldForgeError: ``HORIZON_NOT_WHOLE_BLOCKS``.
    """
    values = np.asarray(actions, dtype=np.float64)
    *lead, horizon, joints = values.shape
    if horizon < block or horizon % block:
        raise mismatch(
            ErrorCode.HORIZON_NOT_WHOLE_BLOCKS,
            "horizon of the candidates",
            found=f"{horizon} actions",
            expected=f"a multiple of {block}",
        )
    return values.reshape(*lead, horizon // block, block * joints)


def unpack_blocks(blocks: npt.ArrayLike, joints: int) -> FloatArray:
    """The inverse of :func:`pack_blocks`: (..., T, block * J) to (..., T * block, J).

    :raises WorldForgeError: ``ACTION_DIM_MISMATCH``.
    """
    values = np.asarray(blocks, dtype=np.float64)
    *lead, count, width = values.shape
    if width % joints:
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            "block width",
            found=width,
            expected=f"a multiple of {joints} joints",
        )
    return values.reshape(*lead, count * (width // joints), joints)


@dataclass(frozen=True)
class ActionBridge:
    """One embodiment's actions as one checkpoint wants them.

    ``scale``, ``mean`` and ``std`` are (J,); ``step`` is seconds between two actions.
    """

    tracking: Tracking
    step: float
    block: int
    meaning: ActionMeaning
    scale: FloatArray
    mean: FloatArray
    std: FloatArray

    @classmethod
    def of(cls, embodiment: Embodiment, mean: npt.ArrayLike, std: npt.ArrayLike) -> ActionBridge:
        """The bridge of ``embodiment`` with the checkpoint's statistics, each (J,).

        :raises WorldForgeError: ``ACTION_STATISTICS_MISSING`` when they are not one finite value a
            joint with a positive std.
        """
        spec = embodiment.scoring
        joints = len(embodiment.joints)
        means, stds = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        for name, values in (("mean", means), ("std", stds)):
            bad = values.shape != (joints,) or not np.isfinite(values).all()
            if bad or (name == "std" and (values <= 0).any()):
                raise mismatch(
                    ErrorCode.ACTION_STATISTICS_MISSING,
                    f"action {name}",
                    found=values.tolist(),
                    expected=f"{joints} finite numbers{', each above 0' if name == 'std' else ''}",
                )
        return cls(
            tracking=embodiment.tracking,
            step=spec.step,
            block=spec.block,
            meaning=spec.action.meaning,
            scale=np.asarray(spec.action.scale, np.float64),
            mean=means,
            std=stds,
        )

    @property
    def joints(self) -> int:
        """Joints of one action."""
        return len(self.scale)

    def raw_actions(self, setpoints: npt.ArrayLike, positions: npt.ArrayLike) -> FloatArray:
        """Model units before z-scoring, (..., J): set-points at measured or expected
        ``positions``.
        """
        values = np.asarray(setpoints, dtype=np.float64)
        if self.meaning == "relative":
            values = values - np.asarray(positions, dtype=np.float64)
        return values * self.scale

    def normalise(self, raw: npt.ArrayLike) -> FloatArray:
        """z-score (..., J)."""
        return (np.asarray(raw, dtype=np.float64) - self.mean) / self.std

    def recorded_to_blocks(self, setpoints: npt.ArrayLike, positions: npt.ArrayLike) -> FloatArray:
        """Blocks of executed set-points (..., H, J), whose start positions (..., H, J) were
        measured.
        """
        return pack_blocks(self.normalise(self.raw_actions(setpoints, positions)), self.block)

    def setpoints_to_blocks(
        self, setpoints: npt.ArrayLike, position: npt.ArrayLike, velocity: npt.ArrayLike
    ) -> FloatArray:
        """Blocks (..., H / block, block * J) of candidate set-points (..., H, J).

        :param position: (J,) m or rad now; ``velocity`` (J,) m/s or rad/s now.
        :raises WorldForgeError: ``HORIZON_NOT_WHOLE_BLOCKS``.
        """
        values = np.asarray(setpoints, dtype=np.float64)
        expected = expected_positions(self.tracking, position, velocity, values, self.step)
        return self.recorded_to_blocks(values, expected)

    def blocks_to_setpoints(
        self, blocks: npt.ArrayLike, position: npt.ArrayLike, velocity: npt.ArrayLike
    ) -> FloatArray:
        """The exact inverse of :meth:`setpoints_to_blocks`: (..., T, block * J) to (..., T *
        block, J).
        """
        raw = unpack_blocks(blocks, self.joints) * self.std + self.mean
        values: FloatArray = raw / self.scale
        if self.meaning == "absolute":
            return values
        shape = values[..., 0, :].shape
        x = np.broadcast_to(np.asarray(position, np.float64), shape).copy()
        v = np.broadcast_to(np.asarray(velocity, np.float64), shape).copy()
        setpoints = np.empty_like(values)
        for index in range(values.shape[-2]):
            setpoint = x + values[..., index, :]
            setpoints[..., index, :] = setpoint
            if self.tracking.law == "perfect":
                x = setpoint
                continue
            for _ in range(round(self.step / self.tracking.period)):
                v = (
                    v
                    + (self.tracking.k_p * (setpoint - x) - self.tracking.k_v * v)
                    * self.tracking.period
                )
                x = x + v * self.tracking.period
        return setpoints
