"""`eventlane tail`, `trace` and `lane`: where events are, and why a key waits."""

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.text import Text

from eventlane import App, LaneView, Message, TracedEvent
from eventlane.cli.arguments import add_json, add_limit, command, id_of
from eventlane.cli.letters import now_of
from eventlane.cli.output import (
    Column,
    fields,
    heading,
    note,
    say,
    say_command,
    screen_width,
    show,
    show_line,
    table,
    working,
)
from eventlane.cli.words import ago, moment, one_line

__all__ = ["add_commands"]

_LAST = 20
_STYLES = {
    **dict.fromkeys(("dead", "blocked"), "red"),
    **dict.fromkeys(("held", "parked", "replaying"), "yellow"),
    **dict.fromkeys(("settled", "resolved", "free"), "green"),
}


def add_commands(commands: Any) -> None:
    """Add the commands."""
    tail = commands.add_parser(
        "tail",
        help="the messages of a topic: the last ones, or as they come",
        description="The last messages of a topic. With --start first the first ones, with "
        "--follow those that come from now on.",
    )
    tail.add_argument("topic", metavar="TOPIC")
    tail.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    tail.add_argument(
        "--start", choices=("first", "now"), help="from the first message that is kept, or from now"
    )
    add_limit(tail, default=None, help=f"so many (default: the last {_LAST}, else all)")
    tail.set_defaults(does=_tail)
    trace = commands.add_parser("trace", help="what became of an event in each group")
    trace.add_argument("id", metavar="EVENT_ID", help="of an event, or of a dead letter")
    trace.add_argument("--chain", action="store_true", help="also all with its correlation id")
    add_limit(trace, default=1000, help="so many events that it caused (default: %(default)s)")
    trace.set_defaults(does=_trace)
    lane = commands.add_parser("lane", help="why a key waits")
    lane.add_argument("topic", metavar="TOPIC")
    lane.add_argument("key", metavar="KEY")
    lane.set_defaults(does=_lane)
    for each in (tail, trace, lane):
        add_json(each)


# --- tail -------------------------------------------------------------------------------------


async def _tail(app: App, options: argparse.Namespace) -> int:
    if options.start is None and not options.follow:
        with working(f"reading {options.topic} to its end"):
            last = await _last(app, options.topic, options.limit or _LAST)
        for message in last:
            _print_message(message, options)
        return 0
    start: Literal["first", "now"] = options.start or "now"
    follow: bool = options.follow or start == "now"
    if start == "now" and options.topic in (await app.status()).topics:
        note(f"waiting for messages of {options.topic}; Ctrl-C ends it")
    left = options.limit
    async for message in app.read(options.topic, start=start, follow=follow):
        _print_message(message, options)
        left = None if left is None else left - 1
        if left == 0:
            break
    return 0


async def _last(app: App, topic: str, count: int) -> list[Message]:
    """The newest messages, oldest first. Partitions are read one after the other."""
    last: dict[int, deque[Message]] = {}
    async for message in app.read(topic):
        last.setdefault(message.partition, deque(maxlen=count)).append(message)
    together = [message for each in last.values() for message in each]
    return sorted(together, key=lambda each: (each.time, each.partition, each.offset))[-count:]


def _print_message(message: Message, options: argparse.Namespace) -> None:
    if options.json:
        show_line(message)
        return
    value = "(tombstone)" if message.value is None else one_line(message.value)
    line = Text(
        f"{message.time:%Y-%m-%d %H:%M:%S}  {message.topic}[{message.partition}]:{message.offset}  "
        f"{message.event_type or '(unknown type)'}  {one_line(message.key)}  {value}"
    )
    if sys.stdout.isatty():  # whoever reads from a pipe looks for something in it
        line.truncate(screen_width(), overflow="ellipsis")
    print(line.plain, flush=True)


# --- trace ------------------------------------------------------------------------------------


