"""Cases about bulk changes of dead letters: what they select, how fast they go, what they keep."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from eventlane.app import App
from eventlane.clock import yield_to_loop
from eventlane.config import Limits
from eventlane.errors import EventRefused, NotFound, Refused
from eventlane.failure import DeadLetter
from eventlane.handler import Context
from eventlane.operation import Operation
from eventlane.outcome import LaneOnDead
from eventlane.query import Query
from eventlane.replay import OperationStatus
from eventlane.retry import Retry
from eventlane.settlement import LaneState
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import (
    GROUP,
    PATIENCE_S,
    TOPIC,
    Boom,
    Factory,
    Journal,
    Step,
    joined,
    letter,
    record,
    refused,
    settlement,
    until,
)
from eventlane.topic import Topic


class _Stage:
    """An app whose handler fails for what is broken."""

    def __init__(self, make: Factory, *, on_dead: LaneOnDead = "continue", **options: Any) -> None:
        self.clock = ManualClock()
        self.journal = Journal(self.clock)
        self.is_broken: Callable[[Step], bool] = lambda step: True
        self.gate: asyncio.Semaphore | None = None
        """Where there is one, replayed events wait for it in the handler."""
        self.running = 0
        """Replayed events that wait there."""
        self._make = make
        self._options: dict[str, Any] = {
            "on_dead": on_dead,
            "retry": Retry(attempts=1),
            **options,
        }

    def app(self, **options: Any) -> App:
        app = self._make.app(clock=self.clock, partitions=1, **options)
        app.subscribe(Step, group=GROUP, **self._options)(self.handle)
        return app

    async def handle(self, step: Step, ctx: Context[Any]) -> None:
        self.journal.note(step, ctx)
        if ctx.replayed and self.gate is not None:
            self.running += 1
            await self.gate.acquire()
            self.running -= 1
        if self.is_broken(step):
            raise Boom(f"no {step.key}{step.number}")

    def runs(self, count: int) -> Callable[[], bool]:
        """Whether so many replayed events wait in the handler."""
        return lambda: self.running == count

    def replayed(self) -> list[tuple[str, int]]:
        """The steps that replays ran, in order."""
        return [(run.key, run.number) for run in self.journal.runs if run.replayed]

    def mend(self) -> None:
        self.is_broken = lambda step: False


async def _run(app: App) -> None:
    await app.run_until_idle(PATIENCE_S)
    account = (await app.status()).groups[GROUP]
    assert account.balances, f"expected an account that balances, got {account}"


async def _dead(app: App, keys: str, *numbers: int) -> list[DeadLetter]:
    """Letters of such steps, in the order of the log."""
    await app.publish_many([Step(key, number) for number in numbers for key in keys])
    await _run(app)
    return sorted(await app.dead_letters(), key=lambda each: each.offset)


async def _replay_at_once(app: App, letters: Sequence[DeadLetter] | str) -> Operation:
    return await app.replay(
        letters, reason="mended", canary=False, rate_per_s=None, pause_above=None
    )


async def _wait(wait: Callable[[], Awaitable[OperationStatus]]) -> OperationStatus:
    async with asyncio.timeout(PATIENCE_S):
        return await wait()


async def _stays(condition: Callable[[], bool]) -> None:
    """It is so, and goes on to be while others get their turn."""
    for _ in range(200):
        assert condition()
        await yield_to_loop()


async def a_query_replays_what_meets_its_conditions_and_nothing_else(make: Factory) -> None:
    """Letters are replayed by type, exception, key, fingerprint, handler, version and time."""
    stage = _Stage(make)
    async with (app := stage.app(version="1")):
        first, second = await _dead(app, "ab", 0)
        stage.clock.advance(60)
        later_ms = stage.clock.now_ms()
    async with (app := stage.app(version="2")):
        third = (await _dead(app, "a", 1))[-1]
        stage.mend()
        for query, expected in (
            (Query(exception="KeyError"), []),
            (Query(exception="Boom", type="Other"), []),
            (Query(key="b"), [second]),
            (f"exc:Boom key:a version:1 group:{GROUP} type:Step topic:{first.topic}", [first]),
            (f"fp:{third.fingerprint} handler:{third.handler} version:2", [third]),
        ):
            if not expected:
                await refused(NotFound, partial(app.replay, query, reason="x"))
                continue
            found = await app.dead_letters(query=query)
            assert [each.id for each in found] == [each.id for each in expected]
        since = (await app.dead_letters(query=Query(since=third.last_failed_at)))[0]
        assert since.id == third.id
        assert third.last_failed_ms == later_ms
        operation = await _replay_at_once(app, "version:1")
        await _run(app)
        status = await _wait(operation.wait)
        assert (status.total, status.resolved, status.query) == (2, 2, "version:1")
        assert stage.replayed() == [("a", 0), ("b", 0)]
        assert [each.id for each in await app.dead_letters()] == [third.id]


async def a_dry_run_says_what_a_replay_would_do_and_changes_nothing(make: Factory) -> None:
    """A dry run shows the count, the keys, conflicts of order and the followers, and no more."""
    stage = _Stage(make, on_dead="park")
    stage.is_broken = lambda step: step.number == 0
    async with (app := stage.app()):
        letters = await _dead(app, "ab", 0, 1, 2)
        before = (await app.status()).groups[GROUP]
        plan = await app.replay(letters, dry_run=True)
        assert (plan.count, plan.keys, plan.followers, plan.groups) == (2, 2, 4, {GROUP: 2})
        assert (plan.conflicts, plan.refusals) == ((), ())
        assert await app.replay("exc:Boom", dry_run=True) == plan
        nothing = await app.replay("exc:Other", dry_run=True)
        assert (nothing.count, nothing.keys, nothing.followers) == (0, 0, 0)
        await app.archive(letters[0], reason="x")
        plan = await app.replay(letters, dry_run=True)
        assert (plan.count, plan.refusal_count) == (1, 1)
        assert plan.refusals[0].letter == letters[0].id
        assert "archived" in plan.refusals[0].why
        assert (before.dead, before.parked) == (2, 4)
        assert stage.replayed() == []
        assert len(await app.operations()) == 1


async def a_later_letter_passes_an_earlier_one_only_where_the_gap_is_allowed(
    make: Factory,
) -> None:
    """A letter that would pass an earlier one which closes their lane is refused, both named."""
    async with make() as broker:
        await broker.ensure_topic(Topic(TOPIC, partitions=1))
        records = [record("a", str(number)) for number in range(3)]
        await broker.append([(TOPIC, records)])
        consumer, own = await joined(broker)
        dead = [letter(own, offset, each) for offset, each in enumerate(records)]
        closed = LaneState(b"a", blockers=(0, 1, 2), due_ms=None)
        await consumer.settle([settlement(own, 3, dead=dead, lanes=[closed])])
        ids = [each.id for each in dead]
        plan = await broker.plan_replay([ids[2], ids[0]])
        assert [(each.letter, each.earlier) for each in plan.conflicts] == [(ids[2], ids[1])]
        await refused(
            Refused,
            lambda: broker.replay([ids[2], ids[0]], actor="me", reason="x"),
            str(ids[2]),
            str(ids[1]),
        )
        assert len(await broker.dead_letters(state="open")) == 3
        await broker.replay([ids[2], ids[0]], actor="me", reason="x", allow_gap=True)
        assert len(await broker.dead_letters(state="replaying")) == 2


async def if_one_dies_again_the_later_ones_of_its_lane_do_not_run(make: Factory) -> None:
    """If one letter of a lane dies again, the later ones of the operation are open, not run."""
    stage = _Stage(make)
    async with (app := stage.app()):
        letters = await _dead(app, "ab", 0, 1, 2)
        stage.is_broken = lambda step: (step.key, step.number) == ("a", 1)
        operation = await _replay_at_once(app, letters)
        await _run(app)
        status = await _wait(operation.wait)
        assert (status.state, status.resolved, status.failed, status.returned) == ("done", 4, 1, 1)
        assert [each for each in stage.replayed() if each[0] == "a"] == [("a", 0), ("a", 1)]
        assert [each for each in stage.replayed() if each[0] == "b"] == [
            ("b", 0),
            ("b", 1),
            ("b", 2),
        ]
        (left_out,) = await operation.left_out()
        assert left_out.letter == letters[4].id
        assert "an earlier one of its lane failed" in left_out.why
        states = {each.id: each for each in await app.dead_letters()}
        assert (states[letters[2].id].replay_count, states[letters[4].id].replay_count) == (1, 0)


async def a_replay_runs_1_then_10_then_the_rest(make: Factory) -> None:
    """A canary: one letter first, then ten, then the rest, each once all before it has ended."""
    stage = _Stage(make, concurrency=100)
    async with (app := stage.app()):
        await _dead(app, "abcdefghijklmnopqrstuvwxyz", 0)
        stage.mend()
        stage.gate = asyncio.Semaphore(0)
        async with app.handling():
            operation = await app.replay("exc:Boom", reason="x", rate_per_s=None)
            ended = 0
            for expected in (1, 10, 15):
                await until(stage.runs(expected), f"{expected} to run")
                await _stays(stage.runs(expected))
                status = await operation.status()
                assert (status.released, status.resolved) == (expected, ended)
                ended += expected
                for _ in range(expected):
                    stage.gate.release()
            status = await _wait(operation.wait)
        assert (status.state, status.resolved) == ("done", 26)


async def a_replay_keeps_to_its_rate_with_all_that_follows(make: Factory) -> None:
    """Released letters, and the parked events that follow them, keep to the rate of the replay."""
    stage = _Stage(make, on_dead="park")
    stage.is_broken = lambda step: step.number == 0
    async with (app := stage.app()):
        await _dead(app, "abcdefghij", 0, 1, 2, 3, 4)
        stage.mend()
        began = len(stage.journal.runs)
        operation = await app.replay(
            "exc:Boom", reason="x", rate_per_s=10, canary=False, pause_above=None
        )
        await _run(app)
        assert (await _wait(operation.wait)).resolved == 10
        # Ten letters with four followers each are 50, of which the last ones need not wait.
        runs = stage.journal.runs[began:]
        assert len(runs) == 50
        assert runs[-1].at_ms - runs[0].at_ms >= 4_000
        for start, run in enumerate(runs):
            in_a_second = [each for each in runs[start:] if each.at_ms < run.at_ms + 1_000]
            assert len(in_a_second) <= 20


async def a_replay_of_what_is_still_broken_pauses_and_leaves_the_rest(make: Factory) -> None:
    """A replay pauses by itself when too many die again; the rest is untouched, and it says why."""
    stage = _Stage(make)
    async with (app := stage.app()):
        await app.publish_many(Step(str(number), 0) for number in range(300))
        await _run(app)
        stage.is_broken = lambda step: int(step.key) >= 40
        operation = await app.replay("exc:Boom", reason="x", rate_per_s=50)
        await _run(app)
        status = await _wait(operation.wait)
        assert status.state == "paused"
        assert status.why is not None
        assert "died again" in status.why
        assert status.resolved == 40
        assert 3 <= status.failed <= 60
        assert status.pending == 300 - len(stage.replayed())
        stage.mend()
        await operation.resume(reason="mended at last")
        await _run(app)
        status = await _wait(operation.wait)
        assert (status.state, status.resolved + status.failed) == ("done", 300)
        assert stage.replayed() == [(str(number), 0) for number in range(300)]


async def a_failed_attempt_that_is_retried_does_not_count_against_a_replay(
    make: Factory,
) -> None:
    """A replayed letter that fails, is retried and is done has not died again."""
    stage = _Stage(make, retry=Retry(attempts=3, delay_s=1, jitter=0, immediate=0))
    async with (app := stage.app()):
        await _dead(app, "abc", 0)
        runs: dict[str, int] = {}

        def fails_twice(step: Step) -> bool:
            runs[step.key] = runs.get(step.key, 0) + 1
            return runs[step.key] < 3

        stage.is_broken = fails_twice
        operation = await app.replay("exc:Boom", reason="x", pause_above=0)
        await _run(app)
        status = await _wait(operation.wait)
        assert (status.state, status.resolved, status.failed) == ("done", 3, 0)


async def a_paused_replay_goes_on_and_a_cancelled_one_gives_the_rest_back(make: Factory) -> None:
    """A paused replay releases nothing; resumed it goes on; cancelled the rest is open again."""
    stage = _Stage(make)
    async with (app := stage.app()):
        letters = await _dead(app, "abcdefghijklmn", 0)
        stage.mend()
        stage.gate = asyncio.Semaphore(0)
        async with app.handling():
            operation = await app.replay(letters, reason="x", rate_per_s=None)
            await operation.pause(reason="wait a moment", actor="ada")
            stage.gate.release()
        await _run(app)
        status = await operation.status()
        assert (status.state, status.why) == ("paused", "wait a moment (ada)")
        assert (status.resolved, status.pending) == (1, 13)
        stage.gate = asyncio.Semaphore(0)
        async with app.handling():
            await (await app.operation(operation.id)).resume(reason="go on")
            await until(lambda: stage.running == 10, "it to go on")
            await operation.cancel(reason="that will do")
            for _ in range(10):
                stage.gate.release()
            status = await _wait(operation.wait)
        assert (status.state, status.pending, status.released) == ("cancelled", 0, 0)
        assert (status.resolved, status.returned) == (11, 3)
        assert len(stage.replayed()) == 11
        assert [each.id for each in await app.dead_letters()] == [each.id for each in letters[11:]]
        assert [each.id for each in await app.operations(state="cancelled")] == [operation.id]
        await refused(Refused, lambda: operation.resume(reason="x"))


async def a_replay_goes_on_where_it_was_after_a_restart(make: Factory) -> None:
    """A replay and its selection are stored: who began it may die; later letters are not in it."""
    stage = _Stage(make)
    async with (app := stage.app()):
        await _dead(app, "abcdefghijkl", 0)
        operation = await app.replay("exc:Boom", reason="x")
    stage.is_broken = lambda step: step.key == "z"
    async with (app := stage.app()):
        await app.publish(Step("z", 0))
        await _run(app)
        status = await _wait((await app.operation(operation.id)).wait)
        assert (status.state, status.total, status.query) == ("done", 12, "exc:Boom")
        assert status.resolved == 12
        assert ("z", 0) not in stage.replayed()
        (other,) = await app.dead_letters()
        assert other.key == b"z"


async def a_paused_group_and_one_without_a_process_hold_up_a_replay_which_says_so(
    make: Factory,
) -> None:
    """A replay into a group that is paused, or has no process, stays pending and says why."""
    stage = _Stage(make)
    async with (app := stage.app()):
        letters = await _dead(app, "ab", 0)
        stage.mend()
        await app.pause(GROUP, reason="stock count")
        operation = await app.replay(letters, reason="x")
        status = await operation.status()
        assert status.waiting_for is not None
        assert f"group '{GROUP}' is paused: stock count" in status.waiting_for
        assert f"group '{GROUP}' has no live member" in status.waiting_for
        await _run(app)
        assert (await operation.status()).pending == 2
        assert stage.replayed() == []
        await app.resume(GROUP)
        assert (await operation.status()).waiting_for == f"group '{GROUP}' has no live member"
        await _run(app)
        assert (await _wait(operation.wait)).resolved == 2


async def a_replay_is_over_only_when_what_it_released_is_handled(make: Factory) -> None:
    """A replay counts the parked events that it released, and is over once they are handled."""
    stage = _Stage(make, on_dead="park")
    stage.is_broken = lambda step: step.number == 0
    async with (app := stage.app()):
        letters = await _dead(app, "ab", 0, 1, 2, 3)
        stage.is_broken = lambda step: (step.key, step.number) == ("b", 2)
        operation = await _replay_at_once(app, letters)
        async with app.handling():
            status = await _wait(operation.wait)
        assert (status.state, status.resolved, status.failed) == ("done", 2, 0)
        assert (status.followers_done, status.followers_dead) == (4, 1)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (6, 1, 1)
        assert account.balances


async def a_letter_is_replayed_so_often_and_no_more(make: Factory) -> None:
    """A letter is replayed at most as often as its group's `Limits.replays_max`, whoever asks."""
    stage = _Stage(make)
    async with (app := stage.app(limits=Limits(replays_max=2))):
        (letter,) = await _dead(app, "a", 0)
        for _ in range(2):
            await app.replay(letter.id, reason="x")
            await _run(app)
    async with (stranger := make.app(clock=stage.clock)):
        for asked in (letter.id, "exc:Boom"):
            call = partial(stranger.replay, asked, reason="x")
            error = await refused(Refused, call, "replays_max=2")
            assert str(letter.id) in str(error)
        assert (await stranger.replay("exc:Boom", dry_run=True)).refusal_count == 1
        assert len(stage.replayed()) == 2
        await stranger.archive(letter.id, reason="it is hopeless")


