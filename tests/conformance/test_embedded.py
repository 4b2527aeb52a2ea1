"""The embedded broker keeps every promise, on disk and in its private temporary directory."""

from pathlib import Path

import pytest

from eventlane.testing.conformance import CASES, KILLING, REOPENING, Case, Storage
from tests.conformance.killing import kill_embedded


def name(case: Case) -> str:
    return case.__name__


ONCE = [case for case in CASES if case not in REOPENING]


@pytest.mark.parametrize("case", CASES, ids=name)
async def test_on_disk(case: Case, tmp_path: Path) -> None:
    await case(Storage(f"embedded:{tmp_path / 'storage'}", kill=kill_embedded))


@pytest.mark.parametrize("case", KILLING, ids=name)
async def test_on_disk_where_an_unclean_end_is_said(case: Case, tmp_path: Path) -> None:
    await case(Storage(f"embedded:{tmp_path / 'storage'}"))


@pytest.mark.parametrize("case", ONCE, ids=name)
async def test_in_memory(case: Case) -> None:
    await case(Storage("embedded::memory:"))


def test_every_case_says_what_it_proves() -> None:
    names = [case.__name__ for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert case.__doc__
        assert case.__doc__.rstrip().endswith(".")
