"""Groups: who owns which partition, and how far it is.

One row for each (group, topic, partition) says all of it. An owner writes it under its epoch; the
epoch grows with every change of owner, so that what a former owner settles finds no row to write.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eventlane.brokers.embedded import failures, operations
from eventlane.brokers.embedded.log import LogTopic, end_of, start_of
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.work import Transaction, in_parts
from eventlane.config import Limits
from eventlane.errors import ConfigError, Fenced, StorageError
from eventlane.settlement import Acquired, GroupSpec, LetterChange, Settlement
from eventlane.span import runs_of
from eventlane.suspects import AHEAD_MIN, ALONE_IN_GROUP

__all__ = [
    "Ownership",
    "acquire",
    "decode_runs",
    "decode_suspects",
    "join",
    "leave",
    "mark_suspects",
    "ownerships",
    "pause",
    "seen",
    "settle",
]

_encode = msgspec.msgpack.Encoder().encode
_IN_FLIGHT_MAX = 1_000
"""Of lanes that are due, and of replays, no more than this can have been in flight."""
_COMMANDS_MAX = 4_000
"""With which a partition is acquired; the others are reported afterwards."""
decode_runs = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...]).decode
"""Reads the column `settled`."""
decode_suspects = msgspec.msgpack.Decoder(tuple[tuple[int, int, int], ...]).decode
"""Reads the column `suspects`."""
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
            "INSERT INTO consumer_group (name, start, ordering, on_dead, app, created_ms, seen_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (spec.name, spec.start, spec.ordering, spec.on_dead, spec.app, now_ms, now_ms),
        )
    elif tuple(row) != (spec.ordering, spec.on_dead):
        _refuse_other_options(spec, row, member, members)
        if row[0] != spec.ordering:
            _refuse_other_lanes(transaction, spec, row[0])
        transaction.execute(
            "UPDATE consumer_group SET ordering = ?, on_dead = ?, app = ? WHERE name = ?",
            (spec.ordering, spec.on_dead, spec.app, spec.name),
        )
    seen(transaction, [spec.name], now_ms)
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


def seen(transaction: Transaction, groups: Sequence[str], now_ms: int) -> None:
    """Note that groups have a live member."""
    transaction.executemany(
        "UPDATE consumer_group SET seen_ms = max(seen_ms, ?) WHERE name = ?",
        [(now_ms, group) for group in groups],
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
    transaction: Transaction,
    spec: GroupSpec,
    *,
    member: str,
    is_alive: Callable[[str], bool],
    limits: Limits,
    now_ms: int,
) -> list[Acquired]:
    """Take all partitions of a group that no living member owns."""
    taken: list[Acquired] = []
    alive: dict[str, bool] = {member: True}
    for topic, partition, owner, epoch in ownerships(transaction.connection, spec):
        place = (spec.name, topic, partition)
        if owner is not None:
            if owner not in alive:
                alive[owner] = is_alive(owner)
            if alive[owner]:
                continue
            mark_suspects(transaction, place, limits.span_max, now_ms)
        transaction.execute(
            "UPDATE progress SET owner = ?, epoch = epoch + 1, dispatched = watermark + ?, "
            "alone = NULL WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (member, AHEAD_MIN - 1, *place),
        )
        taken.append(_acquired(transaction.connection, place, epoch + 1, limits))
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
    connection: sqlite3.Connection, place: failures.Place, epoch: int, limits: Limits
) -> Acquired:
    _, topic, partition = place
    watermark, settled, suspects = connection.execute(
        "SELECT watermark, settled, suspects FROM progress "
        "WHERE consumer_group = ? AND topic = ? AND partition = ?",
        place,
    ).fetchone()
    lanes, has_more = failures.lanes_at_acquisition(connection, place, limits.parked_lanes_max)
    return Acquired(
        topic=topic,
        partition=partition,
        epoch=epoch,
        watermark=watermark,
        settled=decode_runs(settled),
        attempts=failures.stored_attempts(connection, place, watermark),
        lanes=lanes,
        commands=tuple(failures.commands(connection, place, after=0, count_max=_COMMANDS_MAX)),
        suspects=decode_suspects(suspects),
        has_more_lanes=has_more,
    )


def mark_suspects(
    transaction: Transaction, place: tuple[str, str, int], span_max: int, now_ms: int
) -> None:
    """An owner ended without leaving: what it may have had in flight is suspected once more.

    That is what it said runs alone; else all that it can have started and has no outcome, the first
    parked event of each lane that was due, and what operators have had replayed.
    """
    at = "consumer_group = ? AND topic = ? AND partition = ?"
    execute = transaction.execute
    watermark, settled, dispatched, suspects, alone = execute(
        f"SELECT watermark, settled, dispatched, suspects, alone FROM progress WHERE {at}",
        place,
    ).fetchone()
    ends_of: dict[int, int] = {
        offset: ends
        for start, stop, ends in decode_suspects(suspects)
        for offset in range(start, stop)
    }
    in_flight: list[int] = []
    if alone is not None:
        ends_of[alone] = ends_of.get(alone, 0) + 1
    else:
        end, _ = end_of(transaction.connection, place[1], place[2])
        stop = min(end, watermark + span_max, dispatched + 1)
        over = {offset for first, last in decode_runs(settled) for offset in range(first, last)}
        in_flight += [offset for offset in range(watermark, stop) if offset not in over]
        # A stored retry runs as soon as it is fetched.
        in_flight += (
            row[0]
            for row in execute(
                f"SELECT offset FROM attempts WHERE {at} AND offset >= ?", (*place, stop)
            )
            if row[0] not in over
        )
        for lane, head in execute(
            f"SELECT lane, head FROM lane WHERE {at} AND due_ms BETWEEN 0 AND ? "
            "ORDER BY due_ms LIMIT ?",
            (*place, now_ms, _IN_FLIGHT_MAX),
        ).fetchall():
            first = failures.parked(transaction.connection, place, lane, head - 1, 1)
            in_flight += [each.offset for each in first]
        in_flight += (
            row[0]
            for row in execute(
                "SELECT offset FROM command JOIN letter ON letter.id = command.letter WHERE "
                "command.consumer_group = ? AND command.topic = ? AND command.partition = ? "
                "AND command.kind = 'replay' ORDER BY command.id LIMIT ?",
                (*place, _IN_FLIGHT_MAX),
            )
        )
    for offset in in_flight:
        ends = ends_of.get(offset, 0)
        # It may have been anything else, so that it runs alone next: no more than that.
        ends_of[offset] = max(ends, min(ends + 1, ALONE_IN_GROUP))
    execute(f"UPDATE progress SET suspects = ? WHERE {at}", (_encode(runs_of(ends_of)), *place))


def leave(transaction: Transaction, group: str, member: str) -> None:
    """Give up all that a member owns."""
    transaction.execute(
        "UPDATE progress SET owner = NULL WHERE consumer_group = ? AND owner = ?",
        (group, member),
    )
    transaction.alters = True


_SETTLE = """
UPDATE progress SET watermark = ?1, settled = ?2, dispatched = ?3,
    suspects = coalesce(?4, suspects), alone = ?5,
    done = done + ?6, skipped = skipped + ?7, parked = parked + ?8, dead = dead + ?9,
    edited = edited + ?10
