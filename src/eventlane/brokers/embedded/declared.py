"""What an app declares, against what the file has."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from eventlane.brokers.embedded.groups import check_options
from eventlane.brokers.embedded.log import LogReader, check_partitions
from eventlane.brokers.embedded.members import Members
from eventlane.brokers.embedded.owners import check_apps, handled_types
from eventlane.errors import ConfigError
from eventlane.message import EVENT_TYPE, decode_headers
from eventlane.settlement import GroupSpec
from eventlane.topic import DLQ_SUFFIX
from eventlane.views import Finding
from eventlane.wording import counted

__all__ = ["Declared", "against", "unhandled"]

_LOOKED_AT_MAX = 500
"""Events of each partition, the newest: that a type is rare is no reason to read the whole log."""


class Declared(NamedTuple):
    """What an app says of itself."""

    app: str
    durability: str | None
    specs: Sequence[GroupSpec]
    topics: Mapping[str, int | None]
    """Those that it handles, with the number of partitions that it asks for."""
    creates_topics: bool


def against(
    connection: sqlite3.Connection,
    declared: Declared,
    members: Members,
    command: Callable[..., str],
) -> Iterator[Finding]:
    """What would be refused when the app starts, and what it has left behind."""
    found = [
        *_topics(connection, declared),
        *_groups(connection, declared, members),
        *_left(connection, declared, members, command),
    ]
    if not found:
        durability = declared.durability or "fsync"
        survives = "power failures" if durability == "fsync" else "a killed process, and no more"
        found.append(
            Finding(
                level="ok",
                check="app",
                message=f"App {declared.app!r} fits: {counted(len(declared.specs), 'group')} on "
                f"{counted(len(declared.topics), 'topic')}; durability {durability}, what it "
                f"publishes survives {survives}.",
            )
        )
    yield from found


def _error(error: ConfigError | str) -> Finding:
    text = str(error)
    return Finding(level="error", check="app", message=text if text.endswith(".") else f"{text}.")


def _topics(connection: sqlite3.Connection, declared: Declared) -> Iterator[Finding]:
    stored: dict[str, int] = dict(
        connection.execute("SELECT name, partitions FROM topic").fetchall()
    )
    for name, partitions in declared.topics.items():
        if name in stored:
            try:
                check_partitions(name, stored[name], partitions)
            except ConfigError as error:
                yield _error(error)
        elif not declared.creates_topics:
            yield _error(
                f"topic {name!r}: expected it to exist, since App(create_topics=False), got none: "
                "create it, or let the app"
            )


def _groups(
    connection: sqlite3.Connection, declared: Declared, members: Members
) -> Iterator[Finding]:
    for spec in declared.specs:
        known = handled_types(connection, spec.name)
        try:
            check_options(connection, spec, member="", members=members)
            check_apps(spec, known, {each: members.app_of(each) for each in known})
        except ConfigError as error:
            yield _error(error)


def _left(
    connection: sqlite3.Connection,
    declared: Declared,
    members: Members,
    command: Callable[..., str],
) -> Iterator[Finding]:
    """Groups of this app, and topics of its groups, that it does not declare any more."""
    specs = {spec.name: spec for spec in declared.specs}
    alive = {each.group for each in members.alive()}
    for (name,) in connection.execute(
        "SELECT name FROM consumer_group WHERE app = ? ORDER BY name", (declared.app,)
    ).fetchall():
        if name not in specs and name not in alive:
            yield Finding(
                level="warning",
                check="app",
                message=f"App {declared.app!r} has handled group {name} and does not declare it: "
                "the log is kept for it. Was it renamed (groups rename), or is it to be removed?",
                command=command("groups", "remove", name, "--dry-run"),
            )
    for name, topic in connection.execute(
        "SELECT DISTINCT consumer_group, topic FROM progress ORDER BY 1, 2"
    ).fetchall():
        if name in specs and topic not in specs[name].topics and name not in alive:
            yield Finding(
                level="warning",
                check="app",
                message=f"Group {name} has a position in topic {topic}, which app "
                f"{declared.app!r} does not handle: the log of it is kept for this group. Handle "
                "it again, or remove the group and let it begin anew.",
                command=command("groups", "remove", name, "--dry-run"),
            )


def unhandled(
    connection: sqlite3.Connection,
    path_shown: str,
    live: set[tuple[str, str]],
    declared: Declared | None,
) -> Iterator[Finding]:
    """Event types among the newest of each topic that no group handles; `live`: who lives does."""
    handled = set(live)
    if declared is not None:
        handled |= {each for spec in declared.specs for each in spec.types}
    handled_topics = {topic for topic, _ in handled}
    reader = LogReader(connection, path_shown)
    for topic, partitions in connection.execute(
        "SELECT name, partitions FROM topic ORDER BY name"
    ).fetchall():
        if topic not in handled_topics or topic.endswith(DLQ_SUFFIX):
            continue
        for event_type in sorted(_types_on(reader, topic, partitions)):
            if (topic, event_type) not in handled:
                yield Finding(
                    level="warning",
                    check="topics",
                    message=f"{event_type} is on topic {topic}, and no group has a handler for it: "
                    "all that handle the topic skip it. Is a subscription missing, or a name "
                    "misspelt?",
                )


def _types_on(reader: LogReader, topic: str, partitions: int) -> set[str]:
    found = reader.topic(topic)
    assert found is not None
    types: set[str] = set()
    for partition, (first, end) in enumerate(reader.ends(found)):
        if partition >= partitions or first == end:
            continue
        start = max(first, end - _LOOKED_AT_MAX)
        records = reader.fetch(topic, partition, start, end - start).records
        for block in {each.headers for each in records}:
            try:
                name = decode_headers(block).get(EVENT_TYPE)
            except ValueError:
                continue  # from elsewhere, and no matter of a type
            if name is not None:
                types.add(name.decode("utf-8", "replace"))
    return types
