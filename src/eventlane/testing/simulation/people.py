"""Who acts in a world: publishers, workers, operators, and who mends everything in the end."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID

from eventlane.clock import sleep
from eventlane.errors import Conflict, NotFound, PublishTimeout, Refused, StorageError
from eventlane.failure import DeadLetter
from eventlane.query import Query
from eventlane.testing.history import Published
from eventlane.testing.simulation.embedded import SimulatedApp
from eventlane.testing.simulation.events import Bent, Echo, Loose, Other, Step
from eventlane.testing.simulation.expectations import Expectations
from eventlane.testing.simulation.handlers import Handlers
from eventlane.testing.simulation.observer import Observer
from eventlane.testing.simulation.plan import Group, Plan
from eventlane.testing.simulation.world import Process, World

__all__ = ["People"]


class People:
    """Everybody in one world. Each method with a process is the main program of a node."""

    def __init__(
        self, world: World, plan: Plan, observer: Observer, expectations: Expectations
    ) -> None:
        self.unmended = ""
        """What keeps the world from being at rest."""
        self._world = world
        self._plan = plan
        self._observer = observer
        self._expectations = expectations
        self._handlers = Handlers(world, observer, expectations)
        self._apps: dict[str, SimulatedApp] = {}
        self._published = 0
        self._numbers: dict[str, int] = {}
        self._all_published = False

    def _app(self, process: Process, groups: Sequence[Group] = ()) -> SimulatedApp:
        """The app of a process's node."""
        name = process.node.name
        app = self._apps.get(name)
        if app is None:
            app = self._apps[name] = self._new_app(name, groups)
        app.begin(process)
        return app

    def _new_app(self, name: str, groups: Sequence[Group]) -> SimulatedApp:
        # The types of a name's second class are not known to workers.
        app = SimulatedApp(
            f"embedded:{self._world.store.directory}",
            name=name,
            partitions=self._plan.partitions,
            limits=self._plan.limits,
            clock=self._world.clock,
            allow_edit=True,
        )
        app.observer = self._observer
        for group in groups:
            options: dict[str, Any] = {
                "group": group.name,
                "ordering": group.ordering,
                "on_dead": group.on_dead,
                "retry": group.retry,
                "timeout_s": group.timeout_s,
                "concurrency": group.concurrency,
                "dependencies": self._handlers.dependencies(group),
            }
            if group.batch is not None:
                options["batch"] = group.batch
            app.subscribe(Step, Loose, Echo, **options)(self._handlers.of(group, app))
        return app

    # --- publishers -------------------------------------------------------------------------

    async def publish(self, process: Process) -> None:
        """Publish until all is published, over all starts of the node."""
        chance, plan = self._world.chance, self._plan
        async with self._app(process) as app:
            while self._published < plan.events_count and not process.stop.is_set():
                at_once = [self._next_event() for _ in range(chance.choice((1, 1, 2, 4)))]
                await asyncio.gather(*(self._publish(app, process, each) for each in at_once))
                await sleep(chance.expovariate(1 / plan.gap_s))
        self._all_published = process.node.is_over = self._published >= plan.events_count

    def _next_event(self) -> object:
        self._published += 1
        chance = self._world.chance
        kind, key = chance.random(), chance.choice(self._plan.keys)
        if kind < 0.05:
            return Loose(self._published)
        if kind < 0.08:
            return Other(key)
        if kind < 0.1:
            return Bent(key, "three")
        self._numbers[key] = self._numbers.get(key, 0) + 1
        return Step(key, self._numbers[key])

    async def _publish(self, app: SimulatedApp, process: Process, event: object) -> None:
        while True:
            event_id = UUID(int=self._world.chance.getrandbits(128))
            try:
                place = await app.publish(event, event_id=event_id)
            except (StorageError, PublishTimeout):
                self._expectations.is_not_written(event_id)
                await sleep(0.05)
                continue
            self._expectations.is_written(event_id)
            key = getattr(event, "key", None)
            self._world.record(
                Published(
                    topic=place.topic,
                    partition=place.partition,
                    offset=place.offset,
                    key=None if key is None else key.encode(),
                    event_id=event_id,
                    process=process.name,
                )
            )
            return

    # --- workers ----------------------------------------------------------------------------

    def work(self, groups: Sequence[int]) -> Callable[[Process], Coroutine[Any, Any, None]]:
        """The main program of a worker that handles these groups."""

        async def work(process: Process) -> None:
            tries_idle, stop = self._plan.tries_idle, process.stop
            async with self._app(process, [self._plan.groups[each] for each in groups]) as app:
                while tries_idle and self._world.is_calm and not stop.is_set():
                    await app.run_until_idle()
                    await sleep(0.1)
                async with app.handling():
                    await stop.wait()

        return work

    # --- operators --------------------------------------------------------------------------

    async def operate(self, process: Process) -> None:
        """Do something to dead letters, operations and groups, now and then."""
        # Who edits has to know the types of the groups.
        async with self._app(process, self._plan.groups) as app:
            while not (process.stop.is_set() or self._world.is_calm):
                await sleep(self._world.chance.expovariate(1 / self._plan.operator_gap_s))
                try:
                    if not self._world.is_calm:
                        self._world.counts["operator actions"] += await self._operate_once(app)
                except (Conflict, Refused, NotFound, StorageError) as error:
                    self._world.note(f"{process.name} is refused: {error}")
        process.node.is_over = self._world.is_calm

    async def _operate_once(self, app: SimulatedApp) -> bool:
        """Do something; whether there was something to do it to."""
        chance = self._world.chance
        what, group = chance.random(), chance.choice(self._plan.groups).name
        if what < 0.1:
            await app.pause(group, reason="the operator says so")
        elif what < 0.25:
            await app.resume(group)
        elif what < 0.5:
            operations = await app.operations(limit=5)
            if not operations:
                return False
            status = chance.choice(operations)
            operation = await app.operation(status.id)
            do = chance.choice((operation.pause, operation.pause, operation.cancel))
            if status.state == "paused":
                do = operation.resume
            await do(reason="the operator says so")
        elif what < 0.55:
            letters = await app.dead_letters(state="archived", limit=20)
            if not letters:
                return False
            await app.restore(chance.choice(letters), reason="still needed")
        else:
            letters = list(await app.dead_letters(limit=20))
            if not letters:
                return False
            if what < 0.65:
                await self._edit(app, chance.choice(letters))
            else:
                await self._replay_or_archive(app, letters, is_replay=what < 0.93)
        return True

    async def _edit(self, app: SimulatedApp, letter: DeadLetter) -> None:
        key = "" if letter.key is None else letter.key.decode()
        event: dict[str, object] = {"number": self._world.chance.randrange(1000)}
        if letter.event_type != "loose":
            event["key"] = key
        await app.edit_and_replay(letter, event, reason="a typo")
        self._world.counts["edits"] += 1

    async def _replay_or_archive(
        self, app: SimulatedApp, letters: list[DeadLetter], *, is_replay: bool
    ) -> None:
        chance = self._world.chance
        some = chance.sample(letters, min(len(letters), chance.choice((1, 2, 5, 20))))
        if chance.random() < 0.5:  # All of a lane, as far as is known.
            one = some[0]
            some = [each for each in letters if (each.group, each.lane) == (one.group, one.lane)]
        if is_replay:
            wanted: Query | list[DeadLetter] = some
            if chance.random() < 0.3:
                wanted = self._query(some[0])
                self._world.counts["replays by query"] += 1
            await app.replay(
                wanted,
                reason="try again",
                rate_per_s=chance.choice((None, 1000, 1000, 200, 0.5)),
                canary=chance.random() < 0.3,
                pause_above=chance.choice((None, 0.05, 0.5)),
                allow_gap=chance.random() < 0.3,
            )
        else:
            await app.archive(some, reason="not needed")

    def _query(self, like: DeadLetter) -> Query:
        """Conditions that a letter meets, and others perhaps too."""
        conditions: dict[str, Any] = {
            "group": like.group,
            "type": like.event_type,
            "exception": like.error_class,
            "key": like.key,
            "fingerprint": like.fingerprint,
        }
        some = self._world.chance.sample(list(conditions), 2)
        return Query(**{name: conditions[name] for name in some})

    # --- the end ----------------------------------------------------------------------------

    async def mend(self, process: Process) -> None:
        """Resume what is paused, and replay all letters, until nothing is left."""
        patience_s = 0.1
        is_first = True
        async with self._app(process) as app:
            while not process.node.is_over:
                left = await self._left_of_operations(app, is_first=is_first)
                is_first = False
                if not self._all_published:
                    left.append("not all is published")
                left += await self._left_of_groups(app)
                self.unmended = "; ".join(left)
                process.node.is_over = not left
                for letter in await app.dead_letters():
                    with contextlib.suppress(Conflict):
                        await self._mend_letter(app, letter)
                if left:
                    await sleep(patience_s)
                    patience_s = min(patience_s * 1.2, 5.0)

    async def _left_of_operations(self, app: SimulatedApp, *, is_first: bool) -> list[str]:
        """Pause what runs, at first, and resume it later: that must leave no trace."""
        running = await app.operations(state="running")
        paused = await app.operations(state="paused")
        for status in running if is_first else paused:
            operation = await app.operation(status.id)
            do = operation.pause if is_first else operation.resume
            with contextlib.suppress(Conflict, Refused):  # It is so already, or has ended.
                await do(reason="all is well")
        return [str(each) for each in (*running, *paused)]

    async def _left_of_groups(self, app: SimulatedApp) -> list[str]:
        left: list[str] = []
        groups = (await app.status()).groups
        for name, group in groups.items():
            if group.paused is not None:
                with contextlib.suppress(Conflict):  # An operator has resumed it meanwhile.
                    await app.resume(name)
            if not group.balances:
                self._world.went_wrong(f"the account of {name} does not balance: {group}", None)
            if group.paused or group.open or group.dead or group.parked or group.pending:
                left.append(f"{name}: {group}")
        # A worker that is slow to start is waited for.
        handled = {self._plan.groups[each].name for own in self._plan.workers for each in own}
        return left + [f"{name} has not started" for name in sorted(handled - groups.keys())]

    async def _mend_letter(self, app: SimulatedApp, letter: DeadLetter) -> None:
        if letter.disposition != "undecodable":
            try:
                await app.replay(letter, reason="all is well", canary=False, rate_per_s=None)
                return
            except Refused as error:
                if "replays_max" not in str(error):
                    return  # An earlier one of its lane comes first.
        await app.archive(letter, reason="it cannot be mended")