async def an_archived_letter_is_kept_and_a_restored_one_runs_late(make: Factory) -> None:
    """An archived letter opens its lane and is kept; restored it closes nothing, and runs late."""
    stage = _Stage(make, on_dead="park")
    stage.is_broken = lambda step: step.number == 0
    async with (app := stage.app()):
        await _dead(app, "a", 0, 1, 2)
        operation = await app.archive("exc:Boom", reason="not needed")
        await _run(app)
        assert (await _wait(operation.wait)).changed == 1
        (archived,) = await app.dead_letters(state="archived")
        assert stage.journal.numbers("a") == [0, 1, 2]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.archived, account.dead) == (2, 1, 0)
        operation = await app.restore(archived, reason="after all")
        assert (await _wait(operation.wait)).changed == 1
        account = (await app.status()).groups[GROUP]
        assert (account.archived, account.dead, account.balances) == (0, 1, True)
        stage.mend()
        await app.publish(Step("a", 3))
        await app.replay(archived.id, reason="mended")
        await _run(app)
        last = [run for run in stage.journal.of("a") if run.replayed]
        assert [(run.number, run.late) for run in last] == [(0, True)]
        assert (await app.status()).groups[GROUP].done == 4


async def an_edited_event_is_handled_in_the_place_of_the_dead_one(make: Factory) -> None:
    """Edit and replay: a child with a new id takes the letter's place, in the failed group only."""
    stage = _Stage(make, on_dead="park")
    stage.is_broken = lambda step: step.number == 0
    app = stage.app(allow_edit=True)
    seen: list[Context[Any]] = []

    @app.subscribe(Step, group="bystander")
    async def look_on(_step: Step, ctx: Context[Any]) -> None:
        seen.append(ctx)

    async with app:
        (letter,) = await _dead(app, "a", 0, 1, 2)
        operation = await app.edit_and_replay(letter, {"key": "a", "number": 7}, reason="a typo")
        await _run(app)
        assert (await _wait(operation.wait)).resolved == 1
        assert stage.journal.numbers("a") == [0, 7, 1, 2]
        assert len(seen) == 3
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.edited, account.dead, account.parked) == (2, 1, 0, 0)
        (parent,) = await app.dead_letters(state="edited")
        (child,) = await app.dead_letters(state="resolved")
        assert (parent.id, child.edited_from) == (letter.id, letter.id)
        assert child.event_id != letter.event_id
        assert child.causation_id == str(letter.event_id)
        assert child.headers["el-edited-from"] == str(letter.id).encode()
        assert (child.offset, child.key, child.group) == (letter.offset, letter.key, GROUP)
        (event,) = await app.history(letter)
        assert (event.action, event.reason, event.operation) == ("edit", "a typo", operation.id)
        assert msgspec.json.decode(event.detail or "") == {"number": [0, 7]}


