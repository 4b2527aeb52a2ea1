"""Cases about groups on the broker: where they start, what they own, and what settling keeps."""

from eventlane.config import Limits
from eventlane.errors import ConfigError, Conflict, Fenced, NotFound, StorageFull
from eventlane.message import Record, encode_headers
from eventlane.settlement import Acquired, LaneState, Lost, Parked, Paused
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Factory,
    acquired,
    attempts,
    changes_until,
    fill,
    joined,
    letter,
    offsets_of,
    record,
    refused,
    settlement,
    spec,
)
from eventlane.topic import Topic


async def a_group_that_starts_first_gets_all_that_is_kept(make: Factory) -> None:
    """A new group with start="first" begins at the first message that is kept."""
    async with make() as broker:
        await fill(broker, [record("a", str(number)) for number in range(3)])
        own = await acquired(await broker.join(spec(start="first")))
        assert (own.topic, own.partition, own.watermark) == (TOPIC, 0, 0)
        assert (own.settled, own.attempts, own.lanes, own.commands) == ((), (), (), ())
        assert (await broker.status()).groups[GROUP].waiting == 3


async def a_group_that_starts_now_gets_only_what_comes_later(make: Factory) -> None:
    """A new group with start="now" begins behind the last message, in every partition."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=2))
        for number in range(10):
            await broker.publish(TOPIC, record(f"k{number}", "old"))
        ends = [end for _, end in await broker.ends(TOPIC)]
        consumer = await broker.join(spec(start="now"))
        changes = await changes_until(consumer, lambda found: len(found) >= 2)
        own = [each for each in changes if isinstance(each, Acquired)]
        assert {each.partition: each.watermark for each in own} == dict(enumerate(ends))
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.waiting) == (0, 0)


async def where_a_group_starts_is_decided_once(make: Factory) -> None:
    """Where a group starts is decided when it is new, and never again: not by a restart."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        await broker.publish(TOPIC, record("a", "before"))
        await (await broker.join(spec(start="now"))).leave()
        await broker.publish(TOPIC, record("a", "while it was away"))
    async with make() as broker:
        own = await acquired(await broker.join(spec(start="now")))
        assert own.watermark == 1
        assert (await broker.status()).groups[GROUP].waiting == 1


async def a_settlement_survives_reopening(make: Factory) -> None:
    """Watermark, settled runs, attempts, parked events and letters are there after reopening."""
    records = [record(f"k{number % 3}", str(number)) for number in range(9)]
    async with make() as broker:
        await fill(broker, records)
        consumer, own = await joined(broker)
        dead = letter(own, 2, records[2])
        lane = LaneState(lane=b"k2", parked=1, head=5, due_ms=None, blockers=(2,), gaps=(1,))
        await consumer.settle(
            [
                settlement(
                    own,
                    3,
                    settled=((4, 6), (8, 9)),
                    dispatched=8,
                    done=3,
                    skipped=1,
                    attempts=[attempts(3, 2, due_ms=77)],
                    parked=[(b"k2", 5, records[5])],
                    lanes=[lane],
                    dead=[dead],
                )
            ]
        )
    async with make() as broker:
        consumer, again = await joined(broker)
        assert again.epoch > own.epoch
        assert again.watermark == 3
        assert tuple(map(tuple, again.settled)) == ((4, 6), (8, 9))
        assert again.attempts == (attempts(3, 2, due_ms=77),)
        assert again.lanes == (lane,)
        assert list(await consumer.fetch_lanes(TOPIC, 0, [b"k1", b"k2"])) == [lane]
        rows = await consumer.fetch_parked(TOPIC, 0, b"k2", -1, 10)
        assert list(rows) == [(5, records[5], None)]
        (kept,) = await broker.dead_letters(group=GROUP)
        assert kept.parked_followers == 1
        assert (kept.id, kept.state, kept.version) == (dead.id, "open", 1)
        assert (kept.record, kept.error_stack, kept.history) == (
            records[2],
            dead.error_stack,
            dead.history,
        )
        account = (await broker.status()).groups[GROUP]
        assert (account.done, account.skipped, account.parked, account.dead) == (3, 1, 1, 1)
        assert account.open == 3
        assert account.balances


