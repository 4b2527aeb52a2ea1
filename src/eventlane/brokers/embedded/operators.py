"""What operators change: the state of dead letters, and pauses; each with who, why and when.

Nothing here runs or moves an event. What concerns a lane becomes a command for the owner of its
partition, who carries it out under its epoch.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from eventlane.brokers.embedded.failures import LETTER_COLUMNS, letter_from
from eventlane.brokers.embedded.groups import pause
from eventlane.brokers.embedded.work import Transaction
from eventlane.errors import Conflict, NotFound, Refused
from eventlane.failure import DeadLetter, LetterState

__all__ = [
    "By",
    "archive",
    "dead_letters",
    "letters_of_operation",
    "pause_group",
    "replay",
    "resume_group",
]


class By(NamedTuple):
    """Who changes something, why and when."""

    actor: str
    reason: str
    now_ms: int


class _Letter(NamedTuple):
    id: bytes
    group: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    on_dead: str
    state: LetterState


def replay(transaction: Transaction, ids: Sequence[UUID], by: By) -> int:
    """See `Operators.replay`.

    Raises:
        Refused: Also where an earlier letter keeps the lane closed and is not among them.
    """
    letters = _open_letters(transaction, ids, "replayed")
    chosen = {letter.id for letter in letters}
    for letter in letters:
        _refuse_gap(transaction, letter, chosen)
    operation = _begin(transaction, "replay", letters, by)
    for letter in letters:
        _change_state(transaction, letter, "replaying")
        _command(transaction, "replay", letter)
    return operation


def archive(transaction: Transaction, ids: Sequence[UUID], by: By) -> int:
    """See `Operators.archive`."""
    letters = _open_letters(transaction, ids, "archived")
    operation = _begin(transaction, "archive", letters, by)
    for letter in letters:
        _change_state(transaction, letter, "archived")
        transaction.execute(
            "UPDATE progress SET dead = dead - 1, archived = archived + 1 "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (letter.group, letter.topic, letter.partition),
        )
        if letter.on_dead != "continue":
            _command(transaction, "open", letter)
    return operation


def pause_group(transaction: Transaction, group: str, by: By) -> None:
    """See `Operators.pause`."""
    _refuse_unknown_group(transaction, group)
    pause(transaction, group, by.reason)
    _note(transaction, "pause", by, group)


def resume_group(transaction: Transaction, group: str, by: By) -> None:
    """See `Operators.resume`."""
    _refuse_unknown_group(transaction, group)
    transaction.execute("UPDATE consumer_group SET paused = NULL WHERE name = ?", (group,))
    transaction.alters = True
    _note(transaction, "resume", by, group)


def _open_letters(transaction: Transaction, ids: Sequence[UUID], verb: str) -> list[_Letter]:
    letters: list[_Letter] = []
    for letter_id in dict.fromkeys(ids):
        row = transaction.execute(
            "SELECT id, consumer_group, topic, partition, offset, key, on_dead, state "
            "FROM letter WHERE id = ?",
            (letter_id.bytes,),
        ).fetchone()
        if row is None:
            raise NotFound(f"dead letter {letter_id}: there is none; nothing was changed")
        letters.append(_Letter(*row))
    for letter in letters:
        if letter.state == "open":
            continue
        since = _last_change(transaction.connection, letter.id)
        if letter.state == "replaying":
            raise Conflict(
                f"dead letter {UUID(bytes=letter.id)}: expected one that is open, got one that is "
                f"being replayed{since}; nothing was changed"
            )
        raise Refused(
            f"dead letter {UUID(bytes=letter.id)}: expected one that is open, got one that is "
            f"{letter.state}{since}; it cannot be {verb}, and nothing was changed"
        )
    return letters


def _last_change(connection: sqlite3.Connection, letter: bytes) -> str:
    row = connection.execute(
        "SELECT actor, at_ms FROM audit WHERE letter = ? ORDER BY id DESC LIMIT 1", (letter,)
    ).fetchone()
    return f" ({row[0]}, {_time(row[1])})" if row else ""


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _refuse_gap(transaction: Transaction, letter: _Letter, chosen: set[bytes]) -> None:
    """A lane's letters are replayed from its head on, or later events would overtake."""
    (ordering,) = transaction.execute(
        "SELECT ordering FROM consumer_group WHERE name = ?", (letter.group,)
    ).fetchone()
    if ordering == "none" or (ordering == "key" and letter.key is None):
        return  # A lane of its own.
    earlier = transaction.execute(
        "SELECT id, offset FROM letter WHERE consumer_group = ? AND topic = ? AND partition = ? "
        "AND offset < ? AND state = 'open' AND on_dead != 'continue' AND (? OR key = ?) "
        "ORDER BY offset",
        (
            letter.group,
            letter.topic,
            letter.partition,
            letter.offset,
            ordering == "partition",
            letter.key,
        ),
    )
    for earlier_id, offset in earlier.fetchall():
        if earlier_id not in chosen:
            raise Refused(
                f"dead letter {UUID(bytes=letter.id)} (offset {letter.offset}): letter "
                f"{UUID(bytes=earlier_id)} (offset {offset}) of the same lane died before it; "
                "replay or archive that one too, or first. Nothing was changed"
            )


