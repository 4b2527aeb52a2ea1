"""The process of test_failing_sync.py: it publishes and handles, on a disk whose fsync may fail."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from eventlane import (
    App,
    Context,
    Dead,
    Limits,
    NotFound,
    PublishFailed,
    Retry,
    RetryLater,
    StorageError,
    event,
)
from eventlane.clock import SystemClock
from eventlane.outcome import LaneOnDead, Outcome
from eventlane.testing.history import Ended, Started
from eventlane.testing.stage import PATIENCE_S, Step, Storage
from tests.crash.children import end_with_parent, name, record, say
from tests.crash.failing_sync import Syncs
from tests.crash.recording import RecordingBroker, Say

T = TypeVar("T")
GROUPS: dict[str, LaneOnDead] = {"one": "park", "two": "continue"}
KEYS = "abc"
NUMBERS = range(6)
TIMES_MAX = 12

now_ms = SystemClock().now_ms


@event(topic="effects", key="key")
class Effect(Step, frozen=True):
    """Published by the handlers, with their outcome."""

    group: str


def fate(step: Step, ctx: Context) -> Outcome | None:
    """What becomes of a run: decided by the event, so that a restart changes nothing."""
    kind = (step.number, step.key)
    if kind == (1, "a") and ctx.attempt < 3:
        return RetryLater(0.01)
    if kind == (1, "b") and ctx.attempt < 2:
        return RetryLater(0.05)  # longer than `hold_s_max`: it is parked
    if kind in {(2, "a"), (3, "b")} and not ctx.replayed:
        return Dead()
    return None


def made_app(directory: str, process: str, say_to: Say = record) -> App:
    storage = Storage(
        f"embedded:{directory}",
        durability="fsync",
        wrap=lambda real: RecordingBroker(real, process, say_to),
    )
    app = storage.app(partitions=2, limits=Limits(hold_s_max=0.02))

    async def handle(step: Step, ctx: Context) -> Outcome | None:
        run = Started.of(ctx, process=process, at_ms=now_ms())
        say_to(run)
        outcome = fate(step, ctx)
        if outcome is None:
            ctx.publish(Effect(step.key, step.number, ctx.group))
        say_to(Ended.of(run, "done" if outcome is None else "failed"))
        return outcome

    async def look(effect: Effect, ctx: Context) -> None:
        pass

    for group, on_dead in GROUPS.items():
        app.subscribe(Step, group=group, retry=Retry(attempts=5, jitter=0), on_dead=on_dead)(handle)
    app.subscribe(Effect, group="effects")(look)
    return app


async def again(directory: str, process: str, do: Callable[[App], Awaitable[T]]) -> T:
    """Do something with an app until it succeeds, as its users and a supervisor would."""
    for _ in range(TIMES_MAX):
        try:
            async with made_app(directory, process) as app:
                return await do(app)
        except (StorageError, PublishFailed):
            continue
    raise AssertionError(f"expected that it succeeds, tried {TIMES_MAX} times")


async def go_through(directory: str, syncs: Syncs) -> None:
    """Publish, handle, replay: what is acknowledged is said, and what was refused is repeated."""
    left = list(NUMBERS)

    async def publish(app: App) -> None:
        while left:
            # All of one number are one transaction.
            try:
                await app.publish_many([Step(key, left[0]) for key in KEYS])
            except PublishFailed:
                say("refused", left[0])
                raise
            say("acknowledged", left.pop(0), syncs.so_far)

    async def replay(app: App) -> None:
        with contextlib.suppress(NotFound):  # It was done before, and that could not be told.
            await app.replay("type:Step", reason="once more", rate_per_s=None, pause_above=None)

    async def handle(app: App) -> None:
        await app.run_until_idle(PATIENCE_S)

    for do in (publish, handle, replay, handle):
        await again(directory, name(), do)


def main(role: str, directory: str, fails_at: str, count: str, lives_for: str) -> None:
    end_with_parent()
    syncs = Syncs(int(fails_at), int(count), None if lives_for == "None" else int(lives_for))
    syncs.install()
    asyncio.run(go_through(directory, syncs))
    say("came to its end", syncs.so_far)


if __name__ == "__main__":
    main(*sys.argv[2:])
