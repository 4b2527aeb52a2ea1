"""Dead letters for people: found, counted and read.

A search reads small rows first and whole letters last. Most conditions are about what letters have
in common, their kind; an index has the letters of each kind and state in the order in which they
died, and a search merges those of all kinds that meet the conditions. A key has an index of its
own, in the same order.
"""

import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import get_args
from uuid import UUID

import msgspec

from eventlane.brokers.embedded.failures import LETTER_COLUMNS, letter_from
from eventlane.errors import NotFound
from eventlane.failure import DeadLetter, LetterState
from eventlane.query import Query
from eventlane.views import FailureSummary, LetterEvent

__all__ = ["FOLLOWERS", "Found", "Search", "dead_letters", "history", "summaries", "utc"]

_FEW = 10_000
"""So many small rows are read and sorted within some milliseconds."""
_STATES: tuple[LetterState, ...] = get_args(LetterState)

_STREAM_LETTERS = 16
_EVER_MS = 1 << 62
_OF_KINDS = (
    "letter.kind IN (SELECT value FROM json_each(?)) "
    "AND letter.state IN (SELECT value FROM json_each(?))"
)

Found = tuple[int, int]
"""When a letter died, and its number."""

FOLLOWERS = """
CASE WHEN letter.on_dead = 'continue' OR letter.state NOT IN ('open', 'replaying') THEN 0 ELSE
coalesce((SELECT parked FROM lane WHERE lane.consumer_group = letter.consumer_group
    AND lane.topic = letter.topic AND lane.partition = letter.partition
    AND lane.lane = letter.lane), 0) END
"""
"""How many events are parked behind a letter."""


class _Message(msgspec.Struct):
    error_message: str


_decode_message = msgspec.json.Decoder(_Message).decode


def utc(at_ms: int) -> datetime:
    """A stored time."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


class Search:
    """Finds letters that meet conditions, page by page, in the order in which they died."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        state: LetterState | None,
        query: Query,
        group: str | None = None,
    ) -> None:
        """`group` holds beside the query."""
        self._execute = connection.execute
        self._key = query.key_bytes
        self._states = json.dumps(_STATES if state is None else (state,))
        self._kinds = json.dumps(self._kinds_that_meet(group, query))
        self._since_ms = query.since_ms or 0
        self._until_ms = _EVER_MS if query.until_ms is None else query.until_ms

    def _kinds_that_meet(self, group: str | None, query: Query) -> list[int]:
        conditions = {
            "fingerprint = ?": query.fingerprint,
            "topic = ?": query.topic,
            "handler = ?": query.handler,
            "event_type = ?": query.type,
            "error_class = ?": query.exception,
            "app_version = ?": query.app_version,
            "consumer_group = ?": query.group,
            "consumer_group IS ?": group,
        }
        given = {name: value for name, value in conditions.items() if value is not None}
        rows = self._execute(
            f"SELECT id FROM letter_kind WHERE {' AND '.join(given) or '1'}", list(given.values())
        )
        return [row[0] for row in rows]

    def page(self, after: Found, limit: int) -> list[Found]:
        """The next ones."""
        if self._key is None:
            return self._merged(after, limit)
        of_key = self._count("key = ?", self._key)
        if of_key > _FEW and self._count(_OF_KINDS, self._kinds, self._states) <= _FEW:
            return self._followed("letter INDEXED BY letter_by_kind", (), after, limit)
        return self._followed("letter INDEXED BY letter_by_key", (), after, limit)

    def among(self, numbers: Iterable[int], after: Found, limit: int) -> list[Found]:
        """Those of these numbers that meet the conditions."""
        chosen = json.dumps(list(numbers))
        table = "json_each(?) AS chosen JOIN letter ON letter.number = chosen.value"
        return self._followed(table, (chosen,), after, limit)

    def _count(self, condition: str, *values: object) -> int:
        """How many rows an index has, as far as it matters."""
        count: int = self._execute(
            f"SELECT count(*) FROM (SELECT 1 FROM letter WHERE {condition} LIMIT ?)",
            (*values, _FEW + 1),
        ).fetchone()[0]
        return count

    def _followed(
        self, table: str, values: Sequence[object], after: Found, limit: int
    ) -> list[Found]:
        """Read rows, and check the conditions on each."""
        of_key = "1" if self._key is None else "letter.key = ?"
        rows = self._execute(
            f"SELECT dead_ms, number FROM {table} WHERE {_OF_KINDS} AND {of_key} "
            "AND dead_ms >= ? AND dead_ms < ? AND (dead_ms, number) > (?, ?) "
            "ORDER BY dead_ms, number LIMIT ?",
            (
                *values,
                self._kinds,
                self._states,
                *(() if self._key is None else (self._key,)),
                self._since_ms,
                self._until_ms,
                *after,
                limit,
            ),
        )
        return rows.fetchall()

    def _merged(self, after: Found, limit: int) -> list[Found]:
        """Merge what the index has of each kind and state, of which only those that begin first."""
        first = self._execute(
            "SELECT kind.value, state.value, (SELECT dead_ms FROM letter INDEXED BY letter_by_kind "
            "WHERE letter.kind = kind.value AND letter.state = state.value AND dead_ms >= ? "
            "AND dead_ms < ? AND (dead_ms, number) > (?, ?) ORDER BY dead_ms, number LIMIT 1) "
            "AS first_ms FROM json_each(?) AS kind JOIN json_each(?) AS state "
            "WHERE first_ms IS NOT NULL ORDER BY first_ms",
            (
                max(self._since_ms, after[0]),
                self._until_ms,
                *after,
                self._kinds,
                self._states,
            ),
        ).fetchall()
        last_ms = first[limit - 1][2] if len(first) > limit else _EVER_MS
        streams = [
            self._stream(kind, state, after)
            for kind, state, first_ms in first
            if first_ms <= last_ms
        ]
        return list(islice(heapq.merge(*streams), limit))

    def _stream(self, kind: int, state: str, after: Found) -> Iterator[Found]:
        size = _STREAM_LETTERS
        while True:
            # Read to its end each time: a statement in between would hold up every checkpoint.
            part = self._execute(
                "SELECT dead_ms, number FROM letter INDEXED BY letter_by_kind WHERE kind = ? "
                "AND state = ? AND dead_ms >= ? AND dead_ms < ? AND (dead_ms, number) > (?, ?) "
                "ORDER BY dead_ms, number LIMIT ?",
                (kind, state, max(self._since_ms, after[0]), self._until_ms, *after, size),
            ).fetchall()
            yield from part
            if len(part) < size:
                return
            after = part[-1]
            size *= 2


