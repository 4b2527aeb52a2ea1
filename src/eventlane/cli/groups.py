"""`eventlane groups`: pause and resume them, and change where they go on, or whether at all."""

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from eventlane import App, ConfigError, GroupStatus, PartitionReset, RemovalPlan, ResetPlan
from eventlane.cli.arguments import (
    actor_of,
    add_change,
    add_json,
    command,
    reason_of,
    refuse_unless_typed,
)
from eventlane.cli.letters import now_of
from eventlane.cli.look import dead_count, members_count
from eventlane.cli.output import Column, fields, say, say_command, show, table, working
from eventlane.cli.words import duration, size
from eventlane.wording import counted, near

__all__ = ["add_commands"]

_TO = "first, now, a time as in 2026-11-25T10:00 (UTC), or TOPIC/PARTITION=OFFSET, several too"


def add_commands(commands: Any) -> None:
    """Add the commands."""
    groups = commands.add_parser("groups", help="the groups").add_subparsers(
        required=True, metavar="list|pause|resume|rename|reset|remove|forget"
    )
    listed = groups.add_parser("list", help="who handles them, and what they wait for")
    listed.set_defaults(does=_list)
    add_json(listed)
    pause = _command(groups, "pause", _pause, "stop it from starting handlers, everywhere")
    resume = _command(groups, "resume", _resume, "let a paused group go on")
    rename = _command(groups, "rename", _rename, "give a group that nobody handles another name")
    rename.add_argument("new", metavar="NEW")
    reset = _command(
        groups, "reset", _reset, "go on somewhere else: handle events again, or pass over some"
    )
    reset.add_argument("--to", metavar="WHERE", action="append", required=True, help=_TO)
    reset.add_argument("--all", action="store_true", help="also partitions that do not change")
    reset.add_argument("--yes-reset", metavar="GROUP", help="its name once more: you are sure")
    remove = _command(
        groups, "remove", _remove, "forget its positions and dead letters; the log stays"
    )
    remove.add_argument("--yes-remove", metavar="GROUP", help="its name once more: you are sure")
    forget = _command(
        groups, "forget", _forget, "an event type of which no process has a handler any more"
    )
    forget.add_argument("event_type", metavar="TYPE", help="its name, as status says it")
    for each in (reset, remove):
        each.add_argument("--dry-run", action="store_true", help="say what it would do, do nothing")
    for each in (pause, rename, reset, remove, forget):
        add_change(each)
    resume.add_argument("--actor", metavar="WHO", help="who you are (default: login and host)")


