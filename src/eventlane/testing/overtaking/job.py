"""What the two processes of `prove overtake` do: publish steadily, and call a service that refuses.

Each writes its part of the history to its standard output, a file to which both append.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import msgspec

from eventlane.app import App
from eventlane.clock import SystemClock, sleep
from eventlane.event import event
from eventlane.handler import Context
from eventlane.message import event_ids
from eventlane.retry import Retry
from eventlane.testing.history import Ended, Operation, Published, Started, encode

__all__ = [
    "DELAY_S",
    "GROUP",
    "KEYS",
    "NUMBERS_A_PUBLISHER",
    "REFUSALS",
    "UNLUCKY",
    "ServiceDown",
    "Step",
    "end_with_parent",
    "handle",
    "made_app",
    "new_event_id",
    "now_ms",
    "publish_steadily",
    "record",
]

UNLUCKY = "unlucky"
KEYS = (UNLUCKY, *(f"key-{number:02}" for number in range(1, 50)))
REFUSALS = 3
"""How many calls for an event the service refuses, where it refuses any."""
DELAY_S = 0.5
"""Before each retry."""
GROUP = "prove"
NUMBERS_A_PUBLISHER = 1_000_000
"""How far the numbers of one publisher are from those of the next."""

_INTERVAL_S = 0.2
"""Every key gets an event so often."""
_REFUSED_EVERY, _REFUSED_FIRST = 10, 3
"""Of the unlucky key an event in 2 s is refused: for most of the time it is stuck."""
_CALL_S = 0.001
"""How long the service takes to answer."""

now_ms = SystemClock().now_ms


@event(topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    """The events of one key are numbered in the order in which they are published."""

    key: str
    number: int


class ServiceDown(Exception):
    """What the handler raises."""


def record(operation: Operation) -> None:
    """Write a line of the history: the kernel's from then on, whatever happens to this process."""
    os.write(1, encode(operation))


def new_event_id() -> UUID:
    """A new event id, which begins with the time."""
    return UUID(bytes=event_ids(now_ms(), 1)[0])


async def _call_service(directory: Path, step: Step) -> None:
    """A service that keeps count of its calls in a file, which no kill of its callers takes back.

    Raises:
        ServiceDown: It refuses.
    """
    await sleep(_CALL_S)
    if step.key == UNLUCKY and step.number % _REFUSED_EVERY == _REFUSED_FIRST:
        with (directory / f"calls-{step.number}").open("ab", buffering=0) as calls:
            calls.write(b".")
            if calls.tell() <= REFUSALS:
                raise ServiceDown(f"call {calls.tell()} is refused")


async def handle(directory: Path, step: Step, run: Started) -> None:
    """The handler: call the service.

    Raises:
        ServiceDown: It refuses.
    """
    record(run)
    try:
        await _call_service(directory, step)
    except ServiceDown:
        record(Ended.of(run, "failed"))
        raise
    record(Ended.of(run, "done"))


async def publish_steadily(publish: Callable[[Step], Awaitable[Published]], number: int) -> None:
    """Publish an event of every key each 0.2 s until SIGTERM; those of one key one by one."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    began_s = loop.time()

    async def one(step: Step) -> None:
        record(await publish(step))

    for count in itertools.count(1):
        step = number * NUMBERS_A_PUBLISHER + count
        await asyncio.gather(*(one(Step(key, step)) for key in KEYS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(began_s + count * _INTERVAL_S):
                await stop.wait()
            return


def end_with_parent() -> None:
    """End this process when whoever started it has ended: nothing is left behind."""

    def watch() -> None:
        while os.read(0, 1024):  # nothing is read once the other end is closed
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def made_app(directory: Path, *, process: str = "") -> App:
    """The app on a directory: one group, whose handler calls the service."""
    app = App(f"embedded:{directory}", name="prove", partitions=8)

    async def call(step: Step, ctx: Context) -> None:
        await handle(directory, step, Started.of(ctx, process=process, at_ms=now_ms()))

    retry = Retry(attempts=2 * REFUSALS, delay_s=DELAY_S, factor=1, immediate=0)
    app.subscribe(Step, group=GROUP, retry=retry)(call)
    return app


async def _publisher(directory: Path, number: int) -> None:
    async with made_app(directory) as app:

        async def publish(step: Step) -> Published:
            event_id = new_event_id()
            position = await app.publish(step, event_id=event_id)
            return Published(
                **position._asdict(),
                key=step.key.encode(),
                event_id=event_id,
                process=f"publisher-{number}",
            )

        await publish_steadily(publish, number)


def _main(role: str, directory: str, number: str) -> None:
    end_with_parent()
    if role == "publisher":
        asyncio.run(_publisher(Path(directory), int(number)))
    else:
        asyncio.run(made_app(Path(directory), process=f"worker-{number}").run())


if __name__ == "__main__":
    _main(*sys.argv[1:])
