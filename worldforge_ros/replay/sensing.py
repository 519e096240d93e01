"""From the sensor messages of a bag to observations, through what the live node does with them."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from worldforge_ros import ingest
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.observation import NANOSECONDS, Observation, ObservationIntake
from worldforge_ros.replay.tally import Tally

if TYPE_CHECKING:
    from worldforge_ros.bags.reader import Event
    from worldforge_ros.bags.topics import BagTopics

_STATES_KEPT = 256


class Sensing:
    """Observations and how well the sensors behind them fit together."""

    def __init__(self, topics: BagTopics, embodiment: Embodiment, source: str) -> None:
        """:param source: ``observation`` for what the live node published, ``sensors`` for pictures
        and joint states, aligned again.
        """
        self.source = source
        self._topics = topics
        self._embodiment = embodiment
        self._cameras = {topic: camera for camera, topic in topics.cameras.items() if topic}
        self._intake = ObservationIntake(embodiment)
        self._incomplete = ""
        self._stamps: deque[int] = deque(maxlen=_STATES_KEPT)
        self._pictures = self._observations = 0
        self._age, self._offset = Tally(), Tally()
        self._skipped: Counter[str] = Counter()

    def restart(self) -> None:
        """Forget what was seen: time went back."""
        self._intake = ObservationIntake(self._embodiment)
        self._stamps.clear()

    def take(self, event: Event) -> Observation | None:
        """Take a message that arrived at ``event.received``; returns the observation that it
        completes. One that cannot be used counts as skipped.
        """
        try:
            found = self._observed(event)
        except WorldForgeError as error:
            self._skipped[str(error.code)] += 1
            return None
        if found is not None:
            self._observations += 1
            self._age.add((event.received - found.stamp) / NANOSECONDS)
            if self._stamps:
                nearest = min(self._stamps, key=lambda stamp: abs(stamp - found.stamp))
                self._offset.add((nearest - found.stamp) / NANOSECONDS)
        return found

    def _observed(self, event: Event) -> Observation | None:
        message = event.message
        if event.topic == self._topics.joint_states:
            stamp = ingest.stamp_to_ns(message.header.stamp)
            self._stamps.append(stamp)
            if self.source == "observation":
                return None
            return self._intake.joint_state(
                stamp, list(message.name), message.position, message.velocity, event.received
            )
        if self.source == "observation":
            if event.topic != self._topics.observation:
                return None
            self._pictures += 1
            return ingest.observation_from_msg(message, self._embodiment)
        camera = self._cameras.get(event.topic)
        if camera is None:
            return None
        self._pictures += 1
        stamp = ingest.stamp_to_ns(message.header.stamp)
        if self._intake.waiting is not None and camera == self._incomplete:
            # The moment that began with this camera's last picture will not become one any more.
            self._skipped[str(self._intake.waiting.code)] += 1
        if self._intake.waiting is None or camera == self._incomplete:
            self._incomplete = camera
        picture = ingest.image_from_msg(message, f"camera {camera}")
        return self._intake.image(camera, stamp, picture, event.received)

    def document(self) -> dict[str, Any]:
        """The ``synchronisation`` of an episode's document."""
        return {
            "source": self.source,
            "pictures": self._pictures,
            "observations": self._observations,
            "age_s": self._age.document(),
            "joint_offset_s": self._offset.document(),
            "skipped": dict(sorted(self._skipped.items())),
        }