def _begin(transaction: Transaction, kind: str, letters: Sequence[_Letter], by: By) -> int:
    operation = transaction.execute(
        "INSERT INTO operation (kind, actor, reason, at_ms) VALUES (?, ?, ?, ?)",
        (kind, by.actor, by.reason, by.now_ms),
    ).lastrowid
    assert operation is not None
    transaction.executemany(
        "INSERT INTO operation_letter (operation, letter) VALUES (?, ?)",
        [(operation, letter.id) for letter in letters],
    )
    for letter in letters:
        _note(transaction, kind, by, letter.group, letter=letter.id, operation=operation)
    transaction.alters = True
    return operation


def _change_state(transaction: Transaction, letter: _Letter, state: LetterState) -> None:
    transaction.execute(
        "UPDATE letter SET state = ?, version = version + 1 WHERE id = ?", (state, letter.id)
    )


def _command(transaction: Transaction, kind: str, letter: _Letter) -> None:
    transaction.execute(
        "INSERT INTO command (consumer_group, topic, partition, kind, letter) "
        "VALUES (?, ?, ?, ?, ?)",
        (letter.group, letter.topic, letter.partition, kind, letter.id),
    )


def _note(
    transaction: Transaction,
    action: str,
    by: By,
    group: str,
    *,
    letter: bytes | None = None,
    operation: int | None = None,
) -> None:
    transaction.execute(
        "INSERT INTO audit (at_ms, actor, action, reason, consumer_group, letter, operation) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (by.now_ms, by.actor, action, by.reason, group, letter, operation),
    )


def _refuse_unknown_group(transaction: Transaction, group: str) -> None:
    if not transaction.execute("SELECT 1 FROM consumer_group WHERE name = ?", (group,)).fetchone():
        names = [row[0] for row in transaction.execute("SELECT name FROM consumer_group")]
        raise NotFound(f"group {group!r}: there is none. Known: {', '.join(sorted(names)) or '-'}")


# --- queries ----------------------------------------------------------------------------------

_FOLLOWERS = """
(SELECT count(*) FROM parked WHERE parked.consumer_group = letter.consumer_group
    AND parked.topic = letter.topic AND parked.partition = letter.partition
    AND parked.key IS letter.key AND parked.offset > letter.offset
    AND letter.on_dead = 'park' AND letter.state IN ('open', 'replaying'))
"""


def dead_letters(
    connection: sqlite3.Connection,
    *,
    group: str | None,
    state: LetterState | None,
    ids: Sequence[UUID] | None,
    limit: int,
    after: UUID | None,
) -> list[DeadLetter]:
    """See `Queries.dead_letters`."""
    conditions: list[str] = []
    values: list[object] = []
    for column, value in (("consumer_group", group), ("state", state)):
        if value is not None:
            conditions.append(f"letter.{column} = ?")
            values.append(value)
    if after is not None:
        conditions.append("letter.number > (SELECT number FROM letter WHERE id = ?)")
        values.append(after.bytes)
    chosen: list[tuple[list[str], list[object]]] = [(conditions, values)]
    if ids is not None:
        # One by one, because a statement has a limit of variables and a caller has none.
        chosen = [
            ([*conditions, "letter.id = ?"], [*values, one.bytes]) for one in dict.fromkeys(ids)
        ]
    rows: list[tuple[Any, ...]] = []
    for where, bound in chosen:
        rows += connection.execute(
            f"SELECT letter.number, {_FOLLOWERS}, {LETTER_COLUMNS} FROM letter "
            f"WHERE {' AND '.join(where) or '1'} ORDER BY letter.number LIMIT ?",
            (*bound, limit),
        )
    rows.sort(key=lambda row: row[0])
    return [letter_from(row[2:], row[1]) for row in rows[:limit]]


def letters_of_operation(connection: sqlite3.Connection, id: int) -> dict[UUID, LetterState]:
    """See `Queries.operation`."""
    if not connection.execute("SELECT 1 FROM operation WHERE id = ?", (id,)).fetchone():
        raise NotFound(f"operation {id}: there is none")
    rows = connection.execute(
        "SELECT letter.id, letter.state FROM operation_letter "
        "JOIN letter ON letter.id = operation_letter.letter WHERE operation = ? "
        "ORDER BY letter.number",
        (id,),
    )
    return {UUID(bytes=letter): state for letter, state in rows}
