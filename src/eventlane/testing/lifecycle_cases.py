"""Cases about whole groups: where they go on, what they are called, that they end."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from eventlane.app import App
from eventlane.broker import Broker, Consumer
from eventlane.errors import Fenced, NotFound, Refused
from eventlane.handler import Context
from eventlane.message import Record
from eventlane.notice import DeadLettered
from eventlane.retry import Retry
from eventlane.settlement import Acquired, Command, LaneState, Lost
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    TOPIC,
    Boom,
    Factory,
    Step,
    acquired,
    attempts,
    changes_until,
    joined,
    letter,
    record,
    refused,
    settlement,
    spec,
    until,
)
from eventlane.topic import Topic

_RECORDS = [record("k", str(number)) for number in range(10)]


async def _troubled(broker: Broker, *, group: str = GROUP) -> tuple[Consumer, Acquired]:
    """A group that has of 10 events handled 0, buried 1 behind which 2 and 3 are parked, skipped 4,
    failed at 5 and settled 7; 6, 8 and 9 wait.
    """
    consumer, own = await joined(broker, group)
    await consumer.settle(
        [
            settlement(
                own,
                5,
                settled=((7, 8),),
                done=2,
                skipped=1,
                dispatched=7,
                dead=[letter(own, 1, _RECORDS[1], group=group)],
                parked=[(b"k", offset, _RECORDS[offset]) for offset in (2, 3)],
                lanes=[LaneState(b"k", parked=2, head=2, due_ms=None, blockers=(1,), gaps=(1,))],
                attempts=[attempts(5, 2, lane=b"k")],
            )
        ]
    )
    return consumer, own


async def _log(broker: Broker, *, partitions: int = 1) -> None:
    await broker.ensure_topic(Topic(TOPIC, partitions=partitions))
    await broker.append([(TOPIC, _RECORDS)])


async def _letters(broker: Broker, group: str = GROUP) -> list[UUID]:
    return [each.id for each in await broker.dead_letters(group=group, state=None)]


async def a_reset_begins_a_new_era_of_the_account(make: Factory) -> None:
    """After a reset the account counts from the new place, and dead letters hold up nothing."""
    async with make() as broker:
        await _log(broker)
        consumer, _ = await _troubled(broker)
        before = (await broker.status()).groups[GROUP]
        assert (before.done, before.parked, before.dead, before.skipped) == (2, 2, 1, 1)
        plan = await broker.reset(GROUP, "first", actor="me", reason="new rules", dry_run=False)
        (part,) = plan.partitions
        assert plan.is_done
        assert (part.from_offset, part.to_offset) == (5, 0)
        # Those with an outcome, parked and dead ones included: 0 to 4, and 7.
        assert (plan.handled_again, plan.passed_over) == (6, 0)
        assert (part.parked_dropped, part.attempts_dropped, part.open_letters) == (2, 1, 1)
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.open) == (10, 10)
        assert (account.done, account.parked, account.dead, account.skipped) == (0, 0, 0, 0)
        assert account.balances
        await consumer.leave()
        own = await acquired(await broker.join(spec()))
        assert (own.watermark, own.settled, own.attempts, own.lanes) == (0, (), (), ())
        assert (own.commands, own.suspects) == ((), ())
        (kept,) = await broker.dead_letters()
        assert (kept.state, kept.on_dead, kept.parked_followers) == ("open", "continue", 0)
        assert kept.record == _RECORDS[1]


async def a_reset_takes_the_partition_from_its_owner(make: Factory) -> None:
    """A reset fences a running owner: it hears so, and goes on from the new place."""
    async with make() as broker, make() as operator:
        await _log(broker)
        consumer, own = await _troubled(broker)
        await operator.reset(GROUP, {(TOPIC, 0): 3}, actor="me", reason="x", dry_run=False)
        late = settlement(own, 6, done=1)
        fenced = await refused(Fenced, lambda: consumer.settle([late]), GROUP)
        assert fenced.partitions == ((TOPIC, 0),)
        found = await changes_until(
            consumer, lambda found: any(isinstance(each, Acquired) for each in found)
        )
        (again,) = [each for each in found if isinstance(each, Acquired)]
        assert Lost(TOPIC, 0) in found[: found.index(again)]
        assert (again.watermark, again.settled) == (3, ())
        assert again.epoch > own.epoch
        await consumer.settle([settlement(again, 10, done=7)])
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.done, account.open) == (7, 7, 0)


async def a_reset_ahead_says_how_many_events_are_passed_over(make: Factory) -> None:
    """A reset ahead counts what is not handled, parked events included, and closes nothing."""
    async with make() as broker:
        await _log(broker)
        await _troubled(broker)
        plan = await broker.reset(GROUP, {(TOPIC, 0): 9}, actor="me", reason="x", dry_run=False)
        # 5, 6 and 8 without an outcome, 2 and 3 parked; 7 had one.
        assert (plan.handled_again, plan.passed_over) == (0, 5)
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.waiting) == (1, 1)
        plan = await broker.reset(GROUP, "now", actor="me", reason="x", dry_run=False)
        assert (plan.handled_again, plan.passed_over) == (0, 1)
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.open) == (0, 0)


async def a_reset_to_a_time_starts_at_what_the_log_took_then(make: Factory) -> None:
    """A reset to a time starts at the first event that the log took at or after it."""
    clock = ManualClock()
    start_ms = clock.now_ms()
    async with make(clock=clock) as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        for number in range(5):
            at_ms = clock.now_ms()
            await broker.append(
                [(TOPIC, [record("k", str(number), time_ms=at_ms - back) for back in (2, 0)])]
            )
            clock.advance(10)
        await broker.join(spec(start="now"))

        async def reset_to(after_s: float) -> int:
            to = datetime.fromtimestamp(start_ms / 1000, UTC) + timedelta(seconds=after_s)
            plan = await broker.reset(GROUP, to, actor="me", reason="x", dry_run=True)
            return plan.partitions[0].to_offset

        assert await reset_to(-100) == 0
        assert await reset_to(5) == 2
        assert await reset_to(19.998) == 4
        assert await reset_to(20) == 5  # of the batch of that moment one event is older
        assert await reset_to(20.001) == 6
        assert await reset_to(1000) == 10
        # What was imported is older than its batch, and not left out.
        await broker.append([(TOPIC, [record("k", "old", time_ms=1)] * 3)])
        assert await reset_to(50) == 10


async def a_reset_to_an_offset_moves_that_partition_and_no_other(make: Factory) -> None:
    """A reset that names partitions leaves the others as they are."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=2))
        await broker.append([(TOPIC, [record(f"k{number}", "x") for number in range(40)])])
        (_, first_end), (_, second_end) = await broker.ends(TOPIC)
        consumer = await broker.join(spec())
        found = await changes_until(consumer, lambda found: len(found) >= 2)
        owned = {each.partition: each for each in found if isinstance(each, Acquired)}
        await consumer.settle(
            [
                settlement(owned[0], first_end, done=first_end),
                settlement(owned[1], second_end, done=second_end),
            ]
        )
        await broker.reset(GROUP, {(TOPIC, 1): 2}, actor="me", reason="x", dry_run=False)
        account = (await broker.status()).groups[GROUP]
        assert (account.done, account.waiting) == (first_end, second_end - 2)
        assert account.balances
        # The owner of the other one settles on.
        await consumer.settle([settlement(owned[0], first_end)])


