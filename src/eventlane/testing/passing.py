"""A broker that passes everything on to another one: what a broken one is made from."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

from eventlane.account import Status
from eventlane.broker import Broker, Consumer
from eventlane.failure import DeadLetter, LetterState
from eventlane.message import Position, Record
from eventlane.query import Query
from eventlane.replay import UNPACED, LeftOut, OperationState, OperationStatus, Pace, Plan
from eventlane.settlement import Batch, Change, GroupSpec, LaneState, Parked, Settlement
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

__all__ = ["PassingBroker", "PassingConsumer"]


class PassingConsumer:
    """See `broker.Consumer`."""

    def __init__(self, real: Consumer, group: GroupSpec) -> None:
        self.real = real
        self.group = group

    async def changes(self) -> Sequence[Change]:
        return await self.real.changes()

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        return await self.real.fetch(topic, partition, offset, count_max)

    async def fetch_parked(
        self, topic: str, partition: int, lane: bytes | int, after: int, count_max: int
    ) -> Sequence[Parked]:
        return await self.real.fetch_parked(topic, partition, lane, after, count_max)

    async def fetch_lanes(
        self, topic: str, partition: int, lanes: Sequence[bytes | int]
    ) -> Sequence[LaneState]:
        return await self.real.fetch_lanes(topic, partition, lanes)

    async def fetch_due_lanes(
        self, topic: str, partition: int, count_max: int
    ) -> Sequence[LaneState]:
        return await self.real.fetch_due_lanes(topic, partition, count_max)

    @property
    def elsewhere(self) -> frozenset[tuple[str, str]]:
        return self.real.elsewhere

    async def release(self, topic: str, partition: int, *, needs: str | None = None) -> None:
        await self.real.release(topic, partition, needs=needs)

    def drain(self) -> None:
        self.real.drain()

    async def suspect(self) -> None:
        await self.real.suspect()

    async def advance_operations(self) -> int | None:
        return await self.real.advance_operations()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.real.settle(settlements)

    def beat(self, in_flight: int, held: int, blocked: Sequence[str] = ()) -> None:
        self.real.beat(in_flight, held, blocked)

    def abandon(self) -> None:
        self.real.abandon()

    async def leave(self) -> None:
        await self.real.leave()


class PassingBroker:
    """See `broker.Broker`."""

    def __init__(self, real: Broker) -> None:
        self.real = real
        self.url = real.url
        self.durability = real.durability
        self.times = real.times

    async def ensure_topic(self, topic: Topic) -> int:
        return await self.real.ensure_topic(topic)

    def publish(self, topic: str, record: Record) -> Awaitable[Position]:
        return self.real.publish(topic, record)

    async def append(
        self,
        appends: Sequence[tuple[str, Sequence[Record]]],
        *,
        begun: Callable[[], None] | None = None,
    ) -> None:
        await self.real.append(appends, begun=begun)

    async def join(self, group: GroupSpec) -> Consumer:
        return self.consumer(await self.real.join(group), group)

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        """What stands around a consumer of the real broker."""
        return PassingConsumer(real, group)

    async def reserve(self, name: str, rate_per_s: float, count: int) -> int:
        return await self.real.reserve(name, rate_per_s, count)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return await self.real.ends(topic)

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        return await self.real.fetch(topic, partition, offset, count_max)

    async def wait_for_append(self, topic: str) -> None:
        await self.real.wait_for_append(topic)

    async def aclose(self) -> None:
        await self.real.aclose()

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
        return await self.real.replay(
            letters,
            actor=actor,
            reason=reason,
            pace=pace,
            allow_gap=allow_gap,
            versions=versions,
        )

    async def archive(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        return await self.real.archive(letters, actor=actor, reason=reason, versions=versions)

    async def restore(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        return await self.real.restore(letters, actor=actor, reason=reason, versions=versions)

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
        return await self.real.edit(
            letter, record, diff=diff, actor=actor, reason=reason, version=version
        )

    async def republish(self, letter: UUID, record: Record, *, actor: str, reason: str) -> Position:
        return await self.real.republish(letter, record, actor=actor, reason=reason)

    async def pause_operation(self, id: int, *, actor: str, reason: str) -> None:
        await self.real.pause_operation(id, actor=actor, reason=reason)

    async def resume_operation(self, id: int, *, actor: str, reason: str) -> None:
        await self.real.resume_operation(id, actor=actor, reason=reason)

    async def cancel_operation(self, id: int, *, actor: str, reason: str) -> None:
        await self.real.cancel_operation(id, actor=actor, reason=reason)

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        await self.real.pause(group, actor=actor, reason=reason)

    async def resume(self, group: str, *, actor: str) -> None:
        await self.real.resume(group, actor=actor)

    async def reset(
        self, group: str, to: ResetTo, *, actor: str, reason: str, dry_run: bool
    ) -> ResetPlan:
        return await self.real.reset(group, to, actor=actor, reason=reason, dry_run=dry_run)

    async def rename_group(self, group: str, new: str, *, actor: str, reason: str) -> None:
        await self.real.rename_group(group, new, actor=actor, reason=reason)

    async def remove_group(
        self, group: str, *, actor: str, reason: str, dry_run: bool
    ) -> RemovalPlan:
        return await self.real.remove_group(group, actor=actor, reason=reason, dry_run=dry_run)

    async def backup(self, directory: str) -> int:
        return await self.real.backup(directory)

    async def forget_type(self, group: str, event_type: str, *, actor: str, reason: str) -> None:
        await self.real.forget_type(group, event_type, actor=actor, reason=reason)

    async def lane(self, topic: str, key: bytes) -> Sequence[LaneView]:
        return await self.real.lane(topic, key)

    async def trace(self, event_id: UUID, *, with_chain: bool, limit: int) -> Trace:
        return await self.real.trace(event_id, with_chain=with_chain, limit=limit)

    async def status(self) -> Status:
        return await self.real.status()

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
        return await self.real.dead_letters(
            group=group, state=state, query=query, ids=ids, limit=limit, after=after
        )

    async def failures(self, *, group: str | None, state: LetterState) -> Sequence[FailureSummary]:
        return await self.real.failures(group=group, state=state)

    async def letter_history(self, id: UUID) -> Sequence[LetterEvent]:
        return await self.real.letter_history(id)

    async def plan_replay(
        self, letters: Sequence[UUID] | Query, *, versions: Mapping[UUID, int] | None = None
    ) -> Plan:
        return await self.real.plan_replay(letters, versions=versions)

    async def operation(self, id: int) -> OperationStatus:
        return await self.real.operation(id)

    async def operations(
        self, *, state: OperationState | None = None, limit: int = 100
    ) -> Sequence[OperationStatus]:
        return await self.real.operations(state=state, limit=limit)

    async def operation_letters(self, id: int) -> dict[UUID, LetterState]:
        return await self.real.operation_letters(id)

    async def left_out(self, id: int, *, limit: int = 1000) -> Sequence[LeftOut]:
        return await self.real.left_out(id, limit=limit)
