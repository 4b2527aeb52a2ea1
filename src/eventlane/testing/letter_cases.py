"""Cases about dead letters: what their lanes do, what is kept, and what a replay runs."""

from functools import partial
from typing import Any

from eventlane.account import GroupStatus
from eventlane.app import App
from eventlane.errors import Conflict, Refused
from eventlane.failure import DeadLetter
from eventlane.handler import Context
from eventlane.outcome import Dead, Outcome
from eventlane.retry import Retry
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import GROUP, PATIENCE_S, Boom, Factory, Journal, Step, refused, until

_ONCE = Retry(attempts=1)


class _Stage:
    """An app whose handler fails for the steps in `poison`."""

    def __init__(self, make: Factory, *, partitions: int = 1, **options: Any) -> None:
        self.clock = ManualClock()
        self.journal = Journal(self.clock)
        self.poison: dict[tuple[str, int], Outcome | None] = {}
        """Steps that fail: with what is returned, or None for an exception."""
        self._make = make
        self._partitions = partitions
        self._options: dict[str, Any] = {"retry": _ONCE, **options}

    def app(self, group: str = GROUP) -> App:
        app = self._make.app(clock=self.clock, partitions=self._partitions)
        app.subscribe(Step, group=group, **self._options)(self.handle)
        return app

    async def handle(self, step: Step, ctx: Context[Any]) -> Outcome | None:
        self.journal.note(step, ctx)
        if (step.key, step.number) in self.poison:
            outcome = self.poison[step.key, step.number]
            if outcome is None:
                raise Boom(f"no {step.key}{step.number}")
            return outcome
        return None


async def _run(app: App) -> GroupStatus:
    await app.run_until_idle(PATIENCE_S)
    account = (await app.status()).groups[GROUP]
    assert account.balances, f"expected an account that balances, got {account}"
    assert account.pending == 0
    return account


async def _publish(app: App, keys: str, *numbers: int) -> None:
    await app.publish_many([Step(key, number) for number in numbers for key in keys])


async def _letter(app: App) -> DeadLetter:
    (letter,) = await app.dead_letters()
    return letter


async def a_letter_that_parks_closes_its_lane_until_it_is_archived(make: Factory) -> None:
    """on_dead="park": later events of the key are parked until the letter is archived."""
    stage = _Stage(make)
    stage.poison["a", 1] = None
    async with (app := stage.app()):
        await _publish(app, "ab", 0, 1, 2, 3)
        account = await _run(app)
        assert (account.done, account.dead, account.parked, account.open) == (5, 1, 2, 0)
        assert stage.journal.numbers("a") == [0, 1]
        assert stage.journal.numbers("b") == [0, 1, 2, 3]
        letter = await _letter(app)
        assert (letter.on_dead, letter.parked_followers) == ("park", 2)
        operation = await app.archive(letter, reason="not needed")
        account = await _run(app)
        assert (await operation.wait()).changed == 1
        assert stage.journal.numbers("a") == [0, 1, 2, 3]
        assert (account.done, account.archived, account.parked, account.dead) == (7, 1, 0, 0)


async def a_letter_that_parks_closes_its_lane_until_it_is_resolved(make: Factory) -> None:
    """on_dead="park": a replay runs at the head of the lane, and the parked ones after it."""
    stage = _Stage(make)
    stage.poison["a", 1] = None
    async with (app := stage.app()):
        await _publish(app, "ab", 0, 1, 2, 3)
        await _run(app)
        del stage.poison["a", 1]
        operation = await app.replay(await _letter(app), reason="mended")
        account = await _run(app)
        assert (await operation.wait()).resolved == 1
        assert stage.journal.numbers("a") == [0, 1, 1, 2, 3]
        runs = stage.journal.of("a")
        assert [run.replayed for run in runs] == [False, False, True, False, False]
        assert not any(run.late for run in runs)
        assert (account.done, account.dead, account.parked) == (8, 0, 0)


async def a_letter_whose_lane_continues_closes_nothing(make: Factory) -> None:
    """Dead(lane="continue"): the event is kept, and the next ones of its key run at once."""
    stage = _Stage(make)
    stage.poison["a", 1] = Dead("no such product", lane="continue")
    async with (app := stage.app()):
        await _publish(app, "a", 0, 1, 2)
        account = await _run(app)
        assert stage.journal.numbers("a") == [0, 1, 2]
        assert (account.done, account.dead, account.parked) == (2, 1, 0)
        letter = await _letter(app)
        assert (letter.on_dead, letter.error_message) == ("continue", "no such product")
        assert letter.disposition in {"permanent", "exhausted"}


