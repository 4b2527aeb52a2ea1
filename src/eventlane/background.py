"""Running an app: beside other code, in a thread of its own, or until a signal."""

import asyncio
import logging
import os
import signal
import threading
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent import futures
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from eventlane.errors import EventlaneError, HandlerStuck

__all__ = ["LoopThread", "Submissions", "cancelling_group", "stop_on_signals"]

log = logging.getLogger("eventlane")

T = TypeVar("T")


class LoopThread:
    """A thread with an event loop, in which an async context is open until `close`."""

    def __init__(self, context: AbstractAsyncContextManager[Any]) -> None:
        """Enter the context.

        Raises:
            EventlaneError: What entering raised.
        """
        self._context = context
        self._entered = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._leave = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="eventlane", daemon=True)
        self._thread.start()
        self._entered.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def close(self) -> None:
        """Leave the context and wait for it.

        Raises:
            EventlaneError: What leaving raised.
        """
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._stay())
        except BaseException as error:  # handed to the thread that waits, which raises it
            self._failure = error
        finally:
            self._entered.set()

    async def _stay(self) -> None:
        async with self._context:
            self._entered.set()
            await self._leave.wait()


class Submissions:
    """What other threads gave to an event loop; nothing of it is forgotten."""

    def __init__(self, name: str) -> None:
        """`name` is the app's, for the log."""
        self._name = name
        self._pending: set[Future[Any]] = set()

    def submit(self, coroutine: Coroutine[Any, Any, T], loop: AbstractEventLoop) -> "Future[T]":
        """Run a coroutine in the loop; a failure is logged, though nobody ask for it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        self._pending.add(future)
        future.add_done_callback(self._ended)
        return future

    def wait(self) -> None:
        """Wait until all of it has ended."""
        futures.wait(self._pending.copy())

    def _ended(self, future: "Future[Any]") -> None:
        self._pending.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.error("%s: a submitted event was not published: %s", self._name, error)


@asynccontextmanager
async def cancelling_group() -> AsyncGenerator[asyncio.TaskGroup]:
    """A task group that raises a failure as itself; of several one, and the others are logged."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first, *others = sorted(failures.exceptions, key=_severity)
        for each in others:
            log.exception("another group failed, too: %s", each, exc_info=each)
        raise first from None


def _severity(error: BaseException) -> int:
    """What is no failure of a group comes first; then what only the end of the process ends."""
    if not isinstance(error, EventlaneError):
        return 0
    return 1 if isinstance(error, HandlerStuck) else 2


@contextmanager
def stop_on_signals() -> Generator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets; the second of them ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked_to_stop(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, asked_to_stop, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
