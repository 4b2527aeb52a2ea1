"""The steps of an operation: it takes letters up, and a replay releases them.

They are taken up a thousand at a time from `operation_selection`, in the order of the log, and
become the operation's own. A replay then releases them, as its pace permits, as commands for the
owners of their partitions, in the same order.
"""

import json
from typing import NamedTuple

from eventlane.brokers.embedded import selection
from eventlane.brokers.embedded.failures import decode_offsets
from eventlane.brokers.embedded.parts import (
    STEP_LETTERS,
    Audited,
    Part,
    add_counts,
    audit_letters,
    drains,
    finish,
    keep_pacing,
    return_behind,
    return_pending,
)
from eventlane.brokers.embedded.selection import Problem
from eventlane.brokers.embedded.work import Transaction
from eventlane.replay import admitted, admitted_max

__all__ = ["step"]

_RELEASED_MAX = 2_000
"""Letters of an operation that owners have in memory at once."""


def step(
    transaction: Transaction,
    part: Part,
    now_ms: int,
    *,
    is_live: bool,
    is_strict: bool = False,
) -> int | None:
    """One step; when there is another one to take, None if something has to end before.

    It releases nothing unless the group `is_live`: what an owner has, nobody can take back.

    Raises:
        EventlaneError: It is strict, and cannot have one of the letters that it comes to.
    """
    if part.state == "cancelled":
        why = "the operation was cancelled"
        left = return_pending(transaction, part, why, now_ms)
        finish(transaction, part, now_ms)
        return now_ms if left else None
    has_more = _take_step(transaction, part, now_ms, is_strict=is_strict)
    due_ms: int | None = None
    if part.replays and is_live and not _is_paused(transaction, part.group):
        due_ms = _release(transaction, part, now_ms)
    finish(transaction, part, now_ms)
    return now_ms if has_more else due_ms


def _is_paused(transaction: Transaction, group: str) -> bool:
    row = transaction.execute(
        "SELECT paused FROM consumer_group WHERE name = ?", (group,)
    ).fetchone()
    return row is not None and row[0] is not None


# --- taking letters up ------------------------------------------------------------------------


def _take_step(transaction: Transaction, part: Part, now_ms: int, *, is_strict: bool) -> bool:
    """Make the next letters of the selection the operation's own; whether there are more."""
    steps = transaction.execute(
        "SELECT step, letters, versions FROM operation_selection WHERE part = ? "
        "ORDER BY step LIMIT 2",
        (part.id,),
    ).fetchall()
    if steps:
        number, *taken = steps[0]
        _take_up(transaction, part, selection.Step(*taken), now_ms, is_strict=is_strict)
        transaction.execute(
            "DELETE FROM operation_selection WHERE part = ? AND step = ?", (part.id, number)
        )
    return len(steps) > 1


def _take_up(
    transaction: Transaction, part: Part, wanted: selection.Step, now_ms: int, *, is_strict: bool
) -> None:
    """Make letters the operation's own; those that it cannot have are noted with the reason.

    Raises:
        EventlaneError: It is strict, and there is one that it cannot have.
    """
    letters = wanted.letters
    skipped = _problems(transaction, part, wanted, is_strict=is_strict)
    if skipped:
        left = [number for number in json.loads(letters) if number not in skipped]
        letters = json.dumps(left)
    state = "pending" if part.replays else "changed"
    taken = transaction.execute(
        f"INSERT INTO operation_letter (part, letter, topic, partition, offset, lane, state) "
        f"SELECT ?, number, topic, partition, offset, lane, ? FROM {_CHOSEN}",
        (part.id, state, letters),
    ).rowcount
    transaction.executemany(
        "INSERT INTO operation_letter (part, letter, topic, partition, offset, lane, state, why) "
        "SELECT ?, number, topic, partition, offset, lane, 'skipped', ? FROM letter "
        "WHERE number = ?",
        [(part.id, found.why, number) for number, found in skipped.items()],
    )
    _change(transaction, part, letters)
    by = Audited(part.kind, part.actor, part.reason, now_ms, part.operation)
    audit_letters(transaction, by, part.group, letters)
    add_counts(transaction, part.id, {state: taken, "skipped": len(skipped)})


def _problems(
    transaction: Transaction, part: Part, wanted: selection.Step, *, is_strict: bool
) -> dict[int, Problem]:
    connection, letters, seen = transaction.connection, wanted.letters, wanted.seen
    found: dict[int, Problem] = {}

    def is_chosen(number: int) -> bool:
        if number in numbers:
            return number not in found
        row = connection.execute(
            "SELECT state FROM operation_letter WHERE part = ? AND letter = ?", (part.id, number)
        ).fetchone()
        return row is not None and row[0] != "skipped"

    if seen:
        doubtful = selection.candidates(connection, letters)
    else:
        doubtful = selection.doubtful(connection, letters, part.kind, part.replays_max)
    numbers: frozenset[int] = frozenset(json.loads(letters) if doubtful else ())
    for each in doubtful:
        problem = selection.problem(
            connection, each, part.kind, part.replays_max, seen.get(each.number)
        )
        if problem is None and part.replays and not part.allow_gap:
            conflict = selection.order_conflict(connection, each, is_chosen)
            problem = None if conflict is None else selection.gap(conflict)
        if problem is not None:
            if is_strict:
                raise problem.as_error()
            found[each.number] = problem
    return found


_CHOSEN = "json_each(?) AS chosen JOIN letter ON letter.number = chosen.value"
_CHANGES = {
    "replay": "state = 'replaying'",
    "edit": "state = 'replaying'",
    "archive": "state = 'archived'",
    # What came after it has run: it closes its lane no more, and runs late.
    "restore": "state = 'open', on_dead = 'continue'",
}
_DEAD_LESS = {"archive": 1, "restore": -1}
"""What leaves `dead` for `archived`."""


