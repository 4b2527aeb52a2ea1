"""The check-up: what it finds, that it changes nothing, and that it never fails itself."""

import asyncio
import fcntl
import json
import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from eventlane import App, ConfigError, Context, Finding, Limits, Topic, event
from eventlane.brokers import connect
from eventlane.brokers.embedded import checkup, filesystem
from eventlane.brokers.embedded.file import FORMAT_VERSION
from eventlane.brokers.embedded.members import Heartbeat
from eventlane.cli import main, parser
from eventlane.clock import SystemClock
from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import TOPIC, record
from tests.unit.cli_shop import Ordered, Shop, in_thread, run

DAY_S = 86_400


@pytest.fixture(autouse=True)
def local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine that runs the tests may have another."""
    table = tmp_path / "mounts"
    table.write_text("/dev/sda1 / ext4 rw,relatime 0 0\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", table)
    usage = SimpleNamespace(total=100 * 10**9, free=50 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    return table


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
async def shop(directory: Path) -> Shop:
    """Its workers have ended, and all is handled."""
    shop = Shop(directory)
    await shop.handle_all(Ordered("ada", 1))
    return shop


async def wrong(app: App, **options: Any) -> list[Finding]:
    """What is not well."""
    found = await app.doctor(**options)
    for each in found:
        if each.command is not None and each.command.startswith("eventlane"):
            parser().parse_args(shlex.split(each.command)[1:])
    return [each for each in found if each.level != "ok"]


async def only(app: App, check: str, level: str, **options: Any) -> Finding:
    """The one thing that is not well."""
    (found,) = await wrong(app, **options)
    assert (found.check, found.level) == (check, level), found
    return found


def later(app: App, delay_s: float) -> App:
    return app.replace(clock=ManualClock(SystemClock().now_ms() + int(delay_s * 1000)))


def change(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "eventlane.db", isolation_level=None)) as connection:
        for each in statements:
            connection.execute(each)


def damage(path: Path, content: bytes) -> None:
    """Put something else in the place of the file, and of what belongs to it."""
    for old in path.parent.glob("eventlane.db*"):
        old.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


def permit(mode: int, *paths: Path) -> None:
    for path in paths:
        path.chmod(mode)


def mounted(table: Path, line: str) -> None:
    table.write_text(f"something / {line} 0 0\n")


# --- that it only looks -----------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    """All that a broker is; the index of its write-ahead log and the locks are of the moment."""
    names = ("eventlane.db", "eventlane.db-wal")
    files = [path for name in names if (path := directory / name).exists()]
    return {path.name: content for path in files if (content := path.read_bytes())}


async def test_a_broker_in_use_is_well_and_stays_as_it_is(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(directory)
    async with shop.open_for_business():
        await shop.app.publish(Ordered("ada", 1))
        await shop.app.run_until_idle(timeout_s=20)
        before = contents(directory)
        assert before.keys() == {"eventlane.db", "eventlane.db-wal"}
        for option in ("--json", "--full"):
            assert await in_thread(shop, "doctor", option) == 0
        assert "All is well." in capsys.readouterr().out
        assert await wrong(shop.app, full=True) == []
        assert contents(directory) == before
        await shop.app.publish(Ordered("ada", 2))  # its locks are its own still
        await shop.app.run_until_idle(timeout_s=20)
    assert len(shop.handled) == 2


async def test_a_broker_that_nobody_has_open_stays_as_it_is(shop: Shop, directory: Path) -> None:
    before = contents(directory)
    assert before.keys() == {"eventlane.db"}
    assert await wrong(shop.app, full=True) == []
    assert contents(directory) == before
    await shop.handle_all(Ordered("bob", 1))


async def test_every_finding_is_told_to_people_and_to_programs(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await in_thread(shop, "groups", "pause", "stock", "--reason", "stocktaking") == 0
    capsys.readouterr()
    assert await in_thread(shop, "doctor") == 0
    told = capsys.readouterr().out
    assert "\nwarning  groups: stock is paused: stocktaking." in told
    assert f"do: eventlane --broker {shop.url} groups resume stock" in " ".join(told.split())
    assert "0 errors, 1 warning." in told
    assert await in_thread(shop, "doctor", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["check"] for each in listed} >= {"versions", "disk", "integrity", "groups"}
    (warning,) = [each for each in listed if each["level"] == "warning"]
    assert warning["command"].endswith("groups resume stock")


def test_where_there_is_no_broker_none_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path / "typo")
    assert run(shop, "doctor") == 2
    assert "expected a directory with a broker" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected a directory with a broker"):
        asyncio.run(shop.app.doctor())
    with pytest.raises(ConfigError, match="each process has for itself"):
        asyncio.run(App("embedded::memory:").doctor())
    assert not (tmp_path / "typo").exists()
    (tmp_path / "odd" / "eventlane.db").mkdir(parents=True)
    with pytest.raises(ConfigError, match="expected a directory with a broker"):
        asyncio.run(Shop(tmp_path / "odd").app.doctor())


# --- the file ---------------------------------------------------------------------------------


async def fails(shop: Shop, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says where it finds an error."""
    capsys.readouterr()
    assert await in_thread(shop, "doctor", *options) == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out
    return " ".join(told.out.split())


