"""`eventlane run module:app`: handle until a signal, in one process or in several."""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from eventlane import App, ConfigError
from eventlane.cli.arguments import count
from eventlane.cli.loading import load_app

__all__ = ["add_command", "run"]

# What is in the working directory must not stand for what an interpreter imports at its start.
_WORKER = ("-P", "-c", "import sys; from eventlane.cli import main; sys.exit(main())")


def add_command(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("run", help="handle an app's events until SIGTERM or Ctrl-C")
    command.add_argument("place", metavar="MODULE:APP")
    command.add_argument("--broker", metavar="URL", default=argparse.SUPPRESS)
    command.add_argument(
        "--workers",
        metavar="N",
        type=count,
        default=1,
        help="processes (default: %(default)s, without a supervisor); SIGHUP restarts them",
    )
    command.add_argument(
        "--reload",
        action="store_true",
        help="start again when a .py file below the working directory changes; for development",
    )
    command.add_argument(
        "--health",
        metavar="HOST:PORT",
        help="serve /live, /ready and /metrics there; :PORT is 127.0.0.1",
    )
    # The worker's end of a socket that it shares with its supervisor.
    command.add_argument("--supervised", type=int, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Handle until SIGTERM or SIGINT, then drain.

    Returns:
        The exit code.

    Raises:
        ConfigError: An option, or the app's module, is not what it should be.
        EventlaneError: What made handling impossible.
    """
    # Other commands need none of them, and an HTTP server is a tenth of the time that they take.
    from eventlane.health import Address  # noqa: PLC0415  # see above
    from eventlane.supervisor import Supervisor  # noqa: PLC0415  # the same
    from eventlane.worker import Link, handle_alone, handle_supervised  # noqa: PLC0415  # the same

    if options.supervised is not None:
        link = Link(options.supervised)
        handle_supervised(_app(options), link)
        return 0
    health = None if options.health is None else Address.of(options.health)
    if options.workers > 1 or options.reload:
        reload = Path.cwd() if options.reload else None
        supervisor = Supervisor(
            _command(options), workers=options.workers, health=health, reload=reload
        )
        return asyncio.run(supervisor.run())
    app = _app(options)
    if health is None:
        asyncio.run(app.run())
    else:
        handle_alone(app, health)
    return 0


def _command(options: argparse.Namespace) -> tuple[str, ...]:
    """What a worker runs."""
    broker = ("--broker", options.broker) if options.broker else ()
    workers = ("--workers", str(options.workers))
    return (
        *(sys.executable, *_WORKER, "run", options.place),
        *(*broker, *workers, "--supervised"),
    )


def _app(options: argparse.Namespace) -> App:
    app = load_app(options.place)
    url = options.broker or os.environ.get("EVENTLANE_BROKER")
    if url:
        app = app.replace(url=url)
    if options.workers > 1 and app.url == "embedded::memory:":
        raise ConfigError(
            f"--workers {options.workers}: expected a broker that processes can share, got "
            "embedded::memory:, which is private to each. Give a directory: embedded:./data."
        )
    return app