async def an_edited_event_that_is_none_is_refused_by_its_field(make: Factory) -> None:
    """An edit needs permission and must be an event of its type and lane; else nothing changes."""
    stage = _Stage(make)
    async with (app := stage.app()):
        (letter,) = await _dead(app, "a", 0)
        call = app.edit_and_replay
        await refused(Refused, lambda: call(letter, Step("a", 1), reason="x"), "allow_edit=True")
    async with (app := stage.app(allow_edit=True)):
        edit = app.edit_and_replay
        for value, *words in (
            (b'{"key":"a","number":"x"}', "cannot be read: Step.number: expected int, got str."),
            ('{"key":"a"}', "number", "got none"),
            ({"key": "b", "number": 1}, "expected the key 'a'", "got 'b'"),
            (b"{", "expected JSON"),
            (7, "expected one, or its JSON", "got int"),
        ):
            await refused(EventRefused, partial(edit, letter, value, reason="x"), *words)
        assert [each.state for each in await app.dead_letters()] == ["open"]
        assert await app.history(letter) == []
    async with (stranger := make.app(clock=stage.clock, allow_edit=True)):
        edit = stranger.edit_and_replay
        await refused(Refused, lambda: edit(letter, Step("a", 1), reason="x"), "Step", GROUP)


async def a_dead_letter_is_published_again_for_all_only_where_that_is_permitted(
    make: Factory,
) -> None:
    """Republishing appends the event anew for all groups, and is permitted apart from replays."""
    stage = _Stage(make)
    async with (app := stage.app()):
        (letter,) = await _dead(app, "a", 0)
        await refused(Refused, lambda: app.republish(letter, reason="x"), "allow_republish=True")
    app = stage.app(allow_republish=True)
    others = Journal(stage.clock)

    @app.subscribe(Step, group="other")
    async def look_on(step: Step, ctx: Context[Any]) -> None:
        others.note(step, ctx)

    async with app:
        position = await app.republish(letter, reason="all need it", actor="ada")
        assert position == (letter.topic, 0, 1)
        stage.mend()
        await _run(app)
        assert others.numbers("a", "other") == [0, 0]
        assert stage.journal.numbers("a") == [0, 0]
        messages = [message async for message in app.read(Step)]
        assert messages[1].value == letter.value
        assert messages[1].event_id != letter.event_id
        assert messages[1].headers["el-causation-id"] == str(letter.event_id).encode()
        (event,) = await app.history(letter)
        assert (event.action, event.actor, event.reason) == ("republish", "ada", "all need it")
        assert [each.state for each in await app.dead_letters()] == ["open"]


