"""The frames of a bag: one observation and one set-point for every policy step.

Nothing is interpolated. A camera that is faster than the policy's step gives one frame a step and
the rest is left out; where a step has no frame, an episode ends and the next one begins.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from worldforge_ros import ingest
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import (
    NANOSECONDS,
    ImageArray,
    Observation,
    ObservationIntake,
    seconds_to_ns,
)

if TYPE_CHECKING:
    from worldforge_ros.bags.actions import RecordedActions
    from worldforge_ros.bags.reader import Bag, Event
    from worldforge_ros.bags.topics import BagTopics

FloatArray = npt.NDArray[np.float64]

FOLLOW = 0.1
"""Share of a frame's distance from its due time by which the next due times move: a camera whose
clock is a little off stays on the grid, one of another rate does not shift it."""
BACK = 1.0
"""Seconds by which a stamp is before the newest one when the clock was set back; by less, a message
comes too late."""
LARGEST_SKEW = 1.0
"""Seconds between capture and receipt up to which messages without a stamp can be put in time."""
KEEP = 10.0
"""Seconds that recorded actions are held, and that a frame waits for its own."""


@dataclass(frozen=True)
class Frame:
    """One policy step: what was seen and ``setpoint`` (J,) in m or rad, what the joints were told
    in the middle of it. ``starts``: an episode begins here.
    """

    starts: bool
    observation: Observation
    setpoint: FloatArray


@dataclass
class FrameCounts:
    """What became of the observations of a bag."""

    pictures: int = 0
    observations: int = 0
    frames: int = 0
    decimated: int = 0
    off_grid: int = 0
    no_action: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Stamps in ns before and after each place where a step has no frame."""
    largest_offset_ns: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first_refusal: str = ""

    def refuse(self, error: WorldForgeError) -> None:
        """Count a message that could not be used."""
        self.refused[str(error.code)] += 1
        self.first_refusal = self.first_refusal or str(error)


