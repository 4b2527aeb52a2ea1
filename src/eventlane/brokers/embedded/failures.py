"""What is kept of events that fail: attempts, parked events, dead letters, commands.

The part that a partition's owner writes and reads; what operators do is in `operators.py`.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec

from eventlane.brokers.embedded.work import Transaction, in_parts
from eventlane.failure import Attempts, DeadLetter
from eventlane.message import Record
from eventlane.settlement import Command, CommandKind, LaneState, LetterChange, Parked, Settlement

__all__ = [
    "AT",
    "LETTER",
    "LETTER_COLUMNS",
    "Place",
    "commands",
    "decode_attempts",
    "decode_offsets",
    "due_lanes",
    "lanes",
    "lanes_at_acquisition",
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
decode_attempts = msgspec.json.Decoder(Attempts).decode
"""Reads the column `attempts`."""
_encode = msgspec.msgpack.Encoder().encode
_decode_records = msgspec.msgpack.Decoder(list[tuple[int, Record]]).decode
decode_offsets = msgspec.msgpack.Decoder(tuple[int, ...]).decode
"""Reads the columns `blockers` and `gaps`."""
_NO_OFFSETS = _encode(())
_ROW_BYTES_MAX = 1 << 18
"""What one row of the parking store holds, about: a row is read as a whole."""

AT = "consumer_group = ? AND topic = ? AND partition = ?"
"""Finds the rows of a `Place`."""

LETTER = "letter JOIN envelope ON envelope.number = letter.number"
LETTER_COLUMNS = (
    "envelope.letter, letter.id, letter.consumer_group, letter.on_dead, letter.state, "
    "letter.version, letter.replay_count"
)


def letter_from(row: Sequence[Any], parked_followers: int = 0) -> DeadLetter:
    """A letter from its `LETTER_COLUMNS`: as it died, with what has changed since."""
    envelope, letter_id, group, on_dead, state, version, replay_count = row
    return msgspec.structs.replace(
        _decode_letter(envelope),
        id=UUID(bytes=letter_id),
        group=group,
        on_dead=on_dead,
        state=state,
        version=version,
        replay_count=replay_count,
        parked_followers=parked_followers,
    )


# --- what an owner reads ----------------------------------------------------------------------

_LANE_COLUMNS = "lane, parked, head, due_ms, blockers, stops, gaps, operation"
_LANE_SIZE = _LANE_COLUMNS.count(",") + 1


def _lane_from(row: Sequence[Any]) -> LaneState:
    lane, parked_count, head, due_ms, blockers, stops, gaps, operation = row
    return LaneState(
        lane=lane,
        parked=parked_count,
        head=head,
        due_ms=due_ms,
        blockers=() if blockers == _NO_OFFSETS else decode_offsets(blockers),
        stops=bool(stops),
        gaps=() if gaps == _NO_OFFSETS else decode_offsets(gaps),
        operation=operation,
    )


def stored_attempts(
    connection: sqlite3.Connection, place: Place, watermark: int
) -> tuple[Attempts, ...]:
    """The attempts of all events above the watermark that are not at their end."""
    rows = connection.execute(
        f"SELECT attempts FROM attempts WHERE {AT} AND offset >= ? ORDER BY offset",
        (*place, watermark),
    )
    return tuple(decode_attempts(row[0]) for row in rows)


def lanes_at_acquisition(
    connection: sqlite3.Connection, place: Place, count_max: int
) -> tuple[tuple[LaneState, ...], bool]:
    """The lanes to begin with, and whether there are more."""
    found: list[LaneState] = []
    # What stops the partition is among the closed ones, and must not be missed. The indexes are
    # named: SQLite would rather read all lanes of the partition.
    for index, condition in (
        ("lane_that_stops", "due_ms IS NULL AND stops"),
        ("lane_by_due", "due_ms >= 0 ORDER BY due_ms, lane"),
        ("lane_by_due", "due_ms IS NULL AND NOT stops"),
        ("lane_by_due", "due_ms = -1"),
    ):
        found += map(
            _lane_from,
            connection.execute(
                f"SELECT {_LANE_COLUMNS} FROM lane INDEXED BY {index} "
                f"WHERE {AT} AND {condition} LIMIT ?",
                (*place, count_max + 1 - len(found)),
            ),
        )
    return tuple(found[:count_max]), len(found) > count_max


def lanes(
    connection: sqlite3.Connection, place: Place, wanted: Sequence[bytes | int]
) -> list[LaneState]:
    """See `Consumer.fetch_lanes`."""
    found: list[LaneState] = []
    for marks, part in in_parts(wanted):
        rows = connection.execute(
            f"SELECT {_LANE_COLUMNS} FROM lane WHERE {AT} AND lane IN ({marks})", (*place, *part)
        )
        found += map(_lane_from, rows)
    return found


def due_lanes(connection: sqlite3.Connection, place: Place, count_max: int) -> list[LaneState]:
    """See `Consumer.fetch_due_lanes`."""
    rows = connection.execute(
        f"SELECT {_LANE_COLUMNS} FROM lane WHERE {AT} AND due_ms >= 0 "
        "ORDER BY due_ms, lane LIMIT ?",
        (*place, count_max),
    )
    return [_lane_from(row) for row in rows]


# LEFT JOINs: for most letters there is no row in `attempts`, and for some none in `lane`.
_COMMANDS = f"""
SELECT command.id, command.kind, command.operation, attempts.attempts,
    EXISTS (
        SELECT 1 FROM operation_part AS part
        JOIN operation_letter AS failed INDEXED BY operation_letter_failed ON failed.part = part.id
        WHERE part.operation = command.operation
        AND part.consumer_group = command.consumer_group AND failed.topic = command.topic
        AND failed.partition = command.partition AND failed.lane = letter.lane
        AND failed.offset < letter.offset AND failed.state = 'failed'
    ),
    {", ".join(f"lane.{name}" for name in _LANE_COLUMNS.split(", "))}, {LETTER_COLUMNS}