async def attempts_are_written_over_and_cleared(make: Factory) -> None:
    """A failed attempt replaces what was stored for its event, and is gone when it is over."""
    async with make() as broker:
        await fill(broker, [record("a", "1"), record("b", "2")])
        consumer, own = await joined(broker)
        for count in (1, 2):
            failed = [attempts(0, count), attempts(1, count)]
            await consumer.settle([settlement(own, 0, attempts=failed)])
        await consumer.settle([settlement(own, 0, settled=((1, 2),), done=1, cleared=[1])])
        await consumer.leave()
        again = await acquired(await broker.join(spec()))
        assert again.attempts == (attempts(0, 2),)


async def parked_events_are_read_back_in_order_byte_for_byte(make: Factory) -> None:
    """Parked events come back in the order of their offsets, byte for byte, each lane alone."""
    records = [
        Record(bytes([number]) * 16, key, b"\x00\xff" * number, number, encode_headers({"n": "1"}))
        for number in range(1, 12)
        for key in (b"a", b"b\x00\xff")
    ]
    async with make() as broker:
        await fill(broker, records)
        consumer, own = await joined(broker)
        rows = [(each.key or b"", offset, each) for offset, each in enumerate(records)]
        lanes = [
            LaneState(lane=key, parked=11, head=at) for at, key in enumerate((b"a", b"b\x00\xff"))
        ]
        await consumer.settle([settlement(own, 22, parked=rows, lanes=lanes, dispatched=21)])
        for key in (b"a", b"b\x00\xff"):
            mine = [(offset, each, None) for _, offset, each in rows if each.key == key]
            found: list[Parked] = []
            while more := await consumer.fetch_parked(
                TOPIC, 0, key, found[-1][0] if found else -1, 4
            ):
                assert len(more) <= 4
                found += more
            assert found == mine
        rest = LaneState(lane=b"a", parked=9, head=4)
        await consumer.settle([settlement(own, 22, done=2, unparked=2, lanes=[rest])])
        left = await consumer.fetch_parked(TOPIC, 0, b"a", rest.head - 1, 100)
        assert [each.offset for each in left] == list(range(4, 22, 2))
        await consumer.settle(
            [settlement(own, 22, done=9, unparked=9, lanes=[LaneState(lane=b"a")])]
        )
        assert not await consumer.fetch_parked(TOPIC, 0, b"a", -1, 100)
        assert not await consumer.fetch_lanes(TOPIC, 0, [b"a"])
        assert (await broker.status()).groups[GROUP].parked == 11


async def parked_lanes_are_read_in_the_order_in_which_they_are_due(make: Factory) -> None:
    """A lane comes back with its due time and its head's attempts; the one due first in front."""
    due_ms = {b"a": 300, b"b": 100, b"c": None, b"d": 200}
    records = [record(key, "1") for key in due_ms]
    async with make() as broker:
        await fill(broker, records)
        consumer, own = await joined(broker)
        failed = [attempts(0, 2, due_ms=300, lane=b"a")]
        lanes = [
            LaneState(
                lane=key, parked=1, head=at, due_ms=due, blockers=() if due is not None else (0,)
            )
            for at, (key, due) in enumerate(due_ms.items())
        ]
        parked = [(key, at, records[at]) for at, key in enumerate(due_ms)]
        await consumer.settle(
            [settlement(own, 4, dispatched=3, parked=parked, lanes=lanes, attempts=failed)]
        )
        first = await consumer.fetch_due_lanes(TOPIC, 0, 2)
        assert [(each.lane, each.due_ms) for each in first] == [(b"b", 100), (b"d", 200)]
        assert [each.lane for each in await consumer.fetch_due_lanes(TOPIC, 0, 9)] == [
            b"b",
            b"d",
            b"a",
        ]
        assert list(await consumer.fetch_parked(TOPIC, 0, b"a", -1, 9)) == [
            (0, records[0], failed[0])
        ]


