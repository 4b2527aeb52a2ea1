"""The app: declare what handles which events, publish, handle, and look after what failed."""

import asyncio
import contextlib
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Literal, Self, TypeVar, Unpack, overload
from uuid import UUID

from eventlane.background import LoopThread, Submissions, stop_on_signals
from eventlane.broker import Broker
from eventlane.brokers import connect
from eventlane.clock import Clock, SystemClock
from eventlane.config import Limits, check_app, checked_options
from eventlane.dispatch import Dispatcher
from eventlane.errors import ConfigError, HandlerStuck, NotIdle, Refused, Unavailable
from eventlane.event import Key, event_type
from eventlane.failure import DeadLetter
from eventlane.handler import Middleware
from eventlane.handling import handling
from eventlane.idle import still_open, until_idle
from eventlane.inspecting import Inspecting
from eventlane.lifecycle import Lifecycle
from eventlane.message import Message, Position
from eventlane.publishing import publish_in_chunks
from eventlane.reading import read
from eventlane.serde import Codecs
from eventlane.serde.json import JsonCodec
from eventlane.serde.outgoing import Serialiser
from eventlane.subscription import (
    BatchHandlerOptions,
    HandlerOptions,
    Subscription,
    Takes,
    caller,
    declared,
    plan_groups,
)
from eventlane.topics import Topics

__all__ = ["App"]

log = logging.getLogger("eventlane")

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Handles = TypeVar("Handles", bound=Callable[..., Any])
_Lifespan = Callable[["App"], AbstractAsyncContextManager[Any]]


