"""What the cases of the conformance suite stand on: a storage, an event, and what handlers did."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

import msgspec

from eventlane.account import GroupStatus
from eventlane.app import App
from eventlane.broker import Broker, Consumer
from eventlane.brokers import connect
from eventlane.clock import Clock, sleep
from eventlane.event import event
from eventlane.failure import Attempt, Attempts, DeadLetter
from eventlane.handler import Context
from eventlane.message import EVENT_TYPE, Record, derived_id, encode_headers, event_ids
from eventlane.outcome import LaneOnDead
from eventlane.settlement import Acquired, GroupSpec, Settlement
from eventlane.testing.clock import ManualClock
from eventlane.testing.mortal import Kill, MortalBroker, say_suspects_and_leave
from eventlane.topic import Topic

__all__ = [
    "GROUP",
    "PATIENCE_S",
    "TOPIC",
    "Boom",
    "Factory",
    "Journal",
    "Run",
    "Step",
    "Storage",
    "account_of",
    "acquired",
    "attempts",
    "changes_until",
    "fill",
    "joined",
    "letter",
    "offsets_of",
    "record",
    "refused",
    "settlement",
    "spec",
    "staged",
    "steps_of",
    "until",
]

E = TypeVar("E", bound=Exception)

PATIENCE_S = 10.0
"""How long a case waits for what must happen, before it says that it does not."""
TOPIC = "steps"
GROUP = "group"


class Factory(Protocol):
    """Opens one storage, as often as a case asks: each time as another process would."""

    def __call__(self, *, clock: Clock | None = None) -> AbstractAsyncContextManager[Broker]:
        """The broker, closed at the end; the storage stays."""
        ...

    def app(self, *, name: str = "app", **options: Any) -> App:
        """An app without subscriptions on the same storage."""
        ...

    async def kill(self, opened: Broker | App) -> None:
        """End a broker, or a connected app, as kill -9 would: it writes nothing more."""
        ...


class Storage:
    """A `Factory` for what a URL names.

    Args:
        url: What the broker is opened by. With `embedded::memory:` each opening has a storage of
            its own, so that cases which open it again cannot pass.
        durability: See `App`.
        wrap: Puts another broker around the real one: see `broken.py`.
        kill: Ends an opened broker as the death of its process would. By default it says so itself.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Literal["fsync", "os"] | None = None,
        wrap: Callable[[Broker], Broker] = lambda broker: broker,
        kill: Kill = say_suspects_and_leave,
    ) -> None:
        self._url = url
        self._durability: Literal["fsync", "os"] | None = durability
        self._wrap_real = wrap
        self._kill = kill
        self._opened: list[tuple[Broker, MortalBroker]] = []
        """What it has opened, and what of that can be killed."""

    def _wrap(self, real: Broker) -> Broker:
        mortal = MortalBroker(real, self._kill)
        broker = self._wrap_real(mortal)
        self._opened.append((broker, mortal))
        return broker

    @asynccontextmanager
    async def __call__(self, *, clock: Clock | None = None) -> AsyncGenerator[Broker]:
        """See `Factory`."""
        broker = self._wrap(await connect(self._url, clock=clock, durability=self._durability))
        try:
            yield broker
        finally:
            await broker.aclose()

    def app(self, *, name: str = "app", **options: Any) -> App:
        """See `Factory`."""
        app = _WrappedApp(self._url, name=name, durability=self._durability, **options)
        app.wrap = self._wrap
        return app

    async def kill(self, opened: Broker | App) -> None:
        """See `Factory`."""
        broker = opened.opened if isinstance(opened, _WrappedApp) else opened
        for known, mortal in self._opened:
            if known is broker:
                await mortal.kill()


class _WrappedApp(App):
    wrap: Callable[[Broker], Broker]
    opened: Broker | None = None

    async def _open_broker(self) -> Broker:
        self.opened = self.wrap(await super()._open_broker())
        return self.opened


# --- events and what handlers did with them ---------------------------------------------------


@event(topic=TOPIC, key="key")
class Step(msgspec.Struct, frozen=True):
    """The event of most cases: steps of one key are numbered in order."""

    key: str
    number: int


class Boom(Exception):
    """What handlers raise."""


class Run(NamedTuple):
    """One run of a handler."""

    group: str
    key: str
    number: int
    attempt: int
    replayed: bool
    late: bool
    at_ms: int


class Journal:
    """What handlers did, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.runs: list[Run] = []

    def note(self, step: Step, ctx: Context[Any]) -> None:
        """A handler has begun."""
        self.runs.append(
            Run(
                ctx.group,
                step.key,
                step.number,
                ctx.attempt,
                ctx.replayed,
                ctx.late,
                self._clock.now_ms(),
            )
        )

    def numbers(self, key: str, group: str = GROUP) -> list[int]:
        """The numbers of the steps of a key that were run, in order, each run."""
        return [run.number for run in self.of(key, group)]

    def of(self, key: str, group: str = GROUP) -> list[Run]:
        """The runs of a key, in order."""
        return [run for run in self.runs if run.key == key and run.group == group]


def staged(
    make: Factory, *, partitions: int = 1, **options: Any
) -> tuple[App, Journal, ManualClock]:
    """An app, a journal for its handlers, and the clock of both."""
    clock = ManualClock()
    return make.app(clock=clock, partitions=partitions, **options), Journal(clock), clock


def steps_of(keys: str, count: int, first: int = 0) -> list[Step]:
    """So many steps of each key, which take turns."""
    return [Step(key, number) for number in range(first, first + count) for key in keys]


async def account_of(app: App, group: str = GROUP) -> GroupStatus:
    """The account of a group.

    Raises:
        AssertionError: It does not balance.
    """
    account = (await app.status()).groups[group]
    assert account.balances, f"expected an account that balances, got {account}"
    return account


async def until(condition: Callable[[], bool | Awaitable[bool]], expected: str) -> None:
    """Wait until something is so.

    Raises:
        AssertionError: It was not so within `PATIENCE_S`.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = condition()
                if found if isinstance(found, bool) else await found:
                    return
                await sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"within {PATIENCE_S} s: expected {expected}") from None


