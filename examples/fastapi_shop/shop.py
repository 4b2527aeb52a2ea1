"""A web shop: a request publishes an event, and the same process handles it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI
from pydantic import BaseModel

from eventlane import App, Context, Dead, Retry, event


class Order(BaseModel):
    """What a customer sends."""

    customer: str
    item: str


@event(topic="orders", key="customer")
class OrderPlaced(BaseModel):
    """What has happened."""

    order_id: UUID
    customer: str
    item: str


class OrderRefused(Exception):
    """The warehouse will never take this order."""


@asynccontextmanager
async def warehouse(_: App) -> AsyncIterator[httpx.AsyncClient]:
    """What handlers use: open while the app handles."""
    async with httpx.AsyncClient(base_url="http://localhost:9000") as client:
        yield client


app = App("embedded:./data", name="shop", lifespan=warehouse)


@app.subscribe(
    OrderPlaced,
    group="warehouse",
    retry=Retry(attempts=8, rules=[(OrderRefused, Dead(lane="continue"))]),
    timeout_s=10,
)
async def pack(order: OrderPlaced, ctx: Context[httpx.AsyncClient]) -> None:
    answer = await ctx.state.post(
        "/parcels",
        json={"customer": order.customer, "item": order.item},
        headers={"Idempotency-Key": str(ctx.event_id)},  # the same in every attempt
    )
    if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        raise OrderRefused(answer.text)
    answer.raise_for_status()


def create_api(shop: App) -> FastAPI:
    """The web application on a shop: the real one, or a test's."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with shop, shop.handling():
            yield

    api = FastAPI(title="Shop", lifespan=lifespan)

    @api.post("/orders", status_code=202)
    async def place(order: Order) -> dict[str, UUID]:
        order_id = uuid4()
        await shop.publish(OrderPlaced(order_id=order_id, customer=order.customer, item=order.item))
        return {"order_id": order_id}

    @api.get("/health")
    async def health() -> dict[str, dict[str, int]]:
        groups = (await shop.status()).groups
        return {
            name: {"members": group.members, "open": group.open, "dead": group.dead}
            for name, group in groups.items()
        }

    return api


api = create_api(app)
