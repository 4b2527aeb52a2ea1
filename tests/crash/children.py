"""Processes that a test starts and kills, and the one history that all of them write.

They share a pipe as their standard output, so that what they say has one order. A write of at most
`PIPE_BUF` bytes to a pipe is never torn or mixed with another one, and what was written is the
kernel's, whatever happens to who wrote it. So a longer line goes in parts, and one whose last part
is missing was never said.
"""

import asyncio
import json
import os
import select
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from eventlane.testing.history import Died, Operation, Started, decode, encode

PATIENCE_S = 30.0
EXITED = 9
"""What a child ends with that ends itself."""
ROOT = Path(__file__).parents[2]
_PART_BYTES_MAX = select.PIPE_BUF - 100


# --- in a child -------------------------------------------------------------------------------


def name() -> str:
    """What this child is called."""
    return sys.argv[1]


def record(operation: Operation) -> None:
    """Add an operation to the history."""
    _write(encode(operation).rstrip())


def say(what: str, *more: Any) -> None:
    """Say something that is no part of the history: see `Children.said`."""
    _write(json.dumps([what, *more]).encode())


def _write(line: bytes) -> None:
    while line:
        part, line = line[:_PART_BYTES_MAX], line[_PART_BYTES_MAX:]
        os.write(1, b"%s %c%s\n" % (name().encode(), b"+" if line else b".", part))


def end_with_parent() -> None:
    """End when the test has ended, however that came; and at once if told to before it has begun.

    It was started with SIGTERM held back: whoever stops it need not know how far it is.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until it handles, and drains
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def watch() -> None:
        while os.read(0, 1024):  # nothing is read once the other end is closed
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- in the test ------------------------------------------------------------------------------


@contextmanager
def _sigterm_held_back() -> Generator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class Child:
    """A process."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, which: signal.Signals) -> None:
        self._process.send_signal(which)

    async def wait(self) -> int:
        return await self._process.wait()

    def last_words(self) -> str:
        return self._log.read_text("utf-8", "replace")[-4000:]

    def forget(self) -> None:
        """Its last words have been of no interest."""
        self._log.unlink()


class Children:
    """All processes of a test."""

    def __init__(self, module: str, logs: Path) -> None:
        """`module` is what they run; `logs` is where their errors go."""
        self.history: list[Operation] = []
        self.said: list[list[Any]] = []
        """By whom, and what, where it is no operation."""
        self.all: list[Child] = []
        self.started = 0
        self.runs = 0
        """How many runs of handlers there are in the history."""
        self._module = module
        self._logs = logs
        self._parts: defaultdict[bytes, bytes] = defaultdict(bytes)
        self._rest = b""
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._logs.mkdir(exist_ok=True)
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        asyncio.get_running_loop().add_reader(self._out, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self.all:
            await self.kill(child)
        asyncio.get_running_loop().remove_reader(self._out)
        os.close(self._out)
        os.close(self._in)

    async def start(self, role: str, *arguments: object) -> Child:
        """Start one; it is named by its role and a number of its own."""
        called = f"{role}-{self.started}"
        self.started += 1
        path = self._logs / f"{called}.log"
        with path.open("wb") as log, _sigterm_held_back():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module, called, role, *map(str, arguments)),
                stdin=asyncio.subprocess.PIPE,
                stdout=self._in,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
            )
        child = Child(process, called, path)
        self.all.append(child)
        return child

    async def kill(self, *children: Child) -> None:
        """kill -9, and what it was is part of the history."""
        for child in children:
            if child.returncode is None:
                child.send(signal.SIGKILL)
                assert await child.wait() == -signal.SIGKILL, child.last_words()
                self.note_death(child)

    async def stop(self, child: Child) -> None:
        """SIGTERM: it drains, and leaves."""
        child.send(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await child.wait() == 0, child.last_words()
        self._read()

    def note_death(self, child: Child) -> None:
        """One has ended without leaving; all that it has said comes before that."""
        self._read()
        self.history.append(Died(process=child.name))

    def take(self) -> list[Operation]:
        """The history, which begins anew; who has ended is forgotten, and all that was said."""
        self._read()
        history, self.history = self.history, []
        self.said = []
        for child in self.all:
            if child.returncode is not None:
                self._parts.pop(child.name.encode(), None)
                child.forget()
        self.all = [child for child in self.all if child.returncode is None]
        return history

    async def until(
        self,
        enough: Callable[[], bool | Awaitable[bool]],
        what: str,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Wait for something that the children do."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    found = enough()
                    if found if isinstance(found, bool) else await found:
                        return
                    self._more.clear()
                    waiting = asyncio.ensure_future(self._more.wait())
                    await asyncio.wait((waiting,), timeout=0.02)
                    waiting.cancel()
                    self._check()
        except TimeoutError:
            words = "\n".join(each.last_words() for each in self.all if each.returncode is None)
            raise AssertionError(f"within {patience_s} s: expected {what}\n{words}") from None

    def _check(self) -> None:
        for child in self.all:
            if child.returncode not in (None, 0, -signal.SIGKILL, EXITED):
                words = child.last_words()
                raise AssertionError(f"{child.name} ended with {child.returncode}:\n{words}")

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._out, 1 << 16)
            except BlockingIOError:
                break
            *lines, self._rest = (self._rest + found).split(b"\n")
            for line in lines:
                who, part = line.split(b" ", 1)
                self._parts[who] += part[1:]
                if part[:1] == b".":
                    self._hear(who.decode(), self._parts.pop(who))
        self._more.set()

    def _hear(self, who: str, line: bytes) -> None:
        if line.startswith(b"["):
            self.said.append([who, *json.loads(line)])
        else:
            self.history.append(operation := decode(line))
            self.runs += isinstance(operation, Started)
