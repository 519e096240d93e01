"""What the training of a world model has to know of a task, beside the embodiment file.

A :class:`Task` says what the true state of the simulator is good for: which points of the scene the
probe reads, and whether the scene has a mirror image. Everything else that differs between robots
(pictures, joints, blocks, action meaning) is in the embodiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.scorers.encoders import ImageSize
from worldforge_ros.scorers.objectives import PUSHT_READING, Reading, Term
from worldforge_ros.simulation.pusht import SUCCESS_COVERAGE

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Mirror:
    """An exact symmetry of a task: what the mirror image of an episode shows.

    ``states`` (..., n) to (..., n), ``actions`` before z-scoring (N, J) to (N, J), ``pictures`` (N,
    height, width, 3) to the same.
    """

    states: Callable[[FloatArray], FloatArray]
    actions: Callable[[FloatArray], FloatArray]
    pictures: Callable[[ImageArray], ImageArray]


@dataclass(frozen=True)
class Network:
    """Sizes of the model that is trained where the command does not say otherwise."""

    image_size: ImageSize
    dim: int
    channels: tuple[int, ...]
    stem: int = 2


@dataclass(frozen=True)
class Task:
    """One task.

    ``targets`` gives what ``reading`` reads (N, outputs) from true states (N, n). ``figures`` names
    groups of points whose mean error is reported. ``goal_pictures`` draws camera pictures of the
    solved task, and an episode is solved above ``solved`` of its ``coverage``. ``data`` is the
    folder of episodes that the command reads unless told otherwise.
    """

    reading: Reading
    targets: Callable[[FloatArray], FloatArray]
    figures: Mapping[str, tuple[str, ...]]
    objective: str
    goal_pictures: Callable[[np.random.Generator, int], ImageArray]
    solved: float
    network: Network
    data: Path
    mirror: Mirror | None = None

    def errors_mm(self, offsets: FloatArray) -> dict[str, FloatArray]:
        """Mean distances in mm (...) of each group, from differences of readings (..., outputs)."""
        points = offsets.reshape(*offsets.shape[:-1], -1, self.reading.axes)
        distances = np.linalg.norm(points, axis=-1) * self.reading.unit_mm
        places = {name: index for index, name in enumerate(self.reading.points)}
        return {
            figure: distances[..., [places[name] for name in names]].mean(axis=-1)
            for figure, names in self.figures.items()
        }


def task_of(embodiment: str) -> Task:
    """The task of an embodiment, by its name.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for one that no task is written for.
    """
    tasks: dict[str, Callable[[], Task]] = {"pusht": pusht, "aloha": aloha}
    if embodiment not in tasks:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "embodiment to train a world model for",
            found=f"'{embodiment}'",
            expected=f"one of {', '.join(tasks)}, whose simulators give the true state",
        )
    return tasks[embodiment]()


@cache
def pusht() -> Task:
    """PushT: block corners and pusher, in decimetres from the workspace's centre."""
    corners = PUSHT_READING.points[:-1]
    return Task(
        reading=PUSHT_READING,
        targets=block_points,
        figures={"corners": corners},
        objective="pose",
        goal_pictures=_pusht_goals,
        solved=SUCCESS_COVERAGE,
        network=Network(image_size=64, dim=128, channels=(24, 48, 96, 128)),
        data=Path("data/pusht/demos"),
        mirror=Mirror(
            states=mirror_states,
            actions=lambda actions: -actions[:, ::-1],
            pictures=lambda images: np.swapaxes(images[:, ::-1, ::-1], 1, 2),
        ),
    )


def mirror_states(states: FloatArray) -> FloatArray:
    """PushT's exact symmetry (x, y) -> (512 - y, 512 - x), which keeps the goal: (..., 5) to (...,
    5).
    """
    x, y, block_x, block_y, angle = np.moveaxis(states, -1, 0)
    return np.stack([512 - y, 512 - x, 512 - block_y, 512 - block_x, np.pi / 2 - angle], axis=-1)


