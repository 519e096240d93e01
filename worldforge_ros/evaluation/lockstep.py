"""Closed-loop episodes of PushT and ALOHA in lockstep: the simulator waits for every decision.

No ROS, but the same observation window, policy, world model, search, choice and safety gate as on
the robot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.aloha import AlohaEpisode
from worldforge_ros.evaluation.loop import Run, Task, run_loop
from worldforge_ros.evaluation.planners import (
    NEED_POLICY,
    NEED_WORLD_MODEL,
    TICKS,
    Choosing,
    Models,
    Planner,
)
from worldforge_ros.evaluation.protocols import PROTOCOLS, Protocol, Result, pose_errors
from worldforge_ros.observation import ImageArray
from worldforge_ros.planning.seam import SeamSettings
from worldforge_ros.planning.search import SearchSettings
from worldforge_ros.planning.sources import check_extra_sources
from worldforge_ros.policies.base import Policy
from worldforge_ros.resources import resolve_path
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.simulation.aloha import AlohaSimulation
from worldforge_ros.simulation.pusht import PushTSimulation

FloatArray = npt.NDArray[np.float64]
World = PushTSimulation | AlohaSimulation

SEARCH = SearchSettings()
"""The search of ``cem``: LeWorldModel's own."""
REFINE = SearchSettings(samples=64, iterations=2, elites=8, blocks=3, spread=0.5)
"""The search of ``cem+policy``; its blocks are those of the policy's candidates."""

SEAM = SeamSettings()
"""How a new plan takes over."""


@dataclass(frozen=True)
class Settings:
    """What decides the result of an episode; steps are control steps of 0.1 s.

    Zero stands for the protocol's own ``steps`` and ``execute_steps`` (of ``cem``:
    ``search_execute_steps``), an empty ``objective`` for the protocol's or the checkpoint's. A
    chunk takes effect ``latency_steps`` after the observation that it was planned from.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an extra source that an episode has not.
    """

    protocol: str = "task"
    policy: str = "package://worldforge_ros/models/pusht/policy"
    world_model: str = "package://worldforge_ros/models/pusht/world_model"
    embodiment: str = "pusht"
    candidates: int = 32
    horizon: int = 0
    execute_steps: int = 0
    search_execute_steps: int = 0
    latency_steps: int = 0
    steps: int = 0
    objective: str = ""
    spearman: bool = False
    search: SearchSettings = SEARCH
    refine: SearchSettings = REFINE
    device: str = "cpu"
    threads: int = 1
    num_inference_steps: int | None = None
    seam: SeamSettings = SEAM
    extra_sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "supplied" in check_extra_sources(self.extra_sources):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "extra_sources",
                found=list(self.extra_sources),
                expected="hold and tail; nobody supplies a chunk in lockstep",
            )

    @property
    def rules(self) -> Protocol:
        """The protocol with these settings in the place of its own."""
        own = PROTOCOLS[self.protocol]
        return replace(
            own,
            steps=self.steps or own.steps,
            execute_steps=self.execute_steps or own.execute_steps,
            search_execute_steps=self.search_execute_steps or own.search_execute_steps,
            objective=self.objective or own.objective,
        )


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    ``measure`` is the maximum coverage, or with another protocol than ``task`` 1 for success and 0
    without; coverages and errors are those of :class:`worldforge_ros.evaluation.protocols.Result`.
    ``stopped`` is why the gate ended the episode, if it did. ``spearman`` is the mean over
    decisions of the rank correlation of costs with the true outcome, or NaN.
    """

    planner: str
    seed: int
    measure: float
    initial_coverage: float
    max_coverage: float
    final_coverage: float
    position_error_mm: float
    angle_error: float
    success: bool
    steps: int
    decisions: int
    ms_per_decision: float
    spearman: float
    rejected_chunks: int
    rejected: Mapping[str, int]
    stopped: str = ""


@dataclass(frozen=True)
class Compared:
    """Costs (S,) of one decision's candidates and what truly became of them, (S,) m."""

    costs: npt.NDArray[np.float32]
    outcomes: FloatArray


def run_episode(
    planner: str,
    seed: int,
    settings: Settings,
    models: Models,
    simulation: World,
    compared: list[Compared] | None = None,
) -> EpisodeResult:
    """One episode, ended by success, by a stop of the gate, or after its steps; deterministic.

    :param compared: takes the costs and outcomes of every decision of ``scored``.
    :raises WorldForgeError: what :func:`~worldforge_ros.evaluation.loop.run_loop` raises.
    """
    episode, run = play(planner, seed, settings, models, simulation)
    if compared is not None:
        compared.extend(
            Compared(decision.costs, decision.outcomes)
            for decision in run.decisions
            if decision.costs is not None and decision.outcomes is not None
        )
    seconds = [decision.seconds for decision in run.decisions]
    agreement = [decision.spearman for decision in run.decisions]
    known = [value for value in agreement if not math.isnan(value)]
    result = episode.result()
    return EpisodeResult(
        planner=planner,
        seed=seed,
        measure=result.most if settings.rules.measure == "max_coverage" else float(run.success),
        initial_coverage=result.initial,
        max_coverage=result.most,
        final_coverage=result.final,
        position_error_mm=result.position_error_mm,
        angle_error=result.angle_error,
        success=run.success,
        steps=run.steps,
        decisions=len(run.decisions),
        ms_per_decision=1000.0 * float(np.mean(seconds)) if seconds else 0.0,
        spearman=float(np.mean(known)) if known else math.nan,
        rejected_chunks=run.rejected_chunks,
        rejected=dict(run.rejected),
        stopped=run.stopped,
    )


