"""The simulation finds the code wrong when it is: each mutation of it, within 500 histories.

The gate runs those that are found soon; `SIM_MUTATIONS=all` runs all of them.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.simulation.mutations import FOUND_WITHIN, MUTATIONS

ROOT = Path(__file__).parents[2]
AT_ONCE = int(os.environ.get("SIM_PROCESSES", "2"))
FOUND = re.compile(r"found in (\d+) histories: (.*)")
SHOWN = 80
PATIENCE_S = 600
LATE = (
    "a retry starts early",
    "due lanes that cannot be looked up now are looked up without end *",
    "a lane is looked up while it is written *",
    "a settlement under a stale epoch is accepted",
    "a paused operation that is resumed waits for ever *",
    "a replay runs though an earlier one of its lane died again",
    "a replay runs that was released before an earlier one had died again *",
)
"""Mutations that hide for many histories."""
IS_ALL = os.environ.get("SIM_MUTATIONS") == "all"
NAMES = tuple(name for name in MUTATIONS if IS_ALL or name not in LATE)


def test_mutations_of_the_code_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = dict(zip(NAMES, pool.map(said_of, NAMES), strict=True))
    found = {name: match for name in NAMES if (match := FOUND.match(said[name]))}
    lines = [
        f"{int(match[1]):4}  {name}: {match[2][:SHOWN]}" for name, match in sorted(found.items())
    ]
    head = (
        f"simulation: {len(found)} of {len(NAMES)} mutations found within {FOUND_WITHIN} "
        "histories, each after so many:"
    )
    with capsys.disabled():
        print("", *lines, head, sep="\n", flush=True)
    assert found.keys() == set(NAMES), {name: said[name] for name in NAMES if name not in found}


def said_of(name: str) -> str:
    """What becomes of a mutation."""
    command = [sys.executable, "-m", "tests.simulation.mutations", name]
    ran = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return ran.stdout or ran.stderr


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fits_the_code(name: str) -> None:
    compile(MUTATIONS[name].source(), name, "exec")
