"""The lanes of one partition for one group: which event may run, which waits, which is parked.

Pure: no I/O, no clock, no asyncio. The dispatcher feeds it (`add`, `command`, `supply`, `wake`),
asks it what may run (`take`), tells it what became of a run (`done`, `skip`, `retry`, `dead`,
`put_back`), and asks it what to write (`collect`, then `committed`).

A lane is **free** (not in `closed`: its next event runs at once), **busy** (one event runs; later
ones wait in memory), **held** (its head waits until a retry is due), or **parked** (a dead letter
closes it, or parked events are not worked off yet; later ones are parked behind them).

Invariants:
- At most one event of a lane runs, and no event starts before all earlier ones of its lane have an
  outcome. Within a lane the order is: replays, what is parked, what waits in memory.
- A failed attempt, a parked event and a dead letter are durable before their lane moves on
  (`_awaiting`). A done event need not be: a settlement takes all that is done, in the order of each
  lane, so that after a crash a lane runs again from some event on, and in order.
- The watermark is the lowest offset without an outcome. What is done above it is written as runs.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Literal

from eventlane.config import Limits
from eventlane.failure import Attempts, DeadLetter
from eventlane.handler import Context, Delivery, Origin, Trouble
from eventlane.message import Record
from eventlane.settlement import Acquired, Batch, Command, LetterChange, Settlement
from eventlane.span import EARLY, SETTLED, Chunk, Span

__all__ = ["Lane", "Lanes"]


class Lane:
    """A lane that is not free."""

    __slots__ = (
        "blockers",
        "drained",
        "key",
        "loading",
        "parked",
        "queue",
        "read_to",
        "replays",
        "running",
        "unsaved",
    )

    def __init__(self, key: object) -> None:
        self.key = key
        self.running = False
        """One of its events runs, or what became of it is not durable yet."""
        self.replays: deque[Delivery] = deque()
        self.blockers: set[int] = set()
        """Offsets of the dead letters that close it."""
        self.drained: deque[Delivery] = deque()
        """Parked events that were read back, the earliest first."""
        self.parked = 0
        """Events in the parking store, `drained` ones included."""
        self.unsaved = 0
        """Parked events that are not durable yet."""
        self.loading = False
        self.read_to = -1
        """Offset of the parked event that was read back last."""
        self.queue: deque[Delivery] = deque()
        """Events that wait in memory."""


class Lanes:
    """All lanes of one (group, topic, partition)."""

    __slots__ = (
        "_attempts",
        "_awaiting",
        "_cleared",
        "_commands",
        "_committing",
        "_dead",
        "_done",
        "_due",
        "_due_count",
        "_keyed",
        "_letters",
        "_loading",
        "_one_lane",
        "_parked",
        "_parked_max",
        "_parking",
        "_published",
        "_put_back",
        "_skipped",
        "_stored",
        "_unparked",
        "closed",
        "epoch",
        "full",
        "now_ms",
        "origin",
        "pause",
        "ready",
        "span",
        "stopped",
        "take",
        "to_load",
        "urgent",
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
        self.closed: dict[object, Lane | None] = {}
        """Every lane that is not free; None: one event runs and nothing else is to be known."""
        self.ready: deque[Delivery] = deque()
        """May start at once, before anything new."""
        self.to_load: list[Lane] = []
        """Lanes whose parked events are to be read back: see `supply`."""
        self.stopped: set[int] = set()
        """Offsets of the dead letters that stop the partition."""
        self.full: Lane | None = None
        """A lane that has reached `parked_per_key_max`: nothing new is taken until it moves."""
        self.pause: str | None = None
        """Why the group is to be paused, with the next settlement."""
        self.urgent = False
        """The next settlement should not wait."""
        self._keyed = ordering == "key"
        self._one_lane = ordering == "partition"
        self._parked_max = limits.parked_per_key_max
        self._due: list[tuple[int, int, Lane]] = []
        self._due_count = 0
        self._put_back: list[Lane] = []
        self._stored = {attempts.offset: attempts for attempts in acquired.attempts}
        self._awaiting: list[Lane] = []
        self._parking: list[Lane] = []
        self._committing: tuple[list[Lane], list[Lane]] = ([], [])
        """What `_awaiting` and `_parking` were when `collect` was called last."""
        self._loading = 0
        self.take = self._deliveries().__next__
        """The next delivery that may run now, which counts as running from then on; or None."""
        self._begin_collecting()
        for state in acquired.lanes:
            lane = self._lane(state.key if self._keyed else self)
            lane.parked += state.parked
            lane.blockers.update(state.blockers)
            if state.stops:
                self.stopped.update(state.blockers)
        for command in sorted(acquired.commands, key=lambda each: each.letter.offset):
            self.command(command)
        for waiting in list(self.closed.values()):
            if waiting is not None:
                self._advance(waiting)

    # --- what may run -----------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Take in what was fetched from `span.next_offset` on."""
        chunk = self.span.add(batch)
        first, last = batch.offsets[0], batch.offsets[-1]
        if self._stored and any(first <= offset <= last for offset in self._stored):
            self._take_early(chunk)

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
            while index < count and not ready and not stopped:
                if flags[index]:
                    index += 1
                    continue
                record = records[index]
                offset = offsets[index] if first is None else first + index
                key = record.key if keyed else self if one_lane else offset
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

    def wake(self, now_ms: int) -> None:
        """Let retries that are due by `now_ms` run."""
        self.now_ms = now_ms
        while self._due and self._due[0][0] <= now_ms:
            lane = heappop(self._due)[2]
            if self.closed.get(lane.key) is lane:
                self._advance(lane)

    def supply(self, lane: Lane, rows: Iterable[tuple[int, Record]]) -> None:
        """Take in parked events of a lane out of `to_load`, in order."""
        lane.loading = False
        self._loading -= 1
        for offset, record in rows:
            delivery: Delivery = Context(self.origin, lane.key, offset, record)
            self._restore_attempts(delivery)
            lane.drained.append(delivery)
            lane.read_to = offset
        assert lane.drained, "a lane counts parked events that the store does not have"
        self._advance(lane)

    def command(self, command: Command) -> None:
        """Carry out what an operator asked for."""
        letter = command.letter
        keyed = letter.key if self._keyed else self if self._one_lane else letter.offset
        lane = self._lane(letter.offset if keyed is None else keyed)
        if command.kind == "open":
            self._unblock(lane, letter.offset)
            self._commands.append(command.id)
            self.urgent = True
        else:
            late = not letter.blocks_lane
            delivery: Delivery = Context(self.origin, lane.key, letter.offset, letter.record)
            delivery.trouble = Trouble(letter=letter, command=command.id, late=late)
            self._restore_attempts(delivery)
            lane.replays = deque(sorted((*lane.replays, delivery), key=lambda each: each.offset))
        self._advance(lane)

    def resume(self) -> None:
        """Let what was put back run again."""
        lanes, self._put_back = self._put_back, []
        for lane in lanes:
            if self.closed.get(lane.key) is lane:
                self._advance(lane)

    # --- what became of a run ---------------------------------------------------------------

    def done(self, delivery: Delivery) -> None:
        """The handler returned."""
        chunk = delivery.chunk
        if chunk is None or delivery.trouble is not None:
            self._close(delivery, "done")
        else:
            chunk.flags[delivery.index] = SETTLED
            self._done += 1
        if delivery.published:
            self._take_published(delivery)
        lane = self.closed.pop(delivery.lane)
        if lane is not None:
            self.closed[delivery.lane] = lane
            lane.running = False
            self._advance(lane)

    def skip(self, delivery: Delivery) -> None:
        """The event is not for this group; what its handler published is published all the same."""
        self._take_published(delivery)
        self._close(delivery, "skipped")
        lane = self._lane(delivery.lane)
        lane.running = False
        self._advance(lane)

    def retry(self, delivery: Delivery, attempts: Attempts) -> None:
        """The run failed and is to be tried again; the lane waits until that is durable and due."""
        trouble = delivery.trouble or Trouble()
        trouble.attempts = attempts
        delivery.trouble = trouble
        delivery.attempt = attempts.count + 1
        delivery.event = delivery.published = None
        self._attempts[delivery.offset] = attempts
        lane = self._lane(delivery.lane)
        self._line(lane, delivery).appendleft(delivery)
        self._await(lane)

    def dead(self, delivery: Delivery, letter: DeadLetter) -> None:
        """The event is dead; once that is durable its lane does what the letter says."""
        lane = self._lane(delivery.lane)
        replayed = delivery.trouble.letter if delivery.trouble else None
        if replayed is not None:
            self._letters.append(LetterChange(replayed.id, delivery.offset, "open", "dead", letter))
            self._end_replay(delivery)
        else:
            self._dead.append(letter)
            self._close(delivery, "dead")
            if letter.blocks_lane:
                lane.blockers.add(delivery.offset)
            if letter.on_dead == "stop":
                self.stopped.add(delivery.offset)
            elif letter.on_dead == "park":
                self._park_queue(lane)
        self._await(lane)

    def put_back(self, delivery: Delivery) -> None:
        """The event did not run after all; it is the first of its lane again after `resume`."""
        delivery.event = delivery.published = None
        lane = self._lane(delivery.lane)
        self._line(lane, delivery).appendleft(delivery)
        lane.running = False
        self._put_back.append(lane)

    # --- what to write ----------------------------------------------------------------------

    @property
    def unsettled(self) -> int:
        """Outcomes that the next settlement would carry."""
        return self._done + self._skipped + len(self._parked) + len(self._dead)

    def collect(self) -> Settlement | None:
        """All that became of deliveries since the last call; None if nothing did."""
        if not (self.urgent or self._done or self._skipped):
            return None
        watermark = self.span.drop_settled()
        by_topic: dict[str, list[Record]] = {}
        for topic, record in self._published:
            by_topic.setdefault(topic, []).append(record)
        settlement = Settlement(
            topic=self.origin.topic,
            partition=self.origin.partition,
            epoch=self.epoch,
            watermark=watermark,
            settled=self.span.settled_runs(watermark),
            dispatched=self.span.highest_taken,
            done=self._done,
            skipped=self._skipped,
            attempts=list(self._attempts.values()),
            cleared=self._cleared,
            parked=self._parked,
            unparked=self._unparked,
            dead=self._dead,
            letters=self._letters,
            commands=self._commands,
            published=list(by_topic.items()),
            pause=self.pause,
        )
        self.pause = None
        self._committing = (self._awaiting, self._parking)
        self._awaiting, self._parking = [], []
        self._begin_collecting()
        return settlement

    def committed(self) -> None:
        """What `collect` gave last is durable: the lanes that waited for it move on."""
        awaited, parked = self._committing
        self._committing = ([], [])
        for lane in parked:
            lane.unsaved -= 1
        for lane in awaited:
            lane.running = False
        for lane in dict.fromkeys((*awaited, *parked)):
            if self.closed.get(lane.key) is lane:
                self._advance(lane)

    # --- what it looks like from outside ----------------------------------------------------

    @property
    def held(self) -> int:
        """Events of the log in lanes whose head waits for its retry."""
        waiting = {id(lane): lane for _, _, lane in self._due}
        waiting |= {id(lane): lane for lane in (*self._awaiting, *self._committing[0])}
        return sum(
            len(lane.queue)
            for lane in waiting.values()
            if self.closed.get(lane.key) is lane and lane.queue and lane.queue[0].trouble
        )

    @property
    def next_due_ms(self) -> int | None:
        """When `wake` should be called next."""
        return self._due[0][0] if self._due else None

    @property
    def blocked(self) -> bool:
        """Nothing new is taken until an operator acts."""
        return bool(self.stopped) or self.full is not None

    @property
    def is_moving(self) -> bool:
        """Something is to be run, read back or written; running handlers and due times apart."""
        return bool(self.ready or self._loading or self.is_unwritten)

    @property
    def is_unwritten(self) -> bool:
        """Something is to be written, which goes on while the group is paused."""
        return bool(
            self.urgent or self._done or self._skipped or self._committing[0] or self._committing[1]
        )

    # --- within -----------------------------------------------------------------------------

    def _begin_collecting(self) -> None:
        self.urgent = False
        self._done = self._skipped = 0
        self._attempts: dict[int, Attempts] = {}
        self._cleared: list[int] = []
        self._parked: list[tuple[int, Record]] = []
        self._unparked: list[int] = []
        self._dead: list[DeadLetter] = []
        self._letters: list[LetterChange] = []
        self._commands: list[int] = []
        self._published: list[tuple[str, Record]] = []

    def _lane(self, key: object) -> Lane:
        """The lane of a key, as an object, though it be free or just busy."""
        lane = self.closed.get(key)
        if lane is None:
            busy = key in self.closed
            lane = self.closed[key] = Lane(key)
            lane.running = busy
        return lane

    def _line(self, lane: Lane, delivery: Delivery) -> deque[Delivery]:
        """The line in which a delivery waits."""
        if delivery.trouble is not None and delivery.trouble.letter is not None:
            return lane.replays
        return lane.drained if delivery.chunk is None else lane.queue

    def _advance(self, lane: Lane) -> None:
        """The one place that decides what a lane does next."""
        if lane.running:
            return
        if lane.replays:
            line = lane.replays
        elif lane.blockers:
            return
        elif lane.drained:
            line = lane.drained
        elif lane.parked:
            if not lane.unsaved and not lane.loading:
                lane.loading = True
                self._loading += 1
                self.to_load.append(lane)
            return
        elif lane.queue:
            line = lane.queue
        else:
            del self.closed[lane.key]
            return
        due_ms = 0 if line[0].trouble is None else line[0].trouble.due_ms
        if due_ms > self.now_ms:
            self._due_count += 1
            heappush(self._due, (due_ms, self._due_count, lane))
            return
        lane.running = True
        self.ready.append(line.popleft())

    def _wait_behind(self, lane: Lane, delivery: Delivery) -> bool:
        """Queue or park an event whose lane is not free; False if there is no room for it."""
        if lane.queue or not (lane.parked or lane.blockers):
            lane.queue.append(delivery)
            return True
        return self._park(lane, delivery)

    def _park(self, lane: Lane, delivery: Delivery) -> bool:
        if lane.parked >= self._parked_max:
            self.full = lane
            return False
        delivery.chunk.flags[delivery.index] = SETTLED
        self._parked.append((delivery.offset, delivery.record))
        self._parking.append(lane)
        lane.parked += 1
        lane.unsaved += 1
        self.urgent = True
        return True

    def _park_queue(self, lane: Lane) -> None:
        while lane.queue and self._park(lane, lane.queue[0]):
            lane.queue.popleft()

    def _await(self, lane: Lane) -> None:
        lane.running = True
        self._awaiting.append(lane)
        self.urgent = True

    def _take_published(self, delivery: Delivery) -> None:
        if delivery.published:
            self._published += delivery.published
            self.urgent = True

    def _close(self, delivery: Delivery, outcome: Literal["done", "skipped", "dead"]) -> None:
        """Note the outcome of an event that is not a plain success of a plain event."""
        trouble = delivery.trouble
        if trouble is not None and trouble.letter is not None:
            assert outcome != "dead"
            self._letters.append(
                LetterChange(trouble.letter.id, delivery.offset, "resolved", outcome)
            )
            self._end_replay(delivery)
            self._unblock(self._lane(delivery.lane), delivery.offset)
            return
        if outcome == "done":
            self._done += 1
        elif outcome == "skipped":
            self._skipped += 1
        if trouble is not None and trouble.attempts is not None:
            self._forget_attempts(delivery.offset)
        if delivery.chunk is not None:
            delivery.chunk.flags[delivery.index] = SETTLED
            return
        self._unparked.append(delivery.offset)
        lane = self._lane(delivery.lane)
        lane.parked -= 1
        self.urgent = True
        if self.full is lane:
            self.full = None

    def _end_replay(self, delivery: Delivery) -> None:
        assert delivery.trouble is not None
        assert delivery.trouble.command is not None
        self._commands.append(delivery.trouble.command)
        self._forget_attempts(delivery.offset)
        self.urgent = True

    def _forget_attempts(self, offset: int) -> None:
        self._attempts.pop(offset, None)
        self._cleared.append(offset)

    def _unblock(self, lane: Lane, offset: int) -> None:
        lane.blockers.discard(offset)
        self.stopped.discard(offset)
        if self.full is lane:
            self.full = None

    def _restore_attempts(self, delivery: Delivery) -> None:
        attempts = self._stored.pop(delivery.offset, None)
        if attempts is not None:
            delivery.attempt = attempts.count + 1
            delivery.trouble = delivery.trouble or Trouble()
            delivery.trouble.attempts = attempts

    def _take_early(self, chunk: Chunk) -> None:
        """Give events with stored attempts their place at the head of their lane.

        All earlier events of such a lane have an outcome: its attempt could not have been stored
        otherwise.
        """
        for index, offset in enumerate(chunk.offsets):
            if offset in self._stored and not chunk.flags[index]:
                record = chunk.records[index]
                key = record.key if self._keyed else self if self._one_lane else offset
                lane = self._lane(offset if key is None else key)
                delivery: Delivery = Context(self.origin, lane.key, offset, record, chunk, index)
                self._restore_attempts(delivery)
                chunk.flags[index] = EARLY
                lane.queue.append(delivery)
                self._advance(lane)
