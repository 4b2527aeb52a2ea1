"""A consumer: one process's membership in a group, on the side of the event loop."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from eventlane.brokers.embedded import failures, groups, operations, owners
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.log import LogReader, LogTopic
from eventlane.brokers.embedded.members import Member, Members
from eventlane.brokers.embedded.watch import Watch
from eventlane.brokers.embedded.work import Transaction
from eventlane.brokers.embedded.writer import Writer
from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.errors import EventlaneError, StorageError, Unavailable
from eventlane.settlement import (
    Acquired,
    Appended,
    Batch,
    Change,
    Command,
    GroupSpec,
    LaneState,
    Lost,
    Parked,
    Paused,
    Revoked,
    Settlement,
)

__all__ = ["EmbeddedConsumer"]

_log = logging.getLogger("eventlane.embedded")

_OPENED_MAX = 4_000
"""Lanes to open that are reported before the first of them is settled: an archive has millions."""


class _Reported:
    """The commands of a partition, of those that were reported."""

    def __init__(self) -> None:
        self.last = 0
        self.to_open: set[int] = set()
        """Lanes to open, not settled. Replays are not counted: they may wait for one of these, and
        an operation bounds how many of them it releases."""

    def add(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self.last = max(self.last, command.id)
            if command.kind == "open":
                self.to_open.add(command.id)


class EmbeddedConsumer:
    """See `broker.Consumer`."""

    def __init__(
        self,
        spec: GroupSpec,
        member: Member,
        *,
        file: File,
        log: LogReader,
        writer: Writer,
        watch: Watch,
        members: Members,
        clock: Clock,
        limits: Limits,
        topic_named: Callable[[str], LogTopic],
    ) -> None:
        self._spec = spec
        self._member = member
        self._file = file
        self._log = log
        self._writer = writer
        self._watch = watch
        self._members = members
        self._clock = clock
        self._limits = limits
        self._topic_named = topic_named
        self._changes: list[Change] = []
        """What to report next, in order."""
        self._grown: set[str] = set()
        """Topics whose growth is among these: it is reported once."""
        self._waiter: asyncio.Future[None] | None = None
        self._owned: dict[tuple[str, int], int] = {}
        """The epoch of each partition that it owns."""
        self._commands: dict[tuple[str, int], _Reported] = {}
        """The same for what operators ask of it."""
        self._newest_command = 0
        """The last one of all that was looked at."""
        self._leaves_some = False
        """Some were not reported, since so many have been."""
        self._revoked: set[tuple[str, int]] = set()
        """Those of them that it was told to give up."""
        self._mates: frozenset[tuple[str, bool]] = frozenset()
        """The living members as partitions were shared out last, and which were to leave: those
        that had joined."""
        self._owners: list[owners.Ownership] = []
        """Who owned what then."""
        self.elsewhere: frozenset[tuple[str, str]] = frozenset()
        """See `Consumer.elsewhere`."""
        self._is_draining = False
        self._paused: str | None = None
        self._taking: asyncio.Future[list[Acquired]] | None = None
        self.is_abandoned = False
        """A handler that does not end keeps its partitions until the process exits."""
        self.has_left = False

    @property
    def group(self) -> str:
        """The group's name."""
        return self._spec.name

    # --- broker.Consumer --------------------------------------------------------------------

    async def changes(self) -> Sequence[Change]:
        """See `Consumer.changes`.

        Raises:
            Unavailable: The consumer has left, or the broker was closed.
            StorageError: The file cannot be read.
        """
        while not self._changes:
            if self.has_left:
                raise Unavailable(f"group {self._spec.name!r}: this consumer has left")
            self._waiter = asyncio.get_running_loop().create_future()
            with self._watch.listening():
                await self._waiter
        changes, self._changes = self._changes, []
        self._grown.clear()
        return changes

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """See `Consumer.fetch`."""
        with self._file.reading():
            batch = self._log.fetch(topic, partition, offset, count_max)
            # Only now: who publishes an event of a new type has joined with it before.
            self.elsewhere = owners.elsewhere(self._log.connection, self._spec)
            return batch

    async def fetch_parked(
        self, topic: str, partition: int, lane: bytes | int, after: int, count_max: int
    ) -> Sequence[Parked]:
        """See `Consumer.fetch_parked`."""
        place = (self._spec.name, topic, partition)
        with self._file.reading():
            return failures.parked(self._log.connection, place, lane, after, count_max)

    async def fetch_lanes(
        self, topic: str, partition: int, lanes: Sequence[bytes | int]
    ) -> Sequence[LaneState]:
        """See `Consumer.fetch_lanes`."""
        place = (self._spec.name, topic, partition)
        with self._file.reading():
            return failures.lanes(self._log.connection, place, lanes)

    async def fetch_due_lanes(
        self, topic: str, partition: int, count_max: int
    ) -> Sequence[LaneState]:
        """See `Consumer.fetch_due_lanes`."""
        place = (self._spec.name, topic, partition)
        with self._file.reading():
            return failures.due_lanes(self._log.connection, place, count_max)

    async def advance_operations(self) -> int | None:
        """See `Consumer.advance_operations`."""
        group, now_ms = self._spec.name, self._clock.now_ms()
        with self._file.reading():
            if not operations.any_running(self._log.connection, group):
                return None
        return await self._writer.change(
            lambda transaction: operations.advance(
                transaction, group, now_ms, is_live=not self._is_draining
            )
        )

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Consumer.settle`. What was published to an unknown topic is `NotFound`."""
        topics: dict[str, LogTopic] = {}
        for settlement in settlements:
            for name, _ in settlement.published:
                if name not in topics:
                    topics[name] = self._topic_named(name)
        group, member, now_ms = self._spec.name, self._member.id, self._clock.now_ms()

        def settle(transaction: Transaction) -> None:
            groups.settle(transaction, group, member, settlements, topics=topics, now_ms=now_ms)

        await self._writer.change(settle)
        for settlement in settlements:
            reported = self._commands.get((settlement.topic, settlement.partition))
            if reported is not None:
                reported.to_open.difference_update(settlement.commands)
            if settlement.pause is not None:
                # The dispatcher has paused itself already. It must hear of a resume that came
                # before this process looked, or it would stay paused.
                self._paused = settlement.pause
                self._report(Paused(settlement.pause))
        if self._leaves_some or any(each.pause is not None for each in settlements):
            with self._file.reading():
                self.look()

    async def release(self, topic: str, partition: int, *, needs: str | None = None) -> None:
        """See `Consumer.release`."""
        place = (topic, partition)
        epoch = self._owned.get(place)
        if epoch is None:
            return
        group, member = self._spec.name, self._member.id
        # What is looked at meanwhile is not reported as lost.
        del self._owned[place]
        commands = self._commands.pop(place)
        try:
            await self._writer.change(
                lambda transaction: owners.release(
                    transaction, (group, *place), member, epoch, needs
                )
            )
        except StorageError:
            self._owned.setdefault(place, epoch)
            self._commands.setdefault(place, commands)
            raise
        self._revoked.discard(place)

    async def suspect(self) -> None:
        """See `Consumer.suspect`."""
        group, owned = self._spec.name, dict(self._owned)
        span_max, now_ms = self._limits.span_max, self._clock.now_ms()
        await self._writer.change(
            lambda transaction: owners.suspect(
                transaction, group, self._member.id, owned, span_max=span_max, now_ms=now_ms
            )
        )

    def drain(self) -> None:
        """See `Consumer.drain`."""
        self._is_draining = True
        self._member.drain()

    def abandon(self) -> None:
        """See `Consumer.abandon`."""
        self.is_abandoned = self._member.is_abandoned = True

    def beat(self, in_flight: int, held: int, blocked: Sequence[str] = ()) -> None:
        """See `Consumer.beat`."""
        self._member.report(in_flight, held, blocked)

    async def leave(self) -> None:
        """See `Consumer.leave`. Safe to call twice."""
        if self.has_left or self.is_abandoned:
            return
        self.has_left = True
        self._watch.watchers.pop(self, None)
        self._wake()
        group, member = self._spec.name, self._member.id
        try:
            if self._taking is not None:
                await asyncio.wait((self._taking,))
            now_ms = self._clock.now_ms()

            def leave(transaction: Transaction) -> None:
                owners.leave(transaction, group, member)
                groups.seen(transaction, [group], now_ms)

            await self._writer.change(leave)
        finally:
            # Also when that could not be written: without its file it is dead for everybody.
            self._members.leave(self._member)

    # --- watch.Watcher ----------------------------------------------------------------------

    def appended(self, topic: str) -> None:
        """See `Watcher.appended`."""
        if topic in self._spec.topics and topic not in self._grown:
            self._grown.add(topic)
            self._report(Appended(topic))

    def look(self) -> None:
        """See `Watcher.look`."""
        connection, spec = self._log.connection, self._spec
        row = connection.execute(
            "SELECT paused FROM consumer_group WHERE name = ?", (spec.name,)
        ).fetchone()
        if row is not None and row[0] != self._paused:
            self._paused = row[0]
            self._report(Paused(self._paused))
        found = owners.ownerships(connection, spec)
        ours = {each.place: each.epoch for each in found if each.owner == self._member.id}
        for place, epoch in list(self._owned.items()):
            if ours.get(place) != epoch:  # None: while it was frozen its group was removed
                del self._owned[place], self._commands[place]
                self._lose(place)
        newest = failures.newest_command(connection)
        if newest > self._newest_command or self._leaves_some:
            are_all = [self._report_commands(place) for place in self._commands]
            self._leaves_some = not all(are_all)
        self._newest_command = newest
        if found != self._owners:
            self._owners = found
            self._share()

    def look_at_owners(self) -> None:
        """See `Watcher.look_at_owners`."""
        if self._members.living(self._spec.name) != self._mates:
            self._share()

    def fail(self, error: EventlaneError) -> None:
        """See `Watcher.fail`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    # --- within -----------------------------------------------------------------------------

    async def join(self, topics: Sequence[LogTopic]) -> None:
        """See `Broker.join`: register the group, and take what is free."""
        spec, member, members, limits = self._spec, self._member.id, self._members, self._limits
        now_ms = self._clock.now_ms()

        def join(transaction: Transaction) -> list[Acquired]:
            groups.join(transaction, spec, topics, member=member, members=members, now_ms=now_ms)
            return owners.acquire(
                transaction,
                spec,
                member=member,
                members=members,
                limits=limits,
                now_ms=now_ms,
            )

        acquired = await self._writer.change(join)
        self._watch.watchers[self] = None
        with self._file.reading():
            self.look()  # A paused group has to be known before the first run.
            self._got(acquired)
        members.sweep()

    def _share(self) -> None:
        """Take what is this member's share of the group, and give up what is not."""
        if self.has_left or self._is_draining:
            return
        living = self._members.living(self._spec.name)
        # Who is about to join has a file already, and gets nothing yet: it is looked at again.
        joined = owners.registered(self._log.connection, self._spec.name)
        self._mates = frozenset(each for each in living if each[0] in joined)
        share = owners.share(self._log.connection, self._spec, self._member.id, self._members)
        # What is being given up still counts as owned.
        for place in share.give_up:
            if place in self._owned and place not in self._revoked:
                self._revoked.add(place)
                self._report(Revoked(*place))
        if share.take:
            self._take()

    def _take(self) -> None:
        """Take over what nobody alive owns."""
        if self._taking is not None:
            return
        spec, member, limits = self._spec, self._member.id, self._limits
        members, now_ms = self._members, self._clock.now_ms()
        self._taking = self._writer.change(
            lambda transaction: owners.acquire(
                transaction, spec, member=member, members=members, limits=limits, now_ms=now_ms
            )
        )

        def taken(future: "asyncio.Future[list[Acquired]]") -> None:
            self._taking = None
            error = future.exception()
            if isinstance(error, StorageError):
                _log.warning("group %s cannot take over, trying again: %s", spec.name, error)
                self._mates = frozenset()  # The next look at owners does.
                return
            self._got(future.result())
            self._members.sweep()
            self._share()  # Something may have become free while this was written.

        self._taking.add_done_callback(taken)

    def _got(self, acquired: Sequence[Acquired]) -> None:
        for each in acquired:
            place = (each.topic, each.partition)
            if place in self._owned:  # It was another's for a moment.
                self._lose(place)
            self._owned[place] = each.epoch
            self._commands[place] = reported = _Reported()
            reported.add(each.commands)
            self._report(each)
        self._newest_command = 0
        self.look()

    def _lose(self, place: tuple[str, int]) -> None:
        self._revoked.discard(place)
        self._report(Lost(*place))
        # Where the dispatcher has paused itself, that may be lost with what it had to settle.
        self._report(Paused(self._paused))

    def _report_commands(self, place: tuple[str, int]) -> bool:
        """Report what is new for a partition; whether that was all."""
        reported = self._commands[place]
        while (count_max := _OPENED_MAX - len(reported.to_open)) > 0:
            commands = failures.commands(
                self._log.connection,
                (self._spec.name, *place),
                after=reported.last,
                count_max=count_max,
            )
            reported.add(commands)
            for command in commands:
                self._report(command)
            if len(commands) < count_max:
                return True
        return False

    def _report(self, change: Change) -> None:
        self._changes.append(change)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
