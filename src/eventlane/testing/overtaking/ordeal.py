"""The ordeal of `prove overtake`: two real processes under kill -9, and the history they write.

One publishes steadily on many keys, the other handles; the handler of one key calls a service that
refuses some events three times. Nothing here knows how the processes do it, so that the same
ordeal can be gone through with another framework (`benchmarks/peers`).
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from eventlane.clock import sleep
from eventlane.testing.history import Died, Ended, Operation, Published, Started, decode, encode
from eventlane.testing.overtaking.job import DELAY_S, UNLUCKY
from eventlane.wording import counted

__all__ = ["ChildEnded", "Ordeal", "Role"]

Role = Literal["publisher", "worker"]

_HISTORY = "history.jsonl"
_READ_EVERY_S = 0.02
_START_S_MAX = 30.0
"""How long it may take until the first event is handled."""
_STUCK_S_MAX = 2.5
"""How long it may take until an event of the unlucky key is refused."""

_Place = tuple[str, int, int]


class ChildEnded(Exception):
    """A process of the ordeal ended by itself, or never began; says what it wrote last."""


class _Child:
    """A process of the ordeal."""

    def __init__(self, role: Role, number: int, directory: Path) -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self._log = directory / f"{self.name}.log"
        self._process: asyncio.subprocess.Process

    async def start(self, command: Sequence[str], history: int) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # closed when this process ends, see the job
                stdout=history,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for who started the ordeal
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Refuse to go on without it.

        Raises:
            ChildEnded: It is gone.
        """
        if self._process.returncode is not None:
            raise self.failed(f"ended with {self._process.returncode}")

    def failed(self, what: str) -> ChildEnded:
        words = self._log.read_text("utf-8", "replace").strip().splitlines()[-8:]
        return ChildEnded(
            "\n".join([f"the {self.role} (process {self.pid}) {what}. It wrote last:", *words])
        )

    async def end(self, how: signal.Signals) -> None:
        """Send a signal, and wait until it has ended; nothing if it has."""
        if self._process.returncode is None:
            self._process.send_signal(how)
        await self._process.wait()


