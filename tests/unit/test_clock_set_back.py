"""The wall clock is set back by an hour: nothing is lost, and nothing is early."""

from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Context, Limits, Retry, event
from eventlane.brokers import connect
from eventlane.clock import SystemClock, yield_to_loop
from eventlane.replay import Pace, Pacing, admitted
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import TOPIC, record
from eventlane.topic import Topic

HOUR_MS = 3_600_000
HOUR_S = 3_600.0


class Settable(ManualClock):
    """A clock whose wall time can be set, and whose other time goes on."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class SettableSystem(SystemClock):
    """The same of the machine's clock."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@event(topic="orders", key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str


class Work:
    """An app that fails once for each event, and when it ran."""

    def __init__(self, directory: Path, clock: ManualClock, delay_s: float) -> None:
        self.runs: list[int] = []
        self.app = App(
            f"embedded:{directory}",
            name="shop",
            durability="os",
            partitions=1,
            clock=clock,
            limits=Limits(hold_s_max=30),
        )
        retry = Retry(attempts=3, immediate=0, delay_s=delay_s, delay_s_max=delay_s, jitter=0)
        self.app.subscribe(Ordered, group="work", retry=retry)(self.handle)

    async def handle(self, ordered: Ordered, ctx: Context) -> None:
        self.runs.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("not yet")

    async def waits(self) -> None:
        """Until its retry is durable, and held or parked."""
        while True:
            group = (await self.app.status()).groups["work"]
            if self.runs == [1] and group.in_flight == 0 and (group.held or group.parked):
                return
            await yield_to_loop()

    async def has_taken_over(self) -> None:
        """Until it knows what it waits for."""
        while not any(each.next_due_ms for each in self.app._dispatchers):
            await yield_to_loop()


async def settle_down() -> None:
    """Let everything happen that may, for the clock that there is."""
    for _ in range(2000):
        await yield_to_loop()


async def test_a_retry_is_late_by_the_jump_and_never_early_whoever_takes_it_over(
    tmp_path: Path,
) -> None:
    clock = Settable()
    delay_s = 2 * HOUR_S
    work = Work(tmp_path, clock, delay_s)
    async with work.app, work.app.handling():
        await work.app.publish(Ordered("ada"))
        await work.waits()
    clock.ahead_ms = -HOUR_MS
    for _ in range(3):
        clock.advance(10)
        again = Work(tmp_path, clock, delay_s)
        async with again.app, again.app.handling():
            await again.has_taken_over()
            clock.advance(delay_s / 4)
            await settle_down()
            assert again.runs == []
    last = Work(tmp_path, clock, delay_s)
    async with last.app, last.app.handling():
        await last.has_taken_over()
        clock.advance(delay_s / 4 + HOUR_S)
        while not last.runs:
            await yield_to_loop()
        assert last.runs == [2]


async def test_retention_removes_nothing_early_and_publishing_goes_on(tmp_path: Path) -> None:
    clock = Settable()
    broker = await connect(f"embedded:{tmp_path}", clock=clock)
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=60))
    await broker.append([(TOPIC, [record("a", "1")] * 10)])
    clock.ahead_ms = -HOUR_MS
    await broker.append([(TOPIC, [record("a", "2")] * 10)])
    await broker.run_retention(clock.now_ms())  # type: ignore[attr-defined]  # not of the Protocol
    assert await broker.ends(TOPIC) == [(0, 20)]
    clock.advance(HOUR_S + 61)
    await broker.run_retention(clock.now_ms())  # type: ignore[attr-defined]  # the same
    assert await broker.ends(TOPIC) == [(20, 20)]
    await broker.aclose()


async def test_a_replay_that_waits_for_its_pace_asks_no_more_often_than_before(
    tmp_path: Path,
) -> None:
    clock = SettableSystem()
    app = App(f"embedded:{tmp_path}", durability="os", partitions=1, clock=clock)

    @app.subscribe(Ordered, group="work", retry=Retry(attempts=1))
    async def handle(ordered: Ordered, ctx: Context) -> None:
        if not ctx.replayed:
            raise ValueError("not yet")

    async with app, app.handling():
        await app.publish_many(Ordered(each) for each in "abc")
        while (await app.status()).groups["work"].dead < 3:
            await yield_to_loop()
        operation = await app.replay("group:work", reason="mended", canary=False, rate_per_s=0.01)
        while not (await operation.status()).resolved:
            await yield_to_loop()
        clock.ahead_ms = -HOUR_MS
        broker: Any = app._broker
        before = sum(broker.times["commit"].values[1:])
        (dispatcher,) = app._dispatchers
        dispatcher._operations.go_on()
        while sum(broker.times["commit"].values[1:]) == before:
            await yield_to_loop()  # it has been asked
        await settle_down()
        assert sum(broker.times["commit"].values[1:]) - before < 5
        await operation.cancel(reason="enough")


def test_a_replay_goes_on_at_its_pace() -> None:
    pace, pacing = Pace(rate_per_s=2, canary=False), Pacing()
    at_ms = 10 * HOUR_MS
    assert admitted(pace, pacing, [1, 1], is_quiet=True, now_ms=at_ms)[0] == 1
    assert admitted(pace, pacing, [1], is_quiet=True, now_ms=at_ms - HOUR_MS)[0] == 0
    assert admitted(pace, pacing, [1], is_quiet=True, now_ms=at_ms - HOUR_MS + 501)[0] == 1
