"""Brings the file of an older Eventlane to the present format, when it is opened.

A step leads from one format to the next. Those that are needed run in one transaction, all or none.
Nobody else may have the file open meanwhile, since a process of the older version would go on to
read and write as it knew it. SQLite says whether one has: in WAL mode each open connection keeps a
shared lock on the file, and exclusive mode asks for the whole one.
"""

import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from eventlane.errors import StorageError

__all__ = ["FIRST_FORMAT", "STEPS", "Step", "migrate", "users_of"]

_log = logging.getLogger("eventlane.embedded")

FIRST_FORMAT = 4
"""The oldest one that a released Eventlane has written."""

Step = Callable[[sqlite3.Connection], None]
"""Runs within the transaction; `executescript` would commit it."""

STEPS: Mapping[int, Step] = {}
"""By the format that they lead on from; `tests/data` has a file of each of these."""

_LOCKS = Path("/proc/locks")
_SHARED_FIRST = 0x40000000 + 2
"""Where SQLite has the lock that each open connection shares."""


def migrate(connection: sqlite3.Connection, path: Path, stored: int, wanted: int) -> None:
    """Take all steps from one format to another; under the writers' lock.

    The connection must be new and in exclusive mode.

    Raises:
        StorageError: Another process has the file open; nothing was changed.
        sqlite3.Error: A step failed; nothing was changed.
    """
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        pids = ", ".join(map(str, users_of(path)))
        raise StorageError(
            f"{path}: expected no other process to have it open while it is brought from format "
            f"{stored} to format {wanted}, got {pids or f'some (`lsof {path}` lists them)'}. End "
            "them all, those of the older Eventlane first, and make a copy before you try again: "
            f"`cp -a {path.parent} …`. Nothing was changed"
        ) from error
    try:
        for version in range(stored, wanted):
            STEPS[version](connection)
        connection.execute(f"PRAGMA user_version = {wanted}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    _log.warning(
        "%s: brought from format %d to format %d; an older Eventlane cannot open it any more",
        path,
        stored,
        wanted,
    )


def users_of(path: Path) -> list[int]:
    """The processes that have the file open, as far as the system says so: Linux does."""
    try:
        inode = path.stat().st_ino
        table = _LOCKS.read_text("ascii", "replace")
    except OSError:
        return []
    # 5: POSIX  ADVISORY  READ 4711 fe:00:10617809 1073741826 1073742335
    lines = (line.split() for line in table.splitlines())
    found = {
        int(fields[4])
        for fields in lines
        if len(fields) == 8
        and fields[1] == "POSIX"
        and fields[5].rpartition(":")[2] == str(inode)
        and fields[6] == str(_SHARED_FIRST)
    }
    # 0 is one in another container.
    return sorted(found - {0})
