"""Running totals of the orders, in a database of their own that the dashboard reads.

It is `DATA/analytics.db`, in WAL mode, so readers never wait for the writer, and every commit is
one consistent state of all tables. Those that others may read, opened read-only
(`sqlite3.connect("file:…/analytics.db?mode=ro", uri=True)`):

    totals(department TEXT, hour INTEGER, orders INTEGER, revenue_cents INTEGER)
        primary key (department, hour)
    hours(hour INTEGER PRIMARY KEY, orders INTEGER, revenue_cents INTEGER)
    summary(orders INTEGER, lines INTEGER, revenue_cents INTEGER, updated_ms INTEGER)
        always exactly one row
    rebuild(state TEXT, done INTEGER, total INTEGER, started_ms INTEGER, finished_ms INTEGER)
        always exactly one row

- `hour` is the unix hour (unix seconds // 3600) of the order's own time `placed_at`, which is
  business time: the year 2017, read as UTC. When the event was published or counted is another.
- `totals.orders` counts the orders that have at least one line of that department: an order counts
  once in each of its departments. `hours` and `summary` count every order once.
- Each line belongs to one department, so `SUM(revenue_cents)` is the same over `totals`, `hours`
  and `summary`. A product that the product list lacks is in the department "UNKNOWN".
- `summary.updated_ms` (unix milliseconds) is when events were last counted; 0 before the first.
- `rebuild.state` is "never", "running", "finished" or "interrupted"; `done` of `total` events are
  read; `started_ms` and `finished_ms` are unix milliseconds, null where they do not apply. While a
  rebuild runs the other tables keep showing live totals; its result replaces them at one stroke.

`await analytics.start_rebuild(app)` counts everything again from the log. It returns at once:
`True` if a rebuild was started, `False` if one is running. `analytics.path` is the database's path.

Why the totals equal the log
----------------------------
Deliveries are at least once and come in any order (`ordering="none"`: sums do not care). The ids of
the events counted are written in the transaction that adds them up, so an event counts once,
however often it comes.

Why a rebuild is exact although orders keep coming
--------------------------------------------------
A rebuild counts into a second set of tables, `next_…`, which has event ids of its own, and gets
events from two sides:

1. the log, read from its first event to an end that it has after the second set was made;
2. the live handler, which from the moment the second set exists counts every list into both sets in
   one transaction.

Every event that the live set counted is in the second set in the end: if it was counted before the
second set was made, it was in the log by then, hence the reader comes past it (1); if later, the
handler wrote both (2). Nothing counts twice there, since whichever side comes second finds the id.
So when the reader is through, the second set has all that the live set has. It may have more,
events of the log which the live handler has not seen yet; when they are delivered, their ids are
found. Then one transaction puts the second set in the place of the first: totals and ids move
together, so that no moment exists in which an event is in neither or would be counted again.
"""

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from eventlane import App, Batch, Context

from .database import Database
from .events import OrderCreated

__all__ = ["ANALYTICS_BATCH", "Analytics", "RebuildProgress", "Totals"]

ANALYTICS_BATCH = Batch(size=500, linger_s=0.05)
"""So many orders are counted in one transaction; none waits for that longer than a blink."""

REBUILD_EVENTS = 500
"""Events that a rebuild counts at once; between two such lists live events have their turn."""

