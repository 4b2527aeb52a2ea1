"""Lanes and traces in the public API, and what is the embedded broker's own about them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zlib import crc32

import msgspec
import pytest

from eventlane import App, ConfigError, Context, Dependency, EventRefused, Limits, NotFound, Retry
from eventlane.brokers import connect
from eventlane.brokers.embedded import tracing
from eventlane.clock import yield_to_loop
from eventlane.message import CORRELATION_ID, event_id
from eventlane.settlement import Acquired, LaneState
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Step,
    acquired,
    attempts,
    changes_until,
    letter,
    record,
    settlement,
    spec,
)
from eventlane.topic import Topic
from eventlane.views import LaneFront, LaneView, why


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def app(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Any]:
    async with App(f"embedded:{tmp_path}", clock=clock, partitions=3) as app:
        yield app


@pytest.mark.parametrize("key", ["7", b"7", 7])
async def test_a_lane_is_asked_for_as_its_key_is_published(app: Any, key: Any) -> None:
    position = await app.publish(Step("x", 1), key=key)
    await app._connected.join(spec())
    for topic in (Step, TOPIC):
        (view,) = await app.lane(topic, key)
        assert view.partition == position.partition
        assert view.front.offset == position.offset


async def test_a_key_that_no_event_can_have_is_refused(app: Any) -> None:
    await app.publish(Step("x", 1))
    with pytest.raises(ConfigError, match=r"app\.trace\(event_id\)"):
        await app.lane(Step, None)
    with pytest.raises(EventRefused, match="expected a str, bytes, int or UUID, got float"):
        await app.lane(Step, 1.5)
    with pytest.raises(NotFound, match=f"Did you mean '{TOPIC}'"):
        await app.lane("stebs", "x")


async def test_a_topic_that_nobody_consumes_has_no_lanes(app: Any) -> None:
    await app.publish(Step("x", 1))
    assert await app.lane(Step, "x") == []


async def test_each_group_has_its_own_view_of_a_key(app: Any) -> None:
    await app.publish(Step("x", 1))
    await app._connected.join(spec("one"))
    await app._connected.join(spec("two", start="now"))
    one, two = await app.lane(Step, "x")
    assert (one.group, one.front is None) == ("one", False)
    assert (two.group, two.front is None) == ("two", True)


async def test_a_trace_wants_an_id_and_a_limit(app: Any) -> None:
    with pytest.raises(ConfigError, match="expected an event's id, a UUID"):
        await app.trace("0192")
    with pytest.raises(ConfigError, match="expected a whole number, 1 or more"):
        await app.trace(uuid4(), limit=0)


async def test_an_event_of_any_id_is_found_wherever_it_lies(app: Any, clock: ManualClock) -> None:
    ids: list[UUID] = []
    for number in range(60):
        clock.advance(60)
        now_ms = clock.now_ms()
        # Its own, one of a clock that is ahead, one of a clock that is behind, one without a time.
        shifts_ms = (0, 86_400_000, -86_400_000, None)
        shift_ms = shifts_ms[number % 4]
        one = uuid4() if shift_ms is None else UUID(bytes=event_id(now_ms + shift_ms))
        ids.append(one)
        await app.publish(Step("x", number), event_id=one)
    for number, one in enumerate(ids):
        trace = await app.trace(one)
        assert trace.event.event_id == one
        assert (trace.event.key, trace.event.offset) == (b"x", number)
    with pytest.raises(NotFound):
        await app.trace(UUID(bytes=event_id(clock.now_ms())))


async def test_a_chain_is_found_by_a_correlation_id_of_ones_own(app: Any) -> None:
    ids = [uuid4() for _ in range(3)]
    await app.publish(Step("x", 0), event_id=ids[0], headers={CORRELATION_ID: "order 7"})
    await app.publish(Step("x", 1), event_id=ids[1], headers={CORRELATION_ID: "order 70"})
    await app.publish(Step("y", 2), event_id=ids[2], headers={CORRELATION_ID: "order 7"})
    trace = await app.trace(ids[2], with_chain=True)
    assert [each.event_id for each in trace.chain] == [ids[0], ids[2]]
    assert (trace.caused, trace.is_complete) == ((), True)


async def test_what_retention_removed_is_found_where_a_group_kept_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker: Any = await connect(f"embedded:{tmp_path}", clock=clock)
    await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=60))
    records = [record("a", str(number)) for number in range(3)]
    await broker.append([(TOPIC, records)])
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    dead = letter(own, 0, records[0])
    await consumer.settle(
        [
            settlement(
                own,
                3,
                done=1,
                dead=[dead],
                parked=[(b"a", 1, records[1])],
                lanes=[LaneState(b"a", parked=1, head=1, due_ms=None, blockers=(0,))],
            )
        ]
    )
    clock.advance(1000)
    await broker.run_retention(clock.now_ms())
    assert await broker.ends(TOPIC) == [(3, 3)]
    for offset, state in ((0, "dead"), (1, "parked")):
        trace = await broker.trace(UUID(bytes=records[offset].id), with_chain=True, limit=10)
        assert (trace.is_on_log, trace.event.offset, trace.event.key) == (False, offset, b"a")
        assert [each.state for each in trace.groups] == [state]
        assert trace.chain == ()
    with pytest.raises(NotFound, match="Retention may have removed it"):
        await broker.trace(UUID(bytes=records[2].id), with_chain=False, limit=1)
    await broker.aclose()


def _is_of_first(found: list[Any]) -> bool:
    return any(isinstance(each, Acquired) and not each.watermark for each in found)


async def test_a_letter_of_before_a_reset_does_not_hide_what_becomes_of_its_event(
    app: Any,
) -> None:
    what = record("a", "1")
    await app._connected.ensure_topic(Topic(TOPIC, partitions=1))
    await app._connected.append([(TOPIC, [what])])
    consumer = await app._connected.join(spec())
    own = await acquired(consumer)
    dead = letter(own, 0, what)
    await consumer.settle([settlement(own, 1, dead=[dead])])
    await app.reset(GROUP, "now", reason="x")
    trace = await app.trace(UUID(bytes=what.id))
    assert [each.state for each in trace.groups] == ["dead"]
    await app.reset(GROUP, "first", reason="x")
    (group,) = (await app.trace(UUID(bytes=what.id))).groups
    assert (group.state, group.dead_letter) == ("waiting", dead.id)
    # Not the first reset's, which may come in one go with the second's.
    changes = await changes_until(consumer, _is_of_first)
    own = next(each for each in changes if isinstance(each, Acquired) and not each.watermark)
    await consumer.settle([settlement(own, 1, done=1)])
    (group,) = (await app.trace(UUID(bytes=what.id))).groups
    assert (group.state, group.dead_letter) == ("settled", dead.id)


async def test_attempts_that_are_over_hold_nothing(app: Any) -> None:
    await app._connected.ensure_topic(Topic(TOPIC, partitions=1))
    await app._connected.append([(TOPIC, [record("a", str(number)) for number in range(3)])])
    consumer = await app._connected.join(spec())
    own = await acquired(consumer)
    # Of a dead letter that is replayed: below the watermark.
    await consumer.settle([settlement(own, 1, done=1, attempts=[attempts(0, 2, lane=b"a")])])
    (view,) = await app.lane(TOPIC, "a")
    assert (view.state, view.front.offset) == ("free", 1)


async def test_a_long_log_is_read_while_the_event_loop_turns(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_TURN_S", 0.0)
    for number in range(50):
        await app.publish(Step("x", number))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await yield_to_loop()

    turning = asyncio.create_task(turn())
    with pytest.raises(NotFound):
        await app.trace(uuid4())
    turning.cancel()
    assert turns >= 50


async def test_a_log_that_grows_meanwhile_has_an_end(app: Any) -> None:
    one = uuid4()
    await app.publish(Step("x", 0), event_id=one)
    trace = asyncio.create_task(app.trace(one))
    number = 1
    while not trace.done():
        await app.publish(Step("x", number))
        number += 1
    assert (await trace).event.event_id == one


async def test_headers_that_merely_mention_an_id_are_no_cause(app: Any) -> None:
    one = uuid4()
    await app.publish(Step("x", 0), event_id=one)
    await app.publish(Step("x", 1), headers={"note": str(one)})
    assert (await app.trace(one)).caused == ()


async def test_a_key_that_waits_for_a_dependency_says_that_it_is_out(clock: ManualClock) -> None:
    app = App("embedded::memory:", clock=clock, partitions=1)
    mail = Dependency("mail", trips_on=ConnectionError, failures=1)

    @app.subscribe(Step, group=GROUP, dependencies=[mail])
    async def handle(step: Step, _: Context[Any]) -> None:
        raise ConnectionError("no mail server")

    async with app, app.handling():
        await app.publish_many([Step("a", 0), Step("b", 0)])
        await until_blocked(app)
        (view,) = await app.lane(TOPIC, "b")
    assert "waits; dependency mail is out, and only probes run: " in view.why
    assert view.blocked == (view.why.partition("; ")[2],)


async def test_a_key_of_a_full_partition_says_what_fills_it(clock: ManualClock) -> None:
    app = App("embedded::memory:", clock=clock, partitions=2, limits=Limits(parked_per_key_max=3))

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
    async def handle(step: Step, _: Context[Any]) -> None:
        raise ValueError("no")

    async with app, app.handling():
        full, other = "a", next(key for key in "bcdefgh" if partition_of(key) == partition_of("a"))
        elsewhere = next(key for key in "bcdefgh" if partition_of(key) != partition_of("a"))
        await app.publish_many(Step(full, number) for number in range(10))
        await until_blocked(app)
        await app.publish_many([Step(other, 0), Step(elsewhere, 0)])
        (view,) = await app.lane(TOPIC, other)
        (apart,) = await app.lane(TOPIC, elsewhere)
    assert (
        f"{TOPIC}[{view.partition}] takes nothing new: 3 events of key 'a' are parked" in view.why
    )
    assert apart.blocked == ()


def partition_of(key: str) -> int:
    return crc32(key.encode()) % 2


async def until_blocked(app: Any) -> None:
    while not (await app.status()).groups[GROUP].blocked:
        await yield_to_loop()


VIEW = LaneView(group=GROUP, topic=TOPIC, partition=3, ordering="key", state="free", members=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing of it is known to wait"),
        (
            {"front": LaneFront(9, uuid4(), "Step"), "behind": 1},
            "nothing holds it: its next event, at offset 9, runs or waits for its turn",
        ),
        (
            {"front": LaneFront(9, uuid4(), "Step"), "waiting": 1},
            "runs or waits for its turn; 1 event of it waits behind",
        ),
        (
            {"front": LaneFront(9, uuid4(), "Step"), "waiting": 2, "ordering": "none"},
            "; open of the key besides it: 2 events",
        ),
        (
            {"state": "blocked", "front": LaneFront(9, None, None), "parked": 1},
            "its dead letter at offset 9 is archived: the owner opens the lane, and 1 parked event",
        ),
        (
            {"state": "replaying", "front": LaneFront(9, uuid4(), None), "dead_letter": uuid4()},
            "is being replayed, 0 parked events behind",
        ),
        (
            {"state": "parked", "front": LaneFront(9, uuid4(), None), "parked": 3},
            "its first event, at offset 9, has not run yet and is parked; 3 parked events in all",
        ),
        ({"stopped_at": 4}, "steps[3] is stopped by the dead letter at offset 4"),
        ({"members": 0}, "; no process handles the group"),
        (
            {"front": LaneFront(9, uuid4(), "Step"), "blocked": ("smtp is out",)},
            "its next event, at offset 9, waits; smtp is out",
        ),
    ],
)
def test_why_a_key_waits_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    sentence = why(msgspec.structs.replace(VIEW, **changes))
    assert words in sentence
    assert "\n" not in sentence
