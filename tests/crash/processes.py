"""The processes that test_kill.py starts and kills: they print one line for each thing done."""

import asyncio
import itertools
import os
import sys

import msgspec

from eventlane import App, Context, Retry, event

KEYS = tuple(f"k{number}" for number in range(8))
GROUPS = ("one", "two")
FAILING = 31
"""Every so-manieth number fails at its first attempts."""


@event(topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int


@event(topic="effects", key="key")
class Effect(msgspec.Struct, frozen=True):
    """Published by the handlers of the first group, with their outcome."""

    key: str
    number: int


def say(*words: object) -> None:
    # Not print: what has been written is the kernel's, whatever happens to this process.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def app(directory: str) -> App:
    made = App(f"embedded:{directory}", partitions=4)
    retry = Retry(attempts=50, delay_s=0.01, factor=1, jitter=0.5)

    async def handle(step: Step, ctx: Context) -> None:
        say("run", ctx.group, step.key, step.number, ctx.attempt)
        if ctx.group == "one":
            ctx.publish(Effect(step.key, step.number))
        if step.number % FAILING == 0 and ctx.attempt < 4:
            raise RuntimeError("not yet")

    async def look(effect: Effect, ctx: Context) -> None:
        pass

    for group in GROUPS:
        made.subscribe(Step, group=group, retry=retry)(handle)
    made.subscribe(Effect, group="effects")(look)
    return made


async def publish(directory: str, first: int) -> None:
    async with app(directory) as publisher:

        async def one(key: str, number: int) -> None:
            position = await publisher.publish(Step(key, number))
            say("acknowledged", key, number, position.partition, position.offset)

        for number in itertools.count(first):
            await asyncio.gather(*(one(key, number) for key in KEYS))


if __name__ == "__main__":
    role, directory, first = sys.argv[1:]
    if role == "publisher":
        asyncio.run(publish(directory, int(first)))
    else:
        asyncio.run(app(directory).run())
