"""Lists for batch handlers: collected until they are full, or have waited long enough."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.outcome import DONE
from eventlane.subscription import Subscription

__all__ = ["Lists", "outcomes_of"]


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

    def add(self, subscription: Subscription, delivery: Delivery) -> None:
        """Put a delivery into the next list of its handler."""
        batch = subscription.batch
        assert batch is not None
        if delivery.trouble is not None:
            self.ready.append((subscription, [delivery]))  # alone, so that it alone is charged
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

    def one_by_one(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        """A list failed: hand its events over again, each alone."""
        for delivery in deliveries:
            delivery.published = None
            self.ready.append((subscription, [delivery]))

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


def outcomes_of(returned: Any, count: int) -> list[object]:
    """The outcome of each event of a list, from what its handler returned."""
    if returned is None:
        return [DONE] * count
    if isinstance(returned, list):
        outcomes = cast("list[object]", returned)
        if len(outcomes) == count:
            return [DONE if each is None else each for each in outcomes]
    return [returned] * count  # each is refused, with the reason