class PushTEpisode:
    """PushT as the task of a closed loop, from the start of an episode on.

    ``initial``, ``coverage`` and ``best`` are the goal's coverage at the start, now and at most.
    """

    def __init__(
        self, simulation: PushTSimulation, rules: Protocol, seed: int, robot: Embodiment
    ) -> None:
        self.goal = rules.start(simulation, seed)
        self.initial = self.coverage = self.best = simulation.coverage()
        self._simulation = simulation
        self._rules = rules
        self._cameras = tuple(robot.cameras)

    @property
    def position(self) -> FloatArray:
        """Pusher position (2,) in m."""
        return self._simulation.position

    @property
    def velocity(self) -> FloatArray:
        """Pusher velocity (2,) in m/s."""
        return self._simulation.velocity

    def images(self) -> dict[str, ImageArray]:
        """The picture from above, by camera name."""
        return dict.fromkeys(self._cameras, self._simulation.image())

    def advance(self, setpoint: FloatArray) -> None:
        """Let one control step pass."""
        self._simulation.advance(setpoint, TICKS)
        self.coverage = self._simulation.coverage()
        self.best = max(self.best, self.coverage)

    def succeeded(self) -> bool:
        """Whether the protocol's goal is reached."""
        return self._rules.success(self._simulation, self.goal)

    def result(self) -> Result:
        """How far the episode came."""
        errors = pose_errors(self._simulation.state, self.goal.state)
        return Result(self.initial, self.coverage, self.best, *errors)


def make_world(settings: Settings) -> World:
    """The world of the settings' protocol."""
    return AlohaSimulation() if settings.protocol == "transfer" else PushTSimulation()


def play(
    planner: str,
    seed: int,
    settings: Settings,
    models: Models,
    simulation: World,
    watched: Callable[[Task], Task] = lambda task: task,
) -> tuple[PushTEpisode | AlohaEpisode, Run]:
    """One episode as :func:`run_episode` runs it, with everything that was commanded.

    :param watched: puts something between the loop and the world, to watch or to disturb it.
    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a comparison with the true outcome, which only
        PushT has, and what :func:`~worldforge_ros.evaluation.loop.run_loop` raises.
    """
    rules, robot = settings.rules, models.embodiment
    episode: PushTEpisode | AlohaEpisode
    copied: PushTSimulation | None = None
    if isinstance(simulation, AlohaSimulation):
        if planner == "oracle" or settings.spearman:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"planner {planner}" if planner == "oracle" else "spearman",
                found=f"protocol {rules.name}",
                expected="a PushT protocol: ALOHA has no true outcome to compare with",
            )
        episode = AlohaEpisode(simulation, seed, robot)
    else:
        episode, copied = PushTEpisode(simulation, rules, seed, robot), simulation
    brain: Planner | None = None
    if planner != "still":
        brain = Planner(planner, choosing(settings), models, episode.goal, seed, copied)
    pause = rules.search_execute_steps if planner == "cem" else rules.execute_steps
    loop = run_loop(watched(episode), brain, models, rules.steps, pause, settings.latency_steps)
    return episode, loop


def load_models(settings: Settings, planners: Sequence[str]) -> Models:
    """Load the embodiment and the checkpoints that ``planners`` need.

    :raises WorldForgeError: what the loaders raise.
    """
    embodiment = load_embodiment(settings.embodiment)
    policy: Policy | None = None
    scorer: Scorer | None = None
    if NEED_POLICY.intersection(planners):
        from worldforge_ros.policies.lerobot import load_lerobot_policy

        policy = load_lerobot_policy(
            resolve_path(settings.policy),
            embodiment,
            settings.device,
            settings.threads,
            num_inference_steps=settings.num_inference_steps or 0,
        )
    if NEED_WORLD_MODEL.intersection(planners):
        from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm

        scorer = load_lewm(
            resolve_path(settings.world_model),
            embodiment,
            LeWMOptions(device=settings.device, threads=settings.threads),
        )
    return Models(embodiment, policy, scorer)


def choosing(settings: Settings) -> Choosing:
    """How a planner decides with these settings."""
    return Choosing(
        candidates=settings.candidates,
        horizon=settings.horizon,
        latency_steps=settings.latency_steps,
        objective=settings.rules.objective,
        spearman=settings.spearman,
        search=settings.search,
        refine=settings.refine,
        seam=settings.seam,
        extra_sources=settings.extra_sources,
    )
