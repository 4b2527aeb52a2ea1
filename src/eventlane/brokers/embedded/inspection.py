"""Why a key waits: read from what is durable. What a trace reads in the same way is here too."""

import re
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple
from uuid import UUID
from zlib import crc32

import msgspec

from eventlane.brokers.embedded import failures
from eventlane.brokers.embedded.failures import (
    AT,
    LETTER,
    LETTER_COLUMNS,
    Place,
    decode_attempts,
    letter_from,
)
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.letters import utc
from eventlane.brokers.embedded.log import LogReader, LogTopic
from eventlane.brokers.embedded.members import Heartbeat
from eventlane.brokers.embedded.owners import decode_runs, waiting
from eventlane.clock import yield_to_loop
from eventlane.failure import Attempts, DeadLetter
from eventlane.message import EVENT_TYPE, Record, headers_of
from eventlane.settlement import LaneState
from eventlane.views import LaneFront, LaneView, why

__all__ = [
    "Group",
    "attempts_where",
    "error_of",
    "groups_of",
    "lane_views",
    "letters_where",
    "snapshot",
    "text_of",
]

_AHEAD_MAX = 10_000
"""Events above a watermark among which the next ones of a key are looked for."""
_AHEAD_PER_READ = 1_000
_SINGLES_MAX = 1_000
"""Lanes of one event each that are looked at."""

_PLACE = re.compile(r"[\w.-]+\[\d+\](?= )")
"""What a sentence about one partition begins with."""
_ALIVE = "state IN ('open', 'replaying')"


@contextmanager
def snapshot(file: File) -> Generator[sqlite3.Connection]:
    """Read at one moment."""
    with file.reading():
        file.reader.execute("BEGIN")
        try:
            yield file.reader
        finally:
            file.reader.execute("COMMIT")


class Group(NamedTuple):
    """A group in one partition."""

    name: str
    ordering: Literal["key", "partition", "none"]
    paused: str | None
    start_offset: int
    watermark: int
    settled: tuple[tuple[int, int], ...]
    owner: str | None
    """The id of the member that handles it."""
    is_cut: bool
    """Retention has overtaken it."""

    def has_settled(self, offset: int) -> bool:
        return offset < self.watermark or any(a <= offset < b for a, b in self.settled)

    def lane_of(self, key: bytes | None, offset: int) -> bytes | int:
        if self.ordering == "partition":
            return -1
        return offset if key is None or self.ordering == "none" else key


def groups_of(connection: sqlite3.Connection, topic: str, partition: int) -> list[Group]:
    """The groups that consume a partition."""
    rows = connection.execute(
        "SELECT name, ordering, paused, start_offset, watermark, settled, owner, "
        "watermark < first_offset FROM progress "
        "JOIN consumer_group ON consumer_group.name = progress.consumer_group "
        "JOIN partition USING (topic, partition) "
        "WHERE topic = ? AND partition = ? ORDER BY name",
        (topic, partition),
    )
    return [
        Group._make((*row[:5], decode_runs(row[5]), row[6], bool(row[7])))
        for row in rows.fetchall()
    ]


async def lane_views(
    file: File,
    log: LogReader,
    topic: LogTopic,
    key: bytes,
    members: Mapping[str, int],
    *,
    heartbeat: Callable[[str], Heartbeat | None],
) -> list[LaneView]:
    """See `Queries.lane`. `members`: how many are live, by group; `heartbeat` of one by its id."""
    partition = crc32(key) % topic.partitions
    with file.reading():
        groups = groups_of(file.reader, topic.name, partition)
        waits = waiting(file.reader, lambda member: heartbeat(member) is not None)
    views: list[LaneView] = []
    for group in groups:
        at = _Lanes(log, group, (group.name, topic.name, partition))
        ahead, first = await at.ahead(file, key)
        with snapshot(file):
            if group.ordering == "none":
                view = at.of_singles(key, ahead)
            else:
                view = at.of_lane(group.lane_of(key, 0))
            stopped_at = at.stopped_at()
        front = view.front or first
        owner = None if group.owner is None else heartbeat(group.owner)
        view = msgspec.structs.replace(
            view,
            front=front,
            waiting=0 if front is None else len(ahead) - (front.offset in ahead),
            blocked=() if owner is None else _about(topic.name, partition, owner.blocked),
            waits_for=waits.get((group.name, topic.name, partition)),
            is_cut=group.is_cut,
            members=members.get(group.name, 0),
            behind=0 if front is None else max(0, front.offset - group.watermark),
            stopped_at=None if front is not None and stopped_at == front.offset else stopped_at,
        )
        views.append(msgspec.structs.replace(view, why=why(view)))
    return views


def _about(topic: str, partition: int, blocked: Sequence[str]) -> tuple[str, ...]:
    """The sentences of an owner that are not about another one of its partitions."""
    places = ((_PLACE.match(each), each) for each in blocked)
    own = f"{topic}[{partition}]"
    return tuple(each for place, each in places if place is None or place[0] == own)


