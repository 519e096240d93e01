"""A simulator behind a robot's topics: camera and joint states out, joint commands in."""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from worldforge_ros.bringup import Task
from worldforge_ros.embodiment import Camera, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import NANOSECONDS, ImageArray
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.joint_port import JointPort
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.simulation.pace import Pace
from worldforge_ros.simulation.robot import SimulatedRobot, World

TICK = 0.01
"""Simulated seconds between two messages on /clock, and between two batches of physics steps."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the picture being drawn has to end when the node stops."""


class DrawnWorld(World, Protocol):
    """A simulated world with a camera."""

    @property
    def state(self) -> npt.NDArray[np.float64]:
        """Everything that a picture shows."""

    def set_state(self, state: npt.ArrayLike) -> None:
        """Become what ``state`` says."""

    def image(self) -> ImageArray:
        """Picture (height, width, 3) uint8 RGB of the camera."""

    def goal_image(self) -> ImageArray:
        """The same of the solved task."""

    def close(self) -> None:
        """Release what drawing needs."""


AnyWorld = TypeVar("AnyWorld", bound=DrawnWorld)


class _Pictures(NamedTuple):
    """Since the start: pictures published, the sum of their latencies in s, the last one's time."""

    number: int
    latency: float
    time: float


class SimNode(Node, Generic[AnyWorld], metaclass=abc.ABCMeta):
    """Runs a world at ``rate`` times real time.

    Pictures are drawn by a second world in a thread of its own, from the state that the first had
    at capture, so that a slow picture delays neither physics nor joint states nor set-points.
    A picture that is due while another is drawn is taken when that one is done, and left out when
    the next is due by then; simulated time waits a moment for it, so that a fast simulation has
    its pictures too.

    The task's true progress is on ``~/<figure>`` for people and reports; no planner reads it.
    """

    def __init__(
        self, task: Task, joint_names: tuple[str, ...], physics_step: float, camera_text: str
    ) -> None:
        """:param physics_step: seconds of one step; divides :data:`TICK`.
        :param camera_text: what the parameter ``camera_rate`` says beside its unit.
        """
        super().__init__(task.simulator)
        parameters = self.parameters = Parameters(self)
        embodiment = load_embodiment(
            parameters.text("embodiment", task.name, "name or path of the embodiment file")
        )
        frame_id = parameters.text("frame_id", "base", "frame of the joint states")
        seed = parameters.integer(
            "seed", 0, "seed of the first episode; each reset adds 1", minimum=0, maximum=2**31 - 1
        )
        rate = parameters.number(
            "rate", 1.0, "simulated seconds per second", minimum=0.01, maximum=100.0
        )
        camera_rate = parameters.number(
            "camera_rate",
            10.0,
            f"pictures per simulated second{camera_text}",
            minimum=0.1,
            maximum=100.0,
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
            "seconds without a command after which the robot holds its position",
            minimum=0.01,
            maximum=60.0,
        )
        self._publish_clock = parameters.flag(
            "publish_clock", False, "publish simulated time on /clock"
        )
        if "top" not in embodiment.cameras:
            raise mismatch(
                ErrorCode.EMBODIMENT_INVALID,
                "embodiment field cameras",
                found=", ".join(embodiment.cameras),
                expected="a camera top, the one that the simulator has",
            )
        self._camera = embodiment.cameras["top"]
        self.diagnostics = Diagnostics(self)
        self.exit_code: int | None = None
        self._physics_step = physics_step
        self._robot = SimulatedRobot(
            self.make_world(self._camera), joint_names, physics_step, seed, command_timeout
        )
        # Whatever is stamped falls on a tick, so that no stamp is ahead of /clock.
        self._clock_steps = max(1, round(TICK / physics_step))
        self._camera_steps = self._clock_steps * max(1, round(1.0 / camera_rate / TICK))
        self._joint_steps = self._clock_steps * max(1, round(1.0 / joint_rate / TICK))

        sensor = qos.sensor("reliable")
        self._clock_publisher = self.create_publisher(ClockMsg, "/clock", 10)
        self._image_publisher = self.create_publisher(Image, self._camera.topic, sensor)
        self._goal_publisher = self.create_publisher(Image, "goal_image", qos.LATCHED)
        self._progress_publisher = self.create_publisher(
            Float64, f"~/{task.figure.name}", qos.LATCHED
        )
        self._joints = JointPort(
            self,
            self._robot,
            self.diagnostics,
            embodiment.observation.joint_state_topic,
            frame_id,
            self._stamp,
        )
        self.create_service(Trigger, "~/reset", self._on_reset)

        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        # Simulated time goes on from wall time, so that stamps are never zero.
        self._origin = Clock(clock_type=ClockType.SYSTEM_TIME).now().nanoseconds
        self._pace = Pace(physics_step, rate, self._wall.now().nanoseconds)
        self._drawn: AnyWorld | None = None
        self._owed = False
        self._left_out = 0
        self._pictures = _Pictures(0, 0.0, time.monotonic())
        self._pictures_before = self._pictures
        self._artist: runtime.Worker[None] = runtime.Worker(self, "artist")
        self._artist.submit(self._set_up_drawing)
        self.create_timer(TICK / max(1.0, rate), self._advance, clock=self._wall)
        self.create_timer(1.0, self._diagnose, clock=self._wall)

    @abc.abstractmethod
    def make_world(self, camera: Camera) -> AnyWorld:
        """A new world whose pictures have the size of ``camera``."""

    @abc.abstractmethod
    def progress(self, world: AnyWorld) -> float:
        """The task's figure now."""

    def pictures(self, world: AnyWorld) -> Iterable[tuple[Publisher, ImageArray]]:
        """What to publish of ``world``; runs in the drawing thread."""
        yield self._image_publisher, world.image()

    def destroy_node(self) -> None:
        """End the drawing, in its thread: an OpenGL context belongs to the thread that made it."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while self._artist.busy and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._artist.busy and self._drawn is not None:
            closing = self._artist.submit(self._drawn.close)
            while not closing.done() and time.monotonic() < deadline:
                time.sleep(0.005)
        super().destroy_node()

    def _stamp(self) -> int:
        """Time of the simulated world in nanoseconds of the clock that the other nodes read."""
        if self._publish_clock:
            return int(self._origin + round(self._robot.steps * self._physics_step * NANOSECONDS))
        return int(self.get_clock().now().nanoseconds)

    def _advance(self) -> None:
        robot = self._robot
        for _ in range(self._pace.due(self._wall.now().nanoseconds, robot.steps)):
            picture_next = (robot.steps + 1) % self._camera_steps == 0
            drawing = picture_next and self._publish_clock and self._artist.busy
            if drawing and self._pace.wait(self._wall.now().nanoseconds, robot.steps):
                break
            try:
                robot.step()
            except Exception as error:
                # MuJoCo gives up on a world whose numbers ran away.
                self.diagnostics.unexpected(error, "simulating")
                self.exit_code = runtime.EXIT_FAILED
                return
            if robot.steps % self._clock_steps:
                continue
            if self._publish_clock:
                self._clock_publisher.publish(ClockMsg(clock=convert.ns_to_stamp(self._stamp())))
            if robot.steps % self._joint_steps == 0:
                self._joints.publish()
            if robot.steps % self._camera_steps == 0:
                self._publish_progress()
                self._left_out += self._owed
                self._owed = True
            if self._owed and not self._artist.busy:
                self._capture()
        self._pace.note(self._wall.now().nanoseconds, robot.steps)

    def _publish_progress(self) -> None:
        self._progress_publisher.publish(Float64(data=float(self.progress(self._robot.world))))

    def _capture(self) -> None:
        self._owed = False
        state, stamp, captured = self._robot.world.state, self._stamp(), time.monotonic()
        self._artist.submit(lambda: self._draw(state, stamp, captured))

    def _set_up_drawing(self) -> None:
        try:
            world = self.make_world(self._camera)
            goal = convert.image_to_msg(world.goal_image(), self._stamp(), "camera_top")
            self._goal_publisher.publish(goal)
            self._drawn = world
        except Exception as error:
            self.diagnostics.unexpected(error, "setting up the camera")
            self.exit_code = runtime.EXIT_START_FAILED

    def _draw(self, state: npt.NDArray[np.float64], stamp: int, captured: float) -> None:
        world = self._drawn
        if world is None:
            return
        try:
            world.set_state(state)
            for publisher, picture in self.pictures(world):
                publisher.publish(convert.image_to_msg(picture, stamp, "camera_top"))
        except Exception as error:
            if self.context.ok():
                self.diagnostics.unexpected(error, "drawing a picture")
            return
        now, total = time.monotonic(), self._pictures
        self._pictures = _Pictures(total.number + 1, total.latency + now - captured, now)

    def _diagnose(self) -> None:
        new, old = self._pictures, self._pictures_before
        self._pictures_before = new
        count = new.number - old.number
        self.diagnostics.set(
            realtime_factor=f"{self._pace.factor():.3f}",
            picture_period_s=f"{(new.time - old.time) / count:.3f}" if count else "none",
            picture_latency_s=f"{(new.latency - old.latency) / count:.3f}" if count else "none",
            pictures_left_out=self._left_out,
        )

    def _on_reset(self, _: Any, response: Any) -> Any:
        seed = self._robot.reset()
        self._joints.publish()
        self._publish_progress()
        self._owed = True
        response.success = True
        response.message = f"episode of seed {seed}"
        return response
