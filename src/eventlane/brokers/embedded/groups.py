"""Groups: where they start, and how far they are in each partition.

One row for each (group, topic, partition) says all of it. An owner writes it under its epoch; the
epoch grows with every change of owner, so that what a former owner settles finds no row to write.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from eventlane.brokers.embedded import failures, operations, owners
from eventlane.brokers.embedded.log import LogTopic, end_of, start_of
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.parts import Audited, audit, owner
from eventlane.brokers.embedded.work import Transaction, in_parts
from eventlane.errors import ConfigError, EventlaneError, Fenced
from eventlane.notice import with_letter_id
from eventlane.settlement import GroupSpec, LetterChange, Settlement
from eventlane.topic import DLQ_SUFFIX

__all__ = ["check_options", "join", "pause", "seen", "settle"]

_encode = msgspec.msgpack.Encoder().encode
_NO_RUNS = _encode(())


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
    is_new, differs = check_options(transaction.connection, spec, member=member, members=members)
    if is_new:
        transaction.execute(
            "INSERT INTO consumer_group (name, start, ordering, on_dead, app, created_ms, seen_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (spec.name, spec.start, spec.ordering, spec.on_dead, spec.app, now_ms, now_ms),
        )
    elif differs:
        transaction.execute(
            "UPDATE consumer_group SET ordering = ?, on_dead = ?, app = ? WHERE name = ?",
            (spec.ordering, spec.on_dead, spec.app, spec.name),
        )
    transaction.execute(
        "UPDATE consumer_group SET replays_max = coalesce(?, replays_max) WHERE name = ?",
        (spec.replays_max, spec.name),
    )
    seen(transaction, [spec.name], now_ms)
    owners.register(transaction, spec, member, members.app_of)
    starts_now = is_new and spec.start == "now"
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


def check_options(
    connection: sqlite3.Connection, spec: GroupSpec, *, member: str, members: Members
) -> tuple[bool, bool]:
    """Whether a group is new, and whether its stored options differ from these.

    Raises:
        ConfigError: Live members run it with other options, or what it has stored allows no others.
    """
    row = connection.execute(
        "SELECT ordering, on_dead FROM consumer_group WHERE name = ?", (spec.name,)
    ).fetchone()
    if row is None:
        return True, False
    if tuple(row) == (spec.ordering, spec.on_dead):
        return False, False
    _refuse_other_options(spec, row, member, members)
    if row[0] != spec.ordering:
        _refuse_other_lanes(connection, spec, row[0])
    return False, True


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


def _refuse_other_lanes(connection: sqlite3.Connection, spec: GroupSpec, ordering: str) -> None:
    """What waits in lanes of one kind would not be found again in lanes of another."""
    waits = connection.execute(
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
    # An event with attempts is taken for the first of its lane: in lanes of fewer events it still
    # is, in wider ones it might pass others.
    is_wider = _WIDTH.index(spec.ordering) > _WIDTH.index(ordering)
    if (
        is_wider
        and connection.execute(
            "SELECT 1 FROM attempts WHERE consumer_group = ? LIMIT 1", (spec.name,)
        ).fetchone()
    ):
        raise ConfigError(
            f"group {spec.name!r}: expected ordering={ordering!r}, under which events wait for "
            f"their next attempt, got {spec.ordering!r}, by which they could pass earlier ones; "
            "let them end first, or reset the group"
        )


_WIDTH = ("none", "key", "partition")
"""Orderings, by how many events are one lane."""


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
    ids: dict[UUID, UUID] = {}
    for settlement in settlements:
        ids |= failures.write(transaction, group, settlement, now_ms)
        if settlement.letters or settlement.released:
            operations.note(transaction, group, settlement, now_ms)
        if settlement.pause is not None:
            _pause_by_handler(transaction, group, settlement.pause, now_ms)
    for settlement in settlements:
        for topic, records in settlement.published:
            is_notice = ids and topic.endswith(DLQ_SUFFIX)
            told = [with_letter_id(each, ids) for each in records] if is_notice else records
            transaction.append(topics[topic], told)


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
) -> EventlaneError:
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
        return EventlaneError(
            f"group {group!r}: expected a watermark that does not go down; nothing was written. "
            "This is a bug in Eventlane: please report it with this message"
        )
    places = ", ".join(f"{topic}/{partition}" for topic, partition in stale)
    return Fenced(
        f"group {group!r}: another process owns {places} by now; nothing was written",
        partitions=stale,
    )


def pause(transaction: Transaction, group: str, reason: str) -> bool:
    """Pause a group, unless it is paused already; whether it was not."""
    transaction.alters = True
    return bool(
        transaction.execute(
            "UPDATE consumer_group SET paused = ? WHERE name = ? AND paused IS NULL",
            (reason, group),
        ).rowcount
    )


def _pause_by_handler(transaction: Transaction, group: str, reason: str, now_ms: int) -> None:
    # Several may want it at once: the first reason stays.
    if pause(transaction, group, reason):
        audit(transaction, Audited("pause", owner(group), reason, now_ms), [(group, None)])
