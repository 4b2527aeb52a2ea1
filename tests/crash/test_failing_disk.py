"""The N-th write fails, for N = 1, 2, 3, … until a run has none left: nothing is lost by it."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest

from eventlane import (
    App,
    Conflict,
    Context,
    Dead,
    DeadLetter,
    NotFound,
    Refused,
    Retry,
    RetryLater,
    StorageError,
    event,
)
from eventlane.clock import yield_to_loop
from eventlane.outcome import LaneOnDead, Outcome
from eventlane.testing.checker import check
from eventlane.testing.clock import ManualClock
from eventlane.testing.history import Died, Ended, LetterChanged, Operation, Published, Started
from eventlane.testing.stage import PATIENCE_S, TOPIC, Step, Storage
from tests.crash.failing import HOWS, Disk, How
from tests.crash.recording import RecordingBroker, embedded, final_of

T = TypeVar("T")
SAMPLE = int(os.environ.get("DISK_SAMPLE", "25"))
"""How many of the writes fail, one in each run; 0: every one, in every way."""
GROUPS: dict[str, LaneOnDead] = {"one": "park", "two": "continue"}
KEYS = "abc"
NUMBERS = range(6)
TIMES_MAX = 12


@event(topic="effects", key="key")
class Effect(Step, frozen=True):
    group: str


class Run:
    """Failures, parking, dead letters, replays and archiving in two groups."""

    def __init__(self, directory: Path) -> None:
        self.history: list[Operation] = []
        self._directory = directory
        self._clock = ManualClock()
        self._commands: set[int] = set()
        self._apps = 0
        self._process = ""

    def app(self) -> App:
        """As another process would make it."""
        self._apps += 1
        process = self._process = f"p{self._apps}"
        storage = Storage(
            f"embedded:{self._directory}",
            durability="os",
            wrap=lambda real: RecordingBroker(real, process, self.history.append, self._commands),
        )
        app = storage.app(clock=self._clock, partitions=2)
        retry = Retry(attempts=5, jitter=0)

        async def handle(step: Step, ctx: Context) -> Outcome | None:
            run = Started.of(ctx, process=process, at_ms=self._clock.now_ms())
            self.history.append(run)
            await yield_to_loop()
            outcome = fate(step, ctx)
            if outcome is None:
                ctx.publish(Effect(step.key, step.number, ctx.group))
            self.history.append(Ended.of(run, "done" if outcome is None else "failed"))
            return outcome

        async def look(effect: Effect, ctx: Context) -> None:
            pass

        for group, on_dead in GROUPS.items():
            app.subscribe(Step, group=group, retry=retry, on_dead=on_dead)(handle)
        app.subscribe(Effect, group="effects")(look)
        return app

    async def again(self, do: Callable[[App], Awaitable[T]]) -> T:
        """Do something with an app until it succeeds, as its users and a supervisor would."""
        for _ in range(TIMES_MAX):
            try:
                async with self.app() as app:
                    return await do(app)
            except StorageError:
                self.history.append(Died(process=self._process))
        raise AssertionError(f"expected that it succeeds, tried {TIMES_MAX} times")

    async def publish(self) -> None:
        left = [Step(key, number) for number in NUMBERS for key in KEYS]

        async def publish(app: App) -> None:
            while left:
                step = left[0]
                position = await app.publish(step)
                self.history.append(Published(**position._asdict(), key=step.key.encode()))
                left.pop(0)

        await self.again(publish)

    async def handle(self) -> None:
        await self.again(lambda app: app.run_until_idle(PATIENCE_S))

    async def operate(self, do: Callable[[App], Awaitable[object]]) -> None:
        """Let an operator do something, and note what it makes of the dead letters."""
        before = await self.again(all_letters)

        async def operate(app: App) -> None:
            try:
                await do(app)
            except (Conflict, NotFound, Refused):
                return  # It was done before, and that could not be told; or there is none.

        await self.again(operate)
        for letter_id, letter in (await self.again(all_letters)).items():
            state = letter.state
            if state in {"archived", "open"} and before[letter_id].state != state:
                self.history.append(LetterChanged.of(letter, state))

    async def go_through(self) -> None:
        """All of it."""
        await self.publish()
        await self.handle()
        await self.operate(replay_slowly)
        await self.handle()
        await self.operate(archive)
        await self.handle()
        await self.again(run_retention)

    async def end(self) -> None:
        """Replay until nothing is left, and look."""
        await self.operate(lambda app: app.restore("type:Step", reason="the end"))
        while any(each.state != "resolved" for each in (await self.again(all_letters)).values()):
            await self.operate(replay_all)
            await self.handle()
        async with self.app() as app:
            self.history.append(await final_of(app, TOPIC, list(GROUPS)))
            effects = [app.decode(each, Effect) async for each in app.read(Effect)]
            steps = [app.decode(each, Step) async for each in app.read(Step)]
        verdict = check(self.history)
        assert verdict.clean, str(verdict)
        assert Counter((each.group, each.key, each.number) for each in effects) == Counter(
            (group, step.key, step.number) for group in GROUPS for step in steps
        )


async def all_letters(app: App) -> dict[UUID, DeadLetter]:
    return {each.id: each for each in await app.dead_letters(state=None)}


async def replay_slowly(app: App) -> None:
    await app.replay("type:Step", reason="once more", pause_above=None)


async def replay_all(app: App) -> None:
    await app.replay(
        "type:Step",
        reason="the end",
        rate_per_s=None,
        canary=False,
        pause_above=None,
        allow_gap=True,
    )


async def archive(app: App) -> None:
    for letter in await app.dead_letters():
        await app.archive(letter, reason="not wanted")


async def run_retention(app: App) -> None:
    await embedded(app).run_retention(app._clock.now_ms())


def fate(step: Step, ctx: Context) -> Outcome | None:
    """What becomes of a run."""
    kind = (step.number, step.key)
    if kind == (1, "a") and ctx.attempt < 3:
        return RetryLater(1.0)
    if kind == (1, "b") and ctx.attempt < 3:
        return RetryLater(60.0)  # it is parked
    if kind in {(2, "a"), (3, "b"), (3, "c"), (4, "c")}:
        letter = ctx.trouble.letter if ctx.trouble else None
        deaths = 0 if letter is None else 1 + letter.replay_count
        if deaths < (2 if step.key == "c" else 1):
            return Dead()
    return None


async def run_on(disk: Disk, directory: Path, *, fails_at: int, how: How) -> int:
    """A whole run whose N-th write fails; how many there were until the disk was sound again."""
    disk.fails_at, disk.how, disk.writes, disk.failures = fails_at, how, 0, 0
    run = Run(directory)
    try:
        await run.go_through()
        writes, disk.fails_at = disk.writes, 0
        await run.end()
    except BaseException as error:
        error.add_note(f"write {fails_at} failed: {how}")
        raise
    return writes


async def test_whichever_write_fails_nothing_is_lost_and_everything_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    writes = await run_on(disk, tmp_path / "sound", fails_at=0, how="disk full")
    seed = int(os.environ.get("DISK_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    every = range(1, writes + 1)
    sample = [(each, chance.choice(HOWS)) for each in chance.sample(every, min(SAMPLE, writes))]
    with capsys.disabled():
        print(f"\nfailing disk: seed {seed}, {writes} writes ", end="", flush=True)
    failed: Counter[How] = Counter()
    for fails_at, how in sample or [(each, how) for each in every for how in HOWS]:
        directory = tmp_path / "log"
        await run_on(disk, directory, fails_at=fails_at, how=how)
        failed[how] += disk.failures > 0
        shutil.rmtree(directory)
    runs = len(sample) or writes * len(HOWS)
    assert failed.total() >= runs // 2
    how_often = ", ".join(f"{how} {count}" for how, count in sorted(failed.items()))
    with capsys.disabled():
        print(
            f"\nfailing disk: seed {seed}, {runs} runs of {writes} writes; failed: "
            f"{how_often}: nothing lost",
            flush=True,
        )
