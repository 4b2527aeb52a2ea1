"""Commands that change something: replay, archive, groups."""

import argparse
import getpass
import os
import sys
from typing import Any

from eventlane import App, Operation
from eventlane.cli.look import letter_id
from eventlane.cli.output import add_json, show, table

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the commands."""
    replay = commands.add_parser(
        "replay", help="have dead letters handled again, by the group that failed and no other"
    )
    replay.add_argument("--wait", action="store_true", help="until they are handled or fail again")
    replay.set_defaults(does=_replay)
    archive = commands.add_parser("archive", help="put dead letters aside; their lanes open")
    archive.set_defaults(does=_archive)
    for command in (replay, archive):
        command.add_argument("ids", metavar="ID", nargs="+")
        command.add_argument("--reason", required=True, help="kept with your name")
        command.add_argument("--actor", help="who you are (default: your login and host)")
        add_json(command)
    groups = commands.add_parser("groups", help="the groups").add_subparsers(required=True)
    listed = groups.add_parser("list", help="their names, members and pauses")
    listed.set_defaults(does=_groups)
    add_json(listed)
    pause = groups.add_parser("pause", help="stop a group from starting handlers, everywhere")
    pause.add_argument("--reason", required=True)
    pause.set_defaults(does=_pause)
    resume = groups.add_parser("resume", help="let a paused group go on")
    resume.set_defaults(does=_resume)
    for command in (pause, resume):
        command.add_argument("group")
        command.add_argument("--actor", help="who you are (default: your login and host)")
        add_json(command)


def _actor(options: argparse.Namespace) -> str:
    if options.actor:
        return str(options.actor)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container runs users that have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"


async def _replay(app: App, options: argparse.Namespace) -> int:
    ids = [letter_id(each) for each in options.ids]
    operation = await app.replay(ids, reason=options.reason, actor=_actor(options))
    if not options.wait:
        return await _print(operation, options)
    await _say_who_is_missing(app)
    ended = await operation.wait()
    await _print(operation, options)
    if ended.state == "paused":
        print(f"paused: {ended.why}", file=sys.stderr)
    if not ended.resolved:
        return 1
    return 0 if ended.resolved == ended.total else 4


async def _say_who_is_missing(app: App) -> None:
    """A replay waits for a process that handles the group; say so, instead of just waiting."""
    for name, group in (await app.status()).groups.items():
        if group.pending and not group.members:
            print(f"waiting: no process handles group {name!r} now; start one", file=sys.stderr)


async def _archive(app: App, options: argparse.Namespace) -> int:
    ids = [letter_id(each) for each in options.ids]
    operation = await app.archive(ids, reason=options.reason, actor=_actor(options))
    return await _print(operation, options)


async def _print(operation: Operation, options: argparse.Namespace) -> int:
    letters = await operation.letters()
    if options.json:
        show(
            {
                "operation": operation.id,
                "letters": {str(letter): state for letter, state in letters.items()},
            }
        )
        return 0
    print(f"operation {operation.id}")
    table(("id", "state"), ((str(letter), state) for letter, state in letters.items()))
    return 0


async def _groups(app: App, options: argparse.Namespace) -> int:
    groups = (await app.status()).groups
    if options.json:
        show(groups)
        return 0
    table(
        ("group", "members", "open", "dead", "paused"),
        ((name, each.members, each.open, each.dead, each.paused) for name, each in groups.items()),
    )
    return 0


async def _pause(app: App, options: argparse.Namespace) -> int:
    await app.pause(options.group, reason=options.reason, actor=_actor(options))
    return await _groups(app, options)


async def _resume(app: App, options: argparse.Namespace) -> int:
    await app.resume(options.group, actor=_actor(options))
    return await _groups(app, options)
