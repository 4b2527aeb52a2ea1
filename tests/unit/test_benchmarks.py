"""The benchmarks run, and say what they found in the agreed form. How fast it is, is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.__main__ import BENCHMARKS, chosen, main, run, table
from benchmarks.measuring import Result, Row, Turns, compared, plain

TINY = 0.002
FIELDS = ["name", "value", "unit", "baseline", "baseline_value", "ratio", "target", "repeats"]


def fields_of(row: Row) -> list[str]:
    return list(msgspec.json.decode(msgspec.json.encode(row), type=dict[str, object]))


@pytest.mark.parametrize(
    "name", ["publish_many", "publish_100", "consume_async", "consume_sync", "consume_waiting"]
)
def test_a_benchmark_compares_itself_with_straight_code(name: str) -> None:
    (result,) = run([name], repeats=1, scale=TINY)
    row = result.row
    assert row.name == name
    assert row.value > 0
    assert row.baseline_value > 0
    assert row.ratio is not None
    low, high = result.spread
    assert low * 0.99 <= row.ratio <= high * 1.01
    assert fields_of(row) == [each for each in FIELDS if each != "target" or row.target]


def test_a_long_backlog_is_compared_with_a_short_one() -> None:
    results = run(["backlog"], repeats=1, scale=TINY / 2)
    assert {each.row.name for each in results} == {
        "backlog_open",
        "backlog_consume_first",
        "backlog_consume_middle",
        "backlog_publish",
    }
    assert all(each.row.target for each in results)


def test_what_failed_is_measured_beside_what_did_not() -> None:
    names = ["failing_keys", "letters", "replay"]
    results = {each.row.name: each for each in run(names, repeats=1, scale=TINY / 4)}
    assert {name for each in BENCHMARKS if each.name in names for name in each.rows} == set(results)
    assert "23 done, 2 dead" in results["failing_keys"].note
    assert all(each.row.value > 0 for each in results.values())


def test_of_parked_lanes_those_that_are_due_run() -> None:
    results = run(["lanes"], repeats=1, scale=TINY)
    assert [each.row.name for each in results] == ["lanes_acquire", "lanes_memory", "lanes_due"]


def test_what_has_no_ratio_is_compared_by_its_value() -> None:
    (result,) = run(["memory"], repeats=1, scale=TINY)
    assert fields_of(result.row) == [each for each in FIELDS if each != "ratio"]
    assert 0 < result.row.baseline_value <= result.row.value


def test_a_target_is_reached_or_it_is_not() -> None:
    turns = Turns(ours_s=[2.0, 2.0], baseline_s=[1.0, 1.0])

    def reached(target: str | None) -> bool | None:
        return compared("n", turns, 10, baseline="b", target=target).is_reached

    assert reached(">= 0.5") is True
    assert reached(">= 0.6") is False
    assert reached("<= 0.4") is False
    assert reached(None) is None
    value = plain("n", [0.2], unit="s", baseline="b", baseline_values=[0.1], target="<= 0.1")
    assert value.is_reached is False


def test_cost_per_event_grows_with_the_time_that_it_took() -> None:
    turns = Turns(ours_s=[2.0], baseline_s=[1.0])
    row = compared("n", turns, 1_000_000, unit="us/event", baseline="b").row
    assert (row.value, row.baseline_value, row.ratio) == (2.0, 1.0, 2.0)


def test_rows_are_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(name="n", value=1.0, unit="u", baseline="b", baseline_value=2.0, repeats=5)
    found = [Result(row=row, spread=(1.0, 1.0))]
    monkeypatch.setattr("benchmarks.__main__.run", lambda *_, **__: found)
    main(["--json", str(tmp_path / "rows.json")])
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {
            "name": "n",
            "value": 1.0,
            "unit": "u",
            "baseline": "b",
            "baseline_value": 2.0,
            "repeats": 5,
        }
    ]
    assert table(found).row_count == 1


def test_names_choose_benchmarks_and_their_rows() -> None:
    assert chosen([]) == BENCHMARKS
    assert [each.name for each in chosen(["backlog_open", "import"])] == ["backlog", "import"]
    with pytest.raises(SystemExit, match="got nothing_like_it"):
        chosen(["nothing_like_it"])


def test_importing_eventlane_brings_no_backend_and_no_extra() -> None:
    code = (
        "import sys, eventlane; from benchmarks.bench_import import UNWANTED;"
        "print(*[name for name in UNWANTED if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert found.stdout.split() == []


def test_two_processes_share_the_work_and_one_takes_over() -> None:
    names = ["two_processes", "takeover_killed", "takeover_frozen"]
    results = {each.row.name: each for each in run(names, repeats=1, scale=TINY * 10)}
    assert set(results) == set(names)
    assert all(each.row.value > 0 and each.row.baseline_value > 0 for each in results.values())
    assert results["takeover_frozen"].row.value > results["takeover_killed"].row.value


def test_an_idle_process_is_compared_with_one_that_has_one_topic() -> None:
    (result,) = run(["idle"], repeats=1, scale=TINY * 5)
    assert fields_of(result.row) == [each for each in FIELDS if each != "ratio"]
    assert 0 < result.row.value < 100
