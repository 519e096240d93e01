"""What decides the result of a replay."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from worldforge_ros.bags.actions import SOURCES as ACTION_SOURCES
from worldforge_ros.checkpoints import file_sha256, folder_sha256
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.planners import Models
from worldforge_ros.parameters import GivenParameters, ParameterValue, parameters_from_file
from worldforge_ros.planning.parameters import declare as declare_planner
from worldforge_ros.planning.planner import PlannerSettings
from worldforge_ros.resources import PACKAGE, resolve_path
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.parameters import declare as declare_gate
from worldforge_ros.safety.sources import with_limits
from worldforge_ros.safety.workspace import Workspace, workspace_of

OBSERVATIONS = ("auto", "observation", "sensors")
"""Where observations come from: what observation_node published, or cameras and joint states
aligned again; ``auto``: the first where the bag has it."""
TIMING = ("auto", "recorded", "fixed")
"""When cycles begin and chunks arrive: as the plan reports of the bag say, or every
``replan_period`` with a fixed latency; ``auto``: as recorded where the bag has plan reports."""
NODES = ("planner_node", "safety_gate", "observation_node", "policy_node", "score_node")
"""Whose parameters a parameter file may hold; those of the first two count."""
PLANNERS = ("scored", "first", "random", "cem", "cem+policy")
"""How candidates are made and chosen; the last two search the world model."""


@dataclass(frozen=True)
class ReplaySettings:
    """Everything that a replay depends on beside the bag.

    ``latency`` in seconds is from the arrival of an observation to that of the chunk planned from
    it, with fixed timing. ``candidates`` and ``horizon`` 0 stand for the parameter file's.
    ``parameters`` are ``node.name=value`` over the file's, ``remap`` are our topic names and the
    bag's. ``goal`` is a picture for bags without one. ``seed`` -1 stands for that of the recorded
    planner, 0 where the bag has none.
    """

    embodiment: str = "pusht"
    planner: str = "scored"
    policy: str = f"package://{PACKAGE}/models/pusht/policy"
    world_model: str = f"package://{PACKAGE}/models/pusht/world_model"
    candidates: int = 0
    horizon: int = 0
    seed: int = -1
    observations: str = "auto"
    timing: str = "auto"
    latency: float = 0.15
    actions: str = "auto"
    objective: str = ""
    goal: str = ""
    params_file: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    remap: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, known in (
            ("planner", PLANNERS),
            ("observations", OBSERVATIONS),
            ("timing", TIMING),
            ("actions", ACTION_SOURCES),
        ):
            if getattr(self, name) not in known:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    name,
                    found=f"'{getattr(self, name)}'",
                    expected=f"one of {', '.join(known)}",
                )
        if not 0.0 < self.latency <= 60.0:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "latency",
                found=self.latency,
                expected="seconds above 0, at most 60",
            )

    @property
    def choice(self) -> str:
        """The planner's rule."""
        return "scored" if self.planner.startswith("cem") else self.planner

    @property
    def source(self) -> str:
        """Where candidates come from."""
        return self.planner if self.planner.startswith("cem") else "policy"

    @property
    def needs_policy(self) -> bool:
        """Whether a policy proposes."""
        return self.source != "cem"

    @property
    def needs_world_model(self) -> bool:
        """Whether a world model scores."""
        return self.choice == "scored"

    @cached_property
    def _sections(self) -> Mapping[str, dict[str, ParameterValue]]:
        sections = parameters_from_file(self.params_file, NODES)
        result = {name: sections.get(name, {}) for name in NODES}
        for name, text in self.parameters:
            node, dot, parameter = name.partition(".")
            if node not in NODES or not dot:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    "--set",
                    found=repr(name),
                    expected=f"NODE.PARAMETER with one of {', '.join(NODES)}",
                )
            result[node][parameter] = yaml.safe_load(text)
        return result

    def planning(
        self, policy_history: int, drift_horizon: int, seed: int
    ) -> tuple[PlannerSettings, int, int]:
        """The planner's settings, the candidates to ask for and the actions in one.

        :param seed: of the planner, where these settings leave it to the bag.
        :raises WorldForgeError: ``INVALID_ARGUMENT`` for a parameter that does not fit.
        """
        values = {
            **self._sections["planner_node"],
            "planner": self.choice,
            "source": self.source,
            "seed": seed if self.seed < 0 else self.seed,
            "policy_history": policy_history,
        }
        values.setdefault("drift_horizon", drift_horizon)
        given = GivenParameters("planner_node", values)
        settings = declare_planner(given)
        count = given.integer("num_candidates", 32, "candidates", minimum=1, maximum=65536)
        horizon = given.integer("horizon", 0, "actions", minimum=0, maximum=4096)
        given.refuse_others(frozenset({"embodiment", "frame_id", "use_sim_time"}))
        return settings, self.candidates or count, self.horizon or horizon

    def safety(self, embodiment: Embodiment) -> tuple[Embodiment, GateConfig, Workspace | None]:
        """The embodiment with the limits that the gate keeps, its configuration and workspace.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` for a parameter that does not fit, and as
            :func:`~worldforge_ros.safety.sources.with_limits` and
            :func:`~worldforge_ros.safety.workspace.workspace_of`.
        """
        given = GivenParameters("safety_gate", self._sections["safety_gate"])
        urdf = given.text("urdf", "", "path of a URDF")
        overlay = given.text("joint_limits", "", "path of a joint_limits.yaml")
        description = Path(urdf) if urdf else None
        limited, _ = with_limits(embodiment, description, Path(overlay) if overlay else None)
        return limited, declare_gate(given), workspace_of(limited, description)

    def load(self, embodiment: Embodiment) -> Models:
        """The models that the planner needs, as their nodes would load them.

        :raises WorldForgeError: what loading raises.
        """
        policy = scorer = None
        if self.needs_policy:
            from worldforge_ros.policies.lerobot import load_lerobot_policy

            given = GivenParameters("policy_node", self._sections["policy_node"])
            policy = load_lerobot_policy(
                resolve_path(self.policy),
                embodiment,
                self.device,
                self.threads,
                num_inference_steps=given.integer(
                    "num_inference_steps", 0, "passes; 0: the checkpoint's", minimum=0, maximum=1000
                ),
                noise_scheduler=given.text(
                    "noise_scheduler", "", "of a diffusion policy", ("", "DDIM", "DDPM")
                ),
            )
        if self.needs_world_model:
            from worldforge_ros.scorers.loading import load_scorer
            from worldforge_ros.scorers.parameters import declare

            values = {
                **self._sections["score_node"],
                "model_path": self.world_model,
                "device": self.device,
                **({"objective": self.objective} if self.objective else {}),
            }
            config = declare(GivenParameters("score_node", values), self.threads, os.environ)
            scorer = load_scorer(config, embodiment)
        return Models(embodiment, policy, scorer)

    def document(self) -> dict[str, Any]:
        """The settings and the hashes of what they name, as JSON."""
        values = asdict(self)
        for name, needed in (
            ("policy", self.needs_policy),
            ("world_model", self.needs_world_model),
        ):
            if needed:
                values[f"{name}_sha256"] = _checkpoint_sha256(resolve_path(values[name]))
            else:
                del values[name]
        # Neither threads nor where a model runs is meant to change a result.
        for name in ("threads", "device"):
            del values[name]
        values["embodiment_sha256"] = _sha256(repr(load_embodiment(self.embodiment)))
        if self.params_file:
            content = resolve_path(self.params_file).read_text(encoding="utf-8")
            values["params_file_sha256"] = _sha256(content)
        for name in ("urdf", "joint_limits"):
            given = self._sections["safety_gate"].get(name)
            if given:
                values[f"{name}_sha256"] = file_sha256(Path(str(given)))
        if self.goal:
            values["goal_sha256"] = hashlib.sha256(resolve_path(self.goal).read_bytes()).hexdigest()
        return values


def _checkpoint_sha256(path: Path) -> str:
    """Hash of a folder or a file; empty for a name that only a loader can find."""
    if path.is_dir():
        return folder_sha256(path)
    return file_sha256(path) if path.is_file() else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
