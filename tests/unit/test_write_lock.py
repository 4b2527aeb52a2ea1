"""The writers' lock says whether somebody else may have written."""

from pathlib import Path

import pytest

from eventlane.brokers.embedded.lock import WriteLock

Locks = tuple[WriteLock, WriteLock]


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    """Of two apps of one process, which look alike but for their own mark."""
    return WriteLock(tmp_path, 1.0), WriteLock(tmp_path, 1.0)


def test_ones_own_turns_are_not_those_of_others(locks: Locks) -> None:
    mine, _ = locks
    with mine:
        pass
    before = mine.others()
    for _ in range(3):
        with mine:
            pass
    assert mine.others() == before


def test_a_turn_of_another_one_is_seen_also_after_a_later_turn_of_ones_own(locks: Locks) -> None:
    mine, theirs = locks
    with mine:
        pass
    before = mine.others()
    with theirs:
        pass
    with mine:
        pass
    assert mine.others() != before


def test_while_another_one_had_it_last_it_may_be_writing_still(locks: Locks) -> None:
    mine, theirs = locks
    with theirs:
        before = mine.others()
        assert mine.others() != before
    assert mine.others() != mine.others()
