"""A broker that passes everything on to another one: what a broken one is made from."""

from collections.abc import Awaitable, Sequence
from uuid import UUID

from eventlane.account import Status
from eventlane.broker import Broker, Consumer
from eventlane.failure import DeadLetter, LetterState
from eventlane.message import Position, Record
from eventlane.settlement import Batch, Change, GroupSpec, Settlement
from eventlane.topic import Topic

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
        self, topic: str, partition: int, key: bytes | None, after: int, count_max: int
    ) -> Sequence[tuple[int, Record]]:
        return await self.real.fetch_parked(topic, partition, key, after, count_max)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.real.settle(settlements)

    def beat(self, in_flight: int, held: int) -> None:
        self.real.beat(in_flight, held)

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

    async def ensure_topic(self, topic: Topic) -> int:
        return await self.real.ensure_topic(topic)

    def publish(self, topic: str, record: Record) -> Awaitable[Position]:
        return self.real.publish(topic, record)

    async def append(self, appends: Sequence[tuple[str, Sequence[Record]]]) -> None:
        await self.real.append(appends)

    async def join(self, group: GroupSpec) -> Consumer:
        return self.consumer(await self.real.join(group), group)

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        """What stands around a consumer of the real broker."""
        return PassingConsumer(real, group)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return await self.real.ends(topic)

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        return await self.real.fetch(topic, partition, offset, count_max)

    async def wait_for_append(self, topic: str) -> None:
        await self.real.wait_for_append(topic)

    async def aclose(self) -> None:
        await self.real.aclose()

    async def replay(self, ids: Sequence[UUID], *, actor: str, reason: str) -> int:
        return await self.real.replay(ids, actor=actor, reason=reason)

    async def archive(self, ids: Sequence[UUID], *, actor: str, reason: str) -> int:
        return await self.real.archive(ids, actor=actor, reason=reason)

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        await self.real.pause(group, actor=actor, reason=reason)

    async def resume(self, group: str, *, actor: str) -> None:
        await self.real.resume(group, actor=actor)

    async def status(self) -> Status:
        return await self.real.status()

    async def dead_letters(
        self,
        *,
        group: str | None = None,
        state: LetterState | None = "open",
        ids: Sequence[UUID] | None = None,
        limit: int = 1000,
        after: UUID | None = None,
    ) -> Sequence[DeadLetter]:
        return await self.real.dead_letters(
            group=group, state=state, ids=ids, limit=limit, after=after
        )

    async def operation(self, id: int) -> dict[UUID, LetterState]:
        return await self.real.operation(id)
