"""`eventlane doctor`: is everything as it should be, and what is to be done where it is not."""

import argparse
from typing import Any

from eventlane import App, Finding
from eventlane.cli.arguments import add_json, place
from eventlane.cli.output import say, say_command, show, working
from eventlane.wording import counted

__all__ = ["add_commands", "run"]

_STYLES = {"ok": "dim", "warning": "yellow", "error": "bold red"}


def add_commands(commands: Any) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="check up the broker, its disk and, with --app, an app against it",
        description="Check up the broker, what it stands on and what waits for somebody; with "
        "--app, also the app against it. It only reads, the broker may be in use, and a file that "
        "is damaged or of another format is said to be so. It ends with 1 if it finds an error",
    )
    doctor.add_argument(
        "--full",
        action="store_true",
        help="read every page, index and event; it takes as long as the file is large",
    )
    add_json(doctor)


async def run(app: App, options: argparse.Namespace) -> int:
    """Check up, without opening the broker.

    Returns:
        1 if there is an error, else 0.

    Raises:
        ConfigError: There is no broker.
    """
    with working("checking up"):
        found = await app.doctor(full=options.full)
    errors = sum(each.level == "error" for each in found)
    if options.json:
        show(found)
        return min(errors, 1)
    say(f"Check-up of {place(app)}", style="dim")
    for finding in found:
        _say(finding)
    warnings = sum(each.level == "warning" for each in found)
    print()
    say(
        f"{counted(errors, 'error')}, {counted(warnings, 'warning')}."
        if errors or warnings
        else "All is well.",
        style="bold red" if errors else "yellow" if warnings else "green",
    )
    return min(errors, 1)


def _say(finding: Finding) -> None:
    say(
        f"{finding.check}: {finding.message}",
        style=_STYLES[finding.level],
        indent=f"{finding.level:<8} ",
    )
    if finding.command is not None:
        say_command("do", finding.command)
