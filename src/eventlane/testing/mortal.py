"""A broker that can be ended as a killed process is: from then on nothing of it is written."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from eventlane.broker import Broker, Consumer
from eventlane.errors import Fenced, Unavailable
from eventlane.settlement import Change, GroupSpec, Settlement
from eventlane.testing.passing import PassingBroker, PassingConsumer

__all__ = ["Kill", "MortalBroker", "say_suspects_and_leave"]

Kill = Callable[[Broker, Sequence[Consumer]], Awaitable[None]]
"""Ends the memberships of an opened broker as a kill -9 would; it is closed later, and says nothing
then either."""


async def say_suspects_and_leave(_: Broker, consumers: Sequence[Consumer]) -> None:
    """For a broker that cannot be left behind dead: what it says itself of an unclean end."""
    for each in consumers:
        await each.suspect()
        await each.leave()


class MortalBroker(PassingBroker):
    """Passes everything on, until it is killed."""

    def __init__(self, real: Broker, kill: Kill) -> None:
        super().__init__(real)
        self.is_dead = False
        self._kill = kill
        self._members: list[Consumer] = []

    async def kill(self) -> None:
        """Be dead. The handlers of its app may end, and nobody learns what became of them."""
        self.is_dead = True
        await self._kill(self.real, self._members)

    async def join(self, group: GroupSpec) -> Consumer:
        if self.is_dead:
            raise Unavailable("the process was killed")
        real = await self.real.join(group)
        self._members.append(real)
        return _MortalConsumer(real, group, self)


class _MortalConsumer(PassingConsumer):
    def __init__(self, real: Consumer, group: GroupSpec, broker: MortalBroker) -> None:
        super().__init__(real, group)
        self._broker = broker

    async def changes(self) -> Sequence[Change]:
        try:
            return await self.real.changes()
        except Unavailable:
            if not self._broker.is_dead:
                raise
        await asyncio.Event().wait()
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        if self._broker.is_dead:
            places = [(each.topic, each.partition) for each in settlements]
            raise Fenced("the process was killed", partitions=places)
        await self.real.settle(settlements)

    async def release(self, topic: str, partition: int, *, needs: str | None = None) -> None:
        if not self._broker.is_dead:
            await self.real.release(topic, partition, needs=needs)

    def drain(self) -> None:
        if not self._broker.is_dead:
            self.real.drain()

    def beat(self, in_flight: int, held: int, blocked: Sequence[str] = ()) -> None:
        if not self._broker.is_dead:
            self.real.beat(in_flight, held, blocked)

    def abandon(self) -> None:
        if not self._broker.is_dead:
            self.real.abandon()

    async def suspect(self) -> None:
        if not self._broker.is_dead:
            await self.real.suspect()

    async def advance_operations(self) -> int | None:
        return None if self._broker.is_dead else await self.real.advance_operations()

    async def leave(self) -> None:
        if not self._broker.is_dead:
            await self.real.leave()
