"""FastStream on Redis Streams with `batch=True`: the handler gets lists, acknowledged together.

One order that fails brings back its list. Else as in `faststream_redis`.
"""

import asyncio

import uvloop  # type: ignore[import-not-found]  # in the peers' own environment only

from benchmarks.orders import Order
from benchmarks.peers.faststream_codec import OrdersCodec
from benchmarks.peers.faststream_redis import broker_at, orders_stream, publish
from benchmarks.peers.job import Seen, main


async def handle(url: str, seen: Seen) -> None:
    broker = broker_at(url, OrdersCodec())

    async def handle(orders: list[Order]) -> None:
        for order in orders:
            seen(order)

    broker.subscriber(stream=orders_stream(as_lists=True))(handle)
    async with broker:
        await broker.start()
        seen.ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(publish, handle, uvloop.run)