async def _trace(app: App, options: argparse.Namespace) -> int:
    event_id = id_of(options.id)
    for letter in await app.dead_letters(ids=[event_id], state=None):
        note(f"{event_id} is a dead letter; its event is {letter.event_id}")
        event_id = letter.event_id
    with working("reading the log"):
        trace = await app.trace(event_id, with_chain=options.chain, limit=options.limit)
    if options.json:
        show(trace)
        return 0
    now = await now_of(app)
    event = trace.event
    say(f"{event.event_type or 'event of unknown type'} {event.event_id}", style="bold")
    fields(
        (
            ("place", f"{event.topic}[{event.partition}] at offset {event.offset}"),
            ("", "" if trace.is_on_log else "retention has removed it; a group has kept it"),
            ("key", "(none)" if event.key is None else one_line(event.key)),
            ("published", moment(event.time, now)),
            ("correlation id", event.correlation_id),
            ("caused by", event.causation_id),
            ("also at", ", ".join(f"{t}[{p}]:{at}" for t, p, at in trace.copies)),
        )
    )
    heading("What became of it in each group")
    if trace.groups:
        table(
            (
                *(Column("group", least=12), "state", "attempts", Column("due", spare=1)),
                *("dead letter", Column("error", least=10, spare=2)),
            ),
            (
                (
                    each.group,
                    Text(each.state.replace("_", " "), style=_STYLES.get(each.state, "")),
                    each.attempts,
                    ago(each.due_at, now),
                    "" if each.dead_letter is None else str(each.dead_letter),
                    each.error,
                )
                for each in trace.groups
            ),
        )
    else:
        say(f"No group reads {event.topic}.")
    _print_events("What came of it", trace.caused)
    if options.chain:
        _print_events("All with its correlation id", trace.chain)
    if not trace.is_complete:
        note(f"There is more: only {options.limit:,} events were looked for (--limit N).")
    print()
    for each in trace.groups:
        if each.dead_letter is not None:
            say_command("why", command(options, "failures", "show", each.dead_letter))
    return 0


def _print_events(what: str, events: Sequence[TracedEvent]) -> None:
    if not events:
        return
    heading(what)
    table(
        (
            *("event", Column("type", least=8), Column("place", least=18)),
            Column("key", least=8, spare=1),
        ),
        (
            (
                str(each.event_id),
                each.event_type or "(unknown)",
                f"{each.topic}[{each.partition}]:{each.offset}",
                one_line(each.key),
            )
            for each in events
        ),
    )


# --- lane -------------------------------------------------------------------------------------


async def _lane(app: App, options: argparse.Namespace) -> int:
    key = os.fsencode(options.key)  # as it was typed, be it UTF-8 or not
    lanes = await app.lane(options.topic, key)
    if options.json:
        show(lanes)
        return 0
    if not lanes:
        say(f"No group reads {options.topic}: nothing waits.")
        return 0
    now = await now_of(app)
    say(f"key {one_line(key)} of {options.topic}, in partition {lanes[0].partition}", style="bold")
    table(
        (
            Column("group", least=12),
            *("state", "offset", "attempts", Column("due", spare=1), "parked", "waiting"),
            Column("paused", least=8, spare=2),
        ),
        (
            (
                each.group,
                Text(each.state, style=_STYLES[each.state]),
                None if each.front is None else each.front.offset,
                each.attempts,
                ago(each.due_at, now),
                each.parked,
                each.waiting,
                each.paused,
            )
            for each in lanes
        ),
    )
    print()
    for each in lanes:
        say(f"{each.group}: {each.why}.", indent="- ")
        if each.gaps:
            passed = ", ".join(map(str, each.gaps))
            say(f"{each.group} has passed over dead letters at {passed}.", indent="- ")
    print()
    for why, line in _hints(lanes, options):
        say_command(why, line)
    return 0


def _hints(lanes: Sequence[LaneView], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for each in lanes:
        if each.dead_letter is not None:
            yield "what died", command(options, "failures", "show", each.dead_letter)
        if each.paused is not None:
            yield "let it go on", command(options, "groups", "resume", each.group)
        if each.waits_for is not None:
            forget = command(options, "groups", "forget", each.group, each.waits_for)
            yield "if none will have a handler", forget
        if each.is_cut:
            reset = command(options, "groups", "reset", each.group, "--to", "first", "--dry-run")
            yield "what a reset would do", reset
    fronts = [each.front.event_id for each in lanes if each.front and each.front.event_id]
    for event_id in dict.fromkeys(fronts):
        yield "the event", command(options, "trace", event_id)
