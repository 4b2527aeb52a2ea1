"""Publishing many events: in chunks, with the next one serialised while one is written."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from itertools import chain, islice

from eventlane.broker import Broker
from eventlane.clock import yield_to_loop
from eventlane.errors import ConfigError, EventRefused, PublishFailed, StorageError, Unavailable
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
    chunk: list[object] = []
    in_flight: list[object] = []
    if isinstance(events, AsyncIterable):
        chunks: AsyncIterator[list[object]] = _async_chunks(aiter(events), chunk_max)
        rest: Iterator[object] = iter(())
    else:
        rest = iter(events)
        chunks = _chunks(rest, chunk_max)
    try:
        async for next_chunk in chunks:
            chunk = next_chunk
            records = serialise.many(chunk)
            if not topics.ready.issuperset(records):
                for topic in records:
                    await topics.ensure(broker, topic)
            if writing is not None:
                await writing
                published += len(in_flight)
            in_flight, chunk = chunk, []
            writing = asyncio.create_task(_append(broker, records))
            # Lets the task hand its chunk to the writer, so that it is written while the next one
            # is serialised.
            await yield_to_loop()
        if writing is not None:
            await writing
            published += len(in_flight)
            writing, in_flight = None, []
    except (EventRefused, ConfigError, StorageError, Unavailable) as error:
        if writing is not None and not isinstance(error, StorageError | Unavailable):
            await writing  # the chunk before the refused one is good
            published += len(in_flight)
            in_flight = []
        raise PublishFailed(
            f"publish_many ended after {published:,} events, which are durable: {error} "
            "The refused chunk was not written. `error.rest` has the events that are left.",
            acknowledged=published,
            rest=chain(in_flight, chunk, rest),
        ) from error
    return published


async def _append(broker: Broker, records: dict[str, list[Record]]) -> None:
    await broker.append(list(records.items()))


async def _chunks(events: Iterator[object], chunk_max: int) -> AsyncIterator[list[object]]:
    while chunk := list(islice(events, chunk_max)):
        yield chunk


async def _async_chunks(
    events: AsyncIterator[object], chunk_max: int
) -> AsyncIterator[list[object]]:
    coming: asyncio.Future[object] | None = None
    chunk: list[object] = []
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
                yield chunk
                chunk = []
    finally:
        if coming is not None:
            coming.cancel()
    if chunk:
        yield chunk
