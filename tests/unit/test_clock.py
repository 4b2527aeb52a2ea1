"""Time: what is due after a delay is not due before it, not by a part of a millisecond either."""

import time

import pytest

from eventlane.clock import SystemClock

NS_PER_MS = 1_000_000


@pytest.mark.parametrize("delay_ms", [0.1, 1, 50.5, 2000])
def test_a_delay_has_wholly_passed_when_it_is_due(delay_ms: float) -> None:
    clock = SystemClock()
    for _ in range(1_000):
        now_ns = time.time_ns()
        due_ns = clock.after_ms(delay_ms / 1000) * NS_PER_MS
        assert due_ns >= now_ns + delay_ms * NS_PER_MS
        assert due_ns <= time.time_ns() + (delay_ms + 2.1) * NS_PER_MS


def test_no_delay_is_due_now() -> None:
    clock = SystemClock()
    before_ms = clock.now_ms()
    assert before_ms <= clock.after_ms(0) <= clock.now_ms()