def _change(transaction: Transaction, part: Part, letters: str) -> None:
    # Statements for a thousand at once: the event loop's thread goes on meanwhile.
    transaction.execute(
        f"UPDATE letter SET {_CHANGES[part.kind]}, version = version + 1 "
        "WHERE number IN (SELECT value FROM json_each(?))",
        (letters,),
    )
    moved = _DEAD_LESS.get(part.kind)
    if moved is not None:
        counts = transaction.execute(
            f"SELECT count(*), topic, partition FROM {_CHOSEN} WHERE counted "
            "GROUP BY topic, partition",
            (letters,),
        ).fetchall()
        transaction.executemany(
            "UPDATE progress SET dead = dead - ?1, archived = archived + ?1 "
            "WHERE consumer_group = ?2 AND topic = ?3 AND partition = ?4",
            [(moved * count, part.group, *place) for count, *place in counts],
        )
    if part.kind == "archive":
        _command(transaction, part.group, "open", letters, None)


def _command(
    transaction: Transaction, group: str, kind: str, letters: str, operation: int | None
) -> None:
    """Ask the owners of letters; those that close no lane need not be opened."""
    commands = transaction.execute(
        "INSERT INTO command (consumer_group, topic, partition, kind, letter, operation) "
        f"SELECT ?, topic, partition, ?, letter.id, ? FROM {_CHOSEN} "
        "WHERE ? != 'open' OR on_dead != 'continue' ORDER BY chosen.key",
        (group, kind, operation, letters, kind),
    ).rowcount
    if commands:
        transaction.alters = True


# --- releasing them ---------------------------------------------------------------------------


class _Pending(NamedTuple):
    number: int
    failed: int | None
    """Offset of an earlier one of its lane and operation that died again."""
    cost: int
    """What it releases: itself, and what is parked behind the last letter of a lane."""


_FAILED_BEFORE = """
(SELECT max(failed.offset) FROM operation_letter AS failed WHERE failed.part = own.part
    AND failed.topic = own.topic AND failed.partition = own.partition AND failed.lane = own.lane
    AND failed.offset < own.offset AND failed.state = 'failed')
"""
_ALONE = f"""
SELECT own.letter, CASE WHEN ? THEN {_FAILED_BEFORE} END, 0, NULL, 0
FROM operation_letter AS own INDEXED BY operation_letter_pending
WHERE own.part = ? AND own.state = 'pending'
ORDER BY own.topic, own.partition, own.offset LIMIT ?
"""
_WITH_LANE = f"""
SELECT own.letter, CASE WHEN ? THEN {_FAILED_BEFORE} END, own.offset, lane.blockers,
    CASE letter.on_dead WHEN 'continue' THEN 0 ELSE lane.parked END
FROM operation_letter AS own INDEXED BY operation_letter_pending
JOIN letter ON letter.number = own.letter
JOIN operation_part ON operation_part.id = own.part
LEFT JOIN lane ON lane.consumer_group = operation_part.consumer_group
    AND lane.topic = own.topic AND lane.partition = own.partition AND lane.lane = own.lane
WHERE own.part = ? AND own.state = 'pending'
ORDER BY own.topic, own.partition, own.offset LIMIT ?
"""


def _pending(transaction: Transaction, part: Part, count_max: int) -> list[_Pending]:
    """The next letters in the order of the log; what they cost only where it matters."""
    has_failed = transaction.execute(
        "SELECT EXISTS (SELECT 1 FROM operation_letter INDEXED BY operation_letter_failed "
        "WHERE part = ? AND state = 'failed')",
        (part.id,),
    ).fetchone()[0]
    has_pace = part.pace.canary or part.pace.rate_per_s is not None
    found: list[_Pending] = []
    for number, failed, offset, blockers, parked in transaction.execute(
        _WITH_LANE if has_pace else _ALONE, (has_failed, part.id, count_max)
    ):
        opens = parked and offset == max(decode_offsets(blockers), default=-1)
        found.append(_Pending(number, failed, 1 + parked if opens else 1))
    return found


def _release(transaction: Transaction, part: Part, now_ms: int) -> int | None:
    """Give owners what they may run now; when there may be more."""
    pending, released = transaction.execute(
        "SELECT pending, released FROM operation_part WHERE id = ?", (part.id,)
    ).fetchone()
    most = admitted_max(part.pace, part.pacing)
    # One more than that, so that it is seen that something is left.
    room = min(_RELEASED_MAX - released, STEP_LETTERS, STEP_LETTERS if most is None else most + 1)
    if not pending or room <= 0:
        return None
    found = _pending(transaction, part, room)
    behind = [(each.number, each.failed) for each in found if each.failed is not None]
    ready = [each for each in found if each.failed is None]
    if behind:
        return_behind(transaction, part, behind, now_ms)
    is_quiet = not released and not drains(transaction, part)
    count, due_ms = admitted(
        part.pace,
        part.pacing,
        [each.cost for each in ready],
        is_quiet=is_quiet,
        now_ms=now_ms,
    )
    if count:
        letters = json.dumps([each.number for each in ready[:count]])
        _command(transaction, part.group, "replay", letters, part.operation)
        transaction.execute(
            "UPDATE operation_letter SET state = 'released' WHERE part = ? "
            "AND letter IN (SELECT value FROM json_each(?))",
            (part.id, letters),
        )
    add_counts(transaction, part.id, {"pending": -count, "released": count})
    keep_pacing(transaction, part.id, part.pacing)
    is_stopped = count < len(ready) or released + count >= _RELEASED_MAX
    if due_ms is None and not is_stopped and len(found) == room < pending:
        return now_ms
    return due_ms
