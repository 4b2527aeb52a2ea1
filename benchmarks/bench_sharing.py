"""Several processes that share one group: how much faster two are, and how soon one takes over.

The workers say each event that they have handled, on their standard output; the process that
measures publishes, reads, and kills.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.measuring import Benchmark, Result, Settings, compared, in_turns, plain
from benchmarks.orders import Order, orders
from eventlane import App, Context, Limits

__all__ = ["BENCHMARKS"]

GROUP = "workers"
PARTITIONS = 8
EVENTS = 2_000
ROUNDS_OF_WORK = 15_000
"""Some millisecond of computing for each event."""
LEASE_S = 2.0
PAUSE_S = 0.02
"""Each partition gets an event this often while it is waited for a takeover."""
SAID_S = 0.02
"""How often a worker says what it has handled, so that who reads it hardly needs the cores."""
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Handled:
    """What a worker says."""

    worker: int
    partition: int
    at_s: float
    was_work: bool
    """It was computed for."""


def app_at(directory: Path) -> App:
    return App(
        f"embedded:{directory}",
        partitions=PARTITIONS,
        limits=Limits(lease_s=LEASE_S, stall_s_max=LEASE_S / 2),
    )


# --- the worker -------------------------------------------------------------------------------


def compute(rounds: int) -> int:
    number = 1
    for _ in range(rounds):
        number = number * 31 % 1_000_003
    return number


async def work(directory: Path, rounds: int) -> None:
    app = app_at(directory)
    said: list[bytes] = []

    @app.subscribe(Order, group=GROUP)
    async def handle(order: Order, ctx: Context) -> None:
        if order.quantity:
            compute(rounds)
        said.append(b"%d %d %d\n" % (ctx.message.partition, time.monotonic_ns(), order.quantity))

    async with app, app.handling():
        while True:  # until it is killed
            await asyncio.sleep(SAID_S)
            os.write(sys.stdout.fileno(), b"".join(said))
            said.clear()


# --- those who measure ------------------------------------------------------------------------


class Team:
    """Workers in processes of their own, and what they have handled."""

    def __init__(self, directory: Path, count: int, rounds: int) -> None:
        self._command = (sys.executable, "-m", __spec__.name, str(directory), str(rounds))
        self._count = count
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._some = asyncio.Event()
        self._lacks_some = False
        """One was killed on purpose."""
        self.handled: list[Handled] = []

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            process = await asyncio.create_subprocess_exec(
                *self._command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
            )
            self._processes.append(process)
            self._readers.append(asyncio.create_task(self._read(number, process)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.gather(*self._readers)

    def signal(self, worker: int, number: signal.Signals) -> None:
        self._lacks_some = True
        os.kill(self._processes[worker].pid, number)

    def owners(self, since_s: float) -> dict[int, int]:
        """Which worker handled each partition last; of what was handled since then."""
        return {each.partition: each.worker for each in self.handled if each.at_s >= since_s}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                if any(reader.done() for reader in self._readers) and not self._lacks_some:
                    raise AssertionError("expected that all workers go on, but one has ended")
                self._some.clear()
                await self._some.wait()

    async def _read(self, worker: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            partition, at_ns, quantity = map(int, line.split())
            self.handled.append(Handled(worker, partition, at_ns / 1e9, quantity > 0))
            self._some.set()
        asyncio.get_running_loop().call_soon(self._some.set)  # it has ended


def one_of_each_partition() -> list[Order]:
    """So many keys that each partition has some; they are handled at once."""
    return [Order("", f"c-{number}", "", 0, 0.0, 0) for number in range(4 * PARTITIONS)]


@contextlib.asynccontextmanager
async def trickle(app: App) -> AsyncGenerator[None]:
    """An event of each partition, again and again."""

    async def publish() -> None:
        while True:
            await app.publish_many(one_of_each_partition())
            await asyncio.sleep(PAUSE_S)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def shared_out(team: Team, workers: int) -> None:
    """Until each worker has its share, which is the same for all."""
    share = PARTITIONS // workers
    seen_s = time.monotonic()

    def is_even() -> bool:
        owners = list(team.owners(seen_s).values())
        return all(owners.count(worker) == share for worker in range(workers))

    await team.until(is_even)


# --- two processes against one ----------------------------------------------------------------


async def two_processes(settings: Settings) -> list[Result]:
    events = [each for each in orders(settings.events(EVENTS)) if each.quantity]
    numbers = iter(range(1_000))

    async def took_s(workers: int) -> float:
        directory = settings.directory / f"cpu-{next(numbers)}"
        async with app_at(directory) as app, Team(directory, workers, ROUNDS_OF_WORK) as team:
            async with trickle(app):
                await shared_out(team, workers)
            team.handled.clear()
            start_s = time.monotonic()
            await app.publish_many(events)
            await team.until(lambda: sum(each.was_work for each in team.handled) >= len(events))
            return max(each.at_s for each in team.handled) - start_s

    return [
        compared(
            "two_processes",
            await in_turns(lambda: took_s(2), lambda: took_s(1), settings.repeats),
            len(events),
            baseline="one process with the same events",
            target=">= 1.7",
            note=f"A handler that computes for about a millisecond; {os.cpu_count()} cores.",
        )
    ]


# --- taking over ------------------------------------------------------------------------------


async def takeover(directory: Path, number: signal.Signals) -> tuple[float, float]:
    """Seconds until another worker has handled of each partition of one that was ended.

    The second number is the longest pause between two events of a partition before.
    """
    async with app_at(directory) as app, Team(directory, 2, 0) as team, trickle(app):
        await shared_out(team, 2)
        since_s = time.monotonic()
        await team.until(lambda: team.handled[-1].at_s > since_s + 0.5)
        theirs = {place for place, owner in team.owners(since_s).items() if owner == 0}
        pause_s = longest_pause_s([each for each in team.handled if each.at_s >= since_s])
        ended_s = time.monotonic()
        team.signal(0, number)
        while number == signal.SIGSTOP and not is_free(directory):
            team.signal(0, signal.SIGCONT)
            await asyncio.sleep(PAUSE_S / 10)
            ended_s = time.monotonic()
            team.signal(0, number)

        def first() -> dict[int, float]:
            """When the other one handled something of these partitions first."""
            found: dict[int, float] = {}
            for each in team.handled:
                if each.worker == 1 and each.at_s > ended_s and each.partition in theirs:
                    found.setdefault(each.partition, each.at_s)
            return found

        await team.until(lambda: len(first()) == len(theirs))
        return max(first().values()) - ended_s, pause_s


def is_free(directory: Path) -> bool:
    """Whether a frozen process has not the writers' lock: with it, it stops all of them for ever.

    Others may have it for a moment.
    """
    until_s = time.monotonic() + LEASE_S / 10
    with contextlib.ExitStack() as stack:
        for name in ("eventlane.turn", "eventlane.lock"):
            file = stack.enter_context((directory / name).open("rb"))
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > until_s:
                        return False
                    continue
                break
    return True


def longest_pause_s(handled: Sequence[Handled]) -> float:
    last: dict[int, float] = {}
    longest_s = 0.0
    for each in handled:
        longest_s = max(longest_s, each.at_s - last.get(each.partition, each.at_s))
        last[each.partition] = each.at_s
    return longest_s


def taking_over(name: str, number: signal.Signals, target_s: float, note: str) -> Benchmark:
    async def run(settings: Settings) -> list[Result]:
        found = [
            await takeover(settings.directory / f"{name}-{turn}", number)
            for turn in range(settings.repeats)
        ]
        return [
            plain(
                name,
                [took_s for took_s, _ in found],
                unit="s",
                baseline="the longest pause of a partition before",
                baseline_values=[pause_s for _, pause_s in found],
                target=f"<= {target_s:g}",
                note=note,
            )
        ]

    return Benchmark(name=name, rows=(name,), run=run)


BENCHMARKS = [
    Benchmark(name="two_processes", rows=("two_processes",), run=two_processes),
    taking_over(
        "takeover_killed",
        signal.SIGKILL,
        1.0,
        "Until another process has handled an event of each partition of the killed one.",
    ),
    taking_over(
        "takeover_frozen",
        signal.SIGSTOP,
        LEASE_S + 1,
        f"The same, frozen by SIGSTOP while it does not write; lease_s is {LEASE_S:g}, and the "
        "target lease_s + 1.",
    ),
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("rounds", type=int)
    chosen = parser.parse_args()
    asyncio.run(work(chosen.directory, chosen.rounds))
