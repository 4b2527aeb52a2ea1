"""Where an event went: on the log, in each group, and what it caused.

The log has no index by event id. A batch that has not the bytes of what is looked for is not
decoded, so that reading the log is all it costs; and the event loop turns in between.
"""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from typing import Any
from uuid import UUID

import msgspec

from eventlane.brokers.embedded import failures
from eventlane.brokers.embedded.failures import AT, LETTER, LETTER_COLUMNS, letter_from
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.inspection import (
    Group,
    attempts_where,
    error_of,
    groups_of,
    letters_where,
    snapshot,
    text_of,
)
from eventlane.brokers.embedded.letters import utc
from eventlane.brokers.embedded.log import decode_batch
from eventlane.clock import SystemClock, yield_to_loop
from eventlane.errors import NotFound
from eventlane.failure import DeadLetter
from eventlane.message import CAUSATION_ID, CORRELATION_ID, Message, headers_of
from eventlane.views import GroupTrace, Trace, TracedEvent

__all__ = ["trace"]

_TURN_S = 0.005
"""How long the event loop may wait; a batch of 8 MiB takes as long again."""
_LETTERS_PER_READ = 100
_PARKED_PER_READ = 20
_SKEW_MS = 60_000
"""How much earlier than an event's id says the log may have taken it, by a clock that was set."""


async def trace(file: File, event_id: UUID, *, with_chain: bool, limit: int) -> Trace:
    """See `Queries.trace`."""
    on_log = await _on_log(file, event_id)
    found = on_log or await _in_letters(file, event_id) or await _in_parking(file, event_id)
    if not found:
        raise NotFound(
            f"event {event_id}: there is none on the log, and no group has kept it. Retention may "
            "have removed it, or it was never published"
        )
    event = _traced(found[0])
    caused: list[TracedEvent] = []
    chain: list[TracedEvent] = []
    needles = [str(event_id).encode()]
    start_ms = _time_in(event_id)
    if with_chain:
        needles.append(event.correlation_id.encode())
        with contextlib.suppress(ValueError):  # the sender set another one, which is no id
            needles.append(UUID(event.correlation_id).bytes)
        start_ms = _earlier(start_ms, event.correlation_id)
    is_complete = True
    async with aclosing(_scan(file, needles, start_ms)) as messages:
        async for message in messages:
            if max(len(caused), len(chain)) == limit:
                is_complete = False
                break
            one = _traced(message)
            if one.causation_id == str(event_id):
                caused.append(one)
            if with_chain and one.correlation_id == event.correlation_id:
                chain.append(one)
    with snapshot(file) as connection:
        groups = groups_of(connection, event.topic, event.partition)
        became = tuple(_became(connection, group, found[0]) for group in groups)
    return Trace(
        event=event,
        is_on_log=bool(on_log),
        copies=tuple(message.position for message in on_log[1:]),
        groups=became,
        caused=tuple(caused),
        chain=tuple(chain),
        is_complete=is_complete,
    )


def _became(connection: sqlite3.Connection, group: Group, message: Message) -> GroupTrace:
    """What became of an event in a group."""
    offset = message.offset
    place = (group.name, message.topic, message.partition)
    # Of one that was edited the child, which takes its place.
    found = letters_where(
        connection, f"{AT} AND offset = ? AND state != 'edited'", (*place, offset)
    )
    letter = found[0] if found else None
    attempts = next(
        iter(attempts_where(connection, f"{AT} AND offset = ?", (*place, offset))), None
    )
    traced = GroupTrace(
        group=group.name,
        state="passed_over",
        attempts=attempts.count if attempts else letter.attempts if letter else 0,
        due_at=utc(attempts.due_ms) if attempts else None,
        dead_letter=letter.id if letter else None,
        error=error_of(letter) if letter else None,
    )
    has_entered = offset >= group.start_offset
    if letter is not None and not (has_entered and _is_of_before(connection, letter)):
        is_parent = letter.edited_from is not None and letter.event_id != message.event_id
        state = "edited" if is_parent else letter.state
        return msgspec.structs.replace(traced, state="dead" if state == "open" else state)
    if not has_entered:
        return traced
    if not group.has_settled(offset):
        return msgspec.structs.replace(traced, state="held" if attempts else "waiting")
    lane = group.lane_of(message.key, offset)
    is_parked = any(
        event.offset == offset
        for state in failures.lanes(connection, place, [lane])
        if state.parked and state.head <= offset
        for event in failures.parked(connection, place, lane, offset - 1, 1)
    )
    return msgspec.structs.replace(traced, state="parked" if is_parked else "settled")


def _is_of_before(connection: sqlite3.Connection, letter: DeadLetter) -> bool:
    """Whether the group was reset since: the event comes, or came, again."""
    counted: int = connection.execute(
        "SELECT counted FROM letter WHERE id = ?", (letter.id.bytes,)
    ).fetchone()[0]
    return not counted


async def _on_log(file: File, event_id: UUID) -> list[Message]:
    """All events on the log with this id."""
    start_ms = _time_in(event_id)
    found = await _with_id(file, event_id, start_ms)
    if not found and start_ms is not None:
        # The clock was set, or somebody made the id for later: it may lie further back.
        found = await _with_id(file, event_id, None)
    return found


