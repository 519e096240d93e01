"""The supervisor, with small real child processes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from worldforge_ros.bringup import NodeSpec
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.recording.progress import STATUS_MARK
from worldforge_ros.supervisor import Command, Console, Deadlines, Outcome, Supervisor, node_command

FOREVER = "import signal; signal.pause()"


def python(name: str, code: str, **options: object) -> Command:
    argv = (sys.executable, "-c", textwrap.dedent(code))
    return Command(name, argv, **options)  # type: ignore[arg-type]


def supervise(
    *commands: Command, deadlines: Deadlines | None = None, log_dir: Path | None = None
) -> tuple[Outcome, str]:
    stream = io.StringIO()
    supervisor = Supervisor(
        commands, console=Console(stream, width=6), deadlines=deadlines, log_dir=log_dir
    )
    return supervisor.run(), stream.getvalue()


def gone(pid: int) -> bool:
    """Whether no living process has this id (a zombie does not live)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_a_child_that_dies_is_named_with_its_status_and_last_lines() -> None:
    outcome, text = supervise(
        python("idle", FOREVER),
        python("broken", "print('about to fail'); raise SystemExit(7)"),
    )
    assert outcome.status == 1
    assert "CHILD_DIED: broken exited with status 7" in text
    assert "about to fail" in text.partition("Its last lines:")[2]
    endings = {ending.name: ending for ending in outcome.endings}
    assert (endings["broken"].status, endings["broken"].asked) == (7, False)
    assert endings["idle"].asked
    assert gone(endings["idle"].pid)


def test_a_clean_exit_that_nobody_asked_for_is_a_failure_too() -> None:
    outcome, text = supervise(python("idle", FOREVER), python("gone", "pass"))
    assert outcome.status == 1
    assert "gone exited with status 0" in outcome.reason
    assert "(it printed nothing)" in text


def test_a_killed_child_is_named_with_its_signal() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    outcome, _ = supervise(python("idle", FOREVER), python("shot", code))
    assert outcome.status == 1
    assert "shot was killed by SIGKILL" in outcome.reason


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_the_child_that_ends_all_is_passed_on(status: int) -> None:
    outcome, _ = supervise(
        python("idle", FOREVER),
        python("work", f"raise SystemExit({status})", exit_ends_all=True),
    )
    assert outcome.status == status
    assert outcome.reason == f"work exited with status {status}"


def test_the_child_that_ends_all_fails_when_it_is_killed() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    outcome, _ = supervise(python("work", code, exit_ends_all=True))
    assert outcome.status == 1
    assert "work was killed by SIGSEGV" in outcome.reason


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A pipe with a name: opening it to read waits until somebody opens it to write."""
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


def test_children_get_sigint_first_and_may_end_cleanly(ready: Path) -> None:
    code = f"""
        import signal, sys
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        open({str(ready)!r}, "w").close()
        signal.pause()
    """
    waits = f"open({str(ready)!r}).read()"
    outcome, _ = supervise(python("tidy", code), python("first", waits, exit_ends_all=True))
    tidy = next(ending for ending in outcome.endings if ending.name == "tidy")
    assert (tidy.status, tidy.signal, tidy.asked) == (0, 0, True)
    assert outcome.status == 0


def test_a_stubborn_child_is_killed_after_both_deadlines(ready: Path) -> None:
    code = f"""
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(ready)!r}, "w").close()
        while True:
            signal.pause()
    """
    waits = f"open({str(ready)!r}).read()"
    outcome, text = supervise(
        python("deaf", code),
        python("first", waits, exit_ends_all=True),
        deadlines=Deadlines(interrupt=0.2, terminate=0.2, kill=5.0),
    )
    deaf = next(ending for ending in outcome.endings if ending.name == "deaf")
    assert deaf.signal == signal.SIGKILL
    assert "deaf is still running: sending SIGTERM" in text
    assert "deaf is still running: sending SIGKILL" in text
    assert gone(deaf.pid)


def test_what_a_child_started_itself_does_not_survive() -> None:
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {FOREVER!r}])
        print("grandchild", child.pid, flush=True)
        raise SystemExit(1)
    """
    outcome, text = supervise(python("parent", code))
    assert outcome.status == 1
    pid = int(text.partition("grandchild ")[2].split()[0])
    if not gone(pid):
        # Its signal is sent; only its parent could have waited for the end.
        wait_for(os.pidfd_open(pid))
    assert gone(pid)


def test_output_is_prefixed_and_kept_in_a_log(tmp_path: Path) -> None:
    code = "print('one'); print('two', end='')"
    _, text = supervise(python("work", code, exit_ends_all=True), log_dir=tmp_path)
    assert "work   | one\n" in text
    assert "work   | two\n" in text
    assert (tmp_path / "work.log").read_text() == "one\ntwo\n"


def test_environment_is_added_to_the_inherited_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDFORGE_TEST_INHERITED", "yes")
    code = "import os; print(os.environ['OMP_X'], os.environ['WORLDFORGE_TEST_INHERITED'])"
    _, text = supervise(python("work", code, env={"OMP_X": "1"}, exit_ends_all=True))
    assert "work   | 1 yes\n" in text


