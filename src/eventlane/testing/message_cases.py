"""Cases about messages that handlers get and publish: types, bytes, tombstones, ids, chains."""

from typing import Any

import msgspec

from eventlane.app import App
from eventlane.event import event
from eventlane.handler import Batch, Context
from eventlane.message import EVENT_TYPE, Message, Record, encode_headers, event_ids
from eventlane.outcome import Dead, Outcome
from eventlane.retry import Retry
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import GROUP, PATIENCE_S, TOPIC, Boom, Factory, Step, staged
from eventlane.topic import Topic


@event(topic="orders", key="order")
class Ordered(msgspec.Struct, frozen=True):
    """An event that handlers publish."""

    order: str


@event(topic="orders", key="order")
class Paid(msgspec.Struct, frozen=True):
    """Another one on the same topic."""

    order: str


@event(topic="unheard-of")
class Unheard(msgspec.Struct, frozen=True):
    """An event on a topic that nobody has subscribed to."""

    what: str


@event(topic="measured", key="sensor", name="Measured")
class _Text(msgspec.Struct, frozen=True):
    """As a publisher writes it."""

    sensor: str
    value: str


@event(topic="measured", key="sensor", name="Measured")
class _Narrow(msgspec.Struct, frozen=True):
    """As a handler reads it that does not know of text yet."""

    sensor: str
    value: int


@event(topic="measured", key="sensor", name="Measured")
class _Wide(msgspec.Struct, frozen=True):
    """As it reads it since it was mended."""

    sensor: str
    value: int | str


def _record(value: bytes | None, key: bytes | None = b"a", *, type: str | None = None) -> Record:
    headers = {} if type is None else {EVENT_TYPE: type}
    return Record(event_ids(0, 1)[0], key, value, 0, encode_headers(headers))


async def _append(make: Factory, topic: str, *records: Record) -> None:
    """Append what another program might have written."""
    async with make() as broker:
        await broker.ensure_topic(Topic(topic, partitions=1))
        await broker.append([(topic, records)])


async def _messages(app: App, topic: str) -> list[Message]:
    return [message async for message in app.read(topic)]


async def bytes_that_are_no_event_are_dead_at_once_and_kept(make: Factory) -> None:
    """Bytes that cannot be decoded are dead at their first attempt, and kept byte for byte."""
    bad = [b"\xff\x00 no JSON", b'{"key": 5, "number": "x"}', b""]
    await _append(make, TOPIC, *(_record(value, type="Step") for value in bad))
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, on_dead="continue")
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    @app.subscribe(Step, group="batch", on_dead="continue", batch=Batch(2))
    async def handle_list(steps: list[Step], contexts: list[Context[Any]]) -> None:
        for step, ctx in zip(steps, contexts, strict=True):
            journal.note(step, ctx)

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        for group in (GROUP, "batch"):
            letters = sorted(await app.dead_letters(group=group), key=lambda each: each.offset)
            assert [each.value for each in letters] == bad
            assert [each.stage for each in letters] == ["decode", "validate", "decode"]
            assert {each.disposition for each in letters} == {"undecodable"}
            assert {each.attempts for each in letters} == {1}
            assert all("Step" in each.error_message for each in letters)
            assert "no JSON" not in letters[0].error_message
            assert journal.numbers("a", group) == [0]


