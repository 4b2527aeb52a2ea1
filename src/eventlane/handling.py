"""Handling while a body runs: a dispatcher per group, threads, the lifespan, a drained end."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from eventlane.background import cancelling_group
from eventlane.broker import Broker, Consumer
from eventlane.clock import Clock, yield_to_loop
from eventlane.config import Limits
from eventlane.dispatch import Dispatcher
from eventlane.errors import ConfigError
from eventlane.guard import guard_of
from eventlane.handler import Middleware, Serialise
from eventlane.limiting import rate_limits
from eventlane.quarantine import Quarantine
from eventlane.routing import routes_of
from eventlane.serde import Codecs
from eventlane.subscription import GroupPlan, check_drain, dependencies_of
from eventlane.telemetry import Telemetry, WallClock

__all__ = ["handling"]


@asynccontextmanager
async def handling(
    broker: Broker,
    plans: Sequence[GroupPlan],
    *,
    app: str,
    app_version: str | None,
    dlq_payload: bool,
    lifespan: Callable[[], AbstractAsyncContextManager[Any]],
    codecs: Codecs,
    middleware: Sequence[Middleware],
    serialise: Serialise,
    ensure_topic: Callable[[str], Awaitable[None]],
    clock: Clock,
    limits: Limits,
    moved: Callable[[], None],
) -> AsyncGenerator[list[Dispatcher]]:
    """Handle the events of all groups until the body ends, then drain. See `App.handling`."""
    async with contextlib.AsyncExitStack() as stack:
        threads = ThreadPoolExecutor(
            max_workers=sum(plan.concurrency for plan in plans),
            thread_name_prefix="eventlane-handler",
        )
        # Not waited for: a thread that is left by then is stuck, and the dispatcher has said so.
        stack.callback(threads.shutdown, wait=False)
        subscriptions = [each for plan in plans for each in plan.subscriptions]
        check_drain(subscriptions, limits.drain_s)
        dependencies = dependencies_of(subscriptions)
        concurrency = max(plan.concurrency for plan in plans)
        guards = {
            name: guard_of(dependency, concurrency=concurrency, clock=clock)
            for name, dependency in dependencies.items()
        }
        for guard in guards.values():
            stack.callback(guard.close)
        rates = rate_limits(plans, dependencies.values(), broker, clock)
        for rate in rates.values():
            stack.callback(rate.close)
        routes = [
            routes_of(
                plan,
                codecs=codecs,
                middleware=middleware,
                threads=threads,
                guards=guards,
                rates=rates,
            )
            for plan in plans
        ]
        entered = lifespan()
        if not isinstance(entered, AbstractAsyncContextManager):
            raise ConfigError(
                f"App(lifespan=…): expected an async context manager function, got one that gives "
                f"{type(entered).__name__}. Put @asynccontextmanager above it."
            )
        state = await stack.enter_async_context(entered)
        consumers = await _join_all(broker, plans, app, limits)
        quarantine, wall = Quarantine(), WallClock(clock)
        dispatchers = [
            Dispatcher(
                plan,
                consumer,
                routes=called,
                guards=guards,
                quarantine=quarantine,
                telemetry=Telemetry(plan.name, clock, wall),
                app=app,
                app_version=app_version,
                dlq_payload=dlq_payload,
                state=state,
                serialise=serialise,
                ensure_topic=ensure_topic,
                clock=clock,
                limits=limits,
                moved=moved,
            )
            for plan, consumer, called in zip(plans, consumers, routes, strict=True)
        ]
        quarantine.groups += dispatchers
        async with cancelling_group() as tasks:
            running = [
                tasks.create_task(each.run(), name=f"eventlane {each.plan.name}")
                for each in dispatchers
            ]
            try:
                # A task that is cancelled before its first step never runs: it would not leave.
                await yield_to_loop()
                yield dispatchers
            finally:
                for task in running:
                    task.cancel()


async def _join_all(
    broker: Broker, plans: Sequence[GroupPlan], app: str, limits: Limits
) -> list[Consumer]:
    """Join all groups or none."""
    async with contextlib.AsyncExitStack() as joined:
        consumers: list[Consumer] = []
        for plan in plans:
            consumer = await broker.join(plan.spec(app, limits))
            joined.push_async_callback(consumer.leave)
            consumers.append(consumer)
        joined.pop_all()
        return consumers
