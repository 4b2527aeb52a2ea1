"""Group commit: what shares a transaction, what fails alone, and what fails with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context
from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.errors import (
    EventlaneError,
    Fenced,
    NotFound,
    PublishTimeout,
    StorageError,
    Unavailable,
)
from eventlane.settlement import Settlement
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    TOPIC,
    Step,
    acquired,
    letter,
    record,
    settlement,
    spec,
)
from eventlane.topic import Topic


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    yield broker
    await broker.aclose()


def value_offsets(broker: Any) -> list[bytes]:
    return [each.value for each in broker._log.fetch(TOPIC, 0, 0, 1000).records]


async def test_calls_in_flight_share_one_commit(broker: Any) -> None:
    positions = await asyncio.gather(
        *(broker.publish(TOPIC, record("a", str(n))) for n in range(100))
    )
    assert [position.offset for position in positions] == list(range(100))
    rows = broker._log.connection.execute("SELECT count FROM batch").fetchall()
    assert rows == [(100,)]


async def test_publishes_and_appends_keep_the_order_of_the_calls(broker: Any) -> None:
    calls = []
    for number in range(0, 60, 3):
        calls.append(broker.publish(TOPIC, record("a", str(number))))
        pair = [record("a", str(number + 1)), record("a", str(number + 2))]
        calls.append(asyncio.ensure_future(broker.append([(TOPIC, pair)])))
        await asyncio.wait([calls[-1]], timeout=0)
    await asyncio.gather(*calls)
    assert value_offsets(broker) == [str(number).encode() for number in range(60)]


async def test_a_refused_settlement_does_not_fail_what_shares_its_commit(broker: Any) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    stale = Settlement(
        topic=TOPIC, partition=0, epoch=own.epoch + 1, watermark=1, settled=(), dispatched=0
    )
    unknown = settlement(own, 0, published=[("nowhere", [record("a", "x")])])
    results = await asyncio.gather(
        broker.publish(TOPIC, record("a", "before")),
        consumer.settle([stale]),
        consumer.settle([unknown]),
        consumer.settle([settlement(own, 0, published=[(TOPIC, [record("a", "with")])])]),
        broker.publish(TOPIC, record("a", "after")),
        return_exceptions=True,
    )
    assert [type(result) for result in results[1:4]] == [Fenced, NotFound, type(None)]
    assert value_offsets(broker) == [b"before", b"after", b"with"]


async def test_an_error_of_ours_fails_its_change_alone(broker: Any) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    await broker.publish(TOPIC, record("a", "1"))
    surrogate = msgspec.structs.replace(letter(own, 0, record("a", "1")), error_message="\ud800")
    results = await asyncio.gather(
        consumer.settle(
            [settlement(own, 1, dead=[surrogate], published=[(TOPIC, [record("a", "no")])])]
        ),
        broker.publish(TOPIC, record("a", "2")),
        return_exceptions=True,
    )
    assert isinstance(results[0], UnicodeEncodeError)
    assert results[1].offset == 1
    assert (await broker.status()).groups[GROUP].open == 2


async def test_a_full_disk_fails_the_transaction_and_the_next_one_succeeds(broker: Any) -> None:
    connection = broker._file.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    big = "x" * 200_000
    results = await asyncio.gather(
        broker.publish(TOPIC, record("a", "small")),
        broker.publish(TOPIC, record("a", big)),
        broker.append([(TOPIC, [record("a", big)])]),
        return_exceptions=True,
    )
    assert all(isinstance(result, StorageError) for result in results), results
    assert "disk is full" in str(results[0])
    assert len({id(result) for result in results}) == 3
    assert (await broker.fetch(TOPIC, 0, 0, 10)).records == []
    assert (await broker.publish(TOPIC, record("a", "fits"))).offset == 0
    connection.execute("PRAGMA max_page_count = 1000000")
    assert (await broker.publish(TOPIC, record("a", big))).offset == 1


async def test_a_failure_within_the_transaction_leaves_nothing_half_written(broker: Any) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    connection = broker._file.connection
    connection.execute(
        "CREATE TRIGGER broken BEFORE UPDATE ON progress BEGIN SELECT raise(ABORT, 'broken'); END"
    )
    results = await asyncio.gather(
        broker.publish(TOPIC, record("a", "1")),
        consumer.settle([settlement(own, 0, published=[(TOPIC, [record("a", "no")])])]),
        broker.publish(TOPIC, record("a", "2")),
        return_exceptions=True,
    )
    assert isinstance(results[1], EventlaneError)
    assert value_offsets(broker) == [b"1", b"2"]
    connection.execute("DROP TRIGGER broken")
    await consumer.settle([settlement(own, 2, done=2)])


async def test_what_the_file_never_takes_ends_handling_instead_of_being_tried_for_ever() -> None:
    app = App("embedded::memory:", partitions=1)

    @app.subscribe(Step, group=GROUP)
    async def handle(_step: Step, _: Context[Any]) -> None: ...

    async with app:
        await app.publish(Step("a", 0))
        broker: Any = app._connected
        broker._file.connection.execute(
            "CREATE TRIGGER broken BEFORE UPDATE ON progress WHEN new.done > old.done "
            "BEGIN SELECT raise(ABORT, 'broken'); END"
        )
        with pytest.raises(
            EventlaneError, match=r"got broken.*This is a bug in Eventlane"
        ) as raised:
            await app.run_until_idle(PATIENCE_S)
    assert not isinstance(raised.value, StorageError)


async def test_a_publisher_waits_for_room_in_the_queue(tmp_path: Path) -> None:
    limits = Limits(publish_queue_max=3)
    broker = await connect(f"embedded:{tmp_path}", limits=limits)
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    positions = await asyncio.gather(
        *(broker.publish(TOPIC, record("a", str(n))) for n in range(50))
    )
    assert [position.offset for position in positions] == list(range(50))
    assert value_offsets(broker) == [str(number).encode() for number in range(50)]
    await broker.aclose()


async def test_a_publisher_that_finds_no_room_in_time_is_told_so(tmp_path: Path) -> None:
    limits = Limits(publish_queue_max=2, publish_timeout_s=0.05)
    broker: Any = await connect(f"embedded:{tmp_path}", limits=limits)
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    with broker._file.lock:  # The disk stands still.
        first = [broker.publish(TOPIC, record("a", str(number))) for number in range(2)]
        late = broker.publish(TOPIC, record("a", "late"))
        append = asyncio.ensure_future(broker.append([(TOPIC, [record("a", "late")])]))
        with pytest.raises(PublishTimeout, match="publish_queue_max=2"):
            await late
        with pytest.raises(PublishTimeout):
            await append
        assert not any(future.done() for future in first)
    assert [position.offset for position in await asyncio.gather(*first)] == [0, 1]
    assert value_offsets(broker) == [b"0", b"1"]
    await broker.aclose()


async def test_closing_writes_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}", limits=Limits(publish_queue_max=2))
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    waiting = [broker.publish(TOPIC, record("a", str(number))) for number in range(20)]
    closing = asyncio.ensure_future(broker.aclose())
    positions = await asyncio.gather(*waiting)
    await closing
    assert [position.offset for position in positions] == list(range(20))
    with pytest.raises(Unavailable, match="closed"):
        await broker.publish(TOPIC, record("a", "late"))


async def test_a_cancelled_publisher_harms_nobody(broker: Any) -> None:
    futures = [broker.publish(TOPIC, record("a", str(number))) for number in range(10)]
    futures[4].cancel()
    rest = await asyncio.gather(*futures[:4], *futures[5:])
    offsets = [position.offset for position in rest]
    assert offsets == sorted(set(offsets))


async def test_records_without_a_key_go_round_the_partitions(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic("round", partitions=4))
    for _ in range(8):
        await broker.publish("round", record(None, "x"))
    assert await broker.ends("round") == [(0, 2)] * 4
    await broker.aclose()


async def test_a_huge_append_is_cut_in_rows_that_a_reader_likes(broker: Any) -> None:
    await broker.append([(TOPIC, [record("a", str(number)) for number in range(9001)])])
    counts = [row[0] for row in broker._log.connection.execute("SELECT count FROM batch")]
    assert sum(counts) == 9001
    assert max(counts) <= 2000
    await broker.append([(TOPIC, [record("a", "x" * 1_000_000)] * 20)])
    sizes = [row[0] for row in broker._log.connection.execute("SELECT size_bytes FROM batch")]
    assert max(sizes) <= 8 * 1024 * 1024
    found = await broker.fetch(TOPIC, 0, 9001, 1000)
    assert 1 <= len(found.records) <= 20
    status = (await broker.status()).topics[TOPIC]
    assert (status.published, status.size_bytes) == (9021, sum(sizes))
