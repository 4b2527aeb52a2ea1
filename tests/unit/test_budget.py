"""The retry budget: no tokens means later, never dead."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlane.budget import Budget


def test_the_first_hundred_retries_come_as_planned_and_the_next_ones_a_second_apart() -> None:
    budget = Budget()
    delays = [budget.delay_s(50.0, 0) for _ in range(104)]
    assert delays == [0.0] * 100 + [1.0, 2.0, 3.0, 4.0]


def test_time_earns_ten_tokens_a_second() -> None:
    budget = Budget()
    for _ in range(102):
        budget.delay_s(50.0, 0)
    assert budget.tokens == -20
    assert budget.delay_s(53.0, 0) == 0.0
    assert budget.tokens == 0


def test_ten_successes_pay_for_a_retry() -> None:
    budget = Budget()
    for _ in range(100):
        budget.delay_s(50.0, 0)
    assert budget.delay_s(50.0, 10) == 0.0
    assert budget.delay_s(50.0, 10) == 1.0


def test_it_never_holds_more_than_its_maximum() -> None:
    budget = Budget(tokens_max=30)
    budget.delay_s(0.0, 0)
    assert [budget.delay_s(1e9, 10**9) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("now_s", "successes"), [(40.0, 100), (50.0, 90)])
def test_what_goes_back_earns_nothing_now_and_nothing_twice(now_s: float, successes: int) -> None:
    budget = Budget()
    budget.delay_s(50.0, 100)
    budget.delay_s(now_s, successes)
    budget.delay_s(50.0, 100)
    assert budget.tokens == 970


PAYMENTS = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 100)), min_size=1, max_size=200)


@given(PAYMENTS)
def test_a_token_is_lost_only_to_a_retry_or_above_the_maximum(
    payments: list[tuple[float, int]],
) -> None:
    budget = Budget()
    now_s, successes, expected = 0.0, 0, 1000.0
    for wait_s, more in payments:
        now_s, successes = now_s + wait_s, successes + more
        delay_s = budget.delay_s(now_s, successes)
        expected = min(1000.0, expected + wait_s * 10 + more) - 10
        assert budget.tokens == pytest.approx(expected, abs=1e-6)
        assert delay_s == pytest.approx(max(0.0, -expected / 10), abs=1e-6)


@given(PAYMENTS, st.integers(1, 50))
def test_at_one_moment_each_retry_comes_no_earlier_than_the_one_before(
    payments: list[tuple[float, int]], count: int
) -> None:
    budget = Budget(tokens_max=100)
    now_s, successes = 0.0, 0
    for wait_s, more in payments:
        now_s, successes = now_s + wait_s, successes + more
        before = budget.tokens
        delays = [budget.delay_s(now_s, successes) for _ in range(count)]
        assert delays == sorted(delays)
        assert budget.tokens >= before - count * 10 - 1e-6


@given(PAYMENTS)
def test_whoever_has_earned_more_waits_no_longer(payments: list[tuple[float, int]]) -> None:
    poor, rich = Budget(tokens_max=100), Budget(tokens_max=100)
    now_s, successes = 0.0, 0
    for wait_s, more in payments:
        now_s, successes = now_s + wait_s, successes + more
        assert rich.delay_s(now_s, successes) <= poor.delay_s(now_s, 0)
        assert rich.tokens >= poor.tokens


@given(st.integers(1, 2000))
def test_without_successes_no_second_has_more_than_one_retry_beyond_the_first_hundred(
    count: int,
) -> None:
    budget = Budget()
    starts = sorted(budget.delay_s(0.0, 0) for _ in range(count))
    late = [start for start in starts if start > 0]
    assert len(starts) - len(late) == min(count, 100)
    assert all(after - before >= 0.999 for before, after in pairwise(late))
