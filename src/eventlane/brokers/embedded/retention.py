"""Retention: what is too old or too much leaves the log, in whole batches, a little at a time.

No group's watermark is passed, but for `size_bytes_max` of a topic and groups that are absent. What
is lost to such a group is counted, and its partition belongs to nobody until an operator resets it:
its watermark stays below the start of the log.
"""

import json
import logging
from collections.abc import Sequence
from functools import partial

from eventlane.brokers.embedded.log import open_between, start_of
from eventlane.brokers.embedded.owners import decode_runs
from eventlane.brokers.embedded.work import Transaction
from eventlane.clock import SystemClock

__all__ = ["make_room", "trim"]

_log = logging.getLogger("eventlane.embedded")

_TRANSACTION_S_MAX = 0.03
"""Maintenance may keep the other writers waiting for 50 ms, and the commit counts."""


def trim(transaction: Transaction, now_ms: int, absent: Sequence[str] = ()) -> bool:
    """Remove batches for a short while; True if some are left to remove.

    `absent` are the groups that `size_bytes_max` overrules.
    """
    until_s = SystemClock.monotonic_s() + _TRANSACTION_S_MAX
    topics = transaction.execute(
        "SELECT name, retention_s, retention_bytes, size_bytes_max FROM topic WHERE "
        "retention_s IS NOT NULL OR retention_bytes IS NOT NULL OR size_bytes_max IS NOT NULL"
    ).fetchall()
    for topic, retention_s, retention_bytes, size_bytes_max in topics:
        too_old_ms = None if retention_s is None else now_ms - int(retention_s * 1000)
        bytes_max = size_bytes_max if retention_bytes is None else retention_bytes
        while _remove_oldest(transaction, topic, too_old_ms, bytes_max):
            if SystemClock.monotonic_s() >= until_s:
                return True
        while size_bytes_max is not None and absent:
            if not _remove_oldest(transaction, topic, None, size_bytes_max, absent):
                break
            if SystemClock.monotonic_s() >= until_s:
                return True
    return False


def make_room(
    transaction: Transaction, topic: str, size_bytes_max: int, absent: Sequence[str]
) -> bool:
    """Remove what may be removed until a topic is no greater; whether it is so now."""
    until_s = SystemClock.monotonic_s() + _TRANSACTION_S_MAX
    while _size(transaction, topic) > size_bytes_max:
        if SystemClock.monotonic_s() >= until_s:
            return False
        if _remove_oldest(transaction, topic, None, size_bytes_max):
            continue
        if not absent or not _remove_oldest(transaction, topic, None, size_bytes_max, absent):
            return False
    return True


# The oldest batch of each partition that all groups have passed, but for those that are overruled:
# the watermark of a group that is far behind keeps it. Dead letters and parked events have copies
# of their own. A group that has lost some already is waited for no more than it would be then.
_OLDEST = """
SELECT batch.id, batch.partition, base_offset, base_offset + count, base_bytes + size_bytes,
    appended_ms
FROM partition JOIN batch ON batch.id = (
    SELECT id FROM batch AS oldest
    WHERE oldest.topic = partition.topic AND oldest.partition = partition.partition
    ORDER BY oldest.base_offset LIMIT 1)
WHERE partition.topic = ? AND base_offset + count <= coalesce(
    (SELECT min(watermark) FROM progress
     WHERE progress.topic = partition.topic AND progress.partition = partition.partition
     AND consumer_group NOT IN (SELECT value FROM json_each(?))),
    base_offset + count)
ORDER BY batch.id
"""

_SIZE = """
SELECT sum(coalesce((SELECT base_bytes + size_bytes FROM batch
    WHERE batch.topic = partition.topic AND batch.partition = partition.partition
    ORDER BY base_offset DESC LIMIT 1), first_bytes) - first_bytes)
FROM partition WHERE topic = ?
"""


def _size(transaction: Transaction, topic: str) -> int:
    size_bytes: int = transaction.execute(_SIZE, (topic,)).fetchone()[0]
    return size_bytes


def _remove_oldest(
    transaction: Transaction,
    topic: str,
    too_old_ms: int | None,
    bytes_max: int | None,
    overruled: Sequence[str] = (),
) -> bool:
    """Remove the oldest batches of a topic, one of each partition at most."""
    excess = 0
    if bytes_max is not None:
        excess = _size(transaction, topic) - bytes_max
    removed = False
    for batch, partition, base, end_offset, end_bytes, appended_ms in transaction.execute(
        _OLDEST, (topic, json.dumps(overruled))
    ).fetchall():
        if excess <= 0 and (too_old_ms is None or appended_ms > too_old_ms):
            continue
        _, start_bytes = start_of(transaction.connection, topic, partition)
        for group in overruled:
            _lose(transaction, (group, topic, partition), base, end_offset)
        transaction.execute("DELETE FROM batch WHERE id = ?", (batch,))
        transaction.execute(
            "UPDATE partition SET first_offset = ?, first_bytes = ? "
            "WHERE topic = ? AND partition = ?",
            (end_offset, end_bytes, topic, partition),
        )
        excess -= end_bytes - start_bytes
        removed = True
    return removed


def _lose(transaction: Transaction, place: tuple[str, str, int], base: int, end: int) -> None:
    """Count what a group has not handled of a batch that leaves the log."""
    at = "consumer_group = ? AND topic = ? AND partition = ?"
    row = transaction.execute(
        f"SELECT watermark, settled FROM progress WHERE {at} AND watermark < ?", (*place, end)
    ).fetchone()
    if row is None:
        return
    watermark, runs = row[0], decode_runs(row[1])
    start = max(watermark, base)
    lost = open_between(start, end, runs)
    # A frozen process must not settle what is no more: its epoch is stale.
    transaction.execute(
        f"UPDATE progress SET lost = lost + ?, owner = NULL, epoch = epoch + 1 WHERE {at}",
        (lost, *place),
    )
    # Those of parked events are among the settled ones, and stay.
    for (offset,) in transaction.execute(
        f"SELECT offset FROM attempts WHERE {at} AND offset >= ? AND offset < ?",
        (*place, start, end),
    ).fetchall():
        if open_between(offset, offset + 1, runs):
            transaction.execute(f"DELETE FROM attempts WHERE {at} AND offset = ?", (*place, offset))
    transaction.alters = True
    group, topic, partition = place
    transaction.once_durable.append(
        partial(
            _log.error,
            "group %s has lost %d events of %s[%d]: it is absent, and the topic is at its "
            "size_bytes_max. The partition is paused until a reset",
            *(group, lost, topic, partition),
        )
    )
