"""What operators change: dead letters, operations and pauses; each with who, why and when.

Nothing here runs or moves an event. What concerns a lane becomes a command for the owner of its
partition, who carries it out under its epoch.
"""

import json
import sqlite3
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec

from eventlane.account import refuse_unknown_group
from eventlane.brokers.embedded import operations
from eventlane.brokers.embedded.caps import Caps
from eventlane.brokers.embedded.failures import LETTER, LETTER_COLUMNS, letter_from
from eventlane.brokers.embedded.groups import pause
from eventlane.brokers.embedded.letters import utc
from eventlane.brokers.embedded.log import LogTopic, end_of
from eventlane.brokers.embedded.parts import (
    Audited,
    audit,
    begin_part,
    parts,
    restart,
    return_untaken,
)
from eventlane.brokers.embedded.selection import Step, candidates, problem
from eventlane.brokers.embedded.steps import step
from eventlane.brokers.embedded.work import Transaction
from eventlane.errors import Conflict, NotFound, Refused
from eventlane.failure import DeadLetter
from eventlane.message import Position, Record, derived_id
from eventlane.replay import UNPACED, OperationKind, Pace

__all__ = [
    "By",
    "Edit",
    "Wanted",
    "begin",
    "cancel_operation",
    "edit",
    "pause_group",
    "pause_operation",
    "refuse_unknown",
    "republish",
    "resume_group",
    "resume_operation",
]

_encode_json = msgspec.json.Encoder().encode


class By(NamedTuple):
    """Who changes something, why and when."""

    actor: str
    reason: str
    now_ms: int


class Wanted(NamedTuple):
    """How an operation is to go."""

    kind: OperationKind
    replays_max: int
    """For groups that say nothing of it."""
    live: Container[str]
    """Groups with a live member."""
    pace: Pace = UNPACED
    allow_gap: bool = False
    query: str | None = None
    """What selected its letters: those that it cannot have are left out, where a named one is
    refused."""


def begin(
    transaction: Transaction, wanted: Wanted, steps: Mapping[str, Sequence[Step]], by: By
) -> int:
    """Write an operation with all that it is about, and take its first step in each group.

    Raises:
        Conflict: A letter that was named is being replayed by now, or has changed.
        Refused: A letter that was named, and is among the first thousand, cannot be had by now.
    """
    operation = transaction.execute(
        "INSERT INTO operation (kind, state, actor, reason, query, allow_gap, replays_max, "
        "rate_per_s, canary, pause_above, started_ms) "
        "VALUES (?, 'running', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            wanted.kind,
            by.actor,
            by.reason,
            wanted.query,
            wanted.allow_gap,
            wanted.replays_max,
            wanted.pace.rate_per_s,
            wanted.pace.canary,
            wanted.pace.pause_above,
            by.now_ms,
        ),
    ).lastrowid
    assert operation is not None
    for group, letters in steps.items():
        begin_part(transaction, operation, group, letters)
    for part in parts(transaction.connection, "operation = ?", operation):
        is_live = part.group in wanted.live
        step(transaction, part, by.now_ms, is_live=is_live, is_strict=wanted.query is None)
    return operation


class Edit(NamedTuple):
    """What is to be handled in the place of a letter."""

    letter: UUID
    version: int | None
    record: Record
    diff: str


def edit(transaction: Transaction, wanted: Edit, by: By, *, live: Container[str]) -> int:
    """See `Operators.edit`: the child takes the letter's place, and is replayed."""
    letter, record = wanted.letter, wanted.record
    parent = _letter(transaction, letter)
    (own,) = candidates(transaction.connection, json.dumps([parent.number]))
    found = problem(transaction.connection, own, "edit", 0, wanted.version)
    if found is not None:
        raise found.as_error()
    child = msgspec.structs.replace(
        parent.letter,
        id=derived_id("edited", letter.bytes, record.id),
        value=record.value,
        header_block=record.headers,
        event_id=UUID(bytes=record.id),
        causation_id=str(parent.letter.event_id),
        edited_from=letter,
        state="open",
        version=1,
        replay_count=0,
    )
    transaction.execute(
        "UPDATE letter SET state = 'edited', version = version + 1 WHERE number = ?",
        (parent.number,),
    )
    number = transaction.execute(
        "INSERT INTO letter (id, consumer_group, topic, partition, offset, lane, handler, key, "
        "event_type, error_class, fingerprint, app_version, on_dead, state, version, "
        "replay_count, counted, dead_ms, edited_from) SELECT ?, consumer_group, topic, partition, "
        "offset, lane, handler, key, event_type, error_class, fingerprint, app_version, on_dead, "
        "'open', 1, 0, counted, dead_ms, id FROM letter WHERE number = ?",
        (child.id.bytes, parent.number),
    ).lastrowid
    transaction.execute(
        "INSERT INTO envelope (number, letter) VALUES (?, ?)",
        (number, _encode_json(child).decode()),
    )
    steps = {child.group: [Step(json.dumps([number]))]}
    operation = begin(transaction, Wanted("edit", 0, live), steps, by)
    audit(
        transaction,
        Audited("edit", by.actor, by.reason, by.now_ms, operation, wanted.diff),
        [(child.group, parent.number)],
    )
    return operation


def republish(
    transaction: Transaction,
    letter: UUID,
    record: Record,
    topic: LogTopic,
    by: By,
    *,
    caps: Caps,
) -> Position:
    """See `Operators.republish`."""
    original = _letter(transaction, letter)
    caps.check(transaction, topic.name, [record], by.now_ms)
    (partition,) = transaction.append(topic, [record])
    end, _ = end_of(transaction.connection, topic.name, partition)
    position = Position(topic.name, partition, end - 1)
    audit(
        transaction,
        Audited(
            "republish",
            by.actor,
            by.reason,
            by.now_ms,
            detail=f"event {UUID(bytes=record.id)} at {topic.name}[{partition}]:{end - 1}",
        ),
        [(original.letter.group, original.number)],
    )
    return position


