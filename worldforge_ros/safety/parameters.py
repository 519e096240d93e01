"""The gate's configuration as ROS parameters, changeable while the gate is not armed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from worldforge_ros.parameters import ParameterReader
from worldforge_ros.safety.config import GateConfig, parse_reactions

_DEFAULT = GateConfig()
_OFF = "; 0: no check"

_SECONDS: Mapping[str, str] = {
    "max_chunk_age": "seconds since a chunk's first action was due",
    "max_observation_age": "seconds since the observation behind a chunk was captured",
    "max_open_loop": "seconds since that observation of an executing chunk; then the robot holds",
    "joint_state_timeout": "seconds without a joint state that stop an armed gate",
    "max_joint_state_age": "seconds between the stamp of a joint state and now, either way",
    "min_step": "seconds between two actions, at least",
    "max_step": "seconds between two actions, at most",
    "rejection_window": "seconds in which max_rejections stop the gate",
    "heartbeat_timeout": "seconds of silence of a node of heartbeats that make the robot hold",
    "surprise_timeout": "seconds of silence on surprise_topic, and age of what is heard there, "
    "that make the robot hold where max_surprise is set",
}
_SECONDS_OR_ZERO: Mapping[str, str] = {
    "future_tolerance": "seconds that stamps may lie in the future",
    "stop_after_hold": "seconds of holding for want of chunks that stop the gate; 0: never",
    "protective_stop_lease": "seconds of silence of protective_stop that count as a stop, once a "
    "publisher was heard; 0: only its disappearance does",
}
_NUMBERS: Mapping[str, str] = {
    "arm_max_speed": "m/s or rad/s of any joint at arming, at most",
    "position_margin": "m or rad that set-points keep from the position limits",
    "max_tracking_error": f"m or rad between set-point and measured position that stops{_OFF}",
    "measured_tolerance": "m or rad that a joint may be measured outside its limits before the "
    "gate stops",
    "max_chunk_rate": f"chunks within a second, at most{_OFF}",
    "max_cost": f"cost of a chunk, at most; above it the robot holds{_OFF}",
    "max_surprise": "standardised surprise of the world model, at most; above it the robot holds"
    f"{_OFF}",
    "min_margin": f"cost of the runner-up minus cost, at least; below it the robot holds{_OFF}",
}
_COUNTS: Mapping[str, tuple[str, int]] = {
    "max_horizon": ("actions in a chunk", 1),
    "max_rejections": (f"chunks refused within rejection_window that stop the gate{_OFF}", 0),
}
_TEXTS: Mapping[str, str] = {
    "model_id": "what chunks must carry as model_id; empty: any",
    "allowed_sources": "sources of chunks to accept, comma-separated; empty: any",
    "heartbeats": "nodes that must beat on heartbeat, comma-separated; empty: none",
    "check_policies": "CODE=policy, comma-separated; policy is reject, clamp, hold or latch",
}
_OPTIONAL = (
    "stop_after_hold",
    "protective_stop_lease",
    "max_tracking_error",
    "max_chunk_rate",
    "max_rejections",
    "max_cost",
    "min_margin",
    "max_surprise",
)


class Change(Protocol):
    """A parameter's new value, as ``rclpy.parameter.Parameter`` has it."""

    @property
    def name(self) -> str:
        """Name of the parameter."""

    @property
    def value(self) -> Any:
        """What it is to become."""


def declare(parameters: ParameterReader) -> GateConfig:
    """Declare all parameters of the configuration and read it.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the parameter.
    """
    values: dict[str, Any] = {}
    for name, description in {**_SECONDS, **_SECONDS_OR_ZERO}.items():
        values[name] = parameters.number(
            name,
            _default(name),
            description,
            minimum=0.0 if name in _SECONDS_OR_ZERO else 0.001,
            maximum=600.0,
        )
    for name, description in _NUMBERS.items():
        values[name] = parameters.number(
            name, _default(name), description, minimum=0.0, maximum=1e6
        )
    for name, (description, minimum) in _COUNTS.items():
        values[name] = parameters.integer(
            name, int(_default(name)), description, minimum=minimum, maximum=65536
        )
    for name, description in _TEXTS.items():
        values[name] = parameters.text(name, "", description)
    values["protective_stop_required"] = parameters.flag(
        "protective_stop_required",
        _DEFAULT.protective_stop_required,
        "whether arming needs a publisher of protective_stop",
    )
    return _config(values)


def changed(config: GateConfig, changes: Sequence[Change], check_policies: str) -> GateConfig:
    """``config`` with ``changes``; ``check_policies`` is the present value of that parameter.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the parameter.
    """
    values: dict[str, Any] = {name: getattr(config, name) for name in _names() - {"check_policies"}}
    for name in ("allowed_sources", "heartbeats"):
        values[name] = ",".join(values[name])
    values["check_policies"] = check_policies
    values.update({change.name: change.value for change in changes if change.name in _names()})
    return _config(values)


def concerns(changes: Sequence[Change]) -> bool:
    """Whether one of ``changes`` is about the configuration."""
    return any(change.name in _names() for change in changes)


def _names() -> set[str]:
    tables: tuple[Mapping[str, object], ...] = (
        _SECONDS,
        _SECONDS_OR_ZERO,
        _NUMBERS,
        _COUNTS,
        _TEXTS,
    )
    return {"protective_stop_required", *(name for table in tables for name in table)}


def _default(name: str) -> float:
    value = getattr(_DEFAULT, name)
    return 0.0 if value is None else float(value)


def _config(values: Mapping[str, Any]) -> GateConfig:
    fields = dict(values)
    for name in _OPTIONAL:
        fields[name] = fields[name] or None
    for name in ("allowed_sources", "heartbeats"):
        fields[name] = tuple(item.strip() for item in fields[name].split(",") if item.strip())
    reactions = parse_reactions(fields.pop("check_policies"))
    return GateConfig(**fields, reactions=reactions)
