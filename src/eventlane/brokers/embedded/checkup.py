"""A check-up of a broker, in use or not: it only reads, by a connection that cannot write.

Such a connection never checkpoints; where nobody has the broker open, SQLite makes an empty
write-ahead log beside it, as for any reader. What cannot be read is a finding too.
"""

import os
import platform
import shlex
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from eventlane.account import GroupStatus, Status
from eventlane.brokers.embedded.declared import Declared, against, unhandled
from eventlane.brokers.embedded.file import FORMAT_VERSION, storage_error, stored_format
from eventlane.brokers.embedded.filesystem import mount_of
from eventlane.brokers.embedded.letters import summaries
from eventlane.brokers.embedded.log import LogReader
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.migration import users_of
from eventlane.brokers.embedded.overview import operations
from eventlane.brokers.embedded.owners import handled_types
from eventlane.brokers.embedded.status import read_status
from eventlane.brokers.embedded.surroundings import surroundings
from eventlane.config import Limits
from eventlane.errors import EventlaneError
from eventlane.topic import DLQ_SUFFIX
from eventlane.views import Finding
from eventlane.wording import counted, duration, size

__all__ = ["check_up"]

_DAMAGES_MAX = 10
_BLOCKED_MAX = 5
_OPEN_S_MAX = 86_400.0
"""A dead letter that is open for longer has been forgotten."""
_WAL_BYTES_MAX = 64 * 1024 * 1024
"""SQLite begins to write it back at a quarter of this."""
_AHEAD_S_MAX = 60.0
_NEWEST_MAX = 1_000
_FETCHED_MAX = 4_000
_STALE_S = 30.0

_Level = Literal["ok", "warning", "error"]


class _Subject(NamedTuple):
    """What is checked."""

    path: Path
    url: str
    connection: sqlite3.Connection
    members: Members
    limits: Limits
    now_ms: int
    declared: Declared | None

    def command(self, *words: object) -> str:
        return shlex.join(["eventlane", "--broker", self.url, *map(str, words)])


def check_up(
    directory: Path,
    *,
    url: str,
    limits: Limits,
    now_ms: int,
    full: bool,
    declared: Declared | None,
) -> list[Finding]:
    """Look at everything; `full` reads every page and every event, and not only the structure."""
    found: list[Finding] = []
    try:
        found += surroundings(directory)
    except OSError as error:
        found.append(_finding("error", "permissions", f"{directory}: {error.strerror}."))
    path = directory / "eventlane.db"
    try:
        with closing(_opened(path)) as connection:
            found += _checked(
                _Subject(
                    path,
                    url,
                    connection,
                    Members(directory, lease_s=limits.lease_s, stall_s_max=limits.stall_s_max),
                    limits,
                    now_ms,
                    declared,
                ),
                full=full,
            )
    except (sqlite3.Error, EventlaneError) as error:
        found.append(_unreadable("file", path, error))
    return found


def _opened(path: Path) -> sqlite3.Connection:
    # `mode=ro`, for a reader that is the last to close would otherwise checkpoint out of turn.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=1.0,
    )


def _checked(subject: _Subject, *, full: bool) -> Iterator[Finding]:
    path = subject.path
    stored = stored_format(subject.connection, path)
    if stored == 0:
        yield _finding("warning", "format", "The file is empty: no process has opened it yet.")
        return
    if stored < FORMAT_VERSION:
        yield _finding(
            "warning",
            "format",
            f"The file has format {stored}. The first process of this Eventlane brings it to "
            f"format {FORMAT_VERSION}, while no other one has it open; an older Eventlane cannot "
            "open it then. Stop all processes and make a copy before.",
            shlex.join(["cp", "-a", str(path.parent), f"{path.parent}.format-{stored}"]),
        )
        return
    checks: dict[str, Callable[[_Subject], Iterator[Finding]]] = {
        "format": _settings,
        "integrity": _every_page if full else _structure,
        "wal": _wal,
        "clock": _clock,
        "members": _members,
        "groups": _account,
        "topics": _on_the_log,
        "letters": _letters,
        "operations": _operations,
        "app": _app,
    }
    for name, check in checks.items():
        try:
            yield from check(subject)
        except Exception as error:  # what a damaged file has may be anything
            yield _unreadable(name, path, error)


