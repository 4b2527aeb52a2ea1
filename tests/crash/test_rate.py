"""A rate that several processes share, and what it costs them when one of them is killed."""

import asyncio
import sys
from pathlib import Path

from tests.crash.children import ROOT

WORKER = """
import asyncio, sys, time
import msgspec
from eventlane import App, Dependency, event

@event(topic="rated", key="key", name="rated")
class Step(msgspec.Struct, frozen=True):
    key: str

app = App(f"embedded:{sys.argv[1]}", durability="os", partitions=2)

@app.subscribe(Step, group=sys.argv[2], dependencies=[Dependency("mail", rate_per_s=20)])
async def handle(step, ctx):
    print(time.monotonic(), sys.argv[2], flush=True)

async def main():
    async with app:
        await app.publish_many(Step(f"k{number}") for number in range(100))
        async with app.handling():
            await asyncio.Event().wait()

asyncio.run(main())
"""
RATE_PER_S = 20
EXPIRY_S = 0.2
RUNS = 55


async def test_two_processes_share_a_rate_and_one_goes_on_alone_when_the_other_is_killed(
    tmp_path: Path,
) -> None:
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, str(tmp_path), group),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        for group in ("one", "two")
    ]
    runs: list[tuple[float, str]] = []
    try:
        async with asyncio.timeout(30):

            async def read(worker: asyncio.subprocess.Process) -> None:
                assert worker.stdout is not None
                while len(runs) < RUNS and (line := await worker.stdout.readline()):
                    at_s, group = line.decode().split()
                    runs.append((float(at_s), group))

            await asyncio.gather(*map(read, workers))
            shared = sorted(runs)
            workers[0].kill()
            alone = len(runs)
            while len(runs) < alone + 10:
                assert workers[1].stdout is not None
                at_s, group = (await workers[1].stdout.readline()).decode().split()
                runs.append((float(at_s), group))
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()

    for first_s, _ in shared:
        within = sum(first_s <= at_s < first_s + 1 for at_s, _ in shared)
        assert within <= RATE_PER_S * (1 + EXPIRY_S) + 1
    both = [group for _, group in shared[-30:]]
    assert min(both.count("one"), both.count("two")) >= 8, "each has its share"
    took_s = runs[-1][0] - runs[alone][0]
    assert took_s >= (len(runs) - 1 - alone) / RATE_PER_S - EXPIRY_S
