"""Whole groups in the public API, and what is the embedded broker's own about them."""

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventlane import App, ConfigError, NotFound, Refused
from eventlane.brokers import connect
from eventlane.brokers.embedded.members import Members
from eventlane.config import Limits
from eventlane.settlement import Acquired, LaneState, Lost
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    acquired,
    changes_until,
    letter,
    record,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Any]:
    app = App(f"embedded:{tmp_path}", name="tests")
    async with app:
        broker: Any = app._connected
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        await broker.append([(TOPIC, [record("k", str(number)) for number in range(5)])])
        yield app


def audit(app: Any) -> list[tuple[str, str, str, str]]:
    return list(
        app._connected._file.reader.execute(
            "SELECT actor, action, reason, consumer_group FROM audit WHERE letter IS NULL"
        )
    )


async def test_what_is_done_to_a_group_is_audited_under_its_name(app: Any) -> None:
    consumer = await app._connected.join(spec())
    await acquired(consumer)
    await app.reset(GROUP, "now", reason="new rules", actor="me")
    await consumer.leave()
    await app.rename_group(GROUP, "renamed", reason="it does more", actor="me")
    await app.remove_group("renamed", typed_name="renamed", reason="no longer needed", actor="me")
    assert audit(app) == [
        ("me", "reset", "new rules", "renamed"),
        ("me", "rename", "it does more", "renamed"),
        ("me", "remove", "no longer needed", "renamed"),
    ]


async def test_the_app_and_its_host_act_where_nobody_else_does(app: Any) -> None:
    await app._connected.join(spec())
    await app.reset(GROUP, "now", reason="x")
    assert audit(app)[0][0] == f"tests@{os.uname().nodename}"


@pytest.mark.parametrize(
    "to",
    [
        "last",
        None,
        3,
        {},
        {TOPIC: 3},
        {(TOPIC, "0"): 3},
        {(TOPIC, 0): "3"},
        {(TOPIC, 0, 1): 3},
        datetime(2026, 1, 1),  # noqa: DTZ001  # that it has no time zone is what is tested
    ],
)
async def test_a_target_that_cannot_be_is_refused_with_what_can(app: Any, to: Any) -> None:
    await app._connected.join(spec())
    with pytest.raises(ConfigError, match="expected 'first', 'now', a time with a time zone"):
        await app.reset(GROUP, to, reason="x")
    assert audit(app) == []


async def test_a_change_of_a_group_needs_a_reason(app: Any) -> None:
    await (await app._connected.join(spec())).leave()
    calls: list[Callable[[], Any]] = [
        lambda: app.reset(GROUP, "first"),
        lambda: app.reset(GROUP, "first", reason=" "),
        lambda: app.rename_group(GROUP, "other", reason=""),
        lambda: app.remove_group(GROUP, typed_name=GROUP, reason=""),
        lambda: app.forget_type(GROUP, "Thing", reason=""),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="expected some words"):
            await call()
    assert set((await app.status()).groups) == {GROUP}


@pytest.mark.parametrize("typed_name", [None, "", "grou", "GROUP"])
async def test_a_group_is_removed_only_by_who_types_its_name(app: Any, typed_name: Any) -> None:
    await (await app._connected.join(spec())).leave()
    with pytest.raises(Refused, match=f"expected typed_name='{GROUP}'"):
        await app.remove_group(GROUP, typed_name=typed_name, reason="x")
    plan = await app.remove_group(GROUP, typed_name=typed_name, dry_run=True)
    assert (plan.is_done, plan.open) == (False, 5)
    assert set((await app.status()).groups) == {GROUP}


@pytest.mark.parametrize("name", ["", "a.b", "a b", "x" * 201, None])
async def test_a_group_gets_no_name_that_it_cannot_have(app: Any, name: Any) -> None:
    await (await app._connected.join(spec())).leave()
    with pytest.raises(ConfigError, match="1 to 200 characters of A-Z a-z 0-9 _ -, got"):
        await app.rename_group(GROUP, name, reason="x")
    assert set((await app.status()).groups) == {GROUP}


async def test_an_unknown_group_is_answered_with_the_nearest(app: Any) -> None:
    with pytest.raises(NotFound, match="There are no groups yet"):
        await app.reset(GROUP, "first", reason="x")
    await app._connected.join(spec())
    calls: list[Callable[[], Any]] = [
        lambda: app.reset("grop", "first", reason="x"),
        lambda: app.reset("grop", "first", dry_run=True),
        lambda: app.rename_group("grop", "other", reason="x"),
        lambda: app.remove_group("grop", typed_name="grop", reason="x"),
        lambda: app.remove_group("grop", dry_run=True),
        lambda: app.pause("grop", reason="x"),
        lambda: app.resume("grop"),
    ]
    for call in calls:
        with pytest.raises(NotFound, match=f"Did you mean '{GROUP}'"):
            await call()


