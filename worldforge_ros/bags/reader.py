"""One recording: what it holds, and its messages in the order in which they were received.

A bag that is not whole is read as far as it makes sense, and says so in :attr:`Bag.problems`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from worldforge_ros.bags.storage import (
    Channel,
    ScannedMcap,
    ScannedSqlite,
    Storage,
    WholeBag,
)
from worldforge_ros.bags.types import bag_typestore, judge_definition, parse_definition
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import NANOSECONDS

PADDING = 16
"""Bytes of zeros after a message that do not make it a wrong one."""
MOST_UNREADABLE = 20
"""Unreadable messages that get a sentence each; beyond, they are only counted."""

LARGEST_DISORDER = 1.0
"""Seconds that the receive times of messages may go back in the order in which they were written:
the threads of a recorder overtake each other by less, a clock that was set back does not."""

_SUFFIXES = {".mcap": "mcap", ".db3": "sqlite3"}
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TopicInfo:
    """A topic of a bag. ``type`` is like ``sensor_msgs/msg/Image``; ``definition_sha256`` is of the
    text of the message definition in the bag, empty where it holds none.
    """

    name: str
    type: str
    count: int
    definition_sha256: str


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a bag of which a part can be read."""

    code: ErrorCode
    message: str


@dataclass(frozen=True)
class Event:
    """A decoded message and when the recorder received it, in ns."""

    topic: str
    type: str
    received: int
    message: Any