@dataclass(slots=True, kw_only=True)
class Ordeal:
    """One run of it."""

    command: Callable[[Role, int], Sequence[str]]
    """What starts a process of a role; the number counts the processes of the role."""
    directory: Path
    """Where the history and their logs go."""
    duration_s: float
    """How long events are published."""
    seed: int
    """Chooses the moments of the kills."""
    tell: Callable[[str], None]
    """Is given a line for people now and then."""
    drain_s: float = 15.0
    """How long the last events may make no progress."""
    history: list[Operation] = field(default_factory=list)
    """What was written so far."""
    kills: int = 0
    _began_s: float = 0.0
    _acknowledged: int = 0
    _open: dict[_Place, bytes | None] = field(default_factory=dict)
    """Acknowledged and not yet done."""
    _done: set[_Place] = field(default_factory=set)
    _others_done: int = 0
    _running: dict[_Place, Started] = field(default_factory=dict)
    _stuck: Started | None = None
    _children: dict[Role, _Child] = field(default_factory=dict)
    _started: dict[Role, int] = field(default_factory=lambda: {"publisher": 0, "worker": 0})
    _file: int = -1

    async def run(self) -> None:
        """Go through it: start, kill, and wait until nothing more comes. Fills `history`.

        Raises:
            ChildEnded: A process ended by itself, or does not begin.
            OSError: The directory cannot be written.
        """
        path = self.directory / _HISTORY
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        reading = asyncio.ensure_future(self._read(path))
        try:
            await self._go_through(random.Random(self.seed))
        finally:
            for child in self._children.values():
                await child.end(signal.SIGKILL)
            await sleep(2 * _READ_EVERY_S)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            os.close(self._file)

    async def _go_through(self, chance: random.Random) -> None:
        await self._start("worker")
        await self._start("publisher")
        await self._first_is_handled()
        self._began_s = asyncio.get_running_loop().time()
        async with self._telling():
            await self._until(chance.uniform(0.30, 0.40))
            before = self._stuck
            await self._wait_for(lambda: self._stuck not in (None, before), _STUCK_S_MAX)
            await sleep(chance.uniform(0.1, 0.8) * DELAY_S)  # the attempt is durable by now
            await self._kill("worker")
            await self._until(chance.uniform(0.45, 0.60))
            await self._kill("publisher")
            await self._until(chance.uniform(0.65, 0.80))
            await self._kill("worker")
            await self._until(1.0)
            await self._children.pop("publisher").end(signal.SIGTERM)
            await sleep(2 * _READ_EVERY_S)
            while self._open and await self._wait_for(
                partial(self._has_fewer, len(self._open)), self.drain_s
            ):
                pass
        await self._children.pop("worker").end(signal.SIGTERM)

    def _has_fewer(self, count: int) -> bool:
        return len(self._open) < count

    async def _first_is_handled(self) -> None:
        if not await self._wait_for(lambda: bool(self._done), _START_S_MAX):
            worker = self._children["worker"]
            raise worker.failed(f"handled nothing within {_START_S_MAX:g} s")

    async def _wait_for(self, condition: Callable[[], bool], patience_s: float) -> bool:
        clock_s = asyncio.get_running_loop().time
        end_s = clock_s() + patience_s
        while not condition() and clock_s() < end_s:
            for child in self._children.values():
                child.check()
            await sleep(_READ_EVERY_S)
        return condition()

    async def _until(self, share: float) -> None:
        at_s = share * self.duration_s
        await self._wait_for(lambda: self._passed_s >= at_s, self.duration_s)

    @property
    def _passed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s

    def record(self, operation: Operation) -> None:
        """Add what is known in the end to the history, in the file too."""
        self.history.append(operation)
        with (self.directory / _HISTORY).open("ab") as file:
            file.write(encode(operation))

    # --- processes -----------------------------------------------------------------------------

    async def _start(self, role: Role) -> None:
        number = self._started[role]
        self._started[role] += 1
        child = _Child(role, number, self.directory)
        await child.start(self.command(role, number), self._file)
        self._children[role] = child

    async def _kill(self, role: Role) -> None:
        child = self._children[role]
        child.check()
        stuck = self._stuck
        await child.end(signal.SIGKILL)
        os.write(self._file, encode(Died(process=child.name)))
        self.kills += 1
        self.tell(
            f"      kill -9 {child.pid}, the {role}"
            + (f", while the unlucky key waits for attempt {stuck.attempt + 1}" if stuck else "")
        )
        await self._start(role)

    # --- the history ---------------------------------------------------------------------------

    async def _read(self, path: Path) -> None:
        rest = b""
        with path.open("rb") as file:
            while True:
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    self._hear(decode(line))
                await sleep(_READ_EVERY_S)

    def _hear(self, operation: Operation) -> None:
        self.history.append(operation)
        if not isinstance(operation, Published | Started | Ended):
            return
        place = operation.topic, operation.partition, operation.offset
        if isinstance(operation, Published):
            self._acknowledged += 1
            if place not in self._done:
                self._open[place] = operation.key
        elif isinstance(operation, Started):
            self._running[place] = operation
        else:
            run = self._running[place]
            if operation.outcome == "failed":
                self._stuck = run
            elif place not in self._done:
                self._done.add(place)
                self._open.pop(place, None)
                if run.key == UNLUCKY.encode():
                    self._stuck = None
                else:
                    self._others_done += 1

    # --- for people ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _telling(self) -> AsyncGenerator[None]:
        telling = asyncio.ensure_future(self._tell_each_second())
        try:
            yield
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling

    async def _tell_each_second(self) -> None:
        self.tell("   s  acknowledged  handled  other keys/s  the unlucky key")
        others = self._others_done
        second = 0
        while True:
            second += 1
            await sleep(max(0.0, second - self._passed_s))
            per_second, others = self._others_done - others, self._others_done
            behind = sum(1 for key in self._open.values() if key == UNLUCKY.encode())
            unlucky = "goes on"
            if self._stuck:
                failed = counted(self._stuck.attempt, "time")
                unlucky = f"failed {failed}; waiting behind it: {max(0, behind - 1)}"
            self.tell(
                f"{second:4}  {self._acknowledged:12,}  {len(self._done):7,}  "
                f"{per_second:12,}  {unlucky}"
            )