async def a_letter_that_stops_halts_its_partition_and_no_other(make: Factory) -> None:
    """Dead(lane="stop"): its partition starts no new event until the letter is resolved."""
    stage = _Stage(make, partitions=2, concurrency=1)
    stage.poison["a", 1] = Dead("stop here", lane="stop")
    keys = "abcdefgh"
    async with (app := stage.app()):
        await _publish(app, keys, 0, 1, 2, 3)
        account = await _run(app)
        letter = await _letter(app)
        ends = await _ends(app)
        assert account.waiting == ends[letter.partition] - letter.offset - 1 > 0
        assert account.done + account.dead + account.waiting == 32
    async with (app := stage.app()):
        before = len(stage.journal.runs)
        await _run(app)
        assert len(stage.journal.runs) == before, "expected that it stays stopped over a restart"
        del stage.poison["a", 1]
        async with app.handling():
            await _run(app)
            await app.replay(letter, reason="mended")
            account = await _run(app)
        assert (account.done, account.dead, account.open) == (32, 0, 0)
        for key in keys:
            assert stage.journal.numbers(key) == ([0, 1, 1, 2, 3] if key == "a" else [0, 1, 2, 3])


async def _ends(app: App) -> list[int]:
    ends = [0, 0]
    async for message in app.read(Step):
        ends[message.partition] = message.offset + 1
    return ends


async def a_replay_of_a_letter_whose_lane_went_on_is_late(make: Factory) -> None:
    """A replay of a letter whose lane went on runs with ctx.late, and alone."""
    stage = _Stage(make)
    stage.poison["a", 1] = Dead(lane="continue")
    async with (app := stage.app()):
        await _publish(app, "a", 0, 1, 2)
        await _run(app)
        del stage.poison["a", 1]
        await app.replay(await _letter(app), reason="mended")
        account = await _run(app)
        assert stage.journal.numbers("a") == [0, 1, 2, 1]
        last = stage.journal.runs[-1]
        assert (last.late, last.replayed, last.attempt) == (True, True, 1)
        assert (account.done, account.dead) == (3, 0)


async def a_replay_runs_in_the_group_that_failed_and_nowhere_else(make: Factory) -> None:
    """P6: a replayed letter runs in the group that failed; no other group sees the event again."""
    stage = _Stage(make)
    app = stage.app()
    quiet = Journal(stage.clock)

    @app.subscribe(Step, group="bystander")
    async def look_on(step: Step, ctx: Context[Any]) -> None:
        quiet.note(step, ctx)

    @app.subscribe(Step, group="failing", retry=_ONCE)
    async def fail(step: Step, ctx: Context[Any]) -> None:
        quiet.note(step, ctx)
        raise Boom

    stage.poison["a", 0] = None
    async with app:
        await _publish(app, "a", 0, 1)
        await _run(app)
        del stage.poison["a", 0]
        (letter,) = await app.dead_letters(group=GROUP)
        await app.replay(letter, reason="mended")
        await _run(app)
        assert stage.journal.numbers("a") == [0, 0, 1]
        assert quiet.numbers("a", "bystander") == [0, 1]
        assert quiet.numbers("a", "failing") == [0]
        accounts = (await app.status()).groups
        assert accounts["bystander"].done == 2
        assert (accounts["failing"].dead, accounts["failing"].parked) == (1, 1)
        assert (await app.status()).topics["steps"].published == 2


async def a_replayed_letter_that_fails_again_is_open_again(make: Factory) -> None:
    """A replayed letter that fails again is open, with one replay more; its followers wait."""
    stage = _Stage(make)
    stage.poison["a", 0] = None
    async with (app := stage.app()):
        await _publish(app, "a", 0, 1)
        await _run(app)
        first = await _letter(app)
        for count in (1, 2):
            operation = await app.replay(await _letter(app), reason="try")
            account = await _run(app)
            assert (await operation.wait()).failed == 1
            letter = await _letter(app)
            assert (letter.id, letter.replay_count, letter.on_dead) == (first.id, count, "park")
            assert letter.version > first.version
            assert (account.dead, account.parked, account.done) == (1, 1, 0)
        stage.poison.clear()
        await app.replay(await _letter(app), reason="mended")
        assert (await _run(app)).done == 2
        assert stage.journal.numbers("a") == [0, 0, 0, 0, 1]


