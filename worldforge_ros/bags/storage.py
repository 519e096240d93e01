"""Files of a bag as channels and serialised messages: whole ones through ``rosbags``, damaged ones
by reading from the front for as long as they make sense.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote

import numpy as np

MAGIC = b"\x89MCAP0\r\n"

MOST_TOPICS = 10_000
"""Topics of a damaged sqlite3 file that are looked at: its tables may be without end."""

_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _DATA_END, _FOOTER = 3, 4, 5, 6, 7, 15, 2
_INDEX_HEAD = 15
_INDEX_ENTRY = np.dtype([("time", "<u8"), ("offset", "<u8")])
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_CHUNK_HEAD = struct.Struct("<QQQI")


@dataclass(frozen=True)
class Channel:
    """One topic with one type; ``form`` is ``ros2msg``, ``ros2idl`` or empty without a
    definition.
    """

    topic: str
    type: str
    definition: str
    form: str
    count: int = 0


Raw = tuple[Channel, int, bytes]
"""A channel, the time of receipt in ns, and the message as CDR."""


class Storage(Protocol):
    """What holds messages. ``start`` and ``end`` are the receive times of the first and the last
    one in ns, 0 without any; ``damage`` says what is wrong, in words, and is empty when nothing is.
    """

    channels: list[Channel]
    start: int
    end: int
    distro: str
    damage: str

    def set_back(self) -> int:
        """How far the receive times go back at the most, in ns, in the order in which the messages
        were written.
        """
        ...

    def messages(self, topics: Collection[str]) -> Iterator[Raw]:
        """Messages of these topics, in order of receive time as far as the file has it."""
        ...

    def close(self) -> None:
        """Give the files back."""
        ...


class WholeBag:
    """A bag folder or a storage file with an intact index.

    :raises Exception: whatever ``rosbags`` and the decoders below it raise for a damaged one.
    """

    def __init__(self, path: Path) -> None:
        from rosbags.interfaces import MessageDefinitionFormat
        from rosbags.rosbag2 import Reader

        forms = {MessageDefinitionFormat.MSG: "ros2msg", MessageDefinitionFormat.IDL: "ros2idl"}
        self._reader: Any = Reader(path)
        self._reader.open()
        try:
            self._survey(forms)
        except BaseException:
            self._reader.close()
            raise

    def _survey(self, forms: Mapping[Any, str]) -> None:
        self._channels = {
            connection.id: Channel(
                connection.topic,
                connection.msgtype,
                connection.msgdef.data if connection.msgdef.format in forms else "",
                forms.get(connection.msgdef.format, ""),
                connection.msgcount,
            )
            for connection in self._reader.connections
        }
        self.channels = list(self._channels.values())
        empty = not self._reader.message_count
        self.start = 0 if empty else int(self._reader.start_time)
        # rosbags counts the end as the first nanosecond after the last message.
        self.end = 0 if empty else int(self._reader.end_time) - 1
        self.distro = str(self._reader.ros_distro or "")
        self.damage = ""

    def set_back(self) -> int:
        from rosbags.rosbag2.storage_mcap import McapReader

        found = newest = 0
        for file in getattr(self._reader.storage, "storages", [self._reader.storage]):
            pieces = _chunk_times(file) if isinstance(file, McapReader) else _row_times(file)
            for first, last, back in pieces:
                found = max(found, newest - first, back)
                newest = max(newest, last)
        return found

    def messages(self, topics: Collection[str]) -> Iterator[Raw]:
        wanted = [item for item in self._reader.connections if item.topic in topics]
        if not wanted:  # which rosbags takes for "all"
            return
        for connection, received, data in self._reader.messages(connections=wanted):
            yield self._channels[connection.id], received, data

    def close(self) -> None:
        self._reader.close()


def _chunk_times(file: Any) -> Iterator[tuple[int, int, int]]:
    """First and last receive time of each chunk of an MCAP file, and how far it goes back inside;
    from its index alone.
    """
    for chunk in sorted(file.chunks, key=lambda item: item.chunk_start_offset):
        if not chunk.message_end_time:
            continue
        file.bio.seek(chunk.chunk_start_offset + chunk.chunk_length)
        index = file.bio.read(chunk.message_index_length)
        entries, place = [], 0
        while place + _INDEX_HEAD <= len(index) and index[place] == _MESSAGE_INDEX:
            (size,) = struct.unpack_from("<I", index, place + _INDEX_HEAD - 4)
            place += _INDEX_HEAD
            entries.append(np.frombuffer(index, _INDEX_ENTRY, size // 16, place))
            place += size
        every = np.concatenate(entries or [np.empty(0, _INDEX_ENTRY)])
        times = every["time"][np.argsort(every["offset"])].astype(np.int64)
        back = int((np.maximum.accumulate(times) - times).max(initial=0))
        yield chunk.message_start_time, chunk.message_end_time, back


def _row_times(file: Any) -> Iterator[tuple[int, int, int]]:
    """As :func:`_chunk_times`, of a sqlite3 file."""
    yield from file.dbconn.execute(
        "SELECT min(timestamp), max(timestamp), max(newest - timestamp) FROM (SELECT timestamp,"
        " max(timestamp) OVER (ORDER BY id) AS newest FROM messages) HAVING count(*) > 0"
    )


class _Times:
    """The first and the last of the times that were added, and the largest step back, in ns."""

    def __init__(self) -> None:
        self.first = self.last = self.back = 0

    def add(self, time: int) -> None:
        self.first = min(self.first or time, time)
        self.back = max(self.back, self.last - time)
        self.last = max(self.last, time)


class _Damaged(Exception):
    """The file makes no sense from here on."""


class ScannedMcap:
    """An MCAP file without a usable index: a recording that was cut off, or that is damaged.

    The records are read from the front (https://mcap.dev/spec), once to learn what there is and
    once more for the messages; a record at a time is held. Messages are ordered within a chunk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._size = path.stat().st_size
        self._stop = 0
        self._channels: dict[int, Channel] = {}
        self.channels: list[Channel] = []
        self.start = self.end = 0
        self.distro = ""
        self.damage = ""
        counts: dict[int, int] = {}
        times = _Times()
        try:
            for messages in self._scan(None):
                for number, received, _ in messages:
                    counts[number] = counts.get(number, 0) + 1
                    times.add(received)
        except _Damaged as error:
            self.damage = str(error)
        self._channels = {
            number: replace(channel, count=counts.get(number, 0))
            for number, channel in self._channels.items()
        }
        self.channels = list(self._channels.values())
        self.start, self.end, self._back = times.first, times.last, times.back

    def set_back(self) -> int:
        return self._back

    def messages(self, topics: Collection[str]) -> Iterator[Raw]:
        wanted = {number for number, item in self._channels.items() if item.topic in topics}
        for messages in self._scan(self._stop):
            for number, received, data in sorted(messages, key=lambda message: message[1]):
                if number in wanted:
                    yield self._channels[number], received, data

    def close(self) -> None:
        self._file.close()

    def _scan(self, stop: int | None) -> Iterator[list[tuple[int, int, bytes]]]:
        """Channel, receive time and data of the messages of each record up to the offset ``stop``;
        without one, up to where the file stops making sense, which becomes ``_stop``.
        """
        self._file.seek(0)
        if self._file.read(len(MAGIC)) != MAGIC:
            raise _Damaged("it does not begin as an MCAP file does")
        schemas: dict[int, tuple[str, str, str]] = {}
        self._stop = place = len(MAGIC)
        while stop is None or place < stop:
            head = self._file.read(9)
            if len(head) < 9:
                raise _Damaged(f"it ends after {place} bytes, before its index")
            kind, size = head[0], int.from_bytes(head[1:], "little")
            if kind in (_DATA_END, _FOOTER):
                return
            if place + 9 + size > self._size:
                raise _Damaged(f"it ends after {self._size} bytes, within a record at byte {place}")
            try:
                if kind in (_SCHEMA, _CHANNEL, _MESSAGE):
                    found = [(kind, self._file.read(size))]
                elif kind == _CHUNK:
                    found = _records(self._file.read(size))
                else:
                    self._file.seek(size, 1)
                    found = []
                messages = self._take(found, schemas)
            except Exception as error:
                # Decompressors, struct and str.decode each raise their own.
                raise _Damaged(f"the record at byte {place} cannot be read ({error})") from error
            place += 9 + size
            self._stop = place
            yield messages

    def _take(
        self, records: list[tuple[int, bytes]], schemas: dict[int, tuple[str, str, str]]
    ) -> list[tuple[int, int, bytes]]:
        messages = []
        for kind, data in records:
            if kind == _SCHEMA:
                (number,) = struct.unpack_from("<H", data)
                name, form, text = _texts(data, 2, 3)
                schemas[number] = (name, form, text)
            elif kind == _CHANNEL:
                number, schema = struct.unpack_from("<HH", data)
                topic, encoding = _texts(data, 4, 2)
                name, form, text = schemas.get(schema, ("", "", ""))
                if encoding == "cdr" and name and number not in self._channels:
                    self._channels[number] = Channel(topic, name, text, form)
            elif kind == _MESSAGE:
                number, _, received, _ = _MESSAGE_HEAD.unpack_from(data)
                if number in self._channels:
                    messages.append((number, received, data[_MESSAGE_HEAD.size :]))
        return messages


def _texts(data: bytes, place: int, count: int) -> list[str]:
    texts = []
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, place)
        texts.append(data[place + 4 : place + 4 + size].decode())
        place += 4 + size
    return texts


