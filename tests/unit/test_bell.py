"""Bells: who hears them, what a ring costs the one who rings, and what there is without them."""

import asyncio
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventlane.brokers import connect
from eventlane.brokers.embedded import watch
from eventlane.brokers.embedded.bell import Bell
from eventlane.settlement import Appended, Paused
from eventlane.testing.stage import GROUP, TOPIC, acquired, record, spec, until
from eventlane.topic import Topic

NEVER_S = 1e6
MORE_THAN_A_SOCKET_TAKES = 10_000


class Ear:
    """A bell that counts how often it is heard."""

    def __init__(self, directory: Path, closing: ExitStack) -> None:
        self.bell = Bell(directory)
        closing.callback(self.bell.close)
        self.heard = 0
        self.rest_s = 0.0
        self.bell.listen(self._hear)

    def _hear(self) -> float:
        self.heard += 1
        return self.rest_s

    async def hears(self) -> None:
        await until(lambda: self.heard > 0, "that the bell is heard")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bells(tmp_path: Path) -> Path:
    return tmp_path / "bells"


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def sockets(directory: Path) -> set[str]:
    """The bells that have sockets."""
    return {path.parent.name for path in directory.rglob("*") if path.is_socket()}


def ringer(directory: Path, closing: ExitStack) -> Bell:
    bell = Bell(directory)
    closing.callback(bell.close)
    return bell


async def test_everybody_hears_a_ring_but_the_one_who_rings(
    bells: Path, closing: ExitStack
) -> None:
    one, two, three = (Ear(bells, closing) for _ in range(3))
    one.bell.ring()
    await two.hears()
    await three.hears()
    assert one.heard == 0


async def test_who_comes_later_is_rung_at_once(bells: Path, closing: ExitStack) -> None:
    bell = ringer(bells, closing)
    bell.ring()  # nobody is there, not even the directory
    ear = Ear(bells, closing)
    bell.ring()
    await ear.hears()
    late = Ear(bells, closing)
    bell.ring()
    await late.hears()


async def test_a_ring_waits_for_nobody_and_many_are_heard_as_few(
    bells: Path, closing: ExitStack
) -> None:
    ear = Ear(bells, closing)
    bell = ringer(bells, closing)
    for _ in range(MORE_THAN_A_SOCKET_TAKES):  # while the listener's event loop does not turn
        bell.ring()
    await ear.hears()
    assert ear.heard < MORE_THAN_A_SOCKET_TAKES / 10


async def test_rings_while_a_listener_rests_are_heard_as_one_afterwards(
    bells: Path, closing: ExitStack
) -> None:
    ear = Ear(bells, closing)
    ear.rest_s = 0.05
    bell = ringer(bells, closing)
    bell.ring()
    await ear.hears()
    for _ in range(5):
        bell.ring()
    await until(lambda: ear.heard > 1, "that it is heard after the rest")
    assert ear.heard == 2
    ear.bell.hush()  # while it rests again
    assert names(bells) == []


async def test_who_listens_no_more_leaves_nothing_behind(bells: Path, closing: ExitStack) -> None:
    ear, other = Ear(bells, closing), Ear(bells, closing)
    bell = ringer(bells, closing)
    bell.ring()
    await other.hears()
    ear.bell.hush()
    assert len(names(bells)) == 1
    heard, other.heard = ear.heard, 0
    bell.ring()
    await other.hears()
    assert ear.heard == heard
    other.bell.close()
    assert names(bells) == []


async def test_the_socket_of_a_killed_process_is_swept(bells: Path, closing: ExitStack) -> None:
    ear = Ear(bells, closing)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(bells / "dead"))
    bell = ringer(bells, closing)
    bell.ring()
    await ear.hears()
    assert not (bells / "dead").exists()


