"""Start, spin and stop of a node process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future as WorkerFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

from worldforge_ros.errors import WorldForgeError

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
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    code = getattr(node, "exit_code", None)
    return int(code) if code is not None else 0


class Worker(Generic[T]):
    """One thread beside the executor for work that takes long, such as inference.

    At most one job runs and none waits: the caller is told when it is busy.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._job: WorkerFuture[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None and not self._job.done()

    def submit(self, job: Callable[[], T]) -> Future:
        """Start ``job``; the returned rclpy future can be awaited in a callback of the node."""
        future = Future(executor=self._node.executor)
        self._job = self._pool.submit(job)
        self._job.add_done_callback(lambda done: self._finish(done, future))
        return future

    def _finish(self, done: WorkerFuture[Any], future: Future) -> None:
        error = done.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
        # The executor polls an awaiting callback only when something happens.
        if self._node.executor is not None:
            self._node.executor.wake()

    def shutdown(self) -> None:
        """Wait for the running job and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
