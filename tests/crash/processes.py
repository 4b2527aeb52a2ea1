"""The processes that test_kill.py starts and kills: a publisher, workers, an operator."""

import asyncio
import contextlib
import itertools
import random
import sys
from typing import Any

import msgspec

from eventlane import (
    App,
    Conflict,
    Context,
    Dead,
    DeadLetter,
    Limits,
    NotFound,
    Refused,
    Retry,
    RetryLater,
    event,
)
from eventlane.clock import SystemClock, sleep
from eventlane.operation import Operation
from eventlane.outcome import LaneOnDead, Outcome
from eventlane.testing.history import Ended, Published, Started
from eventlane.testing.stage import Storage
from tests.crash.children import end_with_parent, name, record, say
from tests.crash.recording import RecordingBroker

KEYS = tuple(f"k{number}" for number in range(8))
SOUND = KEYS[:3]
"""Of these no event ever fails."""
GROUPS: dict[str, LaneOnDead] = {"one": "park", "two": "continue"}
OPERATED_S = 0.008
PUBLISHED_S = 0.01

now_ms = SystemClock().now_ms


@event(topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int


@event(topic="effects", key="key")
class Effect(msgspec.Struct, frozen=True):
    """Published by the handlers, with their outcome."""

    group: str
    key: str
    number: int


def fate(step: Step, ctx: Context) -> Outcome | None:
    """What becomes of a run: decided by the event, so that a restart changes nothing.

    Raises:
        RuntimeError: It fails, to be retried at once or soon.
    """
    if step.key in SOUND:
        return None
    kind = (step.number + len(step.key) + KEYS.index(step.key)) % 60
    if kind == 7 and ctx.attempt < 4:
        raise RuntimeError("not yet")
    if kind == 23 and ctx.attempt < 3:
        return RetryLater(0.15)  # longer than `hold_s_max`: it is parked
    if kind in {1, 13, 29, 41, 53}:
        letter = ctx.trouble.letter if ctx.trouble else None
        deaths = 0 if letter is None else 1 + letter.replay_count
        if deaths < 1 + step.number % 2:
            return Dead("not so soon")
    return None


def made_app(directory: str, *, process: str = "") -> App:
    def wrap(real: Any) -> Any:
        return RecordingBroker(real, process, record) if process else real

    storage = Storage(f"embedded:{directory}", wrap=wrap)
    limits = Limits(hold_s_max=0.1, replays_max=1_000_000, parked_per_key_max=200)
    made = storage.app(partitions=4, limits=limits)
    retry = Retry(attempts=50, delay_s=0.01, factor=1, jitter=0.5)

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

    async def look(effect: Effect, ctx: Context) -> None:
        pass

    for group, on_dead in GROUPS.items():
        made.subscribe(Step, group=group, retry=retry, on_dead=on_dead)(handle)
    made.subscribe(Effect, group="effects")(look)
    return made


async def publish(directory: str, first: int) -> None:
    """Publish an event of each key, again and again; what is acknowledged is recorded."""
    async with made_app(directory) as publisher:

        async def one(step: Step) -> None:
            position = await publisher.publish(step)
            record(Published(**position._asdict(), key=step.key.encode(), process=name()))

        for number in itertools.count(first):
            await asyncio.gather(*(one(Step(key, number)) for key in KEYS))
            await sleep(PUBLISHED_S)


async def operate(directory: str, seed: int) -> None:
    async with made_app(directory) as app:
        await operate_at_random(app, seed, OPERATED_S)


async def operate_at_random(app: App, seed: int, pause_s: float) -> None:
    """Do what operators do, at random; what cannot be done is refused, and nothing else happens."""
    chance = random.Random(seed)
    for group in GROUPS:  # Who was killed may have left it paused.
        with contextlib.suppress(NotFound, Conflict):
            await app.resume(group)
    while True:
        do = chance.choice(
            (replay, replay, replay, archive, restore, pause_or_cancel, resume, pause_group)
        )
        try:
            done = await do(app, chance)
        except (Refused, Conflict, NotFound) as error:
            say("refused", do.__name__, str(error))
        else:
            say("operated" if done else "nothing to do", do.__name__)
        await sleep(chance.uniform(0, 2 * pause_s))


async def some_letters(app: App, chance: random.Random, state: Any) -> list[DeadLetter]:
    letters = list(await app.dead_letters(state=state, limit=200))
    return chance.sample(letters, chance.randint(0, min(20, len(letters))))


async def replay(app: App, chance: random.Random) -> bool:
    letters: Any = await some_letters(app, chance, "open")
    if chance.random() < 0.3:
        letters = "" if chance.random() < 0.5 else f"key:{chance.choice(KEYS)}"
    if letters == []:
        return False
    await app.replay(
        letters or "type:Step",
        reason="by chance",
        rate_per_s=chance.choice((None, 50, 500)),
        canary=chance.random() < 0.5,
        pause_above=chance.choice((None, 0.05, 0.5)),
        allow_gap=chance.random() < 0.5,
    )
    return True


async def archive(app: App, chance: random.Random) -> bool:
    letters = await some_letters(app, chance, "open")
    if letters:
        await app.archive(letters[:5], reason="by chance")
    return bool(letters)


async def restore(app: App, chance: random.Random) -> bool:
    letters = await some_letters(app, chance, "archived")
    if letters:
        await app.restore(letters, reason="by chance")
    return bool(letters)


async def one_operation(app: App, chance: random.Random, state: Any) -> Operation | None:
    found = [each for each in await app.operations(state=state) if not each.has_ended]
    return await app.operation(chance.choice(found).id) if found else None


async def pause_or_cancel(app: App, chance: random.Random) -> bool:
    operation = await one_operation(app, chance, "running")
    if operation is None:
        return False
    if chance.random() < 0.3:
        await operation.cancel(reason="by chance")
    else:
        await operation.pause(reason="by chance")
    return True


async def resume(app: App, chance: random.Random) -> bool:
    operation = await one_operation(app, chance, "paused")
    if operation is not None:
        await operation.resume(reason="by chance")
    return operation is not None


async def pause_group(app: App, chance: random.Random) -> bool:
    group = chance.choice(list(GROUPS))
    await app.pause(group, reason="by chance")
    await sleep(chance.uniform(0, OPERATED_S))
    await app.resume(group)
    return True


def main(role: str, directory: str, number: str) -> None:
    end_with_parent()
    if role == "publisher":
        asyncio.run(publish(directory, int(number)))
    elif role == "operator":
        asyncio.run(operate(directory, int(number)))
    else:
        asyncio.run(made_app(directory, process=name()).run())


if __name__ == "__main__":
    main(*sys.argv[2:])
