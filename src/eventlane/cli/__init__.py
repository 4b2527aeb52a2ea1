"""The command line: what operators do, by the public API. The only reader of the environment."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eventlane import App, ConfigError, Conflict, EventlaneError, NotFound, Refused
from eventlane.cli import look, operate, prove, run
from eventlane.cli.loading import load_app
from eventlane.cli.output import add_place

__all__ = ["main"]

_FAILED, _USAGE, _REFUSED = 1, 2, 3
_REFUSALS = (Conflict, NotFound, Refused)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 usage, 3 refused, 4 partly done.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.command == "run" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        if options.command == "run":
            return run.run(options)
        if options.command == "prove":
            return prove.run(options)
        return asyncio.run(_connected(options))
    except _REFUSALS as error:
        print(f"refused: {error}", file=sys.stderr)
        return _REFUSED
    except ConfigError as error:
        print(f"eventlane: {error}", file=sys.stderr)
        return _USAGE
    except EventlaneError as error:
        print(f"failed: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def _connected(options: argparse.Namespace) -> int:
    url = options.broker or os.environ.get("EVENTLANE_BROKER")
    if options.app:
        app = load_app(options.app)
        if url:
            app = app.replace(url=url)
            print(f"broker: {url}", file=sys.stderr)
    elif url:
        app = App(url, name="eventlane-cli", create_topics=False)
    else:
        raise ConfigError(
            "expected a broker: --broker embedded:DIR, --app module:app, or EVENTLANE_BROKER in "
            "the environment; got none of them."
        )
    _refuse_missing(app.url)
    async with app:
        result: int = await options.does(app, options)
        return result


def _refuse_missing(url: str) -> None:
    """Looking must not make a broker where somebody mistyped a directory."""
    scheme, _, directory = url.partition(":")
    if scheme == "embedded" and not (Path(directory) / "eventlane.db").exists():
        raise ConfigError(
            f"{url}: expected a directory with a broker (eventlane.db), got none at "
            f"{Path(directory).absolute()}. Give the directory that the app runs in."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eventlane", description="Look at a broker, and look after what failed."
    )
    add_place(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    look.add_commands(commands)
    operate.add_commands(commands)
    run.add_command(commands)
    prove.add_command(commands)
    return parser
