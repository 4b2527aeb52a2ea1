"""What a history has said so far of a partition of the log, and of a group in it.

The checker's memory: it takes operations in and answers questions, and judges nothing.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal
from uuid import UUID

from eventlane.failure import LetterState
from eventlane.outcome import LaneOnDead
from eventlane.testing.history import (
    Acquired,
    Ended,
    Lane,
    Letter,
    LetterChanged,
    Operation,
    Settled,
    Started,
)

__all__ = [
    "ARCHIVED",
    "DEAD",
    "OK",
    "PARKED",
    "SETTLED",
    "KnownLog",
    "Memory",
    "Ordering",
    "Standing",
    "Tenure",
    "is_within",
]

Ordering = Literal["key", "partition", "none"]
_WHOLE = -1
"""The lane of a whole partition."""

OK = ("done", "skipped")
"""The outcomes of a run that are outcomes of the event."""
SETTLED, ARCHIVED, DEAD, PARKED, _RETRYING = "settled", "archived", "dead", "parked", "retrying"
"""What is durable of an event. `_RETRYING`: failed attempts, and no outcome yet."""

_STATE_OF: dict[LetterState, str] = {
    "open": DEAD,
    "replaying": DEAD,
    "resolved": SETTLED,
    "archived": ARCHIVED,
    "edited": DEAD,
}
_COUNTER_OF: dict[LetterState, str] = {
    "open": "dead",
    "replaying": "dead",
    "archived": "archived",
    "edited": "dead",
}


class KnownLog:
    """A partition of the log, as far as the history names its events."""

    def __init__(self) -> None:
        self.events: dict[int, tuple[bytes | None, UUID | None, Operation]] = {}
        """Key, event id, and the operation that named it first."""
        self.read: set[int] | None = None
        """What was read from the broker in the end."""
        self.first = 0
        self.offsets: list[int] = []
        self._lanes: dict[bytes | None, list[int]] = {}

    def sort(self) -> None:
        """All its events are known."""
        self.offsets = sorted(self.events)
        for offset in self.offsets:
            self._lanes.setdefault(self.events[offset][0], []).append(offset)

    def key_of(self, offset: int) -> bytes | None:
        """The key of an event, None too where it is not known."""
        known = self.events.get(offset)
        return None if known is None else known[0]

    def lane(self, lane: Lane) -> list[int]:
        """The offsets of a lane, ascending."""
        return self._lanes.get(lane, []) if isinstance(lane, bytes) else self.offsets

    def within(self, runs: Iterator[tuple[int, int]]) -> list[int]:
        """The offsets within [start, stop) runs."""
        offsets = self.offsets
        return [
            offset
            for start, stop in runs
            for offset in offsets[bisect_left(offsets, start) : bisect_left(offsets, stop)]
        ]


class Tenure:
    """What a process has run of a partition while it owned it."""

    def __init__(self, base: Sequence[tuple[int, int]] = (), epoch: int = 0) -> None:
        self.base = base
        """What was durable when it began, as [start, stop) runs."""
        self.epoch = epoch
        self.runs: dict[int, str] = {}
        """How the last run of an offset ended; "running" if it has not."""
        self.highest: dict[Lane, Started] = {}
        """The run of the latest event of each lane."""
        self.front: dict[Lane, int] = {}
        """Index in the lane of the first event that was not looked at when a later one started."""


class Standing:
    """Where one group stands in one partition."""

    def __init__(
        self, group: str, topic: str, partition: int, log: KnownLog, ordering: Ordering
    ) -> None:
        self.group, self.topic, self.partition = group, topic, partition
        self.log = log
        self.ordering = ordering
        self.settles = self.acquires = self.changes = self.is_doubtful = False
        """Which operations were recorded of it; and whether one has an unknown end."""
        self.tenures: dict[str, Tenure] = {}
        self.former: dict[tuple[str, int], Tenure] = {}
        """Earlier tenures of processes that own it again, by their epochs."""
        self.owner: Tenure | None = None
        self.ever_run: set[int] = set()
        """All offsets that run anywhere in the history."""
        self.last: dict[int, str] = {}
        """How the last run of an offset by anybody ended."""
        self.busy: dict[tuple[str, Lane], Started] = {}
        self.cut: dict[Lane, tuple[Started, bool]] = {}
        """The run in a lane that its process did not survive, and whether it ran alone."""
        self.highest: dict[Lane, Started] = {}
        self.counted: dict[int, tuple[int, Operation]] = {}
        """Failed attempts that are durable, in the present budget; and what shows it."""
        self.attempt: dict[int, int] = {}
        """The attempt of an offset that was begun last."""
        self.crashes: Counter[int] = Counter()
        """Ends of a process in which an offset ran alone."""
        self.alone: tuple[str, int] | None = None
        """The process and the offset that is to run alone, as was written."""
        self.states: dict[int, str] = {}
        self.parked: defaultdict[Lane, list[int]] = defaultdict(list)
        """What is parked of each lane, ascending."""
        self.on_dead: dict[int, LaneOnDead] = {}
        self.letters: dict[int, LetterState] = {}
        self.edited: set[int] = set()
        """Whose letter has a child in its place."""
        self.counters: Counter[str] = Counter()
        self.start = self.watermark = -1
        self.epoch = -1
        self._runs: Sequence[tuple[int, int]] = ()
        self._front: dict[Lane, int] = {}

    @property
    def is_counted(self) -> bool:
        """What is durable is known."""
        return self.settles and not self.is_doubtful

    @property
    def is_exact(self) -> bool:
        """So is what an owner knew when it began."""
        return self.acquires and self.is_counted

    def lane_of(self, offset: int, key: bytes | None) -> Lane:
        """The lane of an event."""
        if self.ordering == "key" and key is not None:
            return key
        return _WHOLE if self.ordering == "partition" else offset

    def lane_at(self, offset: int) -> Lane:
        """The lane of an event that the history may not have named."""
        return self.lane_of(offset, self.log.key_of(offset))

    def is_shared(self, lane: Lane) -> bool:
        """Whether more than one event can be in a lane."""
        return isinstance(lane, bytes) or lane == _WHOLE

    def is_covered(self, offset: int) -> bool:
        """Whether an outcome, or that it is parked, was written."""
        return self.states.get(offset, _RETRYING) != _RETRYING

    def is_closing(self, offset: int) -> bool:
        """Whether what was written of an event keeps later ones of its lane from starting."""
        state = self.states.get(offset)
        return state in (PARKED, _RETRYING) or (
            state == DEAD and self.on_dead.get(offset) != "continue"
        )

    # --- owners and runs --------------------------------------------------------------------

    def tenure_of(self, process: str, epoch: int | None = None) -> Tenure:
        """The tenure in which a process runs something now.

        Where nobody recorded who owns what, a run by another process begins a new one. A process
        that has lost a partition and has it again may not know of either yet.
        """
        tenure = self.tenures.get(process)
        if tenure is not None and epoch is not None and epoch < tenure.epoch:
            return self.former.setdefault((process, epoch), Tenure())
        if tenure is None or not (self.acquires or tenure is self.owner):
            tenure = self.tenures[process] = Tenure()
            if not self.acquires:
                self.owner = tenure
        return tenure

    def note_run(self, tenure: Tenure, offset: int, how: str) -> None:
        """A run began, or ended."""
        tenure.runs[offset] = how
        if tenure is self.owner or not self.acquires:
            self.last[offset] = how
        else:  # What a former owner does changes nothing.
            self.last.setdefault(offset, how)

    def acquire(self, acquired: Acquired) -> None:
        """Another process owns it."""
        base = _normal(acquired.watermark, acquired.settled)
        before = self.tenures.get(acquired.process)
        if before is not None:
            self.former[acquired.process, before.epoch] = before
        self.owner = self.tenures[acquired.process] = Tenure(base, acquired.epoch)
        if self.watermark < 0:
            self._begin(acquired.watermark, acquired.settled)

    def bury(self, process: str) -> None:
        """A process is dead. What it has written may be recorded later."""
        if not self.acquires and self.owner is self.tenures.get(process):
            self.owner = None

    def front(self, lane: Lane, tenure: Tenure, offset: int) -> int:
        """Index in a lane of the first event that a new owner, who runs `offset`, has to run."""
        offsets = self.log.lane(lane)
        if not self.acquires:
            # What it runs was not durable, so nothing after it was: but before, who knows.
            return bisect_left(offsets, offset)
        if not self.is_exact:
            return bisect_left(offsets, tenure.base[0][1] if tenure.base else offset)
        front = self._front.get(lane)
        if front is None:
            front = bisect_left(offsets, self.start)
        while (
            front < len(offsets)
            and self.is_covered(offsets[front])
            and not self.is_closing(offsets[front])
        ):
            front += 1
        self._front[lane] = front
        return front

    def is_passed_over(self, offset: int, tenure: Tenure) -> bool:
        """Whether an event certainly has no outcome for its owner, as a later one starts.

        What failed just now, or was never run, may have been skipped: what follows will show.
        """
        here = tenure.runs.get(offset)
        if here in OK:
            return False
        if here is not None:
            is_decided = self.letters.get(offset) == "open" or (
                offset in self.counted and self.counted[offset][0] >= self.attempt.get(offset, 1)
            )
            return self.is_exact and is_decided and self.is_closing(offset)
        if self.is_exact and offset in self.states:
            # What is parked and runs nowhere may have been skipped, as no handler is for it.
            is_handled = self.states[offset] != PARKED or offset in self.ever_run
            return is_handled and self.is_closing(offset)
        before = self.last.get(offset)
        if self.acquires:
            is_open = before is not None and not is_within(offset, tenure.base)
            # Who ran alone when its process died may be dead without a further run.
            return is_open and not self.crashes[offset]
        return before in OK

    def outcome_for(self, tenure: Tenure | None, offset: int) -> str | None:
        """How the last run of an event ended, as an owner knows it."""
        if not self.acquires:
            return self.last.get(offset)
        return None if tenure is None else tenure.runs.get(offset)

    # --- what is durable --------------------------------------------------------------------

    def cover(self, settled: Settled) -> tuple[list[int], list[int]]:
        """Take in watermark and runs; the offsets that are new in them, and those that left."""
        if self.watermark < 0:
            self._begin(self.log.first, ())
        runs = _normal(settled.watermark, settled.settled)
        new = self.log.within(_without(runs, self._runs))
        gone = self.log.within(_without(self._runs, runs))
        new = [offset for offset in new if not self.is_covered(offset)]
        self._runs, self.watermark, self.epoch = runs, settled.watermark, settled.epoch
        for offset in gone:
            self.states.pop(offset, None)
        return new, gone

    def park(self, settled: Settled) -> list[int]:
        """Take in what was parked; the offsets that are parked no longer."""
        for lane, offset in settled.parked:
            self.parked[lane].append(offset)
        gone: list[int] = []
        for lane, count, head in settled.lanes:
            parked = self.parked[lane]
            over = bisect_left(parked, head) if count else len(parked)
            gone += parked[:over]
            del parked[:over]
        return gone

    def write(self, settled: Settled, new: list[int], unparked: list[int]) -> None:
        """Take in what else was written."""
        self.alone = None if settled.alone is None else (settled.process, settled.alone)
        states = self.states
        for offset in chain(new, unparked):
            states[offset] = SETTLED
        for _, offset in settled.parked:
            states[offset] = PARKED
        for offset, on_dead in settled.dead:
            states[offset] = DEAD
            self.letters[offset], self.on_dead[offset] = "open", on_dead
        for offset, count in settled.attempts:
            self.count(offset, count, settled)
            states.setdefault(offset, _RETRYING)
        counters = self.counters
        counters["done"] += settled.done
        counters["skipped"] += settled.skipped
        counters["parked"] += len(settled.parked) - settled.unparked
        counters["dead"] += len(settled.dead)
        for offset, state, outcome in settled.letters:
            self.change(offset, state, outcome)

    def change(self, offset: int, state: LetterState, outcome: str = "") -> None:
        """A dead letter is in another state."""
        before = self.letters.get(offset, "open")
        self.counters[_COUNTER_OF.get(before, "done")] -= 1
        if state == "edited":
            self.edited.add(offset)
        elif offset in self.edited:  # What it is resolved by is another event.
            outcome = "edited"
        self.counters[_COUNTER_OF.get(state, outcome)] += 1
        if before == "archived" and state == "open":
            self.on_dead[offset] = "continue"  # Its lane went on: its replay is late.
        self.letters[offset] = state
        self.states[offset] = _STATE_OF[state]
        if state == "replaying":
            self.counted.pop(offset, None)

    def count(self, offset: int, count: int, by: Operation) -> None:
        """So many attempts are durable at least."""
        if count > (self.counted[offset][0] if offset in self.counted else 0):
            self.counted[offset] = (count, by)

    def _begin(self, watermark: int, settled: Sequence[tuple[int, int]]) -> None:
        self.start = self.watermark = watermark
        self._runs = _normal(watermark, settled)
        for offset in self.log.within(iter(settled)):
            self.states[offset] = SETTLED


class Memory:
    """All partitions, and all groups in them."""

    def __init__(self, ordering: Ordering | Mapping[str, Ordering]) -> None:
        self._ordering: Mapping[str, Ordering] = {}
        self._default: Ordering = "key"
        if isinstance(ordering, Mapping):
            self._ordering = ordering
        else:
            self._default = ordering
        self.logs: defaultdict[tuple[str, int], KnownLog] = defaultdict(KnownLog)
        self.standings: dict[tuple[str, str, int], Standing] = {}
        self.failed_in: defaultdict[tuple[str, int, int], set[str]] = defaultdict(set)
        """By event, the groups in which it failed."""
        self.groups_run: set[str] = set()
        """Groups of which runs were recorded."""
        self.has_ends = self.has_deaths = False
        self.charges: list[tuple[Standing, int, int, Operation]] = []
        """Events that are charged with ends of their process: offset, how many, and who says so."""

    def standing(
        self, at: Acquired | Started | Ended | Settled | LetterChanged | Letter
    ) -> Standing:
        """Where a group stands in a partition."""
        place = (at.group, at.topic, at.partition)
        return self.standings.get(place) or self.stand(*place)

    def charge(self, standing: Standing, by: Acquired | Settled) -> None:
        """Remember who is charged: deaths may be recorded later than what followed them."""
        self.charges += [(standing, offset, count, by) for offset, count in by.crashes]

    def stand(self, group: str, topic: str, partition: int) -> Standing:
        """The same, by name."""
        standing = self.standings.get((group, topic, partition))
        if standing is None:
            ordering = self._ordering.get(group, self._default)
            log = self.logs[topic, partition]
            standing = Standing(group, topic, partition, log, ordering)
            self.standings[group, topic, partition] = standing
        return standing


def is_within(offset: int, runs: Sequence[tuple[int, int]]) -> bool:
    """Whether an offset is in one of ascending [start, stop) runs."""
    index = bisect_right(runs, (offset, math.inf)) - 1
    return index >= 0 and offset < runs[index][1]


def _normal(watermark: int, settled: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    above = sorted((max(start, watermark), stop) for start, stop in settled if stop > watermark)
    return [(0, watermark), *above]


def _without(
    runs: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """What of ascending runs is not in others."""
    index = 0
    for start, stop in runs:
        at = start
        while at < stop:
            while index < len(others) and others[index][1] <= at:
                index += 1
            if index == len(others) or others[index][0] >= stop:
                yield at, stop
                break
            if others[index][0] > at:
                yield at, others[index][0]
            at = others[index][1]
