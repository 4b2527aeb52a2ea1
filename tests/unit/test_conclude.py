"""What a dead letter says of its end, and what the account says meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import (
    App,
    Batch,
    Context,
    Dead,
    Outcome,
    PublishFailed,
    Retry,
    RetryLater,
    event,
)
from eventlane.clock import yield_to_loop
from eventlane.testing import in_memory


@event(topic="orders", key="key")
class Ordered(msgspec.Struct, frozen=True):
    key: str
    number: int = 0


async def letter_of(retry: Retry, outcome: object) -> Any:
    """The dead letter of an event whose handler raises or returns this."""
    app = App("embedded::memory:")

    @app.subscribe(Ordered, group="stock", retry=retry)
    async def handle(ordered: Ordered, ctx: Context) -> Outcome | None:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[return-value]  # a wrong one is what some tests are about

    async with in_memory(app) as private:
        await private.publish(Ordered("ada"))
        await private.run_until_idle(timeout_s=10)
        (letter,) = await private.dead_letters()
        return letter


@pytest.mark.parametrize(
    ("retry", "outcome", "disposition", "attempts"),
    [
        (Retry(attempts=3), OSError("x"), "exhausted", 3),
        (Retry(attempts=9, delay_s=60, elapsed_s_max=90, jitter=0), OSError("x"), "exhausted", 3),
        (Retry(rules=[(OSError, Retry(attempts=2))]), OSError("x"), "exhausted", 2),
        (Retry(attempts=1, rules=[(OSError, Dead())]), OSError("x"), "permanent", 1),
        (Retry(attempts=1), Dead("no"), "permanent", 1),
        (Retry(attempts=2), RetryLater(1), "exhausted", 2),
        (Retry(attempts=1), "a result", "permanent", 1),
    ],
)
async def test_a_letter_says_whether_its_attempts_ran_out_or_it_was_hopeless(
    retry: Retry, outcome: object, disposition: str, attempts: int
) -> None:
    letter = await letter_of(retry, outcome)
    assert (letter.disposition, letter.attempts) == (disposition, attempts)


async def test_a_letter_names_the_policy_that_was_in_force() -> None:
    inner = Retry(attempts=2, delay_s=7)
    outer = Retry(attempts=5, rules=[(OSError, inner)])
    assert (await letter_of(outer, OSError("x"))).policy == str(inner)
    policy = (await letter_of(Retry(attempts=2, rules=[(OSError, Dead())]), ValueError())).policy
    assert "attempts=2" in policy
    assert "OSError → Dead" in policy


async def test_what_was_submitted_is_written_when_the_block_ends(tmp_path: Path) -> None:
    url = f"embedded:{tmp_path}"

    def submit_many() -> None:
        app = App(url, durability="os")
        with app:
            for number in range(2000):
                app.submit(Ordered("ada", number))

    await asyncio.to_thread(submit_many)
    async with App(url) as app:
        assert (await app.status()).topics["orders"].published == 2000


async def test_events_that_are_collected_for_a_list_are_not_held() -> None:
    app = App("embedded::memory:")

    @app.subscribe(Ordered, group="stock", batch=Batch(50, linger_s=60))
    async def handle(ordered: list[Ordered], contexts: list[Context]) -> None:
        raise AssertionError("the list is not full")

    async with app, app.handling():
        await app.publish_many(Ordered(f"k{number}") for number in range(10))
        stock = (await app.status()).groups["stock"]
        assert (stock.held, stock.in_flight, stock.waiting) == (0, 0, 10)


async def test_a_head_that_waits_for_its_retry_is_held_with_what_is_behind_it() -> None:
    app = App("embedded::memory:")
    failed = asyncio.Event()

    @app.subscribe(Ordered, group="stock", retry=Retry(delay_s=20, immediate=0))
    async def handle(ordered: Ordered, ctx: Context) -> None:
        failed.set()
        raise OSError

    async with app, app.handling():
        await app.publish_many(Ordered("ada", number) for number in range(3))
        await failed.wait()
        async with asyncio.timeout(10):
            while (await app.status()).groups["stock"].held != 3:
                await yield_to_loop()
        assert (await app.status()).groups["stock"].waiting == 0


async def test_a_source_that_fails_says_what_is_durable_and_loses_nothing() -> None:
    def source() -> Any:
        for number in range(20_500):
            if number == 20_100:
                raise ZeroDivisionError("the source is broken")
            yield Ordered("ada", number)

    async with App("embedded::memory:") as app:
        with pytest.raises(PublishFailed, match="the source is broken") as failed:
            await app.publish_many(source())
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        assert failed.value.acknowledged == 16_000
        assert (await app.status()).topics["orders"].published == 16_000
        assert [each.number for each in failed.value.rest] == list(range(16_000, 20_100))  # type: ignore[attr-defined]  # they are events
