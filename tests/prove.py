"""`make prove`: the long loops, one after the other; what they came to is a page of the docs.

Each is a test or command of the gate, with more rounds. It goes on after a failure, and fails then.
The environment may name other numbers of rounds: `KILL_ROUNDS=3 make prove ARGS="--only kill"`.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "proof.md"
SAID = re.compile(r"\bseeds?\b|histor|\d+ (passed|failed)|lost|CLEAN|ANOMAL", re.IGNORECASE)
"""Lines of the output that say how much was done, and how to repeat it."""
TEMPORARY = re.compile(r"/\S*/eventlane-\w+-\w+")


HEAD = """# The last proof

What `make prove` came to last, each part when it ran last. The same tests run in `make test` with
fewer rounds; a seed repeats its run.
"""


class Proof(NamedTuple):
    name: str
    what: str
    command: Sequence[str]
    more: dict[str, str]
    """The numbers of rounds, by environment variable."""


def _tests(*paths: str) -> list[str]:
    # A long loop is no test that hangs.
    patience = ["-o", "faulthandler_timeout=3600"]
    return [sys.executable, "-m", "pytest", "-q", "-s", *patience, *paths]


PROOFS = (
    Proof(
        "kill",
        "kill -9 of publishers, workers and operators at random moments",
        _tests("tests/crash/test_kill.py", "-k", "keeps_order_and_charges_once"),
        {"KILL_ROUNDS": "200"},
    ),
    Proof(
        "kill-worker",
        "kill -9 of a random one of several workers of each group, round after round",
        _tests("tests/crash/test_kill.py", "-k", "one_of_several_workers"),
        {"WORKER_KILL_ROUNDS": "200"},
    ),
    Proof(
        "disk",
        "the N-th write fails, for every N of a run: disk full and I/O error",
        _tests("tests/crash/test_failing_disk.py", "tests/crash/test_full_disk.py"),
        {"DISK_SAMPLE": "0"},
    ),
    Proof(
        "fsync",
        "the N-th fsync fails, for every N of a run, and it goes on or is killed",
        _tests("tests/crash/test_failing_sync.py"),
        {"SYNC_SAMPLE": "0"},
    ),
    Proof(
        "poison",
        "events that kill their process: only they die of it",
        _tests("tests/crash/test_poison.py", "tests/crash/test_suspects.py"),
        {"POISON_TURNS": "5"},
    ),
    Proof(
        "lanes",
        "the lanes against a plain store, driven at random",
        _tests("tests/property/test_lanes.py"),
        {"LANES_EXAMPLES": "20000"},
    ),
    Proof(
        "simulation",
        "simulated histories, from a seed each; and whether they find the code wrong when it is",
        _tests("tests/simulation"),
        {"SIM_HISTORIES": "10000", "SIM_MUTATIONS": "all"},
    ),
    *(
        Proof(
            f"overtake-{seed}",
            "one key fails, the others go on, kill -9 three times; the checker's verdict",
            [
                str(Path(sys.executable).with_name("eventlane")),
                "prove",
                "overtake",
                f"--seed={seed}",
            ],
            {},
        )
        for seed in (1, 2, 3)
    ),
)


def rounds(proof: Proof) -> dict[str, str]:
    """The numbers of rounds."""
    return {name: os.environ.get(name, count) for name, count in proof.more.items()}


class Result(NamedTuple):
    proof: Proof
    passed: bool
    seconds_s: float
    said: list[str]


def prove(proof: Proof) -> Result:
    """Run one, and keep what it says."""
    print(f"\n=== {proof.name}: {proof.what}", flush=True)
    began_s = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        proof.command,
        cwd=ROOT,
        env={**os.environ, **rounds(proof)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    # A directory that is gone by now says nothing.
    said = [TEMPORARY.sub("…", line) for line in lines if SAID.search(line)][-6:]
    return Result(proof, running.returncode == 0, time.monotonic() - began_s, said)


def section(result: Result) -> str:
    """A proof as the page of the docs has it."""
    proof, passed, seconds_s, said = result
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = f"commit {commit}, Python {platform.python_version()}, {os.cpu_count()} cores"
    more = " ".join(f"{name}={value}" for name, value in rounds(proof).items())
    # By its name, not where it happens to be.
    command = " ".join([Path(proof.command[0]).name, *proof.command[1:]])
    lines = [
        f"## {proof.name}: {'passed' if passed else 'FAILED'}",
        "",
        f"{proof.what[0].upper()}{proof.what[1:]}. {now}, {where}, {seconds_s:,.0f} s.",
        "",
        "```text",
        f"{more} {command}".strip(),
        *said,
        "```",
    ]
    return "\n".join(lines) + "\n"


def page(before: str, sections: Mapping[str, str]) -> str:
    """The page of the docs, with the last section of each proof: of those that did not run, too."""
    kept = {each.partition(":")[0]: f"## {each}" for each in before.split("\n## ")[1:]}
    found = {**kept, **sections}
    names = [each.name for each in PROOFS if each.name in found]
    return "\n".join((HEAD, *(found[name].rstrip() + "\n" for name in names)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in PROOFS])
    only = parser.parse_args().only
    results = [prove(each) for each in PROOFS if only is None or each.name in only]
    before = PAGE.read_text() if PAGE.exists() else ""
    PAGE.write_text(page(before, {each.proof.name: section(each) for each in results}))
    failed = [each.proof.name for each in results if not each.passed]
    print(f"\n{len(results)} proofs, failed: {', '.join(failed) or 'none'}. See {PAGE}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
