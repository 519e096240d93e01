"""What an evaluation asks of a planner: where an episode starts, what its goal is, when it is won.

``task`` is gym-pusht's own: cover the fixed goal. ``lewm`` is LeWorldModel's (arXiv 2603.19312):
the goal is what a demonstration showed 25 steps later. ``transfer`` is gym-aloha's: hand the cube
over, of an 8 s episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import ImageArray
from worldforge_ros.simulation.pusht import SUCCESS_COVERAGE, PushTSimulation

FloatArray = npt.NDArray[np.float64]

GOAL_OFFSET = 25
"""Steps between start and goal of ``lewm``."""
POSITION_TOLERANCE = 20.0
"""Environment units (mm): norm of the differences of pusher and block positions together."""
ANGLE_TOLERANCE = np.pi / 9
FIRST_SPARE, LAST_SPARE = 50_000, 60_000
"""Seeds of demonstrations that replace those too short for ``lewm``; no training uses them."""


@dataclass(frozen=True)
class Goal:
    """What to bring about: a picture, and for the judge the true ``state`` of the world.

    ``pusher`` says whether the pusher's place is part of the goal.
    """

    image: ImageArray
    state: FloatArray
    pusher: bool


@dataclass(frozen=True)
class Result:
    """How far the task was solved at the start, at the end and at most, 0 to 1: of PushT the goal's
    coverage, of ALOHA a quarter of the reward. Errors of what was to be moved, at the end, in mm
    and rad.
    """

    initial: float
    final: float
    most: float
    position_error_mm: float
    angle_error: float


@dataclass(frozen=True)
class Protocol:
    """``steps`` of the policy at most; ``execute_steps`` of a plan are executed, of a search's
    ``search_execute_steps``. :meth:`start` and :meth:`success` are PushT's.
    """

    name: str
    steps: int
    execute_steps: int
    search_execute_steps: int
    objective: str
    measure: str

    def start(self, simulation: PushTSimulation, seed: int) -> Goal:
        """Begin the episode of ``seed``; deterministic."""
        if self.name == "task":
            simulation.reset(seed=seed)
            state = np.array([128.0, 384.0, *simulation.goal_pose])
            return Goal(simulation.goal_image(), state, pusher=False)
        start, goal = _moments(seed)
        simulation.reset(state=start)
        simulation.set_state(goal)
        picture = simulation.image()
        simulation.set_state(start)
        return Goal(picture, goal, pusher=True)

    def success(self, simulation: PushTSimulation, goal: Goal) -> bool:
        """Whether the world is where it should be."""
        if self.name == "task":
            return simulation.coverage() > SUCCESS_COVERAGE
        position, angle = pose_errors(simulation.state, goal.state)
        return position < POSITION_TOLERANCE and angle < ANGLE_TOLERANCE


PROTOCOLS = {
    "task": Protocol("task", 300, 5, 25, "", "max_coverage"),
    "lewm": Protocol("lewm", 50, 5, 25, "scene", "success"),
    "transfer": Protocol("transfer", 400, 25, 25, "", "success"),
}


def check_unseen(seeds: range) -> None:
    """Refuse seeds that a training may have seen.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` unless all lie below :data:`FIRST_SPARE`.
    """
    if seeds.stop > FIRST_SPARE:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "seeds",
            found=f"{seeds.start} to {seeds.stop - 1}",
            expected=f"below {FIRST_SPARE}: higher ones belong to demonstrations and training",
        )


def pose_errors(state: FloatArray, goal: FloatArray) -> tuple[float, float]:
    """Position error in mm (norm over pusher and block) and angle error in rad, 0 to pi, of states
    (5,): the ``eval_state`` of stable-worldmodel's PushT environment.
    """
    position = float(np.linalg.norm(goal[:4] - state[:4]))
    turn = abs(float(goal[4] - state[4])) % (2 * np.pi)
    return position, min(turn, 2 * np.pi - turn)


@lru_cache(maxsize=256)
def _moments(seed: int) -> tuple[FloatArray, FloatArray]:
    """States (5,) of the demonstration of ``seed`` at a random step and 25 steps later.

    An episode starts at rest there: the gate arms no robot that moves.
    """
    from worldforge_ros.training.demos import demonstrate

    rng = np.random.default_rng([seed, 7])
    states = demonstrate(seed).state.astype(np.float64)
    while len(states) <= GOAL_OFFSET:
        # Solved sooner than that: a demonstration from another start takes its place.
        states = demonstrate(int(rng.integers(FIRST_SPARE, LAST_SPARE))).state.astype(np.float64)
    first = int(rng.integers(len(states) - GOAL_OFFSET))
    return states[first], states[first + GOAL_OFFSET]
