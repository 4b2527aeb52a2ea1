"""Which dead letters an operation is about, and which of them it cannot have.

It is worked out before anything is written, page by page, while the event loop turns. What may have
changed by the time when the operation comes to a letter is asked again then.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from eventlane.brokers.embedded.failures import decode_offsets
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.letters import Search, utc
from eventlane.brokers.embedded.parts import STEP_LETTERS
from eventlane.clock import yield_to_loop
from eventlane.errors import Conflict, EventlaneError, NotFound, Refused
from eventlane.failure import LetterState
from eventlane.query import Query
from eventlane.replay import LeftOut, OperationKind, OrderConflict, Plan

__all__ = [
    "Candidate",
    "Problem",
    "Selected",
    "Step",
    "candidates",
    "doubtful",
    "gap",
    "order_conflict",
    "problem",
    "select",
]

_PAGE_LETTERS = 5_000
_SHOWN_MAX = 100

_VERBS: dict[OperationKind, str] = {
    "replay": "replayed",
    "archive": "archived",
    "restore": "restored",
    "edit": "edited",
}


class Candidate(NamedTuple):
    """A letter that an operation is about, with what is asked of it."""

    number: int
    id: bytes
    group: str
    topic: str
    partition: int
    offset: int
    lane: bytes | int
    on_dead: str
    state: LetterState
    version: int
    replay_count: int
    replays_max: int | None
    """What its group permits; None: that is not known."""
    counted: int
    parked: int
    """Events that are parked in its lane."""
    blockers: tuple[int, ...]
    """Offsets of the letters that keep its lane closed."""


class Problem(NamedTuple):
    """Why an operation cannot have a letter."""

    error: type[EventlaneError]
    letter: bytes
    verb: str
    why: str

    def as_error(self) -> EventlaneError:
        """What is raised where the letter was named."""
        return self.error(
            f"dead letter {UUID(bytes=self.letter)} cannot be {self.verb}: {self.why}; nothing was "
            "changed"
        )


class Step(NamedTuple):
    """Letters that an operation comes to at once."""

    letters: str
    """Their numbers, in the order of the log: a JSON array."""
    versions: str | None = None
    """At which version each was seen, or null; None: that is not asked of any."""

    @property
    def seen(self) -> dict[int, int]:
        """The versions, by the numbers of the letters."""
        if self.versions is None:
            return {}
        pairs = zip(json.loads(self.letters), json.loads(self.versions), strict=True)
        return {number: version for number, version in pairs if version is not None}


class Selected(NamedTuple):
    """What an operation is about."""

    plan: Plan
    steps: dict[str, list[Step]]
    """For each group its letters, in the order of the log.

    Those that it cannot have are among them, so that it keeps why when it comes to them.
    """
    refusal: Problem | None
    """The first letter that it cannot have."""
    gap: Problem | None
    """The first one that would pass an earlier one of its lane."""

    def check(self, query: str | None, *, allow_gap: bool) -> None:
        """Refuse what cannot be done; of what a `query` found, only where nothing is left.

        Raises:
            NotFound: Nothing meets the query.
            Conflict: A letter that was named is being replayed, or has changed since it was seen.
            Refused: A letter that was named cannot be had, or one would pass another.
        """
        if self.refusal is not None and (query is None or not self.plan.count):
            raise self.refusal.as_error()
        if self.gap is not None and not allow_gap:
            raise self.gap.as_error()
        if not self.plan.count:
            raise NotFound(f"query {query!r}: no dead letter meets it; nothing was changed")


_CANDIDATES = """
SELECT letter.number, letter.id, letter.consumer_group, letter.topic, letter.partition, offset,
    letter.lane, on_dead, state, version, replay_count,
    (SELECT replays_max FROM consumer_group WHERE name = letter.consumer_group) AS most,
    counted, coalesce(parked, 0), blockers
FROM json_each(?) AS chosen JOIN letter ON letter.number = chosen.value
LEFT JOIN lane ON lane.consumer_group = letter.consumer_group AND lane.topic = letter.topic
    AND lane.partition = letter.partition AND lane.lane = letter.lane
WHERE {} ORDER BY chosen.key
"""
# An array of msgpack begins with its length: 90 is empty, 91 has one element, which is the letter
# itself if it closes its lane.
_DOUBTFUL = """
state != ? OR (? AND replay_count >= coalesce(most, ?))
    OR (? AND coalesce(blockers, x'90') != x'90'
        AND (on_dead = 'continue' OR substr(blockers, 1, 1) != x'91'))
