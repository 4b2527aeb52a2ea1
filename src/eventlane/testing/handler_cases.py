"""Cases about handlers: what they may return, how they are run, and how a run ends."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from eventlane.app import App
from eventlane.clock import sleep
from eventlane.config import Limits
from eventlane.handler import Batch, Context, Handler
from eventlane.outcome import Dead, Done, Outcome, Pause, RetryLater, Skipped
from eventlane.retry import Retry
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    TOPIC,
    Boom,
    Factory,
    Step,
    staged,
    until,
)
from eventlane.topic import Topic


async def what_a_handler_returns_is_what_becomes_of_its_event(make: Factory) -> None:
    """None and Done() are done, Skipped() is skipped, RetryLater() runs again, Dead() is dead."""
    app, journal, _ = staged(make)
    outcomes: dict[str, Outcome | None] = {
        "none": None,
        "done": Done(),
        "skipped": Skipped("not mine"),
        "later": RetryLater(1.0),
        "dead": Dead("never mine"),
    }

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2))
    async def handle(step: Step, ctx: Context[Any]) -> Outcome | None:
        journal.note(step, ctx)
        return outcomes[step.key]

    async with app:
        await app.publish_many([Step(key, 0) for key in outcomes])
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.skipped, account.dead) == (2, 1, 2)
        assert {key: len(journal.of(key)) for key in outcomes} == {
            "none": 1,
            "done": 1,
            "skipped": 1,
            "later": 2,
            "dead": 1,
        }
        reasons = {letter.key: letter.error_message for letter in await app.dead_letters()}
        assert reasons[b"dead"] == "never mine"


async def a_wrong_return_value_is_a_dead_letter_that_says_so(make: Factory) -> None:
    """What is neither None nor an outcome is dead at once, and the letter says what to return."""
    app, journal, _ = staged(make)

    async def handle(step: Step, ctx: Context[Any]) -> Any:
        journal.note(step, ctx)
        return {"result": 42}

    app.subscribe(Step, group=GROUP)(handle)
    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert len(journal.runs) == 1
        assert "expected None or an outcome" in letter.error_message
        assert "{'result': 42}" in letter.error_message
        assert "publish an event instead" in letter.error_message


async def a_pause_leaves_the_event_uncharged_and_resuming_goes_on(make: Factory) -> None:
    """Pause() pauses the group; the event keeps its attempts, and runs first after resuming."""
    app, journal, _ = staged(make)
    closed = True

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, rules=((Boom, Pause()),)))
    async def handle(step: Step, ctx: Context[Any]) -> Outcome | None:
        journal.note(step, ctx)
        if step.key == "a" and step.number == 1 and closed:
            raise Boom("the warehouse is closed")
        return None

    async with app:
        await app.publish_many([Step("a", number) for number in range(4)])
        for _ in range(3):
            await app.run_until_idle(PATIENCE_S)
            account = (await app.status()).groups[GROUP]
            assert account.paused == "the warehouse is closed"
            assert (account.done, account.dead, account.open) == (1, 0, 3)
            await app.resume(GROUP)
        await app.pause(GROUP, reason="an operator said so")
        runs = len(journal.runs)
        await app.run_until_idle(PATIENCE_S)
        assert len(journal.runs) == runs
        closed = False
        async with app.handling():
            await app.resume(GROUP)
            await until(lambda: len(journal.runs) == runs + 3, "that the group goes on")
        assert {run.attempt for run in journal.runs} == {1}
        assert journal.numbers("a") == [0, 1, 1, 1, 1, 2, 3]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.paused, account.open) == (4, None, 0)


async def a_paused_group_starts_no_handler(make: Factory) -> None:
    """A paused group starts nothing: no new event, no due retry, no replay; idle does not wait."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=5, jitter=0, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key in "ab" and not ctx.replayed:
            raise Boom

    async with app:
        await app.publish_many([Step("a", 0), Step("a", 1)])
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        async with app.handling():
            await app.publish(Step("b", 0))
            await until(lambda: bool(journal.of("b")), "the first attempt")
            await app.pause(GROUP, reason="maintenance")
            await app.replay(letter, reason="mended")
            await app.publish(Step("c", 0))
            runs = len(journal.runs)
            await app.run_until_idle(PATIENCE_S)
            assert len(journal.runs) == runs
            await app.resume(GROUP)
            await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == [0, 0, 0, 1, 1]
        assert journal.numbers("b") == [0, 0]
        assert journal.numbers("c") == [0]