async def a_reset_names_the_offsets_that_the_log_has(make: Factory) -> None:
    """A reset to what is not there is refused with what is, and changes nothing."""
    async with make() as broker:
        await _log(broker)
        _, own = await _troubled(broker)

        async def reset(group: str, to: dict[tuple[str, int], int]) -> object:
            return await broker.reset(group, to, actor="me", reason="x", dry_run=False)

        await refused(NotFound, lambda: reset("grup", {(TOPIC, 0): 1}), f"Did you mean '{GROUP}'")
        await refused(NotFound, lambda: reset(GROUP, {("step", 0): 1}), f"Did you mean '{TOPIC}'")
        await refused(NotFound, lambda: reset(GROUP, {(TOPIC, 1): 1}), "0 to 0", "got 1")
        for offset in (-1, 11):
            call = partial(reset, GROUP, {(TOPIC, 0): offset})
            await refused(Refused, call, "from 0", "to 10", f"got {offset}")
        assert (await broker.status()).groups[GROUP].dead == 1
        assert own.epoch == 1


async def a_dry_run_of_a_reset_says_what_it_would_do_and_changes_nothing(make: Factory) -> None:
    """A dry run of a reset gives the same figures, and the owner goes on undisturbed."""
    async with make() as broker:
        await _log(broker)
        consumer, own = await _troubled(broker)
        before = (await broker.status()).groups[GROUP]
        planned = await broker.reset(GROUP, {(TOPIC, 0): 3}, actor="me", reason="", dry_run=True)
        assert not planned.is_done
        assert (await broker.status()).groups[GROUP] == before
        await consumer.settle([settlement(own, 5, settled=((7, 8),))])
        done = await broker.reset(GROUP, {(TOPIC, 0): 3}, actor="me", reason="x", dry_run=False)
        assert done == msgspec.structs.replace(planned, is_done=True)
        # Handled again are 3 (parked), 4 and 7; passed over is 2, which was parked.
        assert (done.handled_again, done.passed_over) == (3, 1)


