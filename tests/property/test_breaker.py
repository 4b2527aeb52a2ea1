"""Breakers, driven at random: what may run at once, and that it never stays shut for ever."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventlane.breaker import Breaker, FailureWindow

PROBE_S = 1.0


class BreakerModel(RuleBasedStateMachine):
    """Runs start, end in any way and any order, and it trips whenever it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.running: list[int] = []
        """For each run, what `trips` was at its start."""
        self.quiet_since_s = 0.0
        """While it is open: when it opened, or its last probe ended."""
        self.failed_probes = 0
        self.breaker: Any = None

    @initialize(
        concurrency=st.integers(1, 20),
        failures=st.none() | st.integers(1, 4),
        probe_s_max=st.sampled_from([1.0, 5.0, 60.0]),
    )
    def create(self, concurrency: int, failures: int | None, probe_s_max: float) -> None:
        self.concurrency = concurrency
        self.probe_s_max = probe_s_max
        self.breaker = Breaker(
            concurrency=concurrency, failures=failures, probe_s=PROBE_S, probe_s_max=probe_s_max
        )

    @property
    def current(self) -> int:
        """How many of the runs started since it opened last."""
        return self.running.count(self.breaker.trips)

    @property
    def permitted(self) -> float:
        """How many runs at once; while it is open none but the probe."""
        if self.breaker.is_closed:
            return math.inf
        return 0 if self.breaker.is_open else self.breaker.permitted

    @property
    def due_s(self) -> float:
        return self.quiet_since_s + min(PROBE_S * 2.0**self.failed_probes, self.probe_s_max)

    def note_opened(self, opened: bool) -> None:
        if opened:
            self.quiet_since_s, self.failed_probes = self.now_s, 0

    @rule(wait_s=st.sampled_from([0.0, 0.3, 1.0, 7.0, 100.0]))
    def time_passes(self, wait_s: float) -> None:
        self.now_s += wait_s

    @rule()
    def one_more_starts(self) -> None:
        was_open, trips, current = self.breaker.is_open, self.breaker.trips, self.current
        has_place = self.breaker.has_place(self.now_s)
        assert has_place == self.breaker.has_place(self.now_s), "asking takes no place"
        admitted = self.breaker.admit(self.now_s)
        assert admitted == has_place
        assert (self.breaker.trips, self.breaker.is_open) == (trips, was_open)
        if admitted:
            self.running.append(trips)
            if was_open:
                assert current == 0, "two probes at once"
                assert self.now_s >= self.due_s

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), how=st.sampled_from(["succeeded", "failed", "gave up"]))
    def one_ends(self, which: int, how: str) -> None:
        trips = self.running.pop(which % len(self.running))
        is_probe = self.breaker.is_open and trips == self.breaker.trips
        before = self.permitted
        if how == "succeeded":
            assert self.breaker.succeeded(trips) == (self.permitted > before)
            assert not (is_probe and self.breaker.is_open)
        elif how == "failed":
            opened = self.breaker.failed(self.now_s, trips, OSError())
            assert not (opened and is_probe)
            self.note_opened(opened)
            if is_probe:
                self.failed_probes += 1
                self.quiet_since_s = self.now_s
        else:
            self.breaker.gave_up(self.now_s, trips)
            if is_probe:
                self.quiet_since_s = self.now_s

    @rule()
    def the_group_is_out(self) -> None:
        was_open = self.breaker.is_open
        opened = self.breaker.trip(self.now_s, "most runs failed")
        assert opened == (not was_open)
        self.note_opened(opened)

    @invariant()
    def no_more_run_than_are_permitted(self) -> None:
        if self.breaker is None or self.breaker.is_closed:
            return
        assert self.current <= self.breaker.permitted <= self.concurrency
        if self.breaker.is_open:
            assert self.current <= 1

    @invariant()
    def it_says_what_it_is(self) -> None:
        if self.breaker is None:
            return
        assert not (self.breaker.is_open and self.breaker.is_closed)
        assert bool(self.breaker.why) == (not self.breaker.is_closed)
        waits = self.breaker.is_open and self.current == 0
        assert self.breaker.probe_due_s == (self.due_s if waits else None)

    @invariant()
    def a_place_comes_free_within_the_longest_wait(self) -> None:
        if self.breaker is None or self.breaker.is_closed or self.current:
            return
        assert self.breaker.has_place(self.now_s + self.probe_s_max)


TestBreaker = BreakerModel.TestCase
TestBreaker.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@given(attempts=st.integers(1, 200), run_s=st.floats(0, 100))
def test_a_group_with_nothing_but_poison_left_still_ends(attempts: int, run_s: float) -> None:
    breaker = Breaker(concurrency=100)
    breaker.trip(0.0, "all failed")
    now_s = 0.0
    for _ in range(attempts):
        due_s = breaker.probe_due_s
        assert due_s is not None
        assert due_s <= now_s + 60.0
        assert breaker.admit(due_s)
        now_s = due_s + run_s
        breaker.failed(now_s, breaker.trips, OSError())


@given(concurrency=st.integers(1, 1000))
def test_when_the_outage_is_over_it_closes_after_few_successes(concurrency: int) -> None:
    breaker = Breaker(concurrency=concurrency)
    breaker.trip(0.0, "all failed")
    successes = 0
    while not breaker.is_closed:
        assert breaker.admit(1.0)
        breaker.succeeded(breaker.trips)
        successes += 1
    assert successes <= 2 * concurrency


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), max_size=200),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    st.integers(1, 8),
)
def test_the_window_says_what_a_list_of_all_runs_says(
    steps: list[tuple[int, int]], window_runs: int, failure_ratio: float, lanes_min: int
) -> None:
    window = FailureWindow(
        window_runs=window_runs, failure_ratio=failure_ratio, lanes_min=lanes_min
    )
    runs: list[int | None] = []
    for step, lane in steps:
        runs += [*[None] * (step % 4), lane]
        failed = [each for each in runs[-window_runs:] if each is not None]
        is_outage = (
            len(failed) >= failure_ratio * window_runs - 1e-9 and len(set(failed)) >= lanes_min
        )
        assert window.failed(len(runs), lane) == is_outage
