"""A clock for tests: it stands still until it is told to go on."""

import heapq
import math
from collections.abc import Callable

from eventlane.clock import Timer

__all__ = ["ManualClock"]


class _Scheduled:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time that a test moves; see `Clock`.

    Retries, parked events and everything else that is due by the clock happen when it has been
    advanced so far. How long a handler runs is still measured in real time.
    """

    def __init__(self, now_ms: int = 1_600_000_000_000) -> None:
        self._start_ms = self._now_ms = now_ms
        self._timers: list[tuple[int, int, _Scheduled]] = []
        self._count = 0

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._now_ms

    def after_ms(self, delay_s: float) -> int:
        """See `Clock.after_ms`."""
        # Rounded up, but not by what a float is off: 8.036 s * 1000 is a trace above 8036.
        return self.now_ms() + math.ceil(round(delay_s * 1000, 6))

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return (self._now_ms - self._start_ms) / 1000

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `Clock.call_later`."""
        self._count += 1
        scheduled = _Scheduled(callback)
        due_ms = self._now_ms + math.ceil(round(delay_s * 1000, 6))
        heapq.heappush(self._timers, (due_ms, self._count, scheduled))
        return scheduled

    def advance(self, seconds_s: float) -> None:
        """Move on by some seconds; see `advance_to`."""
        self.advance_to(self._now_ms + round(seconds_s * 1000))

    def advance_to(self, now_ms: int) -> None:
        """See `VirtualClock.advance_to`. Going back is ignored."""
        while self._timers and self._timers[0][0] <= now_ms:
            due_ms, _, scheduled = heapq.heappop(self._timers)
            self._now_ms = max(self._now_ms, due_ms)
            if scheduled.callback is not None:
                scheduled.callback()
        self._now_ms = max(self._now_ms, now_ms)
