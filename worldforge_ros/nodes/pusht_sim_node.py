"""The PushT simulator behind a robot's topics: camera and joint states out, joint commands in."""

from __future__ import annotations

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.observation import NANOSECONDS
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.simulation.pusht import PHYSICS_STEP
from worldforge_ros.simulation.robot import SimulatedPusher


class PushTSimNode(Node):
    """Runs the world at ``rate`` times real time.

    The true coverage is on ``~/coverage`` for people and reports; no planner reads it.
    """

    def __init__(self) -> None:
        super().__init__("pusht_sim")
        parameters = Parameters(self)
        embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        camera = embodiment.cameras["top"]
        self._frame_id = parameters.text("frame_id", "base", "frame of the joint states")
        seed = parameters.integer(
            "seed", 0, "seed of the first episode; each reset adds 1", minimum=0, maximum=2**31 - 1
        )
        rate = parameters.number(
            "rate", 1.0, "simulated seconds per second", minimum=0.01, maximum=100.0
        )
        camera_rate = parameters.number(
            "camera_rate", 10.0, "pictures per simulated second", minimum=0.1, maximum=100.0
        )
        joint_rate = parameters.number(
            "joint_state_rate",
            50.0,
            "joint states per simulated second",
            minimum=1.0,
            maximum=100.0,
        )
        command_timeout = parameters.number(
            "command_timeout",
            0.5,
            "seconds without a command after which the pusher holds its position",
            minimum=0.01,
            maximum=60.0,
        )
        publish_clock = parameters.flag("publish_clock", False, "publish simulated time on /clock")
        overview_size = parameters.integer(
            "overview_size", 384, "side of the overview picture in pixels", minimum=64, maximum=1024
        )
        self._overview_size = overview_size
        self._diagnostics = Diagnostics(self)
        self._robot = SimulatedPusher(
            image_size=camera.width, seed=seed, command_timeout=command_timeout
        )
        self._camera_steps = max(1, round(1.0 / camera_rate / PHYSICS_STEP))
        self._joint_steps = max(1, round(1.0 / joint_rate / PHYSICS_STEP))

        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._publish_clock = publish_clock
        # Simulated time goes on from wall time, so that stamps are never zero.
        self._origin = Clock(clock_type=ClockType.SYSTEM_TIME).now().nanoseconds
        self._rate = rate
        self._started = self._wall.now().nanoseconds

        sensor = qos.sensor("reliable")
        self._clock_publisher = self.create_publisher(ClockMsg, "/clock", 10)
        self._image_publisher = self.create_publisher(Image, camera.topic, sensor)
        self._overview_publisher = self.create_publisher(Image, "camera/overview/image_raw", sensor)
        self._joint_publisher = self.create_publisher(
            JointState, embodiment.observation.joint_state_topic, qos.sensor("reliable", depth=20)
        )
        self._goal_publisher = self.create_publisher(Image, "goal_image", qos.LATCHED)
        self._coverage_publisher = self.create_publisher(Float64, "~/coverage", qos.LATCHED)
        self.create_subscription(Float64MultiArray, "joint_commands", self._on_commands, qos.CHUNK)
        self.create_subscription(
            JointTrajectory, "joint_trajectory", self._on_trajectory, qos.CHUNK
        )
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(PHYSICS_STEP / max(1.0, rate), self._advance, clock=self._wall)
        self._publish_goal()

    def _stamp(self) -> int:
        """Time of the simulated world in nanoseconds of the clock that the other nodes read."""
        if self._publish_clock:
            return int(self._origin + round(self._robot.steps * PHYSICS_STEP * NANOSECONDS))
        return int(self.get_clock().now().nanoseconds)

    def _advance(self) -> None:
        elapsed = (self._wall.now().nanoseconds - self._started) / NANOSECONDS * self._rate
        due = int(elapsed / PHYSICS_STEP) - self._robot.steps
        if due > 1.0 / PHYSICS_STEP:
            # More than a simulated second behind: this machine cannot keep the rate, so let time
            # slip instead of running ever further behind.
            self._started += round((due - 1) * PHYSICS_STEP / self._rate * NANOSECONDS)
            due = 1
        for _ in range(due):
            self._robot.step()
            if self._publish_clock:
                self._clock_publisher.publish(ClockMsg(clock=convert.ns_to_stamp(self._stamp())))
            if self._robot.steps % self._joint_steps == 0:
                self._publish_joints()
            if self._robot.steps % self._camera_steps == 0:
                self._publish_pictures()

    def _publish_joints(self) -> None:
        state = self._robot.joint_state()
        self._joint_publisher.publish(
            JointState(
                header=convert.header(self._stamp(), self._frame_id),
                name=list(state.names),
                position=state.position.tolist(),
                velocity=state.velocity.tolist(),
            )
        )

    def _publish_pictures(self) -> None:
        stamp = self._stamp()
        world = self._robot.world
        self._image_publisher.publish(convert.image_to_msg(world.image(), stamp, "camera_top"))
        if self._overview_publisher.get_subscription_count():
            picture = world.image(self._overview_size)
            self._overview_publisher.publish(convert.image_to_msg(picture, stamp, "camera_top"))
        self._coverage_publisher.publish(Float64(data=world.coverage()))

    def _publish_goal(self) -> None:
        goal = self._robot.world.goal_image()
        self._goal_publisher.publish(convert.image_to_msg(goal, self._stamp(), "camera_top"))

    def _on_commands(self, message: Float64MultiArray) -> None:
        try:
            self._robot.command(np.asarray(message.data, dtype=np.float64))
        except Exception as error:
            self._diagnostics.unexpected(error, "taking joint_commands")

    def _on_trajectory(self, message: JointTrajectory) -> None:
        try:
            start = Time.from_msg(message.header.stamp).nanoseconds
            delay = (start - self._stamp()) / NANOSECONDS if start else 0.0
            self._robot.follow(
                message.joint_names,
                [convert.duration_to_seconds(point.time_from_start) for point in message.points],
                [list(point.positions) for point in message.points],
                delay,
            )
        except Exception as error:
            self._diagnostics.unexpected(error, "taking joint_trajectory")

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        seed = self._robot.reset()
        self._publish_joints()
        self._publish_pictures()
        response.success = True
        response.message = f"episode of seed {seed}"
        return response


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(PushTSimNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
