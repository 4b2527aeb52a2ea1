"""What users test with: an app in memory, and a clock that jumps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from eventlane import App, Context, Retry, event
from eventlane.testing import ManualClock, in_memory


@event(topic="orders", key="order_id")
class Ordered(msgspec.Struct, frozen=True):
    order_id: str


@asynccontextmanager
async def real_pool(_: App) -> AsyncIterator[dict[str, int]]:
    raise AssertionError("a test must not open the real pool")
    yield {}


@asynccontextmanager
async def fake_pool(_: App) -> AsyncIterator[dict[str, int]]:
    yield {"failures": 1}


def shop() -> App:
    app = App("embedded:./never-used", lifespan=real_pool)

    @app.subscribe(
        Ordered, group="inventory", retry=Retry(attempts=3, delay_s=3600, delay_s_max=3600)
    )
    async def reserve(ordered: Ordered, ctx: Context[dict[str, int]]) -> None:
        if ctx.state["failures"] > 0:
            ctx.state["failures"] -= 1
            raise ConnectionError

    return app


async def test_stock_is_reserved_on_the_second_attempt() -> None:
    async with in_memory(shop(), lifespan=fake_pool) as app:
        await app.publish(Ordered("o-1"))
        await app.run_until_idle(10)
        assert (await app.status()).groups["inventory"].done == 1


async def test_hours_of_retries_take_no_time_and_the_lease_survives_them() -> None:
    app = App("embedded:./never-used")
    at: list[float] = []

    @app.subscribe(
        Ordered,
        group="inventory",
        retry=Retry(attempts=6, delay_s=3600, factor=10, delay_s_max=10**6, jitter=0, immediate=0),
    )
    async def reserve(ordered: Ordered, ctx: Context) -> None:
        at.append(asyncio.get_running_loop().time())
        if ctx.attempt < 6:
            raise ConnectionError

    async with in_memory(app) as private:
        await private.publish(Ordered("o-1"))
        await private.run_until_idle(10)
        assert len(at) == 6
        assert at[-1] - at[0] < 10
        assert (await private.status()).groups["inventory"].done == 1


async def test_each_private_broker_is_empty_and_leaves_the_app_as_it_is() -> None:
    app = shop()
    for _ in range(2):
        async with in_memory(app, lifespan=fake_pool) as private:
            assert private is not app
            assert private.url == "embedded::memory:"
            await private.publish(Ordered("o-1"))
            await private.run_until_idle(10)
            assert (await private.status()).topics["orders"].published == 1
    assert app.url == "embedded:./never-used"


def test_a_manual_clock_calls_what_is_due_in_order_and_nothing_early() -> None:
    clock = ManualClock(1_000)
    called: list[tuple[str, int]] = []
    clock.call_later(2.0, lambda: called.append(("second", clock.now_ms())))
    clock.call_later(1.0, lambda: called.append(("first", clock.now_ms())))
    clock.call_later(1.5, lambda: called.append(("cancelled", clock.now_ms()))).cancel()
    clock.advance(0.999)
    assert called == []
    clock.advance(5.0)
    assert called == [("first", 2_000), ("second", 3_000)]
    assert clock.now_ms() == 6_999
    assert clock.monotonic_s() == 5.999
    clock.advance_to(0)
    assert clock.now_ms() == 6_999


def test_a_manual_clock_is_due_to_the_millisecond_whatever_floats_make_of_it() -> None:
    for delay_ms in range(1, 20_000, 7):
        clock = ManualClock()
        called: list[int] = []
        clock.call_later(delay_ms / 1000, lambda called=called: called.append(1))  # type: ignore[misc]  # bound per round
        clock.advance_to(clock.now_ms() + delay_ms)
        assert called == [1], delay_ms
