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

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from eventlane.account import Status
from eventlane.failure import DeadLetter, LetterState
from eventlane.message import Position, Record
from eventlane.metrics import Histogram
from eventlane.query import Query
from eventlane.replay import UNPACED, LeftOut, OperationState, OperationStatus, Pace, Plan
from eventlane.settlement import Batch, Change, GroupSpec, LaneState, Parked, Settlement
from eventlane.topic import Topic
from eventlane.views import (
    FailureSummary,
    LaneView,
    LetterEvent,
    RemovalPlan,
    ResetPlan,
    ResetTo,
    Trace,
)

__all__ = ["Broker", "Consumer", "Operators", "Queries"]


class Consumer(Protocol):
    """One process's membership in one group. Not for several event loops."""

    @property
    def elsewhere(self) -> frozenset[tuple[str, str]]:
        """Topics and event types that this member has no handler for, and others of the group have.

        As new as the batch that was fetched last. Events of them are not to be skipped.
        """
        ...

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
        self, topic: str, partition: int, lane: bytes | int, after: int, count_max: int
    ) -> Sequence[Parked]:
        """Read parked events of one lane with offsets above `after`, in order.

        At least one if there is any, and at most `count_max`; fewer where they are large.
        """
        ...

    async def fetch_lanes(
        self, topic: str, partition: int, lanes: Sequence[bytes | int]
    ) -> Sequence[LaneState]:
        """What is stored of these lanes; the others are free."""
        ...

    async def fetch_due_lanes(
        self, topic: str, partition: int, count_max: int
    ) -> Sequence[LaneState]:
        """Parked lanes that no dead letter closes, the one that is due first in front."""
        ...

    async def advance_operations(self) -> int | None:
        """Release what the group's operations may run next; see `Operators.replay`.

        Whichever member asks: each step is one transaction, so that it is taken once.

        Returns:
            The wall time in milliseconds at which to ask again; None: when something has changed.
        """
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

    async def release(self, topic: str, partition: int, *, needs: str | None = None) -> None:
        """Give up a partition of which nothing runs, and all is settled; see `Revoked`.

        `needs` is the name of the event type that comes next, if this member has no handler for it
        and others of the group have: it is only for them.

        Raises:
            StorageError: It is owned as before; this may be tried again.
        """
        ...

    def drain(self) -> None:
        """Say that `leave` comes soon: nothing more is acquired, and others share out the rest."""
        ...

    async def suspect(self) -> None:
        """Say that what may be in flight ended this process, as if it had been killed: see P5."""
        ...

    def beat(self, in_flight: int, held: int, blocked: Sequence[str] = ()) -> None:
        """Say that the event loop turns, and what the other processes may show.

        `blocked` are sentences: which partitions are stopped or full, and why. Not all of them need
        to be kept.
        """
        ...

    def abandon(self) -> None:
        """Keep all partitions until the process exits, whatever is closed before."""
        ...

    async def leave(self) -> None:
        """Give up all partitions and the membership, unless they were abandoned."""
        ...


