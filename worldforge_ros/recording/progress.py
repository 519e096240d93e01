"""One updating line on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import os
import time
from typing import TextIO

STATUS_VARIABLE = "WORLDFORGE_STATUS_LINES"
"""Environment variable: set by a parent that shows marked lines in place."""
STATUS_MARK = "\x0e"
"""First character of a line that replaces the one before it."""


class Progress:
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
            self._stream.write(f"\r\x1b[2K{text}")
            self._open = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def done(self) -> None:
        """Keep the last line and go on below it."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False
        self._next = 0.0
