"""Cases about order and retry: who may run before whom, when, and how often."""

import asyncio
from functools import partial
from typing import Any

from eventlane.app import App
from eventlane.handler import Batch, Context
from eventlane.outcome import Dead, Outcome, RetryLater, Skipped
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


async def a_failing_event_is_never_overtaken_by_a_later_one_of_its_key(make: Factory) -> None:
    """P1: a later event of a key waits through immediate and delayed retries of an earlier one."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=6, delay_s=5, jitter=0, immediate=2))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.number in (0, 2) and ctx.attempt < 6 and step.key == "a":
            raise Boom

    async with app:
        await app.publish_many(steps_of("ab", 4))
        await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == [0] * 6 + [1] + [2] * 6 + [3]
        assert [run.attempt for run in journal.of("a")] == [*range(1, 7), 1, *range(1, 7), 1]
        assert journal.numbers("b") == [0, 1, 2, 3]
        assert (await account_of(app)).done == 8


async def a_failing_key_stops_no_other_key_of_its_partition(make: Factory) -> None:
    """P2: while one key waits for its retry, all events of the other keys are handled."""
    app, journal, clock = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=20, jitter=0, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "a":
            raise Boom

    async with app:
        started_ms = clock.now_ms()
        await app.publish_many(steps_of("abcd", 100))
        await app.run_until_idle(PATIENCE_S)
        for key in "bcd":
            assert journal.numbers(key) == list(range(100))
            assert {run.at_ms for run in journal.of(key)} == {started_ms}
        assert journal.numbers("a") == [0, 0, 0]
        account = await account_of(app)
        assert (account.done, account.dead, account.parked) == (300, 1, 99)


async def retries_run_at_0_0_1_3_and_7_s(make: Factory) -> None:
    """Retry(attempts=5, delay_s=1, jitter=0) runs at 0, 0, 1, 3 and 7 s, and then it is dead."""
    app, journal, clock = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=5, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise Boom("never")

    async with app:
        started_ms = clock.now_ms()
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert [run.at_ms - started_ms for run in journal.runs] == [0, 0, 1000, 3000, 7000]
        (letter,) = await app.dead_letters()
        assert (letter.attempts, letter.disposition, letter.error_class) == (5, "exhausted", "Boom")
        assert [each.number for each in letter.history] == [1, 2, 3, 4, 5]
        assert [each.planned_delay_s for each in letter.history] == [0, 0, 1, 2, 4]


async def jitter_only_adds(make: Factory) -> None:
    """Jitter only adds: a delay d with jitter j lies between d and d·(1+j), and not always at d."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=10, jitter=0.5, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise Boom

    keys = [f"k{number}" for number in range(15)]  # too few lanes for an outage
    async with app:
        await app.publish_many([Step(key, 0) for key in keys])
        await app.run_until_idle(PATIENCE_S)
        first: list[int] = []
        second: list[int] = []
        for key in keys:
            at_ms = [run.at_ms for run in journal.of(key)]
            first.append(at_ms[1] - at_ms[0])
            second.append(at_ms[2] - at_ms[1])
        assert all(10_000 <= delay_ms <= 15_001 for delay_ms in first)
        assert all(20_000 <= delay_ms <= 30_001 for delay_ms in second)
        assert len(set(first)) > 5, "expected delays that differ"


async def retry_later_waits_as_long_as_it_says(make: Factory) -> None:
    """RetryLater(delay_s) waits so long, counts as an attempt, and the last one is dead."""
    app, journal, clock = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> Outcome:
        journal.note(step, ctx)
        return RetryLater(90.0, reason="come back later")

    async with app:
        started_ms = clock.now_ms()
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert [run.at_ms - started_ms for run in journal.runs] == [0, 90_000, 180_000]
        (letter,) = await app.dead_letters()
        assert (letter.attempts, letter.error_message) == (3, "come back later")


async def a_retry_is_not_early_after_a_restart_either(make: Factory) -> None:
    """P4: when a process starts again before a retry is due, the retry still waits until then."""
    clock = ManualClock()
    journal = Journal(clock)

    def app() -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(
            Step, group=GROUP, retry=Retry(attempts=3, delay_s=20, jitter=0, immediate=0)
        )
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            if (step.key, step.number, ctx.attempt) == ("a", 0, 1):
                raise Boom

        return made

    started_ms = clock.now_ms()
    async with (first := app()):
        await first.publish(Step("a", 0))
        async with first.handling():
            await until(lambda: len(journal.runs) == 1, "the first attempt")
    clock.advance(19.0)
    async with (second := app()):
        await second.publish_many([Step("a", 1), Step("b", 0)])
        await second.run_until_idle(PATIENCE_S)
        at_s = [(run.key, run.number, (run.at_ms - started_ms) / 1000) for run in journal.runs]
        assert at_s == [("a", 0, 0), ("b", 0, 19), ("a", 0, 20), ("a", 1, 20)]
        assert [run.attempt for run in journal.of("a")] == [1, 2, 1]


