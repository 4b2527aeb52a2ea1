"""Handlers that do what nobody expects: none of them may end, stop or cheat its group."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import (
    App,
    ConfigError,
    Conflict,
    Context,
    Dead,
    GroupStatus,
    Pause,
    Retry,
    RetryLater,
    Skipped,
    Topic,
    event,
)
from eventlane.clock import yield_to_loop
from eventlane.testing import in_memory
from eventlane.testing.stage import until


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
    raises(GeneratorExit()),
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


@pytest.mark.parametrize("later_s", [None, 0.0, 0.01])
async def test_a_handler_that_cancels_its_own_task_as_it_returns_ends_nothing(
    later_s: float | None,
) -> None:
    app = App("embedded::memory:")

    @app.subscribe(Happened, group="g", concurrency=1)
    async def handle(happened: Happened, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        if later_s is None:
            task.cancel()
        else:
            asyncio.get_running_loop().call_later(later_s, task.cancel)

    async with app, app.handling():
        for number in range(5):
            await app.publish(Happened("a", number))
            await until(partial(_has_done, app, number + 1), "that it is handled")


async def _has_done(app: App, count: int) -> bool:
    return (await app.status()).groups["g"].done == count


async def test_what_a_rule_skips_publishes_nothing_of_its_failed_run() -> None:
    app = App("embedded::memory:")

    @app.subscribe(Happened, group="g", retry=Retry(rules=[(KeyError, Skipped())]))
    async def handle(happened: Happened, ctx: Context) -> None:
        ctx.publish(Out("a"))
        raise KeyError

    async with in_memory(app) as private:
        await private.publish(Happened("a"))
        await private.run_until_idle(timeout_s=10)
        status = await private.status()
    assert status.groups["g"].skipped == 1
    assert "out" not in status.topics


async def test_a_handler_that_overruns_its_time_is_said_and_charged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("embedded::memory:")
    go_on = threading.Event()

    @app.subscribe(Happened, group="g", timeout_s=0.05, retry=Retry(attempts=1))
    def handle(happened: Happened, ctx: Context) -> None:
        go_on.wait(10)

    async with app, app.handling():
        await app.publish(Happened("a"))
        await until(lambda: "runs on after its timeout_s=0.05" in caplog.text, "that it is said")
        await until(lambda: _is_said(app), "that status says it")
        go_on.set()
        await until(lambda: _is_dead(app), "that it is charged")
    assert len([line for line in caplog.messages if "runs on" in line]) == 1


async def _is_said(app: App) -> bool:
    return "runs on" in str((await app.status()).groups["g"].blocked)


async def _is_dead(app: App) -> bool:
    return (await app.status()).groups["g"].dead == 1


async def test_a_replay_where_nobody_handles_its_type_leaves_the_letter_open(
    tmp_path: Path,
) -> None:
    app, bare = App(f"embedded:{tmp_path}"), App(f"embedded:{tmp_path}")

    @app.subscribe(Happened, group="g", retry=Retry(attempts=1))
    async def fail(happened: Happened, ctx: Context) -> None:
        raise KeyError

    bare.subscribe(Out, group="g", topic="t")(_nothing)
    async with app:
        await app.publish_many(Happened("a", number) for number in range(3))
        await app.run_until_idle(timeout_s=10)
    async with bare, bare.handling():
        letters = await bare.dead_letters()
        operation = await bare.replay(letters, reason="mended")
        status = await operation.wait()
        assert (status.resolved, status.returned) == (0, 1)
        assert "no handler" in (await operation.left_out())[0].why
        account = (await bare.status()).groups["g"]
        assert (account.dead, account.parked, account.skipped) == (1, 2, 0)


async def _nothing(event: Any, ctx: Context) -> None:
    return None


@pytest.mark.parametrize("how", ["interrupt", "exit in a task"])
def test_what_ends_its_process_in_an_orderly_way_is_dead_in_the_end(
    how: str, tmp_path: Path
) -> None:
    def start() -> GroupStatus:
        app = App(f"embedded:{tmp_path}", durability="os")

        @app.subscribe(Happened, group="g", retry=Retry(attempts=2))
        async def handle(happened: Happened, ctx: Context) -> None:
            if how == "interrupt":
                raise KeyboardInterrupt

            async def leave() -> None:
                raise SystemExit(3)

            await asyncio.create_task(leave())

        async def main() -> GroupStatus:
            async with app:
                if "t" not in (await app.status()).topics:
                    await app.publish(Happened("a"))
                await app.run_until_idle(timeout_s=10)
                return (await app.status()).groups["g"]

        return asyncio.run(main())

    for _ in range(10):
        try:
            assert start().dead == 1
        except (KeyboardInterrupt, SystemExit):
            continue
        return
    raise AssertionError("expected that it is dead, got ten ends of a process")


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
            with suppress(Conflict):  # It is not paused now.
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


async def test_what_is_published_to_a_topic_of_another_shape_fails_its_own_run_only(
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
        await app.run_until_idle(timeout_s=10)
        g = (await app.status()).groups["g"]
        assert g.balances
        assert (g.waiting, g.dead, g.parked) == (0, 2, 1)
        letters = await app.dead_letters()
        assert any("expected 8 partitions" in each.error_message for each in letters)


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
