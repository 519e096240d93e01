"""What the gate would have said to a recording: its checks and watchdogs without a robot to move.

A recorded robot goes where it went, whatever the gate says now. So every chunk is judged as the
continuation of the set-points that were recorded before it, not of what the gate would have made of
earlier chunks, and after a stop the gate goes on watching from the next good joint state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.observation import NANOSECONDS, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.checks import Schedule, Verdict
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import GateMode, SafetyGate
from worldforge_ros.safety.limits import FloatArray
from worldforge_ros.safety.stream import SetPointStream
from worldforge_ros.safety.workspace import Workspace

_BEFORE = 6
"""Steps of the recording before a chunk: more than a jerk and the move before it look at."""


class ShadowGate(SafetyGate):
    """A :class:`SafetyGate` on recorded time, always as good as armed; all times are ns of the
    recording.

    What depends on live processes (publishers, heartbeats, stop buttons, the rate of chunks) is not
    judged: a recording does not hold it.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        config: GateConfig | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        given = config or GateConfig()
        super().__init__(
            embodiment,
            replace(
                given,
                heartbeats=(),
                protective_stop_required=False,
                max_chunk_rate=None,
                max_rejections=None,
                stop_after_hold=None,
            ),
            workspace,
        )
        self._mode = GateMode.HOLDING

    def observe(
        self,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
        stamp: int,
        received: int,
    ) -> list[tuple[int, str]]:
        """Take a recorded joint state; returns when and why the gate would have stopped."""
        stops = self.watch(received - 1)
        self.update_joint_state(names, position, velocity, stamp, received / NANOSECONDS)
        return [*stops, *self.watch(received)]

    def watch(self, time: int) -> list[tuple[int, str]]:
        """When and why the gate would have stopped until ``time``, because of what the last joint
        state was or for want of another.
        """
        if self._mode is not GateMode.STOPPED and self._measured is not None:
            last = round(self._measured.arrival * NANOSECONDS)
            limit = last + seconds_to_ns(self.config.joint_state_timeout) + 1
            flaws = self._joint_state_flaws(time, time / NANOSECONDS)
            if flaws:
                time = min(time, max(limit, last))
                self._latch(flaws[0], time / NANOSECONDS)
        if self._mode is not GateMode.STOPPED:
            return []
        # Once for each stop; it watches again from the next good joint state on.
        self._mode = GateMode.HOLDING
        self._measured = self._fault = None
        return [(time, self.reason)]

    def judge(
        self, chunk: ActionChunk, recorded: Callable[[int], FloatArray], received: int
    ) -> Verdict:
        """The verdict on ``chunk``, arriving at ``received``, if until then the robot was commanded
        what was recorded.

        :param recorded: the set-point (J,) in m or rad that was in force at a time in ns.
        """
        step = seconds_to_ns(chunk.step)
        held = chunk.stamp + (received - chunk.stamp) // step * step
        last = held if chunk.stamp <= received else chunk.stamp - step
        # In the middle of a step it is certain which set-point was in force.
        times = last + step // 2 - step * np.arange(_BEFORE - 1, -1, -1)
        path = np.stack([recorded(int(time)) for time in times]).astype(np.float64)
        start = last - (_BEFORE - 1) * step
        self._stream = SetPointStream(self._limits)
        self._stream.stay_at(path[0].copy(), start)
        self._stream.queue(Schedule(start, step, path, 0, chunk.observation_stamp))
        self._stream.advance(received)
        self._mode = GateMode.ARMED
        self._last_sequence = None
        verdict = self._judge(replace(chunk, epoch=self._epoch), received, received / NANOSECONDS)
        self._mode = GateMode.HOLDING
        return verdict