async def test_a_file_that_is_no_database_is_said_to_be_none(
    shop: Shop, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(directory / "eventlane.db", b"a diary" * 1000)
    assert "error file:" in (told := await fails(shop, capsys))
    assert "the file is no SQLite database" in told


@pytest.mark.parametrize("how", ["zeroed", "noise", "cut"])
async def test_damaged_pages_are_found_and_no_check_fails_of_them(
    how: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(directory)
    await shop.handle_all(*(Ordered(f"c{each}", each % 2) for each in range(20)))
    path = directory / "eventlane.db"
    whole = path.read_bytes()
    page_bytes = 16_384
    for page in range(1, len(whole) // page_bytes):
        start = page * page_bytes
        filling = {"zeroed": bytes(page_bytes), "noise": b"\xa5" * page_bytes, "cut": b""}[how]
        rest = b"" if how == "cut" else whole[start + page_bytes :]
        damage(path, whole[:start] + filling + rest)
        found = await wrong(shop.app, full=True)
        told = [each.message for each in found if each.check in ("file", "integrity")]
        assert "damaged" in told[0], f"page {page}: {found}"
    assert "is damaged" in await fails(shop, capsys, "--full")


async def test_a_damaged_batch_is_found_when_every_event_is_read(
    shop: Shop, directory: Path
) -> None:
    change(directory, "UPDATE batch SET records = x'93'")
    found = (await wrong(shop.app, full=True))[0]
    assert (found.check, found.level) == ("integrity", "error")
    assert "the batch of topic 'orders', partition" in found.message


async def test_a_newer_format_is_said_to_need_another_eventlane(
    shop: Shop, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(directory, f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    assert "newer Eventlane has written; upgrade this one." in await fails(shop, capsys)


async def test_an_older_format_is_to_be_copied_before_it_is_opened(
    shop: Shop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "FORMAT_VERSION", FORMAT_VERSION + 1)
    found = await only(shop.app, "format", "warning")
    assert f"brings it to format {FORMAT_VERSION + 1}" in found.message
    assert found.command == f"cp -a {directory} {directory}.format-{FORMAT_VERSION}"


async def test_an_empty_file_and_another_applications_are_told_apart(
    shop: Shop, directory: Path
) -> None:
    damage(directory / "eventlane.db", b"")
    assert "is empty" in (await only(shop.app, "format", "warning")).message
    change(directory, "CREATE TABLE something (x)")
    assert "another application" in (await only(shop.app, "file", "error")).message


async def test_a_journal_that_somebody_has_changed_is_found(shop: Shop, directory: Path) -> None:
    change(directory, "PRAGMA journal_mode = DELETE")
    found = await only(shop.app, "format", "error")
    assert "journal_mode is delete, expected wal" in found.message


async def test_a_write_ahead_log_that_grew_is_found(shop: Shop, directory: Path) -> None:
    async with shop.app:
        with (directory / "eventlane.db-wal").open("r+b") as wal:
            wal.truncate(100 * 1024 * 1024)
        found = await only(shop.app, "wal", "warning")
    assert "has 104.9 MB" in found.message


@pytest.mark.parametrize("behind_s", [3600, 2 * DAY_S])
async def test_a_clock_that_was_set_back_is_found(shop: Shop, behind_s: int) -> None:
    found = await only(later(shop.app, -behind_s - 20), "clock", "warning")
    assert f"{'60 min' if behind_s == 3600 else '2 d'} behind the newest entry" in found.message
    assert await wrong(later(shop.app, -30)) == []


# --- what it stands on ------------------------------------------------------------------------


async def test_files_that_others_may_read_or_replace_are_found(shop: Shop, directory: Path) -> None:
    permit(0o644, directory / "eventlane.db")
    found = await only(shop.app, "permissions", "warning")
    assert found.command == f"chmod 600 {directory}/eventlane.db"
    names = ("eventlane.db", "eventlane.db-wal", "eventlane.db-shm")
    permit(0o600, *(directory / name for name in names))
    permit(0o777, directory)
    assert (await only(shop.app, "permissions", "warning")).command == f"chmod go-w {directory}"
    permit(0o755, directory)
    assert await wrong(shop.app) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
async def test_a_file_that_another_user_has_made_is_found(shop: Shop, directory: Path) -> None:
    os.chown(directory / "eventlane.turn", 4711, 4711)
    found = await only(shop.app, "permissions", "error")
    assert found.command == f"chown {os.getuid()} {directory}/eventlane.turn"


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("nfs4 rw", "error", "a network file system"),
        ("9p rw", "warning", "may not hold"),
        ("tmpfs rw", "warning", "lost when the machine restarts"),
        ("overlay rw", "warning", "Mount a volume"),
        ("ext4 rw,nobarrier", "warning", "without write barriers"),
    ],
)
async def test_a_file_system_that_keeps_no_promise_is_found(
    kind: str, level: str, words: str, shop: Shop, local_disk: Path
) -> None:
    mounted(local_disk, kind)
    assert words in (await only(shop.app, "file system", level)).message


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [
        (100, 9, "warning"),
        (100, 0.5, "error"),
        (5000, 20, "ok"),  # a small part of much
        (5, 2, "ok"),  # a large part of little
    ],
)
async def test_a_disk_that_is_nearly_full_is_found(
    total: float, free: float, level: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=int(total * 1e9), free=int(free * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (found,) = [each for each in await shop.app.doctor() if each.check == "disk"]
    assert found.level == level


async def test_a_path_that_is_too_long_for_sockets_is_found_where_a_link_is_too_long_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path / ("long" * 30))
    await shop.handle_all(Ordered("ada", 1))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert await wrong(shop.app) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("deep" * 30)))
    assert "look 20 times a second" in (await only(shop.app, "sockets", "warning")).message


# --- who uses it ------------------------------------------------------------------------------


@contextmanager
def member(directory: Path, *, host: str, age_s: float, is_locked: bool) -> Iterator[None]:
    """The file of a process that is not this one."""
    beat = Heartbeat("stock", 4711, host, "shop", SystemClock.monotonic_s() - age_s)
    (directory / "members").mkdir(exist_ok=True)
    path = directory / "members" / "a"
    path.write_bytes(msgspec.json.encode(beat) + b"\n")
    file = os.open(path, os.O_RDONLY)
    if is_locked:
        fcntl.flock(file, fcntl.LOCK_EX)
    yield
    os.close(file)
    path.unlink()


async def test_a_member_that_is_frozen_is_found_and_a_dead_one_is_nothing(
    shop: Shop, directory: Path
) -> None:
    here = os.uname().nodename
    with member(directory, host=here, age_s=60, is_locked=True):
        found = await only(shop.app, "members", "error")
        assert "Process 4711 of group stock" in found.message
        assert found.command == "kill -KILL 4711"
    with member(directory, host=here, age_s=60, is_locked=False):
        assert await wrong(shop.app) == []


async def test_a_member_on_another_machine_is_found_and_a_container_of_this_one_is_none(
    shop: Shop, directory: Path, local_disk: Path
) -> None:
    with member(directory, host="elsewhere", age_s=1, is_locked=False):
        found = await only(shop.app, "members", "error")
        assert "two machines use the directory" in found.message
        assert await wrong(later(shop.app, 600)) == []  # it is what a copied directory has
    with member(directory, host="elsewhere", age_s=1, is_locked=True):
        assert await wrong(shop.app) == []
        mounted(local_disk, "virtiofs rw")
        assert {each.check for each in await wrong(shop.app)} == {"file system", "members"}


async def test_an_abandoned_group_is_found_with_what_it_costs(shop: Shop) -> None:
    async with shop.app:
        await shop.app.publish_many(Ordered("ada", each) for each in range(1000))
    found = await wrong(shop.app)
    assert [each.message.partition(" (since")[0] for each in found] == [
        "No process handles mails",
        "No process handles stock",
    ]
    found = await wrong(later(shop.app, 2 * DAY_S))
    assert "mails is abandoned: no process has handled it for 2 d. The log keeps " in (
        found[0].message
    )
    assert "kB for it." in found[0].message
    assert found[0].command == f"eventlane --broker {shop.url} groups remove mails --dry-run"


async def test_a_type_whose_last_handler_has_ended_is_found(shop: Shop, directory: Path) -> None:
    async with shop.open_for_business():
        change(directory, "INSERT INTO member_type VALUES ('stock', 'dead', 'orders', 'Returned')")
        found = await only(shop.app, "groups", "warning")
    assert "no live member with a handler for Returned of topic orders" in found.message
    assert found.command == f"eventlane --broker {shop.url} groups forget stock Returned"


async def test_a_topic_without_groups_is_found_unless_it_is_bounded(
    shop: Shop, directory: Path
) -> None:
    broker = await connect(shop.url)
    await broker.ensure_topic(Topic(TOPIC))
    await broker.publish(TOPIC, record("a", "x" * 2000))
    await broker.aclose()
    assert f"No group handles {TOPIC}, and nothing bounds it: the log keeps 2" in (
        (await only(shop.app, "topics", "warning")).message
    )
    change(directory, "UPDATE topic SET retention_s = 60")
    assert await wrong(shop.app) == []


@event(topic="orders", key="customer")
class Cancelled(msgspec.Struct, frozen=True):
    customer: str


async def nothing(cancelled: Cancelled, ctx: Context) -> None:
    """Handle it by doing so."""


async def test_an_event_type_that_nobody_handles_is_found(shop: Shop) -> None:
    async with shop.app:
        await shop.app.publish(Cancelled("ada"))
    await shop.handle_all()
    found = await only(shop.app, "topics", "warning")
    assert "Cancelled is on topic orders, and no group has a handler for it" in found.message
    shop.app.subscribe(Cancelled, group="refunds")(nothing)
    assert await wrong(shop.app) == []


async def test_dead_letters_that_are_forgotten_are_found(directory: Path) -> None:
    shop = Shop(directory)
    await shop.handle_all(Ordered("ada", 0))
    assert await wrong(shop.app) == []
    # The groups are seen, and the letter is old.
    change(directory, f"UPDATE letter SET dead_ms = dead_ms - {3 * DAY_S * 1000}")
    found = await only(shop.app, "letters", "warning")
    assert "stock has 1 open dead letter, the oldest for 3 d" in found.message


async def test_an_operation_that_waits_is_found(directory: Path) -> None:
    shop = Shop(directory)
    await shop.handle_all(Ordered("ada", 0))
    assert await in_thread(shop, "replay", "--group", "stock", "--reason", "mended") == 0
    found = await only(shop.app, "operations", "warning")
    assert (
        found.message
    ) == "Operation 1, a replay of 1 dead letter, waits: group 'stock' has no live member."


async def test_a_cap_that_is_near_is_found(shop: Shop) -> None:
    async with shop.app:
        await shop.app.publish_many([Ordered("a" * 100_000, 1)] * 6)  # the least cap is 1 MiB
        used = (await shop.app.status()).disk_bytes
    near = shop.app.replace(limits=Limits(disk_bytes_max=used + 10))
    (found,) = [each for each in await wrong(near) if each.check == "caps"]
    assert (found.level, "there publishing is refused" in found.message) == ("warning", True)


async def test_an_account_that_does_not_balance_is_found(shop: Shop, directory: Path) -> None:
    change(directory, "UPDATE progress SET done = done + 1 WHERE consumer_group = 'stock'")
    found = (await wrong(shop.app))[0]
    assert (found.level, "does not balance" in found.message) == ("error", True)


# --- an app -----------------------------------------------------------------------------------


async def test_an_app_that_fits_is_said_to_and_one_without_handlers_is_not_checked(
    shop: Shop,
) -> None:
    (found,) = [each for each in await shop.app.doctor() if each.check == "app"]
    assert "App 'shop' fits: 2 groups on 1 topic; durability os" in found.message
    assert all(each.check != "app" for each in await App(shop.url).doctor())


async def test_a_changed_number_of_partitions_is_found_before_the_app_starts(shop: Shop) -> None:
    found = await only(shop.app.replace(partitions=3), "app", "error")
    assert "topic 'orders': expected 2 partitions, which it has, got 3" in found.message


async def test_another_ordering_that_what_waits_does_not_allow_is_found(directory: Path) -> None:
    shop = Shop(directory)
    await shop.handle_all(Ordered("ada", 0))
    other = App(shop.url, name="shop")
    other.subscribe(Ordered, group="stock", ordering="partition")(shop.handle)
    other.subscribe(Ordered, group="mails")(shop.mail)
    found = await only(other, "app", "error")
    assert "expected ordering='key', by which dead letters" in found.message


async def test_another_app_that_claims_a_group_is_found(shop: Shop) -> None:
    other = App(shop.url, name="warehouse")
    other.subscribe(Cancelled, group="stock")(nothing)
    async with shop.open_for_business():
        found = await only(other, "app", "error")
    assert "app 'shop' runs it with handlers for Ordered on orders; got app 'warehouse'" in (
        found.message
    )


async def test_what_an_app_has_left_behind_is_found(shop: Shop) -> None:
    other = App(shop.url, name="shop")
    other.subscribe(Ordered, group="stock", topic="returns")(shop.handle)
    found = await wrong(other)
    assert [each.check for each in found] == ["app", "app"]
    assert "has handled group mails and does not declare it" in found[0].message
    assert "Group stock has a position in topic orders, which app 'shop' does not" in (
        found[1].message
    )


async def test_topics_that_are_not_created_have_to_be_there(shop: Shop) -> None:
    other = App(shop.url, name="other", create_topics=False)
    other.subscribe(Ordered, group="audit", topic="returns")(shop.mail)
    found = await only(other, "app", "error")
    assert "topic 'returns': expected it to exist" in found.message


async def test_handlers_that_contradict_each_other_are_a_finding(shop: Shop) -> None:
    other = App(shop.url, name="other")
    for _ in range(2):
        other.subscribe(Ordered, group="audit")(shop.mail)
    assert "has two handlers for Ordered" in (await only(other, "app", "error")).message


def test_an_app_is_given_by_its_module(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asyncio.run(Shop(directory).handle_all(Ordered("ada", 1)))
    (tmp_path / "doctored.py").write_text(
        "from tests.unit.cli_shop import Shop\n"
        f"app = Shop({str(directory)!r}).app.replace(partitions=5)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["--app", "doctored:app", "doctor"]) == 1
    assert "expected 2 partitions, which it has, got 5" in " ".join(capsys.readouterr().out.split())
