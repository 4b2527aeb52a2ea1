"""Retention: what leaves the log, and what keeps it there."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventlane.brokers import connect
from eventlane.brokers.embedded import retention
from eventlane.settlement import LaneState
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import TOPIC, acquired, letter, record, settlement, spec
from eventlane.topic import Topic

MINUTE_MS = 60_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0)


@pytest.fixture
async def broker(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}", clock=clock)
    yield broker
    await broker.aclose()


async def fill(broker: Any, minutes: int, *, size: int = 1) -> None:
    for _ in range(minutes):
        await broker.append([(TOPIC, [record("a", "x" * size)] * 10)])
        broker._clock.advance(60)


async def test_whole_batches_leave_when_they_are_too_old(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=180))
    await fill(broker, 10)
    await broker.run_retention(10 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(80, 100)]
    found = await broker.fetch(TOPIC, 0, 0, 1000)
    assert list(found.offsets) == list(range(80, 100))


async def test_offsets_go_on_after_everything_has_left(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=1))
    await fill(broker, 3)
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(30, 30)]
    status = (await broker.status()).topics[TOPIC]
    assert (status.published, status.size_bytes) == (30, 0)
    assert (await broker.publish(TOPIC, record("a", "1"))).offset == 30


async def test_the_oldest_batches_leave_when_there_is_too_much(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_bytes=50_000))
    await fill(broker, 10, size=1000)
    await broker.run_retention(0)
    ((first, end),) = await broker.ends(TOPIC)
    assert end == 100
    assert 40_000 < (await broker.status()).topics[TOPIC].size_bytes <= 50_000
    assert first == 60


async def test_size_is_of_the_whole_topic_and_its_oldest_batches_go_first(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=2, retention_bytes=25_000))
    for key in ("k0", "k1", "k2", "k3"):
        await broker.append([(TOPIC, [record(key, "x" * 1000)] * 10)])
    newest = broker._log.connection.execute("SELECT id FROM batch ORDER BY id").fetchall()[-2:]
    await broker.run_retention(0)
    assert broker._log.connection.execute("SELECT id FROM batch ORDER BY id").fetchall() == newest


async def test_a_group_that_is_behind_keeps_what_it_has_not_seen(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=1, retention_bytes=1))
    await fill(broker, 10)
    behind = await broker.join(spec("behind"))
    ahead = await broker.join(spec("ahead"))
    own = await acquired(behind)
    await ahead.settle([settlement(await acquired(ahead), 100, done=100)])
    await behind.settle([settlement(own, 35, done=35)])
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(30, 100)]
    await behind.settle([settlement(own, 100, done=65)])
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(100, 100)]
    assert all(group.balances for group in (await broker.status()).groups.values())


async def test_dead_letters_and_parked_events_stay(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=1))
    await fill(broker, 1)
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    dead = letter(own, 0, record("a", "x"))
    parked = [(b"a", offset, record("a", "x")) for offset in range(1, 10)]
    lane = LaneState(lane=b"a", parked=9, head=1, blockers=(0,))
    await consumer.settle([settlement(own, 10, dead=[dead], parked=parked, lanes=[lane])])
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(10, 10)]
    (kept,) = await broker.dead_letters()
    assert (kept.value, kept.parked_followers) == (b"x", 9)
    assert len(await consumer.fetch_parked(TOPIC, 0, b"a", -1, 100)) == 9


async def test_a_setting_that_is_given_later_replaces_the_stored_one(broker: Any) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await fill(broker, 2)
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(0, 20)]
    await broker.ensure_topic(Topic(TOPIC, retention_s=1))
    await broker.ensure_topic(Topic(TOPIC))
    await broker.run_retention(99 * MINUTE_MS)
    assert await broker.ends(TOPIC) == [(20, 20)]


async def test_much_is_removed_in_several_transactions(
    broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=1))
    await fill(broker, 10)
    monkeypatch.setattr(retention, "_TRANSACTION_S_MAX", 0.0)
    transactions = []
    change = broker._writer.change
    monkeypatch.setattr(
        broker._writer, "change", lambda run: transactions.append(run) or change(run)
    )
    await broker.run_retention(99 * MINUTE_MS)
    assert len(transactions) > 5
    assert await broker.ends(TOPIC) == [(100, 100)]
