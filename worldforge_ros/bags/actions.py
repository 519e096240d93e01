"""What the joints of a recorded robot were told, at any time."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from worldforge_ros import ingest
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import order_joint_state, seconds_to_ns
from worldforge_ros.safety.gate import GateMode
from worldforge_ros.scorers.surprise import SetpointTimeline

if TYPE_CHECKING:
    from worldforge_ros.bags.reader import Event
    from worldforge_ros.bags.topics import BagTopics

FloatArray = npt.NDArray[np.float64]

SOURCES = ("auto", "joint_commands", "joint_trajectory", "approved", "joint_states")
"""Where set-points come from; ``auto`` takes the first of the others that the bag has."""
KEEP = 10.0
"""Seconds of set-points that are held."""
BACK = 1.0
"""Seconds by which a time is before the newest one when the clock was set back."""
COMMAND_TIMEOUT = 1.0
"""Seconds that a streamed command counts: a controller that hears nothing holds by itself."""


class RecordedActions:
    """The set-points of one bag, as its events pass by; bounded by ``keep`` seconds.

    - ``approved``: what the gate streamed of approved chunks, in its mode.
    - ``joint_commands``: the newest one received, at most :data:`COMMAND_TIMEOUT` old.
    - ``joint_trajectory``: the point that is due next, of the newest trajectory.
    - ``joint_states``: the measured position one policy step later: what a follower was told when
      nothing says so.
    """

    def __init__(
        self, topics: BagTopics, embodiment: Embodiment, source: str = "auto", keep: float = KEEP
    ) -> None:
        """:raises WorldForgeError: ``TOPIC_MISSING`` for a source that the bag has not,
        ``INVALID_ARGUMENT`` for an unknown one.
        """
        if source not in SOURCES:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "actions",
                found=f"'{source}'",
                expected=f"one of {', '.join(SOURCES)}",
            )
        there = {name: str(getattr(topics, name)) for name in SOURCES[1:]}
        chosen = source
        if source == "auto":
            chosen = next((name for name in SOURCES[1:] if there[name]), "")
        if not chosen or not there[chosen]:
            raise mismatch(
                ErrorCode.TOPIC_MISSING,
                "recorded actions",
                found=f"{source}, which the bag has not",
                expected=f"one of {', '.join(n for n, t in there.items() if t) or 'none'}",
            )
        self.source = chosen
        self._topic = there[chosen]
        self._status = topics.gate_status
        self._states = topics.joint_states
        self._embodiment = embodiment
        self._keep = seconds_to_ns(keep)
        self._step = seconds_to_ns(embodiment.policy.step)
        self._timeline = SetpointTimeline(embodiment, keep)
        self._times: list[int] = []
        self._rows: list[FloatArray] = []
        self._measured: tuple[list[int], list[FloatArray]] = ([], [])
        self._newest = 0
        self.refused: dict[str, int] = {}
        """Messages that could not be used, by code."""

    @property
    def known_until(self) -> int:
        """Time in ns up to which :meth:`at` is final."""
        if self.source == "joint_states":
            return self._times[-1] - self._step if self._times else 0
        return self._newest

    def add(self, event: Event) -> None:
        """Take an event, in order of receipt; one that goes back in time starts anew."""
        if event.received < self._newest - seconds_to_ns(BACK):
            self.clear()
        self._newest = max(self._newest, event.received)
        if event.topic not in (self._topic, self._status, self._states):
            return
        try:
            self._take(event)
        except (WorldForgeError, ValueError, AttributeError) as error:
            code = str(getattr(error, "code", ErrorCode.MESSAGE_MALFORMED))
            self.refused[code] = self.refused.get(code, 0) + 1

    def clear(self) -> None:
        """Forget everything."""
        self._timeline.clear()
        self._times, self._rows, self._measured = [], [], ([], [])
        self._newest = 0

    def _take(self, event: Event) -> None:
        message = event.message
        if event.topic == self._states and (self.source in ("approved", "joint_states")):
            position, _ = order_joint_state(
                list(message.name), message.position, message.velocity, self._embodiment
            )
            stamp = ingest.stamp_to_ns(message.header.stamp)
            if self.source == "joint_states":
                self._append(self._times, self._rows, stamp, position)
            else:
                self._append(*self._measured, stamp, position)
        elif self.source == "approved" and event.topic == self._status:
            self._timeline.add_mode(GateMode(int(message.mode)), event.received)
        elif event.topic != self._topic:
            return
        elif self.source == "approved":
            self._timeline.add_chunk(ingest.chunk_from_msg(message), event.received)
        elif self.source == "joint_commands":
            row = np.asarray(message.data, dtype=np.float64)
            self._append(self._times, self._rows, event.received, self._checked(row))
        else:
            self._take_trajectory(message, event.received)

    def _take_trajectory(self, message: object, received: int) -> None:
        names = list(message.joint_names)  # type: ignore[attr-defined]
        if sorted(names) != sorted(self._embodiment.joint_names):
            raise mismatch(
                ErrorCode.JOINT_NAMES_MISMATCH,
                "joint_names of a trajectory",
                found=names,
                expected=list(self._embodiment.joint_names),
            )
        columns = [names.index(name) for name in self._embodiment.joint_names]
        stamp = ingest.stamp_to_ns(message.header.stamp) or received  # type: ignore[attr-defined]
        begin = bisect_right(self._times, stamp)
        del self._times[begin:], self._rows[begin:]
        for point in message.points:  # type: ignore[attr-defined]
            due = stamp + seconds_to_ns(ingest.duration_to_seconds(point.time_from_start))
            row = np.asarray(point.positions, dtype=np.float64)
            self._append(self._times, self._rows, due, self._checked(row)[columns])

    def _checked(self, row: FloatArray) -> FloatArray:
        if row.shape != (len(self._embodiment.joints),) or not np.isfinite(row).all():
            raise mismatch(
                ErrorCode.ACTION_DIM_MISMATCH,
                f"numbers of {self._topic}",
                found=row.tolist(),
                expected=f"{len(self._embodiment.joints)} finite ones",
            )
        return row

    def _append(self, times: list[int], rows: list[FloatArray], time: int, row: FloatArray) -> None:
        if time <= 0:
            raise mismatch(
                ErrorCode.STAMP_INVALID,
                f"stamp of a message of {self._topic}",
                found=f"{time} ns",
                expected="a time after 0",
            )
        if times and time < times[-1] - seconds_to_ns(BACK):
            times.clear()
            rows.clear()
        if times and time < times[-1]:
            # Stamps of one publisher hardly overtake each other; the earlier one is still in time.
            place = bisect_right(times, time)
            times.insert(place, time)
            rows.insert(place, row)
        else:
            times.append(time)
            rows.append(row)
        old = bisect_right(times, times[-1] - self._keep) - 1
        if old > 256:
            del times[:old], rows[:old]

    def at(self, time: int) -> FloatArray | None:
        """The set-point (J,) in m or rad in force at ``time`` ns; None where it is not known."""
        if time > self.known_until:
            return None
        if self.source == "approved":
            measured = self._nearest(*self._measured, time)
            if measured is None:
                measured = np.full(len(self._embodiment.joints), np.nan)
            setpoint = self._timeline.at(time, measured)
            return None if setpoint is None or not np.isfinite(setpoint).all() else setpoint
        if self.source == "joint_states":
            return self._nearest(self._times, self._rows, time + self._step)
        if self.source == "joint_commands":
            place = bisect_right(self._times, time) - 1
            if place < 0 or time - self._times[place] > seconds_to_ns(COMMAND_TIMEOUT):
                return None
            return self._rows[place]
        place = bisect_right(self._times, time)
        if place == len(self._times) or not self._times:
            return None
        return self._rows[place]

    def _nearest(self, times: list[int], rows: list[FloatArray], time: int) -> FloatArray | None:
        place = bisect_right(times, time)
        found = [i for i in (place - 1, place) if 0 <= i < len(times)]
        if not found:
            return None
        best = min(found, key=lambda i: abs(times[i] - time))
        allowed = seconds_to_ns(self._embodiment.observation.tolerance) + self._step // 2
        return rows[best] if abs(times[best] - time) <= allowed else None
