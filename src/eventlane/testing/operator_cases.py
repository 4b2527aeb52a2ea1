"""Cases about dead letters on the broker: who may change them, and what owners are told."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from eventlane.broker import Broker, Consumer
from eventlane.errors import Conflict, NotFound, Refused
from eventlane.message import derived_id
from eventlane.settlement import Acquired, Command, LaneState, LetterChange
from eventlane.testing.stage import (
    GROUP,
    Factory,
    acquired,
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

_RECORDS = [record(f"k{number % 2}", str(number)) for number in range(6)]


@asynccontextmanager
async def _group_with_letters(
    broker: Broker, *, group: str = GROUP, on_dead: str = "continue"
) -> AsyncGenerator[tuple[Consumer, Acquired]]:
    """A group in which events 0 to 3 are dead."""
    consumer, own = await joined(broker, group)
    lanes: list[LaneState] = []
    dead = [
        letter(own, offset, _RECORDS[offset], group=group, on_dead="continue")
        for offset in range(4)
    ]
    if on_dead == "park":
        dead = [msgspec.structs.replace(each, on_dead="park") for each in dead]
        lanes = [LaneState(lane=b"k0", blockers=(0, 2)), LaneState(lane=b"k1", blockers=(1, 3))]
    await consumer.settle([settlement(own, 4, dead=dead, lanes=lanes)])
    yield consumer, own


async def _log(broker: Broker) -> None:
    await fill(broker, _RECORDS)


async def _ids(broker: Broker, group: str = GROUP) -> list[UUID]:
    letters = await broker.dead_letters(group=group, state=None)
    return [each.id for each in sorted(letters, key=lambda each: each.offset)]


async def _commands(consumer: Consumer, count: int) -> list[Command]:
    def enough(found: list[object]) -> bool:
        return sum(isinstance(each, Command) for each in found) >= count

    return [each for each in await changes_until(consumer, enough) if isinstance(each, Command)]


async def of_two_operators_one_wins(make: Factory) -> None:
    """Of two operators who change one letter at once, one wins and the other is told so."""
    async with make() as broker, make() as other:
        await _log(broker)
        async with _group_with_letters(broker):
            ids = await _ids(broker)
            for one in ids:
                answers = await asyncio.gather(
                    broker.replay([one], actor="one", reason="it is mended"),
                    other.archive([one], actor="two", reason="not needed"),
                    return_exceptions=True,
                )
                won = [each for each in answers if isinstance(each, int)]
                lost = [each for each in answers if not isinstance(each, int)]
                assert len(won) == len(lost) == 1
                assert isinstance(lost[0], Conflict | Refused)
                assert str(one) in str(lost[0])
                assert "one" in str(lost[0]) or "two" in str(lost[0])
            again = await asyncio.gather(
                *(each.replay(ids[:1], actor="me", reason="x") for each in (broker, other)),
                return_exceptions=True,
            )
            assert all(isinstance(each, Conflict | Refused) for each in again)


async def a_letter_that_has_changed_since_it_was_seen_is_refused(make: Factory) -> None:
    """A letter whose version is not the one that was seen is refused, and who changed it is said.

    Where no version is given, its state alone decides.
    """
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker):
            versions = {each.id: each.version for each in await broker.dead_letters()}
            ids = await _ids(broker)
            one = ids[1]
            await broker.archive([one], actor="bob", reason="x")
            await broker.restore([one], actor="bob", reason="x")
            by: dict[str, Any] = {"actor": "me", "reason": "x"}
            edit = partial(broker.edit, one, _RECORDS[4], diff="{}", version=versions[one], **by)
            for call in (
                partial(broker.replay, ids, versions=versions, **by),
                partial(broker.archive, ids, versions=versions, **by),
                edit,
            ):
                await refused(Conflict, call, str(one), "bob", "version 1, got 3")
            assert (await broker.plan_replay(ids, versions=versions)).refusal_count == 1
            assert len(await broker.dead_letters(state="open")) == 4
            await broker.archive([one], actor="eve", reason="x")
            call = partial(broker.restore, [one], versions={one: 3}, **by)
            await refused(Conflict, call, str(one), "eve")
            await broker.restore([one], versions={one: 4}, **by)
            await broker.replay([ids[0], one], versions={ids[0]: 1}, **by)


async def a_replay_into_a_group_that_nobody_handles_can_still_be_cancelled(make: Factory) -> None:
    """A replay into a group without a member releases nothing: it can be cancelled as a whole."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker) as (consumer, _):
            ids = await _ids(broker)
            await consumer.leave()
            operation = await broker.replay(ids, actor="me", reason="x")
            await broker.pause_operation(operation, actor="me", reason="x")
            await broker.resume_operation(operation, actor="me", reason="x")
            status = await broker.operation(operation)
            assert (status.pending, status.released) == (4, 0)
            assert status.waiting_for == f"group '{GROUP}' has no live member"
            await broker.cancel_operation(operation, actor="me", reason="not now")
            status = await broker.operation(operation)
            assert (status.has_ended, status.state, status.returned) == (True, "cancelled", 4)
            assert len(await broker.dead_letters(state="open")) == 4
            await broker.replay(ids, actor="me", reason="x")
            again, own = await joined(broker)
            assert own.commands == ()
            await again.advance_operations()
            assert [each.letter.id for each in await _commands(again, 4)] == ids


