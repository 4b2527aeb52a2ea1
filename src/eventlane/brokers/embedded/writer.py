"""Group commit: one thread writes what all callers have queued, in one transaction.

The event loop puts in the queue what is to be written, and goes on. The thread takes all that is
there, waits for its turn among the processes, writes one transaction, and tells the event loop
once. While it writes, the next transaction gathers. So all that is in flight shares the cost of a
commit, and nothing waits for a timer.

A change that fails is rolled back alone; when the storage fails, the whole transaction is.
"""

import asyncio
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from eventlane.brokers.embedded.caps import Caps
from eventlane.brokers.embedded.file import File, storage_error
from eventlane.brokers.embedded.log import LogTopic, LogWriter
from eventlane.brokers.embedded.work import Append, Change, Item, Transaction, Work, fail
from eventlane.clock import Clock, SystemClock
from eventlane.config import Limits
from eventlane.errors import PublishTimeout, Unavailable
from eventlane.message import Position, Record
from eventlane.metrics import Histogram

__all__ = ["Writer"]

T = TypeVar("T")


class Writer:
    """The queue and its thread. Used by one event loop."""

    def __init__(
        self,
        file: File,
        limits: Limits,
        clock: Clock,
        tell: Callable[[set[str], bool], None],
        *,
        ring: Callable[[set[str], bool], None] | None = None,
        caps: Caps,
    ) -> None:
        """Start the thread.

        Args:
            file: what it writes to.
            limits: bounds.
            clock: says when a batch was appended.
            tell: called in the event loop after each transaction, with the topics that have grown
                and whether owners, commands or pauses changed.
            caps: says what there is no room for.
            ring: called in the thread with the same, to wake other processes.
        """
        self._file = file
        self._connection = file.connection
        self._log = LogWriter(self._connection)
        self._records_max = limits.publish_queue_max
        self._timeout_s = limits.publish_timeout_s
        self._clock = clock
        self._monotonic_s = SystemClock.monotonic_s
        self._tell = tell
        self._ring_others = ring
        self.caps = caps
        self._loop = asyncio.get_running_loop()
        self.times = {step: Histogram() for step in ("turn", "transaction", "commit")}
        """See `Broker.times`."""
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._queued = 0
        self._outside: deque[tuple[Item, float | None]] = deque()
        """Items that wait for room in the queue, and until when."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self._ends = False
        self._thread: threading.Thread | None = None
        self._start()

    # --- in the event loop ------------------------------------------------------------------

    def publish(self, topic: LogTopic, record: Record) -> "asyncio.Future[Position]":
        """See `Broker.publish`."""
        future: asyncio.Future[Position] = self._loop.create_future()
        if self._queued < self._records_max and not self._outside and self._closed is None:
            self._queued += 1
            self._queue.put((topic, record, future))
        else:
            self._wait_for_room((topic, record, future), limited=True)
        return future

    def append(
        self,
        parts: Sequence[tuple[LogTopic, Sequence[Record]]],
        begun: Callable[[], None] | None = None,
    ) -> "asyncio.Future[None]":
        """See `Broker.append`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._put(Append(parts, future, begun), limited=True)
        return future

    def change(self, run: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        """Run a function within a transaction, in the writer's thread.

        The future's result is what it returns, once that is durable; what it raises leaves
        nothing behind.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(Change(run, future), limited=False)
        return future

    async def aclose(self) -> None:
        """Write what is queued and end the thread. Safe to call twice."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._let_in()
        await asyncio.shield(self._closed)
        if self._thread is not None:
            self._thread.join()

    def _put(self, item: Item, *, limited: bool) -> None:
        if self._queued < self._records_max and not self._outside and self._closed is None:
            self._queued += 1 if isinstance(item, tuple) else item.count
            self._queue.put(item)
        else:
            self._wait_for_room(item, limited=limited)

    def _wait_for_room(self, item: Item, *, limited: bool) -> None:
        if self._closed is not None:
            raise Unavailable("the broker is closed; nothing was written")
        until_s = self._loop.time() + self._timeout_s if limited else None
        self._outside.append((item, until_s))
        if limited and self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._refuse_late)

    def _refuse_late(self) -> None:
        """Give up what has waited too long for room; the oldest waits at the front."""
        self._timer = None
        now_s = self._loop.time()
        kept: deque[tuple[Item, float | None]] = deque()
        next_s: float | None = None
        for item, until_s in self._outside:
            if until_s is not None and until_s <= now_s:
                fail(item, self._no_room())
                continue
            kept.append((item, until_s))
            if next_s is None:
                next_s = until_s
        self._outside = kept
        self._let_in()
        if next_s is not None:
            self._timer = self._loop.call_later(next_s - now_s, self._refuse_late)

    def _no_room(self) -> PublishTimeout:
        return PublishTimeout(
            f"{self._file.path}: the publish queue had no room for {self._timeout_s:g} s "
            f"(publish_queue_max={self._records_max}, publish_timeout_s); the disk is slower than "
            "the publishers, or another process holds the file",
            acknowledged=0,
            rest=iter(()),
        )

    def _complete(self, work: Work) -> None:
        """Tell everybody who waits for one transaction, and let in who waits outside."""
        work.tell()
        self._queued -= work.count
        self._let_in()
        if work.error is None:
            self._tell(work.topics, work.alters)

    def _let_in(self) -> None:
        while self._outside and self._queued < self._records_max:
            item, _ = self._outside.popleft()
            self._queued += 1 if isinstance(item, tuple) else item.count
            self._queue.put(item)
        if self._closed is not None and not self._outside and not self._ends:
            self._ends = True
            self._queue.put(None)

    def _ended(self) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    # --- in the thread ----------------------------------------------------------------------

    def _start(self) -> None:
        # A method of its own, so that a simulation can do without the thread.
        self._thread = threading.Thread(target=self._run, name="eventlane-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ends = False
        while not ends:
            work, ends = self._take()
            if work.items:
                self._write(work)
            try:
                self._hand_over(work, ends=ends)
            except RuntimeError:
                return  # The event loop was closed under the broker: nobody waits any more.
            # Last, because the kernel may give the core to who is woken.
            if self._ring_others is not None and work.error is None:
                self._ring_others(work.topics, work.alters)

    def _take(self) -> tuple[Work, bool]:
        """All that is queued, and whether that was the last."""
        taken = [self._queue.get()]
        # This thread alone takes from it, so that none of these waits.
        taken += [self._queue.get() for _ in range(self._queue.qsize())]
        return Work([item for item in taken if item is not None]), taken[-1] is None

    def _hand_over(self, work: Work, *, ends: bool) -> None:
        self._loop.call_soon_threadsafe(self._complete, work)
        if ends:
            self._loop.call_soon_threadsafe(self._ended)

    def _write(self, work: Work) -> None:
        """Write one transaction; what goes wrong is kept in it."""
        connection = self._connection
        try:
            # Packed before the turn among the processes, so that nobody waits for it.
            work.pack()
            queued_s = self._monotonic_s()
            with self._file.lock:
                began_s = self._monotonic_s()
                if connection.in_transaction:  # A rollback failed before.
                    connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._fill(work)
                    filled_s = self._monotonic_s()
                    # Up to here this thread needs the interpreter at each step; a commit does not.
                    for begun in work.begun:
                        self._loop.call_soon_threadsafe(begun)
                    connection.execute("COMMIT")
                    committed_s = self._monotonic_s()
                except BaseException:
                    self._log.rolled_back()
                    # SQLite has rolled back by itself after some failures of the disk.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            self.times["turn"].observe(began_s - queued_s)
            self.times["transaction"].observe(committed_s - began_s)
            self.times["commit"].observe(committed_s - filled_s)
            for log in work.once_durable:
                log()
        except sqlite3.Error as error:
            work.error = storage_error(error, self._file.path)
            work.error.__cause__ = error
        except Exception as error:  # The thread outlives every failure; its waiters get it.
            work.error = error

    def _fill(self, work: Work) -> None:
        self._log.begin(self._clock.now_ms())
        transaction = Transaction(self._connection, self._log)
        if work.stretches:
            full = self.caps.full(transaction, work.stretches, self._clock.now_ms())
            if full:
                work.refuse(full)
        for stretch in work.stretches:
            stretch.base = self._log.append(stretch.topic, stretch.partition, stretch.rows)
            transaction.topics.add(stretch.topic)
        for item in work.others:
            if isinstance(item, Change):
                self._run_change(transaction, item)
        work.topics = transaction.topics
        work.alters = transaction.alters
        work.once_durable = transaction.once_durable

    def _run_change(self, transaction: Transaction, change: Change) -> None:
        execute = self._connection.execute
        execute("SAVEPOINT change")
        to_log = len(transaction.once_durable)
        try:
            change.result = change.run(transaction)
        except sqlite3.IntegrityError as error:
            change.error = storage_error(error, self._file.path)
        except sqlite3.Error:
            raise
        except Exception as error:
            change.error = error
        if change.error is not None:
            self._log.rolled_back()
            execute("ROLLBACK TO change")
            del transaction.once_durable[to_log:]
        execute("RELEASE change")
