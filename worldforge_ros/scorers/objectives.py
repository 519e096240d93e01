"""How two embeddings become a cost: what a candidate is predicted to end in, and the goal.

``l2`` (LeWorldModel's own: summed squared difference) and ``l1`` compare the embeddings as they
are. The others need a small file beside the weights: ``pose`` reads the block's corners with a
linear probe (mean distance in mm) and does not look at the pusher, ``scene`` reads corners and
pusher, ``steps`` is a learned estimate of the control steps from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Cost = Callable[[Tensor, Tensor], Tensor]
"""(S, D) predicted and (D,) goal embeddings to costs (S,), lower is better."""

PROBE_FILE = "pose_probe.safetensors"
STEPS_FILE = "steps_head.safetensors"
SCORE_TYPES = {
    "l2": "summed squared difference of embeddings",
    "l1": "summed absolute difference of embeddings",
    "pose": "mean distance of block corners in mm",
    "scene": "mean distance of block corners and pusher in mm",
    "steps": "expected control steps to the goal",
}
"""What the number of an objective is, for people."""
CORNERS = 8
PROBE_OUTPUTS = 2 * CORNERS + 2
"""Eight block corners and the pusher, (x, y) each, in decimetres from the workspace's centre."""
MM_PER_PROBE_UNIT = 100.0


def pose_probe(dim: int) -> nn.Linear:
    """Embedding (..., D) to :data:`PROBE_OUTPUTS` coordinates."""
    return nn.Linear(dim, PROBE_OUTPUTS)


class StepsHead(nn.Module):
    """Embeddings now and then (..., D) each to the expected number of control steps (...)."""

    def __init__(self, dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3 * dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
            nn.Softplus(),
        )

    def forward(self, now: Tensor, then: Tensor) -> Tensor:
        """Steps (...), 0 or more."""
        joined = torch.cat([now, then, now - then], dim=-1)
        steps: Tensor = self.net(joined)[..., 0]
        return steps


def l2(predicted: Tensor, goal: Tensor) -> Tensor:
    """Summed squared difference, ``LeWM.criterion`` of stable-worldmodel."""
    return (predicted - goal).square().sum(-1)


def l1(predicted: Tensor, goal: Tensor) -> Tensor:
    """Summed absolute difference."""
    return (predicted - goal).abs().sum(-1)


def costs(probe: nn.Module | None, steps: nn.Module | None) -> Mapping[str, Cost]:
    """The objectives of a checkpoint, by name."""
    found: dict[str, Cost] = {"l2": l2, "l1": l1}
    if probe is not None:
        found["pose"] = _points(probe, CORNERS)
        found["scene"] = _points(probe, CORNERS + 1)
    if steps is not None:
        found["steps"] = lambda predicted, goal: steps(predicted, goal.expand_as(predicted))
    return found


def _points(probe: nn.Module, count: int) -> Cost:
    def cost(predicted: Tensor, goal: Tensor) -> Tensor:
        offsets = (probe(predicted) - probe(goal)).unflatten(-1, (-1, 2))[..., :count, :]
        distance: Tensor = offsets.norm(dim=-1).mean(-1)
        return distance * MM_PER_PROBE_UNIT

    return cost
