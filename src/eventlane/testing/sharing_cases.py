"""Cases about several members of one group: what each has, and what becomes of it as they change.

Each member here is a process as far as the broker can tell: it opens the storage for itself.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack

import msgspec

from eventlane.app import App
from eventlane.broker import Consumer
from eventlane.clock import SystemClock, sleep
from eventlane.errors import ConfigError, NotFound, Refused
from eventlane.event import event
from eventlane.handler import Context
from eventlane.retry import Retry
from eventlane.settlement import Acquired, Revoked
from eventlane.testing.stage import (
    GROUP,
    TOPIC,
    Boom,
    Factory,
    Journal,
    Step,
    acquired,
    changes_until,
    record,
    refused,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic


async def what_is_given_up_goes_to_the_member_that_waits_for_it(make: Factory) -> None:
    """Of its partitions an owner is told to give up what others are to have, and no others move."""
    async with make() as one, make() as two:
        await one.ensure_topic(Topic(TOPIC, partitions=4))
        first = await one.join(spec())
        await changes_until(first, lambda found: len(found) == 4)
        second = await two.join(spec())
        told = await changes_until(first, lambda found: len(found) == 2)
        assert all(isinstance(each, Revoked) for each in told)
        for each in told:
            await first.release(each.topic, each.partition)
        moved = await changes_until(second, lambda found: len(found) == 2)
        assert {(each.topic, each.partition) for each in moved} == {
            (each.topic, each.partition) for each in told
        }
        await second.leave()
        back = await changes_until(first, lambda found: len(found) == 2)
        assert all(isinstance(each, Acquired) for each in back)


async def members_of_a_group_share_its_partitions_evenly(make: Factory) -> None:
    """Three members share ten partitions as 4, 3 and 3; when one goes, the others have all."""
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(make()) for _ in range(3)]
        await brokers[0].ensure_topic(Topic(TOPIC, partitions=10))
        members = [await _Sharing.join(await each.join(spec())) for each in brokers]
        try:
            await until(
                lambda: sorted(len(each.owned) for each in members) == [3, 3, 4],
                "4, 3 and 3 partitions",
            )
            moved = sum(each.revoked for each in members)
            assert moved <= 9, f"expected that no more moves than is needed, got {moved}"
            await members[0].leave()
            await until(
                lambda: sorted(len(each.owned) for each in members[1:]) == [5, 5],
                "5 and 5 partitions",
            )
            assert sum(each.revoked for each in members) == moved
        finally:
            for each in members:
                await each.leave()


class _Sharing:
    """A member that gives up what it is told to, at once."""

    def __init__(self, consumer: Consumer) -> None:
        self.owned: set[tuple[str, int]] = set()
        self.revoked = 0
        self._consumer = consumer
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def join(cls, consumer: Consumer) -> "_Sharing":
        """Follow what a consumer is told."""
        member = cls(consumer)
        member._task = asyncio.create_task(member._follow())
        return member

    async def leave(self) -> None:
        """Leave the group. Safe to call twice."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.owned.clear()
        await self._consumer.leave()

    async def _follow(self) -> None:
        while True:
            for change in await self._consumer.changes():
                if isinstance(change, Acquired):
                    self.owned.add((change.topic, change.partition))
                elif isinstance(change, Revoked):
                    self.revoked += 1
                    self.owned.discard((change.topic, change.partition))
                    await self._consumer.release(change.topic, change.partition)


async def a_partition_moves_only_after_its_running_handlers_have_ended(make: Factory) -> None:
    """A handler that runs keeps its partition, however many members wait; others move meanwhile."""
    may_end, running = asyncio.Event(), asyncio.Event()
    here: list[str] = []
    there: list[str] = []

    async def slow(step: Step, _ctx: Context) -> None:
        running.set()
        await may_end.wait()
        here.append(step.key)

    async def fast(step: Step, _ctx: Context) -> None:
        there.append(step.key)

    one, two = make.app(partitions=2), make.app(partitions=2)
    one.subscribe(Step, group=GROUP)(slow)
    two.subscribe(Step, group=GROUP)(fast)
    async with one, one.handling():
        published = [await one.publish(Step(f"k{number}", 0)) for number in range(20)]
        assert {each.partition for each in published} == {0, 1}
        await running.wait()
        async with two, two.handling():
            for number in range(20):
                await two.publish(Step(f"k{number}", 1))
            await sleep(0.6)
            assert there == [], "expected that nothing moves while its handler runs"
            may_end.set()
            await until(lambda: len(here) + len(there) == 40, "all to be handled")
            assert 0 < len(there) < 40, "expected that one partition moved"


