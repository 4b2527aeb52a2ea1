"""Publishing many events: in chunks, with the next one serialised while one is written."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from itertools import chain, islice

from eventlane.broker import Broker
from eventlane.errors import EventlaneError, EventRefused, PublishFailed, PublishTimeout
from eventlane.message import Record
from eventlane.serde.outgoing import Serialiser
from eventlane.topics import Topics

__all__ = ["publish_in_chunks"]

_LINGER_S = 0.05
"""An async iterable that pauses for so long has what it gave so far published."""


async def publish_in_chunks(
    events: Iterable[object] | AsyncIterable[object],
    *,
    broker: Broker,
    serialise: Serialiser,
    topics: Topics,
    chunk_max: int,
) -> int:
    """See `App.publish_many`."""
    if not isinstance(events, AsyncIterable | Iterable):
        raise EventRefused(
            f"publish_many: expected events, in a list or any other iterable, got one "
            f"{type(events).__name__}. Use publish(event) for one."
        )
    published = 0
    writing: asyncio.Task[None] | None = None
    in_flight: list[object] = []
    chunk: list[object] = []
    """What was read last, and is not on its way yet."""
    rest: Iterator[object] = iter(())
    if isinstance(events, AsyncIterable):
        chunks = _async_chunks(aiter(events), chunk, chunk_max)
    else:
        rest = iter(events)
        chunks = _chunks(rest, chunk, chunk_max)

    async def land() -> None:
        nonlocal published, writing, in_flight
        if writing is not None:
            await writing
            published += len(in_flight)
        writing, in_flight = None, []

    try:
        async for _ in chunks:
            records = serialise.many(chunk)
            if not topics.ready.issuperset(records):
                for topic in records:
                    await topics.ensure(broker, topic)
            await land()
            in_flight = chunk.copy()
            chunk.clear()
            # The next chunk is serialised while the disk works on this one, and not before: Python
            # does one thing at a time, and whatever is done first delays the other.
            begun = asyncio.Event()
            writing = asyncio.create_task(_append(broker, records, begun))
            await begun.wait()
        await land()
    except Exception as error:  # also whatever the source of the events raises
        if writing is not None:
            # If it was this that failed, it fails again here, and its events are among the rest.
            with contextlib.suppress(EventlaneError):
                await land()
        kind = PublishTimeout if isinstance(error, PublishTimeout) else PublishFailed
        raise kind(
            f"publish_many ended after {published:,} events, which are durable, by "
            f"{type(error).__name__}: {error} Nothing of the chunk in which that happened was "
            "written; `error.rest` has its events, and those that were not read yet of an iterable "
            "that is not async.",
            acknowledged=published,
            rest=chain(in_flight, chunk, rest),
        ) from error
    finally:
        # Where this was cancelled, nobody is left to wait for them.
        await chunks.aclose()
        if writing is not None:
            writing.cancel()
    return published


async def _append(broker: Broker, records: dict[str, list[Record]], begun: asyncio.Event) -> None:
    try:
        await broker.append([*records.items()], begun=begun.set)
    finally:
        begun.set()


async def _chunks(
    events: Iterator[object], chunk: list[object], chunk_max: int
) -> AsyncGenerator[None]:
    """Fill `chunk` again and again; what was read before the source failed stays in it."""
    while True:
        chunk.extend(islice(events, chunk_max))
        if not chunk:
            return
        yield


async def _async_chunks(
    events: AsyncIterator[object], chunk: list[object], chunk_max: int
) -> AsyncGenerator[None]:
    coming: asyncio.Future[object] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
            await asyncio.wait([coming], timeout=_LINGER_S if chunk else None)
            if coming.done():
                try:
                    chunk.append(coming.result())
                except StopAsyncIteration:
                    break
                coming = None
            if chunk and (coming is not None or len(chunk) >= chunk_max):
                yield
    finally:
        is_over = coming is not None and not coming.cancel() and not coming.cancelled()
        if coming is not None and is_over and coming.exception() is None:
            chunk.append(coming.result())  # It was given, and belongs to the rest.
    if chunk:
        yield
