"""The processes that `make soak` starts and kills: a publisher, an operator, workers of each group.

Of the group `one` some events fail now and then, some are parked, and some die and hold up what
follows in their lane; of the group `two` some fail until no attempt is left, and their lane goes
on.
"""

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Context, Dead, Limits, Retry, RetryLater, Topic, event
from eventlane.clock import SystemClock, sleep
from eventlane.outcome import Outcome
from eventlane.testing.history import Ended, Published, Started
from eventlane.testing.stage import Storage
from tests.crash.children import end_with_parent, name, record, say
from tests.crash.processes import GROUPS, operate_at_random
from tests.crash.recording import RecordingBroker

PARTITIONS = 6
RETAINED_BYTES = 1_000_000
KEYS = tuple(f"k{number}" for number in range(40))
PUBLISHED_S = 0.15
OPERATED_S = 0.5
PADDING = "." * 200
RETRIES = {
    "one": Retry(attempts=50, delay_s=0.02, factor=1, jitter=0.5),
    "two": Retry(attempts=4, delay_s=0.02, jitter=0.5),
}

now_ms = SystemClock().now_ms


@event(topic=Topic("steps", partitions=PARTITIONS, retention_bytes=RETAINED_BYTES), key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int
    padding: str = PADDING


@event(topic=Topic("effects", partitions=PARTITIONS, retention_bytes=RETAINED_BYTES), key="key")
class Effect(msgspec.Struct, frozen=True):
    """Published by the handlers, with their outcome."""

    group: str
    key: str
    number: int


def hush(directory: Path) -> Path:
    """While this file exists, nothing is published."""
    return directory / "hush"


def fate(step: Step, ctx: Context) -> Outcome | None:
    """What becomes of a run: decided by the event, so that a restart changes nothing.

    Raises:
        RuntimeError: It fails, to be retried at once or soon.
    """
    kind = (7 * step.number + KEYS.index(step.key)) % 500
    letter = ctx.trouble.letter if ctx.trouble else None
    deaths = 0 if letter is None else 1 + letter.replay_count
    if kind < 5 and ctx.attempt < 4:
        raise RuntimeError("not yet")
    if ctx.group == "one":
        if kind in {10, 11} and ctx.attempt < 3:
            return RetryLater(0.3)  # longer than `hold_s_max`: it is parked
        if kind == 20 and deaths < 1 + step.number % 2:
            return Dead("not so soon")
    elif kind in {30, 31} and deaths < 1:
        raise RuntimeError("never, until it is replayed")
    return None


def made_app(directory: Path, group: str = "", *, process: str = "") -> App:
    """The app; with a group, what it handles of it is recorded."""

    def wrap(real: Any) -> Any:
        return RecordingBroker(real, process, record) if process else real

    limits = Limits(hold_s_max=0.1, replays_max=1_000_000)
    app = Storage(f"embedded:{directory}", wrap=wrap).app(partitions=PARTITIONS, limits=limits)

    async def handle(step: Step, ctx: Context) -> Outcome | None:
        run = Started.of(ctx, process=process, at_ms=now_ms())
        record(run)
        try:
            outcome = fate(step, ctx)
        except RuntimeError:
            record(Ended.of(run, "failed"))
            raise
        if outcome is None:
            ctx.publish(Effect(ctx.group, step.key, step.number))
        record(Ended.of(run, "done" if outcome is None else "failed"))
        return outcome

    if group:
        app.subscribe(Step, group=group, retry=RETRIES[group], on_dead=GROUPS[group])(handle)
    return app


async def publish(directory: Path) -> None:
    """Publish an event of each key, again and again; what is acknowledged is recorded."""
    async with made_app(directory) as publisher:

        async def one(step: Step) -> None:
            position = await publisher.publish(step)
            record(Published(**position._asdict(), key=step.key.encode(), process=name()))

        for number in itertools.count():
            await asyncio.gather(*(one(Step(key, number)) for key in KEYS))
            if hush(directory).exists():
                say("hushed")
                while hush(directory).exists():
                    await sleep(PUBLISHED_S)
            await sleep(PUBLISHED_S)


async def operate(directory: Path, seed: int) -> None:
    async with made_app(directory) as app:
        await operate_at_random(app, seed, OPERATED_S)


def main(role: str, place: str, argument: str) -> None:
    end_with_parent()
    directory = Path(place)
    if role == "publisher":
        asyncio.run(publish(directory))
    elif role == "operator":
        asyncio.run(operate(directory, int(argument)))
    else:
        asyncio.run(made_app(directory, argument, process=name()).run())


if __name__ == "__main__":
    main(*sys.argv[2:])
