"""Write the reference pages of docs/ from the code that they describe.

    python scripts/reference.py [--check] [parameters interfaces errors reasons cli ...]

Without names all of them. With --check nothing is written; the exit status is 1 where a page is
old. ``parameters`` needs ROS 2 and the built messages; what ``cli`` shows of training needs torch.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import MagicMock

from worldforge_ros import bringup, cli, error_advice
from worldforge_ros.safety.advice import with_table

if TYPE_CHECKING:
    from rclpy.node import Node

ROOT = Path(__file__).resolve().parent.parent
NOTE = "Written by `python scripts/reference.py {name}`; a test compares it with the code."
ALL_CORES = 1_000_000
"""Stands for the number of cores, which differs from machine to machine."""
UNITS = (
    (r"per simulated second|per second|\ba second\b|within a second", "1/s"),
    (r"^m/s or rad/s", "m/s, rad/s"),
    (r"\bm or rad\b", "m, rad"),
    (r"\bseconds\b|, s since", "s"),
    (r"\bGB\b", "GB"),
    (r"\bMiB\b", "MiB"),
    (r"\bMB\b", "MB"),
    (r"\bpixels\b", "px"),
)
"""What a description of a number says in words; the first that fits counts."""
OPTIONAL_INTERFACES = ("ros_gz_interfaces",)
"""Messages that a node needs and the wheels of ROS lack."""
FIELD = re.compile(r"^(?P<type>[\w/]+(?:\[\d*\])?) +(?P<name>\w+) *(?:= *(?P<value>[^#\s]+))? *$")


def cell(text: str) -> str:
    """``text`` for a cell of a Markdown table."""
    return re.sub(r"([|<*])", r"\\\1", " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def code(value: object) -> str:
    """``value`` as code; nothing for an empty one."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


# Parameters


def node_classes() -> dict[str, type[Node]]:
    """The node class of every program in ``executables.txt``."""
    from rclpy.node import Node

    classes = {}
    for line in (ROOT / "executables.txt").read_text().splitlines():
        name, _, target = line.partition(" = ")
        if ".nodes." not in target:
            continue
        module = importlib.import_module(target.split(":")[0])
        classes[name] = next(
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Node)
            and value.__module__ == module.__name__
        )
    return classes


def unit(description: str, kind: str) -> str:
    """The unit that ``description`` of a number names; empty for what is counted or a ratio."""
    if kind == "text" or kind == "flag" or re.search("seconds per second", description):
        return ""
    return next((found for pattern, found in UNITS if re.search(pattern, description)), "")


def parameter_rows(node: Node) -> Iterator[list[str]]:
    """One row a parameter of ``node``."""
    from rclpy.parameter import Parameter

    kinds = {
        Parameter.Type.BOOL: "flag",
        Parameter.Type.INTEGER: "whole number",
        Parameter.Type.DOUBLE: "number",
        Parameter.Type.STRING: "text",
        Parameter.Type.DOUBLE_ARRAY: "numbers",
        Parameter.Type.STRING_ARRAY: "texts",
    }
    for name in sorted(node._parameters):
        if name.startswith("qos_overrides") or name in (
            "use_sim_time",
            "start_type_description_service",
        ):
            continue
        parameter: Parameter = node.get_parameter(name)
        descriptor = node.describe_parameter(name)
        # An empty list has no type of its elements.
        kind = kinds.get(parameter.type_, "list")
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        bounds = descriptor.additional_constraints
        if ranges:
            # Nine digits, so that 2147483647 is not 2.15e+09.
            bounds = f"{ranges[0].from_value:.10g} to {ranges[0].to_value:.10g}"
        measure = unit(descriptor.description, kind)
        default = code(parameter.value)
        yield [code(name), kind, default, bounds, measure, cell(descriptor.description)]


def parameters() -> str:
    """docs/parameters.md."""
    import rclpy

    os.environ["ROS_DOMAIN_ID"] = str(100 + os.getpid() % 100)
    rclpy.init()
    parts = [
        f"# Parameters\n\n{NOTE.format(name='parameters')}\n"
        "They are set at start, with `-p name:=value` or a parameter file, and are read-only. "
        "Those of the gate's\nchecks can be changed while the gate is not armed.\n"
    ]
    header = ("parameter", "type", "default", "allowed", "unit", "meaning")
    absent = [name for name in OPTIONAL_INTERFACES if find_spec(name) is None]
    for name in absent:
        for module in (name, f"{name}.msg", f"{name}.srv"):
            sys.modules[module] = MagicMock()
    for name, node_class in node_classes().items():
        node = node_class.__new__(node_class)
        try:
            node.__init__()  # type: ignore[misc]
        except Exception:
            # A node that talks to what is absent ends there, after it has declared its parameters.
            if not absent or not list(parameter_rows(node)):
                raise
        parts.append(f"## {name}\n\n{table(header, list(parameter_rows(node)))}\n")
        node.destroy_node()
    rclpy.shutdown()
    return "\n".join(parts)


