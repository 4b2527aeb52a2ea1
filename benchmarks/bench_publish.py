"""Publishing: many at once, and one by one with some in flight; all of it fsynced."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path

from benchmarks.baseline import GroupCommit, StraightLog
from benchmarks.measuring import Benchmark, Result, Settings, compared, in_turns, now_s
from benchmarks.orders import Order, orders
from eventlane import App

__all__ = ["BENCHMARKS"]

IN_FLIGHT = (1, 10, 100, 1000)


def directories(settings: Settings, name: str) -> Iterator[Path]:
    for number in count():
        yield settings.directory / f"{name}-{number}"


async def publish_many(settings: Settings) -> list[Result]:
    events = orders(settings.events(200_000))
    places = directories(settings, "publish_many")

    async def ours() -> float:
        async with App(f"embedded:{next(places)}") as app:
            await app.publish_many(events[:8])  # makes the topic and the codec
            start_s = now_s()
            await app.publish_many(events)
            return now_s() - start_s

    async def straight() -> float:
        log = StraightLog(next(places))
        log.publish_many(events[:8])
        start_s = now_s()
        log.publish_many(events)
        seconds = now_s() - start_s
        log.close()
        return seconds

    return [
        compared(
            "publish_many",
            await in_turns(ours, straight, settings.repeats),
            len(events),
            baseline="encode, batch per partition, SQLite with fsync per 8,000",
            target=">= 0.85",
        )
    ]


async def spread_over(
    publish: Callable[[Order], Awaitable[object]], events: list[Order], in_flight: int
) -> float:
    """Seconds for events that are published one by one by each of so many tasks."""

    async def one_by_one(part: list[Order]) -> None:
        for order in part:
            await publish(order)

    start_s = now_s()
    await asyncio.gather(*[one_by_one(events[number::in_flight]) for number in range(in_flight)])
    return now_s() - start_s


def publish(in_flight: int) -> Benchmark:
    async def run(settings: Settings) -> list[Result]:
        events = orders(settings.events(min(100_000, 1_000 * in_flight)))
        places = directories(settings, f"publish_{in_flight}")

        async def ours() -> float:
            async with App(f"embedded:{next(places)}") as app:
                await app.publish(events[0])
                return await spread_over(app.publish, events, in_flight)

        async def straight() -> float:
            log = StraightLog(next(places))
            commit = GroupCommit(log)
            await commit.publish(events[0])
            seconds = await spread_over(commit.publish, events, in_flight)
            commit.close()
            log.close()
            return seconds

        return [
            compared(
                f"publish_{in_flight}",
                await in_turns(ours, straight, settings.repeats),
                len(events),
                baseline="group commit on a thread, SQLite with fsync",
                target=">= 0.8" if in_flight == 100 else None,
            )
        ]

    return Benchmark(name=f"publish_{in_flight}", rows=(f"publish_{in_flight}",), run=run)


BENCHMARKS = [
    Benchmark(name="publish_many", rows=("publish_many",), run=publish_many),
    *(publish(in_flight) for in_flight in IN_FLIGHT),
]
