"""Handlers that do what nobody expects: none of them may end, stop or cheat its group."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import (
    App,
    ConfigError,
    Context,
    Dead,
    EventlaneError,
    Pause,
    Retry,
    RetryLater,
    Skipped,
    Topic,
    event,
)
from eventlane.clock import yield_to_loop
from eventlane.testing import in_memory


@event(topic="t", key="key")
class Happened(msgspec.Struct, frozen=True):
    key: str
    number: int = 0


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("detached")


class Unheard(BaseException):
    def __str__(self) -> str:
        raise SystemExit(3)


def raises(error: BaseException) -> Callable[[], Any]:
    def handle() -> Any:
        raise error

    return handle


HARD: list[Callable[[], Any]] = [
    Unspeakable,
    lambda: RetryLater(float("inf")),
    lambda: Dead(reason=5),  # type: ignore[arg-type]  # on purpose
    lambda: Pause(reason=object()),  # type: ignore[arg-type]  # on purpose
    lambda: Pause("\ud800"),
    lambda: Skipped(reason=b"x"),  # type: ignore[arg-type]  # on purpose
    lambda: next(iter(())),
    raises(Unheard()),
    raises(SystemExit(1)),
    raises(BaseExceptionGroup("several", [SystemExit(1)])),
    raises(asyncio.CancelledError()),
    raises(ValueError("a lone surrogate: \ud800")),
]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("hard", HARD)
async def test_a_hard_handler_makes_a_dead_letter_and_the_others_go_on(
    hard: Callable[[], Any], *, is_async: bool
) -> None:
    app = App("embedded::memory:")

    def on_thread(happened: Happened, ctx: Context) -> Any:
        return hard() if happened.key == "hard" else None

    async def in_loop(happened: Happened, ctx: Context) -> Any:
        return hard() if happened.key == "hard" else None

    handler: Any = in_loop if is_async else on_thread
    app.subscribe(Happened, group="g", retry=Retry(attempts=1))(handler)
    async with in_memory(app) as private:
        await private.publish_many([Happened("hard"), Happened("good"), Happened("hard", 2)])
        await private.run_until_idle(timeout_s=10)
        g = (await private.status()).groups["g"]
    assert (g.done, g.dead, g.parked) == (1, 1, 1)


async def test_a_worker_that_is_cancelled_outside_its_handler_ends_handling_with_an_error() -> None:
    app = App("embedded::memory:")

    @app.subscribe(Happened, group="g")
    async def handle(happened: Happened, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.01, task.cancel)

    async def handle_for_ever() -> None:
        async with app.handling():
            await app.publish(Happened("a"))
            await asyncio.Event().wait()

    async with app:
        with pytest.raises(EventlaneError, match="cancelled by something outside"):
            await handle_for_ever()


async def test_a_resume_right_after_a_handler_paused_the_group_is_heard() -> None:
    app = App("embedded::memory:")
    calls = 0

    @app.subscribe(Happened, group="g")
    async def handle(happened: Happened, ctx: Context) -> Pause | None:
        nonlocal calls
        calls += 1
        return Pause("later") if calls % 3 == 0 else None

    async def resume_again_and_again() -> None:
        while True:
            await app.resume("g")

    async with app, app.handling():
        await app.publish_many(Happened(f"k{number}") for number in range(60))
        resuming = asyncio.create_task(resume_again_and_again())
        async with asyncio.timeout(20):
            while (await app.status()).groups["g"].done < 60:
                await yield_to_loop()
        resuming.cancel()


@event(topic=Topic("out", partitions=3), key="key")
class Out(msgspec.Struct, frozen=True):
    key: str


async def test_after_a_settlement_that_cannot_be_written_none_passes_over_it(
    tmp_path: Path,
) -> None:
    url = f"embedded:{tmp_path}"

    @event(topic=Topic("out", partitions=8), key="key")
    class OutElsewhere(msgspec.Struct, frozen=True):
        key: str

    async with App(url, durability="os") as other:
        await other.publish(OutElsewhere("first"))
    app = App(url, partitions=1, durability="os")

    @app.subscribe(Happened, group="g", retry=Retry(attempts=1))
    async def handle(happened: Happened, ctx: Context) -> None:
        if happened.key == "bad":
            raise ValueError
        ctx.publish(Out("the topic has another number of partitions"))

    async with app:
        await app.publish_many([Happened("out"), Happened("bad", 1), Happened("bad", 2)])
        with pytest.raises(ConfigError, match="expected 8 partitions"):
            await app.run_until_idle(timeout_s=10)
        g = (await app.status()).groups["g"]
        assert g.balances
        assert (g.waiting, g.done) == (3, 0), "a later settlement passed over what was not written"


async def test_another_ordering_is_refused_while_events_wait_in_lanes(tmp_path: Path) -> None:
    async def fail(happened: Happened, ctx: Context) -> None:
        raise ValueError

    first = App(f"embedded:{tmp_path}", durability="os")
    first.subscribe(Happened, group="g", retry=Retry(attempts=1))(fail)
    async with first:
        await first.publish_many([Happened("a", 1), Happened("a", 2)])
        await first.run_until_idle(timeout_s=10)
    second = App(f"embedded:{tmp_path}", durability="os")
    second.subscribe(Happened, group="g", ordering="none")(fail)
    async with second:
        with pytest.raises(ConfigError, match="resolve or archive them first"):
            await second.run_until_idle(timeout_s=10)
