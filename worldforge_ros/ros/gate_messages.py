"""What the gate node publishes, made from what its core says."""

from __future__ import annotations

import array
from collections.abc import Sequence

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from worldforge_ros.msg import ActionChunk as ActionChunkMsg
from worldforge_ros.msg import GateStatus
from worldforge_ros.ros import convert
from worldforge_ros.safety.checks import Verdict
from worldforge_ros.safety.gate import SafetyGate, SetPoint
from worldforge_ros.safety.limits import FloatArray
from worldforge_ros.safety.trajectory import Trajectory

OUTPUTS = ("joint_commands", "joint_trajectory", "target_pose")
"""Topics that commands can go out on."""
_CHUNK_OVERHEAD = 16384


def chunk_bytes(actions: int) -> int:
    """Most bytes of a chunk message with ``actions`` numbers, names and all."""
    return 4 * actions + _CHUNK_OVERHEAD


def set_point(point: SetPoint) -> Float64MultiArray:
    """For a forward_command_controller."""
    return Float64MultiArray(data=array.array("d", point.position))


def pose(value: tuple[FloatArray, FloatArray], stamp: int, frame_id: str) -> PoseStamped:
    """Position (3,) in metres and quaternion (4,), x y z w."""
    position, quaternion = value
    return PoseStamped(
        header=convert.header(stamp, frame_id),
        pose=Pose(
            position=Point(**dict(zip("xyz", position.tolist(), strict=True))),
            orientation=Quaternion(**dict(zip("xyzw", quaternion.tolist(), strict=True))),
        ),
    )


def trajectory(value: Trajectory, joint_names: Sequence[str]) -> JointTrajectory:
    """For a joint_trajectory_controller: a stamp of zero means that time_from_start counts from the
    arrival there.
    """
    return JointTrajectory(
        joint_names=list(joint_names),
        points=[
            JointTrajectoryPoint(
                positions=position.tolist(),
                velocities=velocity.tolist(),
                time_from_start=convert.seconds_to_duration(float(moment)),
            )
            for moment, position, velocity in zip(
                value.times, value.positions, value.velocities, strict=True
            )
        ],
    )


def approved(message: ActionChunkMsg, verdict: Verdict) -> ActionChunkMsg:
    """The chunk that is executed; one that was mended says so in its source."""
    if verdict.clamped is not None:
        message.actions = convert.tensor_to_msg(verdict.clamped)
        message.source = f"{message.source}+clamped"
    return message


def status(
    gate: SafetyGate, header: Header, validation_latency: float, capture_to_command: float
) -> GateStatus:
    """The state of ``gate``; latencies in seconds."""
    verdict, counters = gate.last_verdict, gate.counters
    reasons = verdict.reasons if verdict is not None else ()
    return GateStatus(
        header=header,
        mode=int(gate.mode),
        mode_name=gate.mode.name,
        reason=gate.reason,
        epoch=gate.epoch,
        verdict="" if verdict is None else verdict.word,
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
        validation_latency=convert.seconds_to_duration(validation_latency),
        capture_to_command=convert.seconds_to_duration(max(0.0, capture_to_command)),
    )