async def a_reset_opens_letters_that_are_being_replayed(make: Factory) -> None:
    """A letter that is being replayed is open again after a reset, and no owner is told of it."""
    async with make() as broker:
        await _log(broker)
        consumer, _ = await _troubled(broker)
        ids = await _letters(broker)
        operation = await broker.replay(ids, actor="me", reason="x")
        await broker.reset(GROUP, "now", actor="me", reason="x", dry_run=False)
        (kept,) = await broker.dead_letters()
        assert (kept.state, kept.on_dead) == ("open", "continue")
        ended = await broker.operation(operation)
        assert (ended.has_ended, ended.total, ended.returned) == (True, 1, 1)
        await consumer.leave()
        consumer, own = await joined(broker)
        assert own.commands == ()
        assert (await broker.status()).groups[GROUP].pending == 0
        # It may be replayed again, and is in no account.
        operation = await broker.replay(ids, actor="me", reason="x")
        await broker.reset(GROUP, {(TOPIC, 0): 10}, actor="me", reason="x", dry_run=False)
        assert (await broker.operation(operation)).has_ended
        await broker.archive(ids, actor="me", reason="x")
        account = (await broker.status()).groups[GROUP]
        assert (account.entered, account.dead, account.archived) == (0, 0, 0)
        assert account.balances


async def a_renamed_group_keeps_all_that_it_has(make: Factory) -> None:
    """A renamed group goes on where it was, and its dead letters have the new name."""
    async with make() as broker:
        await _log(broker)
        consumer, own = await _troubled(broker)
        ids = await _letters(broker)
        await broker.replay(ids, actor="me", reason="x")
        before = (await broker.status()).groups[GROUP]
        await consumer.leave()
        await broker.rename_group(GROUP, "renamed", actor="me", reason="it does more by now")
        status = await broker.status()
        assert set(status.groups) == {"renamed"}
        account = status.groups["renamed"]
        assert (account.done, account.parked, account.dead) == (before.done, 2, 1)
        assert account.pending == before.pending
        (kept,) = await broker.dead_letters(group="renamed", state=None)
        assert (kept.id, kept.group, kept.state) == (ids[0], "renamed", "replaying")
        consumer, again = await joined(broker, "renamed")
        assert (again.watermark, again.settled) == (5, ((7, 8),))
        assert [each.count for each in again.attempts] == [2]
        assert [each.blockers for each in again.lanes] == [(1,)]
        assert again.epoch > own.epoch
        commands = list(again.commands)
        if not commands:
            commands = [
                each
                for each in await changes_until(
                    consumer, lambda found: any(isinstance(each, Command) for each in found)
                )
                if isinstance(each, Command)
            ]
        assert [each.letter.group for each in commands] == ["renamed"]
        parked = await consumer.fetch_parked(TOPIC, 0, b"k", 1, 10)
        assert [each.offset for each in parked] == [2, 3]


async def a_group_that_is_handled_is_neither_renamed_nor_removed(make: Factory) -> None:
    """While processes handle a group it keeps its name; a name that is taken is refused."""
    async with make() as broker, make() as other:
        await _log(broker)
        consumer, _ = await _troubled(broker)
        taken, _ = await _troubled(broker, group="taken")

        async def rename(new: str) -> None:
            await other.rename_group(GROUP, new, actor="me", reason="x")

        async def remove() -> object:
            return await other.remove_group(GROUP, actor="me", reason="x", dry_run=False)

        await refused(Refused, lambda: rename("renamed"), GROUP, "live member")
        await refused(Refused, remove, GROUP, "live member")
        await consumer.leave()
        await refused(Refused, lambda: rename("taken"), "'taken'", "exists")
        await taken.leave()
        await refused(Refused, lambda: rename("taken"), "'taken'", "exists")
        await rename("renamed")
        await refused(NotFound, remove, GROUP)


