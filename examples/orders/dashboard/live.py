"""The dashboard's figures in a running flow, from three sides that do not know each other.

The public API tells how the groups fare and what is dead; the analytics database tells what was
counted; and the log itself, read here without any group, tells what should have been counted.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

from eventlane import App, EventlaneError, Undecodable
from examples.orders.analytics import Analytics
from examples.orders.events import OrderCreated

from .app import create_dashboard
from .letters import OpenLetters
from .serving import serve
from .snapshot import Account, Letter, LogCount, Snapshot, SourceUnavailable
from .totals import TotalsReader

__all__ = ["LiveSource", "open_dashboard"]

RATE_WINDOW_S = 5.0
READ_AT_ONCE = 50
"""Orders that the count of the log reads before it lets the handlers have their turn."""


@contextlib.asynccontextmanager
async def open_dashboard(
    app: App,
    analytics: Analytics,
    *,
    orders_expected: int | None,
    port: int = 0,
    console_url: str | None = None,
) -> AsyncIterator[str]:
    """Serve the dashboard of a flow on loopback for the length of the `async with` body.

    Args:
        app: Connected; the dashboard handles nothing itself.
        analytics: Its database is only read; a rebuild is asked of it.
        orders_expected: How many orders the run publishes; None: unknown.
        port: 0 takes a free one.
        console_url: Where the operations console runs, if it does; dead letters link to it.

    Yields:
        The address, such as `http://127.0.0.1:40123/`.

    Raises:
        OSError: The port is taken; nothing was started.
    """
    source = LiveSource(app, analytics, orders_expected=orders_expected)
    try:
        async with serve(create_dashboard(source, console_url=console_url), port) as address:
            yield address
    finally:
        await source.close()


class LogReader:
    """Counts the log without any group, and goes on as it grows; begins when somebody looks."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._orders = self._revenue_cents = 0
        self._last_at = datetime.now(UTC)

    def count(self, published: int) -> LogCount:
        """What has been read so far. Having read all that is published, it is as of now."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        if self._orders >= published:
            self._last_at = datetime.now(UTC)
        return LogCount(orders=self._orders, revenue_cents=self._revenue_cents, as_of=self._last_at)

    async def _follow(self) -> None:
        self._orders = self._revenue_cents = 0
        # A log that cannot be read shows as a count that has stopped; the next look begins again.
        with contextlib.suppress(EventlaneError):
            async for message in self._app.read(OrderCreated, start="first", follow=True):
                with contextlib.suppress(Undecodable):
                    order = self._app.decode(message, OrderCreated)
                    self._orders += 1
                    self._revenue_cents += order.revenue_cents
                self._last_at = datetime.now(UTC)
                if self._orders % READ_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class Rates:
    """Events per second over the last few seconds, from totals that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, totals: Mapping[str, int]) -> Mapping[str, float]:
        """Note these totals as of now, and return the rate of each."""
        now_s = time.monotonic()
        self._seen.append((now_s, totals))
        while self._seen[0][0] < now_s - RATE_WINDOW_S:
            self._seen.popleft()
        then_s, before = self._seen[0]
        passed_s = now_s - then_s
        if passed_s <= 0:
            return dict.fromkeys(totals, 0.0)
        return {
            name: max(0, total - before.get(name, total)) / passed_s
            for name, total in totals.items()
        }


class LiveSource:
    """A `DashboardSource` on a connected app and its analytics database."""

    def __init__(self, app: App, analytics: Analytics, *, orders_expected: int | None) -> None:
        self._app = app
        self._analytics = analytics
        self._expected = orders_expected
        self._log = LogReader(app)
        self._letters = OpenLetters(app)
        self._totals = TotalsReader(analytics.path)
        self._rates = Rates()

    async def close(self) -> None:
        """Stop reading. The app and the database stay open: they belong to the flow."""
        await self._log.close()
        self._totals.close()

    async def snapshot(self) -> Snapshot:
        try:
            status = await self._app.status()
            kinds = await self._letters.kinds(sum(group.dead for group in status.groups.values()))
            totals, rebuild = await asyncio.to_thread(self._totals.read)
        except EventlaneError as problem:
            raise SourceUnavailable(f"the broker does not answer: {problem}") from problem
        except sqlite3.Error as problem:
            raise SourceUnavailable(
                f"the analytics database does not answer: {problem}"
            ) from problem
        topic = status.topics.get("orders")
        published = topic.published if topic else 0
        rates = self._rates.add(
            {"": published} | {name: group.done for name, group in status.groups.items()}
        )
        return Snapshot(
            as_of=status.as_of,
            published=published,
            expected=self._expected,
            publishing=self._expected is not None and published < self._expected,
            published_per_s=rates[""],
            groups={
                name: Account(
                    done=group.done,
                    waiting=group.waiting,
                    in_flight=group.in_flight,
                    held=group.held,
                    parked=group.parked,
                    dead=group.dead,
                    archived=group.archived,
                    skipped=group.skipped,
                    edited=group.edited,
                    lost=group.lost,
                    done_per_s=rates[name],
                )
                for name, group in status.groups.items()
            },
            kinds=kinds,
            totals=totals,
            log=self._log.count(published),
            rebuild=rebuild,
        )

    async def letters(self, kind: str, *, limit: int) -> Sequence[Letter]:
        try:
            return await self._letters.latest(kind, limit=limit)
        except EventlaneError as problem:
            raise SourceUnavailable(f"the broker does not answer: {problem}") from problem

    async def rebuild(self) -> None:
        await self._analytics.start_rebuild(self._app)
