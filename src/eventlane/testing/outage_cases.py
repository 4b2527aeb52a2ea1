"""Cases: an outage is not poison. Breakers of groups and dependencies, and the retry budget."""

import asyncio
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import msgspec

from eventlane.app import App
from eventlane.breaker import Dependency
from eventlane.config import Limits
from eventlane.event import event
from eventlane.handler import Context
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
    until,
)


@event(topic=TOPIC, key="key")
class Other(msgspec.Struct, frozen=True):
    """An event that needs nothing."""

    key: str
    number: int


class _Gone(Exception):
    """The dependency is out."""


def _keys(count: int) -> list[str]:
    return [f"k{number:03}" for number in range(count)]


async def an_error_of_a_dependency_burns_no_attempt(make: Factory) -> None:
    """A dependency that is out is probed at growing intervals; no event is charged an attempt."""
    app, journal, clock = staged(make, partitions=2)
    mail = Dependency("mail", trips_on=_Gone, failures=5)
    started_ms = clock.now_ms()
    back_ms = started_ms + 100_000

    @app.subscribe(
        Step, group=GROUP, retry=Retry(attempts=2, delay_s=1), dependencies=[mail], concurrency=5
    )
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if clock.now_ms() < back_ms:
            raise _Gone

    async with app:
        await app.publish_many([Step(key, number) for number in range(3) for key in _keys(40)])
        await app.run_until_idle(PATIENCE_S)
        assert {run.attempt for run in journal.runs} == {1}
        failed = [run for run in journal.runs if run.at_ms < back_ms]
        assert len(failed) < 20, f"expected only probes after the first errors, got {len(failed)}"
        gaps = [b.at_ms - a.at_ms for a, b in pairwise(failed)]
        assert 1_000 in gaps
        assert max(gaps) >= 32_000
        for key in _keys(40):
            assert [run.number for run in journal.of(key) if run.at_ms >= back_ms] == [0, 1, 2]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.open) == (120, 0, 0)


async def what_waits_for_a_dependency_stops_no_other_handler(make: Factory) -> None:
    """P2: while a dependency is out, a full span parks what needs it, and other handlers go on."""
    limits = Limits(span_max=20, fetch_events_max=10)
    app, journal, clock = staged(make, limits=limits)
    mail = Dependency("mail", trips_on=_Gone, failures=1)
    back_ms = clock.now_ms() + 100_000

    @app.subscribe(Step, group=GROUP, dependencies=[mail], concurrency=5)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if clock.now_ms() < back_ms:
            raise _Gone

    @app.subscribe(Other, group=GROUP)
    async def look(other: Other, ctx: Context[Any]) -> None:
        journal.note(Step(other.key, other.number), ctx)

    async with app:
        mixed = [
            each
            for number, key in enumerate(_keys(60))
            for each in (Step(key, number), Other(f"o{number}", number))
        ]
        started_ms = clock.now_ms()
        await app.publish_many(mixed)
        await app.run_until_idle(PATIENCE_S)
        others = [run for run in journal.runs if run.key.startswith("o")]
        assert len(others) == 60
        assert {run.at_ms for run in others} == {started_ms}
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked, account.open) == (120, 0, 0, 0)
        assert {run.attempt for run in journal.runs} == {1}


async def a_time_out_is_charged_whatever_a_dependency_trips_on(make: Factory) -> None:
    """An event whose handler hangs ends dead, though its dependency trips on TimeoutError."""
    app, journal, _ = staged(make)
    mail = Dependency("mail", trips_on=TimeoutError)

    @app.subscribe(
        Step,
        group=GROUP,
        timeout_s=0.02,
        retry=Retry(attempts=2, delay_s=1),
        dependencies=[mail],
    )
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        await asyncio.Event().wait()

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert (letter.stage, letter.attempts) == ("timeout", 2)
        assert len(journal.runs) == 2


async def a_group_in_an_outage_probes_and_burns_no_further_attempts(make: Factory) -> None:
    """When 80 % of the last runs failed, in many lanes, only probes run; nothing drains away."""
    app, journal, clock = staged(make, partitions=2)
    back_ms = clock.now_ms() + 600_000

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=4, delay_s=1, jitter=0), concurrency=10)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if clock.now_ms() < back_ms:
            raise Boom

    async with app:
        await app.publish_many([Step(key, 0) for key in _keys(200)])
        await app.run_until_idle(PATIENCE_S)
        failed = [run for run in journal.runs if run.at_ms < back_ms]
        assert len(failed) < 150, f"expected that few attempts are burnt, got {len(failed)}"
        account = (await app.status()).groups[GROUP]
        assert account.done + account.dead == 200
        assert account.dead <= 5, "a probe is an ordinary attempt, so that few may die"
        assert account.open == 0


async def a_group_with_nothing_but_poison_ends(make: Factory) -> None:
    """Probes of a group are ordinary attempts: where everything is poison, all of it ends dead."""
    clock = ManualClock()
    app = make.app(clock=clock, partitions=1, limits=Limits(breaker_runs=20, breaker_lanes_min=5))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1), on_dead="continue")
    async def handle(_: Step, __: Context[Any]) -> None:
        raise Boom

    async with app:
        await app.publish_many([Step(key, 0) for key in _keys(40)])
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.dead, account.open) == (40, 0)


