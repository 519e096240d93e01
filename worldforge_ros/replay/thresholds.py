"""``--fail-if 'gate.false_reject_rate > 0.01'``: conditions on a report that make a run fail."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.replay.summary import lookup

OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
COUNTS: Final = {
    "bag_health.problems_by_code",
    "synchronisation.skipped_by_code",
    "cycles.outcomes",
    "gate.codes",
    "gate.expert.codes",
    "gate.recorded.codes",
}
"""Counts by code: a code that did not occur has no key, and counts 0."""

_PATTERN: Final = re.compile(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([-+]?[\w.+-]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """A run fails when the figure at ``path`` of its report is ``operator`` ``value``."""

    path: str
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.path} {self.operator} {self.value:g}"


def parse(text: str) -> Threshold:
    """The threshold that ``text`` states: path, operator, number.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when it is not that.
    """
    found = _PATTERN.fullmatch(text)
    try:
        if found:
            value = float(found[3])
            if value == value:
                return Threshold(found[1], found[2], value)
    except ValueError:
        pass
    raise mismatch(
        ErrorCode.INVALID_ARGUMENT,
        "--fail-if",
        found=repr(text),
        expected=f"PATH OPERATOR NUMBER with one of {' '.join(OPERATORS)}, such as "
        "'gate.false_reject_rate > 0.01'",
    )


def paths(report: Mapping[str, Any]) -> list[str]:
    """Every path of ``report`` that holds a number or, when it was not measured, None."""
    sections = {
        name: part
        for name, part in report.items()
        if name not in ("schema", "provenance", "episodes", "notes")
    }
    return list(_walk(sections, ""))


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        if path == "intervals":
            # Their keys have dots: figures of one episode are not for thresholds.
            return
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}.{index}")
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield path


def failing(report: Mapping[str, Any], thresholds: Sequence[Threshold]) -> list[str]:
    """One line for each threshold that makes the run fail; one on a figure that was not measured
    always does.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a path that the report does not have.
    """
    known = set(paths(report))
    lines = []
    for threshold in thresholds:
        value = _value(report, threshold.path, known)
        if value is None:
            lines.append(f"{threshold.path} was not measured; --fail-if {threshold}")
        elif OPERATORS[threshold.operator](value, threshold.value):
            lines.append(f"{threshold.path} is {value:.6g}; --fail-if {threshold}")
    return lines


def _value(report: Mapping[str, Any], path: str, known: set[str]) -> float | None:
    if path in known:
        found: float | None = lookup(report, path)
        return found
    group, _, code = path.rpartition(".")
    if group in COUNTS and code in _codes():
        return 0.0
    near = difflib.get_close_matches(path, sorted(known), n=3, cutoff=0.5)
    listed = [name for name in sorted(known) if not re.search(r"\.\d", name)]
    raise mismatch(
        ErrorCode.INVALID_ARGUMENT,
        "path of --fail-if",
        found=path,
        expected=(f"perhaps {' or '.join(near)}; " if near else "")
        + f"a figure of the report: {', '.join(listed)}",
    )


def _codes() -> set[str]:
    from worldforge_ros.safety.reasons import ReasonCode

    return {"OK", *map(str, ErrorCode), *map(str, ReasonCode)}
