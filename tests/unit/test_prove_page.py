"""The page of proofs keeps what did not run this time."""

from tests.prove import HEAD, PROOFS, Result, page, section

KILL, DISK = (next(each for each in PROOFS if each.name == name) for name in ("kill", "disk"))


def test_a_part_that_ran_takes_the_place_of_its_last_run_and_the_others_stay() -> None:
    kill = section(Result(KILL, True, 12.0, ["seed 1: 200 rounds"]))
    disk = section(Result(DISK, True, 34.0, ["2 passed"]))
    # As it is read: in the order of the proofs, whichever ran first.
    first = page("", {"disk": disk})
    both = page(first, {"kill": kill})
    assert both == f"{HEAD}\n{kill}\n{disk}"
    failed = section(Result(DISK, False, 5.0, ["1 failed"]))
    assert page(both, {"disk": failed}) == f"{HEAD}\n{kill}\n{failed}"


def test_a_part_says_whether_it_passed_how_often_and_how_to_repeat_it() -> None:
    text = section(Result(KILL, False, 12.0, ["seed 1: 200 rounds"]))
    assert text.startswith("## kill: FAILED\n")
    assert "KILL_ROUNDS=" in text
    assert "-m pytest" in text
    assert "seed 1: 200 rounds" in text
    assert "/.venv/" not in text
