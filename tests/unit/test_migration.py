"""A file of an older format is brought up to date when it is opened, or refused with the reason."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventlane.brokers import connect
from eventlane.brokers.embedded import file, migration
from eventlane.brokers.embedded.file import FORMAT_VERSION
from eventlane.brokers.embedded.migration import FIRST_FORMAT
from eventlane.errors import StorageError
from eventlane.testing.stage import TOPIC, record
from eventlane.topic import Topic
from tests.data.record import DATA, account, app_of, restore

RELEASED = range(FIRST_FORMAT, FORMAT_VERSION + 1)
NEXT = FORMAT_VERSION + 1


def stored(directory: Path, question: str) -> Any:
    with closing(sqlite3.connect(directory / "eventlane.db")) as connection:
        return connection.execute(question).fetchall()


def schema(directory: Path) -> list[tuple[str, str]]:
    rows = stored(directory, "SELECT name, coalesce(sql, '') FROM sqlite_master ORDER BY name")
    return [(name, " ".join(sql.split())) for name, sql in rows]


@pytest.fixture
def next_format(monkeypatch: pytest.MonkeyPatch) -> Callable[[migration.Step], None]:
    """Stands for a later Eventlane, with one step more."""

    def with_step(step: migration.Step) -> None:
        monkeypatch.setattr(file, "FORMAT_VERSION", NEXT)
        monkeypatch.setattr(migration, "STEPS", {**migration.STEPS, FORMAT_VERSION: step})

    return with_step


def add_note(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE topic ADD COLUMN note TEXT NOT NULL DEFAULT ''")
    connection.execute("UPDATE topic SET note = 'old'")


async def fill(directory: Path) -> None:
    broker = await connect(f"embedded:{directory}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await broker.publish(TOPIC, record("a", "1"))
    await broker.aclose()


# --- files of released formats ----------------------------------------------------------------


def test_there_is_a_file_and_a_step_for_every_released_format() -> None:
    assert [DATA / f"format-{each}.sql" for each in RELEASED] == sorted(DATA.glob("format-*.sql"))
    assert set(migration.STEPS) == set(RELEASED[:-1])


@pytest.mark.parametrize("version", RELEASED)
async def test_a_file_of_a_released_format_is_opened_with_all_that_it_has(
    version: int, tmp_path: Path
) -> None:
    restore((DATA / f"format-{version}.sql").read_text("utf-8"), tmp_path)
    assert await account(tmp_path) == json.loads((DATA / f"format-{version}.json").read_text())
    assert stored(tmp_path, "PRAGMA user_version") == [(FORMAT_VERSION,)]
    assert stored(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    (tmp_path / "new").mkdir()
    await (await connect(f"embedded:{tmp_path / 'new'}")).aclose()
    assert schema(tmp_path) == schema(tmp_path / "new")


@pytest.mark.parametrize("version", RELEASED)
async def test_a_file_of_a_released_format_goes_on_where_it_was(
    version: int, tmp_path: Path
) -> None:
    restore((DATA / f"format-{version}.sql").read_text("utf-8"), tmp_path)
    app = app_of(tmp_path)
    async with app:
        before = (await app.status()).groups["stock"]
        await app.run_until_idle(timeout_s=20)
        status = await app.status()
    stock = status.groups["stock"]
    # Its last replay waited for a process.
    assert (before.dead, stock.dead, stock.done) == (1, 0, before.done + 1)
    assert all(group.balances for group in status.groups.values())


# --- the mechanism ----------------------------------------------------------------------------


async def test_an_older_format_is_brought_up_to_date_and_loses_nothing(
    tmp_path: Path,
    next_format: Callable[[migration.Step], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fill(tmp_path)
    next_format(add_note)
    broker = await connect(f"embedded:{tmp_path}")
    assert len((await broker.fetch(TOPIC, 0, 0, 10)).records) == 1
    assert (await broker.publish(TOPIC, record("a", "2"))).offset == 1
    other = await connect(f"embedded:{tmp_path}")  # nobody has to be alone with it any more
    await other.aclose()
    await broker.aclose()
    assert stored(tmp_path, "SELECT note FROM topic") == [("old",)]
    assert stored(tmp_path, "PRAGMA user_version") == [(NEXT,)]
    assert stored(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    assert caplog.text.count(f"from format {FORMAT_VERSION} to format {NEXT}") == 1


async def test_a_step_that_fails_changes_nothing(
    tmp_path: Path, next_format: Callable[[migration.Step], None]
) -> None:
    await fill(tmp_path)

    def fail(connection: sqlite3.Connection) -> None:
        add_note(connection)
        connection.execute("UPDATE missing SET a = 1")

    before = schema(tmp_path)
    next_format(fail)
    with pytest.raises(StorageError, match="no such table: missing"):
        await connect(f"embedded:{tmp_path}")
    assert schema(tmp_path) == before
    assert stored(tmp_path, "PRAGMA user_version") == [(FORMAT_VERSION,)]


async def test_while_another_process_has_it_open_it_is_not_touched_and_that_one_is_named(
    tmp_path: Path, next_format: Callable[[migration.Step], None]
) -> None:
    await fill(tmp_path)
    publisher = (
        "import asyncio, sys\n"
        "from eventlane.brokers import connect\n"
        "async def main():\n"
        f"    broker = await connect('embedded:{tmp_path}')\n"
        "    print('open', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    await broker.aclose()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", publisher, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert await child.stdout.readline() == b"open\n"
    next_format(add_note)
    who = str(child.pid) if sys.platform == "linux" else "lsof"
    with pytest.raises(StorageError, match=rf"no other process to have it open.*{who}.*cp -a"):
        await connect(f"embedded:{tmp_path}")
    assert stored(tmp_path, "PRAGMA user_version") == [(FORMAT_VERSION,)]
    child.stdin.close()
    assert await child.wait() == 0
    await (await connect(f"embedded:{tmp_path}")).aclose()
    assert stored(tmp_path, "PRAGMA user_version") == [(NEXT,)]


async def test_two_that_open_it_at_once_migrate_it_once(
    tmp_path: Path, next_format: Callable[[migration.Step], None]
) -> None:
    await fill(tmp_path)
    steps = []

    def note(connection: sqlite3.Connection) -> None:
        steps.append(1)
        add_note(connection)

    next_format(note)
    brokers = await asyncio.gather(*(connect(f"embedded:{tmp_path}") for _ in range(4)))
    for broker in brokers:
        await broker.aclose()
    assert steps == [1]
    assert stored(tmp_path, "PRAGMA user_version") == [(NEXT,)]


@pytest.mark.parametrize("version", range(1, FIRST_FORMAT))
async def test_a_format_that_was_never_released_is_refused(version: int, tmp_path: Path) -> None:
    await fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / "eventlane.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StorageError, match=f"got format {version}, which no released Eventlane"):
        await connect(f"embedded:{tmp_path}")
