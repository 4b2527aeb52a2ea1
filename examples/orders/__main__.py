"""The order flow on real orders: `python -m examples.orders`, or `make demo`."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from rich.console import Console

from eventlane import EventlaneError

from .demo import Options, demonstrate
from .run import RunRefused
from .smtp_server import SmtpServer
from .source import ORDERS_MAX, InputUnusable

__all__ = ["main"]

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 3, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and returns its exit code.

    0: every account balances, or somebody stopped a demonstration that they watched; 1: an account
    does not balance, or the run failed; 2: wrong usage; 3: the options do not fit the directory;
    130 and 143: a headless run was stopped by Ctrl-C or SIGTERM before its end, and can be
    continued.
    """
    options = _options(arguments)
    # Headless, what is said goes to standard error: the report has standard output to itself.
    console = Console(stderr=options.headless)
    try:
        return DONE if asyncio.run(_until_terminated(options, console)) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED if options.headless else DONE
    except asyncio.CancelledError:
        return TERMINATED if options.headless else DONE
    except RunRefused as error:
        console.print(f"[red]refused:[/red] {error}", highlight=False, soft_wrap=True)
        return REFUSED
    except (InputUnusable, EventlaneError) as error:
        console.print(f"[red]failed:[/red] {error}", highlight=False, soft_wrap=True)
        return FAILED


async def _until_terminated(options: Options, console: Console) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await demonstrate(options, console)


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m examples.orders",
        description="Runs the order flow on real grocery orders: stock, mails and analytics.",
    )
    add = parser.add_argument
    add(
        "--headless",
        action="store_true",
        help="no display; publish as fast as possible, end when all is handled",
    )
    add(
        "--orders",
        type=_orders,
        metavar="N|all",
        help=f"how many of the {ORDERS_MAX:,} orders (default: 5,000)",
    )
    add(
        "--broker",
        type=_broker,
        metavar="URL",
        help="embedded:DIR (default: in the data directory)",
    )
    add(
        "--data",
        type=_directory,
        metavar="DIR",
        help="keep the data there, and continue the run that is there already",
    )
    add("--seed", type=int, metavar="N", help="of the mail server's faults (default: 7)")
    add(
        "--stock-share",
        type=_share,
        metavar="S",
        help="initial stock as a share of what is ordered (default: 0.97)",
    )
    add(
        "--smtp",
        type=_smtp,
        metavar="HOST:PORT",
        help="send the mails there (default: an embedded mail server)",
    )
    add("--recover", action="store_true", help="in the end correct, restock, and replay what died")
    add("--report", type=Path, metavar="FILE", help="write the report there, as JSON")
    return Options(**vars(parser.parse_args(arguments)))


def _orders(text: str) -> int:
    if text == "all":
        return ORDERS_MAX
    if not text.isdecimal() or not 1 <= int(text) <= ORDERS_MAX:
        raise argparse.ArgumentTypeError(
            f"expected a number from 1 to {ORDERS_MAX}, or all, got {text!r}"
        )
    return int(text)


def _directory(text: str) -> Path:
    return Path(text).absolute()


def _broker(text: str) -> str:
    if not text.startswith("embedded:"):
        raise argparse.ArgumentTypeError(
            f"expected embedded:DIR, got {text!r}: the demonstration runs on that broker"
        )
    return text


def _share(text: str) -> Decimal:
    try:
        share = Decimal(text)
    except InvalidOperation:
        share = Decimal("NaN")
    if not share.is_finite() or share < 0:
        raise argparse.ArgumentTypeError(
            f"expected a number of 0 or more, such as 0.97, got {text!r}"
        )
    return share


def _smtp(text: str) -> SmtpServer:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT, such as localhost:2525, got {text!r}"
        )
    return SmtpServer(host, int(port))


if __name__ == "__main__":
    sys.exit(main())
