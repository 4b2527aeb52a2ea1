"""The hot loop: receive, handle, decide, settle. One dispatcher per group and process.

- `_control` takes what the broker says: partitions gained and lost, appends, commands, pauses.
- `_work` is a worker: it takes the next delivery that may run, handles it, says what became of it.
  Workers live long and are started when all others are inside a handler; there is no task and no
  timer per event. A handler that does not wait is handled by one worker in a plain loop.
- `settling.py` writes what became of deliveries: one settlement at a time, which takes all that has
  accumulated; at once if a lane waits for it, else after `Limits.settle_interval_s`.
- `_sweep` cancels workers whose handler has timed out.
- `holding.py` gives partitions up; `listing.py` runs lists for batch handlers; `quarantine.py` runs
  alone what may have killed a process; `advancing.py` lets the operators' operations go on.

What may run is not decided here but in `lanes.py`, what a failure means in `retry.py`, and whether
anything runs while something is out in `guard.py`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from eventlane.admission import Admission
from eventlane.advancing import Advancer
from eventlane.batching import Lists
from eventlane.broker import Consumer
from eventlane.clock import Clock, loop_time, sleep, uninterrupted, yield_to_loop
from eventlane.conclude import Concluder
from eventlane.config import Limits
from eventlane.errors import HandlerStuck
from eventlane.feeding import Feeder
from eventlane.guard import Guard
from eventlane.handler import Delivery, Origin, Serialise
from eventlane.holding import Holding
from eventlane.lanes import Lanes
from eventlane.listing import ListRunner
from eventlane.quarantine import LoneRunner, Quarantine
from eventlane.routing import NO_ROUTE, Route, Routes
from eventlane.settlement import Acquired, Appended, Command, Lost, Paused, Revoked
from eventlane.settling import Settler
from eventlane.subscription import GroupPlan
from eventlane.telemetry import Telemetry
from eventlane.workers import Worker, Workers, ends_process

__all__ = ["Dispatcher"]

_TURN_S = 0.002
"""A worker whose handlers never wait lets the event loop turn after so long."""
_SWEEP_S_MAX = 1.0
"""How often, at least, it is looked after timed-out handlers and said that the process lives."""


class Dispatcher:
    """Runs one group's handlers in this process."""

    def __init__(
        self,
        plan: GroupPlan,
        consumer: Consumer,
        *,
        routes: Routes,
        guards: Mapping[str, Guard],
        quarantine: Quarantine,
        telemetry: Telemetry,
        app: str,
        app_version: str | None,
        dlq_payload: bool,
        state: object,
        serialise: Serialise,
        ensure_topic: Callable[[str], Awaitable[None]],
        clock: Clock,
        limits: Limits,
        moved: Callable[[], None],
    ) -> None:
        """See the fields; `moved` is called when something happened that may have made it idle."""
        self.plan, self.telemetry = plan, telemetry
        self._moved = moved
        self._consumer = consumer
        self._routes = routes
        self._state = state
        self._serialise = serialise
        self._clock = clock
        self._limits = limits
        self._loop, self._monotonic = asyncio.get_running_loop(), loop_time()
        self.partitions = self._partitions = dict[tuple[str, int], Lanes]()
        self._ring: deque[Lanes] = deque()
        """Partitions that workers take from, the current one first; empty while there is a reason
        to start nothing, or to start only some: see `_take_one`."""
        self.paused: str | None = None
        self._stopping = False
        self._holds = 0
        """How many want it to start nothing, so that something runs alone."""
        self._lone: Delivery | None = None
        """What runs alone, before it starts."""
        self._is_alone = False
        self._rested = asyncio.Event()
        self.admission = Admission(
            plan,
            routes,
            guards,
            self._partitions,
            moved=self._changed,
            free=lambda: self._workers.free if self.may_start else 0,
            note=self._note,
            clock=clock,
            limits=limits,
        )
        self._feeder = Feeder(consumer, self._partitions, limits, fed=self._note)
        self._workers = Workers(
            self._work, group=plan.name, count_max=plan.concurrency, failed=self._fail
        )
        self._growing = False
        """`_grow` is about to look whether one more worker is of use."""
        self._lists = Lists(self._workers.wake)
        self._concluder = Concluder(
            plan,
            app=app,
            app_version=app_version,
            dlq_payload=dlq_payload,
            guard=self.admission.group,
            guards=guards,
            done_so_far=lambda: self._holding.done_so_far,
            pause=self._pause,
            ensure_topic=ensure_topic,
            telemetry=telemetry,
            clock=clock,
            limits=limits,
        )
        self._list_runner = ListRunner(
            self._lists,
            self._concluder,
            routes.batch,
            partitions=self._partitions,
            route=routes.of,
            may_run=self._may_run_list,
            permit_mate=self.admission.permit_mate,
            started=self._started,
            note=self._note,
        )
        self.settler = self._settler = Settler(
            plan.name,
            consumer,
            self._partitions,
            ensure_topic=ensure_topic,
            telemetry=telemetry,
            clock=clock,
            limits=limits,
            lost=lambda topic, number: self._holding.lose(topic, number),  # noqa: PLW0108  # made below
            settled=self._after_settling,
        )
        self._alone = LoneRunner(
            plan.name,
            self,
            quarantine,
            self._partitions,
            crashes_max=limits.crashes_max,
            routes=routes,
            concluder=self._concluder,
            note=self._note,
            permit=self.admission.permit,
            run=self._run_alone,
            flush=self._settler.flush,
        )
        self._holding = Holding(
            plan.name,
            consumer,
            self._partitions,
            workers=self._workers,
            lists=self._lists,
            feeder=self._feeder,
            lone=self._alone,
            flush=self._settler.flush,
            changed=self._changed,
        )
        self._operations = Advancer(plan.name, consumer, clock, moved)
        shares_s = [each.timeout_s / 10 for each in plan.subscriptions if each.timeout_s]
        self._sweep_s = min(_SWEEP_S_MAX, limits.stall_s_max / 4, *shares_s)
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
                ("operations", self._operations.run()),
                ("alone", self._alone.run()),
                ("holding", self._holding.run()),
            )
        ]
        try:
            done, _ = await asyncio.wait(
                [*tasks, self._failure], return_when=asyncio.FIRST_COMPLETED
            )
            for each in done:
                each.result()
        finally:
            await uninterrupted(self._drain(tasks))

    async def _drain(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Let running handlers end, write what became of them, leave."""
        self._stopping = True
        self._consumer.drain()
        is_cut_off = self._workers.is_cut_off
        self._fill_ring()
        self.admission.close()
        alive = await self._workers.stop(within_s=self._limits.drain_s)
        if alive:
            self._consumer.abandon()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise HandlerStuck(
                f"group {self.plan.name!r}: {alive} handlers ignore cancellation or run in threads "
                "that do not end. Their partitions stay owned until this process exits: exit it."
            )
        control, settle, *others = tasks
        for task in (control, *others):
            task.cancel()
        await asyncio.gather(control, *others, return_exceptions=True)
        self._failure.cancel()
        await self._settler.finish(within_s=self._limits.drain_s)
        # Not before: a settlement that is cancelled is lost, and a later one would pass it over.
        settle.cancel()
        await asyncio.gather(settle, return_exceptions=True)
        for each in self._partitions.values():
            each.forget()
        if is_cut_off:
            await self._consumer.suspect()
        await self._consumer.leave()

    @property
    def is_quiet(self) -> bool:
        """Nothing runs, nothing is to be written, and nothing that may run is left."""
        may_start = self.paused is None and self.admission.has_place
        may_take = may_start and self.admission.may_take
        return not (
            any((self._workers.in_flight, self._settler.is_writing, self._alone.is_busy))
            or self.admission.is_asking
            or any(
                lanes.is_moving if may_take else lanes.is_unwritten
                for lanes in self._partitions.values()
            )
            or (self._has_work() if may_take else may_start and self._lists.holds_any)
        )

    @property
    def next_due_ms(self) -> int | None:
        """When something happens by itself next; None if nothing does, or while it is paused."""
        if self.paused is not None:
            return None
        due: list[int | None] = [each.next_due_ms for each in self._partitions.values()]
        if not self.admission.has_place:
            due = [self.admission.group.next_ms if self._has_any() else None]
        due += (*self.admission.next_ms(), self._operations.next_ms)
        return min((ms for ms in due if ms is not None), default=None)

    @property
    def is_blocked(self) -> bool:
        """A partition waits for an operator."""
        return any(each.blocked for each in self._partitions.values())

    def beat(self) -> None:
        """Tell the broker that the event loop turns, and what this process has open."""
        # Nothing is looked at where nothing can have become of it: there may be thousands.
        changed = self._partitions if self._settler.has_noted else {}
        held = sum(lanes.held for lanes in changed.values())
        blocked = self.telemetry.look(changed)
        self._settler.has_noted = bool(held or blocked)
        blocked += (*self.admission.why_limited(), *self._workers.late)
        self._consumer.beat(self._workers.in_flight, held, blocked)

    async def _control(self) -> None:
        while True:
            commands: list[Command] = []
            for change in await self._consumer.changes():
                match change:
                    case Acquired():
                        self._acquire(change)
                        # What was asked for before is among what it was acquired with.
                        commands = [each for each in commands if each.place != change.place]
                    case Lost():
                        self._holding.lose(*change.place)
                        commands = [each for each in commands if each.place != change.place]
                    case Revoked():
                        if change.place in self._partitions:
                            self._holding.give_up(self._partitions[change.place])
                    case Appended(topic):
                        self._feeder.grew(topic)
                    case Paused(reason):
                        self._pause(reason)
                    case Command():
                        commands.append(change)
            self._command(commands)
            self._operations.go_on()
            self._workers.wake()

    def _command(self, commands: list[Command]) -> None:
        # In the order of the log, whatever the order in which an operator named the letters.
        for command in sorted(commands, key=lambda each: each.letter.offset):
            if (lanes := self._partitions.get(command.place)) is not None:
                lanes.command(command)
                self._note(lanes)

    def _acquire(self, change: Acquired) -> None:
        origin = Origin(*change.place, self.plan.name, self._state, self._serialise, None, {})
        ordering, now_ms = self.plan.ordering, self._clock.now_ms()
        lanes = Lanes(origin, change, ordering=ordering, limits=self._limits, now_ms=now_ms)
        origin.lanes = lanes
        origin.handler_of = partial(self._routes.handler_of, change.topic)
        self._partitions[change.topic, change.partition] = lanes
        self.telemetry.acquired(change)
        self._fill_ring()
        self._feeder.hungry.add(lanes)
        self._note(lanes)

    def _pause(self, reason: str | None) -> None:
        self.telemetry.paused(self.paused, reason)
        self.paused = reason
        self._fill_ring()
        if reason is None:
            for lanes in self._partitions.values():
                lanes.resume()
            self._alone.go_on()
        self._moved()

    def _fill_ring(self) -> None:
        """Put into the ring what workers may take from."""
        self._ring.clear()
        if self.may_start and self.admission.is_free:
            self._ring.extend(self._partitions.values())

    @property
    def may_start(self) -> bool:
        """See `Stoppable.may_start`."""
        return self.paused is None and not self._stopping and not self._holds

    @property
    def is_halted(self) -> bool:
        """See `Stoppable.is_halted`."""
        return self.paused is not None or self._stopping

    def _take_elsewhere(self) -> Delivery | None:
        """The next delivery that may run of the other partitions."""
        ring = self._ring
        for _ in range(len(ring) - 1):
            ring.rotate(-1)
            delivery = ring[0].take()
            if delivery is not None:
                return delivery
        return None

    def _take_one(self, worker: Worker) -> Delivery | None:
        """What may run while the ring is empty: what runs alone, or what the breaker admits."""
        self._concluder.ended(worker)
        if self._lone is not None and self._is_alone:
            lone, self._lone = self._lone, None
            return lone
        if not self.may_start or not self.admission.may_take:
            return None
        for place in list(self._partitions):
            # Round the partitions, so that each has its probe.
            lanes = self._partitions[place] = self._partitions.pop(place)
            delivery = lanes.take()
            if delivery is not None:
                self.admission.admit(worker)
                return delivery
        return None

    def _changed(self) -> None:
        self._fill_ring()
        self._workers.wake()
        self._moved()

    def _has_work(self) -> bool:
        has_untaken = any(each.has_untaken for each in self._partitions.values())
        return has_untaken or self._lists.holds_any or self._feeder.has_work

    def _has_any(self) -> bool:
        """Whether anything at all waits to run."""
        return self._has_work() or any(
            lanes.is_moving or lanes.next_due_ms is not None for lanes in self._partitions.values()
        )

    # One long function on purpose: each call that is put into a function of its own costs the
    # hot loop about 60 ns of some 900 for an event (benchmarks, consume_async).
    async def _work(self, worker: Worker) -> None:  # noqa: C901, PLR0915  # see above
        """Handle deliveries, one after the other, until there is nothing to do for ever."""
        ring, settler, concluder = self._ring, self._settler, self._concluder
        monotonic, context, clean = self._monotonic, worker.context, self._workers.clean
        origin: Origin | None = None
        block, route = b"", NO_ROUTE
        # What is the same for many events stays in local variables.
        call, decode, is_direct, timeout_s = route.call, route.decode, route.direct, 0.0
        lanes: Any = None
        started = turn_ends = 0.0
        while True:
            if started > turn_ends:
                # It has just ended: a sample that costs most events nothing.
                self.telemetry.took(route.subscription, monotonic() - started)
                await yield_to_loop()
                await settler.catch_up()
                turn_ends = monotonic() + _TURN_S
            taken = (ring[0].take() or self._take_elsewhere()) if ring else self._take_one(worker)
            if taken is None:
                may_start = self.may_start and self.admission.has_place
                if self._lists.ready and (
                    may_start or (self._is_alone and self._lists.next_is_lone)
                ):
                    await self._list_runner.run(worker, *self._lists.ready.popleft())
                elif may_start and (await self._feeder.feed() or self._lists.close_those_at_rest()):
                    continue
                elif not await self._sleep(worker):
                    return None
                if context != clean:
                    self._concluder.ended(worker)
                    return self._workers.retire(worker)
                continue

            delivery, record = taken, taken.record
            if record.headers != block or delivery.origin is not origin:
                origin, block = delivery.origin, record.headers
                lanes = origin.lanes
                route = self._routes.of(origin, block)
                call, decode = route.call, route.decode
                is_direct, timeout_s = route.direct, route.timeout_s
            value = record.value
            if (value is None or not is_direct) and not self._runs_here(worker, route, delivery):
                continue

            started = monotonic()
            worker.handling = delivery
            if not self._growing:
                self._started()
            if timeout_s:
                worker.subscription = route.subscription
                worker.deadline = started + timeout_s
            try:
                event = None if value is None else decode(value)
            except Exception as error:  # its words are made only now
                concluder.undecodable(worker, delivery, route, error)
                self._note(lanes)
                continue
            try:
                outcome = await call(event, delivery)
            except asyncio.CancelledError as error:
                if self._stopping:
                    raise
                why = worker.why_cancelled(error)
                concluder.failed(worker, delivery, route.subscription, why, started)
                self._note(lanes)
            except BaseException as error:  # no handler may end the process, or its group
                if ends_process(error):
                    raise
                concluder.failed(worker, delivery, route.subscription, error, started)
                self._note(lanes)  # It may wait for a moment at which nothing is settled.
            else:
                if (
                    delivery.published
                    and (missing := await concluder.missing([delivery])) is not None
                ):
                    concluder.failed(worker, delivery, route.subscription, missing, started)
                elif timeout_s and monotonic() > worker.deadline:
                    why = worker.time_is_over()
                    concluder.failed(worker, delivery, route.subscription, why, started)
                elif outcome is None:
                    lanes.done(delivery)
                else:
                    concluder.returned(worker, delivery, route.subscription, outcome, started)
            worker.handling = None
            if timeout_s:
                worker.ended()
            if settler.timer is None or lanes.ledger.urgent:
                self._note(lanes)
            if context != clean:
                concluder.ended(worker)
                return self._workers.retire(worker)

    def _runs_here(self, worker: Worker, route: Route, delivery: Delivery) -> bool:
        """Skip it, put it into a list, let it wait, or say that it runs here after all."""
        subscription = route.subscription
        lanes: Lanes = delivery.origin.lanes
        if subscription is None or (
            delivery.record.value is None and not subscription.takes_tombstones
        ):
            self.admission.withdraw(worker)
            needs = self._routes.type_of(delivery.record.headers) if subscription is None else None
            if needs is not None and (lanes.origin.topic, needs) in self._consumer.elsewhere:
                # It is not for this process, but for another one of the group.
                lanes.put_back(delivery)
                self._holding.give_up(lanes, needs)
                return False
            if subscription is None and delivery.replayed:
                lanes.return_replay(delivery)
            else:
                lanes.skip(delivery)
            self._note(lanes)
            return False
        if not self._is_alone and not self.admission.permit(route, delivery, worker):
            return False
        if subscription.batch is None:
            return self.admission.let_through(worker, route.guards, [delivery])
        self.admission.withdraw(worker)
        self._list_runner.collect(worker, route, delivery)
        return False

    async def _sleep(self, worker: Worker) -> bool:
        """Nothing is to be done now: sleep until woken; False if the worker is to end."""
        for lanes in self._partitions.values():
            # Taking parks what waits behind a dead letter, and no run notes it.
            if lanes.ledger.urgent or lanes.lone:
                self._note(lanes)
        self.admission.go_on()
        self._rested.set()
        self._moved()
        return await self._workers.sleep(worker)

    def _started(self) -> None:
        """A handler is about to be entered."""
        if not self._growing:
            self._growing = True
            self._loop.call_soon(self._grow)

    def _may_run_list(self, worker: Worker, route: Route, deliveries: Sequence[Delivery]) -> bool:
        if not self.admission.is_free and not self._is_alone:
            self.admission.admit(worker)
        return self.admission.let_through(worker, route.guards, deliveries)

    def _grow(self) -> None:
        """A handler was entered before this turn: one more worker may be of use."""
        self._growing = False
        if self.may_start and self.admission.has_place and self._has_work():
            self._workers.wake()

    # --- what runs alone --------------------------------------------------------------------

    def hold(self) -> None:
        """See `Stoppable.hold`."""
        self._holds += 1
        self._fill_ring()

    def unhold(self) -> None:
        """See `Stoppable.unhold`."""
        self._holds -= 1
        self._changed()

    async def _run_alone(self, delivery: Delivery) -> None:
        """Run it, with nothing beside it: the group is held, and at rest."""
        self._lone, self._is_alone = delivery, True
        self._workers.wake()
        try:
            await self.rest()
        finally:
            self._is_alone = False

    async def rest(self) -> None:
        """See `Stoppable.rest`."""
        while self._workers.in_flight or self._lone is not None:
            self._rested.clear()
            await self._rested.wait()

    def _note(self, lanes: Lanes) -> None:
        """See to it that outcomes are written, retries start, and workers look."""
        self._settler.note(lanes)
        if lanes.lone:
            self._alone.go_on()
        if lanes.ready or lanes.to_load or lanes.wants_due:
            self._workers.wake()

    def _after_settling(self) -> None:
        self._moved()
        if any(lanes.lone for lanes in self._partitions.values()):
            self._alone.go_on()
        if self._operations.next_ms is None:
            self._operations.go_on()
        self._holding.go_on()
        self._workers.wake()

    async def _sweep(self) -> None:
        """Cancel what runs for too long, and say that this process is alive."""
        while True:
            # All groups at the same moments, so that an idle process wakes up once for them.
            await sleep(self._sweep_s - self._loop.time() % self._sweep_s)
            self.beat()
            self._holding.go_on()
            stuck = self._workers.time_out(self._monotonic(), self._limits.stuck_s)
            if stuck is not None:
                self._fail(stuck)

    def _fail(self, error: BaseException) -> None:
        """End handling with an error."""
        if not self._failure.done():
            self._failure.set_exception(error)