async def what_was_in_flight_at_an_unclean_end_is_suspected(make: Factory) -> None:
    """What a killed member may have had in flight is suspected, once for each such end.

    Suspects are kept until they are settled; a member that leaves in order makes none.
    """
    async with make() as one, make() as two, make() as three:
        await fill(one, [record("a", str(number)) for number in range(4)])
        consumer, own = await joined(one)
        assert own.suspects == ()
        await consumer.settle([settlement(own, 1, done=1, dispatched=3)])
        await make.kill(one)
        consumer, own = await joined(two)
        assert tuple(map(tuple, own.suspects)) == ((1, 4, 1),)
        await make.kill(two)
        consumer, own = await joined(three)
        assert tuple(map(tuple, own.suspects)) == ((1, 4, 2),)
        await consumer.settle([settlement(own, 2, done=1, suspects=[(2, 4, 2)])])
        await consumer.leave()
        again = await acquired(await three.join(spec()))
        assert tuple(map(tuple, again.suspects)) == ((2, 4, 2),)


async def at_its_cap_a_topic_refuses_publishing_while_a_present_group_is_behind(
    make: Factory,
) -> None:
    """P7: at `size_bytes_max` nothing is removed that a present group has not handled.

    Publishing is refused, settling is not, and what is settled makes room, also where it is long
    ago that the group was absent.
    """
    clock = ManualClock()
    async with make(clock=clock) as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1, size_bytes_max=10_000))
        consumer, own = await joined(broker)
        clock.advance(10 * Limits().absent_s)
        count, some = 0, [record("a", "x" * 100)] * 10
        while count < 100:
            try:
                await broker.append([(TOPIC, some)])
            except StorageFull:
                break
            count += 1
        assert 0 < count < 10
        large = record("a", "x" * 2000)
        await refused(StorageFull, lambda: broker.publish(TOPIC, large), "size_bytes_max=10,000")
        assert list(await broker.ends(TOPIC)) == [(0, 10 * count)]
        published = [(TOPIC, [record("a", "x" * 900)])]
        await consumer.settle([settlement(own, 20, done=20, published=published)])
        await broker.append([(TOPIC, some)])
        ((first, _),) = await broker.ends(TOPIC)
        account = (await broker.status()).groups[GROUP]
        assert first <= 20
        assert (account.done, account.lost, account.balances) == (20, 0, True)


