"""Cases: retries that are parked, what a lane passed over, and lists with several of a lane."""

from functools import partial
from typing import Any

from eventlane.app import App
from eventlane.config import Limits
from eventlane.handler import Batch, Context
from eventlane.notice import DeadLettered
from eventlane.outcome import Dead, Outcome, Skipped
from eventlane.retry import Retry
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    TOPIC,
    Boom,
    Factory,
    Journal,
    Step,
    staged,
    steps_of,
    until,
)

_LONG = Retry(attempts=3, delay_s=100, factor=1, delay_s_max=100, jitter=0, immediate=0)


def _has_runs(journal: Journal, count: int) -> bool:
    return len(journal.runs) == count


async def a_long_retry_is_parked_and_the_watermark_passes_it(make: Factory) -> None:
    """A retry that is due later than hold_s_max is parked, with what follows it in its lane."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=_LONG)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if (step.key, step.number, ctx.attempt) == ("a", 0, 1):
            raise Boom

    async with app:
        await app.publish_many(steps_of("ab", 10))
        async with app.handling():

            async def is_parked() -> bool:
                account = (await app.status()).groups[GROUP]
                return (account.done, account.parked, account.open) == (10, 10, 0)

            await until(is_parked, "that b is done and a is parked")
            await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == [0, *range(10)]
        assert [run.attempt for run in journal.of("a")] == [1, 2] + [1] * 9
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.parked, account.open) == (20, 0, 0)


async def a_parked_retry_is_not_early_and_nothing_passes_it(make: Factory) -> None:
    """P1, P4: what comes while a retry is parked runs behind it, and it runs when it is due."""
    clock = ManualClock()
    journal = Journal(clock)

    def app() -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(Step, group=GROUP, retry=_LONG)
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            if (step.key, step.number) == ("a", 0) and ctx.attempt < 3:
                raise Boom

        return made

    started_ms = clock.now_ms()
    async with (one := app()):
        await one.publish(Step("a", 0))
        async with one.handling():
            await until(lambda: len(journal.runs) == 1, "the first attempt")
            await one.publish_many(steps_of("ab", 3, 1))
            await until(lambda: len(journal.of("b")) == 3, "the other key")
    clock.advance(99.0)
    async with (two := app()):
        await two.publish_many(steps_of("ab", 2, 4))
        await two.run_until_idle(PATIENCE_S)
        at_s = [(run.number, (run.at_ms - started_ms) // 1000) for run in journal.of("a")]
        assert at_s == [(0, 0), (0, 100), (0, 200), *((number, 200) for number in range(1, 6))]
        assert journal.numbers("b") == [1, 2, 3, 4, 5]
        account = (await two.status()).groups[GROUP]
        assert (account.done, account.parked, account.open) == (11, 0, 0)


async def attempts_of_a_parked_event_never_go_down_over_restarts(make: Factory) -> None:
    """P5: an event that fails once in each process, parked in between, dies of its last attempt."""
    clock = ManualClock()
    journal = Journal(clock)

    def app() -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(Step, group=GROUP, retry=_LONG)
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            raise Boom

        return made

    async with (zero := app()):
        await zero.publish_many(steps_of("a", 2))
    for count in range(1, 4):
        async with (one := app()), one.handling():
            await until(partial(_has_runs, journal, count), f"run {count}")
        clock.advance(1000.0)
    async with (last := app()):
        await last.run_until_idle(PATIENCE_S)
        assert [(run.number, run.attempt) for run in journal.runs] == [(0, 1), (0, 2), (0, 3)]
        (letter,) = await last.dead_letters()
        assert (letter.attempts, letter.parked_followers) == (3, 1)


async def a_held_event_is_parked_when_the_span_is_full(make: Factory) -> None:
    """P2: a key that waits for its retry does not stop others when the span is at its limit."""
    app, journal, clock = staged(make, limits=Limits(span_max=50, fetch_events_max=20))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=20, jitter=0, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "a" and ctx.attempt == 1:
            raise Boom

    async with app:
        await app.publish_many([Step("a", 0), *steps_of("bcd", 200)])
        started_ms = clock.now_ms()
        await app.run_until_idle(PATIENCE_S)
        for key in "bcd":
            assert journal.numbers(key) == list(range(200))
            assert {run.at_ms for run in journal.of(key)} == {started_ms}
        assert [run.at_ms - started_ms for run in journal.of("a")] == [0, 20_000]
        assert (await app.status()).groups[GROUP].done == 601


async def a_held_event_is_parked_when_the_settled_set_is_full(make: Factory) -> None:
    """P2: keys that wait for retries do not stop others when `settled_bytes_max` is reached."""
    limits = Limits(settled_bytes_max=24, fetch_events_max=20)
    app, journal, clock = staged(make, limits=limits)
    held = [f"h{number}" for number in range(6)]

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=20, jitter=0, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key in held and ctx.attempt == 1:
            raise Boom

    async with app:
        # Each that is held cuts what is settled above the watermark into one run more.
        await app.publish_many(
            [
                each
                for at, key in enumerate(held)
                for each in (Step(key, 0), *steps_of("b", 30, 30 * at))
            ]
        )
        started_ms = clock.now_ms()
        await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("b") == list(range(180))
        assert {run.at_ms for run in journal.of("b")} == {started_ms}
        for key in held:
            assert [run.at_ms - started_ms for run in journal.of(key)] == [0, 20_000]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.parked, account.open) == (186, 0, 0)


async def a_full_lane_stops_its_partition_and_loses_nothing(make: Factory) -> None:
    """At parked_per_key_max the partition stops, and says so; an archived letter lets it go on."""
    app, journal, _ = staged(make, limits=Limits(parked_per_key_max=5))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if (step.key, step.number) == ("a", 0):
            raise Boom

    async with app:
        await app.publish_many(steps_of("a", 20) + steps_of("b", 5))
        async with app.handling():

            async def is_full() -> bool:
                account = (await app.status()).groups[GROUP]
                return (account.dead, account.parked) == (1, 5) and bool(account.blocked)

            await until(is_full, "a partition that says that it is full")
            assert journal.numbers("a") == [0]
            assert not journal.numbers("b")
            (letter,) = await app.dead_letters()
            await app.archive(letter, reason="not needed")
            await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == list(range(20))
        assert journal.numbers("b") == list(range(5))
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.archived, account.parked, account.open) == (24, 1, 0, 0)
        assert not account.blocked


async def more_parked_lanes_than_memory_holds_keep_their_order(make: Factory) -> None:
    """P1: lanes that are not in memory are found again, by their events and by their due time."""
    clock = ManualClock()
    journal = Journal(clock)
    limits = Limits(parked_lanes_max=3, fetch_events_max=10)

    def app() -> App:
        made = make.app(clock=clock, partitions=1, limits=limits)

        @made.subscribe(Step, group=GROUP, retry=_LONG)
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            if step.number == 0 and ctx.attempt < 3:
                raise Boom

        return made

    keys = "abcdefghijkl"
    async with (one := app()):
        await one.publish_many(steps_of(keys, 2))
        async with one.handling():
            await until(lambda: len(journal.runs) == len(keys), "the first attempts")
            await one.publish_many(steps_of(keys, 2, 2))
    async with (two := app()):
        await two.publish_many(steps_of(keys, 1, 4))
        await two.run_until_idle(PATIENCE_S)
        for key in keys:
            assert journal.numbers(key) == [0, 0, 0, 1, 2, 3, 4]
            assert [run.attempt for run in journal.of(key)] == [1, 2, 3, 1, 1, 1, 1]
        account = (await two.status()).groups[GROUP]
        assert (account.done, account.parked, account.open) == (60, 0, 0)


async def gaps_name_what_a_lane_passed_over_until_it_is_resolved(make: Factory) -> None:
    """`ctx.gaps` has the offsets that the lane passed over, dead or archived, over restarts too."""
    clock = ManualClock()
    seen: dict[tuple[str, int], tuple[int, ...]] = {}
    fails = True

    def app() -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
        async def handle(step: Step, ctx: Context[Any]) -> Outcome | None:
            seen[step.key, step.number] = ctx.gaps
            if step.key == "a" and step.number in (1, 3) and fails:
                return Dead(lane="continue" if step.number == 1 else "park")
            return None

        return made

    async with (one := app()):
        await one.publish_many(steps_of("ab", 3))  # a: offsets 0, 2, 4
        await one.run_until_idle(PATIENCE_S)
        assert seen == {**{(k, n): () for k in "ab" for n in range(3)}, ("a", 2): (2,)}
    async with (two := app()):
        await two.publish_many(steps_of("a", 3, 3))  # offsets 6, 7, 8
        await two.run_until_idle(PATIENCE_S)
        assert ("a", 4) not in seen
        (blocks,) = [each for each in await two.dead_letters() if each.on_dead == "park"]
        await two.archive(blocks, reason="not needed")
        await two.run_until_idle(PATIENCE_S)
        assert seen["a", 4] == seen["a", 5] == (2, 6)
        fails = False
        letters = await two.dead_letters()
        await two.replay(letters, reason="mended")
        await two.run_until_idle(PATIENCE_S)
        await two.publish(Step("a", 6))
        await two.run_until_idle(PATIENCE_S)
        assert seen["a", 6] == (6,)


async def a_list_may_hold_several_of_a_lane_and_repeats_what_follows_a_failure(
    make: Factory,
) -> None:
    """Batch(lanes="together"): in order; after a failure the later ones of its lane run again."""
    clock = ManualClock()
    lists: list[list[tuple[str, int]]] = []
    app = make.app(clock=clock, partitions=1)

    @app.subscribe(
        Step,
        group=GROUP,
        retry=Retry(attempts=2, delay_s=1, jitter=0, immediate=0),
        batch=Batch(8, lanes="together"),
        concurrency=1,
    )
    async def handle(steps: list[Step], contexts: list[Context[Any]]) -> list[Outcome | None]:
        lists.append([(step.key, step.number) for step in steps])
        first = contexts[0].attempt == 1
        return [
            Dead(lane="continue")
            if (step.key, step.number) == ("a", 2) and first
            else Skipped()
            if step.key == "b"
            else None
            for step in steps
        ]

    async with app:
        await app.publish_many(steps_of("ab", 6))
        await app.run_until_idle(PATIENCE_S)
        assert max(map(len, lists)) > 2, "expected several events of a lane in one list"
        for key in "ab":
            numbers = [number for one in lists for each, number in one if each == key]
            first_runs = list(dict.fromkeys(numbers))
            assert first_runs == list(range(6))
        repeated = [number for one in lists for key, number in one if key == "a"]
        assert repeated.count(2) == 1
        assert {number for number in range(6) if repeated.count(number) > 1} <= {3, 4, 5}
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.skipped, account.dead) == (5, 6, 1)


async def a_dead_letter_is_an_event_on_the_topic_of_its_group(make: Factory) -> None:
    """Each dead letter is an event on <topic>.<group>.dlq, which other code can handle."""
    clock = ManualClock()
    heard: list[DeadLettered] = []
    app = make.app(clock=clock, partitions=2)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(step: Step, _: Context[Any]) -> None:
        if step.number == 1:
            raise Boom("no stock")

    async with app:
        await app.publish_many(steps_of("abc", 3))
        await app.run_until_idle(PATIENCE_S)
        letters = {str(each.id): each for each in await app.dead_letters()}
        assert len(letters) == 3
        other = make.app(clock=clock, name="alerts")

        @other.subscribe(DeadLettered, group="alerts", topic=f"{TOPIC}.{GROUP}.dlq")
        async def alert(notice: DeadLettered, _: Context[Any]) -> None:
            heard.append(notice)

        async with other:
            await other.run_until_idle(PATIENCE_S)
        assert sorted(each.id for each in heard) == sorted(letters), "expected each once"
        for notice in heard:
            letter = letters[notice.id]
            assert (notice.topic, notice.partition, notice.offset, notice.group) == (
                letter.topic,
                letter.partition,
                letter.offset,
                letter.group,
            )
            assert (notice.error_class, notice.error_message) == ("Boom", "no stock")
            assert (notice.attempts, notice.key.encode()) == (2, letter.key)


async def what_a_dead_letter_publishes_of_itself_has_no_payload_unless_asked(
    make: Factory,
) -> None:
    """The event itself is on the topic of dead letters only with dlq_payload=True."""
    clock = ManualClock()
    for number, dlq_payload in enumerate((False, True)):
        app = make.app(clock=clock, partitions=1, dlq_payload=dlq_payload)

        @app.subscribe(Step, group=GROUP, on_dead="continue")
        async def handle(_: Step, __: Context[Any]) -> Outcome:
            return Dead("no")

        async with app:
            await app.publish(Step("a", number))
            await app.run_until_idle(PATIENCE_S)
            notices = [
                app.decode(each, DeadLettered) async for each in app.read(f"{TOPIC}.{GROUP}.dlq")
            ]
            letter = (await app.dead_letters())[number]
            assert notices[number].payload == (letter.value if dlq_payload else None)