async def _with_id(file: File, event_id: UUID, start_ms: int | None) -> list[Message]:
    async with aclosing(_scan(file, [event_id.bytes], start_ms)) as messages:
        return [message async for message in messages if message.event_id == event_id]


async def _scan(
    file: File, needles: Sequence[bytes], start_ms: int | None
) -> AsyncGenerator[Message]:
    """The events that have one of these as their id or in their headers, in the order of the log.

    Only those that are there when it begins, or a busy log would never be at its end.
    """
    with file.reading():
        newest: int = file.reader.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()[0]
        last = 0 if start_ms is None else _id_before(file.reader, newest, start_ms - _SKEW_MS)
    while last < newest:
        with file.reading():
            last, found = _next_match(file.reader, needles, last, newest)
        if found is not None:
            topic, partition, base, records = found
            for index, record in enumerate(decode_batch(records)):
                if any(needle in record.headers or needle == record.id for needle in needles):
                    yield Message(topic, partition, base + index, record)
        await yield_to_loop()


def _next_match(
    connection: sqlite3.Connection, needles: Sequence[bytes], last: int, newest: int
) -> tuple[int, tuple[str, int, int, bytes] | None]:
    """Read on for one turn: up to which batch, and the batch where it found something."""
    until_s = SystemClock.monotonic_s() + _TURN_S
    # Closed at once, for a statement that is not at its end holds up every checkpoint.
    with closing(
        connection.execute(
            "SELECT id, topic, partition, base_offset, records FROM batch "
            "WHERE id > ? AND id <= ? ORDER BY id",
            (last, newest),
        )
    ) as rows:
        for batch_id, *batch in rows:
            if any(needle in batch[3] for needle in needles):
                return batch_id, (batch[0], batch[1], batch[2], batch[3])
            if SystemClock.monotonic_s() >= until_s:
                return batch_id, None
    return newest, None


def _id_before(connection: sqlite3.Connection, newest: int, at_ms: int) -> int:
    """The last batch that was appended before a time, as far as the clock went forward."""
    start, stop = 0, newest + 1
    while start + 1 < stop:
        middle = (start + stop) // 2
        row = connection.execute(
            "SELECT id, appended_ms FROM batch WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
        ).fetchone()
        if row is None or row[0] >= stop or row[1] >= at_ms:
            stop = middle
        else:
            start = row[0]
    return start


def _time_in(event_id: UUID) -> int | None:
    """The time in an id; None if it has none, as what handlers publish."""
    return event_id.int >> 80 if event_id.version == 7 else None


def _earlier(start_ms: int | None, correlation_id: str) -> int | None:
    """The time of the first event of a chain, where its id says it."""
    try:
        first_ms = _time_in(UUID(correlation_id))
    except ValueError:
        return None
    return None if start_ms is None or first_ms is None else min(start_ms, first_ms)


async def _in_letters(file: File, event_id: UUID) -> list[Message]:
    """An event that is no longer on the log, or never was, since it was edited: a dead letter."""
    number = 0
    while True:
        with file.reading():
            rows = file.reader.execute(
                f"SELECT letter.number, {LETTER_COLUMNS} FROM {LETTER} "
                "WHERE letter.number > ? ORDER BY letter.number LIMIT ?",
                (number, _LETTERS_PER_READ),
            ).fetchall()
        if not rows:
            return []
        for row in rows:
            if str(event_id) in row[1]:
                letter = letter_from(row[1:])
                if letter.event_id == event_id:
                    place = (letter.topic, letter.partition, letter.offset)
                    return [Message(*place, letter.record)]
        number = rows[-1][0]
        await yield_to_loop()


async def _in_parking(file: File, event_id: UUID) -> list[Message]:
    """An event that is no longer on the log, parked."""
    last: Sequence[Any] = ("", "", 0, 0, 0)
    while True:
        with file.reading():
            rows = file.reader.execute(
                "SELECT consumer_group, topic, partition, lane, first_offset, last_offset, records "
                "FROM parked WHERE (consumer_group, topic, partition, lane, first_offset) > "
                "(?, ?, ?, ?, ?) ORDER BY consumer_group, topic, partition, lane, first_offset "
                "LIMIT ?",
                (*last, _PARKED_PER_READ),
            ).fetchall()
            if not rows:
                return []
            for group, topic, partition, lane, first, stop, records in rows:
                if event_id.bytes not in records:
                    continue
                events = failures.parked(
                    file.reader, (group, topic, partition), lane, first - 1, stop - first + 1
                )
                for event in events:
                    if event.record.id == event_id.bytes:
                        return [Message(topic, partition, event.offset, event.record)]
        last = rows[-1][:5]
        await yield_to_loop()


def _traced(message: Message) -> TracedEvent:
    headers = headers_of(message.record.headers)
    return TracedEvent(
        event_id=message.event_id,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        time=message.time,
        event_type=message.event_type,
        key=message.key,
        correlation_id=text_of(headers.get(CORRELATION_ID)) or str(message.event_id),
        causation_id=text_of(headers.get(CAUSATION_ID)),
    )
