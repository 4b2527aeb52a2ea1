"""At most so many runs per second: the permits that a process holds. Pure: times are given.

A permit is a moment from which on one run may start. Who gives them out spaces them by 1/rate over
all processes, so that nothing here has to know of the others.
"""

import math
from collections import deque

__all__ = ["EXPIRY_S", "Permits"]

EXPIRY_S = 0.2
"""A permit that was not used so long after its moment is dropped, so that no bursts pile up."""
_RESERVED_S = 0.1
"""About so much time is covered by what is reserved at once."""
_ROUNDING_S = 1e-6
"""A timer that was set for a time may end this much before it: sums of floats differ."""


class Permits:
    """The permits of one name in one process."""

    def __init__(self, rate_per_s: float) -> None:
        self.count_max = max(1, math.ceil(rate_per_s * _RESERVED_S))
        """How many are reserved at once."""
        self._step_s = 1 / rate_per_s
        self._series: deque[tuple[float, int]] = deque()
        """(the moment of the first, how many), the earliest first."""

    def add(self, first_s: float, count: int) -> None:
        """These were reserved: the first for this moment, the others one step apart."""
        self._series.append((first_s, count))

    def usable(self, now_s: float) -> int:
        """How many runs may start now."""
        self._drop(now_s)
        return sum(min(count, self._passed(first_s, now_s)) for first_s, count in self._series)

    def take(self, now_s: float) -> bool:
        """Use one; False if there is none that is usable."""
        if not self.usable(now_s):
            return False
        first_s, count = self._series.popleft()
        if count > 1:
            self._series.appendleft((first_s + self._step_s, count - 1))
        return True

    def is_short(self, now_s: float) -> bool:
        """Whether it is time to reserve more, where more are wanted."""
        self._drop(now_s)
        return sum(count for _, count in self._series) <= self.count_max // 2

    def next_s(self, now_s: float) -> float | None:
        """When one more becomes usable, or the first that is expires; None: there is none.

        Those that are usable may be kept for somebody else, so the next one counts as well.
        """
        self._drop(now_s)
        moments: list[float] = []
        for first_s, count in self._series:
            passed = self._passed(first_s, now_s)
            if passed:
                moments.append(first_s + EXPIRY_S + 2 * _ROUNDING_S)
            if passed < count:
                moments.append(first_s + passed * self._step_s)
        return min(moments, default=None)

    def _passed(self, first_s: float, now_s: float) -> int:
        """The moments of a series that have come by now."""
        return max(0, 1 + math.floor((now_s + _ROUNDING_S - first_s) / self._step_s))

    def _drop(self, now_s: float) -> None:
        while self._series:
            first_s, count = self._series[0]
            over = self._passed(first_s, now_s - EXPIRY_S - 2 * _ROUNDING_S)
            if not over:
                return
            self._series.popleft()
            if over < count:
                self._series.appendleft((first_s + over * self._step_s, count - over))