async def a_removed_group_leaves_nothing_but_its_audit_and_the_log(make: Factory) -> None:
    """Removing a group says what is lost; a group of its name is new, and others keep theirs."""
    async with make() as broker:
        await _log(broker)
        consumer, _ = await _troubled(broker)
        await _troubled(broker, group="bystander")
        both = [*await _letters(broker), *await _letters(broker, "bystander")]
        operation = await broker.replay(both, actor="me", reason="x")
        planned = await broker.remove_group(GROUP, actor="me", reason="", dry_run=True)
        assert GROUP in (await broker.status()).groups
        await consumer.leave()
        plan = await broker.remove_group(GROUP, actor="me", reason="x", dry_run=False)
        assert plan == msgspec.structs.replace(planned, is_done=True)
        assert (plan.topics, plan.open, plan.parked) == ((TOPIC,), 4, 2)
        assert (plan.letters, plan.open_letters, plan.attempts) == (1, 1, 1)
        status = await broker.status()
        assert set(status.groups) == {"bystander"}
        assert (status.groups["bystander"].dead, status.groups["bystander"].parked) == (1, 2)
        (left,) = await broker.dead_letters(state=None)
        assert (left.group, left.state) == ("bystander", "replaying")
        asked = await broker.operation(operation)
        assert (set(asked.groups), asked.total, asked.returned) == ({GROUP, "bystander"}, 2, 1)
        own = await acquired(await broker.join(spec()))
        assert (own.watermark, own.lanes, own.attempts, own.commands) == (0, (), (), ())
        records: list[Record] = list((await broker.fetch(TOPIC, 0, 0, 100)).records)
        assert records == _RECORDS


# --- with handlers ----------------------------------------------------------------------------


async def a_reset_while_handlers_run_handles_each_event_once_more(make: Factory) -> None:
    """A reset cancels what runs, and each event from the new place on is handled exactly once."""
    app = make.app(partitions=2)
    gate = asyncio.Event()
    handled: list[tuple[str, int]] = []
    cancelled: list[str] = []
    begun: list[str] = []

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, _: Context[Any]) -> None:
        if step.number == 5:
            begun.append(step.key)
            try:
                await gate.wait()
            except asyncio.CancelledError:
                cancelled.append(step.key)
                raise
        handled.append((step.key, step.number))

    keys = "abcd"
    async with app, app.handling():
        await app.publish_many([Step(key, number) for number in range(10) for key in keys])
        await until(lambda: len(begun) == len(keys), "one event of each key to run")
        await until(lambda: len(handled) == 5 * len(keys), "those before it to be handled")
        await app.reset(GROUP, "first", reason="new rules")
        handled.clear()
        gate.set()

        async def all_are_done() -> bool:
            return (await app.status()).groups[GROUP].done == 10 * len(keys)

        await until(all_are_done, "all events to be handled in the new era")
        assert sorted(cancelled) == list(keys)
        for key in keys:
            assert [number for one, number in handled if one == key] == list(range(10))
        account = (await app.status()).groups[GROUP]
        assert (account.entered, account.open) == (40, 0)
        assert account.balances


async def _last_notices(app: App, group: str = GROUP) -> dict[int, str]:
    """For each event that died in a group the id of its letter, as the last notice has it."""
    found = [app.decode(each, DeadLettered) async for each in app.read(f"{TOPIC}.{group}.dlq")]
    return {each.offset: each.id for each in found}


