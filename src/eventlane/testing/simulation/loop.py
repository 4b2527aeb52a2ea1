"""Event loops of several processes on one thread, in a time that passes only when all of them wait.

What runs next is drawn from the seed where real processes would be free to differ: which process
goes on, and how long what it waits for takes. Within a process callbacks run in the order in which
they were scheduled, as asyncio promises. So one seed gives one run.
"""

import asyncio
import heapq
import random
import sys
from asyncio import _set_running_loop  # what a loop has to call, says its documentation
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["Loop", "Schedule"]

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

_TURN_S = 0.00002
"""What a turn of a loop takes."""
_WINDOW_S = 0.25
_WINDOW_TURNS_MAX = 5_000
_CLOSES_MAX = 100
_STEPS_MAX = 5_000


class Schedule:
    """The time of all processes, and what happens when."""

    def __init__(self, chance: random.Random) -> None:
        self.now_s = 0.0
        self.turns = 0
        """Turns of all loops so far."""
        self.spins = False
        """Loops turned so often that they cannot have waited for anything."""
        self.loops: list[Loop] = []
        self._chance = chance
        self._count = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._window_s = 0.0
        self._window_turns = 0

    def call_at(self, when_s: float, callback: Callable[[], None]) -> None:
        """Call back when it is so late, outside of every loop."""
        self._count += 1
        heapq.heappush(self._timers, (when_s, self._count, callback))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """See `call_at`."""
        self.call_at(self.now_s + delay_s, callback)

    def run(self, until: Callable[[], bool], *, limit_s: float, turns_max: int) -> bool:
        """Let everything happen in its order; False if time, or all there was to do, is over."""
        timers = self._timers
        while not until():
            waiting = [loop for loop in self.loops if loop.ready and not loop.is_stopped]
            if waiting:
                loop = waiting[0] if len(waiting) == 1 else self._chance.choice(waiting)
                loop.turn()
                self.turns += 1
                self.now_s += _TURN_S
                if self.turns > turns_max:
                    return False
                if self.now_s > self._window_s:
                    self._window_s, self._window_turns = self.now_s + _WINDOW_S, self.turns
                elif self.turns - self._window_turns > _WINDOW_TURNS_MAX:
                    self.spins = True
            elif timers:
                self.now_s = max(self.now_s, timers[0][0])
            else:
                return False
            if self.now_s > limit_s:
                return False
            while timers and timers[0][0] <= self.now_s:
                heapq.heappop(timers)[2]()
        return True


class _Call(asyncio.TimerHandle):
    """A callback of a loop."""

    def run(self) -> None:
        """Do it now."""
        if not self.cancelled():
            self._run()


class _Task(asyncio.Task[Any]):
    """A task with a number: asyncio keeps tasks in sets, whose order would be a matter of luck."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    __eq__ = object.__eq__


class _Future(asyncio.Future[Any]):
    """A future with a number: see `_Task`."""

    def __init__(self, number: int, loop: "Loop") -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    __eq__ = object.__eq__


class Loop(asyncio.BaseEventLoop):
    """The event loop of one process.

    Args:
        schedule: the time.
        tick_s: how much later it is each time the loop is asked for the time.
        run_thread: runs what is given to threads, as if it took a while.
        went_wrong: told of an exception that nobody handles.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        tick_s: float,
        run_thread: Callable[[Callable[[], None]], None],
        went_wrong: Callable[[str, BaseException | None], None],
    ) -> None:
        self.is_dead = False
        super().__init__()
        self.ready: deque[_Call] = deque()
        self.is_stopped = False
        """It does not turn: its process is frozen, or a handler blocks it."""
        self._schedule = schedule
        self._tick_s = tick_s
        self._run_thread = run_thread
        self._went_wrong = went_wrong
        self._numbers = 0
        self._steps = 0
        self._tasks: list[_Task] = []
        self.generators: list[AsyncGenerator[Any, Any]] = []
        """Asynchronous generators that run in it."""
        schedule.loops.append(self)

    def turn(self) -> None:
        """Run what is ready now."""
        ready = self.ready
        _set_running_loop(self)
        try:
            for _ in range(len(ready)):
                self._steps = 0
                ready.popleft().run()
                if self.is_stopped or not ready:  # a callback may end its own process
                    break
        finally:
            _set_running_loop(None)

    def step(self) -> None:
        """A callback does something that could wait, and does not.

        Raises:
            RuntimeError: It has done so for too long: it would go on for ever.
        """
        self._steps += 1
        if self._steps > _STEPS_MAX:
            raise RuntimeError(f"a callback does not give way after {_STEPS_MAX} reads of the file")

    def die(self) -> None:
        """Run nothing more: whatever waits waits for ever."""
        self.is_dead = True
        self.ready.clear()
        self._schedule.loops.remove(self)

    def bury(self) -> None:
        """Take apart what waits in a dead loop, so that nothing is left to do it later."""
        _set_running_loop(self)
        try:
            # The inner ones first: nothing that is closed reaches into an asynchronous generator.
            for generator in reversed(self.generators):
                _close(getattr(generator, "ag_await", None))
            for task in self._tasks:
                if not task.done():
                    _close(task.get_coro())
        finally:
            _set_running_loop(None)
        self._tasks.clear()
        self.generators.clear()
        self.close()

    @staticmethod
    @contextmanager
    def with_generators() -> Generator[None]:
        """Look after asynchronous generators; what a dead process leaves of them is dropped."""
        hooks = sys.get_asyncgen_hooks()

        def begun(generator: AsyncGenerator[Any, Any]) -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            loop.generators.append(generator)

        sys.set_asyncgen_hooks(begun, lambda _: None)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)

    # --- asyncio ----------------------------------------------------------------------------

    def time(self) -> float:
        """See `asyncio.loop.time`. Time passes while one asks."""
        self._schedule.now_s += self._tick_s
        return self._schedule.now_s

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`."""
        call = _Call(0.0, callback, args, self, context)
        if not self.is_dead:
            self.ready.append(call)
        return call

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon_threadsafe`."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        call = _Call(when, callback, args, self, context)
        if not self.is_dead:
            self._schedule.call_at(when, lambda: self._release(call))
        return call

    def _release(self, call: _Call) -> None:
        """It is due."""
        if not (call.cancelled() or self.is_dead):
            self.ready.append(call)

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio.loop.create_future`."""
        self._numbers += 1
        return _Future(self._numbers, self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        """See `asyncio.loop.create_task`."""
        self._numbers += 1
        task = _Task(self._numbers, coro, loop=self, name=name or "task", context=context)
        self._tasks.append(task)
        return task

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002  # all threads of a process are alike
        func: Callable[[*_Ts], T],
        *args: *_Ts,
    ) -> asyncio.Future[T]:
        """See `asyncio.loop.run_in_executor`."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # handed to who waits for it
                self.call_soon_threadsafe(_end, future.set_exception, future, error)
            else:
                self.call_soon_threadsafe(_end, future.set_result, future, result)

        self._run_thread(run)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See `asyncio.loop.call_exception_handler`."""
        if not self.is_dead:
            self._went_wrong(str(context.get("message")), context.get("exception"))


def _end(tell: Callable[[T], None], future: "asyncio.Future[Any]", what: T) -> None:
    if not future.done():
        tell(what)


def _close(coroutine: Any) -> None:
    if not hasattr(coroutine, "close"):
        return
    for _ in range(_CLOSES_MAX):
        try:
            coroutine.close()
        except RuntimeError:  # it waits for something on its way out: let go of that too
            continue
        except BaseException:  # noqa: S112  # whatever it says, its process is dead
            continue
        return
