"""What was seen during one episode, in plain Python and numpy."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worldforge_ros.recording.figure import Figure

FloatArray = npt.NDArray[np.float32]
ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PlanSample:
    """One planning cycle. ``time`` is seconds since the episode began; latencies are seconds.

    ``costs`` (S,), ``candidates`` (S, H, J) in m or rad, empty when not reported. A stage that was
    not reached has latency 0.
    """

    time: float
    outcome: str
    num_candidates: int
    costs: FloatArray
    chosen: int
    margin: float
    candidates: FloatArray
    step: float
    observation_latency: float
    propose_latency: float
    score_latency: float
    plan_latency: float
    propose_model_latency: float
    score_model_latency: float


@dataclass(frozen=True)
class GateSample:
    """One gate status; counters count since the gate started, latencies are seconds."""

    time: float
    mode: str
    reason: str
    verdict: str
    verdict_sequence: int
    reason_codes: tuple[str, ...]
    chunks_received: int
    chunks_approved: int
    chunks_rejected: int
    steps_executed: int
    rejected: Mapping[str, int]
    validation_latency: float
    capture_to_command: float


@dataclass(frozen=True)
class ChunkSample:
    """An approved chunk: ``actions`` (H, J) in m or rad; the first is due at ``start``."""

    start: float
    step: float
    actions: FloatArray

    def setpoint(self, time: float) -> FloatArray | None:
        """The set-point (J,) held at ``time``, or None before the first or after the last."""
        index = int(np.floor((time - self.start) / self.step))
        return self.actions[index] if 0 <= index < len(self.actions) else None


@dataclass(frozen=True)
class Picture:
    """A compressed picture: ``shape`` (height, width, 3), uint8 RGB."""

    time: float
    shape: tuple[int, int, int]
    data: bytes

    @classmethod
    def pack(cls, time: float, image: ImageArray) -> Picture:
        """Compress ``image`` (height, width, 3) uint8 RGB; flat drawings shrink about 30 times."""
        height, width, channels = image.shape
        return cls(time, (height, width, channels), zlib.compress(image.tobytes(), 1))

    def image(self) -> ImageArray:
        """The picture (height, width, 3) uint8 RGB."""
        return np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.shape)


@dataclass
class EpisodeLog:
    """Everything recorded between arming and disarming; times are seconds of ROS time."""

    seed: int
    figure: Figure
    task: str = ""
    extent: tuple[float, float, float, float] | None = None
    """x and y of the overview's top left, then of its bottom right corner, in metres; None when
    the joints cannot be drawn into the picture."""
    planner: str = ""
    duration: float = 0.0
    wall_duration: float = 0.0
    observations: int = 0
    deadline_misses: int = 0
    plans: list[PlanSample] = field(default_factory=list)
    gate: list[GateSample] = field(default_factory=list)
    chunks: list[ChunkSample] = field(default_factory=list)
    progress: list[tuple[float, float]] = field(default_factory=list)
    """Time and value of ``figure``."""
    overview: list[Picture] = field(default_factory=list)
    camera: list[Picture] = field(default_factory=list)
    goal: ImageArray | None = None
