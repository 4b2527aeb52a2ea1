"""The command line: what operators do, by the public API. The only reader of the environment."""

import argparse
import asyncio
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eventlane import App, ConfigError, Conflict, EventlaneError, NotFound, Refused
from eventlane.cli import (
    backup,
    changes,
    doctor,
    events,
    groups,
    letters,
    look,
    operations,
    prove,
    run,
)
from eventlane.cli.arguments import NotConfirmed, Parser, add_place, place
from eventlane.cli.loading import load_app
from eventlane.cli.output import plain, show_line

__all__ = ["main", "parser"]

_FAILED, _USAGE, _REFUSED = 1, 2, 3
_REFUSALS = (Conflict, NotFound, Refused)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 usage, 3 refused, 4 partly done.
    """
    try:
        options = parser().parse_args(arguments)
    except SystemExit as ended:  # --help, or what is no command
        return 0 if ended.code is None else int(ended.code)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that cannot show all that there is
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.INFO if options.command == "run" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        _refuse_what_is_no_text(options)
        if options.command == "run":
            return run.run(options)
        if options.command == "prove":
            return prove.run(options)
        code = asyncio.run(_connected(options))
        sys.stdout.flush()
        return code
    except EventlaneError as error:
        return _failed(error, options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _failed(error: EventlaneError, options: argparse.Namespace) -> int:
    """Say why: to people on stderr, to programs as JSON too."""
    if getattr(options, "json", False):
        told = {"error": type(error).__name__, "message": str(error)}
        if isinstance(error, NotConfirmed):
            told |= {"error": "Refused", "plan": plain(error.plan)}
        show_line(told)
    code, word = _FAILED, "failed"
    if isinstance(error, _REFUSALS):
        code, word = _REFUSED, "refused"
    elif isinstance(error, ConfigError):
        code, word = _USAGE, "eventlane"
    print(f"{word}: {error}", file=sys.stderr)
    return code


def _refuse_what_is_no_text(options: argparse.Namespace) -> None:
    """Only a key may be any bytes; all else is kept, compared or printed as UTF-8."""
    for name, value in vars(options).items():
        if name != "key" and isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value!r}: expected text in UTF-8."
                ) from None


async def _connected(options: argparse.Namespace) -> int:
    app = _app(options)
    if options.command == "doctor":  # it may be that the broker cannot be opened
        return await doctor.run(app, options)
    async with app:
        result: int = await options.does(app, options)
        return result


def _app(options: argparse.Namespace) -> App:
    url = options.broker or os.environ.get("EVENTLANE_BROKER")
    if options.app:
        app = load_app(options.app)
        if url:
            app = app.replace(url=url)
            print(f"broker: {place(app)}", file=sys.stderr)
    elif url:
        app = App(url, name="eventlane-cli", create_topics=False)
    else:
        raise ConfigError(
            "expected a broker: --broker embedded:DIR, --app module:app, or EVENTLANE_BROKER in "
            "the environment; got none of them."
        )
    _refuse_missing(app.url)
    return app


def _refuse_missing(url: str) -> None:
    """Looking must not make a broker where somebody mistyped a directory."""
    scheme, _, directory = url.partition(":")
    if scheme != "embedded":
        return
    try:
        is_there = (Path(directory) / "eventlane.db").exists()
    except OSError as error:
        raise ConfigError(
            f"{url}: expected a directory that can be read, got: {error.strerror}."
        ) from None
    if not is_there:
        raise ConfigError(
            f"{url}: expected a directory with a broker (eventlane.db), got none at "
            f"{Path(directory).absolute()}. Give the directory that the app runs in."
        )


def parser() -> argparse.ArgumentParser:
    """What takes the arguments of all commands; the reference is made from it."""
    made = Parser(
        prog="eventlane",
        description="Look at a broker, and look after what failed. Begin with `eventlane status`.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 partly done.",
    )
    add_place(made)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in (look, doctor, letters, changes, operations, groups, events, backup):
        each.add_commands(commands)
    run.add_command(commands)
    prove.add_command(commands)
    return made
