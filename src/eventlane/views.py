"""What operators are shown: what a change of a group does, why a key waits, where an event went."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from eventlane.account import cut_in_words, waits_in_words
from eventlane.message import Position
from eventlane.wording import counted

__all__ = [
    "FailureSummary",
    "Finding",
    "GroupTrace",
    "LaneFront",
    "LaneView",
    "LetterEvent",
    "PartitionReset",
    "RemovalPlan",
    "ResetPlan",
    "ResetTo",
    "Trace",
    "TracedEvent",
    "why",
]

ResetTo = Literal["first", "now"] | datetime | Mapping[tuple[str, int], int]
"""Where a group goes on: all its partitions at their first event, at their end or at a time; or the
partitions that are named, each at an offset."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check-up has found: see `App.doctor`."""

    level: Literal["ok", "warning", "error"]
    """`warning`: it may become worse, or somebody forgot it. `error`: something does not work."""
    check: str
    """What was looked at: `disk`, `integrity`, `groups`, …"""
    message: str
    """What it is, and what to do about it."""
    command: str | None = None
    """What to type for that."""


class PartitionReset(msgspec.Struct, frozen=True, kw_only=True):
    """What a reset does in one partition."""

    topic: str
    partition: int
    from_offset: int
    """Its watermark before: the lowest offset without an outcome."""
    to_offset: int
    """Its watermark afterwards."""
    handled_again: int
    """Events that had an outcome, or were parked, and come again."""
    passed_over: int
    """Events that were still to be handled, parked ones included, and will not be."""
    parked_dropped: int
    """Parked events: those from `to_offset` on are read from the log instead."""
    attempts_dropped: int
    """Events whose failed attempts are forgotten."""
    open_letters: int
    """Dead letters that stay open, and no longer hold up anything."""


class ResetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a reset does, or would do."""

    group: str
    is_done: bool
    """False: this was a dry run, and nothing was changed."""
    partitions: tuple[PartitionReset, ...]

    @property
    def handled_again(self) -> int:
        """Events that come again, in all partitions."""
        return sum(each.handled_again for each in self.partitions)

    @property
    def passed_over(self) -> int:
        """Events that will not be handled, in all partitions."""
        return sum(each.passed_over for each in self.partitions)


class RemovalPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is lost with a group, or would be."""

    group: str
    is_done: bool
    """False: this was a dry run, and nothing was changed."""
    topics: tuple[str, ...]
    """Where its positions are forgotten: a group of this name would be a new one."""
    open: int
    """Events that it has not handled yet. They stay on the log."""
    parked: int
    """Parked events; the log may not have them any more."""
    open_letters: int
    """Dead letters that are open or being replayed."""
    letters: int
    """All dead letters, archived and resolved ones included."""
    attempts: int
    """Events with failed attempts."""
    commands: int
    """Operators' commands that no owner has carried out."""


class LaneFront(msgspec.Struct, frozen=True):
    """The event that a lane is at."""

    offset: int
    event_id: UUID | None
    """None: the log has it no more."""
    event_type: str | None


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's lane is at in one group, from what is durable."""

    group: str
    topic: str
    partition: int
    ordering: Literal["key", "partition", "none"]
    """Of the group. With `partition` all keys of a partition are one lane, with `none` each event
    is one: then this says what is known of the events of the key."""
    state: Literal["free", "held", "parked", "blocked", "replaying"]
    front: LaneFront | None = None
    """None: no event of it waits, or none among the next 10,000 events of the partition."""
    attempts: int = 0
    """How often the front has failed."""
    due_at: datetime | None = None
    """When the front may run next, in UTC."""
    dead_letter: UUID | None = None
    """The first letter that closes it, or is replayed."""
    error: str | None = None
    """What that letter died of."""
    parked: int = 0
    """Events of it in the parking store."""
    waiting: int = 0
    """Others of it that have no outcome yet: among the next 10,000 events of the partition."""
    gaps: tuple[int, ...] = ()
    """Offsets that it passed over, dead or archived."""
    stopped_at: int | None = None
    """Offset of a dead letter that stops the whole partition."""
    paused: str | None = None
    """Why the group is paused."""
    waits_for: str | None = None
    """The event type that the partition waits for a member with a handler for; see
    `PartitionStatus`."""
    is_cut: bool = False
    """The partition is paused, since the log has lost events that the group had not handled."""
    members: int = 0
    """Live processes that handle the group."""
    behind: int = 0
    """How many offsets the front is above the group's watermark."""
    blocked: tuple[str, ...] = ()
    """What the process that handles the partition says keeps it from going on: a dependency that is
    out, a partition that is full. A few seconds old."""
    why: str = ""
    """Why it waits, in a sentence."""