# Messages and services


def interface(path: Path) -> str:
    """One message or service, from its comments."""
    introduction: list[str] = []
    sections: list[tuple[list[list[str]], list[list[str]]]] = [([], [])]
    for line in path.read_text(encoding="utf-8").splitlines():
        declared, _, comment = line.partition("#")
        if line == "---":
            sections.append(([], []))
        elif not declared.strip():
            if comment:
                introduction.append(comment.strip())
        else:
            found = FIELD.match(declared)
            if found is None:
                raise ValueError(f"{path}: '{line}' is neither a field nor a constant")
            constants, fields = sections[-1]
            if found["value"]:
                constants.append([code(found["name"]), found["value"], cell(comment)])
            else:
                fields.append([code(found["name"]), code(found["type"]), cell(comment)])
    parts = [f"## {path.stem}", " ".join(introduction)]
    titles = ("Request:", "Response:") if path.suffix == ".srv" else ("",)
    for title, (constants, fields) in zip(titles, sections, strict=True):
        parts += [title] if title else []
        parts += [table(("constant", "value", "meaning"), constants)] if constants else []
        parts += [table(("field", "type", "meaning"), fields)] if fields else []
    return "\n\n".join(parts) + "\n"


def interfaces() -> str:
    """docs/interfaces.md."""
    parts = [
        f"# Messages and services\n\n{NOTE.format(name='interfaces')}\n"
        "Topics and services by name, and which node has them: "
        "[README](../README.md#topics-and-services).\n\n"
        "Messages: `worldforge_ros/msg/NAME`; services: `worldforge_ros/srv/NAME`. SI units; "
        "stamps are ROS time.\n"
    ]
    parts += [interface(path) for path in sorted((ROOT / "msg").glob("*.msg"))]
    parts += [interface(path) for path in sorted((ROOT / "srv").glob("*.srv"))]
    return "\n".join(parts)


# Error codes and reason codes


def errors() -> str:
    """docs/error_codes.md."""
    return (
        f"# Error codes\n\n{NOTE.format(name='errors')}\n\n"
        "A service reply (`error_code`), a plan report (`outcome`), `/diagnostics` and every "
        "`worldforge` command name what\nwent wrong with one of these codes, and one sentence "
        "that names the field, what was found and what was expected.\nWhy the gate refuses, "
        "holds or stops has codes of its own: [reason codes](safety.md#reason-codes).\n\n"
        f"{error_advice.table()}\n"
    )


def reasons() -> str:
    """docs/safety.md with its table of reason codes."""
    return with_table((ROOT / "docs/safety.md").read_text(encoding="utf-8"))


# The command line


def option(action: argparse.Action, with_default: bool) -> list[str]:
    """One argument or option of a parser as a row."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        choices = "|".join(map(str, action.choices)) if action.choices is not None else ""
        value = str(action.metavar or choices or action.dest.upper())
        if not isinstance(action, argparse.BooleanOptionalAction):
            name += f" {value}" + (" ..." if action.nargs in ("*", "+") else "")
    elif action.choices is not None:
        name = "|".join(map(str, action.choices))
    elif action.nargs in ("*", "+"):
        name += " ..."
    meaning = cell(str(action.help or ""))
    # 0 is a default too, and equals False.
    absent = action.default is False or action.default in (None, "", [], (), argparse.SUPPRESS)
    if with_default and not absent:
        default = "all cores" if action.default == ALL_CORES else code(action.default)
        meaning += f" ({default})"
    if action.required and action.option_strings:
        meaning += "; required"
    return [f"`{name}`".replace("|", "\\|"), meaning]


def command(parser: argparse.ArgumentParser, title: str = "", level: int = 2) -> str:
    """One command from its parser."""
    own = parser.formatter_class is argparse.ArgumentDefaultsHelpFormatter
    rows = [
        option(action, own)
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    parts = [f"{'#' * level} {title or parser.prog}"]
    if parser.description:
        # Their first paragraph; the rest is about how it is done, and is shown by --help.
        parts.append(cell(parser.description.split("\n\n")[0]).replace("``", "`"))
    if parser.epilog:
        parts.append(f"```bash\n{parser.epilog.removeprefix('Example: ')}\n```")
    if rows:
        parts.append(table(("argument", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def launch_arguments(title: str, arguments: Sequence[bringup.Argument]) -> str:
    """Arguments of a bring-up."""
    rows = [
        [
            code(argument.name),
            " or ".join(map(code, argument.choices)) or argument.type,
            code(argument.default),
            cell(argument.description),
        ]
        for argument in arguments
    ]
    return f"### {title}\n\n{table(('argument', 'type', 'default', 'meaning'), rows)}\n"


def presets(tasks: Mapping[str, str]) -> str:
    """The options that make a command a task's."""
    return "".join(
        f"\nFor `{task}` it begins with `{options}`.\n"
        for task, options in tasks.items()
        if options
    )


