"""What one transaction writes: the items that callers queued, and their order in the log.

There are three kinds: a publish (a plain tuple, because there are many), an append, and a change,
which is anything else. Who waits for an item has a future.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any
from zlib import crc32

from eventlane.brokers.embedded.log import LogTopic, LogWriter, Row, rows
from eventlane.errors import StorageError, StorageFull
from eventlane.message import Position, Record

__all__ = [
    "Append",
    "Change",
    "Item",
    "Publish",
    "Stretch",
    "Transaction",
    "Work",
    "fail",
    "in_parts",
]

Publish = tuple[LogTopic, Record, "asyncio.Future[Position]"]


class Append:
    """Records for some topics, all or nothing."""

    __slots__ = ("begun", "count", "future", "parts")

    def __init__(
        self,
        parts: Sequence[tuple[LogTopic, Sequence[Record]]],
        future: "asyncio.Future[None]",
        begun: Callable[[], None] | None = None,
    ) -> None:
        """`begun` is called in the event loop when only the commit is left to do."""
        self.begun = begun
        self.parts = parts
        self.count = sum(len(records) for _, records in parts)
        self.future = future


class Change:
    """Anything else; `run` gives the result, or raises and leaves nothing behind."""

    __slots__ = ("error", "future", "result", "run")

    count = 1

    def __init__(self, run: "Callable[[Transaction], Any]", future: "asyncio.Future[Any]") -> None:
        self.run = run
        self.future = future
        self.result: Any = None
        self.error: Exception | None = None


Item = Publish | Append | Change


class Transaction:
    """What a change works with: the running transaction."""

    def __init__(self, connection: sqlite3.Connection, log: LogWriter) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.connection = connection
        self.topics: set[str] = set()
        """Topics that have grown."""
        self.alters = False
        """Owners, commands or pauses changed: consumers have to look."""
        self.once_durable: list[Callable[[], None]] = []
        """What is to be logged, called once it has happened."""
        self._log = log

    def append(self, topic: LogTopic, records: Iterable[Record]) -> list[int]:
        """Write records at the end of a topic; the partitions that they went to."""
        partitions: list[int] = []
        for partition, part in enumerate(topic.split(records)):
            if part:
                self._log.append(topic.name, partition, rows(part))
                partitions.append(partition)
        self.topics.add(topic.name)
        return partitions


_SIZES = (512, 32, 1)


def in_parts(values: Sequence[object]) -> Iterator[tuple[str, Sequence[object]]]:
    """Values in parts, each with its marks for an `IN (...)`.

    There are few sizes, so that each statement is prepared once. One statement for many rows lets
    the event loop's thread go on meanwhile; one for each row would wait for that thread each time.
    """
    start = 0
    for size in _SIZES:
        marks = ", ".join("?" * size)
        while len(values) - start >= size:
            yield marks, values[start : start + size]
            start += size


class Stretch:
    """What one transaction appends to one partition."""

    __slots__ = ("base", "futures", "partition", "records", "rows", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.records: list[Record] = []
        self.futures: list[asyncio.Future[Position] | None] = []
        """For each record who waits for its position; empty if nobody does."""
        self.rows: list[Row] = []
        self.base = 0
        """The offset of the first record, once it is written."""


class Work:
    """The items of one transaction, and what became of them."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.others = [item for item in items if not isinstance(item, tuple)]
        """Those that are no publishes."""
        self.count = len(items) + sum(item.count - 1 for item in self.others)
        """How much of the queue's room they take."""
        self.stretches: list[Stretch] = []
        self.topics: set[str] = set()
        """Topics that have grown."""
        self.alters = False
        """See `Transaction.alters`."""
        self.once_durable: list[Callable[[], None]] = []
        """See `Transaction.once_durable`."""
        self.error: Exception | None = None
        """Why nothing at all was written."""
        self.refused: list[tuple[Item, StorageFull]] = []
        """What is not among the items any more, and why."""

    @property
    def begun(self) -> list[Callable[[], None]]:
        """Who wants to know that only the commit is left to do."""
        return [each.begun for each in self.others if isinstance(each, Append) and each.begun]

    def refuse(self, full: Mapping[str, StorageFull]) -> None:
        """Leave out what would be published to some topics; an append to several wholly."""
        kept: list[Item] = []
        for item in self.items:
            topics = _topics_of(item)
            why = next((full[name] for name in topics if name in full), None)
            if why is None:
                kept.append(item)
            else:
                self.refused.append((item, why))
        self.items = kept
        self.others = [item for item in kept if not isinstance(item, tuple)]
        self.stretches = []
        self.pack()

    def pack(self) -> None:
        """Order what is appended by partition, in the order of the calls, and pack it to rows."""
        found: dict[LogTopic, list[Stretch | None]] = {}
        for item in self.items:
            if isinstance(item, tuple):
                topic, record, future = item
                stretches = found.get(topic)
                if stretches is None:
                    topic.next_turn()
                    stretches = found[topic] = [None] * topic.partitions
                key = record.key
                partition = topic.turn if key is None else crc32(key) % topic.partitions
                stretch = stretches[partition]
                if stretch is None:
                    stretch = stretches[partition] = Stretch(topic.name, partition)
                stretch.records.append(record)
                stretch.futures.append(future)
            elif isinstance(item, Append):
                self._pack_append(item, found)
        for stretches in found.values():
            self.stretches += [stretch for stretch in stretches if stretch is not None]
        for stretch in self.stretches:
            stretch.rows = rows(stretch.records)

    def _pack_append(self, append: Append, found: dict[LogTopic, list[Stretch | None]]) -> None:
        for topic, records in append.parts:
            stretches = found.setdefault(topic, [None] * topic.partitions)
            for partition, part in enumerate(topic.split(records)):
                if part:
                    stretch = stretches[partition]
                    if stretch is None:
                        stretch = stretches[partition] = Stretch(topic.name, partition)
                        stretch.records = part
                    else:
                        stretch.records += part
                    if len(self.others) < len(self.items):  # There are publishes too.
                        stretch.futures += repeat(None, len(part))

    def tell(self) -> None:
        """Give everybody who waits his result, in the event loop."""
        for item, why in self.refused:
            fail(item, why)
        if self.error is not None:
            for item in self.items:
                fail(item, self.error)
            return
        for stretch in self.stretches:
            futures = stretch.futures
            offsets = range(stretch.base, stretch.base + len(futures))
            places = zip(repeat(stretch.topic), repeat(stretch.partition), offsets)
            for position, future in zip(map(Position._make, places), futures, strict=True):
                if future is not None and not future.done():
                    future.set_result(position)
        for item in self.others:
            if isinstance(item, Change) and item.error is not None:
                fail(item, item.error)
            elif not item.future.done():
                item.future.set_result(item.result if isinstance(item, Change) else None)


def _topics_of(item: Item) -> Sequence[str]:
    """What it publishes to."""
    if isinstance(item, tuple):
        return (item[0].name,)
    return [topic.name for topic, _ in item.parts] if isinstance(item, Append) else ()


def fail(item: Item, error: Exception) -> None:
    """Tell who waits for an item that it was not written."""
    future: asyncio.Future[Any] = item[2] if isinstance(item, tuple) else item.future
    if future.done():
        return
    if isinstance(error, StorageError):
        # A new object for each waiter: raising one adds to its traceback.
        own = type(error)(*error.args)
        own.__cause__ = error.__cause__
        error = own
    future.set_exception(error)
