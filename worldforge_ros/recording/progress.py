"""One updating line on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

STATUS_VARIABLE = "WORLDFORGE_STATUS_LINES"
"""Environment variable: set by a parent that shows marked lines in place."""
STATUS_MARK = "\x0e"
"""First character of a line that replaces the one before it; alone, it ends the replacing."""


class ProgressLine:
    """Shows the state of a running job without flooding a log."""

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        """:param every: seconds between two lines where lines cannot be updated in place."""
        self._stream = stream
        self._marked = bool(os.environ.get(STATUS_VARIABLE))
        self._terminal = stream.isatty()
        self._every = 0.2 if self._marked or self._terminal else every
        self._next = 0.0
        self._open = False

    def show(self, text: str) -> None:
        """Show ``text`` if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        if self._marked:
            self._stream.write(f"{STATUS_MARK}{text}\n")
        elif self._terminal:
            self._stream.write(f"\r\x1b[2K{fitted(text)}")
        else:
            self._stream.write(f"{text}\n")
        self._open = self._marked or self._terminal
        self._stream.flush()

    def done(self) -> None:
        """Keep the last line and go on below it."""
        if self._open:
            self._stream.write(f"{STATUS_MARK}\n" if self._marked else "\n")
            self._stream.flush()
            self._open = False
        self._next = 0.0


@contextmanager
def track(what: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Progress of ``total`` pieces of work on stderr, ``done`` of which were there before.

    :returns: a function to call with a remark after each piece.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done, remark="")
            yield lambda remark: bar.update(task, advance=1, remark=remark)
        return
    yield _lines(what, total, done)


def tracked(what: str, steps: range, total: int) -> Iterator[int]:
    """The numbers of ``steps``, with :func:`track`'s progress towards ``total``."""
    with track(what, total, total - len(steps)) as advance:
        for step in steps:
            yield step
            advance("")


def _lines(what: str, total: int, done: int) -> Callable[[str], None]:
    began = time.monotonic()
    line = ProgressLine(sys.stderr, every=10.0)
    count = done

    def advance(remark: str) -> None:
        nonlocal count
        count += 1
        left = (time.monotonic() - began) / (count - done) * (total - count)
        line.show(f"{what} {count} of {total}, {left / 60:.0f} min left, {remark}")

    return advance


def fitted(text: str) -> str:
    """``text`` cut to the width of the terminal: only a single row can be replaced."""
    width = shutil.get_terminal_size().columns - 1
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."
