"""The suite can fail: each broken broker is caught by the case that is named for it."""

from pathlib import Path

import pytest

from eventlane.errors import EventlaneError
from eventlane.testing import stage
from eventlane.testing.broken import BROKEN, Broken
from eventlane.testing.conformance import CASES, Storage
from tests.conformance.killing import kill_embedded


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a broken broker never does is waited for in vain.
    monkeypatch.setattr(stage, "PATIENCE_S", 1.0)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_a_broken_broker_is_caught(broken: Broken, tmp_path: Path) -> None:
    storage = Storage(f"embedded:{tmp_path / 'storage'}", wrap=broken.wrap, kill=kill_embedded)
    with pytest.raises((AssertionError, EventlaneError, ValueError)):
        await broken.caught_by(storage)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_the_case_passes_where_nothing_is_broken(broken: Broken, tmp_path: Path) -> None:
    await broken.caught_by(Storage(f"embedded:{tmp_path / 'storage'}", kill=kill_embedded))


def test_every_broken_broker_has_a_case_of_the_suite() -> None:
    assert {broken.caught_by for broken in BROKEN.values()} <= set(CASES)
    assert len(BROKEN) >= 8