class Operators(Protocol):
    """What operators change. Every change is stored with who, why and when."""

    async def replay(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        pace: Pace = UNPACED,
        allow_gap: bool = False,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """Ask for a new run of dead letters, each in its own group; returns the operation's id.

        All that it is about is written first. Of each lane the letters are released in the order of
        the log, as the pace permits, while a member of the group calls `advance_operations`; in a
        paused group, and in one without a live member, none. If one dies again, the later ones of
        its lane are open again.

        Letters that a query finds and that cannot be replayed are skipped: see `left_out`.
        `versions` are those at which letters were seen that are named: they have to be the same.

        Raises:
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed already, or has another version; who changed it
                last is said, and nothing was changed.
            Refused: A letter is archived or resolved, was replayed `Limits.replays_max` times, or
                would pass an earlier one of its lane that is not among them (unless `allow_gap`);
                nothing was changed.
        """
        ...

    async def archive(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """Put open dead letters aside and open their lanes; returns the operation's id.

        Raises:
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed, or has another version; nothing was changed.
            Refused: A letter is archived or resolved already; nothing was changed.
        """
        ...

    async def restore(
        self,
        letters: Sequence[UUID] | Query,
        *,
        actor: str,
        reason: str,
        versions: Mapping[UUID, int] | None = None,
    ) -> int:
        """Open archived letters again, which then close no lane; returns the operation's id.

        Raises:
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed, or has another version; nothing was changed.
            Refused: A letter is not archived; nothing was changed.
        """
        ...

    async def edit(
        self,
        letter: UUID,
        record: Record,
        *,
        diff: str,
        actor: str,
        reason: str,
        version: int | None = None,
    ) -> int:
        """Replay another event in the place of a dead letter; returns the operation's id.

        Args:
            letter: Becomes `edited`; a child takes its place, with its account and its lane.
            record: The child's event: another id, value and headers, the same key.
            diff: What was changed, as JSON, for the audit.
            actor: Who does it.
            reason: Why.
            version: That of the letter as it was seen, if it was.

        Raises:
            NotFound: There is no such letter; nothing was changed.
            Conflict: It is being replayed, or has another version; nothing was changed.
            Refused: It is not open, or would pass an earlier one of its lane; nothing was changed.
        """
        ...

    async def republish(self, letter: UUID, record: Record, *, actor: str, reason: str) -> Position:
        """Append an event to the topic of a dead letter, for all groups; the letter stays.

        Raises:
            NotFound: There is no such letter or topic; nothing was changed.
            StorageFull: The topic or the file is at its cap; nothing was changed.
        """
        ...

    async def pause_operation(self, id: int, *, actor: str, reason: str) -> None:
        """Release nothing more; what was released goes on.

        Raises:
            NotFound: There is no such operation.
            Conflict: It is paused already, by whom is said.
            Refused: It has ended or was cancelled.
        """
        ...

    async def resume_operation(self, id: int, *, actor: str, reason: str) -> None:
        """Let a paused operation go on; what has died again until now counts no more.

        Raises:
            NotFound: There is no such operation.
            Conflict: It runs already.
            Refused: It has ended or was cancelled.
        """
        ...

    async def cancel_operation(self, id: int, *, actor: str, reason: str) -> None:
        """Open all letters again that were not released; what was released goes on.

        Raises:
            NotFound: There is no such operation.
            Conflict: It was cancelled already.
            Refused: It has ended.
        """
        ...

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        """Stop a group from starting handlers, in all processes, until it is resumed.

        Raises:
            Conflict: It is paused already, by whom is said.
            NotFound: There is no such group.
        """
        ...

    async def resume(self, group: str, *, actor: str) -> None:
        """Let a paused group go on.

        Raises:
            Conflict: It is not paused; who resumed it is said.
            NotFound: There is no such group.
        """
        ...

    async def reset(
        self, group: str, to: ResetTo, *, actor: str, reason: str, dry_run: bool
    ) -> ResetPlan:
        """Have a group go on somewhere else; a new era of its account begins there.

        Per partition, in one transaction: it is taken from its owner, whose epoch is stale from
        then on; what is settled, attempts, parked events and commands are dropped and the counters
        start at 0. Open dead letters stay, hold up nothing any more and are in no account; those
        that are being replayed are open again. A time is when the log took an event, and within
        that batch when it was published.

        Raises:
            NotFound: There is no such group, or it has no such partition; nothing was changed.
            Refused: The log has no such offset; nothing was changed.
        """
        ...

    async def rename_group(self, group: str, new: str, *, actor: str, reason: str) -> None:
        """Give a group another name; it keeps all that it has.

        Raises:
            NotFound: There is no such group.
            Refused: It has a live member, or the new name is taken; nothing was changed.
        """
        ...

    async def remove_group(
        self, group: str, *, actor: str, reason: str, dry_run: bool
    ) -> RemovalPlan:
        """Forget a group: positions, attempts, parked events, dead letters. The log stays.

        Raises:
            NotFound: There is no such group.
            Refused: It has a live member; nothing was changed.
        """
        ...

    async def backup(self, directory: str) -> int:
        """Copy what is stored, as it is at one moment, into a directory; nobody waits for it.

        Returns:
            The size of the copy in bytes.

        Raises:
            Refused: The directory has a broker; nothing was written.
            StorageError: The copy cannot be written; there is none.
        """
        ...

    async def forget_type(self, group: str, event_type: str, *, actor: str, reason: str) -> None:
        """Forget that members which are dead by now have handled an event type.

        Raises:
            NotFound: There is no such group, or no member of it is recorded with that type.
            Refused: A live member handles it; nothing was changed.
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
        query: Query | None = None,
        ids: Sequence[UUID] | None = None,
        limit: int = 1000,
        after: UUID | None = None,
    ) -> Sequence[DeadLetter]:
        """Dead letters in the order in which they died; `after` is the last one already seen.

        Raises:
            NotFound: There is no letter `after`.
        """
        ...

    async def failures(self, *, group: str | None, state: LetterState) -> Sequence[FailureSummary]:
        """Dead letters counted by their cause, the most frequent first."""
        ...

    async def letter_history(self, id: UUID) -> Sequence[LetterEvent]:
        """What was done to a dead letter, by whom, when and why, oldest first.

        Raises:
            NotFound: There is no such letter.
        """
        ...

    async def plan_replay(
        self, letters: Sequence[UUID] | Query, *, versions: Mapping[UUID, int] | None = None
    ) -> Plan:
        """What a replay of these would do; nothing is changed.

        Raises:
            NotFound: An id is unknown.
        """
        ...

    async def operation(self, id: int) -> OperationStatus:
        """How far an operation is.

        Raises:
            NotFound: There is no such operation.
        """
        ...

    async def operations(
        self, *, state: OperationState | None = None, limit: int = 100
    ) -> Sequence[OperationStatus]:
        """Operations, the newest first."""
        ...

    async def operation_letters(self, id: int) -> dict[UUID, LetterState]:
        """The letters of an operation, and the state that each of them is in now.

        Raises:
            NotFound: There is no such operation.
        """
        ...

    async def left_out(self, id: int, *, limit: int = 1000) -> Sequence[LeftOut]:
        """The letters of an operation that it has not run or changed, and why.

        Raises:
            NotFound: There is no such operation.
        """
        ...

    async def lane(self, topic: str, key: bytes) -> Sequence[LaneView]:
        """What a key's lane is at in each group that consumes the topic.

        Raises:
            NotFound: There is no such topic.
        """
        ...

    async def trace(self, event_id: UUID, *, with_chain: bool, limit: int) -> Trace:
        """Where an event lies, what became of it, and what it caused: at most `limit` events.

        It may read the whole log, and lets the event loop turn meanwhile.

        Raises:
            NotFound: There is no such event on the log, and no group has kept it.
        """
        ...


class Broker(Operators, Queries, Protocol):
    """A durable log with groups. Made by `brokers.connect(url)`."""

    url: str
    """Without secrets."""
    durability: str
    """What an acknowledged publish has survived: `fsync`, `os`, `replicated` or `single`."""
    times: Mapping[str, Histogram]
    """How long the steps of its writes take in this process, by their names."""

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
            StorageError: Nothing was written, unless the process dies before its next commit.
            Unavailable: The broker is closed; nothing was written.

        Durability:
            On return the record is durable as `durability` says.

        Cancellation:
            It was written or it was not, and there is no way to know which.
        """
        ...

    async def append(
        self,
        appends: Sequence[tuple[str, Sequence[Record]]],
        *,
        begun: Callable[[], None] | None = None,
    ) -> None:
        """Append many records to one or more topics in one step: see `publish`.

        Where the broker has transactions it is all or nothing. `begun` is called as soon as only
        the disk or a server is waited for: what the caller does from then on delays nothing.
        """
        ...

    async def join(self, group: GroupSpec) -> Consumer:
        """Become a member of a group; a group that is new starts where `start` says.

        Raises:
            NotFound: A topic does not exist.
            ConfigError: The group runs with other options.
        """
        ...

    async def reserve(self, name: str, rate_per_s: float, count: int) -> int:
        """Reserve so many permits of a rate that all processes share, and know by this name.

        They are spaced by 1/`rate_per_s`, behind all that were reserved before. Whoever dies loses
        those that he has reserved and nothing else, and a wall clock that is set back holds up
        nobody: then the next ones are reckoned from the time that it says.

        Returns:
            The wall time in milliseconds from which the first may be used; the others follow.

        Raises:
            StorageError: Nothing was reserved; it may be tried again.
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
