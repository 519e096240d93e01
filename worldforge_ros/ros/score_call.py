"""One call of a running ``score_candidates`` service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation
from worldforge_ros.ros import convert, qos
from worldforge_ros.scorers.contract import ActionSpace
from worldforge_ros.srv import ScoreCandidates

if TYPE_CHECKING:
    from worldforge_ros.evaluation.score_command import Question


@dataclass(frozen=True, eq=False)
class Reply:
    """Costs (S,), latency in seconds from request to reply, and the observation: the one that was
    sent, or for the node's own the newest that was heard before the request; None for none.
    """

    costs: npt.NDArray[np.float32]
    metadata: Mapping[str, str]
    latency: float
    seen: Observation | None


def score_live(question: Question, embodiment: Embodiment, namespace: str, timeout: float) -> Reply:
    """Ask the score node in ``namespace`` and wait at most ``timeout`` seconds.

    :raises WorldForgeError: ``INVALID_ARGUMENT``, ``SCORE_UNAVAILABLE`` without a service,
        ``SCORE_DEADLINE_MISSED``, and the code that the node answers with.
    """
    if not 0.0 < timeout <= 3600.0:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--timeout",
            found=timeout,
            expected="seconds above 0, at most 3600",
        )
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    try:
        node = Node("worldforge_score", context=context, namespace="/" + namespace.strip("/"))
        executor.add_node(node)
        return _call(node, executor, question, embodiment, timeout)
    finally:
        executor.shutdown()
        rclpy.try_shutdown(context=context)


def _call(
    node: Node,
    executor: SingleThreadedExecutor,
    question: Question,
    embodiment: Embodiment,
    timeout: float,
) -> Reply:
    deadline = time.monotonic() + timeout
    seen: list[Observation] = []
    client = node.create_client(ScoreCandidates, "score_candidates")
    if question.history:
        seen.append(question.history[-1])
    else:
        # What the node has itself can only be guessed at: it hears the same topic.
        node.create_subscription(
            ObservationMsg,
            "observation",
            lambda message: seen.append(convert.observation_from_msg(message, embodiment)),
            qos.CHUNK,
        )

    def wait(until: Callable[[], bool]) -> bool:
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            executor.spin_once(timeout_sec=min(left, 0.1))
        return True

    if not wait(client.service_is_ready):
        raise mismatch(
            ErrorCode.SCORE_UNAVAILABLE,
            f"service {client.service_name}",
            found=f"absent for {timeout:g} s",
            expected="a running score_node, in the same ROS_DOMAIN_ID and namespace",
        )
    wait(lambda: bool(seen))
    shown = seen[-1] if seen else None
    began = time.monotonic()
    future = client.call_async(_request(question, embodiment))
    if not wait(future.done):
        raise mismatch(
            ErrorCode.SCORE_DEADLINE_MISSED,
            f"reply of {client.service_name}",
            found=f"absent after {time.monotonic() - began:.3f} s",
            expected=f"within {timeout:g} s in all",
        )
    latency = time.monotonic() - began
    response = future.result()
    if not response.success:
        known = response.error_code in ErrorCode.__members__
        code = ErrorCode(response.error_code) if known else ErrorCode.INTERNAL
        raise WorldForgeError(code, response.message)
    metadata = convert.from_key_values(response.metadata, "metadata")
    return Reply(np.asarray(response.scores, np.float32), metadata, latency, shown)


def _request(question: Question, embodiment: Embodiment) -> ScoreCandidates.Request:
    request = ScoreCandidates.Request(
        history=[convert.observation_to_msg(o, embodiment, "base") for o in question.history],
        candidates=convert.tensor_to_msg(question.candidates[np.newaxis]),
        action_space=ScoreCandidates.Request.MODEL
        if question.space is ActionSpace.MODEL
        else ScoreCandidates.Request.EMBODIMENT,
        objective=question.objective,
    )
    if question.goal is not None:
        request.goal = convert.image_to_msg(question.goal, 0, embodiment.scoring.camera)
    if question.action_history is not None:
        request.action_history = convert.tensor_to_msg(question.action_history)
    return request