async def a_replay_has_a_new_budget_of_attempts(make: Factory) -> None:
    """A replay has a new budget of attempts, with the same delays; all its runs are `replayed`.

    The history of attempts goes on over it.
    """
    stage = _Stage(make, retry=Retry(attempts=3, delay_s=10, jitter=0, immediate=0))
    stage.poison["a", 0] = None
    async with (app := stage.app()):
        await _publish(app, "a", 0)
        await _run(app)
        replayed_ms = stage.clock.now_ms()
        await app.replay(await _letter(app), reason="try")
        await _run(app)
        runs = stage.journal.of("a")
        assert [run.attempt for run in runs] == [1, 2, 3, 1, 2, 3]
        assert [run.replayed for run in runs] == [False] * 3 + [True] * 3
        assert [run.at_ms - replayed_ms for run in runs[3:]] == [0, 10_000, 30_000]
        letter = await _letter(app)
        assert letter.attempts == 3
        assert [each.number for each in letter.history] == [1, 2, 3, 1, 2, 3]
        began_ms = [each.started_ms for each in letter.history]
        assert began_ms == [run.at_ms for run in runs]


async def a_replayed_letter_waits_for_its_retries_before_its_followers(make: Factory) -> None:
    """While a replay waits for its retry, over a restart too, its followers wait behind it."""
    stage = _Stage(make, retry=Retry(attempts=2, delay_s=10, jitter=0, immediate=0))
    stage.poison["a", 0] = None
    async with (app := stage.app()):
        await _publish(app, "a", 0, 1)
        await _run(app)
        await app.replay(await _letter(app), reason="try")
        runs = len(stage.journal.runs)
        async with app.handling():
            await until(lambda: len(stage.journal.runs) > runs, "the first run of the replay")
        assert stage.journal.numbers("a") == [0, 0, 0]
    stage.poison.clear()
    async with (app := stage.app()):
        await _publish(app, "a", 2)
        account = await _run(app)
        runs_of_a = stage.journal.of("a")
        assert [run.number for run in runs_of_a] == [0, 0, 0, 0, 1, 2]
        assert [run.attempt for run in runs_of_a] == [1, 2, 1, 2, 1, 1]
        assert runs_of_a[3].replayed
        assert runs_of_a[3].at_ms - runs_of_a[2].at_ms == 10_000
        assert (account.done, account.dead, account.parked) == (3, 0, 0)


async def while_a_letter_is_replayed_it_cannot_be_changed(make: Factory) -> None:
    """A letter that is replayed cannot be replayed or archived; a resolved one neither."""
    stage = _Stage(make)
    stage.poison["a", 0] = None
    async with (app := stage.app()):
        await _publish(app, "a", 0)
        await _run(app)
        letter = await _letter(app)
        stage.poison.clear()
        await app.replay(letter, reason="mended")
        for change in (app.replay, app.archive):
            await refused(Conflict, partial(change, letter, reason="again"), str(letter.id))
        await _run(app)
        for change in (app.replay, app.archive):
            await refused(Refused, partial(change, letter, reason="again"), str(letter.id))
        assert stage.journal.numbers("a") == [0, 0]


async def letters_of_one_key_are_replayed_in_the_order_of_the_log(make: Factory) -> None:
    """Several letters of one key run in the order of the log, whatever order they are named in."""
    stage = _Stage(make, on_dead="continue")
    for number in range(4):
        stage.poison["a", number] = None
    async with (app := stage.app()):
        await _publish(app, "a", 0, 1, 2, 3, 4)
        await _run(app)
        stage.poison.clear()
        letters = sorted(await app.dead_letters(), key=lambda each: -each.offset)
        await app.replay(letters, reason="mended")
        account = await _run(app)
        assert stage.journal.numbers("a") == [0, 1, 2, 3, 4, 0, 1, 2, 3]
        assert (account.done, account.dead) == (5, 0)


