"""The embedded broker without its threads and locks: the same SQL, at moments that a seed draws."""

import asyncio
import queue
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eventlane.app import App
from eventlane.broker import Broker, Consumer
from eventlane.brokers.embedded.broker import EmbeddedBroker
from eventlane.brokers.embedded.caps import Caps
from eventlane.brokers.embedded.file import File
from eventlane.brokers.embedded.members import Heartbeat, Member, Members
from eventlane.brokers.embedded.work import Change, Item, Transaction, Work
from eventlane.brokers.embedded.writer import Writer
from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.message import Record
from eventlane.settlement import Batch, GroupSpec, LaneState, Settlement
from eventlane.testing.history import Settled
from eventlane.testing.passing import PassingConsumer
from eventlane.testing.simulation.observer import Observer
from eventlane.testing.simulation.storage import SimulatedFile
from eventlane.testing.simulation.world import Process

__all__ = ["SimulatedApp"]

T = TypeVar("T")


class SimulatedApp(App):
    """An app of a process of a world."""

    process: Process
    observer: Observer

    def begin(self, process: Process) -> None:
        """Another process runs it, which knows nothing of the one before."""
        self.process = process
        self._broker = None
        self._dispatchers = []

    async def _open_broker(self) -> Broker:
        process, limits = self.process, self._limits

        def opened() -> SimulatedFile:
            file = SimulatedFile(process.world.store)
            process.files.append(file)
            return file

        file = await asyncio.to_thread(opened)
        return _Broker(process, self.observer, file, limits, self._clock)


class _Member(Member):
    """A member without a file."""

    def __init__(self, process: Process, member_id: str, heartbeat: Heartbeat) -> None:
        self.process = process
        self.id = member_id
        self.heartbeat = heartbeat
        self.is_abandoned = False
        self.seen_s = heartbeat.beat_s
        self.has_left = False

    def report(self, in_flight: int, held: int, blocked: Sequence[str]) -> None:
        heartbeat = self.heartbeat
        heartbeat.in_flight, heartbeat.held, heartbeat.blocked = in_flight, held, tuple(blocked)
        self.seen_s = self.process.world.schedule.now_s

    def drain(self) -> None:
        self.heartbeat.is_leaving = True


class _Members(Members):
    """Who is alive, as the world knows it."""

    def __init__(self, process: Process, limits: Limits) -> None:
        self._process = process
        self._world = process.world
        self._limits = limits

    def join(self, *, group: str, host: str, app: str) -> Member:
        everybody = self._world.members
        member_id = f"{self._process.name}-{len(everybody)}"
        heartbeat = Heartbeat(group, 0, host, app, self._world.schedule.now_s)
        member = everybody[member_id] = _Member(self._process, member_id, heartbeat)
        return member

    def leave(self, member: Member) -> None:
        if self._process.is_alive:
            self._world.members[member.id].has_left = True

    def close(self) -> None:
        for member in self._world.members.values():
            if member.process is self._process and not member.is_abandoned:
                self.leave(member)

    def heartbeat(self, id: str) -> Heartbeat | None:
        member = self._world.members.get(id)
        return None if member is None or not self._is_fresh(member) else member.heartbeat

    def alive(self, *, but: str | None = None) -> list[Heartbeat]:
        members = self._world.members.values()
        return [each.heartbeat for each in members if each.id != but and self._is_fresh(each)]

    def living(self, group: str) -> frozenset[tuple[str, bool]]:
        return frozenset(
            (member.id, member.heartbeat.is_leaving)
            for member in self._world.members.values()
            if member.heartbeat.group == group and self._is_fresh(member)
        )

    def sweep(self) -> None:
        pass

    def _is_fresh(self, member: _Member) -> bool:
        process, now_s = member.process, self._world.schedule.now_s
        if member.has_left:
            return False
        if process is self._process:
            return True
        if process.dead_from_s is not None:
            return now_s < process.dead_from_s
        beat_s = process.frozen_s if process.is_frozen else now_s
        if not member.is_abandoned:
            beat_s = min(beat_s, member.seen_s + self._limits.stall_s_max)
        return now_s - beat_s <= self._limits.lease_s


