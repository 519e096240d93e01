"""The environment variables and defaults of each scorer's settings."""

from __future__ import annotations

from collections.abc import Mapping

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.settings import Setting, resolve_settings

SCORERS = ("lewm", "jepa_wms")
SHIPPED = "package://worldforge_ros/models/pusht/world_model"

VARIABLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lewm": {
        "model_path": ("LEWORLDMODEL_POLICY", "LEWM_POLICY"),
        "cache_dir": ("LEWORLDMODEL_CACHE_DIR", "STABLEWM_HOME"),
        "device": ("LEWORLDMODEL_DEVICE",),
    },
    "jepa_wms": {
        "model_path": ("JEPA_WMS_MODEL_NAME",),
        "repository": ("JEPA_WMS_MODEL_PATH",),
        "device": ("JEPA_WMS_DEVICE",),
    },
}
"""Environment variables by scorer and parameter; the first that is set counts."""
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "lewm": {"model_path": SHIPPED, "cache_dir": "", "device": "cpu"},
    "jepa_wms": {"model_path": "", "repository": "", "device": "cpu"},
}


def resolve(
    scorer: str, parameters: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, Setting]:
    """The settings of ``scorer`` that environment variables can give, by parameter name.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown scorer.
    """
    if scorer not in SCORERS:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "scorer",
            found=f"'{scorer}'",
            expected=f"one of {', '.join(SCORERS)}",
        )
    return resolve_settings(VARIABLES[scorer], DEFAULTS[scorer], parameters, environment)
