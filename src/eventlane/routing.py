"""From declarations to calls: for each topic and event type of a group, what is called and how."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from typing import Any, NamedTuple

import msgspec

from eventlane.breaker import Dependency
from eventlane.errors import ConfigError, Undecodable
from eventlane.guard import Guard
from eventlane.handler import Context, Delivery, Middleware, Origin, compose
from eventlane.limiting import RateLimit, limits_of
from eventlane.message import EVENT_TYPE, decode_headers
from eventlane.outcome import Outcome
from eventlane.serde import Codecs
from eventlane.subscription import GroupPlan, Subscription

__all__ = ["NO_ROUTE", "Route", "Routes", "routes_of"]


_ROUTES_MAX = 1024
"""Header blocks whose route is remembered, per partition: more only with headers of one's own."""


class Route(msgspec.Struct, frozen=True):
    """How the events of one type are handled in one group."""

    call: Callable[[Any, Delivery], Awaitable[Outcome | None]]
    """With the event and its context; the user's own function where nothing stands around it."""
    decode: Callable[[bytes], Any]
    """Fast; what it raises is the library's own."""
    decode_in_words: Callable[[bytes], Any]
    """The same; what it raises is `Undecodable`."""
    subscription: Subscription | None
    """None: such events are skipped."""
    direct: bool
    """Handled one by one, whatever may be out, at any rate."""
    guards: tuple[Guard, ...]
    """Of the dependencies that it names."""
    timeout_s: float
    """0 for none."""
    limits: tuple[RateLimit, ...] = ()
    """Of its group, and of these dependencies."""


async def _not_called(*_: Any) -> None:
    raise AssertionError("an event that is to be skipped was handled")


NO_ROUTE = Route(_not_called, bytes, bytes, None, direct=False, guards=(), timeout_s=0.0)


class Routes(NamedTuple):
    """What a group calls."""

    group: str
    by_type: Mapping[tuple[str, str], Route]
    """By topic and name of the event type."""
    batch: Mapping[str, Callable[..., Any]]
    """Batch handlers by the name of their subscription: (events, contexts) -> awaitable."""

    def of(self, origin: Origin, header_block: bytes) -> Route:
        """What handles events with such headers; found once per partition and header block."""
        known: dict[bytes, Route] = origin.routes
        route = known.get(header_block)
        if route is None:
            if len(known) >= _ROUTES_MAX:
                known.clear()
            route = known[header_block] = self.find(origin.topic, header_block)
        return route

    def handler_of(self, topic: str, header_block: bytes) -> str:
        """The name of the handler; empty where there is none."""
        subscription = self.find(topic, header_block).subscription
        return "" if subscription is None else subscription.name

    def type_of(self, header_block: bytes) -> str | None:
        """The event type that headers name; None where they name none."""
        name = decode_headers(header_block).get(EVENT_TYPE)
        return None if name is None else name.decode("utf-8", "replace")

    def find(self, topic: str, header_block: bytes) -> Route:
        """What handles messages with such headers; `NO_ROUTE` if nothing in this group does.

        A message that does not say what it is belongs to the only type that the group handles on
        its topic. Where there are several, its route fails: like all that cannot be decoded, it
        becomes a dead letter with its bytes kept.
        """
        try:
            name = self.type_of(header_block)
        except ValueError as error:
            return self._failing(str(error))
        if name is not None:
            return self.by_type.get((topic, name), NO_ROUTE)
        known = [route for (place, _), route in self.by_type.items() if place == topic]
        if len(known) == 1:
            return known[0]
        return self._failing(
            f"expected a {EVENT_TYPE} header, got none, and group {self.group!r} handles "
            f"{len(known)} types on topic {topic!r}. Mend the sender; replay this letter once the "
            "group handles one type there."
        )

    def _failing(self, reason: str) -> Route:
        async def fail(*_: Any) -> Outcome | None:
            raise Undecodable(reason, stage="decode")

        some = next(iter(self.by_type.values())).subscription
        return Route(fail, bytes, bytes, some, direct=True, guards=(), timeout_s=0.0)


def routes_of(
    plan: GroupPlan,
    *,
    codecs: Codecs,
    middleware: Sequence[Middleware],
    threads: Executor,
    guards: Mapping[str, Guard],
    rates: Mapping[str, RateLimit],
) -> Routes:
    """Build what a group calls, once.

    Raises:
        ConfigError: A type cannot be decoded, or middleware is asked to wrap a batch handler.
    """
    by_type: dict[tuple[str, str], Route] = {}
    batch: dict[str, Callable[..., Any]] = {}
    for subscription in plan.subscriptions:
        function = subscription.function
        call = function if subscription.is_async else _on_threads(function, threads)
        own = tuple(guards[dependency.name] for dependency in subscription.dependencies)
        if subscription.batch is not None:
            if middleware:
                raise ConfigError(
                    f"handler {subscription.name} takes batches, and the app has middleware: "
                    "expected one or the other. Middleware wraps the handling of one event."
                )
            batch[subscription.name] = call
        if middleware:
            call = _wrapped(middleware, call)
        if own:
            call = _watched(call, subscription.dependencies, own)
            if subscription.batch is not None:
                batch[subscription.name] = call
        limits = limits_of(subscription, rates)
        for kind in subscription.event_types:
            codec = codecs.of(kind)
            by_type[subscription.topic or kind.topic.name, kind.name] = Route(
                call,
                codec.raw_decoder(kind.cls),
                codec.decoder(kind.cls),
                subscription,
                direct=subscription.batch is None and not own and not limits,
                guards=own,
                timeout_s=subscription.timeout_s or 0.0,
                limits=limits,
            )
    return Routes(plan.name, by_type, batch)


def _watched(
    call: Callable[..., Any], dependencies: Sequence[Dependency], guards: Sequence[Guard]
) -> Callable[..., Any]:
    """Tell the breakers of dependencies how a run ended that they have admitted."""

    async def watched(event: Any, context: Any) -> Any:
        runs = [guard.breaker.trips for guard in guards]
        try:
            outcome = await call(event, context)
        except BaseException as error:
            for dependency, guard, run in zip(dependencies, guards, runs, strict=True):
                if dependency.matches(error):
                    guard.failed(run, error)
                else:
                    guard.gave_up(run)
            raise
        for guard, run in zip(guards, runs, strict=True):
            guard.succeeded(run)
        return outcome

    return watched


def _wrapped(middleware: Sequence[Middleware], call: Callable[..., Any]) -> Callable[..., Any]:
    handle = compose(middleware, lambda delivery: call(delivery.event, delivery))

    def wrapped(event: Any, delivery: Delivery) -> Awaitable[Outcome | None]:
        delivery.event = event
        return handle(delivery)

    return wrapped


def _called(function: Callable[..., Any], event: Any, context: Context[Any]) -> Any:
    try:
        return function(event, context)
    except StopIteration as error:  # asyncio cannot hand this one over, and would wait for ever
        raise RuntimeError("the handler raised StopIteration") from error


def _on_threads(function: Callable[..., Any], threads: Executor) -> Callable[..., Any]:
    async def call(event: Any, context: Context[Any]) -> Any:
        variables = copy_context()
        running = asyncio.get_running_loop().run_in_executor(
            threads, lambda: variables.run(_called, function, event, context)
        )
        cancelled = False
        while True:
            try:
                # A thread cannot be stopped, and a run ends only when its code has ended.
                outcome = await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.done():
                    raise
                cancelled = True
            else:
                if cancelled:
                    raise asyncio.CancelledError
                return outcome

    return call
