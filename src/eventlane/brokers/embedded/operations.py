"""Bulk changes of dead letters, carried on step by step by whoever has the group, or has asked.

An operation has a part for each of its groups: see `parts.py`. Its steps are in `steps.py`; here is
who takes them, and what owners say of the letters that they were given. All of it is in the
database and each step is one transaction, so that it does not matter who takes the next one.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence

from eventlane.brokers.embedded.parts import (
    STEP_LETTERS,
    Audited,
    Part,
    add_counts,
    audit,
    audit_letters,
    finish,
    keep_pacing,
    owner,
    parts,
    return_behind,
)
from eventlane.brokers.embedded.steps import step
from eventlane.brokers.embedded.work import Transaction
from eventlane.replay import note_outcomes
from eventlane.settlement import LetterChange, Settlement

__all__ = ["advance", "any_running", "go_on", "note"]


def any_running(connection: sqlite3.Connection, group: str) -> bool:
    """Whether `advance` may have something to do; cheap."""
    row = connection.execute(
        "SELECT 1 FROM operation INDEXED BY operation_not_ended "
        "CROSS JOIN operation_part ON operation_part.operation = operation.id "
        "WHERE operation.ended_ms IS NULL AND state != 'paused' AND consumer_group = ? "
        "AND NOT is_over LIMIT 1",
        (group,),
    ).fetchone()
    return row is not None


def advance(transaction: Transaction, group: str, now_ms: int, *, is_live: bool) -> int | None:
    """See `Consumer.advance_operations`; and `steps.step` for what is live."""
    found = parts(transaction.connection, "state != 'paused' AND consumer_group = ?", group)
    due_ms = [step(transaction, part, now_ms, is_live=is_live) for part in found]
    return min((ms for ms in due_ms if ms is not None), default=None)


def go_on(transaction: Transaction, operation: int, now_ms: int) -> bool:
    """Take the next step of an operation; whether there is another one that needs no owner."""
    found = parts(transaction.connection, "state != 'paused' AND operation = ?", operation)
    due_ms = [
        step(transaction, part, now_ms, is_live=False)
        for part in found
        if not part.replays or part.state == "cancelled"
    ]
    return any(ms is not None for ms in due_ms)


# --- what owners say --------------------------------------------------------------------------


class _Tally:
    """What a settlement says of one part."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.counts: Counter[str] = Counter()
        self.died: list[bool] = []
        """Of all that ended."""
        self.failed: list[LetterChange] = []


# The ids stand one after the other in one value, so that one statement finds all of them.
_IN_OPERATION = """
WITH RECURSIVE place (at) AS (VALUES (1) UNION ALL SELECT at + 16 FROM place WHERE at + 16 <= ?1)
SELECT number, part, operation, own.state FROM place
JOIN letter ON letter.id = substr(?2, at, 16)
LEFT JOIN operation_letter AS own
    ON own.letter = letter.number AND own.state IN ('pending', 'released')
LEFT JOIN operation_part ON operation_part.id = own.part ORDER BY at
"""
_OUTCOMES = {
    "done": "resolved",
    "skipped": "resolved",
    "dead": "failed",
    "returned": "returned",
    "unhandled": "returned",
}
_WHYS = {
    "skipped": "its handler skipped it",
    "returned": "an earlier one of its lane failed",
    "unhandled": "its group has no handler for its type",
}


def note(transaction: Transaction, group: str, settlement: Settlement, now_ms: int) -> None:
    """Take in what became of letters, and of events that they released."""
    tallies: dict[int, _Tally] = {}
    place = (group, settlement.topic, settlement.partition)
    _note_letters(transaction, place, settlement.letters, now_ms, tallies)
    for operation, died in settlement.released:
        tally = _tally(transaction, tallies, group, operation)
        if tally is not None:
            tally.counts["followers_dead" if died else "followers_done"] += 1
            tally.died.append(died)
    for tally in tallies.values():
        part = tally.part
        add_counts(transaction, part.id, tally.counts)
        why = note_outcomes(part.pace, part.pacing, tally.died)
        if tally.died:
            keep_pacing(transaction, part.id, part.pacing)
        has_ended = finish(transaction, part, now_ms)
        if why is not None and part.state == "running" and not has_ended:
            _pause(transaction, part, why, now_ms)


def _note_letters(
    transaction: Transaction,
    place: tuple[str, str, int],
    changes: Sequence[LetterChange],
    now_ms: int,
    tallies: dict[int, _Tally],
) -> None:
    if not changes:
        return
    group = place[0]
    ended: dict[tuple[int, str, str | None], list[int]] = {}
    audited: dict[tuple[str, int | None], list[int]] = {}
    ids = b"".join(change.id.bytes for change in changes)
    found = transaction.execute(_IN_OPERATION, (len(ids), ids)).fetchall()
    for change, (number, part, operation, state) in zip(changes, found, strict=True):
        outcome = _OUTCOMES[change.outcome]
        audited.setdefault((outcome, operation), []).append(number)
        tally = None if operation is None else _tally(transaction, tallies, group, operation)
        if tally is None:
            continue
        if outcome != "returned":
            tally.died.append(outcome == "failed")
        ended.setdefault((part, outcome, _WHYS.get(change.outcome)), []).append(number)
        tally.counts[outcome] += 1
        tally.counts[state] -= 1
        if outcome == "failed":
            tally.failed.append(change)
    for (part, outcome, why), numbers in ended.items():
        transaction.execute(
            "UPDATE operation_letter SET state = ?, why = ? WHERE part = ? "
            "AND letter IN (SELECT value FROM json_each(?))",
            (outcome, why, part, json.dumps(numbers)),
        )
    for (outcome, operation), numbers in audited.items():
        by = Audited(outcome, owner(group), "", now_ms, operation)
        audit_letters(transaction, by, group, json.dumps(numbers))
    for tally in tallies.values():
        for change in tally.failed:
            _return_later(transaction, place, tally.part, change, now_ms)


def _tally(
    transaction: Transaction, tallies: dict[int, _Tally], group: str, operation: int
) -> _Tally | None:
    """None where the operation has ended already, which owners need not know."""
    tally = tallies.get(operation)
    if tally is None:
        for part in parts(
            transaction.connection, "operation = ? AND consumer_group = ?", operation, group
        ):
            tally = tallies[operation] = _Tally(part)
    return tally


def _return_later(
    transaction: Transaction,
    place: tuple[str, str, int],
    part: Part,
    change: LetterChange,
    now_ms: int,
) -> None:
    """Open the later ones of a lane again at once; those that are missed here are not released."""
    if not isinstance(change.lane, bytes):
        return  # It may be a whole partition.
    rows = transaction.execute(
        "SELECT number FROM letter JOIN operation_letter ON part = ? AND operation_letter.letter "
        "= number WHERE consumer_group = ? AND letter.topic = ? AND letter.partition = ? "
        "AND letter.lane = ? AND letter.offset > ? AND letter.state = 'replaying' "
        "AND operation_letter.state = 'pending' LIMIT ?",
        (part.id, *place, change.lane, change.offset, STEP_LETTERS),
    ).fetchall()
    return_behind(transaction, part, [(row[0], change.offset) for row in rows], now_ms)


def _pause(transaction: Transaction, part: Part, why: str, now_ms: int) -> None:
    transaction.execute(
        "UPDATE operation SET state = 'paused', why = ? WHERE id = ?",
        (f"group {part.group!r}: {why}", part.operation),
    )
    by = Audited("pause", owner(part.group), why, now_ms, part.operation)
    audit(transaction, by, [(part.group, None)])
