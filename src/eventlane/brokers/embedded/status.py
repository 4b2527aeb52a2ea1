"""The account of all groups and topics, read at one moment."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from eventlane.account import GroupStatus, Status, TopicStatus
from eventlane.brokers.embedded.failures import decode_offsets
from eventlane.brokers.embedded.groups import decode_runs
from eventlane.brokers.embedded.log import End, bytes_before, end_of, start_of
from eventlane.brokers.embedded.members import Heartbeat
from eventlane.brokers.embedded.overview import pending_letters

__all__ = ["read_status"]

_PROGRESS = """
SELECT consumer_group, topic, partition, start_offset, watermark, settled,
    done, parked, dead, archived, skipped, edited, lost
FROM progress
"""


# What keeps a partition from going on has a row for itself, and an index that has few others.
_STOPS = "SELECT consumer_group, topic, partition, blockers FROM lane WHERE stops"


class _Account:
    """A sum over the partitions of one group."""

    def __init__(self, paused: str | None, seen_ms: int) -> None:
        self.paused = paused
        self.seen_ms = seen_ms
        self.retained_bytes = 0
        self.blocked: list[str] = []
        self.pending = 0
        self.entered = 0
        self.open = 0
        self.counters: tuple[int, ...] = (0,) * 7

    def add(
        self, end: int, start: int, watermark: int, settled: bytes, counters: Sequence[int]
    ) -> None:
        self.entered += end - start
        self.open += end - watermark - sum(b - a for a, b in decode_runs(settled))
        self.counters = tuple(map(sum, zip(self.counters, counters, strict=True)))

    def status(self, alive: Sequence[Heartbeat], now_ms: int, absent_s_max: float) -> GroupStatus:
        """What the heartbeats say is older than the rest: it never exceeds what is open."""
        absent_s = 0.0 if alive else max(0, now_ms - self.seen_ms) / 1000
        reported = (sentence for each in alive for sentence in each.blocked)
        in_flight = min(sum(each.in_flight for each in alive), self.open)
        held = min(sum(each.held for each in alive), self.open - in_flight)
        done, parked, dead, archived, skipped, edited, lost = self.counters
        return GroupStatus(
            entered=self.entered,
            done=done,
            waiting=self.open - in_flight - held,
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
            blocked=tuple(dict.fromkeys((*self.blocked, *reported))),
        )


def read_status(
    connection: sqlite3.Connection,
    alive: Sequence[Heartbeat],
    *,
    now_ms: int,
    absent_s_max: float,
) -> Status:
    """See `Queries.status`; within a transaction, so that all of it is of one moment."""
    connection.execute("BEGIN")
    try:
        ends: dict[tuple[str, int], End] = {}
        topics: dict[str, TopicStatus] = {}
        for name, partitions in connection.execute("SELECT name, partitions FROM topic"):
            size_bytes = 0
            for partition in range(partitions):
                end = ends[name, partition] = end_of(connection, name, partition)
                size_bytes += end[1] - start_of(connection, name, partition)[1]
            topics[name] = TopicStatus(
                partitions=partitions,
                published=sum(ends[name, partition][0] for partition in range(partitions)),
                size_bytes=size_bytes,
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
            account.add(end_offset, start, watermark, settled, counters)
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
            accounts[group].blocked.append(
                f"{topic}[{partition}] is stopped by a dead letter (on_dead='stop') at offset "
                f"{min(decode_offsets(blockers))}: replay or archive it"
            )
    finally:
        connection.execute("COMMIT")
    return Status(
        as_of=datetime.fromtimestamp(now_ms / 1000, UTC),
        groups={
            name: account.status(
                [each for each in alive if each.group == name], now_ms, absent_s_max
            )
            for name, account in accounts.items()
        },
        topics=topics,
    )
