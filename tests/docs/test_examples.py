"""The small examples have tests of their own, as a user's application would."""

import subprocess
import sys

import pytest

from tests.docs.documents import ROOT


@pytest.mark.parametrize("example", ["fastapi_shop", "pytest_shop"])
def test_an_example_passes_its_own_tests(example: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", f"examples/{example}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout
