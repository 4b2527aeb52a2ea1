"""How times, sizes, texts and tables are laid out."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from rich.cells import cell_len
from rich.text import Text

from eventlane import OrderConflict, Plan, Position
from eventlane.cli.output import Column, fields, plain, table
from eventlane.cli.words import ago, lines, moment, one_line, size
from eventlane.wording import counted

NOW = datetime(2026, 11, 25, 4, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7_199, "119 min ago"),
        (7_200, "2 h ago"),
        (172_800, "2 d ago"),
        (-30, "in 30 s"),
        (-0.5, "0 s ago"),
    ],
)
def test_a_time_is_told_from_now(seconds: float, words: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == words


def test_a_moment_is_in_utc_and_from_now() -> None:
    at = datetime(2026, 11, 25, 4, 27, tzinfo=UTC)
    assert moment(at, NOW) == "2026-11-25 04:27:00 UTC (3 min ago)"
    assert ago(None, NOW) == ""


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_340_000_000, "12.3 GB"),
        (5_000_000_000_000_000, "5,000 TB"),
    ],
)
def test_a_size_has_up_to_three_digits_before_its_point(size_bytes: int, words: str) -> None:
    assert size(size_bytes) == words


def test_what_is_counted_has_its_number() -> None:
    assert [counted(n, "event") for n in (0, 1, 1234)] == ["0 events", "1 event", "1,234 events"]


def test_what_could_move_the_cursor_is_written_out() -> None:
    assert one_line("a\x1b[2Jb\r\n\tc\u202ed\udc80") == r"a\x1b[2Jb\r\n\tc\u202ed\udc80"
    assert one_line(b"\xffk\xc3\xa9y") == r"\xffkéy"
    assert lines("a\n\tb\x07\n") == "a\n        b\\x07\n"


def test_json_has_the_names_of_the_api_and_loses_nothing() -> None:
    one = UUID(int=1)
    plan = Plan(
        count=1, groups={"g": 1}, keys=1, followers=0, conflicts=(OrderConflict(one, 2, one, 1),)
    )
    value = {one: [plan, Position("t", 0, 9007199254740993), NOW, b"text", b"\xff"]}
    assert json.loads(json.dumps(plain(value))) == {
        str(one): [
            {
                "count": 1,
                "groups": {"g": 1},
                "keys": 1,
                "followers": 0,
                "conflicts": [
                    {
                        "letter": str(one),
                        "offset": 2,
                        "earlier": str(one),
                        "earlier_offset": 1,
                    }
                ],
                "conflict_count": 0,
                "refusals": [],
                "refusal_count": 0,
            },
            {"topic": "t", "partition": 0, "offset": 9007199254740993},
            "2026-11-25T04:30:00+00:00",
            "text",
            {"base64": "/w=="},
        ]
    }


def table_of(capsys: pytest.CaptureFixture[str], *columns: str | Column, rows: object) -> list[str]:
    table(columns, rows)  # type: ignore[arg-type]  # each row as a test needs it
    return capsys.readouterr().out.splitlines()


def test_numbers_stand_to_the_right_and_texts_to_the_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [("a", 1, Text("7", style="red"), None), ("bb", 1234, Text("12"), None)]
    assert table_of(capsys, "name", "count", "red", "nothing", rows=rows) == [
        "name  count  red  nothing",
        "a         1    7",
        "bb    1,234   12",
    ]


def test_a_table_that_is_too_wide_leaves_out_and_cuts_what_may_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = (
        Column("id"),
        Column("error", least=20),
        Column("less", spare=1),
        Column("least", spare=2),
        Column("empty", spare=1),
    )
    rows = [("i" * 36, "e" * 60, "l" * 10, "x" * 10, None)]
    assert table_of(capsys, *columns, rows=rows) == [
        f"{'id':<36}  {'error':<30}  less",
        f"{'i' * 36}  {'e' * 29}…  {'l' * 10}",
    ]


def test_wide_characters_take_two_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head, row = table_of(capsys, Column("key", least=5), "next", rows=[("日本" * 40, "n")])
    assert (cell_len(row), row[-1], "…" in row) == (cell_len(head) - len("ext"), "n", True)


def test_fields_without_a_value_are_left_out_and_long_ones_go_on_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fields((("name", "word " * 20), ("none", None), ("empty", ""), ("zero", 0), ("longer", 7)))
    assert capsys.readouterr().out.splitlines() == [
        "name    " + " ".join(["word"] * 14),
        "        " + " ".join(["word"] * 6),
        "longer  7",
    ]
