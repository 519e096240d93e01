"""Cross-entropy search over action chunks: a source of candidates that needs no policy.

The rule of LeWorldModel's planner (``stable_worldmodel.solver.CEMSolver``): draw from a Gaussian,
the first sample being its mean; keep the cheapest; continue with their mean and standard deviation.
Here the search asks and is told, so that whoever scores may be a service with a deadline, and
samples that the robot could not execute rank behind those that it could.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.world_model import ActionBridge, unpack_blocks
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import Observation
from worldforge_ros.planning.handover import REACH_MARGIN, Handover

FloatArray = npt.NDArray[np.float64]

SOURCES = ("policy", "cem", "cem+policy")
"""``policy`` proposes; ``cem`` searches the world model without one; ``cem+policy`` searches on
from the policy's candidates."""
SMALLEST_STD = 0.05
"""By default, of a search that starts from a policy's candidates."""


@dataclass(frozen=True)
class SearchSettings:
    """``blocks`` of actions in a candidate; LeWorldModel's own numbers (arXiv 2603.19312).

    ``spread`` scales the standard deviation that ``cem`` starts with, 1 being that of the actions
    in the training data. ``correlation`` is that of the noise of one step with the noise of the
    next: above 0 samples go somewhere instead of trembling (iCEM, arXiv 2008.06389, draws coloured
    noise for the same reason); LeWorldModel's planner draws every step anew. ``smallest`` is the
    least standard deviation of a search from candidates, in that of the training data.
    """

    samples: int = 300
    iterations: int = 30
    elites: int = 30
    blocks: int = 5
    spread: float = 1.0
    correlation: float = 0.0
    smallest: float = SMALLEST_STD

    def __post_init__(self) -> None:
        for name, low in (("samples", 2), ("iterations", 1), ("elites", 2), ("blocks", 1)):
            if getattr(self, name) < low:
                raise _invalid(name, getattr(self, name), f"{low} or more")
        if self.elites > self.samples:
            raise _invalid("elites", self.elites, f"at most the {self.samples} samples")
        for name in ("spread", "smallest"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise _invalid(name, getattr(self, name), "above 0 and finite")
        if not 0.0 <= self.correlation < 1.0:
            raise _invalid("correlation", self.correlation, "0 or more and below 1")


def _invalid(name: str, found: object, expected: str) -> Exception:
    return mismatch(ErrorCode.INVALID_ARGUMENT, f"search {name}", found=found, expected=expected)


@dataclass(frozen=True)
class Found:
    """What a search offers to choose from, best first: set-points ``candidates`` (E, H, J) float32,
    ``costs`` (E,), and whether each is ``executable`` (E,), within limits from action 0 at
    ``stamp``. ``proposed`` (E, H, J) is what they were before they were handed over. Last come the
    candidates of other sources in that round, named by ``extras``.
    """

    candidates: npt.NDArray[np.float32]
    costs: npt.NDArray[np.float32]
    executable: npt.NDArray[np.bool_]
    stamp: int
    proposed: npt.NDArray[np.float32]
    extras: tuple[str, ...] = ()


class CrossEntropySearch:
    """One search; alternate :meth:`ask` and :meth:`tell` until :attr:`done`.

    Works on normalised actions (H, J), 1 being one standard deviation of the training data, and
    returns set-points (S, H, J) in m or rad.

    :param bridge: how actions become set-points, with the checkpoint's statistics.
    :param candidates: set-points (N, H, J) of a policy to start from; None starts around the mean
        action.
    """

    def __init__(
        self,
        settings: SearchSettings,
        bridge: ActionBridge,
        embodiment: Embodiment,
        observation: Observation,
        rng: np.random.Generator,
        candidates: npt.ArrayLike | None = None,
    ) -> None:
        self._settings = settings
        self._bridge = bridge
        self._embodiment = embodiment
        self._position = np.asarray(observation.position, dtype=np.float64)
        self._velocity = np.asarray(observation.velocity, dtype=np.float64)
        self._rng = rng
        self._told = 0
        self._asked: FloatArray | None = None
        self._start: FloatArray | None = None
        self._best: Found | None = None
        horizon = settings.blocks * bridge.block
        shape = (horizon, bridge.joints)
        self._mean: FloatArray = np.zeros(shape)
        self._std: FloatArray = np.full(shape, settings.spread)
        if candidates is not None:
            setpoints = np.asarray(candidates, dtype=np.float64)
            if setpoints.ndim != 3 or setpoints.shape[1:] != shape or not len(setpoints):
                raise mismatch(
                    ErrorCode.TENSOR_SHAPE_MISMATCH,
                    "candidates to search from",
                    found=f"shape {setpoints.shape}",
                    expected=f"(N, {horizon}, {bridge.joints}), N 1 or more",
                )
            blocks = bridge.setpoints_to_blocks(setpoints, self._position, self._velocity)
            self._start = unpack_blocks(blocks, bridge.joints)

    @property
    def done(self) -> bool:
        """Whether every iteration was told its costs."""
        return self._told == self._settings.iterations

    def ask(self) -> npt.NDArray[np.float32]:
        """Set-points (S, H, J) of this iteration; sample 0 is the mean.

        The first iteration of a search from candidates is those candidates.
        """
        if self._start is not None and self._told == 0:
            self._asked = self._start
        else:
            shape = (self._settings.samples, *self._mean.shape)
            noise = self._rng.standard_normal(shape)
            last = self._settings.correlation
            for step in range(1, noise.shape[1] if last else 0):
                noise[:, step] = last * noise[:, step - 1] + np.sqrt(1 - last**2) * noise[:, step]
            samples = self._mean + self._std * noise
            samples[0] = self._mean
            self._asked = samples
        blocks = self._asked.reshape(
            len(self._asked), self._settings.blocks, self._bridge.block * self._bridge.joints
        )
        setpoints = self._bridge.blocks_to_setpoints(blocks, self._position, self._velocity)
        return setpoints.astype(np.float32)

    def tell(self, costs: npt.ArrayLike, handover: Handover) -> None:
        """Learn the costs (S,) of what :meth:`ask` gave, as ``handover`` would execute it; behind
        them come those of the candidates of other sources in ``handover``.

        :raises WorldForgeError: ``COSTS_INVALID`` when there is not one cost for each sample.
        """
        assert self._asked is not None, "ask first"
        values = np.asarray(costs, dtype=np.float64)
        count = len(self._asked)
        if values.shape != (count + len(handover.extras),):
            raise mismatch(
                ErrorCode.COSTS_INVALID,
                "costs",
                found=f"shape {values.shape}",
                expected=f"({count + len(handover.extras)},), one for each sample",
            )
        own = values[:count]
        excess = violation(handover.candidates[:count], self._bridge.step, self._embodiment)
        excess = excess + np.where(handover.reachable[:count], 0.0, 1.0)
        # What has no cost is no better for keeping the limits.
        excess = np.where(np.isfinite(own), excess, np.inf)
        order = np.lexsort((own, excess))
        order = order[: self._settings.elites]
        elites = self._asked[order]
        taken = np.concatenate([order, np.arange(count, len(values))])
        self._best = Found(
            candidates=handover.candidates[taken],
            costs=values[taken].astype(np.float32),
            executable=np.concatenate([excess[order] == 0.0, handover.reachable[count:]]),
            stamp=handover.stamp,
            proposed=handover.proposed[taken],
            extras=handover.extras,
        )
        if self._start is not None and self._told == 0:
            # A policy's candidates may pass the block on different sides, where a mean makes no
            # sense: go on around the best one.
            self._mean = elites[0]
            self._std = np.maximum(
                self._settings.spread * elites.std(axis=0), self._settings.smallest
            )
        else:
            self._mean = elites.mean(axis=0)
            self._std = elites.std(axis=0, ddof=1)
        self._told += 1
        self._asked = None

    @property
    def found(self) -> Found:
        """The elites of the last iteration."""
        assert self._best is not None, "tell first"
        return self._best


def search_bridge(embodiment: Embodiment, std: Sequence[float] = ()) -> ActionBridge:
    """The bridge of a search that does not know the checkpoint's statistics.

    :param std: per joint in m or rad; empty takes the embodiment file's.
    :raises WorldForgeError: ``ACTION_STATISTICS_MISSING`` when neither gives them.
    """
    action = embodiment.scoring.action
    if not std and action.std is not None and action.mean is not None:
        return ActionBridge.of(embodiment, action.mean, action.std)
    scaled = np.asarray(std, np.float64)
    if scaled.shape == (len(action.scale),):
        scaled = scaled * np.asarray(action.scale)
    return ActionBridge.of(embodiment, np.zeros(len(embodiment.joints)), scaled)


def violation(setpoints: npt.ArrayLike, step: float, embodiment: Embodiment) -> FloatArray:
    """How far (S,) set-points (S, H, J) break position and velocity limits, summed, in m or rad;
    0 where they keep them.
    """
    values = np.asarray(setpoints, dtype=np.float64)
    lows = [-np.inf if j.min_position is None else j.min_position for j in embodiment.joints]
    highs = [np.inf if j.max_position is None else j.max_position for j in embodiment.joints]
    speeds = [np.inf if j.max_velocity is None else j.max_velocity for j in embodiment.joints]
    outside = np.maximum(np.array(lows) - values, 0) + np.maximum(values - np.array(highs), 0)
    jumps = np.abs(np.diff(values, axis=1))
    fast = np.maximum(jumps * REACH_MARGIN - np.array(speeds) * step, 0)
    total: FloatArray = outside.sum(axis=(1, 2)) + fast.sum(axis=(1, 2))
    return total
