"""The lanes against what they promise, driven at random: what runs, what waits, what is written."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventlane.config import Limits
from eventlane.failure import Attempts, DeadLetter
from eventlane.handler import Context, Origin
from eventlane.lanes import Lanes
from eventlane.message import Record, derived_id
from eventlane.settlement import Acquired, Batch, Command, LaneState, Parked, Settlement

Delivery = Context[Any]
KEYS = (b"a", b"a", b"b", b"c", None)
LIMITS = Limits(parked_per_key_max=6, hold_s_max=0.05, span_max=8, parked_lanes_max=2)
HOW = (
    *("done", "done", "done", "retry", "retry", "park", "park"),
    *("continue", "stop", "skip", "put back"),
)


def record(offset: int, key: bytes | None) -> Record:
    return Record(offset.to_bytes(16, "big"), key, b"", 0, b"")


def letter_of(delivery: Delivery, on_dead: Any, replayed: DeadLetter | None) -> DeadLetter:
    return DeadLetter(
        **{
            **dict.fromkeys(DeadLetter.__struct_fields__),
            "id": derived_id(delivery.offset),
            "offset": delivery.offset,
            "lane": delivery.lane,
            "key": delivery.record.key,
            "value": b"",
            "header_block": b"",
            "event_id": delivery.event_id,
            "produced_ms": 0,
            "state": "open",
            "version": 1,
            "replay_count": 0 if replayed is None else replayed.replay_count + 1,
            "on_dead": on_dead if replayed is None else replayed.on_dead,
        }
    )


class Store:
    """What is durable: a broker for one partition, as plainly as it can be."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.watermark = 0
        self.settled: set[int] = set()
        self.attempts: dict[int, Attempts] = {}
        self.parked: dict[int, tuple[bytes | int, Record]] = {}
        self.lanes: dict[bytes | int, LaneState] = {}
        self.letters: dict[int, DeadLetter] = {}
        self.states: dict[int, str] = {}
        self.commands: dict[int, Command] = {}
        self.outcomes: dict[int, str] = {}
        self.suspects: tuple[tuple[int, int, int], ...] = ()

    def write(self, settlement: Settlement) -> None:
        assert settlement.watermark >= self.watermark, "the watermark went down"
        self.watermark = settlement.watermark
        self.settled = {o for start, stop in settlement.settled for o in range(start, stop)}
        for attempts in settlement.attempts:
            before = self.attempts.get(attempts.offset)
            assert before is None or before.count < attempts.count, "attempts went down"
            self.attempts[attempts.offset] = attempts
        for offset in settlement.cleared:
            self.attempts.pop(offset, None)
        self.write_lanes(settlement)
        for letter in settlement.dead:
            assert letter.offset not in self.letters, "dead twice"
            self.letters[letter.offset] = letter
            self.states[letter.offset] = "open"
        for change in settlement.letters:
            self.states[change.offset] = change.state
            if change.failed is not None:
                self.letters[change.offset] = change.failed
        for command in settlement.commands:
            del self.commands[command]
        if settlement.suspects is not None:
            self.suspects = tuple(settlement.suspects)

    def write_lanes(self, settlement: Settlement) -> None:
        count = len(self.parked) + len(settlement.parked) - settlement.unparked
        self.parked.update({offset: (lane, each) for lane, offset, each in settlement.parked})
        for state in settlement.lanes:
            for offset in self.parked_of(state.lane):
                if offset < state.head or not state.parked:
                    del self.parked[offset]
            self.lanes[state.lane] = state
            if state.is_free and not state.gaps:
                del self.lanes[state.lane]
        assert len(self.parked) == count, "the account of the parking store is off"
        for lane, state in self.lanes.items():
            assert state.parked == len(self.parked_of(lane)), "a lane's count is off"
            alive = tuple(
                offset
                for offset, letter in self.letters.items()
                if letter.lane == lane and letter.blocks_lane and self.states[offset] != "archived"
                if self.states[offset] in ("open", "replaying")
            )
            new = {each.offset for each in settlement.dead if each.blocks_lane}
            over_now = {each.offset for each in settlement.letters if each.state == "resolved"}
            asked = {c.letter.offset for c in self.commands.values() if c.kind == "open"}
            expected = (set(alive) | {o for o in new if o in state.blockers}) - over_now
            assert set(state.blockers) - asked == expected - asked, "a lane's blockers are off"

    def parked_of(self, lane: bytes | int) -> list[int]:
        return sorted(offset for offset, (other, _) in self.parked.items() if other == lane)

    def due(self) -> list[LaneState]:
        return sorted(
            (each for each in self.lanes.values() if each.parked and not each.blockers),
            key=lambda each: each.due_ms or 0,
        )

    def acquired(self) -> Acquired:
        stops = [each for each in self.lanes.values() if each.stops]
        closed = [each for each in self.lanes.values() if each.blockers and not each.stops]
        free = [each for each in self.lanes.values() if each.is_free]
        lanes = (*stops, *self.due(), *closed, *free)
        limit = LIMITS.parked_lanes_max
        return Acquired(
            "t",
            0,
            1,
            self.watermark,
            tuple((offset, offset + 1) for offset in sorted(self.settled)),
            tuple(each for each in self.attempts.values() if each.offset >= self.watermark),
            lanes[:limit],
            tuple(self.as_read(command) for command in self.commands.values()),
            self.suspects,
            has_more_lanes=len(lanes) > limit,
        )

    def as_read(self, command: Command) -> Command:
        offset, lane = command.letter.offset, command.letter.lane
        return Command(
            command.id,
            command.kind,
            command.letter,
            None,
            self.attempts.get(offset),
            self.lanes.get(lane),
        )


