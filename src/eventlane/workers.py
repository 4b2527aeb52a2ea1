"""Workers: tasks that live long, and are started only when all others are inside a handler."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, copy_context
from typing import Any

from eventlane.deadletter import HandlerTimeout
from eventlane.errors import HandlerStuck
from eventlane.handler import Delivery
from eventlane.subscription import Subscription

__all__ = ["Worker", "Workers", "ends_process"]

log = logging.getLogger("eventlane.dispatch")


class Worker:
    """A task that handles one delivery, or one list, after the other."""

    __slots__ = (
        "admitted",
        "context",
        "deadline",
        "handling",
        "is_idle",
        "is_stopping",
        "subscription",
        "task",
        "timed_out",
        "was_said",
    )

    def __init__(self, context: Context) -> None:
        self.context = context
        """The context variables that its handlers see."""
        self.task: asyncio.Task[None] | None = None
        self.admitted: int | None = None
        """Its run was admitted by the group's breaker, which is not closed: see `Guard.admit`."""
        self.handling: Delivery | list[Delivery] | None = None
        """What a handler runs for now."""
        self.is_idle = False
        """It sleeps until there is something to do."""
        self.is_stopping = False
        """What it runs may be cancelled for good."""
        self.deadline = 0.0
        """When the running handler is cancelled; 0 while none runs that may be."""
        self.timed_out = False
        self.was_said = False
        """It is in the log that it runs on after its time."""
        self.subscription: Subscription | None = None

    def cancel(self) -> None:
        """Cancel what it handles."""
        assert self.task is not None
        self.task.cancel()

    def time_out(self) -> None:
        """Cancel what it handles, once, since its time is over."""
        if not self.timed_out:
            self.timed_out = True
            self.cancel()

    def ended(self) -> None:
        """What it handled with a deadline has ended. A handler may have swallowed its time-out."""
        self.deadline = 0.0
        if self.timed_out:
            self.timed_out = self.was_said = False
            assert self.task is not None
            self.task.uncancel()

    def why_cancelled(self, error: BaseException) -> BaseException:
        """What a cancelled handler failed of: its time-out, or something in it cancelled itself."""
        assert self.task is not None
        self.task.uncancel()
        if not self.timed_out:
            return error
        self.timed_out = self.was_said = False
        return self.time_is_over()

    def time_is_over(self) -> HandlerTimeout:
        """What a run failed of that has not ended in time, whatever it returned afterwards."""
        assert self.subscription is not None
        return HandlerTimeout(
            f"the handler did not return within timeout_s={self.subscription.timeout_s}"
        )


