"""Completion of ``worldforge`` in a shell, from the very parsers that read its command line."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

from worldforge_ros.bringup import TASKS
from worldforge_ros.errors import ErrorCode, mismatch

SHELLS = ("bash", "zsh", "tcsh")
PLACES: Mapping[str, str] = {
    "bash": "worldforge completion bash > ~/.local/share/bash-completion/completions/worldforge",
    "zsh": "worldforge completion zsh > ~/.zfunc/_worldforge",
    "tcsh": "worldforge completion tcsh >> ~/.tcshrc",
}
"""The command that installs it for one person."""


def script(parser: argparse.ArgumentParser, modules: Mapping[str, str], shell: str) -> str:
    """The script that ``shell`` sources.

    :param parser: of the whole command line; the options of ``modules`` are added to it.
    :param modules: command -> module with ``add_arguments(parser)``.
    :raises WorldForgeError: ``DEPENDENCY_MISSING`` without the package shtab.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "python module shtab",
            found="absent",
            expected="pip install shtab",
        ) from error
    commands = _commands(parser)
    for name, module in modules.items():
        importlib.import_module(module).add_arguments(commands[name])
    for argument in {a.name: a for task in TASKS.values() for a in task.arguments}.values():
        commands["up"].add_argument(
            f"--{argument.name.replace('_', '-')}",
            choices=argument.choices or None,
            help=argument.description,
        )
    for flag in ("--quiet", "--json"):
        commands["up"].add_argument(flag, action="store_true")
    _complete_paths(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _complete_paths(parser: argparse.ArgumentParser, kind: object) -> None:
    """Files where an argument is a path, in this parser and those below it."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = kind  # type: ignore[attr-defined]
    for below in _commands(parser).values():
        _complete_paths(below, kind)
