"""A connection to SQLite whose N-th write fails, as it does when a disk is full or breaks."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

How = Literal["disk full", "I/O error", "twice"]
_TIMES: dict[How, int] = {"disk full": 4, "I/O error": 1, "twice": 2}
HOWS = tuple(_TIMES)


@dataclass(slots=True)
class Disk:
    """Counts what is written, and fails at some of it.

    - "disk full": four writes fail, one after the other; SQLite has rolled back by itself.
    - "I/O error": one write fails, and the transaction is left open.
    - "twice": so it does, and the ROLLBACK that follows fails too.

    A COMMIT that fails here has written nothing. Where its fsync fails, it has: failing_sync.py.
    """

    fails_at: int = 0
    how: How = "disk full"
    writes: int = 0
    failures: int = 0

    def write(self, connection: sqlite3.Connection) -> None:
        """A write is about to happen.

        Raises:
            OperationalError: It does not.
        """
        self.writes += 1
        after = self.writes - self.fails_at
        if not self.fails_at or not 0 <= after < _TIMES[self.how]:
            return
        self.failures += 1
        error = sqlite3.OperationalError(f"write {self.writes} fails: {self.how}")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        if self.how == "disk full":
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            if connection.in_transaction:
                sqlite3.Connection.execute(connection, "ROLLBACK")
        raise error

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let all connections that are opened from now on write to this disk."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
                if _writes(statement):
                    disk.write(self)
                return super().execute(statement, *arguments)

            def executemany(self, statement: str, rows: Iterable[Any]) -> sqlite3.Cursor:
                disk.write(self)
                return super().executemany(statement, rows)

            def executescript(self, script: str) -> sqlite3.Cursor:
                disk.write(self)
                return super().executescript(script)

        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3, "connect", lambda *given, **more: connect(*given, factory=Connection, **more)
        )


def _writes(statement: str) -> bool:
    return statement.lstrip().partition(" ")[0] not in {"SELECT", "PRAGMA", "WITH"}
