"""Operations on the embedded broker, driven without handlers: what is released when, and kept."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.errors import ConfigError, Conflict, NotFound, Refused, StorageError
from eventlane.failure import DeadLetter
from eventlane.message import EVENT_TYPE, Record, encode_headers, event_ids, headers_of
from eventlane.operation import checked_operation_state
from eventlane.query import query_of
from eventlane.replay import Pace
from eventlane.settlement import Acquired, Command, LaneState, LetterChange
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import GROUP, TOPIC, letter, record, settlement, spec
from eventlane.topic import Topic

CANARY = Pace(rate_per_s=None, canary=True, pause_above=None)
CAREFUL = Pace(rate_per_s=None, canary=False, pause_above=0.05)


class Stage:
    """A broker, and a member of a group that settles what the test says."""

    def __init__(self, broker: Any, clock: ManualClock) -> None:
        self.broker = broker
        self.clock = clock
        self.consumer: Any = None
        self.own: dict[int, Acquired] = {}
        self.commands: dict[UUID, Command] = {}
        """Those that it was given and has not carried out."""
        self.given: list[UUID] = []
        """All that it was ever given, in order."""

    async def join(self, name: str = GROUP, **options: Any) -> None:
        self.consumer = await self.broker.join(spec(name, **options))
        await acquired_all(self)

    async def die(
        self, count: int, *, key: Callable[[int], str] = str, on_dead: Any = "continue"
    ) -> list[DeadLetter]:
        """Publish events that die at once; in the order of the log of each partition."""
        records = [record(key(number), "{}") for number in range(count)]
        await self.broker.append([(TOPIC, records)])
        own = self.own[0]
        dead = [letter(own, at, each, on_dead=on_dead) for at, each in enumerate(records)]
        lanes: dict[bytes | int, list[int]] = {}
        for each in dead:
            lanes.setdefault(each.lane, []).append(each.offset)
        closed = [
            LaneState(lane, blockers=tuple(offsets), due_ms=None)
            for lane, offsets in lanes.items()
            if on_dead != "continue"
        ]
        await self.settle(count, dead=dead, lanes=closed)
        return dead

    async def settle(self, watermark: int = 0, **options: Any) -> None:
        self.watermark = max(watermark, getattr(self, "watermark", 0))
        await self.consumer.settle([settlement(self.own[0], self.watermark, **options)])

    async def advance(self) -> int | None:
        due_ms: int | None = await self.consumer.advance_operations()
        return due_ms

    async def released(self) -> list[UUID]:
        """What was given since this was asked last."""
        await take_changes(self)
        new = self.given[getattr(self, "seen", 0) :]
        self.seen = len(self.given)
        return new

    async def end(self, ids: Sequence[UUID], outcome: Any = "done", **options: Any) -> None:
        """Carry out commands."""
        await take_changes(self)
        done = [self.commands.pop(each) for each in ids]
        changes = [
            LetterChange(
                each.letter.id,
                each.letter.offset,
                each.letter.lane,
                "resolved" if outcome in ("done", "skipped") else "open",
                outcome,
                each.letter if outcome == "dead" else None,
            )
            for each in done
            if each.kind == "replay"
        ]
        await self.settle(letters=changes, commands=[each.id for each in done], **options)

    def lane_of(self, letter_id: UUID) -> bytes | int:
        lane: bytes | int = self.commands[letter_id].letter.lane
        return lane

    async def status(self, operation: int) -> Any:
        return await self.broker.operation(operation)

    async def states(self) -> dict[UUID, str]:
        return {each.id: each.state for each in await self.broker.dead_letters(state=None)}


async def acquired_all(stage: Stage) -> None:
    while not stage.own:
        await take_changes(stage)


async def take_changes(stage: Stage) -> None:
    """Take what the consumer is told; not waiting where there is nothing."""
    waiting = asyncio.ensure_future(stage.consumer.changes())
    await asyncio.wait([waiting], timeout=0.01)
    if not waiting.done():
        waiting.cancel()
        return
    for change in waiting.result():
        found = [change] if isinstance(change, Command) else []
        if isinstance(change, Acquired):
            stage.own[change.partition] = change
            found = list(change.commands)
        for command in found:
            stage.commands[command.letter.id] = command
            stage.given.append(command.letter.id)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = ManualClock()
    broker = await connect(
        f"embedded:{tmp_path}", clock=clock, durability="os", limits=Limits(replays_max=3)
    )
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    stage = Stage(broker, clock)
    await stage.join()
    yield stage
    await broker.aclose()


def ids_of(letters: Sequence[DeadLetter]) -> list[UUID]:
    return [each.id for each in letters]


async def replayed(stage: Stage, what: Any, **options: Any) -> int:
    operation: int = await stage.broker.replay(what, actor="ines", reason="it is mended", **options)
    return operation


# --- pace -------------------------------------------------------------------------------------


async def test_letters_are_released_in_the_order_of_the_log(stage: Stage) -> None:
    ids = ids_of(await stage.die(5))
    operation = await replayed(stage, [ids[3], ids[0], ids[4], ids[1]])
    assert await stage.released() == [ids[0], ids[1], ids[3], ids[4]]
    await stage.end([ids[0], ids[3]])
    await stage.end([ids[1]], "dead")
    await stage.end([ids[4]], "skipped")
    status = await stage.status(operation)
    assert (status.state, status.total, status.resolved, status.failed) == ("done", 4, 3, 1)
    assert status.has_ended
    assert (await stage.states())[ids[2]] == "open"


async def test_a_canary_releases_1_then_10_then_the_rest(stage: Stage) -> None:
    ids = ids_of(await stage.die(30))
    operation = await replayed(stage, ids, pace=CANARY)
    assert await stage.released() == ids[:1]
    assert await stage.advance() is None
    assert await stage.released() == []
    await stage.end(ids[:1])
    await stage.advance()
    assert await stage.released() == ids[1:11]
    await stage.end(ids[1:10])
    await stage.advance()
    assert await stage.released() == [], "one of the second stage has not ended"
    await stage.end(ids[10:11])
    await stage.advance()
    assert await stage.released() == ids[11:]
    status = await stage.status(operation)
    assert (status.state, status.pending, status.released) == ("running", 0, 19)


async def test_a_rate_releases_by_the_clock(stage: Stage) -> None:
    ids = ids_of(await stage.die(20))
    await replayed(stage, ids, pace=Pace(rate_per_s=10, canary=False, pause_above=None))
    assert len(await stage.released()) == 1
    due_ms = await stage.advance()
    assert due_ms is not None
    assert await stage.released() == []
    stage.clock.advance_to(due_ms)
    await stage.advance()
    assert await stage.released() == ids[1:2]
    stage.clock.advance(1000)
    await stage.advance()
    assert 2 <= len(await stage.released()) <= 4, "no more than a quarter of a second at once"


async def test_followers_count_for_the_rate_and_the_end(stage: Stage) -> None:
    ids = ids_of(await stage.die(2, on_dead="park"))
    parked = [(b"0", 10 + at, record("0", "x")) for at in range(4)]
    closed = LaneState(b"0", parked=4, head=10, due_ms=None, blockers=(0,))
    await stage.settle(2, parked=parked, lanes=[closed])
    plan = await stage.broker.plan_replay(ids)
    assert (plan.count, plan.keys, plan.followers) == (2, 2, 4)
    assert plan.groups == {GROUP: 2}
    operation = await replayed(stage, ids, pace=Pace(rate_per_s=1, canary=False, pause_above=None))
    assert await stage.released() == ids[:1]
    # It costs 5 at 1/s, and so the other one has to wait.
    assert await stage.advance() == stage.clock.now_ms() + 5_001
    opened = msgspec.structs.replace(closed, due_ms=0, blockers=(), operation=operation)
    await stage.end(ids[:1], lanes=[opened])
    stage.clock.advance(6)
    await stage.advance()
    await stage.released()
    await stage.end(ids[1:])
    assert (await stage.status(operation)).state == "running", "its followers have not ended"
    left = msgspec.structs.replace(opened, parked=1, head=13)
    await stage.settle(
        released=[(operation, False), (operation, True), (operation, False)],
        done=3,
        unparked=3,
        lanes=[left],
    )
    assert (await stage.status(operation)).state == "running"
    await stage.settle(
        released=[(operation, False)], done=1, unparked=1, lanes=[LaneState(b"0", head=14)]
    )
    status = await stage.status(operation)
    assert (status.state, status.followers_done, status.followers_dead) == ("done", 3, 1)


async def test_a_stage_waits_for_the_followers_of_the_one_before(stage: Stage) -> None:
    ids = ids_of(await stage.die(3, on_dead="park"))
    parked = [(b"0", 10, record("0", "x"))]
    closed = LaneState(b"0", parked=1, head=10, due_ms=None, blockers=(0,))
    await stage.settle(3, parked=parked, lanes=[closed])
    operation = await replayed(stage, ids, pace=CANARY)
    assert await stage.released() == ids[:1]
    opened = msgspec.structs.replace(closed, due_ms=0, blockers=(), operation=operation)
    await stage.end(ids[:1], lanes=[opened])
    await stage.advance()
    assert await stage.released() == []
    await stage.settle(
        released=[(operation, False)], done=1, unparked=1, lanes=[LaneState(b"0", head=11)]
    )
    await stage.advance()
    assert await stage.released() == ids[1:]


async def test_no_more_than_2000_letters_are_with_owners(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.steps._RELEASED_MAX", 7)
    ids = ids_of(await stage.die(20))
    await replayed(stage, ids)
    await stage.advance()
    assert await stage.released() == ids[:7]
    await stage.end(ids[:3])
    assert await stage.advance() is None
    assert await stage.released() == ids[7:10]


async def test_several_members_release_no_letter_twice(stage: Stage, tmp_path: Path) -> None:
    ids = ids_of(await stage.die(60))
    other = await connect(f"embedded:{tmp_path}", clock=stage.clock, durability="os")
    second = await other.join(spec())
    pace = Pace(rate_per_s=40, canary=False, pause_above=None)
    operation = await replayed(stage, ids, pace=pace)
    for _ in range(8):
        stage.clock.advance(0.1)
        await asyncio.gather(*(each.advance_operations() for each in (stage.consumer, second) * 3))
    released = (await stage.status(operation)).released
    assert 30 <= released <= 43
    async with asyncio.timeout(10):
        while len(stage.given) < released:  # What the other one released is heard of later.
            await take_changes(stage)
    assert stage.given == ids[:released]
    await other.aclose()


async def test_a_released_letter_is_known_to_be_behind_an_earlier_one_that_died(
    stage: Stage,
) -> None:
    first, second, other = ids_of(await stage.die(3, key=lambda number: "aab"[number]))
    await replayed(stage, [first, second, other])
    assert await stage.released() == [first, second, other]
    await stage.end([first], "dead")
    await stage.consumer.leave()
    stage.own.clear()
    await stage.join()
    behind = {each: stage.commands[each].behind for each in (second, other)}
    assert behind == {second: True, other: False}


# --- stopping ---------------------------------------------------------------------------------


async def test_it_pauses_when_too_many_die_again_and_goes_on_after_a_look(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.steps._RELEASED_MAX", 2)
    ids = ids_of(await stage.die(6))
    operation = await replayed(stage, ids, pace=CAREFUL)
    await stage.released()
    await stage.end(ids[:1], "dead")
    status = await stage.status(operation)
    assert (status.state, status.pending, status.released) == ("paused", 4, 1)
    assert "1 of the last 1 that ended died again" in status.why
    assert await stage.advance() is None
    assert await stage.released() == []
    await stage.end(ids[1:2])
    await stage.broker.resume_operation(operation, actor="me", reason="the first one is odd")
    assert (await stage.status(operation)).why is None
    await stage.end(await stage.released())
    await stage.advance()
    assert await stage.released() == ids[4:]
    await stage.end(ids[4:])
    status = await stage.status(operation)
    assert (status.state, status.resolved, status.failed) == ("done", 5, 1)


async def test_followers_that_die_pause_it_too(stage: Stage) -> None:
    ids = ids_of(await stage.die(3, on_dead="park"))
    parked = [(b"0", 10, record("0", "x"))]
    closed = LaneState(b"0", parked=1, head=10, due_ms=None, blockers=(0,))
    await stage.settle(3, parked=parked, lanes=[closed])
    operation = await replayed(stage, ids, pace=Pace(rate_per_s=None, canary=True, pause_above=0.5))
    await stage.released()
    opened = msgspec.structs.replace(closed, due_ms=0, blockers=(), operation=operation)
    await stage.end(ids[:1], lanes=[opened])
    assert (await stage.status(operation)).state == "running"
    follower = letter(stage.own[0], 10, record("0", "x"), on_dead="park")
    again = LaneState(b"0", head=11, due_ms=None, blockers=(10,))
    await stage.settle(released=[(operation, True)] * 2, unparked=1, dead=[follower], lanes=[again])
    assert (await stage.status(operation)).state == "paused"


async def test_nothing_that_is_over_is_paused(stage: Stage) -> None:
    ids = ids_of(await stage.die(1))
    operation = await replayed(stage, ids, pace=CAREFUL)
    await stage.end(ids, "dead")
    assert (await stage.status(operation)).state == "done"


async def test_an_operator_pauses_resumes_and_cancels(stage: Stage) -> None:
    ids = ids_of(await stage.die(15))
    operation = await replayed(stage, ids, pace=CANARY)
    await stage.released()
    broker = stage.broker
    await broker.pause_operation(operation, actor="ada", reason="lunch")
    with pytest.raises(Conflict, match=r"paused already \(ada, 20"):
        await broker.pause_operation(operation, actor="me", reason="x")
    assert (await stage.status(operation)).why == "lunch (ada)"
    await stage.end(ids[:1])
    await stage.advance()
    assert await stage.released() == []
    assert (await broker.status()).groups[GROUP].pending == 0, "it moves nothing by itself"
    await broker.resume_operation(operation, actor="ada", reason="back")
    assert await stage.released() == ids[1:11]
    with pytest.raises(Conflict, match="running already"):
        await broker.resume_operation(operation, actor="me", reason="x")
    await broker.cancel_operation(operation, actor="bob", reason="not today")
    status = await stage.status(operation)
    assert (status.state, status.why, status.has_ended) == ("cancelled", "not today (bob)", False)
    states = await stage.states()
    assert [states[each] for each in ids] == ["resolved"] + ["replaying"] * 10 + ["open"] * 4
    await stage.end(ids[1:11])
    status = await stage.status(operation)
    assert status.has_ended
    assert (status.state, status.resolved, status.returned, status.total) == (
        "cancelled",
        11,
        4,
        15,
    )
    with pytest.raises(Refused, match="got one that is cancelled"):
        await broker.pause_operation(operation, actor="me", reason="x")
    with pytest.raises(NotFound, match="operation 99"):
        await broker.cancel_operation(99, actor="me", reason="x")
    left_out = await broker.left_out(operation)
    assert {each.letter for each in left_out} == set(ids[11:])
    assert {each.why for each in left_out} == {"the operation was cancelled"}


async def test_a_paused_group_is_given_nothing_until_it_is_resumed(stage: Stage) -> None:
    ids = ids_of(await stage.die(3))
    await stage.broker.pause(GROUP, actor="me", reason="stock count")
    operation = await replayed(stage, ids)
    await stage.advance()
    assert await stage.released() == []
    status = await stage.status(operation)
    assert (status.pending, status.waiting_for) == (3, f"group '{GROUP}' is paused: stock count")
    assert (await stage.broker.status()).groups[GROUP].pending == 3
    await stage.broker.resume(GROUP, actor="me")
    assert await stage.released() == ids
    assert (await stage.status(operation)).waiting_for is None


async def test_a_group_without_a_member_is_said_to_have_none(stage: Stage) -> None:
    ids = ids_of(await stage.die(2))
    await stage.consumer.leave()
    operation = await replayed(stage, ids, pace=CANARY)
    assert (await stage.status(operation)).waiting_for == f"group '{GROUP}' has no live member"
    stage.own.clear()
    await stage.join()
    assert await stage.released() == []
    await stage.advance()
    assert await stage.released() == ids[:1]
    assert (await stage.status(operation)).waiting_for is None


# --- order ------------------------------------------------------------------------------------


async def test_if_one_dies_again_the_later_ones_of_its_lane_are_open_again(stage: Stage) -> None:
    ids = ids_of(await stage.die(8, key=lambda number: "ab"[number % 2]))
    operation = await replayed(stage, ids, pace=CANARY)
    await stage.end(await stage.released(), "dead")
    states = await stage.states()
    assert [states[each] for each in ids] == ["open", "replaying"] * 4
    await stage.advance()
    assert await stage.released() == ids[1::2]
    left_out = await stage.broker.left_out(operation)
    assert {each.letter for each in left_out} == set(ids[2::2])
    assert {each.why for each in left_out} == {"an earlier one of its lane failed (offset 0)"}
    await stage.end(ids[1::2])
    status = await stage.status(operation)
    assert (status.state, status.resolved, status.failed, status.returned) == ("done", 4, 1, 3)


async def test_letters_that_come_later_than_the_failure_of_their_lane_are_not_released(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 2)
    ids = ids_of(await stage.die(6, key=lambda number: "aab"[number % 3]))
    operation = await replayed(stage, ids, pace=CANARY)
    await stage.end(await stage.released(), "dead")
    while await stage.advance() is not None:
        pass
    assert await stage.released() == [ids[2], ids[5]]
    assert (await stage.status(operation)).returned == 3


def test_a_state_that_is_none_is_answered_with_all_of_them_once() -> None:
    known = "running, paused, done, cancelled"
    for state, end in (("closed", ""), ("runing", " Did you mean 'running'?")):
        with pytest.raises(ConfigError) as refused:
            checked_operation_state(state)  # type: ignore[arg-type]  # on purpose
        assert str(refused.value).endswith(f"one of {known}.{end}")


async def test_a_reset_leaves_nothing_of_an_operation_to_be_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 2)
    operation = await replayed(stage, ids_of(await stage.die(6)), pace=CANARY)
    await stage.broker.reset(GROUP, "now", actor="me", reason="x", dry_run=False)
    status = await stage.status(operation)
    assert status.has_ended
    assert (status.total, status.pending, status.returned) == (6, 0, 6)


async def test_a_reset_cancels_an_operation_and_counts_what_it_had_not_come_to(
    stage: Stage,
) -> None:
    ids = ids_of(await stage.die(2500))
    operation = await replayed(stage, ids)
    for _ in range(2):  # All of it is over at the second one.
        await stage.broker.reset(GROUP, "now", actor="me", reason="x", dry_run=False)
        status = await stage.status(operation)
        assert (status.state, status.why) == ("cancelled", "the group was reset")
        assert status.has_ended
        assert (status.total, status.returned, status.pending, status.released) == (
            2500,
            2500,
            0,
            0,
        )


async def test_a_letter_that_would_pass_an_earlier_one_is_refused(stage: Stage) -> None:
    ids = ids_of(await stage.die(3, key=lambda _: "a", on_dead="park"))
    plan = await stage.broker.plan_replay([ids[2], ids[0]])
    assert (plan.count, plan.conflict_count) == (2, 1)
    (conflict,) = plan.conflicts
    assert (conflict.letter, conflict.offset) == (ids[2], 2)
    assert (conflict.earlier, conflict.earlier_offset) == (ids[1], 1)
    with pytest.raises(Refused, match=rf"{ids[2]} cannot.*{ids[1]} \(offset 1\) of the same lane"):
        await replayed(stage, [ids[2], ids[0]])
    assert set((await stage.states()).values()) == {"open"}
    await replayed(stage, [ids[0], ids[1]])
    # Now these two are on their way, which makes no difference.
    with pytest.raises(Refused, match=str(ids[0])):
        await replayed(stage, [ids[2]])
    await replayed(stage, [ids[2]], allow_gap=True)
    assert await stage.released() == ids


async def test_a_letter_in_a_replay_is_in_no_other(stage: Stage) -> None:
    ids = ids_of(await stage.die(2))
    await replayed(stage, ids[:1])
    with pytest.raises(Conflict, match=rf"{ids[0]} cannot be replayed: it .*\(ines, 20"):
        await replayed(stage, ids)
    with pytest.raises(Conflict, match=rf"{ids[0]} cannot be archived"):
        await stage.broker.archive(ids, actor="me", reason="x")
    assert (await stage.states())[ids[1]] == "open"
    assert len(await stage.broker.operations()) == 1


async def test_a_letter_is_replayed_so_often_and_no_more(stage: Stage) -> None:
    ids = ids_of(await stage.die(2))
    for _ in range(3):
        await replayed(stage, ids[:1])
        await stage.end(ids[:1], "dead")
    with pytest.raises(Refused, match=r"replayed 3 times, and Limits\.replays_max=3: archive it"):
        await replayed(stage, ids)
    plan = await stage.broker.plan_replay(query_of("exc:Boom"))
    assert (plan.count, plan.refusal_count) == (1, 1)
    assert plan.refusals[0].letter == ids[0]
    operation = await replayed(stage, query_of("exc:Boom"))
    assert await stage.broker.operation_letters(operation) == {ids[0]: "open", ids[1]: "replaying"}
    (left_out,) = await stage.broker.left_out(operation)
    assert (left_out.letter, "replayed 3 times" in left_out.why) == (ids[0], True)
    await stage.end(ids[1:])
    with pytest.raises(Refused, match="replayed 3 times"):
        await replayed(stage, query_of("exc:Boom"))
    with pytest.raises(NotFound, match="no dead letter meets it"):
        await replayed(stage, query_of("exc:KeyError"))


# --- resuming ---------------------------------------------------------------------------------


async def test_a_group_says_how_often_and_a_member_that_does_not_say_changes_nothing(
    stage: Stage,
) -> None:
    ids = ids_of(await stage.die(1))
    for replays_max in (1, None):
        await stage.consumer.leave()
        stage.own.clear()
        await stage.join(replays_max=replays_max)
    await replayed(stage, ids)
    await stage.end(ids, "dead")
    with pytest.raises(Refused, match=r"and its group's Limits\.replays_max=1: archive it"):
        await replayed(stage, ids)
    assert (await stage.broker.plan_replay(ids)).refusal_count == 1
    stage.own.clear()
    await stage.consumer.leave()
    await stage.join(replays_max=2)
    await replayed(stage, ids)


async def test_it_goes_on_without_who_began_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 10)
    ids = ids_of(await stage.die(45))
    operator = await connect(f"embedded:{tmp_path}", clock=stage.clock, durability="os")
    operation = await operator.replay(query_of(f"group:{GROUP}"), actor="me", reason="x")
    await operator.aclose()
    assert (await stage.status(operation)).total == 45
    # Letters that die from now on are not in it.
    await stage.settle(46, dead=[letter(stage.own[0], 45, record("new", "x"), on_dead="continue")])
    steps = 0
    while await stage.advance() is not None:
        steps += 1
    assert steps >= 3
    assert await stage.released() == ids
    await stage.end(ids)
    status = await stage.status(operation)
    assert (status.state, status.resolved, status.query) == ("done", 45, f"group:{GROUP}")


async def test_what_changes_before_it_is_come_to_is_left_out_and_reported(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 2)
    ids = ids_of(await stage.die(6))
    operation = await replayed(stage, ids)
    await stage.broker.archive([ids[4]], actor="bob", reason="not needed")
    await stage.broker.replay([ids[5]], actor="ada", reason="x")
    while await stage.advance() is not None:
        pass
    assert set(await stage.released()) == {*ids[:4], ids[5]}
    status = await stage.status(operation)
    assert (status.total, status.skipped, status.released) == (6, 2, 4)
    whys = {each.letter: each.why for each in await stage.broker.left_out(operation)}
    assert "archived (bob" in whys[ids[4]]
    assert "being replayed (ada" in whys[ids[5]]


async def test_versions_are_compared_when_a_letter_is_come_to(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 2)
    ids = ids_of(await stage.die(5))
    operation = await replayed(stage, ids, versions=dict.fromkeys(ids[1:], 1))
    for each in (ids[2], ids[4]):
        await stage.broker.archive([each], actor="bob", reason="x")
        await stage.broker.restore([each], actor="bob", reason="x")
    while await stage.advance() is not None:
        pass
    assert await stage.released() == [ids[0], ids[1], ids[3]]
    whys = {each.letter: each.why for each in await stage.broker.left_out(operation)}
    assert "(bob, " in whys[ids[2]]
    assert whys[ids[4]].endswith("expected version 1, got 3. Look again")


async def test_archiving_many_goes_on_in_steps_and_is_finished_by_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 3)
    ids = ids_of(await stage.die(8))

    async def killed(self: Any, operation: int) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr("eventlane.brokers.embedded.broker.EmbeddedBroker._go_on", killed)
        with pytest.raises(asyncio.CancelledError):
            await stage.broker.archive(ids, actor="me", reason="x")
    (status,) = await stage.broker.operations()
    assert (status.state, status.changed, status.pending) == ("running", 3, 5)
    while await stage.advance() is not None:
        pass
    (status,) = await stage.broker.operations(state="done")
    assert (status.kind, status.changed, status.total) == ("archive", 8, 8)
    account = (await stage.broker.status()).groups[GROUP]
    assert (account.dead, account.archived, account.pending) == (0, 8, 0)
    assert account.balances


# --- archive, restore, edit, republish --------------------------------------------------------


async def test_a_restored_letter_closes_no_lane_and_is_in_the_account_again(stage: Stage) -> None:
    ids = ids_of(await stage.die(2, key=lambda _: "a", on_dead="park"))
    await stage.broker.archive(query_of("exc:Boom"), actor="me", reason="x")
    await stage.released()
    assert [each.kind for each in stage.commands.values()] == ["open", "open"]
    await stage.end(ids, lanes=[LaneState(b"a", gaps=(0, 1))])
    with pytest.raises(Refused, match=r"expected one that is open, got one that is archived \(me"):
        await replayed(stage, ids)
    operation = await stage.broker.restore(ids[1:], actor="me", reason="after all")
    assert (await stage.status(operation)).changed == 1
    (restored,) = await stage.broker.dead_letters()
    assert (restored.id, restored.on_dead, restored.blocks_lane) == (ids[1], "continue", False)
    account = (await stage.broker.status()).groups[GROUP]
    assert (account.dead, account.archived, account.balances) == (1, 1, True)
    with pytest.raises(Refused, match="expected one that is archived, got one that is open"):
        await stage.broker.restore(ids[1:], actor="me", reason="x")
    await replayed(stage, ids[1:])
    assert await stage.released() == ids[1:]


async def test_of_many_lanes_to_open_an_owner_has_a_bounded_number_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.consumer._OPENED_MAX", 10)
    ids = ids_of(await stage.die(25, on_dead="park"))
    await stage.broker.archive(ids, actor="me", reason="x")
    for count in (10, 10, 5):
        given = await stage.released()
        assert len(given) == count
        await stage.end(given, lanes=[LaneState(stage.lane_of(each)) for each in given])
    assert await stage.released() == []
    assert sorted(stage.given) == sorted(ids)


async def test_lanes_to_open_are_reported_beside_replays_that_wait_for_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.consumer._OPENED_MAX", 2)
    ids = ids_of(await stage.die(6, on_dead="park"))
    await replayed(stage, ids[:4])
    await stage.advance()
    await stage.broker.archive(ids[4:], actor="me", reason="x")
    assert await stage.released() == ids


async def test_an_archive_that_a_full_disk_ends_half_way_is_carried_out_by_the_owner(
    stage: Stage, tmp_path: Path
) -> None:
    await stage.die(1_100)
    with closing(sqlite3.connect(tmp_path / "eventlane.db", isolation_level=None)) as other:
        # What is no JSON fails as the storage does, where RAISE would fail as a constraint.
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON letter WHEN new.number > 1000 "
            "BEGIN SELECT json('disk full'); END"
        )
        with pytest.raises(StorageError, match=r"operation 1 is written and will be carried out"):
            await stage.broker.archive(query_of("exc:Boom"), actor="me", reason="x")
        other.execute("DROP TRIGGER full")
    assert ((await stage.status(1)).state, (await stage.status(1)).changed) == ("running", 1_000)
    await stage.advance()
    assert ((await stage.status(1)).state, (await stage.status(1)).changed) == ("done", 1_100)


async def test_letters_of_before_a_reset_change_no_account(stage: Stage) -> None:
    ids = ids_of(await stage.die(2))
    await stage.broker.reset(GROUP, "now", actor="me", reason="x", dry_run=False)
    await stage.broker.archive(ids, actor="me", reason="x")
    await stage.broker.restore(ids[:1], actor="me", reason="x")
    account = (await stage.broker.status()).groups[GROUP]
    assert (account.entered, account.dead, account.archived, account.balances) == (0, 0, 0, True)


def edited(of: DeadLetter, value: bytes) -> Record:
    headers = headers_of(of.header_block) | {"el-edited-from": str(of.id).encode()}
    return Record(event_ids(0, 1)[0], of.key, value, of.produced_ms, encode_headers(headers))


async def test_an_edited_child_takes_the_place_of_its_letter(stage: Stage) -> None:
    first, second = await stage.die(2, key=lambda _: "a", on_dead="park")
    child = edited(first, b'{"fixed":true}')
    with pytest.raises(Refused, match=str(first.id)):
        await stage.broker.edit(second.id, child, diff="{}", actor="me", reason="x")
    operation = await stage.broker.edit(
        first.id, child, diff='{"fixed":["(none)",true]}', actor="me", reason="typo"
    )
    (found,) = await stage.released()
    command = stage.commands[found]
    assert command.letter.record == child
    assert (command.letter.offset, command.letter.lane, command.letter.state) == (
        0,
        b"a",
        "replaying",
    )
    assert (command.letter.edited_from, command.operation) == (first.id, operation)
    assert command.letter.causation_id == str(first.event_id)
    assert (await stage.states())[first.id] == "edited"
    with pytest.raises(Refused, match="got one that is edited"):
        await stage.broker.edit(first.id, child, diff="{}", actor="me", reason="x")
    # A later one of the lane waits for the child as it did for the letter.
    with pytest.raises(Refused, match=str(found)):
        await replayed(stage, [second.id])
    account = (await stage.broker.status()).groups[GROUP]
    assert (account.dead, account.edited, account.balances) == (2, 0, True)
    await stage.end([found], "dead")
    await replayed(stage, [found])
    await stage.end([found], lanes=[LaneState(b"a", blockers=(1,), due_ms=None)])
    account = (await stage.broker.status()).groups[GROUP]
    assert (account.dead, account.edited, account.done, account.balances) == (1, 1, 0, True)
    status = await stage.status(operation)
    assert (status.kind, status.state, status.failed) == ("edit", "done", 1)
    (event,) = await stage.broker.letter_history(first.id)
    assert (event.action, event.actor, event.operation) == ("edit", "me", operation)
    assert json.loads(event.detail) == {"fixed": ["(none)", True]}


async def test_a_republished_event_is_on_the_log_again_and_in_the_audit(stage: Stage) -> None:
    (dead,) = await stage.die(1)
    again = record(dead.key, dead.value)
    position = await stage.broker.republish(dead.id, again, actor="me", reason="for the others")
    assert position == (TOPIC, 0, 1)
    assert (await stage.broker.fetch(TOPIC, 0, 1, 5)).records == [again]
    (event,) = await stage.broker.letter_history(dead.id)
    assert (event.action, event.actor, event.reason) == ("republish", "me", "for the others")
    assert f"{TOPIC}[0]:1" in event.detail
    assert (await stage.states())[dead.id] == "open"
    with pytest.raises(NotFound):
        await stage.broker.republish(UUID(int=1), again, actor="me", reason="x")


# --- what is kept and shown -------------------------------------------------------------------


async def test_every_change_of_a_letter_is_kept_with_who_when_and_why(stage: Stage) -> None:
    ids = ids_of(await stage.die(2))
    first = await replayed(stage, ids[:1])
    await stage.end(ids[:1], "dead")
    second = await stage.broker.archive(ids[:1], actor="bob", reason="hopeless")
    third = await stage.broker.restore(ids[:1], actor="ada", reason="not quite")
    history = await stage.broker.letter_history(ids[0])
    owner = history[1].actor
    assert owner.startswith(f"{GROUP}@")
    assert [(each.actor, each.action, each.reason, each.operation) for each in history] == [
        ("ines", "replay", "it is mended", first),
        (owner, "failed", "", first),
        ("bob", "archive", "hopeless", second),
        ("ada", "restore", "not quite", third),
    ]
    assert all(each.at.timestamp() * 1000 == stage.clock.now_ms() for each in history)
    assert await stage.broker.letter_history(ids[1]) == []
    with pytest.raises(NotFound):
        await stage.broker.letter_history(UUID(int=1))


async def test_an_operation_over_two_groups_counts_both_and_paces_each(stage: Stage) -> None:
    ids = ids_of(await stage.die(3))
    other = Stage(stage.broker, stage.clock)
    await other.join("other")
    dead = [letter(other.own[0], at, record("a", "x"), group="other") for at in range(2)]
    dead = [msgspec.structs.replace(each, on_dead="continue") for each in dead]
    await other.settle(2, dead=dead)
    operation = await replayed(stage, [*ids, *ids_of(dead)], pace=CANARY)
    assert await stage.released() == ids[:1]
    assert await other.released() == [dead[0].id]
    await other.end([dead[0].id])
    await other.advance()
    await other.end(await other.released())
    status = await stage.status(operation)
    assert (status.total, status.resolved, status.state) == (5, 2, "running")
    assert set(status.groups) == {GROUP, "other"}
    await stage.end(ids[:1])
    await stage.advance()
    await stage.end(ids[1:])
    assert (await stage.status(operation)).state == "done"


async def test_failures_are_counted_by_their_cause(stage: Stage) -> None:
    ids = ids_of(await stage.die(5))
    (summary,) = await stage.broker.failures(group=None, state="open")
    assert (summary.count, summary.exception, summary.example) == (5, "Boom", ids[-1])
    assert (summary.fingerprint, summary.message) == ("0123456789abcdef", "no")
    await stage.broker.archive(ids[:2], actor="me", reason="x")
    (summary,) = await stage.broker.failures(group=GROUP, state="open")
    assert summary.count == 3
    assert await stage.broker.failures(group="other", state="open") == []


async def test_a_letter_has_what_is_parked_behind_it(stage: Stage) -> None:
    ids = ids_of(await stage.die(2, on_dead="park"))
    await stage.settle(
        2,
        parked=[(b"0", 10, record("0", "x"))],
        lanes=[LaneState(b"0", parked=1, head=10, due_ms=None, blockers=(0,))],
    )
    behind = {each.id: each.parked_followers for each in await stage.broker.dead_letters()}
    assert behind == {ids[0]: 1, ids[1]: 0}


async def test_letters_without_a_key_are_released_like_all(stage: Stage) -> None:
    records = [record(None, "x") for _ in range(3)]
    await stage.broker.append([(TOPIC, records)])
    dead = [letter(stage.own[0], at, each, on_dead="continue") for at, each in enumerate(records)]
    await stage.settle(3, dead=dead)
    await replayed(stage, ids_of(dead), pace=CANARY)
    await stage.end(await stage.released(), "dead")
    await stage.advance()
    assert await stage.released() == ids_of(dead)[1:], "each is a lane of its own"


def test_a_block_of_headers_names_what_was_edited() -> None:
    assert headers_of(encode_headers({EVENT_TYPE: "A", "el-edited-from": "x"})) == {
        EVENT_TYPE: b"A",
        "el-edited-from": b"x",
    }


# --- all of it, in any order ------------------------------------------------------------------


async def invariants_hold(stage: Stage) -> None:
    account = (await stage.broker.status()).groups[GROUP]
    assert account.balances, account
    states = await stage.states()
    replaying = {each for each, state in states.items() if state == "replaying"}
    rows = stage.broker._file.reader.execute(
        "SELECT letter.id, count(*) FROM operation_letter JOIN letter ON letter = number "
        "WHERE operation_letter.state IN ('pending', 'released') GROUP BY letter.id"
    ).fetchall()
    assert {UUID(bytes=row[0]): row[1] for row in rows} == dict.fromkeys(replaying, 1)
    for each in await stage.broker.operations():
        parts = (each.pending, each.released, each.resolved, each.failed, each.returned)
        assert each.total == sum(parts) + each.skipped + each.changed, each
        assert min(parts) >= 0, each
        if each.has_ended:
            assert (each.pending, each.released) == (0, 0)
            assert each.state in ("done", "cancelled")


async def try_to(change: Any) -> None:
    """What an operator asks for may have become impossible meanwhile."""
    try:
        await change
    except (Conflict, NotFound, Refused):
        return


async def carry_out(stage: Stage, random: Random) -> None:
    """What an owner would do with some of its commands: each lane in order, and no further."""
    await take_changes(stage)
    lanes: dict[bytes | int, list[Command]] = {}
    for each in stage.commands.values():
        lanes.setdefault(each.letter.lane, []).append(each)
    for commands in lanes.values():
        commands.sort(key=lambda each: each.letter.offset)
        if random.random() < 0.5:
            continue
        outcome = random.choice(["done", "done", "done", "dead", "skipped"])
        await stage.end([commands[0].letter.id], outcome)
        if outcome == "dead":
            later = [each for each in commands[1:] if each.operation == commands[0].operation]
            await stage.end([each.letter.id for each in later], "returned")


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_operators_and_owners_do_all_is_accounted_for(
    stage: Stage, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.selection.STEP_LETTERS", 4)
    monkeypatch.setattr("eventlane.brokers.embedded.steps._RELEASED_MAX", 9)
    random = Random(seed)
    broker = stage.broker
    letters = await stage.die(60, key=lambda number: f"k{number % 17}")
    ids = ids_of(letters)
    for _ in range(120):
        some = random.sample(ids, random.randint(1, 25))
        running = await broker.operations()
        one = random.choice(running).id if running else 1
        pace = Pace(
            rate_per_s=random.choice([None, None, 20]),
            canary=random.random() < 0.3,
            pause_above=random.choice([None, None, 0.3]),
        )
        open_ones = [each.id for each in await broker.dead_letters()]
        chosen = [each for each in some if each in open_ones] or some
        match random.randrange(10):
            case 0 | 1:
                await try_to(replayed(stage, chosen, pace=pace))
            case 2:
                query = query_of(random.choice(["key:k3", "exc:Boom", "version:1"]))
                await try_to(replayed(stage, query, pace=pace))
            case 3:
                await try_to(broker.archive(chosen[:3], actor="a", reason="r"))
            case 4:
                await try_to(broker.restore(query_of("exc:Boom"), actor="a", reason="r"))
            case 5:
                await try_to(broker.pause_operation(one, actor="a", reason="r"))
                await try_to(broker.resume_operation(one, actor="a", reason="r"))
            case 6:
                await try_to(broker.cancel_operation(one, actor="a", reason="r"))
            case 7:
                letter_id = random.choice(some)
                parent = next(each for each in letters if each.id == letter_id)
                await try_to(
                    broker.edit(letter_id, edited(parent, b"{}"), diff="{}", actor="a", reason="r")
                )
            case 8:
                stage.clock.advance(random.random())
                await stage.advance()
            case _:
                await carry_out(stage, random)
        await invariants_hold(stage)
    while [each for each in await broker.operations() if not each.has_ended]:
        for each in await broker.operations(state="paused"):
            await broker.resume_operation(each.id, actor="a", reason="r")
        stage.clock.advance(1)
        await stage.advance()
        await carry_out(stage, random)
    await invariants_hold(stage)
    assert (await broker.status()).groups[GROUP].pending == 0