def _records(chunk: bytes) -> list[tuple[int, bytes]]:
    """The records inside a chunk."""
    from rosbags.rosbag2.storage_mcap import decompress

    _, _, size, crc = _CHUNK_HEAD.unpack_from(chunk)
    (compression,) = _texts(chunk, _CHUNK_HEAD.size, 1)
    place = _CHUNK_HEAD.size + 4 + len(compression) + 8
    inside = decompress(chunk[place:], compression, size, crc)
    records, place = [], 0
    while place < len(inside):
        length = int.from_bytes(inside[place + 1 : place + 9], "little")
        if place + 9 + length > len(inside):
            raise ValueError("a record reaches beyond its chunk")
        records.append((inside[place], inside[place + 9 : place + 9 + length]))
        place += 9 + length
    return records


class ScannedSqlite:
    """A sqlite3 file that is cut off or damaged: its rows from the first to the last readable one.

    :raises sqlite3.Error: when not even the list of topics can be read.
    """

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(
            f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True
        )
        try:
            # Lets sqlite read what is there of a file that is shorter than it should be.
            self._base.execute("PRAGMA writable_schema=ON")
            # All of them before anything else is asked: in a damaged file, an error on the way
            # makes sqlite begin again, for ever.
            rows = self._base.execute("SELECT id, name, type FROM topics").fetchmany(MOST_TOPICS)
            self._channels = {
                number: Channel(topic, kind, *self._definition(kind))
                for number, topic, kind in rows
                if isinstance(topic, str) and isinstance(kind, str)
            }
        except BaseException:
            self._base.close()
            raise
        self.distro = ""
        self.damage = ""
        counts: dict[int, int] = {}
        times = _Times()
        self._count = 0
        try:
            last = 0
            for row, number, received in self._rows("id, topic_id, timestamp"):
                if row <= last or type(received) is not int:
                    raise sqlite3.DatabaseError(f"row {row} follows {last}, received {received!r}")
                last = row
                if number in self._channels:
                    counts[number] = counts.get(number, 0) + 1
                    times.add(received)
                self._count += 1
        except sqlite3.Error as error:
            self.damage = f"its database cannot be read to the end ({error})"
        self._channels = {
            number: replace(channel, count=counts.get(number, 0))
            for number, channel in self._channels.items()
        }
        self.channels = list(self._channels.values())
        self.start, self.end, self._back = times.first, times.last, times.back

    def _definition(self, kind: str) -> tuple[str, str]:
        try:
            row = self._base.execute(
                "SELECT encoded_message_definition, encoding FROM message_definitions"
                " WHERE topic_type = ?",
                (kind,),
            ).fetchone()
        except sqlite3.Error:  # the table is younger than the format
            row = None
        return (str(row[0]), str(row[1])) if row else ("", "")

    def _rows(self, columns: str) -> Iterator[Any]:
        return self._base.execute(f"SELECT {columns} FROM messages ORDER BY id")

    def set_back(self) -> int:
        return self._back

    def messages(self, topics: Collection[str]) -> Iterator[Raw]:
        rows = self._rows("topic_id, timestamp, data")
        for _, (number, received, data) in zip(range(self._count), rows, strict=False):
            channel = self._channels.get(number)
            if channel is not None and channel.topic in topics:
                yield channel, received, data

    def close(self) -> None:
        self._base.close()
