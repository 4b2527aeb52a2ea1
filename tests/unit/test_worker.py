"""Workers: how long a failed one waits, what is said of its end, what `eventlane run` refuses."""

from pathlib import Path

import pytest

from eventlane.cli import main
from eventlane.supervisor import backoff_s, sources_of, why_ended


def test_each_failure_in_a_row_doubles_the_wait_up_to_half_a_minute() -> None:
    assert [backoff_s(failures) for failures in (1, 2, 3, 7, 8, 10_000)] == [0.5, 1, 2, 30, 30, 30]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (7, "ended with exit code 7"),
        (-11, "was ended by SIGSEGV"),
        (-9, "was ended by SIGKILL (kill -9, or the kernel was out of memory)"),
        (-77, "was ended by signal 77"),
    ],
)
def test_the_end_of_a_process_is_said_in_words(code: int, words: str) -> None:
    assert why_ended(code) == words


def test_a_changed_source_is_seen_and_a_virtual_environment_is_not(tmp_path: Path) -> None:
    for name in ("shop.py", "shop/stock.py", "shop/stock.txt", ".git/hook.py", "env/lib/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    before = sources_of(tmp_path)
    assert before.keys() == {f"{tmp_path}/shop.py", f"{tmp_path}/shop/stock.py"}
    (tmp_path / "shop" / "stock.py").write_text("x = 1\n")
    changed = before.items() ^ sources_of(tmp_path).items()
    assert {path for path, _ in changed} == {f"{tmp_path}/shop/stock.py"}


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_workers_that_is_none_is_refused_with_what_is_expected(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "shop:app", "--workers", text]) == 2
    assert f"--workers: expected a whole number, 1 or more, got '{text}'" in capsys.readouterr().err


def test_processes_cannot_share_a_broker_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop_in_memory.py").write_text(
        "from eventlane import App\napp = App('embedded::memory:')\n"
    )
    assert main(["run", "shop_in_memory:app", "--workers", "2"]) == 2
    assert "expected a broker that processes can share" in capfd.readouterr().err


MODULES = [
    ("import os\nos.environ['NOWHERE_AT_ALL']\n", "KeyError: 'NOWHERE_AT_ALL'", 2),
    ("import json\n\njson.loads('{')\n", "json.decoder.JSONDecodeError: ", 3),
]


@pytest.mark.parametrize(("text", "words", "line"), MODULES)
def test_a_module_that_raises_ends_with_the_line_of_the_user(
    *,
    text: str,
    words: str,
    line: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"raising_{line}.py").write_text(text)
    assert main(["run", f"raising_{line}:app"]) == 2
    said = capsys.readouterr().err
    assert "its module raised while it was imported" in said
    assert said.count('File "') == 1
    assert f'File "{tmp_path}/raising_{line}.py", line {line}, in <module>' in said
    assert said.splitlines()[-1].startswith(words)
