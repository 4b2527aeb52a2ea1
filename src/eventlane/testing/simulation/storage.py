"""One file for many histories, emptied before each: opening connections is most of a start."""

import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.lock import WriteLock

__all__ = ["SimulatedFile", "Store"]

_PAGE_BYTES = 4096
"""Less to copy for each commit; rows are few and small."""


class Store:
    """A database file in memory, where the machine has a file system for that."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108  # a private directory is made in it
        self._temporary = tempfile.TemporaryDirectory(
            prefix="eventlane-", dir=memory if memory.is_dir() else None
        )
        self.directory = Path(self._temporary.name)
        file = File(self.directory, "OFF", 1.0)
        file.reader.close()
        file.lock.close()
        self.connection = file.connection
        """The observer's own."""
        for statement in (
            "PRAGMA journal_mode = DELETE",
            f"PRAGMA page_size = {_PAGE_BYTES}",
            "VACUUM",
            "PRAGMA journal_mode = WAL",
        ):
            self.connection.execute(statement)
        self._tables = [
            row[0]
            for row in self.connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        ]
        self._unused: dict[bool, list[sqlite3.Connection]] = {False: [], True: []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self.connection, *self._unused[False], *self._unused[True]):
            connection.close()
        self._temporary.cleanup()

    def empty(self) -> None:
        """Leave nothing of the history before."""
        self.connection.execute("BEGIN IMMEDIATE")
        for table in self._tables:
            self.connection.execute(f"DELETE FROM {table}")  # noqa: S608  # our own names
        self.connection.execute("COMMIT")

    def take(self, *, reads_only: bool) -> sqlite3.Connection | None:
        """A connection that a process has left; None if there is none."""
        unused = self._unused[reads_only]
        return unused.pop() if unused else None

    def give_back(self, connection: sqlite3.Connection, *, reads_only: bool) -> None:
        """The process that had it is gone."""
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        self._unused[reads_only].append(connection)


class _NoLock(WriteLock):
    """All processes of a world are on one thread, so that none writes while another one does."""

    def __init__(self) -> None:
        self._asked = 0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def others(self) -> int:
        self._asked += 1  # another one may always have written
        return self._asked

    def close(self) -> None:
        pass


class SimulatedFile(File):
    """The file of a store, open for one process."""

    def __init__(self, store: Store) -> None:
        self.directory = store.directory
        self.path = store.directory / "eventlane.db"
        self._synchronous = "OFF"
        self._closed = False
        self._store: Store | None = store
        self.lock = _NoLock()
        self.connection = store.take(reads_only=False) or self._connect(reads_only=False)
        self.reader = store.take(reads_only=True) or self._connect(reads_only=True)

    def let_go(self) -> None:
        """Its process is gone, in whatever way."""
        if self._store is not None:
            store, self._store = self._store, None
            self._closed = True
            store.give_back(self.connection, reads_only=False)
            store.give_back(self.reader, reads_only=True)

    async def aclose(self) -> None:
        """See `File.aclose`."""
        self.let_go()
