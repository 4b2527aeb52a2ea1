"""`eventlane prove overtake` and the ordeal behind it, with real processes and real kills."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane.cli import main
from eventlane.testing.checker import Kind
from eventlane.testing.history import Ended, Operation, Published, Started, decode
from eventlane.testing.overtaking.job import DELAY_S, UNLUCKY
from eventlane.testing.overtaking.ordeal import ChildEnded, Ordeal
from eventlane.testing.overtaking.proof import Proof, proof_of

SECONDS = 5.0


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def history(kept: Path) -> list[Operation]:
    """What a run of the command left behind, in a directory that was asked for."""
    command = [sys.executable, "-c", "import sys; from eventlane.cli import main; sys.exit(main())"]
    ended = subprocess.run(
        [*command, "prove", "overtake", "--seconds", str(SECONDS), "--json", "--data", str(kept)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (kept / "printed.json").write_text(ended.stdout)
    return [decode(line) for line in (kept / "history.jsonl").read_bytes().splitlines()]


def judged(history: Sequence[Operation]) -> Proof:
    return proof_of(history, kills=3)


def of_unlucky(history: Sequence[Operation]) -> list[Started]:
    return [each for each in history if isinstance(each, Started) and each.key == UNLUCKY.encode()]


def test_the_proof_is_clean_and_its_figures_are_those_of_the_history(
    kept: Path, history: list[Operation]
) -> None:
    printed: dict[str, Any] = json.loads((kept / "printed.json").read_text())
    assert printed["clean"]
    assert printed["kills"] == 3
    assert printed["anomalies"] == {}
    assert printed["failed"] >= 3
    published = [each for each in history if isinstance(each, Published)]
    assert printed["acknowledged"] == len(published) > 500
    assert printed["handled"] >= printed["acknowledged"]
    assert printed["checked"]["overtake"] >= printed["handled"]
    assert printed["checked"]["lost"] == printed["acknowledged"]


def test_retries_go_on_in_the_next_process_after_a_kill(history: list[Operation]) -> None:
    processes: dict[tuple[int, int], list[str]] = {}
    for run in of_unlucky(history):
        processes.setdefault((run.partition, run.offset), []).append(run.process)
    assert any(len(set(names)) > 1 for names in processes.values())


def test_an_event_that_is_never_handled_is_found(history: list[Operation]) -> None:
    victim = of_unlucky(history)[0]
    place = (victim.partition, victim.offset)
    without = [
        each
        for each in history
        if not (isinstance(each, Started | Ended) and (each.partition, each.offset) == place)
    ]
    proof = judged(without)
    assert not proof.clean
    assert proof.lost > 0


def test_overtaking_is_found(history: list[Operation]) -> None:
    # Both attempts and a later event in one process: over a kill nobody knows who owned the lane.
    runs = of_unlucky(history)
    first = {(each.process, each.offset) for each in runs if each.attempt == 1}
    retried, later = next(
        (run, after)
        for run in runs
        for after in runs
        if run.attempt == 2 and (run.process, run.offset) in first
        if after.process == run.process and after.offset > run.offset
    )
    place = next(index for index, each in enumerate(history) if each is retried)
    overtaking = [*history[:place], later, Ended.of(later, "done"), *history[place:]]
    assert judged(overtaking).anomalies[Kind.OVERTAKE] > 0


def test_a_retry_before_its_time_is_found(history: list[Operation]) -> None:
    hasty = [
        msgspec.structs.replace(each, at_ms=each.at_ms - round(DELAY_S * 1000))
        if isinstance(each, Started) and each.attempt > 1
        else each
        for each in history
    ]
    assert judged(hasty).anomalies[Kind.EARLY_RETRY] > 0


def test_keys_that_stand_still_prove_nothing(history: list[Operation]) -> None:
    """Nothing is lost and nothing overtakes, but all others are handled an hour later."""
    stuck = [
        msgspec.structs.replace(each, at_ms=each.at_ms + 3_600_000)
        if isinstance(each, Started) and each.key != UNLUCKY.encode()
        else each
        for each in history
    ]
    proof = judged(stuck)
    assert proof.verdict.clean, str(proof.verdict)
    assert not proof.clean


@pytest.mark.parametrize("seconds", ["0", "-3", "4.9", "nan", "inf"])
def test_too_short_a_time_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "overtake", f"--seconds={seconds}"]) == 2
    assert "expected 5 or more" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["prove", "overtake", "--data", str(tmp_path / "file" / "data")]) == 2
    assert "expected a directory that can be written" in capsys.readouterr().err


def test_a_directory_that_is_not_empty_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eventlane.db").write_text("precious")
    assert main(["prove", "overtake", "--data", str(tmp_path)]) == 2
    assert "expected a new or an empty directory" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["eventlane.db"]


def test_a_broker_that_is_given_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--broker", "embedded:./data", "prove", "overtake"]) == 2
    assert "leave --broker" in capsys.readouterr().err


async def test_a_process_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    ordeal = Ordeal(
        command=lambda role, number: [sys.executable, "-c", "raise SystemExit('no such module')"],
        directory=tmp_path,
        duration_s=SECONDS,
        seed=1,
        tell=lambda line: None,
    )
    with pytest.raises(ChildEnded, match="no such module"):
        await ordeal.run()


@pytest.mark.parametrize("role", ["publisher", "worker"])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, role: str) -> None:
    with (tmp_path / "history.jsonl").open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "eventlane.testing.overtaking.job", role, str(tmp_path), "0"],
            stdin=subprocess.PIPE,
            stdout=file,
        )
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(30) == 1