async def many_delayed_retries_are_spread_and_none_dies_of_it(make: Factory) -> None:
    """Without tokens a delayed retry is later, never dead; with tokens it is as planned."""
    limits = Limits(retry_tokens_max=50, retry_tokens_per_s=10, retry_token_cost=10)
    app, journal, clock = staged(make, limits=limits)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1, jitter=0, immediate=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if ctx.attempt == 1:
            raise Boom

    async with app:
        started_ms = clock.now_ms()
        await app.publish_many([Step(key, 0) for key in _keys(25)])
        await app.run_until_idle(PATIENCE_S)
        second_ms = sorted(run.at_ms - started_ms for run in journal.runs if run.attempt == 2)
        assert second_ms[:5] == [1_000] * 5
        assert second_ms[5:] == [1_000 + 1_000 * number for number in range(1, 21)]
        assert (await app.status()).groups[GROUP].done == 25


async def time_in_an_outage_does_not_count_towards_elapsed_s_max(make: Factory) -> None:
    """elapsed_s_max counts planned waiting and running, not a pause or a time without an owner."""
    clock = ManualClock()
    journal = Journal(clock)

    def retrying() -> Any:
        app = make.app(clock=clock, partitions=1)

        @app.subscribe(
            Step,
            group=GROUP,
            retry=Retry(attempts=9, delay_s=10, factor=1, jitter=0, immediate=0, elapsed_s_max=25),
        )
        async def handle(step: Step, ctx: Context[Any]) -> None:
            journal.note(step, ctx)
            raise Boom

        return app

    async with (one := retrying()):
        await one.publish(Step("a", 0))
        async with one.handling():
            await until(lambda: len(journal.runs) == 1, "the first attempt")
    clock.advance(3600.0)
    async with (two := retrying()):
        await two.run_until_idle(PATIENCE_S)
        assert [run.attempt for run in journal.runs] == [1, 2, 3]
        (letter,) = await two.dead_letters()
        assert letter.attempts == 3


async def a_pause_and_an_open_breaker_do_not_count_towards_elapsed_s_max(make: Factory) -> None:
    """elapsed_s_max counts neither how long a group was paused, nor how long a dependency was out.

    Without either the third attempt is the last one: a fourth would come after 30 s of 25.
    """
    app, journal, clock = staged(make)
    mail = Dependency("mail", trips_on=_Gone, failures=1)
    back_ms = 0

    @app.subscribe(
        Step,
        group=GROUP,
        retry=Retry(attempts=9, delay_s=10, factor=1, jitter=0, immediate=0, elapsed_s_max=25),
        dependencies=[mail],
    )
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        raise _Gone if clock.now_ms() < back_ms else Boom

    def has_run(count: int) -> bool:
        return len(journal.runs) == count

    async with app:
        await app.publish(Step("a", 0))
        async with app.handling():
            await until(partial(has_run, 1), "the first attempt")
            await app.pause(GROUP, reason="a deployment")
            back_ms = clock.now_ms() + 7_200_000
            clock.advance(3600.0)
            await app.resume(GROUP)
            await until(partial(has_run, 2), "a run that meets the outage")
        await app.run_until_idle(PATIENCE_S)
        charged = [run for run in journal.runs if run.at_ms >= back_ms]
        assert len(charged) == 2
        assert {run.attempt for run in journal.runs[1:-2]} == {2}
        assert [run.attempt for run in charged] == [2, 3]
        (letter,) = await app.dead_letters()
        assert (letter.attempts, letter.disposition) == (3, "exhausted")


async def a_ramp_goes_on_after_a_run_in_it_failed(make: Factory) -> None:
    """After a probe succeeded, one that fails while few are let through holds up none for good."""
    app = make.app(partitions=1)
    mail = Dependency("mail", trips_on=_Gone, failures=2, probe_s=0.2)
    runs = 0

    @app.subscribe(Step, group=GROUP, dependencies=[mail], concurrency=4)
    async def handle(_step: Step, _ctx: Context[Any]) -> None:
        nonlocal runs
        runs += 1
        if runs in (1, 2, 4):  # The second opens the breaker, and the third is its first probe.
            raise _Gone

    async with app, app.handling():
        await app.publish_many([Step(key, 0) for key in _keys(2)])
        await until(lambda: runs == 2, "two runs")
        await app.publish_many([Step(key, 1) for key in _keys(8)])
        await until(lambda: _is_done(app, 10), "all to be handled, without any further event")


async def an_uncharged_retry_is_woken_while_other_partitions_settle(make: Factory) -> None:
    """What a dependency failed runs again at its time, whatever else is written meanwhile."""
    app = make.app(partitions=2)
    mail = Dependency("mail", trips_on=_Gone, failures=5, probe_s=0.1)
    failing, failed = "", False

    @app.subscribe(Step, group=GROUP, dependencies=[mail], concurrency=4)
    async def handle(step: Step, _ctx: Context[Any]) -> None:
        nonlocal failed
        if step.key == failing and not failed:
            failed = True
            raise _Gone

    async with app, app.handling():
        places = {(await app.publish(Step(key, 0))).partition: key for key in _keys(20)}
        for turn, (quiet, failing) in enumerate(permutations(places.values())):
            await until(partial(_is_done, app, 20 + 2 * turn), "all to be handled")
            failed = False
            await app.publish(Step(quiet, 1))
            await app.publish(Step(failing, 1))
        await until(lambda: _is_done(app, 24), "all to be handled")


async def _is_done(app: App, count: int) -> bool:
    return (await app.status()).groups[GROUP].done == count
