"""Independent pieces of work: results, errors, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldforge_ros.evaluation.engines import run_tasks

ROOT = Path(__file__).resolve().parents[1]


def begin(path: str) -> None:
    """Leave a mark at ``path`` and be busy."""
    Path(path).touch()
    time.sleep(600.0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_result_comes_and_an_error_is_raised(jobs: int) -> None:
    assert sorted(run_tasks(int, ["3", "1", "2"], engine="local", jobs=jobs)) == [1, 2, 3]
    with pytest.raises(ValueError, match="'three'"):
        list(run_tasks(int, ["three", "1"], engine="local", jobs=jobs))


def test_ctrl_c_twice_ends_it_with_all_processes(tmp_path: Path) -> None:
    tasks = [str(tmp_path / name) for name in "ab"]
    code = (
        "from test_engines import begin, run_tasks\n"
        f"if __name__ == '__main__': list(run_tasks(begin, {tasks!r}, engine='local', jobs=2))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'test'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60.0
        while not all(map(os.path.exists, tasks)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # As a terminal does: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        # The workers hold stderr open: its end is theirs.
        _, text = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert "KeyboardInterrupt" in text
    assert process.returncode == -signal.SIGINT
