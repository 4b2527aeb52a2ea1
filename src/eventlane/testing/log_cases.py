"""Cases about the log: what was acknowledged is there, in order, byte for byte."""

import asyncio

from eventlane.errors import ConfigError, NotFound, Unavailable
from eventlane.message import Record, encode_headers
from eventlane.testing.stage import PATIENCE_S, TOPIC, Factory, fill, record, refused
from eventlane.topic import Topic


async def an_acknowledged_event_is_there_after_reopening(make: Factory) -> None:
    """An acknowledged publish is there, where it was said to be, after the storage is reopened."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        first = await broker.publish(TOPIC, record("a", "1"))
        await broker.append([(TOPIC, [record("a", "2"), record("a", "3")])])
        last = await broker.publish(TOPIC, record("a", "4"))
    async with make() as broker:
        batch = await broker.fetch(TOPIC, 0, 0, 100)
        assert [each.value for each in batch.records] == [b"1", b"2", b"3", b"4"]
        assert (first.offset, last.offset) == (0, 3)
        assert await broker.publish(TOPIC, record("a", "5")) == (TOPIC, 0, 4)


async def every_acknowledged_event_is_on_the_log_at_once(make: Factory) -> None:
    """An event is on the log when its publish returns, and not only when another one follows."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        for number in range(3):
            position = await broker.publish(TOPIC, record("a", str(number)))
            batch = await broker.fetch(TOPIC, 0, position.offset, 100)
            assert [each.value for each in batch.records] == [str(number).encode()]


async def records_of_one_key_keep_the_order_of_the_calls(make: Factory) -> None:
    """Records of one key keep the order of the calls, with many in flight and from many keys."""
    async with make() as broker:
        partitions = await broker.ensure_topic(Topic(TOPIC, partitions=3))
        keys = [f"k{number}" for number in range(7)]
        in_flight = [
            asyncio.ensure_future(broker.publish(TOPIC, record(key, f"{key} {number}")))
            for number in range(50)
            for key in keys
        ]
        await asyncio.gather(*in_flight)
        await broker.append(
            [(TOPIC, [record(key, f"{key} {number}") for number in range(50, 60) for key in keys])]
        )
        found: dict[str, list[int]] = {key: [] for key in keys}
        for partition in range(partitions):
            batch = await broker.fetch(TOPIC, partition, 0, 1000)
            for each in batch.records:
                assert each.value is not None
                key, number = each.value.decode().split()
                found[key].append(int(number))
        assert found == {key: list(range(60)) for key in keys}


async def offsets_are_dense_in_each_partition(make: Factory) -> None:
    """Offsets count from 0 without a gap, and `ends` has the first and the one after the last."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=2))
        assert list(await broker.ends(TOPIC)) == [(0, 0), (0, 0)]
        positions = [
            await broker.publish(TOPIC, record(f"k{number % 5}", str(number)))
            for number in range(20)
        ]
        counts = [0, 0]
        for position in positions:
            assert position.offset == counts[position.partition]
            counts[position.partition] += 1
        assert list(await broker.ends(TOPIC)) == [(0, counts[0]), (0, counts[1])]
        for partition, count in enumerate(counts):
            batch = await broker.fetch(TOPIC, partition, 0, 100)
            assert list(batch.offsets) == list(range(count))


async def a_key_always_lands_in_the_same_partition(make: Factory) -> None:
    """A key lands in the same partition: one by one, in bulk, and after the storage is reopened."""
    keys = [f"customer-{number}" for number in range(40)]
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=4))
        places = {key: (await broker.publish(TOPIC, record(key, "one"))).partition for key in keys}
        assert len(set(places.values())) == 4, "expected forty keys to spread over four partitions"
    async with make() as broker:
        await broker.append([(TOPIC, [record(key, "two") for key in keys])])
        for key in keys:
            assert (await broker.publish(TOPIC, record(key, "three"))).partition == places[key]
        for partition in range(4):
            batch = await broker.fetch(TOPIC, partition, 0, 1000)
            mine = [key.encode() for key in keys if places[key] == partition]
            assert sorted(each.key or b"" for each in batch.records) == sorted(mine * 3)


async def a_fetch_may_start_anywhere_and_skips_nothing(make: Factory) -> None:
    """A fetch starts at any offset, gives at most what was asked for, and skips nothing."""
    async with make() as broker:
        await fill(broker, [record("a", str(number)) for number in range(10)])
        await broker.append([(TOPIC, [record("a", str(number)) for number in range(10, 25)])])
        for start in range(25):
            for count_max in (1, 4, 100):
                batch = await broker.fetch(TOPIC, 0, start, count_max)
                stop = start + len(batch.records)
                assert 1 <= len(batch.records) <= count_max
                assert list(batch.offsets) == list(range(start, stop))
                expected = [str(number).encode() for number in range(start, stop)]
                assert [each.value for each in batch.records] == expected


async def a_fetch_at_the_end_of_the_log_is_empty(make: Factory) -> None:
    """A fetch at the end of the log is empty, and of an empty one too."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=2))
        assert not (await broker.fetch(TOPIC, 1, 0, 10)).records
        position = await broker.publish(TOPIC, record("a", "1"))
        batch = await broker.fetch(TOPIC, position.partition, 1, 10)
        assert (list(batch.offsets), list(batch.records)) == ([], [])


