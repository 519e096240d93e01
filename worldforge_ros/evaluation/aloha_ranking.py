"""What the quality of a world model for ALOHA is measured on: held-out episodes and decisions.

Nothing here has a policy: candidates are what the scripted expert would do next, changed as
:meth:`worldforge_ros.training.aloha_play.Studio.otherwise` changes it, and its holding still. Each
is executed on the simulator from the state of the decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.evaluation.ranking import Moment
from worldforge_ros.observation import Observation
from worldforge_ros.simulation.aloha import GOAL_STATE
from worldforge_ros.training.aloha_play import TICKS, Studio
from worldforge_ros.training.dataset import Episode
from worldforge_ros.training.tasks import aloha

FloatArray = npt.NDArray[np.float64]

PHASES = ("reach", "carry", "hand over")
EVENTUAL = "eventual"
"""Distance of the cube from its goal in mm when the rest of the plan has been executed too, at most
:data:`LOST`."""
LOST = 500.0
"""A cube that has left the table falls for ever: all such count alike."""
EVERY = 45
"""Steps between two decisions."""


@dataclass(frozen=True)
class AlohaMoment:
    """One decision: what was seen, the candidates (S, H, 14) in rad and m, by objective (see
    :data:`worldforge_ros.training.tasks.ALOHA_READING`) the true outcome (S,) of each in mm, and in
    which of :data:`PHASES` the transfer was. Candidate 0 goes on as planned, 1 holds still. The
    outcome :data:`EVENTUAL` is that of going on with the plan afterwards.
    """

    seed: int
    phase: str
    frames: tuple[Observation, ...]
    goal: npt.NDArray[np.uint8]
    candidates: npt.NDArray[np.float32]
    outcomes: dict[str, FloatArray]

    def judged(self, objective: str) -> Moment:
        """The moment with one of its outcomes."""
        values = self.outcomes[objective]
        return Moment(self.seed, self.frames, self.goal, self.candidates, values, float(values[1]))


def aloha_clips(seeds: Sequence[int]) -> Iterator[Episode]:
    """Held-out episodes: transfers and disturbed ones in turn."""
    studio = Studio()
    for index, seed in enumerate(seeds):
        yield studio.record(seed, "play" if index % 2 else "demo")


def aloha_moments(
    seeds: Sequence[int],
    *,
    candidates: int = 16,
    horizon: int = 50,
    camera: str = "top",
    eventual: bool = False,
) -> Iterator[list[AlohaMoment]]:
    """The decisions of one episode after another; deterministic. Every second episode follows a
    disturbed plan, so that decisions also come after something went wrong.

    :param eventual: also find out the outcome :data:`EVENTUAL`, which takes four times as long.
    """
    studio = Studio()
    simulation = studio.simulation
    goal = simulation.goal_image()
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 14])
        simulation.reset(seed=seed)
        cube = simulation.cube[:3]
        plan = studio.disturbed(cube, rng) if index % 2 else studio.plan(cube, rng)
        other = studio.plan(cube + np.array([*rng.normal(0.0, 0.03, 2), 0.0]), rng)
        found = []
        for step in range(len(plan) - horizon // 2):
            if step % EVERY == index * 7 % EVERY:
                state = simulation.state
                every = [studio.otherwise(plan, other, step, rng) for _ in range(candidates - 2)]
                ahead = plan[np.minimum(np.arange(step, step + horizon), len(plan) - 1)]
                still = np.repeat(simulation.position[None], horizon, axis=0)
                tried = np.stack([ahead, still, *(item[:horizon] for item in every)])
                seen = Observation(
                    stamp=1,
                    images={camera: simulation.image()},
                    position=simulation.position,
                    velocity=simulation.velocity,
                )
                phase = _phase(simulation)
                outcomes = _outcomes(simulation, state, tried)
                if eventual:
                    rest = plan[step + horizon :]
                    outcomes[EVENTUAL] = _eventual(simulation, state, tried, rest)
                chunks = tried.astype(np.float32)
                found.append(AlohaMoment(seed, phase, (seen,), goal, chunks, outcomes))
                simulation.set_state(state)
            simulation.advance(plan[step], TICKS)
        yield found


def _phase(simulation: Any) -> str:
    reward = simulation.reward()
    return PHASES[0] if reward < 2 else PHASES[1] if reward == 2 else PHASES[2]


def _eventual(
    simulation: Any, state: FloatArray, tried: FloatArray, rest: FloatArray
) -> FloatArray:
    # Back to the plan within half a second: a jump of the set-points would throw the cube.
    share = np.minimum(np.arange(1, len(rest) + 1) / 25.0, 1.0)[:, None]
    back = tried[:, -1:] * (1.0 - share) + rest * share
    whole = np.concatenate([tried, back], axis=1)
    cubes = np.stack([end[16:19] for end in _ends(simulation, state, whole)])
    distances: FloatArray = np.linalg.norm(cubes - GOAL_STATE[16:19], axis=1) * 1000.0
    return np.minimum(distances, LOST)


def _ends(simulation: Any, state: FloatArray, tried: FloatArray) -> Iterator[FloatArray]:
    """States (61,) after each of set-points (S, H, 14)."""
    for setpoints in tried:
        simulation.set_state(state)
        for setpoint in setpoints:
            simulation.advance(setpoint, TICKS)
        yield simulation.state


def _outcomes(simulation: Any, state: FloatArray, tried: FloatArray) -> dict[str, FloatArray]:
    import torch

    task = aloha()
    ends = _ends(simulation, state, tried)
    values = torch.from_numpy(task.targets(np.stack([*ends, GOAL_STATE]))).float()
    return {
        name: task.reading.distance(name, values[:-1], values[-1]).double().numpy()
        for name in task.reading.objectives
    }
