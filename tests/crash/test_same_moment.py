"""Events that fail at the same moment as something else: written in one transaction with it.

What is the same moment for a broker is one transaction. Here the lock of the file is held until all
of it is queued, so that it is one for certain.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from eventlane import App, Context, Dead, Retry, RetryLater, Topic, event
from eventlane.outcome import Outcome
from eventlane.testing.checker import check
from eventlane.testing.clock import ManualClock
from eventlane.testing.history import Ended, Operation, Started
from eventlane.testing.stage import GROUP, Boom, Storage, until
from tests.crash.recording import RecordingBroker, embedded, file_of, final_of

LONG_S = 100.0
"""Longer than `hold_s_max`: it is parked."""


@event(topic=Topic("steps", partitions=1, retention_s=50.0), key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int


class Stage:
    """A group in whose first runs events wait for each other, and end at the same moment."""

    def __init__(self, directory: Path) -> None:
        self.history: list[Operation] = []
        self.clock = ManualClock()
        self.begun: list[str] = []
        self.go_on = asyncio.Event()
        self.fates: dict[str, list[Outcome | Exception]] = {}
        """By key: what becomes of its first runs, before one is done."""
        self._directory = directory
        self._commands: set[int] = set()
        self._apps = 0

    def app(self) -> App:
        """As another process would make it."""
        self._apps += 1
        process = f"p{self._apps}"
        storage = Storage(
            f"embedded:{self._directory}",
            wrap=lambda real: RecordingBroker(real, process, self.history.append, self._commands),
        )
        app = storage.app(clock=self.clock)
        retry = Retry(attempts=5, delay_s=1.0, jitter=0, immediate=0)

        @app.subscribe(Step, group=GROUP, retry=retry)
        async def handle(step: Step, ctx: Context) -> Outcome | None:
            run = Started.of(ctx, process=process, at_ms=self.clock.now_ms())
            self.history.append(run)
            self.begun.append(step.key)
            await self.go_on.wait()
            fates = self.fates.get(step.key)
            fate = fates.pop(0) if fates else None
            self.history.append(Ended.of(run, "done" if fate is None else "failed"))
            if isinstance(fate, Exception):
                raise fate
            return fate

        return app

    @asynccontextmanager
    async def one_transaction(self, app: App, asked: int) -> AsyncGenerator[None]:
        """What the writer is asked for within it is one transaction: so much, at least."""
        file, writer = file_of(app), embedded(app)._writer
        with file.lock:
            yield
            await until(lambda: writer._queued >= asked, f"{asked} things for one transaction")

    async def end(self, app: App) -> None:
        """Handle everything, in this app and, once it is closed, in another one; judge it."""
        self.go_on.set()
        await app.run_until_idle(10)
        letters = await app.dead_letters()
        if letters:
            await app.replay(letters, reason="the end", canary=False)
            await app.run_until_idle(10)

    async def judge(self) -> None:
        async with self.app() as app:
            await app.run_until_idle(10)
            account = (await app.status()).groups[GROUP]
            assert account.done == account.entered, account
            self.history.append(await final_of(app, "steps", [GROUP]))
        verdict = check(self.history)
        assert verdict.clean, str(verdict)

    def attempts(self, key: str) -> list[tuple[int, int]]:
        """Offset and attempt of each run of a key, in order."""
        return [
            (each.offset, each.attempt)
            for each in self.history
            if isinstance(each, Started) and each.key == key.encode()
        ]


FATES: dict[str, tuple[Outcome | Exception, Outcome | Exception]] = {
    "both fail": (Boom(), Boom()),
    "both die": (Dead(), Dead()),
    "both are parked": (RetryLater(LONG_S), RetryLater(LONG_S)),
    "one fails, one dies": (Boom(), Dead()),
    "one fails, one is parked": (Boom(), RetryLater(LONG_S)),
    "one dies, one is parked": (Dead(), RetryLater(LONG_S)),
    "one stops the partition, one fails": (Dead(lane="stop"), Boom()),
}


@pytest.mark.parametrize("fates", FATES.values(), ids=FATES)
async def test_two_events_of_a_partition_that_fail_at_once_are_both_kept(
    fates: tuple[Outcome | Exception, Outcome | Exception], tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    stage.fates = {"a": [fates[0]], "b": [fates[1]]}
    app = stage.app()
    async with app, app.handling():
        await app.publish_many([Step(key, number) for number in range(3) for key in "abc"])
        await until(lambda: sorted(stage.begun) == ["a", "b", "c"], "that the first of each run")
        async with stage.one_transaction(app, 1):
            stage.go_on.set()
        await stage.end(app)
    await stage.judge()
    for key, first in zip("ab", (0, 1), strict=True):
        runs = stage.attempts(key)
        assert [offset for offset, _ in runs] == [first, first, first + 3, first + 6]
    assert [offset for offset, _ in stage.attempts("c")] == [2, 5, 8]


async def test_an_event_that_fails_as_its_process_stops_is_tried_again_by_the_next_one(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.fates = {"a": [Boom()], "b": [Dead()], "c": [RetryLater(LONG_S)]}
    app = stage.app()
    async with app:
        await app.publish_many([Step(key, number) for number in range(2) for key in "abc"])
        async with app.handling():
            await until(lambda: len(stage.begun) == 3, "that the first of each key run")
            asyncio.get_running_loop().call_soon(stage.go_on.set)
            # The body ends here: it drains while they fail.
    assert len(stage.begun) == 3, "nothing starts while it drains"
    async with stage.app() as heir:
        await stage.end(heir)
    await stage.judge()
    assert stage.attempts("a") == [(0, 1), (0, 2), (3, 1)]
    assert stage.attempts("c") == [(2, 1), (2, 2), (5, 1)]


async def test_an_event_that_fails_at_the_end_of_a_process_that_cannot_write_is_run_again(
    tmp_path: Path,
) -> None:
    """Its attempt was not durable: the next one is the first again, and nothing passed it."""
    stage = Stage(tmp_path)
    stage.fates = {"a": [Boom()]}
    app = stage.app()
    async with app:
        await app.publish_many([Step("a", 0), Step("a", 1)])
        async with app.handling():
            await until(lambda: stage.begun == ["a"], "that it runs")
            async with stage.one_transaction(app, 1):
                stage.go_on.set()
                (lanes,) = app._dispatchers[0]._partitions.values()
                await until(lambda: lanes.is_unwritten, "that its attempt is to be written")
                await give_up(app)
    async with stage.app() as heir:
        await stage.end(heir)
    await stage.judge()
    assert stage.attempts("a") == [(0, 1), (0, 1), (1, 1)]


async def give_up(app: App) -> None:
    """Let another one own it from now on, before what is queued is written."""
    broker = embedded(app)
    # Under the lock that is held, on the connection of the writer, who waits for it.
    broker._file.connection.execute(
        "UPDATE progress SET owner = NULL, epoch = epoch + 1 WHERE consumer_group = ?", (GROUP,)
    )


async def test_retention_in_the_same_transaction_as_a_failure_and_a_park_takes_neither(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.fates = {"a": [Boom()], "b": [RetryLater(LONG_S)], "c": [Dead()]}
    app = stage.app()
    async with app, app.handling():
        stage.go_on.set()
        await app.publish_many([Step("x", number) for number in range(5)])
        await app.run_until_idle(10)
        stage.go_on.clear()
        stage.begun.clear()
        await app.publish_many([Step(key, number) for number in range(3) for key in "abc"])
        await until(lambda: len(stage.begun) == 3, "that the first of each key run")
        stage.clock.advance(60)  # All of it is older than the topic keeps.
        async with stage.one_transaction(app, 2):
            stage.go_on.set()
            retaining = asyncio.ensure_future(embedded(app).run_retention(stage.clock.now_ms()))
        await retaining
        ((first_offset, _),) = await embedded(app).ends("steps")
        assert first_offset == 5, "what was done is gone, and nothing else is"
        await stage.end(app)
    await stage.judge()
    for key, first in zip("abc", (5, 6, 7), strict=True):
        offsets = [offset for offset, _ in stage.attempts(key)]
        assert offsets == [first, first, first + 3, first + 6]