def _command(
    groups: Any, name: str, does: Callable[..., Any], help: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = groups.add_parser(name, help=help)
    command.add_argument("group", metavar="GROUP")
    command.set_defaults(does=does)
    add_json(command)
    return command


# --- look, pause, resume, rename --------------------------------------------------------------


async def _list(app: App, options: argparse.Namespace) -> int:
    groups = (await app.status()).groups
    if options.json:
        show(groups)
        return 0
    if not groups:
        say("No groups yet: one is there once a process has handled it.")
        return 0
    table(
        (
            Column("group", least=12),
            *("members", "open", "parked", "dead"),
            Column("log keeps", is_right=True),
            Column("state", least=16),
        ),
        (
            (
                name,
                members_count(group),
                *(group.open, group.parked, dead_count(group.dead)),
                size(group.retained_bytes),
                _state(group),
            )
            for name, group in sorted(groups.items())
        ),
    )
    return 0


def _state(group: GroupStatus) -> Text:
    if group.paused is not None:
        return Text(f"paused: {group.paused}", style="yellow")
    if group.blocked:
        return Text("blocked", style="red")
    if not group.members:
        what = "absent" if group.is_absent else "no process"
        return Text(f"{what} for {duration(group.absent_s)}", style="yellow")
    return Text("handled", style="green")


async def _pause(app: App, options: argparse.Namespace) -> int:
    await now_of(app, options.group)
    await app.pause(options.group, reason=reason_of(options), actor=actor_of(options))
    code = await _list(app, options)
    if not options.json:
        print()
        say_command("let it go on", command(options, "groups", "resume", options.group))
    return code


async def _resume(app: App, options: argparse.Namespace) -> int:
    await now_of(app, options.group)
    await app.resume(options.group, actor=actor_of(options))
    return await _list(app, options)


async def _rename(app: App, options: argparse.Namespace) -> int:
    await now_of(app, options.group)
    await app.rename_group(
        options.group, options.new, reason=reason_of(options), actor=actor_of(options)
    )
    if not options.json:
        say(
            f"{options.group} is called {options.new} now. Rename it in the code too, or a new "
            f"group {options.group} starts from its beginning.",
            style="bold",
        )
    return await _list(app, options)


async def _forget(app: App, options: argparse.Namespace) -> int:
    await now_of(app, options.group)
    await app.forget_type(
        options.group, options.event_type, reason=reason_of(options), actor=actor_of(options)
    )
    if not options.json:
        say(
            f"{options.group} is not expected to handle {options.event_type} any more: what "
            "waited for it goes on, and events of that type are skipped.",
            style="bold",
        )
    return await _list(app, options)


# --- reset ------------------------------------------------------------------------------------


async def _reset(app: App, options: argparse.Namespace) -> int:
    to = _target(options.to)
    await now_of(app, options.group)
    with working("looking at the log"):
        plan = await app.reset(options.group, to, dry_run=True)
    if options.dry_run:
        return _print_reset(plan, options)
    reason = reason_of(options)
    if options.yes_reset is None and not options.json:
        _print_reset(plan, options)
    refuse_unless_typed(options.yes_reset, group=options.group, option="--yes-reset", plan=plan)
    with working("resetting"):
        plan = await app.reset(options.group, to, reason=reason, actor=actor_of(options))
    return _print_reset(plan, options)


def _target(words: list[str]) -> Any:
    """Where a group is to go on, as it was typed.

    Raises:
        ConfigError: It is no such place.
    """
    if len(words) == 1 and "=" not in words[0]:
        word = words[0]
        if word in ("first", "now"):
            return word
        try:
            at = datetime.fromisoformat(word)
        except ValueError:
            raise ConfigError(
                f"--to {word}: expected {_TO}.{near(word, ('first', 'now'))}"
            ) from None
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at
    offsets: dict[tuple[str, int], int] = {}
    for word in words:
        place, _, offset = word.rpartition("=")
        topic, _, partition = place.rpartition("/")
        if not topic or not partition.isdecimal() or not offset.isdecimal():
            raise ConfigError(f"--to {word}: expected {_TO}, as in orders/3=1200.")
        offsets[topic, int(partition)] = int(offset)
    return offsets


def _print_reset(plan: ResetPlan, options: argparse.Namespace) -> int:
    if options.json:
        show(plan)
        return 0
    shown = [each for each in plan.partitions if options.all or _changes(each)]
    if shown:
        _print_partitions(shown)
    left_out = len(plan.partitions) - len(shown)
    if left_out:
        say(f"{counted(left_out, 'partition')} without a change (--all has them too)")
    print()
    come, are = ("come", "are") if plan.is_done else ("would come", "would be")
    say(
        f"{plan.group}: {counted(plan.handled_again, 'event')} {come} again, "
        f"{counted(plan.passed_over, 'event')} {are} passed over.",
        style="bold",
    )
    if plan.passed_over:
        say(f"What is passed over is never handled by {plan.group}.", style="red")
    letters = sum(each.open_letters for each in plan.partitions)
    if letters:
        say(f"Dead letters that stay open, and hold up nothing any more: {letters:,}.")
    say("The group goes on there." if plan.is_done else "Nothing was changed.")
    return 0


def _changes(partition: PartitionReset) -> bool:
    dropped = partition.parked_dropped or partition.attempts_dropped or partition.open_letters
    return bool(dropped) or partition.from_offset != partition.to_offset


def _print_partitions(partitions: Sequence[PartitionReset]) -> None:
    table(
        (
            Column("topic", least=12),
            *("partition", "from", "to", "again", "passed over"),
            *(Column("parked dropped", spare=2), Column("open letters", spare=1)),
        ),
        (
            (
                *(each.topic, each.partition, each.from_offset, each.to_offset),
                *(each.handled_again, each.passed_over),
                *(each.parked_dropped, each.open_letters),
            )
            for each in partitions
        ),
    )


# --- remove -----------------------------------------------------------------------------------


async def _remove(app: App, options: argparse.Namespace) -> int:
    await now_of(app, options.group)
    plan = await app.remove_group(options.group, dry_run=True)
    if options.dry_run:
        return _print_removal(plan, options)
    reason = reason_of(options)
    if options.yes_remove is None and not options.json:
        _print_removal(plan, options)
    refuse_unless_typed(options.yes_remove, group=options.group, option="--yes-remove", plan=plan)
    with working("removing"):
        plan = await app.remove_group(
            options.group, typed_name=options.group, reason=reason, actor=actor_of(options)
        )
    return _print_removal(plan, options)


def _print_removal(plan: RemovalPlan, options: argparse.Namespace) -> int:
    if options.json:
        show(plan)
        return 0
    say(
        f"{plan.group} is removed. What it had cannot be brought back:"
        if plan.is_done
        else f"With {plan.group} this would be lost, and could not be brought back:",
        style="bold red",
    )
    fields(
        (
            ("positions", f"in {', '.join(plan.topics) or 'no topic'}"),
            ("not handled yet", f"{plan.open:,}, which stay on the log"),
            ("parked", f"{plan.parked:,}, which the log may not have any more"),
            ("dead letters", f"{plan.letters:,}, of which {plan.open_letters:,} open"),
            ("failed attempts", plan.attempts and f"of {counted(plan.attempts, 'event')}"),
            ("asked for", plan.commands and f"{plan.commands:,}, not carried out"),
        )
    )
    return 0
