"""Topics are made when they are first needed, once, and nobody is overtaken meanwhile."""

import asyncio

import pytest

from eventlane import NotFound, StorageError, Topic
from eventlane.brokers import connect
from eventlane.clock import yield_to_loop
from eventlane.testing.passing import PassingBroker
from eventlane.topics import Topics

TURNS = 3
"""Of the event loop, that making a topic takes."""


class Slow(PassingBroker):
    """Takes some turns of the event loop, and may fail first."""

    failures = 0
    asked = 0

    async def ensure_topic(self, topic: Topic) -> int:
        self.asked += 1
        for _ in range(TURNS):
            await yield_to_loop()
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk is full")
        return await super().ensure_topic(topic)


async def test_who_waits_for_a_topic_goes_on_before_who_comes_later() -> None:
    broker = Slow(await connect("embedded::memory:"))
    topics = Topics(partitions=None, create=True)
    order: list[int] = []

    async def go_on(number: int) -> None:
        if "orders" not in topics.ready:
            await topics.ensure(broker, "orders")
        order.append(number)

    going: list[asyncio.Task[None]] = []
    while len(going) < 3 or len(order) < len(going):
        if len(going) < 500 and "orders" not in topics.ready:
            going.append(asyncio.create_task(go_on(len(going))))
        await yield_to_loop()
    await asyncio.gather(*going)
    assert order == list(range(len(going)))
    assert broker.asked == 1
    await broker.aclose()


async def test_a_topic_that_could_not_be_made_is_tried_again_by_the_next_one() -> None:
    broker = Slow(await connect("embedded::memory:"))
    broker.failures = 1
    topics = Topics(partitions=None, create=True)
    first, second = (asyncio.create_task(topics.ensure(broker, "orders")) for _ in range(2))
    with pytest.raises(StorageError):
        await first
    await second
    assert topics.ready == {"orders"}
    await broker.aclose()


async def test_a_topic_that_is_not_to_be_made_is_not_taken_for_one_that_is_there() -> None:
    broker = Slow(await connect("embedded::memory:"))
    topics = Topics(partitions=None, create=False)
    with pytest.raises(NotFound):
        await topics.ensure(broker, "orders")
    assert not topics.ready
    await broker.aclose()
