"""How good a recording is: rates, gaps, order, stamps against receive times, definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worldforge_ros import ingest
from worldforge_ros.errors import ErrorCode
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.replay.tally import Tally

if TYPE_CHECKING:
    from worldforge_ros.bags.reader import Bag, Event
    from worldforge_ros.bags.topics import BagTopics

LONG = 10.0
"""A silence is a gap when it is so many times the usual one ..."""
SHORTEST = 1.0
"""... and lasts so many seconds."""
STREAMS = frozenset({"joint_states", "observation"})
"""Beside the cameras, what is to come all the time: other topics may be silent."""
BACK = 1.0
"""Seconds by which a stamp is before the newest one when the clock was set back."""
_MS = 1e-6


class _Topic:
    def __init__(self) -> None:
        self.count = self.out_of_order = 0
        self.first = self.last = 0
        self.gaps, self.skew = Tally(), Tally()
        self.longest, self.longest_at = 0, 0
        self._newest = 0

    def add(self, received: int, stamp: int) -> None:
        if self.count:
            gap = received - self.last
            self.gaps.add(max(gap, 0) / NANOSECONDS)
            if gap > self.longest:
                self.longest, self.longest_at = gap, self.last
        else:
            self.first = received
        self.count += 1
        self.last = received
        time = stamp if stamp > 0 else received
        if time < self._newest:
            self.out_of_order += 1
        if not self._newest - BACK * NANOSECONDS <= time < self._newest:
            # The newest one, or the clock was set back, once: what follows is in order.
            self._newest = time
        if stamp > 0:
            self.skew.add((received - stamp) * _MS)

    def silence(self, start: int, end: int) -> tuple[int, int]:
        """The longest one between ``start`` and ``end``, and when it began, all in ns."""
        edges = [(self.longest, self.longest_at), (self.first - start, start)]
        return max([*edges, (end - self.last, self.last)], key=lambda item: item[0])


class HealthMeter:
    """Takes every event of a bag once; bounded by the number of topics."""

    def __init__(self, bag: Bag, topics: BagTopics) -> None:
        self._bag = bag
        self._roles = {topic: role for role, topic in topics.roles().items()}
        self._cameras = frozenset(topics.cameras)
        self._topics = {topic: _Topic() for topic in self._roles}

    def add(self, event: Event) -> None:
        """Take an event."""
        topic = self._topics.get(event.topic)
        if topic is None:
            return
        header = getattr(event.message, "header", None)
        stamp = 0 if header is None else ingest.stamp_to_ns(header.stamp)
        topic.add(event.received, stamp)

    def document(self) -> dict[str, Any]:
        """The ``health`` of an episode's document."""
        bag = self._bag
        listed = [self._row(topic, found) for topic, found in self._topics.items() if found.count]
        return {
            "topics": listed,
            "problems": self._problems(),
            "start_ns": bag.start,
            "end_ns": bag.end,
            "duration_s": (bag.end - bag.start) / NANOSECONDS,
            "messages": bag.messages,
        }

    def _row(self, name: str, found: _Topic) -> Mapping[str, Any]:
        info = self._bag.topic(name)
        assert info is not None
        span = (found.last - found.first) / NANOSECONDS
        return {
            "topic": name,
            "type": info.type,
            "role": self._roles[name],
            "count": found.count,
            "rate_hz": (found.count - 1) / span if span > 0.0 else None,
            "gap_p99_s": found.gaps.quantile(0.99),
            "gap_max_s": found.longest / NANOSECONDS if found.count > 1 else None,
            "gap_max_at_s": (found.longest_at - self._bag.start) / NANOSECONDS
            if found.count > 1
            else None,
            "out_of_order": found.out_of_order,
            "skew_ms": {
                "p50": found.skew.quantile(0.5),
                "p95": found.skew.quantile(0.95),
                "max": found.skew.max,
            }
            if found.skew.count
            else None,
            "definition_sha256": info.definition_sha256,
            "definition": self._bag.definition(info.type),
        }

    def _problems(self) -> list[dict[str, str]]:
        problems = []
        for name, found in self._topics.items():
            if not found.count:
                continue
            role = self._roles[name]
            usual = found.gaps.quantile(0.5) or 0.0
            silence, at = found.silence(self._bag.start, self._bag.end)
            longest = silence / NANOSECONDS
            streams = role in STREAMS or role in self._cameras
            if streams and longest > max(SHORTEST, LONG * usual):
                problems.append(
                    {
                        "code": str(ErrorCode.BAG_GAP),
                        "message": f"topic {name} of bag {self._bag.name} is silent for "
                        f"{longest:.3f} s at "
                        f"{(at - self._bag.start) / NANOSECONDS:.3f} s; "
                        f"expected a message every {usual:.3f} s",
                    }
                )
            if found.out_of_order:
                problems.append(
                    {
                        "code": str(ErrorCode.BAG_OUT_OF_ORDER),
                        "message": f"{found.out_of_order} messages of topic {name} of bag "
                        f"{self._bag.name} come after later ones by their "
                        "stamps; expected them in order",
                    }
                )
        return problems
