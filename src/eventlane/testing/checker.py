"""A checker: whether a history kept what Eventlane promises, in the manner of Jepsen's for Kafka.

    verdict = check(history, ordering={"billing": "partition"})
    assert verdict.clean, str(verdict)

What a history is made of, and how to record one, is in `history.py`; what may be wrong, in
`verdict.py`. A check whose operations were not recorded is not made: `Verdict.checked` says over
how many operations each one was. Every anomaly is certain as far as the history is true and whole;
where two explanations are left, the innocent one is taken.

Limits: a history begins with its groups, or their counters are not those of the history; a reset of
a group is not provided for; where no settlements are recorded, an event for which a group has no
handler looks like one that it passed over.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from eventlane.message import Position
from eventlane.testing.ending import check_end
from eventlane.testing.history import (
    Acquired,
    Died,
    Ended,
    Final,
    Lane,
    LetterChanged,
    Operation,
    Published,
    Settled,
    Started,
)
from eventlane.testing.settlements import Settlements
from eventlane.testing.standing import (
    ARCHIVED,
    DEAD,
    OK,
    SETTLED,
    Memory,
    Ordering,
    Standing,
    Tenure,
)
from eventlane.testing.verdict import Anomaly, Findings, Kind, Verdict, in_words

__all__ = ["Anomaly", "Kind", "Ordering", "Verdict", "check"]


def check(
    history: Iterable[Operation], *, ordering: Ordering | Mapping[str, Ordering] = "key"
) -> Verdict:
    """Look for anomalies in a history, in time that grows with its length.

    Args:
        history: Operations in the order in which they happened.
        ordering: Of all groups, or of each; a group that is not named has the ordering "key".
    """
    operations = list(history)
    memory = Memory(ordering)
    findings = Findings(memory.logs)
    walk = _Walk(memory, findings)
    for operation in operations:
        walk.note(operation)
    for log in memory.logs.values():
        log.sort()
    for operation in operations:
        walk.step(operation)
    check_end(walk.final, walk.published, memory, findings)
    return findings.verdict()


class _Walk:
    """Takes a history operation by operation, and judges each by what was before it."""

    def __init__(self, memory: Memory, findings: Findings) -> None:
        self.final = Final()
        self.published: list[Published] = []
        self._memory = memory
        self._report = findings.report
        self._overtake = findings.overtake
        self._checked = findings.checked
        self._running: defaultdict[str, dict[tuple[Standing, int], tuple[Started, Tenure]]]
        self._running = defaultdict(dict)
        self._failed_in = memory.failed_in
        settlements = Settlements(memory, findings)
        self._steps: dict[type[Operation], Callable[[Any], None]] = {
            Acquired: self._acquired,
            Started: self._started,
            Ended: self._ended,
            Settled: settlements.settled,
            LetterChanged: settlements.letter_changed,
            Died: self._died,
        }

    def step(self, operation: Operation) -> None:
        """Judge an operation, and remember it."""
        step = self._steps.get(type(operation))
        if step is not None:
            step(operation)

    # --- before the first step --------------------------------------------------------------

    def note(self, operation: Operation) -> None:
        """Take in what has to be known from the start: the log, and what was recorded at all."""
        match operation:
            case Published():
                self.published.append(operation)
                self._name(operation, operation)
            case Started():
                self._memory.groups_run.add(operation.group)
                self._memory.standing(operation).ever_run.add(operation.offset)
                self._name(operation, operation)
            case Acquired():
                self._memory.standing(operation).acquires = True
            case Settled():
                self._memory.standing(operation).settles = True
                events = self._memory.logs[operation.topic, operation.partition].events
                for lane, offset in operation.parked:
                    if isinstance(lane, bytes):
                        events.setdefault(offset, (lane, None, operation))
            case LetterChanged():
                self._memory.standing(operation).changes = True
            case Ended():
                self._memory.has_ends = True
            case Final():
                self._note_final(operation)
            case Died():
                pass

    def _note_final(self, final: Final) -> None:
        self.final = final
        for log in final.log or ():
            known = self._memory.logs[log.topic, log.partition]
            known.first, known.read = log.first, {offset for offset, _, _ in log.events}
            for offset, key, event_id in log.events:
                named = Published(
                    topic=log.topic,
                    partition=log.partition,
                    offset=offset,
                    key=key,
                    event_id=event_id,
                )
                self._name(named, final)
        for letter in final.letters or ():
            self._failed_in[letter.topic, letter.partition, letter.offset].add(letter.group)

    def _name(self, event: Published | Started, by: Operation) -> None:
        """An operation names an event: all that name its offset must name the same."""
        events = self._memory.logs[event.topic, event.partition].events
        known = events.get(event.offset)
        if known is None:
            events[event.offset] = (event.key, event.event_id, by)
            return
        key, event_id, before = known
        self._checked[Kind.INCONSISTENT_OFFSETS] += 1
        if event_id is None or event.event_id is None:
            differs = key != event.key
            if event_id is None and not differs:
                events[event.offset] = (event.key, event.event_id, by)
        else:
            differs = (key, event_id) != (event.key, event.event_id)
        if differs:
            self._report(
                Kind.INCONSISTENT_OFFSETS,
                Position(event.topic, event.partition, event.offset),
                event.offset,
                f"it is event {event_id} with key {key!r}, and it is event {event.event_id} with "
                f"key {event.key!r}",
                before,
                by,
            )

    # --- owners -----------------------------------------------------------------------------

    def _acquired(self, acquired: Acquired) -> None:
        standing = self._memory.standing(acquired)
        if standing.alone is not None:
            # It may have been frozen: for its successor that is an end like any other.
            standing.crashes[standing.alone[1]] += 1
            standing.alone = None
        standing.acquire(acquired)
        self._memory.charge(standing, acquired)

    def _died(self, died: Died) -> None:
        self._memory.has_deaths = True
        running = self._running.pop(died.process, {})
        for (standing, offset), (started, tenure) in running.items():
            lane = standing.lane_of(offset, started.key)
            standing.busy.pop((died.process, lane), None)
            is_alone = started.alone and len(running) == 1
            standing.crashes[offset] += is_alone
            if tenure is standing.owner:
                standing.cut[lane] = (started, is_alone)
            self._failed_in[standing.topic, standing.partition, offset].add(standing.group)
        for standing in self._memory.standings.values():
            if standing.alone is not None and standing.alone[0] == died.process:
                # Between what says so and the run itself nothing can tell.
                offset = standing.alone[1]
                standing.crashes[offset] += (standing, offset) not in running
                standing.alone = None
            standing.bury(died.process)

    # --- runs -------------------------------------------------------------------------------

    def _started(self, started: Started) -> None:
        standing = self._memory.standing(started)
        tenure = standing.tenure_of(started.process, started.epoch)
        lane = standing.lane_of(started.offset, started.key)
        if started.due_ms is not None:
            self._check_due(standing, started, started.due_ms)
        if started.replayed:
            self._check_group(standing, started)
        if tenure is standing.owner:  # Who is no longer owner does not know what is durable.
            self._check_attempt(standing, started)
            self._check_again(standing, tenure, started)
            if standing.cut:
                self._check_cut(standing, lane, started)
        if self._memory.has_ends:
            self._check_busy(standing, lane, started)
        if not started.late and standing.is_shared(lane):
            self._check_order(standing, tenure, lane, started)
        standing.note_run(tenure, started.offset, "running")
        self._running[started.process][standing, started.offset] = (started, tenure)

    def _ended(self, ended: Ended) -> None:
        standing = self._memory.standing(ended)
        found = self._running[ended.process].pop((standing, ended.offset), None)
        if found is None:
            return
        started, tenure = found
        busy = (ended.process, standing.lane_of(ended.offset, started.key))
        if standing.busy.get(busy) is started:
            del standing.busy[busy]
        standing.note_run(tenure, ended.offset, ended.outcome)
        if ended.outcome not in OK:
            self._failed_in[ended.topic, ended.partition, ended.offset].add(ended.group)

    def _check_due(self, standing: Standing, started: Started, due_ms: int) -> None:
        self._checked[Kind.EARLY_RETRY] += 1
        if started.at_ms < due_ms:
            self._report(
                Kind.EARLY_RETRY,
                standing,
                started.offset,
                f"{in_words(started)} started {due_ms - started.at_ms} ms before it was due",
                started,
            )

    def _check_group(self, standing: Standing, started: Started) -> None:
        self._checked[Kind.CROSS_GROUP_LEAK] += 1
        failed_in = self._failed_in.get((started.topic, started.partition, started.offset), set())
        # Where no letters are recorded, an event may have died without a run: undecodable.
        if started.group not in failed_in and (failed_in or standing.settles):
            others = ", ".join(sorted(failed_in)) or "no group that is known"
            self._report(
                Kind.CROSS_GROUP_LEAK,
                standing,
                started.offset,
                f"{in_words(started)} is a replay, but the event failed in {others}",
                started,
            )

    def _check_attempt(self, standing: Standing, started: Started) -> None:
        offset, attempt = started.offset, started.attempt
        if started.replayed and attempt == 1 and not standing.changes:
            standing.counted.pop(offset, None)
        counted = standing.counted.get(offset)
        if counted is not None:
            self._checked[Kind.ATTEMPTS_DOWN] += 1
            if attempt <= counted[0]:
                self._report(
                    Kind.ATTEMPTS_DOWN,
                    standing,
                    offset,
                    f"{in_words(started)} started after {counted[0]} failed attempts were durable",
                    counted[1],
                    started,
                )
        standing.attempt[offset] = attempt
        if attempt > 1:
            standing.count(offset, attempt - 1, started)

    def _check_again(self, standing: Standing, tenure: Tenure, started: Started) -> None:
        if not standing.acquires:
            return
        self._checked[Kind.RUN_AGAIN] += 1
        state = standing.states.get(started.offset) if standing.is_exact else None
        ended = tenure.runs.get(started.offset)
        if state in (SETTLED, ARCHIVED) or (
            not started.replayed and (state == DEAD or ended in OK)
        ):
            self._report(
                Kind.RUN_AGAIN,
                standing,
                started.offset,
                f"{in_words(started)} started though the event was {state or ended} already",
                started,
            )

    def _check_cut(self, standing: Standing, lane: Lane, started: Started) -> None:
        """The first run in a lane after the one that its process did not survive."""
        found = standing.cut.get(lane)
        if found is None:
            return
        cut, was_alone = found
        if cut.offset == started.offset:
            del standing.cut[lane]
            if cut.replayed == started.replayed and not was_alone:
                self._checked[Kind.BYSTANDER_CHARGED] += 1
                if started.attempt > cut.attempt:
                    self._report(
                        Kind.BYSTANDER_CHARGED,
                        standing,
                        cut.offset,
                        f"{in_words(cut)} did not run alone when its process died, and counts as "
                        f"failed: {in_words(started)} follows",
                        cut,
                        started,
                    )
        elif cut.offset < started.offset and not cut.late and not started.late:
            del standing.cut[lane]
            has_outcome = standing.is_covered(cut.offset) and not standing.is_closing(cut.offset)
            if not has_outcome and not was_alone:  # Who ran alone may have died of it.
                self._overtake(standing, cut.offset, started, cut)

    def _check_busy(self, standing: Standing, lane: Lane, started: Started) -> None:
        busy = standing.busy.get((started.process, lane))
        self._checked[Kind.TWO_AT_ONCE] += standing.is_shared(lane)
        if busy is not None:
            self._report(
                Kind.TWO_AT_ONCE,
                standing,
                started.offset,
                f"{in_words(started)} started while {in_words(busy)} of offset {busy.offset} of "
                "its lane was running",
                busy,
                started,
            )
        standing.busy[started.process, lane] = started

    def _check_order(
        self, standing: Standing, tenure: Tenure, lane: Lane, started: Started
    ) -> None:
        self._checked[Kind.OVERTAKE] += 1
        offset = started.offset
        highest = tenure.highest.get(lane)
        if highest is None:
            tenure.front[lane] = standing.front(lane, tenure, offset)
        elif offset < highest.offset and tenure.runs.get(offset) not in OK:
            self._overtake(standing, offset, highest, started)
        ever = standing.highest.get(lane)
        if ever is not None and offset < ever.offset and offset not in standing.last:
            self._overtake(standing, offset, ever, started)
        offsets, front = standing.log.lane(lane), tenure.front[lane]
        while front < len(offsets) and offsets[front] < offset:
            if standing.is_passed_over(offsets[front], tenure):
                self._overtake(standing, offsets[front], started)
            front += 1
        tenure.front[lane] = front
        if highest is None or offset > highest.offset:
            tenure.highest[lane] = started
        if ever is None or offset > ever.offset:
            standing.highest[lane] = started
