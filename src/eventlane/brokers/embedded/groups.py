"""Groups: who owns which partition, and how far it is.

One row for each (group, topic, partition) says all of it. An owner writes it under its epoch; the
epoch grows with every change of owner, so that what a former owner settles finds no row to write.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eventlane.brokers.embedded import failures
from eventlane.brokers.embedded.log import LogTopic, end_of, start_of
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.work import Transaction
from eventlane.errors import ConfigError, Fenced, StorageError
from eventlane.settlement import Acquired, GroupSpec, Settlement

__all__ = ["Ownership", "acquire", "decode_runs", "join", "leave", "ownerships", "pause", "settle"]

_encode = msgspec.msgpack.Encoder().encode
decode_runs = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...]).decode
"""Reads the column `settled`."""
_NO_RUNS = _encode(())


class Ownership(NamedTuple):
    """Who owns a partition."""

    topic: str
    partition: int
    owner: str | None
    epoch: int


def join(
    transaction: Transaction,
    spec: GroupSpec,
    topics: Sequence[LogTopic],
    *,
    member: str,
    members: Members,
    now_ms: int,
) -> None:
    """Register a group and its partitions; a group that is new starts where `start` says.

    Raises:
        ConfigError: Live members run it with other options.
    """
    row = transaction.execute(
        "SELECT ordering, on_dead FROM consumer_group WHERE name = ?", (spec.name,)
    ).fetchone()
    if row is None:
        transaction.execute(
            "INSERT INTO consumer_group (name, start, ordering, on_dead, app, created_ms) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (spec.name, spec.start, spec.ordering, spec.on_dead, spec.app, now_ms),
        )
    elif tuple(row) != (spec.ordering, spec.on_dead):
        _refuse_other_options(spec, row, member, members)
        if row[0] != spec.ordering:
            _refuse_other_lanes(transaction, spec, row[0])
        transaction.execute(
            "UPDATE consumer_group SET ordering = ?, on_dead = ?, app = ? WHERE name = ?",
            (spec.ordering, spec.on_dead, spec.app, spec.name),
        )
    starts_now = row is None and spec.start == "now"
    for topic in topics:
        for partition in range(topic.partitions):
            place = end_of if starts_now else start_of
            offset, _ = place(transaction.connection, topic.name, partition)
            transaction.execute(
                "INSERT INTO progress "
                "(consumer_group, topic, partition, start_offset, watermark, settled) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (spec.name, topic.name, partition, offset, offset, _NO_RUNS),
            )


def _refuse_other_options(
    spec: GroupSpec,
    stored: tuple[str, str],
    member: str,
    members: Members,
) -> None:
    for heartbeat in members.alive(but=member):
        if heartbeat.group == spec.name:
            raise ConfigError(
                f"group {spec.name!r}: expected ordering={stored[0]!r}, on_dead={stored[1]!r}, "
                f"with which process {heartbeat.pid} on {heartbeat.host} runs it, got "
                f"ordering={spec.ordering!r}, on_dead={spec.on_dead!r}; state the same, or stop "
                "all its processes first"
            )


def _refuse_other_lanes(transaction: Transaction, spec: GroupSpec, ordering: str) -> None:
    """What waits in lanes of one kind would not be found again in lanes of another."""
    waits = transaction.execute(
        "SELECT 1 FROM progress WHERE consumer_group = ?1 AND parked > 0 UNION ALL "
        "SELECT 1 FROM letter WHERE consumer_group = ?1 AND state IN ('open', 'replaying') "
        "AND on_dead != 'continue' LIMIT 1",
        (spec.name,),
    ).fetchone()
    if waits:
        raise ConfigError(
            f"group {spec.name!r}: expected ordering={ordering!r}, by which dead letters and "
            f"parked events wait in its lanes, got {spec.ordering!r}; resolve or archive them first"
        )


def acquire(
    transaction: Transaction, spec: GroupSpec, *, member: str, is_alive: Callable[[str], bool]
) -> list[Acquired]:
    """Take all partitions of a group that no living member owns."""
    taken: list[Acquired] = []
    alive: dict[str, bool] = {member: True}
    for topic, partition, owner, epoch in ownerships(transaction.connection, spec):
        if owner is not None:
            if owner not in alive:
                alive[owner] = is_alive(owner)
            if alive[owner]:
                continue
        transaction.execute(
            "UPDATE progress SET owner = ?, epoch = epoch + 1 "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (member, spec.name, topic, partition),
        )
        taken.append(_acquired(transaction.connection, spec, topic, partition, epoch + 1))
    if taken:
        transaction.alters = True
    return taken


def ownerships(connection: sqlite3.Connection, spec: GroupSpec) -> list[Ownership]:
    """Who owns the partitions of the topics that a member of a group handles."""
    rows = connection.execute(
        "SELECT topic, partition, owner, epoch FROM progress WHERE consumer_group = ?",
        (spec.name,),
    )
    return [Ownership(*row) for row in rows if row[0] in spec.topics]


def _acquired(
    connection: sqlite3.Connection, spec: GroupSpec, topic: str, partition: int, epoch: int
) -> Acquired:
    place = (spec.name, topic, partition)
    watermark, settled = connection.execute(
        "SELECT watermark, settled FROM progress "
        "WHERE consumer_group = ? AND topic = ? AND partition = ?",
        place,
    ).fetchone()
    return Acquired(
        topic=topic,
        partition=partition,
        epoch=epoch,
        watermark=watermark,
        settled=decode_runs(settled),
        attempts=failures.stored_attempts(connection, place),
        lanes=failures.lanes(connection, place),
        commands=tuple(failures.commands(connection, place, after=0)),
    )


def leave(transaction: Transaction, group: str, member: str) -> None:
    """Give up all that a member owns."""
    transaction.execute(
        "UPDATE progress SET owner = NULL WHERE consumer_group = ? AND owner = ?",
        (group, member),
    )
    transaction.alters = True


_SETTLE = """
UPDATE progress SET watermark = ?, settled = ?, dispatched = max(dispatched, ?), done = done + ?,
    skipped = skipped + ?, parked = parked + ?, dead = dead + ?