async def test_what_cannot_be_rung_is_said_once_and_others_are_rung_nevertheless(
    bells: Path, closing: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear(bells, closing)
    (bells / "a directory").mkdir()
    (bells / "z directory").mkdir()
    bell = ringer(bells, closing)
    for _ in range(3):
        ear.heard = 0
        bell.ring()
        await ear.hears()
    assert caplog.text.count("cannot be rung") == 1


async def test_sockets_are_private(bells: Path, closing: ExitStack) -> None:
    Ear(bells, closing)
    (name,) = names(bells)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (bells, bells / name)]
    assert modes == [0o700, 0o600]


async def test_a_path_that_is_too_long_for_a_socket_is_reached_by_a_link(
    tmp_path: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="links-", dir="/tmp")))
    monkeypatch.setattr("tempfile.tempdir", str(links))
    bells = tmp_path / ("long" * 30) / ("longer" * 20) / "bells"
    ear = Ear(bells, closing)
    bell = ringer(bells, closing)
    bell.ring()
    await ear.hears()
    assert len(names(links)) == 2  # each process has its own
    bell.close()
    ear.bell.close()
    assert names(links) == []
    assert names(bells) == []


@pytest.fixture
def only_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks who was not rung."""
    monkeypatch.setattr(watch, "_LOOK_S", NEVER_S)


async def two_brokers(directory: Path) -> tuple[Any, Any]:
    """As two processes would have them."""
    one, two = [await connect(f"embedded:{directory}") for _ in range(2)]
    await one.ensure_topic(Topic(TOPIC, partitions=2))
    return one, two


async def next_change(consumer: Any, kind: type) -> Any:
    async with asyncio.timeout(10):
        while True:
            for change in await consumer.changes():
                if isinstance(change, kind):
                    return change


@pytest.mark.usefixtures("only_bells")
async def test_an_append_wakes_who_waits_for_it_elsewhere(tmp_path: Path) -> None:
    one, two = await two_brokers(tmp_path)
    async with asyncio.timeout(10):
        for number in range(3):
            waiting = asyncio.ensure_future(two.wait_for_append(TOPIC))
            await asyncio.wait((waiting,), timeout=0)
            await one.publish(TOPIC, record("a", str(number)))
            await waiting
    await one.aclose()
    await two.aclose()


@pytest.mark.usefixtures("only_bells")
async def test_an_append_a_pause_and_a_departure_reach_the_consumers_of_other_processes(
    tmp_path: Path,
) -> None:
    one, two = await two_brokers(tmp_path)
    consumer = await two.join(spec())
    await acquired(consumer, 2)
    await one.publish(TOPIC, record("a", "1"))
    assert (await next_change(consumer, Appended)).topic == TOPIC
    await one.pause(GROUP, actor="me", reason="a trial")
    assert "a trial" in (await next_change(consumer, Paused)).reason
    heir = await one.join(spec())
    waiting = asyncio.ensure_future(acquired(heir, 2))
    await asyncio.wait((waiting,), timeout=0)
    await consumer.leave()
    assert (await waiting).epoch == 2
    await one.aclose()
    await two.aclose()


async def test_who_only_publishes_has_no_socket_and_a_closed_broker_leaves_none(
    tmp_path: Path,
) -> None:
    one, two = await two_brokers(tmp_path)
    await one.publish(TOPIC, record("a", "1"))
    assert not (tmp_path / "bells").exists()
    waiting = asyncio.ensure_future(two.wait_for_append(TOPIC))
    await asyncio.wait((waiting,), timeout=0)
    assert sockets(tmp_path) == {"appended", "altered"}
    await two.aclose()
    assert sockets(tmp_path) == set()
    await asyncio.wait((waiting,))  # what was published before has woken it, or the end has
    await one.aclose()


async def test_where_there_can_be_no_bell_the_file_is_looked_at_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bells").touch()  # a file, where a directory would have to be
    one, two = await two_brokers(tmp_path)
    consumer = await two.join(spec())
    await acquired(consumer, 2)
    async with asyncio.timeout(10):
        for number in range(3):
            await one.publish(TOPIC, record("a", str(number)))
            assert await next_change(consumer, Appended)
    assert caplog.text.count("other processes cannot ring this one") == 1
    await two.aclose()
    await one.aclose()
