"""Lists for batch handlers: collected until they are full, or have waited long enough."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.outcome import DONE
from eventlane.subscription import Subscription
from eventlane.suspects import ALONE_IN_GROUP

__all__ = ["Ended", "Lists", "add_mates", "by_lane", "outcomes_of"]


class Lists:
    """The lists of one group. At most one event of each lane is in a list: its lane is busy."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.ready: deque[tuple[Subscription, list[Delivery]]] = deque()
        """May be handed over."""
        self._wake = wake
        self._open: dict[str, tuple[Subscription, list[Delivery]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def holds_any(self) -> bool:
        """Whether deliveries wait here."""
        return bool(self.ready or self._open)

    @property
    def next_is_lone(self) -> bool:
        """Whether the next list is one event that has to run alone."""
        _, deliveries = self.ready[0]
        return any(each.trouble and each.trouble.ends >= ALONE_IN_GROUP for each in deliveries)

    def add(self, subscription: Subscription, delivery: Delivery) -> None:
        """Put a delivery into the next list of its handler."""
        batch = subscription.batch
        assert batch is not None
        if delivery.trouble is not None:
            alone = (subscription, [delivery])  # so that it alone is charged
            is_lone = delivery.trouble.ends >= ALONE_IN_GROUP
            (self.ready.appendleft if is_lone else self.ready.append)(alone)
            return
        collected = self._open.setdefault(subscription.name, (subscription, []))[1]
        collected.append(delivery)
        if len(collected) >= batch.size:
            self._close(subscription)
        elif len(collected) == 1 and batch.linger_s:
            self._timers[subscription.name] = asyncio.get_running_loop().call_later(
                batch.linger_s, self._linger_ended, subscription
            )

    def close_those_at_rest(self) -> bool:
        """Close lists that need not linger, as nothing more is to be had; whether any is ready."""
        for name in [name for name in self._open if name not in self._timers]:
            self._close(self._open[name][0])
        return bool(self.ready)

    @staticmethod
    def one_by_one(deliveries: list[Delivery]) -> None:
        """A list failed: hand its events over again, each alone, the first of each lane first."""
        for mates in by_lane(deliveries, [None] * len(deliveries)):
            first, *later = (delivery for delivery, _ in mates)
            lanes: Lanes = first.origin.lanes
            lanes.put_mates_back(later)
            lanes.wait(first, 0)  # It has trouble now, so that nothing is put into its list.

    def forget(self, lanes: Lanes) -> None:
        """Drop deliveries of a partition that was lost."""
        for _, collected in (*self._open.values(), *self.ready):
            collected[:] = [each for each in collected if each.origin.lanes is not lanes]
        for name in [name for name, (_, collected) in self._open.items() if not collected]:
            self._open.pop(name)
            if name in self._timers:
                self._timers.pop(name).cancel()

    def _close(self, subscription: Subscription) -> None:
        timer = self._timers.pop(subscription.name, None)
        if timer is not None:
            timer.cancel()
        self.ready.append(self._open.pop(subscription.name))

    def _linger_ended(self, subscription: Subscription) -> None:
        del self._timers[subscription.name]
        self._close(subscription)
        self._wake()


def add_mates(
    deliveries: list[Delivery], events_max: int, decode: Callable[[Delivery], bool]
) -> None:
    """Put what waits behind the events of a list into it, for `Batch(lanes="together")`.

    `decode` gives a delivery its event, and says whether it may be in the same list.
    """
    for first in list(deliveries):
        lanes: Lanes = first.origin.lanes
        at = deliveries.index(first) + 1
        while len(deliveries) < events_max and first.trouble is None:
            mate = lanes.take_behind(first)
            if mate is None:
                break
            if not decode(mate):
                lanes.put_mates_back([mate])
                break
            deliveries.insert(at, mate)
            at += 1


def by_lane(deliveries: Sequence[Delivery], outcomes: Sequence[object]) -> "list[list[Ended]]":
    """The events of a list, those of each lane apart, in order, with their outcomes."""
    lanes: dict[tuple[int, object], list[Ended]] = {}
    for delivery, outcome in zip(deliveries, outcomes, strict=True):
        key = (id(delivery.origin), delivery.lane)
        lanes.setdefault(key, []).append((delivery, outcome))
    return list(lanes.values())


Ended = tuple[Delivery, object]
"""An event and what its handler returned for it."""


def outcomes_of(returned: Any, count: int) -> list[object]:
    """The outcome of each event of a list, from what its handler returned."""
    if returned is None:
        return [DONE] * count
    if isinstance(returned, list):
        outcomes = cast("list[object]", returned)
        if len(outcomes) == count:
            return [DONE if each is None else each for each in outcomes]
    return [returned] * count  # each is refused, with the reason
