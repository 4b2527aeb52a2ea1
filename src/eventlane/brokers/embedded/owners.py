"""Who owns which partition of a group, and which members there are to own them.

The rows of `progress` say who owns what; `member_type` says what each member handles. A partition
moves when its owner gives it up, or has died. What one member cannot handle and another one can is
given up with a note of what is needed (`progress.needs`).
"""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eventlane.brokers.embedded import failures
from eventlane.brokers.embedded.log import end_of
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.work import Transaction
from eventlane.config import Limits
from eventlane.errors import ConfigError, NotFound, Refused
from eventlane.settlement import Acquired, GroupSpec
from eventlane.sharing import Claim, Place, Share, share_of
from eventlane.span import runs_of
from eventlane.suspects import AHEAD_MIN, ALONE_IN_GROUP, LANES_AT_WORK_MAX
from eventlane.wording import did_you_mean

__all__ = [
    "Ownership",
    "acquire",
    "check_apps",
    "decode_runs",
    "decode_suspects",
    "elsewhere",
    "forget",
    "handled_types",
    "leave",
    "mark_suspects",
    "ownerships",
    "register",
    "registered",
    "release",
    "share",
    "suspect",
    "waiting",
]

_COMMANDS_MAX = 4_000
"""With which a partition is acquired; the others are reported afterwards."""
_encode = msgspec.msgpack.Encoder().encode
_encode_needs = msgspec.json.Encoder().encode
_decode_needs = msgspec.json.Decoder(tuple[str, ...]).decode
decode_runs = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...]).decode
"""Reads the column `settled`."""
decode_suspects = msgspec.msgpack.Decoder(tuple[tuple[int, int, int], ...]).decode
"""Reads the column `suspects`."""


class Ownership(NamedTuple):
    """Who owns a partition."""

    topic: str
    partition: int
    owner: str | None
    epoch: int
    needs: tuple[str, ...]
    """Event types for which it was given up by members without a handler, the newest last."""
    is_cut: bool
    """Retention has overtaken the group: nobody is to have it until an operator resets it."""

    @property
    def place(self) -> Place:
        """Topic and partition."""
        return (self.topic, self.partition)


def ownerships(connection: sqlite3.Connection, spec: GroupSpec) -> list[Ownership]:
    """Who owns the partitions of the topics that a member of a group handles."""
    rows = connection.execute(
        "SELECT topic, partition, owner, epoch, needs, watermark < first_offset FROM progress "
        "JOIN partition USING (topic, partition) WHERE consumer_group = ?",
        (spec.name,),
    )
    return [
        Ownership(topic, partition, owner, epoch, _decode_needs(needs), bool(is_cut))
        for topic, partition, owner, epoch, needs, is_cut in rows
        if topic in spec.topics
    ]


# --- members ----------------------------------------------------------------------------------


def register(
    transaction: Transaction, spec: GroupSpec, member: str, app_of: Callable[[str], str | None]
) -> None:
    """Note what a new member handles; `app_of` gives the app of a live member, None for a dead one.

    Raises:
        ConfigError: Another app runs the group with other handlers.
    """
    known = handled_types(transaction.connection, spec.name)
    apps = {each: app_of(each) for each in known}
    check_apps(spec, known, apps)
    alive = [each for each, app in apps.items() if app is not None]
    # What a dead member handled is remembered while the group goes on without it: its events
    # wait for somebody who handles them. If nobody is left, this one begins anew.
    covered = set(spec.types).union(*(known[each] for each in alive))
    gone = [
        (spec.name, each, topic, event_type)
        for each in known.keys() - alive
        for topic, event_type in known[each]
        if not alive or (topic, event_type) in covered
    ]
    transaction.executemany(
        "DELETE FROM member_type WHERE consumer_group = ? AND member = ? AND topic = ? "
        "AND event_type = ?",
        gone,
    )
    transaction.executemany(
        "INSERT INTO member_type (consumer_group, member, topic, event_type) VALUES (?, ?, ?, ?)",
        [(spec.name, member, *each) for each in spec.types],
    )
    transaction.alters = True