WHERE consumer_group = ? AND topic = ? AND partition = ? AND owner = ? AND epoch = ?
    AND watermark <= ?
"""


def settle(
    transaction: Transaction,
    group: str,
    member: str,
    settlements: Sequence[Settlement],
    *,
    topics: Mapping[str, LogTopic],
    now_ms: int,
) -> None:
    """See `Consumer.settle`; `topics` are those that something is published to."""
    rows: list[tuple[object, ...]] = []
    for settlement in settlements:
        done = skipped = ended = 0
        for change in settlement.letters:
            if change.state == "resolved":
                ended += 1
                done += change.outcome == "done"
                skipped += change.outcome == "skipped"
        rows.append(
            (
                settlement.watermark,
                _encode(settlement.settled) if settlement.settled else _NO_RUNS,
                settlement.dispatched,
                settlement.done + done,
                settlement.skipped + skipped,
                len(settlement.parked) - len(settlement.unparked),
                len(settlement.dead) - ended,
                group,
                settlement.topic,
                settlement.partition,
                member,
                settlement.epoch,
                settlement.watermark,
            )
        )
    if transaction.executemany(_SETTLE, rows).rowcount != len(rows):
        raise _refused(transaction.connection, group, member, settlements)
    for settlement in settlements:
        failures.write(transaction, group, settlement, now_ms)
        if settlement.pause is not None:
            pause(transaction, group, settlement.pause)
    for settlement in settlements:
        for topic, records in settlement.published:
            transaction.append(topics[topic], records)


def _refused(
    connection: sqlite3.Connection, group: str, member: str, settlements: Sequence[Settlement]
) -> Fenced | StorageError:
    """Why a settlement found no row to write."""
    stale: list[tuple[str, int]] = []
    for settlement in settlements:
        row = connection.execute(
            "SELECT owner, epoch FROM progress "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (group, settlement.topic, settlement.partition),
        ).fetchone()
        if row is None or tuple(row) != (member, settlement.epoch):
            stale.append((settlement.topic, settlement.partition))
    if not stale:
        return StorageError(
            f"group {group!r}: expected a watermark that does not go down; nothing was written. "
            "This is a bug in Eventlane"
        )
    places = ", ".join(f"{topic}/{partition}" for topic, partition in stale)
    return Fenced(
        f"group {group!r}: another process owns {places} by now; nothing was written",
        partitions=stale,
    )


def pause(transaction: Transaction, group: str, reason: str) -> None:
    """Pause a group; if it is paused already, the first reason stays."""
    transaction.execute(
        "UPDATE consumer_group SET paused = coalesce(paused, ?) WHERE name = ?", (reason, group)
    )
    transaction.alters = True
