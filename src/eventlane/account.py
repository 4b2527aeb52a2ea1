"""The account: where every event of a group is, from durable counters (semantics, P8)."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from eventlane.errors import NotFound
from eventlane.wording import did_you_mean

__all__ = ["GroupStatus", "PartitionStatus", "Status", "TopicStatus", "refuse_unknown_group"]


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a group is in one partition."""

    topic: str
    partition: int
    watermark: int
    """The lowest offset without an outcome that is not parked."""
    end: int
    """The offset that the next event on the log gets."""
    open: int
    """Events from the watermark on without an outcome."""
    parked: int


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One group's account.

    `entered` = done + waiting + in_flight + held + parked + dead + archived + skipped + edited
    + lost. All but waiting, in_flight and held are counters that change in the transaction of
    the settlement; these three only split what is open.
    """

    entered: int
    """Events that the log holds for this group, counted from where the group started."""
    done: int
    """Handled, resolved dead letters included."""
    waiting: int
    """On the log, not started."""
    in_flight: int
    """A handler runs."""
    held: int
    """In memory until a retry is due, and what waits behind it in its lane."""
    parked: int
    """Stored behind a dead letter or a long retry of its lane."""
    dead: int
    """Open dead letters."""
    archived: int
    skipped: int
    edited: int
    lost: int
    """Removed by retention before the group saw them."""
    pending: int = 0
    """Operators' commands that no owner has carried out yet, replays included."""
    paused: str | None = None
    """Why the group is paused; None when it is not."""
    members: int = 0
    """Live processes that handle this group."""
    absent_s: float = 0.0
    """For how long none has been live; 0 while one is. Known to a minute after a crash."""
    is_absent: bool = False
    """That is more than `Limits.absent_s`."""
    retained_bytes: int = 0
    """What the log keeps for this group: from its watermark to the end."""
    blocked: tuple[str, ...] = ()
    """Why partitions of it do not go on, in sentences that say what to do."""
    partitions: tuple[PartitionStatus, ...] = ()

    @property
    def open(self) -> int:
        """Events without an outcome: waiting, in flight or held."""
        return self.waiting + self.in_flight + self.held

    @property
    def balances(self) -> bool:
        """Whether every event that entered is accounted for."""
        return self.entered == (
            self.open
            + self.done
            + self.parked
            + self.dead
            + self.archived
            + self.skipped
            + self.edited
            + self.lost
        )


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One topic."""

    partitions: int
    published: int
    """Events ever appended."""
    size_bytes: int
    """What the log holds of them now."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All groups and topics at one moment."""

    as_of: datetime
    """When it was read. What other processes have in flight or held may be `lease_s` older."""
    groups: dict[str, GroupStatus]
    topics: dict[str, TopicStatus]

    def group(self, name: str) -> GroupStatus:
        """The account of one group.

        Raises:
            NotFound: There is no such group; the message has the nearest.
        """
        refuse_unknown_group(name, self.groups)
        return self.groups[name]


def refuse_unknown_group(name: str, known: Iterable[str]) -> None:
    """Refuse the name of a group that does not exist.

    Raises:
        NotFound: It is not among those that are known.
    """
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) if names else "There are no groups yet."
        raise NotFound(f"group {name!r}: there is none. {hint}")
