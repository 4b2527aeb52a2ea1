"""Commands that look at groups and topics: is anything wrong, and what does it hold up?"""

import argparse
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from eventlane import App, GroupStatus, Status
from eventlane.cli.arguments import add_json, command, place
from eventlane.cli.output import Column, heading, say, say_command, show, table
from eventlane.cli.words import duration, size
from eventlane.wording import counted

__all__ = ["add_commands", "dead_count", "members_count"]

_COUNTS = ("waiting", "in_flight", "held", "parked", "dead", "done")
_RARE = ("archived", "skipped", "edited", "lost")
"""Shown where they are not 0 in all groups."""
_BLOCKED_MAX = 5
_NO_GROUPS = "No groups yet: one is there once a process has handled it."


def add_commands(commands: Any) -> None:
    """Add the commands."""
    status = commands.add_parser(
        "status", help="where every event of every group is, and what is wrong"
    )
    status.set_defaults(does=_status)
    add_json(status)
    lag = commands.add_parser("lag", help="how far groups are behind, and what the log keeps")
    lag.add_argument("--group", help="this one only")
    lag.add_argument("--all", action="store_true", help="also partitions that are not behind")
    lag.set_defaults(does=_lag)
    add_json(lag)
    topics = commands.add_parser("topics", help="the topics and their size")
    topics.set_defaults(does=_topics)
    add_json(topics)


def dead_count(count: int) -> Text:
    """How many are dead; what somebody has to look at is red."""
    return Text(f"{count:,}", style="bold red" if count else "")


def members_count(group: GroupStatus) -> Text:
    """How many processes handle a group; yellow where there is none."""
    return Text(f"{group.members:,}", style="" if group.members else "yellow")


# --- status -----------------------------------------------------------------------------------


async def _status(app: App, options: argparse.Namespace) -> int:
    status = await app.status()
    if options.json:
        show(status)
        return 0
    if not status.groups:
        say(_NO_GROUPS)
        return 0
    rare = [each for each in _RARE if any(getattr(g, each) for g in status.groups.values())]
    say(f"{place(app)} at {status.as_of:%Y-%m-%d %H:%M:%S} UTC", style="dim")
    table(
        (
            Column("group", least=12),
            "members",
            *(each.replace("_", " ") for each in _COUNTS),
            *(Column(each, spare=at + 1) for at, each in enumerate(rare)),
        ),
        (
            (
                name,
                members_count(group),
                *(
                    dead_count(group.dead) if each == "dead" else getattr(group, each)
                    for each in (*_COUNTS, *rare)
                ),
            )
            for name, group in sorted(status.groups.items())
        ),
    )
    print()
    sentences = list(_sentences(status))
    for style, sentence in sentences:
        say(sentence, style=style, indent="- ")
    if not sentences:
        say("Nothing is dead, blocked or paused, and all groups are handled.", style="green")
    hints = dict(_hints(status, options))
    if hints:
        print()
    for why, line in hints.items():
        say_command(why, line)
    return 0


def _sentences(status: Status) -> Iterator[tuple[str, str]]:
    """What is wrong, and what it costs: each with its style."""
    for sentence in status.near_caps:
        yield "yellow", f"{sentence}."
    for name, group in sorted(status.groups.items()):
        holds = list(_holds(name, group))
        for style, sentence in holds:
            is_last = sentence == holds[-1][1]
            keeps = f" The log keeps {size(group.retained_bytes)} for it." if group.open else ""
            yield style, sentence + (keeps if is_last else "")
        if group.dead:
            behind = (
                f"; {counted(group.parked, 'event')} parked, behind them or until a retry"
                if group.parked
                else ""
            )
            yield "", f"{name} has {counted(group.dead, 'open dead letter')}{behind}."
        if group.pending:
            yield (
                "",
                (
                    f"{name} has yet to carry out what operators asked for: "
                    f"{counted(group.pending, 'dead letter')}."
                ),
            )
        if group.lost:
            yield (
                "red",
                (
                    f"{name} has lost {counted(group.lost, 'event')}: they were "
                    "removed from the log while it was absent."
                ),
            )
        if not group.balances:
            yield (
                "bold red",
                (
                    f"{name} does not balance: {group.entered:,} events entered, and the columns "
                    "have another sum. That is a fault of Eventlane: please report it."
                ),
            )


