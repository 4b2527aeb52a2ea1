"""The lanes of one partition for one group: which event may run, which waits, which is parked.

Pure: no I/O, no clock, no asyncio. The dispatcher feeds it (`add`, `command`, `supply`, `wake`),
asks it what may run (`take`), tells it what became of a run (`done`, `skip`, `retry`, `dead`,
`put_back`), and asks it what to write (`collect`, then `committed`).

A lane is **free** (not in `closed`: its next event runs at once), **busy** (one event runs; later
ones wait in memory), **held** (its head waits in memory until a retry is due), **parked** (its head
is in the parking store until it is due, and what comes later is parked behind it) or **blocked**
(a dead letter closes it, and what comes later is parked).

Invariants:
- At most one event of a lane runs, and no event starts before all earlier ones of its lane have an
  outcome. Within a lane the order is: replays, what is parked, what waits in memory.
- A failed attempt, a parked event and a dead letter are durable before their lane moves on
  (`_awaiting`). A done event need not be: a settlement takes all that is done, in the order of each
  lane, so that after a crash a lane runs again from some event on, and in order.
- The watermark is the lowest offset without an outcome that is not parked. What is done above it is
  written as runs.
- A key becomes free only when nothing of it waits anywhere, and `_advance` alone decides that.
- A lane that is not in `closed` is free, but where the store has more lanes than memory may hold
  (`_all_known`): then the lanes of a fetched batch are looked up before it is added.
"""

from collections.abc import Sequence
from typing import Literal

from eventlane.config import Limits
from eventlane.failure import Attempts, DeadLetter
from eventlane.handler import Context, Delivery, Origin, Trouble
from eventlane.lane import Lane, LaneKey
from eventlane.message import Record
from eventlane.schedule import Schedule
from eventlane.settlement import Acquired, Command, LetterChange, Settlement
from eventlane.span import SETTLED
from eventlane.wording import key_in_words

__all__ = ["Lanes"]

_RUN_BYTES = 12
"""A run of settled offsets as it is written, about."""