class Bag:
    """An open bag: a context manager. ``start`` and ``end`` are the receive times of the first and
    the last message in ns; ``complete`` is false as soon as a part is known to be unreadable.

    ``problems`` grows while :meth:`events` runs. One iteration at a time.
    """

    def __init__(self, path: Path, files: list[Path], storages: list[Storage]) -> None:
        self.path = path
        self.name = path.name if path.is_dir() else path.stem
        self.storage = _storage_name(files[0])
        self.problems: list[Problem] = []
        self.complete = True
        self._files = files
        self._storages = storages
        self._compressed_messages = False
        self._order_is_checked = False
        channels = [channel for storage in storages for channel in storage.channels]
        self.topics = _topics(channels)
        self.messages = sum(topic.count for topic in self.topics)
        times = [(storage.start, storage.end) for storage in storages if storage.end]
        self.start = min((start for start, _ in times), default=0)
        self.end = max((end for _, end in times), default=0)
        self._definitions: dict[str, Any] = {}
        for channel in {item.type: item for item in channels if item.definition}.values():
            self._define(channel)
        types = {channel.type for channel in channels}
        self._types = bag_typestore(types, self._definitions, next(iter(storages)).distro)
        for storage in storages:
            if storage.damage:
                self._note(ErrorCode.BAG_INVALID, storage.damage, incomplete=True)

    @classmethod
    def open(cls, path: str | Path) -> Bag:
        """Open a rosbag2 folder or a bare ``.mcap`` or ``.db3`` file.

        :raises WorldForgeError: ``BAG_MISSING`` when there is no such path, ``BAG_INVALID`` when
            it is no bag or nothing of it can be read, ``BAG_EMPTY`` when it holds no message.
        """
        path = Path(path)
        try:
            if not path.exists():
                raise WorldForgeError(
                    ErrorCode.BAG_MISSING, f"bag {path} does not exist; expected a folder or file"
                )
            metadata, files = _inventory(path)
            bag = cls._read(path, metadata, files)
        except WorldForgeError:
            raise
        except OSError as error:
            raise _invalid(path, f"cannot be read: {error.strerror or error}") from error
        except Exception as error:
            # What a damaged file makes of metadata, definitions and index has no end.
            raise _invalid(path, f"cannot be read: {_words(error)}") from error
        if not bag.messages:
            bag.close()
            held = ", ".join(topic.name for topic in bag.topics) or "no topic at all"
            reasons = "".join(f"; {problem.message}" for problem in bag.problems)
            raise WorldForgeError(
                ErrorCode.BAG_EMPTY if not reasons else ErrorCode.BAG_INVALID,
                f"bag {path} holds no message that can be read ({held}){reasons}",
            )
        return bag

    @classmethod
    def _read(cls, path: Path, metadata: dict[str, Any], files: list[Path]) -> Bag:
        lacks_metadata = path.is_dir() and not metadata
        compression = str(metadata.get("compression_mode", "")).lower()
        refusal: Exception | None = None
        if not lacks_metadata:
            whole: WholeBag | None = None
            try:
                whole = WholeBag(path)
                return cls(path, files, [whole])
            except Exception as error:
                # Of a damaged file come, beside rosbags' own, struct, unicode, assertion, memory
                # and decompression errors.
                refusal = error
                if whole is not None:
                    whole.close()
        if compression == "file":
            raise _invalid(path, f"is compressed as a file and cannot be read ({_words(refusal)})")
        if any(item.stat().st_size == 0 for item in files) and len(files) == 1:
            raise WorldForgeError(ErrorCode.BAG_EMPTY, f"bag {path} is an empty file")
        opened = {item.name: _open_file(item) for item in files}
        lost = {name: reason for name, reason in opened.items() if isinstance(reason, str)}
        storages = [found for found in opened.values() if not isinstance(found, str)]
        if not storages:
            raise _invalid(path, f"is no bag that can be read ({'; '.join(lost.values())})")
        storages.sort(key=lambda storage: storage.start)
        bag = cls(path, files, storages)
        bag._compressed_messages = compression == "message"
        for name, reason in lost.items():
            bag._note(
                ErrorCode.BAG_INVALID, f"nothing of {name} can be read ({reason})", incomplete=True
            )
        if lacks_metadata:
            bag._note(
                ErrorCode.BAG_INVALID,
                "it has no readable metadata.yaml, as a recording that was not closed; read from "
                f"its {len(files)} storage file(s)",
            )
        elif refusal is not None and bag.complete:
            bag._note(
                ErrorCode.BAG_INVALID, f"its metadata or index cannot be used ({_words(refusal)})"
            )
        return bag

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the files back."""
        storages, self._storages = self._storages, []
        for storage in storages:
            storage.close()

    @property
    def size_bytes(self) -> int:
        """Size of the data files."""
        return sum(path.stat().st_size for path in self._files)

    def sha256(self) -> str:
        """Hash of the data files' contents, one after the other: of one file, what ``sha256sum``
        says.
        """
        digest = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                while block := file.read(_READ_AT_ONCE):
                    digest.update(block)
        return digest.hexdigest()

    def topic(self, name: str) -> TopicInfo | None:
        """The topic of that name; with several types, the one with most messages."""
        found = [topic for topic in self.topics if topic.name == name]
        return max(found, key=lambda topic: topic.count, default=None)

    def definition(self, type_name: str) -> str:
        """Whether the bag's definition of a type is ``known``, ``changed`` or ``unknown``
        (:func:`~worldforge_ros.bags.types.judge_definition`).
        """
        return judge_definition(type_name, self._definitions)

    def describe(self, most: int = 40) -> str:
        """The topics in one line, for an error's sentence: name, type, number of messages."""
        shown = [f"{item.name} ({item.type}, {item.count})" for item in self.topics[:most]]
        rest = len(self.topics) - len(shown)
        return ", ".join(shown) + (f" and {rest} more" if rest else "")

    def events(self, topics: Collection[str] | None = None) -> Iterator[Event]:
        """The messages of ``topics``, or of all, in order of receive time, one at a time.

        Where the files stop making sense the iteration ends with a :class:`Problem`; a message
        that does not decode is left out with one.
        """
        wanted = {item.name for item in self.topics if topics is None or item.name in topics}
        seen: dict[tuple[str, str], int] = {}
        unreadable = total = strays = 0
        last = self.start
        self._check_order()
        try:
            for storage in self._storages:
                for channel, received, data in storage.messages(wanted):
                    if type(received) is not int:
                        raise ValueError(f"a receive time is {received!r}")
                    last = received
                    strays += not self.start <= last <= self.end
                    key = (channel.topic, channel.type)
                    seen[key] = seen.get(key, 0) + 1
                    total += 1
                    try:
                        message = self._decode(channel.type, data)
                    except Exception as error:
                        # Generated decoders raise what struct, numpy and dictionaries raise.
                        unreadable += 1
                        if unreadable <= MOST_UNREADABLE:
                            self._note(
                                ErrorCode.MESSAGE_MALFORMED,
                                f"message {seen[key]} of {channel.topic} ({channel.type}, "
                                f"{self._at(last)}) cannot be decoded: {_words(error)}",
                            )
                        continue
                    yield Event(channel.topic, channel.type, last, message)
        except Exception as error:
            self._note(
                ErrorCode.BAG_INVALID,
                f"it cannot be read beyond {self._at(last)}, after {total} messages of "
                f"{len(wanted)} topics: {_words(error)}",
                incomplete=True,
            )
        else:
            self._compare(wanted, seen)
        if strays:
            self._note(
                ErrorCode.BAG_INVALID,
                f"{strays} messages are not between {self.start} and {self.end} ns, which its "
                "index calls its first and its last",
            )
        if unreadable > MOST_UNREADABLE:
            self._note(
                ErrorCode.MESSAGE_MALFORMED,
                f"{unreadable} messages cannot be decoded, the first {MOST_UNREADABLE} of them "
                "are listed",
            )

    def _decode(self, type_name: str, data: bytes) -> Any:
        if self._compressed_messages:
            from rosbags.rosbag2.storage_mcap import zstd

            data = zstd.decompress(data)
        if type_name not in self._types.fielddefs:
            raise LookupError(f"the bag holds no definition of {type_name}, and it is not known")
        try:
            return self._types.deserialize_cdr(memoryview(data), type_name)
        except Exception:
            # rclpy's serialize_message leaves the room that it set aside for an empty list at the
            # end; rosbags takes a message for whole only without such zeros.
            for trimmed in range(4, PADDING + 1, 4):
                if len(data) <= trimmed or any(data[-trimmed:]):
                    break
                with suppress(Exception):
                    return self._types.deserialize_cdr(memoryview(data)[:-trimmed], type_name)
            raise

    def _check_order(self) -> None:
        if self._order_is_checked:
            return
        self._order_is_checked = True
        try:
            back = max(storage.set_back() for storage in self._storages) / NANOSECONDS
        except Exception:
            # Reading says what is wrong.
            return
        if back > LARGEST_DISORDER:
            self._note(
                ErrorCode.BAG_OUT_OF_ORDER,
                f"its receive times go back by up to {back:.3f} s in the order in which they were "
                "written, as when the clock was set back or recordings were merged; it is read in "
                "order of receive time",
            )

    def _compare(self, wanted: set[str], seen: dict[tuple[str, str], int]) -> None:
        for topic in self.topics:
            found = seen.get((topic.name, topic.type), 0)
            if topic.name in wanted and found != topic.count:
                self._note(
                    ErrorCode.BAG_INVALID,
                    f"its index counts {topic.count} messages of {topic.name}, {found} are there",
                    incomplete=found < topic.count,
                )

    def _define(self, channel: Channel) -> None:
        try:
            found = parse_definition(channel.type, channel.definition, channel.form)
            bag_typestore(found, found)
        except Exception as error:
            # The parser and the code generator raise their own and each other's.
            self._note(
                ErrorCode.BAG_INVALID,
                f"its definition of {channel.type} cannot be understood: {_words(error)}",
            )
        else:
            self._definitions.update(found)

    def _note(self, code: ErrorCode, message: str, *, incomplete: bool = False) -> None:
        if incomplete:
            self.complete = False
        problem = Problem(code, f"bag {self.name}: {message}")
        # A second iteration meets the same problems.
        if problem not in self.problems:
            self.problems.append(problem)

    def _at(self, time: int) -> str:
        return f"{(time - self.start) / NANOSECONDS:.3f} s"