WHERE consumer_group = ?11 AND topic = ?12 AND partition = ?13 AND owner = ?14 AND epoch = ?15
    AND watermark <= ?1
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
        done, skipped, edited = _resolved(transaction.connection, settlement.letters)
        rows.append(
            (
                settlement.watermark,
                _encode(settlement.settled) if settlement.settled else _NO_RUNS,
                settlement.dispatched,
                None if settlement.suspects is None else _encode(settlement.suspects),
                settlement.alone,
                settlement.done + done,
                settlement.skipped + skipped,
                len(settlement.parked) - settlement.unparked,
                len(settlement.dead) - done - skipped - edited,
                edited,
                group,
                settlement.topic,
                settlement.partition,
                member,
                settlement.epoch,
            )
        )
    if transaction.executemany(_SETTLE, rows).rowcount != len(rows):
        raise _refused(transaction.connection, group, member, settlements)
    for settlement in settlements:
        failures.write(transaction, group, settlement, now_ms)
        if settlement.letters or settlement.released:
            operations.note(transaction, group, settlement, now_ms)
        if settlement.pause is not None:
            pause(transaction, group, settlement.pause)
    for settlement in settlements:
        for topic, records in settlement.published:
            transaction.append(topics[topic], records)


def _resolved(
    connection: sqlite3.Connection, changes: Sequence[LetterChange]
) -> tuple[int, int, int]:
    """How many letters of the account are resolved: done, skipped, or edited before."""
    outcomes = {each.id.bytes: each.outcome for each in changes if each.state == "resolved"}
    done = skipped = edited = 0
    for marks, part in in_parts(list(outcomes)):
        for letter, edited_from in connection.execute(
            f"SELECT id, edited_from FROM letter WHERE counted AND id IN ({marks})", part
        ):
            if edited_from is not None:
                edited += 1
            elif outcomes[letter] == "done":
                done += 1
            else:
                skipped += 1
    return done, skipped, edited


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
