"""The totals equal the log, however events come, and a rebuild beside live events is exact."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from uuid import uuid4

from eventlane import App
from examples.orders import source
from examples.orders.analytics import ANALYTICS_BATCH, Analytics, RebuildProgress, Totals
from examples.orders.events import OrderCreated
from examples.orders.recompute import recompute

ORDERS = 2_000


def analytics_app(directory: Path, analytics: Analytics) -> App:
    app = App(f"embedded:{directory}", name="orders")
    subscribe = app.subscribe(
        OrderCreated, group="analytics", batch=ANALYTICS_BATCH, ordering="none"
    )
    subscribe(analytics.count)
    return app


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(path)
    try:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("totals", "hours")
        }
    finally:
        connection.close()


def test_totals_equal_the_recomputation_to_the_cent(tmp_path: Path) -> None:
    expected = recompute(ORDERS)

    async def run() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        orders = [(uuid4(), order) for order in source.orders(limit=ORDERS)]
        for start in range(0, ORDERS, 300):
            await analytics.add(orders[start : start + 300])
        totals = analytics.totals()
        assert totals.orders == expected.orders
        assert f"{totals.revenue_cents / 100:.2f}" == expected.revenue
        assert analytics.agrees()
        await analytics.close()

    asyncio.run(run())
    of_department: Counter[str] = Counter()
    for order in source.orders(limit=ORDERS):
        of_department.update({line.department for line in order.lines})
    counted: Counter[str] = Counter()
    for department, _hour, orders, _revenue in tables(tmp_path / "analytics.db")["totals"]:
        counted[str(department)] += int(str(orders))
    assert counted == of_department


def test_an_event_counts_once_in_whatever_list_and_after_a_restart(tmp_path: Path) -> None:
    orders = [(uuid4(), order) for order in source.orders(limit=100)]

    async def run() -> Totals:
        analytics = Analytics(tmp_path / "analytics.db")
        await analytics.add(orders[:70])
        await asyncio.gather(
            analytics.add(orders[50:]), analytics.add(orders), analytics.add(orders[99:] * 2)
        )
        totals = analytics.totals()
        await analytics.close()
        return totals

    first = asyncio.run(run())
    assert first == asyncio.run(run())
    assert first == Totals(100, sum(order.revenue_cents for _, order in orders))


def test_a_rebuild_under_live_events_gives_the_totals_of_the_log(tmp_path: Path) -> None:
    async def run() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        app = analytics_app(tmp_path, analytics)
        async with app, app.handling():
            await app.publish_many(source.orders(limit=ORDERS))
            # Some of these are counted, some are not; the totals are made wrong on purpose.
            await analytics._database.write(
                lambda connection: connection.execute("UPDATE totals SET revenue_cents = 1")
            )
            rebuilding = asyncio.create_task(analytics.rebuild(app))
            for start in range(ORDERS, 2 * ORDERS, 100):
                await app.publish_many(source.orders(skip=start, limit=start + 100))
            await rebuilding
            await app.run_until_idle(timeout_s=30)
        assert analytics.progress().state == "finished"
        assert analytics.progress().done == analytics.progress().total >= ORDERS
        assert analytics.totals().orders == 2 * ORDERS
        assert analytics.agrees()
        await analytics.close()

        anew = Analytics(tmp_path / "anew.db")
        await anew.add([(uuid4(), order) for order in source.orders(limit=2 * ORDERS)])
        await anew.close()

    asyncio.run(run())
    assert tables(tmp_path / "analytics.db") == tables(tmp_path / "anew.db")


def test_a_rebuild_while_the_group_lags_behind_counts_what_comes_later_only_once(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        app = analytics_app(tmp_path, analytics)
        async with app:
            await app.publish_many(source.orders(limit=500))
            assert await analytics.start_rebuild(app)
            assert not await analytics.start_rebuild(app)
            assert analytics._rebuild is not None
            await analytics._rebuild
            assert analytics.totals().orders == 500  # nothing has been handled yet
            await app.run_until_idle(timeout_s=30)
            assert (await app.status()).groups["analytics"].done == 500
        assert analytics.totals().orders == 500
        assert analytics.agrees()
        await analytics.close()

    asyncio.run(run())


def test_a_rebuild_that_is_cut_off_leaves_the_totals_as_they_were(tmp_path: Path) -> None:
    async def run() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        app = analytics_app(tmp_path, analytics)
        async with app:
            await app.publish_many(source.orders(limit=300))
            await app.run_until_idle(timeout_s=30)
            before = analytics.totals()
            await analytics.start_rebuild(app)
            await analytics._database.write(lambda connection: None)  # it has begun
            await analytics.close()
        again = Analytics(tmp_path / "analytics.db")
        assert again.totals() == before == Totals(300, before.revenue_cents)
        assert again.progress().state == "interrupted"
        assert again.agrees()
        await again.close()

    asyncio.run(run())


def test_a_killed_rebuild_is_interrupted_when_the_database_is_opened_again(tmp_path: Path) -> None:
    async def run() -> None:
        analytics = Analytics(tmp_path / "analytics.db")
        assert analytics.progress() == RebuildProgress("never", 0, 0)
        # What a kill in the middle of a rebuild leaves behind.
        await analytics._database.write(
            lambda connection: connection.execute("UPDATE rebuild SET state = 'running'")
        )
        await analytics._database.write(
            lambda connection: connection.execute("CREATE TABLE next_totals (department TEXT)")
        )
        await analytics.close()
        again = Analytics(tmp_path / "analytics.db")
        assert again.progress().state == "interrupted"
        await again.add([(uuid4(), next(source.orders()))])
        assert again.totals() == Totals(1, 50)
        await again.close()

    asyncio.run(run())