async def an_event_that_dies_again_after_a_reset_opens_its_letter_again(make: Factory) -> None:
    """An event has one letter, which opens again in the new era, whatever had become of it."""
    failing = True
    app = make.app(partitions=1, allow_edit=True)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
    async def handle(_step: Step, _: Context[Any]) -> None:
        if failing:
            raise Boom

    async with app:
        await app.publish_many([Step(key, 0) for key in "abcd"])
        await app.run_until_idle(PATIENCE_S)
        _, resolved, archived, edited = before = await app.dead_letters()
        failing = False
        await app.archive(archived, reason="of no use")
        await app.replay(resolved, reason="mended")
        await app.edit_and_replay(edited, {"key": "d", "number": 7}, reason="a typo")
        await app.run_until_idle(PATIENCE_S)
        failing = True
        await app.reset(GROUP, "first", reason="new rules")
        await app.run_until_idle(PATIENCE_S)
        letters = await app.dead_letters()
        assert [each.offset for each in letters] == [0, 1, 2, 3]
        assert [each.id for each in letters[:3]] == [each.id for each in before[:3]]
        # The event itself has died, not what it was edited to.
        assert letters[3].record == edited.record
        assert letters[3].edited_from is None
        assert await _last_notices(app) == {each.offset: str(each.id) for each in letters}
        failing = False
        await app.replay(letters, reason="mended", allow_gap=True)
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.entered, account.done, account.edited, account.dead) == (4, 4, 0, 0)
        assert account.balances


async def a_group_with_the_former_name_of_another_has_letters_of_its_own(make: Factory) -> None:
    """An event that is dead in a renamed group may die in a new group of the former name too."""
    former: list[UUID] = []
    for _ in range(2):
        async with (app := make.app(partitions=1)):

            @app.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
            async def handle(_step: Step, _: Context[Any]) -> None:
                raise Boom

            if former:
                await app.run_until_idle(PATIENCE_S)
                letters = await app.dead_letters(group=GROUP)
                assert [each.offset for each in letters] == [0, 1]
                assert [each.id for each in await app.dead_letters(group="renamed")] == former
                assert not {each.id for each in letters}.intersection(former)
                assert await _last_notices(app) == {each.offset: str(each.id) for each in letters}
                continue
            await app.publish_many([Step("a", 0), Step("b", 0)])
            await app.run_until_idle(PATIENCE_S)
            former = [each.id for each in await app.dead_letters()]
            await app.rename_group(GROUP, "renamed", reason="its results are kept")


async def a_letter_of_a_renamed_handler_is_replayed_by_its_successor(make: Factory) -> None:
    """A handler that has another name by now still gets the letters of the one before it."""
    async with (one := make.app(partitions=1)):

        @one.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
        async def reserve(step: Step, _: Context[Any]) -> None:
            raise Boom(step.key)

        await one.publish_many([Step("a", 0), Step("a", 1)])
        await one.run_until_idle(PATIENCE_S)
        (letter,) = await one.dead_letters()
    assert letter.handler.endswith("reserve")
    numbers: list[int] = []
    async with (two := make.app(partitions=1)):

        @two.subscribe(Step, group=GROUP, retry=Retry(attempts=1))
        async def reserve_stock(step: Step, ctx: Context[Any]) -> None:
            numbers.append(step.number)
            if ctx.replayed and len(numbers) == 1:
                raise Boom("not yet")

        await two.replay(letter, reason="mended")
        await two.run_until_idle(PATIENCE_S)
        (again,) = await two.dead_letters()
        assert (again.id, again.replay_count) == (letter.id, 1)
        await two.replay(again, reason="mended")
        await two.run_until_idle(PATIENCE_S)
        account = (await two.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (2, 0, 0)
        assert account.balances
    assert numbers == [0, 0, 1]


async def a_letter_of_a_renamed_group_is_replayed_under_its_new_name(make: Factory) -> None:
    """What was dead and parked before a group was renamed runs under its new name."""
    failing = True
    numbers: list[int] = []

    async def handle(step: Step, _: Context[Any]) -> None:
        if failing:
            raise Boom
        numbers.append(step.number)

    for group in (GROUP, "renamed"):
        async with (app := make.app(partitions=1)):
            app.subscribe(Step, group=group, retry=Retry(attempts=1))(handle)
            if failing:
                await app.publish_many([Step("a", number) for number in range(3)])
                await app.run_until_idle(PATIENCE_S)
                await app.rename_group(GROUP, "renamed", reason="it does more")
                failing = False
                continue
            await app.publish(Step("a", 3))
            (letter,) = await app.dead_letters(group="renamed")
            await app.replay(letter, reason="mended")
            await app.run_until_idle(PATIENCE_S)
            account = (await app.status()).groups["renamed"]
            assert (account.entered, account.done, account.open) == (4, 4, 0)
            assert account.balances
    assert numbers == [0, 1, 2, 3]
