"""An outage is not poison: what stops the runs of a group while something that it needs is out.

A breaker is closed; it opens (trips); while it is open one run at once probes, at growing
intervals; the first probe that succeeds begins a ramp of 1, 2, 4 … runs at once, at whose end the
breaker is closed again. All of it is pure: times are the caller's monotonic seconds.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import KW_ONLY, dataclass

from eventlane.config import checked_options, number
from eventlane.errors import ConfigError
from eventlane.retry import Errors, matches, text_of

__all__ = ["Breaker", "Dependency", "FailureWindow"]

_ROUNDING_S = 1e-6
"""A timer that was set for a time may end this much before it: sums of floats differ."""
_TEXT_CHARACTERS_MAX = 500


@checked_options
@dataclass(frozen=True, slots=True)
class Dependency:
    """Something outside that several handlers need, and that can be out: a mail server, an API.

    `failures` errors of `trips_on` in a row open its breaker: the handlers that name it stop, and
    single events probe until one of them succeeds. An error of `trips_on` never counts as an
    attempt; so name the errors that say that the dependency is out, not those that an event of
    its own can cause. With `rate_per_s` it bears only so much, all handlers that name it together.
    """

    name: str
    _: KW_ONLY
    trips_on: Errors = ()
    """An exception class, or a tuple of them; none: nothing opens it, and it is only a rate."""
    failures: int = 5
    """Errors in a row, with no success between them, that open the breaker."""
    probe_s: float = 1.0
    """How long after it opened the first probe starts; each one that fails doubles the wait."""
    probe_s_max: float = 60.0
    rate_per_s: float | None = None
    """So many runs per second may start of all handlers that name it, in all groups and processes
    of a broker: see `subscribe`."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"Dependency({self.name!r}): expected a name, as in 'smtp'.")
        where = f"Dependency({self.name!r}, "
        errors = self.trips_on if isinstance(self.trips_on, tuple) else (self.trips_on,)
        is_rate = not errors and self.rate_per_s is not None
        if (not errors and not is_rate) or not all(
            isinstance(e, type) and issubclass(e, BaseException) for e in errors
        ):
            raise ConfigError(
                f"{where}trips_on={self.trips_on!r}): expected an exception class or a tuple of "
                "them, at least one, as in (TimeoutError, ConnectionError); or rate_per_s, or both."
            )
        number(f"{where}failures", self.failures, least=1, whole=True)
        number(f"{where}probe_s", self.probe_s, least=0.001)
        hint = " A wait between probes does not grow to less than it begins with, probe_s."
        number(f"{where}probe_s_max", self.probe_s_max, least=self.probe_s, hint=hint)
        if self.rate_per_s is not None:
            number(f"{where}rate_per_s", self.rate_per_s, least=0.001)

    def matches(self, error: BaseException) -> bool:
        """Whether this error says that the dependency is out.

        A group of errors does if all its leaves do.
        """
        return matches(error, self.trips_on)


