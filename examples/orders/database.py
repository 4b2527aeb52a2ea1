"""A SQLite database of the application, and how many callers share one fsync.

Every database here is in WAL mode with `synchronous=FULL`: a commit is on the disk when it returns.
Nothing less would be honest, because the framework settles an event for good once its handler has
returned. Stock that a power failure then took back would stay lost, as the event does not come
again.

An fsync for every order is what that must not cost. Measured, it is 0.2 ms on a fast disk; many
laptops need 3 ms and more, and it would stop the event loop each time. So `Database.write` collects
what arrives while a commit is under way and puts it into the next transaction, as a database server
does: the handlers stay plain functions of one event, and the number of fsyncs follows the disk's
speed instead of the number of orders.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

__all__ = ["Database", "WorkRefused"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class WorkRefused(Exception):
    """Raised by a piece of work that is not to be done: what it wrote is taken back, no more."""


class Database:
    """One SQLite file, written by this process through one connection and read through another."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open the file, creating it with `schema` (a script that may run again) where needed."""
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        # macOS answers an fsync before the data is on the disk; this asks for the one that waits.
        self._connection.execute("PRAGMA fullfsync=ON")
        self._connection.executescript(schema)
        self._reader = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", isolation_level=None, uri=True
        )
        self._commits = ThreadPoolExecutor(1, thread_name_prefix=f"commit-{path.stem}")
        self._turn = asyncio.Lock()
        self._open_round: _Round | None = None
        self._latest_round: asyncio.Task[None] | None = None

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, possibly together with the work of other callers.

        Durability: when it returns, what `work` wrote is on the disk.
        Cancellation: `work` may still be done; who asks again must know it by a mark of its own.

        Raises:
            WorkRefused: `work` raised it, and nothing of what `work` wrote has happened.
            sqlite3.Error: the transaction could not be committed, and nothing has happened.
        """
        if self._open_round is None:
            self._open_round = _Round()
            self._open_round.task = asyncio.create_task(self._run(self._open_round))
            self._latest_round = self._open_round.task
        together = self._open_round
        place = len(together.works)
        together.works.append(work)
        await asyncio.shield(together.task)
        answer = together.answers[place]
        if isinstance(answer, WorkRefused):
            raise answer
        return cast(T, answer)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT on what is committed, without waiting for a writer."""
        return self._reader.execute(statement, values).fetchall()

    async def close(self) -> None:
        """Close the file after the writes that are under way."""
        if self._latest_round is not None:
            await asyncio.wait([self._latest_round])  # the rounds before it have ended then
        self._commits.shutdown()
        self._reader.close()
        self._connection.close()

    async def _run(self, together: "_Round") -> None:
        async with self._turn:
            self._open_round = None  # what comes from now on is the next round's
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                # The statements run here and only the commit on a thread: while the event loop is
                # busy, a thread waits for the interpreter's lock (up to 5 ms) after each statement.
                for work in together.works:
                    self._connection.execute("SAVEPOINT work")
                    try:
                        together.answers.append(work(self._connection))
                    except WorkRefused as refusal:
                        self._connection.execute("ROLLBACK TO work")
                        together.answers.append(refusal)
                    self._connection.execute("RELEASE work")
                # Callers get refusals after the commit, too: what one was decided on may have been
                # written in this very transaction.
                await asyncio.get_running_loop().run_in_executor(
                    self._commits, self._connection.commit
                )
            finally:
                if self._connection.in_transaction:
                    self._connection.rollback()


class _Round:
    """What one transaction does."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.works: list[Work[Any]] = []
        self.answers: list[Any] = []
