"""A shop whose handler fails, the commands on it, and a terminal to run them in."""

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, DeadLetter, Retry, event
from eventlane.cli import main

COMMAND = (sys.executable, "-c", "import sys; from eventlane.cli import main; sys.exit(main())")
_PATIENCE_S = 20.0


@event(topic="orders", key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str
    quantity: int


class Shop:
    """An app with two groups. `stock` refuses a quantity of 0, of customers that are not mended."""

    def __init__(self, directory: Path) -> None:
        self.mended: set[str] = set()
        self.handled: list[Ordered] = []
        self.url = f"embedded:{directory}"
        self.app = App(self.url, name="shop", durability="os", partitions=2)
        self.app.subscribe(Ordered, group="stock", retry=Retry(attempts=2, delay_s=0))(self.handle)
        self.app.subscribe(Ordered, group="mails")(self.mail)

    async def handle(self, ordered: Ordered, ctx: Context) -> None:
        if ordered.quantity < 1 and ordered.customer not in self.mended:
            raise ValueError(f"no quantity for {ordered.customer}")
        self.handled.append(ordered)

    async def mail(self, ordered: Ordered, ctx: Context) -> None:
        pass

    async def handle_all(self, *events: Ordered) -> None:
        async with self.app:
            await self.app.publish_many(events)
            await self.app.run_until_idle(timeout_s=_PATIENCE_S)

    @asynccontextmanager
    async def open_for_business(self) -> AsyncIterator[None]:
        async with self.app, self.app.handling():
            yield

    async def letters(self, **options: Any) -> list[DeadLetter]:
        async with self.app:
            return list(await self.app.dead_letters(**options))


def run(shop: Shop, *arguments: str) -> int:
    return main(["--broker", shop.url, *arguments])


async def in_thread(shop: Shop, *arguments: str) -> int:
    """A command has an event loop of its own."""
    return await asyncio.to_thread(run, shop, *arguments)


def printed(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says, broken lines put together."""
    capsys.readouterr()
    assert run(shop, *arguments) == 0, capsys.readouterr().err
    return " ".join(capsys.readouterr().out.split())


def as_json(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run(shop, *arguments, "--json") == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 3) -> str:
    """Why a command was not carried out."""
    capsys.readouterr()
    assert run(shop, *arguments) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


class Terminal:
    """A command as somebody sees it who sits before it."""

    def __init__(self, shop: Shop, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.text = ""
        self._process = subprocess.Popen(
            [*COMMAND, "--broker", shop.url, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
        )
        os.close(theirs)

    def until(self, words: str) -> None:
        while words not in self.text:
            assert self._read(), f"expected {words!r}, got {self.text!r}"

    def poll(self) -> None:
        """Take what is there, if anything is."""
        if select.select([self._ours], [], [], 0.05)[0]:
            self._read()

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait(_PATIENCE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], _PATIENCE_S)
        assert ready, f"nothing more came after {self.text!r}"
        try:
            read = os.read(self._ours, 65_536)
        except OSError:  # it has ended
            return False
        self.text += read.decode()
        return bool(read)
