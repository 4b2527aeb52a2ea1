"""The dashboard's figures are the flow's own: public API, analytics database, and the log."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from eventlane import App, Context, Dead, Retry
from examples.orders.analytics import ANALYTICS_BATCH, Analytics
from examples.orders.dashboard.live import LiveSource, open_dashboard
from examples.orders.dashboard.snapshot import Snapshot
from examples.orders.events import OrderCreated, OrderLine

START = datetime(2017, 1, 1, 22, 30, tzinfo=UTC)


class UnknownProduct(Exception):
    pass


def order(number: int, *, household: int = 1, hours: int = 0, products: int = 2) -> OrderCreated:
    lines = tuple(
        OrderLine(product_id=each, department=f"D{each % 2}", quantity=1, sales_value_cents=125)
        for each in range(products)
    )
    return OrderCreated(
        order_id=number,
        household=household,
        store_id=1,
        placed_at=START + timedelta(hours=hours),
        lines=lines,
    )


async def take(taken: OrderCreated, ctx: Context) -> None:
    if taken.order_id == 13:
        raise UnknownProduct(f"product 0 of order {taken.order_id} is not in the catalogue")


@asynccontextmanager
async def flow(directory: Path) -> AsyncIterator[tuple[App, Analytics]]:
    analytics = Analytics(directory / "analytics.db")
    app = App("embedded::memory:", name="orders")
    rules = Retry(rules=((UnknownProduct, Dead(lane="park")),))
    app.subscribe(OrderCreated, group="inventory", retry=rules)(take)
    app.subscribe(OrderCreated, group="analytics", batch=ANALYTICS_BATCH, ordering="none")(
        analytics.count
    )
    try:
        async with app:
            yield app, analytics
    finally:
        await analytics.close()


async def settled(source: LiveSource, wanted: Callable[[Snapshot], bool]) -> Snapshot:
    async with asyncio.timeout(10):
        while not wanted(snapshot := await source.snapshot()):
            pass  # a snapshot waits for the broker: others run meanwhile
    return snapshot


def test_the_figures_are_those_of_the_flow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with flow(tmp_path) as (app, analytics):
            orders = [order(number, household=number % 5, hours=number % 3) for number in range(20)]
            await app.publish_many(orders)
            await app.run_until_idle()
            source = LiveSource(app, analytics, orders_expected=20)
            log_is_read = await settled(
                source, lambda now: now.log is not None and now.log.orders == 20
            )
            letters = await source.letters("UnknownProduct", limit=50)
            await source.close()

        assert log_is_read.published == 20
        assert not log_is_read.publishing
        assert log_is_read.groups["inventory"].dead == 1
        assert log_is_read.groups["inventory"].parked == 1  # order 18, of the same household
        assert log_is_read.groups["analytics"].done == 20
        assert log_is_read.totals.orders == 20
        assert log_is_read.totals.size == "hour"
        assert [bucket.orders for bucket in log_is_read.totals.buckets] == [7, 7, 6]
        assert [bucket.start.hour for bucket in log_is_read.totals.buckets] == [22, 23, 0]
        assert {each.name: each.revenue_by_bucket for each in log_is_read.totals.departments} == {
            "D0": (875, 875, 750),
            "D1": (875, 875, 750),
        }
        assert log_is_read.log is not None
        assert log_is_read.log.revenue_cents == log_is_read.totals.revenue_cents == 5_000
        assert [(kind.name, kind.count) for kind in log_is_read.kinds] == [("UnknownProduct", 1)]
        assert [(each.order_id, each.household, each.attempts) for each in letters] == [
            ("13", "3", 1)
        ]
        assert "order 13 is not in the catalogue" in letters[0].message
        assert letters[0].parked_behind == 1

    asyncio.run(scenario())


def test_a_long_range_is_summed_by_day(tmp_path: Path) -> None:
    async def scenario() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        app = App("embedded::memory:", name="orders")
        app.subscribe(OrderCreated, group="analytics", batch=ANALYTICS_BATCH, ordering="none")(
            analytics.count
        )
        async with app:
            await app.publish_many([order(number, hours=number) for number in range(24 * 9)])
            await app.run_until_idle()
            source = LiveSource(app, analytics, orders_expected=None)
            totals = (await source.snapshot()).totals
            await source.close()
        await analytics.close()
        assert totals.size == "day"
        assert [bucket.orders for bucket in totals.buckets] == [2, *[24] * 8, 22]
        assert [sum(each.revenue_by_bucket) for each in totals.departments] == [27_000, 27_000]

    asyncio.run(scenario())


def test_a_letter_that_is_archived_is_no_longer_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with flow(tmp_path) as (app, analytics):
            await app.publish(order(13))
            await app.run_until_idle()
            source = LiveSource(app, analytics, orders_expected=None)
            before = await source.snapshot()
            await app.archive(await app.dead_letters(group="inventory"), reason="of no use")
            await app.run_until_idle()
            after = await settled(source, lambda now: not now.kinds)
            await source.close()
        assert [kind.count for kind in before.kinds] == [1]
        assert after.groups["inventory"].archived == 1

    asyncio.run(scenario())


def test_the_button_rebuilds_the_totals_from_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with flow(tmp_path) as (app, analytics):
            await app.publish_many([order(number) for number in range(30)])
            await app.run_until_idle()
            source = LiveSource(app, analytics, orders_expected=30)
            async with (
                open_dashboard(app, analytics, orders_expected=30) as address,
                httpx.AsyncClient() as client,
            ):
                answer = await client.post(
                    f"{address}rebuild", headers={"Sec-Fetch-Site": "same-origin"}
                )
                assert answer.status_code == 303
                rebuilt = await settled(source, lambda now: now.rebuild.state == "finished")
                page = (await client.get(address)).text
            await source.close()
        assert (rebuilt.rebuild.done, rebuilt.rebuild.total) == (30, 30)
        assert rebuilt.totals.orders == 30
        assert "The last rebuild counted 30 orders again" in page

    asyncio.run(scenario())