def on_grid(
    observations: Iterable[Observation], step: float, tolerance: float, counts: FrameCounts
) -> Iterator[tuple[bool, Observation]]:
    """One observation for each step, and whether an episode begins with it.

    The nearest to the due time is taken, at most ``tolerance`` seconds off it and at most half a
    step, as :meth:`worldforge_ros.observation.ObservationHistory.window` does; the due time is one
    ``step`` after the previous one and follows the frames by :data:`FOLLOW`.
    """
    period = seconds_to_ns(step)
    allowed = min(seconds_to_ns(tolerance), period // 2)
    due: int | None = None
    last = 0
    waiting: Observation | None = None
    for observation in observations:
        counts.observations += 1
        stamp = observation.stamp
        if due is not None and stamp <= last:
            if last - stamp <= seconds_to_ns(BACK):
                counts.off_grid += 1
                continue
            # The clock was set back: a new recording, as far as time goes.
            counts.off_grid += waiting is not None
            counts.gaps.append((last, stamp))
            due, waiting = None, None
        while due is not None:
            if waiting is not None and abs(waiting.stamp - due) <= abs(stamp - due):
                chosen, waiting = waiting, None
            elif stamp < due:
                counts.decimated += waiting is not None
                waiting = observation
                break
            else:
                counts.decimated += waiting is not None
                chosen, waiting = observation, None
            offset = chosen.stamp - due
            if abs(offset) > allowed:
                counts.off_grid += chosen is not observation
                counts.gaps.append((last, stamp))
                due = None
                break
            counts.largest_offset_ns = max(counts.largest_offset_ns, abs(offset))
            due += period + round(FOLLOW * offset)
            last = chosen.stamp
            yield False, chosen
            if chosen is observation:
                break
        if due is None:
            due, last = stamp + period, stamp
            yield True, observation
    if waiting is not None and due is not None:
        if abs(waiting.stamp - due) <= allowed:
            yield False, waiting
        else:
            counts.decimated += 1


class BagFrames:
    """Reads a bag once, in bounded memory, into frames; see :attr:`counts` and :attr:`goals`."""

    def __init__(
        self, bag: Bag, topics: BagTopics, embodiment: Embodiment, actions: RecordedActions
    ) -> None:
        self.counts = FrameCounts()
        self.goals: list[tuple[int, ImageArray]] = []
        """Capture stamps in ns and pictures of the first and of the newest goal."""
        self.goal_changes = 0
        self._bag, self._topics, self._embodiment = bag, topics, embodiment
        self._actions = actions
        self._intake = ObservationIntake(embodiment)
        self._cameras = {topic: camera for camera, topic in topics.cameras.items() if topic}
        self._newest = 0

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order of time.

        :raises WorldForgeError: ``STAMP_INVALID`` when capture stamps and receive times are of
            different clocks and the actions are in force from their receipt.
        """
        spec = self._embodiment
        waiting: deque[tuple[bool, Observation]] = deque()
        broken = False
        grid = on_grid(
            self._observations(), spec.policy.step, spec.observation.tolerance, self.counts
        )
        for item in grid:
            set_back = bool(waiting) and item[1].stamp < waiting[-1][1].stamp
            if not set_back:
                waiting.append(item)
            while waiting and (set_back or self._is_known(waiting[0][1].stamp)):
                frame, broken = self._with_action(*waiting.popleft(), broken)
                if frame is not None:
                    yield frame
            if set_back:
                waiting.append(item)
        for item in waiting:
            frame, broken = self._with_action(*item, broken)
            if frame is not None:
                yield frame

    def _is_known(self, stamp: int) -> bool:
        middle = stamp + seconds_to_ns(self._embodiment.policy.step) // 2
        overdue = self._newest - middle > seconds_to_ns(KEEP) // 2
        return overdue or self._actions.known_until >= middle

    def _with_action(
        self, starts: bool, observation: Observation, broken: bool
    ) -> tuple[Frame | None, bool]:
        middle = observation.stamp + seconds_to_ns(self._embodiment.policy.step) // 2
        setpoint = self._actions.at(middle)
        if setpoint is None:
            self.counts.no_action += 1
            return None, True
        self.counts.frames += 1
        return Frame(starts or broken, observation, setpoint), False

    def _observations(self) -> Iterator[Observation]:
        topics = self._topics
        for event in self._bag.events(topics.all()):
            self._actions.add(event)
            if event.topic == topics.goal_image:
                self._take_goal(event)
                continue
            try:
                observation = self._observe(event)
            except WorldForgeError as error:
                self.counts.refuse(error)
                continue
            if observation is not None:
                self._check_clock(observation, event)
                self._newest = observation.stamp
                yield observation

    def _observe(self, event: Event) -> Observation | None:
        topics, message = self._topics, event.message
        if topics.observation:
            if event.topic != topics.observation:
                return None
            self.counts.pictures += 1
            return ingest.observation_from_msg(message, self._embodiment)
        if event.topic == topics.joint_states:
            stamp = ingest.stamp_to_ns(message.header.stamp)
            return self._intake.joint_state(
                stamp, list(message.name), message.position, message.velocity, stamp
            )
        camera = self._cameras.get(event.topic)
        if camera is None:
            return None
        self.counts.pictures += 1
        stamp = ingest.stamp_to_ns(message.header.stamp)
        picture = ingest.image_from_msg(message, f"camera {camera}")
        # Age does not matter here, only what belongs together: time is that of the picture.
        return self._intake.image(camera, stamp, picture, stamp)

    def _check_clock(self, observation: Observation, event: Event) -> None:
        skew = event.received - observation.stamp
        measured = self._actions.source == "joint_states"
        if not measured and abs(skew) > seconds_to_ns(LARGEST_SKEW):
            raise mismatch(
                ErrorCode.STAMP_INVALID,
                f"receive time of {event.topic}",
                found=f"{skew / NANOSECONDS:.3f} s from the capture stamp",
                expected=f"at most {LARGEST_SKEW:g} s, since {self._actions.source} are in force "
                "from their receipt on; choose --actions joint_states",
            )

    def _take_goal(self, event: Event) -> None:
        try:
            picture = ingest.image_from_msg(event.message, "goal_image")
        except WorldForgeError as error:
            self.counts.refuse(error)
            return
        if self.goals and np.array_equal(self.goals[-1][1], picture):
            return
        self.goal_changes += bool(self.goals)
        stamp = ingest.stamp_to_ns(event.message.header.stamp)
        self.goals = [*self.goals[:1], (stamp, picture)]


Advance = Callable[[str], None]
