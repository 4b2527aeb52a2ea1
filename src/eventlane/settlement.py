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
    "CommandKind",
    "GroupSpec",
    "LaneState",
    "LetterChange",
    "Lost",
    "Parked",
    "Paused",
    "Revoked",
    "Settlement",
    "Suspects",
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
    types: tuple[tuple[str, str], ...]
    """Topics and names of the event types that it handles."""
    replays_max: int | None = None
    """See `Limits.replays_max`; None leaves it to who asks for a replay."""


class LaneState(msgspec.Struct, frozen=True):
    """A lane of which something is stored: events parked, dead letters that close it, gaps."""

    lane: bytes | int
    """Its key; the offset, where an event is a lane of its own."""
    parked: int = 0
    """Events in the parking store."""
    head: int = 0
    """No parked event has a lower offset; of no meaning where none is parked."""
    due_ms: int | None = 0
    """When the first of them may run; None while a dead letter closes the lane."""
    blockers: tuple[int, ...] = ()
    """Offsets of the dead letters that keep it closed."""
    stops: bool = False
    """One of them was made under `stop`: the partition takes no new events."""
    gaps: tuple[int, ...] = ()
    """Offsets that the lane passed over, dead or archived: the last ones, ascending."""
    operation: int | None = None
    """The replay that released what is parked; its outcomes count there."""

    @property
    def is_free(self) -> bool:
        """Whether new events of the lane may run at once."""
        return not (self.parked or self.blockers)


class Parked(NamedTuple):
    """An event out of the parking store."""

    offset: int
    record: Record
    attempts: Attempts | None


Suspects = Sequence[tuple[int, int, int]]
"""What may have killed its process: [start, stop) of offsets that were in flight at so many unclean
ends. From the second on they run alone: see `suspects.py`."""


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
    """Of the events above the watermark; those of parked events and replays come with them."""
    lanes: tuple[LaneState, ...]
    """At most `Limits.parked_lanes_max`: those that are due first, then the closed ones."""
    commands: tuple["Command", ...]
    suspects: tuple[tuple[int, int, int], ...] = ()
    has_more_lanes: bool = False
    """There are more lanes: what is not among these is asked for."""

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return (self.topic, self.partition)


class Lost(msgspec.Struct, frozen=True):
    """The process no longer owns the partition: cancel what runs there, commit nothing."""

    topic: str
    partition: int

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return (self.topic, self.partition)


class Revoked(msgspec.Struct, frozen=True):
    """A partition is to be given up, for another member: see `Consumer.release`."""

    topic: str
    partition: int

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return (self.topic, self.partition)


class Appended(msgspec.Struct, frozen=True):
    """There may be more to fetch."""

    topic: str


CommandKind = Literal["replay", "open"]


class Command(msgspec.Struct, frozen=True):
    """What an operator asks the owner of a partition to do with a dead letter.

    `replay`: run it again, in its lane. `open`: it was archived; it no longer closes its lane.
    """

    id: int
    kind: CommandKind
    letter: DeadLetter
    operation: int | None = None
    attempts: Attempts | None = None
    """Of the replay, where it has failed already."""
    lane: LaneState | None = None
    """What is stored of the letter's lane."""
    behind: bool = False
    """An earlier one of its lane has died again in the same operation: it is not to run."""

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition of the letter."""
        return (self.letter.topic, self.letter.partition)


class Paused(msgspec.Struct, frozen=True):
    """The group was paused (with a reason), or resumed (None)."""

    reason: str | None


Change = Acquired | Lost | Revoked | Appended | Command | Paused


class LetterChange(msgspec.Struct, frozen=True):
    """What a replay made of a dead letter."""

    id: UUID
    offset: int
    lane: bytes | int
    state: LetterState
    """`resolved`, or `open` again."""
    outcome: Literal["done", "skipped", "dead", "returned", "unhandled"]
    """`returned`: it did not run, since an earlier one of its lane failed; `unhandled`: since its
    group has no handler for it."""
    failed: DeadLetter | None = None
    """Where it died again: the letter with what the replay added."""


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
    """No higher offset is given to a handler before another settlement says so."""
    done: int = 0
    skipped: int = 0
    attempts: Sequence[Attempts] = ()
    """Written over what was stored for the same offset."""
    cleared: Sequence[int] = ()
    """Offsets whose attempts are over."""
    parked: Sequence[tuple[bytes | int, int, Record]] = ()
    """(lane, offset, record): in the order of the log within each lane."""
    unparked: int = 0
    """How many events left the parking store; they are among done, skipped or dead."""
    lanes: Sequence[LaneState] = ()
    """Lanes that have changed, as they are now: their row is replaced; a free one without gaps has
    none. Parked events below `head` are over."""
    dead: Sequence[DeadLetter] = ()
    """An event that died before has its letter opened again. It keeps the id that it had then, and
    where an id is taken by a letter of another group, it gets a new one; notices say so."""
    letters: Sequence[LetterChange] = ()
    commands: Sequence[int] = ()
    """Ids of commands that are carried out."""
    released: Sequence[tuple[int, bool]] = ()
    """(operation, died): what became of events that a replay released."""
    published: Sequence[tuple[str, Sequence[Record]]] = ()
    """What the handlers published, and what dead letters say of themselves: (topic, records)."""
    pause: str | None = None
    """Pause the group, for this reason."""
    suspects: Suspects | None = None
    """Those that are left; None: as before."""
    alone: int | None = None
    """The only event that runs from now on, until the next settlement."""
