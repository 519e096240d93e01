"""Runs one episode as an operator would: waits until everything answers, arms, watches, disarms.

It takes part in nothing that moves the robot; planner and gate work the same without it.

The system counts as ready when the services are there, the gate has told its status and the planner
has ended a cycle with OK on an observation of this episode. That cycle proves that cameras, joint
states, both models and the goal are all in place, which the mere presence of services does not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from worldforge_ros.bringup import LONGEST_RECORDING, TASKS
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import ActionChunk, GateStatus, Observation, PlanReport
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.recording.gif import FRAME_PERIOD, write_gif
from worldforge_ros.recording.log import ChunkSample, EpisodeLog, GateSample, Picture
from worldforge_ros.recording.progress import ProgressLine
from worldforge_ros.recording.report import write_report
from worldforge_ros.recording.summary import (
    check_complete,
    checkpoint_hashes,
    summarise,
    table,
)
from worldforge_ros.resources import resolve_path
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.scorers.checkpoint import find_checkpoint
from worldforge_ros.srv import ProposeActions, ScoreCandidates

EXIT_FAILED = 1
TICK = 0.02
"""Seconds between two steps of the script."""
CALL_TIMEOUT = 3.0
"""Seconds to wait for the reply of a service."""
CALL_ATTEMPTS = 3
ARM_TIMEOUT = 10.0
"""Seconds in which the gate may go on refusing to arm."""
ARM_RETRY = 0.5
STATUS_TIMEOUT = 5.0
"""Seconds until the gate's status shows that it has armed or disarmed."""

# A recorder wants every message, also those that arrive while it is busy with another.
_ALL = qos.REPORT
_ALL_LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

Script = Generator[None, None, None]