def _finding(level: _Level, check: str, message: str, command: str | None = None) -> Finding:
    return Finding(level=level, check=check, message=message, command=command)


def _unreadable(check: str, path: Path, error: Exception) -> Finding:
    match error:
        case sqlite3.Error():
            told = str(storage_error(error, path))
        case EventlaneError():
            told = str(error)
        case _:
            told = f"{path}: expected to be read, got {type(error).__name__}: {error}"
    return _finding("error", check, f"{told}.")


# --- the file ---------------------------------------------------------------------------------


def _settings(subject: _Subject) -> Iterator[Finding]:
    (mode,) = subject.connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        yield _finding(
            "error",
            "format",
            f"journal_mode is {mode}, expected wal: another program has changed it, and writers "
            "and readers block each other. Stop all processes, then set it.",
            shlex.join(["sqlite3", str(subject.path), "PRAGMA journal_mode = WAL"]),
        )
        return
    users = len({*users_of(subject.path)} - {os.getpid()})
    used = f", open in {users} other process{'es' if users > 1 else ''}" if users else ""
    message = f"Format {FORMAT_VERSION}, {size(subject.path.stat().st_size)}, journal in WAL{used}."
    yield _finding("ok", "format", message)


def _structure(subject: _Subject) -> Iterator[Finding]:
    yield _integrity(subject, "quick_check", "The structure of the file is whole (--full: all).")


def _every_page(subject: _Subject) -> Iterator[Finding]:
    yield _integrity(subject, "integrity_check", "The file and its indexes are whole.")
    connection = subject.connection
    reader = LogReader(connection, str(subject.path))
    read = 0
    for name, partitions in connection.execute("SELECT name, partitions FROM topic").fetchall():
        for partition in range(partitions):
            read += _read_all(reader, name, partition)
    yield _finding("ok", "integrity", f"All batches of the log can be read: {read:,} events.")


def _read_all(reader: LogReader, topic: str, partition: int) -> int:
    """Read a partition as a group would; what is damaged is raised."""
    read = offset = 0
    while records := (batch := reader.fetch(topic, partition, offset, _FETCHED_MAX)).records:
        read += len(records)
        offset = batch.offsets[-1] + 1
    return read


def _integrity(subject: _Subject, check: str, whole: str) -> Finding:
    rows = subject.connection.execute(f"PRAGMA {check}({_DAMAGES_MAX})").fetchall()
    if rows == [("ok",)]:
        return _finding("ok", "integrity", whole)
    damages = "; ".join(" ".join(str(row[0]).split()) for row in rows)
    return _finding(
        "error",
        "integrity",
        f"The file is damaged: stop all processes and restore it from a backup. {damages}.",
        shlex.join(["mv", str(subject.path.parent), f"{subject.path.parent}.damaged"]),
    )


def _wal(subject: _Subject) -> Iterator[Finding]:
    path = subject.path.with_name(f"{subject.path.name}-wal")
    size_bytes = path.stat().st_size if path.exists() else 0
    if size_bytes <= _WAL_BYTES_MAX:
        yield _finding("ok", "wal", f"The write-ahead log has {size(size_bytes)}.")
        return
    yield _finding(
        "warning",
        "wal",
        f"The write-ahead log has {size(size_bytes)}, beside {size(subject.path.stat().st_size)} "
        "of the file: something reads for long, or did (a backup, a check like this one, another "
        "program), and it cannot be written back meanwhile. It is used again afterwards, and goes "
        "when all processes have ended.",
        shlex.join(["lsof", str(path)]),
    )


def _clock(subject: _Subject) -> Iterator[Finding]:
    (newest_ms,) = subject.connection.execute(
        "SELECT max(appended_ms) FROM (SELECT appended_ms FROM batch ORDER BY id DESC LIMIT ?)",
        (_NEWEST_MAX,),
    ).fetchone()
    (seen_ms,) = subject.connection.execute("SELECT max(seen_ms) FROM consumer_group").fetchone()
    ahead_s = (max(newest_ms or 0, seen_ms or 0) - subject.now_ms) / 1000
    if ahead_s <= _AHEAD_S_MAX:
        yield _finding("ok", "clock", "The clock is not behind what the file has.")
        return
    yield _finding(
        "warning",
        "clock",
        f"The clock is {duration(ahead_s)} behind the newest entry of the file: it was set back. "
        "Nothing is lost; retries run so much later, retention removes so much later, and a group "
        "is called absent so much later.",
        "timedatectl",
    )


