"""What every way to start nodes does for security: the local host, and one enclave for each."""

from __future__ import annotations

from collections.abc import MutableMapping

DISCOVERY_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
"""Environment variable with which ROS 2 says how far nodes look for each other."""
LOCAL_DISCOVERY = "LOCALHOST"
"""Its value unless the user sets one."""


def discover_locally(environment: MutableMapping[str, str]) -> None:
    """Limit discovery to this host, unless the user has set how far it goes."""
    environment.setdefault(DISCOVERY_RANGE, LOCAL_DISCOVERY)


def enclave_of(node: str) -> str:
    """SROS 2 enclave of the process with this node, as in ``config/security/policy.xml``.

    ROS looks at it only with ``ROS_SECURITY_ENABLE=true``.
    """
    return f"/worldforge/{node}"
