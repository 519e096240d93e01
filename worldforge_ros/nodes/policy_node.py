"""A LeRobot policy behind ``propose_actions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation, ObservationHistory, blank_window
from worldforge_ros.policies.base import Policy
from worldforge_ros.resources import resolve_path
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.model_node import ModelNode
from worldforge_ros.srv import ProposeActions


class PolicyNode(ModelNode[Policy]):
    """Answers with candidates in SI units; keeps the observations of the last seconds itself."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        self._path = self.parameters.text(
            "policy_path",
            "package://worldforge_ros/models/pusht/policy",
            "folder of a LeRobot checkpoint",
        )
        self._device = self.parameters.text("device", "cpu", "torch device of the model")
        self._max_candidates = self.parameters.integer(
            "max_candidates",
            1024,
            "most candidates a request may ask for",
            minimum=1,
            maximum=65536,
        )
        self._warmup_candidates = self.parameters.integer(
            "warmup_candidates", 32, "candidates of the warm-up runs", minimum=1, maximum=65536
        )
        self._history = ObservationHistory(duration=10.0)
        self.create_subscription(ObservationMsg, "observation", self._on_observation, qos.CHUNK)
        self.open_service(ProposeActions, "propose_actions", self._on_request)

    def load(self) -> Policy:
        """Load the checkpoint and run it until it is warm."""
        from worldforge_ros.policies.lerobot import load_lerobot_policy

        policy = load_lerobot_policy(
            resolve_path(self._path), self.embodiment, self._device, self.num_threads
        )
        window = blank_window(self.embodiment, policy.history, self.embodiment.policy.step)
        try:
            policy.propose(window, self._warmup_candidates, seed=0)
        except WorldForgeError as error:
            if error.code is not ErrorCode.DETERMINISTIC_POLICY:
                raise
            self._warmup_candidates = 1
        for _ in range(2):
            policy.propose(window, self._warmup_candidates, seed=0)
        return policy

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            self._history.add(convert.observation_from_msg(message, self.embodiment))
        except Exception as error:
            self.diagnostics.unexpected(error, "reading an observation")

    async def _on_request(
        self, request: ProposeActions.Request, response: ProposeActions.Response
    ) -> ProposeActions.Response:
        def prepare(policy: Policy) -> Callable[[], None]:
            self._check(request)
            window = self._window(request.history, policy)
            return lambda: propose(policy, window)

        def propose(policy: Policy, window: list[Observation]) -> None:
            proposal = policy.propose(
                window, int(request.num_candidates), int(request.horizon), int(request.seed)
            )
            response.candidates = convert.tensor_to_msg(proposal.candidates[np.newaxis])
            response.joint_names = list(proposal.joint_names)
            response.step = convert.seconds_to_duration(proposal.step)
            response.metadata = convert.key_values(proposal.metadata)

        return await self.answer(response, prepare)

    def _check(self, request: ProposeActions.Request) -> None:
        if not 1 <= request.num_candidates <= self._max_candidates:
            raise mismatch(
                ErrorCode.TOO_MANY_CANDIDATES
                if request.num_candidates
                else ErrorCode.NO_CANDIDATES,
                "num_candidates",
                found=request.num_candidates,
                expected=f"1 to {self._max_candidates}",
            )
        if request.mode not in ("", "predict_chunk"):
            raise mismatch(
                ErrorCode.POLICY_MODE_UNSUPPORTED,
                "mode",
                found=f"'{request.mode}'",
                expected="predict_chunk",
            )
        if request.embodiment_tag not in ("", self.embodiment.name):
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                "embodiment_tag",
                found=f"'{request.embodiment_tag}'",
                expected=f"'{self.embodiment.name}'",
            )
        if request.seed < -1:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "seed", found=request.seed, expected="-1 or more"
            )
        for key in convert.from_key_values(request.options, "options"):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, "options", found=f"key '{key}'", expected="no options"
            )

    def _window(self, messages: Sequence[Any], policy: Policy) -> list[Observation]:
        if messages:
            return [convert.observation_from_msg(message, self.embodiment) for message in messages]
        window = self._history.window(
            policy.history, self.embodiment.policy.step, self.embodiment.observation.tolerance
        )
        self._history.check_age(
            self.get_clock().now().nanoseconds, self.embodiment.observation.max_age
        )
        return window


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(PolicyNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
