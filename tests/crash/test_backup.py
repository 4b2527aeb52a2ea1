"""A backup of a broker that other processes use: one moment of it, whole, and nobody waits."""

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from eventlane import App, Refused, StorageError
from eventlane.cli import main
from eventlane.clock import SystemClock, sleep
from eventlane.testing.history import Published
from tests.crash.children import Children
from tests.crash.processes import GROUPS, KEYS, Step, made_app

PAYLOAD = "x" * 20_000


def check_file(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "eventlane.db")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check_names(directory, {"eventlane.db"})


def check_names(directory: Path, names: set[str]) -> None:
    assert {each.name for each in directory.iterdir()} == names


async def test_a_backup_under_load_opens_balances_and_has_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "log"
    async with (
        made_app(str(directory)) as app,
        Children("tests.crash.processes", tmp_path / "logs") as children,
    ):
        await app.publish_many([Step(key, 0) for key in KEYS])
        await children.start("publisher", directory, 1)
        await children.start("worker", directory, 0)
        for number in range(3):
            more = count(children) + 50
            await children.until(partial(has, children, more), "the children to be at work")
            before = count(children)
            assert await asyncio.to_thread(
                main, ["--broker", f"embedded:{directory}", "backup", str(tmp_path / str(number))]
            ) == 0  # fmt: skip
            check_file(tmp_path / str(number))
            async with made_app(str(tmp_path / str(number))) as copy:
                status = await copy.status()
                assert set(status.groups) == {*GROUPS, "effects"}
                assert all(group.balances for group in status.groups.values()), status
                assert status.topics["steps"].published >= before + len(KEYS)
                numbers = [copy.decode(each, Step) async for each in copy.read(Step)]
                assert len(numbers) == status.topics["steps"].published


def has(children: Children, more: int) -> bool:
    return count(children) >= more and children.runs > 0


def count(children: Children) -> int:
    return sum(isinstance(each, Published) for each in children.history)


async def test_writers_do_not_wait_for_a_backup(tmp_path: Path) -> None:
    app = App(f"embedded:{tmp_path / 'log'}", durability="os")
    async with app:
        for _ in range(40):
            await app.publish_many([Step(f"{PAYLOAD}{number}", 0) for number in range(100)])
        copying = asyncio.create_task(app.backup(str(tmp_path / "copy")))
        waited_s: list[float] = []
        while not copying.done():
            begun_s = SystemClock.monotonic_s()
            await app.publish(Step("k", 0))
            waited_s.append(SystemClock.monotonic_s() - begun_s)
            await sleep(0.001)
        size_bytes = await copying
        assert size_bytes > 40 * 100 * len(PAYLOAD)
        # Held up by the copy, a few would have waited for most of it.
        assert sorted(waited_s)[len(waited_s) // 2] < 0.05


async def test_a_directory_with_a_broker_is_refused_and_a_bad_one_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"embedded:{tmp_path / 'log'}"
    async with App(url, durability="os") as app:
        await app.publish(Step("k", 0))
        with pytest.raises(Refused, match="expected a directory without a broker"):
            await app.backup(str(tmp_path / "log"))
        # SQLite would play it into the copy, which would then be the broker that was there.
        (tmp_path / "left").mkdir()
        (tmp_path / "left" / "eventlane.db-wal").write_bytes(b"")
        with pytest.raises(Refused, match=r"got one that has eventlane\.db-wal"):
            await app.backup(str(tmp_path / "left"))
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="expected a directory that can be written to"):
            await app.backup(str(tmp_path / "file"))
        capsys.readouterr()
        copy = str(tmp_path / "copy")
        assert await asyncio.to_thread(main, ["--broker", url, "backup", copy, "--json"]) == 0
        assert f'"directory": "{copy}"' in capsys.readouterr().out
    check_names(tmp_path, {"log", "left", "file", "copy"})
