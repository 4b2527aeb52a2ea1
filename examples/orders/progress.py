"""What a person sees while the flow runs: one picture of it, drawn anew four times a second."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eventlane import EventlaneError, Status

from .dashboard import Kind
from .dashboard.letters import OpenLetters
from .flow import Flow
from .report import outcomes

__all__ = ["Progress"]

REDRAW_S = 0.25
RATE_SPAN_S = 3.0
"""Rates are means over so long: shorter ones flicker, longer ones lag."""

GROUPS = {
    "inventory": "takes from the stock",
    "notification": "mails the household",
    "analytics": "counts the totals",
}
MEANING = {
    "InvalidQuantity": "wrong for good; the household's next orders go on",
    "UnknownProduct": "lost by a faulty import; the household's next orders wait",
    "OutOfStock": "retried in vain; the household's next orders wait",
}


_WIDE = 96
"""Columns of a terminal that has room for what each group is there for."""


class Progress:
    """The picture, with a `phase` in words that the demonstration sets as it goes on."""

    def __init__(self, flow: Flow, *, footer: dict[str, str]) -> None:
        """Draw nothing yet; `footer` are the lines below the picture, until it is the last."""
        self.phase = "starting"
        self._flow = flow
        self._footer = footer
        self._letters = OpenLetters(flow.app)
        self._history: list[tuple[float, int, int]] = []
        self._is_wide = True

    @asynccontextmanager
    async def shown(self, console: Console) -> AsyncIterator[None]:
        """Show the picture for as long as the block, and leave its last state on the screen."""
        self._is_wide = console.width >= _WIDE
        with Live(
            await self._picture(), console=console, auto_refresh=False, transient=False
        ) as live:
            redrawing = asyncio.create_task(self._redraw(live))
            try:
                yield
            finally:
                redrawing.cancel()
                await asyncio.wait([redrawing])
                self.phase = "stopped"
                live.update(await self._picture(is_last=True), refresh=True)

    async def _redraw(self, live: Live) -> None:
        while True:
            await asyncio.sleep(REDRAW_S)
            live.update(await self._picture(), refresh=True)

    async def _picture(self, *, is_last: bool = False) -> RenderableType:
        try:
            status = await self._flow.app.status()
            kinds = await self._letters.kinds(sum(group.dead for group in status.groups.values()))
        except EventlaneError as error:
            return Text(f"The state of the flow cannot be read just now: {error}", style="yellow")
        published = status.topics["orders"].published if "orders" in status.topics else 0
        return Group(
            Text(),
            Text.assemble(("  Eventlane orders  ", "bold"), (self.phase, "cyan")),
            Text(),
            self._publishing(published, *self._rates(published, status)),
            Padding(self._groups(status), (1, 0, 0, 1)),
            Padding(_dead(kinds), (0, 0, 0, 1)),
            Text() if is_last else Padding(self._lines(), (1, 0, 0, 0)),
        )

    def _publishing(self, published: int, published_per_s: float, handled_per_s: float) -> Table:
        bar = ProgressBar(total=max(self._flow.run.orders, 1), completed=published, width=40)
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text("  published"),
            bar,
            Text(f"{published:,} of {self._flow.run.orders:,} orders"),
            Text(f"{published_per_s:,.0f}/s in, {handled_per_s:,.0f}/s handled", style="dim"),
        )
        return row

    def _groups(self, status: Status) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column("group", no_wrap=True)
        table.add_column("", no_wrap=True)
        for column in ("done", "open", "retry", "parked", "dead", "archived"):
            table.add_column(column, justify="right", min_width=7 if self._is_wide else 4)
        for name, purpose in GROUPS.items():
            account = status.groups.get(name)
            if account is None:
                continue
            table.add_row(
                Text(name, style="bold"),
                Text(purpose if self._is_wide else "", style="dim"),
                Text(f"{account.done:,}", style="green"),
                f"{account.waiting + account.in_flight:,}",
                Text(f"{account.held:,}", style="yellow" if account.held else ""),
                Text(f"{account.parked:,}", style="yellow" if account.parked else ""),
                Text(f"{account.dead:,}", style="red" if account.dead else ""),
                f"{account.archived:,}",
            )
        return table

    def _lines(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, value in self._footer.items():
            is_address = value.startswith("http")
            table.add_row(Text(f"  {name}", style="dim"), Text(value, "bold" if is_address else ""))
        return table

    def _rates(self, published: int, status: Status) -> tuple[float, float]:
        """Return orders published and deliveries handled per second of late."""
        now_s = time.monotonic()
        self._history.append((now_s, published, outcomes(status)))
        while len(self._history) > 2 and now_s - self._history[1][0] > RATE_SPAN_S:
            self._history.pop(0)
        then_s, published_then, outcomes_then = self._history[0]
        span_s = max(now_s - then_s, REDRAW_S)
        handled = max(outcomes(status) - outcomes_then, 0)
        return (published - published_then) / span_s, handled / span_s


def _dead(kinds: Sequence[Kind]) -> RenderableType:
    if not kinds:
        return Text("no dead letters", style="dim")
    table = Table.grid(padding=(0, 2))
    for kind in kinds:
        meaning = MEANING.get(kind.name, kind.last_message)
        table.add_row(Text(f"{kind.count:,}", style="red"), kind.name, Text(meaning, style="dim"))
    return table
