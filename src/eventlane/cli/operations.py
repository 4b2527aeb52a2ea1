"""`eventlane ops`: what operators have asked for, how far it is, and how to stop it."""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from eventlane import App, LeftOut, NotFound, Operation, OperationStatus
from eventlane.cli.arguments import (
    actor_of,
    add_change,
    add_json,
    add_limit,
    add_state,
    command,
    is_whole,
    reason_of,
    state_of,
)
from eventlane.cli.letters import now_of
from eventlane.cli.output import (
    Column,
    fields,
    heading,
    note,
    plain,
    progress,
    say,
    say_command,
    show,
    table,
)
from eventlane.cli.words import ago, moment
from eventlane.wording import counted

__all__ = ["add_commands", "exit_code", "print_operation", "until_ended"]

_FAILED, _PARTLY = 1, 4
_STATES = ("running", "paused", "done", "cancelled")
_LEFT_OUT_MAX = 1_000
_REASONS_MAX = 10
_LOOK_AGAIN_S = 0.5
_TELL_AGAIN = 20
"""Where nobody looks at a terminal, how far it is is said each time after so many looks."""


def add_commands(commands: Any) -> None:
    """Add the commands."""
    ops = commands.add_parser("ops", help="replays and other operations").add_subparsers(
        required=True, metavar="list|show|pause|resume|cancel"
    )
    listed = ops.add_parser("list", help="the newest first")
    add_state(listed, _STATES, default="all")
    add_limit(listed, default=20, help="so many (default: %(default)s)")
    listed.set_defaults(does=_list)
    shown = ops.add_parser("show", help="how far one is, and what it left out")
    shown.add_argument("--wait", action="store_true", help="until it has ended, or pauses")
    shown.set_defaults(does=_show)
    pause = ops.add_parser("pause", help="release no further letters; what was released goes on")
    resume = ops.add_parser("resume", help="go on; what has died again until now counts no more")
    cancel = ops.add_parser("cancel", help="open the letters again that were not released")
    for each, does in ((pause, _pause), (resume, _resume), (cancel, _cancel)):
        each.set_defaults(does=does)
        add_change(each)
    for each in (shown, pause, resume, cancel):
        each.add_argument("id", metavar="ID", type=_number, help="its number, as `ops list` has it")
    for each in (listed, shown, pause, resume, cancel):
        add_json(each)


def _number(text: str) -> int:
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"expected the number of an operation, got {text!r}")
    return int(text)


async def _list(app: App, options: argparse.Namespace) -> int:
    operations = await app.operations(state=state_of(options, _STATES), limit=options.limit + 1)
    if len(operations) > options.limit:
        operations = operations[: options.limit]
        note("There are more: --limit N.")
    if options.json:
        show(operations)
        return 0
    if not operations:
        say("No operations.")
        return 0
    now = await now_of(app)
    table(
        (
            *("id", "kind", "state", "letters", "done", "failed", "left"),
            *("started", Column("group", least=8, spare=1)),
            *(Column("by", least=8), Column("reason", least=10, spare=2)),
        ),
        (
            (
                each.id,
                each.kind,
                _state(each),
                *(each.total, each.resolved + each.changed, each.failed),
                each.pending + each.released,
                ago(each.started_at, now),
                ", ".join(each.groups),
                each.actor,
                each.reason,
            )
            for each in operations
        ),
    )
    for each in operations:
        if each.waiting_for is not None:
            say(f"operation {each.id} waits: {each.waiting_for}", style="yellow", indent="- ")
    return 0


async def _show(app: App, options: argparse.Namespace) -> int:
    operation = await _found(app, options)
    if options.wait:
        return await until_ended(app, operation, options)
    await print_operation(app, operation, options)
    return 0


async def _pause(app: App, options: argparse.Namespace) -> int:
    operation = await _found(app, options)
    await operation.pause(reason=reason_of(options), actor=actor_of(options))
    await print_operation(app, operation, options)
    return 0


async def _resume(app: App, options: argparse.Namespace) -> int:
    operation = await _found(app, options)
    await operation.resume(reason=reason_of(options), actor=actor_of(options))
    await print_operation(app, operation, options)
    return 0


async def _cancel(app: App, options: argparse.Namespace) -> int:
    operation = await _found(app, options)
    await operation.cancel(reason=reason_of(options), actor=actor_of(options))
    await print_operation(app, operation, options)
    return 0


async def _found(app: App, options: argparse.Namespace) -> Operation:
    try:
        return await app.operation(options.id)
    except NotFound as error:
        raise NotFound(f"{error}. `{command(options, 'ops', 'list')}` has them.") from None


# --- one of them ------------------------------------------------------------------------------


