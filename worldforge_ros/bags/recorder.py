"""Writes a bag beside the thread that receives: a bounded queue, and a count of what is missing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worldforge_ros.bags.names import TopicQuality
from worldforge_ros.bags.writer import BagWriter
from worldforge_ros.errors import ErrorCode, WorldForgeError

WRITE_PERIOD = 0.1
"""Seconds between two batches. Topics of one batch are put in order of receive time, which an
executor with several subscriptions does not keep."""
CLOSE_TIMEOUT = 60.0
"""Seconds that writing what is queued may take at the end."""


@dataclass(frozen=True)
class Recorded:
    """How a recording stands; ``dropped``: messages by topic that the full queue had no room for,
    and those that were lost before.
    """

    messages: int
    bytes: int
    queued_bytes: int
    dropped: Mapping[str, int]
    counts: Mapping[str, int]
    ended: str
    error: WorldForgeError | None


class Recorder:
    """One recording: what is put in comes to the file in a thread of its own.

    ``put`` and ``declare`` never wait for the disk and never raise for it: a failure ends the
    recording and is in :attr:`state`.
    """

    def __init__(
        self,
        path: Path,
        *,
        compression: str = "zstd",
        max_bytes: int,
        queue_bytes: int,
        notes: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """:param max_bytes: of the bag; it ends when it is reached.
        :param queue_bytes: of messages that wait to be written; more are dropped.
        :param notes: what the bag says about itself, asked for when it is closed.
        :raises WorldForgeError: as :class:`BagWriter`.
        """
        self.path = path
        self._writer = BagWriter(path, compression)
        self._max_bytes = max_bytes
        self._room = queue_bytes
        self._notes = notes
        self._lock = threading.Lock()
        self._topics: list[tuple[str, str, TopicQuality]] = []
        self._queue: list[tuple[int, str, str, bytes]] = []
        self._queued = 0
        self._dropped: Counter[str] = Counter()
        self._end = ""
        self._error: WorldForgeError | None = None
        self._size = 0
        self._counts: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bag", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> WorldForgeError | None:
        """Why the bag is not whole: it could not be written, or messages are missing."""
        state = self.state
        if state.error is not None:
            return state.error
        if not state.dropped:
            return None
        found = ", ".join(f"{count} of {topic}" for topic, count in sorted(state.dropped.items()))
        return WorldForgeError(
            ErrorCode.RECORDING_INCOMPLETE,
            f"messages are missing in bag {self.path} ({found}); expected a machine and a disk "
            "that keep up, or a larger queue",
        )

    @property
    def state(self) -> Recorded:
        """How it stands now."""
        with self._lock:
            return Recorded(
                messages=sum(self._counts.values()),
                bytes=self._size,
                queued_bytes=self._queued,
                dropped=dict(self._dropped),
                counts=dict(self._counts),
                ended=self._end,
                error=self._error,
            )

    def declare(self, topic: str, type_name: str, quality: TopicQuality) -> None:
        """See :meth:`BagWriter.declare`."""
        with self._lock:
            self._topics.append((topic, type_name, quality))

    def put(self, topic: str, type_name: str, received_ns: int, data: bytes) -> bool:
        """Queue one message; False when it was dropped, or when the recording has ended."""
        with self._lock:
            if self._end:
                return False
            if self._queued + len(data) > self._room:
                self._dropped[topic] += 1
                return False
            self._queue.append((received_ns, topic, type_name, data))
            self._queued += len(data)
            return True

    def lost(self, topic: str, count: int) -> None:
        """Count messages that did not get as far as :meth:`put`."""
        with self._lock:
            if not self._end:
                self._dropped[topic] += count

    def close(self, reason: str) -> Recorded:
        """Write what is queued, close the bag and say how it stands.

        :param reason: why it ends, unless it has ended before.
        """
        with self._lock:
            self._end = self._end or reason
        self._stop.set()
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            self._fail(
                WorldForgeError(
                    ErrorCode.RECORDING_INCOMPLETE,
                    f"bag {self.path} could not be closed within {CLOSE_TIMEOUT:g} s; "
                    "expected a disk that keeps up",
                )
            )
        return self.state

    def _work(self) -> None:
        try:
            while not self._end:
                self._stop.wait(WRITE_PERIOD)
                self._write_batch()
                if self._size >= self._max_bytes:
                    with self._lock:
                        self._end = self._end or (
                            f"the bag has {self._size} bytes; the bound is {self._max_bytes}"
                        )
            # What came between the last batch and the end.
            self._write_batch()
            state = self.state
            notes = {"ended": state.ended, "dropped": json.dumps(state.dropped, sort_keys=True)}
            self._writer.close({**self._notes(), **notes})
            self._measure()
        except Exception as error:
            self._fail(
                error
                if isinstance(error, WorldForgeError)
                else WorldForgeError(
                    ErrorCode.RECORDING_INCOMPLETE,
                    f"bag {self.path} cannot be written any further "
                    f"({type(error).__name__}: {error}); what was written before can be read",
                )
            )
            self._writer.abort()

    def _write_batch(self) -> None:
        with self._lock:
            topics, self._topics = self._topics, []
            batch, self._queue = self._queue, []
        for topic, type_name, quality in topics:
            self._writer.declare(topic, type_name, quality)
        batch.sort(key=lambda item: item[0])
        for received, topic, type_name, data in batch:
            self._writer.add(topic, type_name, received, data)
            with self._lock:
                self._queued -= len(data)
        self._writer.flush_when_due()
        self._measure()

    def _measure(self) -> None:
        size, counts = self._writer.size_bytes, self._writer.counts
        with self._lock:
            self._size, self._counts = size, counts

    def _fail(self, error: WorldForgeError) -> None:
        with self._lock:
            self._error = self._error or error
            self._end = self._end or error.message