async def a_replay_that_begins_while_the_last_member_drains_can_still_be_cancelled(
    make: Factory,
) -> None:
    """To a group whose only member drains nothing is released, by that member neither."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker) as (consumer, _):
            consumer.drain()
            operation = await broker.replay(await _ids(broker), actor="me", reason="x")
            await consumer.advance_operations()
            assert (await broker.operation(operation)).released == 0
            await broker.cancel_operation(operation, actor="me", reason="not now")
            status = await broker.operation(operation)
            assert (status.has_ended, status.returned) == (True, 4)


async def an_unknown_letter_changes_nothing(make: Factory) -> None:
    """An operation that names an unknown letter changes none of its letters."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker):
            ids = await _ids(broker)
            unknown = derived_id("no such letter")
            for operation in (broker.replay, broker.archive):
                call = partial(operation, [*ids, unknown], actor="me", reason="x")
                await refused(NotFound, call, str(unknown))
            assert len(await broker.dead_letters(state="open")) == 4
            account = (await broker.status()).groups[GROUP]
            assert (account.dead, account.pending) == (4, 0)


async def a_replay_reaches_only_the_group_that_failed(make: Factory) -> None:
    """A replay is told to the owner in the group that failed, and to no other group."""
    async with make() as broker:
        await _log(broker)
        async with (
            _group_with_letters(broker) as (consumer, _own),
            _group_with_letters(broker, group="bystander") as (bystander, _),
        ):
            ids = await _ids(broker)
            await broker.replay(ids[:2], actor="me", reason="it is mended")
            commands = await _commands(consumer, 2)
            assert [each.kind for each in commands] == ["replay", "replay"]
            assert [each.letter.id for each in commands] == ids[:2]
            assert [each.letter.record for each in commands] == _RECORDS[:2]
            # Told what happens afterwards, the other group has heard nothing else.
            await broker.pause("bystander", actor="me", reason="the end")
            heard = await changes_until(bystander, bool)
            assert not any(isinstance(each, Command) for each in heard)
            accounts = (await broker.status()).groups
            assert (accounts[GROUP].pending, accounts["bystander"].pending) == (2, 0)
            await bystander.leave()
            again = await acquired(await broker.join(spec("bystander")))
            assert again.commands == ()
            states = [
                each.state for each in await broker.dead_letters(group="bystander", state=None)
            ]
            assert states == ["open"] * 4


async def a_command_waits_for_an_owner_and_is_carried_out_once(make: Factory) -> None:
    """A replay that no owner has carried out is there for the next one, until it is done."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker):
            ids = await _ids(broker)
        await broker.replay(ids[:1], actor="me", reason="x")
    async with make() as broker:
        consumer, own = await joined(broker)
        (command,) = own.commands
        assert (command.kind, command.letter.id, command.letter.state) == (
            "replay",
            ids[0],
            "replaying",
        )
        resolved = LetterChange(ids[0], command.letter.offset, b"k0", "resolved", "done")
        await consumer.settle([settlement(own, 4, letters=[resolved], commands=[command.id])])
        account = (await broker.status()).groups[GROUP]
        assert (account.done, account.dead, account.pending) == (1, 3, 0)
        assert account.balances
        await consumer.leave()
        assert (await acquired(await broker.join(spec()))).commands == ()
        (kept,) = await broker.dead_letters(state="resolved")
        assert kept.id == ids[0]


async def a_letter_that_fails_again_is_open_with_a_greater_replay_count(make: Factory) -> None:
    """A replayed letter that fails again is open, with one replay more, and may be replayed."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker) as (consumer, own):
            one = (await _ids(broker))[0]
            for count in (1, 2):
                await broker.replay([one], actor="me", reason="x")
                (command,) = await _commands(consumer, 1)
                failed = letter(
                    own,
                    0,
                    _RECORDS[0],
                    on_dead="continue",
                    replay_count=command.letter.replay_count + 1,
                )
                failed = msgspec.structs.replace(failed, id=one, error_message=f"failure {count}")
                change = LetterChange(one, 0, b"k0", "open", "dead", failed)
                await consumer.settle([settlement(own, 4, letters=[change], commands=[command.id])])
                (kept,) = [each for each in await broker.dead_letters() if each.id == one]
                assert (kept.replay_count, kept.error_message) == (count, f"failure {count}")
                account = (await broker.status()).groups[GROUP]
                assert (account.dead, account.pending) == (4, 0)
                assert account.balances


