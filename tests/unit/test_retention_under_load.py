"""Retention while publishers and handlers work: what it never removes; the file stays small."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Retry, Topic, event
from eventlane.clock import yield_to_loop
from eventlane.testing.clock import ManualClock

ROUNDS = 40
A_ROUND = 200
WARM = 15
"""Rounds after which the file has its size."""
KEPT_BYTES = 100_000


@event(topic=Topic("orders", partitions=2, retention_bytes=KEPT_BYTES), key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str
    number: int
    note: str = "x" * 100


class Shop:
    """`quick` keeps up, and fails for one customer; `slow` is let on by the test."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.app = App(f"embedded:{directory}", durability="os", clock=self.clock)
        self.handled: dict[str, list[int]] = {"quick": [], "slow": []}
        self.mended = False
        self.goes_on = asyncio.Event()
        retry = Retry(attempts=1)
        self.app.subscribe(Ordered, group="quick", retry=retry)(self.handle)
        self.app.subscribe(Ordered, group="slow")(self.handle_slowly)

    async def handle(self, ordered: Ordered, ctx: Context) -> None:
        if ordered.customer == "c0" and not self.mended:
            raise ValueError("no such customer")
        self.handled["quick"].append(ordered.number)

    async def handle_slowly(self, ordered: Ordered, ctx: Context) -> None:
        await self.goes_on.wait()
        self.handled["slow"].append(ordered.number)

    async def publish(self, start: int) -> None:
        customers = 50
        await self.app.publish_many(
            Ordered(f"c{each % customers}", each) for each in range(start, start + A_ROUND)
        )

    @property
    def broker(self) -> Any:
        return self.app._broker

    async def trim(self) -> None:
        """Run retention, and look at what it has left."""
        await self.broker.run_retention(self.clock.now_ms())
        starts = [start for start, _ in await self.broker.ends("orders")]
        status = await self.app.status()
        for name, group in status.groups.items():
            for each in group.partitions:
                if each.topic == "orders":
                    assert starts[each.partition] <= each.watermark, f"{name} was overtaken"
                    assert not each.is_cut
            assert group.lost == 0
            assert group.balances

    def pages(self) -> int:
        count: int = self.broker._file.reader.execute("PRAGMA page_count").fetchone()[0]
        return count

    async def caught_up(self, *groups: str) -> None:
        is_open = True
        while is_open:
            await yield_to_loop()
            found = (await self.app.status()).groups
            is_open = any(found[each].open for each in groups)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    async with shop.app, shop.app.handling():
        yield shop
        shop.goes_on.set()


async def test_a_group_that_is_behind_keeps_all_that_it_has_not_handled(shop: Shop) -> None:
    rounds = 6
    for each in range(rounds):
        await asyncio.gather(shop.publish(each * A_ROUND), shop.trim())
        await shop.trim()
    await shop.caught_up("quick")
    assert [start for start, _ in await shop.broker.ends("orders")] == [0, 0]
    shop.goes_on.set()
    await shop.caught_up("slow")
    assert sorted(shop.handled["slow"]) == list(range(rounds * A_ROUND))
    await shop.trim()
    assert (await shop.app.status()).topics["orders"].size_bytes <= KEPT_BYTES


async def test_the_file_stops_growing_and_dead_letters_and_parked_events_stay(
    shop: Shop,
) -> None:
    shop.goes_on.set()
    await shop.publish(0)
    await shop.caught_up("quick", "slow")
    (first,) = await shop.app.dead_letters(group="quick")
    shop.mended = True  # c0 is blocked: what comes is parked, and nothing else dies
    pages: list[int] = []
    for each in range(1, ROUNDS):
        await asyncio.gather(shop.publish(each * A_ROUND), shop.trim())
        await shop.caught_up("quick", "slow")
        await shop.trim()
        pages.append(shop.pages())
    status = await shop.app.status()
    parked = ROUNDS * A_ROUND // 50 - 1
    assert (status.groups["quick"].dead, status.groups["quick"].parked) == (1, parked)
    assert status.topics["orders"].published == ROUNDS * A_ROUND
    assert all(start > A_ROUND for start, _ in await shop.broker.ends("orders"))
    # What is parked goes on growing: it has some pages more, the log has none.
    assert pages[-1] - pages[WARM] <= 8, pages
    # The letter and what is parked have left the log, and are handled nevertheless, in order.
    await (await shop.app.replay([first], reason="mended", canary=False, rate_per_s=None)).wait()
    while (await shop.app.status()).groups["quick"].parked:
        await yield_to_loop()
    blocked = [each for each in shop.handled["quick"] if each % 50 == 0]
    assert blocked == list(range(0, ROUNDS * A_ROUND, 50))
