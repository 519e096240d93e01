"""The PushT simulator behind a robot's topics."""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from worldforge_ros.bringup import TASKS
from worldforge_ros.embodiment import Camera
from worldforge_ros.observation import ImageArray
from worldforge_ros.ros import qos, runtime
from worldforge_ros.ros.sim_node import SimNode
from worldforge_ros.simulation.pusht import JOINT_NAMES, PHYSICS_STEP, PushTSimulation


class PushTSimNode(SimNode[PushTSimulation]):
    """Adds a large overview picture, drawn only while somebody listens."""

    def __init__(self) -> None:
        super().__init__(TASKS["pusht"], JOINT_NAMES, PHYSICS_STEP, camera_text="")
        self._overview_size = self.parameters.integer(
            "overview_size", 384, "side of the overview picture in pixels", minimum=64, maximum=1024
        )
        self._overview_publisher = self.create_publisher(
            Image, "camera/overview/image_raw", qos.sensor("reliable")
        )

    def make_world(self, camera: Camera) -> PushTSimulation:
        """gym-pusht's world with square pictures."""
        return PushTSimulation(camera.width)

    def progress(self, world: PushTSimulation) -> float:
        """Share of the goal that is covered."""
        return world.coverage()

    def pictures(self, world: PushTSimulation) -> Iterable[tuple[Publisher, ImageArray]]:
        """The camera's, then the overview."""
        yield from super().pictures(world)
        if self._overview_publisher.get_subscription_count():
            yield self._overview_publisher, world.image(self._overview_size)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(PushTSimNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
