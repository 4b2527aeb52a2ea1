"""Reading the log itself: no group, no commits, as often as one likes."""

from collections.abc import AsyncIterator, Mapping
from typing import Literal

from eventlane.broker import Broker
from eventlane.clock import yield_to_loop
from eventlane.errors import ConfigError
from eventlane.message import Message

__all__ = ["read"]

_MESSAGES_PER_FETCH = 200


async def read(
    broker: Broker,
    wanted: Mapping[str, set[str] | None],
    *,
    start: Literal["first", "now"],
    follow: bool,
) -> AsyncIterator[Message]:
    """See `App.read`; `wanted` has for each topic the types, or None for all messages."""
    if start not in ("first", "now"):
        raise ConfigError(f"read(start={start!r}): expected 'first' or 'now'.")
    if not wanted:
        raise ConfigError("read(): expected event types or names of topics, got none.")
    places = {
        (topic, partition): first if start == "first" else end
        for topic in wanted
        for partition, (first, end) in enumerate(await broker.ends(topic))
    }
    stops = {
        (topic, partition): end
        for topic in wanted
        for partition, (_, end) in enumerate(await broker.ends(topic))
    }
    while places:
        moved = False
        for (topic, partition), offset in list(places.items()):
            if not follow and offset >= stops[topic, partition]:
                del places[topic, partition]
                continue
            # Reading a file does not wait, so it would keep all else in the event loop waiting.
            await yield_to_loop()
            batch = await broker.fetch(topic, partition, offset, _MESSAGES_PER_FETCH)
            types = wanted[topic]
            for at, record in zip(batch.offsets, batch.records, strict=True):
                if not follow and at >= stops[topic, partition]:
                    break
                message = Message(topic, partition, at, record)
                if types is None or message.event_type in types:
                    yield message
            if batch.records:
                places[topic, partition] = batch.offsets[-1] + 1
                moved = True
            elif not follow:
                del places[topic, partition]
        if follow and not moved:
            await broker.wait_for_append(next(iter(wanted)))
