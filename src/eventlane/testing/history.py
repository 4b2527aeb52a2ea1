"""A history: what was published, run, written and asked for, one operation after the other.

`checker.check` judges one. A history may be a list in memory, or lines in a file: `encode` makes a
line of an operation, so that several processes can append to one file (opened with `O_APPEND`, each
line in one write), whose lines then stand in the order in which things happened. That order counts:
what causes something is to be recorded before its effect can be.

- A handler alone can record `Started` and `Ended`, a publisher `Published`, who kills a process
  `Died`. Record `Started` first and `Ended` last in the handler, whatever it raises. Lists that
  hold several events of a lane on purpose are not for this.
- What stands around a broker can record everything: `Acquired` when a consumer is told so;
  `Settled` when a settlement has been written or refused, even if its caller is gone by then;
  `LetterChanged` for a replay when its `Command` is seen first, and for what an operator archives
  or restores when he does.
- `Final` is what the broker says in the end, as far as it was asked.

Name each start of a process anew (a pid with a counter will do). Where processes are frozen and go
on later, record `Acquired`: only it tells an owner from one that was.
"""

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

import msgspec

from eventlane.account import GroupStatus
from eventlane.failure import DeadLetter, LetterState
from eventlane.handler import Context
from eventlane.outcome import LaneOnDead
from eventlane.settlement import Acquired as AcquiredChange
from eventlane.settlement import Settlement
from eventlane.suspects import ALONE_IN_PROCESS

__all__ = [
    "Acquired",
    "Counts",
    "Died",
    "Ended",
    "Final",
    "Lane",
    "Letter",
    "LetterChanged",
    "LetterOutcome",
    "Log",
    "Operation",
    "Progress",
    "Published",
    "RunOutcome",
    "Runs",
    "Settled",
    "Started",
    "decode",
    "encode",
]

RunOutcome = Literal["done", "skipped", "failed", "cancelled"]
LetterOutcome = Literal["done", "skipped", "dead", "returned", "unhandled"]
Lane = bytes | int
"""A key; the offset of an event that is a lane of its own; -1 for a whole partition."""
Counts = tuple[tuple[int, int], ...]
Runs = tuple[tuple[int, int], ...]
"""Offsets, as [start, stop)."""


class _Recorded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="is"):
    pass


