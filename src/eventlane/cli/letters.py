"""`eventlane failures`: which kinds of failure there are, and everything about one of them."""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from eventlane import App, ConfigError, DeadLetter, FailureSummary, LetterEvent, NotFound
from eventlane.cli.arguments import (
    add_conditions,
    add_json,
    add_limit,
    add_state,
    command,
    id_of,
    query_of,
    state_of,
)
from eventlane.cli.output import (
    Column,
    fields,
    heading,
    note,
    plain,
    say,
    say_command,
    show,
    table,
)
from eventlane.cli.words import ago, lines, moment, one_line, size
from eventlane.wording import counted

__all__ = ["add_commands", "now_of"]

_STATES = ("open", "replaying", "resolved", "archived", "edited")
_CAUSES_MAX = 10
"""That are shown above a list of letters; --by-cause shows all."""
_PAYLOAD_BYTES_MAX = 8_000
_BINARY_BYTES_MAX = 256


def add_commands(commands: Any) -> None:
    """Add the commands."""
    failures = commands.add_parser("failures", help="dead letters").add_subparsers(
        required=True, metavar="list|show"
    )
    listed = failures.add_parser(
        "list",
        help="by cause, then one by one",
        description="Dead letters: counted by their cause, the most frequent first, then one by "
        "one in the order in which they died.",
    )
    add_conditions(listed)
    add_state(listed, _STATES, default="open")
    listed.add_argument("--by-cause", action="store_true", help="the causes only")
    add_limit(listed, default=20, help="so many letters (default: %(default)s)")
    listed.add_argument("--after", metavar="ID", help="those that died after this one")
    listed.set_defaults(does=_list)
    add_json(listed)
    shown = failures.add_parser("show", help="one dead letter, whole")
    shown.add_argument("id", metavar="ID")
    shown.set_defaults(does=_show)
    add_json(shown)


# --- list -------------------------------------------------------------------------------------


async def _list(app: App, options: argparse.Namespace) -> int:
    state = state_of(options, _STATES)
    now = await now_of(app, options.group)
    if options.by_cause:
        _refuse_what_has_no_count(options)
        causes = await _causes(app, options)
        if options.json:
            show(causes)
        else:
            _print_causes(causes, options, now)
        return 0
    letters = await app.dead_letters(
        state=state,
        query=query_of(options),
        limit=options.limit + 1,
        after=None if options.after is None else id_of(options.after),
    )
    more = len(letters) > options.limit
    letters = letters[: options.limit]
    if options.json:
        show(letters)
    else:
        if options.query is None and options.after is None and options.state != "all":
            causes = await _causes(app, options)
            if sum(each.count for each in causes) > len(causes):
                _print_causes(causes[:_CAUSES_MAX], options, now, of=len(causes))
                print()
        _print_letters(letters, options, now)
    if more:
        note(
            f"There are more: --limit N, or the next ones by --after {letters[-1].id}",
        )
    return 0


async def now_of(app: App, group: str | None = None) -> datetime:
    """The broker's present time, and that there is such a group.

    Raises:
        NotFound: There is none.
    """
    status = await app.status()
    if group is not None:
        status.group(group)
    return status.as_of


def _refuse_what_has_no_count(options: argparse.Namespace) -> None:
    if options.query is not None or options.after is not None or options.state == "all":
        raise ConfigError(
            "--by-cause counts what one --state has, of a --group or --fingerprint where that is "
            "given: leave --query, --after and --state all out."
        )


async def _causes(app: App, options: argparse.Namespace) -> list[FailureSummary]:
    causes = await app.failures(group=options.group, state=options.state)
    wanted = options.fingerprint
    return [each for each in causes if wanted is None or each.fingerprint == wanted]