def delegated(name: str) -> Iterator[tuple[str, str, str]]:
    """Module, title and example of the parsers that a command of a task has."""
    if name == "train":
        for what, tasks in cli.TRAINING.items():
            yield from (
                (f"worldforge_ros.training.{target.split()[0]}", f"train {what} {task}", "")
                for task, target in tasks.items()
            )
    elif name == "evaluate":
        yield "worldforge_ros.evaluation.command", f"evaluate {'|'.join(cli.EVALUATION)}", ""
    elif name == "quality":
        yield "worldforge_ros.evaluation.quality", f"quality {'|'.join(cli.QUALITY)}", ""
    elif name in cli.OWN_MODULE:
        module, _, example = cli.OWN_MODULE[name]
        yield module, name, f"Example: {example}"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below ``parser``, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def commands() -> Iterator[str]:
    """Every command, those of a task after it."""
    seen: dict[str, str] = {}
    for name, parser in subcommands(cli._parser()).items():
        targets = list(delegated(name))
        if name not in cli.OWN_MODULE:
            yield command(parser)
            yield from (command(verb, level=3) for verb in subcommands(parser).values())
        if name == "up":
            yield (
                "`--quiet` leaves out INFO and DEBUG lines, `--json` prints how every process "
                "ended. Its arguments:\n[below](#launch-arguments).\n"
            )
        for module, title, example in targets:
            level = 2 if name in cli.OWN_MODULE else 3
            if module in seen:
                yield f"### worldforge {title}\n\nAs `worldforge {seen[module]}`.\n"
                continue
            seen[module] = title
            prog = f"worldforge {title}"
            page = command(cli.module_parser(module, prog, example)[1], level=level)
            tasks = {"evaluate": cli.EVALUATION, "quality": cli.QUALITY}.get(name, {})
            yield page + presets(tasks)


def cli_page() -> str:
    """docs/cli.md."""
    statuses = (cli.main.__doc__ or "").split("\n\n")[0].removeprefix("Entry point: ")
    parts = [
        f"# Commands and launch arguments\n\n{NOTE.format(name='cli')}\n\n"
        f"Exit status of every command: {statuses} In brackets: what counts where an option is "
        "left out.\n"
    ]
    parts += commands()
    parts.append(
        "## Launch arguments\n\n`worldforge up TASK name:=value` and `ros2 launch worldforge_ros "
        "TASK.launch.py name:=value` take the same.\nWhat an argument does not set goes into "
        "`params_file`: [parameters.md](parameters.md).\n"
    )
    parts += [
        launch_arguments(f"{task.name}: {task.summary}", task.arguments)
        for task in bringup.TASKS.values()
    ]
    parts.append(launch_arguments("replay.launch.py", bringup.REPLAY_ARGUMENTS))
    return "\n".join(parts)


PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "parameters": ("docs/parameters.md", parameters),
    "interfaces": ("docs/interfaces.md", interfaces),
    "errors": ("docs/error_codes.md", errors),
    "reasons": ("docs/safety.md", reasons),
    "cli": ("docs/cli.md", cli_page),
}


def main(arguments: Sequence[str]) -> int:
    """0 when the pages are right, or were made right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PAGES, []], help="pages; all if left out")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parsed = parser.parse_args(arguments)
    os.cpu_count = lambda: ALL_CORES
    old = []
    for name in parsed.names or PAGES:
        file, written = PAGES[name]
        page = ROOT / file
        wanted = written()
        if page.is_file() and page.read_text(encoding="utf-8") == wanted:
            continue
        old.append(name)
        if not parsed.check:
            page.write_text(wanted, encoding="utf-8")
    if old and parsed.check:
        print(f"old: run python scripts/reference.py {' '.join(old)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
