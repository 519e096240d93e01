"""How strict the gate is, and what it does about each violation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.safety.reasons import ReasonCode


class Reaction(StrEnum):
    """What a violation leads to: the chunk is refused; mended and judged again; refused, and the
    robot holds; or refused, and the gate stops.
    """

    REJECT = "reject"
    CLAMP = "clamp"
    HOLD = "hold"
    LATCH = "latch"


CLAMPABLE = (
    ReasonCode.POSITION_LIMIT,
    ReasonCode.POSITION_MARGIN,
    ReasonCode.VELOCITY_LIMIT,
    ReasonCode.SEAM_COMMANDED,
    ReasonCode.SEAM_MEASURED,
)
"""Violations that a chunk can be mended of: its set-points are moved to where they are allowed."""

DEFAULT_REACTIONS: Mapping[ReasonCode, Reaction] = MappingProxyType(
    {ReasonCode.COST_TOO_HIGH: Reaction.HOLD, ReasonCode.MARGIN_TOO_SMALL: Reaction.HOLD}
)
"""All others are rejected."""

_ABOUT_THE_GATE = (
    ReasonCode.NOT_ARMED,
    ReasonCode.STOPPED,
    ReasonCode.EPOCH_MISMATCH,
    ReasonCode.JOINT_STATE_MISSING,
    ReasonCode.JOINT_STATE_STALE,
    ReasonCode.JOINT_STATE_INVALID,
    ReasonCode.JOINT_STATE_IN_FUTURE,
    ReasonCode.HEARTBEAT_LOST,
)
CHUNK_CODES = tuple(
    code
    for code in list(ReasonCode)[: list(ReasonCode).index(ReasonCode.LIMITS_INCOMPLETE)]
    if code not in (*_ABOUT_THE_GATE, ReasonCode.NO_PUBLISHER, ReasonCode.TOO_MANY_REJECTIONS)
)
"""Violations of a chunk, for which a reaction can be chosen."""


def parse_reactions(text: str) -> Mapping[ReasonCode, Reaction]:
    """Reactions of ``CODE=reaction, CODE=reaction``, over :data:`DEFAULT_REACTIONS`.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a code or a reaction that does not exist, and
        for ``clamp`` where nothing can be mended.
    """
    reactions = dict(DEFAULT_REACTIONS)
    for entry in (item.strip() for item in text.split(",") if item.strip()):
        name, _, word = (part.strip() for part in entry.partition("="))
        if name not in CHUNK_CODES:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "check_policies",
                found=f"'{entry}'",
                expected=f"CODE=policy with one of {', '.join(CHUNK_CODES)}",
            )
        if word not in list(Reaction):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"check_policies of {name}",
                found=f"'{word}'",
                expected=f"one of {', '.join(Reaction)}",
            )
        if word == Reaction.CLAMP and name not in CLAMPABLE:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"check_policies of {name}",
                found="clamp",
                expected=f"another policy; what can be clamped is {', '.join(CLAMPABLE)}",
            )
        reactions[ReasonCode(name)] = Reaction(word)
    return MappingProxyType(reactions)


@dataclass(frozen=True)
class GateConfig:
    """Times in seconds, speeds in m/s or rad/s, distances in m or rad; None switches a check off.

    - ``max_chunk_age``: now minus the chunk's stamp, at most, when it arrives. Independently of it
      a chunk must end in the future.
    - ``max_observation_age``: now minus the stamp of the observation behind the chunk, at most.
    - ``max_open_loop``: now minus that stamp while the chunk executes, at most.
    - ``future_tolerance``: how far stamps may lie ahead of now, and ROS time may step back.
    - ``joint_state_timeout``: silence of the joint states that stops an armed gate.
    - ``max_joint_state_age``: now minus their stamp, at most, and how far it may lie ahead.
    - ``arm_max_speed``: measured speed of every joint at arming, at most.
    - ``max_horizon``: actions of a chunk, at most.
    - ``min_step``, ``max_step``: seconds between two actions. The step decides how far a single
      set-point may jump: max_velocity * step; and below the least one the rounding of float32 would
      outweigh what an acceleration limit allows.
    - ``position_margin``: distance that set-points keep from the position limits.
    - ``stop_after_hold``: a hold for want of chunks that lasts this long becomes a stop.
    - ``max_tracking_error``: distance between set-point and measured position that stops.
    - ``measured_tolerance``: how far past a limit a joint may be measured before it is a fault.
    - ``max_chunk_rate``: chunks within one second, at most.
    - ``max_rejections`` within ``rejection_window``: so many stop the gate.
    - ``max_cost``, ``min_margin``: of the chunk; one without a cost fails both.
    - ``model_id``: what chunks must carry; empty accepts any.
    - ``allowed_sources``: accepted values of a chunk's source; empty accepts any.
    - ``heartbeats``: nodes that must beat within ``heartbeat_timeout``.
    - ``max_surprise``: standardised surprise of the world model, at most; ``surprise_timeout``:
      silence about it, and age of what it is about, at most.
    - ``protective_stop_lease``: silence of a publisher of the protective stop that counts as a
      stop; None: only its disappearance does.
    - ``protective_stop_required``: whether arming needs such a publisher.
    - ``reactions``: what to do about a violation; :attr:`Reaction.REJECT` where not listed.
    """

    max_chunk_age: float = 0.5
    max_observation_age: float = 1.0
    max_open_loop: float = 5.0
    future_tolerance: float = 0.2
    joint_state_timeout: float = 0.25
    max_joint_state_age: float = 0.5
    arm_max_speed: float = 0.05
    max_horizon: int = 512
    min_step: float = 0.005
    max_step: float = 0.25
    position_margin: float = 0.0
    stop_after_hold: float | None = 5.0
    max_tracking_error: float | None = None
    measured_tolerance: float = 0.01
    max_chunk_rate: float | None = 100.0
    max_rejections: int | None = 20
    rejection_window: float = 10.0
    max_cost: float | None = None
    min_margin: float | None = None
    model_id: str = ""
    allowed_sources: tuple[str, ...] = ()
    heartbeats: tuple[str, ...] = ()
    heartbeat_timeout: float = 1.0
    max_surprise: float | None = None
    surprise_timeout: float = 2.0
    protective_stop_lease: float | None = 0.5
    protective_stop_required: bool = False
    reactions: Mapping[ReasonCode, Reaction] = field(default_factory=lambda: DEFAULT_REACTIONS)

    def __post_init__(self) -> None:
        """Refuse a configuration that would switch a check off by accident.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the field.
        """
        may_be_zero = {
            "future_tolerance",
            "measured_tolerance",
            "arm_max_speed",
            "position_margin",
            "min_margin",
            "max_cost",
        }
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if (
                not math.isfinite(value)
                or value < 0
                or (value == 0 and item.name not in may_be_zero)
            ):
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"gate configuration {item.name}",
                    found=value,
                    expected="a finite number of 0 or more"
                    if item.name in may_be_zero
                    else "a finite number above 0",
                )

    def reaction(self, code: ReasonCode) -> Reaction:
        """What to do about a violation of ``code``."""
        return self.reactions.get(code, Reaction.REJECT)