class _Broker(EmbeddedBroker):
    def __init__(
        self, process: Process, observer: Observer, file: File, limits: Limits, clock: Clock
    ) -> None:
        self._process = process
        self._observer = observer
        super().__init__(
            f"embedded:{file.directory}", durability="os", file=file, limits=limits, clock=clock
        )

    def _parts(self, file: File, limits: Limits, clock: Clock) -> tuple[Members, Writer]:
        members = _Members(self._process, limits)
        caps = Caps(str(file.path), limits, members)
        self._committer = _Writer(file, limits, clock, self._watch.tell, caps=caps)
        self._committer.begin(self._process, self._observer)
        return members, self._committer

    async def join(self, group: GroupSpec) -> Consumer:
        return _Consumer(await super().join(group), group, self._process, self._committer)


class _Consumer(PassingConsumer):
    """Says what it settles to who writes it, and so knows what became of it."""

    def __init__(
        self, real: Consumer, group: GroupSpec, process: Process, writer: "_Writer"
    ) -> None:
        super().__init__(real, group)
        self._process = process
        self._writer = writer

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        self._process.loop.step()
        return await super().fetch(topic, partition, offset, count_max)

    async def fetch_due_lanes(
        self, topic: str, partition: int, count_max: int
    ) -> Sequence[LaneState]:
        self._process.loop.step()
        return await super().fetch_due_lanes(topic, partition, count_max)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        group, process = self.group.name, self._process.name
        self._writer.settles = [
            Settled.of(each, process=process, group=group, accepted=None) for each in settlements
        ]
        self._writer.published = [
            record for each in settlements for _, records in each.published for record in records
        ]
        await super().settle(settlements)


class _Said:
    """A change that is a settlement."""

    def __init__(
        self, run: Callable[[Transaction], Any], settles: list[Settled], published: list[Record]
    ) -> None:
        self._run = run
        self.settles = settles
        self.published = published

    def __call__(self, transaction: Transaction) -> Any:
        return self._run(transaction)


class _Queue(queue.SimpleQueue[Item | None]):
    """Calls when something is put in."""

    def __init__(self, called: Callable[[], None]) -> None:
        super().__init__()
        self._called = called

    def put(self, item: Item | None, *_: Any, **__: Any) -> None:
        super().put(item)
        self._called()


class _Writer(Writer):
    """Writes without a thread of its own; the observer looks after each transaction."""

    def begin(self, process: Process, observer: Observer) -> None:
        """Write for a process from now on."""
        self._process = process
        self._observer = observer
        self._is_busy = False
        self.settles: list[Settled] = []
        self.published: list[Record] = []
        """What the change that comes next settles and publishes."""

    def _start(self) -> None:
        self._queue = _Queue(self._ring)

    def change(self, run: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        if not self.settles:
            return super().change(run)
        settles, self.settles = self.settles, []
        return super().change(_Said(run, settles, self.published))

    def _ring(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._process.in_thread(self._process.world.delay_s(), self._turn)

    def _turn(self) -> None:
        process = self._process
        if process.freezes_at_write_s:
            process.freeze(process.freezes_at_write_s)
            process.freezes_at_write_s = 0.0
            process.in_thread(0.0, self._turn)
            return
        work, ends = self._take()
        if work.items:
            self._write(work)
            if process.dies_after_commit:
                process.kill()
                return

        def told() -> None:
            self._is_busy = False
            self._hand_over(work, ends=ends)
            if self._queue.qsize() and not ends:
                self._ring()

        process.in_thread(process.world.delay_s() / 4, told)

    def _write(self, work: Work) -> None:
        super()._write(work)
        changes = [item for item in work.others if isinstance(item, Change)]
        for change in changes:
            if isinstance(change.run, _Said):
                accepted = work.error is None and change.error is None
                self._observer.settled(change.run.settles, change.run.published, accepted=accepted)
        if work.error is not None:
            self._process.world.note(f"{self._process.name} could not write: {work.error}")
            if not isinstance(work.error.__cause__, sqlite3.Error):
                self._process.world.went_wrong("a transaction", work.error)
        elif changes:
            self._observer.look()

    def _fill(self, work: Work) -> None:
        world = self._process.world
        if world.likely(world.disk.failure_ratio):
            raise sqlite3.OperationalError("the simulated disk failed at BEGIN")
        super()._fill(work)
        if world.likely(world.disk.failure_ratio):
            raise sqlite3.OperationalError("the simulated disk failed at COMMIT")