async def a_sync_handler_runs_on_threads_and_its_keys_in_order(make: Factory) -> None:
    """Sync handlers run on threads, several keys at once, and those of one key in order."""
    app, journal, _ = staged(make)
    two_at_once = threading.Barrier(2)
    threads: set[int] = set()

    @app.subscribe(Step, group=GROUP, concurrency=2)
    def handle(step: Step, ctx: Context[Any]) -> None:
        two_at_once.wait(PATIENCE_S)
        threads.add(threading.get_ident())
        journal.note(step, ctx)

    async with app:
        await app.publish_many([Step(key, number) for number in range(5) for key in "ab"])
        await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == journal.numbers("b") == [0, 1, 2, 3, 4]
        assert threading.get_ident() not in threads
        assert (await app.status()).groups[GROUP].done == 10


async def no_more_lanes_run_at_once_than_the_concurrency_says(make: Factory) -> None:
    """Of many lanes that could run, as many run at once as `concurrency` says."""
    app, journal, _ = staged(make)
    running = most = 0
    barrier = asyncio.Barrier(3)

    @app.subscribe(Step, group=GROUP, concurrency=3)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await barrier.wait()
        running -= 1
        journal.note(step, ctx)

    async with app:
        await app.publish_many([Step(f"k{number}", 0) for number in range(30)])
        await app.run_until_idle(PATIENCE_S)
        assert (most, len(journal.runs)) == (3, 30)


async def a_timed_out_handler_is_cancelled_and_charged(make: Factory) -> None:
    """A handler that does not return within timeout_s is cancelled; that is a failed attempt."""
    app, journal, _ = staged(make)
    cancelled = 0

    @app.subscribe(Step, group=GROUP, timeout_s=0.02, retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        nonlocal cancelled
        journal.note(step, ctx)
        if step.key == "a":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise

    async with app:
        await app.publish_many([Step("a", 0), Step("a", 1), Step("b", 0)])
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert cancelled == 2
        assert (letter.stage, letter.attempts, letter.timeouts) == ("timeout", 2, 2)
        assert "timeout_s=0.02" in letter.error_message
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (1, 1, 1)


async def a_handler_that_swallows_its_timeout_does_not_lose_the_next_one(make: Factory) -> None:
    """A handler that ends in its own way when it is cancelled leaves the next one its timeout."""
    app, journal, _ = staged(make, limits=Limits(drain_s=0.5))

    @app.subscribe(
        Step,
        group=GROUP,
        timeout_s=0.02,
        concurrency=1,
        retry=Retry(attempts=1),
        on_dead="continue",
    )
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if step.number == 0:
                return
            if step.number == 1:
                raise Boom from None
            raise

    async with app:
        await app.publish_many([Step("a", number) for number in range(4)])
        await app.run_until_idle(2.0)
        assert journal.numbers("a") == [0, 1, 2, 3]
        letters = sorted(await app.dead_letters(), key=lambda each: each.offset)
        stages = {each.offset: each.stage for each in letters}
        assert stages == {0: "timeout", 1: "handle", 2: "timeout", 3: "timeout"}
        assert (await app.status()).groups[GROUP].open == 0


async def a_cancellation_within_a_handler_is_a_failure_of_that_event(make: Factory) -> None:
    """A handler that raises CancelledError by itself has failed like any other."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "a":
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            await inner

    async with app:
        await app.publish_many([Step("a", 0), Step("b", 0), Step("b", 1)])
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert (letter.error_class, letter.attempts) == ("CancelledError", 2)
        assert (await app.status()).groups[GROUP].done == 2


async def a_thread_that_times_out_keeps_its_lane_closed_until_it_ends(make: Factory) -> None:
    """A thread cannot be cancelled: its lane stays closed until its code has ended."""
    app, journal, _ = staged(make, limits=Limits(stuck_s=60))
    go_on = threading.Event()

    @app.subscribe(Step, group=GROUP, timeout_s=1.0, retry=Retry(attempts=1))
    def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "a" and step.number == 0:
            go_on.wait(PATIENCE_S)

    async with app, app.handling():
        await app.publish_many([Step(key, number) for number in range(3) for key in "ab"])
        await until(lambda: len(journal.of("b")) == 3, "that other keys go on")
        assert journal.numbers("a") == [0]
        await sleep(1.5)
        assert journal.numbers("a") == [0]
        go_on.set()
        await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a")[:1] == [0]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (3, 1, 2)
        (letter,) = await app.dead_letters()
        assert letter.stage == "timeout"


async def a_returned_retry_is_bounded_by_attempts_and_elapsed_s_max(make: Factory) -> None:
    """`RetryLater` may be returned as often as a rule may ask for it: its policy bounds both."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, on_dead="continue", retry=Retry(attempts=50, elapsed_s_max=5))
    async def handle(step: Step, ctx: Context[Any]) -> RetryLater:
        journal.note(step, ctx)
        return RetryLater(2.0)

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert [run.attempt for run in journal.runs] == [1, 2, 3]
        assert (await app.status()).groups[GROUP].dead == 1


async def a_list_of_one_lane_that_raises_runs_one_by_one(make: Factory) -> None:
    """A list with several events of a lane that raises: its first runs alone, and is charged."""
    app, journal, _ = staged(make)

    @app.subscribe(
        Step,
        group=GROUP,
        batch=Batch(10, lanes="together"),
        on_dead="continue",
        retry=Retry(attempts=2, delay_s=1),
    )
    async def handle(steps: list[Step], contexts: list[Context[Any]]) -> None:
        for step, ctx in zip(steps, contexts, strict=True):
            journal.note(step, ctx)
        if any(step.number == 1 for step in steps):
            raise Boom

    async with app:
        await app.publish_many(Step("a", number) for number in range(4))
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead) == (3, 1)
        (letter,) = await app.dead_letters()
        assert (letter.offset, letter.attempts) == (1, 2)


