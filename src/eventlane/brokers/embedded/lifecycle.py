"""The life of whole groups: where they go on, what they are called, that they end.

A reset begins a new era of the account: all counters of the partitions count from there. It takes
the partitions away from their owner, who finds its epoch stale and takes them anew, so that nothing
of what it has in memory can be settled in the new era.
"""

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import msgspec

from eventlane.brokers.embedded import failures, owners
from eventlane.brokers.embedded.failures import AT, Place
from eventlane.brokers.embedded.log import decode_batch, end_of, open_between, start_of
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.operators import By, refuse_unknown
from eventlane.brokers.embedded.owners import decode_runs
from eventlane.brokers.embedded.parts import Audited, audit, let_go
from eventlane.brokers.embedded.rates import forget_rate
from eventlane.brokers.embedded.work import Transaction
from eventlane.errors import NotFound, Refused
from eventlane.views import PartitionReset, RemovalPlan, ResetPlan, ResetTo
from eventlane.wording import did_you_mean

__all__ = ["forget_type", "plan_removal", "plan_reset", "remove", "rename", "reset"]

_WAS_RESET = "the group was reset"
_NONE = msgspec.msgpack.encode(())


class _Progress(NamedTuple):
    topic: str
    partition: int
    watermark: int
    settled: bytes


# --- reset ------------------------------------------------------------------------------------


def plan_reset(connection: sqlite3.Connection, group: str, to: ResetTo) -> ResetPlan:
    """What a reset would do: see `Operators.reset`.

    Raises:
        NotFound: There is no such group, topic or partition.
        Refused: The log does not have that offset.
    """
    refuse_unknown(connection, group)
    found = [
        _Progress(*row)
        for row in connection.execute(
            "SELECT topic, partition, watermark, settled FROM progress WHERE consumer_group = ? "
            "ORDER BY topic, partition",
            (group,),
        )
    ]
    if isinstance(to, Mapping):
        found = _named(group, to, found)
    return ResetPlan(
        group=group,
        is_done=False,
        partitions=tuple(
            _plan_partition(connection, group, each, _target(connection, each, to))
            for each in found
        ),
    )


def _named(
    group: str, to: Mapping[tuple[str, int], int], found: list[_Progress]
) -> list[_Progress]:
    """The partitions that are named."""
    known = {(each.topic, each.partition): each for each in found}
    for topic, partition in to:
        if (topic, partition) in known:
            continue
        count = sum(each.topic == topic for each in found)
        if not count:
            hint = did_you_mean(topic, {each.topic for each in found})
            raise NotFound(f"topic {topic!r}: group {group!r} does not consume it. {hint}")
        raise NotFound(
            f"topic {topic!r}: expected one of its partitions, 0 to {count - 1}, got {partition!r}"
        )
    return [known[place] for place in sorted(to)]


def _target(connection: sqlite3.Connection, at: _Progress, to: ResetTo) -> int:
    start, _ = start_of(connection, at.topic, at.partition)
    end, _ = end_of(connection, at.topic, at.partition)
    if to == "first":
        return start
    if to == "now":
        return end
    if isinstance(to, datetime):
        return _offset_at(connection, at, (start, end), int(to.timestamp() * 1000))
    assert isinstance(to, Mapping), "the caller knows no other"
    offset = to[at.topic, at.partition]
    if not start <= offset <= end:
        raise Refused(
            f"{at.topic}[{at.partition}]: expected an offset from {start} (its first event) to "
            f"{end} (its end), got {offset}; nothing was changed"
        )
    return offset


