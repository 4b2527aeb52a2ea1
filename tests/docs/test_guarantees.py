"""Each promise of the guarantees names what proves it, and what it names exists."""

import ast
import re

from eventlane.testing.conformance import CASES
from tests.docs.documents import ROOT

PAGE = ROOT / "docs/reference/guarantees.md"
CASE_NAMES = {case.__name__ for case in CASES}


def proofs() -> dict[str, list[str]]:
    """For each promise and rule, by its number, the names that prove it."""
    found: dict[str, list[str]] = {}
    rule = ""
    for paragraph in PAGE.read_text(encoding="utf-8").split("\n\n"):
        if number := re.match(r"\*\*([A-Z]\d+)\. ", paragraph):
            rule = number[1]
            assert rule not in found, f"{rule} stands twice"
            found[rule] = []
        elif paragraph.startswith("#"):
            rule = ""
        _, _, names = " ".join(paragraph.split()).partition("Proved by ")
        if names:
            assert rule, f"of what is this the proof: {names}"
            found[rule] += re.findall(r"`(\w+)`", names)
    return found


def names_of_tests() -> set[str]:
    """Test functions, and the tests that Hypothesis makes of a machine."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign):
                found |= {each.id for each in node.targets if isinstance(each, ast.Name)}
    return {name for name in found if name.startswith("test_")}


def test_what_a_promise_names_as_its_proof_exists() -> None:
    known = CASE_NAMES | names_of_tests()
    lost = {rule: [n for n in names if n not in known] for rule, names in proofs().items()}
    assert not {rule: names for rule, names in lost.items() if names}


def test_every_promise_has_a_case_that_each_broker_must_pass() -> None:
    proved = {rule for rule, names in proofs().items() if CASE_NAMES & set(names)}
    assert {f"P{number}" for number in range(1, 9)} <= proved


def test_every_rule_names_what_proves_it() -> None:
    found = proofs()
    assert len(found) > 30
    assert not [rule for rule, names in found.items() if not names]
