"""Cases about processes that are killed: what runs again, in what order, and who is charged."""

import asyncio
from functools import partial
from typing import Any

from eventlane.app import App
from eventlane.clock import yield_to_loop
from eventlane.config import Limits
from eventlane.handler import Context
from eventlane.retry import Retry
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    Boom,
    Factory,
    Journal,
    Step,
    account_of,
    steps_of,
    until,
)

_OTHER = "other"
_LIVES = 6
"""As ever twice, alone in its group once, alone in its process three times."""


class _Life:
    """One process, in which steps may be deadly: it is killed while they run."""

    def __init__(self, make: Factory, journal: Journal, clock: ManualClock) -> None:
        self.running: list[str] = []
        """The keys of the events that run in the group."""
        self.deadly: frozenset[str] = frozenset()
        """The keys of those that end only with their process."""
        self.app = make.app(clock=clock, partitions=1)
        self._make = make
        self._journal = journal
        self._is_over = asyncio.Event()
        self.app.subscribe(Step, group=GROUP, retry=Retry(attempts=2))(self._handle)
        self.app.subscribe(Step, group=_OTHER)(self._look)

    async def _handle(self, step: Step, ctx: Context[Any]) -> None:
        if self._is_over.is_set():
            return  # A dead process has no such run.
        self._journal.note(step, ctx)
        self.running.append(step.key)
        if step.key in self.deadly and step.number == 1:
            await self._is_over.wait()
        else:
            await yield_to_loop()
        self.running.remove(step.key)

    async def _look(self, step: Step, ctx: Context[Any]) -> None:
        if not self._is_over.is_set():
            self._journal.note(step, ctx)

    def is_at_its_end(self) -> bool:
        """What kills it runs."""
        return self.deadly <= set(self.running)

    async def end(self) -> None:
        """Kill -9."""
        await self._make.kill(self.app)
        self._is_over.set()


async def an_event_that_kills_its_process_is_dead_and_no_bystander_is_charged(
    make: Factory,
) -> None:
    """P5: at two deaths runs go on as ever; then it runs alone in its group, then in its process.

    Only those of the last kind are charged to it, and `crashes_max` of them make it a dead letter.
    """
    clock = ManualClock()
    journal = Journal(clock)
    async with make.app(clock=clock, partitions=1) as app:
        await app.publish_many(steps_of("abc", 3))
    for number in range(1, _LIVES + 1):
        life = _Life(make, journal, clock)
        life.deadly = frozenset("ab" if number <= 2 else "a")
        async with life.app, life.app.handling():
            await until(life.is_at_its_end, f"that life {number} is deadly")
            if number > 2:
                assert life.running == ["a"], f"life {number}: expected that it runs alone"
                await _let_others_run(life.app, journal, number)
            await life.end()
    # The first of a key may run again as well, where it was not settled.
    assert [number for number in journal.numbers("a") if number] == [1] * _LIVES
    last = _Life(make, journal, clock)
    async with last.app:
        await last.app.run_until_idle(PATIENCE_S)
        (letter,) = await last.app.dead_letters()
        assert (letter.key, letter.stage, letter.crashes) == (b"a", "crash", Limits().crashes_max)
        assert {run.attempt for run in journal.runs if run.key != "a"} == {1}
        assert [number for number in journal.numbers("b") if number] == [1, 1, 1, 2]
        account = await account_of(last.app)
        assert (account.dead, account.parked, account.open) == (1, 1, 0)


async def _let_others_run(app: App, journal: Journal, number: int) -> None:
    """Another group goes on beside what runs alone in its group, and not where in its process."""
    key = f"other{number}"
    await app.publish(Step(key, 0))
    if number == 3:
        await until(lambda: bool(journal.of(key, _OTHER)), "that the other group goes on")
    for _ in range(100):
        await yield_to_loop()
    assert bool(journal.of(key, _OTHER)) == (number == 3), "expected that it is alone"


async def after_a_crash_a_lane_runs_again_from_some_event_on_and_in_order(make: Factory) -> None:
    """P1: what a killed process had not written runs again: of each key the last ones, in order."""
    clock = ManualClock()
    journal = Journal(clock)
    keys, count = "abc", 20
    killed: set[App] = set()

    def app() -> App:
        made = make.app(clock=clock, partitions=2, limits=Limits(settle_events_max=5))

        @made.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=0), concurrency=2)
        async def handle(step: Step, ctx: Context[Any]) -> None:
            if made in killed:
                return  # A dead process has no such run.
            journal.note(step, ctx)
            await yield_to_loop()
            if step.number % 10 == 3 and ctx.attempt == 1:
                raise Boom

        return made

    async with (first := app()):
        await first.publish_many(steps_of(keys, count))
    before = dict.fromkeys(keys, 0)
    for killed_after in (10, 20):
        start = len(journal.runs)
        async with (one := app()), one.handling():
            await until(partial(_has, journal, start + killed_after), "so many runs")
            await make.kill(one)
            killed.add(one)
        _check_lives(journal, start, before)
    async with (last := app()):
        start = len(journal.runs)
        await last.run_until_idle(PATIENCE_S)
        _check_lives(journal, start, before)
        assert before == dict.fromkeys(keys, count)
        account = await account_of(last)
        assert (account.done, account.open) == (len(keys) * count, 0)


def _has(journal: Journal, count: int) -> bool:
    return len(journal.runs) >= count


def _check_lives(journal: Journal, start: int, before: dict[str, int]) -> None:
    """One life went on, for each key, at an event that had run or was next, and left out none."""
    for key, known in before.items():
        numbers = [run.number for run in journal.runs[start:] if run.key == key]
        once = list(dict.fromkeys(numbers))
        if once:
            assert numbers == sorted(numbers), f"{key}: {numbers} is not in order"
            assert once == list(range(once[0], once[-1] + 1)), f"{key}: {once} has a gap"
            assert once[0] <= known, f"{key}: {known} to {once[0]} were passed over"
            before[key] = max(known, once[-1] + 1)
