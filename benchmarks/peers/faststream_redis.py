"""FastStream on Redis Streams: a consumer group, acknowledged; publishing by a pipeline.

Its pages name Streams where persistence and acknowledgements are wanted; a List gives a message to
one worker and forgets it, so what that worker had is gone with it. Durability is the server's:
see `servers.redis`. A handler gets one order; `faststream_redis_lists` gets them as
lists, which are acknowledged together.
"""

import asyncio
from typing import Any

import uvloop  # type: ignore[import-not-found]  # in the peers' own environment only
from faststream.redis import RedisBroker, StreamSub  # type: ignore[import-not-found]  # the same

from benchmarks.orders import Order
from benchmarks.peers.faststream_codec import OrderCodec
from benchmarks.peers.job import Seen, Watch, main

PIPELINED = 1_000
READ = 1_000
WORKERS_MAX = 100
"""Each acknowledges what it handled; so many at once share the syncs, and keep no order."""


def broker_at(url: str, codec: OrderCodec | None = None) -> RedisBroker:
    return RedisBroker(url, apply_types=False, codec=codec or OrderCodec(), logger=None)


def orders_stream(*, as_lists: bool) -> Any:
    return StreamSub("orders", group="workers", consumer="one", max_records=READ, batch=as_lists)


async def publish(url: str, orders: list[Order], watch: Watch) -> None:
    broker = broker_at(url)
    async with broker:
        client = await broker.connect()
        with watch:
            for start in range(0, len(orders), PIPELINED):
                async with client.pipeline(transaction=False) as pipeline:
                    for order in orders[start : start + PIPELINED]:
                        await broker.publish(order, stream="orders", pipeline=pipeline)
                    await pipeline.execute()


async def handle(url: str, seen: Seen) -> None:
    broker = broker_at(url)

    async def handle(order: Order) -> None:
        seen(order)

    broker.subscriber(stream=orders_stream(as_lists=False), max_workers=WORKERS_MAX)(handle)
    async with broker:
        await broker.start()
        seen.ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(publish, handle, uvloop.run)
