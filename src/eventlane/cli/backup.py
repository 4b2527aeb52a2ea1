"""`eventlane backup`: a copy of a broker that is in use."""

import argparse
from pathlib import Path
from typing import Any

from eventlane import App
from eventlane.cli.arguments import add_json
from eventlane.cli.output import say, say_command, show, working
from eventlane.cli.words import size

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the command."""
    backup = commands.add_parser(
        "backup",
        help="copy the broker, as it is at one moment, while it is used",
        description="Copy the broker, as it is at one moment, while publishers and handlers go on. "
        "The copy is a broker itself.",
    )
    backup.add_argument(
        "directory",
        metavar="DIR",
        type=_directory,
        help="where to; it must have no broker yet",
    )
    backup.set_defaults(does=_backup)
    add_json(backup)


def _directory(word: str) -> str:
    return str(Path(word).absolute())


async def _backup(app: App, options: argparse.Namespace) -> int:
    directory: str = options.directory
    with working("copying"):
        size_bytes = await app.backup(directory)
    if options.json:
        show({"directory": directory, "size_bytes": size_bytes})
        return 0
    say(f"{directory} is a copy of {size(size_bytes)}, durable.", style="bold")
    say_command("look at it", f"eventlane --broker embedded:{directory} status")
    return 0