LIVE, NEXT = "", "next_"
TABLES = ("totals", "hours", "summary", "counted")
# `@` stands for what the names of a set of tables begin with.
SET_OF_TABLES = """
CREATE TABLE IF NOT EXISTS @totals (
    department TEXT, hour INTEGER, orders INTEGER NOT NULL, revenue_cents INTEGER NOT NULL,
    PRIMARY KEY (department, hour)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS @hours (
    hour INTEGER PRIMARY KEY, orders INTEGER NOT NULL, revenue_cents INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS @summary (
    orders INTEGER NOT NULL, lines INTEGER NOT NULL,
    revenue_cents INTEGER NOT NULL, updated_ms INTEGER NOT NULL
);
INSERT INTO @summary SELECT 0, 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM @summary);
CREATE TABLE IF NOT EXISTS @counted (event_id BLOB PRIMARY KEY) WITHOUT ROWID;
"""
MARK = "INSERT OR IGNORE INTO @counted VALUES (?)"
ADD_TO_TOTALS = """
INSERT INTO @totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
SET orders = orders + excluded.orders, revenue_cents = revenue_cents + excluded.revenue_cents
"""
ADD_TO_HOURS = """
INSERT INTO @hours VALUES (?, ?, ?) ON CONFLICT DO UPDATE
SET orders = orders + excluded.orders, revenue_cents = revenue_cents + excluded.revenue_cents
"""
ADD_TO_SUMMARY = """
UPDATE @summary SET orders = orders + ?, lines = lines + ?, revenue_cents = revenue_cents + ?,
updated_ms = ?
"""
AGREEMENT = """
SELECT orders = (SELECT IFNULL(SUM(orders), 0) FROM hours)
   AND revenue_cents = (SELECT IFNULL(SUM(revenue_cents), 0) FROM hours)
   AND revenue_cents = (SELECT IFNULL(SUM(revenue_cents), 0) FROM totals)
FROM summary
"""
# A rebuild whose process ended begins anew when it is asked for: it takes seconds.
SCHEMA = """
CREATE TABLE IF NOT EXISTS rebuild (
    state TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,
    started_ms INTEGER, finished_ms INTEGER
);
INSERT INTO rebuild SELECT 'never', 0, 0, NULL, NULL WHERE NOT EXISTS (SELECT * FROM rebuild);
UPDATE rebuild SET state = 'interrupted' WHERE state = 'running';
DROP TABLE IF EXISTS next_totals;
DROP TABLE IF EXISTS next_hours;
DROP TABLE IF EXISTS next_summary;
DROP TABLE IF EXISTS next_counted;
"""


@dataclass(frozen=True)
class Totals:
    """What is counted, over all departments and hours."""

    orders: int
    revenue_cents: int


@dataclass(frozen=True)
class RebuildProgress:
    """How far the latest rebuild is."""

    state: Literal["never", "running", "finished", "interrupted"]
    done: int
    total: int


class Analytics:
    """The totals: what handles events of the group `analytics`, and what can be asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, SET_OF_TABLES.replace("@", LIVE) + SCHEMA)
        self._rebuild: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End a running rebuild, which then has to start anew, and close the database."""
        if self._rebuild is not None and not self._rebuild.done():
            self._rebuild.cancel()
            await asyncio.wait([self._rebuild])
        await self._database.close()

    async def count(self, orders: list[OrderCreated], contexts: list[Context]) -> None:
        """Handle a list of orders: adds them to the totals in one transaction."""
        await self.add(
            [(context.event_id, order) for context, order in zip(contexts, orders, strict=True)]
        )

    async def add(self, orders: Sequence[tuple[UUID, OrderCreated]]) -> None:
        """Do what `count` says, for events with these ids."""

        def add_to_all(connection: sqlite3.Connection) -> None:
            _add(connection, LIVE, orders)
            if _is_rebuilding(connection):
                _add(connection, NEXT, orders)

        await self._database.write(add_to_all)

    async def start_rebuild(self, app: App) -> bool:
        """Start to count everything again from the log, in the background.

        Returns:
            Whether a rebuild was started: False if one is running.
        """
        if self._rebuild is not None and not self._rebuild.done():
            return False
        self._rebuild = asyncio.create_task(self.rebuild(app))
        return True

    async def rebuild(self, app: App) -> None:
        """Count everything again from the log, while live events go on.

        Cancellation: the totals stay as they are, and the state is "interrupted".
        """
        published = (await app.status()).topics["orders"].published
        await self._database.write(lambda connection: _begin(connection, published))
        orders: list[tuple[UUID, OrderCreated]] = []
        is_complete = False
        try:
            async for message in app.read(OrderCreated, start="first"):
                orders.append((message.event_id, app.decode(message, OrderCreated)))
                if len(orders) == REBUILD_EVENTS:
                    await self._add_to_next(orders)
                    orders = []
            await self._add_to_next(orders)
            is_complete = True
        finally:
            await self._database.write(_put_in_place if is_complete else _give_up)

    def totals(self) -> Totals:
        """Return the totals over everything, each order counted once."""
        ((orders, revenue_cents),) = self._database.query(
            "SELECT orders, revenue_cents FROM summary"
        )
        return Totals(orders, revenue_cents)

    def agrees(self) -> bool:
        """Tell whether the totals by hour and by department add up to those over everything."""
        return self._database.query(AGREEMENT) == [(1,)]

    def progress(self) -> RebuildProgress:
        """Return how far the latest rebuild is."""
        ((state, done, total),) = self._database.query("SELECT state, done, total FROM rebuild")
        return RebuildProgress(state, done, total)

    async def _add_to_next(self, orders: Sequence[tuple[UUID, OrderCreated]]) -> None:
        def add(connection: sqlite3.Connection) -> None:
            _add(connection, NEXT, orders)
            # Events published since the rebuild began are read as well, so the total may grow.
            connection.execute(
                "UPDATE rebuild SET done = done + ?1, total = MAX(total, done + ?1)", (len(orders),)
            )

        await self._database.write(add)


