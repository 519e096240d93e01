"""Cameras and joint states in, aligned observations out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from worldforge_ros import ingest
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import WorldForgeError
from worldforge_ros.msg import Observation
from worldforge_ros.observation import Observation as ObservationOfRobot
from worldforge_ros.observation import ObservationIntake
from worldforge_ros.ros import convert, qos, runtime
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.parameters import Parameters

START_GRACE = 10.0
"""Seconds after the start in which silent sensors are waited for before they are an error."""


class ObservationNode(Node):
    """Publishes ``observation`` for every new picture that has a joint state and is young
    enough.
    """

    def __init__(self) -> None:
        super().__init__("observation_node")
        parameters = Parameters(self)
        self._embodiment = load_embodiment(
            parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        self._frame_id = parameters.text("frame_id", "base", "frame of the published observations")
        transport = parameters.text(
            "image_transport", "raw", "how pictures arrive", choices=("raw", "compressed")
        )
        reliability = parameters.text(
            "sensor_reliability",
            "reliable",
            "quality of service of cameras and joint states",
            choices=("reliable", "best_effort"),
        )
        self._diagnostics = Diagnostics(self)
        self._intake = ObservationIntake(self._embodiment)
        self._published = 0
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._last_published = self._steady.now()

        self._publisher = self.create_publisher(Observation, "observation", qos.CHUNK)
        profile = qos.sensor(reliability)
        for camera in self._embodiment.cameras.values():
            callback = partial(self._guarded, partial(self._on_image, camera.name))
            if transport == "raw":
                self.create_subscription(Image, camera.topic, callback, profile)
            else:
                topic = f"{camera.topic}/compressed"
                self.create_subscription(CompressedImage, topic, callback, profile)
        self.create_subscription(
            JointState,
            self._embodiment.observation.joint_state_topic,
            partial(self._guarded, self._on_joint_state),
            qos.sensor(reliability, depth=20),
        )
        self.create_timer(1.0, self._watch, clock=self._steady)

    def _guarded(
        self,
        handle: Callable[[Image | CompressedImage | JointState], None],
        message: Image | CompressedImage | JointState,
    ) -> None:
        try:
            handle(message)
        except Exception as error:
            self._diagnostics.unexpected(error, "reading a sensor message")

    def _on_joint_state(self, message: JointState) -> None:
        stamp = ingest.stamp_to_ns(message.header.stamp)
        now = self.get_clock().now().nanoseconds
        self._publish(
            self._intake.joint_state(stamp, message.name, message.position, message.velocity, now)
        )

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        image = ingest.image_from_msg(message, f"camera {camera}")
        stamp = ingest.stamp_to_ns(message.header.stamp)
        self._publish(self._intake.image(camera, stamp, image, self.get_clock().now().nanoseconds))

    def _publish(self, observation: ObservationOfRobot | None) -> None:
        if observation is None:
            return
        self._publisher.publish(
            convert.observation_to_msg(observation, self._embodiment, self._frame_id)
        )
        self._published += 1
        self._last_published = self._steady.now()
        self._diagnostics.ok()

    def _watch(self) -> None:
        silence = (self._steady.now() - self._last_published).nanoseconds / 1e9
        self._diagnostics.set(published=self._published, silent_for_s=f"{silence:.1f}")
        if silence < max(2.0, self._embodiment.observation.max_age):
            return
        try:
            self._intake.check(self.get_clock().now().nanoseconds)
        except WorldForgeError as error:
            self._silent(error, silence)

    def _silent(self, error: WorldForgeError, silence: float) -> None:
        if self._published or silence > START_GRACE:
            self._diagnostics.error(error)
        else:
            self._diagnostics.waiting(error)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(ObservationNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
