"""How long it takes until an event that one process publishes is in a handler of another one.

One event at a time, with pauses: so it is the wake-up that is measured, and not how much goes
through.
"""

import argparse
import asyncio
import fcntl
import json
import os
import queue
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from benchmarks.baseline import StraightLog, orders_since
from benchmarks.measuring import Benchmark, Result, Settings, Turns, compared
from benchmarks.orders import Order
from eventlane import App, Context

__all__ = ["BENCHMARKS"]

EVENTS = 400
UNCOUNTED = 20
"""The first ones of a turn, while caches fill."""
PAUSE_S = (0.005, 0.015)
"""Drawn, so that what happens at intervals is met at any moment of it."""

Side = Literal["ours", "straight"]
Publish = Callable[[Order], Awaitable[object]]


class Delays:
    """How long events were under way, in the process that handles them."""

    def __init__(self, events: int) -> None:
        self._left = events
        self._delays_s: list[float] = []
        self.end = asyncio.Event()

    async def handle(self, order: Order) -> None:
        # The host's processes share this clock.
        self._delays_s.append((time.monotonic_ns() - int(order.order_id)) / 1e9)
        self._left -= 1
        if not self._left:
            self.end.set()

    def say(self) -> None:
        percentiles = statistics.quantiles(self._delays_s[UNCOUNTED:], n=100)
        sys.stdout.write(json.dumps({"p50": percentiles[49], "p99": percentiles[98]}) + "\n")


# --- the process that handles -----------------------------------------------------------------


def say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


async def handle_ours(directory: Path, delays: Delays) -> None:
    app = App(f"embedded:{directory}")

    @app.subscribe(Order, group="other")
    async def handle(order: Order, _ctx: Context) -> None:
        await delays.handle(order)

    async with app, app.handling():
        say_ready()
        await delays.end.wait()


async def handle_straight(directory: Path, delays: Delays) -> None:
    connection = sqlite3.connect(directory / "straight.db", isolation_level=None)
    some = asyncio.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.setblocking(False)
        bell.bind(str(directory / "bell"))

        def rung() -> None:
            bell.recv(16)
            some.set()

        asyncio.get_running_loop().add_reader(bell, rung)
        say_ready()
        last = 0
        while not delays.end.is_set():
            await some.wait()
            some.clear()
            last, found = orders_since(connection, last)
            for order in found:
                await delays.handle(order)
    connection.close()


# --- the process that publishes ---------------------------------------------------------------


@asynccontextmanager
async def publishing_ours(directory: Path) -> AsyncGenerator[Publish]:
    async with App(f"embedded:{directory}") as app:
        yield app.publish


@asynccontextmanager
async def publishing_straight(directory: Path) -> AsyncGenerator[Publish]:
    log = StraightLog(directory)
    loop = asyncio.get_running_loop()
    waiting: queue.SimpleQueue[tuple[Order, asyncio.Future[None]] | None] = queue.SimpleQueue()
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def write() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            while (item := waiting.get()) is not None:
                order, future = item
                entry = log.entry(order)
                fcntl.flock(lock, fcntl.LOCK_EX)
                log.write([[entry]])
                fcntl.flock(lock, fcntl.LOCK_UN)
                bell.sendto(b"!", str(directory / "bell"))
                loop.call_soon_threadsafe(future.set_result, None)

    def publish(order: Order) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = loop.create_future()
        waiting.put((order, future))
        return future

    thread = threading.Thread(target=write)
    thread.start()
    yield publish
    waiting.put(None)
    thread.join()
    os.close(lock)
    log.close()


async def delays_of(side: Side, directory: Path, events: int) -> dict[str, float]:
    """Publish here, let another process handle, and hear from it how long it took."""
    chance = random.Random(7)
    publishing = publishing_ours if side == "ours" else publishing_straight
    async with publishing(directory) as publish:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __spec__.name, side, directory, str(events)),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        for number in range(events):
            moment = str(time.monotonic_ns())
            await publish(Order(moment, f"c-{number % 1000}", f"sku-{number % 97}", 1, 0.5, number))
            await asyncio.sleep(chance.uniform(*PAUSE_S))
        output, _ = await process.communicate()
    assert process.returncode == 0, f"it ended with {process.returncode}"
    figures: dict[str, float] = json.loads(output)
    return figures


async def run(settings: Settings) -> list[Result]:
    events = UNCOUNTED + settings.events(EVENTS)
    found: dict[str, Turns] = {"p50": Turns(), "p99": Turns()}
    for turn in range(settings.repeats + 1):
        ours = await delays_of("ours", settings.directory / f"ours-{turn}", events)
        straight = await delays_of("straight", settings.directory / f"straight-{turn}", events)
        if turn:  # the first one does not count
            for name, turns in found.items():
                turns.ours_s.append(ours[name])
                turns.baseline_s.append(straight[name])
    return [
        compared(
            f"wake_{name}",
            turns,
            1,
            unit="us/event",
            baseline="a thread that locks, writes and rings; a process that reads at the ring",
            target={"p50": "<= 1.5", "p99": "<= 2"}[name],
            note="From before `publish` to the first line of the handler, in another process.",
        )
        for name, turns in found.items()
    ]


BENCHMARKS = [Benchmark(name="wake", rows=("wake_p50", "wake_p99"), run=run)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "straight"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("events", type=int)
    chosen = parser.parse_args()
    delays = Delays(chosen.events)
    handle = handle_ours if chosen.side == "ours" else handle_straight
    asyncio.run(handle(chosen.directory, delays))
    delays.say()
