"""Several processes on one file: concurrent writers, and owners that are killed or frozen."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import eventlane
from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.errors import StorageError
from eventlane.settlement import Acquired
from eventlane.testing.stage import TOPIC, record, spec
from eventlane.topic import Topic

LEASE_S = 1.0
LIMITS = Limits(lease_s=LEASE_S, stall_s_max=0.5)
PATIENCE_S = 15


@asynccontextmanager
async def process(directory: Path, *arguments: str) -> AsyncIterator[Process]:
    script = Path(__file__).with_name("embedded_process.py")
    source = Path(eventlane.__file__).parent.parent
    running = await asyncio.create_subprocess_exec(
        sys.executable, script, directory, *arguments, stdout=PIPE, env={"PYTHONPATH": str(source)}
    )
    try:
        assert await said(running) == "open"
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def said(running: Process) -> str:
    assert running.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await running.stdout.readline()).decode().strip()


async def all_said(running: Process) -> list[str]:
    assert running.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await running.stdout.read()).decode().splitlines()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Any]:
    broker = await connect(f"embedded:{tmp_path}", limits=LIMITS)
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    yield broker
    await broker.aclose()


async def log_of(broker: Any) -> list[bytes]:
    values: list[bytes] = []
    while True:
        found = await broker.fetch(TOPIC, 0, len(values), 1000)
        if not found.records:
            return values
        assert list(found.offsets) == list(range(len(values), len(values) + len(found.records)))
        values += [each.value for each in found.records]


async def seconds_until_taken_over(broker: Any) -> float:
    """How long it takes a waiting member to own the partition."""
    loop = asyncio.get_running_loop()
    consumer = await broker.join(spec())
    began_s = loop.time()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            consumer.beat(0, 0)
            for change in await consumer.changes():
                if isinstance(change, Acquired):
                    assert change.epoch == 2
                    return loop.time() - began_s


async def test_processes_that_publish_at_once_lose_nothing_and_leave_no_gap(
    broker: Any, tmp_path: Path
) -> None:
    async with (
        process(tmp_path, "publish", "a", "400") as one,
        process(tmp_path, "publish", "b", "400") as two,
    ):
        mine = [await broker.publish(TOPIC, record("c", f"c:{number}")) for number in range(100)]
        outputs = [await all_said(one), await all_said(two)]
    values = await log_of(broker)
    assert len(values) == 900
    for key, output in zip("ab", outputs, strict=True):
        assert output[-1] == "closed"
        for line in output[:-1]:
            number, _, offset = line.split()
            assert values[int(offset)] == f"{key}:{number}".encode()
    assert [values[position.offset] for position in mine] == [
        f"c:{number}".encode() for number in range(100)
    ]
    for key in "abc":
        own = [int(value[2:]) for value in values if value.startswith(key.encode())]
        assert own == list(range(len(own)))


async def test_what_was_acknowledged_survives_a_kill(broker: Any, tmp_path: Path) -> None:
    async with process(tmp_path, "publish", "a", "1000000") as publisher:
        acknowledged = [(await said(publisher)).split() for _ in range(300)]
        publisher.send_signal(signal.SIGKILL)
        acknowledged += [line.split() for line in (await all_said(publisher))[:-1]]
    values = await log_of(broker)
    assert len(values) >= len(acknowledged)
    for number, _, offset in acknowledged:
        assert values[int(offset)] == f"a:{number}".encode()
    assert (await broker.publish(TOPIC, record("a", "next"))).offset == len(values)


async def test_processes_may_open_a_new_file_at_the_same_time(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    processes = [process(directory, "publish", key, "5") for key in "abcd"]
    entered = await asyncio.gather(*(each.__aenter__() for each in processes))
    outputs = await asyncio.gather(*(all_said(each) for each in entered))
    for each in processes:
        await each.__aexit__(None, None, None)
    assert [output[-1] for output in outputs] == ["closed"] * 4
    broker = await connect(f"embedded:{directory}")
    assert len(await log_of(broker)) == 20
    await broker.aclose()


async def test_a_killed_owner_is_replaced_at_once(broker: Any, tmp_path: Path) -> None:
    async with process(tmp_path, "own") as owner:
        assert await said(owner) == "acquired 1"
        waiting = asyncio.ensure_future(seconds_until_taken_over(broker))
        await asyncio.wait([waiting], timeout=0.1)
        owner.send_signal(signal.SIGKILL)
        assert await waiting < 0.1 + 1


async def test_a_frozen_owner_is_replaced_after_its_lease_and_fenced(
    broker: Any, tmp_path: Path
) -> None:
    async with process(tmp_path, "own") as owner:
        assert await said(owner) == "acquired 1"
        owner.send_signal(signal.SIGSTOP)
        assert await seconds_until_taken_over(broker) < LEASE_S + 1
        owner.send_signal(signal.SIGCONT)
        assert await said(owner) == "lost"
        assert await said(owner) == f"fenced {TOPIC} 0"
        assert (await broker.status()).groups["group"].done == 0


async def test_a_process_that_is_frozen_within_a_commit_is_named_and_may_be_killed(
    broker: Any, tmp_path: Path
) -> None:
    async with process(tmp_path, "hold") as holder:
        assert await said(holder) == "locked"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(StorageError, match=f"process {holder.pid} has held the lock for 1 s"):
            await broker.publish(TOPIC, record("a", "1"))
        waiting = broker.publish(TOPIC, record("a", "2"))
        holder.send_signal(signal.SIGKILL)
        assert (await waiting).offset == 0