def block_points(states: FloatArray) -> FloatArray:
    """PushT's corners and pusher (..., 18) of true states (..., 5), in decimetres from the
    centre.
    """
    from worldforge_ros.simulation.pusht import PushTSimulation

    simulation = PushTSimulation(image_size=16)
    simulation.set_state([100, 100, 0, 0, 0])
    corners = simulation.keypoints()
    simulation.close()
    cos, sin = np.cos(states[..., 4]), np.sin(states[..., 4])
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    points = corners @ np.swapaxes(rotation, -1, -2) + states[..., None, 2:4]
    flat = points.reshape(*states.shape[:-1], 16)
    targets: FloatArray = (np.concatenate([flat, states[..., :2]], axis=-1) - 256.0) / 100.0
    return targets


def _pusht_goals(rng: np.random.Generator, count: int) -> ImageArray:
    """The solved task, the pusher anywhere."""
    from worldforge_ros.simulation.pusht import PushTSimulation

    simulation = PushTSimulation()
    pictures = [simulation.goal_image(agent) for agent in rng.uniform(0.03, 0.48, (count, 2))]
    simulation.close()
    return np.stack(pictures)


ALOHA_CENTRE = (0.0, 0.5, 0.15)
"""Place in m that ALOHA's points are read from."""
ALOHA_READING = Reading(
    points=("cube", "left_gripper", "right_gripper", "left_spread", "right_spread"),
    axes=3,
    unit_mm=100.0,
    objectives={
        "pose": (Term(("cube",)),),
        "scene": (Term(("cube",)), Term(("left_gripper",)), Term(("right_gripper",))),
        "handover": (
            Term(("cube",)),
            Term(("left_gripper",), "cube"),
            Term(("left_gripper", "right_gripper"), "cube"),
        ),
    },
)
"""ALOHA's cube and grippers, in decimetres from :data:`ALOHA_CENTRE`. A gripper is the middle
between its fingers, its spread the way from one finger to the other.

``scene`` compares everything with the goal picture as it is, and so counts against the right arm
that it goes down to the cube, since it does not end there. ``handover`` falls all along a
demonstration: a hand comes to the cube, the cube comes to its goal, the left hand takes hold of
it."""


@cache
def aloha() -> Task:
    """ALOHA's cube transfer."""
    return Task(
        reading=ALOHA_READING,
        targets=cube_and_grippers,
        figures={"cube": ("cube",), "grippers": ("left_gripper", "right_gripper")},
        objective="handover",
        goal_pictures=_aloha_goals,
        solved=0.99,
        network=Network(image_size=(96, 128), dim=96, channels=(20, 40, 80, 96), stem=4),
        data=Path("data/aloha/world_model_demos"),
    )


def cube_and_grippers(states: FloatArray) -> FloatArray:
    """:data:`ALOHA_READING` (N, 15) of true states (N, 61)."""
    from worldforge_ros.simulation.aloha import AlohaSimulation

    simulation = AlohaSimulation()
    points = np.empty((len(states), 5, 3))
    for row, state in zip(points, states, strict=True):
        simulation.set_state(state)
        fingers = simulation.fingers.reshape(2, 2, 3)
        row[0] = simulation.cube[:3] - ALOHA_CENTRE
        row[1:3] = fingers.mean(axis=1) - ALOHA_CENTRE
        row[3:] = fingers[:, 1] - fingers[:, 0]
    simulation.close()
    return points.reshape(len(states), -1) * 10.0


def _aloha_goals(rng: np.random.Generator, count: int) -> ImageArray:
    """The solved task; the arms of the one goal state stand still, so that one picture is all."""
    from worldforge_ros.simulation.aloha import AlohaSimulation

    simulation = AlohaSimulation()
    picture = simulation.goal_image()
    simulation.close()
    return picture[None]
