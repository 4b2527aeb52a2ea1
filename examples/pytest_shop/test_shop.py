"""Each test has a broker of its own, and a clock that jumps to the next retry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from eventlane import App
from eventlane.testing import in_memory
from examples.pytest_shop.shop import Bank, CardRefused, OrderPaid, OrderPlaced, app

pytestmark = pytest.mark.asyncio


class FakeBank:
    """Fails so often, then charges."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or ConnectionError("the bank is closed")
        self.charges: dict[str, tuple[str, int]] = {}

    async def charge(self, customer: str, amount_cents: int, reference: str) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.charges[reference] = (customer, amount_cents)

    @property
    def charged(self) -> list[tuple[str, int]]:
        return list(self.charges.values())

    @asynccontextmanager
    async def lifespan(self, _: App) -> AsyncIterator[Bank]:
        yield self


async def paid(shop: App) -> list[OrderPaid]:
    return [shop.decode(message, OrderPaid) async for message in shop.read(OrderPaid)]


async def test_a_bank_that_is_closed_for_minutes_is_asked_again() -> None:
    bank = FakeBank(failures=4)  # runs at 0 s, 0 s, 60 s, 180 s and 420 s of virtual time
    async with in_memory(app, lifespan=bank.lifespan) as shop:
        await shop.publish(OrderPlaced("ada", 250))
        await shop.run_until_idle()
        assert bank.charged == [("ada", 250)]
        assert await paid(shop) == [OrderPaid("ada", 250)]
        billing = (await shop.status()).groups["billing"]
        assert (billing.done, billing.skipped) == (1, 1)  # it has no handler for OrderPaid


async def test_a_refused_card_is_dead_at_once_and_later_orders_wait_for_it() -> None:
    bank = FakeBank(failures=1, error=CardRefused("expired"))
    async with in_memory(app, lifespan=bank.lifespan) as shop:
        await shop.publish_many([OrderPlaced("ada", 250), OrderPlaced("ada", 99)])
        await shop.publish(OrderPlaced("bob", 120))
        await shop.run_until_idle()

        [letter] = await shop.dead_letters(group="billing")
        assert letter.error_class == "CardRefused"
        assert letter.attempts == 1
        assert letter.parked_followers == 1
        assert bank.charged == [("bob", 120)]  # Bob's is another lane


async def test_after_a_replay_what_was_parked_follows_in_order() -> None:
    bank = FakeBank(failures=1, error=CardRefused("expired"))
    async with in_memory(app, lifespan=bank.lifespan) as shop:
        await shop.publish_many([OrderPlaced("ada", 250), OrderPlaced("ada", 99)])
        await shop.run_until_idle()

        operation = await shop.replay(await shop.dead_letters(), reason="a new card")
        await shop.run_until_idle()

        assert (await operation.wait()).resolved == 1
        assert bank.charged == [("ada", 250), ("ada", 99)]
        assert (await shop.status()).groups["billing"].balances


async def test_an_archived_order_is_given_up_and_the_next_one_goes_on() -> None:
    bank = FakeBank(failures=1, error=CardRefused("expired"))
    async with in_memory(app, lifespan=bank.lifespan) as shop:
        await shop.publish_many([OrderPlaced("ada", 250), OrderPlaced("ada", 99)])
        await shop.run_until_idle()

        await shop.archive(await shop.dead_letters(), reason="the customer has cancelled")
        await shop.run_until_idle()

        assert bank.charged == [("ada", 99)]
        assert (await shop.status()).groups["billing"].archived == 1
