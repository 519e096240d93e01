"""Subscriptions of a recorder: every topic is waited for, so that it is heard with the quality of
service that its publishers offer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rclpy.event_handler import (
    QoSMessageLostInfo,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from worldforge_ros.bags.names import PICTURES, Offer, TopicName, TopicQuality, agreed
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.ros import qos

LOOK_PERIOD = 0.1
"""Seconds between two looks for publishers."""
DEPTH, PICTURE_DEPTH = 2000, 30
"""Messages of a topic that wait for this process: seconds of them, as far as memory allows. What is
pushed out here is the one loss that no middleware counts."""


@dataclass
class _Listening:
    """One subscription: of which of the wanted types, and with which quality."""

    what: TopicName
    quality: TopicQuality
    subscription: Subscription


class Listener:
    """Subscribes to each of some topics once somebody publishes it.

    ``received(topic, what, message, info)`` gets each message with rclpy's message info, as bytes
    where ``raw``; ``lost(topic, count)`` gets what the middleware lost. ``declared(topic, what,
    quality)`` comes before the first message of a subscription.
    """

    def __init__(
        self,
        node: Node,
        wanted: Iterable[TopicName],
        received: Callable[[str, TopicName, Any, Any], None],
        lost: Callable[[str, int], None],
        *,
        declared: Callable[[str, TopicName, TopicQuality], None] | None = None,
        raw: bool = False,
    ) -> None:
        self._node = node
        self._received = received
        self._lost = lost
        self._declared = declared
        self._raw = raw
        self._wanted: dict[str, list[TopicName]] = {}
        for topic in wanted:
            # Remapped, several names may be one topic.
            self._wanted.setdefault(node.resolve_topic_name(topic.name), []).append(topic)
        self._listening: dict[str, _Listening] = {}
        self._publishers: dict[str, tuple[str, ...]] = {}
        self._problems: Mapping[str, WorldForgeError] = {}

    @property
    def hears(self) -> bool:
        """Whether any of them has a publisher."""
        return bool(self._listening)

    @property
    def silence(self) -> WorldForgeError:
        """What to say while none of them has."""
        return mismatch(
            ErrorCode.TOPIC_MISSING,
            "what there is to record",
            found="nothing yet",
            expected=f"a publisher of {', '.join(self._wanted)}",
        )

    @property
    def problems(self) -> Mapping[str, WorldForgeError]:
        """Why a topic could not be listened to at the last look, by topic."""
        return self._problems

    def publishers(self, topic: str) -> tuple[str, ...]:
        """Full names of the nodes that published ``topic`` at the last look."""
        return self._publishers.get(topic, ())

    def type_of(self, topic: str) -> TopicName:
        """What is listened to on ``topic``, else the first that is wanted of it."""
        known = self._listening.get(topic)
        return self._wanted[topic][0] if known is None else known.what

    def look(self) -> WorldForgeError | None:
        """Listen to what has come since the last look; the first thing that is wrong, if any."""
        found = {topic: self._listen(topic) for topic in self._wanted}
        self._problems = {topic: error for topic, error in found.items() if error is not None}
        return next(iter(self._problems.values()), None)

    def take(self, most: int = DEPTH) -> None:
        """Hand on what has arrived, in a node that no executor spins: an executor's turn for each
        message costs many times more than the message.

        :param most: messages of a topic in one call, so that no flood keeps it from returning.
        """
        for topic, listening in self._listening.items():
            subscription = listening.subscription
            with subscription.handle:
                for _ in range(most):
                    taken = subscription.handle.take_message(
                        subscription.msg_type, subscription.raw
                    )
                    if taken is None:
                        break
                    self._received(topic, listening.what, *taken)

    def _listen(self, topic: str) -> WorldForgeError | None:
        """Subscribe once there is a publisher, and again where another one offers less."""
        publishers = self._node.get_publishers_info_by_topic(topic)
        self._publishers[topic] = tuple(
            f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in publishers
        )
        offers = [Offer(info.topic_type, _quality(info.qos_profile)) for info in publishers]
        try:
            found = agreed(topic, self._wanted[topic], offers)
        except WorldForgeError as error:
            return error
        if found is None:
            return None
        what, quality = found
        known = self._listening.get(topic)
        if known is not None:
            if known.what != what or quality.reliable or not known.quality.reliable:
                return None
            self._node.destroy_subscription(known.subscription)
        if self._declared is not None:
            self._declared(topic, what, quality)
        self._listening[topic] = _Listening(what, quality, self._subscribe(topic, what, quality))
        return None

    def _subscribe(self, topic: str, what: TopicName, quality: TopicQuality) -> Subscription:
        depth = PICTURE_DEPTH if what.type in PICTURES else DEPTH
        arguments: tuple[type[Any], str, Callable[[Any, Any], None], QoSProfile] = (
            message_class(what.type),
            topic,
            partial(self._received, topic, what),
            qos.recording(quality.reliable, quality.latched, depth),
        )
        lost = SubscriptionEventCallbacks(message_lost=partial(self._on_lost, topic))
        try:
            return self._node.create_subscription(*arguments, raw=self._raw, event_callbacks=lost)
        except UnsupportedEventTypeError:
            return self._node.create_subscription(*arguments, raw=self._raw)

    def _on_lost(self, topic: str, event: QoSMessageLostInfo) -> None:
        self._lost(topic, event.total_count_change)


def _quality(profile: QoSProfile) -> TopicQuality:
    return TopicQuality(
        profile.reliability == ReliabilityPolicy.RELIABLE,
        profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
    )


def message_class(type_name: str) -> type[Any]:
    """The message class of ``package/msg/Name``."""
    package, _, name = type_name.partition("/msg/")
    found: type[Any] = getattr(importlib.import_module(f"{package}.msg"), name)
    return found
