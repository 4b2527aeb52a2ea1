"""An outage is not poison: when a breaker opens, what runs meanwhile, and how it closes."""

from typing import Any

import pytest

from eventlane.breaker import Breaker, Dependency, FailureWindow
from eventlane.errors import ConfigError


def tripped(**options: Any) -> Breaker:
    breaker = Breaker(**{"concurrency": 100, **options})
    assert breaker.trip(0.0, "the server is out")
    return breaker


def ramping(**options: Any) -> Breaker:
    breaker = tripped(**options)
    assert breaker.admit(1.0)
    assert breaker.succeeded(breaker.trips)
    return breaker


def admitted(breaker: Breaker, now_s: float = 2.0) -> int:
    """How many more runs may start at once."""
    count = 0
    while not breaker.is_closed and breaker.admit(now_s):
        count += 1
    return count


def test_a_closed_breaker_lets_everything_through() -> None:
    breaker = Breaker(concurrency=2)
    assert all(breaker.admit(0.0) for _ in range(100))
    assert breaker.is_closed
    assert breaker.probe_due_s is None
    assert breaker.why == ""


def test_errors_in_a_row_open_it_and_it_says_why() -> None:
    breaker = Breaker(concurrency=100, failures=3)
    for _ in range(2):
        assert not breaker.failed(7.0, 0, OSError())
    assert breaker.failed(7.0, 0, TimeoutError("no answer in 5 s"))
    assert breaker.is_open
    assert not breaker.is_closed
    assert breaker.why == "3 errors in a row, the last TimeoutError: no answer in 5 s"
    assert breaker.probe_due_s == 8.0


def test_one_error_opens_it_where_one_is_enough() -> None:
    breaker = Breaker(concurrency=100, failures=1)
    assert breaker.failed(0.0, 0, OSError("out"))
    assert breaker.why == "one error, OSError: out"


def test_a_success_between_the_errors_begins_the_count_anew() -> None:
    breaker = Breaker(concurrency=100, failures=2)
    assert not breaker.failed(0.0, 0, OSError())
    assert not breaker.succeeded(0)
    assert not breaker.failed(0.0, 0, OSError())
    assert breaker.failed(0.0, 0, OSError())


def test_a_run_that_says_nothing_is_neither_success_nor_failure() -> None:
    breaker = Breaker(concurrency=100, failures=2)
    assert not breaker.failed(0.0, 0, OSError())
    breaker.gave_up(0.0, 0)
    assert breaker.failed(0.0, 0, OSError())


def test_without_a_number_of_failures_it_only_trips_when_told() -> None:
    breaker = Breaker(concurrency=100)
    assert not any(breaker.failed(0.0, 0, OSError()) for _ in range(1000))
    assert breaker.is_closed


def test_a_long_error_is_cut_and_one_without_text_does_no_harm() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    breaker = Breaker(concurrency=100, failures=1)
    breaker.failed(0.0, 0, OSError("x" * 100_000))
    assert len(breaker.why) < 600
    breaker = Breaker(concurrency=100, failures=1)
    breaker.failed(0.0, 0, Mute())
    assert "Mute" in breaker.why


def test_while_it_is_open_one_run_probes_when_it_is_due() -> None:
    breaker = tripped()
    assert not breaker.admit(0.999)
    assert breaker.probe_due_s == 1.0
    assert breaker.has_place(1.0)
    assert breaker.admit(1.0)
    assert not breaker.has_place(1e9)
    assert not breaker.admit(1e9)
    assert breaker.probe_due_s is None


def test_each_failed_probe_doubles_the_wait_up_to_its_maximum() -> None:
    breaker = tripped()
    now_s, waits = 0.0, list[float]()
    for _ in range(9):
        due_s = breaker.probe_due_s
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
        assert breaker.admit(now_s)
        breaker.failed(now_s, breaker.trips, OSError())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breaker.trips == 1


def test_the_wait_is_counted_from_the_end_of_a_probe() -> None:
    breaker = tripped()
    assert breaker.admit(1.0)
    breaker.failed(31.0, 1, TimeoutError())
    assert breaker.probe_due_s == 33.0


def test_a_cancelled_probe_frees_the_place_and_the_next_waits_as_long_as_it_did() -> None:
    breaker = tripped()
    assert breaker.admit(5.0)
    breaker.gave_up(6.0, 1)
    assert breaker.probe_due_s == 7.0
    assert breaker.admit(7.0)


def test_failing_probes_do_not_open_what_is_open() -> None:
    breaker = tripped(failures=1)
    assert breaker.admit(1.0)
    assert not breaker.failed(1.0, 1, OSError())
    assert not breaker.trip(1.0, "again")
    assert breaker.trips == 1
    assert breaker.why == "the server is out"


def test_after_a_probe_that_succeeds_the_runs_at_once_double_until_all_may_run() -> None:
    breaker = ramping(concurrency=10)
    assert not breaker.is_open
    steps: list[int] = []
    while not breaker.is_closed:
        count = admitted(breaker)
        assert breaker.permitted == count
        steps.append(count)
        grew = [breaker.succeeded(breaker.trips) for _ in range(count)]
        assert grew == [False] * (count - 1) + [True]
    assert steps == [1, 2, 4, 8]
    assert breaker.why == ""


def test_a_group_that_runs_one_event_at_a_time_needs_no_ramp() -> None:
    assert ramping(concurrency=1).is_closed


