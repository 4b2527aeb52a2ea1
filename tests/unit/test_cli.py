"""The command line as a whole: where its broker is, what it refuses, how it is laid out."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eventlane.cli import main
from tests.unit.cli_shop import COMMAND, Ordered, Shop, Terminal, as_json, printed, refused, run


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "data")
    await shop.handle_all(Ordered("ada", 1), Ordered("bob", 0), Ordered("bob", 2))
    return shop


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "expected a broker"),
        (["--broker", "embeded:x", "status"], "Did you mean 'embedded'"),
        (["--broker", "embedded:nowhere", "status"], "expected a directory with a broker"),
        (["--broker", f"embedded:{'x' * 300}", "status"], "expected a directory that can be read"),
        (["--app", "nowhere:app", "status"], "expected a module"),
        (["--app", "json", "status"], "expected MODULE:APP"),
        (["--app", ".json:dumps", "status"], "expected MODULE:APP"),
        (["--app", "json:dumps", "status"], "expected an eventlane.App"),
        (["--app", "json:app", "status"], "module json has no 'app'. Known: none."),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    *,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("EVENTLANE_BROKER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "looking must not make a broker"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import missing_module_of_the_shop\n", "imports 'missing_module_of_the_shop', which is"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing'"),
        ("def app(:\n", "SyntaxError: invalid syntax"),
        ("from eventlane import App\nApp(1)\n", "App(1): expected a URL"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_line_of_the_user_and_no_other(
    *,
    text: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"broken_shop_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    assert main(["--app", f"{name}:app", "status"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert f'{name}.py", line {text.count(chr(10))}' in told
    assert told.count("File ") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["statsu"], "Did you mean 'status'?"),
        (["failures"], "required: list|show"),
        (["failures", "lst"], "Did you mean 'list'?"),
        (["replay", "--grup", "x"], "there is no option '--grup'. Did you mean '--group'?"),
        (["status", "now"], "expected nothing more, got 'now'"),
        (["failures", "list", "--limit", "0"], "expected a whole number, 1 or more, got '0'"),
        (["failures", "list", "--limit", "9" * 20], "expected a whole number, 1 or more, got '999"),
        (["ops", "show", "9" * 20], "expected the number of an operation, got '999"),
        (["failures", "list", "--state", "opne"], "Did you mean 'open'?"),
        (["ops", "list", "--state", "runing"], "Did you mean 'running'?"),
        (["ops", "show", "first"], "expected the number of an operation, got 'first'"),
        (["replay", "--rate", "0", "--group", "stock"], "expected a number above 0, got '0'"),
        (["replay", "--pause-above", "5%"], "expected a share from 0 to 1, got '5%'"),
        (["trace", "bob"], "expected an id, as in"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_there_is(
    shop: Shop, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(shop, *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_command_that_does_something_else_is_not_suggested(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("resume", "reset", "remove"):
        words = refused(shop, capsys, word, code=2)
        assert f"got '{word}'" in words
        assert "Did you mean" not in words


def test_a_refusal_as_json_is_told_on_stdout_too(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, name, words in (
        (("groups", "pause", "stok", "--reason", "x"), 3, "NotFound", "Did you mean 'stock'?"),
        (("groups", "pause", "stock"), 2, "ConfigError", "expected a reason"),
        (("lane", "order", "bob"), 3, "NotFound", "Did you mean 'orders'?"),
        (("lane", "orders"), 2, "ConfigError", "eventlane lane: the following arguments are"),
        (("failures", "list", "--limit", "0"), 2, "ConfigError", "expected a whole number, 1"),
        (("failures", "lst"), 2, "ConfigError", "Did you mean 'list'?"),
        (("statsu",), 2, "ConfigError", "Did you mean 'status'?"),
        (("status", "--al"), 2, "ConfigError", "there is no option '--al'"),
    ):
        capsys.readouterr()
        assert run(shop, *arguments, "--json") == code
        captured = capsys.readouterr()
        told = json.loads(captured.out)
        assert told["error"] == name
        assert words in told["message"]
        assert told["message"] in captured.err


def test_a_file_that_is_no_broker_fails_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eventlane.db").write_bytes(b"not a database, but long enough to be read" * 100)
    assert main(["--broker", f"embedded:{tmp_path}", "status"]) == 1
    assert capsys.readouterr().err.startswith("failed: ")


def test_the_broker_may_stand_in_the_environment_and_after_the_command(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTLANE_BROKER", shop.url)
    assert main(["topics", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["orders"]["published"] == 3
    monkeypatch.setenv("EVENTLANE_BROKER", "embedded:nowhere")
    assert main(["topics", "--broker", shop.url]) == 0


def test_an_app_gives_its_broker_and_says_when_it_is_another(
    shop: Shop,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTLANE_BROKER", raising=False)
    (tmp_path / "shop_with_url.py").write_text(
        f"from eventlane import App\napp = App({shop.url!r}, name='shop')\n"
    )
    assert main(["--app", "shop_with_url:app", "status"]) == 0
    assert "broker:" not in capsys.readouterr().err
    monkeypatch.setenv("EVENTLANE_BROKER", shop.url)
    assert main(["--app", "shop_with_url:app", "status"]) == 0
    assert f"broker: {shop.url}" in capsys.readouterr().err


def test_an_app_that_a_module_does_not_have_is_answered_with_those_that_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop_of_one.py").write_text(
        "import eventlane\nshop = eventlane.App('embedded:x')\n"
    )
    for name, words in (("nope", "Known: shop."), ("shp", "Did you mean 'shop'?")):
        assert main(["--app", f"shop_of_one:{name}", "status"]) == 2
        assert f"module shop_of_one has no '{name}'. {words}" in capsys.readouterr().err


def test_commands_to_copy_name_the_broker_that_was_given(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"eventlane --broker {shop.url} failures list" in printed(shop, capsys, "status")


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_tables_fit_the_screen(
    shop: Shop,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ("status", "lag --all", "topics", "failures list", "groups list", "ops list"):
        assert run(shop, *command.split()) == 0
        lines = capsys.readouterr().out.splitlines()
        table = [line for line in lines if not line.startswith("  ")]  # commands are not broken
        assert max(map(len, table)) <= columns, command


def test_ids_are_never_cut(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = as_json(shop, capsys, "failures", "list")
    for columns in ("20", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        assert letter["id"] in printed(shop, capsys, "failures", "list")


def test_colours_are_for_terminals_and_for_those_who_want_them(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in printed(shop, capsys, "status")
    red = "\x1b[1;31m"
    terminal = Terminal(shop, "status", NO_COLOR="")
    assert terminal.ended() == 0
    assert red in terminal.text
    terminal = Terminal(shop, "status", NO_COLOR="1")
    assert terminal.ended() == 0
    assert red not in terminal.text


async def test_what_events_hold_does_not_reach_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    evil = "e\x1b[31m\nvil\u202e"
    await shop.handle_all(Ordered(evil, 0))
    (letter,) = await shop.letters()
    for command in (("failures", "list"), ("failures", "show", str(letter.id)), ("tail", "orders")):
        await asyncio.to_thread(run, shop, *command)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert r"e\x1b[31m\nvil\u202e" in out


def test_whoever_reads_the_output_may_stop_reading(shop: Shop) -> None:
    # With it, each line would fail when it is printed, and none when all are flushed.
    buffered = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    for command in (("topics", "--json"), ("tail", "orders"), ("failures", "list"), ("status",)):
        process = subprocess.Popen(
            [*COMMAND, "--broker", shop.url, *command],
            env=buffered,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == ("", 0)
        process.stderr.close()


def test_what_the_output_cannot_show_is_written_out(shop: Shop) -> None:
    ended = subprocess.run(
        [*COMMAND, "--broker", shop.url, "lane", "orders", "zoë"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert r"key zo\xeb of orders" in ended.stdout


def test_text_that_is_no_utf_8_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    words = refused(shop, capsys, "groups", "pause", "stock", "--reason", "\udcff", code=2)
    assert "--reason '\\udcff': expected text in UTF-8" in words


def test_a_change_without_a_reason_is_refused_where_nobody_can_be_asked(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ("replay", "--group", "stock"),
        ("archive", "--group", "stock"),
        ("groups", "pause", "stock"),
        ("groups", "rename", "stock", "store"),
        ("groups", "reset", "stock", "--to", "now", "--yes-reset", "stock"),
        ("groups", "remove", "stock", "--yes-remove", "stock"),
    ):
        assert 'add --reason "…"' in refused(shop, capsys, *command, code=2)
    assert as_json(shop, capsys, "ops", "list") == []
    assert set(as_json(shop, capsys, "groups", "list")) == {"mails", "stock"}


def test_who_sits_at_a_terminal_is_asked_for_the_reason(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(shop, "groups", "pause", "stock", "--actor", "ines")
    terminal.until("Why?")
    terminal.type("stocktaking")
    assert terminal.ended() == 0
    groups: Any = as_json(shop, capsys, "groups", "list")
    assert groups["stock"]["paused"] == "stocktaking"


def test_a_question_that_is_left_empty_changes_nothing(shop: Shop) -> None:
    terminal = Terminal(shop, "groups", "pause", "stock")
    terminal.until("Why?")
    terminal.type("")
    assert terminal.ended() == 2
    assert "expected a reason, got none. Nothing was changed." in terminal.text


def test_an_interrupted_question_changes_nothing(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(shop, "groups", "pause", "stock")
    terminal.until("Why?")
    terminal.interrupt()
    assert terminal.ended() == 130
    assert "Traceback" not in terminal.text
    assert as_json(shop, capsys, "groups", "list")["stock"]["paused"] is None
