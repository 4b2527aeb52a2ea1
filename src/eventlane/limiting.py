"""A rate at work: permits are reserved at the broker, and who waits for one is told.

`rate_per_s` holds over all processes, since the broker gives the permits out. It is asked only
while an event waits for one, for about 0.1 s at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from eventlane.breaker import Dependency
from eventlane.broker import Broker
from eventlane.clock import Clock, Timer, sleep
from eventlane.errors import EventlaneError
from eventlane.rate import EXPIRY_S, Permits
from eventlane.subscription import GroupPlan, Subscription

__all__ = ["RateLimit", "limits_of", "rate_limits"]

log = logging.getLogger("eventlane.limiting")

_TRY_AGAIN_S = (0.05, 2.0)


class RateLimit:
    """Stands before the runs of a group, or of all handlers that name a dependency."""

    def __init__(
        self, kind: str, name: str, rate_per_s: float, broker: Broker, clock: Clock
    ) -> None:
        """`kind` is `group` or `dependency`."""
        self.name = f"{kind}:{name}"
        """What the broker knows it by."""
        self._says = f"{kind} {name} waits for its rate_per_s={rate_per_s:g}"
        self.listeners: deque[Callable[[], None]] = deque()
        """Called when more may run; in turns, so that each is the first now and then."""
        self.is_asking = False
        """The broker is asked, and has not answered."""
        self.refused: EventlaneError | None = None
        """Why the broker did not answer last, while it is asked again."""
        self.rate_per_s = rate_per_s
        self._permits = Permits(rate_per_s)
        self._broker = broker
        self._clock = clock
        self._kept: dict[object, int] = {}
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._due_s: float | None = None

    def usable_for(self, who: object) -> int:
        """How many runs may start now there: not those that are kept for others."""
        kept = sum(count for other, count in self._kept.items() if other is not who)
        return max(0, self._usable - kept)

    @property
    def _usable(self) -> int:
        return self._permits.usable(self._clock.monotonic_s())

    @property
    def says(self) -> str:
        """What it waits for."""
        return self._says + (f": {self.refused}" if self.refused else "")

    @property
    def next_ms(self) -> int | None:
        """The wall time at which the next may start; None if nothing waits, or nobody knows."""
        if self._due_s is None:
            return None
        left_s = max(0.0, self._due_s - self._clock.monotonic_s())
        return self._clock.after_ms(left_s)

    def keep(self, who: object, count: int) -> None:
        """Keep so many for who has waited, until they are used or all are told again."""
        self._kept[who] = count

    def take(self, who: object) -> None:
        """Let one run start: there is a permit for it."""
        if self._kept.get(who):
            self._kept[who] -= 1
        taken = self._permits.take(self._clock.monotonic_s())
        assert taken, "who takes a permit has asked whether there is one"
        if self._is_wanted:
            self.want()

    def want(self) -> None:
        """Something waits for a permit: see to it that there is one, and that it is told."""
        self._is_wanted = True
        now_s = self._clock.monotonic_s()
        if not self.is_asking and self._permits.is_short(now_s):
            self.is_asking = True
            self._task = asyncio.get_running_loop().create_task(self._ask(), name=self.name)
        due_s = self._permits.next_s(now_s)
        if due_s == self._due_s and due_s is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        if due_s is not None:
            self._timer = self._clock.call_later(max(0.0, due_s - now_s), self._due)

    def close(self) -> None:
        """Ask no more, and tell nobody."""
        self.listeners.clear()
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def _ask(self) -> None:
        delay_s, delay_s_max = _TRY_AGAIN_S
        count = self._permits.count_max
        while True:
            asked_ms, asked_s = self._clock.now_ms(), self._clock.monotonic_s()
            try:
                first_ms = await self._broker.reserve(self.name, self.rate_per_s, count)
            except EventlaneError as error:
                # Until it answers nothing runs: the others may be using the whole rate.
                self.refused = error
                extra = {"kind": "rate_unknown", "rate": self.name, "reason": str(error)}
                log.warning("%s; the broker is asked again", self.says, extra=extra)
                await sleep(delay_s)
                delay_s = min(delay_s * 2, delay_s_max)
            else:
                self.is_asking, self.refused = False, None
                now_s = self._clock.monotonic_s()
                # The lower one: the wall clock may have been set between the two.
                first_s = min(
                    now_s + (first_ms - self._clock.now_ms()) / 1000,
                    asked_s + (first_ms - asked_ms) / 1000,
                )
                # What took long to come has not expired on its way.
                self._permits.add(max(first_s, now_s - EXPIRY_S / 2), count)
                self._tell()
                return

    def _due(self) -> None:
        self._due_s = None
        self._tell()

    def _tell(self) -> None:
        self._is_wanted = False  # Until one of these says so again.
        self._kept.clear()
        if self._usable:
            self.listeners.rotate()
        for listener in list(self.listeners):
            listener()


def rate_limits(
    plans: Iterable[GroupPlan], dependencies: Iterable[Dependency], broker: Broker, clock: Clock
) -> dict[str, RateLimit]:
    """What limits groups and dependencies that have a rate, by its name."""
    rates = [("group", each.name, each.rate_per_s) for each in plans]
    rates += [("dependency", each.name, each.rate_per_s) for each in dependencies]
    made = [
        RateLimit(kind, name, rate_per_s, broker, clock)
        for kind, name, rate_per_s in rates
        if rate_per_s is not None
    ]
    return {each.name: each for each in made}


def limits_of(subscription: Subscription, limits: Mapping[str, RateLimit]) -> tuple[RateLimit, ...]:
    """Those that stand before the runs of a handler, the slowest first."""
    names = [f"group:{subscription.group}"]
    names += [f"dependency:{each.name}" for each in subscription.dependencies]
    own = [limits[name] for name in dict.fromkeys(names) if name in limits]
    return tuple(sorted(own, key=lambda each: each.rate_per_s))