FROM command JOIN letter ON letter.id = command.letter
JOIN envelope ON envelope.number = letter.number
LEFT JOIN lane ON lane.consumer_group = command.consumer_group
    AND lane.topic = command.topic AND lane.partition = command.partition
    AND lane.lane = letter.lane
LEFT JOIN attempts ON attempts.consumer_group = command.consumer_group
    AND attempts.topic = command.topic AND attempts.partition = command.partition
    AND attempts.offset = letter.offset
WHERE command.consumer_group = ? AND command.topic = ? AND command.partition = ? AND command.id > ?
ORDER BY command.id LIMIT ?
"""


def commands(
    connection: sqlite3.Connection, place: Place, *, after: int, count_max: int
) -> list[Command]:
    """What operators ask of a partition's owner, the oldest first, with ids above `after`."""
    rows = connection.execute(_COMMANDS, (*place, after, count_max)).fetchall()
    return [_command_from(*row) for row in rows]


def _command_from(
    command_id: int,
    kind: CommandKind,
    operation: int | None,
    attempts: str | None,
    behind: int,
    *row: Any,
) -> Command:
    lane, letter = row[:_LANE_SIZE], row[_LANE_SIZE:]
    return Command(
        id=command_id,
        kind=kind,
        letter=letter_from(letter),
        operation=operation,
        attempts=None if attempts is None else decode_attempts(attempts),
        lane=None if lane[0] is None else _lane_from(lane),
        behind=bool(behind),
    )


def newest_command(connection: sqlite3.Connection) -> int:
    """The highest id of all commands that are not carried out; 0 for none."""
    newest: int = connection.execute("SELECT coalesce(max(id), 0) FROM command").fetchone()[0]
    return newest


def parked(
    connection: sqlite3.Connection, place: Place, lane: bytes | int, after: int, count_max: int
) -> list[Parked]:
    """See `Consumer.fetch_parked`."""
    rows = connection.execute(
        f"SELECT records FROM parked WHERE {AT} AND lane = ? AND last_offset > ? "
        "ORDER BY first_offset",
        (*place, lane, after),
    )
    found: list[tuple[int, Record]] = []
    size_bytes = 0
    for (records,) in rows:
        found += [each for each in _decode_records(records) if each[0] > after]
        size_bytes += len(records)
        if len(found) >= count_max or (found and size_bytes >= _ROW_BYTES_MAX):
            break
    attempts = {
        each.offset: each
        for (text,) in connection.execute(
            f"SELECT attempts FROM attempts INDEXED BY attempts_by_lane WHERE {AT} AND lane = ?",
            (*place, lane),
        )
        for each in (decode_attempts(text),)
    }
    return [Parked(offset, record, attempts.get(offset)) for offset, record in found[:count_max]]


