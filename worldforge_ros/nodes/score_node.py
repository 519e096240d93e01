"""A world model behind ``score_candidates``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import (
    ImageArray,
    Observation,
    ObservationHistory,
    blank_window,
    check_image,
)
from worldforge_ros.resources import resolve_path
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.model_node import ModelNode
from worldforge_ros.scorers.base import Scorer, Scores
from worldforge_ros.srv import ScoreCandidates


class ScoreNode(ModelNode[Scorer]):
    """Answers with the cost of every candidate; keeps observations and the last goal itself."""

    def __init__(self) -> None:
        super().__init__("score_node")
        self._path = self.parameters.text(
            "model_path",
            "package://worldforge_ros/models/pusht/world_model",
            "folder of a LeWorldModel checkpoint",
        )
        self._objective = self.parameters.text(
            "objective", "", "how the last latent is compared with the goal; empty: the model's own"
        )
        self._max_candidates = self.parameters.integer(
            "max_candidates", 4096, "most candidates a request may hold", minimum=1, maximum=65536
        )
        self._warmup_candidates = self.parameters.integer(
            "warmup_candidates", 32, "candidates of the warm-up runs", minimum=1, maximum=65536
        )
        self._warmup_horizon = self.parameters.integer(
            "warmup_blocks", 3, "blocks of the warm-up candidates", minimum=1, maximum=64
        )
        self._goal: ImageArray | None = None
        self._history = ObservationHistory(duration=30.0)
        self.create_subscription(ObservationMsg, "observation", self._on_observation, qos.CHUNK)
        self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
        self.open_service(ScoreCandidates, "score_candidates", self._on_request)

    def load(self) -> Scorer:
        """Load the checkpoint and run it until it is warm."""
        from worldforge_ros.scorers.lewm import load_lewm

        scorer = load_lewm(resolve_path(self._path), self.embodiment, self.device, self.num_threads)
        spec = self.embodiment.world_model
        window = blank_window(self.embodiment, scorer.history, spec.block_duration)
        shape = (self._warmup_candidates, self._warmup_horizon * scorer.block)
        still = np.broadcast_to(window[-1].position, (*shape, len(self.embodiment.joints)))
        past = np.broadcast_to(
            window[-1].position, ((scorer.history - 1) * scorer.block, still.shape[-1])
        )
        for _ in range(3):
            scorer.score(window, window[-1].images[spec.camera], still, past, self._objective)
        return scorer

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            self._history.add(convert.observation_from_msg(message, self.embodiment))
        except Exception as error:
            self.diagnostics.unexpected(error, "reading an observation")

    def _on_goal(self, message: Image) -> None:
        try:
            self._goal = self._checked_goal(message)
        except Exception as error:
            self.diagnostics.unexpected(error, "reading the goal image")

    def _checked_goal(self, message: Image) -> ImageArray:
        goal = convert.image_from_msg(message, "goal")
        check_image(goal, self.embodiment.world_model.camera, self.embodiment)
        return goal

    async def _on_request(
        self, request: ScoreCandidates.Request, response: ScoreCandidates.Response
    ) -> ScoreCandidates.Response:
        started = time.monotonic()
        response.best_index = -1
        response.lower_is_better = True

        def prepare(scorer: Scorer) -> Callable[[], None]:
            arguments = (
                self._window(request.history, scorer),
                self._goal_of(request),
                self._candidates(request),
                self._action_history(request),
                request.objective or self._objective,
            )
            return lambda: fill(scorer.score(*arguments))

        def fill(scores: Scores) -> None:
            response.scores = scores.costs.tolist()
            response.best_index = scores.best_index
            response.metadata = convert.key_values(scores.metadata)
            response.latency = convert.seconds_to_duration(time.monotonic() - started)

        return await self.answer(response, prepare)

    def _candidates(self, request: ScoreCandidates.Request) -> Any:
        if request.action_space != ScoreCandidates.Request.EMBODIMENT:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "action_space",
                found=request.action_space,
                expected=f"EMBODIMENT ({ScoreCandidates.Request.EMBODIMENT})",
            )
        candidates = convert.tensor_from_msg(request.candidates, "candidates")
        if candidates.ndim != 4:
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                "candidates.shape",
                found=list(candidates.shape),
                expected="4 dimensions (1, samples, horizon, joints)",
            )
        if candidates.shape[0] != 1:
            raise mismatch(
                ErrorCode.BATCH_SIZE_UNSUPPORTED,
                "candidates.shape[0]",
                found=candidates.shape[0],
                expected="1",
            )
        if candidates.shape[1] > self._max_candidates:
            raise mismatch(
                ErrorCode.TOO_MANY_CANDIDATES,
                "candidates.shape[1]",
                found=candidates.shape[1],
                expected=f"at most {self._max_candidates}",
            )
        return candidates[0]

    def _action_history(self, request: ScoreCandidates.Request) -> Any:
        past = convert.tensor_from_msg(request.action_history, "action_history")
        return past if past.size else None

    def _goal_of(self, request: ScoreCandidates.Request) -> ImageArray:
        if request.goal.height or request.goal.width or len(request.goal.data):
            return self._checked_goal(request.goal)
        if self._goal is None:
            raise mismatch(
                ErrorCode.GOAL_MISSING,
                "goal",
                found="none in the request and none on topic goal_image",
                expected="a picture of the state to bring about",
            )
        return self._goal

    def _window(self, messages: Sequence[Any], scorer: Scorer) -> list[Observation]:
        if messages:
            return [convert.observation_from_msg(message, self.embodiment) for message in messages]
        window = self._history.window(
            scorer.history,
            self.embodiment.world_model.block_duration,
            self.embodiment.observation.tolerance,
        )
        self._history.check_age(
            self.get_clock().now().nanoseconds, self.embodiment.observation.max_age
        )
        return window


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(ScoreNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