class _Lanes:
    """What is stored of the lanes of one partition."""

    def __init__(self, log: LogReader, group: Group, place: Place) -> None:
        self._log = log
        self._execute = log.connection.execute
        self._group = group
        self._place = place

    async def ahead(self, file: File, key: bytes) -> tuple[list[int], LaneFront | None]:
        """The next events of the key's lane that have no outcome, in order, and the first one."""
        group, (_, topic, partition) = self._group, self._place
        found: list[int] = []
        first: LaneFront | None = None
        offset = group.watermark
        while offset < group.watermark + _AHEAD_MAX:
            with file.reading():
                batch = self._log.fetch(topic, partition, offset, _AHEAD_PER_READ)
            if not batch.records:
                break
            for at, record in zip(batch.offsets, batch.records, strict=True):
                if group.ordering != "partition" and record.key != key:
                    continue
                if not group.has_settled(at):
                    found.append(at)
                    first = first or _front(at, record)
            offset = batch.offsets[-1] + 1
            await yield_to_loop()
        return found, first

    def stopped_at(self) -> int | None:
        """The first dead letter that stops the partition."""
        rows = self._execute(f"SELECT blockers FROM lane WHERE {AT} AND stops", self._place)
        return min((min(failures.decode_offsets(row[0])) for row in rows.fetchall()), default=None)

    def of_lane(self, lane: bytes | int) -> LaneView:
        """A letter that closes it, or is replayed; a parked event; failed attempts; else free."""
        connection, place = self._log.connection, self._place
        state = next(iter(failures.lanes(connection, place, [lane])), LaneState(lane))
        view = self._view(parked=state.parked, gaps=state.gaps)
        alive = letters_where(connection, f"{AT} AND {_ALIVE} AND lane = ?", (*place, lane))
        closing_it = [*state.blockers, *(each.offset for each in alive if each.blocks_lane)]
        replayed = [each.offset for each in alive if each.state == "replaying"]
        if closing_it or replayed:
            first = min(closing_it or replayed)
            return _at_letter(view, first, [each for each in alive if each.offset == first])
        if state.parked:
            for event in failures.parked(connection, place, lane, state.head - 1, 1):
                view = msgspec.structs.replace(
                    view, state="parked", front=_front(event.offset, event.record)
                )
                if event.attempts is not None:
                    return _after(view, event.attempts)
                return view if not state.due_ms else _due(view, state.due_ms)
        for attempts in attempts_where(connection, f"{AT} AND lane = ?", (*place, lane)):
            if not self._group.has_settled(attempts.offset):
                batch = self._log.fetch(place[1], place[2], attempts.offset, 1)
                front = _front(attempts.offset, batch.records[0])
                view = msgspec.structs.replace(view, state="held", front=front)
                return _after(view, attempts)
        return view

    def of_singles(self, key: bytes, ahead: Sequence[int]) -> LaneView:
        """Where each event is a lane of its own: the first of the key's that does not just wait."""
        connection, place = self._log.connection, self._place
        alive = letters_where(connection, f"{AT} AND {_ALIVE} AND key = ?", (*place, key))
        lanes = {each.lane for each in alive}
        for (lane,) in self._execute(
            f"SELECT lane FROM lane WHERE {AT} AND due_ms >= 0 ORDER BY due_ms LIMIT ?",
            (*place, _SINGLES_MAX),
        ).fetchall():
            events = failures.parked(connection, place, lane, -1, 1)
            if events and events[0].record.key == key:
                lanes.add(lane)
        next_ones = set(ahead)
        attempts = attempts_where(
            connection, f"{AT} AND offset >= ?", (*place, self._group.watermark)
        )
        lanes |= {each.offset for each in attempts if each.offset in next_ones}
        views = [self.of_lane(lane) for lane in sorted(lanes, key=int)]
        parked = sum(each.parked for each in views)
        view = next((each for each in views if each.state != "free"), self._view())
        return msgspec.structs.replace(view, parked=parked)

    def _view(self, *, parked: int = 0, gaps: tuple[int, ...] = ()) -> LaneView:
        group, topic, partition = self._place
        return LaneView(
            group=group,
            topic=topic,
            partition=partition,
            ordering=self._group.ordering,
            state="free",
            parked=parked,
            gaps=gaps,
            paused=self._group.paused,
        )


def _at_letter(view: LaneView, offset: int, letters: Sequence[DeadLetter]) -> LaneView:
    if not letters:  # archived: the owner has not opened the lane yet
        return msgspec.structs.replace(view, state="blocked", front=LaneFront(offset, None, None))
    letter = letters[0]
    return msgspec.structs.replace(
        view,
        state="replaying" if letter.state == "replaying" else "blocked",
        front=LaneFront(offset, letter.event_id, letter.event_type),
        attempts=letter.attempts,
        dead_letter=letter.id,
        error=error_of(letter),
    )


def _after(view: LaneView, attempts: Attempts) -> LaneView:
    return _due(msgspec.structs.replace(view, attempts=attempts.count), attempts.due_ms)


def _due(view: LaneView, due_ms: int) -> LaneView:
    return msgspec.structs.replace(view, due_at=utc(due_ms))


def letters_where(
    connection: sqlite3.Connection, condition: str, values: Sequence[object]
) -> list[DeadLetter]:
    """Letters in the order of the log."""
    rows = connection.execute(
        f"SELECT {LETTER_COLUMNS} FROM {LETTER} WHERE {condition} "
        "ORDER BY offset, letter.number DESC",
        values,
    )
    return [letter_from(row) for row in rows.fetchall()]


def attempts_where(
    connection: sqlite3.Connection, condition: str, values: Sequence[object]
) -> list[Attempts]:
    """Stored attempts, in the order of the log."""
    rows = connection.execute(
        f"SELECT attempts FROM attempts WHERE {condition} ORDER BY offset", values
    )
    return [decode_attempts(row[0]) for row in rows.fetchall()]


def _front(offset: int, record: Record) -> LaneFront:
    return LaneFront(
        offset, UUID(bytes=record.id), text_of(headers_of(record.headers).get(EVENT_TYPE))
    )


def error_of(letter: DeadLetter) -> str:
    """What a letter died of."""
    return f"{letter.error_class}: {letter.error_message}"


def text_of(value: bytes | None) -> str | None:
    """The text of a header."""
    return None if value is None else value.decode("utf-8", "replace")
