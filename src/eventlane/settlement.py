"""What passes between a broker and a group's dispatcher: what it owns, and what became of it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from eventlane.failure import Attempts, DeadLetter, LetterState
from eventlane.message import Record

__all__ = [
    "Acquired",
    "Appended",
    "Batch",
    "Change",
    "Command",
    "GroupSpec",
    "LaneState",
    "LetterChange",
    "Lost",
    "Paused",
    "Settlement",
]


class Batch(NamedTuple):
    """A stretch of one partition."""

    offsets: Sequence[int]
    """Ascending; not always without gaps (compaction, transaction markers)."""
    records: Sequence[Record]


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A group, as the app that joins it declares it."""

    name: str
    topics: tuple[str, ...]
    start: Literal["first", "now"]
    ordering: Literal["key", "partition", "none"]
    on_dead: Literal["park", "continue", "stop"]
    app: str
    host: str


class LaneState(msgspec.Struct, frozen=True):
    """A lane that is not free, as it was stored."""

    key: bytes | None
    parked: int
    """Events in the parking store."""
    blockers: tuple[int, ...]
    """Offsets of the dead letters that keep it closed."""
    stops: bool = False
    """One of them was made under `stop`: the partition takes no new events."""


class Acquired(msgspec.Struct, frozen=True):
    """The process owns a partition from now on; with all that is needed before the first run."""

    topic: str
    partition: int
    epoch: int
    watermark: int
    """Lowest offset without an outcome."""
    settled: tuple[tuple[int, int], ...]
    """Offsets above the watermark that have one, as [start, stop) runs."""
    attempts: tuple[Attempts, ...]
    lanes: tuple[LaneState, ...]
    commands: tuple["Command", ...]


class Lost(msgspec.Struct, frozen=True):
    """The process no longer owns the partition: cancel what runs there, commit nothing."""

    topic: str
    partition: int


class Appended(msgspec.Struct, frozen=True):
    """There may be more to fetch."""

    topic: str


class Command(msgspec.Struct, frozen=True):
    """What an operator asks the owner of a partition to do with a dead letter.

    `replay`: run it again, in its lane. `open`: it was archived; it no longer closes its lane.
    """

    id: int
    kind: Literal["replay", "open"]
    letter: DeadLetter


class Paused(msgspec.Struct, frozen=True):
    """The group was paused (with a reason), or resumed (None)."""

    reason: str | None


Change = Acquired | Lost | Appended | Command | Paused


class LetterChange(msgspec.Struct, frozen=True):
    """What a replay made of a dead letter."""

    id: UUID
    offset: int
    state: LetterState
    """`resolved`, or `open` again."""
    outcome: Literal["done", "skipped", "dead"]
    failed: DeadLetter | None = None
    """Where it is `open` again: the letter with what the replay added."""


class Settlement(msgspec.Struct, kw_only=True):
    """What became of one partition's deliveries since the settlement before.

    It never holds an event without the outcomes of all earlier events of its lane.
    """

    topic: str
    partition: int
    epoch: int
    watermark: int
    settled: Sequence[tuple[int, int]]
    dispatched: int
    """Highest offset that was given to a handler; -1 for none."""
    done: int = 0
    skipped: int = 0
    attempts: Sequence[Attempts] = ()
    """Written over what was stored for the same offset."""
    cleared: Sequence[int] = ()
    """Offsets whose attempts are over."""
    parked: Sequence[tuple[int, Record]] = ()
    unparked: Sequence[int] = ()
    """Offsets that leave the parking store; they are among done, skipped or dead."""
    dead: Sequence[DeadLetter] = ()
    letters: Sequence[LetterChange] = ()
    commands: Sequence[int] = ()
    """Ids of commands that are carried out."""
    published: Sequence[tuple[str, Sequence[Record]]] = ()
    """What the handlers published: (topic, records)."""
    pause: str | None = None
    """Pause the group, for this reason."""
