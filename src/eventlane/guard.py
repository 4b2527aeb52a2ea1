"""A breaker at work: its clock, the timer of its probes, and who is told when more may run."""

import logging
from collections.abc import Callable, Hashable

from eventlane.breaker import Breaker, Dependency, FailureWindow
from eventlane.clock import Clock, Timer
from eventlane.config import Limits

__all__ = ["GroupGuard", "Guard", "guard_of"]

log = logging.getLogger("eventlane.guard")


class Guard:
    """Stands before the runs of a group, or of all handlers that name a dependency."""

    promise = "no event dies of it"
    """What the log says of probes."""

    def __init__(self, name: str, breaker: Breaker, clock: Clock) -> None:
        self.name = name
        self.breaker = breaker
        self.listeners: list[Callable[[], None]] = []
        """Called when a probe is due, and when more may run."""
        self._clock = clock
        self._timer: Timer | None = None

    @property
    def has_place(self) -> bool:
        """Whether one more run may start now."""
        return self.breaker.has_place(self._clock.monotonic_s())

    @property
    def next_ms(self) -> int | None:
        """The wall time of the next probe; None if none is waited for."""
        due_s = self.breaker.probe_due_s
        if due_s is None:
            return None
        left_s = max(0.0, due_s - self._clock.monotonic_s())
        return self._clock.now_ms() + -int(-left_s * 1000 // 1)

    def admit(self) -> int:
        """Let one run start, for which there is a place; hand what this returns back at its end."""
        self.breaker.admit(self._clock.monotonic_s())
        return self.breaker.trips

    def succeeded(self, run: int) -> None:
        """An admitted run ended well."""
        if self.breaker.succeeded(run) and self.breaker.is_closed:
            extra = {"kind": "guard_closed", "guard": self.name}
            log.warning("%s works again: everything runs", self.name, extra=extra)
            self._tell()
        elif not self.breaker.is_closed:
            self._tell()  # There is a place again.

    def failed(self, run: int, error: BaseException) -> None:
        """An admitted run failed in a way that counts."""
        self._opened(is_new=self.breaker.failed(self._clock.monotonic_s(), run, error))

    def gave_up(self, run: int) -> None:
        """An admitted run ended without telling anything."""
        self.breaker.gave_up(self._clock.monotonic_s(), run)
        self._watch()
        if not self.breaker.is_closed:
            self._tell()

    def withdraw(self, run: int) -> None:
        """An admitted run did not start after all."""
        self.breaker.withdraw(run)
        if not self.breaker.is_closed:
            self._tell()

    def trip(self, why: str) -> None:
        """Stop everything but probes."""
        self._opened(is_new=self.breaker.trip(self._clock.monotonic_s(), why))

    def close(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _opened(self, *, is_new: bool) -> None:
        if is_new:
            log.warning(
                "%s is out: %s. Nothing but probes runs until one succeeds; %s.",
                self.name,
                self.breaker.why,
                self.promise,
                extra={"kind": "guard_opened", "guard": self.name, "reason": self.breaker.why},
            )
        if not self.breaker.is_closed:
            self._tell()  # There may be a place again, though it has failed.
        self._watch()

    def _watch(self) -> None:
        due_s = self.breaker.probe_due_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None:
            left_s = max(0.0, due_s - self._clock.monotonic_s())
            self._timer = self._clock.call_later(left_s, self._tell)

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


class GroupGuard(Guard):
    """Stands before all runs of a group in this process."""

    promise = "each probe is an attempt of its event"

    def __init__(self, group: str, concurrency: int, clock: Clock, limits: Limits) -> None:
        super().__init__(f"group {group}", Breaker(concurrency=concurrency), clock)
        self._window = FailureWindow(
            window_runs=limits.breaker_runs,
            failure_ratio=limits.breaker_failure_ratio,
            lanes_min=limits.breaker_lanes_min,
        )
        self._failures = 0

    def count_failure(self, done: int, lane: Hashable) -> None:
        """A run failed that is to be tried again; `done` events were done so far."""
        self._failures += 1
        if self._window.failed(done + self._failures, lane):
            self.trip(self._window.why)


def guard_of(dependency: Dependency, *, concurrency: int, clock: Clock) -> Guard:
    """What stands before the handlers that name a dependency."""
    breaker = Breaker(
        concurrency=concurrency,
        failures=dependency.failures,
        probe_s=dependency.probe_s,
        probe_s_max=dependency.probe_s_max,
    )
    return Guard(f"dependency {dependency.name}", breaker, clock)
