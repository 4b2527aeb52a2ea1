"""The hot loop: receive, handle, decide, settle. One dispatcher per group and process.

- `_control` takes what the broker says: partitions gained and lost, appends, commands, pauses.
- `_work` is a worker: it takes the next delivery that may run, handles it, says what became of it.
  Workers live long and are started when all others are inside a handler; there is no task and no
  timer per event. A handler that does not wait is handled by one worker in a plain loop.
- `settling.py` writes what became of deliveries: one settlement at a time, which takes all that has
  accumulated; at once if a lane waits for it, else after `Limits.settle_interval_s`.
- `_sweep` cancels workers whose handler has timed out.

What may run is not decided here but in `lanes.py`, and what a failure means in `retry.py`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from eventlane.batching import Lists, outcomes_of
from eventlane.broker import Consumer
from eventlane.clock import Clock, monotonic, sleep, yield_to_loop
from eventlane.conclude import Concluder
from eventlane.config import Limits
from eventlane.errors import HandlerStuck, Undecodable
from eventlane.handler import Context, Delivery, Origin, Serialise
from eventlane.lanes import Lanes
from eventlane.routing import NO_ROUTE, Route, Routes
from eventlane.settlement import Acquired, Appended, Command, Lost, Paused
from eventlane.settling import Settler
from eventlane.subscription import GroupPlan, Subscription
from eventlane.workers import Worker, Workers

__all__ = ["Dispatcher"]

log = logging.getLogger("eventlane.dispatch")

_TURN_S = 0.002
"""A worker whose handlers never wait lets the event loop turn after so long."""
_SWEEP_S_MAX = 1.0
"""How often, at least, it is looked after timed-out handlers and said that the process lives."""
_ROUTES_MAX = 1024
"""Header blocks whose route is remembered, per partition: more only with headers of one's own."""
_PARKED_PER_READ = 200


