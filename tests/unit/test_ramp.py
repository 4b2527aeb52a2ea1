"""While a dependency comes back, a failed run does not leave those that wait for it waiting."""

from eventlane.breaker import Dependency
from eventlane.guard import guard_of
from eventlane.testing.clock import ManualClock


def test_a_run_that_fails_on_the_ramp_gives_its_place_to_another() -> None:
    clock, told = ManualClock(), list[bool]()
    other = Dependency("other", trips_on=OSError, failures=2, probe_s=1.0)
    guard = guard_of(other, concurrency=100, clock=clock)
    guard.trip("it is out")
    clock.advance(2.0)
    assert guard.has_place
    guard.succeeded(guard.admit())
    assert not guard.breaker.is_closed
    assert not guard.breaker.is_open
    run = guard.admit()
    guard.listeners.append(lambda: told.append(guard.has_place))
    guard.failed(run, OSError("out"))
    assert told == [True]