async def _until_runs(journal: Journal, count: int) -> None:
    await until(lambda: len(journal.runs) == count, f"{count} runs")


async def attempts_never_go_down_over_restarts(make: Factory) -> None:
    """P5: an event that fails once in each process is dead after its last attempt, not later."""
    clock = ManualClock()
    journal = Journal(clock)

    def app() -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(
            Step, group=GROUP, retry=Retry(attempts=4, delay_s=10, jitter=0, immediate=0)
        )
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            raise Boom

        return made

    async with (zero := app()):
        await zero.publish_many(steps_of("a", 2))
    for number in range(1, 5):
        async with (one := app()), one.handling():
            await _until_runs(journal, number)
        clock.advance(100.0)
    async with (last := app()):
        await last.run_until_idle(PATIENCE_S)
        assert [run.attempt for run in journal.of("a")] == [1, 2, 3, 4]
        assert journal.numbers("a") == [0, 0, 0, 0]
        (letter,) = await last.dead_letters()
        assert letter.attempts == 4
        account = await account_of(last)
        assert (account.dead, account.parked) == (1, 1)


async def a_lane_goes_on_only_when_what_failed_is_durable(make: Factory) -> None:
    """P1: a failed attempt, and a dead letter, can be read by everybody before the lane goes on."""
    app, _, _ = staged(make)
    before: list[tuple[int, int, int]] = []

    @app.subscribe(
        Step, group=GROUP, retry=Retry(attempts=4, delay_s=1, immediate=2), on_dead="continue"
    )
    async def handle(step: Step, _: Context[Any]) -> None:
        (lane,) = await app.lane(Step, step.key)
        before.append((step.number, lane.attempts, len(await app.dead_letters())))
        if step.number < 2:
            raise Boom

    async with app:
        await app.publish_many(steps_of("a", 3))
        await app.run_until_idle(PATIENCE_S)
        assert before == [
            *((0, attempts, 0) for attempts in range(4)),
            *((1, attempts, 1) for attempts in range(4)),
            (2, 0, 2),
        ]


async def an_event_that_fails_each_time_in_another_way_dies_all_the_same(make: Factory) -> None:
    """Attempts are counted whatever they fail of: another class of error is no new budget."""
    app, journal, _ = staged(make)
    errors = (Boom, ValueError, KeyError, TimeoutError)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=4, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise errors[(ctx.attempt - 1) % len(errors)]

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert [run.attempt for run in journal.runs] == [1, 2, 3, 4]
        (letter,) = await app.dead_letters()
        classes = [each.error_class for each in letter.history]
        assert classes == [error.__name__ for error in errors]


async def delays_grow_by_a_factor_up_to_their_maximum(make: Factory) -> None:
    """The n-th delayed retry waits min(delay_s_max, delay_s · factor^(n-1)), not a moment less."""
    app, journal, clock = staged(make)
    retry = Retry(attempts=7, delay_s=1, factor=3, delay_s_max=10, jitter=0, immediate=1)

    @app.subscribe(Step, group=GROUP, retry=retry)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise Boom

    async with app:
        started_ms = clock.now_ms()
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        at_s = [(run.at_ms - started_ms) / 1000 for run in journal.runs]
        assert at_s == [0, 0, 1, 4, 13, 23, 33]


async def the_first_rule_that_matches_decides(make: Factory) -> None:
    """Of the retry rules the first that matches decides: dead, skipped, another policy, later."""
    app, journal, _ = staged(make)
    errors: dict[str, Exception] = {
        "dead": LookupError("no such product"),
        "first": KeyError("a LookupError too"),
        "skip": ValueError("seen before"),
        "often": TimeoutError("slow"),
        "later": ConnectionError("gone"),
        "other": Boom("anything else"),
    }
    rules = (
        (KeyError, Skipped()),
        (LookupError, Dead(lane="continue")),
        ((ValueError, TypeError), Skipped("seen before")),
        (TimeoutError, Retry(attempts=7, delay_s=1, jitter=0, immediate=7)),
        (ConnectionError, RetryLater(30.0)),
        (Exception, Dead("no rule of its own")),
    )

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=3, jitter=0, rules=rules))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise errors[step.key]

    async with app:
        await app.publish_many([Step(key, 0) for key in errors])
        await app.run_until_idle(PATIENCE_S)
        runs = {key: len(journal.of(key)) for key in errors}
        assert runs == {"dead": 1, "first": 1, "skip": 1, "often": 7, "later": 3, "other": 1}
        assert journal.of("later")[1].at_ms - journal.of("later")[0].at_ms == 30_000
        letters = {(letter.key or b"").decode(): letter for letter in await app.dead_letters()}
        assert sorted(letters) == ["dead", "later", "often", "other"]
        assert letters["dead"].on_dead == "continue"
        assert letters["dead"].error_message == "no such product"
        assert letters["other"].error_message == "no rule of its own"
        assert letters["often"].attempts == 7
        assert (await account_of(app)).skipped == 2


