"""Redis Streams by Redis' own client: XADD in pipelines, XREADGROUP and XACK of what was read.

The client's pages recommend pipelines, and hiredis as parser. Durability is the server's: see
`servers.redis`. There is no framework: no retry, no dead letter, nothing that claims what a killed
worker had read.
"""

import uvloop  # type: ignore[import-not-found]  # in the peers' own environment only
from redis.asyncio import Redis  # type: ignore[import-not-found]  # the same

from benchmarks.orders import Order
from benchmarks.peers.job import Seen, Watch, decode, encode, main

PIPELINED = 1_000
READ = 1_000


async def publish(url: str, orders: list[Order], watch: Watch) -> None:
    async with Redis.from_url(url) as client:
        await client.ping()
        with watch:
            for start in range(0, len(orders), PIPELINED):
                async with client.pipeline(transaction=False) as pipeline:
                    for order in orders[start : start + PIPELINED]:
                        pipeline.xadd("orders", {"order": encode(order)})
                    await pipeline.execute()


async def handle(url: str, seen: Seen) -> None:
    async def handle_one(order: Order) -> None:
        seen(order)

    async with Redis.from_url(url) as client:
        await client.xgroup_create("orders", "workers", id="0", mkstream=True)
        seen.ready()
        while True:
            found = await client.xreadgroup(
                "workers", "one", {"orders": ">"}, count=READ, block=1_000
            )
            for _, entries in found:
                for _, fields in entries:
                    await handle_one(decode(fields[b"order"]))
                await client.xack("orders", "workers", *[number for number, _ in entries])


if __name__ == "__main__":
    main(publish, handle, uvloop.run)