class Published(_Recorded, frozen=True, kw_only=True, tag="published"):
    """A publish was acknowledged."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    event_id: UUID | None = None
    process: str = ""


class Acquired(_Recorded, frozen=True, kw_only=True, tag="acquired"):
    """A process owns a partition from now on, and knows of it what was durable."""

    process: str
    group: str
    topic: str
    partition: int
    epoch: int
    watermark: int
    settled: Runs = ()
    crashes: Counts = ()
    """Offset, and how many ends of a process are charged to it."""

    @classmethod
    def of(cls, change: AcquiredChange, *, process: str, group: str) -> "Acquired":
        """What a consumer was told, as an operation."""
        return cls(
            process=process,
            group=group,
            topic=change.topic,
            partition=change.partition,
            epoch=change.epoch,
            watermark=change.watermark,
            settled=change.settled,
            crashes=tuple(
                (offset, ends - ALONE_IN_PROCESS)
                for start, stop, ends in change.suspects
                if ends > ALONE_IN_PROCESS
                for offset in range(start, stop)
            ),
        )


class Started(_Recorded, frozen=True, kw_only=True, tag="started"):
    """A run of a handler began."""

    process: str
    group: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    event_id: UUID | None = None
    attempt: int = 1
    at_ms: int = 0
    """By the clock of the process."""
    due_ms: int | None = None
    """If it is a retry: when it was due."""
    replayed: bool = False
    late: bool = False
    alone: bool = False
    """Nothing else was let run in its process."""
    epoch: int | None = None
    """Under which its process believed to own the partition; None: not known."""

    @classmethod
    def of(cls, context: Context[Any], *, process: str, at_ms: int) -> "Started":
        """The run that a handler or a middleware is given."""
        trouble = context.trouble
        letter = None if trouble is None else trouble.letter
        is_edited = letter is not None and letter.edited_from is not None
        return cls(
            process=process,
            group=context.group,
            topic=context.message.topic,
            partition=context.message.partition,
            offset=context.offset,
            key=context.message.key,
            event_id=None if is_edited else context.event_id,  # the log has its parent
            attempt=context.attempt,
            at_ms=at_ms,
            due_ms=None if trouble is None else trouble.due_ms or None,
            replayed=context.replayed,
            late=context.late,
            alone=trouble is not None and trouble.ends >= ALONE_IN_PROCESS,
            epoch=context.origin.lanes.epoch,
        )


class Ended(_Recorded, frozen=True, kw_only=True, tag="ended"):
    """A run ended, as its process saw it."""

    process: str
    group: str
    topic: str
    partition: int
    offset: int
    outcome: RunOutcome
    """`failed`: it raised, or returned `RetryLater` or `Dead`; `skipped`: the same, where a rule
    makes a skip of it. `cancelled`: it came to no outcome, as after `Pause`."""

    @classmethod
    def of(cls, started: Started, outcome: RunOutcome) -> "Ended":
        """The end of a run."""
        return cls(
            process=started.process,
            group=started.group,
            topic=started.topic,
            partition=started.partition,
            offset=started.offset,
            outcome=outcome,
        )


class Settled(_Recorded, frozen=True, kw_only=True, tag="settled"):
    """What an owner wrote, or wanted to write, in one settlement; fields as there."""

    process: str
    group: str
    topic: str
    partition: int
    epoch: int
    watermark: int
    settled: Runs = ()
    done: int = 0
    skipped: int = 0
    dead: tuple[tuple[int, LaneOnDead], ...] = ()
    """New dead letters: offset, and what their lane does."""
    parked: tuple[tuple[Lane, int], ...] = ()
    """Lane and offset."""
    unparked: int = 0
    lanes: tuple[tuple[Lane, int, int], ...] = ()
    """Lanes that have changed: how many events are parked, and that none is below which offset."""
    attempts: Counts = ()
    """Offset, and how many attempts have failed."""
    crashes: Counts = ()
    alone: int | None = None
    """The only offset that runs from then on. A process that dies now is charged to it."""
    letters: tuple[tuple[int, LetterState, LetterOutcome], ...] = ()
    """What replays made of dead letters: offset, state, and the outcome of the last run."""
    accepted: bool | None = True
    """None: nobody knows, and much less can be said about the partition from then on."""
    stale: bool = False
    """When it was sent, a newer epoch had been given out: it must not be accepted."""

    @classmethod
    def of(
        cls,
        settlement: Settlement,
        *,
        process: str,
        group: str,
        accepted: bool | None,
        stale: bool = False,
    ) -> "Settled":
        """A settlement as an operation; of crashes it says what its dead letters say."""
        return cls(
            process=process,
            group=group,
            topic=settlement.topic,
            partition=settlement.partition,
            epoch=settlement.epoch,
            watermark=settlement.watermark,
            settled=tuple((start, stop) for start, stop in settlement.settled),
            done=settlement.done,
            skipped=settlement.skipped,
            dead=tuple((each.offset, each.on_dead) for each in settlement.dead),
            parked=tuple((lane, offset) for lane, offset, _ in settlement.parked),
            unparked=settlement.unparked,
            lanes=tuple((each.lane, each.parked, each.head) for each in settlement.lanes),
            attempts=tuple((each.offset, each.count) for each in settlement.attempts),
            crashes=tuple((each.offset, each.crashes) for each in settlement.dead if each.crashes),
            alone=settlement.alone,
            letters=tuple((each.offset, each.state, each.outcome) for each in settlement.letters),
            accepted=accepted,
            stale=stale,
        )


class LetterChanged(_Recorded, frozen=True, kw_only=True, tag="letter changed"):
    """An operator changed a dead letter; what becomes of a replay is in a `Settled`."""

    group: str
    topic: str
    partition: int
    offset: int
    state: LetterState
    """`replaying` begins a replay, `archived` opens its lane, `open` restores."""

    @classmethod
    def of(cls, letter: DeadLetter, state: LetterState) -> "LetterChanged":
        """A change of a dead letter to a state."""
        return cls(
            group=letter.group,
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            state=state,
        )


class Died(_Recorded, frozen=True, kw_only=True, tag="died"):
    """A process was killed, or ended without leaving its groups."""

    process: str


class Log(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A partition, read from its beginning to its end."""

    topic: str
    partition: int
    events: tuple[tuple[int, bytes | None, UUID], ...]
    """Offset, key, event id."""
    first: int = 0
    """Retention has removed what was before."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a group stands in a partition."""

    group: str
    topic: str
    partition: int
    watermark: int
    settled: Runs = ()
    parked: tuple[int, ...] = ()
    blocked: bool = False
    """It takes no new events: a dead letter stops it, or a lane has reached its bound."""


class Letter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter."""

    group: str
    topic: str
    partition: int
    offset: int
    state: LetterState = "open"
    on_dead: LaneOnDead = "park"
    crashes: int = 0


class Final(_Recorded, frozen=True, kw_only=True, tag="final"):
    """What the broker says in the end. None: it was not asked. The last operation."""

    idle: bool = False
    """Nothing more happened by itself."""
    log: tuple[Log, ...] | None = None
    progress: tuple[Progress, ...] | None = None
    groups: Mapping[str, GroupStatus] | None = None
    letters: tuple[Letter, ...] | None = None
    """All dead letters, in all states."""
    dlq: tuple[tuple[str, str, int, int], ...] | None = None
    """What is on the dead-letter topics: group, and the event's topic, partition and offset."""


Operation = Published | Acquired | Started | Ended | Settled | LetterChanged | Died | Final

_encode = msgspec.json.Encoder().encode
_decode: msgspec.json.Decoder[Operation] = msgspec.json.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """One line of JSON, with its end."""
    return _encode(operation) + b"\n"


def decode(line: bytes | str) -> Operation:
    """What `encode` made a line of.

    Raises:
        ValueError: It is no such line; the last one of a killed process may be cut.
    """
    try:
        return _decode.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected an operation in JSON, got {line[:80]!r}: {error}") from error
