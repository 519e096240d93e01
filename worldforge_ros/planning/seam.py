"""The seam: how the actions of a new plan take over from those that are executing.

``switch`` takes the new plan as it is. ``blend`` fades from the continuation of the executing
chunk, or from a hold, to it. ``temporal_ensemble`` commands the mean of all plans that predicted
the same moment, with the weights of ACT (Zhao et al. 2023, arXiv 2304.13705, algorithm 2; LeRobot's
``ACTTemporalEnsembler``).

A seam is applied before candidates are scored, so that costs are those of what would be executed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk

FloatArray = npt.NDArray[np.float64]

SEAMS = ("switch", "temporal_ensemble", "blend")
MOST_KEPT = 128
"""Predictions that an ensemble remembers; with one a step, those of a horizon of 128 actions."""
MOST_DURATION = 10.0
"""Seconds that a blend may last."""
MOST_COEFFICIENT = 5.0
"""Size of an ensemble's coefficient: the weights of :data:`MOST_KEPT` predictions stay finite."""


@dataclass(frozen=True)
class SeamSettings:
    """``duration`` in seconds is that of a ``blend``; ``coefficient`` that of the weights
    ``exp(-coefficient * i)`` of a ``temporal_ensemble``, i counting predictions from the oldest on:
    0 weighs all alike, above 0 the older ones more.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the field.
    """

    mode: str = "switch"
    duration: float = 0.3
    coefficient: float = 0.01

    def __post_init__(self) -> None:
        if self.mode not in SEAMS:
            raise _invalid("seam", f"'{self.mode}'", f"one of {', '.join(SEAMS)}")
        if not 0.0 <= self.duration <= MOST_DURATION:
            raise _invalid("seam duration", f"{self.duration} s", f"0 to {MOST_DURATION:g} s")
        if not abs(self.coefficient) <= MOST_COEFFICIENT:
            raise _invalid(
                "ensemble coefficient",
                self.coefficient,
                f"{-MOST_COEFFICIENT:g} to {MOST_COEFFICIENT:g}",
            )


def _invalid(name: str, found: object, expected: str) -> Exception:
    return mismatch(ErrorCode.INVALID_ARGUMENT, name, found=found, expected=expected)


@dataclass(frozen=True)
class Prediction:
    """A plan as its source proposed it, before any seam: ``actions`` (H, J) in m or rad, the first
    one for ``stamp`` ns, ``step`` seconds between two, from an observation of ``observed`` ns.
    """

    stamp: int
    step: float
    actions: FloatArray
    observed: int

    @property
    def end(self) -> int:
        """When the last action is over, ns."""
        return self.stamp + len(self.actions) * seconds_to_ns(self.step)


@dataclass(frozen=True)
class Mixed:
    """Candidates with their seam, (S, H, J) float32, and which actions (H,) it changed."""

    candidates: npt.NDArray[np.float32]
    changed: npt.NDArray[np.bool_]


