"""The account of all groups and topics, read at one moment."""

import sqlite3
from collections.abc import Callable, Sequence

from eventlane.account import (
    GroupStatus,
    PartitionStatus,
    Status,
    TopicStatus,
    cut_in_words,
    waits_in_words,
)
from eventlane.brokers.embedded.failures import decode_offsets
from eventlane.brokers.embedded.letters import utc
from eventlane.brokers.embedded.log import (
    End,
    bytes_before,
    end_of,
    open_between,
    start_of,
    used_bytes,
)
from eventlane.brokers.embedded.members import Heartbeat
from eventlane.brokers.embedded.overview import pending_letters
from eventlane.brokers.embedded.owners import decode_runs, waiting

__all__ = ["read_status"]

_PROGRESS = """
SELECT consumer_group, topic, partition, start_offset, watermark, settled,
    done, parked, dead, archived, skipped, edited, lost
FROM progress ORDER BY topic, partition
"""


# What keeps a partition from going on has a row for itself, and an index that has few others.
_STOPS = "SELECT consumer_group, topic, partition, blockers FROM lane WHERE stops"


class _Account:
    """A sum over the partitions of one group."""

    def __init__(self, paused: str | None, seen_ms: int) -> None:
        self.paused = paused
        self.seen_ms = seen_ms
        self.retained_bytes = 0
        self.stopped: dict[str, int] = {}
        """For each partition that is stopped the first dead letter that stops it."""
        self.pending = 0
        self.entered = 0
        self.partitions: list[PartitionStatus] = []
        self.counters: tuple[int, ...] = (0,) * 7

    def add(self, start: int, at: PartitionStatus, counters: Sequence[int]) -> None:
        self.entered += at.end - start
        self.partitions.append(at)
        self.counters = tuple(map(sum, zip(self.counters, counters, strict=True)))

    def stop(self, place: str, offset: int) -> None:
        self.stopped[place] = min(offset, self.stopped.get(place, offset))

    def status(self, alive: Sequence[Heartbeat], now_ms: int, absent_s_max: float) -> GroupStatus:
        """What the heartbeats say is older than the rest: it never exceeds what is open."""
        absent_s = 0.0 if alive else max(0, now_ms - self.seen_ms) / 1000
        is_open = sum(each.open for each in self.partitions)
        in_flight = min(sum(each.in_flight for each in alive), is_open)
        held = min(sum(each.held for each in alive), is_open - in_flight)
        # In the words of its owner, who says it too.
        stopped = (
            f"{place} is stopped by the dead letter at offset {offset}: replay or archive it"
            for place, offset in self.stopped.items()
        )
        waits = (
            waits_in_words(each.topic, each.partition, each.waits_for)
            for each in self.partitions
            if each.waits_for is not None
        )
        cut = (cut_in_words(each.topic, each.partition) for each in self.partitions if each.is_cut)
        reported = (sentence for each in alive for sentence in each.blocked)
        done, parked, dead, archived, skipped, edited, lost = self.counters
        return GroupStatus(
            entered=self.entered,
            done=done,
            waiting=is_open - in_flight - held,
            in_flight=in_flight,
            held=held,
            parked=parked,
            dead=dead,
            archived=archived,
            skipped=skipped,
            edited=edited,
            lost=lost,
            pending=self.pending,
            paused=self.paused,
            members=len(alive),
            absent_s=absent_s,
            is_absent=absent_s > absent_s_max,
            retained_bytes=self.retained_bytes,
            blocked=tuple(dict.fromkeys((*stopped, *cut, *waits, *reported))),
            partitions=tuple(self.partitions),
        )


def read_status(
    connection: sqlite3.Connection,
    alive: Sequence[Heartbeat],
    *,
    now_ms: int,
    absent_s_max: float,
    is_alive: Callable[[str], bool],
    disk_bytes_max: int | None = None,
) -> Status:
    """See `Queries.status`; within a transaction, so that all of it is of one moment.

    `is_alive` says whether the member with an id lives.
    """
    connection.execute("BEGIN")
    try:
        waits = waiting(connection, is_alive)
        ends: dict[tuple[str, int], End] = {}
        topics: dict[str, TopicStatus] = {}
        starts: dict[tuple[str, int], int] = {}
        for name, partitions, size_bytes_max in connection.execute(
            "SELECT name, partitions, size_bytes_max FROM topic"
        ):
            size_bytes = 0
            for partition in range(partitions):
                end = ends[name, partition] = end_of(connection, name, partition)
                starts[name, partition], first_bytes = start_of(connection, name, partition)
                size_bytes += end[1] - first_bytes
            topics[name] = TopicStatus(
                partitions=partitions,
                published=sum(ends[name, partition][0] for partition in range(partitions)),
                size_bytes=size_bytes,
                size_bytes_max=size_bytes_max,
            )
        accounts = {
            name: _Account(paused, seen_ms)
            for name, paused, seen_ms in connection.execute(
                "SELECT name, paused, seen_ms FROM consumer_group"
            )
        }
        for group, topic, partition, start, watermark, settled, *counters in connection.execute(
            _PROGRESS
        ):
            account = accounts[group]
            end_offset, end_bytes = ends[topic, partition]
            at = PartitionStatus(
                topic=topic,
                partition=partition,
                watermark=watermark,
                end=end_offset,
                open=open_between(
                    max(watermark, starts[topic, partition]), end_offset, decode_runs(settled)
                ),
                parked=counters[1],
                waits_for=waits.get((group, topic, partition)),
                is_cut=watermark < starts[topic, partition],
            )
            account.add(start, at, counters)
            if watermark < end_offset:
                kept_from_bytes = bytes_before(connection, topic, partition, watermark)
                account.retained_bytes += end_bytes - kept_from_bytes
        for group, pending in connection.execute(
            "SELECT consumer_group, count(*) FROM command GROUP BY consumer_group"
        ):
            accounts[group].pending = pending
        for group, pending in pending_letters(connection).items():
            if group in accounts:
                accounts[group].pending += pending
        for group, topic, partition, blockers in connection.execute(_STOPS):
            accounts[group].stop(f"{topic}[{partition}]", min(decode_offsets(blockers)))
        disk_bytes = used_bytes(connection)
    finally:
        connection.execute("COMMIT")
    return Status(
        as_of=utc(now_ms),
        groups={
            name: account.status(
                [each for each in alive if each.group == name], now_ms, absent_s_max
            )
            for name, account in accounts.items()
        },
        topics=topics,
        disk_bytes=disk_bytes,
        disk_bytes_max=disk_bytes_max,
    )
