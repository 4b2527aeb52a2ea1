"""Fetching: new events of the log, and what waits in the parking store."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush

from eventlane.broker import Consumer
from eventlane.config import Limits
from eventlane.lane import Lane, LaneKey
from eventlane.lanes import Lanes
from eventlane.message import Record
from eventlane.settlement import Parked
from eventlane.suspects import LANES_AT_WORK_MAX

__all__ = ["Feeder"]

log = logging.getLogger("eventlane.dispatch")

_PARKED_PER_READ = 200
_PARKED_BYTES_MAX = 16 << 20
"""Of events that were read back and have not run, about, for a partition."""


class _ParkedLanes:
    """Lanes of one partition whose parked events are to be read back, or run.

    They come in the order in which whoever takes over after an unclean end suspects them, and no
    more run at once, or are not durable yet, than are suspected then.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._waiting: list[tuple[int, bool, LaneKey, Lane]] = []
        self._at_work: list[Lane] = []
        self._size_bytes = 0
        """Of what was read back; what has run since then is taken off when it is too much."""

    @property
    def has_next(self) -> bool:
        """Whether `take` gives something."""
        return bool(self._lanes.to_load or (self._waiting and self._has_room))

    @property
    def _has_room(self) -> bool:
        if self._lanes.is_leaving:
            return False
        if not self._has_few:
            ledger = self._lanes.ledger
            unwritten = ledger.changed | ledger.writing
            self._at_work = [
                each for each in self._at_work if each.running or each.key in unwritten
            ]
            waiting = (each.record for lane in self._at_work for each in lane.drained)
            self._size_bytes = _size_bytes(waiting)
        return self._has_few

    @property
    def _has_few(self) -> bool:
        return len(self._at_work) < LANES_AT_WORK_MAX and self._size_bytes < _PARKED_BYTES_MAX

    def take(self) -> Lane | None:
        """The next one to be read back; None while there is none, or no room for it."""
        to_load = self._lanes.to_load
        for each in to_load:
            heappush(self._waiting, (each.due_ms, isinstance(each.key, bytes), each.key, each))
        to_load.clear()
        if not self._waiting or not self._has_room:
            return None
        lane = heappop(self._waiting)[-1]
        self._at_work.append(lane)
        return lane

    def add(self, rows: Sequence[Parked]) -> None:
        """Note what was read back."""
        self._size_bytes += _size_bytes(each.record for each in rows)


def _size_bytes(records: Iterable[Record]) -> int:
    return sum(len(each.value or b"") + len(each.headers) for each in records)


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
        self._parked: dict[Lanes, _ParkedLanes] = {}

    def grew(self, topic: str) -> None:
        """There may be more to fetch."""
        self.hungry.update(each for each in self._partitions.values() if each.origin.topic == topic)

    @property
    def has_work(self) -> bool:
        """Whether `feed` may find something."""
        return any(each.has_room for each in self.hungry) or any(
            self._has_parked(each) for each in self._partitions.values()
        )

    def _has_parked(self, lanes: Lanes) -> bool:
        parked = self._parked.get(lanes)
        return bool(lanes.to_load or lanes.wants_due or (parked and parked.has_next))

    async def feed(self) -> bool:
        """Fetch what there is room for; whether there is something new to take."""
        if self._feeding:
            return False
        self._feeding = True
        fed = False
        try:
            for lanes in list(self._partitions.values()):
                if self._has_parked(lanes):
                    fed = await self._read_back(lanes) or fed
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

    async def _read_back(self, lanes: Lanes) -> bool:
        topic, partition = lanes.origin.topic, lanes.origin.partition
        count_max = lanes.wants_due
        if count_max:
            due = await self._consumer.fetch_due_lanes(topic, partition, count_max)
            lanes.learn_due(due, count_max)
        if lanes not in self._parked:
            here = self._partitions.values()
            self._parked = {each: own for each, own in self._parked.items() if each in here}
            self._parked[lanes] = _ParkedLanes(lanes)
        found = False
        while (lane := self._parked[lanes].take()) is not None:
            rows = await self._consumer.fetch_parked(
                topic, partition, lane.key, lane.read_to, _PARKED_PER_READ
            )
            if rows:
                self._parked[lanes].add(rows)
                lanes.supply(lane, rows)
                found = True
            else:
                # It stays as it is until this process hears that the partition is not its own.
                log.warning(
                    "%s[%d]: expected %d parked events of key %r, got none: the group was reset",
                    *(topic, partition, lane.parked, lane.key),
                )
        self._fed(lanes)
        return found or bool(count_max)
