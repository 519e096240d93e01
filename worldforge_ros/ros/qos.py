"""Quality-of-service profiles, one place for all nodes."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

CHUNK = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""Chunks, observations and commands: the newest wins."""

STOPS = tuple(
    QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=100,
        reliability=reliability,
        durability=durability,
    )
    for reliability, durability in (
        (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
    )
)
"""A protective stop is heard whoever says it: the first of these matches every publisher, the
second loses nothing of a reliable one, the third has what was said before. Deep enough that a
release does not push the press before it out of the queue.
"""

LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""Statuses and the goal picture: a late subscriber gets the last one."""

REPORT = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""Reports that a recorder wants all of."""

HEARTBEAT = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=10,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
"""Signs of life: a late one is worth nothing, so none is repeated."""


def sensor(reliability: str, depth: int = 5) -> QoSProfile:
    """Sensor topics; ``reliability`` is ``reliable`` or ``best_effort``."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy.VOLATILE,
    )


def recording(reliable: bool, latched: bool, depth: int) -> QoSProfile:
    """For a recorder, which wants every message of publishers that offer this."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