async def an_undecodable_letter_is_decoded_again_after_a_schema_fix(make: Factory) -> None:
    """A letter that could not be decoded runs under the mended type, before its followers."""
    clock = ManualClock()
    seen: list[tuple[int | str, bool]] = []

    def app(kind: type[_Narrow | _Wide]) -> App:
        made = make.app(clock=clock, partitions=1)

        @made.subscribe(kind, group=GROUP)
        async def handle(measured: _Narrow | _Wide, ctx: Context[Any]) -> None:
            seen.append((measured.value, ctx.replayed))

        return made

    async with (old := app(_Narrow)):
        await old.publish_many([_Text("a", "high"), _Narrow("a", 2)])
        await old.run_until_idle(PATIENCE_S)
        (letter,) = await old.dead_letters()
        assert (letter.disposition, letter.parked_followers) == ("undecodable", 1)
        await old.replay(letter, reason="nothing has changed")
        await old.run_until_idle(PATIENCE_S)
        (letter,) = await old.dead_letters()
        assert letter.replay_count == 1
        assert not seen
    async with (new := app(_Wide)):
        await new.replay(letter, reason="the type is mended")
        await new.run_until_idle(PATIENCE_S)
        assert seen == [("high", True), (2, False)]
        account = (await new.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (2, 0, 0)


async def headers_that_are_no_headers_are_dead_and_kept(make: Factory) -> None:
    """A message whose headers cannot be read is dead and kept, and its group goes on."""
    bad = Record(event_ids(0, 1)[0], b"a", b'{"key":"a","number":0}', 0, b"\xff no headers")
    await _append(make, TOPIC, bad)
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, on_dead="continue")
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    async with app:
        await app.publish(Step("a", 1))
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert letter.record == bad
        assert letter.disposition == "undecodable"
        assert "headers" in letter.error_message
        assert journal.numbers("a") == [1]


async def an_event_type_that_no_handler_takes_is_skipped(make: Factory) -> None:
    """An event of a type that the group does not handle is skipped, and counted as skipped."""
    app, journal, _ = staged(make)
    seen: list[str] = []

    @app.subscribe(Ordered, group=GROUP)
    async def handle(ordered: Ordered, _: Context[Any]) -> None:
        seen.append(ordered.order)

    async with app:
        await app.publish_many([Ordered("1"), Paid("1"), Ordered("2")])
        await app.run_until_idle(PATIENCE_S)
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.skipped, account.dead) == (2, 1, 0)
        assert account.balances
        assert seen == ["1", "2"]
        assert not journal.runs


async def a_message_that_does_not_say_its_type_is_the_only_one_of_its_topic(make: Factory) -> None:
    """A message without ce_type is what the group handles on its topic, if that is one type."""
    await _append(make, TOPIC, _record(b'{"key":"a","number":7}'))
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    async with app:
        await app.run_until_idle(PATIENCE_S)
        assert journal.numbers("a") == [7]


async def a_message_that_does_not_say_its_type_is_dead_where_there_are_several(
    make: Factory,
) -> None:
    """A message without ce_type is dead, bytes kept, where the group handles several types."""
    value = b'{"order":"1"}'
    await _append(make, "orders", _record(value))
    app, _, _ = staged(make)
    seen: list[object] = []

    @app.subscribe(Ordered, Paid, group=GROUP)
    async def handle(happened: Ordered | Paid, _: Context[Any]) -> None:
        seen.append(happened)

    async with app:
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert not seen
        assert (letter.value, letter.disposition) == (value, "undecodable")
        assert "expected a ce_type header" in letter.error_message
        assert "2 types" in letter.error_message
        assert "Mend the sender" in letter.error_message


async def a_tombstone_reaches_only_handlers_that_take_none(make: Factory) -> None:
    """A tombstone is skipped, unless the handler's event is annotated `T | None`."""
    await _append(make, TOPIC, _record(None, type="Step"))
    app, journal, _ = staged(make)
    seen: list[Step | None] = []

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)

    async def handle_both(step: Step | None, _: Context[Any]) -> None:
        seen.append(step)

    app.subscribe(Step, group="both")(handle_both)
    async with app:
        await app.publish(Step("a", 1))
        await app.run_until_idle(PATIENCE_S)
        accounts = (await app.status()).groups
        assert (accounts[GROUP].done, accounts[GROUP].skipped) == (1, 1)
        assert (accounts["both"].done, accounts["both"].skipped) == (2, 0)
        assert seen == [None, Step("a", 1)]


async def an_event_without_a_key_is_a_lane_of_its_own(make: Factory) -> None:
    """A keyless event that is dead or waits for a retry holds up no other keyless event."""
    values = [b'{"key":"%d","number":0}' % number for number in range(4)]
    await _append(make, TOPIC, *(_record(each, None, type="Step") for each in values))
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=9, immediate=0, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        if step.key == "1":
            raise Boom

    async with app:
        await app.run_until_idle(PATIENCE_S)
        assert [run.key for run in journal.runs] == ["0", "1", "2", "3", "1"]
        account = (await app.status()).groups[GROUP]
        assert (account.done, account.dead, account.parked) == (3, 1, 0)
        (letter,) = await app.dead_letters()
        assert (letter.key, letter.on_dead) == (None, "continue")


