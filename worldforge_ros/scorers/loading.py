"""From settings to a loaded scorer; the heavy imports happen here and only for the one chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.resources import resolve_path
from worldforge_ros.scorers.base import Scorer
from worldforge_ros.scorers.settings import resolve
from worldforge_ros.settings import Setting

MIB = 1024 * 1024


@dataclass(frozen=True)
class ScorerConfig:
    """Everything that a scorer is loaded from; see ``docs/parameters.md`` for each.

    ``settings`` come from :func:`~worldforge_ros.scorers.settings.resolve`.
    """

    scorer: str
    settings: Mapping[str, Setting]
    threads: int = 1
    objective: str = ""
    sha256: str = ""
    backend: str = ""
    precision: str = "float32"
    memory_limit_mib: int = 512
    trust_repository: bool = False
    proprio_weight: float = 0.1
    goal_proprio: tuple[float, ...] = ()
    actions_are_normalized: bool = True

    def value(self, name: str) -> str:
        """A setting's value."""
        return self.settings[name].value


def scorer_config(
    scorer: str,
    parameters: Mapping[str, str],
    environment: Mapping[str, str],
    **options: object,
) -> ScorerConfig:
    """A configuration with parameters and environment variables merged."""
    return ScorerConfig(scorer, resolve(scorer, parameters, environment), **options)  # type: ignore[arg-type]


def load_scorer(config: ScorerConfig, embodiment: Embodiment) -> Scorer:
    """Load the world model.

    :raises WorldForgeError: what the loader of the family raises.
    """
    if config.scorer == "lewm":
        from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm

        return load_lewm(
            resolve_path(config.value("model_path")),
            embodiment,
            LeWMOptions(
                device=config.value("device"),
                threads=config.threads,
                root=config.value("cache_dir"),
                sha256=config.sha256,
                backend=config.backend,
                precision=config.precision,
                objective=config.objective,
                memory=config.memory_limit_mib * MIB,
            ),
        )
    from worldforge_ros.scorers.jepa_wms import JepaOptions, load_jepa_wms

    scorer = load_jepa_wms(
        embodiment,
        JepaOptions(
            model=config.value("model_path"),
            repository=config.value("repository"),
            trust_repository=config.trust_repository,
            device=config.value("device"),
            threads=config.threads,
            objective=config.objective or "l2",
            proprio_weight=config.proprio_weight,
            goal_proprio=config.goal_proprio,
            actions_are_normalized=config.actions_are_normalized,
        ),
    )
    found = scorer.facts["sha256"]
    if config.sha256 and found != config.sha256.lower():
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            f"SHA-256 of the parameters of {scorer.model_id}",
            found=found or "none",
            expected=f"{config.sha256.lower()}, as configured",
        )
    return scorer
