"""Running what may have killed a process alone: see `suspects.py`."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Protocol

from eventlane.conclude import Concluder
from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.routing import Route, Routes
from eventlane.suspects import ALONE_IN_PROCESS

__all__ = ["LoneRunner", "Quarantine", "Stoppable"]

log = logging.getLogger("eventlane.dispatch")


class Stoppable(Protocol):
    """A group in this process, which can be brought to rest."""

    @property
    def may_start(self) -> bool:
        """Whether it may start runs at all."""
        ...

    @property
    def is_halted(self) -> bool:
        """Whether it is paused, or ends."""
        ...

    def hold(self) -> None:
        """Start no more runs."""
        ...

    def unhold(self) -> None:
        """Go on."""
        ...

    async def rest(self) -> None:
        """Wait until no handler runs."""
        ...


class Quarantine:
    """Sees to it that one event runs alone. One per process and app."""

    def __init__(self) -> None:
        self.groups: list[Stoppable] = []
        """All groups of the process."""
        self._one_at_a_time = asyncio.Lock()
        """In the whole process."""
        self._alone: set[Stoppable] = set()
        """Groups in which something runs alone, or is about to."""
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def alone(self, group: Stoppable, *, in_process: bool) -> AsyncGenerator[None]:
        """Nothing else runs in the group, or in the whole process, in the meantime.

        It is entered only while the group may start runs.
        """
        async with self._one_at_a_time if in_process else nullcontext():
            held = list(self.groups) if in_process else [group]
            for each in held:
                each.hold()
            try:
                # No other one is added meanwhile: their groups are held.
                while in_process and self._alone:
                    self._ended.clear()
                    await self._ended.wait()
                self._alone.add(group)
                for each in held:
                    await each.rest()
                yield
            finally:
                self._alone.discard(group)
                self._ended.set()
                for each in held:
                    each.unhold()


class LoneRunner:
    """Runs the suspected events of one group, one after the other, and nothing beside them."""

    def __init__(
        self,
        name: str,
        group: Stoppable,
        quarantine: Quarantine,
        partitions: Mapping[tuple[str, int], Lanes],
        *,
        crashes_max: int,
        routes: Routes,
        concluder: Concluder,
        note: Callable[[Lanes], None],
        permit: Callable[[Route, Delivery], bool],
        run: Callable[[Delivery], Awaitable[None]],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        """`flush` writes all that is to be written; `permit` asks the rates, before others are
        stopped for it; `note` is told of a partition that goes on.
        """
        self.is_busy = False
        """Something runs alone, or waits until it may."""
        self.runs: Lanes | None = None
        """The partition of which something runs alone."""
        self._name = name
        self._group = group
        self._quarantine = quarantine
        self._partitions = partitions
        self._crashes_max = crashes_max
        self._routes = routes
        self._concluder = concluder
        self._note = note
        self._permit = permit
        self._run = run
        self._flush = flush
        self._wanted = asyncio.Event()

    def go_on(self) -> None:
        """Something waits to run alone, or may by now."""
        self._wanted.set()

    async def run(self) -> None:
        """Run what waits, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            for lanes in list(self._partitions.values()):
                while lanes.lone and self._group.may_start:
                    self.is_busy = True
                    try:
                        await self._take(lanes)
                    finally:
                        self.is_busy = False

    async def _take(self, lanes: Lanes) -> None:
        delivery = lanes.lone.popleft()
        ends = lanes.suspects.ends(delivery.offset)
        crashes = lanes.suspects.crashes(delivery.offset)
        route = self._routes.of(delivery.origin, delivery.record.headers)
        subscription = route.subscription
        if subscription is not None and crashes >= self._crashes_max:
            self._concluder.crashed(delivery, subscription, crashes)
            self._note(lanes)
            return
        if not self._permit(route, delivery):
            return
        log.warning(
            "group %s: %s[%d] offset %d was in flight as a process ended, %d times: it runs alone",
            self._name,
            lanes.origin.topic,
            lanes.origin.partition,
            delivery.offset,
            ends,
            extra={
                "kind": "event_suspected",
                "group": self._name,
                "topic": lanes.origin.topic,
                "partition": lanes.origin.partition,
                "offset": delivery.offset,
            },
        )
        async with self._quarantine.alone(self._group, in_process=ends >= ALONE_IN_PROCESS):
            if self._group.is_halted:  # It was paused while others came to rest.
                lanes.lone.appendleft(delivery)
                return
            # Durable before it starts, so that a successor knows that nothing else was in flight.
            lanes.ledger.alone, lanes.ledger.urgent = delivery.offset, True
            await self._flush()
            if lanes in self._partitions.values() and not lanes.is_leaving:
                self.runs = lanes
                try:
                    await self._run(delivery)
                finally:
                    self.runs = None
            lanes.ledger.alone, lanes.ledger.urgent = None, True
            await self._flush()