def test_a_program_that_does_not_exist_stops_what_was_started() -> None:
    supervisor = Supervisor(
        [python("idle", FOREVER), Command("absent", ("/nonexistent/program",))],
        console=Console(io.StringIO()),
    )
    with pytest.raises(WorldForgeError, match="absent could not be started") as caught:
        supervisor.run()
    assert caught.value.code is ErrorCode.CHILD_DIED
    assert all(child.ending is not None for child in supervisor._children)


def test_names_must_differ() -> None:
    with pytest.raises(WorldForgeError, match="distinct names"):
        Supervisor([python("same", FOREVER), python("same", FOREVER)])


SUPERVISOR = """
    import sys
    from worldforge_ros.supervisor import Command, Deadlines, Supervisor
    idle = "import os, signal; print('pid', os.getpid(), flush=True); signal.pause()"
    commands = [Command(name, (sys.executable, "-c", idle)) for name in ("first", "second")]
    outcome = Supervisor(commands).run()
    print(outcome.reason, flush=True)
    raise SystemExit(outcome.status)
"""


def started_supervisor() -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert process.stdout is not None
    pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    return process, pids


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_everything(number: signal.Signals, status: int) -> None:
    process, pids = started_supervisor()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"stopped by {number.name}" in output
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl of Linux")
def test_children_die_with_a_supervisor_that_is_killed() -> None:
    process, pids = started_supervisor()
    watches = [os.pidfd_open(pid) for pid in pids]
    process.kill()
    process.communicate(timeout=60)
    for watch in watches:
        wait_for(watch)
    assert all(gone(pid) for pid in pids)


def wait_for(pidfd: int) -> None:
    """Block until the process of this descriptor has ended."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(60_000), "the process is still running"
    os.close(pidfd)


def test_a_node_command_carries_name_namespace_parameters_and_environment() -> None:
    spec = NodeSpec(
        executable="policy_node",
        name="policy",
        namespace="/arm",
        parameters={"device": "1", "rate": 1.0, "flag": True, "empty": "", "list": [1, 2]},
        remappings=(("observation", "other"),),
        env={"OMP_NUM_THREADS": "1"},
        exit_ends_all=True,
    )
    command = node_command(spec)
    assert command.argv[:3] == (sys.executable, "-m", "worldforge_ros.nodes.policy_node")
    rest = command.argv[3:]
    assert rest[0] == "--ros-args"
    pairs = list(zip(rest[1::2], rest[2::2], strict=True))
    assert ("-r", "__node:=policy") in pairs
    assert ("-r", "__ns:=/arm") in pairs
    assert ("-r", "observation:=other") in pairs
    # Quoted, so that the text "1" does not become a number.
    assert ("-p", 'device:="1"') in pairs
    assert ("-p", "rate:=1.0") in pairs
    assert ("-p", "flag:=true") in pairs
    assert ("-p", 'empty:=""') in pairs
    assert ("-p", "list:=[1, 2]") in pairs
    assert command.env == {"OMP_NUM_THREADS": "1"}
    assert command.exit_ends_all


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_colours_only_on_a_terminal(
    make: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    stream = make()
    Console(stream, width=4).line("node", "text", 36)
    assert ("\x1b[36mnode |\x1b[0m text" in stream.getvalue()) is stream.isatty()


def test_a_status_line_is_replaced_on_a_terminal_and_kept_below_other_lines() -> None:
    stream = Terminal()
    console = Console(stream, colour=False)
    console.status("10 %")
    console.line("node", "hello", 36)
    console.status("20 %")
    console.status("")
    console.end_status()
    clear = "\r\x1b[2K"
    assert stream.getvalue() == f"{clear}10 %{clear}node | hello\n10 %{clear}20 %\n"


def test_marked_lines_of_a_child_are_status_lines_and_not_logged(tmp_path: Path) -> None:
    code = f"print({STATUS_MARK!r} + '42 %'); print('plain')"
    _, text = supervise(python("work", code, exit_ends_all=True), log_dir=tmp_path)
    assert "\n42 %\n" in f"\n{text}"
    assert (tmp_path / "work.log").read_text() == "plain\n"


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_everything_is_stopped_when_nobody_reads_the_output() -> None:
    chatty = "while True: print('x' * 100)"
    supervisor = Supervisor([python("chatty", chatty)], console=Console(Closed()))
    with pytest.raises(BrokenPipeError):
        supervisor.run()
    (child,) = supervisor._children
    assert gone(child.process.pid)


def test_quiet_leaves_out_information_but_not_warnings() -> None:
    stream = io.StringIO()
    console = Console(stream, quiet=True)
    console.line("node", "[INFO] [1.0] [node]: loaded", 36)
    console.line("node", "[WARN] [1.0] [node]: late", 36)
    console.line("node", "Traceback", 36)
    console.line("main", "coverage 50 %", 36, main=True)
    assert stream.getvalue() == (
        "node | [WARN] [1.0] [node]: late\nnode | Traceback\ncoverage 50 %\n"
    )