class Lanes(Schedule):
    """All lanes of one (group, topic, partition)."""

    __slots__ = ("_awaiting", "_committing")

    def __init__(
        self,
        origin: Origin,
        acquired: Acquired,
        *,
        ordering: Literal["key", "partition", "none"],
        limits: Limits,
        now_ms: int,
    ) -> None:
        super().__init__(origin, acquired, ordering=ordering, limits=limits, now_ms=now_ms)
        self._awaiting: list[Lane] = []
        """Lanes that wait until something of them is durable."""
        self._committing: tuple[list[Lane], list[Lane]] = ([], [])
        """What `_awaiting` and `_parking` were when `collect` was called last."""
        for command in sorted(acquired.commands, key=lambda each: each.letter.offset):
            self.command(command)
        for waiting in list(self.closed.values()):
            if waiting is not None:
                self._advance(waiting)

    # --- what became of a run ---------------------------------------------------------------

    def done(self, delivery: Delivery) -> None:
        """The handler returned."""
        chunk = delivery.chunk
        if chunk is None or delivery.trouble is not None:
            self._close(delivery, "done")
        else:
            chunk.flags[delivery.index] = SETTLED
            self.ledger.done += 1
        if delivery.published:
            self.ledger.publish(delivery)
        lane = self.closed.pop(delivery.lane)
        if lane is not None:
            self.closed[delivery.lane] = lane
            lane.running = False
            self._advance(lane)

    def skip(self, delivery: Delivery) -> None:
        """The event is not for this group; what its handler published is published all the same."""
        self.ledger.publish(delivery)
        self._close(delivery, "skipped")
        lane = self._lane(delivery.lane)
        lane.running = False
        self._advance(lane)

    def mate_ended(self, delivery: Delivery, outcome: Literal["done", "skipped"]) -> None:
        """An event of a list ended, and a later one of its lane is in the same list."""
        self.ledger.publish(delivery)
        self._close(delivery, outcome)

    def retry(self, delivery: Delivery, attempts: Attempts, *, delay_s: float = 0.0) -> None:
        """The run failed and is to be tried again; the lane waits until that is durable and due."""
        trouble = delivery.trouble or Trouble()
        trouble.attempts = attempts
        delivery.trouble = trouble
        delivery.attempt = attempts.count + 1
        delivery.event = delivery.published = None
        self.ledger.attempts[delivery.offset] = attempts
        lane = self._lane(delivery.lane)
        lane.line_of(delivery).insert(0, delivery)
        is_long = delay_s > self._limits.hold_s_max and not self._one_lane
        if trouble.letter is None and delivery.chunk is None:
            self.ledger.changed.add(lane.key)
            if is_long:
                lane.due_ms = attempts.due_ms
                lane.unload()
        elif trouble.letter is None and is_long:
            self._park_until(lane, attempts.due_ms)
        self._await(lane)

    def dead(
        self,
        delivery: Delivery,
        letter: DeadLetter,
        notice: tuple[str, Record] | None = None,
    ) -> None:
        """The event is dead; once that is durable its lane does what the letter says.

        `notice` is published with it: (topic, record).
        """
        if notice is not None:
            self.ledger.published.append(notice)
        lane = self._lane(delivery.lane)
        replayed = delivery.trouble.letter if delivery.trouble else None
        if replayed is not None:
            change = LetterChange(replayed.id, delivery.offset, lane.key, "open", "dead", letter)
            self.ledger.letters.append(change)
            self._end_replay(delivery)
            self._return_replays(lane, delivery)
        else:
            self.ledger.dead.append(letter)
            self._close(delivery, "dead")
            if letter.blocks_lane:
                lane.blockers = (*lane.blockers, delivery.offset)
                lane.operation = None
                lane.unload()  # It may be closed for long.
            else:
                self._note_gap(lane.key, delivery.offset)
            if letter.on_dead == "stop":
                lane.stops = True
                self.stopped.add(delivery.offset)
            elif letter.on_dead == "park":
                self._park_queue(lane)
            self.ledger.changed.add(lane.key)
        self._await(lane)

    def put_back(self, delivery: Delivery, until: object = None) -> None:
        """The event did not run after all; it is the first of its lane again after `resume`."""
        delivery.event = delivery.published = None
        lane = self._lane(delivery.lane)
        lane.line_of(delivery).insert(0, delivery)
        lane.running = False
        self._put_back.setdefault(until, []).append(lane)

    def wait(self, delivery: Delivery, until_ms: int) -> None:
        """The run is not charged to the event, which runs again, not before some wall time."""
        delivery.event = delivery.published = None
        delivery.trouble = delivery.trouble or Trouble()
        delivery.trouble.not_before_ms = until_ms
        lane = self._lane(delivery.lane)
        lane.line_of(delivery).insert(0, delivery)
        lane.running = False
        self._advance(lane)

    def put_mates_back(self, deliveries: Sequence[Delivery]) -> None:
        """Events out of `take_behind` wait again, since an earlier one of their list failed."""
        for delivery in reversed(deliveries):
            delivery.event = delivery.published = None
            self._lane(delivery.lane).queue.appendleft(delivery)

    def command(self, command: Command) -> None:
        """Carry out what an operator asked for."""
        letter, state = command.letter, command.lane
        if state is not None and self.directory.is_unknown(letter.lane):
            self.directory.know(state)
        lane = self._lane(letter.lane)
        if command.kind == "open":
            self._unblock(lane, letter.offset)
            self._note_gap(lane.key, letter.offset)
            self.ledger.commands.append(command.id)
            self.ledger.urgent = True
        else:
            late = not letter.blocks_lane
            delivery: Delivery = Context(self.origin, lane.key, letter.offset, letter.record)
            delivery.trouble = Trouble(
                letter=letter, command=command.id, operation=command.operation, late=late
            )
            self._restore(delivery, command.attempts)
            same = lane.failed_in is not None and lane.failed_in == command.operation
            if command.behind or same:
                # It was released before it was durable that an earlier one had died again.
                self._return_replay(lane, delivery, letter)
            else:
                lane.replays.append(delivery)
                lane.replays.sort(key=lambda each: each.offset)
        self._advance(lane)

    # --- what to write ----------------------------------------------------------------------

    def collect(self) -> Settlement | None:
        """All that became of deliveries since the last call; None if nothing did."""
        if not self.ledger.has_any:
            return None
        watermark = self.span.drop_settled()
        settled = self.span.settled_runs(watermark)
        self.is_crowded = len(settled) * _RUN_BYTES > self._limits.settled_bytes_max
        self._committing = (self._awaiting, self._parking)
        self._awaiting, self._parking = [], []
        return self.ledger.settlement(
            self.origin,
            epoch=self.epoch,
            watermark=watermark,
            settled=settled,
            dispatched=self.promise(),
            state_of=self.directory.state,
            suspects=self.suspects.left(watermark),
        )

    def committed(self) -> None:
        """What `collect` gave last is durable: the lanes that waited for it move on."""
        awaited, parked = self._committing
        self._committing = ([], [])
        self.ledger.writing = set()
        self._frontier = self._promised
        for lane in parked:
            lane.unsaved -= 1
        for lane in awaited:
            lane.running = False
        for lane in dict.fromkeys((*awaited, *parked)):
            if self.directory.is_current(lane):
                self._advance(lane)

    # --- what it looks like from outside ----------------------------------------------------

    @property
    def held(self) -> int:
        """Events of the log in lanes whose head waits for its retry."""
        if not (self._due or self._awaiting or self._committing[0] or self._put_back):
            return 0  # As nearly always, and this is asked again and again.
        waiting = {id(lane): lane for _, _, lane in self._due}
        waiting |= {id(lane): lane for lane in (*self._awaiting, *self._committing[0])}
        aside = {id(lane) for lanes in self._put_back.values() for lane in lanes}
        waiting |= {id(lane): lane for lanes in self._put_back.values() for lane in lanes}
        return sum(
            len(lane.queue)
            for lane in waiting.values()
            if self.directory.is_current(lane) and lane.queue
            if lane.queue[0].trouble or id(lane) in aside
        )

    @property
    def done_so_far(self) -> int:
        """Events that were done since the partition was acquired."""
        return self.ledger.done_before + self.ledger.done

    @property
    def has_room(self) -> bool:
        """Whether more should be fetched."""
        span = self.span
        is_wide = span.next_offset - span.watermark >= self._limits.span_max
        is_crowded = self.is_crowded and span.next_offset > span.watermark
        return not (span.untaken or self.stopped or is_wide or is_crowded or self.is_leaving)

    @property
    def has_untaken(self) -> bool:
        """Whether `take` may give something."""
        return bool(self.ready or (self.span.untaken and not self.blocked and not self.is_leaving))

    def waits_for(self, until: object) -> bool:
        """Whether something was put back until then."""
        return bool(self._put_back.get(until))

    @property
    def next_due_ms(self) -> int | None:
        """When `wake` should be called next."""
        if self.is_leaving:
            return None
        due_ms, unknown_ms = self._due[0][0] if self._due else None, self.directory.horizon_ms
        if unknown_ms is None or self.wants_due:  # They are looked up already.
            return due_ms
        return unknown_ms if due_ms is None else min(due_ms, unknown_ms)

    @property
    def blocked(self) -> bool:
        """Nothing new is taken until an operator acts."""
        return bool(self.stopped) or self.full is not None

    @property
    def why_blocked(self) -> str:
        """Why nothing new is taken, and what to do; empty if it is."""
        if not self.blocked:
            return ""
        place = f"{self.origin.topic}[{self.origin.partition}]"
        if self.stopped:
            return (
                f"{place} is stopped by the dead letter at offset {min(self.stopped)}: replay or "
                "archive it"
            )
        assert self.full is not None
        behind = f"the dead letter at offset {self.full.blockers[0]}" if self.full.blockers else ""
        return (
            f"{place} takes nothing new: {self.full.parked} events of key "
            f"{key_in_words(self.full.key)} are parked behind {behind or 'a long retry'} "
            "(Limits.parked_per_key_max): replay or archive it, or let it become due"
        )

    @property
    def is_moving(self) -> bool:
        """Something is to be run, read, written or handed over; handlers and due times apart."""
        return bool(
            self.ready
            or self.lone
            or self._loading
            or self.wants_due
            or self.is_unwritten
            or self.is_leaving
        )

    @property
    def is_unwritten(self) -> bool:
        """Something is to be written, which goes on while the group is paused."""
        return self.ledger.has_any or bool(self._committing[0] or self._committing[1])

    # --- within -----------------------------------------------------------------------------

    def _await(self, lane: Lane) -> None:
        lane.running = True
        self._awaiting.append(lane)
        self.ledger.urgent = True

    def _close(self, delivery: Delivery, outcome: Literal["done", "skipped", "dead"]) -> None:
        """Note the outcome of an event that is not a plain success of a plain event."""
        trouble = delivery.trouble
        if self.suspects:
            self.suspects.clear(delivery.offset)
        if trouble is not None and trouble.letter is not None:
            assert outcome != "dead"
            lane = self._lane(delivery.lane)
            self.ledger.letters.append(
                LetterChange(trouble.letter.id, delivery.offset, lane.key, "resolved", outcome)
            )
            self._end_replay(delivery)
            self._unblock(lane, delivery.offset)
            if self.directory.forget_gap(lane.key, delivery.offset):
                self.ledger.changed.add(lane.key)
            if lane.parked and not lane.blockers:
                lane.operation = trouble.operation
            return
        if outcome == "done":
            self.ledger.done += 1
        elif outcome == "skipped":
            self.ledger.skipped += 1
        if trouble is not None and trouble.attempts is not None:
            self.ledger.forget_attempts(delivery.offset)
        if delivery.chunk is not None:
            delivery.chunk.flags[delivery.index] = SETTLED
        else:
            self._unpark(self._lane(delivery.lane), delivery.offset, died=outcome == "dead")

    def _unpark(self, lane: Lane, offset: int, *, died: bool) -> None:
        self.ledger.unparked += 1
        lane.parked -= 1
        lane.head = offset + 1
        if lane.operation is not None:
            self.ledger.released.append((lane.operation, died))
            if not lane.parked:
                lane.operation = None
        self.ledger.changed.add(lane.key)
        self.ledger.urgent = True
        if self.full is lane:
            self.full = None

    def _end_replay(self, delivery: Delivery) -> None:
        assert delivery.trouble is not None
        assert delivery.trouble.command is not None
        self.ledger.commands.append(delivery.trouble.command)
        self.ledger.forget_attempts(delivery.offset)
        self.ledger.urgent = True
        self.suspects.clear(delivery.offset)

    def _return_replays(self, lane: Lane, failed: Delivery) -> None:
        """A replay died again: the later ones of its lane do not run before it."""
        assert failed.trouble is not None
        assert failed.trouble.letter is not None
        blocks, operation = failed.trouble.letter.blocks_lane, failed.trouble.operation
        lane.failed_in = operation
        kept: list[Delivery] = []
        for later in lane.replays:
            trouble = later.trouble
            assert trouble is not None
            assert trouble.letter is not None
            if blocks or trouble.operation == operation:
                self._return_replay(lane, later, trouble.letter)
            else:
                kept.append(later)
        lane.replays = kept

    def return_replay(self, delivery: Delivery) -> None:
        """A replay did not run, since its group has no handler for it: the letter is open again."""
        assert delivery.trouble is not None
        assert delivery.trouble.letter is not None
        lane = self._lane(delivery.lane)
        self._return_replay(lane, delivery, delivery.trouble.letter, "unhandled")
        lane.running = False
        self._advance(lane)

    def _return_replay(
        self,
        lane: Lane,
        later: Delivery,
        letter: DeadLetter,
        why: Literal["returned", "unhandled"] = "returned",
    ) -> None:
        self.ledger.letters.append(LetterChange(letter.id, later.offset, lane.key, "open", why))
        self._end_replay(later)

    def _unblock(self, lane: Lane, offset: int) -> None:
        lane.blockers = tuple(each for each in lane.blockers if each != offset)
        self.stopped.discard(offset)
        lane.stops = lane.stops and any(each in self.stopped for each in lane.blockers)
        self.ledger.changed.add(lane.key)
        if self.full is lane:
            self.full = None

    def _note_gap(self, key: LaneKey, offset: int) -> None:
        # Behind an event that is a lane of its own nothing comes.
        if isinstance(key, bytes) or self._one_lane:
            self.directory.note_gap(key, offset)
            self.ledger.changed.add(key)
