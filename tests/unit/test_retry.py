"""The retry policy, and the decision about one failure."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlane import ConfigError, Dead, Pause, Retry, RetryLater, Skipped, Undecodable
from eventlane.retry import decide


def delays(policy: Retry, jitter: float = 0.0) -> list[float]:
    """How long each retry waits, until the event is dead."""
    found: list[float] = []
    for attempt in range(1, 1000):
        outcome = decide(OSError(), attempt, policy, jitter=jitter)
        if isinstance(outcome, Dead):
            return found
        assert isinstance(outcome, RetryLater)
        found.append(outcome.delay_s)
    raise AssertionError("it is never dead")


def test_five_attempts_run_at_once_twice_and_then_after_1_2_and_4_seconds() -> None:
    assert delays(Retry(attempts=5, delay_s=1)) == [0, 1, 2, 4]


def test_delays_grow_up_to_their_maximum() -> None:
    assert delays(Retry(attempts=6, delay_s=1, delay_s_max=3, immediate=0)) == [1, 2, 3, 3, 3]


def test_a_factor_beyond_what_a_float_holds_ends_at_the_maximum() -> None:
    assert delays(Retry(attempts=900, factor=1e9))[-1] == 60


@given(
    attempt=st.integers(1, 50),
    jitter=st.floats(0, 1),
    share=st.floats(0, 2),
    delay_s=st.floats(0, 1e3),
    factor=st.floats(1, 100),
    delay_s_max=st.floats(1e3, 1e6),
    immediate=st.integers(0, 5),
)
def test_jitter_only_adds_and_never_more_than_its_share(
    attempt: int, jitter: float, share: float, **options: Any
) -> None:
    bare = decide(OSError(), attempt, Retry(attempts=99, jitter=0, **options), jitter=jitter)
    spread = decide(OSError(), attempt, Retry(attempts=99, jitter=share, **options), jitter=jitter)
    assert isinstance(bare, RetryLater)
    assert isinstance(spread, RetryLater)
    assert bare.delay_s <= spread.delay_s <= bare.delay_s * (1 + share) * (1 + 1e-9)


def test_a_retry_beyond_the_time_limit_is_dead_instead() -> None:
    policy = Retry(attempts=9, delay_s=10, immediate=0, elapsed_s_max=15)
    assert isinstance(decide(OSError(), 1, policy, jitter=0, elapsed_s=0), RetryLater)
    assert isinstance(decide(OSError(), 2, policy, jitter=0, elapsed_s=10), Dead)


def test_the_first_rule_that_matches_decides() -> None:
    policy = Retry(rules=[(KeyError, Skipped("known")), (LookupError, Dead(lane="continue"))])
    assert decide(KeyError("k"), 1, policy, jitter=0) == Skipped("known")
    assert decide(IndexError("no such"), 1, policy, jitter=0) == Dead("no such", "continue")
    assert isinstance(decide(OSError(), 1, policy, jitter=0), RetryLater)


def test_a_rule_may_name_several_errors_and_another_policy() -> None:
    slow = Retry(attempts=2, delay_s=50, immediate=0)
    policy = Retry(attempts=9, rules=[((TimeoutError, ConnectionError), slow)])
    assert decide(ConnectionError(), 1, policy, jitter=0) == RetryLater(50)
    assert isinstance(decide(ConnectionError(), 2, policy, jitter=0), Dead)


def test_a_group_of_errors_is_what_all_its_leaves_match() -> None:
    policy = Retry(rules=[(OSError, Pause())])
    both = ExceptionGroup("two", [OSError("a"), ExceptionGroup("in", [TimeoutError("b")])])
    mixed = ExceptionGroup("two", [OSError("a"), ValueError("b")])
    assert isinstance(decide(both, 1, policy, jitter=0), Pause)
    assert isinstance(decide(mixed, 1, policy, jitter=0), RetryLater)


def test_what_cannot_be_decoded_is_dead_at_once_unless_a_rule_says_otherwise() -> None:
    error = Undecodable("no JSON", stage="decode")
    assert isinstance(decide(error, 1, Retry(), jitter=0), Dead)
    assert isinstance(decide(error, 1, Retry(rules=[(Undecodable, Retry())]), jitter=0), RetryLater)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay_s": -1}, "delay_s=-1): expected a number, 0 or more"),
        ({"delay_s": math.nan}, "expected a number"),
        ({"attempts": 0}, "attempts=0): expected a whole number, 1 or more"),
        ({"delay_s": 1e18, "delay_s_max": 1e18}, "delay_s=1e+18): expected a number, at most"),
        ({"delay_s_max": 10**400}, "): expected a number, at most 1e+09"),
        ({"jitter": 1e300}, "jitter=1e+300): expected a number, at most 1e+09"),
        ({"delay_s_max": 1e9, "jitter": 0.2}, "at most 1e+09 seconds, jitter included"),
        ({"factor": 0.5}, "factor=0.5): expected a number, 1 or more"),
        ({"jitter": -0.1}, "jitter=-0.1): expected a number, 0 or more. Leave the option out"),
        ({"elapsed_s_max": 0}, "elapsed_s_max=0): expected a number, 0.001 or more. None is no"),
        ({"delay_s": 100, "delay_s_max": 1}, "delay_s_max=1): expected delay_s_max of at least"),
        ({"delay_s": 100}, "delay_s=100, delay_s_max=60.0): expected delay_s_max of at least"),
        ({"delay_s": 50, "elapsed_s_max": 1}, "elapsed_s_max=1): expected elapsed_s_max of at"),
        ({"attempts": 2, "immediate": 5}, "immediate=5): expected no more retries at once than"),
        ({"attemps": 3}, "Did you mean 'attempts'?"),
        ({"rules": [ValueError]}, "expected pairs such as"),
        ({"rules": [(ValueError, "dead")]}, "expected pairs such as"),
        ({"rules": [("ValueError", Dead())]}, "expected pairs such as"),
        ({"rules": [(OSError, Retry(rules=[(OSError, Dead())]))]}, "has rules of its own"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_what_to_do(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        Retry(**options)
    assert words in str(refused.value)


def test_a_negative_delay_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="cannot start in the past"):
        RetryLater(-1)