# --- who uses it ------------------------------------------------------------------------------


def _members(subject: _Subject) -> Iterator[Finding]:
    here = platform.node()
    mount = mount_of(subject.path.parent)
    is_certain = mount is not None and not (mount.is_network or mount.is_doubtful)
    alive = 0
    is_well = True
    for heartbeat, is_locked, is_fresh, written_ms in subject.members.seen():
        who = f"Process {heartbeat.pid} of group {heartbeat.group}"
        is_elsewhere = heartbeat.host != here
        alive += is_locked and is_fresh
        if is_locked and not is_fresh:
            is_well = False
            yield _finding(
                "error",
                "members",
                f"{who} on {heartbeat.host} shows no sign of life, and has not ended: it is frozen "
                "or stopped. Others have its partitions. Let it go on, or end it.",
                f"kill -KILL {heartbeat.pid}",
            )
        elif is_elsewhere and not is_locked:
            if abs(subject.now_ms - written_ms) < _STALE_S * 1000:
                is_well = False
                yield _finding(
                    "error",
                    "members",
                    f"{who} on {heartbeat.host} has just shown a sign of life, and its lock is not "
                    f"seen on {here}: two machines use the directory, and damage the file. Stop "
                    "one of them at once.",
                )
        elif is_elsewhere and not is_certain:
            is_well = False
            yield _finding(
                "warning",
                "members",
                f"{who} runs on {heartbeat.host}, this is {here}: all processes have to be on one "
                "machine, as containers of one are.",
            )
    if is_well:
        yield _finding("ok", "members", f"{counted(alive, 'live member')} of groups.")


def _account(subject: _Subject) -> Iterator[Finding]:
    status = read_status(
        subject.connection,
        subject.members.alive(),
        now_ms=subject.now_ms,
        absent_s_max=subject.limits.absent_s,
        is_alive=subject.members.is_alive,
        disk_bytes_max=subject.limits.disk_bytes_max,
    )
    found = [
        *(each for name, group in status.groups.items() for each in _group(subject, name, group)),
        *_forgotten_types(subject),
    ]
    if not found:
        message = f"{counted(len(status.groups), 'group')}: handled, and the account balances."
        found.append(_finding("ok", "groups", message))
    yield from found
    yield from _topics(subject, status)
    caps = [
        _finding("warning", "caps", f"{sentence}.", subject.command("lag"))
        for sentence in status.near_caps
    ]
    yield from caps or [_finding("ok", "caps", "Nothing is near a cap.")]


def _group(subject: _Subject, name: str, group: GroupStatus) -> Iterator[Finding]:
    keeps = f" The log keeps {size(group.retained_bytes)} for it." if group.open else ""
    if not group.balances:
        yield _finding(
            "error",
            "groups",
            f"{name} does not balance: {group.entered:,} events entered, and what became of them "
            "has another sum. That is a fault of Eventlane: please report it.",
            subject.command("status", "--json"),
        )
    if group.is_absent:
        yield _finding(
            "warning",
            "groups",
            f"{name} is abandoned: no process has handled it for {duration(group.absent_s)}."
            f"{keeps} Start one, or remove the group if nobody needs it any more.",
            subject.command("groups", "remove", name, "--dry-run"),
        )
    elif not group.members:
        yield _finding(
            "warning" if group.open else "ok",
            "groups",
            f"No process handles {name} (since {duration(group.absent_s)}), and "
            f"{counted(group.open, 'event')} wait.{keeps}",
        )
    if group.paused is not None:
        yield _finding(
            "warning",
            "groups",
            f"{name} is paused: {group.paused}.{keeps}",
            subject.command("groups", "resume", name),
        )
    missing = next((each.waits_for for each in group.partitions if each.waits_for), None)
    for sentence in group.blocked[:_BLOCKED_MAX]:
        if missing is not None and "waits for a member" in sentence:
            command = subject.command("groups", "forget", name, missing)
        elif "is paused: size_bytes_max" in sentence:
            command = subject.command("groups", "reset", name, "--to", "first", "--dry-run")
        else:
            command = subject.command("failures", "list", "--group", name)
        yield _finding("error", "groups", f"{name} is blocked: {sentence}.", command)
    if group.lost:
        yield _finding(
            "warning",
            "groups",
            f"{name} has lost {counted(group.lost, 'event')}: they were removed from the log while "
            "it was absent.",
            subject.command("lag", "--group", name),
        )


