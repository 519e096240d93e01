"""PushT in Gazebo, beside the bridge: starts of episodes, the goal picture and the coverage."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Quaternion, TransformStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock as WallClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from worldforge_ros.bringup import TASKS
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.msg import GateStatus
from worldforge_ros.observation import seconds_to_ns
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.simulation.gazebo_pusht import (
    TICK,
    FloatArray,
    MovePusher,
    PlaceBlock,
    Placement,
    Pose,
    Seen,
    block_of,
    pose_of,
    start_state,
)
from worldforge_ros.simulation.gazebo_run import (
    BLOCK,
    BLOCK_TOPIC,
    JOINT_TOPIC,
    SET_POSE,
    missing_interfaces,
)
from worldforge_ros.simulation.pusht import (
    CONTROL_STEP,
    JOINT_NAMES,
    UNITS_PER_METRE,
    PushTSimulation,
)

LOOK_PERIOD = 0.02
"""Wall seconds between two looks at an episode that is being started."""
MOVING = (GateStatus.ARMED, GateStatus.HOLDING)
"""Modes of the gate in which the pusher is its own."""


def entity_pose_types() -> tuple[Any, Any]:
    """``SetEntityPose`` and ``Entity``.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` without the package ros_gz_interfaces.
    """
    try:
        from ros_gz_interfaces.msg import Entity
        from ros_gz_interfaces.srv import SetEntityPose
    except ImportError as error:
        raise missing_interfaces(f"not importable ({error})") from error
    return SetEntityPose, Entity


class GazeboPushTNode(Node):
    """What the built-in simulator offers beside camera and joints, for a world in Gazebo.

    ``/clock`` and joint states come 100 times a second from here: Gazebo's own clock, and with many
    releases its joint states, come with every physics step, and to listen to a topic of 1 kHz
    takes each Python node 40 % of a core.

    ``~/reset`` appears once the first episode has begun. ``~/coverage`` is computed with
    gym-pusht's own geometry from the poses that Gazebo reports; no planner reads it. The goal
    picture is the one that gym-pusht draws.
    """

    def __init__(self) -> None:
        task = TASKS["gazebo"]
        super().__init__(task.simulator)
        self._set_entity_pose, self._entity = entity_pose_types()
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", task.robot, "name or path of the embodiment file")
        )
        self._frame_id = parameters.text("frame_id", "base", "frame of the joint states")
        self._next_seed = parameters.integer(
            "seed", 0, "seed of the first episode; each reset adds 1", minimum=0, maximum=2**31 - 1
        )
        self._height = parameters.number(
            "block_height",
            0.0,
            "m above the world's origin at which the T's frame is when it lies on the table",
            minimum=-10.0,
            maximum=10.0,
        )
        self._timeout = parameters.number(
            "reset_timeout",
            30.0,
            "seconds in which an episode has to begin",
            minimum=1.0,
            maximum=600.0,
        )
        if "top" not in self._embodiment.cameras or set(JOINT_NAMES) - set(
            self._embodiment.joint_names
        ):
            raise mismatch(
                ErrorCode.EMBODIMENT_INVALID,
                "embodiment",
                found=self._embodiment.name,
                expected=f"a camera top and the joints {', '.join(JOINT_NAMES)}",
            )
        self.diagnostics = Diagnostics(self)
        self._simulation = PushTSimulation(self._embodiment.cameras["top"].width)
        self._pusher: tuple[FloatArray, float] | None = None
        self._block: tuple[FloatArray, int] | None = None
        self._gate: GateStatus | None = None
        self._call: Future | None = None
        self._seed = 0
        self._placement: Placement | None = None
        self._deadline = np.inf
        self._ended: Future | None = None
        self._offered = False
        self._measured = self._clocked = 0

        self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._joint_publisher = self.create_publisher(
            JointState,
            self._embodiment.observation.joint_state_topic,
            qos.sensor("reliable", depth=20),
        )
        self._goal_publisher = self.create_publisher(Image, "goal_image", qos.LATCHED)
        self._progress_publisher = self.create_publisher(
            Float64, f"~/{task.figure.name}", qos.LATCHED
        )
        self._trajectory_publisher = self.create_publisher(
            JointTrajectory, "~/joint_trajectory", qos.CHUNK
        )
        sensor = qos.sensor("best_effort", depth=1)
        self.create_subscription(JointState, JOINT_TOPIC, self._on_joints, sensor)
        self.create_subscription(TransformStamped, BLOCK_TOPIC, self._on_block, sensor)
        self.create_subscription(GateStatus, "safety_gate/status", self._on_gate, qos.LATCHED)
        self._client = self.create_client(self._set_entity_pose, SET_POSE)
        self._begin()
        # Wall time: Gazebo's may stand still.
        self.create_timer(
            LOOK_PERIOD, self._tick, clock=WallClock(clock_type=ClockType.STEADY_TIME)
        )

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _on_joints(self, message: JointState) -> None:
        try:
            found = dict(
                zip(message.name, zip(message.position, message.velocity, strict=True), strict=True)
            )
            values = np.array([found[name] for name in JOINT_NAMES], dtype=np.float64)
        except (KeyError, ValueError):
            self.diagnostics.error(
                mismatch(
                    ErrorCode.JOINT_NAMES_MISMATCH,
                    "joint_states",
                    found=f"names {list(message.name)}, {len(message.position)} positions, "
                    f"{len(message.velocity)} velocities",
                    expected=f"a position and a velocity of {', '.join(JOINT_NAMES)}",
                )
            )
            return
        if not np.isfinite(values).all():
            self.diagnostics.error(
                mismatch(
                    ErrorCode.TENSOR_NOT_FINITE,
                    "joint_states",
                    found=values.tolist(),
                    expected="finite positions and velocities",
                )
            )
            return
        self._pusher = (values[:, 0], float(np.abs(values[:, 1]).max()))
        stamp = convert.stamp_to_ns(message.header.stamp)
        if not 0 <= stamp - self._clocked < seconds_to_ns(TICK):
            self._clocked = stamp
            self._clock_publisher.publish(Clock(clock=message.header.stamp))
            message.header.frame_id = self._frame_id
            self._joint_publisher.publish(message)

    def _on_block(self, message: TransformStamped) -> None:
        if message.child_frame_id != BLOCK:
            # The publisher may tell the poses of the model's links on the same topic.
            return
        place, turn = message.transform.translation, message.transform.rotation
        pose = Pose(
            np.array([place.x, place.y, place.z]), np.array([turn.x, turn.y, turn.z, turn.w])
        )
        try:
            self._block = (block_of(pose), convert.stamp_to_ns(message.header.stamp))
        except WorldForgeError as error:
            self._block = None
            self.diagnostics.error(error)
            return
        if self._placement is None:
            self._measure()

    def _on_gate(self, message: GateStatus) -> None:
        self._gate = message

    def _measure(self, at_once: bool = False) -> None:
        """Publish the coverage, at most once in a control step of Gazebo's time."""
        if self._pusher is None or self._block is None:
            return
        block, stamp = self._block
        if not at_once and 0 <= stamp - self._measured < seconds_to_ns(CONTROL_STEP):
            return
        self._measured = stamp
        self._simulation.set_state([*(self._pusher[0] * UNITS_PER_METRE), *block])
        coverage = self._simulation.coverage()
        self._progress_publisher.publish(Float64(data=coverage))
        self.diagnostics.set(
            coverage=f"{coverage:.4f}",
            block=" ".join(f"{value:.4g}" for value in block),
            seed=self._seed,
        )

    def _begin(self) -> None:
        """Start the episode of the next seed."""
        self._seed = self._next_seed
        self._next_seed += 1
        self._placement = Placement(start_state(self._simulation, self._seed))
        self._deadline = time.monotonic() + self._timeout
        self._ended = Future()

    def _tick(self) -> None:
        placement = self._placement
        if placement is None:
            return
        now = time.monotonic()
        missing = self._missing()
        if missing is None:
            assert self._pusher is not None
            assert self._block is not None
            seen = Seen(*self._pusher, *self._block)
            command = placement.step(seen, now)
            if isinstance(command, PlaceBlock):
                self._place(command)
            elif isinstance(command, MovePusher):
                self._move(command)
            if placement.done:
                self._finish(None)
                return
        elif not self._offered:
            # Gazebo takes its time to start.
            self._deadline = now + self._timeout
            self.diagnostics.waiting(missing)
        if now > self._deadline:
            self._finish(
                missing
                or WorldForgeError(
                    ErrorCode.SIMULATION_UNAVAILABLE,
                    f"the episode of seed {self._seed} has not begun after {self._timeout:g} s; "
                    f"expected {placement.waits_for}",
                )
            )

    def _missing(self) -> WorldForgeError | None:
        """The first thing that Gazebo or the bridge do not offer yet."""
        if self._pusher is None or self._now() == 0:
            return _silent(JOINT_TOPIC)
        if self._block is None:
            return _silent(BLOCK_TOPIC)
        if not self._client.service_is_ready():
            return WorldForgeError(
                ErrorCode.SIMULATION_UNAVAILABLE,
                f"service {SET_POSE} is absent; expected ros_gz_bridge 1.0.11 or newer to offer it",
            )
        if not self._trajectory_publisher.get_subscription_count():
            return WorldForgeError(
                ErrorCode.SIMULATION_UNAVAILABLE,
                f"topic {self._trajectory_publisher.topic_name} has no subscription; "
                "expected that of ros_gz_bridge",
            )
        return None

    def _place(self, command: PlaceBlock) -> None:
        pose = pose_of(command.block, self._height)
        request = self._set_entity_pose.Request()
        request.entity = self._entity(name=BLOCK, type=self._entity.MODEL)
        request.pose.position = Point(**dict(zip("xyz", pose.position.tolist(), strict=True)))
        request.pose.orientation = Quaternion(
            **dict(zip("xyzw", pose.quaternion.tolist(), strict=True))
        )
        if self._call is not None and not self._call.done():
            # Its reply got lost; whether it was heard is seen from the T.
            self._client.remove_pending_request(self._call)
        self._call = self._client.call_async(request)
        self._call.add_done_callback(self._on_placed)

    def _on_placed(self, future: Future) -> None:
        reply = future.result()
        if reply is not None and not reply.success:
            self.diagnostics.error(
                WorldForgeError(
                    ErrorCode.SIMULATION_UNAVAILABLE,
                    f"service {SET_POSE} answered without success; "
                    f"expected a model {BLOCK} in the world",
                )
            )

    def _move(self, command: MovePusher) -> None:
        # A stamp of zero: from the arrival on.
        message = JointTrajectory(joint_names=list(JOINT_NAMES))
        message.header.frame_id = self._frame_id
        message.points = [
            JointTrajectoryPoint(
                positions=position.tolist(),
                time_from_start=convert.seconds_to_duration(float(moment)),
            )
            for moment, position in zip(command.times, command.positions, strict=True)
        ]
        self._trajectory_publisher.publish(message)

    def _finish(self, error: WorldForgeError | None) -> None:
        ended, self._placement = self._ended, None
        if error is not None:
            self.diagnostics.error(error)
            self._next_seed = self._seed
            if not self._offered:
                self._begin()
        else:
            self.diagnostics.ok()
            self._measure(at_once=True)
            if not self._offered:
                self._offered = True
                self._publish_goal()
                # What waits for a reply would hold up the group that brings the episode about.
                self.create_service(
                    Trigger, "~/reset", self._on_reset, callback_group=ReentrantCallbackGroup()
                )
            self.get_logger().info(f"episode of seed {self._seed}")
        if ended is not None:
            ended.set_result(error)

    def _publish_goal(self) -> None:
        picture = self._simulation.goal_image()
        self._goal_publisher.publish(convert.image_to_msg(picture, self._now(), "camera_top"))

    async def _on_reset(self, _: Any, response: Any) -> Any:
        if self._placement is None:
            if self._gate is not None and self._gate.mode in MOVING:
                response.message = (
                    f"{ErrorCode.SIMULATION_UNAVAILABLE}: the gate is {self._gate.mode_name} and "
                    "moves the pusher; expected it disarmed"
                )
                return response
            self._begin()
        # Who asks while an episode is being started asks for that one.
        assert self._ended is not None
        error = await self._ended
        response.success = error is None
        response.message = str(error) if error else f"episode of seed {self._seed}"
        return response


def _silent(topic: str) -> WorldForgeError:
    return WorldForgeError(
        ErrorCode.SIMULATION_UNAVAILABLE,
        f"topic {topic} is silent; expected Gazebo's messages through ros_gz_bridge",
    )


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(GazeboPushTNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
