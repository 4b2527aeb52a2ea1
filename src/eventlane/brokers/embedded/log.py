"""The log: batches of records as rows, dense offsets in each partition.

A row holds the records of one append to one partition as a msgpack array, so that one row costs one
insert and one decode for up to thousands of events. Where a partition ends is said by its last row.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple
from zlib import crc32

import msgspec

from eventlane.errors import ConfigError, StorageError
from eventlane.message import Record
from eventlane.settlement import Batch
from eventlane.topic import Topic
from eventlane.wording import did_you_mean

__all__ = [
    "End",
    "LogReader",
    "LogTopic",
    "LogWriter",
    "Row",
    "bytes_before",
    "check_partitions",
    "decode_batch",
    "end_of",
    "ensure_topic",
    "open_between",
    "rows",
    "start_of",
    "used_bytes",
]

_PARTITIONS_DEFAULT = 8
_ROW_RECORDS_MAX = 2_000
"""Records in one row; a longer append is halved, so that a reader never decodes much in vain."""
_ROW_BYTES_MAX = 8 * 1024 * 1024
_BATCHES_LOOKED_AT_MAX = 1_000
_FETCH_BYTES_MAX = 32 * 1024 * 1024
"""What one fetch takes from the file, though it be fewer records than were asked for."""

_encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(list[Record]).decode
"""Reads the column `records` of a batch."""

End = tuple[int, int]
"""The offset after a partition's last record, and the bytes of all records before it."""


class LogTopic:
    """A topic as its publishers need it."""

    __slots__ = ("name", "partitions", "turn")

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.partitions = partitions
        self.turn = 0
        """The partition for records without a key; moves on with every batch."""

    def next_turn(self) -> None:
        """Begin a new batch."""
        self.turn = (self.turn + 1) % self.partitions

    def split(self, records: Iterable[Record]) -> list[list[Record]]:
        """The records of each partition, in order."""
        parts: list[list[Record]] = [[] for _ in range(self.partitions)]
        self.next_turn()
        partitions, keyless = self.partitions, self.turn
        for record in records:
            key = record.key
            parts[keyless if key is None else crc32(key) % partitions].append(record)
        return parts


class Row(NamedTuple):
    """A batch before it has its place in the log."""

    records_count: int
    records: bytes