async def print_operation(
    app: App, operation: Operation, options: argparse.Namespace
) -> OperationStatus:
    """Say how far an operation is, and what it left as it was."""
    status = await operation.status()
    left_out = await operation.left_out(limit=_LEFT_OUT_MAX)
    if options.json:
        show({**plain(status), "left_out": plain(left_out)})
        return status
    now = await now_of(app)
    say(_summary(status), style="bold")
    for style, sentence in _sentences(status):
        say(sentence, style=style)
    print()
    fields(
        (
            ("done", f"{status.resolved + status.changed:,} of {status.total:,}"),
            ("died again", status.failed and f"{status.failed:,}"),
            ("released", status.released and f"{status.released:,}"),
            ("not begun", status.pending and f"{status.pending:,}"),
            ("open again", status.returned and f"{status.returned:,}, without a run"),
            ("left as they were", status.skipped and f"{status.skipped:,}"),
            ("followers", _followers(status)),
            ("by", status.actor),
            ("reason", status.reason),
            ("query", status.query),
            ("started", moment(status.started_at, now)),
            ("ended", status.ended_at and moment(status.ended_at, now)),
        )
    )
    if left_out:
        _print_left_out(left_out)
    hints = list(_hints(status, options))
    if hints:
        print()
    for why, line in hints:
        say_command(why, line)
    return status


def _print_left_out(left_out: Sequence[LeftOut]) -> None:
    examples = {each.why: each.letter for each in left_out}
    counts = Counter(each.why for each in left_out)
    first = f" (the first {len(left_out):,})" if len(left_out) == _LEFT_OUT_MAX else ""
    heading(f"Not done, and why{first}")
    table(
        ("letters", Column("why", least=20), Column("for example", spare=1)),
        ((count, why, str(examples[why])) for why, count in counts.most_common(_REASONS_MAX)),
    )


def _summary(status: OperationStatus) -> str:
    return (
        f"operation {status.id}: {status.kind} of {counted(status.total, 'dead letter')} of "
        f"{', '.join(status.groups)}, {_state(status)}"
    )


def _state(status: OperationStatus) -> str:
    if status.state == "cancelled" and not status.has_ended:
        return "cancelling"
    return status.state


def _sentences(status: OperationStatus) -> Iterator[tuple[str, str]]:
    if status.why is not None:
        yield "yellow", f"Why: {status.why}."
    if status.waiting_for is not None:
        by_itself = " It goes on by itself once that has changed."
        yield (
            "yellow",
            f"It waits: {status.waiting_for}.{'' if status.state == 'paused' else by_itself}",
        )


def _followers(status: OperationStatus) -> str:
    if not status.followers_done and not status.followers_dead:
        return ""
    dead = f", {status.followers_dead:,} died" if status.followers_dead else ""
    return f"{status.followers_done:,} handled{dead}"


def _hints(status: OperationStatus, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if status.failed:
        yield "what died", command(options, "failures", "list")
    if status.has_ended:
        return
    if status.state == "running":
        yield "follow it", command(options, "ops", "show", status.id, "--wait")
    if status.state == "paused":
        yield "go on", command(options, "ops", "resume", status.id)
    if status.state in ("running", "paused"):
        yield "give it up", command(options, "ops", "cancel", status.id)


def exit_code(status: OperationStatus) -> int:
    """0 where all is done, 4 where some is, 1 where nothing is."""
    done = status.resolved + status.changed
    if done == status.total:
        return 0
    return _PARTLY if done else _FAILED


# --- waiting ----------------------------------------------------------------------------------


async def until_ended(app: App, operation: Operation, options: argparse.Namespace) -> int:
    """Wait until an operation has ended or pauses, and say how far it is meanwhile."""
    waiting = asyncio.ensure_future(operation.wait())
    looks, told = 0, ""
    try:
        while not waiting.done():
            status = await operation.status()
            if status.waiting_for is not None and status.waiting_for != told:
                progress("")
                note(f"operation {status.id} waits: {status.waiting_for}")
                told = status.waiting_for
            if sys.stderr.isatty():
                progress(_progress(status))
            elif looks % _TELL_AGAIN == _TELL_AGAIN - 1:
                note(_progress(status))
            looks += 1
            await asyncio.wait((waiting,), timeout=_LOOK_AGAIN_S)
        await waiting
    except asyncio.CancelledError:
        progress("")
        follow = command(options, "ops", "show", operation.id, "--wait")
        note(f"Not waiting any more. The operation goes on; to see how far it is: {follow}")
        raise
    finally:
        waiting.cancel()
    progress("")
    return exit_code(await print_operation(app, operation, options))


def _progress(status: OperationStatus) -> str:
    return (
        f"operation {status.id}: {status.resolved + status.changed:,} of {status.total:,} done, "
        f"{status.failed:,} died again, {status.pending + status.released:,} to go"
    )
