"""The embedded log against a list: what comes out is what went in, wherever one starts to read."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from eventlane.brokers import connect
from eventlane.brokers.embedded.log import LogTopic, rows
from eventlane.message import Record
from eventlane.topic import Topic

RECORDS = st.builds(
    Record,
    st.binary(min_size=16, max_size=16),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=200),
    st.integers(0, 2**53),
    st.binary(max_size=30),
)
PARTITIONS = 3


@given(st.lists(RECORDS, max_size=50), st.integers(1, 16))
def test_a_topic_splits_records_by_key_and_keeps_their_order(
    records: list[Record], partitions: int
) -> None:
    parts = LogTopic("t", partitions).split(records)
    assert len(parts) == partitions
    partition_of = {r.key: p for p, part in enumerate(parts) for r in part}
    for partition, part in enumerate(parts):
        assert part == [record for record in records if partition_of[record.key] == partition]


@given(st.lists(RECORDS, min_size=1, max_size=20))
def test_few_records_are_one_row(records: list[Record]) -> None:
    (row,) = rows(records)
    assert row.records_count == len(records)


class LogModel(RuleBasedStateMachine):
    """Publishes, appends and retention in any order; the model is a list for each partition."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model: list[list[Record | None]] = [[] for _ in range(PARTITIONS)]
        """None: retention has removed it."""
        self.broker: Any = None

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    @initialize()
    def open(self) -> None:
        self.broker = self.run(connect("embedded::memory:"))
        self.run(self.broker.ensure_topic(Topic("t", partitions=PARTITIONS, retention_bytes=600)))

    @rule(batch=st.lists(RECORDS, min_size=1, max_size=12))
    def publish(self, batch: list[Record]) -> None:
        async def all_at_once() -> Any:
            return await asyncio.gather(*(self.broker.publish("t", record) for record in batch))

        for record, position in zip(batch, self.run(all_at_once()), strict=True):
            assert position.offset == len(self.model[position.partition])
            self.model[position.partition].append(record)

    @rule(batch=st.lists(RECORDS, max_size=12))
    def append(self, batch: list[Record]) -> None:
        before = [len(part) for part in self.model]
        self.run(self.broker.append([("t", batch)]))
        found: list[Record] = []
        for partition, start in enumerate(before):
            new = self.run(self.broker.fetch("t", partition, start, 1000)).records
            self.model[partition] += new
            found += new
        assert sorted(found, key=repr) == sorted(batch, key=repr)
        for key in {record.key for record in batch} - {None}:
            mine = [record for record in batch if record.key == key]
            assert [record for record in found if record.key == key] == mine

    @rule()
    def retain(self) -> None:
        self.run(self.broker.run_retention(0))
        for partition, (first, end) in enumerate(self.run(self.broker.ends("t"))):
            assert end == len(self.model[partition])
            self.model[partition][:first] = [None] * first
        assert self.run(self.broker.status()).topics["t"].size_bytes <= 600

    @rule(partition=st.integers(0, PARTITIONS - 1), start=st.integers(0, 40), n=st.integers(1, 9))
    def fetch(self, partition: int, start: int, n: int) -> None:
        found = self.run(self.broker.fetch("t", partition, start, n))
        kept = [
            (offset, record)
            for offset, record in enumerate(self.model[partition])
            if record is not None and offset >= start
        ]
        got = list(zip(found.offsets, found.records, strict=True))
        assert got == kept[: len(got)]
        assert len(got) <= n
        assert bool(got) == bool(kept)

    @precondition(lambda self: self.broker is not None)
    @invariant()
    def published_counts_everything(self) -> None:
        status = self.run(self.broker.status()).topics["t"]
        assert status.published == sum(len(part) for part in self.model)

    def teardown(self) -> None:
        if self.broker is not None:
            self.run(self.broker.aclose())
        self.loop.close()


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
