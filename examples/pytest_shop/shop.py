"""A shop that charges its customers and then says that it was paid."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from eventlane import App, Context, Dead, Retry, event


@event(topic="orders", key="customer")
class OrderPlaced(msgspec.Struct, frozen=True):
    """A customer has ordered something."""

    customer: str
    amount_cents: int


@event(topic="orders", key="customer")
class OrderPaid(msgspec.Struct, frozen=True):
    """The customer has paid for it."""

    customer: str
    amount_cents: int


class CardRefused(Exception):
    """The bank will not take this card, however often it is asked."""


class Bank(Protocol):
    """What the shop needs of a bank."""

    async def charge(self, customer: str, amount_cents: int, reference: str) -> None: ...


class NoBank:
    """Until there is a contract with one."""

    async def charge(self, customer: str, amount_cents: int, reference: str) -> None:
        raise ConnectionError(f"no bank yet: {customer}, {amount_cents} cents, {reference}")


@asynccontextmanager
async def bank(_: App) -> AsyncIterator[Bank]:
    """What handlers find in `ctx.state`."""
    yield NoBank()


app = App("embedded:./data", name="shop", lifespan=bank)


@app.subscribe(
    OrderPlaced,
    group="billing",
    retry=Retry(attempts=5, delay_s=60, delay_s_max=600, rules=[(CardRefused, Dead())]),
)
async def bill(order: OrderPlaced, ctx: Context[Bank]) -> None:
    await ctx.state.charge(order.customer, order.amount_cents, reference=str(ctx.event_id))
    ctx.publish(OrderPaid(order.customer, order.amount_cents))
