"""The database file: its directory, its schema, its format, and what its errors mean.

All writing, and with it every checkpoint, happens under the lock of `lock.py`. Readers therefore
never checkpoint. Two connections that checkpoint while a third one resets the WAL can lose commits
in SQLite before 3.51.3 (https://www.sqlite.org/wal.html#walresetbug); taking turns rules it out.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from eventlane.brokers.embedded.filesystem import check_file_system
from eventlane.brokers.embedded.lock import WriteLock
from eventlane.brokers.embedded.migration import FIRST_FORMAT, migrate
from eventlane.errors import EventlaneError, StorageError, Unavailable

__all__ = ["FORMAT_VERSION", "File", "Synchronous", "storage_error", "stored_format", "sync"]

_APPLICATION_ID = 0x656C616E
"""`elan`, in the header of the file."""
FORMAT_VERSION = 4
_BUSY_TIMEOUT_S = 1.0
"""Only a safety net: writers queue on the lock, and readers wait for nobody."""

_NEW_KIND = """
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
"""
_THAT_KIND = f"""
    SELECT id FROM letter_kind WHERE (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version) = ({_NEW_KIND})
"""
# No OR IGNORE: the statement that fires a trigger would overrule it.
_SET_KIND = f"""
    INSERT INTO letter_kind (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version)
    SELECT {_NEW_KIND} WHERE NOT EXISTS ({_THAT_KIND});
    UPDATE letter SET kind = ({_THAT_KIND}) WHERE number = new.number;
"""

_SCHEMA = f"""
CREATE TABLE topic (
    name TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL,
    retention_s REAL,
    retention_bytes INTEGER,
    size_bytes_max INTEGER
) WITHOUT ROWID;
CREATE INDEX topic_with_cap ON topic (name) WHERE size_bytes_max IS NOT NULL;

-- Where a partition begins, once retention has removed batches from it. Where it ends is said by
-- its last batch, so that an append writes one row.
CREATE TABLE partition (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0,
    first_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

-- id orders the batches of all topics as they were written. base_bytes counts the bytes of all
-- batches before this one, as base_offset counts their records: a partition's size is a difference.
-- appended_ms is when the log took it, from which retention counts: an old event that was imported
-- yesterday is kept as long as any other of yesterday.
CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    base_offset INTEGER NOT NULL,
    count INTEGER NOT NULL,
    base_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    appended_ms INTEGER NOT NULL,
    records BLOB NOT NULL
);
CREATE UNIQUE INDEX batch_by_offset ON batch (topic, partition, base_offset);

-- seen_ms: when a member of it was last alive, give or take a minute. replays_max: of the member
-- that joined last.
CREATE TABLE consumer_group (
    name TEXT PRIMARY KEY,
    start TEXT NOT NULL,
    ordering TEXT NOT NULL,
    on_dead TEXT NOT NULL,
    app TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    paused TEXT,
    replays_max INTEGER
) WITHOUT ROWID;

-- What each member of a group handles. What a dead one handled stays until a live one handles it,
-- or until nobody of the group is left.
CREATE TABLE member_type (
    consumer_group TEXT NOT NULL,
    member TEXT NOT NULL,
    topic TEXT NOT NULL,
    event_type TEXT NOT NULL,
    PRIMARY KEY (consumer_group, member, topic, event_type)
) WITHOUT ROWID;

-- dispatched: no higher offset is given to a handler before the next settlement. So it bounds what
-- can have been in flight when the owner died: see suspects. needs: event types that an owner had
-- no handler for, while others of the group have: who lacks one is not to have the partition.
CREATE TABLE progress (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    owner TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    needs TEXT NOT NULL DEFAULT '[]',
    start_offset INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    settled BLOB NOT NULL,
    dispatched INTEGER NOT NULL DEFAULT -1,
    suspects BLOB NOT NULL DEFAULT x'90',
    alone INTEGER,
    done INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    archived INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    edited INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer_group, topic, partition)
) WITHOUT ROWID;

-- A lane is found by its key (a blob), or by an offset (an integer) where an event is a lane of its
-- own; -1 is the lane of a whole partition. The column has no type, so that it keeps which it is.
CREATE TABLE attempts (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    attempts TEXT NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition, offset)
) WITHOUT ROWID;
CREATE INDEX attempts_by_lane ON attempts (consumer_group, topic, partition, lane);

