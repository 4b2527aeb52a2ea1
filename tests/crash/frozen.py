"""A worker of test_frozen.py: what it has handled is settled only when a file lets it."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Context, Limits, event
from eventlane.broker import Consumer
from eventlane.clock import SystemClock, sleep
from eventlane.settlement import GroupSpec, Settlement
from eventlane.testing.history import Ended, Started
from eventlane.testing.stage import Storage
from tests.crash.children import end_with_parent, name, record, say
from tests.crash.recording import RecordingBroker, RecordingConsumer

GROUP = "main"
PARTITIONS = 2
LEASE_S = 1.0
PAUSE_S = 0.01

now_ms = SystemClock().now_ms


@event(topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int


@event(topic="effects", key="key")
class Effect(msgspec.Struct, frozen=True):
    """Published with the outcome of each event."""

    key: str
    number: int


class HeldConsumer(RecordingConsumer):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        held = holding(Path(sys.argv[3]), name())
        if held.exists():
            say("settles")
            while held.exists():
                await sleep(PAUSE_S)
        await super().settle(settlements)


class HeldBroker(RecordingBroker):
    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        return HeldConsumer(real, group, self)


def holding(directory: Path, process: str) -> Path:
    """While this file exists, a process does not settle."""
    return directory / f"hold-{process}"


def running(directory: Path) -> Path:
    """While this file exists, handlers run on."""
    return directory / "running"


def made_app(directory: Path, process: str = "") -> App:
    def wrap(real: Any) -> Any:
        return HeldBroker(real, process, record, set()) if process else real

    app = Storage(f"embedded:{directory}", wrap=wrap).app(
        partitions=PARTITIONS, limits=Limits(lease_s=LEASE_S, stall_s_max=0.5)
    )

    @app.subscribe(Step, group=GROUP)
    async def handle(step: Step, ctx: Context) -> None:
        run = Started.of(ctx, process=process, at_ms=now_ms())
        record(run)
        while running(directory).exists():
            await sleep(PAUSE_S)
        ctx.publish(Effect(step.key, step.number))
        record(Ended.of(run, "done"))

    return app


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(made_app(Path(sys.argv[3]), name()).run())
