"""Subscriptions whose messages are checked as bytes first: size, then form, then the callback.

An ordinary rclpy subscription drops bytes that it cannot deserialise without a word, and takes
memory for whatever an array's length says before it finds the array cut short: some 50 bytes for
each byte of a message with a list of strings. Behind a cap on the size that is bounded, and what
is refused is seen and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

Message = TypeVar("Message")


def subscribe_raw(
    node: Node,
    message_type: type[Message],
    topic: str,
    callback: Callable[[Message], None],
    profile: QoSProfile,
    max_bytes: int,
    refused: Callable[[WorldForgeError], None],
) -> Subscription:
    """Subscribe ``topic`` and call ``callback`` with each message that is small and well-formed.

    :param max_bytes: most bytes of a serialised message, its encapsulation header included.
    :param refused: called instead of ``callback``, with ``MESSAGE_TOO_LARGE`` or
        ``MESSAGE_MALFORMED``; and with ``INTERNAL`` after an exception of ``callback``.

    Nothing that ``callback`` or ``refused`` raises reaches the executor: an exception of
    ``refused`` is logged, as there is nobody else left to tell.
    """
    logger = node.get_logger()

    def received(data: bytes) -> None:
        try:
            try:
                message = deserialize_capped(data, message_type, topic, max_bytes)
                callback(message)
            except WorldForgeError as error:
                refused(error)
            except Exception as error:
                internal = WorldForgeError(
                    ErrorCode.INTERNAL,
                    f"taking {topic} failed with {type(error).__name__}: {error}",
                )
                # Keeps the traceback for whoever reports it.
                internal.__cause__ = error
                refused(internal)
        except Exception as error:
            logger.error(
                f"{topic}: reporting a refused message failed with {type(error).__name__}: {error}",
                throttle_duration_sec=5.0,
            )

    return node.create_subscription(message_type, topic, received, profile, raw=True)


def deserialize_capped(
    data: bytes, message_type: type[Message], field: str, max_bytes: int
) -> Message:
    """The message in ``data``, which is read only when it is at most ``max_bytes`` long.

    :param field: what the sentence of an error calls the message.
    :raises WorldForgeError: ``MESSAGE_TOO_LARGE``; ``MESSAGE_MALFORMED`` when the bytes are no
        message of this type. Bytes after the message's end are not looked at.
    """
    if len(data) > max_bytes:
        raise mismatch(
            ErrorCode.MESSAGE_TOO_LARGE,
            field,
            found=f"a message of {len(data)} bytes",
            expected=f"at most {max_bytes}",
        )
    try:
        message: Any = deserialize_message(data, message_type)
    except Exception as error:
        raise mismatch(
            ErrorCode.MESSAGE_MALFORMED,
            field,
            found=f"{len(data)} bytes that cannot be deserialised",
            expected=f"those of {message_type.__name__}",
        ) from error
    result: Message = message
    return result
