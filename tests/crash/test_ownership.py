"""Partitions that change their owner at a bad moment, and members that are not what they seem."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventlane import App, Batch, Context, HandlerStuck, Limits
from eventlane.brokers import connect
from eventlane.settlement import GroupSpec, Revoked, Settlement
from eventlane.testing.passing import PassingBroker, PassingConsumer
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Step,
    Storage,
    acquired,
    changes_until,
    spec,
    until,
)
from eventlane.topic import Topic
from tests.crash.failing import Disk
from tests.crash.recording import embedded, file_of

KEYS = ("k2", "k3", "k4", "k5")  # Two in each of two partitions.


async def give_to(app: App, owner: str | None, *, partition: int = 0) -> None:
    """Let somebody else, or nobody, own a partition: what it was is found out by looking."""

    def give(transaction: Any) -> None:
        transaction.execute(
            "UPDATE progress SET owner = ?, epoch = epoch + 1 WHERE partition = ?",
            (owner, partition),
        )
        transaction.alters = True

    await embedded(app)._writer.change(give)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Any]:
    """A broker on the same file, as another process would have it."""
    broker = await connect(f"embedded:{tmp_path / 'log'}")
    await broker.ensure_topic(Topic(TOPIC, partitions=2))
    yield broker
    await broker.aclose()


class SlowConsumer(PassingConsumer):
    """Its first settlement waits until it is let."""

    def __init__(self, real: Any, group: GroupSpec, broker: "SlowBroker") -> None:
        super().__init__(real, group)
        self._broker = broker

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self._broker.asked.set()
        await self._broker.go_on.wait()
        await self.real.settle(settlements)


class SlowBroker(PassingBroker):
    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    def consumer(self, real: Any, group: GroupSpec) -> SlowConsumer:
        return SlowConsumer(real, group, self)


async def test_a_settlement_that_is_fenced_late_takes_nothing_from_whoever_acquired_anew(
    tmp_path: Path,
) -> None:
    app = Storage(f"embedded:{tmp_path}", wrap=SlowBroker).app(partitions=1)
    runs: list[int] = []

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context) -> None:
        runs.append(ctx.origin.lanes.epoch)

    async with app, app.handling():
        broker: Any = app._connected
        await app.publish(Step("a", 0))
        await broker.asked.wait()
        await give_to(app, None)
        await until(lambda: len(runs) == 2, "that it runs again, under another epoch")
        broker.go_on.set()
        await app.publish(Step("a", 1))
        await app.run_until_idle(10)
        account = (await app.status()).groups[GROUP]
    assert runs == [1, 3, 3]
    assert (account.done, account.open) == (2, 0)


async def test_a_look_at_the_owners_that_fails_is_repeated(
    other: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owner = await connect(f"embedded:{tmp_path / 'log'}")
    await acquired(await owner.join(spec()), 2)
    consumer = await other.join(spec())
    waiting = asyncio.ensure_future(acquired(consumer, 2))
    members, away = tmp_path / "log" / "members", tmp_path / "away"
    members.rename(away)
    members.touch()  # A file, where a directory is looked into.
    await until(lambda: "cannot look for what other" in caplog.text, "that a look fails")
    members.unlink()
    away.rename(members)
    assert not waiting.done()
    await owner.aclose()
    assert (await waiting).epoch == 2


async def test_a_member_that_is_seen_before_it_is_recorded_gets_its_share(
    other: Any, tmp_path: Path
) -> None:
    owner: Any = await connect(f"embedded:{tmp_path / 'log'}")
    consumer = await owner.join(spec())
    await acquired(consumer, 2)
    revoked = Revoked(TOPIC, 1)
    told = asyncio.ensure_future(changes_until(consumer, lambda found: revoked in found))
    with owner._file.lock:  # The other one cannot write what it handles.
        joining = asyncio.ensure_future(other.join(spec()))
        await until(lambda: len(owner._members._scanned.get(GROUP, ())) == 2, "that it is seen")
    await joining
    await told
    await owner.aclose()


async def test_a_take_over_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner: Any = await connect(f"embedded:{tmp_path}")
    await owner.ensure_topic(Topic(TOPIC, partitions=1))
    await acquired(await owner.join(spec()))
    disk = Disk()
    disk.install(monkeypatch)
    heir = await connect(f"embedded:{tmp_path}")
    consumer = await heir.join(spec())
    disk.how, disk.fails_at = "disk full", disk.writes + 2  # the first is its BEGIN
    for member in list(owner._members._own.values()):
        owner._members.leave(member)  # As the kernel would, when it is killed.
    assert (await acquired(consumer)).epoch == 2
    assert disk.failures == 4
    assert "cannot take over, trying again" in caplog.text
    await heir.aclose()
    await owner.aclose()


async def test_a_member_with_a_stuck_handler_keeps_its_partitions_beyond_the_lease(
    tmp_path: Path,
) -> None:
    limits = Limits(lease_s=0.4, stall_s_max=0.2, drain_s=0.05)
    app = App(f"embedded:{tmp_path}", partitions=1, limits=limits)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.subscribe(Step, group=GROUP)
    async def ignore_everything(step: Step, ctx: Context) -> None:
        begun.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    async with app:
        with pytest.raises(HandlerStuck):
            await handle_one(app, begun)
        members = embedded(app)._members
        heir = await connect(f"embedded:{tmp_path}", limits=limits)
        consumer = await heir.join(spec(app="app", types=((TOPIC, "Step"),)))
        waiting = asyncio.ensure_future(acquired(consumer))
        await asyncio.wait((waiting,), timeout=3 * limits.lease_s)
        assert not waiting.done(), "it was taken over while its handler was running"
    assert not waiting.done(), "the connection is closed, and the handler is still running"
    for member in list(members._own.values()):
        members.leave(member)  # As the exit of the process does.
    members.close()
    assert (await waiting).epoch == 2
    go_on.set()
    await heir.aclose()


async def handle_one(app: App, begun: asyncio.Event) -> None:
    async with app.handling():
        await app.publish(Step("a", 0))
        await begun.wait()


@pytest.mark.parametrize("fails", [False, True], ids=["is done", "fails"])
async def test_a_list_whose_partition_is_lost_while_it_runs_counts_for_what_is_left(
    fails: bool, other: Any, tmp_path: Path
) -> None:
    app = App(f"embedded:{tmp_path / 'log'}", partitions=2)
    begun, go_on = asyncio.Event(), asyncio.Event()
    lists: list[list[int]] = []

    @app.subscribe(Step, group=GROUP, batch=Batch(len(KEYS)), concurrency=1)
    async def handle(steps: list[Step], contexts: list[Context]) -> None:
        lists.append(sorted(each.message.partition for each in contexts))
        if len(lists) == 1:
            begun.set()
            await go_on.wait()
            if fails:
                raise ValueError

    async with app:
        await app.publish_many([Step(key, 0) for key in KEYS])
        async with app.handling():
            await begun.wait()
            (places,) = lists
            assert set(places) == {0, 1}
            stranger = other._members.join(group=GROUP, host="here", app="other")
            await give_to(app, stranger.id, partition=0)
            lost = places.count(0)
            await until(lambda: len(app._dispatchers[0]._partitions) == 1, "that it is lost")
            go_on.set()

            async def is_settled() -> bool:
                return (await app.status()).groups[GROUP].done == len(KEYS) - lost

            await until(is_settled, "that what is left is done")
        account = (await app.status()).groups[GROUP]
        (epoch,) = (
            file_of(app)
            .reader.execute("SELECT epoch FROM progress WHERE partition = 0 AND watermark = 0")
            .fetchone()
        )
    assert (account.done, account.open, account.dead) == (len(KEYS) - lost, lost, 0)
    assert epoch == 2
    assert lists[1:] == ([[1]] * (len(KEYS) - lost) if fails else [])
