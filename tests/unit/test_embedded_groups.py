"""Groups on the embedded broker: what is its own, beyond what the conformance suite says of all."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventlane.brokers import connect
from eventlane.brokers.embedded.members import Members
from eventlane.config import Limits
from eventlane.errors import ConfigError, NotFound, StorageError, Unavailable
from eventlane.settlement import Acquired, Appended, Command, Lost, Paused, Revoked
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    acquired,
    attempts,
    changes_until,
    letter,
    record,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic

QUICK = Limits(lease_s=0.4, stall_s_max=0.2)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=2))
    yield broker
    await broker.aclose()


@pytest.fixture
async def other(tmp_path: Path, broker: Any) -> AsyncIterator[Any]:
    """What another process would open."""
    other = await connect(f"embedded:{tmp_path}")
    yield other
    await other.aclose()


async def settled_letter(broker: Any, own: Acquired, consumer: Any) -> Any:
    await broker.publish(TOPIC, record("a", "1"))
    dead = letter(own, 0, record("a", "1"))
    await consumer.settle([settlement(own, 1, dead=[dead])])
    return dead


async def test_a_pause_is_reported_before_the_partitions(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    await broker.pause(GROUP, actor="me", reason="stock count")
    await consumer.leave()
    changes = list(await (await other.join(spec())).changes())
    assert [type(change) for change in changes] == [Paused, Acquired, Acquired]


async def test_growth_is_reported_once_for_many_commits(broker: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    for number in range(5):
        await broker.publish(TOPIC, record("a", str(number)))
    assert await consumer.changes() == [Appended(TOPIC)]


async def test_growth_in_another_process_is_reported(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    waiting = asyncio.ensure_future(broker.wait_for_append(TOPIC))
    await other.publish(TOPIC, record("a", "1"))
    async with asyncio.timeout(5):
        assert await consumer.changes() == [Appended(TOPIC)]
        await waiting


async def test_a_second_member_waits_and_takes_over_when_the_first_one_leaves(
    broker: Any, other: Any
) -> None:
    first = await broker.join(spec())
    own = await acquired(first, 2)
    assert own.epoch == 1
    second = await other.join(spec())
    waiting = asyncio.ensure_future(second.changes())
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    assert (await other.status()).groups[GROUP].members == 2
    await first.leave()
    async with asyncio.timeout(5):
        taken = [each for each in await waiting if isinstance(each, Acquired)]
        assert [each.epoch for each in taken] == [2, 2]
    assert (await other.status()).groups[GROUP].members == 1


async def test_a_consumer_whose_event_loop_stalls_loses_its_partitions(tmp_path: Path) -> None:
    one = await connect(f"embedded:{tmp_path}", limits=QUICK)
    two = await connect(f"embedded:{tmp_path}", limits=QUICK)
    await one.ensure_topic(Topic(TOPIC, partitions=1))
    frozen = await one.join(spec())
    await acquired(frozen)  # ... and from here on it never says that its event loop turns
    waiting = await two.join(spec())
    own = await acquired(waiting)
    assert own.epoch == 2
    await changes_until(frozen, lambda found: Lost(TOPIC, 0) in found)
    await one.aclose()
    await two.aclose()


async def test_a_consumer_that_beats_keeps_its_partitions(tmp_path: Path) -> None:
    one = await connect(f"embedded:{tmp_path}", limits=QUICK)
    two = await connect(f"embedded:{tmp_path}", limits=QUICK)
    await one.ensure_topic(Topic(TOPIC, partitions=1))
    holder = await one.join(spec())
    await acquired(holder)
    waiting = asyncio.ensure_future((await two.join(spec())).changes())
    loop = asyncio.get_running_loop()
    until_s = loop.time() + 3 * QUICK.lease_s
    while loop.time() < until_s:
        holder.beat(3, 4)
        await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    waiting.cancel()
    await one.aclose()
    await two.aclose()


async def test_what_a_dead_member_left_is_cleaned_by_who_takes_over(tmp_path: Path) -> None:
    broker: Any = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    consumer = await broker.join(spec())
    await acquired(consumer)
    # As a kill -9 leaves it: the file is there, the kernel has freed its lock.
    member = consumer._member
    os.close(member._file)
    member._file = os.open(os.devnull, os.O_RDWR)
    second = await connect(f"embedded:{tmp_path}")
    assert (await acquired(await second.join(spec()))).epoch == 2
    await until(lambda: not (tmp_path / "members" / member.id).exists(), "the file to go")
    await second.aclose()
    await broker.aclose()


async def test_options_of_a_group_without_living_members_are_replaced(broker: Any) -> None:
    await (await broker.join(spec())).leave()
    consumer = await broker.join(spec(ordering="partition", on_dead="stop"))
    with pytest.raises(ConfigError, match=r"'partition'.*'stop'.*got ordering='key'"):
        await broker.join(spec())
    await consumer.leave()
    await broker.join(spec())


async def test_a_topic_that_a_group_adds_later_starts_at_its_first_event(broker: Any) -> None:
    await (await broker.join(spec(start="now"))).leave()
    await broker.ensure_topic(Topic("more", partitions=1))
    await broker.append([("more", [record("a", "1")])])
    consumer = await broker.join(spec(start="now", topics=(TOPIC, "more")))
    changes = await changes_until(consumer, lambda found: len(found) >= 3)
    assert {each.topic: each.watermark for each in changes} == {TOPIC: 0, "more": 0}


async def test_a_command_is_told_once_to_each_owner(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer, 2)
    dead = await settled_letter(broker, own, consumer)
    await other.replay([dead.id], actor="me", reason="fixed")
    found = await changes_until(
        consumer, lambda found: any(isinstance(each, Command) for each in found)
    )
    await other.pause(GROUP, actor="me", reason="x")
    found += await changes_until(
        consumer, lambda found: any(isinstance(each, Paused) for each in found)
    )
    assert sum(isinstance(each, Command) for each in found) == 1
    await consumer.leave()
    again = await acquired(await other.join(spec()), 2)
    assert [command.letter.id for command in again.commands] == [dead.id]
    assert (await other.status()).groups[GROUP].pending == 1


async def test_heartbeats_split_what_is_open_and_never_exceed_it(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    for number in range(5):
        await broker.publish(TOPIC, record("a", str(number)))
    consumer.beat(2, 1)
    account = (await broker.status()).groups[GROUP]
    assert (account.waiting, account.in_flight, account.held) == (2, 2, 1)
    consumer.beat(4, 9)
    account = (await broker.status()).groups[GROUP]
    assert (account.waiting, account.in_flight, account.held) == (0, 4, 1)
    assert account.balances

    async def seen() -> bool:
        return bool((await other.status()).groups[GROUP].in_flight == 4)

    await until(seen, "the heartbeat to reach another process")


async def test_a_consumer_that_has_left_says_so(broker: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    waiting = asyncio.ensure_future(consumer.changes())
    await asyncio.wait([waiting], timeout=0)
    await consumer.leave()
    await consumer.leave()
    with pytest.raises(Unavailable, match="has left"):
        await waiting


async def test_cancelled_changes_are_not_lost(broker: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    waiting = asyncio.ensure_future(consumer.changes())
    await asyncio.wait([waiting], timeout=0)
    waiting.cancel()
    await broker.publish(TOPIC, record("a", "1"))
    assert await consumer.changes() == [Appended(TOPIC)]


async def test_an_unreadable_file_ends_waiting_with_an_error(broker: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    waiting = [
        asyncio.ensure_future(consumer.changes()),
        asyncio.ensure_future(broker.wait_for_append(TOPIC)),
    ]
    await asyncio.wait(waiting, timeout=0)
    broker._file.connection.execute("ALTER TABLE consumer_group RENAME TO mislaid")
    for each in waiting:
        with pytest.raises(StorageError, match="consumer_group"):
            await each
    broker._file.connection.execute("ALTER TABLE mislaid RENAME TO consumer_group")


async def test_joining_with_an_unknown_topic_leaves_nothing_behind(broker: Any) -> None:
    with pytest.raises(NotFound, match="Did you mean 'steps'"):
        await broker.join(spec(topics=("stepps",)))
    assert (await broker.status()).groups == {}


async def test_attempts_move_with_the_partition(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer, 2)
    await consumer.settle([settlement(own, 0, attempts=[attempts(3, 2), attempts(1, 1)])])
    await consumer.settle([settlement(own, 0, attempts=[attempts(3, 4)], cleared=[1])])
    await consumer.leave()
    assert (await acquired(await other.join(spec()), 2)).attempts == (attempts(3, 4),)


def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    members = Members(tmp_path, lease_s=10, stall_s_max=5)
    member = members.join(group=GROUP, host="here", app="app")
    strangers = Members(tmp_path, lease_s=10, stall_s_max=5)
    assert strangers.is_alive(member.id)
    os.pwrite(member._file, b"?", 0)
    assert not strangers.is_alive(member.id)
    strangers.sweep()
    assert (tmp_path / "members" / member.id).exists()
    members.close()
    assert not (tmp_path / "members" / member.id).exists()
    strangers.close()


async def test_who_looks_after_a_long_time_is_told_of_every_topic(
    broker: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.log._BATCHES_LOOKED_AT_MAX", 3)
    await broker.ensure_topic(Topic("quiet", partitions=1))
    consumer = await broker.join(spec(topics=(TOPIC, "quiet")))
    await acquired(consumer, 3)
    for number in range(5):
        await other.publish(TOPIC, record("a", str(number)))
    found = await changes_until(consumer, lambda found: Appended("quiet") in found)
    assert Appended(TOPIC) in found


async def test_who_is_seen_before_it_has_joined_gets_its_share(broker: Any, other: Any) -> None:
    consumer = await broker.join(spec())
    await acquired(consumer, 2)
    with broker._file.lock:  # The disk stands still, so that the other one is only about to join.
        joining = asyncio.ensure_future(other.join(spec()))
        await until(lambda: len(broker._members.living(GROUP)) == 2, "two files of members")
        consumer.look_at_owners()
    async with asyncio.timeout(5):
        await joining
        assert [type(change) for change in await consumer.changes()] == [Revoked]
