"""Typed and described node parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from worldforge_ros.errors import ErrorCode, mismatch


class Parameters:
    """Declares parameters of one node; a wrong type or value stops start-up with one sentence.

    They are read-only unless ``changeable``: then the node decides on each change.
    """

    def __init__(self, node: Node, *, changeable: bool = False) -> None:
        self._node = node
        self._read_only = not changeable

    def text(self, name: str, default: str, description: str, choices: tuple[str, ...] = ()) -> str:
        """A text parameter, one of ``choices`` where given."""
        constraint = f"one of {', '.join(choices)}" if choices else ""
        value = str(self._declare(name, default, description, constraint=constraint))
        if choices and value not in choices:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"parameter {name}",
                found=f"'{value}'",
                expected=constraint,
            )
        return value

    def integer(
        self, name: str, default: int, description: str, *, minimum: int, maximum: int
    ) -> int:
        """A whole number within bounds."""
        bounds = IntegerRange(from_value=minimum, to_value=maximum, step=1)
        return int(self._declare(name, default, description, integer_range=[bounds]))

    def number(
        self, name: str, default: float, description: str, *, minimum: float, maximum: float
    ) -> float:
        """A number within bounds; name the unit in the description."""
        bounds = FloatingPointRange(from_value=minimum, to_value=maximum)
        return float(self._declare(name, default, description, floating_point_range=[bounds]))

    def numbers(self, name: str, default: list[float], description: str) -> tuple[float, ...]:
        """A list of numbers; name the unit in the description."""
        items = self._items(name, list(default), description, "numbers", int | float)
        return tuple(float(item) for item in items)

    def texts(self, name: str, description: str) -> tuple[str, ...]:
        """A list of texts, empty by default."""
        return tuple(self._items(name, [], description, "texts", str))

    def _items(
        self, name: str, default: list[Any], description: str, of: str, kind: Any
    ) -> Sequence[Any]:
        # An empty list has no element type for rclpy, which would then refuse every other one.
        value = self._declare(name, default, description, dynamic_typing=True)
        items = [] if value is None else value
        listed = isinstance(items, Sequence) and not isinstance(items, str)
        if not listed or not all(
            isinstance(item, kind) and not isinstance(item, bool) for item in items
        ):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"parameter {name}",
                found=repr(value),
                expected=f"a list of {of}: {description}",
            )
        return list(items)

    def flag(self, name: str, default: bool, description: str) -> bool:
        """True or false."""
        return bool(self._declare(name, default, description))

    def _declare(
        self, name: str, default: Any, description: str, *, constraint: str = "", **ranges: Any
    ) -> Any:
        descriptor = ParameterDescriptor(
            description=description,
            additional_constraints=constraint,
            read_only=self._read_only,
            **ranges,
        )
        try:
            return self._node.declare_parameter(name, default, descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"parameter {name}",
                found=f"refused ({' '.join(str(error).split())})",
                expected=f"a value like {default!r}: {description}",
            ) from error
