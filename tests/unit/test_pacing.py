"""How fast a replay goes, and when it stops by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlane.errors import ConfigError
from eventlane.replay import (
    UNPACED,
    Pace,
    Pacing,
    admitted,
    admitted_max,
    clear_outcomes,
    note_outcomes,
)

ONES = [1] * 1_000
CANARY = Pace(rate_per_s=None, pause_above=None)


def admits(pace: Pace, pacing: Pacing, now_ms: int = 0, *, quiet: bool = True) -> int:
    return admitted(pace, pacing, ONES, is_quiet=quiet, now_ms=now_ms)[0]


def test_without_limits_all_are_admitted_at_once() -> None:
    assert admitted(UNPACED, Pacing(), ONES, is_quiet=True, now_ms=0) == (1_000, None)


def test_a_canary_admits_1_then_10_then_the_rest() -> None:
    pacing = Pacing()
    assert [admits(CANARY, pacing) for _ in range(3)] == [1, 10, 1_000]


def test_a_stage_begins_only_when_all_before_it_has_ended() -> None:
    pacing = Pacing()
    assert admits(CANARY, pacing) == 1
    assert admits(CANARY, pacing, quiet=False) == 0
    assert admits(CANARY, pacing) == 10
    assert admits(CANARY, pacing, quiet=False) == 0
    assert admits(CANARY, pacing) == 1_000
    assert admits(CANARY, pacing, quiet=False) == 1_000


def test_followers_count_against_the_canary() -> None:
    pacing = Pacing()
    count, _ = admitted(CANARY, pacing, [1], is_quiet=True, now_ms=0)
    assert count == 1
    # 4 + 4 is below 10, the third one goes beyond it, and the fourth has to wait.
    count, _ = admitted(CANARY, pacing, [4, 4, 4, 4], is_quiet=True, now_ms=0)
    assert count == 3


def test_a_stage_that_had_too_few_letters_goes_on_with_what_is_left() -> None:
    pacing = Pacing()
    admits(CANARY, pacing)
    assert admitted(CANARY, pacing, [1] * 4, is_quiet=True, now_ms=0)[0] == 4
    assert admits(CANARY, pacing, quiet=False) == 6


def test_a_rate_admits_one_and_says_when_there_are_more() -> None:
    pace, pacing = Pace(rate_per_s=2, canary=False), Pacing()
    now_ms = 1_000_000
    count, due_ms = admitted(pace, pacing, ONES, is_quiet=True, now_ms=now_ms)
    assert count == 1
    assert due_ms is not None
    assert now_ms + 500 <= due_ms <= now_ms + 501
    assert admitted(pace, pacing, ONES, is_quiet=True, now_ms=due_ms)[0] == 1


def test_followers_use_up_the_rate() -> None:
    pace, pacing = Pace(rate_per_s=10, canary=False), Pacing()
    count, due_ms = admitted(pace, pacing, [101, 1], is_quiet=True, now_ms=1_000_000)
    assert count == 1
    assert due_ms is not None
    assert due_ms >= 1_010_100


@given(
    rate_per_s=st.sampled_from([0.5, 3, 50, 700]),
    waits_ms=st.lists(st.integers(0, 2_000), min_size=1, max_size=40),
    costs=st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
def test_a_rate_is_never_exceeded(rate_per_s: float, waits_ms: list[int], costs: list[int]) -> None:
    pace, pacing = Pace(rate_per_s=rate_per_s, canary=False, pause_above=None), Pacing()
    released: list[tuple[int, int]] = []
    now_ms = 1_000_000
    for wait_ms in waits_ms:
        count, due_ms = admitted(pace, pacing, costs, is_quiet=True, now_ms=now_ms)
        released += [(now_ms, cost) for cost in costs[:count]]
        assert due_ms is None or due_ms > now_ms
        now_ms += wait_ms
    for start, (from_ms, _) in enumerate(released):
        # The last one may go beyond, since it is not cut; a quarter of a second is caught up.
        sums = sum(cost for _, cost in released[start:-1])
        assert sums <= rate_per_s * (released[-1][0] - from_ms + 250) / 1000 + 1e-6


def test_who_asks_when_told_to_gets_the_whole_rate() -> None:
    pace, pacing = Pace(rate_per_s=50, canary=False, pause_above=None), Pacing()
    now_ms = start_ms = 1_000_000
    count = 0
    while now_ms < start_ms + 10_000:
        some, due_ms = admitted(pace, pacing, ONES, is_quiet=True, now_ms=now_ms)
        count += some
        assert due_ms is not None
        assert due_ms >= now_ms + 100, "not a transaction for each letter"
        now_ms = due_ms
    assert 490 <= count <= 510


@pytest.mark.parametrize(
    ("died", "stops_at"),
    [
        ([True], 1),
        ([False] * 20 + [True], None),
        ([False] * 19 + [True], None),
        ([False] * 18 + [True], 19),
        ([False] * 48 + [True, True, True], 51),
        ([False] * 100 + [True, True], None),
        ([False] * 100 + [True, False, True, False, True], 105),
        (([False] * 25 + [True]) * 8, None),
    ],
)
def test_it_pauses_when_more_than_a_share_of_the_last_50_died(
    died: list[bool], stops_at: int | None
) -> None:
    pace, pacing = Pace(), Pacing()
    whys = [note_outcomes(pace, pacing, [each]) for each in died]
    stops = [number for number, why in enumerate(whys, 1) if why is not None]
    assert (stops[0] if stops else None) == stops_at


def test_many_outcomes_at_once_count_like_one_by_one() -> None:
    together, apart = Pacing(), Pacing()
    died = [number % 13 == 0 for number in range(120)]
    why = note_outcomes(Pace(), together, died)
    whys = [note_outcomes(Pace(), apart, [each]) for each in died]
    assert together == apart
    assert why == next(each for each in whys if each)
    assert why == "1 of the last 1 that ended died again, above pause_above=0.05"


def test_what_ended_before_an_operator_looked_counts_no_more() -> None:
    pacing = Pacing()
    assert note_outcomes(Pace(), pacing, [False, True])
    clear_outcomes(pacing)
    assert note_outcomes(Pace(), pacing, [False] * 3) is None


def test_none_never_pauses() -> None:
    assert note_outcomes(Pace(pause_above=None), Pacing(), [True] * 100) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate_per_s": 0}, "rate_per_s=0"),
        ({"rate_per_s": "50"}, "expected a number"),
        ({"pause_above": 1.5}, "expected a share from 0 to 1"),
        ({"pause_above": -1}, "None never pauses"),
        ({"canary": 10}, "canary=10"),
    ],
)
def test_a_pace_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pace(**options)  # type: ignore[arg-type]  # what a caller without a type checker does


@given(
    canary=st.booleans(),
    rate_per_s=st.sampled_from([None, 0.5, 50, 700]),
    waits_ms=st.lists(st.integers(0, 2_000), min_size=1, max_size=20),
)
def test_what_is_admitted_at_once_is_known_before(
    canary: bool, rate_per_s: float | None, waits_ms: list[int]
) -> None:
    pace, pacing = Pace(rate_per_s=rate_per_s, canary=canary), Pacing()
    now_ms = 1_000_000
    for wait_ms in waits_ms:
        most = admitted_max(pace, pacing)
        count, _ = admitted(pace, pacing, ONES, is_quiet=True, now_ms=now_ms)
        assert most is None or count <= most
        now_ms += wait_ms
