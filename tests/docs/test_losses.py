"""The table of known losses names tests and cases that exist."""

import re

from tests.docs.documents import ROOT
from tests.docs.test_guarantees import CASE_NAMES, names_of_tests

ROWS_MAX = 40


def test_what_the_table_of_losses_names_exists() -> None:
    lines = (ROOT / "tests/losses.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| ")][1:]
    assert 30 < len(rows) <= ROWS_MAX
    known = CASE_NAMES | names_of_tests()
    for what, shown in rows:
        names = re.findall(r"`(\w+)`", shown)
        assert names, f"nothing shows it: {what}"
        assert known.issuperset(names), f"unknown: {set(names) - known}"
