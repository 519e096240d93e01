"""The safety gate as a node: judges chunks, streams set-points, stops.

Plain software, not a certified safety function. Everything that decides is in
:mod:`worldforge_ros.safety`; this file moves messages and keeps time.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus, Heartbeat, Surprise
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros import convert, gate_messages, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.gate_drawing import GateDrawing
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.ros.raw import subscribe_raw
from worldforge_ros.safety import parameters as gate_parameters
from worldforge_ros.safety.gate import GateMode, Outcome, SafetyGate, SetPoint, Verdict
from worldforge_ros.safety.periods import Periods
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.sources import with_limits
from worldforge_ros.safety.trajectory import still_trajectory
from worldforge_ros.safety.workspace import workspace_of

STATUS_PERIOD = 1.0
"""Seconds between two statuses when nothing changes."""
SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the interpreter while the control thread waits for it."""
JOINT_STATE_BYTES = 65536
"""Largest joint state; it may hold joints that are not ours."""
SMALL_BYTES = 1024
"""Largest message of a stop or a heartbeat."""


class SafetyGateNode(Node):
    """A control thread of its own runs the gate; a lock makes it and the callbacks take turns.

    Commands are published while the lock is held: once a stop has been answered, no set-point of a
    chunk follows.
    """

    def __init__(self) -> None:
        super().__init__("safety_gate")
        parameters = Parameters(self)
        embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        urdf = parameters.text(
            "urdf", "", "path of a URDF whose limits tighten the embodiment's; empty: none"
        )
        overlay = parameters.text(
            "joint_limits", "", "path of a joint_limits.yaml that tightens them; empty: none"
        )
        self._embodiment, notes = with_limits(
            embodiment, Path(urdf) if urdf else None, Path(overlay) if overlay else None
        )
        for note in notes:
            self.get_logger().info(note)
        description = Path(urdf) if urdf else None
        workspace = workspace_of(self._embodiment, description)
        self._drawing = None if workspace is None else GateDrawing(self._embodiment, description)
        self._frame_id = parameters.text("frame_id", "base", "frame of statuses and commands")
        self._output = parameters.text(
            "output",
            "joint_commands",
            "joint_commands: set-points at control_rate; joint_trajectory: one per chunk; "
            "target_pose: pose of the end effector at control_rate",
            choices=tuple(gate_messages.OUTPUTS),
        )
        if self._output == "target_pose" and (workspace is None or workspace.effectors != 1):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"workspace of {self._embodiment.name}",
                found="absent" if workspace is None else f"{workspace.effectors} end effectors",
                expected="one end effector, whose pose is to be sent",
            )
        rate = parameters.number(
            "control_rate", 100.0, "ticks and set-points per second", minimum=1.0, maximum=1000.0
        )
        reliability = parameters.text(
            "sensor_reliability",
            "best_effort",
            "quality of service of joint states; with reliable a lost one holds newer ones back",
            choices=("reliable", "best_effort"),
        )
        surprise_topic = parameters.text(
            "surprise_topic",
            "score_node/surprise",
            "topic of the world model's surprise; counts where max_surprise is set",
        )
        config = gate_parameters.declare(Parameters(self, changeable=True))
        self._gate = SafetyGate(self._embodiment, config, workspace)
        self._diagnostics = Diagnostics(self)
        self._period = 1.0 / rate
        self._periods = Periods(count=round(rate * 10.0) + 1)

        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._validation_latency = 0.0
        self._capture_to_command = 0.0
        self._still_sent: object = None
        self._status_key: tuple[object, ...] = ()
        self._status_verdict: Verdict | None = None
        self._status_due = 0.0
        self._reported_error: Exception | None = None

        self._approved = self.create_publisher(ActionChunkMsg, "action_chunk/approved", qos.CHUNK)
        self._status = self.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
        self._markers = self.create_publisher(MarkerArray, "safety_gate/markers", qos.LATCHED)
        message_type = {
            "joint_commands": Float64MultiArray,
            "joint_trajectory": JointTrajectory,
            "target_pose": PoseStamped,
        }[self._output]
        self._commands = self.create_publisher(message_type, self._output, qos.CHUNK)
        most = config.max_horizon * len(self._embodiment.joints)
        self._proposed = subscribe_raw(
            self,
            ActionChunkMsg,
            "action_chunk/proposed",
            self._on_chunk,
            qos.CHUNK,
            gate_messages.chunk_bytes(most),
            self._on_unreadable_chunk,
        )
        self._subscribe(
            JointState,
            self._embodiment.observation.joint_state_topic,
            self._on_joint_state,
            qos.sensor(reliability, depth=1),
            JOINT_STATE_BYTES,
        )
        stops = [
            subscribe_raw(
                self,
                Bool,
                "safety_gate/protective_stop",
                self._on_protective_stop,
                profile,
                SMALL_BYTES,
                self._on_unreadable_stop,
            )
            for profile in qos.STOPS
        ]
        self._stops = stops[0]
        self._subscribe(Heartbeat, "heartbeat", self._on_heartbeat, qos.HEARTBEAT, SMALL_BYTES)
        self._subscribe(Surprise, surprise_topic, self._on_surprise, qos.REPORT, SMALL_BYTES)
        self.create_service(Trigger, "safety_gate/stop", self._on_stop)
        self.create_service(Trigger, "safety_gate/rearm", self._on_rearm)
        self.create_service(SetBool, "safety_gate/enable", self._on_enable)
        self.add_on_set_parameters_callback(self._on_parameters)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.5, self._diagnose, clock=steady)
        self._draw()
        self._thread = threading.Thread(target=self._control_loop, name="control")
        self._thread.start()

    def _subscribe(
        self, message_type: Any, topic: str, callback: Any, profile: Any, max_bytes: int
    ) -> Any:
        return subscribe_raw(
            self, message_type, topic, callback, profile, max_bytes, self._on_unreadable
        )

    def destroy_node(self) -> None:
        """End the control thread, then the node; a trajectory does not outlive it."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        if self.context.ok():
            self._stand_still()
        super().destroy_node()

    def _ros_now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _control_loop(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            scheduled = time.monotonic() >= due
            try:
                self._control()
            except Exception as error:
                if not self.context.ok():
                    return
                with self._lock:
                    self._gate.fault(error, time.monotonic())
            now = time.monotonic()
            if scheduled:
                self._periods.add(now)
                due += self._period
                if due < now:
                    # Late: go on from here, a burst of old ticks would serve nobody.
                    due = now + self._period

    def _control(self) -> None:
        with self._lock:
            self._gate.proposers(self._proposed.get_publisher_count())
            self._gate.stop_publishers(self._stops.get_publisher_count())
            self._step()
        self._publish_status()

    def _step(self) -> None:
        """Send what is to be commanded now; the caller holds the lock."""
        ros_now = self._ros_now()
        point = self._gate.tick(ros_now, time.monotonic())
        if point is not None:
            self._command(point, ros_now)

    def _command(self, point: SetPoint, ros_now: int) -> None:
        message: Any = None
        if self._output == "joint_commands":
            message = gate_messages.set_point(point)
        elif self._output == "target_pose":
            workspace = self._gate.workspace
            assert workspace is not None
            message = gate_messages.pose(
                workspace.poses(point.position)[0], self._ros_now(), self._frame_id
            )
        else:
            message = self._next_trajectory(point, ros_now)
        if message is not None:
            self._commands.publish(message)
        if point.first_of_chunk:
            elapsed = self._ros_now() - point.observation_stamp
            self._capture_to_command = elapsed / NANOSECONDS

    def _next_trajectory(self, point: SetPoint, ros_now: int) -> JointTrajectory | None:
        """A trajectory when something new begins: a chunk, braking, or standing still."""
        names = self._embodiment.joint_names
        trajectory = None
        brakes = point.braking and self._still_sent is not BRAKING
        stands = point.index < 0 and not point.braking and point.position is not self._still_sent
        if point.first_of_chunk or brakes or stands:
            trajectory = self._gate.trajectory(ros_now)
        if point.braking:
            self._still_sent = BRAKING
        else:
            self._still_sent = point.position if point.index < 0 else None
        return None if trajectory is None else gate_messages.trajectory(trajectory, names)

    def _publish_status(self) -> None:
        gate = self._gate
        now = time.monotonic()
        with self._lock:
            verdict = gate.last_verdict
            key = (gate.mode, gate.reason, gate.epoch)
            same = key == self._status_key and verdict is self._status_verdict
            if same and now < self._status_due:
                return
            message = gate_messages.status(
                gate,
                convert.header(self._ros_now(), self._frame_id),
                self._validation_latency,
                self._capture_to_command,
            )
            self._status_key, self._status_verdict = key, verdict
        self._status_due = now + STATUS_PERIOD
        self._status.publish(message)

    def _draw(self, chunk: ActionChunk | None = None, verdict: Verdict | None = None) -> None:
        """Drawing costs more than a verdict: only where somebody looks, and at the start."""
        if self._drawing is None:
            return
        if chunk is not None and verdict is not None:
            if self._markers.get_subscription_count() == 0:
                return
            self._drawing.take(chunk, verdict)
        self._markers.publish(self._drawing.message(self._ros_now()))

    def _stand_still(self) -> None:
        """Cut off what a trajectory controller was told, before it hears nothing more."""
        place = self._gate.place(time.monotonic())
        if self._output == "joint_trajectory" and place is not None:
            names = self._embodiment.joint_names
            self._commands.publish(gate_messages.trajectory(still_trajectory(place), names))

    def _on_joint_state(self, message: JointState) -> None:
        stamp = convert.stamp_to_ns(message.header.stamp)
        with self._lock:
            self._gate.update_joint_state(
                message.name, message.position, message.velocity, stamp, time.monotonic()
            )

    def _on_unreadable(self, error: WorldForgeError) -> None:
        if error.code is ErrorCode.INTERNAL:
            self._failed(error)
        self._diagnostics.error(error)

    def _on_unreadable_stop(self, error: WorldForgeError) -> None:
        # Whoever says something about the stop that cannot be read may have pressed it.
        with self._lock:
            self._gate.protective_stop(True, time.monotonic())
        self._wake.set()
        self._diagnostics.error(error)

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._gate.fault(error, time.monotonic())
        self._wake.set()

    def _on_unreadable_chunk(self, error: WorldForgeError) -> None:
        codes = {
            ErrorCode.MESSAGE_TOO_LARGE: ReasonCode.MESSAGE_TOO_LARGE,
            ErrorCode.MESSAGE_MALFORMED: ReasonCode.MALFORMED,
        }
        code = codes.get(error.code)
        if code is None:
            self._failed(error)
            return
        with self._lock:
            mode = self._gate.mode
            verdict = self._gate.refuse(0, code, error.message, self._ros_now(), time.monotonic())
            changed = self._gate.mode is not mode
        self._report(verdict, changed)

    def _on_chunk(self, message: ActionChunkMsg) -> None:
        arrived = time.perf_counter()
        chunk: ActionChunk | None = None
        with self._lock:
            mode = self._gate.mode
            self._gate.proposers(self._proposed.get_publisher_count())
            ros_now, now = self._ros_now(), time.monotonic()
            try:
                chunk = convert.chunk_from_msg(message)
            except WorldForgeError as error:
                verdict = self._gate.refuse(
                    message.sequence, ReasonCode.MALFORMED, error.message, ros_now, now
                )
            else:
                verdict = self._gate.submit(chunk, ros_now, now)
            changed = self._gate.mode is not mode
            self._validation_latency = time.perf_counter() - arrived
            if verdict.approved:
                # Here and not in the control thread, which would get the interpreter only once
                # this one lets go of it.
                self._step()
        if verdict.approved:
            self._approved.publish(gate_messages.approved(message, verdict))
        else:
            self._report(verdict, changed)
        if chunk is not None:
            self._draw(chunk, verdict)

    def _report(self, verdict: Verdict, changed: bool) -> None:
        # A refusal may have stopped the gate or made it brake; nothing else makes an early tick, or
        # a flood of chunks would become a flood of set-points.
        if changed:
            self._wake.set()
        if ReasonCode.NOT_ARMED in (reason.code for reason in verdict.reasons):
            self._diagnostics.waiting(
                WorldForgeError(ErrorCode.CHUNK_REJECTED, str(verdict.reasons[0]))
            )
            return
        listed = "; ".join(str(reason) for reason in verdict.reasons)
        self._diagnostics.error(
            WorldForgeError(
                ErrorCode.CHUNK_REJECTED, f"chunk {verdict.sequence} was rejected: {listed}"
            )
        )

    def _on_protective_stop(self, message: Bool) -> None:
        with self._lock:
            mode = self._gate.mode
            self._gate.protective_stop(message.data, time.monotonic())
            changed = self._gate.mode is not mode
        if changed:
            self._wake.set()

    def _on_heartbeat(self, message: Heartbeat) -> None:
        with self._lock:
            self._gate.beat(message.node, time.monotonic())

    def _on_surprise(self, message: Surprise) -> None:
        stamp = convert.stamp_to_ns(message.header.stamp)
        with self._lock:
            mode = self._gate.mode
            self._gate.surprise(
                float(message.standardised), stamp, self._ros_now(), time.monotonic()
            )
            changed = self._gate.mode is not mode
        if changed:
            self._wake.set()

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def stop() -> Outcome:
            self._gate.stop("safety_gate/stop was called", time.monotonic())
            return Outcome(True, "stopped")

        return self._answer(stop, response)

    def _on_rearm(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def rearm() -> Outcome:
            self._gate.proposers(self._proposed.get_publisher_count())
            return self._gate.rearm(self._ros_now(), time.monotonic())

        return self._answer(rearm, response)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def enable() -> Outcome:
            self._gate.proposers(self._proposed.get_publisher_count())
            if not request.data:
                self._stand_still()
            return self._gate.enable(request.data, self._ros_now(), time.monotonic())

        return self._answer(enable, response)

    def _answer(self, act: Callable[[], Outcome], response: Any) -> Any:
        """Do ``act`` under the lock; an exception of it is a stop, and the caller is told."""
        try:
            with self._lock:
                outcome = act()
        except Exception as error:
            self._failed(error)
            outcome = Outcome(False, f"the gate failed with {type(error).__name__}: {error}")
        self._wake.set()
        response.success = outcome.success
        response.message = outcome.message
        return response

    def _on_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            with self._lock:
                if any(change.name == "use_sim_time" for change in changes):
                    self._gate.check_changeable()
                if gate_parameters.concerns(changes):
                    policies = str(self.get_parameter("check_policies").value)
                    config = gate_parameters.changed(self._gate.config, changes, policies)
                    self._gate.configure(config)
        except WorldForgeError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:
            self._failed(error)
            return SetParametersResult(successful=False, reason=f"the gate failed: {error}")
        return SetParametersResult(successful=True)

    def _diagnose(self) -> None:
        with self._lock:
            mode, reason = self._gate.mode, self._gate.reason
            verdict, counters = self._gate.last_verdict, self._gate.counters
            error = self._gate.last_error
        self._diagnostics.set(
            mode=mode.name,
            reason=reason,
            chunks_approved=counters.approved,
            chunks_rejected=counters.rejected,
            steps_executed=counters.steps_executed,
            stops=counters.stops,
            **self._periods.summary(),
        )
        if error is not None and error is not self._reported_error:
            self._reported_error = error
            self.get_logger().error("".join(traceback.format_exception(error)))
        if mode is GateMode.STOPPED:
            self._diagnostics.error(WorldForgeError(ErrorCode.GATE_STOPPED, reason))
        elif verdict is None or verdict.approved:
            self._diagnostics.ok()


BRAKING = object()
"""Stands for a set-point that a trajectory controller has been told to brake from."""


def _started() -> SafetyGateNode:
    node = SafetyGateNode()
    # What the start made lives as long as the node: the collector need not look through it again
    # while the control thread waits.
    gc.collect()
    gc.freeze()
    return node


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    return runtime.run(_started, args)


if __name__ == "__main__":
    raise SystemExit(main())
