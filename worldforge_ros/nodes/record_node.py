"""Writes what the nodes see, plan and do to an MCAP bag.

Messages are taken as bytes and never decoded.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from worldforge_ros import __version__
from worldforge_ros.bags.names import TopicName, TopicQuality, recorded_topics
from worldforge_ros.bags.recorder import Recorded, Recorder
from worldforge_ros.bags.writer import COMPRESSIONS, check_free
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.recording.summary import checkpoint_hashes, distro
from worldforge_ros.resources import resolve_path
from worldforge_ros.ros import runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.listening import LOOK_PERIOD, Listener
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.scorers.checkpoint import find_checkpoint

GIGA = 1_000_000_000
MEGA = 1_000_000


class RecordNode(Node):
    """Subscribes to everything that a replay can use and hands the bytes to a :class:`Recorder`.

    A recording that fails or is full shows in ``/diagnostics`` and stops nothing else.
    """

    def __init__(self) -> None:
        super().__init__("record_node")
        parameters = Parameters(self)
        embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        output = parameters.text("output", "", "bag folder to make; empty: bags/<time> here")
        cameras = parameters.flag(
            "cameras", True, "record the cameras; without, pictures are only in observation"
        )
        self._compression = parameters.text(
            "compression", "zstd", "of the bag's chunks", choices=COMPRESSIONS
        )
        self._max_bytes = GIGA * parameters.number(
            "max_gb", 20.0, "size at which the recording ends, GB", minimum=1e-4, maximum=1e5
        )
        self._queue_bytes = MEGA * parameters.integer(
            "queue_mb",
            128,
            "messages that may wait for the disk, MB; more are dropped and counted",
            minimum=0,
            maximum=100_000,
        )
        policy_path = parameters.text("policy_path", "", "checkpoint of the policy, for its hash")
        model_path = parameters.text("model_path", "", "checkpoint of the world model, same")
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self._output = Path(output).expanduser() if output else Path("bags") / now
        check_free(self._output)
        self._notes = {
            "worldforge_ros": __version__,
            "distro": distro(),
            "embodiment": embodiment.name,
            "embodiment_sha256": hashlib.sha256(repr(embodiment).encode()).hexdigest(),
        }
        checkpoints: dict[str, str] = {}
        if policy_path:
            checkpoints |= checkpoint_hashes("policy", resolve_path(policy_path))
        if model_path:
            found = find_checkpoint(str(resolve_path(model_path)))
            weights = found.weights if found.kind == "object" else found.folder
            checkpoints |= checkpoint_hashes("world_model", weights)
        self._notes["checkpoints"] = json.dumps(checkpoints, sort_keys=True)
        self.exit_code: int | None = None
        self._sim_time = bool(self.get_parameter("use_sim_time").value)
        self._diagnostics = Diagnostics(self)
        self._recorder: Recorder | None = None
        self._listener = Listener(
            self,
            recorded_topics(embodiment, cameras),
            self._received,
            self._on_lost,
            declared=self._declare,
            raw=True,
        )
        # Wall time: publishers must be found also before simulated time runs.
        self.create_timer(LOOK_PERIOD, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def state(self) -> Recorded | None:
        """How the recording stands; None before it has begun. ``dropped`` has also what was lost
        on its way to this process.
        """
        return None if self._recorder is None else self._recorder.state

    def _look(self) -> None:
        if self._recorder is None:
            # An error here ends the process, before anything is armed.
            self._recorder = Recorder(
                self._output,
                compression=self._compression,
                max_bytes=int(self._max_bytes),
                queue_bytes=self._queue_bytes,
                notes=lambda: self._notes,
            )
        if self._now() == 0:
            self._diagnostics.waiting(
                mismatch(ErrorCode.TOPIC_MISSING, "/clock", found="silent", expected="ROS time")
            )
            return
        self._report(self._recorder, self._listener.look())

    def _declare(self, topic: str, what: TopicName, quality: TopicQuality) -> None:
        if self._recorder is not None:
            self._recorder.declare(topic, what.type, quality)

    def _received(self, topic: str, what: TopicName, data: bytes, info: Any) -> None:
        if self._recorder is None:
            return
        # In wall time the middleware knows better than this thread when a message came.
        received = 0 if self._sim_time else int(info.get("received_timestamp", 0))
        self._recorder.put(topic, what.type, received if received > 0 else self._now(), data)

    def _on_lost(self, topic: str, count: int) -> None:
        if self._recorder is not None:
            self._recorder.lost(topic, count)

    def _report(self, recorder: Recorder, problem: WorldForgeError | None) -> None:
        state = recorder.state
        dropped = sum(state.dropped.values())
        self._diagnostics.set(
            bag=self._output,
            topics=len(state.counts),
            messages=state.messages,
            megabytes=f"{state.bytes / MEGA:.1f}",
            queued_bytes=state.queued_bytes,
            dropped=dropped,
            ended=state.ended,
        )
        if state.ended:
            problem = WorldForgeError(ErrorCode.RECORDING_INCOMPLETE, state.ended)
        problem = recorder.trouble or problem
        if problem is not None:
            self._diagnostics.error(problem)
        elif not self._listener.hears:
            self._diagnostics.waiting(self._listener.silence)
        else:
            self._diagnostics.ok()

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def destroy_node(self) -> None:
        """Close the bag, then the node."""
        if self._recorder is not None:
            state = self._recorder.close("stopped")
            # The context may be gone, and with it the logger's topic.
            print(
                f"wrote {self._output}: {state.messages} messages, {state.bytes / MEGA:.1f} MB",
                flush=True,
            )
            trouble = self._recorder.trouble
            if trouble is not None:
                self.exit_code = runtime.EXIT_FAILED
                print(f"worldforge: {trouble}", flush=True)
        super().destroy_node()


def record(arguments: list[str], duration: float, show: Callable[[Recorded], None]) -> int:
    """Record in this process until it is interrupted or the recording has ended.

    :param arguments: of the node, from ``--ros-args`` on.
    :param duration: seconds of wall time after which it ends, 0: no end.
    :param show: called with how it stands, several times a second.
    :returns: the node's exit status.
    """

    def make() -> RecordNode:
        node = RecordNode()
        begun = time.monotonic()

        def turn() -> None:
            state = node.state
            if state is None:
                return
            show(state)
            if state.ended or 0 < duration <= time.monotonic() - begun:
                node.exit_code = 0

        node.create_timer(LOOK_PERIOD, turn, clock=Clock(clock_type=ClockType.STEADY_TIME))
        return node

    return runtime.run(make, arguments)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(RecordNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
