"""The embedded broker keeps every promise, on disk and in its private temporary directory."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from eventlane.testing.conformance import CASES, REOPENING, Case, Storage

# Promises that are not kept yet: taken out of here by whoever keeps them (xfail is strict).
NOT_YET = {
    "a_handler_that_swallows_its_timeout_does_not_lose_the_next_one": (
        "a worker whose handler swallowed its cancellation never times out again"
    ),
}


def cases(some: Iterable[Case]) -> list[ParameterSet]:
    return [
        pytest.param(
            case,
            id=case.__name__,
            marks=[pytest.mark.xfail(reason=NOT_YET[case.__name__])]
            if case.__name__ in NOT_YET
            else [],
        )
        for case in some
    ]


ONCE = [case for case in CASES if case not in REOPENING]


@pytest.mark.parametrize("case", cases(CASES))
async def test_on_disk(case: Case, tmp_path: Path) -> None:
    await case(Storage(f"embedded:{tmp_path / 'storage'}"))


@pytest.mark.parametrize("case", cases(ONCE))
async def test_in_memory(case: Case) -> None:
    await case(Storage("embedded::memory:"))


def test_every_case_says_what_it_proves() -> None:
    names = [case.__name__ for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert case.__doc__
        assert case.__doc__.rstrip().endswith(".")