def rows(records: Sequence[Record]) -> list[Row]:
    """Pack records to rows of a size that readers like."""
    count = len(records)
    if count <= _ROW_RECORDS_MAX:
        block = _encode(records)
        if len(block) <= _ROW_BYTES_MAX or count == 1:
            return [Row(count, block)]
    return rows(records[: count // 2]) + rows(records[count // 2 :])


_INSERT = (
    "INSERT INTO batch (topic, partition, base_offset, count, base_bytes, size_bytes, "
    "appended_ms, records) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class LogWriter:
    """Appends, within the running transaction of the connection that it is given."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._ends: dict[tuple[str, int], End] = {}
        self._version = -1
        self._now_ms = 0

    def begin(self, now_ms: int) -> None:
        """Begin a transaction: forget what another process may have changed."""
        self._now_ms = now_ms
        version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._ends.clear()
            self._version = version

    def rolled_back(self) -> None:
        """Forget what was not written."""
        self._ends.clear()

    def append(self, topic: str, partition: int, batch: Iterable[Row]) -> int:
        """Write rows at the end of a partition; returns the offset of the first record."""
        place = (topic, partition)
        end = self._ends.get(place)
        if end is None:
            end = end_of(self._connection, topic, partition)
        first, size = end
        offset = first
        for row in batch:
            length = len(row.records)
            self._connection.execute(
                _INSERT,
                (
                    topic,
                    partition,
                    offset,
                    row.records_count,
                    size,
                    length,
                    self._now_ms,
                    row.records,
                ),
            )
            offset += row.records_count
            size += length
        self._ends[place] = (offset, size)
        return first


def end_of(connection: sqlite3.Connection, topic: str, partition: int) -> End:
    """Where a partition ends."""
    row = connection.execute(
        "SELECT base_offset + count, base_bytes + size_bytes FROM batch "
        "WHERE topic = ? AND partition = ? ORDER BY base_offset DESC LIMIT 1",
        (topic, partition),
    ).fetchone()
    return (row[0], row[1]) if row else start_of(connection, topic, partition)


def start_of(connection: sqlite3.Connection, topic: str, partition: int) -> End:
    """Where a partition begins: its first offset, and the bytes of all that retention removed."""
    row = connection.execute(
        "SELECT first_offset, first_bytes FROM partition WHERE topic = ? AND partition = ?",
        (topic, partition),
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def bytes_before(connection: sqlite3.Connection, topic: str, partition: int, offset: int) -> int:
    """The bytes of all batches before the one that has this offset, or would have it."""
    row = connection.execute(
        "SELECT base_bytes FROM batch WHERE topic = ? AND partition = ? AND base_offset <= ? "
        "ORDER BY base_offset DESC LIMIT 1",
        (topic, partition, offset),
    ).fetchone()
    return row[0] if row else start_of(connection, topic, partition)[1]


def open_between(start: int, end: int, settled: Iterable[tuple[int, int]]) -> int:
    """How many offsets of a range are in no run of settled ones."""
    over = (max(0, min(stop, end) - max(first, start)) for first, stop in settled)
    return max(0, end - start) - sum(over)


def used_bytes(connection: sqlite3.Connection) -> int:
    """What is in use of the file; the pages that are free are used again before it grows."""
    page: int = connection.execute("PRAGMA page_size").fetchone()[0]
    count: int = connection.execute("PRAGMA page_count").fetchone()[0]
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return page * (count - free)


def check_partitions(topic: str, stored: int, declared: int | None) -> None:
    """Refuse another number of partitions than a topic has.

    Raises:
        ConfigError: It is another; None is none.
    """
    if declared not in (None, stored):
        raise ConfigError(
            f"topic {topic!r}: expected {stored} partitions, which it has, got "
            f"{declared}; their number cannot change, or keys would move. Leave it out, "
            "or use another topic"
        )


def ensure_topic(connection: sqlite3.Connection, topic: Topic) -> int:
    """See `Broker.ensure_topic`; settings that are given replace those that are stored."""
    row = connection.execute(
        "SELECT partitions FROM topic WHERE name = ?", (topic.name,)
    ).fetchone()
    if row is None:
        partitions = topic.partitions or _PARTITIONS_DEFAULT
        connection.execute(
            "INSERT INTO topic (name, partitions, retention_s, retention_bytes, size_bytes_max) "
            "VALUES (?, ?, ?, ?, ?)",
            (
                *(topic.name, partitions, topic.retention_s, topic.retention_bytes),
                topic.size_bytes_max,
            ),
        )
        connection.executemany(
            "INSERT INTO partition (topic, partition) VALUES (?, ?)",
            [(topic.name, partition) for partition in range(partitions)],
        )
        return partitions
    partitions = int(row[0])
    check_partitions(topic.name, partitions, topic.partitions)
    connection.execute(
        "UPDATE topic SET retention_s = coalesce(?, retention_s), "
        "retention_bytes = coalesce(?, retention_bytes), "
        "size_bytes_max = coalesce(?, size_bytes_max) WHERE name = ?",
        (topic.retention_s, topic.retention_bytes, topic.size_bytes_max, topic.name),
    )
    return partitions


_FETCH = """
SELECT base_offset, count, records FROM batch
WHERE topic = ?1 AND partition = ?2 AND base_offset >= coalesce(
    (SELECT base_offset FROM batch WHERE topic = ?1 AND partition = ?2 AND base_offset <= ?3
     ORDER BY base_offset DESC LIMIT 1), ?3) AND base_offset + count > ?3
ORDER BY base_offset
"""


class LogReader:
    """Reads, on a connection of its own, what is committed. Never waits for a writer."""

    def __init__(self, connection: sqlite3.Connection, path_shown: str) -> None:
        self.connection = connection
        self._path = path_shown

    def topic(self, name: str) -> LogTopic | None:
        """The topic; None if there is none."""
        row = self.connection.execute(
            "SELECT partitions FROM topic WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else LogTopic(name, row[0])

    def nearest(self, name: str) -> str:
        """A sentence that names the existing topic which was probably meant."""
        names = [row[0] for row in self.connection.execute("SELECT name FROM topic")]
        return did_you_mean(name, names) if names else "There are no topics yet."

    def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """See `Consumer.fetch`. Takes whole rows where it can, so that none is decoded twice."""
        records: list[Record] = []
        first = offset
        size_bytes = 0
        # Closed at once, for a statement that is not at its end holds up every checkpoint.
        with closing(self.connection.execute(_FETCH, (topic, partition, offset))) as found:
            for base, count, block in found:
                if records and (len(records) + count > count_max or size_bytes > _FETCH_BYTES_MAX):
                    break
                row = self._decoded(topic, partition, base, count, block)
                if not records:
                    first = max(offset, base)
                    if base < first or count > count_max:
                        row = row[first - base : first - base + count_max]
                    records = row
                else:
                    records += row
                size_bytes += len(block)
        return Batch(range(first, first + len(records)), records)

    def _decoded(
        self, topic: str, partition: int, base: int, count: int, block: bytes
    ) -> list[Record]:
        try:
            row = decode_batch(block)
        except msgspec.DecodeError as error:
            raise StorageError(f"{self._damage(topic, partition, base)} ({error})") from error
        if len(row) != count:
            raise StorageError(
                f"{self._damage(topic, partition, base)} ({len(row)} records, not {count})"
            )
        return row

    def _damage(self, topic: str, partition: int, base: int) -> str:
        return (
            f"{self._path}: the batch of topic {topic!r}, partition {partition}, offset {base} "
            "is damaged; restore the file from a copy"
        )

    def ends(self, topic: LogTopic) -> list[tuple[int, int]]:
        """See `Broker.ends`."""
        return [
            (
                start_of(self.connection, topic.name, partition)[0],
                end_of(self.connection, topic.name, partition)[0],
            )
            for partition in range(topic.partitions)
        ]

    def data_version(self) -> int:
        """Changes when another connection, of any process, has committed."""
        version: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return version

    def last_id(self) -> int:
        """The id of the newest batch; 0 for none."""
        newest: int = self.connection.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()[
            0
        ]
        return newest

    def topics_between(self, id: int, newest: int) -> set[str]:
        """The topics that may have got batches after the one with this id, up to the newest."""
        if newest - id > _BATCHES_LOOKED_AT_MAX:
            found = self.connection.execute("SELECT name FROM topic")
        else:
            # NOT INDEXED, or SQLite would rather walk through the index of all batches.
            found = self.connection.execute(
                "SELECT topic FROM batch NOT INDEXED WHERE id > ? AND id <= ?", (id, newest)
            )
        return {row[0] for row in found}