-- Lanes of which something is kept. due_ms: when the first parked event may run; NULL while a dead
-- letter closes the lane; -1 for a lane that is free and only has gaps.
CREATE TABLE lane (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    lane NOT NULL,
    parked INTEGER NOT NULL,
    head INTEGER NOT NULL,
    due_ms INTEGER,
    blockers BLOB NOT NULL,
    stops INTEGER NOT NULL,
    gaps BLOB NOT NULL,
    operation INTEGER,
    PRIMARY KEY (consumer_group, topic, partition, lane)
) WITHOUT ROWID;
CREATE INDEX lane_by_due ON lane (consumer_group, topic, partition, due_ms);
CREATE INDEX lane_that_stops ON lane (consumer_group, topic, partition) WHERE stops;
CREATE INDEX lane_by_operation ON lane (operation) WHERE operation IS NOT NULL;

-- What one settlement parked in one lane is one row: records is an array of [offset, record].
CREATE TABLE parked (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    lane NOT NULL,
    first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition, lane, first_offset)
) WITHOUT ROWID;

-- What changes or is searched for has a column; the envelope is the whole letter as it died, apart,
-- so that a search reads small rows. number orders them as they died, and is used once, since the
-- audit outlives a letter whose group was removed. counted: it is in the
-- account of its group, which begins anew when the group is reset.
CREATE TABLE letter (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    handler TEXT NOT NULL,
    key BLOB,
    event_type TEXT,
    error_class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    app_version TEXT,
    kind INTEGER,
    on_dead TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    replay_count INTEGER NOT NULL,
    counted INTEGER NOT NULL DEFAULT 1,
    dead_ms INTEGER NOT NULL,
    edited_from BLOB
);
CREATE UNIQUE INDEX letter_by_offset ON letter (consumer_group, topic, partition, offset, handler)
    WHERE state != 'edited';
CREATE INDEX letter_by_lane ON letter (topic, partition, lane);
CREATE INDEX letter_by_kind ON letter (kind, state, dead_ms);
CREATE INDEX letter_by_key ON letter (key, dead_ms);

-- What letters have in common and are searched by. There are few kinds, however many letters: one
-- index serves every combination of conditions, and a letter that changes its state rewrites one.
CREATE TABLE letter_kind (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    handler TEXT NOT NULL,
    event_type TEXT NOT NULL,
    error_class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    app_version TEXT NOT NULL
);
CREATE UNIQUE INDEX letter_kind_by_all ON letter_kind (
    fingerprint, consumer_group, topic, handler, event_type, error_class, app_version
);
CREATE TRIGGER letter_is_new AFTER INSERT ON letter BEGIN
    {_SET_KIND}
END;
CREATE TRIGGER letter_is_another AFTER UPDATE OF consumer_group, topic, handler, event_type,
    error_class, fingerprint, app_version ON letter BEGIN
    {_SET_KIND}
END;

CREATE TABLE envelope (
    number INTEGER PRIMARY KEY,
    letter TEXT NOT NULL
);

CREATE TABLE command (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    kind TEXT NOT NULL,
    letter BLOB NOT NULL,
    operation INTEGER
);
CREATE INDEX command_by_partition ON command (consumer_group, topic, partition, id);

-- What operators have asked for. ended_ms: when nothing of it was left to be done, which is later
-- than a cancel.
CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    why TEXT,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    query TEXT,
    allow_gap INTEGER NOT NULL,
    replays_max INTEGER NOT NULL,
    rate_per_s REAL,
    canary INTEGER NOT NULL,
    pause_above REAL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER
);
CREATE INDEX operation_by_state ON operation (state, id);
CREATE INDEX operation_not_ended ON operation (id) WHERE ended_ms IS NULL;