async def what_was_appended_is_read_byte_for_byte(make: Factory) -> None:
    """Ids, keys, values, times and headers come back byte for byte, absent ones as absent."""
    records = [
        record(b"", b""),
        record("a", None),
        record(None, b"\x00\xff no UTF-8 \xc3"),
        Record(bytes(range(16)), b"\xff", b"x" * 100_000, 1_700_000_000_123, b"\x80"),
        Record(bytes(16), b"a", b"1", 0, encode_headers({"h": b"\x00\xff", "é": "ü"})),
        Record(bytes(16), b"a", b"1", 0, b"\xff no headers"),
    ]
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        for each in records:
            await broker.publish(TOPIC, each)
        await broker.append([(TOPIC, records)])
        batch = await broker.fetch(TOPIC, 0, 0, 100)
        assert list(batch.records) == records * 2


async def an_append_to_several_topics_is_all_or_nothing(make: Factory) -> None:
    """An append to several topics of which one does not exist writes nothing at all."""
    async with make() as broker:
        await broker.ensure_topic(Topic("one", partitions=1))
        await broker.ensure_topic(Topic("two", partitions=1))
        await broker.append([("one", [record("a", "1")]), ("two", [record("a", "2")])])
        await refused(
            NotFound,
            lambda: broker.append([("one", [record("a", "3")]), ("three", [record("a", "4")])]),
            "three",
        )
        assert list(await broker.ends("one")) == [(0, 1)]
        assert list(await broker.ends("two")) == [(0, 1)]


async def publishing_to_an_unknown_topic_is_refused(make: Factory) -> None:
    """Publishing to a topic that does not exist is refused with its name."""
    async with make() as broker:
        await refused(NotFound, lambda: broker.publish("nowhere", record("a", "1")), "nowhere")


async def publishing_to_a_closed_broker_is_refused(make: Factory) -> None:
    """Publishing to a closed broker is refused; closing twice is not."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        await broker.publish(TOPIC, record("a", "1"))
        await broker.aclose()
        await refused(Unavailable, lambda: broker.publish(TOPIC, record("a", "2")))


async def a_topic_keeps_its_number_of_partitions(make: Factory) -> None:
    """A topic keeps its number of partitions; asking for another one is refused."""
    async with make() as broker:
        assert await broker.ensure_topic(Topic(TOPIC, partitions=3)) == 3
        assert await broker.ensure_topic(Topic(TOPIC)) == 3
        await refused(
            ConfigError, lambda: broker.ensure_topic(Topic(TOPIC, partitions=4)), "3", "4"
        )


async def publishing_is_seen_by_who_waits_for_it(make: Factory) -> None:
    """Who waits for a topic to grow is told, by the same opening and by another one."""
    async with make() as broker, make() as other:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        for publisher in (broker, other):
            waiting = asyncio.ensure_future(broker.wait_for_append(TOPIC))
            await asyncio.wait([waiting], timeout=0)
            await publisher.publish(TOPIC, record("a", "1"))
            await asyncio.wait_for(waiting, PATIENCE_S)
