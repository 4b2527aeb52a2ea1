"""The straight code: the same work with the same libraries, and nothing in between.

No framework would be faster than this with Python, msgspec and SQLite. It has no order within a key
across retries, no retries at all, no dead letters, no account, no second process, no limits, and it
checks nothing.
"""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from benchmarks.orders import Order

__all__ = ["GroupCommit", "StraightLog", "bounded", "orders_since"]

PARTITIONS = 8
EVENTS_PER_TRANSACTION = 8_000
ROWS_PER_FETCH = 4
"""Of some thousand records each."""

_order_bytes = msgspec.json.Encoder().encode
_order = msgspec.json.Decoder(Order).decode


class Entry(msgspec.Struct, array_like=True, gc=False):
    """A record of the log."""

    id: bytes
    key: bytes
    value: bytes
    time_ms: int
    headers: None = None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Entry]).decode


class StraightLog:
    """A file with batches of records, fsynced at each commit."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(
            directory / "straight.db", isolation_level=None, check_same_thread=False
        )
        self._ends = [0] * PARTITIONS
        self._id_head = os.urandom(8)
        self._number = 0
        for statement in (
            "PRAGMA page_size = 16384",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE batch (id INTEGER PRIMARY KEY, partition, base, count, records)",
            "CREATE UNIQUE INDEX batch_by_base ON batch (partition, base)",
            "CREATE TABLE progress (consumer, partition, next, PRIMARY KEY (consumer, partition))",
        ):
            self.connection.execute(statement)

    def close(self) -> None:
        self.connection.close()

    def entry(self, order: Order) -> Entry:
        self._number += 1
        return Entry(
            self._id_head + self._number.to_bytes(8, "big"),
            order.customer.encode(),
            _order_bytes(order),
            order.placed_ms,
        )

    def write(self, parts: Sequence[Sequence[Entry]]) -> None:
        """One transaction: a row for each partition."""
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        for partition, entries in enumerate(parts):
            if entries:
                base = self._ends[partition]
                execute(
                    "INSERT INTO batch (partition, base, count, records) VALUES (?, ?, ?, ?)",
                    (partition, base, len(entries), _pack(entries)),
                )
                self._ends[partition] = base + len(entries)
        execute("COMMIT")

    def publish_many(self, events: Sequence[Order]) -> None:
        head, number, encode, crc = self._id_head, self._number, _order_bytes, crc32
        for start in range(0, len(events), EVENTS_PER_TRANSACTION):
            parts: list[list[Entry]] = [[] for _ in range(PARTITIONS)]
            for order in events[start : start + EVENTS_PER_TRANSACTION]:
                key = order.customer.encode()
                number += 1
                own_id = head + number.to_bytes(8, "big")
                parts[crc(key) % PARTITIONS].append(
                    Entry(own_id, key, encode(order), order.placed_ms)
                )
            self.write(parts)
        self._number = number

    async def consume(self, consumer: str, handler: Callable[[Order], Awaitable[None]]) -> None:
        for blocks in self._fetches(consumer):
            for block in blocks:
                for one in _unpack(block):
                    await handler(_order(one.value))

    def consume_sync(self, consumer: str, handler: Callable[[Order], None]) -> None:
        for blocks in self._fetches(consumer):
            for block in blocks:
                for one in _unpack(block):
                    handler(_order(one.value))

    def orders(self) -> Iterator[Order]:
        """All that there is, without commits."""
        for (block,) in self.connection.execute("SELECT records FROM batch ORDER BY id"):
            for one in _unpack(block):
                yield _order(one.value)

    def _fetches(self, consumer: str) -> Iterator[list[bytes]]:
        """Rows of one partition after the other; each fetch is committed once it was handled."""
        execute = self.connection.execute
        for partition in range(PARTITIONS):
            offset = 0
            while rows := execute(
                "SELECT base, count, records FROM batch WHERE partition = ? AND base >= ? "
                "ORDER BY base LIMIT ?",
                (partition, offset, ROWS_PER_FETCH),
            ).fetchall():
                yield [row[2] for row in rows]
                offset = rows[-1][0] + rows[-1][1]
                execute("BEGIN IMMEDIATE")
                execute(
                    "INSERT OR REPLACE INTO progress VALUES (?, ?, ?)",
                    (consumer, partition, offset),
                )
                execute("COMMIT")


def orders_since(connection: sqlite3.Connection, last: int) -> tuple[int, list[Order]]:
    """What was written after a batch, by another process; and the id of the last batch."""
    found: list[Order] = []
    for number, block in connection.execute(
        "SELECT id, records FROM batch WHERE id > ? ORDER BY id", (last,)
    ):
        found += [_order(one.value) for one in _unpack(block)]
        last = number
    return last, found


class GroupCommit:
    """`await publish(one)`: what is in flight while one transaction is written shares the next."""

    def __init__(self, log: StraightLog) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._some = asyncio.Event()
        self._task = self._loop.create_task(self._commit())

    def publish(self, order: Order) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((self._log.entry(order), future))
        self._some.set()
        return future

    def close(self) -> None:
        self._task.cancel()

    async def _commit(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            taken, self._waiting = self._waiting, []
            if not taken:
                continue
            # In one partition: less work than by key.
            await asyncio.to_thread(self._log.write, [[entry for entry, _ in taken]])
            for _, future in taken:
                future.set_result(None)


async def bounded(
    orders: Iterator[Order], handler: Callable[[Order], Awaitable[None]], concurrency: int
) -> None:
    """A bare event loop: a task for each event, at most so many at once, in no order."""
    semaphore = asyncio.Semaphore(concurrency)
    running: set[asyncio.Task[None]] = set()

    async def handled(order: Order) -> None:
        try:
            await handler(order)
        finally:
            semaphore.release()

    for order in orders:
        await semaphore.acquire()
        task = asyncio.create_task(handled(order))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
