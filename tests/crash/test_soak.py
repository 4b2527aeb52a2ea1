"""`make soak` in a few seconds; and that it finds what grows."""

from pathlib import Path

import pytest

from tests.crash.growth import GROWTH_MAX, Level
from tests.soak import soak, summary_of

DURATION_S = 6.0


async def test_a_short_soak_kills_workers_and_finds_nothing_wrong(tmp_path: Path) -> None:
    soaking, passed_s = await soak(DURATION_S, 1, 2, tmp_path)
    assert soaking.violations == []
    counts = soaking.counts
    assert {what for what in ("kills", "dead", "replayed", "failed") if not counts[what]} == set()
    assert counts["attempts"] > 2 * counts["events"] > 0
    assert all(level.samples for level in soaking.levels)
    assert f"{counts['events']:,} events" in summary_of(soaking, passed_s)


@pytest.mark.parametrize(
    ("last_bytes", "is_flat"), [(0, False), (100, True), (130, True), (131, False), (200, False)]
)
def test_what_grows_after_the_first_third_is_found(last_bytes: int, is_flat: bool) -> None:
    level = Level("it", allowance_bytes=10)
    for at_s, size_bytes in ((1.0, 5), (9.9, 7), (11.0, 100), (19.9, 50), (30.0, last_bytes)):
        level.note(at_s, size_bytes)
    assert level.allowed_bytes(30.0) == 100 * GROWTH_MAX + 10
    assert level.is_flat(30.0) is is_flat
