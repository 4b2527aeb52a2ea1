"""Consuming into typed handlers, with order, commits and accounting on."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from benchmarks.baseline import StraightLog, bounded
from benchmarks.measuring import Benchmark, Measure, Result, Settings, compared, in_turns, now_s
from benchmarks.orders import Order, orders
from eventlane import App, Context, Limits

__all__ = ["BENCHMARKS", "Seen", "handle_all"]

CONCURRENCY = 100
WAIT_S = 0.001
LANE_WAIT_S = 0.005


class Seen:
    """Counts, and says when all were seen. Its handlers are as trivial as handlers can be."""

    def __init__(self, expected: int, wait_s: float = WAIT_S) -> None:
        self._left = expected
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self.all = asyncio.Event()
        self.last_s = 0.0

    async def handle(self, _event: Order, _ctx: Context | None = None) -> None:
        self._left -= 1
        if not self._left:
            self.last_s = now_s()
            self.all.set()

    def handle_sync(self, _event: Order, _ctx: Context | None = None) -> None:
        self._left -= 1  # on threads, and right: nothing is switched within, as of Python 3.10
        if not self._left:
            self._loop.call_soon_threadsafe(self.all.set)

    async def wait_and_handle(self, _event: Order, _ctx: Context | None = None) -> None:
        await asyncio.sleep(self._wait_s)
        self._left -= 1
        if not self._left:
            self.all.set()


async def handle_all(
    url: str,
    group: str,
    handler: Callable[[Order, Context], Any],
    seen: Seen,
    limits: Limits | None = None,
) -> float:
    """Seconds from the start of handling until all are handled, settled, and handling has ended."""
    app = App(url, limits=limits)
    app.subscribe(Order, group=group, concurrency=CONCURRENCY)(handler)
    async with app:
        start_s = now_s()
        async with app.handling():
            await seen.all.wait()
        seconds = now_s() - start_s
        if (await app.status()).groups[group].open:
            raise AssertionError(f"group {group}: expected all events settled")
        return seconds


def consume(
    name: str,
    handler: Callable[[Seen], Callable[..., Awaitable[None] | None]],
    straight: Callable[[StraightLog, str, Seen], Awaitable[None]],
    *,
    events: int,
    baseline: str,
    target: str | None = None,
    note: str = "",
    wait_s: float = WAIT_S,
) -> Benchmark:
    async def run(settings: Settings) -> list[Result]:
        published = orders(settings.events(events))
        url = f"embedded:{settings.directory / name}"
        async with App(url) as app:
            await app.publish_many(published)
        log = StraightLog(settings.directory / f"{name}-straight")
        log.publish_many(published)
        expected = len(published)
        del published
        groups = map("group-{}".format, count())

        async def ours() -> float:
            seen = Seen(expected, wait_s)
            return await handle_all(url, next(groups), handler(seen), seen)

        async def theirs() -> float:
            seen = Seen(expected, wait_s)
            start_s = now_s()
            await straight(log, next(groups), seen)
            seconds = now_s() - start_s
            await asyncio.sleep(0)
            assert seen.all.is_set()
            return seconds

        measures: tuple[Measure, Measure] = (ours, theirs)
        turns = await in_turns(*measures, settings.repeats)
        log.close()
        return [compared(name, turns, expected, baseline=baseline, target=target, note=note)]

    return Benchmark(name=name, rows=(name,), run=run)


async def straight_async(log: StraightLog, consumer: str, seen: Seen) -> None:
    await log.consume(consumer, seen.handle)


async def straight_sync(log: StraightLog, consumer: str, seen: Seen) -> None:
    log.consume_sync(consumer, seen.handle_sync)


async def straight_waiting(log: StraightLog, _: str, seen: Seen) -> None:
    await bounded(log.orders(), seen.wait_and_handle, CONCURRENCY)


BENCHMARKS = [
    consume(
        "consume_async",
        lambda seen: seen.handle,
        straight_async,
        events=400_000,
        baseline="read, decode, await handler, commit per fetch",
        target=">= 0.45",
    ),
    consume(
        "consume_sync",
        lambda seen: seen.handle_sync,
        straight_sync,
        events=20_000,
        baseline="read, decode, call handler, commit per fetch",
        note="A sync handler runs on a thread, so that it may block; the straight code calls it in "
        "the event loop, where it may not.",
    ),
    consume(
        "consume_waiting",
        lambda seen: seen.wait_and_handle,
        straight_waiting,
        events=20_000,
        baseline="a task per event and a semaphore, in no order, nothing committed",
        note=f"The handler waits for {WAIT_S * 1000:g} ms, at most {CONCURRENCY} at once.",
    ),
    consume(
        "consume_100_lanes",
        lambda seen: seen.wait_and_handle,
        straight_waiting,
        events=20_000,
        baseline="a task per event and a semaphore, in no order, nothing committed",
        target=">= 0.8",
        note=f"The handler waits for {LANE_WAIT_S * 1000:g} ms, at most {CONCURRENCY} at once.",
        wait_s=LANE_WAIT_S,
    ),
]
