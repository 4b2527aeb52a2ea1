"""kill -9 of real processes, at random moments: nothing acknowledged is lost, order holds."""

import asyncio
import math
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from eventlane import App
from eventlane.testing.stage import until
from tests.crash.processes import GROUPS, KEYS, Effect, Step, app

ROUNDS = 10
PATIENCE_S = 30.0
ROOT = Path(__file__).parents[2]


class Process:
    """A process of processes.py, and the lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.ensure_future(self._read())
        self._more = asyncio.Condition()
        self.lines: list[list[str]] = []
        self.began_s = math.inf
        """When it printed its first line."""

    @classmethod
    async def start(cls, role: str, directory: Path, first: int = 0) -> "Process":
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.crash.processes",
                role,
                str(directory),
                str(first),
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )
        )

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            assert line.endswith(b"\n"), "a line is written whole or not at all"
            self.lines.append(line.decode().split())
            self.began_s = min(self.began_s, asyncio.get_running_loop().time())
            async with self._more:
                self._more.notify_all()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._more:
            await self._more.wait_for(enough)

    async def printed(self, count: int) -> None:
        """Wait for so many lines more."""
        target = len(self.lines) + count
        await self.until(lambda: len(self.lines) >= target)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            await self.kill()

    async def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert await self._process.wait() == -signal.SIGKILL
        await self._reading


def check_runs(order: dict[str, list[int]], workers: list[Process]) -> None:
    """Order and attempts of all runs, worker after worker."""
    place = {key: {number: at for at, number in enumerate(order[key])} for key in KEYS}
    furthest: dict[tuple[str, str], int] = defaultdict(lambda: -1)
    attempts: dict[tuple[str, str, int], int] = defaultdict(lambda: 1)
    for worker in workers:
        last: dict[tuple[str, str], int] = {}
        for _, group, key, number, attempt in worker.lines:
            lane = (group, key)
            at = place[key][int(number)]
            if lane in last:
                assert at in (last[lane], last[lane] + 1), f"{lane}: {at} after {last[lane]}"
            else:
                assert at <= furthest[lane] + 1, f"{lane}: {at}, but {furthest[lane]} was the last"
            last[lane] = at
            furthest[lane] = max(furthest[lane], at)
            run = (group, key, at)
            assert int(attempt) >= attempts[run], f"{run}: attempt {attempt} after {attempts[run]}"
            attempts[run] = int(attempt)
    for lane, at in furthest.items():
        assert at == len(order[lane[1]]) - 1, f"{lane}: ended at {at}"


async def test_kill_9_loses_nothing_keeps_order_and_charges_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    with capsys.disabled():
        print(f"\nkill seed {seed}")
    chance = random.Random(seed)
    directory = tmp_path / "log"
    async with app(str(directory)) as first:
        await first.publish(Effect("none", -1))
        await first.publish_many([])
    publishers: list[Process] = []
    workers: list[Process] = []
    for number in range(ROUNDS):
        async with (
            await Process.start("publisher", directory, 1 + number * 1_000_000) as publisher,
            await Process.start("worker", directory) as one,
            await Process.start("worker", directory) as two,
        ):
            publishers.append(publisher)
            await kill_at_random(chance, publisher, one, two)
            # Who began owned all; the other one has taken over.
            workers += sorted((one, two), key=lambda each: each.began_s)
    async with await Process.start("worker", directory) as last, app(str(directory)) as looking:
        workers.append(last)
        await all_done(looking)
        status = await looking.status()
        letters = await looking.dead_letters()
        steps = [each async for each in looking.read(Step)]
        effects = [looking.decode(each, Effect) async for each in looking.read(Effect)]
        found = {(each.partition, each.offset): looking.decode(each, Step) for each in steps}

    acknowledged = [line for publisher in publishers for line in publisher.lines]
    assert len(acknowledged) > ROUNDS
    for _, key, said, partition, offset in acknowledged:
        assert found[int(partition), int(offset)] == Step(key, int(said))
    order: dict[str, list[int]] = {key: [] for key in KEYS}
    for step in found.values():
        order[step.key].append(step.number)
    for numbers in order.values():
        assert numbers == sorted(set(numbers)), "expected each event once, in order"
    assert not letters
    for group in GROUPS:
        account = status.groups[group]
        assert account.done == account.entered == len(found)
    check_runs(order, workers)
    # An effect is written with its outcome: once for each event, however often it was run.
    once = sorted((key, number) for key in KEYS for number in order[key])
    assert sorted((each.key, each.number) for each in effects if each.number >= 0) == once


async def kill_at_random(
    chance: random.Random, publisher: Process, one: Process, two: Process
) -> None:
    await publisher.printed(chance.randrange(1, 200))
    await asyncio.wait(
        [asyncio.ensure_future(each.printed(chance.randrange(1, 400))) for each in (one, two)],
        return_when=asyncio.FIRST_COMPLETED,
    )
    owner, other = (one, two) if one.lines else (two, one)
    if chance.random() < 0.3:
        await publisher.kill()
        await owner.kill()
    else:
        await owner.kill()
        await other.printed(chance.randrange(1, 400))
        await publisher.kill()
    await other.kill()


async def all_done(looking: App) -> None:
    """Wait until every group has handled everything; the account balances all the time."""

    async def nothing_is_open() -> bool:
        groups = (await looking.status()).groups
        for name, account in groups.items():
            assert account.balances, f"{name}: {account}"
        return all(each.open == each.pending == 0 for each in groups.values())

    try:
        await until(nothing_is_open, "that everything is handled in the end")
    except AssertionError as error:
        raise AssertionError(f"{error}: {(await looking.status()).groups}") from error