class Dispatcher:
    """Runs one group's handlers in this process."""

    def __init__(
        self,
        plan: GroupPlan,
        consumer: Consumer,
        *,
        routes: Routes,
        app: str,
        app_version: str | None,
        state: object,
        serialise: Serialise,
        ensure_topic: Callable[[str], Awaitable[None]],
        clock: Clock,
        limits: Limits,
        moved: Callable[[], None],
    ) -> None:
        """See the fields; `moved` is called when something happened that may have made it idle."""
        self.plan = plan
        self._moved = moved
        self._consumer = consumer
        self._routes = routes
        self._state = state
        self._serialise = serialise
        self._clock = clock
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._partitions: dict[tuple[str, int], Lanes] = {}
        self._ring: deque[Lanes] = deque()
        """Partitions that workers take from, the current one first; empty while paused."""
        self._hungry: set[Lanes] = set()
        """Partitions that may have more to fetch."""
        self._feeding = False
        self._paused: str | None = None
        self._stopping = False
        self._workers = Workers(
            self._work, group=plan.name, count_max=plan.concurrency, failed=self._fail
        )
        self._growing = False
        """`_grow` is about to look whether one more worker is of use."""
        self._lists = Lists(self._workers.wake)
        self._concluder = Concluder(plan, app=app, app_version=app_version, clock=clock)
        self._settler = Settler(
            plan.name,
            consumer,
            self._partitions,
            ensure_topic=ensure_topic,
            clock=clock,
            limits=limits,
            lost=self._lose,
            settled=self._after_settling,
        )
        timeouts_s = [each.timeout_s for each in plan.subscriptions if each.timeout_s]
        self._sweep_s = min([_SWEEP_S_MAX, *(each / 10 for each in timeouts_s)])
        self._failure: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Handle until cancelled, then drain and leave the group.

        Raises:
            StorageError: The log cannot be read.
            EventlaneError: A handler does not end, or the broker refuses to go on.
        """
        tasks = [
            self._loop.create_task(coroutine, name=f"eventlane {self.plan.name}: {name}")
            for name, coroutine in (
                ("control", self._control()),
                ("settle", self._settler.run()),
                ("sweep", self._sweep()),
            )
        ]
        try:
            done, _ = await asyncio.wait(
                [*tasks, self._failure], return_when=asyncio.FIRST_COMPLETED
            )
            for each in done:
                each.result()
        finally:
            await self._drain(tasks)

    async def _drain(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Let running handlers end, write what became of them, leave."""
        self._stopping = True
        self._fill_ring()
        late, alive = await self._workers.stop(within_s=self._limits.drain_s)
        if alive:
            self._consumer.abandon()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise HandlerStuck(
                f"group {self.plan.name!r}: {alive} handlers ignore cancellation or run in threads "
                "that do not end. Their partitions stay owned until this process exits: exit it."
            )
        if late:
            log.warning(
                "group %s: %d handlers did not end within drain_s=%s and were cancelled; their "
                "events will be handled again",
                self.plan.name,
                late,
                self._limits.drain_s,
            )
        control, settle, sweep = tasks
        control.cancel()
        sweep.cancel()
        await asyncio.gather(control, sweep, return_exceptions=True)
        self._failure.cancel()
        try:
            async with asyncio.timeout(self._limits.drain_s):
                await self._settler.finish()
        except TimeoutError:
            log.warning(
                "group %s: what was handled last could not be written within drain_s=%s; those "
                "events will be handled again",
                self.plan.name,
                self._limits.drain_s,
            )
        # Not before: a settlement that is cancelled is lost, and a later one would pass it over.
        settle.cancel()
        await asyncio.gather(settle, return_exceptions=True)
        await self._consumer.leave()

    @property
    def is_quiet(self) -> bool:
        """Nothing runs, nothing is to be written, and nothing that may run is left."""
        return not (
            self._workers.in_flight
            or self._settler.is_writing
            or any(
                lanes.is_moving if self._paused is None else lanes.is_unwritten
                for lanes in self._partitions.values()
            )
            or (self._paused is None and self._has_work())
        )

    @property
    def next_due_ms(self) -> int | None:
        """When the next retry is due; None if none waits, or while the group is paused."""
        due = [lanes.next_due_ms for lanes in self._partitions.values()]
        return None if self._paused else min((ms for ms in due if ms is not None), default=None)

    @property
    def is_blocked(self) -> bool:
        """A partition waits for an operator."""
        return any(each.blocked for each in self._partitions.values())

    def beat(self) -> None:
        """Tell the broker that the event loop turns, and what this process has open."""
        held = sum(lanes.held for lanes in self._partitions.values())
        self._consumer.beat(self._workers.in_flight, held)

    async def _control(self) -> None:
        while True:
            commands: list[Command] = []
            for change in await self._consumer.changes():
                match change:
                    case Acquired():
                        self._acquire(change)
                        # What was asked for before is among what it was acquired with.
                        commands = _elsewhere(commands, change.topic, change.partition)
                    case Lost(topic, partition):
                        self._lose(topic, partition)
                        commands = _elsewhere(commands, topic, partition)
                    case Appended(topic):
                        self._hungry.update(
                            each for each in self._partitions.values() if each.origin.topic == topic
                        )
                    case Paused(reason):
                        self._pause(reason)
                    case Command():
                        commands.append(change)
            self._command(commands)
            self._workers.wake()

    def _command(self, commands: list[Command]) -> None:
        # In the order of the log, whatever the order in which an operator named the letters.
        for command in sorted(commands, key=lambda each: each.letter.offset):
            lanes = self._partitions.get((command.letter.topic, command.letter.partition))
            if lanes is not None:
                lanes.command(command)
                self._note(lanes)

    def _acquire(self, change: Acquired) -> None:
        origin = Origin(
            change.topic, change.partition, self.plan.name, self._state, self._serialise, None, {}
        )
        lanes = Lanes(
            origin,
            change,
            ordering=self.plan.ordering,
            limits=self._limits,
            now_ms=self._clock.now_ms(),
        )
        origin.lanes = lanes
        origin.handler_of = partial(self._handler_of, change.topic)
        self._partitions[change.topic, change.partition] = lanes
        self._fill_ring()
        self._hungry.add(lanes)
        self._note(lanes)

    def _lose(self, topic: str, partition: int) -> None:
        lanes = self._partitions.pop((topic, partition), None)
        if lanes is None:
            return
        log.warning("group %s: lost %s[%d] to another process", self.plan.name, topic, partition)
        self._fill_ring()
        self._hungry.discard(lanes)
        for worker in self._workers:
            running = worker.handling
            if isinstance(running, Context) and running.origin.lanes is lanes:
                worker.cancel()
        self._lists.forget(lanes)
        self._moved()

    def _pause(self, reason: str | None) -> None:
        if reason is not None:
            log.warning("group %s is paused: %s", self.plan.name, reason)
        elif self._paused is not None:
            log.warning("group %s goes on", self.plan.name)
        self._paused = reason
        self._fill_ring()
        if reason is None:
            for lanes in self._partitions.values():
                lanes.resume()
        self._moved()

    def _fill_ring(self) -> None:
        """Put into the ring what workers may take from."""
        self._ring.clear()
        if self._paused is None and not self._stopping:
            self._ring.extend(self._partitions.values())

    def _take_elsewhere(self) -> Delivery | None:
        """The next delivery that may run of the other partitions."""
        ring = self._ring
        for _ in range(len(ring) - 1):
            ring.rotate(-1)
            delivery = ring[0].take()
            if delivery is not None:
                return delivery
        return None

    def _has_room(self, lanes: Lanes) -> bool:
        return (
            not lanes.span.untaken
            and not lanes.stopped
            and lanes.span.next_offset - lanes.span.watermark < self._limits.span_max
        )

    def _has_work(self) -> bool:
        return bool(
            self._lists.holds_any
            or any(self._has_room(each) for each in self._hungry)
            or any(
                each.ready or each.to_load or (each.span.untaken and not each.blocked)
                for each in self._ring
            )
        )

    async def _feed(self) -> bool:
        """Fetch what there is room for; whether there is something new to take."""
        if self._feeding:
            return False
        self._feeding = True
        fed = False
        try:
            for lanes in list(self._ring):
                topic, partition = lanes.origin.topic, lanes.origin.partition
                while lanes.to_load:
                    lane = lanes.to_load.pop()
                    key = lane.key if isinstance(lane.key, bytes) else None
                    rows = await self._consumer.fetch_parked(
                        topic, partition, key, lane.read_to, _PARKED_PER_READ
                    )
                    lanes.supply(lane, rows)
                    self._settler.note(lanes)  # a stored retry among them has its due time
                    fed = True
                if lanes in self._hungry and self._has_room(lanes):
                    batch = await self._consumer.fetch(
                        topic, partition, lanes.span.next_offset, self._limits.fetch_events_max
                    )
                    if batch.records:
                        lanes.add(batch)
                        self._settler.note(lanes)  # the same
                        fed = True
                    else:
                        self._hungry.discard(lanes)
        finally:
            self._feeding = False
        return fed

    def _route(self, origin: Origin, header_block: bytes) -> Route:
        """What handles events with such headers; found once per header block."""
        known: dict[bytes, Route] = origin.routes
        route = known.get(header_block)
        if route is None:
            if len(known) >= _ROUTES_MAX:
                known.clear()
            route = known[header_block] = self._routes.find(origin.topic, header_block)
        return route

    def _handler_of(self, topic: str, header_block: bytes) -> str:
        subscription = self._routes.find(topic, header_block).subscription
        return "" if subscription is None else subscription.name

    # One long function on purpose: each call that is put into a function of its own costs the
    # hot loop about 60 ns of some 900 for an event (benchmarks, consume_async).
    async def _work(self, worker: Worker) -> None:  # noqa: C901, PLR0915  # see above
        """Handle deliveries, one after the other, until there is nothing to do for ever."""
        ring, settler = self._ring, self._settler
        context, clean = worker.context, self._workers.clean
        origin: Origin | None = None
        block, route = b"", NO_ROUTE
        # What is the same for many events stays in local variables.
        call, decode, is_direct, timeout_s = route.call, route.decode, route.direct, 0.0
        lanes: Any = None
        started = turn_ends = 0.0
        while True:
            if started > turn_ends:
                await yield_to_loop()
                await settler.catch_up()
                turn_ends = monotonic() + _TURN_S
            delivery = (ring[0].take() or self._take_elsewhere()) if ring else None
            if delivery is None:
                may_start = self._paused is None and not self._stopping
                if may_start and self._lists.ready:
                    await self._run_list(worker, *self._lists.ready.popleft())
                elif may_start and (await self._feed() or self._lists.close_those_at_rest()):
                    continue
                elif not await self._sleep(worker):
                    return None
                if context != clean:
                    return self._workers.retire(worker)
                continue

            record = delivery.record
            if record.headers != block or delivery.origin is not origin:
                origin, block = delivery.origin, record.headers
                lanes = origin.lanes
                route = self._route(origin, block)
                call, decode = route.call, route.decode
                is_direct, timeout_s = route.direct, route.timeout_s
            value = record.value
            if (value is None or not is_direct) and not self._runs_here(route, delivery):
                continue

            started = monotonic()
            worker.handling = delivery
            if not self._growing:
                self._growing = True
                self._loop.call_soon(self._grow)
            if timeout_s:
                worker.subscription = route.subscription
                worker.deadline = started + timeout_s
            try:
                event = None if value is None else decode(value)
            except Exception as error:  # its words are made only now
                self._cannot_decode(worker, route, delivery, error)
                continue
            try:
                outcome = await call(event, delivery)
            except asyncio.CancelledError as error:
                if self._stopping:
                    raise
                self._failed(delivery, route.subscription, worker.why_cancelled(error), started)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # no handler may end the process, or its group
                self._failed(delivery, route.subscription, error, started)
            else:
                if outcome is None:
                    lanes.done(delivery)
                else:
                    self._returned(delivery, route.subscription, outcome, started)
            worker.handling = None
            if timeout_s:
                worker.ended()
            if settler.timer is None or lanes.urgent:
                self._note(lanes)
            if context != clean:
                return self._workers.retire(worker)

    def _cannot_decode(
        self, worker: Worker, route: Route, delivery: Delivery, error: Exception
    ) -> None:
        worker.handling = None
        worker.ended()
        try:
            route.decode_in_words(delivery.record.value or b"")
        except Undecodable as in_words:
            error = in_words
        self._failed(delivery, route.subscription, error, monotonic())
        self._note(delivery.origin.lanes)

    def _runs_here(self, route: Route, delivery: Delivery) -> bool:
        """Skip it, put it into a list, or say that it runs here after all."""
        subscription = route.subscription
        if subscription is None or (
            delivery.record.value is None and not subscription.takes_tombstones
        ):
            delivery.origin.lanes.skip(delivery)
            self._note(delivery.origin.lanes)
            return False
        if route.direct:
            return True
        started = monotonic()
        try:
            if delivery.record.value is not None:
                delivery.event = route.decode_in_words(delivery.record.value)
        except Undecodable as error:
            self._failed(delivery, subscription, error, started)
            self._note(delivery.origin.lanes)
        else:
            self._lists.add(subscription, delivery)
        return False

    async def _sleep(self, worker: Worker) -> bool:
        """Nothing is to be done now: sleep until woken; False if the worker is to end."""
        for lanes in self._partitions.values():
            if lanes.urgent:  # taking parks what waits behind a dead letter, and no run notes it
                self._settler.note(lanes)
        self._moved()
        return await self._workers.sleep(worker)

    def _grow(self) -> None:
        """A handler was entered before this turn: one more worker may be of use."""
        self._growing = False
        if self._paused is None and self._has_work():
            self._workers.wake()

    def _failed(
        self,
        delivery: Delivery,
        subscription: Subscription | None,
        error: BaseException,
        started: float,
    ) -> None:
        assert subscription is not None, "only what has a handler runs"
        duration_s = monotonic() - started
        reason = self._concluder.failed(delivery, subscription, error, duration_s)
        if reason is not None:
            self._pause(reason)

    def _returned(
        self,
        delivery: Delivery,
        subscription: Subscription | None,
        outcome: object,
        started: float,
    ) -> None:
        assert subscription is not None, "only what has a handler runs"
        duration_s = monotonic() - started
        reason = self._concluder.returned(delivery, subscription, outcome, duration_s)
        if reason is not None:
            self._pause(reason)

    async def _run_list(
        self, worker: Worker, subscription: Subscription, deliveries: list[Delivery]
    ) -> None:
        if not deliveries:  # its partition was lost meanwhile
            return
        worker.handling, worker.subscription = deliveries, subscription
        if not self._growing:
            self._growing = True
            self._loop.call_soon(self._grow)
        started = monotonic()
        if subscription.timeout_s:
            worker.deadline = started + subscription.timeout_s
        try:
            outcomes: Any = await self._routes.batch[subscription.name](
                [each.event for each in deliveries], deliveries
            )
        except asyncio.CancelledError as error:
            if self._stopping:
                raise
            self._list_failed(deliveries, subscription, worker.why_cancelled(error), started)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            self._list_failed(deliveries, subscription, error, started)
        else:
            given = outcomes_of(outcomes, len(deliveries))
            for delivery, outcome in zip(deliveries, given, strict=True):
                self._returned(delivery, subscription, outcome, started)
        finally:
            worker.handling = None
            worker.ended()
        for lanes in {id(each.origin): each.origin.lanes for each in deliveries}.values():
            self._note(lanes)

    def _list_failed(
        self,
        deliveries: list[Delivery],
        subscription: Subscription,
        error: BaseException,
        started: float,
    ) -> None:
        if len(deliveries) == 1:
            self._failed(deliveries[0], subscription, error, started)
            return
        # What was lost while the list ran is another process's to handle now.
        owned = [each for each in deliveries if each.origin.lanes in self._partitions.values()]
        self._lists.one_by_one(subscription, owned)

    def _note(self, lanes: Lanes) -> None:
        """See to it that outcomes are written, retries start, and workers look."""
        self._settler.note(lanes)
        if lanes.ready or lanes.to_load:
            self._workers.wake()

    def _after_settling(self) -> None:
        self._moved()
        self._workers.wake()

    async def _sweep(self) -> None:
        """Cancel what runs for too long, and say that this process is alive."""
        while True:
            await sleep(self._sweep_s)
            self.beat()
            now_s = monotonic()
            for worker in self._workers:
                if worker.deadline and now_s > worker.deadline:
                    self._time_out(worker, now_s)

    def _time_out(self, worker: Worker, now_s: float) -> None:
        subscription = worker.subscription
        assert subscription is not None
        if now_s > worker.deadline + self._limits.stuck_s:
            self._fail(
                HandlerStuck(
                    f"handler {subscription.name} still runs {self._limits.stuck_s} s after its "
                    f"timeout_s={subscription.timeout_s}. Its lane stays closed until this process "
                    "exits: exit it, and mend the handler."
                )
            )
        if subscription.is_async:
            worker.time_out()

    def _fail(self, error: BaseException) -> None:
        """End handling with an error."""
        if not self._failure.done():
            self._failure.set_exception(error)


def _elsewhere(commands: list[Command], topic: str, partition: int) -> list[Command]:
    return [
        each
        for each in commands
        if (each.letter.topic, each.letter.partition) != (topic, partition)
    ]
