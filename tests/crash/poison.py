"""What the processes of test_poison.py run: handlers among which one kills its process."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Batch, Context, Dead, Limits, Retry, RetryLater, event
from eventlane.clock import SystemClock, sleep
from eventlane.outcome import Outcome
from eventlane.testing.history import Ended, Started
from eventlane.testing.stage import Storage
from tests.crash.children import EXITED, end_with_parent, name, record
from tests.crash.recording import RecordingBroker

PARTITIONS = 4
POISONS = ("poison", "venom")
BYSTANDERS = tuple(f"b{number}" for number in range(6))
LONG = "long"
_LONG_S = 0.1

now_ms = SystemClock().now_ms


@event(topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int
    kills: bool = False


@event(topic="effects", key="key")
class Effect(msgspec.Struct, frozen=True):
    """Published with the outcome of each event."""

    group: str
    key: str
    number: int


class Handlers:
    """The handlers of one scenario."""

    def __init__(self, scenario: str, directory: Path) -> None:
        self._scenario = scenario
        self._mended = directory / "mended"
        self._running = 0

    async def handle(self, step: Step, ctx: Context) -> Outcome | None:
        run = self._began(ctx)
        outcome: Outcome | None = None
        if step.kills:
            outcome = await self._poison(step, ctx)
        elif self._scenario == "behind a parked head" and step.key in POISONS and ctx.attempt == 1:
            outcome = RetryLater(0.2)
        else:
            await sleep(0.01)
        self._ended(run, step, ctx, outcome)
        return outcome

    def handle_in_thread(self, step: Step, ctx: Context) -> None:
        run = self._began(ctx)
        if step.kills and not self._mended.exists():
            deadline_s = time.monotonic() + 0.2
            while self._running < 2 and time.monotonic() < deadline_s:
                pass
            os._exit(EXITED)
        self._ended(run, step, ctx, None)

    async def handle_list(self, steps: list[Step], contexts: list[Context]) -> None:
        runs = [self._began(each) for each in contexts]
        if any(step.kills for step in steps) and not self._mended.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        await sleep(0.01)
        for run, step, ctx in zip(runs, steps, contexts, strict=True):
            self._ended(run, step, ctx, None)

    async def take_long(self, step: Step, ctx: Context) -> None:
        run = self._began(ctx)
        await sleep(_LONG_S)
        self._ended(run, step, ctx, None)

    async def look(self, effect: Effect, ctx: Context) -> None:
        pass

    async def _poison(self, step: Step, ctx: Context) -> Outcome | None:
        if self._scenario == "parked" and ctx.attempt == 1:
            return RetryLater(0.2)
        if self._scenario == "replayed" and not ctx.replayed:
            return Dead()
        if self._mended.exists():
            return None
        deadline_s = time.monotonic() + 0.2
        while self._running < 2 and time.monotonic() < deadline_s:
            await sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    def _began(self, ctx: Context) -> Started:
        run = Started.of(ctx, process=name(), at_ms=now_ms())
        record(run)
        self._running += 1
        return run

    def _ended(self, run: Started, step: Step, ctx: Context, outcome: Outcome | None) -> None:
        self._running -= 1
        if outcome is None:
            ctx.publish(Effect(ctx.group, step.key, step.number))
        record(Ended.of(run, "done" if outcome is None else "failed"))


def made_app(
    scenario: str, directory: Path, wrap: Callable[[Any], Any] = lambda broker: broker
) -> App:
    storage = Storage(f"embedded:{directory}", wrap=wrap)
    app = storage.app(partitions=PARTITIONS, limits=Limits(hold_s_max=0.1))
    handlers = Handlers(scenario, directory)
    retry = Retry(attempts=3, delay_s=0.01)
    if scenario == "in a thread":
        app.subscribe(Step, group="main", retry=retry, concurrency=8)(handlers.handle_in_thread)
    elif scenario == "in a list":
        app.subscribe(Step, group="main", retry=retry, batch=Batch(8))(handlers.handle_list)
    elif scenario == "in one lane":
        app.subscribe(Step, group="main", retry=retry, ordering="partition", on_dead="continue")(
            handlers.handle
        )
    elif scenario == "under continue":
        app.subscribe(Step, group="main", retry=retry, on_dead="continue")(handlers.handle)
    else:
        app.subscribe(Step, group="main", retry=retry)(handlers.handle)
    if scenario == "beside a slow group":
        app.subscribe(Step, group=LONG, retry=retry, concurrency=8)(handlers.take_long)
    app.subscribe(Effect, group="effects")(handlers.look)
    return app


def main(arguments: Sequence[str]) -> None:
    end_with_parent()
    scenario, directory = arguments
    asyncio.run(
        made_app(
            scenario,
            Path(directory),
            lambda real: RecordingBroker(real, name(), record),
        ).run()
    )


if __name__ == "__main__":
    main(sys.argv[3:])