async def a_stale_epoch_is_fenced_and_nothing_is_written(make: Factory) -> None:
    """A settlement under a stale epoch is refused; nothing of its whole call is written."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=2))
        for number in range(10):
            await broker.publish(TOPIC, record(f"k{number}", "x"))
        await broker.ensure_topic(Topic("out", partitions=1))
        consumer = await broker.join(spec())
        changes = await changes_until(consumer, lambda found: len(found) >= 2)
        good, other = (each for each in changes if isinstance(each, Acquired))
        stale = Acquired(other.topic, other.partition, other.epoch - 1, 0, (), (), (), ())
        error = await refused(
            Fenced,
            lambda: consumer.settle(
                [
                    settlement(good, 1, done=1, published=[("out", [record("a", "1")])]),
                    settlement(
                        stale,
                        1,
                        done=1,
                        attempts=[attempts(1, 1)],
                        dead=[letter(stale, 0, record("a", "1"))],
                    ),
                ]
            ),
        )
        assert list(error.partitions) == [(other.topic, other.partition)]
        account = (await broker.status()).groups[GROUP]
        assert (account.done, account.dead, account.open) == (0, 0, 10)
        assert not await broker.dead_letters()
        assert list(await broker.ends("out")) == [(0, 0)]
        await consumer.settle([settlement(good, 1, done=1), settlement(other, 1, done=1)])
        assert (await broker.status()).groups[GROUP].done == 2


async def partitions_go_to_the_next_member_with_a_greater_epoch(make: Factory) -> None:
    """One member owns a partition; who takes it over gets a greater epoch, and the first is fenced.

    A settlement of the first that comes late is refused, and leaves no trace.
    """
    async with make() as one, make() as two:
        await fill(one, [record("a", "1"), record("a", "2")])
        first, own = await joined(one)
        second = await two.join(spec())
        await first.settle([settlement(own, 1, done=1)])
        await first.leave()
        next_own = await acquired(second)
        assert next_own.epoch > own.epoch
        assert next_own.watermark == 1
        await refused(Fenced, lambda: first.settle([settlement(own, 2, done=1)]))
        assert (await two.status()).groups[GROUP].done == 1
        await second.settle([settlement(next_own, 2, done=1)])
        account = (await one.status()).groups[GROUP]
        assert (account.done, account.open) == (2, 0)
        assert account.balances


async def a_watermark_never_goes_down(make: Factory) -> None:
    """Within an epoch the watermark never goes down."""
    async with make() as broker:
        await fill(broker, [record("a", "1"), record("a", "2")])
        consumer, own = await joined(broker)
        await consumer.settle([settlement(own, 2, done=2)])
        await consumer.settle([settlement(own, 2)])
        await consumer.leave()
        assert (await acquired(await broker.join(spec()))).watermark == 2


async def published_events_and_the_outcome_are_written_together(make: Factory) -> None:
    """What a handler published and its outcome are one write: both are there, or neither is."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        await broker.ensure_topic(Topic("out", partitions=1))
        await broker.append([(TOPIC, [record("a", "1")])])
        consumer, own = await joined(broker)
        sent = record("b", "published")
        bad = settlement(own, 1, done=1, published=[("out", [sent]), ("none", [sent])])
        await refused(NotFound, lambda: consumer.settle([bad]), "none")
        assert list(await broker.ends("out")) == [(0, 0)]
        assert (await broker.status()).groups[GROUP].done == 0
        await consumer.settle([settlement(own, 1, done=1, published=[("out", [sent])])])
        assert list((await broker.fetch("out", 0, 0, 10)).records) == [sent]
        assert (await broker.status()).groups[GROUP].done == 1


async def the_account_balances_after_every_settlement(make: Factory) -> None:
    """Entered = done + open + parked + dead + archived + skipped after every single settlement."""
    records = [record("a", str(number)) for number in range(8)]
    async with make() as broker:
        await fill(broker, records)
        consumer, own = await joined(broker)
        parked = [(b"a", 3, records[3]), (b"a", 4, records[4])]
        lane = LaneState(lane=b"a", parked=2, head=3, due_ms=None, blockers=(2,))
        steps = [
            (settlement(own, 2, done=2), (2, 6, 0, 0, 0)),
            (settlement(own, 2, attempts=[attempts(2, 1)]), (2, 6, 0, 0, 0)),
            (settlement(own, 3, dead=[letter(own, 2, records[2])], cleared=[2]), (2, 5, 0, 1, 0)),
            (settlement(own, 5, parked=parked, lanes=[lane]), (2, 3, 2, 1, 0)),
            (settlement(own, 5, settled=((6, 7),), done=1), (3, 2, 2, 1, 0)),
            (settlement(own, 5, settled=((6, 8),), skipped=1), (3, 1, 2, 1, 1)),
            (settlement(own, 8, done=2, unparked=1), (5, 0, 1, 1, 1)),
            (
                settlement(own, 8, unparked=1, dead=[letter(own, 4, records[4])]),
                (5, 0, 0, 2, 1),
            ),
        ]
        for step, expected in steps:
            await consumer.settle([step])
            account = (await broker.status()).groups[GROUP]
            found = (account.done, account.open, account.parked, account.dead, account.skipped)
            assert found == expected
            assert account.entered == 8
            assert account.balances
        ids = [each.id for each in await broker.dead_letters()]
        await broker.archive(ids[:1], actor="me", reason="conformance")
        account = (await broker.status()).groups[GROUP]
        assert (account.dead, account.archived) == (1, 1)
        assert account.balances
        assert offsets_of(await broker.dead_letters(state="archived")) == [2]