def test_in_the_ramp_a_failure_frees_its_place_and_is_no_step() -> None:
    breaker = ramping()
    for _ in range(10):
        assert admitted(breaker) == 1
        assert not breaker.failed(2.0, breaker.trips, OSError())
    assert breaker.permitted == 1


def test_a_ramp_that_fails_opens_it_again_and_probes_begin_as_at_first() -> None:
    breaker = tripped(failures=2)
    assert breaker.admit(1.0)
    breaker.failed(1.0, 1, OSError())
    assert breaker.admit(3.0)
    breaker.succeeded(1)
    assert breaker.admit(4.0)
    assert not breaker.failed(4.0, 1, OSError())
    assert breaker.admit(5.0)
    assert breaker.failed(5.0, 1, OSError())
    assert breaker.probe_due_s == 6.0
    assert breaker.trips == 2
    assert breaker.admit(6.0)
    breaker.failed(6.0, 2, OSError())
    assert breaker.probe_due_s == 8.0


def test_what_started_before_it_opened_says_nothing_and_takes_no_place() -> None:
    breaker = tripped(failures=1)
    assert not breaker.failed(0.5, 0, OSError())
    assert breaker.probe_due_s == 1.0
    assert not breaker.succeeded(0)
    assert breaker.is_open
    assert breaker.admit(1.0)
    breaker.gave_up(1.0, 0)
    assert not breaker.admit(1e9), "the probe still runs"
    assert breaker.succeeded(1)
    assert not breaker.failed(2.0, 0, OSError())
    assert admitted(breaker) == 1


def test_what_was_admitted_in_the_ramp_may_end_after_it() -> None:
    breaker = ramping(concurrency=2, failures=1)
    assert breaker.admit(2.0)
    breaker.succeeded(1)
    assert breaker.is_closed
    assert breaker.admit(3.0)
    assert not breaker.succeeded(1)
    assert breaker.failed(4.0, 1, OSError())


def test_an_error_matches_a_dependency_if_all_its_leaves_do() -> None:
    smtp = Dependency("smtp", trips_on=(TimeoutError, ConnectionError))
    assert smtp.matches(ConnectionResetError())
    assert not smtp.matches(ValueError())
    assert smtp.matches(ExceptionGroup("", [TimeoutError(), ExceptionGroup("", [TimeoutError()])]))
    assert not smtp.matches(ExceptionGroup("", [TimeoutError(), ValueError()]))
    assert Dependency("smtp", trips_on=TimeoutError).matches(TimeoutError())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("", {}, "Dependency(''): expected a name"),
        (3, {}, "Dependency(3): expected a name"),
        ("smtp", {"trips_on": ()}, "Dependency('smtp', trips_on=()): expected an exception class"),
        ("smtp", {"trips_on": "OSError"}, "expected an exception class"),
        ("smtp", {"trips_on": (OSError, int)}, "expected an exception class"),
        ("smtp", {"trips_on": OSError()}, "expected an exception class"),
        ("smtp", {"failures": 0}, "failures=0): expected a whole number, 1 or more"),
        ("smtp", {"probe_s": 0}, "probe_s=0): expected a number, 0.001 or more"),
        ("smtp", {"probe_s_max": 0.5}, "probe_s_max=0.5): expected a number, 1 or more"),
        ("smtp", {"failure": 3}, "Did you mean 'failures'?"),
    ],
)
def test_a_dependency_that_cannot_be_is_refused_with_what_to_do(
    name: Any, options: dict[str, Any], words: str
) -> None:
    options = {"trips_on": OSError, **options}
    with pytest.raises(ConfigError) as refused:
        Dependency(name, **options)
    assert words in str(refused.value)


def test_eighty_failures_in_a_hundred_runs_are_an_outage() -> None:
    window = FailureWindow()
    assert not any(window.failed(run, run % 20) for run in range(1, 80))
    assert window.failed(100, 19)
    assert window.why == "80 of the last 100 runs failed, in 20 lanes"


def test_seventy_nine_failures_in_any_hundred_runs_are_none() -> None:
    window = FailureWindow()
    failing = [run for run in range(100, 10_000) if run % 100 < 79]
    assert not any(window.failed(run, run) for run in failing)


def test_failures_in_nineteen_lanes_are_poison_and_in_twenty_an_outage() -> None:
    window = FailureWindow()
    assert not any(window.failed(run, run % 19) for run in range(1, 1000))
    assert window.failed(1000, "the twentieth")


def test_what_a_hundred_runs_have_followed_is_forgotten() -> None:
    window = FailureWindow()
    assert not any(window.failed(run, run) for run in range(1, 80))
    assert not window.failed(101, 101), "the first of them is a hundred runs ago"
    assert window.failed(101, 102), "now there are eighty"


def test_a_cleared_window_starts_anew() -> None:
    window = FailureWindow()
    for run in range(1, 200):
        window.failed(run, run)
    window.clear()
    assert not window.failed(200, 200)
    assert window.why == "1 of the last 100 runs failed, in 1 lanes"


def test_a_ratio_that_no_float_holds_is_met_exactly() -> None:
    window = FailureWindow(failure_ratio=0.07, lanes_min=1)
    assert [window.failed(run, run) for run in range(1, 8)] == [False] * 6 + [True]


def test_a_probe_is_due_when_its_timer_ends_however_floats_add_up() -> None:
    breaker = Breaker(concurrency=1, probe_s=0.2)
    breaker.trip(0.1, "it is out")
    assert breaker.probe_due_s is not None
    assert breaker.probe_due_s > 0.3
    assert breaker.has_place(0.3)
