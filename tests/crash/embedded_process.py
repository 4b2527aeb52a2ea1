"""One process of the crash tests: does what it is told, and says what happens, a word a line."""

import asyncio
import sys
from typing import Any

from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.errors import Fenced
from eventlane.settlement import Acquired, Lost
from eventlane.testing.stage import TOPIC, record, settlement, spec
from eventlane.topic import Topic


def say(*words: object) -> None:
    print(*words, flush=True)


async def publish(broker: Any, key: str, count: str) -> None:
    """Publish numbers under one key, 20 in flight, and say which are acknowledged."""
    numbers = iter(range(int(count)))

    async def publisher() -> None:
        for number in numbers:
            position = await broker.publish(TOPIC, record(key, f"{key}:{number}"))
            say(number, position.partition, position.offset)

    await asyncio.gather(*(publisher() for _ in range(20)))


async def own(broker: Any) -> None:
    """Own what can be owned, and beat; after a loss try to settle nevertheless."""
    consumer = await broker.join(spec())

    async def beat() -> None:
        while True:
            consumer.beat(1, 0)
            await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0.05)

    beating = asyncio.ensure_future(beat())
    held: Acquired | None = None
    while not beating.done():
        for change in await consumer.changes():
            if isinstance(change, Acquired):
                held = change
                say("acquired", change.epoch)
            elif isinstance(change, Lost) and held is not None:
                say("lost")
                try:
                    await consumer.settle([settlement(held, 1, done=1)])
                except Fenced as error:
                    say("fenced", *error.partitions[0])


async def hold(broker: Any) -> None:
    """Hang within a transaction."""
    with broker._file.lock:
        say("locked")
        await asyncio.Event().wait()


async def main(directory: str, task: str, *arguments: str) -> None:
    broker = await connect(f"embedded:{directory}", limits=Limits(lease_s=1, stall_s_max=0.5))
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    say("open")
    await {"publish": publish, "own": own, "hold": hold}[task](broker, *arguments)
    await broker.aclose()
    say("closed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
