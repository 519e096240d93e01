"""When recorded messages arrived, in the clock of their stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from worldforge_ros import ingest
from worldforge_ros.observation import NANOSECONDS

if TYPE_CHECKING:
    from worldforge_ros.bags.reader import Bag, Event

SAME_CLOCK = 1.0
"""Seconds between stamp and receipt up to which both are taken to be of one clock."""
SURVEYED = 200
"""Stamped messages that decide it."""


def stamp_of(event: Event) -> int:
    """Stamp of a message with a header in ns, 0 for one without."""
    header = getattr(event.message, "header", None)
    return 0 if header is None else ingest.stamp_to_ns(header.stamp)


class RecordedClock:
    """Gives every event the time at which it arrived, by the clock of the stamps.

    A bag recorded in simulated time by a recorder in wall time has receive times that mean nothing
    to the nodes: there a message arrives when the newest stamp before it was made.
    """

    def __init__(self, bag: Bag, sensors: Iterable[str]) -> None:
        """:param sensors: topics whose stamps are of capture."""
        self._sensors = frozenset(sensors)
        gaps = [
            event.received - stamp
            for event in islice(bag.events(self._sensors), SURVEYED)
            if (stamp := stamp_of(event)) > 0
        ]
        self.offset = float(np.median(gaps)) / NANOSECONDS if gaps else 0.0
        """Median receive time less stamp, s."""
        self.by_stamps = abs(self.offset) > SAME_CLOCK
        """Whether the receive times are of another clock."""

    def events(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events with ``received`` in the clock of the stamps."""
        if not self.by_stamps:
            yield from events
            return
        now = 0
        for event in events:
            stamp = stamp_of(event) if event.topic in self._sensors else 0
            if stamp > now or (0 < stamp < now - SAME_CLOCK * NANOSECONDS):
                now = stamp
            yield replace(event, received=now)
