"""Where a scorer's settings come from: parameters first, then environment variables, then defaults.

A value that is blank counts as not set, in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worldforge_ros.errors import ErrorCode, mismatch

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


@dataclass(frozen=True)
class Setting:
    """One setting: its value, where it comes from (``parameter``, a variable's name or
    ``default``), and the variables that are set but do not count.
    """

    name: str
    value: str
    source: str
    overridden: tuple[str, ...] = ()


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
    found = {}
    for name, variables in VARIABLES[scorer].items():
        given = parameters.get(name, "").strip()
        present = [item for item in variables if environment.get(item, "").strip()]
        if given:
            found[name] = Setting(name, given, "parameter", tuple(present))
        elif present:
            value = environment[present[0]].strip()
            found[name] = Setting(name, value, present[0], tuple(present[1:]))
        else:
            found[name] = Setting(name, DEFAULTS[scorer][name], "default")
    return found
