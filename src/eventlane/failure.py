"""What is kept of an event that fails: its attempts, and in the end its dead letter."""

import platform
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec

from eventlane.message import Record, headers_of
from eventlane.outcome import LaneOnDead

__all__ = ["HOST", "Attempt", "Attempts", "DeadLetter", "Disposition", "LetterState", "Stage"]

HOST = platform.node()
"""Where this process runs, as attempts, dead letters and the audit have it."""

Stage = Literal["decode", "validate", "handle", "timeout", "crash"]
Disposition = Literal["exhausted", "permanent", "undecodable", "expired", "operator"]
LetterState = Literal["open", "replaying", "resolved", "archived", "edited"]


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One run of a handler that failed."""

    number: int
    """Counts from 1; starts again with each replay."""
    started_ms: int
    planned_delay_s: float
    """How long it was to wait after the attempt before it."""
    actual_delay_s: float
    duration_s: float
    error_class: str
    host: str


class Attempts(msgspec.Struct, frozen=True):
    """The failed attempts of an event that is not at its end yet: durable before the next one."""

    offset: int
    count: int
    due_ms: int
    """The next attempt does not start before this wall time."""
    first_failed_ms: int
    timeouts: int
    history: tuple[Attempt, ...]
    """The first 3 and the last 7."""
    lane: bytes | int = -1
    """What its lane is found by: its key, or its offset where it has none."""
    elapsed_ms: int = 0
    """Time since the first failure that counts: under way, or waiting as was planned."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that one group could not handle, kept whole until somebody decides.

    It belongs to the group that failed and to no other.
    """

    id: UUID
    topic: str
    partition: int
    offset: int
    group: str
    handler: str
    lane: bytes | int
    """What its lane is found by: its key, or its offset where it is a lane of its own."""
    key: bytes | None
    value: bytes | None
    """The serialised event, byte for byte."""
    header_block: bytes
    event_id: UUID
    event_type: str | None
    stage: Stage
    disposition: Disposition
    error_class: str
    error_module: str
    error_message: str
    """At most 4 KiB."""
    error_stack: str
    """At most 16 KiB, of which the head and the tail are kept."""
    cause_class: str | None
    fingerprint: str
    """The same for failures that have one cause: group, exception and first application frame."""
    attempts: int
    timeouts: int
    crashes: int
    first_failed_ms: int
    last_failed_ms: int
    produced_ms: int
    history: tuple[Attempt, ...]
    """The first 3 and the last 7 attempts, those of replays included."""
    policy: str
    """The retry policy that was in force, in words."""
    app: str
    app_version: str | None
    host: str
    pid: int
    correlation_id: str | None
    causation_id: str | None
    trace_id: str | None
    on_dead: LaneOnDead
    """What its lane does until it is resolved or archived: `park`, `continue` or `stop`."""
    state: LetterState = "open"
    version: int = 1
    """Grows with every change."""
    replay_count: int = 0
    parked_followers: int = 0
    """How many events of its lane wait behind it, when it was read."""
    edited_from: UUID | None = None
    """The letter of which this one is an edited child."""

    @property
    def blocks_lane(self) -> bool:
        """Whether later events of its lane wait for it."""
        return self.on_dead != "continue"

    @property
    def first_failed_at(self) -> datetime:
        """When its first attempt failed, in UTC."""
        return datetime.fromtimestamp(self.first_failed_ms / 1000, UTC)

    @property
    def last_failed_at(self) -> datetime:
        """When its last attempt failed, in UTC."""
        return datetime.fromtimestamp(self.last_failed_ms / 1000, UTC)

    @property
    def produced_at(self) -> datetime:
        """When the event was published, in UTC."""
        return datetime.fromtimestamp(self.produced_ms / 1000, UTC)

    @property
    def record(self) -> Record:
        """The event as the log kept it."""
        return Record(
            self.event_id.bytes, self.key, self.value, self.produced_ms, self.header_block
        )

    @property
    def headers(self) -> dict[str, bytes]:
        """The event's headers, as they were sent."""
        return headers_of(self.header_block)