# --- what goes to a broker --------------------------------------------------------------------


def record(key: str | bytes | None, value: str | bytes | None, *, time_ms: int = 0) -> Record:
    """A record as a log keeps it."""
    return Record(
        event_ids(time_ms, 1)[0],
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value,
        time_ms,
        encode_headers({EVENT_TYPE: "Step"}),
    )


def spec(name: str = GROUP, **options: Any) -> GroupSpec:
    """A group as an app would declare it."""
    given: dict[str, Any] = {
        "topics": (TOPIC,),
        "start": "first",
        "ordering": "key",
        "on_dead": "park",
        "app": "conformance",
        "host": "here",
    }
    given |= options
    given.setdefault("types", tuple((topic, "Thing") for topic in given["topics"]))
    return GroupSpec(name=name, **given)


async def fill(broker: Broker, records: Sequence[Record]) -> None:
    """Make a topic of one partition, which has these records."""
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await broker.append([(TOPIC, records)])


async def joined(broker: Broker, group: str = GROUP, **options: Any) -> tuple[Consumer, Acquired]:
    """A member of a group, and its first partition."""
    consumer = await broker.join(spec(group, **options))
    return consumer, await acquired(consumer)


async def refused(error: type[E], call: Callable[[], Awaitable[object]], *words: str) -> E:
    """What a call raises that must be refused, and whose message must have these words.

    Raises:
        AssertionError: It was not refused, or with other words.
    """
    try:
        await call()
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        if missing:
            raise AssertionError(f"expected {missing} in {str(raised)!r}") from raised
        return raised
    raise AssertionError(f"expected {error.__name__}, but nothing was refused")


async def changes_until(consumer: Consumer, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """What a consumer is told, until that is enough.

    Raises:
        AssertionError: It was not enough within `PATIENCE_S`.
    """
    found: list[Any] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not enough(found):
                found += await consumer.changes()
    except TimeoutError:
        raise AssertionError(f"within {PATIENCE_S} s the consumer was told only {found}") from None
    return found


async def acquired(consumer: Consumer, count: int = 1) -> Acquired:
    """Wait until a consumer has so many partitions; the first of them."""

    def enough(found: list[Any]) -> bool:
        return sum(isinstance(each, Acquired) for each in found) >= count

    found = await changes_until(consumer, enough)
    own = [each for each in found if isinstance(each, Acquired)]
    return min(own, key=lambda each: (each.topic, each.partition))


def settlement(own: Acquired, watermark: int, **options: Any) -> Settlement:
    """A settlement of a partition that is owned."""
    given: dict[str, Any] = {
        "topic": own.topic,
        "partition": own.partition,
        "epoch": own.epoch,
        "watermark": watermark,
        "settled": (),
        "dispatched": watermark - 1,
    }
    return Settlement(**{**given, **options})


def attempts(offset: int, count: int, *, due_ms: int = 0, lane: bytes | int = b"a") -> Attempts:
    """The stored attempts of an event that has failed so often."""
    history = tuple(
        Attempt(
            number=number,
            started_ms=number,
            planned_delay_s=0.0,
            actual_delay_s=0.0,
            duration_s=0.5,
            error_class="Boom",
            host="here",
        )
        for number in range(1, count + 1)
    )
    return Attempts(offset, count, due_ms, 1, 0, history, lane=lane)


def letter(
    own: Acquired,
    offset: int,
    what: Record,
    *,
    group: str = GROUP,
    on_dead: LaneOnDead = "park",
    replay_count: int = 0,
) -> DeadLetter:
    """A dead letter with everything that one has."""
    last = attempts(offset, 3)
    return DeadLetter(
        id=derived_id(own.topic, own.partition, offset, group),
        topic=own.topic,
        partition=own.partition,
        offset=offset,
        group=group,
        handler="stage.handle",
        lane=offset if what.key is None else what.key,
        key=what.key,
        value=what.value,
        header_block=what.headers,
        event_id=UUID(bytes=what.id),
        event_type="Step",
        stage="handle",
        disposition="exhausted",
        error_class="Boom",
        error_module="stage",
        error_message="no",
        error_stack="Boom: no",
        cause_class=None,
        fingerprint="0123456789abcdef",
        attempts=last.count,
        timeouts=0,
        crashes=0,
        first_failed_ms=1,
        last_failed_ms=3,
        produced_ms=what.time_ms,
        history=last.history,
        policy="Retry(attempts=3)",
        app="conformance",
        app_version="1",
        host="here",
        pid=1,
        correlation_id="c",
        causation_id=None,
        trace_id=None,
        on_dead=on_dead,
        replay_count=replay_count,
    )


def offsets_of(letters: Sequence[DeadLetter]) -> list[int]:
    """The offsets of dead letters, in their order."""
    return [each.offset for each in letters]
