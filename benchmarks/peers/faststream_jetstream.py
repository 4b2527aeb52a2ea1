"""FastStream on NATS JetStream: a stream in files, a durable push consumer, explicit acks.

Its pages recommend pull consumers for load that is shared; here they are a third slower.

Durability: the server has written an acknowledged message to its file, but syncs the disk every two
minutes. So it survives the end of the server, and not that of the machine. (`sync_interval: always`
came with a later server than Debian's.)
"""

import asyncio

import uvloop  # type: ignore[import-not-found]  # in the peers' own environment only
from faststream.nats import JStream, NatsBroker  # type: ignore[import-not-found]  # the same
from nats.js.api import ConsumerConfig  # type: ignore[import-not-found]  # the same

from benchmarks.orders import Order
from benchmarks.peers.faststream_codec import OrderCodec
from benchmarks.peers.job import Seen, Watch, main

IN_FLIGHT = 200
"""Each publish waits for its acknowledgement; more at once than this are not faster."""
UNACKNOWLEDGED_MAX = 5_000
STREAM = JStream("orders")


def broker_at(url: str) -> NatsBroker:
    return NatsBroker(url, apply_types=False, codec=OrderCodec(), logger=None)


async def publish(url: str, orders: list[Order], watch: Watch) -> None:
    broker = broker_at(url)

    async def one_by_one(part: list[Order]) -> None:
        for order in part:
            await broker.publish(order, "orders", stream="orders")

    async with broker:
        client = await broker.connect()
        await client.jetstream().add_stream(name="orders", subjects=["orders"])
        with watch:
            await asyncio.gather(
                *[one_by_one(orders[each::IN_FLIGHT]) for each in range(IN_FLIGHT)]
            )


async def handle(url: str, seen: Seen) -> None:
    broker = broker_at(url)

    async def handle(order: Order) -> None:
        seen(order)

    broker.subscriber(
        "orders",
        stream=STREAM,
        queue="workers",
        config=ConsumerConfig(max_ack_pending=UNACKNOWLEDGED_MAX),
    )(handle)
    async with broker:
        await broker.start()
        seen.ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(publish, handle, uvloop.run)