class Workers:
    """The workers of one group in this process."""

    def __init__(
        self,
        work: Callable[[Worker], Coroutine[Any, Any, None]],
        *,
        group: str,
        count_max: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        """`work` is what a worker runs; `failed` is told what ended one that should not end."""
        self._work = work
        self._group = group
        self._count_max = count_max
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._all: dict[Worker, None] = {}
        """In the order in which they were started."""
        self._idle: list[tuple[Worker, asyncio.Future[None]]] = []
        self.clean = copy_context()
        """What a worker's context must be equal to after each handler."""
        self._stopping = False

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    @property
    def in_flight(self) -> int:
        """Deliveries whose handler runs."""
        return sum(
            len(worker.handling) if isinstance(worker.handling, list) else 1
            for worker in self._all
            if worker.handling is not None
        )

    @property
    def free(self) -> int:
        """How many more handlers could be entered now."""
        return self._count_max - sum(worker.handling is not None for worker in self._all)

    @property
    def is_cut_off(self) -> bool:
        """A handler was ended, or is about to be, by what ends the process."""
        return any(
            worker.handling is not None
            and worker.task is not None
            and (worker.task.done() or (worker.task.cancelling() and not worker.timed_out))
            for worker in self._all
        )

    def wake(self) -> None:
        """Have one look for something to do, unless one is about to anyway."""
        if any(not worker.is_idle and worker.handling is None for worker in self._all):
            return
        if self._idle:
            worker, sleeping = self._idle.pop()
            worker.is_idle = False
            if not sleeping.done():
                sleeping.set_result(None)
        elif len(self._all) < self._count_max and not self._stopping:
            self._start()

    async def sleep(self, worker: Worker) -> bool:
        """Let a worker sleep until it is woken; False if it is to end."""
        if self._stopping:
            self._all.pop(worker, None)
            return False
        sleeping = self._loop.create_future()
        self._idle.append((worker, sleeping))
        worker.is_idle = True
        await sleeping
        return True

    def time_out(self, now_s: float, stuck_s: float) -> HandlerStuck | None:
        """Cancel what runs for too long; an error if that does not help either."""
        for worker in self._all:
            subscription = worker.subscription
            if not worker.deadline or now_s <= worker.deadline:
                continue
            assert subscription is not None
            if now_s > worker.deadline + stuck_s:
                return HandlerStuck(
                    f"handler {subscription.name} still runs {stuck_s} s after its "
                    f"timeout_s={subscription.timeout_s}. Its lane stays closed until this process "
                    "exits: exit it, and mend the handler."
                )
            if worker.timed_out and not worker.was_said:
                worker.was_said = True
                log.warning(
                    "group %s: %s. At stuck_s=%s this process ends.",
                    self._group,
                    _why_late(subscription),
                    stuck_s,
                )
            worker.time_out()
        return None

    @property
    def late(self) -> list[str]:
        """Which handlers run on though their time is over, in sentences."""
        return [
            _why_late(each.subscription)
            for each in self._all
            if each.was_said and each.subscription is not None
        ]

    def retire(self, worker: Worker) -> None:
        """Replace a worker whose handler left context variables behind, so that none leak."""
        self._all.pop(worker, None)
        self._start()

    async def stop(self, *, within_s: float) -> int:
        """Let running handlers end; cancel those that do not.

        Returns:
            How many did not end when cancelled either.
        """
        self._stopping = True
        for worker in self._all:
            worker.is_stopping = True
        for worker, sleeping in self._idle:
            worker.is_idle = False
            if not sleeping.done():
                sleeping.set_result(None)
        self._idle.clear()
        running = {worker.task for worker in self._all if worker.task is not None}
        if not running:
            return 0
        _, late = await asyncio.wait(running, timeout=within_s)
        for task in late:
            task.cancel()
        alive = (await asyncio.wait(late, timeout=within_s))[1] if late else set[Any]()
        if late and not alive:
            log.warning(
                "group %s: %d handlers did not end within drain_s=%s and were cancelled; their "
                "events will be handled again",
                self._group,
                len(late),
                within_s,
            )
        return len(alive)

    def _start(self) -> None:
        # A context of its own: a worker must not begin with what a handler happened to have set.
        worker = Worker(self.clean.copy())
        self._all[worker] = None
        worker.task = self._loop.create_task(
            self._work(worker),
            name=f"eventlane {self._group}: worker",
            context=worker.context,
        )
        worker.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if not self._stopping:  # A handler has cancelled its own task, and returned.
                for worker in [each for each in self._all if each.task is task]:
                    self.retire(worker)
        elif (error := task.exception()) is not None:
            self._failed(error)


def ends_process(error: BaseException) -> bool:
    """Whether what came out of a handler is not the handler's own.

    An interrupt is the user's. A coroutine that is thrown away is sent `GeneratorExit`, when no
    event loop runs any more.
    """
    if not isinstance(error, GeneratorExit):
        return isinstance(error, KeyboardInterrupt)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _why_late(subscription: Subscription) -> str:
    return (
        f"handler {subscription.name} runs on after its timeout_s={subscription.timeout_s}; its "
        "lane waits until its code ends"
    )
