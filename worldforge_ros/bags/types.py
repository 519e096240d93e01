"""Message types without ROS: definitions of the bag first, then ours and those of a distribution.

Bags of Humble and before in sqlite3 carry no definitions; every other bag does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from worldforge_ros.resources import share_dir

PREFIX = "worldforge_ros/msg"

FORMAT_MSG = "ros2msg"
FORMAT_IDL = "ros2idl"

_SEPARATOR = "=" * 80 + "\n"
_DEFAULT_DISTRO = "humble"
# A definition is ours when it is that of any of these: standard messages change between them.
_KNOWN_DISTROS = ("humble", "jazzy", "lyrical")


@lru_cache(maxsize=8)
def _fields(distro: str) -> Mapping[str, Any]:
    """Parse trees of a distribution's messages and of this package's own, by type name."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = Stores.__members__.get(f"ROS2_{distro.upper()}", Stores.ROS2_HUMBLE)
    fields = dict(get_typestore(store).fielddefs)
    for path in sorted((share_dir() / "msg").glob("*.msg")):
        fields.update(get_types_from_msg(path.read_text("utf-8"), f"{PREFIX}/{path.stem}"))
    return fields


@lru_cache(maxsize=8)
def _known(distro: str) -> Any:
    return _store(_fields(distro))


def _store(fields: Mapping[str, Any]) -> Any:
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.EMPTY)
    store.register(dict(fields))
    return store


def parse_definition(type_name: str, text: str, form: str) -> dict[str, Any]:
    """Parse trees of a definition and of all it refers to, by type name.

    :param form: :data:`FORMAT_MSG` or :data:`FORMAT_IDL`.
    :raises Exception: what the parser raises for text that is no definition.
    """
    from rosbags.typesys import get_types_from_idl, get_types_from_msg

    if form == FORMAT_MSG:
        return dict(get_types_from_msg(text, type_name))
    found: dict[str, Any] = {}
    parts = text.split(_SEPARATOR)[1:] if text.startswith(f"{_SEPARATOR}IDL: ") else [f"\n{text}"]
    for part in parts:
        found.update(get_types_from_idl(part.split("\n", 1)[1]))
    return found


def references(fields: Iterable[tuple[str, Any]]) -> list[str]:
    """Message types among the fields of a parsed definition."""
    from rosbags.interfaces import Nodetype

    found = []
    for _, (kind, detail) in fields:
        while kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            kind, detail = detail[0]
        if kind == Nodetype.NAME:
            found.append(detail)
    return found


def bag_typestore(types: Iterable[str], definitions: Mapping[str, Any], distro: str = "") -> Any:
    """As :func:`typestore`, of ``types`` and what they refer to alone: code is generated for every
    type of a store.
    """
    every = {**_fields(distro.lower() or _DEFAULT_DISTRO), **definitions}
    needed: dict[str, Any] = {}
    waiting = [name for name in types if name in every]
    while waiting:
        name = waiting.pop()
        if name in needed or name not in every:
            continue
        needed[name] = every[name]
        waiting += references(every[name][1])
    return _store(needed)


def typestore(definitions: Mapping[str, Any] | None = None, distro: str = "") -> Any:
    """A ``rosbags`` type store that serialises and deserialises CDR.

    :param definitions: parse trees by type name (:func:`parse_definition`); they win over what is
        known.
    :param distro: ROS distribution of the standard messages that ``definitions`` leaves out;
        Humble's where it is empty or unknown.
    """
    distro = distro.lower() or _DEFAULT_DISTRO
    if not definitions:
        return _known(distro)
    return _store({**_fields(distro), **definitions})


def _hash(fields: Mapping[str, Any], type_name: str) -> str:
    from rosbags.typesys import Stores, get_typestore

    # Registering them would generate code, which a hash does not need.
    store = get_typestore(Stores.EMPTY)
    store.fielddefs.update(fields)
    return str(store.hash_rihs01(type_name))


@lru_cache(maxsize=512)
def _known_hash(distro: str, type_name: str) -> str:
    return _hash(_fields(distro), type_name)


def judge_definition(
    type_name: str, definitions: Mapping[str, Any]
) -> Literal["known", "changed", "unknown"]:
    """Whether a bag's definition of a type is the one that this release reads.

    Structures are compared (RIHS01, REP-2011: names and types of the fields, all the way down), not
    text. ``unknown``: there is nothing to compare, on one of the two sides.
    """
    if type_name not in definitions or type_name not in _fields(_DEFAULT_DISTRO):
        return "unknown"
    try:
        found = _hash(definitions, type_name)
        if found in {_known_hash(distro, type_name) for distro in _KNOWN_DISTROS}:
            return "known"
    except Exception:
        # Wide strings have no hash there, and a definition may lack one that it refers to.
        return "unknown"
    return "changed"
