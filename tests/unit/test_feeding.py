"""Reading parked lanes back: in which order, how many at once, and what if they are gone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Query, Retry, event
from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.feeding import Feeder
from eventlane.handler import Origin
from eventlane.lanes import Lanes
from eventlane.settlement import Acquired, LaneState
from eventlane.suspects import LANES_AT_WORK_MAX
from eventlane.testing import in_memory
from eventlane.testing.stage import GROUP, TOPIC, acquired, record, settlement, spec
from eventlane.topic import Topic

NOW_MS = 10_000


@event(topic="large", key="key")
class Large(msgspec.Struct, frozen=True):
    key: str
    text: str


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}", durability="os")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    yield broker
    await broker.aclose()


async def with_parked(broker: Any, due_ms: dict[bytes, int]) -> tuple[Any, Acquired]:
    """A member whose partition has one parked event in each of these lanes."""
    records = [record(lane, "{}") for lane in due_ms]
    await broker.append([(TOPIC, records)])
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    parked = [(lane, offset, records[offset]) for offset, lane in enumerate(due_ms)]
    states = [
        LaneState(lane, parked=1, head=offset, due_ms=due_ms[lane]) for lane, offset, _ in parked
    ]
    await consumer.settle([settlement(own, len(parked), parked=parked, lanes=states)])
    await consumer.leave()
    consumer = await broker.join(spec())
    return consumer, await acquired(consumer)


def feeder_of(consumer: Any, own: Acquired) -> tuple[Feeder, Lanes]:
    origin: Any = Origin(TOPIC, 0, GROUP, None, lambda *_: None, None, {})  # type: ignore[arg-type]  # publishes nothing
    lanes = Lanes(origin, own, ordering="key", limits=Limits(), now_ms=NOW_MS)
    origin.lanes = lanes
    return Feeder(consumer, {own.place: lanes}, Limits(), fed=lambda _: None), lanes


async def test_the_lanes_that_are_due_first_are_read_back_and_are_those_that_are_suspected(
    broker: Any,
) -> None:
    count = LANES_AT_WORK_MAX + 200
    due_ms = {b"%d" % number: number % 7 for number in range(count)}
    consumer, own = await with_parked(broker, due_ms)
    feeder, lanes = feeder_of(consumer, own)
    assert await feeder.feed()
    order = sorted(due_ms, key=lambda lane: (due_ms[lane], lane))
    at_work = list(lanes.ready)
    assert [each.lane for each in at_work] == order[:LANES_AT_WORK_MAX]
    # No more, until some are durable.
    assert not feeder.has_work
    assert not await feeder.feed()
    for _ in range(10):
        lanes.done(lanes.ready.popleft())
    assert not await feeder.feed()
    written = lanes.collect()
    assert written is not None
    await consumer.settle([written])
    lanes.committed()
    assert await feeder.feed()
    assert [each.lane for each in lanes.ready][-10:] == order[LANES_AT_WORK_MAX:][:10]
    # Whoever takes over after an unclean end suspects each of them.
    for member in list(broker._members._own.values()):
        broker._members.leave(member)
    own = await acquired(await broker.join(spec()))
    suspected = {offset for start, stop, _ in own.suspects for offset in range(start, stop)}
    assert suspected.issuperset(each.offset for each in lanes.ready)


async def test_lanes_that_a_reset_has_emptied_are_left_alone(broker: Any) -> None:
    consumer, own = await with_parked(broker, {b"a": 0, b"b": 0})
    feeder, lanes = feeder_of(consumer, own)
    await broker.reset(GROUP, "first", actor="me", reason="x", dry_run=False)
    assert not await feeder.feed()
    assert not lanes.ready
    assert not feeder.has_work
    # It is not at rest either: it is about to be lost.
    assert lanes.is_moving


async def test_what_is_read_back_of_many_lanes_is_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventlane.feeding._PARKED_BYTES_MAX", 5_000)
    app = App("embedded::memory:", partitions=1)
    sizes_bytes: list[int] = []
    is_mended = False

    @app.subscribe(Large, group="g", concurrency=1, retry=Retry(attempts=1))
    async def handle(_large: Large, ctx: Context) -> None:
        if not is_mended:
            raise KeyError
        lanes = ctx.origin.lanes
        waiting = [each for lane in lanes.closed.values() if lane for each in lane.drained]
        sizes_bytes.append(sum(len(each.record.value or b"") for each in waiting))

    async with in_memory(app) as private:
        await private.publish_many(
            Large(f"k{lane}", "x" * 1_000) for _ in range(5) for lane in range(50)
        )
        await private.run_until_idle(timeout_s=10)
        is_mended = True
        await private.replay(
            Query(group="g"), reason="mended", rate_per_s=None, canary=False, pause_above=None
        )
        await private.run_until_idle(timeout_s=10)
        assert (await private.status()).groups["g"].done == 250
    assert 0 < max(sizes_bytes) < 10_000
