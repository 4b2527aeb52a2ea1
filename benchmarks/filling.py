"""Files full of what failed, written as an owner does: by settlements of thousands of events.

The events are published first. Then a consumer joins the group, fetches each partition from its
start, and says of each event what became of it, as a dispatcher would after a long and bad day.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import msgspec

from benchmarks.orders import Order
from eventlane import App, Context, DeadLetter, Retry
from eventlane.brokers import connect
from eventlane.failure import Attempt, Attempts
from eventlane.message import Record, derived_id
from eventlane.settlement import Acquired, Batch, GroupSpec, LaneState, Settlement

__all__ = [
    "ERRORS",
    "GROUP",
    "HANDLERS",
    "TOPIC",
    "TYPES",
    "VERSIONS",
    "fill_dead",
    "fill_done",
    "fill_parked",
    "fingerprint",
    "key",
]

GROUP = "failed"
TOPIC = "orders"
ERRORS = [f"Error{number}" for number in range(8)]
HANDLERS = [f"handler-{number}" for number in range(5)]
TYPES = ["Order", "OrderChanged", "OrderPaid", "OrderSent"]
VERSIONS = [f"1.{number}" for number in range(10)]
FINGERPRINTS = 40
STEP_EVENTS = 4_000

Outcomes = Callable[[Acquired, Batch], Settlement]


def key(number: int) -> str:
    return f"k-{number}"


def fingerprint(number: int) -> str:
    return f"{number % FINGERPRINTS:016x}"


def keyed(count: int) -> Iterator[Order]:
    """An order for each of so many keys."""
    for number in range(count):
        yield Order(f"o-{number}", key(number), f"sku-{number % 97}", 1, 0.5, number)


async def typical_letter() -> DeadLetter:
    """What is kept of an order that no handler could handle."""
    app = App("embedded::memory:", version="1.0")

    @app.subscribe(Order, group=GROUP, retry=Retry(attempts=3, delay_s=0))
    async def handle(order: Order, _ctx: Context) -> None:
        raise LookupError(f"no stock of {order.sku}")

    async with app:
        await app.publish_many(keyed(1))
        await app.run_until_idle()
        (letter,) = await app.dead_letters()
    return letter


def lane_of(record: Record) -> bytes:
    assert record.key is not None
    return record.key


def settlement(own: Acquired, batch: Batch) -> Settlement:
    """A settlement behind all of a batch, that says nothing of it yet."""
    return Settlement(
        topic=own.topic,
        partition=own.partition,
        epoch=own.epoch,
        watermark=batch.offsets[-1] + 1,
        settled=(),
        dispatched=batch.offsets[-1],
    )


async def fill(
    directory: Path, lanes: int, outcomes: Sequence[Outcomes], *, partitions: int
) -> None:
    """As many events in each of so many lanes as there are outcomes, the n-th with the n-th."""
    url = f"embedded:{directory}"
    async with App(url, durability="os", partitions=partitions) as app:
        for _ in outcomes:
            await app.publish_many(keyed(lanes))
    broker = await connect(url, durability="os")
    spec = GroupSpec(
        name=GROUP,
        topics=(TOPIC,),
        start="first",
        ordering="key",
        on_dead="park",
        app="app",
        host="benchmark",
        types=((TOPIC, "Order"),),
    )
    try:
        consumer = await broker.join(spec)
        owned = [each for each in await consumer.changes() if isinstance(each, Acquired)]
        ends = await broker.ends(TOPIC)
        for own in owned:
            # Keys keep their partition: each round of them is as long there.
            length = ends[own.partition][1] // len(outcomes)
            offset = 0
            for outcome in outcomes:
                stop = offset + length
                while offset < stop:
                    count = min(STEP_EVENTS, stop - offset)
                    batch = await consumer.fetch(TOPIC, own.partition, offset, count)
                    await consumer.settle([outcome(own, batch)])
                    offset = batch.offsets[-1] + 1
        await consumer.leave()
    finally:
        await broker.aclose()


async def fill_done(directory: Path, lanes: int, rounds: int, *, partitions: int = 8) -> None:
    """All of it was handled."""

    def done(own: Acquired, batch: Batch) -> Settlement:
        return msgspec.structs.replace(settlement(own, batch), done=len(batch.records))

    await fill(directory, lanes, [done] * rounds, partitions=partitions)


async def fill_dead(
    directory: Path, lanes: int, *, has_followers: bool, partitions: int = 8
) -> None:
    """A dead letter in each lane, and, where it has followers, an event parked behind it."""
    typical = await typical_letter()
    lengths: dict[int, int] = {}

    def letter(own: Acquired, offset: int, record: Record) -> DeadLetter:
        handler = HANDLERS[offset % len(HANDLERS)]
        return msgspec.structs.replace(
            typical,
            id=derived_id(own.topic, own.partition, offset, GROUP, handler),
            partition=own.partition,
            offset=offset,
            group=GROUP,
            handler=handler,
            lane=lane_of(record),
            key=record.key,
            value=record.value,
            header_block=record.headers,
            event_id=UUID(bytes=record.id),
            event_type=TYPES[offset % len(TYPES)],
            error_class=ERRORS[offset % len(ERRORS)],
            fingerprint=fingerprint(offset),
            app_version=VERSIONS[offset // 1000 % len(VERSIONS)],
        )

    def dead(own: Acquired, batch: Batch) -> Settlement:
        events = list(zip(batch.offsets, batch.records, strict=True))
        lengths[own.partition] = batch.offsets[-1] + 1
        return msgspec.structs.replace(
            settlement(own, batch),
            dead=[letter(own, offset, record) for offset, record in events],
            lanes=[
                LaneState(lane=lane_of(record), due_ms=None, blockers=(offset,))
                for offset, record in events
            ],
        )

    def parked(own: Acquired, batch: Batch) -> Settlement:
        events = list(zip(batch.offsets, batch.records, strict=True))
        length = lengths[own.partition]
        return msgspec.structs.replace(
            settlement(own, batch),
            parked=[(lane_of(record), offset, record) for offset, record in events],
            lanes=[
                LaneState(
                    lane=lane_of(record),
                    parked=1,
                    head=offset,
                    due_ms=None,
                    blockers=(offset - length,),
                )
                for offset, record in events
            ],
        )

    outcomes = [dead, parked] if has_followers else [dead]
    await fill(directory, lanes, outcomes, partitions=partitions)


async def fill_parked(directory: Path, lanes: int, due_ms: Callable[[int], int]) -> None:
    """One partition, and in each lane an event that has failed once and is parked until it is due.

    `due_ms` says when, for the number of the key.
    """

    def attempts(offset: int, record: Record) -> Attempts:
        failed = Attempt(1, record.time_ms, 0.0, 0.0, 0.001, "LookupError", "benchmark")
        return Attempts(
            offset=offset,
            count=1,
            due_ms=due_ms(offset),
            first_failed_ms=record.time_ms,
            timeouts=0,
            history=(failed,),
            lane=lane_of(record),
        )

    def parked(own: Acquired, batch: Batch) -> Settlement:
        events = list(zip(batch.offsets, batch.records, strict=True))
        return msgspec.structs.replace(
            settlement(own, batch),
            attempts=[attempts(*each) for each in events],
            parked=[(lane_of(record), offset, record) for offset, record in events],
            lanes=[
                LaneState(lane=lane_of(record), parked=1, head=offset, due_ms=due_ms(offset))
                for offset, record in events
            ],
        )

    await fill(directory, lanes, [parked], partitions=1)
