"""An event that waits a moment for a dependency is woken, whatever else is settled meanwhile."""

import asyncio
from zlib import crc32

import msgspec

from eventlane import App, Context, Dependency, event

FINE, FAILS = (next(key for key in "abcdef" if crc32(key.encode()) % 2 == at) for at in (0, 1))


class Out(Exception):
    pass


@event(topic="waiting", key="key", name="waiting")
class Step(msgspec.Struct, frozen=True):
    key: str


async def test_an_event_that_waits_for_a_dependency_runs_though_another_partition_settles() -> None:
    app = App("embedded::memory:", partitions=2)
    fine, again = asyncio.Event(), asyncio.Event()
    runs = 0

    @app.subscribe(
        Step, group="g", dependencies=[Dependency("other", trips_on=Out, failures=5, probe_s=0.05)]
    )
    async def handle(step: Step, _: Context) -> None:
        nonlocal runs
        if step.key == FINE:
            fine.set()
            return
        runs += 1
        if runs == 1:
            await fine.wait()  # From then on a settlement of the other partition is due.
            raise Out
        again.set()

    async with app, app.handling():
        await app.publish_many([Step(FAILS), Step(FINE)])
        async with asyncio.timeout(5):
            await again.wait()
