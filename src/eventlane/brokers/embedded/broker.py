"""The embedded broker: one directory, no server."""

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from eventlane.account import Status
from eventlane.broker import Consumer
from eventlane.brokers.embedded import (
    groups,
    inspection,
    letters,
    lifecycle,
    operations,
    operators,
    overview,
    selection,
    tracing,
)
from eventlane.brokers.embedded.backup import copy_file
from eventlane.brokers.embedded.caps import Caps, absent
from eventlane.brokers.embedded.consumer import EmbeddedConsumer
from eventlane.brokers.embedded.file import File, Synchronous
from eventlane.brokers.embedded.inspection import snapshot
from eventlane.brokers.embedded.log import LogReader, LogTopic, ensure_topic
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.operators import By, Edit, Wanted
from eventlane.brokers.embedded.rates import reserve
from eventlane.brokers.embedded.retention import trim
from eventlane.brokers.embedded.status import read_status
from eventlane.brokers.embedded.watch import Watch
from eventlane.brokers.embedded.work import Transaction
from eventlane.brokers.embedded.writer import Writer
from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.errors import ConfigError, NotFound, StorageError
from eventlane.failure import DeadLetter, LetterState
from eventlane.message import Position, Record
from eventlane.metrics import Histogram
from eventlane.query import Query
from eventlane.replay import (
    UNPACED,
    LeftOut,
    OperationKind,
    OperationState,
    OperationStatus,
    Pace,
    Plan,
)
from eventlane.settlement import Batch, GroupSpec
from eventlane.topic import Topic
from eventlane.views import (
    FailureSummary,
    LaneView,
    LetterEvent,
    RemovalPlan,
    ResetPlan,
    ResetTo,
    Trace,
)

__all__ = ["EmbeddedBroker", "open_broker"]

_log = logging.getLogger("eventlane.embedded")

_RETENTION_INTERVAL_S = 60.0


async def open_broker(
    path: str | None, *, limits: Limits, clock: Clock, durability: str | None
) -> "EmbeddedBroker":
    """Open the broker of a directory; None is a private one that goes with the broker.

    Raises:
        ConfigError: The durability is none that it offers.
        StorageError: The directory or the file cannot be used.
    """
    offered = ("fsync", "os") if path is not None else ("os",)
    if durability not in (None, *offered):
        raise ConfigError(
            f"embedded broker: expected durability {' or '.join(map(repr, offered))}, got "
            f"{durability!r}. Leave it out for the strongest, {offered[0]!r}."
        )
    if path is None:
        temporary = tempfile.TemporaryDirectory(prefix="eventlane-")
        file = await _opened(Path(temporary.name), "OFF", limits)
        return EmbeddedBroker(
            "embedded::memory:",
            durability="os",
            file=file,
            limits=limits,
            clock=clock,
            temporary=temporary,
        )
    durability = durability or offered[0]
    file = await _opened(Path(path), "FULL" if durability == "fsync" else "NORMAL", limits)
    return EmbeddedBroker(
        f"embedded:{path}", durability=durability, file=file, limits=limits, clock=clock
    )


async def _opened(directory: Path, synchronous: Synchronous, limits: Limits) -> File:
    # In a thread, because it may have to wait for the disk, or for its turn.
    return await asyncio.to_thread(File, directory, synchronous, limits.lease_s)


