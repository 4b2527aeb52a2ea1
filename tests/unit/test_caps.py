"""Hard caps: publishing is refused, settling never; only an absent group loses, and is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventlane import ConfigError, Limits, Refused, StorageFull
from eventlane.brokers import connect
from eventlane.brokers.embedded.retention import make_room
from eventlane.cli import main
from eventlane.settlement import LaneState
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import TOPIC, acquired, letter, record, settlement, spec
from eventlane.topic import Topic

CAP = 10_000
HOUR_S = 3600


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    limits = Limits(absent_s=HOUR_S)
    broker = await connect(f"embedded:{tmp_path}", clock=ManualClock(0), limits=limits)
    await broker.ensure_topic(Topic(TOPIC, partitions=1, size_bytes_max=CAP))
    yield broker
    await broker.aclose()


async def fill(broker: Any, count: int) -> None:
    for _ in range(count):
        await broker.append([(TOPIC, [record("a", "x" * 100)] * 10)])


async def fill_up(broker: Any) -> int:
    """Publish until it is refused; how often it was not."""
    for count in range(100):
        try:
            await fill(broker, 1)
        except StorageFull:
            return count
    raise AssertionError("expected a refusal")


async def group(broker: Any) -> Any:
    status = await broker.status()
    assert status.topics[TOPIC].size_bytes <= CAP
    assert all(each.balances for each in status.groups.values())
    return status.groups["group"]


async def test_at_the_cap_an_operator_republishes_nothing_and_edits_all_the_same(
    broker: Any,
) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    await fill(broker, 1)
    dead = letter(own, 0, record("a", "0"))
    lane = LaneState(lane=b"a", blockers=(0,))
    await consumer.settle([settlement(own, 1, dead=[dead], lanes=[lane])])
    await fill_up(broker)
    before = await broker.ends(TOPIC)
    big = record("a", "x" * 2000)
    with pytest.raises(StorageFull, match="size_bytes_max=10,000"):
        await broker.republish(dead.id, big, actor="me", reason="for the others")
    assert await broker.ends(TOPIC) == before
    history = await broker.letter_history(dead.id)
    assert "republish" not in [each.action for each in history]
    # The child of an edit is kept with the letters, and is not published.
    await broker.edit(dead.id, big, diff="all of it", actor="me", reason="wrong")
    assert await broker.ends(TOPIC) == before


async def test_a_topic_at_its_cap_refuses_only_what_is_for_it(broker: Any) -> None:
    await broker.ensure_topic(Topic("others", partitions=1))
    await broker.join(spec())
    await fill_up(broker)
    refused = broker.publish(TOPIC, record("a", "x" * 2000))
    taken = broker.publish("others", record("a", "x" * 2000))
    assert (await taken).offset == 0
    with pytest.raises(StorageFull):
        await refused
    with pytest.raises(StorageFull):
        await broker.append([("others", [record("a", "1")]), (TOPIC, [record("a", "x" * 2000)])])
    assert await broker.ends("others") == [(0, 1)]


async def test_without_groups_the_oldest_leave(broker: Any) -> None:
    await fill(broker, 30)
    ((first, end),) = await broker.ends(TOPIC)
    assert (end, first > 200) == (300, True)


async def test_an_absent_group_loses_the_oldest_is_paused_and_goes_on_after_a_reset(
    broker: Any,
) -> None:
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    await fill(broker, 3)
    parked = [(b"a", 6, record("a", "6"))]
    lane = LaneState(lane=b"a", parked=1, head=6, blockers=(5,))
    await consumer.settle(
        [
            settlement(
                own, 5, done=5, settled=((5, 7),), dead=[letter(own, 5, record("a", "5"))],
                parked=parked, lanes=[lane],
            )
        ]
    )  # fmt: skip
    await consumer.leave()
    await fill_up(broker)
    assert "publishing is refused while group" in (await broker.status()).near_caps[0]
    broker._clock.advance(2 * HOUR_S)
    assert "are lost to group" in (await broker.status()).near_caps[0]
    await fill(broker, 2)
    ((first, end),) = await broker.ends(TOPIC)
    now = await group(broker)
    assert first >= 20
    assert (now.done, now.dead, now.parked, now.lost) == (5, 1, 1, first - 7)
    assert now.open == end - first
    assert now.partitions[0].is_cut
    assert "is paused: size_bytes_max of its topic has removed" in now.blocked[0]
    (view,) = await broker.lane(TOPIC, b"a")
    assert view.is_cut
    assert "a reset continues it" in view.why
    back = await broker.join(spec())
    assert back._owned == {}, "expected that nobody has it before a reset"
    plan = await broker.reset("group", "first", actor="me", reason="", dry_run=True)
    assert (plan.partitions[0].to_offset, plan.partitions[0].handled_again) == (first, 0)
    await broker.reset("group", "first", actor="me", reason="lost", dry_run=False)
    assert (await acquired(back)).watermark == first
    now = await group(broker)
    assert (now.lost, now.blocked, now.open) == (0, (), end - first)


async def test_what_is_lost_is_logged_once_it_is_written(
    broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await (await broker.join(spec())).leave()
    await fill_up(broker)
    broker._clock.advance(2 * HOUR_S)

    def lines() -> list[str]:
        return [each.message for each in caplog.records if "has lost" in each.message]

    def trimmed_in_vain(transaction: Any) -> None:
        assert make_room(transaction, TOPIC, 3000, ["group"])
        raise Refused("no")

    with pytest.raises(Refused):
        await broker._writer.change(trimmed_in_vain)
    assert (lines(), (await group(broker)).lost) == ([], 0)
    await broker.ensure_topic(Topic(TOPIC, size_bytes_max=3000))
    await broker.run_retention(broker._clock.now_ms())
    assert lines()
    assert all("a reset" in line for line in lines())


async def test_a_frozen_owner_of_what_was_removed_is_fenced(broker: Any, tmp_path: Path) -> None:
    other: Any = await connect(f"embedded:{tmp_path}", clock=ManualClock(0))
    frozen = await other.join(spec())
    own = await acquired(frozen)
    await fill_up(broker)
    # As if its lease had ended: it shows no sign of life.
    other._members.leave(frozen._member)
    broker._clock.advance(2 * HOUR_S)
    await fill(broker, 2)
    with pytest.raises(Exception, match="another process owns"):
        await frozen.settle([settlement(own, 1, done=1)])
    frozen.has_left = True
    await other.aclose()


async def test_retention_keeps_to_the_cap_too(broker: Any) -> None:
    await (await broker.join(spec())).leave()
    await fill_up(broker)
    broker._clock.advance(2 * HOUR_S)
    await broker.ensure_topic(Topic(TOPIC, size_bytes_max=3000))
    await broker.run_retention(broker._clock.now_ms())
    assert (await broker.status()).topics[TOPIC].size_bytes <= 3000
    assert (await group(broker)).lost > 0


async def test_beyond_disk_bytes_max_publishing_is_refused_and_settling_is_not(
    tmp_path: Path,
) -> None:
    limits = Limits(disk_bytes_max=2_000_000)
    broker: Any = await connect(f"embedded:{tmp_path}", limits=limits)
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    taken = 10
    for _ in range(taken):
        await broker.append([(TOPIC, [record("a", "x" * 100_000)])])
    with pytest.raises(StorageFull, match="disk_bytes_max=2,000,000"):
        await broker.append([(TOPIC, [record("a", "x" * 500_000)])])
    status = await broker.status()
    assert status.disk_bytes <= 2_000_000
    assert "publishing is refused" in status.near_caps[0]
    published = [(TOPIC, [record("a", "x" * 300_000)])]
    await consumer.settle([settlement(own, taken, done=taken, published=published)])
    await broker.ensure_topic(Topic(TOPIC, retention_bytes=1))
    await broker.run_retention(0)
    await broker.append([(TOPIC, [record("a", "x" * 100_000)])])
    await broker.aclose()


def test_caps_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="retention_bytes of at most size_bytes_max=10"):
        Topic("t", retention_bytes=11, size_bytes_max=10)
    with pytest.raises(ConfigError, match="expected size_bytes_max to be"):
        Topic("t", size_bytes_max=0)
    with pytest.raises(ConfigError, match="disk_bytes_max"):
        Limits(disk_bytes_max=0)


async def test_the_command_line_says_what_is_near_a_cap_and_what_was_lost(
    broker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await (await broker.join(spec())).leave()
    await fill_up(broker)

    async def out(*arguments: str) -> str:
        place = ["--broker", f"embedded:{tmp_path}"]
        assert await asyncio.to_thread(main, [*place, *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "of its size_bytes_max: there" in await out("status")
    assert json.loads(await out("topics", "--json"))[TOPIC]["size_bytes_max"] == CAP
    assert "log keeps at most" in await out("topics")
    broker._clock.advance(2 * HOUR_S)
    await fill(broker, 2)
    shown = await out("status")
    assert "group has lost" in shown
    assert "groups reset group --to first --dry-run" in shown
    assert json.loads(await out("status", "--json"))["groups"]["group"]["partitions"][0]["is_cut"]