async def what_was_published_by_a_handler_and_its_outcome_are_there_together(
    make: Factory,
) -> None:
    """Events that a handler publishes are never there without its outcome, nor the other way."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        ctx.publish(Ordered(f"{step.key}{step.number}"))
        ctx.publish(Ordered(f"{step.key}{step.number} again"))

    async with app:
        await app.publish(Ordered("the topic exists"))
        async with app.handling():
            for number in range(30):
                await app.publish(Step("a", number))
                status = await app.status()
                done, published = status.groups[GROUP].done, status.topics["orders"].published
                assert published == 2 * done + 1
            await app.run_until_idle(PATIENCE_S)
        assert len(await _messages(app, "orders")) == 61
        assert (await app.status()).groups[GROUP].done == 30


async def what_a_failed_run_published_is_dropped(make: Factory) -> None:
    """What a run published that failed, or whose event died, is never visible."""
    app, _, _ = staged(make)

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> Outcome | None:
        ctx.publish(Ordered(f"{step.key} {ctx.attempt}"))
        if step.key == "dead":
            return Dead("no")
        if step.key == "never" or ctx.attempt == 1:
            raise Boom
        return None

    async with app:
        await app.publish(Ordered("the topic exists"))
        await app.publish_many([Step(key, 0) for key in ("dead", "never", "second")])
        await app.run_until_idle(PATIENCE_S)
        found = [app.decode(each, Ordered).order for each in await _messages(app, "orders")]
        assert found == ["the topic exists", "second 2"]


async def what_a_handler_publishes_creates_its_topic(make: Factory) -> None:
    """A handler may publish to a topic that nobody has published or subscribed to before."""
    app, journal, _ = staged(make)

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context[Any]) -> None:
        journal.note(step, ctx)
        ctx.publish(Unheard(step.key))

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        (message,) = await _messages(app, "unheard-of")
        assert app.decode(message, Unheard) == Unheard("a")
        assert (await app.status()).groups[GROUP].done == 1


async def what_is_published_again_has_the_same_id(make: Factory) -> None:
    """A handler that runs again publishes the same events under the same ids."""
    app, _, _ = staged(make)
    ids: list[Any] = []

    @app.subscribe(Step, group=GROUP, retry=Retry(attempts=2, delay_s=1, jitter=0))
    async def handle(step: Step, ctx: Context[Any]) -> None:
        ids.append(ctx.publish(Ordered(step.key)))
        ids.append(ctx.publish(Ordered(step.key)))
        if ctx.attempt == 1:
            raise Boom

    async with app:
        await app.publish(Ordered("the topic exists"))
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert ids[:2] == ids[2:]
        assert ids[0] != ids[1]
        assert [each.event_id for each in await _messages(app, "orders")][1:] == ids[:2]


async def events_of_a_chain_have_its_correlation_and_their_cause(make: Factory) -> None:
    """Each event of a chain carries the id of its first one, and the id of the one before it."""
    app, _, _ = staged(make)
    seen: list[tuple[str, str, str | None, str]] = []

    @app.subscribe(Step, group=GROUP)
    async def first(step: Step, ctx: Context[Any]) -> None:
        seen.append(("step", str(ctx.event_id), ctx.causation_id, ctx.correlation_id))
        ctx.publish(Ordered(step.key))

    @app.subscribe(Ordered, group=GROUP)
    async def second(ordered: Ordered, ctx: Context[Any]) -> None:
        seen.append(("ordered", str(ctx.event_id), ctx.causation_id, ctx.correlation_id))
        ctx.publish(Paid(ordered.order))

    @app.subscribe(Paid, group="other")
    async def third(_: Paid, ctx: Context[Any]) -> None:
        seen.append(("paid", str(ctx.event_id), ctx.causation_id, ctx.correlation_id))

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        assert [what for what, *_ in seen] == ["step", "ordered", "paid"]
        (_, root, _, _), (_, middle, _, _), _ = seen
        assert [cause for _, _, cause, _ in seen] == [None, root, middle]
        assert {correlation for *_, correlation in seen} == {root}
