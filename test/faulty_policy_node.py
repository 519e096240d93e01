"""A policy node around a policy that fails in the way that the seed of a request says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from worldforge_ros.nodes.policy_node import PolicyNode
from worldforge_ros.policies.base import Policy
from worldforge_ros.policies.proposer import LeRobotPolicy, LoadedPolicy
from worldforge_ros.ros import runtime

NOT_FINITE, RAISES, WRONG_WIDTH = 1, 2, 3


class FaultyPolicy:
    """Random chunks of 4 actions; knows the seed that its generator was given."""

    config = SimpleNamespace(type="faulty", n_obs_steps=1, chunk_size=4, image_features={})

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def reset(self) -> None:
        return

    def predict_action_chunk(self, batch: dict[str, Any]) -> Any:
        count, seed = len(batch["observation.state"]), torch.initial_seed()
        if seed == RAISES:
            raise RuntimeError("out of ideas")
        chunk = 100.0 * torch.rand(count, 4, 3 if seed == WRONG_WIDTH else 2)
        if seed == NOT_FINITE:
            chunk[2, 1] = torch.nan
        return chunk


class FaultyPolicyNode(PolicyNode):
    """The real node with another policy in it."""

    def load(self) -> Policy:
        loaded = LoadedPolicy(FaultyPolicy(), dict, lambda chunk: chunk, "faulty")
        return LeRobotPolicy(loaded, self.embodiment, torch.device("cpu"))


if __name__ == "__main__":
    raise SystemExit(runtime.run(FaultyPolicyNode, None))
