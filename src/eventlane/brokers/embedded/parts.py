"""An operation in one of its groups: its row, its end, and what is kept of every change."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eventlane.brokers.embedded.work import Transaction
from eventlane.failure import HOST
from eventlane.replay import OperationKind, Pace, Pacing, clear_outcomes

__all__ = [
    "STEP_LETTERS",
    "Audited",
    "Part",
    "add_counts",
    "audit",
    "audit_letters",
    "begin_part",
    "drains",
    "finish",
    "give_back",
    "keep_pacing",
    "let_go",
    "owner",
    "parts",
    "restart",
    "return_behind",
    "return_pending",
    "return_untaken",
]

STEP_LETTERS = 1_000
"""What one transaction changes."""
_encode = msgspec.msgpack.Encoder().encode
_decode_pacing = msgspec.msgpack.Decoder(Pacing).decode


class Part(NamedTuple):
    """An operation in one of its groups."""

    id: int
    operation: int
    group: str
    kind: OperationKind
    state: str
    allow_gap: bool
    replays_max: int
    pace: Pace
    pacing: Pacing
    pending: int
    released: int
    actor: str
    reason: str

    @property
    def replays(self) -> bool:
        """Whether its letters run."""
        return self.kind in ("replay", "edit")


_PART = """
SELECT operation_part.id, operation, consumer_group, kind, state, allow_gap, replays_max,
    rate_per_s, canary, pause_above, pacing, pending, released, actor, reason
