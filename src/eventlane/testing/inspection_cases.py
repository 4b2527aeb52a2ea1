"""Cases about looking: why a key waits, where an event went, what holds up a group."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from eventlane.broker import Broker
from eventlane.errors import NotFound
from eventlane.handler import Context
from eventlane.message import (
    CAUSATION_ID,
    CORRELATION_ID,
    EVENT_TYPE,
    Position,
    Record,
    derived_id,
    encode_headers,
)
from eventlane.retry import Retry
from eventlane.settlement import LaneState
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Boom,
    Factory,
    Step,
    attempts,
    joined,
    letter,
    record,
    refused,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic
from eventlane.views import LaneView

_DUE_MS = 1_700_000_000_000
_DUE = datetime.fromtimestamp(_DUE_MS / 1000, UTC)


async def _log(broker: Broker, keys: str) -> list[Record]:
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    records = [record(key, str(number)) for number, key in enumerate(keys)]
    await broker.append([(TOPIC, records)])
    return records


async def _lane(broker: Broker, key: str) -> LaneView:
    (view,) = await broker.lane(TOPIC, key.encode())
    assert (view.group, view.topic, view.partition) == (GROUP, TOPIC, 0)
    return view


async def a_key_behind_a_dead_letter_says_which_one_closes_it(make: Factory) -> None:
    """A key that a dead letter closes says which, of what it died, and how many are behind it."""
    async with make() as broker:
        records = await _log(broker, "abaa")
        consumer, own = await joined(broker)
        dead = letter(own, 0, records[0])
        lane = LaneState(b"a", parked=2, head=2, due_ms=None, blockers=(0,), gaps=(0,))
        parked = [(b"a", offset, records[offset]) for offset in (2, 3)]
        await consumer.settle(
            [settlement(own, 4, dead=[dead], parked=parked, lanes=[lane], done=1)]
        )
        view = await _lane(broker, "a")
        assert (view.state, view.dead_letter, view.parked, view.gaps) == (
            "blocked",
            dead.id,
            2,
            (0,),
        )
        assert view.front is not None
        assert (view.front.offset, view.front.event_id) == (0, UUID(bytes=records[0].id))
        assert (view.front.event_type, view.error, view.attempts) == ("Step", "Boom: no", 3)
        assert str(dead.id) in view.why
        assert "2 parked events" in view.why
        assert "replay or archive" in view.why
        assert (await _lane(broker, "b")).state == "free"


async def a_parked_key_says_how_much_of_it_is_parked(make: Factory) -> None:
    """A parked key says how often its first event has failed, and when it is due."""
    async with make() as broker:
        records = await _log(broker, "aab")
        consumer, own = await joined(broker)
        await consumer.settle(
            [
                settlement(
                    own,
                    2,
                    parked=[(b"a", 0, records[0]), (b"a", 1, records[1])],
                    lanes=[LaneState(b"a", parked=2, head=0, due_ms=_DUE_MS)],
                    attempts=[attempts(0, 4, due_ms=_DUE_MS, lane=b"a")],
                )
            ]
        )
        view = await _lane(broker, "a")
        assert (view.state, view.attempts, view.due_at, view.parked) == ("parked", 4, _DUE, 2)
        assert view.front is not None
        assert view.front.offset == 0
        assert "failed 4 times" in view.why
        assert _DUE.isoformat() in view.why


async def a_held_key_says_when_its_next_attempt_is_due(make: Factory) -> None:
    """A key whose first event waits for its retry says so, and how many wait behind it."""
    async with make() as broker, make() as other:
        await _log(broker, "babaa")
        consumer, own = await joined(broker)
        failed = attempts(1, 2, due_ms=_DUE_MS, lane=b"a")
        await consumer.settle([settlement(own, 1, done=1, attempts=[failed])])
        view = await _lane(other, "a")
        assert (view.state, view.attempts, view.due_at, view.parked) == ("held", 2, _DUE, 0)
        assert view.waiting == 2
        assert "2 events of it wait behind" in view.why
        assert view.front is not None
        assert (view.front.offset, view.front.event_type) == (1, "Step")
        assert "failed 2 times" in view.why
        assert _DUE.isoformat() in view.why


async def a_free_key_says_which_of_its_events_is_next(make: Factory) -> None:
    """A key that nothing holds says where its next event is, or that there is none."""
    async with make() as broker:
        await _log(broker, "bbabb")
        consumer, own = await joined(broker)
        view = await _lane(broker, "a")
        assert view.front is not None
        assert (view.state, view.front.offset, view.behind) == ("free", 2, 2)
        assert "nothing holds it" in view.why
        await consumer.settle([settlement(own, 1, settled=((2, 3),), done=2)])
        view = await _lane(broker, "a")
        assert (view.state, view.front) == ("free", None)
        assert "nothing of it is known to wait" in view.why
        await refused(NotFound, lambda: broker.lane("step", b"a"), f"Did you mean '{TOPIC}'")


async def why_a_key_waits_says_that_the_group_is_paused_or_has_no_member(make: Factory) -> None:
    """What holds up the whole group is said of each of its keys."""
    async with make() as broker:
        await _log(broker, "a")
        consumer, _ = await joined(broker)
        view = await _lane(broker, "a")
        assert (view.paused, view.members) == (None, 1)
        await broker.pause(GROUP, actor="me", reason="stock count")
        await consumer.leave()
        view = await _lane(broker, "a")
        assert (view.paused, view.members) == ("stock count", 0)
        assert "the group is paused (stock count)" in view.why
        assert "no process handles the group" in view.why


async def a_partition_that_is_one_lane_says_what_it_waits_for(make: Factory) -> None:
    """Where a partition is one lane, each of its keys waits for the same event."""
    async with make() as broker:
        records = await _log(broker, "aba")
        consumer, own = await joined(broker, ordering="partition", on_dead="stop")
        failed = attempts(0, 2, due_ms=_DUE_MS, lane=-1)
        await consumer.settle([settlement(own, 0, attempts=[failed])])
        for key in "ab":
            view = await _lane(broker, key)
            assert (view.ordering, view.state, view.due_at) == ("partition", "held", _DUE)
        dead = letter(own, 0, records[0], on_dead="stop")
        dead = msgspec.structs.replace(dead, lane=-1)
        lane = LaneState(-1, blockers=(0,), due_ms=None, stops=True)
        await consumer.settle([settlement(own, 1, dead=[dead], cleared=[0], lanes=[lane])])
        view = await _lane(broker, "b")
        assert view.front is not None
        assert (view.state, view.front.offset, view.dead_letter) == ("blocked", 0, dead.id)


async def events_of_a_key_that_are_lanes_of_their_own_are_found(make: Factory) -> None:
    """Where each event is a lane, a key says what holds up the first of its events."""
    async with make() as broker:
        records = await _log(broker, "abaab")
        consumer, own = await joined(broker, ordering="none", on_dead="continue")
        failed = attempts(2, 2, due_ms=_DUE_MS, lane=2)
        await consumer.settle([settlement(own, 0, settled=((1, 2),), done=1, attempts=[failed])])
        view = await _lane(broker, "a")
        assert view.front is not None
        assert (view.ordering, view.state, view.front.offset) == ("none", "held", 2)
        view = await _lane(broker, "b")
        assert view.front is not None
        assert (view.state, view.front.offset) == ("free", 4)
        await consumer.settle(
            [
                settlement(
                    own,
                    1,
                    settled=((1, 2),),
                    parked=[(0, 0, records[0])],
                    lanes=[LaneState(0, parked=1, head=0, due_ms=_DUE_MS)],
                )
            ]
        )
        view = await _lane(broker, "a")
        assert view.front is not None
        assert (view.state, view.front.offset, view.parked) == ("parked", 0, 1)
        assert view.due_at == _DUE
        assert (await _lane(broker, "b")).state == "free"


async def a_stopped_partition_is_named_in_the_status(make: Factory) -> None:
    """The status says which partition a dead letter stops, and what its members say is full."""
    async with make() as broker, make() as other:
        records = await _log(broker, "ab")
        consumer, own = await joined(broker)
        dead = letter(own, 0, records[0], on_dead="stop")
        lane = LaneState(b"a", blockers=(0,), due_ms=None, stops=True)
        await consumer.settle([settlement(own, 1, dead=[dead], lanes=[lane])])
        (sentence,) = (await other.status()).groups[GROUP].blocked
        assert f"{TOPIC}[0]" in sentence
        assert "offset 0" in sentence
        assert "replay or archive" in sentence
        view = await _lane(broker, "b")
        assert (view.state, view.stopped_at) == ("free", 0)
        assert f"{TOPIC}[0] is stopped" in view.why
        full = [f"{TOPIC}[{number}] is full: " + "x" * 200 for number in range(50)]
        consumer.beat(0, 0, full)

        async def both_are_said() -> bool:
            blocked = (await other.status()).groups[GROUP].blocked
            return blocked[:2] == (sentence, full[0]) and "more" in blocked[-1]

        await until(both_are_said, "what members report in the status")
        consumer.beat(0, 0)

        async def is_over() -> bool:
            return (await other.status()).groups[GROUP].blocked == (sentence,)

        await until(is_over, "what members no longer report to go")


async def a_group_without_a_member_says_for_how_long(make: Factory) -> None:
    """A group that nobody handles says since when, and after a day that it is absent."""
    clock = ManualClock()
    async with make(clock=clock) as broker:
        await _log(broker, "a")
        consumer, _ = await joined(broker)
        clock.advance(100)
        account = (await broker.status()).groups[GROUP]
        assert (account.absent_s, account.is_absent) == (0, False)
        await consumer.leave()
        clock.advance(60)
        account = (await broker.status()).groups[GROUP]
        assert (account.absent_s, account.is_absent) == (60, False)
        clock.advance(86_400)
        account = (await broker.status()).groups[GROUP]
        assert (account.absent_s, account.is_absent) == (86_460, True)


async def what_a_group_keeps_of_the_log_is_from_its_watermark_on(make: Factory) -> None:
    """A group says how many bytes of the log it keeps; one that is at the end keeps none."""
    async with make() as broker:
        for _ in range(3):
            await _log(broker, "aaaa")
        consumer, own = await joined(broker)
        status = await broker.status()
        whole = status.topics[TOPIC].size_bytes
        assert status.groups[GROUP].retained_bytes == whole
        await consumer.settle([settlement(own, 4, done=4)])
        two_thirds = (await broker.status()).groups[GROUP].retained_bytes
        assert two_thirds * 3 == whole * 2
        await consumer.settle([settlement(own, 12, done=8)])
        assert (await broker.status()).groups[GROUP].retained_bytes == 0


async def a_trace_says_what_became_of_an_event_in_each_group(make: Factory) -> None:
    """A trace says of each group that consumes the topic what became of the event there."""
    async with make() as broker, make() as other:
        records = await _log(broker, "aabcd")
        consumer, own = await joined(broker)
        dead = letter(own, 0, records[0])
        lane = LaneState(b"a", parked=1, head=1, due_ms=None, blockers=(0,))
        failed = attempts(2, 2, due_ms=_DUE_MS, lane=b"b")
        await consumer.settle(
            [
                settlement(
                    own,
                    2,
                    settled=((3, 4),),
                    done=1,
                    dead=[dead],
                    parked=[(b"a", 1, records[1])],
                    lanes=[lane],
                    attempts=[failed],
                )
            ]
        )
        await broker.join(spec("later", start="now"))
        states: list[str] = []
        for offset, each in enumerate(records):
            trace = await other.trace(UUID(bytes=each.id), with_chain=False, limit=10)
            event = trace.event
            assert (event.topic, event.partition, event.offset) == (TOPIC, 0, offset)
            assert (event.key, event.event_type) == (each.key, "Step")
            assert (trace.is_on_log, trace.copies, trace.caused) == (True, (), ())
            ours, later = trace.groups
            assert (ours.group, later.group, later.state) == (GROUP, "later", "passed_over")
            states.append(ours.state)
            if offset == 0:
                assert (ours.dead_letter, ours.error) == (dead.id, "Boom: no")
            if offset == 2:
                assert (ours.attempts, ours.due_at) == (2, _DUE)
        assert states == ["dead", "parked", "held", "settled", "waiting"]
        await broker.archive([dead.id], actor="me", reason="x")
        trace = await other.trace(UUID(bytes=records[0].id), with_chain=False, limit=10)
        assert trace.groups[0].state == "archived"


def _caused(by: UUID, root: UUID) -> Record:
    """What a handler publishes: its id says nothing of when."""
    new_id = derived_id("caused", by, root, uuid4())
    headers = {EVENT_TYPE: "Step", CAUSATION_ID: str(by), CORRELATION_ID: str(root)}
    return Record(new_id.bytes, b"k", b"{}", 0, encode_headers(headers))


async def a_trace_finds_what_an_event_caused_and_its_whole_chain(make: Factory) -> None:
    """A trace finds what an event caused, on all topics, and all that has its correlation id."""
    async with make() as broker:
        await broker.ensure_topic(Topic("other", partitions=2))
        (root,) = await _log(broker, "a")
        first = UUID(bytes=root.id)
        children = [_caused(first, first) for _ in range(2)]
        grandchild = _caused(UUID(bytes=children[0].id), first)
        await broker.append([(TOPIC, [record("x", "1"), children[0]])])
        await broker.append([("other", [children[1], record("x", "2")])])
        await broker.append([("other", [grandchild, root])])
        trace = await broker.trace(first, with_chain=False, limit=10)
        assert [each.event_id.bytes for each in trace.caused] == [each.id for each in children]
        assert [each.topic for each in trace.caused] == [TOPIC, "other"]
        assert (trace.chain, trace.is_complete) == ((), True)
        assert [type(each) for each in trace.copies] == [Position]
        middle = await broker.trace(UUID(bytes=children[0].id), with_chain=True, limit=10)
        assert middle.event.causation_id == middle.event.correlation_id == str(first)
        assert [each.event_id.bytes for each in middle.caused] == [grandchild.id]
        assert [each.event_id.bytes for each in middle.chain] == [
            root.id,
            *(each.id for each in children),
            grandchild.id,
            root.id,
        ]
        short = await broker.trace(first, with_chain=True, limit=2)
        assert (len(short.chain), short.is_complete) == (2, False)


async def what_is_nowhere_has_no_trace(make: Factory) -> None:
    """An event that was never published is not found, and it is said where was looked."""
    async with make() as broker:
        await _log(broker, "a")
        unknown = uuid4()
        await refused(
            NotFound, lambda: broker.trace(unknown, with_chain=True, limit=1), str(unknown)
        )


async def why_a_key_waits_is_true_from_its_first_failure_to_its_last(make: Factory) -> None:
    """A key that fails is held, parked, then blocked, and free again once that is archived."""
    clock = ManualClock()
    retry = Retry(attempts=3, delay_s=10, factor=10, delay_s_max=1000, jitter=0, immediate=0)

    async with (app := make.app(clock=clock, partitions=1)):

        @app.subscribe(Step, group=GROUP, retry=retry)
        async def handle(step: Step, _: Context[Any]) -> None:
            if step.number == 1:
                raise Boom(step.key)

        async def shows(state: str) -> LaneView:
            async def is_so() -> bool:
                return (await app.lane(Step, "a"))[0].state == state

            await until(is_so, f"the key to be {state}")
            return (await app.lane(Step, "a"))[0]

        async with app.handling():
            await app.publish_many([Step("a", number) for number in range(3)])
            view = await shows("held")
            assert view.front is not None
            assert (view.front.offset, view.attempts, view.parked) == (1, 1, 0)
            assert view.due_at == datetime.fromtimestamp(clock.now_ms() / 1000 + 10, UTC)
            clock.advance(10)
            view = await shows("parked")
            assert view.front is not None
            assert (view.front.offset, view.attempts) == (1, 2)
            assert view.due_at == datetime.fromtimestamp(clock.now_ms() / 1000 + 100, UTC)
            clock.advance(100)
            view = await shows("blocked")
            assert (view.attempts, view.parked, view.error) == (3, 1, "Boom: a")
            (letter,) = await app.dead_letters()
            assert view.dead_letter == letter.id
            (group,) = (await app.trace(letter.event_id)).groups
            assert (group.state, group.dead_letter) == ("dead", letter.id)
            await app.archive(letter, reason="not needed")
            view = await shows("free")
            assert (view.front, view.parked, view.gaps) == (None, 0, (1,))
