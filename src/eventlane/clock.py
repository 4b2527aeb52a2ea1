"""Time, as a parameter: the only place in the library that asks the system for it."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, runtime_checkable

__all__ = [
    "Clock",
    "SystemClock",
    "Timer",
    "VirtualClock",
    "loop_time",
    "sleep",
    "uninterrupted",
    "yield_to_loop",
]

T = TypeVar("T")


def loop_time() -> Callable[[], float]:
    """The running event loop's own time, as a function that asks for it.

    For how long a handler runs: no clock of a test can hasten that. A loop of another kind may have
    a time of its own.
    """
    loop = asyncio.get_running_loop()
    is_usual = type(loop).time is asyncio.BaseEventLoop.time
    return time.monotonic if is_usual else loop.time


class Timer(Protocol):
    """A callback that has been scheduled."""

    def cancel(self) -> None:
        """Make it not happen; nothing if it has happened."""
        ...


class Clock(Protocol):
    """Wall time for what is stored, monotonic time for how long something lasts."""

    def now_ms(self) -> int:
        """Milliseconds of wall time since 1970 in UTC."""
        ...

    def after_ms(self, delay_s: float) -> int:
        """Wall time at which so many seconds have passed, at least; now if they are 0."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back, from an arbitrary start."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back in the running event loop, not before `delay_s` seconds have passed."""
        ...


@runtime_checkable
class VirtualClock(Clock, Protocol):
    """A clock that moves only when it is told to."""

    def advance_to(self, now_ms: int) -> None:
        """Move wall time forward and call what is due by then, in order."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    def after_ms(self, delay_s: float) -> int:
        """See `Clock.after_ms`."""
        # One more, since now was rounded down.
        return self.now_ms() + math.ceil(delay_s * 1000) + 1 if delay_s else self.now_ms()

    monotonic_s = staticmethod(time.monotonic)
    """See `Clock.monotonic_s`."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


async def yield_to_loop() -> None:
    """Let everything else in the event loop that is ready have its turn."""
    await asyncio.sleep(0)


async def sleep(delay_s: float) -> None:
    """Wait in real time: for what no clock of a test can hasten."""
    await asyncio.sleep(delay_s)


async def uninterrupted(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await something to its end, however often this is cancelled meanwhile."""
    task = asyncio.ensure_future(coroutine)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
