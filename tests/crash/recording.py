"""Writes the history of a broker's consumers, and what the broker says in the end."""

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

from eventlane.app import App
from eventlane.broker import Broker, Consumer
from eventlane.brokers.embedded import failures
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.owners import decode_runs
from eventlane.errors import Fenced, NotFound, StorageError
from eventlane.notice import DeadLettered, dlq_topic
from eventlane.settlement import Acquired as AcquiredChange
from eventlane.settlement import Command, GroupSpec, Settlement
from eventlane.testing.history import (
    Acquired,
    Final,
    Letter,
    LetterChanged,
    Log,
    Operation,
    Progress,
    Settled,
)
from eventlane.testing.passing import PassingBroker, PassingConsumer

Say = Callable[[Operation], None]


class RecordingBroker(PassingBroker):
    """A broker whose consumers say what they are told, and, if it is known, what they write."""

    def __init__(
        self, real: Broker, process: str, say: Say, commands: set[int] | None = None
    ) -> None:
        """`commands`: those that were seen, where the process outlives all that it writes."""
        super().__init__(real)
        self.process = process
        self.say = say
        self.commands = commands

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        return RecordingConsumer(real, group, self)


class RecordingConsumer(PassingConsumer):
    def __init__(self, real: Consumer, group: GroupSpec, broker: RecordingBroker) -> None:
        super().__init__(real, group)
        self._broker = broker

    async def changes(self) -> Sequence[Any]:
        changes = await self.real.changes()
        for change in changes:
            if isinstance(change, AcquiredChange):
                self._broker.say(
                    Acquired.of(change, process=self._broker.process, group=self.group.name)
                )
                self._note(change.commands)
            elif isinstance(change, Command):
                self._note([change])
        return changes

    def _note(self, commands: Sequence[Command]) -> None:
        seen = self._broker.commands
        if seen is None:
            return
        for command in commands:
            if command.kind == "replay" and command.id not in seen:
                self._broker.say(LetterChanged.of(command.letter, "replaying"))
            seen.add(command.id)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        try:
            await self.real.settle(settlements)
        except (Fenced, StorageError):
            self._say_settled(settlements, accepted=False)
            raise
        self._say_settled(settlements, accepted=True)

    def _say_settled(self, settlements: Sequence[Settlement], *, accepted: bool) -> None:
        if self._broker.commands is not None:
            process, group = self._broker.process, self.group.name
            for each in settlements:
                self._broker.say(Settled.of(each, process=process, group=group, accepted=accepted))


def embedded(app: App) -> Any:
    """The embedded broker of an app, whatever stands around it."""
    broker: Any = app._connected
    while isinstance(broker, PassingBroker):
        broker = broker.real
    return broker


def file_of(app: App) -> File:
    """The file of an app on the embedded broker."""
    file: File = embedded(app)._file
    return file


async def final_of(app: App, topic: str, groups: Sequence[str]) -> Final:
    """What the broker says of a topic and its groups, once nothing happens any more."""
    events: defaultdict[int, list[tuple[int, bytes | None, UUID]]] = defaultdict(list)
    async for message in app.read(topic):
        events[message.partition].append((message.offset, message.key, message.event_id))
    status = await app.status()
    ends = await app._connected.ends(topic)
    return Final(
        idle=True,
        log=tuple(
            Log(topic=topic, partition=partition, events=tuple(events[partition]), first=first)
            for partition, (first, _) in enumerate(ends)
        ),
        progress=tuple(progress_of(file_of(app), topic, groups)),
        groups={name: status.groups[name] for name in groups},
        letters=tuple(
            Letter(
                group=each.group,
                topic=each.topic,
                partition=each.partition,
                offset=each.offset,
                state=each.state,
                on_dead=each.on_dead,
                crashes=each.crashes,
            )
            for each in await app.dead_letters(state=None, limit=1_000_000)
        ),
        dlq=tuple([each for group in groups async for each in notices_of(app, topic, group)]),
    )


def progress_of(file: File, topic: str, groups: Sequence[str]) -> Iterator[Progress]:
    rows = file.reader.execute(
        "SELECT consumer_group, partition, watermark, settled FROM progress WHERE topic = ?",
        (topic,),
    ).fetchall()
    for group, partition, watermark, settled in rows:
        place = (group, topic, partition)
        lanes = file.reader.execute(
            "SELECT lane FROM lane WHERE consumer_group = ? AND topic = ? AND partition = ?", place
        ).fetchall()
        if group in groups:
            yield Progress(
                group=group,
                topic=topic,
                partition=partition,
                watermark=watermark,
                settled=decode_runs(settled),
                parked=tuple(
                    each.offset
                    for (lane,) in lanes
                    for each in failures.parked(file.reader, place, lane, -1, 1 << 30)
                ),
            )


async def notices_of(app: App, topic: str, group: str) -> AsyncIterator[tuple[str, str, int, int]]:
    """What stands on a topic of dead letters; nothing where there were none."""
    with contextlib.suppress(NotFound):
        async for message in app.read(dlq_topic(topic, group)):
            notice = app.decode(message, DeadLettered)
            yield notice.group, notice.topic, notice.partition, notice.offset
