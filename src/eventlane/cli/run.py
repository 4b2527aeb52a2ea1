"""`eventlane run module:app`: handle until a signal."""

import argparse
import asyncio
import os
from typing import Any

from eventlane.cli.loading import load_app

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("run", help="handle an app's events until SIGTERM or Ctrl-C")
    command.add_argument("place", metavar="MODULE:APP")
    command.add_argument("--broker", metavar="URL", default=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Handle until SIGTERM or SIGINT, then drain.

    Raises:
        EventlaneError: What made handling impossible.
    """
    app = load_app(options.place)
    url = options.broker or os.environ.get("EVENTLANE_BROKER")
    if url:
        app = app.replace(url=url)
    asyncio.run(app.run())
    return 0
