"""What the file says after each transaction, as operations of the history.

It reads what is committed, on a connection of its own and at the moment of the commit. So the
history has what happened even where the process that did it was never told.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from eventlane.brokers.embedded.log import LogReader
from eventlane.brokers.embedded.owners import decode_runs, decode_suspects
from eventlane.brokers.embedded.status import read_status
from eventlane.failure import LetterState
from eventlane.handler import Context
from eventlane.message import Record
from eventlane.notice import DeadLettered
from eventlane.outcome import LaneOnDead
from eventlane.suspects import ALONE_IN_PROCESS
from eventlane.testing.history import (
    Acquired,
    Final,
    Letter,
    LetterChanged,
    Log,
    Operation,
    Progress,
    Settled,
    Started,
)
from eventlane.topic import DLQ_SUFFIX

__all__ = ["Observer"]

_Place = tuple[str, str, int]
"""Group, topic, partition."""
_Replay = tuple[_Place, object, int]
"""Place, lane and operation."""
_decode_notice = msgspec.json.Decoder(DeadLettered).decode


class _Letter(NamedTuple):
    state: LetterState
    lane: bytes | int
    on_dead: LaneOnDead


class Observer:
    """Looks at the file of a world."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        record: Callable[[Operation], None],
        process_of: Callable[[str], str],
        is_written: Callable[[UUID], None],
    ) -> None:
        """`process_of` tells the process of a member; `is_written` is told what was published."""
        self._connection = connection
        self._record = record
        self._process_of = process_of
        self._is_written = is_written
        self._epochs: dict[_Place, int] = {}
        self._states: dict[tuple[str, str, int, int], LetterState] = {}
        """Of dead letters, by group, topic, partition and offset."""
        self._edited: set[int] = set()
        """Numbers of the letters that have a child in their place."""
        self._letters: dict[_Place, dict[int, _Letter]] = {}
        self._replays: dict[tuple[str, str, int, int], _Replay] = {}
        """The replay in which an event runs."""
        self._failed_replays: dict[_Replay, int] = {}
        """The offset of the event that died again in it."""

    def settled(
        self, settles: Sequence[Settled], published: Sequence[Record], *, accepted: bool
    ) -> None:
        """Settlements were written together, with what handlers had published; or were not."""
        if accepted:
            for record in published:
                self._is_written(UUID(bytes=record.id))
        for said in settles:
            place = (said.group, said.topic, said.partition)
            stale = self._epochs.get(place, 0) > said.epoch
            self._record(msgspec.structs.replace(said, accepted=accepted, stale=stale))
            if accepted:
                for offset, _ in said.dead:
                    self._states[*place, offset] = "open"
                for offset, state, outcome in said.letters:
                    self._states[*place, offset] = state
                    replay = self._replays.pop((*place, offset), None)
                    if outcome == "dead" and replay is not None:
                        self._failed_replays[replay] = offset

    def look(self) -> None:
        """A transaction was committed: what else has changed?"""
        for (
            group,
            topic,
            partition,
            owner,
            epoch,
            watermark,
            runs,
            suspects,
        ) in self._connection.execute(
            "SELECT consumer_group, topic, partition, owner, epoch, watermark, settled, suspects "
            "FROM progress"
        ):
            place = (group, topic, partition)
            if epoch <= self._epochs.get(place, 0):
                continue
            self._epochs[place] = epoch
            self._record(
                Acquired(
                    process=self._process_of(owner),
                    group=group,
                    topic=topic,
                    partition=partition,
                    epoch=epoch,
                    watermark=watermark,
                    settled=decode_runs(runs),
                    crashes=tuple(
                        (offset, ends - ALONE_IN_PROCESS)
                        for start, stop, ends in decode_suspects(suspects)
                        if ends > ALONE_IN_PROCESS
                        for offset in range(start, stop)
                    ),
                )
            )
        for number, group, topic, partition, offset, *letter in self._connection.execute(
            "SELECT number, consumer_group, topic, partition, offset, state, lane, on_dead "
            "FROM letter ORDER BY number"
        ):
            if number in self._edited:
                continue
            found = _Letter(*letter)
            if found.state == "edited":
                self._edited.add(number)
            self._letters.setdefault((group, topic, partition), {})[offset] = found
            if self._states.get((group, topic, partition, offset)) != found.state:
                self._states[group, topic, partition, offset] = found.state
                self._record(
                    LetterChanged(
                        group=group,
                        topic=topic,
                        partition=partition,
                        offset=offset,
                        state=found.state,
                    )
                )

    def is_owner(self, started: Started) -> bool:
        """Whether a run is one of the owner, by what is durable."""
        return started.epoch == self._epochs.get((started.group, started.topic, started.partition))

    def wrong(self, started: Started, context: Context[Any]) -> str | None:
        """What is wrong with a run that begins, by what is durable; None if nothing is."""
        place = (started.group, started.topic, started.partition)
        if not self.is_owner(started):
            return None  # Who is owner no more knows less.
        return self._wrong_gaps(place, started, context.gaps) or self._wrong_replay(place, context)

    def _wrong_gaps(self, place: _Place, started: Started, gaps: Sequence[int]) -> str | None:
        if started.replayed:
            return None  # It is one itself.
        letters = self._letters.get(place, {})
        lanes = (started.key, -1)
        passed = {
            offset
            for offset, letter in letters.items()
            if offset < started.offset and letter.lane in lanes
            if letter.state == "archived"
            or (letter.state == "open" and letter.on_dead == "continue")
        }
        missing = sorted(passed.difference(gaps))
        if missing:
            return f"its gaps {gaps} lack {missing}, which its lane has passed over"
        unknown = sorted(set(gaps).difference(letters))
        return f"among its gaps are {unknown}, which never died" if unknown else None

    def _wrong_replay(self, place: _Place, context: Context[Any]) -> str | None:
        operation = None if context.trouble is None else context.trouble.operation
        if not context.replayed or operation is None:
            return None
        replay = (place, context.lane, operation)
        self._replays[*place, context.offset] = replay
        failed = self._failed_replays.get(replay)
        if failed is not None and failed < context.offset:
            return f"offset {failed} of its lane died again in the same operation {operation}"
        return None

    # --- the end ----------------------------------------------------------------------------

    def final(self, *, idle: bool, now_ms: int) -> Final:
        """All that is left in the end."""
        status = read_status(
            self._connection, (), now_ms=now_ms, absent_s_max=1e9, is_alive=lambda _: False
        )
        logs, dlq = self._logs()
        return Final(
            idle=idle,
            log=logs,
            progress=tuple(self._progress()),
            groups=status.groups,
            letters=tuple(
                Letter(
                    group=group,
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    state=state,
                    on_dead=on_dead,
                )
                for group, topic, partition, offset, state, on_dead in self._connection.execute(
                    "SELECT consumer_group, topic, partition, offset, state, on_dead FROM letter "
                    "WHERE state != 'edited'"
                )
            ),
            dlq=dlq,
        )

    def _logs(self) -> tuple[tuple[Log, ...], tuple[tuple[str, str, int, int], ...]]:
        """What is on the topics; and which events are on the topics of dead letters."""
        reader = LogReader(self._connection, "")
        logs: list[Log] = []
        dlq: list[tuple[str, str, int, int]] = []
        names = [row[0] for row in self._connection.execute("SELECT name FROM topic ORDER BY name")]
        for name in names:
            topic = reader.topic(name)
            assert topic is not None
            for partition, (first, end) in enumerate(reader.ends(topic)):
                offset, events = first, list[tuple[int, bytes | None, UUID]]()
                while offset < end:
                    batch = reader.fetch(name, partition, offset, end - offset)
                    for at, record in zip(batch.offsets, batch.records, strict=True):
                        events.append((at, record.key, UUID(bytes=record.id)))
                        if name.endswith(DLQ_SUFFIX):
                            notice = _decode_notice(record.value or b"")
                            where = (notice.topic, notice.partition, notice.offset)
                            dlq.append((notice.group, *where))
                    offset = batch.offsets[-1] + 1
                logs.append(Log(topic=name, partition=partition, first=first, events=tuple(events)))
        return tuple(logs), tuple(dlq)

    def _progress(self) -> Iterator[Progress]:
        for *place, watermark, settled in self._connection.execute(
            "SELECT consumer_group, topic, partition, watermark, settled FROM progress"
        ).fetchall():
            group, topic, partition = place
            parked = self._connection.execute(
                "SELECT records FROM parked "
                "WHERE consumer_group = ? AND topic = ? AND partition = ?",
                place,
            ).fetchall()
            yield Progress(
                group=group,
                topic=topic,
                partition=partition,
                watermark=watermark,
                settled=decode_runs(settled),
                parked=tuple(
                    offset for (rows,) in parked for offset, _ in msgspec.msgpack.decode(rows)
                ),
            )