async def a_pause_is_durable_and_told_to_members(make: Factory) -> None:
    """A pause holds over a restart with its reason, and every member is told of it and its end."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        consumer, own = await joined(broker)
        await broker.pause(GROUP, actor="me", reason="maintenance")
        assert await changes_until(consumer, bool) == [Paused("maintenance")]
        await broker.resume(GROUP, actor="me")
        assert await changes_until(consumer, bool) == [Paused(None)]
        await consumer.settle([settlement(own, 0, pause="a handler said so")])
        assert (await broker.status()).groups[GROUP].paused == "a handler said so"
    async with make() as broker:
        assert (await broker.status()).groups[GROUP].paused == "a handler said so"
        consumer = await broker.join(spec())
        found = await changes_until(consumer, lambda found: len(found) >= 2)
        paused = [each for each in found if isinstance(each, Paused)]
        assert paused == [Paused("a handler said so")]
        assert found.index(paused[0]) < [isinstance(each, Acquired) for each in found].index(True)
        assert not any(isinstance(each, Lost) for each in found)
        await refused(NotFound, lambda: broker.pause("none", actor="me", reason="x"), "none")
        await refused(NotFound, lambda: broker.resume("none", actor="me"), "none")


async def a_second_pause_changes_nothing_and_says_whose_the_first_one_is(make: Factory) -> None:
    """Of two who pause or resume a group the second one is told; a handler's pause is kept too."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        consumer = await broker.join(spec())
        own = await acquired(consumer)
        await refused(
            Conflict,
            lambda: broker.resume(GROUP, actor="bob"),
            GROUP,
            "expected one that is paused",
        )
        await broker.pause(GROUP, actor="ada", reason="stock count")
        await refused(
            Conflict,
            lambda: broker.pause(GROUP, actor="bob", reason="because"),
            *(GROUP, "paused already (ada, ", "stock count"),
        )
        # Handlers may still end: what they say of it changes nothing.
        await consumer.settle([settlement(own, 0, pause="a handler said so")])
        assert (await broker.status()).groups[GROUP].paused == "stock count"
        await broker.resume(GROUP, actor="cleo")
        await refused(Conflict, lambda: broker.resume(GROUP, actor="bob"), "is not (cleo, ")
        await consumer.settle([settlement(own, 0, pause="a handler said so")])
        await refused(
            Conflict,
            lambda: broker.pause(GROUP, actor="bob", reason="because"),
            *("paused already (group@", "a handler said so"),
        )


async def a_group_that_runs_refuses_members_with_other_options(make: Factory) -> None:
    """A member with another ordering is refused while the group runs, and welcome afterwards."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        consumer = await broker.join(spec())
        await refused(
            ConfigError,
            lambda: broker.join(spec(ordering="none", on_dead="continue")),
            GROUP,
            "'key'",
            "'none'",
        )
        await consumer.leave()
        await acquired(await broker.join(spec(ordering="none", on_dead="continue")))


async def an_ordering_by_which_retries_could_pass_earlier_events_is_refused(make: Factory) -> None:
    """While events wait for their next attempt, lanes become narrower and not wider."""
    narrow = {"ordering": "none", "on_dead": "continue"}
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        await broker.append([(TOPIC, [record("a", str(number)) for number in range(3)])])
        consumer = await broker.join(spec(**narrow))
        own = await acquired(consumer)
        await consumer.settle([settlement(own, 0, dispatched=2, attempts=[attempts(1, 2, lane=1)])])
        await consumer.leave()
        await refused(
            ConfigError, lambda: broker.join(spec()), GROUP, "'none'", "'key'", "next attempt"
        )
        consumer = await broker.join(spec(**narrow))
        own = await acquired(consumer)
        await consumer.settle([settlement(own, 2, done=2, cleared=[1])])
        await consumer.leave()
        consumer = await broker.join(spec())
        own = await acquired(consumer)
        await consumer.settle([settlement(own, 2, attempts=[attempts(2, 1)])])
        await consumer.leave()
        again = await acquired(await broker.join(spec(**narrow)))
        assert [(each.offset, each.count) for each in again.attempts] == [(2, 1)]