async def test_a_reset_to_a_time_finds_its_batch_among_many(tmp_path: Path) -> None:
    clock = ManualClock(0)
    app: Any = App(f"embedded:{tmp_path}", clock=clock)
    async with app:
        broker = app._connected
        await broker.ensure_topic(Topic(TOPIC, partitions=1, retention_s=100))
        for number in range(300):
            await broker.append([(TOPIC, [record("k", "x", time_ms=number * 1000)] * 2)])
            clock.advance(1)
        await broker.run_retention(clock.now_ms())
        ((first, end),) = await broker.ends(TOPIC)
        assert first > 300
        await broker.join(spec())
        for second in range(0, 310, 7):
            at = datetime.fromtimestamp(second, UTC)
            plan = await app.reset(GROUP, at, reason="x", dry_run=True)
            assert plan.partitions[0].to_offset == min(max(2 * second, first), end), second


async def test_a_reset_to_what_retention_has_removed_is_refused(tmp_path: Path) -> None:
    clock = ManualClock(0)
    app: Any = App(f"embedded:{tmp_path}", clock=clock)
    async with app:
        await app._connected.ensure_topic(Topic(TOPIC, partitions=1, retention_s=1))
        for _ in range(3):
            await app._connected.append([(TOPIC, [record("k", "x")] * 2)])
            clock.advance(10)
        await app._connected.run_retention(clock.now_ms())
        await app._connected.join(spec())
        with pytest.raises(Refused, match=r"from 6 \(its first event\) to 6 \(its end\), got 3"):
            await app.reset(GROUP, {(TOPIC, 0): 3}, reason="x")


async def test_parked_events_on_both_sides_of_a_reset_are_told_apart(app: Any) -> None:
    broker = app._connected
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    records = list((await broker.fetch(TOPIC, 0, 0, 10)).records)
    await consumer.settle(
        [
            settlement(
                own,
                5,
                dead=[letter(own, 0, records[0])],
                parked=[(b"k", offset, records[offset]) for offset in range(1, 5)],
                lanes=[LaneState(b"k", parked=4, head=1, due_ms=None, blockers=(0,))],
            )
        ]
    )
    # Two of them have left the parking store since; their row is still there for the others.
    state = LaneState(b"k", parked=2, head=3, due_ms=None, blockers=(0,))
    await consumer.settle([settlement(own, 5, unparked=2, done=2, lanes=[state])])
    plan = await app.reset(GROUP, {(TOPIC, 0): 4}, reason="x", dry_run=True)
    (part,) = plan.partitions
    assert (part.parked_dropped, part.passed_over, part.handled_again) == (2, 1, 1)
    plan = await app.reset(GROUP, {(TOPIC, 0): 3}, reason="x", dry_run=True)
    assert (plan.passed_over, plan.handled_again) == (0, 2)


async def test_who_was_frozen_while_its_group_was_removed_owns_nothing(tmp_path: Path) -> None:
    quick = Limits(lease_s=0.4, stall_s_max=0.2)
    one: Any = await connect(f"embedded:{tmp_path}", limits=quick)
    two: Any = await connect(f"embedded:{tmp_path}", limits=quick)
    await one.ensure_topic(Topic(TOPIC, partitions=1))
    frozen = await one.join(spec())
    await acquired(frozen)  # ... and from here on it never says that its event loop turns

    async def removed() -> bool:
        try:
            await two.remove_group(GROUP, actor="me", reason="x", dry_run=False)
        except Refused:
            return False
        return True

    await until(removed, "the frozen member to be taken for dead")
    await changes_until(frozen, lambda found: Lost(TOPIC, 0) in found)
    await one.aclose()
    await two.aclose()


def test_a_heartbeat_fits_its_file_whatever_it_says(tmp_path: Path) -> None:
    members = Members(tmp_path, lease_s=10, stall_s_max=5)
    member = members.join(group="g" * 200, host="h" * 300, app="\n" * 9999)
    member.report(1, 2, [f"steps[{number}] is full" for number in range(1000)])
    member.beat(member.seen_s)
    strangers = Members(tmp_path, lease_s=10, stall_s_max=5)
    heartbeat = strangers.heartbeat(member.id)
    assert heartbeat is not None
    assert (heartbeat.in_flight, heartbeat.held) == (1, 2)
    assert heartbeat.blocked[0] == "steps[0] is full"
    count = len(heartbeat.blocked) - 1
    assert heartbeat.blocked[-1] == f"and {1000 - count} more"
    members.close()
    strangers.close()


async def test_an_owner_hears_of_a_reset_and_takes_the_partition_anew(app: Any) -> None:
    consumer = await app._connected.join(spec())
    own = await acquired(consumer)
    await consumer.settle([settlement(own, 3, done=3)])
    await app.reset(GROUP, "first", reason="x")
    found = await changes_until(
        consumer, lambda found: any(isinstance(each, Acquired) for each in found)
    )
    owners = [type(each) for each in found if isinstance(each, Lost | Acquired)]
    assert owners == [Lost, Acquired]