async def an_event_for_a_topic_that_cannot_be_had_fails_its_own_publisher_only(
    make: Factory,
) -> None:
    """What is published to a topic that does not exist fails the run that published it."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
    app, journal, _ = staged(make, create_topics=False)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2), on_dead="continue")
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "a":
            ctx.publish(Step("b", 0), topic="nowhere")

    async with app:
        await app.publish_many([Step("a", 0), Step("b", 0), Step("a", 1)])
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead) == (1, 2)
        assert "nowhere" in (await app.dead_letters())[0].error_message


async def running_handlers_end_when_handling_stops(make: Factory) -> None:
    """When handling stops, running handlers end and are settled; what has not started, waits."""
    app, journal, _ = staged(make)
    go_on, leaving = asyncio.Event(), asyncio.Event()

    @app.subscribe(Step, group=GROUP, concurrency=2)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        await go_on.wait()

    async with app:
        await app.publish_many([Step(key, number) for number in range(3) for key in "abc"])

        async def handle_until_two_run() -> None:
            async with app.handling():
                await until(lambda: len(journal.runs) == 2, "two running handlers")
                leaving.set()

        stopping = asyncio.ensure_future(handle_until_two_run())
        await leaving.wait()
        assert (await app.status()).groups[GROUP].done == 0
        assert not stopping.done()
        go_on.set()
        await stopping
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.waiting) == (2, 7), account
        await app.run_until_idle(PATIENCE_S)
        assert (await app.status()).groups[GROUP].done == 9
        for key in "abc":
            assert journal.numbers(key) == [0, 1, 2]


async def a_batch_holds_at_most_one_event_of_a_lane(make: Factory) -> None:
    """A batch handler gets lists of at most `size` events, and at most one of each key."""
    app, journal, _ = staged(make)
    sizes: list[int] = []
    doubled: list[list[str]] = []

    @app.subscribe(Step, group=GROUP, batch=Batch(5))
    async def handle(steps: list[Step], contexts: list[Context[Any]]) -> None:
        keys = [step.key for step in steps]
        sizes.append(len(steps))
        if len(set(keys)) != len(keys):
            doubled.append(keys)
        for step, ctx in zip(steps, contexts, strict=True):
            journal.note(step, ctx)

    async with app:
        await app.publish_many([Step(key, number) for number in range(6) for key in "abcdefgh"])
        await app.run_until_idle(PATIENCE_S)
        assert not doubled
        assert max(sizes) == 5
        for key in "abcdefgh":
            assert journal.numbers(key) == list(range(6))
        assert (await app.status()).groups[GROUP].done == 48


async def of_a_failing_batch_only_the_culprit_is_charged(make: Factory) -> None:
    """A failing list runs again one by one, so that only the event at fault is charged."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, batch=Batch(4), retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(steps: list[Step], contexts: list[Context[Any]]) -> None:
        for step, ctx in zip(steps, contexts, strict=True):
            journal.note(step, ctx)
        if any(step == Step("c", 0) for step in steps):
            raise Boom

    async with app:
        await app.publish_many([Step(key, number) for number in range(2) for key in "abcd"])
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert (letter.key, letter.attempts) == (b"c", 2)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (6, 1, 1)
        for key in "abd":
            assert {run.attempt for run in journal.of(key)} == {1}
            assert sorted(set(journal.numbers(key))) == [0, 1]
            assert journal.numbers(key) == sorted(journal.numbers(key))