class LanesMachine(RuleBasedStateMachine):
    """An owner of one partition that appends, runs, fails, crashes and obeys operators."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.now_ms = 0
        self.command_ids = 0
        self.ordering: Literal["key", "partition", "none"] = "key"
        self.acquire()

    def acquire(self) -> None:
        self.alive: dict[int, Delivery] = {}
        self.mates: dict[int, list[Delivery]] = {}
        """By the event that began the list, the later ones of its lane that run in it."""
        self.undurable: dict[bytes | int, int] = {}
        """By lane, the event whose death is not written yet: its lane must stand still."""
        self.replayed: set[int] = set()
        self.resolved: set[int] = set()
        """Letters whose replay was done, durable or not."""
        self.lanes = Lanes(
            Origin("t", 0, "g", None, lambda *_: ("t", record(0, b"a"))),
            self.store.acquired(),
            ordering=self.ordering,
            limits=LIMITS,
            now_ms=self.now_ms,
        )
        self.lanes.origin.lanes = self.lanes

    def settle(self) -> None:
        settlement = self.lanes.collect()
        if settlement is not None:
            self.store.write(settlement)
            for offset in self.store.outcomes:
                assert offset < self.store.watermark or offset in self.store.settled, "forgotten"
            self.undurable.clear()
            self.lanes.committed()

    # --- what happens -----------------------------------------------------------------------

    @initialize(
        keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=6),
        ordering=st.sampled_from(("key", "key", "partition", "none")),
    )
    def begin(self, keys: list[bytes], ordering: Any) -> None:
        self.ordering = ordering
        self.acquire()
        self.append_and_fetch(keys)

    def lane_of(self, offset: int) -> bytes | int:
        key = self.store.log[offset].key if self.ordering == "key" else None
        if key is not None:
            return key
        return -1 if self.ordering == "partition" else offset

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    def append_and_fetch(self, keys: list[bytes]) -> None:
        for key in keys:
            self.store.log.append(record(len(self.store.log), key))
        self.fetch()

    @rule()
    def fetch(self) -> None:
        """A few events at a time, so that there are several chunks, and an end not reached yet."""
        start = self.lanes.span.next_offset
        records = self.store.log[start : start + 3]
        if self.lanes.span.untaken:
            return
        if not self.lanes.has_room:
            self.lanes.relieve()
        elif records:
            batch = Batch(range(start, start + len(records)), records)
            unknown = self.lanes.unknown(batch)
            lanes = self.store.lanes
            self.lanes.learn(unknown, [lanes[lane] for lane in unknown if lane in lanes])
            self.lanes.add(batch)

    @rule()
    def start(self) -> None:
        self.take()

    def take(self) -> int:
        while self.lanes.to_load:
            lane = self.lanes.to_load.pop()
            rows = [
                Parked(offset, self.store.parked[offset][1], self.store.attempts.get(offset))
                for offset in self.store.parked_of(lane.key)
                if offset > lane.read_to
            ]
            self.lanes.supply(lane, rows[:2])
        if count_max := self.lanes.wants_due:
            self.lanes.learn_due(self.store.due()[:count_max], count_max)
            return self.take()
        delivery = self.lanes.take()
        if delivery is None:
            if not self.lanes.lone or self.alive:
                return -1
            delivery = self.lanes.lone.popleft()
            assert self.ends(delivery.offset) >= 2, "only what is suspected runs alone"
        else:
            assert self.ends(delivery.offset) < 2, "what is suspected runs alone"
        self.check_order(delivery)
        self.alive[delivery.offset] = delivery
        return delivery.offset

    @rule(which=st.integers(0, 2), count_max=st.integers(1, 3))
    def start_list(self, which: int, count_max: int) -> None:
        """A list that may have several events of a lane: those that wait behind the first."""
        while self.take() >= 0:
            pass
        plain = [each for each in self.alive.values() if each.trouble is None]
        if not plain:
            return
        first = plain[which % len(plain)]
        mates = self.mates.setdefault(first.offset, [])
        while len(mates) < count_max and (mate := self.lanes.take_behind(first)):
            self.check_order(mate, [each.offset for each in (first, *mates)])
            assert mate.trouble is None
            mates.append(mate)

    def check_order(self, delivery: Delivery, before: Sequence[int] = ()) -> None:
        """`before`: the events of its lane that run in the same list, and come first."""
        key, offset = delivery.lane, delivery.offset
        assert key == self.lane_of(offset)
        same_lane = [each.offset for each in self.alive.values() if each.lane == key]
        assert same_lane == list(before[:1]), "two of a lane at once"
        assert key not in self.undurable, "it did not wait for a dead letter to be durable"
        trouble = delivery.trouble
        if trouble is not None and trouble.due_ms:
            assert trouble.due_ms <= self.now_ms, "early"
        stored = self.store.attempts.get(offset)
        assert delivery.attempt == (1 if stored is None else stored.count + 1), (
            "attempt not durable"
        )
        if trouble is not None and trouble.letter is not None:
            assert trouble.late != trouble.letter.blocks_lane
            return
        assert offset not in self.store.outcomes, "it ran to its end before"
        blocked = [
            other
            for other, letter in self.store.letters.items()
            if letter.lane == key and letter.blocks_lane and other < offset
            if self.store.states[other] in ("open", "replaying") and other not in self.replayed
        ]
        assert not blocked, "it passed a dead letter that closes its lane"
        earlier = [
            other
            for other in range(offset)
            if self.lane_of(other) == key and other not in self.store.outcomes
        ]
        assert earlier == list(before), "overtaken"
        passed = {
            other
            for other, letter in self.store.letters.items()
            if letter.lane == key and other < offset and self.store.states[other] != "resolved"
            if other not in self.resolved
        }
        is_shared = isinstance(key, bytes) or self.ordering == "partition"
        assert set(delivery.gaps) == (passed if is_shared else set()), "gaps"

    def ends(self, offset: int) -> int:
        """How often an event was in flight when its process died, as the lanes were told."""
        return next((n for start, stop, n in self.store.suspects if start <= offset < stop), 0)

    @rule(
        which=st.integers(0, 2),
        hows=st.lists(st.sampled_from(HOW), min_size=4, max_size=4),
        delay_ms=st.sampled_from([0, 10, 100, 1000]),
        commits=st.booleans(),
    )
    def run(self, *, which: int, hows: list[Any], delay_ms: int, commits: bool) -> None:
        """A handler that runs comes to its end; one is started if none runs."""
        if not self.alive:
            self.take()
        if self.alive:
            offset = list(self.alive)[which % len(self.alive)]
            self.conclude_list(offset, hows, delay_ms)
        if commits:
            self.settle()

    def conclude_list(self, offset: int, hows: list[Any], delay_ms: int) -> None:
        """What became of each event of a list, up to the first that is not done or skipped."""
        mates, how = self.mates.pop(offset, []), hows[0]
        for how in hows:
            if how not in ("done", "skip") or not mates:
                break
            self.store.outcomes[offset] = how
            self.lanes.mate_ended(self.alive.pop(offset), "done" if how == "done" else "skipped")
            mate = mates.pop(0)
            offset = mate.offset
            self.alive[offset] = mate
        self.lanes.put_mates_back(mates)
        self.conclude(offset, how, delay_ms)

    def conclude(self, offset: int, how: Any, delay_ms: int = 0) -> None:
        delivery = self.alive.pop(offset)
        if how == "retry":
            due_ms = self.now_ms + delay_ms
            attempts = Attempts(offset, delivery.attempt, due_ms, 0, 0, (), lane=delivery.lane)
            self.lanes.retry(delivery, attempts, delay_s=delay_ms / 1000)
        elif how == "put back":
            self.lanes.put_back(delivery)
            self.lanes.resume()
        elif how in ("done", "skip"):
            self.store.outcomes[offset] = how
            self.replayed.add(offset)
            if delivery.trouble is not None and delivery.trouble.letter is not None:
                self.resolved.add(offset)
            (self.lanes.done if how == "done" else self.lanes.skip)(delivery)
        else:
            replayed = delivery.trouble.letter if delivery.trouble else None
            self.store.outcomes[offset] = "dead"
            self.undurable[delivery.lane] = offset
            on_dead = how
            if how == "park" and not isinstance(delivery.lane, bytes):
                on_dead = "stop" if self.ordering == "partition" else "continue"
            self.lanes.dead(delivery, letter_of(delivery, on_dead, replayed))

    @rule()
    def commit(self) -> None:
        self.settle()

    @rule(passed_ms=st.sampled_from([1, 20, 200]))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.lanes.wake(self.now_ms)

    @rule(which=st.integers(0, 100), kind=st.sampled_from(["replay", "open"]))
    def operate(self, which: int, kind: Any) -> None:
        open_ones = [each for each, state in self.store.states.items() if state == "open"]
        if not open_ones:
            return
        offset = open_ones[which % len(open_ones)]
        letter = self.store.letters[offset]
        self.command_ids += 1
        command = Command(self.command_ids, kind, letter)
        self.store.states[offset] = "replaying" if kind == "replay" else "archived"
        self.store.commands[command.id] = command
        if kind == "open":
            self.replayed.add(offset)
        self.lanes.command(self.store.as_read(command))

    @rule(is_clean=st.booleans())
    def crash_and_take_over(self, *, is_clean: bool) -> None:
        if not is_clean:
            ends = {o: n for start, stop, n in self.store.suspects for o in range(start, stop)}
            lists = (each.offset for mates in self.mates.values() for each in mates)
            for offset in (*self.alive, *lists):
                ends[offset] = ends.get(offset, 0) + 1
            self.store.suspects = tuple(
                (offset, offset + 1, n) for offset, n in sorted(ends.items())
            )
        for offset in list(self.store.outcomes):
            durable = (
                offset < self.store.watermark
                or offset in self.store.settled
                or offset in self.store.letters
            )
            if offset in self.store.parked or not durable:
                del self.store.outcomes[offset]
        self.acquire()

    # --- what holds -------------------------------------------------------------------------

    @invariant()
    def every_event_below_the_watermark_has_an_outcome_or_is_parked(self) -> None:
        store = self.store
        for offset in range(store.watermark):
            assert offset in store.outcomes or offset in store.parked, f"{offset} is lost"

    @invariant()
    def a_partition_that_is_one_lane_parks_nothing(self) -> None:
        assert self.ordering != "partition" or not self.store.parked

    def teardown(self) -> None:
        """Let everything succeed, release every letter: nothing must be left, in order."""
        for _ in range(2000):
            self.wait(1000)
            self.settle()
            for offset, delivery in list(self.alive.items()):
                self.conclude_list(offset, ["retry" if delivery.attempt == 1 else "done"], 0)
            for offset, state in list(self.store.states.items()):
                if state == "open" and self.store.letters[offset].blocks_lane:
                    self.operate(0, "replay")
                    break
            offset = self.take()
            idle = offset < 0 and not self.alive and not self.lanes.is_moving
            if idle and not self.store.commands and not self.store.parked:
                if self.lanes.span.next_offset < len(self.store.log):
                    self.fetch()
                    continue
                if self.lanes.next_due_ms is not None:
                    continue
                if all(
                    state != "open" or not self.store.letters[each].blocks_lane
                    for each, state in self.store.states.items()
                ):
                    break
        self.settle()
        assert self.store.watermark == len(self.store.log), "events are stuck"
        assert not self.store.parked
        assert not self.store.attempts


LanesMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("LANES_EXAMPLES", "800")), stateful_step_count=40, deadline=None
)
test_lanes_keep_order_lose_nothing_and_get_stuck_nowhere = LanesMachine.TestCase
