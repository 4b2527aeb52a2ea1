"""Eventlane, embedded: the defaults. Each commit is fsynced before `publish_many` goes on."""

import asyncio

from benchmarks.orders import Order
from benchmarks.peers.job import Seen, Watch, main
from eventlane import App, Context


async def publish(directory: str, orders: list[Order], watch: Watch) -> None:
    async with App(f"embedded:{directory}") as app:
        with watch:
            await app.publish_many(orders)


async def handle(directory: str, seen: Seen) -> None:
    app = App(f"embedded:{directory}")

    @app.subscribe(Order, group="worker")
    async def handle(order: Order, _: Context) -> None:
        seen(order)

    async with app, app.handling():
        seen.ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(publish, handle, asyncio.run)
