"""Back-pressure: whoever is slow bounds what memory holds, and nobody else waits for it."""

import asyncio
import gc
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Limits, PublishFailed, PublishTimeout, StorageError, event
from eventlane.clock import yield_to_loop
from eventlane.testing.stage import until

CHUNK = 50


@event(topic="flood", key="key", name="drop")
class Drop(msgspec.Struct, frozen=True):
    key: str
    text: str = ""


def new_app(**limits: Any) -> App:
    return App("embedded::memory:", partitions=1, limits=Limits(batch_events_max=CHUNK, **limits))


async def published(app: App) -> int:
    topics = (await app.status()).topics
    return topics["flood"].published if "flood" in topics else 0


class Spring:
    """An endless source, which says how much was drawn from it."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[object]:
        while True:
            self.drawn += 1
            yield Drop(f"k{self.drawn % 7}", "x" * 200)


class AsyncSpring(Spring):
    """The same, as an async iterable."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[object]:
        try:
            for each in Spring.__iter__(self):
                yield each
        finally:
            self.is_closed = True

    __iter__ = None


@pytest.mark.parametrize("make", [Spring, AsyncSpring])
async def test_an_endless_iterable_is_read_no_further_than_two_chunks_ahead_of_the_disk(
    make: Callable[[], Any],
) -> None:
    async with new_app(publish_queue_max=CHUNK, publish_timeout_s=60) as app:
        await app.publish(Drop("k"))
        spring = make()
        broker: Any = app._connected
        with broker._file.lock:  # The disk stands still.
            publishing = asyncio.ensure_future(app.publish_many(spring))
            before = -1
            while spring.drawn != before:
                before = spring.drawn
                for _ in range(2000):
                    await yield_to_loop()
            assert 0 < spring.drawn <= 3 * CHUNK + 1
        await until(lambda: spring.drawn > 20 * CHUNK, "it to go on")
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing


@pytest.mark.parametrize("make", [Spring, AsyncSpring])
async def test_an_endless_iterable_is_published_in_bounded_memory(make: Callable[[], Any]) -> None:
    async with new_app() as app:
        spring = make()
        publishing = asyncio.ensure_future(app.publish_many(spring))

        async def memory_bytes(drawn: int) -> int:
            await until(lambda: spring.drawn > drawn, "more to be drawn")
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await until(lambda: spring.drawn > 10 * CHUNK, "a start")
        tracemalloc.start()
        try:
            early_bytes = await memory_bytes(spring.drawn + 40 * CHUNK)
            later_bytes = await memory_bytes(spring.drawn + 200 * CHUNK)
        finally:
            tracemalloc.stop()
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        # Each event has 200 bytes and more: what is drawn in between would be 2 MB of text alone.
        assert later_bytes - early_bytes < 1_000_000


@pytest.mark.parametrize("make", [Spring, AsyncSpring])
async def test_a_cancelled_publish_many_leaves_whole_chunks_and_nothing_behind(
    make: Callable[[], Any],
) -> None:
    async with new_app() as app:
        tasks = asyncio.all_tasks()
        for drawn in (1, 3 * CHUNK, 4 * CHUNK + 1):
            spring = make()
            publishing = asyncio.ensure_future(app.publish_many(spring))
            await until(lambda spring=spring, drawn=drawn: spring.drawn >= drawn, "a start")
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            await until(lambda: asyncio.all_tasks() == tasks, "all of it to end")
            drawn_then = spring.drawn
            await app.publish_many([Drop("k")] * CHUNK)
            assert spring.drawn == drawn_then
            assert getattr(spring, "is_closed", True)
            assert await published(app) % CHUNK == 0


async def test_a_cancelled_publish_many_does_not_wait_for_the_disk_in_the_background() -> None:
    closed = asyncio.Event()

    async def pausing() -> AsyncIterator[object]:
        try:
            yield Drop("k")
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with new_app() as app:
        await app.publish(Drop("k"))
        broker: Any = app._connected
        tasks = asyncio.all_tasks()
        with broker._file.lock:  # The disk stands still.
            publishing = asyncio.ensure_future(app.publish_many(pausing()))
            await until(lambda: broker._writer._queued == 1, "the event to be on its way")
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            for _ in range(3):
                await yield_to_loop()
            assert closed.is_set()
            assert asyncio.all_tasks() == tasks
        await app.publish(Drop("k"))
        assert await published(app) == 3


async def test_a_slow_group_holds_a_bounded_part_of_the_log_and_no_publisher() -> None:
    span_max, fetched_max = 200, 100
    app = new_app(span_max=span_max, fetch_events_max=fetched_max)
    hangs, is_open = asyncio.Event(), asyncio.Event()

    @app.subscribe(Drop, group="slow", concurrency=2)
    async def handle(_: Drop, __: Context) -> None:
        hangs.set()
        await is_open.wait()

    async with app, app.handling():
        await app.publish_many(itertools.islice(Spring(), 100))
        await hangs.wait()
        (dispatcher,) = app._dispatchers
        (lanes,) = dispatcher.partitions.values()
        tracemalloc.start()
        try:
            await app.publish_many(itertools.islice(Spring(), 1_000))
            early_bytes = tracemalloc.get_traced_memory()[0]
            assert await app.publish_many(itertools.islice(Spring(), 20_000)) == 20_000
            later_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert lanes.span.next_offset - lanes.span.watermark <= span_max + fetched_max
        assert later_bytes - early_bytes < 2_000_000
        is_open.set()

        async def is_done() -> bool:
            return (await app.status()).groups["slow"].done == 21_100

        await until(is_done, "all to be handled")


async def test_publishing_waits_for_room_and_says_when_that_took_too_long() -> None:
    async with new_app(publish_queue_max=2, publish_timeout_s=0.1) as app:
        await app.publish(Drop("k"))
        broker: Any = app._connected
        with broker._file.lock:  # The disk stands still.
            held = [asyncio.ensure_future(app.publish(Drop("k"))) for _ in range(2)]
            await yield_to_loop()
            with pytest.raises(PublishTimeout, match=r"had no room for 0\.1 s .*publish_timeout_s"):
                await app.publish(Drop("k"))
            with pytest.raises(PublishTimeout, match="had no room") as refused:
                await app.publish_many([Drop("a"), Drop("b")])
            assert refused.value.acknowledged == 0
            assert list(refused.value.rest) == [Drop("a"), Drop("b")]
        await asyncio.gather(*held)
        assert await published(app) == 3


async def test_what_an_async_source_gave_while_a_chunk_failed_is_among_the_rest() -> None:
    async with new_app() as app:
        await app.publish(Drop("k"))
        broker: Any = app._connected
        writes, fails = asyncio.Event(), asyncio.Event()

        async def append(_appends: object, *, begun: Callable[[], None]) -> None:
            begun()
            writes.set()
            await fails.wait()
            raise StorageError("the disk is full")

        given: list[str] = []

        async def source() -> AsyncIterator[object]:
            for number in range(3):
                given.append(str(number))
                yield Drop(str(number))
                if number == 0:
                    await writes.wait()

        broker.append = append
        publishing = asyncio.ensure_future(app.publish_many(source()))
        await until(lambda: len(given) == 3, "all to be given")
        fails.set()
        with pytest.raises(PublishFailed) as failed:
            await publishing
        rest = [getattr(each, "key") for each in failed.value.rest]
        assert (failed.value.acknowledged, rest) == (0, given)