def _print_causes(
    causes: Sequence[FailureSummary],
    options: argparse.Namespace,
    now: datetime,
    *,
    of: int | None = None,
) -> None:
    total = sum(each.count for each in causes)
    shown = (
        f"the {len(causes)} most frequent of {of} causes"
        if of and of > len(causes)
        else (counted(len(causes), "cause"))
    )
    say(f"{counted(total, f'{options.state} dead letter')}, {shown}", style="bold")
    if not causes:
        return
    table(
        (
            *("count", Column("group", least=6), "newest", "oldest"),
            *("fingerprint", Column("example", spare=1)),
        ),
        (
            (
                each.count,
                each.group,
                ago(each.newest_at, now),
                ago(each.first_at, now),
                each.fingerprint,
                str(each.example),
            )
            for each in causes
        ),
        below=[_error(each.exception, each.message) for each in causes],
    )


def _print_letters(
    letters: Sequence[DeadLetter], options: argparse.Namespace, now: datetime
) -> None:
    is_mixed = options.state == "all"
    if not letters:
        is_all = options.query is None and options.after is None and options.fingerprint is None
        of = "" if options.group is None else f" of {options.group}"
        state = "" if is_mixed else f"{options.state} "
        say(f"No {state}dead letters{of}." if is_all else "No dead letter meets that.")
        return
    table(
        (
            *("id", Column("key", least=8), Column("error", least=14)),
            *(Column("group", least=6, spare=3), Column("attempts", spare=2)),
            *(Column("behind", spare=1), Column("state", spare=1 - is_mixed), "died"),
        ),
        (
            (
                str(each.id),
                one_line(each.key),
                _error(each.error_class, each.error_message),
                each.group,
                each.attempts,
                each.parked_followers,
                each.state if is_mixed else "",
                ago(each.last_failed_at, now),
            )
            for each in letters
        ),
    )
    print()
    say_command("one, whole", command(options, "failures", "show", letters[0].id))
    if options.state == "open":
        cause = ("--fingerprint", letters[0].fingerprint)
        say_command("again, try out", command(options, "replay", *cause, "--dry-run"))


def _error(name: str, message: str) -> str:
    return f"{name}: {message}" if message else name


# --- show -------------------------------------------------------------------------------------


async def _show(app: App, options: argparse.Namespace) -> int:
    letter = await _found(app, id_of(options.id), options)
    changes = await app.history(letter)
    if options.json:
        show({**plain(letter), "changes": plain(changes)})
        return 0
    now = await now_of(app)
    _print_letter(letter, now)
    _print_payload(letter.value)
    if letter.headers:
        heading("Headers")
        fields((name, one_line(value)) for name, value in letter.headers.items())
    _print_attempts(letter)
    heading("Stack")
    print(lines(letter.error_stack.rstrip()))
    if changes:
        _print_changes(changes, now)
    print()
    for why, line in _next(letter, options):
        say_command(why, line)
    return 0


async def _found(app: App, wanted: UUID, options: argparse.Namespace) -> DeadLetter:
    for letter in await app.dead_letters(ids=[wanted], state=None):
        return letter
    raise NotFound(
        f"dead letter {wanted}: there is none. `{command(options, 'failures', 'list')}` has them; "
        f"if that is the id of an event: `{command(options, 'trace', wanted)}`."
    )


def _print_letter(letter: DeadLetter, now: datetime) -> None:
    for line in _error(letter.error_class, letter.error_message).splitlines():
        say(line, style="bold red")
    say(_standing(letter))
    print()
    cause = "" if letter.cause_class is None else f", caused by {letter.cause_class}"
    fields(
        (
            ("dead letter", letter.id),
            ("event", f"{letter.event_type or 'of unknown type'}, id {letter.event_id}"),
            ("key", "(none)" if letter.key is None else one_line(letter.key)),
            ("place", f"{letter.topic}[{letter.partition}] at offset {letter.offset}"),
            ("group", f"{letter.group}, handler {letter.handler}"),
            ("error", f"{letter.error_module}.{letter.error_class}{cause}"),
            ("fingerprint", letter.fingerprint),
            ("disposition", f"{letter.disposition}, in stage {letter.stage}"),
            ("attempts", _attempts(letter)),
            ("published", moment(letter.produced_at, now)),
            ("first failed", moment(letter.first_failed_at, now)),
            ("last failed", moment(letter.last_failed_at, now)),
            ("policy", letter.policy),
            ("app", " ".join(filter(None, (letter.app, letter.app_version)))),
            ("process", f"pid {letter.pid} on {letter.host}"),
            ("correlation id", letter.correlation_id),
            ("causation id", letter.causation_id),
            ("trace id", letter.trace_id),
            ("edited from", letter.edited_from),
        )
    )


