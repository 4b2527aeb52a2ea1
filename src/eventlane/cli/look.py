"""Commands that only look: status, topics, failures, tail, groups list."""

import argparse
import sys
from typing import Any, Literal
from uuid import UUID

from eventlane import App, ConfigError, DeadLetter, NotFound
from eventlane.cli.output import add_json, show, table

__all__ = ["add_commands", "letter_id"]

_STATES = ("open", "replaying", "resolved", "archived", "edited")
_COUNTS = (
    *("entered", "done", "waiting", "in_flight", "held", "parked", "dead"),
    *("archived", "skipped", "lost"),
)
_ALWAYS = ("done", "waiting", "parked", "dead")
"""Shown even where they are 0 in all groups."""
_APART = ("header_block", "history", "error_stack")
"""Fields of a dead letter that are not a line of the table."""


def add_commands(commands: Any) -> None:
    """Add the commands."""
    status = commands.add_parser("status", help="where every event of every group is")
    status.set_defaults(does=_status)
    add_json(status)
    topics = commands.add_parser("topics", help="the topics and their size")
    topics.set_defaults(does=_topics)
    add_json(topics)
    failures = commands.add_parser("failures", help="dead letters").add_subparsers(required=True)
    listed = failures.add_parser("list", help="dead letters, the oldest first")
    listed.add_argument("--group", help="of this group only")
    listed.add_argument(
        "--state", choices=(*_STATES, "all"), default="open", help="default: %(default)s"
    )
    listed.add_argument("--limit", type=int, default=50, help="default: %(default)s")
    listed.set_defaults(does=_list)
    add_json(listed)
    shown = failures.add_parser("show", help="one dead letter, whole")
    shown.add_argument("id")
    shown.set_defaults(does=_show)
    add_json(shown)
    tail = commands.add_parser("tail", help="the messages of a topic as they come")
    tail.add_argument("topic")
    tail.add_argument("--from-first", action="store_true", help="and those that are there already")
    tail.add_argument("--no-follow", action="store_true", help="end at the end of the log")
    tail.set_defaults(does=_tail)
    add_json(tail)


async def _status(app: App, options: argparse.Namespace) -> int:
    status = await app.status()
    if options.json:
        show(status)
        return 0
    groups = status.groups
    counts = [
        each
        for each in _COUNTS
        if each in _ALWAYS or any(getattr(group, each) for group in groups.values())
    ]
    table(
        ("group", *(each.replace("_", " ") for each in counts), "members", "paused"),
        (
            (name, *(getattr(group, each) for each in counts), group.members, group.paused)
            for name, group in groups.items()
        ),
    )
    return 0


async def _topics(app: App, options: argparse.Namespace) -> int:
    topics = (await app.status()).topics
    if options.json:
        show(topics)
        return 0
    table(
        ("topic", "partitions", "published", "bytes kept"),
        (
            (name, topic.partitions, topic.published, topic.size_bytes)
            for name, topic in topics.items()
        ),
    )
    return 0


async def _list(app: App, options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: expected a number, 1 or more.")
    groups = (await app.status()).groups
    if options.group is not None and options.group not in groups:
        raise NotFound(f"group {options.group!r}: expected one of {', '.join(groups) or 'none'}.")
    letters = await app.dead_letters(
        group=options.group,
        state=None if options.state == "all" else options.state,
        limit=options.limit + 1,
    )
    more = len(letters) > options.limit
    letters = letters[: options.limit]
    if more:
        print(f"only the first {options.limit}; there are more: --limit N", file=sys.stderr)
    elif not letters:
        print("none", file=sys.stderr)
    if options.json:
        show(letters)
        return 0
    table(
        ("id", "group", "key", "error", "attempts", "behind", "last failed"),
        (
            (
                str(each.id),
                each.group,
                each.key,
                f"{each.error_class}: {each.error_message[:80]}",
                each.attempts,
                each.parked_followers,
                f"{each.last_failed_at:%Y-%m-%d %H:%M:%S}",
            )
            for each in letters
        ),
    )
    return 0


async def _show(app: App, options: argparse.Namespace) -> int:
    letter = await _find(app, letter_id(options.id))
    if options.json:
        show(letter)
        return 0
    table(
        ("field", "value"),
        (
            (name.replace("_ms", "_at"), getattr(letter, name.replace("_ms", "_at")))
            for name in DeadLetter.__struct_fields__
            if name not in _APART
        ),
    )
    print()
    table(
        ("attempt", "after s (planned)", "after s (actual)", "took s", "error", "host"),
        (
            (
                each.number,
                f"{each.planned_delay_s:.3f}",
                f"{each.actual_delay_s:.3f}",
                f"{each.duration_s:.3f}",
                each.error_class,
                each.host,
            )
            for each in letter.history
        ),
    )
    print(f"\n{letter.error_stack}")
    return 0


async def _find(app: App, wanted: UUID) -> DeadLetter:
    for letter in await app.dead_letters(ids=[wanted], state=None):
        return letter
    raise NotFound(
        f"dead letter {wanted}: there is none with this id. `eventlane failures list` has them."
    )


async def _tail(app: App, options: argparse.Namespace) -> int:
    from_first: bool = options.from_first or options.no_follow
    start: Literal["first", "now"] = "first" if from_first else "now"
    async for message in app.read(options.topic, start=start, follow=not options.no_follow):
        if options.json:
            show({"position": message.position, "event_id": message.event_id, "time": message.time})
            continue
        value = "(tombstone)" if message.value is None else message.value.decode("utf-8", "replace")
        key = "" if message.key is None else message.key.decode("utf-8", "replace")
        print(
            f"{message.partition}:{message.offset} {message.event_type} {key} {value}", flush=True
        )
    return 0


def letter_id(text: str) -> UUID:
    """The id that an operator typed.

    Raises:
        ConfigError: It is none.
    """
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(
            "expected the id of a dead letter, as `eventlane failures list` prints it, got "
            f"{text!r}."
        ) from None