# --- what an owner writes ---------------------------------------------------------------------


def write(
    transaction: Transaction, group: str, settlement: Settlement, now_ms: int
) -> dict[UUID, UUID]:
    """Write what a settlement says of failures; its counters are written with the watermark.

    Returns the ids of letters that the store knows by another one.
    """
    place = (group, settlement.topic, settlement.partition)
    ids: dict[UUID, UUID] = {}
    many = transaction.executemany
    if settlement.attempts:
        many(
            "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?)",
            [
                (*place, attempts.offset, attempts.lane, _encode_json(attempts).decode())
                for attempts in settlement.attempts
            ],
        )
    if settlement.cleared:
        _delete(transaction, f"attempts WHERE {AT} AND offset", settlement.cleared, place)
    if settlement.parked:
        many(
            "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*place, *row) for row in _parked_rows(settlement.parked)],
        )
    if settlement.lanes:
        _write_lanes(transaction, place, settlement.lanes)
    if settlement.dead:
        ids = _bury(transaction, place, settlement.dead, now_ms)
    if settlement.letters:
        _change_letters(transaction, settlement.letters, now_ms)
    if settlement.commands:
        _delete(transaction, "command WHERE id", settlement.commands)
    return ids


def _delete(
    transaction: Transaction, of: str, values: Sequence[object], others: Sequence[object] = ()
) -> None:
    for marks, part in in_parts(values):
        transaction.execute(f"DELETE FROM {of} IN ({marks})", (*others, *part))


def _parked_rows(
    events: Sequence[tuple[bytes | int, int, Record]],
) -> Iterator[tuple[bytes | int, int, int, bytes]]:
    """A row for each lane: lane, first and last offset, records."""
    of_lane: dict[bytes | int, list[tuple[int, Record]]] = {}
    for lane, offset, record in events:
        of_lane.setdefault(lane, []).append((offset, record))
    for lane, records in of_lane.items():
        start = 0
        while start < len(records):
            stop = start
            size_bytes = 0
            while stop < len(records) and size_bytes < _ROW_BYTES_MAX:
                size_bytes += len(records[stop][1].value or b"") + len(records[stop][1].headers)
                stop += 1
            part = records[start:stop]
            yield lane, part[0][0], part[-1][0], _encode(part)
            start = stop


def _write_lanes(transaction: Transaction, place: Place, states: Sequence[LaneState]) -> None:
    transaction.executemany(
        f"DELETE FROM parked WHERE {AT} AND lane = ? AND last_offset < ?",
        [(*place, state.lane, state.head) for state in states if state.parked],
    )
    emptied = [state.lane for state in states if not state.parked]
    _delete(transaction, f"parked WHERE {AT} AND lane", emptied, place)
    gone = [state.lane for state in states if state.is_free and not state.gaps]
    _delete(transaction, f"lane WHERE {AT} AND lane", gone, place)
    kept = [
        (
            *place,
            state.lane,
            state.parked,
            state.head,
            -1 if state.is_free else None if state.blockers else state.due_ms,
            _encode(state.blockers) if state.blockers else _NO_OFFSETS,
            state.stops,
            _encode(state.gaps) if state.gaps else _NO_OFFSETS,
            state.operation,
        )
        for state in states
        if not state.is_free or state.gaps
    ]
    if kept:
        transaction.executemany(
            "INSERT OR REPLACE INTO lane VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept
        )


# An event has one letter for each handler: it cannot die twice before its letter was resolved, and
# if its group was reset in between, the letter opens again. Two statements, since an upsert would
# force its way of meeting conflicts upon the triggers.
_BURY = """
INSERT INTO letter (id, consumer_group, topic, partition, offset, lane, handler, key, event_type,
    error_class, fingerprint, app_version, on_dead, state, version, replay_count, dead_ms,
    edited_from)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_OPEN_AGAIN = """