async def a_group_of_errors_counts_as_what_all_its_leaves_match(make: Factory) -> None:
    """An exception group counts for a rule only if every error in it matches that rule."""
    clock = ManualClock()
    app = make.app(clock=clock, partitions=1)
    rules = ((ValueError, Skipped()), ((ValueError, KeyError), Dead(lane="continue")))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=0, rules=rules))
    async def handle(step: Step, _: Context[Any]) -> None:
        match step.key:
            case "all":
                inner = ExceptionGroup("inner", [ValueError("2")])
                raise ExceptionGroup("outer", [ValueError("1"), inner])
            case "mixed":
                raise ExceptionGroup("outer", [ValueError("1"), KeyError("2")])
            case _:
                raise ExceptionGroup("outer", [ValueError("1"), Boom("2")])

    async with app:
        await app.publish_many([Step(key, 0) for key in ("all", "mixed", "none")])
        await app.run_until_idle(PATIENCE_S)
        letters = {(letter.key or b"").decode(): letter for letter in await app.dead_letters()}
        assert (letters["mixed"].attempts, letters["mixed"].on_dead) == (1, "continue")
        assert (letters["none"].attempts, letters["none"].disposition) == (2, "exhausted")
        assert (await account_of(app)).skipped == 1


async def two_events_that_fail_at_the_same_time_are_both_kept(make: Factory) -> None:
    """Two events of one partition that fail at the same time are both kept, with all attempts."""
    app, journal, _ = staged(make)
    both = asyncio.Barrier(2)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=1, jitter=0, immediate=1))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.number == 0:
            await both.wait()
            raise Boom

    async with app:
        await app.publish_many(steps_of("ab", 2))
        await app.run_until_idle(PATIENCE_S)
        letters = await app.dead_letters()
        assert sorted(each.key or b"" for each in letters) == [b"a", b"b"]
        assert [each.attempts for each in letters] == [3, 3]
        account = await account_of(app)
        assert (account.dead, account.parked, account.open) == (2, 2, 0)


async def a_key_ordered_group_runs_one_event_of_a_key_at_a_time(make: Factory) -> None:
    """With ordering="key" one event of a key runs at a time, and different keys run at once."""
    clock = ManualClock()
    app = make.app(clock=clock, partitions=1)
    running: set[str] = set()
    twice: list[Step] = []
    all_at_once = asyncio.Barrier(4)

    @app.subscribe(Step, group=GROUP, concurrency=4)
    async def handle(step: Step, _: Context[Any]) -> None:
        if step.key in running:
            twice.append(step)
        running.add(step.key)
        await all_at_once.wait()
        running.discard(step.key)

    async with app:
        await app.publish_many(steps_of("abcd", 5))
        await app.run_until_idle(PATIENCE_S)
        account = await account_of(app)
        assert (account.done, account.dead) == (20, 0)
        assert not twice


async def an_unordered_group_runs_events_of_one_key_at_once(make: Factory) -> None:
    """With ordering="none" events of one key run at once, as many as the concurrency says."""
    clock = ManualClock()
    app = make.app(clock=clock, partitions=1)
    all_at_once = asyncio.Barrier(5)
    most = running = 0

    @app.subscribe(Step, group=GROUP, ordering="none", concurrency=5, retry=Retry(attempts=1))
    async def handle(step: Step, _: Context[Any]) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await all_at_once.wait()
        running -= 1
        if step.number == 3:
            raise Boom

    async with app:
        await app.publish_many(steps_of("a", 20))
        await app.run_until_idle(PATIENCE_S)
        account = await account_of(app)
        assert (account.done, account.dead, account.parked) == (19, 1, 0)
        assert most == 5
        (letter,) = await app.dead_letters()
        assert letter.on_dead == "continue"


