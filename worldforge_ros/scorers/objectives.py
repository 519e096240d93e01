"""How two embeddings become a cost: what a candidate is predicted to end in, and the goal.

``l2`` (LeWorldModel's own: summed squared difference) and ``l1`` compare the embeddings as they
are. The others need a small file beside the weights. A linear probe reads points of the scene from
an embedding, and an objective is a weighted mean of distances in mm: which points there are and
what objectives compare is a :class:`Reading`, data of the checkpoint. ``steps`` is a learned
estimate of the control steps from one embedding to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

Cost = Callable[[Tensor, Tensor], Tensor]
"""(S, D) predicted and (D,) goal embeddings to costs (S,), lower is better."""

PROBE_FILE = "pose_probe.safetensors"
STEPS_FILE = "steps_head.safetensors"
_SCORE_TYPES = {
    "l2": "summed squared difference of embeddings",
    "l1": "summed absolute difference of embeddings",
    "steps": "expected control steps to the goal",
}


@dataclass(frozen=True)
class Term:
    """A distance in mm between two scenes, of ``weight`` in an objective.

    Of one point: how far it is from where it is in the other scene; with ``origin``, the same seen
    from that point. Of several points: how much nearer or farther the nearest of them is to
    ``origin``.
    """

    points: tuple[str, ...]
    origin: str = ""
    weight: float = 1.0

    def document(self) -> dict[str, Any]:
        """As an entry of an objective in ``preprocessing.json``."""
        origin = {"from": self.origin} if self.origin else {}
        return {"points": list(self.points), **origin, "weight": self.weight}

    def __str__(self) -> str:
        if len(self.points) > 1:
            return f"distance from {self.origin} to the nearest of {', '.join(self.points)}"
        return f"{self.points[0]} from {self.origin}" if self.origin else self.points[0]


@dataclass(frozen=True)
class Reading:
    """What the linear probe of a checkpoint reads, and how objectives compare it.

    ``points`` are names, in the probe's order, each of ``axes`` coordinates in units of ``unit_mm``
    mm. An objective is the weighted mean of its terms.
    """

    points: tuple[str, ...]
    axes: int
    unit_mm: float
    objectives: Mapping[str, tuple[Term, ...]]

    @property
    def outputs(self) -> int:
        """Numbers that the probe gives: all coordinates of point 0, then of point 1, ..."""
        return self.axes * len(self.points)

    def distance(self, objective: str, values: Tensor, goal: Tensor) -> Tensor:
        """Cost in mm (...) of readings (..., outputs) against that of the goal (outputs,)."""
        here = values.reshape(*values.shape[:-1], len(self.points), self.axes)
        there = goal.reshape(len(self.points), self.axes)
        terms = self.objectives[objective]
        plain = [term for term in terms if not term.origin]
        total = torch.zeros(values.shape[:-1], device=values.device)
        if plain:
            chosen = [self.points.index(term.points[0]) for term in plain]
            weights = torch.tensor([term.weight for term in plain], device=values.device)
            total = (here[..., chosen, :] - there[chosen]).norm(dim=-1) @ weights
        for term in terms:
            if term.origin:
                total = total + term.weight * self._from_origin(term, here, there)
        return total * (self.unit_mm / sum(term.weight for term in terms))

    def _from_origin(self, term: Term, here: Tensor, there: Tensor) -> Tensor:
        origin = self.points.index(term.origin)
        chosen = [self.points.index(name) for name in term.points]
        ways = here[..., chosen, :] - here[..., origin, None, :]
        wanted = there[chosen] - there[origin]
        gap: Tensor = (ways - wanted).norm(dim=-1)[..., 0]
        if len(chosen) > 1:
            gap = (ways.norm(dim=-1).amin(dim=-1) - wanted.norm(dim=-1).amin()).abs()
        return gap

    def document(self) -> dict[str, Any]:
        """As ``points`` of ``preprocessing.json``."""
        return {
            "names": list(self.points),
            "axes": self.axes,
            "unit_mm": self.unit_mm,
            "objectives": {
                name: [term.document() for term in terms] for name, terms in self.objectives.items()
            },
        }

    @classmethod
    def parse(cls, value: object) -> Reading:
        """The inverse of :meth:`document`.

        :raises WorldForgeError: ``CHECKPOINT_INVALID`` naming the entry that is wrong.
        """
        keys = ("names", "axes", "unit_mm", "objectives")
        if not isinstance(value, Mapping) or set(value) != set(keys):
            raise _invalid("", value, f"exactly {', '.join(keys)}")
        names, axes, unit = value["names"], value["axes"], value["unit_mm"]
        texts = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
        if not texts or not names or len(set(names)) != len(names):
            raise _invalid(".names", names, "a list of different names")
        if isinstance(axes, bool) or axes not in (2, 3):
            raise _invalid(".axes", axes, "2 or 3")
        if not _positive(unit):
            raise _invalid(".unit_mm", unit, "a number above 0")
        objectives = value["objectives"]
        if not isinstance(objectives, Mapping):
            raise _invalid(".objectives", objectives, "lists of terms by objective")
        found = {}
        for name, terms in objectives.items():
            where = f".objectives.{name}"
            if name in _SCORE_TYPES:
                raise _invalid(where, name, f"a name other than {', '.join(_SCORE_TYPES)}")
            if not isinstance(terms, list) or not terms:
                raise _invalid(where, terms, "a list of terms")
            found[name] = tuple(_term(term, names, where) for term in terms)
        return cls(tuple(names), axes, float(unit), found)


def _term(value: object, names: list[str], where: str) -> Term:
    if not isinstance(value, Mapping) or not {"points"} <= set(value) <= {
        "points",
        "from",
        "weight",
    }:
        raise _invalid(where, value, "terms with points and perhaps from and weight")
    points, origin, weight = value["points"], value.get("from", ""), value.get("weight", 1.0)
    known = isinstance(points, list) and points and all(point in names for point in points)
    if not known or (origin and origin not in names) or (len(points) > 1 and not origin):
        raise _invalid(
            where, value, f"points of {', '.join(names)}, several only with from, another of them"
        )
    if not _positive(weight):
        raise _invalid(where, weight, "a weight above 0")
    return Term(tuple(points), origin, float(weight))


_CORNERS = tuple(f"corner_{index}" for index in range(8))
PUSHT_READING = Reading(
    points=(*_CORNERS, "pusher"),
    axes=2,
    unit_mm=100.0,
    objectives={
        "pose": tuple(Term((name,)) for name in _CORNERS),
        "scene": tuple(Term((name,)) for name in (*_CORNERS, "pusher")),
    },
)
"""PushT's eight block corners and the pusher, from the workspace's centre; also what a checkpoint
that does not say otherwise reads."""


def score_type(objective: str, reading: Reading) -> str:
    """What the number of an objective is, for people."""
    if objective in _SCORE_TYPES:
        return _SCORE_TYPES[objective]
    terms = "; ".join(str(term) for term in reading.objectives[objective])
    return f"mean distance in mm of {terms}"


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(
        ErrorCode.CHECKPOINT_INVALID,
        f"preprocessing.points{field}",
        found=repr(found),
        expected=expected,
    )


def _positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


def pose_probe(dim: int, reading: Reading = PUSHT_READING) -> nn.Linear:
    """Embedding (..., D) to the coordinates of ``reading``, (..., outputs)."""
    return nn.Linear(dim, reading.outputs)


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


def costs(
    probe: nn.Module | None, steps: nn.Module | None, reading: Reading = PUSHT_READING
) -> Mapping[str, Cost]:
    """The objectives of a checkpoint, by name."""
    found: dict[str, Cost] = {"l2": l2, "l1": l1}
    if probe is not None:
        for name in reading.objectives:
            found[name] = _read(probe, reading, name)
    if steps is not None:
        found["steps"] = lambda predicted, goal: steps(predicted, goal.expand_as(predicted))
    return found


def _read(probe: nn.Module, reading: Reading, objective: str) -> Cost:
    return lambda predicted, goal: reading.distance(objective, probe(predicted), probe(goal))
