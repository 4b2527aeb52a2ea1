"""Handling: bad declarations and bad input are answered in words, and handling ends in order."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from eventlane import (
    App,
    Batch,
    ConfigError,
    Context,
    Dead,
    EventlaneError,
    EventRefused,
    Limits,
    NotIdle,
    Pause,
    PublishFailed,
    Query,
    Refused,
    Retry,
    RetryLater,
    Skipped,
    Status,
    TooLarge,
    Unavailable,
    event,
)
from eventlane.broker import Consumer
from eventlane.settlement import GroupSpec, Settlement
from eventlane.testing import in_memory
from eventlane.testing.passing import PassingBroker, PassingConsumer
from eventlane.testing.stage import Storage, until

ROOT = Path(__file__).parents[2]
MEMORY = "embedded::memory:"


@event(topic="orders", key="order_id")
class Ordered(msgspec.Struct, frozen=True):
    order_id: str
    quantity: int = 1


@event(topic="orders", key="order_id")
class Paid(msgspec.Struct, frozen=True):
    order_id: str


@event(topic="bare")
class Bare(msgspec.Struct, frozen=True):
    text: str


@event(topic="odd", key=lambda odd: odd.key)
class Odd(msgspec.Struct, frozen=True):
    key: Any


async def handle(ordered: Ordered, ctx: Context) -> None:
    pass


def says(error: BaseException, *words: str) -> None:
    """Expected, got, what to do: every message has its three parts."""
    text = str(error)
    for word in words:
        assert word in text, text


# --- what is refused before anything runs -----------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka://broker:9092", ("kafka is not in this version", "embedded:DIR")),
        ("rabbitmq-stream://me:secret@host:5552", ("not in this version", "me:***@host")),
        ("embeded:./data", ("expected embedded:DIR", "Did you mean 'embedded'?")),
        ("./data", ("expected embedded:DIR", "'./data'")),
        ("embedded:", ("expected a directory after the colon", "embedded:./data")),
        ("embedded:///data", ("without slashes of its own", "embedded:/data")),
        ("embedded:./data?fsync=1", ("no options", "'fsync'", "durability")),
    ],
)
async def test_a_url_that_is_not_served_is_refused_with_what_is(
    url: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        async with App(url):
            pass
    says(refused.value, *words)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: App(MEMORY, partition=3), ("App(partition=…)", "Did you mean 'partitions'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Retry(attemps=3), ("Retry(attemps=…)", "Did you mean 'attempts'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Limits(drain=3), ("Limits(drain=…)", "Did you mean 'drain_s'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Batch(5, linger=3), ("Batch(linger=…)", "Did you mean 'linger_s'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Query(exeption="K"), ("Query(exeption=…)", "Did you mean 'exception'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Dead(lan="park"), ("Dead(lan=…)", "Did you mean 'lane'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: Skipped(reson="x"), ("Skipped(reson=…)", "Did you mean 'reason'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: RetryLater(1, delay=1), ("RetryLater(delay=…)", "Did you mean 'delay_s'?")),  # type: ignore[call-arg]  # on purpose
        (lambda: App(MEMORY).replace(urls="x"), ("App(urls=…)", "Did you mean 'url'?")),
        (
            lambda: App(MEMORY).subscribe(Ordered, group="g", retries=3)(handle),  # type: ignore[call-overload]  # on purpose
            ("subscribe(retries=…)", "test_dispatch.py", "Did you mean 'retry'?"),
        ),
        (
            lambda: App(MEMORY).subscribe(Ordered)(handle),  # type: ignore[call-overload]  # on purpose
            ("expected group=…, got none", "name of its own"),
        ),
        (
            lambda: App(MEMORY).subscribe(group="g")(handle),
            ("expected one or more event types", "got none"),
        ),
        (
            lambda: App(MEMORY).subscribe(int, group="g")(handle),  # type: ignore[arg-type]  # on purpose
            ("expected a class marked with @event", "int"),
        ),
        (
            lambda: App(MEMORY).subscribe(Ordered, group="a.b")(handle),
            ("A-Z a-z 0-9 _ -", "'a.b'"),
        ),
        (
            lambda: App(MEMORY).subscribe(Ordered, group="g", ordering="keys")(handle),  # type: ignore[call-overload]  # on purpose
            ("ordering='keys'", "'key', 'partition', 'none'", "Did you mean 'key'?"),
        ),
        (lambda: Retry(delay_s=-1), ("Retry(delay_s=-1)", "0 or more", "leave the option out")),
        (lambda: Retry(attempts=0), ("Retry(attempts=0)", "1 or more")),
        (lambda: RetryLater(-0.5), ("RetryLater(delay_s=-0.5)", "0 or more", "in the past")),
        (lambda: Limits(span_max=0), ("Limits(span_max=0)", "greater than 0", "10000")),
        (
            lambda: Limits(settle_interval_s=100),
            ("Limits(settle_interval_s=100, lease_s=10.0)", "far below lease_s"),
        ),
        (lambda: Retry(rules=((ValueError, 3),)), ("expected pairs", "Dead()")),  # type: ignore[arg-type]  # on purpose
        (lambda: App(MEMORY, partitions=0), ("App(partitions=0)", "1 or more")),
    ],
)
def test_a_wrong_option_is_refused_with_the_right_one(
    build: Callable[[], object], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        build()
    says(refused.value, *words)


async def no_context(ordered: Ordered) -> None:
    pass


async def three(ordered: Ordered, ctx: Context, more: int) -> None:
    pass


async def generator(ordered: Ordered, ctx: Context) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_context, ("no_context", "(event, ctx)", "Take both")),
        (three, ("three", "(event, ctx)", "more: int")),
        (generator, ("generator", "its body would never run", "ctx.publish")),
        (Ordered, ("expected a function", "Ordered")),
        (3, ("expected a function", "3")),
    ],
)
def test_a_handler_with_another_signature_is_refused(function: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        App(MEMORY).subscribe(Ordered, group="g")(function)
    says(refused.value, *words)


async def test_two_handlers_of_one_group_for_one_type_are_refused_with_both_places() -> None:
    app = App(MEMORY)
    app.subscribe(Ordered, group="stock")(handle)
    app.subscribe(Ordered, Paid, group="stock")(three_of_two)
    with pytest.raises(ConfigError) as refused:
        async with app, app.handling():
            pass
    says(refused.value, "two handlers for Ordered", "handle", "three_of_two", "group of its own")
    assert str(refused.value).count("test_dispatch.py:") == 2


async def three_of_two(happened: Ordered | Paid, ctx: Context) -> None:
    pass


async def test_contradicting_options_of_a_group_are_refused_with_both_places() -> None:
    app = App(MEMORY)
    app.subscribe(Ordered, group="stock", ordering="key")(handle)
    app.subscribe(Paid, group="stock", ordering="none")(three_of_two)
    with pytest.raises(ConfigError) as refused:
        async with app, app.handling():
            pass
    says(refused.value, "two values for ordering", "'key'", "'none'", "state it once")
    assert str(refused.value).count("test_dispatch.py:") == 2


async def test_parking_without_keys_is_refused() -> None:
    app = App(MEMORY)
    app.subscribe(Ordered, group="stock", ordering="partition", on_dead="park")(handle)
    with pytest.raises(ConfigError) as refused:
        async with app, app.handling():
            pass
    says(refused.value, "on_dead='park'", "ordering='partition'", "'continue' or 'stop'")


async def test_an_app_without_handlers_cannot_handle() -> None:
    with pytest.raises(ConfigError) as refused:
        async with App(MEMORY) as app, app.handling():
            pass
    says(refused.value, "no subscriptions", "@app.subscribe")


async def test_what_needs_a_connection_says_so() -> None:
    app = App(MEMORY)
    with pytest.raises(Unavailable, match="async with app"):
        await app.publish(Ordered("1"))
    with pytest.raises(Unavailable, match="with app"):
        app.submit(Ordered("1"))


async def test_handling_twice_at_once_is_refused() -> None:
    app = App(MEMORY)
    app.subscribe(Ordered, group="g")(handle)
    async with app, app.handling():
        with pytest.raises(Refused, match="one `handling\\(\\)` at a time"):
            async with app.handling():
                pass
        with pytest.raises(ConfigError, match="before handling starts"):
            app.subscribe(Paid, group="g")(handle)  # type: ignore[arg-type]  # refused first


# --- what is refused when it is published -----------------------------------------------------


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        (Odd(None), {}, ("key", "expected a str, bytes, int or UUID", "NoneType")),
        (Odd(1.5), {}, ("key", "expected a str, bytes, int or UUID", "float")),
        (Odd(True), {}, ("key", "expected a str, bytes, int or UUID", "bool")),
        (Ordered("\ud800"), {}, ("UTF-8", "surrogate")),
        (Ordered("1"), {"headers": {"ce_type": "x"}}, ("ce_type", "CloudEvents")),
        (Ordered("1"), {"headers": {"n": 5}}, ("'n'=5", "text or bytes")),
        (Ordered("1", "two"), {}, ("Ordered.quantity", "expected int, got str")),  # type: ignore[arg-type]  # on purpose
    ],
)
async def test_an_event_that_cannot_be_published_is_refused_and_not_written(
    what: object, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    async with App(MEMORY) as app:
        with pytest.raises(EventRefused) as refused:
            await app.publish(what, **options)
        says(refused.value, *words)
        assert all(topic.published == 0 for topic in (await app.status()).topics.values())


async def test_an_oversized_event_is_refused_with_both_sizes() -> None:
    async with App(MEMORY, limits=Limits(event_bytes_max=1000)) as app:
        with pytest.raises(TooLarge) as refused:
            await app.publish(Ordered("x" * 2000))
        says(refused.value, "at most 1,000 bytes", "got 2,0", "event_bytes_max", "reference")


async def test_an_unmarked_class_is_refused() -> None:
    async with App(MEMORY) as app:
        with pytest.raises(ConfigError, match="expected a class marked with @event"):
            await app.publish({"order_id": "1"})


async def test_publish_many_says_what_is_durable_and_hands_back_the_rest() -> None:
    events: list[object] = [Ordered(f"o{number}") for number in range(25)]
    events[17] = Ordered("\ud800")
    async with App(MEMORY, partitions=1, limits=Limits(batch_events_max=5)) as app:
        with pytest.raises(PublishFailed) as failed:
            await app.publish_many(events)
        error = failed.value
        says(error, f"after {error.acknowledged} events", "surrogate", "error.rest")
        assert isinstance(error.__cause__, EventRefused)
        assert error.acknowledged == (await app.status()).topics["orders"].published
        assert 10 <= error.acknowledged <= 17
        rest = list(error.rest)
        assert rest == events[error.acknowledged :]
        assert (
            await app.publish_many(each for each in rest if each is not events[17]) == len(rest) - 1
        )
        found = [app.decode(each, Ordered) async for each in app.read(Ordered)]
        assert found == [each for each in events if each is not events[17]]


async def test_publish_many_reads_an_endless_iterable_no_further_than_it_publishes() -> None:
    read = 0

    def endless() -> Iterator[object]:
        nonlocal read
        while True:
            read += 1
            yield Ordered(f"o{read}") if read != 1000 else Ordered("\ud800")

    async with App(MEMORY, limits=Limits(batch_events_max=10)) as app:
        with pytest.raises(PublishFailed) as failed:
            await app.publish_many(endless())
        assert failed.value.acknowledged == 990
        assert read <= 1030
        assert next(failed.value.rest) is not None


async def test_publish_many_takes_an_async_iterable_that_pauses() -> None:
    go_on = asyncio.Event()

    async def events() -> AsyncIterator[object]:
        yield Ordered("1")
        yield Ordered("2")
        await go_on.wait()
        yield Ordered("3")

    async with App(MEMORY) as app:
        publishing = asyncio.ensure_future(app.publish_many(events()))

        async def two_are_there() -> bool:
            topics = (await app.status()).topics
            return "orders" in topics and topics["orders"].published == 2

        await until(two_are_there, "that what came so far is published")
        go_on.set()
        assert await publishing == 3


# --- running ----------------------------------------------------------------------------------


def test_submit_publishes_from_any_thread() -> None:
    app = App(MEMORY, partitions=1)
    offsets: list[int] = []

    def work(number: int) -> None:
        futures = [app.submit(Ordered(f"{number} {each}")) for each in range(20)]
        offsets.extend(future.result(10).offset for future in futures)

    with app:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(EventRefused):
            app.submit(Ordered("\ud800")).result(10)
    assert sorted(offsets) == list(range(80))
    with pytest.raises(Unavailable):
        app.submit(Ordered("1"))


def test_with_app_raises_what_connecting_raises() -> None:
    with pytest.raises(ConfigError, match="not in this version"), App("kafka://host"):
        pass


async def test_a_fatal_error_cancels_the_body_and_is_raised_as_itself() -> None:
    app = App(MEMORY, limits=Limits(stuck_s=0.05, drain_s=0.05))
    go_on = asyncio.Event()
    entered = asyncio.Event()

    async def stick(ordered: Ordered, ctx: Context) -> None:
        entered.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    app.subscribe(Ordered, group="stuck", timeout_s=0.02)(stick)
    cancelled = False
    async with app:
        await app.publish(Ordered("1"))

        async def body() -> None:
            nonlocal cancelled
            async with app.handling():
                await entered.wait()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled = True
                    raise

        with pytest.raises(EventlaneError, match="stuck"):
            await body()
        go_on.set()
    assert cancelled


async def test_run_until_idle_says_what_is_still_open() -> None:
    app = App(MEMORY)
    go_on = asyncio.Event()

    async def wait(ordered: Ordered, ctx: Context) -> None:
        await go_on.wait()

    app.subscribe(Ordered, group="slow")(wait)
    async with app, app.handling():
        await app.publish_many([Ordered("1"), Ordered("1")])
        with pytest.raises(NotIdle) as failed:
            await app.run_until_idle(0.05)
        says(failed.value, "timeout_s=0.05", "'slow'", "1 in flight")
        assert isinstance(failed.value.status, Status)
        assert failed.value.status.groups["slow"].open == 2
        go_on.set()
        await app.run_until_idle(10)


async def test_an_exception_whose_text_cannot_be_made_is_dead_like_any_other() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    app = App(MEMORY)

    @app.subscribe(Ordered, group="g", retry=Retry(attempts=1))
    async def fail(ordered: Ordered, ctx: Context) -> None:
        if ordered.order_id == "bad":
            raise Unspeakable

    async with in_memory(app) as shop:
        await shop.publish_many([Ordered("bad"), Ordered("good")])
        await shop.run_until_idle(10)
        (letter,) = await shop.dead_letters()
        assert letter.error_class.endswith("Unspeakable")
        assert (await shop.status()).groups["g"].done == 1


class SlowDisk(PassingConsumer):
    """Settles only when it is let."""

    go_on: ClassVar[asyncio.Event]
    asked: ClassVar[asyncio.Event]

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.asked.set()
        await self.go_on.wait()
        await self.real.settle(settlements)


class SlowBroker(PassingBroker):
    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        return SlowDisk(real, group)


async def test_what_is_being_written_when_handling_stops_is_written(tmp_path: Path) -> None:
    SlowDisk.go_on, SlowDisk.asked = asyncio.Event(), asyncio.Event()
    app = Storage(f"embedded:{tmp_path}", wrap=SlowBroker).app(partitions=1)
    go_on, begun = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @app.subscribe(Ordered, group="g", retry=Retry(attempts=1))
    async def fail_or_wait(ordered: Ordered, ctx: Context) -> None:
        if ordered.order_id == "bad":
            raise ValueError
        begun.set()
        await go_on.wait()
        loop.call_later(0.05, SlowDisk.go_on.set)

    async with app:
        async with app.handling():
            await app.publish(Ordered("slow"))
            await begun.wait()
            await app.publish(Ordered("bad"))
            await SlowDisk.asked.wait()
            loop.call_soon(go_on.set)
        account = (await app.status()).groups["g"]
        assert account.balances
        assert (account.done, account.dead) == (1, 1)
        assert len(await app.dead_letters()) == 1


async def test_a_paused_group_gets_no_list_either() -> None:
    app = App(MEMORY)
    lists: list[int] = []

    @app.subscribe(Ordered, group="g", batch=Batch(2), concurrency=1)
    async def pause(orders: list[Ordered], contexts: list[Context]) -> list[Pause]:
        lists.append(len(orders))
        return [Pause("closed")] * len(orders)

    async with in_memory(app) as shop:
        await shop.publish_many([Ordered(f"o{number}") for number in range(6)])
        await shop.run_until_idle(10)
        assert lists == [2]
        assert (await shop.status()).groups["g"].open == 6


MAIN = """
import asyncio, os, sys
import msgspec
from eventlane import App, Context, event

