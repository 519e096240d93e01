"""Clips of simulated episodes, of any planner, as a recording of them would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from worldforge_ros.evaluation.lockstep import Settings, load_models, make_world, play
from worldforge_ros.evaluation.loop import FloatArray, Task
from worldforge_ros.observation import ImageArray
from worldforge_ros.scorers.latent import FrameClip

if TYPE_CHECKING:
    from worldforge_ros.embodiment import Embodiment


class Watched:
    """A task that keeps what was seen and commanded at every step."""

    def __init__(self, task: Task, camera: str) -> None:
        self._task = task
        self._camera = camera
        self.images_seen: list[ImageArray] = []
        self.positions: list[FloatArray] = []
        self.velocities: list[FloatArray] = []
        self.setpoints: list[FloatArray] = []

    @property
    def position(self) -> FloatArray:
        """Measured joint positions (J,)."""
        return self._task.position

    @property
    def velocity(self) -> FloatArray:
        """Measured joint velocities (J,)."""
        return self._task.velocity

    def images(self) -> Mapping[str, ImageArray]:
        """Pictures by camera name."""
        return self._task.images()

    def see(self) -> None:
        """Keep what there is to see now."""
        self.images_seen.append(np.array(self._task.images()[self._camera]))
        self.positions.append(np.array(self._task.position))
        self.velocities.append(np.array(self._task.velocity))

    def advance(self, setpoint: FloatArray) -> None:
        """Let one control step pass with ``setpoint`` (J,)."""
        self.see()
        self.setpoints.append(np.array(setpoint))
        self._task.advance(setpoint)

    def succeeded(self) -> bool:
        """Whether the task is done."""
        return self._task.succeeded()

    def clip(self, name: str, embodiment: Embodiment) -> FrameClip | None:
        """What was kept, cut to whole blocks; None for less than one."""
        self.see()
        block = embodiment.scoring.block
        count = len(self.setpoints) // block
        if count < 1:
            return None
        steps = count * block
        return FrameClip(
            episode=name,
            images=np.stack(self.images_seen[: steps + 1 : block]),
            position=np.stack(self.positions[: steps + 1]),
            velocity=np.stack(self.velocities[: steps + 1]),
            actions=np.stack(self.setpoints[:steps]),
            states=np.empty((count + 1, 0)),
        )


def simulated_clips(
    settings: Settings, planner: str, seeds: Sequence[int]
) -> Iterator[tuple[int, FrameClip]]:
    """One clip for each seed whose episode lasts a block or longer, in closed loop.

    :raises WorldForgeError: what the models and the loop raise.
    """
    models = load_models(settings, (planner,))
    world = make_world(settings)
    robot = models.embodiment
    for seed in seeds:
        kept: list[Watched] = []

        def watched(task: Task, kept: list[Watched] = kept) -> Task:
            kept.append(Watched(task, robot.scoring.camera))
            return kept[0]

        play(planner, seed, settings, models, world, watched)
        clip = kept[0].clip(f"{robot.name} {seed}", robot)
        if clip is not None:
            yield seed, clip