UPDATE letter SET state = 'open', version = version + 1, counted = 1, edited_from = NULL,
    lane = ?, on_dead = ?, error_class = ?, fingerprint = ?, app_version = ?, dead_ms = ?
WHERE id = ?
"""


def _bury(
    transaction: Transaction, place: Place, letters: Sequence[DeadLetter], now_ms: int
) -> dict[UUID, UUID]:
    """Write letters; returns the ids of those that the store knows by another one."""
    opened, ids = _ids(transaction.connection, place, letters)
    buried = [
        msgspec.structs.replace(each, id=ids[each.id]) if each.id in ids else each
        for each in letters
    ]
    transaction.executemany(
        _BURY, [_letter_row(each, now_ms) for each in buried if each.id not in opened]
    )
    transaction.executemany(
        _OPEN_AGAIN,
        [
            (
                *(each.lane, each.on_dead, each.error_class, each.fingerprint, each.app_version),
                *(now_ms, each.id.bytes),
            )
            for each in buried
            if each.id in opened
        ],
    )
    transaction.executemany(
        "INSERT OR REPLACE INTO envelope SELECT number, ? FROM letter WHERE id = ?",
        [(_encode_json(each).decode(), each.id.bytes) for each in buried],
    )
    return ids


def _ids(
    connection: sqlite3.Connection, place: Place, letters: Sequence[DeadLetter]
) -> tuple[set[UUID], dict[UUID, UUID]]:
    """Which letters open again, and what ids the store has in place of their own.

    A letter has the id under which its event died first, though its group has another name by now;
    and no id that another one has, as one of a group had which once had this name.
    """
    opened: dict[tuple[int, str], UUID] = {}
    for marks, part in in_parts([each.offset for each in letters]):
        opened |= {
            (offset, handler): UUID(bytes=letter)
            for offset, handler, letter in connection.execute(
                f"SELECT offset, handler, id FROM letter WHERE {AT} AND offset IN ({marks}) "
                "AND state != 'edited'",
                (*place, *part),
            )
        }
    taken: set[UUID] = set()
    for marks, part in in_parts([each.id.bytes for each in letters]):
        taken |= {
            UUID(bytes=row[0])
            for row in connection.execute(f"SELECT id FROM letter WHERE id IN ({marks})", part)
        }
    own = {
        each.id: opened.get((each.offset, each.handler))
        or (uuid4() if each.id in taken else each.id)
        for each in letters
    }
    return set(opened.values()), {given: kept for given, kept in own.items() if given != kept}


def _letter_row(letter: DeadLetter, now_ms: int) -> tuple[object, ...]:
    return (
        letter.id.bytes,
        letter.group,
        letter.topic,
        letter.partition,
        letter.offset,
        letter.lane,
        letter.handler,
        letter.key,
        letter.event_type,
        letter.error_class,
        letter.fingerprint,
        letter.app_version,
        letter.on_dead,
        letter.state,
        letter.version,
        letter.replay_count,
        now_ms,
        None if letter.edited_from is None else letter.edited_from.bytes,
    )


def _change_letters(transaction: Transaction, changes: Sequence[LetterChange], now_ms: int) -> None:
    alike: dict[tuple[str, bool], list[bytes]] = {}
    for change in changes:
        alike.setdefault((change.state, change.outcome == "dead"), []).append(change.id.bytes)
    for states, ids in alike.items():
        for marks, part in in_parts(ids):
            transaction.execute(
                "UPDATE letter SET state = ?, version = version + 1, "
                f"replay_count = replay_count + ? WHERE id IN ({marks})",
                (*states, *part),
            )
    failed = [change.failed for change in changes if change.failed is not None]
    if not failed:
        return
    # How it blocks its lane stays as it was when it died first, whatever the policy says now.
    transaction.executemany(
        "UPDATE letter SET error_class = ?, fingerprint = ?, app_version = ?, dead_ms = ? "
        "WHERE id = ?",
        [
            (each.error_class, each.fingerprint, each.app_version, now_ms, each.id.bytes)
            for each in failed
        ],
    )
    transaction.executemany(
        "UPDATE envelope SET letter = ? WHERE number = (SELECT number FROM letter WHERE id = ?)",
        [(_encode_json(each).decode(), each.id.bytes) for each in failed],
    )