@event(topic="orders", key="order_id")
class Ordered(msgspec.Struct, frozen=True):
    order_id: str

app = App("embedded:" + sys.argv[1])

@app.subscribe(Ordered, group="g")
async def handle(ordered: Ordered, ctx: Context) -> None:
    os.write(1, b"begun\\n")
    # Ends only after the signal has come: its handler closes the standard input's other end.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    os.write(1, b"ended\\n")

asyncio.run(app.run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_handlers_end_and_the_exit_is_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with App(f"embedded:{tmp_path}") as app:
        await app.publish_many([Ordered("1"), Ordered("1")])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        MAIN,
        str(tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        process.stdin.write(b"go on\n")
        process.stdin.close()
        printed = await process.stdout.read()
        assert await process.wait() == 0
    # The signal may come after the line: then a second handler has begun, and ended too.
    assert printed.count(b"ended\n") == printed.count(b"begun\n") + 1
    async with App(f"embedded:{tmp_path}") as app:
        account = (await app.status()).groups["g"]
        assert account.done == printed.count(b"ended\n")
        assert account.members == 0


async def test_a_timeout_that_outlasts_the_drain_is_refused_at_start() -> None:
    app = App(MEMORY, limits=Limits(drain_s=5))

    @app.subscribe(Ordered, group="slow", timeout_s=6)
    async def handle(_: Ordered, __: Context) -> None: ...

    async with app:
        with pytest.raises(ConfigError, match=r"timeout_s=6 with Limits\(drain_s=5\): expected"):
            async with app.handling():
                pass


@pytest.mark.parametrize("value", [1.5, 0.5, 10**13, float("inf")])
def test_a_limit_that_counts_is_a_whole_number_that_can_be_stored(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"Limits\(span_max=.*expected a whole number, "):
        Limits(span_max=value)


@pytest.mark.parametrize(
    "limits",
    [
        {"breaker_failure_ratio": 1.1},
        {"breaker_lanes_min": 101},
        {"retry_token_cost": 11, "retry_tokens_max": 10},
        {"stall_s_max": 10, "lease_s": 10},
        {"absent_s": 1, "lease_s": 10},
        {"disk_bytes_max": 1_048_575},
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected") as refused:
        Limits(**limits)
    for name, value in limits.items():
        assert f"{name}={value}" in str(refused.value)
