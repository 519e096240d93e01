"""The safety gate as a node: judges chunks, streams set-points, stops.

Plain software, not a certified safety function. Everything that decides is in
:mod:`worldforge_ros.safety`; this file moves messages and keeps time.
"""

from __future__ import annotations

import array
import threading
import time
import traceback
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.safety.gate import (
    GateConfig,
    GateCounters,
    GateMode,
    Outcome,
    Reason,
    ReasonCode,
    SafetyGate,
    SetPoint,
    Trajectory,
    Verdict,
)

STATUS_PERIOD = 1.0
"""Seconds between two statuses when nothing changes."""
HOLD_TIME = 0.1
"""Seconds in which a trajectory controller is to reach a hold position."""


class SafetyGateNode(Node):
    """A control thread of its own runs the gate; a lock makes it and the callbacks take turns.

    Commands are published while the lock is held: once a stop has been answered, no set-point of a
    chunk follows.
    """

    def __init__(self) -> None:
        super().__init__("safety_gate")
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        self._frame_id = parameters.text("frame_id", "base", "frame of statuses and commands")
        self._streams = (
            parameters.text(
                "output",
                "joint_commands",
                "joint_commands: set-points at control_rate; joint_trajectory: one per chunk",
                choices=("joint_commands", "joint_trajectory"),
            )
            == "joint_commands"
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
        self._period = 1.0 / rate
        self._gate = SafetyGate(self._embodiment, _gate_config(parameters))
        self._diagnostics = Diagnostics(self)

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
        self._commands = (
            self.create_publisher(Float64MultiArray, "joint_commands", qos.CHUNK)
            if self._streams
            else self.create_publisher(JointTrajectory, "joint_trajectory", qos.CHUNK)
        )
        self._proposed = self.create_subscription(
            ActionChunkMsg, "action_chunk/proposed", self._on_chunk, qos.CHUNK
        )
        self.create_subscription(
            JointState,
            self._embodiment.observation.joint_state_topic,
            self._on_joint_state,
            qos.sensor(reliability, depth=1),
        )
        # The latched subscription sees a stop from before this node's start; a publisher that is
        # not transient local is heard by the other one only.
        for profile in (qos.LATCHED, qos.CHUNK):
            self.create_subscription(
                Bool, "safety_gate/protective_stop", self._on_protective_stop, profile
            )
        self.create_service(Trigger, "safety_gate/stop", self._on_stop)
        self.create_service(Trigger, "safety_gate/rearm", self._on_rearm)
        self.create_service(SetBool, "safety_gate/enable", self._on_enable)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.5, self._diagnose, clock=steady)
        self._thread = threading.Thread(target=self._control_loop, name="control")
        self._thread.start()

    def destroy_node(self) -> None:
        """End the control thread, then the node."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        super().destroy_node()

    def _ros_now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _control_loop(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self._control()
            except Exception as error:
                if not self.context.ok():
                    return
                with self._lock:
                    self._gate.fault(error, time.monotonic())
            now = time.monotonic()
            if now >= due:
                due += self._period
                if due < now:
                    # Late: go on from here, a burst of old ticks would serve nobody.
                    due = now + self._period

    def _control(self) -> None:
        with self._lock:
            ros_now = self._ros_now()
            point = self._gate.tick(ros_now, time.monotonic())
            if point is not None:
                self._command(point, ros_now)
        self._publish_status()

    def _command(self, point: SetPoint, ros_now: int) -> None:
        if self._streams:
            self._commands.publish(Float64MultiArray(data=array.array("d", point.position)))
        elif point.first_of_chunk:
            trajectory = self._gate.trajectory(ros_now)
            if trajectory is not None:
                self._commands.publish(self._trajectory_message(trajectory))
        elif point.index < 0 and point.position is not self._still_sent:
            self._commands.publish(self._still_message(point))
        self._still_sent = point.position if point.index < 0 else None
        if point.first_of_chunk:
            elapsed = self._ros_now() - point.observation_stamp
            self._capture_to_command = elapsed / NANOSECONDS

    def _trajectory_message(self, trajectory: Trajectory) -> JointTrajectory:
        # A stamp of zero means: time_from_start counts from the arrival at the controller.
        return JointTrajectory(
            joint_names=list(self._embodiment.joint_names),
            points=[
                JointTrajectoryPoint(
                    positions=position.tolist(),
                    velocities=velocity.tolist(),
                    time_from_start=convert.seconds_to_duration(float(moment)),
                )
                for moment, position, velocity in zip(
                    trajectory.times, trajectory.positions, trajectory.velocities, strict=True
                )
            ],
        )

    def _still_message(self, point: SetPoint) -> JointTrajectory:
        return JointTrajectory(
            joint_names=list(self._embodiment.joint_names),
            points=[
                JointTrajectoryPoint(
                    positions=point.position.tolist(),
                    velocities=[0.0] * len(point.position),
                    time_from_start=convert.seconds_to_duration(HOLD_TIME),
                )
            ],
        )

    def _publish_status(self) -> None:
        gate = self._gate
        now = time.monotonic()
        with self._lock:
            verdict = gate.last_verdict
            key = (gate.mode, gate.reason, gate.epoch)
            same = key == self._status_key and verdict is self._status_verdict
            if same and now < self._status_due:
                return
            message = self._status_message(gate.counters, verdict)
            self._status_key, self._status_verdict = key, verdict
        self._status_due = now + STATUS_PERIOD
        self._status.publish(message)

    def _status_message(self, counters: GateCounters, verdict: Verdict | None) -> GateStatus:
        gate = self._gate
        reasons = verdict.reasons if verdict is not None else ()
        return GateStatus(
            header=convert.header(self._ros_now(), self._frame_id),
            mode=int(gate.mode),
            mode_name=gate.mode.name,
            reason=gate.reason,
            epoch=gate.epoch,
            verdict="" if verdict is None else "APPROVED" if verdict.approved else "REJECTED",
            verdict_sequence=0 if verdict is None else verdict.sequence,
            reason_codes=[str(reason.code) for reason in reasons],
            reason_messages=[reason.message for reason in reasons],
            chunks_received=counters.received,
            chunks_approved=counters.approved,
            chunks_rejected=counters.rejected,
            steps_executed=counters.steps_executed,
            holds=counters.holds,
            stops=counters.stops,
            rejected_codes=list(counters.rejected_by_code),
            rejected_counts=list(counters.rejected_by_code.values()),
            validation_latency=convert.seconds_to_duration(self._validation_latency),
            capture_to_command=convert.seconds_to_duration(max(0.0, self._capture_to_command)),
        )

    def _on_joint_state(self, message: JointState) -> None:
        stamp = convert.stamp_to_ns(message.header.stamp)
        with self._lock:
            self._gate.update_joint_state(
                message.name, message.position, message.velocity, stamp, time.monotonic()
            )

    def _on_chunk(self, message: ActionChunkMsg) -> None:
        arrived = time.perf_counter()
        verdict = self._judge(message)
        self._validation_latency = time.perf_counter() - arrived
        if verdict.approved:
            self._wake.set()
            self._approved.publish(message)
            return
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

    def _judge(self, message: ActionChunkMsg) -> Verdict:
        most = self._gate.config.max_horizon * len(self._embodiment.joints)
        with self._lock:
            # Judged before anything is copied, so that size alone cannot keep the gate busy.
            if len(message.actions.data) > most:
                return self._gate.refuse(
                    message.sequence,
                    ReasonCode.HORIZON_INVALID,
                    f"actions.data is {len(message.actions.data)} values; expected at most {most}",
                )
            try:
                chunk = convert.chunk_from_msg(message)
            except WorldForgeError as error:
                return self._gate.refuse(message.sequence, ReasonCode.MALFORMED, error.message)
            return self._gate.submit(chunk, self._ros_now(), time.monotonic())

    def _on_protective_stop(self, message: Bool) -> None:
        with self._lock:
            self._gate.protective_stop(message.data, time.monotonic())
        self._wake.set()

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._gate.stop("safety_gate/stop was called", time.monotonic())
        self._wake.set()
        response.success = True
        response.message = "stopped"
        return response

    def _on_rearm(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        blockers = self._blockers()
        with self._lock:
            outcome = self._gate.rearm(self._ros_now(), time.monotonic(), blockers)
        return self._answer(outcome, response)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        blockers = self._blockers()
        with self._lock:
            outcome = self._gate.enable(request.data, self._ros_now(), time.monotonic(), blockers)
        return self._answer(outcome, response)

    def _answer(self, outcome: Outcome, response: Any) -> Any:
        self._wake.set()
        response.success = outcome.success
        response.message = outcome.message
        return response

    def _blockers(self) -> list[Reason]:
        count = self.count_publishers(self._proposed.topic_name)
        if count <= 1:
            return []
        return [
            Reason(
                ReasonCode.MULTIPLE_PUBLISHERS,
                f"publishers on {self._proposed.topic_name} are {count}; expected one",
            )
        ]

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
        )
        if error is not None and error is not self._reported_error:
            self._reported_error = error
            self.get_logger().error("".join(traceback.format_exception(error)))
        if mode is GateMode.STOPPED:
            self._diagnostics.error(WorldForgeError(ErrorCode.GATE_STOPPED, reason))
        elif verdict is None or verdict.approved:
            self._diagnostics.ok()


def _gate_config(parameters: Parameters) -> GateConfig:
    default = GateConfig()

    def seconds(name: str, fallback: float, description: str, minimum: float = 0.001) -> float:
        return parameters.number(name, fallback, description, minimum=minimum, maximum=600.0)

    tracking_error = parameters.number(
        "max_tracking_error",
        0.0,
        "m or rad between set-point and measured position that stops; 0: no check",
        minimum=0.0,
        maximum=1000.0,
    )
    sources = parameters.text(
        "allowed_sources", "", "sources of chunks to accept, comma-separated; empty: any"
    )
    return GateConfig(
        max_chunk_age=seconds(
            "max_chunk_age", default.max_chunk_age, "seconds since a chunk's first action was due"
        ),
        max_observation_age=seconds(
            "max_observation_age",
            default.max_observation_age,
            "seconds since the observation behind a chunk was captured",
        ),
        future_tolerance=seconds(
            "future_tolerance",
            default.future_tolerance,
            "seconds that stamps may lie in the future",
            minimum=0.0,
        ),
        joint_state_timeout=seconds(
            "joint_state_timeout",
            default.joint_state_timeout,
            "seconds without a joint state that stop an armed gate",
        ),
        arm_max_speed=parameters.number(
            "arm_max_speed",
            default.arm_max_speed,
            "m/s or rad/s of any joint at arming, at most",
            minimum=0.0,
            maximum=100.0,
        ),
        max_horizon=parameters.integer(
            "max_horizon", default.max_horizon, "actions in a chunk", minimum=1, maximum=65536
        ),
        max_step=seconds("max_step", default.max_step, "seconds between two actions, at most"),
        stop_after_hold=seconds(
            "stop_after_hold",
            default.stop_after_hold,
            "seconds of holding that stop the gate; 0: never",
            minimum=0.0,
        ),
        max_tracking_error=tracking_error or None,
        measured_tolerance=parameters.number(
            "measured_tolerance",
            default.measured_tolerance,
            "m or rad that a joint may be measured outside its limits before the gate stops",
            minimum=0.0,
            maximum=100.0,
        ),
        allowed_sources=tuple(item.strip() for item in sources.split(",") if item.strip()),
    )


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(SafetyGateNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