class EmbeddedBroker:
    """See `broker.Broker`. Used by the event loop in which it was opened, and by no other."""

    def __init__(
        self,
        url: str,
        *,
        durability: str,
        file: File,
        limits: Limits,
        clock: Clock,
        temporary: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        self.url = url
        self.durability = durability
        self._clock = clock
        self._limits = limits
        self._temporary = temporary
        """The directory, where it goes with the broker."""
        self._loop = asyncio.get_running_loop()
        self._file = file
        self._log = LogReader(file.reader, str(file.path))
        self._watch = Watch(file, self._log)
        self._members, self._writer = self._parts(file, limits, clock)
        self.times: Mapping[str, Histogram] = self._writer.times
        """See `Broker.times`."""
        self._topics: dict[str, LogTopic] = {}
        self._consumers: list[EmbeddedConsumer] = []
        self._closing: asyncio.Task[None] | None = None
        self._retention = self._loop.call_later(_RETENTION_INTERVAL_S, self._retain)
        self._retaining: asyncio.Task[None] | None = None
        self._copies: set[asyncio.Future[int]] = set()

    def _parts(self, file: File, limits: Limits, clock: Clock) -> tuple[Members, Writer]:
        # A method of its own, so that a simulation can do without threads, locks and sockets.
        self._watch.use_bells()
        members = Members(file.directory, lease_s=limits.lease_s, stall_s_max=limits.stall_s_max)
        caps = Caps(str(file.path), limits, members)
        tell, ring = self._watch.tell, self._watch.ring
        return members, Writer(file, limits, clock, tell, ring=ring, caps=caps)

    # --- the log ----------------------------------------------------------------------------

    async def ensure_topic(self, topic: Topic) -> int:
        """See `Broker.ensure_topic`."""
        return await self._writer.change(
            lambda transaction: ensure_topic(transaction.connection, topic)
        )

    def publish(self, topic: str, record: Record) -> "asyncio.Future[Position]":
        """See `Broker.publish`. What is refused is raised by the call itself.

        Raises:
            PublishTimeout: The queue had no room in time; nothing was written.
        """
        log_topic = self._topics.get(topic) or self._topic_named(topic)
        return self._writer.publish(log_topic, record)

    async def append(
        self,
        appends: Sequence[tuple[str, Sequence[Record]]],
        *,
        begun: Callable[[], None] | None = None,
    ) -> None:
        """See `Broker.append`: all or nothing.

        Raises:
            PublishTimeout: The queue had no room in time; nothing was written.
        """
        parts = [(self._topic_named(name), records) for name, records in appends]
        await self._writer.append(parts, begun)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        """See `Broker.ends`.

        Raises:
            NotFound: There is no such topic.
        """
        with self._file.reading():
            return self._log.ends(self._topic_named(topic))

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """See `Broker.fetch`."""
        with self._file.reading():
            return self._log.fetch(topic, partition, offset, count_max)

    async def wait_for_append(self, topic: str) -> None:
        """See `Broker.wait_for_append`.

        Raises:
            Unavailable: The broker is closed.
            StorageError: The file cannot be read.
        """
        await self._watch.wait_for_append(topic)

    async def run_retention(self, now_ms: int) -> None:
        """Remove what is too old or too much by now; the broker does it by itself every minute."""

        def step(transaction: Transaction) -> bool:
            return trim(
                transaction,
                now_ms,
                absent(transaction.connection, self._members, now_ms, self._limits.absent_s),
            )

        while await self._writer.change(step):
            pass

    # --- groups -----------------------------------------------------------------------------

    async def join(self, group: GroupSpec) -> Consumer:
        """See `Broker.join`."""
        topics = [self._topic_named(name) for name in group.topics]
        member = self._members.join(group=group.name, host=group.host, app=group.app)
        consumer = EmbeddedConsumer(
            group,
            member,
            file=self._file,
            log=self._log,
            writer=self._writer,
            watch=self._watch,
            members=self._members,
            clock=self._clock,
            limits=self._limits,
            topic_named=self._topic_named,
        )
        try:
            await consumer.join(topics)
        except BaseException:
            self._members.leave(member)
            raise
        self._consumers = [each for each in self._consumers if not each.has_left]
        self._consumers.append(consumer)
        return consumer

    async def reserve(self, name: str, rate_per_s: float, count: int) -> int:
        """See `Broker.reserve`."""
        return await self._writer.change(
            lambda change: reserve(change, name, rate_per_s, count, self._clock.now_ms())
        )

    # --- operators and queries --------------------------------------------------------------

    async def replay(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        pace: Pace = UNPACED,
        allow_gap: bool = False,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """See `Operators.replay`."""
        return await self._operate(
            "replay", letters, actor, reason, pace, allow_gap=allow_gap, versions=versions
        )

    async def archive(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """See `Operators.archive`."""
        return await self._operate("archive", letters, actor, reason, versions=versions)

    async def restore(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """See `Operators.restore`."""
        return await self._operate("restore", letters, actor, reason, versions=versions)

    async def _operate(
        self,
        kind: OperationKind,
        letters: Sequence[UUID] | Query,
        actor: str,
        reason: str,
        pace: Pace = UNPACED,
        *,
        allow_gap: bool = False,
        versions: Mapping[UUID, int] | None,
    ) -> int:
        selected = await self._selected(kind, letters, versions)
        by = By(actor, reason, self._clock.now_ms())
        wanted = Wanted(kind, self._limits.replays_max, self._live_members(), pace, allow_gap)
        if isinstance(letters, Query):
            wanted = wanted._replace(query=str(letters))
        selected.check(wanted.query, allow_gap=allow_gap)
        operation = await self._writer.change(
            lambda change: operators.begin(change, wanted, selected.steps, by)
        )
        await self._go_on(operation)
        return operation

    async def _selected(
        self,
        kind: OperationKind,
        letters: Sequence[UUID] | Query,
        versions: Mapping[UUID, int] | None,
    ) -> selection.Selected:
        return await selection.select(
            self._file,
            letters,
            kind=kind,
            replays_max=self._limits.replays_max,
            versions=versions or {},
        )

    async def _go_on(self, operation: int) -> None:
        """Take the steps of an operation that need no owner; members take them, too."""
        now_ms = self._clock.now_ms()
        try:
            while await self._writer.change(
                lambda change: operations.go_on(change, operation, now_ms)
            ):
                pass
        except StorageError as error:
            raise StorageError(
                f"operation {operation} is written and will be carried out, but not by this call: "
                f"{error}. Whoever handles its group goes on with it."
            ) from error

    async def edit(
        self,
        letter: UUID,
        record: Record,
        *,
        diff: str,
        actor: str,
        reason: str,
        version: int | None = None,
    ) -> int:
        """See `Operators.edit`."""
        by, live = By(actor, reason, self._clock.now_ms()), self._live_members()
        wanted = Edit(letter, version, record, diff)
        return await self._writer.change(
            lambda change: operators.edit(change, wanted, by, live=live)
        )

    async def republish(self, letter: UUID, record: Record, *, actor: str, reason: str) -> Position:
        """See `Operators.republish`.

        Raises:
            NotFound: There is no such letter.
            StorageFull: A cap is reached; nothing was written.
        """
        by = By(actor, reason, self._clock.now_ms())
        found = await self.dead_letters(ids=[letter], state=None)
        if not found:
            raise NotFound(f"dead letter {letter}: there is none; nothing was changed")
        topic = self._topic_named(found[0].topic)
        return await self._writer.change(
            lambda change: operators.republish(
                change, letter, record, topic, by, caps=self._writer.caps
            )
        )

    async def pause_operation(self, id: int, *, actor: str, reason: str) -> None:
        """See `Operators.pause_operation`."""
        by = By(actor, reason, self._clock.now_ms())
        await self._writer.change(lambda change: operators.pause_operation(change, id, by))

    async def resume_operation(self, id: int, *, actor: str, reason: str) -> None:
        """See `Operators.resume_operation`."""
        by, live = By(actor, reason, self._clock.now_ms()), self._live_members()
        await self._writer.change(
            lambda change: operators.resume_operation(change, id, by, live=live)
        )
        await self._go_on(id)

    async def cancel_operation(self, id: int, *, actor: str, reason: str) -> None:
        """See `Operators.cancel_operation`."""
        by = By(actor, reason, self._clock.now_ms())
        await self._writer.change(lambda change: operators.cancel_operation(change, id, by))
        await self._go_on(id)

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        """See `Operators.pause`."""
        by = By(actor, reason, self._clock.now_ms())
        await self._writer.change(lambda change: operators.pause_group(change, group, by))

    async def resume(self, group: str, *, actor: str) -> None:
        """See `Operators.resume`."""
        by, live = By(actor, "", self._clock.now_ms()), self._live_members()
        await self._writer.change(
            lambda change: operators.resume_group(change, group, by, live=live)
        )

    async def status(self) -> Status:
        """See `Queries.status`."""
        with self._file.reading():
            return read_status(
                self._file.reader,
                self._members.alive(),
                now_ms=self._clock.now_ms(),
                absent_s_max=self._limits.absent_s,
                is_alive=self._members.is_alive,
                disk_bytes_max=self._limits.disk_bytes_max,
            )

    async def dead_letters(
        self,
        *,
        group: str | None = None,
        state: LetterState | None = "open",
        query: Query | None = None,
        ids: Sequence[UUID] | None = None,
        limit: int = 1000,
        after: UUID | None = None,
    ) -> Sequence[DeadLetter]:
        """See `Queries.dead_letters`."""
        with self._file.reading():
            return letters.dead_letters(
                self._file.reader,
                group=group,
                state=state,
                query=query,
                ids=ids,
                limit=limit,
                after=after,
            )

    async def failures(self, *, group: str | None, state: LetterState) -> Sequence[FailureSummary]:
        """See `Queries.failures`."""
        with self._file.reading():
            return letters.summaries(self._file.reader, group=group, state=state)

    async def letter_history(self, id: UUID) -> Sequence[LetterEvent]:
        """See `Queries.letter_history`."""
        with self._file.reading():
            return letters.history(self._file.reader, id)

    async def plan_replay(
        self, letters: Sequence[UUID] | Query, *, versions: Mapping[UUID, int] | None = None
    ) -> Plan:
        """See `Queries.plan_replay`."""
        return (await self._selected("replay", letters, versions)).plan

    async def operation(self, id: int) -> OperationStatus:
        """See `Queries.operation`."""
        with self._file.reading():
            return overview.operation(self._file.reader, id, self._live_members())

    async def operations(
        self, *, state: OperationState | None = None, limit: int = 100
    ) -> Sequence[OperationStatus]:
        """See `Queries.operations`."""
        with self._file.reading():
            return overview.operations(
                self._file.reader, state=state, limit=limit, members=self._live_members()
            )

    async def operation_letters(self, id: int) -> dict[UUID, LetterState]:
        """See `Queries.operation_letters`."""
        with self._file.reading():
            return overview.letters_of(self._file.reader, id)

    async def left_out(self, id: int, *, limit: int = 1000) -> Sequence[LeftOut]:
        """See `Queries.left_out`."""
        with self._file.reading():
            return overview.left_out(self._file.reader, id, limit)

    # --- the life of groups, and looking ----------------------------------------------------

    async def reset(
        self, group: str, to: ResetTo, *, actor: str, reason: str, dry_run: bool
    ) -> ResetPlan:
        """See `Operators.reset`."""
        if dry_run:
            with snapshot(self._file) as connection:
                return lifecycle.plan_reset(connection, group, to)
        by = By(actor, reason, self._clock.now_ms())
        return await self._writer.change(lambda change: lifecycle.reset(change, group, to, by))

    async def rename_group(self, group: str, new: str, *, actor: str, reason: str) -> None:
        """See `Operators.rename_group`."""
        by = By(actor, reason, self._clock.now_ms())
        await self._writer.change(
            lambda change: lifecycle.rename(change, group, new, by, members=self._members)
        )

    async def remove_group(
        self, group: str, *, actor: str, reason: str, dry_run: bool
    ) -> RemovalPlan:
        """See `Operators.remove_group`."""
        if dry_run:
            with snapshot(self._file) as connection:
                return lifecycle.plan_removal(connection, group)
        by = By(actor, reason, self._clock.now_ms())
        return await self._writer.change(
            lambda change: lifecycle.remove(change, group, by, members=self._members)
        )

    async def forget_type(self, group: str, event_type: str, *, actor: str, reason: str) -> None:
        """See `Operators.forget_type`."""
        by = By(actor, reason, self._clock.now_ms())
        await self._writer.change(
            lambda change: lifecycle.forget_type(
                change, group, event_type, by, members=self._members
            )
        )

    async def backup(self, directory: str) -> int:
        """See `Operators.backup`."""
        # Closing must wait for it: the last connection of all would checkpoint out of turn.
        copying = asyncio.ensure_future(asyncio.to_thread(copy_file, self._file, Path(directory)))
        self._copies.add(copying)
        copying.add_done_callback(self._copies.discard)
        return await asyncio.shield(copying)

    async def lane(self, topic: str, key: bytes) -> Sequence[LaneView]:
        """See `Queries.lane`."""
        return await inspection.lane_views(
            self._file,
            self._log,
            self._topic_named(topic),
            key,
            self._live_members(),
            heartbeat=self._members.heartbeat,
        )

    async def trace(self, event_id: UUID, *, with_chain: bool, limit: int) -> Trace:
        """See `Queries.trace`."""
        return await tracing.trace(self._file, event_id, with_chain=with_chain, limit=limit)

    # --- the end ----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `Broker.aclose`."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._retention.cancel()
        if self._retaining is not None:
            await asyncio.wait((self._retaining,))
        if self._copies:
            await asyncio.wait(self._copies)
        try:
            for consumer in self._consumers:
                await consumer.leave()
        finally:
            await self._writer.aclose()
            self._watch.close()
            self._members.close()
            await self._file.aclose()
            if self._temporary is not None:
                self._temporary.cleanup()

    # --- within -----------------------------------------------------------------------------

    def _live_members(self) -> Counter[str]:
        # Whoever drains may be gone before he carries out what is released to him.
        return Counter(each.group for each in self._members.alive() if not each.is_leaving)

    def _topic_named(self, name: str) -> LogTopic:
        """A topic that exists; its number of partitions never changes, so it is read once."""
        topic = self._topics.get(name)
        if topic is None:
            with self._file.reading():
                topic = self._log.topic(name)
                if topic is None:
                    raise NotFound(f"topic {name!r}: there is none. {self._log.nearest(name)}")
            self._topics[name] = topic
        return topic

    def _retain(self) -> None:
        self._retaining = self._loop.create_task(self._try_retention())
        self._retention = self._loop.call_later(_RETENTION_INTERVAL_S, self._retain)

    async def _try_retention(self) -> None:
        now_ms = self._clock.now_ms()
        alive = [each.group for each in self._consumers if not each.has_left]
        try:
            await self._writer.change(lambda transaction: groups.seen(transaction, alive, now_ms))
            await self.run_retention(now_ms)
            for sentence in (await self.status()).near_caps:
                _log.warning("%s: %s", self.url, sentence)
        except StorageError:
            _log.exception("%s: retention failed; it is tried again in a minute", self.url)
