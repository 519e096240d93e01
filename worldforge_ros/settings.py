"""Where a model's settings come from: parameters first, then environment variables, then defaults.

A value that is blank counts as not set, in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One setting: its value, where it comes from (``parameter``, a variable's name or
    ``default``), and the variables that are set but do not count.
    """

    name: str
    value: str
    source: str
    overridden: tuple[str, ...] = ()


def resolve_settings(
    variables: Mapping[str, tuple[str, ...]],
    defaults: Mapping[str, str],
    parameters: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, Setting]:
    """The settings that environment variables can give, by parameter name.

    :param variables: environment variables by parameter; the first that is set counts.
    """
    found = {}
    for name, candidates in variables.items():
        given = parameters.get(name, "").strip()
        present = [item for item in candidates if environment.get(item, "").strip()]
        if given:
            found[name] = Setting(name, given, "parameter", tuple(present))
        elif present:
            value = environment[present[0]].strip()
            found[name] = Setting(name, value, present[0], tuple(present[1:]))
        else:
            found[name] = Setting(name, defaults[name], "default")
    return found