class Breaker:
    """Says whether one more run may start. One per dependency, and one per group.

    A run notes `trips` when it starts, and hands it back when it ends: what started before the
    breaker opened says nothing about the time since, and is passed over. A run that was admitted
    ends by exactly one of `succeeded`, `failed` and `gave_up`; only where it started while the
    breaker `is_closed` may its end be left out, as far as `failures` need not count it.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        failures: int | None = None,
        probe_s: float = 1.0,
        probe_s_max: float = 60.0,
    ) -> None:
        """A closed breaker.

        Args:
            concurrency: The runs at once at which the ramp ends.
            failures: It trips by itself at so many in a row; None: only by `trip`.
            probe_s: The wait for the first probe.
            probe_s_max: What the wait for a probe doubles to.
        """
        self.is_closed = True
        """Nothing limits the runs. An attribute, since the hot loop asks for it."""
        self.is_open = False
        """Nothing but probes runs."""
        self.trips = 0
        """How often it has opened."""
        self.permitted = concurrency
        """How many runs at once while it is not closed."""
        self.why = ""
        """Why it opened last; empty while it is closed."""
        self._concurrency = concurrency
        self._failures = failures
        self._probe_s = probe_s
        self._probe_s_max = probe_s_max
        self._wait_s = probe_s
        self._due_s = 0.0
        self._running = 0  # of those admitted since it opened
        self._successes = 0  # since `permitted` last grew
        self._failures_in_a_row = 0

    @property
    def probe_due_s(self) -> float | None:
        """When the next probe may start; None unless it is open and none runs."""
        return self._due_s if self.is_open and not self._running else None

    def has_place(self, now_s: float) -> bool:
        """Whether `admit` would let a run through now. Asking takes no place."""
        return self.is_closed or (
            self._running < self.permitted
            and (not self.is_open or now_s >= self._due_s - _ROUNDING_S)
        )

    def admit(self, now_s: float) -> bool:
        """Let one run through, if there is a place for it: it holds the place until it ends.

        A run that needs several breakers first asks each for `has_place`, and then takes them all.
        """
        if self.is_closed:
            return True
        if not self.has_place(now_s):
            return False
        self._running += 1
        return True

    def succeeded(self, trips: int) -> bool:
        """A run ended well; `trips` is what it was at the run's start.

        Returns:
            Whether more runs at once are permitted than before.
        """
        if trips != self.trips:
            return False
        self._failures_in_a_row = 0
        if self.is_closed:
            return False
        self._free()
        self._successes += 1
        if self.is_open:
            self.is_open = False
            self._permit(1)
        elif self._successes >= self.permitted:
            self._permit(2 * self.permitted)
        else:
            return False
        return True

    def failed(self, now_s: float, trips: int, error: BaseException) -> bool:
        """A run failed in a way that counts; `trips` is what it was at the run's start.

        Returns:
            Whether this opened the breaker.
        """
        if trips != self.trips:
            return False
        if self.is_open:
            self._wait_s = min(2 * self._wait_s, self._probe_s_max)
        self.gave_up(now_s, trips)
        self._failures_in_a_row += 1
        if self._failures is None or self._failures_in_a_row < self._failures:
            return False
        text = text_of(error)[:_TEXT_CHARACTERS_MAX]
        count = self._failures_in_a_row
        errors = f"{count} errors in a row, the last" if count > 1 else "one error,"
        return self.trip(now_s, f"{errors} {type(error).__name__}: {text}")

    def gave_up(self, now_s: float, trips: int) -> None:
        """A run ended without saying anything: cancelled, or failed in a way that does not count.

        The next probe waits as long as this one did: it may have run all the same.
        """
        if trips == self.trips and not self.is_closed:
            self._free()
            self._due_s = now_s + self._wait_s

    def withdraw(self, trips: int) -> None:
        """A run that was admitted did not start after all."""
        if trips == self.trips and not self.is_closed:
            self._free()

    def trip(self, now_s: float, why: str) -> bool:
        """Open it; no matter if it is open.

        Returns:
            Whether it was not open.
        """
        if self.is_open:
            return False
        self.is_open, self.is_closed = True, False
        self.trips += 1
        self.why = why
        self.permitted, self._running = 1, 0
        self._wait_s = self._probe_s
        self._due_s = now_s + self._probe_s
        return True

    def _free(self) -> None:
        assert self._running > 0, "what ends was admitted, and ends once"
        self._running -= 1

    def _permit(self, runs: int) -> None:
        self._successes = 0
        self.permitted = min(runs, self._concurrency)
        if self.permitted == self._concurrency:
            self.is_closed = True
            self.why = ""


class FailureWindow:
    """The last runs of a group: says when so many of them failed that it is an outage.

    Only failures are told one by one; of the successes it suffices to know how many there were,
    since the hot loop has no time to tell more.
    """

    def __init__(
        self, *, window_runs: int = 100, failure_ratio: float = 0.8, lanes_min: int = 20
    ) -> None:
        self._window_runs = window_runs
        self._failure_ratio = failure_ratio
        self._lanes_min = lanes_min
        self._failures: deque[tuple[int, Hashable]] = deque(maxlen=window_runs)
        """(the number of its run, its lane), the oldest first."""

    @property
    def why(self) -> str:
        """What is in the window, in words."""
        return (
            f"{len(self._failures)} of the last {self._window_runs} runs failed, "
            f"in {self._lanes_count()} lanes"
        )

    def failed(self, runs_so_far: int, lane: Hashable) -> bool:
        """A run failed in a way that the group's rules would retry.

        Args:
            runs_so_far: How many runs of the group have ended, well or not, this one included.
            lane: Its lane, told apart from those of other partitions.

        Returns:
            Whether it is an outage: `failure_ratio` of the last `window_runs` runs failed, in at
            least `lanes_min` lanes. The ratio is of the whole window, however few runs there were,
            so that a group that starts in an outage does not wait for it to fill.
        """
        failures = self._failures
        failures.append((runs_so_far, lane))
        while failures[0][0] <= runs_so_far - self._window_runs:
            failures.popleft()
        return (
            # Divided, since 0.07 * 100 is more than 7.
            len(failures) / self._window_runs >= self._failure_ratio
            and self._lanes_count() >= self._lanes_min
        )

    def clear(self) -> None:
        """Forget what failed."""
        self._failures.clear()

    def _lanes_count(self) -> int:
        return len({lane for _, lane in self._failures})
