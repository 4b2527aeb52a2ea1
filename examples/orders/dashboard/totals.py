"""What the page needs of the analytics database, cheap for a year (its tables: `analytics.py`)."""

import sqlite3
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from .snapshot import Bucket, BucketSize, Department, Rebuild, Totals, bucket_size, bucket_starts

__all__ = ["TotalsReader"]

HOURS_IN: dict[BucketSize, int] = {"hour": 1, "day": 24}
READING_SHARE = 0.05
"""The departments of a year take some 100 ms: charts then follow every 2 s, the sums at once."""


class TotalsReader:
    """Reads through a connection of its own. One caller at a time, on any thread."""

    def __init__(self, path: Path) -> None:
        self._uri = f"{path.absolute().as_uri()}?mode=ro"
        self._connection: sqlite3.Connection | None = None
        self._totals = Totals()
        self._read_of: object = None
        self._next_reading_s = 0.0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def read(self) -> tuple[Totals, Rebuild]:
        """The totals and how the latest rebuild stands, of one moment.

        Raises:
            sqlite3.Error: There is no such database, or it cannot be read.
        """
        if self._connection is None:
            self._connection = sqlite3.connect(
                self._uri, uri=True, isolation_level=None, check_same_thread=False
            )
        connection = self._connection
        connection.execute("BEGIN")
        try:
            summary = connection.execute(
                "SELECT orders, revenue_cents, updated_ms FROM summary"
            ).fetchone()
            rebuild = connection.execute(
                "SELECT state, done, total, started_ms, finished_ms FROM rebuild"
            ).fetchone()
            seen = (summary, rebuild[0])
            if seen != self._read_of and time.monotonic() >= self._next_reading_s:
                began_s = time.monotonic()
                self._totals = _totals(connection, *summary[:2])
                ended_s = time.monotonic()
                self._read_of, self._next_reading_s = (
                    seen,
                    ended_s + (ended_s - began_s) / READING_SHARE,
                )
        finally:
            connection.execute("ROLLBACK")
        return replace(self._totals, orders=summary[0], revenue_cents=summary[1]), _rebuild(
            *rebuild
        )


def _totals(connection: sqlite3.Connection, orders: int, revenue_cents: int) -> Totals:
    first, last = connection.execute("SELECT MIN(hour), MAX(hour) FROM hours").fetchone()
    if first is None:
        return Totals(orders=orders, revenue_cents=revenue_cents)
    size = bucket_size(_at(first), _at(last))
    hours = HOURS_IN[size]
    starts = bucket_starts(_at(first), _at(last), size)
    by_bucket: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for bucket, order_count, cents in connection.execute(
        "SELECT hour / ?1, SUM(orders), SUM(revenue_cents) FROM hours GROUP BY 1", (hours,)
    ):
        by_bucket[bucket] = (order_count, cents)
    trends: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(starts))
    orders_of: defaultdict[str, int] = defaultdict(int)
    for department, bucket, order_count, cents in connection.execute(
        "SELECT department, hour / ?1, SUM(orders), SUM(revenue_cents) FROM totals GROUP BY 1, 2",
        (hours,),
    ):
        trends[department][bucket - first // hours] = cents
        orders_of[department] += order_count
    return Totals(
        orders=orders,
        revenue_cents=revenue_cents,
        size=size,
        buckets=tuple(
            Bucket(start=start, orders=by_bucket[number][0], revenue_cents=by_bucket[number][1])
            for number, start in enumerate(starts, first // hours)
        ),
        departments=tuple(
            Department(
                name=name,
                orders=orders_of[name],
                revenue_cents=sum(trend),
                revenue_by_bucket=tuple(trend),
            )
            for name, trend in trends.items()
        ),
    )


def _rebuild(
    state: str, done: int, total: int, started_ms: int | None, finished_ms: int | None
) -> Rebuild:
    now_ms = time.time_ns() // 1_000_000
    lasted_s = 0.0 if started_ms is None else ((finished_ms or now_ms) - started_ms) / 1000
    match state:
        case "running" | "finished" | "interrupted":
            return Rebuild(state=state, done=done, total=total, lasted_s=lasted_s)
        case _:
            return Rebuild()


def _at(hour: int) -> datetime:
    """The shop's own time, without a zone: nothing is to be converted."""
    return datetime.fromtimestamp(hour * 3600, UTC).replace(tzinfo=None)
