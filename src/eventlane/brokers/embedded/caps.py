"""Hard caps: `Topic(size_bytes_max=...)` and `Limits(disk_bytes_max=...)`.

Only what is published from outside is refused. What a settlement writes always has room, published
events included: a handler that has run could not be told, and its outcome must not be lost.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from eventlane.brokers.embedded.log import rows, used_bytes
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.retention import make_room
from eventlane.brokers.embedded.work import Stretch, Transaction
from eventlane.config import Limits
from eventlane.errors import StorageFull
from eventlane.message import Record

__all__ = ["Caps", "absent"]


def absent(
    connection: sqlite3.Connection, members: Members, now_ms: int, absent_s: float
) -> list[str]:
    """The groups that no process has handled for so long."""
    rows = connection.execute(
        "SELECT name FROM consumer_group WHERE seen_ms < ?", (now_ms - int(absent_s * 1000),)
    ).fetchall()
    if not rows:
        return []
    alive = {each.group for each in members.alive()}
    return [name for (name,) in rows if name not in alive]


class Caps:
    """What there is no room for; used in the writer's thread, within its transaction."""

    def __init__(self, path_shown: str, limits: Limits, members: Members) -> None:
        self._path = path_shown
        self._disk_bytes_max = limits.disk_bytes_max
        self._absent_s = limits.absent_s
        self._members = members

    def full(
        self, transaction: Transaction, stretches: Sequence[Stretch], now_ms: int
    ) -> dict[str, StorageFull]:
        """The topics to which these must not be written, after room was made for them."""
        caps = self._caps(transaction)
        if not caps and self._disk_bytes_max is None:
            return {}
        wanted = Counter[str]()
        for stretch in stretches:
            wanted[stretch.topic] += sum(len(row.records) for row in stretch.rows)
        return self._full(transaction, wanted, caps, now_ms)

    def check(
        self, transaction: Transaction, topic: str, records: Sequence[Record], now_ms: int
    ) -> None:
        """Make room for records that an operator publishes.

        Raises:
            StorageFull: There is none.
        """
        wanted = {topic: sum(len(row.records) for row in rows(records))}
        full = self._full(transaction, wanted, self._caps(transaction), now_ms)
        if full:
            raise full[topic]

    def _caps(self, transaction: Transaction) -> dict[str, int]:
        return dict(
            transaction.execute(
                "SELECT name, size_bytes_max FROM topic WHERE size_bytes_max IS NOT NULL"
            ).fetchall()
        )

    def _full(
        self, transaction: Transaction, wanted: Mapping[str, int], caps: dict[str, int], now_ms: int
    ) -> dict[str, StorageFull]:
        full: dict[str, StorageFull] = {}
        for topic, size_bytes in wanted.items():
            if topic in caps and not self._has_room(
                transaction, topic, caps[topic], size_bytes, now_ms
            ):
                full[topic] = StorageFull(
                    f"topic {topic!r}: expected room within size_bytes_max={caps[topic]:,}, got "
                    f"{size_bytes:,} bytes to publish, and groups that are not absent have yet to "
                    "handle what it holds. Nothing was published; try again when they have gone "
                    "on, or declare a greater size_bytes_max"
                )
        disk_bytes_max = self._disk_bytes_max
        if disk_bytes_max is not None:
            used = used_bytes(transaction.connection)
            if used + sum(wanted.values()) > disk_bytes_max:
                error = StorageFull(
                    f"{self._path}: expected room within Limits(disk_bytes_max="
                    f"{disk_bytes_max:,}), got {used:,} bytes in use. Nothing was published; "
                    "`eventlane lag` says which group the log is kept for"
                )
                full |= dict.fromkeys(wanted, error)
        return full

    def _has_room(
        self, transaction: Transaction, topic: str, cap: int, size_bytes: int, now_ms: int
    ) -> bool:
        if size_bytes > cap:
            return False
        groups = absent(transaction.connection, self._members, now_ms, self._absent_s)
        return make_room(transaction, topic, cap - size_bytes, groups)