-- An operation in one group: what becomes of its letters there, and its pace. pending and released
-- are of this moment, the others count what has ended.
CREATE TABLE operation_part (
    id INTEGER PRIMARY KEY,
    operation INTEGER NOT NULL,
    consumer_group TEXT NOT NULL,
    total INTEGER NOT NULL,
    pending INTEGER NOT NULL DEFAULT 0,
    released INTEGER NOT NULL DEFAULT 0,
    resolved INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    returned INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL DEFAULT 0,
    followers_done INTEGER NOT NULL DEFAULT 0,
    followers_dead INTEGER NOT NULL DEFAULT 0,
    pacing BLOB NOT NULL,
    is_over INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX operation_part_by_group ON operation_part (operation, consumer_group);

-- Letters that an operation has not come to yet, in steps, each a JSON array of their numbers: one
-- row for a thousand, so that the whole selection is written before anything is changed. versions:
-- those at which they were seen, where they were; an array as long.
CREATE TABLE operation_selection (
    part INTEGER NOT NULL,
    step INTEGER NOT NULL,
    letters TEXT NOT NULL,
    versions TEXT,
    PRIMARY KEY (part, step)
) WITHOUT ROWID;

-- Letters, by their numbers, that it has come to.
CREATE TABLE operation_letter (
    part INTEGER NOT NULL,
    letter INTEGER NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    state TEXT NOT NULL,
    why TEXT,
    PRIMARY KEY (part, letter)
) WITHOUT ROWID;
CREATE INDEX operation_letter_pending ON operation_letter (part, topic, partition, offset)
    WHERE state = 'pending';
CREATE INDEX operation_letter_failed ON operation_letter (part, topic, partition, lane, offset)
    WHERE state = 'failed';
-- A letter is in one replay at a time.
CREATE UNIQUE INDEX operation_letter_at_once ON operation_letter (letter)
    WHERE state IN ('pending', 'released');

-- letter: its number.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    consumer_group TEXT NOT NULL,
    letter INTEGER,
    operation INTEGER,
    detail TEXT
);
CREATE INDEX audit_by_letter ON audit (letter, id);

-- Of each limited rate: when its next permit is free, and when one was reserved last.
CREATE TABLE rate (
    name TEXT PRIMARY KEY,
    rate_per_s REAL NOT NULL,
    asked_ms INTEGER NOT NULL,
    free_ms REAL NOT NULL
) WITHOUT ROWID;
"""

Synchronous = Literal["FULL", "NORMAL", "OFF"]


class File:
    """One directory with its database, open for this process."""

    def __init__(self, directory: Path, synchronous: Synchronous, lease_s: float) -> None:
        """Open the file; make it, and its directory, where they do not exist.

        Raises:
            ConfigError: The directory is on a network file system.
            StorageError: The directory or the file cannot be used.
        """
        self.directory = directory = directory.absolute()
        if synchronous != "OFF":  # else it is this process's own, and temporary
            check_file_system(directory)
        self.path = directory / "eventlane.db"
        self._synchronous = synchronous
        self._closed = False
        try:
            missing = [each for each in (directory, *directory.parents) if not each.exists()]
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._create_private()
            if synchronous == "FULL":
                # A file is as durable as the entries of the directories that lead to it.
                for each in (directory, *(made.parent for made in missing)):
                    sync(each)
            self.lock = WriteLock(directory, lease_s)
        except OSError as error:
            raise StorageError(
                f"{directory}: expected a directory that can be written to, got "
                f"{error.strerror or error}; choose another one, or change its permissions"
            ) from error
        try:
            self.connection = self._prepared()
            """The one connection that writes."""
            self.reader = self._connect(reads_only=True)
            """The one that reads, in the event loop: it never waits for a writer."""
        except BaseException:
            self.lock.close()
            raise

    def _create_private(self) -> None:
        """Make the file before SQLite does, which would make it readable for others."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return

    def _prepared(self) -> sqlite3.Connection:
        connection = self._connect(reads_only=False)
        try:
            if not self._is_current(connection):
                # Others may be at the same point. They do not have it open while one migrates it.
                connection.close()
                with self.lock:
                    connection = self._connect(reads_only=False)
                    stored = stored_format(connection, self.path)
                    if stored == 0:
                        connection.execute("PRAGMA page_size = 16384")
                        connection.execute("PRAGMA journal_mode = WAL")
                        connection.executescript(
                            f"BEGIN IMMEDIATE; {_SCHEMA}"
                            f"PRAGMA application_id = {_APPLICATION_ID};"
                            f"PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
                        )
                    elif stored < FORMAT_VERSION:
                        connection.close()
                        with closing(self._connect(reads_only=False, alone=True)) as alone:
                            migrate(alone, self.path, stored, FORMAT_VERSION)
                        connection = self._connect(reads_only=False)
        except sqlite3.Error as error:
            connection.close()
            raise storage_error(error, self.path) from error
        except StorageError:
            connection.close()
            raise
        return connection

    def _is_current(self, connection: sqlite3.Connection) -> bool:
        try:
            return stored_format(connection, self.path) == FORMAT_VERSION
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False  # another process is migrating it, under the lock

    def _connect(self, *, reads_only: bool, alone: bool = False) -> sqlite3.Connection:
        """Open a new connection; `alone` with the whole file for itself, from its first read on.

        Raises:
            StorageError: The file cannot be opened.
        """
        try:
            connection = sqlite3.connect(
                self.path,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_TIMEOUT_S,
                cached_statements=256,
            )
            if alone:  # with SQLite's own default, FULL: to set it would be a first read
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            else:
                connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if sys.platform == "darwin" and self._synchronous == "FULL":
                # A plain fsync there leaves the data in the drive's cache.
                connection.execute("PRAGMA fullfsync = ON")
                connection.execute("PRAGMA checkpoint_fullfsync = ON")
            if reads_only:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("PRAGMA wal_autocheckpoint = 0")
        except sqlite3.Error as error:
            raise storage_error(error, self.path) from error
        return connection

    def connect_reader(self) -> sqlite3.Connection:
        """Open another connection that only reads, for a thread of its own.

        Raises:
            StorageError: The file cannot be opened.
        """
        return self._connect(reads_only=True)

    @contextmanager
    def reading(self) -> Generator[None]:
        """Translate what goes wrong.

        Raises:
            StorageError: The file cannot be read.
            Unavailable: It is closed.
        """
        if self._closed:
            raise Unavailable(f"{self.path}: the broker is closed")
        try:
            yield
        except sqlite3.Error as error:
            raise storage_error(error, self.path) from error

    async def aclose(self) -> None:
        """Close the connections; the writer's thread has ended."""
        self._closed = True
        self.reader.close()
        # In a thread, because it may have to wait for the disk, or for its turn.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        try:
            # The last connection of all processes checkpoints when it is closed.
            with self.lock:
                self.connection.close()
        except StorageError:
            # Who holds the lock has the file open too, so that this one is not the last.
            self.connection.close()
        finally:
            self.lock.close()


