"""The account: where every event of a group is, from durable counters (semantics, P8)."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from eventlane.errors import NotFound
from eventlane.wording import did_you_mean

__all__ = [
    "GroupStatus",
    "PartitionStatus",
    "Status",
    "TopicStatus",
    "cut_in_words",
    "refuse_unknown_group",
    "waits_in_words",
]


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
    waits_for: str | None = None
    """The event type of which no live process has a handler, where it waits for one that has."""
    is_cut: bool = False
    """The log begins after the watermark: paused until a reset. See `Topic.size_bytes_max`."""


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
    """Removed by `size_bytes_max` of their topic while the group was absent."""
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
    size_bytes_max: int | None = None
    """At which the oldest are removed, or publishing is refused."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All groups and topics at one moment."""

    as_of: datetime
    """When it was read. What other processes have in flight or held may be `lease_s` older."""
    groups: dict[str, GroupStatus]
    topics: dict[str, TopicStatus]
    disk_bytes: int = 0
    """What is in use of the whole file, dead letters and parked events included."""
    disk_bytes_max: int | None = None
    """`Limits.disk_bytes_max` of the app that asks."""

    @property
    def near_caps(self) -> tuple[str, ...]:
        """What is nearly at a hard cap, in sentences that say what will happen."""
        near = [
            f"topic {name} holds {_share(topic.size_bytes, topic.size_bytes_max)} of its "
            f"size_bytes_max: there {self._at_cap(name)}"
            for name, topic in sorted(self.topics.items())
            if _is_near(topic.size_bytes, topic.size_bytes_max)
        ]
        if _is_near(self.disk_bytes, self.disk_bytes_max):
            near.append(
                f"the file holds {_share(self.disk_bytes, self.disk_bytes_max)} of "
                "disk_bytes_max: there publishing is refused"
            )
        return tuple(near)

    def _at_cap(self, topic: str) -> str:
        behind = [
            name
            for name, group in sorted(self.groups.items())
            if any(each.topic == topic and each.open for each in group.partitions)
        ]
        present = [name for name in behind if not self.groups[name].is_absent]
        if present:
            return f"publishing is refused while {', '.join(present)} has not handled the oldest"
        if behind:
            return f"the oldest events are lost to {', '.join(behind)}, which no process handles"
        return "the oldest events are removed"

    def group(self, name: str) -> GroupStatus:
        """The account of one group.

        Raises:
            NotFound: There is no such group; the message has the nearest.
        """
        refuse_unknown_group(name, self.groups)
        return self.groups[name]


_NEAR = 0.8


def _is_near(size_bytes: int, cap: int | None) -> bool:
    return cap is not None and size_bytes >= _NEAR * cap


def _share(size_bytes: int, cap: int | None) -> str:
    return f"{size_bytes / cap:.0%}" if cap else ""


def refuse_unknown_group(name: str, known: Iterable[str]) -> None:
    """Refuse the name of a group that does not exist.

    Raises:
        NotFound: It is not among those that are known.
    """
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) if names else "There are no groups yet."
        raise NotFound(f"group {name!r}: there is none. {hint}")


def waits_in_words(topic: str, partition: int, event_type: str) -> str:
    """That a partition waits for a member with a handler, and what to do."""
    return (
        f"{topic}[{partition}] waits for a member with a handler for {event_type!r}: start a "
        "process that has one; or, if none will have one, forget that type, and its events are "
        "skipped"
    )


def cut_in_words(topic: str, partition: int) -> str:
    """That the log has lost events that a group had not handled, and what to do."""
    return (
        f"{topic}[{partition}] is paused: size_bytes_max of its topic has removed events that the "
        "group had not handled while it was absent; a reset continues it"
    )