def why(lane: LaneView) -> str:
    """The sentence that answers why a key waits."""
    reasons: list[str] = []
    if lane.stopped_at is not None:
        reasons.append(
            f"{lane.topic}[{lane.partition}] is stopped by the dead letter at offset "
            f"{lane.stopped_at}: replay or archive it"
        )
    if lane.paused is not None:
        reasons.append(f"the group is paused ({lane.paused})")
    if lane.waits_for is not None:
        reasons.append(waits_in_words(lane.topic, lane.partition, lane.waits_for))
    if lane.is_cut:
        reasons.append(cut_in_words(lane.topic, lane.partition))
    if not lane.members:
        reasons.append("no process handles the group")
    held_by = dict.fromkeys((*reasons, *lane.blocked))
    behind = [_behind(lane)] if lane.waiting else []
    return "; ".join((_of_lane(lane, is_held=bool(held_by)), *behind, *held_by))


def _behind(lane: LaneView) -> str:
    if lane.ordering == "none":
        return f"open of the key besides it: {counted(lane.waiting, 'event')}"
    verb = "waits" if lane.waiting == 1 else "wait"
    return f"{counted(lane.waiting, 'event')} of it {verb} behind"


def _of_lane(lane: LaneView, *, is_held: bool) -> str:
    front, parked = lane.front, counted(lane.parked, "parked event")
    letter = f"dead letter {lane.dead_letter}"
    if front is None:
        return "nothing of it is known to wait"
    at = f"at offset {front.offset}"
    failed = f"failed {counted(lane.attempts, 'time')}" if lane.attempts else "has not run yet"
    when = "" if lane.due_at is None else f", due {lane.due_at.isoformat(timespec='seconds')}"
    match lane.state:
        case "blocked" if lane.dead_letter is None:
            return (
                f"its dead letter {at} is archived: the owner opens the lane, and {parked} follow"
            )
        case "blocked":
            return f"{letter} {at} ({lane.error}) closes it, {parked} behind: replay or archive it"
        case "replaying":
            return f"{letter} {at} is being replayed, {parked} behind"
        case "parked":
            return f"its first event, {at}, {failed} and is parked{when}; {parked} in all"
        case "held":
            return f"its first event, {at}, {failed}{when}"
        case "free" if is_held:
            return f"its next event, {at}, waits"
        case "free":
            return f"nothing holds it: its next event, {at}, runs or waits for its turn"


class TracedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event, and where it lies."""

    event_id: UUID
    topic: str
    partition: int
    offset: int
    time: datetime
    """When it was published, in UTC."""
    event_type: str | None
    key: bytes | None
    correlation_id: str
    """The id of the first event of its chain, unless the sender set another."""
    causation_id: str | None
    """The id of the event whose handler published it."""


class GroupTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event in one group."""

    group: str
    state: Literal[
        "settled",
        "waiting",
        "held",
        "parked",
        "dead",
        "replaying",
        "archived",
        "resolved",
        "edited",
        "passed_over",
    ]
    """`settled` is done or skipped, which are counted and not kept apart for each event;
    `waiting` may be running just now; `passed_over`: the group started, or was reset, behind it."""
    attempts: int = 0
    """How often it has failed."""
    due_at: datetime | None = None
    """When it may run next, in UTC."""
    dead_letter: UUID | None = None
    error: str | None = None
    """What that letter died of."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event lies, what became of it in each group, and what it caused."""

    event: TracedEvent
    is_on_log: bool
    """False: retention has removed it; a group has kept it, dead or parked."""
    copies: tuple[Position, ...]
    """Where else the log has an event with this id."""
    groups: tuple[GroupTrace, ...]
    caused: tuple[TracedEvent, ...]
    """What its handlers published, and what its dead letters say of themselves, in the order of the
    log."""
    chain: tuple[TracedEvent, ...]
    """All that has its correlation id, in the order of the log; only where it was asked for."""
    is_complete: bool
    """False: the limit was reached, and the log was not read to its end."""


class FailureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one group that have one cause."""

    group: str
    fingerprint: str
    exception: str
    count: int
    first_at: datetime
    """When the first of them died, in UTC."""
    newest_at: datetime
    example: UUID
    """The newest of them."""
    message: str
    """What that one died of."""


class LetterEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a dead letter: who, what, when and why."""

    at: datetime
    actor: str
    action: str
    reason: str
    operation: int | None
    detail: str | None
    """What an edit changed, as JSON: for each field its value before and after."""
