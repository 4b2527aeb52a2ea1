"""What is kept of events that fail: attempts, parked events, dead letters, commands.

The part that a partition's owner writes and reads; what operators do is in `operators.py`.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import msgspec

from eventlane.brokers.embedded.work import Transaction
from eventlane.failure import Attempts, DeadLetter
from eventlane.message import Record
from eventlane.settlement import Command, LaneState, LetterChange, Settlement

__all__ = [
    "LETTER_COLUMNS",
    "Place",
    "commands",
    "lanes",
    "letter_from",
    "newest_command",
    "parked",
    "stored_attempts",
    "write",
]

Place = tuple[str, str, int]
"""Group, topic, partition."""

_encode_json = msgspec.json.Encoder().encode
_decode_letter = msgspec.json.Decoder(DeadLetter).decode
_decode_attempts = msgspec.json.Decoder(Attempts).decode
_encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(Record).decode

_AT = "consumer_group = ? AND topic = ? AND partition = ?"

LETTER_COLUMNS = (
    "letter.envelope, letter.id, letter.on_dead, letter.state, letter.version, letter.replay_count"
)


def letter_from(row: Sequence[Any], parked_followers: int = 0) -> DeadLetter:
    """A letter from its `LETTER_COLUMNS`: as it died, with what has changed since."""
    envelope, letter_id, on_dead, state, version, replay_count = row
    return msgspec.structs.replace(
        _decode_letter(envelope),
        id=UUID(bytes=letter_id),
        on_dead=on_dead,
        state=state,
        version=version,
        replay_count=replay_count,
        parked_followers=parked_followers,
    )


# --- what an owner reads ----------------------------------------------------------------------


def stored_attempts(connection: sqlite3.Connection, place: Place) -> tuple[Attempts, ...]:
    """The attempts of all events of a partition that are not at their end."""
    rows = connection.execute(f"SELECT attempts FROM attempts WHERE {_AT} ORDER BY offset", place)
    return tuple(_decode_attempts(row[0]) for row in rows)


def lanes(connection: sqlite3.Connection, place: Place) -> tuple[LaneState, ...]:
    """The lanes of a partition that are not free."""
    parked_of: dict[bytes | None, int] = dict(
        connection.execute(f"SELECT key, count(*) FROM parked WHERE {_AT} GROUP BY key", place)
    )
    blockers: dict[bytes | None, list[int]] = {}
    stops: set[bytes | None] = set()
    for key, offset, on_dead in connection.execute(
        f"SELECT key, offset, on_dead FROM letter WHERE {_AT} "
        "AND state IN ('open', 'replaying') AND on_dead != 'continue' ORDER BY offset",
        place,
    ):
        blockers.setdefault(key, []).append(offset)
        if on_dead == "stop":
            stops.add(key)
    return tuple(
        LaneState(
            key=key,
            parked=parked_of.get(key, 0),
            blockers=tuple(blockers.get(key, ())),
            stops=key in stops,
        )
        for key in parked_of.keys() | blockers.keys()
    )


def commands(connection: sqlite3.Connection, place: Place, *, after: int) -> Iterator[Command]:
    """What operators ask of a partition's owner, the oldest first, with ids above `after`."""
    rows = connection.execute(
        f"SELECT command.id, command.kind, {LETTER_COLUMNS} "
        "FROM command JOIN letter ON letter.id = command.letter "
        "WHERE command.consumer_group = ? AND command.topic = ? AND command.partition = ? "
        "AND command.id > ? ORDER BY command.id",
        (*place, after),
    ).fetchall()
    for command_id, kind, *letter in rows:
        yield Command(id=command_id, kind=kind, letter=letter_from(letter))


def newest_command(connection: sqlite3.Connection) -> int:
    """The highest id of all commands that are not carried out; 0 for none."""
    newest: int = connection.execute("SELECT coalesce(max(id), 0) FROM command").fetchone()[0]
    return newest


def parked(
    connection: sqlite3.Connection, place: Place, key: bytes | None, after: int, count_max: int
) -> list[tuple[int, Record]]:
    """See `Consumer.fetch_parked`."""
    rows = connection.execute(
        f"SELECT offset, record FROM parked WHERE {_AT} AND key IS ? AND offset > ? "
        "ORDER BY offset LIMIT ?",
        (*place, key, after, count_max),
    )
    return [(offset, _decode_record(record)) for offset, record in rows]


# --- what an owner writes ---------------------------------------------------------------------


def write(transaction: Transaction, group: str, settlement: Settlement, now_ms: int) -> None:
    """Write what a settlement says of failures; its counters are written with the watermark."""
    place = (group, settlement.topic, settlement.partition)
    many = transaction.executemany
    if settlement.attempts:
        many(
            "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?)",
            [
                (*place, attempts.offset, _encode_json(attempts).decode())
                for attempts in settlement.attempts
            ],
        )
    if settlement.cleared:
        many(
            f"DELETE FROM attempts WHERE {_AT} AND offset = ?",
            [(*place, offset) for offset in settlement.cleared],
        )
    if settlement.unparked:
        many(
            f"DELETE FROM parked WHERE {_AT} AND offset = ?",
            [(*place, offset) for offset in settlement.unparked],
        )
    if settlement.parked:
        many(
            "INSERT INTO parked (consumer_group, topic, partition, offset, key, record) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [
                (*place, offset, record.key, _encode_record(record))
                for offset, record in settlement.parked
            ],
        )
    if settlement.dead:
        many(_BURY, [_letter_row(letter, now_ms) for letter in settlement.dead])
    if settlement.letters:
        for change in settlement.letters:
            _change_letter(transaction, change)
    if settlement.commands:
        many("DELETE FROM command WHERE id = ?", [(command,) for command in settlement.commands])


# An event has one letter for each handler: it cannot die twice before its letter was resolved, and
# if its group was reset in between, the letter opens again.
_BURY = """
INSERT INTO letter (id, consumer_group, topic, partition, offset, handler, key, on_dead, state,
    version, replay_count, dead_ms, envelope)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (consumer_group, topic, partition, offset, handler) DO UPDATE SET
    state = 'open', version = version + 1, on_dead = excluded.on_dead,
    dead_ms = excluded.dead_ms, envelope = excluded.envelope
"""


def _letter_row(letter: DeadLetter, now_ms: int) -> tuple[object, ...]:
    return (
        letter.id.bytes,
        letter.group,
        letter.topic,
        letter.partition,
        letter.offset,
        letter.handler,
        letter.key,
        letter.on_dead,
        letter.state,
        letter.version,
        letter.replay_count,
        now_ms,
        _encode_json(letter).decode(),
    )


def _change_letter(transaction: Transaction, change: LetterChange) -> None:
    transaction.execute(
        "UPDATE letter SET state = ?, version = version + 1, replay_count = replay_count + ? "
        "WHERE id = ?",
        (change.state, change.state == "open", change.id.bytes),
    )
    if change.failed is not None:
        # How it blocks its lane stays as it was when it died first: semantics, Dead letters.
        transaction.execute(
            "UPDATE letter SET envelope = ? WHERE id = ?",
            (_encode_json(change.failed).decode(), change.id.bytes),
        )
