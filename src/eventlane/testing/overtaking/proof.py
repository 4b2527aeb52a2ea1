"""What the history of the ordeal shows: the checker's verdict, and how other keys fared."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from uuid import UUID

import msgspec

from eventlane.app import App
from eventlane.testing.checker import Kind, Verdict, check
from eventlane.testing.history import Ended, Final, Letter, Log, Operation, Published, Started
from eventlane.testing.overtaking.job import UNLUCKY, Step

__all__ = ["Meanwhile", "Proof", "final", "proof_of"]

_UNLUCKY = UNLUCKY.encode()


_Place = tuple[str, int, int]


def _place(at: Published | Started | Ended) -> _Place:
    return at.topic, at.partition, at.offset


class Meanwhile(msgspec.Struct, frozen=True, kw_only=True):
    """What became of all other keys while an event of the unlucky key waited for its retry."""

    waits: int
    """Waits that no kill cut short."""
    waited_s: float
    """In all."""
    published: int
    """Events of other keys that were published in these waits."""
    handled: int
    """Those of them whose handler was first run in these waits, too."""
    latest_s: float
    """How long the latest of those published had to wait for its first run."""

    @property
    def went_on(self) -> bool:
        """Whether at least half of what was published for other keys got through at once."""
        return self.waits > 0 and 2 * self.handled >= self.published > 0


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What the ordeal shows."""

    acknowledged: int
    handled: int
    """Events that were done."""
    handled_again: int
    """Those of them that were done more than once: a kill came between the run and its settling."""
    failed: int
    """Runs that failed."""
    kills: int
    meanwhile: Meanwhile
    verdict: Verdict

    @property
    def anomalies(self) -> Counter[Kind]:
        """How many of each kind the checker found."""
        return Counter(each.kind for each in self.verdict.anomalies)

    @property
    def lost(self) -> int:
        """Acknowledged events that were never done, however they were lost."""
        found = self.anomalies
        return found[Kind.LOST] + found[Kind.UNSEEN] + found[Kind.POLL_SKIP]

    @property
    def clean(self) -> bool:
        """Nothing is wrong, and what was to be shown could be seen."""
        return (
            self.verdict.clean
            and self.acknowledged > 0
            and self.failed > 0
            and self.kills > 0
            and self.meanwhile.went_on
        )


def proof_of(history: Sequence[Operation], *, kills: int) -> Proof:
    """Judge a history, whose last operation is a `Final`."""
    ends = [each for each in history if isinstance(each, Ended)]
    done = Counter(_place(each) for each in ends if each.outcome == "done")
    return Proof(
        acknowledged=sum(isinstance(each, Published) for each in history),
        handled=len(done),
        handled_again=sum(count > 1 for count in done.values()),
        failed=sum(each.outcome == "failed" for each in ends),
        kills=kills,
        meanwhile=_meanwhile(history),
        verdict=check(history),
    )


async def final(app: App) -> Final:
    """What the broker says when nothing more happens: the whole log, the account, the letters."""
    events: defaultdict[int, list[tuple[int, bytes | None, UUID]]] = defaultdict(list)
    async for message in app.read(Step):
        events[message.partition].append((message.offset, message.key, message.event_id))
    status = await app.status()
    letters = await app.dead_letters(state=None)
    return Final(
        idle=all(group.open == 0 for group in status.groups.values()),
        log=tuple(
            Log(topic="steps", partition=partition, events=tuple(found))
            for partition, found in sorted(events.items())
        ),
        groups=status.groups,
        letters=tuple(
            Letter(
                group=each.group,
                topic=each.topic,
                partition=each.partition,
                offset=each.offset,
                state=each.state,
                on_dead=each.on_dead,
            )
            for each in letters
        ),
    )


class _Wait(msgspec.Struct, frozen=True, order=True):
    began_ms: int
    ended_ms: int
    process: str


def _meanwhile(history: Sequence[Operation]) -> Meanwhile:
    """Look what became of the other keys."""
    waits = _waits(history)
    begins = [wait.began_ms for wait in waits]

    def wait_at(at_ms: int) -> _Wait | None:
        index = bisect_right(begins, at_ms) - 1
        return waits[index] if index >= 0 and at_ms <= waits[index].ended_ms else None

    first_runs: dict[_Place, Started] = {}
    for each in history:
        if isinstance(each, Started):
            first_runs.setdefault(_place(each), each)
    published = handled = 0
    late_ms = [0]
    for each in history:
        if not isinstance(each, Published) or each.key == _UNLUCKY or each.event_id is None:
            continue
        at_ms = each.event_id.int >> 80  # a UUID of version 7 begins with its time
        wait = wait_at(at_ms)
        if wait is None:
            continue
        published += 1
        run = first_runs.get(_place(each))
        if run is None:
            continue
        if wait_at(run.at_ms) is not None:
            handled += 1
        if run.process == wait.process:  # else a kill came in between
            late_ms.append(run.at_ms - at_ms)
    return Meanwhile(
        waits=len(waits),
        waited_s=sum(wait.ended_ms - wait.began_ms for wait in waits) / 1000,
        published=published,
        handled=handled,
        latest_s=max(late_ms) / 1000,
    )


def _waits(history: Sequence[Operation]) -> list[_Wait]:
    """From each run of an event of the unlucky key to the next one in the same process."""
    last_runs: dict[_Place, Started] = {}
    found: list[_Wait] = []
    for each in history:
        if isinstance(each, Started) and each.key == _UNLUCKY:
            last = last_runs.get(_place(each))
            if last is not None and last.process == each.process:
                found.append(_Wait(last.at_ms, each.at_ms, each.process))
            last_runs[_place(each)] = each
    apart: list[_Wait] = []
    for wait in sorted(found):
        last_wait = apart[-1] if apart else None
        if last_wait is None or wait.began_ms >= last_wait.ended_ms:
            apart.append(wait)
        elif wait.ended_ms > last_wait.ended_ms:  # two at once: there is overtaking
            apart[-1] = _Wait(last_wait.began_ms, wait.ended_ms, wait.process)
    return apart