FROM operation INDEXED BY operation_not_ended
CROSS JOIN operation_part ON operation_part.operation = operation.id
WHERE operation.ended_ms IS NULL AND NOT is_over
"""


def parts(connection: sqlite3.Connection, condition: str, *values: object) -> list[Part]:
    """The parts of operations that are not over."""
    found: list[Part] = []
    for row in connection.execute(f"{_PART} AND {condition} ORDER BY operation", values).fetchall():
        rate_per_s, canary, pause_above, pacing, *rest = row[7:]
        pace = Pace(rate_per_s=rate_per_s, canary=bool(canary), pause_above=pause_above)
        found.append(Part._make((*row[:7], pace, _decode_pacing(pacing), *rest)))
    return found


def begin_part(
    transaction: Transaction, operation: int, group: str, steps: Sequence[tuple[str, str | None]]
) -> None:
    """Write what an operation is about in one group; the steps are those of a selection."""
    total = sum(len(json.loads(letters)) for letters, _ in steps)
    part = transaction.execute(
        "INSERT INTO operation_part (operation, consumer_group, total, pacing) VALUES (?, ?, ?, ?)",
        (operation, group, total, _encode(Pacing())),
    ).lastrowid
    transaction.executemany(
        "INSERT INTO operation_selection (part, step, letters, versions) VALUES (?, ?, ?, ?)",
        [(part, number, *each) for number, each in enumerate(steps)],
    )


def drains(transaction: Transaction, part: Part) -> bool:
    """Whether parked events run that the operation has released."""
    row = transaction.execute(
        "SELECT 1 FROM lane WHERE operation = ? AND consumer_group = ? AND parked > 0 "
        "AND due_ms IS NOT NULL LIMIT 1",
        (part.operation, part.group),
    ).fetchone()
    return row is not None


def keep_pacing(transaction: Transaction, part: int, pacing: Pacing) -> None:
    """Write where a replay stands."""
    transaction.execute(
        "UPDATE operation_part SET pacing = ? WHERE id = ?", (_encode(pacing), part)
    )


# --- giving them back -------------------------------------------------------------------------


def return_behind(
    transaction: Transaction, part: Part, behind: Sequence[tuple[int, int]], now_ms: int
) -> None:
    """Open letters again that would pass an earlier one which died again."""
    for number, offset in behind:
        why = f"an earlier one of its lane failed (offset {offset})"
        give_back(transaction, part, [number], why, now_ms)


def return_pending(transaction: Transaction, part: Part, why: str, now_ms: int) -> bool:
    """Open letters again that were not released; whether there are more."""
    found = transaction.execute(
        "SELECT letter FROM operation_letter INDEXED BY operation_letter_pending "
        "WHERE part = ? AND state = 'pending' LIMIT ?",
        (part.id, STEP_LETTERS + 1),
    ).fetchall()
    numbers = [row[0] for row in found]
    give_back(transaction, part, numbers[:STEP_LETTERS], why, now_ms)
    return len(numbers) > STEP_LETTERS


def give_back(
    transaction: Transaction, part: Part, numbers: Sequence[int], why: str, now_ms: int
) -> None:
    """Open letters again that were taken up, and not released."""
    if not numbers:
        return
    letters = json.dumps(numbers)
    chosen = "(SELECT value FROM json_each(?))"
    transaction.execute(
        f"UPDATE letter SET state = 'open', version = version + 1 WHERE number IN {chosen}",
        (letters,),
    )
    transaction.execute(
        "UPDATE operation_letter SET state = 'returned', why = ? WHERE part = ? "
        f"AND letter IN {chosen}",
        (why, part.id, letters),
    )
    by = Audited("returned", owner(part.group), why, now_ms, part.operation)
    audit_letters(transaction, by, part.group, letters)
    add_counts(transaction, part.id, {"pending": -len(numbers), "returned": len(numbers)})


def return_untaken(transaction: Transaction, part: Part) -> int:
    """Leave letters as they are that were never taken up; how many."""
    (left,) = transaction.execute(
        "SELECT coalesce(sum(json_array_length(letters)), 0) FROM operation_selection "
        "WHERE part = ?",
        (part.id,),
    ).fetchone()
    transaction.execute("DELETE FROM operation_selection WHERE part = ?", (part.id,))
    add_counts(transaction, part.id, {"returned": left})
    return int(left)


def let_go(
    transaction: Transaction,
    group: str,
    why: str,
    now_ms: int,
    *,
    at: tuple[str, int] | None = None,
) -> None:
    """Operations of a group end at a topic and partition that is reset; all, if it is removed.

    Who calls it has removed their commands, and says what becomes of the letters.
    """
    for part in parts(transaction.connection, "consumer_group = ?", group):
        returned = return_untaken(transaction, part) if at is None else 0
        for state in ("pending", "released"):
            count = transaction.execute(
                "UPDATE operation_letter SET state = 'returned', why = ?1 WHERE part = ?2 "
                "AND state = ?3 AND (?4 IS NULL OR (topic, partition) = (?4, ?5))",
                (why, part.id, state, *(at or (None, None))),
            ).rowcount
            add_counts(transaction, part.id, {state: -count, "returned": count})
            returned += count
        finish(transaction, part, now_ms, why=why if returned else None)


# --- the end, and what is kept ----------------------------------------------------------------


def finish(transaction: Transaction, part: Part, now_ms: int, *, why: str | None = None) -> bool:
    """End the part if nothing of it is left; whether it has ended.

    `why` says that it was ended, with letters of it left, by something else than its own course.
    """
    pending, released, has_more = transaction.execute(
        "SELECT pending, released, EXISTS (SELECT 1 FROM operation_selection WHERE part = id) "
        "FROM operation_part WHERE id = ?",
        (part.id,),
    ).fetchone()
    if pending or released or has_more or (part.replays and drains(transaction, part)):
        return False
    _end_part(transaction, part, now_ms, why)
    return True


def _end_part(transaction: Transaction, part: Part, now_ms: int, cut_why: str | None) -> None:
    transaction.execute("UPDATE operation_part SET is_over = 1 WHERE id = ?", (part.id,))
    transaction.execute(
        "UPDATE operation SET ended_ms = ?1, "
        "state = CASE WHEN state = 'cancelled' OR ?3 IS NOT NULL THEN 'cancelled' ELSE 'done' END, "
        "why = CASE state WHEN 'cancelled' THEN why ELSE ?3 END "
        "WHERE id = ?2 AND NOT EXISTS "
        "(SELECT 1 FROM operation_part WHERE operation = ?2 AND NOT is_over)",
        (now_ms, part.operation, cut_why),
    )


def restart(transaction: Transaction, operation: int) -> None:
    """Forget how what has ended so far ended: an operator has looked."""
    for part in parts(transaction.connection, "operation = ?", operation):
        clear_outcomes(part.pacing)
        keep_pacing(transaction, part.id, part.pacing)


class Audited(NamedTuple):
    """A change of some letters, of an operation or of a group: who, why, when."""

    action: str
    actor: str
    reason: str
    now_ms: int
    operation: int | None = None
    detail: str | None = None


def audit(transaction: Transaction, by: Audited, of: Iterable[tuple[str, int | None]]) -> None:
    """Keep who changed something; `of` are groups, each with the number of a letter or None."""
    transaction.executemany(
        f"{_AUDIT} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(*by, group, letter) for group, letter in of],
    )


def audit_letters(transaction: Transaction, by: Audited, group: str, letters: str) -> None:
    """The same for letters of one group, a JSON array of their numbers."""
    transaction.execute(
        f"{_AUDIT} SELECT ?, ?, ?, ?, ?, ?, ?, value FROM json_each(?)", (*by, group, letters)
    )


_AUDIT = """
INSERT INTO audit (action, actor, reason, at_ms, operation, detail, consumer_group, letter)
"""


def owner(group: str) -> str:
    """Who changed something, where no operator did."""
    return f"{group}@{HOST}"


def add_counts(transaction: Transaction, part: int, counts: Mapping[str, int]) -> None:
    """Add to counters of a part."""
    changed = {name: number for name, number in counts.items() if number}
    if changed:
        transaction.execute(
            f"UPDATE operation_part SET {', '.join(f'{name} = {name} + ?' for name in changed)} "
            "WHERE id = ?",
            (*changed.values(), part),
        )
