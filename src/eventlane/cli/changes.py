"""`eventlane replay`, `archive` and `restore`: what is done with dead letters."""

import argparse
from typing import Any

from eventlane import App, NotFound, Plan
from eventlane.cli.arguments import (
    actor_of,
    add_change,
    add_json,
    add_selection,
    rate,
    reason_of,
    selection_of,
    share,
)
from eventlane.cli.letters import now_of
from eventlane.cli.operations import exit_code, print_operation, until_ended
from eventlane.cli.output import Column, fields, heading, note, say, show, table, working

__all__ = ["add_commands"]

_REFUSED, _PARTLY = 3, 4


def add_commands(commands: Any) -> None:
    """Add the commands."""
    replay = commands.add_parser(
        "replay",
        help="have dead letters handled again, by the group that failed and no other",
        description="Have dead letters handled again, each by the group that failed and by no "
        "other: at the head of their lane, in the order of the log. First 1, then 10, then the "
        "rest; it pauses by itself when too many die again.",
    )
    add_selection(replay)
    replay.add_argument("--dry-run", action="store_true", help="say what it would do, do nothing")
    replay.add_argument("--wait", action="store_true", help="until they are handled or fail again")
    replay.add_argument(
        "--canary",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="1 first, then 10, then the rest (default: yes)",
    )
    pace = replay.add_mutually_exclusive_group()
    pace.add_argument(
        "--rate",
        metavar="N",
        type=rate,
        default=50.0,
        help="events in a second, those that follow included (default: %(default)g)",
    )
    pace.add_argument(
        "--no-rate-limit",
        dest="rate",
        action="store_const",
        const=None,
        help="as fast as the group handles them",
    )
    stop = replay.add_mutually_exclusive_group()
    stop.add_argument(
        "--pause-above",
        metavar="SHARE",
        type=share,
        default=0.05,
        help="pause when more than this share of the last 50 died again (default: %(default)g)",
    )
    stop.add_argument(
        "--never-pause",
        dest="pause_above",
        action="store_const",
        const=None,
        help="go on, however many die again",
    )
    replay.add_argument(
        "--allow-gap", action="store_true", help="also past an earlier letter of the same lane"
    )
    replay.set_defaults(does=_replay)
    archive = commands.add_parser(
        "archive", help="put dead letters aside; their lanes open, and what is parked there follows"
    )
    add_selection(archive)
    archive.set_defaults(does=_archive)
    restore = commands.add_parser(
        "restore", help="open archived letters again; they close no lane any more"
    )
    add_selection(restore)
    restore.set_defaults(does=_restore)
    for each in (replay, archive, restore):
        add_change(each)
        add_json(each)


async def _replay(app: App, options: argparse.Namespace) -> int:
    letters = selection_of(options)
    await now_of(app, options.group)
    if options.dry_run:
        with working("looking at the dead letters"):
            plan = await app.replay(
                letters,
                rate_per_s=options.rate,
                canary=options.canary,
                pause_above=options.pause_above,
                dry_run=True,
            )
        return _print_plan(plan, options, is_query=isinstance(letters, str))
    reason = reason_of(options)
    with working("writing down what is to be replayed"):
        operation = await app.replay(
            letters,
            reason=reason,
            actor=actor_of(options),
            rate_per_s=options.rate,
            canary=options.canary,
            pause_above=options.pause_above,
            allow_gap=options.allow_gap,
        )
    if options.wait:
        return await until_ended(app, operation, options)
    status = await print_operation(app, operation, options)
    return _PARTLY if status.skipped else 0


# --- what a replay would do -------------------------------------------------------------------


def _print_plan(plan: Plan, options: argparse.Namespace, *, is_query: bool) -> int:
    is_refused = (
        not plan.count
        or (plan.refusal_count and not is_query)
        or (plan.conflict_count and not options.allow_gap)
    )
    if options.json:
        show(plan)
    elif not plan.count and not plan.refusal_count:
        raise NotFound("no open dead letter meets that. Nothing would be done.")
    else:
        if is_refused:
            say("It would be refused. Nothing was changed.", style="bold red")
        else:
            _print_figures(plan)
        _print_conflicts(plan, options)
        _print_refusals(plan, is_query=is_query and not is_refused)
        if not is_refused:
            print()
            say("Nothing was changed. Without --dry-run, and with --reason, it begins.")
    return _REFUSED if is_refused else 0


def _print_figures(plan: Plan) -> None:
    fields(
        (
            ("dead letters", f"{plan.count:,}"),
            ("groups", ", ".join(f"{name} ({n:,})" for name, n in plan.groups.items())),
            ("keys", f"{plan.keys:,}"),
            ("followers", f"{plan.followers:,} parked events follow once these are resolved"),
            ("order conflicts", f"{plan.conflict_count:,}"),
            ("left out", f"{plan.refusal_count:,}"),
        )
    )


def _print_conflicts(plan: Plan, options: argparse.Namespace) -> None:
    if not plan.conflicts:
        return
    heading("Order conflicts")
    say(
        "Each of these would pass an earlier dead letter of its lane, which is not among them. "
        "Replay or archive the earlier one too, or say --allow-gap"
        + (", as you do." if options.allow_gap else ".")
    )
    table(
        ("dead letter", "would pass"),
        ((str(each.letter), str(each.earlier)) for each in plan.conflicts),
    )
    _say_more(plan.conflict_count - len(plan.conflicts))


def _print_refusals(plan: Plan, *, is_query: bool) -> None:
    if not plan.refusals:
        return
    heading("Left out" if is_query else "Refused")
    table(
        ("dead letter", Column("why", least=20)),
        ((str(each.letter), each.why) for each in plan.refusals),
    )
    _say_more(plan.refusal_count - len(plan.refusals))


def _say_more(count: int) -> None:
    if count:
        say(f"… and {count:,} more")


# --- aside and back ---------------------------------------------------------------------------


async def _archive(app: App, options: argparse.Namespace) -> int:
    letters = selection_of(options)
    await now_of(app, options.group)
    reason = reason_of(options)
    with working("archiving"):
        operation = await app.archive(letters, reason=reason, actor=actor_of(options))
    status = await print_operation(app, operation, options)
    groups = (await app.status()).groups
    for name in status.groups:
        if groups[name].parked and not groups[name].members:
            note(f"{name}: what is parked behind them follows once a process handles the group.")
    return exit_code(status)


async def _restore(app: App, options: argparse.Namespace) -> int:
    letters = selection_of(options)
    await now_of(app, options.group)
    reason = reason_of(options)
    with working("opening them again"):
        operation = await app.restore(letters, reason=reason, actor=actor_of(options))
    return exit_code(await print_operation(app, operation, options))
