"""What a bag says about the run in which it was recorded: plans, verdicts, latencies."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros import ingest
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.planner import PlannerSettings
from worldforge_ros.replay.cycles import Cycle
from worldforge_ros.replay.tally import Tally
from worldforge_ros.safety.gate import GateMode

if TYPE_CHECKING:
    from worldforge_ros.bags.reader import Bag
    from worldforge_ros.bags.topics import BagTopics

CHUNKS_KEPT = 64
"""Approved chunks by sequence: what executed when a plan was made is one of the last."""
SAME_CANDIDATES = 1e-6
"""m or rad: candidates that differ by more are not the same."""
_MS = 1000.0


@dataclass(frozen=True)
class LivePlan:
    """A plan report: times in ns, ``costs`` (S,), ``candidates`` (S, H, J) in m or rad."""

    cycle: int
    outcome: str
    planner: str
    seed: int
    observation_stamp: int
    arrival: int
    executing: int
    stamp: int
    sequence: int
    chosen: int
    costs: npt.NDArray[np.float64]
    candidates: npt.NDArray[np.float32]

    @property
    def base_seed(self) -> int | None:
        """Seed of the planner, None where its proposals were fresh ones."""
        return None if self.seed < 0 else self.seed - self.cycle


@dataclass(frozen=True)
class Difference:
    """A cycle in which another candidate was chosen than live, and why."""

    report: LivePlan
    replayed: int
    cause: str


def compare(report: LivePlan, cycle: Cycle, executing_missing: bool) -> Difference | None:
    """Whether a replayed cycle chose what the live one did; None when it did.

    The cause is the first of: ``EXECUTING_MISSING`` (the chunk that executed is not in the bag),
    ``OUTCOME`` (the cycle failed), ``CANDIDATES`` (they differ), ``COSTS`` (they differ by more
    than the live choice was ahead), ``CHOICE`` (none of these).
    """
    trace = cycle.trace
    replayed = -1 if trace.choice is None else trace.choice.index
    if replayed == report.chosen:
        return None
    cause = "CHOICE"
    if executing_missing:
        cause = "EXECUTING_MISSING"
    elif trace.choice is None:
        cause = f"OUTCOME {trace.outcome}"
    elif trace.candidates.shape != report.candidates.shape or not np.allclose(
        trace.candidates, report.candidates, rtol=0.0, atol=SAME_CANDIDATES
    ):
        cause = "CANDIDATES"
    elif len(trace.costs) == len(report.costs) and not np.array_equal(
        trace.costs.astype(np.float64), report.costs, equal_nan=True
    ):
        cause = "COSTS"
    return Difference(report, replayed, cause)


class LiveRun:
    """Plan reports, approved chunks and statuses of the gate, as they pass by."""

    def __init__(self, bag: Bag, topics: BagTopics, timing: str) -> None:
        """:param timing: ``auto``, ``recorded`` or ``fixed``.
        :raises WorldForgeError: ``TOPIC_MISSING`` for ``recorded`` without plan reports.
        """
        self._topics = topics
        self._chunks: OrderedDict[int, ActionChunk] = OrderedDict()
        self._first = self._first_report(bag) if topics.plan_report else None
        if timing == "recorded" and self._first is None:
            raise mismatch(
                ErrorCode.TOPIC_MISSING,
                "plan reports for --timing recorded",
                found=f"none that can be read in bag {bag.name} ({bag.describe()})",
                expected="plan_report, or --timing fixed",
            )
        self.timed = timing != "fixed" and self._first is not None
        """Whether cycles begin when the reports say so."""
        self.problems: list[dict[str, str]] = []
        self._stages = {name: Tally() for name in ("observation", "propose", "score", "plan")}
        self._gate_stages = {name: Tally() for name in ("gate", "capture_to_command")}
        self._plans = 0
        self._misses: tuple[int, int] | None = None
        self._status: tuple[Any, Any] | None = None

    def _first_report(self, bag: Bag) -> LivePlan | None:
        for event in bag.events([self._topics.plan_report]):
            with suppress(WorldForgeError):
                return _plan(event.message)
        return None

    @property
    def seed(self) -> int | None:
        """Seed of the live planner, None where it is not known."""
        return None if self._first is None else self._first.base_seed

    def comparable(self, settings: PlannerSettings, candidates: int) -> bool:
        """Whether a replay with ``settings`` is to choose what was chosen live: the same rule and
        seed.
        """
        first = self._first
        return (
            first is not None
            and self.timed
            and first.planner == settings.planner
            and first.base_seed == settings.seed
        )

    def trouble(self, error: WorldForgeError) -> None:
        """Note what could not be used, once."""
        problem = {"code": str(error.code), "message": error.message}
        if problem not in self.problems and len(self.problems) < CHUNKS_KEPT:
            self.problems.append(problem)

    def approved(self, message: Any) -> ActionChunk | None:
        """Take an approved chunk; None for one that cannot be read."""
        try:
            chunk = ingest.chunk_from_msg(message)
        except WorldForgeError as error:
            self.trouble(error)
            return None
        self._chunks[chunk.sequence] = chunk
        if len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return chunk

    def status(self, message: Any) -> tuple[bool, int, int, bool] | None:
        """Take a status of the gate; returns what the planner is told: armed, epoch, sequence of
        the last verdict and whether that was a rejection. None for one that cannot be read.
        """
        try:
            self._take_status(message)
            return (
                int(message.mode) == GateMode.ARMED,
                int(message.epoch),
                int(message.verdict_sequence),
                message.verdict == "REJECTED",
            )
        except AttributeError as error:
            self.trouble(_older("safety_gate/status", error))
            return None

    def _take_status(self, status: Any) -> None:
        before = None if self._status is None else self._status[1]
        known = 0 if before is None else int(before.chunks_received)
        if int(status.chunks_received) > known and status.verdict:
            latency = ingest.duration_to_seconds(status.validation_latency)
            self._gate_stages["gate"].add(_MS * latency)
            whole = ingest.duration_to_seconds(status.capture_to_command)
            if status.verdict != "REJECTED" and whole > 0.0:
                self._gate_stages["capture_to_command"].add(_MS * whole)
        first = status if self._status is None else self._status[0]
        self._status = (first, status)

    def chunk(self, sequence: int) -> ActionChunk | None:
        """The approved chunk of that sequence, as far as it is kept; None also for 0."""
        return self._chunks.get(sequence)

    def report(self, message: Any) -> LivePlan:
        """Take a plan report.

        :raises WorldForgeError: ``MESSAGE_MALFORMED`` for one of an older release,
            ``TENSOR_DATA_LENGTH`` for candidates that are none.
        """
        plan = _plan(message)
        self._plans += 1
        misses = int(message.deadline_misses)
        self._misses = (misses if self._misses is None else self._misses[0], misses)
        for stage, tally in self._stages.items():
            seconds = ingest.duration_to_seconds(getattr(message, f"{stage}_latency"))
            # Stages that a cycle did not reach are 0.
            if seconds > 0.0 or stage == "plan":
                tally.add(_MS * seconds)
        return plan

    def latency_document(self) -> dict[str, Any] | None:
        """The ``latency`` of an episode's document, None without a plan report."""
        if not self._plans or self._misses is None:
            return None
        tallies = {**self._stages, **self._gate_stages}
        return {
            "stages": {name: tally.document() for name, tally in tallies.items()},
            "deadline_misses": self._misses[1] - self._misses[0],
            "plans": self._plans,
        }

    def gate_document(self) -> dict[str, Any] | None:
        """What the live gate decided while it was recorded, None without a status."""
        if self._status is None:
            return None
        first, last = self._status
        before = dict(zip(first.rejected_codes, first.rejected_counts, strict=False))
        codes = {
            str(code): int(count) - int(before.get(code, 0))
            for code, count in zip(last.rejected_codes, last.rejected_counts, strict=False)
        }
        return {
            "approved": int(last.chunks_approved) - int(first.chunks_approved),
            "rejected": int(last.chunks_rejected) - int(first.chunks_rejected),
            "codes": {code: count for code, count in sorted(codes.items()) if count},
        }


def _plan(message: Any) -> LivePlan:
    try:
        candidates = ingest.tensor_from_msg(message.candidates, "candidates")
        return LivePlan(
            cycle=int(message.cycle),
            outcome=str(message.outcome),
            planner=str(message.planner),
            seed=int(message.seed),
            observation_stamp=ingest.stamp_to_ns(message.observation_stamp),
            arrival=ingest.stamp_to_ns(message.arrival),
            executing=int(message.executing),
            stamp=ingest.stamp_to_ns(message.stamp),
            sequence=int(message.sequence),
            chosen=int(message.chosen),
            costs=np.asarray(message.costs, dtype=np.float64),
            candidates=candidates[0] if candidates.ndim == 4 else np.empty((0, 0, 0), np.float32),
        )
    except AttributeError as error:
        raise _older("plan_report", error) from error


def _older(topic: str, error: AttributeError) -> WorldForgeError:
    return mismatch(
        ErrorCode.MESSAGE_MALFORMED,
        f"{topic}.{error.name}",
        found="not a field of the message",
        expected="the definition of this release",
    )