async def a_partition_ordered_group_is_one_lane_and_stops_at_a_dead_letter(make: Factory) -> None:
    """With ordering="partition" a partition is one lane, which waits for retries and stops at dead.

    The other partitions go on; archiving the letter lets the stopped one go on, in order.
    """
    clock = ManualClock()
    journal = Journal(clock)
    order: dict[int, list[int]] = {}

    def app() -> App:
        made = make.app(clock=clock, partitions=2)

        @made.subscribe(
            Step, group=GROUP, ordering="partition", retry=Retry(attempts=3, delay_s=5, jitter=0)
        )
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            order.setdefault(ctx.message.partition, []).append(ctx.message.offset)
            if (step.key, step.number) == ("a", 1):
                raise Boom

        return made

    keys = "abcdefgh"
    async with (one := app()):
        await one.publish_many(steps_of(keys, 3))
        await one.run_until_idle(PATIENCE_S)
        (letter,) = await one.dead_letters()
        assert (letter.on_dead, letter.attempts) == ("stop", 3)
        stopped = letter.partition
        expected = list(range(letter.offset)) + [letter.offset] * 3
        assert order[stopped] == expected
        assert order[1 - stopped] == sorted(order[1 - stopped])
        account = await account_of(one)
        assert account.done == 24 - 1 - account.waiting
        assert account.waiting > 0
    async with (two := app()):
        await two.run_until_idle(PATIENCE_S)
        assert order[stopped] == expected, "expected that it stays stopped over a restart"
        await two.archive(letter, reason="not needed")
        await two.run_until_idle(PATIENCE_S)
        assert order[stopped] == expected + list(range(letter.offset + 1, len(order[stopped]) - 2))
        account = await account_of(two)
        assert (account.done, account.archived, account.open) == (23, 1, 0)


async def a_partition_ordered_group_may_go_on_behind_a_dead_letter(make: Factory) -> None:
    """With ordering="partition" and on_dead="continue" the lane waits for retries, and goes on.

    Nothing is parked; what was passed over is named to all later events of the partition, and runs
    late when it is replayed.
    """
    clock = ManualClock()
    app = make.app(clock=clock, partitions=2)
    order: dict[int, list[int]] = {}
    gaps: dict[int, set[tuple[int, ...]]] = {}
    late: list[tuple[int, bool]] = []
    is_mended = False

    @app.subscribe(
        Step,
        group=GROUP,
        ordering="partition",
        on_dead="continue",
        retry=Retry(attempts=3, delay_s=50, delay_s_max=50, jitter=0),
    )
    async def handle(step: Step, ctx: Context[Any]) -> None:
        order.setdefault(ctx.message.partition, []).append(ctx.message.offset)
        gaps.setdefault(ctx.message.partition, set()).add(ctx.gaps)
        if ctx.replayed:
            late.append((ctx.message.offset, ctx.late))
        if (step.key, step.number) == ("a", 1) and not is_mended:
            raise Boom

    async with app:
        await app.publish_many(steps_of("abcdefgh", 3))
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert (letter.on_dead, letter.attempts) == ("continue", 3)
        went_on = order.pop(letter.partition)
        count = len(went_on) - 2
        dead = letter.offset
        assert went_on == [*range(dead), dead, dead, dead, *range(dead + 1, count)]
        assert gaps.pop(letter.partition) == {(), (dead,)}
        assert all(numbers == sorted(numbers) for numbers in order.values())
        assert set().union(*gaps.values()) <= {()}
        account = await account_of(app)
        assert (account.done, account.dead, account.parked, account.open) == (23, 1, 0, 0)
        is_mended = True
        await app.replay(letter, reason="mended")
        await app.run_until_idle(PATIENCE_S)
        assert late == [(dead, True)]
        assert (await account_of(app)).done == 24


async def a_success_in_one_partition_leaves_the_attempts_of_another_as_they_are(
    make: Factory,
) -> None:
    """P5: what is handled well in one partition, in a list too, resets no counter of another."""
    app, _, clock = staged(make, partitions=2)
    attempts: list[int] = []
    failing: set[str] = set()

    @app.subscribe(
        Step, group=GROUP, retry=Retry(attempts=4, delay_s=1, jitter=0, immediate=0), batch=Batch(5)
    )
    async def handle(steps: list[Step], contexts: list[Context[Any]]) -> list[Outcome | None]:
        attempts.extend(
            ctx.attempt for step, ctx in zip(steps, contexts, strict=True) if step.key in failing
        )
        return [RetryLater(5.0) if step.key in failing else None for step in steps]

    def has_run(count: int) -> bool:
        return len(attempts) == count

    async with app:
        keys = {(await app.publish(Step(f"k{n}", 0))).partition: f"k{n}" for n in range(20)}
        await app.run_until_idle(PATIENCE_S)
        failing.add(keys[1])
        await app.publish(Step(keys[1], 1))
        async with app.handling():
            for count in range(1, 5):
                await until(partial(has_run, count), f"attempt {count}")
                done = (await account_of(app)).done
                await app.publish_many([Step(keys[0], n) for n in range(50)])

                async def is_done(done: int = done) -> bool:
                    return (await account_of(app)).done == done + 50

                await until(is_done, "that the other partition is done")
                clock.advance(5.0)
        assert attempts == [1, 2, 3, 4]
        (letter,) = await app.dead_letters()
        assert (letter.partition, letter.attempts) == (1, 4)
