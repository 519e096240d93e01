"""Start, spin and stop of a node process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

from worldforge_ros.errors import WorldForgeError

EXIT_FAILED = 1
EXIT_START_FAILED = 2

T = TypeVar("T")


def run(factory: Callable[[], Node], args: list[str] | None = None) -> int:
    """Run one node until shutdown or until it sets ``exit_code``.

    An error with a code at start-up is one line on stderr and exit status 2.
    """
    rclpy.init(args=args)
    node: Node | None = None
    try:
        node = factory()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok() and getattr(node, "exit_code", None) is None:
            executor.spin_once(timeout_sec=0.5)
    except WorldForgeError as error:
        print(f"worldforge: {error}", file=sys.stderr, flush=True)
        return EXIT_START_FAILED
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        # A signal shuts the context down between two steps of the executor.
        if rclpy.ok():
            raise
    finally:
        # Ctrl-C in a terminal reaches a node twice, from the terminal and from its parent; the
        # second must not cut short what the first began.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    code = getattr(node, "exit_code", None)
    status = int(code) if code is not None else 0
    if Worker.unfinished():
        # A thread inside a library's start-up cannot be interrupted, and the interpreter's own end
        # would wait for it: a node must stop when it is told to.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


class Worker(Generic[T]):
    """One thread beside the executor for work that takes long, such as inference.

    At most one job is asked for at a time and none waits: the caller is told when it is busy.
    Beside that there are spare jobs, done while nothing is asked for, the newest of each kind only.
    """

    _running: ClassVar[set[int]] = set()

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._change = threading.Condition()
        self._asked: tuple[Callable[[], T], Future] | None = None
        self._spare: dict[str, Callable[[], None]] = {}
        self._busy = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @classmethod
    def unfinished(cls) -> bool:
        """Whether a job of any worker of this process is running."""
        return bool(cls._running)

    @property
    def busy(self) -> bool:
        """Whether a job that was asked for is not done."""
        return self._busy

    def submit(self, job: Callable[[], T]) -> Future:
        """Start ``job``; the returned rclpy future can be awaited in a callback of the node."""
        future = Future(executor=self._node.executor)
        with self._change:
            self._busy = True
            self._running.add(id(self))
            self._asked = (job, future)
            self._change.notify()
        return future

    def spare(self, kind: str, job: Callable[[], None]) -> None:
        """Do ``job``, which must not raise, when there is time; a newer one of its kind takes its
        place.
        """
        with self._change:
            self._spare[kind] = job
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._asked is not None or self._spare)
                asked, self._asked = self._asked, None
                self._running.add(id(self))
                job = None if asked else self._spare.pop(next(iter(self._spare)))
            if asked is not None:
                self._answer(*asked)
            elif job is not None:
                job()
                with self._change:
                    if self._asked is None:
                        self._running.discard(id(self))

    def _answer(self, job: Callable[[], T], future: Future) -> None:
        error: Exception | None = None
        try:
            result = job()
        except Exception as problem:
            error = problem
        except SystemExit as problem:
            # Code of a checkpoint may ask for it; this thread has more to do.
            error = RuntimeError(f"asked to exit with {problem.code}")
        with self._change:
            self._busy = self._asked is not None
            self._running.discard(id(self))
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
        # The executor polls an awaiting callback only when something happens.
        if self._node.executor is not None:
            self._node.executor.wake()