def _holds(name: str, group: GroupStatus) -> Iterator[tuple[str, str]]:
    """What keeps a group from going on."""
    for each in group.blocked[:_BLOCKED_MAX]:
        yield "red", f"{name} is blocked: {each}."
    more = len(group.blocked) - _BLOCKED_MAX
    if more > 0:
        yield "red", f"{name} is blocked in {more} more ways (--json has them)."
    if group.paused is not None:
        yield "yellow", f"{name} is paused: {group.paused}."
    if not group.members:
        waits = f", and {counted(group.open, 'event')} of the log wait" if group.open else ""
        since = duration(group.absent_s)
        yield (
            "yellow",
            (
                f"{name} is absent: no process has handled it for {since}{waits}. Start one, or "
                "remove the group if nobody needs it any more."
                if group.is_absent
                else f"No process handles {name} (since {since}){waits}."
            ),
        )


def _hints(status: Status, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    groups = status.groups.items()
    if any(group.dead for _, group in groups):
        yield "what is dead", command(options, "failures", "list")
    if any(group.pending for _, group in groups):
        yield "what is asked", command(options, "ops", "list")
    for name, group in groups:
        if any(each.is_cut for each in group.partitions):
            yield (
                "see the reset",
                command(options, "groups", "reset", name, "--to", "first", "--dry-run"),
            )
            break
    for name, group in groups:
        missing = next((each.waits_for for each in group.partitions if each.waits_for), None)
        if missing is not None:
            yield "forget the type", command(options, "groups", "forget", name, missing)
            break
    for name, group in groups:
        if group.paused is not None:
            yield "let it go on", command(options, "groups", "resume", name)
            break


# --- lag --------------------------------------------------------------------------------------


async def _lag(app: App, options: argparse.Namespace) -> int:
    status = await app.status()
    names = sorted(status.groups) if options.group is None else [options.group]
    groups = {name: status.group(name) for name in names}
    if options.json:
        shown = ("open", "parked", "retained_bytes", "members", "partitions")
        show({n: {each: getattr(group, each) for each in shown} for n, group in groups.items()})
        return 0
    if not groups:
        say(_NO_GROUPS)
        return 0
    table(
        (
            Column("group", least=12),
            "behind",
            "parked",
            Column("log keeps", is_right=True),
            "members",
        ),
        (
            (name, group.open, group.parked, size(group.retained_bytes), members_count(group))
            for name, group in groups.items()
        ),
    )
    rows = [
        (name, each.topic, each.partition, each.watermark, each.end, each.open)
        for name, group in groups.items()
        for each in group.partitions
        if options.all or each.open
    ]
    if not rows:
        print()
        say("No partition is behind.")
        return 0
    heading("By partition" if options.all else "Partitions that are behind")
    table(
        (
            *(Column("group", least=12), Column("topic", least=12)),
            *("partition", "watermark", "end", "behind"),
        ),
        rows,
    )
    return 0


# --- topics -----------------------------------------------------------------------------------


async def _topics(app: App, options: argparse.Namespace) -> int:
    topics = (await app.status()).topics
    if options.json:
        show(topics)
        return 0
    table(
        (
            Column("topic", least=20),
            *("partitions", "published", Column("log keeps", is_right=True)),
            Column("at most", is_right=True),
        ),
        (
            (
                *(name, topic.partitions, topic.published, size(topic.size_bytes)),
                "" if topic.size_bytes_max is None else size(topic.size_bytes_max),
            )
            for name, topic in sorted(topics.items())
        ),
    )
    return 0
