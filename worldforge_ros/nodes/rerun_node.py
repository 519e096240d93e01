"""Writes what the nodes see, plan and do to a recording for the Rerun viewer."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from worldforge_ros import __version__
from worldforge_ros.bags.names import FIXED_TOPICS, TopicName, recorded_topics, robot_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.ingest import (
    chunk_from_msg,
    duration_to_seconds,
    image_from_msg,
    stamp_to_ns,
    tensor_from_msg,
)
from worldforge_ros.observation import order_joint_state, seconds_to_ns
from worldforge_ros.recording.rerun_file import FILE_NAME, RerunFile, When
from worldforge_ros.recording.summary import distro
from worldforge_ros.ros import runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.listening import LOOK_PERIOD, Listener
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.safety.workspace import Workspace, workspace_of

GIGA, MEGA = 1e9, 1e6
FLUSH_EVERY = 10
"""Looks for publishers between two times that what is buffered is written."""
PLAN_STAGES = ("observation", "propose", "score", "plan", "propose_model", "score_model")
GATE_STAGES = {"validation": "validation_latency", "capture_to_command": "capture_to_command"}


class RerunNode(Node):
    """Decodes what a recorder of bags records, but for ``observation`` and the proposed chunks,
    whose contents are in other messages, and hands it to a :class:`RerunFile`.

    A recording that fails or is full shows in ``/diagnostics`` and stops nothing else.
    """

    def __init__(self) -> None:
        super().__init__("rerun_node")
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        output_dir = parameters.text("output_dir", "", "folder to write; empty: runs/<time> here")
        self._jpeg_quality = parameters.integer(
            "jpeg_quality",
            90,
            "of raw pictures in the recording; 0: as they are",
            minimum=0,
            maximum=100,
        )
        self._max_bytes = GIGA * parameters.number(
            "max_gb", 20.0, "size at which the recording ends, GB", minimum=1e-4, maximum=1e5
        )
        urdf = parameters.text(
            "urdf", "", "path of a URDF, to draw end effectors that are links; empty: none"
        )
        self._urdf = Path(urdf) if urdf else None
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = Path(output_dir).expanduser() if output_dir else Path("runs") / now
        self._output = folder / FILE_NAME
        self.exit_code: int | None = None
        self._sim_time = bool(self.get_parameter("use_sim_time").value)
        self._diagnostics = Diagnostics(self)
        self._file: RerunFile | None = None
        self._trouble: WorldForgeError | None = None
        self._ended = ""
        self._looks = 0
        self._messages = 0
        self._lost: Counter[str] = Counter()
        robot = robot_topics(self._embodiment)
        handlers = {FIXED_TOPICS[role].name: getattr(self, f"_on_{role}") for role in ROLES}
        handlers |= {topic.name: self._on_joint_states for topic in robot["joint_states"]}
        self._cameras: dict[str, str] = {}
        for camera in self._embodiment.cameras:
            for topic in robot[camera]:
                handlers[topic.name] = self._on_picture
                self._cameras[topic.name] = camera
        self._handlers = handlers
        self._listener = Listener(
            self,
            [topic for topic in recorded_topics(self._embodiment) if topic.name in handlers],
            self._received,
            self._on_lost,
        )
        # Wall time: publishers must be found also before simulated time runs.
        self.create_timer(LOOK_PERIOD, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _look(self) -> None:
        if self._file is None:
            # An error here ends the process, before anything is armed.
            self._file = self._begin()
            self.get_logger().info(f"recording {self._output}")
        if self._now() == 0:
            self._diagnostics.waiting(
                mismatch(ErrorCode.TOPIC_MISSING, "/clock", found="silent", expected="ROS time")
            )
            return
        problem = self._listener.look()
        self._looks += 1
        if self._looks % FLUSH_EVERY == 0 and not self._ended:
            self._flush(self._file)
        self._report(self._file, problem)

    def _begin(self) -> RerunFile:
        return RerunFile(
            self._output,
            self._embodiment,
            self._workspace(),
            simulated=self._sim_time,
            jpeg_quality=self._jpeg_quality,
            notes={
                "worldforge_ros": __version__,
                "distro": distro(),
                "embodiment": self._embodiment.name,
            },
        )

    def _workspace(self) -> Workspace | None:
        """Where candidates are drawn; a recording without them is better than none."""
        try:
            return workspace_of(self._embodiment, self._urdf)
        except WorldForgeError as error:
            self._diagnostics.set(not_drawn=error.message)
            self.get_logger().warning(f"candidates are not drawn: {error}")
            return None

    def _flush(self, file: RerunFile) -> None:
        try:
            file.flush()
        except WorldForgeError as error:
            self._trouble, self._ended = error, error.message
            return
        if file.size_bytes >= self._max_bytes:
            self._ended = f"it has {file.size_bytes} bytes; the bound is {self._max_bytes:.0f}"
            self._trouble = WorldForgeError(ErrorCode.RECORDING_INCOMPLETE, self._ended)

    def _report(self, file: RerunFile, problem: WorldForgeError | None) -> None:
        lost = sum(self._lost.values())
        self._diagnostics.set(
            recording=file.path,
            messages=self._messages,
            megabytes=f"{file.size_bytes / MEGA:.1f}",
            lost=lost,
            ended=self._ended,
        )
        if lost and self._trouble is None:
            found = ", ".join(f"{count} of {topic}" for topic, count in sorted(self._lost.items()))
            self._trouble = WorldForgeError(
                ErrorCode.RECORDING_INCOMPLETE,
                f"messages are missing in recording {file.path} ({found}); "
                "expected a machine that keeps up",
            )
        problem = self._trouble or problem
        if problem is not None:
            self._diagnostics.error(problem)
        elif not self._listener.hears:
            self._diagnostics.waiting(self._listener.silence)
        else:
            self._diagnostics.ok()

    def _on_lost(self, topic: str, count: int) -> None:
        self._lost[topic] += count

    def _received(self, topic: str, what: TopicName, message: Any, info: Any) -> None:
        if self._file is None or self._ended:
            return
        received = int(info.get("received_timestamp", 0)) or int(
            Clock(clock_type=ClockType.SYSTEM_TIME).now().nanoseconds
        )
        try:
            self._handlers[what.name](self._file, what, message, received)
        except WorldForgeError as error:
            self._diagnostics.error(error)
        except Exception as error:
            self._diagnostics.unexpected(error, f"recording {topic}")
        else:
            self._messages += 1

    def _when(self, stamp: Any, received: int) -> When:
        """On both timelines; what carries no stamp is put at the ROS time now."""
        return When(stamp_to_ns(stamp) or self._now(), received)

    def _on_picture(self, file: RerunFile, what: TopicName, message: Any, received: int) -> None:
        camera, when = self._cameras[what.name], self._when(message.header.stamp, received)
        if hasattr(message, "format"):
            file.encoded_picture(camera, message.data, message.format, when)
        else:
            file.picture(camera, image_from_msg(message, f"camera {camera}"), when)

    def _on_goal_image(self, file: RerunFile, what: TopicName, message: Any, received: int) -> None:
        image = image_from_msg(message, "goal_image")
        file.goal(image, self._when(message.header.stamp, received))

    def _on_joint_states(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        positions, _ = order_joint_state(
            message.name, message.position, message.velocity, self._embodiment
        )
        file.joints(positions, self._when(message.header.stamp, received))

    def _on_joint_commands(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        file.commands(np.array(message.data, np.float64), When(self._now(), received))

    def _on_joint_trajectory(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        begin = self._when(message.header.stamp, received)
        names = list(message.joint_names)
        order = [names.index(name) for name in self._embodiment.joint_names if name in names]
        for point in message.points:
            setpoints = np.array(point.positions, np.float64)[order]
            ahead = seconds_to_ns(duration_to_seconds(point.time_from_start))
            file.commands(setpoints, begin._replace(ros=begin.ros + ahead))

    def _on_target_pose(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        point = message.pose.position
        when = self._when(message.header.stamp, received)
        file.target(np.array([point.x, point.y, point.z]), when)

    def _on_plan_report(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        candidates = tensor_from_msg(message.candidates, "candidates")
        joints = len(self._embodiment.joints)
        file.plan(
            candidates[0] if candidates.ndim == 4 else np.empty((0, 0, joints), np.float32),
            np.array(message.costs, np.float32),
            np.array(message.reachable, np.bool_),
            message.chosen,
            message.margin,
            message.outcome,
            message.message,
            {
                stage: duration_to_seconds(getattr(message, f"{stage}_latency"))
                for stage in PLAN_STAGES
            },
            self._when(message.observation_stamp, received),
        )

    def _on_gate_status(
        self, file: RerunFile, what: TopicName, message: Any, received: int
    ) -> None:
        codes = zip(message.reason_codes, message.reason_messages, strict=True)
        file.gate(
            message.mode,
            message.mode_name,
            message.reason,
            message.verdict,
            message.verdict_sequence,
            [f"{code}: {text}" for code, text in codes],
            {
                stage: duration_to_seconds(getattr(message, name))
                for stage, name in GATE_STAGES.items()
            },
            self._when(message.header.stamp, received),
        )

    def _on_approved(self, file: RerunFile, what: TopicName, message: Any, received: int) -> None:
        chunk = chunk_from_msg(message)
        file.approved(chunk.actions, self._when(message.header.stamp, received))

    def _on_surprise(self, file: RerunFile, what: TopicName, message: Any, received: int) -> None:
        when = self._when(message.header.stamp, received)
        file.surprise(message.error, message.standardised, when)

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def destroy_node(self) -> None:
        """Close the recording, then the node."""
        if self._file is not None:
            try:
                self._file.close()
            except WorldForgeError as error:
                self._trouble = self._trouble or error
            # The context may be gone, and with it the logger's topic.
            print(
                f"wrote {self._output}: {self._messages} messages, "
                f"{self._file.size_bytes / MEGA:.1f} MB",
                flush=True,
            )
            if self._trouble is not None:
                self.exit_code = runtime.EXIT_FAILED
                print(f"worldforge: {self._trouble}", flush=True)
        super().destroy_node()


ROLES = (
    "goal_image",
    "plan_report",
    "approved",
    "gate_status",
    "joint_commands",
    "joint_trajectory",
    "target_pose",
    "surprise",
)
"""Of :data:`FIXED_TOPICS`, those that are decoded."""


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(RerunNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