def dead_letters(
    connection: sqlite3.Connection,
    *,
    group: str | None,
    state: LetterState | None,
    query: Query | None,
    ids: Sequence[UUID] | None,
    limit: int,
    after: UUID | None,
) -> list[DeadLetter]:
    """See `Queries.dead_letters`."""
    search = Search(connection, state=state, query=query or Query(), group=group)
    last = (0, 0) if after is None else _found(connection, after)
    if last is None:
        raise NotFound(f"after={after}: expected a dead letter; there is none with this id")
    if ids is None:
        found = search.page(last, limit)
    else:
        known = (_found(connection, each) for each in dict.fromkeys(ids))
        found = search.among((each[1] for each in known if each is not None), last, limit)
    rows = connection.execute(
        f"SELECT {FOLLOWERS}, {LETTER_COLUMNS} FROM json_each(?) AS chosen "
        "JOIN letter ON letter.number = chosen.value "
        "JOIN envelope ON envelope.number = letter.number ORDER BY chosen.key",
        (json.dumps([number for _, number in found]),),
    )
    return [letter_from(columns, followers) for followers, *columns in rows]


def _found(connection: sqlite3.Connection, letter: UUID) -> Found | None:
    row: Found | None = connection.execute(
        "SELECT dead_ms, number FROM letter WHERE id = ?", (letter.bytes,)
    ).fetchone()
    return row


def summaries(
    connection: sqlite3.Connection, *, group: str | None, state: LetterState
) -> list[FailureSummary]:
    """See `Queries.failures`."""
    counts: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for kind, *what in connection.execute(
        "SELECT id, consumer_group, fingerprint, error_class FROM letter_kind "
        "WHERE ?1 IS NULL OR consumer_group = ?1",
        (group,),
    ).fetchall():
        count, first, last = connection.execute(
            "SELECT count(*), min(number), max(number) FROM letter WHERE kind = ? AND state = ?",
            (kind, state),
        ).fetchone()
        if count:
            before = counts.get((what[0], what[1], what[2]), (0, first, last))
            counts[what[0], what[1], what[2]] = (
                before[0] + count,
                min(before[1], first),
                max(before[2], last),
            )
    found: list[FailureSummary] = []
    for (group_name, fingerprint, error_class), (count, first, last) in counts.items():
        (first_ms,) = connection.execute(
            "SELECT dead_ms FROM letter WHERE number = ?", (first,)
        ).fetchone()
        last_ms, example, envelope = connection.execute(
            "SELECT dead_ms, letter.id, envelope.letter FROM letter "
            "JOIN envelope ON envelope.number = letter.number WHERE letter.number = ?",
            (last,),
        ).fetchone()
        found.append(
            FailureSummary(
                group=group_name,
                fingerprint=fingerprint,
                exception=error_class,
                count=count,
                first_at=utc(first_ms),
                newest_at=utc(last_ms),
                example=UUID(bytes=example),
                message=_decode_message(envelope).error_message,
            )
        )
    return sorted(found, key=lambda each: (-each.count, each.group, each.fingerprint))


def history(connection: sqlite3.Connection, letter: UUID) -> list[LetterEvent]:
    """See `Queries.letter_history`."""
    found = _found(connection, letter)
    if found is None:
        raise NotFound(f"dead letter {letter}: there is none")
    rows = connection.execute(
        "SELECT at_ms, actor, action, reason, operation, detail FROM audit WHERE letter = ? "
        "ORDER BY id",
        (found[1],),
    )
    return [
        LetterEvent(
            at=utc(at_ms),
            actor=actor,
            action=action,
            reason=reason,
            operation=operation,
            detail=detail,
        )
        for at_ms, actor, action, reason, operation, detail in rows
    ]
