"""Write a rosbag2 folder: one MCAP file and ``metadata.yaml``, as ``ros2 bag`` from Jazzy on reads.

Chunks are written out often, so that little is lost when the process is killed: then there is no
``metadata.yaml`` and the file has no index at its end, but every chunk that was written out is
whole, with the message definitions in the first one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import yaml

from worldforge_ros.bags.names import TopicQuality
from worldforge_ros.bags.types import references
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.resources import PACKAGE, share_dir

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos

METADATA_VERSION: Literal[9] = 9
"""Of ``metadata.yaml``: Jazzy and later read it."""
FLUSH_PERIOD = 1.0
"""Seconds after which a chunk is written out though it is small; what a kill can cost."""
COMPRESSIONS = ("zstd", "none")

_FOREVER = (9223372036, 854775807)
"""Seconds and nanoseconds that ROS writes for an infinite duration."""


class BagWriter:
    """One bag that grows; not for several threads at once.

    A topic has one type. Receive times need not be in order, readers sort; a chunk holds about a
    second, and the closer to order, the less they have to hold.
    """

    def __init__(self, path: Path | str, compression: str = "zstd") -> None:
        """:param path: folder to make; its name is the bag's.
        :param compression: of the chunks: ``zstd`` or ``none``.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` when the path exists or cannot be made, or for
            an unknown compression.
        """
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

        if compression not in COMPRESSIONS:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "compression",
                found=repr(compression),
                expected=f"one of {', '.join(COMPRESSIONS)}",
            )
        self.path = Path(path)
        check_free(self.path)
        self._writer = Writer(
            self.path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP
        )
        if compression == "zstd":
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
        except OSError as error:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"bag folder {self.path}",
                found=f"one that cannot be made ({error})",
                expected="a folder that can be written",
            ) from error
        # rosbags writes a chunk out at 1 MiB only; that storage is its public plug-in class.
        self._storage: Any = self._writer.storage
        self._connections: dict[str, Connection] = {}
        self._flushed = time.monotonic()
        self._closed = False
        self.messages = 0

    @property
    def size_bytes(self) -> int:
        """Bytes in the file and, not yet compressed, in the chunk that is pending."""
        pending = 0 if self._closed else self._storage.chunk.bio.tell()
        return int(self._storage.path.stat().st_size + pending)

    @property
    def counts(self) -> dict[str, int]:
        """Messages by topic."""
        return {
            topic: self._writer.counts[connection.id]
            for topic, connection in self._connections.items()
        }

    def declare(self, topic: str, type_name: str, quality: TopicQuality | None = None) -> None:
        """Add a topic, which may stay without a message.

        :param type_name: such as ``sensor_msgs/msg/Image``.
        :param quality: what a player offers when it plays the topic; reliable and not latched when
            None.
        :raises WorldForgeError: ``TOPIC_TYPE_MISMATCH`` when it was added with another type, or
            when nothing here knows the type.
        """
        known = self._connections.get(topic)
        if known is not None:
            if known.msgtype != type_name:
                raise mismatch(
                    ErrorCode.TOPIC_TYPE_MISMATCH,
                    f"topic {topic}",
                    found=type_name,
                    expected=f"{known.msgtype}, as before",
                )
            return
        text, digest = definition(type_name)
        self._connections[topic] = self._writer.add_connection(
            topic,
            type_name,
            msgdef=text,
            rihs01=digest,
            offered_qos_profiles=[_profile(quality or TopicQuality())],
        )

    def add(self, topic: str, type_name: str, received_ns: int, data: bytes | memoryview) -> None:
        """Append one message.

        :param data: CDR with its encapsulation header, as it came over the wire.
        :raises WorldForgeError: as :meth:`declare`.
        """
        self.declare(topic, type_name)
        self._writer.write(self._connections[topic], received_ns, data)
        self.messages += 1
        self.flush_when_due()

    def flush_when_due(self) -> None:
        """Write out what is pending when that was not done for :data:`FLUSH_PERIOD`; for whoever
        adds nothing for a while.
        """
        if time.monotonic() - self._flushed >= FLUSH_PERIOD:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending: it survives the end of this process, not of the machine."""
        if self._storage.chunk.bio.tell():
            self._storage.close_chunk()
        self._storage.bio.flush()
        self._flushed = time.monotonic()

    def close(self, notes: Mapping[str, str] | None = None) -> None:
        """Write index and ``metadata.yaml``; a second call does nothing.

        :param notes: what the bag is to say about itself, the ``custom_data`` of the metadata.
        """
        if self._closed:
            return
        self._closed = True
        for key, value in (notes or {}).items():
            self._writer.set_custom_data(key, value)
        if not self.messages:
            # rosbags would write the largest number there is.
            self._writer.min_timestamp = 0
        self._writer.close()

    def abort(self) -> None:
        """Let go of the file as it is, without index and ``metadata.yaml``."""
        if not self._closed:
            self._closed = True
            self._writer.abort()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error too: what came before it is worth having, and readable.
        self.close()


def read_notes(path: Path) -> dict[str, str]:
    """What a bag folder says about itself; empty where it was not closed."""
    try:
        text = (path / "metadata.yaml").read_text(encoding="utf-8")
        found = yaml.safe_load(text)["rosbag2_bagfile_information"]["custom_data"] or {}
        return {str(key): str(value) for key, value in found.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def check_free(path: Path) -> None:
    """Refuse a path that exists: a recording never replaces another one.

    :raises WorldForgeError: ``INVALID_ARGUMENT``.
    """
    if path.exists() or path.is_symlink():
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"bag folder {path}",
            found="there already",
            expected="a path that does not exist: a bag is never overwritten",
        )


def _profile(quality: TopicQuality) -> Qos:
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    forever = QosTime(*_FOREVER)
    # History is not known of a publisher, it does not travel; rosbag2 writes the same.
    return Qos(
        QosHistory.UNKNOWN,
        0,
        QosReliability.RELIABLE if quality.reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if quality.latched else QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


def definition(type_name: str) -> tuple[str, str]:
    """Definition of a message type with those of its fields, and its hash by REP 2016.

    The text is that of the installed ``.msg`` files, comments and units included; where those are
    not installed, it is made from the types that ``rosbags`` knows.

    :raises WorldForgeError: ``TOPIC_TYPE_MISMATCH`` when neither knows the type.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    texts: dict[str, str] = {}
    parsed: dict[str, Any] = {}
    waiting = [type_name]
    while waiting:
        name = waiting.pop(0)
        if name in texts:
            continue
        text = _installed(name)
        if text is None:
            return _generated(type_name)
        texts[name] = text
        found = get_types_from_msg(text, name)
        parsed.update(found)
        waiting += [item for _, fields in found.values() for item in references(fields)]
    store = get_typestore(Stores.EMPTY)
    store.register(parsed)
    own, *others = texts.items()
    parts = [own[1].rstrip("\n")]
    parts += [
        f"{'=' * 80}\nMSG: {name.replace('/msg/', '/')}\n{text.rstrip()}" for name, text in others
    ]
    return "\n".join(parts) + "\n", str(store.hash_rihs01(type_name))


def _generated(type_name: str) -> tuple[str, str]:
    from worldforge_ros.bags.types import typestore

    store = typestore()
    if type_name not in store.fielddefs:
        raise mismatch(
            ErrorCode.TOPIC_TYPE_MISMATCH,
            f"message type {type_name}",
            found="neither installed here nor a standard one",
            expected="a type whose .msg file is in the share folder of its package",
        )
    text, _ = store.generate_msgdef(type_name, ros_version=2)
    return str(text), str(store.hash_rihs01(type_name))


def _installed(type_name: str) -> str | None:
    """Text of the ``.msg`` file of a type, from the first prefix that has it."""
    package, _, name = type_name.replace("/msg/", "/").partition("/")
    folders = [Path(p) / "share" / package for p in _prefixes()]
    if package == PACKAGE:
        folders.insert(0, share_dir())
    for folder in folders:
        file = folder / "msg" / f"{name}.msg"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def _prefixes() -> list[str]:
    return [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
