"""The ALOHA transfer-cube simulator behind a robot's topics."""

from __future__ import annotations

from worldforge_ros.bringup import TASKS
from worldforge_ros.embodiment import Camera
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.ros import runtime
from worldforge_ros.ros.sim_node import SimNode
from worldforge_ros.simulation.aloha import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    JOINT_NAMES,
    PHYSICS_STEP,
    AlohaSimulation,
)


class AlohaSimNode(SimNode[AlohaSimulation]):
    """Two ViperX 300 arms and a cube in MuJoCo, rendered off-screen."""

    def __init__(self) -> None:
        super().__init__(
            TASKS["aloha"],
            JOINT_NAMES,
            PHYSICS_STEP,
            camera_text="; rendering one in software takes about 50 ms of the two cores that the "
            "models share, and a plan looks at one in several",
        )

    def make_world(self, camera: Camera) -> AlohaSimulation:
        """gym-aloha's world.

        :raises WorldForgeError: ``EMBODIMENT_INVALID`` for a camera of another size.
        """
        if (camera.height, camera.width) != (IMAGE_HEIGHT, IMAGE_WIDTH):
            raise mismatch(
                ErrorCode.EMBODIMENT_INVALID,
                f"embodiment field cameras.{camera.name}",
                found=f"{camera.width} x {camera.height}",
                expected=f"{IMAGE_WIDTH} x {IMAGE_HEIGHT}, the simulator's",
            )
        return AlohaSimulation()

    def progress(self, world: AlohaSimulation) -> float:
        """gym-aloha's reward."""
        return float(world.reward())


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return runtime.run(AlohaSimNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
