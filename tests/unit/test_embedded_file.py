"""The embedded broker's file: how it is opened, and how it is refused."""

import asyncio
import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventlane import brokers
from eventlane.brokers import connect, redacted
from eventlane.brokers.embedded.file import FORMAT_VERSION
from eventlane.config import Limits
from eventlane.errors import ConfigError, StorageError, Unavailable
from eventlane.testing.stage import TOPIC, record
from eventlane.topic import Topic

QUICK = Limits(lease_s=0.2, stall_s_max=0.1)


async def test_the_directory_and_its_files_are_private(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}/new/data")
    await broker.ensure_topic(Topic(TOPIC))
    directory = tmp_path / "new" / "data"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes.keys() >= {"eventlane.db", "eventlane.db-wal", "eventlane.lock"}
    assert set(modes.values()) == {0o600}
    await broker.aclose()


def test_a_directory_that_exists_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    async def open_and_close() -> None:
        await (await connect(f"embedded:{tmp_path}")).aclose()

    asyncio.run(open_and_close())
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_memory_leaves_nothing_behind() -> None:
    async def open_and_close() -> tuple[Path, bool]:
        broker: Any = await connect("embedded::memory:")
        assert (broker.url, broker.durability) == ("embedded::memory:", "os")
        directory: Path = broker._file.directory
        was_there = directory.joinpath("eventlane.db").exists()
        await broker.aclose()
        return directory, was_there

    directory, was_there = asyncio.run(open_and_close())
    assert was_there
    assert not directory.exists()


async def test_the_strongest_durability_is_the_default(tmp_path: Path) -> None:
    for asked, offered, level in ((None, "fsync", 2), ("fsync", "fsync", 2), ("os", "os", 1)):
        broker = await connect(f"embedded:{tmp_path}", durability=asked)
        assert broker.durability == offered
        connection = broker._file.connection  # type: ignore[attr-defined]  # looks inside
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        await broker.aclose()


@pytest.mark.parametrize(
    ("url", "asked"), [("embedded:data", "replicated"), ("embedded::memory:", "fsync")]
)
async def test_a_durability_that_is_not_offered_is_refused(url: str, asked: str) -> None:
    with pytest.raises(ConfigError, match=f"expected durability .*got '{asked}'"):
        await connect(url, durability=asked)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embeded:data", "Did you mean 'embedded'"),
        ("data", "got 'data'"),
        ("sqlite:data", r"got 'sqlite:data'\.$"),
        ("embedded:", "a directory after the colon"),
        ("embedded://data", "embedded:data"),
        ("embedded:data?durability=os", "no options after the directory, got 'durability'"),
        ("kafka://u:hunter2@a:9092,b:9092", r"kafka://u:\*\*\*@a:9092,b:9092.*not in this version"),
    ],
)
async def test_a_url_that_cannot_be_served_is_refused(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refusal:
        await connect(url)
    assert "hunter2" not in str(refusal.value)


def test_an_operating_system_that_is_not_served_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "_PLATFORM", "win32")
    for url in (f"embedded:{tmp_path / 'data'}", "embedded::memory:"):
        with pytest.raises(ConfigError, match=r"expected Linux or macOS, got win32.*WSL"):
            asyncio.run(connect(url))
    assert not list(tmp_path.iterdir())


def test_eventlane_is_imported_where_there_is_no_fork_and_no_flock() -> None:
    absent = (
        "import asyncio, logging, os, random, sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'pwd', 'resource', 'termios')))\n"
        "del os.register_at_fork, os.uname, os.getuid\n"
        "import eventlane, eventlane.cli\n"
    )
    subprocess.run([sys.executable, "-c", absent], check=True)


def test_urls_are_shown_without_secrets() -> None:
    assert redacted("embedded:./data") == "embedded:./data"
    assert redacted("kafka://a:9092?sasl_password=x&acks=all") == (
        "kafka://a:9092?sasl_password=***&acks=all"
    )
    assert redacted("rabbitmq-stream://me:p@ss@h:5552/v") == "rabbitmq-stream://me:***@h:5552/v"
    assert redacted("kafka://a:1@h1,b:2@h2") == "kafka://a:***@h2"


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    await (await connect(f"embedded:{tmp_path}")).aclose()
    connection = sqlite3.connect(tmp_path / "eventlane.db")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    connection.close()
    with pytest.raises(StorageError, match=f"got format {FORMAT_VERSION + 1}.*upgrade"):
        await connect(f"embedded:{tmp_path}")


async def test_another_applications_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "eventlane.db")
    connection.execute("CREATE TABLE something (x)")
    connection.close()
    with pytest.raises(StorageError, match="another application"):
        await connect(f"embedded:{tmp_path}")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eventlane.db").write_text("a diary" * 1000)
    with pytest.raises(StorageError, match="no SQLite database"):
        await connect(f"embedded:{tmp_path}")


async def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected a directory that can be written"):
        await connect(f"embedded:{tmp_path}/file/data")


async def test_a_read_only_file_refuses_writing_and_goes_on_reading(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await broker.publish(TOPIC, record("a", "1"))
    connection = broker._file.connection  # type: ignore[attr-defined]  # looks inside
    # Stands for a disk that the system has remounted, which a test cannot do.
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="read-only"):
        await broker.publish(TOPIC, record("a", "2"))
    assert len((await broker.fetch(TOPIC, 0, 0, 10)).records) == 1
    await broker.aclose()


async def test_a_writer_that_hangs_is_named(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}", limits=QUICK)
    await broker.ensure_topic(Topic(TOPIC))
    lock = os.open(tmp_path / "eventlane.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.pwrite(lock, b"4711 1\n".ljust(40), 0)
    with pytest.raises(StorageError, match=r"process 4711 has held the lock for 0\.2 s"):
        await broker.publish(TOPIC, record("a", "1"))
    os.close(lock)
    assert (await broker.publish(TOPIC, record("a", "2"))).offset == 0
    await broker.aclose()


async def test_closing_twice_is_safe_and_a_closed_broker_says_so(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC))
    await broker.aclose()
    await broker.aclose()
    for refused in (broker.status(), broker.ends(TOPIC), broker.wait_for_append(TOPIC)):
        with pytest.raises(Unavailable, match="closed"):
            await refused


async def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    await broker.append([(TOPIC, [record("a", "1")] * 3)])
    await broker.append([(TOPIC, [record("a", "2")] * 3)])
    connection = broker._file.connection  # type: ignore[attr-defined]  # looks inside
    connection.execute("UPDATE batch SET records = x'93' WHERE base_offset = 3")
    assert len((await broker.fetch(TOPIC, 0, 0, 3)).records) == 3
    with pytest.raises(StorageError, match=f"topic '{TOPIC}', partition 0, offset 3 is damaged"):
        await broker.fetch(TOPIC, 0, 3, 10)
    connection.execute("UPDATE batch SET count = 2 WHERE base_offset = 0")
    with pytest.raises(StorageError, match=r"offset 0 is damaged.*3 records, not 2"):
        await broker.fetch(TOPIC, 0, 0, 10)
    await broker.aclose()