@checked_options
class App(Lifecycle, Inspecting):
    """An application on a broker: its subscriptions, and all that is done with the log.

    Args:
        url: `embedded:DIR` (one file in a directory) or `embedded::memory:`.
        name: What the app is called in headers (`ce_source`) and dead letters.
        version: What dead letters say of the code that failed.
        partitions: Of topics that it creates; 8 unless the topic says otherwise.
        durability: `fsync` (survives power loss, the default) or `os` (survives the process).
        format: How events are serialised that do not say so themselves.
        create_topics: Create missing topics; else a missing one is an error.
        dlq_payload: What is published of dead letters on `<topic>.<group>.dlq` has the event in it.
        allow_edit: Permit `edit_and_replay` to whoever can call this app.
        allow_republish: Permit `republish`, likewise.
        middleware: Stands around every handler; the first is the outermost.
        lifespan: An async context manager function of the app, entered each time handling starts
            and left after it drained; what it yields is `ctx.state`.
        limits: The bounds of this process.
        clock: For tests.

    Raises:
        ConfigError: An option is not what it should be.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "app",
        version: str | None = None,
        partitions: int | None = None,
        durability: Literal["fsync", "os"] | None = None,
        format: Literal["json"] = "json",
        create_topics: bool = True,
        dlq_payload: bool = False,
        allow_edit: bool = False,
        allow_republish: bool = False,
        middleware: Sequence[Middleware] = (),
        lifespan: _Lifespan | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name != "self"}
        self.url = url
        self.name, self.version = name, version
        self._subscriptions: list[Subscription] = []
        check_app(url, limits, middleware)
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._codecs = Codecs({"json": JsonCodec()}, default=format)
        self._topics = Topics(partitions=partitions, create=create_topics)
        self._serialise = Serialiser(
            codecs=self._codecs,
            source=name,
            clock=self._clock,
            bytes_max=self._limits.event_bytes_max,
            declare=self._topics.declare,
        )
        self._broker: Broker | None = None
        self._submitted = Submissions(name)
        self._decoders: dict[type, Callable[[bytes], Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LoopThread | None = None
        self._dispatchers: list[Dispatcher] = []
        self._has_moved = asyncio.Event()

    @overload
    def subscribe(self, a: type[A], /, **options: Unpack[HandlerOptions]) -> Takes[A]: ...
    @overload
    def subscribe(
        self, a: type[A], b: type[B], /, **options: Unpack[HandlerOptions]
    ) -> Takes[A | B]: ...
    @overload
    def subscribe(
        self, a: type[A], b: type[B], c: type[C], /, **options: Unpack[HandlerOptions]
    ) -> Takes[A | B | C]: ...
    @overload
    def subscribe(
        self, a: type[A], b: type[B], c: type[C], d: type[D], /, **options: Unpack[HandlerOptions]
    ) -> Takes[A | B | C | D]: ...
    @overload
    def subscribe(
        self, *event_types: type[Any], **options: Unpack[BatchHandlerOptions]
    ) -> Callable[[Handles], Handles]: ...
    def subscribe(self, *event_types: type[Any], **options: Any) -> Any:
        """Have a function handle all events of these types, in a group. It is returned unchanged.

        The function takes `(event, ctx)`, or lists of both with `batch`. It may be async, or sync
        and then runs on a thread. It returns None (done) or an outcome.

        Args:
            event_types: Classes that are marked with `@event`.
            group: Handles each event once, independently of other groups.
            options: Those that follow, by name.
            batch: Hand over several events at once, of different lanes.
            retry: What happens when it raises.
            timeout_s: How long one run may last. Async handlers are cancelled; a thread cannot be.
            concurrency: Lanes handled at once by the group in this process: 100 for async handlers,
                `min(32, cpus + 4)` for sync ones. This and the next four hold for the whole group,
                may be stated on any handler of it, and must not differ.
            ordering: `key` (events of one key in order, the default), `partition`, or `none`.
            on_dead: What a lane does behind a dead letter: `park` (the default with keys),
                `continue` (the default of `none`) or `stop` (the default of `partition`).
            start: Where a group that is new starts: `first` (the default) or `now`.
            rate_per_s: So many runs of the group may start per second, in all processes together;
                None for any number. Retries, replays and each event of a list count. In T seconds
                at most `rate_per_s * (T + 0.2) + 1` start. What waits is charged nothing.
            topic: Read from here instead of the topic that the event types name.

        Raises:
            ConfigError: A type, the signature or an option is not what it should be. Contradictions
                between handlers are found when handling starts.
        """
        where = caller()
        if not event_types:
            raise ConfigError(
                f"subscribe() at {where}: expected one or more event types before the options, got "
                "none. For example: @app.subscribe(OrderCreated, group='inventory')."
            )
        kinds = tuple(event_type(each) for each in event_types)

        def declare(function: Handles) -> Handles:
            if self._dispatchers:
                raise ConfigError(
                    f"subscribe() at {where}: expected before handling starts. Declare all "
                    "handlers when the module is imported."
                )
            self._subscriptions.append(declared(function, kinds, options, declared_at=where))
            return function

        return declare

    def replace(self, **options: Any) -> "App":
        """The same subscriptions on something else: another `url`, `lifespan`, `clock`, ….

        Raises:
            ConfigError: There is no such option.
        """
        other = App(**{**self._options, **options})
        other._subscriptions = self._subscriptions
        return other

    async def __aenter__(self) -> Self:
        """Connect to the broker.

        Raises:
            ConfigError: The URL is none that this version serves.
            StorageError: The file cannot be opened; the message says why.
        """
        if self._broker is not None:
            raise Refused("the app is connected already: expected one `async with app` at a time")
        broker = await self._open_broker()
        self._loop = asyncio.get_running_loop()
        self._has_moved = asyncio.Event()
        self._topics.forget()
        self._broker = broker
        log.info("%s: connected to %s, durability %s", self.name, broker.url, broker.durability)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is queued and disconnect."""
        broker, self._broker = self._broker, None
        self._loop = None
        if broker is not None:
            await broker.aclose()

    def __enter__(self) -> Self:
        """Connect in a thread of its own, for programs without an event loop: see `submit`.

        Raises:
            Refused: There is an event loop: `async with` is for it.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise Refused("expected `async with app:`, got `with app:` inside an event loop.")
        self._thread = LoopThread(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Write what was submitted and disconnect; what could not be written is logged."""
        if self._thread is not None:
            self._submitted.wait()
            self._thread.close()
            self._thread = None

    async def _open_broker(self) -> Broker:
        # A method of its own, so that the conformance suite can put a broken broker in its place.
        return await connect(
            self.url,
            limits=self._limits,
            clock=self._clock,
            durability=self._options["durability"],
        )

    @property
    def _connected(self) -> Broker:
        if self._broker is None:
            raise Unavailable(
                f"app {self.name!r} is not connected: expected inside `async with app:` (or "
                "`with app:` for submit)."
            )
        return self._broker

    async def publish(
        self,
        event: object,
        *,
        key: Key | None = None,
        topic: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        event_id: UUID | None = None,
    ) -> Position:
        """Append one event to its topic. Calls in flight at once share one commit.

        Args:
            event: An instance of a class that is marked with `@event`.
            key: Instead of the one that the type declares.
            topic: Instead of the one that the type declares.
            headers: Sent along, beside those that Eventlane sets.
            event_id: Instead of a new one.

        Returns:
            Where it lies.

        Raises:
            EventRefused: It cannot be serialised, has no key, or is too large; nothing was written.
            ConfigError: Its type is not marked.
            StorageError: The disk or the file refused; nothing was written. But where an fsync
                failed, the event may be found when the file is opened anew.
            PublishTimeout: The queue had no room within `limits.publish_timeout_s`.
            Unavailable: The app is not connected.

        Durability:
            On return it is durable as `durability` says.

        Cancellation:
            It was written or it was not, and there is no way to know which.
        """
        target, record = self._serialise(event, key, topic, headers, event_id)
        broker = self._connected
        if target not in self._topics.ready:
            await self._topics.ensure(broker, target)
        return await broker.publish(target, record)

    async def publish_many(self, events: Iterable[object] | AsyncIterable[object]) -> int:
        """Append many events, in chunks of `limits.batch_events_max`, each chunk in one commit.

        Events of one key keep their order. An iterable may be endless; it is read as it is
        published, and memory is bounded. A chunk is checked before any of it is written.

        Returns:
            How many were published.

        Raises:
            PublishFailed: An event was refused, or the broker did. It says how many events, counted
                from the first, are durable, and has an iterator of the rest. Its cause says why.
            Unavailable: The app is not connected.

        Durability:
            On return all are durable as `durability` says.

        Cancellation:
            Some whole chunks were written.
        """
        return await publish_in_chunks(
            events,
            broker=self._connected,
            serialise=self._serialise,
            topics=self._topics,
            chunk_max=self._limits.batch_events_max,
        )

    def submit(self, event: object, **options: Any) -> "Future[Position]":
        """Publish from any thread, without an event loop of one's own, inside `with app:`.

        Returns:
            A future; see `publish` for what it gives and raises.

        Raises:
            Unavailable: The app is not connected.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable(
                f"app {self.name!r} is not connected: expected inside `with app:`, which starts a "
                "thread that publishes."
            )
        return self._submitted.submit(self.publish(event, **options), loop)

    @asynccontextmanager
    async def handling(self) -> AsyncGenerator[None]:
        """Handle events in the background; drains on exit. Takes no signals.

        Running handlers get `limits.drain_s` to end. A fatal error cancels the body.

        Raises:
            ConfigError: Handlers contradict each other, or a group runs with other options.
            Unavailable: The app is not connected.
            EventlaneError: What made handling impossible.
        """
        broker = self._connected
        if self._dispatchers:
            raise Refused("this app is handling already: expected one `handling()` at a time")
        plans = list(plan_groups(self._subscriptions, cpus=os.cpu_count() or 1).values())
        if not plans:
            raise ConfigError(
                f"app {self.name!r} has no subscriptions: expected at least one handler, declared "
                "with @app.subscribe(EventType, group=…)."
            )
        for subscription in self._subscriptions:
            for kind in subscription.event_types:
                self._topics.declare(kind.topic, kind.declared_at)
                await self._topics.ensure(broker, subscription.topic or kind.topic.name)
        lifespan = self._options["lifespan"]
        try:
            async with handling(
                broker,
                plans,
                app=self.name,
                app_version=self.version,
                dlq_payload=self._options["dlq_payload"],
                lifespan=(lambda: lifespan(self)) if lifespan else contextlib.nullcontext,
                codecs=self._codecs,
                middleware=self._options["middleware"],
                serialise=self._serialise,
                ensure_topic=partial(self._topics.ensure, broker),
                clock=self._clock,
                limits=self._limits,
                moved=self._has_moved.set,
            ) as self._dispatchers:
                yield
        finally:
            self._dispatchers = []

    async def run(self) -> None:
        """Connect if need be, and handle until SIGTERM or SIGINT; then drain and return.

        A second signal ends the process at once; nothing is lost, for what was not settled is
        handled again. So does a handler that does not end (exit code 1): another process can take
        over only then. `asyncio.run(app.run())` is a main program.

        Raises:
            EventlaneError: See `handling`.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self._broker is None:
                await stack.enter_async_context(self)
            asked_to_stop = stack.enter_context(stop_on_signals())
            try:
                async with self.handling():
                    await asked_to_stop.wait()
            except HandlerStuck as error:
                # An orderly end would wait for the stuck thread for ever.
                log.critical("%s: exiting: %s", self.name, error)
                logging.shutdown()
                os._exit(1)

    async def run_until_idle(self, timeout_s: float | None = None) -> None:
        """Handle until nothing more happens by itself, then drain.

        It waits for due retries and for what other processes of these groups have open. It does
        not wait for paused groups, for dead letters and what is parked behind them, nor for
        partitions that wait for an operator.

        Raises:
            NotIdle: It took longer than `timeout_s`; carries the status.
            EventlaneError: See `handling`.
        """
        async with contextlib.AsyncExitStack() as stack:
            if not self._dispatchers:
                await stack.enter_async_context(self.handling())
            try:
                async with asyncio.timeout(timeout_s):
                    self._has_moved.clear()
                    await until_idle(self._dispatchers, self._connected, self._clock, self._moved)
            except TimeoutError:
                status = await self.status()
                raise NotIdle(
                    f"still not idle after timeout_s={timeout_s}: {still_open(status)}",
                    status=status,
                ) from None

    def read(
        self,
        *events_or_topics: type[Any] | str,
        start: Literal["first", "now"] = "first",
        follow: bool = False,
    ) -> AsyncIterator[Message]:
        """Read the log itself, without a group: each partition in order.

        Args:
            events_or_topics: Event types (only their events) or names of topics (all of it).
            start: From the first message that is kept, or only what comes from now on.
            follow: Wait for more at the end instead of ending.

        Raises:
            NotFound: There is no such topic.
            StorageError: The log cannot be read.
            Unavailable: The app is not connected.
        """
        wanted: dict[str, set[str] | None] = {}
        for each in events_or_topics:
            if isinstance(each, str):
                wanted[each] = None
            else:
                kind = event_type(each)
                names = wanted.setdefault(kind.topic.name, set())
                if names is not None:
                    names.add(kind.name)
        return read(self._connected, wanted, start=start, follow=follow)

    def decode(self, message: Message | DeadLetter, cls: type[A]) -> A:
        """The event of a message that `read` gave, or of a dead letter.

        Raises:
            Undecodable: The bytes are not an event of that type.
        """
        decode = self._decoders.get(cls)
        if decode is None:
            decode = self._decoders[cls] = self._codecs.of(event_type(cls)).decoder(cls)
        event: A = decode(message.value or b"null")
        return event
