"""The checker: every anomaly in a smallest history, and its nearest innocent neighbour."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlane.account import GroupStatus
from eventlane.app import App
from eventlane.broker import Broker, Consumer
from eventlane.clock import yield_to_loop
from eventlane.errors import Refused
from eventlane.failure import DeadLetter
from eventlane.handler import Context
from eventlane.outcome import Dead, Outcome, RetryLater, Skipped
from eventlane.retry import Retry
from eventlane.settlement import Acquired as AcquiredChange
from eventlane.settlement import Command, GroupSpec, Settlement
from eventlane.testing.checker import Kind, Verdict, check
from eventlane.testing.clock import ManualClock
from eventlane.testing.history import (
    Acquired,
    Died,
    Ended,
    Final,
    Letter,
    LetterChanged,
    Log,
    Operation,
    Progress,
    Published,
    Settled,
    Started,
    decode,
    encode,
)
from eventlane.testing.passing import PassingBroker, PassingConsumer
from eventlane.testing.stage import PATIENCE_S, TOPIC, Step, Storage

G, T = "g", "t"
History = list[Operation]


def uuid(number: int) -> UUID:
    return UUID(int=number + 1)


def published(offset: int, key: bytes | None = b"a", *, event: int | None = None) -> Published:
    event_id = uuid(offset if event is None else event)
    return Published(topic=T, partition=0, offset=offset, key=key, event_id=event_id)


def acquired(process: str = "p", epoch: int = 1, watermark: int = 0, **given: Any) -> Acquired:
    given = {"group": G, **given}
    return Acquired(
        process=process, topic=T, partition=0, epoch=epoch, watermark=watermark, **given
    )


def started(
    offset: int, key: bytes | None = b"a", *, process: str = "p", group: str = G, **given: Any
) -> Started:
    return Started(
        process=process, group=group, topic=T, partition=0, offset=offset, key=key, **given
    )


def ended(offset: int, outcome: Any = "done", *, process: str = "p", group: str = G) -> Ended:
    return Ended(process=process, group=group, topic=T, partition=0, offset=offset, outcome=outcome)


def ran(offset: int, outcome: Any = "done", **given: Any) -> History:
    run = started(offset, **given)
    return [run, Ended.of(run, outcome)]


def settled(watermark: int, process: str = "p", *, group: str = G, **given: Any) -> Settled:
    given = {"epoch": 1, **given}
    return Settled(process=process, group=group, topic=T, partition=0, watermark=watermark, **given)


def letter_is(offset: int, state: Any, *, group: str = G) -> LetterChanged:
    return LetterChanged(group=group, topic=T, partition=0, offset=offset, state=state)


def log(count: int, keys: Sequence[bytes | None] = (), *, ids: Sequence[int] = ()) -> Log:
    keys, ids = keys or [b"a"] * count, ids or range(count)
    events = tuple((offset, keys[offset], uuid(ids[offset])) for offset in range(count))
    return Log(topic=T, partition=0, events=events)


def final(count: int | None = None, **given: Any) -> Final:
    return Final(log=None if count is None else (log(count),), **given)


def progress(watermark: int, **given: Any) -> tuple[Progress, ...]:
    return (Progress(group=G, topic=T, partition=0, watermark=watermark, **given),)


def letter(offset: int, *, group: str = G, **given: Any) -> Letter:
    return Letter(group=group, topic=T, partition=0, offset=offset, **given)


def account(**given: Any) -> GroupStatus:
    names = ("waiting", "in_flight", "held", "done", "parked", "dead", "archived", "skipped")
    counters: dict[str, Any] = {**dict.fromkeys((*names, "edited", "lost"), 0), **given}
    return GroupStatus(**{"entered": sum(counters.values()), **counters})


def dead(offset: int, on_dead: Any = "park") -> dict[str, Any]:
    return {"dead": ((offset, on_dead),)}


Case = tuple[Kind, History, History]
PARK_TWO = settled(2, **dead(0), parked=((b"a", 1),), lanes=((b"a", 1, 1),))
"""Offset 0 is dead, offset 1 is parked behind it."""

EDITED = [
    acquired(),
    *ran(0, "failed"),
    settled(1, **dead(0)),
    letter_is(0, "edited"),
    letter_is(0, "replaying"),
    *ran(0, replayed=True),
    settled(1, letters=((0, "resolved", "done"),)),
]
"""Its dead letter was edited, and the child was handled in its place."""

CASES: dict[str, Case] = {
    "an acknowledged event is not on the log": (
        Kind.LOST,
        [published(0), published(1), final(1)],
        [published(0), published(1), final(2)],
    ),
    "an event below the watermark has no outcome": (
        Kind.LOST,
        [acquired(), *ran(0), settled(1, done=1), final(2, progress=progress(2))],
        [acquired(), *ran(0), settled(1, done=1), final(2, progress=progress(1))],
    ),
    "an event below the watermark has never run, and nothing was skipped": (
        Kind.LOST,
        [*ran(0), final(2, progress=progress(2), groups={G: account(done=2)})],
        [*ran(0), final(2, progress=progress(2), groups={G: account(done=1, skipped=1)})],
    ),
    "an event that failed is neither dead nor run again": (
        Kind.LOST,
        [*ran(0, "failed"), final(1, idle=True, letters=())],
        [*ran(0, "failed"), final(1, idle=True, letters=(letter(0),), progress=progress(1))],
    ),
    "a letter whose child is handled counts as done, not as edited": (
        Kind.ACCOUNTING,
        [*EDITED, final(1, groups={G: account(done=1)})],
        [*EDITED, final(1, groups={G: account(edited=1)})],
    ),
    "a letter counts as edited before its child is handled": (
        Kind.ACCOUNTING,
        [*EDITED[:5], final(1, groups={G: account(edited=1)})],
        [*EDITED[:5], final(1, groups={G: account(dead=1)})],
    ),
    "a dead letter is resolved on sending": (
        Kind.LOST,
        [
            acquired(),
            *ran(0, "failed"),
            settled(1, **dead(0)),
            letter_is(0, "replaying"),
            settled(1, letters=((0, "resolved", "done"),)),
        ],
        [
            acquired(),
            *ran(0, "failed"),
            settled(1, **dead(0)),
            letter_is(0, "replaying"),
            *ran(0, replayed=True),
            settled(1, letters=((0, "resolved", "done"),)),
        ],
    ),
    "an event never ran though the group is idle": (
        Kind.UNSEEN,
        [*ran(0), final(2, idle=True)],
        [*ran(0), final(1, idle=True)],
    ),
    "an event was never settled though the group is idle": (
        Kind.UNSEEN,
        [acquired(), *ran(0), settled(1, done=1), *ran(1), final(2, idle=True)],
        [acquired(), *ran(0), settled(1, done=1), *ran(1), settled(2, done=1), final(2, idle=True)],
    ),
    "one event is on the log twice": (
        Kind.DUPLICATE,
        [Final(log=(log(2, ids=(7, 7)),))],
        [Final(log=(log(2, ids=(7, 8)),))],
    ),
    "two events have one offset": (
        Kind.INCONSISTENT_OFFSETS,
        [published(0, event=5), started(0, event_id=uuid(6))],
        [published(0, event=5), started(0, event_id=uuid(5))],
    ),
    "a later event of the lane ran, and an earlier one never did": (
        Kind.POLL_SKIP,
        [published(0), published(1), *ran(1)],
        [published(0, b"b"), published(1), *ran(1), *ran(2)],
    ),
    "a settlement holds an event without an earlier one of its lane": (
        Kind.POLL_SKIP,
        [acquired(), published(0), *ran(1), settled(0, settled=((1, 2),), done=1)],
        [acquired(), published(0), *ran(1), settled(2, skipped=1, done=1)],
    ),
    "a later event starts before a failed one is tried again": (
        Kind.OVERTAKE,
        [*ran(0, "failed"), *ran(1), *ran(0, attempt=2)],
        [*ran(0, "failed"), *ran(0, attempt=2), *ran(1)],
    ),
    "a later event starts while the retry of an earlier one waits": (
        Kind.OVERTAKE,
        [acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),)), *ran(1)],
        [acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),)), *ran(1, key=b"b")],
    ),
    "a later event starts before a death is durable": (
        Kind.OVERTAKE,
        [acquired(), *ran(0, "failed"), *ran(1), settled(2, **dead(0, "continue"), done=1)],
        [
            acquired(),
            *ran(0, "failed"),
            settled(1, **dead(0, "continue")),
            *ran(1),
            settled(2, done=1),
        ],
    ),
    "a later event starts though a dead letter closes the lane": (
        Kind.OVERTAKE,
        [acquired(), *ran(0, "failed"), settled(1, **dead(0)), *ran(1)],
        [acquired(), *ran(0, "failed"), settled(1, **dead(0)), letter_is(0, "archived"), *ran(1)],
    ),
    "a later event starts though an earlier one is parked": (
        Kind.OVERTAKE,
        [acquired(), *ran(0, "failed"), PARK_TWO, letter_is(0, "archived"), *ran(2), *ran(1)],
        [acquired(), *ran(0, "failed"), PARK_TWO, letter_is(0, "archived"), *ran(1), *ran(2)],
    ),
    "after a crash a lane is not run from where it was durable": (
        Kind.OVERTAKE,
        [
            *(acquired(), *ran(0), *ran(1), Died(process="p")),
            *(acquired("q", 2), *ran(1, process="q")),
        ],
        [
            *(acquired(), *ran(0), *ran(1), Died(process="p")),
            *(acquired("q", 2), *ran(0, process="q"), *ran(1, process="q")),
        ],
    ),
    "after a crash a lane is run with a gap": (
        Kind.OVERTAKE,
        [*ran(0), *ran(1), *ran(2), Died(process="p"), *ran(0, process="q"), *ran(2, process="q")],
        [*ran(0), *ran(1), *ran(2), Died(process="p"), *ran(1, process="q"), *ran(2, process="q")],
    ),
    "what ran when its process died is passed over": (
        Kind.OVERTAKE,
        [*ran(0), started(1), Died(process="p"), *ran(2, process="q")],
        [*ran(0), started(1), Died(process="p"), *ran(1, process="q"), *ran(2, process="q")],
    ),
    "a replay in its lane runs after a later event": (
        Kind.OVERTAKE,
        [*ran(0, "failed"), *ran(1), *ran(0, replayed=True)],
        [*ran(0, "failed"), *ran(1), *ran(0, replayed=True, late=True)],
    ),
    "a group with one lane for a partition runs another key first": (
        Kind.OVERTAKE,
        [
            *ran(0, "failed", group="whole"),
            *ran(1, key=b"b", group="whole"),
            *ran(0, group="whole", attempt=2),
        ],
        [
            *ran(0, "failed", group="none"),
            *ran(1, group="none"),
            *ran(0, group="none", attempt=2),
            *ran(0, group="whole"),
        ],
    ),
    "two of a lane run at once": (
        Kind.TWO_AT_ONCE,
        [started(0), started(1), ended(1), ended(0)],
        [started(0), started(1, b"b"), ended(1), ended(0), *ran(2)],
    ),
    "an owner runs what it has done": (
        Kind.RUN_AGAIN,
        [acquired(), *ran(0), *ran(0)],
        [acquired(), *ran(0), acquired(epoch=2), *ran(0)],
    ),
    "an owner runs what was durable": (
        Kind.RUN_AGAIN,
        [acquired(), *ran(0), settled(1, done=1), acquired("q", 2, 1), *ran(0, process="q")],
        [acquired(), *ran(0), acquired("q", 2, 0), settled(1, done=1), *ran(1, process="q")],
    ),
    "an owner that has lost its partition and has it again runs what was durable": (
        Kind.RUN_AGAIN,
        [acquired(), *ran(0), settled(1, done=1), acquired("p", 2, 1), *ran(0, epoch=2)],
        [acquired(), *ran(0), settled(1, done=1), acquired("p", 2, 1), *ran(0, epoch=1)],
    ),
    "who was frozen is charged to an event that was not to run alone": (
        Kind.BYSTANDER_CHARGED,
        [acquired(), settled(0), acquired("q", 2, crashes=((0, 1),)), Died(process="x")],
        [acquired(), settled(0, alone=0), acquired("q", 2, crashes=((0, 1),)), Died(process="x")],
    ),
    "a replay runs in another group": (
        Kind.CROSS_GROUP_LEAK,
        [
            *ran(0, "failed"),
            *ran(0, group="h"),
            *ran(0, replayed=True),
            *ran(0, group="h", replayed=True),
        ],
        [
            *ran(0, "failed"),
            *ran(0, "failed", group="h"),
            *ran(0, replayed=True),
            *ran(0, group="h", replayed=True),
        ],
    ),
    "a replay runs in a group without that letter": (
        Kind.CROSS_GROUP_LEAK,
        [acquired(), settled(1, skipped=1), *ran(1, replayed=True)],
        [
            acquired(),
            settled(2, skipped=1, **dead(1)),
            letter_is(1, "replaying"),
            *ran(1, replayed=True),
        ],
    ),
    "a dead letter is not on its topic": (
        Kind.DEAD_NOT_IN_DLQ,
        [acquired(), *ran(0, "failed"), settled(1, **dead(0)), Final(dlq=((G, T, 0, 1),))],
        [acquired(), *ran(0, "failed"), settled(1, **dead(0)), Final(dlq=((G, T, 0, 0),))],
    ),
    "an event that is done becomes a dead letter": (
        Kind.IN_DLQ_AND_DONE,
        [acquired(), *ran(0), settled(1, done=1), settled(1, **dead(0))],
        [acquired(), *ran(0, "failed"), settled(1, **dead(0))],
    ),
    "an event that is done has an open dead letter": (
        Kind.IN_DLQ_AND_DONE,
        [*ran(0), final(1, idle=True, letters=(letter(0),))],
        [*ran(0, "failed"), final(1, idle=True, letters=(letter(0),))],
    ),
    "a letter is replayed while it is replayed": (
        Kind.DOUBLE_REPLAY,
        [letter_is(0, "replaying"), letter_is(0, "replaying")],
        [
            letter_is(0, "replaying"),
            settled(0, letters=((0, "open", "dead"),)),
            letter_is(0, "replaying"),
        ],
    ),
    "a parked event is gone": (
        Kind.PARKED_LOST,
        [acquired(), *ran(0, "failed"), PARK_TWO, final(2, progress=progress(2))],
        [acquired(), *ran(0, "failed"), PARK_TWO, final(2, progress=progress(2, parked=(1,)))],
    ),
    "a parked event is taken out and has not run": (
        Kind.PARKED_LOST,
        [
            *(acquired(), *ran(0, "failed"), PARK_TWO, letter_is(0, "archived")),
            settled(2, done=1, unparked=1, lanes=((b"a", 0, 0),)),
        ],
        [
            *(acquired(), *ran(0, "failed"), PARK_TWO, letter_is(0, "archived"), *ran(1)),
            settled(2, done=1, unparked=1, lanes=((b"a", 0, 0),)),
        ],
    ),
    "a retry is early": (
        Kind.EARLY_RETRY,
        [started(0, attempt=2, due_ms=100, at_ms=99)],
        [started(0, attempt=2, due_ms=100, at_ms=100)],
    ),
    "a settlement counts what is running": (
        Kind.WATERMARK_PAST_OPEN,
        [acquired(), *ran(0), started(1), settled(2, done=2)],
        [acquired(), *ran(0), started(1), settled(1, done=1)],
    ),
    "a settlement counts what has not run": (
        Kind.WATERMARK_PAST_OPEN,
        [acquired(), *ran(0), settled(2, done=2), final(2)],
        [acquired(), *ran(0), settled(2, done=1, skipped=1), final(2)],
    ),
    "the watermark goes down": (
        Kind.WATERMARK_DOWN,
        [acquired(), *ran(0), settled(1, done=1), settled(0)],
        [acquired(), *ran(0), settled(1, done=1), settled(1)],
    ),
    "what was settled above the watermark is forgotten": (
        Kind.WATERMARK_DOWN,
        [
            acquired(),
            published(0, b"b"),
            *ran(1),
            settled(0, settled=((1, 2),), done=1),
            settled(0),
        ],
        [
            *(acquired(), published(0, b"b"), *ran(1), settled(0, settled=((1, 2),), done=1)),
            settled(0, settled=((1, 2),)),
        ],
    ),
    "attempts go down": (
        Kind.ATTEMPTS_DOWN,
        [acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),)), *ran(0)],
        [acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),)), *ran(0, attempt=2)],
    ),
    "attempts go down over a crash": (
        Kind.ATTEMPTS_DOWN,
        [*ran(0, "failed"), *ran(0, "failed", attempt=2), Died(process="p"), *ran(0, process="q")],
        [
            *ran(0, "failed"),
            *ran(0, "failed", attempt=2),
            Died(process="p"),
            *ran(0, process="q", attempt=2),
        ],
    ),
    "a replay of many attempts begins anew, and goes down": (
        Kind.ATTEMPTS_DOWN,
        [
            *(acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),))),
            *(*ran(0, "failed", attempt=2), settled(1, **dead(0)), letter_is(0, "replaying")),
            *(*ran(0, "failed", replayed=True), settled(1, attempts=((0, 1),))),
            *ran(0, replayed=True),
        ],
        [
            *(acquired(), *ran(0, "failed"), settled(0, attempts=((0, 1),))),
            *(*ran(0, "failed", attempt=2), settled(1, **dead(0)), letter_is(0, "replaying")),
            *(*ran(0, "failed", replayed=True), settled(1, attempts=((0, 1),))),
            *ran(0, replayed=True, attempt=2),
        ],
    ),
    "an attempt is charged to a bystander": (
        Kind.BYSTANDER_CHARGED,
        [started(0), Died(process="p"), *ran(0, process="q", attempt=2)],
        [started(0), Died(process="p"), *ran(0, process="q")],
    ),
    "a crash is charged to what ran beside it": (
        Kind.BYSTANDER_CHARGED,
        [
            started(0, alone=True),
            started(1, b"b"),
            Died(process="p"),
            acquired("q", crashes=((0, 1),)),
        ],
        [started(0, alone=True), Died(process="p"), acquired("q", crashes=((0, 1),))],
    ),
    "a letter says that it crashed oftener than it did": (
        Kind.BYSTANDER_CHARGED,
        [started(0, alone=True), Died(process="p"), Final(letters=(letter(0, crashes=2),))],
        [started(0, alone=True), Died(process="p"), Final(letters=(letter(0, crashes=1),))],
    ),
    "a stale write is accepted": (
        Kind.FENCED_WRITE,
        [settled(0, stale=True)],
        [settled(0, stale=True, accepted=False)],
    ),
    "an account does not balance": (
        Kind.ACCOUNTING,
        [Final(groups={G: account(entered=3, done=2)})],
        [Final(groups={G: account(entered=2, done=2)})],
    ),
    "an account says other than what was settled": (
        Kind.ACCOUNTING,
        [acquired(), *ran(0), settled(1, done=1), Final(groups={G: account(done=2)})],
        [acquired(), *ran(0), settled(1, done=1), Final(groups={G: account(done=1)})],
    ),
    "a settlement counts more than is new in it": (
        Kind.ACCOUNTING,
        [acquired(), *ran(0), settled(1, done=2), final(1)],
        [acquired(), *ran(0), settled(1, done=1), final(1)],
    ),
}
ORDERING: dict[str, Any] = {"whole": "partition", "none": "none"}
"""Of the groups that are not called something else."""
ON_DEAD = {"key": "park", "partition": "stop", "none": "continue"}


def kinds(verdict: Verdict) -> set[Kind]:
    return {each.kind for each in verdict.anomalies}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_anomaly_is_found_and_its_neighbour_is_innocent(case: Case) -> None:
    kind, guilty, innocent = case
    found = check(guilty, ordering=ORDERING)
    assert kinds(found) == {kind}, str(found)
    neighbour = check(innocent, ordering=ORDERING)
    assert neighbour.clean, str(neighbour)
    assert neighbour.checked[kind] > 0, "expected innocence, not that nobody looked"


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES.values()} == set(Kind)


# --- a naive model that makes correct histories -----------------------------------------------


class Group:
    """One group on one partition, as plainly as it can be; everything it does is recorded."""

    def __init__(
        self, name: str, keys: list[bytes | None], chance: Random, say: Any, *, skips: bool
    ) -> None:
        self.name, self.keys, self.chance, self.say = name, keys, chance, say
        self.ordering = ORDERING.get(name, "key")
        self.skips = skips
        """Whether some events have no handler."""
        self.now_ms = 0
        self.epoch = 0
        self.done: dict[int, str] = {}
        """What is durable: done, skipped, dead, parked, archived."""
        self.attempts: dict[int, int] = {}
        self.due_ms: dict[int, int] = {}
        self.on_dead: dict[int, str] = {}
        self.letters: dict[int, str] = {}
        self.has_run: set[int] = set()
        self.frozen: History = []
        """What a former owner will still do."""
        self.acquire()

    def acquire(self) -> None:
        self.epoch += 1
        self.process = f"{self.name}-{self.epoch}"
        self.ended: dict[int, str] = {}
        """What is not durable yet: done, skipped, retry, dead, and resolved, died for replays."""
        self.runs: dict[int, Started] = {}
        watermark, runs = self.progress()
        self.say(acquired(self.process, self.epoch, watermark, settled=runs, group=self.name))

    def crash(self) -> None:
        self.say(Died(process=self.process))
        self.acquire()

    def hand_over(self) -> None:
        while self.runs:
            self.end()
        while self.ended:
            self.settle()
        self.acquire()

    def freeze(self) -> None:
        """The process goes on later, and does not know yet that it is owner no longer."""
        self.frozen = [Ended.of(run, "done") for run in self.runs.values()]
        for offset in self.runnable():
            self.has_run.add(offset)
            run = self.run_of(offset)
            self.frozen += [run, Ended.of(run, self.chance.choice(["done", "failed"]))]
        self.acquire()

    def thaw(self) -> None:
        for _ in range(self.chance.randint(0, len(self.frozen))):
            self.say(self.frozen.pop(0))

    def progress(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        end = len(self.keys)
        watermark = next((o for o in range(end) if o not in self.done), end)
        return watermark, tuple((o, o + 1) for o in sorted(self.done) if o > watermark)

    def lane(self, offset: int) -> list[int]:
        key, everything = self.keys[offset], range(len(self.keys))
        if self.ordering == "partition":
            return list(everything)
        if self.ordering == "none" or key is None:
            return [offset]
        return [o for o in everything if self.keys[o] == key]

    def is_closed(self, offset: int) -> bool:
        """Whether an earlier event of its lane keeps one from running."""
        for mate in self.lane(offset):
            if mate == offset:
                return False
            if self.ended.get(mate, "").startswith(("done", "skipped", "resolved")):
                continue
            state = self.done.get(mate)
            if mate in self.ended or state in (None, "parked"):
                return True
            if state == "dead" and self.on_dead[mate] != "continue":
                return True
        return False

    def runnable(self) -> list[int]:
        found: list[int] = []
        for offset in range(len(self.keys)):
            state, replays = self.done.get(offset), self.letters.get(offset) == "replaying"
            is_late = replays and self.on_dead[offset] == "continue"
            busy = any(mate in self.runs for mate in self.lane(offset))
            if offset in self.ended or busy or not (state in (None, "parked") or replays):
                continue
            if is_late or not self.is_closed(offset):
                found.append(offset)
        return found

    def start(self) -> bool:
        offsets = self.runnable()
        if not offsets:
            return False
        offset = self.chance.choice(offsets)
        self.runs[offset] = run = self.run_of(offset)
        self.has_run.add(offset)
        self.say(run)
        return True

    def run_of(self, offset: int) -> Started:
        due_ms = self.due_ms.get(offset)
        self.now_ms = max(self.now_ms, due_ms or 0)
        replayed = self.letters.get(offset) == "replaying"
        return started(
            offset,
            self.keys[offset],
            process=self.process,
            group=self.name,
            event_id=uuid(offset),
            attempt=self.attempts.get(offset, 0) + 1,
            at_ms=self.now_ms,
            due_ms=due_ms,
            replayed=replayed,
            late=replayed and self.on_dead[offset] == "continue",
        )

    def end(self) -> None:
        if not self.runs:
            return
        offset = self.chance.choice(list(self.runs))
        run = self.runs.pop(offset)
        outcome = self.chance.choice(["done", "done", "done", "skipped", "failed", "cancelled"])
        self.say(Ended.of(run, outcome))  # type: ignore[arg-type]  # drawn from its values
        if outcome == "failed":
            dies = self.chance.random() < 0.5
            self.ended[offset] = ("died" if run.replayed else "dead") if dies else "retry"
        elif outcome != "cancelled":
            self.ended[offset] = f"resolved {outcome}" if run.replayed else outcome

    def settle(self, parking: float = 0.5) -> None:
        """Write what ended; at times also skip what never runs, and park what waits."""
        if self.chance.random() < 0.1:
            self.say(settled(0, self.process, group=self.name, done=9, accepted=False))
            return
        if self.epoch > 1 and self.chance.random() < 0.1:
            self.say(settled(0, "frozen", group=self.name, done=9, accepted=False, stale=True))
        before = dict(self.done)
        counts = {"done": 0, "skipped": 0}
        given: dict[str, list[Any]] = {"dead": [], "parked": [], "attempts": [], "letters": []}
        for offset, ended_as in self.ended.items():
            if ended_as == "retry":
                self.attempts[offset] = self.attempts.get(offset, 0) + 1
                self.due_ms[offset] = self.now_ms + 10
                given["attempts"].append((offset, self.attempts[offset]))
                continue
            self.attempts.pop(offset, None)
            self.due_ms.pop(offset, None)
            if ended_as == "dead":
                self.done[offset], self.letters[offset] = "dead", "open"
                self.on_dead[offset] = self.chance.choice([ON_DEAD[self.ordering], "continue"])
                given["dead"].append((offset, self.on_dead[offset]))
            elif ended_as == "died":
                self.letters[offset] = "open"
                given["letters"].append((offset, "open", "dead"))
            elif ended_as.startswith("resolved"):
                self.done[offset], self.letters[offset] = ended_as.split()[1], "resolved"
                given["letters"].append((offset, "resolved", self.done[offset]))
            else:
                self.done[offset] = ended_as
                counts[ended_as] += 1
        self.ended = {}
        for offset in range(len(self.keys)):
            if offset not in self.done and offset not in self.runs and offset not in self.attempts:
                is_unknown = self.skips and offset not in self.has_run
                if is_unknown and not self.is_closed(offset) and self.chance.random() < 0.1:
                    self.done[offset] = "skipped"  # no handler
                    counts["skipped"] += 1
                elif self.waits_behind_letter(offset) and self.chance.random() < parking:
                    self.done[offset] = "parked"
                    given["parked"].append((self.keys[offset], offset))
        gone = [o for o in before if before[o] == "parked" and self.done[o] != "parked"]
        touched = {self.keys[o] for o in gone} | {lane for lane, _ in given["parked"]}
        watermark, runs = self.progress()
        self.say(
            settled(
                watermark,
                self.process,
                group=self.name,
                epoch=self.epoch,
                settled=runs,
                unparked=len(gone),
                lanes=tuple(self.parked(lane) for lane in touched),
                **counts,
                **{name: tuple(values) for name, values in given.items()},
            )
        )

    def waits_behind_letter(self, offset: int) -> bool:
        """Whether all that is open before it in its lane is parked behind a dead letter."""
        earlier = [mate for mate in self.lane(offset) if mate < offset]
        is_behind = all(mate in self.done for mate in earlier) and self.is_closed(offset)
        return is_behind and self.ordering == "key"

    def parked(self, lane: bytes | None) -> tuple[Any, int, int]:
        left = [o for o, state in self.done.items() if state == "parked" and self.keys[o] == lane]
        return lane, len(left), min(left, default=0)

    def operate(self) -> None:
        """Replay or archive a letter; of a closed lane the first one."""
        letters = [o for o, state in self.letters.items() if state == "open"]
        letters = [o for o in letters if self.on_dead[o] == "continue" or not self.is_closed(o)]
        if not letters:
            return
        offset = self.chance.choice(letters)
        state = self.chance.choice(["replaying", "replaying", "archived"])
        self.letters[offset] = state
        if state == "archived":
            self.done[offset] = "archived"
        self.say(letter_is(offset, state, group=self.name))

    def finish(self) -> None:
        """Until nothing more happens by itself."""
        while self.runs or self.ended or self.runnable():
            while self.start():
                pass
            while self.runs:
                self.end()
            self.settle()
        while self.account().waiting and self.ordering == "key":
            self.settle(parking=1.0)

    def account(self) -> GroupStatus:
        states = list(self.done.values())
        names = ("done", "skipped", "parked", "dead", "archived")
        return account(
            waiting=len(self.keys) - len(states), **{name: states.count(name) for name in names}
        )


def correct_history(chance: Random, *, steps: int = 60, everything: bool = True) -> History:
    """A history in which nothing is wrong; or only with what handlers alone can record truly."""
    history: History = []
    keys: list[bytes | None] = []
    names = (G, chance.choice(["h", "h", *ORDERING]))
    groups = [Group(name, keys, chance, history.append, skips=everything) for name in names]
    for _ in range(steps):
        group = chance.choice(groups)
        act = chance.choices(
            (group.start, group.end, group.settle, group.operate, group.crash, group.hand_over),
            (30, 22, 15, 8, 4, 2),
        )[0]
        if chance.random() < 0.2:
            keys.append(chance.choice([b"a", b"a", b"b", None]))
            history.append(published(len(keys) - 1, keys[-1]))
        elif everything and chance.random() < 0.02:
            group.freeze()
        elif group.frozen and chance.random() < 0.2:
            group.thaw()
        else:
            act()
    idle = chance.random() < 0.7
    for group in groups if idle else ():
        group.finish()
    of_groups = [(group, *group.progress()) for group in groups]
    history.append(
        Final(
            idle=idle,
            log=(log(len(keys), keys),),
            progress=tuple(
                Progress(
                    group=group.name,
                    topic=T,
                    partition=0,
                    watermark=watermark,
                    settled=runs,
                    parked=tuple(o for o, state in group.done.items() if state == "parked"),
                )
                for group, watermark, runs in of_groups
            ),
            groups={group.name: group.account() for group in groups},
            letters=tuple(
                letter(offset, group=group.name, state=state, on_dead=group.on_dead[offset])
                for group in groups
                for offset, state in group.letters.items()
            ),
            dlq=tuple((group.name, T, 0, offset) for group in groups for offset in group.letters),
        )
    )
    return history


# --- ways to spoil a history ------------------------------------------------------------------


def is_counting(operation: Operation) -> bool:
    return isinstance(operation, Settled) and bool(
        operation.accepted and operation.done + operation.skipped
    )


def places_to_drop(history: History) -> list[int]:
    """Settlements that count outcomes; not the only one of a group, which is as good as none."""
    groups = [each.group for each in history if isinstance(each, Settled)]
    return [
        index
        for index, each in enumerate(history)
        if isinstance(each, Settled) and is_counting(each) and groups.count(each.group) > 1
    ]


def places_to_swap(history: History) -> list[tuple[int, int]]:
    """Two runs of an owner, of events of one lane that follow each other."""
    found: list[tuple[int, int]] = []
    last: dict[tuple[str, str, bytes], int] = {}
    owners: dict[str, str] = {}
    for index, each in enumerate(history):
        if isinstance(each, Acquired):
            owners[each.group] = each.process
        elif isinstance(each, Started) and each.group != "none" and each.key and not each.late:
            lane = (each.group, each.process, each.key)
            before = history[last[lane]] if lane in last else each
            assert isinstance(before, Started)
            if before.offset < each.offset and owners[each.group] == each.process:
                found.append((last[lane], index))
            last[lane] = index
    return found


def places_to_repeat(history: History) -> list[int]:
    """Settlements that count, replays, and runs, if it is known when runs end."""
    has_ends = any(isinstance(each, Ended) for each in history)
    return [
        index
        for index, each in enumerate(history)
        if is_counting(each)
        or (isinstance(each, Started) and has_ends)
        or (isinstance(each, LetterChanged) and each.state == "replaying")
    ]


def dropped(history: History, place: int) -> History:
    return [*history[:place], *history[place + 1 :]]


def swapped(history: History, places: tuple[int, int]) -> History:
    first, second = places
    spoilt = list(history)
    spoilt[first], spoilt[second] = spoilt[second], spoilt[first]
    return spoilt


def repeated(history: History, place: int) -> History:
    return [*history[: place + 1], *history[place:]]


SPOILERS: dict[str, tuple[Callable[[History], Sequence[Any]], Callable[..., History]]] = {
    "drop": (places_to_drop, dropped),
    "swap": (places_to_swap, swapped),
    "repeat": (places_to_repeat, repeated),
}


SEEDS = st.integers(0, 1 << 32).map(Random)
STEPS = st.integers(0, 120)


@settings(max_examples=150, deadline=None)
@given(chance=SEEDS, steps=STEPS)
def test_a_correct_history_is_clean_even_when_read_back(chance: Random, steps: int) -> None:
    history = correct_history(chance, steps=steps)
    verdict = check((decode(encode(each)) for each in history), ordering=ORDERING)
    assert not verdict.anomalies, str(verdict)


@settings(max_examples=150, deadline=None)
@given(chance=SEEDS, steps=STEPS, asked=st.sets(st.sampled_from(["groups", "letters", "dlq"])))
def test_a_correct_history_is_clean_with_what_handlers_alone_record(
    chance: Random, steps: int, asked: set[str]
) -> None:
    *history, end = correct_history(chance, steps=steps, everything=False)
    kept = [each for each in history if not isinstance(each, Acquired | Settled | LetterChanged)]
    unasked = {"progress", "groups", "letters", "dlq"} - asked
    last = msgspec.structs.replace(end, **dict.fromkeys(unasked))
    verdict = check([*kept, last], ordering=ORDERING)
    assert not verdict.anomalies, str(verdict)
    assert Kind.WATERMARK_DOWN in verdict.unchecked


@settings(max_examples=300, deadline=None)
@given(chance=SEEDS, steps=STEPS, how=st.sampled_from(sorted(SPOILERS)))
def test_a_spoilt_history_is_caught(chance: Random, steps: int, how: str) -> None:
    places_of, spoil = SPOILERS[how]
    history = correct_history(chance, steps=steps)
    places = places_of(history)
    if places:
        verdict = check(spoil(history, chance.choice(places)), ordering=ORDERING)
        assert verdict.anomalies, str(verdict)


# --- the real thing -----------------------------------------------------------------------------


class RecordingConsumer(PassingConsumer):
    def __init__(self, real: Consumer, group: GroupSpec, broker: "RecordingBroker") -> None:
        super().__init__(real, group)
        self._broker = broker
        self._say = broker.history.append

    async def changes(self) -> Sequence[Any]:
        changes = await self.real.changes()
        for change in changes:
            if isinstance(change, AcquiredChange):
                self._say(Acquired.of(change, process="p", group=self.group.name))
                self._note(change.commands)
            elif isinstance(change, Command):
                self._note([change])
        return changes

    def _note(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if command.kind == "replay" and command.id not in self._broker.commands:
                self._say(LetterChanged.of(command.letter, "replaying"))
            self._broker.commands.add(command.id)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.real.settle(settlements)
        for each in settlements:
            self._say(Settled.of(each, process="p", group=self.group.name, accepted=True))


class RecordingBroker(PassingBroker):
    def __init__(self, real: Broker, history: History) -> None:
        super().__init__(real)
        self.history = history
        self.commands: set[int] = set()

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        return RecordingConsumer(real, group, self)


class RealHistory:
    """Failures, skips, dead letters, replays and archiving in two groups, on the real broker."""

    def __init__(self, directory: Path) -> None:
        self.history: History = []
        self.clock = ManualClock()
        self.mended: set[UUID] = set()
        storage = Storage(
            f"embedded:{directory}", wrap=lambda real: RecordingBroker(real, self.history)
        )
        self.app = storage.app(clock=self.clock, partitions=2)
        for group in ("one", "two"):
            self.app.subscribe(Step, group=group, retry=Retry(attempts=5, jitter=0))(self.handle)

    async def handle(self, step: Step, ctx: Context[Any]) -> Outcome | None:
        run = Started.of(ctx, process="p", at_ms=self.clock.now_ms())
        self.history.append(run)
        await yield_to_loop()
        outcome = self.fate(step, ctx)
        is_skipped = isinstance(outcome, Skipped)
        said = "done" if outcome is None else "skipped" if is_skipped else "failed"
        self.history.append(Ended.of(run, said))  # type: ignore[arg-type]  # a string of three
        return outcome

    def fate(self, step: Step, ctx: Context[Any]) -> Outcome | None:
        if step.number % 5 == 1 and ctx.attempt < 3:
            return RetryLater(1.0)
        if step.number % 7 == 3:
            return Skipped()
        if step.number % 11 == 4 and ctx.event_id not in self.mended:
            return Dead(lane="continue") if step.number % 2 else Dead()
        return None

    async def run(self) -> History:
        async with self.app as app:
            for number in range(40):
                await app.publish_many([Step(key, number) for key in "abcde"])
            await app.run_until_idle(PATIENCE_S)
            count = 0
            while letters := list(await app.dead_letters()):
                await self.operate(letters[::2], letters[1::2])
                if count % 2:
                    self.mended.update(each.event_id for each in letters)
                await app.run_until_idle(PATIENCE_S)
                count += 1
            self.history.append(await asked(app))
        return self.history

    async def operate(self, first: list[DeadLetter], second: list[DeadLetter]) -> None:
        """Archive some of the letters, and replay the others."""
        archived = [each for each in second if each.key in (b"d", b"e")]
        if archived:
            await self.app.archive(archived, reason="not wanted")
            self.history += [LetterChanged.of(letter, "archived") for letter in archived]
        for each in (*first, *(each for each in second if each not in archived)):
            with contextlib.suppress(Refused):  # an earlier one of its lane is open
                await self.app.replay(
                    each, reason="try", canary=False, rate_per_s=None, pause_above=None
                )


async def asked(app: App) -> Final:
    """What the broker says in the end."""
    of_partition: dict[int, list[tuple[int, bytes | None, UUID]]] = {0: [], 1: []}
    async for message in app.read(Step):
        event = (message.offset, message.key, message.event_id)
        of_partition[message.partition].append(event)
    return Final(
        idle=True,
        log=tuple(
            Log(topic=TOPIC, partition=partition, events=tuple(events))
            for partition, events in of_partition.items()
        ),
        groups=(await app.status()).groups,
        letters=tuple(
            Letter(
                group=each.group,
                topic=each.topic,
                partition=each.partition,
                offset=each.offset,
                state=each.state,
                on_dead=each.on_dead,
                crashes=each.crashes,
            )
            for each in await app.dead_letters(state=None)
        ),
    )


async def test_a_real_history_is_clean_and_nearly_everything_in_it_is_checked(
    tmp_path: Path,
) -> None:
    verdict = check(await RealHistory(tmp_path).run())
    assert verdict.clean, str(verdict)
    # What handlers publish again, what dies and what is fenced has tests of its own.
    assert {str(kind) for kind in verdict.unchecked} <= {
        "dead but not in dlq",
        "bystander charged",
        "fenced write accepted",
    }, str(verdict)


# --- lines and reports --------------------------------------------------------------------------


def test_a_line_that_was_cut_is_refused() -> None:
    line = encode(started(1))
    assert line.endswith(b"\n")
    assert decode(line) == started(1)
    with pytest.raises(ValueError, match="expected an operation in JSON"):
        decode(line[:20])


def test_clean_over_nothing_does_not_count_as_clean() -> None:
    for history in ([], [Died(process="p")], [final()]):
        verdict = check(history)
        assert not verdict.clean
        assert not verdict.anomalies
        assert set(verdict.unchecked) == set(Kind)
        assert str(verdict).endswith("NOTHING CHECKED: the history has nothing to check")


def test_the_report_says_what_is_wrong_where_and_what_was_checked() -> None:
    verdict = check([*ran(0, "failed"), *ran(1), *ran(0, attempt=2)])
    (anomaly,) = verdict.anomalies
    assert (anomaly.group, anomaly.topic, anomaly.partition, anomaly.offset) == (G, T, 0, 0)
    assert anomaly.key == b"a"
    assert anomaly.operations == (started(1), started(0, attempt=2))
    first, checked, unchecked, last = str(verdict).splitlines()
    assert first == (
        "overtake: g, t/0, offset 0, key 'a': it had no outcome when attempt 1 in p of offset 1 "
        "of its lane started"
    )
    assert "overtake 1 of 3" in checked
    assert "watermark going down" in unchecked
    assert last == "NOT CLEAN: 1 anomaly (overtake 1)"


def test_a_report_of_many_anomalies_stays_short() -> None:
    verdict = check([published(offset) for offset in range(100)] + [final(0)])
    lines = str(verdict).splitlines()
    assert len(verdict.anomalies) == 100
    assert len(lines) <= 12
    assert "... and 92 more" in lines
    assert lines[-1] == "NOT CLEAN: 100 anomalies (lost 100)"


def test_an_anomaly_is_reported_once_for_each_place() -> None:
    verdict = check([acquired(), *ran(0), *ran(0), *ran(0)])
    assert len(verdict.anomalies) == 1
