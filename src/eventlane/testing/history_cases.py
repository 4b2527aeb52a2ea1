"""Cases about groups as a whole: independence, the account, members, and random histories."""

import asyncio
import random
from typing import Any

import msgspec

from eventlane.app import App
from eventlane.clock import yield_to_loop
from eventlane.failure import DeadLetter
from eventlane.handler import Context
from eventlane.outcome import Dead, Outcome, Pause, Skipped
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
    staged,
    steps_of,
    until,
)


async def every_event_is_handled_once_by_every_group_without_failures(make: Factory) -> None:
    """Without failures each group handles every event once, those of a key in order."""
    app, journal, _ = staged(make, partitions=3)

    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    groups = ("one", "two", "three")
    for group in groups:
        app.subscribe(Step, group=group)(handle)
    keys = "abcdefg"
    async with app:
        await app.publish_many(steps_of(keys, 40))
        await app.run_until_idle(PATIENCE_S)
        for group in groups:
            for key in keys:
                assert journal.numbers(key, group) == list(range(40))
            account = await account_of(app, group)
            assert (account.entered, account.done) == (280, 280)


async def another_process_goes_on_where_the_first_one_left(make: Factory) -> None:
    """When one of two members leaves, the other one goes on: in order, and with no event twice."""
    clock = ManualClock()
    journal = Journal(clock)
    names: list[str] = []

    def app(name: str) -> App:
        made = make.app(name=name, clock=clock, partitions=2)

        @made.subscribe(Step, group=GROUP)
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            names.append(name)

        return made

    one, two = app("one"), app("two")
    keys = "abcd"
    async with one, two:
        await one.publish_many(steps_of(keys, 5))
        async with two.handling():
            async with one.handling():
                await until(lambda: len(journal.runs) == 20, "that all is handled")
                assert set(names) == {"two"}, "expected one owner for each partition"
            await one.publish_many([Step(key, number) for number in (5, 6) for key in keys])
            await until(lambda: len(journal.runs) == 28, "that all is handled")
        async with one.handling():
            await one.publish_many([Step(key, 7) for key in keys])
            await until(lambda: len(journal.runs) == 32, "that the other one goes on")
        assert names[28:] == ["one"] * 4
        for key in keys:
            assert journal.numbers(key) == list(range(8))
        assert (await account_of(one)).done == 32


async def a_slow_a_failing_and_a_paused_group_hold_up_no_other(make: Factory) -> None:
    """P7: a group that is stuck, one that fails and one that is paused hold up no other group."""
    app, journal, _ = staged(make, partitions=2)
    go_on = asyncio.Event()

    @app.subscribe(Step, group="stuck")
    async def stick(step: Step, ctx: Context[Any]) -> None:
        await go_on.wait()
        journal.note(step, ctx)

    @app.subscribe(Step, group="failing", retry=Retry(attempts=1))
    async def fail(_: Step, _ctx: Context[Any]) -> None:
        raise Boom

    @app.subscribe(Step, group="pausing")
    async def pause(step: Step, _: Context[Any]) -> Outcome | None:
        return Pause("the warehouse is closed") if step.number == 3 else None

    @app.subscribe(Step, group="well")
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    async with app:
        async with app.handling():
            await app.publish_many(steps_of("abc", 50))

            async def well_is_done() -> bool:
                return (await app.status()).groups["well"].done == 150

            await until(well_is_done, "that the group which is well handles everything")
            accounts = (await app.status()).groups
            assert all(each.balances and each.entered == 150 for each in accounts.values())
            assert accounts["stuck"].done == 0
            assert accounts["stuck"].in_flight == 3
            go_on.set()
            await app.run_until_idle(PATIENCE_S)
        accounts = (await app.status()).groups
        assert accounts["stuck"].done == 150
        assert (accounts["failing"].dead, accounts["failing"].parked) == (3, 147)
        assert accounts["pausing"].paused == "the warehouse is closed"
        assert accounts["pausing"].dead == accounts["pausing"].skipped == 0
        for group in ("well", "stuck"):
            for key in "abc":
                assert journal.numbers(key, group) == list(range(50))


