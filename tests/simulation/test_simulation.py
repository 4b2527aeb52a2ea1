"""Simulated histories keep what is promised, and a seed replays its history.

`SIM_HISTORIES=10000 SIM_SEED=2000` for others, `SIM_PROCESSES` for how many work at once.
"""

import os
import re
import subprocess
import sys

import pytest

from eventlane.testing.simulation import Store, run, simulate

HISTORIES = int(os.environ.get("SIM_HISTORIES", "2000"))
SEED = int(os.environ.get("SIM_SEED", "0"))
PROCESSES = int(os.environ.get("SIM_PROCESSES", "2"))
PARTS = 4
"""So that none of them takes long."""
ENOUGH = 200
"""In so many histories everything happens."""
SOME = (1, 4, 7, 23)
"""Seeds whose histories are told again."""
HAPPENED = (
    *("runs of replays", "retries", "events parked", "dead letters", "partitions taken over"),
    *(
        "edits",
        "replays by query",
        "settlements fenced",
        "processes that died",
        "faults",
        "clock jumps",
        "operator actions",
    ),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_simulated_histories_keep_what_is_promised(
    part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first, end = (SEED + HISTORIES * each // PARTS for each in (part, part + 1))
    summary = run(end - first, first, processes=PROCESSES)
    with capsys.disabled():
        print(f"\n{summary}", flush=True)
    assert summary.clean, str(summary)
    assert summary.count == end - first
    if summary.count >= ENOUGH:
        missing = [each for each in HAPPENED if not summary.counts[each]]
        assert not missing, f"of these there were none: {missing}"


def test_a_seed_replays_its_history_whatever_was_before_it() -> None:
    with Store() as store:
        digests = {seed: simulate(seed, store).digest for seed in SOME}
        again = {seed: simulate(seed, store).digest for seed in reversed(SOME)}
    assert again == digests
    assert len(set(digests.values())) == len(SOME)


@pytest.mark.parametrize("seed", SOME)
def test_a_seed_replays_its_history_in_another_process(seed: int) -> None:
    told = [told_by(seed, hash_seed) for hash_seed in ("1", "2")]
    assert told[0] == told[1], "strings are hashed differently, and nothing else is different"
    with Store() as store:
        assert simulate(seed, store).digest in told[0]


def told_by(seed: int, hash_seed: str) -> str:
    """The whole story of a seed, in a process of its own."""
    command = [sys.executable, "-m", "eventlane.testing.simulation", f"--seed={seed}", "--verbose"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return re.sub(r"eventlane-\w+/", "", told.stdout)  # Its directory has a name of its own.
