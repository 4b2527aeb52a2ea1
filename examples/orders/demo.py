"""The demonstration from its first order to its report."""

import asyncio
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from .dashboard.live import open_dashboard
from .flow import Flow, open_flow
from .progress import Progress
from .publisher import publish_orders
from .recover import Recovered, recover
from .report import Report, Timing, make_report, outcomes, unbalanced
from .run import Run, open_run
from .smtp_server import SmtpServer

__all__ = ["Options", "demonstrate"]

RATE_PER_S = 200.0
"""Slow enough to watch, fast enough for 5,000 orders in half a minute."""
LOG = "eventlane.log"
"""In the data directory: what dies, pauses or is out. Beside the display it would only be noise."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; None where nothing was said."""

    headless: bool
    orders: int | None
    broker: str | None
    data: Path | None
    seed: int | None
    stock_share: Decimal | None
    smtp: SmtpServer | None
    recover: bool
    report: Path | None


async def demonstrate(options: Options, console: Console) -> bool:
    """Run the order flow, and return whether every account balances.

    Headless it ends when the flow is quiet. Otherwise it then goes on handling, with the dashboard,
    until it is cancelled.

    Cancellation: what is being handled is finished, and everything is on the disk; the same
    directory continues it.

    Raises:
        RunRefused: see `run.open_run`, `flow.open_flow`.
        InputUnusable: the data package is missing.
    """
    directory = options.data or Path(tempfile.mkdtemp(prefix="eventlane-orders-"))
    with (
        open_run(
            directory, orders=options.orders, stock_share=options.stock_share, seed=options.seed
        ) as run,
        _logged(directory / LOG),
    ):
        return await _conduct(options, run, directory, console)


async def _conduct(options: Options, run: Run, directory: Path, console: Console) -> bool:
    url = options.broker or f"embedded:{directory}"
    async with AsyncExitStack() as stack:
        flow = await stack.enter_async_context(
            open_flow(run, url=url, directory=directory, smtp=options.smtp)
        )
        footer = {
            "data": str(directory),
            "log": str(directory / LOG),
            "mail server": str(flow.smtp),
        }
        stack.callback(_print_lines, console, footer)
        progress = Progress(flow, footer=footer)
        if not options.headless:
            footer["dashboard"] = await stack.enter_async_context(
                open_dashboard(flow.app, flow.analytics, orders_expected=run.orders)
            )
            await stack.enter_async_context(progress.shown(console))
        footer["continue"] = _command_that_continues(options, directory)
        await stack.enter_async_context(flow.app.handling())
        timing = await _handle_all(
            flow, progress, rate_per_s=None if options.headless else RATE_PER_S
        )
        recovered = Recovered()
        if options.recover:
            progress.phase = "recovering: correcting the catalogue, restocking, replaying"
            recovered = await recover(flow.app, flow.inventory)
        progress.phase = "checking the accounts"
        report = await make_report(flow, timing=timing, recovered=recovered)
        problems = unbalanced(report, flow)
        _deliver(report, problems, options, console)
        if not options.headless:
            balance = "accounts do not balance" if problems else "every account balances"
            progress.phase = f"{balance}; Ctrl-C stops"
            await asyncio.Event().wait()
        return not problems


async def _handle_all(flow: Flow, progress: Progress, *, rate_per_s: float | None) -> Timing:
    """Publish what is not published yet, while handling, and handle until the flow is quiet."""
    progress.phase = "publishing, and handling what comes"
    started_s = time.monotonic()
    published = await publish_orders(flow.app, limit=flow.run.orders, rate_per_s=rate_per_s)
    published_s = time.monotonic()
    outcomes_then = outcomes(await flow.app.status())
    progress.phase = "handling what is left"
    await flow.app.run_until_idle()
    return Timing(
        publish_s=published_s - started_s,
        published=published,
        drain_s=time.monotonic() - published_s,
        drained=outcomes(await flow.app.status()) - outcomes_then,
    )


def _deliver(report: Report, problems: list[str], options: Options, console: Console) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if options.report is not None:
        options.report.write_text(text)
    elif options.headless:
        sys.stdout.write(text)
    for problem in problems:
        console.print(f"[red]does not balance:[/red] {problem}", highlight=False, soft_wrap=True)


def _print_lines(console: Console, lines: dict[str, str]) -> None:
    for name, value in lines.items():
        console.print(f"{name:>13}  {value}", highlight=False, soft_wrap=True)


def _command_that_continues(options: Options, directory: Path) -> str:
    arguments = [f"--data {shlex.quote(str(directory))}"]
    if options.headless:
        arguments.insert(0, "--headless")
    if options.broker:
        arguments.append(f"--broker {shlex.quote(options.broker)}")
    return f'make demo ARGS="{" ".join(arguments)}"'


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    logger = logging.getLogger("eventlane")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