async def a_batch_may_have_an_outcome_for_each_of_its_events(make: Factory) -> None:
    """A batch handler may return a list of outcomes; a list of another length is refused."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, batch=Batch(10), retry=Retry(attempts=2))
    async def handle(
        steps: list[Step], contexts: list[Context[Any]]
    ) -> list[Outcome | None] | None:
        answers: dict[str, Outcome | None] = {
            "done": None,
            "skipped": Skipped(),
            "dead": Dead("no"),
            "later": RetryLater(1.0) if contexts[0].attempt == 1 else Done(),
        }
        if steps[0].key.startswith("wrong"):
            too_many: list[Outcome | None] = [None] * (len(steps) + 1)
            return too_many
        for step, ctx in zip(steps, contexts, strict=True):
            journal.note(step, ctx)
        return [answers[step.key] for step in steps]

    async with app:
        await app.publish_many([Step(key, 0) for key in ("done", "skipped", "dead", "later")])
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.skipped, account.dead) == (2, 1, 1), account
        await app.publish_many([Step("wrong1", 0), Step("wrong2", 0)])
        await app.run_until_idle(PATIENCE_S)
        assert (await app.status()).groups[GROUP].dead == 3


async def context_variables_do_not_leak_from_one_event_to_the_next(make: Factory) -> None:
    """What a handler puts into a context variable is gone when the next event is handled."""
    app, journal, _ = staged(make)
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen: list[str] = []

    @app.subscribe(Step, group=GROUP, concurrency=1)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        seen.append(variable.get())
        variable.set(step.key)

    async with app:
        await app.publish_many([Step(key, number) for number in range(5) for key in "ab"])
        await app.run_until_idle(PATIENCE_S)
        assert seen == ["clean"] * 10


async def middleware_stands_around_every_run(make: Factory) -> None:
    """Middleware sees every run, the first outermost, and exceptions on their way through."""
    seen: list[str] = []

    def layer(name: str) -> Any:
        def wrap(handler: Handler) -> Handler:
            async def around(ctx: Context[Any]) -> Outcome | None:
                seen.append(f"{name} {ctx.event.number} {ctx.attempt}")
                try:
                    return await handler(ctx)
                except Boom:
                    seen.append(f"{name} saw it")
                    raise

            return around

        return wrap

    app, journal, _ = staged(make, middleware=(layer("outer"), layer("inner")))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if ctx.attempt == 1:
            raise Boom

    async with app:
        await app.publish(Step("a", 7))
        await app.run_until_idle(PATIENCE_S)
        assert seen == [
            "outer 7 1",
            "inner 7 1",
            "inner saw it",
            "outer saw it",
            "outer 7 2",
            "inner 7 2",
        ]


async def handlers_see_what_the_lifespan_yields(make: Factory) -> None:
    """The lifespan is entered when handling starts, left after the drain, and yields ctx.state."""
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_: App) -> AsyncGenerator[dict[str, int]]:
        events.append("entered")
        yield {"pool": len(events)}
        events.append("left")

    app, journal, _ = staged(make, lifespan=lifespan)

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        events.append(f"pool {ctx.state['pool']}")

    async with app:
        await app.publish(Step("a", 0))
        assert events == []
        await app.run_until_idle(PATIENCE_S)
        await app.publish(Step("a", 1))
        await app.run_until_idle(PATIENCE_S)
        assert events == ["entered", "pool 1", "left", "entered", "pool 4", "left"]
