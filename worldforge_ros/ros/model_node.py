"""A managed node around one model: load beside the executor, warm, answer only while active."""

from __future__ import annotations

import gc
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.process import keep_freed_memory, quiet_openmp
from worldforge_ros.ros.convert import reply_error
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.heartbeat import HeartbeatPublisher
from worldforge_ros.ros.parameters import Parameters
from worldforge_ros.ros.runtime import EXIT_START_FAILED, Worker

M = TypeVar("M")
R = TypeVar("R")


class ModelNode(LifecycleNode, Generic[M]):
    """*configure* loads and warms the model, *activate* lets the service answer.

    With ``autostart`` both happen by themselves, and a model that cannot be loaded ends the process
    with one clear line; without, a failed transition is reported and the node stays unconfigured.

    The node's heartbeat beats while it is active and its executor turns: to a gate that listens, a
    policy that is loading or was deactivated is as lost as one that died.
    """

    def __init__(self, name: str) -> None:
        quiet_openmp()
        keep_freed_memory()
        super().__init__(name)
        self.exit_code: int | None = None
        self.parameters = Parameters(self)
        self.embodiment = load_embodiment(
            self.parameters.text("embodiment", "pusht", "name or path of the embodiment file")
        )
        self.num_threads = self.parameters.integer(
            "num_threads", 1, "threads of the model on the CPU", minimum=1, maximum=256
        )
        autostart = self.parameters.flag("autostart", True, "configure and activate at start")
        self.diagnostics = Diagnostics(self)
        self.diagnostics.set(model="loading")
        self.model: M | None = None
        self._loaded: M | None = None
        self._active = False
        self._heartbeat = HeartbeatPublisher(self, lambda: self._active)
        self._worker: Worker[Any] = Worker(self, "model")
        self._aside: Worker[Any] = Worker(self, "aside")
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        if autostart:
            self._autostart = self.create_timer(0.0, self._begin, clock=self._steady)

    @abstractmethod
    def load(self) -> M:
        """Load and warm the model; runs beside the executor."""

    def open_service(self, service: Any, name: str, callback: Callable[[Any, Any], Any]) -> None:
        """Create a service whose callback awaits :meth:`answer`."""
        # A callback that awaits holds its group, and a mutually exclusive one would block the rest
        # of the node, the answer MODEL_BUSY included, until the model is done.
        self.create_service(service, name, callback, callback_group=ReentrantCallbackGroup())

    async def answer(self, response: Any, prepare: Callable[[M], Callable[[], None]]) -> Any:
        """Answer a request: ``prepare`` checks it here, what it returns runs beside the executor.

        Every error becomes a reply with a code; a second request while one runs is ``MODEL_BUSY``.
        """
        model = self.model
        if model is None or not self._active:
            return reply_error(
                response,
                mismatch(
                    ErrorCode.MODEL_NOT_READY,
                    f"{self.get_name()}",
                    found="unconfigured" if model is None else "inactive",
                    expected="active",
                ),
            )
        if self._worker.busy:
            return reply_error(
                response,
                WorldForgeError(
                    ErrorCode.MODEL_BUSY,
                    f"{self.get_name()} is answering another request; expected one at a time",
                ),
            )
        try:
            await self._worker.submit(prepare(model))
            response.success = True
            self.diagnostics.ok()
        except Exception as error:
            return reply_error(response, self.diagnostics.unexpected(error, "answering a request"))
        return response

    async def beside(self, job: Callable[[M | None], R]) -> R:
        """The result of ``job``, beside the executor and beside requests; it is given the model, or
        None before there is one.

        :raises WorldForgeError: ``MODEL_NOT_READY`` while the model is loading, ``MODEL_BUSY``
            while another such job runs.
        """
        if self._aside.busy:
            raise WorldForgeError(
                ErrorCode.MODEL_BUSY, f"{self.get_name()} is doing this already; expected it idle"
            )
        if self.model is None and self._worker.busy:
            raise WorldForgeError(
                ErrorCode.MODEL_NOT_READY, f"{self.get_name()} is loading; expected a loaded model"
            )
        model = self.model
        result: R = await self._aside.submit(lambda: job(model))
        return result

    def spare(self, kind: str, job: Callable[[M], None], doing: str) -> None:
        """Work with the model while nobody asks; errors are reported as those of ``doing``."""
        model = self.model
        if model is None or not self._active:
            return

        def run() -> None:
            try:
                job(model)
            except Exception as error:
                self.diagnostics.unexpected(error, doing)

        self._worker.spare(kind, run)

    def _begin(self) -> None:
        self._autostart.cancel()
        future = self._worker.submit(self._timed_load)
        future.add_done_callback(self._loaded_beside)

    def _timed_load(self) -> M:
        started = time.monotonic()
        model = self.load()
        # What is loaded stays: the collector need not walk through it in the middle of a request.
        gc.collect()
        gc.freeze()
        self.get_logger().info(f"model loaded and warmed in {time.monotonic() - started:.1f} s")
        return model

    def _loaded_beside(self, future: Future) -> None:
        error = future.exception()
        if error is not None:
            if not isinstance(error, Exception):
                raise error
            wrapped = self.diagnostics.unexpected(error, "loading the model")
            print(f"worldforge: {wrapped}", file=sys.stderr, flush=True)
            self.exit_code = EXIT_START_FAILED
            return
        self._loaded = future.result()
        self.trigger_configure()
        self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, unless autostart has done it."""
        try:
            self.model = self._loaded if self._loaded is not None else self._timed_load()
        except Exception as error:
            self.diagnostics.unexpected(error, "configuring")
            return TransitionCallbackReturn.FAILURE
        self._loaded = None
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer requests from now on."""
        self._active = True
        self.diagnostics.set(model="active")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer ``MODEL_NOT_READY`` from now on."""
        self._active = False
        self.diagnostics.set(model="inactive")
        return super().on_deactivate(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer no more: shutting down from active does not deactivate first."""
        self._active = False
        self.diagnostics.set(model="shut down")
        return super().on_shutdown(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the model."""
        self.model = None
        self.diagnostics.set(model="unconfigured")
        return super().on_cleanup(state)