def check_apps(
    spec: GroupSpec, known: Mapping[str, set[tuple[str, str]]], apps: Mapping[str, str | None]
) -> None:
    """Refuse a second app with other handlers; by member what it handles, and its app if it lives.

    Raises:
        ConfigError: There is one.
    """
    for other, app in apps.items():
        if app is not None and app != spec.app and known[other] != set(spec.types):
            raise _two_apps(spec, app, known[other])


def _two_apps(spec: GroupSpec, app: str, theirs: set[tuple[str, str]]) -> ConfigError:
    def words(types: Iterable[tuple[str, str]]) -> str:
        return (
            ", ".join(sorted(f"{event_type} on {topic}" for topic, event_type in types)) or "none"
        )

    return ConfigError(
        f"group {spec.name!r}: app {app!r} runs it with handlers for {words(theirs)}; got app "
        f"{spec.app!r} with handlers for {words(spec.types)}. Give one of them another group, or, "
        "if this is a new version of the same application, the same App(name=...)."
    )


def handled_types(connection: sqlite3.Connection, group: str) -> dict[str, set[tuple[str, str]]]:
    """What each member handles: topics and event types."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for member, topic, event_type in connection.execute(
        "SELECT member, topic, event_type FROM member_type WHERE consumer_group = ?", (group,)
    ):
        found[member].add((topic, event_type))
    return found


def registered(connection: sqlite3.Connection, group: str) -> frozenset[str]:
    """The members that have joined a group; some may be dead."""
    rows = connection.execute(
        "SELECT DISTINCT member FROM member_type WHERE consumer_group = ?", (group,)
    )
    return frozenset(member for (member,) in rows)


def elsewhere(connection: sqlite3.Connection, spec: GroupSpec) -> frozenset[tuple[str, str]]:
    """What others of a group handle, or have handled until they died, and this member does not."""
    rows = connection.execute(
        "SELECT DISTINCT topic, event_type FROM member_type WHERE consumer_group = ?", (spec.name,)
    ).fetchall()
    return frozenset(rows).difference(spec.types)


def leave(transaction: Transaction, group: str, member: str) -> None:
    """Give up all that a member owns, and its membership."""
    at = (group, member)
    transaction.execute(
        "UPDATE progress SET owner = NULL WHERE consumer_group = ? AND owner = ?", at
    )
    transaction.execute("DELETE FROM member_type WHERE consumer_group = ? AND member = ?", at)
    transaction.alters = True


def forget(transaction: Transaction, group: str, event_type: str, members: Members) -> None:
    """Forget that dead members have handled a type: it is nobody's, and no partition waits for it.

    Raises:
        NotFound: No member is recorded with it.
        Refused: A live member handles it.
    """
    known = handled_types(transaction.connection, group)
    names = {name for types in known.values() for _, name in types}
    if event_type not in names:
        hint = did_you_mean(event_type, names) if names else "It is recorded with none."
        raise NotFound(
            f"group {group!r}: expected an event type that it is recorded to handle, got "
            f"{event_type!r}. {hint} Nothing was changed"
        )
    for member, types in known.items():
        heartbeat = members.heartbeat(member)
        if heartbeat is not None and any(name == event_type for _, name in types):
            raise Refused(
                f"group {group!r}: expected a type that only ended processes have handled, got "
                f"{event_type!r}, which process {heartbeat.pid} on {heartbeat.host} (app "
                f"{heartbeat.app!r}) handles; stop it, or deploy it without that handler, first. "
                "Nothing was changed"
            )
    transaction.execute(
        "DELETE FROM member_type WHERE consumer_group = ? AND event_type = ?", (group, event_type)
    )
    # That this changes is also what makes the members share out the partitions anew.
    for topic, partition, needs in transaction.execute(
        "SELECT topic, partition, needs FROM progress WHERE consumer_group = ? AND needs != '[]'",
        (group,),
    ).fetchall():
        kept = _encode_needs([each for each in _decode_needs(needs) if each != event_type])
        transaction.execute(
            "UPDATE progress SET needs = ? "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (kept.decode(), group, topic, partition),
        )
    transaction.alters = True


def waiting(
    connection: sqlite3.Connection, is_alive: Callable[[str], bool]
) -> dict[tuple[str, str, int], str]:
    """Partitions that nobody alive owns or could have, by group, with the type that is missing.

    A group without any live member is not among them: whoever comes first begins anew.
    """
    found: dict[tuple[str, str, int], str] = {}
    known: dict[str, dict[str, set[tuple[str, str]]]] = {}
    for group, topic, partition, owner, needs in connection.execute(
        "SELECT consumer_group, topic, partition, owner, needs FROM progress WHERE needs != '[]'"
    ).fetchall():
        if group not in known:
            known[group] = handled_types(connection, group)
        takers = {each: types for each, types in known[group].items() if is_alive(each)}
        handled = set[tuple[str, str]]().union(*known[group].values())
        needed = [(topic, each) for each in _decode_needs(needs) if (topic, each) in handled]
        if not takers or not needed or (owner is not None and is_alive(owner)):
            continue
        if not (_able(takers, topic, needed) or _able(takers, topic, needed[-1:])):
            found[group, topic, partition] = needed[-1][1]
    return found


# --- partitions -------------------------------------------------------------------------------


def share(connection: sqlite3.Connection, spec: GroupSpec, member: str, members: Members) -> Share:
    """What a member is to take and to give up now."""
    known = handled_types(connection, spec.name)
    takers = {each: types for each, types in known.items() if members.is_taking(each)}
    handled = set[tuple[str, str]]().union(*known.values())
    claims: list[Claim] = []
    for topic, partition, owner, _, needs, is_cut in ownerships(connection, spec):
        if is_cut:
            continue
        needed = [(topic, each) for each in needs if (topic, each) in handled]
        able = _able(takers, topic, needed) or _able(takers, topic, needed[-1:])
        lives = owner is not None and (owner in takers or members.is_alive(owner))
        claims.append(Claim((topic, partition), owner if lives else None, able))
    return share_of(member, claims)


def _able(
    takers: Mapping[str, set[tuple[str, str]]], topic: str, needed: Sequence[tuple[str, str]]
) -> frozenset[str]:
    """The members that handle a topic, and all that is needed for one of its partitions."""
    return frozenset(
        each
        for each, types in takers.items()
        if types.issuperset(needed) and any(place == topic for place, _ in types)
    )


def acquire(
    transaction: Transaction,
    spec: GroupSpec,
    *,
    member: str,
    members: Members,
    limits: Limits,
    now_ms: int,
) -> list[Acquired]:
    """Take a member's share of what nobody alive owns."""
    taken: list[Acquired] = []
    connection = transaction.connection
    wanted = set(share(connection, spec, member, members).take)
    # A member may get all of them: what it begins with is bounded for all together.
    lanes_max = -(-limits.parked_lanes_max // max(1, len(wanted)))
    for each in ownerships(connection, spec):
        if each.place not in wanted:
            continue
        at = (spec.name, *each.place)
        if each.owner is not None:
            mark_suspects(transaction, at, limits.span_max, now_ms)
        transaction.execute(
            "UPDATE progress SET owner = ?, epoch = epoch + 1, dispatched = watermark + ?, "
            "alone = NULL "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            (member, AHEAD_MIN - 1, *at),
        )
        taken.append(_acquired(connection, at, each.epoch + 1, lanes_max))
    if taken:
        transaction.alters = True
    return taken


def suspect(
    transaction: Transaction,
    group: str,
    member: str,
    owned: Mapping[Place, int],
    *,
    span_max: int,
    now_ms: int,
) -> None:
    """What may be in flight has ended its process: see `Consumer.suspect`. Epochs by place."""
    for place, epoch in owned.items():
        at = (group, *place)
        row = transaction.execute(
            "SELECT owner, epoch FROM progress "
            "WHERE consumer_group = ? AND topic = ? AND partition = ?",
            at,
        ).fetchone()
        if row == (member, epoch):
            mark_suspects(transaction, at, span_max, now_ms)


def release(
    transaction: Transaction, place: failures.Place, member: str, epoch: int, needs: str | None
) -> None:
    """Give one partition up, unless it is another's by now; see `Consumer.release`."""
    at = "consumer_group = ? AND topic = ? AND partition = ? AND owner = ? AND epoch = ?"
    owned = (*place, member, epoch)
    if needs is not None:
        row = transaction.execute(f"SELECT needs FROM progress WHERE {at}", owned).fetchone()
        before = _decode_needs(row[0]) if row is not None else ()
        after = _encode_needs([*(each for each in before if each != needs), needs]).decode()
        transaction.execute(f"UPDATE progress SET needs = ? WHERE {at}", (after, *owned))
    transaction.execute(f"UPDATE progress SET owner = NULL WHERE {at}", owned)
    transaction.alters = True


def _acquired(
    connection: sqlite3.Connection, place: failures.Place, epoch: int, lanes_max: int
) -> Acquired:
    _, topic, partition = place
    watermark, settled, suspects = connection.execute(
        "SELECT watermark, settled, suspects FROM progress "
        "WHERE consumer_group = ? AND topic = ? AND partition = ?",
        place,
    ).fetchone()
    lanes, has_more = failures.lanes_at_acquisition(connection, place, lanes_max)
    return Acquired(
        topic=topic,
        partition=partition,
        epoch=epoch,
        watermark=watermark,
        settled=decode_runs(settled),
        attempts=failures.stored_attempts(connection, place, watermark),
        lanes=lanes,
        commands=tuple(failures.commands(connection, place, after=0, count_max=_COMMANDS_MAX)),
        suspects=decode_suspects(suspects),
        has_more_lanes=has_more,
    )


def mark_suspects(
    transaction: Transaction, place: tuple[str, str, int], span_max: int, now_ms: int
) -> None:
    """An owner ended without leaving: what it may have had in flight is suspected once more.

    That is what it said runs alone; else all that it can have started and has no outcome, the first
    parked event of each lane that was due, and what operators have had replayed.
    """
    at = "consumer_group = ? AND topic = ? AND partition = ?"
    execute = transaction.execute
    watermark, settled, dispatched, suspects, alone = execute(
        f"SELECT watermark, settled, dispatched, suspects, alone FROM progress WHERE {at}",
        place,
    ).fetchone()
    ends_of: dict[int, int] = {
        offset: ends
        for start, stop, ends in decode_suspects(suspects)
        for offset in range(start, stop)
    }
    in_flight: list[int] = []
    if alone is not None:
        ends_of[alone] = ends_of.get(alone, 0) + 1
    else:
        end, _ = end_of(transaction.connection, place[1], place[2])
        stop = min(end, watermark + span_max, dispatched + 1)
        over = {offset for first, last in decode_runs(settled) for offset in range(first, last)}
        in_flight += [offset for offset in range(watermark, stop) if offset not in over]
        # A stored retry runs as soon as it is fetched.
        in_flight += (
            row[0]
            for row in execute(
                f"SELECT offset FROM attempts WHERE {at} AND offset >= ?", (*place, stop)
            )
            if row[0] not in over
        )
        # Lanes are read back in this order, so many at once. A retry that waited in memory passes
        # what is due before: it is among the last.
        due: dict[bytes | int, int] = {}
        for order in ("due_ms, lane", "due_ms DESC, lane DESC"):
            due |= execute(
                f"SELECT lane, head FROM lane WHERE {at} AND due_ms BETWEEN 0 AND ? "
                f"ORDER BY {order} LIMIT ?",
                (*place, now_ms, LANES_AT_WORK_MAX),
            ).fetchall()
        for lane, head in due.items():
            first = failures.parked(transaction.connection, place, lane, head - 1, 1)
            in_flight += [each.offset for each in first]
        # These are few: an operation gives owners so many at once and no more.
        in_flight += (
            row[0]
            for row in execute(
                "SELECT offset FROM command JOIN letter ON letter.id = command.letter WHERE "
                "command.consumer_group = ? AND command.topic = ? AND command.partition = ? "
                "AND command.kind = 'replay'",
                place,
            )
        )
    for offset in in_flight:
        ends = ends_of.get(offset, 0)
        # It may have been anything else, so that it runs alone next: no more than that.
        ends_of[offset] = max(ends, min(ends + 1, ALONE_IN_GROUP))
    execute(f"UPDATE progress SET suspects = ? WHERE {at}", (_encode(runs_of(ends_of)), *place))
