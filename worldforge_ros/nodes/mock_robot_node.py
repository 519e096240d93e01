"""Mock hardware behind a robot's topics, for any embodiment: a dry run without a robot."""

from __future__ import annotations

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.joint_port import JointPort
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.simulation.mock import PERIOD, MockJoints, mock_pictures
from worldforge_ros.simulation.pace import Pace
from worldforge_ros.simulation.robot import SimulatedRobot


class MockRobotNode(Node):
    """Every joint follows its set-points, every camera shows a still picture."""

    def __init__(self) -> None:
        super().__init__("mock_robot")
        parameters = Parameters(self)
        embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        frame_id = parameters.text("frame_id", "base", "frame of the joint states")
        start = parameters.numbers(
            "initial_position",
            [0.0],
            "m or rad a joint; [0.0]: 0 where a joint can be there, else the middle of its range",
        )
        camera_rate = parameters.number(
            "camera_rate",
            0.0,
            "pictures a second of every camera; 0: one for every step of the policy",
            minimum=0.0,
            maximum=100.0,
        )
        camera_rate = camera_rate or min(100.0, 1.0 / embodiment.policy.step)
        joint_rate = parameters.number(
            "joint_state_rate", 50.0, "joint states a second", minimum=1.0, maximum=100.0
        )
        command_timeout = parameters.number(
            "command_timeout",
            0.5,
            "seconds without a command after which the robot holds its position",
            minimum=0.01,
            maximum=60.0,
        )
        files = parameters.text(
            "pictures",
            "",
            "what cameras show, CAMERA=FILE, comma-separated; the others show a test card",
        )
        joints = MockJoints(embodiment, () if start == (0.0,) else start)
        self._robot = SimulatedRobot(
            joints, embodiment.joint_names, PERIOD, command_timeout=command_timeout
        )
        self._pictures = mock_pictures(embodiment.cameras, files)
        self._camera_steps = max(1, round(1.0 / camera_rate / PERIOD))
        self._joint_steps = max(1, round(1.0 / joint_rate / PERIOD))
        self._joints = JointPort(
            self,
            self._robot,
            Diagnostics(self),
            embodiment.observation.joint_state_topic,
            frame_id,
            self._stamp,
        )
        self._cameras = {
            camera.name: self.create_publisher(Image, camera.topic, qos.sensor("reliable"))
            for camera in embodiment.cameras.values()
        }
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._pace = Pace(PERIOD, 1.0, self._steady.now().nanoseconds)
        self.create_timer(PERIOD, self._advance, clock=self._steady)

    def _stamp(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _advance(self) -> None:
        for _ in range(self._pace.due(self._steady.now().nanoseconds, self._robot.steps)):
            self._robot.step()
            if self._robot.steps % self._joint_steps == 0:
                self._joints.publish()
            if self._robot.steps % self._camera_steps == 0:
                self._publish_pictures()

    def _publish_pictures(self) -> None:
        stamp = self._stamp()
        for name, publisher in self._cameras.items():
            publisher.publish(convert.image_to_msg(self._pictures[name], stamp, f"camera_{name}"))

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._robot.reset()
        self._joints.publish()
        response.success = True
        response.message = "back at the initial position"
        return response


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(MockRobotNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
