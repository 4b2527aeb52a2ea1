"""The lanes against what they promise, driven at random: what runs, what waits, what is written."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventlane.config import Limits
from eventlane.failure import Attempts, DeadLetter
from eventlane.handler import Context, Origin
from eventlane.lanes import Lanes
from eventlane.message import Record, derived_id
from eventlane.settlement import Acquired, Batch, Command, LaneState, Settlement

Delivery = Context[Any]
KEYS = (b"a", b"a", b"b")
HOW = (
    *("done", "done", "done", "retry", "retry", "park", "park"),
    *("continue", "stop", "skip", "put back"),
)


def record(offset: int, key: bytes) -> Record:
    return Record(offset.to_bytes(16, "big"), key, b"", 0, b"")


def letter_of(delivery: Delivery, on_dead: Any, replayed: DeadLetter | None) -> DeadLetter:
    return DeadLetter(
        **{
            **dict.fromkeys(DeadLetter.__struct_fields__),
            "id": derived_id(delivery.offset),
            "offset": delivery.offset,
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
        self.parked: dict[int, Record] = {}
        self.letters: dict[int, DeadLetter] = {}
        self.states: dict[int, str] = {}
        self.commands: dict[int, Command] = {}
        self.outcomes: dict[int, str] = {}

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
        self.parked.update(settlement.parked)
        for offset in settlement.unparked:
            del self.parked[offset]
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

    def acquired(self) -> Acquired:
        lanes: dict[bytes, tuple[int, list[int]]] = {}
        for each in self.parked.values():
            count, blockers = lanes.setdefault(each.key or b"", (0, []))
            lanes[each.key or b""] = (count + 1, blockers)
        stops: set[bytes] = set()
        for offset, letter in self.letters.items():
            if self.states[offset] in ("open", "replaying") and letter.blocks_lane:
                lanes.setdefault(letter.key or b"", (0, []))[1].append(offset)
                if letter.on_dead == "stop":
                    stops.add(letter.key or b"")
        runs = tuple((offset, offset + 1) for offset in sorted(self.settled))
        return Acquired(
            "t",
            0,
            1,
            self.watermark,
            runs,
            tuple(self.attempts.values()),
            tuple(
                LaneState(key, count, tuple(blockers), key in stops)
                for key, (count, blockers) in lanes.items()
            ),
            tuple(self.commands.values()),
        )


class LanesMachine(RuleBasedStateMachine):
    """An owner of one partition that appends, runs, fails, crashes and obeys operators."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.now_ms = 0
        self.command_ids = 0
        self.acquire()

    def acquire(self) -> None:
        self.alive: dict[int, Delivery] = {}
        self.undurable: dict[bytes, int] = {}
        """By key, the event whose death is not written yet: its lane must stand still."""
        self.replayed: set[int] = set()
        self.lanes = Lanes(
            Origin("t", 0, "g", None, lambda *_: ("t", record(0, b"a"))),
            self.store.acquired(),
            ordering="key",
            limits=Limits(parked_per_key_max=6),
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

    @initialize(keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=6))
    def begin(self, keys: list[bytes]) -> None:
        self.append_and_fetch(keys)

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
        if records:
            self.lanes.add(Batch(range(start, start + len(records)), records))

    @rule()
    def start(self) -> None:
        self.take()

    def take(self) -> int:
        while self.lanes.to_load:
            lane = self.lanes.to_load.pop()
            rows = sorted(
                (offset, each)
                for offset, each in self.store.parked.items()
                if each.key == lane.key and offset > lane.read_to
            )
            self.lanes.supply(lane, rows[:2])
        delivery = self.lanes.take()
        if delivery is None:
            return -1
        self.check_order(delivery)
        self.alive[delivery.offset] = delivery
        return delivery.offset

    def check_order(self, delivery: Delivery) -> None:
        key, offset = delivery.record.key, delivery.offset
        assert key is not None
        same_lane = [each for each in self.alive.values() if each.record.key == key]
        assert not same_lane, "two of a lane at once"
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
            if letter.key == key and letter.blocks_lane and other < offset
            if self.store.states[other] in ("open", "replaying") and other not in self.replayed
        ]
        assert not blocked, "it passed a dead letter that closes its lane"
        earlier = [
            other
            for other in range(offset)
            if self.store.log[other].key == key and other not in self.store.outcomes
        ]
        assert not earlier, "overtaken"

    @rule(
        which=st.integers(0, 2),
        how=st.sampled_from(HOW),
        delay_ms=st.sampled_from([0, 10, 100]),
        commits=st.booleans(),
    )
    def run(self, *, which: int, how: Any, delay_ms: int, commits: bool) -> None:
        """A handler that runs comes to its end; one is started if none runs."""
        if not self.alive:
            self.take()
        if self.alive:
            offset = list(self.alive)[which % len(self.alive)]
            self.conclude(offset, how, delay_ms)
        if commits:
            self.settle()

    def conclude(self, offset: int, how: Any, delay_ms: int = 0) -> None:
        delivery = self.alive.pop(offset)
        if how == "retry":
            attempts = Attempts(offset, delivery.attempt, self.now_ms + delay_ms, 0, 0, ())
            self.lanes.retry(delivery, attempts)
        elif how == "put back":
            self.lanes.put_back(delivery)
            self.lanes.resume()
        elif how in ("done", "skip"):
            self.store.outcomes[offset] = how
            self.replayed.add(offset)
            (self.lanes.done if how == "done" else self.lanes.skip)(delivery)
        else:
            replayed = delivery.trouble.letter if delivery.trouble else None
            self.store.outcomes[offset] = "dead"
            self.undurable[delivery.record.key or b""] = offset
            self.lanes.dead(delivery, letter_of(delivery, how, replayed))

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
        self.lanes.command(command)

    @rule()
    def crash_and_take_over(self) -> None:
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

    def teardown(self) -> None:
        """Let everything succeed, release every letter: nothing must be left, in order."""
        for _ in range(2000):
            self.wait(1000)
            self.settle()
            for offset, delivery in list(self.alive.items()):
                self.conclude(offset, "retry" if delivery.attempt == 1 else "done")
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
                if all(
                    state != "open" or not self.store.letters[each].blocks_lane
                    for each, state in self.store.states.items()
                ):
                    break
        self.settle()
        assert self.store.watermark == len(self.store.log), "events are stuck"
        assert not self.store.parked
        assert not self.store.attempts


LanesMachine.TestCase.settings = settings(max_examples=800, stateful_step_count=40, deadline=None)
test_lanes_keep_order_lose_nothing_and_get_stuck_nowhere = LanesMachine.TestCase
