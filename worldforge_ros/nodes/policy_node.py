"""A LeRobot policy behind ``propose_actions``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation, ObservationHistory, blank_window
from worldforge_ros.policies.base import MAX_CANDIDATES, Policy
from worldforge_ros.policies.settings import resolve
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.model_node import ModelNode
from worldforge_ros.srv import ProposeActions


class PolicyNode(ModelNode[Policy]):
    """Answers with candidates in SI units; keeps the observations of the last seconds itself."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        parameters = self.parameters
        given = {
            "policy_path": parameters.text(
                "policy_path",
                "",
                "folder of a LeRobot checkpoint, or a hub id; empty: LEROBOT_POLICY_PATH or "
                "LEROBOT_POLICY, else the shipped PushT policy",
            ),
            "policy_type": parameters.text(
                "policy_type",
                "",
                "LeRobot's name of the policy type; empty: LEROBOT_POLICY_TYPE, else what the "
                "checkpoint says",
            ),
            "device": parameters.text(
                "device", "", "torch device of the model; empty: LEROBOT_DEVICE, else cpu"
            ),
            "cache_dir": parameters.text(
                "cache_dir",
                "",
                "where the hub client keeps checkpoints; empty: LEROBOT_CACHE_DIR, else its own",
            ),
            "embodiment_tag": parameters.text(
                "embodiment_tag",
                "",
                "name that the embodiment file must have; empty: LEROBOT_EMBODIMENT_TAG, else any",
            ),
        }
        self._settings = resolve(given, os.environ)
        self._revision = parameters.text(
            "revision", "", "commit of a hub id, 40 hex digits; a hub id needs one"
        )
        self._inference_steps = parameters.integer(
            "num_inference_steps",
            0,
            "denoising or integration steps of a diffusion or flow policy; 0: the checkpoint's",
            minimum=0,
            maximum=1000,
        )
        self._noise_scheduler = parameters.text(
            "noise_scheduler",
            "",
            "how a diffusion policy denoises; empty: as the checkpoint says",
            ("", "DDIM", "DDPM"),
        )
        self._max_candidates = parameters.integer(
            "max_candidates",
            1024,
            "most candidates a request may ask for",
            minimum=1,
            maximum=MAX_CANDIDATES,
        )
        self._warmup_candidates = parameters.integer(
            "warmup_candidates",
            32,
            "candidates of the warm-up runs",
            minimum=1,
            maximum=MAX_CANDIDATES,
        )
        # As many as any policy looks at; pictures are large.
        self._history = ObservationHistory(duration=2.0 + 16 * self.embodiment.policy.step)
        self._goal = b""
        self._resets = 0
        self._reset_due = False
        self.create_subscription(ObservationMsg, "observation", self._on_observation, qos.CHUNK)
        self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.open_service(ProposeActions, "propose_actions", self._on_request)

    def load(self) -> Policy:
        """Load the checkpoint and run it until it is warm."""
        values = {name: setting.value for name, setting in self._settings.items()}
        for setting in self._settings.values():
            if setting.overridden:
                self.get_logger().warning(
                    f"{', '.join(setting.overridden)} is set but does not count: "
                    f"{setting.name} comes from {setting.source}"
                )
        self._check_tag(values["embodiment_tag"], self._settings["embodiment_tag"].source)
        from worldforge_ros.policies.lerobot import load_lerobot_policy

        policy = load_lerobot_policy(
            values["policy_path"],
            self.embodiment,
            values["device"],
            self.num_threads,
            policy_type=values["policy_type"],
            revision=self._revision,
            cache_dir=values["cache_dir"],
            num_inference_steps=self._inference_steps,
            noise_scheduler=self._noise_scheduler,
        )
        window = blank_window(self.embodiment, policy.history, self.embodiment.policy.step)
        policy.warm_up(window, self._warmup_candidates)
        return policy

    def _on_observation(self, message: ObservationMsg) -> None:
        try:
            self._history.add(convert.observation_from_msg(message, self.embodiment))
        except Exception as error:
            self.diagnostics.unexpected(error, "reading an observation")

    def _on_goal(self, message: Image) -> None:
        goal = hashlib.sha256(message.data).digest()
        if goal != self._goal:
            self._goal = goal
            self._reset_due = True

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._history.clear()
        self._reset_due = True
        response.success = True
        response.message = "observations forgotten; the policy begins anew with the next request"
        return response

    async def _on_request(
        self, request: ProposeActions.Request, response: ProposeActions.Response
    ) -> ProposeActions.Response:
        def prepare(policy: Policy) -> Callable[[], None]:
            options = self._check(request)
            window = self._window(request.history, policy)
            return lambda: propose(policy, window, options)

        def propose(policy: Policy, window: list[Observation], options: dict[str, str]) -> None:
            if self._reset_due:
                policy.reset()
                self._reset_due = False
                self._resets += 1
            proposal = policy.propose(
                window,
                int(request.num_candidates),
                int(request.horizon),
                int(request.seed),
                request.mode,
                options,
            )
            response.candidates = convert.tensor_to_msg(proposal.candidates[np.newaxis])
            response.joint_names = list(proposal.joint_names)
            response.step = convert.seconds_to_duration(proposal.step)
            response.metadata = convert.key_values(
                {**proposal.metadata, "resets": str(self._resets)}
            )

        return await self.answer(response, prepare)

    def _check(self, request: ProposeActions.Request) -> dict[str, str]:
        if not 1 <= request.num_candidates <= self._max_candidates:
            raise mismatch(
                ErrorCode.TOO_MANY_CANDIDATES
                if request.num_candidates
                else ErrorCode.NO_CANDIDATES,
                "num_candidates",
                found=request.num_candidates,
                expected=f"1 to {self._max_candidates}",
            )
        self._check_tag(request.embodiment_tag, "the request")
        return convert.from_key_values(request.options, "options")

    def _check_tag(self, tag: str, source: str) -> None:
        if tag not in ("", self.embodiment.name):
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"embodiment_tag of {source}",
                found=f"'{tag}'",
                expected=f"'{self.embodiment.name}'",
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