async def new_events_of_a_parked_key_follow_the_parked_ones(make: Factory) -> None:
    """Events that come while parked ones are worked off run behind them, not between them."""
    stage = _Stage(make)
    stage.poison["a", 0] = None
    app = stage.app()
    async with app:
        await _publish(app, "a", *range(30))
        await _run(app)
        stage.poison.clear()
        letter = await _letter(app)
        async with app.handling():
            await app.replay(letter, reason="mended")
            for number in range(30, 60):
                await _publish(app, "a", number)
            account = await _run(app)
        assert stage.journal.numbers("a") == [0, *range(60)]
        assert (account.done, account.parked) == (60, 0)


async def parked_events_survive_a_restart_in_order(make: Factory) -> None:
    """Parked events of several keys are there after a restart, and follow their own letter only."""
    stage = _Stage(make, partitions=2)
    keys = "abcd"
    for key in keys:
        stage.poison[key, 1] = None
    async with (app := stage.app()):
        await _publish(app, keys, *range(5))
        await _run(app)
    async with (app := stage.app()):
        await _publish(app, keys, 5, 6)
        account = await _run(app)
        assert (account.dead, account.parked, account.done) == (4, 20, 4)
        stage.poison.clear()
        letters = {(each.key or b"").decode(): each for each in await app.dead_letters()}
        assert {each.parked_followers for each in letters.values()} == {5}
        await app.archive([letters["a"], letters["b"]], reason="not needed")
    async with (app := stage.app()):
        account = await _run(app)
        assert (account.dead, account.parked, account.done, account.archived) == (2, 10, 14, 2)
        for key in keys:
            expected = [0, 1, 2, 3, 4, 5, 6] if key in "ab" else [0, 1]
            assert stage.journal.numbers(key) == expected


async def order_holds_through_dead_letter_restart_and_replay(make: Factory) -> None:
    """P1: dead, restart, new events, replay that fails, restart, replay: no event overtakes."""
    stage = _Stage(make, retry=Retry(attempts=2, delay_s=1, jitter=0))
    stage.poison["a", 2] = None
    async with (app := stage.app()):
        await _publish(app, "ab", 0, 1, 2, 3)
        await _run(app)
    async with (app := stage.app()):
        await _publish(app, "ab", 4, 5)
        await app.replay(await _letter(app), reason="try")
        await _run(app)
    async with (app := stage.app()):
        await _publish(app, "ab", 6)
        await _run(app)
        assert stage.journal.numbers("a") == [0, 1, 2, 2, 2, 2]
        stage.poison.clear()
        await app.replay(await _letter(app), reason="mended")
    async with (app := stage.app()):
        await _publish(app, "ab", 7)
        account = await _run(app)
        assert stage.journal.numbers("a") == [0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7]
        assert stage.journal.numbers("b") == list(range(8))
        assert (account.done, account.entered) == (16, 16)


async def a_dead_letter_keeps_the_whole_event_and_how_it_failed(make: Factory) -> None:
    """A dead letter has the event byte for byte, the error with its place, and every attempt."""
    stage = _Stage(make, retry=Retry(attempts=3, delay_s=1, jitter=0))
    stage.poison["a", 0] = stage.poison["b", 0] = None
    async with (app := stage.app()):
        published = await app.publish(
            Step("a", 0), headers={"traceparent": "00-" + "ab" * 16 + "-01", "mine": b"\x00\xff"}
        )
        await app.publish(Step("b", 0))
        await _run(app)
        letters = {(each.key or b"").decode(): each for each in await app.dead_letters()}
        letter = letters["a"]
        (message,) = [each async for each in app.read(Step) if each.key == b"a"]
        assert (letter.topic, letter.partition, letter.offset) == published
        assert letter.record == message.record
        assert letter.headers["mine"] == b"\x00\xff"
        assert letter.event_id == message.event_id
        assert (letter.group, letter.event_type, letter.stage) == (GROUP, "Step", "handle")
        assert (letter.disposition, letter.attempts) == ("exhausted", 3)
        assert (letter.error_class, letter.error_message) == ("Boom", "no a0")
        assert "letter_cases.py" in letter.error_stack
        assert [each.number for each in letter.history] == [1, 2, 3]
        assert [each.error_class for each in letter.history] == ["Boom"] * 3
        assert letter.handler.endswith("_Stage.handle")
        assert "attempts=3" in letter.policy
        assert letter.trace_id == "ab" * 16
        assert letter.correlation_id == str(letter.event_id)
        assert letter.fingerprint == letters["b"].fingerprint
        assert letter.first_failed_ms + 1000 == letter.last_failed_ms
        assert (letter.app, letter.state, letter.version) == ("app", "open", 1)