def _offset_at(
    connection: sqlite3.Connection, at: _Progress, bounds: tuple[int, int], at_ms: int
) -> int:
    """The first event of the first batch that was appended at or after a time.

    Events before it in that batch whose own time is earlier are left out, unless all are: what was
    imported is older than its batch.
    """
    start, stop = bounds
    # All before `start` was appended too early, and nothing from `stop` on.
    while start < stop:
        base, count, appended_ms = connection.execute(
            "SELECT base_offset, count, appended_ms FROM batch WHERE topic = ? AND partition = ? "
            "AND base_offset <= ? ORDER BY base_offset DESC LIMIT 1",
            (at.topic, at.partition, (start + stop) // 2),
        ).fetchone()
        if appended_ms < at_ms:
            start = base + count
        else:
            stop = base
    row = connection.execute(
        "SELECT records FROM batch WHERE topic = ? AND partition = ? AND base_offset = ?",
        (at.topic, at.partition, stop),
    ).fetchone()
    times_ms = [record.time_ms for record in decode_batch(row[0])] if row else []
    return stop + next((index for index, ms in enumerate(times_ms) if ms >= at_ms), 0)


def _plan_partition(
    connection: sqlite3.Connection, group: str, at: _Progress, target: int
) -> PartitionReset:
    place = (group, at.topic, at.partition)
    runs = decode_runs(at.settled)
    parked, parked_below = _parked(connection, place, target)
    # What retention has removed is lost, and nobody passes over it.
    start, _ = start_of(connection, at.topic, at.partition)
    unsettled_below = open_between(max(start, at.watermark), target, runs)
    settled_from = max(0, at.watermark - target) + sum(
        max(0, stop - max(start, target)) for start, stop in runs
    )
    return PartitionReset(
        topic=at.topic,
        partition=at.partition,
        from_offset=at.watermark,
        to_offset=target,
        handled_again=settled_from,
        passed_over=unsettled_below + parked_below,
        parked_dropped=parked,
        attempts_dropped=_count(connection, "attempts", AT, place),
        open_letters=_count(connection, "letter", f"{AT} AND {_ALIVE}", place),
    )


_ALIVE = "state IN ('open', 'replaying')"


def _count(
    connection: sqlite3.Connection, table: str, condition: str, values: tuple[object, ...]
) -> int:
    count: int = connection.execute(
        f"SELECT count(*) FROM {table} WHERE {condition}", values
    ).fetchone()[0]
    return count


def _parked(connection: sqlite3.Connection, place: Place, offset: int) -> tuple[int, int]:
    """How many events are parked in a partition, and how many of them below an offset."""
    count = below = 0
    for lane, parked, head, last in connection.execute(
        f"SELECT lane, parked, head, (SELECT max(last_offset) FROM parked WHERE {AT} "
        "AND parked.lane = lane.lane) FROM lane WHERE consumer_group = ? AND topic = ? "
        "AND partition = ? AND parked > 0",
        (*place, *place),
    ).fetchall():
        count += parked
        if last is None or last < offset:
            below += parked
        elif head < offset:
            events = failures.parked(connection, place, lane, head - 1, parked)
            below += sum(event.offset < offset for event in events)
    return count, below


def reset(transaction: Transaction, group: str, to: ResetTo, by: By) -> ResetPlan:
    """See `Operators.reset`."""
    plan = plan_reset(transaction.connection, group, to)
    for each in plan.partitions:
        place = (group, each.topic, each.partition)
        transaction.execute(
            "UPDATE progress SET owner = NULL, needs = '[]', epoch = epoch + 1, start_offset = ?1, "
            "watermark = ?1, settled = ?2, suspects = ?2, dispatched = -1, alone = NULL, "
            "done = 0, parked = 0, dead = 0, archived = 0, skipped = 0, edited = 0, lost = 0 "
            "WHERE consumer_group = ?3 AND topic = ?4 AND partition = ?5",
            (each.to_offset, _NONE, *place),
        )
        for table in ("attempts", "lane", "parked", "command"):
            transaction.execute(f"DELETE FROM {table} WHERE {AT}", place)
        alive = transaction.execute(
            f"SELECT number FROM letter WHERE {AT} AND {_ALIVE}", place
        ).fetchall()
        audit(transaction, Audited("reset", *by), [(group, row[0]) for row in alive])
        transaction.execute(
            f"UPDATE letter SET state = 'open', on_dead = 'continue', version = version + 1 "
            f"WHERE {AT} AND {_ALIVE}",
            place,
        )
        transaction.execute(f"UPDATE letter SET counted = 0 WHERE {AT}", place)
        if isinstance(to, Mapping):
            at = (each.topic, each.partition)
            let_go(transaction, group, _WAS_RESET, by.now_ms, at=at)
    if not isinstance(to, Mapping):
        let_go(transaction, group, _WAS_RESET, by.now_ms)
    audit(transaction, Audited("reset", *by), [(group, None)])
    transaction.alters = True
    return msgspec.structs.replace(plan, is_done=True)


# --- rename and remove ------------------------------------------------------------------------

_TABLES = (
    *("progress", "member_type", "attempts", "lane", "parked", "letter", "command"),
    *("operation_part", "audit"),
)
"""Those that name a group in `consumer_group`."""
_KEPT = ("operation_part", "audit")
"""What was done to a group, which outlives it."""


def rename(transaction: Transaction, old: str, new: str, by: By, *, members: Members) -> None:
    """See `Operators.rename_group`. `members` are looked at for live ones."""
    refuse_unknown(transaction.connection, old)
    _refuse_live(old, members)
    taken = transaction.execute("SELECT 1 FROM consumer_group WHERE name = ?", (new,)).fetchone()
    if taken or any(each.group == new for each in members.alive()):
        raise Refused(
            f"group {new!r}: expected a name that is free, got one of a group that exists; choose "
            "another name, or remove that group first. Nothing was changed"
        )
    transaction.execute("UPDATE consumer_group SET name = ? WHERE name = ?", (new, old))
    for table in _TABLES:
        transaction.execute(
            f"UPDATE {table} SET consumer_group = ? WHERE consumer_group = ?", (new, old)
        )
    forget_rate(transaction, f"group:{old}")
    audit(transaction, Audited("rename", *by, detail=f"was {old!r}"), [(new, None)])
    transaction.alters = True


def forget_type(
    transaction: Transaction, group: str, event_type: str, by: By, *, members: Members
) -> None:
    """See `Operators.forget_type`."""
    refuse_unknown(transaction.connection, group)
    owners.forget(transaction, group, event_type, members)
    audit(transaction, Audited("forget", *by, detail=event_type), [(group, None)])


def plan_removal(connection: sqlite3.Connection, group: str) -> RemovalPlan:
    """What would be lost with a group: see `Operators.remove_group`.

    Raises:
        NotFound: There is no such group.
    """
    refuse_unknown(connection, group)
    topics: set[str] = set()
    waiting = parked = 0
    for topic, partition, watermark, settled, parked_here in connection.execute(
        "SELECT topic, partition, watermark, settled, parked FROM progress "
        "WHERE consumer_group = ?",
        (group,),
    ).fetchall():
        topics.add(topic)
        parked += parked_here
        start, _ = start_of(connection, topic, partition)
        end, _ = end_of(connection, topic, partition)
        waiting += open_between(max(start, watermark), end, decode_runs(settled))
    of_group = "consumer_group = ?"
    return RemovalPlan(
        group=group,
        is_done=False,
        topics=tuple(sorted(topics)),
        open=waiting,
        parked=parked,
        open_letters=_count(connection, "letter", f"{of_group} AND {_ALIVE}", (group,)),
        letters=_count(connection, "letter", of_group, (group,)),
        attempts=_count(connection, "attempts", of_group, (group,)),
        commands=_count(connection, "command", of_group, (group,)),
    )


def remove(transaction: Transaction, group: str, by: By, *, members: Members) -> RemovalPlan:
    """See `Operators.remove_group`. `members` are looked at for live ones."""
    plan = plan_removal(transaction.connection, group)
    _refuse_live(group, members)
    transaction.execute(
        "DELETE FROM envelope WHERE number IN (SELECT number FROM letter WHERE consumer_group = ?)",
        (group,),
    )
    for table in _TABLES:
        if table not in _KEPT:
            transaction.execute(f"DELETE FROM {table} WHERE consumer_group = ?", (group,))
    forget_rate(transaction, f"group:{group}")
    let_go(transaction, group, "the group was removed", by.now_ms)
    transaction.execute(
        "DELETE FROM operation_letter WHERE part IN "
        "(SELECT id FROM operation_part WHERE consumer_group = ?)",
        (group,),
    )
    transaction.execute("DELETE FROM consumer_group WHERE name = ?", (group,))
    audit(transaction, Audited("remove", *by), [(group, None)])
    transaction.alters = True
    return msgspec.structs.replace(plan, is_done=True)


def _refuse_live(group: str, members: Members) -> None:
    for heartbeat in members.alive():
        if heartbeat.group == group:
            raise Refused(
                f"group {group!r}: expected one without a live member, got one that process "
                f"{heartbeat.pid} on {heartbeat.host} handles; stop all its processes first. "
                "Nothing was changed"
            )
