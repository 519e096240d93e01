"""Run a bring-up without the ``launch`` package: start, prefix output, watch, stop cleanly."""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from worldforge_ros.bringup import NodeSpec, ProgramSpec, bring_up, find_task, programs
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.parameters import ParameterValue
from worldforge_ros.recording.progress import STATUS_MARK, STATUS_VARIABLE, fitted
from worldforge_ros.resources import PACKAGE
from worldforge_ros.security import discover_locally, enclave_of
from worldforge_ros.simulation import gazebo_run

EXIT_FAILED = 1
LAST_LINES = 20
"""Lines of a child that are repeated when it dies."""

_COLOURS = (36, 35, 33, 34, 32, 96, 95, 94)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Command:
    """One process: what to run and how its exit counts; see :class:`NodeSpec`."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    exit_ends_all: bool = False


@dataclass(frozen=True)
class Deadlines:
    """Seconds that a child has to end after SIGINT, then after SIGTERM, then after SIGKILL."""

    interrupt: float = 5.0
    terminate: float = 2.0
    kill: float = 5.0


@dataclass(frozen=True)
class Ending:
    """How one child ended; ``signal`` is 0 when it exited on its own."""

    name: str
    pid: int
    status: int
    signal: int
    asked: bool

    @property
    def text(self) -> str:
        """The same in words."""
        if self.signal:
            return f"was killed by {signal.Signals(self.signal).name}"
        return f"exited with status {self.status}"


@dataclass(frozen=True)
class Outcome:
    """What :meth:`Supervisor.run` came to; ``status`` is the exit status for the shell."""

    status: int
    reason: str
    endings: tuple[Ending, ...]


def node_command(spec: NodeSpec) -> Command:
    """The command line that runs ``spec``: in this interpreter, or a program of another package.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` when that is not installed.
    """
    if spec.package == PACKAGE:
        argv = [sys.executable, "-m", spec.module]
    else:
        argv = [str(gazebo_run.program_of(spec.package, spec.executable, os.environ))]
    argv += [*spec.arguments, "--ros-args"]
    argv += ["-r", f"__node:={spec.name}", "-r", f"__ns:={spec.namespace}"]
    argv += ["--enclave", enclave_of(spec.name)]
    for source, target in spec.remappings:
        argv += ["-r", f"{source}:={target}"]
    for name, value in spec.parameters.items():
        argv += ["-p", f"{name}:={_yaml(value)}"]
    return Command(spec.name, tuple(argv), dict(spec.env), spec.exit_ends_all)


def program_command(spec: ProgramSpec) -> Command:
    """The command that runs ``spec``."""
    return Command(spec.name, spec.argv, dict(spec.env))


def task_commands(name: str, arguments: Mapping[str, str]) -> list[Command]:
    """Every process of the task called ``name``, for ``name: text`` arguments.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` when a program is not installed, and as
        :func:`~worldforge_ros.bringup.bring_up`.
    """
    task = find_task(name)
    # Between two runs on one machine nothing may mix; a user who wants a network says so.
    discover_locally(os.environ)
    specs, others = bring_up(task, arguments), programs(task, arguments)
    if others:
        gazebo_run.check_installed(arguments.get("gazebo", "gz"), os.environ)
    return [*map(program_command, others), *map(node_command, specs)]


def _yaml(value: ParameterValue) -> str:
    # JSON is YAML, and its quotes keep text such as "1" or "" from becoming another type.
    return json.dumps(value)


class _Child:
    def __init__(self, command: Command, process: subprocess.Popen[bytes], colour: int) -> None:
        assert process.stdout is not None
        self.command = command
        self.process = process
        self.output: IO[bytes] = process.stdout
        self.colour = colour
        self.pending = b""
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.log: TextIO | None = None
        self.ending: Ending | None = None


class Console:
    """Prefixes lines with their source; keeps one updating status line below them on a terminal."""

    def __init__(
        self, stream: TextIO, width: int = 0, colour: bool | None = None, quiet: bool = False
    ) -> None:
        """:param quiet: leave out ROS log lines of level DEBUG and INFO, and the labels of a main
        process.
        """
        self._stream = stream
        self._width = width
        self._terminal = stream.isatty()
        self._colour = _wants_colour(stream) if colour is None else colour
        self._quiet = quiet
        self._status = ""
        self._broken = False

    @property
    def quiet(self) -> bool:
        """Whether only what matters is shown."""
        return self._quiet

    @property
    def terminal(self) -> bool:
        """Whether lines can be updated in place."""
        return self._terminal

    def line(self, name: str, text: str, colour: int, main: bool = False) -> None:
        """Print one line of ``name``; ``main`` when the whole run is about this process."""
        if self._quiet and ("[INFO]" in text or "[DEBUG]" in text):
            return
        if self._quiet and main:
            self._write(f"{text}\n")
            return
        label = f"{name:<{self._width}} |"
        if self._colour:
            label = f"\x1b[{colour}m{label}\x1b[0m"
        self._write(f"{label} {text}\n")

    def status(self, text: str) -> None:
        """Replace the status line, or with an empty text keep it; without a terminal, print it."""
        if not text:
            self.end_status()
        elif self._terminal:
            self._status = fitted(text)
            self._write("")
        else:
            self._write(f"{text}\n")

    def end_status(self) -> None:
        """Leave the last status line where it is."""
        if self._status:
            self._status = ""
            self._emit("\n")

    def _write(self, text: str) -> None:
        # On a terminal the status line is cleared, the text goes above it, and it is drawn again.
        self._emit(f"\r\x1b[2K{text}{self._status}" if self._terminal else text)

    def _emit(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            # Nobody reads any more: the first write ends the run, later ones must not stop its end.
            self._broken = True
            raise


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))


def _die_with_parent(parent: int) -> Callable[[], None]:
    """What a child runs before its program: it is to be killed when the supervisor dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(EXIT_FAILED)

    return ask


