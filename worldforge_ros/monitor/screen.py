"""A :class:`~worldforge_ros.monitor.state.Top` for a terminal.

What nodes send is shown as text, never as markup or terminal codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from worldforge_ros.monitor.arrivals import WINDOW
from worldforge_ros.monitor.state import ABSENT, IDLE, OK, NodeRow, Top, TopicRow
from worldforge_ros.safety.watch import plain

if TYPE_CHECKING:
    from rich.console import RenderResult

Lines = list[list[Segment]]

GAP = 2
"""Characters between what is side by side."""
TWO_COLUMNS = 76
"""Characters from which tables are side by side."""
ROOMY = 116
"""Characters from which topics have what is allowed, and nodes their messages in full."""
LEAST_GATE = 3
"""Lines of the gate that are shown however low the terminal is."""

BAD, DIM = "bold red", "dim"
STAGES = {
    "image_to_observation": "observation",
    "capture_to_command": "to command",
}
"""Short names of stages; the others have their own."""


class Picture:
    """Fits the console's width, and ``height`` lines where it is given."""

    def __init__(self, top: Top, height: int | None = None) -> None:
        self._top = top
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, top to bottom: the gate first, since it tells whether the robot moves."""
        fitting = options.update(height=None)
        lines = list(self._lines(console, fitting))
        for line in lines if self._height is None else lines[: self._height]:
            yield from line
            yield Segment.line()

    def _lines(self, console: Console, options: ConsoleOptions) -> Iterator[list[Segment]]:
        top, width, height = self._top, options.max_width, self._height

        def rendered(part: RenderableType, wide: int = width) -> Lines:
            return console.render_lines(part, options.update(width=wide))

        def beside(left: RenderableType, right: RenderableType, wide: int) -> Lines:
            # A grid would lay out both twice.
            rest = width - wide - GAP
            empty = [Segment(" " * rest)]
            both = zip_longest(rendered(left, rest), rendered(right, wide), fillvalue=None)
            return [[*(a or empty), Segment(" " * GAP), *(b or [])] for a, b in both]

        gate = rendered(top.watch.as_rich_short())
        most = None if height is None else max(LEAST_GATE, height // 3)
        parts = [rendered(_title(top)), _cut(gate, most, "`worldforge gate watch` has the rest")]
        aside = width >= TWO_COLUMNS
        if aside:
            right = 43 if width >= ROOMY else 35
            topics = _topics(top, width - right - GAP)
            parts.append(beside(topics, _latencies(top, right), right))
        else:
            parts += [rendered(_topics(top, width)), rendered(_latencies(top, width))]
        parts.append(rendered(_cycle(top)))
        left = None if height is None else height - sum(map(len, parts))
        if aside:
            half = width // 2 if width >= ROOMY else 32
            right = width - half - GAP
            parts.append(beside(_candidates(top, half, left), _nodes(top, right), right))
        else:
            nodes = rendered(_nodes(top, width))
            left = None if left is None else left - len(nodes)
            parts += [rendered(_candidates(top, width, left)), nodes]
        for part in parts:
            yield from part


def _cut(lines: Lines, most: int | None, rest: str) -> Lines:
    if most is None or len(lines) <= most:
        return lines
    return [*lines[: most - 1], [Segment(f"... {rest}")]]


def _table(*columns: str | Column, width: int) -> Table:
    return Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False, width=width)


def _number(header: str, width: int) -> Column:
    return Column(header, justify="right", width=width, no_wrap=True, overflow="ellipsis")


def _name(header: str) -> Column:
    return Column(header, ratio=1, no_wrap=True, overflow="ellipsis")


def _title(top: Top) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("worldforge top", "bold")
    line.append(f"  {plain(top.embodiment)}  namespace {plain(top.namespace)}", DIM)
    line.append(f"  ages in s{'' if top.clock == 'wall' else f' by {top.clock}'}", DIM)
    line.append(f", rates over {WINDOW:g} s, latencies over {top.cycles} cycles", DIM)
    return line


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _topics(top: Top, width: int) -> RenderableType:
    roomy = width >= ROOMY - 45
    columns = [Column("", width=1), _name("topic"), _number("Hz", 6), _number("stamp", 6)]
    columns += [_number("at most", 7)] * roomy
    columns += [_number("heard", 6)]
    columns += [_number("at most", 7)] * roomy
    # A table keeps its cells in its columns.
    table = _table(*(column.copy() for column in columns), width=width)
    for row in top.topics:
        table.add_row(*_topic_cells(row, top.namespace, roomy))
    return table


def _topic_cells(row: TopicRow, namespace: str, roomy: bool) -> Iterator[Text]:
    style = BAD if row.bad else DIM if row.state in (ABSENT, IDLE) else ""
    yield Text("!" if row.bad else "", BAD)
    name = plain(row.topic.removeprefix(f"{namespace.rstrip('/')}/"))
    # Of another type, or not to be read.
    yield Text(f"{name} {plain(row.problem)}" if row.problem else name, style)
    yield Text("-" if row.rate is None else f"{row.rate:.1f}", style)
    yield Text(_seconds(row.stamp_age), style)
    if roomy:
        yield Text(_seconds(row.max_stamp_age), DIM)
    # A topic that has been heard shows how long ago that was.
    yield Text(row.state if row.age is None else _seconds(row.age), style)
    if roomy:
        yield Text(_seconds(row.max_age), DIM)


def _latencies(top: Top, width: int) -> RenderableType:
    columns = (_name("latency ms"), _number("p50", 5), _number("p95", 5), _number("model", 5))
    table = _table(*columns, _number("limit", 5), width=width)
    for row in top.latency:
        stage, p95 = row["stage"], row["p95"]
        limit = top.deadlines.get(stage)
        late = p95 is not None and limit is not None and p95 > limit
        table.add_row(
            Text(STAGES.get(stage, stage), BAD if late else ""),
            _milliseconds(row["p50"]),
            Text(_milliseconds(p95), BAD if late else ""),
            Text(_milliseconds(row.get("model_ms")), DIM),
            Text("-" if limit is None else f"{limit:.0f}", DIM),
        )
    return Group(table, _outcomes(top), _surprise(top))


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _outcomes(top: Top) -> Text:
    if top.cycle is None:
        return Text("no plan_report yet", DIM)
    line = Text("cycles: ")
    for index, (outcome, count) in enumerate(sorted(top.outcomes.items())):
        line.append(", " if index else "")
        line.append(f"{plain(outcome)} {count}", "" if outcome == "OK" else BAD)
    missed = top.cycle.deadline_misses
    line.append("\ndeadlines missed since its start: ")
    return line.append(str(missed), BAD if missed else "")


def _surprise(top: Top) -> Text:
    found = top.surprise
    if found is None:
        return Text("surprise: none heard", DIM)
    value = found.error if found.standardised is None else found.standardised
    line = Text("surprise: ")
    line.append("-" if value is None else f"{value:.2f}", BAD if found.bad else "")
    line.append(" raw" if found.standardised is None else "", DIM)
    line.append("" if found.most is None else f" of at most {found.most:g}")
    return line.append(f", {found.age:.1f} s ago", DIM)


def _cycle(top: Top) -> Text:
    cycle = top.cycle
    if cycle is None:
        return Text("no cycle yet", DIM)
    line = Text(f"cycle {cycle.number} ", no_wrap=True, overflow="ellipsis")
    line.append(plain(cycle.outcome), "bold green" if cycle.outcome == "OK" else BAD)
    line.append(f", {plain(cycle.planner)} of {len(cycle.candidates)} candidates, margin ")
    line.append("-" if cycle.margin is None else f"{cycle.margin:.3g}")
    return line.append(f": {plain(cycle.message)}" if cycle.message else "", BAD)


def _candidates(top: Top, width: int, height: int | None) -> RenderableType:
    """A line each, cheapest first; where there are too many, the chosen one is always there."""
    cycle = top.cycle
    if cycle is None or not cycle.candidates:
        return Text("no candidates", DIM)
    candidates = cycle.candidates
    room = len(candidates) if height is None else max(height - 1, 1)
    shown = list(candidates[:room])
    chosen = next((item for item in candidates if item.chosen), None)
    if len(candidates) > room and chosen is not None and chosen not in shown:
        shown[-1] = chosen
    costs = [item.cost for item in candidates if item.cost is not None]
    low, high = (min(costs), max(costs)) if costs else (0.0, 0.0)
    columns = (Column("", width=1), _number("no", 3), _name("source"), _number("cost", 8))
    table = _table(*columns, Column("", width=6 if width < ROOMY // 2 else 20), width=width)
    for item in shown:
        style = "bold green" if item.chosen else "" if item.reachable else DIM
        span = high - low
        above = 0.0 if item.cost is None else item.cost - low
        bar = Bar(span or 1.0, 0.0, above, color="green" if item.chosen else "bright_black")
        table.add_row(
            Text(">" if item.chosen else "" if item.reachable else "x", style),
            Text(str(item.index), style),
            Text(plain(item.source) + ("" if item.reachable else " unreachable"), style),
            Text("-" if item.cost is None else f"{item.cost:.5g}", style),
            bar,
        )
    return table


def _nodes(top: Top, width: int) -> RenderableType:
    columns = (Column("", width=1), Column("node", width=16, no_wrap=True, overflow="ellipsis"))
    message = Column("diagnostics (errors so far)", ratio=1)
    if width < ROOMY // 2:
        message = Column("diagnostics", ratio=1)
    table = _table(*columns, _number("beat s", 6), message, width=width)
    # Where there is little room, what is wrong is seen first.
    for row in sorted(top.nodes, key=lambda row: not row.bad):
        style = BAD if row.bad else "yellow" if row.state != OK else ""
        beat = "-" if not row.beats else "silent" if row.beat_age is None else None
        table.add_row(
            Text("!" if row.bad else "", BAD),
            Text(plain(row.name), style),
            Text(beat or _seconds(row.beat_age), style),
            # Only what is wrong may take more than a line.
            Text(_told(row), style, no_wrap=row.state == OK, overflow="ellipsis"),
        )
    return table if top.nodes else Text("no node heard", DIM)


def _told(row: NodeRow) -> str:
    if row.age is None:
        return "silent" if row.tells else ""
    told = f"silent for {row.age:.1f} s; " * row.mute + plain(row.message)
    errors = ", ".join(f"{plain(code)} {count}" for code, count in row.errors.items())
    return f"{told} ({errors})" if errors else told