class Seam:
    """One way to take over, and what an ensemble remembers for it.

    Remembered are the predictions behind approved chunks, for as long as some of their actions lie
    ahead and at most :data:`MOST_KEPT`. Whoever owns the seam tells it what becomes of each chunk,
    with :meth:`sent` and :meth:`approved`, and calls :meth:`forget` at a hold, a stop, a refused
    chunk, a new epoch and a new goal.
    """

    def __init__(self, settings: SeamSettings | None = None) -> None:
        self._settings = settings or SeamSettings()
        self._kept: deque[Prediction] = deque(maxlen=MOST_KEPT)
        self._sent: tuple[int, Prediction | None] | None = None
        self._since = 0

    @property
    def settings(self) -> SeamSettings:
        """The settings in force."""
        return self._settings

    @property
    def kept(self) -> tuple[Prediction, ...]:
        """What an ensemble remembers, oldest first."""
        return tuple(self._kept)

    def sent(self, sequence: int, prediction: Prediction | None) -> None:
        """Chunk ``sequence`` went to the gate; ``prediction`` is None where its source predicts
        nothing, see :mod:`worldforge_ros.planning.sources`.
        """
        self._sent = (sequence, prediction)

    def approved(self, sequence: int) -> None:
        """The gate executes chunk ``sequence``; one that was not sent from here ends what an
        ensemble could average.
        """
        if self._sent is None or self._sent[0] != sequence:
            self.forget()
            return
        prediction, self._sent = self._sent[1], None
        if self._settings.mode != "temporal_ensemble" or prediction is None:
            return
        if prediction.observed >= self._since:
            self._kept.append(prediction)

    def forget(self, observed_before: int | None = None) -> None:
        """Drop what an ensemble remembers.

        :param observed_before: ns; a plan under way that began with an older observation will not
            be remembered either. None lets it.
        """
        self._kept.clear()
        if observed_before is not None:
            self._since = observed_before

    def mix(
        self,
        candidates: npt.NDArray[np.float32],
        stamp: int,
        step: float,
        first: int,
        executing: ActionChunk | None,
        hold: FloatArray,
    ) -> Mixed:
        """Candidates (S, H, J) as this seam would have them executed.

        :param stamp: ns, when action 0 is due; ``step`` seconds between two actions.
        :param first: the first action that is new; those before it stay as they are.
        :param executing: what the gate executes; None while it holds.
        :param hold: (J,) where the robot is held while nothing executes. A blend begins there, so
            that a plan that begins a little elsewhere can be reached from rest.
        """
        horizon = candidates.shape[1]
        period = seconds_to_ns(step)
        unchanged = Mixed(candidates, np.zeros(horizon, dtype=np.bool_))
        if first >= horizon or self._settings.mode == "switch":
            return unchanged
        takeover = stamp + first * period
        if executing is not None and not _runs(executing, takeover):
            executing = None
        # Pictures need not be a whole number of steps apart: what another plan has for a moment is
        # what it commands in the middle of the new action's time.
        middles = stamp + np.arange(first, horizon) * period + period // 2
        new = candidates[:, first:].astype(np.float64)
        if self._settings.mode == "blend":
            mixed, changed = self._blended(new, step, _going_on(executing, hold, middles))
        elif executing is None:
            return unchanged
        else:
            while self._kept and self._kept[0].end <= takeover:
                self._kept.popleft()
            mixed, changed = self._ensembled(new, middles)
        result, where = candidates.copy(), unchanged.changed
        result[:, first:][:, changed] = mixed[:, changed]
        where[first:] = changed
        return Mixed(result, where)

    def _blended(
        self, new: FloatArray, step: float, going_on: FloatArray
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Smoothstep over ``duration``: with 0 s already the first new action is the plan's own."""
        count = new.shape[1]
        linear = np.minimum(np.arange(1, count + 1) * step / (self._settings.duration + step), 1.0)
        weight = (linear**2 * (3.0 - 2.0 * linear))[:, np.newaxis]
        return (1.0 - weight) * going_on + weight * new, weight[:, 0] < 1.0

    def _ensembled(
        self, new: FloatArray, middles: npt.NDArray[np.int64]
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        total = np.zeros(new.shape[1:])
        weights = np.zeros((len(middles), 1))
        predicted = np.zeros((len(middles), 1))
        for prediction in self._kept:
            index = (middles - prediction.stamp) // seconds_to_ns(prediction.step)
            there = (index >= 0) & (index < len(prediction.actions))
            weight = np.exp(-self._settings.coefficient * predicted[there])
            total[there] += weight * prediction.actions[index[there]]
            weights[there] += weight
            predicted[there] += 1.0
        newest = np.exp(-self._settings.coefficient * predicted)
        return (total + newest * new) / (weights + newest), predicted[:, 0] > 0.0


def _going_on(
    executing: ActionChunk | None, hold: FloatArray, middles: npt.NDArray[np.int64]
) -> FloatArray:
    """Set-points (N, J) at ``middles`` (N,) ns if nothing new came. A chunk that ends stays where
    it has led.
    """
    if executing is None:
        return np.broadcast_to(hold, (len(middles), len(hold)))
    index = (middles - executing.stamp) // seconds_to_ns(executing.step)
    last = len(executing.actions) - 1
    actions: FloatArray = np.asarray(executing.actions, np.float64)[np.minimum(index, last)]
    return actions


def _runs(executing: ActionChunk, time: int) -> bool:
    """Whether ``executing`` has an action for ``time`` ns."""
    return 0 <= time - executing.stamp < len(executing.actions) * seconds_to_ns(executing.step)
