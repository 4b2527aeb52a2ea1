"""Retention: what is too old or too much leaves the log, in whole batches, a little at a time."""

from eventlane.brokers.embedded.work import Transaction
from eventlane.clock import SystemClock

__all__ = ["trim"]

_TRANSACTION_S_MAX = 0.03
"""Maintenance may keep the other writers waiting for 50 ms, and the commit counts."""


def trim(transaction: Transaction, now_ms: int) -> bool:
    """Remove batches for a short while; True if some are left to remove."""
    until_s = SystemClock.monotonic_s() + _TRANSACTION_S_MAX
    topics = transaction.execute(
        "SELECT name, retention_s, retention_bytes FROM topic "
        "WHERE retention_s IS NOT NULL OR retention_bytes IS NOT NULL"
    ).fetchall()
    for topic, retention_s, retention_bytes in topics:
        too_old_ms = None if retention_s is None else now_ms - int(retention_s * 1000)
        while _remove_oldest(transaction, topic, too_old_ms, retention_bytes):
            if SystemClock.monotonic_s() >= until_s:
                return True
    return False


# The oldest batch of each partition that all groups have passed: the watermark of a group that is
# far behind keeps it. Dead letters and parked events have copies of their own.
_OLDEST = """
SELECT batch.id, batch.partition, base_offset + count, base_bytes + size_bytes, appended_ms
FROM partition JOIN batch ON batch.id = (
    SELECT id FROM batch AS oldest
    WHERE oldest.topic = partition.topic AND oldest.partition = partition.partition
    ORDER BY oldest.base_offset LIMIT 1)
WHERE partition.topic = ? AND base_offset + count <= coalesce(
    (SELECT min(watermark) FROM progress
     WHERE progress.topic = partition.topic AND progress.partition = partition.partition),
    base_offset + count)
ORDER BY batch.id
"""

_SIZE = """
SELECT sum(coalesce((SELECT base_bytes + size_bytes FROM batch
    WHERE batch.topic = partition.topic AND batch.partition = partition.partition
    ORDER BY base_offset DESC LIMIT 1), first_bytes) - first_bytes)
FROM partition WHERE topic = ?
"""


def _remove_oldest(
    transaction: Transaction, topic: str, too_old_ms: int | None, bytes_max: int | None
) -> bool:
    """Remove the oldest batches of a topic, one of each partition at most."""
    excess = 0
    if bytes_max is not None:
        excess = transaction.execute(_SIZE, (topic,)).fetchone()[0] - bytes_max
    removed = False
    for batch, partition, end_offset, end_bytes, appended_ms in transaction.execute(
        _OLDEST, (topic,)
    ).fetchall():
        if excess <= 0 and (too_old_ms is None or appended_ms > too_old_ms):
            continue
        (start_bytes,) = transaction.execute(
            "SELECT first_bytes FROM partition WHERE topic = ? AND partition = ?",
            (topic, partition),
        ).fetchone()
        transaction.execute("DELETE FROM batch WHERE id = ?", (batch,))
        transaction.execute(
            "UPDATE partition SET first_offset = ?, first_bytes = ? "
            "WHERE topic = ? AND partition = ?",
            (end_offset, end_bytes, topic, partition),
        )
        excess -= end_bytes - start_bytes
        removed = True
    return removed