class Supervisor:
    """Runs processes together: when one ends, all end.

    Every child leads its own session and process group, so that a Ctrl-C on the terminal reaches
    the supervisor alone, and what a child itself started is stopped with it.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        console: Console | None = None,
        deadlines: Deadlines | None = None,
        log_dir: Path | None = None,
    ) -> None:
        """:param log_dir: folder for ``<name>.log`` with the whole output of each child."""
        names = [command.name for command in commands]
        if not names or len(set(names)) != len(names):
            raise WorldForgeError(
                ErrorCode.INVALID_ARGUMENT, f"commands are {names}; expected distinct names"
            )
        self._commands = tuple(commands)
        self._console = console or Console(sys.stdout, width=max(len(name) for name in names))
        self._deadlines = deadlines or Deadlines()
        self._log_dir = log_dir
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._signals: deque[int] = deque()
        self._stopping = False

    def run(self) -> Outcome:
        """Start everything, wait for an end, stop everything.

        To be called in the main thread: signal handlers live there, and the kernel ties the
        children's lives to it.

        :returns: the status of a child with ``exit_ends_all`` that ended, 1 when any other child
            ended, 128 + n after signal n.
        """
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        self._selector.register(wake_read, selectors.EVENT_READ, None)

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        old_wakeup = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old = {number: signal.signal(number, on_signal) for number in watched}
        # A child whose output is closed but which lives, or the reverse, is noticed by SIGCHLD.
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            status, reason = self._start_and_wait(wake_read)
        finally:
            try:
                self._stop(wake_read)
            finally:
                for number, handler in old.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(old_wakeup)
                self._close()
                os.close(wake_read)
                os.close(wake_write)
        return Outcome(status, reason, tuple(c.ending for c in self._children if c.ending))

    def _start_and_wait(self, wake: int) -> tuple[int, str]:
        for index, command in enumerate(self._commands):
            self._start(command, _COLOURS[index % len(_COLOURS)])
        while True:
            self._pump(wake, timeout=1.0)
            if self._signals:
                number = self._signals.popleft()
                name = signal.Signals(number).name
                self._say(f"{name}: stopping")
                return 128 + number, f"stopped by {name}"
            ended = self._reap(asked=False)
            if ended:
                return self._judge(ended[0])

    def _judge(self, child: _Child) -> tuple[int, str]:
        ending = child.ending
        assert ending is not None
        if child.command.exit_ends_all and ending.signal == 0:
            reason = f"{ending.name} {ending.text}"
            if ending.status or not self._console.quiet:
                self._say(f"{reason}: stopping the rest")
            return ending.status, reason
        reason = f"{ErrorCode.CHILD_DIED}: {ending.name} {ending.text} (pid {ending.pid})"
        self._say(f"{reason}; stopping the rest. Its last lines:")
        for line in child.last_lines or ["(it printed nothing)"]:
            self._say(f"    {line}")
        return EXIT_FAILED, reason

    def _start(self, command: Command, colour: int) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.env}
        if self._console.terminal:
            environment[STATUS_VARIABLE] = "1"
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except OSError as error:
            raise WorldForgeError(
                ErrorCode.CHILD_DIED, f"{command.name} could not be started: {error}"
            ) from error
        child = _Child(command, process, colour)
        self._children.append(child)
        os.set_blocking(child.output.fileno(), False)
        self._selector.register(child.output, selectors.EVENT_READ, child)
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            child.log = (self._log_dir / f"{command.name}.log").open("w", encoding="utf-8")

    def _pump(self, wake: int, timeout: float) -> None:
        """Pass on what children wrote; returns early on any event."""
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                os.read(wake, 4096)
            else:
                self._read(key.data)

    def _read(self, child: _Child) -> bool:
        """Pass on available output; False when there is none left."""
        try:
            data = os.read(child.output.fileno(), 65536)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(child.output)
            return False
        *lines, child.pending = (child.pending + data).split(b"\n")
        for line in lines:
            self._show(child, line)
        return True

    def _show(self, child: _Child, raw: bytes) -> None:
        text = raw.decode("utf-8", errors="replace").rstrip("\r")
        if text.startswith(STATUS_MARK):
            self._console.status(text.removeprefix(STATUS_MARK))
            return
        child.last_lines.append(text)
        if child.log is not None:
            child.log.write(text + "\n")
            child.log.flush()
        if not self._stopping or child.command.exit_ends_all:
            main = child.command.exit_ends_all
            self._console.line(child.command.name, text, child.colour, main)

    def _reap(self, asked: bool) -> list[_Child]:
        """Children that ended since the last call, with the rest of their output shown."""
        ended = []
        for child in self._children:
            if child.ending is None and child.process.poll() is not None:
                while child.output in self._selector.get_map() and self._read(child):
                    pass
                if child.pending:
                    self._show(child, child.pending)
                    child.pending = b""
                code = child.process.returncode
                child.ending = Ending(
                    child.command.name, child.process.pid, max(code, 0), max(-code, 0), asked
                )
                ended.append(child)
        return ended

    def _stop(self, wake: int) -> None:
        self._stopping = True
        stages = (
            (signal.SIGINT, self._deadlines.interrupt),
            (signal.SIGTERM, self._deadlines.terminate),
            (signal.SIGKILL, self._deadlines.kill),
        )
        for number, seconds in stages:
            alive = [child for child in self._children if child.ending is None]
            for child in alive:
                if number != signal.SIGINT:
                    self._say(f"{child.command.name} is still running: sending {number.name}")
                self._signal_group(child, number)
            deadline = time.monotonic() + seconds
            while any(child.ending is None for child in self._children):
                left = deadline - time.monotonic()
                if left <= 0 or self._signals:
                    # Another Ctrl-C means: do not wait, go on to the next signal.
                    self._signals.clear()
                    break
                self._pump(wake, timeout=min(left, 0.2))
                self._reap(asked=True)
        for child in self._children:
            # What a child itself started and left behind in its group.
            self._signal_group(child, signal.SIGKILL)
        self._console.end_status()

    @staticmethod
    def _signal_group(child: _Child, number: int) -> None:
        try:
            os.killpg(child.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def _close(self) -> None:
        for child in self._children:
            child.output.close()
            if child.log is not None:
                child.log.close()
        self._selector.close()

    def _say(self, text: str) -> None:
        self._console.line("worldforge", text, 1)