"""


def candidates(connection: sqlite3.Connection, numbers: str) -> list[Candidate]:
    """The letters with these numbers, a JSON array, in that order."""
    return _candidates(connection, "1", numbers)


def doubtful(
    connection: sqlite3.Connection, numbers: str, kind: OperationKind, replays_max: int
) -> list[Candidate]:
    """Those of these letters for which there may be a problem, or a conflict of order."""
    wanted = "archived" if kind == "restore" else "open"
    runs = kind in ("replay", "edit")
    return _candidates(connection, _DOUBTFUL, numbers, wanted, kind == "replay", replays_max, runs)


def _candidates(connection: sqlite3.Connection, condition: str, *values: object) -> list[Candidate]:
    return [
        Candidate._make((*columns, () if blockers is None else decode_offsets(blockers)))
        for *columns, blockers in connection.execute(_CANDIDATES.format(condition), values)
    ]


def problem(
    connection: sqlite3.Connection,
    letter: Candidate,
    kind: OperationKind,
    replays_max: int,
    seen: int | None = None,
) -> Problem | None:
    """Why an operation cannot have a letter, whatever its lane; None if it can.

    `replays_max` holds where the letter's group says nothing; `seen` is the version that it had
    for who asks.
    """
    wanted = "archived" if kind == "restore" else "open"
    verb = _VERBS[kind]
    if letter.state == "replaying":
        changed = _last_change(connection, letter.number)
        return Problem(Conflict, letter.id, verb, f"it is being replayed{changed}")
    if letter.state != wanted:
        changed = _last_change(connection, letter.number)
        why = f"expected one that is {wanted}, got one that is {letter.state}{changed}"
        return Problem(Refused, letter.id, verb, why)
    if seen not in (None, letter.version):
        changed = _last_change(connection, letter.number)
        why = f"it has changed{changed}: expected version {seen}, got {letter.version}. Look again"
        return Problem(Conflict, letter.id, verb, why)
    most = replays_max if letter.replays_max is None else letter.replays_max
    if kind == "replay" and letter.replay_count >= most:
        whose = "" if letter.replays_max is None else "its group's "
        why = (
            f"it was replayed {letter.replay_count} times, and {whose}Limits.replays_max={most}: "
            "archive it, edit it, or raise the limit"
        )
        return Problem(Refused, letter.id, verb, why)
    return None


def _last_change(connection: sqlite3.Connection, letter: int) -> str:
    row = connection.execute(
        "SELECT actor, at_ms FROM audit WHERE letter = ? ORDER BY id DESC LIMIT 1", (letter,)
    ).fetchone()
    return f" ({row[0]}, {utc(row[1]).isoformat(timespec='seconds')})" if row else ""


def order_conflict(
    connection: sqlite3.Connection, letter: Candidate, is_chosen: Callable[[int], bool]
) -> OrderConflict | None:
    """The earlier letter that keeps the lane closed, and that this one would pass.

    A lane's letters are replayed from its head on, or later events would overtake.
    """
    for offset in sorted(letter.blockers):
        if offset >= letter.offset:
            break
        row = connection.execute(
            "SELECT number, id FROM letter WHERE consumer_group = ? AND topic = ? "
            "AND partition = ? AND offset = ? AND state IN ('open', 'replaying') "
            "AND on_dead != 'continue'",
            (letter.group, letter.topic, letter.partition, offset),
        ).fetchone()
        if row is not None and not is_chosen(row[0]):
            return OrderConflict(UUID(bytes=letter.id), letter.offset, UUID(bytes=row[1]), offset)
    return None


def gap(conflict: OrderConflict) -> Problem:
    """Why a letter cannot be replayed yet."""
    why = (
        f"letter {conflict.earlier} (offset {conflict.earlier_offset}) of the same lane died "
        f"before it (offset {conflict.offset}); replay or archive that one too, or first, or "
        "allow the gap"
    )
    return Problem(Refused, conflict.letter.bytes, _VERBS["replay"], why)


async def select(
    file: File,
    letters: Sequence[UUID] | Query,
    *,
    kind: OperationKind,
    replays_max: int,
    versions: Mapping[UUID, int],
) -> Selected:
    """Work out what an operation is about; `versions` are those at which letters were seen.

    Raises:
        NotFound: An id is unknown.
        StorageError: The file cannot be read.
    """
    wanted: LetterState = "archived" if kind == "restore" else "open"
    pages = _found(file, wanted, letters) if isinstance(letters, Query) else _named(file, letters)
    selecting = _Selecting(kind, replays_max, versions)
    async for page in pages:
        selecting.numbers.update(dict.fromkeys(page))
    numbers = list(selecting.numbers)
    for start in range(0, len(numbers), STEP_LETTERS):
        with file.reading():
            selecting.add(file.reader, json.dumps(numbers[start : start + STEP_LETTERS]))
        await yield_to_loop()
    return selecting.selected()


async def _found(file: File, state: LetterState, query: Query) -> AsyncIterator[list[int]]:
    last = (0, 0)
    while True:
        with file.reading():
            page = Search(file.reader, state=state, query=query).page(last, _PAGE_LETTERS)
        yield [number for _, number in page]
        if len(page) < _PAGE_LETTERS:
            return
        last = page[-1]
        await yield_to_loop()


async def _named(file: File, ids: Sequence[UUID]) -> AsyncIterator[list[int]]:
    for start in range(0, len(ids), _PAGE_LETTERS):
        page: list[int] = []
        with file.reading():
            for each in ids[start : start + _PAGE_LETTERS]:
                row = file.reader.execute(
                    "SELECT number FROM letter WHERE id = ?", (each.bytes,)
                ).fetchone()
                if row is None:
                    raise NotFound(f"dead letter {each}: there is none; nothing was changed")
                page.append(row[0])
        yield page
        await yield_to_loop()


class _Selecting:
    """A selection while it is worked out."""

    def __init__(self, kind: OperationKind, replays_max: int, versions: Mapping[UUID, int]) -> None:
        self.numbers: dict[int, None] = {}
        """Of all letters that were asked for, once each."""
        self._kind: OperationKind = kind
        self._replays_max = replays_max
        self._versions = {letter.bytes: version for letter, version in versions.items()}
        self._seen: dict[int, int] = {}
        """The same by number."""
        self._places: list[tuple[str, str, int, int, int]] = []
        """Group, topic, partition, offset and number of all letters."""
        self._count: Counter[str] = Counter()
        """How many it can have, by group."""
        self._lanes: set[int] = set()
        """A hash of each, since there may be a million."""
        self._followers: dict[tuple[object, ...], tuple[int, set[int]]] = {}
        """For lanes with parked events how many, and what keeps them closed in the end."""
        self._conflicts: list[OrderConflict] = []
        self._conflict_count = 0
        self._refusals: list[Problem] = []
        self._refusal_count = 0

    def add(self, connection: sqlite3.Connection, numbers: str) -> None:
        for each in candidates(connection, numbers):
            place = (each.group, each.topic, each.partition)
            self._places.append((*place, each.offset, each.number))
            seen = self._versions.get(each.id)
            if seen is not None:
                self._seen[each.number] = seen
            found = problem(connection, each, self._kind, self._replays_max, seen)
            if found is not None:
                self._refusal_count += 1
                if len(self._refusals) < _SHOWN_MAX:
                    self._refusals.append(found)
                continue
            self._count[each.group] += 1
            lane = (*place, each.lane)
            self._lanes.add(hash(lane))
            if each.parked and each.offset in each.blockers:
                _, closing = self._followers.setdefault(lane, (each.parked, set(each.blockers)))
                closing.discard(each.offset)
            if self._kind in ("replay", "edit"):
                conflict = order_conflict(connection, each, self.numbers.__contains__)
                if conflict is not None:
                    self._conflict_count += 1
                    if len(self._conflicts) < _SHOWN_MAX:
                        self._conflicts.append(conflict)

    def selected(self) -> Selected:
        self._places.sort()
        of_group: dict[str, list[int]] = {}
        for group, *_, number in self._places:
            of_group.setdefault(group, []).append(number)
        return Selected(
            Plan(
                count=self._count.total(),
                groups={group: self._count[group] for group in of_group if self._count[group]},
                keys=len(self._lanes),
                followers=sum(
                    parked for parked, closing in self._followers.values() if not closing
                ),
                conflicts=tuple(self._conflicts),
                conflict_count=self._conflict_count,
                refusals=tuple(
                    LeftOut(UUID(bytes=each.letter), each.why) for each in self._refusals
                ),
                refusal_count=self._refusal_count,
            ),
            {
                group: [
                    self._step(numbers[start : start + STEP_LETTERS])
                    for start in range(0, len(numbers), STEP_LETTERS)
                ]
                for group, numbers in of_group.items()
            },
            self._refusals[0] if self._refusals else None,
            gap(self._conflicts[0]) if self._conflicts else None,
        )

    def _step(self, numbers: list[int]) -> Step:
        seen = [self._seen.get(each) for each in numbers] if self._seen else None
        return Step(json.dumps(numbers), None if seen is None else json.dumps(seen))
