"""Node parameters without a node: the same names, types and bounds, read from a parameter file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import yaml

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.resources import resolve_path

ParameterValue = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


class ParameterReader(Protocol):
    """What declares parameters: a node's :class:`~worldforge_ros.ros.parameters.Parameters`, or
    :class:`GivenParameters`. A wrong type or value is ``INVALID_ARGUMENT``.
    """

    def text(self, name: str, default: str, description: str, choices: tuple[str, ...] = ()) -> str:
        """A text parameter, one of ``choices`` where given."""

    def integer(
        self, name: str, default: int, description: str, *, minimum: int, maximum: int
    ) -> int:
        """A whole number within bounds."""

    def number(
        self, name: str, default: float, description: str, *, minimum: float, maximum: float
    ) -> float:
        """A number within bounds; the description names the unit."""

    def numbers(self, name: str, default: list[float], description: str) -> tuple[float, ...]:
        """A list of numbers."""

    def texts(self, name: str, description: str) -> tuple[str, ...]:
        """A list of texts, empty by default."""

    def flag(self, name: str, default: bool, description: str) -> bool:
        """True or false."""


class GivenParameters:
    """Parameters of one node from a mapping, such as its section of a parameter file.

    :param node: name of the node, for messages.
    """

    def __init__(self, node: str, values: Mapping[str, ParameterValue]) -> None:
        self._node = node
        self._values = values
        self._declared: set[str] = set()

    def text(self, name: str, default: str, description: str, choices: tuple[str, ...] = ()) -> str:
        """A text parameter, one of ``choices`` where given."""
        value = self._take(name, default)
        if not isinstance(value, str) or (choices and value not in choices):
            expected = f"one of {', '.join(choices)}" if choices else f"text: {description}"
            raise self._invalid(name, value, expected)
        return value

    def integer(
        self, name: str, default: int, description: str, *, minimum: int, maximum: int
    ) -> int:
        """A whole number within bounds."""
        value = self._take(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and isinstance(value, int) and minimum <= value <= maximum):
            expected = f"a whole number from {minimum} to {maximum}: {description}"
            raise self._invalid(name, value, expected)
        return int(value)

    def number(
        self, name: str, default: float, description: str, *, minimum: float, maximum: float
    ) -> float:
        """A number within bounds; the description names the unit."""
        value = self._take(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and isinstance(value, int | float) and minimum <= value <= maximum):
            expected = f"a number from {minimum:g} to {maximum:g}: {description}"
            raise self._invalid(name, value, expected)
        return float(value)

    def numbers(self, name: str, default: list[float], description: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._take(name, default)
        if not isinstance(value, list) or not all(
            isinstance(item, int | float) and not isinstance(item, bool) for item in value
        ):
            raise self._invalid(name, value, f"a list of numbers: {description}")
        return tuple(float(item) for item in value)

    def texts(self, name: str, description: str) -> tuple[str, ...]:
        """A list of texts, empty by default."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._invalid(name, value, f"a list of texts: {description}")
        return tuple(str(item) for item in value)

    def flag(self, name: str, default: bool, description: str) -> bool:
        """True or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._invalid(name, value, f"true or false: {description}")
        return value

    def refuse_others(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuse values that nothing has declared.

        :raises WorldForgeError: ``INVALID_ARGUMENT``.
        """
        unknown = sorted(set(self._values) - self._declared - ignored)
        if unknown:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"parameter of {self._node}",
                found=", ".join(unknown),
                expected=f"one of {', '.join(sorted(self._declared))}",
            )

    def _take(self, name: str, default: object) -> object:
        self._declared.add(name)
        return self._values.get(name, default)

    def _invalid(self, name: str, found: object, expected: str) -> Exception:
        return mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"parameter {self._node}.{name}",
            found=repr(found),
            expected=expected,
        )


def parameters_from_file(text: str, nodes: tuple[str, ...]) -> dict[str, dict[str, ParameterValue]]:
    """Parameters per node name of the ROS parameter file ``text``, none where that is empty;
    ``/**`` is for every node.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that cannot be used.
    """
    if not text:
        return {}
    path = resolve_path(text)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"params_file {path}",
            found=f"unreadable ({error})",
            expected="a ROS parameter file",
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _bad_file(path, "the file", type(content).__name__, "a mapping of node names")
    everyone = _section(path, "/**", content.pop("/**", {"ros__parameters": {}}))
    result = {name: dict(everyone) for name in nodes}
    for key, section in content.items():
        name = str(key).strip("/").rsplit("/", 1)[-1]
        if name not in nodes:
            raise _bad_file(path, "node", key, f"one of {', '.join(nodes)} or /**")
        result[name].update(_section(path, name, section))
    return result


def _section(path: Path, name: str, section: object) -> dict[str, ParameterValue]:
    if not isinstance(section, dict) or set(section) != {"ros__parameters"}:
        raise _bad_file(path, name, section, "a mapping with ros__parameters alone")
    parameters = section["ros__parameters"] or {}
    if not isinstance(parameters, dict):
        raise _bad_file(path, f"{name}.ros__parameters", parameters, "a mapping")
    return _flatten(path, name, parameters)


def _flatten(path: Path, name: str, data: Mapping[object, object]) -> dict[str, ParameterValue]:
    flat: dict[str, ParameterValue] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            for inner, item in _flatten(path, f"{name}.{key}", value).items():
                flat[f"{key}.{inner}"] = item
        elif isinstance(value, bool | int | float | str) or (
            isinstance(value, list) and value and len({type(item) for item in value}) == 1
        ):
            flat[str(key)] = value
        else:
            raise _bad_file(path, f"{name}.{key}", value, "a scalar or a list of one type")
    return flat


def _bad_file(path: Path, field_name: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(
        ErrorCode.INVALID_ARGUMENT,
        f"params_file {path}: {field_name}",
        found=found,
        expected=expected,
    )