async def every_change_of_a_letter_says_who_when_and_why(make: Factory) -> None:
    """Every change of a letter is kept: who, what, why, when, and in which operation."""
    stage = _Stage(make)
    async with (app := stage.app()):
        (letter,) = await _dead(app, "a", 0)
        first = await app.replay(letter, reason="try", actor="ada")
        await _run(app)
        second = await app.archive(letter.id, reason="give up", actor="bob")
        third = await app.restore(letter.id, reason="hope", actor="ada")
        stage.mend()
        fourth = await app.replay(letter.id, reason="mended", actor="ada")
        await _run(app)
        history = await app.history(letter.id)
        assert [(each.action, each.operation) for each in history] == [
            ("replay", first.id),
            ("failed", first.id),
            ("archive", second.id),
            ("restore", third.id),
            ("replay", fourth.id),
            ("resolved", fourth.id),
        ]
        by_people = [each for each in history if each.reason]
        assert [(each.actor, each.reason) for each in by_people] == [
            ("ada", "try"),
            ("bob", "give up"),
            ("ada", "hope"),
            ("ada", "mended"),
        ]
        assert all(each.actor.startswith(f"{GROUP}@") for each in history if not each.reason)
        assert [each.id for each in await app.operations()] == [
            each.id for each in (fourth, third, second, first)
        ]


async def nobody_publishes_to_a_topic_of_dead_letters(make: Factory) -> None:
    """Publishing to a topic whose name ends in `.dlq` is refused."""
    stage = _Stage(make)
    async with (app := stage.app()):
        await _dead(app, "a", 0)
        topic = f"steps.{GROUP}.dlq"
        await refused(EventRefused, lambda: app.publish(Step("a", 1), topic=topic), topic)
