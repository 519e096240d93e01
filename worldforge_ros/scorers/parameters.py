"""Which world model and how it runs, as the parameters of score_node."""

from __future__ import annotations

from collections.abc import Mapping

from worldforge_ros.parameters import ParameterReader
from worldforge_ros.scorers.loading import ScorerConfig, scorer_config
from worldforge_ros.scorers.settings import SCORERS


def declare(
    parameters: ParameterReader, threads: int, environment: Mapping[str, str]
) -> ScorerConfig:
    """Declare all parameters that decide which world model scores and how, and read them.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the parameter.
    """
    scorer = parameters.text("scorer", "lewm", "family of the world model", SCORERS)
    given = {
        "model_path": parameters.text(
            "model_path",
            "",
            "lewm: checkpoint folder, weights file or run name, empty: LEWORLDMODEL_POLICY or "
            "LEWM_POLICY, else the shipped PushT model; jepa_wms: name in its hubconf.py, "
            "empty: JEPA_WMS_MODEL_NAME",
        ),
        "cache_dir": parameters.text(
            "cache_dir",
            "",
            "lewm: folder that run names are relative to; empty: LEWORLDMODEL_CACHE_DIR, else "
            "STABLEWM_HOME, else ~/.stable_worldmodel",
        ),
        "repository": parameters.text(
            "repository",
            "",
            "jepa_wms: folder with its repository, or owner/name:commit; empty: "
            "JEPA_WMS_MODEL_PATH",
        ),
        "device": parameters.text(
            "device",
            "",
            "torch device; empty: LEWORLDMODEL_DEVICE or JEPA_WMS_DEVICE, else cpu",
        ),
    }
    return scorer_config(
        scorer,
        given,
        environment,
        threads=threads,
        objective=parameters.text(
            "objective",
            "",
            "how the last latent is compared with the goal where a request leaves it open; "
            "empty: the model's own",
        ),
        sha256=parameters.text(
            "sha256", "", "SHA-256 that the weights must have; an object checkpoint needs it"
        ),
        backend=parameters.text(
            "backend",
            "",
            "lewm: torch, openvino (faster on a CPU, needs the package) or upstream (the "
            "model's own cost function); empty: torch, or upstream for an object checkpoint",
            ("", "torch", "openvino", "upstream"),
        ),
        precision=parameters.text(
            "precision",
            "float32",
            "lewm: bfloat16 is faster on some machines and can change which candidate is best",
            ("float32", "bfloat16"),
        ),
        memory_limit_mib=parameters.integer(
            "memory_limit_mib",
            512,
            "lewm: most that one pass of the rollout takes, MiB; the rest waits for another",
            minimum=1,
            maximum=1 << 20,
        ),
        trust_repository=parameters.flag(
            "trust_repository", False, "jepa_wms: allow the code of its repository to run"
        ),
        proprio_weight=parameters.number(
            "proprio_weight",
            0.1,
            "jepa_wms: weight of the joint state in the cost, where the model has one",
            minimum=0.0,
            maximum=1e6,
        ),
        goal_proprio=parameters.numbers(
            "goal_proprio", [], "jepa_wms: joint state of the goal in the model's units"
        ),
        actions_are_normalized=parameters.flag(
            "actions_are_normalized",
            True,
            "jepa_wms: whether candidates in model space are normalised already",
        ),
    )