def stored_format(connection: sqlite3.Connection, path: Path) -> int:
    """The format of a file; 0 for an empty one, which is to be filled.

    Raises:
        StorageError: It is another application's, or of a format that this version cannot read or
            bring up to date; the message says which.
    """
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != _APPLICATION_ID:
        raise StorageError(
            f"{path}: expected a file of Eventlane's, got another application's SQLite "
            "database; choose another directory"
        )
    if version > FORMAT_VERSION:
        raise StorageError(
            f"{path}: expected format {FORMAT_VERSION}, got format {version}, which a "
            "newer Eventlane has written; upgrade this one"
        )
    if version < FIRST_FORMAT:
        raise StorageError(
            f"{path}: expected format {FORMAT_VERSION}, got format {version}, which no "
            "released Eventlane has written; choose another directory"
        )
    return version


def sync(path: Path) -> None:
    """Make a file, or the entries of a directory, durable."""
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


_MEANINGS = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space, what was refused can be tried again",
    sqlite3.SQLITE_READONLY: "the file is read-only; change its permissions",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write; look at the system's log",
    sqlite3.SQLITE_BUSY: "the file is locked by a program other than Eventlane; close it there",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; choose another directory",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a copy",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; look at its permissions and the disk",
    sqlite3.SQLITE_AUTH: "the file may not be used; change its permissions",
    sqlite3.SQLITE_PERM: "the file may not be used; change its permissions",
}


_BUGS = (
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_RANGE,
)
"""What no disk and no file is to blame for: it would fail again however often it were tried."""


def storage_error(error: sqlite3.Error, path: Path) -> EventlaneError:
    """What SQLite's error means for the person who has to mend it.

    A `StorageError`, which may be over when it is tried again, unless Eventlane itself is wrong.
    """
    code = getattr(error, "sqlite_errorcode", None)
    # The low byte is the kind; the rest says where in SQLite it arose.
    kind = code & 0xFF if isinstance(code, int) else None
    if kind in _BUGS:
        return EventlaneError(
            f"{path}: expected a statement that the file takes, got {error}. Nothing was written. "
            "This is a bug in Eventlane: please report it with this message"
        )
    meaning = None if kind is None else _MEANINGS.get(kind)
    return StorageError(f"{path}: {meaning} ({error})" if meaning else f"{path}: {error}")
