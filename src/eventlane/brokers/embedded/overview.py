"""Operations for people: how far they are, what they wait for, what became of their letters."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from eventlane.brokers.embedded.letters import utc
from eventlane.errors import NotFound
from eventlane.failure import LetterState
from eventlane.replay import LeftOut, OperationState, OperationStatus

__all__ = ["left_out", "letters_of", "operation", "operations", "pending_letters"]

_COUNTS = (
    *("total", "released", "resolved", "failed", "returned", "skipped", "changed"),
    *("followers_done", "followers_dead"),
)
_OPERATION = """
SELECT id, kind, state, why, actor, reason, query, started_ms, ended_ms FROM operation
"""


def operations(
    connection: sqlite3.Connection,
    *,
    state: OperationState | None,
    limit: int,
    members: Mapping[str, int],
) -> list[OperationStatus]:
    """See `Queries.operations`; `members`: how many live ones each group has."""
    rows = connection.execute(
        f"{_OPERATION} {'' if state is None else 'WHERE state = ?1'} ORDER BY id DESC LIMIT ?2",
        (state, limit),
    ).fetchall()
    return [_status(connection, row, members) for row in rows]


def operation(
    connection: sqlite3.Connection, id: int, members: Mapping[str, int]
) -> OperationStatus:
    """See `Queries.operation`."""
    row = connection.execute(f"{_OPERATION} WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise _unknown(id)
    return _status(connection, row, members)


def _status(
    connection: sqlite3.Connection, row: Sequence[Any], members: Mapping[str, int]
) -> OperationStatus:
    number, kind, state, why, actor, reason, query, started_ms, ended_ms = row
    groups: list[str] = []
    counts = dict.fromkeys(_COUNTS, 0)
    waiting: list[str] = []
    for group, paused, is_over, *numbers in connection.execute(
        f"SELECT consumer_group, paused, is_over, {', '.join(_COUNTS)} FROM operation_part "
        "LEFT JOIN consumer_group ON name = consumer_group WHERE operation = ? ORDER BY 1",
        (number,),
    ):
        groups.append(group)
        for name, count in zip(_COUNTS, numbers, strict=True):
            counts[name] += count
        if is_over or (state == "paused" and not counts["released"]):
            continue
        if paused is not None:
            waiting.append(f"group {group!r} is paused: {paused}")
        if not members.get(group):
            waiting.append(f"group {group!r} has no live member")
    ended = sum(counts[name] for name in _COUNTS[1:7])
    return OperationStatus(
        id=number,
        kind=kind,
        state=state,
        why=why,
        groups=tuple(groups),
        actor=actor,
        reason=reason,
        query=query,
        started_at=utc(started_ms),
        ended_at=None if ended_ms is None else utc(ended_ms),
        pending=counts["total"] - ended,
        waiting_for="; ".join(waiting) or None,
        **counts,
    )


def letters_of(connection: sqlite3.Connection, id: int) -> dict[UUID, LetterState]:
    """See `Queries.operation_letters`."""
    _refuse_unknown(connection, id)
    rows = connection.execute(
        "SELECT letter.id, letter.state FROM operation_part "
        "JOIN operation_letter ON part = operation_part.id "
        "JOIN letter ON letter.number = operation_letter.letter WHERE operation = ? "
        "UNION ALL SELECT letter.id, letter.state FROM operation_part "
        "JOIN operation_selection ON part = operation_part.id JOIN json_each(letters) AS chosen "
        "JOIN letter ON letter.number = chosen.value WHERE operation = ?",
        (id, id),
    )
    return {UUID(bytes=letter): state for letter, state in rows}


def left_out(connection: sqlite3.Connection, id: int, limit: int) -> list[LeftOut]:
    """See `Queries.left_out`."""
    _refuse_unknown(connection, id)
    rows = connection.execute(
        "SELECT letter.id, why FROM operation_part "
        "JOIN operation_letter ON part = operation_part.id "
        "JOIN letter ON letter.number = operation_letter.letter WHERE operation = ? "
        "AND operation_letter.state IN ('skipped', 'returned') LIMIT ?",
        (id, limit),
    )
    return [LeftOut(UUID(bytes=letter), why) for letter, why in rows]


def pending_letters(connection: sqlite3.Connection) -> dict[str, int]:
    """For each group the letters of running operations that owners do not have yet."""
    rows = connection.execute(
        "SELECT consumer_group, sum(total - released - resolved - failed - returned - skipped "
        "- changed) FROM operation JOIN operation_part ON operation_part.operation = operation.id "
        "WHERE ended_ms IS NULL AND state != 'paused' GROUP BY consumer_group"
    )
    return dict(rows.fetchall())


def _refuse_unknown(connection: sqlite3.Connection, id: int) -> None:
    if not connection.execute("SELECT 1 FROM operation WHERE id = ?", (id,)).fetchone():
        raise _unknown(id)


def _unknown(id: int) -> NotFound:
    return NotFound(f"operation {id}: there is none")