def _add(
    connection: sqlite3.Connection, prefix: str, orders: Iterable[tuple[UUID, OrderCreated]]
) -> None:
    """Add those of the orders to a set of tables that it has not counted yet."""
    by_hour: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    by_department: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    order_count = line_count = 0
    mark = MARK.replace("@", prefix)
    for event_id, order in orders:
        if connection.execute(mark, (event_id.bytes,)).rowcount == 0:
            continue
        hour = int(order.placed_at.timestamp()) // 3600
        order_count += 1
        line_count += len(order.lines)
        by_hour[hour][0] += 1
        by_hour[hour][1] += order.revenue_cents
        for department in {line.department for line in order.lines}:
            by_department[department, hour][0] += 1
        for line in order.lines:
            by_department[line.department, hour][1] += line.sales_value_cents
    connection.executemany(
        ADD_TO_TOTALS.replace("@", prefix),
        ((department, hour, *sums) for (department, hour), sums in by_department.items()),
    )
    connection.executemany(
        ADD_TO_HOURS.replace("@", prefix),
        ((hour, *sums) for hour, sums in by_hour.items()),
    )
    connection.execute(
        ADD_TO_SUMMARY.replace("@", prefix),
        (order_count, line_count, sum(revenue for _, revenue in by_hour.values()), _now_ms()),
    )


def _is_rebuilding(connection: sqlite3.Connection) -> bool:
    return (
        connection.execute("SELECT * FROM rebuild WHERE state = 'running'").fetchone() is not None
    )


def _begin(connection: sqlite3.Connection, total: int) -> None:
    for statement in SET_OF_TABLES.replace("@", NEXT).split(";"):
        connection.execute(statement)
    connection.execute(
        "UPDATE rebuild SET state = 'running', done = 0, total = ?, finished_ms = NULL", (total,)
    )
    connection.execute("UPDATE rebuild SET started_ms = ?", (_now_ms(),))


def _give_up(connection: sqlite3.Connection) -> None:
    for table in TABLES:
        connection.execute(f"DROP TABLE {NEXT}{table}")
    connection.execute("UPDATE rebuild SET state = 'interrupted', finished_ms = ?", (_now_ms(),))


def _put_in_place(connection: sqlite3.Connection) -> None:
    for table in TABLES:
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE {NEXT}{table} RENAME TO {table}")
    connection.execute("UPDATE rebuild SET state = 'finished', finished_ms = ?", (_now_ms(),))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
