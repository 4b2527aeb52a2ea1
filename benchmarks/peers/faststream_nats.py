"""FastStream on NATS itself, which is its fastest: no durability at all.

Nothing is stored and nothing is acknowledged. What is published while nobody listens is gone, and
so is what a worker had received when it ends. `publish` returns once the message is in the
client's buffer; the last line of the publisher waits until the server has them.
"""

import asyncio

import uvloop  # type: ignore[import-not-found]  # in the peers' own environment only
from faststream.nats import NatsBroker  # type: ignore[import-not-found]  # the same

from benchmarks.orders import Order
from benchmarks.peers.faststream_codec import OrderCodec
from benchmarks.peers.job import Seen, Watch, main

PENDING_BYTES_MAX = 1 << 30
"""A subscriber that lags behind more than this loses messages; the default is 128 MB."""


def broker_at(url: str) -> NatsBroker:
    return NatsBroker(url, apply_types=False, codec=OrderCodec(), logger=None)


async def publish(url: str, orders: list[Order], watch: Watch) -> None:
    broker = broker_at(url)
    async with broker:
        client = await broker.connect()
        with watch:
            for order in orders:
                await broker.publish(order, "orders")
            await client.flush()


async def handle(url: str, seen: Seen) -> None:
    broker = broker_at(url)

    async def handle(order: Order) -> None:
        seen(order)

    # More workers than one make it slower: a task for each message.
    broker.subscriber(
        "orders", pending_msgs_limit=10_000_000, pending_bytes_limit=PENDING_BYTES_MAX
    )(handle)
    async with broker:
        await broker.start()
        seen.ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(publish, handle, uvloop.run)
