"""The world model's surprise on a topic, from what a node that scores hears anyway."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldforge_ros import ingest
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import ActionChunk, GateStatus, Surprise
from worldforge_ros.observation import Observation
from worldforge_ros.ros import convert, qos
from worldforge_ros.ros.model_node import ModelNode
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.scorers.surprise import (
    Block,
    SurpriseCard,
    SurpriseMonitor,
    check_supported,
    prediction_error,
)


class SurprisePort:
    """Publishes ``~/surprise`` for every observation whose last block is known, as spare work of
    the model: a request never waits for it, and the newest block takes the place of an older one.
    """

    def __init__(self, node: ModelNode[Scorer], frame_id: str) -> None:
        self._node = node
        self._frame_id = frame_id
        self._monitor: SurpriseMonitor | None = None
        self._card: SurpriseCard | None = None
        self._publisher = node.create_publisher(Surprise, "~/surprise", qos.REPORT)
        node.create_subscription(ActionChunk, "action_chunk/approved", self._on_chunk, qos.CHUNK)
        node.create_subscription(GateStatus, "safety_gate/status", self._on_status, qos.LATCHED)
        node.diagnostics.set(surprise="waiting for the model")

    def begin(self, scorer: Scorer, card_path: Callable[[], Path]) -> None:
        """Watch ``scorer``, where surprise can be measured of it; standardised by the card at that
        path where there is one.

        :raises WorldForgeError: for a card that is not that of ``scorer``.
        """
        robot = self._node.embodiment
        try:
            check_supported(scorer)
        except WorldForgeError as error:
            self._node.diagnostics.set(surprise=f"off: {error.message}")
            return
        card, state = card_path(), "standardised"
        try:
            self._card = SurpriseCard.read(card, scorer, robot)
        except WorldForgeError as error:
            if error.code not in (ErrorCode.CHECKPOINT_MISSING, ErrorCode.EMBODIMENT_MISMATCH):
                raise
            # Nobody has said yet what is normal for this robot.
            self._card, state = None, f"not standardised: {error.message}"
        self._node.diagnostics.set(surprise=state)
        self._monitor = SurpriseMonitor(robot, scorer.history)

    def _guarded(self, action: Callable[[], None], doing: str) -> None:
        try:
            action()
        except Exception as error:
            self._node.diagnostics.unexpected(error, doing)

    def _now(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_chunk(self, message: Any) -> None:
        monitor = self._monitor
        if monitor is not None:
            self._guarded(
                lambda: monitor.approved(ingest.chunk_from_msg(message), self._now()),
                "reading an approved chunk",
            )

    def _on_status(self, message: Any) -> None:
        monitor = self._monitor
        if monitor is not None:
            self._guarded(
                lambda: monitor.gate(GateMode(message.mode), self._now()), "reading a status"
            )

    def observed(self, observation: Observation) -> None:
        """Measure the block before ``observation`` when there is time."""
        monitor = self._monitor
        if monitor is not None:
            self._guarded(lambda: self._find(monitor, observation), "finding the last block")

    def _find(self, monitor: SurpriseMonitor, observation: Observation) -> None:
        block = monitor.observed(observation)
        if block is not None:
            self._node.spare(
                "surprise", lambda model: self._measure(model, block), "measuring surprise"
            )

    def _measure(self, scorer: Scorer, block: Block) -> None:
        robot = self._node.embodiment
        error = prediction_error(scorer, robot, block.window, block.setpoints)
        card = self._card
        self._publisher.publish(
            Surprise(
                header=convert.header(block.window[-1].stamp, self._frame_id),
                block=convert.seconds_to_duration(robot.scoring.block_duration),
                error=error,
                standardised=math.nan if card is None else card.standardised(error),
                model_id=scorer.model_id,
            )
        )
