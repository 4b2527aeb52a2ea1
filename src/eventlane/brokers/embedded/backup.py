"""A copy of a live file: one moment of it, taken without holding up a writer.

SQLite's online backup copies from a connection of its own within one read transaction. In WAL mode
that sees one moment, and a writer waits for no reader. Without that transaction it would begin anew
with each commit of others, and never end under load.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from eventlane.brokers.embedded.file import File, storage_error, sync
from eventlane.errors import Refused, StorageError

__all__ = ["copy_file"]

_STEP_PAGES = 128
"""Copied between two syncs: a sync of much at once holds up those of the writers, in the kernel."""


def copy_file(file: File, directory: Path) -> int:
    """Copy the file into another directory, durably; blocks, so it wants a thread.

    Returns:
        The size of the copy in bytes.

    Raises:
        Refused: The directory has a broker; nothing was written.
        StorageError: It cannot be written to, or the file cannot be read. No copy is there.
    """
    directory = directory.absolute()
    path = directory / file.path.name
    # It gets its name when it is whole and durable: what has that name can be opened.
    unfinished = directory / f"{file.path.name}.{os.getpid()}.unfinished"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A write-ahead log that was left behind would be played into the copy when it is opened.
        names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
        left = next((name for name in names if (directory / name).exists()), None)
        if left is not None:
            raise Refused(
                f"{directory}: expected a directory without a broker, got one that has {left}; "
                "choose another one. Nothing was written"
            )
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            _copy(file, unfinished)
            sync(unfinished)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(directory)
        return path.stat().st_size
    except OSError as error:
        raise StorageError(
            f"{directory}: expected a directory that can be written to, got "
            f"{error.strerror or error}; choose another one, or free some space. No copy was made"
        ) from error


def _copy(file: File, path: Path) -> None:
    entry = os.open(path, os.O_RDONLY)

    def copied(_status: int, _remaining: int, _total: int) -> None:
        os.fsync(entry)

    try:
        with closing(file.connect_reader()) as source:
            # Held over all steps, so that they see one moment and none begins anew.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM topic").fetchone()
            with closing(sqlite3.connect(path, isolation_level=None)) as target:
                target.execute("PRAGMA synchronous = OFF")  # it is synced here
                source.backup(target, pages=_STEP_PAGES, progress=copied)
                # Restored elsewhere, it must not need files beside it.
                target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    finally:
        os.close(entry)
