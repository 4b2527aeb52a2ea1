"""The app that test_workers.py has served by real processes; what it does is said by files."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Context, Limits, Topic, event
from eventlane.clock import sleep

PLACE = Path(os.environ.get("SERVED_PLACE", "nowhere"))
"""A directory: `mode` says how importing ends, and `open` lets handlers go on. With `impatient` in
it, what takes long is found soon, also where a machine is only slow: its text is `lease_s`."""

with contextlib.suppress(FileNotFoundError):
    match (PLACE / "mode").read_text():
        case "raise":
            os.environ["SERVED_NOWHERE"]
        case "crash":
            os._exit(7)
        case mode:
            raise AssertionError(mode)


@event(topic=Topic("jobs", partitions=2), key="key")
class Job(msgspec.Struct, frozen=True):
    number: int
    kind: str = "plain"
    key: str = "k"


app = App(
    f"embedded:{PLACE}/data",
    durability="os",
    limits=Limits(
        drain_s=10,
        lease_s=float((PLACE / "impatient").read_text()),
        stall_s_max=0.6,
        progress_s_max=0.6,
    )
    if (PLACE / "impatient").exists()
    else Limits(drain_s=10),
)


def say(what: str, job: Job) -> None:
    os.write(1, f"{what} {job.number} {os.getpid()}\n".encode())


def hang(job: Job) -> None:
    """Within a transaction, which nobody else can have meanwhile."""
    say("commit", job)
    while not (PLACE / "open").exists():
        threading.Event().wait(0.02)


@app.subscribe(Job, group="work", concurrency=1)
async def work(job: Job, ctx: Context) -> None:
    say("begin", job)
    if job.kind == "commit":
        broker: Any = app._connected
        await broker._writer.change(lambda _transaction: hang(job))
    while job.kind in ("wait", "block") and not (PLACE / "open").exists():
        if job.kind == "wait":
            await sleep(0.02)
        else:
            threading.Event().wait(0.02)  # blocks the event loop on purpose
    say("end", job)
