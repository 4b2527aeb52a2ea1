"""Lets the operations of a group's operators release what may run next, at its time."""

import asyncio
import logging
from collections.abc import Callable

from eventlane.broker import Consumer
from eventlane.clock import Clock, Timer
from eventlane.errors import StorageError

__all__ = ["Advancer"]

log = logging.getLogger("eventlane.dispatch")

_TRY_AGAIN_MS = 1_000
_LOOK_S = 1.0
"""How often it is looked, at least: another process may have let an operation go on."""


class Advancer:
    """Asks the broker to go on, whenever that may be of use. One per group and process."""

    def __init__(
        self, group: str, consumer: Consumer, clock: Clock, moved: Callable[[], None]
    ) -> None:
        """`moved` is told after each time."""
        self.next_ms: int | None = None
        """When an operation goes on by itself; None if only something that happens lets it."""
        self._group = group
        self._consumer = consumer
        self._clock = clock
        self._moved = moved
        self._wanted = asyncio.Event()

    def go_on(self) -> None:
        """Something happened for which an operation may have waited."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        timer: Timer | None = None
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if timer is not None:
                timer.cancel()
                timer = None
            try:
                self.next_ms = await self._consumer.advance_operations()
            except StorageError as error:
                log.warning("group %s: operations wait: %s", self._group, error)
                self.next_ms = self._clock.now_ms() + _TRY_AGAIN_MS
            left_s = _LOOK_S - self._clock.monotonic_s() % _LOOK_S  # All groups at once.
            if self.next_ms is not None:
                left_s = max(0, self.next_ms - self._clock.now_ms()) / 1000
            timer = self._clock.call_later(left_s, self._wanted.set)
            self._moved()
