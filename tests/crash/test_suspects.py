"""What is suspected of having killed a process, and how it is run: without killing one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventlane import App, Context, Limits
from eventlane import Batch as Lists
from eventlane.brokers import connect
from eventlane.brokers.embedded.groups import _encode
from eventlane.clock import yield_to_loop
from eventlane.handler import Origin
from eventlane.lanes import Lanes
from eventlane.settlement import Acquired, Batch
from eventlane.suspects import AHEAD_MIN
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Step,
    acquired,
    attempts,
    record,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic

ALL = 4


@pytest.fixture
async def broker(tmp_path: Path) -> Any:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await broker.append([(TOPIC, [record("a", str(number)) for number in range(ALL)])])
    yield broker
    await broker.aclose()


async def owner_after_a_death(broker: Any) -> tuple[Any, Acquired]:
    """Another member owns the partition, and who did before has not left."""
    for member in list(broker._members._own.values()):
        broker._members.leave(member)
    consumer = await broker.join(spec())
    return consumer, await acquired(consumer)


async def test_what_never_ran_alone_is_suspected_of_no_more_than_two_deaths(broker: Any) -> None:
    await broker.join(spec())
    for deaths in (1, 2, 2, 2):
        _, own = await owner_after_a_death(broker)
        assert own.suspects == ((0, ALL, deaths),)


async def test_each_death_of_what_runs_alone_counts_for_it_and_for_nothing_else(
    broker: Any,
) -> None:
    await broker.join(spec())
    consumer, own = await owner_after_a_death(broker)
    consumer, own = await owner_after_a_death(broker)
    for deaths in (3, 4, 5):
        await consumer.settle([settlement(own, 0, alone=1)])
        consumer, own = await owner_after_a_death(broker)
        assert own.suspects == ((0, 1, 2), (1, 2, deaths), (2, ALL, 2))


async def test_a_member_that_leaves_while_something_runs_alone_leaves_no_suspect(
    broker: Any,
) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    await consumer.settle([settlement(own, 0, alone=1)])
    await consumer.leave()
    _, own = await owner_after_a_death(broker)
    assert own.suspects == ()
    _, own = await owner_after_a_death(broker)
    assert own.suspects == ((0, ALL, 1),)


async def test_what_cannot_have_been_started_is_not_suspected(broker: Any) -> None:
    await broker.append([(TOPIC, [record("a", str(number)) for number in range(5 * AHEAD_MIN)])])
    await broker.join(spec())
    consumer, own = await owner_after_a_death(broker)
    assert own.suspects == ((0, AHEAD_MIN, 1),)
    retried = attempts(4 * AHEAD_MIN, 1)
    await consumer.settle(
        [settlement(own, 9, done=9, dispatched=2 * AHEAD_MIN, attempts=[retried], suspects=[])]
    )
    _, own = await owner_after_a_death(broker)
    assert own.suspects == ((9, 2 * AHEAD_MIN + 1, 1), (retried.offset, retried.offset + 1, 1))


def test_no_event_is_taken_before_a_settlement_says_that_it_may_be() -> None:
    acquired = Acquired(TOPIC, 0, 1, 0, (), (), (), ())
    origin = Origin(TOPIC, 0, GROUP, None, lambda *_: None)  # type: ignore[arg-type]  # publishes nothing
    lanes = Lanes(origin, acquired, ordering="none", limits=Limits(), now_ms=0)
    count = 20 * AHEAD_MIN
    lanes.add(Batch(range(count), [record(None, "")] * count))
    taken = 0
    allowed = AHEAD_MIN
    while taken < count:
        while delivery := lanes.take():
            lanes.done(delivery)
            taken += 1
        assert taken == min(allowed, count)
        written = lanes.collect()
        assert written is not None, "what waits for it has it written at once"
        assert lanes.take() is None
        lanes.committed()
        allowed = written.dispatched + 1
        assert allowed >= taken + AHEAD_MIN


def suspect(app: App, ends: dict[int, int]) -> None:
    """Let events of partition 0 have been in flight at so many deaths."""
    broker: Any = app._connected
    runs = [(offset, offset + 1, count) for offset, count in ends.items()]
    with broker._file.lock:
        broker._file.connection.execute("UPDATE progress SET suspects = ?", (_encode(runs),))


async def alone_in(app: App) -> int | None:
    broker: Any = app._connected
    found: int | None = broker._file.reader.execute("SELECT alone FROM progress").fetchone()[0]
    return found


async def breathe() -> None:
    """Let everybody else have a turn."""
    for _ in range(10):
        await yield_to_loop()


Subscribe = Callable[[App, list[tuple[int, int | None]]], None]


def one_by_one(app: App, runs: list[tuple[int, int | None]]) -> None:
    @app.subscribe(Step, group=GROUP, concurrency=4)
    async def handle(step: Step, ctx: Context) -> None:
        await breathe()
        runs.append((ctx.offset, await alone_in(app)))


def in_lists(app: App, runs: list[tuple[int, int | None]]) -> None:
    @app.subscribe(Step, group=GROUP, concurrency=1, batch=Lists(1))
    async def handle(steps: list[Step], contexts: list[Context]) -> None:
        await breathe()
        runs.append((contexts[0].offset, await alone_in(app)))


def at_a_rate(app: App, runs: list[tuple[int, int | None]]) -> None:
    @app.subscribe(Step, group=GROUP, concurrency=4, rate_per_s=40)
    async def handle(step: Step, ctx: Context) -> None:
        await breathe()
        runs.append((ctx.offset, await alone_in(app)))


@pytest.mark.parametrize("subscribe", [one_by_one, in_lists, at_a_rate])
async def test_nothing_runs_while_another_event_is_said_to_run_alone(
    subscribe: Subscribe, tmp_path: Path
) -> None:
    suspects = {3: 2, 5: 3}
    runs: list[tuple[int, int | None]] = []
    app = App(f"embedded:{tmp_path}", partitions=1)
    subscribe(app, runs)
    async with app:
        async with app.handling():
            await app.publish_many([Step(f"k{number}", number) for number in range(9)])
            await until(lambda: len(runs) == 9, "that all are handled")
        runs.clear()
        await app.publish_many([Step(f"k{number}", number) for number in range(9)])
        suspect(app, {9 + number: ends for number, ends in suspects.items()})
        await app.run_until_idle(20)
    assert sorted(offset for offset, _ in runs) == list(range(9, 18))
    for offset, alone in runs:
        assert alone == (offset if offset - 9 in suspects else None)
