"""Fetching: new events of the log, and what waits in the parking store."""

from collections.abc import Callable, Mapping

from eventlane.broker import Consumer
from eventlane.config import Limits
from eventlane.lanes import Lanes

__all__ = ["Feeder"]

_PARKED_PER_READ = 200


class Feeder:
    """Fetches for all partitions of one group in this process."""

    def __init__(
        self,
        consumer: Consumer,
        partitions: Mapping[tuple[str, int], Lanes],
        limits: Limits,
        *,
        fed: Callable[[Lanes], None],
    ) -> None:
        """`fed` is told of each partition that has something new."""
        self.hungry: set[Lanes] = set()
        """Partitions that may have more to fetch."""
        self._consumer = consumer
        self._partitions = partitions
        self._limits = limits
        self._fed = fed
        self._feeding = False

    def grew(self, topic: str) -> None:
        """There may be more to fetch."""
        self.hungry.update(each for each in self._partitions.values() if each.origin.topic == topic)

    @property
    def has_work(self) -> bool:
        """Whether `feed` may find something."""
        return any(each.has_room for each in self.hungry) or any(
            each.to_load or each.wants_due for each in self._partitions.values()
        )

    async def feed(self) -> bool:
        """Fetch what there is room for; whether there is something new to take."""
        if self._feeding:
            return False
        self._feeding = True
        fed = False
        try:
            for lanes in list(self._partitions.values()):
                if lanes.to_load or lanes.wants_due:
                    await self._read_back(lanes)
                    fed = True
                if lanes in self.hungry and not lanes.span.untaken and not lanes.stopped:
                    fed = await self._fetch(lanes) or fed
        finally:
            self._feeding = False
        return fed

    async def _fetch(self, lanes: Lanes) -> bool:
        if not lanes.has_room:
            lanes.relieve()
            self._fed(lanes)
            return False
        topic, partition = lanes.origin.topic, lanes.origin.partition
        batch = await self._consumer.fetch(
            topic, partition, lanes.span.next_offset, self._limits.fetch_events_max
        )
        if not batch.records:
            self.hungry.discard(lanes)
            return False
        unknown = lanes.unknown(batch)
        if unknown:
            states = await self._consumer.fetch_lanes(topic, partition, unknown)
            lanes.learn(unknown, states)
        lanes.add(batch)
        self._fed(lanes)
        return True

    async def _read_back(self, lanes: Lanes) -> None:
        topic, partition = lanes.origin.topic, lanes.origin.partition
        count_max = lanes.wants_due
        if count_max:
            due = await self._consumer.fetch_due_lanes(topic, partition, count_max)
            lanes.learn_due(due, count_max)
        while lanes.to_load:
            lane = lanes.to_load.pop()
            rows = await self._consumer.fetch_parked(
                topic, partition, lane.key, lane.read_to, _PARKED_PER_READ
            )
            lanes.supply(lane, rows)
        self._fed(lanes)
