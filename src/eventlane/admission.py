"""Whether a run may start: the breaker of its group, and those of what it depends on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.guard import GroupGuard, Guard
from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.subscription import GroupPlan
from eventlane.workers import Worker

__all__ = ["Admission"]


class Admission:
    """Stands before the runs of one group in this process."""

    def __init__(
        self,
        plan: GroupPlan,
        dependencies: Mapping[str, Guard],
        partitions: Mapping[tuple[str, int], Lanes],
        *,
        moved: Callable[[], None],
        note: Callable[[Lanes], None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`moved` is called when more may run, or less; `note` for partitions that go on."""
        self.group = GroupGuard(plan.name, plan.concurrency, clock, limits)
        self._partitions = partitions
        self._moved = moved
        self._note = note
        names = {each.name for one in plan.subscriptions for each in one.dependencies}
        self._dependencies = [dependencies[name] for name in sorted(names)]
        self.group.listeners.append(moved)
        for guard in self._dependencies:
            guard.listeners.append(partial(self._dependency_moved, guard))

    @property
    def is_free(self) -> bool:
        """Nothing limits the group."""
        return self.group.breaker.is_closed

    @property
    def has_place(self) -> bool:
        """Whether the group may start one more run now."""
        return self.group.has_place

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

    def why_limited(self) -> Iterator[str]:
        """What is out, in words."""
        for guard in (self.group, *self._dependencies):
            if guard.breaker.is_open:
                yield f"{guard.name} is out, and only probes run: {guard.breaker.why}"

    def probes_ms(self) -> Iterator[int | None]:
        """When dependencies are probed for which something waits here."""
        for guard in self._dependencies:
            if any(lanes.waits_for(guard) for lanes in self._partitions.values()):
                yield guard.next_ms

    def close(self) -> None:
        """Probe no more."""
        self.group.close()

    def _dependency_moved(self, guard: Guard) -> None:
        """Let as many of the events that wait for a dependency run as it permits by now."""
        if guard.has_place:
            count_max = None if guard.breaker.is_closed else guard.breaker.permitted
            for lanes in list(self._partitions.values()):
                lanes.resume(guard, count_max)
                self._note(lanes)
        self._moved()
