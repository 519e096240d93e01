"""Independent pieces of work in this process, on all cores, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from worldforge_ros.errors import ErrorCode, WorldForgeError

ENGINES = ("local", "ray")

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, engine: str, jobs: int
) -> Iterator[Result]:
    """``function`` of each of ``tasks``, in the order in which they are done.

    :param function: of a module, so that other processes find it.
    :param engine: one of :data:`ENGINES`; ``ray`` takes the cluster that ``RAY_ADDRESS`` names,
        else a private one with ``jobs`` workers. The cluster's machines need this package and all
        files at the same paths.
    :raises WorldForgeError: ``DEPENDENCY_MISSING`` for ``ray`` without the package, and what
        ``function`` raises.
    """
    return _ray(function, tasks, jobs) if engine == "ray" else _local(function, tasks, jobs)


def _local(
    function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[Result]:
    if jobs == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with _interrupted_once(), ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        try:
            futures = [pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except (KeyboardInterrupt, GeneratorExit):
            # Nobody waits for what they are at; finished results are with the caller.
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first Ctrl-C is a ``KeyboardInterrupt``, a further one nothing: a pool that is
    interrupted while it shuts down waits for ever.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (signal.SIG_IGN, None):
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ray(function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise WorldForgeError(
            ErrorCode.DEPENDENCY_MISSING,
            f"--engine ray could not import ray ({error}); expected the package ray: pip install "
            "'ray[default]'",
        ) from error
    private = not os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"num_cpus": jobs} if private else {}
        ray.init(log_to_driver=False, include_dashboard=False, **options)
    try:
        remote = ray.remote(num_cpus=1)(function)
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready[0])
    finally:
        if started:
            ray.shutdown()
