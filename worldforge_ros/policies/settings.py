"""The environment variables and defaults of a policy's settings."""

from __future__ import annotations

from collections.abc import Mapping

from worldforge_ros.settings import Setting, resolve_settings

SHIPPED = "package://worldforge_ros/models/pusht/policy"

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "policy_path": ("LEROBOT_POLICY_PATH", "LEROBOT_POLICY"),
    "policy_type": ("LEROBOT_POLICY_TYPE",),
    "device": ("LEROBOT_DEVICE",),
    "cache_dir": ("LEROBOT_CACHE_DIR",),
    "embodiment_tag": ("LEROBOT_EMBODIMENT_TAG",),
}
"""Environment variables by parameter; the first that is set counts."""
DEFAULTS: Mapping[str, str] = {
    "policy_path": SHIPPED,
    "policy_type": "",
    "device": "cpu",
    "cache_dir": "",
    "embodiment_tag": "",
}


def resolve(parameters: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Setting]:
    """The policy's settings that environment variables can give, by parameter name."""
    return resolve_settings(VARIABLES, DEFAULTS, parameters, environment)