def _open_file(path: Path) -> Storage | str:
    """The file as far as it can be read, or in words why nothing of it can."""
    try:
        return WholeBag(path)
    except Exception:
        # Of a damaged file come, beside rosbags' own, struct, unicode, assertion, memory and
        # decompression errors; what can be read without its index is tried next.
        pass
    try:
        scanned = ScannedMcap(path) if path.suffix == ".mcap" else ScannedSqlite(path)
    except Exception as error:
        return _words(error)
    if not scanned.channels:
        scanned.close()
        return scanned.damage or "no topic of a ROS 2 message in it"
    return scanned


def _inventory(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The bag's metadata, empty without, and its data files in order."""
    if path.is_file():
        if path.suffix == ".bag":
            raise _invalid(path, "is a ROS 1 bag; convert it with rosbags-convert")
        if path.suffix not in _SUFFIXES:
            raise _invalid(path, f"is a '{path.suffix}' file; expected a folder, .mcap or .db3")
        return {}, [path]
    metadata: dict[str, Any] = {}
    try:
        text = (path / "metadata.yaml").read_text("utf-8")
        metadata = dict(yaml.safe_load(text)["rosbag2_bagfile_information"])
        names = [PurePath(str(name)).name for name in metadata["relative_file_paths"]]
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        metadata, names = {}, []
    files = [path / name for name in names]
    if missing := [item.name for item in files if not item.is_file()]:
        raise _invalid(path, f"lacks {', '.join(missing)}, which its metadata.yaml names")
    if not files:
        found = [item for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file()]
        files = sorted(found, key=lambda item: (len(item.name), item.name))
    if not files:
        raise _invalid(path, "is a folder without a readable metadata.yaml, .mcap or .db3 file")
    return metadata, files


def _storage_name(path: Path) -> str:
    return next((name for suffix, name in _SUFFIXES.items() if suffix in path.suffixes), "")


def _topics(channels: list[Channel]) -> tuple[TopicInfo, ...]:
    found: dict[tuple[str, str], TopicInfo] = {}
    for channel in channels:
        key = (channel.topic, channel.type)
        text = channel.definition
        held = found.get(key)
        found[key] = TopicInfo(
            channel.topic,
            channel.type,
            channel.count + (held.count if held else 0),
            hashlib.sha256(text.encode()).hexdigest() if text else "",
        )
    return tuple(found[key] for key in sorted(found))


def _invalid(path: Path, what: str) -> WorldForgeError:
    return WorldForgeError(ErrorCode.BAG_INVALID, f"bag {path} {what}")


def _words(error: BaseException | None) -> str:
    """An error's text on one line, without what could make it long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
