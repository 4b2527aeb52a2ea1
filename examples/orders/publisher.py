"""Publishes the orders, each exactly once, however often the process is killed in between.

How far it came is not noted anywhere: the log itself says it. One publisher publishes the orders in
one fixed order, and the embedded broker appends each chunk of `publish_many` as a whole or not at
all, so the number of events on the topic is the number of the next order. A note beside the log
could be older or newer than the log; the log cannot.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice

from eventlane import App

from . import source
from .events import OrderCreated

__all__ = ["publish_orders", "published_orders"]

TICK_S = 0.05
"""How often orders are published at a rate: it looks steady, and several share an fsync."""

TURN_ORDERS = 100
"""Orders built before other tasks have their turn (about 1 ms)."""


async def published_orders(app: App) -> int:
    """Return how many orders are on the log, which is the number of the next one."""
    topic = (await app.status()).topics.get("orders")
    return 0 if topic is None else topic.published


async def publish_orders(app: App, *, limit: int, rate_per_s: float | None) -> int:
    """Publish the orders that are not on the log yet, and return how many these were.

    Args:
        app: connected; handling or not.
        limit: how many orders shall be on the log in the end.
        rate_per_s: orders per second; None: as fast as the broker takes them.

    Cancellation: what was acknowledged is on the log; calling it again goes on behind it.
    """
    orders = source.orders(skip=await published_orders(app), limit=limit)
    if rate_per_s is None:
        return await app.publish_many(_in_turns(orders))
    started_s = time.monotonic()
    count = 0
    while True:
        due = int((time.monotonic() - started_s) * rate_per_s) - count
        chunk = list(islice(orders, due))
        count += await app.publish_many(chunk)
        if len(chunk) < due:
            return count
        await asyncio.sleep(TICK_S)


async def _in_turns(orders: Iterator[OrderCreated]) -> AsyncIterator[OrderCreated]:
    for number, order in enumerate(orders, start=1):
        if number % TURN_ORDERS == 0:
            await asyncio.sleep(0)
        yield order