class EpisodeNode(Node):
    """Arms the gate once everything answers; with ``record`` writes the report of one episode."""

    def __init__(self) -> None:
        super().__init__("episode_node")
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        task = TASKS[
            parameters.text("task", "pusht", "what its simulator measures", choices=tuple(TASKS))
        ]
        self._sim = parameters.flag("sim", True, "a simulator runs: reset it, read its progress")
        self._reset_first = parameters.flag(
            "reset", True, "reset the simulator first, which takes its next seed"
        )
        self._arm = parameters.flag("arm", True, "arm the gate once everything answers")
        self._record = parameters.flag("record", True, "write summary, picture and report")
        seed = parameters.integer(
            "seed", 0, "seed of the episode, for the summary", minimum=0, maximum=2**31 - 1
        )
        self._duration = parameters.number(
            "duration", 30.0, "seconds of ROS time; 0: no end", minimum=0.0, maximum=86400.0
        )
        self._startup_timeout = parameters.number(
            "startup_timeout",
            180.0,
            "seconds until everything answers",
            minimum=1.0,
            maximum=3600.0,
        )
        self._stall_timeout = parameters.number(
            "stall_timeout",
            10.0,
            "seconds without a gate status or without progress of ROS time",
            minimum=1.0,
            maximum=600.0,
        )
        output_dir = parameters.text("output_dir", "", "folder to write; empty: runs/<time> here")
        has_policy = parameters.flag("policy", True, "wait for a policy that proposes")
        has_scorer = parameters.flag("scorer", True, "wait for a world model that scores")
        policy_path = parameters.text("policy_path", "", "checkpoint of the policy, for its hash")
        model_path = parameters.text("model_path", "", "checkpoint of the world model, same")
        if self._record and not 0 < self._duration <= LONGEST_RECORDING:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "parameter duration",
                found=self._duration,
                expected=f"above 0 and at most {LONGEST_RECORDING:g} when recording",
            )
        self._checkpoints: dict[str, str] = {}
        if policy_path:
            self._checkpoints.update(checkpoint_hashes("policy", resolve_path(policy_path)))
        if model_path:
            world_model = find_checkpoint(str(resolve_path(model_path)))
            single = world_model.kind == "object"
            path = world_model.weights if single else world_model.folder
            self._checkpoints.update(checkpoint_hashes("world_model", path))
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self._output_dir = Path(output_dir).expanduser() if output_dir else Path("runs") / now

        self.exit_code: int | None = None
        self._log = EpisodeLog(
            seed=seed,
            figure=task.figure,
            task=self._embodiment.task,
            extent=_extent(self._embodiment),
        )
        self._recording = False
        self._start = 0
        self._gate: GateStatus | None = None
        self._gate_before: GateStatus | None = None
        self._gate_heard = time.monotonic()
        self._plan: PlanReport | None = None
        self._value: float | None = None
        self._deadline_misses: int | None = None
        self._progress = ProgressLine(sys.stdout)

        self.create_subscription(GateStatus, "safety_gate/status", self._on_gate, _ALL_LATCHED)
        self.create_subscription(PlanReport, "plan_report", self._on_plan, _ALL)
        self._enable = self.create_client(SetBool, "safety_gate/enable")
        self._needed = {"safety_gate/enable": self._enable}
        if has_policy:
            self._needed["propose_actions"] = self.create_client(ProposeActions, "propose_actions")
        if has_scorer:
            name = "score_candidates"
            self._needed[name] = self.create_client(ScoreCandidates, name)
        if self._sim:
            self._reset_name = f"{task.simulator}/reset"
            self._reset = self.create_client(Trigger, self._reset_name)
            self._needed[self._reset_name] = self._reset
            topic = f"{task.simulator}/{task.figure.name}"
            self.create_subscription(Float64, topic, self._on_progress, _ALL_LATCHED)
        if self._record:
            self.create_subscription(Observation, "observation", self._on_observation, _ALL)
            self.create_subscription(ActionChunk, "action_chunk/approved", self._on_chunk, _ALL)
            self.create_subscription(Image, "goal_image", self._on_goal, qos.LATCHED)
            if self._sim:
                self.create_subscription(
                    Image, "camera/overview/image_raw", self._on_overview, qos.sensor("reliable")
                )
        self._script = self._episode()
        # Wall time: the deadlines must pass also when simulated time stands still.
        self.create_timer(TICK, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _tick(self) -> None:
        try:
            next(self._script)
        except StopIteration:
            self.exit_code = self.exit_code or 0
        except WorldForgeError as error:
            self._progress.done()
            print(f"worldforge: {error}", file=sys.stderr, flush=True)
            self.exit_code = EXIT_FAILED

    def _episode(self) -> Script:
        """The whole episode; each ``yield`` returns at the next tick."""
        yield from self._until(
            lambda: not self._missing(), self._startup_timeout, "ready", self._missing_text
        )
        if self._sim and self._reset_first:
            reply = yield from self._request(self._reset, Trigger.Request(), self._reset_name)
            self._log.seed = _seed_of(reply.message, self._log.seed)
        begun = self._now()
        yield from self._until(
            lambda: self._plan_after(begun), self._startup_timeout, "planning", self._plan_text
        )
        if self._arm:
            yield from self._set_armed(True)
            # Verdicts on chunks that came too early are no part of the episode.
            yield from self._until(
                lambda: not self._is_disarmed(),
                STATUS_TIMEOUT,
                "armed",
                self._mode_text,
            )
            self._say("gate armed")
        self._gate_before = self._gate
        if self._record:
            self._begin_recording()
        try:
            ended = yield from self._watch()
        except WorldForgeError:
            if self._arm:
                # Nobody waits for the reply: this process ends with the error that brought it here.
                self._enable.call_async(SetBool.Request(data=False))
            raise
        if self._arm:
            yield from self._set_armed(False)
            # The last status has the final counters.
            yield from self._until(self._is_disarmed, STATUS_TIMEOUT, "disarmed", self._mode_text)
            self._say("gate disarmed")
        if self._record:
            self._end_recording()
            self._write(ended)

    def _until(
        self,
        ready: Callable[[], bool],
        seconds: float,
        goal: str,
        missing: Callable[[], str],
    ) -> Script:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise WorldForgeError(
                    ErrorCode.EPISODE_INCOMPLETE,
                    f"the system is not {goal} after {seconds:g} s: {missing()}",
                )
            self._progress.show(f"waiting: {missing()}")
            yield

    def _missing(self) -> list[str]:
        missing = [
            f"service {name}"
            for name, client in self._needed.items()
            if not client.service_is_ready()
        ]
        if self._gate is None:
            missing.append("safety_gate/status")
        return missing

    def _missing_text(self) -> str:
        return f"no {', no '.join(self._missing())}"

    def _is_disarmed(self) -> bool:
        return self._gate is not None and self._gate.mode == GateStatus.DISARMED

    def _mode_text(self) -> str:
        return f"the gate is {'silent' if self._gate is None else self._gate.mode_name}"

    def _plan_after(self, stamp: int) -> bool:
        plan = self._plan
        return (
            plan is not None
            and plan.outcome == "OK"
            and convert.stamp_to_ns(plan.observation_stamp) > stamp
        )

    def _plan_text(self) -> str:
        if self._plan is None:
            return "no plan_report yet; expected one with outcome OK"
        if self._plan.outcome == "OK":
            return "no plan yet from an observation of this episode"
        return f"the last plan ended with {self._plan.outcome}: {self._plan.message}"

    def _request(self, client: Any, request: Any, name: str) -> Generator[None, None, Any]:
        """Call a service; replies get lost now and then, so a late one is asked for again."""
        for _ in range(CALL_ATTEMPTS):
            future = client.call_async(request)
            deadline = time.monotonic() + CALL_TIMEOUT
            while not future.done() and time.monotonic() < deadline:
                yield
            if future.done():
                return future.result()
            client.remove_pending_request(future)
        raise WorldForgeError(
            ErrorCode.EPISODE_INCOMPLETE,
            f"service {name} gave no answer to {CALL_ATTEMPTS} calls; "
            f"expected one within {CALL_TIMEOUT:g} s",
        )

    def _set_armed(self, on: bool) -> Script:
        deadline = time.monotonic() + ARM_TIMEOUT
        while True:
            request = SetBool.Request(data=on)
            reply = yield from self._request(self._enable, request, "safety_gate/enable")
            if reply.success:
                return
            if time.monotonic() > deadline:
                raise WorldForgeError(
                    ErrorCode.EPISODE_INCOMPLETE,
                    f"safety_gate/enable with {str(on).lower()} answered '{reply.message}'; "
                    "expected success",
                )
            pause = time.monotonic() + ARM_RETRY
            while time.monotonic() < pause:
                yield

    def _watch(self) -> Generator[None, None, str]:
        """Until the task is solved, the time is over or the gate stops; returns which."""
        start = self._now()
        last, moved = start, time.monotonic()
        self._gate_heard = moved
        while True:
            now = self._now()
            if now != last:
                last, moved = now, time.monotonic()
            self._check_alive(moved)
            elapsed = (now - start) / NANOSECONDS
            self._progress.show(self._progress_text(elapsed))
            if self._duration > 0:
                if self._log.figure.solved(self._value):
                    return "solved"
                if elapsed >= self._duration:
                    return "duration over"
            if self._gate is not None and self._gate.mode == GateStatus.STOPPED and self._record:
                return f"gate stopped: {self._gate.reason}"
            yield

    def _check_alive(self, moved: float) -> None:
        now = time.monotonic()
        for silent, what in ((now - moved, "ROS time"), (now - self._gate_heard, "the gate")):
            if silent > self._stall_timeout:
                raise WorldForgeError(
                    ErrorCode.EPISODE_INCOMPLETE,
                    f"{what} has stood still for {silent:.1f} s; "
                    f"expected news within {self._stall_timeout:g} s",
                )

    def _progress_text(self, elapsed: float) -> str:
        parts = [f"{elapsed:5.1f} s"]
        if self._duration > 0:
            parts[0] += f" of {self._duration:g} s"
        if self._value is not None:
            figure = self._log.figure
            parts.append(f"{figure.name} {figure.text(self._value):>4}")
        if self._gate is not None:
            parts.append(f"gate {self._gate.mode_name}")
            before = self._gate_before or self._gate
            parts.append(f"approved {self._gate.chunks_approved - before.chunks_approved}")
            parts.append(f"rejected {self._gate.chunks_rejected - before.chunks_rejected}")
        if self._plan is not None:
            parts.append(f"plan {self._plan.cycle} {self._plan.outcome}")
        return "   ".join(parts)

    def _begin_recording(self) -> None:
        self._start = self._now()
        self._wall_start = time.monotonic()
        self._recording = True
        if self._gate is not None:
            self._log.gate.append(self._gate_sample(self._gate))
        if self._value is not None:
            self._log.progress.append((0.0, self._value))

    def _end_recording(self) -> None:
        self._recording = False
        self._log.duration = self._elapsed()
        self._log.wall_duration = time.monotonic() - self._wall_start

    def _write(self, ended: str) -> None:
        self._say(f"episode ended: {ended}; writing {self._output_dir}")
        self._output_dir.mkdir(parents=True, exist_ok=True)
        summary = {"ended": ended, **summarise(self._log, checkpoints=self._checkpoints)}
        path = self._output_dir / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        picture = self._output_dir / "episode.gif"
        if self._log.overview or self._log.camera:
            write_gif(self._log, picture)
        write_report(self._log, summary, picture, self._output_dir / "report.html")
        print(f"\n{table(summary)}\n\nreport     {self._output_dir / 'report.html'}", flush=True)
        check_complete(summary)

    def _say(self, text: str) -> None:
        self._progress.done()
        print(text, flush=True)

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _elapsed(self, stamp: int | None = None) -> float:
        return ((self._now() if stamp is None else stamp) - self._start) / NANOSECONDS

    def _on_gate(self, message: GateStatus) -> None:
        self._gate = message
        self._gate_heard = time.monotonic()
        if self._recording:
            self._log.gate.append(self._gate_sample(message))

    def _gate_sample(self, message: GateStatus) -> GateSample:
        return GateSample(
            time=self._elapsed(convert.stamp_to_ns(message.header.stamp)),
            mode=message.mode_name,
            reason=message.reason,
            verdict=message.verdict,
            verdict_sequence=message.verdict_sequence,
            reason_codes=tuple(message.reason_codes),
            chunks_received=message.chunks_received,
            chunks_approved=message.chunks_approved,
            chunks_rejected=message.chunks_rejected,
            steps_executed=message.steps_executed,
            rejected=dict(zip(message.rejected_codes, message.rejected_counts, strict=True)),
            validation_latency=convert.duration_to_seconds(message.validation_latency),
            capture_to_command=convert.duration_to_seconds(message.capture_to_command),
        )

    def _on_plan(self, message: PlanReport) -> None:
        before, self._plan = self._plan, message
        if not self._recording:
            return
        self._log.planner = message.planner
        missed = message.deadline_misses - (before.deadline_misses if before is not None else 0)
        self._log.deadline_misses += max(missed, 0)
        time_ = self._elapsed(convert.stamp_to_ns(message.header.stamp))
        self._log.plans.append(convert.plan_sample(message, time_))

    def _on_progress(self, message: Float64) -> None:
        self._value = message.data
        if self._recording:
            self._log.progress.append((self._elapsed(), message.data))

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._recording:
            chunk = convert.chunk_from_msg(message)
            actions = chunk.actions.astype(np.float32)
            self._log.chunks.append(ChunkSample(self._elapsed(chunk.stamp), chunk.step, actions))

    def _on_observation(self, message: Observation) -> None:
        if not self._recording:
            return
        self._log.observations += 1
        if message.images:
            stamp = convert.stamp_to_ns(message.header.stamp)
            self._keep(self._log.camera, stamp, message.images[0], "observation.images[0]")

    def _on_overview(self, message: Image) -> None:
        if self._recording:
            stamp = convert.stamp_to_ns(message.header.stamp)
            self._keep(self._log.overview, stamp, message, "camera overview")

    def _keep(self, pictures: list[Picture], stamp: int, message: Image, field: str) -> None:
        """Store a picture unless the one before it is too young: the film has its own rate."""
        time_ = self._elapsed(stamp)
        # Half a camera period of slack, so that 10 Hz gives exactly every second picture.
        if time_ < 0 or (pictures and time_ - pictures[-1].time < FRAME_PERIOD - 0.05):
            return
        pictures.append(Picture.pack(time_, convert.image_from_msg(message, field)))

    def _on_goal(self, message: Image) -> None:
        self._log.goal = convert.image_from_msg(message, "goal_image")


def _extent(embodiment: Embodiment) -> tuple[float, float, float, float] | None:
    """Corners of the workspace when the two joints are the axes of the picture, as in PushT."""
    joints = embodiment.joints
    bounds = [(joint.min_position, joint.max_position) for joint in joints]
    if len(joints) != 2 or any(joint.type != "prismatic" for joint in joints):
        return None
    (left, right), (top, bottom) = bounds
    if left is None or right is None or top is None or bottom is None:
        return None
    return left, top, right, bottom


def _seed_of(message: str, default: int) -> int:
    """The seed that the simulator says its new episode has."""
    words = message.split()
    return int(words[-1]) if words and words[-1].isdecimal() else default


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(EpisodeNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