def _standing(letter: DeadLetter) -> str:
    """Its state, and what that does to later events of its key."""
    behind = f"{counted(letter.parked_followers, 'event')} parked behind it"
    if letter.state == "replaying":
        return f"It is being replayed, with {behind}."
    if letter.state != "open":
        return f"It is {letter.state}."
    match letter.on_dead:
        case "continue":
            return "It is open, and its lane has gone on without it: a replay of it runs late."
        case "stop":
            return "It is open, and stops its whole partition until it is replayed or archived."
        case "park":
            return f"It is open, and closes its lane until it is replayed or archived; {behind}."


def _attempts(letter: DeadLetter) -> str:
    more = [
        counted(count, what)
        for count, what in (
            (letter.timeouts, "time-out"),
            (letter.crashes, "crash of a process"),
            (letter.replay_count, "replay"),
        )
        if count
    ]
    return ", ".join((f"{letter.attempts:,}", *more))


def _print_payload(value: bytes | None) -> None:
    heading("Payload" if value is None else f"Payload, {size(len(value))}")
    if value is None:
        print("(tombstone)")
        return
    text = _readable(value)
    shown = text[:_PAYLOAD_BYTES_MAX]
    print(lines(shown))
    if len(shown) < len(text):
        print("… (--json has all of it)")


def _readable(value: bytes) -> str:
    """JSON with its numbers as they were written, or text, or bytes as hexadecimal numbers."""
    try:
        return msgspec.json.format(value, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return value.decode()
    except UnicodeDecodeError:
        shown = value[:_BINARY_BYTES_MAX]
        more = " …" if len(shown) < len(value) else ""
        return shown.hex(" ", 4) + more


def _print_attempts(letter: DeadLetter) -> None:
    left_out = letter.attempts - len(letter.history)
    heading("Attempts" if left_out <= 0 else f"Attempts, without {left_out:,} in the middle")
    table(
        (
            *("attempt", "started (UTC)", Column("waited", is_right=True)),
            *(Column("planned", is_right=True), Column("took", is_right=True)),
            *(Column("error", least=12), Column("host", least=6, spare=1)),
        ),
        (
            (
                each.number,
                f"{datetime.fromtimestamp(each.started_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}",
                f"{each.actual_delay_s:,.3f} s",
                f"{each.planned_delay_s:,.3f} s",
                f"{each.duration_s:,.3f} s",
                each.error_class,
                each.host,
            )
            for each in letter.history
        ),
    )


def _print_changes(changes: Sequence[LetterEvent], now: datetime) -> None:
    heading("What was done to it")
    table(
        (
            *("when", "what", Column("who", least=10), Column("operation", is_right=True)),
            Column("why", least=20),
        ),
        (
            (
                ago(each.at, now),
                each.action,
                each.actor,
                "" if each.operation is None else str(each.operation),
                _why(each),
            )
            for each in changes
        ),
    )


def _why(change: LetterEvent) -> str:
    if change.detail is None:
        return change.reason
    return "; ".join(filter(None, (change.reason, change.detail)))


def _next(letter: DeadLetter, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if letter.state == "open":
        yield "again", command(options, "replay", letter.id)
        yield "put aside", command(options, "archive", letter.id)
    if letter.state == "archived":
        yield "open again", command(options, "restore", letter.id)
    key = one_line(letter.key)
    if key.encode() == letter.key:  # one that can be typed
        yield "its key", command(options, "lane", letter.topic, key)
    yield "its event", command(options, "trace", letter.event_id)
