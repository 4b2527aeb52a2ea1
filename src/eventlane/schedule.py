"""Which event of a partition may run next, which waits, and which is parked: see `lanes.py`.

The invariants are there. This part decides; what becomes of runs is told to the other one.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Literal

from eventlane.config import Limits
from eventlane.directory import Directory
from eventlane.failure import Attempts
from eventlane.handler import Context, Delivery, Origin, Trouble
from eventlane.lane import Lane, LaneKey
from eventlane.ledger import Ledger
from eventlane.settlement import Acquired, Batch, LaneState, Parked
from eventlane.span import EARLY, OPEN, SETTLED, SUSPECT, Chunk, Span
from eventlane.suspects import AHEAD_MIN, ALONE_IN_GROUP, Suspects

__all__ = ["Schedule"]

_AGAIN_MS = 60_000
"""When something is tried again that is parked while what it depends on is out."""


def _nothing() -> None:
    """What there is to take after `forget`."""


class Schedule:
    """Decides which event of one (group, topic, partition) may run."""

    __slots__ = (
        "_ahead",
        "_due",
        "_due_count",
        "_frontier",
        "_keyed",
        "_limits",
        "_loading",
        "_one_lane",
        "_parking",
        "_position",
        "_promised",
        "_put_back",
        "_stored",
        "closed",
        "directory",
        "epoch",
        "full",
        "is_crowded",
        "is_leaving",
        "ledger",
        "lone",
        "now_ms",
        "origin",
        "ready",
        "span",
        "stopped",
        "suspects",
        "take",
        "to_load",
    )

    def __init__(
        self,
        origin: Origin,
        acquired: Acquired,
        *,
        ordering: Literal["key", "partition", "none"],
        limits: Limits,
        now_ms: int,
    ) -> None:
        self.origin = origin
        self.epoch = acquired.epoch
        self.now_ms = now_ms
        self.span = Span(acquired.watermark, acquired.settled)
        self.ledger = Ledger()
        """What the next settlement will say."""
        self.directory = Directory(acquired, self.ledger, limits.parked_lanes_max)
        self.closed = self.directory.closed
        """Every lane that is not free; None: one event runs and nothing else is to be known."""
        self.suspects = Suspects(acquired.suspects, acquired.watermark)
        self.ready: deque[Delivery] = deque()
        """May start at once, before anything new."""
        self.lone: deque[Delivery] = deque()
        """May start, but only alone: see `suspects.py`."""
        self.to_load: list[Lane] = []
        """Lanes whose parked events are to be read back: see `supply`."""
        self.stopped: set[int] = set()
        """Offsets of the dead letters that stop the partition."""
        self.full: Lane | None = None
        """A lane that has reached `parked_per_key_max`: nothing new is taken until it moves."""
        self.is_crowded = False
        """The settled set above the watermark is as large as it may be."""
        self.is_leaving = False
        """Nothing more is taken, since another process is to have the partition: see `halt`."""
        self._keyed = ordering == "key"
        self._one_lane = ordering == "partition"
        self._limits = limits
        self._due: list[tuple[int, int, Lane]] = []
        self._due_count = 0
        self._put_back: dict[object, list[Lane]] = {}
        self._stored = {attempts.offset: attempts for attempts in acquired.attempts}
        self._parking: list[Lane] = []
        """For each event that is to be parked its lane."""
        self._loading = 0
        self._position = acquired.watermark
        """The next offset to be taken, when `collect` was called last."""
        self._ahead = AHEAD_MIN
        self._promised = self._frontier = acquired.watermark + AHEAD_MIN
        """The first offset that may not be taken yet: nobody would suspect it, see `promise`."""
        self.take: Callable[[], Delivery | None] = self._deliveries().__next__
        """The next delivery that may run now, which counts as running from then on; or None."""
        for state in acquired.lanes:
            if state.stops:
                self.stopped.update(state.blockers)

    # --- what may run -----------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Take in what was fetched from `span.next_offset` on; see also `unknown`."""
        chunk = self.span.add(batch)
        first, last = batch.offsets[0], batch.offsets[-1]
        if self._stored and any(first <= offset <= last for offset in self._stored):
            self._take_early(chunk)
        if self.suspects:
            for index, offset in enumerate(chunk.offsets):
                is_lone = self.suspects.ends(offset) >= ALONE_IN_GROUP
                if is_lone and chunk.flags[index] == OPEN:
                    chunk.flags[index] = SUSPECT

    def _deliveries(self) -> Iterator[Delivery | None]:
        """What `take` steps through. A generator, since it keeps its place in local variables."""
        ready, closed, untaken, origin = self.ready, self.closed, self.span.untaken, self.origin
        keyed, one_lane, stopped = self._keyed, self._one_lane, self.stopped
        while True:
            while ready:
                yield ready.popleft()
            if stopped or not untaken:
                yield None
                continue
            chunk = untaken[0]
            records, flags, index = chunk.records, chunk.flags, chunk.next
            count, first, offsets = len(records), chunk.first, chunk.offsets
            until = bisect_left(offsets, self._frontier)
            if until <= index < count:
                self.ledger.urgent = True
                yield None
                continue
            while index < until and not ready and not stopped:
                if flags[index]:
                    if flags[index] == SUSPECT and not self._take_suspect(chunk, index):
                        chunk.next = index
                        yield None
                    else:
                        index += 1
                    continue
                record = records[index]
                offset = offsets[index] if first is None else first + index
                key = record.key if keyed else -1 if one_lane else offset
                if key is None:
                    key = offset
                delivery: Delivery = Context(origin, key, offset, record, chunk, index)
                if key not in closed:
                    closed[key] = None
                    index += 1
                    chunk.next = index
                    yield delivery
                elif self._wait_behind(self._lane(key), delivery):
                    index += 1
                else:
                    chunk.next = index
                    yield None
            chunk.next = index
            if index == count:
                untaken.popleft()

    def halt(self) -> None:
        """Give nothing more; what runs may end, and is written. Whoever has it next goes on."""
        self.is_leaving = True
        self.take = _nothing
        for each in (self.ready, self.lone, self.to_load, self._due):
            each.clear()

    def wake(self, now_ms: int) -> None:
        """Let retries that are due by `now_ms` run."""
        self.now_ms = now_ms
        while self._due and self._due[0][0] <= now_ms:
            lane = heappop(self._due)[2]
            if self.directory.is_current(lane):
                self._advance(lane)

    def supply(self, lane: Lane, rows: Sequence[Parked]) -> None:
        """Take in parked events of a lane out of `to_load`, in order."""
        lane.loading = False
        self._loading -= 1
        for offset, record, attempts in rows:
            delivery: Delivery = Context(self.origin, lane.key, offset, record)
            self._restore(delivery, attempts)
            lane.drained.append(delivery)
            lane.read_to = offset
        assert lane.drained, "a lane counts parked events that the store does not have"
        lane.due_ms = 0
        self._advance(lane)

    def take_behind(self, delivery: Delivery) -> Delivery | None:
        """The event that waits next behind a running one, to run together with it; None: none.

        For lists that may hold several events of a lane. What becomes of them is told in order:
        `mate_ended` for all but the last.
        """
        lane = self.closed.get(delivery.lane)
        if lane is None or not lane.queue or lane.queue[0].trouble is not None:
            return None
        return None if lane.parked or lane.blockers or lane.replays else lane.queue.popleft()

    def resume(self, until: object = None, count_max: int | None = None) -> int:
        """Let what was put back run again: all of it, or the first `count_max` lanes; how many."""
        lanes = self._put_back.pop(until, [])
        if count_max is not None and len(lanes) > count_max:
            self._put_back[until] = lanes[count_max:]
            del lanes[count_max:]
        for lane in lanes:
            if self.directory.is_current(lane):
                self._advance(lane)
        return len(lanes)

    def forget(self) -> None:
        """Give nothing more to handlers, and let go of what waits.

        Deliveries refer back to here, and the cycle collector does not look into them.
        """
        self.take = _nothing
        self.ready.clear()
        self.lone.clear()
        self.span.untaken.clear()
        for lane in self.closed.values():
            if lane is not None:
                lane.replays.clear()
                lane.drained.clear()
                lane.queue.clear()

    def relieve(self) -> None:
        """Park what is held furthest back, so that the watermark can pass it.

        For when the span, or the settled set above the watermark, is as large as it may be.
        """
        if self._one_lane:
            return
        middle = self.span.watermark + self._limits.span_max // 2
        for _, _, lane in self._due:
            if lane.holds and lane.queue[0].offset < middle and self.directory.is_current(lane):
                trouble = lane.queue[0].trouble
                assert trouble is not None
                self._park_until(lane, trouble.due_ms)
        for until in [each for each in self._put_back if each is not None]:
            waiting = self._put_back[until]
            far = dict.fromkeys(lane for lane in waiting if lane.waits_at(middle))
            self._put_back[until] = [lane for lane in waiting if lane not in far]
            for lane in far:
                # What it waits for may be back before: then it is late, and nothing worse.
                self._park_until(lane, self.now_ms + _AGAIN_MS)

    def promise(self) -> int:
        """No higher offset is taken before a settlement after the next one is durable.

        Whoever takes over after an unclean end suspects nothing beyond it. It is far enough ahead
        that nothing waits for it once events flow, and near after a start: in flight at two unclean
        ends are only few then, of which each runs alone.
        """
        position = self.span.next_untaken
        self._ahead = max(AHEAD_MIN, 4 * (position - self._position), self._ahead // 2)
        self._position = position
        self._promised = max(self._frontier, position + self._ahead)
        return self._promised - 1

    # --- lanes that memory does not hold: see directory.py ----------------------------------

    def unknown(self, batch: Batch) -> list[LaneKey]:
        """Lanes of a batch that is to be added, whose state has to be looked up before."""
        if not self._keyed:
            return []
        # Nothing is untaken now, so that none of its lanes can be missed.
        self.directory.forget_idle()
        return self.directory.unknown(batch)

    def learn(self, asked: Sequence[LaneKey], states: Sequence[LaneState]) -> None:
        """What the store says of `asked` lanes; those that are not among `states` are free."""
        for lane in self.directory.learn(asked, states):
            self._advance(lane)

    @property
    def wants_due(self) -> int:
        """How many lanes that are due first should be looked up; 0 for none."""
        return 0 if self.is_leaving else self.directory.wants(self.now_ms)

    def learn_due(self, states: Sequence[LaneState], count_max: int) -> None:
        """Take in lanes that are due first; fewer than `count_max` are all there are."""
        for lane in self.directory.learn_due(states, count_max):
            self._advance(lane)

    # --- within -----------------------------------------------------------------------------

    def _lane(self, key: LaneKey) -> Lane:
        return self.directory.lane(key)

    def _advance(self, lane: Lane) -> None:
        """The one place that decides what a lane does next."""
        if lane.running or self.is_leaving:
            return
        line = lane.line
        if line:
            first, trouble = line[0], line[0].trouble
            if trouble is not None and trouble.due_ms > self.now_ms:
                self._wait_until(trouble.due_ms, lane)
                return
            del line[0]
            lane.running = True
            is_lone = trouble is not None and trouble.ends >= ALONE_IN_GROUP
            (self.lone if is_lone else self.ready).append(first)
        elif lane.parked and not lane.blockers:
            if lane.due_ms > self.now_ms:
                self._wait_until(lane.due_ms, lane)
            elif not lane.unsaved and not lane.loading:
                lane.loading = True
                self._loading += 1
                self.to_load.append(lane)
        elif not lane.blockers:
            del self.closed[lane.key]

    def _wait_until(self, due_ms: int, lane: Lane) -> None:
        self._due_count += 1
        heappush(self._due, (due_ms, self._due_count, lane))

    def _wait_behind(self, lane: Lane, delivery: Delivery) -> bool:
        """Queue or park an event whose lane is not free; False if there is no room for it."""
        if lane.queue or not (lane.parked or lane.blockers):
            lane.queue.append(delivery)
            return True
        return self._park(lane, delivery)

    def _park(self, lane: Lane, delivery: Delivery) -> bool:
        if lane.parked >= self._limits.parked_per_key_max:
            self.full = lane
            return False
        delivery.chunk.flags[delivery.index] = SETTLED
        self.ledger.parked.append((lane.key, delivery.offset, delivery.record))
        self.ledger.changed.add(lane.key)
        self.ledger.urgent = True
        self._parking.append(lane)
        self.suspects.keep(delivery.offset)
        lane.park_in(delivery.offset)
        return True

    def _park_queue(self, lane: Lane) -> None:
        while lane.queue and self._park(lane, lane.queue[0]):
            lane.queue.popleft()

    def _park_until(self, lane: Lane, due_ms: int) -> None:
        """Park the head, which is due later, and what waits behind it."""
        lane.due_ms = due_ms
        self._park_queue(lane)

    def _restore(self, delivery: Delivery, attempts: Attempts | None) -> None:
        """Give a delivery the attempts that are stored of it, and say whether it is suspected."""
        ends = self.suspects.ends(delivery.offset)
        if attempts is None and ends < ALONE_IN_GROUP:
            return
        delivery.trouble = delivery.trouble or Trouble()
        delivery.trouble.ends = ends
        if attempts is not None:
            delivery.attempt = attempts.count + 1
            delivery.trouble.attempts = attempts

    def _take_early(self, chunk: Chunk) -> None:
        """Give events with stored attempts their place at the head of their lane.

        All earlier events of such a lane have an outcome: its attempt could not have been stored
        otherwise.
        """
        for index, offset in enumerate(chunk.offsets):
            if offset in self._stored and not chunk.flags[index]:
                delivery = self._delivery(chunk, index)
                self._restore(delivery, self._stored.pop(offset))
                chunk.flags[index] = EARLY
                lane = self._lane(delivery.lane)
                lane.queue.append(delivery)
                self._advance(lane)

    def _take_suspect(self, chunk: Chunk, index: int) -> bool:
        """Take an event that has to run alone; False if there is no room for it."""
        delivery = self._delivery(chunk, index)
        self._restore(delivery, None)
        lane = self._lane(delivery.lane)
        chunk.flags[index] = OPEN
        if not self._wait_behind(lane, delivery):
            chunk.flags[index] = SUSPECT
            return False
        self._advance(lane)
        return True

    def _delivery(self, chunk: Chunk, index: int) -> Delivery:
        record, offset = chunk.records[index], chunk.offsets[index]
        key = record.key if self._keyed else -1 if self._one_lane else offset
        lane = offset if key is None else key
        return Context(self.origin, lane, offset, record, chunk, index)