def _forgotten_types(subject: _Subject) -> Iterator[Finding]:
    """Event types of which a group has only dead members, while others of it live."""
    for group, known in _types(subject).items():
        alive = {each for each in known if subject.members.is_alive(each)}
        handled = set[tuple[str, str]]().union(*(known[each] for each in alive))
        gone = set[tuple[str, str]]().union(*known.values()) - handled
        for topic, event_type in sorted(gone) if alive else ():
            yield _finding(
                "warning",
                "groups",
                f"{group} has no live member with a handler for {event_type} of topic {topic}, "
                "which an ended process had: such events wait. Start one, or forget the type.",
                subject.command("groups", "forget", group, event_type),
            )


def _types(subject: _Subject) -> Mapping[str, Mapping[str, set[tuple[str, str]]]]:
    connection = subject.connection
    groups = connection.execute("SELECT DISTINCT consumer_group FROM member_type").fetchall()
    return {group: handled_types(connection, group) for (group,) in groups}


def _topics(subject: _Subject, status: Status) -> Iterator[Finding]:
    handled = {each.topic for group in status.groups.values() for each in group.partitions}
    if subject.declared is not None:
        handled |= {topic for spec in subject.declared.specs for topic in spec.topics}
    is_bounded = dict(
        subject.connection.execute(
            "SELECT name, coalesce(retention_s, retention_bytes, size_bytes_max) FROM topic"
        ).fetchall()
    )
    for name, topic in sorted(status.topics.items()):
        is_idle = name in handled or name.endswith(DLQ_SUFFIX) or is_bounded[name] is not None
        if is_idle or not topic.size_bytes:
            continue
        yield _finding(
            "warning",
            "topics",
            f"No group handles {name}, and nothing bounds it: the log keeps "
            f"{size(topic.size_bytes)} of it, and all that comes. Subscribe to it, or declare "
            "Topic(…, retention_s=…).",
        )


def _on_the_log(subject: _Subject) -> Iterator[Finding]:
    """Event types that nobody handles."""
    live = {
        each
        for known in _types(subject).values()
        for member, types in known.items()
        if subject.members.is_alive(member)
        for each in types
    }
    yield from unhandled(subject.connection, str(subject.path), live, subject.declared)


# --- what waits for people --------------------------------------------------------------------


def _letters(subject: _Subject) -> Iterator[Finding]:
    open_letters = summaries(subject.connection, group=None, state="open")
    is_well = True
    for group in sorted({each.group for each in open_letters}):
        own = [each for each in open_letters if each.group == group]
        count = sum(each.count for each in own)
        since_s = subject.now_ms / 1000 - min(each.first_at.timestamp() for each in own)
        if since_s > _OPEN_S_MAX:
            is_well = False
            yield _finding(
                "warning",
                "letters",
                f"{group} has {counted(count, 'open dead letter')}, the oldest for "
                f"{duration(since_s)}: replay or archive them.",
                subject.command("failures", "list", "--group", group),
            )
    if is_well:
        count = sum(each.count for each in open_letters)
        message = f"{counted(count, 'open dead letter')}, none for long."
        yield _finding("ok", "letters", message if count else "No open dead letters.")


def _operations(subject: _Subject) -> Iterator[Finding]:
    members: dict[str, int] = {}
    for each in subject.members.alive():
        members[each.group] = members.get(each.group, 0) + 1
    is_well = True
    for operation in operations(subject.connection, state=None, limit=100, members=members):
        waits = operation.waiting_for or (
            f"paused: {operation.why}" if operation.state == "paused" else None
        )
        if operation.has_ended or waits is None:
            continue
        is_well = False
        yield _finding(
            "warning",
            "operations",
            f"Operation {operation.id}, a {operation.kind} of "
            f"{counted(operation.total, 'dead letter')}, waits: {waits}.",
            subject.command("ops", "show", operation.id),
        )
    if is_well:
        yield _finding("ok", "operations", "No operation waits.")


def _app(subject: _Subject) -> Iterator[Finding]:
    if subject.declared is not None:
        yield from against(subject.connection, subject.declared, subject.members, subject.command)
