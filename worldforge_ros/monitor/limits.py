"""How old what is heard may be: what the running nodes say, else what they start with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.planning.planner import PlannerSettings
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.watch import BEAT_LATE

ASKED: Mapping[str, tuple[str, ...]] = {
    "safety_gate": (
        "control_rate",
        "heartbeat_timeout",
        "heartbeats",
        "joint_state_timeout",
        "max_joint_state_age",
        "max_open_loop",
        "max_surprise",
        "surprise_timeout",
    ),
    "planner_node": ("propose_timeout", "score_timeout"),
}
"""Nodes and the parameters that limits are read from."""

CONTROL_RATE = 100.0
"""Hz of the gate's set-points unless it says another."""
LATE_PERIODS = 10.0
"""Periods of the gate without a set-point that are too many."""
SHORTEST = 0.25
"""Seconds; a shorter silence is not told from the time that listening takes."""


@dataclass(frozen=True)
class Limits:
    """Times in seconds.

    :param sensor_age: of pictures, and of an observation, from capture.
    :param joint_state_age: of joint states, from their stamp; ``joint_state_silence`` from receipt.
    :param open_loop: since a cycle or a chunk; then the robot holds.
    :param command_silence: between two set-points while the gate is armed.
    :param beats: nodes that the gate holds without; ``beat_silence`` is theirs.
    :param surprise: standardised, at most; None where the gate does not look at it.
    :param propose, score: deadlines of the planner.
    :param told_by: nodes that said so; all else is what a node starts with.
    """

    sensor_age: float
    joint_state_age: float
    joint_state_silence: float
    open_loop: float
    command_silence: float
    beats: tuple[str, ...]
    beat_silence: float
    surprise: float | None
    surprise_silence: float
    propose: float
    score: float
    told_by: tuple[str, ...] = ()


def limits_of(embodiment: Embodiment, told: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The limits for a robot.

    :param told: parameters by node, of those of :data:`ASKED` that answered.
    """
    gate, planner = told.get("safety_gate", {}), told.get("planner_node", {})
    config, settings = GateConfig(), PlannerSettings()

    def of_gate(name: str) -> float:
        return float(gate.get(name, getattr(config, name)))

    beats = tuple(item.strip() for item in str(gate.get("heartbeats", "")).split(","))
    rate = float(gate.get("control_rate", CONTROL_RATE))
    return Limits(
        sensor_age=embodiment.observation.max_age,
        joint_state_age=of_gate("max_joint_state_age"),
        joint_state_silence=max(of_gate("joint_state_timeout"), SHORTEST),
        open_loop=of_gate("max_open_loop"),
        command_silence=max(LATE_PERIODS / rate, SHORTEST),
        beats=tuple(name for name in beats if name),
        beat_silence=of_gate("heartbeat_timeout") if gate else BEAT_LATE,
        # The parameter says 0 for no check.
        surprise=float(gate.get("max_surprise", 0.0)) or None,
        surprise_silence=of_gate("surprise_timeout"),
        propose=float(planner.get("propose_timeout", settings.propose_timeout)),
        score=float(planner.get("score_timeout", settings.score_timeout)),
        told_by=tuple(sorted(told)),
    )