async def an_archived_letter_opens_its_lane_if_it_closed_it(make: Factory) -> None:
    """Archiving a letter that closes its lane tells the owner to open it; another needs nobody."""
    async with make() as broker:
        await _log(broker)
        async with (
            _group_with_letters(broker),
            _group_with_letters(broker, group="closed", on_dead="park") as (consumer, own),
        ):
            await broker.archive(await _ids(broker), actor="me", reason="x")
            assert (await broker.status()).groups[GROUP].pending == 0
            ids = await _ids(broker, "closed")
            await broker.archive(ids[:1], actor="me", reason="x")
            (command,) = await _commands(consumer, 1)
            assert (command.kind, command.letter.id) == ("open", ids[0])
            account = (await broker.status()).groups["closed"]
            assert (account.archived, account.dead, account.pending) == (1, 3, 1)
            opened = LaneState(lane=b"k0", blockers=(2,), gaps=(0,))
            await consumer.settle([settlement(own, 4, commands=[command.id], lanes=[opened])])
            account = (await broker.status()).groups["closed"]
            assert account.pending == 0
            assert account.balances
            await consumer.leave()
            again = await acquired(await broker.join(spec("closed")))
            blockers = {lane.lane: tuple(lane.blockers) for lane in again.lanes}
            assert blockers == {b"k0": (2,), b"k1": (1, 3)}


async def a_later_letter_is_not_replayed_past_an_earlier_one_of_its_lane(make: Factory) -> None:
    """Replaying a letter past an earlier one that closes their lane is refused."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker, on_dead="park") as (consumer, _):
            ids = await _ids(broker)
            await refused(
                Refused,
                lambda: broker.replay([ids[3], ids[0]], actor="me", reason="x"),
                str(ids[1]),
                str(ids[3]),
            )
            assert len(await broker.dead_letters()) == 4
            await broker.replay([ids[3], ids[1]], actor="me", reason="x")
            assert len(await _commands(consumer, 2)) == 2


async def an_operation_says_what_became_of_its_letters(make: Factory) -> None:
    """An operation has its letters with the state that each is in now."""
    async with make() as broker:
        await _log(broker)
        async with _group_with_letters(broker):
            ids = await _ids(broker)
            operation = await broker.replay(ids[:2], actor="me", reason="x")
            other = await broker.archive(ids[2:], actor="me", reason="y")
            assert await broker.operation_letters(operation) == dict.fromkeys(ids[:2], "replaying")
            assert await broker.operation_letters(other) == dict.fromkeys(ids[2:], "archived")
            await refused(NotFound, lambda: broker.operation_letters(operation + other + 1))


async def dead_letters_are_found_by_group_and_state_and_in_pages(make: Factory) -> None:
    """Dead letters come by group and state, in the order in which they died, page by page."""
    async with make() as broker:
        await _log(broker)
        async with (
            _group_with_letters(broker) as (consumer, own),
            _group_with_letters(broker, group="other"),
        ):
            await consumer.settle(
                [settlement(own, 5, dead=[letter(own, 4, _RECORDS[4], on_dead="continue")])]
            )
            every = await broker.dead_letters(group=GROUP)
            assert offsets_of(every) == [0, 1, 2, 3, 4]
            assert len(await broker.dead_letters()) == 9
            pages: list[UUID] = []
            while page := await broker.dead_letters(
                group=GROUP, limit=2, after=pages[-1] if pages else None
            ):
                assert len(page) <= 2
                pages += [each.id for each in page]
            assert pages == [each.id for each in every]
            await broker.archive(pages[:1], actor="me", reason="x")
            assert [each.id for each in await broker.dead_letters(state="archived")] == pages[:1]
            assert len(await broker.dead_letters(group=GROUP)) == 4
            assert len(await broker.dead_letters(group=GROUP, state=None)) == 5
            assert len(await broker.dead_letters(ids=pages[:3], state=None)) == 3