async def the_account_balances_at_every_moment(make: Factory) -> None:
    """P8: whenever one looks, every event that was published is accounted for in every group."""
    clock = ManualClock()
    app = make.app(clock=clock, partitions=2)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=0, jitter=0))
    async def handle(step: Step, _: Context[Any]) -> Outcome | None:
        if step.number % 7 == 3:
            raise Boom
        if step.number % 7 == 5:
            return Skipped()
        if step.number % 7 == 6:
            return Dead(lane="continue")
        await yield_to_loop()
        return None

    published = 0
    looked = 0
    async with app, app.handling():
        for start in range(0, 140, 10):
            for number in range(start, start + 10):
                await app.publish(Step(f"k{number % 9}", number))
                published += 1
                status = await app.status()
                account = status.groups[GROUP]
                assert account.balances, account
                assert account.entered == status.topics["steps"].published == published, account
                looked += 1
        await app.run_until_idle(PATIENCE_S)
        account = await account_of(app)
        assert account.entered == 140
        assert account.open == 0
        letters = await app.dead_letters()
        assert account.dead == len(letters)
        assert {letter.on_dead for letter in letters} == {"park", "continue"}
        closing = {letter.key for letter in letters if letter.on_dead == "park"}
        assert account.parked > 0
        await app.archive([each for each in letters if each.on_dead == "park"], reason="x")
        while True:
            await app.run_until_idle(PATIENCE_S)
            account = await account_of(app)
            more = [each for each in await app.dead_letters() if each.on_dead == "park"]
            if not more:
                break
            assert {each.key for each in more} <= closing
            await app.archive(more, reason="x")
        assert account.parked == account.open == 0
        assert account.entered == account.done + account.skipped + account.dead + account.archived


async def a_random_history_keeps_order_loses_nothing_and_balances(make: Factory) -> None:
    """Whatever fails, over restarts, replays and archiving: order holds and nothing is lost."""
    for seed in range(4):
        await _History(make, seed).run()


class _History:
    """A random history of one group; the same seed gives the same one."""

    KEYS = "abcdef"
    COUNT = 12

    def __init__(self, make: Factory, seed: int) -> None:
        self.make = make
        self.group = f"group{seed}"
        self.chance = random.Random(seed)
        self.clock = ManualClock()
        self.journal = Journal(self.clock)
        fates = ("done", "done", "done", "once", "dead", "skip")
        self.fate = {
            (step.key, step.number): self.chance.choice(fates)
            for step in steps_of(self.KEYS, self.COUNT)
        }
        self.ended: set[tuple[str, int]] = set()
        self.overtakes: list[Step] = []

    def app(self) -> App:
        app = self.make.app(clock=self.clock, partitions=2)
        retry = Retry(attempts=3, delay_s=2, jitter=0.2)
        app.subscribe(Step, group=self.group, start="now", retry=retry)(self.handle)
        return app

    async def handle(self, step: Step, ctx: Context[Any]) -> Outcome | None:
        self.journal.note(step, ctx)
        if not self.ended.issuperset((step.key, number) for number in range(step.number)):
            self.overtakes.append(step)
        fate = self.fate[step.key, step.number]
        if fate == "dead" or (fate == "once" and ctx.attempt == 1):
            raise Boom
        self.ended.add((step.key, step.number))
        return Skipped() if fate == "skip" else None

    async def run(self) -> None:
        steps = steps_of(self.KEYS, self.COUNT)
        async with (first := self.app()), first.handling():
            assert (await account_of(first, self.group)).entered == 0
        for start in range(0, len(steps), 18):
            await self.handle_some(steps[start : start + 18])
        async with (last := self.app()):
            await last.run_until_idle(PATIENCE_S)
            while letters := list(await last.dead_letters(group=self.group)):
                assert (await account_of(last, self.group)).dead == len(letters)
                await self.mend(last, letters)
                await last.run_until_idle(PATIENCE_S)
            account = await account_of(last, self.group)
        assert not self.overtakes
        assert account.open == account.parked == 0
        assert account.entered == len(steps)
        assert self.ended == set(self.fate)
        for key in self.KEYS:
            attempts: dict[int, int] = {}
            for run in self.journal.of(key, self.group):
                assert run.attempt == (1 if run.replayed else attempts.get(run.number, 0) + 1), run
                attempts[run.number] = run.attempt

    async def handle_some(self, steps: list[Step]) -> None:
        async with (app := self.app()):
            await app.publish_many(steps)
            if self.chance.random() < 0.5:
                await app.run_until_idle(PATIENCE_S)
            else:
                async with app.handling():

                    async def all_is_taken() -> bool:
                        return (await app.status()).groups[self.group].waiting == 0

                    await until(all_is_taken, "that all events are taken")
                self.clock.advance(self.chance.random() * 3)
            await account_of(app, self.group)

    async def mend(self, app: App, letters: list[DeadLetter]) -> None:
        self.chance.shuffle(letters)
        half = len(letters) // 2
        for letter in letters[:half]:
            step = msgspec.json.decode(letter.value or b"", type=Step)
            self.fate[step.key, step.number] = "done"
            await app.replay(letter, reason="mended")
        for letter in letters[half:]:
            step = msgspec.json.decode(letter.value or b"", type=Step)
            self.ended.add((step.key, step.number))
            await app.archive(letter, reason="not needed")
