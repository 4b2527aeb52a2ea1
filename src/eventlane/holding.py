"""How a group ends to have a partition in this process: it gives it up, or it has lost it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from eventlane.batching import Lists
from eventlane.broker import Consumer
from eventlane.clock import sleep
from eventlane.errors import StorageError
from eventlane.feeding import Feeder
from eventlane.handler import Context
from eventlane.lanes import Lanes
from eventlane.quarantine import LoneRunner
from eventlane.workers import Worker, Workers

__all__ = ["Holding"]

log = logging.getLogger("eventlane.dispatch")

_TRY_AGAIN_S = 1.0


class Holding:
    """The partitions of one group in this process, as they go."""

    def __init__(
        self,
        group: str,
        consumer: Consumer,
        partitions: dict[tuple[str, int], Lanes],
        *,
        workers: Workers,
        lists: Lists,
        feeder: Feeder,
        lone: LoneRunner,
        flush: Callable[[], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        """`flush` writes all outcomes; `changed` is told when a partition takes no more, or went.

        `partitions` are those that the group has now: others add to them.
        """
        self._done_before = 0  # in partitions that this process no longer has
        self._group = group
        self._consumer = consumer
        self._partitions = partitions
        self._workers = workers
        self._lists = lists
        self._feeder = feeder
        self._lone = lone
        self._flush = flush
        self._changed = changed
        self._leaving: dict[Lanes, str | None] = {}
        """What is being given up, and the event type that is needed for it."""
        self._wanted = asyncio.Event()

    @property
    def done_so_far(self) -> int:
        """How many events were done in this process."""
        return self._done_before + sum(each.done_so_far for each in self._partitions.values())

    def lose(self, topic: str, partition: int) -> None:
        """Another process owns it: cancel what runs of it, and commit nothing."""
        lanes = self._partitions.get((topic, partition))
        if lanes is None:
            return
        log.warning(
            "group %s: %s[%d] is no longer owned here",
            *(self._group, topic, partition),
            extra=self._fields("partition_lost", lanes),
        )
        for worker in self._workers:
            if isinstance(worker.handling, Context) and _handles(worker, lanes):
                worker.cancel()
        self._forget(lanes)

    def give_up(self, lanes: Lanes, needs: str | None = None) -> None:
        """Start nothing more of it, and release it when what runs has ended and is written.

        However long that takes: a run is not cut short so that its partition can move.
        """
        if lanes in self._leaving:
            return
        self._leaving[lanes] = needs
        lanes.halt()
        self._lists.forget(lanes)
        self._feeder.hungry.discard(lanes)
        self._changed()
        self._wanted.set()

    def go_on(self) -> None:
        """Something has ended, or was written."""
        if self._leaving:
            self._wanted.set()

    async def run(self) -> None:
        """Release what is to be given up, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            for lanes in list(self._leaving):
                if not self._runs(lanes):
                    await self._release(lanes)

    def _runs(self, lanes: Lanes) -> bool:
        return self._lone.runs is lanes or any(_handles(each, lanes) for each in self._workers)

    async def _release(self, lanes: Lanes) -> None:
        await self._flush()
        if lanes not in self._leaving or lanes.is_unwritten:
            return  # It was lost meanwhile, or has more to write: what is written next comes here.
        topic, partition = lanes.origin.topic, lanes.origin.partition
        needs = self._leaving[lanes]
        try:
            await self._consumer.release(topic, partition, needs=needs)
        except StorageError as error:
            log.warning(
                "group %s cannot give %s[%d] up, trying again: %s",
                self._group,
                topic,
                partition,
                error,
            )
            await sleep(_TRY_AGAIN_S)
            self._wanted.set()
            return
        why = f"since it has no handler for {needs}" if needs else "to another member"
        log.info(
            "group %s gave %s[%d] up, %s",
            *(self._group, topic, partition, why),
            extra=self._fields("partition_given_up", lanes),
        )
        self._forget(lanes)

    def _fields(self, kind: str, lanes: Lanes) -> dict[str, object]:
        topic, partition = lanes.origin.topic, lanes.origin.partition
        return {"kind": kind, "group": self._group, "topic": topic, "partition": partition}

    def _forget(self, lanes: Lanes) -> None:
        self._leaving.pop(lanes, None)
        place = (lanes.origin.topic, lanes.origin.partition)
        if self._partitions.get(place) is lanes:  # It may have been acquired anew.
            del self._partitions[place]
        self._done_before += lanes.done_so_far
        self._feeder.hungry.discard(lanes)
        self._lists.forget(lanes)
        lanes.forget()
        self._changed()


def _handles(worker: Worker, lanes: Lanes) -> bool:
    running = worker.handling
    if running is None:
        return False
    deliveries = running if isinstance(running, list) else [running]
    return any(each.origin.lanes is lanes for each in deliveries)
