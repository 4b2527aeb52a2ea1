"""The account of all groups and topics, read at one moment."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from eventlane.account import GroupStatus, Status, TopicStatus
from eventlane.brokers.embedded.groups import decode_runs
from eventlane.brokers.embedded.log import end_of, start_of
from eventlane.brokers.embedded.members import Heartbeat

__all__ = ["read_status"]

_PROGRESS = """
SELECT consumer_group, topic, partition, start_offset, watermark, settled,
    done, parked, dead, archived, skipped, edited, lost
FROM progress
"""


class _Account:
    """A sum over the partitions of one group."""

    def __init__(self, paused: str | None) -> None:
        self.paused = paused
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

    def status(self, alive: Sequence[Heartbeat]) -> GroupStatus:
        """What the heartbeats say is older than the rest: it never exceeds what is open."""
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
        )


def read_status(connection: sqlite3.Connection, alive: Sequence[Heartbeat], now_ms: int) -> Status:
    """See `Queries.status`; within a transaction, so that all of it is of one moment."""
    connection.execute("BEGIN")
    try:
        ends: dict[tuple[str, int], int] = {}
        topics: dict[str, TopicStatus] = {}
        for name, partitions in connection.execute("SELECT name, partitions FROM topic"):
            size_bytes = 0
            for partition in range(partitions):
                offset, end_bytes = end_of(connection, name, partition)
                ends[name, partition] = offset
                size_bytes += end_bytes - start_of(connection, name, partition)[1]
            topics[name] = TopicStatus(
                partitions=partitions,
                published=sum(ends[name, partition] for partition in range(partitions)),
                size_bytes=size_bytes,
            )
        accounts = {
            name: _Account(paused)
            for name, paused in connection.execute("SELECT name, paused FROM consumer_group")
        }
        for group, topic, partition, start, watermark, settled, *counters in connection.execute(
            _PROGRESS
        ):
            accounts[group].add(ends[topic, partition], start, watermark, settled, counters)
        for group, pending in connection.execute(
            "SELECT consumer_group, count(*) FROM command GROUP BY consumer_group"
        ):
            accounts[group].pending = pending
    finally:
        connection.execute("COMMIT")
    return Status(
        as_of=datetime.fromtimestamp(now_ms / 1000, UTC),
        groups={
            name: account.status([each for each in alive if each.group == name])
            for name, account in accounts.items()
        },
        topics=topics,
    )