async def members_that_come_and_go_lose_nothing_and_keep_the_order_of_keys(make: Factory) -> None:
    """While members come and go each event is handled, once, and those of a key in order."""
    journal = Journal(SystemClock())
    keys, count = [f"k{number}" for number in range(20)], 30

    def app() -> App:
        member = make.app(partitions=8)

        @member.subscribe(Step, group=GROUP)
        async def handle(step: Step, ctx: Context) -> None:
            journal.note(step, ctx)
            await sleep(0.001)

        return member

    async def come_and_go() -> None:
        async with app() as member:
            for _ in range(2):
                async with member.handling():
                    await sleep(0.35)

    async with app() as first, first.handling():
        others = [asyncio.create_task(come_and_go()) for _ in range(2)]
        for number in range(count):
            await first.publish_many(Step(key, number) for key in keys)
            await sleep(0.02)
        await asyncio.gather(*others)
        await until(lambda: len(journal.runs) >= len(keys) * count, "all to be handled")
        await until(lambda: _all_done(first, len(keys) * count), "all to be settled")
    for key in keys:
        assert journal.numbers(key) == list(range(count))


async def _all_done(app: App, count: int) -> bool:
    account = (await app.status()).groups[GROUP]
    assert account.balances
    return account.done == count


async def retries_and_dead_letters_move_with_their_partition(make: Factory) -> None:
    """A held retry, its attempts, and a lane that a dead letter closes go on with the next one."""
    journal = Journal(SystemClock())

    async def handle(step: Step, ctx: Context) -> None:
        journal.note(step, ctx)
        if step.number == 0 and not ctx.replayed:
            raise Boom

    def app() -> App:
        member = make.app(partitions=1)
        member.subscribe(Step, group=GROUP, retry=Retry(attempts=3, delay_s=0.6, jitter=0))(handle)
        return member

    one, two = app(), app()
    async with two:
        async with one, one.handling():
            await one.publish_many(Step("a", number) for number in range(3))
            await until(lambda: len(journal.runs) == 2, "two runs")
        async with two.handling():
            await until(lambda: _count(two, "dead", 1), "a dead letter")
            assert [run.attempt for run in journal.of("a")] == [1, 2, 3]
            await two.replay(await two.dead_letters(), reason="mended", actor="me")
            await until(lambda: _count(two, "done", 3), "all to be done")
    assert journal.numbers("a") == [0, 0, 0, 0, 1, 2]


async def _count(app: App, name: str, count: int) -> bool:
    found: int = getattr((await app.status()).groups[GROUP], name)
    return found == count


@event(topic=TOPIC, key="key")
class Other(msgspec.Struct, frozen=True):
    """Another event type on the same topic."""

    key: str
    number: int


async def a_member_without_a_handler_for_a_type_leaves_it_to_those_that_have_one(
    make: Factory,
) -> None:
    """In a rolling deploy an old member skips no event of a type that only new members handle."""
    handled: list[tuple[str, str, int]] = []

    def app(version: str, kinds: Sequence[type]) -> App:
        member = make.app(partitions=2)

        async def handle(event: Step | Other, _ctx: Context) -> None:
            handled.append((version, type(event).__name__, event.number))

        for kind in kinds:
            member.subscribe(kind, group=GROUP)(handle)
        return member

    old, new = app("old", [Step]), app("new", [Step, Other])
    count = 20
    async with old, new, old.handling(), new.handling():
        for number in range(count):
            await new.publish(Step(f"k{number}", number))
            await new.publish(Other(f"k{number}", number))
        await until(lambda: _count(new, "done", 2 * count), "all to be handled")
        assert (await new.status()).groups[GROUP].skipped == 0
    assert sorted(number for _, kind, number in handled if kind == "Other") == list(range(count))
    assert {version for version, kind, _ in handled if kind == "Other"} == {"new"}


async def apps_of_other_names_and_handlers_are_refused_and_new_versions_are_not(
    make: Factory,
) -> None:
    """Two apps cannot run one group with different handlers; one app's next version can."""
    async with make() as one, make() as two:
        await one.ensure_topic(Topic(TOPIC, partitions=1))
        await one.append([(TOPIC, [record("a", "1")])])
        first = await one.join(spec(app="shop"))
        own = await acquired(first)
        other = spec(app="billing", types=((TOPIC, "Paid"),))
        await refused(ConfigError, lambda: two.join(other), "'shop'", "'billing'", "Paid", "Thing")
        next_version = await two.join(spec(app="shop", types=((TOPIC, "Paid"),)))
        await first.settle([settlement(own, 1, done=1)])
        await next_version.leave()
        await first.leave()
        assert (await acquired(await two.join(other))).watermark == 1


async def a_type_that_a_live_member_handles_is_not_forgotten(make: Factory) -> None:
    """Only what nobody alive handles can be forgotten; a wrong name is told the nearest."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        member = await broker.join(spec(types=((TOPIC, "Thing"), (TOPIC, "Paid"))))
        await acquired(member)

        def forget(group: str, event_type: str) -> Awaitable[None]:
            return broker.forget_type(group, event_type, actor="me", reason="no longer sent")

        await refused(Refused, lambda: forget(GROUP, "Paid"), "'Paid'", "process", "app")
        await refused(NotFound, lambda: forget(GROUP, "Payd"), "Did you mean 'Paid'?")
        await refused(NotFound, lambda: forget("grop", "Paid"), GROUP)
        await member.leave()
        await refused(NotFound, lambda: forget(GROUP, "Paid"), "recorded with none")
