"""A world model behind ``score_candidates`` and ``refine_candidates``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from diagnostic_msgs.srv import SelfTest
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.health import Check, check_scorer
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    ObservationHistory,
    blank_window,
    check_goal,
)
from worldforge_ros.planning.refine import Scene, refine
from worldforge_ros.resources import resolve_path
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.model_node import ModelNode
from worldforge_ros.ros.surprise_port import SurprisePort
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.scorers.cards import beside
from worldforge_ros.scorers.contract import ActionSpace, one_batch, outside_limits
from worldforge_ros.scorers.loading import load_scorer
from worldforge_ros.scorers.parameters import declare
from worldforge_ros.scorers.surprise import CARD_FILE
from worldforge_ros.srv import RefineCandidates, ScoreCandidates

SPACES = {
    ScoreCandidates.Request.EMBODIMENT: ActionSpace.EMBODIMENT,
    ScoreCandidates.Request.MODEL: ActionSpace.MODEL,
}
MAX_ITERATIONS = 1000


class ScoreNode(ModelNode[Scorer]):
    """Answers with the cost of every candidate; keeps observations and the last goal itself."""

    def __init__(self) -> None:
        super().__init__("score_node")
        parameters = self.parameters
        self._config = declare(parameters, self.num_threads, os.environ)
        self._max_candidates = parameters.integer(
            "max_candidates", 4096, "most candidates a request may hold", minimum=1, maximum=65536
        )
        self._max_blocks = parameters.integer(
            "max_blocks", 64, "most blocks a candidate may be long", minimum=1, maximum=4096
        )
        self._max_goal_age = parameters.number(
            "max_goal_age",
            0.0,
            "oldest goal of its own that the node scores against, s since it arrived; 0: any",
            minimum=0.0,
            maximum=1e9,
        )
        self._encode_on_arrival = parameters.flag(
            "encode_on_arrival",
            True,
            "encode observations and goals as they arrive, so that a request need not",
        )
        self._warmup_candidates = parameters.integer(
            "warmup_candidates", 32, "candidates of the warm-up runs", minimum=1, maximum=65536
        )
        self._warmup_blocks = parameters.integer(
            "warmup_blocks", 3, "blocks of the warm-up candidates", minimum=1, maximum=64
        )
        surprise = parameters.flag(
            "surprise", True, "publish on ~/surprise how wrong the world model was about each block"
        )
        self._surprise_card = parameters.text(
            "surprise_card",
            "",
            "path of the card that surprise is standardised by; empty: surprise.json beside the "
            "checkpoint",
        )
        frame_id = parameters.text("frame_id", "base", "frame of what is published")
        self._surprise = SurprisePort(self, frame_id) if surprise else None
        self._goal: tuple[ImageArray, int] | None = None
        self._history = ObservationHistory(
            duration=2.0 + 16 * self.embodiment.scoring.block_duration
        )
        self.create_subscription(ObservationMsg, "observation", self._on_observation, qos.CHUNK)
        self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
        self.open_service(ScoreCandidates, "score_candidates", self._on_score)
        self.open_service(RefineCandidates, "refine_candidates", self._on_refine)
        self.open_service(SelfTest, "~/health", self._on_health)

    def load(self) -> Scorer:
        """Load the checkpoint and run it until it is warm."""
        for setting in self._config.settings.values():
            if setting.overridden:
                self.get_logger().warning(
                    f"{', '.join(setting.overridden)} is set but does not count: "
                    f"{setting.name} comes from {setting.source}"
                )
        scorer = load_scorer(self._config, self.embodiment)
        spec = self.embodiment.scoring
        window = blank_window(self.embodiment, scorer.history, spec.block_duration)
        shape = (self._warmup_candidates, self._warmup_blocks * scorer.block)
        still = np.broadcast_to(window[-1].position, (*shape, len(self.embodiment.joints)))
        past = np.broadcast_to(
            window[-1].position, ((scorer.history - 1) * scorer.block, still.shape[-1])
        )
        for _ in range(3):
            scorer.score(window, window[-1].images[spec.camera], still, past)
        self.diagnostics.set(**scorer.facts)
        if self._surprise is not None:
            self._surprise.begin(scorer, self._card)
        return scorer

    def _card(self) -> Path:
        """Where what is normal for the checkpoint stands."""
        if self._surprise_card:
            return resolve_path(self._surprise_card)
        model = str(resolve_path(self._config.value("model_path")))
        return beside(model, CARD_FILE, self._config.value("cache_dir"))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer requests from now on; what arrived before is encoded first."""
        result = super().on_activate(state)
        if self._goal is not None:
            self._encode_goal(self._goal[0])
        return result

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            observation = convert.observation_from_msg(message, self.embodiment)
            self._history.add(observation)
        except Exception as error:
            self.diagnostics.unexpected(error, "reading an observation")
            return
        if self._surprise is not None:
            self._surprise.observed(observation)
        if self._encode_on_arrival:
            self.spare("observation", lambda m: m.notice(observation), "encoding an observation")

    def _on_goal(self, message: Image) -> None:
        try:
            goal = self._checked_goal(message)
            self._goal = goal, self.get_clock().now().nanoseconds
        except Exception as error:
            self.diagnostics.unexpected(error, "reading the goal image")
            return
        self._encode_goal(goal)

    def _encode_goal(self, goal: ImageArray) -> None:
        if self._encode_on_arrival:
            self.spare("goal", lambda model: model.notice_goal(goal), "encoding the goal")

    def _checked_goal(self, message: Image) -> ImageArray:
        goal = convert.image_from_msg(message, "goal")
        check_goal(goal, self.embodiment.scoring.camera, self.embodiment)
        return goal

    async def _on_score(
        self, request: ScoreCandidates.Request, response: ScoreCandidates.Response
    ) -> ScoreCandidates.Response:
        def fill(scorer: Scorer, scene: Scene, candidates: Any) -> Mapping[str, str]:
            scores = scene.score(scorer, candidates)
            response.scores = scores.costs.tolist()
            response.best_index = scores.best_index
            if scene.space is ActionSpace.MODEL:
                return scores.metadata
            outside = outside_limits(candidates, self.embodiment)
            return {**scores.metadata, **({"outside_limits": outside} if outside else {})}

        return await self._answer_in_scene(request, response, fill)

    async def _on_refine(
        self, request: RefineCandidates.Request, response: RefineCandidates.Response
    ) -> RefineCandidates.Response:
        def fill(scorer: Scorer, scene: Scene, candidates: Any) -> Mapping[str, str]:
            self._check_effort(request)
            found = refine(
                scorer,
                self.embodiment,
                scene,
                candidates,
                samples=request.samples,
                iterations=request.iterations,
                elites=request.elites,
                spread=request.spread,
                rng=np.random.default_rng(None if request.seed == -1 else request.seed),
                budget=convert.duration_to_seconds(request.budget),
            )
            response.candidates = convert.tensor_to_msg(found.candidates[None])
            response.scores = found.costs.tolist()
            response.best_index = 0
            response.iterations = found.iterations
            response.expired = found.expired
            return found.metadata

        return await self._answer_in_scene(request, response, fill)

    async def _answer_in_scene(
        self, request: Any, response: Any, fill: Callable[[Scorer, Scene, Any], Mapping[str, str]]
    ) -> Any:
        """Answer with what ``fill`` puts into the response, and the metadata it returns."""
        started = time.monotonic()
        response.best_index = -1
        response.lower_is_better = True

        def prepare(scorer: Scorer) -> Callable[[], None]:
            scene, ages = self._scene(request, scorer)
            candidates = self._candidates(request, scorer)

            def run() -> None:
                metadata = fill(scorer, scene, candidates)
                response.metadata = convert.key_values({**metadata, **ages})
                response.latency = convert.seconds_to_duration(time.monotonic() - started)

            return run

        return await self.answer(response, prepare)

    def _check_effort(self, request: RefineCandidates.Request) -> None:
        for name, found, most in (
            ("samples", request.samples, self._max_candidates),
            ("iterations", request.iterations, MAX_ITERATIONS),
        ):
            if found > most:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT, name, found=found, expected=f"at most {most}"
                )
        if request.seed < -1:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "seed", found=request.seed, expected="-1 or more"
            )

    async def _on_health(self, request: SelfTest.Request, response: SelfTest.Response) -> Any:
        try:
            checks = await self.beside(
                lambda loaded: check_scorer(
                    self._config, self.embodiment, loaded.model_id if loaded else ""
                )
            )
        except WorldForgeError as error:
            checks = [Check("world model", "error", error.message, str(error.code))]
        except Exception as error:
            wrapped = self.diagnostics.unexpected(error, "checking the health")
            checks = [Check("health", "error", wrapped.message, str(wrapped.code))]
        response.id = self.model.model_id if self.model is not None else ""
        response.passed = bytes([all(check.level != "error" for check in checks)])
        levels = {
            "ok": DiagnosticStatus.OK,
            "warning": DiagnosticStatus.WARN,
            "error": DiagnosticStatus.ERROR,
        }
        response.status = [
            DiagnosticStatus(
                level=levels[check.level],
                name=check.name,
                message=check.message,
                values=convert.key_values({"code": check.code} if check.code else {}),
            )
            for check in checks
        ]
        return response

    def _scene(self, request: Any, scorer: Scorer) -> tuple[Scene, dict[str, str]]:
        """What to score in, and how old it is."""
        if request.action_space not in SPACES:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "action_space",
                found=request.action_space,
                expected=f"EMBODIMENT ({request.EMBODIMENT}) or MODEL ({request.MODEL})",
            )
        now = self.get_clock().now().nanoseconds
        history = self._window(request, scorer, now)
        goal, goal_age = self._goal_of(request, now)
        past = convert.tensor_from_msg(request.action_history, "action_history")
        scene = Scene(
            history,
            goal,
            past if past.size else None,
            request.objective,
            SPACES[request.action_space],
        )
        age = (now - history[-1].stamp) / NANOSECONDS if history else float("nan")
        return scene, {"history_age_s": f"{age:.3f}", "goal_age_s": goal_age}

    def _candidates(self, request: Any, scorer: Scorer) -> Any:
        steps = 1 if request.action_space == request.MODEL else scorer.block
        return one_batch(
            convert.tensor_from_msg(request.candidates, "candidates"),
            self._max_candidates,
            self._max_blocks * steps,
        )

    def _goal_of(self, request: Any, now: int) -> tuple[ImageArray, str]:
        """The goal, and its age in seconds where the node itself received it."""
        if request.goal.height or request.goal.width or len(request.goal.data):
            return self._checked_goal(request.goal), "given"
        if self._goal is None:
            raise mismatch(
                ErrorCode.GOAL_MISSING,
                "goal",
                found="none in the request and none on topic goal_image",
                expected="a picture of the state to bring about",
            )
        goal, arrived = self._goal
        if not arrived:
            # It came before ROS time was heard on /clock: it is as old as that.
            arrived = now
            self._goal = goal, now
        age = (now - arrived) / NANOSECONDS
        if 0 < self._max_goal_age < age:
            raise mismatch(
                ErrorCode.GOAL_STALE,
                "goal",
                found=f"{age:.3f} s old",
                expected=f"at most {self._max_goal_age:.3f} s",
            )
        return goal, f"{age:.3f}"

    def _window(self, request: Any, scorer: Scorer, now: int) -> list[Observation]:
        if request.history:
            return [
                convert.observation_from_msg(message, self.embodiment)
                for message in request.history
            ]
        window = self._history.window(
            scorer.history,
            self.embodiment.scoring.block_duration,
            self.embodiment.observation.tolerance,
        )
        self._history.check_age(now, self.embodiment.observation.max_age)
        return window


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(ScoreNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