class _Stored(NamedTuple):
    number: int
    letter: DeadLetter


def _letter(transaction: Transaction, letter: UUID) -> _Stored:
    row = transaction.execute(
        f"SELECT letter.number, {LETTER_COLUMNS} FROM {LETTER} WHERE letter.id = ?",
        (letter.bytes,),
    ).fetchone()
    if row is None:
        raise NotFound(f"dead letter {letter}: there is none; nothing was changed")
    return _Stored(row[0], letter_from(row[1:]))


# --- operations -------------------------------------------------------------------------------


def pause_operation(transaction: Transaction, operation: int, by: By) -> None:
    """See `Operators.pause_operation`."""
    _set_state(transaction, operation, "paused", ("running",), by)
    _note_operation(transaction, "pause", operation, by)


def resume_operation(
    transaction: Transaction, operation: int, by: By, *, live: Container[str]
) -> None:
    """See `Operators.resume_operation`."""
    _set_state(transaction, operation, "running", ("paused",), by)
    restart(transaction, operation)
    _note_operation(transaction, "resume", operation, by)
    for part in parts(transaction.connection, "operation = ?", operation):
        step(transaction, part, by.now_ms, is_live=part.group in live)


def cancel_operation(transaction: Transaction, operation: int, by: By) -> None:
    """See `Operators.cancel_operation`; of many letters the first thousand are returned here."""
    _set_state(transaction, operation, "cancelled", ("running", "paused"), by)
    _note_operation(transaction, "cancel", operation, by)
    for part in parts(transaction.connection, "operation = ?", operation):
        return_untaken(transaction, part)
    operations.go_on(transaction, operation, by.now_ms)


def _set_state(
    transaction: Transaction, operation: int, state: str, before: Sequence[str], by: By
) -> None:
    row = transaction.execute(
        "SELECT state, ended_ms FROM operation WHERE id = ?", (operation,)
    ).fetchone()
    if row is None:
        raise NotFound(f"operation {operation}: there is none")
    expected = " or ".join(before)
    if row[0] == state:
        who = _who_changed(transaction, "operation = ?", operation)
        raise Conflict(
            f"operation {operation}: expected one that is {expected}, got one that is "
            f"{state} already{who}; nothing was changed"
        )
    if row[0] not in before:
        raise Refused(
            f"operation {operation}: expected one that is {expected}, got one that is {row[0]}; "
            "nothing was changed"
        )
    transaction.execute(
        "UPDATE operation SET state = ?, why = ? WHERE id = ?",
        (state, None if state == "running" else f"{by.reason} ({by.actor})", operation),
    )


def _who_changed(transaction: Transaction, condition: str, value: object) -> str:
    """Who changed it last, and when; empty if that is not known."""
    changed = transaction.execute(
        f"SELECT actor, at_ms FROM audit WHERE {condition} AND letter IS NULL "
        "ORDER BY id DESC LIMIT 1",
        (value,),
    ).fetchone()
    return f" ({changed[0]}, {utc(changed[1]).isoformat(timespec='seconds')})" if changed else ""


def _note_operation(transaction: Transaction, action: str, operation: int, by: By) -> None:
    groups = transaction.execute(
        "SELECT consumer_group FROM operation_part WHERE operation = ?", (operation,)
    ).fetchall()
    audit(
        transaction,
        Audited(action, by.actor, by.reason, by.now_ms, operation),
        [(row[0], None) for row in groups],
    )


# --- groups -----------------------------------------------------------------------------------


def pause_group(transaction: Transaction, group: str, by: By) -> None:
    """See `Operators.pause`."""
    before = _pause_of(transaction, group)
    if before is not None:
        who = _who_changed(transaction, _PAUSES, group)
        raise Conflict(
            f"group {group!r}: expected one that is not paused, got one that is paused "
            f"already{who}: {before}. Nothing was changed"
        )
    pause(transaction, group, by.reason)
    audit(transaction, Audited("pause", *by), [(group, None)])


def resume_group(transaction: Transaction, group: str, by: By, *, live: Container[str]) -> None:
    """See `Operators.resume`."""
    if _pause_of(transaction, group) is None:
        who = _who_changed(transaction, _PAUSES, group)
        raise Conflict(
            f"group {group!r}: expected one that is paused, got one that is not{who}; "
            "nothing was changed"
        )
    transaction.execute("UPDATE consumer_group SET paused = NULL WHERE name = ?", (group,))
    transaction.alters = True
    audit(transaction, Audited("resume", *by), [(group, None)])
    # Its operations have released nothing meanwhile.
    operations.advance(transaction, group, by.now_ms, is_live=group in live)


_PAUSES = "consumer_group = ? AND operation IS NULL AND action IN ('pause', 'resume')"


def _pause_of(transaction: Transaction, group: str) -> str | None:
    """Why a group is paused; None: it is not."""
    refuse_unknown(transaction.connection, group)
    (reason,) = transaction.execute(
        "SELECT paused FROM consumer_group WHERE name = ?", (group,)
    ).fetchone()
    return None if reason is None else str(reason)


def refuse_unknown(connection: sqlite3.Connection, group: str) -> None:
    """Refuse a group that does not exist.

    Raises:
        NotFound: It does not; the message has the nearest.
    """
    names = [row[0] for row in connection.execute("SELECT name FROM consumer_group")]
    refuse_unknown_group(group, names)
