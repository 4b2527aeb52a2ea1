"""Whether a run may start: breakers and rates, of its group and of what it depends on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.guard import GroupGuard, Guard
from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.limiting import RateLimit
from eventlane.routing import Route, Routes
from eventlane.subscription import GroupPlan
from eventlane.workers import Worker

__all__ = ["Admission"]


class Admission:
    """Stands before the runs of one group in this process."""

    def __init__(
        self,
        plan: GroupPlan,
        routes: Routes,
        dependencies: Mapping[str, Guard],
        partitions: dict[tuple[str, int], Lanes],
        *,
        moved: Callable[[], None],
        free: Callable[[], int],
        note: Callable[[Lanes], None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`moved` is called when more may run, or less; `note` for partitions that go on; `free`
        says how many runs could start now if nothing limited them.
        """
        self.group = GroupGuard(plan.name, plan.concurrency, clock, limits)
        self._partitions = partitions
        self._moved = moved
        self._free = free
        self._note = note
        names = {each.name for one in plan.subscriptions for each in one.dependencies}
        self._dependencies = [dependencies[name] for name in sorted(names)]
        rates = [frozenset(each.limits) for each in routes.by_type.values()]
        self._rates = sorted(frozenset[RateLimit]().union(*rates), key=lambda each: each.name)
        self._gates = [each for each in self._rates if all(each in own for own in rates)]
        """Rates of all that the group does: while one is used up, nothing is taken from the log."""
        self._paid: dict[tuple[RateLimit, ...], int] = {}
        """Of how many of these rates the next run has a permit, from the first on."""
        self._turn = 0
        self.group.listeners.append(moved)
        for guard in self._dependencies:
            guard.listeners.append(partial(self._dependency_moved, guard))
        for rate in self._rates:
            rate.listeners.append(partial(self._rate_moved, rate))

    @property
    def is_free(self) -> bool:
        """Nothing limits the group."""
        return self.group.breaker.is_closed and not self._gates

    @property
    def has_place(self) -> bool:
        """Whether the group may start one more run now."""
        return self.group.has_place

    @property
    def may_take(self) -> bool:
        """Whether the group may take one more event now, to run or to put into a list."""
        return self.group.has_place and not any(
            self._waits_for(rate) and not rate.usable_for(self) for rate in self._gates
        )

    @property
    def is_asking(self) -> bool:
        """Whether the broker is being asked for permits."""
        return any(rate.is_asking for rate in self._rates)

    @property
    def is_slow(self) -> bool:
        """Whether something waits for its rate, as is meant."""
        return any(self._waits_for(rate) and not rate.refused for rate in self._rates)

    def admit(self, worker: Worker) -> None:
        """The group's breaker, which is not closed, lets a worker have a run."""
        worker.admitted = self.group.admit()

    def withdraw(self, worker: Worker) -> None:
        """That run does not start after all."""
        if worker.admitted is not None:
            run, worker.admitted = worker.admitted, None
            self.group.withdraw(run)

    def let_through(
        self, worker: Worker, guards: Sequence[Guard], deliveries: Sequence[Delivery]
    ) -> bool:
        """Whether all that these need works, as far as is known; else they wait for it."""
        for guard in guards:
            if not guard.has_place:
                self.withdraw(worker)
                for delivery in reversed(deliveries):
                    delivery.origin.lanes.put_back(delivery, until=guard)
                return False
        for guard in guards:
            guard.admit()
        return True

    def permit(self, route: Route, delivery: Delivery, worker: Worker | None = None) -> bool:
        """Whether the rates permit one more run now; else its event waits for them.

        A run has its permits from then on. What else it would wait for is asked before, since a
        permit is lost if it does not start.
        """
        if not route.limits:
            return True
        out = next((each for each in route.guards if not each.has_place), None)
        lacking = out or self._pay(route.limits)
        if lacking is None:
            return True
        if worker is not None:
            self.withdraw(worker)
        delivery.origin.lanes.put_back(delivery, until=lacking)
        if isinstance(lacking, RateLimit):
            lacking.want()
        return False

    def permit_mate(self, route: Route) -> bool:
        """Whether the rates permit that one more event goes into a list that is about to run."""
        if not all(rate.usable_for(self) for rate in route.limits):
            return False
        for rate in route.limits:
            rate.take(self)
        return True

    def why_limited(self) -> Iterator[str]:
        """What is out, or used up, in words."""
        for guard in (self.group, *self._dependencies):
            if guard.breaker.is_open:
                yield f"{guard.name} is out, and only probes run: {guard.breaker.why}"
        yield from (rate.says for rate in self._rates if self._waits_for(rate))

    def next_ms(self) -> Iterator[int | None]:
        """When dependencies are probed, and permits usable, for which something waits here."""
        limits: tuple[Guard | RateLimit, ...] = (*self._dependencies, *self._rates)
        for each in limits:
            if self._waits_for(each):
                yield each.next_ms

    def go_on(self) -> None:
        """See to it that there are permits for what waits, now that a run could start."""
        for rate in self._rates:
            if self._waits_for(rate) and self._free():
                rate.want()

    def close(self) -> None:
        """Probe no more."""
        self.group.close()

    def _pay(self, limits: tuple[RateLimit, ...]) -> RateLimit | None:
        """Take a permit of each; or those that come before the first that has none, which is told.

        These are kept for the next run that needs the same: of two slow rates permits are seldom
        usable at once.
        """
        paid = self._paid.get(limits, 0)
        for rate in limits[paid:]:
            if not rate.usable_for(self):
                self._paid[limits] = paid
                return rate
            rate.take(self)
            paid += 1
        self._paid[limits] = 0
        return None

    def _waits_for(self, each: Guard | RateLimit) -> bool:
        return any(lanes.waits_for(each) for lanes in self._partitions.values())

    def _rate_moved(self, rate: RateLimit) -> None:
        """Let as many of the events that wait for a rate run as there are permits.

        Where no run could start, none is kept or asked for: others may need them.
        """
        free = self._free()
        usable = left = min(rate.usable_for(self), free)
        if left:
            waiting = [each for each in self._partitions.values() if each.waits_for(rate)]
            self._turn += 1  # Each partition is the first now and then.
            turn = self._turn % max(1, len(waiting))
            for lanes in (*waiting[turn:], *waiting[:turn]):
                left -= lanes.resume(rate, left)
                self._note(lanes)
            rate.keep(self, usable - left)
            for place in [place for place, lanes in self._partitions.items() if not lanes.ready]:
                # What has waited is taken before anything new, whatever its partition.
                self._partitions[place] = self._partitions.pop(place)
        if free and self._waits_for(rate):
            rate.want()
        self._moved()

    def _dependency_moved(self, guard: Guard) -> None:
        """Let as many of the events that wait for a dependency run as it permits by now."""
        if guard.has_place:
            count_max = None if guard.breaker.is_closed else guard.breaker.permitted
            for lanes in list(self._partitions.values()):
                lanes.resume(guard, count_max)
                self._note(lanes)
        self._moved()
