"""Surprise: how wrong the world model was about the block that has just passed.

The raw error is |z^(t + 1) - z(t + 1)|^2: the embedding predicted from the picture one block ago
and the set-points that were really executed since, against the embedding of the picture that was
then taken. It is what the objective ``l2`` costs when the newer picture is the goal, so that every
embedding the scorer has kept is used again.

Errors of normal operation are close to log-normal, so a card beside the checkpoint holds mean and
standard deviation of their logarithm, and what is watched is ``(log error - mean) / deviation``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import Observation, ObservationHistory, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.gate import SETTLE_TIME, GateMode
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.scorers.cards import read_card, write_card
from worldforge_ros.scorers.contract import camera_image
from worldforge_ros.scorers.latent import FrameClip

FloatArray = npt.NDArray[np.float64]
SetpointAt = Callable[[int, FloatArray], FloatArray | None]
"""The set-point (J,) in force at a time in ns of a robot measured at (J,), None where it is not
known."""

CARD_FILE = "surprise.json"
CARD_SCHEMA = "worldforge_ros/surprise_card/1"
THRESHOLD = 4.0
"""Standardised surprise that is flagged by default."""
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)
LEAST_BLOCKS = 100
"""Blocks below which a deviation would say little."""
SMALLEST = 1e-12
"""Errors below it count as it: their logarithm must exist."""
FAMILY = "lewm"
MOST_SEGMENTS = 4096


class SetpointTimeline:
    """What the gate commanded when, from approved chunks and its mode; bounded by ``keep`` seconds.

    A chunk's action k is in force from ``stamp + k * step``, but not before the chunk arrived,
    until another chunk begins, the chunk is over or the gate holds. While it holds the set-point is
    the measured position, once the robot has had :data:`~worldforge_ros.safety.gate.SETTLE_TIME` to
    brake. Everything else (braking, disarmed, stopped, never heard) is not known.
    """

    def __init__(self, embodiment: Embodiment, keep: float) -> None:
        self._joints = embodiment.joint_names
        self._keep = seconds_to_ns(keep)
        self._segments: list[_Segment] = []

    def clear(self) -> None:
        """Forget everything, as when time goes back."""
        self._segments.clear()

    def add_chunk(self, chunk: ActionChunk, arrived: int) -> None:
        """An approved chunk arrived at ``arrived`` ns.

        :raises WorldForgeError: ``JOINT_NAMES_MISMATCH`` or ``TENSOR_SHAPE_MISMATCH``.
        """
        if sorted(chunk.joint_names) != sorted(self._joints):
            raise mismatch(
                ErrorCode.JOINT_NAMES_MISMATCH,
                "joint_names of an approved chunk",
                found=list(chunk.joint_names),
                expected=list(self._joints),
            )
        actions = np.asarray(chunk.actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != len(self._joints) or not len(actions):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                "actions of an approved chunk",
                found=actions.shape,
                expected=f"(horizon, {len(self._joints)})",
            )
        columns = [chunk.joint_names.index(name) for name in self._joints]
        step = seconds_to_ns(chunk.step)
        begin = max(chunk.stamp, arrived)
        self._insert(_Segment(begin, arrived, chunk.stamp, step, actions[:, columns]))

    def add_mode(self, mode: GateMode, stamp: int) -> None:
        """The gate said at ``stamp`` ns that it is in ``mode``."""
        if mode is GateMode.ARMED:
            return
        present = self._segment(stamp)
        if present is not None and present.actions is None and present.held == _HELD[mode]:
            return
        # What was waiting for its time is dropped by the gate.
        self._segments = [
            item for item in self._segments if item.begin <= stamp or item.arrived > stamp
        ]
        self._insert(_Segment(stamp, stamp, held=_HELD[mode]))

    def at(self, time: int, measured: FloatArray) -> FloatArray | None:
        """The set-point (J,) at ``time`` ns of a robot at rest at ``measured`` (J,)."""
        segment = self._segment(time)
        if segment is None:
            return None
        if segment.actions is None:
            settled = time - segment.begin >= seconds_to_ns(SETTLE_TIME)
            return measured if segment.held and settled else None
        index = (time - segment.stamp) // segment.step
        known = 0 <= index < len(segment.actions)
        return segment.actions[index] if known else None

    def _segment(self, time: int) -> _Segment | None:
        index = bisect_right(self._segments, time, key=lambda item: item.begin)
        return self._segments[index - 1] if index else None

    def _insert(self, segment: _Segment) -> None:
        index = bisect_right(self._segments, segment.begin, key=lambda item: item.begin)
        self._segments.insert(index, segment)
        oldest = self._segments[-1].begin - self._keep
        # The one that was in force then is still needed.
        first = bisect_right(self._segments, oldest, key=lambda item: item.begin) - 1
        self._segments = self._segments[max(0, first) :][-MOST_SEGMENTS:]


_HELD: Mapping[GateMode, bool] = {
    GateMode.HOLDING: True,
    GateMode.DISARMED: False,
    GateMode.STOPPED: False,
}


@dataclass(frozen=True, eq=False)
class _Segment:
    """From ``begin`` on (ns): rows of ``actions``, or without them a hold where ``held``."""

    begin: int
    arrived: int
    stamp: int = 0
    step: int = 1
    actions: FloatArray | None = None
    held: bool = False


def executed(
    window: Sequence[Observation], setpoint_at: SetpointAt, step: float, block: int
) -> FloatArray | None:
    """Set-points ((n - 1) * block, J) executed between the n frames of ``window``, oldest first.

    Each is looked up in the middle of its ``step`` seconds: frames and actions need not be in
    phase, and there it is the one that was in force for longest. None where one is not known.
    """
    found = []
    for frame in window[:-1]:
        for index in range(block):
            time = frame.stamp + seconds_to_ns((index + 0.5) * step)
            setpoint = setpoint_at(time, frame.position)
            if setpoint is None:
                return None
            found.append(setpoint)
    return np.asarray(found, dtype=np.float64)


def check_supported(scorer: Scorer) -> None:
    """:raises WorldForgeError: ``OBJECTIVE_UNKNOWN`` for a model whose ``l2`` is not the distance
    of two embeddings.
    """
    family = scorer.facts.get("family", "")
    if family != FAMILY or "l2" not in scorer.objectives:
        raise mismatch(
            ErrorCode.OBJECTIVE_UNKNOWN,
            f"surprise of {scorer.model_id}",
            found=f"family '{family}', objectives {', '.join(scorer.objectives)}",
            expected=f"family {FAMILY} with the objective l2",
        )


def prediction_error(
    scorer: Scorer, embodiment: Embodiment, window: Sequence[Observation], setpoints: FloatArray
) -> float:
    """|z^ - z|^2 of the newest frame of ``window``, which has one more than ``scorer.history``.

    :param setpoints: (history * block, J) m or rad, what :func:`executed` found.
    :raises WorldForgeError: what :meth:`~worldforge_ros.scorers.base.Scorer.score` raises.
    """
    scores = scorer.score(
        window[:-1],
        camera_image(window[-1], embodiment),
        setpoints[np.newaxis, -scorer.block :],
        setpoints[: -scorer.block],
        objective="l2",
    )
    return float(scores.costs[0])


@dataclass(frozen=True)
class Block:
    """One block that has passed: ``window`` of history + 1 observations, oldest first, and the
    ``setpoints`` (history * block, J) in m or rad that were executed between them.
    """

    window: tuple[Observation, ...]
    setpoints: FloatArray


class SurpriseMonitor:
    """Finds the block before every observation, live; bounded by what a window needs."""

    def __init__(self, embodiment: Embodiment, history: int) -> None:
        """:param history: frames that the world model looks back."""
        spec = embodiment.scoring
        self._spec = spec
        self._frames = history + 1
        self._tolerance = embodiment.observation.tolerance
        self._observations = ObservationHistory(self._frames * spec.block_duration + 1.0)
        self._timeline = SetpointTimeline(embodiment, self._frames * spec.block_duration + 2.0)

    def approved(self, chunk: ActionChunk, arrived: int) -> None:
        """The gate executes ``chunk``, which arrived at ``arrived`` ns.

        :raises WorldForgeError: as :meth:`SetpointTimeline.add_chunk`.
        """
        self._timeline.add_chunk(chunk, arrived)

    def gate(self, mode: GateMode, stamp: int) -> None:
        """The gate said at ``stamp`` ns that it is in ``mode``."""
        self._timeline.add_mode(mode, stamp)

    def observed(self, observation: Observation) -> Block | None:
        """Take an observation; returns the block before it, None where a frame or what was executed
        is not known.
        """
        before = self._observations.stamps()
        if before and observation.stamp < before[-1]:
            # Time went back, as at a reset of a simulator.
            self._timeline.clear()
        self._observations.add(observation)
        try:
            window = self._observations.window(
                self._frames, self._spec.block_duration, self._tolerance
            )
        except WorldForgeError:
            return None
        setpoints = executed(window, self._timeline.at, self._spec.step, self._spec.block)
        return None if setpoints is None else Block(tuple(window), setpoints)


def blocks_of(clip: FrameClip, embodiment: Embodiment, history: int) -> Iterator[Block]:
    """Every block of a recorded clip, from picture ``history`` on."""
    observations = clip.observations(embodiment)
    block = embodiment.scoring.block
    for last in range(history, len(observations)):
        first = last - history
        yield Block(
            tuple(observations[first : last + 1]), clip.actions[first * block : last * block]
        )


@dataclass(frozen=True)
class SurpriseCard:
    """What errors are normal for one checkpoint.

    ``log_mean`` and ``log_std`` are of the natural logarithm of the error of ``blocks`` blocks in
    ``episodes`` episodes, ``quantiles`` of the standardised values by probability, ``source`` where
    they come from.
    """

    model_id: str
    sha256: str
    embodiment: str
    block_seconds: float
    log_mean: float
    log_std: float
    blocks: int
    episodes: int
    quantiles: Mapping[str, float]
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        embodiment: Embodiment,
        episodes: Sequence[Sequence[float]],
        source: Mapping[str, Any],
    ) -> SurpriseCard:
        """The card of errors, by episode.

        :raises WorldForgeError: ``DATASET_INVALID`` for too few, or errors that do not differ.
        """
        values = np.log(np.maximum(np.concatenate([[], *episodes]), SMALLEST))
        if len(values) < LEAST_BLOCKS or not np.isfinite(values).all() or values.std() <= 0:
            raise mismatch(
                ErrorCode.DATASET_INVALID,
                "errors to standardise by",
                found=f"{len(values)} of {len(episodes)} episodes",
                expected=f"{LEAST_BLOCKS} or more that are finite and differ",
            )
        mean, std = float(values.mean()), float(values.std())
        found = np.quantile((values - mean) / std, QUANTILES)
        return cls(
            model_id=scorer.model_id,
            sha256=scorer.facts["sha256"],
            embodiment=embodiment.name,
            block_seconds=embodiment.scoring.block_duration,
            log_mean=mean,
            log_std=std,
            blocks=len(values),
            episodes=len(episodes),
            quantiles={f"{q:g}": round(float(v), 4) for q, v in zip(QUANTILES, found, strict=True)},
            source=source,
        )

    def standardised(self, error: float) -> float:
        """Deviations of the logarithm of ``error`` from normal."""
        return (math.log(max(error, SMALLEST)) - self.log_mean) / self.log_std

    def write(self, path: Path) -> None:
        """See :func:`~worldforge_ros.scorers.cards.write_card`."""
        write_card(path, CARD_SCHEMA, asdict(self))

    @classmethod
    def read(cls, path: Path, scorer: Scorer, embodiment: Embodiment) -> SurpriseCard:
        """The card at ``path``, which must be that of ``scorer``.

        :raises WorldForgeError: as :func:`~worldforge_ros.scorers.cards.read_card`, and
            ``CHECKPOINT_INVALID`` for wrong fields.
        """
        document = read_card(path, CARD_SCHEMA, scorer.facts["sha256"], embodiment)
        try:
            card = cls(**document)
        except TypeError as error:
            raise WorldForgeError(
                ErrorCode.CHECKPOINT_INVALID, f"{path} is not a surprise card: {error}"
            ) from error
        numbers = (card.log_mean, card.log_std)
        good = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
        if not good or card.log_std <= 0:
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"{path}: log_mean and log_std",
                found=numbers,
                expected="finite numbers, the deviation above 0",
            )
        return card
