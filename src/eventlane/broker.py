"""Read this first: what Eventlane asks of a broker, and all that it asks.

A broker is a partitioned log with consumer groups: `publish` appends, `fetch` reads, `settle`
writes down what became of a group's deliveries. Order, retry, parking and replay are not the
broker's: `lanes.py` decides them, `dispatch.py` runs handlers, and the broker makes what was
decided durable. So all brokers fail in the same way. What passes between them is in
`settlement.py`.

Three parts do not mix: what a partition's **owner** writes, under the epoch that it was given
(`Consumer`); what **operators** ask for, by compare-and-set on a letter's version, for the owner to
carry out (`Operators`); and what **people** read (`Queries`).
"""

from collections.abc import Awaitable, Sequence
from typing import Protocol
from uuid import UUID

from eventlane.account import Status
from eventlane.failure import DeadLetter, LetterState
from eventlane.message import Position, Record
from eventlane.settlement import Batch, Change, GroupSpec, Settlement
from eventlane.topic import Topic

__all__ = ["Broker", "Consumer", "Operators", "Queries"]


class Consumer(Protocol):
    """One process's membership in one group. Not for several event loops."""

    async def changes(self) -> Sequence[Change]:
        """Wait until something changed, and return all that did, oldest first.

        Cancellation: nothing is lost; the next call returns it.
        """
        ...

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """Read from `offset` on, at most `count_max` messages; empty at the end of the log.

        Raises:
            StorageError: The log cannot be read.
        """
        ...

    async def fetch_parked(
        self, topic: str, partition: int, key: bytes | None, after: int, count_max: int
    ) -> Sequence[tuple[int, Record]]:
        """Read parked events of one lane with offsets above `after`, in order."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Write settlements of one or more partitions in one step.

        Raises:
            Fenced: The epoch of a partition is stale; nothing of this call was written.
            StorageError: Nothing of this call was written; it may be tried again.

        Durability:
            On return all of it is durable as the broker declares, in one transaction where
            the broker has them.

        Cancellation:
            All or nothing was written, and there is no way to know which.
        """
        ...

    def beat(self, in_flight: int, held: int) -> None:
        """Say that the event loop turns, and what the other processes may show."""
        ...

    def abandon(self) -> None:
        """Keep all partitions until the process exits, whatever is closed before."""
        ...

    async def leave(self) -> None:
        """Give up all partitions and the membership, unless they were abandoned."""
        ...


class Operators(Protocol):
    """What operators change. Every change is stored with who, why and when."""

    async def replay(self, ids: Sequence[UUID], *, actor: str, reason: str) -> int:
        """Ask for a new run of dead letters, each in its own group; returns the operation's id.

        Raises:
            NotFound: An id is unknown; nothing was changed.
            Conflict: A letter is being replayed already; nothing was changed.
            Refused: A letter is archived or resolved; nothing was changed.
        """
        ...

    async def archive(self, ids: Sequence[UUID], *, actor: str, reason: str) -> int:
        """Put open dead letters aside and open their lanes; returns the operation's id.

        Raises:
            NotFound: An id is unknown; nothing was changed.
            Conflict: A letter is being replayed; nothing was changed.
            Refused: A letter is archived or resolved already; nothing was changed.
        """
        ...

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        """Stop a group from starting handlers, in all processes, until it is resumed.

        Raises:
            NotFound: There is no such group.
        """
        ...

    async def resume(self, group: str, *, actor: str) -> None:
        """Let a paused group go on.

        Raises:
            NotFound: There is no such group.
        """
        ...


class Queries(Protocol):
    """What people read. A query never waits for a writer."""

    async def status(self) -> Status:
        """All groups and topics at one moment."""
        ...

    async def dead_letters(
        self,
        *,
        group: str | None = None,
        state: LetterState | None = "open",
        ids: Sequence[UUID] | None = None,
        limit: int = 1000,
        after: UUID | None = None,
    ) -> Sequence[DeadLetter]:
        """Dead letters in the order in which they died; `after` is the last one already seen."""
        ...

    async def operation(self, id: int) -> dict[UUID, LetterState]:
        """The letters of an operation, and the state that each of them is in now.

        Raises:
            NotFound: There is no such operation.
        """
        ...


class Broker(Operators, Queries, Protocol):
    """A durable log with groups. Made by `brokers.connect(url)`."""

    url: str
    """Without secrets."""
    durability: str
    """What an acknowledged publish has survived: `fsync`, `os`, `replicated` or `single`."""

    async def ensure_topic(self, topic: Topic) -> int:
        """Create the topic unless it exists; return its number of partitions.

        Raises:
            ConfigError: It exists with another number of partitions.
        """
        ...

    def publish(self, topic: str, record: Record) -> Awaitable[Position]:
        """Append one record, in the partition of its key; calls in flight share one commit.

        Records of one key keep the order of the calls.

        Raises:
            NotFound: There is no such topic; nothing was written.
            PublishTimeout: The queue had no room in time; nothing was written.
            StorageError: Nothing was written.
            Unavailable: The broker is closed; nothing was written.

        Durability:
            On return the record is durable as `durability` says.

        Cancellation:
            It was written or it was not, and there is no way to know which.
        """
        ...

    async def append(self, appends: Sequence[tuple[str, Sequence[Record]]]) -> None:
        """Append many records to one or more topics in one step: see `publish`.

        Where the broker has transactions it is all or nothing.
        """
        ...

    async def join(self, group: GroupSpec) -> Consumer:
        """Become a member of a group; a group that is new starts where `start` says.

        Raises:
            NotFound: A topic does not exist.
            ConfigError: The group runs with other options.
        """
        ...

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        """For each partition its first offset and the one after its last."""
        ...

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """Read without a group; see `Consumer.fetch`."""
        ...

    async def wait_for_append(self, topic: str) -> None:
        """Return when the topic may have grown since this was called."""
        ...

    async def aclose(self) -> None:
        """Write what is queued, then let go of everything. Safe to call twice."""
        ...
