"""Processes that wake each other, though none of them looks by itself; and who is killed."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventlane.brokers import connect
from eventlane.brokers.embedded.bell import Bell
from eventlane.testing.stage import TOPIC, record, until
from eventlane.topic import Topic

PATIENCE_S = 15

LISTENER = """
import asyncio, sys
from eventlane.brokers import connect
from eventlane.brokers.embedded import watch
from eventlane.testing.stage import TOPIC, record
watch._LOOK_S = 1e6  # only a ring wakes it
async def main():
    broker = await connect(f"embedded:{sys.argv[1]}")
    while True:
        waiting = asyncio.ensure_future(broker.wait_for_append(TOPIC))
        await asyncio.wait((waiting,), timeout=0)
        print("listens", flush=True)
        await waiting
        print("woken", flush=True)
        if sys.argv[2:] == ["answers"]:
            await broker.publish(TOPIC, record("a", "answer"))
asyncio.run(main())
"""

PARENT = """
import asyncio, os, sys
from pathlib import Path
from eventlane.brokers.embedded.bell import Bell
async def main():
    bell = Bell(Path(sys.argv[1]))
    bell.listen(lambda: 0.0)
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.read()  # lives until the test ends it
        os._exit(0)
    os._exit(1)  # as kill -9 does
asyncio.run(main())
"""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    yield broker
    await broker.aclose()


async def says(process: asyncio.subprocess.Process, word: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        assert (await process.stdout.readline()).decode().strip() == word


@asynccontextmanager
async def listener(directory: Path, *how: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LISTENER, str(directory), *how), stdout=subprocess.PIPE
    )
    try:
        await says(process, "listens")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ring(directory: Path) -> None:
    bell = Bell(directory)
    bell.ring()
    bell.close()


def sockets(directory: Path) -> int:
    return sum(path.is_socket() for path in directory.rglob("*"))


async def test_an_append_wakes_another_process_that_would_not_look_by_itself(
    broker: Any, tmp_path: Path
) -> None:
    async with listener(tmp_path) as one, listener(tmp_path) as two:
        for number in range(10):
            await broker.publish(TOPIC, record("a", str(number)))
            for process in (one, two):
                await says(process, "woken")
                await says(process, "listens")


async def test_an_append_by_another_process_wakes_this_one(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.watch._LOOK_S", 1e6)
    async with listener(tmp_path, "answers"), asyncio.timeout(PATIENCE_S):
        await broker.publish(TOPIC, record("a", "question"))
        answered = 0
        while not answered:
            # This one's own append may wake it as well.
            await broker.wait_for_append(TOPIC)
            records = (await broker.fetch(TOPIC, 0, 0, 10)).records
            answered = [each.value for each in records].count(b"answer")


async def test_a_killed_listener_is_forgotten_and_others_are_woken(
    broker: Any, tmp_path: Path
) -> None:
    async with listener(tmp_path) as one, listener(tmp_path) as two:
        assert sockets(tmp_path) == 4
        one.send_signal(signal.SIGKILL)
        await one.wait()
        await broker.publish(TOPIC, record("a", "1"))
        await says(two, "woken")
        await says(two, "listens")
        # Nothing was altered: that bell was not rung.
        await until(lambda: sockets(tmp_path) == 3, "that one socket is swept")


async def test_a_frozen_listener_holds_up_nobody_and_is_woken_when_it_goes_on(
    broker: Any, tmp_path: Path
) -> None:
    async with listener(tmp_path) as frozen:
        frozen.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(100):
                await broker.publish(TOPIC, record("a", str(number)))
        frozen.send_signal(signal.SIGCONT)
        await says(frozen, "woken")


def test_a_forked_child_does_not_keep_the_socket_of_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "forked\n"
        parent.wait()
        assert sockets(tmp_path) == 1
        asyncio.run(ring(tmp_path))
        assert sockets(tmp_path) == 0
